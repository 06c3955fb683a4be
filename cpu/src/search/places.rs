//! The k nearest of all.

use std::ops::Range;

use sepal_core::neighbour::Nearest;

use super::{Queue, Sides, across, insert};
use crate::arch::distance::{Element, Packed, Sink};

/// Candidates of a query at least.
const CANDIDATES: usize = 32;

/// A row that may be near, and the least that its distance can be.
#[derive(Clone, Copy)]
struct Candidate {
    row: u32,
    least: f32,
}

/// Takes hits.
struct Closest<'a, T> {
    sides: Sides<'a, T>,
    queries: Packed<'a>,
    bank: Packed<'a>,
    /// The first query of the block.
    from: usize,
    k: usize,
    /// The k places of each query, of what was measured.
    places: &'a mut [Nearest],
    limits: Vec<f32>,
    candidates: Vec<Vec<Candidate>>,
    /// The greatest that the candidates' distances can be.
    most: Vec<f32>,
    /// Whether all places of a query are at distance 0.
    zeros: bool,
}

impl<T: Element> Closest<'_, T> {
    /// Candidates that a query keeps before it looks at them again.
    fn room(&self) -> usize {
        (2 * self.k).max(CANDIDATES)
    }

    fn last(&self, at: usize) -> Nearest {
        self.places.get((at + 1) * self.k - 1).copied().unwrap_or(Nearest::NONE)
    }

    /// Lowers the limit to the k-th of what the candidates' distances can be at most, and forgets
    /// those that it leaves behind.
    fn sift(&mut self, at: usize) {
        let (error, candidates) = (self.queries.error[at], &mut self.candidates[at]);
        let limit = &mut self.limits[at];
        self.most.clear();
        let rows = self.bank.error;
        self.most.extend(candidates.iter().map(|c| c.least + (error + rows[c.row as usize])));
        if self.most.len() >= self.k {
            let (_, kth, _) = self.most.select_nth_unstable_by(self.k - 1, f32::total_cmp);
            *limit = if *kth < *limit { *kth } else { *limit };
        }
        let limit = limit.max(0.0);
        candidates.retain(|candidate| candidate.least < limit);
    }

    /// Measures all candidates.
    fn measure(&mut self, at: usize) {
        let k = self.k;
        let places = &mut self.places[at * k..(at + 1) * k];
        let mut queue = Queue::new(self.sides);
        let mut each = |_, _, _, near| insert(places, near);
        for candidate in self.candidates[at].drain(..) {
            queue.push(self.from + at, candidate.row as usize, 0, &mut each);
        }
        queue.flush(&mut each);
        let last = self.last(at).dist2;
        let limit = &mut self.limits[at];
        *limit = if last < *limit { last } else { *limit };
        self.zeros |= last == 0.0;
    }
}

impl<T: Element> Sink for Closest<'_, T> {
    fn begin(&mut self, rows: &Range<usize>, _columns: &Range<usize>) {
        if self.zeros {
            let index = self.sides.index(rows.start);
            for at in 0..self.limits.len().min(self.places.len() / self.k) {
                let last = self.last(at);
                if last.dist2 == 0.0 && last.index < index {
                    self.limits[at] = f32::NEG_INFINITY;
                }
            }
        }
    }

    // All pairs are of one kind.
    #[inline(always)]
    fn limits(&self) -> [&[f32]; 2] {
        [&self.limits, &self.limits]
    }

    fn lower(&mut self, _kind: usize, _at: usize, _value: f32) {}

    #[cold]
    #[inline(never)]
    fn hits(&mut self, row: usize, column: usize, hits: &[u64], tile: &[f32]) {
        let width = tile.len() / hits.len();
        for (i, (&hits, bounds)) in hits.iter().zip(tile.chunks_exact(width)).enumerate() {
            let mut bits = hits;
            while bits != 0 {
                let j = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let (row, at, least) = (row + i, column + j, bounds[j]);
                let last = self.last(at);
                let behind = last.dist2 == 0.0 && last.index < self.sides.index(row);
                if behind || least >= self.limits[at] {
                    continue;
                }
                self.candidates[at].push(Candidate { row: row as u32, least });
                if self.candidates[at].len() >= self.room() {
                    self.sift(at);
                    if self.candidates[at].len() > self.room() * 3 / 4 {
                        self.measure(at);
                    }
                }
            }
        }
    }
}

/// The k nearest of queries among a bank.
pub(super) fn across<T: Element>(
    sides: Sides<'_, T>,
    skip: Option<u32>,
    k: usize,
    out: &mut [Nearest],
) {
    let each = |mut asking: across::Asking<'_, T>, places: &mut [Nearest]| {
        let count = places.len() / k;
        let mut limits = vec![f32::INFINITY; asking.queries.low.len()];
        let last = places.chunks_exact(k).filter_map(<[_]>::last);
        limits.iter_mut().zip(last).for_each(|(limit, last)| *limit = last.dist2);
        let zeros = limits.contains(&0.0);
        let mut sink = Closest {
            sides: asking.sides,
            queries: asking.queries,
            bank: asking.bank,
            from: asking.from,
            k,
            places,
            limits,
            candidates: vec![Vec::new(); count],
            most: Vec::new(),
            zeros,
        };
        asking.compare(&mut sink, false);
        for at in 0..count {
            sink.sift(at);
            sink.measure(at);
        }
    };
    across::run(sides, skip, false, k, out, each, |places, _, near| insert(places, near));
}
