//! Fine-tunes a trained model for a new user as a device does it: the same code, the same memory.
//!
//! ```text
//! finetune MODEL [--data DIR] [--shift invert|rotate] [--shown N] [--seeds N] [--json]
//! ```

#[path = "../common/positive.rs"]
mod positive;
#[path = "../common/program.rs"]
mod program;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use sepal::arena::Word;
use sepal::error::Error;
use sepal::infer::Inference;
use sepal::layer::{Flatten, L2Normalise, Layer};
use sepal::micro::{Embeddings, Micro, Tuning, TuningPlan};
use sepal::models::data::{self, Dataset, Samples};
use sepal::models::file::Loaded;
use sepal::net::{Model, Net, Patch, Weights};
use sepal::optim::Rule;
use sepal::reservoir::{Class, Entry, Memory, Reservoir, State};
use sepal::rng::{Purpose, Rng};
use sepal::schedule::Schedule;
use sepal::shape::Shape;
use sepal::si::Paired;
use sepal::source::Source;
use sepal::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use serde_json::json;

use positive::positive;
use program::Failure;

/// Fine-tunes a model for a new user whose images are not those that it was trained on: a block by
/// separation, then the last layer by cross-entropy, beside the last layer alone. A fifth of what the
/// user shows is held out, and judges the tuned block.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The model file; the layers that are tuned compute in f32
    model: PathBuf,

    /// Folder of the data set, of which the user shows some of the last 10,000 training images
    /// [default: the bundled images of Fashion-MNIST]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// What is different with this user
    #[arg(long, value_enum, default_value_t = Shift::Invert)]
    shift: Shift,

    /// Images of each class that the user shows
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    shown: u32,

    /// The user's images to judge by, drawn from the test set
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    tested: u32,

    /// The block that is tuned, counted from 0 [default: the last that gives features]
    #[arg(long, value_name = "BLOCK")]
    block: Option<u16>,

    /// Updates of the block
    #[arg(long, value_name = "N", default_value_t = 100)]
    updates: u32,

    /// Updates of the last layer
    #[arg(long, value_name = "N", default_value_t = 300)]
    head_updates: u32,

    /// Rate of the block
    #[arg(long, default_value_t = 0.01, value_parser = positive)]
    rate: f32,

    /// Rate of the last layer
    #[arg(long, default_value_t = 0.03, value_parser = positive)]
    head_rate: f32,

    /// Users, each with images of its own
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seeds: u32,

    /// Print one JSON object for each user: seed, before, head, tuned (percent right), kept (whether
    /// held-out samples accept the block), held_out (how many there are), gained, lost (of them), ram
    /// (bytes of the larger of the two tunings)
    #[arg(long)]
    json: bool,
}

/// How a user's images differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shift {
    /// Not at all
    None,
    /// Dark is light
    Invert,
    /// By a quarter turn
    Rotate,
}

