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

use crate::arena::{Arena, ArenaError, Dtype, Lease, Slot};
use crate::backend::{Backend, HostMut};
use crate::error::Error;
use crate::infer::Inference;
use crate::layer::{Activation, Conv2d, L2Normalise, Layer, Pass, Role, Tensors};
use crate::loss::{self, Score};
use crate::neighbour::{Nearest, Pair, Rows, distance2};
use crate::net::{Model, Net};
use crate::optim::Update;
use crate::plan::{self, Chain, ParamSlots, PlanError, tri};
use crate::schedule::Rate;
use crate::shape::Shape;
use crate::source::{Batch, Draw, Source};
use crate::stage::{Cut, Loss, Objective, Stage};

use super::conv::{Geometry, pieces};
use super::group::{Group, Kind};
use super::op::Op;
use super::{Micro, Prefix, Program};

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

/// Frozen blocks that run before the one that is tuned: an [`Inference`], which plans as it runs, or
/// the [`Prefix`] of a [`Program`], which was made ready at compile time.
pub trait Frozen: sealed::Run {}

impl Frozen for Inference<'_> {}
impl Frozen for Prefix<'_> {}

/// What writes the bytes of a raw sample.
type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), Error>;

mod sealed {
    use super::{Error, Fill, HostMut, Inference, Micro, Model, Prefix};

    pub trait Run {
        /// Runs the blocks on the sample that `fill` writes; the output stays in the arena.
        fn run<const ALL: bool>(
            &self,
            backend: &mut Micro<'_, ALL>,
            model: &Model<'_>,
            fill: Fill<'_>,
        ) -> Result<(), Error>;

        /// Numbers of all parameters of the layers before one of the blocks' layers.
        fn before(&self, layer: usize) -> Option<usize>;
    }

    impl Run for Inference<'_> {
        fn run<const ALL: bool>(
            &self,
            backend: &mut Micro<'_, ALL>,
            model: &Model<'_>,
            fill: Fill<'_>,
        ) -> Result<(), Error> {
            let unsupported = Error::Unsupported("raw samples of this type");
            let fill = |raw: HostMut<'_>| match raw {
                HostMut::U8(raw) => fill(raw),
                _ => Err(unsupported),
            };
            self.run_slot(backend, model, 1, fill).map(|_| ())
        }

        fn before(&self, layer: usize) -> Option<usize> {
            Inference::before(self, layer)
        }
    }

    impl Run for Prefix<'_> {
        fn run<const ALL: bool>(
            &self,
            backend: &mut Micro<'_, ALL>,
            model: &Model<'_>,
            fill: Fill<'_>,
        ) -> Result<(), Error> {
            let arena = backend.reference.arena();
            fill(arena.planned(self.raw))?;
            Prefix::run(self, arena, &model.weights)
        }

        fn before(&self, layer: usize) -> Option<usize> {
            Prefix::before(self, layer)
        }
    }
}

/// Everything of a fine-tuning that is known before it begins: where all of it lies, and what its
/// block and its objective take. Its memory is a constant of the program.
#[derive(Clone, Copy, Debug)]
pub struct TuningPlan<'m, P = Inference<'m>> {
    prefix: P,
    block: Block<'m>,
}

/// The part of a plan, and of a fine-tuning, that is one code whatever is frozen before it.
#[derive(Clone, Copy, Debug)]
struct Block<'m> {
    stage: Stage<'m>,
    goal: Goal,
    /// The shape of the net's samples.
    input: Shape,
    /// Numbers of all parameters before the block's.
    before: usize,
    /// The block's group.
    op: Op<'m>,
    /// Where the parameters lie of the layer that it begins with, and of the norm behind it.
    slots: [ParamSlots; 2],
    update: Update<f32>,
    rate: Rate,
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
#[derive(Clone, Copy, Debug)]
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
        let first = stage.first as usize;
        let prefix = tri!(Inference::micro_to(net, first, 1, narrow));
        let x = tri!(prefix.micro_output());
        if narrow && reads_bytes(&net, first) {
            return Err(outside(&net, stage));
        }
        Self::behind(prefix, (x, prefix.bytes()), net, stage, embeddings)
    }
}

