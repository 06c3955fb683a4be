//! The suite that every backend passes: on a GPU where there is one, else on the stand-in.

use std::sync::LazyLock;

use sepal_cuda::{Cuda, OnCuda};

static DEVICE: LazyLock<OnCuda> = LazyLock::new(|| {
    sepal_stand_in::load();
    OnCuda::open(0).expect("a driver, real or not")
});

fn open(words: &[sepal_conformance::Word]) -> Cuda {
    DEVICE.backend(size_of_val(words)).expect("the device has the memory")
}

sepal_conformance::suite!(cuda, |words| open(words));
