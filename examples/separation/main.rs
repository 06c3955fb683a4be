//! Measures how well features separate classes: the Separation Index and its family.
//!
//! ```text
//! separation FILE [--labels FILE] [--label-column NAME|N] [--test FILE] [--regression] [--json]
//! ```

#[path = "../common/bar.rs"]
mod bar;
#[path = "../common/device.rs"]
mod device;
mod family;
#[path = "../common/program.rs"]
mod program;
mod read;
mod report;
mod search;
#[path = "../common/warn.rs"]
mod warn;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use program::Failure;
use read::Set;
use search::Search;
use warn::warn;

/// Measures how well features separate classes: the Separation Index and its family. Features
/// come from a CSV table, an NPY array, or the images of a data set's folder.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// CSV, NPY, or the folder of a data set (IDX, CIFAR binary, class folders of images)
    #[arg(value_name = "FILE")]
    features: PathBuf,

    /// The labels of NPY features, an NPY array; with --regression the numbers to predict
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,

    /// The column of a CSV table that has the label, by name or counted from 0 [default: the last]
    #[arg(long, value_name = "NAME|N")]
    label_column: Option<String>,

    /// Samples of the same kind, judged by their neighbours in FILE; a folder brings its own
    #[arg(long, value_name = "FILE", conflicts_with = "regression")]
    test: Option<PathBuf>,

    /// The labels of NPY features of --test
    #[arg(long, value_name = "FILE", requires = "test")]
    test_labels: Option<PathBuf>,

    /// Neighbours that the high-order, soft and anti forms look at
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    k: u16,

    /// The label is a number to predict: measure smoothness instead of separation
    #[arg(long)]
    regression: bool,

    /// How fast exponential smoothness falls
    #[arg(long, value_name = "G", default_value_t = 1.0, value_parser = positive)]
    gamma: f32,

    /// Measure at most so many samples, drawn by --seed: the time grows with their square
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,

    /// Random triplets
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    triplets: u32,

    /// Draws samples and triplets
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    /// Print one JSON object instead of text; --help lists its fields
    ///
    /// file; samples, features: how many; unpaired: samples that have no other of their class, or
    /// none of another class; measures: list of name, value (null where nothing is defined),
    /// anchors (samples or triplets judged), skipped (those that could not be), meaning; classes:
    /// list of name, samples, si (null without samples), skipped. With --regression, unpaired is
    /// null and classes is empty.
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(&args, out))
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let (set, test) = read::read(args)?;
    let file = args.features.display();
    let set = Set::drawn(&set, args, &args.features)?;
    let search = Search { device: device::device(args.threads)? };
    let report = if args.regression {
        family::regression(args, &set, &search)?
    } else {
        for (name, count) in set.names.iter().zip(set.counts()) {
            if count == 1 {
                warn(&format!(
                    "{file}: class `{name}` has one sample, no other can be its neighbour"
                ));
            }
        }
        let test = match &test {
            Some((path, test)) => Some(Set::drawn(test, args, path)?),
            None => None,
        };
        family::classes(args, &set, test.as_ref(), &search)?
    };
    if args.json { report.print_json(args, out) } else { report.print_text(args, out) }
}
