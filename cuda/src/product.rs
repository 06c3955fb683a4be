//! Products of matrices over tiles, as convolutions and dense layers have them.

use crate::gpu::Launch;

/// Threads of a block that works on a tile.
const THREADS: u32 = 128;

/// Blocks that fill a device: larger tiles are taken where there are as many of them, and sums
/// are split until there are. A constant, so that the same shapes give the same bits everywhere.
pub(crate) const FILL: u32 = 256;

/// The kernels of a product: of large tiles and of small ones, without tensor cores and with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    pub large: &'static str,
    pub small: &'static str,
    pub large_tensor: &'static str,
    pub small_tensor: &'static str,
}

/// `kernels!("conv_data")`: the four kernels of a name.
macro_rules! kernels {
    ($name:literal) => {
        $crate::product::Kernels {
            large: concat!($name, "_large"),
            small: concat!($name, "_small"),
            large_tensor: concat!($name, "_large_tensor"),
            small_tensor: concat!($name, "_small_tensor"),
        }
    };
}
pub(crate) use kernels;

impl Kernels {
    /// The one for a device of this capability.
    pub const fn tiled(self, is_large: bool, capability: u32) -> &'static str {
        match (is_large, are_tensor_cores_faster(capability)) {
            (true, false) => self.large,
            (false, false) => self.small,
            (true, true) => self.large_tensor,
            (false, true) => self.small_tensor,
        }
    }
}

/// A block for each of so many tiles.
pub(crate) const fn tiles(count: u32) -> Launch {
    Launch::blocks(count, THREADS)
}

/// Whether tensor cores take less time for the three products that they need for one of f32.
const fn are_tensor_cores_faster(capability: u32) -> bool {
    capability == 80 || capability >= 90
}
