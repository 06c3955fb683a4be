//! Sums whose rounding error grows slowly with their length.

use crate::real::Real;

/// Partial sums that run side by side: they round less than one would, and they fill a vector.
const LANES: usize = 8;

/// Terms after which the partial sums join the total.
const RUN: usize = 1024;

/// The sum of `f` over `values`: eight interleaved partial sums for each run of 1024 terms.
#[inline]
pub(crate) fn sum<T: Real>(values: &[T], f: impl Fn(T) -> T) -> T {
    values.chunks(RUN).fold(T::ZERO, |total, run| {
        let mut lanes = [T::ZERO; LANES];
        for terms in run.chunks(LANES) {
            lanes.iter_mut().zip(terms).for_each(|(lane, &v)| *lane += f(v));
        }
        total + lanes.iter().fold(T::ZERO, |sum, &lane| sum + lane)
    })
}

/// The sum of `f` over the pairs of two slices of one length, in the order of [`sum`].
#[inline]
pub(crate) fn sum_pairs<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    a.chunks(RUN).zip(b.chunks(RUN)).fold(T::ZERO, |total, (a, b)| {
        let mut lanes = [T::ZERO; LANES];
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (&a, &b))| *lane += f(a, b));
        }
        total + lanes.iter().fold(T::ZERO, |sum, &lane| sum + lane)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};

    #[test]
    fn every_term_counts_once() {
        for len in [0, 1, 7, 8, 9, 1023, 1024, 1025, 3000] {
            let (a, b) = (values(1, len), values(2, len));
            check::close(&[sum(&a, |v| v * v)], &[check::dot(&a, &a)], 1e-12);
            check::close(&[sum_pairs(&a, &b, |a, b| a * b)], &[check::dot(&a, &b)], 1e-12);
        }
    }

    /// One running f32 sum of this series is off by about 2e-4 of its value.
    #[test]
    fn long_sums_round_little() {
        let series = std::vec![0.1f32; 1 << 20];
        let exact = f64::from(0.1f32) * f64::from(1 << 20);
        assert!((f64::from(sum(&series, |v| v)) - exact).abs() < 1e-5 * exact);
    }
}
