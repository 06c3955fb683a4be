//! The data set that a command line names.

use std::path::PathBuf;

use sepal::models::data::{self, Options, Split};

use crate::program::Failure;

/// Where the samples are from.
#[derive(Clone, Debug, clap::Args)]
pub struct Set {
    /// Folder of a data set: IDX (gzip or not), CIFAR binary, labelled texts (train.csv, test.csv and
    /// classes.txt), gestures (magic_wand.csv), or class folders of images [default: bundled images
    /// of Fashion-MNIST]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// The person whose recordings are the test set, of gestures of several [default: the first by
    /// name of those with the most classes]
    #[arg(long, value_name = "PERSON", requires = "data")]
    pub leave_out: Option<String>,

    /// Zeros around each image, for nets that halve it too often: with 2, VGG16 takes 28x28. What was
    /// trained with it needs it everywhere
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub border: Option<u32>,
}

impl Set {
    /// Reads it.
    pub fn open(&self) -> Result<Split, Failure> {
        let options = Options { left_out: self.leave_out.as_deref(), ..Options::default() };
        let split = match &self.data {
            Some(path) => data::open_with(path, options)?,
            None => data::bundled(),
        };
        let Some(border) = self.border else { return Ok(split) };
        let shape = split.train.shape();
        if shape.h == 1 {
            return Err(
                format!("--border {border}: expected images, found samples of {shape}").into()
            );
        }
        Ok(Split { train: split.train.padded(border)?, test: split.test.padded(border)? })
    }

    /// How messages name it.
    pub fn name(&self) -> String {
        self.data
            .as_ref()
            .map_or_else(|| "the bundled images".to_owned(), |d| d.display().to_string())
    }
}
