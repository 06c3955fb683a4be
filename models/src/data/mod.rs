//! Data sets: loaders for common files, samples in memory, augmentation and samplers.
//!
//! | file | module | format |
//! |---|---|---|
//! | MNIST, Fashion-MNIST and relatives | [`idx`] | IDX, gzip or not |
//! | CIFAR-10, CIFAR-100 | [`cifar`] | the binary version |
//! | tables | [`csv`] | CSV, classes or numbers to predict |
//! | AG's News, DBPedia | [`text`] | CSV of classes and texts, as characters |
//! | recordings of motion | [`motion`] | CSV, a line for each reading |
//! | NumPy arrays | [`npy`] | NPY 1.0 and 2.0 |
//! | class folders of PNG or JPEG | `folder` (feature `images`) | |
//!
//! What is in an `ndarray` array already is a source as it lies: `View` (feature `ndarray`).
//!
//! Feature `download` adds `download`, which fetches the official sets into a cache folder.
//!
//! [`open`] recognises a folder of one of the well-known sets. Loaders check every length before
//! they use it, allocate no more than twice what a file really has, and their errors name the
//! file, the place, what was found and what was expected.
//!
//! ```
//! # #[cfg(feature = "bundled")] {
//! use sepal_models::data;
//!
//! let split = data::bundled();
//! assert_eq!((split.train.len(), split.test.len()), (2000, 1000));
//! assert_eq!(split.train.names()[1], "Trouser");
//! # }
//! ```

mod augment;
mod balanced;
pub mod cifar;
pub mod csv;
mod dataset;
#[cfg(feature = "download")]
pub mod download;
mod error;
#[cfg(feature = "images")]
pub mod folder;
pub mod idx;
mod input;
pub mod motion;
pub mod npy;
mod open;
pub mod text;
#[cfg(feature = "ndarray")]
mod view;

pub use augment::Augment;
pub use balanced::ClassBalanced;
pub use dataset::{Dataset, Moments, Samples};
pub use error::DataError;
#[cfg(feature = "bundled")]
pub use open::bundled;
pub use open::{Color, FASHION_MNIST, Images, Options, Split, open, open_with};
#[cfg(feature = "ndarray")]
pub use view::{Element, Label, View};

/// Names for labels that have none: the numbers from 0 to the largest.
pub(crate) fn numbered(labels: &[u16]) -> Vec<String> {
    let last = labels.iter().copied().max().unwrap_or(0);
    (0..=last).map(|label| label.to_string()).collect()
}

/// Names as a data set holds them.
fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::DataError;

    /// A folder that is deleted when it goes out of scope.
    pub(super) struct Folder(PathBuf);

    impl Folder {
        pub(super) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("sepal-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(super) fn path(&self) -> &Path {
            &self.0
        }

        /// Writes a file, and the folders above it.
        pub(super) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, bytes).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            // A test that failed to clean up must not hide why it failed.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    /// Checks that a message says all of the words.
    #[track_caller]
    pub(super) fn says(error: &DataError, words: &[&str]) {
        let message = error.to_string();
        for word in words {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
    }
}
