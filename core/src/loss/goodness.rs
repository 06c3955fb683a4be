//! The loss of the forward-forward algorithm: positive samples excite a block, negative ones do not.

use super::{Score, Tally, row, row_mut, samples};
use crate::real::Real;

/// How well each sample's goodness tells positive samples from negative ones (Hinton, "The
/// forward-forward algorithm: some preliminary investigations", arXiv 2212.13345, Eq. 1).
///
/// ```text
/// L = (1/m') sum_i softplus(-s_i (g_i - t)),  g_i = (1/D) sum_k f_ik^2,  softplus(z) = ln(1 + e^z)
/// dL/df_ik = -(s_i / m') sigmoid(-s_i (g_i - t)) 2 f_ik / D
/// ```
/// t is `threshold`; s is 1 for the first half of the rows, which are positive, and -1 for the others.
/// The source writes the sum of squares in its equation, inside the logistic function of which the loss
/// is -log: the probability of a sample's kind. Of D features the mean is that by D. So a threshold does
/// not depend on D, and what is inside is 1/D of the source's.
///
/// Labels are those written into the samples. One that is none of `classes` is skipped and counted, and
/// so is a sample whose goodness or term is not finite. With fewer than two classes, or a threshold
/// that is not finite, all are. [`Score::correct`] counts anchors on their side of the threshold.
///
/// Shapes: features (M, dim), labels (M), grad (M, dim), overwritten.
///
/// ```
/// use sepal_core::loss::goodness;
/// let (mut grad, labels) = ([0.0; 4], [0, 1]);
/// let score = goodness(&[1.0_f64, 1.0, 1.0, 1.0], 2, &labels, 2, 1.0, Some(&mut grad));
/// // Both lie on the threshold: the first is to rise, the second to fall.
/// assert!((score.value - 2f64.ln()).abs() < 1e-15);
/// assert_eq!(grad, [-0.25, -0.25, 0.25, 0.25]);
/// ```
pub fn goodness<T: Real>(
    features: &[T],
    dim: usize,
    labels: &[u16],
    classes: u32,
    threshold: T,
    mut grad: Option<&mut [T]>,
) -> Score<T> {
    if let Some(grad) = grad.as_deref_mut() {
        grad.fill(T::ZERO);
    }
    let fits = classes >= 2 && threshold.is_finite() && samples(features, dim) >= labels.len();
    let (positive, d) = (labels.len() / 2, T::from_usize(dim.max(1)));
    let mut tally = Tally::new();
    for (i, &label) in labels.iter().enumerate() {
        let f = row(features, dim, i).filter(|_| fits && u32::from(label) < classes);
        let above = f.map(|f| f.iter().fold(T::ZERO, |sum, &f| sum + f * f) / d - threshold);
        // An infinite goodness is on the right side of a positive sample, where its term is 0.
        let above = above.filter(|above| above.is_finite());
        let is_positive = i < positive;
        // How far on the wrong side.
        let wrong = above.map(|above| if is_positive { -above } else { above });
        if !tally.add(wrong.map(softplus)) {
            continue;
        }
        let (Some(f), Some(above), Some(wrong)) = (f, above, wrong) else { continue };
        tally.count((above > T::ZERO) == is_positive);
        let slope = T::from_f64(if is_positive { -2.0 } else { 2.0 }) * sigmoid(wrong) / d;
        if let Some(grad) = grad.as_deref_mut().and_then(|grad| row_mut(grad, dim, i)) {
            grad.iter_mut().zip(f).for_each(|(g, &f)| *g = slope * f);
        }
    }
    tally.mean(grad)
}

/// `ln(1 + e^z)`, whose exponential is at most 1.
fn softplus<T: Real>(z: T) -> T {
    let (above, size) = if z > T::ZERO { (z, z) } else { (T::ZERO, -z) };
    above + (T::ONE + (-size).exp()).ln()
}

