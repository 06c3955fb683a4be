//! What instructions compute that touch neither memory nor other threads.
//!
//! Each is a function of the bits of its operands, chosen once by the operation's form. Operands
//! are cut to their type when they are read, so a result may carry a sign above its own width.

pub(crate) mod convert;
pub(crate) mod float;
pub(crate) mod half;
pub(crate) mod integer;

pub(crate) type One = fn(u64) -> u64;
pub(crate) type Two = fn(u64, u64) -> u64;
pub(crate) type Three = fn(u64, u64, u64) -> u64;
pub(crate) type Four = fn(u64, u64, u64, u64) -> u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unsigned,
    Signed,
    Bits,
    Float,
    /// Two halves in 32 bits.
    Halves,
    Tf32,
    Predicate,
}

/// A type of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ty {
    pub kind: Kind,
    pub bits: u32,
}

impl Ty {
    pub fn parse(text: &str) -> Option<Self> {
        let ty = |kind, bits| Some(Self { kind, bits });
        match text {
            "pred" => return ty(Kind::Predicate, 1),
            "tf32" => return ty(Kind::Tf32, 32),
            "f16x2" => return ty(Kind::Halves, 32),
            _ => {}
        }
        let kind = match text.as_bytes().first()? {
            b'u' => Kind::Unsigned,
            b's' => Kind::Signed,
            b'b' => Kind::Bits,
            b'f' => Kind::Float,
            _ => return None,
        };
        match text.get(1..)?.parse().ok()? {
            8 if kind == Kind::Float => None,
            bits @ (8 | 16 | 32 | 64) => ty(kind, bits),
            _ => None,
        }
    }

    pub const fn bytes(self) -> u32 {
        self.bits.div_ceil(8)
    }

    pub const fn is_float(self) -> bool {
        matches!(self.kind, Kind::Float | Kind::Halves | Kind::Tf32)
    }
}

/// How a comparison is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The same, and true where an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

impl Comparison {
    pub const NAMES: [(&'static str, Self); 18] = [
        ("eq", Self::Eq),
        ("ne", Self::Ne),
        ("lt", Self::Lt),
        ("le", Self::Le),
        ("gt", Self::Gt),
        ("ge", Self::Ge),
        ("lo", Self::Lt),
        ("ls", Self::Le),
        ("hi", Self::Gt),
        ("hs", Self::Ge),
        ("equ", Self::Equ),
        ("neu", Self::Neu),
        ("ltu", Self::Ltu),
        ("leu", Self::Leu),
        ("gtu", Self::Gtu),
        ("geu", Self::Geu),
        ("num", Self::Num),
        ("nan", Self::Nan),
    ];
}

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
    /// To nearest, ties away from zero.
    Away,
}

pub(crate) const fn low(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}
