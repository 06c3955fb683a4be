//! Batch normalisation: statistics in parallel over channels, the rest over samples.

use rayon::prelude::*;
use sepal_core::layer::BatchNorm;
use sepal_core::shape::Shape;

use crate::sum::{sum, sum_pairs};

/// Numbers of scratch that a backward pass takes: two sums for each channel.
pub(crate) const fn backward_scratch(x: Shape) -> usize {
    (x.c as usize).saturating_mul(2)
}

fn inverse(layer: BatchNorm, variance: f32) -> f32 {
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
