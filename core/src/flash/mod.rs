//! What a device learnt, kept in flash: the weights of some layers as a delta to the model file,
//! in two slots, safe against power loss.
//!
//! `docs/flash.md` is the specification and the argument why it is safe. In short: a slot is a
//! header, a word that commits it, and numbers that are used where they lie. A save never touches
//! the slot that holds the newest delta. It erases the other one, writes the numbers, then the
//! header with a checksum of both, reads everything back, and only then writes the word that
//! commits it. Power lost anywhere leaves the old delta or the new one. No word is written twice
//! between two erases, so [`NorFlash`](embedded_storage::nor_flash::NorFlash) is all it needs.
//!
//! [`Store`] reads and writes any such flash with a buffer of 256 bytes on the stack; [`find`]
//! gives what it saved in place, where flash is mapped into memory. The `sequential-storage`
//! crate is not used because its items must fit a single erase unit and 65,535 bytes, are read
//! into RAM of their whole size, and go through an async trait.
//!
//! # What it cannot see
//! A bit whose programming or erasing was cut short may read in one way at one start and in the
//! other at the next, and no reading back shows that. The commit word bounds what follows from it:
//! it is written after the header and the numbers were written to the end, and a delta without it
//! counts only where there is none with it. So a delta whose save was cut may be there at one start
//! and gone at the next, and the one before it is kept meanwhile; two cuts in a row lose nothing
//! that was saved before. The page says which three would.

mod delta;
mod error;
mod mapped;
mod store;

pub use delta::{Delta, Held, Part, Refusal, size};
pub use error::StoreError;
pub use mapped::{Mapped, find};
pub use store::{Slots, Store};

/// The first bytes of every delta.
pub const MAGIC: [u8; 8] = *b"\x93SEPALD\n";
/// Deltas of another version are refused.
pub const VERSION: u16 = 1;
/// Bytes of the header.
pub const HEADER: usize = 112;
/// The most parts of a delta.
pub const PARTS: usize = 8;
/// What every place in a slot is at least a multiple of.
pub const ALIGN: usize = 16;
/// The largest words of flash that there is a layout for: bytes that are read or written at once.
pub const WORD_MAX: usize = 256;
/// The first bytes of the word that commits a delta.
pub const COMMIT: [u8; 4] = *b"SAVE";
