//! What a kernel did wrong.

use std::fmt;

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
    },
    /// Two threads of a block meet at a word of shared memory, one of them writing, without a
    /// barrier between them.
    SharedRace {
        /// The offset.
        at: u64,
        /// The two threads.
        threads: (u32, u32),
    },
    /// Two threads of a launch meet at a word of global memory, one of them writing.
    GlobalRace {
        /// The address.
        at: u64,
        /// Block and thread of the earlier access.
        other: (u32, u32),
        /// Block and thread of the later one.
        thread: (u32, u32),
    },
    /// Threads of one warp or block wait at different places for each other, or a collective
    /// names a thread that does not take part.
    Divergence(String),
    /// No thread can go on.
    Deadlock,
    /// `trap` was reached.
    Trap,
    /// A launch that the device does not take: its shape, or its shared memory.
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
    pub fn kind(&self) -> &Self {
        match self {
            Self::At { fault, .. } => fault.kind(),
            other => other,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBounds { space, at, bytes } => {
                write!(f, "{bytes} bytes of {space} memory at {at:#x} are out of bounds")
            }
            Self::Misaligned { at, bytes } => {
                write!(f, "an access of {bytes} bytes at {at:#x} is misaligned")
            }
            Self::Uninitialised { space, at } => {
                write!(f, "{space} memory at {at:#x} is read and was not written")
            }
            Self::SharedRace { at, threads: (a, b) } => {
                write!(f, "threads {a} and {b} race at byte {at:#x} of shared memory")
            }
            Self::GlobalRace { at, other, thread } => write!(
                f,
                "thread {} of block {} and thread {} of block {} race at {at:#x}",
                other.1, other.0, thread.1, thread.0
            ),
            Self::Divergence(what) => write!(f, "divergence: {what}"),
            Self::Deadlock => write!(f, "no thread can go on"),
            Self::Trap => write!(f, "trap"),
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
