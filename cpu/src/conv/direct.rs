//! Direct convolution: any kernel, stride, padding and groups.
//!
//! The kernels and the names strip, panel and place are those of
//! [`arch::direct`](crate::arch::direct). A task takes strips of its output one after the other. A
//! strip's input is packed for as many channels as the second-level cache holds; each panel of
//! filters is multiplied with it, and y is added up over the channels. Blocks that need no padding
//! are read where they lie. Taps that read nothing but padding are left out, row by row of the
//! output, and column by column where a strip has many samples and vectors are of filters.
//!
//! Backward data is the same convolution from dy to dx, with weights turned round. With strides it
//! is one convolution for each remainder of the places of dx by the stride, each with the taps that
//! reach them.

use core::ops::Range;

use super::problem::{Clamp, Epilogue, Problem};
use crate::arch::direct::{
    Correlate, CorrelateEach, CorrelateFew, Each, Field, Finish, Multiply, PANEL, Places, SLACK,
    Strip, together,
};
use crate::arch::{Instructions, Isa, Kernel, Narrow, Simd};
use crate::blocks::{BLOCK, padded};

/// Numbers that a packed strip may take: with the weights of a panel it stays in the second-level
/// cache.
const PACK: usize = 64 << 10;

/// Places of a strip.
const PLACES: usize = 512;

/// Samples of a strip from which on taps are left out column by column.
const MANY: usize = 4;

/// Samples that a strip of small images has, where many of its taps read padding.
const PADDED: usize = 8;

/// Columns of the output from which on blocks that need no padding are read where they lie.
const LONG: usize = 8;

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

    /// Packed rows or columns for `places` places, in each of [`phases`](Self::phases).
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
    /// Whether each filter reads the channel of its own number alone: groups of one channel, which
    /// count as one group here.
    each: bool,
    /// Whether channels are packed as planes: where vectors of channels or filters would be filled
    /// in part.
    planes: bool,
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
    /// The output rows of `y`, and columns: not all of them only where there is one row.
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
}

impl Direct {
    /// The forward pass.
    pub(crate) fn forward(problem: &Problem, samples: usize, plain: bool) -> Self {
        let p = problem;
        let each = p.groups > 1 && p.groups == p.c && p.groups == p.k && !plain;
        let groups = if each { 1 } else { p.groups.max(1) };
        Self {
            samples,
            groups,
            channels: p.c / groups,
            filters: p.k / groups,
            rows: Axis::forward(p.h, p.p, p.kernel.0, p.stride.0, p.pad.0),
            columns: Axis::forward(p.w, p.q, p.kernel.1, p.stride.1, p.pad.1),
            plain: (plain, false),
            turned: false,
            each,
            planes: !each && p.c / groups <= FEW,
        }
    }

    /// The gradient of the weights, a convolution of x with dy.
    pub(crate) fn weights(problem: &Problem, samples: usize, plain: bool) -> Self {
        let forward = Self::forward(problem, samples, plain);
        let few = forward.planes && forward.filters <= BLOCK;
        Self { planes: few && problem.stride == (1, 1), ..forward }
    }

    /// Backward data, a convolution for each class of places of dx. What they write is all of dx.
    pub(crate) fn backward(
        problem: &Problem,
        samples: usize,
        plain: bool,
    ) -> impl Iterator<Item = Self> + Clone {
        let forward = Self::forward(problem, samples, plain);
        let (down, across) = problem.stride;
        (0..down * across).map(move |class| Self {
            channels: forward.filters,
            filters: forward.channels,
            rows: forward.rows.backward(class / across),
            columns: forward.columns.backward(class % across),
            plain: (false, plain),
            turned: true,
            planes: !forward.each && (forward.filters <= FEW || forward.channels <= BLOCK),
            ..forward
        })
    }

    /// Channels that lie side by side.
    const fn spacing(&self) -> usize {
        if self.planes { 1 } else { BLOCK }
    }

    pub(crate) const fn groups(&self) -> usize {
        self.groups
    }

