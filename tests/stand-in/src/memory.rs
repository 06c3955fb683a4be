//! Device memory: allocations apart from each other, each byte known to be written or not, each
//! word's last accesses remembered while a kernel runs.

use crate::fault::Fault;

/// Where the first allocation lies.
const FIRST: u64 = 0x10_0000_0000;
/// Unmapped bytes between allocations, so that running past one is seen.
const GAP: u64 = 4096;

/// Who touched a word last, in which launch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Touch {
    launch: u32,
    block: u32,
    thread: u32,
    /// Barriers that the block had passed.
    epoch: u32,
    atomic: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    write: Touch,
    read: Touch,
    /// Whether other threads have read it in the same launch too.
    readers: bool,
}

#[derive(Debug)]
struct Allocation {
    at: u64,
    bytes: Vec<u8>,
    written: Vec<bool>,
    words: Vec<Word>,
}

/// All allocations, in the order of their addresses.
#[derive(Debug, Default)]
pub struct Memory {
    list: Vec<Allocation>,
    next: u64,
    last: usize,
    launch: u32,
}

/// Who accesses memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub block: u32,
    pub thread: u32,
    pub epoch: u32,
    pub atomic: bool,
}

impl Memory {
    /// Takes `bytes` of memory, not written yet; its address.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let at = self.next.max(FIRST);
        self.next = (at + bytes as u64 + GAP).next_multiple_of(512);
        let words = vec![Word::default(); bytes.div_ceil(4)];
        self.list.push(Allocation {
            at,
            bytes: vec![0xcd; bytes],
            written: vec![false; bytes],
            words,
        });
        at
    }

    /// Gives memory back. False where nothing was allocated at the address.
    pub fn free(&mut self, at: u64) -> bool {
        let found = self.list.binary_search_by_key(&at, |a| a.at);
        self.last = 0;
        found.map(|i| self.list.remove(i)).is_ok()
    }

    /// Bytes that are allocated.
    pub fn used(&self) -> usize {
        self.list.iter().map(|a| a.bytes.len()).sum()
    }

    fn find(&mut self, at: u64, bytes: u64) -> Option<(usize, usize)> {
        let holds = |a: &Allocation| a.at <= at && at + bytes <= a.at + a.bytes.len() as u64;
        if !self.list.get(self.last).is_some_and(holds) {
            let after = self.list.partition_point(|a| a.at <= at);
            self.last = after.checked_sub(1)?;
        }
        let allocation = self.list.get(self.last).filter(|a| holds(a))?;
        Some((self.last, (at - allocation.at) as usize))
    }

    /// Copies bytes in, as the host does.
    ///
    /// # Errors
    /// Memory that is not allocated.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Result<(), Fault> {
        let outside = Fault::OutOfBounds { space: "global", at, bytes: from.len() as u32 };
        let (i, first) = self.find(at, from.len() as u64).ok_or(outside)?;
        let a = &mut self.list[i];
        a.bytes[first..first + from.len()].copy_from_slice(from);
        a.written[first..first + from.len()].fill(true);
        Ok(())
    }

    /// Copies bytes out, as the host does.
    ///
    /// # Errors
    /// Memory that is not allocated, or was never written.
    pub fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        let outside = Fault::OutOfBounds { space: "global", at, bytes: into.len() as u32 };
        let (i, first) = self.find(at, into.len() as u64).ok_or(outside)?;
        let a = &self.list[i];
        if let Some(unwritten) = a.written[first..first + into.len()].iter().position(|w| !w) {
            return Err(Fault::Uninitialised { space: "global", at: at + unwritten as u64 });
        }
        into.copy_from_slice(&a.bytes[first..first + into.len()]);
        Ok(())
    }

    /// Copies within the device; what was not written stays so.
    ///
    /// # Errors
    /// Memory that is not allocated.
    pub fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), Fault> {
        let outside = |at| Fault::OutOfBounds { space: "global", at, bytes: bytes as u32 };
        let (i, first) = self.find(from, bytes as u64).ok_or(outside(from))?;
        let data = self.list[i].bytes[first..first + bytes].to_vec();
        let written = self.list[i].written[first..first + bytes].to_vec();
        let (i, first) = self.find(to, bytes as u64).ok_or(outside(to))?;
        self.list[i].bytes[first..first + bytes].copy_from_slice(&data);
        self.list[i].written[first..first + bytes].copy_from_slice(&written);
        Ok(())
    }

    /// A new launch: what earlier ones touched races with nothing.
    pub(crate) fn begin(&mut self) {
        self.launch += 1;
    }

    pub(crate) fn load(&mut self, at: u64, bytes: u32, who: Who) -> Result<u64, Fault> {
        let (i, first) = self.access(at, bytes)?;
        let launch = self.launch;
        let a = &mut self.list[i];
        let last = first + bytes as usize;
        if let Some(unwritten) = a.written[first..last].iter().position(|w| !w) {
            return Err(Fault::Uninitialised { space: "global", at: at + unwritten as u64 });
        }
        for word in &mut a.words[first / 4..last.div_ceil(4)] {
            word.read(launch, who).map_err(|other| Fault::GlobalRace {
                at,
                other,
                thread: (who.block, who.thread),
            })?;
        }
        let mut value = [0; 8];
        value[..bytes as usize].copy_from_slice(&a.bytes[first..last]);
        Ok(u64::from_le_bytes(value))
    }

    pub(crate) fn store(&mut self, at: u64, bytes: u32, value: u64, who: Who) -> Result<(), Fault> {
        let (i, first) = self.access(at, bytes)?;
        let launch = self.launch;
        let a = &mut self.list[i];
        let last = first + bytes as usize;
        // Threads that write parts of one word do not race.
        if bytes >= 4 {
            for word in &mut a.words[first / 4..last.div_ceil(4)] {
                word.write(launch, who).map_err(|other| Fault::GlobalRace {
                    at,
                    other,
                    thread: (who.block, who.thread),
                })?;
            }
        }
        a.bytes[first..last].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
        a.written[first..last].fill(true);
        Ok(())
    }

    fn access(&mut self, at: u64, bytes: u32) -> Result<(usize, usize), Fault> {
        if !at.is_multiple_of(u64::from(bytes)) {
            return Err(Fault::Misaligned { at, bytes });
        }
        self.find(at, u64::from(bytes)).ok_or(Fault::OutOfBounds { space: "global", at, bytes })
    }
}

