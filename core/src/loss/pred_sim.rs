//! The loss of local error signals: prediction and similarity matching.

use super::cross_entropy::hard_term;
use super::{Score, Tally, row, row_mut, samples, softmax};
use crate::real::Real;

/// A classifier's cross-entropy, and beside it how far the similarities of samples are from those of
/// their labels (Nøkland and Eidnes, "Training neural networks with local error signals", ICML 2019:
/// predsim).
///
/// ```text
/// L = (1 - b) (1/m') sum_i -log softmax(z_i)_(l_i) + b (1/m'^2) sum_ij (R_ij - T_ij)^2
/// R_ij = u_i . u_j,  u_i = c_i / |c_i|,  c_i = s_i - mean_k(s_ik)
/// T_ij = 1 where l_i = l_j, else -1 / (K - 1)
/// ```
/// The first `similar` columns of a row are s_i, the other K its logits z_i; b is `beta` in [0, 1], 0.99 in
/// the source. T is the same cosine of centred one-hot labels. With E = R - T, which is symmetric,
///
/// ```text
/// dL/du_i = (4 b / m'^2) sum_j E_ij u_j,  dL/dc_i = (dL/du_i - (dL/du_i . u_i) u_i) / |c_i|
/// dL/ds_i = dL/dc_i - mean_k(dL/dc_ik),  dL/dz_ik = (1 - b) (softmax(z_i)_k - [k = l_i]) / m'
/// ```
/// where all s_ik of a sample are equal, u_i and its gradient are 0. A label that is no class is skipped
/// and counted, and so is a sample whose term or whose |c_i|^2 is not finite: it is no partner
/// either. Where `beta` is out of range, K is below 2, or `similar` is 0, all samples are skipped.
/// [`Score::correct`] counts anchors whose arg-max is the label.
///
/// Shapes: features (M, dim), `similar + K = dim`, labels (M), grad (M, dim), overwritten; `scratch` lends 2 M
/// numbers, overwritten. Where one is too short, all samples are skipped. Time is M^2 similar.
///
/// ```
/// use sepal_core::loss::pred_sim;
/// // Two samples of two classes, which are as unlike as can be: what is left is the cross-entropy.
/// let features = [1.0_f64, -1.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0];
/// let score = pred_sim(&features, 4, &[0, 1], 0.75, 2, &mut [0.0; 4], None);
/// assert!((score.value - 0.25 * 2f64.ln()).abs() < 1e-12);
/// assert_eq!((score.anchors, score.correct), (2, 1));
/// ```
pub fn pred_sim<T: Real>(
    features: &[T],
    dim: usize,
    labels: &[u16],
    beta: T,
    similar: usize,
    scratch: &mut [T],
    mut grad: Option<&mut [T]>,
) -> Score<T> {
    if let Some(grad) = grad.as_deref_mut() {
        grad.fill(T::ZERO);
    }
    let classes = dim.saturating_sub(similar);
    let fits = similar > 0 && classes >= 2 && beta >= T::ZERO && beta <= T::ONE;
    let scratch = scratch.split_at_mut_checked(labels.len()).filter(|_| fits);
    let lent = scratch.filter(|(_, rest)| rest.len() >= labels.len());
    let Some((means, inverse)) = lent.filter(|_| samples(features, dim) >= labels.len()) else {
        return Score { skipped: labels.len() as u32, ..Score::default() };
    };
    let parts = |i: usize| {
        let row = row(features, dim, i).unwrap_or_default();
        row.split_at_checked(similar).unwrap_or_default()
    };

    let mut tally = Tally::new();
    for (i, (&label, (mean, inverse))) in
        labels.iter().zip(means.iter_mut().zip(inverse.iter_mut())).enumerate()
    {
        let (s, z) = parts(i);
        *mean = s.iter().fold(T::ZERO, |sum, &s| sum + s) / T::from_usize(similar);
        let square = s.iter().fold(T::ZERO, |sum, &s| sum + (s - *mean) * (s - *mean));
        let term = hard_term(z, label.into()).filter(|_| square.is_finite());
        let is_anchor = tally.add(term.map(|(term, _)| term));
        tally.count(is_anchor && term.is_some_and(|(_, is_largest)| is_largest));
        // Below 0: takes no part.
        *inverse = match is_anchor {
            true if square > T::ZERO => T::ONE / square.sqrt(),
            true => T::ZERO,
            false => -T::ONE,
        };
    }

    let Score { value: surprise, anchors, skipped, correct } = tally.sum();
    let count = T::from_f64(f64::from(anchors.max(1)));
    let apart = -T::ONE / T::from_usize(classes - 1);
    let (of_term, of_pair) = ((T::ONE - beta) / count, beta / (count * count));
    let mut unlike = T::ZERO;
    for (i, &label) in labels.iter().enumerate() {
        let scale = |i: usize| (means.get(i).copied(), inverse.get(i).copied());
        let (Some(mean), Some(own)) = scale(i) else { continue };
        if own < T::ZERO {
            continue;
        }
        let (s, z) = parts(i);
        let mut gradient = grad.as_deref_mut().and_then(|grad| row_mut(grad, dim, i));
        for (j, &other) in labels.iter().enumerate() {
            let (Some(other_mean), Some(other_own)) = scale(j) else { continue };
            if other_own < T::ZERO {
                continue;
            }
            let (t, _) = parts(j);
            let dot = s.iter().zip(t).fold(T::ZERO, |sum, (&a, &b)| {
                sum + (a - mean) * own * ((b - other_mean) * other_own)
            });
            let error = dot - if label == other { T::ONE } else { apart };
            unlike += error * error;
            let Some(gradient) = gradient.as_deref_mut() else { continue };
            for (g, &b) in gradient.iter_mut().zip(t) {
                *g += error * ((b - other_mean) * other_own);
            }
        }
        let Some((of_s, of_z)) =
            gradient.and_then(|gradient| gradient.split_at_mut_checked(similar))
        else {
            continue;
        };
        // Along u_i nothing changes its length's quotient; the mean of u_i is 0.
        let along = of_s.iter().zip(s).fold(T::ZERO, |sum, (&g, &a)| sum + g * ((a - mean) * own));
        let middle = of_s.iter().fold(T::ZERO, |sum, &g| sum + g) / T::from_usize(similar);
        let four = T::from_f64(4.0) * of_pair * own;
        for (g, &a) in of_s.iter_mut().zip(s) {
            *g = four * (*g - middle - along * ((a - mean) * own));
        }
        of_z.iter_mut().zip(z).for_each(|(g, &z)| *g = z);
        softmax(of_z);
        for (k, g) in of_z.iter_mut().enumerate() {
            let target = if k == usize::from(label) { T::ONE } else { T::ZERO };
            *g = of_term * (*g - target);
        }
    }
    Score { value: of_term * surprise + of_pair * unlike, anchors, skipped, correct }
}

