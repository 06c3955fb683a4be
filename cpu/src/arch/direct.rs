//! Direct convolution over strips.
//!
//! A strip is the input of some places of the output, copied so that, for each tap, what
//! neighbouring places read lies at equal distances: place i of a strip reads number
//! `tap + i * spacing` of a channel, whatever the stride, the padding and the width of the image.
//! Input lies in blocks of eight channels (spacing 8), or as planes of single channels (spacing 1)
//! where there are few. Kernels therefore know no edges.
//!
//! | kernel | work |
//! |---|---|
//! | [`Multiply`] | y of the places of a strip, for a panel of filters |
//! | [`Correlate`] | the gradient of the weights, of the places of a strip |
//! | [`Unfold`] | for few channels: what each place reads, one after the other |
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ops::Range;

use super::{Isa, Kernel, Simd};
use crate::blocks::BLOCK;

/// Filters of a panel.
pub(crate) const PANEL: usize = 32;

/// A part of a tensor in blocks: some samples, some blocks of them, and some numbers of each.
/// Parts of one tensor that were split off each other never overlap.
pub(crate) struct Field<'a> {
    at: *mut f32,
    samples: usize,
    /// Numbers from one sample to the next.
    sample: usize,
    blocks: usize,
    /// Numbers from one block to the next.
    block: usize,
    /// Numbers of each block.
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: no other value reaches the numbers of this one.
unsafe impl Send for Field<'_> {}

impl<'a> Field<'a> {
    /// All of a tensor of `samples` times `blocks` blocks of `len` numbers.
    ///
    /// # Panics
    /// Where the tensor has fewer.
    pub(crate) fn new(y: &'a mut [f32], samples: usize, blocks: usize, len: usize) -> Self {
        assert!(y.len() >= samples * blocks * len);
        let (sample, block) = (blocks * len, len);
        Self { at: y.as_mut_ptr(), samples, sample, blocks, block, len, borrowed: PhantomData }
    }

    /// How many samples, how many blocks of each, how many numbers of each.
    pub(crate) fn dim(&self) -> [usize; 3] {
        [self.samples, self.blocks, self.len]
    }

    /// The first `at` along an axis (samples, blocks, numbers), and the others.
    pub(crate) fn split_at(self, axis: usize, at: usize) -> (Self, Self) {
        let at = at.min(self.dim()[axis]);
        let far = at * [self.sample, self.block, 1][axis];
        // An empty part may begin anywhere.
        let rest = self.at.wrapping_add(far);
        match axis {
            0 => (
                Self { samples: at, ..self },
                Self { at: rest, samples: self.samples - at, ..self },
            ),
            1 => (Self { blocks: at, ..self }, Self { at: rest, blocks: self.blocks - at, ..self }),
            _ => (Self { len: at, ..self }, Self { at: rest, len: self.len - at, ..self }),
        }
    }

    /// The numbers of one block of one sample.
    ///
    /// # Panics
    /// Where there is no such block.
    pub(crate) fn block(&mut self, sample: usize, block: usize) -> &mut [f32] {
        assert!(sample < self.samples && block < self.blocks);
        // SAFETY: the block is in the tensor, and its `len` numbers belong to this part alone.
        unsafe {
            let at = self.at.add(sample * self.sample + block * self.block);
            core::slice::from_raw_parts_mut(at, self.len)
        }
    }
}

/// Where the places of a strip lie in a [`Field`]. Place `(p * columns + q) * samples + n` is
/// column q of row p of sample n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// The field's sample that is the strip's first.
    pub(crate) sample: usize,
    pub(crate) samples: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// The number of a block where the first place begins.
    pub(crate) first: usize,
    /// Numbers from one row to the next.
    pub(crate) row: usize,
    /// Numbers from one column to the next.
    pub(crate) column: usize,
}

impl Places {
    /// How many.
    pub(crate) const fn len(&self) -> usize {
        self.samples * self.rows * self.columns
    }

    /// Whether all lie one after the other.
    const fn together(&self) -> bool {
        self.samples == 1
            && self.column == BLOCK
            && (self.rows == 1 || self.row == self.columns * BLOCK)
    }

    /// Whether all lie in such a field.
    fn within(&self, field: &Field<'_>) -> bool {
        let last = self.first
            + self.rows.saturating_sub(1) * self.row
            + self.columns.saturating_sub(1) * self.column
            + BLOCK;
        self.len() == 0 || self.sample + self.samples <= field.samples && last <= field.len
    }
}

