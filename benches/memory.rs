//! Measures the memory that searches and trainings take beside their input.
//!
//! ```text
//! cargo bench --bench memory [-- FILTER...]
//! ```
//! Each case runs in a process of its own, whose greatest resident memory the system tells
//! (`VmHWM` of `/proc/self/status`, on Linux alone). The input is what the process holds before:
//! rows and labels, and for a search room for the result.
//!
//! A training is one pass over random samples: of each block by SI and of the classifier, with and
//! without what frozen blocks gave kept in memory, or of the whole net, its batches whole or in
//! parts. Counted is what it was granted: the largest arena of a stage with what is kept in front
//! of it, and the net's weights.

use std::io::Write;
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use cpu_time::ProcessTime;
use sepal::backend::{Backend, Bank, Device};
use sepal::cpu::OnCpu;
use sepal::layer::Layer;
use sepal::models::architecture::Architecture;
use sepal::models::cache::{Budget, Keep};
use sepal::models::data::{Dataset, Samples};
use sepal::models::fit::{Event, Fit, Watch, Wish};
use sepal::models::learning::{Learning, Way};
use sepal::neighbour::{Pair, Rows};
use sepal::shape::Shape;

/// Rows and features.
const SIZES: [(usize, usize); 2] = [(60_000, 1176), (50_000, 64)];

/// Samples of a training, and of a batch.
const SAMPLES: u32 = 256;
const BATCH: u32 = 128;
/// Parts of a batch whose gradients are accumulated.
const PARTS: u32 = 8;
const CLASSES: u32 = 10;

type Failure = Box<dyn std::error::Error>;

/// How a net is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Training {
    /// Each block by SI, with what frozen blocks gave kept
    Kept,
    /// Each block by SI, the frozen blocks computed for every batch
    Computed,
    /// End to end
    Whole,
    /// End to end, batches in parts
    Parts,
}

/// Measures the memory that searches and trainings take.
#[derive(Debug, Parser)]
struct Args {
    /// Parts of the names of nets and of sizes of searches [default: all]
    filters: Vec<String>,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Runs one search and prints its bytes
    #[arg(long, hide = true, num_args = 2)]
    search: Option<Vec<usize>>,
    /// Trains one net and prints bytes and seconds
    #[arg(long, hide = true, requires = "training")]
    net: Option<Architecture>,
    #[arg(long, hide = true)]
    training: Option<Training>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// The process's memory in bytes: as it is (`VmRSS`), or at its greatest (`VmHWM`).
fn resident(what: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).ok_or("no such line")?;
    let kilobytes = line.split_whitespace().nth(1).ok_or("no number")?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}

/// Random numbers below 2^24.
fn numbers() -> impl FnMut() -> u64 {
    let mut state = 1u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 40
    }
}

fn search(rows: usize, dim: usize, threads: usize) -> Result<(), Failure> {
    let mut next = numbers();
    let data: Vec<f32> = (0..rows * dim).map(|_| next() as f32).collect();
    let labels: Vec<u16> = (0..rows).map(|_| (next() % 10) as u16).collect();
    let mut pairs = vec![Pair::NONE; rows];
    pairs.fill(Pair::NONE);
    let input = resident("VmRSS")?;
    let set = Rows { data: &data, dim, labels: &labels };
    let bank = Bank::Host(set);
    OnCpu::with_threads(threads)?.open(&mut [])?.nearest(bank, bank, 0, Some(0), &mut pairs)?;
    if !pairs.iter().all(|pair| pair.complete()) {
        return Err("a row has no neighbours".into());
    }
    println!("{input} {}", resident("VmHWM")?);
    Ok(())
}

/// Adds up what stages are granted.
struct Granted(u64);

impl Watch for Granted {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        if let Event::Stage { bytes, prefix, .. } = event {
            let kept = prefix.map_or(0, |prefix| prefix.choice.bytes);
            self.0 = self.0.max(*bytes as u64 + kept);
        }
        Wish::Go
    }
}

/// What a net reads, at the size of its data sets.
fn shape(net: Architecture) -> Shape {
    match net {
        Architecture::Lenet | Architecture::Lenet5 | Architecture::Vgg6 => Shape::new(1, 1, 28, 28),
        Architecture::Gesture => Shape::new(1, 3, 1, 128),
        Architecture::DsCnn => Shape::new(1, 1, 49, 10),
        Architecture::Mobilenet => Shape::new(1, 3, 96, 96),
        Architecture::Autoencoder => Shape::rows(1, 640),
        Architecture::Dense => Shape::rows(1, 64),
        _ if net.reads_text() => Shape::new(1, 1, 1, 1024),
        _ => Shape::new(1, 3, 32, 32),
    }
}

