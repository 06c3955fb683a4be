//! Batch normalisation.

use super::{Tensors, sum, sum_pairs};
use crate::real::Real;
use crate::shape::Shape;

/// Normalisation of each channel over batch and plane (Ioffe and Szegedy, arXiv 1502.03167).
///
/// ```text
/// y[n,c,i,j] = gamma[c] (x[n,c,i,j] - mean[c]) / sqrt(variance[c] + eps) + beta[c]
/// ```
/// In training mean and variance are those of the batch, over its m = N H W places of a channel
/// (biased: divided by m); in evaluation they are the running ones. Without `affine`, gamma is 1
/// and beta 0, and neither is stored.
///
/// Shapes: x and y (N, C, H, W); gamma, beta, mean and variance (C).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BatchNorm {
    /// Whether gamma (the layer's `weight`) and beta (its `bias`) are there and trained.
    pub affine: bool,
    /// Added to the variance, so that a constant channel gives beta.
    pub eps: f32,
    /// The share that a batch's statistics get in the running ones.
    pub momentum: f32,
}

impl BatchNorm {
    /// Without gamma and beta, eps 1e-5, momentum 0.1.
    ///
    /// ```
    /// use sepal_core::{layer::BatchNorm, shape::Shape};
    /// let (norm, shape) = (BatchNorm::new(), Shape::rows(2, 1));
    /// let (mut y, mut saved) = ([0.0f32; 2], [0.0; 2]);
    /// norm.forward_train(shape, &[1.0, 5.0], &[], &[], &mut y, &mut saved);
    /// assert_eq!(saved, [3.0, 4.0]);
    /// assert!((y[1] - 1.0).abs() < 1e-5);
    /// ```
    pub const fn new() -> Self {
        Self { affine: false, eps: 1e-5, momentum: 0.1 }
    }

    /// The output's shape, that of the input; `None` where it is empty, `eps` is not a positive
    /// number or `momentum` is not in 0 to 1.
    pub const fn output(self, x: Shape) -> Option<Shape> {
        let eps = self.eps > 0.0 && self.eps < f32::INFINITY;
        let momentum = self.momentum >= 0.0 && self.momentum <= 1.0;
        match x.len() {
            Some(1..) if eps && momentum => Some(x),
            _ => None,
        }
    }

    /// The lengths of gamma, beta, mean and variance for inputs of shape `x`.
    pub const fn tensors(self, x: Shape) -> Option<Tensors> {
        let trained = if self.affine { x.c } else { 0 };
        Some(Tensors { weight: trained, bias: trained, mean: x.c, variance: x.c })
    }

    /// Writes `y` by the statistics of the batch, and these to `saved`: C means, then C biased
    /// variances. `gamma` and `beta` are empty without `affine`.
    ///
    /// The variance is the mean of the squared deviations from the mean, found in a second pass:
    /// the difference of two large sums would lose the digits.
    pub fn forward_train<T: Real>(
        self,
        shape: Shape,
        x: &[T],
        gamma: &[T],
        beta: &[T],
        y: &mut [T],
        saved: &mut [T],
    ) {
        let Some(count) = self.count::<T>(shape) else { return };
        let Some((means, variances)) = saved.split_at_mut_checked(shape.c as usize) else { return };
        for (c, (saved_mean, saved_variance)) in means.iter_mut().zip(variances).enumerate() {
            let total = planes(x, shape, c).fold(T::ZERO, |total, x| total + sum(x, |x| x));
            let mean = total / count;
            let squared = |x: T| (x - mean) * (x - mean);
            let total = planes(x, shape, c).fold(T::ZERO, |total, x| total + sum(x, squared));
            let variance = total / count;
            let scale = at(gamma, c, T::ONE) * self.inverse(variance);
            let shift = at(beta, c, T::ZERO);
            for (x, y) in planes(x, shape, c).zip(planes_mut(y, shape, c)) {
                x.iter().zip(y).for_each(|(x, y)| *y = (*x - mean) * scale + shift);
            }
            (*saved_mean, *saved_variance) = (mean, variance);
        }
    }

    /// Moves the running `mean` and `variance` towards the statistics that `forward_train` saved.
    ///
    /// ```text
    /// mean     = (1 - share) mean     + share batch mean
    /// variance = (1 - share) variance + share batch variance m / (m - 1)
    /// ```
    /// as PyTorch does. `share` is `momentum`, or 1 / k at the k-th batch for the plain mean of
    /// all batches. The variance of a single place, m = 1, stays as it is.
    pub fn update<T: Real>(
        self,
        shape: Shape,
        saved: &[T],
        share: T,
        mean: &mut [T],
        variance: &mut [T],
    ) {
        let Some(count) = self.count::<T>(shape) else { return };
        let Some((means, variances)) = saved.split_at_checked(shape.c as usize) else { return };
        let unbiased = if count > T::ONE { count / (count - T::ONE) } else { T::ONE };
        let keep = T::ONE - share;
        for (running, &batch) in mean.iter_mut().zip(means) {
            *running = keep * *running + share * batch;
        }
        for (running, &batch) in variance.iter_mut().zip(variances) {
            *running = keep * *running + share * (batch * unbiased);
        }
    }

