//! Trains a net forward, block by block, and says what each block learnt.
//!
//! Without arguments it trains LeNet on 2,000 bundled images of Fashion-MNIST.

mod args;
#[path = "../common/chart.rs"]
mod chart;
#[path = "../common/classes.rs"]
mod classes;
#[path = "../common/confusion.rs"]
mod confusion;
#[path = "../common/device.rs"]
mod device;
#[path = "../common/digest.rs"]
mod digest;
#[path = "../common/gpu.rs"]
mod gpu;
#[path = "../common/html.rs"]
mod html;
#[path = "../common/judge.rs"]
mod judge;
#[path = "../common/order.rs"]
mod order;
mod page;
#[path = "../common/positive.rs"]
mod positive;
#[path = "../common/program.rs"]
mod program;
mod progress;
mod report;
#[path = "../common/seconds.rs"]
mod seconds;
#[path = "../common/set.rs"]
mod set;
#[path = "../common/stop.rs"]
mod stop;
#[path = "../common/tensorboard.rs"]
mod tensorboard;
#[path = "../common/text.rs"]
mod text;
#[path = "../common/warn.rs"]
mod warn;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use sepal::backend::Device;
use sepal::format::{Meta, Provenance, identity};
use sepal::models::cache::Budget;
use sepal::models::data::{Augment, Dataset};
use sepal::models::file::{self, Loaded};
use sepal::models::fit::{Fit, FitError, Watch};
use sepal::models::goodness::Goodness;
use sepal::models::learning::{self, Chosen, Learning, Way};
use sepal::net::Net;
use sepal::stage::Stop;
use serde_json::json;

use args::Args;
use program::Failure;
use progress::{HeldOut, Progress};
use tensorboard::{Board, Shown};

fn main() -> ExitCode {
    let args = Args::parse();
    stop::status(program::run(|out| run(&args, out)))
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    gpu::on!(args.gpu.open(args.threads)?, device => run_on(&device, args, out))
}

fn run_on<D: Device>(device: &D, args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let learning = args.learning()?;
    if let Some(path) = &args.save {
        // Found out now rather than after the training.
        file::check_writable(path)?;
    }
    let report = match &args.report {
        Some(folder) => {
            std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            let path = folder.join("report.html");
            file::check_writable(&path)?;
            Some(path)
        }
        None => None,
    };
    let (train, test, held_out) = sets(args, &learning)?;
    check(args, &learning, &train)?;

    let classes = train.names().len() as u32;
    let architecture = learning.architecture;
    let layers = architecture.layers(classes, learning.width);
    let input = architecture.input(&train);
    let net = architecture.net(&layers, input);
    let (layers, blocks) = learning.layers(&net);
    let net = Net { layers: &layers, blocks: &blocks, ..net };
    net.check().map_err(|e| {
        let room = if input.shape.h > 1 { "; --border makes images larger" } else { "" };
        format!("{architecture:?} cannot take samples of {}: {e}{room}", input.shape)
    })?;

    let heads = learning.heads(&net, classes)?;
    let heads: Vec<&[sepal::layer::Layer]> = heads.iter().map(Vec::as_slice).collect();
    let chosen = learning.chosen(&heads, classes);
    let budget = args.budget();
    if args.copies.is_some() && !args.augments() {
        return Err("--copies: expected --flip, --shift or --cutout beside it".into());
    }
    if learning.way == Way::SelfSupervised && !args.augments() {
        let needed = "expected --flip, --shift or --cutout beside it";
        return Err(format!("--strategy self-supervised: {needed}").into());
    }
    if architecture.reads_text() && args.augments() {
        return Err("--flip, --shift and --cutout change images, not text".into());
    }
    let kept = learning::kept(net, &budget, train.len())?;
    let run_identity = (chosen, args.flip, args.shift, args.cutout, kept);
    let data = digest::digest(&train);
    let text = format!("{chosen:?}");
    let mut progress = Progress::new(net, args.json, out);
    progress.checkpoints = args.checkpoint().map(|path| progress::Checkpoints {
        path,
        every: args.every,
        identity: identity(&run_identity, data, args.seed),
        text: text.clone(),
    });
    progress.held_out = match held_out {
        Some(set) => Some(HeldOut { set, bank: train.head(BANK)?, device }),
        None => None,
    };
    stop::listen()?;
    if let Some(folder) = &args.report {
        let recipe = serde_json::to_string_pretty(&learning)? + "\n";
        text::write(&folder.join("recipe.json"), &recipe)?;
    }
    let mut board = args.tensorboard.as_deref().map(Board::create).transpose()?;

    let mut fit = match &progress.checkpoints {
        Some(checkpoints) if args.resume && checkpoints.path.exists() => {
            let snapshot = Loaded::open(&checkpoints.path)?.snapshot(net, checkpoints.identity)?;
            Fit::resume(net, args.seed, snapshot)?
        }
        // A finished model is not trained again and overwritten.
        Some(_) if args.resume && args.save.as_ref().is_some_and(|save| save.exists()) => {
            let path = args.save.clone().unwrap_or_default();
            return Err(file::FileError::NoRun { path }.into());
        }
        _ => Fit::new(net, args.seed)?,
    };
    let began = cpu_time::ProcessTime::now();
    let mut shown = Shown::new(net, board.as_mut(), &mut progress);
    let done = fit_on(&mut fit, args, device, &chosen, &train, &budget, &mut shown);
    let cpu = began.elapsed().as_secs_f64();
    shown.finish()?;
    let (costs, passes) = progress.finish()?;
    done?;

    let judge = judge::Judge {
        device,
        bank: train.head(args.si_samples.min(train.len()))?,
        train: &train,
        test: &test,
        classes,
        epochs: args.head_epochs,
        seed: args.seed,
    };
    let model = fit.model();
    let ends: Vec<usize> = match learning.way {
        Way::SiLayerwise => {
            net.blocks.iter().rev().skip(1).rev().map(|&end| usize::from(end)).collect()
        }
        _ => (0..usize::from(net.features)).filter_map(|b| Some(net.block(b)?.1)).collect(),
    };
    let rows = judge.rows(&model, &ends)?;
    if let Some(path) = &args.save {
        save(path, args, &fit, &train, data, &text, &rows)?;
    }
    report::print_rows(out, &rows, &costs, args.json)?;
    let name = if learning.way == Way::EndToEnd { "end to end" } else { "this net" };
    let reached = judge.accuracy(&model)?;
    if let Some(board) = &mut board {
        board.results(&rows, &reached)?;
    }
    let mut accuracy = vec![(name, reached)];
    if !args.no_control && learning.way != Way::Random {
        let mut control = Fit::new(net, args.seed)?;
        let random = Learning { way: Way::Random, ..learning };
        let quiet = &mut progress::Quiet;
        fit_on(&mut control, args, device, &random.chosen(&[], classes), &train, &budget, quiet)?;
        accuracy.push(("random frozen control", judge.accuracy(&control.model())?));
    }
    report::print_accuracy(out, &accuracy, args.json)?;
    if learning.way == Way::ForwardForward {
        let reading = Goodness::new(device, &model, &mut &test, classes)?;
        report::print_goodness(out, name, reading.accuracy(), args.json)?;
    }
    if let Some(path) = &report {
        let page = page::Page {
            args,
            cpu,
            rows: &rows,
            costs: &costs,
            passes: &passes,
            accuracy: &accuracy,
            judge: &judge,
            model: &model,
        };
        text::write(path, &page.text()?)?;
    }
    if args.json {
        writeln!(
            out,
            "{}",
            json!({"event": "done", "cpu_seconds": cpu,
            "seed": args.seed, "train": train.len(), "test": test.len()})
        )?;
    } else {
        writeln!(
            out,
            "\n{} training and {} test images, seed {}; training took {cpu:.1} CPU seconds",
            train.len(),
            test.len(),
            args.seed
        )?;
    }
    out.flush()?;
    // The run is over: its checkpoint has done its work.
    if let Some(path) = args.checkpoint().filter(|path| path.exists()) {
        std::fs::remove_file(&path).map_err(|e| format!("{}: removing: {e}", path.display()))?;
    }
    Ok(())
}

