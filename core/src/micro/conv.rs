//! Convolutions with what stands behind them, a tile of places at a time: what the pool reads is
//! never written.

use super::group::TILE;
use crate::layer::Conv2d;
use crate::shape::Shape;

/// What sums are made of: numbers, or bytes.
pub(super) trait Numbers {
    /// An input.
    type X: Copy;
    /// A weight.
    type W: Copy;
    /// A sum.
    type Sum: Copy;
    /// `sum + w x`.
    fn add(sum: Self::Sum, w: Self::W, x: Self::X) -> Self::Sum;
    /// Whether products with what lies outside of the image count.
    fn counts(outside: Self::X) -> bool;
    /// Whether the second of two sums of a pool's window wins over the first.
    fn beats(later: Self::Sum, best: Self::Sum) -> bool;
}

/// f32, in the order and with the rounding of the reference.
pub(super) struct Floats;

impl Numbers for Floats {
    type X = f32;
    type W = f32;
    type Sum = f32;

    #[inline(always)]
    fn add(sum: f32, w: f32, x: f32) -> f32 {
        sum + w * x
    }

    #[inline(always)]
    fn counts(_: f32) -> bool {
        false
    }

    #[inline(always)]
    fn beats(later: f32, best: f32) -> bool {
        // As the reference has it: NaN wins, and the first of several. One comparison as a rule.
        #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN is to pass")]
        let passes = !(later <= best);
        passes && !best.is_nan()
    }
}

/// Bytes and signed bytes, summed exactly (sums wrap past 2^31, which takes 65,000 products).
pub(super) struct Bytes;

impl Numbers for Bytes {
    type X = u8;
    type W = i8;
    type Sum = i32;

    #[inline(always)]
    fn add(sum: i32, w: i8, x: u8) -> i32 {
        sum.wrapping_add(i32::from(w).wrapping_mul(i32::from(x)))
    }

    #[inline(always)]
    fn counts(outside: u8) -> bool {
        outside != 0
    }

    #[inline(always)]
    fn beats(later: i32, best: i32) -> bool {
        later > best
    }
}

/// Lengths that the loops step by.
#[derive(Clone, Copy)]
pub(super) struct Geometry<X> {
    pub conv: Conv2d,
    /// Rows and columns of the input.
    height: usize,
    pub width: usize,
    /// Elements of a plane, of a group's planes and of a sample of the input.
    pub plane: usize,
    pub group: usize,
    pub sample: usize,
    /// Filters of a group, and weights of a filter and of one of its channels.
    pub filters: usize,
    pub filter: usize,
    taps: usize,
    /// What lies outside of the image.
    outside: X,
    /// Whether tiles run on from row to row, if no pool follows: what lies between the end of a row of the
    /// output and the next row of the input is computed, and left out.
    runs: bool,
}

impl<X: Copy> Geometry<X> {
    /// None of the lengths is 0: the planner has seen to it.
    pub fn new(conv: Conv2d, x: Shape, outside: X) -> Self {
        let (height, width) = (x.h.max(1) as usize, x.w.max(1) as usize);
        let groups = conv.groups.max(1);
        let channels = (x.c / groups).max(1) as usize;
        let plane = height * width;
        let taps = (usize::from(conv.kernel.0) * usize::from(conv.kernel.1)).max(1);
        Self {
            conv,
            height,
            width,
            plane,
            group: channels * plane,
            sample: (x.c as usize * plane).max(1),
            filters: (conv.filters / groups).max(1) as usize,
            filter: channels * taps,
            taps,
            outside,
            runs: is_point(&conv),
        }
    }

    /// Makes them those of a [`spread`](Self::spread) plane of `len` numbers, unless that is 0.
    pub fn spreads(&mut self, len: usize) {
        if len > 0 {
            (self.height, self.width) = phase(&self.conv, self.padded());
            self.conv.pad = (0, 0);
            (self.plane, self.group, self.runs) = (len, len, true);
        }
    }

    /// Rows and columns of the image with its padding.
    fn padded(&self) -> (usize, usize) {
        let (down, across) = self.conv.pad;
        (self.height + 2 * usize::from(down), self.width + 2 * usize::from(across))
    }

