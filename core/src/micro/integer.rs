//! Groups of layers in bytes: weights are i8 with a scale for each filter, activations are u8 in the
//! steps of [`Quantise`], sums are i32.
//!
//! ```text
//! y = q scale,  scale = scale(w) scale(x)
//! q = b / scale + sum w (x - zero)
//! code of y = min(max(floor(q scale / scale(y) + zero(y) + 1/2), low), high)
//! ```
//! The quotient of scales is a fixed-point number of 31 bits (Jacob et al., CVPR 2018), so no
//! floating-point unit is needed but to set up each filter. ReLU is a bound of the code.

use super::Parameters;
use super::conv::{
    Bytes, Filter, Geometry, Numbers, Sizes, Spread, Tile, Write, any, fixed, is_fixed, is_point,
    pieces, plain, pooled, settle, settle_two,
};
use super::group::{Group, Kind, TILE};
use super::op::{Op, With};
use crate::arena::{Dtype, Lease};
use crate::error::Error;
use crate::layer::{Activation, Quantise};
use crate::net::Stored;
use crate::shape::Shape;

/// Units that are summed side by side.
const UNITS: usize = 4;

/// What becomes of the sums of one filter or unit.
#[derive(Clone, Copy)]
struct Channel {
    start: i32,
    /// Of what a sum counts.
    scale: f32,
    /// The fixed-point quotient: `factor / 2^shift`.
    factor: i32,
    shift: u32,
    zero: i32,
    /// Bounds of the code.
    low: i32,
    high: i32,
}

impl Channel {
    /// `sum` is the sum of the filter's weights, which the zero of x takes part in.
    fn new(
        group: &Group<'_>,
        (reads, p): (&Quantise, &Parameters<'_>),
        k: usize,
        rows: usize,
        sum: i32,
    ) -> Self {
        let [weight, bias, ..] = p.own;
        let scale = reads.scale * scale(weight, k, rows).unwrap_or(0.0);
        let start = libm::roundf(bias.number(k).unwrap_or(0.0) / scale);
        // A cast saturates, and takes NaN for 0.
        let start = (start as i32).wrapping_sub(i32::from(reads.zero).wrapping_mul(sum));
        let steps = group.quantise.copied().unwrap_or(Quantise { scale: 1.0, zero: 0 });
        let zero = i32::from(steps.zero);
        let (low, high) = match group.activation {
            Some(Activation::Relu) => (zero, 255),
            Some(Activation::Relu6) => {
                let six = libm::floorf(6.0 / steps.scale + f32::from(steps.zero) + 0.5);
                (zero, (six as i32).clamp(zero, 255))
            }
            _ => (0, 255),
        };
        let (factor, shift) = fixed_point(scale / steps.scale);
        Self { start, scale, factor, shift, zero, low, high }
    }

    /// The code of what `sum` counts.
    #[inline]
    fn code(&self, sum: i32) -> u8 {
        let half = 1i64 << self.shift >> 1;
        let product = (i64::from(sum) * i64::from(self.factor)).wrapping_add(half);
        // Of a quotient below 1/2, as almost all are, the product's low word goes.
        let steps = match self.shift.checked_sub(32) {
            Some(shift) => ((product >> 32) as i32 >> shift).clamp(-256, 512),
            None => (product >> self.shift).clamp(-256, 512) as i32,
        };
        (steps + self.zero).max(self.low).min(self.high) as u8
    }

    /// The number that `sum` counts.
    fn number(&self, group: &Group<'_>, sum: i32) -> f32 {
        let mut number = [sum as f32 * self.scale];
        if let Some(activation) = group.activation {
            activation.forward_piecewise(&mut number);
        }
        if let Some(steps) = group.quantise {
            steps.forward(&mut number);
        }
        let [number] = number;
        number
    }
}

/// `quotient`, which is not negative, as `factor / 2^shift` with a factor of up to 31 bits.
fn fixed_point(quotient: f32) -> (i32, u32) {
    let bits = quotient.to_bits();
    // quotient = mantissa / 2^(150 - exponent), the mantissa of 24 bits.
    let (mantissa, exponent) = (bits & 0x7f_ffff | 0x80_0000, bits >> 23 & 0xff);
    let (factor, shift) = (mantissa << 7, 157u32.saturating_sub(exponent));
    (factor.unbounded_shr(shift.saturating_sub(62)) as i32, shift.min(62))
}

impl Filter<Bytes> for Channel {
    fn start(&self) -> i32 {
        self.start
    }

