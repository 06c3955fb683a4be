//! Nearest neighbours by matrix products, exact.
//!
//! Distances come in tiles from `|a|^2 + |b|^2 - 2 a.b`, which is fast and, on features with a
//! mean far from 0, wrong. So:
//!
//! 1. both sides are shifted by a point amid the bank, which changes no distance;
//! 2. each distance of a tile has an error bound, `E = g (|a|^2 + |b|^2)` with g from the rounding
//!    of sums as long as the rows ([`error`]);
//! 3. a row keeps the least that a neighbour's distance can be at most, its limit, and the few
//!    rows whose distance may be below it ([`pairs`], [`places`]); tiles compare whole vectors
//!    with the limits ([`distance`](crate::arch::distance));
//! 4. those few are measured by [`Direct`], and only these numbers are compared and kept.
//!
//! The result is that of the search by direct distances, ties and duplicates included, whatever
//! the order of the work. What is infinite, or so large that squares overflow, has no bound and is
//! always measured. A search measures about one row for each neighbour sought, so the products
//! are nearly all of the work; of a set with itself it makes each product once.

mod across;
mod pairs;
mod places;

use std::cell::Cell;

use rayon::prelude::*;
use sepal_core::neighbour::{Nearest, Pair, Rows};

use crate::arch::Instructions;
use crate::arch::distance::{
    BLOCKS, DEPTH, Direct, Element, LINE, Pack, Packed, TOGETHER, WIDEST, passes,
};
pub(crate) use pairs::{batch, batch_numbers};

/// Rows whose medians give the shift.
const SAMPLED: usize = 15;

/// Added to every error bound: squares below it round away.
const TINY: f32 = f32::MIN_POSITIVE;

/// Rows with a longer square have no bound.
const LONG: f32 = 1e37;

/// Rows that one task measures at least.
const ROWS: usize = 64;

/// Numbers that a thread keeps from one search to the next at most: 32 MB.
const KEPT: usize = 1 << 23;

/// A factor on the squared lengths that bounds how far an expanded distance is from the direct
/// one.
///
/// With u the rounding of one operation, a sum of n products is off by n u times the sum of their
/// sizes. Products and squared lengths are summed in passes of at most [`DEPTH`] features, which are
/// added up: DEPTH + D / 64 roundings, once for the lengths, and once for the product, whose double
/// is at most their sum. The direct distance is one sum of D squares, and at most twice the sum of
/// the lengths: 2 D. The shift adds 4, the rest is for what follows on the bound itself.
fn error(dim: usize) -> f32 {
    let pass = dim.min(DEPTH) as f32;
    (2.0 * pass + dim as f32 * (2.0 + 1.0 / 32.0) + 64.0) * (f32::EPSILON / 2.0) * 1.0625
}

/// Writes a point amid the rows; any would do, the better it is the fewer distances are measured.
/// Medians of a few rows, so that no single row, however far, draws it away.
pub(crate) fn shift<T: Element>(rows: Rows<'_, T>, shift: &mut [f32]) {
    let count = rows.len().min(SAMPLED);
    let step = rows.len() / count.max(1);
    for (at, shift) in shift.chunks_mut(LINE).enumerate() {
        let mut columns = [[0.0f32; LINE]; SAMPLED];
        for (i, values) in columns.iter_mut().take(count).enumerate() {
            let row = rows.row(i * step).unwrap_or_default();
            for (value, x) in values.iter_mut().zip(row.get(at * LINE..).unwrap_or_default()) {
                let x = x.widen();
                *value = if x.is_finite() { x } else { 0.0 };
            }
        }
        // All columns at once: neighbours change places until all are in order.
        for round in 0..count {
            for i in (round % 2 + 1..count).step_by(2) {
                let (before, after) = columns.split_at_mut(i);
                for (a, b) in before[i - 1].iter_mut().zip(&mut after[0]) {
                    (*a, *b) = if *b < *a { (*b, *a) } else { (*a, *b) };
                }
            }
        }
        shift.copy_from_slice(&columns[count / 2][..shift.len()]);
    }
}

/// Rows of a block, for a set of some rows: small sets have to give work to all threads.
fn block(rows: usize, threads: usize) -> usize {
    let enough = |size: &usize| threads == 1 || rows / size > 2 * threads;
    let [.., least] = BLOCKS;
    BLOCKS.into_iter().find(enough).unwrap_or(least)
}

/// Memory that is cut from the front, each piece at the start of a cache line.
pub(crate) struct Cut<'a>(&'a mut [f32]);

