//! Winograd convolution: kernels of 3x3, 5x5, 1x3 and 3x1 with stride 1.
//!
//! The kernels and the names U, V and M are those of [`arch::winograd`](crate::arch::winograd).
//! Tiles of all samples of a task are counted through and taken a block at a time: V of the block
//! is made once, and then, for each panel of filters, M and from it y. V and M of a block stay in
//! the second-level cache, U of the panels streams past. Where all tiles are one block and U is
//! large, as in the last stages of a deep net, tasks take panels of all samples instead and make
//! U of a panel just before they use it.
//!
//! Every output is one sum over channels in their order, so its bits depend neither on the samples
//! beside it nor on how tasks are cut.
//!
//! With normal data, the largest error of each form is at most a part of the largest output that
//! [`Precision`](super::Precision) has as a constant.

use core::ops::Range;

use super::problem::{Epilogue, Problem};
use crate::arch::Instructions;
use crate::arch::winograd::{
    Correlate, Form, Gather, Grid, Groups, Join, Multiply, PANEL, PRODUCTS, Panels, Rows, STRIP,
    Scatter, Spread, Unweigh, Weigh,
};

/// Channels of a block.
const BLOCK: usize = 8;

/// Numbers of a cache line.
const LINE: usize = 16;

/// Numbers that V and M of a block of tiles may take: what fits into a second-level cache of
/// 1 MiB.
const BLOCK_LEN: usize = 240 << 10;

/// The same for the gradient of the weights, which is the better the more tiles are summed before
/// the way back to weights.
const GRADIENT_LEN: usize = 400 << 10;

/// Numbers that V of all tiles may take where tasks have panels.
const PANELS_LEN: usize = 700 << 10;

/// Tiles that a block has at least, where there are as many: U is read once for each block.
const TILES: usize = 32;

/// Multiplications of the products that take as long as one of the plain sum: measured.
const PLAIN: f64 = 1.2;

/// Multiplications of the products that take as long as the transforms of a block of a tile, and
/// as that of the weights of a channel and filter: measured.
const fn transforms(form: Form) -> (f64, f64) {
    match form {
        Form::Four => (2500.0, 300.0),
        Form::Two => (700.0, 180.0),
        Form::Five => (4500.0, 2500.0),
        Form::Row | Form::Column => (500.0, 125.0),
    }
}

/// A Winograd convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Winograd {
    grid: Grid,
    samples: usize,
    /// Channels and filters.
    c: usize,
    k: usize,
}

/// Numbers that a frequency has in U, V or M, of `rows` rows of `len`: an odd number of lines, or
/// all frequencies of a tile would lie in few sets of the first-level cache.
const fn stride(rows: usize, len: usize) -> usize {
    (rows.saturating_mul(len).div_ceil(LINE) | 1).saturating_mul(LINE)
}

impl Winograd {
    /// `None` where the kernel is not that of the form, or has strides, groups, or more padding
    /// than the taps after the first.
    pub(crate) fn new(problem: &Problem, form: Form) -> Option<Self> {
        let Problem { n, c, h, w, k, p, q, kernel, stride, pad, groups } = *problem;
        let applies = kernel == form.kernel() && stride == (1, 1) && groups == 1;
        let more = (kernel.0.checked_sub(1)?, kernel.1.checked_sub(1)?);
        let fits = p + more.0 == h + 2 * pad.0 && q + more.1 == w + 2 * pad.1;
        let fits = fits && pad.0 <= more.0 && pad.1 <= more.1;
        let some = [n, c, k, p, q].iter().all(|&size| size > 0);
        let grid = Grid { form, input: (h, w), output: (p, q), pad };
        (applies && fits && some).then_some(Self { grid, samples: n, c, k })
    }

    /// All that apply to a problem.
    pub(crate) fn every(problem: &Problem) -> impl Iterator<Item = Self> {
        Form::ALL.into_iter().filter_map(|form| Self::new(problem, form))
    }

    /// What is fastest for a problem; `None` where that is the plain sum, or no Winograd
    /// convolution applies.
    pub(crate) fn best(problem: &Problem) -> Option<Self> {
        let fastest = Self::every(problem).min_by(|a, b| a.cost().total_cmp(&b.cost()))?;
        let sizes = [problem.n, problem.p, problem.q, fastest.weights()];
        let plain = sizes.map(|size| size as f64).iter().product::<f64>();
        let plain = PLAIN * plain * problem.k.next_multiple_of(BLOCK) as f64;
        (fastest.cost() < plain).then_some(fastest)
    }

