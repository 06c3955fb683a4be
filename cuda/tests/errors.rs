//! What is missing or fails is an error that says what. The stand-in plays the part.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sepal_core::arena::{ArenaError, Dtype, Slot};
use sepal_core::backend::{Backend, Host, HostMut};
use sepal_core::error::Error;
use sepal_core::net::Normalisation;
use sepal_core::shape::Shape;
use sepal_cuda::{OnCuda, OpenError};
use sepal_stand_in::StandIn;

/// The stand-in as it is at first, for one test at a time: its state is the process'.
fn alone() -> (&'static StandIn, MutexGuard<'static, ()>) {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let stand_in = sepal_stand_in::stand_in();
    stand_in.reset();
    (stand_in, guard)
}

fn refused() -> OpenError {
    OnCuda::open(0).expect_err("there is nothing to open")
}

#[test]
fn an_old_driver_is_named_with_the_one_needed() {
    let (stand_in, _guard) = alone();
    stand_in.driver(11_080);
    assert_eq!(refused(), OpenError::OldDriver { found: 11_080, needed: 12_020 });
    let expected = "the CUDA driver is of CUDA 11.8, 12.2 or newer is needed";
    assert_eq!(refused().to_string(), expected);
}

#[test]
fn devices_that_are_missing_or_old_are_named() {
    let (stand_in, _guard) = alone();
    let missing = |ordinal, devices| Err(OpenError::NoDevice { ordinal, devices });
    assert_eq!(OnCuda::open(3).map(drop), missing(3, 1));
    stand_in.devices(0);
    assert_eq!(OnCuda::open(0).map(drop), missing(0, 0));
    stand_in.reset();
    stand_in.capability(70);
    assert_eq!(refused().to_string(), "the device has compute capability 7.0, 7.5 is needed");
}

#[test]
fn memory_that_is_missing_is_named_before_any_is_taken() {
    let (stand_in, _guard) = alone();
    stand_in.memory(1 << 20);
    let device = OnCuda::open(0).expect("a device");
    let missing = ArenaError::OutOfMemory { needed: 2 << 20, given: 1 << 20 };
    assert_eq!(device.backend(2 << 20).map(drop), Err(missing.into()));
    // What is there can still be had, and is given back.
    for _ in 0..3 {
        assert_eq!(device.backend(1 << 20).expect("all of it").bytes(), 1 << 20);
    }
}

#[test]
fn kernels_that_the_driver_does_not_read_are_an_error() {
    let (stand_in, _guard) = alone();
    stand_in.ptx(80);
    let mut backend = OnCuda::open(0).expect("a device").backend(64).unwrap();
    let slot = Slot::new(0, Shape::rows(1, 4), Dtype::F32);
    backend.write(slot, Host::F32(&[1.0; 4])).unwrap();
    let failed = backend.widen(slot, &Normalisation::NONE, slot);
    assert_eq!(failed, Err(Error::Device { code: 222, doing: "loading kernels" }));
}

#[test]
fn a_device_that_is_lost_says_so_ever_after() {
    let (stand_in, _guard) = alone();
    let device = OnCuda::open(0).expect("a device");
    let mut backend = device.backend(64).unwrap();
    let slot = Slot::new(0, Shape::rows(1, 4), Dtype::F32);
    backend.write(slot, Host::F32(&[1.0; 4])).unwrap();
    stand_in.lose_at(2);
    backend.widen(slot, &Normalisation::NONE, slot).expect("the first launch");
    let lost = |result| matches!(result, Err(Error::Device { code: 719, .. }));
    assert!(lost(backend.widen(slot, &Normalisation::NONE, slot)));
    assert!(lost(backend.read(slot, HostMut::F32(&mut [0.0; 4]))));
    assert!(lost(device.backend(64).map(drop)) || device.backend(64).is_err());
}

/// The stand-in finds what a device would hide.
#[test]
fn memory_that_was_never_written_is_not_read() {
    let (stand_in, _guard) = alone();
    let device = OnCuda::open(0).expect("a device");
    let mut backend = device.backend(64).unwrap();
    let slot = Slot::new(0, Shape::rows(1, 4), Dtype::F32);
    assert!(backend.read(slot, HostMut::F32(&mut [0.0; 4])).is_err());
    assert!(stand_in.fault().contains("was not written"), "{}", stand_in.fault());
}
