//! Losses: what a block is trained for.
//!
//! # Contract
//! Features F are (M, D), one sample a row; logits are (M, classes). Each function returns a
//! [`Score`] and, where `grad` is lent, overwrites it with dL/dF, of the same length as F.
//! The choice of neighbours is held constant; the gradient flows through the anchor and through
//! its neighbours (Eq. 7 and 8 of the Separation Index paper leave this open; without the
//! neighbours' part accuracy drops by 1 to 2 points).
//!
//! All losses of distances are sums over W_ij = dL/d d_ij, d_ij = |f_i - f_j|^2. With S = W + W'
//!
//! ```text
//! dL/dF = 2 (diag(S 1) F - S F)
//! ```
//! for `d d_ij / df_i = 2 (f_i - f_j) = -d d_ij / df_j`: row i gets `2 (f_i - f_j)` times W_ij as an anchor and
//! times W_ji as a neighbour, that is `2 sum_j S_ij (f_i - f_j)`. So what remains of each is its W.
//!
//! An anchor needs two partners: a sample with its own label and one with another (for centres: a
//! mean of each kind, which one sample that is not finite spoils). An anchor
//! without is skipped and counted. So is an anchor whose term is not a finite number, or with
//! which the sum would not be one: value and gradient stay finite for features of any size. Where
//! no anchor is left, value and gradient are 0.

mod cross_entropy;
mod goodness;
mod margin;
mod pred_sim;
mod soft_centre;
mod soft_nearest;
mod triplet;

pub use cross_entropy::{cross_entropy, softmax};
pub use goodness::goodness;
pub use margin::margin;
pub use pred_sim::pred_sim;
pub use soft_centre::{CENTRE_SCRATCH, soft_centre, soft_centre_weights};
pub use soft_nearest::soft_nearest;
pub use triplet::triplet;

use crate::neighbour::{Nearest, Pair};
use crate::real::Real;

/// What a loss says about a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Score<T = f32> {
    /// The loss.
    pub value: T,
    /// Samples that it is a sum or a mean over.
    pub anchors: u32,
    /// Samples left out.
    pub skipped: u32,
    /// For losses of distances, the count of the Separation Index: samples whose nearest other
    /// sample has their label (of two equally near ones that with the lower index), among all
    /// samples that have any neighbour, skipped or not. Where there are logits, the anchors
    /// whose largest logit is their label's; for goodness, those on their side of the threshold.
    pub correct: u32,
}

/// Adds up terms as long as the sum is finite.
struct Tally<T>(Score<T>);

impl<T: Real> Tally<T> {
    fn new() -> Self {
        Self(Score::default())
    }

    /// Counts an anchor with its term, or a skipped one; true where it is an anchor.
    fn add(&mut self, term: Option<T>) -> bool {
        let sum = term.map(|term| self.0.value + term).filter(|sum| sum.is_finite());
        match sum {
            Some(sum) => {
                self.0.value = sum;
                self.0.anchors += 1;
            }
            None => self.0.skipped += 1,
        }
        sum.is_some()
    }

    fn count(&mut self, correct: bool) {
        self.0.correct += u32::from(correct);
    }

    fn sum(self) -> Score<T> {
        self.0
    }

    /// The mean over anchors, of value and gradient alike.
    fn mean(self, grad: Option<&mut [T]>) -> Score<T> {
        let anchors = T::from_f64(f64::from(self.0.anchors.max(1)));
        for g in grad.into_iter().flatten() {
            *g = *g / anchors;
        }
        Score { value: self.0.value / anchors, ..self.0 }
    }
}

/// Row `i` of a matrix with `dim` columns.
fn row<T>(x: &[T], dim: usize, i: usize) -> Option<&[T]> {
    let first = i.checked_mul(dim)?;
    x.get(first..first.checked_add(dim)?)
}

fn row_mut<T>(x: &mut [T], dim: usize, i: usize) -> Option<&mut [T]> {
    let first = i.checked_mul(dim)?;
    x.get_mut(first..first.checked_add(dim)?)
}

