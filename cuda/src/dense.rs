//! Dense layers and random projections.

use sepal_core::error::Error;
use sepal_core::layer::{Dense, Pass, Project};
use sepal_core::shape::Shape;

use crate::layers::{Backward, Forward};

/// Scratch bytes, forward and backward.
pub(crate) fn scratch(_l: &Dense, _x: Shape, _pass: Pass) -> (usize, usize) {
    (0, 0)
}

pub(crate) fn forward(_l: &Dense, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("forward"))
}

pub(crate) fn backward(_l: &Dense, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("backward"))
}

pub(crate) fn project(_l: &Project, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("project"))
}

pub(crate) fn project_backward(_l: &Project, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("project_backward"))
}
