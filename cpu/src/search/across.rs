//! Queries against a bank.

use rayon::prelude::*;
use sepal_core::neighbour::Nearest;

use super::{Cut, Sides, block, is_hard, line, pack, packed_numbers, part, shift, with_memory};
use crate::arch::distance::{Block, Element, LINE, Packed, Sink, scratch};

/// Fewer queries than these are measured against every row.
const FEW: usize = 8;

/// A block of queries, and the bank.
pub(super) struct Asking<'a, T> {
    pub(super) sides: Sides<'a, T>,
    /// The first query.
    pub(super) from: usize,
    pub(super) queries: Packed<'a>,
    pub(super) bank: Packed<'a>,
    /// Which row a query never matches, counted from its place in the block.
    own: Option<isize>,
    /// Rows of a block.
    size: usize,
    scratch: &'a mut [f32],
}

impl<T: Element> Asking<'_, T> {
    /// Compares all queries of the block with the whole bank. With `seed` the first block lowers
    /// the limits before anything is below them.
    pub(super) fn compare(&mut self, sink: &mut impl Sink, seed: bool) {
        let rows = self.bank.low.len();
        for from in (0..rows).step_by(self.size) {
            self.sides.instructions.run(Block {
                rows: self.bank,
                columns: self.queries,
                from_rows: from..(from + self.size).min(rows),
                from_columns: 0..self.queries.low.len(),
                size: self.size,
                symmetric: false,
                base: 0,
                own: self.own,
                seed: seed && from == 0,
                scratch: &mut *self.scratch,
                sink: &mut *sink,
            });
        }
    }
}

/// Searches the bank for all queries, each of which has `per` places in `out`: `each` compares a
/// block of queries with the bank, `fold` considers one row, of the query's label or not, for the
/// places of one query.
pub(super) fn run<T: Element, O: Send>(
    mut sides: Sides<'_, T>,
    skip: Option<u32>,
    labels: bool,
    per: usize,
    out: &mut [O],
    each: impl Fn(Asking<'_, T>, &mut [O]) + Sync,
    fold: impl Fn(&mut [O], bool, Nearest) + Sync,
) {
    // The last index means "none".
    let indices = usize::try_from(u32::MAX - sides.first).unwrap_or(usize::MAX);
    sides.bank = part(sides.bank, 0, sides.bank.len().min(indices));
    let Sides { instructions, queries, bank, first } = sides;
    let dim = bank.dim;
    let count = queries.len().min(out.len().checked_div(per).unwrap_or(0));
    if count == 0 || bank.is_empty() || queries.dim != dim {
        return;
    }
    let out = out.get_mut(..count * per).unwrap_or_default();
    // Which row a query never matches, counted from the query's own place.
    let own = skip.and_then(|skip| isize::try_from(i64::from(skip) - i64::from(first)).ok());
    let measure = |query: usize, rows: &mut dyn Iterator<Item = usize>, places: &mut [O]| {
        let own = own.and_then(|own| query.checked_add_signed(own));
        let label = queries.labels.get(query);
        sides.against(query, rows.filter(|row| own != Some(*row)), |row, near| {
            fold(places, bank.labels.get(row) == label, near);
        });
    };
    if count < FEW {
        return out.par_chunks_mut(per).enumerate().for_each(|(query, places)| {
            measure(query, &mut (0..bank.len()), places);
        });
    }
    let size = block(count, rayon::current_num_threads());
    with_memory(LINE + line(dim) + packed_numbers(bank.len(), dim), |memory| {
        let mut memory = Cut::new(memory);
        let point = memory.take(dim);
        shift(bank, point);
        let packed_bank = pack(instructions, bank, labels, point, memory.0);
        let hard: Vec<usize> = (0..bank.len()).filter(|&at| is_hard(&packed_bank, at)).collect();
        out.par_chunks_mut(size * per).enumerate().for_each_init(
            || vec![0.0; LINE + scratch(size) + packed_numbers(size, dim)],
            |memory, (task, out)| {
                let from = task * size;
                let mut memory = Cut::new(memory);
                let scratch = memory.take(self::scratch(size));
                let own = own.map(|own| own.saturating_add_unsigned(from));
                let queries = part(queries, from, (from + size).min(count));
                let queries = pack(instructions, queries, labels, point, memory.0);
                each(Asking { sides, from, queries, bank: packed_bank, own, size, scratch }, out);
                for (at, places) in out.chunks_exact_mut(per).enumerate() {
                    if is_hard(&queries, at) {
                        measure(from + at, &mut (0..bank.len()), places);
                    } else if !hard.is_empty() {
                        measure(from + at, &mut hard.iter().copied(), places);
                    }
                }
            },
        );
    });
}
