//! Fixed random projection.

use crate::real::Real;
use crate::rng::{Purpose, Rng};
use crate::shape::Shape;

/// Each flattened sample, projected to `dim` numbers by a fixed matrix of random signs.
///
/// ```text
/// y[n,k] = 1 / sqrt(K) sum_d R[k,d] x[n,d],  R[k,d] = 1 or -1
/// ```
/// In expectation |y| = |x| in squares, and so are distances; with K of the order of
/// `log(samples) / e^2` all of them lie within 1 - e to 1 + e (Achlioptas, "Database-friendly
/// random projections", 2003). R takes no memory: bit `d % 32` of word `d / 32` of the
/// sequence of `Rng::new(seed, Purpose::Project, 0, k)` is `R[k,d]`, 1 standing for 1.
///
/// Shapes: x (N, D) with D = C H W of any input, y (N, K, 1, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Project {
    /// Numbers that are left, K.
    pub dim: u32,
    /// Which matrix.
    pub seed: u64,
}

/// Signs that one block of the random sequence gives.
const SIGNS: usize = 128;

impl Project {
    /// The output's shape; `None` where it or the samples are empty.
    ///
    /// ```
    /// use sepal_core::{layer::Project, shape::Shape};
    /// let (project, shape) = (Project { dim: 1, seed: 7 }, Shape::rows(1, 1));
    /// let mut y = [0.0f32];
    /// project.forward(shape, &[3.0], &mut y);
    /// assert_eq!(y[0].abs(), 3.0);
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        match x.sample() {
            Some(1..) if self.dim > 0 => Some(Shape::rows(x.n, self.dim)),
            _ => None,
        }
    }

    /// Writes `y`.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], y: &mut [T]) {
        let Some((features, dim, scale)) = self.lengths::<T>(shape) else { return };
        y.fill(T::ZERO);
        // Signs outermost: each block of them is drawn once for the whole batch.
        for (k, row) in (0..dim).zip(0..) {
            for (at, signs) in self.row(row, features) {
                for (x, y) in x.chunks_exact(features).zip(y.chunks_exact_mut(dim)) {
                    let (Some(x), Some(y)) = (x.chunks(SIGNS).nth(at), y.get_mut(k)) else {
                        continue;
                    };
                    *y += signed(signs, x).fold(T::ZERO, |sum, x| sum + x);
                }
            }
        }
        y.iter_mut().for_each(|y| *y *= scale);
    }

    /// Overwrites `dx`.
    ///
    /// ```text
    /// dx[n,d] = 1 / sqrt(K) sum_k R[k,d] dy[n,k]
    /// ```
    pub fn backward<T: Real>(self, shape: Shape, dy: &[T], dx: &mut [T]) {
        let Some((features, dim, scale)) = self.lengths::<T>(shape) else { return };
        dx.fill(T::ZERO);
        for (k, row) in (0..dim).zip(0..) {
            for (at, signs) in self.row(row, features) {
                for (dx, dy) in dx.chunks_exact_mut(features).zip(dy.chunks_exact(dim)) {
                    let (Some(dx), Some(&dy)) = (dx.chunks_mut(SIGNS).nth(at), dy.get(k)) else {
                        continue;
                    };
                    let dy = [dy * scale; SIGNS];
                    dx.iter_mut().zip(signed(signs, &dy)).for_each(|(dx, dy)| *dx += dy);
                }
            }
        }
    }

    /// The blocks of one row of R, each with its number.
    fn row(self, k: u32, features: usize) -> impl Iterator<Item = (usize, [u32; 4])> {
        let rng = Rng::new(self.seed, Purpose::Project, 0, k);
        (0..features.div_ceil(SIGNS)).zip(0..).map(move |(at, block)| (at, rng.at(block)))
    }

    /// D, K and 1 / sqrt(K).
    fn lengths<T: Real>(self, shape: Shape) -> Option<(usize, usize, T)> {
        self.output(shape)?;
        let dim = self.dim as usize;
        Some((shape.sample()? as usize, dim, T::ONE / T::from_usize(dim).sqrt()))
    }
}