    /// Output rows and columns that are computed.
    pub(crate) const fn places(&self) -> (usize, usize) {
        (self.rows.output, self.columns.output)
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

    /// Whether vectors of places are stored in planes of the reference's layout.
    fn straight(&self) -> bool {
        let few = self.planes && self.filters <= BLOCK;
        few && self.plain.1 && self.together(self.extent()) >= self.units()
    }

    /// Filters of a panel, a multiple of 8.
    const fn width(&self, panel: usize) -> usize {
        let rest = padded(self.filters) - panel * PANEL;
        if rest < PANEL { rest } else { PANEL }
    }

    /// Numbers of packed weights for each filter.
    const fn rows_of_weights(&self) -> usize {
        if self.each { self.taps() } else { self.units() * self.taps() * self.spacing() }
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
        instructions: Instructions,
        weight: &[f32],
        scale: &[f32],
        group: usize,
        first: usize,
        packed: &mut [f32],
    ) {
        if self.each {
            let blocks = packed.chunks_exact_mut(self.taps().max(1) * BLOCK);
            for (block, packed) in (first * PANEL / BLOCK..).zip(blocks) {
                self.pack_each(weight, scale, block, packed);
            }
            return;
        }
        for (panel, packed) in (first..).zip(packed.chunks_mut(self.panel().max(1))) {
            instructions.run(Weigh { direct: self, weight, scale, group, panel, packed });
        }
    }

    /// Writes the packed weights of a block of filters with a channel each: tap, filter.
    fn pack_each(&self, weight: &[f32], scale: &[f32], block: usize, packed: &mut [f32]) {
        let kernel = self.rows.kernel * self.columns.kernel;
        for (at, packed) in packed.chunks_exact_mut(BLOCK).enumerate() {
            let row = self.rows.weight(at / self.columns.taps) * self.columns.kernel;
            let tap = row + self.columns.weight(at % self.columns.taps);
            for (filter, to) in (block * BLOCK..).zip(packed) {
                let w = weight.get(filter * kernel + tap).copied().unwrap_or(0.0);
                *to = w * scale.get(filter).copied().unwrap_or(1.0);
            }
        }
    }

    /// Whether x is read where it lies.
    fn in_place(&self) -> bool {
        let along = |axis: &Axis| {
            axis.stride == 1 && axis.pad == 0 && axis.output + axis.taps <= axis.input + 1
        };
        let blocks = self.groups == 1 || self.channels.is_multiple_of(BLOCK);
        let lies = !self.plain.0 && self.spacing() == BLOCK && blocks;
        lies && along(&self.rows) && along(&self.columns) && self.columns.output >= LONG
    }

    /// Whether whole blocks of x are packed as planes.
    fn turns(&self) -> bool {
        let blocks = self.groups == 1 || self.channels.is_multiple_of(BLOCK);
        let strides = self.rows.stride == 1 && self.columns.stride == 1;
        self.planes && !self.plain.0 && blocks && strides && self.taps() > 0
    }

    /// Samples, rows and columns of a strip, at most.
    fn extent(&self) -> (usize, usize, usize) {
        let (p, q) = (self.rows.output, self.columns.output);
        let place = (p * q).max(1);
        // Planes of few channels are small.
        let most = if self.channels <= FEW { 2 * PLACES } else { PLACES };
        if q > most {
            return (1, 1, most);
        }
        if place > most {
            return (1, most / q, q);
        }
        if self.in_place() {
            return (1, p, q);
        }
        let taps: usize = (0..q).map(|q| self.columns.inside(q).len()).sum();
        let padding = 10 * taps < 9 * q * self.columns.taps;
        let least = if padding { PADDED } else { 1 };
        let fits = |n: usize| self.unit((n, p, q)) * self.units() <= PACK;
        let n = if fits(least) { least } else { 1 };
        (self.samples.clamp(1, n.max(most / place)), p, q)
    }

    /// The strips of some samples and output rows.
    fn regions(
        &self,
        (samples, rows, columns): (usize, usize, usize),
        all: usize,
        down: Range<usize>,
        across: Range<usize>,
    ) -> impl Iterator<Item = Region> + Clone {
        let q = even(across, columns);
        even(0..all, samples).flat_map(move |n| {
            let q = q.clone();
            even(down.clone(), rows).flat_map(move |p| q.clone().map(move |q| Region { n, p, q }))
        })
    }

    /// Numbers of one packed block, or plane, of a strip.
    fn unit(&self, (samples, rows, columns): (usize, usize, usize)) -> usize {
        let down = self.rows.phases() * self.rows.reach(rows);
        let across = self.columns.phases() * self.columns.reach(columns);
        down * across * samples * self.spacing()
    }

    /// Numbers that a strip's packed units take at most.
    fn pack_len(&self, extent: (usize, usize, usize)) -> usize {
        let unit = self.unit(extent);
        // Vectors of places reach past the last row.
        let packed = (unit * self.units()).min(PACK.max(unit)) + SLACK;
        if self.in_place() { 0 } else { packed }
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
        let extent = self.extent();
        let (samples, rows, columns) = extent;
        let stored = self.aligned() || self.straight();
        let out = if stored { 0 } else { padded(self.filters) * samples * rows * columns };
        (self.table() + self.pack_len(extent) + out).next_multiple_of(16)
    }

    /// Writes where each tap's first place begins in the strip; gives the strip without its x.
    fn strip<'a>(&self, region: &Region, taps: &'a mut [u32]) -> Strip<'a> {
        let (down, across) = (self.rows, self.columns);
        let place = region.n.1 * self.spacing();
        let (block, line, phases, reach) = if self.in_place() {
            (down.input * across.input * place, across.input * place, 1, 0)
        } else {
            let extent = (region.n.1, region.p.1, region.q.1);
            let line = across.reach(region.q.1) * place;
            (self.unit(extent), line, down.phases(), down.reach(region.p.1))
        };
        let mut to = taps.iter_mut();
        for r in 0..down.taps {
            let (phase, row) = (r % down.stride, r / down.stride);
            let (mut column, mut at) = (0, 0);
            for to in to.by_ref().take(across.taps) {
                *to = (((column * phases + phase) * reach + row) * line + at * place) as u32;
                column += 1;
                if column == across.stride {
                    (column, at) = (0, at + 1);
                }
            }
        }
        let channels = self.channels;
        let spacing = self.spacing();
        let step = if across.stride == 1 { place } else { 0 };
        Strip { x: &[], spacing, channels, block, pitch: line, taps, across: across.taps, step }
    }

    /// What some units of a group read: packed, or where it lies.
    fn read<'a>(
        &self,
        instructions: Instructions,
        x: &'a [f32],
        region: Region,
        group: usize,
        units: Range<usize>,
        to: &'a mut [f32],
    ) -> &'a [f32] {
        if self.in_place() {
            let blocks = (self.groups * self.channels).div_ceil(BLOCK);
            let block = region.n.0 * blocks + group * self.units() + units.start;
            let row = block * self.rows.input + region.p.0;
            return &x[(row * self.columns.input + region.q.0) * BLOCK..];
        }
        instructions.run(Pack { direct: self, x, region, group, units, to });
        to
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
        let extent = self.extent();
        let (table, lane) = lane.split_at_mut(self.table());
        let taps = &mut bytemuck::cast_slice_mut::<f32, u32>(table)[..self.taps()];
        let (packed_x, out) = lane.split_at_mut(self.pack_len(extent));
        let [samples, ..] = y.dim();
        let stored = self.aligned() || self.straight();
        for region in self.regions(extent, samples, work.rows.clone(), work.columns.clone()) {
            let strip = self.strip(&region, taps);
            let all = if self.each {
                let first = work.panels.start * (PANEL / BLOCK);
                first..self.units().min(work.panels.end * (PANEL / BLOCK))
            } else {
                0..self.units()
            };
            for group in 0..self.groups {
                for (unit, units) in even(all.clone(), self.together(extent)) {
                    let units = unit..unit + units;
                    let x = self.read(instructions, work.x, region, group, units.clone(), packed_x);
                    let strip = Strip { x, ..strip };
                    let chunk = Chunk { region, group, units, strip };
                    if stored {
                        self.multiply(instructions, work, &chunk, None, y);
                        continue;
                    }
                    let (rows, columns) = (region.p.1, region.q.1 * region.n.1);
                    let places = Places {
                        sample: 0,
                        samples: 1,
                        rows,
                        columns,
                        first: 0,
                        row: columns * BLOCK,
                        column: BLOCK,
                        plane: None,
                    };
                    let own = rows * columns * BLOCK;
                    let mut own = Field::new(out, 1, padded(self.filters) / BLOCK, own);
                    self.multiply(instructions, work, &chunk, Some(places), &mut own);
                }
                if !stored {
                    self.scatter(&region, group, work, out, y);
                }
            }
        }
    }

    fn multiply(
        &self,
        instructions: Instructions,
        work: &Work<'_>,
        chunk: &Chunk<'_>,
        places: Option<Places>,
        y: &mut Field<'_>,
    ) {
        let Chunk { region, group, ref units, strip } = *chunk;
        let spacing = self.spacing();
        let row = region.p.0 - work.rows.start;
        let column = region.q.0 - work.columns.start;
        // Numbers from one place to the next.
        let (place, plane) = match self.plain.1 {
            true => (1, Some(self.rows.whole * self.columns.whole)),
            false => (BLOCK, None),
        };
        let skipped = plane.map_or(0, |plane| group * self.filters * plane);
        let places = places.unwrap_or(Places {
            sample: region.n.0,
            samples: region.n.1,
            rows: region.p.1,
            columns: region.q.1,
            first: ((self.rows.first + row * self.rows.step) * self.columns.whole
                + (self.columns.first + column * self.columns.step))
                * place
                + skipped,
            row: self.rows.step * self.columns.whole * place,
            column: self.columns.step * place,
            plane,
        });
        let channels = self.channels.min(units.end * spacing) - units.start * spacing;
        let strip = Strip { channels, ..strip };
        let last = units.end >= self.units();
        if self.each {
            return self.multiply_each(instructions, work, chunk, places, y);
        }
        let panels = if self.aligned() { work.panels.clone() } else { 0..self.panels() };
        for panel in panels.clone() {
            let width = self.width(panel);
            let w = &work.packed[group * self.group() + panel * self.panel()..];
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
                    blocks: self.units(),
                    from: units.start,
                    width,
                    filters: count.min(width),
                    y,
                    first,
                    places,
                    adds: units.start > 0,
                    finish,
                });
            }
        }
    }

    fn multiply_each(
        &self,
        instructions: Instructions,
        work: &Work<'_>,
        chunk: &Chunk<'_>,
        places: Places,
        y: &mut Field<'_>,
    ) {
        let clamp = work.epilogue.clamp;
        let clamp = (clamp != Clamp::NONE).then_some((clamp.slope, clamp.top));
        for (at, unit) in chunk.units.clone().enumerate() {
            let strip = Strip {
                x: &chunk.strip.x[at * chunk.strip.block..],
                channels: BLOCK,
                ..chunk.strip
            };
            let w = &work.packed[unit * self.taps() * BLOCK..][..self.taps() * BLOCK];
            let mut shift = [0.0; PANEL];
            let shifts = work.epilogue.shift.iter().skip(unit * BLOCK).take(BLOCK);
            shift.iter_mut().zip(shifts).for_each(|(to, from)| *to = *from);
            let finish = Finish { shift: &shift, clamp };
            let block = unit - work.panels.start * (PANEL / BLOCK);
            for (range, taps) in self.segments(chunk.region) {
                instructions.run(Each { strip, taps, range, w, y, block, places, finish });
            }
        }
    }

    /// Rows of places of a strip and places of each, and the rows and columns of taps that read
    /// inside of x for them.
    fn segments(&self, region: Region) -> impl Iterator<Item = (Ranges, Ranges)> {
        let Region { n, p, q } = region;
        let (columns, few) = (self.columns, self.planes && self.filters <= BLOCK);
        runs(p.1, move |at| self.rows.inside(p.0 + at)).flat_map(move |(rows, down)| {
            // Vectors of places would be filled in part.
            let inside = move |at| match n.1 >= MANY && !few {
                true => columns.inside(q.0 + at),
                false => 0..columns.taps,
            };
            runs(q.1, inside).map(move |(columns, across)| {
                let places = columns.start * n.1..columns.end * n.1;
                ((rows.clone(), places), (down.clone(), across))
            })
        })
    }

    /// Writes a group's strip to where it belongs.
    fn scatter(
        &self,
        region: &Region,
        group: usize,
        work: &Work<'_>,
        strip: &[f32],
        y: &mut Field<'_>,
    ) {
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
                            let place = (row - work.rows.start) * width + column;
                            let at = (place - work.columns.start) * BLOCK + channel % BLOCK;
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

/// Two ranges, down and across.
type Ranges = (Range<usize>, Range<usize>);

/// Some channels of a group in a strip.
struct Chunk<'a> {
    region: Region,
    group: usize,
    units: Range<usize>,
    strip: Strip<'a>,
}

