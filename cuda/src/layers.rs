//! Which kernels a layer runs.

use sepal_core::backend::Phase;
use sepal_core::error::Error;
use sepal_core::layer::{Layer, Needs, Pass};
use sepal_core::shape::Shape;

use crate::gpu::{Address, Gpu};
use crate::{activation, conv, dense, moving, norm, pool};

/// A layer's forward call, its slots resolved. In-place layers find their input in `y`, and `x`
/// is `y`. Tensors that the layer does not have lie nowhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forward<'a> {
    pub gpu: &'a Gpu,
    /// The layer's number in its chain.
    pub index: usize,
    /// The input's shape.
    pub shape: Shape,
    /// The output's shape.
    pub out: Shape,
    pub phase: Phase,
    pub x: Address,
    pub y: Address,
    pub saved: Address,
    pub weight: Address,
    pub bias: Address,
    pub mean: Address,
    pub variance: Address,
}

/// A layer's backward call. Layers whose gradient is in place find dy at `dy` and leave dx there.
/// Parameter gradients are added to, `dx` is overwritten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backward<'a> {
    pub gpu: &'a Gpu,
    /// The layer's number in its chain.
    pub index: usize,
    /// The input's shape.
    pub shape: Shape,
    /// The output's shape.
    pub out: Shape,
    pub phase: Phase,
    pub x: Address,
    pub y: Address,
    pub saved: Address,
    pub scratch: Address,
    pub weight: Address,
    pub variance: Address,
    pub dweight: Address,
    pub dbias: Address,
    pub dy: Address,
    /// Nowhere where nobody wants it.
    pub dx: Address,
}

/// Elements of a tensor. What was planned fits 32 bits.
pub(crate) fn elements(shape: Shape) -> u32 {
    shape.len().unwrap_or(0)
}

/// What a layer asks of the planner: the reference's needs, and the scratch of its kernels.
/// Weights in narrow types are widened when they are uploaded, so no pass needs room for that.
pub(crate) fn needs(layer: &Layer, x: Shape, pass: Pass) -> Option<Needs> {
    let pass = if pass == Pass::Narrow { Pass::Eval } else { pass };
    let needs = layer.needs(x, pass)?;
    let backward_scratch = match layer {
        Layer::Conv2d(l) => conv::scratch(l, x, pass),
        _ => 0,
    };
    Some(Needs { backward_scratch, ..needs })
}

pub(crate) fn forward(layer: &Layer, f: &Forward<'_>) -> Result<(), Error> {
    match layer {
        Layer::Conv2d(l) => conv::forward(l, f),
        Layer::Dense(l) => dense::forward(l, f),
        Layer::Project(l) => dense::project(l, f),
        Layer::BatchNorm(l) => norm::batch_norm(l, f),
        Layer::Standardise(l) => norm::standardise(l, f),
        Layer::L2Normalise(l) => norm::l2_normalise(l, f),
        Layer::ChannelStd(l) => norm::channel_std(l, f),
        Layer::Activation(l) => activation::forward(l, f),
        Layer::Quantise(l) => activation::quantise(l, f),
        Layer::Dropout(l) => activation::dropout(l, f),
        Layer::MaxPool(l) => pool::max(l, f),
        Layer::KMaxPool(l) => pool::k_max(l, f),
        Layer::AvgPool(l) => pool::avg(l, f),
        Layer::AvgPoolTo(l) => pool::avg_to(l, f),
        Layer::GlobalAvgPool(l) => pool::global_avg(l, f),
        Layer::Embedding(l) => moving::embedding(l, f),
        Layer::SpaceToDepth(l) => moving::space_to_depth(l, f),
        Layer::Flatten(_) => Ok(()),
        _ => Err(Error::Unsupported("this layer")),
    }
}

pub(crate) fn backward(layer: &Layer, b: &Backward<'_>) -> Result<(), Error> {
    match layer {
        Layer::Conv2d(l) => conv::backward(l, b),
        Layer::Dense(l) => dense::backward(l, b),
        Layer::BatchNorm(l) => norm::batch_norm_backward(l, b),
        Layer::Standardise(l) => norm::standardise_backward(l, b),
        Layer::L2Normalise(l) => norm::l2_normalise_backward(l, b),
        Layer::Activation(l) => activation::backward(l, b),
        Layer::Quantise(l) => activation::quantise_backward(l, b),
        Layer::Dropout(l) => activation::dropout_backward(l, b),
        Layer::Embedding(l) => moving::embedding_backward(l, b),
        Layer::Flatten(_) => Ok(()),
        // The others have no parameters: without dx there is nothing to do.
        _ if b.dx.is_none() => Ok(()),
        Layer::Project(l) => dense::project_backward(l, b),
        Layer::ChannelStd(l) => norm::channel_std_backward(l, b),
        Layer::MaxPool(l) => pool::max_backward(l, b),
        Layer::KMaxPool(l) => pool::k_max_backward(l, b),
        Layer::AvgPool(l) => pool::avg_backward(l, b),
        Layer::AvgPoolTo(l) => pool::avg_to_backward(l, b),
        Layer::GlobalAvgPool(l) => pool::global_avg_backward(l, b),
        Layer::SpaceToDepth(l) => moving::space_to_depth_backward(l, b),
        _ => Err(Error::Unsupported("the gradient of this layer")),
    }
}
