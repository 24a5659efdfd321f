//! Situations as text files: commands, and what came of them.
//!
//! ```text
//! # Comments and blank lines stand between steps.
//! start a primary
//! ----
//! a is ready
//! ```
//!
//! A step is one or more command lines, a line of dashes, and the output, up to a blank line. The
//! commands are those of [`stage`]. With `ROWSHIP_REWRITE=1` the test writes what it saw.

pub mod stage;
mod text;

use std::rc::Rc;

use rowship::edge::sim::trace;
use rowship_proto::sim::{plant, take_marks};
use tokio::task::LocalSet;

use self::stage::Stage;

/// The line between a step's commands and its output.
const DASHES: &str = "----";

/// Plays a file and returns what it should look like.
///
/// # Errors
/// A command that is not one, in words.
pub fn play(file: &str) -> Result<String, String> {
    trace::reset();
    plant(None);
    let _ = take_marks();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    LocalSet::new().block_on(&runtime, play_on(file, Rc::new(Stage::new())))
}

async fn play_on(file: &str, stage: Rc<Stage>) -> Result<String, String> {
    let mut out = String::new();
    let mut lines = file.lines();
    let mut commands: Vec<&str> = Vec::new();
    while let Some(line) = lines.next() {
        if line != DASHES {
            out.push_str(line);
            out.push('\n');
            if line.is_empty() || line.starts_with('#') {
                commands.clear();
            } else {
                commands.push(line);
            }
            continue;
        }
        // What was expected is written anew.
        for _ in lines.by_ref().take_while(|line| !line.is_empty()) {}
        out.push_str(DASHES);
        out.push('\n');
        for command in commands.drain(..) {
            let seen = stage.command(command).await.map_err(|why| format!("{command}: {why}"))?;
            if !seen.is_empty() {
                out.push_str(&seen);
                out.push('\n');
            }
        }
        out.push('\n');
    }
    while out.ends_with("\n\n") {
        out.pop();
    }
    Ok(out)
}
