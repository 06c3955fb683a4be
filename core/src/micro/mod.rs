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
//! those of 3 or 5 columns that move by one are fastest.
//!
//! # Integers
//! In a model with narrow weights a `Quantise` layer gives bytes where a convolution or a dense layer
//! comes next, flattening and dropout between them aside. That layer reads bytes, and its weights
//! must be i8 with a scale for each filter; where a `Quantise` layer ends its group it gives
//! bytes too. Where `Quantise` is the first layer, with the steps of raw bytes, they are read as
//! they are. Layers that no `Quantise` stands before compute in f32: a net can be of both kinds.
//! Batch norm and leaky ReLU behind sums of bytes run in f32, each alone, and take its memory.

mod conv;
mod float;
mod group;
mod integer;
mod tune;

use crate::arena::{ArenaError, Dtype, Lease, Slot, Word};
use crate::backend::{
    Backend, Bank, Call, Device, EvalBlock, Host, HostMut, ObjectivePlace, Param, eval_calls,
};
use crate::error::Error;
use crate::layer::{self, Layer, Needs, Pass, Role};
use crate::loss::Score;
use crate::neighbour::{Nearest, Pair};
use crate::net::{Net, Normalisation, Stored};
use crate::optim::Rule;
use crate::plan::{self, Chain, ParamSlots, PlanError, tri};
use crate::reference::{self, Reference};
use crate::stage::Objective;
use group::{Group, Kind};

pub(crate) use group::needs;
pub use tune::{Embeddings, Tuning, TuningPlan};

/// Rows of weights that are read side by side.
const ROWS: usize = 2;

