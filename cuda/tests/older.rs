//! The oldest device: the kernels that are built for it.

use std::sync::LazyLock;

use sepal_conformance::{Backend, Word, layers, objectives, search, training};
use sepal_cuda::OnCuda;

static DEVICE: LazyLock<OnCuda> = LazyLock::new(|| {
    if let sepal_stand_in::Gpu::StandIn(stand_in) = sepal_stand_in::load() {
        stand_in.capability(75);
    }
    OnCuda::open(0).expect("a driver, real or not")
});

fn with(words: &mut [Word], work: &mut dyn FnMut(&mut dyn Backend)) {
    work(&mut DEVICE.backend(size_of_val(words)).expect("the device has the memory"));
}

#[test]
fn layers_are_right() {
    layers::conv2d::backward(with);
    layers::batch_norm::backward(with);
    layers::max_pool::backward(with);
    layers::dense::backward(with);
    layers::dropout::train(with);
}

#[test]
fn neighbours_are_the_references() {
    search::random(with);
    search::duplicates(with);
    objectives::random(with);
}

#[test]
fn training_is_as_pinned() {
    training::pinned_losses(with);
}
