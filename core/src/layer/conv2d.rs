//! Two-dimensional convolution.

use super::{Tensors, Window, rows};
use crate::real::Real;
use crate::shape::Shape;

/// Cross-correlation of each sample with `filters` kernels, over `groups` groups of channels.
///
/// ```text
/// y[n,k,p,q] = b[k] + sum_{c,r,s} w[k,c,r,s] x[n, g(k) C/G + c, p sh + r - ph, q sw + s - pw]
/// ```
/// with `g(k) = k / (K/G)` and zero outside the image. A one-dimensional convolution has
/// `h == 1` and a kernel of one row; a depthwise one has `groups` equal to the channels.
///
/// Shapes: x (N, C, H, W), w (K, C/G, R, S), b (K), y (N, K, P, Q) with
/// `P = (H + 2 ph - R) / sh + 1` rounded down, Q alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Conv2d {
    /// Output channels, K.
    pub filters: u32,
    /// Rows and columns of the kernel, (R, S).
    pub kernel: (u8, u8),
    /// Steps down and across, (sh, sw).
    pub stride: (u8, u8),
    /// Zeros added above and below, left and right, (ph, pw).
    pub pad: (u8, u8),
    /// Groups of channels, G; divides both the channels and the filters.
    pub groups: u32,
    /// Whether b is there.
    pub bias: bool,
}

impl Conv2d {
    /// A square kernel with stride 1, no padding, one group and a bias.
    ///
    /// ```
    /// use sepal_core::{layer::Conv2d, shape::Shape};
    /// let conv = Conv2d { pad: (2, 2), ..Conv2d::new(6, 5) };
    /// assert_eq!(conv.output(Shape::new(1, 1, 28, 28)), Some(Shape::new(1, 6, 28, 28)));
    /// ```
    pub const fn new(filters: u32, kernel: u8) -> Self {
        Self {
            filters,
            kernel: (kernel, kernel),
            stride: (1, 1),
            pad: (0, 0),
            groups: 1,
            bias: true,
        }
    }

    /// The output's shape; `None` where the kernel is empty or larger than the padded image, a
    /// stride is 0, or the groups do not divide channels and filters.
    pub const fn output(self, x: Shape) -> Option<Shape> {
        if self.groups == 0
            || self.filters == 0
            || !x.c.is_multiple_of(self.groups)
            || !self.filters.is_multiple_of(self.groups)
        {
            return None;
        }
        match self.window().output(x) {
            Some(y) => Some(Shape { c: self.filters, ..y }),
            None => None,
        }
    }

    /// The lengths of w and b for inputs of shape `x`; `None` where they do not fit 32 bits.
    pub const fn tensors(self, x: Shape) -> Option<Tensors> {
        if self.groups == 0 {
            return None;
        }
        let kernel = self.kernel.0 as u32 * self.kernel.1 as u32;
        let (Some(fan_in), bias) =
            ((x.c / self.groups).checked_mul(kernel), if self.bias { self.filters } else { 0 })
        else {
            return None;
        };
        match fan_in.checked_mul(self.filters) {
            Some(weight) => Some(Tensors { weight, bias, ..Tensors::NONE }),
            None => None,
        }
    }

    /// The kernel's geometry.
    pub const fn window(self) -> Window {
        Window { kernel: self.kernel, stride: self.stride, pad: self.pad }
    }

    /// Writes `y`. `b` is empty without bias.
    ///
    /// Each y is the sum over (c, r, s) in this order, beginning with the bias.
    pub fn forward<T: Real>(self, shape: Shape, x: &[T], w: &[T], b: &[T], y: &mut [T]) {
        let Some(out) = self.output(shape) else { return };
        let g = Geometry::new(self, shape, out);
        for y in y.chunks_exact_mut(g.y_sample) {
            for (k, y) in y.chunks_exact_mut(g.y_plane).enumerate() {
                y.fill(b.get(k).copied().unwrap_or(T::ZERO));
            }
        }
        self.accumulate(shape, x, w, y);
    }

