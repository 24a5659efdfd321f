//! A document as one page that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::document::{Block, Cell, Document, Kind, Plot, Table};

const STYLE: &str = include_str!("page.css");

/// The page: HTML that is well-formed XML too.
#[must_use]
pub fn page(document: &Document) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" xmlns="http://www.w3.org/1999/xhtml" {
            head {
                // maud leaves void elements open, which XML does not know.
                (PreEscaped(r#"<meta charset="utf-8"/>"#))
                (PreEscaped(r#"<meta name="viewport" content="width=device-width"/>"#))
                (PreEscaped(r#"<meta name="color-scheme" content="light dark"/>"#))
                title { (document.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (document.title) }
                nav { ul {
                    @for (at, section) in document.sections.iter().enumerate() {
                        li { a href={ "#s" (at) } { (section.title) } }
                    }
                } }
                @for (at, section) in document.sections.iter().enumerate() {
                    section id={ "s" (at) } {
                        h2 { (section.title) }
                        @for block in &section.blocks { (self::block(block)) }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn block(block: &Block) -> Markup {
    match block {
        Block::Text(text) => html! { p { (text) } },
        Block::Table(table) => html! { div class="wide" { (self::table(table)) } },
        Block::Plots(plots) => html! {
            div class="plots" { @for plot in plots { (self::plot(plot)) } }
        },
    }
}

fn plot(plot: &Plot) -> Markup {
    // plotters escapes the texts in it.
    html! { figure { figcaption { (plot.title) } (PreEscaped(&plot.svg)) } }
}

fn table(table: &Table) -> Markup {
    html! {
        table {
            thead { tr { @for head in &table.heads { th { (head) } } } }
            tbody {
                @for row in &table.rows {
                    tr { @for cell in row { td class=(class(cell)) { (cell.text) } } }
                }
            }
        }
    }
}

fn class(cell: &Cell) -> &'static str {
    match cell.kind {
        Kind::Text => "text",
        Kind::Number => "number",
        Kind::Good => "good",
        Kind::Bad => "bad",
        Kind::Open => "open",
    }
}
