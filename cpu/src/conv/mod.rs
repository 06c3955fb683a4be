//! Convolution: which algorithm runs, in what pieces, and what is fused with it.
//!
//! A [`Conv`] is made of a layer, the shape of its input and the layout that the input lies in
//! (plain or in blocks of eight channels). Its output always lies in blocks, and so does the
//! gradient of it; the gradient of the input lies as the input does.
//!
//! | call | scratch |
//! |---|---|
//! | [`forward`](Conv::forward) without pool, in training or evaluation | [`forward_scratch`](Conv::forward_scratch)`(None)` |
//! | `forward` with a pool, in evaluation | `forward_scratch(Some(pool))` |
//! | [`backward`](Conv::backward) | [`backward_scratch`](Conv::backward_scratch) |
//!
//! Scratch is in numbers, never more for fewer samples, and may hold anything.
//!
//! Forward, each output goes through the [`Epilogue`] while it is in registers: a factor for each
//! filter (folded into the weights), a summand (a bias, or what a normalisation makes of it) and
//! an activation. With a [`Pool`] the outputs of a few rows are pooled while they are in the
//! cache, and only what is pooled is written: `y` then has the pool's shape.

mod columns;
mod problem;
mod winograd;

use sepal_core::arena::Layout;
use sepal_core::layer::{AvgPool, Conv2d, MaxPool, Window};
use sepal_core::shape::Shape;

pub(crate) use columns::Columns;
pub(crate) use problem::{Clamp, Epilogue, Problem};

use crate::arch::Instructions;
use crate::blocks::{block, unblock};

/// A pool that a convolution in evaluation runs before it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// [`MaxPool`].
    Max(Window),
    /// [`AvgPool`], for which padding counts.
    Average(Window),
}

impl Pool {
    /// The output's shape.
    pub(crate) const fn output(self, x: Shape) -> Option<Shape> {
        match self {
            Self::Max(window) => MaxPool { window }.output(x),
            Self::Average(window) => AvgPool { window }.output(x),
        }
    }
}

/// A convolution with everything that follows from its shapes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    layer: Conv2d,
    x: Shape,
    y: Shape,
    layout: Layout,
}

impl Conv {
    /// A convolution of inputs of shape `x` that lie in `layout`; `None` where the layer cannot
    /// take them.
    pub(crate) fn new(layer: Conv2d, x: Shape, layout: Layout) -> Option<Self> {
        Problem::new(layer, x)?;
        Some(Self { layer, x, y: layer.output(x)?, layout })
    }

    /// Numbers of scratch of a forward pass, with a pool or without.
    pub(crate) fn forward_scratch(&self, _pool: Option<Pool>) -> usize {
        let weights = self.layer.tensors(self.x).map_or(0, |t| t.weight as usize);
        self.x.len().unwrap_or(0) as usize + 2 * self.y.len().unwrap_or(0) as usize + weights
    }

    /// Numbers of scratch of a backward pass.
    pub(crate) fn backward_scratch(&self) -> usize {
        2 * self.x.len().unwrap_or(0) as usize + self.y.len().unwrap_or(0) as usize
    }

    /// Writes `y` in blocks: the output, or what the pool makes of it.
    #[expect(clippy::too_many_arguments, reason = "tensors, what is fused, and scratch")]
    pub(crate) fn forward(
        &self,
        _instructions: Instructions,
        x: &[f32],
        weight: &[f32],
        epilogue: &Epilogue<'_>,
        pool: Option<Pool>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let length = |s: Shape| s.len().unwrap_or(0) as usize;
        let (plain, rest) = scratch.split_at_mut(length(self.x));
        let (out, rest) = rest.split_at_mut(length(self.y));
        let (pooled, weights) = rest.split_at_mut(length(self.y));
        match self.layout {
            Layout::Nchw8c => unblock(self.x, x, plain),
            _ => plain.copy_from_slice(x),
        }
        let weights = &mut weights[..weight.len()];
        weights.copy_from_slice(weight);
        let fan_in = weight.len() / self.y.c as usize;
        for (weights, scale) in weights.chunks_exact_mut(fan_in.max(1)).zip(epilogue.scale) {
            weights.iter_mut().for_each(|w| *w *= scale);
        }
        self.layer.forward(self.x, plain, weights, epilogue.shift, out);
        let Clamp { slope, top } = epilogue.clamp;
        out.iter_mut().for_each(|y| *y = (*y).max(slope * *y).min(top));
        match pool {
            None => block(self.y, out, y),
            Some(pool) => {
                let Some(shape) = pool.output(self.y) else { return };
                let pooled = &mut pooled[..length(shape)];
                match pool {
                    Pool::Max(window) => MaxPool { window }.forward(self.y, out, pooled, None),
                    Pool::Average(window) => AvgPool { window }.forward(self.y, out, pooled),
                }
                block(shape, pooled, y);
            }
        }
    }

    /// Adds to `dw` and `db` (empty without bias), overwrites `dx` where it is wanted. `dy` lies
    /// in blocks, `x` and `dx` in the layout of the input.
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub(crate) fn backward(
        &self,
        _instructions: Instructions,
        x: &[f32],
        weight: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
        scratch: &mut [f32],
    ) {
        let length = |s: Shape| s.len().unwrap_or(0) as usize;
        let (plain, rest) = scratch.split_at_mut(length(self.x));
        let (plain_dx, plain_dy) = rest.split_at_mut(length(self.x));
        let plain_dy = &mut plain_dy[..length(self.y)];
        match self.layout {
            Layout::Nchw8c => unblock(self.x, x, plain),
            _ => plain.copy_from_slice(x),
        }
        unblock(self.y, dy, plain_dy);
        self.layer.backward(self.x, plain, weight, plain_dy, Some(plain_dx), dw, db);
        match (dx, self.layout) {
            (Some(dx), Layout::Nchw8c) => block(self.x, plain_dx, dx),
            (Some(dx), _) => dx.copy_from_slice(plain_dx),
            _ => {}
        }
    }
}
