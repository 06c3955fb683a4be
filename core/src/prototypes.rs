//! New classes from a few samples: prototypes and stored embeddings, in memory lent by the caller.
//!
//! A net that separates its classes mostly separates others too. A class is then learnt without
//! training: [`Prototypes`] keep the mean embedding of each class, [`Exemplars`] keep embeddings
//! themselves. Classes come with their first sample and go by one call.
//!
//! | | memory for C classes, M samples of D features | a query costs | right where a class |
//! |---|---|---|---|
//! | [`Prototypes`] | `C (4 D + 14)` bytes | C distances | is one cluster |
//! | [`Exemplars`] | `M (4 D + 6)` bytes | M distances | has any form |
//!
//! # None of these
//! Both learn from a class's own samples how far its members lie, and refuse what lies farther
//! (`classify`); or the caller compares [`Found::dist2`] of `nearest` with a number of its own.
//!
//! # Scale
//! Distances are squared Euclidean, as in the whole library. Embeddings are to be scaled to length 1
//! before they come here ([`L2Normalise`](crate::layer::L2Normalise), last in the net): distances
//! then lie in 0 to 4, and a sample with more contrast is not farther from all others.
//!
//! # Order
//! That of [`neighbour`]: of equal distances the lowest index wins, which is the class or the sample
//! that came first, and NaN never wins: a query with a NaN has no class.
//!
//! # Sources
//! Nearest class mean: Mensink, Verbeek, Perronnin and Csurka, "Distance-based image classification:
//! generalizing to new classes at near-zero cost", 2013. Means of few samples as prototypes: Snell,
//! Swersky and Zemel, "Prototypical networks for few-shot learning", 2017. A nearest class mean that
//! refuses what is far: Bendale and Boult, "Towards open world recognition", 2015; the rules of
//! distance here are other ones, given at each `limit`.

use bytemuck::{Pod, Zeroable};

use crate::neighbour::{self, Nearest, Rows, distance2};

/// Why an embedding was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrototypesError {
    /// Memory for features, or for what is kept of each row, that is shorter than the labels.
    Memory {
        /// Elements needed.
        needed: usize,
        /// Elements given.
        given: usize,
    },
    /// An embedding of another length.
    Dim {
        /// Features of an embedding.
        expected: usize,
        /// Features given.
        got: usize,
    },
    /// A feature that is infinite or NaN.
    NotFinite {
        /// The feature.
        at: usize,
    },
    /// An embedding whose squared distance from its class overflows.
    Far {
        /// The class.
        label: u16,
    },
    /// No row is left.
    Full {
        /// Rows that there are.
        capacity: usize,
    },
    /// Memory to go on with that has a class without samples, or a label twice.
    Kept {
        /// The row.
        at: usize,
    },
}

impl core::fmt::Display for PrototypesError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Memory { needed, given } => {
                write!(f, "memory of {given} elements, the rows need {needed}")
            }
            Self::Dim { expected, got } => {
                write!(f, "an embedding of {got} features, expected {expected}")
            }
            Self::NotFinite { at } => write!(f, "feature {at} of an embedding is not finite"),
            Self::Far { label } => {
                write!(f, "an embedding too far from class {label}: its distance is not finite")
            }
            Self::Full { capacity } => write!(f, "all {capacity} rows are taken"),
            Self::Kept { at } => {
                write!(f, "row {at} of what was kept has no samples, or a label that came before")
            }
        }
    }
}

impl core::error::Error for PrototypesError {}

/// A class, and how far its nearest prototype or sample is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The class.
    pub label: u16,
    /// The squared distance.
    pub dist2: f32,
}

/// How many samples a class has, and how its distances spread. 12 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Spread {
    count: u32,
    /// The sum of the e of [`Prototypes::limit`].
    sum: f32,
    /// The sum of their squares.
    squares: f32,
}

impl Spread {
    /// Of no sample.
    pub const NONE: Self = Self { count: 0, sum: 0.0, squares: 0.0 };

    /// How many e there are: the first sample has none.
    const fn terms(self) -> u32 {
        self.count.saturating_sub(1)
    }
}