    /// Copies a plane with its padding into `to`: one phase of it after the other, of which each has every
    /// `stride`th row and column. What a place of the kernel reads of neighbouring places then lies side by
    /// side, however the kernel moves, and nothing lies outside.
    fn spread(&self, plane: &[X], to: &mut [X]) {
        let (step, pad) = (self.conv.stride, self.conv.pad);
        let (down, across) = (usize::from(step.0).max(1), usize::from(step.1).max(1));
        let (height, width) = phase(&self.conv, self.padded());
        to.fill(self.outside);
        for (row, i) in pieces(plane, self.width).zip(usize::from(pad.0)..) {
            for column in 0..across {
                // The first that lies in the image.
                let skipped = usize::from(pad.1).saturating_sub(column).div_ceil(across);
                let first = (skipped * across + column).saturating_sub(pad.1.into());
                let at = (i % down * across + column) * height * width + i / down * width;
                let to = to.get_mut(at + skipped..at + width).unwrap_or_default();
                let row = row.get(first..).unwrap_or_default();
                to.iter_mut().zip(row.iter().step_by(across)).for_each(|(to, x)| *to = *x);
            }
        }
    }

    /// Sums of places from `q` on of a plane that is [`spread`](Self::spread).
    #[inline(always)]
    fn phases<N: Numbers<X = X>, const TWO: bool>(
        &self,
        x: &[X],
        [w, v]: [&[N::W]; 2],
        start: [N::Sum; 2],
        q: usize,
    ) -> [[N::Sum; TILE]; 2] {
        let (kernel, step) = (self.conv.kernel, self.conv.stride);
        let (down, across) = (usize::from(step.0).max(1), usize::from(step.1).max(1));
        let (mut one, mut other) = (all(start[0]), all(start[1]));
        let mut weights = w.iter().zip(v);
        for r in 0..usize::from(kernel.0) {
            let row = r % down * across * self.height + r / down;
            for s in 0..usize::from(kernel.1) {
                let at = (row + s % across * self.height) * self.width + s / across + q;
                let Some((&w, &v)) = weights.next() else { break };
                let Some(x) = x.get(at..).and_then(|x| x.first_chunk()) else { break };
                one = tap::<N>(one, w, x);
                if TWO {
                    other = tap::<N>(other, v, x);
                }
            }
        }
        [one, if TWO { other } else { one }]
    }

    /// What the sums of row `p` begin with: where what lies outside counts, with the products of the
    /// kernels' rows that lie above or below the image, which a [`Tile`] leaves out.
    #[inline(always)]
    fn start<N: Numbers<X = X>>(
        &self,
        start: [N::Sum; 2],
        w: [&[N::W]; 2],
        p: usize,
    ) -> [N::Sum; 2] {
        let (above, top) = (usize::from(self.conv.pad.0), p * usize::from(self.conv.stride.0));
        let inside = top >= above && top + usize::from(self.conv.kernel.0) <= self.height + above;
        // Of a plane that is spread all lies inside.
        let inside = inside || self.runs;
        if N::counts(self.outside) && !inside { self.outer::<N>(start, w, top) } else { start }
    }

    #[inline(never)]
    fn outer<N: Numbers<X = X>>(
        &self,
        mut start: [N::Sum; 2],
        w: [&[N::W]; 2],
        top: usize,
    ) -> [N::Sum; 2] {
        let above = usize::from(self.conv.pad.0);
        let inside = above..self.height + above;
        for (sum, w) in start.iter_mut().zip(w) {
            for kernel in pieces(w, self.taps) {
                for (row, r) in pieces(kernel, self.conv.kernel.1.into()).zip(top..) {
                    if !inside.contains(&r) {
                        *sum = row.iter().fold(*sum, |sum, &w| N::add(sum, w, self.outside));
                    }
                }
            }
        }
        start
    }

    /// Rows of the image below the places from `q` on of row `p`. `x` holds the channels of the
    /// filters' group.
    #[inline(always)]
    fn rows<'a>(&'a self, x: &'a [X], (p, q): (usize, usize)) -> Rows<'a, X> {
        let (kernel, step) = (self.conv.kernel, self.conv.stride);
        let (top, above) = (p * usize::from(step.0), usize::from(self.conv.pad.0));
        // Rows of the kernel that lie in the image.
        let first = above.saturating_sub(top);
        let past = (self.height + above).saturating_sub(top).min(kernel.0.into());
        Rows {
            geometry: self,
            x,
            top: (top + first).saturating_sub(above),
            first,
            past: past.max(first),
            left: (q * usize::from(step.1)).wrapping_sub(self.conv.pad.1.into()),
        }
    }
}