impl<'m> TuningPlan<'m, Prefix<'m>> {
    /// As [`new`](TuningPlan::new), the frozen blocks the first layers of a [`Program`]: made at compile
    /// time, it links what this stage takes and nothing else.
    ///
    /// ```
    /// use sepal_core::layer::{Conv2d, Flatten, L2Normalise, Layer, MaxPool, RELU};
    /// use sepal_core::micro::{Embeddings, Prefix, Program, TuningPlan, operations};
    /// use sepal_core::net::{Input, Net, Normalisation};
    /// use sepal_core::optim::Rule;
    /// use sepal_core::schedule::Schedule;
    /// use sepal_core::shape::Shape;
    /// use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
    ///
    /// const NET: Net<'static> = Net {
    ///     input: Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE },
    ///     layers: &[
    ///         Layer::Conv2d(Conv2d::new(6, 5)), RELU, Layer::MaxPool(MaxPool::new(2)),
    ///         Layer::Conv2d(Conv2d::new(16, 5)), RELU, Layer::MaxPool(MaxPool::new(2)),
    ///     ],
    ///     blocks: &[3, 6],
    ///     features: 2,
    /// };
    /// static PROGRAM: Program<'static, { operations(&NET, 6, false) }> =
    ///     match Program::new(NET, false) {
    ///         Ok(program) => program,
    ///         Err(_) => panic!("the layers do not fit each other"),
    ///     };
    /// const STAGE: Stage<'static> = Stage {
    ///     first: 3,
    ///     last: 6,
    ///     calibrate: false,
    ///     cut: Cut::Whole,
    ///     recipe: Recipe {
    ///         head: &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)],
    ///         objective: Objective::Separation(Loss::Margin { margin: 0.2 }),
    ///         epochs: 1,
    ///         batch: 16,
    ///         micro_batches: 1,
    ///         rule: Rule::adam(),
    ///         rate: 0.01,
    ///         schedule: Schedule::Constant,
    ///         stop: Stop::Never,
    ///     },
    /// };
    /// static PLAN: TuningPlan<'static, Prefix<'static>> =
    ///     match TuningPlan::program(&PROGRAM, &STAGE, Embeddings::F32) {
    ///         Ok(plan) => plan,
    ///         Err(_) => panic!("the block cannot be tuned"),
    ///     };
    /// const _: () = assert!(PLAN.bytes() <= 64 * 1024, "the board is smaller");
    /// ```
    ///
    /// # Errors
    /// As `new`, and layers that end within an operation of the program or go on behind it.
    pub const fn program<const N: usize>(
        program: &'m Program<'m, N>,
        stage: &Stage<'m>,
        embeddings: Embeddings,
    ) -> Result<Self, PlanError> {
        let prefix = tri!(program.prefix(stage.first as usize));
        if matches!(prefix.output.dtype, Dtype::U8) {
            return Err(outside(prefix.net, stage));
        }
        Self::behind(prefix, (prefix.output, prefix.bytes), *prefix.net, stage, embeddings)
    }
}

/// The stage is none that can be tuned.
const fn outside(net: &Net<'_>, stage: &Stage<'_>) -> PlanError {
    let (first, last) = (stage.first as usize, stage.last as usize);
    PlanError::Range { first, last, layers: net.layers.len() }
}

