//! Pools.
//!
//! In the reference's layout maxima of two by two places, the pool of most nets, have a kernel of
//! their own; other windows are the reference's. Blocks of eight channels have kernels for every
//! window: [`max`] and [`mean`].

pub(crate) mod max;
pub(crate) mod mean;

use sepal_core::layer::{MaxPool, Window};
use sepal_core::shape::Shape;

const TWO: Window = Window::square(2);

/// [`MaxPool::forward`].
pub(crate) fn forward(
    layer: MaxPool,
    shape: Shape,
    x: &[f32],
    y: &mut [f32],
    winner: Option<&mut [u8]>,
) {
    let (Some(out), TWO) = (layer.output(shape), layer.window) else {
        return layer.forward(shape, x, y, winner);
    };
    let (plane, width) = (shape.plane().max(1) as usize, shape.w.max(1) as usize);
    let (out_plane, out_width) = (out.plane().max(1) as usize, out.w.max(1) as usize);
    let planes = x.chunks_exact(plane).zip(y.chunks_exact_mut(out_plane));
    let line = |x: &[f32], y: &mut [f32], winner: &mut [u8]| {
        let (top, bottom) = x.split_at(width);
        row(top.as_chunks().0, bottom.as_chunks().0, y, winner);
    };
    match winner {
        Some(winner) => {
            for ((x, y), winner) in planes.zip(winner.chunks_exact_mut(out_plane)) {
                let rows = x.chunks_exact(2 * width).zip(y.chunks_exact_mut(out_width));
                let rows = rows.zip(winner.chunks_exact_mut(out_width));
                rows.for_each(|((x, y), winner)| line(x, y, winner));
            }
        }
        None => {
            for (x, y) in planes {
                let rows = x.chunks_exact(2 * width).zip(y.chunks_exact_mut(out_width));
                rows.for_each(|(x, y)| line(x, y, &mut []));
            }
        }
    }
}

/// Windows that are compared side by side.
const LANES: usize = 8;

/// One output row, from two input rows cut into pairs of columns; `winner` may be empty.
fn row(top: &[[f32; 2]], bottom: &[[f32; 2]], y: &mut [f32], winner: &mut [u8]) {
    let (blocks, rest) = y.as_chunks_mut::<LANES>();
    let (tops, top) = top.as_chunks::<LANES>();
    let (bottoms, bottom) = bottom.as_chunks::<LANES>();
    let (winners, winner) = winner.as_chunks_mut::<LANES>();
    let mut winners = winners.iter_mut();
    for ((y, top), bottom) in blocks.iter_mut().zip(tops).zip(bottoms) {
        let at;
        (*y, at) = largest(top, bottom);
        if let Some(winner) = winners.next() {
            *winner = at.map(|at| at as u8);
        }
    }
    // The last few, in a block filled up with zeros.
    let (mut tops, mut bottoms) = ([[0.0; 2]; LANES], [[0.0; 2]; LANES]);
    tops.iter_mut().zip(top).for_each(|(to, from)| *to = *from);
    bottoms.iter_mut().zip(bottom).for_each(|(to, from)| *to = *from);
    let (largest, at) = largest(&tops, &bottoms);
    rest.iter_mut().zip(largest).for_each(|(y, largest)| *y = largest);
    winner.iter_mut().zip(at).for_each(|(winner, at)| *winner = at as u8);
}

/// [`MaxPool::backward`].
pub(crate) fn backward(layer: MaxPool, shape: Shape, winner: &[u8], dy: &[f32], dx: &mut [f32]) {
    let (Some(out), TWO) = (layer.output(shape), layer.window) else {
        return layer.backward(shape, winner, dy, dx);
    };
    let (plane, width) = (shape.plane().max(1) as usize, shape.w.max(1) as usize);
    let (out_plane, out_width) = (out.plane().max(1) as usize, out.w.max(1) as usize);
    if !shape.h.is_multiple_of(2) || !shape.w.is_multiple_of(2) {
        dx.fill(0.0);
    }
    let planes = dx.chunks_exact_mut(plane).zip(dy.chunks_exact(out_plane));
    for ((dx, dy), winner) in planes.zip(winner.chunks_exact(out_plane)) {
        let rows = dx.chunks_exact_mut(2 * width).zip(dy.chunks_exact(out_width));
        for ((dx, dy), winner) in rows.zip(winner.chunks_exact(out_width)) {
            let (top, bottom) = dx.split_at_mut(width);
            let windows = top.as_chunks_mut::<2>().0.iter_mut().zip(bottom.as_chunks_mut::<2>().0);
            for (([a, b], [c, d]), (&dy, &winner)) in windows.zip(dy.iter().zip(winner)) {
                for (at, place) in (0..).zip([a, b, c, d]) {
                    *place = if winner == at { dy } else { 0.0 };
                }
            }
        }
    }
}

