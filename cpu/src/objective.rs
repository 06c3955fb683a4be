//! Objectives: neighbours and gradients within one batch, in planned scratch.

use rayon::prelude::*;
use sepal_core::arena::{Dtype, Slot, Word};
use sepal_core::backend::{Backend, ObjectivePlace};
use sepal_core::error::Error;
use sepal_core::loss::{self, Score};
use sepal_core::neighbour::{Pair, Rows, distance2};
use sepal_core::real::Real;
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;
use sepal_core::stage::{Loss, Objective};

use crate::blocks::{block, unblock};
use crate::gemm::{Matrix, Sizes, parallel};
use crate::search::{self, shift};
use crate::sum::{sum, sum_pairs};

/// Chunks of anchors, each with scratch of its own.
const LANES: usize = 16;

/// Rows of the gradient that one task computes at least.
const ROWS: usize = 32;

/// Numbers of scratch over `features`; a smaller batch never takes more.
pub(crate) fn scratch(objective: &Objective, features: Shape) -> usize {
    let (m, dim) = (features.n as usize, features.sample().unwrap_or(0) as usize);
    match objective {
        Objective::Separation(Loss::SoftNearest { .. }) => {
            // Mean, norms, terms, whether the nearest is of the label, rows of exponentials,
            // shifted features, weights.
            let rows = m.saturating_mul(3 + LANES.min(m));
            dim.saturating_add(rows)
                .saturating_add(m.saturating_mul(dim))
                .saturating_add(m.saturating_mul(m))
        }
        Objective::Separation(_) => search::batch_numbers(m, dim),
        _ => 0,
    }
}

/// Bytes of scratch of [`moved`].
pub(crate) fn moved_scratch(features: Slot) -> usize {
    let bytes = (features.shape.len().unwrap_or(0) as usize).saturating_mul(size_of::<f32>());
    Word::round_up(bytes).saturating_mul(2)
}

/// The reference's objective over logits that lie in blocks of eight channels: on a copy in its
/// own layout.
pub(crate) fn moved(
    reference: &mut Reference<'_>,
    objective: &Objective,
    at: &ObjectivePlace,
) -> Result<Score, Error> {
    let shape = at.features.shape;
    let features = Slot::new(at.scratch.at, shape, Dtype::F32);
    let gradient = Slot { at: at.scratch.at + Word::round_up(features.bytes()), ..features };
    let [from, to] = reference.arena().lease([at.features, features])?;
    unblock(shape, from.get()?, to.get()?);
    let plain = ObjectivePlace { features, gradient, scratch: Slot::EMPTY, ..*at };
    let score = reference.objective(objective, &plain)?;
    let [from, to] = reference.arena().lease([gradient, at.gradient])?;
    block(shape, from.get()?, to.get()?);
    Ok(score)
}

