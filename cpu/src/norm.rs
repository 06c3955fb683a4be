//! Batch normalisation.
//!
//! In the reference's layout statistics run in parallel over channels, the rest over samples. In
//! blocks of eight channels a group of samples sums for all channels what lies one after the
//! other, and the groups' sums are joined in order. An activation behind the norm runs within its
//! passes, backward too: y is found again from x, to the same bits.

use rayon::prelude::*;
use sepal_core::arena::Slot;
use sepal_core::layer::BatchNorm;
use sepal_core::shape::Shape;

use crate::activation::Act;
use crate::arch::{Instructions, Isa, Kernel, Simd};
use crate::blocks::{BLOCK, count, is_blocked, padded, piece, plane};
use crate::sum::{sum, sum_pairs};

/// Groups of samples, each with sums of its own.
const GROUPS: usize = 16;

/// Numbers of a block that are summed before they join the total: they stay in the first-level
/// cache for a second look.
const RUN: usize = 256 * BLOCK;

/// Numbers of [`Coefficients`] for each block of channels.
const FORWARD: usize = 3 * BLOCK;
const BACKWARD: usize = 5 * BLOCK;

/// Numbers of a group's sums for each block of channels: two for each channel.
const SUMS: usize = 2 * BLOCK;

/// Samples of a group.
fn per_group(shape: Shape) -> usize {
    (shape.n as usize).div_ceil(GROUPS).max(1)
}

/// Numbers of all groups' sums; a smaller batch never takes more.
fn sums(shape: Shape) -> usize {
    (shape.n as usize).min(GROUPS) * count(shape) * SUMS
}

/// Numbers that training keeps: a mean and a variance for each channel.
pub(crate) fn saved(x: Slot) -> u32 {
    let channels = if is_blocked(x) { padded(x.shape.c as usize) as u32 } else { x.shape.c };
    channels.saturating_mul(2)
}

/// Numbers of scratch that a forward pass takes.
pub(crate) fn forward_scratch(x: Slot) -> usize {
    if is_blocked(x) { count(x.shape) * FORWARD + sums(x.shape) } else { 0 }
}

/// Numbers of scratch that a backward pass takes.
pub(crate) fn backward_scratch(x: Slot) -> usize {
    if is_blocked(x) {
        count(x.shape) * BACKWARD + sums(x.shape)
    } else {
        (x.shape.c as usize).saturating_mul(2)
    }
}

pub(crate) fn inverse(layer: BatchNorm, variance: f32) -> f32 {
    1.0 / (variance + layer.eps).sqrt()
}

/// The planes of channel `c`, one for each sample.
fn planes(x: &[f32], shape: Shape, c: usize) -> impl Iterator<Item = &[f32]> {
    let (plane, channels) = (shape.plane().max(1) as usize, shape.c.max(1) as usize);
    x.chunks_exact(plane).skip(c).step_by(channels)
}

/// Writes `y` by the statistics of the batch, and these to `saved`: C means, then C variances.
pub(crate) fn forward_train(
    layer: BatchNorm,
    shape: Shape,
    x: &[f32],
    [gamma, beta]: [&[f32]; 2],
    y: &mut [f32],
    saved: &mut [f32],
) {
    if layer.output(shape).is_none() {
        return;
    }
    let (plane, channels) = (shape.plane().max(1) as usize, shape.c.max(1) as usize);
    let count = (shape.n as usize * plane) as f32;
    let Some((means, variances)) = saved.split_at_mut_checked(channels) else { return };
    means.par_iter_mut().zip(&mut *variances).enumerate().for_each(|(c, (mean, variance))| {
        *mean = planes(x, shape, c).fold(0.0, |total, x| total + sum(x, |x| x)) / count;
        let m = *mean;
        let squared = |x: f32| (x - m) * (x - m);
        *variance = planes(x, shape, c).fold(0.0, |total, x| total + sum(x, squared)) / count;
    });
    let (means, variances) = (&*means, &*variances);
    let samples = y.par_chunks_mut(channels * plane).zip(x.par_chunks(channels * plane));
    samples.for_each(|(y, x)| {
        let planes = y.chunks_exact_mut(plane).zip(x.chunks_exact(plane));
        for (c, ((y, x), (mean, variance))) in planes.zip(means.iter().zip(variances)).enumerate() {
            let scale = gamma.get(c).copied().unwrap_or(1.0) * inverse(layer, *variance);
            let shift = beta.get(c).copied().unwrap_or(0.0);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * scale + shift);
        }
    });
}

