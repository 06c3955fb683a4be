//! A stand-in for the CUDA driver: kernels run, as PTX, on the CPU.
//!
//! A machine without a GPU can run every kernel of the CUDA backend with it, and every line that
//! launches them. The library takes the driver's name (its soname is `libcuda.so`), so that what
//! asks the loader for a driver finds it once a test has [loaded](load) it; nothing but tests does.
//!
//! # What it checks
//! * Bounds and alignment of every access, in every space.
//! * Memory that is read and was not written: global, shared, and what comes back to the host. An
//!   asynchronous copy has written only once it was waited for.
//! * Races in shared memory between threads that no barrier orders, and in global memory between
//!   threads of one launch.
//! * Barriers and warp collectives: lanes that are missing, that have ended or that are not in
//!   their own mask, and threads that wait for each other for ever.
//!
//! Threads and blocks take turns in an order drawn from a seed.
//!
//! # What it is not
//! It knows what NVRTC makes of ordinary kernels; an instruction that it does not know is an error
//! that names it. Approximate functions are exact here. Time, caches and the order in which a
//! device really runs are not modelled, streams run at once and in order, and local memory reads
//! as zero before it is written.

mod arithmetic;
mod code;
mod counts;
mod device;
mod driver;
mod fault;
mod machine;
mod memory;
mod ptx;
mod shadow;

pub use code::{Kernel, Module, Param};
pub use counts::{Class, Counts};
pub use device::{Gpu, StandIn, load, stand_in};
pub use fault::{Fault, Region};
pub use machine::{Launch, run};
pub use memory::Memory;
pub use ptx::ParseError;
