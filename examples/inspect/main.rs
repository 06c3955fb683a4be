//! Shows what a model file holds, and what memory its net needs.
//!
//! ```text
//! inspect MODEL [--ram BYTES] [--flash BYTES] [--json]
//! ```

mod memory;
#[path = "../common/program.rs"]
mod program;
#[path = "../common/sample.rs"]
mod sample;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sepal::format::{self, File, Saved};
use sepal::models::file::Loaded;
use serde_json::{Value, json};

use memory::{BATCH, Need};
use program::Failure;
use table::Row;

/// Shows what a model file holds: layers, bytes, classes, where it comes from, how far its run
/// is; and the memory that its net needs to infer and to train, on the reference backend and on the
/// one for small cores.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The model file, or a checkpoint
    model: PathBuf,

    /// Mark with * what fits in so many bytes of RAM
    #[arg(long, value_name = "BYTES")]
    ram: Option<u64>,

    /// Say whether the file fits in so many bytes of flash, beside the program
    #[arg(long, value_name = "BYTES")]
    flash: Option<u64>,

    /// Print one JSON object instead of text; --help lists its fields
    ///
    /// file; bytes: its size; version: of the format; input: channels, rows, columns; parameters;
    /// layers: list of block, name, layer (its settings), input, output, parameters, dtype (of the
    /// first tensor, null without), bytes; classes: list of names; provenance: version, recipe, seed,
    /// data (null where unknown); separation: list of block, si; notes; checkpoint: version,
    /// run, identity, stage, epoch, step, updates, done (list of first, last, epochs, updates,
    /// loss, score), null for a finished model; ram: batch, memory (list of what, infer, sgd,
    /// momentum, adam: bytes, null where there is no plan); with --ram also budget, and fits in
    /// each of the list: the names of those that fit; small: the same list for tuning on small cores;
    /// with --flash also flash: budget, fits.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(&args, out))
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let loaded = Loaded::open(&args.model)?;
    let file = loaded.file()?;
    let model = loaded.model();
    let rows = table::rows(&model)?;
    let needs = memory::needs(&model);
    if args.json {
        let report = report(args, &loaded, &file, &rows, &needs);
        return Ok(writeln!(out, "{report}")?);
    }
    let total = model.net.params(model.net.layers.len())?;
    writeln!(
        out,
        "{}: {} bytes, format {}",
        args.model.display(),
        loaded.bytes().len(),
        version(&file)
    )?;
    writeln!(out, "input {}, {total} parameters", sample::sample(model.net.input.shape))?;
    about(&file, out)?;
    table::print(&rows, out)?;
    memory::print("the reference backend", &needs, args.ram, out)?;
    let on = "the backend for small cores";
    memory::print(on, &memory::small(&model), args.ram, out)?;
    if let Some(flash) = args.flash {
        let bytes = loaded.bytes().len() as u64;
        match flash.checked_sub(bytes) {
            Some(left) => writeln!(out, "\nflash: the file leaves {left} of {flash} bytes")?,
            None => writeln!(out, "\nflash: the file is {} bytes too large", bytes - flash)?,
        }
    }
    if let Some(saved) = file.checkpoint() {
        run_so_far(&saved, out)?;
    }
    Ok(())
}

fn version(file: &File<'_>) -> String {
    format!("{}.{}", format::MAJOR, file.minor())
}

/// Classes, provenance, SI and notes.
fn about(file: &File<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let classes: Vec<&str> = file.class_names().collect();
    match classes.len() {
        0 => writeln!(out, "no class names")?,
        count => writeln!(out, "{count} classes: {}", classes.join(", "))?,
    }
    match file.provenance() {
        Some(p) => {
            writeln!(
                out,
                "written by version {}, seed {}, data {:016x}",
                p.version, p.seed, p.data
            )?;
            writeln!(out, "recipe {}", p.recipe)?;
        }
        None => writeln!(out, "no provenance")?,
    }
    for (block, si) in file.separation() {
        match block {
            0 => writeln!(out, "SI of the raw input {:.1} %", si * 100.0)?,
            _ => writeln!(out, "SI after block {block} {:.1} %", si * 100.0)?,
        }
    }
    for note in file.notes() {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

/// How far a checkpoint's run is.
fn run_so_far(saved: &Saved<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let progress = saved.progress();
    writeln!(out, "\ncheckpoint of version {}, run {:016x}", saved.version(), saved.identity())?;
    writeln!(out, "run {}", saved.text())?;
    for (stage, done) in saved.outcomes().enumerate() {
        writeln!(
            out,
            "stage {stage}, layers {}..{}: done, {} passes, {} updates, loss {:.4}, score {:.1} %",
            done.first,
            done.last,
            done.epochs,
            done.updates,
            done.loss,
            done.score * 100.0
        )?;
    }
    let (stage, updates) = (progress.stage, progress.updates);
    if updates == 0 && progress.calibrated == 0 {
        writeln!(out, "stage {stage}: begins")?;
    } else {
        let (epoch, step) = (progress.epoch, progress.step);
        writeln!(
            out,
            "stage {stage}: {updates} updates, {epoch} passes and {step} updates of the next"
        )?;
    }
    Ok(())
}

fn report(args: &Args, loaded: &Loaded, file: &File<'_>, rows: &[Row], needs: &[Need]) -> Value {
    let net = loaded.model().net;
    let separation: Vec<_> =
        file.separation().map(|(block, si)| json!({"block": block, "si": si})).collect();
    let checkpoint = file.checkpoint().map(|saved| {
        let progress = saved.progress();
        let done: Vec<_> = saved
            .outcomes()
            .map(|done| {
                json!({"first": done.first, "last": done.last, "epochs": done.epochs,
                    "updates": done.updates, "loss": done.loss, "score": done.score})
            })
            .collect();
        json!({"version": saved.version(), "run": saved.text(),
            "identity": format!("{:016x}", saved.identity()), "stage": progress.stage,
            "epoch": progress.epoch, "step": progress.step, "updates": progress.updates,
            "done": done})
    });
    let provenance = file.provenance().map(|p| {
        json!({"version": p.version, "recipe": p.recipe, "seed": p.seed,
            "data": format!("{:016x}", p.data)})
    });
    let memory: Vec<_> = needs.iter().map(|need| need.json(args.ram)).collect();
    let small: Vec<_> =
        memory::small(&loaded.model()).iter().map(|need| need.json(args.ram)).collect();
    let mut ram = json!({"batch": BATCH, "memory": memory, "small": small});
    if let Some(budget) = args.ram {
        ram["budget"] = budget.into();
    }
    let flash = args
        .flash
        .map(|budget| json!({"budget": budget, "fits": loaded.bytes().len() as u64 <= budget}));
    json!({"file": args.model, "bytes": loaded.bytes().len(), "version": version(file),
        "input": [net.input.shape.c, net.input.shape.h, net.input.shape.w],
        "parameters": rows.iter().map(|row| row.parameters).sum::<usize>(),
        "layers": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "classes": file.class_names().collect::<Vec<_>>(), "provenance": provenance,
        "separation": separation, "notes": file.notes().collect::<Vec<_>>(),
        "checkpoint": checkpoint, "ram": ram, "flash": flash})
}
