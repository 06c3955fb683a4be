//! Nearest neighbours, some queries at a time, so that a person sees how far it is.

use sepal::backend::{Backend, Bank, Device as _};
use sepal::error::Error;
use sepal::neighbour::{Nearest, Pair, Rows};

use crate::bar::bar;
use crate::device::Device;

/// Queries between two updates of the bar.
const PART: usize = 256;

/// Searches on a device.
pub struct Search {
    pub device: Device,
}

impl Search {
    /// The nearest neighbours of each query with its label and with another; `own` says that the
    /// queries are the bank.
    pub fn pairs(&self, queries: Rows<'_>, bank: Rows<'_>, own: bool) -> Result<Vec<Pair>, Error> {
        let mut pairs = vec![Pair::NONE; queries.len()];
        let mut backend = self.device.open(&mut [])?;
        each(queries, own, pairs.chunks_mut(PART), |queries, skip, pairs| {
            backend.nearest(Bank::Host(queries), Bank::Host(bank), 0, skip, pairs)
        })?;
        Ok(pairs)
    }

    /// The k nearest other rows of each row.
    pub fn top_k(&self, rows: Rows<'_>, k: usize) -> Result<Vec<Nearest>, Error> {
        let mut places = vec![Nearest::NONE; rows.len().saturating_mul(k)];
        let mut backend = self.device.open(&mut [])?;
        each(rows, true, places.chunks_mut(PART * k), |queries, skip, places| {
            backend.top_k(Bank::Host(queries), Bank::Host(rows), 0, skip, k, places)
        })?;
        Ok(places)
    }
}

/// Calls `search` with each part of the queries, with the index that its first one must not match
/// and with its places.
fn each<'p, T: 'p>(
    queries: Rows<'_>,
    own: bool,
    places: impl Iterator<Item = &'p mut [T]>,
    mut search: impl FnMut(Rows<'_>, Option<u32>, &'p mut [T]) -> Result<(), Error>,
) -> Result<(), Error> {
    let bar = bar("neighbours", queries.len() as u64);
    let data = queries.data.chunks(PART * queries.dim.max(1));
    let parts = data.zip(queries.labels.chunks(PART)).zip(places);
    for (first, ((data, labels), places)) in (0..).step_by(PART).zip(parts) {
        let part = Rows { data, labels, ..queries };
        search(part, own.then_some(first), places)?;
        bar.inc(labels.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}