fn train(architecture: Architecture, training: Training, threads: usize) -> Result<(), Failure> {
    let (mut next, shape) = (numbers(), shape(architecture));
    let len = SAMPLES as usize * shape.sample().ok_or("no samples")? as usize;
    // Nets for text know 69 characters.
    let bytes = (0..len).map(|_| (next() % 69) as u8).collect();
    let labels = (0..SAMPLES).map(|sample| (sample % CLASSES) as u16).collect();
    let names = (0..CLASSES).map(|class| class.to_string()).collect();
    let set = Dataset::new(shape, Samples::U8(bytes), labels, names)?;
    let (way, micro_batches) = match training {
        Training::Kept | Training::Computed => (Way::Si, 1),
        Training::Whole => (Way::EndToEnd, 1),
        Training::Parts => (Way::EndToEnd, PARTS),
    };
    let keep = if training == Training::Kept { Keep::Plain } else { Keep::Nothing };
    let (epochs, head_epochs, batch) = (1, 1, BATCH);
    let learning =
        Learning { architecture, way, epochs, head_epochs, batch, ..Learning::default() };
    let learning = Learning { micro_batches, ..learning };
    let layers = architecture.layers(CLASSES, 100);
    let net = architecture.net(&layers, architecture.input(&set));
    let heads = learning.heads(&net, CLASSES)?;
    let heads: Vec<&[Layer]> = heads.iter().map(Vec::as_slice).collect();
    let budget = Budget { keep, ..Budget::default() };
    let device = OnCpu::with_threads(threads)?;
    let (before, began, mut granted) = (resident("VmRSS")?, ProcessTime::now(), Granted(0));
    let mut fit = Fit::new(net, 0)?;
    fit.run(&device, &learning.chosen(&heads, CLASSES), &mut &set, &budget, &mut granted)?;
    let seconds = began.elapsed().as_secs_f64();
    let parameters = net.params(net.layers.len())?;
    let counted = granted.0 + 4 * parameters as u64;
    println!("{parameters} {counted} {} {seconds}", resident("VmHWM")?.saturating_sub(before));
    Ok(())
}

/// The numbers that a process of this program prints.
fn asked(args: &[&str]) -> Result<Vec<f64>, Failure> {
    let output = Command::new(std::env::current_exe()?).args(args).output()?;
    if !output.status.success() {
        std::io::stderr().write_all(&output.stderr)?;
        return Err(format!("{} failed", args.join(" ")).into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}

fn tables(args: &Args) -> Result<(), Failure> {
    let threads = args.threads.to_string();
    let chosen =
        |name: &str| args.filters.is_empty() || args.filters.iter().any(|f| name.contains(f));
    println!("The exact search of a set in itself, {threads} thread(s).");
    println!("| rows x features | input, GiB | at most, GiB | beside the input, GiB |");
    println!("|---|---|---|---|");
    for (rows, dim) in SIZES {
        let size = format!("{rows}x{dim}");
        if !chosen(&size) {
            continue;
        }
        let (rows, dim) = (rows.to_string(), dim.to_string());
        let found = asked(&["--threads", &threads, "--search", &rows, &dim])?;
        let &[input, most] = found.as_slice() else { return Err("expected two numbers".into()) };
        let gib = |bytes: f64| bytes / f64::from(1u32 << 30);
        let beside = gib(most - input);
        println!("| {size} | {:.3} | {:.3} | {beside:.3} |", gib(input), gib(most));
    }

    println!(
        "\nOne pass over {SAMPLES} samples in batches of {BATCH}, {threads} thread(s): each block by SI \
         with what frozen blocks gave kept / computed anew, end to end / in {PARTS} parts of a batch."
    );
    println!("| net | parameters | counted, MB | measured, MB | CPU ms a sample |");
    println!("|---|---|---|---|---|");
    for net in Architecture::value_variants() {
        let name = net.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        if !chosen(&name) {
            continue;
        }
        let (mut parameters, mut columns) = (0.0, [const { Vec::new() }; 3]);
        for training in Training::value_variants() {
            let training = training.to_possible_value().ok_or("no name")?;
            let case = ["--threads", &threads, "--net", &name, "--training", training.get_name()];
            let found = asked(&case)?;
            let &[all, counted, measured, seconds] = found.as_slice() else {
                return Err("expected four numbers".into());
            };
            parameters = all;
            let each = seconds * 1e3 / f64::from(SAMPLES);
            for (column, value) in columns.iter_mut().zip([counted / 1e6, measured / 1e6, each]) {
                column.push(format!("{value:.*}", if value < 1.0 { 2 } else { 1 }));
            }
        }
        let [counted, measured, each] = columns.map(|column| column.join(" / "));
        println!("| {name} | {parameters} | {counted} | {measured} | {each} |");
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (args.search.as_deref(), args.net.zip(args.training)) {
        (Some(&[rows, dim]), _) => search(rows, dim, args.threads),
        (_, Some((net, training))) => train(net, training, args.threads),
        _ => tables(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
