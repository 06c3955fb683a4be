//! What frozen layers give, kept for the stage behind them.
//!
//! A stage reads every sample once in each pass, and the layers in front of it are frozen: what
//! they give can be computed once and kept. Where it is kept is decided by a [`Budget`] alone, for
//! each stage anew, by the first of these that fits:
//!
//! 1. in memory as f32: what the frozen layers gave, bit for bit;
//! 2. in memory as f16, where the budget allows f16: half of the memory. Each row is divided by a
//!    power of two that brings its largest number below 2, so none is too large for f16. A number
//!    is off by at most 2^-11 of itself, or 2^-25 of the row's largest;
//! 3. in a file as f32, then as f16, where the budget names a folder for it. The file is temporary
//!    and has no name: the system removes it however the program ends;
//! 4. nowhere: the frozen layers run again for every batch, on samples as the source draws them.
//!
//! A cache is filled from the one in front of it, and the frozen layers between the two run once.
//! Both are there meanwhile. Where both are over the budget, the one in front is dropped first,
//! and all frozen layers run again. Beside its bytes a cache takes 2 for each label; the largest
//! arena of the stages so far comes on top.
//!
//! Numbers are kept as they lie on the device, so that nothing is reordered when they are read
//! again. On the CPU that is in blocks of eight channels: 6 channels take the room of 8.
//!
//! f16 changes what a stage learns, and so do fixed copies of augmented samples; f32, a file and
//! computing again do not. A resumed run fills the same caches from each other as the run that it
//! goes on with, and has its bits, if it is given the same budget.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use half::f16;
use half::slice::HalfFloatSliceExt;
use sepal_core::arena::{ArenaError, Layout, Word};
use sepal_core::backend::{self, Device};
use sepal_core::error::Error;
use sepal_core::net::Model;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};

use crate::features::Rows::Lying;
use crate::features::{forward, numbers};
use crate::file::FileError;
use crate::fit::FitError;

/// Which samples frozen layers are run on once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Keep {
    /// None: every batch runs through the frozen layers again, and an augmenting source draws
    /// other samples in each pass.
    Nothing,
    /// The samples as they are stored, without augmentation.
    Plain,
    /// So many augmented copies of each sample: copy `j` is drawn as in pass `j`, and pass `e` of
    /// the run reads copy `e mod k` of every sample. What is measured before the first step is
    /// measured on copy 0.
    Copies(NonZero<u32>),
}

/// A folder for the file of what memory does not hold.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spill {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes that the file may take.
    pub limit: u64,
}

/// What the output of frozen layers may take.
///
/// ```
/// use sepal_models::cache::{Budget, Precision, Store};
/// let budget = Budget::bytes(1_000_000);
/// let store = |dim| budget.choose(dim, 100).store;
/// assert_eq!(store(2_500), Store::Memory(Precision::F32));
/// assert_eq!(store(2_501), Store::Memory(Precision::F16));
/// assert_eq!(store(5_000), Store::Recomputed);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Budget {
    /// What is kept.
    pub keep: Keep,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether numbers may be kept as f16 where f32 does not fit.
    pub narrow: bool,
    /// Where to put what memory does not hold.
    pub spill: Option<Spill>,
}

impl Budget {
    /// Samples as they are stored, in so many bytes of memory: as f32, else as f16.
    pub const fn bytes(memory: u64) -> Self {
        Self { keep: Keep::Plain, memory, narrow: true, spill: None }
    }

    /// What is done with `samples` of `dim` numbers each, padding of their layout included.
    pub fn choose(&self, dim: usize, samples: u32) -> Choice {
        let copies = match self.keep {
            Keep::Nothing => return Choice::RECOMPUTED,
            Keep::Plain => 1,
            Keep::Copies(copies) => copies.get(),
        };
        let rows = u64::from(samples) * u64::from(copies);
        let memory = Some(self.memory);
        let disk = self.spill.as_ref().map(|spill| spill.limit);
        let narrow = |limit: Option<u64>| limit.filter(|_| self.narrow);
        for (store, precision, limit) in [
            (Store::Memory(Precision::F32), Precision::F32, memory),
            (Store::Memory(Precision::F16), Precision::F16, narrow(memory)),
            (Store::File(Precision::F32), Precision::F32, disk),
            (Store::File(Precision::F16), Precision::F16, narrow(disk)),
        ] {
            let bytes = precision.row(dim).saturating_mul(rows);
            if limit.is_some_and(|limit| bytes <= limit) {
                return Choice { store, copies, bytes };
            }
        }
        Choice::RECOMPUTED
    }

