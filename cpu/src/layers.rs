//! Which kernel runs a layer: one of this crate, the reference's on pieces of the batch in
//! parallel, or the reference's on the whole.

use rayon::prelude::*;
use sepal_core::arena::{Arena, Dtype, Layout, Lease, Slot, Word};
use sepal_core::backend::{Call, Param, Phase};
use sepal_core::error::Error;
use sepal_core::layer::{BatchNorm, Dropout, KMaxPool, Layer, Needs, Pass, Tensors};
use sepal_core::plan::{Chain, Reached};
use sepal_core::reference::{self, layer_seed, stored};
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;

use crate::activation::{self, Plain};
use crate::arch::Instructions;
use crate::blocks::{
    BLOCK, GRAIN, block, clear_padding, is_blocked, is_same, padded, plane, unblock,
};
use crate::conv::{Clamp, Conv, Epilogue, Precision};
use crate::fused::norm_of_pool;
use crate::norm::Coefficients;
use crate::{dense, folded, norm, pool, residual, unit};

/// What a layer asks of the planner here: the reference's needs in the layout that reaches it, and
/// this crate's scratch.
///
/// Convolutions read either layout and give blocks of eight channels. Norms, activations, pools,
/// dropout, standardisation, unit length and residual additions keep the layout of their input. The others read either
/// layout and give the reference's.
pub(crate) fn needs(
    precision: Precision,
    chain: &Chain<'_>,
    at: usize,
    reached: Reached,
    pass: Pass,
) -> Option<Needs> {
    let (layer, x) = (chain.get(at)?, reached.x);
    if pass != Pass::Train
        && let Some(needs) = folded::needs(precision, chain, at, x, pass)
    {
        return needs;
    }
    let needs = layer.needs(x.shape, pass)?;
    if let Layer::Residual(l) = layer {
        return residual::needs(precision, *l, reached.source(chain, at), x, needs);
    }
    let needs = match layer {
        Layer::Conv2d(_) => Needs { layout: Layout::Nchw8c, ..needs },
        _ if is_blocked(x) => blocked_needs(layer, x, pass, needs)?,
        _ => needs,
    };
    let forward_scratch = stored_room(needs.forward_scratch)?
        .saturating_add(forward_scratch(precision, layer, x).saturating_mul(size_of::<f32>()));
    let backward_scratch = match pass {
        Pass::Train => {
            // A norm that runs together with the pool behind it works in the pool's scratch.
            let with_norm = matches!(layer, Layer::MaxPool(_)) && norm_of_pool(chain, at, x);
            let of_norm = if with_norm { norm::backward_scratch(x) } else { 0 };
            (backward_scratch(precision, layer, x) + of_norm).saturating_mul(size_of::<f32>())
        }
        _ => 0,
    };
    Some(Needs { forward_scratch, backward_scratch, ..needs })
}

/// Bytes that stored weights are widened into, in whole words.
pub(crate) const fn stored_room(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(Word::BYTES)
}

/// The needs of a layer whose input lies in blocks of eight channels.
fn blocked_needs(layer: &Layer, x: Slot, pass: Pass, needs: Needs) -> Option<Needs> {
    let layout = x.layout;
    let train = pass == Pass::Train;
    Some(match layer {
        Layer::BatchNorm(_) if train => {
            Needs { layout, saved: (norm::saved(x), Dtype::F32), ..needs }
        }
        Layer::MaxPool(_) if train => {
            Needs { layout, saved: (layout.elements(needs.out)?, Dtype::U8), ..needs }
        }
        Layer::BatchNorm(_)
        | Layer::Activation(_)
        | Layer::Quantise(_)
        | Layer::MaxPool(_)
        | Layer::AvgPool(_)
        | Layer::Dropout(_)
        | Layer::Standardise(_)
        | Layer::L2Normalise(_) => Needs { layout, ..needs },
        Layer::Flatten(_) if !is_same(x.shape) => {
            Needs { in_place: false, view: false, gradient_in_place: false, ..needs }
        }
        _ => needs,
    })
}

/// Whether a layer that computes in the reference's layout alone must copy `x` to it.
pub(crate) fn moves(x: Slot) -> bool {
    is_blocked(x) && !is_same(x.shape)
}

/// Elements of a tensor in the reference's layout.
fn plain(x: Slot) -> usize {
    x.shape.len().unwrap_or(0) as usize
}