    fn each(&self, _: &mut [i32; TILE]) {}
}

/// What a group writes.
enum Out<'a> {
    Codes(&'a mut [u8]),
    Values(&'a mut [f32]),
}

impl<'a> Out<'a> {
    fn new(y: Lease<'a>) -> Self {
        if y.dtype() == Dtype::U8 { Self::Codes(y.planned()) } else { Self::Values(y.planned()) }
    }

    /// Writes what sums count, from place `at` on.
    fn write(&mut self, at: usize, channel: &Channel, group: &Group<'_>, sums: &[i32]) {
        let places = at..at + sums.len();
        match self {
            Self::Codes(y) => {
                let y = y.get_mut(places).unwrap_or_default();
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = channel.code(*sum));
            }
            Self::Values(y) => {
                let y = y.get_mut(places).unwrap_or_default();
                let numbers = sums.iter().map(|&sum| channel.number(group, sum));
                y.iter_mut().zip(numbers).for_each(|(y, number)| *y = number);
            }
        }
    }
}

/// The parts of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// Of a convolution: what sums, and what does with all planes.
    planes: Option<(Tile<Bytes>, Planes)>,
    /// How planes are spread, where they are read so.
    spread: Option<Spread<u8>>,
}

impl Parts {
    /// Those for a convolution or a dense layer that reads `x`.
    pub const fn of(group: &Group<'_>, x: Shape) -> Self {
        let Kind::Conv(l) = group.kind else { return Self { planes: None, spread: None } };
        let tile: Tile<Bytes> = if is_point(l) {
            point
        } else if is_fixed(l, 5) {
            fixed::<Bytes, false, 5>
        } else if is_fixed(l, 3) {
            fixed::<Bytes, false, 3>
        } else {
            any::<Bytes, false>
        };
        let spread = Spread::of(l, x, group.pool.is_some());
        Self { planes: Some((tile, planes(group))), spread }
    }
}

/// What computes the planes of a filter.
type Planes = fn(
    (&Geometry<u8>, Tile<Bytes>),
    Sizes,
    &[u8],
    [&[i8]; 2],
    ([&Channel; 2], usize),
    Write<'_, i32>,
);

const fn planes(group: &Group<'_>) -> Planes {
    match group.pool {
        None => plain::<Bytes, Channel>,
        Some(pool) if pool.window.kernel.1 == 2 => {
            |(geometry, tile), sizes, x, w, filters, write| {
                pooled((geometry, tile, settle_two::<Bytes>), sizes, x, w, filters, write);
            }
        }
        Some(_) => |(geometry, tile), sizes, x, w, filters, write| {
            pooled((geometry, tile, settle::<Bytes>), sizes, x, w, filters, write);
        },
    }
}

/// Places whose sums fit the registers of a small core.
const HALF: usize = TILE / 2;

/// A [`Tile`] of kernels of one place that move by one, without padding; of the first filter.
#[inline(never)]
fn point(
    geometry: &Geometry<u8>,
    x: &[u8],
    [w, _]: [&[i8]; 2],
    [start, _]: [i32; 2],
    (p, q): (usize, usize),
) -> [[i32; TILE]; 2] {
    let mut sums = [start; TILE];
    let at = p * geometry.width + q;
    for (sums, at) in sums.as_chunks_mut::<HALF>().0.iter_mut().zip((at..).step_by(HALF)) {
        if at + HALF <= geometry.plane {
            let [mut a, mut b, mut c, mut d] = *sums;
            for (x, &w) in pieces(x, geometry.plane).zip(w) {
                let Some(&[i, j, k, l]) = x.get(at..).and_then(|x| x.first_chunk()) else { break };
                a = Bytes::add(a, w, i);
                b = Bytes::add(b, w, j);
                c = Bytes::add(c, w, k);
                d = Bytes::add(d, w, l);
            }
            *sums = [a, b, c, d];
        } else {
            for (sum, at) in sums.iter_mut().zip(at..geometry.plane) {
                for (x, &w) in pieces(x, geometry.plane).zip(w) {
                    *sum = x.get(at).map_or(*sum, |&x| Bytes::add(*sum, w, x));
                }
            }
        }
    }
    [sums; 2]
}

type Memory<'a> = [Lease<'a>; 4];

