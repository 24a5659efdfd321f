//! `bench report`: what sinks kept in a directory, as a page and as Markdown.

pub mod document;
pub mod draw;
pub mod markdown;
pub mod names;
pub mod page;
pub mod plots;
pub mod tables;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::goals::{GOALS, judge};
use crate::kept::Directory;
use document::Document;

/// Name of the page, in the directory of the figures.
pub const PAGE_FILE: &str = "report.html";
/// Name of the same as Markdown.
pub const MARKDOWN_FILE: &str = "report.md";
/// Name of the directory of the Markdown's plots.
const PLOTS_DIRECTORY: &str = "report-plots";

/// The report about all that is kept.
///
/// # Errors
/// When something cannot be drawn.
pub fn document(kept: &Directory) -> Result<Document> {
    let mut sections = vec![tables::goals(&judge::judge(GOALS, &kept.figures))];
    sections.extend(plots::sections(kept)?);
    sections.extend(tables::figures(&kept.figures));
    Ok(Document { title: "rowship, measured".to_owned(), sections })
}

/// Reads a directory, and writes the page and the Markdown into it. Gives their paths.
///
/// # Errors
/// When a file of it is malformed, or the report cannot be written.
pub fn write(directory: &Path) -> Result<[PathBuf; 2]> {
    let document = document(&Directory::read(directory)?)?;
    let (markdown, plots) = markdown::markdown(&document, PLOTS_DIRECTORY);
    let plots_directory = directory.join(PLOTS_DIRECTORY);
    // Those of an earlier report may be more.
    if plots_directory.exists() {
        std::fs::remove_dir_all(&plots_directory)
            .with_context(|| format!("removing {}", plots_directory.display()))?;
    }
    std::fs::create_dir_all(&plots_directory)
        .with_context(|| format!("making {}", plots_directory.display()))?;
    for (name, plot) in plots {
        save(&plots_directory.join(name), &plot.svg)?;
    }
    let paths = [directory.join(PAGE_FILE), directory.join(MARKDOWN_FILE)];
    save(&paths[0], &page::page(&document))?;
    save(&paths[1], &markdown)?;
    Ok(paths)
}

fn save(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