    /// Whether there is room for both, while one is filled from the other.
    pub(crate) fn holds(&self, one: Choice, other: Choice) -> bool {
        let both = one.bytes.saturating_add(other.bytes);
        match (one.store, other.store) {
            (Store::Memory(_), Store::Memory(_)) => both <= self.memory,
            (Store::File(_), Store::File(_)) => {
                self.spill.as_ref().is_some_and(|spill| both <= spill.limit)
            }
            _ => true,
        }
    }

    /// Finds out whether the folder can take a file, before anything is computed.
    pub(crate) fn check(&self) -> Result<(), FileError> {
        self.spill.as_ref().map_or(Ok(()), |spill| Disk::new(&spill.folder).map(drop))
    }
}

/// Samples as they are stored, as f32 in up to half of the memory that the machine has to spare
/// now. That half decides between keeping and computing again, which give the same bits.
impl Default for Budget {
    fn default() -> Self {
        Self { memory: available() / 2, narrow: false, ..Self::bytes(0) }
    }
}

/// Bytes of memory that the machine, or the control group that the program runs in, has to spare;
/// 4 GiB where neither can be told.
fn available() -> u64 {
    let bytes = sysinfo::System::new().map_or(0, |mut system| {
        system.refresh_memory();
        let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
        system.available_memory().min(group)
    });
    if bytes == 0 { 4 << 30 } else { bytes }
}

/// The type that kept numbers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Precision {
    /// 32 bits: as they were computed.
    F32,
    /// 16 bits, with a power of two for each row.
    F16,
}

impl Precision {
    /// Bytes of a row of `dim` numbers.
    const fn row(self, dim: usize) -> u64 {
        match self {
            Self::F32 => (dim as u64).saturating_mul(size_of::<f32>() as u64),
            Self::F16 => {
                let numbers = (dim as u64).saturating_mul(size_of::<f16>() as u64);
                numbers.saturating_add(size_of::<f32>() as u64)
            }
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

/// Where the output of frozen layers is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Store {
    /// In memory.
    Memory(Precision),
    /// In a file.
    File(Precision),
    /// Nowhere: it is computed for every batch.
    Recomputed,
}

impl Store {
    /// The type of its numbers; `None` where none are kept.
    pub const fn precision(self) -> Option<Precision> {
        match self {
            Self::Memory(precision) | Self::File(precision) => Some(precision),
            Self::Recomputed => None,
        }
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory(precision) => write!(f, "in memory as {precision}"),
            Self::File(precision) => write!(f, "in a file as {precision}"),
            Self::Recomputed => write!(f, "computed for every batch"),
        }
    }
}

/// What a [`Budget`] says to some samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Choice {
    /// Where they are kept.
    pub store: Store,
    /// How many copies of each; 0 where none is kept.
    pub copies: u32,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Choice {
    /// Nothing is kept.
    pub const RECOMPUTED: Self = Self { store: Store::Recomputed, copies: 0, bytes: 0 };
}

/// How samples come through the frozen layers to a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// What is kept. Where nothing is, all frozen layers run for every batch.
    pub choice: Choice,
    /// The leading layers whose output is kept; those from there to the stage run for every batch.
    pub depth: usize,
    /// How long it took to fill.
    pub time: Duration,
}

/// The output of frozen layers for all samples of a source: a source itself, for the layers that
/// follow. It reads copy `epoch mod copies` of each sample, and copy 0 where there is no draw.
///
/// ```
/// use sepal_core::reference::OnReference;
/// use sepal_core::source::Source;
/// use sepal_models::cache::{Budget, Cache};
/// use sepal_models::{fit::Fit, lenet::LENET};
/// # #[cfg(feature = "bundled")] {
/// let mut images = sepal_models::data::bundled().train.head(16)?;
/// let (fit, budget) = (Fit::new(LENET, 0)?, Budget::bytes(1 << 20));
/// let cache = Cache::fill(&OnReference, &fit.model(), &mut images, 4, &budget, 0)?;
/// let cache = cache.ok_or("no room for it")?;
/// assert_eq!((cache.len(), cache.depth()), (16, 4));
/// assert_eq!(cache.choice().bytes, 16 * 6 * 14 * 14 * 4);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Cache {
    depth: usize,
    shape: Shape,
    layout: Layout,
    choice: Choice,
    labels: Vec<u16>,
    rows: Rows,
    failed: Option<FileError>,
}

