//! Floats of 32 and 64 bits.
//!
//! Results that are not rounded to nearest go through an f64 that was rounded to odd: it keeps
//! whether anything was cut off, so the second rounding is as good as a first.

use super::{Comparison, Kind, One, Round, Three, Two, Ty};

const NEAREST: u8 = 0;
const ZERO: u8 = 1;
const DOWN: u8 = 2;
const UP: u8 = 3;

/// The device knows a single NaN.
const NAN: u64 = 0x7fff_ffff;

fn read<const FTZ: bool>(bits: u64) -> f32 {
    let v = f32::from_bits(bits as u32);
    if FTZ && v.is_subnormal() { 0f32.copysign(v) } else { v }
}

fn give<const FTZ: bool, const SAT: bool>(v: f32) -> u64 {
    if v.is_nan() {
        return if SAT { 0 } else { NAN };
    }
    let v = if SAT { v.clamp(0.0, 1.0) } else { v };
    let v = if FTZ && v.is_subnormal() { 0f32.copysign(v) } else { v };
    v.to_bits().into()
}

/// A sum, rounded to odd.
pub(crate) fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    let of_b = sum - a;
    let rest = (a - (sum - of_b)) + (b - of_b);
    if rest == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    let grows = (rest > 0.0) == (sum > 0.0);
    f64::from_bits(if grows { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

fn narrow<const R: u8>(v: f64) -> f32 {
    let near = v as f32;
    let wide = f64::from(near);
    match R {
        ZERO if wide.abs() > v.abs() => {
            if near > 0.0 {
                near.next_down()
            } else {
                near.next_up()
            }
        }
        DOWN if wide > v => near.next_down(),
        UP if wide < v => near.next_up(),
        _ => near,
    }
}

/// `v` as an f32, rounded as asked.
pub(crate) fn narrowed(v: f64, round: Round) -> f32 {
    match round {
        Round::Zero => narrow::<ZERO>(v),
        Round::Down => narrow::<DOWN>(v),
        Round::Up => narrow::<UP>(v),
        _ => narrow::<NEAREST>(v),
    }
}

fn add<const R: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64) -> u64 {
    let (a, b) = (read::<FTZ>(a), read::<FTZ>(b));
    let nearest = R == NEAREST;
    give::<FTZ, SAT>(if nearest { a + b } else { narrow::<R>(sum_to_odd(a.into(), b.into())) })
}
fn sub<const R: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64) -> u64 {
    add::<R, FTZ, SAT>(a, b ^ 0x8000_0000)
}
fn mul<const R: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64) -> u64 {
    let (a, b) = (read::<FTZ>(a), read::<FTZ>(b));
    // An f64 holds the product.
    give::<FTZ, SAT>(if R == NEAREST { a * b } else { narrow::<R>(f64::from(a) * f64::from(b)) })
}
fn fma<const R: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64, c: u64) -> u64 {
    let (a, b, c) = (read::<FTZ>(a), read::<FTZ>(b), read::<FTZ>(c));
    give::<FTZ, SAT>(fused::<R>(a, b, c))
}

/// `a b + c`, rounded once.
fn fused<const R: u8>(a: f32, b: f32, c: f32) -> f32 {
    // An f64 holds the product; this is faster than a fused operation of the host's, which may
    // be a call.
    narrow::<R>(sum_to_odd(f64::from(a) * f64::from(b), c.into()))
}

/// `a b + c` in f32, to nearest: what kernels do most.
#[inline]
pub(crate) fn fma_nearest(a: u64, b: u64, c: u64) -> u64 {
    let (a, b, c) = (f32::from_bits(a as u32), f32::from_bits(b as u32), f32::from_bits(c as u32));
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // Only a sum right between two floats can be rounded wrongly twice; its last bits tell.
    let tail = sum.to_bits() & 0x1fff_ffff;
    let v = if tail != 0x1000_0000 && (sum.abs() >= f64::from(f32::MIN_POSITIVE) || sum == 0.0) {
        sum as f32
    } else {
        sum_to_odd(product, c) as f32
    };
    if v.is_nan() { NAN } else { v.to_bits().into() }
}

