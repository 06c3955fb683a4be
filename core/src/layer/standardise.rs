//! Standardisation of features before a classifier.

use super::Tensors;
use crate::real::Real;
use crate::shape::Shape;

/// Each element of a sample, less its mean over the training samples, over its deviation.
///
/// ```text
/// y[n,d] = (x[n,d] - mean[d]) / sqrt(variance[d]), and 0 where variance[d] = 0
/// ```
/// Mean and variance are measured by [`calibrate`](Self::calibrate), not trained. With mean 0 and
/// variance 1, their values before, the layer changes nothing.
///
/// Shapes: x and y (N, D) with D = C H W of any input; mean and variance (D).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Standardise;

impl Standardise {
    /// The output's shape, that of the input; `None` where the samples are empty.
    ///
    /// ```
    /// use sepal_core::{layer::Standardise, shape::Shape};
    /// let (mut mean, mut variance) = ([0.0f32], [1.0]);
    /// Standardise.calibrate(Shape::rows(2, 1), &[1.0, 5.0], 0, &mut mean, &mut variance);
    /// assert_eq!((mean, variance), ([3.0], [4.0]));
    /// let mut y = [7.0];
    /// Standardise.forward(Shape::rows(1, 1), &mean, &variance, &mut y);
    /// assert_eq!(y, [2.0]);
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        match x.sample() {
            Some(1..) => Some(x),
            _ => None,
        }
    }

    /// The lengths of mean and variance for inputs of shape `x`.
    pub const fn tensors(self, x: Shape) -> Option<Tensors> {
        match x.sample() {
            Some(features) => Some(Tensors { mean: features, variance: features, ..Tensors::NONE }),
            None => None,
        }
    }

    /// Overwrites `y`, which holds x.
    pub fn forward<T: Real>(self, shape: Shape, mean: &[T], variance: &[T], y: &mut [T]) {
        let Some(features) = self.features(shape) else { return };
        for y in y.chunks_exact_mut(features) {
            for ((y, &mean), &variance) in y.iter_mut().zip(mean).zip(variance) {
                *y = over_deviation(*y - mean, variance);
            }
        }
    }

    /// Overwrites `g`, which holds dy, with `dx = dy / sqrt(variance)`, 0 where that is 0.
    pub fn backward<T: Real>(self, shape: Shape, variance: &[T], g: &mut [T]) {
        let Some(features) = self.features(shape) else { return };
        for g in g.chunks_exact_mut(features) {
            g.iter_mut().zip(variance).for_each(|(g, &v)| *g = over_deviation(*g, v));
        }
    }

    /// Merges the samples of a batch into the `mean` and the biased `variance` of the `seen`
    /// samples before; `seen == 0` starts afresh, whatever they hold.
    ///
    /// With the batch's m samples, their mean a and biased variance v, and s = m / (seen + m)
    /// (Chan, Golub and LeVeque, 1979):
    /// ```text
    /// mean'     = mean + s (a - mean)
    /// variance' = (1 - s) variance + s v + s (1 - s) (a - mean)^2
    /// ```
    /// The batch's mean is found as the first sample plus the mean distance from it, so that a
    /// feature that never changes has a variance of exactly 0.
    pub fn calibrate<T: Real>(
        self,
        shape: Shape,
        x: &[T],
        seen: u32,
        mean: &mut [T],
        variance: &mut [T],
    ) {
        let Some(features) = self.features(shape) else { return };
        if shape.n == 0 {
            return;
        }
        let count = T::from_usize(shape.n as usize);
        let total = f64::from(seen) + f64::from(shape.n);
        let share = T::from_f64(f64::from(shape.n) / total);
        let keep = T::from_f64(f64::from(seen) / total);
        let running = mean.iter_mut().zip(variance);
        for ((d, &first), (mean, variance)) in x.iter().enumerate().take(features).zip(running) {
            let column = || x.iter().skip(d).step_by(features);
            let from_first = column().fold(T::ZERO, |sum, &x| sum + (x - first));
            let batch = first + from_first / count;
            let squares = column().fold(T::ZERO, |sum, &x| sum + (x - batch) * (x - batch));
            if seen == 0 {
                (*mean, *variance) = (batch, squares / count);
            } else {
                let apart = batch - *mean;
                *mean += share * apart;
                let within = keep * *variance + share * (squares / count);
                *variance = within + share * keep * (apart * apart);
            }
        }
    }

    /// D.
    fn features(self, shape: Shape) -> Option<usize> {
        self.output(shape)?;
        Some(shape.sample()? as usize)
    }
}

