//! Fine-tuning one block on a small core, one sample at a time.
//!
//! A [`Session`](crate::train::Session) holds the activations of a whole batch. Here a step goes over
//! its batch twice, and holds those of one sample: first each sample is embedded and its embedding is
//! kept; then neighbours are looked up, once; then each sample that some neighbour pulls at is run
//! again, and its share of the gradient is added. The result is that of the step over the whole
//! batch (Gao et al., "GradCache", 2021), since nothing but the embeddings ties samples together:
//! batch norm is frozen. What grows with the batch are the embeddings, which may be kept in half
//! precision, and 18 bytes a sample.
//!
//! What can be tuned is a block of one convolution or dense layer, with what [`Micro`] fuses with it
//! and flattening behind it: towards separation, behind unit length or not, or towards the labels by
//! cross-entropy. The blocks before it run from the model, in f32 or in integers.
//!
//! The arena, from the bottom up: the work on one sample (its raw bytes, what the frozen blocks give,
//! the block's output, the places that won its pool, the output's gradient); embeddings; pairs;
//! labels; parameters, gradients and the optimiser's state.

use crate::arena::{ArenaError, Dtype, Lease, Slot};
use crate::backend::{Backend, HostMut};
use crate::error::Error;
use crate::infer::Inference;
use crate::layer::{Activation, Conv2d, L2Normalise, Layer, Pass, Role};
use crate::loss::{self, Score};
use crate::neighbour::{Nearest, Pair, Rows, distance2};
use crate::net::{Model, Net};
use crate::plan::{self, Chain, ParamSlots, PlanError, tri};
use crate::shape::Shape;
use crate::source::{Batch, Draw, Source};
use crate::stage::{Cut, Loss, Objective, Stage};

use super::Micro;
use super::conv::{Geometry, pieces};
use super::group::{Group, Kind};
use super::op::Op;

/// How embeddings are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Embeddings {
    /// As they are: the step is that of the whole batch.
    F32,
    /// Rounded to half precision, which takes half the memory. Neighbours and their pull are those
    /// of the rounded ones.
    #[cfg(feature = "f16")]
    F16,
}

impl Embeddings {
    const fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            #[cfg(feature = "f16")]
            Self::F16 => Dtype::F16,
        }
    }
}

/// Where everything of a fine-tuning lies: its memory is a constant of the program.
#[derive(Clone, Copy, Debug)]
pub struct TuningPlan<'m> {
    prefix: Inference<'m>,
    x: Slot,
    y: Slot,
    won: Slot,
    dy: Slot,
    rows: Slot,
    pairs: Slot,
    labels: Slot,
    params: plan::Params,
    bytes: usize,
}

/// What ties the samples of a batch together.
#[derive(Clone, Copy)]
enum Goal {
    Separation { margin: Option<f32>, unit: bool },
    Labels { smoothing: f32 },
}

/// What a stage works towards, where it can be tuned like this.
const fn goal(stage: &Stage<'_>) -> Option<Goal> {
    let unit = match stage.recipe.head {
        [] | [Layer::Flatten(_)] => false,
        [Layer::L2Normalise(_)] | [Layer::Flatten(_), Layer::L2Normalise(_)] => true,
        _ => return None,
    };
    if !matches!(stage.cut, Cut::Whole) || stage.calibrate {
        return None;
    }
    match stage.recipe.objective {
        Objective::Separation(Loss::Margin { margin }) => {
            Some(Goal::Separation { margin: Some(margin), unit })
        }
        Objective::Separation(Loss::Triplet) => Some(Goal::Separation { margin: None, unit }),
        Objective::CrossEntropy { smoothing } if !unit => Some(Goal::Labels { smoothing }),
        _ => None,
    }
}

/// Whether the layer at `first` of a net reads bytes: what would be tuned in numbers could not run
/// behind them.
const fn reads_bytes(net: &Net<'_>, first: usize) -> bool {
    match Group::of(&Chain::new(net.layers), first) {
        Some(group) => group.is_integer(Pass::Narrow),
        None => false,
    }
}

