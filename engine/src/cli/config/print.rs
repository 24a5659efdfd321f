//! The settings in force as a file that, given back, has the same effect.

use std::fmt::Write as _;

use super::keys::{Field, KEYS, Key, Section};
use super::{Effective, show};

impl Effective {
    /// TOML with a comment per line: unit, limits, origin.
    #[must_use]
    pub fn print(&self) -> String {
        let mut text = String::new();
        for section in [Section::Cluster, Section::Node] {
            let _ = writeln!(text, "[{}]", section.name());
            for (key, origin) in KEYS.iter().zip(&self.origins) {
                if key.section == section {
                    self.print_line(key, &origin.to_string(), &mut text);
                }
            }
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    fn print_line(&self, key: &Key, origin: &str, text: &mut String) {
        let (line, comment) = match (&key.field, show(key, &self.draft)) {
            (_, None) if key.name == "replicas" => {
                let comment = match origin {
                    "default" => "not set, or part of ack".to_owned(),
                    origin => format!("part of ack; {origin}"),
                };
                ("# replicas =".to_owned(), comment)
            }
            (_, None) => (format!("# {} =", key.name), "not set".to_owned()),
            (Field::Number(number), Some(value)) => {
                let min = number.unit.show(number.least(self.draft.tiny));
                let max = number.unit.show(number.max);
                let unit = number.unit.name().map(|unit| format!("{unit}, ")).unwrap_or_default();
                // A number that is not a whole KiB, and all that are not bytes, need no quotes.
                let plain = value.bytes().all(|byte| byte.is_ascii_digit());
                let value = if plain { value } else { quote(&value) };
                (format!("{} = {value}", key.name), format!("{unit}{min} to {max}; {origin}"))
            }
            (Field::Switch { .. }, Some(value)) => {
                (format!("{} = {value}", key.name), origin.to_owned())
            }
            (Field::Text { .. }, Some(value)) => {
                (format!("{} = {}", key.name, quote(&value)), origin.to_owned())
            }
        };
        // An origin may hold any file name; a comment ends at a line break.
        let comment = comment.replace(|c: char| c.is_control(), "?");
        let _ = writeln!(text, "{line:<40} # {comment}");
    }
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