/// Sums of places `q .. q + TILE` of row `p` of two filters, or of the first, which begin with
/// `start`. `x` holds the channels of the filters' group. Places past the row's end are sums of
/// what is there.
pub(super) type Tile<N> = fn(
    &Geometry<<N as Numbers>::X>,
    x: &[<N as Numbers>::X],
    w: [&[<N as Numbers>::W]; 2],
    start: [<N as Numbers>::Sum; 2],
    (usize, usize),
) -> [[<N as Numbers>::Sum; TILE]; 2];

/// How a convolution reads planes that are [spread](Geometry::spread).
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread<X> {
    /// Numbers of such a plane.
    pub len: usize,
    /// Makes lengths those of such planes.
    pub lengths: fn(&mut Geometry<X>, usize),
    /// Spreads a plane of an input of this shape.
    pub plane: fn(&Conv2d, x: Shape, outside: X, plane: &[X], to: &mut [X]),
}

impl<X: Copy> Spread<X> {
    /// None for a convolution that reads its input as it is.
    pub const fn of(conv: &Conv2d, x: Shape, pool: bool) -> Option<Self> {
        match spread_len(conv, x, pool) {
            0 => None,
            len => Some(Self { len, lengths: Geometry::spreads, plane: spread }),
        }
    }
}

#[inline(never)]
fn spread<X: Copy>(conv: &Conv2d, x: Shape, outside: X, plane: &[X], to: &mut [X]) {
    Geometry::new(*conv, x, outside).spread(plane, to);
}

/// Numbers of a [`spread`](Geometry::spread) plane, which a convolution reads that has one channel in each
/// group, and padding or steps, and that no pool follows. 0 for others.
pub(super) const fn spread_len(conv: &Conv2d, x: Shape, pool: bool) -> usize {
    let plain = matches!((conv.stride, conv.pad), ((1, 1), (0, 0)));
    let columns = is_fixed(conv, 3) || is_fixed(conv, 5);
    if pool || plain || conv.groups != x.c || columns && conv.stride.0 != 1 {
        return 0;
    }
    let rows = (x.h as usize).saturating_add(2 * conv.pad.0 as usize);
    let columns = (x.w as usize).saturating_add(2 * conv.pad.1 as usize);
    let (height, width) = phase(conv, (rows, columns));
    let phases = conv.stride.0 as usize * conv.stride.1 as usize;
    // The last tile reads past the last place.
    height.saturating_mul(width).saturating_mul(phases).saturating_add(TILE)
}

/// Rows and columns of one phase of a padded image.
const fn phase(conv: &Conv2d, (rows, columns): (usize, usize)) -> (usize, usize) {
    let (down, across) = (conv.stride.0 as usize, conv.stride.1 as usize);
    if down == 0 || across == 0 { (0, 0) } else { (rows.div_ceil(down), columns.div_ceil(across)) }
}

/// Whether [`fixed`] computes a convolution whose kernel has `columns`.
pub(super) const fn is_fixed(conv: &Conv2d, columns: u8) -> bool {
    conv.stride.1 == 1 && conv.kernel.0 as usize <= HEIGHT && conv.kernel.1 == columns
}

/// A [`Tile`] of kernels of `S` columns that move by one.
#[inline(never)]
pub(super) fn fixed<N: Numbers, const TWO: bool, const S: usize>(
    geometry: &Geometry<N::X>,
    x: &[N::X],
    w: [&[N::W]; 2],
    start: [N::Sum; 2],
    place: (usize, usize),
) -> [[N::Sum; TILE]; 2] {
    geometry.rows(x, place).fixed::<N, TWO, S>(w, start)
}

/// A [`Tile`] of kernels of any width and step.
#[inline(never)]
pub(super) fn any<N: Numbers, const TWO: bool>(
    geometry: &Geometry<N::X>,
    x: &[N::X],
    w: [&[N::W]; 2],
    start: [N::Sum; 2],
    place: (usize, usize),
) -> [[N::Sum; TILE]; 2] {
    if geometry.runs {
        geometry.phases::<N, TWO>(x, w, start, place.1)
    } else {
        geometry.rows(x, place).any::<N, TWO>(w, start)
    }
}

