//! Smaller planes, nothing lost.

use super::{Window, rows};
use crate::real::Real;
use crate::shape::Shape;

/// Squares of each plane become channels: invertible downsampling.
///
/// ```text
/// y[n, (r s + q) C + c, i, j] = x[n, c, i s + r, j s + q],  0 <= r, q < s
/// ```
/// A permutation. Belilovsky, Eickenberg and Oyallon (2019) take it from i-RevNet (Jacobsen,
/// Smeulders and Oyallon 2018), whose order of channels this is: the channels of one place of the
/// square lie together.
///
/// Shapes: x (N, C, H, W), y (N, s s C, H / s, W / s).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpaceToDepth {
    /// Rows and columns of a square, s.
    pub factor: u8,
}

impl SpaceToDepth {
    /// The output's shape; `None` where s does not divide both sides, or there is nothing.
    ///
    /// ```
    /// use sepal_core::{layer::SpaceToDepth, shape::Shape};
    /// let (down, shape) = (SpaceToDepth { factor: 2 }, Shape::new(1, 1, 2, 4));
    /// let mut y = [0.0f32; 8];
    /// down.forward(shape, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], &mut y);
    /// assert_eq!(y, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        let s = self.factor as u32;
        if s == 0 || x.plane() == 0 || !x.h.is_multiple_of(s) || !x.w.is_multiple_of(s) {
            return None;
        }
        match x.c.checked_mul(s * s) {
            Some(c) => Some(Shape { n: x.n, c, h: x.h / s, w: x.w / s }),
            None => None,
        }
    }

    /// Writes `y`.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], y: &mut [T]) {
        let Some((out, sample, channels)) = self.lengths(shape) else { return };
        let (x_plane, y_plane) = (shape.plane().max(1) as usize, out.plane().max(1) as usize);
        for (x, y) in x.chunks_exact(sample).zip(y.chunks_exact_mut(sample)) {
            let planes = x.chunks_exact(x_plane).cycle().zip(y.chunks_exact_mut(y_plane));
            for (at, (x, y)) in planes.enumerate() {
                let rows = rows(Window::square(self.factor), at / channels, shape, out);
                rows.pairs_mut(x, y).for_each(|(x, y)| y.zip(x).for_each(|(y, &x)| *y = x));
            }
        }
    }

    /// Overwrites `dx` by the inverse permutation.
    pub fn backward<T: Real>(self, shape: Shape, dy: &[T], dx: &mut [T]) {
        let Some((out, sample, channels)) = self.lengths(shape) else { return };
        let (x_plane, y_plane) = (shape.plane().max(1) as usize, out.plane().max(1) as usize);
        for (dx, dy) in dx.chunks_exact_mut(sample).zip(dy.chunks_exact(sample)) {
            for (c, dx) in dx.chunks_exact_mut(x_plane).enumerate() {
                let planes = dy.chunks_exact(y_plane).skip(c).step_by(channels);
                for (tap, dy) in planes.enumerate() {
                    let rows = rows(Window::square(self.factor), tap, shape, out);
                    rows.pairs_into(dx, dy)
                        .for_each(|(dx, dy)| dx.zip(dy).for_each(|(dx, &dy)| *dx = dy));
                }
            }
        }
    }

    /// The output's shape, the elements of a sample, and C.
    fn lengths(self, shape: Shape) -> Option<(Shape, usize, usize)> {
        let out = self.output(shape)?;
        Some((out, shape.sample()?.max(1) as usize, shape.c.max(1) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};

    const CASES: &[(Shape, SpaceToDepth)] = &[
        (Shape::new(2, 3, 4, 6), SpaceToDepth { factor: 2 }),
        (Shape::new(1, 1, 3, 9), SpaceToDepth { factor: 3 }),
        (Shape::new(2, 2, 5, 3), SpaceToDepth { factor: 1 }),
        (Shape::new(1, 2, 4, 4), SpaceToDepth { factor: 4 }),
    ];

    #[test]
    fn forward_is_the_definition() {
        for &(shape, down) in CASES {
            let (x, f) = (values(1, shape.len().unwrap()), u32::from(down.factor));
            let out = down.output(shape).unwrap();
            let mut y = std::vec![f64::NAN; x.len()];
            down.forward(shape, &x, &mut y);
            for (at, y) in (0..).zip(&y) {
                let (j, i) = (at % out.w, at / out.w % out.h);
                let (channel, n) = (at / out.plane() % out.c, at / out.plane() / out.c);
                let (place, c) = (channel / shape.c, channel % shape.c);
                let (row, column) = (i * f + place / f, j * f + place % f);
                let from = ((n * shape.c + c) * shape.h + row) * shape.w + column;
                assert_eq!(*y, x[from as usize], "at {at}");
            }
        }
    }

    #[test]
    fn backward_is_the_derivative_the_adjoint_and_the_inverse() {
        for &(shape, down) in CASES {
            let len = shape.len().unwrap();
            check::gradient(
                &[values(1, len)],
                len as usize,
                |[x], y| down.forward(shape, x, y),
                |_, dy, [dx]| {
                    dx.fill(f64::NAN);
                    down.backward(shape, dy, dx);
                },
            );
            let (x, dy) = (values(1, len), values(2, len));
            let (mut y, mut dx) = (dy.clone(), x.clone());
            down.forward(shape, &x, &mut y);
            down.backward(shape, &dy, &mut dx);
            check::close(&[check::dot(&y, &dy)], &[check::dot(&x, &dx)], 1e-13);
            down.backward(shape, &y, &mut dx);
            assert_eq!(dx, x);
        }
    }

    #[test]
    fn sides_that_are_no_multiple_have_no_output() {
        let (s, two) = (Shape::new(1, 3, 4, 6), SpaceToDepth { factor: 2 });
        assert_eq!(two.output(s), Some(Shape::new(1, 12, 2, 3)));
        assert_eq!(two.output(Shape { h: 5, ..s }), None);
        assert_eq!(two.output(Shape { w: 5, ..s }), None);
        assert_eq!(two.output(Shape { h: 0, ..s }), None);
        assert_eq!(two.output(Shape { c: 1 << 31, ..s }), None);
        assert_eq!(SpaceToDepth { factor: 0 }.output(s), None);
    }
}
