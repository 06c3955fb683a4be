//! Deltas in flash that is mapped into memory.

use core::convert::Infallible;

use super::delta::{Delta, Held, newest};
use crate::net::Patch;

/// A delta whose numbers are used where they lie.
#[derive(Clone, Copy, Debug)]
pub struct Mapped<'m> {
    delta: Delta,
    slot: &'m [u8],
}

/// The newest whole delta of the base model `base` in two slots that are mapped into memory; the
/// same one that [`Store::open`](super::Store::open) finds. Whatever the bytes are, it does not
/// panic: what is damaged, of another base model or of another version is passed over.
///
/// ```
/// assert!(sepal_core::flash::find([&[0xff; 4096]; 2], 7).is_none());
/// ```
pub fn find(slots: [&[u8]; 2], base: u64) -> Option<Mapped<'_>> {
    let held = slots.map(|slot| {
        let read = |at: u32, into: &mut [u8]| -> Result<(), Infallible> {
            let from = slot.get(at as usize..).unwrap_or_default();
            into.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            Ok(())
        };
        match Held::of(u32::try_from(slot.len()).unwrap_or(u32::MAX), 1, read) {
            Ok(held) => held,
            Err(never) => match never {},
        }
    });
    let [first, second] = &held;
    let newest = newest([first, second], |delta| delta.base() == base)?;
    let delta = *held.get(newest)?.delta()?;
    Some(Mapped { delta, slot: slots.get(newest)? })
}

impl<'m> Mapped<'m> {
    /// The delta.
    pub const fn delta(&self) -> &Delta {
        &self.delta
    }

    /// A part in place, as [`Weights::Patched`](crate::net::Weights::Patched) takes it. `None`
    /// past the last part, and where numbers cannot be used in place: the slot begins at an
    /// address that is no multiple of 4, or the machine is big-endian.
    pub fn patch(&self, index: usize) -> Option<Patch<'m>> {
        let (part, at) = self.delta.place(index)?;
        let bytes = self.slot.get(usize::try_from(at).ok()?..)?;
        let bytes = bytes.get(..usize::try_from(part.len).ok()?.checked_mul(4)?)?;
        let numbers = match cfg!(target_endian = "little") {
            true => bytemuck::try_cast_slice(bytes).ok()?,
            false => return None,
        };
        Some(Patch { first: part.first, last: part.last, numbers })
    }
}
