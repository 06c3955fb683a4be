//! Convolutions that run as [`Winograd`] ones: how they are cut into tasks, and their scratch.
//!
//! Tasks have some samples each, whose weights were transformed before; or, where there is more
//! weight than activation, some panels of filters of all samples. Both cuts follow from the shapes
//! alone.

use core::ops::Range;

use rayon::prelude::*;
use sepal_core::shape::Shape;

use super::pool::{self, Pool};
use super::problem::{Clamp, Epilogue, Problem};
use super::winograd::Winograd;
use super::{LINE, PARTIALS, TASKS};
use crate::arch::winograd::{PANEL, Panels};
use crate::arch::{Instructions, Isa, Kernel, Simd};
use crate::blocks::{BLOCK, block, padded};

/// Tasks that panels are cut into, where there are as many: each makes V anew.
const PANEL_TASKS: usize = 4;

/// Tiles that are pooled together, at least.
const POOLED_TILES: usize = 32;

/// A convolution all of whose passes may be Winograd ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transformed {
    problem: Problem,
    /// Whether x lies in the reference's layout: it is then copied into blocks first.
    plain: bool,
    winograd: Winograd,
}

/// What a pass reads and how it ends.
#[derive(Clone, Copy)]
struct Work<'a> {
    instructions: Instructions,
    x: &'a [f32],
    weight: &'a [f32],
    turned: bool,
    epilogue: &'a Epilogue<'a>,
}

impl Transformed {
    /// The forward pass; `None` where the direct convolution is faster.
    pub(super) fn forward(problem: &Problem, plain: bool) -> Option<Self> {
        let winograd = Winograd::best(problem)?;
        Some(Self { problem: *problem, plain, winograd })
    }

    /// The pass from dy to dx, as a forward pass.
    ///
    /// To at most a block of channels the direct pass has vectors of places, which is faster than
    /// 5x5 in the Winograd domain: 1.7 times on LeNet's second convolution.
    pub(super) fn turned(problem: &Problem) -> Option<Self> {
        let Problem { c, h, w, k, p, q, kernel, pad, .. } = *problem;
        let back = |taps: usize, pad: usize| taps.checked_sub(1 + pad);
        if c <= BLOCK && kernel == (5, 5) {
            return None;
        }
        let pad = (back(kernel.0, pad.0)?, back(kernel.1, pad.1)?);
        Self::forward(&Problem { c: k, h: p, w: q, k: c, p: h, q: w, pad, ..*problem }, false)
    }

    /// Numbers of all samples of x in blocks.
    fn blocked(&self) -> usize {
        let Problem { n, c, h, w, .. } = self.problem;
        if self.plain { (n * padded(c) * h * w).next_multiple_of(LINE) } else { 0 }
    }

    /// Numbers of a sample of y.
    fn sample(&self) -> usize {
        padded(self.problem.k) * self.problem.p * self.problem.q
    }

    /// Samples of a task.
    fn samples(&self) -> usize {
        self.problem.n.div_ceil(TASKS).max(1)
    }

    /// Samples that are pooled together.
    fn pooled(&self) -> usize {
        POOLED_TILES.div_ceil(self.winograd.each()).min(self.samples())
    }

    /// The largest of what `of` gives for any form: with fewer samples another may be the fastest.
    fn most(&self, of: impl Fn(&Self) -> usize) -> usize {
        let all = Winograd::every(&self.problem);
        all.map(|winograd| of(&Self { winograd, ..*self })).max().unwrap_or(0)
    }

    /// Numbers of scratch, and never fewer for more samples.
    pub(super) fn scratch(&self, pool: Option<Pool>) -> usize {
        self.most(|with| with.own_scratch(pool))
    }

    fn own_scratch(&self, pool: Option<Pool>) -> usize {
        let lines = |numbers: usize| numbers.next_multiple_of(LINE);
        let (n, winograd) = (self.problem.n, &self.winograd);
        let own = if pool.is_some() { lines(self.pooled() * self.sample()) } else { 0 };
        let samples = lines(winograd.packed()) + TASKS.min(n) * (lines(winograd.lane()) + own);
        let whole = if pool.is_some() { lines(n * self.sample()) } else { 0 };
        let panels = whole + PANEL_TASKS * lines(winograd.most_panels_lane());
        self.blocked() + samples.max(panels)
    }

