//! Groups of layers with all that is to be known to run them: planned, shaped, their kernels chosen.

use super::group::{Group, Kind};
use super::{Parameters, float, integer, numbers, single};
use crate::arena::{Arena, Dtype, Lease, Slot};
use crate::backend::{Call, Param, Phase};
use crate::error::Error;
use crate::layer::{Layer, Pass, Quantise, RELU, Tensors};
use crate::net::Stored;
use crate::plan::{Chain, EvalWalk, ParamSlots, Place, PlanError, tri};
use crate::shape::Shape;

/// What runs a group on its parameters and on [its memory](Op::memory). A program that never makes
/// an [`Op`] of some kernel, because it makes all of them at compile time, does not link that kernel,
/// nor the parts of kernels that none of its groups is made [`With`].
pub(super) type Kernel = fn(&Op<'_>, &Parameters<'_>, [Lease<'_>; 4]) -> Result<(), Error>;

/// The parts that a kernel is put together of.
#[derive(Clone, Copy, Debug)]
pub(super) enum With {
    /// None.
    Nothing,
    /// For sums of numbers.
    Floats(float::Parts),
    /// For sums of bytes.
    Bytes(integer::Parts),
}

/// A group of layers, ready to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op<'m> {
    pub group: Group<'m>,
    pub x: Slot,
    pub y: Slot,
    /// What is kept: by unit length the norms, under training the places that won the pool. What a
    /// residual addition adds.
    pub saved: Slot,
    /// As numbers.
    pub scratch: Slot,
    /// Those of the first layer's parameters, and of the norm's behind it.
    pub lengths: [Tensors; 2],
    /// Numbers of all parameters before.
    pub before: usize,
    /// None where there is no kernel for small cores.
    pub kernel: Option<Kernel>,
    /// Its parts.
    pub with: With,
}

impl<'m> Op<'m> {
    /// Nothing.
    pub const NONE: Self = Self {
        group: Group::NONE,
        x: Slot::EMPTY,
        y: Slot::EMPTY,
        saved: Slot::EMPTY,
        scratch: Slot::EMPTY,
        lengths: [Tensors::NONE; 2],
        before: 0,
        kernel: None,
        with: With::Nothing,
    };

    /// A group that reads, writes, keeps what it keeps, and has scratch, in these slots.
    pub const fn new(
        group: Group<'m>,
        [x, y, saved, scratch]: [Slot; 4],
        lengths: [Tensors; 2],
        pass: Pass,
    ) -> Self {
        let (kernel, with) = kernel(&group, x.shape, (pass, y.dtype));
        let scratch = numbers(scratch);
        Self { group, x, y, saved, scratch, lengths, before: 0, kernel, with }
    }

    /// x (unless the group works in place), y, what is saved, and scratch.
    fn memory<'a>(&self, arena: &'a mut Arena<'_>) -> [Lease<'a>; 4] {
        // A sum that is written over what it adds is that and x.
        let saved = if self.saved.at == self.y.at { &Slot::EMPTY } else { &self.saved };
        arena.planned_leases([self.input(), &self.y, saved, &self.scratch])
    }

    fn input(&self) -> &Slot {
        if self.x.at == self.y.at { &Slot::EMPTY } else { &self.x }
    }

    /// What the reference is told to run a layer alone.
    pub fn call<'a>(&'a self, param: Param<'a>) -> Call<'a> {
        let layer = match self.group.kind {
            Kind::Other(layer) => layer,
            _ => &RELU,
        };
        let Self { x, y, saved, scratch, .. } = *self;
        let place = Place { x, y, saved, scratch, source: saved, ..Place::NONE };
        Call { layer, index: self.group.first, place, param, phase: Phase::Eval }
    }

    /// Runs it on parameters where they are stored: those of layer `layer` of the net, and of the norm
    /// behind it.
    ///
    /// # Errors
    /// Parameters of other lengths or types.
    #[inline(never)]
    pub fn run(
        &self,
        arena: &mut Arena<'_>,
        layer: usize,
        stored: &[[Stored<'_>; 4]; 2],
    ) -> Result<(), Error> {
        let p = Parameters::new(layer, stored, &self.lengths)?;
        let kernel = self.kernel.ok_or(UNKNOWN)?;
        kernel(self, &p, self.memory(arena))
    }

    /// Runs it on parameters in the arena.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_trained(
        &self,
        arena: &mut Arena<'_>,
        layer: usize,
        [own, norm]: &[ParamSlots; 2],
    ) -> Result<(), Error> {
        let [x, y, saved, scratch, leases @ ..] = arena.planned_leases([
            self.input(),
            &self.y,
            &self.saved,
            &self.scratch,
            &own.weight,
            &own.bias,
            &norm.weight,
            &norm.bias,
            &norm.mean,
            &norm.variance,
        ]);
        let [weight, bias, gamma, beta, mean, variance] =
            leases.map(|lease| Stored { bytes: lease.bytes(), ..Stored::EMPTY });
        let own = [weight, bias, Stored::EMPTY, Stored::EMPTY];
        let stored = [own, [gamma, beta, mean, variance]];
        let p = Parameters::new(layer, &stored, &self.lengths)?;
        let kernel = self.kernel.ok_or(UNKNOWN)?;
        kernel(self, &p, [x, y, saved, scratch])
    }
}

const UNKNOWN: Error = Error::Unsupported("this layer");

/// The groups of a chain one by one, those left out that move nothing and compute nothing.
pub(crate) struct Ops<'m> {
    chain: Chain<'m>,
    walk: EvalWalk,
    pass: Pass,
    /// The next layer.
    at: usize,
    reads: Option<&'m Quantise>,
    before: usize,
}