/// What a strip's taps read.
#[derive(Clone, Copy)]
pub(crate) struct Strip<'a> {
    pub(crate) x: &'a [f32],
    /// 8 where x lies in blocks, 1 where it lies in planes.
    pub(crate) spacing: usize,
    /// Channels.
    pub(crate) channels: usize,
    /// Numbers from one block (or plane) to the next.
    pub(crate) block: usize,
    /// Where each tap's first place begins, row by row of the kernel.
    pub(crate) taps: &'a [u32],
    /// Columns of the kernel.
    pub(crate) across: usize,
    /// Places.
    pub(crate) places: usize,
}

impl Strip<'_> {
    /// Blocks, or planes.
    const fn units(&self) -> usize {
        self.channels.div_ceil(self.spacing)
    }

    /// # Panics
    /// Where a tap of a place reaches past the end.
    fn check(&self) {
        assert!(self.spacing == 1 || self.spacing == BLOCK);
        let tap = self.taps.iter().fold(0, |most, tap| most.max(*tap)) as usize;
        let units = self.units().saturating_sub(1) * self.block;
        let reach = units + tap + self.places * self.spacing;
        assert!(self.channels * self.places * self.taps.len() == 0 || reach <= self.x.len());
    }
}

/// What is done to y before it is stored for the last time.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// A summand for each filter of the panel.
    pub(crate) shift: &'a [f32; PANEL],
    /// y becomes `max(y, slope y)`, then `min(y, top)`.
    pub(crate) clamp: Option<(f32, f32)>,
}

/// y of some of a strip's places, by some of its taps, for a panel of filters:
///
/// ```text
/// y[k, i] (+)= sum_{c, tap} w[c, tap, k] x[c, tap + i]
/// ```
pub(crate) struct Multiply<'a, 'b, 'c> {
    pub(crate) strip: Strip<'a>,
    /// Rows and columns of the kernel that are taken.
    pub(crate) taps: (Range<usize>, Range<usize>),
    /// Places that are taken.
    pub(crate) range: Range<usize>,
    /// Weights: block, tap, channel of the block, filter.
    pub(crate) w: &'a [f32],
    /// Filters: a multiple of 8, at most [`PANEL`].
    pub(crate) width: usize,
    pub(crate) y: &'b mut Field<'c>,
    /// The field's block that is the panel's first.
    pub(crate) first: usize,
    pub(crate) places: Places,
    /// Whether y is there already, and added to.
    pub(crate) adds: bool,
    pub(crate) finish: Option<Finish<'a>>,
}

impl Kernel for Multiply<'_, '_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { strip, taps, range, w, width, y, first, places, .. } = &self;
        strip.check();
        assert!(width.is_multiple_of(BLOCK) && *width <= PANEL);
        assert!(range.start <= range.end && range.end <= strip.places);
        assert!(strip.places == places.len() && places.within(y));
        assert!(first + width / BLOCK <= y.blocks);
        assert!(taps.1.end <= strip.across && taps.0.end * strip.across <= strip.taps.len());
        assert!(w.len() >= strip.units() * strip.taps.len() * strip.spacing * width);
        if strip.spacing == BLOCK {
            self.panel::<I, BLOCK>(isa);
        } else {
            self.panel::<I, 1>(isa);
        }
    }
}

