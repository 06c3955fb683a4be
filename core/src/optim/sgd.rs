//! Gradient descent, with and without momentum.

use super::Rule;
use crate::real::Real;

/// `p <- p - rate (g + decay p)`.
pub(super) fn plain<T: Real>(
    rule: Rule,
    (rate, _): (T, u32),
    p: &mut [T],
    g: &[T],
    _: &mut [T],
    _: &mut [T],
) {
    let Rule::Sgd { weight_decay, .. } = rule else { return };
    let decay = T::from_f32(weight_decay);
    for (p, &g) in p.iter_mut().zip(g) {
        *p -= rate * (g + decay * *p);
    }
}

/// As [`plain`], along a running direction.
pub(super) fn momentum<T: Real>(
    rule: Rule,
    (rate, step): (T, u32),
    p: &mut [T],
    g: &[T],
    buffer: &mut [T],
    _: &mut [T],
) {
    let Rule::Sgd { momentum, nesterov, weight_decay } = rule else { return };
    let (momentum, decay) = (T::from_f32(momentum), T::from_f32(weight_decay));
    for ((p, &g), b) in p.iter_mut().zip(g).zip(buffer) {
        let g = g + decay * *p;
        // The first direction is the gradient, whatever the buffer holds.
        *b = if step <= 1 { g } else { momentum * *b + g };
        *p -= rate * if nesterov { g + momentum * *b } else { *b };
    }
}

#[cfg(test)]
mod tests {
    use crate::optim::Rule;

    /// Worked by hand: all numbers are exact in binary.
    #[test]
    fn plain_steps() {
        let mut p = [1.0, -2.0];
        Rule::sgd().update(0.5, 1, &mut p, &[4.0, 1.0], &mut [], &mut []);
        assert_eq!(p, [-1.0, -2.5]);
        let decay = Rule::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.5 };
        // g = 1 - 0.5 and 0 - 1.25.
        decay.update(0.5, 2, &mut p, &[1.0, 0.0], &mut [], &mut []);
        assert_eq!(p, [-1.25, -1.875]);
    }

    #[test]
    fn momentum_begins_with_the_gradient() {
        let rule = Rule::Sgd { momentum: 0.5, nesterov: false, weight_decay: 0.0 };
        // What the buffer held before does not count.
        let (mut p, mut b) = ([1.0], [7.0]);
        rule.update(0.25, 1, &mut p, &[2.0], &mut b, &mut []);
        assert_eq!((p, b), ([0.5], [2.0]));
        rule.update(0.25, 2, &mut p, &[-3.0], &mut b, &mut []);
        assert_eq!((p, b), ([1.0], [-2.0]));
        rule.update(0.25, 3, &mut p, &[0.0], &mut b, &mut []);
        assert_eq!((p, b), ([1.25], [-1.0]));
    }

    #[test]
    fn nesterov_looks_ahead() {
        let rule = Rule::Sgd { momentum: 0.5, nesterov: true, weight_decay: 0.5 };
        let (mut p, mut b) = ([2.0], [0.0]);
        // g = 1 + 1, b = 2, direction 2 + 1.
        rule.update(0.5, 1, &mut p, &[1.0], &mut b, &mut []);
        assert_eq!((p, b), ([0.5], [2.0]));
        // g = 0.75 + 0.25, b = 1 + 1, direction 1 + 1.
        rule.update(0.5, 2, &mut p, &[0.75], &mut b, &mut []);
        assert_eq!((p, b), ([-0.5], [2.0]));
    }
}
