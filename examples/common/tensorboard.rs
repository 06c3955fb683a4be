//! Event files for TensorBoard: how a training goes, as scalars.
//!
//! An event file is records of `length: u64, crc(length), bytes, crc(bytes)`, all little-endian, with
//! CRC-32C masked as TensorFlow's `tfrecord` says; the bytes are messages of its `event.proto`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc, Table};
use prost::{Message, Oneof};
use sepal::models::file::FileError;
use sepal::models::fit::{Event, Now, Snapshot, Watch, WatchError, Wish};
use sepal::net::Net;
use sepal::stage::Stage;

use crate::judge::{Accuracy, Row};

const CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

/// A checksum as records store it.
fn masked(bytes: &[u8]) -> [u8; 4] {
    CRC.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Since the beginning of 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `tensorflow.Event`, what is used of it.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// An event file that is being written. Scalars are on disk when they were written.
pub struct Board {
    path: PathBuf,
    file: File,
}

impl Board {
    /// A new file in a folder, which is created; TensorBoard shows all files of a folder as one run.
    pub fn create(folder: &Path) -> Result<Self, FileError> {
        let io = |path: &Path, doing| {
            let path = path.to_owned();
            move |error| FileError::Io { path, doing, error }
        };
        std::fs::create_dir_all(folder).map_err(io(folder, "creating"))?;
        let (seconds, id) = (now().as_secs(), std::process::id());
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.sepal.{id}"));
        let file = File::options().append(true).create(true).open(&path);
        let file = file.map_err(io(&path, "creating"))?;
        let mut board = Self { path, file };
        board.write(0, What::FileVersion("brain.Event:2".to_owned()))?;
        Ok(board)
    }

    /// Numbers by their tags, at one step of whatever the tags count.
    pub fn scalars(&mut self, step: usize, scalars: &[(String, f32)]) -> Result<(), FileError> {
        let value = |(tag, value): &(String, f32)| Value { tag: tag.clone(), simple_value: *value };
        let value = scalars.iter().map(value).collect();
        self.write(step, What::Summary(Summary { value }))
    }

    /// SI behind each block, as the step, and what classifiers reach.
    pub fn results(&mut self, rows: &[Row], accuracy: &Accuracy) -> Result<(), FileError> {
        for (block, row) in rows.iter().enumerate() {
            let named = [("si/train", row.si), ("si/cross", row.cross_si)];
            let found =
                named.into_iter().filter_map(|(tag, si)| Some((tag.to_owned(), si? as f32)));
            self.scalars(block, &found.collect::<Vec<_>>())?;
        }
        let Accuracy { nearest, linear, head } = *accuracy;
        let named = [("nearest", nearest), ("linear", linear), ("head", head)];
        self.scalars(0, &named.map(|(name, share)| (format!("accuracy/{name}"), share as f32)))
    }

    fn write(&mut self, step: usize, what: What) -> Result<(), FileError> {
        let wall_time = now().as_secs_f64();
        let record = Record { wall_time, step: step as i64, what: Some(what) }.encode_to_vec();
        let length = (record.len() as u64).to_le_bytes();
        let bytes = [&length[..], &masked(&length), &record, &masked(&record)].concat();
        let path = &self.path;
        let failed = |error| FileError::Io { path: path.clone(), doing: "writing", error };
        self.file.write_all(&bytes).map_err(failed)
    }
}

/// Writes each pass of a run to a board, where there is one, and hands everything on to the watcher
/// that it holds.
pub struct Shown<'a, W> {
    net: Net<'a>,
    board: Option<&'a mut Board>,
    watch: W,
    /// What the stage under way is called, and its score.
    stage: (String, &'static str),
    /// Why the board cannot be written: the run ends.
    broken: Option<FileError>,
}

impl<'a, W: Watch> Shown<'a, W> {
    pub fn new(net: Net<'a>, board: Option<&'a mut Board>, watch: W) -> Self {
        Self { net, board, watch, stage: (String::new(), ""), broken: None }
    }

    /// Why the run was stopped from here, if it was.
    pub fn finish(self) -> Result<(), FileError> {
        self.broken.map_or(Ok(()), Err)
    }
}

/// What is trained, as tags name it: blocks count from 1.
fn named(net: &Net<'_>, stage: &Stage<'_>) -> String {
    let (first, last) = (usize::from(stage.first), usize::from(stage.last));
    let whole = last == net.layers.len();
    if whole && (first == 0 || first >= net.features_end()) {
        return if first == 0 { "net" } else { "classifier" }.to_owned();
    }
    let ends = |layer: usize| net.blocks.iter().filter(|&&end| usize::from(end) <= layer).count();
    match (ends(first) + 1, ends(last)) {
        (first, last) if first >= last => format!("block {first}"),
        (first, last) => format!("blocks {first}-{last}"),
    }
}

impl<W: Watch> Watch for Shown<'_, W> {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        match (event, &mut self.board) {
            (Event::Stage { stage, .. }, _) => {
                let separates = stage.recipe.objective.loss().is_some();
                let score = if separates { "si" } else { "accuracy" };
                self.stage = (named(&self.net, stage), score);
            }
            (&Event::Pass { epoch, loss, score, rate, held_out, .. }, Some(board)) => {
                let (stage, of) = &self.stage;
                let scalars = [(*of, Some(score)), ("loss", Some(loss)), ("rate", Some(rate))];
                let scalars = scalars.into_iter().chain([("held-out si", held_out)]);
                let tagged =
                    |(name, value): (&str, Option<f32>)| Some((format!("{stage}/{name}"), value?));
                let scalars: Vec<_> = scalars.filter_map(tagged).collect();
                self.broken = board.scalars(epoch.into(), &scalars).err();
            }
            _ => {}
        }
        let wish = self.watch.event(event);
        if self.broken.is_some() { Wish::Stop } else { wish }
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
        self.watch.snapshot(snapshot)
    }

    fn judge(&mut self, now: Now<'_>, stage: &Stage<'_>) -> Result<Option<f32>, WatchError> {
        self.watch.judge(now, stage)
    }
}
