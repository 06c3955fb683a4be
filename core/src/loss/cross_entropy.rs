//! The classifier's loss.

use super::{Score, Tally, row_mut};
use crate::real::Real;

/// The mean over samples of the cross-entropy between softened labels and the softmax of logits.
///
/// ```text
/// L = (1/m') sum_i sum_k t_ik (logsumexp_j(z_ij) - z_ik)
/// t_ik = (1 - s) [k = l_i] + s / K,  dL/dz_ik = (softmax(z_i)_k - t_ik) / m'
/// ```
/// where `d logsumexp_j(z_ij) / dz_ik` is the softmax, and the t_ik of a sample add up to 1.
/// K is `classes`, s is `smoothing` in [0, 1] (Szegedy et al., 2016; 0 for hard labels), m' the
/// number of samples that count. A label that is no class is skipped and counted, and so is a
/// sample whose term is not finite. [`Score::correct`] counts anchors whose arg-max is the label;
/// of equal logits the first wins, NaN never.
///
/// Shapes: logits z (M, classes), labels (M), grad (M, classes), overwritten.
///
/// ```
/// use sepal_core::loss::cross_entropy;
/// let mut grad = [0.0; 4];
/// let score = cross_entropy(&[1.0_f64, 1.0, 0.0, 9.0], 2, &[0, 7], 0.0, Some(&mut grad));
/// assert_eq!((score.anchors, score.skipped, score.correct), (1, 1, 1));
/// assert!((score.value - 2f64.ln()).abs() < 1e-15);
/// assert_eq!(grad, [-0.5, 0.5, 0.0, 0.0]);
/// ```
pub fn cross_entropy<T: Real>(
    logits: &[T],
    classes: usize,
    labels: &[u16],
    smoothing: T,
    mut grad: Option<&mut [T]>,
) -> Score<T> {
    if let Some(grad) = grad.as_deref_mut() {
        grad.fill(T::ZERO);
    }
    let share = smoothing / T::from_usize(classes.max(1));
    let mut tally = Tally::new();
    for (i, &label) in labels.iter().enumerate() {
        let label = usize::from(label);
        let Some(z) = super::row(logits, classes, i).filter(|_| label < classes) else {
            tally.add(None);
            continue;
        };
        let (largest, sum) = exponentials(z);
        let log_sum = sum.ln();
        // -log softmax; both differences are exact where it matters, at the largest logits.
        let surprise = |z: T| (largest - z) + log_sum;
        let own = z.get(label).map(|&z| surprise(z));
        let term = own.map(|own| {
            if smoothing == T::ZERO {
                // A logit of -infinity takes no part.
                own
            } else {
                (T::ONE - smoothing) * own
                    + z.iter().fold(T::ZERO, |sum, &z| sum + share * surprise(z))
            }
        });
        if !tally.add(term) {
            continue;
        }
        tally.count(z.iter().position(|&z| z == largest) == Some(label));
        if let Some(grad) = grad.as_deref_mut().and_then(|grad| row_mut(grad, classes, i)) {
            for ((k, g), &z) in grad.iter_mut().enumerate().zip(z) {
                let target = if k == label { T::ONE - smoothing + share } else { share };
                *g = (z - largest).exp() / sum - target;
            }
        }
    }
    tally.mean(grad)
}

/// A sample's `-log softmax(z)_label`, and whether the label's logit is the first of the largest;
/// `None` where the label is no class.
pub(super) fn hard_term<T: Real>(z: &[T], label: usize) -> Option<(T, bool)> {
    let (largest, sum) = exponentials(z);
    let own = *z.get(label)?;
    Some(((largest - own) + sum.ln(), z.iter().position(|&z| z == largest) == Some(label)))
}

/// Makes one row of logits probabilities, in place: `exp(z_k) / sum_j exp(z_j)`.
///
/// Logits of infinity share everything equally; a NaN makes all NaN.
///
/// ```
/// let mut row = [1000.0_f32, 1000.0, -1000.0];
/// sepal_core::loss::softmax(&mut row);
/// assert_eq!(row, [0.5, 0.5, 0.0]);
/// ```
pub fn softmax<T: Real>(row: &mut [T]) {
    let (largest, sum) = exponentials(row);
    for z in row {
        *z = exponential(*z, largest) / sum;
    }
}

