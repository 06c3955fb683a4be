//! The nearest of the label and the nearest of another.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;
use sepal_core::neighbour::{Nearest, Pair, Rows};

use super::{Cut, Queue, ROWS, Sides, across, block, is_hard, line, pack, packed_numbers, shift};
use crate::arch::Instructions;
use crate::arch::distance::{Block, Element, LINE, Packed, Sink, WIDEST, scratch};

/// Candidates that a row keeps of one kind.
const CANDIDATES: usize = 4;

/// Workers of a search in planned memory.
const WORKERS: usize = 8;

/// A row and a number: a distance, or the least that it can be.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Entry {
    at: u32,
    value: f32,
}

/// What a row has found, for each kind.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Found {
    /// The nearest of what was measured; of these `at` is an index, as it comes and goes.
    best: [Entry; 2],
    /// How many candidates there are.
    counts: [u32; 2],
    /// Positions that may be nearer, and the least that their distance can be.
    candidates: [[Entry; CANDIDATES]; 2],
}

/// Numbers of one [`Found`].
const FOUND: usize = size_of::<Found>() / size_of::<f32>();

/// Where a pair lies.
pub(super) trait Place: Copy + Send + Sync {
    fn pair(&self) -> Pair;
    fn set(&mut self, pair: Pair);
}

impl Place for Pair {
    fn pair(&self) -> Pair {
        *self
    }

    fn set(&mut self, pair: Pair) {
        *self = pair;
    }
}

impl Place for [u32; 4] {
    fn pair(&self) -> Pair {
        Pair::from_words(*self)
    }

    fn set(&mut self, pair: Pair) {
        *self = pair.to_words();
    }
}

/// Considers a neighbour.
fn fold(place: &mut impl Place, is_same: bool, near: Nearest) {
    let mut pair = place.pair();
    let best = if is_same { &mut pair.same } else { &mut pair.other };
    if near.precedes(*best) {
        *best = near;
        place.set(pair);
    }
}

/// Limits and findings of rows.
struct Held<'a> {
    limits: [&'a mut [f32]; 2],
    found: &'a mut [Found],
}

impl<'a> Held<'a> {
    /// Numbers that it takes for `rows` rows.
    fn numbers(rows: usize) -> usize {
        2 * line(rows) + line(rows * FOUND)
    }

    fn new(memory: &'a mut [f32], rows: usize) -> Self {
        let mut memory = Cut(memory);
        let limits = [memory.take(rows), memory.take(rows)];
        Self { limits, found: bytemuck::cast_slice_mut(memory.take(rows * FOUND)) }
    }

    /// Whether a nearest is at distance 0.
    fn zeros(&self) -> bool {
        self.found.iter().flat_map(|found| found.best).any(|best| best.value == 0.0)
    }

    /// The limits of another, and what it has measured.
    fn start_from(&mut self, other: &Held<'_>) {
        for (to, from) in self.limits.iter_mut().zip(&other.limits) {
            to.copy_from_slice(from);
        }
        for (to, from) in self.found.iter_mut().zip(&*other.found) {
            *to = Found { best: from.best, ..Found::zeroed() };
        }
    }

    /// Nothing found yet but the pairs that are there.
    fn start<'p>(&mut self, pairs: impl Iterator<Item = &'p (impl Place + 'p)>) {
        self.limits.iter_mut().for_each(|limits| limits.fill(f32::INFINITY));
        for found in &mut *self.found {
            *found = Found::zeroed();
            found.best = [Entry { at: u32::MAX, value: f32::INFINITY }; 2];
        }
        for (at, (found, pair)) in self.found.iter_mut().zip(pairs).enumerate() {
            let pair = pair.pair();
            for (kind, near) in [pair.same, pair.other].into_iter().enumerate() {
                self.limits[kind][at] = near.dist2;
                found.best[kind] = Entry { at: near.index, value: near.dist2 };
            }
        }
    }
}

/// Takes hits.
struct Closest<'a, T> {
    sides: Sides<'a, T>,
    queries: Packed<'a>,
    bank: Packed<'a>,
    /// The query that is packed first.
    from: usize,
    /// The packed query of the first limit.
    base: usize,
    symmetric: bool,
    held: Held<'a>,
    /// Whether a distance of 0 was measured.
    zeros: bool,
}

impl<'a, T: Element> Closest<'a, T> {
    /// For a set with itself; the first limit is of row `base`.
    fn of_itself(
        sides: Sides<'a, T>,
        set: Packed<'a>,
        base: usize,
        held: Held<'a>,
        zeros: bool,
    ) -> Self {
        Self { sides, queries: set, bank: set, from: 0, base, symmetric: true, held, zeros }
    }

