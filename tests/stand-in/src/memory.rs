//! Device memory: allocations apart from each other, each byte known to be written or not.

use crate::fault::{Fault, Region};
use crate::shadow::{Among, Clock, Shadow, Who};

/// Each allocation has its own piece of the address space, so that an address tells it.
const PIECE: u32 = 36;
/// Where it lies in its piece: allocations are multiples of 256, and of no more.
const FIRST: u64 = 256;

/// Which bytes were written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    bits: Vec<u64>,
}

impl Written {
    pub fn new(bytes: usize) -> Self {
        Self { bits: vec![0; bytes.div_ceil(64)] }
    }

    /// Words of 64 bytes, with the mask of those in the range.
    fn words(first: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
        let past = first + len;
        (first / 64..past.div_ceil(64)).map(move |word| {
            let from = first.saturating_sub(word * 64);
            let to = (past - word * 64).min(64);
            (word, (u64::MAX >> (64 - to)) & (u64::MAX << from))
        })
    }

    pub fn set(&mut self, first: usize, len: usize, written: bool) {
        for (word, mask) in Self::words(first, len) {
            if written {
                self.bits[word] |= mask;
            } else {
                self.bits[word] &= !mask;
            }
        }
    }

    /// The first byte in a range that was not written.
    pub fn missing(&self, first: usize, len: usize) -> Option<usize> {
        Self::words(first, len).find_map(|(word, mask)| {
            let missing = !self.bits[word] & mask;
            (missing != 0).then(|| word * 64 + missing.trailing_zeros() as usize)
        })
    }
}

#[derive(Debug)]
struct Allocation {
    bytes: Vec<u8>,
    written: Written,
    shadow: Shadow,
}

#[derive(Debug)]
enum Piece {
    Live(Allocation),
    /// How long it was.
    Freed(usize),
}

/// All of a device's memory.
#[derive(Debug, Default)]
pub struct Memory {
    pieces: Vec<Piece>,
    used: usize,
    pub(crate) time: u32,
}

