//! The score of each sample.

use super::{Neighbours, Tally};
use crate::real::Real;

/// Scores each sample by how long its nearest neighbours agree, and gives the mean score.
///
/// ```text
/// s_i = + the largest r such that the r nearest all have the label of i, or, where that is 0,
///       - the largest r such that none of the r nearest has it
/// ```
/// `data_score_si_anti_si` in Kalhor's published code: the largest order of [`high_order`] SI, or
/// minus that of [`anti`]-SI. Far below 0 are likely label errors, far above 0 redundant samples.
/// The k places bound it: |s_i| <= k, and a run that goes on past them counts as k. (The published
/// code gives 0 where all neighbours agree, because it looks for the first that does not.)
///
/// `out` (M) is overwritten; it is 0 only for a sample without a neighbour, which is skipped in the
/// mean.
///
/// [`high_order`]: super::high_order
/// [`anti`]: super::anti
pub fn score<T: Real>(neighbours: Neighbours<'_, T>, out: &mut [i32]) -> Tally {
    let scores = neighbours.agreements().zip(out).map(|(mut agreements, out)| {
        *out = 0;
        let first = agreements.next()?;
        let run = agreements.take_while(|&agrees| agrees == first).fold(1i32, |run, _| run + 1);
        *out = if first { run } else { -run };
        Some(f64::from(*out))
    });
    scores.collect()
}

#[cfg(test)]
mod tests {
    use super::super::{anti, check, high_order};
    use super::*;

    #[test]
    fn it_is_the_largest_order() {
        check::each_neighbourhood(|n, _, set| {
            let mut out = std::vec![i32::MIN; set.len()];
            let tally = score(n, &mut out);
            let expected: std::vec::Vec<_> = (0..set.len())
                .map(|i| {
                    let labels: std::vec::Vec<_> =
                        set.sorted(i).iter().take(n.k).map(|&j| set.labels[j]).collect();
                    let run = |same: bool| {
                        let r = (0..=labels.len())
                            .rev()
                            .find(|&r| labels[..r].iter().all(|&l| (l == set.labels[i]) == same));
                        r.unwrap() as i32
                    };
                    if run(true) > 0 { run(true) } else { -run(false) }
                })
                .collect();
            assert_eq!(out, expected);
            let judged = expected.iter().map(|&s| (s != 0).then_some(f64::from(s)));
            assert_eq!(tally, judged.collect());

            // Where every sample has k neighbours, scores of r and more are the high orders.
            for r in (1..=n.k).filter(|&r| high_order(n, r).skipped == 0) {
                let at_least = |sign| out.iter().filter(|&&s| sign * s >= r as i32).count() as f64;
                assert_eq!(at_least(1), high_order(n, r).sum);
                assert_eq!(at_least(-1), anti(n, r).sum);
            }
        });
    }
}
