//! Samples as the net takes them.

use sepal_core::error::Error;
use sepal_core::net::Normalisation;
use sepal_core::shape::Shape;

use crate::gpu::{Address, Gpu};

/// Raw samples, bytes or f32, as the net's input; in place where both addresses are one.
pub(crate) fn widen(
    _gpu: &Gpu,
    (_from, _bytes): (Address, bool),
    _norm: &Normalisation,
    _shape: Shape,
    _to: Address,
) -> Result<(), Error> {
    Err(Error::Unsupported("widen"))
}
