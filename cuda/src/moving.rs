//! Layers that look up or move elements.

use sepal_core::error::Error;
use sepal_core::layer::{Embedding, Pass, SpaceToDepth};
use sepal_core::shape::Shape;

use crate::layers::{Backward, Forward};

/// Scratch bytes, forward and backward.
pub(crate) fn embedding_scratch(_l: &Embedding, _x: Shape, _pass: Pass) -> (usize, usize) {
    (0, 0)
}

pub(crate) fn embedding(_l: &Embedding, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("embedding"))
}

pub(crate) fn embedding_backward(_l: &Embedding, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("embedding_backward"))
}

pub(crate) fn space_to_depth(_l: &SpaceToDepth, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("space_to_depth"))
}

pub(crate) fn space_to_depth_backward(_l: &SpaceToDepth, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("space_to_depth_backward"))
}