/// Overwrites `g`, which holds dy, with dx; adds to `dgamma` and `dbeta` (empty without affine).
#[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
pub(crate) fn backward(
    layer: BatchNorm,
    shape: Shape,
    x: &[f32],
    gamma: &[f32],
    saved: &[f32],
    g: &mut [f32],
    [dgamma, dbeta]: [&mut [f32]; 2],
    scratch: &mut [f32],
) {
    if layer.output(shape).is_none() {
        return;
    }
    let (plane, channels) = (shape.plane().max(1) as usize, shape.c.max(1) as usize);
    let count = (shape.n as usize * plane) as f32;
    let Some((means, variances)) = saved.split_at_checked(channels) else { return };
    let Some((sums, sums_z)) = scratch.split_at_mut_checked(channels) else { return };
    let dy = &*g;
    let statistics = means.par_iter().zip(variances).enumerate();
    sums.par_iter_mut().zip(&mut *sums_z).zip(statistics).for_each(
        |((sum_g, sum_gz), (c, (mean, variance)))| {
            let inverse = inverse(layer, *variance);
            (*sum_g, *sum_gz) = (0.0, 0.0);
            for (x, dy) in planes(x, shape, c).zip(planes(dy, shape, c)) {
                *sum_g += sum(dy, |dy| dy);
                *sum_gz += sum_pairs(x, dy, |x, dy| dy * ((x - mean) * inverse));
            }
        },
    );
    dgamma.iter_mut().zip(&*sums_z).for_each(|(dgamma, sum)| *dgamma += sum);
    dbeta.iter_mut().zip(&*sums).for_each(|(dbeta, sum)| *dbeta += sum);
    let (sums, sums_z) = (&*sums, &*sums_z);
    let samples = g.par_chunks_mut(channels * plane).zip(x.par_chunks(channels * plane));
    samples.for_each(|(g, x)| {
        let planes = g.chunks_exact_mut(plane).zip(x.chunks_exact(plane));
        let statistics = means.iter().zip(variances).zip(sums.iter().zip(sums_z));
        for (c, ((g, x), ((mean, variance), (sum_g, sum_gz)))) in planes.zip(statistics).enumerate()
        {
            let inverse = inverse(layer, *variance);
            let (mean_g, mean_gz) = (sum_g / count, sum_gz / count);
            let scale = gamma.get(c).copied().unwrap_or(1.0) * inverse;
            for (g, x) in g.iter_mut().zip(x) {
                *g = scale * (*g - mean_g - (x - mean) * inverse * mean_gz);
            }
        }
    });
}

/// A norm in blocks of eight channels.
#[derive(Clone, Copy)]
pub(crate) struct Blocked<'a> {
    pub(crate) with: Instructions,
    pub(crate) layer: BatchNorm,
    pub(crate) shape: Shape,
    pub(crate) gamma: &'a [f32],
    pub(crate) beta: &'a [f32],
}

/// What a pass does to each channel, block by block: eight means, eight scales, eight shifts, and
/// in backward passes eight numbers each that stand by themselves and by x. The padding has zeros,
/// so that it stays zero.
///
/// ```text
/// y  = (x - mean) scale + shift
/// dx = dy scale + (x - mean) slope + offset
/// ```
#[derive(Clone, Copy)]
pub(crate) struct Coefficients<'a> {
    pub(crate) numbers: &'a [f32],
    /// Numbers of one block.
    pub(crate) stride: usize,
}