impl Cache {
    /// Runs all samples of `source`, another cache perhaps, through the layers from its depth up to
    /// `last`, and keeps what they give as `budget` says; `None` where that is nowhere. `seed`
    /// decides what augmented copies are drawn.
    ///
    /// # Errors
    /// Samples of another shape than the net takes, memory that the system has not, a file that
    /// cannot be written.
    pub fn fill<D: Device, S: Source>(
        device: &D,
        model: &Model<'_>,
        source: &mut S,
        last: usize,
        budget: &Budget,
        seed: u64,
    ) -> Result<Option<Self>, FitError> {
        Self::fill_in(device, &mut Vec::new(), model, source, last, budget, seed)
    }

    /// As [`fill`](Self::fill), the arena being `memory`, which grows where it is too small.
    pub(crate) fn fill_in<D: Device, S: Source>(
        device: &D,
        memory: &mut Vec<Word>,
        model: &Model<'_>,
        source: &mut S,
        last: usize,
        budget: &Budget,
        seed: u64,
    ) -> Result<Option<Self>, FitError> {
        let shape = model.net.shape(last)?;
        let layout = backend::layout(&device.open(&mut [])?, &model.net, last)?;
        let dim = layout.elements(shape).unwrap_or(0) as usize;
        let choice = budget.choose(dim, source.len());
        let place = match (choice.store, &budget.spill) {
            (Store::Memory(_), _) => Place::Memory(reserve(choice.bytes)?),
            (Store::File(_), Some(spill)) => {
                Place::File(Disk::new(&spill.folder).map_err(FitError::Spill)?)
            }
            _ => return Ok(None),
        };
        let precision = choice.store.precision().unwrap_or(Precision::F32);
        let mut rows = Rows::new(dim, precision, place);
        let mut labels = Vec::with_capacity(source.len() as usize);
        for copy in 0..choice.copies {
            let draw = Draw { seed, epoch: copy, step: 0 };
            let draw = (budget.keep != Keep::Plain).then_some(draw);
            forward(device, memory, model, (&mut *source, draw), last, Lying, |numbers, own| {
                if copy == 0 {
                    labels.extend_from_slice(own);
                }
                rows.append(numbers).map_err(FitError::Spill)
            })?;
        }
        Ok(Some(Self { depth: last, shape, layout, choice, labels, rows, failed: None }))
    }

    /// Where it is kept, and how much that takes.
    pub const fn choice(&self) -> Choice {
        self.choice
    }

    /// Why the last read of the file failed, once. [`Source::read`] can only say that it did.
    pub fn failure(&mut self) -> Option<FileError> {
        self.failed.take()
    }
}

impl Source for Cache {
    fn len(&self) -> u32 {
        self.labels.len() as u32
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        false
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn read(
        &mut self,
        indices: &[u32],
        draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let (len, dim) = (self.len(), self.rows.dim);
        let out = numbers(batch, indices.len(), dim)?;
        let copy = draw.map_or(0, |draw| draw.epoch % self.choice.copies.max(1));
        let first = u64::from(copy) * u64::from(len);
        let rows = out.chunks_exact_mut(dim.max(1));
        for ((&index, out), label) in indices.iter().zip(rows).zip(labels) {
            let own = self.labels.get(index as usize);
            *label = *own.ok_or(SourceError::Index { index, len })?;
            if let Err(error) = self.rows.read(first + u64::from(index), out) {
                let code = match &error {
                    FileError::Io { error, .. } => error.raw_os_error().unwrap_or(0),
                    _ => 0,
                };
                self.failed = Some(error);
                return Err(SourceError::Read { index, code });
            }
        }
        Ok(())
    }
}

/// Rows of numbers, one after the other.
#[derive(Debug)]
struct Rows {
    dim: usize,
    place: Place,
    /// Where rows are kept as f16.
    narrow: Option<Narrow>,
}

impl Rows {
    fn new(dim: usize, precision: Precision, place: Place) -> Self {
        let narrow = (precision == Precision::F16).then(Narrow::default);
        Self { dim, place, narrow }
    }

