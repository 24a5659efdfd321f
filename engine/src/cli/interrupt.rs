//! Ctrl-C and SIGTERM for commands that must clean up behind themselves.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Failure};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first SIGINT or SIGTERM only sets a flag; the second ends the process.
///
/// # Errors
/// When the handlers cannot be set up.
pub fn watch() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    biased;
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if INTERRUPTED.swap(true, Ordering::AcqRel) {
                    std::process::exit(130);
                }
            }
        });
    })?;
    Ok(())
}

/// An error once a signal came.
///
/// # Errors
/// "interrupted".
pub fn check() -> Result<(), Failure> {
    if INTERRUPTED.load(Ordering::Acquire) {
        return Err(Failure::new(Exit::Failed, "interrupted"));
    }
    Ok(())
}
