//! The driver's C interface: as much of it as cudarc's safe layer reaches.
//!
//! Streams run in order and at once, so an event is over when it is recorded. Copies from pinned
//! memory on a stream other than the one that waits for them are made at once too.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::code::Module;
use crate::device::Device;
use crate::fault::Fault;
use crate::machine::{self, Launch};
use crate::memory::Memory;

type Status = c_int;
const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const NO_DEVICE: Status = 100;
const INVALID_DEVICE: Status = 101;
const INVALID_CONTEXT: Status = 201;
const NO_BINARY_FOR_GPU: Status = 209;
const INVALID_PTX: Status = 218;
const UNSUPPORTED_PTX_VERSION: Status = 222;
const INVALID_HANDLE: Status = 400;
const NOT_FOUND: Status = 500;
const ILLEGAL_ADDRESS: Status = 700;
const LAUNCH_FAILED: Status = 719;

/// What one process' driver knows.
#[derive(Default)]
pub(crate) struct State {
    pub device: Device,
    memory: Memory,
    modules: HashMap<usize, Module>,
    functions: HashMap<usize, (usize, usize)>,
    handles: usize,
    /// Kernels launched so far.
    pub launches: u64,
    /// An error from which the device does not recover.
    pub lost: Option<Status>,
    pub fault: Option<Fault>,
}

thread_local! {
    static CONTEXT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

pub(crate) fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn handle(&mut self) -> usize {
        self.handles += 1;
        self.handles * 16
    }

    fn fail(&mut self, fault: Fault) -> Status {
        eprintln!("stand-in: {fault}");
        let status = match fault.kind() {
            Fault::OutOfBounds { .. } | Fault::Misaligned { .. } => ILLEGAL_ADDRESS,
            Fault::Launch(_) => INVALID_VALUE,
            _ => LAUNCH_FAILED,
        };
        self.fault = Some(fault);
        if status != INVALID_VALUE {
            self.lost = Some(status);
        }
        status
    }

    /// A device that failed answers everything with its failure.
    fn alive(&self) -> Result<(), Status> {
        self.lost.map_or(Ok(()), Err)
    }

    fn load(&mut self, source: &str) -> Result<usize, Status> {
        let memory = &mut self.memory;
        let mut place = |bytes: &[u8]| {
            let at = memory.allocate(bytes.len());
            memory.write(at, bytes).map_or(0, |()| at)
        };
        let module = match Module::parse(source, &mut place) {
            Ok(module) => module,
            Err(error) => {
                eprintln!("stand-in: {error}");
                return Err(INVALID_PTX);
            }
        };
        if module.version > self.device.ptx {
            return Err(UNSUPPORTED_PTX_VERSION);
        }
        if module.target > self.device.capability {
            return Err(NO_BINARY_FOR_GPU);
        }
        let handle = self.handle();
        self.modules.insert(handle, module);
        Ok(handle)
    }
}

fn status(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(SUCCESS)
}

/// Exports functions of the driver.
macro_rules! driver {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $body:block)*) => {
        $($(#[$doc])*
        /// # Safety
        /// Pointers must be as the driver's interface asks for.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> Status {
            $body
        })*
    };
}

/// Writes where the caller's pointer points.
///
/// # Safety
/// The pointer is to memory of the type.
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

mod exports {
    use super::*;

