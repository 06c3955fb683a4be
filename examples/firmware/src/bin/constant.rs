//! A net that is a constant of the program, its weights in flash, no model file: what the file's
//! reader takes is the difference to `minimal`.
#![no_std]
#![no_main]

use core::hint::black_box;

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::infer::Inference;
use sepal_core::micro::Micro;
use sepal_core::net::{Model, Weights};
use sepal_firmware::board;
use sepal_firmware::flash::{self, CLASSES};
use sepal_models::lenet::LENET5;

const PLAN: Inference<'static> = match Inference::micro(LENET5, 1, false) {
    Ok(plan) => plan,
    Err(_) => panic!("the layers do not fit each other"),
};
const WORDS: usize = Word::count(PLAN.bytes());

#[entry]
fn main() -> ! {
    static mut MEMORY: [Word; WORDS] = [Word::ZERO; WORDS];
    board::exit(infer(MEMORY).is_none().into())
}

fn infer(memory: &mut [Word]) -> Option<[f32; CLASSES]> {
    let model = Model { net: LENET5, weights: Weights::Flat(flash::weights()) };
    let mut logits = [0.0; CLASSES];
    let fill = |image: &mut [u8]| image.fill(black_box(0));
    PLAN.run(&mut Micro::<false>::new(memory), &model, 1, fill, &mut logits).ok()?;
    Some(black_box(logits))
}
