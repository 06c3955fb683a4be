//! Model files and checkpoints on disk.
//!
//! A file is written beside its place, synced and renamed: at every moment the old one or the new
//! one is there, whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sepal_core::arena::Word;
use sepal_core::format::{self, Checkpoint, FormatError, Meta};
use sepal_core::layer::{Layer, RELU};
use sepal_core::net::{Input, Model, Net, Stored, TensorRecord, Weights};
use sepal_core::train::Progress;

use crate::fit::{Snapshot, Underway};

/// What is wrong with a file.
#[derive(Debug)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused.
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The file is no model file, or not the one that is needed.
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: FormatError,
    },
    /// The file has a model, but no run to go on with.
    NoRun {
        /// The file.
        path: PathBuf,
    },
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { path, doing, error } => write!(f, "{}: {doing}: {error}", path.display()),
            Self::Format { path, error } => write!(f, "{}: {error}", path.display()),
            Self::NoRun { path } => {
                write!(f, "{}: a finished model, not a run that can be resumed", path.display())
            }
        }
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Format { error, .. } => Some(error),
            Self::NoRun { .. } => None,
        }
    }
}

/// The largest file that is read: what the format's 32-bit places can reach.
const LIMIT: u64 = u32::MAX as u64;

/// Writes `path` whole or not at all: `write` fills a file beside it, which is synced and renamed.
///
/// # Errors
/// What the system refuses, and what `write` says. The file that was there before is untouched.
pub fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let io = |doing| move |error| FileError::Io { path: path.to_owned(), doing, error };
    let beside = beside(path);
    let attempt = || {
        let mut file = BufWriter::new(File::create(&beside).map_err(io("creating"))?);
        write(&mut file)?;
        let file = file.into_inner().map_err(|e| io("writing")(e.into_error()))?;
        file.sync_all().map_err(io("syncing"))?;
        fs::rename(&beside, path).map_err(io("renaming"))
    };
    let done = attempt();
    if done.is_err() {
        // The error to report is the first one.
        let _ = fs::remove_file(&beside);
        return done;
    }
    // The new name is on disk once its folder is; not every system can sync a folder.
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    done
}

/// Finds out whether `path` could be written, without touching what is there.
///
/// # Errors
/// What the system refuses.
pub fn check_writable(path: &Path) -> Result<(), FileError> {
    let io = |doing| move |error| FileError::Io { path: path.to_owned(), doing, error };
    if path.is_dir() || path.file_name().is_none() {
        return Err(io("creating")(io::ErrorKind::IsADirectory.into()));
    }
    let beside = beside(path);
    File::create(&beside).map_err(io("creating"))?;
    fs::remove_file(&beside).map_err(io("removing"))
}

/// The file beside `path` that becomes it. It always has the same name: what a killed writer
/// left is overwritten by the next.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Writes a model file.
///
/// # Errors
/// What the system refuses; a model that the format cannot hold.
pub fn save(path: &Path, model: &Model<'_>, meta: &Meta<'_>) -> Result<(), FileError> {
    write(path, |sink| format::write(model, meta, &mut { sink }))
}

/// Writes a checkpoint: the net with its weights, and a run between two steps.
///
/// # Errors
/// As [`save`].
pub fn save_checkpoint(
    path: &Path,
    net: Net<'_>,
    snapshot: &Snapshot,
    identity: u64,
    text: &str,
) -> Result<(), FileError> {
    let model = Model { net, weights: Weights::Flat(&snapshot.weights) };
    let between = Progress { stage: snapshot.outcomes.len() as u16, ..Progress::default() };
    let checkpoint = Checkpoint {
        identity,
        text,
        progress: snapshot.underway.as_ref().map_or(between, |u| u.progress),
        outcomes: &snapshot.outcomes,
        state: match &snapshot.underway {
            Some(underway) => underway.state.each_ref().map(|state| &state[..]),
            None => [&[]; 4],
        },
    };
    let meta = Meta::NONE;
    write(path, |sink| format::write_checkpoint(&model, &meta, &checkpoint, &mut { sink }))
}

/// A code for what the sink's own error says better.
const SINK: i32 = 1;

fn write(
    path: &Path,
    emit: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), FormatError>) -> Result<(), FormatError>,
) -> Result<(), FileError> {
    replace(path, |out| {
        let mut failed = None;
        let mut sink = |bytes: &[u8]| {
            out.write_all(bytes).map_err(|error| {
                failed = Some(error);
                FormatError::Sink { code: SINK }
            })
        };
        let done = emit(&mut sink);
        match failed {
            Some(error) => Err(FileError::Io { path: path.to_owned(), doing: "writing", error }),
            None => done.map_err(|error| FileError::Format { path: path.to_owned(), error }),
        }
    })
}