impl<'m, P: Copy> TuningPlan<'m, P> {
    /// The plan behind blocks that leave their output in `x` and take so many bytes.
    const fn behind(
        prefix: P,
        (x, taken): (Slot, usize),
        net: Net<'m>,
        stage: &Stage<'m>,
        embeddings: Embeddings,
    ) -> Result<Self, PlanError> {
        let (first, last, n) = (stage.first as usize, stage.last as usize, stage.recipe.batch);
        let outside = outside(&net, stage);
        let chain = tri!(net.chain(first, last));
        let (Some(group), Some(goal)) = (block(&chain), goal(stage)) else { return Err(outside) };
        if n == 0 || n == u32::MAX {
            return Err(PlanError::Batch { size: n });
        }
        let shape = tri!(net.shape(first));
        let (Some(out), Some(lengths)) =
            (group.output(&chain, shape), group.lengths(&chain, shape))
        else {
            return Err(PlanError::Shape { layer: first, input: shape });
        };
        let Some(features) = out.sample() else { return Err(PlanError::Overflow { layer: first }) };

        // Beside the input the output, the places that won, the gradient, and room in which the
        // gradient's partner lies while distances are made.
        let own = x.at + x.bytes();
        let y = Slot::new(tri!(plan::past(Slot { at: x.at, ..x })), out, Dtype::F32);
        let won = Slot::vector(tri!(plan::past(y)), features, Dtype::U8);
        let dy = Slot { at: tri!(plan::past(won)), ..y };
        let work = larger(tri!(plan::past(dy)), larger(taken, own));

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
        let mut walk = params.walk();
        let [weights, norm] = lengths;
        let slots = [tri!(walk.step(weights)), tri!(walk.step(norm))];
        let block = Block {
            stage: *stage,
            goal,
            input: net.input.shape,
            before: tri!(net.params(first)),
            op: Op::new(group, [x, y, won, Slot::EMPTY], lengths, Pass::Eval),
            slots,
            update: stage.recipe.rule.updater(),
            rate: stage.recipe.schedule.rater(),
            x,
            y,
            won,
            dy,
            rows,
            pairs,
            labels,
            params,
            bytes,
        };
        Ok(Self { prefix, block })
    }

    /// The arena's size in bytes: exact.
    pub const fn bytes(&self) -> usize {
        self.block.bytes
    }

    /// Numbers of the block's parameters: what [`store`](Tuning::store) fills.
    pub const fn parameters(&self) -> usize {
        let [own, norm] = self.block.op.lengths;
        own.total() as usize + norm.total() as usize
    }

    /// Numbers of one embedding.
    pub const fn features(&self) -> usize {
        self.block.y.elements()
    }
}

/// The fine-tuning of one block.
#[derive(Clone, Copy, Debug)]
pub struct Tuning<'m, P = Inference<'m>> {
    plan: TuningPlan<'m, P>,
    seed: u64,
    /// Batches done.
    updates: u32,
    /// The last of them that taught nothing.
    idle: u32,
}

impl<'m, P: Frozen> Tuning<'m, P> {
    /// A fine-tuning before its first step. Call [`load`](Self::load) next.
    pub const fn new(plan: TuningPlan<'m, P>, seed: u64) -> Self
    where
        P: Copy,
    {
        Self { plan, seed, updates: 0, idle: 0 }
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
        (self.updates, self.idle) = (0, 0);
        let TuningPlan { prefix, block } = &self.plan;
        block.load(backend.reference.arena(), model, &|layer| prefix.before(layer))
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
        self.plan.block.store(backend.reference.arena(), into)
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
        let TuningPlan { prefix, block } = &self.plan;
        let run = |backend: &mut Micro<'_, ALL>, fill: Fill<'_>| prefix.run(backend, model, fill);
        let mut passage = Passage { block, backend, run: &run, source, updates: self.updates };
        let (label, _) = passage.embed((index, None))?;
        backend.read(block.y.flat(), HostMut::F32(into))?;
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
        let TuningPlan { prefix, block } = &self.plan;
        let dim = block.y.elements();
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
        let run = |backend: &mut Micro<'_, ALL>, fill: Fill<'_>| prefix.run(backend, model, fill);
        for index in 0..queries.len() {
            let (source, updates) = (&mut *queries, self.updates);
            let mut passage = Passage { block, backend, run: &run, source, updates };
            let (label, _) = passage.embed((index, None))?;
            let query = backend.reference.arena().planned::<f32>(block.y);
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
        let TuningPlan { prefix, block } = &self.plan;
        let recipe = block.stage.recipe;
        let (expected, got) = (block.input, source.shape());
        if got != expected {
            return Err(Error::Sample { expected, got });
        }
        let (samples, needed) = (source.len(), recipe.batch);
        if samples < needed {
            return Err(Error::TooFew { samples, needed });
        }
        let steps = samples / needed.max(1);
        let (epoch, step) = (self.updates / steps.max(1), self.updates % steps.max(1));
        let draw = Draw { seed: self.seed, epoch, step };
        let run = |backend: &mut Micro<'_, ALL>, fill: Fill<'_>| prefix.run(backend, model, fill);
        let mut passage = Passage { block, backend, run: &run, source, updates: self.updates };
        let score = passage.gradients(draw)?;
        let learns = score.anchors > 0;
        if !learns && self.idle + 1 >= steps {
            return Err(Error::NoAnchor { stage: 0, update: self.updates });
        }
        let rate = (block.rate)(recipe.schedule, recipe.rate, self.updates, total);
        // As in a whole batch: one that teaches nothing is passed, or it would be drawn again.
        self.updates = self.updates.saturating_add(1);
        self.idle = if learns { 0 } else { self.idle + 1 };
        if learns {
            block.update(backend.reference.arena(), rate, self.updates);
        }
        Ok(score)
    }
}

/// Runs the frozen blocks on the sample that is written.
type Run<'a, const ALL: bool> = &'a dyn Fn(&mut Micro<'_, ALL>, Fill<'_>) -> Result<(), Error>;

/// Samples of a source on their way through the frozen blocks and the one that is tuned. One code
/// whatever the frozen blocks are.
struct Passage<'a, 'm, 'w, S, const ALL: bool> {
    block: &'a Block<'m>,
    backend: &'a mut Micro<'w, ALL>,
    run: Run<'a, ALL>,
    source: &'a mut S,
    /// Batches done.
    updates: u32,
}

impl<'w, S: Source, const ALL: bool> Passage<'_, '_, 'w, S, ALL> {
    fn arena(&mut self) -> &mut Arena<'w> {
        self.backend.reference.arena()
    }

