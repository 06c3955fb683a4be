//! Convolution: which algorithm runs, in what pieces, and what is fused with it.
//!
//! A [`Conv`] is made of a layer, the shape of its input and the layout that the input lies in
//! (plain or in blocks of eight channels). Its output always lies in blocks, and so does the
//! gradient of it; the gradient of the input lies as the input does.
//!
//! | call | scratch |
//! |---|---|
//! | [`forward`](Conv::forward) without pool, in training or evaluation | [`forward_scratch`](Conv::forward_scratch)`(None)` |
//! | `forward` with a pool, in evaluation | `forward_scratch(Some(pool))` |
//! | [`backward`](Conv::backward) | [`backward_scratch`](Conv::backward_scratch) |
//!
//! Scratch is in numbers, never more for fewer samples, and may hold anything.
//!
//! Forward, each output goes through the [`Epilogue`] while it is in registers: a factor for each
//! filter (folded into the weights), a summand (a bias, or what a normalisation makes of it) and
//! an activation. With a [`Pool`] the outputs of a few rows are pooled while they are in the
//! cache, and only what is pooled is written: `y` then has the pool's shape.

mod direct;
mod pool;
mod problem;
mod transformed;
mod winograd;

use core::ops::Range;

use rayon::prelude::*;
use sepal_core::arena::Layout;
use sepal_core::layer::Conv2d;
use sepal_core::shape::Shape;

pub(crate) use pool::Pool;
pub(crate) use problem::{Clamp, Epilogue, Problem};

use self::direct::{Direct, Work};
use self::transformed::Transformed;
use crate::arch::Instructions;
use crate::arch::direct::{Field, PANEL};
use crate::blocks::{BLOCK, padded};

/// How exactly convolutions are computed.
///
/// ```
/// use sepal_cpu::Precision;
/// assert_eq!(Precision::default(), Precision::Fast);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Precision {
    /// As sums of products, each rounded as such.
    Exact,
    /// Kernels of 3x3, 5x5, 1x3 and 3x1 with stride 1 may be computed by Winograd's minimal
    /// filtering (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016), where
    /// that is faster. The error is then at most the constant of the kernel and the tile, of which
    /// [`ERROR_4X4`](Self::ERROR_4X4) and [`ERROR_2X4`](Self::ERROR_2X4) are the largest.
    #[default]
    Fast,
}

impl Precision {
    /// The largest error of a fast convolution of 3x3 in tiles of 4x4 outputs, as a part of the
    /// largest output, for normal data and up to 512 channels.
    pub const ERROR_4X4: f32 = 1e-5;

    /// The same in tiles of 2x2.
    pub const ERROR_2X2: f32 = 2e-6;

    /// The same of 5x5, in tiles of 2x4.
    pub const ERROR_2X4: f32 = 1e-5;

    /// The same of 1x3 and 3x1, in tiles of 1x6 and 6x1.
    pub const ERROR_1X6: f32 = 5e-6;
}

/// Tasks that a pass is cut into, where the shape has as many.
const TASKS: usize = 16;

/// Numbers that all partial gradients of the weights may take together: 16 MiB. Larger weights
/// have fewer, of which tasks then share one.
const PARTIALS: usize = 1 << 22;

/// Places of a task, at least, where there are as many.
const PLACES: usize = 256;

/// Numbers of a cache line.
const LINE: usize = 16;

/// Numbers that a task's outputs may take before they are pooled.
const POOLED: usize = 1 << 16;

/// A convolution with everything that follows from its shapes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    problem: Problem,
    /// The same with images of one row, where rows do not matter.
    flat: Problem,
    /// Whether x lies in the reference's layout.
    plain: bool,
    precision: Precision,
}

/// How the output of a pass is cut into tasks: along samples, panels of filters, and rows, or the
/// columns of a single row.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// All samples, panels, and rows or columns.
    all: [usize; 3],
    /// Those of a task.
    step: [usize; 3],
}

/// What a task is given.
type Ranges = [Range<usize>; 3];

impl Cut {
    const fn tasks(&self, axis: usize) -> usize {
        self.all[axis].div_ceil(self.step[axis])
    }