/// Whether [`point`] computes a convolution.
pub(super) const fn is_point(conv: &Conv2d) -> bool {
    matches!((conv.kernel, conv.stride, conv.pad), ((1, 1), (1, 1), (0, 0)))
}

/// A [`Tile`] of kernels of one place that move by one, without padding.
#[inline(never)]
pub(super) fn point<N: Numbers, const TWO: bool>(
    geometry: &Geometry<N::X>,
    x: &[N::X],
    [w, v]: [&[N::W]; 2],
    [one, other]: [N::Sum; 2],
    (p, q): (usize, usize),
) -> [[N::Sum; TILE]; 2] {
    let (mut one, mut other) = (all(one), all(other));
    let at = p * geometry.width + q;
    let planes = pieces(x, geometry.plane).zip(w.iter().zip(v));
    // The last tile begins early enough to be full, where the plane is large enough.
    let full = geometry.plane >= TILE;
    let first = if full { at.min(geometry.plane - TILE) } else { at };
    if full {
        for (x, (&w, &v)) in planes {
            let Some(x) = x.get(first..).and_then(|x| x.first_chunk()) else { break };
            one = tap::<N>(one, w, x);
            if TWO {
                other = tap::<N>(other, v, x);
            }
        }
    } else {
        for (x, (&w, &v)) in planes {
            let x = start_of(x.get(first..).unwrap_or_default(), geometry.outside);
            one = tap::<N>(one, w, &x);
            if TWO {
                other = tap::<N>(other, v, &x);
            }
        }
    }
    let sums = [one, if TWO { other } else { one }];
    if first == at {
        return sums;
    }
    let from = |sums: [N::Sum; TILE], i: usize| sums.get(i + at - first).copied();
    sums.map(|sums| core::array::from_fn(|i| from(sums, i).unwrap_or(sums[0])))
}

/// The places of a plane that does not fill a tile.
#[inline(never)]
fn start_of<X: Copy>(x: &[X], outside: X) -> [X; TILE] {
    let mut patch = [outside; TILE];
    patch.iter_mut().zip(x).for_each(|(to, x)| *to = *x);
    patch
}

impl Geometry<f32> {
    /// Adds `scale` times what lies below one place of a filter's output to that filter's gradient.
    pub fn add_windows(&self, x: &[f32], (p, q): (usize, usize), scale: f32, dw: &mut [f32]) {
        let (kernel, step, pad) = (self.conv.kernel, self.conv.stride, self.conv.pad);
        let top = (p * usize::from(step.0)).wrapping_sub(pad.0.into());
        let left = (q * usize::from(step.1)).wrapping_sub(pad.1.into());
        let columns = usize::from(kernel.1).max(1);
        for (plane, dw) in pieces(x, self.plane).zip(dw.chunks_exact_mut(self.taps.max(1))) {
            for (dw, r) in dw.chunks_exact_mut(columns).zip(0..) {
                let row = top.wrapping_add(r);
                if row >= self.height {
                    continue;
                }
                let row = plane.get(row * self.width..(row + 1) * self.width).unwrap_or_default();
                if let Some(x) = row.get(left..left.wrapping_add(columns)) {
                    dw.iter_mut().zip(x).for_each(|(dw, x)| *dw += scale * *x);
                } else {
                    for (dw, s) in dw.iter_mut().zip(0..) {
                        let x = row.get(left.wrapping_add(s));
                        x.into_iter().for_each(|x| *dw += scale * *x);
                    }
                }
            }
        }
    }
}

/// Rows of the image below a row of the output, of all channels.
struct Rows<'a, X> {
    geometry: &'a Geometry<X>,
    x: &'a [X],
    /// The first row of the image.
    top: usize,
    /// The kernel's rows that read them: the first, and one past the last.
    first: usize,
    past: usize,
    /// The column that the kernel's first reads for the tile's first place: past the largest number
    /// where it lies left of the image.
    left: usize,
}

/// Columns that a tile of a kernel with fixed columns reads at most, and rows of such kernels.
const SPAN: usize = 12;
const HEIGHT: usize = 5;

