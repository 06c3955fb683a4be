//! Nets that are constants of the program, made ready while it is compiled.

use super::op::Op;
use crate::arena::{Arena, ArenaError, Dtype, Slot, Word};
use crate::error::Error;
use crate::infer::Inference;
use crate::layer::Tensors;
use crate::net::{Net, Stored, Weights};
use crate::plan::{PlanError, tri};
use crate::reference;

/// The groups of layers of a net that compute something: how many operations a [`Program`] of its
/// layers `..last` has. 0 where there is no plan; [`Program::new`] says why.
pub const fn operations(net: &Net<'_>, last: usize, narrow: bool) -> usize {
    let Ok(plan) = Inference::micro_to(*net, last, 1, narrow) else { return 0 };
    let Ok(mut ops) = plan.micro_ops() else { return 0 };
    let mut count = 0;
    while let Ok(Some(_)) = ops.next() {
        count += 1;
    }
    count
}

/// A net of `N` [`operations`] for small cores, one sample at a time, with nothing left to plan.
///
/// It computes what [`Micro`](super::Micro) computes with the same memory. Made at compile time, it
/// links the kernels of its own layers and no others, and neither shapes nor plans take code.
///
/// ```
/// use sepal_core::arena::Word;
/// use sepal_core::layer::{Conv2d, Dense, Layer, MaxPool, RELU};
/// use sepal_core::micro::{Program, operations};
/// use sepal_core::net::{Input, Net, Normalisation, Weights};
/// use sepal_core::shape::Shape;
///
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE },
///     layers: &[Layer::Conv2d(Conv2d::new(6, 5)), RELU, Layer::MaxPool(MaxPool::new(2))],
///     blocks: &[3],
///     features: 1,
/// };
/// const OPERATIONS: usize = operations(&NET, 3, false);
/// static PROGRAM: Program<'static, OPERATIONS> = match Program::new(NET, false) {
///     Ok(program) => program,
///     Err(_) => panic!("the layers do not fit each other"),
/// };
///
/// let weights = [0.01; 156];
/// let (mut memory, mut features) = ([Word::ZERO; PROGRAM.bytes() / Word::BYTES], [0.0; 864]);
/// PROGRAM.run(&mut memory, &Weights::Flat(&weights), |raw| raw.fill(255), &mut features)?;
/// assert!((features[0] - 0.26).abs() < 1e-6);
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Program<'m, const N: usize> {
    net: Net<'m>,
    /// One past its last layer.
    last: usize,
    ops: [Op<'m>; N],
    /// The raw sample, and the numbers that are made of it; the same where bytes are read.
    raw: Slot,
    x: Slot,
    output: Slot,
    /// Numbers of all parameters.
    params: usize,
    bytes: usize,
}

impl<'m, const N: usize> Program<'m, N> {
    /// All layers of a net, for weights that are f32 or, if `narrow`, in a narrower type.
    ///
    /// # Errors
    /// Layers that do not fit each other, a layer without a kernel for small cores
    /// ([`PlanError::Kernel`]), another number of [`operations`] than `N`.
    pub const fn new(net: Net<'m>, narrow: bool) -> Result<Self, PlanError> {
        Self::up_to(net, net.layers.len(), narrow)
    }

    /// As [`new`](Self::new), for layers `..last`.
    ///
    /// # Errors
    /// As `new`, and more layers than there are.
    pub const fn up_to(net: Net<'m>, last: usize, narrow: bool) -> Result<Self, PlanError> {
        let plan = tri!(Inference::micro_to(net, last, 1, narrow));
        let mut ops = tri!(plan.micro_ops());
        let x = ops.x();
        let (mut made, mut count) = ([Op::NONE; N], 0);
        while let Some(op) = tri!(ops.next()) {
            if op.kernel.is_none() {
                return Err(PlanError::Kernel { layer: op.group.first });
            }
            if count < N {
                made[count] = op;
            }
            count += 1;
        }
        if count != N {
            return Err(PlanError::Range { first: 0, last: count, layers: N });
        }
        let raw =
            if matches!(x.dtype, Dtype::U8) { x } else { Slot { at: 0, dtype: Dtype::U8, ..x } };
        Ok(Self {
            net,
            last,
            ops: made,
            raw,
            x,
            output: ops.x(),
            params: ops.before(),
            bytes: plan.bytes(),
        })
    }

