//! Nearest neighbours.

use std::sync::Arc;

use sepal_core::arena::{ArenaError, Dtype, Slot};
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
/// Queries and rows of a tile of products.
const PANEL: u32 = 128;
/// Features of a step of products.
const STEP: u32 = 16;
/// Shared memory of a block of products: three steps of both sides, rows 4 numbers apart.
const STAGES: u32 = 3 * 2 * PANEL * (STEP + 4) * 4;
/// What a query notes of each kind at most.
const NOTES: usize = 64;
/// Queries whose notes are held at a time: 33 MB.
const NOTED: u32 = 1 << 15;
/// Distances from which on products are worth what is done around them, and features.
const LARGE: (u64, u32) = (1 << 16, 32);
/// Past all indices: no row is left out.
const NO_SKIP: u64 = 1 << 40;
/// All queries.
const NO_LIST: (Address, Address) = (Address::NONE, Address::NONE);

/// Rows on the device, and the copy of them where they were the host's.
#[derive(Debug)]
struct Rowset {
    data: Address,
    labels: Address,
    rows: u32,
    dim: u32,
    _copies: Option<[Buffer; 2]>,
}

/// Copies features to the device, where they are f32.
type Upload<T> = fn(&Arc<Gpu>, &[T]) -> Result<Buffer, Error>;

/// Copies features in half precision to the device, and widens them there.
fn widened(gpu: &Arc<Gpu>, features: &[half::f16]) -> Result<Buffer, Error> {
    let narrow = gpu.upload(features)?;
    let wide = gpu.allocate(features.len() * size_of::<f32>())?;
    let busy = gpu.multiprocessors() * 8;
    let blocks = u32::try_from(features.len().div_ceil(256)).map_or(busy, |all| all.min(busy));
    let grid = [blocks, 1, 1];
    let args = args![narrow.address(), wide.address(), features.len() as u64];
    gpu.launch(Source::Search, "widen", Launch { grid, block: 256, shared: 0 }, args)?;
    Ok(wide)
}

impl Rowset {
    fn of_host<T>(gpu: &Arc<Gpu>, rows: Rows<'_, T>, upload: Upload<T>) -> Result<Self, Error> {
        let expected = rows.labels.len().saturating_mul(rows.dim);
        if rows.data.len() != expected {
            return Err(ArenaError::Length { slot: expected, host: rows.data.len() }.into());
        }
        let (count, dim) = (narrow(rows.labels.len())?, narrow(rows.dim)?);
        let (data, labels) = (upload(gpu, rows.data)?, gpu.upload(rows.labels)?);
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
        let data = memory.of(rows, Dtype::F32, expected)?;
        let labels = memory.of(labels, Dtype::U16, count)?;
        Ok(Self { data, labels, rows: narrow(count)?, dim: narrow(dim)?, _copies: None })
    }

    fn of(gpu: &Arc<Gpu>, memory: &Memory, bank: Bank<'_>) -> Result<Self, Error> {
        match bank {
            Bank::Host(rows) => Self::of_host(gpu, rows, Gpu::upload),
            Bank::Half(rows) => Self::of_host(gpu, rows, widened),
            Bank::Slots { rows, labels } => Self::of_slots(memory, rows, labels),
        }
    }
}

/// A count that kernels take as 32 bits.
fn narrow(count: usize) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| Error::Unsupported("searches of 2^32 rows or features"))
}

/// Whether two sets of rows lie in one place.
fn is_one<T>(a: Rows<'_, T>, b: Rows<'_, T>) -> bool {
    std::ptr::eq(a.data, b.data) && std::ptr::eq(a.labels, b.labels) && a.dim == b.dim
}

