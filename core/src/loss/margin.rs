//! The triplet loss with a margin.

use super::{Score, Tally, distances, nearest_is_same, pull, samples};
use crate::neighbour::Pair;
use crate::real::Real;

/// The mean over anchors of how far the nearest sample with the same label is from being nearer,
/// by `margin`, than the nearest with another.
///
/// ```text
/// L = (1/m') sum_i max(0, d(i, p(i)) - d(i, n(i)) + margin),  d(i, j) = |f_i - f_j|^2
/// W_ip = 1/m', W_in = -1/m' for anchors with a term above 0
/// ```
/// m' is the number of anchors with both partners, at 0 or not (Schroff et al., "FaceNet", 2015,
/// with the nearest of both kinds). The distances are computed from the features; those in
/// `pairs` only decide [`Score::correct`].
///
/// Shapes: features (M, dim), pairs (M), grad (M, dim), overwritten.
///
/// ```
/// use sepal_core::loss::margin;
/// use sepal_core::neighbour::{Nearest, Pair};
/// let near = |index, dist2| Nearest { index, dist2 };
/// // Rows 0 and 1 have one label, 2 and 3 another.
/// let pairs = [
///     Pair { same: near(1, 1.0), other: near(2, 9.0) },
///     Pair { same: near(0, 1.0), other: near(2, 4.0) },
///     Pair { same: near(3, 4.0), other: near(1, 4.0) },
///     Pair { same: near(2, 4.0), other: near(1, 16.0) },
/// ];
/// let mut grad = [0.0; 4];
/// let score = margin(&[0.0, 1.0, 3.0, 5.0], 1, &pairs, 0.5, Some(&mut grad));
/// // Only row 2 is not separated by 0.5.
/// assert_eq!((score.value, score.anchors, score.correct), (0.125, 4, 3));
/// assert_eq!(grad, [0.0, 1.0, -2.0, 1.0]);
/// ```
pub fn margin<T: Real>(
    features: &[T],
    dim: usize,
    pairs: &[Pair<T>],
    margin: T,
    mut grad: Option<&mut [T]>,
) -> Score<T> {
    if let Some(grad) = grad.as_deref_mut() {
        grad.fill(T::ZERO);
    }
    let samples = samples(features, dim);
    let two = T::ONE + T::ONE;
    let mut tally = Tally::new();
    for (i, pair) in pairs.iter().enumerate() {
        tally.count(nearest_is_same(pair, samples));
        let excess = distances(features, dim, i, pair).map(|(same, other)| same - other + margin);
        // NaN passes on, to be skipped.
        let is_separated = excess.is_some_and(|excess| excess.is_finite() && excess <= T::ZERO);
        let term = if is_separated { Some(T::ZERO) } else { excess };
        if tally.add(term)
            && !is_separated
            && let Some(grad) = grad.as_deref_mut()
        {
            pull(grad, features, dim, i, pair.same.index as usize, two);
            pull(grad, features, dim, i, pair.other.index as usize, -two);
        }
    }
    tally.mean(grad)
}

#[cfg(test)]
mod tests {
    use super::super::oracle;
    use super::*;
    use crate::layer::check::{self, values};

    const LABELS: &[u16] = &[0, 1, 0, 2, 1, 0, 2, 1, 3];
    /// None active, some, all.
    const MARGINS: &[f64] = &[-100.0, 0.0, 0.2, 100.0];

