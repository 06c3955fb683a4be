//! What the images share: the board, the data in flash, inference, and a handler of panics.
#![no_std]

// What is shared with programs of the host calls the library by its own name.
extern crate sepal_core as sepal;

pub mod board;
pub mod case;
pub mod flash;
pub mod psram;
pub mod row;
pub mod tuned;
#[path = "../../common/user.rs"]
pub mod user;

use core::hint::black_box;

use sepal_core::backend::Backend;
use sepal_core::format::File;
use sepal_core::infer::Inference;
use sepal_core::layer::RELU;

use flash::{CLASSES, COUNTS};

/// Opens the model in flash and runs it on one sample.
pub fn infer(backend: &mut impl Backend) -> Option<[f32; CLASSES]> {
    let mut layers = [RELU; COUNTS.layers];
    let mut blocks = [0; COUNTS.blocks];
    let mut tensors = [File::NO_TENSOR; COUNTS.tensors];
    let file = File::open(flash::lenet5()).ok()?;
    let model = file.decode(&mut layers, &mut blocks, &mut tensors).ok()?;
    let plan = Inference::new(backend, &model, (0, model.net.layers.len()), 1, true).ok()?;
    let mut logits = [0.0; CLASSES];
    let fill = |image: &mut [u8]| image.fill(black_box(0));
    plan.run(backend, &model, 1, fill, &mut logits).ok()?;
    Some(black_box(logits))
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
    board::exit(101)
}
