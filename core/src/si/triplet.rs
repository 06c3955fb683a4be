//! Global triplet SI.

use super::{Tally, indicator};
use crate::neighbour::{Rows, distance2};
use crate::real::Real;

/// Whether labels and distances order j and k alike as seen from i; `None` where a distance is NaN.
fn agrees<T: Real>(labels: [u16; 3], ij: T, ik: T) -> Option<f64> {
    if ij.is_nan() || ik.is_nan() {
        return None;
    }
    let [i, j, k] = labels;
    Some(indicator(((i == j) >= (i == k)) == (ij <= ik)))
}

/// The share of the given triplets in which labels and distances agree.
///
/// ```text
/// (1/t) sum_(i,j,k) [ ([l_i = l_j] >= [l_i = l_k]) = (|x_i - x_j|^2 <= |x_i - x_k|^2) ]
/// ```
/// `triplet_global_si` in Kalhor's published code. It sees the whole distribution where
/// [`si`](super::si) sees only the nearest samples, and is near 1/2 for features that say nothing.
///
/// `triplets` are (i, j, k), usually drawn at random by the caller; each is one anchor of the
/// tally. A triplet is skipped where two of its indices are equal (it would agree or disagree
/// whatever the features are), one is past the rows, or a distance is NaN.
pub fn triplet<T: Real>(rows: Rows<'_, T>, triplets: impl IntoIterator<Item = [u32; 3]>) -> Tally {
    let at = |index: u32| {
        let index = usize::try_from(index).ok()?;
        Some((rows.row(index)?, *rows.labels.get(index)?))
    };
    let scores = triplets.into_iter().map(|[i, j, k]| {
        if i == j || i == k || j == k {
            return None;
        }
        let [(xi, li), (xj, lj), (xk, lk)] = [at(i)?, at(j)?, at(k)?];
        agrees([li, lj, lk], distance2(xi, xj), distance2(xi, xk))
    });
    scores.collect()
}

/// The share over all triplets of three different samples.
///
/// [`triplet`] of all (i, j, k) with i, j, k different, M (M - 1) (M - 2) of them, which is what
/// random triplets estimate. Time M^2 D + M^3. Triplets with a NaN distance are skipped.
///
/// `distances` (M) is scratch and overwritten. Where it is shorter than M nothing is computed and
/// the tally is empty.
///
/// ```
/// use sepal_core::{neighbour::Rows, si};
/// let rows = Rows { data: &[0.0f32, 1.0, 9.0], dim: 1, labels: &[0, 0, 1] };
/// let exact = si::triplet_exact(rows, &mut [0.0; 3]);
/// let all = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
/// assert_eq!(exact, si::triplet(rows, all));
/// ```
pub fn triplet_exact<T: Real>(rows: Rows<'_, T>, distances: &mut [T]) -> Tally {
    let mut tally = Tally::default();
    let Some(distances) = distances.get_mut(..rows.len()) else { return tally };
    for (i, (xi, li)) in rows.iter().enumerate() {
        for (distance, (x, _)) in distances.iter_mut().zip(rows.iter()) {
            *distance = distance2(xi, x);
        }
        let others = || distances.iter().zip(rows.labels).enumerate().filter(move |o| o.0 != i);
        for (j, (&ij, &lj)) in others() {
            for (_, (&ik, &lk)) in others().filter(|o| o.0 != j) {
                tally = tally.and(Tally::of(agrees([li, lj, lk], ij, ik)));
            }
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Set};
    use super::*;
    use std::vec::Vec;

    fn all(m: usize) -> Vec<[u32; 3]> {
        let m = m as u32;
        (0..m * m * m).map(|n| [n / (m * m), n / m % m, n % m]).collect()
    }

    #[test]
    fn it_is_the_definition() {
        check::each_set(|set| {
            let score = |[i, j, k]: [u32; 3]| {
                let [i, j, k] = [i, j, k].map(|n| n as usize);
                let near = check::distance2(set.row(i), set.row(j))
                    - check::distance2(set.row(i), set.row(k));
                let like = i32::from(set.labels[i] == set.labels[j])
                    - i32::from(set.labels[i] == set.labels[k]);
                if i == j || j == k || k == i || near.is_nan() {
                    return None;
                }
                Some(indicator((like >= 0) == (near <= 0.0)))
            };
            let m = set.len();
            let sampled = triplet(set.rows(), all(m));
            assert_eq!(sampled, all(m).into_iter().map(score).collect());

            let exact = triplet_exact(set.rows(), &mut std::vec![f64::NAN; m + 1]);
            assert_eq!((exact.sum, exact.anchors), (sampled.sum, sampled.anchors));
            let different = m * m.saturating_sub(1) * m.saturating_sub(2);
            assert_eq!((exact.anchors + exact.skipped) as usize, different);
        });
    }

    #[test]
    fn edges() {
        let two = Set::line(&[0.0, 1.0], &[0, 1]);
        assert_eq!(triplet_exact(two.rows(), &mut [0.0; 2]).value(), None);
        assert_eq!(triplet(two.rows(), []).value(), None);
        assert_eq!(triplet(two.rows(), [[0, 1, 2], [0, 1, 1]]).skipped, 2);
        // Two far clusters: of the triplets with labels (0; 0, 1) none is wrong.
        let set = Set::line(&[0.0, 1.0, 50.0, 51.0], &[0, 0, 1, 1]);
        assert_eq!(triplet(set.rows(), [[0, 1, 2], [0, 3, 1], [3, 2, 0]]).value(), Some(1.0));
        // Scratch one too short.
        assert_eq!(triplet_exact(set.rows(), &mut [0.0; 3]), Tally::default());
    }
}
