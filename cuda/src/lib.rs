//! The CUDA backend.
//!
//! [`Cuda`] is a [`Backend`](sepal_core::backend::Backend) whose arena is one allocation on the
//! device, cut by the same plan as everywhere. Labels, pairs, gradients and optimiser state stay
//! there; a training step sends the host its scalars and nothing else.
//!
//! # Rooms
//! * [`OnCuda::open`] finds the driver, the device and what they can do. Nothing is needed to
//!   build; a driver, a symbol or a device that is missing is an [`OpenError`] that names it.
//! * `kernels/*.cu` hold the kernels, `kernels/ptx` what `kernels/build.py` made of them: PTX
//!   for compute capability 7.5 and 8.0, which the driver compiles for the device at hand.
//! * [`OnCuda::compiling`] has NVRTC, where it is installed, compile the kernels for the very
//!   device, and keeps the result.
//! * One module here for each `.cu` file launches its kernels.
//!
//! Reductions are split by shape alone and no kernel adds floats atomically: the same device
//! gives the same bits each time.
//!
//! # What it needs
//! An NVIDIA device of compute capability 7.5 or newer and a driver of CUDA 12.2 or newer (R535,
//! JetPack 6).

mod activation;
mod backend;
mod compile;
mod conv;
mod dense;
mod driver;
mod elementwise;
mod folded;
mod gpu;
mod layers;
mod memory;
mod moving;
mod norm;
mod objective;
mod optim;
mod pool;
mod product;
mod residual;
mod search;

pub use backend::{Cuda, OnCuda};
pub use driver::OpenError;
