//! The backend.

use std::sync::Arc;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use sepal_core::arena::{Dtype, Layout, Slot, Word};
use sepal_core::backend::{
    Backend, Bank, Call, Device, EvalBlock, Host, HostMut, ObjectivePlace, TrainBlock, same_length,
};
use sepal_core::error::Error;
use sepal_core::layer::{Layer, Needs, Pass};
use sepal_core::loss::Score;
use sepal_core::neighbour::{Nearest, Pair, Rows};
use sepal_core::net::Normalisation;
use sepal_core::optim::Rule;
use sepal_core::plan::{self, Chain, Reached};
use sepal_core::reference::BankRows::{F16, F32};
use sepal_core::reference::{Reference, rows};
use sepal_core::stage::{Loss, Objective};

use crate::arch::Instructions;
use crate::conv::Precision;
use crate::fused::Group;
use crate::soft::{self, Kind};
use crate::{blocks, folded, fused, layers, objective, optim, residual, search};

/// The rows in f32, in `memory`.
fn widened<'a>(rows: Rows<'a, half::f16>, memory: &'a mut Vec<f32>) -> Rows<'a, f32> {
    memory.extend(rows.data.iter().map(|x| x.to_f32()));
    Rows { data: memory, dim: rows.dim, labels: rows.labels }
}

/// At least `bytes` of memory for an arena, all zero.
pub fn words(bytes: usize) -> Vec<Word> {
    vec![Word::ZERO; Word::count(bytes)]
}

/// Runs nets on all cores, in one arena.
///
/// See the [crate](crate) for memory and determinism.
///
/// ```
/// use sepal_core::infer::Inference;
/// use sepal_core::layer::{Dense, Layer};
/// use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
/// use sepal_core::shape::Shape;
/// use sepal_cpu::Cpu;
///
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::rows(1, 2), normalisation: Normalisation::NONE },
///     layers: &[Layer::Dense(Dense { units: 1, bias: false })],
///     blocks: &[1],
///     features: 0,
/// };
/// let model = Model { net: NET, weights: Weights::Flat(&[2.0, -1.0]) };
/// // Memory is planned by the backend that will use it.
/// let plan = Inference::new(&Cpu::new(&mut []), &model, (0, 1), 8, false)?;
/// let mut memory = sepal_cpu::words(plan.bytes());
/// let mut cpu = Cpu::new(&mut memory);
/// let mut out = [0.0];
/// plan.run(&mut cpu, &model, 1, |x: &mut [f32]| x.copy_from_slice(&[3.0, 4.0]), &mut out)?;
/// assert_eq!(out, [2.0]);
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Cpu<'a> {
    reference: Reference<'a>,
    pool: Option<Arc<ThreadPool>>,
    instructions: Instructions,
    precision: Precision,
}

impl<'a> Cpu<'a> {
    /// A backend whose memory is `words`, on rayon's shared threads, with the best instructions
    /// of this machine.
    pub fn new(words: &'a mut [Word]) -> Self {
        let (instructions, precision) = (Instructions::best(), Precision::default());
        Self { reference: Reference::new(words), pool: None, instructions, precision }
    }

    /// The same backend with other instructions.
    ///
    /// ```
    /// use sepal_cpu::{Cpu, Instructions};
    /// let cpu = Cpu::new(&mut []).with_instructions(Instructions::PORTABLE);
    /// ```
    #[must_use]
    pub fn with_instructions(self, instructions: Instructions) -> Self {
        Self { instructions, ..self }
    }

    /// The same backend with other convolutions.
    ///
    /// ```
    /// use sepal_cpu::{Cpu, Precision};
    /// let cpu = Cpu::new(&mut []).with_precision(Precision::Exact);
    /// ```
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Runs `work` on a thread of this backend, where it and what it runs in parallel hand over
    /// no more than they must. From such a thread it is a plain call.
    fn within<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        match self.pool.clone() {
            Some(pool) => pool.install(|| work(self)),
            None => rayon::scope(|_| work(self)),
        }
    }

    /// Runs `work` with the reference on this backend's threads.
    fn run<R: Send>(&mut self, work: impl FnOnce(&mut Reference<'a>) -> R + Send) -> R {
        self.within(|cpu| work(&mut cpu.reference))
    }
}

