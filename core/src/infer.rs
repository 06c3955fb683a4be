//! Running a trained net.

use crate::arena::{Dtype, Layout, Slot};
use crate::backend::{self, Backend, EvalBlock, EvalParams, HostMut};
use crate::error::Error;
use crate::layer::Pass;
use crate::net::{Model, Net};
use crate::plan::{self, Chain, PlanError, tri};
use crate::shape::Shape;

/// Where layers `first..last` of a net run on up to `n` samples at once.
///
/// ```
/// use sepal_core::arena::Word;
/// use sepal_core::infer::Inference;
/// use sepal_core::layer::{Dense, Layer};
/// use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
/// use sepal_core::reference::Reference;
/// use sepal_core::shape::Shape;
///
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::rows(1, 4), normalisation: Normalisation::NONE },
///     layers: &[Layer::Dense(Dense { units: 2, bias: false })],
///     blocks: &[1],
///     features: 0,
/// };
/// const PLAN: Inference<'static> = match Inference::reference(NET, 1) {
///     Ok(plan) => plan,
///     Err(_) => panic!("the layers do not fit each other"),
/// };
/// const _: () = assert!(PLAN.bytes() <= 64, "the net does not fit the board");
///
/// let mut memory = [Word::ZERO; PLAN.bytes() / Word::BYTES];
/// let mut backend = Reference::new(&mut memory);
/// let model = Model { net: NET, weights: Weights::Flat(&[1., 0., 0., 0., 0., 0., 0., 1.]) };
/// let mut logits = [0.0; 2];
/// PLAN.run(&mut backend, &model, 1, |raw| raw.copy_from_slice(&[0, 0, 0, 255]), &mut logits)?;
/// assert_eq!(logits, [0.0, 1.0]);
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
/// A net over the budget is a compile error:
/// ```compile_fail,E0080
/// # use sepal_core::infer::Inference;
/// # use sepal_core::layer::{Conv2d, Layer};
/// # use sepal_core::net::{Input, Net, Normalisation};
/// # use sepal_core::shape::Shape;
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::new(1, 3, 64, 64), normalisation: Normalisation::NONE },
///     layers: &[Layer::Conv2d(Conv2d::new(32, 3))],
///     blocks: &[1],
///     features: 1,
/// };
/// const BYTES: usize = match Inference::reference(NET, 1) {
///     Ok(plan) => plan.bytes(),
///     Err(_) => panic!("the layers do not fit each other"),
/// };
/// // It takes 541,184: 3x64x64 numbers and 32x62x62.
/// const _: () = assert!(BYTES <= 65_536, "the net does not fit the board");
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Inference<'m> {
    net: Net<'m>,
    first: usize,
    last: usize,
    pass: Pass,
    bytes: bool,
    plan: plan::Eval,
}

impl<'m> Inference<'m> {
    /// The plan for a whole net on the reference backend, from raw bytes to its output, with
    /// weights that are f32: the memory is a constant of the program.
    ///
    /// # Errors
    /// Layers that do not fit each other.
    pub const fn reference(net: Net<'m>, n: u32) -> Result<Self, PlanError> {
        let chain = Chain::new(net.layers);
        let plan = tri!(plan::Eval::reference(0, chain, net.input.shape.with_n(n), Pass::Eval));
        let plan = tri!(plan.before(raw(&net, 0, n).bytes()));
        Ok(Self { net, first: 0, last: net.layers.len(), pass: Pass::Eval, bytes: true, plan })
    }

    /// As [`reference`](Self::reference) on the backend for small cores,
    /// [`Micro`](crate::micro::Micro), for weights that are f32 or, if `narrow`, in a narrower type.
    ///
    /// # Errors
    /// Layers that do not fit each other.
    pub const fn micro(net: Net<'m>, n: u32, narrow: bool) -> Result<Self, PlanError> {
        Self::micro_to(net, net.layers.len(), n, narrow)
    }

    /// As [`micro`](Self::micro), for layers `..last`.
    ///
    /// # Errors
    /// Layers that do not fit each other, more layers than there are.
    pub const fn micro_to(
        net: Net<'m>,
        last: usize,
        n: u32,
        narrow: bool,
    ) -> Result<Self, PlanError> {
        let pass = if narrow { Pass::Narrow } else { Pass::Eval };
        let dtype = if last == 0 { Dtype::F32 } else { crate::micro::input_type(&net, pass) };
        let input = Slot::new(0, net.input.shape.with_n(n), dtype);
        let plan = tri!(crate::micro::plan(0, tri!(net.chain(0, last)), input, pass));
        let room = if matches!(dtype, Dtype::U8) { 0 } else { raw(&net, 0, n).bytes() };
        let plan = tri!(plan.before(room));
        Ok(Self { net, first: 0, last, pass, bytes: true, plan })
    }

