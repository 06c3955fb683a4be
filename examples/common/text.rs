//! Files of text.

use std::path::Path;

use sepal::models::file::{self, FileError};

/// Writes a file, whole or not at all.
pub fn write(path: &Path, text: &str) -> Result<(), FileError> {
    file::replace(path, |out| {
        let io = |error| FileError::Io { path: path.to_owned(), doing: "writing", error };
        out.write_all(text.as_bytes()).map_err(io)
    })
}
