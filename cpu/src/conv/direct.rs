//! Direct convolution: any kernel, stride, padding and groups.
//!
//! The kernels and the names strip, panel and place are those of
//! [`arch::direct`](crate::arch::direct). A task takes strips of its output one after the other. A
//! strip's input is packed for as many channels as the second-level cache holds; each panel of
//! filters is multiplied with it, and y is added up over the channels. Taps that read nothing but
//! padding are left out, row by row of the output, and place by place where a strip has many
//! samples.
//!
//! Backward data is the same convolution from dy to dx, with weights turned round. With strides it
//! is one convolution for each remainder of the places of dx by the stride, each with the taps that
//! reach them.

use core::ops::Range;

use super::problem::{Clamp, Epilogue, Problem};
use crate::arch::direct::{
    Correlate, Field, Finish, Multiply, PANEL, Places, SLACK, Strip, Unfold,
};
use crate::arch::{Instructions, Isa, Kernel, Narrow, Simd};
use crate::blocks::{BLOCK, padded};

/// Numbers that a packed strip may take: with the weights of a panel it stays in the second-level
/// cache.
const PACK: usize = 64 << 10;

/// Places of a strip.
const PLACES: usize = 320;

/// Places of a strip of the gradient of the weights, whose sums stay in registers meanwhile.
const GRADIENT_PLACES: usize = 512;

/// Samples of a strip from which on taps are left out place by place.
const MANY: usize = 8;

/// Channels of a group up to which they are packed as planes.
const FEW: usize = 4;

/// One axis of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Places of x.
    input: usize,
    /// Places of the output that are computed.
    output: usize,
    /// Taps that reach them.
    taps: usize,
    stride: usize,
    /// Zeros before x.
    pad: isize,
    /// Places of the whole output; of them, the first that is computed, and the step to the next.
    whole: usize,
    first: usize,
    step: usize,
    /// Taps of the weights; of them, the first that is taken, and the step to the next.
    kernel: usize,
    tap: usize,
    tap_step: isize,
}

impl Axis {
    /// From x to y.
    const fn forward(
        input: usize,
        output: usize,
        kernel: usize,
        stride: usize,
        pad: usize,
    ) -> Self {
        Self {
            input,
            output,
            taps: kernel,
            stride,
            pad: pad.cast_signed(),
            whole: output,
            first: 0,
            step: 1,
            kernel,
            tap: 0,
            tap_step: 1,
        }
    }

    /// From dy to the places of dx whose remainder by the stride is `class`.
    ///
    /// Place `i = u stride + class` of dx is read by tap r of place `(i + pad - r) / stride` of y:
    /// by every `stride`-th tap from `(class + pad) % stride` on.
    const fn backward(self, class: usize) -> Self {
        let (stride, pad) = (self.stride, self.pad.cast_unsigned());
        let first = (class + pad) % stride;
        let taps = self.kernel.saturating_sub(first).div_ceil(stride);
        let last = first + taps.saturating_sub(1) * stride;
        let shift = ((class + pad - first) / stride).cast_signed();
        Self {
            input: self.output,
            output: self.input.saturating_sub(class).div_ceil(stride),
            taps,
            stride: 1,
            pad: taps.saturating_sub(1).cast_signed() - shift,
            whole: self.input,
            first: class,
            step: stride,
            kernel: self.kernel,
            tap: last,
            tap_step: -stride.cast_signed(),
        }
    }

    /// Packed rows (or copies of columns) for `places` places, in each of [`phases`](Self::phases).
    const fn reach(&self, places: usize) -> usize {
        places + self.taps.saturating_sub(1) / self.stride
    }

    /// Remainders by the stride that taps have.
    fn phases(&self) -> usize {
        self.stride.min(self.taps)
    }

    /// The place of x that tap 0 of place `at` reads.
    const fn origin(&self, at: usize) -> isize {
        (at * self.stride).cast_signed() - self.pad
    }

    /// The taps of place `at` that read inside of x.
    fn inside(&self, at: usize) -> Range<usize> {
        let origin = self.origin(at);
        let clip = |at: isize| usize::try_from(at).unwrap_or(0).min(self.taps);
        let first = clip(-origin);
        first..clip(self.input.cast_signed() - origin).max(first)
    }

    /// Of some places those whose tap reads inside of x.
    fn reached(&self, places: Range<usize>, tap: usize) -> Range<usize> {
        let stride = self.stride.cast_signed();
        let shift = self.pad - tap.cast_signed();
        // at * stride >= shift, at * stride < input + shift.
        let up = |at: isize| usize::try_from((at + stride - 1).div_euclid(stride)).unwrap_or(0);
        let first = up(shift).clamp(places.start, places.end);
        first..up(self.input.cast_signed() + shift).clamp(first, places.end)
    }

