//! Convolutions.

use sepal_core::error::Error;
use sepal_core::layer::{Conv2d, Pass};
use sepal_core::shape::Shape;

use crate::layers::{Backward, Forward};

/// Scratch bytes, forward and backward.
pub(crate) fn scratch(_l: &Conv2d, _x: Shape, _pass: Pass) -> (usize, usize) {
    (0, 0)
}

pub(crate) fn forward(_l: &Conv2d, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("forward"))
}

pub(crate) fn backward(_l: &Conv2d, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("backward"))
}