    /// What the backend for small cores runs.
    pub(crate) const fn micro_ops(&self) -> Result<crate::micro::Ops<'m>, PlanError> {
        let chain = tri!(self.net.chain(self.first, self.last));
        Ok(crate::micro::Ops::new(chain, self.plan.walk(self.plan.input().shape.n), self.pass))
    }

    /// Where [`run_slot`](Self::run_slot) leaves the output on the backend for small cores.
    ///
    /// # Errors
    /// None for a plan for that backend.
    pub(crate) const fn micro_output(&self) -> Result<Slot, PlanError> {
        tri!(self.micro_ops()).output()
    }

    /// Numbers of all parameters of the layers before layer `layer`.
    pub(crate) fn before(&self, layer: usize) -> Option<usize> {
        self.net.params(layer).ok()
    }

    /// The plan for layers `first..last` on any backend. `bytes` says whether raw samples are
    /// bytes; layers that are not the net's first always take numbers.
    ///
    /// # Errors
    /// Layers that do not fit each other, a range outside the net.
    pub fn new<B: Backend + ?Sized>(
        backend: &B,
        model: &Model<'m>,
        (first, last): (usize, usize),
        n: u32,
        bytes: bool,
    ) -> Result<Self, PlanError> {
        let bytes = bytes && first == 0;
        let pass = pass(model);
        let direct = bytes && last > 0 && backend.takes_bytes(&model.net, pass);
        let dtype = if direct { Dtype::U8 } else { Dtype::F32 };
        let shape = model.net.shape(first)?.with_n(n);
        let this = Self::of(backend, model, (first, last), Slot::new(0, shape, dtype))?;
        let room = if bytes && !direct { raw(&model.net, first, n).bytes() } else { 0 };
        Ok(Self { bytes, plan: this.plan.before(room)?, ..this })
    }

    /// As [`new`](Self::new) for numbers that lie in `layout`, with its padding.
    ///
    /// # Errors
    /// As `new`.
    pub fn lying<B: Backend + ?Sized>(
        backend: &B,
        model: &Model<'m>,
        (first, last): (usize, usize),
        n: u32,
        layout: Layout,
    ) -> Result<Self, PlanError> {
        let shape = model.net.shape(first)?.with_n(n);
        let input = Slot { layout, ..Slot::new(0, shape, Dtype::F32) };
        Self::of(backend, model, (first, last), input)
    }

    fn of<B: Backend + ?Sized>(
        backend: &B,
        model: &Model<'m>,
        (first, last): (usize, usize),
        input: Slot,
    ) -> Result<Self, PlanError> {
        let (net, pass) = (model.net, pass(model));
        let chain = net.chain(first, last)?;
        let plan = backend::plan_eval(backend, 0, &chain, input, pass)?;
        Ok(Self { net, first, last, pass, bytes: false, plan })
    }

    /// The arena's size in bytes that a run needs: exact.
    pub const fn bytes(&self) -> usize {
        self.plan.bytes()
    }

    /// Elements of one sample's output.
    pub fn output(&self) -> usize {
        let shape = self.net.shape(self.last).ok().and_then(Shape::sample);
        shape.unwrap_or(0) as usize
    }

    /// Runs `n` samples: `fill` writes the raw ones, `out` takes the outputs, row by row.
    /// Backends that pack or upload weights want [`Backend::prepare`] called once before.
    ///
    /// # Errors
    /// An arena that is too small (both sizes are named), memory of another length than the
    /// outputs', weights that are missing, samples of the other type.
    pub fn run<B: Backend + ?Sized, T: RawSample>(
        &self,
        backend: &mut B,
        model: &Model<'_>,
        n: u32,
        mut fill: impl FnMut(&mut [T]),
        out: &mut [f32],
    ) -> Result<(), Error> {
        let slot = self.run_slot(backend, model, n, |host| {
            fill(T::samples(host)?);
            Ok(())
        })?;
        backend.read(slot, HostMut::F32(out))
    }

    /// As [`run`](Self::run); the output stays in the arena until the next run.
    ///
    /// # Errors
    /// As [`run`](Self::run), and those of `fill`.
    pub fn run_slot<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        model: &Model<'_>,
        n: u32,
        mut fill: impl FnMut(HostMut<'_>) -> Result<(), Error>,
    ) -> Result<Slot, Error> {
        let (needed, given) = (self.bytes(), backend.bytes());
        if needed > given {
            return Err(crate::arena::ArenaError::OutOfMemory { needed, given }.into());
        }
        let x = self.plan.input();
        if n == 0 || n > x.shape.n {
            return Err(PlanError::Batch { size: n }.into());
        }
        let x = x.head(n);
        // Bytes that the first layer reads as they are lie where it reads them.
        let direct = x.dtype == Dtype::U8;
        let raw = if self.bytes && !direct { raw(&self.net, self.first, n) } else { x };
        backend.fill(raw.flat(), &mut fill)?;
        if self.first == 0 && !direct {
            backend.widen(raw, &self.net.input.normalisation, x)?;
        }
        let chain = self.net.chain(self.first, self.last)?;
        let params = EvalParams::Model { model: *model, first: self.first };
        backend.eval_block(&EvalBlock { chain, params, plan: self.plan, pass: self.pass, n })
    }
}

/// How a model's frozen layers run.
fn pass(model: &Model<'_>) -> Pass {
    if model.weights.is_narrow() { Pass::Narrow } else { Pass::Eval }
}

/// Raw samples lie at the start of the region, the widened ones at its end.
const fn raw(net: &Net<'_>, first: usize, n: u32) -> Slot {
    let shape = match net.shape(first) {
        Ok(shape) => shape.with_n(n),
        Err(_) => Shape::new(0, 0, 0, 0),
    };
    Slot::new(0, shape, Dtype::U8)
}

/// A type that raw samples come in.
pub trait RawSample: Sized {
    /// The memory, where it is of this type.
    ///
    /// # Errors
    /// Where it is of the other.
    fn samples(host: HostMut<'_>) -> Result<&mut [Self], Error>;
}

impl RawSample for u8 {
    fn samples(host: HostMut<'_>) -> Result<&mut [Self], Error> {
        match host {
            HostMut::U8(samples) => Ok(samples),
            _ => Err(Error::Unsupported("bytes where the plan is for numbers")),
        }
    }
}

impl RawSample for f32 {
    fn samples(host: HostMut<'_>) -> Result<&mut [Self], Error> {
        match host {
            HostMut::F32(samples) => Ok(samples),
            _ => Err(Error::Unsupported("numbers where the plan is for bytes")),
        }
    }
}
