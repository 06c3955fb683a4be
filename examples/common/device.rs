//! What the programs run on.

use sepal::error::Error;

/// The device.
pub type Device = sepal::cpu::OnCpu;

/// The device, with so many threads; one for each core unless given.
pub fn device(threads: Option<u16>) -> Result<Device, Error> {
    threads.map_or_else(|| Ok(Device::new()), |threads| Device::with_threads(threads.into()))
}
