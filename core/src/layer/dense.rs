//! The fully connected layer.

use super::{Tensors, sum_pairs};
use crate::real::Real;
use crate::shape::Shape;

/// An affine map of each flattened sample.
///
/// ```text
/// y[n,u] = b[u] + sum_d w[u,d] x[n,d]
/// ```
/// Shapes: x (N, D) with D = C H W of any input, w (U, D), b (U), y (N, U, 1, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dense {
    /// Outputs, U.
    pub units: u32,
    /// Whether b is there.
    pub bias: bool,
}

impl Dense {
    /// With a bias.
    ///
    /// ```
    /// use sepal_core::{layer::Dense, shape::Shape};
    /// let (dense, shape) = (Dense::new(2), Shape::rows(1, 3));
    /// let mut y = [0.0f32; 2];
    /// let w = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
    /// dense.forward(shape, &[1.0, 2.0, 3.0], &w, &[0.0, 0.5], &mut y);
    /// assert_eq!(y, [1.0, 6.5]);
    /// ```
    pub const fn new(units: u32) -> Self {
        Self { units, bias: true }
    }

    /// The output's shape; `None` where there are no units or the samples are empty.
    pub const fn output(self, x: Shape) -> Option<Shape> {
        match x.sample() {
            Some(1..) if self.units > 0 => Some(Shape::rows(x.n, self.units)),
            _ => None,
        }
    }

    /// The lengths of w and b for inputs of shape `x`; `None` where they do not fit 32 bits.
    pub const fn tensors(self, x: Shape) -> Option<Tensors> {
        let Some(features) = x.sample() else { return None };
        match features.checked_mul(self.units) {
            Some(weight) => {
                let bias = if self.bias { self.units } else { 0 };
                Some(Tensors { weight, bias, ..Tensors::NONE })
            }
            None => None,
        }
    }

    /// Writes `y`. `b` is empty without bias.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], w: &[T], b: &[T], y: &mut [T]) {
        let Some((features, units)) = self.lengths(shape) else { return };
        for (x, y) in x.chunks_exact(features).zip(y.chunks_exact_mut(units)) {
            for (u, (y, w)) in y.iter_mut().zip(w.chunks_exact(features)).enumerate() {
                *y = b.get(u).copied().unwrap_or(T::ZERO) + sum_pairs(w, x, |w, x| w * x);
            }
        }
    }

    /// Adds to `dw` and `db` (empty without bias), overwrites `dx` where it is wanted.
    ///
    /// ```text
    /// dw[u,d] += sum_n dy[n,u] x[n,d]
    /// db[u]   += sum_n dy[n,u]
    /// dx[n,d]  = sum_u w[u,d] dy[n,u]
    /// ```
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub fn backward<T: Real>(
        self,
        shape: Shape,
        x: &[T],
        w: &[T],
        dy: &[T],
        dx: Option<&mut [T]>,
        dw: &mut [T],
        db: &mut [T],
    ) {
        let Some((features, units)) = self.lengths(shape) else { return };
        for (x, dy) in x.chunks_exact(features).zip(dy.chunks_exact(units)) {
            for (&dy, dw) in dy.iter().zip(dw.chunks_exact_mut(features)) {
                add_scaled(dw, dy, x);
            }
            db.iter_mut().zip(dy).for_each(|(db, dy)| *db += *dy);
        }
        let Some(dx) = dx else { return };
        dx.fill(T::ZERO);
        for (dx, dy) in dx.chunks_exact_mut(features).zip(dy.chunks_exact(units)) {
            for (&dy, w) in dy.iter().zip(w.chunks_exact(features)) {
                add_scaled(dx, dy, w);
            }
        }
    }

    /// D and U.
    fn lengths(self, shape: Shape) -> Option<(usize, usize)> {
        self.output(shape)?;
        Some((shape.sample()? as usize, self.units as usize))
    }
}

fn add_scaled<T: Real>(to: &mut [T], scale: T, from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += scale * *from);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const CASES: &[(Shape, Dense)] = &[
        (Shape::rows(3, 5), Dense::new(4)),
        (Shape::new(2, 3, 2, 3), Dense { units: 2, bias: false }),
        (Shape::rows(1, 1), Dense::new(1)),
        (Shape::new(1, 17, 1, 1), Dense::new(3)),
    ];

    #[test]
    fn forward_is_the_definition() {
        for &(s, dense) in CASES {
            let t = dense.tensors(s).unwrap();
            let (x, w, b) = (values(1, s.len().unwrap()), values(2, t.weight), values(3, t.bias));
            let (d, u) = (s.sample().unwrap() as usize, dense.units as usize);
            let mut expected = std::vec![0.0; s.n as usize * u];
            for (at, y) in expected.iter_mut().enumerate() {
                *y = b.get(at % u).copied().unwrap_or(0.0);
                for i in 0..d {
                    *y += w[at % u * d + i] * x[at / u * d + i];
                }
            }
            let mut y = std::vec![f64::NAN; expected.len()];
            dense.forward(s, &x, &w, &b, &mut y);
            check::close(&y, &expected, 1e-13);
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        for &(s, dense) in CASES {
            let t = dense.tensors(s).unwrap();
            let inputs = [values(1, s.len().unwrap()), values(2, t.weight), values(3, t.bias)];
            check::gradient(
                &inputs,
                (s.n * dense.units) as usize,
                |[x, w, b], y| dense.forward(s, x, w, b, y),
                |[x, w, _], dy, [dx, dw, db]| {
                    dx.fill(f64::NAN);
                    dense.backward(s, x, w, dy, Some(dx), dw, db);
                },
            );
        }
    }

    #[test]
    fn backward_data_is_the_adjoint() {
        for &(s, dense) in CASES {
            let t = dense.tensors(s).unwrap();
            let (x, w) = (values(1, s.len().unwrap()), values(2, t.weight));
            let dy = values(4, s.n * dense.units);
            let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
            dense.forward(s, &x, &w, &[], &mut y);
            dense.backward(s, &x, &w, &dy, Some(&mut dx), &mut dw, &mut []);
            check::close(&[check::dot(&y, &dy)], &[check::dot(&x, &dx)], 1e-13);
        }
    }

    #[test]
    fn parameter_gradients_accumulate_and_dx_is_optional() {
        let (s, dense) = CASES[0];
        let t = dense.tensors(s).unwrap();
        let (x, w, dy) =
            (values(1, s.len().unwrap()), values(2, t.weight), values(3, s.n * dense.units));
        let run = |start: f64| {
            let mut dw = std::vec![start; t.weight as usize];
            let mut db = std::vec![start; t.bias as usize];
            dense.backward(s, &x, &w, &dy, None, &mut dw, &mut db);
            [dw, db].concat()
        };
        let fresh: Vec<f64> = run(0.0).iter().map(|d| d + 3.0).collect();
        check::close(&run(3.0), &fresh, 1e-13);
    }

    #[test]
    fn impossible_shapes_have_no_output() {
        assert_eq!(Dense::new(0).output(Shape::rows(2, 3)), None);
        assert_eq!(Dense::new(3).output(Shape::rows(2, 0)), None);
        assert_eq!(Dense::new(3).output(Shape::new(1, 1 << 16, 1 << 16, 1)), None);
        assert_eq!(Dense::new(1 << 16).tensors(Shape::rows(1, 1 << 16)), None);
    }
}