impl Memory {
    /// Takes `bytes` of memory, not written yet; its address.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        self.pieces.push(Piece::Live(Allocation {
            bytes: vec![0; bytes],
            written: Written::new(bytes),
            shadow: Shadow::new(bytes),
        }));
        self.used += bytes;
        ((self.pieces.len() as u64) << PIECE) + FIRST
    }

    /// Takes memory that holds these bytes; its address.
    pub fn allocate_written(&mut self, bytes: Vec<u8>) -> u64 {
        let len = bytes.len();
        let at = self.allocate(len);
        if let Some(Piece::Live(allocation)) = self.pieces.last_mut() {
            allocation.bytes = bytes;
            allocation.written.set(0, len, true);
        }
        at
    }

    /// Gives memory back. False where nothing is allocated at the address.
    pub fn free(&mut self, at: u64) -> bool {
        let Some((piece, 0)) = Self::split(at) else { return false };
        let Some(piece) = self.pieces.get_mut(piece) else { return false };
        let Piece::Live(allocation) = piece else { return false };
        let len = allocation.bytes.len();
        *piece = Piece::Freed(len);
        self.used -= len;
        true
    }

    /// Bytes that are allocated.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    const fn split(at: u64) -> Option<(usize, usize)> {
        let piece = (at >> PIECE) as usize;
        let offset = (at & ((1 << PIECE) - 1)).wrapping_sub(FIRST);
        if piece == 0 { None } else { Some((piece - 1, offset as usize)) }
    }

    /// The allocation that holds these bytes, and where in it they lie.
    #[inline]
    fn find(&mut self, at: u64, len: usize) -> Result<(&mut Allocation, usize), Fault> {
        let held = Self::split(at).filter(|&(piece, first)| match self.pieces.get(piece) {
            Some(Piece::Live(a)) => first.saturating_add(len) <= a.bytes.len(),
            _ => false,
        });
        let outside = || self.outside(at, len);
        let (piece, first) = held.ok_or_else(outside)?;
        match &mut self.pieces[piece] {
            Piece::Live(allocation) => Ok((allocation, first)),
            Piece::Freed(_) => unreachable!("the piece is live"),
        }
    }

    fn outside(&self, at: u64, len: usize) -> Fault {
        Fault::OutOfBounds { space: "global", at, bytes: len as u32, region: self.region(at) }
    }

    /// The allocation in whose piece an address lies.
    fn region(&self, at: u64) -> Option<Region> {
        let (piece, _) = Self::split(at)?;
        let (bytes, freed) = match self.pieces.get(piece)? {
            Piece::Live(allocation) => (allocation.bytes.len(), false),
            Piece::Freed(bytes) => (*bytes, true),
        };
        Some(Region { at: ((piece as u64 + 1) << PIECE) + FIRST, bytes, freed })
    }

    /// Copies bytes in, as the host does.
    ///
    /// # Errors
    /// Memory that is not allocated.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Result<(), Fault> {
        let (a, first) = self.find(at, from.len())?;
        a.bytes[first..first + from.len()].copy_from_slice(from);
        a.written.set(first, from.len(), true);
        Ok(())
    }

    /// Fills memory with repetitions of a pattern.
    ///
    /// # Errors
    /// Memory that is not allocated.
    pub fn fill(&mut self, at: u64, pattern: &[u8], times: usize) -> Result<(), Fault> {
        let len = pattern.len() * times;
        let (a, first) = self.find(at, len)?;
        let place = &mut a.bytes[first..first + len];
        place.chunks_exact_mut(pattern.len()).for_each(|one| one.copy_from_slice(pattern));
        a.written.set(first, len, true);
        Ok(())
    }

    /// Copies bytes out, as the host does.
    ///
    /// # Errors
    /// Memory that is not allocated, or was never written.
    pub fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        let (a, first) = self.find(at, into.len())?;
        if let Some(missing) = a.written.missing(first, into.len()) {
            return Err(self.unwritten(at + (missing - first) as u64));
        }
        into.copy_from_slice(&a.bytes[first..first + into.len()]);
        Ok(())
    }

    /// Counts memory as not written, as it is while a copy to it is under way.
    ///
    /// # Errors
    /// Memory that is not allocated.
    pub fn forget(&mut self, at: u64, len: usize) -> Result<(), Fault> {
        let (a, first) = self.find(at, len)?;
        a.written.set(first, len, false);
        Ok(())
    }

    /// Copies within the device; what was not written stays so.
    ///
    /// # Errors
    /// Memory that is not allocated.
    pub fn copy(&mut self, from: u64, to: u64, len: usize) -> Result<(), Fault> {
        let (a, first) = self.find(from, len)?;
        let data = a.bytes[first..first + len].to_vec();
        let mut missing = Vec::new();
        let mut next = first;
        while let Some(byte) = a.written.missing(next, first + len - next) {
            missing.push(byte - first);
            next = byte + 1;
        }
        let (a, first) = self.find(to, len)?;
        a.bytes[first..first + len].copy_from_slice(&data);
        a.written.set(first, len, true);
        missing.iter().for_each(|byte| a.written.set(first + byte, 1, false));
        Ok(())
    }

    fn unwritten(&self, at: u64) -> Fault {
        Fault::Uninitialised { space: "global", at, region: self.region(at) }
    }

    /// What a thread reads.
    #[inline]
    pub(crate) fn load(
        &mut self,
        at: u64,
        len: usize,
        who: Who,
        cached: bool,
        clock: &Clock,
    ) -> Result<u128, Fault> {
        let (a, first) = self.find(at, len)?;
        if let Some(missing) = a.written.missing(first, len) {
            return Err(self.unwritten(at + (missing - first) as u64));
        }
        if cached && a.shadow.is_written(first, len, clock) {
            return Err(Fault::Stale { at });
        }
        if let Err(stamp) = a.shadow.read(first, len, who, Among::Launch, clock) {
            let earlier = (clock.block_of(stamp), stamp.thread());
            return Err(Fault::GlobalRace { at, earlier });
        }
        Ok(bits(&a.bytes[first..first + len]))
    }

    /// What a thread writes.
    #[inline]
    pub(crate) fn store(
        &mut self,
        at: u64,
        len: usize,
        value: u128,
        who: Who,
        clock: &Clock,
    ) -> Result<(), Fault> {
        let (a, first) = self.find(at, len)?;
        if let Err(stamp) = a.shadow.write(first, len, who, Among::Launch, clock) {
            let earlier = (clock.block_of(stamp), stamp.thread());
            return Err(Fault::GlobalRace { at, earlier });
        }
        put(&mut a.bytes[first..first + len], value);
        a.written.set(first, len, true);
        Ok(())
    }
}

/// Bytes, the first the lowest.
pub(crate) fn bits(bytes: &[u8]) -> u128 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]).into(),
        _ => {
            let mut value = [0; 16];
            value[..bytes.len()].copy_from_slice(bytes);
            u128::from_le_bytes(value)
        }
    }
}

/// The lowest bytes of a value.
pub(crate) fn put(bytes: &mut [u8], value: u128) {
    match bytes.len() {
        4 => bytes.copy_from_slice(&(value as u32).to_le_bytes()),
        8 => bytes.copy_from_slice(&(value as u64).to_le_bytes()),
        len => bytes.copy_from_slice(&value.to_le_bytes()[..len]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_found_wherever_it_is() {
        let mut written = Written::new(200);
        written.set(3, 190, true);
        assert_eq!(written.missing(3, 190), None);
        assert_eq!(written.missing(0, 10), Some(0));
        assert_eq!(written.missing(60, 140), Some(193));
        written.set(127, 2, false);
        assert_eq!(written.missing(64, 64), Some(127));
        assert_eq!(written.missing(128, 8), Some(128));
        assert_eq!(written.missing(129, 8), None);
    }

    #[test]
    fn copies_keep_what_is_not_written() {
        let mut memory = Memory::default();
        let (from, to) = (memory.allocate(8), memory.allocate_written(vec![7; 8]));
        memory.write(from + 2, &[1, 2]).unwrap();
        memory.copy(from, to, 6).unwrap();
        let mut bytes = [0; 2];
        memory.read(to + 2, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2]);
        memory.read(to + 6, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 7]);
        let fault = memory.read(to + 4, &mut bytes).unwrap_err();
        assert!(matches!(fault, Fault::Uninitialised { at, .. } if at == to + 4), "{fault}");
    }
}
