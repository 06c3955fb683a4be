//! Modules, their kernels, and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::state::Shape;
use super::{
    CONTEXT, INVALID_CONTEXT, INVALID_VALUE, NOT_FOUND, SUCCESS, Status, driver, put, state,
};

/// A kernel's dynamic shared memory, among its attributes.
const DYNAMIC_SHARED: c_int = 8;
/// Registers of a thread: the stand-in does not assign any, so they never bound what fits.
const REGISTERS: c_int = 32;

/// `CUlaunchConfig`.
#[repr(C)]
pub(crate) struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: usize,
    attributes: *const c_void,
    attribute_count: c_uint,
}

/// # Safety
/// `params` is to a pointer for each of the kernel's parameters, to memory of its size.
unsafe fn launch(
    function: usize,
    shape: Shape,
    stream: usize,
    params: *const *const c_void,
) -> Status {
    if CONTEXT.get() == 0 {
        return INVALID_CONTEXT;
    }
    let done = state().launch(function, shape, stream, |kernel| {
        let mut packed = vec![0; kernel.param_bytes as usize];
        for (i, param) in kernel.params.iter().enumerate() {
            let (first, len) = (param.at as usize, param.bytes as usize);
            // SAFETY: as the caller promises.
            let value = unsafe { std::slice::from_raw_parts((*params.add(i)).cast::<u8>(), len) };
            packed[first..first + len].copy_from_slice(value);
        }
        packed
    });
    done.err().unwrap_or(SUCCESS)
}

driver! {
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
    fn cuModuleLoadDataEx(
        module: *mut usize,
        image: *const c_void,
        _count: c_uint,
        _options: *mut c_int,
        _values: *mut *mut c_void,
    ) {
        // SAFETY: the caller's pointers.
        unsafe { cuModuleLoadData(module, image) }
    }
    fn cuModuleUnload(module: usize) {
        state().unload(module)
    }
    fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) {
        // SAFETY: the caller's string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let found = state().function(module, &name);
        match found {
            // SAFETY: the caller's pointer.
            Ok(handle) => unsafe { put(function, handle) },
            Err(status) => status,
        }
    }
    fn cuModuleGetGlobal_v2(
        at: *mut u64,
        bytes: *mut usize,
        module: usize,
        name: *const c_char,
    ) {
        // SAFETY: the caller's string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let found = state().modules.get(&module).and_then(|m| m.global(&name));
        let Some((address, len)) = found else { return NOT_FOUND };
        // SAFETY: each pointer is null or the caller's.
        unsafe {
            put(at, address);
            put(bytes, len);
        }
        SUCCESS
    }
    fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) {
        match (attribute, u32::try_from(value)) {
            (DYNAMIC_SHARED, Ok(bytes)) => state().allow(function, bytes),
            (DYNAMIC_SHARED, Err(_)) => INVALID_VALUE,
            _ => SUCCESS,
        }
    }
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: usize) {
        let state = state();
        let kernel = match state.kernel(function) {
            Ok(kernel) => kernel,
            Err(status) => return status,
        };
        let found = match attribute {
            0 => kernel.threads.unwrap_or(1024) as c_int,
            1 => kernel.shared as c_int,
            3 => kernel.local as c_int,
            4 => REGISTERS,
            5 | 6 => state.device.capability as c_int,
            DYNAMIC_SHARED => state.allowed(function) as c_int,
            _ => 0,
        };
        // SAFETY: the caller's pointer.
        unsafe { put(value, found) }
    }
    fn cuFuncSetCacheConfig(_function: usize, _config: c_int) {
        SUCCESS
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: usize,
        threads: c_int,
        dynamic: usize,
    ) {
        let state = state();
        let kernel = match state.kernel(function) {
            Ok(kernel) => kernel,
            Err(status) => return status,
        };
        let found = state.device.blocks(threads, kernel.shared as usize + dynamic);
        // SAFETY: the caller's pointer.
        unsafe { put(blocks, found) }
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int,
        function: usize,
        threads: c_int,
        dynamic: usize,
        _flags: c_uint,
    ) {
        // SAFETY: the caller's pointer.
        unsafe { cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic) }
    }
    fn cuLaunchKernel(
        function: usize,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: usize,
        params: *const *const c_void,
        _extra: *const *const c_void,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        // SAFETY: the caller's parameters.
        unsafe { launch(function, Shape { grid, block, shared }, stream, params) }
    }
    fn cuLaunchKernelEx(
        config: *const Config,
        function: usize,
        params: *const *const c_void,
        _extra: *const *const c_void,
    ) {
        // SAFETY: the caller's pointer.
        let &Config { grid, block, shared, stream, .. } = unsafe { &*config };
        // SAFETY: the caller's parameters.
        unsafe { launch(function, Shape { grid, block, shared }, stream, params) }
    }
}
