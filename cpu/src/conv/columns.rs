//! Convolution as matrix products, a chunk of samples on each lane.
//!
//! For one sample and one group, with the input unrolled so that column (p, q) holds the window
//! that output (p, q) reads:
//!
//! ```text
//! Y = W U        (K/G, P Q) = (K/G, C/G R S) (C/G R S, P Q)
//! dW += dY U'    dU = W' dY, added back to where U came from
//! ```
//! U is made a tile of columns at a time, in scratch that the planner sets aside for each lane;
//! a 1x1 convolution with stride 1 and no padding has U = X. Where a group has one filter
//! (depthwise), a product would have one row: those run as loops over rows. For the six filters
//! of LeNet's first layer such loops were tried and took four times as long as the product.
//!
//! Samples are cut into at most [`LANES`] chunks by their number alone. Each chunk sums its own
//! weight gradient, and the chunks' are added in order, so the bits do not depend on threads.

use rayon::prelude::*;
use sepal_core::layer::Conv2d;
use sepal_core::shape::Shape;

use crate::gemm::{self, Matrix, Sizes};
use crate::sum::{sum, sum_pairs};

/// Chunks of samples, each with scratch of its own.
const LANES: usize = 16;

/// Numbers of an unrolled tile: 256 KiB, so that it stays in the second-level cache.
const TILE: usize = 1 << 16;

/// Numbers that the partial weight gradients of all lanes may take together: 16 MiB. Larger
/// weights have fewer lanes, whose products are split instead.
const PARTIALS: usize = 1 << 22;

/// Numbers of the weight gradient that are summed over the lanes in one task.
const PIECE: usize = 1 << 12;

/// Numbers of a cache line, to which lanes are padded.
const LINE: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// U = X.
    Pointwise,
    /// U is made in scratch.
    Unrolled,
    /// Loops over rows.
    Direct,
}

/// A convolution with everything that follows from its shapes.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    layer: Conv2d,
    kind: Kind,
    samples: usize,
    /// C/G, H, W.
    x: (usize, usize, usize),
    /// K/G, P, Q.
    y: (usize, usize, usize),
    groups: usize,
    /// R, S.
    kernel: (usize, usize),
    stride: (usize, usize),
    pad: (usize, usize),
    /// Output rows and columns of a tile.
    tile: (usize, usize),
}

/// Output places that one tile covers: whole rows, or a part of one row.
#[derive(Clone, Copy)]
struct Tile {
    rows: (usize, usize),
    columns: (usize, usize),
}

/// Output columns that one tap reaches, and the input column that the first of them reads.
#[derive(Clone, Copy)]
struct Span {
    out: usize,
    past: usize,
    input: usize,
}

/// One tap over one output row: where it reads in the group's input, where it writes in the
/// filter's plane.
#[derive(Clone, Copy)]
struct Run {
    tap: usize,
    x: usize,
    y: usize,
    len: usize,
}

/// Scratch of one chunk of samples.
struct Lane<'a> {
    unrolled: &'a mut [f32],
    dw: &'a mut [f32],
    db: &'a mut [f32],
}

impl Tile {
    const fn width(self) -> usize {
        self.columns.1 - self.columns.0
    }

    const fn len(self) -> usize {
        (self.rows.1 - self.rows.0) * self.width()
    }
}

impl Columns {
    /// `None` where the layer cannot take `x`.
    pub(crate) fn new(layer: Conv2d, x: Shape) -> Option<Self> {
        let y = layer.output(x)?;
        let groups = layer.groups.max(1) as usize;
        let kernel = (usize::from(layer.kernel.0), usize::from(layer.kernel.1));
        let stride = (usize::from(layer.stride.0), usize::from(layer.stride.1));
        let pad = (usize::from(layer.pad.0), usize::from(layer.pad.1));
        let channels = (x.c as usize / groups).max(1);
        let filters = (y.c as usize / groups).max(1);
        let fan_in = channels * kernel.0 * kernel.1;
        let (rows, columns) = (y.h as usize, y.w as usize);
        let tile = match (TILE / fan_in.max(1)).checked_div(columns) {
            Some(whole @ 1..) => (whole.min(rows), columns),
            _ => (1, (TILE / fan_in).max(LINE).min(columns)),
        };
        let kind = if kernel == (1, 1) && stride == (1, 1) && pad == (0, 0) {
            Kind::Pointwise
        } else if filters == 1 {
            Kind::Direct
        } else {
            Kind::Unrolled
        };
        Some(Self {
            layer,
            kind,
            samples: x.n as usize,
            x: (channels, x.h as usize, x.w as usize),
            y: (filters, rows, columns),
            groups,
            kernel,
            stride,
            pad,
            tile,
        })
    }

