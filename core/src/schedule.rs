//! How the learning rate changes within a stage.

use crate::optim::power;

/// A learning rate for each step.
///
/// ```
/// use sepal_core::schedule::Schedule;
/// let schedule = Schedule::Cosine { warmup: 2 };
/// let rates = [0, 1, 2, 3, 4, 5, 6].map(|step| schedule.rate(1.0, step, 6));
/// let expected = [0.5, 1.0, 1.0, 0.853, 0.5, 0.146, 0.0];
/// assert!(rates.iter().zip(expected).all(|(r, e)| (r - e).abs() < 1e-3));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Schedule {
    /// The base rate.
    #[default]
    Constant,
    /// `base factor^(step / every)`, the quotient rounded down; the base rate where `every` is 0.
    Step {
        /// Steps between changes.
        every: u32,
        /// What each change multiplies by.
        factor: f32,
    },
    /// Up in a line over the first `warmup` steps, then down half a cosine (Loshchilov and Hutter,
    /// 2017), with W = `warmup`:
    ///
    /// ```text
    /// step < W:  base (step + 1) / W
    /// else:      base (1 + cos(pi (step - W) / (total - W))) / 2
    /// ```
    /// 0 from step `total` on.
    Cosine {
        /// Steps to reach the base rate; 0 begins with it.
        warmup: u32,
    },
}

impl Schedule {
    /// The rate of a step, counted from 0 within a stage of `total` steps. Computed in `f64` by
    /// additions and products alone, so that the bits are the same on every platform.
    pub fn rate(self, base: f32, step: u32, total: u32) -> f32 {
        (self.rater())(self, base, step, total)
    }

    /// What [`rate`](Self::rate) does by this schedule: chosen at compile time, the others are not
    /// linked.
    pub(crate) const fn rater(self) -> Rate {
        match self {
            Self::Constant => |_, base, _, _| base,
            Self::Step { .. } => by_steps,
            Self::Cosine { .. } => by_cosine,
        }
    }
}

/// The rate of a schedule at a step of so many in all, from the base rate.
pub(crate) type Rate = fn(Schedule, base: f32, step: u32, total: u32) -> f32;

fn by_steps(schedule: Schedule, base: f32, step: u32, _: u32) -> f32 {
    let Schedule::Step { every, factor } = schedule else { return base };
    let changes = step.checked_div(every).unwrap_or(0);
    (f64::from(base) * power(f64::from(factor), changes)) as f32
}

fn by_cosine(schedule: Schedule, base: f32, step: u32, total: u32) -> f32 {
    let Schedule::Cosine { warmup } = schedule else { return base };
    let share = if step >= total {
        0.0
    } else if step < warmup {
        (f64::from(step) + 1.0) / f64::from(warmup)
    } else {
        // Here warmup <= step < total.
        let done = f64::from(step - warmup) / f64::from(total - warmup);
        // (1 + cos(pi d)) / 2 = 1 - sin(pi d / 2)^2 = sin(pi (1 - d) / 2)^2.
        if done <= 0.5 { 1.0 - sine_squared(done) } else { sine_squared(1.0 - done) }
    };
    (f64::from(base) * share) as f32
}

/// `sin(pi x / 2)^2` for x in [0, 1/2]: eight terms of the sine's series are exact in `f64`, and a
/// fraction of the code of a sine of any number.
fn sine_squared(x: f64) -> f64 {
    let angle = core::f64::consts::FRAC_PI_2 * x;
    let mut series = 1.0;
    for k in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        series = 1.0 - angle * angle / (k * (k - 1.0)) * series;
    }
    angle * series * (angle * series)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn constant_is_the_base() {
        for (step, total) in [(0, 0), (0, 10), (9, 10), (u32::MAX, 10)] {
            assert_eq!(Schedule::Constant.rate(0.3, step, total), 0.3);
        }
        assert_eq!(Schedule::default(), Schedule::Constant);
    }

    #[test]
    fn steps_multiply() {
        let schedule = Schedule::Step { every: 3, factor: 0.5 };
        let rates: Vec<f32> = (0..8).map(|step| schedule.rate(8.0, step, 8)).collect();
        assert_eq!(rates, [8.0, 8.0, 8.0, 4.0, 4.0, 4.0, 2.0, 2.0]);
        assert_eq!(schedule.rate(8.0, 4, 0), 4.0);
        assert_eq!(schedule.rate(8.0, u32::MAX, 8), 0.0);
        assert_eq!(Schedule::Step { every: 0, factor: 0.5 }.rate(8.0, 9, 10), 8.0);
        let off = Schedule::Step { every: 2, factor: 0.0 };
        assert_eq!([0, 1, 2].map(|step| off.rate(8.0, step, 3)), [8.0, 8.0, 0.0]);
    }

    #[test]
    fn cosine_falls_from_the_base_to_zero() {
        let schedule = Schedule::Cosine { warmup: 0 };
        let rates: Vec<f32> = (0..=100).map(|step| schedule.rate(0.01, step, 100)).collect();
        assert_eq!((rates[0], rates[50], rates[100]), (0.01, 0.005, 0.0));
        // cos(pi / 3) = 1/2.
        assert_eq!(schedule.rate(1.0, 20, 60), 0.75);
        assert!(rates.is_sorted_by(|a, b| a > b));
        // Each step and its mirror add up to the base.
        for (a, b) in rates.iter().zip(rates.iter().rev()) {
            assert!((a + b - 0.01).abs() < 1e-9);
        }
        assert_eq!(schedule.rate(0.01, 101, 100), 0.0);
    }

    #[test]
    fn the_series_is_the_sine() {
        for i in 0..=1000 {
            let x = f64::from(i) / 2000.0;
            let sine = libm::sin(core::f64::consts::FRAC_PI_2 * x);
            assert!((sine_squared(x) - sine * sine).abs() < 2e-16, "{x}");
        }
    }

    #[test]
    fn warm_up_rises_in_a_line() {
        let schedule = Schedule::Cosine { warmup: 4 };
        let rates = [0, 1, 2, 3, 4, 6, 8].map(|step| schedule.rate(2.0, step, 8));
        assert_eq!(rates, [0.5, 1.0, 1.5, 2.0, 2.0, 1.0, 0.0]);
    }

    #[test]
    fn short_stages_have_finite_rates() {
        for (warmup, total) in [(0, 0), (5, 0), (5, 3), (5, 5), (5, 6), (0, 1), (u32::MAX, 4)] {
            for step in [0, 1, 3, 4, 5, 6, u32::MAX] {
                let rate = Schedule::Cosine { warmup }.rate(1.0, step, total);
                assert!((0.0..=1.0).contains(&rate), "{warmup} {total} {step}: {rate}");
                assert_eq!(rate == 0.0, step >= total, "{warmup} {total} {step}: {rate}");
            }
        }
    }
}
