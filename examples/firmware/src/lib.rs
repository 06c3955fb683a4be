//! What the images share: the board, the data in flash, and a handler of panics.
#![no_std]

pub mod board;
pub mod flash;

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
    board::exit(101)
}
