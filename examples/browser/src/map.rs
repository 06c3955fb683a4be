//! A picture of rows in two dimensions: their principal components.

use sepal_core::neighbour::distance2;

/// Rounds of the power iteration; the picture changes less than a pixel after them.
const ROUNDS: usize = 30;

/// The middle of rows of `D` numbers, and the two directions in which they vary most.
pub struct Axes<const D: usize> {
    mean: [f32; D],
    along: [[f32; D]; 2],
}

/// Those of rows that lie one after the other; both directions are 0 where there is no row.
pub fn axes<const D: usize>(rows: &[f32]) -> Axes<D> {
    let count = rows.len() / D.max(1);
    let mut mean = [0.0; D];
    for row in rows.chunks_exact(D.max(1)) {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / count as f32);
    }
    let mut axes = Axes { mean, along: [[0.0; D]; 2] };
    let first = axes.widest(rows, &[0.0; D]);
    axes.along = [first, axes.widest(rows, &first)];
    axes
}

impl<const D: usize> Axes<D> {
    /// The direction orthogonal to `other` in which rows vary most, by power iteration from the row
    /// that lies farthest from the middle.
    fn widest(&self, rows: &[f32], other: &[f32; D]) -> [f32; D] {
        let rows = || rows.chunks_exact(D.max(1));
        let from_middle = |row: &[f32]| distance2(row, &self.mean);
        let farthest = rows().max_by(|a, b| from_middle(a).total_cmp(&from_middle(b)));
        let mut axis = [0.0; D];
        for ((axis, x), mean) in axis.iter_mut().zip(farthest.unwrap_or_default()).zip(&self.mean) {
            *axis = x - mean;
        }
        for _ in 0..ROUNDS {
            orthogonal(&mut axis, other);
            let mut next = [0.0; D];
            for row in rows() {
                let share = self.along(row, &axis);
                for ((next, x), mean) in next.iter_mut().zip(row).zip(&self.mean) {
                    *next += share * (x - mean);
                }
            }
            axis = next;
        }
        orthogonal(&mut axis, other);
        axis
    }

    /// How far a row lies from the middle along a direction.
    fn along(&self, row: &[f32], axis: &[f32; D]) -> f32 {
        let terms = row.iter().zip(&self.mean).zip(axis).map(|((x, mean), axis)| (x - mean) * axis);
        terms.sum()
    }

    /// Where a row lies in the picture.
    pub fn place(&self, row: &[f32]) -> [f32; 2] {
        [0, 1].map(|k| self.along.get(k).map_or(0.0, |axis| self.along(row, axis)))
    }
}

/// What of `axis` is orthogonal to `other`, of length 1; 0 where nothing is left.
fn orthogonal<const D: usize>(axis: &mut [f32; D], other: &[f32; D]) {
    let product: f32 = axis.iter().zip(other).map(|(a, b)| a * b).sum();
    axis.iter_mut().zip(other).for_each(|(a, b)| *a -= product * b);
    let length = libm::sqrtf(axis.iter().map(|a| a * a).sum());
    axis.iter_mut().for_each(|a| *a = if length > 1e-6 { *a / length } else { 0.0 });
}