/// Copies what the places of a strip read, for each remainder of columns and rows by the strides.
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
        let Region { n, p, q } = self.region;
        if self.direct.turns() && self.direct.columns.reach(q.1) * n.1 >= BLOCK {
            return self.turn(isa.narrow());
        }
        let Self { direct, x, group, units, to, .. } = self;
        let (down, across) = (direct.rows, direct.columns);
        let (place, reach) = (n.1 * direct.spacing(), across.reach(q.1));
        let mut rows = to.chunks_exact_mut(reach * place);
        for unit in units {
            for column in 0..across.phases() {
                let columns = across.reached(q.0..q.0 + reach, column);
                let inside = columns.start - q.0..columns.end - q.0;
                let first = across.origin(columns.start) + column.cast_signed();
                for row in 0..down.phases() {
                    for (at, to) in (p.0..p.0 + down.reach(p.1)).zip(&mut rows) {
                        let h = down.origin(at) + row.cast_signed();
                        let h = usize::try_from(h).ok().filter(|h| *h < down.input);
                        let (Some(h), false) = (h, inside.is_empty()) else {
                            zero(isa.narrow(), to);
                            continue;
                        };
                        let (left, rest) = to.split_at_mut(inside.start * place);
                        let (to, right) = rest.split_at_mut(inside.len() * place);
                        zero(isa.narrow(), left);
                        zero(isa.narrow(), right);
                        let first = first.cast_unsigned();
                        let from = Source { x, direct, group, unit, h, first };
                        for sample in 0..n.1 {
                            let to = &mut to[sample * direct.spacing()..];
                            from.copy(isa.narrow(), n.0 + sample, inside.len(), n.1, to);
                        }
                    }
                }
            }
        }
    }
}

