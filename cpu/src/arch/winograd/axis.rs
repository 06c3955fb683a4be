//! Minimal filtering along an axis, and the forms that pairs of axes make.
//!
//! M outputs of a kernel of R taps need T = M + R - 1 products: the input is seen as a polynomial,
//! the weights and the gradient of the output are taken at 0, at infinity, and at plus and minus
//! some numbers p. With the polynomials of Toom and Cook that vanish at all points but one,
//!
//! ```text
//! row of p          B': x (x + p) prod (x^2 - q^2)     G: p^j / N     A: p^j
//! row of 0          B': prod (q^2 - x^2)               G: 1 0 0 ..    A: 1 0 0 ..
//! row of infinity   B': x prod (x^2 - q^2)             G: .. 0 0 1    A: .. 0 0 1
//! ```
//! where q runs over the other pairs (in the last rows, over all) and N is the value of what B' has
//! at p. As points come in pairs, what is even in p and what is odd are computed once for both.

use crate::arch::{Isa, Kernel, Simd};

/// Pairs of points of an axis, at most.
const PAIRS: usize = 3;

/// Frequencies of an axis, at most.
pub(super) const MOST: usize = 2 + 2 * PAIRS;

/// Numbers along an axis, of which the first count.
pub(super) type Line<S> = [<S as Simd>::V; MOST];

/// The points of an axis but 0 and infinity.
#[derive(Clone, Copy)]
pub(crate) struct Points {
    pairs: usize,
    /// The positive one of each pair, the powers of its square, and 1 / N.
    root: [f32; PAIRS],
    squares: [[f32; PAIRS]; PAIRS],
    share: [f32; PAIRS],
    /// The product over all other pairs of x^2 minus their squares, and over all of their squares
    /// minus x^2: what belongs to each power of x^2.
    others: [[f32; PAIRS + 1]; PAIRS],
    all: [f32; PAIRS + 1],
}

impl Points {
    /// The points for T products. The product of the squares is 1, so that N of 0 is 1 too. With
    /// 1/2 and 2 as squares errors are a fourth of what 1 and 2 as points give.
    const fn new(t: usize) -> Self {
        let (near, far) = (core::f32::consts::FRAC_1_SQRT_2, core::f32::consts::SQRT_2);
        let (pairs, root, square) = match t {
            4 => (1, [1.0; PAIRS], [1.0; PAIRS]),
            6 => (2, [near, far, 0.0], [0.5, 2.0, 0.0]),
            8 => (3, [0.5, 1.0, 2.0], [0.25, 1.0, 4.0]),
            _ => (0, [0.0; PAIRS], [0.0; PAIRS]),
        };
        let mut points = Self {
            pairs,
            root,
            squares: [[1.0; PAIRS]; PAIRS],
            share: [0.0; PAIRS],
            others: [[0.0; PAIRS + 1]; PAIRS],
            all: [0.0; PAIRS + 1],
        };
        let mut k = 0;
        while k <= pairs {
            let mut product = [0.0; PAIRS + 1];
            product[0] = if k == pairs && pairs % 2 == 1 { -1.0 } else { 1.0 };
            let mut n = if k < pairs { 2.0 * square[k] } else { 0.0 };
            let mut other = 0;
            while other < pairs {
                if other != k {
                    let mut power = PAIRS;
                    while power > 0 {
                        product[power] = product[power - 1] - square[other] * product[power];
                        power -= 1;
                    }
                    product[0] *= -square[other];
                    if k < pairs {
                        n *= square[k] - square[other];
                    }
                }
                other += 1;
            }
            if k < pairs {
                points.squares[k] = [1.0, square[k], square[k] * square[k]];
                points.others[k] = product;
                points.share[k] = 1.0 / n;
            } else {
                points.all = product;
            }
            k += 1;
        }
        points
    }
}

/// One axis of a form.
pub(crate) trait Axis {
    /// Outputs of a tile.
    const M: usize;
    /// Taps of the kernel.
    const R: usize;
    /// Inputs of a tile, and frequencies.
    const T: usize = Self::M + Self::R - 1;
    /// Where the polynomials are taken.
    const POINTS: Points = Points::new(Self::T);
}

