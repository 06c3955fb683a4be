//! A backend with a layout of its own: convolutions, norms, activations and pools in blocks of
//! eight channels, forward and backward. The layout changes where the host reads or writes, and
//! in the last of such layers in a row.

use sepal_conformance::Backend;
use sepal_conformance::seam::{Call, Host, HostMut, Result, Slot};
use sepal_core::arena::{Arena, ArenaError, Dtype, Layout, Word};
use sepal_core::backend::{self, Param, Phase, TrainBlock, plan_train, same_length};
use sepal_core::layer::{BatchNorm, Conv2d, Layer, MaxPool, Needs, Pass, RELU, Role, Window};
use sepal_core::plan::{self, Chain, Reached};
use sepal_core::reference::{Reference, stored};
use sepal_core::shape::Shape;
use sepal_core::stage::Objective;

sepal_conformance::suite!(nchw8c, |words| Blocked { inner: Reference::new(words) });

struct Blocked<'a> {
    inner: Reference<'a>,
}

/// Whether this backend has a kernel of its own.
fn is_own(layer: Option<&Layer>) -> bool {
    use Layer::{Activation, AvgPool, BatchNorm, Conv2d, MaxPool};
    matches!(layer, Some(Conv2d(_) | BatchNorm(_) | Activation(_) | MaxPool(_) | AvgPool(_)))
}

/// The layout of what layer `at` reads; that of its output for the next. What is added further on lies
/// as the addition reads it.
fn layout(chain: &Chain<'_>, at: usize) -> Layout {
    let blocked = at > 0 && chain.held(at) == 0 && (0..=at).all(|at| is_own(chain.get(at)));
    if blocked { Layout::Nchw8c } else { Layout::Nchw }
}

/// Where element (n, c, i, j) lies.
fn index(slot: Slot, [n, c, i, j]: [u32; 4]) -> usize {
    let Shape { c: channels, h, w, .. } = slot.shape;
    let at = match slot.layout {
        Layout::Nchw8c => {
            let block = n * channels.div_ceil(8) + c / 8;
            ((block * h + i) * w + j) * 8 + c % 8
        }
        _ => ((n * channels + c) * h + i) * w + j,
    };
    at as usize
}

/// All (n, c, i, j) of a tensor, in the reference's order.
fn places(s: Shape) -> impl Iterator<Item = [u32; 4]> {
    let rows = move |n, c| (0..s.h).flat_map(move |i| (0..s.w).map(move |j| [n, c, i, j]));
    (0..s.n).flat_map(move |n| (0..s.c).flat_map(move |c| rows(n, c)))
}

/// The place of the input that a window at `out` reads for tap (r, s).
fn under(w: Window, x: Shape, out: [u32; 2], tap: [u32; 2]) -> Option<[u32; 2]> {
    let along = |out: u32, tap: u32, stride: u8, pad: u8, size: u32| {
        (out * u32::from(stride) + tap).checked_sub(u32::from(pad)).filter(|at| *at < size)
    };
    Some([
        along(out[0], tap[0], w.stride.0, w.pad.0, x.h)?,
        along(out[1], tap[1], w.stride.1, w.pad.1, x.w)?,
    ])
}

fn taps(w: Window) -> impl Iterator<Item = [u32; 2]> {
    let (rows, columns) = (u32::from(w.kernel.0), u32::from(w.kernel.1));
    (0..rows).flat_map(move |r| (0..columns).map(move |s| [r, s]))
}

/// A slot's numbers, for a kernel to read while it writes others.
fn copied(arena: &Arena<'_>, slot: Slot) -> Result<Vec<f32>> {
    Ok(if slot.is_empty() { vec![] } else { arena.view(slot)?.to_vec() })
}

/// The weights of a call, wherever they are.
fn parameters(arena: &Arena<'_>, call: &Call<'_>) -> Result<[Vec<f32>; 4]> {
    match call.param {
        Param::Ram(p) => {
            let mut numbers: [Vec<f32>; 4] = Default::default();
            for (numbers, role) in numbers.iter_mut().zip(Role::ALL) {
                *numbers = copied(arena, p.get(role))?;
            }
            Ok(numbers)
        }
        Param::Model { layer, tensors } => {
            let lengths = call.layer.tensors(call.place.x.shape).unwrap_or_default();
            let mut scratch = vec![0.0; lengths.total() as usize + 16];
            Ok(stored(layer, lengths, tensors, &mut scratch)?.map(<[f32]>::to_vec))
        }
    }
}

