//! The machine that numbers are measured on.

use sysinfo::{CpuRefreshKind, System};

/// The processor, as it names itself; the architecture where it does not.
pub fn machine() -> String {
    let brand = System::new().ok().and_then(|mut system| {
        system.refresh_cpu_list(CpuRefreshKind::nothing());
        Some(system.cpus().first()?.brand().trim().to_owned())
    });
    brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
