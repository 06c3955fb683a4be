//! The trainer: one stage at a time, one step at a call, resumable between any two.
//!
//! A [`Session`] is data. It computes nothing itself: each step asks the source for a batch, runs
//! the frozen prefix, the trained chain, the objective, the chain backward and the optimiser on
//! the backend, and counts. What a resumed run needs is its [`Progress`] and the arena's
//! parameter slots ([`Session::state`]).
//!
//! The arena of a stage, from the bottom up:
//!
//! ```text
//! parameters, gradients, optimiser state, measured parameters    plan::Params
//! labels and raw samples of each batch in flight
//! neighbour pairs
//! the batch as the chain's input, unless the raw samples are that
//! work: the prefix, some samples at a time, then the chain       the larger of both
//! where every block learns: what a block gives the next, in two places by turns
//! ```

use crate::arena::{Dtype, Layout, Slot};
use crate::backend::{
    self, Backend, EvalBlock, EvalParams, Host, HostMut, ObjectivePlace, Phase, TrainBlock,
};
use crate::error::Error;
use crate::label;
use crate::layer::{Layer, Pass, Role, Tensors};
use crate::loss::Score;
use crate::net::{Model, Net};
use crate::plan::{self, Chain, ParamSlots, PlanError, tri};
use crate::rng::{Purpose, Rng};
use crate::shape::Shape;
use crate::source::{Batch, Draw, Source};
use crate::stage::{Cut, Objective, Outcome, Stage, Stop};

/// How samples reach a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Feed {
    /// Leading layers that the source has already applied; see [`Source::depth`].
    pub depth: usize,
    /// Whether the source gives bytes; where layers were applied it always gives numbers.
    pub bytes: bool,
    /// Samples that run through the frozen prefix together. 1 needs the least memory.
    pub chunk: u32,
    /// Batches in flight, 1 or 2; see [`Backend::queue`].
    pub queue: u32,
    /// Whether frozen weights are stored in a narrower type than f32.
    pub narrow: bool,
    /// How what the layers gave lies; see [`Source::layout`].
    pub layout: Layout,
}

impl Feed {
    /// Raw bytes, one sample at a time through the prefix, one batch in flight.
    pub const BYTES: Self =
        Self { depth: 0, bytes: true, chunk: 1, queue: 1, narrow: false, layout: Layout::Nchw };

    /// What a source gives.
    pub fn of(source: &impl Source) -> Self {
        let (depth, bytes, layout) = (source.depth(), source.is_u8(), source.layout());
        Self { depth, bytes, layout, ..Self::BYTES }
    }

    const fn pass(self) -> Pass {
        if self.narrow { Pass::Narrow } else { Pass::Eval }
    }
}

/// Where everything of a stage lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagePlan {
    params: plan::Params,
    labels: [Slot; 2],
    raw: [Slot; 2],
    pairs: Slot,
    x: Slot,
    /// Where the prefix and all parts work, and the most bytes that one of them takes.
    work: (usize, usize),
    /// Bytes of the two places behind it in which parts hand on what they give, by turns.
    handed: [usize; 2],
    prefix: Option<plan::Eval>,
    /// Of the first part.
    train: plan::Train,
    feed: Feed,
}

/// Layers of a stage that errors run through together, with their head.
#[derive(Clone, Copy)]
struct Part<'m> {
    /// The first of the net's.
    first: usize,
    chain: Chain<'m>,
}

/// Part `index` of a stage; `None` behind the last.
const fn part<'m>(
    net: &Net<'m>,
    stage: &Stage<'m>,
    index: usize,
) -> Result<Option<Part<'m>>, PlanError> {
    let (first, last) = (stage.first as usize, stage.last as usize);
    let heads = match stage.cut {
        Cut::Whole if index > 0 => return Ok(None),
        Cut::Whole => {
            let chain = tri!(net.chain(first, last));
            let chain = Chain { head: stage.recipe.head, ..chain };
            return Ok(Some(Part { first, chain }));
        }
        Cut::EveryBlock(heads) => heads,
    };
    let mut before = 0;
    while let Some((start, _)) = net.block(before) {
        if start >= first {
            break;
        }
        before += 1;
    }
    let outside = PlanError::Range { first, last, layers: net.layers.len() };
    let (start, end) = match net.block(before + index) {
        Some(block) => block,
        None if index > 0 => return Ok(None),
        None => return Err(outside),
    };
    if start >= last && index > 0 {
        return Ok(None);
    }
    // A stage of blocks begins with one and ends with one.
    if (index == 0 && start != first) || end > last {
        return Err(outside);
    }
    let head = if index < heads.len() {
        heads[index]
    } else if let [.., last] = heads {
        last
    } else {
        stage.recipe.head
    };
    let chain = Chain { head, keep: end < last, ..tri!(net.chain(start, end)) };
    Ok(Some(Part { first: start, chain }))
}

/// The parameters of the first `parts` parts of a stage; of all where there are fewer.
const fn params(net: &Net<'_>, stage: &Stage<'_>, parts: usize) -> Result<plan::Params, PlanError> {
    let mut params = plan::Params::empty(0, stage.recipe.rule.slots());
    let mut index = 0;
    while index < parts {
        let Some(Part { first, chain }) = tri!(part(net, stage, index)) else { break };
        let input = tri!(net.shape(first)).with_n(stage.recipe.micro_batch());
        params = tri!(params.and(chain, input));
        index += 1;
    }
    Ok(params)
}

/// The slots below the work region.
struct Fixed {
    params: plan::Params,
    labels: [Slot; 2],
    raw: [Slot; 2],
    pairs: Slot,
    x: Slot,
    /// Behind all of these: where the work region begins.
    end: usize,
    prefix: Option<(usize, Shape)>,
}

impl Fixed {
    /// `layout` is how the chain's input lies.
    const fn new(
        net: &Net<'_>,
        stage: &Stage<'_>,
        feed: Feed,
        layout: Layout,
    ) -> Result<Self, PlanError> {
        let (first, last) = (stage.first as usize, stage.last as usize);
        let batch = stage.recipe.micro_batch();
        if feed.depth > first || first >= last || last > net.layers.len() {
            return Err(PlanError::Range { first: feed.depth, last, layers: net.layers.len() });
        }
        let (whole, parts) = (stage.recipe.batch, stage.recipe.micro_batches);
        if whole == 0 || feed.chunk == 0 {
            return Err(PlanError::Batch { size: 0 });
        }
        if parts == 0 || !whole.is_multiple_of(parts) {
            return Err(PlanError::MicroBatches { batch: whole, parts });
        }
        // Views fill whole samples, each with a label of its own.
        let views = stage.recipe.objective.views();
        if views > 1 && (!batch.is_multiple_of(views) || batch / views > 1 << 16) {
            return Err(PlanError::Batch { size: batch });
        }
        if let Some(classes) = stage.recipe.objective.written() {
            if feed.depth > 0 {
                return Err(PlanError::Raw { depth: feed.depth });
            }
            if !label::fits(&net.input, classes) {
                return Err(PlanError::Label { classes, sample: net.input.shape });
            }
        }
        if feed.queue == 0 || feed.queue > 2 {
            return Err(PlanError::Queue { batches: feed.queue });
        }
        // What layers give is never bytes.
        let bytes = feed.bytes && feed.depth == 0;
        let given = tri!(net.shape(feed.depth));
        let given_layout = if feed.depth == 0 { Layout::Nchw } else { feed.layout };
        let input = tri!(net.shape(first)).with_n(batch);
        let params = tri!(params(net, stage, usize::MAX));

        let none = Slot::EMPTY;
        let (mut labels, mut raw) = ([none; 2], [none; 2]);
        let dtype = if bytes { Dtype::U8 } else { Dtype::F32 };
        let mut end = params.bytes();
        let mut i = 0;
        while i < feed.queue as usize {
            labels[i] = Slot::vector(end, batch, Dtype::U16);
            let at = tri!(plan::past(labels[i]));
            raw[i] = Slot { at, shape: given.with_n(batch), dtype, layout: given_layout };
            end = tri!(plan::past(raw[i]));
            i += 1;
        }
        let pairs = if stage.recipe.objective.pairs() { batch } else { 0 };
        let pairs = Slot::vector(end, pairs, Dtype::Pair);
        let prefix = if feed.depth < first {
            Some((feed.depth, given.with_n(if feed.chunk < batch { feed.chunk } else { batch })))
        } else {
            None
        };
        // Numbers that need no prefix and lie as the chain's input does are that.
        let own = bytes || prefix.is_some() || given_layout as u8 != layout as u8;
        let x = Slot { at: tri!(plan::past(pairs)), shape: input, dtype: Dtype::F32, layout };
        let end = if own { tri!(plan::past(x)) } else { x.at };
        Ok(Self { params, labels, raw, pairs, x: if own { x } else { none }, end, prefix })
    }