impl Multiply<'_, '_, '_> {
    #[inline(always)]
    fn panel<I: Isa, const SPACING: usize>(&self, isa: I) {
        let (mut at, lanes) = (0, I::Wide::LANES);
        // SAFETY: `run` checked all that pointers reach; filters `at` and on, as many as the
        // vectors have, are in the panel.
        unsafe {
            if I::Wide::REGISTERS >= 32 {
                while at + 2 * lanes <= self.width {
                    self.sweep::<_, 14, 2, SPACING>(isa.wide(), at);
                    at += 2 * lanes;
                }
                while at + lanes <= self.width {
                    self.sweep::<_, 28, 1, SPACING>(isa.wide(), at);
                    at += lanes;
                }
                while lanes > BLOCK && at < self.width {
                    self.sweep::<_, 24, 1, SPACING>(isa.narrow(), at);
                    at += BLOCK;
                }
            } else if I::Wide::REGISTERS >= 16 {
                while at + 2 * lanes <= self.width {
                    self.sweep::<_, 6, 2, SPACING>(isa.wide(), at);
                    at += 2 * lanes;
                }
                while at < self.width {
                    self.sweep::<_, 12, 1, SPACING>(isa.narrow(), at);
                    at += BLOCK;
                }
            } else {
                while at < self.width {
                    self.sweep::<_, 4, 1, SPACING>(isa.narrow(), at);
                    at += BLOCK;
                }
            }
        }
    }

    /// All places of the range, `MOST` at a time while there are as many.
    #[inline(always)]
    unsafe fn sweep<S: Simd, const MOST: usize, const N: usize, const SPACING: usize>(
        &self,
        s: S,
        filter: usize,
    ) {
        let Range { start: mut at, end } = self.range;
        // SAFETY: the caller's promise; all places are below `end`.
        unsafe {
            while at + MOST <= end {
                self.tile::<S, MOST, N, SPACING>(s, filter, at);
                at += MOST;
            }
            if MOST > 16 && at + 16 <= end {
                self.tile::<S, 16, N, SPACING>(s, filter, at);
                at += 16;
            }
            if MOST > 8 && at + 8 <= end {
                self.tile::<S, 8, N, SPACING>(s, filter, at);
                at += 8;
            }
            if MOST > 4 && at + 4 <= end {
                self.tile::<S, 4, N, SPACING>(s, filter, at);
                at += 4;
            }
            if MOST > 2 && at + 2 <= end {
                self.tile::<S, 2, N, SPACING>(s, filter, at);
                at += 2;
            }
            if at < end {
                self.tile::<S, 1, N, SPACING>(s, filter, at);
            }
        }
    }

    /// `M` places from `at` on, by `N` vectors of filters from `filter` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize, const SPACING: usize>(
        &self,
        s: S,
        filter: usize,
        at: usize,
    ) {
        let (strip, width) = (&self.strip, self.width);
        let mut sums = [[s.zero(); N]; M];
        // SAFETY: as `run` checked, every place reads its taps inside of x, a block has a row of
        // `width` weights for each tap and channel, and places lie inside of the field.
        unsafe {
            for unit in 0..strip.units() {
                let channels = (strip.channels - unit * SPACING).min(SPACING);
                let x = strip.x.as_ptr().add(unit * strip.block + at * SPACING);
                let w = self.w.as_ptr().add(unit * strip.taps.len() * SPACING * width + filter);
                for row in self.taps.0.clone() {
                    for column in self.taps.1.clone() {
                        let tap = row * strip.across + column;
                        let mut x = x.add(*strip.taps.get_unchecked(tap) as usize);
                        let mut w = w.add(tap * SPACING * width);
                        for _ in 0..channels {
                            let mut weights = [s.zero(); N];
                            for (j, weights) in weights.iter_mut().enumerate() {
                                *weights = s.load_ptr(w.add(j * S::LANES));
                            }
                            for (i, sums) in sums.iter_mut().enumerate() {
                                let x = s.splat(*x.add(i * SPACING));
                                for (sum, weights) in sums.iter_mut().zip(weights) {
                                    *sum = s.fma(x, weights, *sum);
                                }
                            }
                            x = x.add(1);
                            w = w.add(width);
                        }
                    }
                }
            }
            let y = self.y.at.add(
                self.places.sample * self.y.sample
                    + (self.first + filter / BLOCK) * self.y.block
                    + self.places.first,
            );
            let mut offsets = [0; M];
            if self.places.together() {
                for (i, offset) in offsets.iter_mut().enumerate() {
                    *offset = (at + i) * BLOCK;
                }
            } else {
                let Places { samples, columns, .. } = self.places;
                let (mut n, mut q) = (at % samples, at / samples % columns);
                let mut p = at / samples / columns;
                for offset in &mut offsets {
                    *offset = n * self.y.sample + p * self.places.row + q * self.places.column;
                    n += 1;
                    if n == samples {
                        (n, q) = (0, q + 1);
                    }
                    if q == columns {
                        (q, p) = (0, p + 1);
                    }
                }
            }
            let jump = S::LANES / BLOCK * self.y.block;
            if self.adds {
                for (sums, offset) in sums.iter_mut().zip(offsets) {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        let before = s.load_blocks_ptr(y.add(offset + j * jump), self.y.block);
                        *sum = s.add(*sum, before);
                    }
                }
            }
            if let Some(Finish { shift, clamp }) = self.finish {
                let mut shifts = [s.zero(); N];
                for (j, to) in shifts.iter_mut().enumerate() {
                    *to = s.load_ptr(shift.as_ptr().add(filter + j * S::LANES));
                }
                for sums in &mut sums {
                    for (sum, shift) in sums.iter_mut().zip(shifts) {
                        *sum = s.add(*sum, shift);
                    }
                }
                if let Some((slope, top)) = clamp {
                    let (factor, top) = (s.splat(slope), s.splat(top));
                    for sum in sums.as_flattened_mut() {
                        // Infinity times 0 would be NaN.
                        let low = if slope == 0.0 { s.zero() } else { s.mul(factor, *sum) };
                        // The second of two is taken where one is NaN.
                        *sum = s.min(top, s.max(low, *sum));
                    }
                }
            }
            for (sums, offset) in sums.iter().zip(offsets) {
                for (j, sum) in sums.iter().enumerate() {
                    s.store_blocks_ptr(*sum, y.add(offset + j * jump), self.y.block);
                }
            }
        }
    }
}

