//! What training costs on the CPU backend: whole steps of LeNet-5 and VGG16, one and two threads,
//! and learning block by block beside learning end to end.
//!
//! `cargo bench --bench step` prints all tables; `-- lenet vgg16 epoch` some of them. With
//! `--serve lenet` or `--serve vgg16` it makes as many steps as each line of the standard input
//! says and answers with wall and CPU seconds: `benches/peers/step.py` runs it beside others.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use cpu_time::ProcessTime;
use sepal::backend::Device;
use sepal::cpu::OnCpu;
use sepal::layer::{Conv2d, Layer};
use sepal::models::cache::Budget;
use sepal::models::features::allocate;
use sepal::models::fit::{Event, Fit, Watch, Wish};
use sepal::models::lenet::{lenet5, lenet5_layers};
use sepal::models::recipe;
use sepal::models::vgg::VGG16;
use sepal::net::{Input, Model, Net, Normalisation, Weights};
use sepal::optim::Rule;
use sepal::rng::{Purpose, Rng};
use sepal::schedule::Schedule;
use sepal::shape::Shape;
use sepal::source::{Batch, Draw, Source, SourceError};
use sepal::stage::{Cut, Recipe, Stage};
use sepal::strategy::{EndToEnd, ForwardSi, Strategy};
use sepal::train::{Feed, Session, StagePlan};

type Failure = Box<dyn std::error::Error>;

/// Times training steps.
#[derive(Debug, Parser)]
struct Args {
    /// The tables to print [default: all]
    what: Vec<Table>,

    /// Answer each line of the standard input, a number of steps of this net, with their seconds
    #[arg(long, value_name = "NET")]
    serve: Option<Served>,

    /// Threads of --serve
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// Rounds of steps
    #[arg(long, default_value_t = 15)]
    rounds: usize,

    /// Images of an epoch, a multiple of 128
    #[arg(long, default_value_t = 256)]
    images: u32,