/// M outputs of a kernel of R taps.
pub(super) struct Filter<const M: usize, const R: usize>;

impl<const M: usize, const R: usize> Axis for Filter<M, R> {
    const M: usize = M;
    const R: usize = R;
}

/// B' d
#[inline(always)]
pub(super) fn spread<S: Simd, A: Axis>(s: S, d: Line<S>) -> Line<S> {
    if A::T == 1 {
        return d;
    }
    let (points, mut to) = (A::POINTS, [s.zero(); MOST]);
    to[0] = every_other(s, points.all, points.pairs, d, 0);
    for pair in 0..points.pairs {
        let even = every_other(s, points.others[pair], points.pairs - 1, d, 2);
        let odd = every_other(s, points.others[pair], points.pairs - 1, d, 1);
        let root = s.splat(points.root[pair]);
        to[1 + 2 * pair] = s.fma(root, odd, even);
        to[2 + 2 * pair] = s.fnma(root, odd, even);
    }
    let sign = if points.pairs % 2 == 0 { 1.0 } else { -1.0 };
    to[A::T - 1] = every_other(s, points.all.map(|x| sign * x), points.pairs, d, 1);
    to
}

/// The sum of every other number from `first` on with factors up to that of `degree`.
#[inline(always)]
fn every_other<S: Simd>(
    s: S,
    factors: [f32; PAIRS + 1],
    degree: usize,
    d: Line<S>,
    first: usize,
) -> S::V {
    let mut sum = s.mul(s.splat(factors[degree]), d[first + 2 * degree]);
    for power in (0..degree).rev() {
        sum = s.fma(s.splat(factors[power]), d[first + 2 * power], sum);
    }
    sum
}

/// A polynomial of `len` numbers at every point; divided by N where it is a `share`.
#[inline(always)]
fn at_points<S: Simd, A: Axis>(s: S, x: Line<S>, len: usize, share: bool) -> Line<S> {
    if A::T == 1 {
        return x;
    }
    let (points, mut to) = (A::POINTS, [s.zero(); MOST]);
    to[0] = x[0];
    for pair in 0..points.pairs {
        let share = if share { points.share[pair] } else { 1.0 };
        let mut even = s.mul(s.splat(share), x[0]);
        for at in (2..len).step_by(2) {
            even = s.fma(s.splat(share * points.squares[pair][at / 2]), x[at], even);
        }
        let mut odd = x[1];
        for at in (3..len).step_by(2) {
            odd = s.fma(s.splat(points.squares[pair][at / 2]), x[at], odd);
        }
        let root = s.splat(share * points.root[pair]);
        to[1 + 2 * pair] = s.fma(root, odd, even);
        to[2 + 2 * pair] = s.fnma(root, odd, even);
    }
    to[A::T - 1] = x[len - 1];
    to
}

/// The transposed of [`at_points`].
#[inline(always)]
fn from_points<S: Simd, A: Axis>(s: S, x: Line<S>, len: usize, share: bool) -> Line<S> {
    if A::T == 1 {
        return x;
    }
    let (points, mut to) = (A::POINTS, [s.zero(); MOST]);
    let (mut even, mut odd) = ([s.zero(); PAIRS], [s.zero(); PAIRS]);
    for pair in 0..points.pairs {
        let (plus, minus) = (x[1 + 2 * pair], x[2 + 2 * pair]);
        even[pair] = s.add(plus, minus);
        odd[pair] = s.mul(s.splat(points.root[pair]), s.sub(plus, minus));
    }
    to[0] = x[0];
    to[len - 1] = x[A::T - 1];
    for at in 0..len {
        for pair in 0..points.pairs {
            let share = if share { points.share[pair] } else { 1.0 };
            let factor = s.splat(share * points.squares[pair][at / 2]);
            let value = if at % 2 == 0 { even[pair] } else { odd[pair] };
            to[at] = match pair == 0 && at > 0 && at < len - 1 {
                true => s.mul(factor, value),
                false => s.fma(factor, value, to[at]),
            };
        }
    }
    to
}

