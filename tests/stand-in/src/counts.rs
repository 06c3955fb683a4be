//! How many instructions of each class a kernel ran.

/// A class of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Fused multiply-adds in f32.
    Fma,
    /// Other arithmetic on floats.
    Float,
    /// Integers, bits, comparisons, moves and conversions.
    Integer,
    /// Matrix products, each counted once in each of its 32 lanes.
    Mma,
    /// Loads from global memory.
    GlobalLoad,
    /// Stores to global memory.
    GlobalStore,
    /// Loads from shared memory, of matrices too.
    SharedLoad,
    /// Stores to shared memory.
    SharedStore,
    /// Asynchronous copies.
    Copy,
    /// Loads and stores elsewhere, or by generic addresses.
    OtherMemory,
    /// Atomics and reductions in memory.
    Atomic,
    /// Branches and ends.
    Control,
    /// Barriers and fences.
    Barrier,
    /// What the lanes of a warp do together, but for matrix products.
    Warp,
}

impl Class {
    /// All classes, with a name for tables.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::Fma, "fma"),
        (Self::Float, "float"),
        (Self::Integer, "integer"),
        (Self::Mma, "mma"),
        (Self::GlobalLoad, "global loads"),
        (Self::GlobalStore, "global stores"),
        (Self::SharedLoad, "shared loads"),
        (Self::SharedStore, "shared stores"),
        (Self::Copy, "copies"),
        (Self::OtherMemory, "other memory"),
        (Self::Atomic, "atomics"),
        (Self::Control, "control"),
        (Self::Barrier, "barriers"),
        (Self::Warp, "warp"),
    ];
}

/// Instructions that threads ran, by class, and kernels. What a predicate skips does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    by: [u64; Class::ALL.len()],
    launches: u64,
}

impl Counts {
    /// Instructions of a class.
    #[must_use]
    pub const fn of(&self, class: Class) -> u64 {
        self.by[class as usize]
    }

    /// All instructions.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by.iter().sum()
    }

    /// Kernels that were launched.
    #[must_use]
    pub const fn launches(&self) -> u64 {
        self.launches
    }

    pub(crate) const fn launch(&mut self, count: u64) {
        self.launches += count;
    }

    pub(crate) const fn add(&mut self, class: Class, count: u64) {
        self.by[class as usize] += count;
    }

    pub(crate) fn join(&mut self, other: &Self) {
        self.by.iter_mut().zip(other.by).for_each(|(mine, more)| *mine += more);
        self.launches += other.launches;
    }
}