    /// The time that it takes, in multiplications of the products. It is linear in the samples, so
    /// that what pays for some samples pays for more, and scratch for many suffices for fewer.
    fn cost(&self) -> f64 {
        let [c, k] = [self.c, self.k].map(|size| size.next_multiple_of(BLOCK) as f64);
        let (tile, pair) = transforms(self.grid.form);
        let tiles = self.samples as f64 * self.each() as f64;
        let products = tiles * self.frequencies() as f64 * c * k;
        products + tile * tiles * (c + k) / BLOCK as f64 + pair * c * k
    }

    const fn frequencies(&self) -> usize {
        self.grid.form.frequencies()
    }

    /// Channels and taps of a filter.
    const fn weights(&self) -> usize {
        self.c * self.grid.form.taps()
    }

    const fn blocks(&self) -> usize {
        self.c.div_ceil(BLOCK)
    }

    /// Filters of a panel, a multiple of 8.
    const fn width(&self, panel: usize) -> usize {
        let rest = self.k.next_multiple_of(BLOCK) - panel * PANEL;
        if rest < PANEL { rest } else { PANEL }
    }

    /// Numbers of a frequency in U of a panel of some filters.
    const fn u_stride(&self, width: usize) -> usize {
        stride(self.blocks() * BLOCK, width)
    }

    /// Numbers of U of a whole panel.
    pub(crate) const fn panel(&self) -> usize {
        self.frequencies().saturating_mul(self.u_stride(PANEL))
    }

    /// Numbers of U.
    pub(crate) const fn packed(&self) -> usize {
        let last = match self.k.next_multiple_of(BLOCK) % PANEL {
            0 => 0,
            width => self.frequencies().saturating_mul(self.u_stride(width)),
        };
        (self.k.next_multiple_of(BLOCK) / PANEL).saturating_mul(self.panel()).saturating_add(last)
    }

    /// Tiles of a block that takes about `len` numbers.
    fn tiles(&self, len: usize) -> usize {
        let tile = self.frequencies() * (self.blocks() * BLOCK + PANEL);
        (len / tile).max(TILES).min(self.all()).next_multiple_of(2)
    }

    /// Tiles of a sample.
    pub(crate) const fn each(&self) -> usize {
        self.grid.len()
    }

    /// Tiles of all samples.
    const fn all(&self) -> usize {
        self.samples.saturating_mul(self.each())
    }

    /// Numbers of scratch for a running task.
    pub(crate) fn lane(&self) -> usize {
        self.block_lane(self.tiles(BLOCK_LEN))
    }

    /// Numbers of scratch for a block of tiles.
    fn block_lane(&self, tiles: usize) -> usize {
        let (v, m) = (stride(tiles, self.blocks() * BLOCK), stride(tiles, PANEL));
        self.frequencies().saturating_mul(v.saturating_add(m)).saturating_add(STRIP)
    }

    /// Writes U of some panels, from panel `first` on: as many as `packed` holds, each of
    /// [`panel`](Self::panel) numbers but the last.
    ///
    /// `weight` is (K, C, R, S). For backward data (`transposed`) this is the convolution from dy
    /// to dx, and so `weight` is (C, K, R, S) in the names used here, and its taps are turned
    /// round. `scale` has a factor for each of the first axis, or is empty.
    pub(crate) fn pack(
        &self,
        instructions: Instructions,
        weight: &[f32],
        scale: &[f32],
        transposed: bool,
        first: usize,
        packed: &mut [f32],
    ) {
        assert!(weight.len() >= self.k * self.weights());
        for (panel, u) in (first..).zip(packed.chunks_mut(self.panel())) {
            let width = self.width(panel);
            instructions.run(Weigh {
                form: self.grid.form,
                weight,
                transposed,
                scale,
                channels: self.c,
                filters: self.k,
                panel,
                width,
                u,
                stride: self.u_stride(width),
            });
        }
    }

    /// Writes y of some whole samples. `packed` has all panels.
    #[expect(clippy::too_many_arguments, reason = "what a convolution reads and writes")]
    pub(crate) fn run(
        &self,
        instructions: Instructions,
        samples: usize,
        x: &[f32],
        packed: &[f32],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        lane: &mut [f32],
    ) {
        let most = whole(self.tiles(BLOCK_LEN), instructions.run(Rows));
        let mut y = self.panels(samples, y);
        for tiles in even(samples * self.grid.len(), most) {
            let mut block = self.spread(instructions, x, tiles, lane);
            for (panel, u) in packed.chunks(self.panel()).enumerate() {
                block.multiply(instructions, panel, u, epilogue, &mut y);
            }
        }
    }