/// A convolution of bytes, with what stands behind it.
#[inline(never)]
pub(super) fn conv(
    op: &Op<'_>,
    p: &Parameters<'_>,
    [x, y, _, scratch]: Memory<'_>,
) -> Result<(), Error> {
    let (Kind::Conv(l), With::Bytes(parts)) = (op.group.kind, &op.with) else { return Ok(()) };
    let Some((tile, planes)) = parts.planes else { return Ok(()) };
    let (x, mut y) = (&*x.planned(), Out::new(y));
    let (reads, weights) = setup(&op.group, p)?;
    let (mut geometry, out) = (Geometry::new(*l, op.x.shape, reads.zero), op.y.shape);
    let filters = l.filters.max(1) as usize;
    let plane = out.plane().max(1) as usize;
    let sizes = (op.group.windows(), (out.h as usize, out.w as usize));
    let copy = parts.spread.map_or(0, |spread| spread.len);
    let scratch = scratch.bytes();
    let copy = scratch.get_mut(..copy).unwrap_or_default();
    let group = geometry.group;
    let spread = parts.spread.filter(|_| !copy.is_empty());
    if let Some(spread) = spread {
        (spread.lengths)(&mut geometry, copy.len());
    }
    let mut first = 0;
    for x in pieces(x, geometry.sample) {
        for (k, w) in pieces(weights, geometry.filter).enumerate() {
            let mut x = pieces(x, group).nth(k / geometry.filters.max(1)).unwrap_or_default();
            if let Some(spread) = spread {
                (spread.plane)(l, op.x.shape, reads.zero, x, copy);
                x = copy;
            }
            let channel = &Channel::new(&op.group, (reads, p), k, filters, total(reads, w));
            let mut write = |_: usize, at: usize, sums: &[i32], _: &[u8]| {
                y.write(first + at, channel, &op.group, sums);
            };
            let one = ([channel; 2], 1);
            planes((&geometry, tile), sizes, x, [w; 2], one, &mut write);
            first += plane;
        }
    }
    Ok(())
}

/// A dense layer of bytes, with what stands behind it.
///
/// # Errors
/// Weights that are not i8.
#[inline(never)]
pub(super) fn dense(op: &Op<'_>, p: &Parameters<'_>, [x, y, ..]: Memory<'_>) -> Result<(), Error> {
    let (x, mut y) = (&*x.planned(), Out::new(y));
    let (reads, weights) = setup(&op.group, p)?;
    let features = op.x.shape.sample().unwrap_or(0).max(1) as usize;
    let units = op.y.shape.c.max(1) as usize;
    let mut at = 0;
    for x in pieces(x, features) {
        for (w, k) in weights.chunks((features * UNITS).max(1)).zip((0..).step_by(UNITS)) {
            let mut rows = pieces(w, features);
            let w = [(); UNITS].map(|()| rows.next().unwrap_or_default());
            for ((sum, w), k) in products(x, w).into_iter().zip(w).zip(k..units) {
                let channel = Channel::new(&op.group, (reads, p), k, units, total(reads, w));
                y.write(at, &channel, &op.group, &[channel.start.wrapping_add(sum)]);
                at += 1;
            }
        }
    }
    Ok(())
}

/// The steps of what is read, and the weights.
fn setup<'a>(group: &Group<'a>, p: &Parameters<'a>) -> Result<(&'a Quantise, &'a [i8]), Error> {
    let [weight, ..] = p.own;
    match (group.reads, weight.as_i8()) {
        (Some(reads), Some(weights)) => Ok((reads, weights)),
        _ => Err(Error::Unsupported("weights that are not i8 behind activations that are bytes")),
    }
}

/// The scale of a row.
fn scale(weight: &Stored<'_>, at: usize, rows: usize) -> Option<f32> {
    let bytes = weight.row(at, rows).scales.first_chunk::<4>()?;
    Some(f32::from_le_bytes(*bytes))
}

/// The sum of a row, where it is asked for.
fn total(reads: &Quantise, w: &[i8]) -> i32 {
    if reads.zero == 0 { 0 } else { w.iter().map(|&w| i32::from(w)).sum() }
}

/// The products of x with rows of weights; a row that is not there gives 0.
fn products(x: &[u8], [a, b, c, d]: [&[i8]; UNITS]) -> [i32; UNITS] {
    let mut sums = [0; UNITS];
    let [p, q, r, s] = &mut sums;
    // The last rows may be missing: they are read as far as all of them go.
    let common = [a, b, c, d].map(<[i8]>::len).into_iter().min().unwrap_or(0);
    let (many, rest) = x.split_at_checked(common).unwrap_or((x, &[]));
    for ((((x, a), b), c), d) in many.iter().zip(a).zip(b).zip(c).zip(d) {
        *p = Bytes::add(*p, *a, *x);
        *q = Bytes::add(*q, *b, *x);
        *r = Bytes::add(*r, *c, *x);
        *s = Bytes::add(*s, *d, *x);
    }
    if !rest.is_empty() {
        for (sum, w) in sums.iter_mut().zip([a, b, c, d]) {
            *sum = w.iter().zip(x).fold(0, |sum, (w, x)| Bytes::add(sum, *w, *x));
        }
    }
    sums
}
