//! Decoded PTX: what the interpreter runs.

use crate::arithmetic::convert::Convert;
use crate::arithmetic::{Four, One, Three, Two};
use crate::counts::Class;
use crate::memory::Memory;

/// A module: its kernels, and what it asks of driver and device.
#[derive(Clone, Debug)]
pub struct Module {
    /// The PTX version, as (8, 2).
    pub version: (u32, u32),
    /// The least compute capability, times ten.
    pub target: u32,
    /// The kernels.
    pub kernels: Vec<Kernel>,
    pub(crate) globals: Vec<Global>,
}

impl Module {
    /// A kernel by its name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// Puts the module's own arrays into device memory. Kernels that use some run only after it.
    pub fn place(&mut self, memory: &mut Memory) {
        for global in &mut self.globals {
            global.at = memory.allocate_written(global.bytes.clone());
        }
        for kernel in &mut self.kernels {
            for &(constant, global) in &kernel.symbols {
                kernel.constants[constant as usize] = self.globals[global as usize].at;
            }
        }
    }

    /// Gives back the memory of the module's own arrays.
    pub(crate) fn remove(self, memory: &mut Memory) {
        self.globals.iter().for_each(|global| {
            memory.free(global.at);
        });
    }

    /// Address and size of one of the module's own arrays, once [placed](Self::place).
    #[must_use]
    pub fn global(&self, name: &str) -> Option<(u64, usize)> {
        self.globals.iter().find(|g| g.name == name).map(|g| (g.at, g.bytes.len()))
    }
}

/// An array of a module, in global or in constant memory.
#[derive(Clone, Debug)]
pub(crate) struct Global {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Its address, once placed.
    pub at: u64,
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
    /// Bytes of a thread's own memory.
    pub local: u32,
    /// A thread's frame: registers, then special registers, then constants.
    pub(crate) registers: u32,
    pub(crate) specials: Vec<Special>,
    pub(crate) constants: Vec<u64>,
    /// Which constants are addresses of the module's arrays.
    pub(crate) symbols: Vec<(u32, u32)>,
    pub(crate) code: Vec<Instruction>,
    /// The classes of the instructions.
    pub(crate) classes: Vec<Class>,
    /// The statements as they were written, for messages.
    pub(crate) texts: Vec<String>,
}

impl Kernel {
    /// Lays out parameters, given as the bytes of each.
    ///
    /// # Panics
    /// Where their number or a size differs from the kernel's.
    #[must_use]
    pub fn pack(&self, values: &[&[u8]]) -> Vec<u8> {
        assert_eq!(values.len(), self.params.len(), "parameters of {}", self.name);
        let mut packed = vec![0; self.param_bytes as usize];
        for (param, value) in self.params.iter().zip(values) {
            assert_eq!(value.len(), param.bytes as usize, "bytes of {}", param.name);
            packed[param.at as usize..][..value.len()].copy_from_slice(value);
        }
        packed
    }
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

/// A place in a thread's frame.
pub(crate) type Slot = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    Warps,
    LanesEqual,
    LanesBelow,
    LanesUpTo,
    LanesAbove,
    LanesFrom,
    Multiprocessor,
    DynamicShared,
    TotalShared,
}

impl Special {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "%laneid" => Self::Lane,
            "%warpid" => Self::Warp,
            "%nwarpid" => Self::Warps,
            "%lanemask_eq" => Self::LanesEqual,
            "%lanemask_lt" => Self::LanesBelow,
            "%lanemask_le" => Self::LanesUpTo,
            "%lanemask_gt" => Self::LanesAbove,
            "%lanemask_ge" => Self::LanesFrom,
            "%smid" => Self::Multiprocessor,
            "%dynamic_smem_size" => Self::DynamicShared,
            "%total_smem_size" => Self::TotalShared,
            _ => {
                let (name, axis) = text.split_once('.')?;
                let axis = ["x", "y", "z"].iter().position(|a| *a == axis)? as u8;
                match name {
                    "%tid" => Self::Thread(axis),
                    "%ntid" => Self::Threads(axis),
                    "%ctaid" => Self::Block(axis),
                    "%nctaid" => Self::Blocks(axis),
                    _ => return None,
                }
            }
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Slot,
    pub offset: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// How memory is read or written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub space: Space,
    /// Bits of one element.
    pub bits: u8,
    /// Elements.
    pub count: u8,
    /// Volatile and relaxed accesses order as atomics do.
    pub strong: bool,
    /// Read through a cache that sees nothing of what this launch writes.
    pub cached: bool,
    /// Elements are extended by their sign.
    pub signed: bool,
}

