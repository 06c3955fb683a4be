//! The arena: one allocation on the device, cut into slots by the plan.

use std::cell::RefCell;
use std::sync::Arc;

use sepal_core::arena::{ArenaError, Dtype, Slot};
use sepal_core::backend::same_length;
use sepal_core::error::Error;

use crate::gpu::{Address, Buffer, Gpu};

/// The device memory of one backend.
#[derive(Debug)]
pub(crate) struct Memory {
    gpu: Arc<Gpu>,
    buffer: Option<Buffer>,
    bytes: usize,
    used: RefCell<Used>,
}

/// Bytes that what was queued since the host last waited may read or write.
#[derive(Debug, Default)]
struct Used {
    waits: u64,
    ranges: Vec<(usize, usize)>,
}

impl Memory {
    /// `bytes` of memory, not initialised. What is missing is named before anything is allocated.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self, Error> {
        let mut buffer = None;
        if bytes > 0 {
            let given = gpu.free()?;
            if bytes > given {
                return Err(ArenaError::OutOfMemory { needed: bytes, given }.into());
            }
            buffer = Some(gpu.allocate(bytes)?);
        }
        Ok(Self { gpu: gpu.clone(), buffer, bytes, used: RefCell::default() })
    }

    /// Whether nothing that is queued uses a slot.
    pub fn is_idle(&self, slot: Slot) -> bool {
        let used = self.used.borrow();
        let past = slot.at.saturating_add(slot.bytes());
        let meets = |&(first, last): &(usize, usize)| first < past && slot.at < last;
        used.waits != self.gpu.waits() || !used.ranges.iter().any(meets)
    }

    /// Its size.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where slots lie; empty ones lie nowhere.
    ///
    /// # Errors
    /// A slot past the end, or two that overlap.
    pub fn lease<const N: usize>(&self, slots: [Slot; N]) -> Result<[Address; N], Error> {
        let mut addresses = [Address::NONE; N];
        for (i, (address, slot)) in addresses.iter_mut().zip(slots).enumerate() {
            *address = self.address(slot)?;
            let past = |slot: Slot| slot.at.saturating_add(slot.bytes());
            let meets = |other: &&Slot| other.at < past(slot) && slot.at < past(**other);
            let others = slots.get(..i).unwrap_or_default();
            if !slot.is_empty()
                && others.iter().filter(|other| !other.is_empty()).any(|o| meets(&o))
            {
                return Err(ArenaError::Overlap.into());
            }
        }
        Ok(addresses)
    }

    /// Where a slot lies, which counts as used from here on; an empty one lies nowhere.
    ///
    /// # Errors
    /// A slot past the end, or one that does not begin at a multiple of its element's size.
    pub fn address(&self, slot: Slot) -> Result<Address, Error> {
        if slot.is_empty() {
            return Ok(Address::NONE);
        }
        let needed = slot.at.saturating_add(slot.bytes());
        if needed > self.bytes {
            return Err(ArenaError::OutOfMemory { needed, given: self.bytes }.into());
        }
        if !slot.at.is_multiple_of(slot.dtype.size().min(4)) {
            return Err(ArenaError::Misaligned { at: slot.at }.into());
        }
        let mut used = self.used.borrow_mut();
        let waits = self.gpu.waits();
        if used.waits != waits {
            used.waits = waits;
            used.ranges.clear();
        }
        let range = (slot.at, needed);
        // Calls come back to the same slots until somebody waits.
        if !used.ranges.contains(&range) {
            used.ranges.push(range);
        }
        Ok(self.buffer.as_ref().map_or(Address::NONE, |b| b.address().past(slot.at)))
    }

    /// Where a slot lies that is to hold `host` elements of a type.
    ///
    /// # Errors
    /// As [`address`](Self::address), and a slot of another type or length.
    pub fn of(&self, slot: Slot, asked: Dtype, host: usize) -> Result<Address, Error> {
        if slot.dtype != asked {
            return Err(ArenaError::Dtype { slot: slot.dtype, asked }.into());
        }
        let address = self.address(slot)?;
        same_length(slot, host)?;
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Opened;

    #[test]
    fn a_slot_is_idle_until_it_is_used_and_when_the_host_has_waited() {
        sepal_stand_in::load();
        let opened = Arc::new(Opened::new(0).expect("a driver, real or not"));
        let gpu = Arc::new(Gpu::new(opened).expect("a stream"));
        let memory = Memory::new(&gpu, 64).expect("memory");
        let [first, second] = [0, 32].map(|at| Slot::vector(at, 8, Dtype::F32));
        let within = Slot::vector(28, 1, Dtype::F32);
        assert!(memory.is_idle(first) && memory.is_idle(second));
        for _ in 0..2 {
            memory.address(first).expect("it fits");
            assert!(!memory.is_idle(first) && !memory.is_idle(within) && memory.is_idle(second));
        }
        assert_eq!(memory.used.borrow().ranges.len(), 1);
        gpu.wait().expect("nothing is queued");
        assert!(memory.is_idle(first));
        memory.lease([second, Slot::EMPTY]).expect("it fits");
        assert!(memory.is_idle(first) && !memory.is_idle(second));
    }
}
