//! Nearest neighbours by matrix products, exact.
//!
//! Distances come in tiles from `|a|^2 + |b|^2 - 2 a.b`, which is fast and, on features with a
//! mean far from 0, wrong. So:
//!
//! 1. both sides are shifted by a vector near the bank's mean, which changes no distance;
//! 2. each distance of a tile has an error bound, `E = g (|a|^2 + |b|^2)` with g from the rounding
//!    of sums as long as the rows;
//! 3. every row that could be among the nearest within its bound is measured anew by
//!    [`distance2`], and only those numbers are compared and kept.
//!
//! The result is that of the search by direct distances, ties and duplicates included. What is
//! not a number or infinite has no bound and is always measured. A tile measures about one row
//! for each neighbour sought, so the products are nearly all of the work.

use rayon::prelude::*;
use sepal_core::neighbour::{Nearest, Pair, Rows, distance2};

use crate::gemm::{Matrix, Sizes, gemm};
use crate::sum::sum_pairs;

/// Features that one product reads: longer rows are summed piece by piece.
const SLAB: usize = 512;

/// Rows of the bank that give the shift.
const SAMPLED: usize = 1024;

/// Columns of the shift that one task computes.
const COLUMNS: usize = 64;

/// Distances that are compared with a limit together.
const GROUP: usize = 8;

/// Added to every error bound: squares below it round away.
const TINY: f32 = f32::MIN_POSITIVE;

/// Rows of a tile: queries and bank.
#[derive(Clone, Copy)]
pub(crate) struct Tiling {
    pub(crate) queries: usize,
    pub(crate) bank: usize,
}

impl Tiling {
    /// Large tiles, for searches outside the arena.
    pub(crate) const HOST: Self = Self { queries: 256, bank: 256 };

    /// Rows of the bank in the widest tile.
    const WIDEST: usize = 256;

    /// Small ones, so that a batch gives work to several threads.
    pub(crate) const BATCH: Self = Self { queries: 64, bank: 256 };

    /// Numbers of scratch for one tile over rows of `dim` features.
    pub(crate) fn scratch(self, dim: usize) -> usize {
        (self.queries + self.bank) * dim.min(SLAB) + self.queries * self.bank
    }
}

/// A factor on the squared lengths that bounds the rounding of an expanded distance.
///
/// Sums run in pieces of at most 256 terms (products) or 128 (norms) that are then added up:
/// at most 256 + D / 256 roundings each, for a product and two norms, and as many again for the
/// shift and for the direct distance.
pub(crate) fn bound(dim: usize) -> f32 {
    (1024.0 + dim as f32 / 32.0) * (f32::EPSILON / 2.0)
}

/// Writes a vector near the mean of the rows; any would do, the better it is the fewer distances
/// are measured anew. What is not finite counts as 0.
pub(crate) fn shift(rows: Rows<'_, f32>, mean: &mut [f32]) {
    let step = (rows.len() / SAMPLED).max(1);
    let count = rows.len().div_ceil(step).max(1) as f32;
    mean.par_chunks_mut(COLUMNS).enumerate().for_each(|(task, mean)| {
        mean.fill(0.0);
        for at in (0..rows.len()).step_by(step) {
            let row = rows.row(at).and_then(|row| row.get(task * COLUMNS..)).unwrap_or_default();
            for (mean, &x) in mean.iter_mut().zip(row) {
                *mean += if x.is_finite() { x / count } else { 0.0 };
            }
        }
        mean.iter_mut().for_each(|mean| *mean = if mean.is_finite() { *mean } else { 0.0 });
    });
}

/// Writes the squared lengths of the shifted rows.
pub(crate) fn norms(rows: Rows<'_, f32>, mean: &[f32], norms: &mut [f32]) {
    norms.par_iter_mut().with_min_len(16).enumerate().for_each(|(at, norm)| {
        let row = rows.row(at).unwrap_or_default();
        *norm = sum_pairs(row, mean, |x, mean| (x - mean) * (x - mean));
    });
}

/// Rows with the squared lengths that they have after the shift.
#[derive(Clone, Copy)]
pub(crate) struct Measured<'a> {
    pub(crate) rows: Rows<'a, f32>,
    pub(crate) norms: &'a [f32],
}