    driver! {
        fn cuInit(_flags: c_uint) {
            if state().device.count == 0 { NO_DEVICE } else { SUCCESS }
        }
        fn cuDriverGetVersion(version: *mut c_int) {
            let found = state().device.driver;
            // SAFETY: the caller's pointer.
            unsafe { put(version, found) }
        }
        fn cuDeviceGetCount(count: *mut c_int) {
            let found = state().device.count;
            // SAFETY: the caller's pointer.
            unsafe { put(count, found) }
        }
        fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
            if ordinal < 0 || ordinal >= state().device.count {
                return INVALID_DEVICE;
            }
            // SAFETY: the caller's pointer.
            unsafe { put(device, ordinal) }
        }
        fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) {
            let text = c"PTX stand-in".to_bytes_with_nul();
            if usize::try_from(len).unwrap_or(0) < text.len() {
                return INVALID_VALUE;
            }
            // SAFETY: the caller's buffer is `len` long.
            unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
            SUCCESS
        }
        fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) {
            let found = state().device.attribute(attribute);
            // SAFETY: the caller's pointer.
            unsafe { put(value, found) }
        }
        fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) {
            let found = state().device.memory;
            // SAFETY: the caller's pointer.
            unsafe { put(bytes, found) }
        }
        fn cuDevicePrimaryCtxRetain(context: *mut usize, _device: c_int) {
            // SAFETY: the caller's pointer.
            unsafe { put(context, 0x1000) }
        }
        fn cuDevicePrimaryCtxRelease_v2(_device: c_int) { SUCCESS }
        fn cuCtxGetCurrent(context: *mut usize) {
            // SAFETY: the caller's pointer.
            unsafe { put(context, CONTEXT.get()) }
        }
        fn cuCtxSetCurrent(context: usize) {
            CONTEXT.set(context);
            SUCCESS
        }
        fn cuCtxSynchronize() { status(state().alive()) }
        fn cuStreamCreate(stream: *mut usize, _flags: c_uint) {
            // SAFETY: the caller's pointer.
            unsafe { give(stream) }
        }
        fn cuStreamDestroy_v2(_stream: usize) { SUCCESS }
        fn cuStreamSynchronize(_stream: usize) { status(state().alive()) }
        fn cuStreamWaitEvent(_stream: usize, _event: usize, _flags: c_uint) {
            status(state().alive())
        }
        fn cuEventCreate(event: *mut usize, _flags: c_uint) {
            // SAFETY: the caller's pointer.
            unsafe { give(event) }
        }
        fn cuEventDestroy_v2(_event: usize) { SUCCESS }
        fn cuEventRecord(_event: usize, _stream: usize) { status(state().alive()) }
        fn cuEventSynchronize(_event: usize) { status(state().alive()) }
        fn cuEventQuery(_event: usize) { status(state().alive()) }
        fn cuMemAlloc_v2(at: *mut u64, bytes: usize) {
            let mut state = state();
            if let Err(lost) = state.alive() {
                return lost;
            }
            if bytes == 0 {
                return INVALID_VALUE;
            }
            if state.memory.used().saturating_add(bytes) > state.device.memory {
                return OUT_OF_MEMORY;
            }
            let address = state.memory.allocate(bytes);
            // SAFETY: the caller's pointer.
            unsafe { put(at, address) }
        }
        fn cuMemAllocAsync(at: *mut u64, bytes: usize, _stream: usize) {
            // SAFETY: the caller's pointer.
            unsafe { cuMemAlloc_v2(at, bytes) }
        }
        fn cuMemFree_v2(at: u64) {
            if state().memory.free(at) { SUCCESS } else { INVALID_VALUE }
        }
        fn cuMemFreeAsync(at: u64, _stream: usize) {
            if state().memory.free(at) { SUCCESS } else { INVALID_VALUE }
        }
        fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
            let state = state();
            let all = state.device.memory;
            let left = all.saturating_sub(state.memory.used());
            // SAFETY: the caller's pointers.
            unsafe { put(free, left).max(put(total, all)) }
        }
        fn cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, _flags: c_uint) {
            // A header tells `cuMemFreeHost` how much there is.
            let Ok(layout) = std::alloc::Layout::from_size_align(bytes + 64, 64) else {
                return INVALID_VALUE;
            };
            // SAFETY: the layout is not of size 0.
            let start = unsafe { std::alloc::alloc(layout) };
            if start.is_null() {
                return OUT_OF_MEMORY;
            }
            // SAFETY: the memory is 64 bytes longer than what was asked for.
            unsafe {
                start.cast::<usize>().write(bytes);
                put(at, start.add(64).cast())
            }
        }
        fn cuMemFreeHost(at: *mut c_void) {
            // SAFETY: the caller's memory came from `cuMemHostAlloc`.
            unsafe {
                let start = at.cast::<u8>().sub(64);
                let bytes = start.cast::<usize>().read();
                let layout = std::alloc::Layout::from_size_align_unchecked(bytes + 64, 64);
                std::alloc::dealloc(start, layout);
            }
            SUCCESS
        }
        fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: usize) {
            let mut state = state();
            if let Err(lost) = state.alive() {
                return lost;
            }
            // SAFETY: the caller's memory is as long as it says.
            let from = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
            let done = state.memory.write(to, from);
            done.map_or_else(|fault| state.fail(fault), |()| SUCCESS)
        }
        fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _stream: usize) {
            let mut state = state();
            if let Err(lost) = state.alive() {
                return lost;
            }
            // SAFETY: the caller's memory is as long as it says.
            let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes) };
            let done = state.memory.read(from, to);
            done.map_or_else(|fault| state.fail(fault), |()| SUCCESS)
        }
        fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: usize) {
            let mut state = state();
            if let Err(lost) = state.alive() {
                return lost;
            }
            let done = state.memory.copy(from, to, bytes);
            done.map_or_else(|fault| state.fail(fault), |()| SUCCESS)
        }
        fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, _stream: usize) {
            let mut state = state();
            if let Err(lost) = state.alive() {
                return lost;
            }
            let done = state.memory.write(to, &vec![value; bytes]);
            done.map_or_else(|fault| state.fail(fault), |()| SUCCESS)
        }
        fn cuModuleLoadData(module: *mut usize, image: *const c_void) {
            // SAFETY: PTX is a C string.
            let source = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
            let loaded = state().load(&source);
            match loaded {
                // SAFETY: the caller's pointer.
                Ok(handle) => unsafe { put(module, handle) },
                Err(status) => status,
            }
        }
        fn cuModuleUnload(module: usize) {
            if state().modules.remove(&module).is_some() { SUCCESS } else { INVALID_HANDLE }
        }
        fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) {
            // SAFETY: the caller's string.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
            let mut state = state();
            let Some(found) = state.modules.get(&module) else { return INVALID_HANDLE };
            let Some(kernel) = found.kernels.iter().position(|k| k.name == name) else { return NOT_FOUND };
            let handle = state.handle();
            state.functions.insert(handle, (module, kernel));
            // SAFETY: the caller's pointer.
            unsafe { put(function, handle) }
        }
        fn cuFuncSetAttribute(_function: usize, attribute: c_int, value: c_int) {
            // 8: dynamic shared memory.
            let most = state().device.attribute(97);
            if attribute == 8 && value > most { INVALID_VALUE } else { SUCCESS }
        }
        fn cuLaunchKernel(
            function: usize,
            grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
            block_x: c_uint, block_y: c_uint, block_z: c_uint,
            shared: c_uint,
            _stream: usize,
            params: *const *const c_void,
            _extra: *const *const c_void
        ) {
            let mut state = state();
            let state = &mut *state;
            if CONTEXT.get() == 0 {
                return INVALID_CONTEXT;
            }
            if let Err(lost) = state.alive() {
                return lost;
            }
            state.launches += 1;
            if state.device.lost_at == Some(state.launches) {
                state.lost = Some(LAUNCH_FAILED);
                return LAUNCH_FAILED;
            }
            let found = state.functions.get(&function).and_then(|&(module, kernel)| {
                state.modules.get(&module)?.kernels.get(kernel)
            });
            let Some(kernel) = found else { return INVALID_HANDLE };
            let mut lying = vec![0u8; kernel.param_bytes as usize];
            for (i, param) in kernel.params.iter().enumerate() {
                let (first, len) = (param.at as usize, param.bytes as usize);
                // SAFETY: the caller gives a pointer for each parameter, to memory of its size.
                let from = unsafe { std::slice::from_raw_parts((*params.add(i)).cast::<u8>(), len) };
                lying[first..first + len].copy_from_slice(from);
            }
            let total = kernel.shared as usize + shared as usize;
            if total > state.device.attribute(97) as usize {
                let what = format!("{} takes {total} bytes of shared memory", kernel.name);
                return state.fail(Fault::Launch(what));
            }
            if grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65_535 || grid_z > 65_535 {
                let what = format!("a grid of {grid_x} x {grid_y} x {grid_z}");
                return state.fail(Fault::Launch(what));
            }
            let launch = Launch {
                grid: [grid_x, grid_y, grid_z],
                block: [block_x, block_y, block_z],
                shared,
                params: &lying,
                seed: state.device.seed.wrapping_add(state.launches),
            };
            match machine::run(kernel, launch, &mut state.memory) {
                Ok(_) => SUCCESS,
                Err(fault) => state.fail(fault),
            }
        }
        fn cuGetErrorName(error: c_int, name: *mut *const c_char) {
            let text = match error {
                OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
                NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
                INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
                UNSUPPORTED_PTX_VERSION => c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
                ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
                LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
                _ => c"CUDA_ERROR",
            };
            // SAFETY: the caller's pointer.
            unsafe { put(name, text.as_ptr()) }
        }
        fn cuGetErrorString(error: c_int, text: *mut *const c_char) {
            // SAFETY: the caller's pointer.
            unsafe { cuGetErrorName(error, text) }
        }
        /// Sets one property of the device; see [`Device::set`].
        fn sepal_stand_in_set(what: c_int, value: u64) {
            let mut state = state();
            state.device.set(what, value);
            state.lost = None;
            state.fault = None;
            state.launches = 0;
            SUCCESS
        }
        /// The last fault's text, cut to `len` bytes with the 0 at its end.
        fn sepal_stand_in_fault(text: *mut c_char, len: usize) {
            let found = state().fault.as_ref().map(ToString::to_string).unwrap_or_default();
            let bytes = &found.as_bytes()[..found.len().min(len.saturating_sub(1))];
            // SAFETY: the caller's buffer is `len` long.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), text, bytes.len());
                text.add(bytes.len()).write(0);
            }
            SUCCESS
        }
    }
}
