//! Direct convolution over strips.
//!
//! A strip is the input of some places of the output, copied so that, for each tap, what
//! neighbouring places of a row read lies at equal distances: place i of row p reads number
//! `tap + p * pitch + i * spacing` of a channel, whatever the stride and the padding. Input lies in
//! blocks of eight channels (spacing 8), or as planes of single channels (spacing 1) where there
//! are few. The samples of a strip lie place by place next to each other, so that the rows of many
//! small images are long. Kernels therefore know no edges.
//!
//! | kernel | work |
//! |---|---|
//! | [`Multiply`] | y of the places of a strip, for a panel of filters |
//! | [`Correlate`] | the gradient of the weights, of the places of a strip |
//! | [`CorrelateFew`] | the gradient of the weights for few channels and few filters |
//! | [`Each`], [`CorrelateEach`] | both where each filter reads one channel alone |
//!
//! Vectors are of filters, but of places where channels lie in planes and eight filters or fewer are
//! left: otherwise a vector would be filled in part.
#![allow(clippy::needless_range_loop, reason = "indices of registers, known when compiled")]
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ops::Range;

use super::{Isa, Kernel, Narrow, Simd};
use crate::blocks::BLOCK;

/// Filters of a panel.
pub(crate) const PANEL: usize = 32;

/// Filters of a panel whose weights lie together, the others' after them: those that are multiplied
/// at once.
#[inline(always)]
pub(crate) const fn together<I: Isa>() -> usize {
    if I::Wide::REGISTERS < 16 { BLOCK } else { 2 * I::Wide::LANES }
}

/// Numbers of the widest vectors, which may reach past a strip's last place by as many.
pub(crate) const SLACK: usize = 16;

/// Bytes of weights that stay in the first-level cache where tiles are small.
const WEIGHTS: usize = 16 << 10;

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

/// Where the places of a strip lie in a [`Field`]. Place `q * samples + n` of row p is column q of
/// sample n.
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
    /// Numbers from one filter to the next where eight filters or fewer have a plane each, `None`
    /// in blocks.
    pub(crate) plane: Option<usize>,
}

impl Places {
    /// How many a row has.
    pub(crate) const fn across(&self) -> usize {
        self.samples * self.columns
    }

    /// Whether all lie in such a field, with so many filters or in blocks.
    fn within(&self, field: &Field<'_>, filters: usize) -> bool {
        let filters = self.plane.map_or(BLOCK, |plane| filters.saturating_sub(1) * plane + 1);
        let last = self.first
            + self.rows.saturating_sub(1) * self.row
            + self.columns.saturating_sub(1) * self.column
            + filters;
        let none = self.rows * self.across() == 0;
        none || self.sample + self.samples <= field.samples && last <= field.len
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
    /// Numbers from one row of places to the next.
    pub(crate) pitch: usize,
    /// Where each tap's first place begins, row by row of the kernel.
    pub(crate) taps: &'a [u32],
    /// Columns of the kernel.
    pub(crate) across: usize,
    /// Numbers from one column of taps to the next, or 0 where they differ.
    pub(crate) step: usize,
}

impl Strip<'_> {
    /// Blocks, or planes.
    const fn units(&self) -> usize {
        self.channels.div_ceil(self.spacing)
    }

    /// # Panics
    /// Where a tap of one of so many rows of so many places reaches past the end.
    fn check(&self, rows: usize, places: usize) {
        assert!(self.spacing == 1 || self.spacing == BLOCK);
        let tap = self.taps.iter().fold(0, |most, tap| most.max(*tap)) as usize;
        let before =
            self.units().saturating_sub(1) * self.block + rows.saturating_sub(1) * self.pitch + tap;
        let none = self.channels * rows * places * self.taps.len() == 0;
        let even = |taps: &[u32]| taps.is_sorted_by(|a, b| *a as usize + self.step == *b as usize);
        assert!(none || self.step == 0 || self.taps.chunks(self.across).all(even));
        assert!(none || before + places * self.spacing <= self.x.len());
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

/// The size of the next tile where `left` places are left: tiles as large as `sizes`, which
/// descend to 1, and all about as large.
#[inline(always)]
fn next(left: usize, sizes: &[usize]) -> usize {
    let even = left.div_ceil(left.div_ceil(sizes[0]));
    let fits = || sizes.iter().copied().filter(|size| *size <= left);
    fits().rfind(|size| *size >= even).or(fits().next()).unwrap_or(1)
}

/// Calls a macro for each tile of a range with the tile's size.
macro_rules! tiles {
    ($at:ident, $end:expr, [$($m:literal),*], $call:ident) => {
        while $at < $end {
            let size = next($end - $at, &[$($m),*]);
            match size {
                $($m => $call!($m),)*
                _ => {}
            }
            $at += size;
        }
    };
}

/// y of some of a strip's places, by some of its taps, for a panel of filters:
///
/// ```text
/// y[k, p, i] (+)= sum_{c, tap} w[c, tap, k] x[c, tap + p pitch + i]
/// ```
pub(crate) struct Multiply<'a, 'b, 'c> {
    pub(crate) strip: Strip<'a>,
    /// Rows and columns of the kernel that are taken.
    pub(crate) taps: (Range<usize>, Range<usize>),
    /// Rows of places that are taken, and places of each.
    pub(crate) range: (Range<usize>, Range<usize>),
    /// Weights of the panel: for each [`together`] filters block, tap, channel of the block, filter.
    pub(crate) w: &'a [f32],
    /// Blocks of the weights, and the one that is the strip's first.
    pub(crate) blocks: usize,
    pub(crate) from: usize,
    /// Filters: a multiple of 8, at most [`PANEL`].
    pub(crate) width: usize,
    /// Those that are no padding.
    pub(crate) filters: usize,
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
        let Self { strip, taps, range, w, blocks, from, width, y, first, places, .. } = &self;
        strip.check(places.rows, places.across());
        assert!(width.is_multiple_of(BLOCK) && *width <= PANEL);
        assert!(range.0.end <= places.rows && range.1.end <= places.across());
        let few = self.takes_few();
        assert!(places.within(y, self.filters) && (few || places.plane.is_none()));
        assert!(first + width / BLOCK <= y.blocks);
        assert!(taps.1.end <= strip.across && taps.0.end * strip.across <= strip.taps.len());
        assert!(w.len() >= blocks * strip.taps.len() * strip.spacing * width);
        assert!(from + strip.units() <= *blocks);
        if few {
            self.few::<I>(isa);
        } else if strip.spacing == BLOCK {
            self.panel::<I, BLOCK>(isa);
        } else {
            self.panel::<I, 1>(isa);
        }
    }
}

