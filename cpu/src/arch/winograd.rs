//! The inner loops of Winograd convolution: transforms of tiles, and the products between them.
//!
//! A kernel slides over tiles of a few outputs, each of which reads as many more rows and columns
//! of the input as the kernel has beyond the first. In one dimension, with the matrices of Lavin
//! and Gray (2016),
//!
//! ```text
//! y = A' ((G w) . (B' d))         d: M + R - 1 inputs, w: R weights, y: M outputs
//! ```
//! and in two the transforms apply to columns and then to rows. Of each channel, as many numbers
//! are left as the tile has inputs, that are multiplied with as many of each filter and summed over
//! channels: one matrix product for each of these frequencies.
//!
//! | kernel | tile | multiplications for an output and channel | of the plain sum |
//! |---|---|---|---|
//! | 3x3 | 4x4 | 2.25 | 9 |
//! | 3x3 | 2x2 | 4 | 9 |
//! | 5x5 | 2x4 | 6 | 25 |
//! | 1x3, 3x1 | 1x6, 6x1 | 1.33 | 3 |
//!
//! Channels come in blocks of eight, filters in panels of 32. Between the steps lie
//!
//! | name | what | order |
//! |---|---|---|
//! | U | transformed weights of a panel | frequency, channel, filter |
//! | V | transformed input of some tiles | frequency, group of tiles, block, tile, channel |
//! | M | products of a panel | frequency, tile, filter |
//!
//! so that the product reads both factors from first to last.
//!
//! The gradient of the weights is the sum over tiles of G' ((B' d B) . (A dy A')) G: the same V in
//! one group of tiles, and in place of M the transformed gradient of a panel. Their products over
//! a block of tiles go back to weights at once, as all frequencies of each channel and filter are
//! too many to keep.
#![allow(unsafe_code)]
#![expect(
    clippy::needless_range_loop,
    reason = "tiles have rows and columns, which two indices name"
)]

mod axis;

use core::marker::PhantomData;
use core::ops::Range;

pub(crate) use self::axis::Form;
use self::axis::{
    Axis, Formed, MOST, MOST_FREQUENCIES, MOST_TAPS, gather, scatter, spread, unweigh, weigh,
};
use super::{Isa, Kernel, Narrow, Simd};

/// Filters of a panel.
pub(crate) const PANEL: usize = 32;

/// Channels of a block.
const BLOCK: usize = 8;

/// Columns of the input that are transformed at once: 8 tiles of 4 and a kernel of 3, or fewer.
const COLUMNS: usize = 34;

/// Columns that are asked for ahead of those in use: of a single row more than a page, where the
/// machine stops to ask by itself, else the tile after the next.
const fn ahead<D: Axis, A: Axis>() -> usize {
    if D::M == 1 { 144 } else { 2 * A::M }
}

/// Numbers of scratch that [`Spread`] takes.
pub(crate) const STRIP: usize = MOST * COLUMNS * BLOCK;

/// A row outside of the image.
static OUTSIDE: [f32; COLUMNS * BLOCK] = [0.0; COLUMNS * BLOCK];

/// Where the tiles of an image lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) form: Form,
    /// Rows and columns of the input.
    pub(crate) input: (usize, usize),
    /// Rows and columns of the output.
    pub(crate) output: (usize, usize),
    /// Zeros above and on the left.
    pub(crate) pad: (usize, usize),
}

/// Some tiles of one row of an image.
struct Span {
    image: usize,
    row: usize,
    column: usize,
    /// Where the first lies among the tiles asked for.
    first: usize,
    len: usize,
}

impl Grid {
    /// Tiles down and across.
    const fn tiles(&self) -> (usize, usize) {
        let (down, across) = self.form.tile();
        (self.output.0.div_ceil(down), self.output.1.div_ceil(across))
    }

    /// Tiles of an image.
    pub(crate) const fn len(&self) -> usize {
        self.tiles().0 * self.tiles().1
    }

    /// Images that tiles up to `past` lie in.
    const fn images(&self, past: usize) -> usize {
        past.div_ceil(self.len())
    }

    /// Columns of tiles that read no padding on the left or the right.
    fn inner(&self) -> Range<usize> {
        let (tile, taps) = (self.form.tile().1, self.form.kernel().1);
        let past = (self.input.1 + self.pad.1 + 1).saturating_sub(taps) / tile;
        let first = self.pad.1.div_ceil(tile).min(past);
        first..past
    }

    /// The tiles of a range, over images, rows and columns, each span at most `most` long; those of
    /// the columns `whole` are spans of their own, of any length.
    #[inline(always)]
    fn spans(
        self,
        tiles: Range<usize>,
        most: usize,
        whole: Range<usize>,
    ) -> impl Iterator<Item = Span> {
        let (across, all) = (self.tiles().1, self.len());
        let mut next = tiles.start;
        core::iter::from_fn(move || {
            let at = next;
            if at >= tiles.end {
                return None;
            }
            let (image, rest) = (at / all, at % all);
            let (row, column) = (rest / across, rest % across);
            let len = match column {
                _ if whole.contains(&column) => whole.end - column,
                _ if column < whole.start => most.min(whole.start - column),
                _ => most,
            };
            let len = len.min(across - column).min(tiles.end - at);
            next = at + len;
            Some(Span { image, row, column, first: at - tiles.start, len })
        })
    }
}

