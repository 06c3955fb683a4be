//! The backend: where the seam's calls meet the kernels.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sepal_core::arena::{ArenaError, Dtype, Slot, Word};
use sepal_core::backend::{
    Backend, Bank, Call, Device, EvalBlock, Host, HostMut, ObjectivePlace, Param, Phase,
    same_length,
};
use sepal_core::error::Error;
use sepal_core::layer::{Layer, Needs, Pass, Role};
use sepal_core::loss::Score;
use sepal_core::neighbour::{Nearest, Pair};
use sepal_core::net::{Model, Normalisation};
use sepal_core::optim::Rule;
use sepal_core::plan::{self, Chain, Reached};
use sepal_core::stage::Objective;

use crate::driver::OpenError;
use crate::gpu::{Address, Buffer, Gpu, Opened, Page};
use crate::layers::{self, Backward, Forward};
use crate::memory::Memory;
use crate::{activation, conv, elementwise, folded, objective, optim, residual, search};

/// A CUDA device, on which backends are opened.
///
/// ```
/// use sepal_cuda::{OnCuda, OpenError};
/// match OnCuda::open(0) {
///     Ok(_device) => println!("learning on the GPU"),
///     Err(OpenError::NoDriver) => println!("no driver: learning on the CPU"),
///     Err(e) => println!("{e}"),
/// }
/// ```
#[derive(Clone, Debug)]
pub struct OnCuda {
    opened: Arc<Opened>,
}

impl OnCuda {
    /// Device `ordinal`, counted from 0 as the driver counts them.
    ///
    /// # Errors
    /// A driver, a symbol or a device that is missing or too old.
    pub fn open(ordinal: usize) -> Result<Self, OpenError> {
        Ok(Self { opened: Arc::new(Opened::new(ordinal)?) })
    }

    /// The same device with kernels that NVRTC compiles for its very architecture when they are
    /// first used, and that are kept in `folder` by source, options, compiler, driver and
    /// architecture. Where the driver is older than what NVRTC writes, the built-in ones run.
    ///
    /// # Errors
    /// [`OpenError::NoCompiler`] where there is no NVRTC.
    pub fn compiling(&self, folder: &Path) -> Result<Self, OpenError> {
        Ok(Self { opened: Arc::new(self.opened.compiling(folder)?) })
    }

    /// A backend with `bytes` of device memory. Without memory it plans, and searches rows of
    /// the host.
    ///
    /// # Errors
    /// [`ArenaError::OutOfMemory`] with the plan's number and what is free, before anything is
    /// allocated; a device that failed.
    pub fn backend(&self, bytes: usize) -> Result<Cuda, Error> {
        let gpu = Arc::new(Gpu::new(self.opened.clone())?);
        let memory = Memory::new(&gpu, Word::round_up(bytes))?;
        Ok(Cuda { gpu, memory, weights: BTreeMap::new(), pages: [None, None] })
    }
}

impl Device for OnCuda {
    type Backend<'a> = Cuda;

    /// As much device memory as the host lends; the host's is not touched.
    fn open(&self, memory: &mut [Word]) -> Result<Cuda, Error> {
        self.backend(size_of_val(memory))
    }

    fn chunk(&self) -> u32 {
        128
    }
}

/// Runs nets on a CUDA device; see the [crate](crate).
#[derive(Debug)]
pub struct Cuda {
    gpu: Arc<Gpu>,
    memory: Memory,
    /// Frozen weights as f32, by layer: kernels do not reach the host's model.
    weights: BTreeMap<usize, [Option<Buffer>; 4]>,
    /// Where the host writes the next batch while the last is still copied.
    pages: [Option<Page>; 2],
}

impl Cuda {
    fn upload(&self, slot: Slot, dtype: Dtype, from: &[u8]) -> Result<(), Error> {
        let to = self.memory.of(slot, dtype, from.len() / dtype.size())?;
        self.gpu.write(to, from)
    }

    fn download(&self, slot: Slot, dtype: Dtype, into: &mut [u8]) -> Result<(), Error> {
        let from = self.memory.of(slot, dtype, into.len() / dtype.size())?;
        self.gpu.read(from, into)
    }

    /// The addresses of a layer's weight, bias, mean and variance.
    fn parameters(&self, param: Param<'_>) -> Result<[Address; 4], Error> {
        match param {
            Param::Ram(p) => self.memory.lease([p.weight, p.bias, p.mean, p.variance]),
            Param::Model { layer, .. } => {
                let unprepared = Error::Device { code: 0, doing: "a layer that was not prepared" };
                let buffers = self.weights.get(&layer).ok_or(unprepared)?;
                let address =
                    |b: &Option<Buffer>| b.as_ref().map_or(Address::NONE, Buffer::address);
                Ok(buffers.each_ref().map(address))
            }
        }
    }
}

