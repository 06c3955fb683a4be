//! Finished runs: one line of JSON each.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cells::{Cell, Scale, name};
use crate::program::Failure;

/// What a stage took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stage {
    /// Its first layer, and one past its last.
    pub first: usize,
    pub last: usize,
    /// Blocks among these layers that are trained.
    pub blocks: usize,
    /// Passes over the data.
    pub epochs: u16,
    /// CPU seconds, what filling the cache in front of it takes included.
    pub cpu_seconds: f64,
    pub cpu_seconds_per_epoch_and_layer: f64,
    /// The machines of these seconds: several where a run went on elsewhere.
    #[serde(default)]
    pub machines: Vec<String>,
    /// Bytes of its arena, and of what frozen layers gave.
    pub arena_bytes: usize,
    pub cached_bytes: u64,
}

/// What a block has learnt; the first is the raw input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Separation {
    pub block: String,
    /// One past its last layer.
    pub end: usize,
    pub shape: String,
    pub parameters: usize,
    /// SI of training samples, and of the test set among them.
    pub si_train: Option<f64>,
    pub cross_si: Option<f64>,
}

/// A finished run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub table: u8,
    pub data: String,
    pub model: String,
    pub strategy: String,
    pub seed: u64,
    pub scale: Scale,
    /// Samples that there were.
    pub images: u32,
    pub test_images: u32,
    /// Accuracy of the net, of a linear classifier and of the nearest neighbour in its features.
    pub head: f64,
    pub linear: f64,
    pub nearest: f64,
    pub si: Vec<Separation>,
    pub cpu_seconds: f64,
    /// What these seconds were measured on: the stages' machines, joined.
    #[serde(default)]
    pub machine: String,
    pub stages: Vec<Stage>,
    pub parameters: usize,
    /// The largest arena with what is cached beside it, and the weights.
    pub peak_bytes: u64,
    /// The command line.
    pub command: String,
}

impl Record {
    /// Whether it is a run of this cell.
    pub fn is_of(&self, cell: &Cell) -> bool {
        let (data, strategy) = (cell.set.name, cell.strategy.name);
        self.table == cell.table
            && self.data == data
            && self.model == name(cell.model)
            && self.strategy == strategy
    }
}

/// What the records have of something, each once, in the order in which they came.
pub fn kinds<R, T: PartialEq>(records: impl IntoIterator<Item = R>, of: impl Fn(R) -> T) -> Vec<T> {
    let mut kinds = Vec::new();
    for kind in records.into_iter().map(of) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// What the seconds of the runs were measured on.
pub fn machines<'a>(runs: &[&'a Record]) -> Vec<&'a str> {
    kinds(runs.iter().copied(), |run| &*run.machine)
}

/// The file of finished runs. It is locked while it is open: two programs would do the same runs.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    file: File,
    pub records: Vec<Record>,
}

impl Results {
    /// Opens it, or creates it. A last line that a killed program left unfinished is taken away.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error| format!("{}: {error}", path.display());
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!("{}: in use by another program", path.display()).into());
            }
            Err(TryLockError::Error(error)) => return Err(failed(error).into()),
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(whole as u64)).map_err(failed)?;
        let mut records = Vec::new();
        for (at, line) in text[..whole].lines().enumerate() {
            let record = serde_json::from_str(line);
            let record = record.map_err(|e| format!("{}, line {}: {e}", path.display(), at + 1))?;
            records.push(record);
        }
        Ok(Self { path: path.to_owned(), file, records })
    }

    /// Whether a run is finished.
    pub fn has(&self, cell: &Cell, scale: &Scale, seed: u64) -> bool {
        let same = |r: &&Record| r.seed == seed && r.scale == *scale && r.is_of(cell);
        self.records.iter().any(|record| same(&record))
    }

    /// Adds a run: its line is on disk when this returns.
    pub fn append(&mut self, record: Record) -> Result<(), Failure> {
        let failed = |error| format!("{}: {error}", self.path.display());
        let mut line = serde_json::to_string(&record)?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        self.records.push(record);
        Ok(())
    }
}
