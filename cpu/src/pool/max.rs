//! Maxima in blocks of eight channels.
//!
//! A norm and an activation before the pool run within its passes: forward the pool reads what the
//! norm reads, and the two tensors between are never written; backward each winner carries a mark
//! of what the activation did to it (see [`Act::mark`]).

use rayon::prelude::*;
use sepal_core::layer::MaxPool;
use sepal_core::shape::Shape;

use super::{Geometry, Windows};
use crate::activation::{Act, MARK};
use crate::arch::{Instructions, Isa, Kernel, Simd};
use crate::blocks::{BLOCK, piece, plane};
use crate::norm::{Affine, Coefficients, Slope, add_lanes};

/// A pool in blocks of eight channels.
#[derive(Clone, Copy)]
pub(crate) struct Blocked {
    with: Instructions,
    geometry: Geometry,
    shape: Shape,
    out: Shape,
}

/// Whether winners can be marked by an activation before the pool.
pub(crate) fn can_mark(pool: MaxPool) -> bool {
    let (rows, columns) = pool.window.kernel;
    u32::from(rows) * u32::from(columns) <= u32::from(MARK)
}

impl Blocked {
    /// `None` where the pool cannot take `shape`.
    pub(crate) fn new(with: Instructions, pool: MaxPool, shape: Shape) -> Option<Self> {
        let out = pool.output(shape)?;
        Some(Self { with, geometry: Geometry::new(pool.window, shape, out), shape, out })
    }

    /// Numbers of one block of one sample, before and after the pool.
    pub(crate) const fn planes(&self) -> [usize; 2] {
        [plane(self.shape), plane(self.out)]
    }

    /// Writes `y`, and `winners` where they are wanted, else that is empty.
    pub(crate) fn forward<A: Act>(
        &self,
        coefficients: Coefficients<'_>,
        act: A,
        x: &[f32],
        y: &mut [f32],
        winners: &mut [u8],
    ) {
        let (x_plane, y_plane, piece) = (plane(self.shape), plane(self.out), piece(self.shape));
        let (with, geometry) = (self.with, self.geometry);
        let pieces = x.par_chunks(piece * x_plane).zip(y.par_chunks_mut(piece * y_plane));
        if winners.is_empty() {
            pieces.enumerate().for_each(|(at, (x, y))| {
                let (first, winners) = (at * piece, &mut [][..]);
                with.run(Forward::<_, false> { geometry, coefficients, first, act, x, y, winners });
            });
        } else {
            let pieces = pieces.zip(winners.par_chunks_mut(piece * y_plane));
            pieces.enumerate().for_each(|(at, ((x, y), winners))| {
                let first = at * piece;
                with.run(Forward::<_, true> { geometry, coefficients, first, act, x, y, winners });
            });
        }
    }

    /// Overwrites `dx`. `x` is what [`forward`](Self::forward) read where a norm is fused, else
    /// empty.
    pub(crate) fn backward<A: Act>(
        &self,
        coefficients: Coefficients<'_>,
        act: A,
        x: &[f32],
        winners: &[u8],
        dy: &[f32],
        dx: &mut [f32],
    ) {
        let (x_plane, y_plane, piece) = (plane(self.shape), plane(self.out), piece(self.shape));
        let (with, geometry) = (self.with, self.geometry);
        let pieces = dy.par_chunks(piece * y_plane).zip(winners.par_chunks(piece * y_plane));
        let pieces = pieces.zip(dx.par_chunks_mut(piece * x_plane)).enumerate();
        if x.is_empty() {
            pieces.for_each(|(_, ((dy, winners), dx))| {
                with.run(Plain { geometry, act, winners, dy, dx });
            });
        } else {
            pieces.zip(x.par_chunks(piece * x_plane)).for_each(|((at, ((dy, winners), dx)), x)| {
                let first = at * piece;
                let kernel = Normed { geometry, coefficients, first, act, x, winners, dy, dx };
                with.run(kernel);
            });
        }
    }