/// [`loss::margin`], or [`loss::triplet`] where `margin` is `None`, over pairs of this batch
/// whose distances are direct.
///
/// The gradient is gathered: each row adds up what its own anchor and the anchors that it
/// partners give it, in the order of the anchors, so that rows are independent of each other.
pub(crate) fn graph(
    features: &[f32],
    dim: usize,
    pairs: &[Pair],
    margin: Option<f32>,
    gradient: &mut [f32],
) -> Score {
    let mut score = Score::<f32>::default();
    // Whether an anchor gives a gradient depends on the terms before it, where a sum overflows.
    let term = |pair: &Pair| pair.same.dist2 - pair.other.dist2 + margin.unwrap_or(0.0);
    let flat = |term: f32| margin.is_some() && term.is_finite() && term <= 0.0;
    let mut overflows = false;
    for pair in pairs {
        score.correct += u32::from(pair.correct() == Some(true));
        let term = pair.complete().then(|| term(pair));
        let term = if term.is_some_and(flat) { Some(0.0) } else { term };
        match term.map(|term| score.value + term).filter(|sum: &f32| sum.is_finite()) {
            Some(sum) => {
                score.value = sum;
                score.anchors += 1;
            }
            None => {
                overflows |= pair.complete();
                score.skipped += 1;
            }
        }
    }
    if overflows || dim == 0 {
        // Rare, and its order matters: the reference's own loop.
        return match margin {
            Some(margin) => loss::margin(features, dim, pairs, margin, Some(gradient)),
            None => loss::triplet(features, dim, pairs, Some(gradient)),
        };
    }
    let count = if margin.is_some() { score.anchors.max(1) as f32 } else { 1.0 };
    score.value /= count;
    let row = |i: usize| features.get(i * dim..(i + 1) * dim).unwrap_or_default();
    gradient.par_chunks_mut(dim).enumerate().for_each(|(i, gradient)| {
        gradient.fill(0.0);
        let own = row(i);
        let mut pull = |j: usize, weight: f32| {
            let rows = own.iter().zip(row(j));
            gradient.iter_mut().zip(rows).for_each(|(g, (a, b))| *g += weight * (a - b));
        };
        for (anchor, pair) in pairs.iter().enumerate() {
            let (same, other) = (pair.same.index as usize, pair.other.index as usize);
            if (anchor != i && same != i && other != i) || !pair.complete() || flat(term(pair)) {
                continue;
            }
            if anchor == i {
                pull(same, 2.0);
                pull(other, -2.0);
            } else if same == i {
                pull(anchor, 2.0);
            } else {
                pull(anchor, -2.0);
            }
        }
        if margin.is_some() {
            gradient.iter_mut().for_each(|g| *g /= count);
        }
    });
    score
}

/// A factor on the squared lengths that bounds the rounding of an expanded distance.
///
/// Sums run in pieces of at most 256 terms (products) or 128 (norms) that are then added up:
/// at most 256 + D / 256 roundings each, for a product and two norms, and as many again for the
/// shift and for the direct distance.
fn bound(dim: usize) -> f32 {
    (1024.0 + dim as f32 / 32.0) * (f32::EPSILON / 2.0)
}

/// Writes the squared lengths of the shifted rows.
fn squared_lengths(rows: Rows<'_, f32>, mean: &[f32], norms: &mut [f32]) {
    norms.par_iter_mut().with_min_len(16).enumerate().for_each(|(at, norm)| {
        let row = rows.row(at).unwrap_or_default();
        *norm = sum_pairs(row, mean, |x, mean| (x - mean) * (x - mean));
    });
}

/// Scratch of [`soft_nearest`].
struct Soft<'a> {
    mean: &'a mut [f32],
    norms: &'a mut [f32],
    /// Each anchor's term; NaN where it is skipped.
    terms: &'a mut [f32],
    /// 1 where the nearest of all has the anchor's label.
    same: &'a mut [f32],
    lanes: &'a mut [f32],
    /// The features, less their mean.
    shifted: &'a mut [f32],
    /// Products, then distances, then W, then S = W + W'.
    weights: &'a mut [f32],
}

impl<'a> Soft<'a> {
    fn new(scratch: &'a mut [f32], m: usize, dim: usize) -> Option<Self> {
        let (mean, rest) = scratch.split_at_mut_checked(dim)?;
        let (norms, rest) = rest.split_at_mut_checked(m)?;
        let (terms, rest) = rest.split_at_mut_checked(m)?;
        let (same, rest) = rest.split_at_mut_checked(m)?;
        let (lanes, rest) = rest.split_at_mut_checked(m * LANES.min(m))?;
        let (shifted, rest) = rest.split_at_mut_checked(m * dim)?;
        let weights = rest.get_mut(..m * m)?;
        Some(Self { mean, norms, terms, same, lanes, shifted, weights })
    }
}

