//! The paper's loss.

use super::{Score, Tally, distances, nearest_is_same, pull, samples};
use crate::neighbour::Pair;
use crate::real::Real;

/// The sum over anchors of the squared distance to the nearest sample with the same label, less
/// that to the nearest with another (Eq. 7 of the Separation Index paper).
///
/// ```text
/// J = sum_i |x_i - x_p(i)|^2 - |x_i - x_n(i)|^2
/// W_ip = 1, W_in = -1
/// dJ/dX = 2 L X,  L the difference of the two neighbour graphs' Laplacians
/// ```
/// p(i) and n(i) are the two of `pairs` (Eq. 8, as it is meant: in print both arg-mins run over
/// samples with l != l, where the first needs l = l). The distances are computed from the
/// features; those in `pairs` only decide [`Score::correct`].
///
/// J is a quadratic form: the gradients sum to zero over the batch, and `<X, dJ/dX> = 2 J`.
/// It has no lower bound, `J(cX) = c^2 J`: normalise the features, or use [`margin`](super::margin).
///
/// Shapes: features (M, dim), pairs (M), grad (M, dim), overwritten.
///
/// ```
/// use sepal_core::loss::triplet;
/// use sepal_core::neighbour::{Nearest, Pair};
/// let near = |index, dist2| Nearest { index, dist2 };
/// let none = near(u32::MAX, f32::INFINITY);
/// // 0 and 1 with one label, 3 with another.
/// let pairs = [
///     Pair { same: near(1, 1.0), other: near(2, 9.0) },
///     Pair { same: near(0, 1.0), other: near(2, 4.0) },
///     Pair { same: none, other: near(1, 4.0) },
/// ];
/// let mut grad = [0.0; 3];
/// let score = triplet(&[0.0, 1.0, 3.0], 1, &pairs, Some(&mut grad));
/// assert_eq!((score.value, score.anchors, score.skipped, score.correct), (-11.0, 2, 1, 2));
/// assert_eq!(grad, [2.0, 8.0, -10.0]);
/// ```
pub fn triplet<T: Real>(
    features: &[T],
    dim: usize,
    pairs: &[Pair<T>],
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
        let term = distances(features, dim, i, pair).map(|(same, other)| same - other);
        if tally.add(term)
            && let Some(grad) = grad.as_deref_mut()
        {
            pull(grad, features, dim, i, pair.same.index as usize, two);
            pull(grad, features, dim, i, pair.other.index as usize, -two);
        }
    }
    tally.sum()
}

#[cfg(test)]
mod tests {
    use super::super::oracle;
    use super::*;
    use crate::layer::check::{self, values};

    const LABELS: &[u16] = &[0, 1, 0, 2, 1, 0, 2, 1, 3];

    #[test]
    fn value_and_gradient_are_the_definition() {
        for dim in [1, 2, 5] {
            let x = values(dim as u64, (LABELS.len() * dim) as u32);
            let pairs = oracle::pairs(&x, dim, LABELS);
            let m = LABELS.len();
            let (mut value, mut w) = (0.0, std::vec![0.0; m * m]);
            for (i, pair) in pairs.iter().enumerate().filter(|(_, p)| p.same.index != u32::MAX) {
                value += pair.same.dist2 - pair.other.dist2;
                w[i * m + pair.same.index as usize] += 1.0;
                w[i * m + pair.other.index as usize] -= 1.0;
            }
            let mut grad = std::vec![f64::NAN; x.len()];
            let score = triplet(&x, dim, &pairs, Some(&mut grad));
            check::close(&[score.value], &[value], 1e-12);
            check::close(&grad, &oracle::gradient(&w, &x, dim), 1e-12);
            // Label 3 has one sample.
            assert_eq!((score.anchors, score.skipped), (8, 1));
            assert_eq!(score.correct, oracle::correct(&x, dim, LABELS));
            assert_eq!(triplet(&x, dim, &pairs, None), score);
        }
    }

    #[test]
    fn gradient_is_the_derivative() {
        for dim in [1, 3] {
            let x = values(7, (LABELS.len() * dim) as u32);
            let pairs = oracle::pairs(&x, dim, LABELS);
            check::gradient(
                &[x],
                1,
                |[x], y| y[0] = triplet(x, dim, &pairs, None).value,
                |[x], dy, [dx]| {
                    triplet(x, dim, &pairs, Some(dx));
                    dx.iter_mut().for_each(|d| *d *= dy[0]);
                },
            );
        }
    }

    #[test]
    fn gradients_sum_to_zero_and_the_form_is_quadratic() {
        let dim = 4;
        let x = values(3, (LABELS.len() * dim) as u32);
        let pairs = oracle::pairs(&x, dim, LABELS);
        let mut grad = std::vec![f64::NAN; x.len()];
        let score = triplet(&x, dim, &pairs, Some(&mut grad));
        for k in 0..dim {
            let sum: f64 = grad.iter().skip(k).step_by(dim).sum();
            check::close(&[sum], &[0.0], 1e-13);
        }
        check::close(&[check::dot(&x, &grad)], &[2.0 * score.value], 1e-13);
        let scaled: std::vec::Vec<f64> = x.iter().map(|x| 3.0 * x).collect();
        check::close(&[triplet(&scaled, dim, &pairs, None).value], &[9.0 * score.value], 1e-13);
    }

    #[test]
    fn without_partners_everything_is_zero() {
        let x = [1.0, 2.0, 4.0];
        for (labels, correct) in [([5, 5, 5], 3), ([1, 2, 3], 0)] {
            let mut grad = [f64::NAN; 3];
            let score = triplet(&x, 1, &oracle::pairs(&x, 1, &labels), Some(&mut grad));
            assert_eq!(score, Score { value: 0.0, anchors: 0, skipped: 3, correct });
            assert_eq!(grad, [0.0; 3]);
        }
        assert_eq!(triplet::<f64>(&[], 1, &[], Some(&mut [])), Score::default());
        let alone = oracle::pairs(&[1.0], 1, &[0]);
        assert_eq!(triplet(&[1.0], 1, &alone, None).skipped, 1);
        assert_eq!(triplet(&[], 0, &alone, None).skipped, 1);
    }

    #[test]
    fn a_partner_out_of_range_is_none() {
        let x = [0.0, 1.0, 3.0];
        let mut pairs = oracle::pairs(&x, 1, &[0, 0, 1]);
        pairs[0].other.index = 3;
        let score = triplet(&x, 1, &pairs, None);
        assert_eq!(score, Score { value: 1.0 - 4.0, anchors: 1, skipped: 2, correct: 2 });
    }

    #[test]
    fn hard_inputs_stay_finite() {
        for (name, x) in oracle::hard() {
            for pairs in [oracle::pairs(&x, 2, &[0, 1, 0, 1, 0, 1]), oracle::given_pairs(6)] {
                let mut grad = [f32::NAN; 12];
                let score = triplet(&x, 2, &pairs, Some(&mut grad));
                assert!(score.value.is_finite(), "{name}: {score:?}");
                assert!(grad.iter().all(|g| g.is_finite()), "{name}: {grad:?}");
                assert_eq!(score.anchors + score.skipped, 6, "{name}");
            }
        }
    }
}
