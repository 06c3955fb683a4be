//! Layers under training that run together, in blocks of eight channels: a norm, an activation and
//! a max-pool behind each other, or two of them.
//!
//! | passes over the tensor before the pool | apart | together |
//! |---|---|---|
//! | norm, activation, pool, forward | 4 reads, 2 writes | 2 reads |
//! | norm, activation, pool, backward | 5 reads, 3 writes | 2 reads, 1 write |
//! | activation, pool, forward | 2 reads, 1 write | 1 read |
//! | activation, pool, backward | 2 reads, 2 writes | 1 write |
//!
//! What the layers between give each other is planned as ever, and never written: a block may be
//! run in part, and single layers alone.

use sepal_core::arena::{Arena, Slot};
use sepal_core::backend::{self, Backend, Call, Param, Phase, TrainBlock, backward_sources};
use sepal_core::error::Error;
use sepal_core::layer::{Activation, BatchNorm, Layer, MaxPool, Pass};
use sepal_core::plan::{Chain, ParamsWalk, PlanError, TrainWalk};

use crate::activation::with_act;
use crate::arch::Instructions;
use crate::blocks::is_blocked;
use crate::layers::{numbers, share};
use crate::norm::{self, Coefficients};
use crate::pool::max;

/// Layers that run together at most.
const MOST: usize = 3;

/// Calls that run together: 1 to 3 of them, the others repeat the first.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a> {
    calls: [Call<'a>; MOST],
    len: usize,
}

/// How many layers from `at` on run together: fewer than two are one. `x` is what reaches the
/// first. What is kept of a body is written: no group goes on into the head behind it.
fn length(chain: &Chain<'_>, at: usize, past: usize, x: Slot) -> usize {
    let body = chain.body.len();
    let past = if chain.keep && at < body { past.min(body) } else { past };
    let layer = |i: usize| {
        // What a residual addition reads again is written.
        let within = at + i < past && (i == 0 || chain.held(at + i) == 0);
        if within { chain.get(at + i) } else { None }
    };
    if !is_blocked(x) {
        return 1;
    }
    let mut len = 0;
    if let Some(Layer::BatchNorm(_)) = layer(len) {
        len += 1;
    }
    match layer(len) {
        Some(Layer::Activation(Activation::Tanh)) => return 1,
        Some(Layer::Activation(_)) => len += 1,
        _ => {}
    }
    match layer(len) {
        Some(Layer::MaxPool(pool)) if max::can_mark(*pool) => len += 1,
        _ => {}
    }
    len.max(1)
}

/// The norm that a pool at `at` runs together with.
pub(crate) fn norm_of_pool(chain: &Chain<'_>, at: usize, x: Slot) -> bool {
    let first = at.saturating_sub(MOST - 1)..at;
    first.into_iter().any(|first| {
        matches!(chain.get(first), Some(Layer::BatchNorm(_)))
            && first + length(chain, first, chain.len(), x) == at + 1
    })
}

/// The walk over a block, call by call.
struct Calls<'b, 'a, B: ?Sized> {
    backend: &'b B,
    block: &'b TrainBlock<'a>,
    walk: TrainWalk,
    params: ParamsWalk,
    at: usize,
}

impl<'b, 'a, B: Backend + ?Sized> Calls<'b, 'a, B> {
    fn new(backend: &'b B, block: &'b TrainBlock<'a>) -> Self {
        let (walk, params) = (block.plan.walk(block.x), block.params.walk());
        Self { backend, block, walk, params, at: 0 }
    }

