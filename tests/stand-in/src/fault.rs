//! What a kernel did wrong.

use std::fmt;

/// An allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its address.
    pub at: u64,
    /// Its length in bytes.
    pub bytes: usize,
    /// Whether it was given back since.
    pub freed: bool,
}

/// What a kernel did wrong. The interpreter stops at the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An access outside of what is allocated.
    OutOfBounds {
        /// The address space.
        space: &'static str,
        /// The address, or the offset in the space.
        at: u64,
        /// Its width.
        bytes: u32,
        /// The allocation that it missed.
        region: Option<Region>,
    },
    /// An address that is no multiple of the access' width.
    Misaligned {
        /// The address.
        at: u64,
        /// The width.
        bytes: u32,
    },
    /// Memory is read that nobody wrote, or whose asynchronous copy was not waited for.
    Uninitialised {
        /// The address space.
        space: &'static str,
        /// The address, or the offset in the space.
        at: u64,
        /// The allocation that it is in.
        region: Option<Region>,
    },
    /// Two threads of a block meet at a word of shared memory, one of them writing, without a
    /// barrier between them.
    SharedRace {
        /// The offset.
        at: u64,
        /// The thread that came first.
        earlier: u32,
    },
    /// Two threads of a launch meet at a word of global memory, one of them writing, without a
    /// barrier between them.
    GlobalRace {
        /// The address.
        at: u64,
        /// Block and thread that came first.
        earlier: (u32, u32),
    },
    /// The cache for constant data is asked for what this launch wrote.
    Stale {
        /// The address.
        at: u64,
    },
    /// Threads of one warp or block wait at different places for each other, or a collective
    /// names a thread that does not take part.
    Divergence(String),
    /// No thread can go on; what they wait for.
    Deadlock(String),
    /// A thread does not come to an end.
    Endless,
    /// `trap` was reached.
    Trap,
    /// A branch by a table goes past the table.
    Branch(u64),
    /// A launch that the device does not take: its shape, its parameters or its memory.
    Launch(String),
    /// A fault, and where it happened.
    At {
        /// The kernel.
        kernel: String,
        /// The statement.
        statement: String,
        /// The block.
        block: [u32; 3],
        /// The thread, counted within the block.
        thread: u32,
        /// What happened.
        fault: Box<Fault>,
    },
}

impl Fault {
    /// The fault itself, without its place.
    #[must_use]
    pub fn kind(&self) -> &Self {
        match self {
            Self::At { fault, .. } => fault.kind(),
            other => other,
        }
    }
}

struct In(Option<Region>);

impl fmt::Display for In {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Region { at, bytes, freed }) = self.0 else { return Ok(()) };
        let freed = if freed { ", which was freed" } else { "" };
        write!(f, " (by the allocation of {bytes} bytes at {at:#x}{freed})")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBounds { space, at, bytes, region } => write!(
                f,
                "{bytes} bytes of {space} memory at {at:#x} are out of bounds{}",
                In(*region)
            ),
            Self::Misaligned { at, bytes } => {
                write!(f, "an access of {bytes} bytes at {at:#x} is misaligned")
            }
            Self::Uninitialised { space, at, region } => {
                write!(f, "{space} memory at {at:#x} is read and was not written{}", In(*region))
            }
            Self::SharedRace { at, earlier } => {
                write!(f, "races with thread {earlier} at byte {at:#x} of shared memory")
            }
            Self::GlobalRace { at, earlier: (block, thread) } => {
                write!(f, "races with thread {thread} of block number {block} at {at:#x}")
            }
            Self::Stale { at } => {
                write!(f, "memory at {at:#x} is read as constant and was written by this launch")
            }
            Self::Divergence(what) => write!(f, "divergence: {what}"),
            Self::Deadlock(what) => write!(f, "no thread can go on: {what}"),
            Self::Endless => write!(f, "the thread does not end"),
            Self::Trap => write!(f, "trap"),
            Self::Branch(index) => write!(f, "branch {index} is not in the table"),
            Self::Launch(what) => write!(f, "the launch is refused: {what}"),
            Self::At { kernel, statement, block: [x, y, z], thread, fault } => {
                write!(
                    f,
                    "{kernel}, block ({x}, {y}, {z}), thread {thread}, `{statement}`: {fault}"
                )
            }
        }
    }
}

impl std::error::Error for Fault {}