/// A search: who asks, among whom, and the shift of both.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    pub(crate) queries: Measured<'a>,
    pub(crate) bank: Measured<'a>,
    pub(crate) mean: &'a [f32],
    /// The index of the bank's first row.
    pub(crate) first: u32,
    /// Query i never matches index `skip + i`.
    pub(crate) skip: Option<u32>,
    pub(crate) tiling: Tiling,
}

impl<'a> Search<'a> {
    /// Gives `each` the lines of `count` queries from `from` on: for each tile of the bank, in
    /// order, one line for each query. `scratch` has [`Tiling::scratch`] numbers; `count` is at
    /// most the tiling's queries.
    pub(crate) fn lines(
        &self,
        from: usize,
        count: usize,
        scratch: &mut [f32],
        mut each: impl FnMut(usize, &Line<'_>),
    ) {
        let (rows, dim) = (self.bank.rows, self.bank.rows.dim);
        let slab = dim.min(SLAB);
        let (left, rest) = scratch.split_at_mut(self.tiling.queries * slab);
        let (right, products) = rest.split_at_mut(self.tiling.bank * slab);
        // The last index means "none".
        let bank = rows.len().min((u32::MAX - self.first) as usize);
        let mut shifted = None;
        for at in (0..bank).step_by(self.tiling.bank) {
            let width = (bank - at).min(self.tiling.bank);
            products.fill(0.0);
            for column in (0..dim).step_by(SLAB) {
                let k = (dim - column).min(SLAB);
                // Short rows are shifted once for the whole bank.
                if shifted != Some(column) {
                    self.shifted(self.queries.rows, from, count, (column, k), left);
                    shifted = Some(column);
                }
                self.shifted(rows, at, width, (column, k), right);
                let sizes = Sizes { m: count, k, n: width };
                let (a, b) = (Matrix::rows(left, k), Matrix::transposed(right, k));
                gemm(sizes, 1.0, a, b, 1.0, products, width);
            }
            let bound = bound(dim);
            let part = |from: usize, to: usize| Bank {
                rows,
                labels: rows.labels.get(from..to).unwrap_or_default(),
                norms: self.bank.norms.get(from..to).unwrap_or_default(),
                at: from,
                first: self.first,
            };
            for (i, products) in products.chunks_exact(width).take(count).enumerate() {
                let row = from + i;
                let own = self.skip.and_then(|skip| skip.checked_add(u32::try_from(row).ok()?));
                let own = own.and_then(|own| own.checked_sub(self.first)).map(|own| own as usize);
                let own = own.filter(|own| (at..at + width).contains(own));
                let (before, after) = own.map_or((at + width, at + width), |own| (own, own + 1));
                let query = Query {
                    row: self.queries.rows.row(row).unwrap_or_default(),
                    label: self.queries.rows.labels.get(row).copied().unwrap_or_default(),
                    norm: self.queries.norms.get(row).copied().unwrap_or(f32::NAN),
                    bound,
                };
                for (from, to) in [(at, before), (after, at + width)] {
                    if from < to {
                        let products = products.get(from - at..to - at).unwrap_or_default();
                        each(i, &Line { query, bank: part(from, to), products });
                    }
                }
            }
        }
    }

    /// Copies columns of some rows, less the shift.
    fn shifted(
        &self,
        rows: Rows<'_, f32>,
        from: usize,
        count: usize,
        (column, k): (usize, usize),
        to: &mut [f32],
    ) {
        let mean = self.mean.get(column..column + k).unwrap_or_default();
        for (row, to) in (from..from + count).zip(to.chunks_exact_mut(k)) {
            let row = rows.row(row).and_then(|row| row.get(column..column + k));
            let row = row.unwrap_or_default().iter().zip(mean);
            to.iter_mut().zip(row).for_each(|(to, (x, mean))| *to = x - mean);
        }
    }
}

#[derive(Clone, Copy)]
struct Query<'a> {
    row: &'a [f32],
    label: u16,
    norm: f32,
    bound: f32,
}

/// Consecutive rows of the bank.
struct Bank<'a> {
    rows: Rows<'a, f32>,
    labels: &'a [u16],
    norms: &'a [f32],
    at: usize,
    first: u32,
}

/// One query against consecutive rows of the bank, the query itself not among them.
pub(crate) struct Line<'a> {
    query: Query<'a>,
    bank: Bank<'a>,
    products: &'a [f32],
}