impl<'a> Coefficients<'a> {
    /// Those that change nothing.
    pub(crate) const NONE: Coefficients<'static> = Coefficients {
        numbers: &[
            0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0,
            0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        ],
        stride: FORWARD,
    };

    /// Those of each block from `first` on, sample after sample.
    #[inline(always)]
    pub(crate) fn from(self, first: usize) -> impl Iterator<Item = &'a [f32]> {
        let blocks = self.numbers.len() / self.stride.max(1);
        self.numbers.chunks_exact(self.stride).cycle().skip(first % blocks.max(1))
    }
}

/// Eight numbers of a block's coefficients, repeated over all lanes.
#[inline(always)]
pub(crate) fn spread<S: Simd>(s: S, coefficients: &[f32], which: usize) -> S::V {
    let eight = &coefficients[which * BLOCK..(which + 1) * BLOCK];
    let mut lanes = [0.0; 16];
    lanes[..8].copy_from_slice(eight);
    lanes[8..].copy_from_slice(eight);
    s.load(&lanes)
}

/// Mean, scale and shift of one block.
#[derive(Clone, Copy)]
pub(crate) struct Affine<V> {
    pub(crate) mean: V,
    pub(crate) scale: V,
    pub(crate) shift: V,
}

impl<V: Copy> Affine<V> {
    #[inline(always)]
    pub(crate) fn new<S: Simd<V = V>>(s: S, coefficients: &[f32]) -> Self {
        Self {
            mean: spread(s, coefficients, 0),
            scale: spread(s, coefficients, 1),
            shift: spread(s, coefficients, 2),
        }
    }

    /// y before the activation. Backward passes find the same bits.
    #[inline(always)]
    pub(crate) fn apply<S: Simd<V = V>>(self, s: S, x: V) -> V {
        s.fma(s.sub(x, self.mean), self.scale, self.shift)
    }
}

/// The two numbers of each channel that make a gradient of x.
#[derive(Clone, Copy)]
pub(crate) struct Slope<V> {
    offset: V,
    slope: V,
}

impl<V: Copy> Slope<V> {
    #[inline(always)]
    pub(crate) fn new<S: Simd<V = V>>(s: S, coefficients: &[f32]) -> Self {
        Self { offset: spread(s, coefficients, 3), slope: spread(s, coefficients, 4) }
    }

    /// dx where dy is zero.
    #[inline(always)]
    pub(crate) fn apply<S: Simd<V = V>>(self, s: S, affine: Affine<V>, x: V) -> V {
        s.fma(s.sub(x, affine.mean), self.slope, self.offset)
    }
}

/// Adds the lanes to eight sums.
#[inline(always)]
pub(crate) fn add_lanes<S: Simd>(s: S, v: S::V, sums: &mut [f32]) {
    let mut lanes = [0.0; 16];
    s.store(v, &mut lanes);
    let (low, high) = lanes.split_at(BLOCK);
    sums.iter_mut().zip(low.iter().zip(high)).for_each(|(sum, (a, b))| *sum += a + b);
}

impl<'a> Blocked<'a> {
    /// Places of a channel, as a number.
    fn count(&self) -> f32 {
        (self.shape.n as usize * self.shape.plane() as usize) as f32
    }

