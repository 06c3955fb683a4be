//! Nearest neighbours: the one primitive behind SI, the losses and every score.

/// A neighbour: which row of the bank, and how far.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Nearest<T = f32> {
    /// The row; `u32::MAX` where there is none.
    pub index: u32,
    /// The squared Euclidean distance; infinite where there is no neighbour.
    pub dist2: T,
}

/// The nearest neighbour with the anchor's own label, and the nearest with another.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Pair<T = f32> {
    /// With the anchor's label.
    pub same: Nearest<T>,
    /// With another label.
    pub other: Nearest<T>,
}
