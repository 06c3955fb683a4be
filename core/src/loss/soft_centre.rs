//! The soft nearest centre loss.

use super::{Score, Tally, dist2, pull, row, samples};
use crate::real::Real;

/// The mean over anchors of how unlikely the centre of the anchor's label is, drawn with
/// probabilities that fall with the distance: what stands in for the
/// [centre-based](crate::si::centre_based) index as [`soft_nearest`](super::soft_nearest()) does for SI.
///
/// ```text
/// L_i = logsumexp_c(-d_ic / T) + d_il / T,  d_ic = |f_i - mu_c|^2,  l = l_i
///     = -ln p_il,  p the softmax of -d_ic / T over labels c
/// ```
/// mu_c is the mean of the batch's samples with label c, of which the anchor is never one. Softmax
/// over distances to means of classes is of Mensink et al. (PAMI 2013) and, over means of a batch,
/// of Snell, Swersky and Zemel (NeurIPS 2017), who take means over other samples than anchors;
/// here each sample is an anchor and left out of its own mean.
///
/// With n samples in the mean, distances of pairs are enough, for value and gradient:
///
/// ```text
/// d_ic = 1/n sum_{j in c} d_ij - 1/(2 n^2) sum_{j, k in c} d_jk
/// w_ic = dL/d d_ic = ([c = l_i] - p_ic) / (T m')
/// W_ij = w_ic / n for j in c,  and W_jk -= sum_i w_ic / (2 n^2) for j and k in c
/// ```
/// m' is the number of anchors, and the last sum over all anchors but j and k. A mean whose
/// distance is not finite is no centre. Where `temperature` is not a finite number above 0, all
/// anchors are skipped.
///
/// Shapes: features (M, dim), labels (M), grad (M, dim), overwritten; `scratch` lends
/// [`CENTRE_SCRATCH`] M numbers, overwritten. Where features or `scratch` are too short, all anchors
/// are skipped. Time is M^2 dim, memory M.
///
/// ```
/// use sepal_core::loss::soft_centre;
/// let mut scratch = [0.0; 24];
/// let x = [0.0_f64, 1.0, 2.0, 4.0];
/// let score = soft_centre(&x, 1, &[0, 0, 1, 1], 1.0, &mut scratch, None);
/// // Distances to the centres of labels 0 and 1: row 0 has 1 and 9, row 1 has 1 and 4, row 2 has
/// // 2.25 and 4, row 3 has 12.25 and 4.
/// let term = |own: f64, other: f64| (1.0 + (own - other).exp()).ln();
/// let terms = term(1.0, 9.0) + term(1.0, 4.0) + term(4.0, 2.25) + term(4.0, 12.25);
/// assert!((score.value - terms / 4.0).abs() < 1e-12);
/// // The nearest sample of row 2 is row 1, of another label.
/// assert_eq!((score.anchors, score.skipped, score.correct), (4, 0, 3));
/// ```
pub fn soft_centre<T: Real>(
    features: &[T],
    dim: usize,
    labels: &[u16],
    temperature: T,
    scratch: &mut [T],
    mut grad: Option<&mut [T]>,
) -> Score<T> {
    if let Some(grad) = grad.as_deref_mut() {
        grad.fill(T::ZERO);
    }
    if samples(features, dim) < labels.len() {
        return Score { skipped: labels.len() as u32, ..Score::default() };
    }
    let sample = |i: usize| row(features, dim, i).unwrap_or_default();
    let distance = |i: usize, j: usize| dist2(sample(i), sample(j));
    let score = soft_centre_weights(labels, temperature, scratch, distance, |i, j, weight| {
        if let Some(grad) = grad.as_deref_mut() {
            pull(grad, features, dim, i, j, weight);
        }
    });
    // 2 of the gradient, 1 / (T m') of the weights; without an anchor there is nothing to scale.
    let anchors = T::from_f64(f64::from(score.anchors));
    for g in grad.into_iter().flatten().filter(|_| score.anchors > 0) {
        *g = (*g + *g) / temperature / anchors;
    }
    score
}

