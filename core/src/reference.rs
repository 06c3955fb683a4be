//! The reference backend: plain loops over the caller's memory, the specification that every
//! other backend is tested against. It runs anywhere, without `std` and without a heap.

use crate::arena::{Arena, ArenaError, Dtype, Lease, Slot, Word};
use crate::backend::{
    Backend, Bank, Call, Device, Host, HostMut, ObjectivePlace, Param, Phase, same_length,
};
use crate::error::Error;
use crate::layer::{Layer, Pass, Residual, Role, Tensors};
use crate::loss::{self, Score};
use crate::neighbour::{Nearest, Pair, Rows, nearest_pair, top_k};
use crate::net::{Normalisation, Stored};
use crate::optim::Rule;
use crate::plan::{self, Place};
use crate::shape::Shape;
use crate::stage::{Loss, Objective};

/// Runs nets in one arena.
///
/// ```
/// use sepal_core::{arena::Word, backend::Backend, reference::Reference};
/// let mut memory = [Word::ZERO; 64];
/// assert_eq!(Reference::new(&mut memory).bytes(), 1024);
/// ```
#[derive(Debug)]
pub struct Reference<'a> {
    arena: Arena<'a>,
}

impl<'a> Reference<'a> {
    /// A backend whose memory is `words`.
    pub const fn new(words: &'a mut [Word]) -> Self {
        Self { arena: Arena::new(words) }
    }

    /// Its memory, which backends that build on this one reach directly.
    pub const fn arena(&mut self) -> &mut Arena<'a> {
        &mut self.arena
    }
}

/// The reference backend as a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnReference;

impl Device for OnReference {
    type Backend<'a> = Reference<'a>;

    fn open<'a>(&self, memory: &'a mut [Word]) -> Result<Reference<'a>, Error> {
        Ok(Reference::new(memory))
    }
}

/// The neighbours of each row among the others, written into `pairs`.
fn nearest_within<'a>(rows: Rows<'_, f32>, pairs: &'a mut [[u32; 4]]) -> &'a [Pair] {
    for ((i, pair), (query, label)) in (0..).zip(pairs.iter_mut()).zip(rows.iter()) {
        *pair = Pair::NONE.fold(query, label, rows, 0, Some(i)).to_words();
    }
    bytemuck::cast_slice(pairs)
}

