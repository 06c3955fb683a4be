//! The training samples that a command line chooses.

use std::path::{Path, PathBuf};

use sepal::models::data::{Dataset, Split};

use crate::program::Failure;

/// Which samples a command line names.
#[derive(Clone, Debug, clap::Args)]
pub struct Choice {
    /// File of little-endian u16 indices: the order in which training images are taken
    #[arg(long, value_name = "FILE")]
    pub order: Option<PathBuf>,

    /// Train on the first N images of the order only, those held out included
    #[arg(long, value_name = "N")]
    pub images: Option<u32>,

    /// Measure on the last N training images of the order instead of on the test set
    #[arg(long, value_name = "N")]
    pub dev: Option<u32>,
}

/// All training samples, the places of those that are chosen, and what to measure on.
pub fn chosen(split: Split, choice: &Choice) -> Result<(Dataset, Vec<u32>, Dataset), Failure> {
    let Choice { order: file, images, dev } = choice;
    let mut chosen = match file {
        Some(path) => order(path, split.train.len())?,
        None => (0..split.train.len()).collect(),
    };
    let test = match *dev {
        Some(n) if n == 0 || n as usize >= chosen.len() => {
            return Err(format!("--dev {n}: expected 1 to {}", chosen.len() - 1).into());
        }
        Some(n) => split.train.subset(&chosen.split_off(chosen.len() - n as usize))?,
        None => split.test,
    };
    let all = chosen.len();
    let images = images.unwrap_or(all as u32);
    if images == 0 || images as usize > all {
        return Err(format!("--images {images}: expected 1 to {all}").into());
    }
    chosen.truncate(images as usize);
    Ok((split.train, chosen, test))
}

/// Reads an order: little-endian u16 indices into a training set of `len` images.
fn order(path: &Path, len: u32) -> Result<Vec<u32>, String> {
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
