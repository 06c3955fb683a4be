//! Layers that are groups of their own.

use super::Parameters;
use super::group::Kind;
use super::op::{Kernel, Op};
use crate::arena::{Dtype, Lease};
use crate::error::Error;
use crate::layer::Activation::{LeakyRelu, Relu, Relu6};
use crate::layer::Layer;

/// The kernel of a layer that writes numbers or bytes.
pub(super) const fn kernel(layer: &Layer, writes: Dtype) -> Option<Kernel> {
    Some(match layer {
        Layer::Quantise(_) if matches!(writes, Dtype::U8) => codes,
        Layer::Quantise(_) => steps,
        Layer::BatchNorm(_) => batch_norm,
        Layer::Activation(Relu | Relu6 | LeakyRelu { .. }) => activation,
        Layer::MaxPool(_) => max_pool,
        Layer::AvgPool(_) => avg_pool,
        Layer::GlobalAvgPool(_) => global_avg_pool,
        Layer::Standardise(_) => standardise,
        Layer::L2Normalise(_) => l2_normalise,
        Layer::Residual(_) => residual,
        _ => return None,
    })
}

type Memory<'a> = [Lease<'a>; 4];

fn activation(op: &Op<'_>, _: &Parameters<'_>, [_, y, ..]: Memory<'_>) -> Result<(), Error> {
    if let Kind::Other(Layer::Activation(l)) = op.group.kind {
        l.forward_piecewise(y.planned::<f32>());
    }
    Ok(())
}

/// Numbers in steps, as numbers.
fn steps(op: &Op<'_>, _: &Parameters<'_>, [_, y, ..]: Memory<'_>) -> Result<(), Error> {
    if let Kind::Other(Layer::Quantise(l)) = op.group.kind {
        l.forward(y.planned::<f32>());
    }
    Ok(())
}

/// Numbers in steps, as the steps' bytes.
fn codes(op: &Op<'_>, _: &Parameters<'_>, [x, y, ..]: Memory<'_>) -> Result<(), Error> {
    if let Kind::Other(Layer::Quantise(l)) = op.group.kind {
        let (x, y) = (x.planned::<f32>(), y.planned::<u8>());
        y.iter_mut().zip(x).for_each(|(y, x)| *y = l.code(*x));
    }
    Ok(())
}

fn max_pool(op: &Op<'_>, _: &Parameters<'_>, [x, y, ..]: Memory<'_>) -> Result<(), Error> {
    if let Kind::Other(Layer::MaxPool(l)) = op.group.kind {
        l.forward::<f32>(op.x.shape, x.planned(), y.planned(), None);
    }
    Ok(())
}

fn avg_pool(op: &Op<'_>, _: &Parameters<'_>, [x, y, ..]: Memory<'_>) -> Result<(), Error> {
    if let Kind::Other(Layer::AvgPool(l)) = op.group.kind {
        l.forward::<f32>(op.x.shape, x.planned(), y.planned());
    }
    Ok(())
}

fn global_avg_pool(op: &Op<'_>, _: &Parameters<'_>, [x, y, ..]: Memory<'_>) -> Result<(), Error> {
    if let Kind::Other(Layer::GlobalAvgPool(l)) = op.group.kind {
        l.forward::<f32>(op.x.shape, x.planned(), y.planned());
    }
    Ok(())
}

fn l2_normalise(
    op: &Op<'_>,
    _: &Parameters<'_>,
    [_, y, saved, _]: Memory<'_>,
) -> Result<(), Error> {
    if let Kind::Other(Layer::L2Normalise(l)) = op.group.kind {
        l.forward::<f32>(op.x.shape, y.planned(), saved.planned());
    }
    Ok(())
}

/// Adds x to what is added where the sum is written over that, otherwise what is added to x.
fn residual(
    op: &Op<'_>,
    p: &Parameters<'_>,
    [x, y, source, scratch]: Memory<'_>,
) -> Result<(), Error> {
    if let Kind::Other(Layer::Residual(l)) = op.group.kind {
        let (x, y, source) = (x.planned::<f32>(), y.planned::<f32>(), source.planned::<f32>());
        if source.is_empty() {
            y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
            return Ok(());
        }
        y.iter_mut().zip(x).for_each(|(y, x)| *y = *x);
        let [w, b, ..] = p.numbers(op, scratch.planned())?;
        l.forward(op.saved.shape, op.x.shape.c, source, w, b, y);
    }
    Ok(())
}

fn batch_norm(
    op: &Op<'_>,
    p: &Parameters<'_>,
    [_, y, _, scratch]: Memory<'_>,
) -> Result<(), Error> {
    if let Kind::Other(Layer::BatchNorm(l)) = op.group.kind {
        let [weight, bias, mean, variance] = p.numbers(op, scratch.planned())?;
        l.forward_eval(op.x.shape, weight, bias, mean, variance, y.planned());
    }
    Ok(())
}

fn standardise(
    op: &Op<'_>,
    p: &Parameters<'_>,
    [_, y, _, scratch]: Memory<'_>,
) -> Result<(), Error> {
    if let Kind::Other(Layer::Standardise(l)) = op.group.kind {
        let [_, _, mean, variance] = p.numbers(op, scratch.planned())?;
        l.forward(op.x.shape, mean, variance, y.planned());
    }
    Ok(())
}
