//! Small cores: inference with the least memory and the fewest instructions, without a heap and
//! without vectors.
//!
//! [`Micro`] runs convolution, norm, activation and max-pool as one (and a dense layer with its
//! norm and activation), some places of the output at a time: what the pool reads never exists, so
//! it takes no memory. Weights are read where they lie. In f32 it gives the reference's bits, for
//! finite weights; behind [`Quantise`](crate::layer::Quantise) layers, with weights stored as i8, it
//! computes in integers.
//!
//! # What is fused
//! A [`Conv2d`](crate::layer::Conv2d) or [`Dense`](crate::layer::Dense) layer, then of each at most
//! one in this order: [`BatchNorm`](crate::layer::BatchNorm), an
//! [`Activation`](crate::layer::Activation) other than tanh, a
//! [`MaxPool`](crate::layer::MaxPool) without padding that moves by its own size (behind
//! convolutions), and, where bytes are read, `Quantise`. Convolutions of any geometry run;
//! those of one place, and of 3 or 5 columns that move by one, are fastest. Depthwise ones that are padded or
//! move by more, behind which no pool stands, read a copy of each plane, which takes its memory once.
//!
//! # Integers
//! In a model with narrow weights a `Quantise` layer gives bytes where a convolution or a dense layer
//! comes next, flattening and dropout between them aside. That layer reads bytes, and its weights
//! must be i8 with a scale for each filter; where a `Quantise` layer ends its group it gives
//! bytes too. Where `Quantise` is the first layer, with the steps of raw bytes, they are read as
//! they are. Layers that no `Quantise` stands before compute in f32: a net can be of both kinds.
//! Batch norm and leaky ReLU behind sums of bytes run in f32, each alone, and take its memory.
//! Residual additions are of numbers: a net that has one cannot be planned where bytes would reach it.

mod conv;
mod float;
mod group;
mod integer;
mod op;
mod program;
mod single;
mod tune;

use crate::arena::{ArenaError, Dtype, Slot, Word};
use crate::backend::{
    Backend, Bank, Call, Device, EvalBlock, EvalParams, Host, HostMut, ObjectivePlace, Param,
};
use crate::error::Error;
use crate::layer::{self, Layer, Needs, Pass, Role};
use crate::loss::Score;
use crate::neighbour::{Nearest, Pair};
use crate::net::{Model, Net, Normalisation, Stored};
use crate::optim::Rule;
use crate::plan::{self, Chain, ParamSlots, PlanError, Reached, tri};
use crate::reference::{self, Reference};
use crate::stage::Objective;
use group::Kind;
use op::Op;

pub(crate) use group::needs;
pub(crate) use op::Ops;
pub use program::{Prefix, Program, operations};
pub use tune::{Embeddings, Frozen, Tuning, TuningPlan};

/// Rows of weights that are read side by side.
const ROWS: usize = 2;

/// The backend for small cores.
///
/// With `ALL`, the default, layers without a kernel of their own run as the reference runs them.
/// Without it they are an error, and the code of the reference is not linked: what a firmware image
/// wants. There are kernels for convolution, dense, batch norm, max-pool, mean pools,
/// activations but tanh, flattening, dropout, standardisation, unit length, residual additions and
/// `Quantise`.
///
/// Objectives, searches and the training of whole batches are the reference's; [`Tuning`] trains one
/// block, one sample at a time.
///
/// ```
/// use sepal_core::arena::Word;
/// use sepal_core::infer::Inference;
/// use sepal_core::layer::{Conv2d, Layer, MaxPool, RELU};
/// use sepal_core::micro::Micro;
/// use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
/// use sepal_core::shape::Shape;
///
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE },
///     layers: &[Layer::Conv2d(Conv2d::new(6, 5)), RELU, Layer::MaxPool(MaxPool::new(2))],
///     blocks: &[3],
///     features: 1,
/// };
/// const PLAN: Inference<'static> = match Inference::micro(NET, 1, false) {
///     Ok(plan) => plan,
///     Err(_) => panic!("the layers do not fit each other"),
/// };
/// // The input and 6x12x12 numbers; the reference also holds 6x24x24.
/// const _: () = assert!(PLAN.bytes() == 784 * 4 + 864 * 4);
///
/// let weights = [0.01; 156];
/// let model = Model { net: NET, weights: Weights::Flat(&weights) };
/// let (mut memory, mut features) = ([Word::ZERO; PLAN.bytes() / Word::BYTES], [0.0; 864]);
/// let mut backend = Micro::<false>::new(&mut memory);
/// PLAN.run(&mut backend, &model, 1, |raw: &mut [u8]| raw.fill(255), &mut features)?;
/// assert!((features[0] - 0.26).abs() < 1e-6);
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Micro<'a, const ALL: bool = true> {
    reference: Reference<'a>,
}

impl<'a, const ALL: bool> Micro<'a, ALL> {
    /// A backend whose memory is `words`.
    pub const fn new(words: &'a mut [Word]) -> Self {
        Self { reference: Reference::new(words) }
    }
}

