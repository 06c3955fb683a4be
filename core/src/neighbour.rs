//! Nearest neighbours: the one primitive behind SI, the losses and every score.
//!
//! [`nearest_pair`] finds the nearest sample with the anchor's own label and the nearest with
//! another; [`top_k`] finds the k nearest of all; [`vote`] names a class from them. A bank larger
//! than memory is read in pieces: every call folds one piece into what the caller holds, and the
//! result does not depend on how the bank was cut or in which order the pieces came.
//!
//! # Order
//! Neighbours are ordered by (distance, index): the smaller squared distance first, and of equal
//! distances the lower index. A distance that is NaN comes after everything and is never taken.
//! A sample is kept from being its own neighbour by its index, never by a distance of 0, because
//! real data hold duplicates.
//!
//! # Half precision
//! With the feature `f16`, queries or bank or both may be rows of `half::f16`. They are widened
//! where they are read: the neighbours and distances are those of the widened rows, to the bit.

use bytemuck::AnyBitPattern;

use crate::real::{Feature, Real};

/// A neighbour: which row of the bank, and how far.
///
/// In `f32` it is two words: see [`Pair`] for how it is kept in plain memory.
#[derive(Clone, Copy, Debug, PartialEq, AnyBitPattern)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Nearest<T = f32> {
    /// The row; `u32::MAX` where there is none.
    pub index: u32,
    /// The squared Euclidean distance; infinite where there is no neighbour.
    pub dist2: T,
}

impl<T: Real> Nearest<T> {
    /// No neighbour.
    pub const NONE: Self = Self { index: u32::MAX, dist2: T::INFINITY };

    /// Whether there is a neighbour.
    pub const fn exists(self) -> bool {
        self.index != u32::MAX
    }

    /// Whether it comes before `other` in the order by (distance, index); never where its own
    /// distance is NaN. Every neighbour with a distance comes before [`NONE`](Self::NONE), one at
    /// infinity too.
    pub fn precedes(self, other: Self) -> bool {
        self.dist2 < other.dist2 || (self.dist2 == other.dist2 && self.index < other.index)
    }
}

/// The nearest neighbour with the anchor's own label, and the nearest with another.
///
/// # Memory
/// `Pair<f32>` is four words of 32 bits. It is read in place from `&[[u32; 4]]` by
/// `bytemuck::cast_slice`, and written there by [`to_words`](Self::to_words). It is not `Pod`:
/// that would also promise that `Pair<f64>` has no padding, which it has.
///
/// ```
/// use sepal_core::neighbour::{Nearest, Pair};
/// let mut words = [[0; 4]; 2];
/// words[0] = Pair::NONE.to_words();
/// words[1] = Pair { same: Nearest { index: 3, dist2: 0.5 }, other: Nearest::NONE }.to_words();
/// let pairs: &[Pair] = bytemuck::cast_slice(&words);
/// assert_eq!((pairs[0], pairs[1].same.index), (Pair::NONE, 3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, AnyBitPattern)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Pair<T = f32> {
    /// With the anchor's label.
    pub same: Nearest<T>,
    /// With another label.
    pub other: Nearest<T>,
}

impl<T: Real> Pair<T> {
    /// Neither neighbour: what a search starts from.
    pub const NONE: Self = Self { same: Nearest::NONE, other: Nearest::NONE };

    /// Whether the nearest sample of all has the anchor's label; `None` without any neighbour.
    pub fn correct(self) -> Option<bool> {
        (self.same.exists() || self.other.exists()).then(|| self.same.precedes(self.other))
    }

    /// Whether both neighbours are there, which a loss needs.
    pub const fn complete(self) -> bool {
        self.same.exists() && self.other.exists()
    }

    /// The pair after the rows of `bank`, of which row j has index `first + j`, have been
    /// considered as neighbours of `query` with label `label`. Row `own` is left out.
    ///
    /// One anchor of [`nearest_pair`], with the same rules.
    pub fn fold<Q: Feature<Wide = T>, B: Feature<Wide = T>>(
        mut self,
        query: &[Q],
        label: u16,
        bank: Rows<'_, B>,
        first: u32,
        own: Option<u32>,
    ) -> Self {
        for (candidate, other) in candidates(query, bank, first, own) {
            let best = if other == label { &mut self.same } else { &mut self.other };
            if candidate.precedes(*best) {
                *best = candidate;
            }
        }
        self
    }
}

