//! The soft nearest neighbour loss.

use super::{Score, Tally, dist2, pull, row, samples};
use crate::real::Real;

/// The mean over anchors of how unlikely it is that a neighbour, drawn with probabilities that
/// fall with the distance, has the anchor's label (Salakhutdinov and Hinton, 2007; Frosst,
/// Papernot and Hinton, 2019).
///
/// ```text
/// L_i = logsumexp_{j != i}(-d_ij / T) - logsumexp_{j != i, l_j = l_i}(-d_ij / T)
/// W_ij = (q_ij - p_ij) / (T m'),  d_ij = |f_i - f_j|^2
/// ```
/// p is the softmax over all other samples, q that over those with the anchor's label, m' the
/// number of anchors: `-1/T p_ij` is the derivative of the first logsumexp by d_ij, `-1/T q_ij` that of the
/// second, where j has the anchor's label. Sums are of `exp((d_min - d_ij) / T)`, so that one term is 1. A sample whose
/// distance is not finite is no neighbour. Where `temperature` is not a finite number above 0, all
/// anchors are skipped.
///
/// Shapes: features (M, dim), labels (M), grad (M, dim), overwritten; `row` lends M numbers,
/// overwritten. Where one of them is too short, all anchors are skipped.
/// Time is M^2 dim, memory M.
///
/// ```
/// use sepal_core::loss::soft_nearest;
/// let mut row = [0.0; 3];
/// let score = soft_nearest(&[0.0_f64, 1.0, 1.0], 1, &[0, 0, 1], 1.0, &mut row, None);
/// // Row 0 has its own label's sample and the other's at distance 1: ln 2.
/// // Row 1 has them at 1 and 0: ln(1 + e). Row 2 has none of its own.
/// let expected = (2f64.ln() + (1.0 + 1f64.exp()).ln()) / 2.0;
/// assert!((score.value - expected).abs() < 1e-12);
/// assert_eq!((score.anchors, score.skipped), (2, 1));
/// ```
pub fn soft_nearest<T: Real>(
    features: &[T],
    dim: usize,
    labels: &[u16],
    temperature: T,
    row: &mut [T],
    mut grad: Option<&mut [T]>,
) -> Score<T> {
    if let Some(grad) = grad.as_deref_mut() {
        grad.fill(T::ZERO);
    }
    let is_positive = temperature.is_finite() && temperature > T::ZERO;
    let row = row.get_mut(..labels.len()).filter(|_| is_positive);
    let Some(row) = row.filter(|_| samples(features, dim) >= labels.len()) else {
        return Score { skipped: labels.len() as u32, ..Score::default() };
    };
    let mut tally = Tally::new();
    for (i, &label) in labels.iter().enumerate() {
        let near = Near::new(features, dim, labels, i, row);
        tally.count(near.is_same);
        let sums = near.sums(labels, label, temperature, row);
        let is_anchor = tally.add(
            sums.map(|(all, same)| all.ln() - same.ln() + (near.same - near.all) / temperature),
        );
        if !is_anchor {
            continue;
        }
        let (Some(grad), Some((all, same))) = (grad.as_deref_mut(), sums) else { continue };
        for (j, (&d, &other)) in
            row.iter().zip(labels).enumerate().filter(|(_, (d, _))| d.is_finite())
        {
            let p = ((near.all - d) / temperature).exp() / all;
            let q = ((near.same - d) / temperature).exp() / same;
            pull(grad, features, dim, i, j, if other == label { q - p } else { -p });
        }
    }
    // 2 / T of the gradient here, 1 / m' in the mean.
    for g in grad.as_deref_mut().into_iter().flatten() {
        *g = (*g + *g) / temperature;
    }
    tally.mean(grad)
}

/// The distances nearest to one anchor.
struct Near<T> {
    /// Of all other samples.
    all: T,
    /// Of those with the anchor's label; infinite where there is none.
    same: T,
    /// Of those with another; infinite where there is none.
    other: T,
    /// Whether the nearest of all, with the lowest index, has the anchor's label.
    is_same: bool,
}

impl<T: Real> Near<T> {
    /// Fills `distances`; infinite for the anchor itself and where they are not finite.
    fn new(features: &[T], dim: usize, labels: &[u16], i: usize, distances: &mut [T]) -> Self {
        let mut near =
            Self { all: T::INFINITY, same: T::INFINITY, other: T::INFINITY, is_same: false };
        let anchor = row(features, dim, i).unwrap_or_default();
        let label = labels.get(i);
        for (j, (slot, other)) in distances.iter_mut().zip(labels).enumerate() {
            let d = dist2(anchor, row(features, dim, j).unwrap_or_default());
            *slot = if j == i || !d.is_finite() { T::INFINITY } else { d };
            let is_same = label == Some(other);
            if *slot < near.all {
                (near.all, near.is_same) = (*slot, is_same);
            }
            let kind = if is_same { &mut near.same } else { &mut near.other };
            if *slot < *kind {
                *kind = *slot;
            }
        }
        near
    }

