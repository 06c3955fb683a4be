//! Gradient descent, with and without momentum.

use crate::real::Real;

/// `p <- p - rate (g + decay p)`.
pub(super) fn plain<T: Real>(rate: T, decay: T, p: &mut [T], g: &[T]) {
    for (p, &g) in p.iter_mut().zip(g) {
        *p -= rate * (g + decay * *p);
    }
}

/// A running direction.
pub(super) struct Momentum<T> {
    pub momentum: T,
    pub nesterov: bool,
}

impl<T: Real> Momentum<T> {
    pub fn update(self, rate: T, decay: T, step: u32, p: &mut [T], g: &[T], buffer: &mut [T]) {
        for ((p, &g), b) in p.iter_mut().zip(g).zip(buffer) {
            let g = g + decay * *p;
            // The first direction is the gradient, whatever the buffer holds.
            *b = if step <= 1 { g } else { self.momentum * *b + g };
            *p -= rate * if self.nesterov { g + self.momentum * *b } else { *b };
        }
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