impl Backend for Reference<'_> {
    fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    fn write(&mut self, slot: Slot, from: Host<'_>) -> Result<(), Error> {
        let wrong = ArenaError::Length { slot: slot.elements(), host: from.len() };
        let copied = match from {
            Host::F32(v) => copy(v, self.arena.view_mut(slot)?),
            Host::U8(v) => copy(v, self.arena.view_mut(slot)?),
            Host::U16(v) => copy(v, self.arena.view_mut(slot)?),
        };
        if copied { Ok(()) } else { Err(wrong.into()) }
    }

    fn read(&mut self, slot: Slot, into: HostMut<'_>) -> Result<(), Error> {
        let (host, copied) = match into {
            HostMut::F32(v) => (v.len(), copy(self.arena.view(slot)?, v)),
            HostMut::U8(v) => (v.len(), copy(self.arena.view(slot)?, v)),
            HostMut::U16(v) => (v.len(), copy(self.arena.view(slot)?, v)),
            HostMut::Pair(v) => {
                same_length(slot, v.len())?;
                let words = self.arena.view::<[u32; 4]>(slot)?;
                v.iter_mut().zip(words).for_each(|(v, &words)| *v = Pair::from_words(words));
                (v.len(), true)
            }
        };
        let wrong = ArenaError::Length { slot: slot.elements(), host };
        if copied { Ok(()) } else { Err(wrong.into()) }
    }

    fn fill(
        &mut self,
        slot: Slot,
        with: &mut dyn FnMut(HostMut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match slot.dtype {
            Dtype::F32 => with(HostMut::F32(self.arena.view_mut(slot)?)),
            Dtype::U8 => with(HostMut::U8(self.arena.view_mut(slot)?)),
            Dtype::U16 => with(HostMut::U16(self.arena.view_mut(slot)?)),
            _ => Err(Error::Unsupported("filling slots of this type")),
        }
    }

    fn zero(&mut self, slot: Slot) -> Result<(), Error> {
        let [lease] = self.arena.lease([slot])?;
        lease.bytes().fill(0);
        Ok(())
    }

    fn copy(&mut self, from: Slot, to: Slot) -> Result<(), Error> {
        if from.layout != to.layout {
            return Err(Error::Unsupported("copying to another layout"));
        }
        let [from, to] = self.arena.lease([from, to])?;
        let (from, to) = (from.bytes(), to.bytes());
        if from.len() != to.len() {
            return Err(ArenaError::Length { slot: to.len(), host: from.len() }.into());
        }
        to.copy_from_slice(from);
        Ok(())
    }

    fn widen(&mut self, raw: Slot, norm: &Normalisation, x: Slot) -> Result<(), Error> {
        let shape = x.shape;
        if raw.dtype == Dtype::U8 {
            widen(&mut self.arena, raw, norm, x)?;
        } else {
            if raw.at != x.at {
                self.copy(raw, x)?;
            }
            let x = self.arena.view_mut::<f32>(x)?;
            let plane = shape.plane().max(1) as usize;
            for (i, x) in x.chunks_exact_mut(plane).enumerate() {
                let channels = shape.c.max(1) as usize;
                let (factor, summand) = norm.affine(i % channels, channels, false);
                x.iter_mut().for_each(|x| *x = *x * factor + summand);
            }
        }
        Ok(())
    }

    fn forward(&mut self, call: &Call<'_>) -> Result<(), Error> {
        forward(&mut self.arena, call)
    }

    fn backward(&mut self, call: &Call<'_>) -> Result<(), Error> {
        backward(&mut self.arena, call)
    }

    fn backward_source(&mut self, call: &Call<'_>) -> Result<(), Error> {
        backward_source(&mut self.arena, call)
    }

    fn objective(&mut self, objective: &Objective, at: &ObjectivePlace) -> Result<Score, Error> {
        let dim = at.features.shape.sample().unwrap_or(0) as usize;
        let pairs = if objective.pairs() { at.pairs } else { Slot::EMPTY };
        let numbers = (objective.scratch(at.features.shape) / size_of::<f32>()) as u32;
        let row = match numbers {
            0 => Slot::EMPTY,
            numbers => Slot::vector(at.scratch.at, numbers, Dtype::F32),
        };
        let [features, labels, pairs, row, gradient] =
            self.arena.lease([at.features, at.labels, pairs, row, at.gradient])?;
        let (data, labels) = (&*features.get::<f32>()?, &*labels.get::<u16>()?);
        let gradient = Some(gradient.get::<f32>()?);
        Ok(match *objective {
            Objective::Statistics => Score::default(),
            Objective::CrossEntropy { smoothing } => {
                loss::cross_entropy(data, dim, labels, smoothing, gradient)
            }
            Objective::PredSim { beta, similar } => {
                loss::pred_sim(data, dim, labels, beta, similar as usize, row.get()?, gradient)
            }
            Objective::Goodness { threshold, classes } => {
                loss::goodness(data, dim, labels, classes, threshold, gradient)
            }
            Objective::Separation(loss) | Objective::Views(loss) => match loss {
                Loss::SoftNearest { temperature } => {
                    loss::soft_nearest(data, dim, labels, temperature, row.get()?, gradient)
                }
                Loss::SoftCentre { temperature } => {
                    loss::soft_centre(data, dim, labels, temperature, row.get()?, gradient)
                }
                Loss::Margin { margin } => {
                    let pairs = nearest_within(Rows { data, dim, labels }, pairs.get()?);
                    loss::margin(data, dim, pairs, margin, gradient)
                }
                Loss::Triplet => {
                    let pairs = nearest_within(Rows { data, dim, labels }, pairs.get()?);
                    loss::triplet(data, dim, pairs, gradient)
                }
            },
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
        let [p, g, first, second] = self.arena.lease(slots)?;
        rule.update(rate, update, p.get::<f32>()?, g.get()?, first.get()?, second.get()?);
        Ok(())
    }

    fn nearest(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        pairs: &mut [Pair],
    ) -> Result<(), Error> {
        match rows(&self.arena, queries, bank)? {
            [BankRows::F32(q), BankRows::F32(b)] => nearest_pair(q, b, first, skip, pairs),
            #[cfg(feature = "f16")]
            [BankRows::F32(q), BankRows::F16(b)] => nearest_pair(q, b, first, skip, pairs),
            #[cfg(feature = "f16")]
            [BankRows::F16(q), BankRows::F32(b)] => nearest_pair(q, b, first, skip, pairs),
            #[cfg(feature = "f16")]
            [BankRows::F16(q), BankRows::F16(b)] => nearest_pair(q, b, first, skip, pairs),
        }
        Ok(())
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
        match rows(&self.arena, queries, bank)? {
            [BankRows::F32(q), BankRows::F32(b)] => top_k(q, b, first, skip, k, out),
            #[cfg(feature = "f16")]
            [BankRows::F32(q), BankRows::F16(b)] => top_k(q, b, first, skip, k, out),
            #[cfg(feature = "f16")]
            [BankRows::F16(q), BankRows::F32(b)] => top_k(q, b, first, skip, k, out),
            #[cfg(feature = "f16")]
            [BankRows::F16(q), BankRows::F16(b)] => top_k(q, b, first, skip, k, out),
        }
        Ok(())
    }
}

/// Turns bytes into the net's input.
///
/// # Errors
/// A slot past the arena's end.
pub(crate) fn widen(
    arena: &mut Arena<'_>,
    raw: Slot,
    norm: &Normalisation,
    x: Slot,
) -> Result<(), Error> {
    let shape = x.shape;
    let [raw, x] = arena.lease([raw, x])?;
    let (raw, x) = (raw.get::<u8>()?, x.get::<f32>()?);
    for (c, raw, x) in planes(shape, raw, x) {
        let (factor, summand) = norm.affine(c, shape.c as usize, true);
        x.iter_mut().zip(raw).for_each(|(x, &raw)| *x = f32::from(raw) * factor + summand);
    }
    Ok(())
}

/// Copies memory of one length; false where the lengths differ, as those of a slot in a layout
/// that pads and of host memory do.
fn copy<T: Copy>(from: &[T], to: &mut [T]) -> bool {
    let same = from.len() == to.len();
    if same {
        to.copy_from_slice(from);
    }
    same
}

/// The channel planes of an image batch, raw and widened, each with its channel.
fn planes<'a>(
    shape: Shape,
    raw: &'a [u8],
    x: &'a mut [f32],
) -> impl Iterator<Item = (usize, &'a [u8], &'a mut [f32])> {
    let (plane, channels) = (shape.plane().max(1) as usize, shape.c.max(1) as usize);
    let planes = raw.chunks_exact(plane).zip(x.chunks_exact_mut(plane)).enumerate();
    planes.map(move |(i, (raw, x))| (i % channels, raw, x))
}

/// The rows of a [`Bank`], wherever they lie.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each variant is named after the type that it holds")]
pub enum BankRows<'a> {
    F32(Rows<'a, f32>),
    #[cfg(feature = "f16")]
    F16(Rows<'a, half::f16>),
}

impl BankRows<'_> {
    /// Numbers, features of a row and labels.
    const fn lengths(self) -> (usize, usize, usize) {
        match self {
            Self::F32(rows) => (rows.data.len(), rows.dim, rows.labels.len()),
            #[cfg(feature = "f16")]
            Self::F16(rows) => (rows.data.len(), rows.dim, rows.labels.len()),
        }
    }
}

/// Queries and bank as host rows: rows of one length, with a label for each.
///
/// # Errors
/// A slot past the arena's end, [`ArenaError::Length`] with two lengths that differ.
pub fn rows<'s>(
    arena: &'s Arena<'_>,
    queries: Bank<'s>,
    bank: Bank<'s>,
) -> Result<[BankRows<'s>; 2], Error> {
    let rows = |bank| {
        Ok::<_, ArenaError>(match bank {
            Bank::Host(rows) => BankRows::F32(rows),
            #[cfg(feature = "f16")]
            Bank::Half(rows) => BankRows::F16(rows),
            Bank::Slots { rows, labels } => BankRows::F32(Rows {
                data: arena.view(rows)?,
                dim: rows.shape.sample().unwrap_or(0) as usize,
                labels: arena.view(labels)?,
            }),
        })
    };
    let both = [rows(queries)?, rows(bank)?];
    let [(_, queries, _), (_, bank, _)] = both.map(BankRows::lengths);
    if queries != bank {
        return Err(ArenaError::Length { slot: bank, host: queries }.into());
    }
    for (numbers, dim, labels) in both.map(BankRows::lengths) {
        let expected = labels.saturating_mul(dim);
        if numbers != expected {
            return Err(ArenaError::Length { slot: expected, host: numbers }.into());
        }
    }
    Ok(both)
}