/// The weight's index for filter k, channel c of its group, and a tap.
fn weight(conv: Conv2d, x: Shape, k: u32, c: u32, [r, s]: [u32; 2]) -> usize {
    let (rows, columns) = (u32::from(conv.kernel.0), u32::from(conv.kernel.1));
    (((k * (x.c / conv.groups) + c) * rows + r) * columns + s) as usize
}

/// Channels of a group, and the first that filter k reads.
fn group(conv: Conv2d, x: Shape, k: u32) -> (u32, u32) {
    let channels = x.c / conv.groups;
    (channels, k / (conv.filters / conv.groups) * channels)
}

fn forward(arena: &mut Arena<'_>, call: &Call<'_>) -> Result<()> {
    let place = call.place;
    let (xs, ys) = (place.x, place.y);
    let x = copied(arena, xs)?;
    let [w, b, mut mean, mut variance] = parameters(arena, call)?;
    let mut out = vec![0.0; ys.elements()];
    let mut saved = vec![];
    let mut winners = vec![];
    match *call.layer {
        Layer::Conv2d(conv) => {
            for [n, k, p, q] in places(ys.shape) {
                let mut sum = b.get(k as usize).copied().unwrap_or(0.0);
                let (channels, first) = group(conv, xs.shape, k);
                for c in 0..channels {
                    for tap in taps(conv.window()) {
                        if let Some([i, j]) = under(conv.window(), xs.shape, [p, q], tap) {
                            let x = x[index(xs, [n, first + c, i, j])];
                            sum += w[weight(conv, xs.shape, k, c, tap)] * x;
                        }
                    }
                }
                out[index(ys, [n, k, p, q])] = sum;
            }
        }
        Layer::BatchNorm(norm) => {
            let channels = xs.shape.c as usize;
            if call.phase == Phase::Eval {
                saved = [&mean[..], &variance].concat();
            } else {
                saved = vec![0.0; 2 * channels];
                let count = (xs.shape.n * xs.shape.plane()) as f32;
                for at in places(xs.shape) {
                    saved[at[1] as usize] += x[index(xs, at)] / count;
                }
                for at in places(xs.shape) {
                    let c = at[1] as usize;
                    let apart = x[index(xs, at)] - saved[c];
                    saved[channels + c] += apart * apart / count;
                }
                let share = match call.phase {
                    Phase::Calibrate { seen } => xs.shape.n as f32 / (seen + xs.shape.n) as f32,
                    _ => norm.momentum,
                };
                norm.update(xs.shape, &saved, share, &mut mean, &mut variance);
            }
            for at in places(xs.shape) {
                let c = at[1] as usize;
                let scale = w.get(c).unwrap_or(&1.0) / (saved[channels + c] + norm.eps).sqrt();
                let shift = b.get(c).unwrap_or(&0.0);
                out[index(ys, at)] = (x[index(xs, at)] - saved[c]) * scale + shift;
            }
        }
        Layer::Activation(activation) => {
            for at in places(xs.shape) {
                let mut one = [x[index(xs, at)]];
                activation.forward(&mut one);
                [out[index(ys, at)]] = one;
            }
        }
        Layer::MaxPool(MaxPool { window }) => {
            winners = vec![0u8; place.saved.elements()];
            for (flat, [n, c, p, q]) in places(ys.shape).enumerate() {
                let mut best = f32::NEG_INFINITY;
                for (number, tap) in (0..).zip(taps(window)) {
                    if let Some([i, j]) = under(window, xs.shape, [p, q], tap) {
                        let x = x[index(xs, [n, c, i, j])];
                        if x > best {
                            best = x;
                            winners.get_mut(flat).into_iter().for_each(|w| *w = number);
                        }
                    }
                }
                out[index(ys, [n, c, p, q])] = best;
            }
        }
        Layer::AvgPool(pool) => {
            let size = taps(pool.window).count() as f32;
            for [n, c, p, q] in places(ys.shape) {
                let read = taps(pool.window).filter_map(|tap| {
                    let [i, j] = under(pool.window, xs.shape, [p, q], tap)?;
                    Some(x[index(xs, [n, c, i, j])])
                });
                out[index(ys, [n, c, p, q])] = read.sum::<f32>() / size;
            }
        }
        _ => unreachable!("only own layers come here"),
    }
    arena.view_mut::<f32>(ys)?.copy_from_slice(&out);
    if !winners.is_empty() {
        arena.view_mut::<u8>(place.saved)?.copy_from_slice(&winners);
    }
    if let (Layer::BatchNorm(_), Param::Ram(p)) = (call.layer, call.param)
        && call.phase != Phase::Eval
    {
        arena.view_mut::<f32>(place.saved)?.copy_from_slice(&saved);
        arena.view_mut::<f32>(p.mean)?.copy_from_slice(&mean);
        arena.view_mut::<f32>(p.variance)?.copy_from_slice(&variance);
    }
    Ok(())
}