    #[test]
    fn value_and_gradient_are_the_definition() {
        let m = LABELS.len();
        let mut active = std::vec::Vec::new();
        for &margin_ in MARGINS {
            for dim in [1, 2, 5] {
                let x = values(dim as u64, (m * dim) as u32);
                let pairs = oracle::pairs(&x, dim, LABELS);
                let (mut value, mut w, mut count) = (0.0, std::vec![0.0; m * m], 0);
                for (i, pair) in pairs.iter().enumerate().filter(|(_, p)| p.same.index != u32::MAX)
                {
                    let term = pair.same.dist2 - pair.other.dist2 + margin_;
                    if term > 0.0 {
                        value += term / 8.0;
                        w[i * m + pair.same.index as usize] += 0.125;
                        w[i * m + pair.other.index as usize] -= 0.125;
                        count += 1;
                    }
                }
                active.push(count);
                let mut grad = std::vec![f64::NAN; x.len()];
                let score = margin(&x, dim, &pairs, margin_, Some(&mut grad));
                check::close(&[score.value], &[value], 1e-12);
                check::close(&grad, &oracle::gradient(&w, &x, dim), 1e-12);
                assert_eq!((score.anchors, score.skipped), (8, 1));
                assert_eq!(score.correct, oracle::correct(&x, dim, LABELS));
                assert_eq!(margin(&x, dim, &pairs, margin_, None), score);
            }
        }
        assert!(active.contains(&0) && active.contains(&8));
        assert!(active.iter().any(|n| (1..8).contains(n)), "{active:?}");
    }

    #[test]
    fn gradient_is_the_derivative() {
        for &margin_ in MARGINS {
            let dim = 3;
            let x = values(7, (LABELS.len() * dim) as u32);
            let pairs = oracle::pairs(&x, dim, LABELS);
            check::gradient(
                &[x],
                1,
                |[x], y| y[0] = margin(x, dim, &pairs, margin_, None).value,
                |[x], dy, [dx]| {
                    margin(x, dim, &pairs, margin_, Some(dx));
                    dx.iter_mut().for_each(|d| *d *= dy[0]);
                },
            );
        }
    }

    #[test]
    fn gradients_sum_to_zero() {
        let dim = 4;
        let x = values(3, (LABELS.len() * dim) as u32);
        let pairs = oracle::pairs(&x, dim, LABELS);
        let mut grad = std::vec![f64::NAN; x.len()];
        margin(&x, dim, &pairs, 0.2, Some(&mut grad));
        assert!(grad.iter().any(|g| g.abs() > 1e-3));
        for k in 0..dim {
            let sum: f64 = grad.iter().skip(k).step_by(dim).sum();
            check::close(&[sum], &[0.0], 1e-13);
        }
    }

    /// Duplicates with two labels: the term is the margin, the gradient 0.
    #[test]
    fn duplicates_cost_the_margin() {
        let x = [2.5; 4];
        let mut grad = [f64::NAN; 4];
        let pairs = oracle::pairs(&x, 1, &[0, 0, 1, 1]);
        let score = margin(&x, 1, &pairs, 0.25, Some(&mut grad));
        assert_eq!(score, Score { value: 0.25, anchors: 4, skipped: 0, correct: 2 });
        assert_eq!(grad, [0.0; 4]);
    }

    #[test]
    fn without_partners_everything_is_zero() {
        let x = [1.0, 2.0, 4.0];
        for (labels, correct) in [([5, 5, 5], 3), ([1, 2, 3], 0)] {
            let mut grad = [f64::NAN; 3];
            let score = margin(&x, 1, &oracle::pairs(&x, 1, &labels), 0.2, Some(&mut grad));
            assert_eq!(score, Score { value: 0.0, anchors: 0, skipped: 3, correct });
            assert_eq!(grad, [0.0; 3]);
        }
        assert_eq!(margin::<f64>(&[], 1, &[], 0.2, Some(&mut [])), Score::default());
        let alone = oracle::pairs(&[1.0], 1, &[0]);
        assert_eq!(margin(&[], 0, &alone, 0.2, None).skipped, 1);
    }

    #[test]
    fn hard_inputs_stay_finite() {
        for (name, x) in oracle::hard() {
            for pairs in [oracle::pairs(&x, 2, &[0, 1, 0, 1, 0, 1]), oracle::given_pairs(6)] {
                let mut grad = [f32::NAN; 12];
                let score = margin(&x, 2, &pairs, 0.2, Some(&mut grad));
                assert!(score.value.is_finite(), "{name}: {score:?}");
                assert!(grad.iter().all(|g| g.is_finite()), "{name}: {grad:?}");
                assert_eq!(score.anchors + score.skipped, 6, "{name}");
            }
        }
    }
}
