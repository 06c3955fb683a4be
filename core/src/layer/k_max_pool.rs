//! The largest numbers of rows.

use super::max_pool::beats;
use crate::real::Real;
use crate::shape::Shape;

/// The k largest numbers of each row, in the order of their places.
///
/// ```text
/// y[n,c,h,i] = x[n, c, h, p_i],  p_1 < .. < p_k the places of the k largest of x[n,c,h,:]
/// ```
/// k-max pooling (Kalchbrenner, Grefenstette and Blunsom 2014, section 3.2): text of any length
/// becomes a number of features that is fixed, and their order is kept. Of equal numbers the first
/// in the row is taken. A NaN counts as larger than every number, as in
/// [`MaxPool`](super::MaxPool).
///
/// Shapes: x (N, C, H, W), y (N, C, H, k).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KMaxPool {
    /// Numbers that are kept of a row.
    pub k: u8,
}

impl KMaxPool {
    /// The output's shape; `None` where rows are shorter than k or longer than 65,536 (a place is
    /// two bytes), or k is 0.
    ///
    /// ```
    /// use sepal_core::{layer::KMaxPool, shape::Shape};
    /// let (pool, shape) = (KMaxPool { k: 2 }, Shape::new(1, 1, 1, 4));
    /// let (mut y, mut places) = ([0.0f32; 2], [0; 2]);
    /// pool.forward(shape, &[3.0, 1.0, 4.0, 3.0], &mut y, Some(&mut places));
    /// assert_eq!((y, places), ([3.0, 4.0], [0, 2]));
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        if self.k == 0 || x.w < self.k as u32 || x.w > 1 << 16 {
            return None;
        }
        Some(Shape { w: self.k as u32, ..x })
    }

    /// Writes `y` and, where they are wanted, `places`: for each y the place within its row that
    /// it came from.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], y: &mut [T], places: Option<&mut [u16]>) {
        let Some((width, k)) = self.lengths(shape) else { return };
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(k));
        match places {
            None => rows.for_each(|(x, y)| select(x, y, &mut [])),
            Some(places) => rows
                .zip(places.chunks_exact_mut(k))
                .for_each(|((x, y), places)| select(x, y, places)),
        }
    }

    /// Overwrites `dx`: each dy goes to the place that its y came from.
    pub fn backward<T: Real>(self, shape: Shape, places: &[u16], dy: &[T], dx: &mut [T]) {
        let Some((width, k)) = self.lengths(shape) else { return };
        dx.fill(T::ZERO);
        let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(k));
        for ((dx, dy), places) in rows.zip(places.chunks_exact(k)) {
            for (&dy, &place) in dy.iter().zip(places) {
                if let Some(dx) = dx.get_mut(usize::from(place)) {
                    *dx = dy;
                }
            }
        }
    }

    /// W and k.
    fn lengths(self, shape: Shape) -> Option<(usize, usize)> {
        let out = self.output(shape)?;
        Some((shape.w as usize, out.w as usize))
    }
}

/// Keeps the largest numbers read so far in `y`, in their order: one that beats the weakest of
/// them comes last, and the weakest goes.
fn select<T: Real>(x: &[T], y: &mut [T], places: &mut [u16]) {
    let (first, rest) = x.split_at(y.len().min(x.len()));
    y.iter_mut().zip(first).for_each(|(y, &x)| *y = x);
    places.iter_mut().zip(0..).for_each(|(place, at)| *place = at);
    let mut weakest = weakest_of(y);
    for (&x, at) in rest.iter().zip(first.len()..) {
        if y.get(weakest).is_some_and(|&y| beats(x, y)) {
            replace(y, weakest, x);
            replace(places, weakest, at as u16);
            weakest = weakest_of(y);
        }
    }
}

/// The place of the smallest, of equal ones the last.
fn weakest_of<T: Real>(y: &[T]) -> usize {
    let mut weakest = 0;
    for (at, &next) in y.iter().enumerate() {
        if y.get(weakest).is_some_and(|&y| !beats(next, y)) {
            weakest = at;
        }
    }
    weakest
}

