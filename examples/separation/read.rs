//! Features and labels from files.

use std::path::{Path, PathBuf};

use sepal::models::data::csv::{self, Column, Target};
use sepal::models::data::npy::{self, Array, Values};
use sepal::models::data::{self, Dataset, Samples};
use sepal::neighbour::Rows;
use sepal::rng::Permutation;
use sepal::shape::Shape;

use crate::Args;
use crate::program::Failure;
use crate::warn::warn;

/// Feature vectors with their labels, or with numbers to predict.
pub struct Set {
    data: Vec<f32>,
    pub dim: usize,
    pub labels: Vec<u16>,
    pub names: Vec<String>,
    pub targets: Vec<f32>,
}

impl Set {
    /// The samples that are measured: all, or as many as --samples says, in the file's order.
    pub fn drawn(set: &Dataset, args: &Args, path: &Path) -> Result<Self, Failure> {
        let len = set.len();
        if args.samples >= len {
            return Ok(Self::of(set));
        }
        let (count, file) = (args.samples, path.display());
        warn(&format!("{file}: {count} of {len} samples are measured, --samples says how many"));
        let order = Permutation::new(args.seed, 0, len);
        let mut indices: Vec<u32> = (0..count).map(|place| order.get(place)).collect();
        indices.sort_unstable();
        Ok(Self::of(&set.subset(&indices)?))
    }

    fn of(set: &Dataset) -> Self {
        let data = match set.samples() {
            Samples::U8(bytes) => bytes.iter().map(|&byte| f32::from(byte)).collect(),
            Samples::F32(numbers) => numbers.clone(),
        };
        Self {
            data,
            dim: set.shape().sample().unwrap_or(0) as usize,
            labels: set.labels().to_vec(),
            names: set.names().to_vec(),
            targets: set.targets().to_vec(),
        }
    }

    pub fn rows(&self) -> Rows<'_> {
        Rows { data: &self.data, dim: self.dim, labels: &self.labels }
    }

    /// How many samples each class has.
    pub fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.names.len()];
        for &label in &self.labels {
            counts[usize::from(label)] += 1;
        }
        counts
    }
}

/// What a path leads to.
enum Kind {
    Folder,
    Npy,
    Csv,
}

impl Kind {
    fn of(path: &Path) -> Self {
        let npy = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("npy"));
        if path.is_dir() {
            Self::Folder
        } else if npy {
            Self::Npy
        } else {
            Self::Csv
        }
    }
}

/// The set to measure, and the one to judge by it.
pub fn read(args: &Args) -> Result<(Dataset, Option<(PathBuf, Dataset)>), Failure> {
    let path = &args.features;
    let (set, own) = match Kind::of(path) {
        Kind::Folder if args.regression => {
            let file = path.display();
            return Err(
                format!("{file}: found a folder, expected CSV or NPY for --regression").into()
            );
        }
        Kind::Folder => {
            let split = data::open(path)?;
            (split.train, Some((path.clone(), split.test)))
        }
        _ => (one(args, path, args.labels.as_deref(), &[])?, None),
    };
    let Some(path) = &args.test else { return Ok((set, own)) };
    let test = match Kind::of(path) {
        Kind::Folder => data::open(path)?.test,
        _ => one(args, path, args.test_labels.as_deref(), set.names())?,
    };
    let (found, expected) = (test.shape().sample(), set.shape().sample());
    if found != expected {
        let (found, expected) = (found.unwrap_or(0), expected.unwrap_or(0));
        let (test, file) = (path.display(), args.features.display());
        return Err(format!("{test}: {found} features, expected {expected} as in {file}").into());
    }
    if test.names() != set.names() {
        let (test, file) = (path.display(), args.features.display());
        return Err(format!("{test}: found other classes, expected those of {file}").into());
    }
    Ok((set, Some((path.clone(), test))))
}

/// A table or an array. Without names of classes, they are those found.
fn one(
    args: &Args,
    path: &Path,
    labels: Option<&Path>,
    names: &[String],
) -> Result<Dataset, Failure> {
    let file = path.display();
    match (Kind::of(path), labels) {
        (Kind::Npy, Some(labels)) if args.regression => targets(path, labels),
        (Kind::Npy, Some(labels)) => Ok(npy::load(path, labels, names)?),
        (Kind::Npy, None) => {
            Err(format!("{file}: found an NPY array, expected its labels beside it (--labels)")
                .into())
        }
        (_, Some(_)) => {
            Err(format!("{file}: found no NPY array, expected one beside a file of labels").into())
        }
        (_, None) => {
            let column = match &args.label_column {
                None => Column::Last,
                Some(text) => match text.parse() {
                    Ok(index) => Column::Index(index),
                    Err(_) => Column::Name(text.clone()),
                },
            };
            let target = if args.regression { Target::Real } else { Target::Class(names.to_vec()) };
            Ok(csv::load(path, &csv::Options { column, target, ..Default::default() })?)
        }
    }
}

/// NPY features with numbers to predict.
fn targets(features: &Path, targets: &Path) -> Result<Dataset, Failure> {
    let (array, numbers) = (npy::read(features)?, npy::read(targets)?);
    let count = numbers.dims.iter().product::<u64>();
    let (file, dims) = (features.display(), &array.dims);
    let dim = match dims.split_first() {
        Some((&first, rest)) if first == count => rest.iter().product::<u64>(),
        _ => {
            let beside = targets.display();
            return Err(
                format!("{file}: shape {dims:?}, expected {count} rows as {beside} has").into()
            );
        }
    };
    let dim =
        u32::try_from(dim).map_err(|_| format!("{file}: {dim} features, expected below 2^32"))?;
    let samples = Samples::F32(floats(array));
    Dataset::with_targets(Shape::rows(1, dim), samples, floats(numbers))
        .map_err(|error| format!("{file}: {error}").into())
}

fn floats(array: Array) -> Vec<f32> {
    match array.values {
        Values::U8(data) => data.into_iter().map(f32::from).collect(),
        Values::I32(data) => data.into_iter().map(|x| x as f32).collect(),
        Values::I64(data) => data.into_iter().map(|x| x as f32).collect(),
        Values::F32(data) => data,
        Values::F64(data) => data.into_iter().map(|x| x as f32).collect(),
        _ => Vec::new(),
    }
}
