//! Which kernel runs a layer: one of this crate, the reference's on pieces of the batch in
//! parallel, or the reference's on the whole.

use rayon::prelude::*;
use sepal_core::arena::{Arena, Dtype, Lease, Slot};
use sepal_core::backend::{Call, Param, Phase};
use sepal_core::error::Error;
use sepal_core::layer::{Layer, Needs, Pass, Tensors};
use sepal_core::reference::{self, stored};
use sepal_core::shape::Shape;

use crate::conv::Columns;
use crate::{dense, norm, pool};

/// Numbers that one task works on: a piece of this size outweighs the cost of handing it over.
const GRAIN: usize = 1 << 13;

/// What a layer asks of the planner here: the reference's needs and this crate's scratch.
pub(crate) fn needs(layer: &Layer, x: Shape, pass: Pass) -> Option<Needs> {
    let needs = layer.needs(x, pass)?;
    let forward_scratch = needs
        .forward_scratch
        .checked_next_multiple_of(size_of::<sepal_core::arena::Word>())?
        .saturating_add(forward_scratch(layer, x).saturating_mul(size_of::<f32>()));
    let backward_scratch = match pass {
        Pass::Train => backward_scratch(layer, x).saturating_mul(size_of::<f32>()),
        _ => 0,
    };
    Some(Needs { forward_scratch, backward_scratch, ..needs })
}

/// Numbers of scratch of a forward pass, beside the reference's.
fn forward_scratch(layer: &Layer, x: Shape) -> usize {
    match layer {
        Layer::Conv2d(l) => Columns::new(*l, x).map_or(0, |conv| conv.forward_scratch()),
        _ => 0,
    }
}