/// A layer's parameters as slices, ready for its kernels.
struct Parameters<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    mean: &'a [f32],
    variance: &'a [f32],
}

/// Stored tensors as f32: in place where they are aligned f32, else widened into `scratch`.
///
/// # Errors
/// Tensors of another length than the layer's, or of a type that this build does not read.
pub fn stored<'a>(
    layer: usize,
    tensors: Tensors,
    stored: [Stored<'a>; 4],
    scratch: &'a mut [f32],
) -> Result<[&'a [f32]; 4], Error> {
    let mut slices: [&'a [f32]; 4] = [&[]; 4];
    let mut rest = scratch;
    for ((slice, stored), role) in slices.iter_mut().zip(stored).zip(Role::ALL) {
        let expected = tensors.len(role) as usize;
        let wrong = Error::Weights { layer, expected, got: stored.len() };
        if stored.len() != expected {
            return Err(wrong);
        }
        *slice = match stored.as_f32() {
            Some(slice) => slice,
            None => {
                let room = Word::round_up(expected * size_of::<f32>()) / size_of::<f32>();
                let (own, others) = rest.split_at_mut_checked(room).ok_or(wrong)?;
                rest = others;
                let own = own.get_mut(..expected).ok_or(wrong)?;
                if !stored.widen(own) {
                    return Err(wrong);
                }
                own
            }
        };
    }
    Ok(slices)
}

/// Runs one layer forward in an arena that the host can read and write; what a backend does with
/// layers that it has no kernel of its own for.
///
/// # Errors
/// Parameters that are missing, a slot past the arena's end.
pub fn forward(arena: &mut Arena<'_>, call: &Call<'_>) -> Result<(), Error> {
    let Call { layer, place, phase, .. } = *call;
    let shape = place.x.shape;
    let pass = if phase == Phase::Eval { Pass::Eval } else { Pass::Train };
    let stays = layer.needs(shape, pass).is_some_and(|needs| needs.in_place);
    if let Layer::Residual(l) = layer {
        return add(arena, call, *l);
    }
    if stays && place.x.at != place.y.at {
        let [x, y] = arena.lease([place.x, place.y])?;
        if !copy(x.get::<f32>()?, y.get::<f32>()?) {
            let (slot, host) = (place.y.elements(), place.x.elements());
            return Err(ArenaError::Length { slot, host }.into());
        }
    }
    let x = if stays { Slot::EMPTY } else { place.x };
    match call.param {
        Param::Ram(p) => {
            let slots = [x, place.y, place.saved, p.weight, p.bias, p.mean, p.variance];
            let [x, y, saved, weight, bias, mean, variance] = arena.lease(slots)?;
            let (x, y) = (&*x.get::<f32>()?, y.get::<f32>()?);
            let (mean, variance) = (mean.get::<f32>()?, variance.get::<f32>()?);
            let (weight, bias) = (&*weight.get::<f32>()?, &*bias.get::<f32>()?);
            if phase == Phase::Eval {
                let p = Parameters { weight, bias, mean, variance };
                evaluate(layer, shape, x, &p, y, saved)
            } else {
                train(
                    layer,
                    call.index,
                    shape,
                    phase,
                    x,
                    [weight, bias],
                    [mean, variance],
                    y,
                    saved,
                )
            }
        }
        Param::Model { layer: index, tensors } => {
            let slots = [x, place.y, place.saved, numbers(place.scratch)];
            let [x, y, saved, scratch] = arena.lease(slots)?;
            let lengths = layer.tensors(shape).unwrap_or(Tensors::NONE);
            let [weight, bias, mean, variance] = stored(index, lengths, tensors, scratch.get()?)?;
            let p = Parameters { weight, bias, mean, variance };
            evaluate(layer, shape, x.get()?, &p, y.get()?, saved)
        }
    }
}

/// A layer with frozen parameters. In-place layers find their input in `y`.
fn evaluate(
    layer: &Layer,
    shape: Shape,
    x: &[f32],
    p: &Parameters<'_>,
    y: &mut [f32],
    saved: Lease<'_>,
) -> Result<(), Error> {
    match layer {
        Layer::Conv2d(l) => l.forward(shape, x, p.weight, p.bias, y),
        Layer::BatchNorm(l) => l.forward_eval(shape, p.weight, p.bias, p.mean, p.variance, y),
        Layer::Activation(l) => l.forward(y),
        Layer::MaxPool(l) => l.forward(shape, x, y, None),
        Layer::AvgPool(l) => l.forward(shape, x, y),
        Layer::GlobalAvgPool(l) => l.forward(shape, x, y),
        Layer::Dense(l) => l.forward(shape, x, p.weight, p.bias, y),
        Layer::Dropout(_) | Layer::Flatten(_) => {}
        Layer::Standardise(l) => l.forward(shape, p.mean, p.variance, y),
        Layer::L2Normalise(l) => l.forward(shape, y, saved.get()?),
        Layer::AvgPoolTo(l) => l.forward(shape, x, y),
        Layer::ChannelStd(l) => l.forward(shape, x, y),
        Layer::Project(l) => l.forward(shape, x, y),
        Layer::Embedding(l) => l.forward(shape, x, p.weight, y),
        Layer::KMaxPool(l) => l.forward(shape, x, y, None),
        Layer::SpaceToDepth(l) => l.forward(shape, x, y),
        Layer::Quantise(l) => l.forward(y),
        // It reads two tensors; see `add`.
        Layer::Residual(_) => {}
    }
    Ok(())
}

/// A residual addition. Where it writes over its source it adds x to that, otherwise its source to x.
fn add(arena: &mut Arena<'_>, call: &Call<'_>, layer: Residual) -> Result<(), Error> {
    let Place { x, y, source, scratch, .. } = call.place;
    let (shape, filters) = (source.shape, x.shape.c);
    if y.at == source.at {
        let [x, y] = arena.lease([x, y])?;
        layer.forward(shape, filters, x.get::<f32>()?, &[], &[], y.get()?);
        return Ok(());
    }
    if y.at != x.at {
        let [x, y] = arena.lease([x, y])?;
        copy(x.get::<f32>()?, y.get()?);
    }
    match call.param {
        Param::Ram(p) => {
            let [source, w, b, y] = arena.lease([source, p.weight, p.bias, y])?;
            let (w, b) = (w.get()?, b.get()?);
            layer.forward::<f32>(shape, filters, source.get()?, w, b, y.get()?);
        }
        Param::Model { layer: index, tensors } => {
            let [source, y, scratch] = arena.lease([source, y, numbers(scratch)])?;
            let lengths = layer.tensors(x.shape).unwrap_or(Tensors::NONE);
            let [w, b, ..] = stored(index, lengths, tensors, scratch.get()?)?;
            layer.forward::<f32>(shape, filters, source.get()?, w, b, y.get()?);
        }
    }
    Ok(())
}

/// Runs the rest of a residual addition's backward pass; see [`Backend::backward_source`].
///
/// # Errors
/// As [`backward`].
pub fn backward_source(arena: &mut Arena<'_>, call: &Call<'_>) -> Result<(), Error> {
    let Layer::Residual(layer) = call.layer else { return Ok(()) };
    let Param::Ram(p) = call.param else { return Err(FROZEN) };
    let Place { x, y, source, dsource, .. } = call.place;
    let shape = source.shape;
    // What is added as it is was overwritten where it could be.
    let source = if layer.project.is_some() { source } else { Slot::EMPTY };
    let [source, w, dw, db, dy, ds] =
        arena.lease([source, p.weight, p.dweight, p.dbias, y, dsource])?;
    let (source, w, dy) = (source.get::<f32>()?, w.get()?, dy.get()?);
    let ds = Some(ds.get()?).filter(|ds| !ds.is_empty());
    layer.backward(shape, x.shape.c, source, w, dy, ds, dw.get()?, db.get()?);
    Ok(())
}

/// Scratch as numbers.
fn numbers(scratch: Slot) -> Slot {
    Slot::vector(scratch.at, (scratch.bytes() / size_of::<f32>()) as u32, Dtype::F32)
}

/// A layer under training: batch statistics, winners kept, dropout drawn.
#[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the layer")]
fn train(
    layer: &Layer,
    index: usize,
    shape: Shape,
    phase: Phase,
    x: &[f32],
    [weight, bias]: [&[f32]; 2],
    [mean, variance]: [&mut [f32]; 2],
    y: &mut [f32],
    saved: Lease<'_>,
) -> Result<(), Error> {
    match (layer, phase) {
        (Layer::BatchNorm(l), _) => {
            let saved = saved.get()?;
            l.forward_train(shape, x, weight, bias, y, saved);
            let share = match phase {
                Phase::Calibrate { seen } => {
                    shape.n as f32 / seen.saturating_add(shape.n).max(1) as f32
                }
                _ => l.momentum,
            };
            l.update(shape, saved, share, mean, variance);
        }
        (Layer::MaxPool(l), _) => l.forward(shape, x, y, Some(saved.get()?)),
        (Layer::KMaxPool(l), _) => l.forward(shape, x, y, Some(saved.get()?)),
        (Layer::Dropout(l), Phase::Train { seed, update }) => {
            l.forward(shape, y, layer_seed(seed, index), update);
        }
        (Layer::Standardise(l), Phase::Calibrate { seen }) => {
            l.calibrate(shape, y, seen, mean, variance);
            l.forward(shape, mean, variance, y);
        }
        _ => {
            let p = Parameters { weight, bias, mean, variance };
            evaluate(layer, shape, x, &p, y, saved)?;
        }
    }
    Ok(())
}

/// The seed of layer `index` of a chain: another for each, or two dropout layers would drop the same
/// places.
pub const fn layer_seed(seed: u64, index: usize) -> u64 {
    seed ^ ((index as u64) << 40)
}

const FROZEN: Error = Error::Unsupported("gradients of parameters that lie in the model");

/// Runs one layer backward; see [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn backward(arena: &mut Arena<'_>, call: &Call<'_>) -> Result<(), Error> {
    let Call { layer, place, phase, .. } = *call;
    let Param::Ram(p) = call.param else { return Err(FROZEN) };
    let shape = place.x.shape;
    let moves =
        |x, y| [x, y, place.saved, p.weight, p.variance, p.dweight, p.dbias, place.dy, place.dx];
    let in_place =
        |x, y| [x, y, place.saved, p.weight, p.variance, p.dweight, p.dbias, place.dy, Slot::EMPTY];
    let none = Slot::EMPTY;
    let slots = match layer {
        Layer::Conv2d(_) | Layer::Dense(_) | Layer::ChannelStd(_) | Layer::Embedding(_) => {
            moves(place.x, none)
        }
        Layer::BatchNorm(_) => in_place(place.x, none),
        Layer::Activation(_) | Layer::L2Normalise(_) | Layer::Quantise(_) | Layer::Residual(_) => {
            in_place(none, place.y)
        }
        Layer::Dropout(_) | Layer::Flatten(_) | Layer::Standardise(_) => in_place(none, none),
        _ => moves(none, none),
    };
    let [x, y, saved, weight, variance, dweight, dbias, dy, dx] = arena.lease(slots)?;
    let (x, y) = (&*x.get::<f32>()?, y.get::<f32>()?);
    let (weight, dweight, dbias) =
        (&*weight.get::<f32>()?, dweight.get::<f32>()?, dbias.get::<f32>()?);
    let dy = dy.get::<f32>()?;
    let dx = Some(dx.get::<f32>()?).filter(|dx| !dx.is_empty());
    match layer {
        Layer::Conv2d(l) => l.backward(shape, x, weight, dy, dx, dweight, dbias),
        Layer::Dense(l) => l.backward(shape, x, weight, dy, dx, dweight, dbias),
        Layer::BatchNorm(l) => l.backward(shape, x, weight, saved.get()?, dy, dweight, dbias),
        Layer::Embedding(l) => l.backward(shape, x, dy, dx, dweight),
        Layer::Activation(l) => l.backward(y, dy),
        Layer::Quantise(l) => l.backward(y, dy),
        Layer::L2Normalise(l) => l.backward(shape, y, saved.get()?, dy),
        Layer::Standardise(l) => l.backward(shape, variance.get()?, dy),
        Layer::Dropout(l) => {
            if let Phase::Train { seed, update } = phase {
                l.backward(shape, dy, layer_seed(seed, call.index), update);
            }
        }
        Layer::Flatten(_) => {}
        Layer::Residual(_) => {
            copy(dy, y);
        }
        // The others have no parameters: without dx there is nothing to do.
        Layer::MaxPool(l) => {
            if let Some(dx) = dx {
                l.backward(shape, saved.get()?, dy, dx);
            }
        }
        Layer::KMaxPool(l) => {
            if let Some(dx) = dx {
                l.backward(shape, saved.get()?, dy, dx);
            }
        }
        Layer::AvgPool(l) => dx.into_iter().for_each(|dx| l.backward(shape, dy, dx)),
        Layer::GlobalAvgPool(l) => dx.into_iter().for_each(|dx| l.backward(shape, dy, dx)),
        Layer::AvgPoolTo(l) => dx.into_iter().for_each(|dx| l.backward(shape, dy, dx)),
        Layer::ChannelStd(l) => dx.into_iter().for_each(|dx| l.backward(shape, x, dy, dx)),
        Layer::Project(l) => dx.into_iter().for_each(|dx| l.backward(shape, dy, dx)),
        Layer::SpaceToDepth(l) => dx.into_iter().for_each(|dx| l.backward(shape, dy, dx)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Layout;

    #[test]
    fn memory_of_another_length_than_a_padded_slot_is_refused() {
        let mut memory = [Word::ZERO; 4];
        let mut backend = Reference::new(&mut memory);
        let padded = Slot { layout: Layout::Nchw8c, ..Slot::vector(0, 3, Dtype::F32) };
        let length = |slot, host| Err(ArenaError::Length { slot, host }.into());
        assert_eq!(backend.write(padded, Host::F32(&[1.0; 3])), length(8, 3));
        assert_eq!(backend.read(padded, HostMut::F32(&mut [0.0; 3])), length(8, 3));
        let plain = Slot::vector(0, 3, Dtype::F32);
        assert_eq!(backend.read(plain, HostMut::F32(&mut [0.0; 4])), length(3, 4));
    }
}
