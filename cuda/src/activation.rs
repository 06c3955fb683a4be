//! Activations, their rounding to 256 steps, and dropout.

use sepal_core::backend::Phase;
use sepal_core::error::Error;
use sepal_core::layer::{Activation, Dropout, Quantise};
use sepal_core::reference::layer_seed;
use sepal_core::shape::Shape;

use crate::gpu::{Address, Gpu, Launch, Source, args};
use crate::layers::{Backward, Forward, elements};

/// The kernels' number for no activation.
pub(crate) const AS_IT_IS: u32 = 4;

/// The number by which the kernels know an activation, and its slope.
pub(crate) const fn kind(l: Activation) -> (u32, f32) {
    match l {
        Activation::Relu => (0, 0.0),
        Activation::Relu6 => (1, 0.0),
        Activation::LeakyRelu { slope } => (2, slope),
        Activation::Tanh => (3, 0.0),
    }
}

pub(crate) fn forward(l: &Activation, f: &Forward<'_>) -> Result<(), Error> {
    let (len, (kind, slope)) = (elements(f.shape), kind(*l));
    f.gpu.launch(Source::Activation, "activation", Launch::over(len), args![f.y, len, kind, slope])
}

pub(crate) fn backward(l: &Activation, b: &Backward<'_>) -> Result<(), Error> {
    let (len, (kind, slope)) = (elements(b.shape), kind(*l));
    let args = args![b.y, b.dy, len, kind, slope];
    b.gpu.launch(Source::Activation, "activation_backward", Launch::over(len), args)
}

pub(crate) fn quantise(l: &Quantise, f: &Forward<'_>) -> Result<(), Error> {
    let len = elements(f.shape);
    let args = args![f.y, len, l.scale, f32::from(l.zero)];
    f.gpu.launch(Source::Activation, "quantise", Launch::over(len), args)
}

pub(crate) fn quantise_backward(l: &Quantise, b: &Backward<'_>) -> Result<(), Error> {
    let (len, zero) = (elements(b.shape), f32::from(l.zero));
    let [low, high] = [0.0, 255.0].map(|step| (step - zero) * l.scale);
    let args = args![b.y, b.dy, len, low, high];
    b.gpu.launch(Source::Activation, "quantise_backward", Launch::over(len), args)
}

pub(crate) fn dropout(l: &Dropout, f: &Forward<'_>) -> Result<(), Error> {
    drop_places(l, f.gpu, f.phase, f.index, f.shape, f.y)
}

pub(crate) fn dropout_backward(l: &Dropout, b: &Backward<'_>) -> Result<(), Error> {
    drop_places(l, b.gpu, b.phase, b.index, b.shape, b.dy)
}

/// Drops the same places of a value and of its gradient; nothing outside of training.
fn drop_places(
    l: &Dropout,
    gpu: &Gpu,
    phase: Phase,
    index: usize,
    shape: Shape,
    values: Address,
) -> Result<(), Error> {
    let Phase::Train { seed, update } = phase else { return Ok(()) };
    let seed = layer_seed(seed, index);
    let dropped = (f64::from(l.rate) * 4_294_967_296.0) as u32;
    let scale = 1.0 / (1.0 - l.rate);
    let (len, features) = (elements(shape), shape.sample().unwrap_or(0));
    let (low, high) = (seed as u32, (seed >> 32) as u32);
    let args = args![values, len, features, low, high, update, dropped, scale];
    gpu.launch(Source::Activation, "dropout", Launch::over(len), args)
}