/// Tiles in groups, one for each run of the innermost product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    /// Tiles.
    pub(crate) count: usize,
    /// Tiles of a group, even; the last may have fewer.
    pub(crate) size: usize,
}

impl Groups {
    /// As few groups as the product of a set allows, all about as large.
    pub(crate) const fn new(count: usize, most: usize) -> Self {
        let groups = count.div_ceil(most);
        Self {
            count,
            size: count.div_ceil(if groups == 0 { 1 } else { groups }).next_multiple_of(2),
        }
    }

    /// All in one.
    pub(crate) const fn one(count: usize) -> Self {
        Self { count, size: count.next_multiple_of(2) }
    }

    /// Tiles with those that make the last group even.
    pub(crate) const fn padded(&self) -> usize {
        self.count.next_multiple_of(2)
    }

    /// Where a block of a tile lies among those of a frequency.
    const fn place(&self, blocks: usize, block: usize, tile: usize) -> usize {
        let first = tile / self.size * self.size;
        (first * blocks + block * self.rows(first) + tile - first) * BLOCK
    }

    /// Tiles of the group that begins with `first`, made even.
    const fn rows(&self, first: usize) -> usize {
        let (rest, size) = (self.count - first, self.size);
        (if rest < size { rest } else { size }).next_multiple_of(2)
    }
}

/// Writes V: B' d B of every tile and channel.
pub(crate) struct Spread<'a> {
    pub(crate) grid: Grid,
    /// Blocks of channels.
    pub(crate) blocks: usize,
    /// Samples, from the first tile's of number 0 on.
    pub(crate) x: &'a [f32],
    /// Which tiles, counted over all samples.
    pub(crate) tiles: Range<usize>,
    pub(crate) groups: Groups,
    /// V, `stride` numbers for a frequency.
    pub(crate) v: &'a mut [f32],
    pub(crate) stride: usize,
    /// [`STRIP`] numbers.
    pub(crate) strip: &'a mut [f32],
}

impl Formed for Spread<'_> {
    fn form(&self) -> Form {
        self.grid.form
    }

    #[inline(always)]
    fn run_axes<I: Isa, D: Axis, A: Axis>(self, isa: I) {
        let s = isa.narrow();
        let Self { grid, blocks, x, tiles, groups, v, stride, strip } = self;
        let ((h, w), plane) = (grid.input, grid.input.0 * grid.input.1 * BLOCK);
        assert!(grid.form.has::<D, A>() && groups.count == tiles.len());
        assert!(x.len() >= grid.images(tiles.end) * blocks * plane);
        assert!(stride >= groups.padded() * blocks * BLOCK);
        assert!(v.len() >= D::T * A::T * stride && strip.len() >= STRIP);
        // With one row and no padding, a tile is transformed from where it lies.
        let whole = if D::T == 1 { grid.inner() } else { 0..0 };
        for span in grid.spans(tiles, (COLUMNS - (A::T - A::M)) / A::M, whole.clone()) {
            if whole.contains(&span.column) {
                let row = (span.row * w + span.column * A::M - grid.pad.1) * BLOCK;
                for block in 0..blocks {
                    let image = &x[(span.image * blocks + block) * plane..][..plane];
                    let image = &image[row..][..(span.len * A::M + A::T - A::M) * BLOCK];
                    for tile in 0..span.len {
                        let to = groups.place(blocks, block, span.first + tile);
                        // SAFETY: the image has T columns from that of the tile on. In V a
                        // frequency has `stride` numbers, as many as all groups, of which this
                        // tile and block have the eight from `to` on.
                        unsafe {
                            let from = image.as_ptr().add(tile * A::M * BLOCK);
                            for j in (0..A::M).step_by(2) {
                                s.prefetch(from.wrapping_add((ahead::<D, A>() + j) * BLOCK));
                            }
                            across::<_, A>(s, from, v.as_mut_ptr().add(to), stride);
                        }
                    }
                }
                continue;
            }
            // Columns of the strip that lie inside the image, and the column that the first reads.
            let (left, past) = (span.column * A::M, span.len * A::M + A::T - A::M);
            let inside = grid.pad.1.saturating_sub(left);
            let end = (w + grid.pad.1).saturating_sub(left).clamp(inside, past);
            let column = (left + inside).saturating_sub(grid.pad.1);
            for row in strip.chunks_exact_mut(COLUMNS * BLOCK).take(D::T) {
                row[..inside * BLOCK].fill(0.0);
                row[end * BLOCK..past * BLOCK].fill(0.0);
            }
            let mut rows = [None; MOST];
            for (i, row) in rows.iter_mut().enumerate().take(D::T) {
                let at = (span.row * D::M + i).checked_sub(grid.pad.0).filter(|&at| at < h);
                *row = at.map(|at| (at * w + column) * BLOCK);
            }
            for block in 0..blocks {
                let image = &x[(span.image * blocks + block) * plane..][..plane];
                let mut from = [OUTSIDE.as_ptr(); MOST];
                for (from, row) in from.iter_mut().zip(rows) {
                    if let Some(row) = row {
                        *from = image[row..].as_ptr();
                    }
                }
                // SAFETY: columns `inside..end` of the strip, at most COLUMNS, lie inside of the
                // image: each row pointer has as many blocks before it as its row, or those of
                // OUTSIDE. The strip holds MOST rows of COLUMNS blocks.
                unsafe {
                    let strip = strip.as_mut_ptr();
                    for c in 0..end - inside {
                        let mut d = [s.zero(); MOST];
                        for i in 0..D::T {
                            let from = from[i].add(c * BLOCK);
                            d[i] = s.load_ptr(from);
                            // The next block, too far for the machine to see it coming.
                            s.prefetch(from.wrapping_add(plane));
                        }
                        let d = spread::<_, D>(s, d);
                        for i in 0..D::T {
                            s.store_ptr(d[i], strip.add((i * COLUMNS + inside + c) * BLOCK));
                        }
                    }
                }
                for tile in 0..span.len {
                    let to = groups.place(blocks, block, span.first + tile);
                    // SAFETY: a tile reads T columns of each row of the strip, which holds those of
                    // all tiles of the span; in V as above.
                    unsafe {
                        let from = strip.as_ptr().add(tile * A::M * BLOCK);
                        let to = v.as_mut_ptr().add(to);
                        for i in 0..D::T {
                            let from = from.add(i * COLUMNS * BLOCK);
                            across::<_, A>(s, from, to.add(i * A::T * stride), stride);
                        }
                    }
                }
            }
        }
    }
}

