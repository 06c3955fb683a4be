//! Nets from other libraries.

use sepal::models::imported::Imported;
use sepal::models::lenet::LENET;
use sepal::models::safetensors::Architecture;
use sepal::models::{onnx, safetensors};
use sepal::shape::Shape;

use super::format;

/// What was read is a net with its weights: it runs, and where it can be written it is read again.
fn sound(imported: &Imported) {
    let model = imported.model();
    model.net.check().expect("a net that was read is sound");
    format::run_everywhere(&model);
    if let Ok(bytes) = onnx::write(&model) {
        onnx::read(&bytes).expect("what was written is read");
    }
}

/// ONNX, by itself and for samples of a shape that it may leave open.
pub fn onnx(bytes: &[u8]) {
    for read in [onnx::read(bytes), onnx::read_shaped(bytes, Shape::new(1, 3, 8, 8))] {
        match read {
            Ok(imported) => sound(&imported),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// safetensors, for a net and for architectures of any width.
pub fn safetensors(bytes: &[u8]) {
    let small = Shape::new(1, 1, 28, 28);
    let reads = [
        safetensors::read(bytes, LENET),
        safetensors::read_as(bytes, Architecture::LeNet, small),
        safetensors::read_as(bytes, Architecture::Vgg { depth: 11 }, Shape::new(1, 3, 32, 32)),
    ];
    for read in reads {
        match read {
            Ok(imported) => sound(&imported),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
