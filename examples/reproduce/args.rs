//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;

use crate::positive::positive;
use crate::seconds::seconds;

/// Runs cells of the tables of Karimi, Kalhor and Sadeghi Tabrizi, "Forward layer-wise learning of
/// convolutional neural networks through separation index maximizing" (Sci. Rep. 2024), and writes
/// the paper's value beside the one found here. What learns by SI does so by the soft nearest
/// neighbour loss at T = 0.05; where the way is si-triplet by the paper's Eq. 7 (on features of length 1),
/// where it is centre or centre-groups by means of labels behind a convolution that is discarded. Hidden
/// dense layers learn by cross-entropy.
///
/// A cell is a data set, a net and a way to learn. Without further options it runs at a reduced
/// scale, on which no value is to be expected equal to the paper's: what can be compared is the
/// order of the ways to learn. A run that is stopped goes on where it was, a finished one is not
/// done again.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  reproduce --table 3 --list
  reproduce --data data --cell cifar-10/lenet/*
  reproduce --data data --table 3 --table 5 --seeds 0 --out out
  reproduce --data data --cell cifar-10/vgg16/si --paper"
)]
pub struct Args {
    /// A table of the paper: 3 and 5 are image nets, 4 is SimCNN, 8 is text. 1, 2, 6 and 7 print
    /// the paper's settings beside those of this run. Given more than once: all of these
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8), required_unless_present_any = ["cell", "list"])]
    pub table: Vec<u8>,

    /// Only cells of this name, as in cifar-10/lenet/si; any part may be *, and --list names all.
    /// Given more than once: all of these
    #[arg(long, value_name = "DATA/MODEL/STRATEGY")]
    pub cell: Vec<String>,

    /// Folder of the data sets, one folder each: fashion-mnist, cifar-10, cifar-100, wbc/chula (resized
    /// to 32x32), ag-news and dbpedia; and wbc/raabin, of which only cells run that --cell names
    #[arg(long, value_name = "ROOT", default_value = "data")]
    pub data: PathBuf,

    /// Only name the cells and the paper's values, those of wbc/raabin too
    #[arg(long)]
    pub list: bool,

    /// The paper's own numbers (its Tables 1 and 6): all images, whole nets, 10 passes a block and
    /// 200 end to end; for text 3 and 15, with SGD in batches of 2,048. Other options still count
    #[arg(long)]
    pub paper: bool,

    /// Train on at most N samples, drawn by a shuffle that is always the same [default: 5000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub images: Option<u32>,

    /// Test on at most N samples, drawn likewise [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub test_images: Option<u32>,

    /// Filters, hidden units and embedding dimensions, in percent of the net's [default: 25]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub width: Option<u32>,

    /// Passes over the data for each block [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub epochs: Option<u16>,

    /// Passes end to end, and backward through all but the first block [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub end_epochs: Option<u16>,

    /// Passes for a classifier on frozen features [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub head_epochs: Option<u16>,

    /// First rate of what learns end to end by Adam, and forward-backward [default: 0.01]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    pub adam_rate: Option<f32>,

    /// First rate of what learns end to end by SGD [default: 0.01]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    pub sgd_rate: Option<f32>,

    /// Weight decay of all that learns: AdamW's, by SGD an L2 penalty [default: none]
    #[arg(long, value_name = "DECAY", value_parser = positive)]
    pub weight_decay: Option<f32>,

    /// Steps of each stage in which the rate rises to its first, which a stage of fewer does not reach
    /// [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..))]
    pub warmup: Option<u32>,

    /// Seeds of weights and batches, each a run
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,1,2")]
    pub seeds: Vec<u64>,

    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,

    /// Memory for what frozen blocks give: as f32 where that fits, else as f16, else computed for
    /// every batch
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    pub memory: ByteSize,

    /// Folder of results.jsonl (a line for each finished run), results.md, the plots and the
    /// checkpoints
    #[arg(long, value_name = "DIR", default_value = "reproduced")]
    pub out: PathBuf,

    /// Write each run's event file into a folder of its own in this one, for TensorBoard: of each block
    /// loss, SI or accuracy within batches, and rate for each pass, then SI block by block and accuracy
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,

    /// Seconds between checkpoints; there is one after each stage too
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub every: Duration,
}
