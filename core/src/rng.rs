//! Random numbers that are a function of where they are used.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
//! 2011): a block cipher of a counter. There is no state to save but a position, so a resumed run
//! and any number of threads draw the same numbers.

/// What numbers are drawn for. Different purposes have unrelated sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum Purpose {
    /// First values of weights.
    Weights = 0,
    /// The order of samples; [`Permutation`] draws from it.
    Order = 1,
    /// Augmentation.
    Augment = 2,
    /// Dropout.
    Dropout = 3,
    /// Random projections.
    Project = 4,
    /// The choice of samples and of pairs.
    Sample = 5,
    /// Which samples of a stream a reservoir keeps.
    Reservoir = 6,
    /// Wrong labels.
    Label = 7,
}

/// The sequence of one (seed, purpose, epoch, sample).
///
/// Word `i` of it is word `i % 4` of block `i / 4`; a block is Philox4x32-10 of the counter
/// `[block, sample, epoch, purpose]` under the key `[seed % 2^32, seed / 2^32]`. It repeats after
/// 2^34 words.
///
/// ```
/// use sepal_core::rng::{Purpose, Rng};
/// let mut rng = Rng::new(7, Purpose::Augment, 0, 42);
/// let shift = rng.below(5);
/// assert!(shift < 5);
/// assert_eq!(Rng::new(7, Purpose::Augment, 0, 42).below(5), shift);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    key: [u32; 2],
    /// Sample, epoch, purpose.
    counter: [u32; 3],
    /// The next word.
    position: u64,
}

impl Rng {
    /// The sequence from its beginning.
    pub const fn new(seed: u64, purpose: Purpose, epoch: u32, sample: u32) -> Self {
        Self { key: halves(seed), counter: [sample, epoch, purpose as u32], position: 0 }
    }

    /// The four words of a block, wherever the sequence stands.
    pub const fn at(&self, block: u32) -> [u32; 4] {
        let [sample, epoch, purpose] = self.counter;
        philox([block, sample, epoch, purpose], self.key)
    }

    /// The next word.
    pub const fn next_u32(&mut self) -> u32 {
        let [a, b, c, d] = self.at((self.position / 4) as u32);
        let word = match self.position % 4 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        };
        self.position = self.position.wrapping_add(1);
        word
    }

    /// The next number in [0, 1): a multiple of 2^-24, each as likely. One word.
    pub const fn uniform(&mut self) -> f32 {
        const STEP: f32 = 1.0 / (1u32 << 24) as f32;
        (self.next_u32() >> 8) as f32 * STEP
    }

    /// The next number of the standard normal distribution, by the cosine half of Box and Muller:
    /// `sqrt(-2 ln(1 - u)) cos(2 pi v)`. Two words; at most 5.77 from 0.
    ///
    /// The functions are libm's, so that the bits are the same on every platform.
    pub fn normal(&mut self) -> f32 {
        // 1 - u is exact and above 0.
        let radius = libm::sqrtf(-2.0 * libm::logf(1.0 - self.uniform()));
        radius * libm::cosf(core::f32::consts::TAU * self.uniform())
    }

    /// The next integer in `0..n`, each exactly as likely; 0 where `n == 0`. One word, or more
    /// with a probability below `n / 2^32` for each (Lemire, 2019).
    pub const fn below(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        // The 2^32 words split among n results; the first 2^32 % n of them are one too many.
        let excess = n.wrapping_neg() % n;
        loop {
            let product = self.next_u32() as u64 * n as u64;
            if product as u32 >= excess {
                return (product >> 32) as u32;
            }
        }
    }
}

/// A shuffled order of `0..len` that takes no memory: a bijection, another one for each
/// (seed, epoch).
///
/// A Feistel network of 8 rounds permutes the smallest even number of bits that holds `len`
/// values; its round function is Philox. A result outside `0..len` goes through again until it is
/// inside (cycle walking), fewer than 4 times on average.
///
/// ```
/// use sepal_core::rng::Permutation;
/// let order = Permutation::new(1, 0, 5);
/// let mut seen: Vec<u32> = (0..5).map(|i| order.get(i)).collect();
/// seen.sort();
/// assert_eq!(seen, [0, 1, 2, 3, 4]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permutation {
    key: [u32; 2],
    epoch: u32,
    len: u32,
    /// Bits of each half of the network, 1 to 16.
    half: u32,
}

impl Permutation {
    const ROUNDS: u32 = 8;

    /// The order of `0..len` in an epoch.
    pub const fn new(seed: u64, epoch: u32, len: u32) -> Self {
        let bits = u32::BITS - len.saturating_sub(1).leading_zeros();
        let half = if bits < 2 { 1 } else { bits.div_ceil(2) };
        Self { key: halves(seed), epoch, len, half }
    }