impl Pair<f32> {
    /// The pair as four words: index and bits of the distance, same label first.
    pub const fn to_words(self) -> [u32; 4] {
        let Self { same, other } = self;
        [same.index, same.dist2.to_bits(), other.index, other.dist2.to_bits()]
    }

    /// The pair of [`to_words`](Self::to_words).
    pub const fn from_words(words: [u32; 4]) -> Self {
        let [same, same_dist2, other, other_dist2] = words;
        Self {
            same: Nearest { index: same, dist2: f32::from_bits(same_dist2) },
            other: Nearest { index: other, dist2: f32::from_bits(other_dist2) },
        }
    }
}

/// Labelled feature vectors, one after the other: (M, D) and (M).
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T = f32> {
    /// The features, row by row: `labels.len() * dim` numbers.
    pub data: &'a [T],
    /// Features of one row, D; with 0 all rows are the same point.
    pub dim: usize,
    /// The label of each row.
    pub labels: &'a [u16],
}

impl<'a, T> Rows<'a, T> {
    /// How many rows have a label and all their features.
    pub const fn len(&self) -> usize {
        match self.data.len().checked_div(self.dim) {
            Some(rows) if rows < self.labels.len() => rows,
            _ => self.labels.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The features of row `at`; `None` past the end.
    pub fn row(&self, at: usize) -> Option<&'a [T]> {
        // Inside the length the product is at most `data.len()`.
        (at < self.len()).then(|| self.data.get(at * self.dim..)?.get(..self.dim)).flatten()
    }

    /// The rows with their labels.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [T], u16)> + use<'a, T> {
        let rows = Self { ..*self };
        let count = rows.len();
        let labels = rows.labels.iter().take(count).enumerate();
        labels.filter_map(move |(at, &label)| Some((rows.row(at)?, label)))
    }
}

/// The squared Euclidean distance, `sum_d (a_d - b_d)^2`, summed in the order of d.
///
/// Not `|a|^2 + |b|^2 - 2 a.b`, which loses the small distances, the ones that matter, to
/// cancellation.
pub fn distance2<A: Feature, B: Feature<Wide = A::Wide>>(a: &[A], b: &[B]) -> A::Wide {
    a.iter().zip(b).fold(A::Wide::ZERO, |sum, (&a, &b)| {
        let apart = a.widen() - b.widen();
        sum + apart * apart
    })
}

/// The rows of `bank` as neighbours of `query`, each with its label; none where the dimensions
/// differ.
fn candidates<'a, Q: Feature, B: Feature<Wide = Q::Wide>>(
    query: &'a [Q],
    bank: Rows<'a, B>,
    first: u32,
    own: Option<u32>,
) -> impl Iterator<Item = (Nearest<Q::Wide>, u16)> + use<'a, Q, B> {
    let count = if query.len() == bank.dim { bank.len() } else { 0 };
    // The range ends before the index that means "none".
    (first..u32::MAX)
        .zip(bank.iter().take(count))
        .filter(move |&(index, _)| own != Some(index))
        .map(move |(index, (row, label))| (Nearest { index, dist2: distance2(query, row) }, label))
}

/// The index that query `at` must not match.
fn own_index(skip: Option<u32>, at: usize) -> Option<u32> {
    skip?.checked_add(u32::try_from(at).ok()?)
}

