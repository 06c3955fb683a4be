//! The fully connected layer as matrix products over the whole batch.

use rayon::prelude::*;
use sepal_core::layer::Dense;
use sepal_core::shape::Shape;

use crate::gemm::{self, Matrix, Sizes};
use crate::sum::sum_pairs;

/// Samples below which packing the weights costs more than the product.
const FEW: usize = 4;

/// Units that one task computes for a few samples.
const UNITS: usize = 16;

/// Numbers of the weight gradient below which its rows are not split.
const PIECE: usize = 1 << 14;

/// N, D and U; `None` where the layer cannot take `x`.
fn lengths(layer: Dense, x: Shape) -> Option<(usize, usize, usize)> {
    layer.output(x)?;
    Some((x.n as usize, x.sample()? as usize, layer.units as usize))
}

/// Writes `y`. `b` is empty without bias.
pub(crate) fn forward(layer: Dense, shape: Shape, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
    let Some((n, d, u)) = lengths(layer, shape) else { return };
    if n < FEW {
        for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(u)) {
            y.par_chunks_mut(UNITS).enumerate().for_each(|(task, y)| {
                let first = task * UNITS;
                let rows = w.chunks_exact(d).skip(first);
                for (i, (y, w)) in y.iter_mut().zip(rows).enumerate() {
                    let b = b.get(first + i).copied().unwrap_or(0.0);
                    *y = b + sum_pairs(w, x, |w, x| w * x);
                }
            });
        }
        return;
    }
    if !b.is_empty() {
        y.chunks_exact_mut(u).for_each(|y| y.copy_from_slice(b));
    }
    let beta = if b.is_empty() { 0.0 } else { 1.0 };
    let (x, w) = (Matrix::rows(x, d), Matrix::transposed(w, d));
    gemm::parallel(Sizes { m: n, k: d, n: u }, 1.0, x, w, beta, y, u);
}

/// Adds to `dw` and `db` (empty without bias), overwrites `dx` where it is wanted.
#[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
pub(crate) fn backward(
    layer: Dense,
    shape: Shape,
    x: &[f32],
    w: &[f32],
    dy: &[f32],
    dx: Option<&mut [f32]>,
    dw: &mut [f32],
    db: &mut [f32],
) {
    let Some((n, d, u)) = lengths(layer, shape) else { return };
    for dy in dy.chunks_exact(u) {
        db.iter_mut().zip(dy).for_each(|(db, dy)| *db += dy);
    }
    // Rows of dw are independent of each other: each task sums over the whole batch.
    let rows = (PIECE / d.max(1)).max(UNITS);
    dw.par_chunks_mut(rows * d).enumerate().for_each(|(task, dw)| {
        let dy = dy.get(task * rows..).unwrap_or_default();
        let sizes = Sizes { m: dw.len() / d.max(1), k: n, n: d };
        gemm::gemm(sizes, 1.0, Matrix::transposed(dy, u), Matrix::rows(x, d), 1.0, dw, d);
    });
    if let Some(dx) = dx {
        let sizes = Sizes { m: n, k: u, n: d };
        gemm::parallel(sizes, 1.0, Matrix::rows(dy, u), Matrix::rows(w, d), 0.0, dx, d);
    }
}
