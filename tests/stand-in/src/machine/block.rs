//! The threads of a block: whose turn it is, and what each does alone.

use super::spaces::Spaces;
use super::warp::lanes;
use super::{Launch, Order};
use crate::code::{Barrier, Compare, Instruction, Kernel, Op, Slot, Special};
use crate::counts::Counts;
use crate::fault::Fault;
use crate::memory::Memory;
use crate::shadow::Clock;

/// A thread that has run so many instructions is taken to have no end.
const ENDLESS: u64 = 1 << 29;

/// What registers hold before they are written: no number, as a float, and no address.
const UNWRITTEN: u64 = 0x7fff_dead_7fff_dead;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// At an instruction that its warp runs together.
    Collective,
    /// At this barrier.
    Barrier(u8),
    Done,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Thread {
    pub pc: usize,
    pub state: State,
    ran: u64,
}

pub(super) struct Block<'a> {
    pub kernel: &'a Kernel,
    launch: Launch<'a>,
    pub spaces: Spaces<'a>,
    at: [u32; 3],
    /// Threads' frames, one behind the other.
    pub frames: Vec<u64>,
    /// Slots of a frame.
    pub frame: usize,
    pub threads: Vec<Thread>,
    /// Threads that have arrived at barriers without waiting there.
    arrived: [Vec<usize>; 16],
    /// How often each instruction ran.
    pub ran: Vec<u64>,
}

const FRESH: Thread = Thread { pc: 0, state: State::Ready, ran: 0 };

impl<'a> Block<'a> {
    pub fn new(
        kernel: &'a Kernel,
        launch: Launch<'a>,
        memory: &'a mut Memory,
        clock: Clock,
    ) -> Self {
        let threads = launch.block.iter().product::<u32>() as usize;
        let shared = (kernel.shared + launch.shared) as usize;
        let head = kernel.registers as usize + kernel.specials.len();
        let frame = head + kernel.constants.len();
        let mut frames = vec![0; frame * threads];
        for one in frames.chunks_exact_mut(frame) {
            one[head..].copy_from_slice(&kernel.constants);
        }
        let local = kernel.local as usize;
        Self {
            kernel,
            launch,
            spaces: Spaces::new(memory, clock, launch.params, shared, local, threads),
            at: [0; 3],
            frames,
            frame,
            threads: vec![FRESH; threads],
            arrived: Default::default(),
            ran: vec![0; kernel.code.len()],
        }
    }

    pub fn run(&mut self, at: [u32; 3], order: &mut Order) -> Result<(), Fault> {
        self.begin(at);
        let mut warps: Vec<usize> = (0..self.threads.len().div_ceil(32)).collect();
        loop {
            let mut moved = false;
            order.shuffle(&mut warps);
            for &warp in &warps {
                // Not for ever: it may wait for what another warp writes.
                for _ in 0..1 << order.below(8) {
                    if !self.turn(warp, order)? {
                        break;
                    }
                    moved = true;
                }
            }
            if self.threads.iter().all(|t| t.state == State::Done) {
                return Ok(());
            }
            moved |= self.barriers()?;
            if !moved {
                return Err(self.stuck());
            }
        }
    }

    pub fn finish(self) -> Counts {
        self.spaces.memory.time = self.spaces.clock.now();
        let mut counts = Counts::default();
        for (&class, ran) in self.kernel.classes.iter().zip(self.ran) {
            counts.add(class, ran);
        }
        counts
    }

    fn begin(&mut self, at: [u32; 3]) {
        let [x, y, _] = self.launch.grid;
        self.at = at;
        self.spaces.begin_block((at[2] * y + at[1]) * x + at[0]);
        self.threads.fill(FRESH);
        self.arrived.iter_mut().for_each(Vec::clear);
        let first = self.kernel.registers as usize;
        for thread in 0..self.threads.len() {
            self.frames[thread * self.frame..][..first].fill(UNWRITTEN);
            for (i, &special) in self.kernel.specials.iter().enumerate() {
                self.frames[thread * self.frame + first + i] = self.special(special, thread);
            }
        }
    }

