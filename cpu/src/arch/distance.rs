//! Distances between all rows of two sets, by products of packed panels.
//!
//! Rows are packed once, less a shift, in panels of [`Instructions::panel`] rows, feature by
//! feature, so that the same panel serves as the rows of a product and as its columns. A block of
//! products never leaves the caches: each tile turns into lower bounds of distances in registers,
//! which are compared with the limits of its rows and columns, and only what is below a limit is
//! handed out.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "tiles are indexed by row and vector")]

use core::ops::Range;

use sepal_core::real::Feature;

use super::{Instructions, Isa, Kernel, Narrow, Simd};

/// Features that one pass over a block multiplies at most: a panel of them takes half of a cache of
/// the first level, so that it stays there while all rows of a block pass by.
pub(crate) const DEPTH: usize = 128;

/// Rows of the widest panel.
pub(crate) const WIDEST: usize = 48;

/// Numbers of the largest tile.
const TILE: usize = 8 * WIDEST;

/// A tile, from the start of a cache line on.
#[repr(align(64))]
struct Tile([f32; TILE]);

/// Rows of the blocks that keep their products in a cache of the second level: multiples of every
/// set's panel, the largest first.
pub(crate) const BLOCKS: [usize; 4] = [384, 192, 96, 48];

/// Numbers of a cache line.
pub(crate) const LINE: usize = 16;

/// Features that measuring asks for ahead of those that it is at: rows are met in no order.
const AHEAD: usize = 64;

/// Pairs that are measured side by side.
pub(crate) const TOGETHER: usize = 8;

/// Features of one pass over `dim` of them, all passes about equal.
const fn depth(dim: usize) -> usize {
    dim.div_ceil(dim.div_ceil(DEPTH))
}

/// A number that rows are stored as: f32 or f16.
///
/// # Safety
/// [`HALF`](Self::HALF) says which of them it is.
pub unsafe trait Element: Feature<Wide = f32> + Send + Sync + 'static {
    /// Whether it is f16, else it is f32.
    const HALF: bool;
}

// SAFETY: it is f32.
unsafe impl Element for f32 {
    const HALF: bool = false;
}

// SAFETY: it is f16.
unsafe impl Element for half::f16 {
    const HALF: bool = true;
}

/// `LANES` numbers, widened.
///
/// # Safety
/// `from` is valid for reads of `LANES` numbers.
#[inline(always)]
unsafe fn widened<S: Simd, T: Element>(s: S, from: *const T) -> S::V {
    // SAFETY: the caller's promise; `T` is f16, which is its bits, or f32.
    unsafe { if T::HALF { s.load_half_ptr(from.cast()) } else { s.load_ptr(from.cast()) } }
}

impl Instructions {
    /// Rows of one panel; divides each of [`BLOCKS`].
    pub(crate) fn panel(self) -> usize {
        struct Width;
        impl Kernel for Width {
            type Out = usize;

            #[inline(always)]
            fn run<I: Isa>(self, _isa: I) -> usize {
                I::Wide::LANES * if I::Wide::REGISTERS < 16 { 1 } else { 3 }
            }
        }
        self.run(Width)
    }
}

/// The passes over `dim` features: where each begins, and how many it has.
pub(crate) fn passes(dim: usize) -> impl Iterator<Item = (usize, usize)> {
    let depth = depth(dim);
    (0..dim).step_by(depth).map(move |at| (at, depth.min(dim - at)))
}

/// Packs features `from..from + depth` of at most a panel of rows, less the shift, and adds the
/// squares to the rows' squared lengths. What lies past the rows or their ends is 0.
pub(crate) struct Pack<'a, T> {
    /// The rows, one after the other.
    pub(crate) rows: &'a [T],
    pub(crate) dim: usize,
    pub(crate) shift: &'a [f32],
    pub(crate) from: usize,
    /// As many numbers as features times rows of the panel.
    pub(crate) panel: &'a mut [f32],
    /// One for each row of the panel.
    pub(crate) norms: &'a mut [f32],
}