macro_rules! rounded {
    ($f:ident, $round:expr, $ftz:expr, $sat:expr) => {
        Some(match ($round, $ftz, $sat) {
            (Round::Nearest, false, false) => $f::<NEAREST, false, false>,
            (Round::Nearest, false, true) => $f::<NEAREST, false, true>,
            (Round::Nearest, true, false) => $f::<NEAREST, true, false>,
            (Round::Nearest, true, true) => $f::<NEAREST, true, true>,
            (Round::Zero, false, false) => $f::<ZERO, false, false>,
            (Round::Zero, false, true) => $f::<ZERO, false, true>,
            (Round::Zero, true, false) => $f::<ZERO, true, false>,
            (Round::Zero, true, true) => $f::<ZERO, true, true>,
            (Round::Down, false, false) => $f::<DOWN, false, false>,
            (Round::Down, false, true) => $f::<DOWN, false, true>,
            (Round::Down, true, false) => $f::<DOWN, true, false>,
            (Round::Down, true, true) => $f::<DOWN, true, true>,
            (Round::Up, false, false) => $f::<UP, false, false>,
            (Round::Up, false, true) => $f::<UP, false, true>,
            (Round::Up, true, false) => $f::<UP, true, false>,
            (Round::Up, true, true) => $f::<UP, true, true>,
            (Round::Away, ..) => return None,
        })
    };
}

macro_rules! flushed {
    ($f:ident, $ftz:expr) => {
        Some(if $ftz { $f::<true> } else { $f::<false> })
    };
}

/// The lesser; zeros are ordered by their sign, a NaN gives way unless `KEEP` is set.
fn lesser<const KEEP: bool>(a: f64, b: f64) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (false, false) if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        (false, false) => a.min(b),
        (true, false) if !KEEP => b,
        (false, true) if !KEEP => a,
        _ => f64::NAN,
    }
}

fn min<const FTZ: bool>(a: u64, b: u64) -> u64 {
    give::<FTZ, false>(lesser::<false>(read::<FTZ>(a).into(), read::<FTZ>(b).into()) as f32)
}
fn max<const FTZ: bool>(a: u64, b: u64) -> u64 {
    let (a, b) = (read::<FTZ>(a), read::<FTZ>(b));
    give::<FTZ, false>(-lesser::<false>((-a).into(), (-b).into()) as f32)
}
fn min_nan<const FTZ: bool>(a: u64, b: u64) -> u64 {
    give::<FTZ, false>(lesser::<true>(read::<FTZ>(a).into(), read::<FTZ>(b).into()) as f32)
}
fn max_nan<const FTZ: bool>(a: u64, b: u64) -> u64 {
    let (a, b) = (read::<FTZ>(a), read::<FTZ>(b));
    give::<FTZ, false>(-lesser::<true>((-a).into(), (-b).into()) as f32)
}
fn div<const FTZ: bool>(a: u64, b: u64) -> u64 {
    give::<FTZ, false>(read::<FTZ>(a) / read::<FTZ>(b))
}

fn double(f: impl Fn(f64, f64) -> f64, a: u64, b: u64) -> u64 {
    f(f64::from_bits(a), f64::from_bits(b)).to_bits()
}

/// How an operation's form changes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub round: Round,
    pub ftz: bool,
    pub sat: bool,
}

impl Form {
    const fn is_plain(self) -> bool {
        matches!(self.round, Round::Nearest) && !self.ftz && !self.sat
    }
}

/// An operation of two floats by its instruction's name.
pub(crate) fn two(name: &str, ty: Ty, form: Form) -> Option<Two> {
    let Form { round, ftz, sat } = form;
    if (ty.kind, ty.bits) == (Kind::Float, 64) {
        return match name {
            _ if !form.is_plain() => None,
            "add" => Some(|a, b| double(|a, b| a + b, a, b)),
            "sub" => Some(|a, b| double(|a, b| a - b, a, b)),
            "mul" => Some(|a, b| double(|a, b| a * b, a, b)),
            "div" => Some(|a, b| double(|a, b| a / b, a, b)),
            "min" => Some(|a, b| double(lesser::<false>, a, b)),
            "max" => Some(|a, b| double(|a, b| -lesser::<false>(-a, -b), a, b)),
            "copysign" => Some(|a, b| double(|a, b| b.copysign(a), a, b)),
            _ => None,
        };
    }
    match name {
        "add" => rounded!(add, round, ftz, sat),
        "sub" => rounded!(sub, round, ftz, sat),
        "mul" => rounded!(mul, round, ftz, sat),
        _ if round != Round::Nearest || sat => None,
        "div" => flushed!(div, ftz),
        "min" => flushed!(min, ftz),
        "max" => flushed!(max, ftz),
        "min.NaN" => flushed!(min_nan, ftz),
        "max.NaN" => flushed!(max_nan, ftz),
        // The sign is the first operand's.
        "copysign" => Some(|a, b| (a & 0x8000_0000) | (b & 0x7fff_ffff)),
        _ => None,
    }
}

