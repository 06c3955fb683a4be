//! The Separation Index and its family: how well labels follow from distances.
//!
//! | function | each anchor i scores | reads |
//! |---|---|---|
//! | [`si`] | its nearest has its label | pairs |
//! | [`per_class`] | the same, averaged within each class | pairs |
//! | [`cross`] | the same, the nearest taken from another set | two sets |
//! | [`high_order`] | all its r nearest have its label | k nearest |
//! | [`soft`] | the share of its r nearest that have its label | k nearest |
//! | [`anti`] | none of its r nearest has its label | k nearest |
//! | [`score`] | how many of its nearest, from the first on, have its label, or minus how many have not | k nearest |
//! | [`centre_based`] | the nearest class mean is its own | class means |
//! | [`triplet`], [`triplet_exact`] | distances order two others as labels do | rows |
//! | [`smoothness_linear`], [`smoothness_exponential`] | its nearest has a near target (regression) | nearest |
//!
//! [`nearest_pair`] and [`top_k`] give the pairs and the k nearest; their order, by (distance,
//! index), and their NaN rule hold here too. Every result is a [`Tally`], so that a set read in
//! batches gives one number. [`Paired`] says whether SI has risen between two nets by more than
//! chance makes it.
//!
//! # Sources
//! SI is Eq. 1 of Karimi, Kalhor and Sadeghi Tabrizi, "Forward layer-wise learning of convolutional
//! neural networks through separation index maximizing". The high-order and centre-based forms and
//! the Smoothness Index are in Saffar and Kalhor, "Evaluation of dataflow through layers of
//! convolutional neural networks in classification problems",
//! <https://doi.org/10.1016/j.eswa.2023.119944>. The definitions here are those of Kalhor's
//! published code, the repository `Ahmadkalhor/data_complexity_measures`, with m the number of
//! anchors that could be judged. That code gives definitions and no reference numbers: its batched
//! self-exclusion masks the wrong cells, and its cross score reads the wrong labels.
//!
//! ```
//! use sepal_core::neighbour::{Pair, Rows, nearest_pair};
//! use sepal_core::si;
//! let rows = Rows { data: &[0.0f32, 0.1, 1.0, 1.1, 1.2], dim: 1, labels: &[0, 0, 1, 1, 0] };
//! let mut pairs = [Pair::NONE; 5];
//! nearest_pair(rows, rows, 0, Some(0), &mut pairs);
//! assert_eq!(si::si(&pairs).value(), Some(0.8)); // only the last is on the wrong side
//! ```
//!
//! [`nearest_pair`]: crate::neighbour::nearest_pair
//! [`top_k`]: crate::neighbour::top_k

mod anti;
mod centre_based;
#[cfg(test)]
mod check;
mod cross;
mod high_order;
mod paired;
mod per_class;
mod score;
mod separation_index;
mod smoothness;
mod soft;
mod triplet;

pub use anti::anti;
pub use centre_based::{centre_based, centres};
pub use cross::cross;
pub use high_order::high_order;
pub use paired::Paired;
pub use per_class::per_class;
pub use score::score;
pub use separation_index::si;
pub use smoothness::{smoothness_exponential, smoothness_linear};
pub use soft::soft;
pub use triplet::{triplet, triplet_exact};

use crate::neighbour::{Nearest, label_of};
use crate::real::Real;

/// The sum of the anchors' scores, how many were judged, and how many could not be.
///
/// It is kept apart from the mean so that batches add up: [`and`](Self::and), then
/// [`value`](Self::value).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// The sum of the scores of the judged anchors.
    pub sum: f64,
    /// Judged anchors.
    pub anchors: u32,
    /// Anchors without the neighbours that the measure needs, or with a score that is NaN.
    pub skipped: u32,
}

impl Tally {
    /// The mean over the judged anchors; `None` where there is none.
    pub fn value(self) -> Option<f64> {
        (self.anchors > 0).then(|| self.sum / f64::from(self.anchors))
    }