    /// Adds to `sums` the sums of dy and of dy (x - mean) of some samples, dy being the gradient
    /// of what the norm gave: that of the pool where a place has won, else zero.
    pub(crate) fn sums<A: Act>(
        &self,
        coefficients: Coefficients<'_>,
        act: A,
        x: &[f32],
        winners: &[u8],
        dy: &[f32],
        sums: &mut [f32],
    ) {
        let geometry = self.geometry;
        self.with.run(Sums { geometry, coefficients, act, x, winners, dy, sums });
    }
}

/// The largest number of a window so far, and its place.
#[derive(Clone, Copy)]
struct Best<V> {
    y: V,
    at: V,
}

impl<V: Copy> Best<V> {
    /// Of equal numbers the first.
    #[inline(always)]
    fn take<S: Simd<V = V>>(self, s: S, y: V, place: f32) -> Self {
        let wins = s.less(self.y, y);
        Self { y: s.select(wins, y, self.y), at: s.select(wins, s.splat(place), self.at) }
    }

    /// As [`take`](Self::take), the first NaN before all numbers.
    #[inline(always)]
    fn take_nan<S: Simd<V = V>>(self, s: S, y: V, place: f32) -> Self {
        let Self { y: best, at } = self.take(s, y, place);
        let (is_number, was_number) = (s.equal(y, y), s.equal(self.y, self.y));
        let nan = Self {
            y: s.select(was_number, y, self.y),
            at: s.select(was_number, s.splat(place), self.at),
        };
        let held =
            Self { y: s.select(was_number, best, self.y), at: s.select(was_number, at, self.at) };
        Self { y: s.select(is_number, held.y, nan.y), at: s.select(is_number, held.at, nan.at) }
    }
}

struct Forward<'a, A, const WINNERS: bool> {
    geometry: Geometry,
    coefficients: Coefficients<'a>,
    first: usize,
    act: A,
    x: &'a [f32],
    y: &'a mut [f32],
    winners: &'a mut [u8],
}

impl<A: Act, const WINNERS: bool> Kernel for Forward<'_, A, WINNERS> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Geometry { down, across } = self.geometry;
        let (x_plane, y_plane) = (down.size * across.size * BLOCK, down.out * across.out * BLOCK);
        let planes = self.x.chunks_exact(x_plane).zip(self.y.chunks_exact_mut(y_plane));
        let mut winners = self.winners.chunks_exact_mut(y_plane);
        for ((x, y), coefficients) in planes.zip(self.coefficients.from(self.first)) {
            let winners = winners.next().unwrap_or_default();
            let s = isa.narrow();
            let affine = Affine::new(s, coefficients);
            let pass = Pass::<I::Narrow, A, WINNERS> { s, act: self.act, affine };
            if self.geometry.is_two() {
                pass.two(self.geometry, x, y, winners);
            } else {
                pass.any(self.geometry, x, y, winners);
            }
        }
    }
}

/// One plane's forward pass.
#[derive(Clone, Copy)]
struct Pass<S: Simd, A, const WINNERS: bool> {
    s: S,
    act: A,
    affine: Affine<S::V>,
}

impl<S: Simd, A: Act, const WINNERS: bool> Pass<S, A, WINNERS> {
    #[inline(always)]
    fn value(self, x: S::V) -> S::V {
        self.act.forward(self.s, self.affine.apply(self.s, x))
    }

    #[inline(always)]
    fn store(self, best: Best<S::V>, y: &mut [f32], winners: &mut [u8]) {
        self.s.store(best.y, y);
        if WINNERS {
            self.s.store_bytes(self.act.mark(self.s, best.y, best.at), winners);
        }
    }