    /// Whether tasks should have some panels of all samples each, with
    /// [`run_panels`](Self::run_panels), rather than some samples: where there is much U for few
    /// tiles, it is better made where it is used than kept.
    pub(crate) fn by_panels(&self) -> bool {
        let v = stride(self.all(), self.blocks() * BLOCK).saturating_mul(self.frequencies());
        v <= PANELS_LEN && self.packed() > 2 * v
    }

    /// Numbers of scratch for a running task of [`run_panels`](Self::run_panels).
    pub(crate) fn panels_lane(&self) -> usize {
        self.panel().saturating_add(self.block_lane(self.all().saturating_add(self.all() % 2)))
    }

    /// No less than [`panels_lane`](Self::panels_lane) for any smaller number of samples with
    /// which tasks would have panels; 0 where there is none.
    pub(crate) fn most_panels_lane(&self) -> usize {
        let v = PANELS_LEN.min(self.packed() / 2);
        let tiles = v / (self.frequencies() * self.blocks() * BLOCK);
        match tiles.min(self.all()) {
            0 => 0,
            tiles => self.panel().saturating_add(self.block_lane(tiles + tiles % 2)),
        }
    }

    /// The panels of y.
    pub(crate) fn panels<'a>(&self, samples: usize, y: &'a mut [f32]) -> Panels<'a> {
        Panels::new(self.grid, samples, self.k, y)
    }

    /// Writes some panels of y of all samples. The weights are those of [`pack`](Self::pack).
    #[expect(clippy::too_many_arguments, reason = "what a convolution reads and writes")]
    pub(crate) fn run_panels(
        &self,
        instructions: Instructions,
        samples: usize,
        x: &[f32],
        weight: &[f32],
        scale: &[f32],
        transposed: bool,
        epilogue: &Epilogue<'_>,
        mut y: Panels<'_>,
        lane: &mut [f32],
    ) {
        let (u, lane) = lane.split_at_mut(self.panel());
        let mut block = self.spread(instructions, x, 0..samples * self.grid.len(), lane);
        for panel in y.own() {
            self.pack(instructions, weight, scale, transposed, panel, u);
            block.multiply(instructions, panel, u, epilogue, &mut y);
        }
    }

    /// V of a block of tiles.
    fn spread<'a>(
        &'a self,
        instructions: Instructions,
        x: &[f32],
        tiles: Range<usize>,
        lane: &'a mut [f32],
    ) -> Block<'a> {
        let (grid, blocks) = (self.grid, self.blocks());
        let groups = Groups::new(tiles.len(), instructions.run(Rows));
        let v_stride = stride(groups.padded(), blocks * BLOCK);
        let (strip, lane) = lane.split_at_mut(STRIP);
        let (v, m) = lane.split_at_mut(self.frequencies() * v_stride);
        let range = tiles.clone();
        instructions.run(Spread {
            grid,
            blocks,
            x,
            tiles: range,
            groups,
            v,
            stride: v_stride,
            strip,
        });
        Block { winograd: self, tiles, groups, v, v_stride, m }
    }
}

/// A block of tiles whose V is there.
struct Block<'a> {
    winograd: &'a Winograd,
    tiles: Range<usize>,
    groups: Groups,
    v: &'a [f32],
    v_stride: usize,
    m: &'a mut [f32],
}

impl Block<'_> {
    /// Writes y of one panel.
    fn multiply(
        &mut self,
        instructions: Instructions,
        panel: usize,
        u: &[f32],
        epilogue: &Epilogue<'_>,
        y: &mut Panels<'_>,
    ) {
        let (groups, width) = (self.groups, self.winograd.width(panel));
        let m_stride = stride(groups.padded(), PANEL);
        instructions.run(Multiply {
            frequencies: self.winograd.frequencies(),
            groups,
            blocks: self.winograd.blocks(),
            v: self.v,
            v_stride: self.v_stride,
            u,
            u_stride: self.winograd.u_stride(width),
            width,
            m: self.m,
            m_stride,
        });
        let mut shift = [0.0; PANEL];
        for (to, from) in shift.iter_mut().zip(epilogue.shift.iter().skip(panel * PANEL)) {
            *to = *from;
        }
        instructions.run(Gather {
            grid: self.winograd.grid,
            panel,
            tiles: self.tiles.clone(),
            m: self.m,
            stride: m_stride,
            shift: &shift,
            slope: epilogue.clamp.slope,
            top: epilogue.clamp.top,
            y,
        });
    }
}