/// Numbers of scratch of a backward pass.
fn backward_scratch(layer: &Layer, x: Shape) -> usize {
    match layer {
        Layer::Conv2d(l) => Columns::new(*l, x).map_or(0, |conv| conv.backward_scratch()),
        Layer::BatchNorm(_) => norm::backward_scratch(x),
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

fn open<'a>(arena: &'a mut Arena<'_>, call: &Call<'a>, x: Slot) -> Result<Open<'a>, Error> {
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
            let widened = scratch.len().saturating_sub(forward_scratch(call.layer, shape));
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

/// Runs one layer forward.
pub(crate) fn forward(arena: &mut Arena<'_>, call: &Call<'_>) -> Result<(), Error> {
    let (layer, place, phase) = (call.layer, call.place, call.phase);
    let shape = place.x.shape;
    let Some(out) = layer.output(shape) else { return reference::forward(arena, call) };
    let eval = phase == Phase::Eval;
    let pass = if eval { Pass::Eval } else { Pass::Train };
    let stays = layer.needs(shape, pass).is_some_and(|needs| needs.in_place);
    let own = match layer {
        Layer::Dropout(_) | Layer::Flatten(_) => false,
        Layer::Standardise(_) => !matches!(phase, Phase::Calibrate { .. }),
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
        open(arena, call, x)?;
    match layer {
        Layer::Conv2d(l) => {
            if let Some(conv) = Columns::new(*l, shape) {
                conv.forward(x, weight, bias, y, scratch);
            }
        }
        Layer::Dense(l) => dense::forward(*l, shape, x, weight, bias, y),
        Layer::BatchNorm(l) if eval => {
            let [mean, variance] = measured.unwrap_or([mean, variance]);
            staying(shape, y, |shape, y| {
                l.forward_eval(shape, weight, bias, mean, variance, y);
            });
        }
        Layer::BatchNorm(l) => {
            let saved = saved.get()?;
            norm::forward_train(*l, shape, x, [weight, bias], y, saved);
            let share = match phase {
                Phase::Calibrate { seen } => {
                    shape.n as f32 / seen.saturating_add(shape.n).max(1) as f32
                }
                _ => l.momentum,
            };
            l.update(shape, saved, share, mean, variance);
        }
        Layer::Activation(l) => y.par_chunks_mut(GRAIN).for_each(|y| l.forward(y)),
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
        Layer::L2Normalise(l) => {
            let (per, one) = (piece(shape), elements(shape, 1));
            let pieces = y.par_chunks_mut(elements(shape, per));
            pieces.zip(saved.get::<f32>()?.par_chunks_mut(per)).for_each(|(y, saved)| {
                l.forward(shape.with_n((y.len() / one) as u32), y, saved);
            });
        }
        Layer::Standardise(l) => {
            let [mean, variance] = measured.unwrap_or([mean, variance]);
            staying(shape, y, |shape, y| l.forward(shape, mean, variance, y));
        }
        Layer::AvgPool(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        Layer::GlobalAvgPool(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        Layer::AvgPoolTo(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        Layer::ChannelStd(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        Layer::Project(l) => moving(shape, out, x, y, |shape, x, y| l.forward(shape, x, y)),
        // The others were left to the reference above.
        _ => return Err(Error::Unsupported("this layer")),
    }
    Ok(())
}

/// Runs one layer backward.
pub(crate) fn backward(arena: &mut Arena<'_>, call: &Call<'_>) -> Result<(), Error> {
    let (layer, place) = (call.layer, call.place);
    let Param::Ram(p) = call.param else { return reference::backward(arena, call) };
    let shape = place.x.shape;
    let Some(out) = layer.output(shape) else { return reference::backward(arena, call) };
    let scratch = numbers(place.backward_scratch);
    match layer {
        Layer::Conv2d(_) | Layer::Dense(_) => {
            let slots = [place.x, p.weight, p.dweight, p.dbias, place.dy, place.dx, scratch];
            let [x, w, dw, db, dy, dx, scratch] = arena.lease(slots)?;
            let (x, w, dy) = (&*x.get()?, &*w.get()?, &*dy.get()?);
            let dx = Some(dx.get()?).filter(|dx| !dx.is_empty());
            match layer {
                Layer::Dense(l) => {
                    dense::backward(*l, shape, x, w, dy, dx, dw.get()?, db.get()?);
                }
                Layer::Conv2d(l) => {
                    if let Some(conv) = Columns::new(*l, shape) {
                        conv.backward(x, w, dy, dx, dw.get()?, db.get()?, scratch.get()?);
                    }
                }
                _ => {}
            }
        }
        Layer::BatchNorm(l) => {
            let slots = [place.x, p.weight, place.saved, place.dy, p.dweight, p.dbias, scratch];
            let [x, gamma, saved, g, dgamma, dbeta, scratch] = arena.lease(slots)?;
            let (x, gamma, saved) = (&*x.get()?, &*gamma.get()?, &*saved.get()?);
            let sums = [dgamma.get()?, dbeta.get()?];
            norm::backward(*l, shape, x, gamma, saved, g.get()?, sums, scratch.get()?);
        }
        Layer::Activation(l) => {
            let [y, g] = arena.lease([place.y, place.dy])?;
            let (y, g) = (&*y.get::<f32>()?, g.get::<f32>()?);
            g.par_chunks_mut(GRAIN).zip(y.par_chunks(GRAIN)).for_each(|(g, y)| l.backward(y, g));
        }
        Layer::L2Normalise(l) => {
            let [y, saved, g] = arena.lease([place.y, place.saved, place.dy])?;
            let (y, saved, g) = (&*y.get::<f32>()?, &*saved.get::<f32>()?, g.get::<f32>()?);
            let (per, one) = (piece(shape), elements(shape, 1));
            let pieces = y.par_chunks(elements(shape, per)).zip(saved.par_chunks(per));
            pieces.zip(g.par_chunks_mut(elements(shape, per))).for_each(|((y, saved), g)| {
                l.backward(shape.with_n((y.len() / one) as u32), y, saved, g);
            });
        }
        Layer::Standardise(l) => {
            let [variance, g] = arena.lease([p.variance, place.dy])?;
            let variance = &*variance.get::<f32>()?;
            staying(shape, g.get()?, |shape, g| l.backward(shape, variance, g));
        }
        Layer::MaxPool(l) => {
            let [winner, dy, dx] = arena.lease([place.saved, place.dy, place.dx])?;
            let (winner, dy, dx) = (&*winner.get::<u8>()?, &*dy.get::<f32>()?, dx.get::<f32>()?);
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
            let (per, one) = (piece(shape), elements(shape, 1));
            let pieces = x.par_chunks(elements(shape, per)).zip(dy.par_chunks(elements(out, per)));
            pieces.zip(dx.par_chunks_mut(elements(shape, per))).for_each(|((x, dy), dx)| {
                l.backward(shape.with_n((dx.len() / one) as u32), x, dy, dx);
            });
        }
        Layer::AvgPool(_) | Layer::GlobalAvgPool(_) | Layer::AvgPoolTo(_) | Layer::Project(_) => {
            let [dy, dx] = arena.lease([place.dy, place.dx])?;
            let (dy, dx) = (&*dy.get::<f32>()?, dx.get::<f32>()?);
            let (per, one) = (piece(shape), elements(shape, 1));
            let pieces = dy.par_chunks(elements(out, per));
            pieces.zip(dx.par_chunks_mut(elements(shape, per))).for_each(|(dy, dx)| {
                let shape = shape.with_n((dx.len() / one) as u32);
                match layer {
                    Layer::AvgPool(l) => l.backward(shape, dy, dx),
                    Layer::GlobalAvgPool(l) => l.backward(shape, dy, dx),
                    Layer::AvgPoolTo(l) => l.backward(shape, dy, dx),
                    Layer::Project(l) => l.backward(shape, dy, dx),
                    _ => {}
                }
            });
        }
        _ => return reference::backward(arena, call),
    }
    Ok(())
}