impl Multiply<'_, '_, '_> {
    /// Whether vectors are of places.
    fn takes_few(&self) -> bool {
        let whole = !self.adds && self.strip.units() == self.blocks;
        self.strip.spacing == 1 && self.filters <= BLOCK && whole
    }

    #[inline(always)]
    fn panel<I: Isa, const SPACING: usize>(&self, isa: I) {
        let (lanes, units) = (I::Wide::LANES, self.strip.units());
        // Where there are many weights for a tile, some blocks of them are taken for all places.
        let rows = self.strip.taps.len() * SPACING * together::<I>();
        let some = match I::Wide::REGISTERS {
            32.. => units,
            _ => (WEIGHTS / size_of::<f32>()).checked_div(rows).unwrap_or(0).max(1),
        };
        for first in (0..self.width).step_by(together::<I>()) {
            let end = self.width.min(first + together::<I>());
            let mut from = 0;
            loop {
                let part = Part { filters: first..end, units: from..units.min(from + some) };
                let mut at = first;
                // SAFETY: `run` checked all that pointers reach; filters `at` and on, as many as
                // the vectors have, are in the panel.
                unsafe {
                    if I::Wide::REGISTERS >= 32 {
                        while at + 2 * lanes <= end {
                            self.rows_of_14::<_, SPACING>(isa.wide(), &part, at);
                            at += 2 * lanes;
                        }
                        while at + lanes <= end {
                            // Short rows fill the registers in pairs.
                            if self.range.1.len() <= 14 {
                                self.pairs_of_14::<_, SPACING>(isa.wide(), &part, at);
                            } else {
                                self.rows_of_28::<_, SPACING>(isa.wide(), &part, at);
                            }
                            at += lanes;
                        }
                        while lanes > BLOCK && at < end {
                            self.rows_of_28::<_, SPACING>(isa.narrow(), &part, at);
                            at += BLOCK;
                        }
                    } else if I::Wide::REGISTERS >= 16 {
                        while at + 2 * lanes <= end {
                            self.rows_of_6::<_, SPACING>(isa.wide(), &part, at);
                            at += 2 * lanes;
                        }
                        while at < end {
                            self.rows_of_12::<_, SPACING>(isa.narrow(), &part, at);
                            at += BLOCK;
                        }
                    } else {
                        while at < end {
                            self.rows_of_4::<_, SPACING>(isa.narrow(), &part, at);
                            at += BLOCK;
                        }
                    }
                }
                from = part.units.end;
                if from == units {
                    break;
                }
            }
        }
    }
}

/// Calls a macro with the number of vectors and of filters of a tile that fills the registers.
macro_rules! few {
    ($registers:expr, $filters:expr, $call:ident) => {
        match ($registers, $filters) {
            (32.., ..=1) => $call!([8, 4, 2, 1], 1),
            (32.., ..=2) => $call!([8, 4, 2, 1], 2),
            (32.., ..=3) => $call!([8, 4, 2, 1], 3),
            (32.., ..=4) => $call!([6, 4, 2, 1], 4),
            (32.., ..=6) => $call!([4, 3, 2, 1], 6),
            (32.., _) => $call!([3, 2, 1], 8),
            (16.., ..=1) => $call!([8, 4, 2, 1], 1),
            (16.., ..=2) => $call!([4, 2, 1], 2),
            (16.., ..=3) => $call!([4, 2, 1], 3),
            (16.., ..=4) => $call!([2, 1], 4),
            (16.., ..=6) => $call!([2, 1], 6),
            (_, ..=2) => $call!([2, 1], 2),
            (_, ..=4) => $call!([1], 4),
            (_, ..=6) => $call!([1], 6),
            _ => $call!([1], 8),
        }
    };
}

