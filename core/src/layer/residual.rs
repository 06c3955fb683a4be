//! Residual addition.

use super::{Conv2d, Tensors};
use crate::real::Real;
use crate::shape::Shape;

/// Adds what reaches the layer `back` places before: the shortcut around the layers between (He et
/// al., Deep residual learning for image recognition, CVPR 2016, Eq. 1 and 2).
///
/// ```text
/// y = x + s                                              without a projection
/// y[n,k,p,q] = x[n,k,p,q] + b[k] + sum_c w[k,c] s[n, c, p sh, q sw]         with one
/// ```
/// s is the input of the layer `back` places before this one, so that it spans `back` layers: the
/// branch, which gives x. It does not reach out of its block, because blocks learn alone.
///
/// Shapes: x and y (N, K, P, Q); s the same, or with a projection (N, C, H, W),
/// `P = (H - 1) / sh + 1` rounded down, Q alike, w (K, C), b (K).
///
/// ```
/// use sepal_core::layer::{Conv2d, Layer, Residual};
/// use sepal_core::net::{Input, Net, Normalisation};
/// use sepal_core::plan::PlanError;
/// use sepal_core::shape::Shape;
///
/// const SAME: Layer = Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(4, 3) });
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::new(1, 4, 8, 8), normalisation: Normalisation::NONE },
///     layers: &[SAME, SAME, Layer::Residual(Residual::new(2))],
///     blocks: &[3],
///     features: 1,
/// };
/// assert_eq!(NET.check(), Ok(()));
/// // What is added lies within the block.
/// let cut = Net { blocks: &[1, 3], ..NET };
/// assert_eq!(cut.check(), Err(PlanError::Source { layer: 2, back: 2 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Residual {
    /// How many layers it spans, at least 1.
    pub back: u8,
    /// What s goes through on its way; none where it is added as it is.
    pub project: Option<Projection>,
}

/// A convolution of one place with a bias: as many filters as the branch gives channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Projection {
    /// Channels of what is projected, C.
    pub channels: u32,
    /// Steps down and across, (sh, sw).
    pub stride: (u8, u8),
}

impl Projection {
    /// The convolution to `filters` channels.
    pub const fn conv(self, filters: u32) -> Conv2d {
        Conv2d { stride: self.stride, ..Conv2d::new(filters, 1) }
    }
}

impl Residual {
    /// The addition of what lies `back` layers before, as it is.
    pub const fn new(back: u8) -> Self {
        Self { back, project: None }
    }

    /// The output's shape: the input's; `None` where it spans no layer, or a stride is 0.
    pub const fn output(self, x: Shape) -> Option<Shape> {
        let possible = match self.project {
            Some(Projection { channels, stride }) => channels > 0 && stride.0 > 0 && stride.1 > 0,
            None => true,
        };
        if self.back > 0 && possible { Some(x) } else { None }
    }

    /// Whether `source` can be added to `x`.
    pub const fn takes(self, source: Shape, x: Shape) -> bool {
        let added = match self.project {
            Some(p) if p.channels == source.c => match p.conv(x.c).output(source) {
                Some(added) => added,
                None => return false,
            },
            Some(_) => return false,
            None => source,
        };
        added.n == x.n && added.c == x.c && added.h == x.h && added.w == x.w
    }

    /// The lengths of w and b; `None` where they do not fit 32 bits.
    pub const fn tensors(self, x: Shape) -> Option<Tensors> {
        match self.project {
            Some(p) => p.conv(x.c).tensors(Shape { c: p.channels, ..x }),
            None => Some(Tensors::NONE),
        }
    }

    /// Adds the source, of shape `shape`, to `y`, which holds x, of `filters` channels.
    pub fn forward<T: Real>(
        self,
        shape: Shape,
        filters: u32,
        source: &[T],
        w: &[T],
        b: &[T],
        y: &mut [T],
    ) {
        let Some(project) = self.project else {
            y.iter_mut().zip(source).for_each(|(y, &s)| *y += s);
            return;
        };
        let conv = project.conv(filters);
        let plane = conv.output(shape).map_or(1, |out| out.plane().max(1) as usize);
        let biases = b.iter().cycle();
        for (y, &b) in y.chunks_exact_mut(plane).zip(biases) {
            y.iter_mut().for_each(|y| *y += b);
        }
        conv.accumulate(shape, source, w, y);
    }