/// The group that a block is, where it is one that can be tuned.
const fn block<'m>(chain: &Chain<'m>) -> Option<Group<'m>> {
    let Some(group) = Group::of(chain, 0) else { return None };
    if matches!(group.kind, Kind::Other(_)) {
        return None;
    }
    let mut at = group.len;
    while let Some(layer) = chain.get(at) {
        if !matches!(layer, Layer::Flatten(_) | Layer::Dropout(_)) {
            return None;
        }
        at += 1;
    }
    Some(group)
}

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

impl<'m> TuningPlan<'m> {
    /// The plan for tuning the layers of `stage`. `narrow` says whether frozen weights are stored in
    /// a narrower type than f32.
    ///
    /// Of the recipe's head only flattening and unit length are taken, of its objectives
    /// [`Separation`](Objective::Separation) by neighbours and cross-entropy; statistics are not
    /// calibrated.
    ///
    /// # Errors
    /// [`PlanError::Range`] for a block, a head or an objective of another kind and for a block that
    /// computes in integers; layers that do not fit, sizes that cannot be used.
    pub const fn new(
        net: Net<'m>,
        stage: &Stage<'m>,
        embeddings: Embeddings,
        narrow: bool,
    ) -> Result<Self, PlanError> {
        let (first, last, n) = (stage.first as usize, stage.last as usize, stage.recipe.batch);
        let outside = PlanError::Range { first, last, layers: net.layers.len() };
        let chain = tri!(net.chain(first, last));
        let (Some(group), Some(goal)) = (block(&chain), goal(stage)) else { return Err(outside) };
        if narrow && reads_bytes(&net, first) {
            return Err(outside);
        }
        if n == 0 || n == u32::MAX {
            return Err(PlanError::Batch { size: n });
        }
        let prefix = tri!(Inference::micro_to(net, first, 1, narrow));
        let shape = tri!(net.shape(first));
        let Some(out) = group.output(&chain, shape) else {
            return Err(PlanError::Shape { layer: first, input: shape });
        };
        let Some(features) = out.sample() else { return Err(PlanError::Overflow { layer: first }) };

        // Beside the input the output, the places that won, the gradient, and room in which the
        // gradient's partner lies while distances are made.
        let x = tri!(prefix.micro_output());
        let own = x.at + x.bytes();
        let y = Slot::new(tri!(plan::past(Slot { at: x.at, ..x })), out, Dtype::F32);
        let won = Slot::vector(tri!(plan::past(y)), features, Dtype::U8);
        let dy = Slot { at: tri!(plan::past(won)), ..y };
        let work = larger(tri!(plan::past(dy)), larger(prefix.bytes(), own));

        let separates = matches!(goal, Goal::Separation { .. });
        let kept = if separates { n } else { 0 };
        let rows = Slot::new(work, Shape::rows(kept, features), embeddings.dtype());
        let pairs = Slot::vector(tri!(plan::past(rows)), kept, Dtype::Pair);
        let labels = Slot::vector(tri!(plan::past(pairs)), n, Dtype::U16);
        let at = tri!(plan::past(labels));
        let slots = stage.recipe.rule.slots();
        let params = tri!(plan::Params::new(at, chain, shape, slots));
        let Some(bytes) = at.checked_add(params.bytes()) else {
            return Err(PlanError::Overflow { layer: first });
        };
        Ok(Self { prefix, x, y, won, dy, rows, pairs, labels, params, bytes })
    }

    /// The arena's size in bytes: exact.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The fine-tuning of one block.
#[derive(Clone, Copy, Debug)]
pub struct Tuning<'m> {
    net: Net<'m>,
    stage: Stage<'m>,
    plan: TuningPlan<'m>,
    seed: u64,
    /// Batches done.
    updates: u32,
    /// The last of them that taught nothing.
    idle: u32,
}

/// A block's group, and its parameters.
#[derive(Clone, Copy)]
struct Own<'m> {
    op: Op<'m>,
    /// Where the parameters lie of the layer that it begins with, and of the norm behind it.
    slots: [ParamSlots; 2],
}

