//! How a program ends: its output, its one line of error, its exit status.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

/// Why a program failed. An error of this type that is an [`io::Error`] is the standard output's:
/// those of files come with their file's name.
pub type Failure = Box<dyn std::error::Error>;

/// Runs a program's body on the standard output.
///
/// What it wrote before it failed is there. A reader that went away, as `head` does, is no
/// failure.
pub fn run(body: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = body(&mut out);
    let flushed = out.flush().map_err(Failure::from);
    let Err(error) = done.and(flushed) else { return ExitCode::SUCCESS };
    let text = match error.downcast_ref::<io::Error>() {
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Some(error) => format!("standard output: {error}"),
        None => error.to_string(),
    };
    // Nobody is left to be told that this failed too.
    let _ = writeln!(io::stderr(), "error: {text}");
    ExitCode::FAILURE
}