/// A limit above which no row at `index` or later can come before `best`.
fn limit(best: Nearest, index: u32) -> f32 {
    // No distance is below 0, and of equal ones the lower index wins: sets with many duplicates
    // would otherwise be measured whole.
    if best.dist2 == 0.0 && best.index < index { f32::NEG_INFINITY } else { best.dist2 }
}

impl Line<'_> {
    /// The least and the greatest that a distance can be.
    #[inline]
    fn range(&self, norm: f32, product: f32) -> (f32, f32) {
        let sum = self.query.norm + norm;
        let (distance, error) = (sum - 2.0 * product, sum * self.query.bound + TINY);
        (distance - error, distance + error)
    }

    fn first(&self) -> u32 {
        self.bank.first.saturating_add(self.bank.at as u32)
    }

    /// Row `at` of the line, measured directly.
    fn measure(&self, at: usize) -> Nearest {
        let row = self.bank.rows.row(self.bank.at + at).unwrap_or_default();
        let index = self.first().saturating_add(at as u32);
        Nearest { index, dist2: distance2(self.query.row, row) }
    }

    /// Gives `each` the rows that may be no farther than the limit, in order; it returns the
    /// limit that holds from there on.
    fn candidates(&self, mut limit: f32, mut each: impl FnMut(usize, f32) -> f32) {
        // A distance to a row with NaN is NaN, which is never taken.
        if self.query.norm.is_nan() {
            return;
        }
        let (norms, rest_norms) = self.bank.norms.as_chunks::<GROUP>();
        let (products, rest) = self.products.as_chunks::<GROUP>();
        let mut consider = |at: usize, norm: f32, product: f32, limit: f32| {
            let (least, _) = self.range(norm, product);
            // Without a bound (infinity, overflow) the row is measured.
            if least > limit || norm.is_nan() { limit } else { each(at, least) }
        };
        for (group, (norms, products)) in norms.iter().zip(products).enumerate() {
            let pairs = norms.iter().zip(products);
            let far = pairs.clone().fold(true, |far, (&n, &p)| far & (self.range(n, p).0 > limit));
            if !far {
                for (at, (&norm, &product)) in pairs.enumerate() {
                    limit = consider(group * GROUP + at, norm, product, limit);
                }
            }
        }
        let done = norms.len() * GROUP;
        for (at, (&norm, &product)) in rest_norms.iter().zip(rest).enumerate() {
            limit = consider(done + at, norm, product, limit);
        }
    }

    /// The nearest of each kind after these rows were considered.
    pub(crate) fn pair(&self, mut pair: Pair) -> Pair {
        let label = self.query.label;
        // What the nearest of each kind cannot exceed.
        let mut limits = [limit(pair.same, self.first()), limit(pair.other, self.first())];
        let (mut same, mut other) = ([limits[0]; GROUP], [limits[1]; GROUP]);
        let rows = self.bank.labels.chunks(GROUP);
        let rows = rows.zip(self.bank.norms.chunks(GROUP).zip(self.products.chunks(GROUP)));
        for (labels, (norms, products)) in rows {
            let lanes = same.iter_mut().zip(&mut other);
            let rows = labels.iter().zip(norms.iter().zip(products));
            for ((same, other), (&own, (&norm, &product))) in lanes.zip(rows) {
                let (_, most) = self.range(norm, product);
                let (s, o) = if own == label { (most, *other) } else { (*same, most) };
                *same = if s < *same { s } else { *same };
                *other = if o < *other { o } else { *other };
            }
        }
        for (limit, lanes) in limits.iter_mut().zip([same, other]) {
            *limit = lanes.into_iter().fold(*limit, f32::min);
        }
        let [mut same, mut other] = limits;
        self.candidates(same.max(other), |at, least| {
            let is_same = self.bank.labels.get(at) == Some(&label);
            let (best, bound) =
                if is_same { (&mut pair.same, &mut same) } else { (&mut pair.other, &mut other) };
            let far = least > *bound;
            if !far {
                let candidate = self.measure(at);
                if candidate.precedes(*best) {
                    *best = candidate;
                    *bound = bound.min(limit(candidate, candidate.index + 1));
                }
            }
            same.max(other)
        });
        pair
    }

    /// The nearest of all after these rows were considered, ascending.
    pub(crate) fn places(&self, places: &mut [Nearest]) {
        let Some(last) = places.last() else { return };
        let mut bound = limit(*last, self.first());
        // The k-th least of what the distances cannot exceed.
        let (mut most, mut count) = ([f32::INFINITY; Tiling::WIDEST], 0);
        for (&norm, &product) in self.bank.norms.iter().zip(self.products) {
            let (_, high) = self.range(norm, product);
            if high < bound
                && let Some(place) = most.get_mut(count)
            {
                *place = high;
                count += 1;
            }
        }
        if let Some(most) = most.get_mut(..count)
            && places.len() <= count
        {
            let (_, kth, _) = most.select_nth_unstable_by(places.len() - 1, f32::total_cmp);
            bound = bound.min(*kth);
        }
        self.candidates(bound, |at, _| {
            let candidate = self.measure(at);
            if insert(places, candidate)
                && let Some(last) = places.last()
            {
                bound = bound.min(limit(*last, candidate.index + 1));
            }
            bound
        });
    }
}