    /// Overwrites `y`, which holds x, by the running statistics.
    pub fn forward_eval<T: Real>(
        self,
        shape: Shape,
        gamma: &[T],
        beta: &[T],
        mean: &[T],
        variance: &[T],
        y: &mut [T],
    ) {
        if self.output(shape).is_none() {
            return;
        }
        for (c, (&mean, &variance)) in mean.iter().zip(variance).enumerate() {
            let scale = at(gamma, c, T::ONE) * self.inverse(variance);
            let shift = at(beta, c, T::ZERO);
            for y in planes_mut(y, shape, c) {
                y.iter_mut().for_each(|y| *y = (*y - mean) * scale + shift);
            }
        }
    }

    /// Overwrites `g`, which holds dy, with dx; adds to `dgamma` and `dbeta` (empty without
    /// `affine`). `x` and `saved` are those of `forward_train`.
    ///
    /// With z = (x - mean) / sqrt(variance + eps) and sums over the m places of a channel:
    /// ```text
    /// dbeta[c]  += sum dy
    /// dgamma[c] += sum dy z
    /// dx = gamma[c] / sqrt(variance[c] + eps) (dy - (sum dy) / m - z (sum dy z) / m)
    /// ```
    /// Each x moves mean and variance, too. With s = 1 / sqrt(variance + eps), so z_i = s (x_i - mean):
    /// ```text
    /// dmean/dx_j = 1 / m,  dvariance/dx_j = 2 (x_j - mean) / m = 2 z_j / (m s),  ds/dvariance = -s^3 / 2
    /// dz_i/dx_j  = s ([i = j] - 1 / m) + (x_i - mean) (-s^3 / 2) 2 z_j / (m s)
    ///            = s ([i = j] - 1 / m - z_i z_j / m)
    /// ```
    /// and `dx_j = gamma sum_i dy_i dz_i/dx_j` is the line above.
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub fn backward<T: Real>(
        self,
        shape: Shape,
        x: &[T],
        gamma: &[T],
        saved: &[T],
        g: &mut [T],
        dgamma: &mut [T],
        dbeta: &mut [T],
    ) {
        let Some(count) = self.count::<T>(shape) else { return };
        let Some((means, variances)) = saved.split_at_checked(shape.c as usize) else { return };
        for (c, (&mean, &variance)) in means.iter().zip(variances).enumerate() {
            let inverse = self.inverse(variance);
            let (mut sum_g, mut sum_gz) = (T::ZERO, T::ZERO);
            for (x, g) in planes(x, shape, c).zip(planes(g, shape, c)) {
                sum_g += sum(g, |g| g);
                sum_gz += sum_pairs(x, g, |x, g| g * ((x - mean) * inverse));
            }
            if let (Some(dgamma), Some(dbeta)) = (dgamma.get_mut(c), dbeta.get_mut(c)) {
                *dgamma += sum_gz;
                *dbeta += sum_g;
            }
            let (mean_g, mean_gz) = (sum_g / count, sum_gz / count);
            let scale = at(gamma, c, T::ONE) * inverse;
            for (x, g) in planes(x, shape, c).zip(planes_mut(g, shape, c)) {
                for (x, g) in x.iter().zip(g) {
                    let z = (*x - mean) * inverse;
                    *g = scale * (*g - mean_g - z * mean_gz);
                }
            }
        }
    }

    /// m, the places of one channel.
    fn count<T: Real>(self, shape: Shape) -> Option<T> {
        self.output(shape)?;
        Some(T::from_usize(shape.n as usize * shape.plane() as usize))
    }

    pub(crate) fn inverse<T: Real>(self, variance: T) -> T {
        T::ONE / (variance + T::from_f32(self.eps)).sqrt()
    }
}

impl Default for BatchNorm {
    fn default() -> Self {
        Self::new()
    }
}

fn at<T: Real>(values: &[T], c: usize, absent: T) -> T {
    values.get(c).copied().unwrap_or(absent)
}

/// The planes of channel `c`, one for each sample.
fn planes<T>(x: &[T], shape: Shape, c: usize) -> impl Iterator<Item = &[T]> {
    let (plane, channels) = (shape.plane().max(1) as usize, shape.c.max(1) as usize);
    x.chunks_exact(plane).skip(c).step_by(channels)
}

