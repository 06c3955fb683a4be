//! Fine-tunes a trained model for a new user as a device does it: the same code, the same memory.
//!
//! ```text
//! finetune MODEL [--data DIR [--leave-out PERSON]] [--border PIXELS] [--shift none|invert|rotate] [--shown N]
//!     [--seeds N] [--save FILE] [--cases DIR] [--json]
//! ```

#[path = "../common/digest.rs"]
mod digest;
#[path = "../common/positive.rs"]
mod positive;
#[path = "../common/program.rs"]
mod program;
#[path = "../common/set.rs"]
mod set;
#[path = "../common/user.rs"]
mod user;
#[path = "../common/warn.rs"]
mod warn;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use sepal::arena::Word;
use sepal::format::Meta;
use sepal::models::data::{Dataset, Samples, Split};
use sepal::models::file::{self, Loaded};
use sepal::net::{Model, Patch, Weights};
use sepal::reservoir::{Class, Entry, Memory, State};
use sepal::rng::{Purpose, Rng};
use sepal::shape::Shape;
use serde_json::json;

use positive::positive;
use program::Failure;
use set::Set;
use user::{Outcome, Plan, Room, Settings};

/// Fine-tunes a model for a new user whose samples are not those that it was trained on: a block by
/// separation, then the last layer by cross-entropy, beside the last layer alone. A fifth of what the
/// user shows is held out, and judges the tuned block. The user shows some of the last 10,000 training
/// samples, and is tested on the test set; with --leave-out it is that person, who is tested on what
/// they do not show.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The model file; the layers that are tuned compute in f32
    model: PathBuf,

    #[command(flatten)]
    set: Set,

    /// What is different with this user [default: invert, with --leave-out none]
    #[arg(long, value_enum)]
    shift: Option<Shift>,

    /// Samples of each class that the user shows
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    shown: u32,

    /// Samples to test on at most: the user's, or images drawn from the test set
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    tested: u32,

    /// The block that is tuned, counted from 0 [default: the last that gives features]
    #[arg(long, value_name = "BLOCK")]
    block: Option<u16>,

    /// Samples in an update
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..))]
    batch: u32,

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

    /// Users, or choices of what the person shows
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seeds: u32,

    /// Write the model as it is for the user then: with the tuned block and the last layer behind it where
    /// held-out samples accept the block, else with the last layer tuned alone. One model is of one user:
    /// expects --seeds 1
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Write each user into this folder, as SEED.user, for the firmware's image `finetune`
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,

    /// Print one JSON object for each user: seed, tested (how many samples), before, head, tuned (percent
    /// right), kept (whether held-out samples accept the block), held_out (how many there are), gained,
    /// lost (of them), ram (bytes of the larger of the two tunings), learnt (a digest of the numbers)
    #[arg(long)]
    json: bool,
}

/// How a user's samples differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shift {
    /// Not at all
    None,
    /// Dark is light; of recordings, all axes point the other way
    Invert,
    /// Images are turned by a quarter; of recordings, the sensor is, about its third axis
    Rotate,
}

impl Shift {
    /// What it makes of samples of this shape.
    ///
    /// # Errors
    /// A quarter turn of images that are not square.
    fn of(self, shape: Shape) -> Result<impl Fn(Vec<u8>) -> Vec<u8>, String> {
        let (height, width) = (shape.h as usize, shape.w as usize);
        let axes = (shape.c, height) == (3, 1);
        if self == Self::Rotate && !axes && height != width {
            let expected = "expected as many rows as columns, or three axes over time";
            return Err(format!("a quarter turn of images of {shape}, {expected}"));
        }
        Ok(move |mut sample: Vec<u8>| match self {
            Self::None => sample,
            Self::Invert => sample.iter().map(|pixel| 255 - pixel).collect(),
            Self::Rotate if axes => {
                // (x, y) becomes (-y, x); 128 is 0.
                let (x, y) = sample.split_at_mut(width);
                for (x, y) in x.iter_mut().zip(y) {
                    (*x, *y) = ((255 - *y).saturating_add(1), *x);
                }
                sample
            }
            Self::Rotate => {
                let mut turned = Vec::with_capacity(sample.len());
                for plane in sample.chunks_exact(height * width) {
                    for (row, column) in (0..height * width).map(|at| (at / width, at % width)) {
                        turned.push(plane[(height - 1 - column) * width + row]);
                    }
                }
                turned
            }
        })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(&args, out))
}

