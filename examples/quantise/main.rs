//! Makes a trained model ready for a device: norms folded, weights and activations in bytes.
//!
//! ```text
//! quantise MODEL OUT [--to int8|f16|f32] [--data DIR [--leave-out PERSON]] [--border PIXELS] [--floats BLOCK,BLOCK]
//!     [--json]
//! ```

#[path = "../common/device.rs"]
mod device;
#[path = "../common/program.rs"]
mod program;
#[path = "../common/sample.rs"]
mod sample;
#[path = "../common/set.rs"]
mod set;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use sepal::backend::Device;
use sepal::error::Error;
use sepal::format::{Meta, Storage};
use sepal::infer::Inference;
use sepal::layer::Layer;
use sepal::micro::{Micro, OnMicro};
use sepal::models::data::Dataset;
use sepal::models::export::{self, Export, Settings};
use sepal::models::features::Features;
use sepal::models::file::{self, Loaded};
use sepal::net::Model;
use sepal::plan::PlanError;
use sepal::reference::OnReference;
use sepal::source::Source;
use serde_json::{Value, json};

use program::Failure;
use sample::sample;
use set::Set;

/// Makes a trained model ready for a device, and says what that costs in accuracy: batch norm and
/// standardisation are folded into weights; with int8, weights and activations become bytes, in
/// steps that are measured on training samples. Without --data: on bundled images of Fashion-MNIST.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The model file
    model: PathBuf,

    /// The file to write
    out: PathBuf,

    /// How weights are stored; int8 computes in integers
    #[arg(long, value_enum, default_value_t = Form::Int8)]
    to: Form,

    #[command(flatten)]
    set: Set,

    /// Training samples to measure activations on, the first ones
    #[arg(long, value_name = "N", default_value_t = 1000)]
    samples: u32,

    /// Test samples to measure accuracy on, the first ones [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    test: Option<u32>,

    /// The share of activations that steps reach over, on each side: below 1 the others are cut off
    #[arg(long, value_name = "SHARE", default_value_t = Settings::default().quantile)]
    quantile: f64,

    /// Blocks that stay in f32, counted from 0, such as one that the device is to train
    #[arg(long, value_name = "BLOCK", value_delimiter = ',')]
    floats: Vec<u16>,

    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    /// Print one JSON object instead of text; --help lists its fields
    ///
    /// model, out: the files; to; layers: how many of the file written; samples: measured on;
    /// quantile; steps: list of layer, scale, zero, low and high (what was measured, null where raw
    /// bytes are read as they are), kept_low and kept_high (what the steps reach over); tested: test
    /// samples; forms: list of name, accuracy, same (the share of samples to which it gives the class
    /// that the trained net gives), bytes (of the file, null where there is none), ram (bytes to
    /// infer one sample on the backend for small cores).
    #[arg(long)]
    json: bool,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// One byte, a scale for each filter; activations in bytes
    Int8,
    /// Two bytes; they are widened before use
    F16,
    /// Four bytes
    F32,
}

impl Form {
    const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(&args, out))
}

/// One form of the net.
struct Row {
    name: &'static str,
    accuracy: f64,
    /// The share of samples to which it gives the class that the trained net gives.
    same: f64,
    bytes: Option<usize>,
    ram: usize,
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let loaded = Loaded::open(&args.model)?;
    file::check_writable(&args.out)?;
    let (train, test) = sets(args, &loaded)?;
    let device = device::device(args.threads)?;
    let model = loaded.model();

    let named = |error| format!("{}: {error}", args.model.display());
    let folded = export::fold(&model).map_err(named)?;
    let settings = Settings { floats: &args.floats, quantile: args.quantile };
    let export = match args.to {
        Form::Int8 => export::quantise(&device, &model, &mut &train, &settings).map_err(named)?,
        Form::F16 | Form::F32 => folded.clone(),
    };
    save(args, &loaded, &export)?;
    let written = Loaded::open(&args.out)?;

    let (folded, last) = (folded.model(), written.model());
    let on_device = |model: &Model<'_>| logits(&device, model, &test);
    let trained = on_device(&model)?;
    let row = |name, logits: &Features, bytes, model: &Model<'_>| -> Result<Row, Failure> {
        let (ours, its) = (trained.largest(), logits.largest());
        let same = ours.iter().zip(&its).filter(|(ours, its)| ours == its).count();
        let same = same as f64 / ours.len().max(1) as f64;
        let (accuracy, ram) = (logits.accuracy(), ram(model, test.is_u8())?);
        Ok(Row { name, accuracy, same, bytes, ram })
    };
    let mut rows = vec![
        row("as trained", &trained, Some(loaded.bytes().len()), &model)?,
        row("folded", &on_device(&folded)?, None, &folded)?,
    ];
    if args.to == Form::Int8 {
        let logits = logits(&OnReference, &last, &test)?;
        rows.push(row("int8, computed in f32", &logits, None, &last)?);
    }
    let logits = logits(&OnMicro, &last, &test)?;
    rows.push(row(args.to.name(), &logits, Some(written.bytes().len()), &last)?);

    if args.json {
        let report = report(args, &export, &rows, (train.len(), test.len()));
        return Ok(writeln!(out, "{report}")?);
    }
    print_steps(&export, out)?;
    writeln!(
        out,
        "{:22} {:>10} {:>12} {:>11} {:>10}",
        "", "accuracy %", "same class %", "file bytes", "RAM bytes"
    )?;
    for Row { name, accuracy, same, bytes, ram } in &rows {
        let (accuracy, same) = (accuracy * 100.0, same * 100.0);
        let bytes = bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        writeln!(out, "{name:22} {accuracy:>10.2} {same:>12.2} {bytes:>11} {ram:>10}")?;
    }
    writeln!(out, "\n{} test samples; RAM is what inference of one sample takes", test.len())?;
    Ok(writeln!(out, "wrote {}", args.out.display())?)
}

