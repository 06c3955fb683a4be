//! The driver's C interface: as much of it as cudarc's safe layer reaches.
//!
//! Streams run in order, kernels at once, and copies from pinned memory as late as they may: see
//! `copies`.

mod control;
mod copies;
mod device;
mod memory;
mod modules;
mod state;
mod status;
mod streams;

use state::{CONTEXT, state};
use status::*;

/// Exports functions of the driver.
macro_rules! driver {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            /// A function of the driver.
            ///
            /// # Safety
            /// Pointers must be as the driver's interface asks for.
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> Status {
                $body
            }
        )*
    };
}
use driver;

/// Writes where the caller's pointer points.
///
/// # Safety
/// The pointer is null, or to memory of the type.
unsafe fn put<T>(to: *mut T, value: T) -> Status {
    if to.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: by this function's own contract.
    unsafe { to.write(value) };
    SUCCESS
}

/// Gives a new handle to the caller.
///
/// # Safety
/// As [`put`].
unsafe fn give(to: *mut usize) -> Status {
    let handle = state().handle();
    // SAFETY: as the caller promises.
    unsafe { put(to, handle) }
}
