//! SI from class means.

use super::{Tally, indicator};
use crate::neighbour::{Nearest, Rows, distance2};
use crate::real::Real;

/// The mean of each class, and how many samples it has.
///
/// ```text
/// mu_c = (1/m_c) sum_{i: l_i = c} x_i
/// ```
/// Summed in the order of the rows. Shapes: rows (M, D), means (C, D), counts (C); both are
/// overwritten. A class without samples has mean 0 and count 0; a sample whose label is C or more
/// is left out.
pub fn centres<T: Real>(rows: Rows<'_, T>, means: &mut [T], counts: &mut [u32]) {
    means.fill(T::ZERO);
    counts.fill(0);
    for (row, label) in rows.iter() {
        let class = usize::from(label);
        let Some(count) = counts.get_mut(class) else { continue };
        *count = count.saturating_add(1);
        let mean = means.get_mut(class * rows.dim..).unwrap_or_default();
        mean.iter_mut().zip(row).for_each(|(mean, &x)| *mean += x);
    }
    for (mean, &count) in means.chunks_exact_mut(rows.dim.max(1)).zip(&*counts) {
        // A class without samples stays 0.
        let count = T::from_f64(f64::from(count.max(1)));
        mean.iter_mut().for_each(|mean| *mean = *mean / count);
    }
}

/// The share of samples whose nearest class mean is that of their class.
///
/// ```text
/// SI_centre = (1/m) sum_i [argmin_c |x_i - mu_c|^2 = l_i]
/// ```
/// `center_si` in Kalhor's published code. It costs M C distances where [`si`](super::si) costs
/// M^2, and is the accuracy of the nearest-mean classifier; it is low for classes that consist of
/// several clusters.
///
/// `means` (C, D) and `counts` (C) come from [`centres`], of the same rows or of others (the cross
/// form). Of equal distances the lowest class wins, NaN never wins, a class with count 0 never
/// wins. A sample without any mean, or whose label is C or more, is skipped.
///
/// ```
/// use sepal_core::{neighbour::Rows, si};
/// let rows = Rows { data: &[0.0f32, 1.0, 4.0, 5.0, 0.0], dim: 1, labels: &[0, 0, 1, 1, 1] };
/// let (mut means, mut counts) = ([0.0; 2], [0; 2]);
/// si::centres(rows, &mut means, &mut counts);
/// assert_eq!((means, counts), ([0.5, 3.0], [2, 3]));
/// assert_eq!(si::centre_based(rows, &means, &counts).value(), Some(0.8));
/// ```
pub fn centre_based<T: Real>(rows: Rows<'_, T>, means: &[T], counts: &[u32]) -> Tally {
    let scores = rows.iter().map(|(row, label)| {
        counts.get(usize::from(label))?;
        let mut best = Nearest::NONE;
        for (index, (class, _)) in (0..).zip(counts.iter().enumerate()).filter(|(_, c)| *c.1 > 0) {
            let mean = means.get(class * rows.dim..)?.get(..rows.dim)?;
            let candidate = Nearest { index, dist2: distance2(row, mean) };
            if candidate.precedes(best) {
                best = candidate;
            }
        }
        best.exists().then(|| indicator(best.index == u32::from(label)))
    });
    scores.collect()
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, CLASSES, Set};
    use super::*;
    use std::vec;

    fn tally(set: &Set, classes: usize) -> (vec::Vec<f64>, vec::Vec<u32>, Tally) {
        let (mut means, mut counts) = (vec![f64::NAN; classes * set.dim], vec![9; classes]);
        centres(set.rows(), &mut means, &mut counts);
        let tally = centre_based(set.rows(), &means, &counts);
        (means, counts, tally)
    }

    #[test]
    fn it_is_the_definition() {
        check::each_set(|set| {
            let (means, counts, tally) = tally(set, CLASSES);
            for class in 0..CLASSES {
                let members: vec::Vec<_> =
                    (0..set.len()).filter(|&i| usize::from(set.labels[i]) == class).collect();
                assert_eq!(counts[class] as usize, members.len());
                for d in 0..set.dim {
                    let sum: f64 = members.iter().map(|&i| set.row(i)[d]).sum();
                    let (got, mean) =
                        (means[class * set.dim + d], sum / members.len().max(1) as f64);
                    assert!(got == mean || (got.is_nan() && mean.is_nan()));
                }
            }
            let scores = (0..set.len()).map(|i| {
                let mut best = None;
                for class in (0..CLASSES).filter(|&c| counts[c] > 0) {
                    let mean = &means[class * set.dim..][..set.dim];
                    let d = check::distance2(set.row(i), mean);
                    if !d.is_nan() && best.is_none_or(|(least, _)| d < least) {
                        best = Some((d, class));
                    }
                }
                Some(indicator(best?.1 == usize::from(set.labels[i])))
            });
            assert_eq!(tally, scores.collect());
        });
    }

    #[test]
    fn edges() {
        assert_eq!(tally(&Set::line(&[], &[]), 2).2, Tally::default());
        // A class of one is its own mean.
        assert_eq!(tally(&Set::line(&[3.0], &[1]), 2).2.value(), Some(1.0));
        // Rows 2 and 3 are as far from both means, and class 0 wins: right for one of them.
        let (means, _, tie) = tally(&Set::line(&[0.0, 2.0, 1.0, 1.0], &[0, 1, 0, 1]), 2);
        assert_eq!((means, tie.sum, tie.anchors), (vec![0.5, 1.5], 3.0, 4));
        // Class 2 has no mean to be near to.
        let (_, counts, outside) = tally(&Set::line(&[0.0, 5.0], &[0, 2]), 2);
        assert_eq!((counts, outside.anchors, outside.skipped), (vec![1, 0], 1, 1));
    }
}