    /// The tap of the weights that tap `tap` is.
    const fn weight(&self, tap: usize) -> usize {
        self.tap.strict_add_signed(self.tap_step * tap.cast_signed())
    }
}

/// A convolution, forward or backward data, of the tasks' samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Direct {
    /// Samples of a task, at most.
    samples: usize,
    groups: usize,
    /// Of a group.
    channels: usize,
    filters: usize,
    rows: Axis,
    columns: Axis,
    /// Whether x, and what is written, lie in the reference's layout.
    plain: (bool, bool),
    /// Whether weights lie as (channels, filters), not (filters, channels).
    turned: bool,
}

/// The output places of a strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// First sample, and how many; rows and columns alike.
    n: (usize, usize),
    p: (usize, usize),
    q: (usize, usize),
}

impl Region {
    const fn places(&self) -> usize {
        self.n.1 * self.p.1 * self.q.1
    }
}

/// 0..all from `first` on, in ranges of `most`, all about as long.
fn even(range: Range<usize>, most: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    let all = range.len();
    let step = all.div_ceil(all.div_ceil(most.max(1)).max(1)).max(1);
    range.clone().step_by(step).map(move |at| (at, step.min(range.end - at)))
}

/// What a task of a forward pass or of backward data works on.
pub(crate) struct Work<'a> {
    /// All of x of the task's samples.
    pub(crate) x: &'a [f32],
    /// All packed weights.
    pub(crate) packed: &'a [f32],
    pub(crate) epilogue: &'a Epilogue<'a>,
    /// The panels of `y`: of every group where `y` has all.
    pub(crate) panels: Range<usize>,
    /// The output rows of `y`.
    pub(crate) rows: Range<usize>,
}

impl Direct {
    /// The forward pass.
    pub(crate) fn forward(problem: &Problem, samples: usize, plain: bool) -> Self {
        let p = problem;
        Self {
            samples,
            groups: p.groups,
            channels: p.c / p.groups.max(1),
            filters: p.k / p.groups.max(1),
            rows: Axis::forward(p.h, p.p, p.kernel.0, p.stride.0, p.pad.0),
            columns: Axis::forward(p.w, p.q, p.kernel.1, p.stride.1, p.pad.1),
            plain: (plain, false),
            turned: false,
        }
    }

    /// Backward data, a convolution for each class of places of dx. What they write is all of dx.
    pub(crate) fn backward(
        problem: &Problem,
        samples: usize,
        plain: bool,
    ) -> impl Iterator<Item = Self> + Clone {
        let forward = Self::forward(problem, samples, false);
        let (down, across) = problem.stride;
        (0..down * across).map(move |class| Self {
            channels: forward.filters,
            filters: forward.channels,
            rows: forward.rows.backward(class / across),
            columns: forward.columns.backward(class % across),
            plain: (false, plain),
            turned: true,
            ..forward
        })
    }

    /// Channels that lie side by side: 8, or 1.
    const fn spacing(&self) -> usize {
        if self.channels <= FEW { 1 } else { BLOCK }
    }

    pub(crate) const fn groups(&self) -> usize {
        self.groups
    }

    /// Output rows that are computed.
    pub(crate) const fn rows(&self) -> usize {
        self.rows.output
    }

    /// Blocks, or planes, of a group's channels.
    pub(crate) const fn units(&self) -> usize {
        self.channels.div_ceil(self.spacing())
    }

    const fn taps(&self) -> usize {
        self.rows.taps * self.columns.taps
    }

    /// Panels of a group.
    pub(crate) const fn panels(&self) -> usize {
        self.filters.div_ceil(PANEL)
    }

    /// Whether a panel's filters are blocks of the output.
    pub(crate) const fn aligned(&self) -> bool {
        !self.plain.1 && (self.groups == 1 || self.filters.is_multiple_of(BLOCK))
    }

    /// Filters of a panel, a multiple of 8.
    const fn width(&self, panel: usize) -> usize {
        let rest = padded(self.filters) - panel * PANEL;
        if rest < PANEL { rest } else { PANEL }
    }

    /// Numbers of packed weights for each filter.
    const fn rows_of_weights(&self) -> usize {
        self.units() * self.taps() * self.spacing()
    }

    /// Numbers of the packed weights of a whole panel.
    pub(crate) const fn panel(&self) -> usize {
        PANEL * self.rows_of_weights()
    }

    /// Numbers of the packed weights of a group.
    const fn group(&self) -> usize {
        padded(self.filters) * self.rows_of_weights()
    }

    /// Numbers of packed weights.
    pub(crate) const fn packed(&self) -> usize {
        self.groups * self.group()
    }

