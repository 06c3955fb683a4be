//! How far one ranking tells another: correlations of a few pairs, with exact chances.
//!
//! SI of raw samples costs one search, SI of a net that is hardly trained little more. Whether they
//! tell which data set or which net will be classified best is a question of correlation, mostly of
//! few pairs, where tables of normal deviates do not hold. p is therefore that of permutations: the
//! share of all orders of y for which the correlation with x is at least as far from 0 as the one
//! found. All orders are gone through up to [`EXACT`] pairs, so that p is exact; beyond that
//! [`DRAWN`] orders are drawn, and the one found counts among them.

use sepal_core::rng::Permutation;

use crate::learning::SettingError;

/// The most pairs of which all orders are gone through: 9! = 362,880.
pub const EXACT: usize = 9;

/// Orders that are drawn for more pairs.
pub const DRAWN: u32 = 99_999;

/// A correlation.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Correlation {
    /// From -1 to 1.
    pub coefficient: f64,
    /// The chance of one as far from 0 or farther, of either sign, were there nothing to it.
    pub p: f64,
    /// Whether all orders were gone through.
    pub exact: bool,
}

/// Pearson's correlation of x and y.
///
/// ```text
/// r = sum_i (x_i - mx) (y_i - my) / sqrt(sum_i (x_i - mx)^2 sum_i (y_i - my)^2)
/// ```
/// `seed` decides the orders that are drawn, where some are.
///
/// # Errors
/// Numbers of two lengths, fewer than 3, one that is not finite, or all of them equal.
///
/// ```
/// use sepal_models::steer::rank::pearson;
/// let found = pearson(&[1.0, 2.0, 3.0, 4.0], &[2.0, 4.0, 6.0, 8.0], 0)?;
/// assert_eq!((found.coefficient, found.p), (1.0, 2.0 / 24.0)); // This order and its reverse, of 4!
/// # Ok::<(), sepal_models::learning::SettingError>(())
/// ```
pub fn pearson(x: &[f64], y: &[f64], seed: u64) -> Result<Correlation, SettingError> {
    let refused = |field, found: String, expected| Err(SettingError { field, found, expected });
    if x.len() != y.len() {
        return refused("y", format!("{} numbers", y.len()), "as many as x has");
    }
    if x.len() < 3 {
        return refused("x", format!("{} numbers", x.len()), "3 or more");
    }
    for (field, numbers) in [("x", x), ("y", y)] {
        if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
            return refused(field, number.to_string(), "finite numbers");
        }
        if numbers.iter().all(|number| Some(number) == numbers.first()) {
            return refused(field, format!("{} equal numbers", x.len()), "some that differ");
        }
    }
    let (x, y) = (centred(x), centred(y));
    let scale = (dot(&x, &x) * dot(&y, &y)).sqrt();
    let coefficient = (dot(&x, &y) / scale).clamp(-1.0, 1.0);
    // Orders that tie with the one found are counted whatever their rounding.
    let least = coefficient.abs() - 1e-9;
    let is_far = |y: &[f64]| (dot(&x, y) / scale).abs() >= least;
    let exact = x.len() <= EXACT;
    let (mut far, mut all) = (0u32, 0u32);
    if exact {
        each_order(&mut y.clone(), &mut |y| {
            all += 1;
            far += u32::from(is_far(y));
        });
    } else {
        (far, all) = (1, 1 + DRAWN);
        let len = y.len() as u32;
        let mut drawn = y.clone();
        for draw in 0..DRAWN {
            let order = Permutation::new(seed, draw, len);
            for (to, place) in drawn.iter_mut().zip(0..) {
                *to = y.get(order.get(place) as usize).copied().unwrap_or_default();
            }
            far += u32::from(is_far(&drawn));
        }
    }
    Ok(Correlation { coefficient, p: f64::from(far) / f64::from(all), exact })
}

/// Spearman's: Pearson's of the [`ranks`].
///
/// # Errors
/// As [`pearson`].
pub fn spearman(x: &[f64], y: &[f64], seed: u64) -> Result<Correlation, SettingError> {
    // What is no number has no rank.
    if x.iter().chain(y).all(|number| number.is_finite()) {
        return pearson(&ranks(x), &ranks(y), seed);
    }
    pearson(x, y, seed)
}

