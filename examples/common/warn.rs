//! Warnings.

use std::io::{self, Write};

/// Says on the standard error what is odd, but no reason to stop.
pub fn warn(text: &str) {
    // A warning that cannot be shown is no reason to stop either.
    let _ = writeln!(io::stderr(), "warning: {text}");
}