/// A model file in memory.
///
/// ```no_run
/// let loaded = sepal_models::file::Loaded::open("lenet.sepal".as_ref())?;
/// println!("{} layers", loaded.model().net.layers.len());
/// # Ok::<(), sepal_models::file::FileError>(())
/// ```
#[derive(Debug)]
pub struct Loaded {
    path: PathBuf,
    words: Vec<Word>,
    len: usize,
    input: Input,
    features: u16,
    layers: Vec<Layer>,
    blocks: Vec<u16>,
    tensors: Vec<TensorRecord>,
    /// The weights' place in the file.
    blob: std::ops::Range<usize>,
}

impl Loaded {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// A file that cannot be read, is no model file, is truncated or corrupt.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let io = |doing| move |error| FileError::Io { path: path.to_owned(), doing, error };
        let mut file = File::open(path).map_err(io("opening"))?;
        let len = file.metadata().map_err(io("reading"))?.len();
        if len > LIMIT {
            let error = io::Error::other(format!("{len} bytes, expected at most {LIMIT}"));
            return Err(io("reading")(error));
        }
        let len = len as usize;
        let mut words = vec![Word::ZERO; Word::count(len)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        file.read_exact(bytes.get_mut(..len).unwrap_or_default()).map_err(io("reading"))?;
        let bytes = bytes.get(..len).unwrap_or_default();
        let format = |error| FileError::Format { path: path.to_owned(), error };
        let file = format::File::open(bytes).map_err(format)?;
        let counts = file.counts();
        let (mut layers, mut blocks) = (vec![RELU; counts.layers], vec![0; counts.blocks]);
        let mut tensors = vec![format::File::NO_TENSOR; counts.tensors];
        let model = file.decode(&mut layers, &mut blocks, &mut tensors).map_err(format)?;
        let (input, features) = (model.net.input, model.net.features);
        // The weights end where the last checksum begins.
        let past = len - format::TRAILER;
        let blob = past - file.blob().len()..past;
        let path = path.to_owned();
        Ok(Self { path, words, len, input, features, layers, blocks, tensors, blob })
    }

    /// The model, its weights where they lie in the file's bytes.
    pub fn model(&self) -> Model<'_> {
        let blob = self.bytes().get(self.blob.clone()).unwrap_or_default();
        let Self { input, features, .. } = *self;
        Model {
            net: Net { input, layers: &self.layers, blocks: &self.blocks, features },
            weights: Weights::File { records: &self.tensors, blob },
        }
    }

    /// The run that the file holds, to go on with.
    ///
    /// # Errors
    /// A finished model; a run of another net, recipe, data set, seed or version.
    pub fn snapshot(&self, net: Net<'_>, identity: u64) -> Result<Snapshot, FileError> {
        let Some(saved) = self.file()?.checkpoint() else {
            return Err(FileError::NoRun { path: self.path.clone() });
        };
        let format = |error| FileError::Format { path: self.path.clone(), error };
        saved.check(&self.model(), &net, identity).map_err(format)?;
        let weights = self.weights()?;
        let mut state = [const { Vec::new() }; 4];
        for (index, numbers) in state.iter_mut().enumerate() {
            self.append(saved.state(index), numbers)?;
        }
        let there = state.iter().any(|numbers| !numbers.is_empty());
        let underway = there.then(|| Underway { progress: *saved.progress(), state });
        Ok(Snapshot { weights, outcomes: saved.outcomes().collect(), underway })
    }

    /// All parameters as f32, flat: for a model that learns on.
    ///
    /// # Errors
    /// Numbers of a type that this build does not read.
    pub fn weights(&self) -> Result<Vec<f32>, FileError> {
        let (model, mut weights) = (self.model(), Vec::new());
        for layer in 0..self.layers.len() {
            for stored in model.weights.layer(&model.net, layer) {
                self.append(stored, &mut weights)?;
            }
        }
        Ok(weights)
    }

    fn append(&self, stored: Stored<'_>, to: &mut Vec<f32>) -> Result<(), FileError> {
        let first = to.len();
        to.resize(first + stored.len(), 0.0);
        if stored.widen(to.get_mut(first..).unwrap_or_default()) {
            return Ok(());
        }
        let found = u64::from(stored.dtype as u8);
        let error = FormatError::Unknown { field: "type of a tensor", found };
        Err(FileError::Format { path: self.path.clone(), error })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words).get(..self.len).unwrap_or_default()
    }

    /// The file's contents beside the model.
    ///
    /// # Errors
    /// None: it was opened before.
    pub fn file(&self) -> Result<format::File<'_>, FileError> {
        let format = |error| FileError::Format { path: self.path.clone(), error };
        format::File::open(self.bytes()).map_err(format)
    }
}
