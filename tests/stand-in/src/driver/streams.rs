//! Streams and events. Kernels are over when they are asked for, copies when they are waited for.

use std::ffi::{c_int, c_uint};

use super::{SUCCESS, Status, driver, give, put, state};

fn alive() -> Status {
    state().alive().err().unwrap_or(SUCCESS)
}

driver! {
    fn cuStreamCreate(stream: *mut usize, _flags: c_uint) {
        // SAFETY: the caller's pointer.
        unsafe { give(stream) }
    }
    fn cuStreamCreateWithPriority(stream: *mut usize, _flags: c_uint, _priority: c_int) {
        // SAFETY: the caller's pointer.
        unsafe { give(stream) }
    }
    fn cuStreamDestroy_v2(stream: usize) {
        // What a stream was given is done, lost device or not.
        state().settle(stream);
        SUCCESS
    }
    fn cuStreamSynchronize(stream: usize) {
        state().settle(stream)
    }
    fn cuStreamQuery(stream: usize) {
        state().settle(stream)
    }
    fn cuStreamWaitEvent(_stream: usize, event: usize, _flags: c_uint) {
        state().settle_event(event)
    }
    fn cuEventCreate(event: *mut usize, _flags: c_uint) {
        // SAFETY: the caller's pointer.
        unsafe { give(event) }
    }
    fn cuEventDestroy_v2(_event: usize) {
        SUCCESS
    }
    fn cuEventRecord(event: usize, stream: usize) {
        state().record(event, stream);
        alive()
    }
    fn cuEventSynchronize(event: usize) {
        state().settle_event(event)
    }
    fn cuEventQuery(event: usize) {
        state().settle_event(event)
    }
    fn cuEventElapsedTime(milliseconds: *mut f32, _from: usize, _to: usize) {
        // SAFETY: the caller's pointer.
        unsafe { put(milliseconds, 0.0).max(alive()) }
    }
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, from: usize, to: usize) {
        // SAFETY: the caller's pointer.
        unsafe { cuEventElapsedTime(milliseconds, from, to) }
    }
}
