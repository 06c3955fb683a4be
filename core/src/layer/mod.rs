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
//! # Derivations
//! L is the loss, dy stands for dL/dy. By the chain rule `dx_j = sum_i dy_i (dy_i / dx_j)`, and each
//! `backward` is that sum for its layer's equation. Where y is linear in x, `dy_i / dx_j` is the factor
//! that x_j has in y_i: dx gathers, of every y that reads x_j, its dy times that factor, which makes
//! `backward` the adjoint of `forward`. Weights are factors as inputs are. A maximum is the number
//! that won, with factor 1. Where there is more to it, it stands at the `backward`.
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
mod embedding;
mod flatten;
mod global_avg_pool;
mod k_max_pool;
mod l2_normalise;
mod max_pool;
mod project;
mod quantise;
mod residual;
mod space_to_depth;
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
pub use embedding::Embedding;
pub use flatten::Flatten;
pub use global_avg_pool::GlobalAvgPool;
pub use k_max_pool::KMaxPool;
pub use l2_normalise::L2Normalise;
pub use max_pool::MaxPool;
pub use project::Project;
pub use quantise::Quantise;
pub use residual::{Projection, Residual};
pub use space_to_depth::SpaceToDepth;
pub use standardise::Standardise;
pub(crate) use sum::{sum, sum_pairs};
pub use window::Window;
pub(crate) use window::rows;

use crate::arena::{Dtype, Layout, Word};
use crate::shape::Shape;

/// Lengths of a layer's parameters; 0 where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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

/// Which of a layer's parameters. The numbers are those of the model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum Role {
    /// [`Tensors::weight`].
    Weight = 0,
    /// [`Tensors::bias`].
    Bias = 1,
    /// [`Tensors::mean`].
    Mean = 2,
    /// [`Tensors::variance`].
    Variance = 3,
}

impl Role {
    /// All roles, in the order in which parameters are stored.
    pub const ALL: [Self; 4] = [Self::Weight, Self::Bias, Self::Mean, Self::Variance];

    /// Whether gradients flow into it.
    pub const fn is_trained(self) -> bool {
        matches!(self, Self::Weight | Self::Bias)
    }
}

impl Tensors {
    /// No parameters.
    pub const NONE: Self = Self { weight: 0, bias: 0, mean: 0, variance: 0 };

    /// The length of one of them.
    pub const fn len(self, role: Role) -> u32 {
        match role {
            Role::Weight => self.weight,
            Role::Bias => self.bias,
            Role::Mean => self.mean,
            Role::Variance => self.variance,
        }
    }

    /// The sum of all; saturates.
    pub const fn total(self) -> u32 {
        self.weight
            .saturating_add(self.bias)
            .saturating_add(self.mean)
            .saturating_add(self.variance)
    }

    /// Bytes of all as f32, each rounded up to whole words: the scratch that widening takes.
    const fn widened(self) -> Option<usize> {
        let mut bytes = 0usize;
        let mut i = 0;
        while i < Role::ALL.len() {
            let Some(one) = (self.len(Role::ALL[i]) as usize).checked_mul(Dtype::F32.size()) else {
                return None;
            };
            let Some(sum) = bytes.checked_add(Word::round_up(one)) else { return None };
            bytes = sum;
            i += 1;
        }
        Some(bytes)
    }
}

/// One layer of a net. The set is closed: dispatch is static, planning is `const`, and each
/// variant has one stable tag in the model file (`format::tag`).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant is named after the type that it holds")]
pub enum Layer {
    Conv2d(Conv2d),
    BatchNorm(BatchNorm),
    Activation(Activation),
    MaxPool(MaxPool),
    AvgPool(AvgPool),
    GlobalAvgPool(GlobalAvgPool),
    Dense(Dense),
    Dropout(Dropout),
    Flatten(Flatten),
    Standardise(Standardise),
    L2Normalise(L2Normalise),
    AvgPoolTo(AvgPoolTo),
    ChannelStd(ChannelStd),
    Project(Project),
    Embedding(Embedding),
    KMaxPool(KMaxPool),
    SpaceToDepth(SpaceToDepth),
    Quantise(Quantise),
    Residual(Residual),
}

/// Rectified linear units: the layer that most nets name most often.
pub const RELU: Layer = Layer::Activation(Activation::Relu);

/// What a pass over a net must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Nothing: each activation dies when the next exists.
    Eval,
    /// As `Eval`, with weights stored in a narrower type, which are widened before use.
    Narrow,
    /// What the backward pass reads.
    Train,
}

/// What one layer asks of the planner. All sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The output's shape.
    pub out: Shape,
    /// The output's type.
    pub dtype: Dtype,
    /// The output's layout.
    pub layout: Layout,
    /// Whether the output may lie where the input lay.
    pub in_place: bool,
    /// Whether the output is the input under another shape, untouched.
    pub view: bool,
    /// Whether dx may lie where dy lay.
    pub gradient_in_place: bool,
    /// Whether backward reads the layer's own output, which must then not be overwritten.
    pub keeps_output: bool,
    /// Kept from forward to backward beside the output.
    pub saved: (u32, Dtype),
    /// Needed during forward only.
    pub forward_scratch: usize,
    /// Needed during backward only.
    pub backward_scratch: usize,
    /// What is added to the input.
    pub adds: Option<Residual>,
    /// How many layers further on the last residual addition of what this one reads comes; 0 where
    /// there is none. Until then that stays where it is.
    pub held: u8,
}

impl Needs {
    pub(crate) const fn moving(out: Shape) -> Self {
        Self {
            out,
            dtype: Dtype::F32,
            layout: Layout::Nchw,
            in_place: false,
            view: false,
            gradient_in_place: false,
            keeps_output: false,
            saved: (0, Dtype::F32),
            forward_scratch: 0,
            backward_scratch: 0,
            adds: None,
            held: 0,
        }
    }
}