    /// What stands at place `i`. Places wrap: `i` and `i % len` are the same. 0 where `len == 0`.
    pub const fn get(&self, i: u32) -> u32 {
        if self.len == 0 {
            return 0;
        }
        // A walk along a cycle of the network comes back to where it began, which is inside.
        let mut value = self.network(i % self.len);
        while value >= self.len {
            value = self.network(value);
        }
        value
    }

    const fn network(&self, value: u32) -> u32 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        let mut round = 0;
        while round < Self::ROUNDS {
            // Counted down from the top, away from the samples that an `Rng` counts up.
            let counter = [right, u32::MAX - round, self.epoch, Purpose::Order as u32];
            let [word, ..] = philox(counter, self.key);
            (left, right) = (right, left ^ (word & mask));
            round += 1;
        }
        left << self.half | right
    }
}

const fn halves(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Philox4x32-10.
const fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k, mut l] = key;
    let mut round = 0;
    while round < 10 {
        let p = a as u64 * 0xd251_1f53;
        let q = c as u64 * 0xcd9e_8d57;
        (a, b, c, d) = ((q >> 32) as u32 ^ b ^ k, q as u32, (p >> 32) as u32 ^ d ^ l, p as u32);
        k = k.wrapping_add(0x9e37_79b9);
        l = l.wrapping_add(0xbb67_ae85);
        round += 1;
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    /// The philox4x32 10 lines of Random123, kat_vectors.
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn the_key_and_the_counter_are_where_the_docs_say() {
        let rng = Rng::new(0x299f_31d0_a409_3822, Purpose::Sample, 0x1319_8a2e, 0x85a3_08d3);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 5];
        assert_eq!(rng.at(0x243f_6a88), philox(counter, [0xa409_3822, 0x299f_31d0]));
    }

    #[test]
    fn the_sequence_is_the_blocks_in_order() {
        let mut rng = Rng::new(3, Purpose::Weights, 1, 2);
        let blocks: Vec<u32> = (0..5).flat_map(|block| rng.at(block)).collect();
        let words: Vec<u32> = (0..20).map(|_| rng.next_u32()).collect();
        assert_eq!(words, blocks);
    }

    #[test]
    fn each_argument_gives_another_sequence() {
        let base = Rng::new(1, Purpose::Order, 1, 1).at(0);
        for other in [
            Rng::new(2, Purpose::Order, 1, 1),
            Rng::new(1 << 32 | 1, Purpose::Order, 1, 1),
            Rng::new(1, Purpose::Augment, 1, 1),
            Rng::new(1, Purpose::Order, 2, 1),
            Rng::new(1, Purpose::Order, 1, 2),
        ] {
            assert_ne!(other.at(0), base);
        }
    }

    /// Mean, variance and the extremes of 2^16 draws; a standard error is 0.0011 and 0.0003.
    #[test]
    fn uniform_is_flat_and_below_one() {
        let mut rng = Rng::new(11, Purpose::Augment, 0, 0);
        let draws: Vec<f64> = (0..1 << 16).map(|_| f64::from(rng.uniform())).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        assert!((variance - 1.0 / 12.0).abs() < 0.0015, "{variance}");
        let mut counts = [0u32; 16];
        draws.iter().for_each(|u| counts[(u * 16.0) as usize] += 1);
        assert!(chi_square(&counts) < 45.0, "{counts:?}");
    }

    /// The first four moments, and the share within one deviation, of 2^16 draws.
    #[test]
    fn normal_is_normal() {
        let mut rng = Rng::new(12, Purpose::Weights, 0, 0);
        let draws: Vec<f64> = (0..1 << 16).map(|_| f64::from(rng.normal())).collect();
        let moment = |k| draws.iter().map(|x: &f64| x.powi(k)).sum::<f64>() / draws.len() as f64;
        for (k, expected, tolerance) in
            [(1, 0.0, 0.02), (2, 1.0, 0.03), (3, 0.0, 0.08), (4, 3.0, 0.2)]
        {
            assert!((moment(k) - expected).abs() < tolerance, "moment {k}: {}", moment(k));
        }
        let inside = draws.iter().filter(|x| x.abs() < 1.0).count() as f64 / draws.len() as f64;
        assert!((inside - 0.6827).abs() < 0.01, "{inside}");
        assert!(draws.iter().all(|x| x.abs() < 5.78));
    }

    #[test]
    fn normal_takes_two_words_and_has_these_bits() {
        let mut rng = Rng::new(0, Purpose::Weights, 0, 0);
        let words = rng.at(0);
        let [u, v] = [words[0], words[1]].map(|w| f64::from(w >> 8) / f64::from(1 << 24));
        let expected = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        let got = rng.normal();
        assert!((f64::from(got) - expected).abs() < 1e-6, "{got} {expected}");
        assert_eq!(rng.next_u32(), words[2]);
        assert_eq!(got.to_bits(), GOLDEN_NORMAL);
    }

    /// The bits of the test above, kept so that a change of platform or of libm shows.
    const GOLDEN_NORMAL: u32 = 0x3f3c_e8b6;

    #[test]
    fn below_is_unbiased() {
        let mut rng = Rng::new(13, Purpose::Sample, 0, 0);
        assert_eq!(rng.below(0), 0);
        assert!((0..100).all(|_| rng.below(1) == 0));
        for n in [2, 3, 7, 10] {
            let mut counts = std::vec![0u32; n as usize];
            (0..10_000).for_each(|_| counts[rng.below(n) as usize] += 1);
            assert!(chi_square(&counts) < 30.0, "{counts:?}");
        }
        // With 3/4 of the range, four words fall on three results: without rejection those that
        // 3 divides come twice as often as the others.
        let n = 3 << 30;
        let mut thirds = [0u32; 3];
        (0..9_000).for_each(|_| thirds[(rng.below(n) % 3) as usize] += 1);
        assert!(chi_square(&thirds) < 20.0, "{thirds:?}");
    }

    #[test]
    fn a_permutation_is_a_bijection() {
        for len in [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 100, 1000, 60_000] {
            let order = Permutation::new(5, 9, len);
            let mut seen = std::vec![false; len as usize];
            for i in 0..len {
                let place = &mut seen[order.get(i) as usize];
                assert!(!*place, "len {len}: {i} is the second");
                *place = true;
            }
            assert_eq!(order.get(len), order.get(0));
            assert_eq!(order.get(u32::MAX), order.get(u32::MAX % len));
        }
    }

    #[test]
    fn an_empty_permutation_gives_zero() {
        assert_eq!(Permutation::new(5, 9, 0).get(0), 0);
        assert_eq!(Permutation::new(5, 9, 0).get(7), 0);
    }

    #[test]
    fn the_largest_permutations_stay_inside() {
        for len in [1 << 31, (1 << 31) + 1, u32::MAX] {
            let order = Permutation::new(5, 9, len);
            assert!((0..100).all(|i| order.get(i * 40_000_000) < len));
        }
    }

    #[test]
    fn seeds_and_epochs_give_other_orders() {
        let order = |seed, epoch| {
            let order = Permutation::new(seed, epoch, 100);
            (0..100).map(|i| order.get(i)).collect::<Vec<_>>()
        };
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), order(1 << 32 | 1, 0));
        assert_eq!(order(1, 0), order(1, 0));
    }

    /// Over epochs, all orders of 3 and of 4 come equally often.
    #[test]
    fn small_orders_are_equally_likely() {
        for (len, orders, limit) in [(3, 6, 25.0), (4, 24, 60.0)] {
            let mut counts = BTreeMap::new();
            for epoch in 0..6000 {
                let order = Permutation::new(17, epoch, len);
                *counts.entry((0..len).map(|i| order.get(i)).collect::<Vec<_>>()).or_insert(0) += 1;
            }
            let counts: Vec<u32> = counts.into_values().collect();
            assert_eq!(counts.len(), orders);
            assert!(chi_square(&counts) < limit, "{counts:?}");
        }
    }

    /// In an order of 60,000 the neighbours are unrelated, and each tenth is spread over all tenths.
    #[test]
    fn a_long_order_is_mixed() {
        let len = 60_000;
        let order = Permutation::new(19, 0, len);
        let values: Vec<f64> = (0..len).map(|i| f64::from(order.get(i))).collect();
        let mean = f64::from(len - 1) / 2.0;
        let product = |lag: usize| {
            values.iter().zip(&values[lag..]).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>()
        };
        assert!((product(1) / product(0)).abs() < 0.02, "{}", product(1) / product(0));
        let mut counts = [0u32; 100];
        for (i, v) in values.iter().enumerate() {
            counts[i / 6000 * 10 + *v as usize / 6000] += 1;
        }
        assert!(chi_square(&counts) < 150.0, "{counts:?}");
    }

    /// Against equal counts.
    fn chi_square(counts: &[u32]) -> f64 {
        let mean = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        counts.iter().map(|&c| (f64::from(c) - mean).powi(2) / mean).sum()
    }
}
