//! Means and deviations in blocks of eight channels. Means of windows keep the layout; those of
//! bins and planes read blocks and give the reference's layout, which heads continue in.

use rayon::prelude::*;
use sepal_core::layer::{AvgPool, AvgPoolTo, ChannelStd};
use sepal_core::shape::Shape;

use super::{Geometry, Windows};
use crate::blocks::{BLOCK, count, piece, plane};

type Eight = [f32; BLOCK];

/// Calls `each` with the block of each pair of planes, many at a time.
fn planes<'a>(
    shape: Shape,
    out: Shape,
    x: &'a [f32],
    y: &'a mut [f32],
    each: impl Fn(&[Eight], &mut [Eight]) + Sync,
) {
    let planes = x.par_chunks_exact(plane(shape)).zip(y.par_chunks_exact_mut(plane(out)));
    planes.with_min_len(piece(shape)).for_each(|(x, y)| each(x.as_chunks().0, y.as_chunks_mut().0));
}

/// As [`planes`], the output being written.
fn planes_into<'a>(
    shape: Shape,
    out: Shape,
    dx: &'a mut [f32],
    dy: &'a [f32],
    each: impl Fn(&mut [Eight], &[Eight]) + Sync,
) {
    let planes = dx.par_chunks_exact_mut(plane(shape)).zip(dy.par_chunks_exact(plane(out)));
    planes
        .with_min_len(piece(shape))
        .for_each(|(dx, dy)| each(dx.as_chunks_mut().0, dy.as_chunks().0));
}

fn add(to: &mut Eight, from: &Eight) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// [`AvgPool::forward`].
pub(crate) fn forward(layer: AvgPool, shape: Shape, x: &[f32], y: &mut [f32]) {
    let Some(out) = layer.output(shape) else { return };
    let geometry = Geometry::new(layer.window, shape, out);
    let size = (geometry.down.kernel * geometry.across.kernel) as f32;
    planes(shape, out, x, y, |x, y| {
        let mut ys = y.iter_mut();
        for p in 0..geometry.down.out {
            let rows = Windows::new(geometry, p);
            for (q, y) in (0..geometry.across.out).zip(&mut ys) {
                let mut sum = [0.0; BLOCK];
                rows.each(geometry.across.span(q), |range| {
                    x.get(range).unwrap_or_default().iter().for_each(|x| add(&mut sum, x));
                });
                *y = sum.map(|sum| sum / size);
            }
        }
    });
}

/// [`AvgPool::backward`].
pub(crate) fn backward(layer: AvgPool, shape: Shape, dy: &[f32], dx: &mut [f32]) {
    let Some(out) = layer.output(shape) else { return };
    let geometry = Geometry::new(layer.window, shape, out);
    let size = (geometry.down.kernel * geometry.across.kernel) as f32;
    planes_into(shape, out, dx, dy, |dx, dy| {
        dx.as_flattened_mut().fill(0.0);
        let mut dys = dy.iter();
        for p in 0..geometry.down.out {
            let rows = Windows::new(geometry, p);
            for (q, dy) in (0..geometry.across.out).zip(&mut dys) {
                let share = dy.map(|dy| dy / size);
                rows.each(geometry.across.span(q), |range| {
                    let dx = dx.get_mut(range).unwrap_or_default();
                    dx.iter_mut().for_each(|dx| add(dx, &share));
                });
            }
        }
    });
}

/// Calls `each` with the planes of a block and the channels of the other tensor, which lies as the
/// reference's: eight planes of it, or fewer.
fn to_channels(
    shape: Shape,
    out: Shape,
    x: &[f32],
    y: &mut [f32],
    each: impl Fn(&[Eight], &mut [f32]) + Sync,
) {
    let area = out.plane().max(1) as usize;
    let samples = x.par_chunks_exact((count(shape) * plane(shape)).max(1));
    let samples = samples.zip(y.par_chunks_exact_mut((out.c as usize * area).max(1)));
    samples.with_min_len((piece(shape) / count(shape).max(1)).max(1)).for_each(|(x, y)| {
        let planes = x.chunks_exact(plane(shape)).zip(y.chunks_mut(BLOCK * area));
        planes.for_each(|(x, y)| each(x.as_chunks().0, y));
    });
}

/// As [`to_channels`], the blocks being written.
fn from_channels(
    shape: Shape,
    out: Shape,
    dx: &mut [f32],
    dy: &[f32],
    each: impl Fn(&mut [Eight], &[f32]) + Sync,
) {
    let area = out.plane().max(1) as usize;
    let samples = dx.par_chunks_exact_mut((count(shape) * plane(shape)).max(1));
    let samples = samples.zip(dy.par_chunks_exact((out.c as usize * area).max(1)));
    samples.with_min_len((piece(shape) / count(shape).max(1)).max(1)).for_each(|(dx, dy)| {
        let planes = dx.chunks_exact_mut(plane(shape)).zip(dy.chunks(BLOCK * area));
        planes.for_each(|(dx, dy)| each(dx.as_chunks_mut().0, dy));
    });
}

/// Eight channels of a tensor that has one place for each, zeros where it has fewer.
fn eight(channels: &[f32]) -> Eight {
    let mut eight = [0.0; BLOCK];
    eight.iter_mut().zip(channels).for_each(|(to, from)| *to = *from);
    eight
}

/// Places that are summed before they join the total.
const RUN: usize = 128;

fn total(x: &[Eight], f: impl Fn(&Eight) -> Eight) -> Eight {
    let mut total = [0.0; BLOCK];
    for run in x.chunks(RUN) {
        let mut sum = [0.0; BLOCK];
        run.iter().for_each(|x| add(&mut sum, &f(x)));
        add(&mut total, &sum);
    }
    total
}

