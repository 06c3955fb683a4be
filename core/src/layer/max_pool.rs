//! Maxima of windows.

use super::{Window, rows};
use crate::real::Real;
use crate::shape::Shape;

/// The largest number in each position of a window.
///
/// ```text
/// y[n,c,p,q] = max_{r,s} x[n, c, p sh + r - ph, q sw + s - pw]
/// ```
/// over the places (r, s) inside the image: padding never wins. Of equal numbers the first in
/// row order wins. A NaN wins over every number, the first of several over the others, as in
/// PyTorch: a broken activation stays visible.
///
/// Shapes: x (N, C, H, W), y (N, C, P, Q) as [`Window::output`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MaxPool {
    /// At most 255 places, and less padding than kernel on either axis.
    pub window: Window,
}

/// No winner yet; a place is at most 254.
const UNSET: u8 = u8::MAX;

impl MaxPool {
    /// A square window that moves by its own size.
    ///
    /// ```
    /// use sepal_core::{layer::MaxPool, shape::Shape};
    /// let (pool, shape) = (MaxPool::new(2), Shape::new(1, 1, 2, 2));
    /// let (mut y, mut winner) = ([0.0f32], [0]);
    /// pool.forward(shape, &[1.0, 4.0, 3.0, 2.0], &mut y, Some(&mut winner));
    /// assert_eq!((y, winner), ([4.0], [1]));
    /// ```
    pub const fn new(size: u8) -> Self {
        Self { window: Window::square(size) }
    }

    /// The output's shape; `None` where the window does not fit the padded image, has more than
    /// 255 places (a winner is one byte), or could lie in the padding alone.
    pub const fn output(self, x: Shape) -> Option<Shape> {
        let Window { kernel, pad, .. } = self.window;
        if pad.0 >= kernel.0 || pad.1 >= kernel.1 || kernel.0 as u32 * kernel.1 as u32 > 255 {
            return None;
        }
        self.window.output(x)
    }

    /// Writes `y` and, where it is wanted, `winner`: for each y the place r S + s within the
    /// window of S columns that it came from.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], y: &mut [T], winner: Option<&mut [u8]>) {
        let Some(out) = self.output(shape) else { return };
        let (x_plane, y_plane) = planes(shape, out);
        y.fill(-T::INFINITY);
        let planes = x.chunks_exact(x_plane).zip(y.chunks_exact_mut(y_plane));
        let Some(winner) = winner else {
            for (x, y) in planes {
                for tap in 0..self.taps() {
                    for (x, y) in rows(self.window, usize::from(tap), shape, out).pairs_mut(x, y) {
                        for (x, y) in x.zip(y) {
                            if beats(*x, *y) {
                                *y = *x;
                            }
                        }
                    }
                }
            }
            return;
        };
        winner.fill(UNSET);
        for ((x, y), winner) in planes.zip(winner.chunks_exact_mut(y_plane)) {
            for tap in 0..self.taps() {
                let rows = rows(self.window, usize::from(tap), shape, out);
                for ((x, y), (_, winner)) in rows.pairs_mut(x, y).zip(rows.pairs_mut(x, winner)) {
                    for ((x, y), winner) in x.zip(y).zip(winner) {
                        // A window of negative infinities has a winner too: its first.
                        if beats(*x, *y) || *winner == UNSET {
                            (*y, *winner) = (*x, tap);
                        }
                    }
                }
            }
        }
    }

    /// Overwrites `dx`: each dy goes to the place that won, and places that won several
    /// overlapping windows get the sum.
    pub fn backward<T: Real>(self, shape: Shape, winner: &[u8], dy: &[T], dx: &mut [T]) {
        let Some(out) = self.output(shape) else { return };
        let (x_plane, y_plane) = planes(shape, out);
        let (x_width, y_width) = (shape.w as usize, out.w.max(1) as usize);
        let Window { kernel, stride, pad } = self.window;
        let input = |out: usize, stride: u8, tap: u8, pad: u8| {
            (out * usize::from(stride) + usize::from(tap)).saturating_sub(usize::from(pad))
        };
        let columns = kernel.1.max(1);
        dx.fill(T::ZERO);
        let planes = dx.chunks_exact_mut(x_plane).zip(dy.chunks_exact(y_plane));
        for ((dx, dy), winner) in planes.zip(winner.chunks_exact(y_plane)) {
            for (at, (&dy, &winner)) in dy.iter().zip(winner).enumerate() {
                let row = input(at / y_width, stride.0, winner / columns, pad.0);
                let column = input(at % y_width, stride.1, winner % columns, pad.1);
                if let Some(dx) = dx.get_mut(row * x_width + column) {
                    *dx += dy;
                }
            }
        }
    }

    fn taps(self) -> u8 {
        self.window.kernel.0.saturating_mul(self.window.kernel.1)
    }
}

fn planes(x: Shape, y: Shape) -> (usize, usize) {
    (x.plane().max(1) as usize, y.plane().max(1) as usize)
}