impl<T: Element> Kernel for Pack<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (s, width) = (isa.narrow(), self.norms.len());
        if width == 0 {
            return;
        }
        let depth = self.panel.len() / width;
        assert!(width.is_multiple_of(8) && self.panel.len() == depth * width);
        let count = self.rows.len().checked_div(self.dim).unwrap_or(0).min(width);
        // Sets without features are packed as zeros.
        let columns = self.dim.saturating_sub(self.from).min(depth);
        assert!(columns == 0 || self.from + columns <= self.shift.len());
        for group in (0..width).step_by(8) {
            let rows = count.saturating_sub(group).min(8);
            // SAFETY: row i of the group and its features lie in `rows`; columns of the shift
            // were checked above.
            let at = |i: usize, k: usize| unsafe {
                self.rows.as_ptr().add((group + i) * self.dim + self.from + k)
            };
            let mut done = 0;
            if rows == 8 {
                let mut squares = [s.zero(); 4];
                // Whole cache lines of each row: where rows lie a power of two apart, what is left
                // of a line would be gone before it is read.
                while done + 16 <= columns {
                    // SAFETY: 16 features from `done` on are in each of 8 rows, in the shift and
                    // in the panel, each of whose features has `width` numbers.
                    unsafe {
                        let shift = self.shift.as_ptr().add(self.from + done);
                        let shift = [s.load_ptr(shift), s.load_ptr(shift.add(8))];
                        let mut blocks = [[s.zero(); 8]; 2];
                        for i in 0..8 {
                            // Of the next eight rows, which nothing else foresees.
                            s.prefetch(at(i, done).wrapping_add(8 * self.dim).cast());
                            blocks[0][i] = s.sub(widened(s, at(i, done)), shift[0]);
                            blocks[1][i] = s.sub(widened(s, at(i, done + 8)), shift[1]);
                        }
                        for (half, block) in blocks.into_iter().enumerate() {
                            let to = self.panel.as_mut_ptr();
                            let to = to.add((done + 8 * half) * width + group);
                            for (k, column) in s.transpose(block).into_iter().enumerate() {
                                s.store_ptr(column, to.add(k * width));
                                squares[k % 4] = s.fma(column, column, squares[k % 4]);
                            }
                        }
                    }
                    done += 16;
                }
                let sum = s.add(s.add(squares[0], squares[1]), s.add(squares[2], squares[3]));
                let norms = &mut self.norms[group..group + 8];
                s.store(s.add(s.load(norms), sum), norms);
            }
            for i in 0..8 {
                let mut sum = 0.0;
                for k in done..depth {
                    let mut x = 0.0;
                    if i < rows && k < columns {
                        // SAFETY: the row has the feature.
                        x = unsafe { *at(i, k) }.widen() - self.shift[self.from + k];
                    }
                    self.panel[k * width + group + i] = x;
                    sum += x * x;
                }
                self.norms[group + i] += sum;
            }
        }
    }
}

/// Rows in panels, with what the bounds of their distances are made of.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    /// For each of the [`passes`], each panel's features one after the other.
    pub(crate) panels: &'a [f32],
    /// Features, at least 1.
    pub(crate) dim: usize,
    /// Of each row: the squared length, less its share of the error. Infinite keeps a row out.
    pub(crate) low: &'a [f32],
    /// Of each row: what lies between the least and the greatest that a distance can be.
    pub(crate) error: &'a [f32],
    /// Of each row: its label.
    pub(crate) labels: &'a [f32],
}

/// Who holds limits and takes what lies below them.
///
/// Kind 0 is pairs of one label, kind 1 of two.
pub(crate) trait Sink {
    /// A block of these rows and columns begins.
    fn begin(&mut self, rows: &Range<usize>, columns: &Range<usize>);

    /// For each kind the limits of rows from a first one on, which is the same in every call.
    fn limits(&self) -> [&[f32]; 2];

    /// A distance of the kind is at most `value` for the place `at` in the limits.
    fn lower(&mut self, kind: usize, at: usize, value: f32);

    /// A tile with its first row and column: bit j of `hits[i]` says that the lower bound
    /// `tile[i * width + j]` is below a limit.
    fn hits(&mut self, row: usize, column: usize, hits: &[u64], tile: &[f32]);
}