    /// Considers row `row` of the bank for the query whose limit is at `place`.
    #[inline]
    fn consider(&mut self, place: usize, row: usize, kind: usize, least: f32, most: f32) {
        let limit = &mut self.held.limits[kind][place];
        if least >= *limit || least.is_nan() {
            return;
        }
        let found = &mut self.held.found[place];
        let best = found.best[kind];
        // No distance is below 0, and of equal ones the lower index wins: sets with many
        // duplicates would otherwise be measured whole.
        if best.value == 0.0 && best.at < self.sides.index(row) {
            return;
        }
        *limit = if most < *limit { most } else { *limit };
        let count = &mut found.counts[kind];
        found.candidates[kind][*count as usize] = Entry { at: row as u32, value: least };
        *count += 1;
        if *count as usize == CANDIDATES {
            self.sift(place, kind);
        }
    }

    /// Makes room among the candidates: those that the limit has left behind go, and if none
    /// goes all are measured.
    fn sift(&mut self, place: usize, kind: usize) {
        let limit = &mut self.held.limits[kind][place];
        let found = &mut self.held.found[place];
        let (candidates, count) = (&mut found.candidates[kind], &mut found.counts[kind]);
        let mut kept = 0;
        for at in 0..*count as usize {
            if candidates[at].value < limit.max(0.0) {
                candidates[kept] = candidates[at];
                kept += 1;
            }
        }
        *count = kept as u32;
        if kept < CANDIDATES {
            return;
        }
        *count = 0;
        let query = self.from + self.base + place;
        let pairs = std::array::from_fn(|i| (query, candidates[i % CANDIDATES].at as usize));
        let measured = self.sides.measure(&pairs);
        for ((_, row), dist2) in pairs.into_iter().zip(measured).take(CANDIDATES) {
            let near = Nearest { index: self.sides.index(row), dist2 };
            let best = &mut found.best[kind];
            if near.precedes(Nearest { index: best.at, dist2: best.value }) {
                *best = Entry { at: near.index, value: dist2 };
            }
        }
        let best = found.best[kind].value;
        *limit = if best < *limit { best } else { *limit };
        self.zeros |= best == 0.0;
    }