fn backward(arena: &mut Arena<'_>, call: &Call<'_>) -> Result<()> {
    let place = call.place;
    let (xs, ys, dys) = (place.x, place.y, place.dy);
    // The plan gives no place to the gradient of a block's input.
    let dxs = if place.dx.is_empty() { Slot { at: 0, ..xs } } else { place.dx };
    let Param::Ram(p) = call.param else { unreachable!("frozen layers are not trained") };
    let (x, y, dy) = (copied(arena, xs)?, copied(arena, ys)?, copied(arena, dys)?);
    let w = copied(arena, p.weight)?;
    let (mut dw, mut db) = (copied(arena, p.dweight)?, copied(arena, p.dbias)?);
    let mut dx = vec![0.0; dxs.elements()];
    match *call.layer {
        Layer::Conv2d(conv) => {
            for [n, k, p, q] in places(ys.shape) {
                let g = dy[index(dys, [n, k, p, q])];
                db.get_mut(k as usize).into_iter().for_each(|db| *db += g);
                let (channels, first) = group(conv, xs.shape, k);
                for c in 0..channels {
                    for tap in taps(conv.window()) {
                        if let Some([i, j]) = under(conv.window(), xs.shape, [p, q], tap) {
                            let (w_at, at) =
                                (weight(conv, xs.shape, k, c, tap), [n, first + c, i, j]);
                            dw[w_at] += g * x[index(xs, at)];
                            dx[index(dxs, at)] += g * w[w_at];
                        }
                    }
                }
            }
        }
        Layer::BatchNorm(norm) => {
            let saved = copied(arena, place.saved)?;
            let channels = xs.shape.c as usize;
            let count = (xs.shape.n * xs.shape.plane()) as f32;
            let inverse = |c: usize| 1.0 / (saved[channels + c] + norm.eps).sqrt();
            let z = |at: [u32; 4]| {
                let c = at[1] as usize;
                (x[index(xs, at)] - saved[c]) * inverse(c)
            };
            let (mut sums, mut products) = (vec![0.0; channels], vec![0.0; channels]);
            for at in places(xs.shape) {
                let (c, g) = (at[1] as usize, dy[index(dys, at)]);
                sums[c] += g;
                products[c] += g * z(at);
            }
            for at in places(xs.shape) {
                let (c, g) = (at[1] as usize, dy[index(dys, at)]);
                let scale = w.get(c).unwrap_or(&1.0) * inverse(c);
                let centred = g - sums[c] / count - z(at) * products[c] / count;
                dx[index(dxs, at)] = scale * centred;
            }
            dw.iter_mut().zip(&products).for_each(|(dw, sum)| *dw += sum);
            db.iter_mut().zip(&sums).for_each(|(db, sum)| *db += sum);
        }
        Layer::Activation(activation) => {
            for at in places(xs.shape) {
                let mut one = [dy[index(dys, at)]];
                activation.backward(&[y[index(ys, at)]], &mut one);
                [dx[index(dxs, at)]] = one;
            }
        }
        Layer::MaxPool(MaxPool { window }) => {
            let winners = arena.view::<u8>(place.saved)?.to_vec();
            for ([n, c, p, q], winner) in places(ys.shape).zip(winners) {
                let tap = taps(window).nth(usize::from(winner)).unwrap_or_default();
                if let Some([i, j]) = under(window, xs.shape, [p, q], tap) {
                    dx[index(dxs, [n, c, i, j])] += dy[index(dys, [n, c, p, q])];
                }
            }
        }
        Layer::AvgPool(pool) => {
            let size = taps(pool.window).count() as f32;
            for [n, c, p, q] in places(ys.shape) {
                for tap in taps(pool.window) {
                    if let Some([i, j]) = under(pool.window, xs.shape, [p, q], tap) {
                        dx[index(dxs, [n, c, i, j])] += dy[index(dys, [n, c, p, q])] / size;
                    }
                }
            }
        }
        _ => unreachable!("only own layers come here"),
    }
    for (slot, numbers) in [(p.dweight, dw), (p.dbias, db)] {
        if !slot.is_empty() {
            arena.view_mut::<f32>(slot)?.copy_from_slice(&numbers);
        }
    }
    if !place.dx.is_empty() {
        arena.view_mut::<f32>(place.dx)?.copy_from_slice(&dx);
    }
    Ok(())
}

