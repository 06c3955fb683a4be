//! Activations as vectors compute them, alone and within other kernels.

use rayon::prelude::*;
use sepal_core::layer::Activation;

use crate::arch::{Instructions, Isa, Kernel, Simd};
use crate::blocks::GRAIN;

/// What is done to each number, and to its gradient.
pub(crate) trait Act: Copy + Send + Sync {
    /// The function.
    fn forward<S: Simd>(self, s: S, x: S::V) -> S::V;
    /// The gradient of x, from the output and its gradient.
    fn backward<S: Simd>(self, s: S, y: S::V, g: S::V) -> S::V;
    /// The place that won y, with a mark of what y was.
    fn mark<S: Simd>(self, s: S, y: S::V, place: S::V) -> S::V;
    /// The place without its mark, and the gradient of x.
    fn unmark<S: Simd>(self, s: S, place: S::V, g: S::V) -> (S::V, S::V);
}

/// Places of a pool below this one can be marked.
pub(crate) const MARK: u8 = 128;

/// A mark alone: no gradient goes to any place.
const NOBODY: f32 = 255.0;

/// Nothing.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Act for Plain {
    #[inline(always)]
    fn forward<S: Simd>(self, _: S, x: S::V) -> S::V {
        x
    }

    #[inline(always)]
    fn backward<S: Simd>(self, _: S, _: S::V, g: S::V) -> S::V {
        g
    }

    #[inline(always)]
    fn mark<S: Simd>(self, _: S, _: S::V, place: S::V) -> S::V {
        place
    }

    #[inline(always)]
    fn unmark<S: Simd>(self, _: S, place: S::V, g: S::V) -> (S::V, S::V) {
        (place, g)
    }
}

/// Numbers from 0 to `top`, NaN for none.
#[derive(Clone, Copy)]
pub(crate) struct Clamp {
    pub(crate) top: f32,
}

impl Act for Clamp {
    #[inline(always)]
    fn forward<S: Simd>(self, s: S, x: S::V) -> S::V {
        // NaN stays: the second is taken where one is none. So does x where `top` is none.
        s.min(s.splat(self.top), s.max(s.zero(), x))
    }

    #[inline(always)]
    fn backward<S: Simd>(self, s: S, y: S::V, g: S::V) -> S::V {
        let low = s.select(s.equal(y, s.zero()), s.zero(), g);
        s.select(s.equal(y, s.splat(self.top)), s.zero(), low)
    }

    #[inline(always)]
    fn mark<S: Simd>(self, s: S, y: S::V, place: S::V) -> S::V {
        let low = s.select(s.equal(y, s.zero()), s.splat(NOBODY), place);
        s.select(s.equal(y, s.splat(self.top)), s.splat(NOBODY), low)
    }

    #[inline(always)]
    fn unmark<S: Simd>(self, s: S, place: S::V, g: S::V) -> (S::V, S::V) {
        (place, s.select(s.equal(place, s.splat(NOBODY)), s.zero(), g))
    }
}

/// Negative numbers times `slope`.
#[derive(Clone, Copy)]
pub(crate) struct Leaky {
    pub(crate) slope: f32,
}

impl Leaky {
    /// `low` where `y <= 0`, else `high`, which is taken for NaN.
    #[inline(always)]
    fn choose<S: Simd>(s: S, y: S::V, low: S::V, high: S::V) -> S::V {
        let below = s.select(s.less(y, s.zero()), low, high);
        s.select(s.equal(y, s.zero()), low, below)
    }
}

impl Act for Leaky {
    #[inline(always)]
    fn forward<S: Simd>(self, s: S, x: S::V) -> S::V {
        Self::choose(s, x, s.mul(s.splat(self.slope), x), x)
    }

    #[inline(always)]
    fn backward<S: Simd>(self, s: S, y: S::V, g: S::V) -> S::V {
        Self::choose(s, y, s.mul(s.splat(self.slope), g), g)
    }

    #[inline(always)]
    fn mark<S: Simd>(self, s: S, y: S::V, place: S::V) -> S::V {
        Self::choose(s, y, s.add(place, s.splat(f32::from(MARK))), place)
    }

    #[inline(always)]
    fn unmark<S: Simd>(self, s: S, place: S::V, g: S::V) -> (S::V, S::V) {
        let mark = s.splat(f32::from(MARK));
        let is_plain = s.less(place, mark);
        let low = s.mul(s.splat(self.slope), g);
        (s.select(is_plain, place, s.sub(place, mark)), s.select(is_plain, g, low))
    }
}

