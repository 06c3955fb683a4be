//! What all subcommands do.

use std::io::{self, Write};
use std::path::Path;

use cpu_time::ProcessTime;
use sepal::backend::Device;
use sepal::format::{Meta, Provenance};
use sepal::models::architecture::Architecture;
use sepal::models::cache::Budget;
use sepal::models::data::Dataset;
use sepal::models::features::Features;
use sepal::models::file;
use sepal::models::fit::{Event, Watch, Wish};
use sepal::models::learning::Learning;
use sepal::models::steer::{Steer, Steered};
use sepal::net::Net;
use serde_json::Value;

use crate::options::{Options, Sets};
use crate::program::Failure;
use crate::{digest, stop};

/// Device, samples and recipe.
pub struct Work<'a, D> {
    pub device: &'a D,
    pub sets: &'a Sets,
    pub learning: &'a Learning,
    pub budget: Budget,
}

impl<D: Device> Work<'_, D> {
    pub fn steer(&self, seed: u64) -> Steer<'_, D> {
        let Sets { train, bank, held_out, .. } = self.sets;
        let (device, learning, budget) = (self.device, self.learning, &self.budget);
        Steer { device, learning, train, bank, held_out, seed, budget }
    }

    /// A net of the architecture, of so much of its width in percent, as it is drawn.
    pub fn net(&self, width: u32, seed: u64) -> Result<Steered, Failure> {
        drawn(self.learning.architecture, &self.sets.train, width, seed)
    }

    /// The share of the test set that is classified rightly.
    pub fn accuracy(&self, net: &Steered) -> Result<f64, Failure> {
        let (mut test, end) = (&self.sets.test, net.net().layers.len());
        Ok(Features::new(self.device, &net.model(), &mut test, end)?.accuracy())
    }

    /// Held-out SI behind all blocks.
    pub fn separation(&self, net: &Steered, seed: u64) -> Result<f64, Failure> {
        Ok(self.steer(seed).separation(&net.model(), net.net().features_end())?)
    }

    /// Writes a model file.
    pub fn save(&self, path: &Path, net: &Steered, seed: u64, how: &str) -> Result<(), Failure> {
        let train = &self.sets.train;
        let classes: Vec<&str> = train.names().iter().map(String::as_str).collect();
        let recipe = format!("{how}, {:?}", self.learning);
        let (version, data) = (env!("CARGO_PKG_VERSION"), digest::digest(train));
        let provenance = Some(Provenance { version, recipe: &recipe, seed, data });
        let meta = Meta { classes: &classes, provenance, ..Meta::NONE };
        Ok(file::save(path, &net.model(), &meta)?)
    }
}

/// Does `one` for each seed; a model can be written of one alone.
pub fn each_seed<D: Device>(
    device: &D,
    options: &Options,
    save: Option<&Path>,
    out: &mut dyn Write,
    mut one: impl FnMut(&Work<'_, D>, u64, &mut Lines<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if let Some(path) = save {
        if options.seeds.len() != 1 {
            return Err("--save: expected one of --seeds".into());
        }
        file::check_writable(path)?;
    }
    let (learning, sets) = (options.learning()?, options.sets()?);
    let work = Work { device, sets: &sets, learning: &learning, budget: Budget::default() };
    let mut lines = Lines { out, json: options.json };
    options.seeds.iter().try_for_each(|&seed| one(&work, seed, &mut lines))
}

/// A net of an architecture for these samples, as it is drawn.
pub fn drawn(
    architecture: Architecture,
    train: &Dataset,
    width: u32,
    seed: u64,
) -> Result<Steered, Failure> {
    let layers = architecture.layers(train.names().len() as u32, width);
    let input = architecture.input(train);
    let net = architecture.net(&layers, input);
    let cannot = |e| format!("{architecture:?} cannot take samples of {}: {e}", input.shape);
    Ok(Steered::new(net, seed).map_err(cannot)?)
}

/// Multiply-accumulates of a sample.
pub fn macs(net: &Net<'_>) -> Result<u64, Failure> {
    let mut macs = 0;
    for (at, layer) in net.layers.iter().enumerate() {
        macs += layer.macs(net.shape(at)?);
    }
    Ok(macs)
}

/// Parameters of a net.
pub fn parameters(net: &Net<'_>) -> Result<usize, Failure> {
    Ok(net.params(net.layers.len())?)
}

/// CPU seconds that stages took, and what went before each: the layers in front of it, and the judging of
/// the stage before. Ctrl-C ends it.
pub struct Clock {
    pub seconds: Vec<f64>,
    since: ProcessTime,
}

impl Default for Clock {
    fn default() -> Self {
        Self { seconds: Vec::new(), since: ProcessTime::now() }
    }
}

impl Clock {
    pub fn sum(&self) -> f64 {
        self.seconds.iter().sum()
    }
}

impl Watch for Clock {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        if let Event::Done { .. } = event {
            self.seconds.push(self.since.elapsed().as_secs_f64());
            self.since = ProcessTime::now();
        }
        if stop::wished() { Wish::Stop } else { Wish::Go }
    }
}

/// Lines for people or for machines, each at once.
pub struct Lines<'a> {
    pub out: &'a mut dyn Write,
    pub json: bool,
}

impl Lines<'_> {
    /// A line for machines alone.
    pub fn value(&mut self, value: &Value) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        writeln!(self.out, "{value}")?;
        self.out.flush()
    }

    /// A line for people alone.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }
}

/// The mean, the least and the most.
pub fn spread(numbers: &[f64]) -> (f64, f64, f64) {
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (mean, least, most)
}
