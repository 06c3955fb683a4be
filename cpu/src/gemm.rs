//! Matrix products: the only place of this crate with `unsafe` code beside its `arch` directory.
//!
//! `matrixmultiply` reads and writes through pointers and strides; here both are checked against
//! the slices that they come from.

use rayon::prelude::*;

/// A matrix to read: element (i, j) is `data[i * down + j * across]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    down: usize,
    across: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `stride` numbers.
    pub(crate) const fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, down: stride, across: 1 }
    }

    /// The transpose of rows of `stride` numbers.
    pub(crate) const fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, down: 1, across: stride }
    }

    /// From row `row` on.
    fn skip(self, row: usize) -> Self {
        Self { data: self.data.get(row * self.down..).unwrap_or_default(), ..self }
    }

    /// Whether all of `m` rows and `n` columns lie in the slice.
    fn holds(&self, m: usize, n: usize) -> bool {
        span(m, n, self.down, self.across).is_some_and(|span| span <= self.data.len())
    }
}

/// Numbers from the first to the last element of a matrix, both included; `None` past the
/// address space.
fn span(m: usize, n: usize, down: usize, across: usize) -> Option<usize> {
    let (Some(rows), Some(columns)) = (m.checked_sub(1), n.checked_sub(1)) else { return Some(0) };
    rows.checked_mul(down)?.checked_add(columns.checked_mul(across)?)?.checked_add(1)
}

/// Sizes of a product: (m, k) times (k, n).
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
}

/// `c = alpha a b + beta c`, c in rows of `stride` numbers. With beta 0, c is not read.
///
/// # Panics
/// Where a slice is shorter than its matrix, or the rows of c overlap.
pub(crate) fn gemm(
    Sizes { m, k, n }: Sizes,
    alpha: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    beta: f32,
    c: &mut [f32],
    stride: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n), "a factor is shorter than its sizes say");
    let written = span(m, n, stride, 1);
    assert!(stride >= n && written.is_some_and(|w| w <= c.len()), "the product does not fit");
    // Strides that passed the checks fit isize, because slices do; a matrix of one row may have
    // any stride, which is then not used.
    let signed = |stride: usize| isize::try_from(stride).unwrap_or(0);
    // SAFETY: `a` holds (m, k) elements at its strides, `b` (k, n), `c` (m, n), all checked above,
    // so every address that is read or written lies in its slice. `c` is borrowed mutably and so
    // does not overlap `a` or `b`; its rows do not overlap each other, as stride >= n.
    #[allow(unsafe_code)]
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            alpha,
            a.data.as_ptr(),
            signed(a.down),
            signed(a.across),
            b.data.as_ptr(),
            signed(b.down),
            signed(b.across),
            beta,
            c.as_mut_ptr(),
            signed(stride),
            1,
        );
    }
}

/// Rows of c that one task computes.
const ROWS: usize = 64;

/// Multiply-adds below which a product is not worth splitting.
const SPLIT: usize = 1 << 21;

/// As [`gemm`], split into blocks of rows that run in parallel where it is large. The split
/// depends on the sizes alone, and so do the bits.
pub(crate) fn parallel(
    sizes: Sizes,
    alpha: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    beta: f32,
    c: &mut [f32],
    stride: usize,
) {
    let Sizes { m, k, n } = sizes;
    if m <= ROWS || m.saturating_mul(k).saturating_mul(n) < SPLIT {
        return gemm(sizes, alpha, a, b, beta, c, stride);
    }
    let blocks = m.div_ceil(ROWS);
    c.par_chunks_mut(ROWS * stride.max(1)).take(blocks).enumerate().for_each(|(block, c)| {
        let row = block * ROWS;
        let sizes = Sizes { m: (m - row).min(ROWS), k, n };
        gemm(sizes, alpha, a.skip(row), b, beta, c, stride);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{close, values};

    fn naive(s: Sizes, a: &[f32], b: &[f32]) -> Vec<f32> {
        let mut c = vec![0.0; s.m * s.n];
        for i in 0..s.m {
            for j in 0..s.n {
                let terms = (0..s.k).map(|p| f64::from(a[i * s.k + p]) * f64::from(b[p * s.n + j]));
                c[i * s.n + j] = terms.sum::<f64>() as f32;
            }
        }
        c
    }

    #[test]
    fn products_of_any_size() {
        for m in [1, 2, 7, 8, 9, 17, 65, 130] {
            for k in [0, 1, 8, 31, 257] {
                for n in [1, 7, 16, 33, 100] {
                    let s = Sizes { m, k, n };
                    let (a, b) = (values(1, m * k), values(2, k * n));
                    let expected = naive(s, &a, &b);
                    let mut c = vec![f32::NAN; m * n];
                    gemm(s, 1.0, Matrix::rows(&a, k), Matrix::rows(&b, n), 0.0, &mut c, n);
                    close(&c, &expected, 1e-5);
                    let mut t = vec![0.0; b.len()];
                    (0..k * n).for_each(|i| t[i % n * k + i / n] = b[i]);
                    let mut c = vec![1.0; m * n];
                    parallel(
                        s,
                        2.0,
                        Matrix::rows(&a, k),
                        Matrix::transposed(&t, k),
                        1.0,
                        &mut c,
                        n,
                    );
                    let expected: Vec<f32> = expected.iter().map(|e| 1.0 + 2.0 * e).collect();
                    close(&c, &expected, 1e-5);
                }
            }
        }
    }

    #[test]
    fn blocks_of_rows_give_the_same_bits() {
        let s = Sizes { m: 200, k: 300, n: 70 };
        let (a, b) = (values(1, s.m * s.k), values(2, s.k * s.n));
        let (mut one, mut many) = (vec![0.0; s.m * s.n], vec![0.0; s.m * s.n]);
        gemm(s, 1.0, Matrix::rows(&a, s.k), Matrix::rows(&b, s.n), 0.0, &mut one, s.n);
        parallel(s, 1.0, Matrix::rows(&a, s.k), Matrix::rows(&b, s.n), 0.0, &mut many, s.n);
        assert_eq!(one, many);
    }

    #[test]
    fn between_the_rows_nothing_is_written() {
        let s = Sizes { m: 2, k: 1, n: 2 };
        let (a, b) = ([1.0, 2.0], [3.0, 4.0]);
        let mut c = [9.0; 5];
        gemm(s, 1.0, Matrix::rows(&a, 1), Matrix::rows(&b, 2), 0.0, &mut c, 3);
        assert_eq!(c, [3.0, 4.0, 9.0, 6.0, 8.0]);
    }

    #[test]
    #[should_panic(expected = "shorter")]
    fn short_factors_are_refused() {
        let s = Sizes { m: 2, k: 2, n: 1 };
        gemm(s, 1.0, Matrix::rows(&[0.0; 3], 2), Matrix::rows(&[0.0; 2], 1), 0.0, &mut [0.0; 2], 1);
    }

    #[test]
    #[should_panic(expected = "fit")]
    fn short_products_are_refused() {
        let s = Sizes { m: 2, k: 1, n: 2 };
        gemm(s, 1.0, Matrix::rows(&[0.0; 2], 1), Matrix::rows(&[0.0; 2], 2), 0.0, &mut [0.0; 3], 2);
    }
}