/// Opens [`Cpu`] backends that share their threads.
///
/// ```
/// use sepal_core::backend::Device;
/// let device = sepal_cpu::OnCpu::with_threads(2)?;
/// assert_eq!(device.chunk(), 128);
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OnCpu {
    pool: Option<Arc<ThreadPool>>,
    instructions: Instructions,
    precision: Precision,
}

impl Default for OnCpu {
    fn default() -> Self {
        Self::new()
    }
}

impl OnCpu {
    /// On rayon's shared threads, one for each core, with the best instructions of this machine.
    pub fn new() -> Self {
        let (instructions, precision) = (Instructions::best(), Precision::default());
        Self { pool: None, instructions, precision }
    }

    /// The same device with other instructions for the backends that it opens.
    ///
    /// ```
    /// use sepal_cpu::{Instructions, OnCpu};
    /// let device = OnCpu::new().with_instructions(Instructions::PORTABLE);
    /// ```
    #[must_use]
    pub fn with_instructions(self, instructions: Instructions) -> Self {
        Self { instructions, ..self }
    }

    /// The same device with other convolutions for the backends that it opens.
    ///
    /// ```
    /// use sepal_cpu::{OnCpu, Precision};
    /// let device = OnCpu::new().with_precision(Precision::Exact);
    /// ```
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// On `threads` threads of its own, 0 for one for each core. The number changes no bit of any
    /// result.
    ///
    /// # Errors
    /// Threads that the system does not give.
    pub fn with_threads(threads: usize) -> Result<Self, Error> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|_| Error::Device { code: 0, doing: "starting threads" })?;
        Ok(Self { pool: Some(Arc::new(pool)), ..Self::new() })
    }
}

impl Device for OnCpu {
    type Backend<'a> = Cpu<'a>;

    fn open<'a>(&self, memory: &'a mut [Word]) -> Result<Cpu<'a>, Error> {
        let Self { pool, instructions, precision } = self.clone();
        Ok(Cpu { reference: Reference::new(memory), pool, instructions, precision })
    }

    fn chunk(&self) -> u32 {
        128
    }
}

