//! Finding a driver: what may be missing is an error here, before the first call into it.

use libloading::Library;

/// The oldest driver, as [`cuDriverGetVersion`] counts: CUDA 12.2, whose driver (R535) reads the
/// PTX that is built in.
///
/// [`cuDriverGetVersion`]: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VERSION.html
pub(crate) const OLDEST_DRIVER: i32 = 12_020;

/// The oldest device, as ten times its compute capability.
pub(crate) const OLDEST_DEVICE: u32 = 75;

/// Why there is no device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// No CUDA driver is installed, or the loader does not find it.
    NoDriver,
    /// The driver lacks a function: it is older than the one needed.
    Symbol(&'static str),
    /// The driver is older than the one needed. Both as the driver counts: 12020 is CUDA 12.2.
    OldDriver {
        /// What is installed.
        found: i32,
        /// The oldest that will do.
        needed: i32,
    },
    /// There is no device of this number.
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many devices there are.
        devices: usize,
    },
    /// The device is older than the kernels. Both as ten times the compute capability.
    OldDevice {
        /// What it is.
        found: u32,
        /// The oldest that will do.
        needed: u32,
    },
    /// NVRTC, the compiler, is not installed, or the loader does not find it.
    NoCompiler,
    /// The driver failed, or the compiler.
    Driver {
        /// Its own code.
        code: i32,
        /// What was being done.
        doing: &'static str,
    },
}

impl core::fmt::Display for OpenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let tenths = |v: u32| (v / 10, v % 10);
        match *self {
            Self::NoDriver => {
                write!(f, "no CUDA driver: the loader finds no libcuda.so (nvcuda.dll on Windows)")
            }
            Self::Symbol(name) => write!(
                f,
                "the CUDA driver has no {name}: a driver of CUDA {}.{} or newer is needed",
                OLDEST_DRIVER / 1000,
                OLDEST_DRIVER % 1000 / 10
            ),
            Self::OldDriver { found, needed } => write!(
                f,
                "the CUDA driver is of CUDA {}.{}, {}.{} or newer is needed",
                found / 1000,
                found % 1000 / 10,
                needed / 1000,
                needed % 1000 / 10
            ),
            Self::NoDevice { ordinal, devices } => {
                write!(f, "CUDA device {ordinal} was asked for, there are {devices}")
            }
            Self::OldDevice { found, needed } => {
                let ((a, b), (c, d)) = (tenths(found), tenths(needed));
                write!(f, "the device has compute capability {a}.{b}, {c}.{d} is needed")
            }
            Self::NoCompiler => write!(f, "no NVRTC: the loader finds no libnvrtc.so.12"),
            Self::Driver { code, doing } => write!(f, "the CUDA driver failed ({code}) {doing}"),
        }
    }
}

impl core::error::Error for OpenError {}

/// What this crate calls, itself and through cudarc, which panics at a symbol that is missing.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFree_v2",
    "cuMemFreeHost",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// The version of the driver: it is there and not older than the kernels.
pub(crate) fn check() -> Result<i32, OpenError> {
    // SAFETY: loads the driver's library, which cudarc is about to load too and never unloads.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(OpenError::NoDriver);
    }
    // SAFETY: the library is there, as just seen.
    let library: &Library = unsafe { cudarc::driver::sys::culib() };
    for &name in SYMBOLS {
        // SAFETY: only the symbol's being there is asked, it is not called through this type.
        if unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err() {
            return Err(OpenError::Symbol(name));
        }
    }
    let mut found = 0;
    // SAFETY: the symbol is there; the pointer is to a local.
    let result = unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut found) };
    result
        .result()
        .map_err(|e| OpenError::Driver { code: e.0 as i32, doing: "asking its version" })?;
    if found < OLDEST_DRIVER {
        return Err(OpenError::OldDriver { found, needed: OLDEST_DRIVER });
    }
    Ok(found)
}
