//! What every call answers.

use core::ffi::{CStr, c_char};

use sepal_core::arena::ArenaError;
use sepal_core::error::Error;
use sepal_core::format::FormatError;
use sepal_core::plan::PlanError;
use sepal_core::prototypes::PrototypesError;
use sepal_core::source::SourceError;

/// `sepal_detail`: the numbers of an error.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Detail {
    /// What is needed or expected.
    pub needed: u64,
    /// What was given or found.
    pub given: u64,
}

/// Why a call failed.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Its code.
    pub status: Status,
    /// Its numbers.
    pub detail: Detail,
}

macro_rules! statuses {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        /// The codes of `sepal.h`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        #[allow(missing_docs, reason = "sepal.h and the texts say what they mean")]
        pub enum Status { $($name = $code,)* }

        /// What a code means, for a person.
        const fn text(status: i32) -> &'static CStr {
            match status {
                $($code => $text,)*
                _ => c"no code of this library",
            }
        }
    };
}

statuses! {
    Ok = 0, c"all is well";
    Null = 1, c"a pointer that must not be null is null";
    NotOpen = 2, c"the object was not opened, or is closed";
    Alignment = 3, c"memory does not begin at a multiple of what is needed";
    Memory = 4, c"memory is too small";
    Length = 5, c"an array has another length than expected";
    Overlap = 6, c"memory of two arguments overlaps";
    Format = 7, c"the bytes are no model file, or it is damaged";
    TooMany = 8, c"the model has more layers, blocks or tensors than the object holds";
    Net = 9, c"the layers do not fit each other, or are too large for this machine";
    Weights = 10, c"parameters are missing, of another length or of a type that cannot be read";
    Unsupported = 11, c"this library cannot run or train that";
    Range = 12, c"there is no block of that number";
    Setting = 13, c"a setting is no number that can be used";
    Sample = 14, c"the callback could not give a sample";
    TooFew = 15, c"fewer samples than one batch takes";
    NoAnchor = 16, c"in a whole pass no sample has neighbours of its own class and of another";
    Diverged = 17, c"the loss is no longer a number";
    NotFinite = 18, c"an embedding has a number that is infinite or NaN";
    Far = 19, c"an embedding is too far from its class";
    Full = 20, c"no class can be added, all rows are taken";
    NoneOfThese = 21, c"the embedding belongs to none of the classes";
    Kept = 22, c"what was kept holds no classes";
    Internal = 23, c"the library contradicts itself";
}

impl Failure {
    /// A failure with its numbers.
    pub const fn new(status: Status, needed: u64, given: u64) -> Self {
        Self { status, detail: Detail { needed, given } }
    }

    /// A failure that has none.
    pub const fn of(status: Status) -> Self {
        Self::new(status, 0, 0)
    }

    /// A failure of lengths.
    pub const fn sizes(status: Status, needed: usize, given: usize) -> Self {
        Self::new(status, needed as u64, given as u64)
    }
}

impl From<FormatError> for Failure {
    fn from(e: FormatError) -> Self {
        match e {
            FormatError::Field { found, expected, .. }
            | FormatError::Tensor { found, expected, .. } => {
                Self::new(Status::Format, expected, found)
            }
            FormatError::Limit { found, limit, .. } => Self::new(Status::Format, limit, found),
            FormatError::Unknown { found, .. } => Self::new(Status::Format, 0, found),
            FormatError::Record { at, .. } => Self::new(Status::Format, 0, at.into()),
            FormatError::Net(PlanError::Range { .. }) => Self::of(Status::Net),
            FormatError::Net(e) => e.into(),
            FormatError::Memory { needed, given, .. } => {
                Self::sizes(Status::TooMany, needed, given)
            }
            _ => Self::of(Status::Format),
        }
    }
}

impl From<PlanError> for Failure {
    fn from(e: PlanError) -> Self {
        match e {
            // A block of another kind than can be tuned.
            PlanError::Range { .. } => Self::of(Status::Unsupported),
            PlanError::Batch { size } => Self::new(Status::Setting, 1, size.into()),
            PlanError::Shape { layer, .. } | PlanError::Overflow { layer } => {
                Self::sizes(Status::Net, 0, layer)
            }
            _ => Self::of(Status::Net),
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        match e {
            Error::Arena(ArenaError::OutOfMemory { needed, given }) => {
                Self::sizes(Status::Memory, needed, given)
            }
            Error::Arena(ArenaError::Length { slot, host }) => {
                Self::sizes(Status::Length, slot, host)
            }
            Error::Plan(e) => e.into(),
            Error::Source(SourceError::Read { index, code }) => {
                Self::new(Status::Sample, index.into(), code as u64)
            }
            Error::Source(_) => Self::of(Status::Sample),
            Error::Weights { expected, got, .. } => Self::sizes(Status::Weights, expected, got),
            Error::TooFew { samples, needed } => {
                Self::new(Status::TooFew, needed.into(), samples.into())
            }
            Error::NoAnchor { update, .. } => Self::new(Status::NoAnchor, 1, update.into()),
            Error::Diverged { update, .. } => Self::new(Status::Diverged, 0, update.into()),
            Error::Unsupported(_) => Self::of(Status::Unsupported),
            _ => Self::of(Status::Internal),
        }
    }
}

impl From<PrototypesError> for Failure {
    fn from(e: PrototypesError) -> Self {
        match e {
            PrototypesError::Memory { needed, given } => Self::sizes(Status::Memory, needed, given),
            PrototypesError::Dim { expected, got } => Self::sizes(Status::Length, expected, got),
            PrototypesError::NotFinite { at } => Self::sizes(Status::NotFinite, 0, at),
            PrototypesError::Far { label } => Self::new(Status::Far, 0, label.into()),
            PrototypesError::Full { capacity } => {
                Self::sizes(Status::Full, capacity.saturating_add(1), capacity)
            }
            PrototypesError::Kept { at } => Self::sizes(Status::Kept, 0, at),
            _ => Self::of(Status::Internal),
        }
    }
}

/// Turns a result into a code, and its numbers into the caller's `sepal_detail`, where there is one.
///
/// # Safety
/// `detail` is null or can be written.
pub unsafe fn answer(detail: *mut Detail, result: Result<(), Failure>) -> i32 {
    let failure = result.err().unwrap_or(Failure::of(Status::Ok));
    if !detail.is_null() {
        // SAFETY: it is not null and the caller says that it can be written.
        unsafe { detail.write_unaligned(failure.detail) };
    }
    failure.status as i32
}

/// What a code means, for a person: text that ends with a zero and stays.
#[unsafe(no_mangle)]
pub extern "C" fn sepal_error_text(status: i32) -> *const c_char {
    text(status).as_ptr()
}
