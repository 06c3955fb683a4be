//! The core of sepal: forward, layer-wise learning without `std` and without a heap.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod layer;
pub mod loss;
pub mod neighbour;
pub mod optim;
pub mod real;
pub mod rng;
pub mod schedule;
pub mod shape;
pub mod source;