impl Multiply<'_, '_, '_> {
    /// Vectors of places, for at most eight filters.
    #[inline(always)]
    fn few<I: Isa>(&self, isa: I) {
        let (rows, places) = &self.range;
        let across = places.len().div_ceil(I::Wide::LANES);
        let all = rows.len() * across;
        // A row's last vector reaches past it.
        let (strip, within) = (&self.strip, &self.places);
        strip.check(within.rows, within.across() + I::Wide::LANES);
        assert!(self.width == BLOCK && strip.spacing == 1);
        let mut at = 0;
        macro_rules! tiles_of {
            ($sizes:tt, $f:literal) => {{
                macro_rules! tile {
                    ($m:literal) => {
                        // SAFETY: `run` checked all that pointers reach, and above what vectors
                        // reach past a row; the vectors are among all.
                        unsafe { self.few_tile::<_, $m, $f>(isa, across, at) }
                    };
                }
                tiles!(at, all, $sizes, tile);
            }};
        }
        few!(I::Wide::REGISTERS, self.filters, tiles_of);
    }

    /// `P` vectors of places, from vector `at` on of `across` in a row, by `F` filters.
    #[inline(always)]
    unsafe fn few_tile<I: Isa, const P: usize, const F: usize>(
        &self,
        isa: I,
        across: usize,
        at: usize,
    ) {
        let (s, lanes) = (isa.wide(), I::Wide::LANES);
        let (strip, (rows, places)) = (&self.strip, &self.range);
        let (down, right) = (&self.taps.0, &self.taps.1);
        // Row and first place of a vector.
        let place = |v: usize| {
            let (row, column) = ((at + v) / across, (at + v) % across);
            (rows.start + row, places.start + column * lanes)
        };
        let mut sums = [[s.zero(); F]; P];
        // SAFETY: as `few` says.
        unsafe {
            let mut x = [strip.x.as_ptr(); P];
            for (v, x) in x.iter_mut().enumerate() {
                let (row, place) = place(v);
                // Without taps nothing is read there, nor need there be anything.
                *x = x.wrapping_add(row * strip.pitch + place);
            }
            let line = strip.step > 0;
            let columns = if line { right.len() } else { 1 };
            if strip.units() > 0 && !down.is_empty() && !right.is_empty() {
                let (mut unit, mut i, mut j) = (0, down.start, right.start);
                let (mut offset, mut w, mut left) = (0, self.w.as_ptr(), 0);
                loop {
                    if left == 0 {
                        let tap = i * strip.across + j;
                        offset = unit * strip.block + *strip.taps.get_unchecked(tap) as usize;
                        w = self.w.as_ptr().add((unit * strip.taps.len() + tap) * BLOCK);
                        left = columns;
                    }
                    // The fewer of both are in registers before the others come.
                    if F < P {
                        let mut weights = [s.zero(); F];
                        for (f, weight) in weights.iter_mut().enumerate() {
                            *weight = s.splat(*w.add(f));
                        }
                        for v in 0..P {
                            let own = s.load_ptr(x[v].add(offset));
                            for f in 0..F {
                                sums[v][f] = s.fma(own, weights[f], sums[v][f]);
                            }
                        }
                    } else {
                        let mut own = [s.zero(); P];
                        for (own, x) in own.iter_mut().zip(x) {
                            *own = s.load_ptr(x.add(offset));
                        }
                        for f in 0..F {
                            let w = s.splat(*w.add(f));
                            for v in 0..P {
                                sums[v][f] = s.fma(own[v], w, sums[v][f]);
                            }
                        }
                    }
                    offset += strip.step;
                    w = w.wrapping_add(BLOCK);
                    left -= 1;
                    if left == 0 {
                        j += columns;
                        if j == right.end {
                            (i, j) = (i + 1, right.start);
                        }
                        if i == down.end {
                            (unit, i) = (unit + 1, down.start);
                        }
                        if unit == strip.units() {
                            break;
                        }
                    }
                }
            }
            let y = self.y.at.add(
                self.places.sample * self.y.sample + self.first * self.y.block + self.places.first,
            );
            // Through memory: the loop over the vectors is too long to be unrolled, and sums that
            // it picks one after the other could have no registers of their own above.
            let mut stored = [[[0.0; 2 * BLOCK]; F]; P];
            for v in 0..P {
                for f in 0..F {
                    s.store_ptr(sums[v][f], stored[v][f].as_mut_ptr());
                }
            }
            let s = isa.narrow();
            for (v, stored) in stored.iter().enumerate() {
                let (row, first) = place(v);
                let y = y.add(row * self.places.row);
                for half in 0..lanes / BLOCK {
                    let place = first + half * BLOCK;
                    if place >= places.end {
                        break;
                    }
                    let mut filters = [s.zero(); BLOCK];
                    for (f, (filter, stored)) in filters.iter_mut().zip(stored).enumerate() {
                        *filter = s.load_ptr(stored.as_ptr().add(half * BLOCK));
                        if let Some(Finish { shift, clamp }) = self.finish {
                            *filter = s.add(*filter, s.splat(shift[f]));
                            if let Some((slope, top)) = clamp {
                                *filter = limit(s, *filter, slope, top);
                            }
                        }
                    }
                    match self.places.plane {
                        None => self.store_block(s, filters, y, place),
                        Some(plane) => self.store_planes(s, filters, y, plane, place),
                    }
                }
            }
        }
    }

    /// Stores at most eight places of a row from `place` on into the block of filters from `y` on.
    #[inline(always)]
    unsafe fn store_block<S: Narrow>(
        &self,
        s: S,
        filters: [S::V; BLOCK],
        y: *mut f32,
        place: usize,
    ) {
        let Places { samples, column, .. } = self.places;
        let filters = s.transpose(filters);
        let count = (self.range.1.end - place).min(BLOCK);
        // SAFETY: as `run` checked, the row's places lie inside of the field.
        unsafe {
            if count == BLOCK && samples == 1 && column == BLOCK {
                for (i, sum) in filters.into_iter().enumerate() {
                    s.store_ptr(sum, y.add((place + i) * BLOCK));
                }
                return;
            }
            let (mut n, mut q) = (place % samples, place / samples);
            for (i, sum) in filters.into_iter().enumerate() {
                if i < count {
                    s.store_ptr(sum, y.add(n * self.y.sample + q * column));
                }
                n += 1;
                if n == samples {
                    (n, q) = (0, q + 1);
                }
            }
        }
    }

    /// The same into the planes of those filters that are no padding.
    #[inline(always)]
    unsafe fn store_planes<S: Narrow>(
        &self,
        s: S,
        filters: [S::V; BLOCK],
        y: *mut f32,
        plane: usize,
        place: usize,
    ) {
        let Places { samples, column, .. } = self.places;
        let count = (self.range.1.end - place).min(BLOCK);
        for (f, sums) in filters.into_iter().enumerate() {
            if f >= self.filters {
                break;
            }
            // SAFETY: as `run` checked, the row's places lie inside of the field for each filter.
            unsafe {
                let y = y.add(f * plane);
                if count == BLOCK && samples == 1 && column == 1 {
                    s.store_ptr(sums, y.add(place));
                    continue;
                }
                let mut own = [0.0; BLOCK];
                s.store(sums, &mut own);
                let (mut n, mut q) = (place % samples, place / samples);
                for sum in &own[..count] {
                    *y.add(n * self.y.sample + q * column) = *sum;
                    n += 1;
                    if n == samples {
                        (n, q) = (0, q + 1);
                    }
                }
            }
        }
    }
}