    const fn fan_in(&self) -> usize {
        self.x.0 * self.kernel.0 * self.kernel.1
    }

    const fn x_plane(&self) -> usize {
        self.x.1 * self.x.2
    }

    const fn y_plane(&self) -> usize {
        self.y.1 * self.y.2
    }

    const fn x_group(&self) -> usize {
        self.x.0 * self.x_plane()
    }

    const fn y_group(&self) -> usize {
        self.y.0 * self.y_plane()
    }

    const fn weights(&self) -> usize {
        self.groups * self.y.0 * self.fan_in()
    }

    /// Numbers of U that a lane holds.
    fn unrolled(&self) -> usize {
        match self.kind {
            Kind::Unrolled => (self.fan_in() * self.tile.0 * self.tile.1).next_multiple_of(LINE),
            _ => 0,
        }
    }

    fn forward_lane(&self) -> usize {
        self.unrolled().max(LINE)
    }

    fn backward_lane(&self) -> usize {
        let biases = self.groups * self.y.0;
        self.unrolled() + (self.weights() + biases).next_multiple_of(LINE)
    }

    /// Lanes of a backward pass; a smaller batch never has more.
    fn backward_lanes(&self) -> usize {
        (PARTIALS / self.weights().max(1)).clamp(1, LANES).min(self.samples)
    }

    /// Numbers of scratch that a forward pass takes; never more for fewer samples.
    pub(crate) fn forward_scratch(&self) -> usize {
        self.forward_lane().saturating_mul(self.samples.min(LANES))
    }

    /// Numbers of scratch that a backward pass takes.
    pub(crate) fn backward_scratch(&self) -> usize {
        self.backward_lane().saturating_mul(self.backward_lanes())
    }

    fn tiles(self) -> impl Iterator<Item = Tile> {
        let ((_, rows, columns), (down, across)) = (self.y, self.tile);
        (0..rows).step_by(down.max(1)).flat_map(move |row| {
            (0..columns).step_by(across.max(1)).map(move |column| Tile {
                rows: (row, (row + down).min(rows)),
                columns: (column, (column + across).min(columns)),
            })
        })
    }

    /// `c = a b + beta c`; split where lanes are too few to fill the machine.
    #[expect(clippy::too_many_arguments, reason = "three matrices, their sizes and a factor")]
    fn product(
        &self,
        lanes: usize,
        sizes: Sizes,
        a: Matrix<'_>,
        b: Matrix<'_>,
        beta: f32,
        c: &mut [f32],
        stride: usize,
    ) {
        if lanes < LANES / 2 {
            gemm::parallel(sizes, 1.0, a, b, beta, c, stride);
        } else {
            gemm::gemm(sizes, 1.0, a, b, beta, c, stride);
        }
    }

    /// Writes `y`. `b` is empty without bias; `scratch` has [`forward_scratch`] numbers.
    ///
    /// [`forward_scratch`]: Self::forward_scratch
    pub(crate) fn forward(
        &self,
        x: &[f32],
        w: &[f32],
        b: &[f32],
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let per = self.samples.div_ceil(LANES).max(1);
        let lanes = self.samples.div_ceil(per);
        let (x_sample, y_sample) = (self.groups * self.x_group(), self.groups * self.y_group());
        x.par_chunks(per * x_sample)
            .zip(y.par_chunks_mut(per * y_sample))
            .zip(scratch.par_chunks_mut(self.forward_lane()))
            .for_each(|((x, y), lane)| {
                for (x, y) in x.chunks_exact(x_sample).zip(y.chunks_exact_mut(y_sample)) {
                    self.forward_sample(lanes, x, w, b, y, lane);
                }
            });
    }

