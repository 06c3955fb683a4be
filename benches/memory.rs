//! Measures the memory that searches take beside their input.
//!
//! ```text
//! cargo bench --bench memory [-- FILTER...]
//! ```
//! Each case runs in a process of its own, whose greatest resident memory the system tells
//! (`VmHWM` of `/proc/self/status`, on Linux alone). The input is what the process holds before
//! the search: rows, labels, and room for the result.

use std::io::Write;
use std::process::{Command, ExitCode};

use clap::Parser;
use sepal::backend::{Backend, Bank, Device};
use sepal::cpu::OnCpu;
use sepal::neighbour::{Pair, Rows};

/// Rows and features.
const SIZES: [(usize, usize); 2] = [(60_000, 1176), (50_000, 64)];

type Failure = Box<dyn std::error::Error>;

/// Measures the memory that searches take.
#[derive(Debug, Parser)]
struct Args {
    /// Parts of sizes [default: all]
    filters: Vec<String>,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Runs one case and prints its bytes
    #[arg(long, hide = true, num_args = 2)]
    case: Option<Vec<usize>>,
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

fn case(rows: usize, dim: usize, threads: usize) -> Result<(), Failure> {
    let mut state = 1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 40
    };
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

fn table(args: &Args) -> Result<(), Failure> {
    println!("The exact search of a set in itself, {} thread(s).", args.threads);
    println!("| rows x features | input, GiB | at most, GiB | beside the input, GiB |");
    println!("|---|---|---|---|");
    for (rows, dim) in SIZES {
        let size = format!("{rows}x{dim}");
        if !args.filters.is_empty() && !args.filters.iter().any(|f| size.contains(f)) {
            continue;
        }
        let output = Command::new(std::env::current_exe()?)
            .args(["--threads", &args.threads.to_string()])
            .args(["--case", &rows.to_string(), &dim.to_string()])
            .output()?;
        if !output.status.success() {
            std::io::stderr().write_all(&output.stderr)?;
            return Err(format!("{size} failed").into());
        }
        let text = String::from_utf8(output.stdout)?;
        let (input, most) = text.trim().split_once(' ').ok_or("two numbers were expected")?;
        let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
        let (input, most): (u64, u64) = (input.parse()?, most.parse()?);
        let beside = gib(most.saturating_sub(input));
        println!("| {size} | {:.3} | {:.3} | {beside:.3} |", gib(input), gib(most));
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.case.as_deref() {
        Some(&[rows, dim]) => case(rows, dim, args.threads),
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