impl<'m> Tuning<'m> {
    /// A fine-tuning before its first step. Call [`load`](Self::load) next.
    pub const fn new(net: Net<'m>, stage: Stage<'m>, plan: TuningPlan<'m>, seed: u64) -> Self {
        Self { net, stage, plan, seed, updates: 0, idle: 0 }
    }

    /// Batches done, each an update where it could teach something.
    pub const fn updates(&self) -> u32 {
        self.updates
    }

    /// Copies the block's parameters from the model and clears the optimiser.
    ///
    /// # Errors
    /// An arena that is too small (both sizes are named), weights that are missing.
    pub fn load<const ALL: bool>(
        &mut self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
    ) -> Result<(), Error> {
        let (needed, given) = (self.plan.bytes, backend.bytes());
        if needed > given {
            return Err(ArenaError::OutOfMemory { needed, given }.into());
        }
        (self.updates, self.idle) = (0, 0);
        let params = self.plan.params;
        for slot in [params.trained(), params.measured(), params.state(0), params.state(1)] {
            backend.zero(slot)?;
        }
        let mut walk = params.walk();
        let mut shape = self.net.shape(self.stage.first.into())?;
        for index in usize::from(self.stage.first)..usize::from(self.stage.last) {
            let impossible = PlanError::Shape { layer: index, input: shape };
            let layer = self.net.layers.get(index).ok_or(impossible)?;
            let tensors = layer.tensors(shape).ok_or(impossible)?;
            let slots = walk.step(tensors)?;
            let stored = model.weights.layer(&self.net, index);
            for (role, stored) in Role::ALL.into_iter().zip(stored) {
                let slot = slots.get(role);
                let missing =
                    Error::Weights { layer: index, expected: slot.elements(), got: stored.len() };
                if !slot.is_empty() && !stored.widen(backend.reference.arena().view_mut(slot)?) {
                    return Err(missing);
                }
            }
            shape = layer.output(shape).ok_or(impossible)?;
        }
        Ok(())
    }

    /// Copies the block's parameters out of the arena, layer by layer, as
    /// [`Weights::Patched`](crate::net::Weights::Patched) takes them.
    ///
    /// # Errors
    /// Memory of another length than the block's parameters.
    pub fn store<const ALL: bool>(
        &self,
        backend: &mut Micro<'_, ALL>,
        into: &mut [f32],
    ) -> Result<(), Error> {
        let (first, last) = (usize::from(self.stage.first), usize::from(self.stage.last));
        let expected = self.net.params(last)?.saturating_sub(self.net.params(first)?);
        if into.len() != expected {
            return Err(Error::Weights { layer: first, expected, got: into.len() });
        }
        let (mut walk, mut shape) = (self.plan.params.walk(), self.plan.x.shape);
        let mut rest = into;
        for index in first..last {
            let impossible = PlanError::Shape { layer: index, input: shape };
            let layer = self.net.layers.get(index).ok_or(impossible)?;
            let slots = walk.step(layer.tensors(shape).ok_or(impossible)?)?;
            for role in Role::ALL {
                let slot = slots.get(role);
                let taken = core::mem::take(&mut rest);
                let Some((own, others)) = taken.split_at_mut_checked(slot.elements()) else {
                    break;
                };
                if !slot.is_empty() {
                    copy(backend.reference.arena().view(slot)?, own);
                }
                rest = others;
            }
            shape = layer.output(shape).ok_or(impossible)?;
        }
        Ok(())
    }

