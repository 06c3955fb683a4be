//! Means of bins, to a wanted size.

use crate::real::Real;
use crate::shape::Shape;
use core::ops::Range;

/// Pools any plane to at most `h` by `w` places, the mean of one bin each.
///
/// ```text
/// y[n,c,p,q] = mean of x[n,c,i,j] over floor(p H / P) <= i < ceil((p + 1) H / P), j alike
/// ```
/// with P = min(h, H) and Q = min(w, W). Bins overlap by a row where P does not divide H. These
/// are the bins of PyTorch's AdaptiveAvgPool2d, which would repeat places to reach a size larger
/// than the input: here the input's own size stays, because copies add nothing to a distance.
///
/// Shapes: x (N, C, H, W), y (N, C, P, Q).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AvgPoolTo {
    /// Rows that are wanted.
    pub h: u8,
    /// Columns that are wanted.
    pub w: u8,
}

impl AvgPoolTo {
    /// The output's shape; `None` where it is empty.
    ///
    /// ```
    /// use sepal_core::{layer::AvgPoolTo, shape::Shape};
    /// let pool = AvgPoolTo { h: 7, w: 7 };
    /// assert_eq!(pool.output(Shape::new(1, 64, 28, 5)), Some(Shape::new(1, 64, 7, 5)));
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        if self.h == 0 || self.w == 0 || x.plane() == 0 {
            return None;
        }
        let h = if x.h < self.h as u32 { x.h } else { self.h as u32 };
        let w = if x.w < self.w as u32 { x.w } else { self.w as u32 };
        Some(Shape { h, w, ..x })
    }

    /// Writes `y`.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], y: &mut [T]) {
        let Some(out) = self.output(shape) else { return };
        let (x_plane, y_plane) = (shape.plane().max(1) as usize, out.plane().max(1) as usize);
        let width = shape.w.max(1) as usize;
        for (x, y) in x.chunks_exact(x_plane).zip(y.chunks_exact_mut(y_plane)) {
            for (y, (down, across)) in y.iter_mut().zip(bins(shape, out)) {
                let mut sum = T::ZERO;
                for x in x.chunks_exact(width).skip(down.start).take(down.len()) {
                    let x = x.get(across.clone()).unwrap_or_default();
                    sum += x.iter().fold(T::ZERO, |sum, &x| sum + x);
                }
                *y = sum / T::from_usize(down.len() * across.len());
            }
        }
    }

    /// Overwrites `dx`: each place gets dy over the bin's size from every bin that reads it.
    pub fn backward<T: Real>(self, shape: Shape, dy: &[T], dx: &mut [T]) {
        let Some(out) = self.output(shape) else { return };
        let (x_plane, y_plane) = (shape.plane().max(1) as usize, out.plane().max(1) as usize);
        let width = shape.w.max(1) as usize;
        dx.fill(T::ZERO);
        for (dx, dy) in dx.chunks_exact_mut(x_plane).zip(dy.chunks_exact(y_plane)) {
            for (&dy, (down, across)) in dy.iter().zip(bins(shape, out)) {
                let share = dy / T::from_usize(down.len() * across.len());
                for dx in dx.chunks_exact_mut(width).skip(down.start).take(down.len()) {
                    let dx = dx.get_mut(across.clone()).unwrap_or_default();
                    dx.iter_mut().for_each(|dx| *dx += share);
                }
            }
        }
    }
}

/// Rows and columns of each bin, in row order.
fn bins(x: Shape, y: Shape) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    (0..y.h).flat_map(move |p| (0..y.w).map(move |q| (bin(x.h, y.h, p), bin(x.w, y.w, q))))
}

fn bin(size: u32, bins: u32, at: u32) -> Range<usize> {
    let (size, bins, at) = (u64::from(size), u64::from(bins.max(1)), u64::from(at));
    (at * size / bins) as usize..((at + 1) * size).div_ceil(bins) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const CASES: &[(Shape, AvgPoolTo)] = &[
        (Shape::new(2, 3, 4, 6), AvgPoolTo { h: 2, w: 3 }),
        (Shape::new(2, 1, 5, 7), AvgPoolTo { h: 2, w: 3 }),
        (Shape::new(1, 2, 7, 7), AvgPoolTo { h: 4, w: 5 }),
        (Shape::new(1, 2, 3, 9), AvgPoolTo { h: 7, w: 1 }),
        (Shape::new(2, 1, 1, 1), AvgPoolTo { h: 255, w: 255 }),
    ];

    /// The definition, by asking of every input place whether it lies in the bin.
    fn brute(pool: AvgPoolTo, s: Shape, x: &[f64]) -> Vec<f64> {
        let out = pool.output(s).unwrap();
        let inside = |i: u32, size: u32, p: u32, bins: u32| {
            let (size, bins) = (f64::from(size), f64::from(bins));
            let first = (f64::from(p) * size / bins).floor();
            let past = (f64::from(p + 1) * size / bins).ceil();
            first <= f64::from(i) && f64::from(i) < past
        };
        let mut y = std::vec![];
        for plane in x.chunks(s.plane() as usize) {
            for at in 0..out.plane() {
                let bin: Vec<f64> = (0..s.plane())
                    .filter(|i| inside(i / s.w, s.h, at / out.w, out.h))
                    .filter(|i| inside(i % s.w, s.w, at % out.w, out.w))
                    .map(|i| plane[i as usize])
                    .collect();
                y.push(bin.iter().sum::<f64>() / bin.len() as f64);
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
    fn a_larger_size_keeps_the_input() {
        let (s, pool) = (Shape::new(1, 1, 2, 3), AvgPoolTo { h: 4, w: 3 });
        let x = values(1, 6);
        let mut y = std::vec![f64::NAN; 6];
        pool.forward(s, &x, &mut y);
        assert_eq!(y, x);
    }

    #[test]
    fn empty_planes_have_no_output() {
        let s = Shape::new(1, 1, 4, 4);
        assert_eq!(AvgPoolTo { h: 0, w: 2 }.output(s), None);
        assert_eq!(AvgPoolTo { h: 2, w: 2 }.output(Shape { h: 0, ..s }), None);
    }
}