/// The mean embedding of each class.
///
/// ```text
/// mu_c = (1/n_c) sum_{i: l_i = c} x_i,   class of x = argmin_c |x - mu_c|^2
/// ```
/// Means are updated sample by sample, `mu += (x - mu) / n`; no sample is kept.
///
/// ```
/// use sepal_core::prototypes::{Prototypes, Spread};
/// let (mut means, mut labels, mut spreads) = ([0.0; 3 * 2], [0; 3], [Spread::NONE; 3]);
/// let mut prototypes = Prototypes::new(2, &mut means, &mut labels, &mut spreads)?;
/// for x in [[1.0, 0.0], [0.96, 0.28], [0.96, -0.28]] {
///     prototypes.add(&x, 4)?;
/// }
/// for x in [[0.0, 1.0], [0.28, 0.96], [-0.28, 0.96]] {
///     prototypes.add(&x, 9)?;
/// }
/// let class = |x| prototypes.classify(x, 3.0).map(|found| found.label);
/// assert_eq!(class(&[0.8, 0.6]), None); // farther than three deviations from both
/// assert_eq!((class(&[0.99, 0.1]), class(&[0.1, 0.99])), (Some(4), Some(9)));
/// assert_eq!(prototypes.nearest(&[0.8, 0.6]).map(|found| found.label), Some(4));
/// # Ok::<(), sepal_core::prototypes::PrototypesError>(())
/// ```
#[derive(Debug)]
pub struct Prototypes<'a> {
    dim: usize,
    /// Classes there are, in the first rows.
    len: usize,
    means: &'a mut [f32],
    labels: &'a mut [u16],
    spreads: &'a mut [Spread],
}

impl<'a> Prototypes<'a> {
    /// No class, and room for as many as `labels` holds. Shapes: means (C, D), labels (C),
    /// spreads (C); they may hold anything.
    ///
    /// # Errors
    /// Means or spreads that are shorter.
    pub fn new(
        dim: usize,
        means: &'a mut [f32],
        labels: &'a mut [u16],
        spreads: &'a mut [Spread],
    ) -> Result<Self, PrototypesError> {
        fits(labels.len().saturating_mul(dim), means.len())?;
        fits(labels.len(), spreads.len())?;
        Ok(Self { dim, len: 0, means, labels, spreads })
    }

    /// The prototypes that the first `len` rows of the memory hold: what
    /// [`rows`](Self::rows) and [`spreads`](Self::spreads) gave once.
    ///
    /// # Errors
    /// As [`new`](Self::new), more classes than rows, a class without samples or with the label of
    /// another, a mean that is not finite.
    pub fn resume(
        dim: usize,
        means: &'a mut [f32],
        labels: &'a mut [u16],
        spreads: &'a mut [Spread],
        len: usize,
    ) -> Result<Self, PrototypesError> {
        let prototypes = Self { len, ..Self::new(dim, means, labels, spreads)? };
        fits(len, prototypes.capacity())?;
        let classes = prototypes.rows().iter().zip(prototypes.spreads()).enumerate();
        for (at, ((mean, label), spread)) in classes {
            finite(dim, mean)?;
            if spread.count == 0 || prototypes.at(label) != Some(at) {
                return Err(PrototypesError::Kept { at });
            }
        }
        Ok(prototypes)
    }

    /// Adds a sample's embedding to a class, which is a new one where the label is. Returns how many
    /// samples the class has now.
    ///
    /// # Errors
    /// Another length, a feature that is not finite, a distance that overflows, a new class where all
    /// rows are taken: nothing changes then.
    pub fn add(&mut self, embedding: &[f32], label: u16) -> Result<u32, PrototypesError> {
        finite(self.dim, embedding)?;
        let full = PrototypesError::Full { capacity: self.capacity() };
        let (at, new) = match self.at(label) {
            Some(at) => (at, false),
            None => (self.len, true),
        };
        let spread = self.spreads.get_mut(at).ok_or(full)?;
        let own = self.labels.get_mut(at).ok_or(full)?;
        let mean = row_mut(self.means, self.dim, at).ok_or(full)?;
        if new {
            (*own, *spread) = (label, Spread::NONE);
            mean.fill(0.0);
        }
        let count = spread.count.saturating_add(1);
        let n = count as f32;
        if !new {
            let term = distance2(embedding, mean) * ((n - 1.0) / n);
            if !term.is_finite() {
                return Err(PrototypesError::Far { label });
            }
            spread.sum += term;
            spread.squares += term * term;
        }
        mean.iter_mut().zip(embedding).for_each(|(mean, &x)| *mean += (x - *mean) / n);
        spread.count = count;
        self.len += usize::from(new);
        Ok(count)
    }

    /// Removes a class; those that came after it move up. Returns how many samples it had.
    pub fn remove(&mut self, label: u16) -> u32 {
        let Some(at) = self.at(label) else { return 0 };
        let count = self.spreads.get(at).map_or(0, |spread| spread.count);
        for from in at + 1..self.len {
            move_row(self.means, self.dim, from, from - 1);
            move_row(self.labels, 1, from, from - 1);
            move_row(self.spreads, 1, from, from - 1);
        }
        self.len -= 1;
        count
    }

    /// The labels of the classes, in the order in which they came, and how many samples each has.
    pub fn classes(&self) -> impl Iterator<Item = (u16, u32)> {
        let labels = self.rows().labels.iter().copied();
        labels.zip(self.spreads().iter().map(|spread| spread.count))
    }