/// Queries and bank, a set in itself copied once.
fn both(
    gpu: &Arc<Gpu>,
    memory: &Memory,
    queries: Bank<'_>,
    bank: Bank<'_>,
) -> Result<(Rowset, Option<Rowset>), Error> {
    let from = Rowset::of(gpu, memory, queries)?;
    let are_one = match (queries, bank) {
        (Bank::Host(a), Bank::Host(b)) => is_one(a, b),
        (Bank::Half(a), Bank::Half(b)) => is_one(a, b),
        (Bank::Slots { rows: a, labels: b }, Bank::Slots { rows: c, labels: d }) => {
            (a, b) == (c, d)
        }
        _ => false,
    };
    if are_one {
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

impl Among {
    /// Of the queries from `done` on.
    const fn past(self, done: u32) -> Self {
        let bytes = done as usize * size_of::<u64>();
        let (same, other) = (self.same.past(bytes), self.other.past(bytes));
        Self { same, other, skip: self.skip + done as u64, ..self }
    }
}

/// Some of the rows, from `first` on.
fn part(rows: &Rowset, first: u32, count: u32) -> Rowset {
    let data = rows.data.past(first as usize * rows.dim as usize * size_of::<f32>());
    let labels = rows.labels.past(first as usize * size_of::<u16>());
    Rowset { data, labels, rows: count, dim: rows.dim, _copies: None }
}

/// The first row and the number of rows of each piece.
fn pieces(rows: u32, piece: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows.div_ceil(piece)).map(move |at| (at * piece, piece.min(rows - at * piece)))
}

/// Blocks that keep the device busy, where `down` blocks of queries each walk over their part of
/// `tiles` of the bank.
fn across(gpu: &Gpu, down: u32, tiles: u32) -> u32 {
    (gpu.multiprocessors() * 4).div_ceil(down.max(1)).min(tiles)
}

/// Searches by direct distances, for all of the queries, or for those that a list names: where it
/// lies and where its length does.
fn directly(
    gpu: &Gpu,
    queries: &Rowset,
    bank: &Rowset,
    at: Among,
    (list, listed): (Address, Address),
) -> Result<(), Error> {
    let (m, n, dim) = (queries.rows, bank.rows, bank.dim);
    let down = m.div_ceil(TILE);
    let grid = [across(gpu, down, n.div_ceil(TILE)), down, 1];
    let (queries, labels) = (queries.data, queries.labels);
    let Among { same, other, first, skip } = at;
    let (rows, row_labels) = (bank.data, bank.labels);
    let args =
        args![queries, labels, rows, row_labels, same, other, m, n, dim, first, skip, list, listed];
    gpu.launch(Source::Search, "nearest", Launch { grid, block: 256, shared: 0 }, args)
}

/// Searches a set in itself by direct distances, each computed once: no row is its own neighbour.
fn itself(gpu: &Gpu, set: &Rowset, at: Among) -> Result<(), Error> {
    let tiles = set.rows.div_ceil(TILE);
    let grid = [across(gpu, tiles, tiles / 2 + 1), tiles, 1];
    let args = args![set.data, set.labels, at.same, at.other, set.rows, set.dim, at.first];
    gpu.launch(Source::Search, "nearest_itself", Launch { grid, block: 256, shared: 0 }, args)
}

/// Whether the queries are all of the bank, none its own neighbour, and the grid has a block for
/// each tile of them.
const fn is_symmetric(queries: &Rowset, bank: &Rowset, at: Among) -> bool {
    queries.data.0 == bank.data.0
        && queries.labels.0 == bank.labels.0
        && queries.rows == bank.rows
        && at.skip == at.first as u64
        && bank.dim > 0
        && bank.rows.div_ceil(TILE) <= MOST_BLOCKS
}

/// Searches for all queries by direct distances.
fn all_directly(gpu: &Gpu, queries: &Rowset, bank: &Rowset, at: Among) -> Result<(), Error> {
    if is_symmetric(queries, bank, at) {
        return itself(gpu, bank, at);
    }
    for (done, m) in pieces(queries.rows, MOST_BLOCKS * TILE) {
        directly(gpu, &part(queries, done, m), bank, at.past(done), NO_LIST)?;
    }
    Ok(())
}

/// A factor on the squared lengths that bounds how far a distance by products is from the direct
/// one.
///
/// With u the rounding of one operation: the squared lengths, sums in any order, are off by D u.
/// Of a product, twice which is at most the sum of the lengths, the split leaves out 2^-20 three
/// times, 48 u; a tensor core cuts off where it adds, 2 u for each of the eight products of a step
/// and for the sum, in three passes over D / 8 steps: 7 D u. The direct distance, at most twice the
/// sum of the lengths, is a sum of D squares: 2 (D + 2) u. The rest is for the shift and for what
/// follows on the bound itself.
fn error(dim: u32) -> f32 {
    (10.0 * dim as f32 + 128.0) * (f32::EPSILON / 2.0) * 1.0625
}

/// Rows less a point amid the bank, padded, and the bounds of their squared lengths.
struct Centred {
    rows: Buffer,
    bounds: Buffer,
    width: u32,
}

impl Centred {
    /// How it is padded: whole panels of rows, whole steps of features.
    fn padded(rows: u32, dim: u32) -> Option<(u32, u32)> {
        Some((rows.checked_next_multiple_of(PANEL)?, dim.checked_next_multiple_of(STEP)?))
    }

    /// Bytes that it takes.
    fn bytes(rows: u32, dim: u32) -> usize {
        let Some((all, width)) = Self::padded(rows, dim) else { return usize::MAX };
        let row = (width as usize + 2) * size_of::<f32>();
        row.saturating_mul(all as usize)
    }

    fn new(gpu: &Arc<Gpu>, set: &Rowset, point: Address) -> Result<Self, Error> {
        let padded = Self::padded(set.rows, set.dim);
        let (all, width) = padded.ok_or(Error::Unsupported("searches of 2^32 rows or features"))?;
        let rows = gpu.allocate(all as usize * width as usize * size_of::<f32>())?;
        let bounds = gpu.allocate(all as usize * 2 * size_of::<f32>())?;
        let (to, to_bounds) = (rows.address(), bounds.address());
        let factor = error(set.dim);
        let args = args![set.data, point, to, to_bounds, set.rows, all, set.dim, width, factor];
        gpu.launch(Source::Search, "centre", Launch::warps(all), args)?;
        Ok(Self { rows, bounds, width })
    }

    /// Where row `at` and its bounds lie.
    const fn past(&self, at: u32) -> (Address, Address) {
        let row = self.width as usize * size_of::<f32>();
        let bounds = self.bounds.address().past(at as usize * 2 * size_of::<f32>());
        (self.rows.address().past(at as usize * row), bounds)
    }
}

/// How products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Products {
    /// Of each query with each row of another bank.
    Apart,
    /// The same of some rows of the bank, whose copy is the queries' too.
    Among,
    /// Of each two rows of a set once; the notes of all are held together.
    Symmetric,
}

