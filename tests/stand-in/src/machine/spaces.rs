//! What the threads of a block can reach by address.

use crate::code::{Access, Space};
use crate::fault::Fault;
use crate::memory::{Memory, Written, bits, put};
use crate::ptx::{LOCAL, PARAM, SHARED, WINDOW};
use crate::shadow::{Among, Clock, Shadow, Who};

/// A thread's asynchronous copy: where it goes, and what.
type Pending = (usize, Vec<u8>);

/// Memory of all spaces.
pub(super) struct Spaces<'a> {
    pub memory: &'a mut Memory,
    pub clock: Clock,
    params: &'a [u8],
    shared: Vec<u8>,
    written: Written,
    shadow: Shadow,
    /// Threads' own memory, one behind the other.
    local: Vec<u8>,
    local_bytes: usize,
    /// For each thread its asynchronous copies by group, the open group last.
    copies: Vec<Vec<Vec<Pending>>>,
}

const fn aligned(at: u64, bytes: usize) -> Result<(), Fault> {
    if at.is_multiple_of(bytes as u64) {
        Ok(())
    } else {
        Err(Fault::Misaligned { at, bytes: bytes as u32 })
    }
}

/// The space of an address, and the address within it.
const fn resolve(space: Space, at: u64) -> (Space, u64) {
    match space {
        Space::Generic => match at & WINDOW {
            SHARED => (Space::Shared, at & !WINDOW),
            LOCAL => (Space::Local, at & !WINDOW),
            PARAM => (Space::Param, at & !WINDOW),
            _ => (Space::Global, at),
        },
        _ => (space, at),
    }
}

const fn outside(space: &'static str, at: u64, bytes: usize) -> Fault {
    Fault::OutOfBounds { space, at, bytes: bytes as u32, region: None }
}

fn within<'m>(
    bytes: &'m [u8],
    at: u64,
    len: usize,
    space: &'static str,
) -> Result<&'m [u8], Fault> {
    let first = at as usize;
    bytes.get(first..first.saturating_add(len)).ok_or(outside(space, at, len))
}

impl<'a> Spaces<'a> {
    pub fn new(
        memory: &'a mut Memory,
        clock: Clock,
        params: &'a [u8],
        shared: usize,
        local_bytes: usize,
        threads: usize,
    ) -> Self {
        Self {
            memory,
            clock,
            params,
            shared: vec![0; shared],
            written: Written::new(shared),
            shadow: Shadow::new(shared),
            local: vec![0; local_bytes * threads],
            local_bytes,
            copies: vec![vec![Vec::new()]; threads],
        }
    }

    pub fn begin_block(&mut self, number: u32) {
        self.clock.begin_block(number, self.copies.len());
        self.written.set(0, self.shared.len(), false);
        self.local.fill(0);
        self.copies.fill(vec![Vec::new()]);
    }

    const fn who(thread: usize, atomic: bool) -> Who {
        Who { thread: thread as u32, atomic }
    }

    fn local(&mut self, thread: usize) -> &mut [u8] {
        &mut self.local[thread * self.local_bytes..][..self.local_bytes]
    }

    #[inline]
    pub fn load(&mut self, thread: usize, access: Access, at: u64) -> Result<u128, Fault> {
        let len = access.bytes();
        aligned(at, len)?;
        let (space, at) = resolve(access.space, at);
        match space {
            Space::Shared => self.load_shared(thread, at, len, access.strong),
            Space::Param => Ok(bits(within(self.params, at, len, "parameter")?)),
            Space::Local => Ok(bits(within(self.local(thread), at, len, "local")?)),
            _ => {
                let who = Self::who(thread, access.strong);
                self.memory.load(at, len, who, access.cached, &self.clock)
            }
        }
    }

    #[inline]
    pub fn store(
        &mut self,
        thread: usize,
        access: Access,
        at: u64,
        value: u128,
    ) -> Result<(), Fault> {
        let len = access.bytes();
        aligned(at, len)?;
        let (space, at) = resolve(access.space, at);
        match space {
            Space::Shared => {
                self.note_shared_write(thread, at, len, access.strong)?;
                put(&mut self.shared[at as usize..at as usize + len], value);
                self.written.set(at as usize, len, true);
                Ok(())
            }
            Space::Param => Err(outside("parameter", at, len)),
            Space::Local => {
                within(self.local(thread), at, len, "local")?;
                put(&mut self.local(thread)[at as usize..at as usize + len], value);
                Ok(())
            }
            _ => {
                let who = Self::who(thread, access.strong);
                self.memory.store(at, len, value, who, &self.clock)
            }
        }
    }

    pub fn load_shared(
        &mut self,
        thread: usize,
        at: u64,
        len: usize,
        atomic: bool,
    ) -> Result<u128, Fault> {
        within(&self.shared, at, len, "shared")?;
        let first = at as usize;
        let who = Self::who(thread, atomic);
        let raced = self.shadow.read(first, len, who, Among::Block, &self.clock);
        raced.map_err(|stamp| Fault::SharedRace { at, earlier: stamp.thread() })?;
        if let Some(missing) = self.written.missing(first, len) {
            let at = missing as u64;
            return Err(Fault::Uninitialised { space: "shared", at, region: None });
        }
        Ok(bits(&self.shared[first..first + len]))
    }

    fn note_shared_write(
        &mut self,
        thread: usize,
        at: u64,
        len: usize,
        atomic: bool,
    ) -> Result<(), Fault> {
        within(&self.shared, at, len, "shared")?;
        let who = Self::who(thread, atomic);
        let raced = self.shadow.write(at as usize, len, who, Among::Block, &self.clock);
        raced.map_err(|stamp| Fault::SharedRace { at, earlier: stamp.thread() })
    }

    /// Begins a copy from global to shared memory. What is there is not defined until the copy is
    /// waited for.
    pub fn copy(
        &mut self,
        thread: usize,
        to: u64,
        from: u64,
        bytes: usize,
        read: usize,
    ) -> Result<(), Fault> {
        aligned(to, bytes)?;
        aligned(from, bytes)?;
        let (_, to) = resolve(Space::Generic, to);
        let mut data = vec![0; bytes];
        let who = Self::who(thread, false);
        // Any number of bytes may be read, words as far as they go.
        let mut done = 0;
        while done < read {
            let len = if read - done >= 4 { 4 } else { 1 };
            let value = self.memory.load(from + done as u64, len, who, false, &self.clock)?;
            put(&mut data[done..done + len], value);
            done += len;
        }
        self.note_shared_write(thread, to, bytes, false)?;
        self.written.set(to as usize, bytes, false);
        if let Some(open) = self.copies[thread].last_mut() {
            open.push((to as usize, data));
        }
        Ok(())
    }

    /// Closes a group of copies.
    pub fn commit(&mut self, thread: usize) {
        self.copies[thread].push(Vec::new());
    }

    /// Waits until at most `left` closed groups are under way.
    pub fn wait(&mut self, thread: usize, left: usize) -> Result<(), Fault> {
        let closed = self.copies[thread].len() - 1;
        let done: Vec<_> = self.copies[thread].drain(..closed.saturating_sub(left)).collect();
        for (first, data) in done.into_iter().flatten() {
            // Others see what was copied only after a barrier behind this wait.
            self.note_shared_write(thread, first as u64, data.len(), false)?;
            self.shared[first..first + data.len()].copy_from_slice(&data);
            self.written.set(first, data.len(), true);
        }
        Ok(())
    }
}
