//! New classes from a few samples.

use core::ptr;

use sepal_core::layer::L2Normalise;
use sepal_core::prototypes::{Prototypes, Spread};
use sepal_core::shape::Shape;

use crate::lent::{self, Region};
use crate::status::{Detail, Failure, Status, answer};

const OPEN: u32 = 0x7365_7072;

/// `sepal_prototypes`.
#[repr(C)]
#[derive(Debug)]
pub struct State {
    mark: u32,
    dim: u32,
    capacity: u32,
    classes: u32,
    memory: *mut u8,
}

/// Bytes of means, of spreads, of labels, and of all.
fn sizes(dim: u32, capacity: u32) -> Option<(usize, usize, usize)> {
    let rows = capacity as usize;
    let means = (dim as usize).checked_mul(rows)?.checked_mul(size_of::<f32>())?;
    let spreads = rows.checked_mul(size_of::<Spread>())?;
    let all = means.checked_add(spreads)?.checked_add(rows.checked_mul(size_of::<u16>())?)?;
    Some((means, spreads, all))
}

impl State {
    /// Works with the prototypes at an address, and keeps how many classes there are.
    ///
    /// # Safety
    /// Where it is not null, `at` is a `sepal_prototypes` that was opened or begins with zeros, whose
    /// memory is in place; nobody else uses either for the call.
    unsafe fn with<R>(
        at: *mut Self,
        embedding: Region,
        work: impl FnOnce(&mut Prototypes<'_>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        // SAFETY: the caller's word.
        let state = unsafe { Self::at(at)? };
        // SAFETY: as above.
        let mut prototypes = unsafe { state.prototypes(embedding)? };
        let done = work(&mut prototypes)?;
        state.classes = prototypes.classes().count() as u32;
        Ok(done)
    }

    /// # Safety
    /// As [`with`](Self::with).
    unsafe fn at<'a>(at: *mut Self) -> Result<&'a mut Self, Failure> {
        lent::usable(at, 1)?;
        // SAFETY: not null and aligned; the first bytes are there in either case.
        if unsafe { ptr::addr_of!((*at).mark).read() } != OPEN {
            return Err(Failure::of(Status::NotOpen));
        }
        // SAFETY: an open one has all fields.
        Ok(unsafe { &mut *at })
    }

    /// # Safety
    /// The memory is in place, and nobody else uses it for `'a`.
    unsafe fn prototypes<'a>(&self, embedding: Region) -> Result<Prototypes<'a>, Failure> {
        let (dim, rows) = (self.dim as usize, self.capacity as usize);
        let too_large = Failure::of(Status::Length);
        let (means, spreads, all) = sizes(self.dim, self.capacity).ok_or(too_large)?;
        lent::apart(Region::of(self.memory, all), &[embedding])?;
        // SAFETY: all three lie within the memory, one behind the other.
        let (means, spreads, labels) = unsafe {
            let (first, second) = (self.memory, self.memory.wrapping_add(means));
            (
                lent::array_mut(first.cast::<f32>(), dim.saturating_mul(rows))?,
                lent::array_mut(second.cast::<Spread>(), rows)?,
                lent::array_mut(second.wrapping_add(spreads).cast::<u16>(), rows)?,
            )
        };
        Ok(Prototypes::resume(dim, means, labels, spreads, self.classes as usize)?)
    }
}

/// Scales an embedding to length 1.
///
/// # Safety
/// Pointers that are not null point to what `sepal.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_unit_length(
    embedding: *mut f32,
    len: usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for an embedding.
    unsafe {
        let result = lent::array_mut(embedding, len).map(|embedding| {
            L2Normalise.forward(Shape::rows(1, len as u32), embedding, &mut [0.0]);
        });
        answer(detail, result)
    }
}

/// Bytes of memory for prototypes.
#[unsafe(no_mangle)]
pub extern "C" fn sepal_prototypes_memory(dim: u32, capacity: u32) -> usize {
    sizes(dim, capacity).map_or(0, |(_, _, all)| all)
}

/// Opens prototypes.
///
/// # Safety
/// As [`sepal_unit_length`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_prototypes_open(
    prototypes: *mut State,
    dim: u32,
    capacity: u32,
    classes: u32,
    memory: *mut u8,
    memory_len: usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for prototypes, and for memory that belongs to them.
    unsafe {
        let result = lent::usable(prototypes, 1).and_then(|()| {
            ptr::addr_of_mut!((*prototypes).mark).write(0);
            lent::aligned(memory, align_of::<f32>())?;
            let (_, _, needed) = sizes(dim, capacity).ok_or(Failure::of(Status::Length))?;
            if dim == 0 || capacity == 0 {
                return Err(Failure::new(Status::Length, 1, 0));
            }
            if memory_len < needed {
                return Err(Failure::sizes(Status::Memory, needed, memory_len));
            }
            let state = State { mark: OPEN, dim, capacity, classes, memory };
            state.prototypes(Region::of(prototypes, 1))?;
            prototypes.write(state);
            Ok(())
        });
        answer(detail, result)
    }
}

/// Adds a sample.
///
/// # Safety
/// As [`sepal_unit_length`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_prototypes_add(
    prototypes: *mut State,
    embedding: *const f32,
    len: usize,
    label: u16,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for prototypes whose memory is in place, and an embedding.
    unsafe {
        let result = State::with(prototypes, Region::of(embedding, len), |prototypes| {
            prototypes.add(lent::array(embedding, len)?, label)?;
            Ok(())
        });
        answer(detail, result)
    }
}

/// Removes a class.
///
/// # Safety
/// As [`sepal_unit_length`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_prototypes_remove(
    own: *mut State,
    label: u16,
    samples: *mut u32,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for prototypes whose memory is in place.
    unsafe {
        let result = State::with(own, Region::of(samples, 1), |prototypes| {
            if !samples.is_null() {
                lent::usable(samples, 1)?;
                lent::apart(Region::of(samples, 1), &[Region::of(own, 1)])?;
            }
            let count = prototypes.remove(label);
            if samples.is_null() { Ok(()) } else { lent::give(samples, count) }
        });
        answer(detail, result)
    }
}

/// The class of an embedding.
///
/// # Safety
/// As [`sepal_unit_length`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_prototypes_classify(
    prototypes: *const State,
    embedding: *const f32,
    len: usize,
    deviations: f32,
    label: *mut u16,
    distance: *mut f32,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for prototypes whose memory is in place, an embedding, and
    // places for the answers.
    unsafe {
        let result = lent::usable(prototypes, 1).and_then(|()| {
            let state = State::at(prototypes.cast_mut())?;
            let prototypes = state.prototypes(Region::of(embedding, len))?;
            let embedding = lent::array(embedding, len)?;
            if len != state.dim as usize {
                return Err(Failure::sizes(Status::Length, state.dim as usize, len));
            }
            let found = prototypes.classify(embedding, deviations);
            let found = found.ok_or(Failure::of(Status::NoneOfThese))?;
            lent::give(label, found.label)?;
            if distance.is_null() { Ok(()) } else { lent::give(distance, found.dist2) }
        });
        answer(detail, result)
    }
}
