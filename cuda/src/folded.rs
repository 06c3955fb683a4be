//! Frozen layers that run within the convolution before them: a norm, an activation and a max-pool,
//! in this order, each or none.
//!
//! The norm is a factor and a summand of each filter, the activation and the pool run on sums that
//! threads still hold, so that only the pool's output is written, once:
//!
//! ```text
//! scale = gamma / sqrt(variance + eps),  shift = beta + scale (bias - mean)
//! ```
//! In a plan for evaluation the convolution gives what the last of them gives, and they are views
//! of it.

use sepal_core::arena::Slot;
use sepal_core::backend::{Backend, Call, EvalBlock, Param, eval_calls};
use sepal_core::error::Error;
use sepal_core::layer::{Activation, BatchNorm, Conv2d, Flatten, Layer, MaxPool, Needs, Pass};
use sepal_core::plan::Chain;

use crate::layers;

/// A convolution and what is behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Folded {
    pub conv: Conv2d,
    pub norm: Option<BatchNorm>,
    pub activation: Option<Activation>,
    pub pool: Option<MaxPool>,
}

/// Whether a thread of the kernels has whole windows: they do not overlap, and have as many places
/// as divide four.
fn is_in_thread(pool: MaxPool) -> bool {
    let window = pool.window;
    let area = u32::from(window.kernel.0) * u32::from(window.kernel.1);
    window.kernel == window.stride && window.pad == (0, 0) && matches!(area, 1 | 2 | 4)
}

impl Folded {
    /// The convolution at `at` with what runs within it; `None` where there is none.
    fn new(chain: &Chain<'_>, at: usize) -> Option<Self> {
        let Some(Layer::Conv2d(conv)) = chain.get(at) else { return None };
        let mut folded = Self { conv: *conv, norm: None, activation: None, pool: None };
        // What a residual addition reads again is written.
        let behind = |len| chain.get(at + len).filter(|_| chain.held(at + len) == 0);
        if let Some(Layer::BatchNorm(norm)) = behind(folded.len()) {
            folded.norm = Some(*norm);
        }
        match behind(folded.len()) {
            // More code than the rest of it, for few nets.
            Some(Layer::Activation(Activation::Tanh)) => return Some(folded),
            Some(Layer::Activation(activation)) => folded.activation = Some(*activation),
            _ => {}
        }
        match behind(folded.len()) {
            Some(Layer::MaxPool(pool)) if is_in_thread(*pool) => folded.pool = Some(*pool),
            _ => {}
        }
        Some(folded)
    }

    /// The same where there is more than the convolution.
    fn together(chain: &Chain<'_>, at: usize) -> Option<Self> {
        Self::new(chain, at).filter(|folded| folded.len() > 1)
    }

    /// How many layers.
    fn len(&self) -> usize {
        let behind = [self.norm.is_some(), self.activation.is_some(), self.pool.is_some()];
        1 + behind.into_iter().filter(|is| *is).count()
    }
}

/// What layer `at` asks for in a plan for evaluation, where it is a convolution that others run
/// within, or one of these. `None` where it runs alone.
pub(crate) fn needs(chain: &Chain<'_>, at: usize, x: Slot, pass: Pass) -> Option<Option<Needs>> {
    if let Some(folded) = Folded::together(chain, at) {
        return Some(conv_needs(chain, at, folded, x, pass));
    }
    let is_within = |first: usize| {
        Folded::together(chain, first).is_some_and(|folded| first + folded.len() > at)
    };
    (at.saturating_sub(3)..at).any(is_within).then(|| {
        // The pool may not fit what it has given itself.
        let view = Layer::Flatten(Flatten).needs(x.shape, Pass::Eval)?;
        Some(Needs { out: x.shape, ..view })
    })
}

/// The needs of a convolution with others within it: none where one of them cannot take what the
/// one before it gives.
fn conv_needs(chain: &Chain<'_>, at: usize, folded: Folded, x: Slot, pass: Pass) -> Option<Needs> {
    let mut needs = layers::needs(chain.get(at)?, x.shape, pass)?;
    for behind in 1..folded.len() {
        needs.out = layers::needs(chain.get(at + behind)?, needs.out, pass)?.out;
    }
    Some(needs)
}

/// A convolution and what runs within it, ready to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    pub folded: Folded,
    pub conv: Call<'a>,
    /// The norm's parameters.
    pub norm: Option<Param<'a>>,
    /// Layers that are still to come.
    left: usize,
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
        if let Some(folded) = Folded::together(&block.chain, call.index) {
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
