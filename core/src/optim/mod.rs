//! Optimisers: how parameters follow their gradients.
//!
//! # Contract
//! A rule is plain data; what it remembers between steps lies in up to two slices per parameter
//! tensor that the caller lends, [`Rule::slots`] of them, each as long as the parameters. They
//! are zeros before the first step. A slice that a rule does not use is empty.

mod adam;
mod sgd;

use crate::real::Real;

/// An update rule.
///
/// ```
/// use sepal_core::optim::Rule;
/// let rule = Rule::adam();
/// let (mut first, mut second) = ([0.0], [0.0]);
/// let mut p = [1.0_f32];
/// for step in 1..=200 {
///     let g = [2.0 * p[0]];
///     rule.update(0.1, step, &mut p, &g, &mut first, &mut second);
/// }
/// assert!(p[0].abs() < 0.01);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Rule {
    /// Gradient descent, with momentum where `momentum` is not 0.
    ///
    /// ```text
    /// g <- g + weight_decay p
    /// b <- g at step 1, momentum b + g after          (first slice)
    /// p <- p - rate (g + momentum b  with nesterov,  b  without)
    /// ```
    /// Without momentum, `p <- p - rate g` and no slice.
    Sgd {
        /// Share of the last direction that stays, 0 to 1.
        momentum: f32,
        /// Whether to look one step of momentum ahead (Nesterov). Without momentum it does nothing.
        nesterov: bool,
        /// L2 penalty: added to the gradient.
        weight_decay: f32,
    },
    /// Adam (Kingma and Ba, 2015); weight decay is an L2 penalty.
    ///
    /// ```text
    /// g <- g + weight_decay p
    /// m <- m + (1 - beta1) (g - m)                    (first slice)
    /// v <- beta2 v + (1 - beta2) g^2                  (second slice)
    /// p <- p - rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    /// ```
    Adam {
        /// Decay of the mean of gradients, 0 to below 1.
        beta1: f32,
        /// Decay of the mean of squared gradients, 0 to below 1.
        beta2: f32,
        /// Keeps the quotient finite; above 0.
        eps: f32,
        /// L2 penalty: added to the gradient.
        weight_decay: f32,
    },
    /// Adam with weight decay apart from the gradient (Loshchilov and Hutter, 2019):
    /// `p <- p - rate weight_decay p`, then Adam's step without the penalty.
    AdamW {
        /// Decay of the mean of gradients, 0 to below 1.
        beta1: f32,
        /// Decay of the mean of squared gradients, 0 to below 1.
        beta2: f32,
        /// Keeps the quotient finite; above 0.
        eps: f32,
        /// Share of the rate by which parameters shrink.
        weight_decay: f32,
    },
}

impl Rule {
    /// Gradient descent without momentum and decay.
    pub const fn sgd() -> Self {
        Self::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 }
    }

    /// Adam with beta 0.9 and 0.999, eps 1e-8, without decay.
    pub const fn adam() -> Self {
        Self::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }

    /// AdamW with beta 0.9 and 0.999, eps 1e-8.
    pub const fn adamw(decay: f32) -> Self {
        Self::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: decay }
    }

    /// Numbers that the rule remembers for each parameter: how many of the slices of
    /// [`update`](Self::update) it uses.
    pub const fn slots(self) -> usize {
        match self {
            Self::Sgd { momentum: 0.0, .. } => 0,
            Self::Sgd { .. } => 1,
            Self::Adam { .. } | Self::AdamW { .. } => 2,
        }
    }

    /// This rule and its rate for a gradient that is the sum of `parts` gradients instead of their mean,
    /// so that the steps are those of the mean (what the rule remembers is `parts` times as large, for
    /// Adam's squares `parts^2` times).
    ///
    /// ```text
    /// SGD     rate / parts, decay parts:  b <- momentum b + (parts g + parts decay p)
    /// Adam    eps parts, decay parts:     m and sqrt(v) grow alike
    /// AdamW   eps parts
    /// ```
    ///
    /// ```
    /// use sepal_core::optim::Rule;
    /// let rule = Rule::Sgd { momentum: 0.5, nesterov: true, weight_decay: 0.25 };
    /// let (summed, rate) = rule.of_sum(0.5, 4);
    /// let (mut p, mut q, mut a, mut b) = ([1.0], [1.0], [0.0], [0.0]);
    /// for step in 1..9 {
    ///     rule.update(0.5, step, &mut p, &[0.75], &mut a, &mut []);
    ///     summed.update(rate, step, &mut q, &[3.0], &mut b, &mut []);
    /// }
    /// assert_eq!(p, q);
    /// ```
    pub const fn of_sum(self, rate: f32, parts: u32) -> (Self, f32) {
        let n = parts as f32;
        match self {
            Self::Sgd { momentum, nesterov, weight_decay } => {
                (Self::Sgd { momentum, nesterov, weight_decay: weight_decay * n }, rate / n)
            }
            Self::Adam { beta1, beta2, eps, weight_decay } => {
                let (eps, weight_decay) = (eps * n, weight_decay * n);
                (Self::Adam { beta1, beta2, eps, weight_decay }, rate)
            }
            Self::AdamW { beta1, beta2, eps, weight_decay } => {
                (Self::AdamW { beta1, beta2, eps: eps * n, weight_decay }, rate)
            }
        }
    }

    /// Updates `p` by its gradient `g`, and what the rule remembers. The steps are PyTorch's
    /// `torch.optim` `SGD` (without dampening), `Adam` and `AdamW`; hyper-parameters are rounded to
    /// `f32`.
    ///
    /// `step` counts from 1 (0 is taken as 1). Powers of beta are computed anew in `f64`, so
    /// that they do not drift. `g` is read only; the slices have the contract's lengths.
    pub fn update<T: Real>(
        self,
        rate: T,
        step: u32,
        p: &mut [T],
        g: &[T],
        first: &mut [T],
        second: &mut [T],
    ) {
        (self.updater())(self, (rate, step), p, g, first, second);
    }

    /// What [`update`](Self::update) does by this rule: chosen at compile time, the other rules are not
    /// linked.
    pub(crate) const fn updater<T: Real>(self) -> Update<T> {
        match self {
            Self::Sgd { momentum: 0.0, .. } => sgd::plain,
            Self::Sgd { .. } => sgd::momentum,
            Self::Adam { .. } | Self::AdamW { .. } => adam::update,
        }
    }
}

