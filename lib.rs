//! Forward, layer-wise learning of convolutional networks on the device itself.
#![no_std]
#![forbid(unsafe_code)]

#[doc(inline)]
pub use sepal_core::*;

/// Architectures, recipes, data sets and the host's trainer.
#[cfg(feature = "models")]
pub use sepal_models as models;