/// Training images among which held-out ones look for their nearest: as many as `steer` takes.
const BANK: u32 = 1_000;

/// The images to train on, to test on, and to hold out.
fn sets(args: &Args, learning: &Learning) -> Result<(Dataset, Dataset, Option<Dataset>), Failure> {
    let (train, chosen, test) = order::chosen(args.set.open()?, &args.choice)?;
    let (chosen, held_out) = match learning.stop {
        Stop::Never => (&chosen[..], None),
        _ => {
            let (fit, held) = chosen.split_at(chosen.len() - chosen.len() / 10);
            if held.is_empty() {
                let few = format!("{} training images", chosen.len());
                return Err(
                    format!("--patience: {few}, expected 10 or more to hold some out").into()
                );
            }
            (fit, Some(train.subset(held)?))
        }
    };
    Ok((train.subset(chosen)?, test, held_out))
}

/// Refuses images that the net cannot be trained on.
fn check(args: &Args, learning: &Learning, train: &Dataset) -> Result<(), Failure> {
    let name = args.set.name();
    classes::check(&name, train)?;
    if train.len() < learning.batch {
        let len = train.len();
        let least = format!("expected at least the {} of --batch", learning.batch);
        return Err(format!("{name}: {len} training images, {least}").into());
    }
    Ok(())
}

fn fit_on<D: Device>(
    fit: &mut Fit<'_>,
    args: &Args,
    device: &D,
    strategy: &Chosen<'_>,
    train: &Dataset,
    budget: &Budget,
    watch: &mut impl Watch,
) -> Result<(), FitError> {
    if args.augments() {
        let (shift, cutout) = (u32::from(args.shift), u32::from(args.cutout));
        let mut source = Augment { flip: args.flip, shift, cutout, ..Augment::new(train) };
        fit.run(device, strategy, &mut source, budget, watch)
    } else {
        fit.run(device, strategy, &mut &*train, budget, watch)
    }
}

fn save(
    path: &std::path::Path,
    args: &Args,
    fit: &Fit<'_>,
    train: &Dataset,
    data: u64,
    recipe: &str,
    rows: &[judge::Row],
) -> Result<(), Failure> {
    let classes: Vec<&str> = train.names().iter().map(String::as_str).collect();
    let separation: Vec<(u16, f32)> =
        (0..).zip(rows).filter_map(|(block, row)| Some((block, row.si? as f32))).collect();
    let provenance =
        Provenance { version: env!("CARGO_PKG_VERSION"), recipe, seed: args.seed, data };
    let meta = Meta {
        classes: &classes,
        provenance: Some(provenance),
        separation: &separation,
        ..Meta::NONE
    };
    Ok(file::save(path, &fit.model(), &meta)?)
}
