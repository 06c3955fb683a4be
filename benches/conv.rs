//! Times convolutions: forward, the gradient of the input (data), and that of the weights.
//!
//! ```text
//! cargo bench --bench conv [-- FILTER...] [--rounds N] [--threads N]
//! ```
//! A filter is a part of a row's name, of a pass or of an instruction set: `VGG`, `weights`,
//! `avx2`; filters of one kind are alternatives. Every pass counts as 2 N K C R S P Q operations,
//! padding too, and packs its weights and its input anew. With `--serve ROW PASS SET` it reads a
//! line for each round from the standard input and answers with the seconds that a pass took, by
//! the clock and of the processor: `benches/peers` times other libraries in the same rounds.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use cpu_time::ProcessTime;
use sepal::arena::{Dtype, Layout, Slot, Word};
use sepal::backend::{Backend, Call, Device, Host, HostMut, Param, Phase};
use sepal::cpu::{Instructions, OnCpu, words};
use sepal::layer::{Conv2d, Layer, Pass};
use sepal::plan::{Chain, ParamSlots, Place, Reached};
use sepal::shape::Shape;

/// Name, input, filters, kernel, padding.
type Row = (&'static str, Shape, u32, (u8, u8), (u8, u8));

const ROWS: [Row; 12] = [
    ("LeNet-1", Shape::new(128, 1, 28, 28), 6, (5, 5), (2, 2)),
    ("LeNet-2", Shape::new(128, 6, 14, 14), 16, (5, 5), (0, 0)),
    ("VGG-3", Shape::new(32, 3, 32, 32), 64, (3, 3), (1, 1)),
    ("VGG-64", Shape::new(32, 64, 32, 32), 64, (3, 3), (1, 1)),
    ("VGG-128", Shape::new(32, 128, 16, 16), 128, (3, 3), (1, 1)),
    ("VGG-256", Shape::new(32, 256, 8, 8), 256, (3, 3), (1, 1)),
    ("VGG-512", Shape::new(32, 512, 4, 4), 512, (3, 3), (1, 1)),
    ("VGG-512s", Shape::new(32, 512, 2, 2), 512, (3, 3), (1, 1)),
    ("AlexNet-2", Shape::new(32, 64, 16, 16), 192, (5, 5), (2, 2)),
    ("VD-CNN-64", Shape::new(32, 64, 1, 1024), 64, (1, 3), (0, 1)),
    ("VD-CNN-512", Shape::new(32, 512, 1, 128), 512, (1, 3), (0, 1)),
    ("Inception-1x1", Shape::new(32, 192, 16, 16), 64, (1, 1), (0, 0)),
];

const PASSES: [&str; 3] = ["forward", "data", "weights"];

/// The share of the largest output that an error may be.
const TOLERANCE: f64 = 2e-5;

/// Numbers of each result that are computed again by the definition.
const SAMPLED: usize = 40;

type Failure = Box<dyn std::error::Error>;

/// Times convolutions.
#[derive(Debug, Parser)]
struct Args {
    /// Parts of names of rows, passes or instruction sets [default: all]
    filters: Vec<String>,
    /// Times that each pass runs
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Answers with seconds, a pass for each line of the standard input
    #[arg(long, num_args = 3, value_names = ["ROW", "PASS", "SET"])]
    serve: Option<Vec<String>>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// Numbers in (-1, 1).
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn length(shape: Shape) -> usize {
    shape.len().unwrap_or(0) as usize
}

/// One convolution, its tensors placed one after the other.
struct Work {
    conv: Conv2d,
    x: Shape,
    y: Shape,
    place: Place,
    slots: ParamSlots,
    bytes: usize,
    /// x, w and dy.
    data: [Vec<f32>; 3],
}

impl Work {
    fn new((_, shape, filters, kernel, pad): Row, device: &OnCpu) -> Result<Self, Failure> {
        let conv = Conv2d { kernel, pad, bias: false, ..Conv2d::new(filters, 1) };
        let layers = [Layer::Conv2d(conv)];
        let mut bytes = 0;
        let mut lay = |slot: Slot| {
            // From a cache line on, as a large arena is.
            let slot = Slot { at: bytes, ..slot };
            bytes += slot.bytes().next_multiple_of(64);
            slot
        };
        // The first layer's input lies as the samples do.
        let layout = if shape.c > 3 { Layout::Nchw8c } else { Layout::Nchw };
        let x = Slot { layout, ..Slot::new(0, shape, Dtype::F32) };
        let reached = Reached::first(x);
        let needs = device.open(&mut [])?.needs(&Chain::new(&layers), 0, reached, Pass::Train);
        let needs = needs.ok_or("no such convolution")?;
        let y = Slot { layout: needs.layout, ..Slot::new(0, needs.out, Dtype::F32) };
        let scratch = |bytes: usize| {
            Slot::vector(0, Word::count(bytes) as u32 * Word::BYTES as u32, Dtype::U8)
        };
        let place = Place {
            x: lay(x),
            y: lay(y),
            saved: Slot::EMPTY,
            scratch: lay(scratch(needs.forward_scratch)),
            backward_scratch: lay(scratch(needs.backward_scratch)),
            dy: lay(y),
            dx: lay(x),
            ..Place::NONE
        };
        let weights = conv.tensors(shape).ok_or("no such convolution")?.weight;
        let weight = Slot::vector(0, weights, Dtype::F32);
        let slots = ParamSlots {
            weight: lay(weight),
            bias: Slot::EMPTY,
            mean: Slot::EMPTY,
            variance: Slot::EMPTY,
            dweight: lay(weight),
            dbias: Slot::EMPTY,
        };
        let data = [(1, length(shape)), (2, weights as usize), (3, length(needs.out))];
        let data = data.map(|(seed, len)| values(seed, len));
        Ok(Self { conv, x: shape, y: needs.out, place, slots, bytes, data })
    }

    /// A backend with the tensors in its memory.
    fn open<'a>(&self, device: &OnCpu, memory: &'a mut [Word]) -> Result<impl Backend, Failure>
    where
        OnCpu: Device<Backend<'a>: Backend>,
    {
        let mut cpu = device.open(memory)?;
        let slots = [self.place.x, self.slots.weight, self.place.dy];
        for (slot, data) in slots.into_iter().zip(&self.data) {
            cpu.write(slot, Host::F32(data))?;
        }
        cpu.zero(self.slots.dweight)?;
        Ok(cpu)
    }

    fn run(&self, cpu: &mut impl Backend, pass: usize) -> Result<(), Failure> {
        let layer = Layer::Conv2d(self.conv);
        let (mut place, mut slots) = (self.place, self.slots);
        match pass {
            1 => slots.dweight = Slot::EMPTY,
            _ => place.dx = Slot::EMPTY,
        }
        let phase = Phase::Train { seed: 0, update: 1 };
        let call = Call { layer: &layer, index: 0, place, param: Param::Ram(slots), phase };
        if pass == 0 {
            cpu.forward(&call)?
        } else {
            cpu.backward(&call)?
        }
        Ok(())
    }

    /// Runs every pass and computes some of its numbers by the definition.
    fn check(&self, cpu: &mut impl Backend) -> Result<(), Failure> {
        let (x, y, [xs, ws, dys]) = (self.x, self.y, &self.data);
        let (kernel, pad) = (self.conv.kernel, self.conv.pad);
        let (rows, columns) = (i64::from(kernel.0), i64::from(kernel.1));
        // Where tap (r, s) of place (p, q) reads.
        let read = |p: u32, q: u32, r: i64, s: i64| {
            let i = u32::try_from(i64::from(p) + r - i64::from(pad.0)).ok()?;
            let j = u32::try_from(i64::from(q) + s - i64::from(pad.1)).ok()?;
            (i < x.h && j < x.w).then_some((i, j))
        };
        let at = |s: Shape, n: u32, c: u32, i: u32, j: u32| {
            (((n * s.c + c) * s.h + i) * s.w + j) as usize
        };
        let weight = |k: u32, c: u32, r: i64, s: i64| {
            ((i64::from(k * x.c + c) * rows + r) * columns + s) as usize
        };
        let taps = || (0..rows).flat_map(|r| (0..columns).map(move |s| (r, s)));
        for pass in 0..PASSES.len() {
            self.run(cpu, pass)?;
            let slot = [self.place.y, self.place.dx, self.slots.dweight][pass];
            let mut got = vec![0.0; length(slot.shape)];
            cpu.read(slot, HostMut::F32(&mut got))?;
            let scale = got.iter().fold(0.0f64, |most, x| most.max(f64::from(x.abs())));
            for i in 0..SAMPLED {
                let flat = (i * 7919 + i * i * 104_729) % got.len();
                let part = |by: u32, of: u32| (flat / by.max(1) as usize) as u32 % of;
                let mut sum = 0.0f64;
                match pass {
                    0 => {
                        let (n, k) = (part(y.c * y.h * y.w, y.n), part(y.h * y.w, y.c));
                        let (p, q) = (part(y.w, y.h), part(1, y.w));
                        for (c, (r, s)) in (0..x.c).flat_map(|c| taps().map(move |t| (c, t))) {
                            if let Some((i, j)) = read(p, q, r, s) {
                                let x = f64::from(xs[at(x, n, c, i, j)]);
                                sum += x * f64::from(ws[weight(k, c, r, s)]);
                            }
                        }
                    }
                    1 => {
                        let (n, c) = (part(x.c * x.h * x.w, x.n), part(x.h * x.w, x.c));
                        let (i, j) = (part(x.w, x.h), part(1, x.w));
                        for (k, (r, s)) in (0..y.c).flat_map(|k| taps().map(move |t| (k, t))) {
                            let p = u32::try_from(i64::from(i) + i64::from(pad.0) - r);
                            let q = u32::try_from(i64::from(j) + i64::from(pad.1) - s);
                            if let (Ok(p), Ok(q)) = (p, q)
                                && p < y.h
                                && q < y.w
                            {
                                let dy = f64::from(dys[at(y, n, k, p, q)]);
                                sum += dy * f64::from(ws[weight(k, c, r, s)]);
                            }
                        }
                    }
                    _ => {
                        let filter = x.c as usize * (rows * columns) as usize;
                        let (k, rest) = ((flat / filter) as u32, (flat % filter) as i64);
                        let (c, tap) = ((rest / rows / columns) as u32, rest % (rows * columns));
                        for n in 0..x.n {
                            for (p, q) in (0..y.h).flat_map(|p| (0..y.w).map(move |q| (p, q))) {
                                if let Some((i, j)) = read(p, q, tap / columns, tap % columns) {
                                    let dy = f64::from(dys[at(y, n, k, p, q)]);
                                    sum += dy * f64::from(xs[at(x, n, c, i, j)]);
                                }
                            }
                        }
                    }
                }
                if (sum - f64::from(got[flat])).abs() > TOLERANCE * scale {
                    let (pass, got) = (PASSES[pass], got[flat]);
                    return Err(format!("{pass} of {x} at {flat}: {got}, not {sum}").into());
                }
            }
        }
        cpu.zero(self.slots.dweight)?;
        Ok(())
    }

    fn operations(&self) -> f64 {
        2.0 * length(self.y) as f64
            * f64::from(self.x.c)
            * f64::from(self.conv.kernel.0)
            * f64::from(self.conv.kernel.1)
    }
}

/// Seconds of one pass, by the clock and of the processor.
fn time(work: &Work, cpu: &mut impl Backend, pass: usize) -> Result<(f64, f64), Failure> {
    let (processor, wall) = (ProcessTime::try_now()?, Instant::now());
    work.run(cpu, pass)?;
    Ok((wall.elapsed().as_secs_f64(), processor.try_elapsed()?.as_secs_f64()))
}

fn serve(args: &Args, row: &str, pass: &str, set: &str) -> Result<(), Failure> {
    let row = ROWS.into_iter().find(|r| r.0 == row).ok_or("no such row")?;
    let pass = PASSES.into_iter().position(|p| p == pass).ok_or("no such pass")?;
    let set = Instructions::all().filter(|s| set == "best" || s.name() == set).last();
    let set = set.ok_or("no such instruction set")?;
    let device = OnCpu::with_threads(args.threads)?.with_instructions(set);
    let work = Work::new(row, &device)?;
    let mut memory = words(work.bytes + 64);
    let mut cpu = work.open(&device, &mut memory)?;
    work.check(&mut cpu)?;
    let mut out = io::stdout().lock();
    writeln!(out, "ready")?;
    for line in io::stdin().lock().lines() {
        line?;
        let (wall, seconds) = time(&work, &mut cpu, pass)?;
        writeln!(out, "{wall} {seconds}")?;
        out.flush()?;
    }
    Ok(())
}

fn table(args: &Args) -> Result<(), Failure> {
    let sets: Vec<_> = Instructions::all().collect();
    let names = |name: &str| args.filters.iter().any(|f| name.contains(f.as_str()));
    // A kind that no filter names is taken whole.
    let some_row = ROWS.iter().any(|row| names(row.0));
    let some_pass = PASSES.iter().any(|pass| names(pass));
    let some_set = sets.iter().any(|set| names(set.name()));
    if !args.filters.is_empty() && !some_row && !some_pass && !some_set {
        return Err("nothing has such a name".into());
    }
    println!("Convolutions, {} thread(s): GFLOP per CPU-second, the least time.", args.threads);
    println!("There is no CUDA device: no backend for one exists.");
    println!("| row | set | {} | ms |", PASSES.join(" | "));
    println!("|---|---|---|---|---|---|");
    for row in ROWS.into_iter().filter(|row| !some_row || names(row.0)) {
        for &set in sets.iter().filter(|set| !some_set || names(set.name())) {
            let device = OnCpu::with_threads(args.threads)?.with_instructions(set);
            let work = Work::new(row, &device)?;
            let mut memory = words(work.bytes + 64);
            let mut cpu = work.open(&device, &mut memory)?;
            work.check(&mut cpu)?;
            let mut least = [f64::INFINITY; 3];
            let mut walls = [f64::INFINITY; 3];
            for _ in 0..args.rounds.max(1) {
                for pass in (0..3).filter(|pass| !some_pass || names(PASSES[*pass])) {
                    let (wall, seconds) = time(&work, &mut cpu, pass)?;
                    least[pass] = least[pass].min(seconds);
                    walls[pass] = walls[pass].min(wall);
                }
            }
            let rates = least.map(|s| format!("{:.1}", work.operations() / s / 1e9));
            let walls = walls.map(|wall| {
                let wall = if wall.is_finite() { wall } else { 0.0 };
                format!("{:.2}", Duration::from_secs_f64(wall).as_secs_f64() * 1e3)
            });
            println!(
                "| {} | {} | {} | {} |",
                row.0,
                set.name(),
                rates.join(" | "),
                walls.join(" / ")
            );
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.serve.as_deref() {
        Some([row, pass, set]) => serve(&args, row, pass, set),
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