/// Puts a candidate at its place, if it has one; what follows moves down.
fn insert(places: &mut [Nearest], candidate: Nearest) -> bool {
    let at = places.partition_point(|place| !candidate.precedes(*place));
    let Some(tail) = places.get_mut(at..).filter(|tail| !tail.is_empty()) else { return false };
    tail.rotate_right(1);
    if let Some(place) = tail.first_mut() {
        *place = candidate;
    }
    true
}

/// What the rows of one search have in common, outside any arena.
struct Prepared {
    mean: Vec<f32>,
    queries: Vec<f32>,
    bank: Vec<f32>,
}

impl Prepared {
    fn new(queries: Rows<'_, f32>, bank: Rows<'_, f32>) -> Self {
        let mut mean = vec![0.0; bank.dim];
        shift(bank, &mut mean);
        let (mut own, mut others) = (vec![0.0; queries.len()], vec![0.0; bank.len()]);
        norms(queries, &mean, &mut own);
        norms(bank, &mean, &mut others);
        Self { mean, queries: own, bank: others }
    }

    fn search<'a>(
        &'a self,
        queries: Rows<'a, f32>,
        bank: Rows<'a, f32>,
        first: u32,
        skip: Option<u32>,
    ) -> Search<'a> {
        Search {
            queries: Measured { rows: queries, norms: &self.queries },
            bank: Measured { rows: bank, norms: &self.bank },
            mean: &self.mean,
            first,
            skip,
            tiling: Tiling::HOST,
        }
    }
}

/// As [`neighbour::nearest_pair`](sepal_core::neighbour::nearest_pair), in parallel.
///
/// Allocates about 1.4 MB for each thread, one number for each row and one for each feature.
pub(crate) fn nearest(
    queries: Rows<'_, f32>,
    bank: Rows<'_, f32>,
    first: u32,
    skip: Option<u32>,
    pairs: &mut [Pair],
) {
    if queries.dim != bank.dim {
        return;
    }
    let count = queries.len().min(pairs.len());
    let prepared = Prepared::new(queries, bank);
    let search = prepared.search(queries, bank, first, skip);
    let tile = search.tiling.queries;
    let pairs = pairs.get_mut(..count).unwrap_or_default();
    pairs.par_chunks_mut(tile).enumerate().for_each_init(
        || vec![0.0; search.tiling.scratch(bank.dim)],
        |scratch, (task, pairs)| {
            search.lines(task * tile, pairs.len(), scratch, |i, line| {
                if let Some(pair) = pairs.get_mut(i) {
                    *pair = line.pair(*pair);
                }
            });
        },
    );
}

/// As [`neighbour::top_k`](sepal_core::neighbour::top_k), in parallel; allocates as [`nearest`].
pub(crate) fn top_k(
    queries: Rows<'_, f32>,
    bank: Rows<'_, f32>,
    first: u32,
    skip: Option<u32>,
    k: usize,
    out: &mut [Nearest],
) {
    if queries.dim != bank.dim || k == 0 {
        return;
    }
    let count = queries.len().min(out.len() / k);
    let prepared = Prepared::new(queries, bank);
    let search = prepared.search(queries, bank, first, skip);
    let tile = search.tiling.queries;
    let out = out.get_mut(..count * k).unwrap_or_default();
    out.par_chunks_mut(tile * k).enumerate().for_each_init(
        || vec![0.0; search.tiling.scratch(bank.dim)],
        |scratch, (task, out)| {
            search.lines(task * tile, out.len() / k, scratch, |i, line| {
                line.places(out.get_mut(i * k..(i + 1) * k).unwrap_or_default());
            });
        },
    );
}