/// One update by a rule, at a rate and a step.
pub(crate) type Update<T> = fn(Rule, (T, u32), p: &mut [T], g: &[T], &mut [T], &mut [T]);

/// What Adam's means, which start at 0, are corrected by at step t, counted from 1 (0 is taken as 1):
/// `[rate / (1 - beta1^t), sqrt(1 - beta2^t)]`.
///
/// ```
/// let [rate, root] = sepal_core::optim::corrections([0.5, 0.75], 0.1, 2);
/// assert_eq!((rate, root), (0.1 / 0.75, 0.4375_f64.sqrt()));
/// ```
pub fn corrections([beta1, beta2]: [f32; 2], rate: f64, step: u32) -> [f64; 2] {
    let rest = |beta: f32| 1.0 - power(f64::from(beta), step.max(1));
    [rate / rest(beta1), libm::sqrt(rest(beta2))]
}

/// `base^exponent` by repeated squaring: a tenth of the code of a power of any number.
pub(crate) fn power(base: f64, exponent: u32) -> f64 {
    let (mut power, mut square, mut left) = (1.0, base, exponent);
    while left > 0 {
        if left % 2 == 1 {
            power *= square;
        }
        square *= square;
        left /= 2;
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    pub(super) const RULES: &[Rule] = &[
        Rule::sgd(),
        Rule::Sgd { momentum: 0.0, nesterov: true, weight_decay: 0.125 },
        Rule::Sgd { momentum: 0.75, nesterov: false, weight_decay: 0.0 },
        Rule::Sgd { momentum: 0.75, nesterov: true, weight_decay: 0.125 },
        Rule::adam(),
        Rule::Adam { beta1: 0.5, beta2: 0.75, eps: 0.125, weight_decay: 0.25 },
        Rule::adamw(0.01),
        Rule::AdamW { beta1: 0.0, beta2: 0.875, eps: 1e-3, weight_decay: 0.5 },
    ];

    /// Runs a rule over given gradients.
    fn run<T: Real>(rule: Rule, rate: T, p: &mut [T], gradients: &[Vec<T>]) {
        let state = std::vec![T::ZERO; p.len()];
        let (mut first, mut second) = (state.clone(), state);
        let slots = rule.slots();
        let first: &mut [T] = if slots > 0 { &mut first } else { &mut [] };
        let second: &mut [T] = if slots > 1 { &mut second } else { &mut [] };
        for (step, g) in (1..).zip(gradients) {
            rule.update(rate, step, p, g, first, second);
        }
    }

    /// The same from the closed forms: each mean is a weighted sum over all gradients so far.
    fn golden(rule: Rule, rate: f64, p: f64, gradients: &[f64]) -> f64 {
        let (mut p, mut seen) = (p, std::vec![]);
        let sum = |seen: &[f64], decay: f64, f: fn(f64) -> f64| -> f64 {
            let ages = (0..seen.len() as i32).rev();
            ages.zip(seen).map(|(age, &g)| decay.powi(age) * f(g)).sum()
        };
        for &g in gradients {
            match rule {
                Rule::Sgd { momentum, nesterov, weight_decay } => {
                    let momentum = f64::from(momentum);
                    seen.push(g + f64::from(weight_decay) * p);
                    let buffer = sum(&seen, momentum, |g| g);
                    let ahead = seen.last().unwrap() + momentum * buffer;
                    p -= rate * if nesterov { ahead } else { buffer };
                }
                Rule::Adam { beta1, beta2, eps, weight_decay }
                | Rule::AdamW { beta1, beta2, eps, weight_decay } => {
                    let [beta1, beta2, eps, decay] =
                        [beta1, beta2, eps, weight_decay].map(f64::from);
                    if matches!(rule, Rule::Adam { .. }) {
                        seen.push(g + decay * p);
                    } else {
                        seen.push(g);
                        p -= rate * decay * p;
                    }
                    let weights = std::vec![1.0; seen.len()];
                    let mean = sum(&seen, beta1, |g| g) / sum(&weights, beta1, |g| g);
                    let square = sum(&seen, beta2, |g| g * g) / sum(&weights, beta2, |g| g);
                    p -= rate * mean / (square.sqrt() + eps);
                }
            }
        }
        p
    }

    #[test]
    fn every_rule_is_its_closed_form() {
        const LEN: usize = 5;
        for &rule in RULES {
            let start = values(1, LEN as u32);
            let gradients: Vec<Vec<f64>> = (0..30).map(|t| values(100 + t, LEN as u32)).collect();
            for steps in [1, 2, 3, 30] {
                let mut p = start.clone();
                run(rule, 0.0625, &mut p, &gradients[..steps]);
                let expected: Vec<f64> = (0..LEN)
                    .map(|i| {
                        let g: Vec<f64> = gradients[..steps].iter().map(|g| g[i]).collect();
                        golden(rule, 0.0625, start[i], &g)
                    })
                    .collect();
                check::close(&p, &expected, 1e-13);

                let narrow = |v: &Vec<f64>| v.iter().map(|&x| x as f32).collect::<Vec<_>>();
                let mut p = narrow(&start);
                let gradients: Vec<_> = gradients[..steps].iter().map(narrow).collect();
                run(rule, 0.0625, &mut p, &gradients);
                let p: Vec<f64> = p.into_iter().map(f64::from).collect();
                check::close(&p, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn powers_are_products() {
        for base in [0.0, 0.5, 0.9, 0.999, 1.5] {
            for exponent in [0, 1, 2, 3, 7, 64, 1000, 65_537] {
                let expected = libm::pow(base, f64::from(exponent));
                let (got, close) = (power(base, exponent), 1e-15 * f64::from(exponent.max(1)));
                let same = got == expected || (got - expected).abs() <= close * expected.abs();
                assert!(same, "{base}^{exponent}: {got}, not {expected}");
            }
        }
        assert_eq!((power(0.999_999, u32::MAX), power(1.5, u32::MAX)), (0.0, f64::INFINITY));
    }

    #[test]
    fn slots_are_what_the_rule_remembers() {
        let slots: Vec<usize> = RULES.iter().map(|rule| rule.slots()).collect();
        assert_eq!(slots, [0, 0, 1, 1, 2, 2, 2, 2]);
    }

    #[test]
    fn zero_stays_zero() {
        for &rule in RULES {
            let mut p = [0.0_f32; 3];
            run(rule, 0.1, &mut p, &std::vec![std::vec![0.0; 3]; 20]);
            assert_eq!(p, [0.0; 3], "{rule:?}");
        }
    }

    #[test]
    fn nothing_to_update_is_no_step() {
        for &rule in RULES {
            rule.update::<f32>(0.1, 1, &mut [], &[], &mut [], &mut []);
        }
    }

    /// f = sum k_i p_i^2 / 2 with curvatures 1, 3 and 0.5.
    #[test]
    fn every_rule_finds_the_minimum_of_a_quadratic() {
        for &rule in RULES {
            let mut p = [1.0_f32, -2.0, 0.5];
            let (mut first, mut second) = ([0.0; 3], [0.0; 3]);
            for step in 1..=2000 {
                let g = [p[0], 3.0 * p[1], 0.5 * p[2]];
                let rate = 0.05 * (1.0 - step as f32 / 2000.0);
                rule.update(rate, step, &mut p, &g, &mut first, &mut second);
            }
            assert!(p.iter().all(|p| p.abs() < 1e-3), "{rule:?}: {p:?}");
        }
    }
}
