//! Bytes as a file on disk, for readers that take a path.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    /// One folder for each thread, removed when it ends.
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Writes a file; the folders of its name must be there already.
pub fn put(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("a temporary file can be written");
    path
}

/// The folder that [`put`] writes to.
pub fn folder() -> PathBuf {
    let make = || tempfile::tempdir().expect("a temporary folder can be made");
    FOLDER.with(|folder| AsRef::<Path>::as_ref(folder.get_or_init(make)).to_owned())
}
