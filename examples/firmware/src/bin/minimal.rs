//! Opens a model file in flash and runs it, nothing else: how small inference is.
#![no_std]
#![no_main]

#[cfg(feature = "heap")]
extern crate alloc;

use core::hint::black_box;

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::format::File;
use sepal_core::infer::Inference;
use sepal_core::layer::RELU;
use sepal_core::reference::Reference;
use sepal_firmware::board;
use sepal_firmware::flash::{self, CLASSES, COUNTS};
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
    if flash::lenet5()[black_box(0)] > black_box(255) {
        board::exit(1);
    }
    #[cfg(feature = "heap")]
    black_box(alloc::boxed::Box::new(0));
    board::exit(infer(MEMORY).is_none().into())
}

fn infer(memory: &mut [Word]) -> Option<[f32; CLASSES]> {
    let mut layers = [RELU; COUNTS.layers];
    let mut blocks = [0; COUNTS.blocks];
    let mut tensors = [File::NO_TENSOR; COUNTS.tensors];
    let file = File::open(flash::lenet5()).ok()?;
    let model = file.decode(&mut layers, &mut blocks, &mut tensors).ok()?;
    let plan = Inference::reference(model.net, 1).ok()?;
    let mut logits = [0.0; CLASSES];
    let fill = |image: &mut [u8]| image.fill(black_box(0));
    plan.run(&mut Reference::new(memory), &model, 1, fill, &mut logits).ok()?;
    Some(black_box(logits))
}
