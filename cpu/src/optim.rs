//! Updates of parameters: the reference's operations in its order, a vector at a time. Nothing is
//! fused or rounded otherwise, so the bits are the reference's.

use rayon::prelude::*;
use sepal_core::optim::{Rule, corrections};

use crate::arch::{Instructions, Isa, Kernel, Simd};

/// Parameters that one task updates.
const PIECE: usize = 1 << 13;

/// [`Rule::update`], in parallel.
pub(crate) fn update(
    with: Instructions,
    rule: Rule,
    (rate, update): (f32, u32),
    p: &mut [f32],
    g: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let step = Step::new(rule, rate, update);
    let pieces = p.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE));
    match step {
        Step::Plain { rate, decay } => pieces.for_each(|(p, g)| {
            with.run(Plain { rate, decay, p, g });
        }),
        Step::Momentum(momentum) => {
            pieces.zip(first.par_chunks_mut(PIECE)).for_each(|((p, g), b)| {
                with.run(Momentum { step: momentum, p, g, b });
            });
        }
        Step::Adam(adam) => {
            let state = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
            pieces
                .zip(state)
                .for_each(|((p, g), (m, v))| with.run(Adam { step: adam, p, g, m, v }));
        }
    }
}

/// The numbers that all parameters share.
#[derive(Clone, Copy)]
enum Step {
    Plain { rate: f32, decay: f32 },
    Momentum(MomentumStep),
    Adam(AdamStep),
}

#[derive(Clone, Copy)]
struct MomentumStep {
    rate: f32,
    decay: f32,
    momentum: f32,
    nesterov: bool,
    /// Whether the buffer holds nothing yet.
    first: bool,
}

#[derive(Clone, Copy)]
struct AdamStep {
    /// What p is multiplied by.
    keep: f32,
    /// The share of p that is added to its gradient.
    decay: f32,
    /// 1 - beta1.
    mean_share: f32,
    beta2: f32,
    /// 1 - beta2.
    square_share: f32,
    eps: f32,
    /// rate / (1 - beta1^t).
    rate: f32,
    /// sqrt(1 - beta2^t).
    root: f32,
}

impl Step {
    fn new(rule: Rule, rate: f32, update: u32) -> Self {
        match rule {
            Rule::Sgd { momentum: 0.0, weight_decay, .. } => {
                Self::Plain { rate, decay: weight_decay }
            }
            Rule::Sgd { momentum, nesterov, weight_decay } => Self::Momentum(MomentumStep {
                rate,
                decay: weight_decay,
                momentum,
                nesterov,
                first: update <= 1,
            }),
            Rule::Adam { beta1, beta2, eps, weight_decay } => {
                let adam = AdamStep::new([beta1, beta2, eps], rate, update);
                Self::Adam(AdamStep { decay: weight_decay, ..adam })
            }
            Rule::AdamW { beta1, beta2, eps, weight_decay } => {
                let keep = (1.0 - f64::from(rate) * f64::from(weight_decay)) as f32;
                Self::Adam(AdamStep { keep, ..AdamStep::new([beta1, beta2, eps], rate, update) })
            }
        }
    }
}

impl AdamStep {
    /// Computes in `f64`, as the reference does.
    fn new([beta1, beta2, eps]: [f32; 3], rate: f32, update: u32) -> Self {
        let [corrected, root] = corrections([beta1, beta2], rate.into(), update);
        let (beta1, beta2) = (f64::from(beta1), f64::from(beta2));
        Self {
            keep: 1.0,
            decay: 0.0,
            mean_share: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            square_share: (1.0 - beta2) as f32,
            eps,
            rate: corrected as f32,
            root: root as f32,
        }
    }
}

/// The numbers that fill no vector, filled up with zeros.
#[inline(always)]
fn padded(from: &[f32]) -> [f32; 16] {
    let mut last = [0.0; 16];
    last[..from.len()].copy_from_slice(from);
    last
}

struct Plain<'a> {
    rate: f32,
    decay: f32,
    p: &'a mut [f32],
    g: &'a [f32],
}

impl Kernel for Plain<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { rate, decay, p, g } = self;
        let whole = p.len() / I::Wide::LANES * I::Wide::LANES;
        let ((p, p_rest), (g, g_rest)) = (p.split_at_mut(whole), g.split_at(whole));
        plain(isa.wide(), rate, decay, p, g);
        let mut last = padded(p_rest);
        plain(isa.wide(), rate, decay, &mut last, &padded(g_rest));
        p_rest.copy_from_slice(&last[..p_rest.len()]);
    }
}

/// `p -= rate (g + decay p)`
#[inline(always)]
fn plain<S: Simd>(s: S, rate: f32, decay: f32, p: &mut [f32], g: &[f32]) {
    let (rate, decay) = (s.splat(rate), s.splat(decay));
    for (p, g) in p.chunks_exact_mut(S::LANES).zip(g.chunks_exact(S::LANES)) {
        let old = s.load(p);
        let g = s.add(s.load(g), s.mul(decay, old));
        s.store(s.sub(old, s.mul(rate, g)), p);
    }
}

struct Momentum<'a> {
    step: MomentumStep,
    p: &'a mut [f32],
    g: &'a [f32],
    b: &'a mut [f32],
}

