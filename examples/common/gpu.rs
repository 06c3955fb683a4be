//! The choice between the CPU and a GPU.

use sepal::cpu::OnCpu;

use crate::program::Failure;

/// The option `--cuda`, where the feature is on.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Gpu {
    /// Run on an NVIDIA GPU, counted from 0 [default without a number: 0]
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "DEVICE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "0")]
    pub cuda: Option<u16>,
}

/// A device of one kind or the other.
pub enum Opened {
    Cpu(OnCpu),
    #[cfg(feature = "cuda")]
    Cuda(sepal::cuda::OnCuda),
}

impl Gpu {
    /// The GPU asked for, else the CPU with so many threads, one for each core unless given.
    pub fn open(self, threads: Option<u16>) -> Result<Opened, Failure> {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.cuda {
            let opened = sepal::cuda::OnCuda::open(device.into());
            return Ok(Opened::Cuda(opened.map_err(|e| format!("--cuda={device}: {e}"))?));
        }
        Ok(Opened::Cpu(crate::device::device(threads)?))
    }
}

/// `on!(opened, device => body)`: the body with the device, of whichever kind it is.
macro_rules! on {
    ($opened:expr, $device:ident => $body:expr) => {
        match $opened {
            $crate::gpu::Opened::Cpu($device) => $body,
            #[cfg(feature = "cuda")]
            $crate::gpu::Opened::Cuda($device) => $body,
        }
    };
}
pub(crate) use on;
