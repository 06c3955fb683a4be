//! Decoded PTX.

/// A module: its kernels, and what it asks of driver and device.
#[derive(Clone, Debug)]
pub struct Module {
    /// The PTX version, as (8, 2).
    pub version: (u32, u32),
    /// The least compute capability, times ten.
    pub target: u32,
    /// The kernels.
    pub kernels: Vec<Kernel>,
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub params: Vec<Param>,
    /// Bytes of all parameters.
    pub param_bytes: u32,
    /// Most threads of a block, where the kernel says so.
    pub threads: Option<u32>,
    /// Bytes of static shared memory, rounded up to 16: dynamic memory follows.
    pub shared: u32,
    pub(crate) registers: u32,
    pub(crate) local: u32,
    pub(crate) code: Vec<Instruction>,
    /// The statements as they were written, for messages.
    pub(crate) texts: Vec<String>,
}

/// A kernel's parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Where it lies among the parameters.
    pub at: u32,
    /// Its size.
    pub bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unsigned,
    Signed,
    Bits,
    Float,
    Predicate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ty {
    pub kind: Kind,
    pub bits: u32,
    /// f16x2 and tf32, which are 32 bits of something else.
    pub tf32: bool,
}

impl Ty {
    pub fn parse(text: &str) -> Option<Self> {
        let ty = |kind, bits| Some(Self { kind, bits, tf32: false });
        match text {
            "pred" => return ty(Kind::Predicate, 1),
            "tf32" => return Some(Self { kind: Kind::Float, bits: 32, tf32: true }),
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
            bits @ (8 | 16 | 32 | 64) => ty(kind, bits),
            _ => None,
        }
    }

    pub const fn bytes(self) -> u32 {
        self.bits / 8
    }
}

/// A register that is not written.
pub(crate) const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    Register(u32),
    /// The other of a predicate.
    Not(u32),
    Immediate(u64),
    Special(Special),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Special {
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    LanesBelow,
    Clock,
}

impl Special {
    pub fn parse(text: &str) -> Option<Self> {
        let axis = |text: &str| match text {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        match text {
            "%laneid" => return Some(Self::Lane),
            "%warpid" => return Some(Self::Warp),
            "%lanemask_lt" => return Some(Self::LanesBelow),
            "%clock" | "%clock64" => return Some(Self::Clock),
            _ => {}
        }
        let (name, of) = text.split_once('.')?;
        let of = axis(of)?;
        match name {
            "%tid" => Some(Self::Thread(of)),
            "%ntid" => Some(Self::Threads(of)),
            "%ctaid" => Some(Self::Block(of)),
            "%nctaid" => Some(Self::Blocks(of)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Value,
    pub offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    MinNan,
    MaxNan,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Copysign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Move,
    Neg,
    Abs,
    Not,
    Cnot,
    Popc,
    Clz,
    Brev,
    Bfind,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Tanh,
    Sin,
    Cos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ternary {
    Mad,
    MadHi,
    MadWide,
    Fma,
    Bfe,
    Prmt,
    ShfLeftWrap,
    ShfLeftClamp,
    ShfRightWrap,
    ShfRightClamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

impl Compare {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "eq" => Self::Eq,
            "ne" => Self::Ne,
            "lt" | "lo" => Self::Lt,
            "le" | "ls" => Self::Le,
            "gt" | "hi" => Self::Gt,
            "ge" | "hs" => Self::Ge,
            "equ" => Self::Equ,
            "neu" => Self::Neu,
            "ltu" => Self::Ltu,
            "leu" => Self::Leu,
            "gtu" => Self::Gtu,
            "geu" => Self::Geu,
            "num" => Self::Num,
            "nan" => Self::Nan,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
    Away,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    Exchange,
    Swap,
    And,
    Or,
    Xor,
    Inc,
    Dec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    Ballot,
    Any,
    All,
    Uniform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mma {
    Tf32K4,
    Tf32K8,
    F16K16,
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    /// A predicate and what it must be.
    pub guard: Option<(u32, bool)>,
    pub op: Op,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Binary {
        op: Binary,
        ty: Ty,
        ftz: bool,
        to: u32,
        a: Value,
        b: Value,
    },
    Unary {
        op: Unary,
        ty: Ty,
        ftz: bool,
        to: u32,
        a: Value,
    },
    Ternary {
        op: Ternary,
        ty: Ty,
        ftz: bool,
        to: u32,
        a: Value,
        b: Value,
        c: Value,
    },
    Bfi {
        ty: Ty,
        to: u32,
        from: Value,
        into: Value,
        at: Value,
        len: Value,
    },
    Lop3 {
        to: u32,
        a: Value,
        b: Value,
        c: Value,
        table: u8,
    },
    Select {
        to: u32,
        a: Value,
        b: Value,
        p: Value,
    },
    Compare {
        compare: Compare,
        ty: Ty,
        to: u32,
        inverse: u32,
        a: Value,
        b: Value,
        with: Option<(Binary, Value)>,
    },
    Test {
        finite: bool,
        infinite: bool,
        nan: bool,
        to: u32,
        a: Value,
    },
    Pack {
        bits: u32,
        to: u32,
        from: Vec<Value>,
    },
    Unpack {
        bits: u32,
        to: Vec<u32>,
        a: Value,
    },
    Cvta {
        space: Space,
        to_space: bool,
        to: u32,
        a: Value,
    },
    Convert {
        into: Ty,
        from: Ty,
        round: Round,
        integral: bool,
        saturate: bool,
        to: u32,
        a: Value,
    },
    Load {
        ty: Ty,
        space: Space,
        to: Vec<u32>,
        from: Address,
    },
    Store {
        ty: Ty,
        space: Space,
        to: Address,
        from: Vec<Value>,
    },
    Atomic {
        op: Atomic,
        ty: Ty,
        space: Space,
        to: u32,
        at: Address,
        a: Value,
        b: Value,
    },
    Copy {
        to: Address,
        from: Address,
        bytes: u32,
        read: Option<Value>,
    },
    CopyCommit,
    CopyWait(u32),
    Branch(u32),
    Exit,
    Trap,
    Nothing,
    Barrier {
        id: u32,
        count: Option<Value>,
    },
    WarpBarrier {
        mask: Value,
    },
    Shuffle {
        mode: Shuffle,
        to: u32,
        within: u32,
        a: Value,
        lane: Value,
        clamp: Value,
        mask: Value,
    },
    Vote {
        kind: Vote,
        to: u32,
        a: Value,
        mask: Value,
    },
    Redux {
        op: Atomic,
        ty: Ty,
        to: u32,
        a: Value,
        mask: Value,
    },
    ActiveMask {
        to: u32,
    },
    Mma {
        shape: Mma,
        to: Vec<u32>,
        a: Vec<Value>,
        b: Vec<Value>,
        c: Vec<Value>,
    },
    LoadMatrix {
        transposed: bool,
        to: Vec<u32>,
        from: Address,
    },
}
