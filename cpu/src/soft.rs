//! The soft losses over a batch, by products of all pairs of rows.
//!
//! 1. All products of two shifted rows, of which each is made once: in tasks of two blocks of rows
//!    and a range of features, which pack what they read, less the shift, and add up their part.
//! 2. Each anchor's distances from its products, and its weights from these ([`Anchor`]). What
//!    could be wrong and matters is measured anew; to centres every distance matters.
//! 3. `dF = 2 (diag(S 1) F - S F)` as sums of rows by weight. The rows of `diag(S 1) - S` sum to
//!    0, so that F may be shifted. A sum is exact to some digits of its largest term: of clusters
//!    that lie farther apart than they are wide, by some factor, the gradient is off by that factor.
//!
//! F is read twice, and nothing of its size is written but the gradient.

use rayon::prelude::*;
use sepal_core::loss::{self, Score};
use sepal_core::neighbour::{Rows, distance2};
use sepal_core::real::Real;

use crate::arch::Instructions;
use crate::arch::direct::Field;
use crate::arch::distance::Pack;
use crate::arch::products::{Columns, Mix, PANEL, Products, STRIP};
use crate::search::{Cut, line, shift};
use crate::sum::sum;

/// Rows of a block.
const SIDE: usize = 128;

/// Features that products are summed over before the sum is added to others.
const DEPTH: usize = 256;

/// Tasks with scratch of their own at most.
const LANES: usize = 16;

/// Parts that the features of one pair of blocks are cut into at most.
const PARTS: usize = 8;

/// Passes of [`DEPTH`] features that make a part worth its task.
const PASSES: usize = 4;

/// Anchors of a task.
const ANCHORS: usize = 8;

/// How the work is cut: by the shape of the features alone.
#[derive(Clone, Copy)]
struct Split {
    m: usize,
    dim: usize,
    /// Rows of a block, a multiple of [`PANEL`].
    side: usize,
    blocks: usize,
    /// Pairs of blocks, each once.
    pairs: usize,
    /// Sums of products that are kept: for each pair those of each part.
    sums: usize,
    /// Features of a part.
    part: usize,
}

impl Split {
    fn new(m: usize, dim: usize) -> Self {
        let side = m.min(SIDE).next_multiple_of(PANEL);
        let blocks = m.div_ceil(SIDE).max(1);
        let pairs = blocks.saturating_mul(blocks + 1) / 2;
        let parts = dim.div_ceil(DEPTH * PASSES).clamp(1, PARTS);
        // A smaller batch never has more sums.
        let sums = pairs.max(parts);
        let part = dim.div_ceil((parts / pairs).max(1)).next_multiple_of(DEPTH);
        Self { m, dim, side, blocks, pairs, sums, part }
    }

    /// Parts of each pair.
    fn parts(&self) -> usize {
        self.dim.div_ceil(self.part).max(1)
    }

    /// Numbers of a sum.
    const fn square(&self) -> usize {
        self.side * self.side
    }

    /// Numbers of a packed block.
    fn packed(&self) -> usize {
        self.side * self.dim.min(DEPTH)
    }

    /// Numbers that a task packs into: two blocks, or one where there is one, and in the end some
    /// columns of all rows.
    fn lane(&self) -> usize {
        line(self.packed() * self.blocks.min(2)).max(line(self.m * STRIP))
    }

    /// Blocks of pair `at`, the first not after the second.
    fn pair(&self, mut at: usize) -> (usize, usize) {
        let mut second = 0;
        while at > second {
            second += 1;
            at -= second;
        }
        (at, second)
    }

    /// The number of a pair.
    const fn number(first: usize, second: usize) -> usize {
        second * (second + 1) / 2 + first
    }

    /// Rows of a block.
    fn rows<'a>(&self, data: &'a [f32], block: usize) -> &'a [f32] {
        let place = |row: usize| row.min(self.m) * self.dim;
        data.get(place(block * self.side)..place((block + 1) * self.side)).unwrap_or_default()
    }

    /// Numbers of scratch: the shift, the weights, norms, terms, whether the nearest is of the
    /// label, exponentials of each task, sums, packed rows of each task. `None` past the address
    /// space.
    fn numbers(&self) -> Option<usize> {
        let lines = |count: usize| count.checked_next_multiple_of(line(1));
        let weights = lines(self.m.checked_mul(self.m)?)?;
        let anchors = 3 * lines(self.m)? + lines(self.m.div_ceil(ANCHORS).checked_mul(self.m)?)?;
        let sums = self.sums.checked_mul(self.square())?;
        // The first line may begin later.
        let rest = line(1) + lines(self.dim)? + LANES * self.lane();
        weights.checked_add(anchors)?.checked_add(sums)?.checked_add(rest)
    }
}

