//! What functions of the driver return.

use std::ffi::{CStr, c_char, c_int};

use super::{driver, put};

pub(super) type Status = c_int;

macro_rules! statuses {
    ($($name:ident = $code:literal, $full:literal, $text:literal;)*) => {
        $(pub(super) const $name: Status = $code;)*

        /// Name and description.
        const fn named(status: Status) -> Option<(&'static CStr, &'static CStr)> {
            match status {
                $($code => Some(($full, $text)),)*
                _ => None,
            }
        }
    };
}

statuses! {
    SUCCESS = 0, c"CUDA_SUCCESS", c"no error";
    INVALID_VALUE = 1, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument";
    OUT_OF_MEMORY = 2, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory";
    NO_DEVICE = 100, c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected";
    INVALID_DEVICE = 101, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal";
    INVALID_CONTEXT = 201, c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context";
    NO_BINARY_FOR_GPU = 209, c"CUDA_ERROR_NO_BINARY_FOR_GPU",
        c"no kernel image is available for execution on the device";
    INVALID_PTX = 218, c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed";
    UNSUPPORTED_PTX_VERSION = 222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        c"the provided PTX was compiled with an unsupported toolchain.";
    INVALID_HANDLE = 400, c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle";
    NOT_FOUND = 500, c"CUDA_ERROR_NOT_FOUND", c"named symbol not found";
    ILLEGAL_ADDRESS = 700, c"CUDA_ERROR_ILLEGAL_ADDRESS",
        c"an illegal memory access was encountered";
    LAUNCH_TIMEOUT = 702, c"CUDA_ERROR_LAUNCH_TIMEOUT",
        c"the launch timed out and was terminated";
    MISALIGNED_ADDRESS = 716, c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address";
    LAUNCH_FAILED = 719, c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure";
}

/// # Safety
/// As [`put`].
unsafe fn describe(to: *mut *const c_char, text: Option<&'static CStr>) -> Status {
    let status = if text.is_some() { SUCCESS } else { INVALID_VALUE };
    // SAFETY: as the caller promises.
    unsafe { put(to, text.map_or(std::ptr::null(), CStr::as_ptr)).max(status) }
}

driver! {
    fn cuGetErrorName(error: c_int, name: *mut *const c_char) {
        // SAFETY: the caller's pointer.
        unsafe { describe(name, named(error).map(|(name, _)| name)) }
    }
    fn cuGetErrorString(error: c_int, text: *mut *const c_char) {
        // SAFETY: the caller's pointer.
        unsafe { describe(text, named(error).map(|(_, text)| text)) }
    }
}
