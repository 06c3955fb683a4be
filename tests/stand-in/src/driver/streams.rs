//! Streams and events. Everything is over when it is asked for.

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
    fn cuStreamDestroy_v2(_stream: usize) {
        SUCCESS
    }
    fn cuStreamSynchronize(_stream: usize) {
        alive()
    }
    fn cuStreamQuery(_stream: usize) {
        alive()
    }
    fn cuStreamWaitEvent(_stream: usize, _event: usize, _flags: c_uint) {
        alive()
    }
    fn cuEventCreate(event: *mut usize, _flags: c_uint) {
        // SAFETY: the caller's pointer.
        unsafe { give(event) }
    }
    fn cuEventDestroy_v2(_event: usize) {
        SUCCESS
    }
    fn cuEventRecord(_event: usize, _stream: usize) {
        alive()
    }
    fn cuEventSynchronize(_event: usize) {
        alive()
    }
    fn cuEventQuery(_event: usize) {
        alive()
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