    /// Adds to `dw` and `db`, and to the source's gradient where it is wanted, which holds already
    /// what flows back through the branch. The branch's own share of `dy` is `dy`.
    ///
    /// ```text
    /// dw[k,c] += sum_{n,p,q} dy[n,k,p,q] s[n, c, p sh, q sw]
    /// db[k]   += sum_{n,p,q} dy[n,k,p,q]
    /// ds      += dy, or with a projection ds[n, c, p sh, q sw] += sum_k w[k,c] dy[n,k,p,q]
    /// ```
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub fn backward<T: Real>(
        self,
        shape: Shape,
        filters: u32,
        source: &[T],
        w: &[T],
        dy: &[T],
        ds: Option<&mut [T]>,
        dw: &mut [T],
        db: &mut [T],
    ) {
        match (self.project, ds) {
            (Some(project), ds) => {
                project.conv(filters).accumulate_gradients(shape, source, w, dy, ds, dw, db);
            }
            (None, Some(ds)) => ds.iter_mut().zip(dy).for_each(|(ds, &dy)| *ds += dy),
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::check::{self, values};

    const CASES: [(Shape, u32, Option<Projection>); 4] = [
        (Shape::new(2, 3, 4, 5), 3, None),
        (Shape::new(2, 3, 4, 5), 4, Some(Projection { channels: 3, stride: (2, 2) })),
        (Shape::new(1, 2, 1, 7), 3, Some(Projection { channels: 2, stride: (1, 3) })),
        (Shape::new(3, 2, 3, 3), 2, Some(Projection { channels: 2, stride: (1, 1) })),
    ];

    fn out(residual: Residual, shape: Shape, filters: u32) -> Shape {
        residual.project.map_or(shape, |p| p.conv(filters).output(shape).unwrap())
    }

    #[test]
    fn forward_is_the_definition() {
        for (shape, filters, project) in CASES {
            let residual = Residual { back: 1, project };
            let out = out(residual, shape, filters);
            assert!(residual.takes(shape, out));
            let t = residual.tensors(out).unwrap();
            let (s, x) = (values(1, shape.len().unwrap()), values(2, out.len().unwrap()));
            let (w, b) = (values(3, t.weight), values(4, t.bias));
            let mut y = x.clone();
            residual.forward(shape, filters, &s, &w, &b, &mut y);
            let added = |at: usize| {
                let Some(Projection { channels, stride: (sh, sw) }) = project else { return s[at] };
                let at = at as u32;
                let (q, p) = (at % out.w, at / out.w % out.h);
                let (k, n) = (at / out.plane() % out.c, at / out.plane() / out.c);
                let of = |c: u32| {
                    let (i, j) = (p * u32::from(sh), q * u32::from(sw));
                    let place = ((n * channels + c) * shape.h + i) * shape.w + j;
                    w[(k * channels + c) as usize] * s[place as usize]
                };
                b[k as usize] + (0..channels).map(of).sum::<f64>()
            };
            let expected: std::vec::Vec<f64> =
                x.iter().enumerate().map(|(at, x)| x + added(at)).collect();
            check::close(&y, &expected, 1e-12);
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        for (shape, filters, project) in CASES {
            let residual = Residual { back: 1, project };
            let out = out(residual, shape, filters);
            let t = residual.tensors(out).unwrap();
            let len = out.len().unwrap();
            let inputs = [values(1, shape.len().unwrap()), values(3, t.weight), values(4, t.bias)];
            let x = values(2, len);
            check::gradient(
                &inputs,
                len as usize,
                |[s, w, b], y| {
                    y.copy_from_slice(&x);
                    residual.forward(shape, filters, s, w, b, y);
                },
                |[s, w, _], dy, [ds, dw, db]| {
                    ds.fill(0.0);
                    residual.backward(shape, filters, s, w, dy, Some(ds), dw, db);
                },
            );
        }
    }

    #[test]
    fn gradients_accumulate_and_that_of_the_source_is_optional() {
        let (shape, filters, project) = CASES[1];
        let residual = Residual { back: 1, project };
        let out = out(residual, shape, filters);
        let t = residual.tensors(out).unwrap();
        let (s, w, dy) =
            (values(1, shape.len().unwrap()), values(3, t.weight), values(5, out.len().unwrap()));
        let once = |[ds, dw, db]: [f64; 3]| {
            let (mut ds, mut dw, mut db) = (
                std::vec![ds; s.len()],
                std::vec![dw; t.weight as usize],
                std::vec![db; t.bias as usize],
            );
            residual.backward(shape, filters, &s, &w, &dy, Some(&mut ds), &mut dw, &mut db);
            [ds, dw, db]
        };
        for (moved, plain) in
            once([1.0, 2.0, 3.0]).iter().zip(once([0.0; 3])).zip([1.0, 2.0, 3.0]).map(
                |((moved, plain), by)| {
                    (moved, plain.iter().map(|x| x + by).collect::<std::vec::Vec<_>>())
                },
            )
        {
            check::close(moved, &plain, 1e-12);
        }
        let (mut dw, mut db) = (std::vec![0.0; w.len()], std::vec![0.0; t.bias as usize]);
        residual.backward(shape, filters, &s, &w, &dy, None, &mut dw, &mut db);
        let [_, dw0, db0] = once([0.0; 3]);
        check::close(&dw, &dw0, 1e-12);
        check::close(&db, &db0, 1e-12);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let x = Shape::new(2, 4, 3, 3);
        assert_eq!(Residual::new(0).output(x), None);
        let project =
            |channels, stride| Residual { back: 1, project: Some(Projection { channels, stride }) };
        assert_eq!(project(2, (0, 1)).output(x), None);
        assert_eq!(project(0, (1, 1)).output(x), None);
        assert!(Residual::new(1).takes(x, x));
        assert!(!Residual::new(1).takes(Shape { c: 3, ..x }, x));
        for (h, fits) in [(4, false), (5, true), (6, true), (7, false)] {
            assert_eq!(project(2, (2, 2)).takes(Shape::new(2, 2, h, 5), x), fits, "{h}");
        }
        assert!(!project(3, (2, 2)).takes(Shape::new(2, 2, 5, 5), x));
        assert_eq!(project(u32::MAX, (1, 1)).tensors(x), None);
    }
}
