//! SI of each class.

use super::{Tally, indicator};
use crate::neighbour::Pair;
use crate::real::Real;

/// SI over the samples of each class, their neighbours taken from all classes.
///
/// ```text
/// SI_c = (1/m_c) sum_{i: l_i = c} [l_i = l_i*]
/// ```
/// `si_class` in Kalhor's published code. It shows which classes are hard where [`si`](super::si)
/// shows only the mean; with all classes in `out`, the tallies add up to it.
///
/// Shapes: pairs (M), labels (M), out (classes). `out` is overwritten; a sample whose label has no
/// place in it is left out.
pub fn per_class<T: Real>(pairs: &[Pair<T>], labels: &[u16], out: &mut [Tally]) {
    out.fill(Tally::default());
    for (pair, &label) in pairs.iter().zip(labels) {
        if let Some(tally) = out.get_mut(usize::from(label)) {
            *tally = tally.and(Tally::of(pair.correct().map(indicator)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Set};
    use super::super::si;
    use super::*;

    #[test]
    fn it_is_si_of_the_class() {
        check::each_set(|set| {
            let pairs = set.pairs();
            let mut out = [Tally { sum: f64::NAN, anchors: 9, skipped: 9 }; check::CLASSES];
            per_class(&pairs, &set.labels, &mut out);
            for (class, &tally) in out.iter().enumerate() {
                let of_class = (0..set.len()).filter(|&i| usize::from(set.labels[i]) == class);
                assert_eq!(tally, si(&of_class.map(|i| pairs[i]).collect::<std::vec::Vec<_>>()));
            }
            assert_eq!(out.into_iter().fold(Tally::default(), Tally::and), si(&pairs));
        });
    }

    #[test]
    fn a_class_of_one_is_wrong_and_an_unknown_class_is_left_out() {
        let set = Set::line(&[0.0, 0.1, 0.2, 9.0], &[0, 0, 1, 7]);
        let mut out = [Tally::default(); 3];
        per_class(&set.pairs(), &set.labels, &mut out);
        assert_eq!(out.map(Tally::value), [Some(1.0), Some(0.0), None]);
    }
}
