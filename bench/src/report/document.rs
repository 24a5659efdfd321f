//! What the page and its Markdown both show.

/// A report.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// Its title.
    pub title: String,
    /// Its parts.
    pub sections: Vec<Section>,
}

/// A part of a report.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Its title.
    pub title: String,
    /// What stands in it.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Clone, Debug)]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// A table.
    Table(Table),
    /// Plots side by side.
    Plots(Vec<Plot>),
}

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Names of the columns.
    pub heads: Vec<&'static str>,
    /// One cell per column each.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its text.
    pub text: String,
    /// How it is shown.
    pub kind: Kind,
}

/// How a cell is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As text.
    Text,
    /// As a number: aligned to the right.
    Number,
    /// As good news.
    Good,
    /// As bad news.
    Bad,
    /// As no news.
    Open,
}

impl Cell {
    /// A cell.
    #[must_use]
    pub fn new(text: impl Into<String>, kind: Kind) -> Cell {
        Cell { text: text.into(), kind }
    }

    /// A cell of text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Cell {
        Cell::new(text, Kind::Text)
    }

    /// A cell that holds a number.
    #[must_use]
    pub fn number(text: impl Into<String>) -> Cell {
        Cell::new(text, Kind::Number)
    }
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// An SVG element, in black and white and the colours of `draw`.
    pub svg: String,
}
