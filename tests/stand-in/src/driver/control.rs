//! What the tests ask of the stand-in itself.

use std::ffi::{c_char, c_int};

use super::{INVALID_VALUE, SUCCESS, Status, driver, put, state};
use crate::counts::Class;

driver! {
    fn sepal_stand_in_set(what: c_int, value: u64) {
        let mut state = state();
        state.device.set(what, value);
        state.recover();
        SUCCESS
    }
    fn sepal_stand_in_fault(text: *mut c_char, len: usize) {
        let found = &state().message;
        let bytes = &found.as_bytes()[..found.len().min(len.saturating_sub(1))];
        // SAFETY: the caller's buffer is `len` long.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), text, bytes.len());
            text.add(bytes.len()).write(0);
        }
        SUCCESS
    }
    fn sepal_stand_in_count(class: c_int, count: *mut u64) {
        let counts = state().counts;
        // Behind the classes: launches.
        let found = match usize::try_from(class) {
            Ok(class) if class == Class::ALL.len() => counts.launches(),
            Ok(class) if class < Class::ALL.len() => counts.of(Class::ALL[class].0),
            _ => return INVALID_VALUE,
        };
        // SAFETY: the caller's pointer.
        unsafe { put(count, found) }
    }
}
