//! Residual addition, in either layout. A projection runs as the convolution that it is, beside the
//! sum, and is then added.

use rayon::prelude::*;
use sepal_core::arena::{Arena, Dtype, Layout, Slot};
use sepal_core::backend::{Call, Param};
use sepal_core::error::Error;
use sepal_core::layer::{Needs, Residual, Tensors};
use sepal_core::plan::Place;
use sepal_core::reference::stored;
use sepal_core::shape::Shape;

use crate::arch::Instructions;
use crate::blocks::{BLOCK, GRAIN, block, is_blocked};
use crate::conv::{Clamp, Conv, Epilogue, Precision};
use crate::layers::{numbers, stored_room};

/// The convolution of a projection to the channels of `x`.
fn projection(precision: Precision, l: Residual, source: Slot, x: Shape) -> Option<Conv> {
    Conv::new(l.project?.conv(x.c), source.shape, source.layout, precision)
}

/// A tensor as convolutions give it.
fn blocked(slot: Slot) -> Slot {
    Slot { layout: Layout::Nchw8c, ..slot }
}

/// Numbers of scratch of a forward pass: what the convolution gives, and its own.
fn forward_scratch(conv: &Conv, x: Slot) -> usize {
    blocked(x).elements().saturating_add(conv.forward_scratch(None))
}

/// The layer's needs, of which those of the reference are `needs`.
pub(crate) fn needs(
    precision: Precision,
    l: Residual,
    source: Slot,
    x: Slot,
    needs: Needs,
) -> Option<Needs> {
    let needs = Needs { layout: x.layout, ..needs };
    let Some(conv) = projection(precision, l, source, x.shape) else { return Some(needs) };
    let forward = forward_scratch(&conv, x).saturating_mul(size_of::<f32>());
    let gradient = if is_blocked(x) { 0 } else { blocked(x).elements() };
    let backward = conv.backward_scratch().saturating_add(source.elements() + gradient);
    Some(Needs {
        forward_scratch: stored_room(needs.forward_scratch)?.saturating_add(forward),
        backward_scratch: backward.saturating_mul(size_of::<f32>()),
        ..needs
    })
}

/// Adds one tensor to another of the same shape, each in its own layout.
fn add(shape: Shape, (from, lies): (&[f32], Layout), (to, to_lies): (&mut [f32], Layout)) {
    let sum = |(to, from): (&mut f32, &f32)| *to += from;
    if lies == to_lies {
        let pieces = to.par_chunks_mut(GRAIN).zip(from.par_chunks(GRAIN));
        pieces.for_each(|(to, from)| to.iter_mut().zip(from).for_each(sum));
        return;
    }
    let lengths =
        |layout| Slot { layout, ..Slot::new(0, shape.with_n(1), Dtype::F32) }.elements().max(1);
    let samples = to.par_chunks_mut(lengths(to_lies)).zip(from.par_chunks(lengths(lies)));
    let area = shape.plane().max(1) as usize;
    let group = area * BLOCK;
    samples.for_each(|(to, from)| match to_lies {
        Layout::Nchw8c => {
            for (to, from) in to.chunks_mut(group).zip(from.chunks(group)) {
                for (c, from) in from.chunks(area).enumerate() {
                    to.iter_mut().skip(c).step_by(BLOCK).zip(from).for_each(sum);
                }
            }
        }
        _ => {
            for (to, from) in to.chunks_mut(group).zip(from.chunks(group)) {
                for (c, to) in to.chunks_mut(area).enumerate() {
                    to.iter_mut().zip(from.iter().skip(c).step_by(BLOCK)).for_each(sum);
                }
            }
        }
    });
}

/// Copies one slot to another that lies alike.
fn copy(arena: &mut Arena<'_>, from: Slot, to: Slot) -> Result<(), Error> {
    let [from, to] = arena.lease([from, to])?;
    let pieces = to.get::<f32>()?.par_chunks_mut(GRAIN).zip(from.get::<f32>()?.par_chunks(GRAIN));
    pieces.for_each(|(to, from)| to.copy_from_slice(from));
    Ok(())
}