    /// Runs the frozen blocks and the block on a sample; gives its label.
    fn forward(&mut self, (index, draw): (u32, Option<Draw>)) -> Result<u16, Error> {
        self.block.fits(self.arena())?;
        let (source, mut label) = (&mut *self.source, 0);
        (self.run)(self.backend, &mut |raw| {
            Ok(source.read(&[index], draw, Batch::U8(raw), core::slice::from_mut(&mut label))?)
        })?;
        self.block.forward(self.backend.reference.arena(), self.updates)?;
        Ok(label)
    }

    /// As [`forward`](Self::forward), to the embedding; gives the output's norm, too, which is 1 unless
    /// embeddings are to be of unit length.
    fn embed(&mut self, sample: (u32, Option<Draw>)) -> Result<(u16, f32), Error> {
        let label = self.forward(sample)?;
        Ok((label, self.block.embed(self.arena())))
    }

    /// The sample at `place` of a batch.
    fn pick(&self, draw: Draw, place: u32) -> (u32, Option<Draw>) {
        let mut index = 0;
        let one = core::slice::from_mut(&mut index);
        self.source.pick(draw, self.block.stage.recipe.batch, place, one);
        (index, Some(draw))
    }

    /// The gradients of a batch, and its loss.
    fn gradients(&mut self, draw: Draw) -> Result<Score, Error> {
        let gradients = self.block.params.gradients();
        self.arena().planned::<f32>(gradients).fill(0.0);
        match self.block.goal {
            Goal::Labels { smoothing } => self.towards_labels(draw, smoothing),
            Goal::Separation { margin, .. } => self.apart(draw, margin),
        }
    }

    /// The gradient of the cross-entropy, in one pass.
    fn towards_labels(&mut self, draw: Draw, smoothing: f32) -> Result<Score, Error> {
        let (block, mut all) = (self.block, Score::<f32>::default());
        for place in 0..block.stage.recipe.batch {
            let label = self.forward(self.pick(draw, place))?;
            let [y, dy] = self.arena().planned_leases([&block.y, &block.dy]);
            let (y, dy) = (&*y.planned::<f32>(), dy.planned::<f32>());
            let own = loss::cross_entropy(y, y.len(), &[label], smoothing, Some(dy));
            if own.anchors > 0 {
                block.backward(self.arena());
            }
            all = Score {
                value: all.value + own.value,
                anchors: all.anchors + own.anchors,
                skipped: all.skipped + own.skipped,
                correct: all.correct + own.correct,
            };
        }
        let share = 1.0 / all.anchors.max(1) as f32;
        let gradients = self.arena().planned::<f32>(block.params.gradients());
        gradients.iter_mut().for_each(|g| *g *= share);
        Ok(Score { value: all.value * share, ..all })
    }

