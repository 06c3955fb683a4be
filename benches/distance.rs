//! Times the exact search of a set in itself: the nearest row of the same label and the nearest of
//! another, for every row.
//!
//! ```text
//! cargo bench --bench distance [--features cuda] [-- FILTER...] [--rounds N] [--threads N]
//! ```
//! With the feature `cuda` an NVIDIA GPU searches too, and beside it a product of matrices by cuBLAS
//! with the least of each row taken after it; copies to it and back are part of the time.
//! A filter is a part of a size or of a backend's name: `5000x64`, `avx2`. For everybody a search
//! of m rows with d features counts as 2 m^2 d operations. With `--serve MxD BACKEND` it reads a
//! line for each round from the standard input and answers with the seconds that a search took, by
//! the clock and of the processor: `benches/peers` times other libraries in the same rounds.

#[cfg(feature = "cuda")]
#[path = "peers/cublas.rs"]
mod cublas;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use cpu_time::ProcessTime;
use sepal::backend::{Backend, Bank, Device};
use sepal::cpu::{Instructions, OnCpu};
#[cfg(feature = "cuda")]
use sepal::cuda::OnCuda;
#[cfg(feature = "cuda")]
use sepal::neighbour::Nearest;
use sepal::neighbour::{self, Pair, Rows};
use sepal::reference::Reference;

/// Rows and features.
const SIZES: [(usize, usize); 6] =
    [(1000, 64), (1000, 1024), (1000, 4096), (5000, 64), (5000, 1024), (10000, 256)];

/// Operations from which on the reference is left out.
const SMALL: f64 = 3e9;

/// Classes of the rows.
const CLASSES: u16 = 10;

type Failure = Box<dyn std::error::Error>;

/// Times the exact nearest-neighbour search.
#[derive(Debug, Parser)]
struct Args {
    /// Parts of sizes or of names of backends [default: all]
    filters: Vec<String>,
    /// Searches that are timed of each size and backend
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Threads of the CPU backend
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Answers with seconds, a search for each line of the standard input
    #[arg(long, num_args = 2, value_names = ["MxD", "BACKEND"])]
    serve: Option<Vec<String>>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// Rows of a normal distribution, or near it: sums of uniform numbers.
struct Set {
    data: Vec<f32>,
    dim: usize,
    labels: Vec<u16>,
}

impl Set {
    fn new(rows: usize, dim: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let mut normal = || (0..6).map(|_| uniform()).sum::<f32>() - 3.0;
        let data = (0..rows * dim).map(|_| normal() * 1.41).collect();
        let labels = (0..rows).map(|_| (uniform() * f32::from(CLASSES)) as u16).collect();
        Self { data, dim, labels }
    }

    fn rows(&self) -> Rows<'_> {
        Rows { data: &self.data, dim: self.dim, labels: &self.labels }
    }
}

/// Who searches.
#[derive(Clone)]
enum Who {
    Reference,
    Cpu(Instructions, OnCpu),
    #[cfg(feature = "cuda")]
    Cuda(OnCuda),
    #[cfg(feature = "cuda")]
    Cublas(cublas::Cublas),
}

/// The GPU, or why there is none.
#[cfg(feature = "cuda")]
fn cuda() -> Result<Who, String> {
    OnCuda::open(0).map(Who::Cuda).map_err(|e| e.to_string())
}

/// cuBLAS on the GPU, or why it is not there.
#[cfg(feature = "cuda")]
fn cublas() -> Result<Who, String> {
    cublas::Cublas::open().map(Who::Cublas).map_err(|e| e.to_string())
}

