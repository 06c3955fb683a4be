//! Which layers run together.

use crate::arena::Dtype;
use crate::layer::{
    Activation, BatchNorm, Conv2d, Dense, Layer, MaxPool, Needs, Pass, Quantise, RELU, Tensors,
};
use crate::plan::{Chain, Reached};
use crate::shape::Shape;

/// Places that are computed side by side.
pub(super) const TILE: usize = 8;

/// What a group computes with, and the norm, the activation, the pool and the steps behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'m> {
    /// The first layer.
    pub first: usize,
    /// How many layers.
    pub len: usize,
    pub kind: Kind<'m>,
    /// Behind a convolution or a dense layer only.
    pub norm: Option<&'m BatchNorm>,
    pub activation: Option<&'m Activation>,
    pub pool: Option<&'m MaxPool>,
    pub quantise: Option<&'m Quantise>,
    /// What is read are bytes in these steps, in [`Pass::Narrow`].
    pub reads: Option<&'m Quantise>,
    /// What is written are bytes, in [`Pass::Narrow`].
    pub writes: bool,
}

/// The layer that a group begins with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind<'m> {
    Conv(&'m Conv2d),
    Dense(&'m Dense),
    /// Any other, alone.
    Other(&'m Layer),
}

impl<'m> Group<'m> {
    /// No layers.
    pub const NONE: Self = Self {
        first: 0,
        len: 0,
        kind: Kind::Other(&RELU),
        norm: None,
        activation: None,
        pool: None,
        quantise: None,
        reads: None,
        writes: false,
    };

    /// The group that begins at layer `at`, which reads bytes in the steps of `reads`.
    pub const fn at(chain: &Chain<'m>, at: usize, reads: Option<&'m Quantise>) -> Option<Self> {
        let Some(layer) = chain.get(at) else { return None };
        let mut group = Self { first: at, len: 1, kind: Kind::Other(layer), reads, ..Self::NONE };
        match layer {
            Layer::Conv2d(conv) => group.kind = Kind::Conv(conv),
            Layer::Dense(dense) => group.kind = Kind::Dense(dense),
            Layer::Quantise(quantise) => {
                group.quantise = Some(quantise);
                group.writes = is_computed(chain, at + 1);
                return Some(group);
            }
            _ => {
                group.writes = reads.is_some();
                return Some(group);
            }
        }
        // What is kept of a body is written: no group goes on into the head behind it.
        let body = chain.body.len();
        let past = if chain.keep && at < body { body } else { chain.len() };
        // Sums of bytes pass no norm, and no slope on their way to steps: numbers are written there.
        let numbers = reads.is_none();
        match before(chain, at + group.len, past) {
            Some(Layer::BatchNorm(norm)) if numbers => {
                group.norm = Some(norm);
                group.len += 1;
            }
            _ => {}
        }
        match before(chain, at + group.len, past) {
            Some(Layer::Activation(activation)) if joins(activation, numbers) => {
                group.activation = Some(activation);
                group.len += 1;
            }
            _ => {}
        }
        match before(chain, at + group.len, past) {
            Some(Layer::MaxPool(pool)) if matches!(layer, Layer::Conv2d(_)) && is_cut(pool) => {
                group.pool = Some(pool);
                group.len += 1;
            }
            _ => {}
        }
        // Sums of numbers are written as numbers: steps behind them are a group of their own.
        match before(chain, at + group.len, past) {
            Some(Layer::Quantise(quantise)) if reads.is_some() => {
                group.quantise = Some(quantise);
                group.len += 1;
                group.writes = is_computed(chain, at + group.len);
            }
            _ => {}
        }
        Some(group)
    }

    /// The group that layer `at` belongs to.
    pub const fn of(chain: &Chain<'m>, at: usize) -> Option<Self> {
        let (mut first, mut reads) = (0, None);
        loop {
            let Some(group) = Self::at(chain, first, reads) else { return None };
            first += group.len;
            if at < first {
                return Some(group);
            }
            reads = group.next_reads();
        }
    }

    /// In which steps the next group reads bytes.
    pub const fn next_reads(&self) -> Option<&'m Quantise> {
        match self.quantise {
            Some(quantise) if self.writes => Some(quantise),
            None if self.writes => self.reads,
            _ => None,
        }
    }

    /// Whether sums are made of bytes.
    pub const fn is_integer(&self, pass: Pass) -> bool {
        let computes = !matches!(self.kind, Kind::Other(_));
        computes && self.reads.is_some() && matches!(pass, Pass::Narrow)
    }

    /// The type of what it writes.
    const fn written(&self, pass: Pass) -> Dtype {
        if self.writes && matches!(pass, Pass::Narrow) { Dtype::U8 } else { Dtype::F32 }
    }

    /// Rows and columns of a window of the pool.
    pub fn windows(&self) -> (usize, usize) {
        let pool = self.pool.map_or((1, 1), |pool| pool.window.kernel);
        (pool.0.into(), pool.1.into())
    }

    /// The shape of what the group gives.
    pub const fn output(&self, chain: &Chain<'_>, x: Shape) -> Option<Shape> {
        let (mut shape, mut i) = (x, 0);
        while i < self.len {
            let Some(layer) = chain.get(self.first + i) else { return None };
            let Some(out) = layer.output(shape) else { return None };
            shape = out;
            i += 1;
        }
        Some(shape)
    }

    /// The lengths of the parameters of its first layer, and of the norm behind that.
    pub const fn lengths(&self, chain: &Chain<'_>, x: Shape) -> Option<[Tensors; 2]> {
        let Some(layer) = chain.get(self.first) else { return None };
        let Some(own) = layer.tensors(x) else { return None };
        let Some(norm) = self.norm else { return Some([own, Tensors::NONE]) };
        let Some(between) = layer.output(x) else { return None };
        match norm.tensors(between) {
            Some(norm) => Some([own, norm]),
            None => None,
        }
    }

    /// What it asks of the planner for an input `x` of type `dtype`.
    pub const fn needs(
        &self,
        chain: &Chain<'_>,
        x: Shape,
        dtype: Dtype,
        pass: Pass,
    ) -> Option<Needs> {
        let Some(layer) = chain.get(self.first) else { return None };
        let written = self.written(pass);
        let Some(needs) = layer.needs(x, pass) else { return None };
        match self.kind {
            Kind::Other(Layer::Quantise(_)) => {
                // Raw bytes are the steps themselves.
                let stays = written as u8 == dtype as u8;
                let forward_scratch = 0;
                Some(Needs { dtype: written, in_place: stays, forward_scratch, ..needs })
            }
            Kind::Other(_) => Some(Needs { dtype, ..needs }),
            Kind::Conv(_) | Kind::Dense(_) => {
                let Some(out) = self.output(chain, x) else { return None };
                let Some(tensors) = layer.tensors(x) else { return None };
                let rows = match self.kind {
                    Kind::Conv(conv) => conv.filters,
                    Kind::Dense(dense) => dense.units,
                    Kind::Other(_) => 1,
                };
                // Weights in a narrow type are widened some rows at a time.
                let widens = matches!(pass, Pass::Narrow) && !self.is_integer(pass);
                let row = match (tensors.weight).checked_div(rows) {
                    Some(row) if widens => row as usize,
                    _ => 0,
                };
                let rows = row.saturating_mul(super::ROWS * size_of::<f32>());
                let copy = match self.kind {
                    Kind::Conv(conv) => super::conv::spread_len(conv, x, self.pool.is_some()),
                    _ => 0,
                };
                let number = if self.is_integer(pass) { size_of::<u8>() } else { size_of::<f32>() };
                let forward_scratch = rows.saturating_add(copy.saturating_mul(number));
                Some(Needs { out, dtype: written, forward_scratch, ..needs })
            }
        }
    }
}

/// Whether an activation is computed where sums are made: those of numbers, or of bytes.
const fn joins(activation: &Activation, numbers: bool) -> bool {
    match activation {
        Activation::Relu | Activation::Relu6 => true,
        Activation::LeakyRelu { .. } => numbers,
        Activation::Tanh => false,
    }
}

/// The layer at `at`, where it lies before `past` and no residual addition reads what it reads.
const fn before<'m>(chain: &Chain<'m>, at: usize, past: usize) -> Option<&'m Layer> {
    if at < past && chain.held(at) == 0 { chain.get(at) } else { None }
}