/// The plan for running `chain` on an input that lies like `input`, in a region from byte `at`.
///
/// # Errors
/// A layer that cannot take its input, or sizes past the address space.
pub(crate) const fn plan(
    at: usize,
    chain: Chain<'_>,
    input: Slot,
    pass: Pass,
) -> Result<plan::Eval, PlanError> {
    let mut plan = tri!(plan::Eval::of(at, input));
    let mut i = 0;
    while i < chain.len() {
        let reached = plan.reached();
        let impossible = PlanError::Shape { layer: i, input: reached.x.shape };
        let Some(layer) = chain.get(i) else { return Err(impossible) };
        if layer.tensors(reached.x.shape).is_none() {
            return Err(impossible);
        }
        let own = needs(&chain, i, reached, pass);
        plan = tri!(plan.push(tri!(chain.needs(i, reached, own))));
        i += 1;
    }
    Ok(plan)
}

/// The type of a net's input where the raw samples are bytes: those of the first layer's steps are
/// read as they are.
pub(crate) const fn input_type(net: &Net<'_>, pass: Pass) -> Dtype {
    let Some(Layer::Quantise(steps)) = net.layers.first() else { return Dtype::F32 };
    let mut c = 0;
    while c < net.input.shape.c as usize {
        let (factor, summand) = net.input.normalisation.affine(c, net.input.shape.c as usize, true);
        if factor != steps.scale || summand != -(steps.zero as f32) * steps.scale {
            return Dtype::F32;
        }
        c += 1;
    }
    if matches!(pass, Pass::Narrow) { Dtype::U8 } else { Dtype::F32 }
}

/// Checks that a layer's parameters have these lengths.
///
/// # Errors
/// Where one has another.
#[inline(never)]
fn check(layer: usize, stored: &[Stored<'_>; 4], lengths: &layer::Tensors) -> Result<(), Error> {
    for (role, stored) in Role::ALL.into_iter().zip(stored) {
        let (expected, got) = (lengths.len(role) as usize, stored.len());
        if got != expected {
            return Err(Error::Weights { layer, expected, got });
        }
    }
    Ok(())
}

/// Parameters of a group: of its first layer, and of the norm behind it.
struct Parameters<'m> {
    layer: usize,
    own: &'m [Stored<'m>; 4],
    norm: &'m [Stored<'m>; 4],
}

impl<'m> Parameters<'m> {
    /// Those of a layer and of the norm behind it, which have these lengths.
    ///
    /// # Errors
    /// Other lengths.
    fn new(
        layer: usize,
        [own, norm]: &'m [[Stored<'m>; 4]; 2],
        lengths: &[layer::Tensors; 2],
    ) -> Result<Self, Error> {
        let [of_own, of_norm] = lengths;
        check(layer, own, of_own)?;
        check(layer + 1, norm, of_norm)?;
        Ok(Self { layer, own, norm })
    }

    /// Those of a layer alone, widened into `scratch` where they must be.
    ///
    /// # Errors
    /// Those of a type that cannot be read.
    fn numbers<'s>(&'s self, op: &Op<'_>, scratch: &'s mut [f32]) -> Result<[&'s [f32]; 4], Error> {
        let [lengths, _] = op.lengths;
        reference::stored(self.layer, lengths, *self.own, scratch)
    }

    /// Rows `k` and `k + 1` of `len` weights; the first twice where there are no `two`.
    ///
    /// # Errors
    /// Weights that are not aligned f32.
    fn rows(&self, (k, len): (usize, usize), two: bool) -> Result<[&[f32]; ROWS], Error> {
        let wrong = Error::Weights { layer: self.layer, expected: len, got: 0 };
        let [weight, ..] = self.own;
        let all = weight.as_f32().ok_or(wrong)?;
        let row = |k: usize| all.get(k * len..(k + 1) * len).ok_or(wrong);
        Ok([row(k)?, row(if two { k + 1 } else { k })?])
    }

    /// As [`rows`](Self::rows), widened into `scratch` where they must be.
    ///
    /// # Errors
    /// Weights of a type that cannot be read, or that no scratch was planned for.
    fn widened_rows<'s>(
        &'s self,
        (k, len): (usize, usize),
        two: bool,
        scratch: &'s mut [f32],
    ) -> Result<[&'s [f32]; ROWS], Error> {
        let [weight, ..] = self.own;
        if weight.as_f32().is_some() {
            return self.rows((k, len), two);
        }
        let next = if two { k + 1 } else { k };
        let rows = weight.len() / len.max(1);
        let (needed, given) = (ROWS * len * size_of::<f32>(), size_of_val(scratch));
        let few = ArenaError::OutOfMemory { needed, given };
        let (one, other) = scratch.split_at_mut_checked(len).ok_or(few)?;
        let other = other.get_mut(..len).ok_or(few)?;
        for (k, row) in [(k, &mut *one), (next, &mut *other)] {
            if !weight.row(k, rows).widen(row) {
                return Err(Error::Weights { layer: self.layer, expected: len, got: 0 });
            }
        }
        Ok([one, other])
    }
}

