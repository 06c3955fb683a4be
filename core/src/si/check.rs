//! Sets for the tests of the family, and neighbours found by sorting.

use std::vec::Vec;

use super::Neighbours;
use crate::neighbour::{Nearest, Pair, Rows, nearest_pair, top_k};

/// Labels in the sets are below this.
pub(crate) const CLASSES: usize = 4;

pub(crate) struct Set {
    pub(crate) data: Vec<f64>,
    pub(crate) dim: usize,
    pub(crate) labels: Vec<u16>,
}

impl Set {
    /// Points on a line.
    pub(crate) fn line(x: &[f64], labels: &[u16]) -> Self {
        Self { data: x.into(), dim: 1, labels: labels.into() }
    }

    /// Points on a small integer grid, so that ties and duplicates are common.
    fn grid(seed: u64, len: usize, dim: usize, classes: usize, side: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let mut below = |n: u64| {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % n
        };
        let data = (0..len * dim).map(|_| below(side) as f64).collect();
        let labels = (0..len).map(|_| below(classes as u64) as u16).collect();
        Self { data, dim, labels }
    }

    /// Another set of the same dimension.
    pub(crate) fn other(&self) -> Self {
        Self::grid(77, 6, self.dim, CLASSES, 5)
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    pub(crate) fn rows(&self) -> Rows<'_, f64> {
        Rows { data: &self.data, dim: self.dim, labels: &self.labels }
    }

    pub(crate) fn pairs(&self) -> Vec<Pair<f64>> {
        let mut pairs = std::vec![Pair::NONE; self.len()];
        nearest_pair(self.rows(), self.rows(), 0, Some(0), &mut pairs);
        pairs
    }

    pub(crate) fn top_k(&self, k: usize) -> Vec<Nearest<f64>> {
        let mut places = std::vec![Nearest::NONE; self.len() * k];
        top_k(self.rows(), self.rows(), 0, Some(0), k, &mut places);
        places
    }

    /// All neighbours of i, nearest first, by sorting.
    pub(crate) fn sorted(&self, i: usize) -> Vec<usize> {
        let distance = |&j: &usize| distance2(self.row(i), self.row(j));
        let mut others: Vec<_> =
            (0..self.len()).filter(|&j| j != i && !distance(&j).is_nan()).collect();
        // A stable sort keeps the lower index first.
        others.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        others
    }

    /// The r nearest, where there are so many.
    pub(crate) fn nearest(&self, i: usize, r: usize) -> Option<Vec<usize>> {
        let sorted = self.sorted(i);
        (r > 0 && sorted.len() >= r).then(|| sorted[..r].into())
    }
}

/// By powers, apart from the code under test.
pub(crate) fn distance2(a: &[f64], b: &[f64]) -> f64 {
    (0..a.len()).map(|d| (b[d] - a[d]).powi(2)).sum()
}

/// Sets with ties and duplicates, of one sample, of one class, with a class of one, with NaN,
/// without features, and empty.
pub(crate) fn each_set(test: impl Fn(&Set)) {
    for (seed, len) in [0, 1, 2, 3, 7, 13].into_iter().enumerate() {
        for dim in 0..4 {
            for classes in 1..=CLASSES {
                for side in [2, 5, 1000] {
                    let mut set = Set::grid(seed as u64, len, dim, classes, side);
                    test(&set);
                    if let Some(x) = set.data.get_mut(2 * dim..).and_then(|row| row.first_mut()) {
                        *x = f64::NAN;
                        test(&set);
                    }
                }
            }
        }
    }
    test(&Set::line(&[0.0, 0.5, 0.5, 0.5, 2.0], &[0, 0, 1, 0, 3]));
}

/// Each set with its k nearest, and each order from 0 to more than there are places.
pub(crate) fn each_neighbourhood(test: impl Fn(Neighbours<'_, f64>, usize, &Set)) {
    each_set(|set| {
        for k in [0, 1, 3, 20] {
            let places = set.top_k(k);
            let bank = &set.labels;
            let neighbours = Neighbours { places: &places, k, labels: bank, bank };
            for r in 0..=k.min(4) {
                test(neighbours, r, set);
            }
            // More than the places hold: every anchor is skipped.
            let too_many = super::soft(neighbours, k + 1);
            assert_eq!((too_many.anchors, too_many.skipped as usize), (0, set.len()));
        }
    });
}