#[cfg(test)]
mod tests {
    use super::super::oracle;
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const LABELS: &[u16] = &[0, 1, 0, 2, 1, 7, 2, 1];
    const M: usize = LABELS.len();

    /// The definition: cosines of centred rows, of labels as one-hot rows too.
    fn brute(x: &[f64], dim: usize, labels: &[u16], beta: f64, similar: usize) -> f64 {
        let classes = dim - similar;
        let centred = |v: &[f64]| {
            let mean = v.iter().sum::<f64>() / v.len() as f64;
            v.iter().map(|v| v - mean).collect::<Vec<f64>>()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = |a: &[f64], b: &[f64]| {
            let (a, b) = (centred(a), centred(b));
            dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
        };
        let one_hot = |label: u16| {
            (0..classes).map(|k| f64::from(u8::from(k == label.into()))).collect::<Vec<f64>>()
        };
        let valid: Vec<usize> =
            (0..labels.len()).filter(|&i| usize::from(labels[i]) < classes).collect();
        let m = valid.len() as f64;
        let row = |i: usize| x[i * dim..(i + 1) * dim].split_at(similar);
        let (mut surprise, mut unlike) = (0.0, 0.0);
        for &i in &valid {
            let z = row(i).1;
            let sum: f64 = z.iter().map(|z| z.exp()).sum();
            surprise -= (z[usize::from(labels[i])].exp() / sum).ln();
            for &j in &valid {
                let target = cosine(&one_hot(labels[i]), &one_hot(labels[j]));
                unlike += (cosine(row(i).0, row(j).0) - target).powi(2);
            }
        }
        (1.0 - beta) * surprise / m + beta * unlike / (m * m)
    }

    #[test]
    fn value_is_the_definition() {
        for (similar, classes) in [(2, 3), (5, 3), (4, 9)] {
            for beta in [0.0, 0.3, 0.99, 1.0] {
                let dim = similar + classes;
                let x = values(similar as u64, (M * dim) as u32);
                let (mut scratch, mut grad) = ([f64::NAN; 2 * M], std::vec![f64::NAN; x.len()]);
                let score = pred_sim(&x, dim, LABELS, beta, similar, &mut scratch, Some(&mut grad));
                check::close(&[score.value], &[brute(&x, dim, LABELS, beta, similar)], 1e-12);
                let skipped = u32::from(classes < 8);
                assert_eq!((score.anchors, score.skipped), (M as u32 - skipped, skipped));
                assert_eq!(pred_sim(&x, dim, LABELS, beta, similar, &mut scratch, None), score);
            }
        }
    }

    #[test]
    fn gradient_is_the_derivative() {
        for (similar, classes) in [(2, 3), (5, 3), (6, 2)] {
            for beta in [0.0, 0.6, 1.0] {
                let dim = similar + classes;
                let x = values(3, (M * dim) as u32);
                let run = |x: &[f64], grad: Option<&mut [f64]>| {
                    pred_sim(x, dim, LABELS, beta, similar, &mut [0.0; 2 * M], grad)
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

    /// Equal numbers have no direction: similarities with them are 0, and they get no gradient.
    #[test]
    fn rows_without_a_direction() {
        let x = [3.0, 3.0, 1.0, 0.0, 1.0, 5.0, 0.0, 1.0];
        let mut grad = [f64::NAN; 8];
        let score = pred_sim(&x, 4, &[0, 1], 1.0, 2, &mut [0.0; 4], Some(&mut grad));
        // Row 0 with itself is off by 1, with row 1 twice by 1; row 1 with itself is right.
        check::close(&[score.value], &[3.0 / 4.0], 1e-15);
        assert_eq!((grad[..2].to_vec(), score.correct), (std::vec![0.0; 2], 2));
    }

    #[test]
    fn what_does_not_fit_is_skipped_whole() {
        let x = [1.0, 2.0, 0.5, 0.1, 5.0, 3.0, 0.2, 0.9];
        for (dim, beta, similar, len) in [
            (4, -0.1, 2, 4),
            (4, 1.1, 2, 4),
            (4, f64::NAN, 2, 4),
            (4, 0.5, 0, 4),
            (4, 0.5, 3, 4),
            (4, 0.5, 9, 4),
            (4, 0.5, 2, 3),
            (5, 0.5, 2, 4),
            (0, 0.5, 2, 4),
        ] {
            let mut grad = [f64::NAN; 8];
            let scratch = &mut [0.0; 4][..len];
            let score = pred_sim(&x, dim, &[0, 1], beta, similar, scratch, Some(&mut grad));
            assert_eq!(score, Score { value: 0.0, anchors: 0, skipped: 2, correct: 0 });
            assert_eq!(grad, [0.0; 8]);
        }
        let none = pred_sim::<f64>(&[], 4, &[], 0.5, 2, &mut [], Some(&mut []));
        assert_eq!(none, Score::default());
    }

    #[test]
    fn hard_inputs_stay_finite() {
        for (name, x) in oracle::hard() {
            let (mut scratch, mut grad) = ([0.0; 6], [f32::NAN; 12]);
            let labels = [0, 1, 0];
            let score = pred_sim(&x, 4, &labels, 0.5, 2, &mut scratch, Some(&mut grad));
            assert!(score.value.is_finite(), "{name}: {score:?}");
            assert!(grad.iter().all(|g| g.is_finite()), "{name}: {grad:?}");
            assert_eq!(score.anchors + score.skipped, 3, "{name}");
        }
    }
}
