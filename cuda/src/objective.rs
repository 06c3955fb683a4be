//! Objectives: neighbours, value, count and gradient, of which only scalars come back.

use std::sync::Arc;

use sepal_core::backend::ObjectivePlace;
use sepal_core::error::Error;
use sepal_core::loss::Score;
use sepal_core::shape::Shape;
use sepal_core::stage::Objective;

use crate::gpu::Gpu;
use crate::memory::Memory;

/// Scratch bytes of an objective over `features`.
pub(crate) fn scratch(_objective: &Objective, _features: Shape) -> usize {
    0
}

pub(crate) fn run(
    _gpu: &Arc<Gpu>,
    _memory: &Memory,
    _objective: &Objective,
    _at: &ObjectivePlace,
) -> Result<Score, Error> {
    Err(Error::Unsupported("objective"))
}