impl<'m> Ops<'m> {
    /// The groups of a chain that works where `walk` says.
    pub const fn new(chain: Chain<'m>, walk: EvalWalk, pass: Pass) -> Self {
        Self { chain, walk, pass, at: 0, reads: None, before: 0 }
    }

    /// The tensor that the last of all groups writes.
    ///
    /// # Errors
    /// A layer that cannot take its input.
    pub const fn output(mut self) -> Result<Slot, PlanError> {
        while tri!(self.next()).is_some() {}
        Ok(self.x())
    }

    /// The tensor that the last group wrote.
    pub const fn x(&self) -> Slot {
        self.walk.x()
    }

    /// Numbers of the parameters of all groups so far.
    pub const fn before(&self) -> usize {
        self.before
    }

    /// The next group.
    ///
    /// # Errors
    /// A layer that cannot take its input.
    pub(super) const fn next(&mut self) -> Result<Option<Op<'m>>, PlanError> {
        while self.at < self.chain.len() {
            let (op, layers) = tri!(self.step());
            (self.at, self.reads) = (self.at + layers, op.group.next_reads());
            let [own, norm] = op.lengths;
            self.before = op.before + own.total() as usize + norm.total() as usize;
            match op.group.kind {
                Kind::Other(Layer::Flatten(_) | Layer::Dropout(_)) => {}
                // Raw bytes that are the steps already.
                Kind::Other(Layer::Quantise(_)) if matches!(op.x.dtype, Dtype::U8) => {}
                _ => return Ok(Some(op)),
            }
        }
        Ok(None)
    }

    const fn step(&mut self) -> Result<(Op<'m>, usize), PlanError> {
        let x = self.walk.x();
        let impossible = PlanError::Shape { layer: self.at, input: x.shape };
        let Some(group) = Group::at(&self.chain, self.at, self.reads) else {
            return Err(impossible);
        };
        let (Some(lengths), Some(needs)) = (
            group.lengths(&self.chain, x.shape),
            group.needs(&self.chain, x.shape, x.dtype, self.pass),
        ) else {
            return Err(impossible);
        };
        let needs = tri!(self.chain.needs(self.at, self.walk.reached(), Some(needs)));
        let place = tri!(self.walk.step(needs));
        self.walk.skip(group.len.saturating_sub(1));
        let saved = if needs.adds.is_some() { place.source } else { place.saved };
        let op = Op::new(group, [place.x, place.y, saved, place.scratch], lengths, self.pass);
        Ok((Op { before: self.before, ..op }, group.len))
    }
}

/// The kernel of a group that reads `x` and writes numbers or bytes, and its parts.
const fn kernel(
    group: &Group<'_>,
    x: Shape,
    (pass, writes): (Pass, Dtype),
) -> (Option<Kernel>, With) {
    let integer = group.is_integer(pass);
    let with = match group.kind {
        Kind::Other(_) => With::Nothing,
        _ if integer => With::Bytes(integer::Parts::of(group, x)),
        _ => With::Floats(float::Parts::of(group, x, matches!(pass, Pass::Narrow))),
    };
    let kernel: Option<Kernel> = match group.kind {
        Kind::Conv(_) if integer => Some(integer::conv),
        Kind::Dense(_) if integer => Some(integer::dense),
        Kind::Conv(_) => Some(float::conv),
        Kind::Dense(_) => Some(float::dense),
        Kind::Other(layer) => single::kernel(layer, writes),
    };
    (kernel, with)
}