/// The backend for small cores.
///
/// With `ALL`, the default, layers without a kernel of their own run as the reference runs them.
/// Without it they are an error, and the code of the reference is not linked: what a firmware image
/// wants. There are kernels for convolution, dense, batch norm, max-pool, mean pools,
/// activations but tanh, flattening, dropout, standardisation, unit length and `Quantise`.
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
    let (mut x, mut i) = (input, 0);
    while i < chain.len() {
        let impossible = PlanError::Shape { layer: i, input: x.shape };
        let Some(layer) = chain.get(i) else { return Err(impossible) };
        let (Some(_), Some(needs)) =
            (layer.tensors(x.shape), needs(&chain, i, x.shape, x.dtype, pass))
        else {
            return Err(impossible);
        };
        plan = tri!(plan.push(i, x.shape, x.layout, x.dtype, needs));
        x = Slot { shape: needs.out, dtype: needs.dtype, ..x };
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

/// Parameters of a group: of its first layer, and of the norm behind it.
struct Parameters<'m> {
    layer: usize,
    weight: Stored<'m>,
    bias: Stored<'m>,
    norm: [Stored<'m>; 4],
}

impl<'m> Parameters<'m> {
    /// Those of a layer and of the norm behind it, which have these lengths.
    ///
    /// # Errors
    /// Other lengths.
    fn new(
        layer: usize,
        stored: &[[Stored<'m>; 4]; 2],
        lengths: [layer::Tensors; 2],
    ) -> Result<Self, Error> {
        for ((stored, lengths), layer) in stored.iter().zip(lengths).zip(layer..) {
            for (role, stored) in Role::ALL.into_iter().zip(stored) {
                let (expected, got) = (lengths.len(role) as usize, stored.len());
                if got != expected {
                    return Err(Error::Weights { layer, expected, got });
                }
            }
        }
        let [[weight, bias, ..], norm] = *stored;
        Ok(Self { layer, weight, bias, norm })
    }

    /// Those that lie in the arena, in the order of [`slots`].
    ///
    /// # Errors
    /// Other lengths.
    fn of(
        layer: usize,
        leases: [Lease<'m>; 6],
        lengths: [layer::Tensors; 2],
    ) -> Result<Self, Error> {
        let [weight, bias, gamma, beta, mean, variance] =
            leases.map(|lease| Stored { bytes: lease.bytes(), ..Stored::EMPTY });
        let own = [weight, bias, Stored::EMPTY, Stored::EMPTY];
        Self::new(layer, &[own, [gamma, beta, mean, variance]], lengths)
    }

    /// Rows `k` and `k + 1` of `len` weights, widened into `scratch` where they must be; the first
    /// twice where there are no `two`.
    ///
    /// # Errors
    /// Weights of a type that cannot be read, or that no scratch was planned for.
    fn rows<'s>(
        &self,
        k: usize,
        len: usize,
        two: bool,
        scratch: &'s mut [f32],
    ) -> Result<[&'s [f32]; ROWS], Error>
    where
        'm: 's,
    {
        let next = if two { k + 1 } else { k };
        let wrong = Error::Weights { layer: self.layer, expected: len, got: 0 };
        if let Some(all) = self.weight.as_f32() {
            let row = |k: usize| all.get(k * len..(k + 1) * len).ok_or(wrong);
            return Ok([row(k)?, row(next)?]);
        }
        let rows = self.weight.len() / len.max(1);
        let (needed, given) = (ROWS * len * size_of::<f32>(), size_of_val(scratch));
        let few = ArenaError::OutOfMemory { needed, given };
        let (one, other) = scratch.split_at_mut_checked(len).ok_or(few)?;
        let other = other.get_mut(..len).ok_or(few)?;
        for (k, row) in [(k, &mut *one), (next, &mut *other)] {
            if !self.weight.row(k, rows).widen(row) {
                return Err(wrong);
            }
        }
        Ok([one, other])
    }
}

/// A convolution or dense layer that is to run once the walk has reached the last layer behind it.
#[derive(Clone, Copy)]
struct Run<'a> {
    group: Group<'a>,
    /// Its first layer's.
    call: Call<'a>,
    norm: Option<Param<'a>>,
    /// Layers that are still to come.
    left: usize,
}

impl<const ALL: bool> Micro<'_, ALL> {
    /// Runs a group from its first layer's input to its last one's output. An image in which no group
    /// computes in integers, or none in f32, is one without the other's kernels.
    #[inline(never)]
    fn run<const INTEGER: bool>(&mut self, chain: &Chain<'_>, run: &Run<'_>) -> Result<(), Error> {
        let Run { group, call, norm, .. } = run;
        let shape = call.place.x.shape;
        let impossible = PlanError::Shape { layer: call.index, input: shape };
        let tensors = call.layer.tensors(shape).ok_or(impossible)?;
        let (own, _) = group.shapes(chain, shape).ok_or(impossible)?;
        let lengths = match group.norm {
            Some(norm) => [tensors, norm.tensors(own).ok_or(impossible)?],
            None => [tensors, layer::Tensors::NONE],
        };
        let (place, scratch) = (&call.place, numbers(call.place.scratch));
        let arena = self.reference.arena();
        match (&call.param, norm) {
            (Param::Model { layer, tensors }, norm) => {
                let norm = match norm {
                    Some(Param::Model { tensors, .. }) => *tensors,
                    _ => [Stored::EMPTY; 4],
                };
                let p = Parameters::new(*layer, &[*tensors, norm], lengths)?;
                let leases = arena.lease([place.x, place.y, scratch])?;
                compute::<INTEGER>(group, &p, place, leases)
            }
            (Param::Ram(w), norm) if ALL => {
                let n = match norm {
                    Some(Param::Ram(n)) => n,
                    _ => &ParamSlots::NONE,
                };
                let [w, b, gamma, beta, mean, variance] = slots(w, n);
                let [x, y, scratch, w, b, gamma, beta, mean, variance] =
                    arena.lease([place.x, place.y, scratch, w, b, gamma, beta, mean, variance])?;
                let own = [w, b, gamma, beta, mean, variance];
                let p = Parameters::of(call.index, own, lengths)?;
                compute::<INTEGER>(group, &p, place, [x, y, scratch])
            }
            _ => Err(in_arena()),
        }
    }

    /// Runs a layer that is a group of its own.
    #[inline(never)]
    fn single(&mut self, call: &Call<'_>) -> Result<(), Error> {
        use layer::Activation::{LeakyRelu, Relu, Relu6};
        let Call { layer, place, param, .. } = call;
        let shape = place.x.shape;
        let Param::Model { tensors, layer: index } = param else {
            return if ALL { self.reference.forward(call) } else { Err(in_arena()) };
        };
        match layer {
            Layer::Flatten(_) | Layer::Dropout(_) => return Ok(()),
            Layer::Quantise(steps) => return self.quantise(*steps, place),
            Layer::BatchNorm(_)
            | Layer::Activation(Relu | Relu6 | LeakyRelu { .. })
            | Layer::MaxPool(_)
            | Layer::AvgPool(_)
            | Layer::GlobalAvgPool(_)
            | Layer::Standardise(_)
            | Layer::L2Normalise(_) => {}
            _ if ALL => return self.reference.forward(call),
            _ => return Err(Error::Unsupported("this layer")),
        }
        let x = if place.x.at == place.y.at { Slot::EMPTY } else { place.x };
        let slots = [x, place.y, place.saved, numbers(place.scratch)];
        let [x, y, saved, scratch] = self.reference.arena().lease(slots)?;
        let lengths = layer.tensors(shape).unwrap_or(layer::Tensors::NONE);
        let [w, b, mean, variance] = reference::stored(*index, lengths, *tensors, scratch.get()?)?;
        let (x, y) = (&*x.get::<f32>()?, y.get::<f32>()?);
        match layer {
            Layer::BatchNorm(l) => l.forward_eval(shape, w, b, mean, variance, y),
            Layer::Activation(l) => l.forward_piecewise(y),
            Layer::MaxPool(l) => l.forward(shape, x, y, None),
            Layer::AvgPool(l) => l.forward(shape, x, y),
            Layer::GlobalAvgPool(l) => l.forward(shape, x, y),
            Layer::Standardise(l) => l.forward(shape, mean, variance, y),
            Layer::L2Normalise(l) => l.forward(shape, y, saved.get()?),
            _ => {}
        }
        Ok(())
    }

    /// Numbers in steps, as numbers or as the steps' bytes. Raw bytes are that already.
    fn quantise(&mut self, steps: layer::Quantise, place: &plan::Place) -> Result<(), Error> {
        let arena = self.reference.arena();
        match (place.x.dtype, place.y.dtype) {
            (Dtype::F32, Dtype::F32) => steps.forward(arena.view_mut::<f32>(place.y)?),
            (Dtype::F32, _) => {
                let [x, y] = arena.lease([place.x, place.y])?;
                let (x, y) = (x.get::<f32>()?, y.get::<u8>()?);
                y.iter_mut().zip(x).for_each(|(y, x)| *y = steps.code(*x));
            }
            _ => {}
        }
        Ok(())
    }
}

const fn in_arena() -> Error {
    Error::Unsupported("frozen layers of which the parameters are in the arena")
}

/// Scratch as numbers.
const fn numbers(scratch: Slot) -> Slot {
    Slot::vector(scratch.at, (scratch.bytes() / size_of::<f32>()) as u32, Dtype::F32)
}

/// The slots of a layer's parameters and of those of the norm behind it, as [`Parameters::of`] takes
/// them.
const fn slots(own: &ParamSlots, norm: &ParamSlots) -> [Slot; 6] {
    [own.weight, own.bias, norm.weight, norm.bias, norm.mean, norm.variance]
}

/// Runs a convolution or a dense layer with what stands behind it.
fn compute<const INTEGER: bool>(
    group: &Group<'_>,
    p: &Parameters<'_>,
    place: &plan::Place,
    [x, y, scratch]: [Lease<'_>; 3],
) -> Result<(), Error> {
    let shapes = (place.x.shape, place.y.shape);
    if INTEGER {
        let x = &*x.get()?;
        let y = match place.y.dtype {
            Dtype::U8 => integer::Out::Codes(y.get()?),
            _ => integer::Out::Values(y.get()?),
        };
        return match group.kind {
            Kind::Conv(l) => integer::conv(group, *l, shapes, p, x, y),
            Kind::Dense(l) => integer::dense(group, *l, shapes.0, p, x, y),
            Kind::Other(_) => Ok(()),
        };
    }
    let (x, y) = (&*x.get()?, y.get()?);
    let t = float::Tensors { x, y, winners: &mut [], scratch: scratch.get()? };
    float::run(group, shapes, p, t)
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

    fn needs(&self, chain: &Chain<'_>, at: usize, x: Slot, pass: Pass) -> Option<Needs> {
        needs(chain, at, x.shape, x.dtype, pass)
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
        let mut run: Option<Run<'_>> = None;
        eval_calls(self, block, |micro, call| {
            let now = match &mut run {
                Some(now) => now,
                None => {
                    let (layer, input) = (call.index, call.place.x.shape);
                    let group = Group::of(&block.chain, layer);
                    let group = group.ok_or(PlanError::Shape { layer, input })?;
                    if let Kind::Other(_) = group.kind {
                        return micro.single(call);
                    }
                    run.insert(Run { group, call: *call, norm: None, left: group.len })
                }
            };
            now.left -= 1;
            if let (Layer::BatchNorm(_), Some(_)) = (call.layer, now.group.norm) {
                now.norm = Some(call.param);
            }
            if now.left == 0 {
                match now.group.is_integer(block.pass) {
                    true => micro.run::<true>(&block.chain, now),
                    false => micro.run::<false>(&block.chain, now),
                }?;
                run = None;
            }
            Ok(())
        })
    }
}