    /// The block's group, and where its parameters lie.
    fn own(&self) -> Result<Own<'m>, Error> {
        let first = usize::from(self.stage.first);
        let (chain, shape) = (self.net.chain(first, self.stage.last.into())?, self.plan.x.shape);
        let impossible = PlanError::Shape { layer: first, input: shape };
        let group = block(&chain).ok_or(impossible)?;
        let lengths = group.lengths(&chain, shape).ok_or(impossible)?;
        let mut walk = self.plan.params.walk();
        let [own, norm] = lengths;
        let slots = [walk.step(own)?, walk.step(norm)?];
        let TuningPlan { x, y, won, .. } = self.plan;
        Ok(Own { op: Op::new(group, [x, y, won, Slot::EMPTY], lengths, Pass::Eval), slots })
    }

    /// Runs the frozen blocks and the block on sample `index` of the source; gives its label.
    fn forward<const ALL: bool, S: Source>(
        &self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
        source: &mut S,
        (index, draw): (u32, Option<Draw>),
    ) -> Result<u16, Error> {
        let mut label = 0;
        self.plan.prefix.run_slot(backend, model, 1, |raw| {
            let HostMut::U8(raw) = raw else {
                return Err(Error::Unsupported("raw samples of this type"));
            };
            Ok(source.read(&[index], draw, Batch::U8(raw), core::slice::from_mut(&mut label))?)
        })?;
        let Own { op, slots } = self.own()?;
        let TuningPlan { y, won, .. } = self.plan;
        let arena = backend.reference.arena();
        arena.view_mut::<u8>(won)?.fill(0);
        op.run_trained(arena, self.stage.first.into(), &slots)?;
        let [ys, won] = arena.lease([y, won])?;
        let (ys, won) = (&*ys.get::<f32>()?, won.get::<u8>()?);
        if !ys.iter().all(|y| y.is_finite()) {
            let (layer, update) = (self.stage.first, self.updates);
            return Err(Error::Diverged { stage: 0, layer, update });
        }
        // No gradient passes where the activation is flat, whatever becomes of the output.
        let top = match op.group.activation {
            Some(Activation::Relu) => f32::INFINITY,
            Some(Activation::Relu6) => 6.0,
            _ => return Ok(label),
        };
        let flat = ys.iter().map(|y| *y <= 0.0 || *y >= top);
        won.iter_mut().zip(flat).filter(|(_, flat)| *flat).for_each(|(won, _)| *won = FLAT);
        Ok(label)
    }

    /// The norm of the block's output, which becomes an embedding of unit length where the stage asks
    /// for that.
    fn embed<const ALL: bool>(
        &self,
        backend: &mut Micro<'_, ALL>,
        unit: bool,
    ) -> Result<f32, Error> {
        let y = backend.reference.arena().view_mut::<f32>(self.plan.y)?;
        let (shape, mut norm) = (Shape::rows(1, y.len() as u32), [1.0]);
        if unit {
            L2Normalise.forward(shape, y, &mut norm);
        }
        let [norm] = norm;
        Ok(norm)
    }

    /// The embedding of sample `index` of the source, as neighbours are looked up among them, and its
    /// label: what SI is measured on, before and after. The trained block is that of the arena.
    ///
    /// # Errors
    /// Memory of another length than the embedding's, a sample that cannot be read.
    pub fn embedding<const ALL: bool, S: Source>(
        &self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
        source: &mut S,
        index: u32,
        into: &mut [f32],
    ) -> Result<u16, Error> {
        let label = self.forward(backend, model, source, (index, None))?;
        let unit = matches!(goal(&self.stage), Some(Goal::Separation { unit: true, .. }));
        self.embed(backend, unit)?;
        backend.read(self.plan.y.flat(), HostMut::F32(into))?;
        Ok(label)
    }

    /// Tells of each sample of `queries` whether the nearest of `bank` has its label: their share is
    /// SI across the two sets ([`si::cross`](crate::si::cross)). Told before and after training, it
    /// says what [`si::Paired`](crate::si::Paired) asks. `rows` and `labels` hold the bank's embeddings.
    ///
    /// # Errors
    /// Memory for fewer embeddings than the bank has samples (both are named), a sample that cannot be
    /// read.
    #[expect(clippy::too_many_arguments, reason = "two sets and the memory for one of them")]
    pub fn judge<const ALL: bool>(
        &self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
        bank: &mut impl Source,
        queries: &mut impl Source,
        rows: &mut [f32],
        labels: &mut [u16],
        mut tell: impl FnMut(u32, bool),
    ) -> Result<(), Error> {
        let dim = self.plan.y.elements();
        let count = bank.len() as usize;
        let needed = count.saturating_mul(dim);
        let (Some(rows), Some(labels)) = (rows.get_mut(..needed), labels.get_mut(..count)) else {
            let (needed, given) = (needed * size_of::<f32>(), size_of_val(rows));
            return Err(ArenaError::OutOfMemory { needed, given }.into());
        };
        for ((row, label), index) in rows.chunks_exact_mut(dim.max(1)).zip(&mut *labels).zip(0..) {
            *label = self.embedding(backend, model, bank, index, row)?;
        }
        let rows = Rows { data: rows, dim, labels };
        for index in 0..queries.len() {
            let label = self.forward(backend, model, queries, (index, None))?;
            let unit = matches!(goal(&self.stage), Some(Goal::Separation { unit: true, .. }));
            self.embed(backend, unit)?;
            let query = backend.reference.arena().view::<f32>(self.plan.y)?;
            let pair = Pair::NONE.fold(query, label, rows, 0, None);
            tell(index, pair.correct() == Some(true));
        }
        Ok(())
    }

    /// One step: a batch is drawn, neighbours are looked up, the block moves. The rate and the
    /// optimiser are the recipe's, its schedule that of `total` updates.
    ///
    /// # Errors
    /// A source of another shape, of numbers or with fewer samples than one batch, a failed read, as
    /// many batches in a row as a pass has in which no sample can learn (one such batch alone moves
    /// nothing), outputs of the block that are not finite. The parameters are as they were.
    pub fn step<const ALL: bool, S: Source>(
        &mut self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
        source: &mut S,
        total: u32,
    ) -> Result<Score, Error> {
        let recipe = self.stage.recipe;
        let expected = self.net.input.shape;
        if source.shape() != expected {
            return Err(Error::Sample { expected, got: source.shape() });
        }
        let (samples, needed) = (source.len(), recipe.batch);
        if samples < needed {
            return Err(Error::TooFew { samples, needed });
        }
        let steps = samples / needed.max(1);
        let (epoch, step) = (self.updates / steps.max(1), self.updates % steps.max(1));
        let draw = Draw { seed: self.seed, epoch, step };
        let params = self.plan.params;
        backend.zero(params.gradients())?;
        let score = match goal(&self.stage) {
            Some(Goal::Labels { smoothing }) => {
                self.towards_labels(backend, model, source, draw, smoothing)?
            }
            Some(Goal::Separation { margin, unit }) => {
                self.apart(backend, model, source, draw, margin, unit)?
            }
            None => return Err(Error::Unsupported("this objective")),
        };
        let learns = score.anchors > 0;
        if !learns && self.idle + 1 >= steps {
            return Err(Error::NoAnchor { stage: 0, update: self.updates });
        }
        let rate = recipe.schedule.rate(recipe.rate, self.updates, total);
        // As in a whole batch: one that teaches nothing is passed, or it would be drawn again.
        self.updates = self.updates.saturating_add(1);
        self.idle = if learns { 0 } else { self.idle + 1 };
        if learns {
            backend.update(&recipe.rule, rate, self.updates, params)?;
        }
        Ok(score)
    }

    /// The sample at `place` of a batch.
    fn pick<S: Source>(&self, source: &S, draw: Draw, place: u32) -> (u32, Option<Draw>) {
        let mut index = 0;
        let one = core::slice::from_mut(&mut index);
        source.pick(draw, self.stage.recipe.batch, place, one);
        (index, Some(draw))
    }

    /// The gradient of the cross-entropy, in one pass.
    fn towards_labels<const ALL: bool, S: Source>(
        &self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
        source: &mut S,
        draw: Draw,
        smoothing: f32,
    ) -> Result<Score, Error> {
        let (plan, mut all) = (self.plan, Score::<f32>::default());
        for place in 0..self.stage.recipe.batch {
            let sample = self.pick(source, draw, place);
            let label = self.forward(backend, model, source, sample)?;
            let [y, dy] = backend.reference.arena().lease([plan.y, plan.dy])?;
            let (y, dy) = (&*y.get::<f32>()?, dy.get::<f32>()?);
            let own = loss::cross_entropy(y, y.len(), &[label], smoothing, Some(dy));
            if own.anchors > 0 {
                self.backward(backend)?;
            }
            all = Score {
                value: all.value + own.value,
                anchors: all.anchors + own.anchors,
                skipped: all.skipped + own.skipped,
                correct: all.correct + own.correct,
            };
        }
        let share = 1.0 / all.anchors.max(1) as f32;
        let gradients = backend.reference.arena().view_mut::<f32>(plan.params.gradients())?;
        gradients.iter_mut().for_each(|g| *g *= share);
        Ok(Score { value: all.value * share, ..all })
    }

    /// The gradient of the losses of neighbours, in two passes.
    fn apart<const ALL: bool, S: Source>(
        &self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
        source: &mut S,
        draw: Draw,
        margin: Option<f32>,
        unit: bool,
    ) -> Result<Score, Error> {
        let (plan, batch) = (self.plan, self.stage.recipe.batch);
        for place in 0..batch {
            let sample = self.pick(source, draw, place);
            let label = self.forward(backend, model, source, sample)?;
            self.embed(backend, unit)?;
            let slots = [plan.y, plan.rows.samples(place, 1), plan.labels];
            let [y, row, labels] = backend.reference.arena().lease(slots)?;
            keep(&*y.get::<f32>()?, row)?;
            let labels = labels.get::<u16>()?.iter_mut().skip(place as usize).take(1);
            labels.for_each(|own| *own = label);
        }
        self.mine(backend)?;
        let score = self.tally(backend, margin)?;
        let share = match margin {
            Some(_) => 2.0 / score.anchors.max(1) as f32,
            None => 2.0,
        };
        for place in 0..batch {
            let pairs = backend.reference.arena().view::<[u32; 4]>(plan.pairs)?;
            let pulled = (0..).zip(pairs).any(|(anchor, pair)| {
                let pair = Pair::from_words(*pair);
                pair.complete() && [anchor, pair.same.index, pair.other.index].contains(&place)
            });
            if !pulled {
                continue;
            }
            let sample = self.pick(source, draw, place);
            self.forward(backend, model, source, sample)?;
            let norm = self.embed(backend, unit)?;
            self.pull(backend, place, share)?;
            if unit {
                let [y, dy] = backend.reference.arena().lease([plan.y, plan.dy])?;
                let (y, dy) = (&*y.get::<f32>()?, dy.get::<f32>()?);
                L2Normalise.backward(Shape::rows(1, y.len() as u32), y, &[norm], dy);
            }
            self.backward(backend)?;
        }
        Ok(score)
    }

    /// Looks up the neighbours of all embeddings of the batch: each distance is made once.
    fn mine<const ALL: bool>(&self, backend: &mut Micro<'_, ALL>) -> Result<(), Error> {
        let plan = self.plan;
        let arena = backend.reference.arena();
        arena.view_mut::<[u32; 4]>(plan.pairs)?.fill(Pair::NONE.to_words());
        for i in 0..plan.rows.shape.n {
            let slots = [plan.rows.samples(i, 1), plan.y];
            let [row, a] = arena.lease(slots)?;
            widen(row, a.get::<f32>()?)?;
            for j in i + 1..plan.rows.shape.n {
                let slots = [plan.y, plan.rows.samples(j, 1), plan.dy, plan.labels, plan.pairs];
                let [a, row, b, labels, pairs] = arena.lease(slots)?;
                let b = b.get::<f32>()?;
                widen(row, b)?;
                let dist2 = distance2(&*a.get::<f32>()?, b);
                let (labels, pairs) = (&*labels.get::<u16>()?, pairs.get::<[u32; 4]>()?);
                let same = labels.get(i as usize) == labels.get(j as usize);
                for (own, index) in [(i, j), (j, i)] {
                    for words in pairs.iter_mut().skip(own as usize).take(1) {
                        let mut pair = Pair::from_words(*words);
                        let best = if same { &mut pair.same } else { &mut pair.other };
                        let candidate = Nearest { index, dist2 };
                        if candidate.precedes(*best) {
                            *best = candidate;
                        }
                        *words = pair.to_words();
                    }
                }
            }
        }
        Ok(())
    }

    /// The loss of all anchors. Those that pull at nothing lose their pairs.
    fn tally<const ALL: bool>(
        &self,
        backend: &mut Micro<'_, ALL>,
        margin: Option<f32>,
    ) -> Result<Score, Error> {
        let pairs = backend.reference.arena().view_mut::<[u32; 4]>(self.plan.pairs)?;
        let mut score = Score::<f32>::default();
        for words in pairs.iter_mut() {
            let pair = Pair::from_words(*words);
            score.correct += u32::from(pair.correct() == Some(true));
            let apart = pair.same.dist2 - pair.other.dist2;
            let (term, pulls) = match margin {
                Some(margin) if apart + margin <= 0.0 => (0.0, false),
                Some(margin) => (apart + margin, true),
                None => (apart, true),
            };
            let value = score.value + term;
            if pair.complete() && value.is_finite() {
                (score.value, score.anchors) = (value, score.anchors + 1);
            } else {
                score.skipped += 1;
            }
            if !(pair.complete() && value.is_finite() && pulls) {
                *words = Pair::NONE.to_words();
            }
        }
        if margin.is_some() {
            score.value /= score.anchors.max(1) as f32;
        }
        Ok(score)
    }

    /// The gradient of the embedding at `place`: what its own pair and the pairs that it is in pull.
    fn pull<const ALL: bool>(
        &self,
        backend: &mut Micro<'_, ALL>,
        place: u32,
        share: f32,
    ) -> Result<(), Error> {
        let plan = self.plan;
        let arena = backend.reference.arena();
        arena.view_mut::<f32>(plan.dy)?.fill(0.0);
        for anchor in 0..plan.rows.shape.n {
            let pairs = arena.view::<[u32; 4]>(plan.pairs)?;
            let pair =
                pairs.get(anchor as usize).map_or(Pair::NONE, |words| Pair::from_words(*words));
            if !pair.complete() {
                continue;
            }
            for (partner, weight) in [(pair.same.index, share), (pair.other.index, -share)] {
                // Away from, or towards, the one of the two that is not here.
                let there = match place {
                    _ if place == anchor => partner,
                    _ if place == partner => anchor,
                    _ => continue,
                };
                let slots = [plan.dy, plan.rows.samples(place, 1), plan.rows.samples(there, 1)];
                let [dy, here, there] = arena.lease(slots)?;
                add_difference(dy.get::<f32>()?, here, there, weight)?;
            }
        }
        Ok(())
    }

    /// Adds one sample's share to the gradients of the parameters. The output's gradient is lost.
    fn backward<const ALL: bool>(&self, backend: &mut Micro<'_, ALL>) -> Result<(), Error> {
        let Own { op: Op { group, .. }, slots: [w, n] } = self.own()?;
        let TuningPlan { x, y, won, dy, .. } = self.plan;
        let [xs, ys, won, dys, dw, db, gamma, variance] = backend
            .reference
            .arena()
            .lease([x, y, won, dy, w.dweight, w.dbias, n.weight, n.variance])?;
        let (gamma, variance) = (&*gamma.get::<f32>()?, &*variance.get::<f32>()?);
        let (xs, ys, won) = (&*xs.get::<f32>()?, &*ys.get::<f32>()?, &*won.get::<u8>()?);
        let (dys, dw, db) = (dys.get::<f32>()?, dw.get::<f32>()?, db.get::<f32>()?);
        for (dy, won) in dys.iter_mut().zip(won) {
            if *won == FLAT {
                *dy = 0.0;
            }
        }
        if let Some(Activation::LeakyRelu { slope }) = group.activation {
            let low = dys.iter_mut().zip(ys).filter(|(_, y)| **y <= 0.0);
            low.for_each(|(dy, _)| *dy *= slope);
        }
        let plane = y.shape.plane().max(1) as usize;
        for (k, dy) in dys.chunks_exact_mut(plane.max(1)).enumerate() {
            if let (Some(norm), Some(variance)) = (group.norm, variance.get(k)) {
                let scale = gamma.get(k).copied().unwrap_or(1.0) * norm.inverse(*variance);
                dy.iter_mut().for_each(|dy| *dy *= scale);
            }
            let sum = dy.iter().fold(0.0, |sum, dy| sum + *dy);
            db.iter_mut().skip(k).take(1).for_each(|db| *db += sum);
        }
        match group.kind {
            Kind::Conv(l) => {
                let pool = group.pool.map_or((1, 1), |pool| pool.window.kernel);
                weights(*l, pool, (x.shape, y.shape), xs, dys, won, dw);
            }
            Kind::Dense(_) => {
                for (dw, dy) in dw.chunks_exact_mut(xs.len().max(1)).zip(dys) {
                    if *dy != 0.0 {
                        dw.iter_mut().zip(xs).for_each(|(dw, x)| *dw += *dy * *x);
                    }
                }
            }
            Kind::Other(_) => {}
        }
        Ok(())
    }
}