/// `1 / (1 + e^-z)`, whose exponential is at most 1.
fn sigmoid<T: Real>(z: T) -> T {
    if z >= T::ZERO {
        T::ONE / (T::ONE + (-z).exp())
    } else {
        let e = z.exp();
        e / (T::ONE + e)
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle;
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const LABELS: &[u16] = &[0, 1, 3, 2, 1, 0, 2, 1];
    const M: usize = LABELS.len();

    /// The definition: -log of the probability of the kind, of samples whose label is a class.
    fn brute(x: &[f64], dim: usize, labels: &[u16], classes: u32, threshold: f64) -> f64 {
        let terms: Vec<f64> = (0..labels.len())
            .filter(|&i| u32::from(labels[i]) < classes)
            .map(|i| {
                let squares = x[i * dim..(i + 1) * dim].iter().map(|x| x * x).sum::<f64>();
                let positive = 1.0 / (1.0 + (threshold - squares / dim as f64).exp());
                -(if i < labels.len() / 2 { positive } else { 1.0 - positive }).ln()
            })
            .collect();
        terms.iter().sum::<f64>() / terms.len() as f64
    }

    #[test]
    fn value_is_the_definition() {
        for (dim, classes) in [(1, 4), (3, 4), (5, 3), (17, 2)] {
            for threshold in [-1.0, 0.0, 0.4, 9.0] {
                let x = values(dim as u64, (M * dim) as u32);
                let mut grad = std::vec![f64::NAN; x.len()];
                let score = goodness(&x, dim, LABELS, classes, threshold, Some(&mut grad));
                check::close(&[score.value], &[brute(&x, dim, LABELS, classes, threshold)], 1e-12);
                let skipped = LABELS.iter().filter(|&&l| u32::from(l) >= classes).count() as u32;
                assert_eq!((score.anchors, score.skipped), (M as u32 - skipped, skipped));
                assert_eq!(goodness(&x, dim, LABELS, classes, threshold, None), score);
            }
        }
    }

    #[test]
    fn gradient_is_the_derivative() {
        for (dim, classes) in [(1, 4), (3, 3), (16, 4)] {
            for threshold in [0.0, 0.3, 2.0] {
                let x = values(3, (M * dim) as u32);
                let run = |x: &[f64], grad: Option<&mut [f64]>| {
                    goodness(x, dim, LABELS, classes, threshold, grad)
                };
                check::gradient(
                    &[x],
                    1,
                    |[x], y| y[0] = run(x, None).value,
                    |[x], dy, [dx]| {
                        run(x, Some(dx));
                        dx.iter_mut().for_each(|d| *d *= dy[0]);
                    },
                );
            }
        }
    }

    #[test]
    fn the_side_of_the_threshold_counts() {
        // Goodness 4, 1 of positive samples, 4, 1 of negative ones.
        let x = [2.0, -2.0, 1.0, 1.0, -2.0, 2.0, 1.0, -1.0];
        for (threshold, correct) in [(0.5, 2), (2.0, 2), (5.0, 2), (1.0, 2)] {
            assert_eq!(goodness(&x, 2, &[0, 1, 1, 0], 2, threshold, None).correct, correct);
        }
        let apart = [2.0, -2.0, 2.0, 2.0, 0.5, 0.0, 0.0, 0.5];
        assert_eq!(goodness(&apart, 2, &[0, 1, 1, 0], 2, 1.0, None).correct, 4);
        let (close, far) = (goodness(&x, 2, &[0; 4], 2, 1.0, None).value, [1e9f64; 2]);
        // Far on the wrong side the term is the distance, and the gradient that of the goodness.
        let mut grad = [0.0; 2];
        let wrong = goodness(&far[..], 1, &[0, 0], 2, 0.0, Some(&mut grad));
        assert!(close < wrong.value && (wrong.value / 5e17 - 1.0).abs() < 1e-12);
        assert_eq!(grad, [0.0, 1e9]);
    }

    #[test]
    fn what_does_not_fit_is_skipped_whole() {
        let x = [1.0, 2.0, 0.5, 0.1];
        for (dim, classes, threshold) in [
            (2, 1, 0.5),
            (2, 0, 0.5),
            (2, 2, f64::NAN),
            (2, 2, f64::INFINITY),
            (3, 2, 0.5),
            (0, 2, 0.5),
        ] {
            let mut grad = [f64::NAN; 4];
            let score = goodness(&x, dim, &[0, 1], classes, threshold, Some(&mut grad));
            assert_eq!(score, Score { value: 0.0, anchors: 0, skipped: 2, correct: 0 });
            assert_eq!(grad, [0.0; 4]);
        }
        let none = goodness::<f64>(&[], 2, &[], 2, 0.5, Some(&mut []));
        assert_eq!(none, Score::default());
    }

    #[test]
    fn hard_inputs_stay_finite() {
        for (name, x) in oracle::hard() {
            // What is no number stands in a row of each kind.
            for (dim, labels) in [(4, &[0, 1, 0][..]), (3, &[0, 1, 0, 1])] {
                let mut grad = [f32::NAN; 12];
                let score = goodness(&x, dim, labels, 2, 1.0, Some(&mut grad));
                assert!(score.value.is_finite(), "{name}: {score:?}");
                assert!(grad.iter().all(|g| g.is_finite()), "{name}: {grad:?}");
                assert_eq!(score.anchors + score.skipped, labels.len() as u32, "{name}");
                let good = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().is_finite();
                let anchors = x.chunks(dim).filter(|row| good(row)).count() as u32;
                assert!(score.anchors <= anchors, "{name}: {score:?}, {anchors} finite");
            }
        }
    }
}