/// A' m
#[inline(always)]
pub(super) fn gather<S: Simd, A: Axis>(s: S, m: Line<S>) -> Line<S> {
    from_points::<S, A>(s, m, A::M, false)
}

/// A y
#[inline(always)]
pub(super) fn scatter<S: Simd, A: Axis>(s: S, y: Line<S>) -> Line<S> {
    at_points::<S, A>(s, y, A::M, false)
}

/// G w
#[inline(always)]
pub(super) fn weigh<S: Simd, A: Axis>(s: S, w: Line<S>) -> Line<S> {
    at_points::<S, A>(s, w, A::R, true)
}

/// G' d
#[inline(always)]
pub(super) fn unweigh<S: Simd, A: Axis>(s: S, d: Line<S>) -> Line<S> {
    from_points::<S, A>(s, d, A::R, true)
}

/// A size of kernels and of tiles of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// 4x4 outputs of a kernel of 3x3.
    Four,
    /// 2x2 outputs of a kernel of 3x3.
    Two,
    /// 2x4 outputs of a kernel of 5x5.
    Five,
    /// 1x6 outputs of a kernel of 1x3.
    Row,
    /// 6x1 outputs of a kernel of 3x1.
    Column,
}

impl Form {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Four, Self::Two, Self::Five, Self::Row, Self::Column];

    /// Rows and columns of outputs of a tile.
    pub(crate) const fn tile(self) -> (usize, usize) {
        match self {
            Self::Four => (4, 4),
            Self::Two => (2, 2),
            Self::Five => (2, 4),
            Self::Row => (1, 6),
            Self::Column => (6, 1),
        }
    }

    /// Rows and columns of the kernel.
    pub(crate) const fn kernel(self) -> (usize, usize) {
        match self {
            Self::Four | Self::Two => (3, 3),
            Self::Five => (5, 5),
            Self::Row => (1, 3),
            Self::Column => (3, 1),
        }
    }

    /// Taps of the kernel.
    pub(crate) const fn taps(self) -> usize {
        self.kernel().0 * self.kernel().1
    }

    /// Frequencies of a tile.
    pub(crate) const fn frequencies(self) -> usize {
        let ((m, n), (r, s)) = (self.tile(), self.kernel());
        (m + r - 1) * (n + s - 1)
    }

    /// Whether these are its axes.
    pub(super) fn has<D: Axis, A: Axis>(self) -> bool {
        self.tile() == (D::M, A::M) && self.kernel() == (D::R, A::R)
    }
}

/// Taps and frequencies of a form, at most.
pub(super) const MOST_TAPS: usize = most().0;
pub(super) const MOST_FREQUENCIES: usize = most().1;

const fn most() -> (usize, usize) {
    let (mut at, mut taps, mut frequencies) = (0, 0, 0);
    while at < Form::ALL.len() {
        let form = Form::ALL[at];
        if form.taps() > taps {
            taps = form.taps();
        }
        if form.frequencies() > frequencies {
            frequencies = form.frequencies();
        }
        at += 1;
    }
    (taps, frequencies)
}

/// A kernel that is compiled once for each form.
pub(super) trait Formed: Sized {
    /// Which it is run for.
    fn form(&self) -> Form;

    /// Does the work, with the axis down and the axis across.
    fn run_axes<I: Isa, D: Axis, A: Axis>(self, isa: I);
}

impl<F: Formed> Kernel for F {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.form() {
            Form::Four => self.run_axes::<I, Filter<4, 3>, Filter<4, 3>>(isa),
            Form::Two => self.run_axes::<I, Filter<2, 3>, Filter<2, 3>>(isa),
            Form::Five => self.run_axes::<I, Filter<2, 5>, Filter<4, 5>>(isa),
            Form::Row => self.run_axes::<I, Filter<1, 1>, Filter<6, 3>>(isa),
            Form::Column => self.run_axes::<I, Filter<6, 3>, Filter<1, 1>>(isa),
        }
    }
}