/// Elements of one sample as it lies.
fn lying(x: Slot) -> usize {
    x.head(1).elements()
}

/// Numbers of scratch of a forward pass, beside the reference's.
fn forward_scratch(precision: Precision, layer: &Layer, x: Slot) -> usize {
    match layer {
        Layer::Conv2d(l) => {
            Conv::new(*l, x.shape, x.layout, precision).map_or(0, |conv| conv.forward_scratch(None))
        }
        Layer::BatchNorm(_) => norm::forward_scratch(x),
        Layer::Dense(_)
        | Layer::Project(_)
        | Layer::Embedding(_)
        | Layer::KMaxPool(_)
        | Layer::SpaceToDepth(_)
            if moves(x) =>
        {
            plain(x)
        }
        Layer::Standardise(_) if is_blocked(x) => 2 * lying(x),
        _ => 0,
    }
}

/// Numbers of scratch of a backward pass.
fn backward_scratch(precision: Precision, layer: &Layer, x: Slot) -> usize {
    match layer {
        Layer::Conv2d(l) => {
            Conv::new(*l, x.shape, x.layout, precision).map_or(0, |conv| conv.backward_scratch())
        }
        Layer::BatchNorm(_) => norm::backward_scratch(x),
        Layer::Dense(_) if moves(x) => plain(x).saturating_mul(2),
        Layer::Project(_) | Layer::Embedding(_) | Layer::KMaxPool(_) | Layer::SpaceToDepth(_)
            if moves(x) =>
        {
            plain(x)
        }
        Layer::Standardise(_) if is_blocked(x) => lying(x),
        _ => 0,
    }
}

/// A slot of bytes as a slot of numbers.
pub(crate) fn numbers(slot: Slot) -> Slot {
    Slot::vector(slot.at, (slot.bytes() / size_of::<f32>()) as u32, Dtype::F32)
}

/// The slots of a call, borrowed.
struct Open<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    saved: Lease<'a>,
    scratch: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    mean: &'a mut [f32],
    variance: &'a mut [f32],
    /// Of a frozen layer, mean and variance where they are stored.
    measured: Option<[&'a [f32]; 2]>,
}

fn open<'a>(
    precision: Precision,
    arena: &'a mut Arena<'_>,
    call: &Call<'a>,
    x: Slot,
) -> Result<Open<'a>, Error> {
    let place = call.place;
    let scratch = numbers(place.scratch);
    match call.param {
        Param::Ram(p) => {
            let slots = [x, place.y, place.saved, scratch, p.weight, p.bias, p.mean, p.variance];
            let [x, y, saved, scratch, weight, bias, mean, variance] = arena.lease(slots)?;
            Ok(Open {
                x: x.get()?,
                y: y.get()?,
                saved,
                scratch: scratch.get()?,
                weight: weight.get()?,
                bias: bias.get()?,
                mean: mean.get()?,
                variance: variance.get()?,
                measured: None,
            })
        }
        Param::Model { layer, tensors } => {
            let [x, y, saved, scratch] = arena.lease([x, place.y, place.saved, scratch])?;
            let shape = place.x.shape;
            let lengths = call.layer.tensors(shape).unwrap_or(Tensors::NONE);
            // Widened weights come first, what a kernel needs comes last.
            let scratch = scratch.get::<f32>()?;
            let widened =
                scratch.len().saturating_sub(forward_scratch(precision, call.layer, place.x));
            let (widened, scratch) = scratch.split_at_mut(widened);
            let [weight, bias, mean, variance] = stored(layer, lengths, tensors, widened)?;
            Ok(Open {
                x: x.get()?,
                y: y.get()?,
                saved,
                scratch,
                weight,
                bias,
                mean: &mut [],
                variance: &mut [],
                measured: Some([mean, variance]),
            })
        }
    }
}

/// Samples of a piece, and the shape of one.
fn piece(x: Shape) -> usize {
    (GRAIN / (x.sample().unwrap_or(0) as usize).max(1)).max(1)
}

/// Elements of `samples` samples, at least 1.
fn elements(shape: Shape, samples: usize) -> usize {
    (shape.sample().unwrap_or(0) as usize * samples).max(1)
}