    #[inline(always)]
    fn two(self, geometry: Geometry, x: &[f32], y: &mut [f32], winners: &mut [u8]) {
        let s = self.s;
        let (width, out) = (geometry.across.size * BLOCK, geometry.across.out * BLOCK);
        let mut winners = winners.chunks_exact_mut(out);
        for (x, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(out)) {
            let (top, bottom) = x.split_at(width);
            let (top, bottom) = (top.as_chunks::<16>().0, bottom.as_chunks::<16>().0);
            let mut winners = winners.next().unwrap_or_default().chunks_exact_mut(BLOCK);
            let windows = top.iter().zip(bottom).zip(y.chunks_exact_mut(BLOCK));
            for ((top, bottom), y) in windows {
                let winners = winners.next().unwrap_or_default();
                let a = self.value(s.load(&top[..8]));
                let b = self.value(s.load(&top[8..]));
                let c = self.value(s.load(&bottom[..8]));
                let d = self.value(s.load(&bottom[8..]));
                let mut best = Best { y: a, at: s.zero() };
                best = best.take(s, b, 1.0).take(s, c, 2.0).take(s, d, 3.0);
                // NaN where one of them is, and maybe where some are infinite.
                let all = s.add(s.add(a, b), s.add(c, d));
                if s.bits(s.equal(all, all)) != 0xff {
                    best = Best { y: a, at: s.zero() };
                    best = best.take_nan(s, b, 1.0).take_nan(s, c, 2.0).take_nan(s, d, 3.0);
                }
                self.store(best, y, winners);
            }
        }
    }

    #[inline(always)]
    fn any(self, geometry: Geometry, x: &[f32], y: &mut [f32], winners: &mut [u8]) {
        let s = self.s;
        let mut winners = winners.chunks_exact_mut(BLOCK);
        let mut ys = y.chunks_exact_mut(BLOCK);
        for p in 0..geometry.down.out {
            let windows = Windows::new(geometry, p);
            for q in 0..geometry.across.out {
                let across = geometry.across.span(q);
                let (_, place) = windows.start(windows.down.first, across);
                let start = Best { y: s.splat(f32::NEG_INFINITY), at: s.splat(place as f32) };
                let (mut best, mut all) = (start, s.zero());
                for r in windows.down.first..windows.down.past {
                    let (from, place) = windows.start(r, across);
                    let taps = across.past - across.first;
                    for (tap, x) in
                        x[from * BLOCK..(from + taps) * BLOCK].chunks_exact(BLOCK).enumerate()
                    {
                        let y = self.value(s.load(x));
                        all = s.add(all, y);
                        best = best.take(s, y, (place + tap) as f32);
                    }
                }
                if s.bits(s.equal(all, all)) != 0xff {
                    best = start;
                    for r in windows.down.first..windows.down.past {
                        let (from, place) = windows.start(r, across);
                        let taps = across.past - across.first;
                        let x = &x[from * BLOCK..(from + taps) * BLOCK];
                        for (tap, x) in x.chunks_exact(BLOCK).enumerate() {
                            best = best.take_nan(s, self.value(s.load(x)), (place + tap) as f32);
                        }
                    }
                }
                let (Some(y), winners) = (ys.next(), winners.next()) else { return };
                self.store(best, y, winners.unwrap_or_default());
            }
        }
    }
}

/// A backward pass without a norm.
struct Plain<'a, A> {
    geometry: Geometry,
    act: A,
    winners: &'a [u8],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl<A: Act> Kernel for Plain<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { geometry, act, winners, dy, dx } = self;
        let (s, Geometry { down, across }) = (isa.narrow(), geometry);
        let (x_plane, y_plane) = (down.size * across.size * BLOCK, down.out * across.out * BLOCK);
        let planes = dy.chunks_exact(y_plane).zip(winners.chunks_exact(y_plane));
        for ((dy, winners), dx) in planes.zip(dx.chunks_exact_mut(x_plane)) {
            let one = s.splat(1.0);
            if geometry.is_two() {
                if down.size % 2 != 0 || across.size % 2 != 0 {
                    dx.fill(0.0);
                }
                let (width, out) = (across.size * BLOCK, across.out * BLOCK);
                let rows = dy.chunks_exact(out).zip(winners.chunks_exact(out));
                for ((dy, winners), dx) in rows.zip(dx.chunks_exact_mut(2 * width)) {
                    let (top, bottom) = dx.split_at_mut(width);
                    let places = top.as_chunks_mut::<16>().0.iter_mut();
                    let places = places.zip(bottom.as_chunks_mut::<16>().0);
                    let windows = dy.chunks_exact(BLOCK).zip(winners.chunks_exact(BLOCK));
                    for ((dy, winner), (top, bottom)) in windows.zip(places) {
                        let (place, g) = act.unmark(s, s.load_bytes(winner), s.load(dy));
                        let at = |tap: f32| s.equal(place, s.splat(tap));
                        s.store(s.select(at(0.0), g, s.zero()), &mut top[..8]);
                        s.store(s.select(at(1.0), g, s.zero()), &mut top[8..]);
                        s.store(s.select(at(2.0), g, s.zero()), &mut bottom[..8]);
                        s.store(s.select(at(3.0), g, s.zero()), &mut bottom[8..]);
                    }
                }
            } else {
                dx.fill(0.0);
                scatter(s, geometry, act, one, winners, dy, dx);
            }
        }
    }
}