impl Products {
    /// Queries that are searched for together.
    fn held(self, queries: u32) -> u32 {
        if self == Self::Symmetric { queries } else { queries.min(NOTED) }
    }

    /// Bytes that [`by_products`] takes.
    fn bytes(self, queries: u32, bank: &Rowset) -> usize {
        let held = self.held(queries);
        let notes = held as usize * (2 * (2 * 4 + NOTES * size_of::<u64>()) + 4);
        let own = if self == Self::Apart { Centred::bytes(held, bank.dim) } else { 0 };
        let sets = Centred::bytes(bank.rows, bank.dim).saturating_add(own);
        sets.saturating_add(notes + bank.dim as usize * size_of::<f32>() + (1 << 20))
    }

    /// The first of the ways that there is room for; none where direct distances are to be taken.
    fn way(gpu: &Gpu, queries: &Rowset, bank: &Rowset, at: Among) -> Result<Option<Self>, Error> {
        let (distances, features) = LARGE;
        let is_large = u64::from(queries.rows) * u64::from(bank.rows) >= distances;
        if gpu.capability() < 80 || !is_large || bank.dim < features {
            return Ok(None);
        }
        let free = gpu.free()?;
        let is_own = queries.data == bank.data && queries.rows <= bank.rows;
        let ways = [
            (Self::Symmetric, is_symmetric(queries, bank, at)),
            (Self::Among, is_own),
            (Self::Apart, !is_own),
        ];
        let fits = |way: Self| way.bytes(queries.rows, bank) <= free;
        Ok(ways.into_iter().find(|&(way, is)| is && fits(way)).map(|(way, _)| way))
    }
}