    fn forward_sample(
        &self,
        lanes: usize,
        x: &[f32],
        w: &[f32],
        b: &[f32],
        y: &mut [f32],
        lane: &mut [f32],
    ) {
        let ((filters, ..), plane, k) = (self.y, self.y_plane(), self.fan_in());
        for (y, &b) in y.chunks_exact_mut(plane).zip(b) {
            y.fill(b);
        }
        let beta = if b.is_empty() { 0.0 } else { 1.0 };
        let groups = x.chunks_exact(self.x_group()).zip(y.chunks_exact_mut(self.y_group()));
        for ((x, y), w) in groups.zip(w.chunks_exact(filters * k)) {
            match self.kind {
                Kind::Pointwise => {
                    let sizes = Sizes { m: filters, k, n: plane };
                    let (w, x) = (Matrix::rows(w, k), Matrix::rows(x, plane));
                    self.product(lanes, sizes, w, x, beta, y, plane);
                }
                Kind::Unrolled => {
                    for tile in self.tiles() {
                        self.unroll(x, tile, lane);
                        let sizes = Sizes { m: filters, k, n: tile.len() };
                        let (w, u) = (Matrix::rows(w, k), Matrix::rows(lane, tile.len()));
                        let y = y.get_mut(self.offset(tile)..).unwrap_or_default();
                        self.product(lanes, sizes, w, u, beta, y, plane);
                    }
                }
                Kind::Direct => {
                    if b.is_empty() {
                        y.fill(0.0);
                    }
                    for (y, w) in y.chunks_exact_mut(plane).zip(w.chunks_exact(k)) {
                        self.runs(|run| {
                            let w = w.get(run.tap).copied().unwrap_or(0.0);
                            let y = y.get_mut(run.y..run.y + run.len).unwrap_or_default();
                            let x = x.get(run.x..).unwrap_or_default();
                            if self.stride.1 == 1 {
                                y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
                            } else {
                                let x = x.iter().step_by(self.stride.1.max(1));
                                y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
                            }
                        });
                    }
                }
            }
        }
    }

    /// Adds to `dw` and `db` (empty without bias), overwrites `dx` where it is wanted. `scratch`
    /// has [`backward_scratch`](Self::backward_scratch) numbers.
    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    pub(crate) fn backward(
        &self,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
        scratch: &mut [f32],
    ) {
        let per = self.samples.div_ceil(self.backward_lanes().max(1)).max(1);
        let lanes = self.samples.div_ceil(per);
        let lane_len = self.backward_lane();
        let (x_sample, y_sample) = (self.groups * self.x_group(), self.groups * self.y_group());
        let chunks = x
            .par_chunks(per * x_sample)
            .zip(dy.par_chunks(per * y_sample))
            .zip(scratch.par_chunks_mut(lane_len));
        match dx {
            Some(dx) => {
                chunks.zip(dx.par_chunks_mut(per * x_sample)).for_each(|(((x, dy), lane), dx)| {
                    let mut lane = self.lane(lane);
                    let samples = x.chunks_exact(x_sample).zip(dy.chunks_exact(y_sample));
                    for ((x, dy), dx) in samples.zip(dx.chunks_exact_mut(x_sample)) {
                        self.backward_sample(lanes, x, w, dy, Some(dx), &mut lane);
                    }
                })
            }
            None => chunks.for_each(|((x, dy), lane)| {
                let mut lane = self.lane(lane);
                for (x, dy) in x.chunks_exact(x_sample).zip(dy.chunks_exact(y_sample)) {
                    self.backward_sample(lanes, x, w, dy, None, &mut lane);
                }
            }),
        }
        // The lanes' sums, in order.
        let partials = || {
            let lanes = scratch.chunks_exact(lane_len).take(lanes);
            lanes.map(|lane| lane.get(self.unrolled()..).unwrap_or_default())
        };
        dw.par_chunks_mut(PIECE).enumerate().for_each(|(piece, dw)| {
            for partial in partials() {
                let partial = partial.get(piece * PIECE..).unwrap_or_default();
                dw.iter_mut().zip(partial).for_each(|(dw, partial)| *dw += partial);
            }
        });
        for partial in partials() {
            let partial = partial.get(self.weights()..).unwrap_or_default();
            db.iter_mut().zip(partial).for_each(|(db, partial)| *db += partial);
        }
    }

