//! Pools that a convolution in evaluation runs before it stores.

use core::ops::Range;

use sepal_core::layer::{AvgPool, MaxPool, Window};
use sepal_core::shape::Shape;

use crate::arch::{Isa, Kernel, Simd};
use crate::blocks::BLOCK;

/// A pool over blocks of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// [`MaxPool`].
    Max(Window),
    /// [`AvgPool`], for which padding counts.
    Average(Window),
}

impl Pool {
    pub(super) const fn window(self) -> Window {
        match self {
            Self::Max(window) | Self::Average(window) => window,
        }
    }

    /// Rows and columns of the output for such rows and columns.
    pub(super) fn size(self, rows: usize, columns: usize) -> Option<(usize, usize)> {
        let x = Shape::new(1, 1, u32::try_from(rows).ok()?, u32::try_from(columns).ok()?);
        let y = match self {
            Self::Max(window) => MaxPool { window }.output(x),
            Self::Average(window) => AvgPool { window }.output(x),
        }?;
        Some((y.h as usize, y.w as usize))
    }

    /// The rows, of `all`, that some rows of the output read.
    pub(super) fn reads(self, rows: Range<usize>, all: usize) -> Range<usize> {
        let Window { kernel, stride, pad } = self.window();
        let first = |row: usize| (row * usize::from(stride.0)).saturating_sub(usize::from(pad.0));
        let last = (rows.end.max(1) - 1) * usize::from(stride.0) + usize::from(kernel.0);
        let past = last.saturating_sub(usize::from(pad.0)).min(all);
        first(rows.start).min(past)..past
    }
}

/// Some rows of one pooled block.
pub(super) struct Rows<'a> {
    pub(super) pool: Pool,
    /// Rows and columns of the whole input.
    pub(super) shape: (usize, usize),
    /// The input from row `first` on.
    pub(super) x: &'a [f32],
    pub(super) first: usize,
    /// Which rows of the output.
    pub(super) rows: Range<usize>,
    /// The output from the first of them on.
    pub(super) y: &'a mut [f32],
    /// Its columns.
    pub(super) width: usize,
}

impl Kernel for Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { pool, shape, x, first, rows, y, width } = self;
        let Window { kernel, stride, pad } = pool.window();
        let s = isa.narrow();
        // What a window that begins `pad` before place `at * stride` reads inside of the input.
        let inside = |at: usize, stride: u8, pad: u8, kernel: u8, all: usize| {
            let at = at * usize::from(stride);
            let past = (at + usize::from(kernel)).saturating_sub(usize::from(pad));
            at.saturating_sub(usize::from(pad))..past.min(all)
        };
        let size = s.splat(f32::from(kernel.0) * f32::from(kernel.1));
        for (p, y) in rows.zip(y.chunks_exact_mut(width * BLOCK)) {
            let down = inside(p, stride.0, pad.0, kernel.0, shape.0);
            for (q, y) in y.chunks_exact_mut(BLOCK).enumerate() {
                let across = inside(q, stride.1, pad.1, kernel.1, shape.1);
                let mut best = match pool {
                    Pool::Max(_) => s.splat(f32::NEG_INFINITY),
                    Pool::Average(_) => s.zero(),
                };
                for row in down.clone() {
                    for column in across.clone() {
                        let x = s.load(&x[((row - first) * shape.1 + column) * BLOCK..]);
                        best = match pool {
                            // NaN wins, and stays.
                            Pool::Max(_) => s.select(s.equal(best, best), s.max(best, x), best),
                            Pool::Average(_) => s.add(best, x),
                        };
                    }
                }
                if let Pool::Average(_) = pool {
                    best = s.div(best, size);
                }
                s.store(best, y);
            }
        }
    }
}