    /// Measures `x`: writes `saved`, and the coefficients of a forward pass, which lie in
    /// `scratch`.
    pub(crate) fn measure<'s>(
        &self,
        x: &[f32],
        saved: &mut [f32],
        scratch: &'s mut [f32],
    ) -> Coefficients<'s> {
        let (shape, blocks) = (self.shape, count(self.shape));
        let (coefficients, partials) = scratch.split_at_mut(blocks * FORWARD);
        let group = per_group(shape) * blocks * plane(shape);
        let groups = x.par_chunks(group).zip(partials.par_chunks_mut(blocks * SUMS));
        groups.for_each(|(x, sums)| {
            sums.fill(0.0);
            self.with.run(Measure { plane: plane(shape), x, sums });
        });
        let (means, variances) = saved.split_at_mut(padded(shape.c as usize));
        let samples = x.len() / (blocks * plane(shape)).max(1);
        let area = shape.plane() as usize;
        let lanes = means.chunks_exact_mut(BLOCK).zip(variances.chunks_exact_mut(BLOCK));
        for (block, (means, variances)) in lanes.enumerate() {
            means.fill(0.0);
            variances.fill(0.0);
            let groups =
                partials.chunks_exact(blocks * SUMS).take(samples.div_ceil(per_group(shape)));
            for (group, sums) in groups.enumerate() {
                let seen = group * per_group(shape);
                let more = (samples - seen).min(per_group(shape));
                let sums = &sums[block * SUMS..(block + 1) * SUMS];
                merge(seen * area, more * area, (means, variances), sums.split_at(BLOCK));
            }
            variances.iter_mut().for_each(|v| *v /= self.count());
        }
        self.coefficients(means, variances, coefficients)
    }

    /// Moves the running statistics.
    pub(crate) fn update(&self, saved: &[f32], share: f32, mean: &mut [f32], variance: &mut [f32]) {
        let shape = Shape { c: padded(self.shape.c as usize) as u32, ..self.shape };
        self.layer.update(shape, saved, share, mean, variance);
    }

    /// Writes the coefficients of a forward pass.
    pub(crate) fn coefficients<'s>(
        &self,
        means: &[f32],
        variances: &[f32],
        coefficients: &'s mut [f32],
    ) -> Coefficients<'s> {
        let numbers = coefficients.get_mut(..count(self.shape) * FORWARD).unwrap_or_default();
        self.fill(means, variances, numbers, FORWARD);
        Coefficients { numbers, stride: FORWARD }
    }

    fn fill(&self, means: &[f32], variances: &[f32], numbers: &mut [f32], stride: usize) {
        numbers.fill(0.0);
        let statistics = means.iter().zip(variances).take(self.shape.c as usize).enumerate();
        for (c, (&mean, &variance)) in statistics {
            let at = c / BLOCK * stride + c % BLOCK;
            numbers[at] = mean;
            numbers[at + BLOCK] =
                self.gamma.get(c).copied().unwrap_or(1.0) * inverse(self.layer, variance);
            numbers[at + 2 * BLOCK] = self.beta.get(c).copied().unwrap_or(0.0);
        }
    }

    /// Writes y.
    pub(crate) fn apply<A: Act>(
        &self,
        coefficients: Coefficients<'_>,
        act: A,
        x: &[f32],
        y: &mut [f32],
    ) {
        let (plane, piece) = (plane(self.shape), piece(self.shape));
        let pieces = x.par_chunks(piece * plane).zip(y.par_chunks_mut(piece * plane));
        pieces.enumerate().for_each(|(at, (x, y))| {
            let first = at * piece;
            self.with.run(Apply { plane, coefficients, first, act, x, y });
        });
    }

    /// Overwrites `y`, which holds x.
    pub(crate) fn apply_in_place(&self, coefficients: Coefficients<'_>, y: &mut [f32]) {
        let (plane, piece) = (plane(self.shape), piece(self.shape));
        y.par_chunks_mut(piece * plane).enumerate().for_each(|(at, y)| {
            self.with.run(InPlace { plane, coefficients, first: at * piece, y });
        });
    }

    /// The two halves of a backward pass: `sums` adds for each group of samples its sums of dy
    /// and of dy (x - mean), then the coefficients are told.
    ///
    /// Adds to `dgamma` and `dbeta`, which are empty without affine.
    pub(crate) fn gradient_coefficients<'s>(
        &self,
        saved: &[f32],
        [dgamma, dbeta]: [&mut [f32]; 2],
        scratch: &'s mut [f32],
        sums: impl Fn(usize, Coefficients<'_>, &mut [f32]) + Sync,
    ) -> Coefficients<'s> {
        let (shape, blocks) = (self.shape, count(self.shape));
        let (numbers, partials) = scratch.split_at_mut(blocks * BACKWARD);
        let (means, variances) = saved.split_at(padded(shape.c as usize));
        self.fill(means, variances, numbers, BACKWARD);
        let coefficients = Coefficients { numbers, stride: BACKWARD };
        let groups = (shape.n as usize).div_ceil(per_group(shape));
        let partials = partials.get_mut(..groups * blocks * SUMS).unwrap_or_default();
        partials.par_chunks_mut(blocks * SUMS).enumerate().for_each(|(group, partial)| {
            partial.fill(0.0);
            sums(group, coefficients, partial);
        });
        let channels = variances.iter().take(shape.c as usize).enumerate();
        for (c, &variance) in channels {
            let (at, lane) = (c / BLOCK * BACKWARD + c % BLOCK, c / BLOCK * SUMS + c % BLOCK);
            let (mut sum_g, mut sum_gz) = (0.0, 0.0);
            for partial in partials.chunks_exact(blocks * SUMS) {
                sum_g += partial[lane];
                sum_gz += partial[lane + BLOCK];
            }
            let inverse = inverse(self.layer, variance);
            sum_gz *= inverse;
            dgamma.iter_mut().skip(c).take(1).for_each(|dgamma| *dgamma += sum_gz);
            dbeta.iter_mut().skip(c).take(1).for_each(|dbeta| *dbeta += sum_g);
            let scale = numbers[at + BLOCK];
            numbers[at + 3 * BLOCK] = -scale * (sum_g / self.count());
            numbers[at + 4 * BLOCK] = -scale * inverse * (sum_gz / self.count());
        }
        Coefficients { numbers, stride: BACKWARD }
    }

    /// The samples of a group, in a tensor of `plane` numbers for each block.
    pub(crate) fn group<'x, T>(&self, group: usize, plane: usize, x: &'x [T]) -> &'x [T] {
        let size = per_group(self.shape) * count(self.shape) * plane;
        x.chunks(size.max(1)).nth(group).unwrap_or_default()
    }

    /// Overwrites `g`, which holds dy, with dx where it is wanted; adds to `dgamma` and `dbeta`.
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub(crate) fn backward<A: Act>(
        &self,
        act: A,
        x: &[f32],
        saved: &[f32],
        g: &mut [f32],
        gradients: [&mut [f32]; 2],
        scratch: &mut [f32],
        wants_dx: bool,
    ) {
        let (plane, piece) = (plane(self.shape), piece(self.shape));
        let dy = &*g;
        let coefficients =
            self.gradient_coefficients(saved, gradients, scratch, |group, coefficients, sums| {
                let (x, g) = (self.group(group, plane, x), self.group(group, plane, dy));
                self.with.run(Sums { plane, coefficients, act, x, g, sums });
            });
        if !wants_dx {
            return;
        }
        let pieces = x.par_chunks(piece * plane).zip(g.par_chunks_mut(piece * plane));
        pieces.enumerate().for_each(|(at, (x, g))| {
            let first = at * piece;
            self.with.run(Gradient { plane, coefficients, first, act, x, g });
        });
    }
}