/// `max(y, slope y)`, then `min(y, top)`.
#[inline(always)]
fn limit<S: Simd>(s: S, y: S::V, slope: f32, top: f32) -> S::V {
    // Infinity times 0 would be NaN.
    let low = if slope == 0.0 { s.zero() } else { s.mul(s.splat(slope), y) };
    // The second of two is taken where one is NaN.
    s.min(s.splat(top), s.max(low, y))
}

/// Filters whose weights lie together, and some blocks of x.
struct Part {
    filters: Range<usize>,
    units: Range<usize>,
}

/// Methods that take all places of all rows: tiles of so many rows, of at most so many places of
/// each, by so many vectors.
macro_rules! rows {
    ($name:ident, $rows:literal, $n:literal, $sizes:tt) => {
        impl Multiply<'_, '_, '_> {
            #[inline(always)]
            unsafe fn $name<S: Simd, const SPACING: usize>(
                &self,
                s: S,
                part: &Part,
                filter: usize,
            ) {
                let places = &self.range.1;
                let mut at = places.start;
                macro_rules! tile {
                    ($m:literal) => {
                        // SAFETY: the caller's promise; all places are in the range.
                        unsafe { self.rows::<S, $rows, $m, $n, SPACING>(s, part, filter, at) }
                    };
                }
                tiles!(at, places.end, $sizes, tile);
            }
        }
    };
}

rows!(rows_of_14, 1, 2, [14, 12, 10, 8, 6, 4, 2, 1]);
rows!(rows_of_28, 1, 1, [28, 24, 20, 16, 12, 8, 4, 2, 1]);
rows!(pairs_of_14, 2, 1, [14, 12, 10, 8, 6, 4, 2, 1]);
rows!(rows_of_6, 1, 2, [6, 5, 4, 3, 2, 1]);
rows!(rows_of_12, 1, 1, [12, 10, 8, 6, 4, 2, 1]);
rows!(rows_of_4, 1, 1, [4, 2, 1]);