/// A block of distances: some rows against some columns.
pub(crate) struct Block<'a, L> {
    pub(crate) rows: Packed<'a>,
    pub(crate) columns: Packed<'a>,
    /// Rows and columns at most.
    pub(crate) size: usize,
    /// Begins and ends at a panel, as does the other.
    pub(crate) from_rows: Range<usize>,
    pub(crate) from_columns: Range<usize>,
    /// Of one set with itself: a pair counts for both, and is taken once, with row < column.
    pub(crate) symmetric: bool,
    /// The column, and row of a symmetric block, whose limit is the first.
    pub(crate) base: usize,
    /// Row `column + own` is left out.
    pub(crate) own: Option<isize>,
    /// Whether limits are lowered by the whole block before anything is compared with them.
    pub(crate) seed: bool,
    /// As many numbers as [`scratch`] says.
    pub(crate) scratch: &'a mut [f32],
    pub(crate) sink: &'a mut L,
}

/// Lanes of the widest vectors.
const LANES: usize = 16;

/// Numbers of scratch that a block of `size` rows takes: products, and for each kind the least of
/// each column, and of each row in each lane.
pub(crate) const fn scratch(size: usize) -> usize {
    size * size + 2 * size + 2 * size * LANES
}

impl<L: Sink> Kernel for Block<'_, L> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match I::Wide::REGISTERS {
            32 => self.shaped::<I::Wide, 8, 3>(isa.wide()),
            16 => self.shaped::<I::Wide, 4, 3>(isa.wide()),
            _ => self.shaped::<I::Wide, 4, 1>(isa.wide()),
        }
    }
}