    /// The gradient of the losses of neighbours, in two passes.
    fn apart(&mut self, draw: Draw, margin: Option<f32>) -> Result<Score, Error> {
        let (block, batch) = (self.block, self.block.stage.recipe.batch);
        for place in 0..batch {
            let (label, _) = self.embed(self.pick(draw, place))?;
            let slots = [&block.y, &block.rows, &block.labels];
            let [y, rows, labels] = self.arena().planned_leases(slots);
            Kept::of(rows, block.y).write(place, y.planned());
            let labels = labels.planned::<u16>().iter_mut().skip(place as usize).take(1);
            labels.for_each(|own| *own = label);
        }
        block.mine(self.arena());
        let score = block.tally(self.arena(), margin);
        let share = match margin {
            Some(_) => 2.0 / score.anchors.max(1) as f32,
            None => 2.0,
        };
        for place in 0..batch {
            let pairs = self.arena().planned::<[u32; 4]>(block.pairs);
            let pulled = (0..).zip(pairs).any(|(anchor, pair)| {
                let pair = Pair::from_words(*pair);
                pair.complete() && [anchor, pair.same.index, pair.other.index].contains(&place)
            });
            if !pulled {
                continue;
            }
            let (_, norm) = self.embed(self.pick(draw, place))?;
            block.pull(self.arena(), place, share);
            block.embed_backward(self.arena(), norm);
            block.backward(self.arena());
        }
        Ok(score)
    }
}