    fn special(&self, special: Special, thread: usize) -> u64 {
        let thread = thread as u32;
        let [w, h, _] = self.launch.block;
        let lane = thread % 32;
        let value = match special {
            Special::Thread(0) => thread % w,
            Special::Thread(1) => thread / w % h,
            Special::Thread(_) => thread / w / h,
            Special::Threads(axis) => self.launch.block[usize::from(axis)],
            Special::Block(axis) => self.at[usize::from(axis)],
            Special::Blocks(axis) => self.launch.grid[usize::from(axis)],
            Special::Lane => lane,
            Special::Warp => thread / 32,
            Special::Warps => self.threads.len().div_ceil(32) as u32,
            Special::LanesEqual => 1 << lane,
            Special::LanesBelow => (1 << lane) - 1,
            Special::LanesUpTo => u32::MAX >> (31 - lane),
            Special::LanesAbove => !(u32::MAX >> (31 - lane)),
            Special::LanesFrom => u32::MAX << lane,
            Special::Multiprocessor => 0,
            Special::DynamicShared => self.launch.shared,
            Special::TotalShared => self.kernel.shared + self.launch.shared,
        };
        value.into()
    }

    /// Lets each lane of a warp run for a while, then those together that wait for each other.
    /// False where nothing happened.
    fn turn(&mut self, warp: usize, order: &mut Order) -> Result<bool, Fault> {
        let first = warp * 32;
        let past = (first + 32).min(self.threads.len());
        // An odd step goes through all 32.
        let (start, step) = (order.below(32), 2 * order.below(16) + 1);
        let budget = 64 << order.below(8);
        let mut ran = false;
        for i in 0..32 {
            let t = first + ((start + i * step) & 31);
            if t < past && self.threads[t].state == State::Ready {
                self.thread(t, budget)?;
                ran = true;
            }
        }
        Ok(self.collectives(first, past)? || ran)
    }

    pub fn placed(&self, t: usize, fault: Fault) -> Fault {
        Fault::At {
            kernel: self.kernel.name.clone(),
            statement: self.kernel.texts.get(self.threads[t].pc).cloned().unwrap_or_default(),
            block: self.at,
            thread: t as u32,
            fault: Box::new(fault),
        }
    }

    pub fn get(&self, t: usize, slot: Slot) -> u64 {
        self.frames[t * self.frame + slot as usize]
    }

    pub fn set(&mut self, t: usize, slot: Slot, value: u64) {
        self.frames[t * self.frame + slot as usize] = value;
    }

    /// Runs a thread until it waits for others or ends, or until it has run for long.
    fn thread(&mut self, t: usize, budget: u64) -> Result<(), Fault> {
        let frame = &mut self.frames[t * self.frame..][..self.frame];
        let thread = &mut self.threads[t];
        let code = self.kernel.code.as_slice();
        let mut pc = thread.pc;
        let mut left = budget;
        let done = loop {
            let Some(instruction) = code.get(pc) else {
                thread.state = State::Done;
                break Ok(());
            };
            if left == 0 {
                break if thread.ran > ENDLESS { Err(Fault::Endless) } else { Ok(()) };
            }
            left -= 1;
            if let Some((p, wanted)) = instruction.guard
                && (frame[p as usize] & 1 == 1) != wanted
            {
                pc += 1;
                continue;
            }
            self.ran[pc] += 1;
            match step(instruction, frame, &mut self.spaces, t) {
                Ok(Next::Follows) => pc += 1,
                Ok(Next::At(target)) => pc = target as usize,
                Ok(Next::Waits(state)) => {
                    thread.state = state;
                    break Ok(());
                }
                Err(fault) => break Err(fault),
            }
        };
        thread.pc = pc;
        thread.ran += budget - left;
        match done {
            Ok(()) if matches!(thread.state, State::Barrier(_)) => {
                self.arrives(t).map_err(|fault| self.placed(t, fault))
            }
            done => done.map_err(|fault| self.placed(t, fault)),
        }
    }

    /// A thread has come to a barrier; where it only says so, it goes on.
    fn arrives(&mut self, t: usize) -> Result<(), Fault> {
        let Op::Barrier { kind, .. } = self.kernel.code[self.threads[t].pc].op else {
            return Ok(());
        };
        if let (Barrier::Arrive, State::Barrier(id)) = (kind, self.threads[t].state) {
            if self.arrived[usize::from(id)].contains(&t) {
                let what = format!("the thread arrives twice at barrier {id}");
                return Err(Fault::Divergence(what));
            }
            self.arrived[usize::from(id)].push(t);
            self.threads[t].pc += 1;
            self.threads[t].state = State::Ready;
        }
        Ok(())
    }

