//! Soft SI.

use super::{Neighbours, Tally};
use crate::real::Real;

/// The mean share of a sample's r nearest neighbours that have its label.
///
/// ```text
/// SI_soft = (1 / (m r)) sum_i sum_{j in N_r(i)} [l_j = l_i]
/// ```
/// `soft_order_si` in Kalhor's published code. `r == 1` is [`si`](super::si); it is never below
/// [`high_order`](super::high_order). A sample with fewer than r neighbours is skipped.
pub fn soft<T: Real>(neighbours: Neighbours<'_, T>, r: usize) -> Tally {
    // Counts add up exactly, so that the one rounding is the division.
    let counts: Tally = neighbours.agreeing(r).map(|same| same.map(f64::from)).collect();
    Tally { sum: counts.sum / r.max(1) as f64, ..counts }
}

#[cfg(test)]
mod tests {
    use super::super::{check, high_order};
    use super::*;
    use std::vec::Vec;

    #[test]
    fn it_is_the_definition() {
        check::each_neighbourhood(|n, r, set| {
            let judged: Vec<_> =
                (0..set.len()).filter_map(|i| Some((i, set.nearest(i, r)?))).collect();
            let same: usize = judged
                .iter()
                .map(|(i, near)| near.iter().filter(|&&j| set.labels[j] == set.labels[*i]).count())
                .sum();
            let tally = soft(n, r);
            assert_eq!(tally.sum, same as f64 / r.max(1) as f64);
            assert_eq!(tally.anchors as usize, judged.len());
            assert_eq!(tally.skipped as usize, set.len() - judged.len());
            assert!(soft(n, r).value() >= high_order(n, r).value());
        });
    }
}
