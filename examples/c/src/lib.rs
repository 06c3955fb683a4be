//! The C interface of `sepal-core`: what `include/sepal.h` declares, without std and without a heap.
//!
//! All `unsafe` code of the project's C interface is here. Each call checks what can be checked of
//! its pointers (null, alignment, length, overlap) before it makes references of them, and answers
//! with a code.
#![no_std]

mod lent;
mod model;
mod prototypes;
mod status;
mod tune;

const HEADER: &[u8] = include_bytes!("../include/sepal.h");

/// The number that `sepal.h` defines by a name.
const fn constant(name: &str) -> usize {
    let name = name.as_bytes();
    let mut at = 0;
    while at + name.len() < HEADER.len() {
        let mut same = 0;
        while same < name.len() && HEADER[at + same] == name[same] {
            same += 1;
        }
        let mut digit = at + name.len() + 1;
        if same == name.len() && HEADER[digit - 1] == b' ' && HEADER[digit].is_ascii_digit() {
            let mut number = 0;
            while HEADER[digit].is_ascii_digit() {
                number = number * 10 + (HEADER[digit] - b'0') as usize;
                digit += 1;
            }
            return number;
        }
        at += 1;
    }
    panic!("sepal.h does not define it");
}

#[cfg(feature = "nopanic")]
unsafe extern "C" {
    fn a_panic_can_be_reached() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(feature = "nopanic")]
    // SAFETY: never linked.
    unsafe {
        a_panic_can_be_reached()
    }
    #[cfg(not(feature = "nopanic"))]
    loop {}
}

/// A panic that is reached where `at` is past the end: the proof must be able to fail.
#[cfg(feature = "control")]
#[unsafe(no_mangle)]
pub extern "C" fn sepal_control(at: usize) -> u8 {
    HEADER[at]
}