    /// Opens the barriers to which all have come that they wait for.
    fn barriers(&mut self) -> Result<bool, Fault> {
        let mut opened = false;
        let ids = self.threads.iter().fold(0, |ids, thread| match thread.state {
            State::Barrier(id) => ids | 1 << id,
            _ => ids,
        });
        for id in lanes(ids).map(|id| id as u8) {
            let here = |t: &usize| self.threads[*t].state == State::Barrier(id);
            let waiting: Vec<usize> = (0..self.threads.len()).filter(here).collect();
            let Some(&first) = waiting.first() else { continue };
            let pc = self.threads[first].pc;
            let Op::Barrier { kind, count, .. } = self.kernel.code[pc].op else { continue };
            let came = waiting.len() + self.arrived[usize::from(id)].len();
            let live = self.threads.iter().filter(|t| t.state != State::Done).count();
            let all = waiting.len() == live;
            match count {
                None if !all => continue,
                None => {}
                Some(count) => {
                    let count = self.get(first, count) as u32 as usize;
                    let fail = |what| Err(self.placed(first, Fault::Divergence(what)));
                    if !count.is_multiple_of(32) || count == 0 {
                        return fail(format!(
                            "a barrier of {count} threads is none of whole warps"
                        ));
                    }
                    if came > count {
                        return fail(format!("{came} threads at a barrier of {count}"));
                    }
                    if came < count {
                        continue;
                    }
                }
            }
            if let Some(&other) = waiting.iter().find(|&&t| self.threads[t].pc != pc) {
                return Err(self.apart(first, other));
            }
            self.open(&waiting, id, all, kind);
            opened = true;
        }
        Ok(opened)
    }

    fn open(&mut self, waiting: &[usize], id: u8, all: bool, kind: Barrier) {
        let mut met = std::mem::take(&mut self.arrived[usize::from(id)]);
        if all && met.is_empty() {
            self.spaces.clock.meet_all();
        } else {
            met.extend(waiting);
            self.spaces.clock.meet(&met);
        }
        let vote = |t: usize| match self.kernel.code[self.threads[t].pc].op {
            Op::Barrier { a, inverted, .. } => (self.get(t, a) & 1 == 1) != inverted,
            _ => false,
        };
        let yes = waiting.iter().filter(|&&t| vote(t)).count();
        let result = match kind {
            Barrier::Count => yes as u64,
            Barrier::All => u64::from(yes == waiting.len()),
            _ => u64::from(yes > 0),
        };
        for &t in waiting {
            if let Op::Barrier { to, .. } = self.kernel.code[self.threads[t].pc].op {
                self.set(t, to, result);
            }
            self.threads[t].pc += 1;
            self.threads[t].state = State::Ready;
        }
    }

    fn apart(&self, first: usize, other: usize) -> Fault {
        let what = format!(
            "the thread waits here, thread {other} at `{}`",
            self.kernel.texts[self.threads[other].pc]
        );
        self.placed(first, Fault::Divergence(what))
    }

    /// Why no thread can go on.
    fn stuck(&self) -> Fault {
        let waits = |t: &usize| self.threads[*t].state != State::Done;
        let waiting: Vec<usize> = (0..self.threads.len()).filter(waits).collect();
        let Some(&first) = waiting.first() else { return Fault::Deadlock(String::new()) };
        let pc = self.threads[first].pc;
        match waiting.iter().find(|&&t| self.threads[t].pc != pc) {
            Some(&other) => self.apart(first, other),
            None => {
                let what = format!("{} threads wait for threads that ended", waiting.len());
                self.placed(first, Fault::Deadlock(what))
            }
        }
    }
}

/// Where a thread goes from an instruction.
enum Next {
    Follows,
    At(u32),
    Waits(State),
}