impl Cuda {
    /// A convolution with what runs within it.
    fn together(&mut self, run: &folded::Run<'_>) -> Result<(), Error> {
        let (folded, place) = (&run.folded, run.conv.place);
        let [weight, bias, ..] = self.parameters(run.conv.param)?;
        let [x, y] = self.memory.lease([place.x, place.y])?;
        let finish = conv::Finish {
            norm: match run.norm {
                Some(param) => self.parameters(param)?,
                None => [Address::NONE; 4],
            },
            eps: folded.norm.map_or(0.0, |norm| norm.eps),
            activation: folded.activation.map_or((activation::AS_IT_IS, 0.0), activation::kind),
            window: folded.pool.map_or((1, 1), |pool| {
                let (height, width) = pool.window.kernel;
                (height.into(), width.into())
            }),
            ..conv::Finish::bias(bias)
        };
        conv::finished(&folded.conv, &self.gpu, place.x.shape, [x, weight, y], &finish)
    }
}

impl Backend for Cuda {
    fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// The next batch is written and copied while this one is computed.
    fn queue(&self) -> u32 {
        2
    }

    fn needs(&self, chain: &Chain<'_>, at: usize, reached: Reached, pass: Pass) -> Option<Needs> {
        let x = reached.x;
        if let Layer::Residual(l) = chain.get(at)? {
            return residual::needs(*l, reached.source(chain, at), x, pass);
        }
        let folded = if pass == Pass::Train { None } else { folded::needs(chain, at, x, pass) };
        folded.unwrap_or_else(|| layers::needs(chain.get(at)?, x.shape, pass))
    }

    fn objective_scratch(&self, objective: &Objective, features: Slot) -> usize {
        objective::scratch(objective, features.shape)
    }

    fn prepare(&mut self, model: &Model<'_>, first: usize, last: usize) -> Result<(), Error> {
        for layer in first..last {
            let shape = model.net.shape(layer)?;
            let kind = model.net.layers.get(layer);
            let tensors = kind.and_then(|kind| kind.tensors(shape)).unwrap_or_default();
            let mut buffers = [const { None }; 4];
            let stored = model.weights.layer(&model.net, layer);
            for ((buffer, stored), role) in buffers.iter_mut().zip(stored).zip(Role::ALL) {
                let expected = tensors.len(role) as usize;
                let mut numbers = vec![0.0; expected];
                if !stored.widen(&mut numbers) {
                    return Err(Error::Weights { layer, expected, got: stored.len() });
                }
                if expected > 0 {
                    *buffer = Some(self.gpu.upload(&numbers)?);
                }
            }
            self.weights.insert(layer, buffers);
        }
        Ok(())
    }

    fn write(&mut self, slot: Slot, from: Host<'_>) -> Result<(), Error> {
        match from {
            Host::F32(v) => self.upload(slot, Dtype::F32, bytemuck::cast_slice(v)),
            Host::U8(v) => self.upload(slot, Dtype::U8, v),
            Host::U16(v) => self.upload(slot, Dtype::U16, bytemuck::cast_slice(v)),
        }
    }

    fn read(&mut self, slot: Slot, into: HostMut<'_>) -> Result<(), Error> {
        match into {
            HostMut::F32(v) => self.download(slot, Dtype::F32, bytemuck::cast_slice_mut(v)),
            HostMut::U8(v) => self.download(slot, Dtype::U8, v),
            HostMut::U16(v) => self.download(slot, Dtype::U16, bytemuck::cast_slice_mut(v)),
            HostMut::Pair(v) => {
                let mut words = vec![[0u32; 4]; v.len()];
                self.download(slot, Dtype::Pair, bytemuck::cast_slice_mut(&mut words))?;
                v.iter_mut().zip(words).for_each(|(v, words)| *v = Pair::from_words(words));
                Ok(())
            }
        }
    }