fn mean(x: &[Eight]) -> Eight {
    total(x, |x| *x).map(|sum| sum / x.len() as f32)
}

/// [`GlobalAvgPool::forward`](sepal_core::layer::GlobalAvgPool::forward) of blocks.
pub(crate) fn forward_global(shape: Shape, x: &[f32], y: &mut [f32]) {
    to_channels(shape, Shape::rows(shape.n, shape.c), x, y, |x, y| {
        y.iter_mut().zip(mean(x)).for_each(|(y, mean)| *y = mean);
    });
}

/// [`GlobalAvgPool::backward`](sepal_core::layer::GlobalAvgPool::backward) into blocks.
pub(crate) fn backward_global(shape: Shape, dy: &[f32], dx: &mut [f32]) {
    from_channels(shape, Shape::rows(shape.n, shape.c), dx, dy, |dx, dy| {
        let count = dx.len() as f32;
        dx.fill(eight(dy).map(|dy| dy / count));
    });
}

/// Mean and [deviation](ChannelStd) of each channel.
fn deviation(x: &[Eight]) -> (Eight, Eight) {
    let mean = mean(x);
    let squares = total(x, |x| {
        let mut apart = *x;
        apart.iter_mut().zip(mean).for_each(|(x, mean)| *x = (*x - mean) * (*x - mean));
        apart
    });
    (mean, squares.map(|sum| (sum / x.len() as f32 + ChannelStd::EPS).sqrt()))
}

/// [`ChannelStd::forward`] of blocks.
pub(crate) fn forward_deviation(shape: Shape, x: &[f32], y: &mut [f32]) {
    to_channels(shape, Shape::rows(shape.n, shape.c), x, y, |x, y| {
        y.iter_mut().zip(deviation(x).1).for_each(|(y, deviation)| *y = deviation);
    });
}

/// [`ChannelStd::backward`] into blocks.
pub(crate) fn backward_deviation(shape: Shape, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let sample = (count(shape) * plane(shape)).max(1);
    let samples = x.par_chunks_exact(sample).zip(dx.par_chunks_exact_mut(sample));
    let samples = samples.zip(dy.par_chunks_exact((shape.c as usize).max(1)));
    samples.for_each(|((x, dx), dy)| {
        let planes = x.chunks_exact(plane(shape)).zip(dx.chunks_exact_mut(plane(shape)));
        for ((x, dx), dy) in planes.zip(dy.chunks(BLOCK)) {
            let (x, dx) = (x.as_chunks::<BLOCK>().0, dx.as_chunks_mut::<BLOCK>().0);
            let (mean, deviation) = deviation(x);
            let mut scale = eight(dy);
            let divisors = deviation.map(|deviation| x.len() as f32 * deviation);
            scale.iter_mut().zip(divisors).for_each(|(scale, divisor)| *scale /= divisor);
            for (x, dx) in x.iter().zip(dx) {
                let lanes = dx.iter_mut().zip(x).zip(mean.iter().zip(&scale));
                lanes.for_each(|((dx, x), (mean, scale))| *dx = scale * (x - mean));
            }
        }
    });
}

/// The rows or columns of bin `at`.
fn bin(size: usize, bins: usize, at: usize) -> core::ops::Range<usize> {
    at * size / bins.max(1)..((at + 1) * size).div_ceil(bins.max(1))
}

/// Calls `each` with the number of each bin, its places and how many they are.
fn bins(
    shape: Shape,
    out: Shape,
    mut each: impl FnMut(usize, &mut dyn Iterator<Item = core::ops::Range<usize>>, f32),
) {
    let [h, w, p, q] = [shape.h, shape.w, out.h, out.w].map(|size| size as usize);
    for at in 0..p * q {
        let (down, across) = (bin(h, p, at / q), bin(w, q, at % q));
        let size = (down.len() * across.len()) as f32;
        let mut rows = down.map(|row| row * w + across.start..row * w + across.end);
        each(at, &mut rows, size);
    }
}

/// [`AvgPoolTo::forward`] of blocks.
pub(crate) fn forward_bins(layer: AvgPoolTo, shape: Shape, x: &[f32], y: &mut [f32]) {
    let Some(out) = layer.output(shape) else { return };
    let area = out.plane().max(1) as usize;
    to_channels(shape, out, x, y, |x, y| {
        bins(shape, out, |at, rows, size| {
            let mut sum = [0.0; BLOCK];
            for row in rows {
                x.get(row).unwrap_or_default().iter().for_each(|x| add(&mut sum, x));
            }
            let ys = y.iter_mut().skip(at).step_by(area);
            ys.zip(sum).for_each(|(y, sum)| *y = sum / size);
        });
    });
}

/// [`AvgPoolTo::backward`] into blocks.
pub(crate) fn backward_bins(layer: AvgPoolTo, shape: Shape, dy: &[f32], dx: &mut [f32]) {
    let Some(out) = layer.output(shape) else { return };
    let area = out.plane().max(1) as usize;
    from_channels(shape, out, dx, dy, |dx, dy| {
        dx.as_flattened_mut().fill(0.0);
        bins(shape, out, |at, rows, size| {
            let mut share = [0.0; BLOCK];
            let dys = dy.iter().skip(at).step_by(area);
            share.iter_mut().zip(dys).for_each(|(share, dy)| *share = dy / size);
            for row in rows {
                dx.get_mut(row).unwrap_or_default().iter_mut().for_each(|dx| add(dx, &share));
            }
        });
    });
}
