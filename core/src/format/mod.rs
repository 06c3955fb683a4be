//! The model file: written without memory, read in place.
//!
//! `docs/format.md` is the specification. In short: a header of 32 bytes, a manifest of
//! length-prefixed [postcard](https://postcard.jamesmunns.com) records, and the weights as raw
//! little-endian sections, 16-aligned, so that they are used where they lie. Both parts have a
//! CRC-32. A checkpoint is the same file with the state of a run in it.
//!
//! The reader borrows, decodes into the caller's memory, checks every length before it is used,
//! and gives an error for any bytes whatever, never a panic.

mod checkpoint;
mod digest;
mod error;
mod reader;
mod record;
pub mod tag;
mod writer;

pub use checkpoint::{Checkpoint, Saved, identity};
pub use digest::Digest;
pub use error::FormatError;
pub use reader::{File, counts};
pub use record::{Counts, Provenance};
pub use writer::{Cursor, Meta, Sink, Storage, write, write_checkpoint};

/// The first bytes of every file. Like PNG's they show transfers that drop the eighth bit or
/// translate line ends.
pub const MAGIC: [u8; 8] = *b"\x93SEPAL\r\n";
/// Files of another major version are refused.
pub const MAJOR: u16 = 1;
/// Files of a later minor version are read as far as they mark what is new as optional.
pub const MINOR: u16 = 0;
/// Bytes of the header.
pub const HEADER: usize = 32;
/// What the place of the weights section is a multiple of.
pub const BLOB_ALIGN: usize = 256;
/// What the place of a tensor within the section is a multiple of.
pub const ALIGN: usize = 16;
/// The most bytes of a manifest.
pub const MANIFEST_MAX: usize = 1 << 24;
/// The most bytes of a name or of another text.
pub const TEXT_MAX: usize = 1 << 16;
/// The flag of files that hold a checkpoint.
pub const CHECKPOINT: u32 = 1;
/// All flags that are known.
const FLAGS: u32 = CHECKPOINT;
/// Bytes of the checksum behind the weights.
pub const TRAILER: usize = 4;
/// The crate's version, as checkpoints and provenance name it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Bytes at an address that is a multiple of 256, so that weights in them are used in place.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(256))]
pub struct Aligned<T: ?Sized>(pub T);

/// The bytes of a model file, made part of the program and aligned: `&'static [u8]`.
///
/// The path is relative to the source file, as that of [`include_bytes!`]. [`counts`] gives the
/// lengths of the arrays to decode into as constants:
///
/// ```
/// use sepal_core::format::{Counts, File, counts};
/// use sepal_core::include_model;
/// use sepal_core::layer::RELU;
///
/// const MODEL: &[u8] = include_model!(concat!(
///     env!("CARGO_MANIFEST_DIR"),
///     "/../tests/golden/format-v1.sepal"
/// ));
/// const COUNTS: Counts = match counts(MODEL) {
///     Some(counts) => counts,
///     None => panic!("no model"),
/// };
/// let mut layers = [RELU; COUNTS.layers];
/// let mut blocks = [0; COUNTS.blocks];
/// let mut tensors = [File::NO_TENSOR; COUNTS.tensors];
/// let model = File::open(MODEL)?.decode(&mut layers, &mut blocks, &mut tensors)?;
/// assert!(!model.weights.is_narrow(), "weights are used in place");
/// # Ok::<(), sepal_core::format::FormatError>(())
/// ```
#[macro_export]
macro_rules! include_model {
    ($path:expr $(,)?) => {{
        const MODEL: &$crate::format::Aligned<[u8]> =
            &$crate::format::Aligned(*::core::include_bytes!($path));
        &MODEL.0
    }};
}