    /// The means with their labels.
    pub fn rows(&self) -> Rows<'_> {
        let labels = self.labels.get(..self.len).unwrap_or_default();
        let data = self.means.get(..self.len.saturating_mul(self.dim)).unwrap_or_default();
        Rows { data, dim: self.dim, labels }
    }

    /// What is known of each class beside its mean, to be stored with [`rows`](Self::rows).
    pub fn spreads(&self) -> &[Spread] {
        self.spreads.get(..self.len).unwrap_or_default()
    }

    /// How many classes there is room for.
    pub const fn capacity(&self) -> usize {
        self.labels.len()
    }

    fn at(&self, label: u16) -> Option<usize> {
        self.rows().labels.iter().position(|&other| other == label)
    }

    /// The class with the nearest mean; `None` where there is no class, or no distance because of
    /// NaN or another length.
    pub fn nearest(&self, embedding: &[f32]) -> Option<Found> {
        nearest(self.rows(), embedding, &mut [Nearest::NONE])
    }

    /// How far members of a class lie from its mean, as a squared distance: learnt from the class's
    /// own samples, as they came.
    ///
    /// ```text
    /// e_n   = (n-1)/n |x_n - mu_{n-1}|^2,   n = 2, 3, ..
    /// limit = (1 + 1/n) (mean(e) + deviations * std(e))
    /// ```
    /// The differences `sqrt((n-1)/n) (x_n - mu_{n-1})` are Helmert's contrasts: for samples of one
    /// normal distribution they are independent and each is spread as `x - E x` is, so that the e
    /// tell how squared distances from the true mean are distributed, from one pass and without the
    /// samples. Their sum is `sum_i |x_i - mu_n|^2` (Welford, 1962). A new sample lies farther from
    /// a mean of n samples than from the true one, by `1 + 1/n` on average.
    ///
    /// A class of one or two samples has no deviation of its own and takes the e of all classes
    /// together; where these too are fewer than two, the limit is infinite. `None` where there is no
    /// such class.
    ///
    /// ```
    /// # use sepal_core::prototypes::{Prototypes, Spread};
    /// # let (mut means, mut labels, mut spreads) = ([0.0; 1], [0; 1], [Spread::NONE; 1]);
    /// let mut prototypes = Prototypes::new(1, &mut means, &mut labels, &mut spreads)?;
    /// for x in [0.0, 1.0, 2.0] {
    ///     prototypes.add(&[x], 7)?;
    /// }
    /// // e = 1/2 and 3/2: mean 1, deviation sqrt(1/2).
    /// let limit = prototypes.limit(7, 2.0).unwrap();
    /// assert!((limit - 4.0 / 3.0 * (1.0 + 2.0 * 0.5f32.sqrt())).abs() < 1e-6);
    /// # Ok::<(), sepal_core::prototypes::PrototypesError>(())
    /// ```
    pub fn limit(&self, label: u16, deviations: f32) -> Option<f32> {
        let own = *self.spreads().get(self.at(label)?)?;
        let (mut terms, mut sum, mut squares) = (own.terms(), own.sum, own.squares);
        if terms < 2 {
            (terms, sum, squares) = (0, 0.0, 0.0);
            for spread in self.spreads() {
                terms = terms.saturating_add(spread.terms());
                sum += spread.sum;
                squares += spread.squares;
            }
        }
        if terms < 2 {
            return Some(f32::INFINITY);
        }
        let mean = sum / terms as f32;
        // Rounding may take it below 0.
        let variance = ((squares - sum * mean) / (terms - 1) as f32).max(0.0);
        let n = own.count as f32;
        Some((1.0 + 1.0 / n) * (mean + deviations * libm::sqrtf(variance)))
    }

    /// The class with the nearest mean, unless the embedding lies beyond that class's
    /// [`limit`](Self::limit): then it is none of these.
    pub fn classify(&self, embedding: &[f32], deviations: f32) -> Option<Found> {
        self.nearest(embedding)
            .filter(|found| self.limit(found.label, deviations).is_some_and(|l| found.dist2 <= l))
    }
}

/// Stored embeddings, searched for the k nearest.
///
/// ```
/// use sepal_core::neighbour::Nearest;
/// use sepal_core::prototypes::Exemplars;
/// let (mut data, mut labels, mut within) = ([0.0; 6], [0; 6], [0.0; 6]);
/// let mut exemplars = Exemplars::new(1, &mut data, &mut labels, &mut within)?;
/// for (x, label) in [(0.0, 4), (0.1, 4), (0.3, 4), (1.0, 9), (1.1, 9)] {
///     exemplars.add(&[x], label)?;
/// }
/// let mut places = [Nearest::NONE; 3]; // k
/// let mut class = |x| exemplars.classify(&[x], &mut places, 1.0).map(|found| found.label);
/// assert_eq!((class(0.15), class(1.05), class(0.7)), (Some(4), Some(9), None));
/// # Ok::<(), sepal_core::prototypes::PrototypesError>(())
/// ```
#[derive(Debug)]
pub struct Exemplars<'a> {
    dim: usize,
    /// Embeddings there are, in the first rows.
    len: usize,
    data: &'a mut [f32],
    labels: &'a mut [u16],
    within: &'a mut [f32],
}