/// Adds each dy, times `scale`, to the place that won it.
#[inline(always)]
fn scatter<S: Simd, A: Act>(
    s: S,
    geometry: Geometry,
    act: A,
    scale: S::V,
    winners: &[u8],
    dy: &[f32],
    dx: &mut [f32],
) {
    let mut windows = dy.chunks_exact(BLOCK).zip(winners.chunks_exact(BLOCK));
    for p in 0..geometry.down.out {
        let rows = Windows::new(geometry, p);
        for q in 0..geometry.across.out {
            let across = geometry.across.span(q);
            let Some((dy, winner)) = windows.next() else { return };
            let (place, g) = act.unmark(s, s.load_bytes(winner), s.load(dy));
            let g = s.mul(scale, g);
            for r in rows.down.first..rows.down.past {
                let (from, first) = rows.start(r, across);
                let taps = across.past - across.first;
                let dx = &mut dx[from * BLOCK..(from + taps) * BLOCK];
                for (tap, dx) in dx.chunks_exact_mut(BLOCK).enumerate() {
                    let wins = s.equal(place, s.splat((first + tap) as f32));
                    s.store(s.add(s.load(dx), s.select(wins, g, s.zero())), dx);
                }
            }
        }
    }
}

/// A backward pass through the pool and the norm before it.
struct Normed<'a, A> {
    geometry: Geometry,
    coefficients: Coefficients<'a>,
    first: usize,
    act: A,
    x: &'a [f32],
    winners: &'a [u8],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl<A: Act> Kernel for Normed<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { geometry, coefficients, first, act, x, winners, dy, dx } = self;
        let (s, Geometry { down, across }) = (isa.narrow(), geometry);
        let (x_plane, y_plane) = (down.size * across.size * BLOCK, down.out * across.out * BLOCK);
        let planes = dy.chunks_exact(y_plane).zip(winners.chunks_exact(y_plane));
        let planes = planes.zip(x.chunks_exact(x_plane).zip(dx.chunks_exact_mut(x_plane)));
        for (((dy, winners), (x, dx)), coefficients) in planes.zip(coefficients.from(first)) {
            let affine = Affine::new(s, coefficients);
            let slope = Slope::new(s, coefficients);
            if !geometry.is_two() {
                for (x, dx) in x.chunks_exact(BLOCK).zip(dx.chunks_exact_mut(BLOCK)) {
                    s.store(slope.apply(s, affine, s.load(x)), dx);
                }
                scatter(s, geometry, act, affine.scale, winners, dy, dx);
                continue;
            }
            let (width, out) = (across.size * BLOCK, across.out * BLOCK);
            // The rest of odd rows and columns.
            if down.size % 2 != 0 || across.size % 2 != 0 {
                for (x, dx) in x.chunks_exact(BLOCK).zip(dx.chunks_exact_mut(BLOCK)) {
                    s.store(slope.apply(s, affine, s.load(x)), dx);
                }
            }
            let rows = dy.chunks_exact(out).zip(winners.chunks_exact(out));
            let rows = rows.zip(x.chunks_exact(2 * width).zip(dx.chunks_exact_mut(2 * width)));
            for ((dy, winners), (x, dx)) in rows {
                let ((top, bottom), (x_top, x_bottom)) =
                    (dx.split_at_mut(width), x.split_at(width));
                let places = top.as_chunks_mut::<16>().0.iter_mut();
                let places = places.zip(bottom.as_chunks_mut::<16>().0);
                let inputs = x_top.as_chunks::<16>().0.iter().zip(x_bottom.as_chunks::<16>().0);
                let windows = dy.chunks_exact(BLOCK).zip(winners.chunks_exact(BLOCK));
                for ((dy, winner), ((top, bottom), (x_top, x_bottom))) in
                    windows.zip(places.zip(inputs))
                {
                    let (place, g) = act.unmark(s, s.load_bytes(winner), s.load(dy));
                    let g = s.mul(affine.scale, g);
                    let at = |tap: f32, x: &[f32]| {
                        let own = s.select(s.equal(place, s.splat(tap)), g, s.zero());
                        s.add(own, slope.apply(s, affine, s.load(x)))
                    };
                    s.store(at(0.0, &x_top[..8]), &mut top[..8]);
                    s.store(at(1.0, &x_top[8..]), &mut top[8..]);
                    s.store(at(2.0, &x_bottom[..8]), &mut bottom[..8]);
                    s.store(at(3.0, &x_bottom[8..]), &mut bottom[8..]);
                }
            }
        }
    }
}