impl<L: Sink> Block<'_, L> {
    #[inline(always)]
    fn shaped<S: Simd, const MR: usize, const NV: usize>(self, s: S) {
        if self.symmetric {
            self.tiles::<S, MR, NV, true>(s);
        } else {
            self.tiles::<S, MR, NV, false>(s);
        }
    }

    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const NV: usize, const SYMMETRIC: bool>(self, s: S) {
        let width = NV * S::LANES;
        let Self {
            rows,
            columns,
            size,
            from_rows,
            from_columns,
            base,
            own,
            seed,
            scratch,
            sink,
            ..
        } = self;
        let dim = rows.dim;
        for (set, from) in [(&rows, &from_rows), (&columns, &from_columns)] {
            let padded = set.low.len();
            let whole = |at: usize| at.is_multiple_of(width);
            assert!(padded.is_multiple_of(width) && width.is_multiple_of(MR) && MR * width <= TILE);
            assert!(whole(from.start) && whole(from.end) && from.end <= padded);
            assert!(from.len() <= size && set.dim == dim && dim > 0);
            assert!(set.panels.len() >= padded * dim);
            assert!(set.error.len() >= padded && set.labels.len() >= padded);
        }
        assert!(base <= from_columns.start && (!SYMMETRIC || base <= from_rows.start));
        assert!(scratch.len() >= self::scratch(size));
        let (products, rest) = scratch.split_at_mut(size * size);
        let (least_columns, least_rows) = rest.split_at_mut(2 * size);
        let mut tile = Tile([0.0; TILE]);
        sink.begin(&from_rows, &from_columns);
        let mut scan = Scan::<S, L, MR, NV, SYMMETRIC> { s, rows, columns, size, base, sink };
        if seed {
            least_columns.fill(f32::INFINITY);
            least_rows.fill(f32::INFINITY);
        }
        // A tile of one row below the other: none of its pairs has row < column.
        let below = |row: usize, column: usize| SYMMETRIC && column + width <= row + 1;
        for (at, depth) in passes(dim) {
            let (first, last) = (at == 0, at + depth == dim);
            let mut place = 0;
            // What each tile asks for of the next columns, so that they are there in time.
            let share = (width * depth).div_ceil(LINE).div_ceil((from_rows.len() / MR).max(1));
            for column in from_columns.clone().step_by(width) {
                for (tiles, row) in from_rows.clone().step_by(MR).enumerate() {
                    if below(row, column) {
                        break;
                    }
                    let panel = row - row % width;
                    // SAFETY: features `at..at + depth` of the panel with this row, and of the
                    // one at this column, are in the panels: both sets were checked above. Tiles
                    // take MR * width products each, one for every pair of the block at most.
                    unsafe {
                        let a = rows.panels.as_ptr().add(at * rows.low.len() + panel * depth);
                        let a = a.add(row - panel);
                        let b = columns.panels.as_ptr();
                        let b = b.add(at * columns.low.len() + column * depth);
                        for line in tiles * share..(tiles + 1) * share {
                            s.prefetch(b.wrapping_add(width * depth + line * LINE));
                        }
                        let kept = products.as_mut_ptr().add(place);
                        place += MR * width;
                        let to = if last && !seed { tile.0.as_mut_ptr() } else { kept };
                        let from = if first { None } else { Some(kept.cast_const()) };
                        // From these rows to the next.
                        let ends = (row + MR).is_multiple_of(width);
                        let next = if ends { width * depth + MR - width } else { MR };
                        // Vectors of columns that no row of the tile comes before.
                        let behind = (row + 1).saturating_sub(column) / S::LANES;
                        match if SYMMETRIC { behind } else { 0 } {
                            2 => multiply::<S, MR, NV, 2>(s, a, b, depth, next, from, to),
                            1 => multiply::<S, MR, NV, 1>(s, a, b, depth, next, from, to),
                            _ => multiply::<S, MR, NV, 0>(s, a, b, depth, next, from, to),
                        }
                        if !last {
                            continue;
                        }
                        let crosses = if SYMMETRIC {
                            row + MR > column
                        } else {
                            own.is_some_and(|own| {
                                let from = column as isize + own;
                                (row as isize) < from + width as isize && from < (row + MR) as isize
                            })
                        };
                        if seed || crosses {
                            scan.bounds(row, column, to);
                        }
                        if crosses {
                            let tile = core::slice::from_raw_parts_mut(to, MR * width);
                            for (place, bound) in tile.iter_mut().enumerate() {
                                let (row, column) = (row + place / width, column + place % width);
                                let out = if SYMMETRIC {
                                    column <= row
                                } else {
                                    own == Some(row as isize - column as isize)
                                };
                                // Infinity is below no limit.
                                *bound = if out { f32::INFINITY } else { *bound };
                            }
                        }
                        if seed {
                            let j = column - from_columns.start;
                            let i = (row - from_rows.start) * S::LANES;
                            let least = (&mut least_columns[j..], &mut least_rows[i..]);
                            scan.least((row, column), to, least);
                        } else if crosses {
                            scan.compare::<true>(row, column, to);
                        } else {
                            scan.compare::<false>(row, column, to);
                        }
                    }
                }
            }
        }
        if !seed {
            return;
        }
        for kind in 0..2 {
            for (j, column) in from_columns.clone().enumerate() {
                scan.sink.lower(kind, column - base, least_columns[kind * size + j]);
            }
            if SYMMETRIC {
                for (i, row) in from_rows.clone().enumerate() {
                    let lanes = &least_rows[kind * size * LANES + i * S::LANES..][..S::LANES];
                    scan.sink.lower(
                        kind,
                        row - base,
                        lanes.iter().copied().fold(f32::INFINITY, f32::min),
                    );
                }
            }
        }
        let mut place = 0;
        for column in from_columns.step_by(width) {
            for row in from_rows.clone().step_by(MR) {
                if below(row, column) {
                    break;
                }
                let kept = products[place..place + MR * width].as_mut_ptr();
                place += MR * width;
                // SAFETY: the slice above has a tile.
                unsafe {
                    scan.compare::<true>(row, column, kept);
                }
            }
        }
    }
}

/// MR rows of a panel by another panel, but for its first BEHIND vectors, over `depth` features:
/// writes a tile, on top of what is `kept` of the features before. Asks for the rows that lie
/// `next` numbers on: few of each panel's numbers are read at once, which no machine foresees.
///
/// # Safety
/// `b` is valid for reads of `depth` panel widths, and so is what lies from `a` on but for the
/// last panel width, of which MR numbers are; `kept` is valid for reads of a tile, and `to` for
/// writes. They may be the same tile.
#[inline(always)]
unsafe fn multiply<S: Simd, const MR: usize, const NV: usize, const BEHIND: usize>(
    s: S,
    mut a: *const f32,
    mut b: *const f32,
    depth: usize,
    next: usize,
    kept: Option<*const f32>,
    to: *mut f32,
) {
    let width = NV * S::LANES;
    let mut sums = [[s.zero(); NV]; MR];
    for _ in 0..depth {
        // SAFETY: the caller's promise.
        unsafe {
            let mut columns = [s.zero(); NV];
            for v in BEHIND..NV {
                columns[v] = s.load_ptr(b.add(v * S::LANES));
            }
            s.prefetch(a.wrapping_add(next));
            for i in 0..MR {
                let x = s.splat(*a.add(i));
                for v in BEHIND..NV {
                    sums[i][v] = s.fma(x, columns[v], sums[i][v]);
                }
                for v in BEHIND..NV {
                    a = s.after(a, sums[i][v]);
                }
            }
        }
        // One past the end at most, or within the panel that `a` started in.
        a = a.wrapping_add(width);
        b = b.wrapping_add(width);
    }
    for i in 0..MR {
        for v in 0..NV {
            let at = (i * NV + v) * S::LANES;
            // SAFETY: the caller's promise.
            unsafe {
                let sum = match kept {
                    Some(kept) => s.add(s.load_ptr(kept.add(at)), sums[i][v]),
                    None => sums[i][v],
                };
                s.store_ptr(sum, to.add(at));
            }
        }
    }
}