    /// Writes `y` in blocks: the output, or what the pool makes of it. `weight` is that of the
    /// layer, `turned` where this is the pass from dy to dx.
    #[expect(clippy::too_many_arguments, reason = "tensors, what is fused, and scratch")]
    pub(super) fn run(
        &self,
        instructions: Instructions,
        x: &[f32],
        weight: &[f32],
        turned: bool,
        epilogue: &Epilogue<'_>,
        pool: Option<Pool>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (blocks, scratch) = scratch.split_at_mut(self.blocked());
        let x = self.in_blocks(x, blocks);
        let work = Work { instructions, x, weight, turned, epilogue };
        if self.winograd.by_panels() {
            let whole = pool.map_or(0, |_| self.problem.n * self.sample());
            let (before, lanes) = scratch.split_at_mut(whole.next_multiple_of(LINE));
            let before = &mut before[..whole];
            let out = if pool.is_some() { &mut *before } else { &mut *y };
            let lane = self.winograd.panels_lane().next_multiple_of(LINE);
            self.panels(work, self.winograd.panels(self.problem.n, out), lanes, lane);
            if let Some(pool) = pool {
                let Some(sample) = self.pooled_sample(pool) else { return };
                let samples = y.par_chunks_mut(sample).zip(before.par_chunks(self.sample()));
                samples.for_each(|(y, before)| self.pool(instructions, pool, before, y));
            }
        } else {
            self.by_samples(work, pool, y, scratch);
        }
    }

    fn in_blocks<'a>(&self, x: &'a [f32], blocks: &'a mut [f32]) -> &'a [f32] {
        if !self.plain {
            return x;
        }
        let Problem { n, c, h, w, .. } = self.problem;
        let shape = Shape::new(n as u32, c as u32, h as u32, w as u32);
        let blocks = &mut blocks[..n * padded(c) * h * w];
        block(shape, x, blocks);
        blocks
    }

    fn by_samples(&self, work: Work<'_>, pool: Option<Pool>, y: &mut [f32], scratch: &mut [f32]) {
        let Work { instructions, x, weight, turned, epilogue } = work;
        let winograd = &self.winograd;
        let (packed, lanes) = scratch.split_at_mut(winograd.packed().next_multiple_of(LINE));
        let packed = &mut packed[..winograd.packed()];
        packed.par_chunks_mut(winograd.panel()).enumerate().for_each(|(panel, u)| {
            winograd.pack(instructions, weight, epilogue.scale, turned, panel, u);
        });
        let packed = &*packed;
        let (per, sample) = (self.samples(), self.sample());
        let x_sample = x.len() / self.problem.n.max(1);
        let lane = winograd.lane().next_multiple_of(LINE);
        let Some(pool) = pool else {
            let tasks = y.par_chunks_mut(per * sample).zip(x.par_chunks(per * x_sample));
            tasks.zip(lanes.par_chunks_mut(lane)).for_each(|((y, x), lane)| {
                let samples = y.len() / sample;
                winograd.run(instructions, samples, x, packed, epilogue, y, lane);
            });
            return;
        };
        let Some(pooled) = self.pooled_sample(pool) else { return };
        let own = (self.pooled() * sample).next_multiple_of(LINE);
        let tasks = y.par_chunks_mut(per * pooled).zip(x.par_chunks(per * x_sample));
        tasks.zip(lanes.par_chunks_mut(lane + own)).for_each(|((y, x), lane)| {
            let (before, lane) = lane.split_at_mut(own);
            let together = self.pooled();
            let pieces = y.chunks_mut(together * pooled).zip(x.chunks(together * x_sample));
            for (y, x) in pieces {
                let samples = y.len() / pooled;
                let before = &mut before[..samples * sample];
                winograd.run(instructions, samples, x, packed, epilogue, before, lane);
                for (y, before) in y.chunks_mut(pooled).zip(before.chunks(sample)) {
                    self.pool(instructions, pool, before, y);
                }
            }
        });
    }

    /// Cuts panels until each task has its share.
    fn panels(&self, work: Work<'_>, y: Panels<'_>, lanes: &mut [f32], lane: usize) {
        let own = y.own();
        let all = self.problem.k.div_ceil(PANEL);
        if own.len() > all.div_ceil(PANEL_TASKS) {
            // Halves of whole shares, so that a lane of scratch is there for each.
            let share = all.div_ceil(PANEL_TASKS);
            let shares = own.len().div_ceil(share);
            let (left, right) = y.split_at(own.start + shares / 2 * share);
            let (own, others) = lanes.split_at_mut(shares / 2 * lane);
            rayon::join(
                || self.panels(work, left, own, lane),
                || self.panels(work, right, others, lane),
            );
            return;
        }
        let Work { instructions, x, weight, turned, epilogue } = work;
        let (n, scale) = (self.problem.n, epilogue.scale);
        let lane = &mut lanes[..lane];
        let winograd = &self.winograd;
        winograd.run_panels(instructions, n, x, weight, scale, turned, epilogue, y, lane);
    }

    /// Numbers of a pooled sample.
    fn pooled_sample(&self, pool: Pool) -> Option<usize> {
        let (rows, columns) = pool.size(self.problem.p, self.problem.q)?;
        Some(padded(self.problem.k) * rows * columns)
    }

    /// Pools one sample.
    fn pool(&self, instructions: Instructions, pool: Pool, before: &[f32], y: &mut [f32]) {
        let (p, q) = (self.problem.p, self.problem.q);
        let Some((rows, width)) = pool.size(p, q) else { return };
        let blocks = y.chunks_exact_mut(rows * width * BLOCK).zip(before.chunks(p * q * BLOCK));
        for (y, x) in blocks {
            let rows = 0..rows;
            instructions.run(pool::Rows { pool, shape: (p, q), x, first: 0, rows, y, width });
        }
    }

