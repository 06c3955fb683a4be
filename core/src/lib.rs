//! The core of sepal: forward, layer-wise learning without `std` and without a heap.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod arena;
pub mod backend;
pub mod error;
#[cfg(feature = "format")]
pub mod format;
pub mod infer;
pub mod init;
pub mod layer;
pub mod loss;
pub mod neighbour;
pub mod net;
pub mod optim;
pub mod plan;
pub mod real;
pub mod reference;
pub mod rng;
pub mod schedule;
pub mod shape;
pub mod si;
pub mod source;
pub mod stage;
pub mod strategy;
pub mod train;
