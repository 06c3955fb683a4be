//! Layers that look up or move elements.

use sepal_core::error::Error;
use sepal_core::layer::{Embedding, SpaceToDepth};

use crate::gpu::{Launch, Source, args};
use crate::layers::{Backward, Forward, elements};

pub(crate) fn embedding(l: &Embedding, f: &Forward<'_>) -> Result<(), Error> {
    let len = elements(f.out);
    let args = args![f.x, f.weight, f.y, len, f.shape.plane(), l.dim, l.tokens];
    f.gpu.launch(Source::Moving, "embedding", Launch::over(len), args)
}

/// Numbers of a vector that a block sums: SOME of the kernel.
const SOME: u32 = 8;

/// Tokens have no gradient: where one is asked for it is 0.
pub(crate) fn embedding_backward(l: &Embedding, b: &Backward<'_>) -> Result<(), Error> {
    let launch = Launch::blocks(l.tokens.saturating_mul(l.dim.div_ceil(SOME)), 256);
    let args = args![b.x, b.dy, b.dweight, b.shape.n, b.shape.plane(), l.dim, l.tokens];
    b.gpu.launch(Source::Moving, "embedding_backward", launch, args)?;
    if b.dx.is_none() {
        return Ok(());
    }
    b.gpu.set(b.dx, 0, elements(b.shape) as usize * size_of::<f32>())
}

pub(crate) fn space_to_depth(l: &SpaceToDepth, f: &Forward<'_>) -> Result<(), Error> {
    let len = elements(f.out);
    let args = args![f.x, f.y, len, f.shape.c, f.shape.h, f.shape.w, u32::from(l.factor)];
    f.gpu.launch(Source::Moving, "space_to_depth", Launch::over(len), args)
}

pub(crate) fn space_to_depth_backward(l: &SpaceToDepth, b: &Backward<'_>) -> Result<(), Error> {
    let len = elements(b.out);
    let args = args![b.dy, b.dx, len, b.shape.c, b.shape.h, b.shape.w, u32::from(l.factor)];
    b.gpu.launch(Source::Moving, "space_to_depth_backward", Launch::over(len), args)
}