/// Searches by products, and sums directly what may be nearest. Allocates what
/// [`Products::bytes`] says: a padded copy of the bank, one of as many queries as are searched
/// for at a time where they are not the bank's, and about 1 KiB for each of these.
fn by_products(
    gpu: &Arc<Gpu>,
    queries: &Rowset,
    bank: &Rowset,
    way: Products,
    at: Among,
) -> Result<(), Error> {
    let search = |name, launch, args: &[_]| gpu.launch(Source::Search, name, launch, args);
    let (n, dim) = (bank.rows, bank.dim);
    let point = gpu.allocate(dim as usize * size_of::<f32>())?;
    search("middle", Launch::over(dim), args![bank.data, point.address(), n, dim])?;
    let point = point.address();
    let centred = Centred::new(gpu, bank, point)?;
    let piece = way.held(queries.rows);
    let held = piece as usize;
    let (limits, counts) = (gpu.allocate(held * 8)?, gpu.allocate(held * 8)?);
    let notes = gpu.allocate(held * 2 * NOTES * size_of::<u64>())?;
    let (list, listed) = (gpu.allocate(held * 4)?, gpu.allocate(4)?);
    let (limits, counts, notes) = (limits.address(), counts.address(), notes.address());
    let (list, listed) = (list.address(), listed.address());
    for (done, m) in pieces(queries.rows, piece) {
        let (some, at) = (part(queries, done, m), at.past(done));
        let Among { same, other, first, skip } = at;
        let own = match way {
            Products::Apart => Some(Centred::new(gpu, &some, point)?),
            Products::Among | Products::Symmetric => None,
        };
        let (from, from_bounds) =
            own.as_ref().map_or_else(|| centred.past(done), |own| own.past(0));
        let (to, to_bounds) = centred.past(0);
        let args = args![same, other, limits, counts, listed, m];
        search("start_notes", Launch::over(m), args)?;
        let (down, tiles) = (m.div_ceil(PANEL), n.div_ceil(PANEL));
        let (labels, row_labels, width) = (some.labels, bank.labels, centred.width);
        let launch = |tiles| {
            let grid = [across(gpu, down, tiles), down, 1];
            Launch { grid, block: 256, shared: STAGES }
        };
        if way == Products::Symmetric {
            let args = args![to, to_bounds, row_labels, limits, counts, notes, n, width];
            search("note_nearest_itself", launch(tiles / 2 + 1), args)?;
        } else {
            let args = args![
                from,
                from_bounds,
                labels,
                to,
                to_bounds,
                row_labels,
                limits,
                counts,
                notes,
                m,
                n,
                width,
                first,
                skip
            ];
            search("note_nearest", launch(tiles), args)?;
        }
        let (x, y) = (some.data, bank.data);
        let args = args![x, y, limits, counts, notes, same, other, list, listed, m, dim, first];
        search("measure_notes", Launch::warps(m), args)?;
        directly(gpu, &some, bank, at, (list, listed))?;
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
    all_directly(gpu, &set, &set, Among { same, other, first: 0, skip: 0 })?;
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
    let (from, to) = both(gpu, memory, queries, bank)?;
    let queries = part(&from, 0, from.rows.min(narrow(pairs.len())?));
    let count = queries.rows as usize;
    let (mut same, mut other): (Vec<u64>, Vec<u64>) =
        pairs.iter().take(count).map(|pair| (key(pair.same), key(pair.other))).unzip();
    let (same_keys, other_keys) = (gpu.upload(&same)?, gpu.upload(&other)?);
    let skip = skip.map_or(NO_SKIP, u64::from);
    let at = Among { same: same_keys.address(), other: other_keys.address(), first, skip };
    // The range of indices ends before the one that means none.
    let all = to.as_ref().unwrap_or(&from);
    let bank = part(all, 0, all.rows.min(u32::MAX - first));
    match Products::way(gpu, &queries, &bank, at)? {
        Some(way) => by_products(gpu, &queries, &bank, way, at)?,
        None => all_directly(gpu, &queries, &bank, at)?,
    }
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
