//! The data set that a command line names.

use std::path::PathBuf;

use sepal::models::data::{self, DataError, Options, Split};

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
}

impl Set {
    /// Reads it.
    pub fn open(&self) -> Result<Split, DataError> {
        let options = Options { left_out: self.leave_out.as_deref(), ..Options::default() };
        self.data
            .as_ref()
            .map_or_else(|| Ok(data::bundled()), |path| data::open_with(path, options))
    }

    /// How messages name it.
    pub fn name(&self) -> String {
        self.data
            .as_ref()
            .map_or_else(|| "the bundled images".to_owned(), |d| d.display().to_string())
    }
}