impl<'a> Cut<'a> {
    /// Takes up to a line to begin at one.
    pub(crate) fn new(memory: &'a mut [f32]) -> Self {
        let past = memory.as_ptr().addr() / size_of::<f32>() % LINE;
        Self(memory.get_mut((LINE - past) % LINE..).unwrap_or_default())
    }

    /// The next `count` numbers.
    pub(crate) fn take(&mut self, count: usize) -> &'a mut [f32] {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut(line(count));
        self.0 = rest;
        &mut taken[..count]
    }
}

/// Numbers of whole lines.
pub(crate) const fn line(count: usize) -> usize {
    count.next_multiple_of(LINE)
}

/// Features that are packed: at least 1.
fn packed_dim(dim: usize) -> usize {
    dim.max(1)
}

/// Numbers that [`pack`] takes for `rows` rows, with any instructions.
fn packed_numbers(rows: usize, dim: usize) -> usize {
    rows.next_multiple_of(WIDEST).saturating_mul(packed_dim(dim).saturating_add(3))
}

/// Packs rows, in parallel. Without `labels` all count as of one.
fn pack<'a, T: Element>(
    instructions: Instructions,
    rows: Rows<'_, T>,
    labels: bool,
    shift: &[f32],
    memory: &'a mut [f32],
) -> Packed<'a> {
    let (width, dim) = (instructions.panel(), packed_dim(rows.dim));
    let padded = rows.len().next_multiple_of(width);
    let mut memory = Cut::new(memory);
    let (panels, low) = (memory.take(padded * dim), memory.take(padded));
    let (errors, names) = (memory.take(padded), memory.take(padded));
    low.fill(0.0);
    let data = rows.data.get(..rows.len() * rows.dim).unwrap_or_default();
    let mut rest = &mut *panels;
    for (from, depth) in passes(dim) {
        let (pass, after) = std::mem::take(&mut rest).split_at_mut(padded * depth);
        rest = after;
        let panels = pass.par_chunks_mut(width * depth).zip(low.par_chunks_mut(width));
        let least = (1 << 15) / (width * depth);
        panels.enumerate().with_min_len(least.max(1)).for_each(|(at, (panel, norms))| {
            let rest = data.get(at * width * rows.dim..).unwrap_or_default();
            let data = rest.get(..width * rows.dim).unwrap_or(rest);
            instructions.run(Pack { rows: data, dim: rows.dim, shift, from, panel, norms });
        });
    }
    let factor = error(dim);
    let all = low.iter_mut().zip(errors.iter_mut().zip(names.iter_mut())).enumerate();
    for (at, (low, (error, name))) in all {
        let norm = *low;
        let label = rows.labels.get(at).filter(|_| labels);
        *name = label.map_or(0.0, |&label| f32::from(label));
        (*low, *error) = if at >= rows.len() {
            (f32::INFINITY, 0.0)
        } else if norm < LONG {
            (norm - (norm * factor + TINY), 2.0 * (norm * factor + TINY))
        } else {
            // Infinite, or NaN where a feature is.
            (f32::INFINITY, norm + f32::INFINITY)
        };
    }
    Packed { panels, dim, low, error: errors, labels: names }
}

/// Rows and what tells how far they are: the two sides of a search.
#[derive(Clone, Copy)]
struct Sides<'a, T> {
    instructions: Instructions,
    queries: Rows<'a, T>,
    bank: Rows<'a, T>,
    /// The index of the bank's first row.
    first: u32,
}

impl<'a, T: Element> Sides<'a, T> {
    /// Queries and rows of the bank, measured.
    fn measure(&self, pairs: &[(usize, usize); TOGETHER]) -> [f32; TOGETHER] {
        let pairs = pairs.each_ref().map(|&(query, row)| {
            let (a, b) = (self.queries.row(query), self.bank.row(row));
            (a.unwrap_or_default(), b.unwrap_or_default())
        });
        self.instructions.run(Direct { pairs: &pairs })
    }

    /// Gives `each` what is measured between one query and many rows of the bank.
    fn against(
        &self,
        query: usize,
        rows: impl Iterator<Item = usize>,
        mut each: impl FnMut(usize, Nearest),
    ) {
        let mut queue = Queue::new(*self);
        for row in rows {
            queue.push(query, row, 0, &mut |_, row, _, near| each(row, near));
        }
        queue.flush(&mut |_, row, _, near| each(row, near));
    }

    /// The row's index.
    fn index(&self, row: usize) -> u32 {
        self.first.saturating_add(u32::try_from(row).unwrap_or(u32::MAX))
    }
}

