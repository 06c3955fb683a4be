//! What can go wrong with data.

use std::path::{Path, PathBuf};

/// Why data could not be used: where it was, what was found there, and what was expected.
#[derive(Debug)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder could not be opened, read or written.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as in "could not be opened".
        what: &'static str,
        /// The system's reason.
        error: std::io::Error,
    },
    /// A file or folder holds something else than it should.
    Content {
        /// The file or folder.
        path: PathBuf,
        /// Where in it, as in "row 3, column `age`".
        place: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// Samples in memory that are no data set.
    Samples {
        /// Which part of them, as in "label of sample 7".
        place: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// Something could not be fetched from a server.
    Fetch {
        /// The address asked.
        url: String,
        /// What came back.
        found: String,
        /// What should have come back.
        expected: String,
    },
}

impl DataError {
    pub(super) fn io(path: &Path, what: &'static str, error: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), what, error }
    }

    pub(super) fn content(
        path: &Path,
        place: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Content {
            path: path.to_owned(),
            place: place.into(),
            found: found.into(),
            expected: expected.into(),
        }
    }

    pub(crate) fn samples(
        place: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Samples { place: place.into(), found: found.into(), expected: expected.into() }
    }

    /// The same error, naming the file that the samples came from.
    pub(super) fn of(self, path: &Path) -> Self {
        match self {
            Self::Samples { place, found, expected } => {
                Self::Content { path: path.to_owned(), place, found, expected }
            }
            other => other,
        }
    }
}

impl std::fmt::Display for DataError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { path, what, error } => write!(f, "{} {what}: {error}", path.display()),
            Self::Content { path, place, found, expected } => {
                write!(f, "{}: {place}: found {found}, expected {expected}", path.display())
            }
            Self::Samples { place, found, expected } => {
                write!(f, "data set: {place}: found {found}, expected {expected}")
            }
            Self::Fetch { url, found, expected } => {
                write!(f, "{url}: found {found}, expected {expected}")
            }
        }
    }
}

impl std::error::Error for DataError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}
