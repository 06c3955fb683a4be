//! Activations: functions of one element, in place.

use crate::real::Real;
use crate::shape::Shape;

/// An activation. It overwrites its input, so its gradient is written in terms of the output y.
///
/// ```text
/// Relu       y = max(x, 0)                    dx = dy where y > 0, else 0
/// Relu6      y = min(max(x, 0), 6)            dx = dy where 0 < y < 6, else 0
/// LeakyRelu  y = x where x > 0, else slope x  dx = dy where y > 0, else slope dy
/// Tanh       y = tanh(x)                      dx = (1 - y^2) dy
/// ```
/// At a kink the gradient is that of the lower side, and NaN stays NaN, both as in PyTorch.
///
/// Shapes: y and g as the input, any (N, C, H, W).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Activation {
    /// Negative numbers become 0.
    Relu,
    /// As `Relu`, and nothing passes 6: fixed-point formats know their range.
    Relu6,
    /// Negative numbers shrink.
    LeakyRelu {
        /// What negative numbers are multiplied by. A negative slope gives negative inputs a
        /// positive output, from which the gradient cannot be read: it has no output shape.
        slope: f32,
    },
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// The output's shape, that of the input; `None` where a slope is negative or not finite.
    ///
    /// ```
    /// use sepal_core::layer::Activation;
    /// let mut y = [-2.0f32, 0.5, 7.0];
    /// Activation::Relu6.forward(&mut y);
    /// assert_eq!(y, [0.0, 0.5, 6.0]);
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        match self {
            Self::LeakyRelu { slope } if !(slope >= 0.0 && slope < f32::INFINITY) => None,
            _ => Some(x),
        }
    }

    /// Overwrites `y`, which holds x, with the function of it.
    pub fn forward<T: Real>(self, y: &mut [T]) {
        match self {
            Self::Tanh => y.iter_mut().for_each(|y| *y = y.tanh()),
            piecewise => piecewise.forward_piecewise(y),
        }
    }

    /// As [`forward`](Self::forward) for the functions that are straight in pieces: code that calls
    /// this one links no transcendental function. The others leave `y` as it is.
    #[inline]
    pub(crate) fn forward_piecewise<T: Real>(self, y: &mut [T]) {
        // What numbers up to 0 are multiplied by, where they do not become 0, and the highest.
        let (slope, top) = match self {
            Self::Relu => (None, T::INFINITY),
            Self::Relu6 => (None, T::from_f32(6.0)),
            Self::LeakyRelu { slope } => (Some(T::from_f32(slope)), T::INFINITY),
            Self::Tanh => return,
        };
        for y in y {
            // Comparisons with NaN are false, which keeps it.
            if *y <= T::ZERO {
                *y = slope.map_or(T::ZERO, |slope| slope * *y);
            } else if *y >= top {
                *y = top;
            }
        }
    }

    /// Overwrites `g`, which holds dy, with dx. `y` is the output of `forward`.
    pub fn backward<T: Real>(self, y: &[T], g: &mut [T]) {
        let pairs = y.iter().zip(g);
        match self {
            Self::Relu => pairs.for_each(|(y, g)| *g = if *y <= T::ZERO { T::ZERO } else { *g }),
            Self::Relu6 => {
                let six = T::from_f32(6.0);
                for (y, g) in pairs {
                    let flat = *y <= T::ZERO || *y >= six;
                    *g = if flat { T::ZERO } else { *g };
                }
            }
            Self::LeakyRelu { slope } => {
                let slope = T::from_f32(slope);
                pairs.for_each(|(y, g)| *g = if *y <= T::ZERO { slope * *g } else { *g });
            }
            Self::Tanh => pairs.for_each(|(y, g)| *g *= T::ONE - *y * *y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const ALL: [Activation; 5] = [
        Activation::Relu,
        Activation::Relu6,
        Activation::LeakyRelu { slope: 0.125 },
        Activation::LeakyRelu { slope: 0.0 },
        Activation::Tanh,
    ];

    fn brute(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Relu => x.max(0.0),
            Activation::Relu6 => x.clamp(0.0, 6.0),
            Activation::LeakyRelu { slope } => x.max(0.0) + f64::from(slope) * x.min(0.0),
            Activation::Tanh => (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        }
    }

    fn wide(seed: u64, len: u32) -> Vec<f64> {
        values(seed, len).iter().map(|v| v * 10.0).collect()
    }

    #[test]
    fn forward_is_the_definition() {
        for activation in ALL {
            let x = wide(1, 101);
            let mut y = x.clone();
            activation.forward(&mut y);
            let expected: Vec<f64> = x.iter().map(|&x| brute(activation, x)).collect();
            check::close(&y, &expected, 1e-14);
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        for activation in ALL {
            check::gradient(
                &[wide(2, 60)],
                60,
                |[x], y| {
                    y.copy_from_slice(x);
                    activation.forward(y);
                },
                |[x], dy, [g]| {
                    let mut y = x.to_vec();
                    activation.forward(&mut y);
                    g.copy_from_slice(dy);
                    activation.backward(&y, g);
                },
            );
        }
    }

    #[test]
    fn at_a_kink_the_lower_side_counts() {
        let grad = |activation: Activation, x: f32| {
            let (mut y, mut g) = ([x], [3.0]);
            activation.forward(&mut y);
            activation.backward(&y, &mut g);
            g[0]
        };
        assert_eq!(grad(Activation::Relu, 0.0), 0.0);
        assert_eq!(grad(Activation::Relu6, 0.0), 0.0);
        assert_eq!(grad(Activation::Relu6, 6.0), 0.0);
        assert_eq!(grad(Activation::LeakyRelu { slope: 0.5 }, 0.0), 1.5);
        assert_eq!(grad(Activation::Tanh, 0.0), 3.0);
    }

    #[test]
    fn nan_stays_and_infinity_saturates() {
        for activation in ALL {
            let mut y = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
            activation.forward(&mut y);
            assert!(y[0].is_nan());
            let top = match activation {
                Activation::Relu6 => 6.0,
                Activation::Tanh => 1.0,
                _ => f32::INFINITY,
            };
            assert_eq!(y[1], top);
        }
        let mut y = [f32::NEG_INFINITY; 3];
        Activation::Relu.forward(&mut y[..1]);
        Activation::Tanh.forward(&mut y[1..2]);
        Activation::LeakyRelu { slope: 0.1 }.forward(&mut y[2..]);
        assert_eq!(y, [0.0, -1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn slopes_that_hide_the_sign_have_no_output() {
        let s = Shape::new(2, 3, 4, 5);
        for activation in ALL {
            assert_eq!(activation.output(s), Some(s));
        }
        for slope in [-0.1, f32::NAN, f32::INFINITY] {
            assert_eq!(Activation::LeakyRelu { slope }.output(s), None);
        }
    }
}
