//! A document as Markdown, with its plots in files beside it.

use super::document::{Block, Document, Kind, Plot, Table};

/// The text, and the plots with the names by which it refers to them.
#[must_use]
pub fn markdown<'a>(
    document: &'a Document,
    plots_directory: &str,
) -> (String, Vec<(String, &'a Plot)>) {
    let mut text = format!("# {}\n", escaped(&document.title));
    let mut plots = Vec::new();
    for section in &document.sections {
        text.push_str(&format!("\n## {}\n", escaped(&section.title)));
        for block in &section.blocks {
            text.push('\n');
            match block {
                Block::Text(paragraph) => text.push_str(&format!("{}\n", escaped(paragraph))),
                Block::Table(table) => text.push_str(&self::table(table)),
                Block::Plots(all) => {
                    for plot in all {
                        let name = format!("{:03}.svg", plots.len());
                        let title = escaped(&plot.title);
                        let line = format!("{title}\n\n![{title}]({plots_directory}/{name})\n\n");
                        text.push_str(&line);
                        plots.push((name, plot));
                    }
                }
            }
        }
    }
    (text, plots)
}

fn table(table: &Table) -> String {
    let mut text = format!("| {} |\n|", table.heads.join(" | "));
    let first = table.rows.first();
    for column in 0..table.heads.len() {
        let kind = first.and_then(|row| row.get(column)).map(|cell| cell.kind);
        text.push_str(if kind == Some(Kind::Number) { "---:|" } else { "---|" });
    }
    text.push('\n');
    for row in &table.rows {
        for cell in row {
            text.push_str(&format!("| {} ", escaped(&cell.text)));
        }
        text.push_str("|\n");
    }
    text
}

/// Everything that Markdown could take for a mark of its own, HTML included.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if "\\`*_[]<>|&#~!$".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