/// Joins means and sums of squared deviations of `seen` places and of `more` others.
///
/// ```text
/// mean' = mean + (more / all) apart,  apart = other mean - mean
/// m2'   = m2 + other m2 + (seen more / all) apart^2
/// ```
/// (Chan, Golub and LeVeque, 1979)
#[inline(always)]
fn merge(
    seen: usize,
    more: usize,
    (means, squares): (&mut [f32], &mut [f32]),
    (other_means, other_squares): (&[f32], &[f32]),
) {
    let share = more as f32 / (seen + more) as f32;
    let weight = seen as f32 * share;
    let others = other_means.iter().zip(other_squares);
    for ((mean, square), (other, other_square)) in means.iter_mut().zip(squares).zip(others) {
        let apart = other - *mean;
        *mean += share * apart;
        *square += other_square + weight * (apart * apart);
    }
}

/// The mean and the sum of squared deviations of each channel of some samples.
struct Measure<'a> {
    plane: usize,
    x: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for Measure<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let blocks = self.sums.len() / SUMS;
        for (sample, x) in self.x.chunks_exact(blocks * self.plane).enumerate() {
            for (x, sums) in x.chunks_exact(self.plane).zip(self.sums.chunks_exact_mut(SUMS)) {
                let mut seen = sample * (self.plane / BLOCK);
                for run in x.chunks(RUN) {
                    let mut total = [0.0; BLOCK];
                    let rest = add_all(isa.wide(), run, &mut total);
                    add_all(isa.narrow(), rest, &mut total);
                    let places = run.len() / BLOCK;
                    let mean = total.map(|total| total / places as f32);
                    let mut squares = [0.0; BLOCK];
                    let rest = add_squares(isa.wide(), run, &mean, &mut squares);
                    add_squares(isa.narrow(), rest, &mean, &mut squares);
                    merge(seen, places, sums.split_at_mut(BLOCK), (&mean, &squares));
                    seen += places;
                }
            }
        }
    }
}

