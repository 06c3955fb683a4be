//! The Separation Index itself.

use super::{Tally, indicator};
use crate::neighbour::Pair;
use crate::real::Real;

/// The share of samples whose nearest other sample has their label.
///
/// ```text
/// SI = (1/m) sum_i [l_i = l_i*],   i* = argmin_{j != i} |x_i - x_j|^2
/// ```
/// Eq. 1 of Karimi, Kalhor and Sadeghi Tabrizi; `si` in Kalhor's published code.
/// It is the accuracy of the 1-nearest-neighbour classifier, leaving one out.
///
/// `pairs` come from [`nearest_pair`](crate::neighbour::nearest_pair), one for each sample. A
/// sample without any neighbour is skipped. With one class SI is 1.
pub fn si<T: Real>(pairs: &[Pair<T>]) -> Tally {
    pairs.iter().map(|pair| pair.correct().map(indicator)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Set};
    use super::*;

    #[test]
    fn it_is_the_definition() {
        check::each_set(|set| {
            let scores = (0..set.len()).map(|i| {
                let nearest = *set.sorted(i).first()?;
                Some(indicator(set.labels[nearest] == set.labels[i]))
            });
            assert_eq!(si(&set.pairs()), scores.collect());
        });
    }

    #[test]
    fn edges() {
        assert_eq!(si::<f32>(&[]).value(), None);
        let one = si(&Set::line(&[1.0], &[0]).pairs());
        assert_eq!((one.value(), one.skipped), (None, 1));
        assert_eq!(si(&Set::line(&[1.0, 5.0, 2.0], &[3, 3, 3]).pairs()).value(), Some(1.0));
        // A tie: row 0 and row 2 are as far from row 1, the lower index decides.
        assert_eq!(si(&Set::line(&[0.0, 1.0, 2.0], &[0, 0, 1]).pairs()).sum, 2.0);
        assert_eq!(si(&Set::line(&[0.0, 1.0, 2.0], &[1, 0, 0]).pairs()).sum, 1.0);
        // Duplicates under two labels are wrong on both sides.
        assert_eq!(si(&Set::line(&[1.0, 1.0], &[0, 1]).pairs()).value(), Some(0.0));
        // NaN is nobody's neighbour and has none.
        let nan = si(&Set::line(&[0.0, f64::NAN, 1.0], &[0, 1, 0]).pairs());
        assert_eq!((nan.value(), nan.skipped), (Some(1.0), 1));
    }
}