fn over_deviation<T: Real>(x: T, variance: T) -> T {
    if variance == T::ZERO { T::ZERO } else { x / variance.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const SHAPES: [Shape; 3] =
        [Shape::new(3, 2, 2, 3), Shape::new(1, 1, 1, 1), Shape::new(5, 4, 1, 1)];

    fn positive(seed: u64, len: u32) -> Vec<f64> {
        values(seed, len).iter().map(|v| v * v).collect()
    }

    #[test]
    fn forward_is_the_definition() {
        for s in SHAPES {
            let d = s.sample().unwrap();
            let (x, mean, mut variance) =
                (values(1, s.len().unwrap()), values(2, d), positive(3, d));
            variance[d as usize / 2] = 0.0;
            let mut y = x.clone();
            Standardise.forward(s, &mean, &variance, &mut y);
            for (at, y) in y.iter().enumerate() {
                let d = at % d as usize;
                let z = (x[at] - mean[d]) / variance[d].sqrt();
                check::close(&[*y], &[if variance[d] == 0.0 { 0.0 } else { z }], 1e-14);
            }
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        for s in SHAPES {
            let d = s.sample().unwrap();
            // Deviations of 0.5 and more, and one of 0.
            let mean = values(2, d);
            let mut variance: Vec<f64> = positive(3, d).iter().map(|v| v + 0.25).collect();
            variance[0] = if d > 1 { 0.0 } else { 4.0 };
            check::gradient(
                &[values(1, s.len().unwrap())],
                s.len().unwrap() as usize,
                |[x], y| {
                    y.copy_from_slice(x);
                    Standardise.forward(s, &mean, &variance, y);
                },
                |_, dy, [g]| {
                    g.copy_from_slice(dy);
                    Standardise.backward(s, &variance, g);
                },
            );
        }
    }

    #[test]
    fn uncalibrated_changes_nothing() {
        let s = SHAPES[0];
        let x = values(1, s.len().unwrap());
        let (mut y, mut g) = (x.clone(), x.clone());
        Standardise.forward(s, &[0.0; 12], &[1.0; 12], &mut y);
        Standardise.backward(s, &[1.0; 12], &mut g);
        assert_eq!((&y, &g), (&x, &x));
    }

    /// In pieces of any size, the statistics are those of all samples at once.
    #[test]
    fn calibration_in_pieces_is_that_of_the_population() {
        let (d, n) = (3, 11);
        let x: Vec<f64> = values(1, n * d).iter().map(|v| v * 3.0 + 7.0).collect();
        let mut expected = (Vec::new(), Vec::new());
        for at in 0..d as usize {
            let column: Vec<f64> = x.iter().skip(at).step_by(d as usize).copied().collect();
            let mean = column.iter().sum::<f64>() / f64::from(n);
            expected.0.push(mean);
            expected.1.push(column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n));
        }
        for piece in [1, 2, 4, 11] {
            let (mut mean, mut variance) = (std::vec![f64::NAN; 3], std::vec![f64::NAN; 3]);
            let mut seen = 0;
            for x in x.chunks((piece * d) as usize) {
                let batch = x.len() as u32 / d;
                Standardise.calibrate(Shape::rows(batch, d), x, seen, &mut mean, &mut variance);
                seen += batch;
            }
            check::close(&mean, &expected.0, 1e-13);
            check::close(&variance, &expected.1, 1e-13);
        }
    }

    /// 0.1 has no exact sum in f32, yet the variance is exactly 0 and the output too.
    #[test]
    fn a_constant_feature_becomes_zero() {
        let (mut mean, mut variance) = ([f32::NAN], [f32::NAN]);
        for (seen, n) in [(0, 7), (7, 13), (20, 1)] {
            let x = std::vec![0.1f32; n];
            let s = Shape::rows(n as u32, 1);
            Standardise.calibrate(s, &x, seen, &mut mean, &mut variance);
        }
        assert_eq!((mean, variance), ([0.1], [0.0]));
        let (mut y, mut g) = ([0.1, 99.0], [1.0, 2.0]);
        Standardise.forward(Shape::rows(2, 1), &mean, &variance, &mut y);
        Standardise.backward(Shape::rows(2, 1), &variance, &mut g);
        assert_eq!((y, g), ([0.0; 2], [0.0; 2]));
    }

    #[test]
    fn an_empty_batch_changes_nothing_and_empty_samples_have_no_output() {
        let (mut mean, mut variance) = ([2.0f32], [3.0]);
        Standardise.calibrate(Shape::rows(0, 1), &[], 0, &mut mean, &mut variance);
        assert_eq!((mean, variance), ([2.0], [3.0]));
        assert_eq!(Standardise.output(Shape::rows(2, 0)), None);
    }
}