/// `a b + c`.
pub(crate) fn three(ty: Ty, form: Form) -> Option<Three> {
    if ty.bits == 64 {
        let plain: Three =
            |a, b, c| f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits();
        return form.is_plain().then_some(plain);
    }
    if form.is_plain() {
        return Some(fma_nearest);
    }
    rounded!(fma, form.round, form.ftz, form.sat)
}

macro_rules! wide {
    ($($name:ident: $f:expr;)*) => {$(
        fn $name<const FTZ: bool>(a: u64) -> u64 {
            let f: fn(f64) -> f64 = $f;
            give::<FTZ, false>(f(read::<FTZ>(a).into()) as f32)
        }
    )*};
}

// The approximate functions of the device differ from these in their last bits.
wide! {
    rcp: |a| 1.0 / a;
    sqrt: f64::sqrt;
    rsqrt: |a| 1.0 / a.sqrt();
    ex2: f64::exp2;
    lg2: f64::log2;
    tanh: f64::tanh;
    sin: f64::sin;
    cos: f64::cos;
}

fn neg<const FTZ: bool>(a: u64) -> u64 {
    if FTZ { give::<true, false>(-read::<true>(a)) } else { (a ^ 0x8000_0000) & 0xffff_ffff }
}
fn abs<const FTZ: bool>(a: u64) -> u64 {
    if FTZ { give::<true, false>(read::<true>(a).abs()) } else { a & 0x7fff_ffff }
}

/// An operation of one float by its instruction's name.
pub(crate) fn one(name: &str, ty: Ty, ftz: bool) -> Option<One> {
    if (ty.kind, ty.bits) == (Kind::Float, 64) {
        return match name {
            "neg" => Some(|a| a ^ (1 << 63)),
            "abs" => Some(|a| a & !(1 << 63)),
            "rcp" => Some(|a| (1.0 / f64::from_bits(a)).to_bits()),
            "sqrt" => Some(|a| f64::from_bits(a).sqrt().to_bits()),
            "rsqrt" => Some(|a| (1.0 / f64::from_bits(a).sqrt()).to_bits()),
            _ => None,
        };
    }
    match name {
        "neg" => flushed!(neg, ftz),
        "abs" => flushed!(abs, ftz),
        "rcp" => flushed!(rcp, ftz),
        "sqrt" => flushed!(sqrt, ftz),
        "rsqrt" => flushed!(rsqrt, ftz),
        "ex2" => flushed!(ex2, ftz),
        "lg2" => flushed!(lg2, ftz),
        "tanh" => flushed!(tanh, ftz),
        "sin" => flushed!(sin, ftz),
        "cos" => flushed!(cos, ftz),
        _ => None,
    }
}

/// Whether a float is of a class.
pub(crate) fn test(class: &str, ty: Ty) -> Option<One> {
    fn value<const DOUBLE: bool>(bits: u64) -> f64 {
        if DOUBLE { f64::from_bits(bits) } else { f32::from_bits(bits as u32).into() }
    }
    macro_rules! test {
        ($f:expr) => {
            Some(if ty.bits == 64 {
                |a| u64::from($f(value::<true>(a)))
            } else {
                |a| u64::from($f(value::<false>(a)))
            })
        };
    }
    match class {
        "finite" => test!(f64::is_finite),
        "infinite" => test!(f64::is_infinite),
        "number" => test!(|v: f64| !v.is_nan()),
        "notanumber" => test!(f64::is_nan),
        "subnormal" if ty.bits == 64 => Some(|a| f64::from_bits(a).is_subnormal().into()),
        "subnormal" => Some(|a| f32::from_bits(a as u32).is_subnormal().into()),
        "normal" if ty.bits == 64 => Some(|a| f64::from_bits(a).is_normal().into()),
        "normal" => Some(|a| f32::from_bits(a as u32).is_normal().into()),
        _ => None,
    }
}