#[inline(always)]
fn add_all<'a, S: Simd>(s: S, x: &'a [f32], sums: &mut [f32]) -> &'a [f32] {
    let (mut a, mut b) = (s.zero(), s.zero());
    let pairs = x.chunks_exact(2 * S::LANES);
    let rest = pairs.remainder();
    for x in pairs {
        a = s.add(a, s.load(x));
        b = s.add(b, s.load(&x[S::LANES..]));
    }
    let vectors = rest.chunks_exact(S::LANES);
    let rest = vectors.remainder();
    for x in vectors {
        a = s.add(a, s.load(x));
    }
    add_lanes(s, s.add(a, b), sums);
    rest
}

#[inline(always)]
fn add_squares<'a, S: Simd>(s: S, x: &'a [f32], mean: &[f32], sums: &mut [f32]) -> &'a [f32] {
    let mean = spread(s, mean, 0);
    let (mut a, mut b) = (s.zero(), s.zero());
    let pairs = x.chunks_exact(2 * S::LANES);
    let rest = pairs.remainder();
    for x in pairs {
        let (p, q) = (s.sub(s.load(x), mean), s.sub(s.load(&x[S::LANES..]), mean));
        a = s.fma(p, p, a);
        b = s.fma(q, q, b);
    }
    let vectors = rest.chunks_exact(S::LANES);
    let rest = vectors.remainder();
    for x in vectors {
        let p = s.sub(s.load(x), mean);
        a = s.fma(p, p, a);
    }
    add_lanes(s, s.add(a, b), sums);
    rest
}

struct Apply<'a, A> {
    plane: usize,
    coefficients: Coefficients<'a>,
    /// The first block of `x`.
    first: usize,
    act: A,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<A: Act> Kernel for Apply<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let planes = self.x.chunks_exact(self.plane).zip(self.y.chunks_exact_mut(self.plane));
        for ((x, y), coefficients) in planes.zip(self.coefficients.from(self.first)) {
            let (x, y) = apply(isa.wide(), self.act, coefficients, x, y);
            apply(isa.narrow(), self.act, coefficients, x, y);
        }
    }
}

#[inline(always)]
fn apply<'a, S: Simd, A: Act>(
    s: S,
    act: A,
    coefficients: &[f32],
    x: &'a [f32],
    y: &'a mut [f32],
) -> (&'a [f32], &'a mut [f32]) {
    let affine = Affine::new(s, coefficients);
    let xs = x.chunks_exact(S::LANES);
    let rest = xs.remainder();
    let mut ys = y.chunks_exact_mut(S::LANES);
    for (x, y) in xs.zip(&mut ys) {
        s.store(act.forward(s, affine.apply(s, s.load(x))), y);
    }
    (rest, ys.into_remainder())
}

struct InPlace<'a> {
    plane: usize,
    coefficients: Coefficients<'a>,
    first: usize,
    y: &'a mut [f32],
}

impl Kernel for InPlace<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let planes = self.y.chunks_exact_mut(self.plane);
        for (y, coefficients) in planes.zip(self.coefficients.from(self.first)) {
            let rest = apply_in_place(isa.wide(), coefficients, y);
            apply_in_place(isa.narrow(), coefficients, rest);
        }
    }
}

