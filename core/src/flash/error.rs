//! Why a store cannot be opened, read or saved to.

use super::{PARTS, WORD_MAX};

/// Every error of a store. `E` is the flash's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError<E> {
    /// The flash failed.
    Flash(E),
    /// Words of the flash that there is no layout for.
    Word {
        /// Bytes that are read at once.
        read: usize,
        /// Bytes that are written at once.
        write: usize,
    },
    /// Slots that do not begin and end with an erase unit and a word of the flash.
    Unaligned {
        /// A slot's first byte.
        at: u32,
        /// Bytes of a slot.
        size: u32,
        /// What both must be multiples of.
        unit: usize,
    },
    /// A slot past the end of the flash.
    Outside {
        /// One past the slot's last byte.
        end: u64,
        /// Bytes of the flash.
        capacity: usize,
    },
    /// Slots that overlap.
    Overlap {
        /// Their first bytes.
        at: [u32; 2],
        /// Bytes of a slot.
        size: u32,
    },
    /// A delta larger than a slot.
    Size {
        /// Bytes that it takes.
        needed: u64,
        /// Bytes of a slot.
        given: u32,
    },
    /// Too many parts, or none.
    Parts {
        /// How many.
        given: usize,
    },
    /// Layers of a patch that are none, or do not come after those of the patch before.
    Layers {
        /// The patch's first layer.
        first: u16,
        /// One past its last.
        last: u16,
        /// Where the layers of the patch before end.
        after: u16,
    },
    /// A part without numbers.
    NoNumbers {
        /// Its first layer.
        first: u16,
        /// One past its last.
        last: u16,
    },
    /// Numbers asked for that are not there: no such part, or past its end.
    NotStored {
        /// The part.
        part: usize,
        /// One past the last number that was asked for.
        end: u64,
        /// Numbers that the part has.
        stored: u32,
    },
    /// What was written does not read back, or what was erased is still there: worn-out or
    /// protected flash. What was newest before a save still is; see
    /// [`forget`](super::Store::forget) for that.
    Verify {
        /// The slot's first byte.
        at: u32,
    },
}

impl<E: core::fmt::Debug> core::fmt::Display for StoreError<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Flash(e) => write!(f, "the flash failed: {e:?}"),
            Self::Word { read, write } => write!(
                f,
                "the flash is read by {read} and written by {write} bytes, powers of two up to \
                 {WORD_MAX} are expected"
            ),
            Self::Unaligned { at, size, unit } => {
                write!(f, "a slot of {size} bytes at {at:#x}, multiples of {unit} are expected")
            }
            Self::Outside { end, capacity } => {
                write!(f, "a slot ends at {end:#x}, the flash at {capacity:#x}")
            }
            Self::Overlap { at: [first, second], size } => {
                write!(f, "slots of {size} bytes at {first:#x} and {second:#x} overlap")
            }
            Self::Size { needed, given } => {
                write!(f, "{needed} bytes of flash are needed, a slot has {given}")
            }
            Self::Parts { given } => write!(f, "{given} parts, 1 to {PARTS} are expected"),
            Self::Layers { first, last, after } => {
                write!(f, "layers {first}..{last}, expected some from {after} on")
            }
            Self::NoNumbers { first, last } => write!(f, "no numbers for layers {first}..{last}"),
            Self::NotStored { part, end, stored } => {
                write!(f, "{end} numbers of part {part}, {stored} are stored")
            }
            Self::Verify { at } => {
                write!(f, "the slot at {at:#x} does not read back as it was written")
            }
        }
    }
}

impl<E: core::fmt::Debug> core::error::Error for StoreError<E> {}
