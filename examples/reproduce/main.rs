//! Runs cells of the paper's tables and writes its values beside those found.

mod args;
mod cells;
#[path = "../common/chart.rs"]
mod chart;
#[path = "../common/classes.rs"]
mod classes;
#[path = "../common/device.rs"]
mod device;
#[path = "../common/digest.rs"]
mod digest;
#[path = "../common/html.rs"]
mod html;
#[path = "../common/judge.rs"]
mod judge;
#[path = "../common/machine.rs"]
mod machine;
mod page;
mod plot;
#[path = "../common/positive.rs"]
mod positive;
#[path = "../common/program.rs"]
mod program;
mod results;
mod run;
#[path = "../common/seconds.rs"]
mod seconds;
mod settings;
#[path = "../common/stop.rs"]
mod stop;
#[path = "../common/tensorboard.rs"]
mod tensorboard;
#[path = "../common/text.rs"]
mod text;
#[path = "../common/warn.rs"]
mod warn;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use sepal::models::data::Split;
use sepal::models::fit::FitError;

use args::Args;
use cells::{Cell, Scale, Set};
use device::Device;
use program::Failure;
use results::Results;
use warn::warn;

fn main() -> ExitCode {
    let args = Args::parse();
    stop::status(program::run(|out| reproduce(&args, out)))
}

fn reproduce(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    for &table in &args.table {
        settings::print(out, table, args)?;
    }
    let cells = cells::chosen(args)?;
    if args.list {
        for cell in &cells {
            let paper = cell.paper.map_or("-".to_owned(), |value| format!("{value:.2}"));
            let time = cell.time.unwrap_or("-");
            let name = cell.to_string();
            writeln!(out, "table {}  {name:<40} paper {paper:>6}  time {time:>7}", cell.table)?;
        }
        return Ok(());
    }
    if cells.is_empty() {
        return Ok(());
    }
    if !args.data.is_dir() {
        return Err(format!("--data {}: no such folder", args.data.display()).into());
    }
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let mut results = Results::open(&args.out.join("results.jsonl"))?;
    stop::listen()?;
    let device = device::device(args.threads)?;
    let (mut runs, mut failed) = (0, 0);
    let mut open: Option<(Set, Split)> = None;
    for cell in &cells {
        let scale = Scale::new(args, cell.set.text);
        for &seed in &args.seeds {
            runs += 1;
            if results.has(cell, &scale, seed) {
                writeln!(out, "{cell}, seed {seed}: done before")?;
                continue;
            }
            writeln!(out, "{cell}, seed {seed}")?;
            out.flush()?;
            match attempt(args, &device, &mut open, (cell, &scale, seed), &mut results, out) {
                Ok(()) => {}
                Err(error) if stopped(&error) => return Err(error),
                Err(error) if error.is::<std::io::Error>() => return Err(error),
                Err(error) => {
                    failed += 1;
                    warn(&format!("{cell}, seed {seed}: {error}"));
                }
            }
        }
    }
    page::write(&args.out, &results.records)?;
    match failed {
        0 => Ok(()),
        failed => Err(format!("{failed} of {runs} runs failed").into()),
    }
}

fn stopped(error: &Failure) -> bool {
    matches!(error.downcast_ref(), Some(FitError::Stopped))
}

/// One run, its line, its page.
fn attempt(
    args: &Args,
    device: &Device,
    open: &mut Option<(Set, Split)>,
    run: (&Cell, &Scale, u64),
    results: &mut Results,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let set = run.0.set;
    if open.as_ref().is_none_or(|(other, _)| *other != set) {
        // Two sets at once may not fit the memory.
        *open = None;
    }
    let (_, split) = match open {
        Some(open) => open,
        None => open.insert((set, set.open(&args.data)?)),
    };
    let (record, checkpoint) = run::run(args, device, split, run, out)?;
    let (head, cpu) = (record.head * 100.0, record.cpu_seconds);
    results.append(record)?;
    // The run is on disk: its checkpoint has done its work.
    if checkpoint.exists() {
        let failed = |e| format!("{}: removing: {e}", checkpoint.display());
        std::fs::remove_file(&checkpoint).map_err(failed)?;
    }
    let paper = run.0.paper.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let measure = if run.0.table == 8 { "error rate" } else { "accuracy" };
    let ours = if run.0.table == 8 { 100.0 - head } else { head };
    writeln!(out, "  {measure} {ours:.2} %, paper {paper}; {cpu:.1} CPU s")?;
    out.flush()?;
    page::write(&args.out, &results.records)
}