/// `|a - b|^2`, summed in order.
fn dist2<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::ZERO, |sum, (&a, &b)| sum + (a - b) * (a - b))
}

/// Adds `weight (f_i - f_j)` to row i of the gradient and takes it from row j.
fn pull<T: Real>(grad: &mut [T], features: &[T], dim: usize, i: usize, j: usize, weight: T) {
    let (Some(a), Some(b)) = (row(features, dim, i), row(features, dim, j)) else { return };
    if let Some(grad) = row_mut(grad, dim, i) {
        for ((g, &a), &b) in grad.iter_mut().zip(a).zip(b) {
            *g += weight * (a - b);
        }
    }
    if let Some(grad) = row_mut(grad, dim, j) {
        for ((g, &a), &b) in grad.iter_mut().zip(a).zip(b) {
            *g -= weight * (a - b);
        }
    }
}

/// The distances of anchor `i` to its two partners, from the features; `None` where one is missing.
fn distances<T: Real>(features: &[T], dim: usize, i: usize, pair: &Pair<T>) -> Option<(T, T)> {
    let anchor = row(features, dim, i)?;
    let partner = |n: &Nearest<T>| row(features, dim, n.index as usize);
    // An index of `u32::MAX` is none, however long the features are.
    if pair.same.index == u32::MAX || pair.other.index == u32::MAX {
        return None;
    }
    Some((dist2(anchor, partner(&pair.same)?), dist2(anchor, partner(&pair.other)?)))
}

/// Whether the nearest of all has the anchor's label.
fn nearest_is_same<T: Real>(pair: &Pair<T>, samples: usize) -> bool {
    let is_there = |n: &Nearest<T>| n.index != u32::MAX && (n.index as usize) < samples;
    let (same, other) = (&pair.same, &pair.other);
    match (is_there(same), is_there(other)) {
        (true, true) => {
            same.dist2 < other.dist2 || same.dist2 == other.dist2 && same.index < other.index
        }
        (same, _) => same,
    }
}

/// Rows of a matrix with `dim` columns; none where `dim == 0`.
fn samples<T>(features: &[T], dim: usize) -> usize {
    features.len().checked_div(dim).unwrap_or(0)
}

#[cfg(test)]
mod oracle {
    //! What the tests of this folder compare with.

    use super::*;
    use std::vec::Vec;

    const NONE: u32 = u32::MAX;

    /// The neighbours of each row by definition: lowest index on ties, NaN and infinity never.
    pub(super) fn pairs<T: Real>(features: &[T], dim: usize, labels: &[u16]) -> Vec<Pair<T>> {
        let nearest = |i: usize, same: bool| {
            let mut best = Nearest { index: NONE, dist2: T::INFINITY };
            for j in (0..labels.len()).filter(|&j| j != i && (labels[j] == labels[i]) == same) {
                let d = (0..dim).fold(T::ZERO, |sum, k| {
                    let delta = features[i * dim + k] - features[j * dim + k];
                    sum + delta * delta
                });
                if d < best.dist2 {
                    best = Nearest { index: j as u32, dist2: d };
                }
            }
            best
        };
        (0..labels.len())
            .map(|i| Pair { same: nearest(i, true), other: nearest(i, false) })
            .collect()
    }

    /// `2 (diag(S 1) F - S F)`, `S = W + W'`.
    pub(super) fn gradient(w: &[f64], features: &[f64], dim: usize) -> Vec<f64> {
        let m = features.len() / dim;
        let s = |i: usize, j: usize| w[i * m + j] + w[j * m + i];
        let mut grad = std::vec![0.0; features.len()];
        for i in 0..m {
            let diagonal: f64 = (0..m).map(|j| s(i, j)).sum();
            for k in 0..dim {
                let product: f64 = (0..m).map(|j| s(i, j) * features[j * dim + k]).sum();
                grad[i * dim + k] = 2.0 * (diagonal * features[i * dim + k] - product);
            }
        }
        grad
    }