fn planes_mut<T>(x: &mut [T], shape: Shape, c: usize) -> impl Iterator<Item = &mut [T]> {
    let (plane, channels) = (shape.plane().max(1) as usize, shape.c.max(1) as usize);
    x.chunks_exact_mut(plane).skip(c).step_by(channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const AFFINE: BatchNorm = BatchNorm { affine: true, ..BatchNorm::new() };
    const CASES: &[(Shape, BatchNorm)] = &[
        (Shape::new(3, 2, 3, 5), AFFINE),
        (Shape::new(3, 2, 3, 5), BatchNorm::new()),
        (Shape::rows(5, 4), AFFINE),
        (Shape::new(1, 3, 1, 7), BatchNorm { eps: 0.1, ..AFFINE }),
        (Shape::new(1, 2, 1, 1), AFFINE),
    ];

    fn len(s: Shape) -> usize {
        s.len().unwrap() as usize
    }

    /// Mean and biased variance of each channel, by one index at a time.
    fn statistics(s: Shape, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let mut by_channel = std::vec![Vec::new(); s.c as usize];
        for (at, &x) in x.iter().enumerate() {
            by_channel[at / s.plane() as usize % s.c as usize].push(x);
        }
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        let means: Vec<f64> = by_channel.iter().map(|v| mean(v)).collect();
        let variances = by_channel
            .iter()
            .zip(&means)
            .map(|(v, m)| mean(&v.iter().map(|v| (v - m).powi(2)).collect::<Vec<_>>()))
            .collect();
        (means, variances)
    }

    fn brute(
        (s, norm): (Shape, BatchNorm),
        [x, gamma, beta, mean, variance]: [&[f64]; 5],
    ) -> Vec<f64> {
        (x.iter().enumerate())
            .map(|(at, x)| {
                let c = at / s.plane() as usize % s.c as usize;
                let z = (x - mean[c]) / (variance[c] + f64::from(norm.eps)).sqrt();
                if norm.affine { gamma[c] * z + beta[c] } else { z }
            })
            .collect()
    }

    #[test]
    fn training_is_the_definition() {
        for &(s, norm) in CASES {
            let t = norm.tensors(s).unwrap();
            let x = values(1, s.len().unwrap());
            let (gamma, beta) = (values(2, t.weight), values(3, t.bias));
            let mut y = std::vec![f64::NAN; x.len()];
            let mut saved = std::vec![f64::NAN; 2 * s.c as usize];
            norm.forward_train(s, &x, &gamma, &beta, &mut y, &mut saved);
            let (mean, variance) = statistics(s, &x);
            check::close(&saved, &[&mean[..], &variance].concat(), 1e-14);
            check::close(&y, &brute((s, norm), [&x, &gamma, &beta, &mean, &variance]), 1e-12);
        }
    }

    #[test]
    fn evaluation_is_the_definition() {
        for &(s, norm) in CASES {
            let t = norm.tensors(s).unwrap();
            let x = values(1, s.len().unwrap());
            let (gamma, beta, mean) = (values(2, t.weight), values(3, t.bias), values(4, t.mean));
            let variance: Vec<f64> = values(5, t.variance).iter().map(|v| v * v).collect();
            let mut y = x.clone();
            norm.forward_eval(s, &gamma, &beta, &mean, &variance, &mut y);
            check::close(&y, &brute((s, norm), [&x, &gamma, &beta, &mean, &variance]), 1e-12);
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        for &(s, norm) in CASES {
            let t = norm.tensors(s).unwrap();
            let inputs = [values(1, s.len().unwrap()), values(2, t.weight), values(3, t.bias)];
            check::gradient(
                &inputs,
                len(s),
                |[x, gamma, beta], y| {
                    let mut saved = std::vec![f64::NAN; 2 * s.c as usize];
                    norm.forward_train(s, x, gamma, beta, y, &mut saved);
                },
                |[x, gamma, beta], dy, [g, dgamma, dbeta]| {
                    let mut saved = std::vec![f64::NAN; 2 * s.c as usize];
                    norm.forward_train(s, x, gamma, beta, &mut dy.to_vec(), &mut saved);
                    g.copy_from_slice(dy);
                    norm.backward(s, x, gamma, &saved, g, dgamma, dbeta);
                },
            );
        }
    }

    /// y does not change when x is shifted or, but for eps, scaled: dx sums to zero and is
    /// orthogonal to x in each channel.
    #[test]
    fn dx_sums_to_zero_and_is_orthogonal_to_x() {
        let (s, norm) = (Shape::new(4, 2, 3, 3), BatchNorm { eps: 1e-12, ..BatchNorm::new() });
        let x = values(1, s.len().unwrap());
        let (mut g, mut saved) = (values(2, s.len().unwrap()), [0.0; 4]);
        norm.forward_train(s, &x, &[], &[], &mut x.clone(), &mut saved);
        norm.backward(s, &x, &[], &saved, &mut g, &mut [], &mut []);
        for c in 0..2 {
            let sum: f64 = planes(&g, s, c).flatten().sum();
            let dot: f64 =
                planes(&g, s, c).zip(planes(&x, s, c)).map(|(g, x)| check::dot(g, x)).sum();
            check::close(&[sum, dot], &[0.0, 0.0], 1e-10);
        }
        assert!(g.iter().any(|g| g.abs() > 0.1));
    }

    #[test]
    fn parameter_gradients_accumulate() {
        let s = Shape::new(3, 2, 2, 2);
        let x = values(1, s.len().unwrap());
        let (gamma, dy, mut saved) = ([0.5, 2.0], values(2, s.len().unwrap()), [0.0; 4]);
        AFFINE.forward_train(s, &x, &gamma, &[0.0; 2], &mut x.clone(), &mut saved);
        let run = |start: f64| {
            let (mut g, mut dgamma, mut dbeta) = (dy.clone(), [start; 2], [start; 2]);
            AFFINE.backward(s, &x, &gamma, &saved, &mut g, &mut dgamma, &mut dbeta);
            [dgamma, dbeta].concat()
        };
        let fresh: Vec<f64> = run(0.0).iter().map(|d| d + 3.0).collect();
        check::close(&run(3.0), &fresh, 1e-12);
    }

    #[test]
    fn running_statistics_take_the_unbiased_variance() {
        let s = Shape::new(2, 1, 1, 2);
        let (mut mean, mut variance) = ([1.0], [2.0]);
        BatchNorm::new().update(s, &[5.0, 3.0], 0.25, &mut mean, &mut variance);
        check::close(&[mean[0], variance[0]], &[2.0, 0.75 * 2.0 + 0.25 * 4.0], 1e-15);
        // One place has no unbiased variance.
        BatchNorm::new().update(Shape::rows(1, 1), &[7.0, 0.0], 1.0, &mut mean, &mut variance);
        assert_eq!((mean, variance), ([7.0], [0.0]));
    }

    /// A mean of 1000 leaves f32 about four digits of a deviation of 1: the variance keeps three.
    #[test]
    fn a_large_mean_keeps_the_variance() {
        let s = Shape::new(4, 1, 32, 32);
        let x: Vec<f32> = values(1, s.len().unwrap()).iter().map(|v| (v + 1000.0) as f32).collect();
        let exact = statistics(s, &x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let mut saved = [0.0; 2];
        BatchNorm::new().forward_train(s, &x, &[], &[], &mut x.clone(), &mut saved);
        assert!((f64::from(saved[0]) - exact.0[0]).abs() < 1e-4);
        assert!((f64::from(saved[1]) - exact.1[0]).abs() < 1e-3 * exact.1[0]);
    }

    #[test]
    fn a_constant_channel_gives_beta_and_a_finite_gradient() {
        let s = Shape::new(2, 1, 2, 2);
        let (mut y, mut saved, mut g) =
            ([f32::NAN; 8], [f32::NAN; 2], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0f32]);
        AFFINE.forward_train(s, &[3.0; 8], &[2.0], &[0.5], &mut y, &mut saved);
        assert_eq!((y, saved), ([0.5; 8], [3.0, 0.0]));
        AFFINE.backward(s, &[3.0; 8], &[2.0], &saved, &mut g, &mut [0.0], &mut [0.0]);
        assert!(g.iter().all(|g| g.is_finite()));
    }

    #[test]
    fn impossible_shapes_have_no_output_and_write_nothing() {
        let s = Shape::new(2, 1, 1, 1);
        assert_eq!(BatchNorm::new().output(s), Some(s));
        assert_eq!(BatchNorm::new().output(s.with_n(0)), None);
        assert_eq!(BatchNorm { eps: 0.0, ..AFFINE }.output(s), None);
        assert_eq!(BatchNorm { eps: f32::NAN, ..AFFINE }.output(s), None);
        assert_eq!(BatchNorm { momentum: 1.5, ..AFFINE }.output(s), None);
        let (mut y, mut saved) = ([9.0; 2], [9.0; 2]);
        let broken = BatchNorm { eps: -1.0, ..BatchNorm::new() };
        broken.forward_train(s, &[1.0, 2.0], &[], &[], &mut y, &mut saved);
        broken.forward_eval(s, &[], &[], &[1.0], &[1.0], &mut y);
        assert_eq!((y, saved), ([9.0; 2], [9.0; 2]));
    }
}