/// Pairs of rows that wait until enough of them are there to be measured together.
struct Queue<'a, T> {
    sides: Sides<'a, T>,
    waiting: [(usize, usize); TOGETHER],
    kinds: [usize; TOGETHER],
    count: usize,
}

impl<'a, T: Element> Queue<'a, T> {
    fn new(sides: Sides<'a, T>) -> Self {
        Self { sides, waiting: [(0, 0); TOGETHER], kinds: [0; TOGETHER], count: 0 }
    }

    /// Adds a query, a row of the bank and their kind; `each` gets them back with what was
    /// measured.
    fn push(
        &mut self,
        query: usize,
        row: usize,
        kind: usize,
        each: &mut impl FnMut(usize, usize, usize, Nearest),
    ) {
        self.waiting[self.count] = (query, row);
        self.kinds[self.count] = kind;
        self.count += 1;
        if self.count == TOGETHER {
            self.flush(each);
        }
    }

    fn flush(&mut self, each: &mut impl FnMut(usize, usize, usize, Nearest)) {
        if self.count == 0 {
            return;
        }
        let last = self.waiting[0];
        self.waiting[self.count..].fill(last);
        let measured = self.sides.measure(&self.waiting);
        let waiting = self.waiting.iter().zip(self.kinds).zip(measured);
        for ((&(query, row), kind), dist2) in waiting.take(self.count) {
            each(query, row, kind, Nearest { index: self.sides.index(row), dist2 });
        }
        self.count = 0;
    }
}

/// Whether a row of these has no bound but can be a neighbour.
fn is_hard(rows: &Packed<'_>, at: usize) -> bool {
    rows.error.get(at) == Some(&f32::INFINITY)
}

/// Puts a candidate at its place, if it has one; what follows moves down.
fn insert(places: &mut [Nearest], candidate: Nearest) {
    let at = places.partition_point(|place| !candidate.precedes(*place));
    let Some(tail) = places.get_mut(at..).filter(|tail| !tail.is_empty()) else { return };
    tail.rotate_right(1);
    if let Some(place) = tail.first_mut() {
        *place = candidate;
    }
}

/// Calls `with` with `count` numbers that hold anything, kept from one search of this thread to
/// the next.
fn with_memory<R>(count: usize, with: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static MEMORY: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let mut memory = MEMORY.take();
    if memory.len() < count {
        memory = vec![0.0; count];
    }
    let out = with(&mut memory[..count]);
    if memory.len() <= KEPT {
        MEMORY.set(memory);
    }
    out
}

/// Some of the rows.
fn part<T>(rows: Rows<'_, T>, from: usize, to: usize) -> Rows<'_, T> {
    Rows {
        data: rows.data.get(from * rows.dim..to * rows.dim).unwrap_or_default(),
        dim: rows.dim,
        labels: rows.labels.get(from..to).unwrap_or_default(),
    }
}

/// As [`neighbour::nearest_pair`](sepal_core::neighbour::nearest_pair), in parallel.
///
/// Allocates a packed copy of the bank in f32 and about 100 bytes for each row and thread, of
/// which each thread keeps up to 32 MB for its next search.
pub(crate) fn nearest<T: Element>(
    instructions: Instructions,
    queries: Rows<'_, T>,
    bank: Rows<'_, T>,
    first: u32,
    skip: Option<u32>,
    pairs: &mut [Pair],
) {
    let sides = Sides { instructions, queries, bank, first };
    let itself = std::ptr::eq(queries.data, bank.data)
        && std::ptr::eq(queries.labels, bank.labels)
        && queries.dim == bank.dim;
    let indices = u32::try_from(bank.len()).ok().and_then(|rows| first.checked_add(rows));
    if itself && skip == Some(first) && indices.is_some() && pairs.len() >= bank.len() {
        let threads = rayon::current_num_threads();
        let size = block(bank.len(), threads);
        let count = pairs::numbers(bank.len(), bank.dim, size, threads);
        let pairs = pairs.get_mut(..bank.len()).unwrap_or_default();
        return with_memory(count, |memory| pairs::among(sides, size, pairs, memory));
    }
    pairs::across(sides, skip, pairs);
}

/// As [`neighbour::top_k`](sepal_core::neighbour::top_k), in parallel; allocates a packed copy of
/// the bank, and for each thread room for some hundred queries with twice as many candidates as
/// places.
pub(crate) fn top_k<T: Element>(
    instructions: Instructions,
    queries: Rows<'_, T>,
    bank: Rows<'_, T>,
    first: u32,
    skip: Option<u32>,
    k: usize,
    out: &mut [Nearest],
) {
    let sides = Sides { instructions, queries, bank, first };
    places::across(sides, skip, k, out);
}
