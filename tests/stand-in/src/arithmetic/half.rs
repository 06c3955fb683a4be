//! Floats of 16 bits, alone and in pairs.

use half::f16;

use super::float::{Form, compared, sum_to_odd};
use super::{Comparison, Kind, One, Round, Three, Two, Ty};

pub(crate) fn read(bits: u64) -> f64 {
    f16::from_bits(bits as u16).to_f64()
}

pub(crate) fn give(v: f64) -> u64 {
    // The device knows a single NaN.
    if v.is_nan() { 0x7fff } else { f16::from_f64(v).to_bits().into() }
}

/// An operation on one half and on each of two.
macro_rules! both {
    ($kind:expr, |$($a:ident),*| $result:expr) => {{
        fn half($($a: u64),*) -> u64 {
            $(let $a = read($a);)*
            give($result)
        }
        match $kind {
            Kind::Halves => |$($a: u64),*| half($($a),*) | half($($a >> 16),*) << 16,
            _ => half,
        }
    }};
}

fn lesser(a: f64, b: f64) -> f64 {
    if a == b && a.is_sign_negative() { a } else { b.min(a) }
}

pub(crate) fn two(name: &str, ty: Ty, form: Form) -> Option<Two> {
    if form.round != Round::Nearest || form.ftz {
        return None;
    }
    Some(match (name, form.sat) {
        ("add", false) => both!(ty.kind, |a, b| a + b),
        ("sub", false) => both!(ty.kind, |a, b| a - b),
        // An f64 holds the product.
        ("mul", false) => both!(ty.kind, |a, b| a * b),
        ("min", false) => both!(ty.kind, |a, b| lesser(a, b)),
        ("max", false) => both!(ty.kind, |a, b| -lesser(-a, -b)),
        _ => return None,
    })
}

pub(crate) fn three(ty: Ty, form: Form) -> Option<Three> {
    if form.round != Round::Nearest || form.ftz || form.sat {
        return None;
    }
    Some(both!(ty.kind, |a, b, c| sum_to_odd(a * b, c)))
}

pub(crate) fn one(name: &str, ty: Ty) -> Option<One> {
    Some(match (name, ty.kind) {
        ("neg", Kind::Halves) => |a| (a ^ 0x8000_8000) & 0xffff_ffff,
        ("neg", _) => |a| (a ^ 0x8000) & 0xffff,
        ("abs", Kind::Halves) => |a| a & 0x7fff_7fff,
        ("abs", _) => |a| a & 0x7fff,
        ("ex2", _) => both!(ty.kind, |a| a.exp2()),
        ("tanh", _) => both!(ty.kind, |a| a.tanh()),
        _ => return None,
    })
}

#[expect(clippy::neg_cmp_op_on_partial_ord, reason = "true where an operand is NaN")]
pub(crate) fn compare(comparison: Comparison) -> Two {
    compared!(comparison, read)
}