/// The net's output for each sample.
fn logits<D: Device>(device: &D, model: &Model<'_>, test: &Dataset) -> Result<Features, Error> {
    Features::new(device, model, &mut &*test, model.net.layers.len())
}

/// The samples to measure activations on, and those to measure accuracy on.
fn sets(args: &Args, loaded: &Loaded) -> Result<(Dataset, Dataset), Failure> {
    let split = args.set.open()?;
    let data = args.set.name();
    let (found, expected) = (split.test.shape(), loaded.model().net.input.shape);
    if found != expected {
        let (found, expected, file) = (sample(found), sample(expected), args.model.display());
        return Err(
            format!("{data}: samples of {found}, expected {expected} as {file} takes").into()
        );
    }
    let most = split.train.len();
    if args.samples == 0 || args.samples > most {
        return Err(format!("--samples {}: expected 1 to {most}", args.samples).into());
    }
    let test = split.test.head(args.test.unwrap_or(u32::MAX).min(split.test.len()))?;
    Ok((split.train.head(args.samples)?, test))
}

/// What inference of one sample takes on the backend for small cores.
fn ram(model: &Model<'_>, bytes: bool) -> Result<usize, PlanError> {
    let layers = (0, model.net.layers.len());
    Ok(Inference::new(&Micro::<true>::new(&mut []), model, layers, 1, bytes)?.bytes())
}

/// Writes the file, with what the trained one says beside its model.
fn save(args: &Args, loaded: &Loaded, export: &Export) -> Result<(), Failure> {
    let from = loaded.file()?;
    let classes: Vec<&str> = from.class_names().collect();
    let separation: Vec<(u16, f32)> = from.separation().collect();
    let note = match args.to {
        Form::Int8 => format!(
            "int8, measured on {} training samples, quantile {}",
            args.samples, args.quantile
        ),
        Form::F16 | Form::F32 => format!("{}, norms folded", args.to.name()),
    };
    let notes: Vec<&str> = from.notes().chain([&note[..]]).collect();
    let meta = Meta {
        classes: &classes,
        provenance: from.provenance(),
        separation: &separation,
        notes: &notes,
        storage: if args.to == Form::F16 { Storage::F16 } else { Storage::Kept },
    };
    Ok(file::save(&args.out, &export.model(), &meta)?)
}

/// Layers that round, their scale and zero, and what was measured there: all, and what is kept.
fn rounding(export: &Export) -> impl Iterator<Item = (usize, f32, u8, Option<export::Range>)> {
    export.layers().iter().enumerate().filter_map(|(at, layer)| {
        let Layer::Quantise(steps) = layer else { return None };
        let range = export.ranges().iter().find(|range| range.layer == at).copied();
        Some((at, steps.scale, steps.zero, range))
    })
}

fn print_steps(export: &Export, out: &mut dyn Write) -> Result<(), Failure> {
    for (layer, scale, zero, range) in rounding(export) {
        write!(out, "layer {layer:2} rounds to steps of {scale:.6}, {zero:3} is 0: ")?;
        match range {
            Some(range) => writeln!(
                out,
                "{:.4} to {:.4}, measured {:.4} to {:.4}",
                range.kept.0, range.kept.1, range.full.0, range.full.1
            )?,
            None => writeln!(out, "raw bytes")?,
        }
    }
    Ok(())
}

fn report(args: &Args, export: &Export, rows: &[Row], (samples, tested): (u32, u32)) -> Value {
    let steps: Vec<_> = rounding(export)
        .map(|(layer, scale, zero, range)| {
            json!({"layer": layer, "scale": scale, "zero": zero,
                "low": range.map(|r| r.full.0), "high": range.map(|r| r.full.1),
                "kept_low": range.map(|r| r.kept.0), "kept_high": range.map(|r| r.kept.1)})
        })
        .collect();
    let forms: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({"name": row.name, "accuracy": row.accuracy, "same": row.same,
                "bytes": row.bytes, "ram": row.ram})
        })
        .collect();
    json!({"model": args.model, "out": args.out, "to": args.to.name(),
        "layers": export.layers().len(), "samples": samples, "quantile": args.quantile,
        "steps": steps, "tested": tested, "forms": forms})
}