/// Numbers of scratch that [`soft_centre`] takes for each sample.
pub const CENTRE_SCRATCH: usize = 6;

/// [`soft_centre`] from distances alone: calls `weigh` with i, j and what is to be added to
/// `T m' W_ij`, where that is not 0; for the same i and j twice where they share a label.
///
/// `distance` gives d_ij, and is asked for i != j only. Shapes, times and what is skipped are those
/// of [`soft_centre`], whose gradient is `2 (diag(S 1) F - S F)`, S = W + W'.
pub fn soft_centre_weights<T: Real>(
    labels: &[u16],
    temperature: T,
    scratch: &mut [T],
    distance: impl Fn(usize, usize) -> T,
    mut weigh: impl FnMut(usize, usize, T),
) -> Score<T> {
    let mut parts = scratch.chunks_exact_mut(labels.len().max(1));
    let mut part = || parts.next();
    let is_positive = temperature.is_finite() && temperature > T::ZERO;
    let (Some(first), Some(count), Some(own), Some(scatter), Some(centres), Some(spread), true) =
        (part(), part(), part(), part(), part(), part(), is_positive)
    else {
        return Score { skipped: labels.len() as u32, ..Score::default() };
    };
    // What belongs to a label lies at its first sample, whose index each sample knows.
    for (first, &label) in first.iter_mut().zip(labels) {
        let at = labels.iter().position(|&l| l == label).unwrap_or_default();
        *first = T::from_usize(at);
    }
    let first = |i: usize| first.get(i).map_or(usize::MAX, |first| first.to_f64() as usize);
    for numbers in [&mut *count, &mut *scatter, &mut *spread] {
        numbers.fill(T::ZERO);
    }
    for ((i, &label), own) in labels.iter().enumerate().zip(&mut *own) {
        let others = labels.iter().enumerate().filter(|&(j, &l)| j != i && l == label);
        *own = others.fold(T::ZERO, |sum, (j, _)| sum + distance(i, j));
        if let (Some(scatter), Some(count)) = (scatter.get_mut(first(i)), count.get_mut(first(i))) {
            *scatter += *own;
            *count += T::ONE;
        }
    }
    let count = &*count;
    let mut tally = Tally::new();
    for ((i, &label), own) in labels.iter().enumerate().zip(&mut *own) {
        let (mut nearest, mut is_same) = (T::INFINITY, false);
        centres.fill(T::ZERO);
        for (j, &other) in labels.iter().enumerate().filter(|(j, _)| *j != i) {
            let d = distance(i, j);
            if d < nearest {
                (nearest, is_same) = (d, other == label);
            }
            if let Some(sum) = centres.get_mut(first(j)) {
                *sum += d;
            }
        }
        tally.count(is_same);
        // Sums of distances become distances to means; infinite where there is none.
        let mine = first(i);
        let (mut low, mut has_other) = (T::INFINITY, false);
        for (at, ((d, &n), &scatter)) in centres.iter_mut().zip(count).zip(&*scatter).enumerate() {
            let is_mine = at == mine;
            let n = if is_mine { n - T::ONE } else { n };
            let scatter = if is_mine { scatter - (*own + *own) } else { scatter };
            // Where no label begins, n is 0 and this no number.
            *d = *d / n - scatter / (n * n + n * n);
            if !d.is_finite() {
                *d = T::INFINITY;
            }
            has_other |= !is_mine && d.is_finite();
            if *d < low {
                low = *d;
            }
        }
        *own = T::ZERO;
        let to_mine = centres.get(mine).copied().unwrap_or(T::INFINITY);
        // Other labels apart: next to the anchor's own they may be lost.
        let (mut all, mut others) = (T::ZERO, T::ZERO);
        for (at, d) in centres.iter_mut().enumerate() {
            *d = if d.is_finite() { ((low - *d) / temperature).exp() } else { T::ZERO };
            all += *d;
            if at != mine {
                others += *d;
            }
        }
        let is_anchor = to_mine.is_finite() && has_other;
        if !tally.add(is_anchor.then(|| all.ln() + (to_mine - low) / temperature)) {
            continue;
        }
        let of_labels = centres.iter_mut().zip(&mut *spread).zip(count);
        for (at, ((weight, spread), &n)) in of_labels.enumerate() {
            let is_mine = at == mine;
            let n = if is_mine { n - T::ONE } else { n };
            let w = if is_mine { others / all } else { -*weight / all };
            *weight = T::ZERO;
            if w != T::ZERO {
                *weight = w / n;
                *spread += w / (n * n);
            }
            if is_mine {
                *own = *weight / n;
            }
        }
        for j in (0..labels.len()).filter(|j| *j != i) {
            let weight = centres.get(first(j)).copied().unwrap_or_default();
            if weight != T::ZERO {
                weigh(i, j, weight);
            }
        }
    }
    for ((j, &label), &own_j) in labels.iter().enumerate().zip(&*own) {
        let all = spread.get(first(j)).copied().unwrap_or_default();
        let rest = labels.iter().enumerate().zip(&*own).skip(j + 1);
        for ((k, _), &own_k) in rest.filter(|((_, l), _)| **l == label) {
            // Of both W_jk and W_kj, each half of it.
            let weight = own_j + own_k - all;
            if weight != T::ZERO {
                weigh(j, k, weight);
            }
        }
    }
    tally.mean(None)
}