    /// As [`forward`](Self::forward) without a bias, added to `y`.
    pub(crate) fn accumulate<T: Real>(self, shape: Shape, x: &[T], w: &[T], y: &mut [T]) {
        let Some(out) = self.output(shape) else { return };
        let g = Geometry::new(self, shape, out);
        for (x, y) in x.chunks_exact(g.x_sample).zip(y.chunks_exact_mut(g.y_sample)) {
            let filters = y.chunks_exact_mut(g.y_plane).zip(w.chunks_exact(g.filter));
            for (k, (y, w)) in filters.enumerate() {
                for (x, w) in g.group(x, k).zip(w.chunks_exact(g.taps)) {
                    for (tap, &w) in w.iter().enumerate() {
                        for (x, y) in rows(self.window(), tap, shape, out).pairs_mut(x, y) {
                            for (x, y) in x.zip(y) {
                                *y += w * *x;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Adds to `dw` and `db` (empty without bias), overwrites `dx` where it is wanted.
    ///
    /// ```text
    /// dw[k,c,r,s] += sum_{n,p,q} dy[n,k,p,q] x[n,c,p sh + r - ph, q sw + s - pw]
    /// db[k]       += sum_{n,p,q} dy[n,k,p,q]
    /// dx[n,c,i,j]  = sum over all (k,r,s,p,q) that read x[n,c,i,j] of w[k,c,r,s] dy[n,k,p,q]
    /// ```
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub fn backward<T: Real>(
        self,
        shape: Shape,
        x: &[T],
        w: &[T],
        dy: &[T],
        mut dx: Option<&mut [T]>,
        dw: &mut [T],
        db: &mut [T],
    ) {
        if let Some(dx) = dx.as_deref_mut() {
            dx.fill(T::ZERO);
        }
        self.accumulate_gradients(shape, x, w, dy, dx, dw, db);
    }

    /// As [`backward`](Self::backward), added to `dx` too.
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub(crate) fn accumulate_gradients<T: Real>(
        self,
        shape: Shape,
        x: &[T],
        w: &[T],
        dy: &[T],
        mut dx: Option<&mut [T]>,
        dw: &mut [T],
        db: &mut [T],
    ) {
        let Some(out) = self.output(shape) else { return };
        let g = Geometry::new(self, shape, out);
        let samples = x.chunks_exact(g.x_sample).zip(dy.chunks_exact(g.y_sample));
        for (n, (x, dy)) in samples.enumerate() {
            for (k, (dy, dw)) in
                dy.chunks_exact(g.y_plane).zip(dw.chunks_exact_mut(g.filter)).enumerate()
            {
                if let Some(db) = db.get_mut(k) {
                    *db += dy.iter().fold(T::ZERO, |sum, &d| sum + d);
                }
                for (x, dw) in g.group(x, k).zip(dw.chunks_exact_mut(g.taps)) {
                    for (tap, dw) in dw.iter_mut().enumerate() {
                        let mut sum = T::ZERO;
                        for (x, dy) in rows(self.window(), tap, shape, out).pairs(x, dy) {
                            sum += x.zip(dy).fold(T::ZERO, |sum, (x, dy)| sum + *x * *dy);
                        }
                        *dw += sum;
                    }
                }
            }
            let Some(dx) = dx.as_deref_mut().and_then(|dx| dx.chunks_exact_mut(g.x_sample).nth(n))
            else {
                continue;
            };
            for (k, (dy, w)) in dy.chunks_exact(g.y_plane).zip(w.chunks_exact(g.filter)).enumerate()
            {
                for (dx, w) in g.group_mut(dx, k).zip(w.chunks_exact(g.taps)) {
                    for (tap, &w) in w.iter().enumerate() {
                        for (dx, dy) in rows(self.window(), tap, shape, out).pairs_into(dx, dy) {
                            for (dx, dy) in dx.zip(dy) {
                                *dx += w * *dy;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Lengths that the loops step by.
struct Geometry {
    x_sample: usize,
    x_plane: usize,
    x_group: usize,
    y_sample: usize,
    y_plane: usize,
    filters_per_group: usize,
    filter: usize,
    taps: usize,
}

impl Geometry {
    fn new(conv: Conv2d, x: Shape, y: Shape) -> Self {
        let x_plane = x.plane().max(1) as usize;
        let y_plane = y.plane().max(1) as usize;
        let groups = conv.groups.max(1);
        let channels = (x.c / groups).max(1) as usize;
        let taps = usize::from(conv.kernel.0) * usize::from(conv.kernel.1);
        Self {
            x_sample: (x.c as usize * x_plane).max(1),
            x_plane,
            x_group: (channels * x_plane).max(1),
            y_sample: (y.c as usize * y_plane).max(1),
            y_plane,
            filters_per_group: (conv.filters / groups).max(1) as usize,
            filter: (channels * taps).max(1),
            taps: taps.max(1),
        }
    }

    /// The planes of the channels that filter `k` reads.
    fn group<'a, T>(&self, x: &'a [T], k: usize) -> core::slice::ChunksExact<'a, T> {
        let group = x.chunks_exact(self.x_group).nth(k / self.filters_per_group);
        group.unwrap_or_default().chunks_exact(self.x_plane)
    }

    fn group_mut<'a, T>(&self, x: &'a mut [T], k: usize) -> core::slice::ChunksExactMut<'a, T> {
        let group = x.chunks_exact_mut(self.x_group).nth(k / self.filters_per_group);
        group.unwrap_or_default().chunks_exact_mut(self.x_plane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};

    const CASES: &[(Shape, Conv2d)] = &[
        (Shape::new(2, 3, 5, 7), Conv2d::new(4, 3)),
        (Shape::new(1, 1, 1, 1), Conv2d::new(1, 1)),
        (
            Shape::new(2, 4, 6, 5),
            Conv2d { pad: (2, 1), stride: (2, 3), groups: 2, ..Conv2d::new(6, 3) },
        ),
        (Shape::new(3, 2, 1, 9), Conv2d { kernel: (1, 3), pad: (0, 1), ..Conv2d::new(3, 3) }),
        (
            Shape::new(1, 3, 4, 4),
            Conv2d { groups: 3, bias: false, pad: (1, 1), ..Conv2d::new(3, 3) },
        ),
        (Shape::new(1, 2, 2, 3), Conv2d { pad: (3, 3), ..Conv2d::new(2, 4) }),
    ];

    /// The definition, one multiplication at a time.
    fn brute(conv: Conv2d, s: Shape, x: &[f64], w: &[f64], b: &[f64]) -> std::vec::Vec<f64> {
        let out = conv.output(s).unwrap();
        let (cg, kg) = (s.c / conv.groups, conv.filters / conv.groups);
        let mut y = std::vec![];
        for n in 0..out.n {
            for k in 0..out.c {
                for p in 0..out.h {
                    for q in 0..out.w {
                        let mut sum = b.get(k as usize).copied().unwrap_or(0.0);
                        for c in 0..cg {
                            for r in 0..u32::from(conv.kernel.0) {
                                for t in 0..u32::from(conv.kernel.1) {
                                    let i = (p * u32::from(conv.stride.0) + r)
                                        .wrapping_sub(u32::from(conv.pad.0));
                                    let j = (q * u32::from(conv.stride.1) + t)
                                        .wrapping_sub(u32::from(conv.pad.1));
                                    if i < s.h && j < s.w {
                                        let ch = k / kg * cg + c;
                                        let at = ((n * s.c + ch) * s.h + i) * s.w + j;
                                        let wt = ((k * cg + c) * u32::from(conv.kernel.0) + r)
                                            * u32::from(conv.kernel.1)
                                            + t;
                                        sum += w[wt as usize] * x[at as usize];
                                    }
                                }
                            }
                        }
                        y.push(sum);
                    }
                }
            }
        }
        y
    }

    #[test]
    fn forward_is_the_definition() {
        for &(s, conv) in CASES {
            let t = conv.tensors(s).unwrap();
            let (x, w, b) = (values(1, s.len().unwrap()), values(2, t.weight), values(3, t.bias));
            let mut y = std::vec![f64::NAN; conv.output(s).unwrap().len().unwrap() as usize];
            conv.forward(s, &x, &w, &b, &mut y);
            check::close(&y, &brute(conv, s, &x, &w, &b), 1e-12);
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        for &(s, conv) in CASES {
            let t = conv.tensors(s).unwrap();
            let out = conv.output(s).unwrap().len().unwrap() as usize;
            let inputs = [values(1, s.len().unwrap()), values(2, t.weight), values(3, t.bias)];
            check::gradient(
                &inputs,
                out,
                |[x, w, b], y| conv.forward(s, x, w, b, y),
                |[x, w, _], dy, [dx, dw, db]| conv.backward(s, x, w, dy, Some(dx), dw, db),
            );
        }
    }

    #[test]
    fn parameter_gradients_accumulate_and_dx_is_optional() {
        let (s, conv) = CASES[0];
        let t = conv.tensors(s).unwrap();
        let (x, w) = (values(1, s.len().unwrap()), values(2, t.weight));
        let dy = values(4, conv.output(s).unwrap().len().unwrap());
        let (mut dw, mut db) = (values(5, t.weight), values(6, t.bias));
        let (dw0, db0) = (dw.clone(), db.clone());
        conv.backward(s, &x, &w, &dy, None, &mut dw, &mut db);
        let (mut dw1, mut db1) = (std::vec![0.0; dw.len()], std::vec![0.0; db.len()]);
        conv.backward(s, &x, &w, &dy, None, &mut dw1, &mut db1);
        check::close(
            &dw,
            &dw0.iter().zip(&dw1).map(|(a, b)| a + b).collect::<std::vec::Vec<_>>(),
            1e-12,
        );
        check::close(
            &db,
            &db0.iter().zip(&db1).map(|(a, b)| a + b).collect::<std::vec::Vec<_>>(),
            1e-12,
        );
    }

    /// <conv(x), y> = <x, conv'(y)>: backward data is the adjoint of forward without bias.
    #[test]
    fn backward_data_is_the_adjoint() {
        for &(s, conv) in CASES {
            let conv = Conv2d { bias: false, ..conv };
            let t = conv.tensors(s).unwrap();
            let out = conv.output(s).unwrap();
            let (x, w) = (values(1, s.len().unwrap()), values(2, t.weight));
            let dy = values(4, out.len().unwrap());
            let mut y = std::vec![0.0; dy.len()];
            conv.forward(s, &x, &w, &[], &mut y);
            let (mut dx, mut dw) = (std::vec![f64::NAN; x.len()], std::vec![0.0; w.len()]);
            conv.backward(s, &x, &w, &dy, Some(&mut dx), &mut dw, &mut []);
            check::close(&[check::dot(&y, &dy)], &[check::dot(&x, &dx)], 1e-12);
        }
    }

    #[test]
    fn impossible_shapes_have_no_output() {
        let s = Shape::new(1, 3, 4, 4);
        assert_eq!(Conv2d::new(2, 5).output(s), None);
        assert_eq!(Conv2d { stride: (0, 1), ..Conv2d::new(2, 3) }.output(s), None);
        assert_eq!(Conv2d { groups: 2, ..Conv2d::new(2, 3) }.output(s), None);
        assert_eq!(Conv2d { kernel: (0, 3), ..Conv2d::new(2, 3) }.output(s), None);
        assert_eq!(Conv2d::new(0, 3).output(s), None);
    }
}
