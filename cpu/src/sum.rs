//! Sums as the reference makes them: eight partial sums side by side, joined after 1024 terms.

const LANES: usize = 8;
const RUN: usize = 1024;

/// The sum of `f` over `values`.
#[inline]
pub(crate) fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    values.chunks(RUN).fold(0.0, |total, run| {
        let mut lanes = [0.0f32; LANES];
        let (blocks, rest) = run.as_chunks::<LANES>();
        for block in blocks {
            lanes.iter_mut().zip(block).for_each(|(lane, &v)| *lane += f(v));
        }
        lanes.iter_mut().zip(rest).for_each(|(lane, &v)| *lane += f(v));
        total + lanes.iter().fold(0.0, |sum, &lane| sum + lane)
    })
}

/// The sum of `f` over the pairs of two slices of one length.
#[inline]
pub(crate) fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    a.chunks(RUN).zip(b.chunks(RUN)).fold(0.0, |total, (a, b)| {
        let mut lanes = [0.0f32; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (&a, &b))| *lane += f(a, b));
        }
        let rest = a_rest.iter().zip(b_rest);
        lanes.iter_mut().zip(rest).for_each(|(lane, (&a, &b))| *lane += f(a, b));
        total + lanes.iter().fold(0.0, |sum, &lane| sum + lane)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{close, values};

    #[test]
    fn every_term_counts_once() {
        for len in [0, 1, 7, 8, 9, 1023, 1024, 1025, 3000] {
            let (a, b) = (values(1, len), values(2, len));
            let exact = |f: &dyn Fn(f64, f64) -> f64| {
                a.iter().zip(&b).map(|(&a, &b)| f(a.into(), b.into())).sum::<f64>() as f32
            };
            close(&[sum(&a, |a| a * a)], &[exact(&|a, _| a * a)], 1e-6);
            close(&[sum_pairs(&a, &b, |a, b| a * b)], &[exact(&|a, b| a * b)], 1e-6);
        }
    }
}