/// Evaluates an expression with `$act` as the [`Act`] of an `Option<Activation>`: `None` where
/// there is none, and for the hyperbolic tangent, which is no [`Act`].
macro_rules! with_act {
    ($activation:expr, $act:ident => $run:expr) => {
        match $activation {
            Some(sepal_core::layer::Activation::Relu) => {
                let $act = $crate::activation::Clamp { top: f32::NAN };
                $run
            }
            Some(sepal_core::layer::Activation::Relu6) => {
                let $act = $crate::activation::Clamp { top: 6.0 };
                $run
            }
            Some(sepal_core::layer::Activation::LeakyRelu { slope }) => {
                let $act = $crate::activation::Leaky { slope };
                $run
            }
            _ => {
                let $act = $crate::activation::Plain;
                $run
            }
        }
    };
}
pub(crate) use with_act;

/// [`Activation::forward`], in any layout.
pub(crate) fn forward(with: Instructions, activation: Activation, y: &mut [f32]) {
    y.par_chunks_mut(GRAIN).for_each(|y| match activation {
        Activation::Tanh => activation.forward(y),
        _ => with_act!(Some(activation), act => with.run(Forward { act, y })),
    });
}

/// [`Activation::backward`], in any layout.
pub(crate) fn backward(with: Instructions, activation: Activation, y: &[f32], g: &mut [f32]) {
    g.par_chunks_mut(GRAIN).zip(y.par_chunks(GRAIN)).for_each(|(g, y)| match activation {
        Activation::Tanh => activation.backward(y, g),
        _ => with_act!(Some(activation), act => with.run(Backward { act, y, g })),
    });
}

struct Forward<'a, A> {
    act: A,
    y: &'a mut [f32],
}

impl<A: Act> Kernel for Forward<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { act, .. } = self;
        let rest = self.vectors(isa.wide());
        let mut last = [0.0; 16];
        let count = rest.len();
        last[..count].copy_from_slice(rest);
        Forward { act, y: &mut last }.vectors(isa.wide());
        rest.copy_from_slice(&last[..count]);
    }
}

impl<'a, A: Act> Forward<'a, A> {
    /// Gives the numbers that fill no vector.
    #[inline(always)]
    fn vectors<S: Simd>(self, s: S) -> &'a mut [f32] {
        let mut vectors = self.y.chunks_exact_mut(S::LANES);
        for y in &mut vectors {
            s.store(self.act.forward(s, s.load(y)), y);
        }
        vectors.into_remainder()
    }
}

struct Backward<'a, A> {
    act: A,
    y: &'a [f32],
    g: &'a mut [f32],
}

impl<A: Act> Kernel for Backward<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { act, .. } = self;
        let (y, g) = self.vectors(isa.wide());
        let (mut last_y, mut last_g) = ([0.0; 16], [0.0; 16]);
        let count = g.len();
        last_y[..count].copy_from_slice(y);
        last_g[..count].copy_from_slice(g);
        Backward { act, y: &last_y, g: &mut last_g }.vectors(isa.wide());
        g.copy_from_slice(&last_g[..count]);
    }
}

impl<'a, A: Act> Backward<'a, A> {
    /// Gives the numbers that fill no vector.
    #[inline(always)]
    fn vectors<S: Simd>(self, s: S) -> (&'a [f32], &'a mut [f32]) {
        let ys = self.y.chunks_exact(S::LANES);
        let rest = ys.remainder();
        let mut gs = self.g.chunks_exact_mut(S::LANES);
        for (y, g) in ys.zip(&mut gs) {
            s.store(self.act.backward(s, s.load(y), s.load(g)), g);
        }
        (rest, gs.into_remainder())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::values;

    /// The same numbers as the reference, at the kinks too, whatever the length.
    #[test]
    fn every_set_agrees_with_the_reference() {
        let all = [
            Activation::Relu,
            Activation::Relu6,
            Activation::LeakyRelu { slope: 0.125 },
            Activation::LeakyRelu { slope: 0.0 },
            Activation::Tanh,
        ];
        let hard = [0.0, -0.0, 6.0, 7.0, f32::NAN, f32::INFINITY, -1.5];
        for len in [1, 7, 8, 9, 15, 16, 17, 33, GRAIN + 3] {
            let mut x: Vec<f32> = values(1, len).iter().map(|x| 8.0 * x).collect();
            x.iter_mut().zip(hard).for_each(|(x, hard)| *x = hard);
            let dy = values(2, len);
            for activation in all {
                let (mut y, mut g) = (x.clone(), dy.clone());
                activation.forward(&mut y);
                activation.backward(&y, &mut g);
                for with in Instructions::all() {
                    let (mut got, mut got_g) = (x.clone(), dy.clone());
                    forward(with, activation, &mut got);
                    backward(with, activation, &got, &mut got_g);
                    let same = |a: &f32, b: &f32| a == b || a.is_nan() && b.is_nan();
                    assert!(got.iter().zip(&y).all(|(a, b)| same(a, b)), "{with:?}");
                    assert!(got_g.iter().zip(&g).all(|(a, b)| same(a, b)), "{with:?}");
                }
            }
        }
    }
}
