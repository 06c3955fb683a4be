//! Integers and bits.

use super::{Comparison, Four, Kind, One, Three, Two, Ty, low};

/// An integer of some width, as the operations need it.
pub(crate) trait Int: Copy + Ord {
    const BITS: u32;
    const ZERO: Self;
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn mul_hi(self, other: Self) -> Self;
    fn mul_wide(self, other: Self) -> u64;
    fn div(self, other: Self) -> Self;
    fn rem(self, other: Self) -> Self;
    fn shr(self, by: u32) -> Self;
    fn wide(self) -> i128;
}

macro_rules! int {
    ($($ty:ident $wide:ident $extended:ident;)*) => {$(
        impl Int for $ty {
            const BITS: u32 = $ty::BITS;
            const ZERO: Self = 0;
            fn of(bits: u64) -> Self {
                bits as $ty
            }
            fn bits(self) -> u64 {
                self as $extended as u64
            }
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            fn mul(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            fn mul_hi(self, other: Self) -> Self {
                ((self as $wide * other as $wide) >> $ty::BITS) as $ty
            }
            fn mul_wide(self, other: Self) -> u64 {
                (self as $wide * other as $wide) as u64
            }
            fn div(self, other: Self) -> Self {
                // What a division by zero gives is not defined; all ones is what devices give.
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }
            fn rem(self, other: Self) -> Self {
                if other == 0 { self } else { self.wrapping_rem(other) }
            }
            fn shr(self, by: u32) -> Self {
                if by < $ty::BITS {
                    self >> by
                } else if self < Self::ZERO {
                    !0
                } else {
                    0
                }
            }
            fn wide(self) -> i128 {
                self as i128
            }
        }
    )*};
}

int! {
    u8 u16 u64;
    u16 u32 u64;
    u32 u64 u64;
    u64 u128 u64;
    i8 i16 i64;
    i16 i32 i64;
    i32 i64 i64;
    i64 i128 i64;
}

/// The instance of a function for an integer type.
macro_rules! for_int {
    ($ty:expr, $f:ident) => {
        Some(match ($ty.kind, $ty.bits) {
            (Kind::Signed, 8) => $f::<i8>,
            (Kind::Signed, 16) => $f::<i16>,
            (Kind::Signed, 32) => $f::<i32>,
            (Kind::Signed, 64) => $f::<i64>,
            (Kind::Unsigned | Kind::Bits, 8) => $f::<u8>,
            (Kind::Unsigned | Kind::Bits, 16) => $f::<u16>,
            (Kind::Unsigned | Kind::Bits, 32) => $f::<u32>,
            (Kind::Unsigned | Kind::Bits, 64) => $f::<u64>,
            _ => return None,
        })
    };
}

fn add<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).add(T::of(b)).bits()
}
fn sub<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).sub(T::of(b)).bits()
}
fn mul<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).mul(T::of(b)).bits()
}
fn mul_hi<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).mul_hi(T::of(b)).bits()
}
fn mul_wide<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).mul_wide(T::of(b))
}
fn div<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).div(T::of(b)).bits()
}
fn rem<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).rem(T::of(b)).bits()
}
fn min<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).min(T::of(b)).bits()
}
fn max<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).max(T::of(b)).bits()
}
fn shl<T: Int>(a: u64, b: u64) -> u64 {
    let by = b as u32;
    if by < T::BITS { T::of(a << by).bits() } else { 0 }
}
fn shr<T: Int>(a: u64, b: u64) -> u64 {
    T::of(a).shr(b as u32).bits()
}
fn add_saturated<T: Int>(a: u64, b: u64) -> u64 {
    saturated::<T>(T::of(a).wide() + T::of(b).wide())
}
fn sub_saturated<T: Int>(a: u64, b: u64) -> u64 {
    saturated::<T>(T::of(a).wide() - T::of(b).wide())
}