impl Shift {
    fn of(self, shape: Shape, image: &[u8]) -> Vec<u8> {
        let (height, width) = (shape.h as usize, shape.w as usize);
        match self {
            Self::None => image.to_vec(),
            Self::Invert => image.iter().map(|pixel| 255 - pixel).collect(),
            Self::Rotate => {
                let mut turned = Vec::with_capacity(image.len());
                for plane in image.chunks_exact(height * width) {
                    for (row, column) in (0..height * width).map(|at| (at / width, at % width)) {
                        turned.push(plane[(height - 1 - column) * width + row]);
                    }
                }
                turned
            }
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(&args, out))
}

/// What came of one user, in percent.
struct Outcome {
    before: f64,
    head: f64,
    tuned: f64,
    paired: Paired,
    ram: usize,
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let loaded = Loaded::open(&args.model)?;
    let model = loaded.model();
    let split = match &args.data {
        Some(folder) => data::open(folder)?,
        None => data::bundled(),
    };
    let shape = model.net.input.shape;
    for set in [&split.train, &split.test] {
        if set.shape() != shape {
            return Err(format!("the model takes samples of {shape}, got {}", set.shape()).into());
        }
    }
    if args.shift == Shift::Rotate && shape.h != shape.w {
        return Err(format!(
            "a quarter turn of images of {shape}, expected as many rows as columns"
        )
        .into());
    }
    let outcomes = (0..args.seeds)
        .map(|seed| {
            let outcome = user(args, &model, &split.train, &split.test, seed)?;
            if args.json {
                let Outcome { before, head, tuned, paired, ram } = &outcome;
                let line = json!({
                    "seed": seed, "before": before, "head": head, "tuned": tuned,
                    "kept": paired.accepts(1.0), "held_out": paired.samples(),
                    "gained": paired.gained(), "lost": paired.lost(), "ram": ram,
                });
                writeln!(out, "{line}")?;
            }
            Ok(outcome)
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    if args.json {
        return Ok(());
    }
    writeln!(out, "percent of {} images right, mean of {} users (range)", args.tested, args.seeds)?;
    let row = |out: &mut dyn Write, name: &str, value: fn(&Outcome) -> f64| {
        let values = || outcomes.iter().map(value);
        let mean = values().sum::<f64>() / outcomes.len() as f64;
        let (low, high) = (values().fold(100.0, f64::min), values().fold(0.0, f64::max));
        writeln!(out, "{name:34}{mean:5.1} ({low:.1} to {high:.1})")
    };
    row(out, "before", |o| o.before)?;
    row(out, "last layer alone", |o| o.head)?;
    row(out, "block by separation, last layer", |o| o.tuned)?;
    let kept = outcomes.iter().filter(|o| o.paired.accepts(1.0)).count();
    writeln!(out, "held-out samples accept the block of {kept} of {} users", args.seeds)?;
    let ram = outcomes.first().map_or(0, |o| o.ram);
    writeln!(out, "{ram} bytes of memory, without the samples that are kept")?;
    Ok(())
}

/// A user shows images, and the model learns.
fn user(
    args: &Args,
    model: &Model<'_>,
    train: &Dataset,
    test: &Dataset,
    seed: u32,
) -> Result<Outcome, Failure> {
    let net = model.net;
    let shape = net.input.shape;
    let classes = train.names().len();
    let size = shape.sample().unwrap_or(0) as usize;

    // The memory of the device.
    let places = args.shown as usize * classes;
    let (mut state, mut kinds) = (State::NONE, vec![Class::NONE; classes]);
    let (mut entries, mut samples) = (vec![Entry::FREE; places], vec![0; places * size]);
    let memory = Memory {
        state: &mut state,
        classes: &mut kinds,
        entries: &mut entries,
        samples: &mut samples,
    };
    let mut reservoir = Reservoir::new(shape, memory, u64::from(seed))?;
    for (image, label) in drawn(train, args.shown, seed)? {
        reservoir.offer(&args.shift.of(shape, image), label)?;
    }
    let tested = picked(test, args.tested, seed)?;
    let judged = |model: &Model<'_>| -> Result<f64, Failure> {
        let plan = Inference::micro(net, 1, model.weights.is_narrow())?;
        let mut words = vec![Word::ZERO; Word::count(plan.bytes())];
        let (mut backend, mut right) = (Micro::<true>::new(&mut words), 0);
        let mut logits = vec![0.0; plan.output()];
        for (image, label) in &tested {
            let image = args.shift.of(shape, image);
            plan.run(
                &mut backend,
                model,
                1,
                |x: &mut [u8]| x.copy_from_slice(&image),
                &mut logits,
            )?;
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            right += u32::from(best == Some(usize::from(*label)));
        }
        Ok(100.0 * f64::from(right) / tested.len() as f64)
    };

    let unit = [Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];
    let block = args.block.unwrap_or(net.features.saturating_sub(1));
    let apart = Objective::Separation(Loss::Margin { margin: 0.2 });
    let apart = stage(&net, block, &unit, apart, args.rate)?;
    let last = (net.blocks.len() as u16).saturating_sub(1);
    let labels = Objective::CrossEntropy { smoothing: 0.0 };
    let labels = stage(&net, last, &[], labels, args.head_rate)?;

    let (mut training, mut held_out) = (reservoir.training(), reservoir.held_out());
    let mut learn = |model: &Model<'_>| -> Result<(Vec<f32>, usize), Failure> {
        tune(model, labels, &mut training, seed, args.head_updates, |_, _, _| Ok(()))
    };
    let (numbers, _) = learn(model)?;
    let head = judged(&patched(model, &[patch(&labels, &numbers)]))?;

