//! Groups of layers in f32: the reference's sums, in its order.

use super::conv::{Filter, Floats, Geometry, pieces, planes};
use super::group::{Group, Kind, TILE};
use super::{Parameters, ROWS};
use crate::error::Error;
use crate::layer::{Activation, BatchNorm, Conv2d, Dense};
use crate::shape::Shape;

/// One filter's or unit's bias, norm and activation.
#[derive(Clone, Copy)]
struct Channel<'m> {
    bias: f32,
    /// Mean, scale and shift.
    norm: Option<[f32; 3]>,
    activation: Option<&'m Activation>,
}

impl<'m> Channel<'m> {
    #[inline(never)]
    fn new(group: &Group<'m>, p: &Parameters<'_>, k: usize) -> Self {
        let norm = |norm: &BatchNorm| {
            let [gamma, beta, mean, variance] = p.norm.map(|stored| stored.number(k));
            let scale = gamma.unwrap_or(1.0) * norm.inverse(variance.unwrap_or(0.0));
            [mean.unwrap_or(0.0), scale, beta.unwrap_or(0.0)]
        };
        let bias = p.bias.number(k).unwrap_or(0.0);
        Self { bias, norm: group.norm.map(norm), activation: group.activation }
    }

    /// The norm and the activation of sums.
    #[inline(always)]
    fn finish(&self, sums: &mut [f32]) {
        if let Some([mean, scale, shift]) = self.norm {
            sums.iter_mut().for_each(|sum| *sum = (*sum - mean) * scale + shift);
        }
        if let Some(activation) = self.activation {
            activation.forward_piecewise(sums);
        }
    }
}

impl Filter<Floats> for Channel<'_> {
    fn start(&self) -> f32 {
        self.bias
    }

    #[inline]
    fn each(&self, sums: &mut [f32; TILE]) {
        self.finish(sums);
    }

    #[inline]
    fn beats(later: f32, best: f32) -> bool {
        // As the reference has it: NaN wins, and the first of several. One comparison as a rule.
        #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN is to pass")]
        let passes = !(later <= best);
        passes && !best.is_nan()
    }
}

/// Where a group reads and writes.
pub(super) struct Tensors<'a> {
    pub x: &'a [f32],
    pub y: &'a mut [f32],
    /// The place in its window that each y came from, for training; else empty.
    pub winners: &'a mut [u8],
    /// [`ROWS`] rows of weights, where they are stored in another type.
    pub scratch: &'a mut [f32],
}

/// A convolution or a dense layer, with what stands behind it.
///
/// # Errors
/// Weights that cannot be read.
pub(super) fn run(
    group: &Group<'_>,
    shapes: (Shape, Shape),
    p: &Parameters<'_>,
    t: Tensors<'_>,
) -> Result<(), Error> {
    match group.kind {
        Kind::Conv(l) => conv(group, *l, shapes, p, t),
        Kind::Dense(l) => dense(group, *l, shapes.0, p, t),
        Kind::Other(_) => Ok(()),
    }
}

fn conv(
    group: &Group<'_>,
    l: Conv2d,
    (x_shape, out): (Shape, Shape),
    p: &Parameters<'_>,
    t: Tensors<'_>,
) -> Result<(), Error> {
    let geometry = Geometry::new(l, x_shape, 0.0);
    let plane = out.plane().max(1) as usize;
    let pool = group.pool.map_or((1, 1), |pool| pool.window.kernel);
    let pool = (usize::from(pool.0), usize::from(pool.1));
    let sizes = (pool, (out.h as usize, out.w as usize));
    let mut winners = t.winners;
    let samples = pieces(t.x, geometry.sample);
    for (x, y) in samples.zip(t.y.chunks_exact_mut((plane * l.filters as usize).max(1))) {
        let groups = y.chunks_exact_mut((plane * geometry.filters).max(1));
        let firsts = (0..).step_by(geometry.filters.max(1));
        for ((x, y), first) in pieces(x, geometry.group).zip(groups).zip(firsts) {
            for (y, k) in y.chunks_mut((plane * ROWS).max(1)).zip((first..).step_by(ROWS)) {
                let won = winners.split_off_mut(..y.len().min(winners.len())).unwrap_or_default();
                let one = Channel::new(group, p, k);
                let two = y.len() > plane;
                let [w, v] = p.rows(k, geometry.filter, two, t.scratch)?;
                let mut write = |k: usize, at: usize, sums: &[f32], places: &[u8]| {
                    let at = k * plane + at;
                    let y = y.get_mut(at..at + sums.len()).unwrap_or_default();
                    y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum);
                    let won = won.get_mut(at..at + places.len()).unwrap_or_default();
                    won.iter_mut().zip(places).for_each(|(won, place)| *won = *place);
                };
                let other = Channel::new(group, p, k + 1);
                let (w, filters) = ([w, v], [&one, &other]);
                if two {
                    planes::<Floats, _, true>(&geometry, sizes, x, w, filters, &mut write);
                } else {
                    planes::<Floats, _, false>(&geometry, sizes, x, w, filters, &mut write);
                }
            }
        }
    }
    Ok(())
}

/// Terms after which partial sums join the total, and partial sums: those of the reference.
const RUN: usize = 1024;
const LANES: usize = 8;

fn dense(
    group: &Group<'_>,
    l: Dense,
    x_shape: Shape,
    p: &Parameters<'_>,
    t: Tensors<'_>,
) -> Result<(), Error> {
    let features = x_shape.sample().unwrap_or(0).max(1) as usize;
    let samples = pieces(t.x, features);
    for (x, y) in samples.zip(t.y.chunks_exact_mut((l.units as usize).max(1))) {
        for (k, y) in (0..).step_by(ROWS).zip(y.chunks_mut(ROWS)) {
            let w = p.rows(k, features, y.len() > 1, t.scratch)?;
            for ((y, sum), k) in y.iter_mut().zip(products(x, w)).zip(k..) {
                let channel = Channel::new(group, p, k);
                *y = channel.bias + sum;
                channel.finish(core::slice::from_mut(y));
            }
        }
    }
    Ok(())
}

/// The products of x with two rows, in the order of the reference's sums.
fn products(x: &[f32], [w, v]: [&[f32]; ROWS]) -> [f32; ROWS] {
    let mut totals = [0.0; ROWS];
    for ((x, w), v) in x.chunks(RUN).zip(w.chunks(RUN)).zip(v.chunks(RUN)) {
        let mut lanes = [[0.0; LANES]; ROWS];
        let [one, other] = &mut lanes;
        let ((x, x_rest), (w, w_rest), (v, v_rest)) =
            (x.as_chunks::<LANES>(), w.as_chunks::<LANES>(), v.as_chunks::<LANES>());
        for ((x, w), v) in x.iter().zip(w).zip(v) {
            for ((((one, other), x), w), v) in
                one.iter_mut().zip(other.iter_mut()).zip(x).zip(w).zip(v)
            {
                *one += w * x;
                *other += v * x;
            }
        }
        for ((((one, other), x), w), v) in
            one.iter_mut().zip(other.iter_mut()).zip(x_rest).zip(w_rest).zip(v_rest)
        {
            *one += w * x;
            *other += v * x;
        }
        for (total, lanes) in totals.iter_mut().zip(lanes) {
            *total += lanes.iter().fold(0.0, |sum, lane| sum + lane);
        }
    }
    totals
}