    fn call(&mut self) -> Result<Call<'a>, Error> {
        let (at, x) = (self.at, self.walk.x());
        let impossible = PlanError::Shape { layer: at, input: x.shape };
        let TrainBlock { chain, phase, .. } = *self.block;
        let (layer, needs) =
            backend::needs(self.backend, &chain, at, self.walk.reached(), Pass::Train)?;
        let param = Param::Ram(self.params.step(layer.tensors(x.shape).ok_or(impossible)?)?);
        let place = self.walk.step(needs)?;
        self.at += 1;
        Ok(Call { layer, index: at, place, param, phase })
    }

    /// The next calls that run together, none past `past`.
    fn group(&mut self, past: usize) -> Result<Group<'a>, Error> {
        let len = match self.block.phase {
            Phase::Eval => 1,
            _ => length(&self.block.chain, self.at, past, self.walk.x()),
        };
        let mut calls = [self.call()?; MOST];
        for call in calls.iter_mut().take(len).skip(1) {
            *call = self.call()?;
        }
        Ok(Group { calls, len })
    }
}

/// Calls `each` with the groups of a block's first `upto` layers; gives the output's slot.
pub(crate) fn forward_block<B: Backend>(
    backend: &mut B,
    block: &TrainBlock<'_>,
    upto: usize,
    mut each: impl FnMut(&mut B, &Group<'_>) -> Result<(), Error>,
) -> Result<Slot, Error> {
    let (mut walk, mut params, mut at) = (block.plan.walk(block.x), block.params.walk(), 0);
    while at < upto {
        let mut calls = Calls { backend: &*backend, block, walk, params, at };
        let group = calls.group(upto)?;
        (walk, params, at) = (calls.walk, calls.params, calls.at);
        each(backend, &group)?;
    }
    Ok(walk.x())
}

/// Calls `each` with the groups of a block, the last first.
pub(crate) fn backward_block<B: Backend>(
    backend: &mut B,
    block: &TrainBlock<'_>,
    mut each: impl FnMut(&mut B, &Group<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut past = block.chain.len();
    while past > 0 {
        let mut calls = Calls::new(&*backend, block);
        let group = loop {
            let group = calls.group(block.chain.len())?;
            if calls.at >= past {
                break group;
            }
        };
        past = calls.at - group.len;
        each(backend, &group)?;
        backward_sources(backend, block, past)?;
    }
    Ok(())
}

/// What of a group is there.
#[derive(Clone, Copy)]
struct Parts<'a> {
    norm: Option<(BatchNorm, Call<'a>)>,
    activation: Option<Activation>,
    pool: Option<(MaxPool, Call<'a>)>,
}

impl<'a> Group<'a> {
    /// The call, where it is one alone.
    pub(crate) fn single(&self) -> Option<&Call<'a>> {
        self.calls.first().filter(|_| self.len == 1)
    }

    fn last(&self) -> Call<'a> {
        self.calls[self.len - 1]
    }

    fn parts(&self) -> Parts<'a> {
        let mut parts = Parts { norm: None, activation: None, pool: None };
        for call in self.calls.iter().take(self.len) {
            match call.layer {
                Layer::BatchNorm(norm) => parts.norm = Some((*norm, *call)),
                Layer::Activation(activation) => parts.activation = Some(*activation),
                Layer::MaxPool(pool) => parts.pool = Some((*pool, *call)),
                _ => {}
            }
        }
        parts
    }

    /// Runs the group forward.
    pub(crate) fn forward(&self, with: Instructions, arena: &mut Arena<'_>) -> Result<(), Error> {
        let Parts { norm, activation, pool } = self.parts();
        let (x, y) = (self.calls[0].place.x, self.last().place.y);
        let winners = pool.map_or(Slot::EMPTY, |(_, call)| call.place.saved);
        let pool = pool.and_then(|(pool, _)| max::Blocked::new(with, pool, x.shape));
        let Some((layer, call)) = norm else {
            let [x, y, winners] = arena.lease([x, y, winners])?;
            let (x, y, winners) = (&*x.get()?, y.get()?, winners.get()?);
            if let Some(pool) = pool {
                with_act!(activation, act => {
                    pool.forward(Coefficients::NONE, act, x, y, winners);
                });
            }
            return Ok(());
        };
        let Param::Ram(p) = call.param else {
            return Err(Error::Unsupported("training parameters that lie in the model"));
        };
        let scratch = numbers(call.place.scratch);
        let slots =
            [x, y, winners, call.place.saved, scratch, p.weight, p.bias, p.mean, p.variance];
        let [x, y, winners, saved, scratch, gamma, beta, mean, variance] = arena.lease(slots)?;
        let (x, y, winners) = (&*x.get()?, y.get()?, winners.get()?);
        let (saved, scratch) = (saved.get()?, scratch.get()?);
        let (gamma, beta) = (&*gamma.get()?, &*beta.get()?);
        let shape = call.place.x.shape;
        let norm = norm::Blocked { with, layer, shape, gamma, beta };
        let coefficients = norm.measure(x, saved, scratch);
        norm.update(saved, share(layer, shape, call.phase), mean.get()?, variance.get()?);
        with_act!(activation, act => match pool {
            Some(pool) => pool.forward(coefficients, act, x, y, winners),
            None => norm.apply(coefficients, act, x, y),
        });
        Ok(())
    }

    /// Runs the group backward.
    pub(crate) fn backward(&self, with: Instructions, arena: &mut Arena<'_>) -> Result<(), Error> {
        let Parts { norm, activation, pool } = self.parts();
        let x = self.calls[0].place.x;
        // Nobody wants the gradient of a block's input.
        let wants_dx = self.calls[0].index > 0;
        let own = |layer| max::Blocked::new(with, layer, x.shape);
        let Some((layer, call)) = norm else {
            if let (Some((pool, call)), true) = (pool, wants_dx) {
                let slots = [call.place.saved, call.place.dy, call.place.dx];
                let [winners, dy, dx] = arena.lease(slots)?;
                let (winners, dy, dx) = (&*winners.get()?, &*dy.get()?, dx.get()?);
                if let Some(pool) = own(pool) {
                    with_act!(activation, act => {
                        pool.backward(Coefficients::NONE, act, &[], winners, dy, dx);
                    });
                }
            }
            return Ok(());
        };
        let Param::Ram(p) = call.param else {
            return Err(Error::Unsupported("gradients of parameters that lie in the model"));
        };
        let place = self.last().place;
        let scratch = if pool.is_some() { place } else { call.place }.backward_scratch;
        let (winners, dx) = match pool {
            Some(_) => (place.saved, place.dx),
            None => (Slot::EMPTY, Slot::EMPTY),
        };
        let slots =
            [x, p.weight, p.bias, call.place.saved, place.dy, dx, winners, numbers(scratch)];
        let [p_dweight, p_dbias] = [p.dweight, p.dbias];
        let slots = slots.into_iter().chain([p_dweight, p_dbias]);
        let mut all = [Slot::EMPTY; 10];
        all.iter_mut().zip(slots).for_each(|(all, slot)| *all = slot);
        let [x, gamma, beta, saved, dy, dx, winners, scratch, dgamma, dbeta] = arena.lease(all)?;
        let (x, gamma, beta) = (&*x.get::<f32>()?, &*gamma.get()?, &*beta.get()?);
        let (saved, scratch) = (&*saved.get()?, scratch.get()?);
        let gradients = [dgamma.get()?, dbeta.get()?];
        let shape = call.place.x.shape;
        let norm = norm::Blocked { with, layer, shape, gamma, beta };
        let Some(pool) = pool.and_then(|(pool, _)| own(pool)) else {
            let g = dy.get()?;
            with_act!(activation, act => {
                norm.backward(act, x, saved, g, gradients, scratch, wants_dx);
            });
            return Ok(());
        };
        let (winners, dy, dx) = (&*winners.get::<u8>()?, &*dy.get::<f32>()?, dx.get()?);
        with_act!(activation, act => {
            let coefficients =
                norm.gradient_coefficients(saved, gradients, scratch, |group, coefficients, sums| {
                    let [x_plane, y_plane] = pool.planes();
                    let (x, dy) = (norm.group(group, x_plane, x), norm.group(group, y_plane, dy));
                    let winners = norm.group(group, y_plane, winners);
                    pool.sums(coefficients, act, x, winners, dy, sums);
                });
            if wants_dx {
                pool.backward(coefficients, act, x, winners, dy, dx);
            }
        });
        Ok(())
    }
}