    /// Adds whole rows at the end.
    fn append(&mut self, rows: &[f32]) -> Result<(), FileError> {
        match &mut self.narrow {
            None => self.place.append(bytemuck::cast_slice(rows)),
            Some(narrow) => self.place.append(narrow.round(rows, self.dim)),
        }
    }

    fn read(&mut self, row: u64, out: &mut [f32]) -> Result<(), FileError> {
        match &mut self.narrow {
            None => {
                self.place.read(row * Precision::F32.row(self.dim), bytemuck::cast_slice_mut(out))
            }
            Some(narrow) => {
                narrow.half.resize(self.dim, f16::ZERO);
                let at = row * (self.dim * size_of::<f16>()) as u64;
                self.place.read(at, bytemuck::cast_slice_mut(&mut narrow.half))?;
                narrow.half.convert_to_f32_slice(out);
                let scale = narrow.scales.get(row as usize).copied().unwrap_or(1.0);
                out.iter_mut().for_each(|x| *x *= scale);
                Ok(())
            }
        }
    }
}

/// Rows as f16, and what lies between them and f32.
#[derive(Debug, Default)]
struct Narrow {
    /// The power of two that each row was divided by.
    scales: Vec<f32>,
    half: Vec<f16>,
    scaled: Vec<f32>,
}

impl Narrow {
    /// Rows as bytes of f16.
    fn round(&mut self, rows: &[f32], dim: usize) -> &[u8] {
        self.scaled.clear();
        for row in rows.chunks_exact(dim.max(1)) {
            let scale = power_below(row.iter().fold(0.0, |most: f32, x| most.max(x.abs())));
            self.scaled.extend(row.iter().map(|x| x / scale));
            self.scales.push(scale);
        }
        self.half.resize(self.scaled.len(), f16::ZERO);
        self.half.convert_from_f32_slice(&self.scaled);
        bytemuck::cast_slice(&self.half)
    }
}

/// The largest power of two that is no more than `x`; 1 where there is none, as for 0 and infinity.
fn power_below(x: f32) -> f32 {
    const EXPONENT: u32 = 0x7f80_0000;
    match x.to_bits() & EXPONENT {
        0 | EXPONENT => 1.0,
        exponent => f32::from_bits(exponent),
    }
}

/// Bytes, one after the other.
#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    File(Disk),
}

impl Place {
    fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        match self {
            Self::Memory(all) => {
                all.extend_from_slice(bytes);
                Ok(())
            }
            Self::File(disk) => {
                let written = disk.file.write_all(bytes);
                written.map_err(|e| disk.error("writing its temporary file", e))
            }
        }
    }

    fn read(&mut self, at: u64, out: &mut [u8]) -> Result<(), FileError> {
        match self {
            Self::Memory(all) => {
                // Rows that are asked for were appended.
                let rows = all.get(at as usize..).and_then(|rest| rest.get(..out.len()));
                rows.into_iter().for_each(|rows| out.copy_from_slice(rows));
                Ok(())
            }
            Self::File(disk) => {
                let place = disk.file.seek(SeekFrom::Start(at));
                let read = place.and_then(|_| disk.file.read_exact(out));
                read.map_err(|e| {
                    let short = e.kind() == ErrorKind::UnexpectedEof;
                    let past = at.saturating_add(out.len() as u64);
                    let cut = || std::io::Error::other(format!("it ends before byte {past}"));
                    disk.error("reading its temporary file", if short { cut() } else { e })
                })
            }
        }
    }
}

/// A file without a name.
#[derive(Debug)]
struct Disk {
    file: File,
    folder: PathBuf,
}

impl Disk {
    fn new(folder: &Path) -> Result<Self, FileError> {
        let folder = folder.to_owned();
        match tempfile::tempfile_in(&folder) {
            Ok(file) => Ok(Self { file, folder }),
            Err(error) => {
                Err(FileError::Io { path: folder, doing: "creating a file in it", error })
            }
        }
    }