    /// The Separation Index times M, from all distances.
    pub(super) fn correct(features: &[f64], dim: usize, labels: &[u16]) -> u32 {
        let m = labels.len();
        let d = |i: usize, j: usize| -> f64 {
            (0..dim).map(|k| (features[i * dim + k] - features[j * dim + k]).powi(2)).sum()
        };
        (0..m)
            .filter(|&i| {
                let nearest = (0..m)
                    .filter(|&j| j != i)
                    .min_by(|&a, &b| d(i, a).partial_cmp(&d(i, b)).unwrap().then(a.cmp(&b)));
                nearest.is_some_and(|j| labels[j] == labels[i])
            })
            .count() as u32
    }

    /// Hard inputs in `f32`, each with 6 rows of 2 and a name.
    pub(super) fn hard() -> Vec<(&'static str, Vec<f32>)> {
        let base = [0.3, -1.0, 0.9, 0.2, -0.7, 0.6, 1.1, -0.4, 0.05, 0.8, -0.2, -0.9];
        let scaled = |s: f32| base.iter().map(|x| x * s).collect::<Vec<f32>>();
        let mut one_nan = scaled(1.0);
        one_nan[3] = f32::NAN;
        let mut one_large = scaled(1.0);
        one_large[5] = f32::MAX;
        let mut one_infinite = scaled(1.0);
        one_infinite[5] = f32::NEG_INFINITY;
        std::vec![
            ("plain", scaled(1.0)),
            ("squares near the largest number", scaled(1.2e19)),
            ("squares above the largest number", scaled(1e30)),
            ("the largest numbers", scaled(3e38)),
            ("squares below the smallest number", scaled(1e-30)),
            ("denormal", scaled(1e-40)),
            ("constant", std::vec![7.5; 12]),
            ("zero", std::vec![0.0; 12]),
            ("duplicates", [[0.5, 0.25]; 3].into_iter().chain([[1.0, 2.0]; 3]).flatten().collect()),
            ("NaN", one_nan),
            ("all NaN", std::vec![f32::NAN; 12]),
            ("one large", one_large),
            ("one infinite", one_infinite),
        ]
    }

    /// Pairs that name the next samples whatever the distances are.
    pub(super) fn given_pairs(m: u32) -> Vec<Pair<f32>> {
        let nearest = |j: u32| Nearest { index: j % m, dist2: f32::INFINITY };
        (0..m).map(|i| Pair { same: nearest(i + 2), other: nearest(i + 1) }).collect()
    }

