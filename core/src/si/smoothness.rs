//! The Smoothness Index: SI's sibling for regression.

use super::Tally;
use crate::neighbour::Nearest;
use crate::real::Real;

/// How far an anchor's target is from its neighbour's, and from all targets.
struct Targets<T> {
    /// To the nearest neighbour's.
    star: T,
    /// To the nearest other target.
    min: T,
    /// To the farthest other target.
    max: T,
    /// On average over all samples, the anchor among them with 0.
    mean: T,
}

/// One for each anchor; `None` without a neighbour, or where a target is not finite.
fn distances<T: Real>(
    nearest: &[Nearest<T>],
    targets: &[T],
) -> impl Iterator<Item = Option<Targets<T>>> {
    nearest.iter().zip(targets).enumerate().map(|(at, (nearest, &target))| {
        let index = usize::try_from(nearest.index).ok()?;
        let star = (target - *targets.get(index)?).abs();
        let (mut min, mut max, mut sum) = (T::INFINITY, T::ZERO, T::ZERO);
        for (_, &other) in targets.iter().enumerate().filter(|other| other.0 != at) {
            let distance = (target - other).abs();
            min = if distance < min { distance } else { min };
            max = if distance > max { distance } else { max };
            sum += distance;
        }
        let mean = sum / T::from_usize(targets.len());
        mean.is_finite().then_some(Targets { star, min, max, mean })
    })
}

/// The linear Smoothness Index: where the target of the nearest sample lies between the farthest
/// target, 0, and the nearest one, 1.
///
/// ```text
/// SmI = (1/m) sum_i (Dmax_i - t_i) / (Dmax_i - Dmin_i)
/// t_i = |y_i - y_i*|,  i* the nearest other sample,  Dmax_i, Dmin_i = max, min over j != i of |y_i - y_j|
/// ```
/// `smi_linear` in Kalhor's published code. `nearest` (M) comes from
/// [`top_k`](crate::neighbour::top_k) with k 1 over the same set, `targets` (M) are the y. Time M^2.
///
/// An anchor is skipped without a neighbour, where all other targets are equally far (also two
/// samples: best and worst are the same), and where a target is not finite.
pub fn smoothness_linear<T: Real>(nearest: &[Nearest<T>], targets: &[T]) -> Tally {
    let scores = distances(nearest, targets).map(|distances| {
        let Targets { star, min, max, .. } = distances?;
        (min < max).then(|| ((max - star) / (max - min)).to_f64())
    });
    scores.collect()
}

