//! A multiprocessor that runs one block at a time, checking every access.

use crate::arithmetic::{self, low};
use crate::code::{
    Address, Instruction, Kernel, Mma, NOWHERE, Op, Shuffle, Space, Special, Ty, Value, Vote,
};
use crate::fault::Fault;
use crate::memory::{Memory, Who};

/// Where shared memory lies among generic addresses.
const SHARED: u64 = 0x7100 << 48;
/// Where a thread's own memory lies among generic addresses.
const LOCAL: u64 = 0x7200 << 48;
const WINDOW: u64 = 0xffff << 48;

/// A launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory, in bytes.
    pub shared: u32,
    /// The parameters, as they lie.
    pub params: &'a [u8],
    /// In which order threads and blocks take turns.
    pub seed: u64,
}

/// How many instructions of each class ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub instructions: u64,
    /// Multiply-adds in f32.
    pub fma: u64,
    /// Matrix multiply-adds, counted once a warp.
    pub mma: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// At an instruction that its warp runs together.
    Collective,
    Barrier,
    Done,
}

struct Thread {
    pc: usize,
    state: State,
    at: [u32; 3],
    local: Vec<u8>,
    /// Asynchronous copies, by group; the last group is open.
    copies: Vec<Vec<(usize, Vec<u8>)>>,
}

#[derive(Clone, Copy, Default)]
struct Touch {
    /// One more than the thread; 0 for none.
    thread: u32,
    epoch: u32,
    warp_epoch: u32,
    atomic: bool,
}

#[derive(Clone, Copy, Default)]
struct SharedWord {
    write: Touch,
    read: Touch,
    /// Another thread that has read it since the last barrier.
    other: Touch,
}

struct Block<'a> {
    kernel: &'a Kernel,
    launch: Launch<'a>,
    memory: &'a mut Memory,
    index: u32,
    at: [u32; 3],
    registers: Vec<u64>,
    threads: Vec<Thread>,
    shared: Vec<u8>,
    written: Vec<bool>,
    words: Vec<SharedWord>,
    epoch: u32,
    warp_epochs: Vec<u32>,
    counts: Counts,
}

/// A small generator for orders.
struct Order(u64);

impl Order {
    fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            list.swap(last, (self.0 >> 33) as usize % (last + 1));
        }
    }
}

/// Runs a kernel to its end, or to its first fault.
///
/// # Errors
/// The fault, and where it happened.
pub fn run(kernel: &Kernel, launch: Launch<'_>, memory: &mut Memory) -> Result<Counts, Fault> {
    let threads = launch.block.iter().product::<u32>();
    if launch.params.len() < kernel.param_bytes as usize {
        return Err(Fault::Launch("parameters are missing".into()));
    }
    if threads == 0 || threads > kernel.threads.unwrap_or(1024).min(1024) {
        let most = kernel.threads.unwrap_or(1024);
        return Err(Fault::Launch(format!(
            "{} has {threads} threads, at most {most}",
            kernel.name
        )));
    }
    memory.begin();
    let [x, y, z] = launch.grid;
    let mut blocks: Vec<[u32; 3]> =
        (0..z).flat_map(|z| (0..y).flat_map(move |y| (0..x).map(move |x| [x, y, z]))).collect();
    let mut order = Order(launch.seed);
    order.shuffle(&mut blocks);
    let mut counts = Counts::default();
    for at in blocks {
        let index = (at[2] * y + at[1]) * x + at[0];
        let mut block = Block::new(kernel, launch, memory, index, at);
        block.run(&mut order)?;
        counts.instructions += block.counts.instructions;
        counts.fma += block.counts.fma;
        counts.mma += block.counts.mma;
    }
    Ok(counts)
}

impl<'a> Block<'a> {
    fn new(
        kernel: &'a Kernel,
        launch: Launch<'a>,
        memory: &'a mut Memory,
        index: u32,
        at: [u32; 3],
    ) -> Self {
        let [w, h, d] = launch.block;
        let n = (w * h * d) as usize;
        let thread = |i: u32| Thread {
            pc: 0,
            state: State::Ready,
            at: [i % w, i / w % h, i / w / h],
            local: vec![0; kernel.local as usize],
            copies: vec![Vec::new()],
        };
        let bytes = (kernel.shared + launch.shared) as usize;
        Self {
            kernel,
            launch,
            memory,
            index,
            at,
            registers: vec![0; n * kernel.registers as usize],
            threads: (0..n as u32).map(thread).collect(),
            shared: vec![0xcd; bytes],
            written: vec![false; bytes],
            words: vec![SharedWord::default(); bytes.div_ceil(4)],
            epoch: 1,
            warp_epochs: vec![1; n.div_ceil(32)],
            counts: Counts::default(),
        }
    }