    /// The sums of exponentials over all and over the same label, each at least 1; `None` where
    /// a partner is missing.
    fn sums(&self, labels: &[u16], label: u16, temperature: T, distances: &[T]) -> Option<(T, T)> {
        if !self.same.is_finite() || !self.other.is_finite() {
            return None;
        }
        let (mut all, mut same) = (T::ZERO, T::ZERO);
        for (&d, &other) in distances.iter().zip(labels).filter(|(d, _)| d.is_finite()) {
            all += ((self.all - d) / temperature).exp();
            if other == label {
                same += ((self.same - d) / temperature).exp();
            }
        }
        Some((all, same))
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle;
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const LABELS: &[u16] = &[0, 1, 0, 2, 1, 0, 2, 1, 3];
    const M: usize = LABELS.len();

    /// All distances, without care for stability.
    fn brute(x: &[f64], dim: usize, labels: &[u16], t: f64) -> (f64, Vec<f64>) {
        let m = labels.len();
        let e = |i: usize, j: usize| {
            let d: f64 = (0..dim).map(|k| (x[i * dim + k] - x[j * dim + k]).powi(2)).sum();
            if i == j { 0.0 } else { (-d / t).exp() }
        };
        let others = |i: usize, same: bool| {
            (0..m).filter(move |&j| j != i && (!same || labels[j] == labels[i]))
        };
        let is_anchor = |i: usize| {
            others(i, true).count() > 0 && others(i, true).count() < others(i, false).count()
        };
        let anchors = (0..m).filter(|&i| is_anchor(i)).count() as f64;
        let (mut value, mut w) = (0.0, std::vec![0.0; m * m]);
        for i in (0..m).filter(|&i| is_anchor(i)) {
            let all: f64 = others(i, false).map(|j| e(i, j)).sum();
            let same: f64 = others(i, true).map(|j| e(i, j)).sum();
            value += (all / same).ln() / anchors;
            for j in others(i, false) {
                let q = if labels[j] == labels[i] { e(i, j) / same } else { 0.0 };
                w[i * m + j] = (q - e(i, j) / all) / (t * anchors);
            }
        }
        (value, oracle::gradient(&w, x, dim))
    }

    #[test]
    fn value_and_gradient_are_the_definition() {
        for t in [0.05, 0.1, 1.0, 30.0] {
            for dim in [1, 2, 5] {
                let x = values(dim as u64, (M * dim) as u32);
                let (value, expected) = brute(&x, dim, LABELS, t);
                let (mut row, mut grad) = ([f64::NAN; M], std::vec![f64::NAN; x.len()]);
                let score = soft_nearest(&x, dim, LABELS, t, &mut row, Some(&mut grad));
                check::close(&[score.value], &[value], 1e-11);
                check::close(&grad, &expected, 1e-11);
                assert_eq!((score.anchors, score.skipped), (8, 1));
                assert_eq!(score.correct, oracle::correct(&x, dim, LABELS));
                assert_eq!(soft_nearest(&x, dim, LABELS, t, &mut row, None), score);
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
                |[x], y| y[0] = soft_nearest(x, dim, LABELS, t, &mut [0.0; M], None).value,
                |[x], dy, [dx]| {
                    soft_nearest(x, dim, LABELS, t, &mut [0.0; M], Some(dx));
                    dx.iter_mut().for_each(|d| *d *= dy[0]);
                },
            );
        }
    }

    /// As T falls, T L_i tends to max(0, nearest same - nearest of all).
    #[test]
    fn a_low_temperature_is_the_nearest_pair() {
        let x = values(5, 2 * M as u32);
        let t = 1e-6;
        let pairs = oracle::pairs(&x, 2, LABELS);
        let hinge: f64 = pairs
            .iter()
            .filter(|p| p.same.index != u32::MAX)
            .map(|p| (p.same.dist2 - p.other.dist2).max(0.0) / 8.0)
            .sum();
        let score = soft_nearest(&x, 2, LABELS, t, &mut [0.0; M], None);
        assert!(hinge > 0.01);
        check::close(&[score.value * t], &[hinge], 1e-6);
    }

    /// Far from the origin of exp: distances of 1000 / T, where exp of each is 0.
    #[test]
    fn small_exponentials_do_not_vanish() {
        let x = [0.0_f32, 100.0, 210.0, 330.0];
        let mut grad = [f32::NAN; 4];
        let score = soft_nearest(&x, 1, &[0, 0, 1, 1], 0.1, &mut [0.0; 4], Some(&mut grad));
        // Row 2 has its own label at 14,400 and the other at 12,100: 2300 / 0.1, over 4 anchors.
        assert!((score.value - 5750.0).abs() < 0.01, "{score:?}");
        assert_eq!(score.correct, 3);
        // For row 2, p is all at row 1 and q all at row 3: W is -2.5 and 2.5.
        for (g, e) in grad.iter().zip([0.0, 550.0, -1150.0, 600.0]) {
            assert!((g - e).abs() < 0.01, "{grad:?}");
        }
    }

    /// Duplicates only: each neighbour is as likely, so the loss counts labels.
    #[test]
    fn duplicates_are_equally_likely() {
        let (labels, mut grad) = ([0, 0, 1, 1, 1], [f64::NAN; 5]);
        let score = soft_nearest(&[2.0; 5], 1, &labels, 0.1, &mut [0.0; 5], Some(&mut grad));
        check::close(&[score.value], &[(2.0 * 4f64.ln() + 3.0 * 2f64.ln()) / 5.0], 1e-15);
        // The nearest of all is row 0, and row 1 for row 0.
        assert_eq!((score.anchors, score.skipped, score.correct), (5, 0, 2));
        assert_eq!(grad, [0.0; 5]);
    }
}
