//! A user as bytes, as the program `finetune` writes them (`--cases`): little-endian words of 32 bits
//! ([`WORDS`] of them), then a label of 16 bits for each sample, then the samples, first those that are
//! shown, then those to test on.

use crate::user::{FOUND, Samples, Settings};

/// The words: a mark, bytes of a sample, samples shown and tested; block, batch, updates of the block
/// and of the last layer, their rates, the seed; what came of it on the host.
const WORDS: usize = 4 + 7 + FOUND;

const MARK: u32 = u32::from_le_bytes(*b"user");

/// A user.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// What is tuned, and how.
    pub settings: Settings,
    /// What came of it on the host.
    pub found: [u32; FOUND],
    size: usize,
    shown: usize,
    labels: &'a [u8],
    samples: &'a [u8],
}

impl<'a> Case<'a> {
    /// Reads a user from bytes that others may follow; `None` where there is none.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let (words, rest) = bytes.split_first_chunk::<{ 4 * WORDS }>()?;
        let mut at = [0; WORDS];
        for (word, bytes) in at.iter_mut().zip(words.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let [mark, size, shown, tested, rest_of @ ..] = at;
        let [block, batch, updates, head_updates, rate, head_rate, seed, found @ ..] = rest_of;
        if mark != MARK || size == 0 {
            return None;
        }
        let (size, shown) = (size as usize, shown as usize);
        let count = shown.checked_add(tested as usize)?;
        let (labels, rest) = rest.split_at_checked(count.checked_mul(2)?)?;
        let samples = rest.get(..count.checked_mul(size)?)?;
        let settings = Settings {
            block: block.try_into().ok()?,
            batch,
            updates: [updates, head_updates],
            rates: [rate, head_rate].map(f32::from_bits),
            seed,
        };
        Some(Self { settings, found, size, shown, labels, samples })
    }

    fn all(&self) -> impl Samples<'a> + use<'a> {
        let labels = self.labels.as_chunks::<2>().0.iter().map(|&label| u16::from_le_bytes(label));
        self.samples.chunks_exact(self.size).zip(labels)
    }

    /// What the user shows.
    pub fn shown(&self) -> impl Samples<'a> + use<'a> {
        self.all().take(self.shown)
    }

    /// What the model is tested on.
    pub fn tested(&self) -> impl Samples<'a> + use<'a> {
        self.all().skip(self.shown)
    }
}
