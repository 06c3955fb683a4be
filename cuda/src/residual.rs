//! Residual addition. A projection runs as the convolution that it is, beside the sum, and is then
//! added.

use sepal_core::arena::{Slot, Word};
use sepal_core::backend::Call;
use sepal_core::error::Error;
use sepal_core::layer::{Conv2d, Layer, Needs, Pass, Residual};
use sepal_core::plan::Place;

use crate::conv;
use crate::gpu::{Address, Gpu, Launch, Source, args};
use crate::layers::{Backward, elements};
use crate::memory::Memory;

/// The convolution of a projection to the channels of `x`.
fn projection(l: Residual, x: Slot) -> Option<Conv2d> {
    l.project.map(|project| project.conv(x.shape.c))
}

/// The layer's needs: those of the reference, and scratch for what a projection gives and for the
/// source's gradient.
pub(crate) fn needs(l: Residual, source: Slot, x: Slot, pass: Pass) -> Option<Needs> {
    let pass = if pass == Pass::Narrow { Pass::Eval } else { pass };
    let needs = Layer::Residual(l).needs(x.shape, pass)?;
    let Some(conv) = projection(l, x) else { return Some(needs) };
    let own =
        Word::round_up(source.bytes()).saturating_add(conv::scratch(&conv, source.shape, pass));
    let backward_scratch = if pass == Pass::Train { own } else { 0 };
    Some(Needs { forward_scratch: x.bytes(), backward_scratch, ..needs })
}

/// Adds `len` numbers to others.
fn add(gpu: &Gpu, from: Address, to: Address, len: u32) -> Result<(), Error> {
    gpu.launch(Source::Elementwise, "add", Launch::over(len), args![from, to, len])
}

/// Runs the layer forward, with the projection's parameters.
pub(crate) fn forward(
    (gpu, memory): (&Gpu, &Memory),
    l: Residual,
    place: Place,
    [w, b]: [Address; 2],
) -> Result<(), Error> {
    let Place { x, y, source, scratch, .. } = place;
    let len = elements(x.shape);
    if y.at == source.at {
        let [x, y] = memory.lease([x, y])?;
        return add(gpu, x, y, len);
    }
    if y.at != x.at {
        let [x, y] = memory.lease([x, y])?;
        gpu.copy(x, y, place.x.bytes())?;
    }
    let [from, to] = memory.lease([source, y])?;
    let Some(conv) = projection(l, x) else { return add(gpu, from, to, len) };
    let [sum, _] = memory.lease([scratch, y])?;
    conv::finished(&conv, gpu, source.shape, [from, w, sum], &conv::Finish::bias(b))?;
    add(gpu, sum, to, len)
}

/// Leaves the gradient of the sum where the sum lay.
pub(crate) fn backward(gpu: &Gpu, memory: &Memory, place: Place) -> Result<(), Error> {
    let [dy, y] = memory.lease([place.dy, place.y])?;
    gpu.copy(dy, y, place.dy.bytes())
}

/// Adds it to the source's gradient, and to those of a projection: `weight`, its gradient, and the
/// bias's.
pub(crate) fn backward_source(
    (gpu, memory): (&Gpu, &Memory),
    l: Residual,
    call: &Call<'_>,
    [weight, dweight, dbias]: [Address; 3],
) -> Result<(), Error> {
    let Place { x, y, source, dsource, backward_scratch, .. } = call.place;
    let [dy, ds] = memory.lease([y, dsource])?;
    let len = elements(source.shape);
    let Some(conv) = projection(l, x) else {
        return if ds.is_none() { Ok(()) } else { add(gpu, dy, ds, len) };
    };
    let [from, scratch, _] = memory.lease([source, backward_scratch, dsource])?;
    let (dx, scratch) = match ds.is_none() {
        true => (Address::NONE, scratch),
        false => (scratch, scratch.past(Word::round_up(source.bytes()))),
    };
    let none = Address::NONE;
    let backward = Backward {
        gpu,
        index: call.index,
        shape: source.shape,
        out: x.shape,
        phase: call.phase,
        x: from,
        y: none,
        saved: none,
        scratch,
        weight,
        variance: none,
        dweight,
        dbias,
        dy,
        dx,
    };
    conv::backward(&conv, &backward)?;
    if ds.is_none() { Ok(()) } else { add(gpu, dx, ds, len) }
}