/// One instruction of one thread.
#[inline(always)]
fn step(
    instruction: &Instruction,
    frame: &mut [u64],
    spaces: &mut Spaces<'_>,
    t: usize,
) -> Result<Next, Fault> {
    macro_rules! at {
        ($slot:expr) => {
            frame[$slot as usize]
        };
    }
    match instruction.op {
        Op::Fma { to, a, b, c } => {
            at!(to) = crate::arithmetic::float::fma_nearest(at!(a), at!(b), at!(c));
        }
        Op::One { f, to, a } => at!(to) = f(at!(a)),
        Op::Two { f, to, a, b } => at!(to) = f(at!(a), at!(b)),
        Op::Three { f, to, a, b, c } => at!(to) = f(at!(a), at!(b), at!(c)),
        Op::Four { f, to, operands: [a, b, c, d] } => {
            at!(to) = f(at!(a), at!(b), at!(c), at!(d));
        }
        Op::Compare(ref compare) => {
            let Compare { f, to, inverse, a, b, with } = **compare;
            let mut result = f(at!(a), at!(b));
            let mut other = result ^ 1;
            if let Some((combine, p, inverted)) = with {
                let p = (at!(p) & 1) ^ u64::from(inverted);
                (result, other) = (combine(result, p), combine(other, p));
            }
            at!(inverse) = other;
            at!(to) = result;
        }
        Op::Convert { ref convert, to, a } => at!(to) = convert.of(at!(a)),
        Op::Pack { bits, to, count, from } => {
            let mut value = 0;
            for (i, slot) in from.into_iter().take(count.into()).enumerate() {
                value |= crate::arithmetic::low(at!(slot), bits) << (i as u32 * bits);
            }
            at!(to) = value;
        }
        Op::Unpack { bits, to, count, a } => {
            let value = at!(a);
            for (i, slot) in to.into_iter().take(count.into()).enumerate() {
                at!(slot) = crate::arithmetic::low(value >> (i as u32 * bits), bits);
            }
        }
        Op::Clock { to } => at!(to) = spaces.clock.now().into(),
        Op::Load { access, to, from } => {
            let address = at!(from.base).wrapping_add(from.offset as u64);
            let value = spaces.load(t, access, address)?;
            for (i, slot) in to.into_iter().take(access.count.into()).enumerate() {
                let element = (value >> (i * usize::from(access.bits))) as u64;
                let unused = 64 - access.bits;
                at!(slot) = if access.signed {
                    (((element << unused) as i64) >> unused) as u64
                } else {
                    (element << unused) >> unused
                };
            }
        }
        Op::Store { access, to, from } => {
            let address = at!(to.base).wrapping_add(to.offset as u64);
            let mut value = 0;
            for (i, slot) in from.into_iter().take(access.count.into()).enumerate() {
                let element = crate::arithmetic::low(at!(slot), u32::from(access.bits));
                value |= u128::from(element) << (i * usize::from(access.bits));
            }
            spaces.store(t, access, address, value)?;
        }
        Op::Atomic { f, access, to, at: address, a, b } => {
            let address = at!(address.base).wrapping_add(address.offset as u64);
            let old = spaces.load(t, access, address)? as u64;
            spaces.store(t, access, address, f(old, at!(a), at!(b)).into())?;
            at!(to) = old;
        }
        Op::Copy { to, from, bytes, read } => {
            let read = read.map_or(bytes, |read| (at!(read) as u32).min(bytes));
            let to = at!(to.base).wrapping_add(to.offset as u64);
            let from = at!(from.base).wrapping_add(from.offset as u64);
            spaces.copy(t, to, from, bytes as usize, read as usize)?;
        }
        Op::CopyCommit => spaces.commit(t),
        Op::CopyWait(left) => spaces.wait(t, left as usize)?,
        Op::CopyWaitAll => {
            spaces.commit(t);
            spaces.wait(t, 0)?;
        }
        Op::Branch(target) => return Ok(Next::At(target)),
        Op::Switch { index, ref targets } => {
            let index = at!(index) & 0xffff_ffff;
            let target = targets.get(index as usize).ok_or(Fault::Branch(index))?;
            return Ok(Next::At(*target));
        }
        Op::Exit => return Ok(Next::Waits(State::Done)),
        Op::Trap => return Err(Fault::Trap),
        Op::Nothing => {}
        Op::Barrier { id, .. } => {
            let id = at!(id) as u32;
            if id >= 16 {
                return Err(Fault::Divergence(format!("there is no barrier {id}")));
            }
            return Ok(Next::Waits(State::Barrier(id as u8)));
        }
        // Threads take turns, so each is alone as far as it can tell.
        Op::ActiveMask { to } => at!(to) = 1 << (t % 32),
        Op::WarpBarrier { .. }
        | Op::Shuffle { .. }
        | Op::Vote { .. }
        | Op::Match { .. }
        | Op::Redux { .. }
        | Op::Multiply(_)
        | Op::LoadMatrix { .. } => return Ok(Next::Waits(State::Collective)),
    }
    Ok(Next::Follows)
}