impl Kernel for Momentum<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { step, p, g, b } = self;
        let whole = p.len() / I::Wide::LANES * I::Wide::LANES;
        let ((p, p_rest), (g, g_rest)) = (p.split_at_mut(whole), g.split_at(whole));
        let (b, b_rest) = b.split_at_mut(whole);
        momentum(isa.wide(), step, p, g, b);
        let (mut last, mut last_b) = (padded(p_rest), padded(b_rest));
        momentum(isa.wide(), step, &mut last, &padded(g_rest), &mut last_b);
        p_rest.copy_from_slice(&last[..p_rest.len()]);
        b_rest.copy_from_slice(&last_b[..b_rest.len()]);
    }
}

/// `b = g + decay p` at first, then `b = momentum b + g + decay p`; `p` follows.
#[inline(always)]
fn momentum<S: Simd>(s: S, step: MomentumStep, p: &mut [f32], g: &[f32], b: &mut [f32]) {
    let (rate, decay) = (s.splat(step.rate), s.splat(step.decay));
    let share = s.splat(step.momentum);
    let state = p.chunks_exact_mut(S::LANES).zip(b.chunks_exact_mut(S::LANES));
    for ((p, b), g) in state.zip(g.chunks_exact(S::LANES)) {
        let old = s.load(p);
        let g = s.add(s.load(g), s.mul(decay, old));
        let direction = if step.first { g } else { s.add(s.mul(share, s.load(b)), g) };
        s.store(direction, b);
        let ahead = if step.nesterov { s.add(g, s.mul(share, direction)) } else { direction };
        s.store(s.sub(old, s.mul(rate, ahead)), p);
    }
}

struct Adam<'a> {
    step: AdamStep,
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Kernel for Adam<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { step, p, g, m, v } = self;
        let whole = p.len() / I::Wide::LANES * I::Wide::LANES;
        let ((p, p_rest), (g, g_rest)) = (p.split_at_mut(whole), g.split_at(whole));
        let ((m, m_rest), (v, v_rest)) = (m.split_at_mut(whole), v.split_at_mut(whole));
        adam(isa.wide(), step, p, g, m, v);
        let (mut last, mut last_m, mut last_v) = (padded(p_rest), padded(m_rest), padded(v_rest));
        adam(isa.wide(), step, &mut last, &padded(g_rest), &mut last_m, &mut last_v);
        p_rest.copy_from_slice(&last[..p_rest.len()]);
        m_rest.copy_from_slice(&last_m[..m_rest.len()]);
        v_rest.copy_from_slice(&last_v[..v_rest.len()]);
    }
}

#[inline(always)]
fn adam<S: Simd>(s: S, step: AdamStep, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let (keep, decay) = (s.splat(step.keep), s.splat(step.decay));
    let (mean_share, beta2) = (s.splat(step.mean_share), s.splat(step.beta2));
    let (square_share, eps) = (s.splat(step.square_share), s.splat(step.eps));
    let (rate, root) = (s.splat(step.rate), s.splat(step.root));
    let state = m.chunks_exact_mut(S::LANES).zip(v.chunks_exact_mut(S::LANES));
    let pairs = p.chunks_exact_mut(S::LANES).zip(g.chunks_exact(S::LANES));
    for ((p, g), (m, v)) in pairs.zip(state) {
        let old = s.load(p);
        let g = s.add(s.load(g), s.mul(decay, old));
        let mean = s.load(m);
        let mean = s.add(mean, s.mul(mean_share, s.sub(g, mean)));
        let square = s.add(s.mul(beta2, s.load(v)), s.mul(s.mul(square_share, g), g));
        s.store(mean, m);
        s.store(square, v);
        let size = s.add(s.div(s.sqrt(square), root), eps);
        s.store(s.sub(s.mul(old, keep), s.div(s.mul(rate, mean), size)), p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::values;

    #[test]
    fn every_set_gives_the_bits_of_the_reference() {
        let sgd = |momentum, nesterov, weight_decay| Rule::Sgd { momentum, nesterov, weight_decay };
        let rules = [
            Rule::sgd(),
            sgd(0.0, false, 0.1),
            sgd(0.9, false, 0.0),
            sgd(0.9, false, 0.1),
            sgd(0.5, true, 0.1),
            Rule::adam(),
            Rule::Adam { beta1: 0.8, beta2: 0.99, eps: 1e-3, weight_decay: 0.1 },
            Rule::adamw(0.01),
        ];
        for len in [1, 7, 8, 9, 15, 16, 17, 100, PIECE, PIECE + 5] {
            for rule in rules {
                for with in Instructions::all() {
                    let slot = |index: usize| if rule.slots() > index { len } else { 0 };
                    let start = (values(1, len), vec![0.0; slot(0)], vec![0.0; slot(1)]);
                    let (mut expected, mut got) = (start.clone(), start);
                    for step in 1..=3 {
                        let g = values(1 + u64::from(step), len);
                        let (p, first, second) = &mut expected;
                        rule.update(0.01, step, p, &g, first, second);
                        let (p, first, second) = &mut got;
                        update(with, rule, (0.01, step), p, &g, first, second);
                    }
                    assert_eq!(got, expected, "{rule:?} {len} {with:?}");
                }
            }
        }
    }
}