    /// Partial gradients, each of some samples, and tasks that each of them is cut into.
    fn partials(&self) -> (usize, usize) {
        let lanes = (PARTIALS / self.winograd.partial().max(1)).clamp(1, TASKS);
        let lanes = lanes.min(self.problem.n.max(1));
        let panels = self.problem.k.div_ceil(PANEL).max(1);
        (lanes, (PANEL_TASKS / lanes).clamp(1, panels))
    }

    /// Numbers of scratch for the gradient of the weights, and never fewer for more samples.
    pub(super) fn gradient_scratch(&self) -> usize {
        self.most(Self::own_gradient_scratch)
    }

    fn own_gradient_scratch(&self) -> usize {
        let partial = self.winograd.partial().next_multiple_of(LINE);
        let lane = self.winograd.gradient_lane().next_multiple_of(LINE);
        let (lanes, splits) = self.partials();
        self.blocked() + lanes * partial + (lanes * splits).max(PANEL_TASKS) * lane
    }

    /// Adds to `dw`.
    pub(super) fn gradient(
        &self,
        instructions: Instructions,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (winograd, n) = (&self.winograd, self.problem.n);
        let (blocks, scratch) = scratch.split_at_mut(self.blocked());
        let x = self.in_blocks(x, blocks);
        let (lanes, splits) = self.partials();
        let per = n.div_ceil(lanes).max(1);
        let lanes = n.div_ceil(per);
        let (partial, lane) = (
            winograd.partial().next_multiple_of(LINE),
            winograd.gradient_lane().next_multiple_of(LINE),
        );
        let (partials, scratch) = scratch.split_at_mut(lanes * partial);
        let (x_sample, dy_sample) = (x.len() / n.max(1), dy.len() / n.max(1));
        let panels = self.problem.k.div_ceil(PANEL).div_ceil(splits).max(1);
        let tasks = partials.par_chunks_mut(partial).zip(scratch.par_chunks_mut(splits * lane));
        tasks.enumerate().for_each(|(at, (partial, scratch))| {
            let samples = at * per..n.min((at + 1) * per);
            let count = samples.len();
            let part = |of: &Range<usize>, sample: usize| of.start * sample..of.end * sample;
            let (x, dy) = (&x[part(&samples, x_sample)], &dy[part(&samples, dy_sample)]);
            let partial = &mut partial[..winograd.partial()];
            partial.fill(0.0);
            let pieces = partial.par_chunks_mut(panels * winograd.panel_weights());
            pieces.zip(scratch.par_chunks_mut(lane)).enumerate().for_each(
                |(split, (partial, lane))| {
                    let first = split * panels;
                    winograd.gradient(instructions, count, x, dy, first, partial, lane);
                },
            );
        });
        // The partial sums, in order.
        let partials = &*partials;
        dw.par_chunks_mut(winograd.panel_weights()).enumerate().for_each(|(panel, dw)| {
            for partial in partials.chunks_exact(partial) {
                let first = panel * winograd.panel_weights();
                let past = winograd.partial().min(first + winograd.panel_weights());
                winograd.join(instructions, panel, &partial[first..past], dw);
            }
        });
    }
}

/// Adds the sums of `dy` over samples and places to the gradient of the bias.
pub(super) fn bias(instructions: Instructions, problem: &Problem, dy: &[f32], db: &mut [f32]) {
    let plane = problem.p * problem.q * BLOCK;
    let stride = padded(problem.k) * problem.p * problem.q;
    db.par_chunks_mut(BLOCK).enumerate().for_each(|(block, db)| {
        for sample in dy.chunks_exact(stride) {
            let mut sums = [0.0; BLOCK];
            let dy = &sample[block * plane..(block + 1) * plane];
            instructions.run(Sum { dy, sums: &mut sums });
            db.iter_mut().zip(sums).for_each(|(db, sum)| *db += sum);
        }
    });
}

/// Sums of a block over its places.
struct Sum<'a> {
    dy: &'a [f32],
    sums: &'a mut [f32; BLOCK],
}

impl Kernel for Sum<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let s = isa.narrow();
        let mut sums = [s.zero(); 4];
        let mut groups = self.dy.chunks_exact(4 * BLOCK);
        for group in groups.by_ref() {
            for (sum, dy) in sums.iter_mut().zip(group.chunks_exact(BLOCK)) {
                *sum = s.add(*sum, s.load(dy));
            }
        }
        for (sum, dy) in sums.iter_mut().zip(groups.remainder().chunks_exact(BLOCK)) {
            *sum = s.add(*sum, s.load(dy));
        }
        let [a, b, c, d] = sums;
        s.store(s.add(s.add(a, b), s.add(c, d)), self.sums);
    }
}

impl Epilogue<'_> {
    /// Nothing.
    pub(super) const NONE: Self = Self { scale: &[], shift: &[], clamp: Clamp::NONE };
}
