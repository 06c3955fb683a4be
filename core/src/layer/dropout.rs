//! Dropout.

use crate::real::Real;
use crate::rng::{Purpose, Rng};
use crate::shape::Shape;

/// Inverted dropout (Srivastava et al., 2014): in training each element is 0 with probability
/// `rate`, and the others grow so that the expectation stays. Evaluation skips the layer.
///
/// ```text
/// y[n,d] = x[n,d] / (1 - rate) where word d of the sequence of (seed, step, n) >= rate 2^32, else 0
/// ```
/// The sequence is [`Rng`]'s for dropout, with the step as its epoch and the place n in the batch
/// as its sample. Backward draws it again, so nothing is saved. Two dropout layers of one net
/// take two seeds, or they drop the same places.
///
/// Shapes: x and y (N, D) with D = C H W of any input.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dropout {
    /// The probability of 0, at least 0 and less than 1.
    pub rate: f32,
}

impl Dropout {
    /// The output's shape, that of the input; `None` where the rate is not in [0, 1) or the
    /// samples are empty.
    ///
    /// ```
    /// use sepal_core::{layer::Dropout, shape::Shape};
    /// let mut y = [1.0f32; 8];
    /// Dropout { rate: 0.5 }.forward(Shape::rows(2, 4), &mut y, 7, 0);
    /// assert!(y.iter().all(|&y| y == 0.0 || y == 2.0));
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        match x.sample() {
            Some(1..) if self.rate >= 0.0 && self.rate < 1.0 => Some(x),
            _ => None,
        }
    }

    /// Overwrites `y`, which holds x. A dropped NaN is 0 too.
    pub fn forward<T: Real>(self, shape: Shape, y: &mut [T], seed: u64, step: u32) {
        self.apply(shape, y, seed, step);
    }

    /// Overwrites `g`, which holds dy, with dx: the same places are dropped, the others scaled.
    pub fn backward<T: Real>(self, shape: Shape, g: &mut [T], seed: u64, step: u32) {
        self.apply(shape, g, seed, step);
    }

    /// The layer is linear and diagonal: it is its own derivative.
    fn apply<T: Real>(self, shape: Shape, values: &mut [T], seed: u64, step: u32) {
        let (Some(_), Some(features)) = (self.output(shape), shape.sample()) else { return };
        let scale = T::ONE / (T::ONE - T::from_f32(self.rate));
        let dropped = (f64::from(self.rate) * 4_294_967_296.0) as u32;
        for (n, sample) in (0..).zip(values.chunks_exact_mut(features as usize)) {
            let rng = Rng::new(seed, Purpose::Dropout, step, n);
            for (block, values) in (0..).zip(sample.chunks_mut(4)) {
                for (value, word) in values.iter_mut().zip(rng.at(block)) {
                    *value = if word < dropped { T::ZERO } else { *value * scale };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const SHAPES: [Shape; 3] =
        [Shape::new(3, 2, 2, 3), Shape::new(1, 1, 1, 1), Shape::new(5, 17, 1, 1)];

    /// The definition, one word after the other.
    fn brute(rate: f32, s: Shape, x: &[f64], seed: u64, step: u32) -> Vec<f64> {
        let d = s.sample().unwrap() as usize;
        let mut y = Vec::new();
        for (n, x) in x.chunks(d).enumerate() {
            let mut rng = Rng::new(seed, Purpose::Dropout, step, n as u32);
            for x in x {
                let keep = f64::from(rng.next_u32()) >= f64::from(rate) * 2f64.powi(32);
                y.push(if keep { x / (1.0 - f64::from(rate)) } else { 0.0 });
            }
        }
        y
    }

    #[test]
    fn forward_is_the_definition() {
        for s in SHAPES {
            for rate in [0.0, 0.25, 0.9] {
                let x = values(1, s.len().unwrap());
                let mut y = x.clone();
                Dropout { rate }.forward(s, &mut y, 5, 6);
                check::close(&y, &brute(rate, s, &x, 5, 6), 1e-14);
                assert!(rate > 0.0 || y == x);
            }
        }
    }

    #[test]
    fn backward_is_the_derivative_and_the_adjoint() {
        for s in SHAPES {
            let (layer, len) = (Dropout { rate: 0.4 }, s.len().unwrap());
            check::gradient(
                &[values(1, len)],
                len as usize,
                |[x], y| {
                    y.copy_from_slice(x);
                    layer.forward(s, y, 1, 2);
                },
                |_, dy, [g]| {
                    g.copy_from_slice(dy);
                    layer.backward(s, g, 1, 2);
                },
            );
            let (x, dy) = (values(1, len), values(2, len));
            let (mut y, mut g) = (x.clone(), dy.clone());
            layer.forward(s, &mut y, 1, 2);
            layer.backward(s, &mut g, 1, 2);
            check::close(&[check::dot(&y, &dy)], &[check::dot(&x, &g)], 1e-14);
        }
    }

    fn mask(rate: f32, seed: u64, step: u32) -> Vec<bool> {
        let mut y = std::vec![1.0f32; 2 * 10_000];
        Dropout { rate }.forward(Shape::rows(2, 10_000), &mut y, seed, step);
        y.iter().map(|&y| y == 0.0).collect()
    }

    /// 20,000 draws: five standard deviations of the share are at most 0.018.
    #[test]
    fn the_share_of_zeros_is_the_rate() {
        for rate in [0.1, 0.5, 0.9] {
            let zeros = mask(rate, 3, 0).iter().filter(|&&zero| zero).count();
            assert!((zeros as f32 / 20_000.0 - rate).abs() < 0.018, "{rate}: {zeros}");
        }
    }

    #[test]
    fn seeds_steps_and_samples_drop_other_places() {
        let at = mask(0.5, 1, 1);
        assert_eq!(at, mask(0.5, 1, 1));
        assert_ne!(at, mask(0.5, 2, 1));
        assert_ne!(at, mask(0.5, 1, 2));
        assert_ne!(at[..10_000], at[10_000..]);
    }

    #[test]
    fn rates_outside_zero_to_one_have_no_output() {
        let s = SHAPES[0];
        assert_eq!(Dropout { rate: 0.0 }.output(s), Some(s));
        for rate in [-0.1, 1.0, f32::NAN] {
            assert_eq!(Dropout { rate }.output(s), None);
        }
        assert_eq!(Dropout { rate: 0.5 }.output(Shape::rows(3, 0)), None);
    }
}