    const fn finish(
        self,
        parts: Parts,
        prefix: Option<plan::Eval>,
        feed: Feed,
    ) -> Result<StagePlan, PlanError> {
        let Self { params, labels, raw, pairs, x, end, .. } = self;
        let Parts { train, most, handed } = parts;
        // A stage that could be laid out this far has one part at least.
        let Some(train) = train else {
            return Err(PlanError::Range { first: 0, last: 0, layers: 0 });
        };
        let most = match prefix {
            Some(plan) => larger(plan.bytes(), most),
            None => most,
        };
        let work = (end, most);
        let mut sum = end.checked_add(most);
        let mut at = 0;
        while at < handed.len() {
            sum = match sum {
                Some(sum) => sum.checked_add(handed[at]),
                None => None,
            };
            at += 1;
        }
        if sum.is_none() {
            return Err(PlanError::Overflow { layer: 0 });
        }
        Ok(StagePlan { params, labels, raw, pairs, x, work, handed, prefix, train, feed })
    }
}

/// What the parts of a stage take.
#[derive(Clone, Copy)]
struct Parts {
    /// The first one's plan.
    train: Option<plan::Train>,
    /// Bytes of the largest one's.
    most: usize,
    handed: [usize; 2],
}

impl Parts {
    const NONE: Self = Self { train: None, most: 0, handed: [0; 2] };

    /// Makes room for part `index`, and for what it hands on where it does.
    const fn and(
        self,
        index: usize,
        plan: plan::Train,
        given: Option<Slot>,
    ) -> Result<Self, PlanError> {
        let Self { train, most, mut handed } = self;
        if let Some(given) = given {
            let room = tri!(plan::past(Slot { at: 0, ..given }));
            handed[index % 2] = larger(room, handed[index % 2]);
        }
        let train = if train.is_some() { train } else { Some(plan) };
        Ok(Self { train, most: larger(plan.bytes(), most), handed })
    }
}

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

impl StagePlan {
    /// The plan of a stage on the reference backend: its memory is a constant of the program.
    ///
    /// # Errors
    /// Layers that do not fit, a range outside the net, sizes that cannot be used.
    pub const fn reference(
        net: &Net<'_>,
        stage: &Stage<'_>,
        feed: Feed,
    ) -> Result<Self, PlanError> {
        let fixed = tri!(Fixed::new(net, stage, feed, Layout::Nchw));
        let (mut parts, mut index) = (Parts::NONE, 0);
        while let Some(Part { first, chain }) = tri!(part(net, stage, index)) {
            let input = tri!(net.shape(first)).with_n(stage.recipe.micro_batch());
            let end = tri!(chain.shape(input, chain.len()));
            let scratch = stage.recipe.objective.scratch(end);
            let plan = tri!(plan::Train::reference(fixed.end, chain, input, scratch));
            let given = if chain.keep {
                let given = tri!(chain.shape(input, chain.body.len()));
                Some(Slot::new(0, given, Dtype::F32))
            } else {
                None
            };
            parts = tri!(parts.and(index, plan, given));
            index += 1;
        }
        let prefix = match fixed.prefix {
            Some((depth, input)) => {
                let chain = tri!(net.chain(depth, stage.first as usize));
                let plan = tri!(plan::Eval::reference(fixed.end, chain, input, feed.pass()));
                Some(plan)
            }
            None => None,
        };
        fixed.finish(parts, prefix, feed)
    }

    /// The plan of a stage on any backend.
    ///
    /// # Errors
    /// As [`reference`](Self::reference).
    pub fn new<B: Backend + ?Sized>(
        backend: &B,
        net: &Net<'_>,
        stage: &Stage<'_>,
        feed: Feed,
    ) -> Result<Self, PlanError> {
        let first = usize::from(stage.first);
        // As the whole prefix gives it, whatever of it is kept: both give the same bits.
        let layout = backend::layout(backend, net, first)?;
        let fixed = Fixed::new(net, stage, feed, layout)?;
        let shape = net.shape(first)?.with_n(stage.recipe.micro_batch());
        let mut x = Slot { at: 0, shape, dtype: Dtype::F32, layout };
        let (mut parts, mut index) = (Parts::NONE, 0);
        while let Some(Part { chain, .. }) = part(net, stage, index)? {
            let objective = &stage.recipe.objective;
            let plan = backend::plan_train(backend, fixed.end, &chain, x, objective)?;
            let given = if chain.keep { Some(given(backend, &chain, x)?) } else { None };
            parts = parts.and(index, plan, given)?;
            x = given.unwrap_or(x);
            index += 1;
        }
        let prefix = match fixed.prefix {
            Some((depth, input)) => {
                let chain = net.chain(depth, first)?;
                let input = Slot { shape: input, dtype: Dtype::F32, ..fixed.raw[0] };
                Some(backend::plan_eval(backend, fixed.end, &chain, input, feed.pass())?)
            }
            None => None,
        };
        fixed.finish(parts, prefix, feed)
    }

    /// The arena's size in bytes that the stage needs: exact.
    pub const fn bytes(&self) -> usize {
        let [first, second] = self.handed;
        self.work.0 + self.work.1 + first + second
    }

    /// Where part `index` hands on what it gives, which lies as `given` does.
    const fn handed(&self, index: usize, given: Slot) -> Slot {
        let first = self.work.0 + self.work.1;
        let at = if index.is_multiple_of(2) { first } else { first + self.handed[0] };
        Slot { at, ..given }
    }
}

/// Shape, type and layout of what the body of a chain under training gives.
fn given<B: Backend + ?Sized>(backend: &B, chain: &Chain<'_>, x: Slot) -> Result<Slot, PlanError> {
    let mut plan = plan::Train::new(0, x);
    for at in 0..chain.body.len() {
        let (_, needs) = backend::needs(backend, chain, at, plan.reached(), Pass::Train)?;
        plan = plan.push(needs)?;
    }
    Ok(Slot { at: x.at, ..plan.reached().x })
}

