//! What instructions without memory and without other threads compute. Values are the low bits of
//! 64, zero above.

use crate::code::{Atomic, Binary, Compare, Kind, Round, Ternary, Ty, Unary};

pub(crate) const fn low(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

pub(crate) const fn signed(value: u64, bits: u32) -> i64 {
    if bits >= 64 { value as i64 } else { ((value << (64 - bits)) as i64) >> (64 - bits) }
}

fn f32_of(value: u64, ftz: bool) -> f32 {
    flush(f32::from_bits(value as u32), ftz)
}

fn flush(v: f32, ftz: bool) -> f32 {
    if ftz && v.is_subnormal() { 0.0f32.copysign(v) } else { v }
}

fn f64_of(value: u64) -> f64 {
    f64::from_bits(value)
}

fn of_f32(v: f32, ftz: bool) -> u64 {
    // All NaN are one here, as on the device.
    if v.is_nan() { 0x7fff_ffff } else { u64::from(flush(v, ftz).to_bits()) }
}

fn of_f64(v: f64) -> u64 {
    v.to_bits()
}

pub(crate) fn binary(op: Binary, ty: Ty, ftz: bool, a: u64, b: u64) -> u64 {
    match (ty.kind, ty.bits) {
        (Kind::Float, 32) => {
            let (x, y) = (f32_of(a, ftz), f32_of(b, ftz));
            if op == Binary::Copysign {
                // The sign is that of the first operand.
                return of_f32(y.copysign(x), ftz);
            }
            of_f32(float(op, x, y, |x, y| x + y, |x, y| x - y, |x, y| x * y, |x, y| x / y), ftz)
        }
        (Kind::Float, 64) => {
            let (x, y) = (f64_of(a), f64_of(b));
            of_f64(match op {
                Binary::Add => x + y,
                Binary::Sub => x - y,
                Binary::Mul => x * y,
                Binary::Div => x / y,
                Binary::Min => x.min(y),
                _ => x.max(y),
            })
        }
        _ => integer(op, ty, a, b),
    }
}

fn float(
    op: Binary,
    x: f32,
    y: f32,
    add: impl Fn(f32, f32) -> f32,
    sub: impl Fn(f32, f32) -> f32,
    mul: impl Fn(f32, f32) -> f32,
    div: impl Fn(f32, f32) -> f32,
) -> f32 {
    // Zeros are ordered by their sign; a NaN gives way unless the instruction keeps it.
    let less = |x: f32, y: f32| x < y || (x == y && x.is_sign_negative() && !y.is_sign_negative());
    let pick = |first: bool, keep: bool| match (x.is_nan(), y.is_nan()) {
        (true, true) => f32::NAN,
        (true, false) | (false, true) if keep => f32::NAN,
        (true, false) => y,
        (false, true) => x,
        _ => {
            if first {
                x
            } else {
                y
            }
        }
    };
    match op {
        Binary::Add => add(x, y),
        Binary::Sub => sub(x, y),
        Binary::Mul => mul(x, y),
        Binary::Div => div(x, y),
        Binary::Min => pick(less(x, y), false),
        Binary::Max => pick(less(y, x), false),
        Binary::MinNan => pick(less(x, y), true),
        _ => pick(less(y, x), true),
    }
}

fn integer(op: Binary, ty: Ty, a: u64, b: u64) -> u64 {
    let bits = ty.bits;
    let is_signed = ty.kind == Kind::Signed;
    let (x, y) = (signed(a, bits), signed(b, bits));
    let product = || {
        if is_signed {
            (i128::from(x) * i128::from(y)) as u128
        } else {
            u128::from(a) * u128::from(b)
        }
    };
    let result = match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::MulHi => (product() >> bits) as u64,
        Binary::MulWide => return low(product() as u64, bits * 2),
        // What a division by zero gives is not defined; all ones is what devices do.
        Binary::Div | Binary::Rem if b == 0 => u64::MAX,
        Binary::Div if is_signed => x.wrapping_div(y) as u64,
        Binary::Div => a / b,
        Binary::Rem if is_signed => x.wrapping_rem(y) as u64,
        Binary::Rem => a % b,
        Binary::Min | Binary::MinNan if is_signed => x.min(y) as u64,
        Binary::Min | Binary::MinNan => a.min(b),
        Binary::Max | Binary::MaxNan if is_signed => x.max(y) as u64,
        Binary::Max | Binary::MaxNan => a.max(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::Shl if low(b, 32) >= u64::from(bits) => 0,
        Binary::Shl => a << low(b, 32),
        Binary::Shr if is_signed => (x >> low(b, 32).min(u64::from(bits) - 1)) as u64,
        Binary::Shr if low(b, 32) >= u64::from(bits) => 0,
        Binary::Shr => a >> low(b, 32),
        Binary::Copysign => a,
    };
    low(result, bits)
}

pub(crate) fn unary(op: Unary, ty: Ty, ftz: bool, a: u64) -> u64 {
    let bits = ty.bits;
    match (op, ty.kind, bits) {
        (Unary::Move, ..) => low(a, bits),
        (Unary::Neg, Kind::Float, 32) => a ^ 0x8000_0000,
        (Unary::Neg, Kind::Float, 64) => a ^ (1 << 63),
        (Unary::Abs, Kind::Float, 32) => a & 0x7fff_ffff,
        (Unary::Abs, Kind::Float, 64) => a & !(1 << 63),
        (_, Kind::Float, 64) => of_f64(match op {
            Unary::Rcp => 1.0 / f64_of(a),
            Unary::Sqrt => f64_of(a).sqrt(),
            _ => 1.0 / f64_of(a).sqrt(),
        }),
        (_, Kind::Float, _) => {
            let x = f32_of(a, ftz);
            let wide = f64::from(x);
            of_f32(
                match op {
                    Unary::Rcp => 1.0 / x,
                    Unary::Sqrt => x.sqrt(),
                    Unary::Rsqrt => (1.0 / wide.sqrt()) as f32,
                    Unary::Ex2 => wide.exp2() as f32,
                    Unary::Lg2 => wide.log2() as f32,
                    Unary::Tanh => wide.tanh() as f32,
                    Unary::Sin => wide.sin() as f32,
                    _ => wide.cos() as f32,
                },
                ftz,
            )
        }
        (Unary::Neg, ..) => low(a.wrapping_neg(), bits),
        (Unary::Abs, ..) => low(signed(a, bits).unsigned_abs(), bits),
        (Unary::Cnot, ..) => u64::from(a == 0),
        (Unary::Popc, ..) => u64::from(a.count_ones()),
        (Unary::Clz, ..) => u64::from(a.leading_zeros() - (64 - bits)),
        (Unary::Brev, ..) => a.reverse_bits() >> (64 - bits),
        (Unary::Bfind, Kind::Signed, _) if signed(a, bits) < 0 => {
            let other = low(!a, bits);
            if other == 0 { 0xffff_ffff } else { u64::from(63 - other.leading_zeros()) }
        }
        (Unary::Bfind, ..) if a == 0 => 0xffff_ffff,
        (Unary::Bfind, ..) => u64::from(63 - a.leading_zeros()),
        _ => low(!a, bits),
    }
}

pub(crate) fn ternary(op: Ternary, ty: Ty, ftz: bool, a: u64, b: u64, c: u64) -> u64 {
    let bits = ty.bits;
    match op {
        Ternary::Fma if bits == 64 => of_f64(f64_of(a).mul_add(f64_of(b), f64_of(c))),
        Ternary::Fma => of_f32(f32_of(a, ftz).mul_add(f32_of(b, ftz), f32_of(c, ftz)), ftz),
        Ternary::Mad => low(a.wrapping_mul(b).wrapping_add(c), bits),
        Ternary::MadHi => low(integer(Binary::MulHi, ty, a, b).wrapping_add(c), bits),
        Ternary::MadWide => low(integer(Binary::MulWide, ty, a, b).wrapping_add(c), bits * 2),
        Ternary::Bfe => {
            let (at, len) = ((b & 0xff) as u32, (c & 0xff) as u32);
            if len == 0 {
                return 0;
            }
            let top = at.saturating_add(len - 1).min(bits - 1);
            let sign = ty.kind == Kind::Signed && (a >> top) & 1 == 1;
            let field = if at >= bits { 0 } else { low(a >> at, len.min(bits - at)) };
            let filled = len.min(bits.saturating_sub(at));
            let above = if sign && filled < bits { u64::MAX << filled } else { 0 };
            low(field | above, bits)
        }
        Ternary::Prmt => {
            let bytes = (low(b, 32) << 32) | low(a, 32);
            (0..4).fold(0, |result, i| {
                let selector = (c >> (4 * i)) & 0xf;
                let byte = (bytes >> (8 * (selector & 7))) & 0xff;
                let byte =
                    if selector & 8 != 0 { if byte & 0x80 != 0 { 0xff } else { 0 } } else { byte };
                result | (byte << (8 * i))
            })
        }
        _ => {
            let both = (low(b, 32) << 32) | low(a, 32);
            let wraps = matches!(op, Ternary::ShfLeftWrap | Ternary::ShfRightWrap);
            let by = if wraps { c & 31 } else { low(c, 32).min(32) };
            if matches!(op, Ternary::ShfLeftWrap | Ternary::ShfLeftClamp) {
                low((u128::from(both) << by >> 32) as u64, 32)
            } else {
                low(both >> by, 32)
            }
        }
    }
}

pub(crate) fn compare(compare: Compare, ty: Ty, a: u64, b: u64) -> bool {
    use core::cmp::Ordering;
    let order = match (ty.kind, ty.bits) {
        (Kind::Float, 64) => f64_of(a).partial_cmp(&f64_of(b)),
        (Kind::Float, _) => f32_of(a, false).partial_cmp(&f32_of(b, false)),
        (Kind::Signed, bits) => Some(signed(a, bits).cmp(&signed(b, bits))),
        _ => Some(a.cmp(&b)),
    };
    match compare {
        Compare::Eq => order == Some(Ordering::Equal),
        // Of floats, `ne` is false where one is NaN.
        Compare::Ne => order.is_some_and(|o| o != Ordering::Equal),
        Compare::Lt => order == Some(Ordering::Less),
        Compare::Le => order.is_some_and(|o| o != Ordering::Greater),
        Compare::Gt => order == Some(Ordering::Greater),
        Compare::Ge => order.is_some_and(|o| o != Ordering::Less),
        Compare::Equ => order.is_none_or(|o| o == Ordering::Equal),
        Compare::Neu => order != Some(Ordering::Equal),
        Compare::Ltu => order.is_none_or(|o| o == Ordering::Less),
        Compare::Leu => order.is_none_or(|o| o != Ordering::Greater),
        Compare::Gtu => order.is_none_or(|o| o == Ordering::Greater),
        Compare::Geu => order.is_none_or(|o| o != Ordering::Less),
        Compare::Num => order.is_some(),
        Compare::Nan => order.is_none(),
    }
}

pub(crate) fn convert(
    into: Ty,
    from: Ty,
    round: Round,
    integral: bool,
    saturate: bool,
    a: u64,
) -> u64 {
    match (into.kind, from.kind) {
        (Kind::Float, Kind::Float) => {
            if into.tf32 {
                // To nearest, ties away from zero, ten bits of fraction kept.
                let bits = a as u32;
                let special = bits & 0x7f80_0000 == 0x7f80_0000;
                let rounded = if special { bits } else { bits.wrapping_add(0x1000) };
                return u64::from(rounded & 0xffff_e000);
            }
            let wide = match from.bits {
                16 => half::f16::from_bits(a as u16).to_f64(),
                32 => f64::from(f32::from_bits(a as u32)),
                _ => f64_of(a),
            };
            let mut wide = if integral { rounded(wide, round) } else { wide };
            if saturate {
                wide = if wide.is_nan() { 0.0 } else { wide.clamp(0.0, 1.0) };
            }
            match into.bits {
                16 => u64::from(half::f16::from_f64(wide).to_bits()),
                32 => of_f32(wide as f32, false),
                _ => of_f64(wide),
            }
        }
        (Kind::Float, _) => {
            let bits = from.bits;
            let is_signed = from.kind == Kind::Signed;
            match into.bits {
                32 if is_signed => of_f32(signed(a, bits) as f32, false),
                32 => of_f32(a as f32, false),
                16 => u64::from(
                    half::f16::from_f64(if is_signed { signed(a, bits) as f64 } else { a as f64 })
                        .to_bits(),
                ),
                _ if is_signed => of_f64(signed(a, bits) as f64),
                _ => of_f64(a as f64),
            }
        }
        (_, Kind::Float) => {
            let wide = match from.bits {
                16 => half::f16::from_bits(a as u16).to_f64(),
                32 => f64::from(f32::from_bits(a as u32)),
                _ => f64_of(a),
            };
            let wide = rounded(wide, round);
            if wide.is_nan() {
                return 0;
            }
            let (least, most) = limits(into);
            low((wide as i128).clamp(least, most) as u64, into.bits)
        }
        _ => {
            let value = if from.kind == Kind::Signed {
                i128::from(signed(a, from.bits))
            } else {
                i128::from(low(a, from.bits))
            };
            let (least, most) = limits(into);
            let value = if saturate { value.clamp(least, most) } else { value };
            low(value as u64, into.bits)
        }
    }
}

fn limits(ty: Ty) -> (i128, i128) {
    match ty.kind {
        Kind::Signed => (-(1i128 << (ty.bits - 1)), (1i128 << (ty.bits - 1)) - 1),
        _ => (0, (1i128 << ty.bits) - 1),
    }
}

fn rounded(v: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => v.round_ties_even(),
        Round::Zero => v.trunc(),
        Round::Down => v.floor(),
        Round::Up => v.ceil(),
        Round::Away => v.round(),
    }
}

/// The new value of an atomic's memory.
pub(crate) fn atomic(op: Atomic, ty: Ty, old: u64, a: u64, b: u64) -> u64 {
    match op {
        Atomic::Add => binary(Binary::Add, ty, false, old, a),
        Atomic::Min => binary(Binary::Min, ty, false, old, a),
        Atomic::Max => binary(Binary::Max, ty, false, old, a),
        Atomic::Exchange => a,
        Atomic::Swap => {
            if old == a {
                b
            } else {
                old
            }
        }
        Atomic::And => old & a,
        Atomic::Or => old | a,
        Atomic::Xor => old ^ a,
        Atomic::Inc => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        Atomic::Dec => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
    }
}
