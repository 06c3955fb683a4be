//! What tests of kernels run on.

#![allow(dead_code, reason = "each file of tests uses what it needs")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use sepal_cuda::OnCuda;
use sepal_stand_in::{Counts, Gpu};

/// Without tensor cores, and with them.
pub const BOTH: &[u32] = &[75, 80];

/// The stand-in is one for the whole process.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open() -> OnCuda {
    OnCuda::open(0).expect("a driver, real or not")
}

/// Runs `work` on stand-ins of these capabilities, each with turns of threads and blocks in an
/// order of its own; as often on the device that is there, if one is.
pub fn on_each(capabilities: &[u32], mut work: impl FnMut(&OnCuda)) {
    let _turn = turn();
    for (&capability, seed) in capabilities.iter().zip(1..) {
        if let Gpu::StandIn(device) = sepal_stand_in::load() {
            device.capability(capability);
            device.seed(seed);
        }
        work(&open());
    }
    if let Gpu::StandIn(device) = sepal_stand_in::load() {
        device.reset();
    }
}

/// What ran on a stand-in of a capability; nothing is known of a device that is there.
pub fn counts(capability: u32, work: impl FnOnce(&OnCuda)) -> Option<Counts> {
    let _turn = turn();
    let Gpu::StandIn(device) = sepal_stand_in::load() else { return None };
    device.capability(capability);
    work(&open());
    let counts = device.counts();
    device.reset();
    Some(counts)
}