impl<const ALL: bool> Micro<'_, ALL> {
    /// Runs frozen layers of a model, of which the chain's first is layer `first`.
    #[inline(never)]
    fn frozen(&mut self, op: &Op<'_>, model: &Model<'_>, first: usize) -> Result<(), Error> {
        let layer = first + op.group.first;
        let own = model.weights.layer(&model.net, layer);
        if ALL && op.kernel.is_none() {
            return self.reference.forward(&op.call(Param::Model { layer, tensors: own }));
        }
        let norm = match op.group.norm {
            Some(_) => model.weights.layer(&model.net, layer + 1),
            None => [Stored::EMPTY; 4],
        };
        op.run(self.reference.arena(), layer, &[own, norm])
    }

    /// Runs layers with parameters in the arena.
    #[inline(never)]
    fn trained(&mut self, op: &Op<'_>, slots: &[ParamSlots; 2]) -> Result<(), Error> {
        if let Kind::Other(_) = op.group.kind {
            let [own, _] = slots;
            return self.reference.forward(&op.call(Param::Ram(*own)));
        }
        op.run_trained(self.reference.arena(), op.group.first, slots)
    }
}

/// Scratch as numbers.
const fn numbers(scratch: Slot) -> Slot {
    Slot::vector(scratch.at, (scratch.bytes() / size_of::<f32>()) as u32, Dtype::F32)
}

/// The backend for small cores as a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnMicro;

impl Device for OnMicro {
    type Backend<'a> = Micro<'a>;

    fn open<'a>(&self, memory: &'a mut [Word]) -> Result<Micro<'a>, Error> {
        Ok(Micro::new(memory))
    }
}

impl<const ALL: bool> Backend for Micro<'_, ALL> {
    fn bytes(&self) -> usize {
        self.reference.bytes()
    }

    fn takes_bytes(&self, net: &Net<'_>, pass: Pass) -> bool {
        matches!(input_type(net, pass), Dtype::U8)
    }

    fn needs(&self, chain: &Chain<'_>, at: usize, reached: Reached, pass: Pass) -> Option<Needs> {
        needs(chain, at, reached, pass)
    }

    fn write(&mut self, slot: Slot, from: Host<'_>) -> Result<(), Error> {
        self.reference.write(slot, from)
    }

    fn read(&mut self, slot: Slot, into: HostMut<'_>) -> Result<(), Error> {
        self.reference.read(slot, into)
    }

    fn fill(
        &mut self,
        slot: Slot,
        with: &mut dyn FnMut(HostMut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.reference.fill(slot, with)
    }

    fn zero(&mut self, slot: Slot) -> Result<(), Error> {
        self.reference.zero(slot)
    }

    fn copy(&mut self, from: Slot, to: Slot) -> Result<(), Error> {
        self.reference.copy(from, to)
    }

    fn widen(&mut self, raw: Slot, normalisation: &Normalisation, x: Slot) -> Result<(), Error> {
        self.reference.widen(raw, normalisation, x)
    }

    fn forward(&mut self, call: &Call<'_>) -> Result<(), Error> {
        self.reference.forward(call)
    }

    fn backward(&mut self, call: &Call<'_>) -> Result<(), Error> {
        self.reference.backward(call)
    }

    fn backward_source(&mut self, call: &Call<'_>) -> Result<(), Error> {
        self.reference.backward_source(call)
    }

    fn objective(&mut self, objective: &Objective, at: &ObjectivePlace) -> Result<Score, Error> {
        self.reference.objective(objective, at)
    }

    fn update(
        &mut self,
        rule: &Rule,
        rate: f32,
        update: u32,
        params: plan::Params,
    ) -> Result<(), Error> {
        self.reference.update(rule, rate, update, params)
    }

    fn nearest(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        pairs: &mut [Pair],
    ) -> Result<(), Error> {
        self.reference.nearest(queries, bank, first, skip, pairs)
    }

    fn top_k(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        k: usize,
        out: &mut [Nearest],
    ) -> Result<(), Error> {
        self.reference.top_k(queries, bank, first, skip, k, out)
    }

    fn eval_block(&mut self, block: &EvalBlock<'_>) -> Result<Slot, Error> {
        let (needed, given) = (block.plan.past(), self.bytes());
        if needed > given {
            return Err(ArenaError::OutOfMemory { needed, given }.into());
        }
        let mut ops = Ops::new(block.chain, block.plan.walk(block.n), block.pass);
        match block.params {
            EvalParams::Model { model, first } => {
                while let Some(op) = ops.next()? {
                    self.frozen(&op, &model, first)?;
                }
            }
            EvalParams::Ram(plan) if ALL => {
                let mut params = plan.walk();
                while let Some(op) = ops.next()? {
                    let [own, norm] = op.lengths;
                    self.trained(&op, &[params.step(own)?, params.step(norm)?])?;
                }
            }
            EvalParams::Ram(_) => {
                return Err(Error::Unsupported(
                    "frozen layers of which the parameters are in the arena",
                ));
            }
        }
        Ok(ops.x())
    }
}
