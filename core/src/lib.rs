//! The core of sepal: forward, layer-wise learning without `std` and without a heap.
//!
//! Nets are data ([`net`], [`layer`]), memory is lent by the caller ([`arena`]) and cut by
//! arithmetic on shapes ([`plan`]), and everything is computed by a [`backend`], of which the
//! [`mod@reference`] is the specification. [`infer`] runs a net, [`train`] trains a stage of it,
//! step by step; [`stage`] and [`strategy`] say which and in which order. [`neighbour`] is the
//! primitive behind the Separation Index ([`si`]) and the losses ([`loss`]). A device keeps samples
//! of its own in a [`reservoir`], and learns new classes from a few of them by [`prototypes`].
//!
//! # Contract
//! Nothing here allocates, and nothing panics on any input. Shapes are checked when a plan is
//! made; errors are small values that carry the numbers which explain them. The same backend, seed
//! and data give the same bits. Functions of mathematics come from libm on every target, so the
//! reference gives the same bits on every target with IEEE 754 arithmetic.
//!
//! # Features
//! | feature | what it adds | what it costs |
//! |---|---|---|
//! | `serde` | serde on every type that describes a model | serde |
//! | `format` | the model file and checkpoints | serde, postcard, crc |
//! | `flash` | updated weights kept in flash, safe against power loss | embedded-storage, crc |
//! | `f16` | weights stored and rows searched in half precision | half |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod arena;
pub mod backend;
#[cfg(any(feature = "format", feature = "flash"))]
mod checksum;
pub mod error;
#[cfg(feature = "flash")]
pub mod flash;
#[cfg(feature = "format")]
pub mod format;
pub mod infer;
pub mod init;
pub mod label;
pub mod layer;
pub mod loss;
pub mod micro;
pub mod neighbour;
pub mod net;
pub mod optim;
pub mod plan;
pub mod prototypes;
pub mod real;
pub mod reference;
pub mod reservoir;
pub mod rng;
pub mod schedule;
pub mod shape;
pub mod si;
pub mod source;
pub mod stage;
pub mod strategy;
pub mod train;