struct Sums<'a, A> {
    geometry: Geometry,
    coefficients: Coefficients<'a>,
    act: A,
    x: &'a [f32],
    winners: &'a [u8],
    dy: &'a [f32],
    sums: &'a mut [f32],
}

impl<A: Act> Kernel for Sums<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { geometry, coefficients, act, x, winners, dy, sums } = self;
        let (s, Geometry { down, across }) = (isa.narrow(), geometry);
        let (x_plane, y_plane) = (down.size * across.size * BLOCK, down.out * across.out * BLOCK);
        let blocks = sums.len() / (2 * BLOCK);
        let samples = dy.chunks_exact(blocks * y_plane).zip(winners.chunks_exact(blocks * y_plane));
        for ((dy, winners), x) in samples.zip(x.chunks_exact(blocks * x_plane)) {
            let planes = dy.chunks_exact(y_plane).zip(winners.chunks_exact(y_plane));
            let planes = planes.zip(x.chunks_exact(x_plane)).zip(coefficients.from(0));
            let sums = sums.chunks_exact_mut(2 * BLOCK);
            for ((((dy, winners), x), coefficients), sums) in planes.zip(sums) {
                let affine = Affine::new(s, coefficients);
                let (low, high) = sums.split_at_mut(BLOCK);
                let mut windows = dy.chunks_exact(BLOCK).zip(winners.chunks_exact(BLOCK));
                for p in 0..down.out {
                    let rows = Windows::new(geometry, p);
                    let (mut sum, mut product) = (s.zero(), s.zero());
                    if geometry.is_two() {
                        let (from, width) =
                            (rows.down.at * across.size * BLOCK, across.size * BLOCK);
                        let (top, bottom) = x[from..from + 2 * width].split_at(width);
                        let inputs = top.as_chunks::<16>().0.iter().zip(bottom.as_chunks::<16>().0);
                        for ((top, bottom), (dy, winner)) in inputs.zip(&mut windows) {
                            let (place, g) = act.unmark(s, s.load_bytes(winner), s.load(dy));
                            let mut won = s.load(&top[..8]);
                            let at = |tap: f32| s.equal(place, s.splat(tap));
                            won = s.select(at(1.0), s.load(&top[8..]), won);
                            won = s.select(at(2.0), s.load(&bottom[..8]), won);
                            won = s.select(at(3.0), s.load(&bottom[8..]), won);
                            sum = s.add(sum, g);
                            product = s.fma(g, s.sub(won, affine.mean), product);
                        }
                    } else {
                        for q in 0..across.out {
                            let span = across.span(q);
                            let Some((dy, winner)) = windows.next() else { break };
                            let (place, g) = act.unmark(s, s.load_bytes(winner), s.load(dy));
                            let mut won = affine.mean;
                            for r in rows.down.first..rows.down.past {
                                let (from, first) = rows.start(r, span);
                                let x = &x[from * BLOCK..(from + span.past - span.first) * BLOCK];
                                for (tap, x) in x.chunks_exact(BLOCK).enumerate() {
                                    let wins = s.equal(place, s.splat((first + tap) as f32));
                                    won = s.select(wins, s.load(x), won);
                                }
                            }
                            sum = s.add(sum, g);
                            product = s.fma(g, s.sub(won, affine.mean), product);
                        }
                    }
                    add_lanes(s, sum, low);
                    add_lanes(s, product, high);
                }
            }
        }
    }
}