/// Runs `kernel` on pieces of a batch: the input, the output, and the piece's shape.
fn moving(
    shape: Shape,
    out: Shape,
    x: &[f32],
    y: &mut [f32],
    kernel: impl Fn(Shape, &[f32], &mut [f32]) + Sync,
) {
    let per = piece(shape);
    let (x_len, y_len) = (elements(shape, per), elements(out, per));
    let one = elements(shape, 1);
    x.par_chunks(x_len).zip(y.par_chunks_mut(y_len)).for_each(|(x, y)| {
        kernel(shape.with_n((x.len() / one) as u32), x, y);
    });
}

/// Runs `kernel` on pieces of a batch, in place.
fn staying(shape: Shape, y: &mut [f32], kernel: impl Fn(Shape, &mut [f32]) + Sync) {
    let one = elements(shape, 1);
    y.par_chunks_mut(elements(shape, piece(shape))).for_each(|y| {
        kernel(shape.with_n((y.len() / one) as u32), y);
    });
}

/// The shape of a tensor as it lies, padding of blocks counted as channels: what layers that
/// treat a sample as a vector work on.
pub(crate) fn as_lying(x: Slot) -> Shape {
    if is_blocked(x) { Shape { c: padded(x.shape.c as usize) as u32, ..x.shape } } else { x.shape }
}

/// Sets the padding of blocks to zero, in parallel.
fn clear_all(slot: Slot, x: &mut [f32]) {
    let one = slot.shape.with_n(1);
    let samples = x.par_chunks_mut(lying(slot).max(1)).with_min_len(piece(slot.shape));
    samples.for_each(|x| clear_padding(one, x));
}

/// How far a batch moves the running statistics.
pub(crate) fn share(layer: BatchNorm, shape: Shape, phase: Phase) -> f32 {
    match phase {
        Phase::Calibrate { seen } => shape.n as f32 / seen.saturating_add(shape.n).max(1) as f32,
        _ => layer.momentum,
    }
}

/// [`Dropout::forward`] and [`Dropout::backward`], in either layout.
fn dropout(layer: Dropout, x: Slot, y: &mut [f32], seed: u64, step: u32) {
    let scale = 1.0 / (1.0 - layer.rate);
    let dropped = (f64::from(layer.rate) * 4_294_967_296.0) as u32;
    let drop = |y: &mut f32, word: u32| *y = if word < dropped { 0.0 } else { *y * scale };
    let (area, channels) = (x.shape.plane().max(1) as usize, x.shape.c as usize);
    y.par_chunks_mut(lying(x).max(1)).enumerate().for_each(|(n, y)| {
        let rng = Rng::new(seed, Purpose::Dropout, step, n as u32);
        if !is_blocked(x) {
            for (block, y) in (0..).zip(y.chunks_mut(4)) {
                y.iter_mut().zip(rng.at(block)).for_each(|(y, word)| drop(y, word));
            }
            return;
        }
        let mut places = (0..channels).flat_map(|c| {
            let first = c / BLOCK * plane(x.shape) + c % BLOCK;
            (0..area).map(move |at| first + at * BLOCK)
        });
        for block in 0..(channels * area).div_ceil(4) as u32 {
            for (word, place) in rng.at(block).into_iter().zip(&mut places) {
                y.iter_mut().skip(place).take(1).for_each(|y| drop(y, word));
            }
        }
    });
}