/// The largest number of each window and its place: of equal ones the first, the first NaN before
/// all numbers. Without branches, which random numbers would mispredict.
#[inline]
fn largest(top: &[[f32; 2]; LANES], bottom: &[[f32; 2]; LANES]) -> ([f32; LANES], [u32; LANES]) {
    let column =
        |rows: &[[f32; 2]; LANES], at: usize| rows.map(|[a, b]| if at == 0 { a } else { b });
    let (mut best, mut at) = (column(top, 0), [0; LANES]);
    for (place, x) in (1..).zip([column(top, 1), column(bottom, 0), column(bottom, 1)]) {
        for ((best, at), x) in best.iter_mut().zip(&mut at).zip(x) {
            // Larger, or NaN where the best is none.
            let wins = ((x > *best) | x.is_nan()) & !best.is_nan();
            *best = if wins { x } else { *best };
            *at = if wins { place } else { *at };
        }
    }
    (best, at)
}

/// The positions of a window along one axis.
#[derive(Clone, Copy)]
struct Axis {
    /// Places of the input.
    size: usize,
    /// Places of the output.
    out: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
}

/// What a window reads along one axis.
#[derive(Clone, Copy)]
struct Span {
    /// The taps inside the image.
    first: usize,
    past: usize,
    /// The place that the first of them reads.
    at: usize,
}

impl Axis {
    #[inline(always)]
    fn span(self, out: usize) -> Span {
        let start = out * self.stride;
        let first = self.pad.saturating_sub(start).min(self.kernel);
        let past = (self.size + self.pad).saturating_sub(start).min(self.kernel).max(first);
        Span { first, past, at: (start + first).saturating_sub(self.pad) }
    }
}

/// A window over planes of a shape.
#[derive(Clone, Copy)]
struct Geometry {
    down: Axis,
    across: Axis,
}

impl Geometry {
    fn new(window: Window, x: Shape, y: Shape) -> Self {
        let axis = |size: u32, out: u32, kernel: u8, stride: u8, pad: u8| Axis {
            size: size as usize,
            out: out as usize,
            kernel: kernel.into(),
            stride: stride.into(),
            pad: pad.into(),
        };
        let Window { kernel, stride, pad } = window;
        Self {
            down: axis(x.h, y.h, kernel.0, stride.0, pad.0),
            across: axis(x.w, y.w, kernel.1, stride.1, pad.1),
        }
    }

    /// Whether it is [`TWO`], the window of most nets.
    fn is_two(&self) -> bool {
        let two = |axis: Axis| (axis.kernel, axis.stride, axis.pad) == (2, 2, 0);
        two(self.down) && two(self.across)
    }
}

/// The rows that a row of windows reads.
#[derive(Clone, Copy)]
struct Windows {
    down: Span,
    width: usize,
    columns: usize,
}

impl Windows {
    #[inline(always)]
    fn new(geometry: Geometry, row: usize) -> Self {
        let down = geometry.down.span(row);
        Self { down, width: geometry.across.size, columns: geometry.across.kernel }
    }

    /// The place that the first tap inside reads of tap row `r`, and that tap's number.
    #[inline(always)]
    fn start(self, r: usize, across: Span) -> (usize, usize) {
        let row = self.down.at + r - self.down.first;
        (row * self.width + across.at, r * self.columns + across.first)
    }

    /// Calls `each` with the places of each tap row.
    fn each(self, across: Span, mut each: impl FnMut(core::ops::Range<usize>)) {
        for r in self.down.first..self.down.past {
            let (from, _) = self.start(r, across);
            each(from..from + across.past - across.first);
        }
    }
}