impl Multiply<'_, '_, '_> {
    /// `M` places of every row from `at` on, in tiles of `R` rows.
    #[inline(always)]
    unsafe fn rows<
        S: Simd,
        const R: usize,
        const M: usize,
        const N: usize,
        const SPACING: usize,
    >(
        &self,
        s: S,
        part: &Part,
        filter: usize,
        at: usize,
    ) {
        let (mut row, end) = (self.range.0.start, self.range.0.end);
        // SAFETY: the caller's promise; all rows are in the range.
        unsafe {
            while R > 1 && row + R <= end {
                self.tile::<S, R, M, N, SPACING>(s, part, filter, row, at);
                row += R;
            }
            while row < end {
                self.tile::<S, 1, M, N, SPACING>(s, part, filter, row, at);
                row += 1;
            }
        }
    }

    /// `M` places from `at` on of `R` rows from `row` on, by `N` vectors of filters from `filter` on.
    #[inline(always)]
    unsafe fn tile<
        S: Simd,
        const R: usize,
        const M: usize,
        const N: usize,
        const SPACING: usize,
    >(
        &self,
        s: S,
        part: &Part,
        filter: usize,
        row: usize,
        at: usize,
    ) {
        let (strip, width) = (&self.strip, part.filters.len());
        let (down, across) = (&self.taps.0, &self.taps.1);
        let mut sums = [[[s.zero(); N]; M]; R];
        // SAFETY: as `run` checked, every place reads its taps inside of x, a block has a row of
        // `width` weights for each tap and channel, and places lie inside of the field.
        unsafe {
            // Without taps or channels x and the weights may be empty, and nothing is read.
            let all_x = strip.x.as_ptr().wrapping_add(row * strip.pitch + at * SPACING);
            let all_rows = self.blocks * strip.taps.len() * SPACING;
            let first_w = part.filters.start * all_rows + filter - part.filters.start;
            let first_w = first_w + self.from * strip.taps.len() * SPACING * width;
            let all_w = self.w.as_ptr().wrapping_add(first_w);
            let units = part.units.end;
            // Planes are read tap by tap of a row, blocks channel by channel of a tap.
            let line = SPACING == 1 && strip.step > 0;
            let step = if line { strip.step } else { 1 };
            let columns = if line { across.len() } else { 1 };
            if !part.units.is_empty() && !down.is_empty() && !across.is_empty() {
                // One loop: with loops in each other, sums would leave their registers.
                let (mut unit, mut i, mut j) = (part.units.start, down.start, across.start);
                let mut x = all_x;
                let mut w = all_w;
                let mut left = 0;
                loop {
                    if left == 0 {
                        let tap = i * strip.across + j;
                        x = all_x.add(unit * strip.block);
                        x = x.add(*strip.taps.get_unchecked(tap) as usize);
                        w = all_w.add((unit * strip.taps.len() + tap) * SPACING * width);
                        let channels = strip.channels - unit * SPACING;
                        left = if line { columns } else { channels.min(SPACING) };
                    }
                    let mut weights = [s.zero(); N];
                    for (j, weights) in weights.iter_mut().enumerate() {
                        *weights = s.load_ptr(w.add(j * S::LANES));
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = x.wrapping_add(r * strip.pitch);
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let x = s.splat(*x.add(i * SPACING));
                            for (sum, weights) in sums.iter_mut().zip(weights) {
                                *sum = s.fma(x, weights, *sum);
                            }
                        }
                    }
                    x = x.wrapping_add(step);
                    w = w.wrapping_add(width);
                    left -= 1;
                    if left == 0 {
                        j += columns;
                        if j == across.end {
                            (i, j) = (i + 1, across.start);
                        }
                        if i == down.end {
                            (unit, i) = (unit + 1, down.start);
                        }
                        if unit == units {
                            break;
                        }
                    }
                }
            }
            let y = self.y.at.add(
                self.places.sample * self.y.sample
                    + (self.first + filter / BLOCK) * self.y.block
                    + self.places.first
                    + row * self.places.row,
            );
            let Places { samples, column, .. } = self.places;
            let offsets = || {
                let mut offsets = [0; M];
                let (mut n, mut q) = (at % samples, at / samples);
                for offset in &mut offsets {
                    *offset = n * self.y.sample + q * column;
                    n += 1;
                    if n == samples {
                        (n, q) = (0, q + 1);
                    }
                }
                offsets
            };
            let jump = S::LANES / BLOCK * self.y.block;
            if self.adds || part.units.start > 0 {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let y = y.add(r * self.places.row);
                    for (sums, offset) in sums.iter_mut().zip(offsets()) {
                        for (j, sum) in sums.iter_mut().enumerate() {
                            let before = s.load_blocks_ptr(y.add(offset + j * jump), self.y.block);
                            *sum = s.add(*sum, before);
                        }
                    }
                }
            }
            let last = part.units.end == strip.units();
            if let Some(Finish { shift, clamp }) = self.finish.filter(|_| last) {
                let mut shifts = [s.zero(); N];
                for (j, to) in shifts.iter_mut().enumerate() {
                    *to = s.load_ptr(shift.as_ptr().add(filter + j * S::LANES));
                }
                for sums in sums.as_flattened_mut() {
                    for (sum, shift) in sums.iter_mut().zip(shifts) {
                        *sum = s.add(*sum, shift);
                    }
                }
                if let Some((slope, top)) = clamp {
                    for sum in sums.as_flattened_mut().as_flattened_mut() {
                        *sum = limit(s, *sum, slope, top);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let y = y.add(r * self.places.row);
                if samples == 1 && column == BLOCK {
                    let y = y.add(at * BLOCK);
                    let (pairs, rest) = sums.as_chunks::<2>();
                    for (i, [left, right]) in pairs.iter().enumerate() {
                        for j in 0..N {
                            let y = y.add(2 * i * BLOCK + j * jump);
                            s.store_pairs_ptr(left[j], right[j], y, self.y.block);
                        }
                    }
                    for sums in rest {
                        for (j, sum) in sums.iter().enumerate() {
                            let y = y.add((M - 1) * BLOCK + j * jump);
                            s.store_blocks_ptr(*sum, y, self.y.block);
                        }
                    }
                } else {
                    for (sums, offset) in sums.iter().zip(offsets()) {
                        for (j, sum) in sums.iter().enumerate() {
                            s.store_blocks_ptr(*sum, y.add(offset + j * jump), self.y.block);
                        }
                    }
                }
            }
        }
    }
}

