//! Groups of layers in f32: the reference's sums, in its order.

use super::conv::{
    Filter, Floats, Geometry, Sizes, Spread, Tile, Write, any, fixed, is_fixed, is_point, pieces,
    plain, point, pooled, settle, settle_two,
};
use super::group::{Group, Kind, TILE};
use super::op::{Op, With};
use super::{Parameters, ROWS};
use crate::arena::Lease;
use crate::error::Error;
use crate::layer::{Activation, BatchNorm, Conv2d};
use crate::net::Stored;
use crate::shape::Shape;

/// The parts of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// Of a convolution: what sums for one filter, and what does for two; what does with all planes.
    planes: Option<([Tile<Floats>; 2], Planes)>,
    /// How planes are spread, where they are read so.
    spread: Option<Spread<f32>>,
    rows: Rows,
    /// What prepares the norm, where there is one: it takes a square root.
    norm: Option<Norm>,
    /// The norm and the activation of sums, where there are any.
    finish: Option<Finish>,
}

impl Parts {
    /// Those for a convolution or a dense layer that reads `x`, and whose weights may be `narrow`.
    pub const fn of(group: &Group<'_>, x: Shape, narrow: bool) -> Self {
        let finish: Option<Finish> = match (group.norm, group.activation) {
            (None, None) => None,
            (None, Some(Activation::Relu)) => Some(relu),
            _ => Some(normed),
        };
        Self {
            planes: match group.kind {
                Kind::Conv(l) => Some((tiles(l), planes(group))),
                _ => None,
            },
            spread: match group.kind {
                Kind::Conv(l) => Spread::of(l, x, group.pool.is_some()),
                _ => None,
            },
            rows: if narrow {
                |p, at, two, scratch| p.widened_rows(at, two, scratch)
            } else {
                // They lie where they are, and need no code that widens them.
                |p, at, two, _| p.rows(at, two)
            },
            norm: if group.norm.is_some() { Some(norm) } else { None },
            finish,
        }
    }
}

/// A tile of one filter, and one of two: the same where filters come in pairs.
const fn tiles(l: &Conv2d) -> [Tile<Floats>; 2] {
    let [one, two]: [Tile<Floats>; 2] = if is_point(l) {
        [point::<Floats, false>, point::<Floats, true>]
    } else if is_fixed(l, 5) {
        [fixed::<Floats, false, 5>, fixed::<Floats, true, 5>]
    } else if is_fixed(l, 3) {
        [fixed::<Floats, false, 3>, fixed::<Floats, true, 3>]
    } else {
        [any::<Floats, false>, any::<Floats, true>]
    };
    match l.filters.checked_div(l.groups) {
        Some(filters) if filters % 2 == 0 => [two, two],
        _ => [one, two],
    }
}