/// What a tile is compared with. Rows and columns that it is called with lie in the sets.
struct Scan<'a, S, L, const MR: usize, const NV: usize, const SYMMETRIC: bool> {
    s: S,
    rows: Packed<'a>,
    columns: Packed<'a>,
    /// Rows and columns of the block at most.
    size: usize,
    /// The first of the limits.
    base: usize,
    sink: &'a mut L,
}

impl<S: Simd, L: Sink, const MR: usize, const NV: usize, const SYMMETRIC: bool>
    Scan<'_, S, L, MR, NV, SYMMETRIC>
{
    /// Turns a tile of products into lower bounds of distances.
    ///
    /// # Safety
    /// The rows and columns of the tile lie in the sets, and it is valid for reads and writes.
    #[inline(always)]
    unsafe fn bounds(&self, row: usize, column: usize, tile: *mut f32) {
        let (s, lanes) = (self.s, S::LANES);
        // SAFETY: the caller's promise.
        unsafe {
            let columns = self.columns.low.as_ptr().add(column);
            for i in 0..MR {
                let low = s.splat(*self.rows.low.as_ptr().add(row + i));
                for v in 0..NV {
                    let at = tile.add((i * NV + v) * lanes);
                    let low = s.add(low, s.load_ptr(columns.add(v * lanes)));
                    s.store_ptr(s.fnma(s.splat(2.0), s.load_ptr(at), low), at);
                }
            }
        }
    }

    /// Lowers, for each kind, the least that a distance can be at most: of each column, and of
    /// each row in each lane. Kinds lie a block's columns or rows apart.
    ///
    /// # Safety
    /// The rows and columns of the tile lie in the sets, and it is valid for reads.
    #[inline(always)]
    unsafe fn least(
        &self,
        (row, column): (usize, usize),
        bounds: *const f32,
        (least_columns, least_rows): (&mut [f32], &mut [f32]),
    ) {
        let (s, lanes, size) = (self.s, S::LANES, self.size);
        let infinite = s.splat(f32::INFINITY);
        assert!(least_columns.len() >= size + NV * lanes);
        assert!(least_rows.len() >= size * LANES + MR * lanes);
        // SAFETY: the caller's promise, and what was checked above.
        unsafe {
            let labels = self.columns.labels.as_ptr().add(column);
            let errors = self.columns.error.as_ptr().add(column);
            for i in 0..MR {
                let label = s.splat(*self.rows.labels.as_ptr().add(row + i));
                let error = s.splat(*self.rows.error.as_ptr().add(row + i));
                let own = least_rows.as_mut_ptr().add(i * lanes);
                let mut least = [s.load_ptr(own), s.load_ptr(own.add(size * LANES))];
                for v in 0..NV {
                    let error = s.add(error, s.load_ptr(errors.add(v * lanes)));
                    let bound = s.load_ptr(bounds.add((i * NV + v) * lanes));
                    let most = s.add(bound, error);
                    let same = s.equal(label, s.load_ptr(labels.add(v * lanes)));
                    let kinds = [s.select(same, most, infinite), s.select(same, infinite, most)];
                    for kind in 0..2 {
                        let to = least_columns.as_mut_ptr().add(kind * size + v * lanes);
                        s.store_ptr(s.min(kinds[kind], s.load_ptr(to)), to);
                        least[kind] = s.min(kinds[kind], least[kind]);
                    }
                }
                s.store_ptr(least[0], own);
                s.store_ptr(least[1], own.add(size * LANES));
            }
        }
    }

    /// Hands a tile to the sink if a lower bound in it is below its limit. Unless the bounds are
    /// READY it has products, which become bounds.
    ///
    /// # Safety
    /// The rows and columns of the tile lie in the sets, and it is valid for reads and writes.
    #[inline(always)]
    unsafe fn compare<const READY: bool>(&mut self, row: usize, column: usize, tile: *mut f32) {
        let (s, lanes) = (self.s, S::LANES);
        let [same, other] = self.sink.limits();
        assert!(same.len() >= column - self.base + NV * lanes);
        assert!(other.len() >= column - self.base + NV * lanes);
        if SYMMETRIC {
            let rows = row - self.base + MR;
            assert!(same.len() >= rows && other.len() >= rows);
        }
        let (mut hits, mut any) = ([0u64; MR], 0);
        // SAFETY: the caller's promise; the limits are long enough for the tile, checked above.
        unsafe {
            let (same, other) = (same.as_ptr(), other.as_ptr());
            let labels = self.columns.labels.as_ptr().add(column);
            let at = column - self.base;
            // Rows have limits of their own in symmetric blocks alone.
            let own = if SYMMETRIC { row - self.base } else { 0 };
            let lows = self.columns.low.as_ptr().add(column);
            for i in 0..MR {
                let label = s.splat(*self.rows.labels.as_ptr().add(row + i));
                let low = s.splat(*self.rows.low.as_ptr().add(row + i));
                for v in 0..NV {
                    let place = tile.add((i * NV + v) * lanes);
                    let mut bound = s.load_ptr(place);
                    if !READY {
                        let low = s.add(low, s.load_ptr(lows.add(v * lanes)));
                        bound = s.fnma(s.splat(2.0), bound, low);
                        s.store_ptr(bound, place);
                    }
                    let mut limits = [
                        s.load_ptr(same.add(at + v * lanes)),
                        s.load_ptr(other.add(at + v * lanes)),
                    ];
                    if SYMMETRIC {
                        limits[0] = s.max(s.splat(*same.add(own + i)), limits[0]);
                        limits[1] = s.max(s.splat(*other.add(own + i)), limits[1]);
                    }
                    let equal = s.equal(label, s.load_ptr(labels.add(v * lanes)));
                    let limit = s.select(equal, limits[0], limits[1]);
                    hits[i] |= u64::from(s.bits(s.less(bound, limit))) << (v * lanes);
                }
                any |= hits[i];
            }
            if any != 0 {
                let tile = core::slice::from_raw_parts(tile, MR * NV * lanes);
                self.sink.hits(row, column, &hits, tile);
            }
        }
    }
}