impl Access {
    pub const fn bytes(self) -> usize {
        self.bits as usize / 8 * self.count as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    Sync,
    /// Does not wait.
    Arrive,
    /// Counts threads whose predicate is set.
    Count,
    All,
    Any,
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
    F16K8,
    F16K16,
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    /// A predicate and what it must be.
    pub guard: Option<(Slot, bool)>,
    pub op: Op,
}

// Threads run long stretches of code each, so it has to be small.
const _: () = assert!(size_of::<Instruction>() <= 48);

/// An operation. Each of its operands is a place in the thread's frame.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// `a b + c` in f32, which is most of what kernels do.
    Fma {
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    One {
        f: One,
        to: Slot,
        a: Slot,
    },
    Two {
        f: Two,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    Three {
        f: Three,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Four {
        f: Four,
        to: Slot,
        operands: [Slot; 4],
    },
    Compare(Box<Compare>),
    Convert {
        convert: Box<Convert>,
        to: Slot,
        a: Slot,
    },
    Pack {
        bits: u32,
        to: Slot,
        count: u8,
        from: [Slot; 4],
    },
    Unpack {
        bits: u32,
        to: [Slot; 4],
        count: u8,
        a: Slot,
    },
    Clock {
        to: Slot,
    },
    Load {
        access: Access,
        to: [Slot; 4],
        from: Address,
    },
    Store {
        access: Access,
        to: Address,
        from: [Slot; 4],
    },
    Atomic {
        f: Three,
        access: Access,
        to: Slot,
        at: Address,
        a: Slot,
        b: Slot,
    },
    Copy {
        to: Address,
        from: Address,
        bytes: u32,
        read: Option<Slot>,
    },
    CopyCommit,
    /// Waits until so many groups are left.
    CopyWait(u32),
    CopyWaitAll,
    Branch(u32),
    /// A branch by a table.
    Switch {
        index: Slot,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    Nothing,
    Barrier {
        kind: Barrier,
        id: Slot,
        count: Option<Slot>,
        to: Slot,
        a: Slot,
        inverted: bool,
    },
    WarpBarrier {
        mask: Slot,
    },
    Shuffle {
        mode: Shuffle,
        to: Slot,
        within: Slot,
        a: Slot,
        lane: Slot,
        clamp: Slot,
        mask: Slot,
    },
    Vote {
        kind: Vote,
        to: Slot,
        a: Slot,
        inverted: bool,
        mask: Slot,
    },
    /// Which lanes hold the same value: of all, or one's own.
    Match {
        bits: u32,
        all: bool,
        to: Slot,
        same: Slot,
        a: Slot,
        mask: Slot,
    },
    Redux {
        f: Two,
        to: Slot,
        a: Slot,
        mask: Slot,
    },
    ActiveMask {
        to: Slot,
    },
    Multiply(Box<Multiply>),
    LoadMatrix {
        transposed: bool,
        count: u8,
        to: [Slot; 4],
        from: Address,
    },
}

/// A comparison with a second result, or combined with a predicate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compare {
    pub f: Two,
    pub to: Slot,
    pub inverse: Slot,
    pub a: Slot,
    pub b: Slot,
    pub with: Option<(Two, Slot, bool)>,
}

/// A product of matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Multiply {
    pub shape: Mma,
    pub to: [Slot; 4],
    pub a: [Slot; 4],
    pub b: [Slot; 2],
    pub c: [Slot; 4],
}