impl Winograd {
    /// Numbers of scratch for a running task of [`gradient`](Self::gradient).
    pub(crate) fn gradient_lane(&self) -> usize {
        PRODUCTS + self.block_lane(self.tiles(GRADIENT_LEN))
    }

    /// Numbers of a partial gradient.
    pub(crate) const fn partial(&self) -> usize {
        self.weights() * self.k.next_multiple_of(BLOCK)
    }

    /// Adds what some whole samples give to a partial gradient of the weights, in the order panel,
    /// channel, tap, filter: to some panels of it, from panel `first` on, each of
    /// [`panel_weights`](Self::panel_weights) numbers but the last.
    #[expect(clippy::too_many_arguments, reason = "what a convolution reads and writes")]
    pub(crate) fn gradient(
        &self,
        instructions: Instructions,
        samples: usize,
        x: &[f32],
        dy: &[f32],
        first: usize,
        partial: &mut [f32],
        lane: &mut [f32],
    ) {
        let (grid, blocks) = (self.grid, self.blocks());
        let (strip, lane) = lane.split_at_mut(STRIP);
        let (products, lane) = lane.split_at_mut(PRODUCTS);
        for tiles in even(samples * grid.len(), self.tiles(GRADIENT_LEN)) {
            let groups = Groups::one(tiles.len());
            let v_stride = stride(groups.padded(), blocks * BLOCK);
            let dy_stride = stride(groups.padded(), PANEL);
            let (v, scattered) = lane.split_at_mut(self.frequencies() * v_stride);
            let tiles = || tiles.clone();
            instructions.run(Spread {
                grid,
                blocks,
                x,
                tiles: tiles(),
                groups,
                v,
                stride: v_stride,
                strip,
            });
            for (panel, dw) in (first..).zip(partial.chunks_mut(self.panel_weights())) {
                let (first, width) = (panel * (PANEL / BLOCK), self.width(panel));
                instructions.run(Scatter {
                    grid,
                    blocks: self.k.div_ceil(BLOCK),
                    panel: first..first + width / BLOCK,
                    tiles: tiles(),
                    dy,
                    m: scattered,
                    stride: dy_stride,
                });
                for (block, dw) in dw.chunks_mut(BLOCK * grid.form.taps() * width).enumerate() {
                    instructions.run(Correlate {
                        frequencies: self.frequencies(),
                        tiles: tiles().len(),
                        block,
                        v,
                        v_stride,
                        dy: scattered,
                        dy_stride,
                        width,
                        products,
                    });
                    let channels = (self.c - block * BLOCK).min(BLOCK);
                    instructions.run(Unweigh { form: grid.form, channels, width, products, dw });
                }
            }
        }
    }

    /// Numbers of the gradient of the weights of a whole panel.
    pub(crate) const fn panel_weights(&self) -> usize {
        PANEL * self.weights()
    }

    /// Adds a panel of a partial gradient to the gradient of the weights of its filters, in the
    /// order (K, C, R, S): those from `panel * panel_weights()` on.
    pub(crate) fn join(
        &self,
        instructions: Instructions,
        panel: usize,
        partial: &[f32],
        dw: &mut [f32],
    ) {
        let width = self.width(panel);
        instructions.run(Join { width, weights: self.weights(), partial, dw });
    }
}

/// `most` as a multiple of `rows`, where it is not less than one.
const fn whole(most: usize, rows: usize) -> usize {
    if most < rows { most } else { most - most % rows }
}

/// 0..all in as few ranges as possible of at most `most`, all about as long.
fn even(all: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let most = all.div_ceil(all.div_ceil(most.max(1)).max(1)).max(1);
    (0..all).step_by(most).map(move |first| first..all.min(first + most))
}

#[cfg(test)]
mod tests {
    use sepal_core::layer::Conv2d;
    use sepal_core::shape::Shape;

    use super::*;
    use crate::check::values;
    use crate::conv::Precision;
    use crate::conv::problem::Clamp;