impl Layer {
    /// Its name, as a table shows it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Conv2d(_) => "conv2d",
            Self::BatchNorm(_) => "batch_norm",
            Self::Activation(Activation::Relu) => "relu",
            Self::Activation(Activation::Relu6) => "relu6",
            Self::Activation(Activation::LeakyRelu { .. }) => "leaky_relu",
            Self::Activation(Activation::Tanh) => "tanh",
            Self::MaxPool(_) => "max_pool",
            Self::AvgPool(_) => "avg_pool",
            Self::GlobalAvgPool(_) => "global_avg_pool",
            Self::Dense(_) => "dense",
            Self::Dropout(_) => "dropout",
            Self::Flatten(_) => "flatten",
            Self::Standardise(_) => "standardise",
            Self::L2Normalise(_) => "l2_normalise",
            Self::AvgPoolTo(_) => "avg_pool_to",
            Self::ChannelStd(_) => "channel_std",
            Self::Project(_) => "project",
            Self::Embedding(_) => "embedding",
            Self::KMaxPool(_) => "k_max_pool",
            Self::SpaceToDepth(_) => "space_to_depth",
            Self::Quantise(_) => "quantise",
            Self::Residual(_) => "residual",
        }
    }

    /// The output's shape; `None` where the layer cannot take `x`.
    pub const fn output(&self, x: Shape) -> Option<Shape> {
        match self {
            Self::Conv2d(l) => l.output(x),
            Self::BatchNorm(l) => l.output(x),
            Self::Activation(l) => l.output(x),
            Self::MaxPool(l) => l.output(x),
            Self::AvgPool(l) => l.output(x),
            Self::GlobalAvgPool(l) => l.output(x),
            Self::Dense(l) => l.output(x),
            Self::Dropout(l) => l.output(x),
            Self::Flatten(l) => l.output(x),
            Self::Standardise(l) => l.output(x),
            Self::L2Normalise(l) => l.output(x),
            Self::AvgPoolTo(l) => l.output(x),
            Self::ChannelStd(l) => l.output(x),
            Self::Project(l) => l.output(x),
            Self::Embedding(l) => l.output(x),
            Self::KMaxPool(l) => l.output(x),
            Self::SpaceToDepth(l) => l.output(x),
            Self::Quantise(l) => l.output(x),
            Self::Residual(l) => l.output(x),
        }
    }

    /// The lengths of its parameters; `None` past 32 bits.
    pub const fn tensors(&self, x: Shape) -> Option<Tensors> {
        match self {
            Self::Conv2d(l) => l.tensors(x),
            Self::BatchNorm(l) => l.tensors(x),
            Self::Dense(l) => l.tensors(x),
            Self::Standardise(l) => l.tensors(x),
            Self::Embedding(l) => l.tensors(x),
            Self::Residual(l) => l.tensors(x),
            _ => Some(Tensors::NONE),
        }
    }

    /// Multiply-accumulates of one forward pass over `x`; 0 for layers that only move or scale.
    pub const fn macs(&self, x: Shape) -> u64 {
        let (Some(y), Some(t)) = (self.output(x), self.tensors(x)) else { return 0 };
        match self {
            Self::Conv2d(_) | Self::Residual(_) => y.n as u64 * t.weight as u64 * y.plane() as u64,
            Self::Dense(_) => y.n as u64 * t.weight as u64,
            _ => 0,
        }
    }

    /// What the reference asks of the planner; `None` where the layer cannot take `x`. What the chain
    /// around it asks for is not known here; see [`Chain::needs`](crate::plan::Chain::needs).
    pub const fn needs(&self, x: Shape, pass: Pass) -> Option<Needs> {
        let Some(out) = self.output(x) else { return None };
        let train = matches!(pass, Pass::Train);
        let mut moving = Needs::moving(out);
        if matches!(pass, Pass::Narrow) {
            let Some(tensors) = self.tensors(x) else { return None };
            let Some(bytes) = tensors.widened() else { return None };
            moving.forward_scratch = bytes;
        }
        let staying = Needs { in_place: true, gradient_in_place: true, ..moving };
        Some(match self {
            Self::Activation(_) | Self::Quantise(_) => Needs { keeps_output: train, ..staying },
            Self::Flatten(_) => Needs { view: true, ..staying },
            Self::Dropout(_) if !train => Needs { view: true, ..staying },
            Self::Dropout(_) | Self::Standardise(_) => staying,
            Self::Residual(l) => Needs { adds: Some(*l), ..staying },
            Self::L2Normalise(_) => {
                Needs { keeps_output: train, saved: (x.n, Dtype::F32), ..staying }
            }
            // Training reads x again, so y must lie elsewhere.
            Self::BatchNorm(_) if train => {
                Needs { in_place: false, saved: (x.c.saturating_mul(2), Dtype::F32), ..staying }
            }
            Self::BatchNorm(_) => staying,
            Self::MaxPool(_) if train => match out.len() {
                Some(len) => Needs { saved: (len, Dtype::U8), ..moving },
                None => return None,
            },
            Self::KMaxPool(_) if train => match out.len() {
                Some(len) => Needs { saved: (len, Dtype::U16), ..moving },
                None => return None,
            },
            Self::Conv2d(_)
            | Self::MaxPool(_)
            | Self::AvgPool(_)
            | Self::GlobalAvgPool(_)
            | Self::Dense(_)
            | Self::AvgPoolTo(_)
            | Self::ChannelStd(_)
            | Self::Project(_)
            | Self::Embedding(_)
            | Self::KMaxPool(_)
            | Self::SpaceToDepth(_) => moving,
        })
    }
}
