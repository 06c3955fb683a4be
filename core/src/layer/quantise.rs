//! Activations in 256 steps.

use crate::real::Real;
use crate::shape::Shape;

/// Rounds each number to one of 256 that lie evenly, those of a byte.
///
/// ```text
/// q = min(max(floor(x / scale + zero + 1/2), 0), 255)
/// y = (q - zero) scale
/// dx = dy where 0 < q < 255, else 0
/// ```
/// A net whose activations pass such layers, with weights stored as i8, computes the same numbers
/// in integers as in f32, but for rounding (Jacob et al., CVPR 2018): q is what is kept between its
/// layers. The gradient passes the steps as if they were not there (the straight-through estimator
/// of Bengio et al., 2013); it is read from y, so numbers in the first and the last step get none.
/// NaN stays NaN.
///
/// Shapes: y and g as the input, any (N, C, H, W).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Quantise {
    /// The width of a step: above 0.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero: u8,
}

impl Quantise {
    /// Bytes as they are, for raw samples from 0 to 1.
    pub const BYTES: Self = Self { scale: 1.0 / 255.0, zero: 0 };

    /// The steps that reach from `low` to `high` with 0 among them: negative numbers need a zero
    /// above 0. Where all numbers are 0, or one is not finite, the scale is 1.
    ///
    /// ```
    /// use sepal_core::layer::Quantise;
    /// assert_eq!(Quantise::range(0.0, 63.75), Quantise { scale: 0.25, zero: 0 });
    /// assert_eq!(Quantise::range(-64.0, 191.0), Quantise { scale: 1.0, zero: 64 });
    /// ```
    pub fn range(low: f32, high: f32) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = (high - low) / 255.0;
        if scale > 0.0 && scale < f32::INFINITY {
            Self { scale, zero: (0.5 - low / scale) as u8 }
        } else {
            Self { scale: 1.0, zero: 0 }
        }
    }

    /// The output's shape, that of the input; `None` where the scale is not above 0 and finite.
    ///
    /// ```
    /// use sepal_core::layer::Quantise;
    /// let mut y = [-1.0f32, 0.6, 70.0];
    /// Quantise { scale: 0.25, zero: 2 }.forward(&mut y);
    /// assert_eq!(y, [-0.5, 0.5, 63.25]);
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        if self.scale > 0.0 && self.scale < f32::INFINITY { Some(x) } else { None }
    }

    /// Overwrites `y`, which holds x, with the function of it.
    pub fn forward<T: Real>(self, y: &mut [T]) {
        let (scale, zero) = (T::from_f32(self.scale), T::from_usize(self.zero.into()));
        let (half, last) = (T::from_f32(0.5), T::from_usize(255));
        for y in y {
            let q = *y / scale + zero + half;
            // Comparisons with NaN are false, which keeps it.
            let q = if q <= T::ZERO { T::ZERO } else { q.floor() };
            *y = (if q >= last { last } else { q } - zero) * scale;
        }
    }

    /// q of one number; 0 of NaN.
    pub fn code(self, x: f32) -> u8 {
        // The cast cuts off what is behind the point, and saturates.
        (x / self.scale + f32::from(self.zero) + 0.5) as u8
    }

    /// Overwrites `g`, which holds dy, with dx. `y` is the output of `forward`.
    pub fn backward<T: Real>(self, y: &[T], g: &mut [T]) {
        let (scale, zero) = (T::from_f32(self.scale), T::from_usize(self.zero.into()));
        let (low, high) = ((T::ZERO - zero) * scale, (T::from_usize(255) - zero) * scale);
        for (y, g) in y.iter().zip(g) {
            *g = if *y <= low || *y >= high { T::ZERO } else { *g };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const ALL: [Quantise; 4] = [
        Quantise::BYTES,
        Quantise { scale: 0.0625, zero: 128 },
        Quantise { scale: 0.001, zero: 255 },
        Quantise { scale: 3.0, zero: 7 },
    ];

    /// The nearest of all 256 numbers, the larger where two are as near.
    fn brute(layer: Quantise, x: f64) -> f64 {
        let steps =
            (0..=255).map(|q| (f64::from(q) - f64::from(layer.zero)) * f64::from(layer.scale));
        steps.min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs()).then(b.total_cmp(a))).unwrap()
    }

    #[test]
    fn forward_is_the_nearest_step() {
        for layer in ALL {
            let span = 300.0 * f64::from(layer.scale);
            let mut x: Vec<f64> = values(1, 500).iter().map(|v| v * span).collect();
            x.extend([0.0, f64::INFINITY, f64::NEG_INFINITY].map(|x: f64| x.clamp(-1e9, 1e9)));
            let mut y = x.clone();
            layer.forward(&mut y);
            let expected: Vec<f64> = x.iter().map(|&x| brute(layer, x)).collect();
            check::close(&y, &expected, 1e-12);
            let again = y.clone();
            layer.forward(&mut y);
            check::close(&y, &again, 1e-12);
        }
        let mut y = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        Quantise { scale: 0.5, zero: 2 }.forward(&mut y);
        assert!(y[0].is_nan() && y[1..] == [126.5, -1.0]);
    }

    /// Between its ends the layer has the gradient of no layer at all.
    #[test]
    fn gradients_pass_between_the_ends() {
        let layer = Quantise { scale: 0.5, zero: 2 };
        let mut y = [-9.0f32, -1.0, -0.6, 0.0, 3.1, 126.2, 126.4, 500.0];
        layer.forward(&mut y);
        let mut g = [7.0; 8];
        layer.backward(&y, &mut g);
        assert_eq!(g, [0.0, 0.0, 7.0, 7.0, 7.0, 7.0, 0.0, 0.0]);
    }

    #[test]
    fn a_range_holds_its_ends_and_zero() {
        for (low, high) in [(0.0, 4.0), (-1.0, 1.0), (-3.0, -1.0), (2.0, 5.0), (-1e-20, 1e20)] {
            let layer = Quantise::range(low, high);
            let mut y = [low, high, 0.0];
            layer.forward(&mut y);
            assert!((y[0] - low).abs() <= layer.scale && (y[1] - high).abs() <= layer.scale);
            assert_eq!(y[2], 0.0, "{low} to {high}");
        }
        for (low, high) in [(0.0, 0.0), (f32::NAN, f32::NAN), (0.0, f32::INFINITY)] {
            assert_eq!(Quantise::range(low, high), Quantise { scale: 1.0, zero: 0 });
        }
    }

    #[test]
    fn steps_of_no_width_have_no_output() {
        let s = Shape::new(2, 3, 4, 5);
        assert_eq!(Quantise::BYTES.output(s), Some(s));
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(Quantise { scale, zero: 0 }.output(s), None);
        }
    }
}