/// Removes the value at a place; `by` becomes the last.
fn replace<T: Copy>(values: &mut [T], at: usize, by: T) {
    // One by one: firmware may have no function that moves memory.
    let mut next = by;
    for value in values.get_mut(at..).unwrap_or_default().iter_mut().rev() {
        core::mem::swap(value, &mut next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};
    use std::vec::Vec;

    const CASES: &[(Shape, KMaxPool)] = &[
        (Shape::new(2, 3, 1, 9), KMaxPool { k: 4 }),
        (Shape::new(1, 2, 3, 5), KMaxPool { k: 1 }),
        (Shape::new(2, 1, 2, 6), KMaxPool { k: 6 }),
        (Shape::new(1, 1, 1, 300), KMaxPool { k: 255 }),
    ];

    /// The definition: a stable sort by size, the first k of it sorted by place.
    fn brute(pool: KMaxPool, s: Shape, x: &[f64]) -> (Vec<f64>, Vec<u16>) {
        let (mut y, mut places) = (std::vec![], std::vec![]);
        for row in x.chunks(s.w as usize) {
            let mut order: Vec<u16> = (0..s.w as u16).collect();
            let size = |at: u16| {
                let x = row[usize::from(at)];
                // Zeros of both signs are equal, and NaN of either sign is the largest.
                if x.is_nan() { f64::NAN.abs() } else { x + 0.0 }
            };
            order.sort_by(|&a, &b| size(b).total_cmp(&size(a)));
            order.truncate(usize::from(pool.k));
            order.sort_unstable();
            y.extend(order.iter().map(|&at| row[usize::from(at)]));
            places.extend(order);
        }
        (y, places)
    }

    fn run(pool: KMaxPool, s: Shape, x: &[f64]) -> (Vec<f64>, Vec<u16>) {
        let out = pool.output(s).unwrap().len().unwrap() as usize;
        let (mut y, mut places) = (std::vec![f64::NAN; out], std::vec![777; out]);
        pool.forward(s, x, &mut y, Some(&mut places));
        let mut alone = std::vec![f64::NAN; out];
        pool.forward(s, x, &mut alone, None);
        let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&y), bits(&alone), "y depends on whether places are wanted");
        (y, places)
    }

    #[test]
    fn forward_is_the_definition() {
        for &(s, pool) in CASES {
            let x = values(1, s.len().unwrap());
            assert_eq!(run(pool, s, &x), brute(pool, s, &x));
            let ties: Vec<f64> = x.iter().map(|x| (x * 1.5).round()).collect();
            assert_eq!(run(pool, s, &ties), brute(pool, s, &ties));
            // NaN is not equal to itself: the places say which was taken.
            let hard: Vec<f64> = x
                .iter()
                .map(|x| [f64::NAN, f64::NEG_INFINITY, *x][(x.abs() * 3.0) as usize])
                .collect();
            assert_eq!(run(pool, s, &hard).1, brute(pool, s, &hard).1);
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
                    let (_, places) = run(pool, s, x);
                    dx.fill(f64::NAN);
                    pool.backward(s, &places, dy, dx);
                },
            );
        }
    }

    #[test]
    fn the_first_of_equals_and_every_nan_are_taken() {
        let (s, nan) = (Shape::new(1, 1, 1, 6), f64::NAN);
        let of = |k, x: &[f64; 6]| run(KMaxPool { k }, s, x).1;
        assert_eq!(of(2, &[1.0, 2.0, 2.0, 2.0, 0.0, 2.0]), [1, 2]);
        assert_eq!(of(3, &[0.0, -0.0, 0.0, 0.0, -0.0, 0.0]), [0, 1, 2]);
        assert_eq!(of(3, &[9.0, nan, f64::INFINITY, 1.0, nan, nan]), [1, 4, 5]);
        assert_eq!(of(2, &[nan, 3.0, nan, nan, 5.0, nan]), [0, 2]);
        assert_eq!(of(2, &[f64::NEG_INFINITY; 6]), [0, 1]);
    }

    #[test]
    fn impossible_rows_have_no_output() {
        let s = Shape::new(2, 3, 4, 8);
        assert_eq!(KMaxPool { k: 8 }.output(s), Some(s));
        assert_eq!(KMaxPool { k: 9 }.output(s), None);
        assert_eq!(KMaxPool { k: 0 }.output(s), None);
        assert!(KMaxPool { k: 1 }.output(Shape { w: 1 << 16, ..s }).is_some());
        assert_eq!(KMaxPool { k: 1 }.output(Shape { w: (1 << 16) + 1, ..s }), None);
    }
}
