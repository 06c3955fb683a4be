//! SI between two sets.

use super::{Tally, indicator};
use crate::neighbour::{Pair, Rows};
use crate::real::Real;

/// The share of queries whose nearest sample of the bank has their label.
///
/// ```text
/// SI_cross = (1/m) sum_i [l_i = l_i*],   i* = argmin_{j in bank} |x_i - y_j|^2
/// ```
/// `cross_si` in Kalhor's published code. With test samples as queries and training samples as
/// bank it is the test accuracy of the 1-nearest-neighbour classifier, and the number to judge a
/// layer by: SI on the training set itself is optimistic.
///
/// It needs no memory. For a bank in pieces, fold them by
/// [`nearest_pair`](crate::neighbour::nearest_pair) with `skip: None` and take
/// [`si`](super::si). A query that is also in the bank finds itself. A query without a neighbour
/// (bank empty, or all distances NaN) is skipped.
///
/// ```
/// use sepal_core::{neighbour::Rows, si};
/// let train = Rows { data: &[0.0f32, 1.0], dim: 1, labels: &[0, 1] };
/// let test = Rows { data: &[0.2f32, 0.6, 0.3, 0.4], dim: 1, labels: &[0, 1, 1, 0] };
/// assert_eq!(si::cross(test, train).value(), Some(0.75));
/// ```
pub fn cross<T: Real>(queries: Rows<'_, T>, bank: Rows<'_, T>) -> Tally {
    let pairs = queries.iter().map(|(query, label)| Pair::NONE.fold(query, label, bank, 0, None));
    pairs.map(|pair| pair.correct().map(indicator)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Set};
    use super::super::si;
    use super::*;
    use crate::neighbour::nearest_pair;

    #[test]
    fn it_is_the_definition() {
        check::each_set(|set| {
            let other = set.other();
            let scores = (0..other.len()).map(|i| {
                let mut best = None;
                for j in 0..set.len() {
                    let d = check::distance2(other.row(i), set.row(j));
                    if !d.is_nan() && best.is_none_or(|(least, _)| d < least) {
                        best = Some((d, j));
                    }
                }
                Some(indicator(set.labels[best?.1] == other.labels[i]))
            });
            let tally = cross(other.rows(), set.rows());
            assert_eq!(tally, scores.collect());

            let mut pairs = std::vec![Pair::NONE; other.len()];
            nearest_pair(other.rows(), set.rows(), 0, None, &mut pairs);
            assert_eq!(tally, si(&pairs));
        });
    }

    #[test]
    fn edges() {
        let (none, one) = (Set::line(&[], &[]), Set::line(&[1.0], &[2]));
        assert_eq!(cross(one.rows(), none.rows()).skipped, 1);
        assert_eq!(cross(none.rows(), one.rows()), Tally::default());
        // Nothing excludes a sample that is in both sets.
        assert_eq!(cross(one.rows(), one.rows()).value(), Some(1.0));
    }
}