/// The place of each number in ascending order, from 1 on; equal numbers share the mean of theirs.
///
/// ```
/// assert_eq!(sepal_models::steer::rank::ranks(&[5.0, 1.0, 5.0]), [2.5, 1.0, 2.5]);
/// ```
pub fn ranks(numbers: &[f64]) -> Vec<f64> {
    let rank = |number: &f64| {
        let below = numbers.iter().filter(|other| *other < number).count();
        let equal = numbers.iter().filter(|other| *other == number).count();
        below as f64 + (equal as f64 + 1.0) / 2.0
    };
    numbers.iter().map(rank).collect()
}

fn centred(numbers: &[f64]) -> Vec<f64> {
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    numbers.iter().map(|number| number - mean).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Calls `visit` with each order of `numbers` once (Heap, The Computer Journal 1963).
fn each_order(numbers: &mut [f64], visit: &mut impl FnMut(&[f64])) {
    let mut counts = vec![0; numbers.len()];
    visit(numbers);
    let mut at = 1;
    while at < numbers.len() {
        let Some(count) = counts.get_mut(at) else { break };
        if *count < at {
            numbers.swap(if at.is_multiple_of(2) { 0 } else { *count }, at);
            visit(numbers);
            *count += 1;
            at = 1;
        } else {
            *count = 0;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_are_the_known_ones() {
        // The first of Anscombe's four sets (The American Statistician 1973), who prints 0.82.
        let x = [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0];
        let y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68];
        let found = pearson(&x, &y, 0).unwrap();
        assert!((found.coefficient - 0.816_420_516_345).abs() < 1e-10, "{found:?}");
        // By Student's t it is 0.00217.
        assert!(!found.exact && (0.0012..0.0035).contains(&found.p), "{found:?}");
        let found = spearman(&x, &y, 0).unwrap();
        assert!((found.coefficient - 0.818_181_818_181).abs() < 1e-10, "{found:?}");
    }

    #[test]
    fn chances_of_few_pairs_are_exact() {
        let up = [1.0, 2.0, 3.0, 4.0, 5.0];
        // One swap of neighbours: rho = 1 - 6 * 2 / (5 * 24) = 0.9. Of the 120 orders the identity,
        // the 4 swaps of neighbours, and their reverses reach it.
        let found = spearman(&up, &[1.0, 3.0, 2.0, 4.0, 5.0], 0).unwrap();
        assert!((found.coefficient - 0.9).abs() < 1e-12 && found.exact);
        assert!((found.p - 10.0 / 120.0).abs() < 1e-12, "{found:?}");
        let found = spearman(&up, &[9.0, 7.0, 5.0, 3.0, -100.0], 0).unwrap();
        assert_eq!((found.coefficient, found.p), (-1.0, 2.0 / 120.0));
        // Nothing to it: every order is as far from 0.
        let found = pearson(&[1.0, 2.0, 1.0], &[1.0, 1.0, 2.0], 0).unwrap();
        assert!((found.coefficient + 0.5).abs() < 1e-12 && found.p == 1.0, "{found:?}");
    }

    #[test]
    fn each_order_comes_once() {
        for (len, count) in [(1, 1), (2, 2), (3, 6), (4, 24), (5, 120)] {
            let mut numbers: Vec<f64> = (0..len).map(f64::from).collect();
            let mut seen = std::collections::BTreeSet::new();
            each_order(&mut numbers, &mut |order| {
                seen.insert(order.iter().map(|&x| x as u32).collect::<Vec<_>>());
            });
            assert_eq!(seen.len(), count, "{len}");
        }
    }

    #[test]
    fn what_has_no_correlation_is_refused() {
        let good = [1.0, 2.0, 3.0];
        for (x, y, words) in [
            (&good[..], &[1.0, 2.0][..], "y: found 2 numbers, expected as many as x has"),
            (&[1.0, 2.0], &[1.0, 2.0], "x: found 2 numbers, expected 3 or more"),
            (&[], &[], "x: found 0 numbers, expected 3 or more"),
            (&good, &[1.0, f64::NAN, 2.0], "y: found NaN, expected finite numbers"),
            (&[1.0, f64::INFINITY, 2.0], &good, "x: found inf, expected finite numbers"),
            (&good, &[4.0; 3], "y: found 3 equal numbers, expected some that differ"),
        ] {
            for correlation in [pearson, spearman] {
                assert_eq!(correlation(x, y, 0).unwrap_err().to_string(), words);
            }
        }
    }
}