impl<'a> Exemplars<'a> {
    /// No embedding, and room for as many as `labels` holds. Shapes: data (M, D), labels (M),
    /// within (M), where the distance of each row to the nearest of its class is kept; they may hold
    /// anything. To go on with stored embeddings, add them again.
    ///
    /// # Errors
    /// Data or `within` that are shorter.
    pub fn new(
        dim: usize,
        data: &'a mut [f32],
        labels: &'a mut [u16],
        within: &'a mut [f32],
    ) -> Result<Self, PrototypesError> {
        fits(labels.len().saturating_mul(dim), data.len())?;
        fits(labels.len(), within.len())?;
        Ok(Self { dim, len: 0, data, labels, within })
    }

    /// Stores a sample's embedding, of a new class where the label is new. It costs the distances to
    /// the embeddings of its class.
    ///
    /// # Errors
    /// Another length, a feature that is not finite, all rows taken: nothing changes then.
    pub fn add(&mut self, embedding: &[f32], label: u16) -> Result<(), PrototypesError> {
        finite(self.dim, embedding)?;
        let full = PrototypesError::Full { capacity: self.capacity() };
        let (before, within) = self.within.split_at_mut_checked(self.len).ok_or(full)?;
        let within = within.first_mut().ok_or(full)?;
        let own = self.labels.get_mut(self.len).ok_or(full)?;
        let row = row_mut(self.data, self.dim, self.len).ok_or(full)?;
        *own = label;
        *within = f32::INFINITY;
        row.iter_mut().zip(embedding).for_each(|(to, &x)| *to = x);
        let rows = Rows { data: self.data, dim: self.dim, labels: self.labels };
        for ((other, _), least) in rows.iter().zip(before).filter(|((_, l), _)| *l == label) {
            let dist2 = distance2(embedding, other);
            *least = least.min(dist2);
            *within = within.min(dist2);
        }
        self.len += 1;
        Ok(())
    }

    /// Removes a class; what came after its embeddings moves up. Returns how many it had.
    pub fn remove(&mut self, label: u16) -> usize {
        let mut to = 0;
        for from in 0..self.len {
            if self.labels.get(from) != Some(&label) {
                move_row(self.data, self.dim, from, to);
                move_row(self.labels, 1, from, to);
                move_row(self.within, 1, from, to);
                to += 1;
            }
        }
        let removed = self.len - to;
        self.len = to;
        removed
    }

    /// The labels of the classes, in the order in which they came, and how many embeddings each has.
    pub fn classes(&self) -> impl Iterator<Item = (u16, usize)> {
        let labels = self.rows().labels;
        let first =
            |&(at, label): &(usize, &u16)| labels.iter().position(|l| l == label) == Some(at);
        let count = |label: &u16| labels.iter().filter(|&l| l == label).count();
        labels.iter().enumerate().filter(first).map(move |(_, label)| (*label, count(label)))
    }

    /// The embeddings with their labels.
    pub fn rows(&self) -> Rows<'_> {
        let labels = self.labels.get(..self.len).unwrap_or_default();
        let data = self.data.get(..self.len.saturating_mul(self.dim)).unwrap_or_default();
        Rows { data, dim: self.dim, labels }
    }

    /// How many embeddings there is room for.
    pub const fn capacity(&self) -> usize {
        self.labels.len()
    }

    /// The class that most of the k nearest embeddings have, by [`neighbour::vote`], and the
    /// distance of the nearest of them that has it. `places` has k places, which are overwritten.
    /// Take k well below the samples of the smallest class: a class of five is outvoted by larger
    /// ones where k is five.
    ///
    /// `None` where there is no embedding, no place, or no distance because of NaN or another length.
    pub fn nearest(&self, embedding: &[f32], places: &mut [Nearest]) -> Option<Found> {
        places.fill(Nearest::NONE);
        nearest(self.rows(), embedding, places)
    }

    /// How far members of a class lie from the nearest embedding of it, as a squared distance: the
    /// quantile q, 0 to 1, of the distances within the class, to be taken as the limit.
    ///
    /// ```text
    /// w_i   = min_{j != i, l_j = l_i} |x_i - x_j|^2,   i in the class, of m embeddings
    /// limit = min { w_i : |{j : w_j <= w_i}| >= q m }
    /// ```
    /// With q = 1 it is the largest of them. A query has one neighbour more to be near to than each
    /// embedding has, so that about `1 - q` of the members are refused, and fewer where m is small.
    ///
    /// A class of one takes the distances within all classes; where there is none, the limit is
    /// infinite. `None` where there is no such class. It costs `m^2` comparisons.
    pub fn limit(&self, label: u16, quantile: f32) -> Option<f32> {
        let labels = self.rows().labels;
        let alone = match labels.iter().filter(|&&other| other == label).count() {
            0 => return None,
            count => count == 1,
        };
        let all = || {
            let of = labels.iter().zip(&*self.within).filter(|&(&l, _)| alone || l == label);
            of.map(|(_, &within)| within).filter(|within| within.is_finite())
        };
        let count = all().count();
        if count == 0 {
            return Some(f32::INFINITY);
        }
        // NaN stays, and is the limit then.
        let quantile = if quantile > 1.0 { 1.0 } else { quantile };
        let needed = quantile * count as f32;
        let enough = |&w: &f32| all().filter(|&other| other <= w).count() as f32 >= needed;
        Some(all().filter(enough).fold(f32::NAN, f32::min))
    }

    /// The class of [`nearest`](Self::nearest), unless the embedding lies beyond that class's
    /// [`limit`](Self::limit): then it is none of these.
    pub fn classify(
        &self,
        embedding: &[f32],
        places: &mut [Nearest],
        quantile: f32,
    ) -> Option<Found> {
        self.nearest(embedding, places)
            .filter(|found| self.limit(found.label, quantile).is_some_and(|l| found.dist2 <= l))
    }
}