    /// Runs `work` on every task with its part of `y` and a lane of scratch of its own. `unit`
    /// says how much of the field a step of each axis is.
    fn run<F>(&self, y: Field<'_>, unit: [usize; 3], lanes: &mut [f32], lane: usize, work: &F)
    where
        F: Fn(Ranges, Field<'_>, &mut [f32]) + Sync,
    {
        let tasks = [0, 1, 2].map(|axis| 0..self.tasks(axis));
        self.part(tasks, y, unit, lanes, lane, work);
    }

    fn part<F>(
        &self,
        tasks: Ranges,
        y: Field<'_>,
        unit: [usize; 3],
        lanes: &mut [f32],
        lane: usize,
        work: &F,
    ) where
        F: Fn(Ranges, Field<'_>, &mut [f32]) + Sync,
    {
        let Some(axis) = (0..3).find(|axis| tasks[*axis].len() > 1) else {
            let place = |axis: usize| {
                let at = |task: usize| (task * self.step[axis]).min(self.all[axis]);
                at(tasks[axis].start)..at(tasks[axis].end)
            };
            return work([place(0), place(1), place(2)], y, &mut lanes[..lane]);
        };
        let Range { start, end } = tasks[axis];
        let middle = start.midpoint(end);
        let (mut left, mut right) = (tasks.clone(), tasks);
        (left[axis], right[axis]) = (start..middle, middle..end);
        let (y_left, y_right) = y.split_at(axis, (middle - start) * self.step[axis] * unit[axis]);
        let count = left.iter().map(Range::len).product::<usize>();
        let (lanes_left, lanes_right) = lanes.split_at_mut(count * lane);
        rayon::join(
            || self.part(left, y_left, unit, lanes_left, lane, work),
            || self.part(right, y_right, unit, lanes_right, lane, work),
        );
    }
}

/// Rows and columns, of which there are so many: of all but a single row, some are taken.
fn outer(places: Range<usize>, rows: usize, columns: usize) -> (Range<usize>, Range<usize>) {
    if rows == 1 { (0..1, places) } else { (places, 0..columns) }
}

/// Scratch from the first cache line on, so that panels of weights begin with one.
fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skipped = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    scratch.get_mut(skipped..).unwrap_or_default()
}

impl Conv {
    /// A convolution of inputs of shape `x` that lie in `layout`; `None` where the layer cannot
    /// take them.
    pub(crate) fn new(
        layer: Conv2d,
        x: Shape,
        layout: Layout,
        precision: Precision,
    ) -> Option<Self> {
        let problem = Problem::new(layer, x)?;
        let Problem { kernel, stride, pad, h, w, .. } = problem;
        let flat = match kernel == (1, 1) && stride == (1, 1) && pad == (0, 0) {
            true => Problem { h: 1, w: h * w, p: 1, q: h * w, ..problem },
            false => problem,
        };
        Some(Self { problem, flat, plain: layout != Layout::Nchw8c, precision })
    }

    /// The forward pass, and the gradient of the weights, in the Winograd domain.
    fn transformed(&self) -> Option<Transformed> {
        let fast = self.precision == Precision::Fast;
        fast.then(|| Transformed::forward(&self.problem, self.plain))?
    }

    /// The pass from dy to dx in the Winograd domain.
    fn transformed_back(&self) -> Option<Transformed> {
        let fast = self.precision == Precision::Fast && !self.plain;
        fast.then(|| Transformed::turned(&self.problem))?
    }

    /// Samples of a task of a pass whose output has `places` places a sample.
    fn samples(&self, places: usize) -> usize {
        let n = self.problem.n.max(1);
        n.div_ceil(TASKS).max(PLACES.div_ceil(places.max(1)).min(n))
    }

    /// How a pass is cut whose output has such rows and columns, or only along samples and panels
    /// (`whole`); and how much of a field a sample, a panel, and a row or column are.
    fn cut(
        &self,
        direct: &Direct,
        (rows, columns): (usize, usize),
        whole: bool,
    ) -> (Cut, [usize; 3]) {
        let n = self.problem.n;
        let (places, each) = if rows == 1 { (columns, 1) } else { (rows, columns.max(1)) };
        let all = [n, if direct.aligned() { direct.panels() } else { 1 }, places];
        let mut step = [self.samples(rows * columns), all[1], places.max(1)];
        let mut tasks = n.div_ceil(step[0]).max(1);
        if direct.aligned() && direct.groups() == 1 {
            step[1] = all[1].div_ceil((TASKS / tasks).clamp(1, all[1]));
            tasks *= all[1].div_ceil(step[1]);
        }
        if direct.aligned() && !whole {
            let least = PLACES.div_ceil(each).min(places);
            step[2] = places.div_ceil((TASKS / tasks).max(1)).max(least).max(1);
        }
        (Cut { all, step }, [1, PANEL / BLOCK, each * BLOCK])
    }

    /// Tasks of a pass with such rows and columns at most, never fewer for more samples.
    fn tasks(&self, direct: &Direct, (rows, columns): (usize, usize)) -> usize {
        TASKS.min(self.problem.n * direct.panels() * rows * columns).max(1)
    }

    fn direct(&self, pool: Option<Pool>) -> Direct {
        let p = if pool.is_some() { &self.problem } else { &self.flat };
        Direct::forward(p, self.samples(p.p * p.q), self.plain)
    }

    fn turned(&self) -> impl Iterator<Item = Direct> + Clone {
        let p = &self.flat;
        Direct::backward(p, self.samples(p.h * p.w), self.plain)
    }

    /// Rows of the output of a pool that a task makes at a time, and the rows of y that they
    /// read, at most.
    fn pooled(&self, pool: Pool) -> (usize, usize) {
        let (window, p) = (pool.window(), &self.problem);
        let (kernel, stride) = (usize::from(window.kernel.0), usize::from(window.stride.0));
        let fit = POOLED / (padded(p.k) * p.q).max(1);
        let rows = (fit.saturating_sub(kernel) / stride.max(1) + 1).min(p.p);
        (rows, ((rows - 1) * stride + kernel).min(p.p))
    }

    /// Numbers of scratch of a forward pass, with a pool or without.
    pub(crate) fn forward_scratch(&self, pool: Option<Pool>) -> usize {
        let (direct, p) = (self.direct(pool), &self.problem);
        let pooled = pool.map_or(0, |pool| self.pooled(pool).1 * p.q * padded(p.k));
        let lane = direct.lane() + pooled.next_multiple_of(LINE);
        // A pool may have more places than what it reads.
        let places = pool.and_then(|pool| pool.size(p.p, p.q)).unwrap_or(direct.places());
        let own = direct.packed().next_multiple_of(LINE) + self.tasks(&direct, places) * lane;
        // With fewer samples than these, the direct convolution may be the faster one.
        let transformed = self.transformed().map_or(0, |transformed| transformed.scratch(pool));
        LINE + own.max(transformed)
    }

    /// Packs the weights, on all threads.
    fn pack(
        instructions: Instructions,
        direct: &Direct,
        weight: &[f32],
        scale: &[f32],
        packed: &mut [f32],
    ) {
        let group = direct.packed() / direct.groups();
        let groups = packed.par_chunks_mut(group.max(1)).enumerate();
        groups.for_each(|(group, packed)| {
            let panels = packed.par_chunks_mut(direct.panel().max(1)).enumerate();
            panels.for_each(|(panel, packed)| {
                direct.pack(instructions, weight, scale, group, panel, packed)
            });
        });
    }

    /// Writes `y` in blocks: the output, or what the pool makes of it.
    #[expect(clippy::too_many_arguments, reason = "tensors, what is fused, and scratch")]
    pub(crate) fn forward(
        &self,
        instructions: Instructions,
        x: &[f32],
        weight: &[f32],
        epilogue: &Epilogue<'_>,
        pool: Option<Pool>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let scratch = aligned(scratch);
        if let Some(transformed) = self.transformed() {
            return transformed.run(instructions, x, weight, false, epilogue, pool, y, scratch);
        }
        let (direct, p) = (self.direct(pool), self.problem);
        let (packed, lanes) = scratch.split_at_mut(direct.packed().next_multiple_of(LINE));
        let packed = &mut packed[..direct.packed()];
        Self::pack(instructions, &direct, weight, epilogue.scale, packed);
        let packed = &*packed;
        let x_sample = x.len() / p.n.max(1);
        let x = |samples: &Range<usize>| &x[samples.start * x_sample..samples.end * x_sample];
        let blocks = p.k.div_ceil(BLOCK);
        let Some(pool) = pool else {
            let p = self.flat;
            let y = Field::new(y, p.n, blocks, p.p * p.q * BLOCK);
            let (cut, unit) = self.cut(&direct, (p.p, p.q), false);
            cut.run(y, unit, lanes, direct.lane(), &|[samples, panels, places], mut y, lane| {
                let (rows, columns) = outer(places, p.p, p.q);
                let work = Work { x: x(&samples), packed, epilogue, panels, rows, columns };
                direct.run(instructions, &work, &mut y, lane);
            });
            return;
        };
        let Some((height, width)) = pool.size(p.p, p.q) else { return };
        let (rows, reach) = self.pooled(pool);
        let y = Field::new(y, p.n, blocks, height * width * BLOCK);
        let own = (reach * p.q * padded(p.k)).next_multiple_of(LINE);
        let (cut, unit) = self.cut(&direct, (height, width), height == 1);
        let lane = direct.lane() + own;
        cut.run(y, unit, lanes, lane, &|[samples, panels, own_rows], mut y, lane| {
            let (before, lane) = lane.split_at_mut(own);
            let blocks = y.dim()[1];
            // A single row is never split.
            let own_rows = if height == 1 { 0..1 } else { own_rows };
            for (at, sample) in samples.enumerate() {
                for first in own_rows.clone().step_by(rows) {
                    let pooled = first..own_rows.end.min(first + rows);
                    let read = pool.reads(pooled.clone(), p.p);
                    let mut before = Field::new(before, 1, blocks, read.len() * p.q * BLOCK);
                    let work = Work {
                        x: x(&(sample..sample + 1)),
                        packed,
                        epilogue,
                        panels: panels.clone(),
                        rows: read.clone(),
                        columns: 0..p.q,
                    };
                    direct.run(instructions, &work, &mut before, lane);
                    for block in 0..blocks {
                        instructions.run(pool::Rows {
                            pool,
                            shape: (p.p, p.q),
                            x: before.block(0, block),
                            first: read.start,
                            rows: pooled.clone(),
                            y: &mut y.block(at, block)[(first - own_rows.start) * width * BLOCK..],
                            width,
                        });
                    }
                }
            }
        });
    }

    /// Partial gradients of the weights at most, and splits of each among channels, for a batch of
    /// `n`.
    fn partials(&self, direct: &Direct, n: usize) -> (usize, usize) {
        let whole = direct.partial(direct.splits()).max(1);
        let lanes = (PARTIALS / whole).clamp(1, TASKS).min(n.max(1));
        (lanes, (TASKS / lanes).clamp(1, direct.splits()))
    }

    /// The direct convolution of the gradient of the weights for a batch of `n`, units of a split
    /// and numbers of a task: sums of dy, a partial gradient, and scratch.
    fn gradient(&self, n: usize) -> (Direct, usize, [usize; 3]) {
        let p = Problem { n, ..self.flat };
        let all = Direct::weights(&p, 1, self.plain);
        let (lanes, splits) = self.partials(&all, n);
        let direct = Direct::weights(&p, n.div_ceil(lanes), self.plain);
        let units = all.splits().div_ceil(splits);
        let units = if direct.splits() == 1 { direct.units() } else { units };
        let sums = direct.groups() * padded(p.k / direct.groups());
        let numbers = [sums, direct.partial(units), direct.gradient_lane()];
        (direct, units, numbers.map(|numbers| numbers.next_multiple_of(LINE)))
    }

    /// Numbers of scratch of a backward pass.
    pub(crate) fn backward_scratch(&self) -> usize {
        let weights = |n: usize| {
            let (direct, _, numbers) = self.gradient(n);
            let (lanes, splits) = self.partials(&direct, n);
            lanes * splits * numbers.iter().sum::<usize>()
        };
        let least = self.problem.n.min(TASKS);
        let weights = (1..=least).chain([self.problem.n]).map(weights).max().unwrap_or(0);
        let data = self.turned().map(|direct| {
            // Cut as all of dx is, of which this may be no place.
            let lanes = self.tasks(&direct, (self.flat.h, self.flat.w)) * direct.lane();
            direct.packed().next_multiple_of(LINE) + lanes
        });
        let direct = weights.max(data.max().unwrap_or(0));
        let data = self.transformed_back().map_or(0, |transformed| transformed.scratch(None));
        let weights = self.transformed().map_or(0, |transformed| transformed.gradient_scratch());
        LINE + direct.max(data).max(weights)
    }

    /// Adds to `dw` (unless it is empty) and `db` (empty without bias), overwrites `dx` where it is
    /// wanted. `dy` lies in blocks, `x` and `dx` in the layout of the input.
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub(crate) fn backward(
        &self,
        instructions: Instructions,
        x: &[f32],
        weight: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
        scratch: &mut [f32],
    ) {
        let scratch = aligned(scratch);
        match (dx, self.transformed_back()) {
            (Some(dx), Some(transformed)) => {
                let epilogue = &Epilogue::NONE;
                transformed.run(instructions, dy, weight, true, epilogue, None, dx, scratch);
            }
            (Some(dx), None) => self.backward_data(instructions, weight, dy, dx, scratch),
            _ => {}
        }
        match self.transformed() {
            _ if dw.is_empty() => {}
            Some(transformed) => {
                transformed.gradient(instructions, x, dy, dw, scratch);
                transformed::bias(instructions, &self.problem, dy, db);
            }
            None => self.backward_weights(instructions, x, dy, dw, db, scratch),
        }
    }

    fn backward_data(
        &self,
        instructions: Instructions,
        weight: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        scratch: &mut [f32],
    ) {
        let p = self.flat;
        let dy_sample = dy.len() / p.n.max(1);
        let epilogue = &Epilogue::NONE;
        for direct in self.turned() {
            let (packed, lanes) = scratch.split_at_mut(direct.packed().next_multiple_of(LINE));
            let packed = &mut packed[..direct.packed()];
            Self::pack(instructions, &direct, weight, &[], packed);
            let packed = &*packed;
            let (blocks, len) = match self.plain {
                true => (1, p.c * p.h * p.w),
                false => (p.c.div_ceil(BLOCK), p.h * p.w * BLOCK),
            };
            let dx = Field::new(dx, p.n, blocks, len);
            // Classes of places lie between each other: only one has all rows.
            let whole = p.stride != (1, 1);
            let (cut, unit) = self.cut(&direct, (p.h, p.w), whole);
            cut.run(dx, unit, lanes, direct.lane(), &|[samples, panels, places], mut dx, lane| {
                let x = &dy[samples.start * dy_sample..samples.end * dy_sample];
                let (height, width) = direct.places();
                let (rows, columns) = match whole {
                    true => (0..height, 0..width),
                    false => outer(places, height, width),
                };
                let work = Work { x, packed, epilogue, panels, rows, columns };
                direct.run(instructions, &work, &mut dx, lane);
            });
        }
    }

    fn backward_weights(
        &self,
        instructions: Instructions,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        db: &mut [f32],
        scratch: &mut [f32],
    ) {
        let p = self.problem;
        let (direct, step, [sums, partial, lane]) = self.gradient(p.n);
        let (lanes, _) = self.partials(&direct, p.n);
        let splits = direct.units().div_ceil(step.max(1));
        let per = p.n.div_ceil(lanes).max(1);
        let lanes = p.n.div_ceil(per);
        let (x_sample, dy_sample) = (x.len() / p.n.max(1), dy.len() / p.n.max(1));
        let units = |split: usize| split * step..direct.units().min((split + 1) * step);
        let task = sums + partial + lane;
        let scratch = &mut scratch[..lanes * splits * task];
        scratch.par_chunks_mut(task).enumerate().for_each(|(at, scratch)| {
            let (first, split) = (at / splits * per, at % splits);
            let past = p.n.min(first + per);
            let (sums, rest) = scratch.split_at_mut(sums);
            let (partial, lane) = rest.split_at_mut(partial);
            sums.fill(0.0);
            partial.fill(0.0);
            let sums = if db.is_empty() { &mut [] } else { sums };
            let x = &x[first * x_sample..past * x_sample];
            let dy = &dy[first * dy_sample..past * dy_sample];
            let units = units(split);
            direct.gradient(instructions, past - first, x, dy, units, partial, sums, lane);
        });
        // The partial sums, in order.
        let scratch = &*scratch;
        let filters = p.k / direct.groups();
        let groups = dw.par_chunks_mut((filters * direct.filter()).max(1)).enumerate();
        groups.for_each(|(group, dw)| {
            let panels = dw.par_chunks_mut((PANEL * direct.filter()).max(1)).enumerate();
            panels.for_each(|(panel, dw)| {
                for (at, task) in scratch.chunks_exact(task).enumerate() {
                    let partial = &task[sums..sums + partial];
                    direct.join(instructions, units(at % splits), partial, group, panel, dw);
                }
            });
        });
        for task in scratch.chunks_exact(task) {
            let groups = db.chunks_mut(filters.max(1)).zip(task.chunks(padded(filters).max(1)));
            for (db, sums) in groups {
                db.iter_mut().zip(sums).for_each(|(db, sum)| *db += sum);
            }
        }
    }
}

#[cfg(test)]
mod tests;