impl Pack<'_> {
    /// Copies blocks into planes, eight places of eight channels at a time; a row has as many.
    #[inline(always)]
    fn turn<S: Narrow>(self, s: S) {
        let Self { direct, x, region: Region { n, p, q }, group, units, to } = self;
        let (down, across) = (direct.rows, direct.columns);
        let (rows, columns) = (down.reach(p.1), across.reach(q.1));
        let line = columns * n.1;
        let inside = across.reached(q.0..q.0 + columns, 0);
        let (start, end) = (inside.start - q.0, inside.end - q.0);
        let skipped = usize::try_from(across.origin(inside.start)).unwrap_or(0);
        let blocks = (direct.groups * direct.channels).div_ceil(BLOCK);
        let first = group * direct.channels / BLOCK;
        let block_len = down.input * across.input * BLOCK;
        for block in units.start / BLOCK..units.end.div_ceil(BLOCK) {
            let own = units.start.max(block * BLOCK)..units.end.min((block + 1) * BLOCK);
            for row in 0..rows {
                let at_of = |unit: usize| ((unit - units.start) * rows + row) * line;
                let h = usize::try_from(down.origin(p.0 + row)).ok();
                let Some(h) = h.filter(|h| *h < down.input && start < end) else {
                    own.clone().for_each(|unit| zero(s, &mut to[at_of(unit)..][..line]));
                    continue;
                };
                // The first column inside, of the first sample.
                let x = &x[(n.0 * blocks + first + block) * block_len
                    + (h * across.input + skipped) * BLOCK..];
                let sample = blocks * block_len;
                let mut done = 0;
                while done < line {
                    // The last eight overlap those before them.
                    let from = done.min(line - BLOCK);
                    done = from + BLOCK;
                    let mut places = [s.zero(); BLOCK];
                    let (mut column, mut at) = (from / n.1, from % n.1);
                    if n.1 == 1 && from >= start && done <= end {
                        let x = x[(from - start) * BLOCK..].chunks_exact(BLOCK);
                        for (to, x) in places.iter_mut().zip(x) {
                            *to = s.load(x);
                        }
                    } else if at + BLOCK <= n.1 {
                        if (start..end).contains(&column) {
                            let x = &x[at * sample + (column - start) * BLOCK..];
                            for (to, x) in places.iter_mut().zip(x.chunks(sample)) {
                                *to = s.load(x);
                            }
                        }
                    } else {
                        for to in &mut places {
                            if (start..end).contains(&column) {
                                *to = s.load(&x[at * sample + (column - start) * BLOCK..]);
                            }
                            at += 1;
                            if at == n.1 {
                                (column, at) = (column + 1, 0);
                            }
                        }
                    }
                    for (channel, values) in s.transpose(places).into_iter().enumerate() {
                        let unit = block * BLOCK + channel;
                        if own.contains(&unit) {
                            s.store(values, &mut to[at_of(unit) + from..]);
                        }
                    }
                }
            }
        }
    }
}

