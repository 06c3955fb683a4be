//! The data sets of the command line.

use std::path::Path;

use sepal::format::Digest;
use sepal::models::data::{self, Dataset, Samples, Split};

/// The set in `path`, or the bundled one.
pub fn open(path: Option<&Path>) -> Result<Split, data::DataError> {
    path.map_or_else(|| Ok(data::bundled()), data::open)
}

/// A digest of samples and labels, by which runs and models name their data.
pub fn digest(set: &Dataset) -> u64 {
    let mut digest = Digest::new();
    match set.samples() {
        Samples::U8(samples) => digest.bytes(samples),
        Samples::F32(samples) => samples.iter().for_each(|x| digest.bytes(&x.to_le_bytes())),
    }
    set.labels().iter().for_each(|label| digest.bytes(&label.to_le_bytes()));
    digest.finish()
}

/// Reads an order: little-endian u16 indices into a training set of `len` images.
pub fn order(path: &Path, len: u32) -> Result<Vec<u32>, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (indices, rest) = bytes.as_chunks::<2>();
    let name = path.display();
    if !rest.is_empty() || indices.is_empty() {
        return Err(format!("{name}: {} bytes, expected u16 indices of 2 bytes each", bytes.len()));
    }
    let indices: Vec<u32> = indices.iter().map(|&i| u16::from_le_bytes(i).into()).collect();
    match indices.iter().position(|&index| index >= len) {
        Some(at) => {
            Err(format!("{name}: index {} at place {at}, expected 0 to {}", indices[at], len - 1))
        }
        None => Ok(indices),
    }
}