/// How far a session has come: all of its state that is not in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Progress {
    /// The stage, counted over the run.
    pub stage: u16,
    /// Calibration batches done.
    pub calibrated: u32,
    /// Passes done.
    pub epoch: u16,
    /// Updates done in this pass.
    pub step: u32,
    /// Updates done.
    pub updates: u32,
    /// Sum of the losses of this pass, one for each update.
    pub loss: f64,
    /// Sums of this pass over the batches.
    pub anchors: u64,
    /// Anchors without a partner.
    pub skipped: u64,
    /// Anchors whose nearest neighbour has their label, or samples classified rightly.
    pub correct: u64,
    /// The mean loss and the score of the pass before.
    pub last: (f32, f32),
    /// The best held-out SI judged, and passes since; see [`Session::judge`].
    pub best: Option<f32>,
    /// Passes since the best.
    pub stale: u16,
    /// The held-out SI says to stop.
    pub stopped: bool,
}

/// What one call of [`Session::step`] did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Measured statistics on one more batch.
    Calibrated {
        /// Batches done.
        done: u32,
        /// Batches in all.
        of: u32,
    },
    /// One update.
    Trained {
        /// The batch's loss and counts.
        score: Score,
        /// The rate that it was made with.
        rate: f32,
        /// Whether it was the pass's last.
        epoch_ends: bool,
    },
    /// Nothing: the stage is over.
    Done,
}

/// One stage of training.
///
/// # Example
/// A block that separates two classes of 4x4 images, with all memory on the stack:
/// ```
/// use sepal_core::arena::Word;
/// use sepal_core::layer::{BatchNorm, Conv2d, Flatten, L2Normalise, Layer, RELU};
/// use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
/// use sepal_core::optim::Rule;
/// use sepal_core::reference::Reference;
/// use sepal_core::schedule::Schedule;
/// use sepal_core::shape::Shape;
/// use sepal_core::source::{Batch, Draw, Source, SourceError};
/// use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
/// use sepal_core::train::{Feed, Session, StagePlan};
///
/// struct Stripes;
/// impl Source for Stripes {
///     fn len(&self) -> u32 { 64 }
///     fn shape(&self) -> Shape { Shape::new(1, 1, 4, 4) }
///     fn is_u8(&self) -> bool { true }
///     fn read(&mut self, at: &[u32], _: Option<Draw>, x: Batch<'_>, labels: &mut [u16])
///         -> Result<(), SourceError> {
///         let Batch::U8(x) = x else { return Err(SourceError::Batch { expected: 0, got: 0 }) };
///         for ((image, label), i) in x.chunks_exact_mut(16).zip(labels).zip(at) {
///             *label = (i % 2) as u16; // rows or columns, of a brightness that says nothing
///             for (p, pixel) in image.iter_mut().enumerate() {
///                 let stripe = if *label == 0 { p / 4 } else { p % 4 };
///                 *pixel = ((stripe as u32 + i / 2) % 2 * (i * 3 + 60)) as u8;
///             }
///         }
///         Ok(())
///     }
/// }
///
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::new(1, 1, 4, 4), normalisation: Normalisation::NONE },
///     layers: &[
///         Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(4, 3) }),
///         Layer::BatchNorm(BatchNorm::new()),
///         RELU,
///     ],
///     blocks: &[3],
///     features: 1,
/// };
/// const STAGE: Stage<'static> = Stage {
///     first: 0,
///     last: 3,
///     calibrate: true,
///     cut: Cut::Whole,
///     recipe: Recipe {
///         head: &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)],
///         objective: Objective::Separation(Loss::Margin { margin: 0.2 }),
///         epochs: 4,
///         batch: 16,
///         micro_batches: 1,
///         rule: Rule::adam(),
///         rate: 0.01,
///         schedule: Schedule::Cosine { warmup: 0 },
///         stop: Stop::Never,
///     },
/// };
/// const PLAN: StagePlan = match StagePlan::reference(&NET, &STAGE, Feed::BYTES) {
///     Ok(plan) => plan,
///     Err(_) => panic!("the net does not fit its input"),
/// };
/// const _: () = assert!(PLAN.bytes() <= 8192, "the block does not fit the board");
///
/// let mut memory = [Word::ZERO; PLAN.bytes() / Word::BYTES];
/// let mut backend = Reference::new(&mut memory);
/// let mut weights = [0.0; 44]; // 4 x 3 x 3, 4 means, 4 variances
/// sepal_core::init::weights(&NET, 7, &mut weights);
/// let model = Model { net: NET, weights: Weights::Flat(&weights) };
/// let mut session = Session::new(NET, STAGE, PLAN, 7, 0);
/// session.load(&mut backend, &model)?;
/// let outcome = session.run(&mut backend, &model, &mut Stripes, |_| ())?;
/// assert!(outcome.score > 0.8, "SI within the batches {}", outcome.score);
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Session<'m> {
    net: Net<'m>,
    stage: Stage<'m>,
    plan: StagePlan,
    seed: u64,
    progress: Progress,
    /// The part of a batch that each place of the queue holds, as (epoch, step, part).
    loaded: [Option<(u16, u32, u32)>; 2],
}

/// Places of a batch that are read together.
#[derive(Clone, Copy)]
struct Places {
    at: u32,
    n: u32,
    labels: Labels,
}

/// What the labels of samples that are read become.
#[derive(Clone, Copy)]
enum Labels {
    /// Those of the source.
    Given,
    /// The samples' own numbers in the batch.
    Own,
    /// The source's, or where they are to be wrong others, drawn with the seed; written into the samples,
    /// the first of which is sample `from` of the batch.
    Written { classes: u32, wrong: bool, from: u32 },
}

impl<'m> Session<'m> {
    /// Stage number `index` of a run, before its first step. Call [`load`](Self::load) next.
    pub const fn new(
        net: Net<'m>,
        stage: Stage<'m>,
        plan: StagePlan,
        seed: u64,
        index: u16,
    ) -> Self {
        let progress = Progress {
            stage: index,
            calibrated: 0,
            epoch: 0,
            step: 0,
            updates: 0,
            loss: 0.0,
            anchors: 0,
            skipped: 0,
            correct: 0,
            last: (0.0, 0.0),
            best: None,
            stale: 0,
            stopped: false,
        };
        Self { net, stage, plan, seed, progress, loaded: [None; 2] }
    }

