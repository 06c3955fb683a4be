//! The CPU backend of sepal.
//!
//! [`Cpu`] runs nets in one arena of memory that the caller lends, as the reference backend does,
//! with kernels of its own that use all cores and the vectors of the machine. It is tested against
//! the reference, and gives the same bits for any number of threads: work is split by shape, and
//! sums are joined in order.
//!
//! From the first convolution of a net to its first dense layer, activations lie in blocks of eight
//! channels ([`Layout::Nchw8c`](sepal_core::arena::Layout)). Layers that follow each other run
//! together where that saves passes over memory: under training a norm, an activation and a
//! max-pool; frozen, these and average pools within the convolution before them.
//!
//! [`views`] takes `ndarray` views in and gives `ndarray` arrays out: neighbours, the Separation
//! Index, embeddings.
//!
//! ```
//! use sepal_core::backend::Backend;
//! let mut memory = sepal_cpu::words(1 << 20);
//! let backend = sepal_cpu::Cpu::new(&mut memory);
//! assert_eq!(backend.bytes(), 1 << 20);
//! ```
//!
//! # Memory
//! Everything that training and inference work with is planned: a session's or an inference's
//! `bytes()` is exact and includes this backend's scratch. Beside it, `matrixmultiply` allocates a
//! packing buffer of up to 1.1 MB for each running product, and `rayon` its queues. Searches
//! ([`Backend::nearest`](sepal_core::backend::Backend::nearest), `top_k`) have no plan: they
//! allocate a packed copy of the bank in f32, and for each thread about 100 bytes for each row and
//! 0.7 MB. A thread keeps up to 32 MB of it for its next search.
#![deny(unsafe_code)]

mod activation;
mod arch;
mod backend;
mod blocks;
mod conv;
mod dense;
mod folded;
mod fused;
mod gemm;
mod layers;
mod norm;
mod objective;
mod optim;
mod pool;
mod residual;
mod search;
mod soft;
mod sum;
mod unit;
pub mod views;

#[cfg(test)]
mod check;

pub use arch::Instructions;
pub use backend::{Cpu, OnCpu, words};
pub use conv::Precision;
