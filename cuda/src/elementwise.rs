//! Samples as the net takes them.

use sepal_core::error::Error;
use sepal_core::net::Normalisation;
use sepal_core::shape::Shape;

use crate::gpu::{Address, Gpu, Launch, Source, args};
use crate::layers::elements;

/// Raw samples, bytes or f32, as the net's input; in place where both addresses are one.
pub(crate) fn widen(
    gpu: &Gpu,
    (from, bytes): (Address, bool),
    norm: &Normalisation,
    shape: Shape,
    to: Address,
) -> Result<(), Error> {
    let (len, plane, channels) = (elements(shape), shape.plane(), shape.c);
    let entries = core::array::from_fn(|c| norm.affine(c, channels as usize, bytes));
    let [(f0, s0), (f1, s1), (f2, s2), (f3, s3)] = entries;
    let name = if bytes { "widen_bytes" } else { "widen_numbers" };
    let args = args![from, to, len, plane, channels, f0, f1, f2, f3, s0, s1, s2, s3];
    gpu.launch(Source::Elementwise, name, Launch::over(len), args)
}