/// The class that the nearest rows vote for.
fn nearest(rows: Rows<'_>, embedding: &[f32], places: &mut [Nearest]) -> Option<Found> {
    let query = Rows { data: embedding, dim: embedding.len(), labels: &[0] };
    neighbour::top_k(query, rows, 0, None, places.len(), places);
    let label = neighbour::vote(places, rows.labels)?;
    let first =
        places.iter().find(|&&place| neighbour::label_of(place, rows.labels) == Some(label));
    first.map(|place| Found { label, dist2: place.dist2 })
}

fn fits(needed: usize, given: usize) -> Result<(), PrototypesError> {
    if given < needed { Err(PrototypesError::Memory { needed, given }) } else { Ok(()) }
}

/// Checks an embedding.
fn finite(dim: usize, embedding: &[f32]) -> Result<(), PrototypesError> {
    if embedding.len() != dim {
        return Err(PrototypesError::Dim { expected: dim, got: embedding.len() });
    }
    match embedding.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(PrototypesError::NotFinite { at }),
        None => Ok(()),
    }
}

fn row_mut(data: &mut [f32], dim: usize, at: usize) -> Option<&mut [f32]> {
    data.get_mut(at.checked_mul(dim)?..)?.get_mut(..dim)
}

/// Copies row `from` over row `to`, which comes before it or is it.
fn move_row<T: Copy>(data: &mut [T], width: usize, from: usize, to: usize) {
    let range = to.saturating_mul(width)..from.saturating_add(1).saturating_mul(width);
    let window = data.get_mut(range).unwrap_or_default();
    let last = window.len().saturating_sub(width);
    if let Some((front, row)) = window.split_at_mut_checked(last) {
        front.iter_mut().zip(row).for_each(|(to, from)| *to = *from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    struct Owned {
        data: Vec<f32>,
        labels: Vec<u16>,
        spreads: Vec<Spread>,
        within: Vec<f32>,
    }

    impl Owned {
        /// Memory in which what was not written shows.
        fn new(dim: usize, rows: usize) -> Self {
            let spread = Spread { count: 99, sum: f32::NAN, squares: f32::NAN };
            let (nan, within) = (vec![f32::NAN; rows * dim], vec![f32::NAN; rows]);
            Self { data: nan, labels: vec![0; rows], spreads: vec![spread; rows], within }
        }

        fn prototypes(&mut self, dim: usize) -> Prototypes<'_> {
            Prototypes::new(dim, &mut self.data, &mut self.labels, &mut self.spreads).unwrap()
        }

        fn exemplars(&mut self, dim: usize) -> Exemplars<'_> {
            Exemplars::new(dim, &mut self.data, &mut self.labels, &mut self.within).unwrap()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(Vec<f32>, u16),
        Remove(u16),
    }

    /// Embeddings on a small grid, so that ties and duplicates are common, of 6 classes.
    fn steps(dim: usize) -> impl Strategy<Value = Vec<Step>> {
        let row = prop::collection::vec((-2i8..=2).prop_map(f32::from), dim);
        let step = prop_oneof![
            12 => (row, 0u16..6).prop_map(|(row, label)| Step::Add(row, label)),
            1 => (0u16..6).prop_map(Step::Remove),
        ];
        prop::collection::vec(step, 0..40)
    }

    fn case() -> impl Strategy<Value = (usize, Vec<Step>, Vec<f32>)> {
        (0usize..4).prop_flat_map(|dim| {
            let query = prop::collection::vec((-9i8..=9).prop_map(|x| f32::from(x) / 4.0), dim);
            (Just(dim), steps(dim), query)
        })
    }

    fn square(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().copied().map(f64::from).collect()
    }

    fn mean(rows: &[Vec<f64>], dim: usize) -> Vec<f64> {
        (0..dim).map(|d| rows.iter().map(|x| x[d]).sum::<f64>() / rows.len() as f64).collect()
    }

    /// The e of a class's samples, by the definition.
    fn terms(rows: &[Vec<f64>], dim: usize) -> Vec<f64> {
        let term =
            |n: usize| square(&rows[n - 1], &mean(&rows[..n - 1], dim)) * (n - 1) as f64 / n as f64;
        (2..=rows.len()).map(term).collect()
    }

    proptest! {
        #[test]
        fn prototypes_are_the_definition(
            (dim, steps, query) in case(),
            deviations in 0.0f32..4.0,
        ) {
            const ROOM: usize = 4;
            let mut owned = Owned::new(dim, ROOM);
            let mut prototypes = owned.prototypes(dim);
            let mut model: Vec<(u16, Vec<Vec<f64>>)> = vec![];
            for step in steps {
                match step {
                    Step::Add(x, label) => {
                        let own = model.iter().position(|(other, _)| *other == label);
                        let expected = match own {
                            Some(at) => {
                                model[at].1.push(wide(&x));
                                Ok(model[at].1.len() as u32)
                            }
                            None if model.len() == ROOM => {
                                Err(PrototypesError::Full { capacity: ROOM })
                            }
                            None => {
                                model.push((label, vec![wide(&x)]));
                                Ok(1)
                            }
                        };
                        prop_assert_eq!(prototypes.add(&x, label), expected);
                    }
                    Step::Remove(label) => {
                        let own = model.iter().position(|(other, _)| *other == label);
                        let expected = own.map_or(0, |at| model.remove(at).1.len());
                        prop_assert_eq!(prototypes.remove(label) as usize, expected);
                    }
                }
            }
            let classes: Vec<_> = model.iter().map(|(l, rows)| (*l, rows.len() as u32)).collect();
            prop_assert_eq!(prototypes.classes().collect::<Vec<_>>(), classes);
            let all: Vec<f64> = model.iter().flat_map(|(_, rows)| terms(rows, dim)).collect();
            for ((row, label), (own, samples)) in prototypes.rows().iter().zip(&model) {
                prop_assert_eq!(label, *own);
                let mean = mean(samples, dim);
                prop_assert!(square(&wide(row), &mean) < 1e-10, "{:?} {:?}", row, mean);
                let e = terms(samples, dim);
                // Welford: the terms sum to the scatter about the mean.
                let scatter: f64 = samples.iter().map(|x| square(x, &mean)).sum();
                prop_assert!((e.iter().sum::<f64>() - scatter).abs() < 1e-9);

                let e = if e.len() < 2 { &all } else { &e };
                let limit = prototypes.limit(label, deviations).unwrap();
                if e.len() < 2 {
                    prop_assert_eq!(limit, f32::INFINITY);
                } else {
                    let centre = e.iter().sum::<f64>() / e.len() as f64;
                    let variance = e.iter().map(|e| (e - centre).powi(2)).sum::<f64>()
                        / (e.len() - 1) as f64;
                    let expected = (1.0 + 1.0 / samples.len() as f64)
                        * (centre + f64::from(deviations) * variance.sqrt());
                    // The difference of sums and its root lose half of the digits.
                    let close = (f64::from(limit) - expected).abs() < 0.02;
                    prop_assert!(close, "{} {}", limit, expected);
                }
            }
            // By the distances of the means that are there, as the search takes them.
            let mut best = None;
            for (row, label) in prototypes.rows().iter() {
                let dist2 = distance2(&query, row);
                if best.is_none_or(|found: Found| dist2 < found.dist2) {
                    best = Some(Found { label, dist2 });
                }
            }
            prop_assert_eq!(prototypes.nearest(&query), best);
            let near = best.filter(|b| b.dist2 <= prototypes.limit(b.label, deviations).unwrap());
            prop_assert_eq!(prototypes.classify(&query, deviations), near);

            // Stored and read back it is the same.
            let (data, labels) = (prototypes.rows().data.to_vec(), prototypes.rows().labels.to_vec());
            let (spreads, len) = (prototypes.spreads().to_vec(), labels.len());
            let limits: Vec<_> = labels.iter().map(|&l| prototypes.limit(l, 1.0)).collect();
            let mut kept = Owned { data, labels: labels.clone(), spreads, within: vec![] };
            let Owned { data, labels: memory, spreads, .. } = &mut kept;
            let resumed = Prototypes::resume(dim, data, memory, spreads, len).unwrap();
            prop_assert_eq!(resumed.nearest(&query), best);
            prop_assert_eq!(labels.iter().map(|&l| resumed.limit(l, 1.0)).collect::<Vec<_>>(), limits);
        }

        #[test]
        fn exemplars_are_the_definition(
            (dim, steps, query) in case(),
            k in 0usize..6,
            quantile in 0.0f32..1.1,
        ) {
            const ROOM: usize = 20;
            let mut owned = Owned::new(dim, ROOM);
            let mut exemplars = owned.exemplars(dim);
            let mut model: Vec<(Vec<f32>, u16)> = vec![];
            for step in steps {
                match step {
                    Step::Add(x, label) if model.len() == ROOM => {
                        let full = Err(PrototypesError::Full { capacity: ROOM });
                        prop_assert_eq!(exemplars.add(&x, label), full);
                    }
                    Step::Add(x, label) => {
                        prop_assert_eq!(exemplars.add(&x, label), Ok(()));
                        model.push((x, label));
                    }
                    Step::Remove(label) => {
                        let before = model.len();
                        model.retain(|&(_, other)| other != label);
                        prop_assert_eq!(exemplars.remove(label), before - model.len());
                    }
                }
            }
            let rows: Vec<_> = exemplars.rows().iter().map(|(x, label)| (x.to_vec(), label)).collect();
            prop_assert_eq!(&rows, &model);
            let of = |label| model.iter().filter(move |&&(_, other)| other == label).count();
            let mut classes: Vec<(u16, usize)> = vec![];
            for &(_, label) in &model {
                if classes.iter().all(|&(other, _)| other != label) {
                    classes.push((label, of(label)));
                }
            }
            prop_assert_eq!(exemplars.classes().collect::<Vec<_>>(), classes);

            // A stable sort keeps the lower index first.
            let mut near: Vec<_> = model.iter().map(|(x, l)| (distance2(&query, x), *l)).collect();
            near.sort_by(|a, b| a.0.total_cmp(&b.0));
            near.truncate(k);
            let votes = |label| near.iter().filter(|&&(_, other)| other == label).count();
            let mut winner: Option<Found> = None;
            for &(dist2, label) in &near {
                if winner.is_none_or(|found| votes(label) > votes(found.label)) {
                    winner = Some(Found { label, dist2 });
                }
            }
            let mut places = vec![Nearest { index: 0, dist2: -1.0 }; k];
            prop_assert_eq!(exemplars.nearest(&query, &mut places), winner);

            let within = |label: u16| {
                let least = |i: usize| {
                    let other = |&j: &usize| j != i && model[j].1 == label;
                    let others = (0..model.len()).filter(other);
                    others.map(|j| distance2(&model[i].0, &model[j].0)).min_by(f32::total_cmp)
                };
                let own = (0..model.len()).filter(|&i| model[i].1 == label).filter_map(least);
                own.collect::<Vec<f32>>()
            };
            for label in 0..7 {
                let mut w = within(label);
                if w.is_empty() {
                    w = (0..7).flat_map(&within).collect();
                }
                w.sort_by(f32::total_cmp);
                let rank = (quantile.min(1.0) * w.len() as f32).ceil().max(1.0) as usize;
                let expected = w.get(rank - 1).copied().unwrap_or(f32::INFINITY);
                let expected = (of(label) > 0).then_some(expected);
                prop_assert_eq!(exemplars.limit(label, quantile), expected, "{:?}", w);
                if let Some(found) = winner.filter(|found| found.label == label) {
                    let near = Some(found).filter(|f| f.dist2 <= expected.unwrap());
                    prop_assert_eq!(exemplars.classify(&query, &mut places, quantile), near);
                }
            }
        }
    }

    /// Of normal samples the limit without deviations is on average the squared distance of a new
    /// one, and few members lie beyond three deviations.
    #[test]
    fn the_limit_is_where_new_members_lie() {
        const D: usize = 4;
        for samples in [3, 5, 20] {
            let (mut learnt, mut met, mut refused) = (0.0, 0.0, 0);
            const TRIALS: u32 = 4000;
            for trial in 0..TRIALS {
                let mut rng = Rng::new(samples, Purpose::Sample, 0, trial);
                let mut draw = || [1.0, 1.0, 0.5, 2.0].map(|scale| scale * rng.normal());
                let mut owned = Owned::new(D, 1);
                let mut prototypes = owned.prototypes(D);
                for _ in 0..samples {
                    prototypes.add(&draw(), 1).unwrap();
                }
                let new = draw();
                learnt += f64::from(prototypes.limit(1, 0.0).unwrap());
                met += f64::from(prototypes.nearest(&new).unwrap().dist2);
                refused += u32::from(prototypes.classify(&new, 3.0).is_none());
            }
            assert!((learnt / met - 1.0).abs() < 0.05, "{samples}: {learnt} {met}");
            let share = f64::from(refused) / f64::from(TRIALS);
            let most = if samples < 20 { 0.25 } else { 0.05 };
            assert!((0.005..most).contains(&share), "{samples}: {share}");
        }
    }

    #[test]
    fn nan_never_wins_and_is_never_kept() {
        let mut owned = Owned::new(2, 3);
        let mut prototypes = owned.prototypes(2);
        assert_eq!(prototypes.nearest(&[0.0; 2]), None);
        prototypes.add(&[1.0, 0.0], 3).unwrap();
        prototypes.add(&[0.0, 1.0], 4).unwrap();
        for (x, at) in [([f32::NAN, 0.0], 0), ([0.0, f32::INFINITY], 1)] {
            for label in [3, 9] {
                assert_eq!(prototypes.add(&x, label), Err(PrototypesError::NotFinite { at }));
            }
        }
        assert_eq!(prototypes.nearest(&[f32::NAN, 0.0]), None);
        assert!(prototypes.classes().eq([(3, 1), (4, 1)]));
        assert_eq!(prototypes.add(&[3e38, 0.0], 3), Err(PrototypesError::Far { label: 3 }));
        assert_eq!(prototypes.rows().row(0), Some(&[1.0, 0.0][..]));
        // A tie goes to the class that came first, and no deviation is NaN.
        assert_eq!(prototypes.nearest(&[0.5, 0.5]).map(|found| found.label), Some(3));
        prototypes.add(&[1.0, 0.0], 3).unwrap();
        prototypes.add(&[1.0, 0.0], 3).unwrap();
        assert_eq!(prototypes.limit(3, 3.0), Some(0.0));
        assert_eq!(prototypes.classify(&[1.0, 0.0], 3.0).map(|found| found.label), Some(3));
        assert_eq!(prototypes.classify(&[1.0, 0.0], f32::NAN), None);
        assert_eq!(prototypes.limit(9, 3.0), None);

        let mut owned = Owned::new(1, 3);
        let mut exemplars = owned.exemplars(1);
        let places = &mut [Nearest::NONE; 2];
        assert_eq!(exemplars.nearest(&[0.0], places), None);
        assert_eq!(exemplars.add(&[f32::NAN], 3), Err(PrototypesError::NotFinite { at: 0 }));
        exemplars.add(&[0.0], 3).unwrap();
        // Alone it knows of no distance.
        assert_eq!(exemplars.limit(3, 1.0), Some(f32::INFINITY));
        exemplars.add(&[1.0], 4).unwrap();
        exemplars.add(&[0.25], 3).unwrap();
        assert_eq!(exemplars.limit(4, 1.0), Some(0.0625));
        assert_eq!(exemplars.nearest(&[f32::NAN], places), None);
        assert_eq!(exemplars.nearest(&[0.0], &mut []), None);
        assert_eq!(exemplars.classify(&[0.1], places, 1.0).map(|found| found.label), Some(3));
        assert_eq!(exemplars.classify(&[0.1], places, f32::NAN), None);
    }

    #[test]
    fn errors_name_the_numbers() {
        let mut owned = Owned::new(3, 2);
        let (data, labels) = (&mut owned.data, &mut owned.labels);
        let error = Prototypes::new(4, data, labels, &mut owned.spreads).unwrap_err();
        assert_eq!(error, PrototypesError::Memory { needed: 8, given: 6 });
        assert_eq!(error.to_string(), "memory of 6 elements, the rows need 8");
        let short = PrototypesError::Memory { needed: 2, given: 1 };
        let error = Prototypes::new(3, data, labels, &mut owned.spreads[..1]).unwrap_err();
        assert_eq!(error, short);
        assert_eq!(Exemplars::new(3, data, labels, &mut [0.0]).unwrap_err(), short);

        let mut prototypes = owned.prototypes(3);
        let dim = Err(PrototypesError::Dim { expected: 3, got: 2 });
        assert_eq!(prototypes.add(&[0.0; 2], 0), dim);
        prototypes.add(&[0.0; 3], 0).unwrap();
        prototypes.add(&[1.0; 3], 1).unwrap();
        assert_eq!(prototypes.nearest(&[0.0; 2]), None);
        let error = prototypes.add(&[1.0; 3], 2).unwrap_err();
        assert_eq!(error.to_string(), "all 2 rows are taken");
        assert_eq!(prototypes.add(&[1.0; 3], 1), Ok(2));

        let mut resume = |len| {
            let (data, labels) = (&mut owned.data, &mut owned.labels);
            Prototypes::resume(3, data, labels, &mut owned.spreads, len).map(drop)
        };
        assert_eq!((resume(0), resume(1), resume(2)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(resume(3), Err(PrototypesError::Memory { needed: 3, given: 2 }));
        for (labels, count, mean, error) in [
            ([5, 5], 1, 0.0, PrototypesError::Kept { at: 1 }),
            ([5, 6], 0, 0.0, PrototypesError::Kept { at: 1 }),
            ([5, 6], 1, f32::NAN, PrototypesError::NotFinite { at: 2 }),
        ] {
            owned.labels.copy_from_slice(&labels);
            (owned.spreads[1].count, owned.data[5]) = (count, mean);
            let (data, labels) = (&mut owned.data, &mut owned.labels);
            let resumed = Prototypes::resume(3, data, labels, &mut owned.spreads, 2);
            assert_eq!(resumed.map(drop), Err(error));
        }
    }
}
