//! Configuration files of any bytes: the body of the fuzz target `config`.

use std::path::Path;

use rowship_proto::fuzzing::Input;

use super::keys::KEYS;
use super::{Effective, parse_file, resolve, values};

/// A file, as it is and as settings that the bytes choose. Either every complaint is a line of its
/// own that names the file and a line in it (or a default that other settings rule out) and, if it
/// is about a setting, section and key; or printing what is in force gives a file that has the
/// same effect. Returns whether it was taken.
pub fn config(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return check(&settings(data)) };
    let taken = check(text);
    check(&settings(data)) || taken
}

const FILE: &str = "node.toml";

fn load(text: &str) -> Result<Effective, Vec<String>> {
    let (mut problems, mut given) = (Vec::new(), Vec::new());
    parse_file(Path::new(FILE), text, &mut given, &mut problems);
    let effective = resolve(given, &mut problems);
    effective.filter(|_| problems.is_empty()).ok_or(problems)
}

fn check(text: &str) -> bool {
    let first = match load(text) {
        Ok(effective) => effective,
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a word");
            problems.iter().for_each(|problem| check_complaint(problem, text));
            return false;
        }
    };
    let printed = first.print();
    let second = load(&printed).unwrap_or_else(|problems| {
        panic!("what is printed is refused: {}\n{printed}", problems.join("\n"))
    });
    assert_eq!(values(&second.draft), values(&first.draft), "{printed}");
    let settings = |effective: &Effective| format!("{:?}", effective.draft.settings);
    assert_eq!(settings(&second), settings(&first), "{printed}");
    true
}

fn check_complaint(problem: &str, text: &str) {
    let one_line = !problem.contains(|c: char| c.is_control());
    assert!(one_line, "a complaint that is not one plain line: {problem:?}");
    let from_default = ["default: [", "preset: ["].iter().any(|start| problem.starts_with(start));
    if !from_default {
        let place = problem.strip_prefix(FILE).and_then(|rest| rest.strip_prefix(':'));
        let (line, what) = place.and_then(|rest| rest.split_once(": ")).unwrap_or_default();
        let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let in_file = line.parse().is_ok_and(|line: usize| (1..=lines).contains(&line));
        assert!(in_file && !what.is_empty(), "a complaint without a place: {problem}");
    }
    if problem.contains("is not allowed: ") && !problem.contains("] is not known") {
        let names_key = KEYS
            .iter()
            .any(|key| problem.contains(&format!("[{}] {} = ", key.section.name(), key.name)));
        assert!(names_key, "a complaint about no setting: {problem}");
    }
}

/// A file of known settings with values that may fit them, and any others.
fn settings(data: &[u8]) -> String {
    let mut input = Input::new(data);
    let mut sections = [String::from("[cluster]\n"), String::from("[node]\n")];
    for _ in 0..SETTINGS_MAX {
        if input.is_done() {
            break;
        }
        let key = &KEYS[input.below(KEYS.len())];
        let value = match input.byte() {
            0..=159 => input.pick(VALUES).to_owned(),
            160..=207 => input.short().to_string(),
            _ => {
                let len = input.below(24);
                let text = String::from_utf8_lossy(input.bytes(len)).into_owned();
                toml::Value::String(text).to_string()
            }
        };
        let section = &mut sections[key.section as usize];
        // A key that stands twice is a complaint, and then nothing else is looked at.
        if !section.contains(&format!("\n{} = ", key.name)) {
            section.push_str(&format!("{} = {value}\n", key.name));
        }
    }
    sections.concat()
}

const SETTINGS_MAX: usize = 12;
const VALUES: &[&str] = &[
    "\"tiny\"",
    "\"standard\"",
    "\"async\"",
    "\"semi-sync\"",
    "\"semi-sync received\"",
    "\"sync\"",
    "\"sync committed (a)\"",
    "\"semi-sync ANY 2 durable (a, b, c)\"",
    "\"2\"",
    "\"a,b\"",
    "\"FIRST 1 (a,b)\"",
    "\"ANY 2 (a,b,c)\"",
    "\"wait\"",
    "\"refuse\"",
    "\"64KiB\"",
    "\"4KiB\"",
    "\"64MiB\"",
    "\"1GiB\"",
    "\"2s\"",
    "\"500ms\"",
    "\"127.0.0.1:0\"",
    "\"[::1]:7401\"",
    "\"0.0.0.0:7401\"",
    "\"host:7402\"",
    "\"/srv/a b\"",
    "\"a\"",
    "\"lsm\"",
    "\"memory\"",
    "\"json\"",
    "true",
    "false",
    "1",
    "0",
    "1000",
    "65536",
    "4294967296",
];