    /// Rows from `row` on are all that comes for these: where a lower one is at 0 none is nearer.
    fn settle(&mut self, places: Range<usize>, row: usize) {
        let index = self.sides.index(row);
        for place in places {
            let place = place - self.base;
            let Some(found) = self.held.found.get(place) else { return };
            for (limits, best) in self.held.limits.iter_mut().zip(found.best) {
                if best.value == 0.0 && best.at < index {
                    limits[place] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

impl<T: Element> Sink for Closest<'_, T> {
    fn begin(&mut self, rows: &Range<usize>, columns: &Range<usize>) {
        if self.zeros && !(self.symmetric && rows == columns) {
            if self.symmetric {
                self.settle(rows.clone(), columns.start);
                self.settle(columns.clone(), rows.start);
            } else {
                self.settle(columns.clone(), rows.start);
            }
        }
    }

    #[inline(always)]
    fn limits(&self) -> [&[f32]; 2] {
        let [same, other] = &self.held.limits;
        [same, other]
    }

    fn lower(&mut self, kind: usize, at: usize, value: f32) {
        let limit = &mut self.held.limits[kind][at];
        *limit = if value < *limit { value } else { *limit };
    }

    #[cold]
    #[inline(never)]
    fn hits(&mut self, row: usize, column: usize, hits: &[u64], tile: &[f32]) {
        let width = tile.len() / hits.len();
        for (i, (&hits, bounds)) in hits.iter().zip(tile.chunks_exact(width)).enumerate() {
            let mut bits = hits;
            while bits != 0 {
                let j = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let (row, column) = (row + i, column + j);
                let is_other = self.bank.labels[row] != self.queries.labels[column];
                let kind = usize::from(is_other);
                let least = bounds[j];
                let most = least + (self.bank.error[row] + self.queries.error[column]);
                self.consider(column - self.base, row, kind, least, most);
                if self.symmetric {
                    self.consider(row - self.base, column, kind, least, most);
                }
            }
        }
    }
}

/// What was found for some rows.
#[derive(Clone, Copy)]
struct View<'a> {
    limits: [&'a [f32]; 2],
    found: &'a [Found],
}

impl<'a> View<'a> {
    /// What a [`Held`] has left in its memory.
    fn new(memory: &'a [f32], rows: usize) -> Self {
        let (same, rest) = memory.split_at(line(rows));
        let (other, found) = rest.split_at(line(rows));
        Self {
            limits: [&same[..rows], &other[..rows]],
            found: bytemuck::cast_slice(&found[..rows * FOUND]),
        }
    }
}

/// Measures what may still be the nearest of queries, and folds it into their pairs. `views` are
/// of all that looked, `pairs` of the queries from `from` on, whose findings are at `place` on.
fn finish<'v, T: Element, P: Place>(
    sides: Sides<'_, T>,
    views: impl Iterator<Item = View<'v>> + Clone,
    (from, place): (usize, usize),
    pairs: &mut [P],
) {
    let mut queue = Queue::new(sides);
    for at in 0..pairs.len() {
        let place = place + at;
        for kind in 0..2 {
            let limits = views.clone().map(|view| view.limits[kind][place]);
            // Without a limit below 0: that was for rows yet to come.
            let limit = limits.fold(f32::INFINITY, f32::min).max(0.0);
            for view in views.clone() {
                let found = &view.found[place];
                let Entry { at: index, value: dist2 } = found.best[kind];
                fold(&mut pairs[at], kind == 0, Nearest { index, dist2 });
                let count = found.counts[kind] as usize;
                let near = found.candidates[kind][..count].iter().filter(|c| c.value < limit);
                for candidate in near {
                    queue.push(
                        from + at,
                        candidate.at as usize,
                        kind,
                        &mut |query, _, kind, near| {
                            fold(&mut pairs[query - from], kind == 0, near);
                        },
                    );
                }
            }
        }
    }
    queue.flush(&mut |query, _, kind, near| fold(&mut pairs[query - from], kind == 0, near));
}

/// The nearest of queries among a bank.
pub(super) fn across<T: Element>(sides: Sides<'_, T>, skip: Option<u32>, pairs: &mut [Pair]) {
    let each = |mut asking: across::Asking<'_, T>, pairs: &mut [Pair]| {
        let rows = asking.queries.low.len();
        let mut memory = vec![0.0; LINE + Held::numbers(rows)];
        let memory = Cut::new(&mut memory).0;
        let mut held = Held::new(memory, rows);
        held.start(pairs.iter());
        let mut sink = Closest {
            sides: asking.sides,
            queries: asking.queries,
            bank: asking.bank,
            from: asking.from,
            base: 0,
            symmetric: false,
            zeros: held.zeros(),
            held,
        };
        asking.compare(&mut sink, true);
        let view = View::new(memory, rows);
        finish(asking.sides, std::iter::once(view), (asking.from, 0), pairs);
    };
    across::run(sides, skip, true, 1, pairs, each, |places, is_same, near| {
        places.iter_mut().for_each(|place| fold(place, is_same, near));
    });
}

/// Numbers that one worker of [`among`] takes.
fn worker(rows: usize, size: usize) -> usize {
    Held::numbers(rows.next_multiple_of(WIDEST)) + scratch(size)
}

/// Numbers that [`among`] takes to have `workers` workers.
pub(super) fn numbers(rows: usize, dim: usize, size: usize, workers: usize) -> usize {
    let workers = worker(rows, size).saturating_mul(workers);
    let set = line(dim).saturating_add(packed_numbers(rows, dim));
    set.saturating_add(workers).saturating_add(LINE)
}

/// The nearest of each row of a set among the others: each product is made once. There is a pair
/// for each row, and memory for one worker at least.
pub(super) fn among<T: Element, P: Place>(
    sides: Sides<'_, T>,
    size: usize,
    pairs: &mut [P],
    memory: &mut [f32],
) {
    let Sides { instructions, bank, .. } = sides;
    let rows = bank.len();
    if rows == 0 {
        return;
    }
    let blocks = rows.div_ceil(size);
    let mut memory = Cut::new(memory);
    let point = memory.take(bank.dim);
    shift(bank, point);
    let packed = memory.take(packed_numbers(rows, bank.dim));
    let set = pack(instructions, bank, true, point, packed);
    let padded = set.low.len();
    let workers = (blocks * (blocks - 1) / 2).min(rayon::current_num_threads());
    let workers = workers.min(memory.0.len() / worker(rows, size)).max(1);
    let numbers = Held::numbers(padded);
    let room = scratch(size);
    let (all, scratch) = (memory.take(workers * numbers), memory.take(workers * room));
    let compare =
        |of_rows: usize, of_columns: usize, scratch: &mut [f32], sink: &mut Closest<'_, T>| {
            let range = |of: usize| of * size..((of + 1) * size).min(padded);
            let (from_rows, from_columns) = (range(of_rows), range(of_columns));
            let seed = of_rows == of_columns;
            instructions.run(Block {
                size,
                rows: set,
                columns: set,
                from_rows,
                from_columns,
                symmetric: true,
                base: sink.base,
                own: None,
                seed,
                scratch,
                sink,
            });
        };

    // Each block with itself first, so that all rows have limits near those that they end with.
    let (held, others) = all.split_at_mut(numbers);
    let mut held = Held::new(held, padded);
    held.start(pairs.iter());
    let per = blocks.div_ceil(workers);
    let [same, other] = &mut held.limits;
    let parts = same.par_chunks_mut(per * size).zip(other.par_chunks_mut(per * size));
    let parts = parts.zip(held.found.par_chunks_mut(per * size));
    let parts = parts.zip(scratch.par_chunks_mut(room));
    parts.enumerate().for_each(|(task, (((same, other), found), scratch))| {
        let held = Held { limits: [same, other], found };
        let mut sink = Closest::of_itself(sides, set, task * per * size, held, false);
        for at in (task * per..blocks).take(per) {
            compare(at, at, &mut *scratch, &mut sink);
        }
    });
    let zeros = held.zeros();
    for other in others.chunks_exact_mut(numbers) {
        Held::new(other, padded).start_from(&held);
    }

    // Then the blocks above the diagonal, whoever comes to them. Each worker gets them in order,
    // so that what comes to a row later lies behind.
    let next = AtomicUsize::new(0);
    let parts = all.par_chunks_mut(numbers).zip(scratch.par_chunks_mut(room));
    parts.for_each(|(held, scratch)| {
        let mut sink = Closest::of_itself(sides, set, 0, Held::new(held, padded), zeros);
        let (mut column, mut before) = (1, 0);
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            while at - before >= column {
                before += column;
                column += 1;
            }
            if column >= blocks {
                break;
            }
            compare(at - before, column, &mut *scratch, &mut sink);
        }
    });