/// Numbers of scratch of [`gradient`]; a smaller batch never takes more.
pub(crate) fn scratch(kind: Kind, m: usize, dim: usize) -> usize {
    let own = match kind {
        Kind::Nearest => Some(0),
        // Distances stay while weights are made of them.
        Kind::Centre => {
            m.checked_mul(m).and_then(|d| d.checked_add(line(loss::CENTRE_SCRATCH * m) + line(1)))
        }
    };
    let numbers = Split::new(m, dim).numbers();
    numbers.zip(own).and_then(|(a, b)| a.checked_add(b)).unwrap_or(usize::MAX)
}

/// What is likely where it is near.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Each other sample: [`loss::soft_nearest`].
    Nearest,
    /// Each label's mean: [`loss::soft_centre`].
    Centre,
}

/// Squared lengths, temperatures and their inverses from which on products could overflow.
const HUGE: f32 = 1e30;

/// A loss of softly chosen neighbours or centres, with its gradient.
pub(crate) fn gradient(
    kind: Kind,
    with: Instructions,
    rows: Rows<'_, f32>,
    temperature: f32,
    scratch: &mut [f32],
    gradient: &mut [f32],
) -> Score {
    let Rows { data, dim, labels } = rows;
    let m = labels.len();
    let usable = (1.0 / HUGE..HUGE).contains(&temperature) && m > 0 && dim > 0;
    let split = Split::new(m, dim);
    if !usable || rows.len() != m || scratch.len() < self::scratch(kind, m, dim) {
        return kind.reference(rows, temperature, scratch, gradient);
    }
    let mut memory = Cut::new(scratch);
    let (mean, weights) = (memory.take(dim), memory.take(m * m));
    let [norms, terms, same] = [(); 3].map(|()| memory.take(m));
    let exponentials = memory.take(m.div_ceil(ANCHORS) * m);
    let sums = memory.take(split.sums * split.square());
    let lanes = memory.take(LANES * split.lane());

    shift(rows, mean);
    let mean = &*mean;
    let products = split.multiply(with, data, mean, sums, lanes);
    for (at, norm) in norms.iter_mut().enumerate() {
        let (block, row) = (at / split.side, at % split.side);
        let sum = Split::number(block, block) * split.parts() * split.square();
        *norm = products.get(sum + row * split.side + row).copied().unwrap_or(f32::NAN);
    }
    // Sums by weight reach this before they cancel.
    let reach = |norm: f32| norm.sqrt() * (m as f32 / temperature);
    if !norms.iter().all(|norm| *norm < HUGE && reach(*norm) < HUGE) {
        // Products of these would not be finite where the distances are.
        return kind.reference(rows, temperature, scratch, gradient);
    }
    let norms = &*norms;
    let anchor = |at: usize| Anchor { rows, norms, at, temperature, kind };
    let score = match kind {
        Kind::Nearest => {
            let anchors = terms.par_chunks_mut(ANCHORS).zip(same.par_chunks_mut(ANCHORS));
            let rows_of = weights.par_chunks_mut(ANCHORS * m).zip(exponentials.par_chunks_mut(m));
            rows_of.zip(anchors).enumerate().for_each(
                |(task, ((weights, lane), (terms, same)))| {
                    let each = weights.chunks_exact_mut(m).zip(terms.iter_mut().zip(same));
                    for (at, (row, (term, same))) in (task * ANCHORS..).zip(each) {
                        split.gather(products, at, row);
                        (*term, *same) = anchor(at).weigh(row, lane);
                    }
                },
            );
            tally(weights, terms, same)
        }
        Kind::Centre => {
            let (apart, of_labels) = (memory.take(m * m), memory.take(loss::CENTRE_SCRATCH * m));
            apart.par_chunks_mut(ANCHORS * m).enumerate().for_each(|(task, rows_of)| {
                for (at, row) in (task * ANCHORS..).zip(rows_of.chunks_exact_mut(m)) {
                    split.gather(products, at, row);
                    let label = labels.get(at).copied().unwrap_or_default();
                    anchor(at).distances(label, row);
                }
            });
            weights.fill(0.0);
            let distance = |i, j| apart.get(i * m + j).copied().unwrap_or(f32::NAN);
            loss::soft_centre_weights(labels, temperature, of_labels, distance, |i, j, weight| {
                weights.iter_mut().skip(i * m + j).take(1).for_each(|w| *w += weight);
            })
        }
    };
    laplacian(weights, m, 2.0 / temperature / score.anchors.max(1) as f32);
    let tasks = dim.div_ceil(split.range());
    let out = Field::new(gradient, m, 1, dim);
    split.mix(0..tasks, &Sums { with, rows: data, mean, weights }, out, lanes);
    score
}

