//! Ctrl-C.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// The status that a shell gives a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// Whether the run is to stop.
pub fn wished() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Listens. The first ends a training at its next step. The second does not wait for one: files
/// are whole at every moment.
pub fn listen() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    })
}

/// The status of a program: a failure after Ctrl-C is that of a program that was interrupted.
pub fn status(code: ExitCode) -> ExitCode {
    let stopped = wished() && code == ExitCode::FAILURE;
    if stopped { ExitCode::from(INTERRUPTED) } else { code }
}