/// Runs one layer forward.
pub(crate) fn forward(
    with: Instructions,
    precision: Precision,
    arena: &mut Arena<'_>,
    call: &Call<'_>,
) -> Result<(), Error> {
    let (layer, place, phase) = (call.layer, call.place, call.phase);
    let shape = place.x.shape;
    let Some(out) = layer.output(shape) else { return reference::forward(arena, call) };
    if let Layer::Residual(l) = layer {
        return residual::forward(with, precision, arena, call, *l);
    }
    let eval = phase == Phase::Eval;
    let pass = if eval { Pass::Eval } else { Pass::Train };
    let stays = layer.needs(shape, pass).is_some_and(|needs| needs.in_place);
    let blocked = is_blocked(place.x);
    let stays = stays && !matches!(layer, Layer::Flatten(_) if moves(place.x));
    let own = match layer {
        Layer::Flatten(_) => moves(place.x),
        Layer::Standardise(_) => blocked || !matches!(phase, Phase::Calibrate { .. }),
        _ => true,
    };
    if !own {
        return reference::forward(arena, call);
    }
    if stays && place.x.at != place.y.at {
        let [x, y] = arena.lease([place.x, place.y])?;
        let (x, y) = (&*x.get::<f32>()?, y.get::<f32>()?);
        y.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(y, x)| y.copy_from_slice(x));
    }
    let x = if stays { Slot::EMPTY } else { place.x };
    let Open { x, y, saved, scratch, weight, bias, mean, variance, measured } =
        open(precision, arena, call, x)?;
    let flat = as_lying(place.x);
    match layer {
        Layer::Conv2d(l) => {
            if let Some(conv) = Conv::new(*l, shape, place.x.layout, precision) {
                let epilogue = Epilogue { scale: &[], shift: bias, clamp: Clamp::NONE };
                conv.forward(with, x, weight, &epilogue, None, y, scratch);
            }
        }
        Layer::Dense(l) => {
            let x = if moves(place.x) { reordered(shape, x, scratch) } else { x };
            dense::forward(*l, shape, x, weight, bias, y);
        }
        Layer::BatchNorm(l) if blocked => {
            let norm = norm::Blocked { with, layer: *l, shape, gamma: weight, beta: bias };
            if eval {
                let [mean, variance] = measured.unwrap_or([mean, variance]);
                norm.apply_in_place(norm.coefficients(mean, variance, scratch), y);
            } else {
                let saved = saved.get()?;
                norm.apply(norm.measure(x, saved, scratch), Plain, x, y);
                norm.update(saved, share(*l, shape, phase), mean, variance);
            }
        }
        Layer::BatchNorm(l) if eval => {
            let [mean, variance] = measured.unwrap_or([mean, variance]);
            staying(shape, y, |shape, y| {
                l.forward_eval(shape, weight, bias, mean, variance, y);
            });
        }
        Layer::BatchNorm(l) => {
            let saved = saved.get()?;
            norm::forward_train(*l, shape, x, [weight, bias], y, saved);
            l.update(shape, saved, share(*l, shape, phase), mean, variance);
        }
        Layer::Activation(l) => activation::forward(with, *l, y),
        Layer::Quantise(l) => y.par_chunks_mut(GRAIN).for_each(|y| l.forward(y)),
        Layer::MaxPool(l) if blocked => {
            if let Some(pool) = pool::max::Blocked::new(with, *l, shape) {
                let winners = if eval { &mut [] } else { saved.get()? };
                pool.forward(Coefficients::NONE, Plain, x, y, winners);
            }
        }
        Layer::MaxPool(l) if eval => {
            moving(shape, out, x, y, |shape, x, y| pool::forward(*l, shape, x, y, None));
        }
        Layer::MaxPool(l) => {
            let (per, one) = (piece(shape), elements(shape, 1));
            let winners = saved.get::<u8>()?.par_chunks_mut(elements(out, per));
            let pieces = x.par_chunks(elements(shape, per)).zip(winners);
            pieces.zip(y.par_chunks_mut(elements(out, per))).for_each(|((x, winner), y)| {
                let shape = shape.with_n((x.len() / one) as u32);
                pool::forward(*l, shape, x, y, Some(winner));
            });
        }
        Layer::Dropout(l) => {
            if let Phase::Train { seed, update } = phase {
                dropout(*l, place.x, y, layer_seed(seed, call.index), update);
            }
        }
        Layer::Flatten(_) => unblock(shape, x, y),
        Layer::L2Normalise(_) => {
            unit::forward(with, flat, y, saved.get()?);
            if blocked {
                clear_all(place.x, y);
            }
        }
        Layer::Standardise(l) if blocked => {
            let (one, sample) = (shape.with_n(1), lying(place.x));
            let (own_mean, own_variance) = scratch.split_at_mut(sample.min(scratch.len()));
            let own_variance = own_variance.get_mut(..sample).unwrap_or_default();
            if let Phase::Calibrate { seen } = phase {
                block(one, mean, own_mean);
                block(one, variance, own_variance);
                l.calibrate(flat, y, seen, own_mean, own_variance);
                unblock(one, own_mean, mean);
                unblock(one, own_variance, variance);
            } else {
                let [mean, variance] = measured.unwrap_or([mean, variance]);
                block(one, mean, own_mean);
                block(one, variance, own_variance);
            }
            staying(flat, y, |flat, y| l.forward(flat, own_mean, own_variance, y));
        }
        Layer::Standardise(l) => {
            let [mean, variance] = measured.unwrap_or([mean, variance]);
            staying(shape, y, |shape, y| l.forward(shape, mean, variance, y));
        }
        Layer::AvgPool(l) if blocked => pool::mean::forward(*l, shape, x, y),
        Layer::GlobalAvgPool(_) if blocked => pool::mean::forward_global(shape, x, y),
        Layer::AvgPoolTo(l) if blocked => pool::mean::forward_bins(*l, shape, x, y),
        Layer::ChannelStd(_) if blocked => pool::mean::forward_deviation(shape, x, y),
        Layer::Project(l) => {
            let x = if moves(place.x) { reordered(shape, x, scratch) } else { x };
            moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y));
        }
        Layer::Embedding(l) => {
            let x = if moves(place.x) { reordered(shape, x, scratch) } else { x };
            moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, weight, y));
        }
        Layer::KMaxPool(l) => {
            let x = if moves(place.x) { reordered(shape, x, scratch) } else { x };
            if eval {
                moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y, None));
                return Ok(());
            }
            let (per, one) = (piece(shape), elements(shape, 1));
            let places = saved.get::<u16>()?.par_chunks_mut(elements(out, per));
            let pieces = x.par_chunks(elements(shape, per)).zip(places);
            pieces.zip(y.par_chunks_mut(elements(out, per))).for_each(|((x, places), y)| {
                l.forward(shape.with_n((x.len() / one) as u32), x, y, Some(places));
            });
        }
        Layer::SpaceToDepth(l) => {
            let x = if moves(place.x) { reordered(shape, x, scratch) } else { x };
            moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y));
        }
        Layer::AvgPool(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        Layer::GlobalAvgPool(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        Layer::AvgPoolTo(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        Layer::ChannelStd(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        // A layer that this crate does not know yet.
        _ => return Err(Error::Unsupported("this layer")),
    }
    Ok(())
}

/// Blocks in the reference's layout, in scratch.
fn reordered<'s>(shape: Shape, x: &[f32], scratch: &'s mut [f32]) -> &'s [f32] {
    let room = scratch.get_mut(..shape.len().unwrap_or(0) as usize).unwrap_or_default();
    unblock(shape, x, room);
    room
}