    fn error(&self, doing: &'static str, error: std::io::Error) -> FileError {
        FileError::Io { path: self.folder.clone(), doing, error }
    }
}

/// Memory for so many bytes.
fn reserve(bytes: u64) -> Result<Vec<u8>, Error> {
    let mut memory = Vec::new();
    let needed = usize::try_from(bytes).unwrap_or(usize::MAX);
    match memory.try_reserve_exact(needed) {
        Ok(()) => Ok(memory),
        Err(_) => Err(ArenaError::OutOfMemory { needed, given: 0 }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(memory: u64, narrow: bool, disk: Option<u64>) -> Budget {
        let spill = disk.map(|limit| Spill { folder: PathBuf::from("/"), limit });
        Budget { keep: Keep::Plain, memory, narrow, spill }
    }

    #[test]
    fn the_first_store_that_fits_is_chosen() {
        use Precision::{F16, F32};
        // 100 samples of 10 numbers: 4,000 bytes as f32, 2,400 as f16.
        for (memory, narrow, disk, store) in [
            (4_000, true, None, Store::Memory(F32)),
            (3_999, true, None, Store::Memory(F16)),
            (3_999, false, None, Store::Recomputed),
            (2_400, true, None, Store::Memory(F16)),
            (2_399, true, None, Store::Recomputed),
            (2_399, true, Some(4_000), Store::File(F32)),
            (3_999, true, Some(4_000), Store::Memory(F16)),
            (3_999, false, Some(4_000), Store::File(F32)),
            (2_399, true, Some(3_999), Store::File(F16)),
            (2_399, false, Some(3_999), Store::Recomputed),
            (0, true, Some(2_400), Store::File(F16)),
            (0, true, Some(2_399), Store::Recomputed),
        ] {
            let choice = limits(memory, narrow, disk).choose(10, 100);
            assert_eq!(choice.store, store, "{memory} {narrow} {disk:?}");
            let bytes = choice.store.precision().map_or(0, |precision| precision.row(10) * 100);
            assert_eq!(choice.bytes, bytes);
        }
    }

    #[test]
    fn copies_count_and_nothing_is_kept_where_nothing_is_to_be() {
        let copies = |k| Keep::Copies(NonZero::new(k).unwrap());
        let choose = |keep, memory| Budget { keep, ..Budget::bytes(memory) }.choose(10, 100);
        assert_eq!(choose(copies(3), 12_000).store, Store::Memory(Precision::F32));
        assert_eq!(choose(copies(3), 11_999).store, Store::Memory(Precision::F16));
        assert_eq!(choose(copies(3), 7_199), Choice::RECOMPUTED);
        assert_eq!(choose(Keep::Nothing, u64::MAX), Choice::RECOMPUTED);
        // Sizes that no number holds fit nowhere.
        let most = Budget::bytes(u64::MAX - 1);
        let most = Budget { keep: copies(u32::MAX), ..most }.choose(usize::MAX, u32::MAX);
        assert_eq!(most, Choice::RECOMPUTED);
    }

    #[test]
    fn two_caches_share_a_limit_where_they_share_a_place() {
        let choice = |store, bytes| Choice { store, copies: 1, bytes };
        let memory = |bytes| choice(Store::Memory(Precision::F32), bytes);
        let file = |bytes| choice(Store::File(Precision::F32), bytes);
        let limits = limits(100, false, Some(200));
        assert!(limits.holds(memory(40), memory(60)) && !limits.holds(memory(41), memory(60)));
        assert!(limits.holds(file(140), file(60)) && !limits.holds(file(141), file(60)));
        assert!(limits.holds(memory(100), file(200)) && limits.holds(file(200), memory(100)));
    }

    #[test]
    fn the_machine_has_memory() {
        assert!(Budget::default().memory > 1 << 20);
        assert!(!Budget::default().narrow);
    }

    fn rows(precision: Precision, file: bool) -> (Rows, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let place = if file {
            Place::File(Disk::new(folder.path()).unwrap())
        } else {
            Place::Memory(reserve(100).unwrap())
        };
        (Rows::new(4, precision, place), folder)
    }

    #[test]
    fn rows_come_back_from_each_store() {
        // Far beyond what f16 holds, far below, mixed, zero, and what is no number.
        let given = [
            [1e30, -2.5e30, 3.0e29, 0.0],
            [1e-30, -7e-31, 2e-38, 1e-33],
            [0.5, 1.0 / 3.0, 1e-9, -65_504.0],
            [0.0, -0.0, 0.0, 0.0],
            [f32::INFINITY, f32::NAN, 1.0, -1.0],
            [f32::MAX / 2.0, f32::MIN / 2.0, 1.5, f32::MIN_POSITIVE],
        ];
        for (precision, file) in [
            (Precision::F32, false),
            (Precision::F32, true),
            (Precision::F16, false),
            (Precision::F16, true),
        ] {
            let (mut rows, folder) = rows(precision, file);
            rows.append(given[..4].as_flattened()).unwrap();
            rows.append(given[4..].as_flattened()).unwrap();
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has a name");
            for row in [5, 0, 3, 3, 4, 1, 2] {
                let mut out = [0.0; 4];
                rows.read(row as u64, &mut out).unwrap();
                let most = given[row].iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                for (&x, &y) in given[row].iter().zip(&out) {
                    if precision == Precision::F32 || !x.is_finite() {
                        assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()));
                    } else if most.is_finite() {
                        let bound = (x.abs() * 2f32.powi(-11)).max(most * 2f32.powi(-25));
                        assert!((x - y).abs() <= bound, "{x} came back as {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_short_is_named() {
        for precision in [Precision::F32, Precision::F16] {
            let (mut rows, folder) = rows(precision, true);
            rows.append(&[1.0; 40]).unwrap();
            let Place::File(disk) = &rows.place else { panic!("no file") };
            let row = if precision == Precision::F32 { 16 } else { 8 };
            disk.file.set_len(row * 10 - 1).unwrap();
            let choice = Choice { store: Store::File(precision), copies: 1, bytes: 160 };
            let mut cache = Cache {
                depth: 1,
                shape: Shape::rows(1, 4),
                layout: Layout::Nchw,
                choice,
                labels: vec![0; 10],
                rows,
                failed: None,
            };
            let mut read = |index| {
                let (mut out, mut labels) = ([0.0; 4], [0]);
                (cache.read(&[index], None, Batch::F32(&mut out), &mut labels), cache.failure())
            };
            assert!(matches!(read(3), (Ok(()), None)));
            let (read, failure) = read(9);
            assert!(matches!(read, Err(SourceError::Read { index: 9, .. })), "{read:?}");
            let text = failure.unwrap().to_string();
            let name = folder.path().display().to_string();
            assert!(
                text.contains(&name)
                    && text.ends_with(&format!("file: it ends before byte {}", row * 10)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("read-only");
        std::fs::write(&path, "").unwrap();
        let disk = Disk { file: File::open(&path).unwrap(), folder: folder.path().to_owned() };
        let mut rows = Rows::new(4, Precision::F16, Place::File(disk));
        let text = rows.append(&[1.0; 4]).unwrap_err().to_string();
        assert!(text.contains("writing its temporary file"), "{text}");
    }

    #[test]
    fn samples_that_are_not_there_are_refused() {
        let (mut rows, _folder) = rows(Precision::F32, false);
        rows.append(&[1.0; 8]).unwrap();
        let choice = Choice { store: Store::Memory(Precision::F32), copies: 1, bytes: 32 };
        let (shape, labels) = (Shape::rows(1, 4), vec![0; 2]);
        let layout = Layout::Nchw;
        let mut cache = Cache { depth: 1, shape, layout, choice, labels, rows, failed: None };
        let (mut out, mut label) = ([0.0; 4], [0]);
        let error = cache.read(&[2], None, Batch::F32(&mut out), &mut label);
        assert_eq!(error, Err(SourceError::Index { index: 2, len: 2 }));
        let error = cache.read(&[1], None, Batch::F32(&mut out[1..]), &mut label);
        assert_eq!(error, Err(SourceError::Batch { expected: 4, got: 3 }));
        let error = cache.read(&[1], None, Batch::U8(&mut []), &mut label);
        assert_eq!(error, Err(SourceError::Batch { expected: 4, got: 0 }));
    }
}