/// Transforms a row of a tile.
///
/// # Safety
/// `from` is valid for reads of T blocks, `to` for writes of as many, each `stride` numbers after
/// the one before.
#[inline(always)]
unsafe fn across<S: Simd, A: Axis>(s: S, from: *const f32, to: *mut f32, stride: usize) {
    let mut d = [s.zero(); MOST];
    // SAFETY: the caller says that this may be read and written.
    unsafe {
        for j in 0..A::T {
            d[j] = s.load_ptr(from.add(j * BLOCK));
        }
        let d = spread::<_, A>(s, d);
        for j in 0..A::T {
            s.store_ptr(d[j], to.add(j * stride));
        }
    }
}

/// Writes M: V U of every frequency.
pub(crate) struct Multiply<'a> {
    pub(crate) frequencies: usize,
    pub(crate) groups: Groups,
    /// Blocks of channels.
    pub(crate) blocks: usize,
    /// V, `v_stride` numbers for a frequency.
    pub(crate) v: &'a [f32],
    pub(crate) v_stride: usize,
    /// U of one panel, `u_stride` numbers for a frequency.
    pub(crate) u: &'a [f32],
    pub(crate) u_stride: usize,
    /// Filters of the panel: a multiple of 8, at most [`PANEL`].
    pub(crate) width: usize,
    /// M, `m_stride` numbers for a frequency, [`PANEL`] for a tile.
    pub(crate) m: &'a mut [f32],
    pub(crate) m_stride: usize,
}

/// Tiles that [`Multiply`] has in registers at once.
pub(crate) struct Rows;

impl Kernel for Rows {
    type Out = usize;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> usize {
        most::<I>()
    }
}

/// Vectors of filters that are multiplied at once.
const fn wide<I: Isa>() -> usize {
    if I::Wide::REGISTERS < 16 { 1 } else { 2 }
}

/// As many tiles as leave registers for the filters and one channel.
const fn most<I: Isa>() -> usize {
    let most = (I::Wide::REGISTERS - wide::<I>() - 1) / wide::<I>();
    most - most % 2
}

impl Kernel for Multiply<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { frequencies, groups, blocks, v, v_stride, u, u_stride, width, m, m_stride } =
            self;
        let channels = blocks * BLOCK;
        assert!(width.is_multiple_of(BLOCK) && width <= PANEL);
        assert!(groups.size.is_multiple_of(2) && groups.size <= most::<I>());
        assert!(v_stride >= groups.padded() * channels && v.len() >= frequencies * v_stride);
        assert!(u_stride >= channels * width && u.len() >= frequencies * u_stride);
        assert!(m_stride >= groups.padded() * PANEL && m.len() >= frequencies * m_stride);
        for f in 0..frequencies {
            for first in (0..groups.count).step_by(groups.size.max(1)) {
                // SAFETY: a group begins with tile `first` and has `rows` tiles, of `channels`
                // numbers in V and PANEL in M; both hold `padded` tiles for each frequency. U has
                // `channels` rows of `width` for each.
                unsafe {
                    let v = v.as_ptr().add(f * v_stride + first * channels);
                    let u = u.as_ptr().add(f * u_stride);
                    let m = m.as_mut_ptr().add(f * m_stride + first * PANEL);
                    match groups.rows(first) {
                        2 => columns::<I, 2>(isa, blocks, v, u, width, m),
                        4 if most::<I>() >= 4 => columns::<I, 4>(isa, blocks, v, u, width, m),
                        6 if most::<I>() >= 6 => columns::<I, 6>(isa, blocks, v, u, width, m),
                        8 if most::<I>() >= 8 => columns::<I, 8>(isa, blocks, v, u, width, m),
                        10 if most::<I>() >= 10 => columns::<I, 10>(isa, blocks, v, u, width, m),
                        12 if most::<I>() >= 12 => columns::<I, 12>(isa, blocks, v, u, width, m),
                        14 if most::<I>() >= 14 => columns::<I, 14>(isa, blocks, v, u, width, m),
                        rows => unreachable!("a group of {rows}"),
                    }
                }
            }
        }
    }
}