    fn error(form: Form) -> f64 {
        f64::from(match form {
            Form::Four => Precision::ERROR_4X4,
            Form::Two => Precision::ERROR_2X2,
            Form::Five => Precision::ERROR_2X4,
            Form::Row | Form::Column => Precision::ERROR_1X6,
        })
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    /// From (N, C, H, W) to blocks of eight channels.
    fn blocked(x: &[f32], c: usize, plane: usize) -> Vec<f32> {
        let blocks = c.div_ceil(BLOCK);
        let mut to = vec![0.0; x.len() / c * blocks * BLOCK];
        for (at, x) in x.iter().enumerate() {
            let (n, channel, place) = (at / plane / c, at / plane % c, at % plane);
            to[((n * blocks + channel / BLOCK) * plane + place) * BLOCK + channel % BLOCK] = *x;
        }
        to
    }

    fn largest(x: &[f64]) -> f64 {
        x.iter().fold(1.0, |largest, x| largest.max(x.abs()))
    }

    /// All channels, those of the padding too; no error is above `most`.
    fn compare(got: &[f32], expected: &[f64], c: usize, plane: usize, most: f64, what: &str) {
        let blocks = c.div_ceil(BLOCK);
        assert_eq!(got.len(), expected.len() / c * blocks * BLOCK, "{what}");
        for (at, got) in got.iter().enumerate() {
            let (block, place) = (at / BLOCK / plane, at / BLOCK % plane);
            let channel = block % blocks * BLOCK + at % BLOCK;
            if channel < c {
                let expected = expected[(block / blocks * c + channel) * plane + place];
                let error = (f64::from(*got) - expected).abs();
                assert!(error <= most, "{what}: at {at} {got} {expected}");
            } else {
                assert_eq!(got.to_bits(), 0, "{what}: padding at {at}");
            }
        }
    }

    fn conv(kernel: (usize, usize), k: usize, pad: (usize, usize)) -> Conv2d {
        let pair = |(a, b)| (u8::try_from(a).unwrap(), u8::try_from(b).unwrap());
        let (kernel, pad) = (pair(kernel), pair(pad));
        Conv2d { kernel, pad, bias: false, ..Conv2d::new(u32::try_from(k).unwrap(), 1) }
    }

    fn shape(n: usize, c: usize, h: usize, w: usize) -> Shape {
        let [n, c, h, w] = [n, c, h, w].map(|x| u32::try_from(x).unwrap());
        Shape::new(n, c, h, w)
    }

    /// The convolution from dy to dx.
    fn turned(p: Problem) -> Problem {
        let pad = (p.kernel.0 - 1 - p.pad.0, p.kernel.1 - 1 - p.pad.1);
        Problem { c: p.k, h: p.p, w: p.q, k: p.c, p: p.h, q: p.w, pad, ..p }
    }

    /// (N, C, H, W), K, padding.
    type Case = ([usize; 4], usize, (usize, usize));

    /// Every size of the lists with many others, and some by hand.
    fn cases(form: Form) -> Vec<Case> {
        const CHANNELS: [usize; 9] = [1, 3, 8, 9, 16, 17, 24, 33, 64];
        const SIDES: [usize; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16];
        let (r, s) = form.kernel();
        let mut cases = vec![
            ([1, 1, 1, 1], 1, (r / 2, s / 2)),
            ([3, 8, r, s], 8, (0, 0)),
            ([1, 16, 1, 16], 16, (r - 1, 0)),
            ([2, 8, 16, 1], 56, (0, s - 1)),
            ([2, 40, 9, 5], 40, (r / 2, s / 2)),
            // Tiles of several strips, of which some touch no padding.
            ([2, 16, 1, 75], 8, (r / 2, s / 2)),
            ([1, 8, 75, 1], 16, (r / 2, s / 2)),
        ];
        let mut state = 7u32;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for i in 0..66 {
            let (c, k) = (CHANNELS[i % 9], CHANNELS[(i / 9 + 4 * i) % 9]);
            let (h, w) = (SIDES[i % 11], SIDES[(i / 11 + 3 * i) % 11]);
            // From what leaves one output to what is allowed.
            let mut pad = |side: usize, taps: usize| {
                let least = taps.saturating_sub(side).div_ceil(2);
                least + draw(taps - least)
            };
            let pad = (pad(h, r), pad(w, s));
            cases.push(([1 + draw(3), c, h, w], k, pad));
        }
        cases
    }

    /// The cases of every form.
    fn all_cases() -> impl Iterator<Item = (Form, Case)> {
        Form::ALL.into_iter().flat_map(|form| cases(form).into_iter().map(move |case| (form, case)))
    }

    fn lane(winograd: &Winograd) -> Vec<f32> {
        vec![f32::NAN; winograd.lane()]
    }

    fn packed(
        winograd: &Winograd,
        set: Instructions,
        weight: &[f32],
        scale: &[f32],
        transposed: bool,
    ) -> Vec<f32> {
        let mut packed = vec![f32::NAN; winograd.packed()];
        // Panel by panel, as threads would.
        for (panel, packed) in packed.chunks_mut(winograd.panel()).enumerate() {
            winograd.pack(set, weight, scale, transposed, panel, packed);
        }
        packed
    }

    #[test]
    fn forward_is_that_of_the_reference() {
        for (at, (form, (x_shape @ [n, c, h, w], k, pad))) in all_cases().enumerate() {
            let (s, conv) = (shape(n, c, h, w), conv(form.kernel(), k, pad));
            let problem = Problem::new(conv, s).unwrap();
            let (x, weight) = (values(1, n * c * h * w), values(2, k * c * form.taps()));
            let (scale, shift) = (values(3, k), values(4, k));
            let clamp = [
                Clamp::NONE,
                Clamp { slope: 0.0, top: f32::INFINITY },
                Clamp { slope: 0.1, top: 0.7 },
            ][at % 3];
            let (scale, shift) =
                if at % 4 == 0 { (&[][..], &[][..]) } else { (&scale[..], &shift[..]) };
            let plane = problem.p * problem.q;
            let mut expected = vec![0.0; n * k * plane];
            conv.forward(s, &wide(&x), &wide(&weight), &[], &mut expected);
            let largest = largest(&expected);
            for (at, y) in expected.iter_mut().enumerate() {
                let filter = at / plane % k;
                let of = |numbers: &[f32], or| numbers.get(filter).map_or(or, |x| f64::from(*x));
                *y = *y * of(scale, 1.0) + of(shift, 0.0);
                *y = y.max(f64::from(clamp.slope) * *y).min(f64::from(clamp.top));
            }
            let x = blocked(&x, c, h * w);
            let winograd = Winograd::new(&problem, form).unwrap();
            for set in Instructions::all() {
                let u = packed(&winograd, set, &weight, scale, false);
                let epilogue = Epilogue { scale, shift, clamp };
                let mut y = vec![f32::NAN; n * k.next_multiple_of(BLOCK) * plane];
                winograd.run(set, n, &x, &u, &epilogue, &mut y, &mut lane(&winograd));
                let what = format!("{x_shape:?} {k} {pad:?} {form:?} {set:?}");
                compare(&y, &expected, k, plane, largest * error(form), &what);
                // Sample by sample, as threads would.
                let mut again = vec![f32::NAN; y.len()];
                for (x, y) in x.chunks(x.len() / n).zip(again.chunks_mut(y.len() / n)) {
                    winograd.run(set, 1, x, &u, &epilogue, y, &mut lane(&winograd));
                }
                assert!(y.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
            }
        }
    }

    #[test]
    fn backward_data_is_that_of_the_reference() {
        for (form, (x_shape @ [n, c, h, w], k, pad)) in all_cases() {
            let (s, conv) = (shape(n, c, h, w), conv(form.kernel(), k, pad));
            let problem = Problem::new(conv, s).unwrap();
            let plane = problem.p * problem.q;
            let (dy, weight) = (values(1, n * k * plane), values(2, k * c * form.taps()));
            let (x, mut expected) = (vec![0.0; n * c * h * w], vec![0.0; n * c * h * w]);
            let mut dw = vec![0.0; weight.len()];
            let dx = Some(&mut expected[..]);
            conv.backward(s, &x, &wide(&weight), &wide(&dy), dx, &mut dw, &mut []);
            let dy = blocked(&dy, k, plane);
            let epilogue = Epilogue { scale: &[], shift: &[], clamp: Clamp::NONE };
            let winograd = Winograd::new(&turned(problem), form).unwrap();
            for set in Instructions::all() {
                let u = packed(&winograd, set, &weight, &[], true);
                let mut dx = vec![f32::NAN; n * c.next_multiple_of(BLOCK) * h * w];
                winograd.run(set, n, &dy, &u, &epilogue, &mut dx, &mut lane(&winograd));
                let what = format!("{x_shape:?} {k} {pad:?} {form:?} {set:?}");
                compare(&dx, &expected, c, h * w, largest(&expected) * error(form), &what);
            }
        }
    }

    #[test]
    fn weight_gradients_are_those_of_the_reference() {
        for (form, (x_shape @ [n, c, h, w], k, pad)) in all_cases() {
            let (s, conv) = (shape(n, c, h, w), conv(form.kernel(), k, pad));
            let problem = Problem::new(conv, s).unwrap();
            let plane = problem.p * problem.q;
            let (x, dy) = (values(1, n * c * h * w), values(2, n * k * plane));
            let weight = vec![0.0; k * c * form.taps()];
            let mut expected = weight.clone();
            conv.backward(s, &wide(&x), &weight, &wide(&dy), None, &mut expected, &mut []);
            let (x, dy) = (blocked(&x, c, h * w), blocked(&dy, k, plane));
            let winograd = Winograd::new(&problem, form).unwrap();
            for set in Instructions::all() {
                // Two lanes, of which the second has the last sample.
                let mut partials = vec![0.0; 2 * winograd.partial()];
                let (one, two) = partials.split_at_mut(winograd.partial());
                let mut lane = vec![f32::NAN; winograd.gradient_lane()];
                let (x, dy) = (x.chunks(x.len() / n), dy.chunks(dy.len() / n));
                for (at, (x, dy)) in x.zip(dy).enumerate() {
                    let partial = if at + 1 < n { &mut *one } else { &mut *two };
                    // Panel by panel, as threads would.
                    let partial = partial.chunks_mut(winograd.panel_weights());
                    for (panel, partial) in partial.enumerate() {
                        winograd.gradient(set, 1, x, dy, panel, partial, &mut lane);
                    }
                }
                let mut dw = vec![1.0; k * c * form.taps()];
                for (panel, dw) in dw.chunks_mut(winograd.panel_weights()).enumerate() {
                    for partial in partials.chunks(winograd.partial()) {
                        let partial = &partial[panel * winograd.panel_weights()..];
                        winograd.join(set, panel, partial, dw);
                    }
                }
                let most = largest(&expected) * error(form);
                for (got, expected) in dw.iter().zip(&expected) {
                    let error = (f64::from(*got) - 1.0 - expected).abs();
                    let what = format!("{x_shape:?} {k} {pad:?} {form:?} {set:?}");
                    assert!(error <= most, "{what}: {got} {expected}");
                }
            }
        }
    }

    #[test]
    fn samples_together_give_the_gradient_of_one_by_one() {
        let (n, c, k, side) = (9, 16, 24, 11);
        for form in Form::ALL {
            let (r, s) = form.kernel();
            let conv = conv((r, s), k, (r / 2, s / 2));
            let problem = Problem::new(conv, shape(n, c, side, side)).unwrap();
            let (x, dy) = (values(1, n * c * side * side), values(2, n * k * side * side));
            let winograd = Winograd::new(&problem, form).unwrap();
            let mut lane = vec![f32::NAN; winograd.gradient_lane()];
            let (mut all, mut each) =
                (vec![0.0; winograd.partial()], vec![0.0; winograd.partial()]);
            winograd.gradient(Instructions::best(), n, &x, &dy, 0, &mut all, &mut lane);
            for (x, dy) in x.chunks(x.len() / n).zip(dy.chunks(dy.len() / n)) {
                winograd.gradient(Instructions::best(), 1, x, dy, 0, &mut each, &mut lane);
            }
            let largest = each.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let most = f64::from(largest) * error(form);
            assert!(all.iter().zip(&each).all(|(a, b)| f64::from((a - b).abs()) <= most));
        }
    }

    /// Sums of twelve are near enough to normal.
    fn normal(seed: u64, len: usize) -> Vec<f32> {
        values(seed, 12 * len).chunks(12).map(|x| x.iter().sum::<f32>() / 2.0).collect()
    }

    #[test]
    fn errors_are_within_the_bounds_for_many_channels() {
        let sizes = [(16, 32), (64, 12), (256, 8), (512, 4)];
        for (form, (c, side)) in
            Form::ALL.into_iter().flat_map(|form| sizes.map(|size| (form, size)))
        {
            let ((n, k), (r, s)) = ((2, 16), form.kernel());
            let (conv, s) = (conv((r, s), k, (r / 2, s / 2)), shape(n, c, side, side));
            let problem = Problem::new(conv, s).unwrap();
            let plane = side * side;
            let (x, weight) = (normal(1, n * c * plane), normal(2, k * c * form.taps()));
            let mut expected = vec![0.0; n * k * plane];
            conv.forward(s, &wide(&x), &wide(&weight), &[], &mut expected);
            let dy = normal(3, n * k * plane);
            let mut gradient = vec![0.0; k * c * form.taps()];
            conv.backward(s, &wide(&x), &wide(&weight), &wide(&dy), None, &mut gradient, &mut []);
            let (x, dy) = (blocked(&x, c, plane), blocked(&dy, k, plane));
            let epilogue = Epilogue { scale: &[], shift: &[], clamp: Clamp::NONE };
            let winograd = Winograd::new(&problem, form).unwrap();
            for set in Instructions::all() {
                let mut dw = vec![0.0; k * c * form.taps()];
                let mut partial = vec![0.0; winograd.partial()];
                let mut scratch = vec![f32::NAN; winograd.gradient_lane()];
                winograd.gradient(set, n, &x, &dy, 0, &mut partial, &mut scratch);
                winograd.join(set, 0, &partial, &mut dw);
                let most = largest(&gradient) * error(form);
                let errors = dw.iter().zip(&gradient).map(|(a, b)| (f64::from(*a) - b).abs());
                assert!(errors.fold(0.0, f64::max) <= most, "{c} {form:?} {set:?}");
                let u = packed(&winograd, set, &weight, &[], false);
                let mut y = vec![f32::NAN; n * k * plane];
                winograd.run(set, n, &x, &u, &epilogue, &mut y, &mut lane(&winograd));
                compare(
                    &y,
                    &expected,
                    k,
                    plane,
                    largest(&expected) * error(form),
                    &format!("{c} {form:?} {set:?}"),
                );
            }
        }
    }

    #[test]
    fn the_fastest_form_is_chosen_by_shape() {
        let best = |kernel: (usize, usize), n, c, (h, w), k| {
            let conv = conv(kernel, k, (kernel.0 / 2, kernel.1 / 2));
            Winograd::best(&Problem::new(conv, shape(n, c, h, w)).unwrap())
        };
        let form =
            |kernel, n, c, side, k| best(kernel, n, c, side, k).map(|winograd| winograd.grid.form);
        let square = |n, c, side, k| form((3, 3), n, c, (side, side), k);
        assert_eq!(square(32, 64, 32, 64), Some(Form::Four));
        assert_eq!(square(32, 256, 8, 256), Some(Form::Four));
        assert_eq!(square(32, 512, 4, 512), Some(Form::Four));
        assert_eq!(square(32, 512, 2, 512), Some(Form::Two));
        let panels = |n, c, side, k| best((3, 3), n, c, (side, side), k).unwrap().by_panels();
        assert!(panels(32, 512, 4, 512) && panels(32, 512, 2, 512));
        assert!(!panels(32, 64, 32, 64) && !panels(32, 256, 8, 256));
        // The first layer of an image has too few channels; one tile does not pay for its weights.
        assert_eq!(square(32, 3, 32, 64), None);
        assert_eq!(square(1, 512, 2, 512), None);
        assert_eq!(form((5, 5), 32, 64, (16, 16), 192), Some(Form::Five));
        assert_eq!(form((5, 5), 128, 1, (28, 28), 6), None);
        assert_eq!(form((1, 3), 32, 64, (1, 1024), 64), Some(Form::Row));
        assert_eq!(form((1, 3), 32, 1, (1, 1024), 64), None);
        assert_eq!(form((3, 1), 32, 64, (17, 17), 64), Some(Form::Column));
    }

    #[test]
    fn other_convolutions_have_none() {
        let s = shape(1, 8, 8, 8);
        let none = |conv: Conv2d| {
            let problem = Problem::new(conv, s).unwrap();
            assert_eq!(Winograd::every(&problem).next(), None);
        };
        none(Conv2d::new(8, 1));
        none(Conv2d::new(8, 4));
        none(Conv2d { kernel: (3, 5), ..Conv2d::new(8, 3) });
        none(Conv2d { stride: (1, 2), ..Conv2d::new(8, 3) });
        none(Conv2d { groups: 2, ..Conv2d::new(8, 3) });
        none(Conv2d { pad: (3, 0), ..Conv2d::new(8, 3) });
        none(Conv2d { kernel: (1, 3), pad: (1, 0), ..Conv2d::new(8, 3) });
        let problem = Problem::new(Conv2d::new(8, 3), s).unwrap();
        assert_eq!(Winograd::new(&problem, Form::Five), None);
        assert_eq!(Winograd::every(&problem).count(), 2);
    }
}