/// Whether x is larger: a NaN is larger than every number.
pub(super) fn beats<T: Real>(x: T, best: T) -> bool {
    x > best || (x.is_nan() && !best.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const CASES: &[(Shape, MaxPool)] = &[
        (Shape::new(2, 3, 4, 6), MaxPool::new(2)),
        (Shape::new(1, 1, 1, 1), MaxPool::new(1)),
        (Shape::new(2, 1, 5, 7), MaxPool::new(2)),
        (
            Shape::new(2, 2, 7, 5),
            MaxPool { window: Window { kernel: (3, 3), stride: (2, 1), pad: (1, 2) } },
        ),
        (
            Shape::new(1, 2, 1, 9),
            MaxPool { window: Window { kernel: (1, 2), stride: (1, 3), pad: (0, 1) } },
        ),
        (
            Shape::new(1, 1, 15, 17),
            MaxPool { window: Window { kernel: (15, 17), stride: (1, 1), pad: (14, 0) } },
        ),
    ];

    /// The definition: the maximum of each window and its place.
    fn brute(pool: MaxPool, s: Shape, x: &[f64]) -> (Vec<f64>, Vec<u8>) {
        let (out, w) = (pool.output(s).unwrap(), pool.window);
        let (mut y, mut winner) = (std::vec![], std::vec![]);
        for plane in x.chunks(s.plane() as usize) {
            for at in 0..out.plane() {
                let mut best: Option<(f64, u8)> = None;
                for tap in 0..u32::from(w.kernel.0) * u32::from(w.kernel.1) {
                    let i = (at / out.w * u32::from(w.stride.0) + tap / u32::from(w.kernel.1))
                        .wrapping_sub(u32::from(w.pad.0));
                    let j = (at % out.w * u32::from(w.stride.1) + tap % u32::from(w.kernel.1))
                        .wrapping_sub(u32::from(w.pad.1));
                    if i < s.h && j < s.w {
                        let x = plane[(i * s.w + j) as usize];
                        if best.is_none_or(|(y, _)| x > y || (x.is_nan() && !y.is_nan())) {
                            best = Some((x, tap as u8));
                        }
                    }
                }
                let (max, tap) = best.unwrap();
                y.push(max);
                winner.push(tap);
            }
        }
        (y, winner)
    }

    fn run(pool: MaxPool, s: Shape, x: &[f64]) -> (Vec<f64>, Vec<u8>) {
        let out = pool.output(s).unwrap().len().unwrap() as usize;
        let (mut y, mut winner) = (std::vec![f64::NAN; out], std::vec![77; out]);
        pool.forward(s, x, &mut y, Some(&mut winner));
        let mut alone = std::vec![f64::NAN; out];
        pool.forward(s, x, &mut alone, None);
        let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&y), bits(&alone), "y depends on whether winners are wanted");
        (y, winner)
    }

    #[test]
    fn forward_is_the_definition() {
        for &(s, pool) in CASES {
            let x = values(1, s.len().unwrap());
            assert_eq!(run(pool, s, &x), brute(pool, s, &x));
            // Three values only: ties in nearly every window.
            let ties: Vec<f64> = x.iter().map(|x| (x * 1.5).round()).collect();
            assert_eq!(run(pool, s, &ties), brute(pool, s, &ties));
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        for &(s, pool) in CASES {
            let out = pool.output(s).unwrap().len().unwrap() as usize;
            check::gradient(
                &[values(1, s.len().unwrap())],
                out,
                |[x], y| pool.forward(s, x, y, None),
                |[x], dy, [dx]| {
                    let (_, winner) = run(pool, s, x);
                    dx.fill(f64::NAN);
                    pool.backward(s, &winner, dy, dx);
                },
            );
        }
    }

    #[test]
    fn the_first_nan_wins() {
        let (s, nan) = (Shape::new(1, 1, 2, 2), f64::NAN);
        let (y, winner) = run(MaxPool::new(2), s, &[9.0, nan, nan, 10.0]);
        assert!(y[0].is_nan());
        assert_eq!(winner, [1]);
        let (y, winner) = run(MaxPool::new(2), s, &[nan, f64::INFINITY, 1.0, 10.0]);
        assert!(y[0].is_nan());
        assert_eq!(winner, [0]);
    }

    /// Padding is no number: it neither wins nor takes a gradient from negative infinity.
    #[test]
    fn padding_never_wins() {
        let pool = MaxPool { window: Window { kernel: (3, 3), stride: (1, 1), pad: (2, 2) } };
        let s = Shape::new(1, 1, 1, 1);
        for x in [-5.0, f64::NEG_INFINITY] {
            let (y, winner) = run(pool, s, &[x]);
            assert_eq!(y, [x; 9]);
            assert_eq!(winner, [8, 7, 6, 5, 4, 3, 2, 1, 0]);
            let mut dx = [f64::NAN];
            pool.backward(s, &winner, &[1.0; 9], &mut dx);
            assert_eq!(dx, [9.0]);
        }
    }

    #[test]
    fn impossible_windows_have_no_output() {
        let s = Shape::new(1, 1, 20, 20);
        let with = |kernel, pad| MaxPool { window: Window { kernel, stride: (1, 1), pad } };
        assert!(with((15, 17), (0, 0)).output(s).is_some());
        assert_eq!(with((16, 16), (0, 0)).output(s), None);
        assert_eq!(with((2, 2), (2, 0)).output(s), None);
        assert_eq!(with((2, 2), (0, 2)).output(s), None);
        assert_eq!(with((0, 2), (0, 0)).output(s), None);
        assert_eq!(MaxPool::new(3).output(Shape::new(1, 1, 2, 3)), None);
    }
}
