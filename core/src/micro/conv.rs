//! Convolutions with what stands behind them, a tile of places at a time: what the pool reads is
//! never written.

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

    /// Sums of places `q .. q + T` of row `p` of `F` filters, which begin with `start`. `x` holds
    /// the channels of the filters' group. Places past the row's end are sums of what is there.
    #[inline(always)]
    fn tile<N: Numbers<X = X>, const T: usize, const F: usize>(
        &self,
        x: &[X],
        w: [&[N::W]; F],
        start: [N::Sum; F],
        (p, q): (usize, usize),
    ) -> [[N::Sum; T]; F] {
        let mut sums = start.map(|start| [start; T]);
        let (kernel, step) = (self.conv.kernel, self.conv.stride);
        let (top, above) = (p * usize::from(step.0), usize::from(self.conv.pad.0));
        // Rows of the kernel that lie in the image.
        let first = above.saturating_sub(top);
        let past = (self.height + above).saturating_sub(top).min(kernel.0.into());
        let rows = Rows {
            geometry: self,
            x,
            top: (top + first).saturating_sub(above),
            first,
            count: past.saturating_sub(first),
            left: (q * usize::from(step.1)).wrapping_sub(self.conv.pad.1.into()),
        };
        match (step.1, kernel.1) {
            (1, 5) => rows.fixed::<N, T, F, 5>(w, &mut sums),
            (1, 3) => rows.fixed::<N, T, F, 3>(w, &mut sums),
            (1, _) => rows.fixed::<N, T, F, 1>(w, &mut sums),
            _ => w.iter().zip(&mut sums).for_each(|(w, sums)| rows.any::<N, T>(w, sums)),
        }
        sums
    }
}

/// Rows of the image below a row of the output, of all channels.
struct Rows<'a, X> {
    geometry: &'a Geometry<X>,
    x: &'a [X],
    /// The first row of the image, and the kernel's row that reads it.
    top: usize,
    first: usize,
    count: usize,
    /// The column that the kernel's first reads for the tile's first place: past the largest number
    /// where it lies left of the image.
    left: usize,
}

impl<X: Copy> Rows<'_, X> {
    /// Adds the products with kernels of `S` columns, or of any where `S` is 1, that move by one
    /// column. Each sum is made channel by channel, row by row, column by column.
    #[inline(always)]
    fn fixed<N: Numbers<X = X>, const T: usize, const F: usize, const S: usize>(
        &self,
        w: [&[N::W]; F],
        sums: &mut [[N::Sum; T]; F],
    ) {
        let g = self.geometry;
        let mut own = *sums;
        let columns = usize::from(g.conv.kernel.1).max(1);
        let mut w = w.map(|w| w.chunks_exact(g.taps));
        for plane in self.x.chunks_exact(g.plane) {
            let w = w.each_mut().map(|w| w.next().unwrap_or_default());
            let mut w = w.map(|w| w.chunks_exact(columns).skip(self.first));
            for row in plane.chunks_exact(g.width).skip(self.top).take(self.count) {
                let w = w.each_mut().map(|w| w.next().unwrap_or_default());
                for s in (0..columns).step_by(S) {
                    let left = self.left.wrapping_add(s);
                    let mut edge = [g.outside; 16];
                    let inside = row.get(left..left.wrapping_add(T + S - 1));
                    let x = inside.unwrap_or_else(|| {
                        for (i, x) in edge.iter_mut().enumerate().take(T + S - 1) {
                            *x = row.get(left.wrapping_add(i)).copied().unwrap_or(g.outside);
                        }
                        edge.get(..T + S - 1).unwrap_or_default()
                    });
                    let w = w.map(|w| w.get(s..s + S).unwrap_or_default());
                    for tap in 0..S {
                        let x = x.get(tap..tap + T).unwrap_or_default();
                        for (own, w) in own.iter_mut().zip(w) {
                            let Some(&w) = w.get(tap) else { continue };
                            own.iter_mut().zip(x).for_each(|(sum, &x)| *sum = N::add(*sum, w, x));
                        }
                    }
                }
            }
        }
        *sums = own;
    }

    /// Adds the products with a kernel of any width and step.
    fn any<N: Numbers<X = X>, const T: usize>(&self, w: &[N::W], sums: &mut [N::Sum; T]) {
        let g = self.geometry;
        let (columns, step) = (usize::from(g.conv.kernel.1).max(1), usize::from(g.conv.stride.1));
        for (plane, w) in self.x.chunks_exact(g.plane).zip(w.chunks_exact(g.taps)) {
            let rows = plane.chunks_exact(g.width).skip(self.top).take(self.count);
            for (row, w) in rows.zip(w.chunks_exact(columns).skip(self.first)) {
                for (s, &w) in w.iter().enumerate() {
                    let mut at = self.left.wrapping_add(s);
                    for sum in sums.iter_mut() {
                        let x = row.get(at).copied().unwrap_or(g.outside);
                        *sum = N::add(*sum, w, x);
                        at = at.wrapping_add(step);
                    }
                }
            }
        }
    }
}

/// What becomes of one filter's sums.
pub(super) trait Filter<N: Numbers> {
    /// What is written.
    type Y: Copy;
    /// What a sum begins with.
    fn start(&self) -> N::Sum;
    /// What each sum becomes before the pool.
    fn each(&self, sums: &mut [N::Sum]);
    /// Whether the second of two places of a window wins over the first.
    fn beats(later: N::Sum, best: N::Sum) -> bool;
    /// What is written of the place that won.
    fn finish(&self, sum: N::Sum) -> Self::Y;
}

/// Writes the planes of `F` filters of one sample, in turn. Windows of `pool` rows and columns lie
/// side by side over the sums. `winners`, where it is not empty, takes the place in its window that
/// each y came from.
#[expect(clippy::too_many_arguments, reason = "tensors and their shapes")]
pub(super) fn planes<N: Numbers, C: Filter<N>, const T: usize, const F: usize>(
    geometry: &Geometry<N::X>,
    pool: (usize, usize),
    out: (usize, usize),
    x: &[N::X],
    w: [&[N::W]; F],
    filters: &[C; F],
    y: &mut [C::Y],
    winners: &mut [u8],
) {
    let start = filters.each_ref().map(|filter| filter.start());
    let (high, wide) = (pool.0.max(1), pool.1.max(1));
    // Whole windows of a tile.
    let windows = (T / wide).max(1);
    let plane = out.0 * out.1;
    for p in 0..out.0 {
        let mut q = 0;
        while q < out.1 {
            let mut best = start.map(|start| [(start, 0); T]);
            for r in 0..high {
                let place = (p * high + r, q * wide);
                let mut sums = geometry.tile::<N, T, F>(x, w, start, place);
                for ((sums, best), filter) in sums.iter_mut().zip(&mut best).zip(filters) {
                    filter.each(sums);
                    for (best, sums) in best.iter_mut().zip(sums.chunks(wide)) {
                        for (&sum, place) in sums.iter().zip(r * wide..) {
                            if place == 0 || C::beats(sum, best.0) {
                                *best = (sum, place as u8);
                            }
                        }
                    }
                }
            }
            let count = windows.min(out.1 - q);
            for (k, (best, filter)) in best.iter().zip(filters).enumerate() {
                let at = k * plane + p * out.1 + q;
                let y = y.get_mut(at..at + count).unwrap_or_default();
                y.iter_mut().zip(best).for_each(|(y, best)| *y = filter.finish(best.0));
                let won = winners.get_mut(at..at + count).unwrap_or_default();
                won.iter_mut().zip(best).for_each(|(won, best)| *won = best.1);
            }
            q += windows;
        }
    }
}