impl Backend for Blocked<'_> {
    sepal_conformance::delegate! {
        inner: bytes fill zero copy widen backward_source objective update nearest top_k
    }

    fn needs(&self, chain: &Chain<'_>, at: usize, reached: Reached, pass: Pass) -> Option<Needs> {
        let layer = chain.get(at)?;
        let needs = layer.needs(reached.x.shape, pass)?;
        if !is_own(Some(layer)) {
            return Some(needs);
        }
        let (from, to) = (layout(chain, at), layout(chain, at + 1));
        let stays = from == to;
        Some(Needs {
            layout: to,
            in_place: needs.in_place && stays,
            gradient_in_place: needs.gradient_in_place && stays,
            ..needs
        })
    }

    fn write(&mut self, slot: Slot, from: Host<'_>) -> Result<()> {
        let Host::F32(numbers) = from else { return self.inner.write(slot, from) };
        if slot.layout != Layout::Nchw8c {
            return self.inner.write(slot, from);
        }
        same_length(slot, numbers.len())?;
        let lying = self.inner.arena().view_mut::<f32>(slot)?;
        places(slot.shape).zip(numbers).for_each(|(at, x)| lying[index(slot, at)] = *x);
        Ok(())
    }

    fn read(&mut self, slot: Slot, into: HostMut<'_>) -> Result<()> {
        if slot.layout != Layout::Nchw8c {
            return self.inner.read(slot, into);
        }
        let HostMut::F32(numbers) = into else {
            return Err(ArenaError::Dtype { slot: slot.dtype, asked: Dtype::U8 }.into());
        };
        same_length(slot, numbers.len())?;
        let lying = self.inner.arena().view::<f32>(slot)?;
        places(slot.shape).zip(numbers).for_each(|(at, x)| *x = lying[index(slot, at)]);
        Ok(())
    }

    fn forward(&mut self, call: &Call<'_>) -> Result<()> {
        match is_own(Some(call.layer)) {
            true => forward(self.inner.arena(), call),
            false => self.inner.forward(call),
        }
    }

    fn backward(&mut self, call: &Call<'_>) -> Result<()> {
        match is_own(Some(call.layer)) {
            true => backward(self.inner.arena(), call),
            false => self.inner.backward(call),
        }
    }
}

/// The layout is really used: within a block every tensor but the last has it, with its padding,
/// and so has its gradient.
#[test]
fn blocks_run_in_their_own_layout() {
    let layers = [
        Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(9, 3) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool { window: Window::square(2) }),
    ];
    let (chain, shape) = (Chain::new(&layers), Shape::new(2, 3, 4, 4));
    let backend = Blocked { inner: Reference::new(&mut []) };
    let reference = Reference::new(&mut []);
    let plan =
        plan_train(&backend, 0, &chain, Slot::new(0, shape, Dtype::F32), &Objective::Statistics)
            .unwrap();
    let plain =
        plan_train(&reference, 0, &chain, Slot::new(0, shape, Dtype::F32), &Objective::Statistics)
            .unwrap();
    assert!(plan.bytes() > plain.bytes(), "9 channels take 16 places");
    let params = plan::Params::new(0, chain, shape, 0).unwrap();
    let x = Slot::new(0, shape, Dtype::F32);
    let block = TrainBlock { chain, params, plan, x, phase: Phase::Eval };
    let mut walk = block.plan.walk(block.x);
    let layouts = (0..layers.len()).map(|at| {
        let (_, needs) = backend::needs(&backend, &chain, at, walk.reached(), Pass::Train).unwrap();
        let place = walk.step(needs).unwrap();
        assert_eq!(place.dy.layout, place.y.layout);
        assert_eq!(place.y.bytes() % Word::BYTES, 0);
        place.y.layout
    });
    let expected = [Layout::Nchw8c, Layout::Nchw8c, Layout::Nchw8c, Layout::Nchw];
    assert_eq!(layouts.collect::<Vec<_>>(), expected);
}
