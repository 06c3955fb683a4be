//! Frozen layers that run within the convolution before them: a norm, an activation and a pool, in
//! this order, each or none.
//!
//! The norm is folded into the factors and summands of the filters, the activation and the pool
//! run on what the convolution still has in registers and caches:
//!
//! ```text
//! scale = gamma / sqrt(variance + eps),  shift = beta + scale (bias - mean)
//! ```
//! In a plan for evaluation the convolution gives what the last of them gives, and they are views
//! of it.

use sepal_core::arena::{Arena, Layout, Slot};
use sepal_core::backend::{Backend, Call, EvalBlock, Param, eval_calls};
use sepal_core::error::Error;
use sepal_core::layer::{Activation, BatchNorm, Conv2d, Flatten, Layer, Needs, Pass, Tensors};
use sepal_core::plan::Chain;
use sepal_core::reference::stored;

use crate::arch::Instructions;
use crate::conv::{Clamp, Conv, Epilogue, Pool, Precision};
use crate::layers::{numbers, stored_room};
use crate::norm::inverse;

/// A convolution and what is behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Folded {
    conv: Conv2d,
    norm: Option<BatchNorm>,
    clamp: Option<Clamp>,
    pool: Option<Pool>,
}

impl Folded {
    /// The convolution at `at` with what runs within it; `None` where there is none.
    fn new(chain: &Chain<'_>, at: usize) -> Option<Self> {
        let Some(Layer::Conv2d(conv)) = chain.get(at) else { return None };
        let mut folded = Self { conv: *conv, norm: None, clamp: None, pool: None };
        // What a residual addition reads again is written.
        let behind = |len| chain.get(at + len).filter(|_| chain.held(at + len) == 0);
        if let Some(Layer::BatchNorm(norm)) = behind(folded.len()) {
            folded.norm = Some(*norm);
        }
        let top = f32::INFINITY;
        match behind(folded.len()) {
            Some(Layer::Activation(Activation::Relu)) => {
                folded.clamp = Some(Clamp { slope: 0.0, top });
            }
            Some(Layer::Activation(Activation::Relu6)) => {
                folded.clamp = Some(Clamp { slope: 0.0, top: 6.0 });
            }
            Some(Layer::Activation(Activation::LeakyRelu { slope })) if *slope < 1.0 => {
                folded.clamp = Some(Clamp { slope: *slope, top });
            }
            // It would be before the pool.
            Some(Layer::Activation(_)) => return Some(folded),
            _ => {}
        }
        match behind(folded.len()) {
            Some(Layer::MaxPool(pool)) => folded.pool = Some(Pool::Max(pool.window)),
            Some(Layer::AvgPool(pool)) => folded.pool = Some(Pool::Average(pool.window)),
            _ => {}
        }
        Some(folded)
    }

    /// How many layers.
    fn len(&self) -> usize {
        let behind = [self.norm.is_some(), self.clamp.is_some(), self.pool.is_some()];
        1 + behind.into_iter().filter(|is| *is).count()
    }

    /// Numbers of scratch of its own: factors and summands, and the convolution's.
    fn scratch(&self, precision: Precision, x: Slot) -> Option<usize> {
        let conv = Conv::new(self.conv, x.shape, x.layout, precision)?;
        let filters = if self.norm.is_some() { self.conv.filters as usize } else { 0 };
        Some(conv.forward_scratch(self.pool).saturating_add(filters.saturating_mul(2)))
    }
}

/// What layer `at` asks for in a plan for evaluation, where it is a convolution that others run
/// within, or one of these. `None` where it runs alone.
pub(crate) fn needs(
    precision: Precision,
    chain: &Chain<'_>,
    at: usize,
    x: Slot,
    pass: Pass,
) -> Option<Option<Needs>> {
    if let Some(folded) = Folded::new(chain, at).filter(|folded| folded.len() > 1) {
        return Some(conv_needs(precision, chain, at, folded, x, pass));
    }
    let before = at.saturating_sub(3)..at;
    let is_within =
        |first: usize| Folded::new(chain, first).is_some_and(|folded| first + folded.len() > at);
    before.into_iter().any(is_within).then(|| {
        // The pool may not fit what it has given itself.
        let view = Layer::Flatten(Flatten).needs(x.shape, Pass::Eval)?;
        Some(Needs { out: x.shape, layout: x.layout, ..view })
    })
}

/// The needs of a convolution with others within it: none where one of them cannot take what the
/// one before it gives.
fn conv_needs(
    precision: Precision,
    chain: &Chain<'_>,
    at: usize,
    folded: Folded,
    x: Slot,
    pass: Pass,
) -> Option<Needs> {
    let (mut shape, mut widened) = (x.shape, 0usize);
    let mut needs = chain.get(at)?.needs(x.shape, pass)?;
    for i in 0..folded.len() {
        let one = chain.get(at + i)?.needs(shape, pass)?;
        (shape, needs.out) = (one.out, one.out);
        widened = widened.checked_add(stored_room(one.forward_scratch)?)?;
    }
    let own = folded.scratch(precision, x)?.saturating_mul(size_of::<f32>());
    Some(Needs { layout: Layout::Nchw8c, forward_scratch: widened.saturating_add(own), ..needs })
}

