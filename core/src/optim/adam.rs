//! Adam, with both kinds of weight decay.

use super::{Rule, corrections};
use crate::real::Real;

/// Adam, and AdamW, whose decay does not pass through the means. The numbers that all parameters share
/// are computed in `f64`: 1 - beta2 of a beta2 near 1 would lose 10 bits in `f32`.
pub(super) fn update<T: Real>(
    rule: Rule,
    (rate, step): (T, u32),
    p: &mut [T],
    g: &[T],
    mean: &mut [T],
    square: &mut [T],
) {
    let (beta1, beta2, eps, decay, keep) = match rule {
        Rule::Adam { beta1, beta2, eps, weight_decay } => {
            (beta1, beta2, eps, T::from_f32(weight_decay), T::ONE)
        }
        Rule::AdamW { beta1, beta2, eps, weight_decay } => {
            let keep = 1.0 - rate.to_f64() * f64::from(weight_decay);
            (beta1, beta2, eps, T::ZERO, T::from_f64(keep))
        }
        Rule::Sgd { .. } => return,
    };
    let [rate, root] = corrections([beta1, beta2], rate.to_f64(), step).map(T::from_f64);
    let rest = |beta: f32| T::from_f64(1.0 - f64::from(beta));
    let (mean_share, square_share) = (rest(beta1), rest(beta2));
    let (beta2, eps) = (T::from_f32(beta2), T::from_f32(eps));
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(mean).zip(square) {
        let g = g + decay * *p;
        *m += mean_share * (g - *m);
        *v = beta2 * *v + square_share * g * g;
        *p = *p * keep - rate * *m / (v.sqrt() / root + eps);
    }
}

#[cfg(test)]
mod tests {
    use crate::layer::check;
    use crate::optim::Rule;

    /// Worked by hand with betas of 1/2 and 3/4.
    #[test]
    fn two_steps() {
        let rule = Rule::Adam { beta1: 0.5, beta2: 0.75, eps: 0.5, weight_decay: 0.0 };
        let (mut p, mut m, mut v) = ([1.0_f64], [0.0], [0.0]);
        // m = 1, v = 1; both corrections give back the gradient: 2 / (2 + 0.5).
        rule.update(0.5, 1, &mut p, &[2.0], &mut m, &mut v);
        assert_eq!((m, v), ([1.0], [1.0]));
        check::close(&p, &[1.0 - 0.5 * 2.0 / 2.5], 1e-15);
        // m = 0.5 - 0.5, v = 0.75 + 0.25: no step.
        rule.update(0.5, 2, &mut p, &[-1.0], &mut m, &mut v);
        assert_eq!((m, v), ([0.0], [1.0]));
        check::close(&p, &[0.6], 1e-15);
    }

    /// With p = 2 and g = 0, L2 decay takes a whole step of the rate, decoupled decay a share.
    #[test]
    fn the_two_decays_differ() {
        let l2 = Rule::Adam { beta1: 0.5, beta2: 0.75, eps: 1e-12, weight_decay: 0.25 };
        let apart = Rule::AdamW { beta1: 0.5, beta2: 0.75, eps: 1e-12, weight_decay: 0.25 };
        for (rule, expected, mean) in [(l2, 1.9, 0.25), (apart, 1.95, 0.0)] {
            let (mut p, mut m, mut v) = ([2.0_f64], [0.0], [0.0]);
            rule.update(0.1, 1, &mut p, &[0.0], &mut m, &mut v);
            check::close(&p, &[expected], 1e-9);
            assert_eq!(m, [mean]);
        }
    }

    /// A constant gradient moves by the rate at any step: the corrections cancel the zeros that
    /// the means start from, early and late.
    #[test]
    fn the_correction_holds_for_any_count() {
        for step in [1, 2, 1000, 1_000_000, u32::MAX] {
            let rule = Rule::adam();
            let (beta1, beta2) = (f64::from(0.9_f32), f64::from(0.999_f32));
            let before = f64::from(step - 1);
            let mut m = [3.0 * (1.0 - beta1.powf(before))];
            let mut v = [9.0 * (1.0 - beta2.powf(before))];
            let mut p = [0.0_f64];
            rule.update(0.25, step, &mut p, &[3.0], &mut m, &mut v);
            check::close(&p, &[-0.25], 1e-8);
        }
    }

    #[test]
    fn step_zero_is_taken_as_one() {
        let step = |step| {
            let (mut p, mut m, mut v) = ([1.0_f32], [0.0], [0.0]);
            Rule::adam().update(0.1, step, &mut p, &[2.0], &mut m, &mut v);
            p
        };
        assert_eq!(step(0), step(1));
    }

    /// Squares that underflow leave eps in the denominator.
    #[test]
    fn tiny_and_large_gradients_stay_finite() {
        for g in [1e-30_f32, -1e-45, 1e18] {
            let (mut p, mut m, mut v) = ([1.0_f32], [0.0], [0.0]);
            for step in 1..10 {
                Rule::adam().update(0.01, step, &mut p, &[g], &mut m, &mut v);
            }
            assert!(p[0].is_finite() && (0.9..1.1).contains(&p[0]), "{g}: {p:?}");
        }
    }
}