impl Block<'_> {
    /// Whether the plan fits the arena: everything after this asks for slots without errors.
    fn fits(&self, arena: &Arena<'_>) -> Result<(), Error> {
        let (needed, given) = (self.bytes, arena.bytes());
        if needed > given {
            return Err(ArenaError::OutOfMemory { needed, given }.into());
        }
        Ok(())
    }

    /// Its layers with parameters: each its number, their lengths, and where they lie.
    fn layers(&self) -> impl Iterator<Item = (usize, Tensors, ParamSlots)> {
        let layers = (usize::from(self.stage.first)..).zip(self.op.lengths).zip(self.slots);
        layers.map(|((layer, lengths), slots)| (layer, lengths, slots))
    }

    /// Copies its parameters from the model and clears the optimiser. `before` says how many numbers
    /// lie before those of a frozen layer.
    fn load(
        &self,
        arena: &mut Arena<'_>,
        model: &Model<'_>,
        before: &dyn Fn(usize) -> Option<usize>,
    ) -> Result<(), Error> {
        self.fits(arena)?;
        let params = self.params;
        for slot in [params.trained(), params.measured(), params.state(0), params.state(1)] {
            arena.planned::<f32>(slot).fill(0.0);
        }
        let [own, _] = self.op.lengths;
        let before = |layer: usize| match layer.checked_sub(self.stage.first.into()) {
            None => before(layer),
            Some(0) => Some(self.before),
            Some(_) => Some(self.before + own.total() as usize),
        };
        for (layer, lengths, slots) in self.layers() {
            let stored = model.weights.find(layer, lengths, &before);
            for (role, stored) in Role::ALL.into_iter().zip(stored) {
                let slot = slots.get(role);
                let missing =
                    Error::Weights { layer, expected: slot.elements(), got: stored.len() };
                if !slot.is_empty() && !stored.widen(arena.planned(slot)) {
                    return Err(missing);
                }
            }
        }
        Ok(())
    }

    /// Copies its parameters out of the arena.
    fn store(&self, arena: &mut Arena<'_>, into: &mut [f32]) -> Result<(), Error> {
        self.fits(arena)?;
        let [own, norm] = self.op.lengths;
        let (expected, got) = ((own.total() + norm.total()) as usize, into.len());
        if got != expected {
            return Err(Error::Weights { layer: self.stage.first.into(), expected, got });
        }
        let mut rest = into;
        for (_, _, slots) in self.layers() {
            for role in Role::ALL {
                let slot = slots.get(role);
                let taken = core::mem::take(&mut rest);
                let Some((own, others)) = taken.split_at_mut_checked(slot.elements()) else {
                    break;
                };
                if !slot.is_empty() {
                    copy(arena.planned(slot), own);
                }
                rest = others;
            }
        }
        Ok(())
    }

    /// Runs the block on what the frozen ones gave.
    fn forward(&self, arena: &mut Arena<'_>, update: u32) -> Result<(), Error> {
        let layer = self.stage.first;
        arena.planned::<u8>(self.won).fill(0);
        self.op.run_trained(arena, layer.into(), &self.slots)?;
        let [ys, won] = arena.planned_leases([&self.y, &self.won]);
        let (ys, won) = (&*ys.planned::<f32>(), won.planned::<u8>());
        if !ys.iter().all(|y| y.is_finite()) {
            return Err(Error::Diverged { stage: 0, layer, update });
        }
        // No gradient passes where the activation is flat, whatever becomes of the output.
        let top = match self.op.group.activation {
            Some(Activation::Relu) => f32::INFINITY,
            Some(Activation::Relu6) => 6.0,
            _ => return Ok(()),
        };
        let flat = ys.iter().map(|y| *y <= 0.0 || *y >= top);
        won.iter_mut().zip(flat).filter(|(_, flat)| *flat).for_each(|(won, _)| *won = FLAT);
        Ok(())
    }

    /// Whether embeddings are of unit length.
    fn is_unit(&self) -> bool {
        matches!(self.goal, Goal::Separation { unit: true, .. })
    }

    /// Makes the block's output an embedding; gives the norm that it had.
    fn embed(&self, arena: &mut Arena<'_>) -> f32 {
        let y = arena.planned::<f32>(self.y);
        let (shape, mut norm) = (Shape::rows(1, y.len() as u32), [1.0]);
        if self.is_unit() {
            L2Normalise.forward(shape, y, &mut norm);
        }
        let [norm] = norm;
        norm
    }

    /// Makes the gradient of an embedding, the output of that norm, the output's.
    fn embed_backward(&self, arena: &mut Arena<'_>, norm: f32) {
        if self.is_unit() {
            let [y, dy] = arena.planned_leases([&self.y, &self.dy]);
            let (y, dy) = (&*y.planned::<f32>(), dy.planned::<f32>());
            L2Normalise.backward(Shape::rows(1, y.len() as u32), y, &[norm], dy);
        }
    }

    /// Looks up the neighbours of all embeddings of the batch: each distance is made once.
    fn mine(&self, arena: &mut Arena<'_>) {
        let leases = [&self.rows, &self.y, &self.dy, &self.labels, &self.pairs];
        let [rows, a, b, labels, pairs] = arena.planned_leases(leases);
        let (rows, a, b) = (Kept::of(rows, self.y), a.planned::<f32>(), b.planned::<f32>());
        let (labels, pairs) = (&*labels.planned::<u16>(), pairs.planned::<[u32; 4]>());
        pairs.fill(Pair::NONE.to_words());
        for (i, one) in labels.iter().enumerate() {
            rows.read(i, a);
            for (j, other) in labels.iter().enumerate().skip(i + 1) {
                rows.read(j, b);
                let dist2 = distance2(&*a, &*b);
                for (own, index) in [(i, j), (j, i)] {
                    let candidate = Nearest { index: index as u32, dist2 };
                    let Some(words) = pairs.get_mut(own) else { continue };
                    let mut pair = Pair::from_words(*words);
                    let best = if one == other { &mut pair.same } else { &mut pair.other };
                    if candidate.precedes(*best) {
                        *best = candidate;
                    }
                    *words = pair.to_words();
                }
            }
        }
    }

    /// The loss of all anchors. Those that pull at nothing lose their pairs.
    fn tally(&self, arena: &mut Arena<'_>, margin: Option<f32>) -> Score {
        let pairs = arena.planned::<[u32; 4]>(self.pairs);
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
        score
    }

    /// The gradient of the embedding at `place`: what its own pair and the pairs that it is in pull.
    fn pull(&self, arena: &mut Arena<'_>, place: u32, share: f32) {
        let [rows, dy, pairs] = arena.planned_leases([&self.rows, &self.dy, &self.pairs]);
        let (rows, dy) = (Kept::of(rows, self.y), dy.planned::<f32>());
        dy.fill(0.0);
        for (anchor, words) in (0..).zip(&*pairs.planned::<[u32; 4]>()) {
            let pair = Pair::from_words(*words);
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
                rows.add_difference([place, there], weight, dy);
            }
        }
    }

    /// Adds one sample's share to the gradients of the parameters. The output's gradient is lost.
    fn backward(&self, arena: &mut Arena<'_>) {
        let Self { op: Op { group, .. }, slots: [w, n], x, y, won, dy, .. } = self;
        let [xs, ys, won, dys, dw, db, gamma, variance] =
            arena.planned_leases([x, y, won, dy, &w.dweight, &w.dbias, &n.weight, &n.variance]);
        let (gamma, variance) = (&*gamma.planned::<f32>(), &*variance.planned::<f32>());
        let (xs, ys, won) = (&*xs.planned::<f32>(), &*ys.planned::<f32>(), &*won.planned::<u8>());
        let (dys, dw, db) = (dys.planned::<f32>(), dw.planned::<f32>(), db.planned::<f32>());
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
    }

    /// One update of the parameters, counted from 1.
    fn update(&self, arena: &mut Arena<'_>, rate: f32, update: u32) {
        let params = self.params;
        let slots = [params.trained(), params.gradients(), params.state(0), params.state(1)];
        let [p, g, first, second] = arena.planned_leases(slots.each_ref());
        let (rule, at) = (self.stage.recipe.rule, (rate, update));
        (self.update)(rule, at, p.planned(), g.planned(), first.planned(), second.planned());
    }
}

