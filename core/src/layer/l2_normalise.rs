//! Samples of length 1.

use super::{sum, sum_pairs};
use crate::real::Real;
use crate::shape::Shape;

/// Each flattened sample h divided by its Euclidean norm.
///
/// ```text
/// f = h / |h|, and 0 where |h| < 1e-18
/// ```
/// Distances between such features are bounded by 4, which gives the losses a scale. A sample
/// shorter than 1e-18 counts as 0 and gets no gradient: its own would be 1e18 times the loss's.
/// A sample with NaN or infinity becomes NaN.
///
/// Shapes: h and f (N, D) with D = C H W of any input; saved (N).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct L2Normalise;

/// Norms below count as 0. Squares of f32 numbers of this size do not underflow.
const SHORTEST: f64 = 1e-18;

impl L2Normalise {
    /// The output's shape, that of the input; `None` where the samples are empty.
    ///
    /// ```
    /// use sepal_core::{layer::L2Normalise, shape::Shape};
    /// let (mut y, mut norm) = ([3.0f32, 4.0], [0.0]);
    /// L2Normalise.forward(Shape::rows(1, 2), &mut y, &mut norm);
    /// assert_eq!((y, norm), ([0.6, 0.8], [5.0]));
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        match x.sample() {
            Some(1..) => Some(x),
            _ => None,
        }
    }

    /// Overwrites `y`, which holds h, with f, and `saved` with the N norms.
    pub fn forward<T: Real>(self, shape: Shape, y: &mut [T], saved: &mut [T]) {
        let Some(features) = self.features(shape) else { return };
        let shortest = T::from_f64(SHORTEST);
        for (y, saved) in y.chunks_exact_mut(features).zip(saved) {
            let mut square = sum(y, |y| y * y);
            let mut scale = T::ONE;
            if !(square.is_finite() && square >= shortest * shortest) {
                // Out of range as squares: once more, in units of the largest element.
                let larger = |a: T, b: &T| if b.abs() > a { b.abs() } else { a };
                scale = y.iter().fold(T::ZERO, larger);
                if scale > T::ZERO {
                    y.iter_mut().for_each(|y| *y = *y / scale);
                    square = sum(y, |y| y * y);
                }
            }
            let norm = square.sqrt();
            *saved = scale * norm;
            if *saved < shortest {
                *saved = T::ZERO;
                y.fill(T::ZERO);
            } else {
                y.iter_mut().for_each(|y| *y = *y / norm);
            }
        }
    }

    /// Overwrites `g`, which holds df, with `dh = (df - f (f . df)) / |h|`, 0 where the norm is.
    /// `y` and `saved` are those of `forward`.
    ///
    /// The norm r grows by `dr/dh_j = h_j / r = f_j`, so `f_i = h_i / r` has
    /// `df_i/dh_j = ([i = j] - f_i f_j) / r`, and the sum over i of `df_i` times that is dh.
    pub fn backward<T: Real>(self, shape: Shape, y: &[T], saved: &[T], g: &mut [T]) {
        let Some(features) = self.features(shape) else { return };
        let samples = y.chunks_exact(features).zip(g.chunks_exact_mut(features));
        for ((y, g), &norm) in samples.zip(saved) {
            if norm == T::ZERO {
                g.fill(T::ZERO);
                continue;
            }
            let along = sum_pairs(y, g, |y, g| y * g);
            y.iter().zip(g).for_each(|(y, g)| *g = (*g - *y * along) / norm);
        }
    }

    /// D.
    fn features(self, shape: Shape) -> Option<usize> {
        self.output(shape)?;
        Some(shape.sample()? as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const SHAPES: [Shape; 3] =
        [Shape::new(3, 2, 2, 3), Shape::new(1, 1, 1, 1), Shape::new(5, 17, 1, 1)];

    #[test]
    fn forward_is_the_definition() {
        for s in SHAPES {
            let h = values(1, s.len().unwrap());
            let (mut y, mut saved) = (h.clone(), std::vec![f64::NAN; s.n as usize]);
            L2Normalise.forward(s, &mut y, &mut saved);
            let d = s.sample().unwrap() as usize;
            for ((h, y), norm) in h.chunks(d).zip(y.chunks(d)).zip(saved) {
                let expected = h.iter().map(|h| h * h).sum::<f64>().sqrt();
                check::close(&[norm], &[expected], 1e-14);
                check::close(y, &h.iter().map(|h| h / expected).collect::<Vec<_>>(), 1e-14);
            }
        }
    }

    #[test]
    fn backward_is_the_derivative_and_orthogonal_to_f() {
        for s in SHAPES {
            let n = s.n as usize;
            check::gradient(
                &[values(1, s.len().unwrap())],
                s.len().unwrap() as usize,
                |[h], y| {
                    y.copy_from_slice(h);
                    L2Normalise.forward(s, y, &mut std::vec![f64::NAN; n]);
                },
                |[h], dy, [g]| {
                    let (mut y, mut saved) = (h.to_vec(), std::vec![f64::NAN; n]);
                    L2Normalise.forward(s, &mut y, &mut saved);
                    g.copy_from_slice(dy);
                    L2Normalise.backward(s, &y, &saved, g);
                    for (y, g) in y.chunks(h.len() / n).zip(g.chunks(h.len() / n)) {
                        check::close(&[check::dot(y, g)], &[0.0], 1e-14);
                    }
                },
            );
        }
    }

    fn run(h: [f32; 2]) -> ([f32; 2], f32, [f32; 2]) {
        let (s, mut y, mut saved, mut g) = (Shape::rows(1, 2), h, [f32::NAN], [1.0, 2.0]);
        L2Normalise.forward(s, &mut y, &mut saved);
        L2Normalise.backward(s, &y, &saved, &mut g);
        (y, saved[0], g)
    }

    #[test]
    fn no_length_gives_zero_and_no_gradient() {
        for tiny in [0.0, -0.0, 1e-19, 1e-40, f32::from_bits(1)] {
            assert_eq!(run([tiny, 0.0]), ([0.0; 2], 0.0, [0.0; 2]), "{tiny}");
        }
    }

    /// Squares that overflow or underflow do not disturb the direction.
    #[test]
    fn very_long_and_very_short_samples_keep_their_direction() {
        for size in [1e-17f32, 1e-10, 1e18, 1e25, 8e37] {
            let (y, norm, g) = run([3.0 * size, -4.0 * size]);
            assert!((y[0] - 0.6).abs() < 1e-6 && (y[1] + 0.8).abs() < 1e-6, "{size}: {y:?}");
            assert!(
                (norm / (5.0 * size) - 1.0).abs() < 1e-6
                    || (size > 6.9e37 && norm == f32::INFINITY)
            );
            assert!(g.iter().all(|g| g.is_finite()));
        }
        assert_eq!(run([f32::MAX, f32::MAX]).1, f32::INFINITY);
    }

    #[test]
    fn broken_numbers_stay_visible_and_in_their_sample() {
        for bad in [f32::NAN, f32::INFINITY] {
            for h in [[bad, 1.0], [0.0, bad], [bad, bad]] {
                assert!(run(h).0.iter().any(|y| y.is_nan()));
            }
            let (mut y, mut saved) = ([bad, 1.0, 3.0, 4.0], [0.0; 2]);
            L2Normalise.forward(Shape::rows(2, 2), &mut y, &mut saved);
            assert_eq!((y[2], y[3], saved[1]), (0.6, 0.8, 5.0));
        }
    }

    #[test]
    fn empty_samples_have_no_output() {
        assert_eq!(L2Normalise.output(Shape::new(2, 3, 0, 1)), None);
    }
}
