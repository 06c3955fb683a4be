//! A multiprocessor that runs one block at a time, checking every access.

mod block;
mod matrix;
mod spaces;
mod warp;

use crate::code::Kernel;
use crate::counts::Counts;
use crate::fault::Fault;
use crate::memory::Memory;
use crate::shadow::Clock;
use block::Block;

/// A launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory, in bytes.
    pub shared: u32,
    /// The parameters, as [`Kernel::pack`] lays them out.
    pub params: &'a [u8],
    /// In which order threads and blocks take turns, and how long their turns are.
    pub seed: u64,
}

/// A small generator for orders.
#[derive(Debug)]
pub(crate) struct Order(u64);

impl Order {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x1405_7b7e_f767_814f);
        (((self.0 >> 32) * limit as u64) >> 32) as usize
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}

/// Runs a kernel to its end, or to its first fault.
///
/// # Errors
/// The fault, and where it happened.
pub fn run(kernel: &Kernel, launch: Launch<'_>, memory: &mut Memory) -> Result<Counts, Fault> {
    let refuse = |what: String| Err(Fault::Launch(format!("{}: {what}", kernel.name)));
    let most = kernel.threads.unwrap_or(1024).min(1024);
    let threads = launch.block.iter().map(|&n| u64::from(n)).product::<u64>();
    if threads == 0 || threads > most.into() {
        return refuse(format!("{threads} threads, at most {most}"));
    }
    if launch.grid.contains(&0) {
        return refuse("a grid without blocks".into());
    }
    if launch.params.len() != kernel.param_bytes as usize {
        return refuse(format!(
            "{} bytes of parameters, not {}",
            launch.params.len(),
            kernel.param_bytes
        ));
    }
    let [x, y, z] = launch.grid;
    let mut blocks: Vec<[u32; 3]> =
        (0..z).flat_map(|z| (0..y).flat_map(move |y| (0..x).map(move |x| [x, y, z]))).collect();
    let mut order = Order(launch.seed);
    order.shuffle(&mut blocks);
    let clock = Clock::new(memory.time);
    let mut block = Block::new(kernel, launch, memory, clock);
    let done = blocks.into_iter().try_for_each(|at| block.run(at, &mut order));
    let counts = block.finish();
    done.map(|()| counts)
}