    /// Writes the packed weights of some panels of a group, from panel `first` on, each of
    /// [`panel`](Self::panel) numbers but the last.
    ///
    /// `weight` is (K, C / groups, R, S), `scale` a factor for each filter, or empty.
    pub(crate) fn pack(
        &self,
        weight: &[f32],
        scale: &[f32],
        group: usize,
        first: usize,
        packed: &mut [f32],
    ) {
        let (taps, spacing) = (self.taps(), self.spacing());
        let kernel = self.rows.kernel * self.columns.kernel;
        for (panel, packed) in (first..).zip(packed.chunks_mut(self.panel().max(1))) {
            let width = self.width(panel);
            let filters = panel * PANEL..self.filters.min(panel * PANEL + width);
            for (unit, packed) in packed.chunks_exact_mut(taps * spacing * width).enumerate() {
                let channels = unit * spacing..self.channels.min((unit + 1) * spacing);
                if channels.len() < spacing || filters.len() < width {
                    packed.fill(0.0);
                }
                for (l, filter) in filters.clone().enumerate() {
                    for (e, channel) in channels.clone().enumerate() {
                        let (from, factor) = if self.turned {
                            let k = group * self.channels + channel;
                            (k * self.filters + filter, k)
                        } else {
                            let k = group * self.filters + filter;
                            (k * self.channels + channel, k)
                        };
                        let factor = scale.get(factor).copied().unwrap_or(1.0);
                        let from = &weight[from * kernel..][..kernel];
                        let mut to = packed[e * width + l..].iter_mut().step_by(spacing * width);
                        for r in 0..self.rows.taps {
                            let row = self.rows.weight(r) * self.columns.kernel;
                            for s in 0..self.columns.taps {
                                if let Some(to) = to.next() {
                                    *to = factor * from[row + self.columns.weight(s)];
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Samples, rows and columns of a strip of about `most` places, at most.
    fn extent(&self, most: usize) -> (usize, usize, usize) {
        let (p, q) = (self.rows.output, self.columns.output);
        if q > most {
            (1, 1, most)
        } else if p * q > most {
            (1, most / q.max(1), q)
        } else {
            ((most / (p * q).max(1)).clamp(1, self.samples.max(1)), p, q)
        }
    }

    /// The strips of some samples and output rows.
    fn regions(
        &self,
        (samples, rows, columns): (usize, usize, usize),
        all: usize,
        of: Range<usize>,
    ) -> impl Iterator<Item = Region> + Clone {
        let q = even(0..self.columns.output, columns);
        even(0..all, samples).flat_map(move |n| {
            let q = q.clone();
            even(of.clone(), rows).flat_map(move |p| q.clone().map(move |q| Region { n, p, q }))
        })
    }

    /// Numbers of one packed block, or plane, of a strip.
    fn unit(&self, (samples, rows, columns): (usize, usize, usize)) -> usize {
        let copies = self.columns.taps * self.rows.phases() * self.rows.reach(rows);
        copies * columns * samples * self.spacing()
    }

    /// Numbers that a strip's packed units take at most.
    fn pack_len(&self, extent: (usize, usize, usize)) -> usize {
        let unit = self.unit(extent);
        (unit * self.units()).min(PACK.max(unit))
    }

    /// Units that are packed together.
    fn together(&self, extent: (usize, usize, usize)) -> usize {
        (PACK / self.unit(extent).max(1)).clamp(1, self.units().max(1))
    }

    /// Numbers that the places of taps take.
    const fn table(&self) -> usize {
        self.taps().next_multiple_of(16)
    }

    /// Numbers of scratch for a running task.
    pub(crate) fn lane(&self) -> usize {
        let extent = self.extent(PLACES);
        let (samples, rows, columns) = extent;
        let out = if self.aligned() { 0 } else { padded(self.filters) * samples * rows * columns };
        (self.table() + self.pack_len(extent) + out).next_multiple_of(16)
    }

    /// Writes where each tap's first place begins in the packed strip.
    fn offsets(&self, region: &Region, to: &mut [u32]) {
        let place = region.q.1 * region.n.1 * self.spacing();
        let (phases, reach) = (self.rows.phases(), self.rows.reach(region.p.1));
        for (at, to) in to.iter_mut().enumerate() {
            let (r, s) = (at / self.columns.taps, at % self.columns.taps);
            let row = (s * phases + r % self.rows.stride) * reach + r / self.rows.stride;
            *to = (row * place) as u32;
        }
    }

    /// Writes some of y. Its field has the rows and panels of the work and nothing else, or, in
    /// the reference's layout, one block of all of a sample.
    pub(crate) fn run(
        &self,
        instructions: Instructions,
        work: &Work<'_>,
        y: &mut Field<'_>,
        lane: &mut [f32],
    ) {
        let extent = self.extent(PLACES);
        let (table, lane) = lane.split_at_mut(self.table());
        let taps = &mut bytemuck::cast_slice_mut::<f32, u32>(table)[..self.taps()];
        let (packed_x, out) = lane.split_at_mut(self.pack_len(extent));
        let [samples, ..] = y.dim();
        for region in self.regions(extent, samples, work.rows.clone()) {
            self.offsets(&region, taps);
            for group in 0..self.groups {
                for (unit, units) in even(0..self.units().max(1), self.together(extent)) {
                    instructions.run(Pack {
                        direct: self,
                        x: work.x,
                        region,
                        group,
                        units: unit..unit + units,
                        to: packed_x,
                    });
                    let chunk = Chunk { unit, units, taps, x: packed_x };
                    if self.aligned() {
                        self.multiply(instructions, work, &region, group, &chunk, None, y);
                    } else {
                        let own = region.places() * BLOCK;
                        let places = Places {
                            sample: 0,
                            samples: 1,
                            rows: 1,
                            columns: region.places(),
                            first: 0,
                            row: 0,
                            column: BLOCK,
                        };
                        let mut strip = Field::new(out, 1, padded(self.filters) / BLOCK, own);
                        let places = Some(places);
                        let strip = &mut strip;
                        self.multiply(instructions, work, &region, group, &chunk, places, strip);
                    }
                }
                if !self.aligned() {
                    self.scatter(&region, group, work.rows.start, out, y);
                }
            }
        }
    }

    /// Numbers between rows of the whole output in blocks.
    const fn row(&self) -> usize {
        self.columns.whole * BLOCK
    }

    #[expect(clippy::too_many_arguments, reason = "what is multiplied and where it goes")]
    fn multiply(
        &self,
        instructions: Instructions,
        work: &Work<'_>,
        region: &Region,
        group: usize,
        chunk: &Chunk<'_>,
        places: Option<Places>,
        y: &mut Field<'_>,
    ) {
        let spacing = self.spacing();
        let extent = (region.n.1, region.p.1, region.q.1);
        let places = places.unwrap_or(Places {
            sample: region.n.0,
            samples: region.n.1,
            rows: region.p.1,
            columns: region.q.1,
            first: (self.rows.first + (region.p.0 - work.rows.start) * self.rows.step) * self.row()
                + (self.columns.first + region.q.0 * self.columns.step) * BLOCK,
            row: self.rows.step * self.row(),
            column: self.columns.step * BLOCK,
        });
        let channels = self.channels.min((chunk.unit + chunk.units) * spacing);
        let strip = Strip {
            x: chunk.x,
            spacing,
            channels: channels - chunk.unit * spacing,
            block: self.unit(extent),
            taps: chunk.taps,
            across: self.columns.taps,
            places: region.places(),
        };
        let last = chunk.unit + chunk.units >= self.units();
        let panels = if self.aligned() { work.panels.clone() } else { 0..self.panels() };
        for panel in panels.clone() {
            let width = self.width(panel);
            let w = &work.packed[group * self.group() + panel * self.panel()..];
            let w = &w[chunk.unit * self.taps() * spacing * width..];
            let mut shift = [0.0; PANEL];
            let filters = group * self.filters + panel * PANEL;
            let shifts = work.epilogue.shift.iter().skip(filters);
            let count = self.filters - panel * PANEL;
            shift.iter_mut().zip(shifts.take(count)).for_each(|(to, from)| *to = *from);
            let clamp = work.epilogue.clamp;
            let clamp = (clamp != Clamp::NONE).then_some((clamp.slope, clamp.top));
            let finish = last.then_some(Finish { shift: &shift, clamp });
            let skipped = if self.aligned() { group * self.filters / BLOCK } else { 0 };
            let first = skipped + (panel - panels.start) * (PANEL / BLOCK);
            for (range, taps) in self.segments(region) {
                instructions.run(Multiply {
                    strip,
                    taps,
                    range,
                    w,
                    width,
                    y,
                    first,
                    places,
                    adds: chunk.unit > 0,
                    finish,
                });
            }
        }
    }

    /// Places of a strip, and the rows and columns of taps that read inside of x for them.
    fn segments(
        &self,
        region: &Region,
    ) -> impl Iterator<Item = (Range<usize>, (Range<usize>, Range<usize>))> {
        let Region { n, p, q } = *region;
        let row = n.1 * q.1;
        let groups = runs(p.1, move |at| self.rows.inside(p.0 + at));
        groups.flat_map(move |(rows, down)| {
            // Row by row and column by column, or all at once.
            let (each, all) = if n.1 >= MANY { (rows.clone(), 0..0) } else { (0..0, rows) };
            let own = down.clone();
            let each = each.flat_map(move |p| {
                let down = own.clone();
                runs(q.1, move |at| self.columns.inside(q.0 + at)).map(move |(columns, across)| {
                    let at = (p * q.1 + columns.start) * n.1;
                    (at..at + columns.len() * n.1, (down.clone(), across))
                })
            });
            let all = (!all.is_empty()).then(|| all.start * row..all.end * row);
            each.chain(all.map(|range| (range, (down, 0..self.columns.taps))))
        })
    }

    /// Writes a group's strip to where it belongs.
    fn scatter(&self, region: &Region, group: usize, top: usize, strip: &[f32], y: &mut Field<'_>) {
        let Region { n, p, q } = *region;
        let (height, width) = (self.rows.whole, self.columns.whole);
        let own = region.places() * BLOCK;
        let channels = self.groups * self.filters;
        let first = group * self.filters;
        // The last group writes the zeros of the padding too.
        let past = match group + 1 == self.groups && !self.plain.1 {
            true => padded(channels),
            false => first + self.filters,
        };
        for sample in 0..n.1 {
            for channel in first..past {
                let filter = channel - first;
                let from = strip.get(filter / BLOCK * own..).filter(|_| filter < self.filters);
                for row in 0..p.1 {
                    for column in 0..q.1 {
                        let at = (row * q.1 + column) * n.1 + sample;
                        let x = from.map_or(0.0, |from| from[at * BLOCK + filter % BLOCK]);
                        let row = self.rows.first + (p.0 + row) * self.rows.step;
                        let column = self.columns.first + (q.0 + column) * self.columns.step;
                        if self.plain.1 {
                            let at = (channel * height + row) * width + column;
                            y.block(n.0 + sample, 0)[at] = x;
                        } else {
                            let at = ((row - top) * width + column) * BLOCK + channel % BLOCK;
                            y.block(n.0 + sample, channel / BLOCK)[at] = x;
                        }
                    }
                }
            }
        }
    }
}

/// Runs of places for which `f` is the same.
fn runs<T: PartialEq>(
    places: usize,
    f: impl Fn(usize) -> T,
) -> impl Iterator<Item = (Range<usize>, T)> {
    let mut at = 0;
    core::iter::from_fn(move || {
        (at < places).then(|| {
            let (start, value) = (at, f(at));
            while at < places && f(at) == value {
                at += 1;
            }
            (start..at, value)
        })
    })
}

/// Packed channels of a strip.
struct Chunk<'a> {
    /// The first unit, and how many.
    unit: usize,
    units: usize,
    taps: &'a [u32],
    x: &'a [f32],
}

/// Copies what the places of a strip read, tap column by tap column and row phase by row phase.
struct Pack<'a> {
    direct: &'a Direct,
    x: &'a [f32],
    region: Region,
    group: usize,
    units: Range<usize>,
    to: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { direct, x, region, group, units, to } = self;
        let Region { n, p, q } = region;
        let (down, across) = (direct.rows, direct.columns);
        let spacing = direct.spacing();
        let row = q.1 * n.1 * spacing;
        let (phases, reach) = (down.phases(), down.reach(p.1));
        let mut rows = to.chunks_exact_mut(row);
        for unit in units {
            for tap in 0..across.taps {
                let columns = across.reached(q.0..q.0 + q.1, tap);
                let inside = columns.start - q.0..columns.end - q.0;
                let first = across.origin(columns.start) + tap.cast_signed();
                for phase in 0..phases {
                    for at in 0..reach {
                        let Some(to) = rows.next() else { return };
                        let h = down.origin(p.0 + at) + phase.cast_signed();
                        let h = usize::try_from(h).ok().filter(|h| *h < down.input);
                        let (Some(h), false) = (h, inside.is_empty()) else {
                            to.fill(0.0);
                            continue;
                        };
                        let first = first.cast_unsigned();
                        to[..inside.start * n.1 * spacing].fill(0.0);
                        to[inside.end * n.1 * spacing..].fill(0.0);
                        let to = &mut to[inside.start * n.1 * spacing..];
                        let from = Source { x, direct, group, unit, h, first };
                        for sample in 0..n.1 {
                            let to = &mut to[sample * spacing..];
                            from.copy(isa.narrow(), n.0 + sample, inside.len(), n.1, to);
                        }
                    }
                }
            }
        }
    }
}

/// A row of x, from its column `first` on.
struct Source<'a> {
    x: &'a [f32],
    direct: &'a Direct,
    group: usize,
    unit: usize,
    h: usize,
    first: usize,
}

impl Source<'_> {
    /// Copies `count` columns, of which every `stride`-th is read and every `step`-th written.
    #[inline(always)]
    fn copy<S: Simd>(&self, s: S, sample: usize, count: usize, step: usize, to: &mut [f32]) {
        let Self { x, direct, group, unit, h, first } = *self;
        let (height, width) = (direct.rows.input, direct.columns.input);
        let (spacing, stride) = (direct.spacing(), direct.columns.stride);
        let channels = direct.groups * direct.channels;
        let channel = group * direct.channels + unit * spacing;
        // Where a channel's row begins, and from one column to the next.
        let start = |channel: usize| match direct.plain.0 {
            true => (((sample * channels + channel) * height + h) * width + first, 1),
            false => {
                let block = sample * channels.div_ceil(BLOCK) + channel / BLOCK;
                (((block * height + h) * width + first) * BLOCK + channel % BLOCK, BLOCK)
            }
        };
        let (at, between) = start(channel);
        let whole = spacing == BLOCK && !direct.plain.0 && channel.is_multiple_of(BLOCK);
        if (whole || spacing == 1 && between == 1) && stride == 1 && step == 1 {
            copy(s, &x[at..][..count * spacing], to);
        } else if whole {
            let from = x[at..].chunks(stride * BLOCK).take(count);
            for (from, to) in from.zip(to.chunks_mut(step * BLOCK)) {
                s.store(s.load(from), to);
            }
        } else {
            for e in 0..spacing.min(direct.channels - unit * spacing) {
                let (at, between) = start(channel + e);
                let from = x[at..].iter().step_by(between * stride).take(count);
                for (from, to) in from.zip(to[e..].iter_mut().step_by(step * spacing)) {
                    *to = *from;
                }
            }
        }
    }
}

/// Copies `from` to the start of `to`.
#[inline(always)]
fn copy<S: Simd>(s: S, from: &[f32], to: &mut [f32]) {
    let to = &mut to[..from.len()];
    if from.len() < S::LANES {
        from.iter().zip(to).for_each(|(from, to)| *to = *from);
        return;
    }
    let (mut at, last) = (0, from.len() - S::LANES);
    while at < last {
        s.store(s.load(&from[at..]), &mut to[at..]);
        at += S::LANES;
    }
    s.store(s.load(&from[last..]), &mut to[last..]);
}

/// The gradient of the weights: sums of partial gradients, each of some samples and, where
/// samples are few, of some channels.
impl Direct {
    /// Rows of a partial gradient for some units: (channel, tap), in the order of the weights.
    /// With few channels, rounded up to what vectors of rows like.
    fn gradient_rows(&self, units: usize) -> usize {
        let rows = (units * self.spacing()).min(self.channels) * self.taps();
        if self.spacing() == 1 { rows.next_multiple_of(4) } else { rows }
    }

    /// Numbers of a partial gradient for some units.
    pub(crate) fn partial(&self, units: usize) -> usize {
        self.groups * padded(self.filters) * self.gradient_rows(units)
    }

    /// Units of channels among which a gradient may be split.
    pub(crate) const fn splits(&self) -> usize {
        if self.spacing() == 1 { 1 } else { self.units() }
    }

    /// Samples, rows and columns of a strip of the gradient, at most.
    fn gradient_extent(&self) -> (usize, usize, usize) {
        if self.spacing() == 1 {
            let places = (PACK / self.gradient_rows(self.units()).max(1)).clamp(1, 1024);
            let (_, rows, columns) = self.extent(places);
            (1, rows, columns)
        } else {
            self.extent(GRADIENT_PLACES)
        }
    }

    /// Rows and columns of the planes that a strip with few channels reads.
    fn planes(&self, rows: usize, columns: usize) -> (usize, usize) {
        let along = |axis: &Axis, places: usize| (places - 1) * axis.stride + axis.taps;
        (along(&self.rows, rows.max(1)), along(&self.columns, columns.max(1)))
    }

    /// Numbers of scratch for a running task of [`gradient`](Self::gradient).
    pub(crate) fn gradient_lane(&self) -> usize {
        let extent = self.gradient_extent();
        let (samples, rows, columns) = extent;
        let places = samples * rows * columns;
        let dy = places * PANEL;
        let x = if self.spacing() == 1 {
            let (down, across) = self.planes(rows, columns);
            self.channels * down * across + places * self.gradient_rows(self.units()) + 2 * SLACK
        } else {
            self.pack_len(extent)
        };
        (self.table() + dy + x).next_multiple_of(16)
    }

    /// Adds to a partial gradient of some units what some samples give, and to `db` (of all
    /// filters, each group's padded; or empty) their sums.
    #[expect(clippy::too_many_arguments, reason = "what a gradient is made of")]
    pub(crate) fn gradient(
        &self,
        instructions: Instructions,
        samples: usize,
        x: &[f32],
        dy: &[f32],
        units: Range<usize>,
        partial: &mut [f32],
        db: &mut [f32],
        lane: &mut [f32],
    ) {
        let extent = self.gradient_extent();
        let (table, lane) = lane.split_at_mut(self.table());
        let taps = &mut bytemuck::cast_slice_mut::<f32, u32>(table)[..self.taps()];
        let places = extent.0 * extent.1 * extent.2;
        let (packed_dy, packed_x) = lane.split_at_mut(places * PANEL);
        let rows = self.gradient_rows(units.len());
        for region in self.regions(extent, samples, 0..self.rows.output) {
            self.offsets(&region, taps);
            for group in 0..self.groups {
                for (unit, count) in even(units.clone(), self.chunk(extent)) {
                    let places = region.places();
                    let unfolded = if self.spacing() == 1 {
                        self.unfold(instructions, x, &region, group, rows, packed_x)
                    } else {
                        instructions.run(Pack {
                            direct: self,
                            x,
                            region,
                            group,
                            units: unit..unit + count,
                            to: packed_x,
                        });
                        &*packed_x
                    };
                    for panel in 0..self.panels() {
                        let width = self.width(panel);
                        let dy_panel = &mut packed_dy[..places * width];
                        let first = group * padded(self.filters) + panel * PANEL;
                        let db = match unit == 0 {
                            true => db.get_mut(first..first + width).unwrap_or_default(),
                            false => &mut [],
                        };
                        let to = &mut *dy_panel;
                        instructions.run(Lift { direct: self, dy, region, group, panel, to, db });
                        let dw = &mut partial[first * rows..][..width * rows];
                        if self.spacing() == 1 {
                            instructions.run(Correlate {
                                x: unfolded,
                                spacing: rows,
                                taken: rows,
                                dy: dy_panel,
                                width,
                                dw,
                                step: width,
                            });
                            continue;
                        }
                        let chunk = Chunk { unit, units: count, taps, x: unfolded };
                        let dw = &mut dw[(unit - units.start) * BLOCK * self.taps() * width..];
                        self.correlate(instructions, &region, &chunk, dy_panel, width, dw);
                    }
                }
            }
        }
    }

    /// Units of the gradient that are packed together.
    fn chunk(&self, extent: (usize, usize, usize)) -> usize {
        if self.spacing() == 1 { self.units() } else { self.together(extent) }
    }

    fn correlate(
        &self,
        instructions: Instructions,
        region: &Region,
        chunk: &Chunk<'_>,
        dy: &[f32],
        width: usize,
        dw: &mut [f32],
    ) {
        let block = self.unit((region.n.1, region.p.1, region.q.1));
        let row = region.n.1 * region.q.1;
        for unit in 0..chunk.units {
            let taken = (self.channels - (chunk.unit + unit) * BLOCK).min(BLOCK);
            for (tap, offset) in chunk.taps.iter().enumerate() {
                let p = region.p.0..region.p.0 + region.p.1;
                let reached = self.rows.reached(p, tap / self.columns.taps);
                let first = (reached.start - region.p.0) * row;
                let places = first..first + reached.len() * row;
                let at = unit * block + *offset as usize + places.start * BLOCK;
                let rows = unit * BLOCK * self.taps() + tap;
                instructions.run(Correlate {
                    x: &chunk.x[at..],
                    spacing: BLOCK,
                    taken,
                    dy: &dy[places.start * width..places.end * width],
                    width,
                    dw: &mut dw[rows * width..],
                    step: self.taps() * width,
                });
            }
        }
    }

    /// Copies what each place of one sample's strip reads, one after the other.
    fn unfold<'a>(
        &self,
        instructions: Instructions,
        x: &[f32],
        region: &Region,
        group: usize,
        spacing: usize,
        to: &'a mut [f32],
    ) -> &'a [f32] {
        let (down, across) = self.planes(region.p.1, region.q.1);
        let (planes, u) = to.split_at_mut(self.channels * down * across + SLACK);
        let planes = &mut planes[..self.channels * down * across + SLACK];
        // A convolution with one tap that reads every place of the planes.
        let along = |axis: Axis, at: usize, places: usize| Axis {
            output: places,
            taps: 1,
            stride: 1,
            pad: -axis.origin(at),
            ..axis
        };
        let whole = Self {
            rows: along(self.rows, region.p.0, down),
            columns: along(self.columns, region.q.0, across),
            ..*self
        };
        instructions.run(Pack {
            direct: &whole,
            x,
            region: Region { n: region.n, p: (0, down), q: (0, across) },
            group,
            units: 0..self.units(),
            to: planes,
        });
        let u = &mut u[..region.places() * spacing + SLACK];
        instructions.run(Unfold {
            x: planes,
            channels: self.channels,
            plane: down * across,
            row: across,
            kernel: (self.rows.taps, self.columns.taps),
            stride: (self.rows.stride, self.columns.stride),
            places: (region.p.1, region.q.1),
            u,
            spacing,
        });
        u
    }

    /// Numbers of the gradient of one group's filters of a panel.
    pub(crate) const fn filter(&self) -> usize {
        self.channels * self.taps()
    }

    /// Adds a partial gradient of some units to the gradient of all filters of one panel.
    pub(crate) fn join(
        &self,
        instructions: Instructions,
        units: Range<usize>,
        partial: &[f32],
        group: usize,
        panel: usize,
        dw: &mut [f32],
    ) {
        let rows = self.gradient_rows(units.len());
        let first = units.start * self.spacing() * self.taps();
        let count = (units.len() * self.spacing() * self.taps()).min(self.filter() - first);
        let at = (group * padded(self.filters) + panel * PANEL) * rows;
        let (width, filter) = (self.width(panel), self.filter());
        instructions.run(Join { partial: &partial[at..], width, count, dw, filter, first });
    }
}

/// Adds rows of `width` filters to weights that lie filter by filter.
struct Join<'a> {
    partial: &'a [f32],
    width: usize,
    /// Rows.
    count: usize,
    /// Whole filters of `filter` weights each, of which the rows are those from `first` on.
    dw: &'a mut [f32],
    filter: usize,
    first: usize,
}

