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
    width: usize,
    /// Elements of a plane, of a group's planes and of a sample of the input.
    plane: usize,
    pub group: usize,
    pub sample: usize,
    /// Filters of a group, and weights of a filter and of one of its channels.
    pub filters: usize,
    pub filter: usize,
    taps: usize,
    /// What lies outside of the image.
    outside: X,
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
        }
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
    [w, v]: [&[N::W]; 2],
    [one, other]: [N::Sum; 2],
    place: (usize, usize),
) -> [[N::Sum; TILE]; 2] {
    let rows = geometry.rows(x, place);
    let one = rows.any::<N>(w, one);
    [one, if TWO { rows.any::<N>(v, other) } else { one }]
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
        let inside = self.left <= g.width && g.width - self.left >= TILE + S - 1;
        let (mut w, mut v) = (pieces(w, g.taps), pieces(v, g.taps));
        for plane in pieces(self.x, g.plane) {
            let patch;
            let (mut x, width) = if inside {
                (plane.get(self.top * g.width + self.left..).unwrap_or_default(), g.width)
            } else {
                patch = self.patch(plane);
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
    fn patch(&self, plane: &[X]) -> [[X; SPAN]; HEIGHT] {
        let g = self.geometry;
        let mut patch = [[g.outside; SPAN]; HEIGHT];
        for (row, patch) in pieces(plane, g.width).skip(self.top).zip(&mut patch) {
            for (i, x) in patch.iter_mut().enumerate() {
                let at = self.left.wrapping_add(i);
                row.get(at).into_iter().for_each(|inside| *x = *inside);
            }
        }
        patch
    }

    /// Sums of the products with a kernel of any width and step.
    #[inline(never)]
    fn any<N: Numbers<X = X>>(&self, w: &[N::W], start: N::Sum) -> [N::Sum; TILE] {
        let (g, mut sums) = (self.geometry, all(start));
        let (columns, step) = (g.conv.kernel.1.into(), usize::from(g.conv.stride.1));
        for (plane, w) in pieces(self.x, g.plane).zip(pieces(w, g.taps)) {
            let rows = pieces(plane, g.width).skip(self.top);
            let kernel = pieces(w, columns).take(self.past).skip(self.first);
            for (row, w) in rows.zip(kernel) {
                for (&w, s) in w.iter().zip(0..) {
                    let left = self.left.wrapping_add(s);
                    let part = row.get(left..).and_then(|x| x.first_chunk());
                    sums = match part.filter(|_| step == 1) {
                        Some(x) => tap::<N>(sums, w, x),
                        None => {
                            let at = |i: usize| row.get(left.wrapping_add(i * step)).copied();
                            let x = core::array::from_fn(|i| at(i).unwrap_or(g.outside));
                            tap::<N>(sums, w, &x)
                        }
                    };
                }
            }
        }
        sums
    }
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

/// Computes the planes of two filters, or of the first, of one sample. Windows of `pool` rows and
/// columns lie side by side over the sums.
#[inline(never)]
pub(super) fn planes<N: Numbers, C: Filter<N>>(
    (geometry, tile, settle): (&Geometry<N::X>, Tile<N>, Settle<N>),
    (pool, out): ((usize, usize), (usize, usize)),
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