/// [`loss::soft_nearest`] by matrix products: distances as in the search, with those that
/// matter and could be wrong measured anew, and `dF = 2 (diag(S 1) F - S F)` as one product over
/// the shifted features, which changes nothing because the rows of `diag(S 1) - S` sum to 0.
pub(crate) fn soft_nearest(
    rows: Rows<'_, f32>,
    temperature: f32,
    scratch: &mut [f32],
    gradient: &mut [f32],
) -> Score {
    let Rows { data, dim, labels } = rows;
    let m = labels.len();
    let usable = (1.0 / HUGE..HUGE).contains(&temperature) && m > 0 && dim > 0;
    if !usable || rows.len() != m {
        let row = scratch.get_mut(..m).unwrap_or_default();
        return loss::soft_nearest(data, dim, labels, temperature, row, Some(gradient));
    }
    let Some(soft) = Soft::new(scratch, m, dim) else { return Score::default() };
    let Soft { mean, norms, terms, same, lanes, shifted, weights } = soft;
    shift(rows, mean);
    squared_lengths(rows, mean, norms);
    if !norms.iter().all(|norm| *norm < HUGE) {
        // Products of these would not be finite where the distances are.
        return loss::soft_nearest(data, dim, labels, temperature, terms, Some(gradient));
    }
    let mean = &*mean;
    shifted.par_chunks_mut(dim).zip(data.par_chunks(dim)).for_each(|(to, from)| {
        to.iter_mut().zip(from.iter().zip(mean)).for_each(|(to, (x, mean))| *to = x - mean);
    });
    let (shifted, norms) = (&*shifted, &*norms);
    let all = Matrix::transposed(shifted, dim);
    let sizes = Sizes { m, k: dim, n: m };
    parallel(sizes, 1.0, Matrix::rows(shifted, dim), all, 0.0, weights, m);
    let per = m.div_ceil(LANES);
    let chunks = weights.par_chunks_mut(per * m).zip(lanes.par_chunks_mut(m));
    let chunks = chunks.zip(terms.par_chunks_mut(per).zip(same.par_chunks_mut(per)));
    chunks.enumerate().for_each(|(chunk, ((weights, lane), (terms, same)))| {
        let first = chunk * per;
        let anchors = weights.chunks_exact_mut(m).zip(terms.iter_mut().zip(same));
        for (i, (row, (term, same))) in (first..).zip(anchors) {
            let anchor = Anchor { rows, norms, at: i, temperature };
            (*term, *same) = anchor.weigh(row, lane);
        }
    });

    let mut score = Score::<f32>::default();
    for ((term, same), weights) in terms.iter().zip(&*same).zip(weights.chunks_exact_mut(m)) {
        score.correct += u32::from(*same == 1.0);
        let sum: f32 = score.value + term;
        if sum.is_finite() {
            score.value = sum;
            score.anchors += 1;
        } else {
            score.skipped += 1;
            weights.fill(0.0);
        }
    }
    let anchors = score.anchors.max(1) as f32;
    score.value /= anchors;
    symmetrise(weights, m);
    let (weights, scale) = (&*weights, 2.0 / temperature / anchors);
    let (s, all) = (Matrix::rows(weights, m), Matrix::rows(shifted, dim));
    parallel(Sizes { m, k: m, n: dim }, -scale, s, all, 0.0, gradient, dim);
    let rows = gradient.par_chunks_mut(dim).zip(shifted.par_chunks(dim));
    rows.zip(weights.par_chunks(m)).with_min_len(ROWS).for_each(|((gradient, x), s)| {
        let degree = scale * sum(s, |s| s);
        gradient.iter_mut().zip(x).for_each(|(g, x)| *g += degree * x);
    });
    score
}

/// Squared lengths, temperatures and their inverses from which on products could overflow.
const HUGE: f32 = 1e30;

/// A neighbour farther than the nearest by this many temperatures has no weight: e^-32 is 1e-14.
const NEGLIGIBLE: f32 = 32.0;

/// The share of the temperature that the error bound of a distance that matters may be. The bound
/// is of the worst case; the error itself is about a thirtieth of it.
const SHARE: f32 = 1.0 / 64.0;

