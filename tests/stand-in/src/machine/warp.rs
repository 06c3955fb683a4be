//! What the lanes of a warp do together.

use super::block::{Block, State};
use crate::arithmetic::low;
use crate::code::{Op, Shuffle, Vote};
use crate::fault::Fault;

/// The bits of a mask, by number: lanes mostly.
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

impl Block<'_> {
    fn mask_of(&self, t: usize) -> u32 {
        match self.kernel.code[self.threads[t].pc].op {
            Op::WarpBarrier { mask }
            | Op::Shuffle { mask, .. }
            | Op::Vote { mask, .. }
            | Op::Match { mask, .. }
            | Op::Redux { mask, .. } => self.get(t, mask) as u32,
            // All lanes.
            _ => u32::MAX,
        }
    }

    /// Runs what lanes of a warp wait to run together, where all are there.
    pub(super) fn collectives(&mut self, first: usize, past: usize) -> Result<bool, Fault> {
        let which = |block: &Self, state: State| {
            (first..past)
                .filter(|&t| block.threads[t].state == state)
                .fold(0u32, |mask, t| mask | 1 << (t - first))
        };
        let mut left = which(self, State::Collective);
        if left == 0 {
            return Ok(false);
        }
        let missing = if past - first == 32 { 0 } else { u32::MAX << (past - first) };
        let gone = which(self, State::Done) | missing;
        let mut met = false;
        while left != 0 {
            let leader = first + left.trailing_zeros() as usize;
            let (pc, mask) = (self.threads[leader].pc, self.mask_of(leader));
            let here = lanes(left)
                .filter(|&lane| {
                    let t = first + lane;
                    self.threads[t].pc == pc && self.mask_of(t) == mask
                })
                .fold(0u32, |here, lane| here | 1 << lane);
            left &= !here;
            let fail = |what: String| Err(self.placed(leader, Fault::Divergence(what)));
            if here & !mask != 0 {
                return fail(format!("lanes {:#x} are not in their mask {mask:#x}", here & !mask));
            }
            if mask & gone != 0 {
                return fail(format!("lanes {:#x} of mask {mask:#x} have ended", mask & gone));
            }
            if mask & !here != 0 {
                continue;
            }
            self.together(pc, first, here).map_err(|fault| self.placed(leader, fault))?;
            for lane in lanes(here) {
                self.threads[first + lane].pc += 1;
                self.threads[first + lane].state = State::Ready;
            }
            met = true;
        }
        Ok(met)
    }

    fn together(&mut self, pc: usize, first: usize, here: u32) -> Result<(), Fault> {
        let kernel = self.kernel;
        let all = || lanes(here).map(|lane| first + lane);
        match kernel.code[pc].op {
            Op::WarpBarrier { .. } => self.spaces.clock.meet(&all().collect::<Vec<_>>()),
            Op::Shuffle { mode, to, within, a, lane, clamp, .. } => {
                let mut values = [0; 32];
                lanes(here).for_each(|lane| values[lane] = low(self.get(first + lane, a), 32));
                for me in lanes(here) {
                    let t = first + me;
                    let (by, clamp) = (self.get(t, lane) as u32, self.get(t, clamp) as u32);
                    let (from, inside) = source(mode, me as u32, by & 31, clamp);
                    let from = if inside { from as usize } else { me };
                    if here >> from & 1 == 0 {
                        return Err(Fault::Divergence(format!(
                            "lane {me} reads lane {from}, which takes no part"
                        )));
                    }
                    self.set(t, within, inside.into());
                    self.set(t, to, values[from]);
                }
            }
            Op::Vote { kind, to, a, inverted, .. } => {
                let yes = lanes(here)
                    .filter(|lane| (self.get(first + lane, a) & 1 == 1) != inverted)
                    .fold(0u32, |yes, lane| yes | 1 << lane);
                let result = match kind {
                    Vote::Ballot => yes.into(),
                    Vote::Any => u64::from(yes != 0),
                    Vote::All => u64::from(yes == here),
                    Vote::Uniform => u64::from(yes == here || yes == 0),
                };
                all().for_each(|t| self.set(t, to, result));
            }
            Op::Match { bits, all: every, to, same, a, .. } => {
                let mut values = [0; 32];
                lanes(here).for_each(|lane| values[lane] = low(self.get(first + lane, a), bits));
                for me in lanes(here) {
                    let equal = lanes(here)
                        .filter(|&lane| values[lane] == values[me])
                        .fold(0u32, |equal, lane| equal | 1 << lane);
                    let agreed = equal == here;
                    let result = if every && !agreed { 0 } else { equal };
                    self.set(first + me, same, agreed.into());
                    self.set(first + me, to, result.into());
                }
            }
            Op::Redux { f, to, a, .. } => {
                let result = all().map(|t| self.get(t, a)).reduce(f).unwrap_or_default();
                all().for_each(|t| self.set(t, to, result));
            }
            Op::Multiply(ref multiply) => self.multiply(first, multiply),
            Op::LoadMatrix { transposed, count, to, from } => {
                self.load_matrices(first, transposed, &to[..count.into()], from)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The lane that a shuffle reads, and whether it is in range.
const fn source(mode: Shuffle, me: u32, by: u32, clamp: u32) -> (u32, bool) {
    let segment = (clamp >> 8) & 31;
    let least = me & segment;
    let most = least | (clamp & 31 & !segment);
    match mode {
        Shuffle::Up => (me.wrapping_sub(by), me as i32 - by as i32 >= most as i32),
        Shuffle::Down => (me + by, me + by <= most),
        Shuffle::Butterfly => (me ^ by, me ^ by <= most),
        Shuffle::Index => {
            let from = least | (by & !segment);
            (from, from <= most)
        }
    }
}
