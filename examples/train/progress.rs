//! What a person sees while it trains, and the checkpoints on the way.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sepal::backend::Device;
use sepal::models::cache::{Choice, Prefix, Store};
use sepal::models::data::Dataset;
use sepal::models::features::Features;
use sepal::models::file;
use sepal::models::fit::{Event, Now, Snapshot, Watch, WatchError, Wish};
use sepal::net::{Model, Net, Weights};
use sepal::stage::Stage;
use sepal::train::Step;
use serde_json::{Value, json};

use crate::{report, stop};

/// Where checkpoints go.
pub struct Checkpoints {
    pub path: PathBuf,
    pub every: Duration,
    pub identity: u64,
    pub text: String,
}

/// What a stage took.
#[derive(Clone, Debug)]
pub struct Cost {
    /// What the stage is called.
    pub stage: String,
    pub last: usize,
    pub seconds: f64,
    /// Of its arena.
    pub bytes: usize,
    pub epochs: u16,
    /// How samples came through the frozen layers in front of it, where there are some.
    pub prefix: Option<Prefix>,
}

/// A pass over the data.
#[derive(Clone, Debug)]
pub struct Pass {
    /// What the stage is called.
    pub stage: String,
    /// It counts from 1.
    pub epoch: u16,
    /// The mean loss, and the share right within batches.
    pub loss: f64,
    pub score: f64,
    /// Held-out SI after it, where there is one.
    pub held_out: Option<f32>,
}

/// What held-out SI is measured on.
pub struct HeldOut<'a, D> {
    /// Images that no stage trains on.
    pub set: Dataset,
    /// Those trained on that they look for their nearest among.
    pub bank: Dataset,
    pub device: &'a D,
}

/// Watches a run.
pub struct Progress<'a, D> {
    pub net: Net<'a>,
    pub json: bool,
    pub checkpoints: Option<Checkpoints>,
    /// For early stopping.
    pub held_out: Option<HeldOut<'a, D>>,
    costs: Vec<Cost>,
    passes: Vec<Pass>,
    out: &'a mut dyn Write,
    /// Why the output cannot be written: the run ends.
    broken: Option<io::Error>,
    bar: ProgressBar,
    bytes: usize,
    prefix: Option<Prefix>,
    epoch: u32,
    stage: String,
    saved: Instant,
}

impl<'a, D> Progress<'a, D> {
    pub fn new(net: Net<'a>, json: bool, out: &'a mut dyn Write) -> Self {
        Self {
            net,
            json,
            checkpoints: None,
            held_out: None,
            costs: Vec::new(),
            passes: Vec::new(),
            out,
            broken: None,
            bar: ProgressBar::hidden(),
            bytes: 0,
            prefix: None,
            epoch: 0,
            stage: String::new(),
            saved: Instant::now(),
        }
    }

    /// What the stages took, and how each pass went.
    ///
    /// # Errors
    /// The output could not be written.
    pub fn finish(self) -> io::Result<(Vec<Cost>, Vec<Pass>)> {
        self.bar.finish_and_clear();
        self.broken.map_or(Ok((self.costs, self.passes)), Err)
    }