/// The nearest value of a type.
pub(crate) fn saturated<T: Int>(value: i128) -> u64 {
    let unsigned = low(u64::MAX, T::BITS);
    let (least, most) = if T::of(unsigned) < T::ZERO {
        (-(1i128 << (T::BITS - 1)), (1i128 << (T::BITS - 1)) - 1)
    } else {
        (0, i128::from(unsigned))
    };
    T::of(value.clamp(least, most) as u64).bits()
}

/// An operation of two integers by its instruction's name.
pub(crate) fn two(name: &str, ty: Ty) -> Option<Two> {
    match name {
        "add" => for_int!(ty, add),
        "add.sat" => for_int!(ty, add_saturated),
        "sub" => for_int!(ty, sub),
        "sub.sat" => for_int!(ty, sub_saturated),
        "mul" => for_int!(ty, mul),
        "mul.hi" => for_int!(ty, mul_hi),
        "mul.wide" => for_int!(ty, mul_wide),
        "div" => for_int!(ty, div),
        "rem" => for_int!(ty, rem),
        "min" => for_int!(ty, min),
        "max" => for_int!(ty, max),
        "shl" => for_int!(ty, shl),
        "shr" => for_int!(ty, shr),
        "and" => Some(|a, b| a & b),
        "or" => Some(|a, b| a | b),
        "xor" => Some(|a, b| a ^ b),
        _ => None,
    }
}

fn neg<T: Int>(a: u64) -> u64 {
    T::ZERO.sub(T::of(a)).bits()
}
fn abs<T: Int>(a: u64) -> u64 {
    T::of(a).wide().unsigned_abs() as u64
}
fn not<T: Int>(a: u64) -> u64 {
    T::of(!a).bits()
}
fn cnot<T: Int>(a: u64) -> u64 {
    u64::from(T::of(a) == T::ZERO)
}
fn popc<T: Int>(a: u64) -> u64 {
    low(a, T::BITS).count_ones().into()
}
fn clz<T: Int>(a: u64) -> u64 {
    (low(a, T::BITS).leading_zeros() - (64 - T::BITS)).into()
}
fn brev<T: Int>(a: u64) -> u64 {
    low(a, T::BITS).reverse_bits() >> (64 - T::BITS)
}
/// The place of the highest bit that is not the sign.
fn bfind<T: Int>(a: u64) -> u64 {
    let value = T::of(a);
    let bits = low(if value < T::ZERO { !a } else { a }, T::BITS);
    if bits == 0 { u64::from(u32::MAX) } else { u64::from(63 - bits.leading_zeros()) }
}
/// How far left the highest bit that is not the sign is moved to be the top one.
fn bfind_shift<T: Int>(a: u64) -> u64 {
    let found = bfind::<T>(a);
    if found == u64::from(u32::MAX) { found } else { u64::from(T::BITS) - 1 - found }
}

/// An operation of one integer by its instruction's name.
pub(crate) fn one(name: &str, ty: Ty) -> Option<One> {
    match name {
        "not" if ty.kind == Kind::Predicate => Some(|a| a ^ 1),
        "neg" => for_int!(ty, neg),
        "abs" => for_int!(ty, abs),
        "not" => for_int!(ty, not),
        "cnot" => for_int!(ty, cnot),
        "popc" => for_int!(ty, popc),
        "clz" => for_int!(ty, clz),
        "brev" => for_int!(ty, brev),
        "bfind" => for_int!(ty, bfind),
        "bfind.shiftamt" => for_int!(ty, bfind_shift),
        _ => None,
    }
}

