//! A net that is a constant of the program, its weights in flash, no model file: what the file's
//! reader takes is the difference to `minimal`.
#![no_std]
#![no_main]

use core::hint::black_box;

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::micro::{Program, operations};
use sepal_core::net::Weights;
use sepal_firmware::board;
use sepal_firmware::flash::{self, CLASSES};
use sepal_models::lenet::LENET5;

const OPERATIONS: usize = operations(&LENET5, LENET5.layers.len(), false);
static PROGRAM: Program<'static, OPERATIONS> = match Program::new(LENET5, false) {
    Ok(program) => program,
    Err(_) => panic!("the layers do not fit each other"),
};
const WORDS: usize = Word::count(PROGRAM.bytes());

#[entry]
fn main() -> ! {
    static mut MEMORY: [Word; WORDS] = [Word::ZERO; WORDS];
    board::exit(infer(MEMORY).is_none().into())
}

fn infer(memory: &mut [Word]) -> Option<[f32; CLASSES]> {
    let mut logits = [0.0; CLASSES];
    let fill = |image: &mut [u8]| image.fill(black_box(0));
    PROGRAM.run(memory, &Weights::Flat(flash::weights()), fill, &mut logits).ok()?;
    Some(black_box(logits))
}