/// Runs frozen layers; `each` runs those that run alone.
pub(crate) fn eval_block<B: Backend>(
    backend: &mut B,
    block: &EvalBlock<'_>,
    mut each: impl FnMut(&mut B, &Call<'_>) -> Result<(), Error>,
    mut together: impl FnMut(&mut B, &Run<'_>) -> Result<(), Error>,
) -> Result<Slot, Error> {
    let mut run: Option<Run<'_>> = None;
    eval_calls(backend, block, |backend, call| {
        if let Some(folded) =
            Folded::new(&block.chain, call.index).filter(|folded| folded.len() > 1)
        {
            run = Some(Run { folded, conv: *call, norm: None, left: folded.len() });
        }
        let Some(now) = &mut run else { return each(backend, call) };
        now.left -= 1;
        if let Layer::BatchNorm(_) = call.layer {
            now.norm = Some(call.param);
        }
        if now.left == 0 {
            together(backend, now)?;
            run = None;
        }
        Ok(())
    })
}

/// A convolution and what runs within it, ready to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    folded: Folded,
    conv: Call<'a>,
    /// The norm's parameters.
    norm: Option<Param<'a>>,
    /// Layers that are still to come.
    left: usize,
}

impl Run<'_> {
    /// Runs it.
    pub(crate) fn run(
        &self,
        with: Instructions,
        precision: Precision,
        arena: &mut Arena<'_>,
    ) -> Result<(), Error> {
        let place = self.conv.place;
        let own = self.folded.scratch(precision, place.x).unwrap_or(0);
        let scratch = numbers(place.scratch);
        match (self.conv.param, self.norm) {
            (Param::Ram(p), norm) => {
                let none = [Slot::EMPTY; 4];
                let [gamma, beta, mean, variance] = match norm {
                    Some(Param::Ram(n)) => [n.weight, n.bias, n.mean, n.variance],
                    _ => none,
                };
                let slots =
                    [place.x, place.y, scratch, p.weight, p.bias, gamma, beta, mean, variance];
                let [x, y, scratch, weight, bias, gamma, beta, mean, variance] =
                    arena.lease(slots)?;
                let norm = [&*gamma.get()?, &*beta.get()?, &*mean.get()?, &*variance.get()?];
                let conv = [&*weight.get()?, &*bias.get()?];
                self.compute((with, precision), x.get()?, conv, norm, y.get()?, scratch.get()?);
            }
            (Param::Model { layer, tensors }, norm) => {
                let [x, y, scratch] = arena.lease([place.x, place.y, scratch])?;
                let scratch = scratch.get::<f32>()?;
                let (widened, own) = scratch.split_at_mut(scratch.len().saturating_sub(own));
                let lengths = self.conv.layer.tensors(place.x.shape).unwrap_or(Tensors::NONE);
                let filters = self.folded.conv.filters;
                let (norm_layer, norm_tensors) = match norm {
                    Some(Param::Model { layer, tensors }) => (layer, Some(tensors)),
                    _ => (layer, None),
                };
                // Those of the norm lie behind the convolution's.
                let room = self.conv.layer.needs(place.x.shape, Pass::Narrow);
                let room = room.map_or(0, |needs| needs.forward_scratch) / size_of::<f32>();
                let (first, second) = widened.split_at_mut(room.min(widened.len()));
                let [weight, bias, ..] = stored(layer, lengths, tensors, first)?;
                let norm = match (self.folded.norm, norm_tensors) {
                    (Some(norm), Some(tensors)) => {
                        let affine = if norm.affine { filters } else { 0 };
                        let lengths = Tensors {
                            weight: affine,
                            bias: affine,
                            mean: filters,
                            variance: filters,
                        };
                        stored(norm_layer, lengths, tensors, second)?
                    }
                    _ => [&[][..]; 4],
                };
                self.compute((with, precision), x.get()?, [weight, bias], norm, y.get()?, own);
            }
        }
        Ok(())
    }

    fn compute(
        &self,
        (with, precision): (Instructions, Precision),
        x: &[f32],
        [weight, bias]: [&[f32]; 2],
        [gamma, beta, mean, variance]: [&[f32]; 4],
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (Folded { conv, norm, clamp, pool }, place) = (self.folded, self.conv.place);
        let Some(conv) = Conv::new(conv, place.x.shape, place.x.layout, precision) else { return };
        let clamp = clamp.unwrap_or(Clamp::NONE);
        let Some(norm) = norm else {
            let epilogue = Epilogue { scale: &[], shift: bias, clamp };
            return conv.forward(with, x, weight, &epilogue, pool, y, scratch);
        };
        let (scale, rest) = scratch.split_at_mut(mean.len().min(scratch.len()));
        let (shift, scratch) = rest.split_at_mut(mean.len().min(rest.len()));
        let filters = scale.iter_mut().zip(shift.iter_mut()).zip(mean.iter().zip(variance));
        for (k, ((scale, shift), (mean, variance))) in filters.enumerate() {
            let of = |numbers: &[f32], absent| numbers.get(k).copied().unwrap_or(absent);
            *scale = of(gamma, 1.0) * inverse(norm, *variance);
            *shift = of(beta, 0.0) + *scale * (of(bias, 0.0) - mean);
        }
        let epilogue = Epilogue { scale, shift, clamp };
        conv.forward(with, x, weight, &epilogue, pool, y, scratch);
    }
}
