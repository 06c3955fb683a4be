//! Measures a trained model on a data set.
//!
//! ```text
//! evaluate MODEL [--data DIR [--leave-out PERSON]] [--border PIXELS] [--train] [--threads N]
//!     [--cuda[=DEVICE]] [--json]
//! ```

#[path = "../common/bar.rs"]
mod bar;
#[path = "../common/confusion.rs"]
mod confusion;
#[path = "../common/device.rs"]
mod device;
#[path = "../common/gpu.rs"]
mod gpu;
#[path = "../common/names.rs"]
mod names;
#[path = "../common/program.rs"]
mod program;
#[path = "../common/sample.rs"]
mod sample;
#[path = "../common/set.rs"]
mod set;
#[path = "../common/warn.rs"]
mod warn;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sepal::backend::Device;
use sepal::models::data::Dataset;
use sepal::models::features::Features;
use sepal::models::file::Loaded;
use sepal::net::Model;
use serde_json::json;

use confusion::Confusion;
use program::Failure;
use sample::sample;
use set::Set;
use warn::warn;

/// Measures a trained model on a data set: accuracy, balanced accuracy, recall and precision of
/// each class, and the confusion matrix. Without --data: on 1,000 bundled images of Fashion-MNIST.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The model file
    model: PathBuf,

    #[command(flatten)]
    set: Set,

    /// Measure on the training set instead of on the test set
    #[arg(long)]
    train: bool,

    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    #[command(flatten)]
    gpu: gpu::Gpu,

    /// Print one JSON object instead of text; --help lists its fields
    ///
    /// model, data: the file and the folder (null for the bundled set); set: "test" or "train";
    /// samples; accuracy; balanced_accuracy: mean recall of the classes that have samples;
    /// classes: list of name, samples, recall, precision (null without samples or predictions);
    /// confusion: a list for each true class of how often each class was predicted.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(&args, out))
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let loaded = Loaded::open(&args.model)?;
    let names = names::names(&loaded)?;
    let split = args.set.open()?;
    let set = if args.train { split.train } else { split.test };
    let model = loaded.model();
    check_fit(args, &model, &names, &set)?;

    let opened = args.gpu.open(args.threads)?;
    let (predicted, odd) = gpu::on!(opened, device => predict(&device, &model, &set)?);
    if odd > 0 {
        let file = args.model.display();
        warn(&format!("{file}: outputs of {odd} samples are not finite numbers"));
    }
    let confusion = Confusion::new(names.len(), set.labels(), &predicted);
    if args.json {
        print_json(args, &names, &confusion, out)
    } else {
        print_text(args, &names, &confusion, out)
    }
}

/// Whether the model can judge the set.
fn check_fit(
    args: &Args,
    model: &Model<'_>,
    names: &[String],
    set: &Dataset,
) -> Result<(), Failure> {
    let (file, data) = (args.model.display(), args.set.name());
    let (found, expected) = (set.shape(), model.net.input.shape);
    if found != expected {
        let (found, expected) = (sample(found), sample(expected));
        return Err(
            format!("{data}: samples of {found}, expected {expected} as {file} takes").into()
        );
    }
    if set.names().len() != names.len() {
        let (found, expected) = (set.names().len(), names.len());
        return Err(format!("{data}: {found} classes, expected {expected} as {file} has").into());
    }
    let differing = names.iter().zip(set.names()).enumerate().find(|(_, (ours, its))| ours != its);
    if let Some((class, (ours, its))) = differing {
        warn(&format!("{data}: class {class} is called `{its}`, in {file} `{ours}`"));
    }
    Ok(())
}

/// Samples between two updates of the bar.
const PART: u32 = 500;

/// The class predicted for each sample, and how many had outputs that are not finite.
fn predict<D: Device>(
    device: &D,
    model: &Model<'_>,
    set: &Dataset,
) -> Result<(Vec<u16>, usize), Failure> {
    let (mut predicted, mut odd) = (Vec::new(), 0);
    let bar = bar::bar("samples", set.len().into());
    for first in (0..set.len()).step_by(PART as usize) {
        let part: Vec<u32> = (first..set.len().min(first.saturating_add(PART))).collect();
        let mut part = set.subset(&part)?;
        let logits = Features::new(device, model, &mut part, model.net.layers.len())?;
        predicted.extend(logits.largest());
        let rows = logits.data().chunks_exact(logits.dim().max(1));
        odd += rows.filter(|row| !row.iter().all(|x| x.is_finite())).count();
        bar.inc(part.len().into());
    }
    bar.finish_and_clear();
    Ok((predicted, odd))
}

fn set_name(args: &Args) -> &'static str {
    if args.train { "train" } else { "test" }
}

fn print_json(
    args: &Args,
    names: &[String],
    confusion: &Confusion,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let classes: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(class, name)| {
            json!({"name": name, "samples": confusion.samples(class),
                "recall": confusion.recall(class), "precision": confusion.precision(class)})
        })
        .collect();
    let rows: Vec<_> = confusion.rows().collect();
    let report = json!({"model": args.model, "data": args.set.data, "set": set_name(args),
        "samples": confusion.total(), "accuracy": confusion.accuracy(),
        "balanced_accuracy": confusion.balanced_accuracy(), "classes": classes,
        "confusion": rows});
    Ok(writeln!(out, "{report}")?)
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}", share * 100.0))
}

fn print_text(
    args: &Args,
    names: &[String],
    confusion: &Confusion,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (set, data) = (set_name(args), args.set.name());
    writeln!(out, "{}, {set} set of {data}: {} samples", args.model.display(), confusion.total())?;
    writeln!(out, "accuracy {} %", percent(confusion.accuracy()))?;
    writeln!(out, "balanced accuracy {} %", percent(confusion.balanced_accuracy()))?;

    let wide = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
    writeln!(
        out,
        "\n{:>5} {:wide$} {:>9} {:>9} {:>11}",
        "", "class", "samples", "recall %", "precision %"
    )?;
    for (class, name) in names.iter().enumerate() {
        let (samples, recall) = (confusion.samples(class), percent(confusion.recall(class)));
        let precision = percent(confusion.precision(class));
        writeln!(out, "{class:>5} {name:wide$} {samples:>9} {recall:>9} {precision:>11}")?;
    }

    writeln!(out, "\nconfusion: rows are true classes, columns predicted ones")?;
    let cell = confusion.total().to_string().len().max(4);
    write!(out, "{:5}", "")?;
    for class in 0..names.len() {
        write!(out, " {class:>cell$}")?;
    }
    writeln!(out)?;
    for (class, row) in confusion.rows().enumerate() {
        write!(out, "{class:>5}")?;
        for count in row {
            write!(out, " {count:>cell$}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