/// Runs one layer backward.
pub(crate) fn backward(
    with: Instructions,
    precision: Precision,
    arena: &mut Arena<'_>,
    call: &Call<'_>,
) -> Result<(), Error> {
    let (layer, place) = (call.layer, call.place);
    let Param::Ram(p) = call.param else { return reference::backward(arena, call) };
    let shape = place.x.shape;
    let Some(out) = layer.output(shape) else { return reference::backward(arena, call) };
    let scratch = numbers(place.backward_scratch);
    let blocked = is_blocked(place.x);
    let flat = as_lying(place.x);
    match layer {
        Layer::Conv2d(l) => {
            let slots = [place.x, p.weight, p.dweight, p.dbias, place.dy, place.dx, scratch];
            let [x, w, dw, db, dy, dx, scratch] = arena.lease(slots)?;
            let (x, w, dy) = (&*x.get()?, &*w.get()?, &*dy.get()?);
            let dx = Some(dx.get()?).filter(|dx| !dx.is_empty());
            if let Some(conv) = Conv::new(*l, shape, place.x.layout, precision) {
                let (dw, db, scratch) = (dw.get()?, db.get()?, scratch.get()?);
                conv.backward(with, x, w, dy, dx, dw, db, scratch);
            }
        }
        Layer::Dense(l) => {
            let slots = [place.x, p.weight, p.dweight, p.dbias, place.dy, place.dx, scratch];
            let [x, w, dw, db, dy, dx, scratch] = arena.lease(slots)?;
            let (x, w, dy) = (&*x.get()?, &*w.get()?, &*dy.get()?);
            let (dw, db, scratch) = (dw.get()?, db.get()?, scratch.get()?);
            let dx = Some(dx.get()?).filter(|dx| !dx.is_empty());
            if moves(place.x) {
                let (own_x, own_dx) = scratch.split_at_mut(plain(place.x).min(scratch.len()));
                let own_dx = own_dx.get_mut(..plain(place.x)).unwrap_or_default();
                unblock(shape, x, own_x);
                let wanted = dx.is_some().then_some(&mut *own_dx);
                dense::backward(*l, shape, own_x, w, dy, wanted, dw, db);
                if let Some(dx) = dx {
                    block(shape, own_dx, dx);
                }
            } else {
                dense::backward(*l, shape, x, w, dy, dx, dw, db);
            }
        }
        Layer::BatchNorm(l) => {
            let slots = [place.x, p.weight, place.saved, place.dy, p.dweight, p.dbias, scratch];
            let [x, gamma, saved, g, dgamma, dbeta, scratch] = arena.lease(slots)?;
            let (x, gamma, saved) = (&*x.get()?, &*gamma.get()?, &*saved.get()?);
            let (g, sums, scratch) = (g.get()?, [dgamma.get()?, dbeta.get()?], scratch.get()?);
            if blocked {
                // The shift is not asked for: without an activation y does not matter.
                let norm = norm::Blocked { with, layer: *l, shape, gamma, beta: &[] };
                norm.backward(Plain, x, saved, g, sums, scratch, true);
            } else {
                norm::backward(*l, shape, x, gamma, saved, g, sums, scratch);
            }
        }
        Layer::Activation(l) => {
            let [y, g] = arena.lease([place.y, place.dy])?;
            activation::backward(with, *l, y.get::<f32>()?, g.get::<f32>()?);
        }
        Layer::Quantise(l) => {
            let [y, g] = arena.lease([place.y, place.dy])?;
            let pairs =
                y.get::<f32>()?.par_chunks(GRAIN).zip(g.get::<f32>()?.par_chunks_mut(GRAIN));
            pairs.for_each(|(y, g)| l.backward(y, g));
        }
        Layer::Dropout(l) => {
            if let Phase::Train { seed, update } = call.phase {
                let [g] = arena.lease([place.dy])?;
                dropout(*l, place.x, g.get()?, layer_seed(seed, call.index), update);
            }
        }
        Layer::Flatten(_) if moves(place.x) => {
            let [dy, dx] = arena.lease([place.dy, place.dx])?;
            block(shape, dy.get::<f32>()?, dx.get::<f32>()?);
        }
        Layer::L2Normalise(_) => {
            let [y, saved, g] = arena.lease([place.y, place.saved, place.dy])?;
            let (y, saved, g) = (y.get()?, saved.get()?, g.get()?);
            unit::backward(with, flat, y, saved, g);
            if blocked {
                clear_all(place.x, g);
            }
        }
        Layer::Standardise(l) => {
            let [variance, g, scratch] = arena.lease([p.variance, place.dy, scratch])?;
            let (variance, scratch) = (&*variance.get::<f32>()?, scratch.get::<f32>()?);
            let variance = if blocked {
                let own = scratch.get_mut(..lying(place.x)).unwrap_or_default();
                block(shape.with_n(1), variance, own);
                own
            } else {
                variance
            };
            staying(flat, g.get()?, |flat, g| l.backward(flat, variance, g));
        }
        Layer::MaxPool(l) => {
            let [winner, dy, dx] = arena.lease([place.saved, place.dy, place.dx])?;
            let (winner, dy, dx) = (&*winner.get::<u8>()?, &*dy.get::<f32>()?, dx.get::<f32>()?);
            if blocked {
                if let Some(pool) = pool::max::Blocked::new(with, *l, shape) {
                    pool.backward(Coefficients::NONE, Plain, &[], winner, dy, dx);
                }
                return Ok(());
            }
            let (per, one) = (piece(shape), elements(shape, 1));
            let pieces =
                dy.par_chunks(elements(out, per)).zip(winner.par_chunks(elements(out, per)));
            pieces.zip(dx.par_chunks_mut(elements(shape, per))).for_each(|((dy, winner), dx)| {
                pool::backward(*l, shape.with_n((dx.len() / one) as u32), winner, dy, dx);
            });
        }
        Layer::ChannelStd(l) => {
            let [x, dy, dx] = arena.lease([place.x, place.dy, place.dx])?;
            let (x, dy, dx) = (&*x.get::<f32>()?, &*dy.get::<f32>()?, dx.get::<f32>()?);
            if blocked {
                pool::mean::backward_deviation(shape, x, dy, dx);
                return Ok(());
            }
            let (per, one) = (piece(shape), elements(shape, 1));
            let pieces = x.par_chunks(elements(shape, per)).zip(dy.par_chunks(elements(out, per)));
            pieces.zip(dx.par_chunks_mut(elements(shape, per))).for_each(|((x, dy), dx)| {
                l.backward(shape.with_n((dx.len() / one) as u32), x, dy, dx);
            });
        }
        Layer::Embedding(l) => {
            let [x, dw, dy, dx, scratch] =
                arena.lease([place.x, p.dweight, place.dy, place.dx, scratch])?;
            let (x, dw, dy) = (&*x.get::<f32>()?, dw.get::<f32>()?, &*dy.get::<f32>()?);
            let x = if moves(place.x) { reordered(shape, x, scratch.get()?) } else { x };
            // One after the other: each row of the table is summed in one order.
            l.backward(shape, x, dy, None, dw);
            dx.get::<f32>()?.fill(0.0);
        }
        Layer::KMaxPool(l) => {
            let [places, dy, dx, scratch] =
                arena.lease([place.saved, place.dy, place.dx, scratch])?;
            let (places, dy, dx) = (&*places.get::<u16>()?, &*dy.get::<f32>()?, dx.get::<f32>()?);
            if moves(place.x) {
                let own = scratch.get::<f32>()?.get_mut(..plain(place.x)).unwrap_or_default();
                back_k_max(*l, shape, out, places, dy, own);
                block(shape, own, dx);
            } else {
                back_k_max(*l, shape, out, places, dy, dx);
            }
        }
        Layer::AvgPool(_)
        | Layer::GlobalAvgPool(_)
        | Layer::AvgPoolTo(_)
        | Layer::Project(_)
        | Layer::SpaceToDepth(_) => {
            let [dy, dx, scratch] = arena.lease([place.dy, place.dx, scratch])?;
            let (dy, dx) = (&*dy.get::<f32>()?, dx.get::<f32>()?);
            match layer {
                Layer::AvgPool(l) if blocked => pool::mean::backward(*l, shape, dy, dx),
                Layer::GlobalAvgPool(_) if blocked => pool::mean::backward_global(shape, dy, dx),
                Layer::AvgPoolTo(l) if blocked => pool::mean::backward_bins(*l, shape, dy, dx),
                Layer::Project(_) | Layer::SpaceToDepth(_) if moves(place.x) => {
                    let own = scratch.get::<f32>()?.get_mut(..plain(place.x)).unwrap_or_default();
                    back(layer, shape, out, dy, own);
                    block(shape, own, dx);
                }
                _ => back(layer, shape, out, dy, dx),
            }
        }
        Layer::Residual(_) => residual::backward(arena, place)?,
        _ => return reference::backward(arena, call),
    }
    Ok(())
}

