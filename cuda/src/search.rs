//! Nearest neighbours.

use std::sync::Arc;

use sepal_core::arena::{ArenaError, Slot};
use sepal_core::backend::Bank;
use sepal_core::error::Error;
use sepal_core::neighbour::{Nearest, Pair, Rows};

use crate::gpu::{Address, Buffer, Gpu, Launch, Source, args};
use crate::memory::Memory;

/// Rows and columns of a block's distances.
const TILE: u32 = 64;
/// The most blocks along the second axis of a grid.
const MOST_BLOCKS: u32 = 65_535;
/// Distances that a search for more than the nearest holds at a time.
const MATRIX: usize = 1 << 24;
/// Past all indices: no row is left out.
const NO_SKIP: u64 = 1 << 40;

/// Rows on the device, and the copy of them where they were the host's.
#[derive(Debug)]
struct Rowset {
    data: Address,
    labels: Address,
    rows: u32,
    dim: u32,
    _copies: Option<[Buffer; 2]>,
}

impl Rowset {
    fn of_host(gpu: &Arc<Gpu>, rows: Rows<'_, f32>) -> Result<Self, Error> {
        let expected = rows.labels.len().saturating_mul(rows.dim);
        if rows.data.len() != expected {
            return Err(ArenaError::Length { slot: expected, host: rows.data.len() }.into());
        }
        let (count, dim) = (narrow(rows.labels.len())?, narrow(rows.dim)?);
        let (data, labels) = (gpu.upload(rows.data)?, gpu.upload(rows.labels)?);
        let (at, labels_at) = (data.address(), labels.address());
        let copies = Some([data, labels]);
        Ok(Self { data: at, labels: labels_at, rows: count, dim, _copies: copies })
    }

    fn of_slots(memory: &Memory, rows: Slot, labels: Slot) -> Result<Self, Error> {
        let (count, dim) = (labels.elements(), rows.shape.sample().unwrap_or(0) as usize);
        let expected = count.saturating_mul(dim);
        if rows.elements() != expected {
            return Err(ArenaError::Length { slot: expected, host: rows.elements() }.into());
        }
        let [data, labels] = memory.lease([rows, labels])?;
        Ok(Self { data, labels, rows: narrow(count)?, dim: narrow(dim)?, _copies: None })
    }

    fn of(gpu: &Arc<Gpu>, memory: &Memory, bank: Bank<'_>) -> Result<Self, Error> {
        match bank {
            Bank::Host(rows) => Self::of_host(gpu, rows),
            Bank::Slots { rows, labels } => Self::of_slots(memory, rows, labels),
        }
    }
}

/// A count that kernels take as 32 bits.
fn narrow(count: usize) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| Error::Unsupported("searches of 2^32 rows or features"))
}

/// Queries and bank, a set in itself copied once.
fn both(
    gpu: &Arc<Gpu>,
    memory: &Memory,
    queries: Bank<'_>,
    bank: Bank<'_>,
) -> Result<(Rowset, Option<Rowset>), Error> {
    let from = Rowset::of(gpu, memory, queries)?;
    if let (Bank::Host(a), Bank::Host(b)) = (queries, bank)
        && (a.data.as_ptr_range(), a.labels.as_ptr_range())
            == (b.data.as_ptr_range(), b.labels.as_ptr_range())
        && a.dim == b.dim
    {
        return Ok((from, None));
    }
    let to = Rowset::of(gpu, memory, bank)?;
    if from.dim != to.dim {
        return Err(ArenaError::Length { slot: to.dim as usize, host: from.dim as usize }.into());
    }
    Ok((from, Some(to)))
}

/// A neighbour as the kernels compare it: the distance above the index.
const fn key(n: Nearest) -> u64 {
    (n.dist2.to_bits() as u64) << 32 | n.index as u64
}

const fn neighbour(key: u64) -> Nearest {
    Nearest { index: key as u32, dist2: f32::from_bits((key >> 32) as u32) }
}

/// Where the queries' keys lie, and which indices the bank has.
#[derive(Clone, Copy, Debug)]
struct Among {
    same: Address,
    other: Address,
    first: u32,
    skip: u64,
}

fn launch_nearest(gpu: &Gpu, queries: &Rowset, bank: &Rowset, at: Among) -> Result<(), Error> {
    // The range of indices ends before the one that means none.
    let rows = bank.rows.min(u32::MAX - at.first);
    let (mut done, piece) = (0, MOST_BLOCKS * TILE);
    while done < queries.rows {
        let m = (queries.rows - done).min(piece);
        let down = m.div_ceil(TILE);
        // As many blocks as keep the device busy; each walks over its part of the bank.
        let across = (gpu.multiprocessors() * 4).div_ceil(down).min(rows.div_ceil(TILE));
        let skipped = done as usize;
        let data = queries.data.past(skipped * queries.dim as usize * size_of::<f32>());
        let labels = queries.labels.past(skipped * size_of::<u16>());
        let keys = |address: Address| address.past(skipped * size_of::<u64>());
        let launch = Launch { grid: [across, down, 1], block: 256, shared: 0 };
        let args = args![
            data,
            labels,
            bank.data,
            bank.labels,
            keys(at.same),
            keys(at.other),
            m,
            rows,
            bank.dim,
            at.first,
            at.skip.saturating_add(u64::from(done))
        ];
        gpu.launch(Source::Search, "nearest", launch, args)?;
        done += m;
    }
    Ok(())
}

