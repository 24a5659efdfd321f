//! Standard output of commands.

use std::io::{self, IsTerminal, Write};

use super::exit::{Exit, Failure};

/// Prints `text` as it is. A reader that has gone (`| head`) ends the program quietly.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    write(text.as_bytes())
}

/// Like [`print()`], for bytes.
///
/// # Errors
/// When standard output cannot be written.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::new(Exit::Internal, format!("standard output: {error}"))),
    }
}

/// Whether a person looks at standard output.
#[must_use]
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}