/// What computes the planes of one or two filters.
type Planes = fn(
    (&Geometry<f32>, Tile<Floats>),
    Sizes,
    &[f32],
    [&[f32]; 2],
    ([&Channel<'_>; 2], usize),
    Write<'_, f32>,
);

const fn planes(group: &Group<'_>) -> Planes {
    match group.pool {
        None => |with, sizes, x, w, filters, write| plain(with, sizes, x, w, filters, write),
        Some(pool) if pool.window.kernel.1 == 2 => {
            |(geometry, tile), sizes, x, w, filters, write| {
                pooled((geometry, tile, settle_two::<Floats>), sizes, x, w, filters, write);
            }
        }
        Some(_) => |(geometry, tile), sizes, x, w, filters, write| {
            pooled((geometry, tile, settle::<Floats>), sizes, x, w, filters, write);
        },
    }
}

/// What reads two rows of weights, of which each has a length, from row `k` on; the first twice where
/// there are no two.
type Rows = for<'s> fn(
    &'s Parameters<'_>,
    (usize, usize),
    two: bool,
    scratch: &'s mut [f32],
) -> Result<[&'s [f32]; ROWS], Error>;

/// The mean, the scale and the shift of one channel of a norm with these parameters.
type Norm = fn(&BatchNorm, &[Stored<'_>; 4], usize) -> [f32; 3];

#[inline(never)]
fn norm(l: &BatchNorm, stored: &[Stored<'_>; 4], k: usize) -> [f32; 3] {
    let [gamma, beta, mean, variance] = stored.each_ref().map(|stored| stored.number(k));
    let scale = gamma.unwrap_or(1.0) * l.inverse(variance.unwrap_or(0.0));
    [mean.unwrap_or(0.0), scale, beta.unwrap_or(0.0)]
}

/// What becomes of sums before the pool.
type Finish = fn(&Channel<'_>, &mut [f32]);

#[inline(never)]
fn normed(channel: &Channel<'_>, sums: &mut [f32]) {
    if let Some([mean, scale, shift]) = channel.norm {
        sums.iter_mut().for_each(|sum| *sum = (*sum - mean) * scale + shift);
    }
    if let Some(activation) = channel.activation {
        activation.forward_piecewise(sums);
    }
}

#[inline(never)]
fn relu(_: &Channel<'_>, sums: &mut [f32]) {
    // What is not above 0 becomes 0, but NaN.
    sums.iter_mut().filter(|sum| **sum <= 0.0).for_each(|sum| *sum = 0.0);
}

/// One filter's or unit's bias, norm and activation.
#[derive(Clone, Copy)]
struct Channel<'m> {
    bias: f32,
    /// Mean, scale and shift.
    norm: Option<[f32; 3]>,
    activation: Option<&'m Activation>,
    finish: Option<Finish>,
}

impl<'m> Channel<'m> {
    #[inline(never)]
    fn new((op, parts): (&Op<'m>, &Parts), p: &Parameters<'_>, k: usize) -> Self {
        let [_, bias, ..] = p.own;
        let norm = parts.norm.zip(op.group.norm).map(|(norm, l)| norm(l, p.norm, k));
        let (activation, finish) = (op.group.activation, parts.finish);
        Self { bias: bias.number(k).unwrap_or(0.0), norm, activation, finish }
    }

    #[inline]
    fn finish(&self, sums: &mut [f32]) {
        if let Some(finish) = self.finish {
            finish(self, sums);
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
}

type Memory<'a> = [Lease<'a>; 4];

/// A convolution with what stands behind it.
#[inline(never)]
pub(super) fn conv(
    op: &Op<'_>,
    p: &Parameters<'_>,
    [x, y, winners, scratch]: Memory<'_>,
) -> Result<(), Error> {
    let (Kind::Conv(l), With::Floats(parts)) = (op.group.kind, &op.with) else { return Ok(()) };
    let Some((tiles, planes)) = parts.planes else { return Ok(()) };
    let (x, y, scratch) = (&*x.planned::<f32>(), y.planned::<f32>(), scratch.planned::<f32>());
    let mut winners = winners.planned::<u8>();
    let (mut geometry, out) = (Geometry::new(*l, op.x.shape, 0.0), op.y.shape);
    let plane = out.plane().max(1) as usize;
    let sizes = (op.group.windows(), (out.h as usize, out.w as usize));
    let copy = parts.spread.map_or(0, |spread| spread.len);
    let (copy, scratch) = scratch.split_at_mut_checked(copy).unwrap_or_default();
    let group = geometry.group;
    let spread = parts.spread.filter(|_| !copy.is_empty());
    if let Some(spread) = spread {
        (spread.lengths)(&mut geometry, copy.len());
    }
    let mut rest = y;
    for x in pieces(x, geometry.sample) {
        let sample = plane.saturating_mul(l.filters as usize).min(rest.len());
        let y = rest.split_off_mut(..sample).unwrap_or_default();
        let groups = y.chunks_exact_mut((plane * geometry.filters).max(1));
        let firsts = (0..).step_by(geometry.filters.max(1));
        for ((mut x, y), first) in pieces(x, group).zip(groups).zip(firsts) {
            if let Some(spread) = spread {
                (spread.plane)(l, op.x.shape, 0.0, x, copy);
                x = copy;
            }
            for (y, k) in y.chunks_mut((plane * ROWS).max(1)).zip((first..).step_by(ROWS)) {
                let won = winners.split_off_mut(..y.len().min(winners.len())).unwrap_or_default();
                let one = Channel::new((op, parts), p, k);
                let two = y.len() > plane;
                let w = (parts.rows)(p, (k, geometry.filter), two, scratch)?;
                let mut write = |k: usize, at: usize, sums: &[f32], places: &[u8]| {
                    let at = k * plane + at;
                    let y = y.get_mut(at..at + sums.len()).unwrap_or_default();
                    y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum);
                    let won = won.get_mut(at..at + places.len()).unwrap_or_default();
                    won.iter_mut().zip(places).for_each(|(won, place)| *won = *place);
                };
                let other = Channel::new((op, parts), p, k + 1);
                let [tile_of_one, tile_of_two] = tiles;
                let (tile, count) = if two { (tile_of_two, 2) } else { (tile_of_one, 1) };
                let filters = ([&one, &other], count);
                planes((&geometry, tile), sizes, x, w, filters, &mut write);
            }
        }
    }
    Ok(())
}

/// Partial sums, and after how many terms of each they join the total: those of the reference.
const LANES: usize = 8;
const RUN: usize = 1024 / LANES;

/// A dense layer with what stands behind it.
#[inline(never)]
pub(super) fn dense(
    op: &Op<'_>,
    p: &Parameters<'_>,
    [x, y, _, scratch]: Memory<'_>,
) -> Result<(), Error> {
    let With::Floats(parts) = &op.with else { return Ok(()) };
    let (x, y, scratch) = (&*x.planned::<f32>(), y.planned::<f32>(), scratch.planned::<f32>());
    let features = op.x.shape.sample().unwrap_or(0).max(1) as usize;
    let units = op.y.shape.c.max(1) as usize;
    for (x, y) in pieces(x, features).zip(y.chunks_exact_mut(units)) {
        for (k, y) in (0..).step_by(ROWS).zip(y.chunks_mut(ROWS)) {
            let w = (parts.rows)(p, (k, features), y.len() > 1, scratch)?;
            for ((y, sum), k) in y.iter_mut().zip(products(x, w)).zip(k..) {
                let channel = Channel::new((op, parts), p, k);
                *y = channel.bias + sum;
                channel.finish(core::slice::from_mut(y));
            }
        }
    }
    Ok(())
}

/// The products of x with two rows, in the order of the reference's sums.
fn products(x: &[f32], [w, v]: [&[f32]; ROWS]) -> [f32; ROWS] {
    let ((x, x_rest), (w, w_rest), (v, v_rest)) =
        (x.as_chunks::<LANES>(), w.as_chunks::<LANES>(), v.as_chunks::<LANES>());
    let ([mut one_total, mut other_total], mut left) = ([0.0; ROWS], RUN);
    let [mut one, mut other] = [[0.0; LANES]; ROWS];
    for ((x, w), v) in x.iter().zip(w).zip(v) {
        (one, other) = (add(one, w, x), add(other, v, x));
        left -= 1;
        if left == 0 {
            one_total += joined(one, &[], &[]);
            other_total += joined(other, &[], &[]);
            (one, other, left) = ([0.0; LANES], [0.0; LANES], RUN);
        }
    }
    [one_total + joined(one, w_rest, x_rest), other_total + joined(other, v_rest, x_rest)]
}

/// Partial sums with one more product each, by value: that keeps them in registers.
#[inline(always)]
fn add(lanes: [f32; LANES], w: &[f32; LANES], x: &[f32; LANES]) -> [f32; LANES] {
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p], [q, r, s, t, u, v, w, x]) =
        (lanes, w, x);
    [a + i * q, b + j * r, c + k * s, d + l * t, e + m * u, f + n * v, g + o * w, h + p * x]
}

/// The sum of partial sums, with the products that are left.
#[inline(never)]
fn joined(mut lanes: [f32; LANES], w: &[f32], x: &[f32]) -> f32 {
    lanes.iter_mut().zip(w).zip(x).for_each(|((lane, w), x)| *lane += w * x);
    lanes.iter().fold(0.0, |sum, lane| sum + lane)
}
