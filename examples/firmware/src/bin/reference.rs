//! As `minimal`, on the reference backend, which has every layer.
#![no_std]
#![no_main]

#[cfg(feature = "heap")]
extern crate alloc;

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::infer::Inference;
use sepal_core::reference::Reference;
use sepal_firmware::{board, infer};
use sepal_models::lenet::LENET5;

const WORDS: usize = match Inference::reference(LENET5, 1) {
    Ok(plan) => Word::count(plan.bytes()),
    Err(_) => panic!("the layers do not fit each other"),
};

#[entry]
fn main() -> ! {
    static mut MEMORY: [Word; WORDS] = [Word::ZERO; WORDS];
    // What a compiler knows of the bytes must not prove anything.
    #[cfg(feature = "control")]
    if sepal_firmware::flash::lenet5()[core::hint::black_box(0)] > core::hint::black_box(255) {
        board::exit(1);
    }
    #[cfg(feature = "heap")]
    core::hint::black_box(alloc::boxed::Box::new(0));
    board::exit(infer(&mut Reference::new(MEMORY)).is_none().into())
}