impl Kernel for Join<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { partial, width, count, dw, filter, first } = self;
        let (s, whole) = (isa.narrow(), count - count % BLOCK);
        for (block, dw) in dw.chunks_mut(BLOCK * filter).enumerate() {
            for at in (0..whole).step_by(BLOCK) {
                let mut rows = [s.zero(); BLOCK];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = s.load(&partial[(at + i) * width + block * BLOCK..]);
                }
                for (row, dw) in s.transpose(rows).into_iter().zip(dw.chunks_exact_mut(filter)) {
                    let dw = &mut dw[first + at..];
                    s.store(s.add(s.load(dw), row), dw);
                }
            }
            for (i, dw) in dw.chunks_exact_mut(filter).enumerate() {
                for (at, dw) in (whole..count).zip(&mut dw[first + whole..]) {
                    *dw += partial[at * width + block * BLOCK + i];
                }
            }
        }
    }
}

/// Copies dy of the places of a strip, for one panel, place by place, and adds it up.
struct Lift<'a> {
    direct: &'a Direct,
    dy: &'a [f32],
    region: Region,
    group: usize,
    panel: usize,
    to: &'a mut [f32],
    /// A sum for each filter, or empty.
    db: &'a mut [f32],
}

impl Kernel for Lift<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { direct, dy, region, group, panel, to, db } = self;
        let (s, Region { n, p, q }) = (isa.narrow(), region);
        let (height, width) = (direct.rows.output, direct.columns.output);
        let filters = direct.width(panel);
        let first = group * direct.filters + panel * PANEL;
        let blocks = (direct.groups * direct.filters).div_ceil(BLOCK);
        let whole = first.is_multiple_of(BLOCK)
            && (direct.groups == 1 || direct.filters.is_multiple_of(BLOCK));
        for block in 0..filters / BLOCK {
            let mut sums = s.zero();
            for sample in 0..n.1 {
                for row in 0..p.1 {
                    let at = |channel: usize| {
                        let block = (n.0 + sample) * blocks + channel / BLOCK;
                        ((block * height + p.0 + row) * width + q.0) * BLOCK + channel % BLOCK
                    };
                    let to = &mut to[(row * q.1 * n.1 + sample) * filters + block * BLOCK..];
                    let to = to.chunks_mut(n.1 * filters).take(q.1);
                    let channel = first + block * BLOCK;
                    if whole {
                        for (from, to) in dy[at(channel)..].chunks_exact(BLOCK).zip(to) {
                            let g = s.load(from);
                            sums = s.add(sums, g);
                            s.store(g, to);
                        }
                    } else {
                        let count = (direct.filters - panel * PANEL - block * BLOCK).min(BLOCK);
                        for (column, to) in to.enumerate() {
                            let mut one = [0.0; BLOCK];
                            for (e, one) in one[..count].iter_mut().enumerate() {
                                *one = dy[at(channel + e) + column * BLOCK];
                            }
                            let g = s.load(&one);
                            sums = s.add(sums, g);
                            s.store(g, to);
                        }
                    }
                }
            }
            if let Some(db) = db.get_mut(block * BLOCK..(block + 1) * BLOCK) {
                s.store(s.add(s.load(db), sums), db);
            }
        }
    }
}
