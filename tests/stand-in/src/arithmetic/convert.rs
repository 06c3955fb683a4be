//! From one type to another.

use super::float::narrowed;
use super::integer::{Int, saturated};
use super::{Kind, One, Round, Ty, half};

/// A conversion that involves a float.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Convert {
    pub into: Ty,
    pub from: Ty,
    pub round: Round,
    /// Rounds to a whole number, of floats too.
    pub integral: bool,
    pub sat: bool,
    pub ftz: bool,
}

fn cut<T: Int, U: Int>(a: u64) -> u64 {
    U::of(T::of(a).bits()).bits()
}

fn cut_saturated<T: Int, U: Int>(a: u64) -> u64 {
    saturated::<U>(T::of(a).wide())
}

macro_rules! pairs {
    ($from:expr, $into:expr, $f:ident) => {
        pairs!(@from $from, $into, $f, Unsigned 8 u8, Unsigned 16 u16, Unsigned 32 u32,
            Unsigned 64 u64, Signed 8 i8, Signed 16 i16, Signed 32 i32, Signed 64 i64)
    };
    (@from $from:expr, $into:expr, $f:ident, $($kind:ident $bits:literal $ty:ident),*) => {
        match ($from.kind, $from.bits) {
            $((Kind::$kind, $bits) => pairs!(@into $into, $f, $ty),)*
            _ => return None,
        }
    };
    (@into $into:expr, $f:ident, $ty:ident) => {
        match ($into.kind, $into.bits) {
            (Kind::Unsigned, 8) => $f::<$ty, u8>,
            (Kind::Unsigned, 16) => $f::<$ty, u16>,
            (Kind::Unsigned, 32) => $f::<$ty, u32>,
            (Kind::Unsigned, 64) => $f::<$ty, u64>,
            (Kind::Signed, 8) => $f::<$ty, i8>,
            (Kind::Signed, 16) => $f::<$ty, i16>,
            (Kind::Signed, 32) => $f::<$ty, i32>,
            (Kind::Signed, 64) => $f::<$ty, i64>,
            _ => return None,
        }
    };
}

/// From an integer to an integer.
pub(crate) fn integers(into: Ty, from: Ty, sat: bool) -> Option<One> {
    let f: One = if sat { pairs!(from, into, cut_saturated) } else { pairs!(from, into, cut) };
    Some(f)
}

impl Convert {
    /// Whether the conversion exists, and is known here.
    pub fn is_known(&self) -> bool {
        let (into, from) = (self.into, self.from);
        let integer = |ty: Ty| matches!(ty.kind, Kind::Unsigned | Kind::Signed);
        let float = |ty: Ty| ty.kind == Kind::Float;
        if into.kind == Kind::Tf32 {
            return from == Ty { kind: Kind::Float, bits: 32 } && self.round == Round::Away;
        }
        if self.round == Round::Away {
            return false;
        }
        match (float(into), float(from)) {
            (true, true) => into.bits == 32 || self.integral || self.round == Round::Nearest,
            // An f64 holds 32 bits.
            (true, false) => {
                integer(from)
                    && (self.round == Round::Nearest || (from.bits <= 32 && into.bits >= 32))
            }
            (false, true) => integer(into),
            (false, false) => false,
        }
    }

    pub fn of(&self, a: u64) -> u64 {
        let Self { into, from, round, .. } = *self;
        if into.kind == Kind::Tf32 {
            return to_tf32(a as u32).into();
        }
        if from.kind != Kind::Float {
            return self.of_integer(a);
        }
        let mut v = match from.bits {
            16 => half::read(a),
            32 => flushed(f32::from_bits(a as u32), self.ftz).into(),
            _ => f64::from_bits(a),
        };
        if into.kind != Kind::Float {
            return to_integer(integral(v, round), into);
        }
        if self.integral {
            v = integral(v, round);
        }
        if self.sat {
            v = if v.is_nan() { 0.0 } else { v.clamp(0.0, 1.0) };
        }
        match into.bits {
            16 => half::give(v),
            32 if v.is_nan() => 0x7fff_ffff,
            32 => flushed(narrowed(v, round), self.ftz).to_bits().into(),
            _ => v.to_bits(),
        }
    }

    fn of_integer(&self, a: u64) -> u64 {
        let Self { into, from, round, .. } = *self;
        let value = match (from.kind, from.bits) {
            (Kind::Signed, 8) => i128::from(a as i8),
            (Kind::Signed, 16) => i128::from(a as i16),
            (Kind::Signed, 32) => i128::from(a as i32),
            (Kind::Signed, _) => i128::from(a as i64),
            (_, bits) => i128::from(super::low(a, bits)),
        };
        match into.bits {
            16 => half::give(value as f64),
            32 if round == Round::Nearest => (value as f32).to_bits().into(),
            32 => narrowed(value as f64, round).to_bits().into(),
            _ => (value as f64).to_bits(),
        }
    }
}

fn flushed(v: f32, ftz: bool) -> f32 {
    if ftz && v.is_subnormal() { 0f32.copysign(v) } else { v }
}

/// To nearest, ties away from zero, ten bits of fraction.
fn to_tf32(bits: u32) -> u32 {
    let special = bits & 0x7f80_0000 == 0x7f80_0000;
    (if special { bits } else { bits.wrapping_add(0x1000) }) & 0xffff_e000
}

fn integral(v: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => v.round_ties_even(),
        Round::Zero => v.trunc(),
        Round::Down => v.floor(),
        Round::Up => v.ceil(),
        Round::Away => v.round(),
    }
}

/// A whole number, or the nearest value of the type; 0 for NaN.
fn to_integer(v: f64, into: Ty) -> u64 {
    match (into.kind, into.bits) {
        (Kind::Signed, 8) => (v as i8) as i64 as u64,
        (Kind::Signed, 16) => (v as i16) as i64 as u64,
        (Kind::Signed, 32) => (v as i32) as i64 as u64,
        (Kind::Signed, _) => (v as i64) as u64,
        (_, 8) => (v as u8).into(),
        (_, 16) => (v as u16).into(),
        (_, 32) => (v as u32).into(),
        _ => v as u64,
    }
}
