//! A stand-in for the CUDA driver: kernels run, as PTX, on the CPU.
//!
//! A machine without a GPU can run every kernel of the CUDA backend with it, and every line that
//! launches them. The library takes the driver's name (its soname is `libcuda.so`), so that what
//! asks the loader for a driver finds it once a test has [loaded](load) it; nothing but tests does.
//!
//! Tests call [`load`] first. Where a device is found, they run on it; else on the stand-in, whose
//! device they may shape: its compute capability, its memory, the age of its driver, the launch
//! at which it is lost. [`Module::parse`] and [`run`] run a kernel without any driver, as it is or
//! broken on purpose.
//!
//! ```
//! use sepal_stand_in::{Launch, Memory, Module, run};
//!
//! let module = Module::parse(
//!     ".version 8.2
//!     .target sm_80
//!     .address_size 64
//!     .visible .entry number(.param .u64 out)
//!     {
//!         .reg .b32 %r<2>;
//!         .reg .b64 %rd<4>;
//!         ld.param.u64 %rd1, [out];
//!         mov.u32 %r1, %tid.x;
//!         mul.wide.u32 %rd2, %r1, 4;
//!         add.s64 %rd3, %rd1, %rd2;
//!         st.global.u32 [%rd3], %r1;
//!         ret;
//!     }",
//! )?;
//! let kernel = module.kernel("number").ok_or("no such kernel")?;
//! let mut memory = Memory::default();
//! let out = memory.allocate(8);
//! let params = kernel.pack(&[&out.to_le_bytes()]);
//! let launch = Launch { grid: [1; 3], block: [2, 1, 1], shared: 0, params: &params, seed: 1 };
//! run(kernel, launch, &mut memory)?;
//! let mut bytes = [0xff; 8];
//! memory.read(out, &mut bytes)?;
//! assert_eq!(bytes, [0, 0, 0, 0, 1, 0, 0, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it checks
//! * Bounds and alignment of every access, in every space, and memory that was freed.
//! * Memory that is read and was not written: global, shared, and what comes back to the host. An
//!   asynchronous copy has written only once it was waited for.
//! * Races in shared memory between threads that no barrier orders: of the block, of some of its
//!   warps, or of lanes of a warp. Shuffles and votes order nothing. Races in global memory
//!   between threads of one launch. Atomics and volatile accesses do not race with each other.
//! * Data read as constant that the launch has written.
//! * Barriers and warp collectives: lanes that are missing, that have ended or that are not in
//!   their own mask, threads that wait for each other for ever or at different barriers, threads
//!   that do not end.
//! * The PTX itself: what is not known is an error, down to the last suffix.
//!
//! Threads, warps and blocks take turns in an order drawn from a seed, each for as long as the
//! seed says. Registers hold nonsense before they are written.
//!
//! # What it computes
//! What NVRTC makes of ordinary kernels, for compute capability 7.5 to 9.0: integers, floats of
//! 16, 32 and 64 bits, conversions, branches, atomics, shuffles and votes, asynchronous copies,
//! and `mma` in TF32 and in halves with `ldmatrix`. f32 is rounded as the instruction says.
//!
//! # What it does not
//! * Approximate functions are as good as f64 here, and a matrix product is rounded once.
//! * Calls, textures, clusters, `wgmma` and bulk copies are not known, nor is bf16.
//! * Fences order nothing between blocks: data that another block wrote is a race, also behind a
//!   flag.
//! * Of the reads of a word since its last write two are remembered. A race with a third, which
//!   barriers of some threads only leave open, can be missed.
//! * Local memory reads as zero before it is written. A warp's active mask is the thread alone.
//! * Time, caches and registers are not modelled. Kernels run when they are launched, copies from
//!   pinned memory when their stream, or an event behind them, is waited for: late, never early.

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