impl Touch {
    /// Whether an access of `who` meets this one without a barrier between them.
    fn meets(&self, launch: u32, who: Who) -> bool {
        self.launch == launch
            && (self.block, self.thread) != (who.block, who.thread)
            && !(self.atomic && who.atomic)
            && (self.block != who.block || self.epoch == who.epoch)
    }

    const fn of(launch: u32, who: Who) -> Self {
        let Who { block, thread, epoch, atomic } = who;
        Self { launch, block, thread, epoch, atomic }
    }
}

impl Word {
    fn read(&mut self, launch: u32, who: Who) -> Result<(), (u32, u32)> {
        if self.write.meets(launch, who) {
            return Err((self.write.block, self.write.thread));
        }
        let other = self.read.launch == launch
            && (self.read.block, self.read.thread) != (who.block, who.thread)
            && (self.read.block != who.block || self.read.epoch == who.epoch);
        self.readers =
            other || (self.readers && self.read.launch == launch && self.read.epoch == who.epoch);
        self.read = Touch::of(launch, who);
        Ok(())
    }

    fn write(&mut self, launch: u32, who: Who) -> Result<(), (u32, u32)> {
        if self.write.meets(launch, who) {
            return Err((self.write.block, self.write.thread));
        }
        let shared = self.readers
            && self.read.launch == launch
            && (self.read.block != who.block || self.read.epoch == who.epoch);
        if self.read.meets(launch, who) || (shared && !who.atomic) {
            return Err((self.read.block, self.read.thread));
        }
        self.write = Touch::of(launch, who);
        Ok(())
    }
}
