//! The weights that training begins with.

use crate::layer::{Layer, Residual, Role};
use crate::net::Net;
use crate::real::Real;
use crate::rng::{Purpose, Rng};
use crate::shape::Shape;

/// Draws all parameters of a net, flat as in [`Weights::Flat`](crate::net::Weights::Flat).
///
/// * convolution, and the projection of a residual addition: weights from N(0, 2 / fan-in) (He et
///   al. 2015), biases from U(-1, 1) / sqrt(fan-in);
/// * dense: weights and biases from U(-1, 1) / sqrt(fan-in);
/// * embedding: N(0, 1);
/// * normalisation: scale 1, shift 0, mean 0, variance 1.
///
/// Each tensor's numbers depend on the seed, the layer's place and the element's place alone.
/// Returns whether `out` has exactly the net's length; nothing is written where it has not.
pub fn weights(net: &Net<'_>, seed: u64, out: &mut [f32]) -> bool {
    if net.params(net.layers.len()) != Ok(out.len()) {
        return false;
    }
    let mut shape = net.input.shape;
    let mut rest = out;
    for (index, layer) in net.layers.iter().enumerate() {
        let (Some(tensors), Some(next)) = (layer.tensors(shape), layer.output(shape)) else {
            return false;
        };
        for role in Role::ALL {
            let Some((own, others)) = rest.split_at_mut_checked(tensors.len(role) as usize) else {
                return false;
            };
            tensor(layer, shape, role, Rng::new(seed, Purpose::Weights, 0, key(index, role)), own);
            rest = others;
        }
        shape = next;
    }
    true
}

/// What tells the stream of one tensor from another's.
pub(crate) fn key(layer: usize, role: Role) -> u32 {
    (layer as u32) << 2 | role as u32
}

/// Draws one parameter tensor of a layer whose input is of shape `x`.
pub(crate) fn tensor(layer: &Layer, x: Shape, role: Role, mut rng: Rng, out: &mut [f32]) {
    let fan_in = match layer {
        Layer::Conv2d(l) => {
            let kernel = u32::from(l.kernel.0) * u32::from(l.kernel.1);
            (x.c / l.groups.max(1)).saturating_mul(kernel)
        }
        Layer::Dense(_) => x.sample().unwrap_or(0),
        Layer::Residual(Residual { project: Some(p), .. }) => p.channels,
        _ => 0,
    };
    let bound = 1.0 / Real::sqrt(fan_in.max(1) as f32);
    match (layer, role) {
        (Layer::Conv2d(_) | Layer::Residual(_), Role::Weight) => {
            let deviation = Real::sqrt(2.0 / fan_in.max(1) as f32);
            out.iter_mut().for_each(|w| *w = rng.normal() * deviation);
        }
        (Layer::Embedding(_), _) => out.iter_mut().for_each(|w| *w = rng.normal()),
        (Layer::Conv2d(_) | Layer::Dense(_) | Layer::Residual(_), _) => {
            out.iter_mut().for_each(|w| *w = (rng.uniform() * 2.0 - 1.0) * bound);
        }
        (_, Role::Weight | Role::Variance) => out.fill(1.0),
        (_, Role::Bias | Role::Mean) => out.fill(0.0),
    }
}