fn mad<T: Int>(a: u64, b: u64, c: u64) -> u64 {
    T::of(a).mul(T::of(b)).add(T::of(c)).bits()
}
fn mad_hi<T: Int>(a: u64, b: u64, c: u64) -> u64 {
    T::of(a).mul_hi(T::of(b)).add(T::of(c)).bits()
}
fn mad_wide<T: Int>(a: u64, b: u64, c: u64) -> u64 {
    let wide = T::of(a).mul_wide(T::of(b)).wrapping_add(c);
    low(wide, 2 * T::BITS)
}
fn sad<T: Int>(a: u64, b: u64, c: u64) -> u64 {
    let apart = (T::of(a).wide() - T::of(b).wide()).unsigned_abs() as u64;
    T::of(c.wrapping_add(apart)).bits()
}
fn bfe<T: Int>(a: u64, at: u64, len: u64) -> u64 {
    let (at, len) = ((at & 0xff) as u32, (len & 0xff) as u32);
    if len == 0 {
        return 0;
    }
    // Past the top, the field is filled with the sign: that of the field where it ends within.
    let top = (at + len - 1).min(T::BITS - 1);
    let negative = T::of(u64::MAX) < T::ZERO && (a >> top) & 1 == 1;
    let kept = len.min(T::BITS.saturating_sub(at));
    let field = if kept == 0 { 0 } else { low(a >> at, kept) };
    let sign = if negative && kept < 64 { u64::MAX << kept } else { 0 };
    T::of(field | sign).bits()
}

fn prmt(a: u64, b: u64, selectors: u64) -> u64 {
    let bytes = (low(b, 32) << 32) | low(a, 32);
    (0..4).fold(0, |result, i| {
        let selector = (selectors >> (4 * i)) & 0xf;
        let byte = (bytes >> (8 * (selector & 7))) & 0xff;
        let sign = if byte & 0x80 == 0 { 0 } else { 0xff };
        result | (if selector & 8 == 0 { byte } else { sign }) << (8 * i)
    })
}

fn shift_left(a: u64, b: u64, by: u64) -> u64 {
    let both = (low(b, 32) << 32) | low(a, 32);
    low((u128::from(both) << by >> 32) as u64, 32)
}
fn shift_right(a: u64, b: u64, by: u64) -> u64 {
    low(((low(b, 32) << 32) | low(a, 32)) >> by, 32)
}

/// The sum of four products of bytes.
fn dp4a<A: Int, B: Int>(a: u64, b: u64, c: u64) -> u64 {
    let products = (0..4).map(|i| A::of(a >> (8 * i)).wide() * B::of(b >> (8 * i)).wide());
    low((products.sum::<i128>() as u64).wrapping_add(c), 32)
}

/// An operation of three integers by its instruction's name.
pub(crate) fn three(name: &str, ty: Ty) -> Option<Three> {
    match name {
        "mad" => for_int!(ty, mad),
        "mad.hi" => for_int!(ty, mad_hi),
        "mad.wide" => for_int!(ty, mad_wide),
        "sad" => for_int!(ty, sad),
        "bfe" => for_int!(ty, bfe),
        "prmt" => Some(prmt),
        "shf.l.wrap" => Some(|a, b, by| shift_left(a, b, by & 31)),
        "shf.l.clamp" => Some(|a, b, by| shift_left(a, b, low(by, 32).min(32))),
        "shf.r.wrap" => Some(|a, b, by| shift_right(a, b, by & 31)),
        "shf.r.clamp" => Some(|a, b, by| shift_right(a, b, low(by, 32).min(32))),
        "selp" => Some(|a, b, p| if p & 1 == 1 { a } else { b }),
        "slct" => Some(|a, b, c| if c as i32 >= 0 { a } else { b }),
        "slct.f32" => Some(|a, b, c| if float_is_at_least_zero(c) { a } else { b }),
        _ => None,
    }
}

fn float_is_at_least_zero(bits: u64) -> bool {
    f32::from_bits(bits as u32) >= 0.0
}

pub(crate) fn dot(a: Ty, b: Ty) -> Option<Three> {
    match (a.kind, b.kind) {
        (Kind::Unsigned, Kind::Unsigned) => Some(dp4a::<u8, u8>),
        (Kind::Unsigned, Kind::Signed) => Some(dp4a::<u8, i8>),
        (Kind::Signed, Kind::Unsigned) => Some(dp4a::<i8, u8>),
        (Kind::Signed, Kind::Signed) => Some(dp4a::<i8, i8>),
        _ => None,
    }
}

