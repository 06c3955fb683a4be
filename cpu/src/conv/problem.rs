//! What a convolution is, in plain numbers.

use sepal_core::layer::Conv2d;
use sepal_core::shape::Shape;

/// A convolution with everything that follows from its shapes: x is (N, C, H, W), the weights are
/// (K, C / groups, R, S), y is (N, K, P, Q).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) n: usize,
    pub(crate) c: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) k: usize,
    pub(crate) p: usize,
    pub(crate) q: usize,
    /// R, S.
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    pub(crate) pad: (usize, usize),
    pub(crate) groups: usize,
}

impl Problem {
    /// `None` where the layer cannot take `x`.
    pub(crate) fn new(layer: Conv2d, x: Shape) -> Option<Self> {
        let y = layer.output(x)?;
        let pair = |(a, b): (u8, u8)| (usize::from(a), usize::from(b));
        Some(Self {
            n: x.n as usize,
            c: x.c as usize,
            h: x.h as usize,
            w: x.w as usize,
            k: y.c as usize,
            p: y.h as usize,
            q: y.w as usize,
            kernel: pair(layer.kernel),
            stride: pair(layer.stride),
            pad: pair(layer.pad),
            groups: layer.groups as usize,
        })
    }
}

/// What happens to an output before it is stored: `y = act(scale_k (W x)_k + shift_k)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogue<'a> {
    /// A factor for each filter, folded into the weights when they are packed; empty for 1.
    pub(crate) scale: &'a [f32],
    /// A summand for each filter: the bias, or what a normalisation makes of it; empty for 0.
    pub(crate) shift: &'a [f32],
    /// The activation.
    pub(crate) clamp: Clamp,
}

/// Activations that are fused: `max(y, slope y)`, then `min(y, top)`.
///
/// | activation | slope | top |
/// |---|---|---|
/// | none | 1 | infinity |
/// | ReLU | 0 | infinity |
/// | ReLU6 | 0 | 6 |
/// | leaky ReLU | its slope, in [0, 1) | infinity |
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Clamp {
    pub(crate) slope: f32,
    pub(crate) top: f32,
}

impl Clamp {
    /// Nothing.
    pub(crate) const NONE: Self = Self { slope: 1.0, top: f32::INFINITY };
}
