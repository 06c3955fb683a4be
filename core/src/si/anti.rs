//! Anti-SI.

use super::{Neighbours, Tally, indicator};
use crate::real::Real;

/// The share of samples none of whose r nearest neighbours has their label.
///
/// ```text
/// SI_anti = (1/m) sum_i prod_{j in N_r(i)} [l_j != l_i]
/// ```
/// `anti_si` in Kalhor's published code (its `anti_si_class` computes the high-order index
/// instead). `r == 1` is 1 - SI. A sample with fewer than r neighbours is skipped.
pub fn anti<T: Real>(neighbours: Neighbours<'_, T>, r: usize) -> Tally {
    neighbours.agreeing(r).map(|same| Some(indicator(same? == 0))).collect()
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
                Some(indicator(near.iter().all(|&j| set.labels[j] != set.labels[i])))
            });
            assert_eq!(anti(n, r), scores.collect());
            if r == 1 {
                let si = si(&set.pairs());
                assert_eq!(anti(n, r).sum, f64::from(si.anchors) - si.sum);
            }
        });
    }
}