/// Both neighbours of the rows of a batch within it, as keys that lie in `keys`, the same label's
/// before the other's, and as pairs.
pub(crate) fn within(
    gpu: &Gpu,
    (features, labels, rows, dim): (Address, Address, u32, u32),
    keys: Address,
    pairs: Address,
) -> Result<(), Error> {
    let bytes = rows as usize * size_of::<u64>();
    let (same, other) = (keys, keys.past(bytes));
    gpu.launch(Source::Search, "no_keys", Launch::over(2 * rows), args![keys, 2 * rows])?;
    let set = Rowset { data: features, labels, rows, dim, _copies: None };
    launch_nearest(gpu, &set, &set, Among { same, other, first: 0, skip: 0 })?;
    gpu.launch(Source::Search, "pairs_of", Launch::over(rows), args![same, other, pairs, rows])
}

/// The distances of all rows of a batch to each other, infinite to themselves.
pub(crate) fn matrix(
    gpu: &Gpu,
    (features, rows, dim): (Address, u32, u32),
    into: Address,
) -> Result<(), Error> {
    let tiles = rows.div_ceil(TILE);
    let launch = Launch { grid: [tiles, tiles, 1], block: 256, shared: 0 };
    let args = args![features, features, into, rows, rows, dim, 1u32];
    gpu.launch(Source::Search, "distance_matrix", launch, args)
}

pub(crate) fn nearest(
    gpu: &Arc<Gpu>,
    memory: &Memory,
    queries: Bank<'_>,
    bank: Bank<'_>,
    (first, skip): (u32, Option<u32>),
    pairs: &mut [Pair],
) -> Result<(), Error> {
    let (mut from, to) = both(gpu, memory, queries, bank)?;
    from.rows = from.rows.min(narrow(pairs.len())?);
    let count = from.rows as usize;
    let (mut same, mut other): (Vec<u64>, Vec<u64>) =
        pairs.iter().take(count).map(|pair| (key(pair.same), key(pair.other))).unzip();
    let (same_keys, other_keys) = (gpu.upload(&same)?, gpu.upload(&other)?);
    let skip = skip.map_or(NO_SKIP, u64::from);
    let (at, bank) = (
        Among { same: same_keys.address(), other: other_keys.address(), first, skip },
        to.as_ref().unwrap_or(&from),
    );
    launch_nearest(gpu, &from, bank, at)?;
    same_keys.read(&mut same)?;
    other_keys.read(&mut other)?;
    for (pair, (same, other)) in pairs.iter_mut().zip(same.into_iter().zip(other)) {
        *pair = Pair { same: neighbour(same), other: neighbour(other) };
    }
    Ok(())
}

pub(crate) fn top_k(
    gpu: &Arc<Gpu>,
    memory: &Memory,
    queries: Bank<'_>,
    bank: Bank<'_>,
    (first, skip): (u32, Option<u32>),
    k: usize,
    out: &mut [Nearest],
) -> Result<(), Error> {
    let (from, to) = both(gpu, memory, queries, bank)?;
    if k == 0 {
        return Ok(());
    }
    let bank = to.as_ref().unwrap_or(&from);
    let rows = bank.rows.min(u32::MAX - first);
    let all = from.rows.min(narrow(out.len() / k)?);
    let piece = (MATRIX / (rows as usize).max(1)).clamp(1, (MOST_BLOCKS * TILE) as usize);
    let skip = skip.map_or(NO_SKIP, u64::from);
    let matrix = gpu.allocate(piece.min(all as usize) * rows as usize * size_of::<f32>())?;
    for (at, out) in out.chunks_mut(piece * k).enumerate() {
        let done = narrow(at * piece)?;
        let m = narrow(out.len() / k)?.min(all.saturating_sub(done));
        let before: Vec<u64> = out.iter().take(m as usize * k).map(|&n| key(n)).collect();
        let mut keys = before.clone();
        let (before, places) = (gpu.upload(&before)?, gpu.allocate(keys.len() * size_of::<u64>())?);
        let data = from.data.past(done as usize * from.dim as usize * size_of::<f32>());
        let grid = [rows.div_ceil(TILE), m.div_ceil(TILE), 1];
        let args = args![data, bank.data, matrix.address(), m, rows, bank.dim, 0u32];
        let launch = Launch { grid, block: 256, shared: 0 };
        gpu.launch(Source::Search, "distance_matrix", launch, args)?;
        let k = narrow(k)?;
        let (from, to) = (before.address(), places.address());
        let args = args![matrix.address(), from, to, rows, k, first, skip, done];
        gpu.launch(Source::Search, "top_k", Launch::blocks(m, 256), args)?;
        places.read(&mut keys)?;
        out.iter_mut().zip(keys).for_each(|(n, key)| *n = neighbour(key));
    }
    Ok(())
}