/// Adds to the gradient of the weights of a panel what some places of a strip give:
///
/// ```text
/// dw[c, tap, k] += sum_i x[c, tap + i] dy[i, k]
/// ```
pub(crate) struct Correlate<'a> {
    /// x: row i of it belongs to place i, `spacing` numbers after the one before.
    pub(crate) x: &'a [f32],
    pub(crate) spacing: usize,
    /// Numbers of each row that are taken.
    pub(crate) taken: usize,
    /// dy: `width` numbers for each place. A multiple of 8, at most [`PANEL`].
    pub(crate) dy: &'a [f32],
    pub(crate) width: usize,
    /// For each number taken a row of `width` numbers, `step` numbers after the one before.
    pub(crate) dw: &'a mut [f32],
    pub(crate) step: usize,
}

impl Kernel for Correlate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let (width, taken) = (self.width, self.taken);
        let Self { x, spacing, dy, dw, step, .. } = &self;
        assert!(width.is_multiple_of(BLOCK) && width <= PANEL && width > 0);
        let places = dy.len() / width;
        if places * taken == 0 {
            return;
        }
        assert!(x.len() >= (places - 1) * spacing + taken);
        assert!(dw.len() >= (taken - 1) * step + width);
        let (mut at, lanes) = (0, I::Wide::LANES);
        // SAFETY: checked above; filters from `at` on, as many as the vectors have, are there.
        unsafe {
            if I::Wide::REGISTERS >= 32 {
                // Few rows are taken with one vector of more places; many, with two vectors.
                while taken <= 8 && at + 2 * lanes <= width {
                    self.rows::<_, 8, 2>(isa.wide(), at, places);
                    at += 2 * lanes;
                }
                while at + lanes <= width {
                    self.rows::<_, 28, 1>(isa.wide(), at, places);
                    at += lanes;
                }
                while lanes > BLOCK && at < width {
                    self.rows::<_, 28, 1>(isa.narrow(), at, places);
                    at += BLOCK;
                }
            } else if I::Wide::REGISTERS >= 16 {
                while at + 2 * lanes <= width {
                    self.rows::<_, 4, 2>(isa.wide(), at, places);
                    at += 2 * lanes;
                }
                while at < width {
                    self.rows::<_, 12, 1>(isa.narrow(), at, places);
                    at += BLOCK;
                }
            } else {
                while at < width {
                    self.rows::<_, 4, 1>(isa.narrow(), at, places);
                    at += BLOCK;
                }
            }
        }
    }
}