/// Adds to the gradient of the weights of a panel, for some taps of a row, what some places of a
/// strip give:
///
/// ```text
/// dw[c, tap, k] += sum_{p, i} x[c, tap, p, i] dy[p, i, k]
/// ```
pub(crate) struct Correlate<'a> {
    /// Blocks, from what the first tap of the first place reads on. Place i of row p reads the
    /// block `p * x_pitch + i * BLOCK` numbers after it.
    pub(crate) x: &'a [f32],
    pub(crate) x_pitch: usize,
    /// Channels of the block that are taken.
    pub(crate) taken: usize,
    /// Taps, and numbers of x from one to the next.
    pub(crate) taps: usize,
    pub(crate) tap: usize,
    /// dy from the first place's on: `width` numbers for each place, `dy_pitch` for a row.
    pub(crate) dy: &'a [f32],
    pub(crate) dy_pitch: usize,
    /// A multiple of 8, at most [`PANEL`].
    pub(crate) width: usize,
    /// Rows, and places of each.
    pub(crate) rows: usize,
    pub(crate) places: usize,
    /// For each channel taken, `step` numbers after the one before, a row of `width` numbers for
    /// each tap.
    pub(crate) dw: &'a mut [f32],
    pub(crate) step: usize,
}

impl Kernel for Correlate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let (width, taken, taps) = (self.width, self.taken, self.taps);
        assert!(width.is_multiple_of(BLOCK) && width <= PANEL && width > 0 && taken <= BLOCK);
        if self.rows * self.places * taken * taps == 0 {
            return;
        }
        let (rows, places) = (self.rows - 1, self.places - 1);
        let last = rows * self.x_pitch + places * BLOCK + (taps - 1) * self.tap;
        assert!(self.x.len() >= last + taken);
        assert!(self.dy.len() >= rows * self.dy_pitch + places * width + width);
        assert!(self.dw.len() >= (taken - 1) * self.step + taps * width);
        let (mut at, lanes) = (0, I::Wide::LANES);
        // SAFETY: checked above; filters from `at` on, as many as the vectors have, are there.
        unsafe {
            if I::Wide::REGISTERS >= 32 {
                while at + 2 * lanes <= width {
                    self.taken_by_8_pairs(isa.wide(), at);
                    at += 2 * lanes;
                }
                while at + lanes <= width {
                    self.taken_by_8(isa.wide(), at);
                    at += lanes;
                }
                while lanes > BLOCK && at < width {
                    self.taken_by_8(isa.narrow(), at);
                    at += BLOCK;
                }
            } else if I::Wide::REGISTERS >= 16 {
                while at + 2 * lanes <= width {
                    self.taken_by_4_pairs(isa.wide(), at);
                    at += 2 * lanes;
                }
                while at < width {
                    self.taken_by_8(isa.narrow(), at);
                    at += BLOCK;
                }
            } else {
                while at < width {
                    self.taken_by_4(isa.narrow(), at);
                    at += BLOCK;
                }
            }
        }
    }
}

/// Methods that take all channels: tiles of at most so many channels by so many vectors.
macro_rules! taken {
    ($name:ident, $n:literal, $sizes:tt) => {
        impl Correlate<'_> {
            #[inline(always)]
            unsafe fn $name<S: Simd>(&mut self, s: S, filter: usize) {
                let mut at = 0;
                macro_rules! tile {
                    ($m:literal) => {
                        // SAFETY: the caller's promise; all channels are among those taken.
                        unsafe { self.tiles::<S, $m, $n>(s, filter, at) }
                    };
                }
                tiles!(at, self.taken, $sizes, tile);
            }
        }
    };
}

taken!(taken_by_8_pairs, 2, [8, 7, 6, 5, 4, 3, 2, 1]);
taken!(taken_by_8, 1, [8, 7, 6, 5, 4, 3, 2, 1]);
taken!(taken_by_4_pairs, 2, [4, 3, 2, 1]);
taken!(taken_by_4, 1, [4, 2, 1]);

