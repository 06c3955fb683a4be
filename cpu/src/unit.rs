//! Samples of length 1: [`L2Normalise`] by vectors, sample by sample in parallel.

use rayon::prelude::*;
use sepal_core::layer::L2Normalise;
use sepal_core::shape::Shape;

use crate::arch::{Instructions, Isa, Kernel, Simd};
use crate::blocks::GRAIN;

/// Sums side by side.
const SUMS: usize = 4;

/// Squares of lengths between these are exact enough; the reference's own way serves the rest.
const SQUARES: core::ops::Range<f32> = 1e-30..1e30;

/// The sum of `a[i] b[i]`.
#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [s.zero(); SUMS];
    let (mut a, mut b) = (a.chunks_exact(SUMS * S::LANES), b.chunks_exact(SUMS * S::LANES));
    for (a, b) in a.by_ref().zip(b.by_ref()) {
        for (v, sum) in sums.iter_mut().enumerate() {
            *sum = s.fma(s.load(&a[v * S::LANES..]), s.load(&b[v * S::LANES..]), *sum);
        }
    }
    let mut lanes = [0.0; 16];
    s.store(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])), &mut lanes);
    let rest = a.remainder().iter().zip(b.remainder());
    lanes.iter().sum::<f32>() + rest.map(|(a, b)| a * b).sum::<f32>()
}

/// Divides a sample by its length; gives the length where its square is in [`SQUARES`], else
/// leaves the sample as it is.
struct Forward<'a> {
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = Option<f32>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<f32> {
        let s = isa.wide();
        let square = dot(s, self.y, self.y);
        if !SQUARES.contains(&square) {
            return None;
        }
        let norm = square.sqrt();
        let mut vectors = self.y.chunks_exact_mut(I::Wide::LANES);
        let by = s.splat(norm);
        vectors.by_ref().for_each(|y| s.store(s.div(s.load(y), by), y));
        vectors.into_remainder().iter_mut().for_each(|y| *y /= norm);
        Some(norm)
    }
}

/// Turns the gradient of a sample of length 1 into that of the sample.
struct Backward<'a> {
    y: &'a [f32],
    norm: f32,
    g: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (s, Self { y, norm, g }) = (isa.wide(), self);
        let along = dot(s, y, g);
        let (each, by) = (s.splat(along), s.splat(norm));
        let (mut y, mut g) = (y.chunks_exact(I::Wide::LANES), g.chunks_exact_mut(I::Wide::LANES));
        for (y, g) in y.by_ref().zip(g.by_ref()) {
            s.store(s.div(s.fnma(s.load(y), each, s.load(g)), by), g);
        }
        let rest = y.remainder().iter().zip(g.into_remainder());
        rest.for_each(|(y, g)| *g = (*g - y * along) / norm);
    }
}

/// [`L2Normalise::forward`] of samples that lie as `shape` says.
pub(crate) fn forward(with: Instructions, shape: Shape, y: &mut [f32], norms: &mut [f32]) {
    let (one, sample) = (shape.with_n(1), shape.sample().unwrap_or(0) as usize);
    let samples = y.par_chunks_exact_mut(sample.max(1)).zip(norms);
    samples.with_min_len(GRAIN / sample.max(1)).for_each(|(y, norm)| {
        match with.run(Forward { y }) {
            Some(length) => *norm = length,
            None => L2Normalise.forward(one, y, core::slice::from_mut(norm)),
        }
    });
}

/// [`L2Normalise::backward`].
pub(crate) fn backward(with: Instructions, shape: Shape, y: &[f32], norms: &[f32], g: &mut [f32]) {
    let (one, sample) = (shape.with_n(1), shape.sample().unwrap_or(0) as usize);
    let samples = y.par_chunks_exact(sample.max(1)).zip(g.par_chunks_exact_mut(sample.max(1)));
    samples.zip(norms).with_min_len(GRAIN / sample.max(1)).for_each(|((y, g), &norm)| {
        if norm > 0.0 && norm.is_finite() {
            with.run(Backward { y, norm, g });
        } else {
            L2Normalise.backward(one, y, &[norm], g);
        }
    });
}