    /// How far it has come.
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The stage.
    pub const fn stage(&self) -> &Stage<'m> {
        &self.stage
    }

    /// Goes on where another session was. Restore the slots of [`state`](Self::state) too.
    pub const fn resume(&mut self, progress: Progress) {
        self.progress = progress;
        self.loaded = [None; 2];
    }

    /// The slots that a resumed run needs beside [`Progress`]: trained parameters, measured
    /// ones, and the optimiser's state, all f32. Empty where there is none.
    pub const fn state(&self) -> [Slot; 4] {
        let params = self.plan.params;
        [params.trained(), params.measured(), params.state(0), params.state(1)]
    }

    /// The parts of the stage, with where their parameters lie and what reaches them.
    fn part(&self, index: usize) -> Result<Option<(Part<'m>, plan::Params, Shape)>, PlanError> {
        let Some(part) = part(&self.net, &self.stage, index)? else { return Ok(None) };
        let before = params(&self.net, &self.stage, index)?;
        let input = self.net.shape(part.first)?.with_n(self.stage.recipe.micro_batch());
        Ok(Some((part, self.plan.params.behind(before), input)))
    }

    /// Copies the stage's parameters from the model into the arena, draws those of its head,
    /// clears the optimiser, and has the frozen prefix prepared.
    ///
    /// # Errors
    /// An arena that is too small (both sizes are named), weights that are missing.
    pub fn load<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        model: &Model<'_>,
    ) -> Result<(), Error> {
        let (needed, given) = (self.plan.bytes(), backend.bytes());
        if needed > given {
            return Err(crate::arena::ArenaError::OutOfMemory { needed, given }.into());
        }
        for slot in self.state() {
            backend.zero(slot)?;
        }
        let mut index = 0;
        while let Some((part, params, shape)) = self.part(index)? {
            self.load_part(backend, model, (index, part), params, shape)?;
            index += 1;
        }
        self.prepare(backend, model)
    }

    fn load_part<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        model: &Model<'_>,
        (part, Part { first, chain }): (usize, Part<'_>),
        params: plan::Params,
        mut shape: Shape,
    ) -> Result<(), Error> {
        let mut walk = params.walk();
        for at in 0..chain.len() {
            let (layer, tensors, slots) = next_params(&mut walk, &chain, at, shape)?;
            let index = first + at;
            let stored = model.weights.layer(&self.net, index);
            for (role, stored) in Role::ALL.into_iter().zip(stored) {
                let slot = slots.get(role);
                if slot.is_empty() {
                    continue;
                }
                let expected = tensors.len(role) as usize;
                let missing = Error::Weights { layer: index, expected, got: stored.len() };
                backend.fill(slot, &mut |host| {
                    let HostMut::F32(host) = host else { return Err(missing) };
                    if at >= chain.body.len() {
                        // The head is drawn anew in every stage, another for each block.
                        let key = crate::init::key(part << 16 | at, role);
                        let stage = 1 + u32::from(self.progress.stage);
                        let draw = Rng::new(self.seed, Purpose::Weights, stage, key);
                        crate::init::tensor(layer, shape, role, draw, host);
                    } else if !stored.widen(host) {
                        return Err(missing);
                    }
                    Ok(())
                })?;
            }
            shape = layer.output(shape).ok_or(PlanError::Shape { layer: at, input: shape })?;
        }
        Ok(())
    }

    /// Has the frozen prefix prepared; [`load`](Self::load) does, a resumed session must ask.
    ///
    /// # Errors
    /// Those of [`Backend::prepare`].
    pub fn prepare<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        model: &Model<'_>,
    ) -> Result<(), Error> {
        if self.plan.feed.depth < usize::from(self.stage.first) {
            backend.prepare(model, self.plan.feed.depth, usize::from(self.stage.first))?;
        }
        Ok(())
    }

    /// Copies one trained or measured tensor of a layer of the net (not of the head) to the host.
    ///
    /// # Errors
    /// A layer that the stage does not train, or memory of another length than the tensor's.
    pub fn save<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        layer: usize,
        role: Role,
        into: &mut [f32],
    ) -> Result<(), Error> {
        let mut index = 0;
        while let Some((part, params, mut shape)) = self.part(index)? {
            let mut walk = params.walk();
            for at in 0..part.chain.body.len() {
                let (own, _, slots) = next_params(&mut walk, &part.chain, at, shape)?;
                if part.first + at == layer {
                    return match slots.get(role) {
                        slot if slot.is_empty() && into.is_empty() => Ok(()),
                        slot => backend.read(slot, HostMut::F32(into)),
                    };
                }
                shape = own.output(shape).ok_or(PlanError::Shape { layer: at, input: shape })?;
            }
            index += 1;
        }
        let (first, last) = (usize::from(self.stage.first), usize::from(self.stage.last));
        Err(PlanError::Range { first, last, layers: layer }.into())
    }

    /// Copies all parameters of the stage's layers into the net's flat weights.
    ///
    /// # Errors
    /// Weights of another length than the net's.
    pub fn store<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        weights: &mut [f32],
    ) -> Result<(), Error> {
        let (first, last) = (usize::from(self.stage.first), usize::from(self.stage.last));
        let expected = self.net.params(self.net.layers.len())?;
        if weights.len() != expected {
            return Err(Error::Weights { layer: last, expected, got: weights.len() });
        }
        let mut rest = weights.get_mut(self.net.params(first)?..).unwrap_or_default();
        for layer in first..last {
            let shape = self.net.shape(layer)?;
            let tensors = self.net.layers.get(layer).and_then(|l| l.tensors(shape));
            for role in Role::ALL {
                let len = tensors.unwrap_or_default().len(role) as usize;
                let taken = core::mem::take(&mut rest);
                let Some((own, others)) = taken.split_at_mut_checked(len) else { break };
                if len > 0 {
                    self.save(backend, layer, role, own)?;
                }
                rest = others;
            }
        }
        Ok(())
    }

    /// How many layers run while statistics are measured; 0 where none are.
    fn calibrated_layers(&self) -> Result<usize, Error> {
        let Some((Part { chain, .. }, ..)) = self.part(0)? else { return Ok(0) };
        let standardises = |at: &usize| matches!(chain.get(*at), Some(Layer::Standardise(_)));
        if self.stage.cut != Cut::Whole {
            // Those of later blocks would be measured behind blocks that still move.
            let measures = self.stage.recipe.objective == Objective::Statistics;
            return match measures {
                true => Err(Error::Unsupported("measuring statistics of every block at once")),
                false => Ok(0),
            };
        }
        let count = (0..chain.len()).filter(standardises).count();
        // The second would be measured behind a first that still moves.
        if count > 1 && self.stage.calibrate {
            return Err(Error::Unsupported("measuring two standardisation layers in one stage"));
        }
        if self.stage.recipe.objective == Objective::Statistics {
            return Ok(chain.len());
        }
        let last = (0..chain.len()).rev().find(standardises);
        Ok(last.filter(|_| self.stage.calibrate).map_or(0, |at| at + 1))
    }

    /// Samples of a batch, each in as many places as it has views.
    const fn samples(&self) -> u32 {
        self.stage.recipe.batch / self.stage.recipe.objective.views()
    }

    /// Those of one of its parts.
    const fn samples_of_part(&self) -> u32 {
        self.stage.recipe.micro_batch() / self.stage.recipe.objective.views()
    }

    /// Updates in one pass over `samples`: whole batches only.
    pub const fn steps(&self, samples: u32) -> u32 {
        match samples.checked_div(self.samples()) {
            Some(steps) => steps,
            None => 0,
        }
    }

    /// One step. `model` holds the frozen prefix; `source` gives the same samples for the same
    /// draw, in this run and in one that resumes it.
    ///
    /// # Errors
    /// Two standardisation layers to be measured in one stage, statistics of blocks that each learn
    /// for themselves, a source of another shape or with fewer samples than one batch, a failed
    /// read, a loss that is not a number, a pass in which no anchor could be used. The session is
    /// as it was before the step, the trained parameters too; running statistics may have followed
    /// the batch.
    pub fn step<B: Backend + ?Sized, S: Source>(
        &mut self,
        backend: &mut B,
        model: &Model<'_>,
        source: &mut S,
    ) -> Result<Step, Error> {
        let recipe = self.stage.recipe;
        let expected = self.net.shape(self.plan.feed.depth)?;
        if source.shape() != expected {
            return Err(Error::Sample { expected, got: source.shape() });
        }
        let samples = source.len();
        if samples < self.samples() {
            return Err(Error::TooFew { samples, needed: self.samples() });
        }
        let calibrated = self.calibrated_layers()?;
        let batches =
            if calibrated == 0 { 0 } else { samples.div_ceil(recipe.micro_batch().max(1)) };
        if self.progress.calibrated < batches {
            self.calibrate(backend, model, source, calibrated)?;
            return Ok(Step::Calibrated { done: self.progress.calibrated, of: batches });
        }
        let trains = recipe.objective != Objective::Statistics;
        if !trains || self.progress.epoch >= recipe.epochs || self.progress.stopped {
            return Ok(Step::Done);
        }

        let steps = self.steps(samples);
        backend.zero(self.plan.params.gradients())?;
        let (mut score, mut learns) = (Score::default(), false);
        for part in 0..recipe.micro_batches {
            let (own, learnt) = self.accumulate(backend, model, source, part)?;
            score = Score {
                value: score.value + own.value,
                anchors: score.anchors + own.anchors,
                skipped: score.skipped + own.skipped,
                correct: score.correct + own.correct,
            };
            learns |= learnt;
        }
        score.value /= recipe.micro_batches as f32;
        let total = steps.saturating_mul(u32::from(recipe.epochs));
        let rate = recipe.schedule.rate(recipe.rate, self.progress.updates, total);
        if learns {
            let update = self.progress.updates.saturating_add(1);
            let (rule, rate) = recipe.rule.of_sum(rate, recipe.micro_batches);
            backend.update(&rule, rate, update, self.plan.params)?;
        }
        // The next batch is copied while the device still computes this one.
        if self.plan.feed.queue > 1 {
            let Progress { epoch, step, .. } = self.progress;
            let next =
                if step + 1 < steps { (epoch, step + 1) } else { (epoch.saturating_add(1), 0) };
            if next.0 < recipe.epochs {
                // This update is made: a failed read is for the next step, which reads again.
                let place = self.place(self.progress.updates.wrapping_add(1), 0);
                self.draw(backend, source, (next.0, next.1, 0), place).ok();
            }
        }
        let epoch_ends = self.count(score, steps)?;
        Ok(Step::Trained { score, rate, epoch_ends })
    }

    /// The place of the queue for a part of update `update`.
    const fn place(&self, update: u32, part: u32) -> usize {
        let parts = self.stage.recipe.micro_batches as u64;
        match (update as u64 * parts + part as u64).checked_rem(self.plan.feed.queue as u64) {
            Some(place) => place as usize,
            None => 0,
        }
    }

    /// Runs one part of a batch forward and backward; its gradients come to those of the parts before.
    /// Says its score, and whether any anchor had one.
    fn accumulate<B: Backend + ?Sized, S: Source>(
        &mut self,
        backend: &mut B,
        model: &Model<'_>,
        source: &mut S,
        part: u32,
    ) -> Result<(Score, bool), Error> {
        let recipe = self.stage.recipe;
        let Progress { epoch, step, updates, .. } = self.progress;
        let place = self.place(updates, part);
        self.draw(backend, source, (epoch, step, part), place)?;
        // The batch is used up: a step that fails from here on reads it again.
        if let Some(loaded) = self.loaded.get_mut(place) {
            *loaded = None;
        }
        let x = self.input_slot(backend, model, place, recipe.micro_batch())?;
        let phase = Phase::Train {
            seed: self.seed ^ u64::from(self.progress.stage) << 48,
            update: updates.wrapping_mul(recipe.micro_batches).wrapping_add(part),
        };
        let (mut x, mut index, mut score, mut learns) = (x, 0, Score::default(), false);
        while let Some((part, params, _)) = self.part(index)? {
            let plan = match index {
                0 => self.plan.train,
                _ => {
                    let (at, objective) = (self.plan.work.0, &recipe.objective);
                    backend::plan_train(backend, at, &part.chain, x, objective)?
                }
            };
            let block = TrainBlock { chain: part.chain, params, plan, x, phase };
            let features = backend.forward_block(&block, block.chain.len())?;
            let (at, given) = self.objective_place(backend, &block, features, place)?;
            if block.chain.keep {
                x = self.plan.handed(index, given);
                backend.copy(given, x)?;
            }
            let own = backend.objective(&recipe.objective, &at)?;
            // Losses leave out what is not finite, so a batch without anchors is looked at.
            if own.anchors == 0 {
                self.check_finite(backend, features, part.first)?;
            } else {
                backend.backward_block(&block)?;
                learns = true;
            }
            // All blocks' losses; of the counts, those of the last.
            score = Score { value: score.value + own.value, ..own };
            index += 1;
        }
        Ok((score, learns))
    }

    fn check_finite<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        features: Slot,
        first: usize,
    ) -> Result<(), Error> {
        let diverged = Error::Diverged {
            stage: self.progress.stage,
            layer: first as u16,
            update: self.progress.updates,
        };
        const PIECE: usize = 64;
        let mut piece = [0.0; PIECE];
        let mut done = 0;
        while done < features.elements() {
            let count = (features.elements() - done).min(PIECE);
            let at = features.at + done * Dtype::F32.size();
            let numbers = piece.get_mut(..count).unwrap_or_default();
            backend.read(Slot::vector(at, count as u32, Dtype::F32), HostMut::F32(numbers))?;
            if !numbers.iter().all(|x| x.is_finite()) {
                return Err(diverged);
            }
            done += count;
        }
        Ok(())
    }

    /// Adds a batch's score to the pass; says whether the pass is over. A resumed run may have counted
    /// anything.
    fn count(&mut self, score: Score, steps: u32) -> Result<bool, Error> {
        let p = &mut self.progress;
        if p.step.saturating_add(1) >= steps && p.anchors == 0 && score.anchors == 0 {
            return Err(Error::NoAnchor { stage: p.stage, update: p.updates });
        }
        p.loss += f64::from(score.value);
        p.anchors = p.anchors.saturating_add(u64::from(score.anchors));
        p.skipped = p.skipped.saturating_add(u64::from(score.skipped));
        p.correct = p.correct.saturating_add(u64::from(score.correct));
        p.updates = p.updates.saturating_add(1);
        p.step = p.step.saturating_add(1);
        if p.step < steps {
            return Ok(false);
        }
        let counted = p.anchors.saturating_add(p.skipped).max(1) as f64;
        p.last = ((p.loss / f64::from(steps.max(1))) as f32, (p.correct as f64 / counted) as f32);
        (p.loss, p.anchors, p.skipped, p.correct) = (0.0, 0, 0, 0);
        p.step = 0;
        p.epoch = p.epoch.saturating_add(1);
        Ok(true)
    }

    /// Tells the held-out SI after a pass. Says whether the stage goes on; see [`Stop`]. Where it
    /// does not, the weights stay those of the last pass.
    pub fn judge(&mut self, si: f32) -> bool {
        let p = &mut self.progress;
        let min_delta = match self.stage.recipe.stop {
            Stop::SiPlateau { min_delta, .. } => min_delta,
            Stop::Never => 0.0,
        };
        match p.best {
            Some(best) if si.is_nan() || si <= best + min_delta => {
                p.stale = p.stale.saturating_add(1);
            }
            _ if si.is_nan() => {}
            _ => (p.best, p.stale) = (Some(si), 0),
        }
        if let Stop::SiPlateau { patience, .. } = self.stage.recipe.stop {
            p.stopped = p.stale > patience;
        }
        !p.stopped
    }

    /// Runs to the end of the stage, telling `observe` every step.
    ///
    /// # Errors
    /// Those of [`step`](Self::step).
    pub fn run<B: Backend + ?Sized, S: Source>(
        &mut self,
        backend: &mut B,
        model: &Model<'_>,
        source: &mut S,
        mut observe: impl FnMut(&Step),
    ) -> Result<Outcome, Error> {
        loop {
            let step = self.step(backend, model, source)?;
            observe(&step);
            if step == Step::Done {
                return Ok(self.outcome());
            }
        }
    }

    /// What came of the stage so far.
    pub const fn outcome(&self) -> Outcome {
        let p = &self.progress;
        Outcome {
            first: self.stage.first,
            last: self.stage.last,
            epochs: p.epoch,
            updates: p.updates,
            loss: p.last.0,
            score: p.last.1,
            held_out: match p.best {
                Some(best) => best,
                None => -1.0,
            },
        }
    }

    /// Where the objective works, and where what the body gave lies.
    fn objective_place<B: Backend + ?Sized>(
        &self,
        backend: &B,
        block: &TrainBlock<'_>,
        features: Slot,
        place: usize,
    ) -> Result<(ObjectivePlace, Slot), Error> {
        let mut walk = block.plan.walk(block.x);
        let mut given = block.x;
        for at in 0..block.chain.len() {
            let (_, needs) =
                backend::needs(backend, &block.chain, at, walk.reached(), Pass::Train)?;
            walk.step(needs)?;
            if at + 1 == block.chain.body.len() {
                given = walk.x();
            }
        }
        let at = ObjectivePlace {
            features,
            labels: self.plan.labels.get(place).copied().unwrap_or(Slot::EMPTY),
            pairs: self.plan.pairs,
            scratch: walk.objective_scratch(),
            gradient: walk.dx(),
        };
        Ok((at, given))
    }

    /// Puts the part of a batch `when` into a place of the queue, unless it is there.
    fn draw<B: Backend + ?Sized, S: Source>(
        &mut self,
        backend: &mut B,
        source: &mut S,
        when: (u16, u32, u32),
        place: usize,
    ) -> Result<(), Error> {
        if self.loaded.get(place).copied().flatten() == Some(when) {
            return Ok(());
        }
        let views = self.stage.recipe.objective.views() as u16;
        let (samples, own) = (self.samples(), self.samples_of_part());
        let written = self.stage.recipe.objective.written();
        for view in 0..views {
            // Each view is a draw of its own, of the samples of the first; but where labels are written
            // into them these are all that differs.
            let drawn = |view| {
                let epoch = when.0.wrapping_mul(views).wrapping_add(view);
                let epoch = u32::from(self.progress.stage) << 16 | u32::from(epoch);
                Draw { seed: self.seed, epoch, step: when.1 }
            };
            let (chosen, draw) = (drawn(0), drawn(if written.is_some() { 0 } else { view }));
            let labels = match written {
                Some(classes) => Labels::Written { classes, wrong: view > 0, from: own * when.2 },
                None if views > 1 => Labels::Own,
                None => Labels::Given,
            };
            let places = Places { at: u32::from(view) * own, n: own, labels };
            self.read(backend, source, place, places, |source, first, indices| {
                source.pick(chosen, samples, own * when.2 + first, indices);
                Some(draw)
            })?;
        }
        if let Some(loaded) = self.loaded.get_mut(place) {
            *loaded = Some(when);
        }
        Ok(())
    }

    /// Reads samples into a part of a place of the queue, some at a time: indices need no memory
    /// that grows with the batch.
    fn read<B: Backend + ?Sized, S: Source>(
        &mut self,
        backend: &mut B,
        source: &mut S,
        place: usize,
        places: Places,
        mut choose: impl FnMut(&S, u32, &mut [u32]) -> Option<Draw>,
    ) -> Result<(), Error> {
        const PIECE: usize = 32;
        if let Some(loaded) = self.loaded.get_mut(place) {
            *loaded = None;
        }
        let empty = Slot::EMPTY;
        let Places { at: start, n, labels: of_samples } = places;
        let raw = self.plan.raw.get(place).copied().unwrap_or(empty).samples(start, n);
        let labels = self.plan.labels.get(place).copied().unwrap_or(empty);
        let mut first = 0;
        while first < n {
            let count = (n - first).min(PIECE as u32);
            let mut indices = [0; PIECE];
            let indices = indices.get_mut(..count as usize).unwrap_or_default();
            let mut own = [0; PIECE];
            let own = own.get_mut(..count as usize).unwrap_or_default();
            let draw = choose(source, first, indices);
            let (seed, input, samples) = (self.seed, self.net.input, self.samples());
            backend.fill(raw.samples(first, count).flat(), &mut |host| {
                let mut batch = match host {
                    HostMut::F32(x) => Batch::F32(x),
                    HostMut::U8(x) => Batch::U8(x),
                    _ => return Err(Error::Unsupported("raw samples of this type")),
                };
                source.read(indices, draw, batch.again(), own)?;
                if let Labels::Written { classes, wrong, from } = of_samples {
                    if let Some(Draw { epoch, step, .. }) = draw.filter(|_| wrong) {
                        let at = step.wrapping_mul(samples).wrapping_add(from).wrapping_add(first);
                        for (at, label) in
                            (0..count).map(|i| at.wrapping_add(i)).zip(own.iter_mut())
                        {
                            let rng = Rng::new(seed, Purpose::Label, epoch, at);
                            *label = label::wrong(*label, classes, rng);
                        }
                    }
                    label::write(&input, classes, own, batch);
                }
                Ok(())
            })?;
            if matches!(of_samples, Labels::Own) {
                (first..).zip(own.iter_mut()).for_each(|(sample, label)| *label = sample as u16);
            }
            let at = labels.at + (start + first) as usize * Dtype::U16.size();
            backend.write(Slot::vector(at, count, Dtype::U16), Host::U16(own))?;
            first += count;
        }
        Ok(())
    }

    /// The batch at `place` as the chain's input: widened, and run through the prefix.
    fn input_slot<B: Backend + ?Sized>(
        &mut self,
        backend: &mut B,
        model: &Model<'_>,
        place: usize,
        n: u32,
    ) -> Result<Slot, Error> {
        let raw = self.plan.raw.get(place).copied().unwrap_or(Slot::EMPTY).head(n);
        let norm = &self.net.input.normalisation;
        let Some(plan) = self.plan.prefix else {
            let x = if self.plan.x.is_empty() { raw } else { self.plan.x.head(n) };
            if self.plan.feed.depth == 0 {
                backend.widen(raw, norm, x)?;
            } else if x.at != raw.at {
                backend.copy(raw, x)?;
            }
            return Ok(x);
        };
        let (depth, first) = (self.plan.feed.depth, usize::from(self.stage.first));
        let chain = self.net.chain(depth, first)?;
        let params = EvalParams::Model { model: *model, first: depth };
        let mut done = 0;
        while done < n {
            let count = (n - done).min(plan.input().shape.n);
            let (raw, x) = (raw.samples(done, count), plan.input().head(count));
            if depth == 0 {
                backend.widen(raw, norm, x)?;
            } else {
                backend.copy(raw, x)?;
            }
            let pass = self.plan.feed.pass();
            let y = backend.eval_block(&EvalBlock { chain, params, plan, pass, n: count })?;
            backend.copy(y, self.plan.x.samples(done, count))?;
            done += count;
        }
        Ok(self.plan.x.head(n))
    }

    /// Measures statistics on one more batch, in the order of the source, the last one partial.
    fn calibrate<B: Backend + ?Sized, S: Source>(
        &mut self,
        backend: &mut B,
        model: &Model<'_>,
        source: &mut S,
        layers: usize,
    ) -> Result<(), Error> {
        let batch = self.stage.recipe.micro_batch();
        let seen = self.progress.calibrated.saturating_mul(batch);
        let n = source.len().saturating_sub(seen).min(batch);
        let places = Places { at: 0, n, labels: Labels::Given };
        self.read(backend, source, 0, places, |_, first, indices| {
            for (i, index) in indices.iter_mut().enumerate() {
                *index = seen.saturating_add(first).saturating_add(i as u32);
            }
            None
        })?;
        let x = self.input_slot(backend, model, 0, n)?;
        if let Some((Part { chain, .. }, params, _)) = self.part(0)? {
            let (plan, phase) = (self.plan.train, Phase::Calibrate { seen });
            backend.forward_block(&TrainBlock { chain, params, plan, x, phase }, layers)?;
        }
        self.progress.calibrated += 1;
        Ok(())
    }
}

