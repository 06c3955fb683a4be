//! Fetches an official data set into the cache and says where it lies.
//!
//! ```text
//! fetch SET [--cache DIR]
//! ```

#[path = "../common/program.rs"]
mod program;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use sepal::models::data::download::{self, Set};

use program::Failure;

/// Fetches an official data set, checks it, and prints its folder for --data of the other
/// programs. A broken fetch goes on where it was.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The data set
    #[arg(value_enum)]
    set: Name,

    /// Where sets are kept [default: $SEPAL_CACHE, or sepal in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    FashionMnist,
    Mnist,
    Cifar10,
    Cifar100,
    AgNews,
    Dbpedia,
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(args, out))
}

fn run(args: Args, out: &mut dyn Write) -> Result<(), Failure> {
    let set = match args.set {
        Name::FashionMnist => Set::fashion_mnist(),
        Name::Mnist => Set::mnist(),
        Name::Cifar10 => Set::cifar10(),
        Name::Cifar100 => Set::cifar100(),
        Name::AgNews => Set::ag_news(),
        Name::Dbpedia => Set::dbpedia(),
    };
    let cache = args.cache.map_or_else(download::cache, Ok)?;
    let style = ProgressStyle::with_template("{prefix} {bytes} of {total_bytes} (left {eta})");
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let folder = download::fetch(&set, &cache, &mut |progress| {
        bar.set_prefix(progress.name.to_owned());
        bar.set_length(progress.total.unwrap_or(progress.bytes));
        bar.set_position(progress.bytes);
    })?;
    bar.finish_and_clear();
    writeln!(out, "{}", folder.display())?;
    Ok(())
}
