//! Opens a model file in flash and runs it, nothing else: how small inference is.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::infer::Inference;
use sepal_core::micro::Micro;
use sepal_firmware::{board, infer};
use sepal_models::lenet::LENET5;

const WORDS: usize = match Inference::micro(LENET5, 1, false) {
    Ok(plan) => Word::count(plan.bytes()),
    Err(_) => panic!("the layers do not fit each other"),
};

#[entry]
fn main() -> ! {
    static mut MEMORY: [Word; WORDS] = [Word::ZERO; WORDS];
    board::exit(infer(&mut Micro::<false>::new(MEMORY)).is_none().into())
}
