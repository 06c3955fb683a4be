//! The standard deviation of each plane.

use super::sum;
use crate::real::Real;
use crate::shape::Shape;

/// The standard deviation of each channel over its plane: how much a filter's answer varies, not
/// where.
///
/// ```text
/// y[n,c] = sqrt(1 / (H W) sum_{i,j} (x[n,c,i,j] - mean[n,c])^2 + eps)
/// ```
/// with eps = 1e-5. The root alone has no derivative at 0, which channels that are silent on a
/// whole image reach; with eps their gradient is 0, and it is small nearby.
///
/// Shapes: x (N, C, H, W), y (N, C, 1, 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ChannelStd;

impl ChannelStd {
    /// Added to the variance.
    pub const EPS: f32 = 1e-5;

    /// The output's shape; `None` where the planes are empty.
    ///
    /// ```
    /// use sepal_core::{layer::ChannelStd, shape::Shape};
    /// let mut y = [0.0f32];
    /// ChannelStd.forward(Shape::new(1, 1, 1, 2), &[1.0, 5.0], &mut y);
    /// assert!((y[0] - 2.0).abs() < 1e-5);
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        match x.plane() {
            0 => None,
            _ => Some(Shape::rows(x.n, x.c)),
        }
    }

    /// Writes `y`.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], y: &mut [T]) {
        if self.output(shape).is_none() {
            return;
        }
        for (x, y) in x.chunks_exact(shape.plane().max(1) as usize).zip(y) {
            *y = mean_and_deviation(x).1;
        }
    }

    /// Overwrites `dx`.
    ///
    /// ```text
    /// dx[n,c,i,j] = dy[n,c] (x[n,c,i,j] - mean[n,c]) / (H W y[n,c])
    /// ```
    /// since `y^2 = 1 / (H W) sum_k (x_k - mean)^2 + eps` gives `2 y dy/dx_j = 2 / (H W) (x_j - mean)`: what
    /// x_j moves by the mean is a multiple of `sum_k (x_k - mean) = 0`.
    pub fn backward<T: Real>(self, shape: Shape, x: &[T], dy: &[T], dx: &mut [T]) {
        if self.output(shape).is_none() {
            return;
        }
        let plane = shape.plane().max(1) as usize;
        let planes = x.chunks_exact(plane).zip(dx.chunks_exact_mut(plane));
        for ((x, dx), &dy) in planes.zip(dy) {
            let (mean, deviation) = mean_and_deviation(x);
            let scale = dy / (T::from_usize(plane) * deviation);
            x.iter().zip(dx).for_each(|(x, dx)| *dx = scale * (*x - mean));
        }
    }
}

fn mean_and_deviation<T: Real>(x: &[T]) -> (T, T) {
    let count = T::from_usize(x.len());
    let mean = sum(x, |x| x) / count;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
    (mean, (variance + T::from_f32(ChannelStd::EPS)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};

    const SHAPES: [Shape; 4] = [
        Shape::new(2, 3, 5, 7),
        Shape::new(3, 2, 1, 1),
        Shape::new(1, 1, 1, 9),
        Shape::new(1, 2, 2, 1),
    ];

    #[test]
    fn forward_is_the_definition() {
        for s in SHAPES {
            let x = values(1, s.len().unwrap());
            let mut y = std::vec![f64::NAN; (s.n * s.c) as usize];
            ChannelStd.forward(s, &x, &mut y);
            let m = s.plane() as usize;
            for (x, y) in x.chunks(m).zip(y) {
                let mean = x.iter().sum::<f64>() / m as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / m as f64;
                check::close(&[y], &[(variance + f64::from(ChannelStd::EPS)).sqrt()], 1e-14);
            }
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        for s in SHAPES {
            check::gradient(
                &[values(1, s.len().unwrap())],
                (s.n * s.c) as usize,
                |[x], y| ChannelStd.forward(s, x, y),
                |[x], dy, [dx]| {
                    dx.fill(f64::NAN);
                    ChannelStd.backward(s, x, dy, dx);
                },
            );
        }
    }

    #[test]
    fn a_constant_plane_has_no_gradient() {
        let s = Shape::new(1, 2, 2, 2);
        let x = [0.0f32, 0.0, 0.0, 0.0, 5.0, 5.0, 5.0, 5.0];
        let (mut y, mut dx) = ([f32::NAN; 2], [f32::NAN; 8]);
        ChannelStd.forward(s, &x, &mut y);
        assert_eq!(y, [ChannelStd::EPS.sqrt(); 2]);
        ChannelStd.backward(s, &x, &[1.0, 1e6], &mut dx);
        assert_eq!(dx, [0.0; 8]);
    }

    #[test]
    fn empty_planes_have_no_output() {
        assert_eq!(ChannelStd.output(Shape::new(2, 3, 4, 0)), None);
        assert_eq!(ChannelStd.output(Shape::new(2, 3, 4, 1)), Some(Shape::rows(2, 3)));
    }
}