#[cfg(test)]
mod tests {
    use super::super::oracle;
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const LABELS: &[u16] = &[4, 1, 4, 2, 1, 4, 2, 1, 3];
    const M: usize = LABELS.len();

    /// From means themselves, without care for stability.
    fn brute(x: &[f64], dim: usize, labels: &[u16], t: f64) -> f64 {
        let m = labels.len();
        let centre = |i: usize, label: u16| -> Option<f64> {
            let of: Vec<usize> = (0..m).filter(|&j| j != i && labels[j] == label).collect();
            let mean = |k: usize| of.iter().map(|j| x[j * dim + k]).sum::<f64>() / of.len() as f64;
            let square = |k: usize| (x[i * dim + k] - mean(k)).powi(2);
            (!of.is_empty()).then(|| (0..dim).map(square).sum())
        };
        let terms: Vec<f64> = (0..m)
            .filter_map(|i| {
                let own = centre(i, labels[i])?;
                let all: f64 =
                    (0..10).filter_map(|l| centre(i, l)).map(|d| ((own - d) / t).exp()).sum();
                Some(all.ln())
            })
            .collect();
        terms.iter().sum::<f64>() / terms.len() as f64
    }

    fn scratch() -> [f64; CENTRE_SCRATCH * M] {
        [f64::NAN; CENTRE_SCRATCH * M]
    }

    #[test]
    fn value_and_counts_are_the_definition() {
        for t in [0.05, 0.1, 1.0, 30.0] {
            for dim in [1, 2, 5] {
                let x = values(dim as u64, (M * dim) as u32);
                let score = soft_centre(&x, dim, LABELS, t, &mut scratch(), None);
                check::close(&[score.value], &[brute(&x, dim, LABELS, t)], 1e-10);
                assert_eq!((score.anchors, score.skipped), (8, 1));
                assert_eq!(score.correct, oracle::correct(&x, dim, LABELS));
                let mut grad = std::vec![f64::NAN; x.len()];
                let again = soft_centre(&x, dim, LABELS, t, &mut scratch(), Some(&mut grad));
                assert_eq!(again, score);
            }
        }
    }

    #[test]
    fn gradient_is_the_derivative() {
        for t in [0.5, 2.0] {
            let dim = 3;
            let x = values(7, (M * dim) as u32);
            check::gradient(
                &[x],
                1,
                |[x], y| y[0] = soft_centre(x, dim, LABELS, t, &mut scratch(), None).value,
                |[x], dy, [dx]| {
                    soft_centre(x, dim, LABELS, t, &mut scratch(), Some(dx));
                    dx.iter_mut().for_each(|d| *d *= dy[0]);
                },
            );
        }
    }

