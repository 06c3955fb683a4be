//! Optimisers.

use sepal_core::error::Error;
use sepal_core::optim::Rule;

use crate::gpu::{Address, Gpu};

/// One update, counted from 1, of `len` parameters from their gradients and state.
pub(crate) fn update(
    _gpu: &Gpu,
    _rule: &Rule,
    (_rate, _update): (f32, u32),
    _len: u32,
    [_p, _g, _first, _second]: [Address; 4],
) -> Result<(), Error> {
    Err(Error::Unsupported("update"))
}