    let mut before = vec![];
    let mut paired = Paired::default();
    let mut training = reservoir.training();
    let (tuned, ram) =
        tune(model, apart, &mut training, seed, args.updates, |tuning, backend, done| {
            let mut bank = reservoir.training();
            let dim = net.shape(apart.last.into())?.sample().unwrap_or(0) as usize;
            let (mut rows, mut own) = (vec![0.0; places * dim], vec![0; places]);
            let tell = |at: u32, right| match done {
                false => before.push(right),
                true => paired.observe(before.get(at as usize) == Some(&true), right),
            };
            tuning.judge(backend, model, &mut bank, &mut held_out, &mut rows, &mut own, tell)
        })?;
    let block = patch(&apart, &tuned);
    let mut training = reservoir.training();
    let over = [block];
    let over = patched(model, &over);
    let (numbers, other) =
        tune(&over, labels, &mut training, seed, args.head_updates, |_, _, _| Ok(()))?;
    let tuned = judged(&patched(model, &[block, patch(&labels, &numbers)]))?;
    Ok(Outcome { before: judged(model)?, head, tuned, paired, ram: ram.max(other) })
}

fn patched<'a>(model: &'a Model<'a>, patches: &'a [Patch<'a>]) -> Model<'a> {
    Model { net: model.net, weights: Weights::Patched { under: &model.weights, patches } }
}

fn patch<'a>(stage: &Stage<'_>, numbers: &'a [f32]) -> Patch<'a> {
    Patch { first: stage.first, last: stage.last, numbers }
}

fn stage<'a>(
    net: &Net<'_>,
    block: u16,
    head: &'a [Layer],
    objective: Objective,
    rate: f32,
) -> Result<Stage<'a>, Failure> {
    let blocks = net.blocks.len();
    let (first, last) = net
        .block(block.into())
        .ok_or_else(|| format!("block {block} of a net of {blocks}, counted from 0"))?;
    let (rule, schedule) = (Rule::adam(), Schedule::Cosine { warmup: 0 });
    let (epochs, batch, stop) = (1, 16, Stop::Never);
    let recipe = Recipe { head, objective, epochs, batch, rule, rate, schedule, stop };
    let (first, last) = (first as u16, last as u16);
    Ok(Stage { first, last, calibrate: false, cut: Cut::Whole, recipe })
}

/// Tunes a block; `judge` is called before the first update and after the last. Gives its parameters
/// and the bytes of the arena.
fn tune<'m>(
    model: &Model<'m>,
    stage: Stage<'m>,
    training: &mut impl Source,
    seed: u32,
    updates: u32,
    mut judge: impl FnMut(&Tuning<'_>, &mut Micro<'_>, bool) -> Result<(), Error>,
) -> Result<(Vec<f32>, usize), Failure> {
    let net = model.net;
    let narrow = model.weights.is_narrow();
    let plan = TuningPlan::new(net, &stage, Embeddings::F32, narrow).map_err(|error| {
        format!(
            "{error}: what is tuned is one convolution or dense layer that computes in f32, with what \
             runs together with it"
        )
    })?;
    let mut words = vec![Word::ZERO; Word::count(plan.bytes())];
    let mut backend = Micro::<true>::new(&mut words);
    let mut tuning = Tuning::new(net, stage, plan, seed.into());
    tuning.load(&mut backend, model)?;
    judge(&tuning, &mut backend, false)?;
    for _ in 0..updates {
        tuning.step(&mut backend, model, training, updates)?;
    }
    judge(&tuning, &mut backend, true)?;
    let first = net.params(stage.first.into())?;
    let mut numbers = vec![0.0; net.params(stage.last.into())? - first];
    tuning.store(&mut backend, &mut numbers)?;
    Ok((numbers, plan.bytes()))
}

/// Images of bytes with their labels.
fn images(set: &Dataset) -> Result<(&[u8], usize), Failure> {
    match set.samples() {
        Samples::U8(pixels) => Ok((pixels, set.shape().sample().unwrap_or(1) as usize)),
        _ => Err("samples of numbers, expected images of bytes".into()),
    }
}

/// `shown` of each class among the last training images, by chance.
fn drawn(set: &Dataset, shown: u32, seed: u32) -> Result<Vec<(&[u8], u16)>, Failure> {
    let (pixels, size) = images(set)?;
    let (labels, len) = (set.labels(), set.len());
    let mut rng = Rng::new(seed.into(), Purpose::Order, 0, 0);
    let mut chosen: Vec<(&[u8], u16)> = vec![];
    let mut order: Vec<u32> = (len - len.min(10_000)..len).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, rng.below(at as u32 + 1) as usize);
    }
    let mut counts = vec![0; set.names().len()];
    for at in order.into_iter().map(|at| at as usize) {
        let label = labels[at];
        if let Some(count) = counts.get_mut(usize::from(label)).filter(|count| **count < shown) {
            *count += 1;
            chosen.push((&pixels[at * size..][..size], label));
        }
    }
    Ok(chosen)
}

/// `count` images, by chance.
fn picked(set: &Dataset, count: u32, seed: u32) -> Result<Vec<(&[u8], u16)>, Failure> {
    let (pixels, size) = images(set)?;
    let mut rng = Rng::new(seed.into(), Purpose::Order, 1, 0);
    let some = (0..count).map(|_| rng.below(set.len()) as usize);
    Ok(some.map(|at| (&pixels[at * size..][..size], set.labels()[at])).collect())
}
