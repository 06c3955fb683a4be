//! Kernels compiled for the very device. `SEPAL_NVRTC` names the compiler's library where the loader
//! does not find it, as `cuda/kernels/check.sh` installs it; without a compiler that is what is said.

use std::path::Path;

use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{Backend, Host, HostMut};
use sepal_core::net::Normalisation;
use sepal_core::shape::Shape;
use sepal_cuda::{OnCuda, OpenError};

/// Runs a kernel of the device, whatever compiled it.
fn halves(device: &OnCuda) -> [f32; 4] {
    let mut backend = device.backend(64).expect("memory");
    let slot = Slot::new(0, Shape::rows(1, 4), Dtype::F32);
    backend.write(slot, Host::F32(&[2.0, 4.0, 6.0, 8.0])).expect("it fits");
    backend.widen(slot, &Normalisation::scalar(0.0, 2.0), slot).expect("the kernel runs");
    let mut numbers = [0.0; 4];
    backend.read(slot, HostMut::F32(&mut numbers)).expect("it was written");
    numbers
}

fn kept(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn kernels_are_compiled_once_and_kept() {
    sepal_stand_in::load();
    if let Some(path) = std::env::var_os("SEPAL_NVRTC") {
        // SAFETY: the compiler's library, which the backend is about to load by its name.
        let library = unsafe { libloading::Library::new(path) }.expect("SEPAL_NVRTC is a library");
        std::mem::forget(library);
    }
    let folder = std::env::temp_dir().join(format!("sepal-compiling-{}", std::process::id()));
    let device = OnCuda::open(0).expect("a device");
    let compiling = match device.compiling(&folder) {
        Ok(compiling) => compiling,
        Err(e) => {
            assert_eq!(e, OpenError::NoCompiler);
            assert!(std::env::var_os("SEPAL_NVRTC").is_none(), "the compiler named was not found");
            return;
        }
    };
    let expected = [1.0, 2.0, 3.0, 4.0];
    assert_eq!(halves(&compiling), expected);
    let files = kept(&folder);
    assert_eq!(files.len(), 1, "one file of kernels was used: {files:?}");
    let whole = std::fs::read(&files[0]).expect("it is there");

    // What was kept is taken: a change that its seal does not know of is not, nor a part of it.
    for damaged in [&whole[..whole.len() / 2], b"", b"not PTX at all\n// 0\n"] {
        std::fs::write(&files[0], damaged).expect("it can be written");
        let again = device.compiling(&folder).expect("the compiler is there");
        assert_eq!(halves(&again), expected);
        assert_eq!(std::fs::read(&files[0]).expect("it is there"), whole, "compiled and kept anew");
    }

    // A folder that cannot be written costs the time to compile, no more.
    let nowhere = device.compiling(&files[0]).expect("the compiler is there");
    assert_eq!(halves(&nowhere), expected);
    std::fs::remove_dir_all(&folder).expect("it is this test's own");
}