    let all = &*all;
    let views = || all.chunks_exact(numbers).map(|held| View::new(held, padded));
    pairs.par_chunks_mut(ROWS).enumerate().for_each(|(task, pairs)| {
        finish(sides, views(), (task * ROWS, task * ROWS), pairs);
    });
    for hard in (0..rows).filter(|&row| is_hard(&set, row)) {
        pairs.par_chunks_mut(ROWS).enumerate().for_each(|(task, pairs)| {
            let from = task * ROWS;
            let mut queue = Queue::new(sides);
            let mut each = |query: usize, row: usize, _, near| {
                let is_same = bank.labels.get(query) == bank.labels.get(row);
                fold(&mut pairs[query - from], is_same, near);
            };
            for query in (from..rows).take(ROWS).filter(|&query| query != hard) {
                queue.push(query, hard, 0, &mut each);
            }
            queue.flush(&mut each);
        });
        // Hard rows are neighbours of this one by the above.
        let label = bank.labels.get(hard);
        if let Some(pair) = pairs.get_mut(hard) {
            sides.against(hard, (0..rows).filter(|&row| !is_hard(&set, row)), |row, near| {
                fold(pair, bank.labels.get(row) == label, near);
            });
        }
    }
}

/// Rows of a block of a batch, and how many workers have scratch: by its shape alone, for it is
/// planned.
fn batch_blocks(rows: usize) -> (usize, usize) {
    let size = block(rows, WORKERS / 2);
    let blocks = rows.div_ceil(size);
    (size, (blocks * blocks.saturating_sub(1) / 2).clamp(1, WORKERS))
}

/// Numbers of scratch for [`batch`].
pub(crate) fn batch_numbers(rows: usize, dim: usize) -> usize {
    let (size, workers) = batch_blocks(rows);
    numbers(rows, dim, size, workers)
}

/// The nearest neighbours of each row among the others, as words of [`Pair`]. Allocates nothing:
/// `scratch` has [`batch_numbers`].
pub(crate) fn batch(
    instructions: Instructions,
    rows: Rows<'_, f32>,
    pairs: &mut [[u32; 4]],
    scratch: &mut [f32],
) {
    pairs.fill(Pair::NONE.to_words());
    let sides = Sides { instructions, queries: rows, bank: rows, first: 0 };
    let (size, _) = batch_blocks(rows.len());
    let fits = scratch.len() >= numbers(rows.len(), rows.dim, size, 1);
    if let Some(pairs) = pairs.get_mut(..rows.len()).filter(|_| fits) {
        among(sides, size, pairs, scratch);
    }
}