    /// The memory's size in bytes that a run needs: exact.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Runs one sample: `fill` writes its bytes, `out` takes the output.
    ///
    /// # Errors
    /// Memory that is too small (both sizes are named), an `out` of another length than the
    /// output's, weights that are missing.
    pub fn run(
        &self,
        memory: &mut [Word],
        weights: &Weights<'_>,
        fill: impl FnOnce(&mut [u8]),
        out: &mut [f32],
    ) -> Result<(), Error> {
        let mut arena = Arena::new(memory);
        let (needed, given) = (self.bytes, arena.bytes());
        if needed > given {
            return Err(ArenaError::OutOfMemory { needed, given }.into());
        }
        fill(arena.planned(self.raw));
        self.part(N, self.output).run(&mut arena, weights)?;
        let y = &*arena.planned::<f32>(self.output);
        if y.len() != out.len() {
            return Err(ArenaError::Length { slot: y.len(), host: out.len() }.into());
        }
        out.iter_mut().zip(y).for_each(|(out, y)| *out = *y);
        Ok(())
    }

    /// The layers before layer `last`.
    ///
    /// # Errors
    /// More layers than the program's, and such as end within an operation.
    pub(super) const fn prefix(&'m self, last: usize) -> Result<Prefix<'m>, PlanError> {
        let outside = PlanError::Range { first: 0, last, layers: self.last };
        if last > self.last {
            return Err(outside);
        }
        let (mut count, mut output) = (0, self.x);
        while count < N && self.ops[count].group.first < last {
            let Op { group, y, .. } = &self.ops[count];
            if group.first + group.len > last {
                return Err(outside);
            }
            (output, count) = (*y, count + 1);
        }
        Ok(self.part(count, Slot { shape: tri!(self.net.shape(last)), ..output }))
    }

    const fn part(&self, count: usize, output: Slot) -> Prefix<'_> {
        let Self { net, raw, x, params, bytes, .. } = self;
        let (ops, _) = self.ops.as_slice().split_at(count);
        Prefix { net, ops, raw: *raw, x: *x, output, params: *params, bytes: *bytes }
    }
}

/// The first layers of a [`Program`]: frozen blocks before one that is tuned.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'m> {
    pub(super) net: &'m Net<'m>,
    ops: &'m [Op<'m>],
    /// Where the raw sample is to be written, and where the output lies once it has run.
    pub(super) raw: Slot,
    x: Slot,
    pub(super) output: Slot,
    params: usize,
    pub(super) bytes: usize,
}

impl Prefix<'_> {
    /// Runs the sample whose bytes lie in the arena.
    #[inline(never)]
    pub(super) fn run(&self, arena: &mut Arena<'_>, weights: &Weights<'_>) -> Result<(), Error> {
        if self.x.dtype == Dtype::F32 {
            reference::widen(arena, self.raw, &self.net.input.normalisation, self.x)?;
        }
        for op in self.ops {
            let before = |layer| self.before(layer);
            let mut stored = [[Stored::EMPTY; 4]; 2];
            for ((stored, lengths), layer) in
                stored.iter_mut().zip(op.lengths).zip(op.group.first..)
            {
                if lengths != Tensors::NONE {
                    *stored = weights.find(layer, lengths, &before);
                }
            }
            op.run(arena, op.group.first, &stored)?;
        }
        Ok(())
    }

    /// Numbers of all parameters of the layers before layer `layer`.
    pub(super) fn before(&self, layer: usize) -> Option<usize> {
        for op in self.ops {
            let [own, norm] = op.lengths;
            match layer.checked_sub(op.group.first) {
                None | Some(0) => return Some(op.before),
                Some(1) => return Some(op.before + own.total() as usize),
                Some(inside) if inside < op.group.len => {
                    return Some(op.before + (own.total() + norm.total()) as usize);
                }
                Some(_) => {}
            }
        }
        Some(self.params)
    }
}