/// Samples with their labels.
type Labelled = Vec<(Vec<u8>, u16)>;

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    if let Some(path) = &args.save {
        if args.seeds > 1 {
            let seeds = args.seeds;
            return Err(
                format!("--seeds {seeds}: a model is of one user, expected 1 with --save").into()
            );
        }
        // Found out now rather than after the tuning.
        file::check_writable(path)?;
    }
    if let Some(folder) = &args.cases {
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let loaded = Loaded::open(&args.model)?;
    let model = loaded.model();
    let split = args.set.open()?;
    let shape = model.net.input.shape;
    for set in [&split.train, &split.test] {
        if set.shape() != shape {
            let (data, found, file) = (args.set.name(), set.shape(), args.model.display());
            let expected = format!("expected {shape} as {file} takes");
            return Err(format!("{data}: samples of {found}, {expected}").into());
        }
    }
    if let Some(person) = &args.set.leave_out
        && loaded.file()?.provenance().is_none_or(|p| p.data != digest::digest(&split.train))
    {
        let file = args.model.display();
        warn::warn(&format!("{file}: not trained on all but `{person}`: it may know them"));
    }
    let mut outcomes = vec![];
    for seed in 0..args.seeds {
        let (outcome, ram) = user(args, &loaded, &split, seed)?;
        let Outcome { tested, paired, .. } = outcome;
        let [before, head, tuned] = percent(&outcome);
        if args.json {
            let line = json!({
                "seed": seed, "tested": tested, "before": before, "head": head, "tuned": tuned,
                "kept": paired.accepts(1.0), "held_out": paired.samples(),
                "gained": paired.gained(), "lost": paired.lost(), "ram": ram,
                "learnt": format!("{:016x}", outcome.learnt),
            });
            writeln!(out, "{line}")?;
        }
        outcomes.push((outcome, ram));
    }
    if !args.json {
        print(&outcomes, out)?;
    }
    Ok(())
}

/// Percent right: before, last layer alone, behind the block.
fn percent(outcome: &Outcome) -> [f64; 3] {
    let of = |right: u32| 100.0 * f64::from(right) / f64::from(outcome.tested.max(1));
    [outcome.before, outcome.head, outcome.tuned].map(of)
}

