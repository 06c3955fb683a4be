//! One run of a cell: trained, measured, resumable.

use std::io::Write;
use std::time::Instant;

use cpu_time::ProcessTime;
use sepal::format::identity;
use sepal::layer::Layer;
use sepal::models::cache::Budget;
use sepal::models::data::{DataError, Dataset, Split};
use sepal::models::file::Loaded;
use sepal::models::fit::Fit;
use sepal::models::learning::kept;
use sepal::rng::Permutation;

use crate::args::Args;
use crate::cells::{Cell, Scale, name};
use crate::classes;
use crate::device::Device;
use crate::digest::digest;
use crate::judge::{Judge, Row};
use crate::machine::machine;
use crate::program::Failure;
use crate::results::{Record, Separation, Stage, kinds};
use crate::tensorboard::{Board, Shown};
use crate::watch::Ledger;

/// Samples of the training set that SI and the nearest neighbour look among.
const BANK: u32 = 5_000;

/// At most `most` samples, by a shuffle that is the same for every run; all of them are shuffled
/// too, as sets may lie there class by class.
fn drawn(set: &Dataset, most: Option<u32>, border: u32) -> Result<Dataset, DataError> {
    let order = Permutation::new(0, 0, set.len());
    let most = most.unwrap_or(u32::MAX).min(set.len());
    let drawn = set.subset(&(0..most).map(|place| order.get(place)).collect::<Vec<_>>())?;
    if border == 0 { Ok(drawn) } else { drawn.padded(border) }
}

/// Trains and measures a cell with one seed. It goes on from the checkpoint where there is one,
/// which is left for the caller to remove.
pub fn run(
    args: &Args,
    device: &Device,
    split: &Split,
    (cell, scale, seed): (&Cell, &Scale, u64),
    out: &mut dyn Write,
) -> Result<(Record, std::path::PathBuf), Failure> {
    let border = cell.border(split.train.shape().h);
    let train = drawn(&split.train, scale.images, border)?;
    let test = drawn(&split.test, scale.test_images, border)?;
    classes::check(&cell.set.path(&args.data).display().to_string(), &train)?;
    if train.len() < scale.batch {
        let (len, batch) = (train.len(), scale.batch);
        return Err(format!("{len} training samples, expected a batch of {batch} or more").into());
    }
    let classes = train.names().len() as u32;
    let layers = cell.model.layers(classes, scale.width);
    let input = cell.model.input(&train);
    let net = cell.model.net(&layers, input);
    net.check()?;
    let learning = cell.learning(scale);
    let heads = learning.heads(&net, classes)?;
    let heads: Vec<&[Layer]> = heads.iter().map(Vec::as_slice).collect();
    let strategy = learning.chosen(&heads, classes);
    let budget = Budget::bytes(scale.memory);
    let what = (strategy, scale, kept(net, &budget, train.len())?);
    let identity = identity(&what, digest(&train), seed);
    let model = name(cell.model);
    let file = format!("{}-{model}-{}-{seed}-{identity:016x}", cell.set.name, cell.strategy.name);
    let path = args.out.join(format!("{file}.checkpoint"));

    let mut stages: Vec<Stage> = Vec::new();
    let mut fit = if path.exists() {
        let loaded = Loaded::open(&path)?;
        let snapshot = loaded.snapshot(net, identity)?;
        if let Some(saved) = loaded.file()?.checkpoint() {
            stages = serde_json::from_str(saved.text())?;
        }
        let done = snapshot.outcomes.len();
        writeln!(out, "  goes on from {}, {done} stages done", path.display())?;
        Fit::resume(net, seed, snapshot)?
    } else {
        Fit::new(net, seed)?
    };
    let mut ledger = Ledger {
        net,
        path: path.clone(),
        identity,
        every: args.every,
        over: fit.outcomes().len(),
        stages,
        out,
        saved: Instant::now(),
        clock: ProcessTime::now(),
        machine: machine(),
        broken: None,
    };
    let mut board = match &args.tensorboard {
        Some(folder) => Some(Board::create(&folder.join(&file))?),
        None => None,
    };
    let mut shown = Shown::new(net, board.as_mut(), &mut ledger);
    let done = fit.run(device, &strategy, &mut &train, &budget, &mut shown);
    shown.finish()?;
    let stages = ledger.stages;
    if let Some(error) = ledger.broken {
        return Err(error.into());
    }
    done?;

    let bank = train.head(BANK)?;
    let epochs = scale.head_epochs;
    let judge = Judge { device, bank, train: &train, test: &test, classes, epochs, seed };
    let model = fit.model();
    let ends: Vec<usize> =
        (0..usize::from(net.features)).filter_map(|block| Some(net.block(block)?.1)).collect();
    let rows = judge.rows(&model, &ends)?;
    let accuracy = judge.accuracy(&model)?;
    if let Some(board) = &mut board {
        board.results(&rows, &accuracy)?;
    }
    let parameters = net.params(net.layers.len())?;
    let largest = stages.iter().map(|s| s.arena_bytes as u64 + s.cached_bytes).max();
    let record = Record {
        table: cell.table,
        data: cell.set.name.to_owned(),
        model: name(cell.model),
        strategy: cell.strategy.name.to_owned(),
        seed,
        scale: scale.clone(),
        images: train.len(),
        test_images: test.len(),
        head: accuracy.head,
        linear: accuracy.linear,
        nearest: accuracy.nearest,
        si: rows
            .into_iter()
            .map(|Row { end, name, shape, parameters, si, cross_si }| Separation {
                block: name,
                end,
                shape,
                parameters,
                si_train: si,
                cross_si,
            })
            .collect(),
        cpu_seconds: stages.iter().map(|stage| stage.cpu_seconds).sum(),
        machine: kinds(stages.iter().flat_map(|stage| &stage.machines), |name| &**name)
            .join(" and "),
        stages,
        parameters,
        peak_bytes: largest.unwrap_or(0) + 4 * parameters as u64,
        command: command(),
    };
    Ok((record, path))
}

/// The command line of this program, to run it again.
fn command() -> String {
    let quoted = std::env::args().skip(1).map(|arg| match arg.contains([' ', '*', '\'', '"']) {
        true => format!("'{}'", arg.replace('\'', r"'\''")),
        false => arg,
    });
    let args: Vec<String> = quoted.collect();
    format!("cargo run --release --example reproduce -- {}", args.join(" "))
}