/// Columns that a tile of any kernel reads of a patch at most: six that move by 2.
const WIDE: usize = 20;

impl<X: Copy> Rows<'_, X> {
    /// Adds the products with kernels of `S` columns that move by one. Each sum is made channel by
    /// channel, row by row, column by column.
    #[inline(always)]
    fn fixed<N: Numbers<X = X>, const TWO: bool, const S: usize>(
        &self,
        [w, v]: [&[N::W]; 2],
        start: [N::Sum; 2],
    ) -> [[N::Sum; TILE]; 2] {
        let g = self.geometry;
        let (mut one, mut other) = (all(start[0]), all(start[1]));
        let inside = g.runs || self.left <= g.width && g.width - self.left >= TILE + S - 1;
        let (mut w, mut v) = (pieces(w, g.taps), pieces(v, g.taps));
        for plane in pieces(self.x, g.plane) {
            let patch;
            let (mut x, width) = if inside {
                (plane.get(self.top * g.width + self.left..).unwrap_or_default(), g.width)
            } else {
                patch = self.patches(plane);
                (patch.as_flattened(), SPAN)
            };
            let w = self.kernel(w.next());
            if TWO {
                for (w, v) in w.iter().zip(self.kernel(v.next())) {
                    let Some(x_row) = x.get(..TILE + S - 1) else { break };
                    one = row::<N, S>(one, w, x_row);
                    other = row::<N, S>(other, v, x_row);
                    x = x.get(width..).unwrap_or_default();
                }
            } else {
                for w in w {
                    let Some(x_row) = x.get(..TILE + S - 1) else { break };
                    one = row::<N, S>(one, w, x_row);
                    x = x.get(width..).unwrap_or_default();
                }
            }
        }
        [one, other]
    }

    /// The rows of a kernel that lie over the image.
    #[inline(always)]
    fn kernel<'w, W, const S: usize>(&self, kernel: Option<&'w [W]>) -> &'w [[W; S]] {
        let rows = kernel.unwrap_or_default().as_chunks::<S>().0;
        rows.get(self.first..self.past).unwrap_or_default()
    }

    /// What a tile reads of a plane, where that reaches out of the image.
    #[inline(never)]
    fn patches(&self, plane: &[X]) -> [[X; SPAN]; HEIGHT] {
        let mut patches = [[self.geometry.outside; SPAN]; HEIGHT];
        let rows = pieces(plane, self.geometry.width).skip(self.top).take(self.past - self.first);
        rows.zip(&mut patches).for_each(|(row, patch)| self.patch(row, patch));
        patches
    }

    /// Writes what a tile reads of a row, where that lies in the image.
    #[inline(always)]
    fn patch(&self, row: &[X], patch: &mut [X]) {
        // Left of the image the column is past the largest number.
        let before = if self.left > row.len() { self.left.wrapping_neg() } else { 0 };
        let inside = row.get(if before > 0 { 0 } else { self.left }..).unwrap_or_default();
        let places = patch.get_mut(before..).unwrap_or_default();
        places.iter_mut().zip(inside).for_each(|(place, x)| *place = *x);
    }

    /// Adds the products with kernels of any width and step.
    #[inline(always)]
    fn any<N: Numbers<X = X>, const TWO: bool>(
        &self,
        [w, v]: [&[N::W]; 2],
        start: [N::Sum; 2],
    ) -> [[N::Sum; TILE]; 2] {
        let g = self.geometry;
        let (mut one, mut other) = (all(start[0]), all(start[1]));
        let (columns, step) = (usize::from(g.conv.kernel.1), usize::from(g.conv.stride.1));
        let span = (TILE - 1) * step + columns;
        let inside = self.left <= g.width && g.width - self.left >= span;
        for (plane, (w, v)) in pieces(self.x, g.plane).zip(pieces(w, g.taps).zip(pieces(v, g.taps)))
        {
            let rows = pieces(plane, g.width).skip(self.top);
            let kernels = pieces(w, columns).zip(pieces(v, columns));
            for (row, (w, v)) in rows.zip(kernels.take(self.past).skip(self.first)) {
                let mut patch;
                let x = if inside {
                    row.get(self.left..).unwrap_or_default()
                } else {
                    patch = [g.outside; WIDE];
                    self.patch(row, &mut patch);
                    &patch
                };
                for ((&w, &v), s) in w.iter().zip(v).zip(0..) {
                    let x = if (inside || span <= WIDE) && step <= 2 {
                        let x = x.get(s..).unwrap_or_default();
                        let every = if step == 1 { x.first_chunk().copied() } else { second(x) };
                        let Some(x) = every else { break };
                        x
                    } else {
                        let at = |i: usize| self.left.wrapping_add(s + i * step);
                        core::array::from_fn(|i| row.get(at(i)).copied().unwrap_or(g.outside))
                    };
                    one = tap::<N>(one, w, &x);
                    if TWO {
                        other = tap::<N>(other, v, &x);
                    }
                }
            }
        }
        [one, if TWO { other } else { one }]
    }
}