/// Folds a piece of the bank into the nearest same-label and other-label neighbours of each query.
///
/// ```text
/// same_i  = argmin_{j: l_j  = l_i, j != i} |x_i - x_j|^2
/// other_i = argmin_{j: l_j != l_i}         |x_i - x_j|^2
/// ```
/// (Eq. 8 of the paper with `l = l` in the first line, where it prints `l != l`.) Of equal
/// distances the lowest index wins, NaN never wins.
///
/// Row j of `bank` has index `first + j`, which stays below `u32::MAX`. Query i never matches
/// index `skip + i`: `Some(0)` searches a set against itself, `None` excludes nothing. Shapes:
/// queries (M, D), bank (any, D), pairs (M); they are read and updated, so the first piece starts
/// from [`Pair::NONE`]. Each row is folded once. With different D nothing is updated.
///
/// ```
/// use sepal_core::neighbour::{Pair, Rows, nearest_pair};
/// let rows = Rows { data: &[0.0f32, 1.0, 3.0], dim: 1, labels: &[0, 1, 0] };
/// let mut pairs = [Pair::NONE; 3];
/// nearest_pair(rows, rows, 0, Some(0), &mut pairs);
/// assert_eq!((pairs[0].same.index, pairs[0].other.index), (2, 1));
/// assert_eq!(pairs[0].correct(), Some(false)); // its nearest, row 1, has another label
/// assert!(!pairs[1].complete()); // alone in its class
/// ```
pub fn nearest_pair<Q: Feature, B: Feature<Wide = Q::Wide>>(
    queries: Rows<'_, Q>,
    bank: Rows<'_, B>,
    first: u32,
    skip: Option<u32>,
    pairs: &mut [Pair<Q::Wide>],
) {
    for (at, ((query, label), pair)) in queries.iter().zip(pairs).enumerate() {
        *pair = pair.fold(query, label, bank, first, own_index(skip, at));
    }
}

/// Folds a piece of the bank into the k nearest neighbours of each query, whatever their labels.
///
/// Arguments and rules as for [`nearest_pair`]. `out` has k places for each query, (M, K), in the
/// order by (distance, index), places without a neighbour last; it is read and updated, so the
/// first piece starts from [`Nearest::NONE`].
///
/// ```
/// use sepal_core::neighbour::{Nearest, Rows, top_k};
/// let rows = Rows { data: &[0.0f32, 1.0, 3.0], dim: 1, labels: &[0, 1, 0] };
/// let mut out = [Nearest::NONE; 6];
/// top_k(rows, rows, 0, Some(0), 2, &mut out);
/// assert_eq!(out.map(|n| n.index), [1, 2, 0, 2, 1, 0]);
/// ```
pub fn top_k<Q: Feature, B: Feature<Wide = Q::Wide>>(
    queries: Rows<'_, Q>,
    bank: Rows<'_, B>,
    first: u32,
    skip: Option<u32>,
    k: usize,
    out: &mut [Nearest<Q::Wide>],
) {
    if k == 0 {
        return;
    }
    for (at, ((query, _), places)) in queries.iter().zip(out.chunks_exact_mut(k)).enumerate() {
        for (candidate, _) in candidates(query, bank, first, own_index(skip, at)) {
            insert(places, candidate);
        }
    }
}

/// Puts a candidate at its place; what follows moves down by one, and the last falls off.
fn insert<T: Real>(places: &mut [Nearest<T>], candidate: Nearest<T>) {
    if !places.last().is_some_and(|&last| candidate.precedes(last)) {
        return;
    }
    let mut moving = candidate;
    for place in places {
        if moving.precedes(*place) {
            core::mem::swap(place, &mut moving);
        }
    }
}

/// The label that most of the neighbours have; of equally frequent labels the one whose nearest
/// neighbour is nearer. `None` without a neighbour.
///
/// `neighbours` are the k places of one query as [`top_k`] gives them, `labels` the labels of the
/// whole bank, indexed by [`Nearest::index`]. A place without a neighbour, or with an index past
/// `labels`, has no vote. It compares each place with each, so that it needs no memory for counts.
///
/// ```
/// use sepal_core::neighbour::{Nearest, vote};
/// let near = |index| Nearest { index, dist2: index as f32 };
/// assert_eq!(vote(&[near(0), near(1), near(2)], &[5, 7, 7]), Some(7));
/// assert_eq!(vote(&[near(0), near(1)], &[5, 7]), Some(5));
/// ```
pub fn vote<T: Real>(neighbours: &[Nearest<T>], labels: &[u16]) -> Option<u16> {
    let votes = || neighbours.iter().filter_map(|&n| label_of(n, labels));
    let mut best = None;
    for label in votes() {
        let count = votes().filter(|&other| other == label).count();
        if best.is_none_or(|(_, most)| count > most) {
            best = Some((label, count));
        }
    }
    best.map(|(label, _)| label)
}