/// One group of tiles with all filters of a panel.
///
/// # Safety
/// `v` is valid for reads of `ROWS` numbers for each channel, `u` of `width`; `m` for writes of
/// `ROWS` rows of `PANEL` numbers.
#[inline(always)]
unsafe fn columns<I: Isa, const ROWS: usize>(
    isa: I,
    blocks: usize,
    v: *const f32,
    u: *const f32,
    width: usize,
    m: *mut f32,
) {
    let (mut at, lanes) = (0, I::Wide::LANES);
    // SAFETY: each call reads and writes columns up to `width`.
    unsafe {
        if wide::<I>() == 2 {
            while at + 2 * lanes <= width {
                product::<_, ROWS, 2>(isa.wide(), blocks, v, u.add(at), width, m.add(at));
                at += 2 * lanes;
            }
        }
        while at + lanes <= width {
            product::<_, ROWS, 1>(isa.wide(), blocks, v, u.add(at), width, m.add(at));
            at += lanes;
        }
        if lanes > BLOCK && at < width {
            product::<_, ROWS, 1>(isa.narrow(), blocks, v, u.add(at), width, m.add(at));
        }
    }
}

/// # Safety
/// As [`columns`], for `VECTORS` vectors of the panel.
#[inline(always)]
unsafe fn product<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    blocks: usize,
    mut v: *const f32,
    mut u: *const f32,
    width: usize,
    m: *mut f32,
) {
    let mut sums = [[s.zero(); VECTORS]; ROWS];
    // SAFETY: the caller says that this may be read and written.
    unsafe {
        for _ in 0..blocks {
            for c in 0..BLOCK {
                let mut w = [s.zero(); VECTORS];
                for (i, w) in w.iter_mut().enumerate() {
                    *w = s.load_ptr(u.add(i * S::LANES));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = s.splat(*v.add(row * BLOCK + c));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = s.fma(x, w, *sum);
                    }
                }
                u = u.add(width);
            }
            v = v.add(ROWS * BLOCK);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                s.store_ptr(*sum, m.add(row * PANEL + i * S::LANES));
            }
        }
    }
}

/// Some panels of filters of all samples of y: what one task writes.
pub(crate) struct Panels<'a> {
    y: *mut f32,
    samples: usize,
    /// Blocks of filters of a sample.
    blocks: usize,
    /// Numbers of a block.
    plane: usize,
    own: Range<usize>,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: no other value writes the panels of this one.
unsafe impl Send for Panels<'_> {}

impl<'a> Panels<'a> {
    /// All of y, whose samples have `filters` filters.
    ///
    /// # Panics
    /// Where y has fewer samples.
    pub(crate) fn new(grid: Grid, samples: usize, filters: usize, y: &'a mut [f32]) -> Self {
        let (blocks, plane) = (filters.div_ceil(BLOCK), grid.output.0 * grid.output.1 * BLOCK);
        assert!(y.len() >= samples * blocks * plane);
        let own = 0..filters.div_ceil(PANEL);
        Self { y: y.as_mut_ptr(), samples, blocks, plane, own, borrowed: PhantomData }
    }

    /// Which they are.
    pub(crate) fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    /// Those before panel `at`, and the others.
    pub(crate) fn split_at(self, at: usize) -> (Self, Self) {
        let at = at.clamp(self.own.start, self.own.end);
        (Self { own: self.own.start..at, ..self }, Self { own: at..self.own.end, ..self })
    }
}

/// Writes y: A' M A of every tile and filter of a panel, with what follows a convolution.
pub(crate) struct Gather<'a, 'b> {
    pub(crate) grid: Grid,
    pub(crate) panel: usize,
    pub(crate) tiles: Range<usize>,
    /// M, `stride` numbers for a frequency.
    pub(crate) m: &'a [f32],
    pub(crate) stride: usize,
    /// A summand for each filter.
    pub(crate) shift: &'a [f32; PANEL],
    /// y becomes `max(y, slope y)`, then `min(y, top)`.
    pub(crate) slope: f32,
    pub(crate) top: f32,
    pub(crate) y: &'a mut Panels<'b>,
}

impl Formed for Gather<'_, '_> {
    fn form(&self) -> Form {
        self.grid.form
    }