/// Every second of the first numbers.
#[inline(always)]
fn second<X: Copy>(x: &[X]) -> Option<[X; TILE]> {
    let &[a, _, b, _, c, _, d, _, e, _, f, _, g, _, h] = x.first_chunk()?;
    Some([a, b, c, d, e, f, g, h])
}

/// Pieces of `len`, which no plan makes 0: said here too, where the compiler must see it.
#[inline(always)]
pub(super) fn pieces<T>(x: &[T], len: usize) -> core::slice::ChunksExact<'_, T> {
    x.chunks_exact(len.max(1))
}

/// The same sum for all places.
#[inline(always)]
fn all<S: Copy>(start: S) -> [S; TILE] {
    [start, start, start, start, start, start, start, start]
}

/// Sums and the products with one weight. Written out, and given back by value: that keeps the sums
/// in registers however much the compiler wants to save.
#[inline(always)]
fn tap<N: Numbers>(sums: [N::Sum; TILE], w: N::W, x: &[N::X; TILE]) -> [N::Sum; TILE] {
    let ([a, b, c, d, e, f, g, h], &[i, j, k, l, m, n, o, p]) = (sums, x);
    [
        N::add(a, w, i),
        N::add(b, w, j),
        N::add(c, w, k),
        N::add(d, w, l),
        N::add(e, w, m),
        N::add(f, w, n),
        N::add(g, w, o),
        N::add(h, w, p),
    ]
}

/// Sums and the products of one row of a kernel.
#[inline(always)]
fn row<N: Numbers, const S: usize>(
    sums: [N::Sum; TILE],
    w: &[N::W; S],
    x: &[N::X],
) -> [N::Sum; TILE] {
    let mut sums = sums;
    macro_rules! taps {
        ($($s:literal)*) => {
            $(if let (Some(&w), Some(x)) = (w.get($s), x.get($s..).and_then(|x| x.first_chunk())) {
                sums = tap::<N>(sums, w, x);
            })*
        };
    }
    taps!(0 1 2 3 4);
    sums
}

/// What becomes of one filter's sums.
pub(super) trait Filter<N: Numbers> {
    /// What a sum begins with.
    fn start(&self) -> N::Sum;
    /// What each sum becomes before the pool.
    fn each(&self, sums: &mut [N::Sum; TILE]);
}

/// Where the sums of a filter go: the filter, the first place in its plane, the sums that won, and
/// their places in their windows.
pub(super) type Write<'a, S> = &'a mut dyn FnMut(usize, usize, &[S], &[u8]);

/// Rows and columns of the windows of a pool, and of the output.
pub(super) type Sizes = ((usize, usize), (usize, usize));