struct Anchor<'a> {
    rows: Rows<'a, f32>,
    norms: &'a [f32],
    at: usize,
    temperature: f32,
}

impl Anchor<'_> {
    /// Turns a row of products into a row of W, without its factor 1 / (T m'). Gives the term,
    /// NaN for a skipped anchor, and 1 where the nearest of all has the anchor's label.
    fn weigh(&self, row: &mut [f32], exponentials: &mut [f32]) -> (f32, f32) {
        let (labels, t) = (self.rows.labels, self.temperature);
        let label = labels.get(self.at).copied().unwrap_or_default();
        let (near_all, near_same, near_other, is_same) = self.distances(label, row);
        let is_same = if is_same { 1.0 } else { 0.0 };
        if !(near_same.is_finite() && near_other.is_finite()) {
            row.fill(0.0);
            return (f32::NAN, is_same);
        }
        let (mut all, mut same) = (0.0, 0.0);
        for ((d, e), &other) in row.iter_mut().zip(&mut *exponentials).zip(labels) {
            *e = if d.is_finite() { Real::exp((near_all - *d) / t) } else { 0.0 };
            all += *e;
            let is_positive = other == label && d.is_finite();
            *d = if is_positive { Real::exp((near_same - *d) / t) } else { 0.0 };
            same += *d;
        }
        for (w, e) in row.iter_mut().zip(exponentials) {
            *w = *w / same - *e / all;
        }
        (Real::ln(all) - Real::ln(same) + (near_same - near_all) / t, is_same)
    }

    /// Turns products into distances, infinite for the anchor itself. Gives the least of all, of
    /// the same label and of others, and whether the first of the least has the label.
    fn distances(&self, label: u16, row: &mut [f32]) -> (f32, f32, f32, bool) {
        let (labels, bound) = (self.rows.labels, bound(self.rows.dim));
        let norm = self.norms.get(self.at).copied().unwrap_or(f32::NAN);
        let (mut most_same, mut most_other) = (f32::INFINITY, f32::INFINITY);
        let own = self.at;
        for (j, ((d, other_norm), other)) in row.iter_mut().zip(self.norms).zip(labels).enumerate()
        {
            let sum = norm + other_norm;
            *d = if j == own { f32::INFINITY } else { sum - 2.0 * *d };
            let most = if *other == label { &mut most_same } else { &mut most_other };
            *most = most.min(*d + sum * bound);
        }
        let most = most_same.min(most_other);
        let anchor = self.rows.row(own).unwrap_or_default();
        let mut near = (f32::INFINITY, f32::INFINITY, f32::INFINITY, false);
        for (j, ((d, other_norm), other)) in row.iter_mut().zip(self.norms).zip(labels).enumerate()
        {
            if j == own {
                continue;
            }
            let error = (norm + other_norm) * bound;
            let nearest = if *other == label { most_same } else { most };
            let matters = *d - error <= nearest + NEGLIGIBLE * self.temperature;
            if (matters && error > SHARE * self.temperature) || *d - error <= most {
                *d = distance2(anchor, self.rows.row(j).unwrap_or_default());
            }
            let is_same = *other == label;
            if *d < near.0 {
                (near.0, near.3) = (*d, is_same);
            }
            let kind = if is_same { &mut near.1 } else { &mut near.2 };
            *kind = kind.min(*d);
        }
        near
    }
}

/// W + W', in place.
fn symmetrise(w: &mut [f32], m: usize) {
    for i in 0..m {
        let (upper, lower) = w.split_at_mut((i + 1) * m);
        let row = upper.get_mut(i * m + i..).unwrap_or_default();
        let Some((diagonal, row)) = row.split_first_mut() else { return };
        *diagonal += *diagonal;
        for (right, below) in row.iter_mut().zip(lower.chunks_exact_mut(m)) {
            if let Some(below) = below.get_mut(i) {
                *right += *below;
                *below = *right;
            }
        }
    }
}