fn insert<T: Int>(from: u64, into: u64, at: u64, len: u64) -> u64 {
    let at = (at & 0xff) as u32;
    let len = ((len & 0xff) as u32).min(T::BITS.saturating_sub(at));
    if len == 0 {
        return into;
    }
    let mask = low(u64::MAX, len) << at;
    (into & !mask) | ((from << at) & mask)
}

/// Sets a field of bits.
pub(crate) fn bfi(ty: Ty) -> Option<Four> {
    for_int!(ty, insert)
}

/// Any function of three bits, by its table.
pub(crate) fn lop3(a: u64, b: u64, c: u64, table: u64) -> u64 {
    let rows = (0..8).filter(|row| table >> row & 1 == 1);
    low(
        rows.fold(0, |result, row| {
            let pick = |value: u64, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
            result | (pick(a, 2) & pick(b, 1) & pick(c, 0))
        }),
        32,
    )
}

fn eq<T: Int>(a: u64, b: u64) -> u64 {
    (T::of(a) == T::of(b)).into()
}
fn ne<T: Int>(a: u64, b: u64) -> u64 {
    (T::of(a) != T::of(b)).into()
}
fn lt<T: Int>(a: u64, b: u64) -> u64 {
    (T::of(a) < T::of(b)).into()
}
fn le<T: Int>(a: u64, b: u64) -> u64 {
    (T::of(a) <= T::of(b)).into()
}
fn gt<T: Int>(a: u64, b: u64) -> u64 {
    (T::of(a) > T::of(b)).into()
}
fn ge<T: Int>(a: u64, b: u64) -> u64 {
    (T::of(a) >= T::of(b)).into()
}

pub(crate) fn compare(comparison: Comparison, ty: Ty) -> Option<Two> {
    match comparison {
        Comparison::Eq => for_int!(ty, eq),
        Comparison::Ne => for_int!(ty, ne),
        Comparison::Lt => for_int!(ty, lt),
        Comparison::Le => for_int!(ty, le),
        Comparison::Gt => for_int!(ty, gt),
        Comparison::Ge => for_int!(ty, ge),
        _ => None,
    }
}

fn atomic_add<T: Int>(old: u64, a: u64, _: u64) -> u64 {
    add::<T>(old, a)
}
fn atomic_min<T: Int>(old: u64, a: u64, _: u64) -> u64 {
    min::<T>(old, a)
}
fn atomic_max<T: Int>(old: u64, a: u64, _: u64) -> u64 {
    max::<T>(old, a)
}
fn swap<T: Int>(old: u64, a: u64, b: u64) -> u64 {
    if T::of(old) == T::of(a) { b } else { old }
}

/// What an atomic leaves in memory, of what was there and its operands.
pub(crate) fn atomic(name: &str, ty: Ty) -> Option<Three> {
    match (name, ty.kind, ty.bits) {
        ("add", Kind::Float, 32) => Some(|old, a, _| {
            (f32::from_bits(old as u32) + f32::from_bits(a as u32)).to_bits().into()
        }),
        ("add", Kind::Float, 64) => {
            Some(|old, a, _| (f64::from_bits(old) + f64::from_bits(a)).to_bits())
        }
        ("add", ..) => for_int!(ty, atomic_add),
        ("min", ..) => for_int!(ty, atomic_min),
        ("max", ..) => for_int!(ty, atomic_max),
        ("cas", ..) => for_int!(ty, swap),
        ("exch", ..) => Some(|_, a, _| a),
        ("and", ..) => Some(|old, a, _| old & a),
        ("or", ..) => Some(|old, a, _| old | a),
        ("xor", ..) => Some(|old, a, _| old ^ a),
        ("inc", _, 32) => {
            Some(|old, a, _| if low(old, 32) >= low(a, 32) { 0 } else { low(old, 32) + 1 })
        }
        ("dec", _, 32) => Some(|old, a, _| {
            let (old, a) = (low(old, 32), low(a, 32));
            if old == 0 || old > a { a } else { old - 1 }
        }),
        _ => None,
    }
}