/// A place where no gradient passes; those in a window are at most 254.
const FLAT: u8 = 255;

fn copy(from: &[f32], into: &mut [f32]) {
    into.iter_mut().zip(from).for_each(|(into, from)| *into = *from);
}

/// Embeddings of a batch, row by row.
struct Kept<'a> {
    rows: Numbers<'a>,
    /// Numbers of one.
    features: usize,
}

enum Numbers<'a> {
    F32(&'a mut [f32]),
    #[cfg(feature = "f16")]
    F16(&'a mut [half::f16]),
}

impl<'a> Kept<'a> {
    /// Embeddings each as long as the block's output.
    fn of(rows: Lease<'a>, output: Slot) -> Self {
        let rows = match rows.dtype() {
            #[cfg(feature = "f16")]
            Dtype::F16 => Numbers::F16(rows.planned()),
            _ => Numbers::F32(rows.planned()),
        };
        Self { rows, features: output.elements().max(1) }
    }

    /// Row `at` as numbers.
    fn read(&self, at: usize, into: &mut [f32]) {
        let first = at * self.features;
        match &self.rows {
            Numbers::F32(rows) => copy(rows.get(first..).unwrap_or_default(), into),
            #[cfg(feature = "f16")]
            Numbers::F16(rows) => {
                let row = rows.get(first..).unwrap_or_default();
                into.iter_mut().zip(row).for_each(|(into, row)| *into = row.to_f32());
            }
        }
    }

    /// Keeps an embedding as row `at`.
    fn write(&mut self, at: u32, y: &[f32]) {
        let first = at as usize * self.features;
        match &mut self.rows {
            Numbers::F32(rows) => copy(y, rows.get_mut(first..).unwrap_or_default()),
            #[cfg(feature = "f16")]
            Numbers::F16(rows) => {
                let row = rows.get_mut(first..).unwrap_or_default();
                row.iter_mut().zip(y).for_each(|(row, y)| *row = half::f16::from_f32(*y));
            }
        }
    }

    /// Adds `weight` times the difference of two rows, the first less the second.
    fn add_difference(&self, rows: [u32; 2], weight: f32, into: &mut [f32]) {
        let [here, there] = rows.map(|row| row as usize * self.features);
        match &self.rows {
            Numbers::F32(rows) => {
                let [here, there] = [here, there].map(|at| rows.get(at..).unwrap_or_default());
                for ((into, here), there) in into.iter_mut().zip(here).zip(there) {
                    *into += weight * (*here - *there);
                }
            }
            #[cfg(feature = "f16")]
            Numbers::F16(rows) => {
                let [here, there] = [here, there].map(|at| rows.get(at..).unwrap_or_default());
                for ((into, here), there) in into.iter_mut().zip(here).zip(there) {
                    *into += weight * (here.to_f32() - there.to_f32());
                }
            }
        }
    }
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