    fn run(&mut self, order: &mut Order) -> Result<(), Fault> {
        let mut warps: Vec<usize> = (0..self.threads.len().div_ceil(32)).collect();
        loop {
            let mut moved = false;
            order.shuffle(&mut warps);
            for &warp in &warps {
                let (first, past) = (warp * 32, (warp * 32 + 32).min(self.threads.len()));
                let mut lanes: Vec<usize> = (first..past).collect();
                loop {
                    order.shuffle(&mut lanes);
                    let mut ran = false;
                    for &t in &lanes {
                        if self.threads[t].state == State::Ready {
                            self.thread(t)?;
                            ran = true;
                        }
                    }
                    let met = self.collectives(first, past)?;
                    moved |= ran || met;
                    if !met {
                        break;
                    }
                }
            }
            if self.threads.iter().all(|t| t.state == State::Done) {
                return Ok(());
            }
            moved |= self.barrier()?;
            if !moved {
                let stuck = self.threads.iter().position(|t| t.state != State::Done).unwrap_or(0);
                return Err(self.placed(stuck, Fault::Deadlock));
            }
        }
    }

    fn placed(&self, t: usize, fault: Fault) -> Fault {
        let statement = self.kernel.texts.get(self.threads[t].pc).cloned().unwrap_or_default();
        Fault::At {
            kernel: self.kernel.name.clone(),
            statement,
            block: self.at,
            thread: t as u32,
            fault: Box::new(fault),
        }
    }

    /// Lets all threads pass that wait at one barrier, once nobody is on the way to it.
    fn barrier(&mut self) -> Result<bool, Fault> {
        let waiting = |t: &&Thread| t.state == State::Barrier;
        let Some(first) = self.threads.iter().position(|t| t.state == State::Barrier) else {
            return Ok(false);
        };
        let pc = self.threads[first].pc;
        if self.threads.iter().any(|t| !matches!(t.state, State::Barrier | State::Done)) {
            return Ok(false);
        }
        if self.threads.iter().filter(waiting).any(|t| t.pc != pc) {
            let what = "threads of a block wait at different barriers".into();
            return Err(self.placed(first, Fault::Divergence(what)));
        }
        if let Op::Barrier { count: Some(count), .. } = self.kernel.code[pc].op {
            let count = self.value(first, count) as usize;
            let there = self.threads.iter().filter(waiting).count();
            if count != there {
                let what = format!("a barrier of {count} threads, {there} came");
                return Err(self.placed(first, Fault::Divergence(what)));
            }
        }
        self.epoch += 1;
        for thread in self.threads.iter_mut().filter(|t| t.state == State::Barrier) {
            thread.pc += 1;
            thread.state = State::Ready;
        }
        Ok(true)
    }

    fn value(&self, t: usize, value: Value) -> u64 {
        let n = self.kernel.registers as usize;
        match value {
            Value::Register(r) => self.registers[t * n + r as usize],
            Value::Not(r) => self.registers[t * n + r as usize] ^ 1,
            Value::Immediate(v) => v,
            Value::Special(special) => {
                let lane = t as u64 % 32;
                match special {
                    Special::Thread(axis) => u64::from(self.threads[t].at[usize::from(axis)]),
                    Special::Threads(axis) => u64::from(self.launch.block[usize::from(axis)]),
                    Special::Block(axis) => u64::from(self.at[usize::from(axis)]),
                    Special::Blocks(axis) => u64::from(self.launch.grid[usize::from(axis)]),
                    Special::Lane => lane,
                    Special::Warp => t as u64 / 32,
                    Special::LanesBelow => (1 << lane) - 1,
                    Special::Clock => self.counts.instructions,
                }
            }
        }
    }

    /// An operand of an integer instruction, cut to its type.
    fn typed(&self, t: usize, value: Value, ty: Ty) -> u64 {
        let v = self.value(t, value);
        if matches!(value, Value::Immediate(_)) { low(v, ty.bits.max(1)) } else { v }
    }

