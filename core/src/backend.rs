//! The seam: what a backend does, and what it is given.
//!
//! A backend owns (or is lent) one arena. Everything that a net computes with lies there in
//! [`Slot`]s, which the host reaches only through [`Backend::read`], [`Backend::write`] and
//! [`Backend::fill`]; a device whose memory the host cannot see is a backend like any other.
//! The trait's required methods work on one layer; whole blocks have defaults that loop over the
//! layers, so that a new layer works everywhere and a backend can fuse what it likes.

use crate::arena::{ArenaError, Dtype, Layout, Slot, Word};
use crate::error::Error;
use crate::layer::{Layer, Needs, Pass};
use crate::loss::Score;
use crate::neighbour::{Nearest, Pair, Rows};
use crate::net::{Model, Net, Normalisation, Stored};
use crate::optim::Rule;
use crate::plan::{self, Chain, ParamSlots, Place, PlanError, Reached};
use crate::shape::Shape;
use crate::stage::Objective;

/// Host memory that a slot is written from.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each variant is named after the type that it holds")]
pub enum Host<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
    U16(&'a [u16]),
}

/// Host memory that a slot is read into, or staging memory that one is filled from.
#[derive(Debug)]
#[expect(missing_docs, reason = "each variant is named after the type that it holds")]
pub enum HostMut<'a> {
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
    U16(&'a mut [u16]),
    Pair(&'a mut [Pair]),
}

/// How a layer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// With frozen parameters and measured statistics.
    Eval,
    /// With batch statistics, which also move the running ones, and with dropout.
    Train {
        /// The run's seed.
        seed: u64,
        /// The update, counted over the stage: what dropout's mask depends on.
        update: u32,
    },
    /// With batch statistics, which are averaged over all samples seen.
    Calibrate {
        /// Samples before this batch.
        seen: u32,
    },
}

/// The parameters of one layer: in memory while they are trained, in the model (flash) while
/// they are frozen.
#[derive(Clone, Copy, Debug)]
pub enum Param<'a> {
    /// Slots of the arena.
    Ram(ParamSlots),
    /// Tensors of the model, in the order of [`Role::ALL`](crate::layer::Role::ALL).
    Model {
        /// The layer in its net: a backend that prepared it finds its copy by this.
        layer: usize,
        /// The stored tensors.
        tensors: [Stored<'a>; 4],
    },
}

/// One layer's work.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// Its number in the chain.
    pub index: usize,
    /// Where it works.
    pub place: Place,
    /// Its parameters.
    pub param: Param<'a>,
    /// How it runs.
    pub phase: Phase,
}

/// Frozen layers, run for their output.
#[derive(Clone, Copy, Debug)]
pub struct EvalBlock<'a> {
    /// The layers.
    pub chain: Chain<'a>,
    /// Their parameters.
    pub params: EvalParams<'a>,
    /// Where they work.
    pub plan: plan::Eval,
    /// [`Pass::Eval`] or [`Pass::Narrow`], as it was planned.
    pub pass: Pass,
    /// Samples: at most as many as were planned. They lie in the plan's input.
    pub n: u32,
}

/// Where an [`EvalBlock`] finds its parameters.
#[derive(Clone, Copy, Debug)]
pub enum EvalParams<'a> {
    /// In the arena, as a stage trains them.
    Ram(plan::Params),
    /// In a model, the chain being its layers from `first` on.
    Model {
        /// The model.
        model: Model<'a>,
        /// Its layer that is the chain's first.
        first: usize,
    },
}

/// Layers under training.
#[derive(Clone, Copy, Debug)]
pub struct TrainBlock<'a> {
    /// The layers.
    pub chain: Chain<'a>,
    /// Their parameters, gradients and optimiser state.
    pub params: plan::Params,
    /// Where they work.
    pub plan: plan::Train,
    /// The input.
    pub x: Slot,
    /// How they run.
    pub phase: Phase,
}

/// Where the objective works.
#[derive(Clone, Copy, Debug)]
pub struct ObjectivePlace {
    /// Features or logits, `(N, D, 1, 1)` or any shape of D elements a sample.
    pub features: Slot,
    /// Labels, u16.
    pub labels: Slot,
    /// Nearest neighbours, [`Pair`]: written where the objective looks them up.
    pub pairs: Slot,
    /// Scratch, as bytes.
    pub scratch: Slot,
    /// The features' gradient, overwritten.
    pub gradient: Slot,
}