/// [`KMaxPool::backward`] on pieces of a batch.
fn back_k_max(
    layer: KMaxPool,
    shape: Shape,
    out: Shape,
    places: &[u16],
    dy: &[f32],
    dx: &mut [f32],
) {
    let (per, one) = (piece(shape), elements(shape, 1));
    let pieces = dy.par_chunks(elements(out, per)).zip(places.par_chunks(elements(out, per)));
    pieces.zip(dx.par_chunks_mut(elements(shape, per))).for_each(|((dy, places), dx)| {
        layer.backward(shape.with_n((dx.len() / one) as u32), places, dy, dx);
    });
}

/// Runs the reference's backward pass of a layer that reads dy alone on pieces of a batch.
fn back(layer: &Layer, shape: Shape, out: Shape, dy: &[f32], dx: &mut [f32]) {
    let (per, one) = (piece(shape), elements(shape, 1));
    let pieces = dy.par_chunks(elements(out, per));
    pieces.zip(dx.par_chunks_mut(elements(shape, per))).for_each(|(dy, dx)| {
        let shape = shape.with_n((dx.len() / one) as u32);
        match layer {
            Layer::AvgPool(l) => l.backward(shape, dy, dx),
            Layer::GlobalAvgPool(l) => l.backward(shape, dy, dx),
            Layer::AvgPoolTo(l) => l.backward(shape, dy, dx),
            Layer::Project(l) => l.backward(shape, dy, dx),
            Layer::SpaceToDepth(l) => l.backward(shape, dy, dx),
            _ => {}
        }
    });
}
