//! Principal components, for pictures of features.

use crate::features::Features;

/// Steps of the iteration at most.
const STEPS: usize = 500;

impl Features {
    /// The rows along their first two principal components, in the features' units, (M, 2): of all
    /// projections to a plane the one that keeps most of the variance (Pearson, 1901).
    ///
    /// With the rows' mean taken off, `X`, and the leading eigenvalues and unit eigenvectors of
    /// their Gram matrix, `X X^T u_k = l_k u_k`, row i lies at `sqrt(l_k) u_k[i]`. They are found by
    /// orthogonal iteration; the largest coordinate of each component is positive, so that the same
    /// rows give the same picture. It takes `M^2 D` operations and `8 M^2` bytes: it is for some
    /// hundred rows. `None` where a number is not finite.
    ///
    /// ```
    /// use sepal_core::reference::OnReference;
    /// use sepal_models::{data, features::Features, fit::Fit, lenet::LENET};
    /// let mut images = data::bundled().test.head(20)?;
    /// let fit = Fit::new(LENET, 0)?;
    /// let features = Features::new(&OnReference, &fit.model(), &mut images, 4)?;
    /// assert_eq!(features.principal().map(|places| places.len()), Some(20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn principal(&self) -> Option<Vec<[f64; 2]>> {
        principal(self.data(), self.labels().len(), self.dim())
    }
}

fn principal(data: &[f32], rows: usize, dim: usize) -> Option<Vec<[f64; 2]>> {
    let gram = gram(data, rows, dim);
    if !gram.iter().all(|g| g.is_finite()) {
        return None;
    }
    // Any start that no eigenvector is orthogonal to will do.
    let start = |k: usize| (0..rows).map(|i| ((i * (k + 2) + 1) as f64).sin()).collect();
    let mut vectors: [Vec<f64>; 2] = [start(0), start(1)];
    let mut values = [0.0; 2];
    for _ in 0..STEPS {
        let before = values;
        for (k, value) in values.iter_mut().enumerate() {
            let (done, rest) = vectors.split_at_mut(k);
            let Some(vector) = rest.first_mut() else { break };
            let mut next: Vec<f64> =
                gram.chunks_exact(rows.max(1)).map(|row| product(row, vector)).collect();
            for done in done {
                let along = product(&next, done);
                next.iter_mut().zip(done).for_each(|(x, d)| *x -= along * *d);
            }
            *value = product(&next, &next).sqrt();
            if *value > 0.0 {
                next.iter_mut().for_each(|x| *x /= *value);
            }
            *vector = next;
        }
        if (0..2).all(|k| (values[k] - before[k]).abs() <= 1e-12 * values[0]) {
            break;
        }
    }
    // Below what rounding leaves there is no second component.
    let scale = [0, 1].map(|k| {
        let largest = vectors[k].iter().fold(0.0f64, |a, &b| if b.abs() > a.abs() { b } else { a });
        if values[k] > 1e-12 * values[0] { values[k].sqrt().copysign(largest) } else { 0.0 }
    });
    let [first, second] = &vectors;
    Some(first.iter().zip(second).map(|(&a, &b)| [a * scale[0], b * scale[1]]).collect())
}

/// The products of all centred rows with each other.
fn gram(data: &[f32], rows: usize, dim: usize) -> Vec<f64> {
    let row = |i: usize| data.get(i * dim..(i + 1) * dim).unwrap_or_default();
    let mut mean = vec![0.0f64; dim];
    for i in 0..rows {
        mean.iter_mut().zip(row(i)).for_each(|(m, &x)| *m += f64::from(x) / rows as f64);
    }
    let centred: Vec<Vec<f64>> = (0..rows)
        .map(|i| row(i).iter().zip(&mean).map(|(&x, m)| f64::from(x) - m).collect())
        .collect();
    let mut gram = vec![0.0; rows * rows];
    for i in 0..rows {
        for j in 0..=i {
            gram[i * rows + j] = product(&centred[i], &centred[j]);
            gram[j * rows + i] = gram[i * rows + j];
        }
    }
    gram
}

/// In eight sums, which vectors add at once.
fn product(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points of an ellipse in a plane of five dimensions, away from the origin.
    #[test]
    fn an_ellipse_lies_along_its_axes() {
        let (rows, dim) = (36, 5);
        let (u, v) = ([0.6f64, 0.8, 0.0, 0.0, 0.0], [0.0f64, 0.0, 0.28, -0.96, 0.0]);
        let at = |i: usize| (i as f64 * std::f64::consts::TAU / rows as f64).sin_cos();
        let data: Vec<f32> = (0..rows)
            .flat_map(|i| {
                let (sin, cos) = at(i);
                (0..dim).map(move |d| (7.0 + 5.0 * cos * u[d] + 2.0 * sin * v[d]) as f32)
            })
            .collect();
        let places = principal(&data, rows, dim).unwrap();
        // The first of the largest coordinates decides the sign.
        for (i, place) in places.iter().enumerate() {
            let (sin, cos) = at(i);
            assert!((place[0].abs() - (5.0 * cos).abs()).abs() < 1e-4, "{i}: {place:?}");
            assert!((place[1].abs() - (2.0 * sin).abs()).abs() < 1e-4, "{i}: {place:?}");
        }
        // Neighbours on the ellipse are neighbours in the picture.
        for pair in places.windows(2) {
            let apart = (pair[0][0] - pair[1][0]).hypot(pair[0][1] - pair[1][1]);
            assert!(apart < 1.0, "{pair:?}");
        }
    }

    #[test]
    fn what_has_no_second_direction_has_none_in_the_picture() {
        assert_eq!(principal(&[], 0, 3), Some(vec![]));
        assert_eq!(principal(&[], 2, 0), Some(vec![[0.0; 2]; 2]));
        assert_eq!(principal(&[4.0, 5.0], 1, 2), Some(vec![[0.0; 2]]));
        assert_eq!(principal(&[4.0, 5.0, 4.0, 5.0], 2, 2), Some(vec![[0.0; 2]; 2]));
        let line = principal(&[0.0, 1.0, 2.0, 3.0, 10.0], 5, 1).unwrap();
        for (place, expected) in line.iter().zip([-3.2, -2.2, -1.2, -0.2, 6.8]) {
            assert!((place[0] - expected).abs() < 1e-9 && place[1].abs() < 1e-5, "{line:?}");
        }
    }

    #[test]
    fn what_is_not_finite_has_no_picture() {
        assert_eq!(principal(&[0.0, f32::NAN, 1.0], 3, 1), None);
        assert_eq!(principal(&[0.0, f32::INFINITY, 1.0], 3, 1), None);
        assert!(principal(&[-f32::MAX, f32::MAX, 1.0], 3, 1).is_some());
    }
}
