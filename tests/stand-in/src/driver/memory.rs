//! Memory of the device and of the host, and copies between them.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_uint, c_void};

use super::{INVALID_VALUE, OUT_OF_MEMORY, SUCCESS, Status, driver, put, state};

/// In front of the host's memory lies its length.
const HEADER: usize = 64;

/// Fills device memory with repetitions of a pattern.
fn fill(to: u64, pattern: &[u8], times: usize) -> Status {
    let mut state = state();
    if let Err(lost) = state.alive() {
        return lost;
    }
    let done = state.memory.fill(to, pattern, times);
    state.copied(done)
}

driver! {
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
        let mut state = state();
        // What was asked for is done before, lost device or not.
        state.settle_all();
        if at == 0 || state.memory.free(at) { SUCCESS } else { INVALID_VALUE }
    }
    fn cuMemFreeAsync(at: u64, stream: usize) {
        let mut state = state();
        state.settle(stream);
        if at == 0 || state.memory.free(at) { SUCCESS } else { INVALID_VALUE }
    }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let state = state();
        let all = state.device.memory;
        let left = all.saturating_sub(state.memory.used());
        // SAFETY: the caller's pointers.
        unsafe { put(free, left).max(put(total, all)) }
    }
    fn cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let whole = bytes.checked_add(HEADER);
        let layout = whole.and_then(|whole| Layout::from_size_align(whole, HEADER).ok());
        let Some(layout) = layout else { return INVALID_VALUE };
        // SAFETY: the layout is not of size 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return OUT_OF_MEMORY;
        }
        // SAFETY: the memory holds the header, and what was asked for behind it.
        unsafe {
            start.cast::<usize>().write(bytes);
            let first = start.add(HEADER);
            state().pin(first as usize, bytes);
            put(at, first.cast())
        }
    }
    fn cuMemAllocHost_v2(at: *mut *mut c_void, bytes: usize) {
        // SAFETY: the caller's pointer.
        unsafe { cuMemHostAlloc(at, bytes, 0) }
    }
    fn cuMemFreeHost(at: *mut c_void) {
        if at.is_null() {
            return INVALID_VALUE;
        }
        {
            let mut state = state();
            state.settle_all();
            state.unpin(at as usize);
        }
        // SAFETY: the caller's memory came from `cuMemHostAlloc`, which made it of this layout.
        unsafe {
            let start = at.cast::<u8>().sub(HEADER);
            let bytes = start.cast::<usize>().read();
            dealloc(start, Layout::from_size_align_unchecked(bytes + HEADER, HEADER));
        }
        SUCCESS
    }
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        let mut state = state();
        if let Err(lost) = state.alive() {
            return lost;
        }
        if bytes == 0 {
            return SUCCESS;
        }
        // SAFETY: the caller's memory is as long as it says.
        let from = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
        let done = state.memory.write(to, from);
        state.copied(done)
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) {
        {
            let mut state = state();
            if let Err(lost) = state.alive() {
                return lost;
            }
            if let Some(status) = state.defer(stream, to, from as usize, bytes) {
                return status;
            }
            state.settle(stream);
        }
        // SAFETY: the caller's memory.
        unsafe { cuMemcpyHtoD_v2(to, from, bytes) }
    }
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        let mut state = state();
        if let Err(lost) = state.alive() {
            return lost;
        }
        if bytes == 0 {
            return SUCCESS;
        }
        // SAFETY: the caller's memory is as long as it says.
        let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes) };
        let done = state.memory.read(from, to);
        state.copied(done)
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) {
        state().settle(stream);
        // SAFETY: the caller's memory.
        unsafe { cuMemcpyDtoH_v2(to, from, bytes) }
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        let mut state = state();
        if let Err(lost) = state.alive() {
            return lost;
        }
        let done = state.memory.copy(from, to, bytes);
        state.copied(done)
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) {
        state().settle(stream);
        // SAFETY: nothing of the host's is touched.
        unsafe { cuMemcpyDtoD_v2(to, from, bytes) }
    }
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        fill(to, &[value], count)
    }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) {
        state().settle(stream);
        fill(to, &[value], count)
    }
    fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) {
        fill(to, &value.to_le_bytes(), count)
    }
    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: usize) {
        state().settle(stream);
        fill(to, &value.to_le_bytes(), count)
    }
}