    /// A lane of the backward pass, its sums at zero.
    fn lane<'a>(&self, lane: &'a mut [f32]) -> Lane<'a> {
        let (unrolled, sums) = lane.split_at_mut(self.unrolled());
        sums.fill(0.0);
        let (dw, db) = sums.split_at_mut(self.weights());
        Lane { unrolled, dw, db }
    }

    fn backward_sample(
        &self,
        lanes: usize,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        lane: &mut Lane<'_>,
    ) {
        let ((filters, ..), plane, k) = (self.y, self.y_plane(), self.fan_in());
        if self.layer.bias {
            let filters = lane.db.iter_mut().zip(dy.chunks_exact(plane));
            filters.for_each(|(db, dy)| *db += sum(dy, |dy| dy));
        }
        if self.kind != Kind::Pointwise
            && let Some(dx) = dx.as_deref_mut()
        {
            dx.fill(0.0);
        }
        let groups = x.chunks_exact(self.x_group()).zip(dy.chunks_exact(self.y_group()));
        let groups = groups.zip(w.chunks_exact(filters * k));
        let mut dx = dx.map(|dx| dx.chunks_exact_mut(self.x_group()));
        for (((x, dy), w), dw) in groups.zip(lane.dw.chunks_exact_mut(filters * k)) {
            let dx = dx.as_mut().and_then(Iterator::next);
            match self.kind {
                Kind::Pointwise => {
                    let sizes = Sizes { m: filters, k: plane, n: k };
                    let (left, right) = (Matrix::rows(dy, plane), Matrix::transposed(x, plane));
                    self.product(lanes, sizes, left, right, 1.0, dw, k);
                    if let Some(dx) = dx {
                        let sizes = Sizes { m: k, k: filters, n: plane };
                        let (left, right) = (Matrix::transposed(w, k), Matrix::rows(dy, plane));
                        self.product(lanes, sizes, left, right, 0.0, dx, plane);
                    }
                }
                Kind::Unrolled => self.backward_unrolled(lanes, x, w, dy, dx, dw, lane.unrolled),
                Kind::Direct => self.backward_direct(x, w, dy, dx, dw),
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the equations")]
    fn backward_unrolled(
        &self,
        lanes: usize,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        dw: &mut [f32],
        unrolled: &mut [f32],
    ) {
        let ((filters, ..), plane, k) = (self.y, self.y_plane(), self.fan_in());
        for tile in self.tiles() {
            let n = tile.len();
            let dy = Matrix::rows(dy.get(self.offset(tile)..).unwrap_or_default(), plane);
            self.unroll(x, tile, unrolled);
            let u = Matrix::transposed(unrolled, n);
            self.product(lanes, Sizes { m: filters, k: n, n: k }, dy, u, 1.0, dw, k);
            if let Some(dx) = dx.as_deref_mut() {
                let w = Matrix::transposed(w, k);
                self.product(lanes, Sizes { m: k, k: filters, n }, w, dy, 0.0, unrolled, n);
                self.roll(unrolled, tile, dx);
            }
        }
    }

    fn backward_direct(
        &self,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        dw: &mut [f32],
    ) {
        let (plane, k) = (self.y_plane(), self.fan_in());
        let filters = dy.chunks_exact(plane).zip(w.chunks_exact(k));
        for ((dy, w), dw) in filters.zip(dw.chunks_exact_mut(k)) {
            self.runs(|run| {
                let Some(dw) = dw.get_mut(run.tap) else { return };
                let w = w.get(run.tap).copied().unwrap_or(0.0);
                let dy = dy.get(run.y..run.y + run.len).unwrap_or_default();
                let x = x.get(run.x..).unwrap_or_default();
                let dx = dx.as_deref_mut().and_then(|dx| dx.get_mut(run.x..));
                if self.stride.1 == 1 {
                    let x = x.get(..run.len).unwrap_or_default();
                    *dw += sum_pairs(x, dy, |x, dy| x * dy);
                    let dx = dx.unwrap_or_default().iter_mut();
                    dx.zip(dy).for_each(|(dx, dy)| *dx += w * dy);
                } else {
                    let step = self.stride.1.max(1);
                    let products = x.iter().step_by(step).zip(dy).map(|(x, dy)| x * dy);
                    *dw += products.sum::<f32>();
                    let dx = dx.unwrap_or_default().iter_mut().step_by(step);
                    dx.zip(dy).for_each(|(dx, dy)| *dx += w * dy);
                }
            });
        }
    }

    /// Calls `each` for every tap of a filter and every output row that it reaches.
    fn runs(&self, mut each: impl FnMut(Run)) {
        let (_, rows, columns) = self.y;
        let mut tap = 0;
        for c in 0..self.x.0 {
            for r in 0..self.kernel.0 {
                for s in 0..self.kernel.1 {
                    let span = self.span(s, (0, columns));
                    for p in (0..rows).take_while(|_| span.out < span.past) {
                        let Some(row) = self.input_row(p, r) else { continue };
                        each(Run {
                            tap,
                            x: (c * self.x.1 + row) * self.x.2 + span.input,
                            y: p * columns + span.out,
                            len: span.past - span.out,
                        });
                    }
                    tap += 1;
                }
            }
        }
    }

    /// Where a tile's first output lies in a plane.
    const fn offset(&self, tile: Tile) -> usize {
        tile.rows.0 * self.y.2 + tile.columns.0
    }

    /// The output columns from `first` to `past` for which tap column `s` reads inside the image.
    fn span(&self, s: usize, (first, past): (usize, usize)) -> Span {
        let (width, stride, pad) = (self.x.2, self.stride.1.max(1), self.pad.1);
        let out = pad.saturating_sub(s).div_ceil(stride).clamp(first, past);
        let past = (width + pad).saturating_sub(s).div_ceil(stride).clamp(out, past);
        Span { out, past, input: (out * stride + s).saturating_sub(pad) }
    }

    /// The input row that tap row `r` reads for output row `p`.
    fn input_row(&self, p: usize, r: usize) -> Option<usize> {
        (p * self.stride.0 + r).checked_sub(self.pad.0).filter(|&row| row < self.x.1)
    }

    /// Writes U of a tile.
    fn unroll(&self, x: &[f32], tile: Tile, unrolled: &mut [f32]) {
        let width = self.x.2;
        let mut rows = unrolled.chunks_exact_mut(tile.len());
        for x in x.chunks_exact(self.x_plane()) {
            for r in 0..self.kernel.0 {
                for s in 0..self.kernel.1 {
                    let Some(u) = rows.next() else { return };
                    let span = self.span(s, tile.columns);
                    let places = (tile.rows.0..tile.rows.1).zip(u.chunks_exact_mut(tile.width()));
                    for (p, u) in places {
                        let x = self.input_row(p, r).and_then(|row| x.get(row * width..));
                        let x = x.and_then(|x| x.get(span.input..width));
                        let inside = span.out - tile.columns.0..span.past - tile.columns.0;
                        let (Some(x), true) = (x, span.out < span.past) else {
                            u.fill(0.0);
                            continue;
                        };
                        let (left, rest) = u.split_at_mut(inside.start);
                        let (middle, right) = rest.split_at_mut(inside.len());
                        left.fill(0.0);
                        right.fill(0.0);
                        if self.stride.1 == 1 {
                            let x = x.get(..middle.len()).unwrap_or_default();
                            middle.copy_from_slice(x);
                        } else {
                            let x = x.iter().step_by(self.stride.1.max(1));
                            middle.iter_mut().zip(x).for_each(|(u, x)| *u = *x);
                        }
                    }
                }
            }
        }
    }

    /// Adds dU of a tile to where U came from.
    fn roll(&self, unrolled: &[f32], tile: Tile, dx: &mut [f32]) {
        let width = self.x.2;
        let mut rows = unrolled.chunks_exact(tile.len());
        for dx in dx.chunks_exact_mut(self.x_plane()) {
            for r in 0..self.kernel.0 {
                for s in 0..self.kernel.1 {
                    let Some(u) = rows.next() else { return };
                    let span = self.span(s, tile.columns);
                    if span.out == span.past {
                        continue;
                    }
                    for (p, u) in (tile.rows.0..tile.rows.1).zip(u.chunks_exact(tile.width())) {
                        let Some(row) = self.input_row(p, r) else { continue };
                        let dx = dx.get_mut(row * width + span.input..(row + 1) * width);
                        let dx = dx.unwrap_or_default();
                        let inside = span.out - tile.columns.0..span.past - tile.columns.0;
                        let u = u.get(inside).unwrap_or_default();
                        if self.stride.1 == 1 {
                            dx.iter_mut().zip(u).for_each(|(dx, u)| *dx += *u);
                        } else {
                            let dx = dx.iter_mut().step_by(self.stride.1.max(1));
                            dx.zip(u).for_each(|(dx, u)| *dx += *u);
                        }
                    }
                }
            }
        }
    }
}