    fn fill(
        &mut self,
        slot: Slot,
        with: &mut dyn FnMut(HostMut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let beside = self.memory.is_idle(slot);
        let to = self.memory.address(slot)?;
        let bytes = slot.bytes();
        self.pages.reverse();
        let [page, _] = &mut self.pages;
        if page.as_ref().is_none_or(|page| page.len() < bytes) {
            *page = Some(Page::new(&self.gpu, bytes)?);
        }
        let Some(page) = page else { return Ok(()) };
        let host = page.bytes()?.get_mut(..bytes).unwrap_or_default();
        match slot.dtype {
            Dtype::F32 => with(HostMut::F32(bytemuck::cast_slice_mut(host)))?,
            Dtype::U8 => with(HostMut::U8(host))?,
            Dtype::U16 => with(HostMut::U16(bytemuck::cast_slice_mut(host)))?,
            _ => return Err(Error::Unsupported("filling slots of this type")),
        }
        page.copy(&self.gpu, to, bytes, beside)
    }

    fn zero(&mut self, slot: Slot) -> Result<(), Error> {
        self.gpu.set(self.memory.address(slot)?, 0, slot.bytes())
    }

    fn copy(&mut self, from: Slot, to: Slot) -> Result<(), Error> {
        if from.layout != to.layout {
            return Err(Error::Unsupported("copying to another layout"));
        }
        let [source, target] = self.memory.lease([from, to])?;
        if from.bytes() != to.bytes() {
            return Err(ArenaError::Length { slot: to.bytes(), host: from.bytes() }.into());
        }
        if from.dtype != to.dtype {
            return Err(ArenaError::Dtype { slot: from.dtype, asked: to.dtype }.into());
        }
        self.gpu.copy(source, target, to.bytes())
    }

    fn widen(&mut self, raw: Slot, norm: &Normalisation, x: Slot) -> Result<(), Error> {
        let elements = x.elements();
        let from = match raw.dtype {
            Dtype::U8 => self.memory.lease([raw, x])?[0],
            _ => self.memory.of(raw, Dtype::F32, elements)?,
        };
        same_length(raw, elements)?;
        let to = self.memory.of(x, Dtype::F32, elements)?;
        elementwise::widen(&self.gpu, (from, raw.dtype == Dtype::U8), norm, x.shape, to)
    }

    fn forward(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let Call { layer, place, phase, .. } = *call;
        if let Layer::Residual(l) = *layer {
            let [w, b, ..] = self.parameters(call.param)?;
            return residual::forward((&self.gpu, &self.memory), l, place, [w, b]);
        }
        let shape = place.x.shape;
        let pass = if phase == Phase::Eval { Pass::Eval } else { Pass::Train };
        let needs = layers::needs(layer, shape, pass);
        let needs = needs.ok_or(plan::PlanError::Shape { layer: call.index, input: shape })?;
        let [y, saved] = self.memory.lease([place.y, place.saved])?;
        let mut x = self.memory.of(place.x, Dtype::F32, place.x.elements())?;
        if needs.in_place {
            if place.x.at != place.y.at {
                self.copy(place.x, place.y)?;
            }
            x = y;
        }
        let [weight, bias, mean, variance] = self.parameters(call.param)?;
        let gpu = &*self.gpu;
        let (index, out) = (call.index, needs.out);
        layers::forward(
            layer,
            &Forward { gpu, index, shape, out, phase, x, y, saved, weight, bias, mean, variance },
        )
    }

    fn eval_block(&mut self, block: &EvalBlock<'_>) -> Result<Slot, Error> {
        folded::eval_block(self, block, |cuda, call| cuda.forward(call), Self::together)
    }

    fn backward(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let Call { layer, place, phase, .. } = *call;
        let Param::Ram(p) = call.param else {
            return Err(Error::Unsupported("gradients of parameters that lie in the model"));
        };
        if let Layer::Residual(_) = layer {
            return residual::backward(&self.gpu, &self.memory, place);
        }
        let shape = place.x.shape;
        let out = layer.output(shape);
        let out = out.ok_or(plan::PlanError::Shape { layer: call.index, input: shape })?;
        let memory = &self.memory;
        let [weight, variance, dweight, dbias, saved, scratch] = memory.lease([
            p.weight,
            p.variance,
            p.dweight,
            p.dbias,
            place.saved,
            place.backward_scratch,
        ])?;
        let [x, y] = [memory.address(place.x)?, memory.address(place.y)?];
        let [dy, dx] = [memory.address(place.dy)?, memory.address(place.dx)?];
        let (gpu, index) = (&*self.gpu, call.index);
        layers::backward(
            layer,
            &Backward {
                gpu,
                index,
                shape,
                out,
                phase,
                x,
                y,
                saved,
                scratch,
                weight,
                variance,
                dweight,
                dbias,
                dy,
                dx,
            },
        )
    }

    fn backward_source(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let Layer::Residual(l) = *call.layer else { return Ok(()) };
        let Param::Ram(p) = call.param else {
            return Err(Error::Unsupported("gradients of parameters that lie in the model"));
        };
        let parameters = self.memory.lease([p.weight, p.dweight, p.dbias])?;
        residual::backward_source((&self.gpu, &self.memory), l, call, parameters)
    }

    fn objective(&mut self, objective: &Objective, at: &ObjectivePlace) -> Result<Score, Error> {
        objective::run(&self.gpu, &self.memory, objective, at)
    }

    fn update(
        &mut self,
        rule: &Rule,
        rate: f32,
        update: u32,
        params: plan::Params,
    ) -> Result<(), Error> {
        let slots = [params.trained(), params.gradients(), params.state(0), params.state(1)];
        let len = slots[0].elements() as u32;
        let addresses = self.memory.lease(slots)?;
        optim::update(&self.gpu, rule, (rate, update), len, addresses)
    }

    /// Allocates on the device, beside the arena, for the time of the call. Rows in half precision are
    /// copied as they are and widened there.
    fn nearest(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        pairs: &mut [Pair],
    ) -> Result<(), Error> {
        search::nearest(&self.gpu, &self.memory, queries, bank, (first, skip), pairs)
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
        search::top_k(&self.gpu, &self.memory, queries, bank, (first, skip), k, out)
    }
}
