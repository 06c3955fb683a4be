//! Means of windows.

use super::{Window, rows};
use crate::real::Real;
use crate::shape::Shape;

/// The mean of each position of a window.
///
/// ```text
/// y[n,c,p,q] = 1 / (R S) sum_{r,s} x[n, c, p sh + r - ph, q sw + s - pw]
/// ```
/// with zero outside the image: padding counts, as in PyTorch by default.
///
/// Shapes: x (N, C, H, W), y (N, C, P, Q) as [`Window::output`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AvgPool {
    /// Its geometry: R by S places, steps (sh, sw), padding (ph, pw).
    pub window: Window,
}

impl AvgPool {
    /// A square window that moves by its own size.
    ///
    /// ```
    /// use sepal_core::{layer::AvgPool, shape::Shape};
    /// let mut y = [0.0f32];
    /// AvgPool::new(2).forward(Shape::new(1, 1, 2, 2), &[1.0, 4.0, 3.0, 2.0], &mut y);
    /// assert_eq!(y, [2.5]);
    /// ```
    pub const fn new(size: u8) -> Self {
        Self { window: Window::square(size) }
    }

    /// The output's shape; `None` where the window is empty or does not fit the padded image.
    pub const fn output(self, x: Shape) -> Option<Shape> {
        self.window.output(x)
    }

    /// Writes `y`.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], y: &mut [T]) {
        let Some(out) = self.output(shape) else { return };
        let (x_plane, y_plane) = (shape.plane().max(1) as usize, out.plane().max(1) as usize);
        let size = T::from_usize(self.taps());
        for (x, y) in x.chunks_exact(x_plane).zip(y.chunks_exact_mut(y_plane)) {
            y.fill(T::ZERO);
            for tap in 0..self.taps() {
                for (x, y) in rows(self.window, tap, shape, out).pairs_mut(x, y) {
                    x.zip(y).for_each(|(x, y)| *y += *x);
                }
            }
            y.iter_mut().for_each(|y| *y = *y / size);
        }
    }

    /// Overwrites `dx`: each place gets `dy / (R S)` of every window that reads it.
    pub fn backward<T: Real>(self, shape: Shape, dy: &[T], dx: &mut [T]) {
        let Some(out) = self.output(shape) else { return };
        let (x_plane, y_plane) = (shape.plane().max(1) as usize, out.plane().max(1) as usize);
        let size = T::from_usize(self.taps());
        for (dx, dy) in dx.chunks_exact_mut(x_plane).zip(dy.chunks_exact(y_plane)) {
            dx.fill(T::ZERO);
            for tap in 0..self.taps() {
                for (dx, dy) in rows(self.window, tap, shape, out).pairs_into(dx, dy) {
                    dx.zip(dy).for_each(|(dx, dy)| *dx += *dy);
                }
            }
            dx.iter_mut().for_each(|dx| *dx = *dx / size);
        }
    }

    fn taps(self) -> usize {
        usize::from(self.window.kernel.0) * usize::from(self.window.kernel.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const CASES: &[(Shape, AvgPool)] = &[
        (Shape::new(2, 3, 4, 6), AvgPool::new(2)),
        (Shape::new(1, 1, 1, 1), AvgPool::new(1)),
        (Shape::new(2, 1, 5, 7), AvgPool::new(2)),
        (
            Shape::new(2, 2, 7, 5),
            AvgPool { window: Window { kernel: (3, 2), stride: (2, 1), pad: (1, 2) } },
        ),
        (
            Shape::new(1, 2, 1, 9),
            AvgPool { window: Window { kernel: (1, 2), stride: (1, 3), pad: (0, 0) } },
        ),
        // Windows that lie in the padding alone.
        (
            Shape::new(1, 1, 2, 2),
            AvgPool { window: Window { kernel: (1, 1), stride: (1, 1), pad: (1, 2) } },
        ),
    ];

    fn brute(pool: AvgPool, s: Shape, x: &[f64]) -> Vec<f64> {
        let (out, w) = (pool.output(s).unwrap(), pool.window);
        let mut y = std::vec![];
        for plane in x.chunks(s.plane() as usize) {
            for at in 0..out.plane() {
                let mut sum = 0.0;
                for r in 0..u32::from(w.kernel.0) {
                    for t in 0..u32::from(w.kernel.1) {
                        let i = (at / out.w * u32::from(w.stride.0) + r)
                            .wrapping_sub(u32::from(w.pad.0));
                        let j = (at % out.w * u32::from(w.stride.1) + t)
                            .wrapping_sub(u32::from(w.pad.1));
                        if i < s.h && j < s.w {
                            sum += plane[(i * s.w + j) as usize];
                        }
                    }
                }
                y.push(sum / (f64::from(w.kernel.0) * f64::from(w.kernel.1)));
            }
        }
        y
    }

    #[test]
    fn forward_is_the_definition() {
        for &(s, pool) in CASES {
            let x = values(1, s.len().unwrap());
            let mut y = std::vec![f64::NAN; pool.output(s).unwrap().len().unwrap() as usize];
            pool.forward(s, &x, &mut y);
            check::close(&y, &brute(pool, s, &x), 1e-14);
        }
    }

    #[test]
    fn backward_is_the_derivative_and_the_adjoint() {
        for &(s, pool) in CASES {
            let out = pool.output(s).unwrap().len().unwrap();
            check::gradient(
                &[values(1, s.len().unwrap())],
                out as usize,
                |[x], y| pool.forward(s, x, y),
                |_, dy, [dx]| {
                    dx.fill(f64::NAN);
                    pool.backward(s, dy, dx);
                },
            );
            let (x, dy) = (values(1, s.len().unwrap()), values(2, out));
            let (mut y, mut dx) = (dy.clone(), x.clone());
            pool.forward(s, &x, &mut y);
            pool.backward(s, &dy, &mut dx);
            check::close(&[check::dot(&y, &dy)], &[check::dot(&x, &dx)], 1e-13);
        }
    }

    #[test]
    fn impossible_windows_have_no_output() {
        assert_eq!(AvgPool::new(0).output(Shape::new(1, 1, 2, 2)), None);
        assert_eq!(AvgPool::new(3).output(Shape::new(1, 1, 2, 3)), None);
        let still = AvgPool { window: Window { stride: (1, 0), ..Window::square(2) } };
        assert_eq!(still.output(Shape::new(1, 1, 4, 4)), None);
    }
}
