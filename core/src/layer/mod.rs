//! Layers: each a configuration, `forward` and a hand-derived `backward`.
//!
//! # Contract
//! The functions here work on slices and are the reference: plain loops, generic over [`Real`]
//! so that gradients are checked in `f64`. Slices have exactly the lengths that the docs give
//! (the planner sees to it); where a shape is impossible nothing is written.
//! Parameter gradients accumulate (`+=`), input gradients are overwritten, and `dx` is optional
//! because the first trained layer needs none. In-place layers overwrite y with its function,
//! and dy with dx.
//!
//! [`Real`]: crate::real::Real

mod activation;
mod avg_pool;
mod avg_pool_to;
mod batch_norm;
mod channel_std;
#[cfg(test)]
pub(crate) mod check;
mod conv2d;
mod dense;
mod dropout;
mod flatten;
mod global_avg_pool;
mod l2_normalise;
mod max_pool;
mod project;
mod standardise;
mod sum;
mod window;

pub use activation::Activation;
pub use avg_pool::AvgPool;
pub use avg_pool_to::AvgPoolTo;
pub use batch_norm::BatchNorm;
pub use channel_std::ChannelStd;
pub use conv2d::Conv2d;
pub use dense::Dense;
pub use dropout::Dropout;
pub use flatten::Flatten;
pub use global_avg_pool::GlobalAvgPool;
pub use l2_normalise::L2Normalise;
pub use max_pool::MaxPool;
pub use project::Project;
pub use standardise::Standardise;
pub(crate) use sum::{sum, sum_pairs};
pub use window::Window;
pub(crate) use window::rows;

/// Lengths of a layer's parameters; 0 where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tensors {
    /// Trained: weights, or the scale of a normalisation.
    pub weight: u32,
    /// Trained: biases, or the shift of a normalisation.
    pub bias: u32,
    /// Measured, not trained: running or calibrated means.
    pub mean: u32,
    /// Measured, not trained: running or calibrated variances.
    pub variance: u32,
}

impl Tensors {
    /// No parameters.
    pub const NONE: Self = Self { weight: 0, bias: 0, mean: 0, variance: 0 };
}