/// The largest number, and the sum of the exponentials of all less the largest: at least 1.
fn exponentials<T: Real>(row: &[T]) -> (T, T) {
    let largest = row.iter().fold(-T::INFINITY, |max, &z| if z > max { z } else { max });
    (largest, row.iter().fold(T::ZERO, |sum, &z| sum + exponential(z, largest)))
}

/// `exp(z - largest)`, also where both are the same infinity.
fn exponential<T: Real>(z: T, largest: T) -> T {
    if z == largest { T::ONE } else { (z - largest).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const LABELS: &[u16] = &[0, 2, 1, 1, 3, 9, 0];

    /// The definition, sample by sample; label 9 is no class.
    fn brute(z: &[f64], classes: usize, labels: &[u16], s: f64) -> (f64, Vec<f64>) {
        let valid = labels.iter().filter(|&&l| usize::from(l) < classes).count() as f64;
        let (mut value, mut grad) = (0.0, std::vec![0.0; z.len()]);
        for (i, &label) in labels.iter().enumerate().filter(|(_, l)| usize::from(**l) < classes) {
            let sum: f64 = (0..classes).map(|k| z[i * classes + k].exp()).sum();
            for k in 0..classes {
                let p = z[i * classes + k].exp() / sum;
                let hard = if k == usize::from(label) { 1.0 } else { 0.0 };
                let t = (1.0 - s) * hard + s / classes as f64;
                value -= t * p.ln() / valid;
                grad[i * classes + k] = (p - t) / valid;
            }
        }
        (value, grad)
    }

    #[test]
    fn value_and_gradient_are_the_definition() {
        for classes in [4, 6] {
            for s in [0.0, 0.1, 1.0] {
                let z = values(2, (LABELS.len() * classes) as u32);
                let (value, expected) = brute(&z, classes, LABELS, s);
                let mut grad = std::vec![f64::NAN; z.len()];
                let score = cross_entropy(&z, classes, LABELS, s, Some(&mut grad));
                check::close(&[score.value], &[value], 1e-14);
                check::close(&grad, &expected, 1e-14);
                assert_eq!((score.anchors, score.skipped), (6, 1));
                assert_eq!(cross_entropy(&z, classes, LABELS, s, None), score);
            }
        }
    }

    #[test]
    fn gradient_is_the_derivative() {
        for s in [0.0, 0.2] {
            let z = values(4, 4 * LABELS.len() as u32);
            check::gradient(
                &[z],
                1,
                |[z], y| y[0] = cross_entropy(z, 4, LABELS, s, None).value,
                |[z], dy, [dz]| {
                    cross_entropy(z, 4, LABELS, s, Some(dz));
                    dz.iter_mut().for_each(|d| *d *= dy[0]);
                },
            );
        }
    }

    #[test]
    fn correct_is_the_arg_max_and_ties_go_to_the_first() {
        let z = [
            1.0, 2.0, 0.0, // 1
            5.0, 5.0, 5.0, // 0, tied
            0.0, 3.0, 3.0, // 1, tied
            -1.0, -2.0, -0.5, // 2
        ];
        for (labels, correct) in [([1, 0, 1, 2], 4), ([0, 1, 2, 1], 0), ([1, 1, 1, 1], 2)] {
            assert_eq!(cross_entropy(&z, 3, &labels, 0.0_f64, None).correct, correct);
        }
    }

    #[test]
    fn without_samples_everything_is_zero() {
        let mut grad = [f64::NAN; 4];
        let score = cross_entropy(&[1.0; 4], 2, &[2, u16::MAX], 0.1, Some(&mut grad));
        assert_eq!(score, Score { value: 0.0, anchors: 0, skipped: 2, correct: 0 });
        assert_eq!(grad, [0.0; 4]);
        assert_eq!(cross_entropy::<f64>(&[], 3, &[], 0.0, None), Score::default());
        assert_eq!(cross_entropy::<f64>(&[], 0, &[0], 0.0, None).skipped, 1);
        // Fewer logits than labels.
        assert_eq!(cross_entropy(&[1.0_f64, 2.0], 2, &[1, 1], 0.0, None).skipped, 1);
    }

    #[test]
    fn one_class_costs_nothing() {
        let mut grad = [f64::NAN; 2];
        let score = cross_entropy(&[3.0, -8.0], 1, &[0, 0], 0.3, Some(&mut grad));
        assert_eq!(score, Score { value: 0.0, anchors: 2, skipped: 0, correct: 2 });
        check::close(&grad, &[0.0; 2], 1e-15);
    }

    #[test]
    fn large_logits_stay_exact() {
        let mut grad = [f32::NAN; 4];
        let score = cross_entropy(&[1e6, 1e6 + 2.0, -3e4, 3e4], 2, &[1, 0], 0.0, Some(&mut grad));
        let expected = ((1.0 + (-2f32).exp()).ln() + 6e4) / 2.0;
        assert!((score.value - expected).abs() < 0.01, "{score:?}");
        let p = 1.0 / (1.0 + 2f32.exp());
        for (g, e) in grad.iter().zip([p / 2.0, -p / 2.0, -0.5, 0.5]) {
            assert!((g - e).abs() < 1e-6, "{grad:?}");
        }
    }

    #[test]
    fn hard_inputs_stay_finite() {
        let inf = f32::INFINITY;
        let rows: &[([f32; 3], u32, u32)] = &[
            // The row with label 0; anchors without and with smoothing.
            ([0.0, 0.0, 0.0], 1, 1),
            ([f32::MAX, -f32::MAX, 0.0], 1, 0),
            ([-f32::MAX, f32::MAX, 0.0], 0, 0),
            ([1e-40, -1e-40, 1e-45], 1, 1),
            ([0.0, -inf, 1.0], 1, 0),
            ([-inf, 0.0, 1.0], 0, 0),
            ([inf, 0.0, 1.0], 0, 0),
            ([f32::NAN, 0.0, 1.0], 0, 0),
            ([0.0, f32::NAN, 1.0], 0, 0),
            ([f32::NAN; 3], 0, 0),
        ];
        for &(z, hard, soft) in rows {
            for (s, anchors) in [(0.0, hard), (0.1, soft)] {
                let mut grad = [f32::NAN; 3];
                let score = cross_entropy(&z, 3, &[0], s, Some(&mut grad));
                assert_eq!((score.anchors, score.skipped), (anchors, 1 - anchors), "{z:?} {s}");
                assert!(score.value.is_finite(), "{z:?} {s}: {score:?}");
                assert!(grad.iter().all(|g| g.is_finite()), "{z:?} {s}: {grad:?}");
            }
        }
    }

    #[test]
    fn softmax_is_the_definition() {
        let z = values(8, 5);
        let sum: f64 = z.iter().map(|z| z.exp()).sum();
        let expected: Vec<f64> = z.iter().map(|z| z.exp() / sum).collect();
        let mut p = z.clone();
        softmax(&mut p);
        check::close(&p, &expected, 1e-15);
        softmax::<f64>(&mut []);
        for (z, expected) in [
            ([0.0, 0.0], [0.5, 0.5]),
            ([f64::INFINITY, 5.0], [1.0, 0.0]),
            ([f64::INFINITY; 2], [0.5, 0.5]),
            ([f64::NEG_INFINITY, 5.0], [0.0, 1.0]),
            ([f64::NEG_INFINITY; 2], [0.5, 0.5]),
            ([f64::MAX, f64::MIN], [1.0, 0.0]),
        ] {
            let mut p = z;
            softmax(&mut p);
            assert_eq!(p, expected, "{z:?}");
        }
        let mut p = [1.0, f64::NAN];
        softmax(&mut p);
        assert!(p.iter().all(|p| p.is_nan()));
    }
}