/// Writes the packed weights of a panel: for each [`together`] filters block, tap, channel of the
/// block, filter.
struct Weigh<'a> {
    direct: &'a Direct,
    weight: &'a [f32],
    scale: &'a [f32],
    group: usize,
    panel: usize,
    packed: &'a mut [f32],
}

impl Kernel for Weigh<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { direct, weight, scale, group, panel, packed } = self;
        let (taps, spacing, width) = (direct.taps(), direct.spacing(), direct.width(panel));
        let kernel = direct.rows.kernel * direct.columns.kernel;
        let (s, across) = (isa.narrow(), direct.columns.taps);
        let factor = |at: usize| scale.get(at).copied().unwrap_or(1.0);
        // Where the first tap of a weight lies, and from one filter to the next.
        let (first, step) = match direct.turned {
            true => (group * direct.channels * direct.filters, 1),
            false => (group * direct.filters * direct.channels, direct.channels),
        };
        let at = |channel: usize, filter: usize| match direct.turned {
            true => (first + channel * direct.filters + filter) * kernel,
            false => (first + filter * direct.channels + channel) * kernel,
        };
        let rows = direct.rows_of_weights();
        for block in (0..width).step_by(BLOCK) {
            let filter = panel * PANEL + block;
            let count = (direct.filters - filter).min(BLOCK);
            let mut factors = [1.0; BLOCK];
            for (l, to) in factors[..count].iter_mut().enumerate() {
                *to = factor(group * direct.filters + filter + l);
            }
            let factors = s.load(&factors);
            // The filters that lie together with these.
            let first = block - block % together::<I>();
            let wide = together::<I>().min(width - first);
            let packed = &mut packed[first * rows + (block - first)..];
            let row = |channel: usize, tap: usize| {
                ((channel / spacing * taps + tap) * spacing + channel % spacing) * wide
            };
            // Runs of weights of which every filter has as many, one after the other.
            let whole = taps == kernel && count == BLOCK;
            let (runs, run) = match (whole, direct.turned) {
                (false, _) => (direct.channels, 0),
                (_, true) => (direct.channels, kernel / BLOCK * BLOCK),
                (_, false) => (1, direct.channels * kernel / BLOCK * BLOCK),
            };
            for first in 0..runs {
                let factors = match direct.turned {
                    true => s.splat(factor(group * direct.channels + first)),
                    false => factors,
                };
                let from = &weight[at(first, filter)..];
                let (mut channel, mut tap) = (first, 0);
                for done in (0..run).step_by(BLOCK) {
                    let mut w = [s.zero(); BLOCK];
                    for (l, w) in w.iter_mut().enumerate() {
                        *w = s.load(&from[l * step * kernel + done..]);
                    }
                    for w in s.transpose(w) {
                        let to = if direct.turned { kernel - 1 - tap } else { tap };
                        s.store(s.mul(factors, w), &mut packed[row(channel, to)..]);
                        tap += 1;
                        if tap == kernel {
                            (channel, tap) = (channel + 1, 0);
                        }
                    }
                }
            }
            for channel in 0..direct.channels {
                let factors = match direct.turned {
                    true => s.splat(factor(group * direct.channels + channel)),
                    false => factors,
                };
                let from = &weight[at(channel, filter)..];
                for r in 0..direct.rows.taps {
                    for c in 0..across {
                        let tap = direct.rows.weight(r) * direct.columns.kernel
                            + direct.columns.weight(c);
                        // What the runs have.
                        if tap + if direct.turned { 0 } else { channel * kernel } < run {
                            continue;
                        }
                        let mut w = [0.0; BLOCK];
                        let from = from[tap..].iter().step_by(step * kernel);
                        for (w, from) in w[..count].iter_mut().zip(from) {
                            *w = *from;
                        }
                        let to = row(channel, r * across + c);
                        s.store(s.mul(factors, s.load(&w)), &mut packed[to..]);
                    }
                }
            }
        }
    }
}

