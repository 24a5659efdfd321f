//! Plays the files in `scenarios/`. `ROWSHIP_REWRITE=1` writes what was seen into them.

use std::fs;
use std::path::Path;

use rowship_sim::scenario::play;

#[test]
fn scenarios_come_out_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let rewrite = std::env::var_os("ROWSHIP_REWRITE").is_some();
    let mut files: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12, "only {} scenarios", files.len());
    let mut differ = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let expected = fs::read_to_string(&path).unwrap();
        let seen = play(&expected).unwrap_or_else(|why| panic!("{name}: {why}"));
        if seen != expected && rewrite {
            fs::write(&path, &seen).unwrap();
        } else if seen != expected {
            differ.push(format!("{name}:\n{}", first_difference(&expected, &seen)));
        }
    }
    let hint = "ROWSHIP_REWRITE=1 writes what was seen";
    assert!(differ.is_empty(), "{}\n{hint}", differ.join("\n"));
}

fn first_difference(expected: &str, seen: &str) -> String {
    let at = expected.lines().zip(seen.lines()).position(|(one, other)| one != other);
    let at = at.unwrap_or(expected.lines().count().min(seen.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
    format!("  line {}: expected {}\n  but saw {}", at + 1, line(expected), line(seen))
}