impl Correlate<'_> {
    /// `M` channels from `at` on by `N` vectors of filters from `filter` on, of as many taps at
    /// once as have their sums in registers.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const M: usize, const N: usize>(
        &mut self,
        s: S,
        filter: usize,
        at: usize,
    ) {
        let most = match (S::REGISTERS, N) {
            (32.., 1) => 30,
            (32.., _) => 24,
            (16.., _) => 12,
            _ => 4,
        };
        let mut tap = 0;
        macro_rules! tile {
            ($t:literal) => {
                // SAFETY: the caller's promise; all taps are among those there are.
                unsafe { self.tile::<S, $t, M, N>(s, filter, at, tap) }
            };
        }
        if 5 * M * N <= most {
            tiles!(tap, self.taps, [5, 3, 2, 1], tile);
        } else if 3 * M * N <= most {
            tiles!(tap, self.taps, [3, 2, 1], tile);
        } else if 2 * M * N <= most {
            tiles!(tap, self.taps, [2, 1], tile);
        } else {
            tiles!(tap, self.taps, [1], tile);
        }
    }

    /// `T` taps from `tap` on by `M` channels from `at` on, by `N` vectors of filters from `filter`
    /// on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const T: usize, const M: usize, const N: usize>(
        &mut self,
        s: S,
        filter: usize,
        at: usize,
        tap: usize,
    ) {
        let mut sums = [[[s.zero(); N]; M]; T];
        // SAFETY: as `run` checked, each place has a block in x for each tap and `width` numbers in
        // dy; each channel taken has `width` numbers in dw for each tap.
        unsafe {
            let mut x = self.x.as_ptr().add(at + tap * self.tap);
            let mut dy = self.dy.as_ptr().add(filter);
            let x_jump = self.x_pitch.wrapping_sub(self.places * BLOCK);
            let dy_jump = self.dy_pitch.wrapping_sub(self.places * self.width);
            let (mut left, mut rows) = (self.places, self.rows);
            // One loop: with loops in each other, sums would leave their registers.
            loop {
                let mut g = [s.zero(); N];
                for (j, g) in g.iter_mut().enumerate() {
                    *g = s.load_ptr(dy.add(j * S::LANES));
                }
                for (t, sums) in sums.iter_mut().enumerate() {
                    let x = x.add(t * self.tap);
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let x = s.splat(*x.add(i));
                        for (sum, g) in sums.iter_mut().zip(g) {
                            *sum = s.fma(x, g, *sum);
                        }
                    }
                }
                x = x.wrapping_add(BLOCK);
                dy = dy.wrapping_add(self.width);
                left -= 1;
                if left == 0 {
                    rows -= 1;
                    if rows == 0 {
                        break;
                    }
                    left = self.places;
                    x = x.wrapping_add(x_jump);
                    dy = dy.wrapping_add(dy_jump);
                }
            }
            for (t, sums) in sums.iter().enumerate() {
                for (i, sums) in sums.iter().enumerate() {
                    let row = (at + i) * self.step + (tap + t) * self.width + filter;
                    for (j, sum) in sums.iter().enumerate() {
                        let dw = self.dw.as_mut_ptr().add(row + j * S::LANES);
                        s.store_ptr(s.add(s.load_ptr(dw), *sum), dw);
                    }
                }
            }
        }
    }
}

/// Adds to the gradient of the weights for few channels and at most eight filters what some places
/// of a strip give, lane by lane:
///
/// ```text
/// dw[tap, k, lane] += sum_i x[tap + 8 i + lane] dy[k, 8 i + lane]
/// ```
pub(crate) struct CorrelateFew<'a> {
    /// Planes: place i of a tap lies i numbers after where the tap begins.
    pub(crate) x: &'a [f32],
    /// Where taps begin.
    pub(crate) taps: &'a [u32],
    /// A plane of `places` numbers for each filter.
    pub(crate) dy: &'a [f32],
    /// A multiple of [`SLACK`].
    pub(crate) places: usize,
    /// Filters that are no padding.
    pub(crate) filters: usize,
    /// Eight vectors of 8 lanes for each tap.
    pub(crate) dw: &'a mut [f32],
}

impl Kernel for CorrelateFew<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let (taps, filters) = (self.taps.len(), self.filters);
        let reach = self.taps.iter().fold(0, |most, tap| most.max(*tap)) as usize;
        assert!(self.places.is_multiple_of(SLACK) && filters <= BLOCK);
        assert!(self.x.len() >= reach + self.places);
        assert!(self.dy.len() >= BLOCK * self.places);
        assert!(self.dw.len() >= taps * BLOCK * BLOCK);
        let mut at = 0;
        macro_rules! tiles_of {
            ($sizes:tt, $f:literal) => {{
                macro_rules! tile {
                    ($m:literal) => {
                        // SAFETY: checked above; the taps are among all.
                        unsafe { self.tile::<_, $m, $f>(isa, at) }
                    };
                }
                tiles!(at, taps, $sizes, tile);
            }};
        }
        few!(I::Wide::REGISTERS, filters, tiles_of);
    }
}

impl CorrelateFew<'_> {
    /// `T` taps from `at` on by `F` filters.
    #[inline(always)]
    unsafe fn tile<I: Isa, const T: usize, const F: usize>(&mut self, isa: I, at: usize) {
        let (s, lanes) = (isa.wide(), I::Wide::LANES);
        let mut sums = [[s.zero(); F]; T];
        // SAFETY: as `run` checked.
        unsafe {
            let mut x = [self.x.as_ptr(); T];
            for (x, tap) in x.iter_mut().zip(&self.taps[at..]) {
                *x = x.add(*tap as usize);
            }
            let mut i = 0;
            while i < self.places {
                let dy = self.dy.as_ptr().add(i);
                // The fewer of both are in registers before the others come.
                if F < T {
                    let mut g = [s.zero(); F];
                    for (f, g) in g.iter_mut().enumerate() {
                        *g = s.load_ptr(dy.add(f * self.places));
                    }
                    for t in 0..T {
                        let own = s.load_ptr(x[t].add(i));
                        for f in 0..F {
                            sums[t][f] = s.fma(own, g[f], sums[t][f]);
                        }
                    }
                } else {
                    let mut own = [s.zero(); T];
                    for (own, x) in own.iter_mut().zip(x) {
                        *own = s.load_ptr(x.add(i));
                    }
                    for f in 0..F {
                        let g = s.load_ptr(dy.add(f * self.places));
                        for t in 0..T {
                            sums[t][f] = s.fma(own[t], g, sums[t][f]);
                        }
                    }
                }
                i += lanes;
            }
            let narrow = isa.narrow();
            for (t, sums) in sums.into_iter().enumerate() {
                for (f, sum) in sums.into_iter().enumerate() {
                    let mut halves = [0.0; SLACK];
                    s.store_ptr(sum, halves.as_mut_ptr());
                    let dw = &mut self.dw[((at + t) * BLOCK + f) * BLOCK..];
                    for half in halves[..lanes].chunks_exact(BLOCK) {
                        narrow.store(narrow.add(narrow.load(dw), narrow.load(half)), dw);
                    }
                }
            }
        }
    }
}