/// Fills few numbers with zeros.
#[inline(always)]
fn zero<S: Simd>(s: S, to: &mut [f32]) {
    let mut blocks = to.chunks_exact_mut(S::LANES);
    blocks.by_ref().for_each(|to| s.store(s.zero(), to));
    blocks.into_remainder().iter_mut().for_each(|to| *to = 0.0);
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
    fn gradient_rows(&self, units: usize) -> usize {
        if self.each {
            return self.taps();
        }
        (units * self.spacing()).min(self.channels) * self.taps()
    }

    /// Numbers of a partial gradient for some units.
    pub(crate) fn partial(&self, units: usize) -> usize {
        if self.each {
            return units * BLOCK * self.taps();
        }
        self.groups * padded(self.filters) * self.gradient_rows(units)
    }

    /// Units of channels among which a gradient may be split.
    pub(crate) const fn splits(&self) -> usize {
        if self.spacing() == 1 { 1 } else { self.units() }
    }

    /// Samples, rows and columns of a strip of the gradient, at most.
    fn gradient_extent(&self) -> (usize, usize, usize) {
        if self.spacing() > 1 {
            return self.extent();
        }
        let (p, q) = (self.rows.output, self.columns.output);
        let places = (PACK / self.gradient_rows(self.units()).max(1)).clamp(1, 2 * PLACES);
        (1, (places / q.max(1)).clamp(1, p.max(1)), places.min(q))
    }

    /// Rows and columns of the planes that a strip with few channels reads.
    fn around(&self, rows: usize, columns: usize) -> (usize, usize) {
        let along = |axis: &Axis, places: usize| (places - 1) * axis.stride + axis.taps;
        (along(&self.rows, rows.max(1)), along(&self.columns, columns.max(1)))
    }

    /// Numbers of scratch for a running task of [`gradient`](Self::gradient).
    pub(crate) fn gradient_lane(&self) -> usize {
        let extent = self.gradient_extent();
        let (samples, rows, columns) = extent;
        let places = samples * rows * columns;
        let own = if self.planes { self.few_len(rows, columns) } else { self.pack_len(extent) };
        (self.table() + places * PANEL + own).next_multiple_of(16)
    }

    /// Numbers that such a gradient takes for a strip: sums, planes of x, and planes of dy.
    fn few_len(&self, rows: usize, columns: usize) -> usize {
        let (down, across) = self.around(rows, columns);
        let sums = self.groups * self.channels * self.taps() * BLOCK * BLOCK;
        let dy = (rows * across).next_multiple_of(SLACK) * BLOCK;
        sums + self.channels * down * across + self.columns.taps + SLACK + dy
    }

    /// The gradient for few channels and filters, as [`gradient`](Self::gradient).
    #[expect(clippy::too_many_arguments, reason = "what a gradient is made of")]
    fn gradient_few(
        &self,
        instructions: Instructions,
        samples: usize,
        x: &[f32],
        dy: &[f32],
        partial: &mut [f32],
        db: &mut [f32],
        lane: &mut [f32],
    ) {
        let extent = self.gradient_extent();
        let (table, lane) = lane.split_at_mut(self.table());
        let taps = &mut bytemuck::cast_slice_mut::<f32, u32>(table)[..self.taps()];
        let (lifted, lane) = lane.split_at_mut(extent.1 * extent.2 * PANEL);
        let own = self.channels * self.taps() * BLOCK * BLOCK;
        let (sums, lane) = lane.split_at_mut(self.groups * own);
        sums.fill(0.0);
        let (down, across) = (0..self.rows.output, 0..self.columns.output);
        for region in self.regions(extent, samples, down, across) {
            let (down, across) = self.around(region.p.1, region.q.1);
            for (at, tap) in taps.iter_mut().enumerate() {
                *tap = (at / self.columns.taps * across + at % self.columns.taps) as u32;
            }
            let places = (region.p.1 * across).next_multiple_of(SLACK);
            let plane = down * across;
            let all = self.channels * plane;
            let (planes, dy_planes) = lane.split_at_mut(all + self.columns.taps + SLACK);
            // The last places' gradients past the end are 0, and so must be finite what meets them.
            planes[all..].fill(0.0);
            let dy_planes = &mut dy_planes[..places * BLOCK];
            for (group, sums) in sums.chunks_exact_mut(own).enumerate() {
                self.pad(instructions, x, &region, group, planes);
                let first = group * BLOCK;
                let db = db.get_mut(first..first + BLOCK).unwrap_or_default();
                let (dy, row) = if self.groups == 1 {
                    let (height, width) = (self.rows.output, self.columns.output);
                    let at = (region.n.0 * height + region.p.0) * width + region.q.0;
                    (&dy[at * BLOCK..], width * BLOCK)
                } else {
                    let (to, filters) = (&mut lifted[..region.places() * BLOCK], 0..BLOCK);
                    instructions.run(Lift {
                        direct: self,
                        dy,
                        region,
                        group,
                        filters,
                        to,
                        db: &mut [],
                    });
                    (&*lifted, region.q.1 * BLOCK)
                };
                let shape = (region.p.1, region.q.1);
                let to = &mut *dy_planes;
                instructions.run(Turn { dy, row, shape, pitch: across, places, to, db });
                for (c, dw) in sums.chunks_exact_mut(own / self.channels).enumerate() {
                    let (x, dy, filters) = (&planes[c * plane..], &*dy_planes, self.filters);
                    instructions.run(CorrelateFew { x, taps, dy, places, filters, dw });
                }
            }
        }
        let rows = self.gradient_rows(self.units());
        for (group, sums) in sums.chunks_exact(own).enumerate() {
            let partial = &mut partial[group * BLOCK * rows..];
            for (partial, lanes) in partial.iter_mut().zip(sums.chunks_exact(BLOCK)) {
                *partial += lanes.iter().sum::<f32>();
            }
        }
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
        if self.planes {
            return self.gradient_few(instructions, samples, x, dy, partial, db, lane);
        }
        let extent = self.gradient_extent();
        let (table, lane) = lane.split_at_mut(self.table());
        let taps = &mut bytemuck::cast_slice_mut::<f32, u32>(table)[..self.taps()];
        let places = extent.0 * extent.1 * extent.2;
        let (packed_dy, packed_x) = lane.split_at_mut(places * PANEL);
        let rows = self.gradient_rows(units.len());
        let (down, across) = (0..self.rows.output, 0..self.columns.output);
        for region in self.regions(extent, samples, down, across) {
            let strip = self.strip(&region, taps);
            for group in 0..self.groups {
                for (unit, count) in even(units.clone(), self.together(extent)) {
                    let own = unit..unit + count;
                    let x = self.read(instructions, x, region, group, own.clone(), packed_x);
                    let strip = Strip { x, ..strip };
                    let chunk = Chunk { region, group, units: own, strip };
                    if self.each {
                        let dw = &mut partial[(unit - units.start) * BLOCK * self.taps()..];
                        self.correlate_each(instructions, &chunk, dy, packed_dy, dw, db);
                        continue;
                    }
                    for panel in 0..self.panels() {
                        let width = self.width(panel);
                        let to = &mut packed_dy[..region.places() * width];
                        let first = group * padded(self.filters) + panel * PANEL;
                        let db = match unit == 0 {
                            true => db.get_mut(first..first + width).unwrap_or_default(),
                            false => &mut [],
                        };
                        let filters = panel * PANEL..panel * PANEL + width;
                        instructions.run(Lift { direct: self, dy, region, group, filters, to, db });
                        let dy = &packed_dy[..region.places() * width];
                        let dw = &mut partial[first * rows..][..width * rows];
                        let dw = &mut dw[(unit - units.start) * BLOCK * self.taps() * width..];
                        self.correlate(instructions, &chunk, dy, width, dw);
                    }
                }
            }
        }
    }

    fn correlate(
        &self,
        instructions: Instructions,
        chunk: &Chunk<'_>,
        dy: &[f32],
        width: usize,
        dw: &mut [f32],
    ) {
        let Chunk { region: Region { n, p, q }, ref units, strip, .. } = *chunk;
        for (at, unit) in units.clone().enumerate() {
            let taken = (self.channels - unit * BLOCK).min(BLOCK);
            for (r, offsets) in strip.taps.chunks(strip.across).enumerate() {
                let down = self.rows.reached(p.0..p.0 + p.1, r);
                // Of few channels, all taps of a row are summed together, with zeros where they
                // read padding; of more, those that read inside of x for the same places.
                let all = taken <= FEW && strip.step > 0;
                let reached = |s: usize| match all {
                    true => q.0..q.0 + q.1,
                    false => self.columns.reached(q.0..q.0 + q.1, s),
                };
                let mut next = 0;
                while next < offsets.len() {
                    let (s, across) = (next, reached(next));
                    next += 1;
                    while strip.step > 0 && next < offsets.len() && reached(next) == across {
                        next += 1;
                    }
                    if down.is_empty() || across.is_empty() {
                        continue;
                    }
                    let (row, column) = (down.start - p.0, (across.start - q.0) * n.1);
                    let first = row * strip.pitch + column * BLOCK + offsets[s] as usize;
                    instructions.run(Correlate {
                        x: &strip.x[at * strip.block + first..],
                        x_pitch: strip.pitch,
                        taken,
                        taps: next - s,
                        tap: strip.step,
                        dy: &dy[(row * q.1 * n.1 + column) * width..],
                        dy_pitch: q.1 * n.1 * width,
                        width,
                        rows: down.len(),
                        places: across.len() * n.1,
                        dw: &mut dw[(at * BLOCK * self.taps() + r * strip.across + s) * width..],
                        step: self.taps() * width,
                    });
                }
            }
        }
    }

    fn correlate_each(
        &self,
        instructions: Instructions,
        chunk: &Chunk<'_>,
        dy: &[f32],
        packed_dy: &mut [f32],
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        let Chunk { region, group, ref units, strip } = *chunk;
        let Region { n, p, q } = region;
        let packed_dy = &mut packed_dy[..region.places() * BLOCK];
        let blocks = dw.chunks_exact_mut(self.taps() * BLOCK);
        for ((at, unit), dw) in units.clone().enumerate().zip(blocks) {
            let filters = unit * BLOCK..(unit + 1) * BLOCK;
            let db = db.get_mut(filters.clone()).unwrap_or_default();
            let to = &mut *packed_dy;
            instructions.run(Lift { direct: self, dy, region, group, filters, to, db });
            for (tap, dw) in dw.chunks_exact_mut(BLOCK).enumerate() {
                let (r, s) = (tap / strip.across, tap % strip.across);
                let down = self.rows.reached(p.0..p.0 + p.1, r);
                let across = self.columns.reached(q.0..q.0 + q.1, s);
                if down.is_empty() || across.is_empty() {
                    continue;
                }
                let (row, column) = (down.start - p.0, (across.start - q.0) * n.1);
                let offset = strip.taps[tap] as usize + row * strip.pitch + column * BLOCK;
                instructions.run(CorrelateEach {
                    x: &strip.x[at * strip.block + offset..],
                    x_pitch: strip.pitch,
                    dy: &packed_dy[(row * q.1 * n.1 + column) * BLOCK..],
                    dy_pitch: q.1 * n.1 * BLOCK,
                    rows: down.len(),
                    places: across.len() * n.1,
                    dw,
                });
            }
        }
    }

    /// Copies the planes that one sample's strip reads, with the padding around them.
    fn pad(
        &self,
        instructions: Instructions,
        x: &[f32],
        region: &Region,
        group: usize,
        to: &mut [f32],
    ) {
        let (down, across) = self.around(region.p.1, region.q.1);
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
            to,
        });
    }

    /// Numbers of the gradient of one group's filters of a panel.
    pub(crate) const fn filter(&self) -> usize {
        if self.each { self.taps() } else { self.channels * self.taps() }
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
        if self.each {
            let taps = self.taps();
            for (filter, dw) in (panel * PANEL..).zip(dw.chunks_exact_mut(taps)) {
                if units.contains(&(filter / BLOCK)) {
                    let block = (filter / BLOCK - units.start) * taps * BLOCK;
                    let sums = partial[block + filter % BLOCK..].iter().step_by(BLOCK);
                    dw.iter_mut().zip(sums).for_each(|(dw, sum)| *dw += sum);
                }
            }
            return;
        }
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
    /// Filters of the group: a multiple of 8 from a multiple of 8 on.
    filters: Range<usize>,
    to: &'a mut [f32],
    /// A sum for each filter, or empty.
    db: &'a mut [f32],
}