/// Runs the layer forward.
pub(crate) fn forward(
    with: Instructions,
    precision: Precision,
    arena: &mut Arena<'_>,
    call: &Call<'_>,
    l: Residual,
) -> Result<(), Error> {
    let Place { x, y, source, scratch, .. } = call.place;
    if y.at == source.at {
        let [x, y] = arena.lease([x, y])?;
        add(call.place.x.shape, (x.get()?, source.layout), (y.get()?, source.layout));
        return Ok(());
    }
    if y.at != x.at {
        copy(arena, x, y)?;
    }
    let Some(conv) = projection(precision, l, source, x.shape) else {
        let [from, to] = arena.lease([source, y])?;
        add(x.shape, (from.get()?, source.layout), (to.get()?, y.layout));
        return Ok(());
    };
    let scratch = numbers(scratch);
    let (from, to, own, [w, b]) = match call.param {
        Param::Ram(p) => {
            let [from, to, own, w, b] = arena.lease([source, y, scratch, p.weight, p.bias])?;
            (from, to, own.get::<f32>()?, [&*w.get()?, &*b.get()?])
        }
        Param::Model { layer, tensors } => {
            let [from, to, own] = arena.lease([source, y, scratch])?;
            let own = own.get::<f32>()?;
            let widened = own.len().saturating_sub(forward_scratch(&conv, x));
            let (widened, own) = own.split_at_mut(widened);
            let lengths = l.tensors(x.shape).unwrap_or(Tensors::NONE);
            let [w, b, ..] = stored(layer, lengths, tensors, widened)?;
            (from, to, own, [w, b])
        }
    };
    let (sum, own) = own.split_at_mut(blocked(x).elements().min(own.len()));
    let epilogue = Epilogue { scale: &[], shift: b, clamp: Clamp::NONE };
    conv.forward(with, from.get()?, w, &epilogue, None, sum, own);
    add(x.shape, (sum, Layout::Nchw8c), (to.get()?, y.layout));
    Ok(())
}

/// Leaves the gradient of the sum where the sum lay.
pub(crate) fn backward(arena: &mut Arena<'_>, place: Place) -> Result<(), Error> {
    copy(arena, place.dy, place.y)
}

/// Adds it to the source's gradient, and to those of a projection.
pub(crate) fn backward_source(
    with: Instructions,
    precision: Precision,
    arena: &mut Arena<'_>,
    call: &Call<'_>,
    l: Residual,
) -> Result<(), Error> {
    let Param::Ram(p) = call.param else {
        return Err(Error::Unsupported("gradients of parameters that lie in the model"));
    };
    let Place { x, y, source, dsource, backward_scratch, .. } = call.place;
    let Some(conv) = projection(precision, l, source, x.shape) else {
        let [dy, ds] = arena.lease([y, dsource])?;
        add(x.shape, (dy.get()?, y.layout), (ds.get()?, source.layout));
        return Ok(());
    };
    let scratch = numbers(backward_scratch);
    let slots = [source, p.weight, p.dweight, p.dbias, y, dsource, scratch];
    let [from, w, dw, db, dy, ds, scratch] = arena.lease(slots)?;
    let (from, w, dy, ds) = (&*from.get()?, &*w.get()?, &*dy.get::<f32>()?, ds.get::<f32>()?);
    let (dx, rest) =
        scratch.get::<f32>()?.split_at_mut_checked(source.elements()).unwrap_or_default();
    let moved = if is_blocked(y) { 0 } else { blocked(y).elements() };
    let (own, rest) = rest.split_at_mut(moved.min(rest.len()));
    let dy = if is_blocked(y) {
        dy
    } else {
        block(x.shape, dy, own);
        own
    };
    let wanted = Some(&mut *dx).filter(|_| !ds.is_empty());
    conv.backward(with, from, w, dy, wanted, dw.get()?, db.get()?, rest);
    add(source.shape, (dx, source.layout), (ds, source.layout));
    Ok(())
}