    /// Both sets of anchors together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            anchors: self.anchors.saturating_add(other.anchors),
            skipped: self.skipped.saturating_add(other.skipped),
        }
    }

    /// One anchor: its score, or `None` where it has none.
    fn of(score: Option<f64>) -> Self {
        match score {
            Some(sum) if !sum.is_nan() => Self { sum, anchors: 1, skipped: 0 },
            _ => Self { sum: 0.0, anchors: 0, skipped: 1 },
        }
    }
}

/// From each anchor's score, `None` where it has none.
impl FromIterator<Option<f64>> for Tally {
    fn from_iter<I: IntoIterator<Item = Option<f64>>>(scores: I) -> Self {
        scores.into_iter().fold(Self::default(), |tally, score| tally.and(Self::of(score)))
    }
}

/// 1 where it holds, 0 where not.
fn indicator(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

/// The k nearest neighbours of each anchor, and the labels on both sides.
///
/// The anchors may be the bank itself (the places then leave each anchor out) or another set,
/// which gives the cross form of each measure.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours<'a, T = f32> {
    /// The k places of each anchor, (M, K), as [`top_k`](crate::neighbour::top_k) gives them.
    pub places: &'a [Nearest<T>],
    /// Places of one anchor, K.
    pub k: usize,
    /// The anchors' labels, (M).
    pub labels: &'a [u16],
    /// The labels of the whole bank, indexed by [`Nearest::index`].
    pub bank: &'a [u16],
}

impl<'a, T: Real> Neighbours<'a, T> {
    /// For each anchor, whether each of its neighbours has its label, nearest first; it ends at
    /// the first place without a neighbour.
    fn agreements(self) -> impl Iterator<Item = impl Iterator<Item = bool> + use<'a, T>> {
        self.labels.iter().enumerate().map(move |(at, &label)| {
            let places = self.places.chunks(self.k.max(1)).nth(at).unwrap_or_default();
            places
                .iter()
                .take(self.k)
                .map_while(move |&place| Some(label_of(place, self.bank)? == label))
        })
    }

    /// For each anchor, how many of its r nearest have its label; `None` where r is 0 or there are
    /// fewer than r.
    fn agreeing(self, r: usize) -> impl Iterator<Item = Option<u32>> {
        self.agreements().map(move |agreements| {
            let (seen, same) = agreements
                .take(r)
                .fold((0, 0), |(seen, same), agrees| (seen + 1, same + u32::from(agrees)));
            (r > 0 && seen == r).then_some(same)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_add_up_and_nan_is_no_score() {
        let [a, b]: [Tally; 2] = [
            [Some(1.0), None, Some(0.0)].into_iter().collect(),
            [Some(f64::NAN), Some(1.0)].into_iter().collect(),
        ];
        assert_eq!((a.value(), b.value()), (Some(0.5), Some(1.0)));
        let both = a.and(b);
        assert_eq!(both, Tally { sum: 2.0, anchors: 3, skipped: 2 });
        assert_eq!(both.value(), Some(2.0 / 3.0));
        assert_eq!(Tally::default().value(), None);
    }

    #[test]
    fn neighbours_may_come_from_another_set() {
        let near = |index| Nearest { index, dist2: 0.0f32 };
        let places = [near(0), near(1), near(2), near(1), near(9), near(0)];
        let n = Neighbours { places: &places, k: 2, labels: &[5, 6, 5], bank: &[5, 5, 6] };
        assert_eq!(high_order(n, 1).sum, 2.0);
        assert_eq!(soft(n, 2), Tally { sum: 1.5, anchors: 2, skipped: 1 });
        // Index 9 is not in the bank: the third anchor has no neighbour, its run ends before it.
        let mut out = [9; 3];
        assert_eq!(score(n, &mut out), Tally { sum: 3.0, anchors: 2, skipped: 1 });
        assert_eq!(out, [2, 1, 0]);
    }
}