    fn set(&mut self, t: usize, register: u32, value: u64) {
        if register != NOWHERE {
            let n = self.kernel.registers as usize;
            self.registers[t * n + register as usize] = value;
        }
    }

    const fn who(&self, t: usize, atomic: bool) -> Who {
        Who { block: self.index, thread: t as u32, epoch: self.epoch, atomic }
    }

    /// Runs a thread until it waits for others or ends.
    fn thread(&mut self, t: usize) -> Result<(), Fault> {
        let kernel = self.kernel;
        while let Some(instruction) = kernel.code.get(self.threads[t].pc) {
            self.counts.instructions += 1;
            let skipped = match instruction.guard {
                Some((p, wanted)) => (self.value(t, Value::Register(p)) & 1 == 1) != wanted,
                None => false,
            };
            if skipped {
                self.threads[t].pc += 1;
                continue;
            }
            match self.step(t, instruction) {
                Ok(true) => self.threads[t].pc += 1,
                Ok(false) if self.threads[t].state != State::Ready => return Ok(()),
                Ok(false) => {}
                Err(fault) => return Err(self.placed(t, fault)),
            }
        }
        self.threads[t].state = State::Done;
        Ok(())
    }

    /// One instruction; false where the next one is not the one behind it.
    fn step(&mut self, t: usize, instruction: &Instruction) -> Result<bool, Fault> {
        match &instruction.op {
            &Op::Binary { op, ty, ftz, to, a, b } => {
                let v = arithmetic::binary(op, ty, ftz, self.typed(t, a, ty), self.typed(t, b, ty));
                self.set(t, to, v);
            }
            &Op::Unary { op, ty, ftz, to, a } => {
                let v = arithmetic::unary(op, ty, ftz, self.typed(t, a, ty));
                self.set(t, to, v);
            }
            &Op::Ternary { op, ty, ftz, to, a, b, c } => {
                self.counts.fma += u64::from(op == crate::code::Ternary::Fma);
                let (a, b) = (self.typed(t, a, ty), self.typed(t, b, ty));
                let v = arithmetic::ternary(op, ty, ftz, a, b, self.value(t, c));
                self.set(t, to, v);
            }
            &Op::Bfi { ty, to, from, into, at, len } => {
                let (from, into) = (self.typed(t, from, ty), self.typed(t, into, ty));
                let (at, len) = (self.value(t, at) & 0xff, self.value(t, len) & 0xff);
                let len = len.min(u64::from(ty.bits).saturating_sub(at)) as u32;
                let mask = if len == 0 { 0 } else { low(u64::MAX, len) << at };
                self.set(t, to, (into & !mask) | if len == 0 { 0 } else { (from << at) & mask });
            }
            &Op::Lop3 { to, a, b, c, table } => {
                let (a, b, c) = (self.value(t, a), self.value(t, b), self.value(t, c));
                let v = (0..8).filter(|i| table >> i & 1 == 1).fold(0, |v, i| {
                    let pick = |x: u64, bit: u8| if i >> bit & 1 == 1 { x } else { !x };
                    v | (pick(a, 2) & pick(b, 1) & pick(c, 0))
                });
                self.set(t, to, low(v, 32));
            }
            &Op::Select { to, a, b, p } => {
                let v = if self.value(t, p) & 1 == 1 { self.value(t, a) } else { self.value(t, b) };
                self.set(t, to, v);
            }
            &Op::Compare { compare, ty, to, inverse, a, b, with } => {
                let v =
                    arithmetic::compare(compare, ty, self.typed(t, a, ty), self.typed(t, b, ty));
                let (mut v, mut not) = (u64::from(v), u64::from(!v));
                if let Some((op, p)) = with {
                    let predicate = Ty { kind: crate::code::Kind::Bits, bits: 1, tf32: false };
                    let p = self.value(t, p);
                    v = arithmetic::binary(op, predicate, false, v, p);
                    not = arithmetic::binary(op, predicate, false, not, p);
                }
                self.set(t, to, v);
                self.set(t, inverse, not);
            }
            &Op::Test { finite, infinite, nan, to, a } => {
                let v = f32::from_bits(self.value(t, a) as u32);
                let v = (finite && v.is_finite())
                    || (infinite && v.is_infinite())
                    || (nan && v.is_nan());
                self.set(t, to, u64::from(v));
            }
            Op::Pack { bits, to, from } => {
                let parts = from.iter().enumerate();
                let v = parts.fold(0, |v, (i, &one)| {
                    v | (low(self.value(t, one), *bits) << (i as u32 * bits))
                });
                self.set(t, *to, v);
            }
            Op::Unpack { bits, to, a } => {
                let v = self.value(t, *a);
                for (i, &to) in to.iter().enumerate() {
                    self.set(t, to, low(v >> (i as u32 * bits), *bits));
                }
            }
            &Op::Cvta { space, to_space, to, a } => {
                let base = match space {
                    Space::Shared => SHARED,
                    Space::Local => LOCAL,
                    _ => 0,
                };
                let a = self.value(t, a);
                self.set(t, to, if to_space { a.wrapping_sub(base) } else { a.wrapping_add(base) });
            }
            &Op::Convert { into, from, round, integral, saturate, to, a } => {
                let v =
                    arithmetic::convert(into, from, round, integral, saturate, self.value(t, a));
                self.set(t, to, v);
            }
            Op::Load { ty, space, to, from } => {
                let at = self.address(t, *from);
                self.aligned(at, ty.bytes() * to.len() as u32)?;
                for (i, &to) in to.iter().enumerate() {
                    let at = at.wrapping_add(i as u64 * u64::from(ty.bytes()));
                    let v = self.load(t, *space, at, ty.bytes(), false)?;
                    let v = if ty.kind == crate::code::Kind::Signed {
                        low(arithmetic::signed(v, ty.bits) as u64, 64)
                    } else {
                        v
                    };
                    // Registers are at least as wide as what they hold: signs reach to their end.
                    let v = if ty.bits < 32 { low(v, 32) } else { low(v, ty.bits) };
                    self.set(t, to, v);
                }
            }
            Op::Store { ty, space, to, from } => {
                let at = self.address(t, *to);
                self.aligned(at, ty.bytes() * from.len() as u32)?;
                for (i, &from) in from.iter().enumerate() {
                    let at = at.wrapping_add(i as u64 * u64::from(ty.bytes()));
                    let v = low(self.value(t, from), ty.bits);
                    self.store(t, *space, at, ty.bytes(), v, false)?;
                }
            }
            &Op::Atomic { op, ty, space, to, at, a, b } => {
                let at = self.address(t, at);
                self.aligned(at, ty.bytes())?;
                let old = self.load(t, space, at, ty.bytes(), true)?;
                let new =
                    arithmetic::atomic(op, ty, old, self.typed(t, a, ty), self.typed(t, b, ty));
                self.store(t, space, at, ty.bytes(), new, true)?;
                self.set(t, to, old);
            }
            &Op::Copy { to, from, bytes, read } => {
                let (to, from) = (self.address(t, to), self.address(t, from));
                let read = read.map_or(bytes, |read| (self.value(t, read) as u32).min(bytes));
                self.aligned(to, bytes)?;
                self.aligned(from, bytes)?;
                let mut data = vec![0; bytes as usize];
                for (i, byte) in data.iter_mut().take(read as usize).enumerate() {
                    *byte = self.memory.load(from + i as u64, 1, self.who(t, false))? as u8;
                }
                let first = to as usize;
                self.shared_touch(t, first, bytes as usize, true, false)?;
                // Nobody may read the place before the copy is waited for.
                self.written[first..first + bytes as usize].fill(false);
                if let Some(open) = self.threads[t].copies.last_mut() {
                    open.push((first, data));
                }
            }
            Op::CopyCommit => self.threads[t].copies.push(Vec::new()),
            &Op::CopyWait(pending) => {
                let closed = self.threads[t].copies.len() - 1;
                let done = closed.saturating_sub(pending as usize);
                let mut groups: Vec<_> = self.threads[t].copies.drain(..done).collect();
                if pending == 0 {
                    groups.extend(self.threads[t].copies.last_mut().map(std::mem::take));
                }
                for (first, data) in groups.into_iter().flatten() {
                    self.shared[first..first + data.len()].copy_from_slice(&data);
                    self.written[first..first + data.len()].fill(true);
                }
            }
            &Op::Branch(target) => {
                self.threads[t].pc = target as usize;
                return Ok(false);
            }
            Op::Exit => {
                self.threads[t].state = State::Done;
                return Ok(false);
            }
            Op::Trap => return Err(Fault::Trap),
            Op::Nothing => {}
            &Op::Barrier { id, .. } => {
                if id != 0 {
                    return Err(Fault::Divergence(format!(
                        "barrier {id}: only barrier 0 is known"
                    )));
                }
                self.threads[t].state = State::Barrier;
                return Ok(false);
            }
            &Op::ActiveMask { to } => {
                // Threads take turns, so each is alone as far as it can tell.
                self.set(t, to, 1 << (t % 32));
            }
            Op::WarpBarrier { .. }
            | Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Redux { .. }
            | Op::Mma { .. }
            | Op::LoadMatrix { .. } => {
                self.threads[t].state = State::Collective;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn address(&self, t: usize, address: Address) -> u64 {
        self.value(t, address.base).wrapping_add(address.offset as u64)
    }

    const fn aligned(&self, at: u64, bytes: u32) -> Result<(), Fault> {
        if at.is_multiple_of(bytes as u64) { Ok(()) } else { Err(Fault::Misaligned { at, bytes }) }
    }

    /// The space of an address, and the address within it.
    const fn resolve(space: Space, at: u64) -> (Space, u64) {
        match (space, at & WINDOW) {
            (Space::Generic, SHARED) => (Space::Shared, at & !WINDOW),
            (Space::Generic, LOCAL) => (Space::Local, at & !WINDOW),
            (Space::Generic, _) => (Space::Global, at),
            _ => (space, at),
        }
    }

    fn load(
        &mut self,
        t: usize,
        space: Space,
        at: u64,
        bytes: u32,
        atomic: bool,
    ) -> Result<u64, Fault> {
        let (space, at) = Self::resolve(space, at);
        let (first, len) = (at as usize, bytes as usize);
        let small = |from: Option<&[u8]>, space| {
            let from = from.ok_or(Fault::OutOfBounds { space, at, bytes })?;
            let mut value = [0; 8];
            value[..len].copy_from_slice(from);
            Ok(u64::from_le_bytes(value))
        };
        match space {
            Space::Param => small(self.launch.params.get(first..first + len), "parameter"),
            Space::Local => small(self.threads[t].local.get(first..first + len), "local"),
            Space::Shared => {
                self.shared_touch(t, first, len, false, atomic)?;
                if let Some(unwritten) = self.written[first..first + len].iter().position(|w| !w) {
                    return Err(Fault::Uninitialised {
                        space: "shared",
                        at: at + unwritten as u64,
                    });
                }
                small(self.shared.get(first..first + len), "shared")
            }
            _ => {
                let who = self.who(t, atomic);
                self.memory.load(at, bytes, who)
            }
        }
    }

    fn store(
        &mut self,
        t: usize,
        space: Space,
        at: u64,
        bytes: u32,
        value: u64,
        atomic: bool,
    ) -> Result<(), Fault> {
        let (space, at) = Self::resolve(space, at);
        let (first, len) = (at as usize, bytes as usize);
        let data = value.to_le_bytes();
        match space {
            Space::Local => {
                let place = self.threads[t].local.get_mut(first..first + len);
                let place = place.ok_or(Fault::OutOfBounds { space: "local", at, bytes })?;
                place.copy_from_slice(&data[..len]);
            }
            Space::Shared => {
                self.shared_touch(t, first, len, true, atomic)?;
                self.shared[first..first + len].copy_from_slice(&data[..len]);
                self.written[first..first + len].fill(true);
            }
            Space::Param => return Err(Fault::OutOfBounds { space: "parameter", at, bytes }),
            _ => {
                let who = self.who(t, atomic);
                self.memory.store(at, bytes, value, who)?;
            }
        }
        Ok(())
    }

    /// Checks an access of shared memory against its end and against the other threads'.
    fn shared_touch(
        &mut self,
        t: usize,
        first: usize,
        len: usize,
        writes: bool,
        atomic: bool,
    ) -> Result<(), Fault> {
        if first.saturating_add(len) > self.shared.len() {
            return Err(Fault::OutOfBounds {
                space: "shared",
                at: first as u64,
                bytes: len as u32,
            });
        }
        let me = Touch {
            thread: t as u32 + 1,
            epoch: self.epoch,
            warp_epoch: self.warp_epochs[t / 32],
            atomic,
        };
        let meets = |other: Touch| {
            let warps = (other.thread.wrapping_sub(1) / 32, (me.thread - 1) / 32);
            other.thread != 0
                && other.thread != me.thread
                && other.epoch == me.epoch
                && !(other.atomic && atomic)
                && !(warps.0 == warps.1 && other.warp_epoch != me.warp_epoch)
        };
        // Threads that write parts of one word do not race.
        if len < 4 && writes {
            return Ok(());
        }
        for word in &mut self.words[first / 4..(first + len).div_ceil(4)] {
            let race = |other: Touch| Fault::SharedRace {
                at: first as u64,
                threads: (other.thread - 1, t as u32),
            };
            if meets(word.write) {
                return Err(race(word.write));
            }
            if writes {
                for read in [word.read, word.other] {
                    if meets(read) {
                        return Err(race(read));
                    }
                }
                word.write = me;
            } else {
                if word.read.thread != me.thread {
                    word.other = word.read;
                }
                word.read = me;
            }
        }
        Ok(())
    }

    /// Runs what the threads of a warp wait to run together, where all are there.
    fn collectives(&mut self, first: usize, past: usize) -> Result<bool, Fault> {
        let mut met = false;
        let waiting: Vec<usize> =
            (first..past).filter(|&t| self.threads[t].state == State::Collective).collect();
        let mut places: Vec<usize> = waiting.iter().map(|&t| self.threads[t].pc).collect();
        places.sort_unstable();
        places.dedup();
        let bits = |list: &mut dyn Iterator<Item = usize>| {
            list.fold(0u32, |mask, t| mask | 1 << (t - first))
        };
        let gone = bits(&mut (first..past).filter(|&t| self.threads[t].state == State::Done))
            | if past - first == 32 { 0 } else { u32::MAX << (past - first) };
        for pc in places {
            let here: Vec<usize> =
                waiting.iter().copied().filter(|&t| self.threads[t].pc == pc).collect();
            let there = bits(&mut here.iter().copied());
            let kernel = self.kernel;
            let op = &kernel.code[pc].op;
            let mask = match *op {
                Op::WarpBarrier { mask }
                | Op::Shuffle { mask, .. }
                | Op::Vote { mask, .. }
                | Op::Redux { mask, .. } => self.value(here[0], mask) as u32,
                _ => u32::MAX,
            };
            let fail = |what: String| Err(self.placed(here[0], Fault::Divergence(what)));
            if there & !mask != 0 {
                return fail(format!(
                    "lanes {:#x} are not in their own mask {mask:#x}",
                    there & !mask
                ));
            }
            if mask & gone != 0 {
                return fail(format!(
                    "mask {mask:#x} names lanes {:#x}, which have ended",
                    mask & gone
                ));
            }
            if mask & !there != 0 {
                continue;
            }
            let failed = self.together(op, &here, first);
            failed.map_err(|fault| self.placed(here[0], fault))?;
            for &t in &here {
                self.threads[t].pc += 1;
                self.threads[t].state = State::Ready;
            }
            met = true;
        }
        Ok(met)
    }

    fn together(&mut self, op: &Op, here: &[usize], first: usize) -> Result<(), Fault> {
        match op {
            Op::WarpBarrier { .. } => self.warp_epochs[first / 32] += 1,
            &Op::Shuffle { mode, to, within, a, lane, clamp, .. } => {
                let values: Vec<u64> = here.iter().map(|&t| self.value(t, a)).collect();
                let mut results = Vec::with_capacity(here.len());
                for &t in here {
                    let me = (t - first) as u32;
                    let (by, c) = (self.value(t, lane) as u32 & 31, self.value(t, clamp) as u32);
                    let segment = c >> 8 & 31;
                    let (least, most) = (me & segment, (me & segment) | (c & 31 & !segment));
                    let (from, inside) = match mode {
                        Shuffle::Up => (me.wrapping_sub(by), me as i32 - by as i32 >= most as i32),
                        Shuffle::Down => (me + by, me + by <= most),
                        Shuffle::Butterfly => (me ^ by, me ^ by <= most),
                        Shuffle::Index => {
                            let from = least | (by & !segment);
                            (from, from <= most)
                        }
                    };
                    let from = if inside { from } else { me };
                    let found = here.iter().position(|&t| (t - first) as u32 == from);
                    let Some(found) = found else {
                        return Err(Fault::Divergence(format!(
                            "lane {me} reads lane {from}, which takes no part"
                        )));
                    };
                    results.push((t, low(values[found], 32), inside));
                }
                for (t, value, inside) in results {
                    self.set(t, to, value);
                    self.set(t, within, u64::from(inside));
                }
            }
            &Op::Vote { kind, to, a, .. } => {
                let yes: Vec<bool> = here.iter().map(|&t| self.value(t, a) & 1 == 1).collect();
                let (any, all) = (yes.contains(&true), !yes.contains(&false));
                let ballot = here
                    .iter()
                    .zip(&yes)
                    .filter(|(_, yes)| **yes)
                    .fold(0, |b, (t, _)| b | 1 << (t - first));
                let v = match kind {
                    Vote::Ballot => ballot,
                    Vote::Any => u64::from(any),
                    Vote::All => u64::from(all),
                    Vote::Uniform => u64::from(all || !any),
                };
                here.iter().for_each(|&t| self.set(t, to, v));
            }
            &Op::Redux { op, ty, to, a, .. } => {
                let values = here.iter().map(|&t| self.value(t, a));
                let v = values.reduce(|x, y| arithmetic::atomic(op, ty, x, y, 0)).unwrap_or(0);
                here.iter().for_each(|&t| self.set(t, to, v));
            }
            Op::Mma { shape, to, a, b, c } => self.mma(*shape, [a, b, c], to, here),
            Op::LoadMatrix { transposed, to, from } => {
                let mut rows: Vec<[u16; 8]> = Vec::new();
                for &t in here.iter().take(8 * to.len()) {
                    let at = self.address(t, *from);
                    self.aligned(at, 16)?;
                    let mut row = [0; 8];
                    for (i, element) in row.iter_mut().enumerate() {
                        *element = self.load(t, Space::Shared, at + 2 * i as u64, 2, false)? as u16;
                    }
                    rows.push(row);
                }
                for (lane, &t) in here.iter().enumerate() {
                    for (matrix, &to) in rows.chunks(8).zip(to) {
                        let pick = |e: usize| {
                            let (r, c) = (lane / 4, 2 * (lane % 4) + e);
                            u64::from(if *transposed { matrix[c][r] } else { matrix[r][c] })
                        };
                        self.set(t, to, pick(0) | pick(1) << 16);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// D = A B + C over a warp. Lane l holds the elements that the PTX manual gives to its group
    /// g = l / 4 and its place in it, p = l % 4.
    fn mma(&mut self, shape: Mma, [a, b, c]: [&Vec<Value>; 3], to: &[u32], here: &[usize]) {
        self.counts.mma += 1;
        let depth = match shape {
            Mma::Tf32K4 => 4,
            Mma::Tf32K8 => 8,
            Mma::F16K16 => 16,
        };
        let (mut left, mut right) = ([[0f64; 16]; 16], [[0f64; 8]; 16]);
        let tf32 = |v: u64| f64::from(f32::from_bits(v as u32 & 0xffff_e000));
        let half = |v: u64, i: usize| half::f16::from_bits((v >> (16 * i)) as u16).to_f64();
        for (lane, &t) in here.iter().enumerate() {
            let (g, p) = (lane / 4, lane % 4);
            for (i, &v) in a.iter().enumerate() {
                let v = self.value(t, v);
                let (row, column) = (g + 8 * (i % 2), i / 2);
                if shape == Mma::F16K16 {
                    for e in 0..2 {
                        left[row][2 * p + 8 * column + e] = half(v, e);
                    }
                } else {
                    left[row][p + 4 * column] = tf32(v);
                }
            }
            for (i, &v) in b.iter().enumerate() {
                let v = self.value(t, v);
                if shape == Mma::F16K16 {
                    for e in 0..2 {
                        right[2 * p + 8 * i + e][g] = half(v, e);
                    }
                } else {
                    right[p + 4 * i][g] = tf32(v);
                }
            }
        }
        for (lane, &t) in here.iter().enumerate() {
            let (g, p) = (lane / 4, lane % 4);
            for (i, (&c, &to)) in c.iter().zip(to).enumerate() {
                let (row, column) = (g + 8 * (i / 2), 2 * p + i % 2);
                let start = f64::from(f32::from_bits(self.value(t, c) as u32));
                let sum = (0..depth).fold(start, |sum, k| sum + left[row][k] * right[k][column]);
                self.set(t, to, u64::from((sum as f32).to_bits()));
            }
        }
    }
}
