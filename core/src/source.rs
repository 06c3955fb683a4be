//! Where samples come from.

use crate::arena::Layout;
use crate::rng::Permutation;
use crate::shape::Shape;

/// Memory for a batch of raw samples, in the type that the source stores.
#[derive(Debug)]
pub enum Batch<'a> {
    /// Bytes, as cameras and image files give them.
    U8(&'a mut [u8]),
    /// Numbers.
    F32(&'a mut [f32]),
}

impl Batch<'_> {
    /// The same memory, lent on.
    pub const fn again(&mut self) -> Batch<'_> {
        match self {
            Self::U8(bytes) => Batch::U8(bytes),
            Self::F32(numbers) => Batch::F32(numbers),
        }
    }
}

/// Why a source could not give a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceError {
    /// There is no such sample.
    Index {
        /// The index asked for.
        index: u32,
        /// How many samples there are.
        len: u32,
    },
    /// The batch memory is of the other type, or not `indices.len()` samples long.
    Batch {
        /// Elements that the samples asked for have.
        expected: u32,
        /// Elements that the memory has.
        got: u32,
    },
    /// Samples that do not lie as images do where images are changed.
    Layout {
        /// How they lie.
        layout: Layout,
    },
    /// Reading failed; the number is the source's own.
    Read {
        /// The sample that could not be read.
        index: u32,
        /// The source's own code.
        code: i32,
    },
}

impl core::fmt::Display for SourceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Index { index, len } => write!(f, "sample {index} of a source of {len}"),
            Self::Batch { expected, got } => {
                write!(
                    f,
                    "batch memory of {got} elements, expected {expected} of the source's type"
                )
            }
            Self::Layout { layout } => {
                write!(f, "samples that lie as {layout:?}, expected the planes of images")
            }
            Self::Read { index, code } => {
                write!(f, "sample {index} could not be read (code {code})")
            }
        }
    }
}

impl core::error::Error for SourceError {}

/// When a batch is drawn: everything that its choice and its augmentation may depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Draw {
    /// The run's seed.
    pub seed: u64,
    /// The pass over the data, counted over the whole run.
    pub epoch: u32,
    /// The batch within the pass.
    pub step: u32,
}

/// Labelled samples of one shape.
///
/// A source is a function of its arguments: the same call gives the same samples, which is what
/// makes a resumed run equal to one that was not interrupted.
pub trait Source {
    /// How many samples there are.
    fn len(&self) -> u32;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape of one sample, `n == 1`.
    fn shape(&self) -> Shape;

    /// Whether samples are bytes (`Batch::U8`) or numbers (`Batch::F32`).
    fn is_u8(&self) -> bool;

    /// How many leading layers of the net were already applied to what this source gives:
    /// 0 for raw samples, more for a cache of a frozen prefix.
    fn depth(&self) -> usize {
        0
    }

    /// How the numbers that layers gave lie: [`read`](Self::read) gives each sample with the
    /// padding of its layout, which is 0. Raw samples lie as the reference's. A source that hands
    /// on another's samples hands on their layout too.
    fn layout(&self) -> Layout {
        Layout::Nchw
    }

    /// Chooses samples of the batch `draw`, which has `batch` places: those of the places from
    /// `first` on, as many as `indices` holds. The default goes once over all samples in an
    /// epoch, in an order shuffled by seed and epoch; places past the end wrap around.
    fn pick(&self, draw: Draw, batch: u32, first: u32, indices: &mut [u32]) {
        let order = Permutation::new(draw.seed, draw.epoch, self.len());
        let start = u64::from(draw.step) * u64::from(batch) + u64::from(first);
        for (place, index) in (start..).zip(indices) {
            *index = order.get(remainder(place, self.len().max(1)));
        }
    }

    /// Reads samples as they are used for training in `draw` (augmented), or as they are
    /// stored where `draw` is `None`, into `batch` (`indices.len()` samples, in order, each as long
    /// as its shape takes in the [`layout`](Self::layout)), and their labels into `labels` (of the same length as `indices`).
    ///
    /// # Errors
    /// An index out of range, batch memory of the wrong type or length, or a failed read.
    fn read(
        &mut self,
        indices: &[u32],
        draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError>;
}

/// `of % by`, by shifts: on a small core a division of 64 bits takes 1 kB of flash.
fn remainder(of: u64, by: u32) -> u32 {
    let (high, low) = ((of >> 32) as u32, of as u32);
    if high == 0 {
        return low % by;
    }
    let (mut rest, mut low) = (high % by, low);
    for _ in 0..u32::BITS {
        let carried = rest >> 31 == 1;
        rest = rest << 1 | low >> 31;
        low <<= 1;
        if carried || rest >= by {
            rest = rest.wrapping_sub(by);
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_those_of_a_division() {
        for of in [0, 1, 7, 1 << 32, u64::MAX, u64::MAX - 1, 0x1234_5678_9abc_def0, 3 << 62] {
            for by in [1, 2, 3, 10, 60_000, 1 << 31, (1 << 31) + 1, u32::MAX - 1, u32::MAX] {
                assert_eq!(u64::from(remainder(of, by)), of % u64::from(by), "{of} % {by}");
            }
        }
    }
}