/// Rows of a search: in the arena, or in the host's memory.
#[derive(Clone, Copy, Debug)]
pub enum Bank<'a> {
    /// Slots of f32 rows and of u16 labels.
    Slots {
        /// `(N, D, 1, 1)`.
        rows: Slot,
        /// N labels.
        labels: Slot,
    },
    /// A slice, such as a piece of a bank too large for the arena.
    Host(Rows<'a, f32>),
    /// As [`Host`](Self::Host), in half precision; distances are those of the widened rows. Queries
    /// and bank need not be of one type.
    #[cfg(feature = "f16")]
    Half(Rows<'a, half::f16>),
}

/// What computes. See the [module](self) for the contract.
pub trait Backend {
    /// The arena's size in bytes.
    fn bytes(&self) -> usize;

    /// How many batches are in flight: 2 where a copy overlaps with compute.
    fn queue(&self) -> u32 {
        1
    }

    /// What layer `at` of `chain` asks of the planner: layout, type and size of its output,
    /// scratch. `reached` says what reaches it: shape, type and layout (a chain's input lies as the
    /// reference's), and what it adds; places are not planned yet. Layers that are fused with the
    /// ones before them ask for a view: none of which the input is [held](Chain::held). Planners ask
    /// through [`needs`].
    fn needs(&self, chain: &Chain<'_>, at: usize, reached: Reached, pass: Pass) -> Option<Needs> {
        chain.get(at)?.needs(reached.x.shape, pass)
    }

    /// Whether a net's first layer reads raw bytes as they are, so that a plan for evaluation has an
    /// input of bytes and nothing is widened.
    fn takes_bytes(&self, net: &Net<'_>, pass: Pass) -> bool {
        let _ = (net, pass);
        false
    }

    /// Scratch bytes of an objective over `features`, of which the place is not planned yet.
    fn objective_scratch(&self, objective: &Objective, features: Slot) -> usize {
        objective.scratch(features.shape)
    }

    /// Told before frozen layers `first..last` run from `model`, and again whenever their
    /// weights changed: packs, transforms or uploads them.
    ///
    /// # Errors
    /// Weights that cannot be used, a device that failed.
    fn prepare(&mut self, model: &Model<'_>, first: usize, last: usize) -> Result<(), Error> {
        let _ = (model, first, last);
        Ok(())
    }

    /// Copies host memory into a slot, in the slot's layout.
    ///
    /// # Errors
    /// Another type or length than the slot's.
    fn write(&mut self, slot: Slot, from: Host<'_>) -> Result<(), Error>;

    /// Copies a slot into host memory, in the reference's layout. Waits for what computes it.
    ///
    /// # Errors
    /// Another type or length than the slot's.
    fn read(&mut self, slot: Slot, into: HostMut<'_>) -> Result<(), Error>;

    /// Lets the host write all of a slot: in place where the host can, else through staging
    /// memory. What it finds there is not the slot's content: nothing is copied back for it.
    ///
    /// # Errors
    /// Those of `with`.
    fn fill(
        &mut self,
        slot: Slot,
        with: &mut dyn FnMut(HostMut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error>;

    /// Sets every element to zero.
    ///
    /// # Errors
    /// A slot past the arena's end.
    fn zero(&mut self, slot: Slot) -> Result<(), Error>;

    /// Copies a slot to another of the same type and shape, in the other's layout.
    ///
    /// # Errors
    /// Slots that overlap or differ.
    fn copy(&mut self, from: Slot, to: Slot) -> Result<(), Error>;

    /// Turns raw samples (u8 or f32) into the net's input; in place where both slots are one.
    ///
    /// # Errors
    /// Slots of other types.
    fn widen(&mut self, raw: Slot, normalisation: &Normalisation, x: Slot) -> Result<(), Error>;

    /// Runs one layer forward. Reads x, writes y, what is saved, and (unless the phase is
    /// `Eval`) measured parameters.
    ///
    /// # Errors
    /// Parameters that are missing, a slot past the arena's end.
    fn forward(&mut self, call: &Call<'_>) -> Result<(), Error>;

    /// Runs one layer backward. Adds to parameter gradients, overwrites dx where there is one;
    /// dy may be overwritten. A residual addition copies dy to where y lay, which nobody reads any
    /// more: there it waits for [`backward_source`](Self::backward_source).
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn backward(&mut self, call: &Call<'_>) -> Result<(), Error>;

    /// The rest of a residual addition's backward pass, once that of the layer that reads its source
    /// first is done: adds what waits in y to the source's gradient, where there is one, and to the
    /// gradients of a projection.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn backward_source(&mut self, call: &Call<'_>) -> Result<(), Error>;

    /// The objective's value, count and gradient. Only the scalars come back to the host.
    ///
    /// # Errors
    /// A slot past the arena's end.
    fn objective(&mut self, objective: &Objective, at: &ObjectivePlace) -> Result<Score, Error>;

    /// One update of all trained parameters of a stage; `update` counts from 1.
    ///
    /// # Errors
    /// A slot past the arena's end.
    fn update(
        &mut self,
        rule: &Rule,
        rate: f32,
        update: u32,
        params: plan::Params,
    ) -> Result<(), Error>;

    /// Improves `pairs` (one for each query, at first [`Pair::NONE`]) by the rows of `bank`, of
    /// which the first has index `first`. Query i is never paired with row `i + skip`.
    ///
    /// # Errors
    /// Rows of different lengths, a device that failed.
    fn nearest(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        pairs: &mut [Pair],
    ) -> Result<(), Error>;

    /// As [`nearest`](Self::nearest), the `k` nearest of all labels, ascending.
    ///
    /// # Errors
    /// As `nearest`.
    fn top_k(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        k: usize,
        out: &mut [Nearest],
    ) -> Result<(), Error>;

    /// Runs frozen layers; the output's slot is valid until the arena is written again.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    fn eval_block(&mut self, block: &EvalBlock<'_>) -> Result<Slot, Error> {
        eval_calls(self, block, |backend, call| backend.forward(call))
    }

    /// Runs the first `upto` layers under training forward; gives the output's slot.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    fn forward_block(&mut self, block: &TrainBlock<'_>, upto: usize) -> Result<Slot, Error> {
        let mut walk = block.plan.walk(block.x);
        let mut params = block.params.walk();
        for at in 0..upto {
            let (layer, needs) = needs(self, &block.chain, at, walk.reached(), Pass::Train)?;
            let param = Param::Ram(step(&mut params, layer, walk.x().shape, at)?);
            let place = walk.step(needs)?;
            self.forward(&Call { layer, index: at, place, param, phase: block.phase })?;
        }
        Ok(walk.x())
    }

    /// Runs all layers under training backward, from the gradient of the output down to the
    /// parameters of the first. No gradient of the block's input is computed.
    ///
    /// # Errors
    /// Those of [`backward`](Self::backward).
    fn backward_block(&mut self, block: &TrainBlock<'_>) -> Result<(), Error> {
        for at in (0..block.chain.len()).rev() {
            let call = train_call(self, block, at)?;
            self.backward(&call)?;
            backward_sources(self, block, at)?;
        }
        Ok(())
    }
}

/// The call of layer `last` of a block under training.
///
/// # Errors
/// A layer that cannot take its input.
pub fn train_call<'m, B: Backend + ?Sized>(
    backend: &B,
    block: &TrainBlock<'m>,
    last: usize,
) -> Result<Call<'m>, Error> {
    let mut walk = block.plan.walk(block.x);
    let mut params = block.params.walk();
    let mut at = 0;
    loop {
        let (layer, needs) = needs(backend, &block.chain, at, walk.reached(), Pass::Train)?;
        let param = Param::Ram(step(&mut params, layer, walk.x().shape, at)?);
        let place = walk.step(needs)?;
        if at == last {
            return Ok(Call { layer, index: at, place, param, phase: block.phase });
        }
        at += 1;
    }
}

/// Adds what waits for the gradient of layer `first`'s input, once the layer has run backward; what a
/// backend does that runs several layers at once.
///
/// # Errors
/// Those of [`Backend::backward_source`].
pub fn backward_sources<B: Backend + ?Sized>(
    backend: &mut B,
    block: &TrainBlock<'_>,
    first: usize,
) -> Result<(), Error> {
    let past = first + usize::from(block.chain.held(first));
    for at in first + 1..=past {
        if block.chain.source(at)? == Some(first) {
            let call = train_call(backend, block, at)?;
            backend.backward_source(&call)?;
        }
    }
    Ok(())
}

/// Opens backends in memory that the caller allocates once a plan says how much.
pub trait Device {
    /// The backend, borrowing its memory.
    type Backend<'a>: Backend;

    /// A backend in `memory`, or with as much of a device's own. Without memory it plans, and
    /// searches rows of the host.
    ///
    /// # Errors
    /// A device that has not as much memory, or that failed.
    fn open<'a>(&self, memory: &'a mut [Word]) -> Result<Self::Backend<'a>, Error>;

    /// Samples that frozen layers run on together. More need more memory.
    fn chunk(&self) -> u32 {
        1
    }
}

/// Walks over frozen layers as they were planned by [`Backend::needs`], and has `each` run them one
/// by one, or keep the calls of some that it then runs together; gives the output's slot.
///
/// # Errors
/// Those of `each`, and a layer that cannot take its input.
pub fn eval_calls<'b, B: Backend + ?Sized>(
    backend: &mut B,
    block: &EvalBlock<'b>,
    mut each: impl FnMut(&mut B, &Call<'b>) -> Result<(), Error>,
) -> Result<Slot, Error> {
    let mut walk = block.plan.walk(block.n);
    let mut params = match block.params {
        EvalParams::Ram(plan) => Some(plan.walk()),
        EvalParams::Model { .. } => None,
    };
    for at in 0..block.chain.len() {
        let (layer, needs) = needs(backend, &block.chain, at, walk.reached(), block.pass)?;
        let param = match (&mut params, block.params) {
            (Some(params), _) => Param::Ram(step(params, layer, walk.x().shape, at)?),
            (None, EvalParams::Model { model, first }) => Param::Model {
                layer: first + at,
                tensors: model.weights.layer(&model.net, first + at),
            },
            (None, EvalParams::Ram(_)) => continue,
        };
        let place = walk.step(needs)?;
        each(backend, &Call { layer, index: at, place, param, phase: Phase::Eval })?;
    }
    Ok(walk.x())
}

/// Layer `at` of a chain, and what it needs: what a plan is made of, and what a walk steps by.
///
/// # Errors
/// A layer that cannot take its input, a residual addition that cannot be made.
pub fn needs<'m, B: Backend + ?Sized>(
    backend: &B,
    chain: &Chain<'m>,
    at: usize,
    reached: Reached,
    pass: Pass,
) -> Result<(&'m Layer, Needs), PlanError> {
    let impossible = PlanError::Shape { layer: at, input: reached.x.shape };
    let layer = chain.get(at).ok_or(impossible)?;
    // No backend has to plan for weights that no tensor can hold.
    layer.tensors(reached.x.shape).ok_or(impossible)?;
    Ok((layer, chain.needs(at, reached, backend.needs(chain, at, reached, pass))?))
}

fn step(
    walk: &mut plan::ParamsWalk,
    layer: &Layer,
    x: Shape,
    at: usize,
) -> Result<ParamSlots, PlanError> {
    let tensors = layer.tensors(x).ok_or(PlanError::Shape { layer: at, input: x })?;
    walk.step(tensors)
}

/// A backend's plan for running `chain` on inputs that lie as `input` does, wherever that is, in a
/// region from byte `at`.
///
/// # Errors
/// A layer that cannot take its input, or sizes past the address space.
pub fn plan_eval<B: Backend + ?Sized>(
    backend: &B,
    at: usize,
    chain: &Chain<'_>,
    input: Slot,
    pass: Pass,
) -> Result<plan::Eval, PlanError> {
    let mut plan = plan::Eval::of(at, input)?;
    for i in 0..chain.len() {
        let (_, needs) = needs(backend, chain, i, plan.reached(), pass)?;
        plan = plan.push(needs)?;
    }
    Ok(plan)
}

/// How a backend lays what reaches layer `layer` of a net, the layers before it frozen.
///
/// # Errors
/// As [`plan_eval`], and a layer outside the net.
pub fn layout<B: Backend + ?Sized>(
    backend: &B,
    net: &Net<'_>,
    layer: usize,
) -> Result<Layout, PlanError> {
    let chain = net.chain(0, layer)?;
    let input = Slot::new(0, net.input.shape.with_n(1), Dtype::F32);
    Ok(plan_eval(backend, 0, &chain, input, Pass::Eval)?.reached().x.layout)
}

/// A backend's plan for training `chain` on the batch that lies at `input`, in a region from byte
/// `at`.
///
/// # Errors
/// As [`plan_eval`].
pub fn plan_train<B: Backend + ?Sized>(
    backend: &B,
    at: usize,
    chain: &Chain<'_>,
    input: Slot,
    objective: &Objective,
) -> Result<plan::Train, PlanError> {
    let mut plan = plan::Train::keeping(at, input, chain.kept());
    for i in 0..chain.len() {
        let (_, needs) = needs(backend, chain, i, plan.reached(), Pass::Train)?;
        plan = plan.push(needs)?;
    }
    plan.finish(backend.objective_scratch(objective, plan.reached().x))
}

impl Host<'_> {
    /// How many elements there are.
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::U16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Checks that host memory has as many elements as a slot.
///
/// # Errors
/// Where it has not.
pub fn same_length(slot: Slot, host: usize) -> Result<(), ArenaError> {
    let elements = slot.shape.len().unwrap_or(0) as usize;
    if elements == host { Ok(()) } else { Err(ArenaError::Length { slot: elements, host }) }
}