impl Kernel for Lift<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { direct, dy, region, group, filters, to, db } = self;
        let (s, Region { n, p, q }) = (isa.narrow(), region);
        let (height, width) = (direct.rows.output, direct.columns.output);
        let first = group * direct.filters + filters.start;
        let (from, filters) = (filters.start, filters.len());
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
                        let count = (direct.filters - from - block * BLOCK).min(BLOCK);
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

/// Turns dy of eight filters, place by place, into planes of rows `pitch` numbers apart, with zeros
/// between rows; and adds it up.
struct Turn<'a> {
    dy: &'a [f32],
    /// Numbers of dy from one row to the next.
    row: usize,
    /// Rows and columns.
    shape: (usize, usize),
    pitch: usize,
    /// Numbers of a plane.
    places: usize,
    to: &'a mut [f32],
    /// A sum for each filter, or empty.
    db: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { dy, row, shape: (rows, columns), pitch, places, to, db } = self;
        let s = isa.narrow();
        let mut sums = [s.zero(); 2];
        for p in 0..rows {
            let (dy, first) = (&dy[p * row..][..columns * BLOCK], p * pitch);
            let mut column = 0;
            while column < columns && first + column + BLOCK <= places {
                let mut eight = [s.zero(); BLOCK];
                for (to, dy) in eight.iter_mut().zip(dy[column * BLOCK..].chunks_exact(BLOCK)) {
                    *to = s.load(dy);
                }
                for pair in eight.chunks_exact(2) {
                    sums = [s.add(sums[0], pair[0]), s.add(sums[1], pair[1])];
                }
                for (filter, plane) in s.transpose(eight).into_iter().enumerate() {
                    s.store(plane, &mut to[filter * places + first + column..]);
                }
                column += BLOCK;
            }
            for at in column..columns {
                let dy = &dy[at * BLOCK..];
                sums[0] = s.add(sums[0], s.load(dy));
                for filter in 0..BLOCK {
                    to[filter * places + first + at] = dy[filter];
                }
            }
            // The zeros up to the next row, or the end.
            let end = if p + 1 == rows { places } else { first + pitch };
            let filled = first + column.max(columns);
            for filter in 0..BLOCK {
                let to = &mut to[filter * places..][..places];
                to[filled.min(end)..end].iter_mut().for_each(|to| *to = 0.0);
            }
        }
        if db.len() >= BLOCK {
            s.store(s.add(s.load(db), s.add(sums[0], sums[1])), db);
        }
    }
}
