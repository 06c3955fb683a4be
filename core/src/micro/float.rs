//! Groups of layers in f32: the reference's sums, in its order.

use super::conv::{Filter, Floats, Geometry, Tile, any, fixed, is_fixed, pieces, planes};
use super::group::{Kind, TILE};
use super::op::{Kernel, Op};
use super::{Parameters, ROWS};
use crate::arena::Lease;
use crate::error::Error;
use crate::layer::{Activation, BatchNorm, Conv2d};
use crate::net::Stored;

/// One filter's or unit's bias, norm and activation.
#[derive(Clone, Copy)]
struct Channel<'m> {
    bias: f32,
    /// Mean, scale and shift.
    norm: Option<[f32; 3]>,
    activation: Option<&'m Activation>,
}

/// The mean, the scale and the shift of one channel of a norm with these parameters.
pub(super) type Norm = fn(&BatchNorm, &[Stored<'_>; 4], usize) -> [f32; 3];

#[inline(never)]
pub(super) fn norm(l: &BatchNorm, stored: &[Stored<'_>; 4], k: usize) -> [f32; 3] {
    let [gamma, beta, mean, variance] = stored.each_ref().map(|stored| stored.number(k));
    let scale = gamma.unwrap_or(1.0) * l.inverse(variance.unwrap_or(0.0));
    [mean.unwrap_or(0.0), scale, beta.unwrap_or(0.0)]
}

impl<'m> Channel<'m> {
    #[inline(never)]
    fn new(op: &Op<'m>, p: &Parameters<'_>, k: usize) -> Self {
        let [_, bias, ..] = p.own;
        let norm = op.norm.zip(op.group.norm).map(|(norm, l)| norm(l, p.norm, k));
        let activation = op.group.activation;
        Self { bias: bias.number(k).unwrap_or(0.0), norm, activation }
    }

    /// The norm and the activation of sums.
    #[inline(never)]
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

/// The kernel of a convolution whose weights may be `narrow`.
pub(super) const fn conv_kernel(l: &Conv2d, narrow: bool) -> Kernel {
    if narrow { by_filters::<true>(l) } else { by_filters::<false>(l) }
}

const fn by_filters<const NARROW: bool>(l: &Conv2d) -> Kernel {
    match l.filters.checked_div(l.groups) {
        Some(filters) if filters % 2 == 0 => by_columns::<NARROW, false>(l),
        _ => by_columns::<NARROW, true>(l),
    }
}

const fn by_columns<const NARROW: bool, const ODD: bool>(l: &Conv2d) -> Kernel {
    if is_fixed(l, 5) {
        conv_fixed::<NARROW, ODD, 5>
    } else if is_fixed(l, 3) {
        conv_fixed::<NARROW, ODD, 3>
    } else {
        conv_any::<NARROW, ODD>
    }
}

type Memory<'a> = [Lease<'a>; 4];

/// A convolution with kernels of `S` columns; an `ODD` number of filters has one without a partner.
fn conv_fixed<const NARROW: bool, const ODD: bool, const S: usize>(
    op: &Op<'_>,
    p: &Parameters<'_>,
    memory: Memory<'_>,
) -> Result<(), Error> {
    let two: Tile<Floats> = fixed::<Floats, true, S>;
    conv(op, p, memory, [if ODD { fixed::<Floats, false, S> } else { two }, two], rows::<NARROW>())
}

fn conv_any<const NARROW: bool, const ODD: bool>(
    op: &Op<'_>,
    p: &Parameters<'_>,
    memory: Memory<'_>,
) -> Result<(), Error> {
    let two: Tile<Floats> = any::<Floats, true>;
    conv(op, p, memory, [if ODD { any::<Floats, false> } else { two }, two], rows::<NARROW>())
}

/// A convolution with what stands behind it, computed by a tile of one filter and a tile of two.
#[inline(never)]
fn conv(
    op: &Op<'_>,
    p: &Parameters<'_>,
    [x, y, winners, scratch]: Memory<'_>,
    tiles: [Tile<Floats>; 2],
    rows: Rows,
) -> Result<(), Error> {
    let Kind::Conv(l) = op.group.kind else { return Ok(()) };
    let (x, y, scratch) = (&*x.get::<f32>()?, y.get::<f32>()?, scratch.get::<f32>()?);
    let mut winners = winners.get::<u8>()?;
    let (geometry, out) = (Geometry::new(*l, op.x.shape, 0.0), op.y.shape);
    let plane = out.plane().max(1) as usize;
    let sizes = (op.group.windows(), (out.h as usize, out.w as usize));
    let samples = pieces(x, geometry.sample);
    for (x, y) in samples.zip(y.chunks_exact_mut((plane * l.filters as usize).max(1))) {
        let groups = y.chunks_exact_mut((plane * geometry.filters).max(1));
        let firsts = (0..).step_by(geometry.filters.max(1));
        for ((x, y), first) in pieces(x, geometry.group).zip(groups).zip(firsts) {
            for (y, k) in y.chunks_mut((plane * ROWS).max(1)).zip((first..).step_by(ROWS)) {
                let won = winners.split_off_mut(..y.len().min(winners.len())).unwrap_or_default();
                let one = Channel::new(op, p, k);
                let two = y.len() > plane;
                let w = rows(p, (k, geometry.filter), two, scratch)?;
                let mut write = |k: usize, at: usize, sums: &[f32], places: &[u8]| {
                    let at = k * plane + at;
                    let y = y.get_mut(at..at + sums.len()).unwrap_or_default();
                    y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum);
                    let won = won.get_mut(at..at + places.len()).unwrap_or_default();
                    won.iter_mut().zip(places).for_each(|(won, place)| *won = *place);
                };
                let other = Channel::new(op, p, k + 1);
                let [tile_of_one, tile_of_two] = tiles;
                let (tile, count) = if two { (tile_of_two, 2) } else { (tile_of_one, 1) };
                let filters = ([&one, &other], count);
                planes::<Floats, _>((&geometry, tile), sizes, x, w, filters, &mut write);
            }
        }
    }
    Ok(())
}

/// What reads two rows of weights, of which each has a length, from row `k` on; the first twice where
/// there are no two.
type Rows = for<'s> fn(
    &'s Parameters<'_>,
    (usize, usize),
    two: bool,
    scratch: &'s mut [f32],
) -> Result<[&'s [f32]; ROWS], Error>;

/// Weights that are not narrow lie where they are, and need no code that widens them.
const fn rows<const NARROW: bool>() -> Rows {
    if NARROW {
        |p, at, two, scratch| p.widened_rows(at, two, scratch)
    } else {
        |p, at, two, _| p.rows(at, two)
    }
}

/// The kernel of a dense layer whose weights may be `narrow`.
pub(super) const fn dense_kernel(narrow: bool) -> Kernel {
    if narrow { dense_in::<true> } else { dense_in::<false> }
}

fn dense_in<const NARROW: bool>(
    op: &Op<'_>,
    p: &Parameters<'_>,
    memory: Memory<'_>,
) -> Result<(), Error> {
    dense(op, p, memory, rows::<NARROW>())
}

/// Terms after which partial sums join the total, and partial sums: those of the reference.
const RUN: usize = 1024;
const LANES: usize = 8;

/// A dense layer with what stands behind it.
#[inline(never)]
fn dense(
    op: &Op<'_>,
    p: &Parameters<'_>,
    [x, y, _, scratch]: Memory<'_>,
    rows: Rows,
) -> Result<(), Error> {
    let (x, y, scratch) = (&*x.get::<f32>()?, y.get::<f32>()?, scratch.get::<f32>()?);
    let features = op.x.shape.sample().unwrap_or(0).max(1) as usize;
    let units = op.y.shape.c.max(1) as usize;
    for (x, y) in pieces(x, features).zip(y.chunks_exact_mut(units)) {
        for (k, y) in (0..).step_by(ROWS).zip(y.chunks_mut(ROWS)) {
            let w = rows(p, (k, features), y.len() > 1, scratch)?;
            for ((y, sum), k) in y.iter_mut().zip(products(x, w)).zip(k..) {
                let channel = Channel::new(op, p, k);
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