#[inline(always)]
fn apply_in_place<'a, S: Simd>(s: S, coefficients: &[f32], y: &'a mut [f32]) -> &'a mut [f32] {
    let affine = Affine::new(s, coefficients);
    let mut ys = y.chunks_exact_mut(S::LANES);
    for y in &mut ys {
        s.store(affine.apply(s, s.load(y)), y);
    }
    ys.into_remainder()
}

/// Sums of dy and of dy (x - mean) of some samples.
struct Sums<'a, A> {
    plane: usize,
    coefficients: Coefficients<'a>,
    act: A,
    x: &'a [f32],
    g: &'a [f32],
    sums: &'a mut [f32],
}

impl<A: Act> Kernel for Sums<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let sample = self.plane * (self.sums.len() / SUMS);
        for (x, g) in self.x.chunks_exact(sample).zip(self.g.chunks_exact(sample)) {
            let planes = x.chunks_exact(self.plane).zip(g.chunks_exact(self.plane));
            let totals = self.sums.chunks_exact_mut(SUMS).zip(self.coefficients.from(0));
            for ((x, g), (sums, coefficients)) in planes.zip(totals) {
                for (x, g) in x.chunks(RUN).zip(g.chunks(RUN)) {
                    let (x, g) = add_products(isa.wide(), self.act, coefficients, x, g, sums);
                    add_products(isa.narrow(), self.act, coefficients, x, g, sums);
                }
            }
        }
    }
}

#[inline(always)]
fn add_products<'a, S: Simd, A: Act>(
    s: S,
    act: A,
    coefficients: &[f32],
    x: &'a [f32],
    g: &'a [f32],
    sums: &mut [f32],
) -> (&'a [f32], &'a [f32]) {
    let affine = Affine::new(s, coefficients);
    let (mut sum, mut product) = (s.zero(), s.zero());
    let (xs, gs) = (x.chunks_exact(S::LANES), g.chunks_exact(S::LANES));
    let rest = (xs.remainder(), gs.remainder());
    for (x, g) in xs.zip(gs) {
        let x = s.load(x);
        let y = act.forward(s, affine.apply(s, x));
        let g = act.backward(s, y, s.load(g));
        sum = s.add(sum, g);
        product = s.fma(g, s.sub(x, affine.mean), product);
    }
    let (low, high) = sums.split_at_mut(BLOCK);
    add_lanes(s, sum, low);
    add_lanes(s, product, high);
    rest
}

struct Gradient<'a, A> {
    plane: usize,
    coefficients: Coefficients<'a>,
    first: usize,
    act: A,
    x: &'a [f32],
    g: &'a mut [f32],
}

impl<A: Act> Kernel for Gradient<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let planes = self.x.chunks_exact(self.plane).zip(self.g.chunks_exact_mut(self.plane));
        for ((x, g), coefficients) in planes.zip(self.coefficients.from(self.first)) {
            let (x, g) = gradient(isa.wide(), self.act, coefficients, x, g);
            gradient(isa.narrow(), self.act, coefficients, x, g);
        }
    }
}

#[inline(always)]
fn gradient<'a, S: Simd, A: Act>(
    s: S,
    act: A,
    coefficients: &[f32],
    x: &'a [f32],
    g: &'a mut [f32],
) -> (&'a [f32], &'a mut [f32]) {
    let affine = Affine::new(s, coefficients);
    let slope = Slope::new(s, coefficients);
    let xs = x.chunks_exact(S::LANES);
    let rest = xs.remainder();
    let mut gs = g.chunks_exact_mut(S::LANES);
    for (x, g) in xs.zip(&mut gs) {
        let x = s.load(x);
        let y = act.forward(s, affine.apply(s, x));
        let dy = act.backward(s, y, s.load(g));
        s.store(s.fma(affine.scale, dy, slope.apply(s, affine, x)), g);
    }
    (rest, gs.into_remainder())
}
