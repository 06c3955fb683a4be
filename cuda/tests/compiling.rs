//! Kernels compiled for the very device. `SEPAL_NVRTC` names the compiler's library where the loader
//! does not find it, as `cuda/kernels/check.sh` installs it; without a compiler that is what is said.

use std::path::Path;

use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{Backend, Host, HostMut};
use sepal_core::net::Normalisation;
use sepal_core::shape::Shape;
use sepal_cuda::{OnCuda, OpenError};

/// Half of some numbers less 2, by a kernel of the device, whatever compiled it.
fn halves(device: &OnCuda) -> [f32; 4] {
    let mut backend = device.backend(64).expect("memory");
    let slot = Slot::new(0, Shape::rows(1, 4), Dtype::F32);
    backend.write(slot, Host::F32(&[4.0, 6.0, 8.0, 10.0])).expect("it fits");
    backend.widen(slot, &Normalisation::scalar(2.0, 2.0), slot).expect("the kernel runs");
    let mut numbers = [0.0; 4];
    backend.read(slot, HostMut::F32(&mut numbers)).expect("it was written");
    numbers
}

/// The last line of a file that is kept: FNV-1a of its bytes and of what ends them.
fn seal(ptx: &str) -> u64 {
    ptx.bytes().chain([0xff]).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
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

    // What the driver is too old for does not run: the built-in kernels do, of which one takes 2 off and halves.
    if let sepal_stand_in::Gpu::StandIn(stand_in) = sepal_stand_in::load() {
        let text = String::from_utf8(whole.clone()).expect("PTX is text");
        let (ptx, _) = text.trim_end().rsplit_once("\n// ").expect("it is sealed");
        let newer =
            ptx.replacen(".version 8.2", ".version 8.3", 1).replace("add.rn.f32", "sub.rn.f32");
        assert_ne!(newer, ptx.replacen(".version 8.2", ".version 8.3", 1), "it adds the summand");
        let sealed = format!("{newer}\n// {:016x}\n", seal(&newer));
        std::fs::write(&files[0], &sealed).expect("it can be written");
        let again = device.compiling(&folder).expect("the compiler is there");
        assert_eq!(halves(&again), expected);
        // A driver that reads it takes what was kept, and so another kernel than the built-in one.
        stand_in.ptx(83);
        let again = device.compiling(&folder).expect("the compiler is there");
        assert_ne!(halves(&again), expected);
        stand_in.reset();
        std::fs::write(&files[0], &whole).expect("it can be written");
    }

    // A folder that cannot be written costs the time to compile, no more.
    let nowhere = device.compiling(&files[0]).expect("the compiler is there");
    assert_eq!(halves(&nowhere), expected);
    std::fs::remove_dir_all(&folder).expect("it is this test's own");
}