/// The exponential Smoothness Index: 1 where the nearest sample has the nearest target, falling
/// with the excess.
///
/// ```text
/// SmI = (1/m) sum_i exp(-g (t_i - Dmin_i) / Dmean_i),   Dmean_i = (1/m) sum_j |y_i - y_j|
/// ```
/// `smi_exp` in Kalhor's published code, whose mean includes j = i; the rest as in
/// [`smoothness_linear`]. `g` is positive and sets how fast it falls.
///
/// An anchor is skipped without a neighbour, where all targets are equal, and where a target is
/// not finite.
///
/// ```
/// use sepal_core::neighbour::{Nearest, Rows, top_k};
/// use sepal_core::si;
/// let (x, y) = ([0.0f32, 1.0, 3.0], [0.0, 2.0, 6.0]);
/// let rows = Rows { data: &x, dim: 1, labels: &[0; 3] };
/// let mut nearest = [Nearest::NONE; 3];
/// top_k(rows, rows, 0, Some(0), 1, &mut nearest);
/// assert_eq!(si::smoothness_exponential(&nearest, &y, 1.0).value(), Some(1.0));
/// assert_eq!(si::smoothness_linear(&nearest, &y).value(), Some(1.0));
/// ```
pub fn smoothness_exponential<T: Real>(nearest: &[Nearest<T>], targets: &[T], g: T) -> Tally {
    let scores = distances(nearest, targets).map(|distances| {
        let Targets { star, min, mean, .. } = distances?;
        (mean > T::ZERO).then(|| (-g * (star - min) / mean).exp().to_f64())
    });
    scores.collect()
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Set};
    use super::*;
    use std::vec::Vec;

    /// Both indices of one anchor from sorted target distances.
    fn brute(set: &Set, y: &[f64], i: usize, g: f64) -> (Option<f64>, Option<f64>) {
        let Some(&star) = set.sorted(i).first() else { return (None, None) };
        let mut t: Vec<f64> =
            (0..set.len()).filter(|&j| j != i).map(|j| (y[i] - y[j]).abs()).collect();
        let star = (y[i] - y[star]).abs();
        if t.iter().any(|t| !t.is_finite()) {
            return (None, None);
        }
        t.sort_by(f64::total_cmp);
        let (min, max) = (t[0], t[t.len() - 1]);
        let mean = (0..set.len()).map(|j| (y[i] - y[j]).abs()).sum::<f64>() / set.len() as f64;
        let linear = (max - star) / (max - min);
        let exponential = (-g * (star - min) / mean).exp();
        ((!linear.is_nan()).then_some(linear), (!exponential.is_nan()).then_some(exponential))
    }

    fn compare(got: Tally, scores: Vec<Option<f64>>) {
        let expected: Tally = scores.into_iter().collect();
        assert_eq!((got.anchors, got.skipped), (expected.anchors, expected.skipped));
        assert!((got.sum - expected.sum).abs() <= 1e-12 * expected.sum.abs().max(1.0));
    }

    #[test]
    fn they_are_the_definitions() {
        check::each_set(|set| {
            for y in [
                set.labels.iter().map(|&l| f64::from(l)).collect::<Vec<_>>(),
                (0..set.len()).map(|i| ((i * i) as f64).sin()).collect(),
                (0..set.len()).map(|i| if i == 1 { f64::NAN } else { i as f64 }).collect(),
                (0..set.len()).map(|i| if i == 1 { f64::INFINITY } else { i as f64 }).collect(),
            ] {
                let nearest = set.top_k(1);
                let both: Vec<_> = (0..set.len()).map(|i| brute(set, &y, i, 0.7)).collect();
                let (linear, exponential) = both.into_iter().unzip();
                compare(smoothness_linear(&nearest, &y), linear);
                compare(smoothness_exponential(&nearest, &y, 0.7), exponential);
            }
        });
    }

    #[test]
    fn edges() {
        let [one, two] = [Set::line(&[0.0], &[0]), Set::line(&[0.0, 1.0], &[0, 0])];
        assert_eq!(smoothness_linear(&one.top_k(1), &[1.0]).skipped, 1);
        assert_eq!(smoothness_exponential(&one.top_k(1), &[1.0], 1.0).skipped, 1);
        // Of two samples the other is both nearest and farthest.
        assert_eq!(smoothness_linear(&two.top_k(1), &[1.0, 5.0]).skipped, 2);
        assert_eq!(smoothness_exponential(&two.top_k(1), &[1.0, 5.0], 1.0).value(), Some(1.0));
        // Equal targets say nothing.
        assert_eq!(smoothness_linear(&two.top_k(1), &[2.0, 2.0]).value(), None);
        assert_eq!(smoothness_exponential(&two.top_k(1), &[2.0, 2.0], 1.0).value(), None);
    }

    #[test]
    fn it_falls_when_the_order_of_the_targets_is_lost() {
        let set = Set::line(&[0.0, 1.0, 2.1, 3.3, 4.6], &[0; 5]);
        let nearest = set.top_k(1);
        let value = |y: &[f64]| {
            [smoothness_linear(&nearest, y), smoothness_exponential(&nearest, y, 1.0)]
                .map(|tally| tally.value().unwrap())
        };
        let (smooth, rough) = (value(&[0., 1., 2., 3., 4.]), value(&[0., 4., 1., 3., 2.]));
        assert!(smooth[0] > rough[0] && smooth[1] > rough[1]);
        assert_eq!(smooth, [1.0, 1.0]);
    }
}