    /// Rounds of epochs
    #[arg(long, default_value_t = 3)]
    epochs: usize,

    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    Lenet,
    Vgg16,
    Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Served {
    Lenet,
    Vgg16,
}

fn main() -> ExitCode {
    match print(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(args: &Args) -> Result<(), Failure> {
    if let Some(net) = args.serve {
        let work = match net {
            Served::Lenet => lenet(),
            Served::Vgg16 => VGG,
        };
        return work.with(args.threads, |step| serve(step));
    }
    let asked = |table| args.what.is_empty() || args.what.contains(&table);
    if asked(Table::Lenet) {
        steps(&lenet(), args.rounds, 20)?;
    }
    if asked(Table::Vgg16) {
        steps(&VGG, args.rounds, 1)?;
    }
    if asked(Table::Epoch) {
        epochs(args.images, args.epochs)?;
    }
    Ok(())
}

/// Random images of ten classes.
struct Noise {
    shape: Shape,
    len: u32,
    data: Vec<f32>,
}

impl Noise {
    fn new(shape: Shape, len: u32) -> Self {
        let mut rng = Rng::new(0, Purpose::Weights, 0, 0);
        let numbers = len as usize * shape.sample().unwrap_or(0) as usize;
        Self { shape, len, data: (0..numbers).map(|_| rng.normal()).collect() }
    }
}

impl Source for Noise {
    fn len(&self) -> u32 {
        self.len
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        false
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let dim = self.shape.sample().unwrap_or(0) as usize;
        let Batch::F32(out) = batch else { return Err(SourceError::Batch { expected: 0, got: 0 }) };
        for ((out, label), &index) in out.chunks_exact_mut(dim).zip(labels).zip(indices) {
            *label = (index % 10) as u16;
            out.copy_from_slice(&self.data[index as usize * dim..][..dim]);
        }
        Ok(())
    }
}

/// A net that is trained end to end, by cross-entropy and gradient descent with momentum.
struct Work {
    name: &'static str,
    net: Net<'static>,
    batch: u32,
}

const VGG: Work = Work { name: "VGG16", net: VGG16, batch: 32 };

/// LeNet-5 with a padded first convolution, as PyTorch programs have it.
fn lenet() -> Work {
    const LAYERS: [Layer; 12] = {
        let mut layers = lenet5_layers(10);
        layers[0] = Layer::Conv2d(Conv2d { pad: (2, 2), ..Conv2d::new(6, 5) });
        layers
    };
    let input = Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE };
    Work { name: "LeNet-5", net: lenet5(&LAYERS, input), batch: 128 }
}

impl Work {
    /// Makes the steps that `run` asks for, so many at a call.
    fn with<R>(
        &self,
        threads: usize,
        run: impl FnOnce(&mut dyn FnMut(usize) -> Result<(), Failure>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let rule = Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        let recipe = Recipe {
            rule,
            rate: 0.01,
            batch: self.batch,
            schedule: Schedule::Constant,
            ..recipe::classifier(u16::MAX)
        };
        let last = self.net.layers.len() as u16;
        let stage = Stage { first: 0, last, calibrate: false, cut: Cut::Whole, recipe };
        let mut source = Noise::new(self.net.input.shape, self.batch);
        let device = OnCpu::with_threads(threads)?;
        let feed = Feed { chunk: device.chunk(), ..Feed::of(&source) };
        let plan = StagePlan::new(&device.open(&mut [])?, &self.net, &stage, feed)?;
        let mut memory = allocate(plan.bytes())?;
        let mut backend = device.open(&mut memory)?;
        let mut weights = vec![0.0; self.net.params(self.net.layers.len())?];
        sepal::init::weights(&self.net, 0, &mut weights);
        let model = Model { net: self.net, weights: Weights::Flat(&weights) };
        let mut session = Session::new(self.net, stage, plan, 0, 0);
        session.load(&mut backend, &model)?;
        run(&mut |steps| {
            for _ in 0..steps {
                session.step(&mut backend, &model, &mut source)?;
            }
            Ok(())
        })
    }

    /// Multiply-accumulates of an image on its way forward.
    fn macs(&self) -> f64 {
        macs(&self.net).into_iter().sum::<u64>() as f64
    }
}

/// Multiply-accumulates of each layer for an image.
fn macs(net: &Net<'_>) -> Vec<u64> {
    let of = |(at, layer): (usize, &Layer)| net.shape(at).map_or(0, |shape| layer.macs(shape));
    net.layers.iter().enumerate().map(of).collect()
}

/// CPU and wall seconds of `work`.
fn time(work: impl FnOnce() -> Result<(), Failure>) -> Result<(f64, f64), Failure> {
    let (cpu, wall) = (ProcessTime::now(), Instant::now());
    work()?;
    Ok((cpu.elapsed().as_secs_f64(), wall.elapsed().as_secs_f64()))
}

fn serve(step: &mut dyn FnMut(usize) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    step(2)?;
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let steps = line?.trim().parse()?;
        let (cpu, wall) = time(|| step(steps))?;
        writeln!(out, "{wall} {cpu}")?;
        out.flush()?;
    }
    Ok(())
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Rounds of steps on one thread and on two, in turn.
fn steps(work: &Work, rounds: usize, steps: usize) -> Result<(), Failure> {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    work.with(1, |first| {
        work.with(2, |second| {
            first(1)?;
            second(1)?;
            for _ in 0..rounds {
                one.push(time(|| first(steps))?);
                two.push(time(|| second(steps))?);
            }
            Ok(())
        })
    })?;
    let images = steps as f64 * f64::from(work.batch);
    println!("\n{}, whole step, batch {}, {rounds} rounds in turn", work.name, work.batch);
    println!("threads  images/CPU s  GFLOP/CPU s  least CPU ms/step  least wall ms/step");
    let mut walls = Vec::new();
    for (threads, times) in [(1, &one), (2, &two)] {
        let (cpu, wall): (Vec<f64>, Vec<f64>) = times.iter().copied().unzip();
        let (cpu, wall) = (least(&cpu), least(&wall));
        // Forward, and backward to inputs and to weights.
        let flops = 6.0 * work.macs() * images;
        let step = 1e3 / steps as f64;
        let (rate, speed) = (images / cpu, flops / cpu / 1e9);
        println!(
            "{threads:7}  {rate:12.1}  {speed:11.1}  {:17.1}  {:18.1}",
            cpu * step,
            wall * step
        );
        walls.push(wall);
    }
    println!("two threads: {:.2} times as fast by least wall time", walls[0] / walls[1]);
    Ok(())
}

/// CPU seconds of a run: those that each stage takes once, and those of its steps.
#[derive(Debug)]
struct Clock {
    since: ProcessTime,
    /// Caches, and weights that are copied in and out.
    once: f64,
    steps: f64,
}

impl Clock {
    fn lap(&mut self) -> f64 {
        std::mem::replace(&mut self.since, ProcessTime::now()).elapsed().as_secs_f64()
    }
}

impl Watch for Clock {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        match event {
            Event::Stage { .. } | Event::Done { .. } => self.once += self.lap(),
            Event::Step(_) | Event::Pass { .. } => self.steps += self.lap(),
        }
        Wish::Go
    }
}

/// Passes over the data that a stage makes, and that share what it does once.
const PASSES: f64 = 10.0;

/// One pass of each block of VGG16 by the default recipe beside one pass end to end.
fn epochs(images: u32, rounds: usize) -> Result<(), Failure> {
    let net = VGG16;
    let (blocks, whole) = (recipe::forward_si(1, 1), recipe::end_to_end(1, 0.01));
    let mut source = Noise::new(net.input.shape, images);
    let (mut blocks_alone, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        blocks_alone.push(run(net, &blocks, &mut source)?);
        ends.push(run(net, &whole, &mut source)?);
    }
    let pass = |clocks: &[Clock]| {
        let steps = least(&clocks.iter().map(|clock| clock.steps).collect::<Vec<_>>());
        let once = least(&clocks.iter().map(|clock| clock.once).collect::<Vec<_>>());
        (steps + once / PASSES, format!("steps {steps:.2}, a tenth of {once:.2} once a stage"))
    };
    let ((pass, parts), (end, end_parts)) = (pass(&blocks_alone), pass(&ends));
    let batch = blocks.block.batch;
    println!("\nVGG16, one pass over {images} images, batch {batch}, one thread, CPU seconds");
    println!("each block alone {pass:.2}: {parts}");
    println!("end to end {end:.2}: {end_parts}");
    let [layers, filled, all] = shares(&net, &blocks, &whole);
    println!(
        "ratio {:.2}; by multiply-accumulates {layers:.2}, {filled:.2} with the caches, {all:.2} \
         with the distances of the loss too",
        pass / end
    );
    Ok(())
}

fn run(net: Net<'_>, strategy: &impl Strategy, source: &mut Noise) -> Result<Clock, Failure> {
    let (device, mut fit) = (OnCpu::with_threads(1)?, Fit::new(net, 0)?);
    let mut clock = Clock { since: ProcessTime::now(), once: 0.0, steps: 0.0 };
    fit.run(&device, strategy, source, &Budget::default(), &mut clock)?;
    Ok(clock)
}

/// Multiply-accumulates block by block over those end to end: of the layers, with a tenth of the
/// caches, with the loss.
fn shares(net: &Net<'_>, blocks: &ForwardSi<'_>, whole: &EndToEnd<'_>) -> [f64; 3] {
    debug_assert_eq!(blocks.block.batch, whole.recipe.batch);
    let macs = macs(net);
    let all = macs.iter().sum::<u64>() as f64;
    let first = macs.first().copied().unwrap_or(0) as f64;
    let classifier = macs.last().copied().unwrap_or(0) as f64;
    // No gradient goes to what a chain is given: to the images, and to the input of a block.
    let end = 3.0 * all - first;
    let steps = 2.0 * (all - classifier) + 3.0 * classifier;
    let fill = (all - classifier) / PASSES;
    let dims = (0..net.features.into()).filter_map(|block| net.shape(net.block(block)?.1).ok());
    let dims: u64 = dims.map(|shape| u64::from(shape.sample().unwrap_or(0))).sum();
    // Each sample with each other: once for the distances, once for their gradient.
    let loss = 2.0 * f64::from(blocks.block.batch) * dims as f64;
    [steps, steps + fill, steps + fill + loss].map(|block_by_block| block_by_block / end)
}