fn print(outcomes: &[(Outcome, usize)], out: &mut dyn Write) -> Result<(), Failure> {
    let Some((first, ram)) = outcomes.first() else { return Ok(()) };
    let (count, users) = (first.tested, outcomes.len());
    writeln!(out, "percent of {count} samples right, mean and deviation of {users} users (range)")?;
    let row = |out: &mut dyn Write, name: &str, value: fn([f64; 3], bool) -> f64| {
        let values: Vec<f64> =
            outcomes.iter().map(|(o, _)| value(percent(o), o.paired.accepts(1.0))).collect();
        let mean = values.iter().sum::<f64>() / users as f64;
        let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        let deviation = (squares / (users.max(2) - 1) as f64).sqrt();
        let low = values.iter().copied().fold(100.0, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        writeln!(out, "{name:34}{mean:5.1} {deviation:4.1} ({low:.1} to {high:.1})")
    };
    row(out, "before", |[before, ..], _| before)?;
    row(out, "last layer alone", |[_, head, _], _| head)?;
    row(out, "block by separation, last layer", |[.., tuned], _| tuned)?;
    row(out, "the block where it is accepted", |[_, head, tuned], kept| match kept {
        true => tuned,
        false => head,
    })?;
    let kept = outcomes.iter().filter(|(o, _)| o.paired.accepts(1.0)).count();
    let held_out = first.paired.samples();
    writeln!(out, "{held_out} held-out samples accept the block of {kept} of {users} users")?;
    writeln!(out, "{ram} bytes of memory, without the samples that are kept")?;
    Ok(())
}

/// A user shows samples, and the model learns. Gives the bytes of the arena, too.
fn user(
    args: &Args,
    loaded: &Loaded,
    split: &Split,
    seed: u32,
) -> Result<(Outcome, usize), Failure> {
    let model = &loaded.model();
    let net = model.net;
    let shape = net.input.shape;
    let usual = if args.set.leave_out.is_some() { Shift::None } else { Shift::Invert };
    let shift = args.shift.unwrap_or(usual).of(shape)?;
    let shifted = |samples: Labelled| -> Labelled {
        samples.into_iter().map(|(sample, label)| (shift(sample), label)).collect()
    };
    let (shown, tested) = match args.set.leave_out {
        Some(_) => {
            let (shown, mut rest) = drawn(&split.test, split.test.len(), args.shown, seed)?;
            rest.truncate(args.tested as usize);
            (shown, rest)
        }
        None => {
            let (shown, _) = drawn(&split.train, 10_000, args.shown, seed)?;
            (shown, picked(&split.test, args.tested, seed)?)
        }
    };
    let (shown, tested) = (shifted(shown), shifted(tested));
    if tested.is_empty() {
        return Err(format!("all samples are shown, expected fewer than {}", args.shown).into());
    }
    let settings = Settings {
        block: args.block.unwrap_or(net.features.saturating_sub(1)),
        batch: args.batch,
        updates: [args.updates, args.head_updates],
        rates: [args.rate, args.head_rate],
        seed,
    };
    let places = [args.shown as usize, split.train.names().len()];
    let learnt = learn(model, &settings, places, &shown, &tested)?;
    if let Some(folder) = &args.cases {
        let path = folder.join(format!("{seed}.user"));
        let bytes = bytes(shape, &settings, &learnt.outcome, &shown, &tested);
        std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if let Some(path) = &args.save {
        if learnt.outcome.paired.accepts(1.0) {
            save(path, loaded, &settings, &[&learnt.block, &learnt.last])?;
        } else {
            // The block of no updates is the model's own: only the last layer learns.
            let alone = Settings { updates: [0, args.head_updates], ..settings };
            let learnt = learn(model, &alone, places, &shown, &tested)?;
            save(path, loaded, &settings, &[&learnt.last])?;
        }
    }
    Ok((learnt.outcome, learnt.bytes))
}

/// What came of a user.
struct Learnt {
    outcome: Outcome,
    /// What was learnt, with the layers that it is of.
    block: Tuned,
    last: Tuned,
    /// Of the arena.
    bytes: usize,
}

/// The parameters of a tuned block.
struct Tuned {
    block: u16,
    numbers: Vec<f32>,
}

/// Learns in the memory of a device, which keeps so many samples of each of so many classes.
fn learn(
    model: &Model<'_>,
    settings: &Settings,
    [each, classes]: [usize; 2],
    shown: &Labelled,
    tested: &Labelled,
) -> Result<Learnt, Failure> {
    let net = model.net;
    let plan = Plan::new(model, settings)?;
    let outputs = net.output()?.sample().unwrap_or(0) as usize;
    let size = net.input.shape.sample().unwrap_or(0) as usize;
    let places = each * classes;
    let (mut state, mut kinds) = (State::NONE, vec![Class::NONE; classes]);
    let (mut entries, mut samples) = (vec![Entry::FREE; places], vec![0; places * size]);
    let [mut block, mut last] = plan.parameters().map(|numbers| vec![0.0; numbers]);
    let room = Room {
        arena: &mut vec![Word::ZERO; Word::count(plan.bytes())],
        kept: Memory {
            state: &mut state,
            classes: &mut kinds,
            entries: &mut entries,
            samples: &mut samples,
        },
        rows: &mut vec![0.0; places * plan.features()],
        labels: &mut vec![0; places],
        before: &mut vec![false; places],
        block: &mut block,
        last: &mut last,
        logits: &mut vec![0.0; outputs],
    };
    let outcome = plan.learn::<true>(model, lent(shown), lent(tested), room)?;
    let behind = (net.blocks.len() as u16).saturating_sub(1);
    let (block, last) =
        (Tuned { block: settings.block, numbers: block }, Tuned { block: behind, numbers: last });
    Ok(Learnt { outcome, block, last, bytes: plan.bytes() })
}

/// Writes the model with what was learnt, and what its file says beside it.
fn save(
    path: &Path,
    loaded: &Loaded,
    settings: &Settings,
    tuned: &[&Tuned],
) -> Result<(), Failure> {
    let (from, model) = (loaded.file()?, loaded.model());
    let mut patches = Vec::new();
    for Tuned { block, numbers } in tuned {
        let (first, last) = model.net.block((*block).into()).unwrap_or_default();
        patches.push(Patch { first: first as u16, last: last as u16, numbers });
    }
    let weights = Weights::Patched { under: &model.weights, patches: &patches };
    let classes: Vec<&str> = from.class_names().collect();
    let separation: Vec<(u16, f32)> = from.separation().collect();
    let blocks: Vec<String> = tuned.iter().map(|tuned| tuned.block.to_string()).collect();
    let note =
        format!("tuned for a user, seed {}: block {}", settings.seed, blocks.join(", block "));
    let notes: Vec<&str> = from.notes().chain([&note[..]]).collect();
    let meta = Meta {
        classes: &classes,
        provenance: from.provenance(),
        separation: &separation,
        notes: &notes,
        ..Meta::NONE
    };
    Ok(file::save(path, &Model { weights, ..model }, &meta)?)
}

/// A user as bytes, as the firmware reads them (`examples/firmware/src/case.rs`).
fn bytes(
    shape: Shape,
    settings: &Settings,
    outcome: &Outcome,
    shown: &Labelled,
    tested: &Labelled,
) -> Vec<u8> {
    let Settings { block, batch, updates, rates, seed } = *settings;
    let ([updates, head_updates], [rate, head_rate]) = (updates, rates.map(f32::to_bits));
    let counts = [shape.sample().unwrap_or(0), shown.len() as u32, tested.len() as u32];
    let how = [block.into(), batch, updates, head_updates, rate, head_rate, seed];
    let words = [&[u32::from_le_bytes(*b"user")], &counts[..], &how, &outcome.words()].concat();
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(shown.iter().chain(tested).flat_map(|(_, label)| label.to_le_bytes()));
    bytes.extend(shown.iter().chain(tested).flat_map(|(sample, _)| sample));
    bytes
}

fn lent(samples: &Labelled) -> impl user::Samples<'_> {
    samples.iter().map(|(sample, label)| (&sample[..], *label))
}

/// Images of bytes with their labels.
fn images(set: &Dataset) -> Result<(&[u8], usize), Failure> {
    match set.samples() {
        Samples::U8(pixels) => Ok((pixels, set.shape().sample().unwrap_or(1) as usize)),
        _ => Err("samples of numbers, expected images of bytes".into()),
    }
}

/// `shown` of each class among the last `among` samples, by chance, and the others of them.
fn drawn(
    set: &Dataset,
    among: u32,
    shown: u32,
    seed: u32,
) -> Result<(Labelled, Labelled), Failure> {
    let (bytes, size) = images(set)?;
    let (labels, len) = (set.labels(), set.len());
    let mut rng = Rng::new(seed.into(), Purpose::Order, 0, 0);
    let mut order: Vec<u32> = (len - len.min(among)..len).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, rng.below(at as u32 + 1) as usize);
    }
    let (mut chosen, mut others) = (vec![], vec![]);
    let mut counts = vec![0; set.names().len()];
    for at in order.into_iter().map(|at| at as usize) {
        let (sample, label) = (bytes[at * size..][..size].to_vec(), labels[at]);
        match counts.get_mut(usize::from(label)).filter(|count| **count < shown) {
            Some(count) => {
                *count += 1;
                chosen.push((sample, label));
            }
            None => others.push((sample, label)),
        }
    }
    Ok((chosen, others))
}

/// `count` samples, by chance.
fn picked(set: &Dataset, count: u32, seed: u32) -> Result<Labelled, Failure> {
    let (bytes, size) = images(set)?;
    let mut rng = Rng::new(seed.into(), Purpose::Order, 1, 0);
    let some = (0..count).map(|_| rng.below(set.len()) as usize);
    Ok(some.map(|at| (bytes[at * size..][..size].to_vec(), set.labels()[at])).collect())
}