/// Computes the planes of two filters, or of the first, of one sample. Windows of a pool lie side by
/// side over the sums.
#[inline(never)]
pub(super) fn pooled<N: Numbers, C: Filter<N>>(
    (geometry, tile, settle): (&Geometry<N::X>, Tile<N>, Settle<N>),
    (pool, out): Sizes,
    x: &[N::X],
    w: [&[N::W]; 2],
    (filters, count): ([&C; 2], usize),
    write: Write<'_, N::Sum>,
) {
    let [one, other] = filters;
    let start = [one.start(), other.start()];
    let (high, wide) = (pool.0.max(1), pool.1.max(1));
    // Whole windows of a tile.
    let windows = (TILE / wide).max(1);
    for p in 0..out.0 {
        let mut q = 0;
        while q < out.1 {
            let mut best = start.map(|start| [start; TILE]);
            let mut won = [[0; TILE]; 2];
            for r in 0..high {
                let place = (p * high + r, q * wide);
                let start = geometry.start::<N>(start, w, place.0);
                let mut sums = tile(geometry, x, w, start, place);
                let tiles = sums.iter_mut().zip(best.iter_mut().zip(&mut won));
                for ((sums, (best, won)), filter) in tiles.zip(filters).take(count) {
                    filter.each(sums);
                    settle(sums, best, won, (r, wide));
                }
            }
            let there = windows.min(out.1 - q);
            for (k, (best, won)) in best.iter().zip(&won).enumerate().take(count) {
                let best = best.get(..there).unwrap_or_default();
                write(k, p * out.1 + q, best, won.get(..there).unwrap_or_default());
            }
            q += windows;
        }
    }
}

/// As [`pooled`], without a pool.
#[inline(never)]
pub(super) fn plain<N: Numbers, C: Filter<N>>(
    (geometry, tile): (&Geometry<N::X>, Tile<N>),
    (_, out): Sizes,
    x: &[N::X],
    w: [&[N::W]; 2],
    (filters, count): ([&C; 2], usize),
    write: Write<'_, N::Sum>,
) {
    let start = filters.map(C::start);
    // Rows of places that tiles go through, and where the next row of the output begins.
    let pitch = if geometry.runs { geometry.width } else { out.1 }.max(1);
    let one = (1, out.0.saturating_sub(1) * pitch + out.1);
    let (rows, columns) = if geometry.runs { one } else { out };
    for p in 0..rows {
        let start = geometry.start::<N>(start, w, p);
        for q in (0..columns).step_by(TILE) {
            let mut sums = tile(geometry, x, w, start, (p, q));
            for (k, (sums, filter)) in sums.iter_mut().zip(filters).enumerate().take(count) {
                filter.each(sums);
                let mut sums = sums.get(..TILE.min(columns - q)).unwrap_or_default();
                if pitch == out.1 {
                    write(k, p * out.1 + q, sums, &[]);
                    continue;
                }
                let (mut row, mut column) = (q / pitch, q % pitch);
                while !sums.is_empty() {
                    let rest = sums.split_at_checked(pitch - column);
                    let (now, later) = rest.unwrap_or((sums, &[]));
                    let inside = now.len().min(out.1.saturating_sub(column));
                    write(k, row * out.1 + column, now.get(..inside).unwrap_or_default(), &[]);
                    (row, column, sums) = (row + 1, 0, later);
                }
            }
        }
    }
}

/// Row `r` of windows of `wide` columns: sums, those that won so far, and their places.
pub(super) type Settle<N> = fn(
    &[<N as Numbers>::Sum; TILE],
    &mut [<N as Numbers>::Sum; TILE],
    &mut [u8; TILE],
    (usize, usize),
);

/// Windows of any width.
#[inline(never)]
pub(super) fn settle<N: Numbers>(
    sums: &[N::Sum; TILE],
    best: &mut [N::Sum; TILE],
    won: &mut [u8; TILE],
    (r, wide): (usize, usize),
) {
    fold::<N>(sums.chunks(wide.max(1)), best, won, r * wide);
}

/// Windows of two columns, nets' pools as a rule: in a third of the instructions.
#[inline(never)]
pub(super) fn settle_two<N: Numbers>(
    sums: &[N::Sum; TILE],
    best: &mut [N::Sum; TILE],
    won: &mut [u8; TILE],
    (r, _): (usize, usize),
) {
    fold::<N>(sums.as_chunks::<2>().0.iter().map(|sums| &sums[..]), best, won, r * 2);
}

/// Sums of windows' rows, whose first place is `first`.
#[inline(always)]
fn fold<'s, N: Numbers>(
    rows: impl Iterator<Item = &'s [N::Sum]>,
    best: &mut [N::Sum; TILE],
    won: &mut [u8; TILE],
    first: usize,
) where
    N::Sum: 's,
{
    for ((sums, best), won) in rows.zip(best).zip(won) {
        for (&sum, place) in sums.iter().zip(first..) {
            if place == 0 || N::beats(sum, *best) {
                (*best, *won) = (sum, place as u8);
            }
        }
    }
}
