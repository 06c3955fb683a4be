//! Devices and their contexts.

use std::ffi::{c_char, c_int, c_uint};

use super::{
    CONTEXT, INVALID_DEVICE, INVALID_VALUE, NO_DEVICE, SUCCESS, Status, driver, put, state,
};

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
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) {
        let mut bytes = *b"sepal: stand-in\0";
        bytes[15] = device as u8;
        // SAFETY: the caller's pointer.
        unsafe { put(uuid, bytes) }
    }
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        // SAFETY: the caller's pointer.
        unsafe { cuDeviceGetUuid(uuid, device) }
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
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) {
        // SAFETY: the caller's pointer.
        unsafe { put(context, 0x1000 + device as usize) }
    }
    fn cuDevicePrimaryCtxRelease_v2(_device: c_int) {
        SUCCESS
    }
    fn cuDevicePrimaryCtxSetFlags_v2(_device: c_int, _flags: c_uint) {
        SUCCESS
    }
    fn cuCtxGetCurrent(context: *mut usize) {
        // SAFETY: the caller's pointer.
        unsafe { put(context, CONTEXT.get()) }
    }
    fn cuCtxSetCurrent(context: usize) {
        CONTEXT.set(context);
        SUCCESS
    }
    fn cuCtxSetFlags(_flags: c_uint) {
        SUCCESS
    }
    fn cuCtxSynchronize() {
        let mut state = state();
        state.settle_all().max(state.alive().err().unwrap_or(SUCCESS))
    }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        // SAFETY: the caller's pointers.
        unsafe { put(least, 0).max(put(greatest, 0)) }
    }
}