/// [`distance2`](sepal_core::neighbour::distance2) of up to [`TOGETHER`] pairs of rows, to the
/// bit.
pub(crate) struct Direct<'a, T> {
    /// Rows of one length.
    pub(crate) pairs: &'a [(&'a [T], &'a [T]); TOGETHER],
}

impl<T: Element> Kernel for Direct<'_, T> {
    type Out = [f32; TOGETHER];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [f32; TOGETHER] {
        let s = isa.narrow();
        let dim = self.pairs[0].0.len();
        assert!(self.pairs.iter().all(|(a, b)| a.len() == dim && b.len() == dim));
        let (mut sums, mut done) = (s.zero(), 0);
        while done + 8 <= dim {
            let mut squares = [s.zero(); TOGETHER];
            for (square, (a, b)) in squares.iter_mut().zip(self.pairs) {
                // SAFETY: each row has 8 features from `done` on.
                let difference = unsafe {
                    let (a, b) = (a.as_ptr().add(done), b.as_ptr().add(done));
                    s.prefetch(a.wrapping_add(AHEAD).cast());
                    s.prefetch(b.wrapping_add(AHEAD).cast());
                    s.sub(widened(s, a), widened(s, b))
                };
                *square = s.mul(difference, difference);
            }
            for square in s.transpose(squares) {
                sums = s.add(sums, square);
            }
            done += 8;
        }
        let mut out = [0.0; TOGETHER];
        s.store(sums, &mut out);
        for (sum, (a, b)) in out.iter_mut().zip(self.pairs) {
            for (a, b) in a[done..].iter().zip(&b[done..]) {
                let difference = a.widen() - b.widen();
                *sum += difference * difference;
            }
        }
        out
    }
}