/// y of some of a strip's places for a block of filters that read one channel each:
///
/// ```text
/// y[k, p, i] = sum_tap w[tap, k] x[k, tap + p pitch + i]
/// ```
pub(crate) struct Each<'a, 'b, 'c> {
    /// One block.
    pub(crate) strip: Strip<'a>,
    /// As of [`Multiply`].
    pub(crate) taps: (Range<usize>, Range<usize>),
    pub(crate) range: (Range<usize>, Range<usize>),
    /// Eight weights for each tap.
    pub(crate) w: &'a [f32],
    pub(crate) y: &'b mut Field<'c>,
    /// The field's block that is this one.
    pub(crate) block: usize,
    pub(crate) places: Places,
    pub(crate) finish: Finish<'a>,
}

impl Kernel for Each<'_, '_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { strip, taps, range, w, y, block, places, .. } = &self;
        let s = isa.narrow();
        strip.check(places.rows, places.across());
        assert!(strip.spacing == BLOCK && strip.channels == BLOCK && *block < y.blocks);
        assert!(range.0.end <= places.rows && range.1.end <= places.across());
        assert!(places.within(y, BLOCK) && places.plane.is_none());
        assert!(w.len() >= strip.taps.len() * BLOCK);
        assert!(taps.1.end <= strip.across && taps.0.end * strip.across <= strip.taps.len());
        for row in range.0.clone() {
            let mut at = range.1.start;
            macro_rules! tile {
                ($m:literal) => {
                    // SAFETY: checked above; all places are in the range.
                    unsafe { self.tile::<_, $m>(s, row, at) }
                };
            }
            tiles!(at, range.1.end, [8, 4, 2, 1], tile);
        }
    }
}

impl Each<'_, '_, '_> {
    /// `M` places of a row from `at` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(&self, s: S, row: usize, at: usize) {
        let strip = &self.strip;
        let mut sums = [s.zero(); M];
        // SAFETY: as `run` checked.
        unsafe {
            let x = strip.x.as_ptr().add(row * strip.pitch + at * BLOCK);
            for i in self.taps.0.clone() {
                for j in self.taps.1.clone() {
                    let tap = i * strip.across + j;
                    let x = x.add(*strip.taps.get_unchecked(tap) as usize);
                    let w = s.load_ptr(self.w.as_ptr().add(tap * BLOCK));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = s.fma(s.load_ptr(x.add(i * BLOCK)), w, *sum);
                    }
                }
            }
            let Places { samples, column, .. } = self.places;
            let y = self.y.at.add(
                self.places.sample * self.y.sample
                    + self.block * self.y.block
                    + self.places.first
                    + row * self.places.row,
            );
            let shift = s.load_ptr(self.finish.shift.as_ptr());
            let (mut n, mut q) = (at % samples, at / samples);
            for sum in sums {
                let mut sum = s.add(sum, shift);
                if let Some((slope, top)) = self.finish.clamp {
                    sum = limit(s, sum, slope, top);
                }
                s.store_ptr(sum, y.add(n * self.y.sample + q * column));
                n += 1;
                if n == samples {
                    (n, q) = (0, q + 1);
                }
            }
        }
    }
}

/// Adds to the gradient of one tap's eight weights that read one channel each:
///
/// ```text
/// dw[k] += sum_{p, i} x[k, p, i] dy[k, p, i]
/// ```
pub(crate) struct CorrelateEach<'a> {
    /// Blocks from the first place's on, and numbers from one row to the next.
    pub(crate) x: &'a [f32],
    pub(crate) x_pitch: usize,
    pub(crate) dy: &'a [f32],
    pub(crate) dy_pitch: usize,
    pub(crate) rows: usize,
    pub(crate) places: usize,
    /// Eight numbers.
    pub(crate) dw: &'a mut [f32],
}

impl Kernel for CorrelateEach<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let s = isa.narrow();
        let len = self.places * BLOCK;
        let mut sums = [s.zero(); 8];
        for row in 0..self.rows {
            let x = &self.x[row * self.x_pitch..][..len];
            let dy = &self.dy[row * self.dy_pitch..][..len];
            let (mut x, mut dy) = (x.chunks_exact(8 * BLOCK), dy.chunks_exact(8 * BLOCK));
            for (x, dy) in x.by_ref().zip(dy.by_ref()) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = s.fma(s.load(&x[i * BLOCK..]), s.load(&dy[i * BLOCK..]), *sum);
                }
            }
            let rest = x.remainder().chunks_exact(BLOCK).zip(dy.remainder().chunks_exact(BLOCK));
            for (x, dy) in rest {
                sums[0] = s.fma(s.load(x), s.load(dy), sums[0]);
            }
        }
        let sum = sums.into_iter().fold(s.load(self.dw), |sum, next| s.add(sum, next));
        s.store(sum, self.dw);
    }
}
