//! The mean of each plane.

use super::sum;
use crate::real::Real;
use crate::shape::Shape;

/// The mean of each channel over its plane.
///
/// ```text
/// y[n,c] = 1 / (H W) sum_{i,j} x[n,c,i,j]
/// ```
/// Shapes: x (N, C, H, W), y (N, C, 1, 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GlobalAvgPool;

impl GlobalAvgPool {
    /// The output's shape; `None` where the planes are empty.
    ///
    /// ```
    /// use sepal_core::{layer::GlobalAvgPool, shape::Shape};
    /// let y = GlobalAvgPool.output(Shape::new(2, 64, 3, 3));
    /// assert_eq!(y, Some(Shape::rows(2, 64)));
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
        let plane = shape.plane().max(1) as usize;
        for (x, y) in x.chunks_exact(plane).zip(y) {
            *y = sum(x, |x| x) / T::from_usize(plane);
        }
    }

    /// Overwrites `dx` with `dy / (H W)`.
    pub fn backward<T: Real>(self, shape: Shape, dy: &[T], dx: &mut [T]) {
        if self.output(shape).is_none() {
            return;
        }
        let plane = shape.plane().max(1) as usize;
        for (dx, &dy) in dx.chunks_exact_mut(plane).zip(dy) {
            dx.fill(dy / T::from_usize(plane));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};

    const SHAPES: [Shape; 3] =
        [Shape::new(2, 3, 5, 7), Shape::new(3, 2, 1, 1), Shape::new(1, 1, 1, 9)];

    #[test]
    fn forward_is_the_definition() {
        for s in SHAPES {
            let x = values(1, s.len().unwrap());
            let mut y = std::vec![f64::NAN; (s.n * s.c) as usize];
            GlobalAvgPool.forward(s, &x, &mut y);
            for (at, y) in y.iter().enumerate() {
                let plane = s.plane() as usize;
                let mean = x[at * plane..][..plane].iter().sum::<f64>() / plane as f64;
                check::close(&[*y], &[mean], 1e-14);
            }
        }
    }

    #[test]
    fn backward_is_the_derivative_and_the_adjoint() {
        for s in SHAPES {
            let out = s.n * s.c;
            check::gradient(
                &[values(1, s.len().unwrap())],
                out as usize,
                |[x], y| GlobalAvgPool.forward(s, x, y),
                |_, dy, [dx]| {
                    dx.fill(f64::NAN);
                    GlobalAvgPool.backward(s, dy, dx);
                },
            );
            let (x, dy) = (values(1, s.len().unwrap()), values(2, out));
            let (mut y, mut dx) = (dy.clone(), x.clone());
            GlobalAvgPool.forward(s, &x, &mut y);
            GlobalAvgPool.backward(s, &dy, &mut dx);
            check::close(&[check::dot(&y, &dy)], &[check::dot(&x, &dx)], 1e-13);
        }
    }

    #[test]
    fn empty_planes_have_no_output() {
        assert_eq!(GlobalAvgPool.output(Shape::new(2, 3, 0, 4)), None);
        let mut y = [7.0f32; 6];
        GlobalAvgPool.forward(Shape::new(2, 3, 0, 4), &[], &mut y);
        assert_eq!(y, [7.0; 6]);
    }
}