fn next_params<'m>(
    walk: &mut plan::ParamsWalk,
    chain: &Chain<'m>,
    at: usize,
    shape: Shape,
) -> Result<(&'m Layer, Tensors, ParamSlots), PlanError> {
    let impossible = PlanError::Shape { layer: at, input: shape };
    let layer = chain.get(at).ok_or(impossible)?;
    let tensors = layer.tensors(shape).ok_or(impossible)?;
    Ok((layer, tensors, walk.step(tensors)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Dense, GlobalAvgPool, Standardise};
    use crate::net::{Input, Normalisation, Weights};
    use crate::optim::Rule;
    use crate::reference::Reference;
    use crate::schedule::Schedule;
    use crate::stage::Recipe;
    use std::vec;
    use std::vec::Vec;

    const HEAD: &[Layer] = &[Layer::Dense(Dense { units: 3, bias: true })];
    const RECIPE: Recipe<'static> = Recipe {
        head: HEAD,
        objective: Objective::CrossEntropy { smoothing: 0.0 },
        epochs: 1,
        batch: 4,
        micro_batches: 1,
        rule: Rule::sgd(),
        rate: 0.1,
        schedule: Schedule::Constant,
        stop: Stop::Never,
    };
    const STAGE: Stage<'static> =
        Stage { first: 0, last: 1, calibrate: false, cut: Cut::Whole, recipe: RECIPE };
    const NET: Net<'static> = Net {
        input: Input { shape: Shape::new(1, 8, 256, 256), normalisation: Normalisation::NONE },
        layers: &[Layer::GlobalAvgPool(GlobalAvgPool)],
        blocks: &[1],
        features: 1,
    };

    #[test]
    fn samples_that_no_slot_can_hold_are_refused() {
        for (batch, fits) in [(8191, true), (8192, false), (u32::MAX, false)] {
            let stage = Stage { recipe: Recipe { batch, ..RECIPE }, ..STAGE };
            for bytes in [true, false] {
                let plan = StagePlan::reference(&NET, &stage, Feed { bytes, ..Feed::BYTES });
                assert_eq!(plan.is_ok(), fits, "{batch}: {plan:?}");
                assert!(fits || matches!(plan, Err(PlanError::Overflow { .. })));
            }
        }
    }

    #[test]
    fn a_queue_is_of_one_or_two() {
        for queue in [0, 3, u32::MAX] {
            let plan = StagePlan::reference(&NET, &STAGE, Feed { queue, ..Feed::BYTES });
            assert_eq!(plan, Err(PlanError::Queue { batches: queue }));
        }
    }

    #[test]
    fn standardisation_is_measured_once_in_a_stage() {
        const LAYERS: &[Layer] =
            &[Layer::Standardise(Standardise), Layer::GlobalAvgPool(GlobalAvgPool)];
        let net = Net { layers: LAYERS, blocks: &[2], ..NET };
        let calibrated = |last: u16, head, calibrate| {
            let recipe = Recipe { batch: 1, head, ..RECIPE };
            let stage = Stage { first: 0, last, calibrate, cut: Cut::Whole, recipe };
            let plan = StagePlan::reference(&net, &stage, Feed::BYTES).unwrap();
            Session::new(net, stage, plan, 0, 0).calibrated_layers()
        };
        const AGAIN: &[Layer] = &[Layer::Standardise(Standardise), HEAD[0]];
        assert_eq!(calibrated(2, HEAD, true), Ok(1));
        assert_eq!(calibrated(2, HEAD, false), Ok(0));
        assert_eq!(calibrated(2, AGAIN, false), Ok(0));
        assert!(matches!(calibrated(2, AGAIN, true), Err(Error::Unsupported(_))));
    }

    /// What layers give are numbers: a source that would give them as bytes is refused, not read
    /// as if its bytes had been widened.
    #[test]
    fn features_are_never_bytes() {
        struct Bytes;
        impl Source for Bytes {
            fn len(&self) -> u32 {
                4
            }
            fn shape(&self) -> Shape {
                Shape::rows(1, 8)
            }
            fn is_u8(&self) -> bool {
                true
            }
            fn depth(&self) -> usize {
                1
            }
            fn read(
                &mut self,
                _: &[u32],
                _: Option<Draw>,
                x: Batch<'_>,
                _: &mut [u16],
            ) -> Result<(), crate::source::SourceError> {
                match x {
                    Batch::U8(_) => Ok(()),
                    Batch::F32(x) => {
                        let got = x.len() as u32;
                        Err(crate::source::SourceError::Batch { expected: 0, got })
                    }
                }
            }
        }
        let layers = [NET.layers[0], Layer::Dense(Dense::new(3))];
        let net = Net { layers: &layers, blocks: &[1, 2], ..NET };
        let stage = Stage { first: 1, last: 2, recipe: Recipe { head: &[], ..RECIPE }, ..STAGE };
        let plan = StagePlan::reference(&net, &stage, Feed::of(&Bytes)).unwrap();
        let mut memory = vec![crate::arena::Word::NAN; plan.bytes() / 16];
        let mut backend = Reference::new(&mut memory);
        let model = Model { net, weights: Weights::Flat(&[0.5; 27]) };
        let mut session = Session::new(net, stage, plan, 0, 0);
        session.load(&mut backend, &model).unwrap();
        let step = session.step(&mut backend, &model, &mut Bytes);
        assert!(matches!(step, Err(Error::Source(_))), "{step:?}");
    }

    #[test]
    fn each_tensor_of_a_head_is_drawn_anew() {
        let net = Net { input: Input { shape: Shape::new(1, 2, 4, 4), ..NET.input }, ..NET };
        let drawn = |index| -> Vec<f32> {
            let plan = StagePlan::reference(&net, &STAGE, Feed::BYTES).unwrap();
            let mut memory = vec![crate::arena::Word::NAN; plan.bytes() / 16];
            let mut backend = Reference::new(&mut memory);
            let model = Model { net, weights: Weights::Flat(&[]) };
            let mut session = Session::new(net, STAGE, plan, 7, index);
            session.load(&mut backend, &model).unwrap();
            let trained = session.state()[0];
            let mut numbers = vec![0.0; trained.elements()];
            backend.read(trained, HostMut::F32(&mut numbers)).unwrap();
            // Six weights and three biases, each rounded up to whole words.
            [&numbers[..6], &numbers[8..11]].concat()
        };
        let mut all = [drawn(0), drawn(1)].concat();
        all.sort_by(f32::total_cmp);
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }

    /// A batch of views holds each of its samples twice, drawn twice, with a label of its own.
    #[test]
    fn views_are_two_draws_of_each_sample() {
        struct Drawn(Vec<(Draw, Vec<u32>)>);
        impl Source for Drawn {
            fn len(&self) -> u32 {
                40
            }
            fn shape(&self) -> Shape {
                Shape::rows(1, 2)
            }
            fn is_u8(&self) -> bool {
                false
            }
            fn read(
                &mut self,
                indices: &[u32],
                draw: Option<Draw>,
                x: Batch<'_>,
                labels: &mut [u16],
            ) -> Result<(), crate::source::SourceError> {
                let Batch::F32(x) = x else { panic!("bytes") };
                let draw = draw.unwrap();
                for (x, &index) in x.chunks_exact_mut(2).zip(indices) {
                    x.copy_from_slice(&[index as f32, draw.epoch as f32]);
                }
                labels.fill(7);
                self.0.push((draw, indices.to_vec()));
                Ok(())
            }
        }
        let layers = [Layer::Dense(Dense::new(2))];
        let input = Input { shape: Shape::rows(1, 2), ..NET.input };
        let net = Net { input, layers: &layers, ..NET };
        let objective = Objective::Views(crate::stage::Loss::SoftNearest { temperature: 1.0 });
        let recipe = Recipe { objective, head: &[], epochs: 2, batch: 72, ..RECIPE };
        let stage = Stage { recipe, ..STAGE };
        let feed = Feed { bytes: false, ..Feed::BYTES };
        for (batch, fits) in [(71, false), (1 << 17, true), ((1 << 17) + 2, false)] {
            let stage = Stage { recipe: Recipe { batch, ..recipe }, ..stage };
            let plan = StagePlan::reference(&net, &stage, feed);
            assert!(plan.is_ok() == fits, "{batch}: {plan:?}");
            assert!(fits || plan == Err(PlanError::Batch { size: batch }));
        }

        let plan = StagePlan::reference(&net, &stage, feed).unwrap();
        let mut memory = vec![crate::arena::Word::NAN; plan.bytes() / 16];
        let mut backend = Reference::new(&mut memory);
        let model = Model { net, weights: Weights::Flat(&[0.5; 6]) };
        let mut session = Session::new(net, stage, plan, 0, 3);
        session.load(&mut backend, &model).unwrap();
        let mut source = Drawn(Vec::new());
        assert_eq!(session.steps(source.len()), 1);
        for epoch in 0..2 {
            session.step(&mut backend, &model, &mut source).unwrap();
            // 36 samples, 32 at a time.
            let reads = source.0.split_off(0);
            let samples: Vec<usize> = reads.iter().map(|(_, indices)| indices.len()).collect();
            assert_eq!(samples, [32, 4, 32, 4]);
            assert_eq!((&reads[0].1, &reads[1].1), (&reads[2].1, &reads[3].1));
            let epochs: Vec<u32> = reads.iter().map(|(draw, _)| draw.epoch).collect();
            assert_eq!(epochs, [0, 0, 1, 1].map(|view| 3 << 16 | (2 * epoch + view)));
            let mut labels = vec![0; 72];
            backend.read(session.plan.labels[0], HostMut::U16(&mut labels)).unwrap();
            assert!(labels.iter().copied().eq((0..36).chain(0..36)));
        }
    }

    /// A batch of the forward-forward algorithm holds each of its samples twice, drawn once: with its
    /// label, then with another, which is drawn anew in each pass and the same after a resume.
    #[test]
    fn labels_are_written_into_two_copies_of_each_sample() {
        struct Drawn(Vec<(Draw, Vec<u32>)>);
        impl Source for Drawn {
            fn len(&self) -> u32 {
                40
            }
            fn shape(&self) -> Shape {
                Shape::rows(1, 4)
            }
            fn is_u8(&self) -> bool {
                false
            }
            fn read(
                &mut self,
                indices: &[u32],
                draw: Option<Draw>,
                x: Batch<'_>,
                labels: &mut [u16],
            ) -> Result<(), crate::source::SourceError> {
                let Batch::F32(x) = x else { panic!("bytes") };
                for ((x, label), &index) in x.chunks_exact_mut(4).zip(labels).zip(indices) {
                    x.fill(index as f32 + 9.0);
                    *label = (index % 3) as u16;
                }
                self.0.push((draw.unwrap(), indices.to_vec()));
                Ok(())
            }
        }
        let layers = [Layer::Dense(Dense::new(2))];
        let input = Input { shape: Shape::rows(1, 4), ..NET.input };
        let net = Net { input, layers: &layers, ..NET };
        let objective = |classes| Objective::Goodness { threshold: 1.0, classes };
        let recipe = Recipe { objective: objective(3), head: &[], epochs: 2, ..RECIPE };
        let feed = Feed { bytes: false, ..Feed::BYTES };
        let batches = |batch, micro_batches| {
            let stage = Stage { recipe: Recipe { batch, micro_batches, ..recipe }, ..STAGE };
            let plan = StagePlan::reference(&net, &stage, feed).unwrap();
            let mut memory = vec![crate::arena::Word::NAN; plan.bytes() / 16];
            let mut backend = Reference::new(&mut memory);
            let model = Model { net, weights: Weights::Flat(&[0.5; 10]) };
            let mut session = Session::new(net, stage, plan, 0, 3);
            session.load(&mut backend, &model).unwrap();
            let mut source = Drawn(Vec::new());
            let mut read = |session: &mut Session<'_>, part| {
                let (epoch, step) = (session.progress.epoch, session.progress.step);
                session.loaded = [None; 2];
                session.draw(&mut backend, &mut source, (epoch, step, part), 0).unwrap();
                let (raw, own) = (session.plan.raw[0], session.plan.labels[0]);
                let mut rows = vec![0.0; raw.elements()];
                backend.read(raw, HostMut::F32(&mut rows)).unwrap();
                let mut labels = vec![0; own.elements()];
                backend.read(own, HostMut::U16(&mut labels)).unwrap();
                (rows, labels)
            };
            let mut all = Vec::new();
            for epoch in 0..2 {
                session.progress.epoch = epoch;
                all.extend((0..micro_batches).map(|part| read(&mut session, part)));
                // Drawn again, as a resumed run would.
                assert!(all.last() == Some(&read(&mut session, micro_batches - 1)));
            }
            assert!(source.0.chunks(2).all(|two| batch > 64 || two[0] == two[1]), "{batch}");
            all
        };
        for (batch, parts) in [(24, 1), (72, 1), (24, 3)] {
            let read = batches(batch, parts);
            for (rows, labels) in &read {
                let half = rows.len() / 2;
                let rows: Vec<(&[f32], u16)> = rows.chunks(4).zip(labels.iter().copied()).collect();
                for (right, wrong) in rows.iter().take(half / 4).zip(&rows[half / 4..]) {
                    let index = right.0[3] as u32 - 9;
                    assert_eq!((right.1, wrong.0[3]), ((index % 3) as u16, right.0[3]));
                    assert!(wrong.1 != right.1 && wrong.1 < 3);
                    for (row, label) in [right, wrong] {
                        assert!(
                            (0..3).all(|k| row[k] == f32::from(u8::from(k == (*label).into())))
                        );
                    }
                }
            }
            let wrong = |at: usize| {
                let (rows, labels) = &read[at];
                let mut by_sample: Vec<(u32, u16)> = rows
                    .chunks(4)
                    .zip(labels)
                    .skip(labels.len() / 2)
                    .map(|(row, &label)| (row[3] as u32, label))
                    .collect();
                by_sample.sort_unstable();
                by_sample
            };
            assert_ne!(wrong(0), wrong(parts as usize));
        }

        let plan = |classes, depth, batch| {
            let recipe = Recipe { objective: objective(classes), batch, ..recipe };
            let layers = [layers[0], Layer::Dense(Dense::new(2))];
            let net = Net { layers: &layers, blocks: &[1, 2], ..net };
            let stage = Stage { first: 1, last: 2, recipe, ..STAGE };
            StagePlan::reference(&net, &stage, Feed { depth, ..feed }).map(|_| ())
        };
        let label = |classes| Err(PlanError::Label { classes, sample: input.shape });
        assert_eq!(plan(3, 0, 8), Ok(()));
        assert_eq!(plan(3, 1, 8), Err(PlanError::Raw { depth: 1 }));
        assert_eq!(plan(3, 0, 7), Err(PlanError::Batch { size: 7 }));
        assert_eq!((plan(5, 0, 8), plan(1, 0, 8)), (label(5), label(1)));
    }
}