impl Kind {
    /// The loss by definition, in the first numbers of `scratch`.
    fn reference(
        self,
        Rows { data, dim, labels }: Rows<'_, f32>,
        temperature: f32,
        scratch: &mut [f32],
        gradient: &mut [f32],
    ) -> Score {
        let loss = match self {
            Self::Nearest => loss::soft_nearest,
            Self::Centre => loss::soft_centre,
        };
        loss(data, dim, labels, temperature, scratch, Some(gradient))
    }
}

/// Adds up the terms as long as the sum is finite; who is left out has no weights.
fn tally(weights: &mut [f32], terms: &[f32], same: &[f32]) -> Score {
    let mut score = Score::<f32>::default();
    for ((term, same), weights) in terms.iter().zip(same).zip(weights.chunks_exact_mut(terms.len()))
    {
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
    score.value /= score.anchors.max(1) as f32;
    score
}

/// What the gradient is made of.
struct Sums<'a> {
    with: Instructions,
    rows: &'a [f32],
    mean: &'a [f32],
    weights: &'a [f32],
}

impl Split {
    /// The products of all pairs of blocks, those of each pair first of its parts.
    fn multiply<'s>(
        &self,
        with: Instructions,
        data: &[f32],
        mean: &[f32],
        sums: &'s mut [f32],
        lanes: &mut [f32],
    ) -> &'s [f32] {
        let (square, parts) = (self.square(), self.parts());
        let sums = sums.get_mut(..self.pairs * parts * square).unwrap_or_default();
        let per = (self.pairs * parts).div_ceil(LANES);
        let tasks = sums.par_chunks_mut(per * square).zip(lanes.par_chunks_mut(self.lane()));
        tasks.enumerate().for_each(|(task, (sums, lane))| {
            for (at, sum) in (task * per..).zip(sums.chunks_exact_mut(square)) {
                self.part(with, (data, mean), (at / parts, at % parts), sum, lane);
            }
        });
        sums.par_chunks_mut(parts * square).for_each(|pair| {
            let (first, rest) = pair.split_at_mut(square);
            for part in rest.chunks_exact(square) {
                first.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        });
        sums
    }

    /// The products of a pair of blocks over a part of the features.
    fn part(
        &self,
        with: Instructions,
        (data, mean): (&[f32], &[f32]),
        (pair, part): (usize, usize),
        sum: &mut [f32],
        lane: &mut [f32],
    ) {
        sum.fill(0.0);
        let (first, second) = self.pair(pair);
        let past = ((part + 1) * self.part).min(self.dim);
        for from in (part * self.part..past).step_by(DEPTH) {
            let depth = DEPTH.min(past - from);
            let (a, b) = lane.split_at_mut(self.side * depth);
            self.pack(with, (data, mean), first, from, a);
            let symmetric = first == second;
            let (a, b) = if symmetric {
                (&*a, &*a)
            } else {
                let b = b.get_mut(..self.side * depth).unwrap_or_default();
                self.pack(with, (data, mean), second, from, b);
                (&*a, &*b)
            };
            with.run(Products { a, b, depth, symmetric, out: sum });
        }
    }

    /// Packs features of a block.
    fn pack(
        &self,
        with: Instructions,
        (data, shift): (&[f32], &[f32]),
        block: usize,
        from: usize,
        to: &mut [f32],
    ) {
        let (dim, rows) = (self.dim, self.rows(data, block));
        let panels = to.chunks_exact_mut(to.len() / (self.side / PANEL)).enumerate();
        for (at, panel) in panels {
            let rows = rows.get(at * PANEL * dim..).unwrap_or_default();
            with.run(Pack { rows, dim, shift, from, panel, norms: &mut [0.0; PANEL] });
        }
    }

    /// Collects a row of products.
    fn gather(&self, sums: &[f32], at: usize, row: &mut [f32]) {
        let (own, i) = (at / self.side, at % self.side);
        for (other, row) in row.chunks_mut(self.side).enumerate() {
            let number = Self::number(own.min(other), own.max(other));
            let sum = sums.get(number * self.parts() * self.square()..).unwrap_or_default();
            for (j, product) in row.iter_mut().enumerate() {
                let is_above = own < other || own == other && i <= j;
                let place = if is_above { i * self.side + j } else { j * self.side + i };
                *product = sum.get(place).copied().unwrap_or(f32::NAN);
            }
        }
    }

    /// Columns of the gradient that a task computes.
    const fn range(&self) -> usize {
        self.dim.div_ceil(LANES).next_multiple_of(STRIP)
    }

    /// Each row's sum by weight, in the columns of some tasks.
    fn mix(
        &self,
        tasks: std::ops::Range<usize>,
        sums: &Sums<'_>,
        out: Field<'_>,
        lanes: &mut [f32],
    ) {
        let middle = tasks.start.midpoint(tasks.end);
        if middle > tasks.start {
            let (left, right) = out.split_at(2, (middle - tasks.start) * self.range());
            let (own, rest) = lanes.split_at_mut((middle - tasks.start) * self.lane());
            rayon::join(
                || self.mix(tasks.start..middle, sums, left, own),
                || self.mix(middle..tasks.end, sums, right, rest),
            );
            return;
        }
        let Sums { with, rows, mean, weights } = *sums;
        let (mut out, first) = (out, tasks.start * self.range());
        let strip = lanes.get_mut(..self.m * STRIP).unwrap_or_default();
        for from in (0..out.dim()[2]).step_by(STRIP) {
            let strip = &mut *strip;
            with.run(Columns { rows, dim: self.dim, shift: mean, from: first + from, strip });
            with.run(Mix { weights, strip, out: &mut out, from });
        }
    }
}

