//! Whether SI has risen, judged on the same samples before and after.

/// The samples that a change made right, and those that it made wrong: McNemar's counts.
///
/// A fine-tune is kept only where [`cross`](super::cross) SI of samples that were not trained on
/// rises by more than its error: each held-out sample is judged before and after, right where its
/// nearest training sample has its label ([`Pair::correct`](crate::neighbour::Pair::correct); a
/// sample without a neighbour is not).
///
/// # The error of the rise
/// Let `x_i` be 1 where sample i became right, -1 where it became wrong, 0 where it stayed, b the
/// number of the first and c of the second among n. SI rises by the mean of x, whose standard error
/// is that of any mean, with the variance of x over the samples:
///
/// ```text
/// rise  = (1/n) sum x_i = (b - c) / n
/// var   = (1/n) sum x_i^2 - rise^2 = (b + c) / n - (b - c)^2 / n^2
/// error = sqrt(var / n) = sqrt(b + c - (b - c)^2 / n) / n
/// ```
/// Samples that stay as they are do not count against a change, so this is smaller than the errors
/// of two separate SI. (McNemar, "Note on the sampling error of the difference between correlated
/// proportions or percentages", 1947, drops `(b - c)^2 / n`, as if nothing had risen.)
///
/// It asks for few samples: with c = 0 a rise is more than k errors where `b (1 + k^2 / n) > k^2`,
/// so one sample is enough for one error, and four for two.
///
/// ```
/// use sepal_core::si::Paired;
/// let mut paired = Paired::default();
/// for i in 0..100 {
///     let (before, after) = (i < 60, i >= 5 && i < 80); // 20 became right, 5 wrong
///     paired.observe(before, after);
/// }
/// assert_eq!(paired.rise(), Some(0.15));
/// assert!((paired.error().unwrap() - 0.0477).abs() < 1e-4);
/// assert!(paired.accepts(1.0) && paired.accepts(3.0) && !paired.accepts(4.0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paired {
    samples: u32,
    gained: u32,
    lost: u32,
}

impl Paired {
    /// Counts a sample: whether it was right before, and is after. Above `u32::MAX` samples none
    /// counts.
    pub const fn observe(&mut self, before: bool, after: bool) {
        if let Some(samples) = self.samples.checked_add(1) {
            self.samples = samples;
            // Neither is more than the samples.
            self.gained += (after && !before) as u32;
            self.lost += (before && !after) as u32;
        }
    }

    /// How many samples were judged, n.
    pub const fn samples(self) -> u32 {
        self.samples
    }

    /// How many became right, b.
    pub const fn gained(self) -> u32 {
        self.gained
    }

    /// How many became wrong, c.
    pub const fn lost(self) -> u32 {
        self.lost
    }

    /// How much the share of right samples has risen, below 0 where it fell; `None` without samples.
    pub fn rise(self) -> Option<f32> {
        let change = i64::from(self.gained) - i64::from(self.lost);
        (self.samples > 0).then(|| change as f32 / self.samples as f32)
    }

    /// The standard error of the rise; `None` without samples.
    pub fn error(self) -> Option<f32> {
        let n = u64::from(self.samples);
        let [changed, change] = [
            u64::from(self.gained) + u64::from(self.lost),
            u64::from(self.gained.abs_diff(self.lost)),
        ];
        // n^2 times the variance of x: exact, and not below 0, because b + c is at most n.
        let variance = (n * changed).saturating_sub(change * change) as f32;
        let n = self.samples as f32;
        (self.samples > 0).then(|| libm::sqrtf(variance / n) / n)
    }

    /// Whether the rise is above 0 and by more than so many standard errors.
    ///
    /// Without samples, or where as many became wrong as right, it is not, whatever the errors.
    pub fn accepts(self, errors: f32) -> bool {
        match (self.rise(), self.error()) {
            (Some(rise), Some(error)) => rise > 0.0 && rise > errors * error,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::super::{cross, indicator};
    use super::*;
    use crate::neighbour::Pair;
    use proptest::prelude::*;

    fn paired(samples: u32, gained: u32, lost: u32) -> Paired {
        Paired { samples, gained, lost }
    }

    proptest! {
        #[test]
        fn it_is_the_mean_and_its_error(
            judged in prop::collection::vec(any::<(bool, bool)>(), 1..200),
            errors in -3.0f32..3.0,
        ) {
            let mut paired = Paired::default();
            judged.iter().for_each(|&(before, after)| paired.observe(before, after));
            let n = judged.len() as f64;
            let x = judged.iter().map(|&(before, after)| indicator(after) - indicator(before));
            let mean = x.clone().sum::<f64>() / n;
            let variance = x.map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let error = (variance / n).sqrt();
            let [rise, found] = [paired.rise(), paired.error()].map(|x| f64::from(x.unwrap()));
            prop_assert!((rise - mean).abs() < 1e-6, "{} {}", rise, mean);
            prop_assert!((found - error).abs() < 1e-6, "{} {}", found, error);
            let margin = mean - f64::from(errors) * error;
            if margin.abs() > 1e-6 {
                prop_assert_eq!(paired.accepts(errors), mean > 0.0 && margin > 0.0);
            }
        }
    }

    #[test]
    fn the_rise_is_that_of_cross_si() {
        check::each_set(|set| {
            let queries = set.other();
            let mut after =
                check::Set { data: set.data.clone(), labels: set.labels.clone(), ..*set };
            after.data.iter_mut().for_each(|x| *x = *x * *x - *x);
            let mut paired = Paired::default();
            for (query, label) in queries.rows().iter() {
                let correct = |bank| Pair::NONE.fold(query, label, bank, 0, None).correct();
                let [before, after] = [set.rows(), after.rows()].map(correct);
                paired.observe(before == Some(true), after == Some(true));
            }
            let [before, after] = [set, &after].map(|bank| cross(queries.rows(), bank.rows()));
            if let (0, Some(before), Some(after)) = (before.skipped, before.value(), after.value())
            {
                let rise = f64::from(paired.rise().unwrap());
                assert!((rise - (after - before)).abs() < 1e-6);
            }
        });
    }

    #[test]
    fn edges() {
        // Nothing was judged, nothing rose, as many fell as rose, all fell.
        for refused in [paired(0, 0, 0), paired(50, 0, 0), paired(50, 7, 7), paired(50, 0, 50)] {
            for errors in [-1.0, 0.0, 1.0, f32::NAN, f32::INFINITY] {
                assert!(!refused.accepts(errors), "{refused:?} {errors}");
            }
        }
        assert_eq!((paired(0, 0, 0).rise(), paired(0, 0, 0).error()), (None, None));
        // All rose: there is no error.
        assert_eq!(paired(50, 50, 0).error(), Some(0.0));
        assert!(paired(50, 50, 0).accepts(1e9) && !paired(50, 50, 0).accepts(f32::NAN));
        // The least that is accepted.
        assert!(paired(40, 1, 0).accepts(1.0) && !paired(40, 2, 1).accepts(1.0));
        assert!(!paired(40, 3, 0).accepts(2.0) && paired(40, 4, 0).accepts(2.0));
        // The largest counts do not overflow, and stand still.
        let mut full = paired(u32::MAX, u32::MAX, 0);
        assert_eq!((full.rise(), full.error()), (Some(1.0), Some(0.0)));
        full.observe(false, true);
        assert_eq!(full, paired(u32::MAX, u32::MAX, 0));
        let half = paired(u32::MAX, 1 << 31, (1 << 31) - 1);
        assert!((half.error().unwrap() - (1.0 / 65536.0)).abs() < 1e-9);
    }
}