/// `x` with the signs of a block.
fn signed<T: Real>(signs: [u32; 4], x: &[T]) -> impl Iterator<Item = T> {
    x.chunks(32).zip(signs).flat_map(|(x, word)| {
        x.iter().zip(0..).map(move |(&x, bit)| if word >> bit & 1 == 1 { x } else { -x })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const CASES: &[(Shape, Project)] = &[
        (Shape::new(2, 3, 2, 3), Project { dim: 4, seed: 1 }),
        (Shape::rows(1, 1), Project { dim: 1, seed: 2 }),
        (Shape::rows(2, 128), Project { dim: 3, seed: 3 }),
        (Shape::rows(3, 129), Project { dim: 2, seed: u64::MAX }),
        (Shape::rows(1, 31), Project { dim: 40, seed: 5 }),
    ];

    /// R, one bit after the other.
    fn matrix(project: Project, features: u32) -> Vec<f64> {
        let mut r = Vec::new();
        for k in 0..project.dim {
            let mut rng = Rng::new(project.seed, Purpose::Project, 0, k);
            let mut word = 0;
            for d in 0..features {
                word = if d % 32 == 0 { rng.next_u32() } else { word >> 1 };
                r.push(if word % 2 == 1 { 1.0 } else { -1.0 });
            }
        }
        r
    }

    #[test]
    fn forward_is_the_definition() {
        for &(s, project) in CASES {
            let d = s.sample().unwrap();
            let (x, r) = (values(1, s.len().unwrap()), matrix(project, d));
            let mut expected = Vec::new();
            for x in x.chunks(d as usize) {
                for r in r.chunks(d as usize) {
                    expected.push(check::dot(r, x) / f64::from(project.dim).sqrt());
                }
            }
            let mut y = std::vec![f64::NAN; expected.len()];
            project.forward(s, &x, &mut y);
            check::close(&y, &expected, 1e-13);
        }
    }

    #[test]
    fn backward_is_the_derivative_and_the_adjoint() {
        for &(s, project) in CASES {
            let out = s.n * project.dim;
            check::gradient(
                &[values(1, s.len().unwrap())],
                out as usize,
                |[x], y| project.forward(s, x, y),
                |_, dy, [dx]| {
                    dx.fill(f64::NAN);
                    project.backward(s, dy, dx);
                },
            );
            let (x, dy) = (values(1, s.len().unwrap()), values(2, out));
            let (mut y, mut dx) = (dy.clone(), x.clone());
            project.forward(s, &x, &mut y);
            project.backward(s, &dy, &mut dx);
            check::close(&[check::dot(&y, &dy)], &[check::dot(&x, &dx)], 1e-13);
        }
    }

    /// The squared length has a relative standard deviation of at most sqrt(2 / K) = 0.044 here.
    #[test]
    fn lengths_stay() {
        let (s, project) = (Shape::rows(4, 500), Project { dim: 1024, seed: 9 });
        let x = values(1, s.len().unwrap());
        let mut y = std::vec![f64::NAN; 4 * 1024];
        project.forward(s, &x, &mut y);
        for (x, y) in x.chunks(500).zip(y.chunks(1024)) {
            let ratio = check::dot(y, y) / check::dot(x, x);
            assert!((ratio - 1.0).abs() < 5.0 * 0.044, "{ratio}");
        }
    }

    #[test]
    fn other_seeds_are_other_matrices() {
        let (s, x) = (Shape::rows(1, 64), values(1, 64));
        let run = |seed| {
            let mut y = [f64::NAN; 8];
            Project { dim: 8, seed }.forward(s, &x, &mut y);
            y
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn impossible_shapes_have_no_output() {
        assert_eq!(Project { dim: 0, seed: 0 }.output(Shape::rows(1, 4)), None);
        assert_eq!(Project { dim: 2, seed: 0 }.output(Shape::rows(1, 0)), None);
    }
}