/// A factor on the squared lengths that bounds the rounding of an expanded distance.
///
/// Products and squared lengths are summed over at most [`DEPTH`] features in a row, and these
/// sums are added up: at most 256 + D / 256 roundings each, for a product and two norms, and some
/// for the shift. How the reference itself rounds is not in it: of two neighbours that are about as
/// near, either may count as the nearest.
fn bound(dim: usize) -> f32 {
    (1024.0 + dim as f32 / 32.0) * (f32::EPSILON / 2.0)
}

/// A neighbour farther than the nearest by this many temperatures has no weight: e^-32 is 1e-14.
const NEGLIGIBLE: f32 = 32.0;

/// The share of the temperature that the error bound of a distance that matters may be. The bound
/// is of the worst case; the error itself is about a thirtieth of it.
const SHARE: f32 = 1.0 / 64.0;

/// The share of the temperature that the error bound of any distance may be where all of them
/// matter; see [`SHARE`]. The distance to a centre is a mean of them, in which errors cancel.
const CENTRE_SHARE: f32 = 1.0 / 16.0;

struct Anchor<'a> {
    rows: Rows<'a, f32>,
    norms: &'a [f32],
    at: usize,
    temperature: f32,
    kind: Kind,
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
        let (mut least_same, mut least_other) = (f32::INFINITY, f32::INFINITY);
        let own = self.at;
        for (j, ((d, other_norm), other)) in row.iter_mut().zip(self.norms).zip(labels).enumerate()
        {
            let sum = norm + other_norm;
            *d = if j == own { f32::INFINITY } else { sum - 2.0 * *d };
            let (least, most) = match *other == label {
                true => (&mut least_same, &mut most_same),
                false => (&mut least_other, &mut most_other),
            };
            *least = least.min(*d - sum * bound);
            *most = most.min(*d + sum * bound);
        }
        let most = most_same.min(most_other);
        // Either kind may have the nearest of all.
        let contested = least_same <= most && least_other <= most;
        let anchor = self.rows.row(own).unwrap_or_default();
        let mut near = (f32::INFINITY, f32::INFINITY, f32::INFINITY, false);
        for (j, ((d, other_norm), other)) in row.iter_mut().zip(self.norms).zip(labels).enumerate()
        {
            if j == own {
                continue;
            }
            let error = (norm + other_norm) * bound;
            let nearest = if *other == label { most_same } else { most };
            let (matters, share) = match self.kind {
                Kind::Nearest => (*d - error <= nearest + NEGLIGIBLE * self.temperature, SHARE),
                Kind::Centre => (true, CENTRE_SHARE),
            };
            let decides = contested && *d - error <= most;
            if decides || (matters && error > share * self.temperature) {
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

/// `scale (diag(S 1) - S)` with S = W + W', in place.
fn laplacian(w: &mut [f32], m: usize, scale: f32) {
    for i in 0..m {
        let (upper, lower) = w.split_at_mut((i + 1) * m);
        let row = upper.get_mut(i * m..).unwrap_or_default();
        let right = row.iter_mut().skip(i + 1);
        for (right, below) in right.zip(lower.chunks_exact_mut(m)) {
            if let Some(below) = below.get_mut(i) {
                *right += *below;
                *below = *right;
            }
        }
        // No later row reads this one; what is on its diagonal is in both terms.
        let degree = sum(row, |s| s);
        row.iter_mut().for_each(|s| *s *= -scale);
        row.iter_mut().skip(i).take(1).for_each(|s| *s += scale * degree);
    }
}