    #[inline(always)]
    fn run_axes<I: Isa, D: Axis, A: Axis>(self, isa: I) {
        let s = isa.narrow();
        let Self { grid, panel, tiles, m, stride, shift, slope, top, y } = self;
        let ((p, q), plane, blocks) = (grid.output, y.plane, y.blocks);
        assert!(grid.form.has::<D, A>());
        assert!(y.own.contains(&panel) && plane == p * q * BLOCK);
        assert!(grid.images(tiles.end) <= y.samples);
        assert!(stride >= tiles.len() * PANEL && m.len() >= D::T * A::T * stride);
        let first_block = panel * (PANEL / BLOCK);
        let panel = first_block..blocks.min(first_block + PANEL / BLOCK);
        let (factor, top) = (s.splat(slope), s.splat(top));
        for span in grid.spans(tiles, usize::MAX, 0..0) {
            let down = (p - span.row * D::M).min(D::M);
            for tile in 0..span.len {
                let (first, column) = (span.first + tile, span.column + tile);
                let across = (q - column * A::M).min(A::M);
                for (i, block) in panel.clone().enumerate() {
                    let image = (span.image * blocks + block) * plane;
                    let to = image + (span.row * D::M * q + column * A::M) * BLOCK;
                    let shift = s.load(&shift[i * BLOCK..]);
                    // SAFETY: in M a frequency has `stride` numbers, PANEL for each tile, of
                    // which each block of the panel has eight. In y, whose samples and blocks are
                    // there and whose panel nobody else writes, the tile begins at `to`, and
                    // `down` rows and `across` columns of it lie inside of the output.
                    unsafe {
                        let from = m.as_ptr().add(first * PANEL + i * BLOCK);
                        let to = y.y.add(to);
                        let mut half = [[s.zero(); MOST]; MOST];
                        for j in 0..A::T {
                            let mut m = [s.zero(); MOST];
                            for i in 0..D::T {
                                m[i] = s.load_ptr(from.add((i * A::T + j) * stride));
                            }
                            let y = gather::<_, D>(s, m);
                            for i in 0..D::M {
                                half[i][j] = y[i];
                            }
                        }
                        for i in 0..D::M {
                            if i >= down {
                                break;
                            }
                            let y = gather::<_, A>(s, half[i]);
                            for j in 0..A::M {
                                if j >= across {
                                    break;
                                }
                                let y = s.add(y[j], shift);
                                // Infinity times 0 would be NaN.
                                let low = if slope == 0.0 { s.zero() } else { s.mul(factor, y) };
                                // The second of two is taken where one is NaN.
                                let y = s.min(top, s.max(low, y));
                                let to = to.add((i * q + j) * BLOCK);
                                s.store_ptr(y, to);
                                s.prefetch(to.wrapping_add(ahead::<D, A>() * BLOCK));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Writes U of a panel: G w G' of every filter.
pub(crate) struct Weigh<'a> {
    pub(crate) form: Form,
    /// (K, C, R, S), or (C, K, R, S) with the taps turned round.
    pub(crate) weight: &'a [f32],
    pub(crate) transposed: bool,
    /// A factor for each of the first axis, or nothing.
    pub(crate) scale: &'a [f32],
    /// Channels and filters.
    pub(crate) channels: usize,
    pub(crate) filters: usize,
    pub(crate) panel: usize,
    /// Filters of the panel: a multiple of 8, at most [`PANEL`].
    pub(crate) width: usize,
    /// U, `stride` numbers for a frequency.
    pub(crate) u: &'a mut [f32],
    pub(crate) stride: usize,
}

/// Weights of a channel and eight filters, and as many more as a vector may be too long.
const WEIGHTS: usize = BLOCK * MOST_TAPS + BLOCK;

impl Formed for Weigh<'_> {
    fn form(&self) -> Form {
        self.form
    }

    #[inline(always)]
    fn run_axes<I: Isa, D: Axis, A: Axis>(mut self, isa: I) {
        let (s, taps) = (isa.narrow(), D::R * A::R);
        let (blocks, width) = (self.channels.div_ceil(BLOCK), self.width);
        assert!(self.form.has::<D, A>() && width.is_multiple_of(BLOCK) && width <= PANEL);
        assert!(taps <= MOST_TAPS && self.stride >= blocks * BLOCK * width);
        assert!(self.u.len() >= D::T * A::T * self.stride);
        // Of a block of channels and eight filters each: channel, tap, filter.
        let (mut own, len) = ([0.0; PANEL * MOST_TAPS * BLOCK], BLOCK * taps * BLOCK);
        let mut padded = [[0.0; WEIGHTS]; BLOCK];
        for block in 0..blocks {
            for (i, own) in own.chunks_exact_mut(len).enumerate().take(width / BLOCK) {
                let filter = self.panel * PANEL + i * BLOCK;
                if self.transposed {
                    self.turned(s, taps, block * BLOCK, filter, own, &mut padded[0]);
                } else {
                    self.straight(s, taps, block * BLOCK, filter, own, &mut padded);
                }
            }
            for c in 0..BLOCK {
                for (i, own) in own.chunks_exact(len).enumerate().take(width / BLOCK) {
                    let to = (block * BLOCK + c) * width + i * BLOCK;
                    self.channel::<_, D, A>(s, &own[c * taps * BLOCK..], to);
                }
            }
        }
    }
}

impl Weigh<'_> {
    fn scale(&self, at: usize) -> f32 {
        self.scale.get(at).copied().unwrap_or(1.0)
    }

    /// Eight channels from `channel` on of as many filters.
    #[inline(always)]
    fn straight<S: Narrow>(
        &self,
        s: S,
        taps: usize,
        channel: usize,
        filter: usize,
        own: &mut [f32],
        padded: &mut [[f32; WEIGHTS]; BLOCK],
    ) {
        let len = (self.channels - channel).min(BLOCK) * taps;
        let (mut rows, mut scale): ([&[f32]; BLOCK], _) = ([&[]; BLOCK], [1.0; BLOCK]);
        for (i, (row, padded)) in rows.iter_mut().zip(padded).enumerate() {
            if filter + i < self.filters {
                *row = &self.weight[((filter + i) * self.channels + channel) * taps..][..len];
                scale[i] = self.scale(filter + i);
            }
            if row.len() < BLOCK * taps {
                padded[..row.len()].copy_from_slice(row);
                padded[row.len()..].fill(0.0);
                *row = padded;
            }
        }
        let scale = s.load(&scale);
        for at in (0..BLOCK * taps).step_by(BLOCK) {
            let mut w = [s.zero(); BLOCK];
            for (w, row) in w.iter_mut().zip(rows) {
                *w = s.load(&row[at..]);
            }
            for (i, w) in s.transpose(w).into_iter().enumerate() {
                s.store(s.mul(scale, w), &mut own[(at + i) * BLOCK..]);
            }
        }
    }

    /// The same with both axes and the taps turned round.
    #[inline(always)]
    fn turned<S: Narrow>(
        &self,
        s: S,
        taps: usize,
        channel: usize,
        filter: usize,
        own: &mut [f32],
        padded: &mut [f32; WEIGHTS],
    ) {
        let len = (self.filters - filter).min(BLOCK) * taps;
        for (c, own) in (channel..).zip(own.chunks_exact_mut(taps * BLOCK)) {
            if c >= self.channels {
                own.fill(0.0);
                continue;
            }
            let mut weight = &self.weight[(c * self.filters + filter) * taps..];
            if len < BLOCK * taps || weight.len() < BLOCK * taps + BLOCK {
                padded[..len].copy_from_slice(&weight[..len]);
                padded[len..].fill(0.0);
                weight = padded;
            }
            let scale = s.splat(self.scale(c));
            for at in (0..taps).step_by(BLOCK) {
                let mut w = [s.zero(); BLOCK];
                for (i, w) in w.iter_mut().enumerate() {
                    *w = s.load(&weight[i * taps + at..]);
                }
                for (tap, w) in (at..taps).zip(s.transpose(w)) {
                    s.store(s.mul(scale, w), &mut own[(taps - 1 - tap) * BLOCK..]);
                }
            }
        }
    }

    /// One channel of eight filters, whose numbers of each frequency begin at `to`.
    #[inline(always)]
    fn channel<S: Simd, D: Axis, A: Axis>(&mut self, s: S, own: &[f32], to: usize) {
        assert!(to + BLOCK <= self.stride && self.u.len() >= D::T * A::T * self.stride);
        let mut half = [[s.zero(); MOST]; MOST];
        for j in 0..A::R {
            let mut w = [s.zero(); MOST];
            for i in 0..D::R {
                w[i] = s.load(&own[(i * A::R + j) * BLOCK..]);
            }
            let w = weigh::<_, D>(s, w);
            for i in 0..D::T {
                half[i][j] = w[i];
            }
        }
        // SAFETY: U has `stride` numbers for each frequency, of which these are eight.
        unsafe {
            let to = self.u.as_mut_ptr().add(to);
            for i in 0..D::T {
                let w = weigh::<_, A>(s, half[i]);
                for j in 0..A::T {
                    s.store_ptr(w[j], to.add((i * A::T + j) * self.stride));
                }
            }
        }
    }
}

/// Writes A dy A' of every tile and filter of a panel, ordered as M.
pub(crate) struct Scatter<'a> {
    pub(crate) grid: Grid,
    /// Blocks of filters of dy.
    pub(crate) blocks: usize,
    /// Those of the panel.
    pub(crate) panel: Range<usize>,
    pub(crate) tiles: Range<usize>,
    /// Samples.
    pub(crate) dy: &'a [f32],
    /// `stride` numbers for a frequency, [`PANEL`] for a tile.
    pub(crate) m: &'a mut [f32],
    pub(crate) stride: usize,
}

impl Formed for Scatter<'_> {
    fn form(&self) -> Form {
        self.grid.form
    }

    #[inline(always)]
    fn run_axes<I: Isa, D: Axis, A: Axis>(self, isa: I) {
        let s = isa.narrow();
        let Self { grid, blocks, panel, tiles, dy, m, stride } = self;
        let ((p, q), plane) = (grid.output, grid.output.0 * grid.output.1 * BLOCK);
        assert!(grid.form.has::<D, A>());
        assert!(panel.end <= blocks && panel.len() * BLOCK <= PANEL);
        assert!(dy.len() >= grid.images(tiles.end) * blocks * plane);
        assert!(stride >= tiles.len() * PANEL && m.len() >= D::T * A::T * stride);
        for span in grid.spans(tiles, usize::MAX, 0..0) {
            let down = (p - span.row * D::M).min(D::M);
            for tile in 0..span.len {
                let (first, column) = (span.first + tile, span.column + tile);
                let across = (q - column * A::M).min(A::M);
                for (i, block) in panel.clone().enumerate() {
                    let image = (span.image * blocks + block) * plane;
                    let from = image + (span.row * D::M * q + column * A::M) * BLOCK;
                    // SAFETY: as for `Gather`, with reads and writes in turned places.
                    unsafe {
                        let from = dy.as_ptr().add(from);
                        let to = m.as_mut_ptr().add(first * PANEL + i * BLOCK);
                        let mut half = [[s.zero(); MOST]; MOST];
                        for j in 0..A::M {
                            if j >= across {
                                break;
                            }
                            let mut y = [s.zero(); MOST];
                            for i in 0..D::M {
                                if i < down {
                                    let from = from.add((i * q + j) * BLOCK);
                                    y[i] = s.load_ptr(from);
                                    s.prefetch(from.wrapping_add(ahead::<D, A>() * BLOCK));
                                }
                            }
                            let y = scatter::<_, D>(s, y);
                            for i in 0..D::T {
                                half[i][j] = y[i];
                            }
                        }
                        for i in 0..D::T {
                            let y = scatter::<_, A>(s, half[i]);
                            for j in 0..A::T {
                                s.store_ptr(y[j], to.add((i * A::T + j) * stride));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Numbers that [`Correlate`] writes, at most.
pub(crate) const PRODUCTS: usize = MOST_FREQUENCIES * BLOCK * PANEL;

/// Writes the products over tiles of a block of channels with the filters of a panel.
pub(crate) struct Correlate<'a> {
    pub(crate) frequencies: usize,
    /// Tiles.
    pub(crate) tiles: usize,
    /// Which block of V.
    pub(crate) block: usize,
    /// V of one group of tiles, `v_stride` numbers for a frequency.
    pub(crate) v: &'a [f32],
    pub(crate) v_stride: usize,
    /// What [`Scatter`] writes, `dy_stride` numbers for a frequency.
    pub(crate) dy: &'a [f32],
    pub(crate) dy_stride: usize,
    /// Filters of the panel: a multiple of 8, at most [`PANEL`].
    pub(crate) width: usize,
    /// Frequency, channel, [`PANEL`] filters.
    pub(crate) products: &'a mut [f32],
}

impl Kernel for Correlate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { frequencies, tiles, block, v, v_stride, dy, dy_stride, width, products } = self;
        let rows = Groups::one(tiles).padded() * BLOCK;
        assert!(width.is_multiple_of(BLOCK) && width <= PANEL);
        assert!(v_stride >= (block + 1) * rows && v.len() >= frequencies * v_stride);
        assert!(dy_stride >= tiles * PANEL && dy.len() >= frequencies * dy_stride);
        assert!(products.len() >= frequencies * BLOCK * PANEL);
        for f in 0..frequencies {
            // SAFETY: of each frequency V has `rows` numbers for a block, eight for each tile, dy
            // has PANEL for each tile, and the products have eight rows of PANEL.
            unsafe {
                let v = v.as_ptr().add(f * v_stride + block * rows);
                let dy = dy.as_ptr().add(f * dy_stride);
                let products = products.as_mut_ptr().add(f * BLOCK * PANEL);
                if I::Wide::REGISTERS >= 32 {
                    filters::<I, 8>(isa, tiles, v, dy, width, products);
                } else {
                    filters::<I, 4>(isa, tiles, v, dy, width, products);
                    let products = products.add(4 * PANEL);
                    filters::<I, 4>(isa, tiles, v.add(4), dy, width, products);
                }
            }
        }
    }
}

/// Adds G' d G of what [`Correlate`] writes to the gradient of the weights.
pub(crate) struct Unweigh<'a> {
    pub(crate) form: Form,
    /// Channels of the block.
    pub(crate) channels: usize,
    /// Filters of the panel: a multiple of 8, at most [`PANEL`].
    pub(crate) width: usize,
    pub(crate) products: &'a [f32],
    /// The gradient of these channels: channel, tap, filter.
    pub(crate) dw: &'a mut [f32],
}

impl Formed for Unweigh<'_> {
    fn form(&self) -> Form {
        self.form
    }

    #[inline(always)]
    fn run_axes<I: Isa, D: Axis, A: Axis>(self, isa: I) {
        let (Self { form, channels, width, products, dw }, taps) = (self, D::R * A::R);
        assert!(form.has::<D, A>() && width.is_multiple_of(BLOCK) && width <= PANEL);
        assert!(channels <= BLOCK && products.len() >= D::T * A::T * BLOCK * PANEL);
        assert!(dw.len() >= channels * taps * width);
        for c in 0..channels {
            for filter in (0..width).step_by(BLOCK) {
                // SAFETY: the products have a row of PANEL numbers for each of eight channels of a
                // frequency, dw has one of `width` for each channel and tap.
                unsafe {
                    let from = products.as_ptr().add(c * PANEL + filter);
                    let to = dw.as_mut_ptr().add(c * taps * width + filter);
                    back::<_, D, A>(isa.narrow(), from, to, width);
                }
            }
        }
    }
}

/// G' d G of eight filters and one channel, added to their weights' gradient.
///
/// # Safety
/// `from` is valid for reads of eight numbers of each frequency, `to` for writes of eight of each
/// tap, in rows of `width`.
#[inline(always)]
unsafe fn back<S: Simd, D: Axis, A: Axis>(s: S, from: *const f32, to: *mut f32, width: usize) {
    let mut half = [[s.zero(); MOST]; MOST];
    // SAFETY: the caller says that this may be read and written.
    unsafe {
        for j in 0..A::T {
            let mut d = [s.zero(); MOST];
            for i in 0..D::T {
                d[i] = s.load_ptr(from.add((i * A::T + j) * BLOCK * PANEL));
            }
            let d = unweigh::<_, D>(s, d);
            for i in 0..D::R {
                half[i][j] = d[i];
            }
        }
        for i in 0..D::R {
            let w = unweigh::<_, A>(s, half[i]);
            for j in 0..A::R {
                let to = to.add((i * A::R + j) * width);
                s.store_ptr(s.add(s.load_ptr(to), w[j]), to);
            }
        }
    }
}

/// Products over tiles of `ROWS` channels with all filters of a panel.
///
/// # Safety
/// `v` is valid for reads of `ROWS` numbers of every eight for each tile, `dy` of `width` of every
/// `PANEL`; `to` for writes of `ROWS` rows of `PANEL` numbers.
#[inline(always)]
unsafe fn filters<I: Isa, const ROWS: usize>(
    isa: I,
    tiles: usize,
    v: *const f32,
    dy: *const f32,
    width: usize,
    to: *mut f32,
) {
    let (mut at, lanes) = (0, I::Wide::LANES);
    // SAFETY: each call reads and writes columns up to `width`.
    unsafe {
        if wide::<I>() == 2 {
            while at + 2 * lanes <= width {
                correlate::<_, ROWS, 2>(isa.wide(), tiles, v, dy.add(at), to.add(at));
                at += 2 * lanes;
            }
        }
        while at + lanes <= width {
            correlate::<_, ROWS, 1>(isa.wide(), tiles, v, dy.add(at), to.add(at));
            at += lanes;
        }
        if lanes > BLOCK && at < width {
            correlate::<_, ROWS, 1>(isa.narrow(), tiles, v, dy.add(at), to.add(at));
        }
    }
}

/// # Safety
/// As [`filters`], for `VECTORS` vectors of the panel.
#[inline(always)]
unsafe fn correlate<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    tiles: usize,
    mut v: *const f32,
    mut dy: *const f32,
    to: *mut f32,
) {
    let mut sums = [[s.zero(); VECTORS]; ROWS];
    // SAFETY: the caller says that this may be read and written.
    unsafe {
        for _ in 0..tiles {
            let mut y = [s.zero(); VECTORS];
            for (i, y) in y.iter_mut().enumerate() {
                *y = s.load_ptr(dy.add(i * S::LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = s.splat(*v.add(row));
                for (sum, y) in sums.iter_mut().zip(y) {
                    *sum = s.fma(x, y, *sum);
                }
            }
            (v, dy) = (v.add(BLOCK), dy.add(PANEL));
        }
        for (row, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                s.store_ptr(*sum, to.add(row * PANEL + i * S::LANES));
            }
        }
    }
}

/// Adds the gradient of the weights of a panel, ordered as channel, tap, filter, to weights
/// ordered as filter, channel, tap.
pub(crate) struct Join<'a> {
    /// Filters of the panel: a multiple of 8, at most [`PANEL`].
    pub(crate) width: usize,
    /// Channels and taps of a filter.
    pub(crate) weights: usize,
    pub(crate) partial: &'a [f32],
    /// Whole filters, at most `width`.
    pub(crate) dw: &'a mut [f32],
}

impl Kernel for Join<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (Self { width, weights, partial, dw }, s) = (self, isa.narrow());
        assert!(partial.len() >= weights * width && dw.len() <= weights * width);
        let whole = weights - weights % BLOCK;
        for (block, dw) in dw.chunks_mut(BLOCK * weights).enumerate() {
            for at in (0..whole).step_by(BLOCK) {
                let mut rows = [s.zero(); BLOCK];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = s.load(&partial[(at + i) * width + block * BLOCK..]);
                }
                for (row, dw) in s.transpose(rows).into_iter().zip(dw.chunks_exact_mut(weights)) {
                    let dw = &mut dw[at..];
                    s.store(s.add(s.load(dw), row), dw);
                }
            }
            for (i, dw) in dw.chunks_exact_mut(weights).enumerate() {
                for (at, dw) in (whole..).zip(&mut dw[whole..]) {
                    *dw += partial[at * width + block * BLOCK + i];
                }
            }
        }
    }
}