/// The label of a neighbour; `None` where there is none or it is not in `labels`.
pub(crate) fn label_of<T: Real>(neighbour: Nearest<T>, labels: &[u16]) -> Option<u16> {
    if !neighbour.exists() {
        return None;
    }
    labels.get(usize::try_from(neighbour.index).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    struct Set {
        data: Vec<f64>,
        dim: usize,
        labels: Vec<u16>,
    }

    impl Set {
        fn new(data: &[f64], dim: usize, labels: &[u16]) -> Self {
            Self { data: data.into(), dim, labels: labels.into() }
        }

        fn rows(&self) -> Rows<'_, f64> {
            Rows { data: &self.data, dim: self.dim, labels: &self.labels }
        }

        fn part(&self, from: usize, to: usize) -> Rows<'_, f64> {
            Rows {
                data: &self.data[from * self.dim..to * self.dim],
                dim: self.dim,
                labels: &self.labels[from..to],
            }
        }
    }

    /// All rows of the bank as seen from query i, nearest first, found by sorting.
    fn sorted(queries: &Set, bank: &Set, i: usize, skip: Option<usize>) -> Vec<Nearest<f64>> {
        let mut all = vec![];
        for j in 0..bank.labels.len() {
            let dist2 = (0..bank.dim)
                .map(|d| (queries.data[i * bank.dim + d] - bank.data[j * bank.dim + d]).powi(2))
                .sum::<f64>();
            if !dist2.is_nan() && skip.is_none_or(|skip| i + skip != j) {
                all.push(Nearest { index: j as u32, dist2 });
            }
        }
        // A stable sort keeps the lower index first.
        all.sort_by(|a, b| a.dist2.total_cmp(&b.dist2));
        all
    }

    fn brute(queries: &Set, bank: &Set, skip: Option<usize>) -> Vec<Pair<f64>> {
        (0..queries.labels.len())
            .map(|i| {
                let all = sorted(queries, bank, i, skip);
                let first = |same: bool| {
                    let has = |n: &&Nearest<f64>| {
                        (bank.labels[n.index as usize] == queries.labels[i]) == same
                    };
                    all.iter().find(has).copied().unwrap_or(Nearest::NONE)
                };
                Pair { same: first(true), other: first(false) }
            })
            .collect()
    }

    fn brute_k(queries: &Set, bank: &Set, skip: Option<usize>, k: usize) -> Vec<Nearest<f64>> {
        let places = (0..queries.labels.len()).map(|i| {
            let mut all = sorted(queries, bank, i, skip);
            all.resize(k, Nearest::NONE);
            all
        });
        places.flatten().collect()
    }

    fn pairs(queries: Rows<'_, f64>, bank: Rows<'_, f64>, skip: Option<u32>) -> Vec<Pair<f64>> {
        let mut pairs = vec![Pair::NONE; queries.len()];
        nearest_pair(queries, bank, 0, skip, &mut pairs);
        pairs
    }

    /// Values on a small grid, so that ties and duplicates are common, with some NaN and infinity.
    fn set(dim: usize) -> impl Strategy<Value = Set> {
        let value = prop_oneof![
            20 => (-2i8..=2).prop_map(f64::from),
            1 => Just(f64::NAN),
            1 => Just(f64::INFINITY),
        ];
        let row = (prop::collection::vec(value, dim), 0u16..4);
        prop::collection::vec(row, 0..12).prop_map(move |rows| Set {
            data: rows.iter().flat_map(|(x, _)| x.clone()).collect(),
            dim,
            labels: rows.iter().map(|&(_, label)| label).collect(),
        })
    }

    fn two_sets() -> impl Strategy<Value = (Set, Set)> {
        (0usize..4).prop_flat_map(|dim| (set(dim), set(dim)))
    }

    proptest! {
        #[test]
        fn the_nearest_are_the_first_when_sorted(
            (queries, bank) in two_sets(),
            skip in prop::option::of(0usize..6),
            k in 0usize..15,
        ) {
            let word = skip.map(|skip| skip as u32);
            let (q, b) = (queries.rows(), bank.rows());
            prop_assert_eq!(pairs(q, b, word), brute(&queries, &bank, skip));
            prop_assert_eq!(pairs(b, b, word), brute(&bank, &bank, skip));
            let mut places = vec![Nearest::NONE; queries.labels.len() * k];
            top_k(q, b, 0, word, k, &mut places);
            prop_assert_eq!(places, brute_k(&queries, &bank, skip, k));
        }

        #[test]
        fn pieces_in_any_order_give_the_whole(
            (queries, bank) in two_sets(),
            cuts in prop::collection::vec(0usize..12, 0..4),
            order in Just([0, 1, 2, 3, 4]).prop_shuffle(),
            skip in prop::option::of(0u32..6),
        ) {
            const K: usize = 3;
            let m = bank.labels.len();
            let mut bounds: Vec<_> = cuts.iter().map(|&cut| cut.min(m)).chain([0, m]).collect();
            bounds.sort_unstable();

            let mut folded = vec![Pair::NONE; queries.labels.len()];
            let mut folded_k = vec![Nearest::NONE; queries.labels.len() * K];
            for at in order.into_iter().filter(|at| at + 1 < bounds.len()) {
                let (from, to) = (bounds[at], bounds[at + 1]);
                let (piece, first) = (bank.part(from, to), from as u32);
                nearest_pair(queries.rows(), piece, first, skip, &mut folded);
                top_k(queries.rows(), piece, first, skip, K, &mut folded_k);
            }
            prop_assert_eq!(folded, pairs(queries.rows(), bank.rows(), skip));
            let mut whole = vec![Nearest::NONE; queries.labels.len() * K];
            top_k(queries.rows(), bank.rows(), 0, skip, K, &mut whole);
            prop_assert_eq!(folded_k, whole);
        }

        #[test]
        fn the_vote_is_the_majority(
            labels in prop::collection::vec(0u16..4, 0..12),
            order in Just((0u32..16).collect::<Vec<_>>()).prop_shuffle(),
            k in 0usize..12,
        ) {
            // Indices from `labels.len()` on are not in the bank.
            let neighbours: Vec<_> = order[..k]
                .iter()
                .enumerate()
                .map(|(at, &index)| Nearest { index, dist2: at as f32 })
                .chain([Nearest::NONE])
                .collect();
            let voters: Vec<_> =
                order[..k].iter().filter_map(|&i| labels.get(i as usize).copied()).collect();
            let mut counts = [0; 4];
            voters.iter().for_each(|&label| counts[usize::from(label)] += 1);
            let most = counts.iter().max();
            let winner = voters.iter().find(|&&label| Some(&counts[usize::from(label)]) == most);
            prop_assert_eq!(vote(&neighbours, &labels), winner.copied());
        }

        #[test]
        fn words_hold_a_pair(words in any::<[u32; 4]>()) {
            let pair = Pair::from_words(words);
            prop_assert_eq!(pair.to_words(), words);
            prop_assert_eq!(bytemuck::cast::<_, Pair>(words).to_words(), words);
        }
    }

    #[test]
    fn f32_finds_the_same_where_it_is_exact() {
        let bank = Set::new(&[0.0, 3.0, 1.0, 1.0, 5.0, 2.0, 3.0, 3.0], 2, &[0, 1, 0, 1]);
        let data: Vec<_> = bank.data.iter().map(|&x| x as f32).collect();
        let rows = Rows { data: &data, dim: 2, labels: &bank.labels };
        let mut got = vec![Pair::NONE; 4];
        nearest_pair(rows, rows, 0, Some(0), &mut got);
        let wide = |n: Nearest| Nearest { index: n.index, dist2: f64::from(n.dist2) };
        let got: Vec<_> =
            got.into_iter().map(|p| Pair { same: wide(p.same), other: wide(p.other) }).collect();
        assert_eq!(got, brute(&bank, &bank, Some(0)));
    }

    #[test]
    fn the_nearest_of_all_decides() {
        let near = |index, dist2| Nearest { index, dist2 };
        let correct = |same, other| Pair { same, other }.correct();
        assert_eq!(correct(near(1, 2.0), near(0, 3.0)), Some(true));
        assert_eq!(correct(near(1, 3.0), near(0, 2.0)), Some(false));
        assert_eq!(correct(near(1, 2.0), near(0, 2.0)), Some(false));
        assert_eq!(correct(near(0, 2.0), near(1, 2.0)), Some(true));
        assert_eq!(correct(near(7, f64::INFINITY), Nearest::NONE), Some(true));
        assert_eq!(correct(Nearest::NONE, near(7, f64::INFINITY)), Some(false));
        assert_eq!(Pair::<f64>::NONE.correct(), None);
        assert!(Pair { same: near(0, 1.0), other: near(1, 1.0) }.complete());
        assert!(!Pair { same: Nearest::NONE, other: near(1, 1.0) }.complete());
        assert!(!Pair { same: near(1, 1.0), other: Nearest::NONE }.complete());
    }

    #[test]
    fn an_overflowing_distance_is_a_neighbour_and_nan_is_none() {
        let rows = Rows { data: &[-3e38f32, 3e38, f32::NAN], dim: 1, labels: &[0; 3] };
        let mut pairs = [Pair::NONE; 3];
        nearest_pair(rows, rows, 0, Some(0), &mut pairs);
        assert_eq!(pairs[0].same, Nearest { index: 1, dist2: f32::INFINITY });
        assert_eq!(pairs[1].same, Nearest { index: 0, dist2: f32::INFINITY });
        assert_eq!(pairs[2], Pair::NONE);
    }

    #[test]
    fn without_features_the_lowest_index_is_nearest() {
        let set = Set::new(&[], 0, &[0, 1, 0, 1]);
        assert_eq!(set.rows().len(), 4);
        let pairs = pairs(set.rows(), set.rows(), Some(0));
        let indices: Vec<_> = pairs.iter().map(|p| (p.same.index, p.other.index)).collect();
        assert_eq!(indices, [(2, 1), (3, 0), (0, 1), (1, 0)]);
        assert!(pairs.iter().all(|p| p.same.dist2 == 0.0 && p.other.dist2 == 0.0));
    }

    #[test]
    fn duplicates_are_neighbours_and_the_sample_itself_is_not() {
        let set = Set::new(&[1.0, 1.0, 1.0], 1, &[0, 0, 1]);
        let same = |skip| pairs(set.rows(), set.rows(), skip)[0].same.index;
        assert_eq!((same(Some(0)), same(None)), (1, 0));
    }

    #[test]
    fn indices_stay_below_the_one_that_means_none() {
        let set = Set::new(&[0.0, 0.0, 0.0], 1, &[0; 3]);
        let mut places = [Nearest::NONE; 6];
        top_k(set.rows(), set.rows(), u32::MAX - 2, Some(u32::MAX - 1), 2, &mut places);
        let indices = places.map(|n| n.index);
        let (a, b, none) = (u32::MAX - 2, u32::MAX - 1, u32::MAX);
        // Query 0 skips b, query 1 the index that nobody has, query 2 one past all indices.
        assert_eq!(indices, [a, none, a, b, a, b]);
    }

    #[test]
    fn rows_are_whole_and_of_one_dimension() {
        let short = Rows { data: &[0.0, 1.0, 2.0], dim: 2, labels: &[0, 0] };
        assert_eq!((short.len(), short.iter().count(), short.row(1)), (1, 1, None));
        assert_eq!(short.row(0), Some(&[0.0, 1.0][..]));
        let none = Rows { data: &[1.0], dim: 1, labels: &[] };
        assert!(none.is_empty() && !short.is_empty());
        let line = Rows { data: &[0.0], dim: 1, labels: &[0] };
        let mut pair = [Pair::NONE];
        nearest_pair(short, line, 0, None, &mut pair);
        assert_eq!(pair, [Pair::NONE]);
    }
}
