//! Why a file is refused.

use crate::layer::Role;
use crate::plan::PlanError;

/// Every error of reading and of writing a model file: the field, what was found there and what
/// was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// A field of another value.
    Field {
        /// Its name.
        field: &'static str,
        /// What the file has.
        found: u64,
        /// What it must have.
        expected: u64,
    },
    /// A field above the format's limit.
    Limit {
        /// Its name.
        field: &'static str,
        /// What the file has.
        found: u64,
        /// The largest value.
        limit: u64,
    },
    /// A number that this reader, or this build of it, does not know.
    Unknown {
        /// What the number stands for.
        field: &'static str,
        /// The number.
        found: u64,
    },
    /// Bytes of the manifest that are no record, or a record that does not decode.
    Record {
        /// The record's first byte in the file.
        at: u32,
        /// Its kind; 0 where there is none.
        kind: u8,
    },
    /// A tensor that does not fit its layer or the weights.
    Tensor {
        /// The layer.
        layer: u16,
        /// Which of its parameters.
        role: Role,
        /// What about it.
        field: &'static str,
        /// What the file or the model has.
        found: u64,
        /// What it must have.
        expected: u64,
    },
    /// Layers or blocks that do not fit each other.
    Net(PlanError),
    /// Memory of the caller that is too small.
    Memory {
        /// What it is for.
        field: &'static str,
        /// Elements that are needed.
        needed: usize,
        /// Elements that were given.
        given: usize,
    },
    /// A sink that could not write; the number is its own.
    Sink {
        /// The sink's own code.
        code: i32,
    },
}

impl core::fmt::Display for FormatError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Field { field, found, expected } => {
                write!(f, "{field} is {found:#x}, expected {expected:#x}")
            }
            Self::Limit { field, found, limit } => {
                write!(f, "{field} is {found}, the limit is {limit}")
            }
            Self::Unknown { field, found } => {
                write!(f, "{field} {found} is not known to this reader")
            }
            Self::Record { at, kind } => {
                write!(f, "the record of kind {kind} at byte {at} cannot be read")
            }
            Self::Tensor { layer, role, field, found, expected } => {
                write!(f, "layer {layer}, {role:?}: {field} is {found}, expected {expected}")
            }
            Self::Net(e) => e.fmt(f),
            Self::Memory { field, needed, given } => {
                write!(f, "memory for {given} {field}, {needed} are needed")
            }
            Self::Sink { code } => write!(f, "the sink could not write (code {code})"),
        }
    }
}

impl core::error::Error for FormatError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Net(e) => Some(e),
            _ => None,
        }
    }
}

impl From<PlanError> for FormatError {
    fn from(e: PlanError) -> Self {
        Self::Net(e)
    }
}

pub(super) const fn field(field: &'static str, found: u64, expected: u64) -> FormatError {
    FormatError::Field { field, found, expected }
}

/// Refuses values above a limit.
pub(super) const fn within(field: &'static str, found: u64, limit: u64) -> Result<(), FormatError> {
    if found > limit { Err(FormatError::Limit { field, found, limit }) } else { Ok(()) }
}
