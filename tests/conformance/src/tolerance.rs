//! How far values may lie apart.

/// `|got - expected| <= abs + rel |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// The share of the expected value.
    pub rel: f64,
    /// What is borne near 0.
    pub abs: f64,
}

impl Tolerance {
    /// Not at all: copies, winners, masks.
    pub const EXACT: Self = Self { rel: 0.0, abs: 0.0 };
    /// One rounded operation for each element, in any of its usual forms.
    pub const ELEMENT: Self = Self { rel: 1e-6, abs: 1e-6 };
    /// Sums of up to some hundred products of numbers near 1, in any order.
    pub const SUM: Self = Self { rel: 1e-4, abs: 2e-5 };
    /// Sums whose terms were divided by a deviation or a norm.
    pub const NORMALISED: Self = Self { rel: 5e-4, abs: 1e-4 };
    /// Whole blocks: some layers on top of each other.
    pub const BLOCK: Self = Self { rel: 1e-3, abs: 2e-4 };
    /// Losses along a training run, where differences grow.
    pub const TRAINING: Self = Self { rel: 1e-2, abs: 1e-3 };
    /// Squared distances, summed over the dimensions in any order.
    pub const DISTANCE: Self = Self { rel: 1e-5, abs: 1e-6 };

    /// Whether two values agree; NaN with NaN, infinities with themselves.
    pub fn agree(self, got: f64, expected: f64) -> bool {
        got == expected
            || (got.is_nan() && expected.is_nan())
            || (got - expected).abs() <= self.abs + self.rel * expected.abs()
                && expected.is_finite()
    }

    /// Checks element by element.
    ///
    /// # Panics
    /// At the first that does not agree.
    #[track_caller]
    pub fn check(self, what: &str, got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len(), "{what}: lengths differ");
        for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            assert!(
                self.agree(f64::from(got), expected),
                "{what}: element {at} is {got}, expected {expected} within {self:?}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tolerance;

    #[test]
    fn tolerances_tell_near_from_far() {
        let near = Tolerance { rel: 0.1, abs: 0.01 };
        assert!(near.agree(1.1, 1.0) && near.agree(0.01, 0.0));
        assert!(!near.agree(1.2, 1.0) && !near.agree(0.02, 0.0));
        assert!(near.agree(f64::NAN, f64::NAN) && !near.agree(f64::NAN, 1.0));
        assert!(!near.agree(1.0, f64::NAN) && !near.agree(1.0, f64::INFINITY));
        assert!(near.agree(f64::INFINITY, f64::INFINITY));
        assert!(!near.agree(f64::NEG_INFINITY, f64::INFINITY));
        assert!(!Tolerance::EXACT.agree(1.0, 1.0 + f64::EPSILON));
    }
}