impl Backend for Cpu<'_> {
    fn bytes(&self) -> usize {
        self.reference.bytes()
    }

    fn needs(&self, chain: &Chain<'_>, at: usize, reached: Reached, pass: Pass) -> Option<Needs> {
        layers::needs(self.precision, chain, at, reached, pass)
    }

    fn objective_scratch(&self, objective: &Objective, features: Slot) -> usize {
        let lying = layers::as_lying(features);
        let own = match objective {
            Objective::CrossEntropy { .. }
            | Objective::PredSim { .. }
            | Objective::Goodness { .. }
                if layers::moves(features) =>
            {
                return objective::moved_scratch(objective, features);
            }
            _ => objective::scratch(objective, lying).saturating_mul(size_of::<f32>()),
        };
        own.max(objective.scratch(lying))
    }

    fn write(&mut self, slot: Slot, from: Host<'_>) -> Result<(), Error> {
        match from {
            Host::F32(from) if slot.layout == Layout::Nchw8c => {
                same_length(slot, from.len())?;
                blocks::block(slot.shape, from, self.reference.arena().view_mut(slot)?);
                Ok(())
            }
            _ => self.reference.write(slot, from),
        }
    }

    fn read(&mut self, slot: Slot, into: HostMut<'_>) -> Result<(), Error> {
        match into {
            HostMut::F32(into) if slot.layout == Layout::Nchw8c => {
                same_length(slot, into.len())?;
                blocks::unblock(slot.shape, self.reference.arena().view(slot)?, into);
                Ok(())
            }
            _ => self.reference.read(slot, into),
        }
    }

    fn fill(
        &mut self,
        slot: Slot,
        with: &mut dyn FnMut(HostMut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if slot.layout != Layout::Nchw8c || slot.dtype != Dtype::F32 {
            return self.reference.fill(slot, with);
        }
        let mut staged = vec![0.0; slot.shape.len().unwrap_or(0) as usize];
        with(HostMut::F32(&mut staged))?;
        self.write(slot, Host::F32(&staged))
    }

    fn zero(&mut self, slot: Slot) -> Result<(), Error> {
        self.reference.zero(slot)
    }

    fn copy(&mut self, from: Slot, to: Slot) -> Result<(), Error> {
        if from.layout == to.layout || from.dtype != Dtype::F32 {
            return self.reference.copy(from, to);
        }
        same_length(to, from.shape.len().unwrap_or(0) as usize)?;
        let [source, target] = self.reference.arena().lease([from, to])?;
        match to.layout {
            Layout::Nchw8c => blocks::block(to.shape, source.get()?, target.get()?),
            _ => blocks::unblock(from.shape, source.get()?, target.get()?),
        }
        Ok(())
    }

    fn widen(&mut self, raw: Slot, norm: &Normalisation, x: Slot) -> Result<(), Error> {
        let shape = x.shape;
        let sample = (shape.sample().unwrap_or(0) as usize).max(1);
        let (plane, channels) = (shape.plane().max(1) as usize, shape.c as usize);
        let bytes = raw.dtype == Dtype::U8;
        let affine = |c: usize| norm.affine(c, channels, bytes);
        if !bytes && raw.at != x.at {
            self.reference.copy(raw, x)?;
        }
        // Numbers are already where the input is to be.
        let raw = if bytes { raw } else { Slot::EMPTY };
        self.run(|reference| {
            let [raw, x] = reference.arena().lease([raw, x])?;
            let x = x.get::<f32>()?.par_chunks_mut(sample).with_min_len(8);
            if bytes {
                x.zip(raw.get::<u8>()?.par_chunks(sample)).for_each(|(x, raw)| {
                    let planes = x.chunks_exact_mut(plane).zip(raw.chunks_exact(plane));
                    for (c, (x, raw)) in planes.enumerate() {
                        let (factor, summand) = affine(c);
                        let pairs = x.iter_mut().zip(raw);
                        pairs.for_each(|(x, &raw)| *x = f32::from(raw) * factor + summand);
                    }
                });
            } else {
                x.for_each(|x| {
                    for (c, x) in x.chunks_exact_mut(plane).enumerate() {
                        let (factor, summand) = affine(c);
                        x.iter_mut().for_each(|x| *x = *x * factor + summand);
                    }
                });
            }
            Ok(())
        })
    }

    fn forward(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let (with, precision) = (self.instructions, self.precision);
        self.run(|reference| layers::forward(with, precision, reference.arena(), call))
    }

    fn backward(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let (with, precision) = (self.instructions, self.precision);
        self.run(|reference| layers::backward(with, precision, reference.arena(), call))
    }

    fn backward_source(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let Layer::Residual(l) = *call.layer else { return Ok(()) };
        let (with, precision) = (self.instructions, self.precision);
        self.run(|reference| residual::backward_source(with, precision, reference.arena(), call, l))
    }

    fn eval_block(&mut self, block: &EvalBlock<'_>) -> Result<Slot, Error> {
        let (with, precision) = (self.instructions, self.precision);
        let each = |cpu: &mut Self, call: &Call<'_>| cpu.forward(call);
        let together =
            |cpu: &mut Self, run: &folded::Run<'_>| run.run(with, precision, cpu.reference.arena());
        self.within(|cpu| folded::eval_block(cpu, block, each, together))
    }

    fn forward_block(&mut self, block: &TrainBlock<'_>, upto: usize) -> Result<Slot, Error> {
        let with = self.instructions;
        let each = |cpu: &mut Self, group: &Group<'_>| match group.single() {
            Some(call) => cpu.forward(call),
            None => group.forward(with, cpu.reference.arena()),
        };
        self.within(|cpu| fused::forward_block(cpu, block, upto, each))
    }

    fn backward_block(&mut self, block: &TrainBlock<'_>) -> Result<(), Error> {
        let with = self.instructions;
        let each = |cpu: &mut Self, group: &Group<'_>| match group.single() {
            Some(call) => cpu.backward(call),
            None => group.backward(with, cpu.reference.arena()),
        };
        self.within(|cpu| fused::backward_block(cpu, block, each))
    }

    fn objective(&mut self, objective: &Objective, at: &ObjectivePlace) -> Result<Score, Error> {
        let Some(loss) = objective.loss() else {
            if layers::moves(at.features) && *objective != Objective::Statistics {
                return objective::moved(&mut self.reference, objective, at);
            }
            return self.reference.objective(objective, at);
        };
        // The padding of blocks is zero in every row: it changes no distance.
        let dim = layers::as_lying(at.features).sample().unwrap_or(0) as usize;
        let pairs = if objective.pairs() { at.pairs } else { Slot::EMPTY };
        let scratch = layers::numbers(at.scratch);
        let slots = [at.features, at.labels, pairs, scratch, at.gradient];
        let instructions = self.instructions;
        let (shape, blocked) = (at.features.shape, blocks::is_blocked(at.features));
        self.run(|reference| {
            let [features, labels, pairs, scratch, gradient] = reference.arena().lease(slots)?;
            let (data, labels) = (&*features.get::<f32>()?, &*labels.get::<u16>()?);
            let rows = Rows { data, dim, labels };
            let (scratch, gradient) = (scratch.get::<f32>()?, gradient.get::<f32>()?);
            let score = match loss {
                Loss::SoftNearest { temperature: t } => {
                    soft::gradient(Kind::Nearest, instructions, rows, t, scratch, gradient)
                }
                Loss::SoftCentre { temperature: t } => {
                    soft::gradient(Kind::Centre, instructions, rows, t, scratch, gradient)
                }
                Loss::Margin { .. } | Loss::Triplet => {
                    let margin = match loss {
                        Loss::Margin { margin } => Some(margin),
                        _ => None,
                    };
                    let pairs = pairs.get::<[u32; 4]>()?;
                    search::batch(instructions, rows, pairs, scratch);
                    let pairs: &[Pair] = bytemuck::cast_slice(pairs);
                    objective::graph(data, dim, pairs, margin, gradient)
                }
                _ => return Err(Error::Unsupported("this loss")),
            };
            if blocked {
                blocks::clear_padding(shape, gradient);
            }
            Ok(score)
        })
    }

    fn update(
        &mut self,
        rule: &Rule,
        rate: f32,
        update: u32,
        params: plan::Params,
    ) -> Result<(), Error> {
        let slots = [params.trained(), params.gradients(), params.state(0), params.state(1)];
        let with = self.instructions;
        self.run(|reference| {
            let [p, g, first, second] = reference.arena().lease(slots)?;
            let (p, g) = (p.get::<f32>()?, &*g.get::<f32>()?);
            let (first, second) = (first.get::<f32>()?, second.get::<f32>()?);
            optim::update(with, *rule, (rate, update), p, g, first, second);
            Ok(())
        })
    }

    /// Allocates beside the arena: a packed copy of the bank in f32, and about 100 bytes for each
    /// row and thread; where only one side is in half precision, a copy of it in f32.
    fn nearest(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        pairs: &mut [Pair],
    ) -> Result<(), Error> {
        let instructions = self.instructions;
        self.run(|reference| {
            let arena = &*reference.arena();
            let mut wide = Vec::new();
            match rows(arena, queries, bank)? {
                [F32(q), F32(b)] => search::nearest(instructions, q, b, first, skip, pairs),
                [F16(q), F16(b)] => search::nearest(instructions, q, b, first, skip, pairs),
                [F32(q), F16(b)] => {
                    let b = widened(b, &mut wide);
                    search::nearest(instructions, q, b, first, skip, pairs);
                }
                [F16(q), F32(b)] => {
                    let q = widened(q, &mut wide);
                    search::nearest(instructions, q, b, first, skip, pairs);
                }
            }
            Ok(())
        })
    }

    /// Allocates as [`nearest`](Self::nearest).
    fn top_k(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        k: usize,
        out: &mut [Nearest],
    ) -> Result<(), Error> {
        let instructions = self.instructions;
        self.run(|reference| {
            let arena = &*reference.arena();
            let mut wide = Vec::new();
            match rows(arena, queries, bank)? {
                [F32(q), F32(b)] => search::top_k(instructions, q, b, first, skip, k, out),
                [F16(q), F16(b)] => search::top_k(instructions, q, b, first, skip, k, out),
                [F32(q), F16(b)] => {
                    let b = widened(b, &mut wide);
                    search::top_k(instructions, q, b, first, skip, k, out);
                }
                [F16(q), F32(b)] => {
                    let q = widened(q, &mut wide);
                    search::top_k(instructions, q, b, first, skip, k, out);
                }
            }
            Ok(())
        })
    }
}
