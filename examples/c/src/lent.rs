//! Memory of the caller, checked before it is used.

use sepal_core::arena::Word;

use crate::status::{Failure, Status};

/// Where the memory of an argument lies.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    at: usize,
    bytes: usize,
}

impl Region {
    /// That of `len` elements.
    pub fn of<T>(at: *const T, len: usize) -> Self {
        Self { at: at.addr(), bytes: len.saturating_mul(size_of::<T>()) }
    }
}

/// Refuses an argument that is written to and shares bytes with another.
pub fn apart(written: Region, others: &[Region]) -> Result<(), Failure> {
    let past = |region: &Region| region.at.saturating_add(region.bytes);
    let shares = |other: &Region| other.at < past(&written) && written.at < past(other);
    match others.iter().any(shares) {
        true => Err(Failure::of(Status::Overlap)),
        false => Ok(()),
    }
}

/// Refuses null, an address that is not aligned, and a length past the address space.
pub fn usable<T>(at: *const T, len: usize) -> Result<(), Failure> {
    aligned(at, align_of::<T>())?;
    let most = isize::MAX as usize / size_of::<T>();
    if len > most || at.addr().checked_add(len.saturating_mul(size_of::<T>())).is_none() {
        return Err(Failure::sizes(Status::Length, most, len));
    }
    Ok(())
}

/// Refuses null and an address that is no multiple of `align`.
pub fn aligned<T>(at: *const T, align: usize) -> Result<(), Failure> {
    if at.is_null() {
        return Err(Failure::of(Status::Null));
    }
    match at.addr().checked_rem(align) {
        Some(0) => Ok(()),
        over => Err(Failure::sizes(Status::Alignment, align, over.unwrap_or(0))),
    }
}

/// An array that is read.
///
/// # Safety
/// Where it is not null, `at` gives `len` elements that nobody writes to for `'a`.
pub unsafe fn array<'a, T: Copy>(at: *const T, len: usize) -> Result<&'a [T], Failure> {
    usable(at, len)?;
    // SAFETY: not null, aligned and within the address space; the rest is the caller's word.
    Ok(unsafe { core::slice::from_raw_parts(at, len) })
}

/// An array that is written.
///
/// # Safety
/// Where it is not null, `at` gives `len` elements that nobody else uses for `'a`.
pub unsafe fn array_mut<'a, T: Copy>(at: *mut T, len: usize) -> Result<&'a mut [T], Failure> {
    usable(at, len)?;
    // SAFETY: not null, aligned and within the address space; the rest is the caller's word.
    Ok(unsafe { core::slice::from_raw_parts_mut(at, len) })
}

/// Memory as an arena: whole words of it.
///
/// # Safety
/// As [`array_mut`], of bytes.
pub unsafe fn words<'a>(at: *mut u8, bytes: usize) -> Result<&'a mut [Word], Failure> {
    // SAFETY: whole words are no longer than the bytes; the rest is the caller's word.
    unsafe { array_mut(at.cast::<Word>(), bytes / Word::BYTES) }
}

/// Writes an answer.
///
/// # Safety
/// Where it is not null, `at` can be written.
pub unsafe fn give<T>(at: *mut T, value: T) -> Result<(), Failure> {
    usable(at, 1)?;
    // SAFETY: not null and aligned; the rest is the caller's word.
    unsafe { at.write(value) };
    Ok(())
}
