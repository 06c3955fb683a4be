//! Objectives: neighbours and gradients within one batch, in planned scratch.

use rayon::prelude::*;
use sepal_core::arena::{Dtype, Slot, Word};
use sepal_core::backend::{Backend, ObjectivePlace};
use sepal_core::error::Error;
use sepal_core::loss::{self, Score};
use sepal_core::neighbour::Pair;
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;
use sepal_core::stage::{Loss, Objective};

use crate::blocks::{block, unblock};
use crate::search;
use crate::soft::{self, Kind};

/// Numbers of scratch over `features`; a smaller batch never takes more.
pub(crate) fn scratch(objective: &Objective, features: Shape) -> usize {
    let (m, dim) = (features.n as usize, features.sample().unwrap_or(0) as usize);
    match objective.loss() {
        Some(Loss::SoftNearest { .. }) => soft::scratch(Kind::Nearest, m, dim),
        Some(Loss::SoftCentre { .. }) => soft::scratch(Kind::Centre, m, dim),
        Some(_) => search::batch_numbers(m, dim),
        None => 0,
    }
}

/// Bytes of scratch of [`moved`].
pub(crate) fn moved_scratch(objective: &Objective, features: Slot) -> usize {
    let bytes = (features.shape.len().unwrap_or(0) as usize).saturating_mul(size_of::<f32>());
    let own = Word::round_up(objective.scratch(features.shape));
    Word::round_up(bytes).saturating_mul(2).saturating_add(own)
}

/// The reference's objective over features that lie in blocks of eight channels, for one that is not
/// of distances: on a copy in its own layout.
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
    let rest = gradient.at + Word::round_up(gradient.bytes());
    let scratch = Slot::new(rest, Shape::rows(1, objective.scratch(shape) as u32), Dtype::U8);
    let plain = ObjectivePlace { features, gradient, scratch, ..*at };
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