impl Correlate<'_> {
    #[inline(always)]
    unsafe fn rows<S: Simd, const MOST: usize, const N: usize>(
        &mut self,
        s: S,
        filter: usize,
        places: usize,
    ) {
        let (mut at, end) = (0, self.taken);
        // SAFETY: the caller's promise; all rows are below `end`.
        unsafe {
            while at + MOST <= end {
                self.tile::<S, MOST, N>(s, filter, at, places);
                at += MOST;
            }
            if MOST > 16 && at + 16 <= end {
                self.tile::<S, 16, N>(s, filter, at, places);
                at += 16;
            }
            if MOST > 8 && at + 8 <= end {
                self.tile::<S, 8, N>(s, filter, at, places);
                at += 8;
            }
            if MOST > 6 && at + 6 <= end {
                self.tile::<S, 6, N>(s, filter, at, places);
                at += 6;
            }
            if MOST > 4 && at + 4 <= end {
                self.tile::<S, 4, N>(s, filter, at, places);
                at += 4;
            }
            if MOST > 2 && at + 2 <= end {
                self.tile::<S, 2, N>(s, filter, at, places);
                at += 2;
            }
            while at < end {
                self.tile::<S, 1, N>(s, filter, at, places);
                at += 1;
            }
        }
    }

    /// `M` rows from `at` on, by `N` vectors of filters from `filter` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(
        &mut self,
        s: S,
        filter: usize,
        at: usize,
        places: usize,
    ) {
        let mut sums = [[s.zero(); N]; M];
        // SAFETY: as `run` checked, each place has `spacing` numbers in x and `width` in dy; each
        // row has `width` numbers in dw.
        unsafe {
            let (mut x, mut dy) = (self.x.as_ptr().add(at), self.dy.as_ptr().add(filter));
            for _ in 0..places {
                let mut g = [s.zero(); N];
                for (j, g) in g.iter_mut().enumerate() {
                    *g = s.load_ptr(dy.add(j * S::LANES));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = s.splat(*x.add(i));
                    for (sum, g) in sums.iter_mut().zip(g) {
                        *sum = s.fma(x, g, *sum);
                    }
                }
                x = x.wrapping_add(self.spacing);
                dy = dy.wrapping_add(self.width);
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    let dw = self.dw.as_mut_ptr().add((at + i) * self.step + filter + j * S::LANES);
                    s.store_ptr(s.add(s.load_ptr(dw), *sum), dw);
                }
            }
        }
    }
}

/// For few channels: what each place reads of all channels and taps, one after the other.
///
/// ```text
/// u[i, (c, r, s)] = x[c, p sh + r, q sw + s]   for place i = (p, q)
/// ```
pub(crate) struct Unfold<'a> {
    /// Planes with padding around them, and [`SLACK`] numbers after the last.
    pub(crate) x: &'a [f32],
    pub(crate) channels: usize,
    /// Numbers from one plane to the next, and from one row to the next.
    pub(crate) plane: usize,
    pub(crate) row: usize,
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    /// Rows and columns of places.
    pub(crate) places: (usize, usize),
    /// `spacing` numbers for each place, and [`SLACK`] numbers after the last.
    pub(crate) u: &'a mut [f32],
    pub(crate) spacing: usize,
}

/// Numbers past the end of what [`Unfold`] reads and writes that it reads and writes too.
pub(crate) const SLACK: usize = BLOCK;

impl Kernel for Unfold<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, channels, plane, row, kernel, stride, places, u, spacing } = self;
        let s = isa.narrow();
        if channels * kernel.0 * kernel.1 * places.0 * places.1 == 0 {
            return;
        }
        let reach = (channels - 1) * plane
            + ((places.0 - 1) * stride.0 + kernel.0 - 1) * row
            + (places.1 - 1) * stride.1
            + kernel.1;
        assert!(x.len() >= reach + SLACK);
        assert!(spacing >= channels * kernel.0 * kernel.1);
        assert!(u.len() >= places.0 * places.1 * spacing + SLACK);
        // SAFETY: every row that a place reads ends within `reach`, what a place writes ends with
        // it, and vectors reach less than `SLACK` numbers further.
        unsafe {
            let mut u = u.as_mut_ptr();
            for p in 0..places.0 {
                for q in 0..places.1 {
                    let x = x.as_ptr().add(p * stride.0 * row + q * stride.1);
                    let mut to = u;
                    for c in 0..channels {
                        for r in 0..kernel.0 {
                            let from = x.add(c * plane + r * row);
                            let mut at = 0;
                            while at < kernel.1 {
                                s.store_ptr(s.load_ptr(from.add(at)), to.add(at));
                                at += BLOCK;
                            }
                            to = to.add(kernel.1);
                        }
                    }
                    u = u.add(spacing);
                }
            }
        }
    }
}