/// A place where no gradient passes; those in a window are at most 254.
const FLAT: u8 = 255;

/// Keeps an embedding.
///
/// # Errors
/// None for slots of the plan.
fn keep(y: &[f32], row: Lease<'_>) -> Result<(), Error> {
    #[cfg(feature = "f16")]
    if row.dtype() == Dtype::F16 {
        let row = row.get::<half::f16>()?;
        row.iter_mut().zip(y).for_each(|(row, y)| *row = half::f16::from_f32(*y));
        return Ok(());
    }
    copy(y, row.get()?);
    Ok(())
}

fn copy(from: &[f32], into: &mut [f32]) {
    into.iter_mut().zip(from).for_each(|(into, from)| *into = *from);
}

/// An embedding as numbers.
///
/// # Errors
/// None for slots of the plan.
fn widen(row: Lease<'_>, into: &mut [f32]) -> Result<(), Error> {
    #[cfg(feature = "f16")]
    if row.dtype() == Dtype::F16 {
        let row = row.get::<half::f16>()?;
        into.iter_mut().zip(row).for_each(|(into, row)| *into = row.to_f32());
        return Ok(());
    }
    copy(row.get()?, into);
    Ok(())
}

/// Adds `weight (here - there)`.
///
/// # Errors
/// None for slots of the plan.
fn add_difference(
    dy: &mut [f32],
    here: Lease<'_>,
    there: Lease<'_>,
    weight: f32,
) -> Result<(), Error> {
    #[cfg(feature = "f16")]
    if here.dtype() == Dtype::F16 {
        let (here, there) = (here.get::<half::f16>()?, there.get::<half::f16>()?);
        for ((dy, here), there) in dy.iter_mut().zip(here).zip(there) {
            *dy += weight * (here.to_f32() - there.to_f32());
        }
        return Ok(());
    }
    let (here, there) = (here.get::<f32>()?, there.get::<f32>()?);
    for ((dy, here), there) in dy.iter_mut().zip(here).zip(there) {
        *dy += weight * (*here - *there);
    }
    Ok(())
}

/// Adds to the gradient of a convolution's weights: each dy reads the image below the place in its
/// window of the pool that won.
fn weights(
    l: Conv2d,
    pool: (u8, u8),
    (x_shape, out): (Shape, Shape),
    x: &[f32],
    dy: &[f32],
    won: &[u8],
    dw: &mut [f32],
) {
    let geometry = Geometry::new(l, x_shape, 0.0);
    let (high, wide) = (usize::from(pool.0), usize::from(pool.1).max(1));
    let (plane, columns) = (out.plane().max(1) as usize, out.w.max(1) as usize);
    let filters = pieces(dy, plane).zip(pieces(won, plane));
    for (k, ((dy, won), dw)) in filters.zip(dw.chunks_exact_mut(geometry.filter.max(1))).enumerate()
    {
        let x = pieces(x, geometry.group).nth(k / geometry.filters.max(1)).unwrap_or_default();
        for (at, (&dy, &won)) in dy.iter().zip(won).enumerate().filter(|(_, (dy, _))| **dy != 0.0) {
            let won = usize::from(won);
            let place = (at / columns * high + won / wide, at % columns * wide + won % wide);
            geometry.add_windows(x, place, dy, dw);
        }
    }
}
