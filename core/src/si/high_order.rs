//! High-order SI.

use super::{Neighbours, Tally, indicator};
use crate::real::Real;

/// The share of samples whose r nearest neighbours all have their label.
///
/// ```text
/// SI_r = (1/m) sum_i prod_{j in N_r(i)} [l_j = l_i]
/// ```
/// `high_order_si` in Kalhor's published code. `r == 1` is [`si`](super::si); it falls as r grows.
/// A sample with fewer than r neighbours is skipped, so r is at least 1 and at most k.
pub fn high_order<T: Real>(neighbours: Neighbours<'_, T>, r: usize) -> Tally {
    let all = |same| usize::try_from(same).is_ok_and(|same| same == r);
    neighbours.agreeing(r).map(|same| Some(indicator(all(same?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{check, si};
    use super::*;

    #[test]
    fn it_is_the_definition() {
        check::each_neighbourhood(|n, r, set| {
            let scores = (0..set.len()).map(|i| {
                let near = set.nearest(i, r)?;
                Some(indicator(near.iter().all(|&j| set.labels[j] == set.labels[i])))
            });
            assert_eq!(high_order(n, r), scores.collect());
            if r == 1 {
                assert_eq!(high_order(n, r), si(&set.pairs()));
            }
        });
    }
}