    /// A line for people, above the bar where there is one.
    fn line(&self, text: &str) {
        if self.json {
            return;
        }
        if self.bar.is_hidden() {
            // Progress that nobody can see is no reason to stop.
            let _ = writeln!(io::stderr(), "{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// A line for machines, at once.
    fn emit(&mut self, value: &Value) {
        let written = writeln!(self.out, "{value}").and_then(|()| self.out.flush());
        self.broken = self.broken.take().or(written.err());
    }

    fn begins(
        &mut self,
        index: usize,
        stage: &Stage<'_>,
        bytes: usize,
        steps: u32,
        done: u32,
        prefix: Option<&Prefix>,
    ) {
        let what = stage.recipe.objective.name();
        (self.bytes, self.prefix) = (bytes, prefix.copied());
        self.epoch = done.checked_div(steps).unwrap_or(0);
        self.stage = format!("layers {}..{} by {what}", stage.first, stage.last);
        let total = u64::from(steps) * u64::from(stage.recipe.epochs);
        if self.json {
            self.emit(&json!({"event": "stage", "index": index, "first": stage.first,
            "last": stage.last, "objective": what, "bytes": bytes, "steps": steps,
            "epochs": stage.recipe.epochs, "done": done, "prefix": prefix.map(|prefix| {
                let Choice { store, copies, bytes } = prefix.choice;
                json!({"depth": prefix.depth, "store": store.to_string(), "copies": copies,
                    "bytes": bytes, "seconds": prefix.time.as_secs_f64()})
            })}));
        } else {
            if let Some(prefix) = prefix {
                self.line(&frozen(prefix, stage.first.into()));
            }
            let style = "{prefix} [{bar:30}] {pos}/{len} {msg} {elapsed} (left {eta})";
            let style = ProgressStyle::with_template(style);
            self.bar = ProgressBar::new(total);
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_prefix(self.stage.clone());
            self.bar.set_position(u64::from(done));
            self.bar.reset_eta();
        }
    }

    fn wish(&mut self) -> Wish {
        if stop::wished() || self.broken.is_some() {
            return Wish::Stop;
        }
        match &self.checkpoints {
            Some(checkpoints) if self.saved.elapsed() >= checkpoints.every => Wish::Snapshot,
            _ => Wish::Go,
        }
    }
}

/// What is kept of the layers in front of a stage, as people read it.
fn frozen(prefix: &Prefix, first: usize) -> String {
    let Choice { store, copies, bytes } = prefix.choice;
    if store == Store::Recomputed {
        return format!("frozen layers 0..{first}: {store}");
    }
    let bytes = report::bytes(bytes as usize);
    let copies = if copies > 1 { format!(", {copies} copies") } else { String::new() };
    let depth = prefix.depth;
    let seconds = prefix.time.as_secs_f64();
    let kept = format!("frozen layers 0..{depth}: kept {store}{copies}, {bytes}, {seconds:.1} s");
    match depth == first {
        true => kept,
        false => format!("{kept}; {depth}..{first}: {}", Store::Recomputed),
    }
}

impl<D: Device> Watch for Progress<'_, D> {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        match *event {
            Event::Stage { index, stage, bytes, steps, done, prefix } => {
                self.begins(index, stage, bytes, steps, done, prefix);
            }
            Event::Step(&Step::Trained { score, rate, epoch_ends }) => {
                self.bar.inc(1);
                self.bar.set_message(format!("loss {:.4} rate {rate:.1e}", score.value));
                if epoch_ends && self.json {
                    self.epoch += 1;
                    let share = f64::from(score.correct) / f64::from(score.anchors.max(1));
                    self.emit(&json!({"event": "epoch", "epoch": self.epoch,
                        "batch_loss": score.value, "batch_score": share,
                        "skipped": score.skipped, "rate": rate}));
                }
            }
            Event::Pass { epoch, loss, score, held_out, .. } => self.passes.push(Pass {
                stage: self.stage.clone(),
                epoch,
                loss: loss.into(),
                score: score.into(),
                held_out,
            }),
            Event::Step(_) => {}
            Event::Done { index, outcome, time } => {
                self.bar.finish_and_clear();
                let seconds = time.as_secs_f64();
                let last = usize::from(outcome.last);
                let (stage, epochs) = (self.stage.clone(), outcome.epochs);
                let (bytes, prefix) = (self.bytes, self.prefix);
                self.costs.push(Cost { stage, last, seconds, bytes, epochs, prefix });
                if self.json {
                    self.emit(&json!({"event": "stage_done", "index": index,
                        "epochs": outcome.epochs, "updates": outcome.updates,
                        "loss": outcome.loss, "score": outcome.score, "seconds": seconds}));
                } else if outcome.updates > 0 {
                    self.line(&format!(
                        "{}: {} passes, loss {:.4}, within batches {:.1} %, {seconds:.1} s",
                        self.stage,
                        outcome.epochs,
                        outcome.loss,
                        outcome.score * 100.0
                    ));
                } else {
                    self.line(&format!("{}: {seconds:.1} s", self.stage));
                }
            }
        }
        self.wish()
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
        if let Some(Checkpoints { path, identity, text, .. }) = &self.checkpoints {
            file::save_checkpoint(path, self.net, snapshot, *identity, text)?;
            self.saved = Instant::now();
        }
        Ok(())
    }

    fn judge(&mut self, now: Now<'_>, stage: &Stage<'_>) -> Result<Option<f32>, WatchError> {
        let Some(HeldOut { set, bank, device }) = &self.held_out else { return Ok(None) };
        if stage.recipe.objective.loss().is_none() {
            return Ok(None);
        }
        let last = usize::from(stage.last);
        let weights = now.weights()?;
        let model = Model { net: self.net, weights: Weights::Flat(&weights) };
        let features = |mut set: &Dataset| Features::new(*device, &model, &mut set, last);
        let (set, bank) = (features(set)?.unit(), features(bank)?.unit());
        let si = set.cross_si(*device, &bank)?.value().map(|si| si as f32);
        if let Some(si) = si {
            self.line(&format!("{}: held-out SI {:.1} %", self.stage, si * 100.0));
        }
        Ok(si)
    }
}

/// Watches a run that is only measured against: Ctrl-C ends it.
pub struct Quiet;

impl Watch for Quiet {
    fn event(&mut self, _: &Event<'_>) -> Wish {
        if stop::wished() { Wish::Stop } else { Wish::Go }
    }
}