    /// With two samples a label the mean of an anchor's own is its partner, that of another label is
    /// half of each.
    #[test]
    fn weights_are_those_of_means() {
        let labels = [0, 1, 0, 1];
        let x = values(3, 8);
        let d = |i: usize, j: usize| dist2(&x[2 * i..2 * i + 2], &x[2 * j..2 * j + 2]);
        let distance = |i: usize, j: usize| {
            assert_ne!(i, j);
            d(i, j)
        };
        let mut w = [[0.0; 4]; 4];
        let score = soft_centre_weights(&labels, 0.3, &mut [0.0; 24], distance, |i, j, weight| {
            w[i][j] += weight;
        });
        assert_eq!((score.anchors, score.skipped), (4, 0));
        let mut expected = [[0.0; 4]; 4];
        for i in 0..4 {
            let (mate, [a, b]) = ((i + 2) % 4, [(i + 1) % 4, (i + 3) % 4]);
            let other = (d(i, a) + d(i, b)) / 2.0 - d(a, b) / 4.0;
            let p = 1.0 / (1.0 + ((other - d(i, mate)) / 0.3).exp());
            expected[i][mate] += p;
            expected[i][a] -= p / 2.0;
            expected[i][b] -= p / 2.0;
            // Of both W_ab and W_ba.
            expected[a.min(b)][a.max(b)] += p / 4.0;
        }
        check::close(w.as_flattened(), expected.as_flattened(), 1e-12);
    }

    /// Where labels lie far apart, what little is left of a gradient keeps its digits.
    #[test]
    fn small_gradients_keep_their_digits() {
        let x = [0.0_f32, 0.1, 0.7, 0.8];
        let (labels, mut grad) = ([0, 0, 1, 1], [0.0; 4]);
        soft_centre(&x, 1, &labels, 0.05, &mut [0.0; 24], Some(&mut grad));
        let mut expected = [0.0; 4];
        let (wide, t) = (x.map(f64::from), f64::from(0.05_f32));
        soft_centre(&wide, 1, &labels, t, &mut [0.0; 24], Some(&mut expected));
        assert!(expected[0].abs() > 1e-6 && expected[0].abs() < 1e-2, "{expected:?}");
        for (g, e) in grad.iter().zip(expected) {
            assert!((f64::from(*g) / e - 1.0).abs() < 1e-4, "{grad:?}, {expected:?}");
        }
    }

    /// All samples alike: each centre is as likely, whatever its samples.
    #[test]
    fn duplicates_are_equally_likely() {
        let (labels, mut grad) = ([0, 0, 1, 1, 1, 2], [f64::NAN; 6]);
        let score = soft_centre(&[2.0; 6], 1, &labels, 0.1, &mut [0.0; 36], Some(&mut grad));
        check::close(&[score.value], &[3f64.ln()], 1e-15);
        // The nearest of all is row 0, and row 1 for row 0.
        assert_eq!((score.anchors, score.skipped, score.correct), (5, 1, 2));
        assert_eq!(grad, [0.0; 6]);
    }

    /// A sample whose distances are not finite spoils the centre of its label, and no other's.
    #[test]
    fn a_centre_that_is_not_finite_is_none() {
        let x = [0.0_f32, 1.0, 0.5, f32::NAN, 3.0, 4.0];
        let mut grad = [f32::NAN; 6];
        let labels = [0, 0, 1, 1, 2, 2];
        let score = soft_centre(&x, 1, &labels, 1.0, &mut [0.0; 36], Some(&mut grad));
        // Row 2's own centre is row 3; of row 3 nothing is finite.
        assert_eq!((score.anchors, score.skipped), (4, 2));
        let without = [0.0, 1.0, 3.0, 4.0];
        let mut expected = [f32::NAN; 4];
        let alone =
            soft_centre(&without, 1, &[0, 0, 2, 2], 1.0, &mut [0.0; 24], Some(&mut expected));
        assert_eq!(score.value, alone.value);
        assert_eq!(grad, [expected[0], expected[1], 0.0, 0.0, expected[2], expected[3]]);
    }
}
