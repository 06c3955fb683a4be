//! Vectors for tokens.

use super::Tensors;
use crate::real::Real;
use crate::shape::Shape;

/// A trained vector for each token, such as a character.
///
/// ```text
/// y[n,e,i,j] = w[t, e],  t = the whole number nearest to x[n,0,i,j], halves up
/// ```
/// A lookup table (Bengio et al. 2003; for characters Conneau et al. 2017, section 3). Row 0 is for
/// padding and for what is unknown: every number without a row of its own, NaN among them, reads
/// it. It is a row like the others and learns as they do. Rounding makes up for tokens that were
/// scaled on their way; text as bytes wants
/// [`Normalisation::BYTES`](crate::net::Normalisation::BYTES).
///
/// Shapes: x (N, 1, H, W), w (V, E), y (N, E, H, W); text has H = 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Embedding {
    /// Rows of the table, V.
    pub tokens: u32,
    /// Numbers of a vector, E.
    pub dim: u32,
}

impl Embedding {
    /// The output's shape; `None` where it is empty, or the input has more than one channel.
    ///
    /// ```
    /// use sepal_core::{layer::Embedding, shape::Shape};
    /// let (embedding, shape) = (Embedding { tokens: 3, dim: 2 }, Shape::new(1, 1, 1, 3));
    /// let (w, mut y) = ([0.0f32, 0.5, 1.0, 1.5, 2.0, 2.5], [0.0; 6]);
    /// embedding.forward(shape, &[2.0, 1.0, 7.0], &w, &mut y);
    /// assert_eq!(y, [2.0, 1.0, 0.0, 2.5, 1.5, 0.5]);
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        if x.c != 1 || x.plane() == 0 || self.tokens == 0 || self.dim == 0 {
            return None;
        }
        Some(Shape { c: self.dim, ..x })
    }

    /// The length of w; `None` where it does not fit 32 bits.
    pub const fn tensors(self, _: Shape) -> Option<Tensors> {
        match self.tokens.checked_mul(self.dim) {
            Some(weight) => Some(Tensors { weight, ..Tensors::NONE }),
            None => None,
        }
    }

    /// Writes `y`.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], w: &[T], y: &mut [T]) {
        let Some((plane, dim, sample)) = self.lengths(shape) else { return };
        for (x, y) in x.chunks_exact(plane).zip(y.chunks_exact_mut(sample)) {
            for (e, y) in y.chunks_exact_mut(plane).enumerate() {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = w.get(self.row(x) * dim + e).copied().unwrap_or(T::ZERO);
                }
            }
        }
    }

    /// Adds to `dw`, overwrites `dx` where it is wanted: with zeros, for y does not change with x
    /// but where it jumps.
    ///
    /// ```text
    /// dw[t,e] += sum of dy[n,e,i,j] over the places of token t, sample by sample, in row order
    /// ```
    pub fn backward<T: Real>(
        self,
        shape: Shape,
        x: &[T],
        dy: &[T],
        dx: Option<&mut [T]>,
        dw: &mut [T],
    ) {
        let Some((plane, dim, sample)) = self.lengths(shape) else { return };
        for (x, dy) in x.chunks_exact(plane).zip(dy.chunks_exact(sample)) {
            for (e, dy) in dy.chunks_exact(plane).enumerate() {
                for (&dy, &x) in dy.iter().zip(x) {
                    if let Some(dw) = dw.get_mut(self.row(x) * dim + e) {
                        *dw += dy;
                    }
                }
            }
        }
        if let Some(dx) = dx {
            dx.fill(T::ZERO);
        }
    }

    /// The row of a token.
    fn row<T: Real>(self, token: T) -> usize {
        // The cast cuts the fraction off and saturates: NaN and all below become 0.
        let nearest = (token.to_f64() + 0.5) as u32;
        if nearest < self.tokens { nearest as usize } else { 0 }
    }

    /// H W, E, and E H W; `None` where one of them or the table is too large to be a shape.
    fn lengths(self, shape: Shape) -> Option<(usize, usize, usize)> {
        self.tensors(shape)?;
        match self.output(shape)?.sample()? {
            0 => None,
            sample => Some((shape.plane() as usize, self.dim as usize, sample as usize)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const CASES: &[(Shape, Embedding)] = &[
        (Shape::new(2, 1, 1, 9), Embedding { tokens: 4, dim: 3 }),
        (Shape::new(3, 1, 2, 5), Embedding { tokens: 7, dim: 1 }),
        (Shape::new(1, 1, 1, 1), Embedding { tokens: 1, dim: 5 }),
    ];

    /// Tokens with and without a row of their own.
    fn tokens(s: Shape) -> Vec<f64> {
        values(1, s.len().unwrap()).iter().map(|x| (x * 8.0).round()).collect()
    }

    fn out(s: Shape, embedding: Embedding) -> usize {
        embedding.output(s).unwrap().len().unwrap() as usize
    }

    #[test]
    fn forward_is_the_definition() {
        for &(s, embedding) in CASES {
            let (x, v, e) = (tokens(s), embedding.tokens as usize, embedding.dim as usize);
            let w = values(2, embedding.tensors(s).unwrap().weight);
            let plane = s.plane() as usize;
            let mut y = std::vec![f64::NAN; out(s, embedding)];
            embedding.forward(s, &x, &w, &mut y);
            for (at, y) in y.iter().enumerate() {
                let token = x[at / (e * plane) * plane + at % plane];
                let known = token >= 0.0 && token < v as f64;
                let row = if known { token as usize } else { 0 };
                assert_eq!(*y, w[row * e + at / plane % e], "at {at}");
            }
        }
    }

    #[test]
    fn backward_is_the_derivative_and_the_adjoint() {
        for &(s, embedding) in CASES {
            let weight = embedding.tensors(s).unwrap().weight;
            let (x, w) = (tokens(s), values(2, weight));
            check::gradient(
                &[x.clone(), w.clone()],
                out(s, embedding),
                |[x, w], y| embedding.forward(s, x, w, y),
                |[x, _], dy, [dx, dw]| {
                    dx.fill(f64::NAN);
                    embedding.backward(s, x, dy, Some(dx), dw);
                },
            );
            let dy = values(3, out(s, embedding) as u32);
            let (mut y, mut dw) = (dy.clone(), std::vec![0.0; weight as usize]);
            embedding.forward(s, &x, &w, &mut y);
            embedding.backward(s, &x, &dy, None, &mut dw);
            check::close(&[check::dot(&y, &dy)], &[check::dot(&w, &dw)], 1e-13);
        }
    }

    #[test]
    fn parameter_gradients_accumulate() {
        let (s, embedding) = CASES[0];
        let (x, dy) = (tokens(s), values(3, out(s, embedding) as u32));
        let run = |start: f64| {
            let mut dw = std::vec![start; 12];
            embedding.backward(s, &x, &dy, None, &mut dw);
            dw
        };
        let fresh: Vec<f64> = run(0.0).iter().map(|d| d + 3.0).collect();
        check::close(&run(3.0), &fresh, 1e-13);
    }

    #[test]
    fn numbers_that_are_no_token_read_a_defined_row() {
        let embedding = Embedding { tokens: 3, dim: 1 };
        let x = [0.4f32, 0.5, 1.49, 1.5, 2.49, 2.5, 3.0, 1e30, -0.6, -7.0, f32::INFINITY];
        let shape = |len: usize| Shape::new(1, 1, 1, len as u32);
        let mut y = [f32::NAN; 11];
        embedding.forward(shape(11), &x, &[10.0, 11.0, 12.0], &mut y);
        assert_eq!(y, [10.0, 11.0, 11.0, 12.0, 12.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0]);
        let mut y = [f32::NAN; 2];
        embedding.forward(shape(2), &[f32::NAN, f32::NEG_INFINITY], &[10.0, 11.0, 12.0], &mut y);
        assert_eq!(y, [10.0; 2]);
    }

    #[test]
    fn impossible_shapes_have_no_output() {
        let (s, embedding) = (Shape::new(2, 1, 1, 5), Embedding { tokens: 3, dim: 2 });
        assert_eq!(embedding.output(s), Some(Shape::new(2, 2, 1, 5)));
        assert_eq!(embedding.output(Shape { c: 2, ..s }), None);
        assert_eq!(embedding.output(Shape { w: 0, ..s }), None);
        assert_eq!(Embedding { tokens: 0, ..embedding }.output(s), None);
        assert_eq!(Embedding { dim: 0, ..embedding }.output(s), None);
        assert_eq!(Embedding { tokens: 1 << 16, dim: 1 << 16 }.tensors(s), None);
    }
}