macro_rules! compared {
    ($comparison:expr, $read:expr) => {{
        macro_rules! by {
            (|$a:ident, $b:ident| $result:expr) => {
                |$a: u64, $b: u64| {
                    let ($a, $b) = ($read($a), $read($b));
                    u64::from($result)
                }
            };
        }
        let f: Two = match $comparison {
            Comparison::Eq => by!(|a, b| a == b),
            Comparison::Ne => by!(|a, b| a != b && !a.is_nan() && !b.is_nan()),
            Comparison::Lt => by!(|a, b| a < b),
            Comparison::Le => by!(|a, b| a <= b),
            Comparison::Gt => by!(|a, b| a > b),
            Comparison::Ge => by!(|a, b| a >= b),
            Comparison::Equ => by!(|a, b| a == b || a.is_nan() || b.is_nan()),
            Comparison::Neu => by!(|a, b| a != b),
            Comparison::Ltu => by!(|a, b| !(a >= b)),
            Comparison::Leu => by!(|a, b| !(a > b)),
            Comparison::Gtu => by!(|a, b| !(a <= b)),
            Comparison::Geu => by!(|a, b| !(a < b)),
            Comparison::Num => by!(|a, b| !a.is_nan() && !b.is_nan()),
            Comparison::Nan => by!(|a, b| a.is_nan() || b.is_nan()),
        };
        f
    }};
}
pub(crate) use compared;

#[expect(clippy::neg_cmp_op_on_partial_ord, reason = "true where an operand is NaN")]
pub(crate) fn compare(comparison: Comparison, ty: Ty, ftz: bool) -> Option<Two> {
    Some(match (ty.bits, ftz) {
        (32, false) => compared!(comparison, read::<false>),
        (32, true) => compared!(comparison, read::<true>),
        (64, false) => compared!(comparison, f64::from_bits),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of many floats: ordinary, tiny, huge, and near to each other.
    fn samples() -> impl Iterator<Item = [u32; 3]> {
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            (state >> 32) as u32
        };
        (0..200_000).map(move |i| {
            let [a, b, c] = [next(), next(), next()];
            match i % 4 {
                0 => [a, b, c],
                // Few bits, so that sums fall between floats.
                1 => [a & 0xff80_0fff, b & 0xff80_0fff, c & 0xfff0_0000],
                // Exponents around 1.
                2 => {
                    [a & 0x80ff_ffff | 0x3f00_0000, b & 0x80ff_ffff | 0x3f00_0000, c & 0xbfff_ffff]
                }
                // The least numbers.
                _ => [a & 0x9fff_ffff, b & 0xbfff_ffff, c & 0x80ff_ffff],
            }
        })
    }

    #[test]
    fn a_fused_product_is_rounded_once() {
        for [a, b, c] in samples() {
            let floats = [a, b, c].map(f32::from_bits);
            let expected = floats[0].mul_add(floats[1], floats[2]);
            let found = f32::from_bits(fma_nearest(a.into(), b.into(), c.into()) as u32);
            let same = found.to_bits() == expected.to_bits();
            assert!(same || (found.is_nan() && expected.is_nan()), "{floats:?}: {found:e}");
        }
    }

    #[test]
    fn directed_results_enclose_the_nearest() {
        for [a, b, c] in samples() {
            let [a, b, c] = [a, b, c].map(u64::from);
            let value = |bits: u64| f32::from_bits(bits as u32);
            let near = value(fma::<NEAREST, false, false>(a, b, c));
            if !near.is_finite() {
                continue;
            }
            let down = value(fma::<DOWN, false, false>(a, b, c));
            let up = value(fma::<UP, false, false>(a, b, c));
            let zero = value(fma::<ZERO, false, false>(a, b, c));
            assert!(down <= near && near <= up && down.next_up() >= up, "{down:e} {near:e} {up:e}");
            assert_eq!(zero, if near.is_sign_positive() { down } else { up });
        }
    }

    #[test]
    fn zeros_have_an_order_and_nan_gives_way() {
        let (plus, minus, nan) = (0, 0x8000_0000, 0x7fc0_0000);
        assert_eq!((min::<false>(plus, minus), min::<false>(minus, plus)), (minus, minus));
        assert_eq!((max::<false>(plus, minus), max::<false>(minus, plus)), (plus, plus));
        assert_eq!((min::<false>(nan, minus), max::<false>(plus, nan)), (minus, plus));
        assert_eq!((min_nan::<false>(nan, plus), max_nan::<false>(plus, nan)), (NAN, NAN));
    }
}