#[cfg(not(feature = "cuda"))]
fn cublas() -> Result<Who, String> {
    cuda()
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Who, String> {
    Err("built without the feature `cuda`".into())
}

impl Who {
    fn all(threads: usize) -> Result<Vec<Self>, Failure> {
        let cpu = |set| Ok(Self::Cpu(set, OnCpu::with_threads(threads)?.with_instructions(set)));
        let cpus = Instructions::all().map(cpu);
        let gpu = [cuda(), cublas()].into_iter().flatten().map(Ok);
        std::iter::once(Ok(Self::Reference)).chain(cpus).chain(gpu).collect()
    }

    fn name(&self) -> String {
        match self {
            Self::Reference => "reference".into(),
            Self::Cpu(set, _) => format!("cpu {}", set.name()),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda".into(),
            #[cfg(feature = "cuda")]
            Self::Cublas(_) => "cublas gemm and argmin".into(),
        }
    }

    fn search(&self, set: &Set, pairs: &mut [Pair]) -> Result<(), Failure> {
        pairs.fill(Pair::NONE);
        let bank = Bank::Host(set.rows());
        match self {
            Self::Reference => Reference::new(&mut []).nearest(bank, bank, 0, Some(0), pairs)?,
            Self::Cpu(_, device) => {
                device.open(&mut [])?.nearest(bank, bank, 0, Some(0), pairs)?;
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                device.open(&mut [])?.nearest(bank, bank, 0, Some(0), pairs)?;
            }
            #[cfg(feature = "cuda")]
            Self::Cublas(device) => device.search(set.rows(), pairs)?,
        }
        Ok(())
    }

    /// Whether a pair is right: a product of matrices gives distances that are off by rounding.
    fn is_right(&self, got: Pair, expected: Pair) -> bool {
        #[cfg(feature = "cuda")]
        if let Self::Cublas(_) = self {
            let near = |a: Nearest, b: Nearest| (a.dist2 - b.dist2).abs() <= 1e-3 * b.dist2;
            return near(got.same, expected.same) && near(got.other, expected.other);
        }
        got == expected
    }

    /// Searches once and compares some rows with the specification.
    fn check(&self, set: &Set, pairs: &mut [Pair]) -> Result<(), Failure> {
        self.search(set, pairs)?;
        for at in (0..set.labels.len()).step_by((set.labels.len() / 20).max(1)) {
            let row = set.rows().row(at).unwrap_or_default();
            let queries = Rows { data: row, dim: set.dim, labels: &set.labels[at..at + 1] };
            let mut expected = [Pair::NONE];
            neighbour::nearest_pair(queries, set.rows(), 0, Some(at as u32), &mut expected);
            if !self.is_right(pairs[at], expected[0]) {
                return Err(format!("{}: row {at} is wrong", self.name()).into());
            }
        }
        Ok(())
    }
}

/// Seconds by the clock and of the processor.
fn time(who: &Who, set: &Set, pairs: &mut [Pair]) -> Result<(f64, f64), Failure> {
    let (cpu, wall) = (ProcessTime::try_now()?, Instant::now());
    who.search(set, pairs)?;
    Ok((wall.elapsed().as_secs_f64(), cpu.try_elapsed()?.as_secs_f64()))
}

fn size((rows, dim): (usize, usize)) -> String {
    format!("{rows}x{dim}")
}

fn serve(args: &Args, what: &str, name: &str) -> Result<(), Failure> {
    let (rows, dim) = what.split_once('x').ok_or("a size is ROWSxFEATURES")?;
    let set = Set::new(rows.parse()?, dim.parse()?);
    let who = Who::all(args.threads)?.into_iter().rfind(|who| who.name().contains(name));
    let who = who.ok_or("no such backend")?;
    let mut pairs = vec![Pair::NONE; set.labels.len()];
    who.check(&set, &mut pairs)?;
    let mut out = io::stdout().lock();
    writeln!(out, "ready")?;
    for line in io::stdin().lock().lines() {
        line?;
        let (wall, cpu) = time(&who, &set, &mut pairs)?;
        writeln!(out, "{wall} {cpu}")?;
        out.flush()?;
    }
    Ok(())
}

fn table(args: &Args) -> Result<(), Failure> {
    println!("The exact search of a set in itself, {} thread(s).", args.threads);
    if let Err(why) = cuda() {
        println!("CUDA is left out: {why}.");
    }
    if let Err(why) = cublas() {
        println!("cuBLAS is left out: {why}.");
    }
    println!("| rows x features | backend | ms | GFLOP per CPU-second |");
    println!("|---|---|---|---|");
    // What begins with a digit is of a size.
    let is_size = |filter: &&String| filter.starts_with(|c: char| c.is_ascii_digit());
    let (sizes, names): (Vec<_>, Vec<_>) = args.filters.iter().partition(is_size);
    let asked = |filters: &[&String], name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let all: Vec<String> = SIZES.into_iter().map(size).collect();
    let backends: Vec<String> = Who::all(args.threads)?.iter().map(Who::name).collect();
    for (filters, known) in [(&sizes, &all), (&names, &backends)] {
        let unknown = filters.iter().find(|f| known.iter().all(|name| !name.contains(f.as_str())));
        if let Some(filter) = unknown {
            return Err(format!("{filter}: expected a part of one of {}", known.join(", ")).into());
        }
    }
    for shape in SIZES.into_iter().filter(|shape| asked(&sizes, &size(*shape))) {
        let set = Set::new(shape.0, shape.1);
        let operations = 2.0 * (shape.0 as f64).powi(2) * shape.1 as f64;
        let mut pairs = vec![Pair::NONE; shape.0];
        let mut times: Vec<(Who, Vec<f64>, f64)> = vec![];
        for who in Who::all(args.threads)? {
            let slow = matches!(who, Who::Reference) && operations > SMALL;
            if !slow && asked(&names, &who.name()) {
                who.check(&set, &mut pairs)?;
                times.push((who, vec![], f64::INFINITY));
            }
        }
        for _ in 0..args.rounds.max(1) {
            for (who, walls, least) in &mut times {
                if matches!(who, Who::Reference) && walls.iter().sum::<f64>() > 2.0 {
                    continue;
                }
                let (wall, cpu) = time(who, &set, &mut pairs)?;
                walls.push(wall);
                *least = least.min(cpu);
            }
        }
        for (who, mut walls, least) in times {
            walls.sort_by(f64::total_cmp);
            let median = walls[walls.len() / 2] * 1e3;
            let rate = operations / least / 1e9;
            println!("| {} | {} | {median:.2} | {rate:.1} |", size(shape), who.name());
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.serve.as_deref() {
        Some([what, name]) => serve(&args, what, name),
        _ => table(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