    #[test]
    fn neighbours_follow_the_rules() {
        // Rows 0 and 1 are duplicates; row 3 is as far from 2 as 1 is.
        let f = [0.0, 0.0, 1.0, 2.0];
        let p = pairs(&f, 1, &[0, 0, 1, 0]);
        assert_eq!(p[0].same, Nearest { index: 1, dist2: 0.0 });
        assert_eq!(p[0].other, Nearest { index: 2, dist2: 1.0 });
        assert_eq!(p[2].same.index, NONE);
        assert_eq!(p[2].other, Nearest { index: 0, dist2: 1.0 });
        assert_eq!(correct(&f, 1, &[0, 0, 1, 0]), 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(same: (u32, f32), other: (u32, f32)) -> Pair {
        Pair {
            same: Nearest { index: same.0, dist2: same.1 },
            other: Nearest { index: other.0, dist2: other.1 },
        }
    }

    #[test]
    fn the_nearest_of_all_decides_and_ties_go_to_the_lower_index() {
        const NONE: (u32, f32) = (u32::MAX, f32::INFINITY);
        for (same, other, expected) in [
            ((3, 1.0), (1, 2.0), true),
            ((3, 2.0), (1, 1.0), false),
            ((3, 1.0), (1, 1.0), false),
            ((1, 1.0), (3, 1.0), true),
            ((1, 0.0), (3, 0.0), true),
            ((1, 1.0), NONE, true),
            (NONE, (1, 1.0), false),
            (NONE, NONE, false),
            // Row 4 is not there.
            ((4, 0.5), (1, 1.0), false),
            ((1, 1.0), (4, 0.5), true),
        ] {
            assert_eq!(nearest_is_same(&pair(same, other), 4), expected, "{same:?} {other:?}");
        }
    }

    #[test]
    fn a_term_that_does_not_fit_is_skipped() {
        let mut tally = Tally::new();
        assert!(tally.add(Some(f32::MAX)));
        assert!(!tally.add(Some(1e38)));
        assert!(!tally.add(Some(f32::NAN)));
        assert!(!tally.add(Some(f32::NEG_INFINITY)));
        assert!(!tally.add(None));
        assert!(tally.add(Some(-f32::MAX)));
        assert_eq!(tally.sum(), Score { value: 0.0, anchors: 2, skipped: 4, correct: 0 });
    }
}

#[cfg(test)]
mod soft {
    //! What holds of both losses over softly chosen neighbours or centres.

    use super::*;
    use std::vec::Vec;

    type Soft<T> = fn(&[T], usize, &[u16], T, &mut [T], Option<&mut [T]>) -> Score<T>;

    /// Each loss, with the numbers of scratch that it takes for each sample.
    fn losses<T: Real>() -> [(&'static str, Soft<T>, usize); 2] {
        [("neighbours", soft_nearest, 1), ("centres", soft_centre, CENTRE_SCRATCH)]
    }

    fn run<T: Real>(
        (_, loss, numbers): (&str, Soft<T>, usize),
        (x, dim, labels): (&[T], usize, &[u16]),
        t: T,
        missing: usize,
    ) -> (Score<T>, Vec<T>) {
        let mut scratch = std::vec![T::INFINITY; numbers * labels.len() - missing];
        let mut grad = std::vec![T::INFINITY; x.len()];
        let score = loss(x, dim, labels, t, &mut scratch, Some(&mut grad));
        (score, grad)
    }

    #[test]
    fn without_partners_everything_is_zero() {
        for loss in losses() {
            for (labels, correct) in [([5, 5, 5], 3), ([1, 2, 3], 0)] {
                let (score, grad) = run(loss, (&[1.0, 2.0, 4.0], 1, &labels), 0.1, 0);
                let expected = Score { value: 0.0, anchors: 0, skipped: 3, correct };
                assert_eq!(score, expected, "{}", loss.0);
                assert_eq!(grad, [0.0; 3], "{}", loss.0);
            }
            assert_eq!(run::<f64>(loss, (&[], 1, &[]), 0.1, 0), (Score::default(), Vec::new()));
            assert_eq!(run(loss, (&[1.0], 1, &[0]), 0.1, 0).0.skipped, 1, "{}", loss.0);
        }
    }

    #[test]
    fn what_does_not_fit_is_skipped_whole() {
        let (x, labels) = ([1.0, 2.0, 4.0, 5.0], [0, 0, 1, 1]);
        for loss in losses() {
            for (dim, t, missing) in
                [(1, 0.0, 0), (1, -1.0, 0), (1, f64::NAN, 0), (1, 1.0, 1), (2, 1.0, 0), (0, 1.0, 0)]
            {
                let (score, grad) = run(loss, (&x, dim, &labels), t, missing);
                let expected = Score { value: 0.0, anchors: 0, skipped: 4, correct: 0 };
                assert_eq!(score, expected, "{}, {dim} {t} {missing}", loss.0);
                assert_eq!(grad, [0.0; 4], "{}, {dim} {t} {missing}", loss.0);
            }
            assert_eq!(run(loss, (&x, 1, &labels), 1.0, 0).0.anchors, 4, "{}", loss.0);
        }
    }

    #[test]
    fn hard_inputs_stay_finite() {
        for loss in losses() {
            for (name, x) in oracle::hard() {
                for t in [1e-12, 0.05, 1e12] {
                    let (score, grad) = run(loss, (&x, 2, &[0, 1, 0, 1, 0, 1]), t, 0);
                    assert!(score.value.is_finite(), "{}, {name}: {score:?}", loss.0);
                    assert!(grad.iter().all(|g| g.is_finite()), "{}, {name}: {grad:?}", loss.0);
                    assert_eq!(score.anchors + score.skipped, 6, "{}, {name}", loss.0);
                }
            }
        }
    }
}