/// Whether the pool cuts its input into windows that a tile holds: nothing is computed twice.
const fn is_cut(pool: &MaxPool) -> bool {
    let window = pool.window;
    let same = window.kernel.0 == window.stride.0 && window.kernel.1 == window.stride.1;
    same && window.pad.0 == 0 && window.pad.1 == 0 && window.kernel.1 as usize <= TILE
}

/// Whether what reaches layer `at` goes, as it is, into a layer that makes sums of bytes.
const fn is_computed(chain: &Chain<'_>, at: usize) -> bool {
    let mut at = at;
    loop {
        match chain.get(at) {
            Some(Layer::Flatten(_) | Layer::Dropout(_)) => at += 1,
            Some(Layer::Conv2d(_) | Layer::Dense(_)) => return true,
            _ => return false,
        }
    }
}

/// What layer `at` of a chain asks of the planner; see
/// [`Backend::needs`](crate::backend::Backend::needs).
pub(crate) const fn needs(
    chain: &Chain<'_>,
    at: usize,
    reached: Reached,
    pass: Pass,
) -> Option<Needs> {
    let Some(layer) = chain.get(at) else { return None };
    let (x, dtype) = (reached.x.shape, reached.x.dtype);
    if matches!(pass, Pass::Train) {
        return layer.needs(x, pass);
    }
    let added = reached.source(chain, at).dtype;
    if matches!(layer, Layer::Residual(_)) && !matches!((dtype, added), (Dtype::F32, Dtype::F32)) {
        return None;
    }
    let Some(group) = Group::of(chain, at) else { return None };
    if at > group.first {
        // The first layer of the group has done it.
        let done = Needs::moving(x);
        let dtype = group.written(pass);
        return Some(Needs { dtype, in_place: true, view: true, gradient_in_place: true, ..done });
    }
    group.needs(chain, x, dtype, pass)
}
