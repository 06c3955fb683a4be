//! Checkpoints of a run, and what its stages take.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use sepal::models::file;
use sepal::models::fit::{Event, Snapshot, Watch, WatchError, Wish};
use sepal::net::Net;

use crate::results::Stage;
use crate::stop;

/// Watches a run. What its stages took is the text of its checkpoints, so that a resumed run
/// counts on.
pub struct Ledger<'a> {
    pub net: Net<'a>,
    pub path: PathBuf,
    pub identity: u64,
    pub every: Duration,
    /// Those that are over, and the one under way if one is.
    pub stages: Vec<Stage>,
    /// How many are over.
    pub over: usize,
    pub out: &'a mut dyn Write,
    pub saved: Instant,
    pub clock: ProcessTime,
    /// What this program runs on.
    pub machine: String,
    /// Why the output cannot be written: the run ends.
    pub broken: Option<io::Error>,
}

impl Ledger<'_> {
    /// Charges the CPU time since the last call to the stage under way.
    fn charge(&mut self) {
        let seconds = self.clock.elapsed().as_secs_f64();
        self.clock = ProcessTime::now();
        if let Some(stage) = self.stages.get_mut(self.over) {
            stage.cpu_seconds += seconds;
            if !stage.machines.contains(&self.machine) {
                stage.machines.push(self.machine.clone());
            }
        }
    }

    fn say(&mut self, text: &str) {
        let said = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
        self.broken = self.broken.take().or(said.err());
    }
}

impl Watch for Ledger<'_> {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        match *event {
            Event::Stage { index, stage, bytes, prefix, .. } => {
                self.over = index;
                let (first, last) = (usize::from(stage.first), usize::from(stage.last));
                let inside = |&&end: &&u16| first < usize::from(end) && usize::from(end) <= last;
                let blocks = self.net.blocks.iter().filter(inside).count().max(1);
                let cached_bytes = prefix.map_or(0, |prefix| prefix.choice.bytes);
                self.stages.truncate(index + 1);
                self.stages.resize_with(index + 1, Stage::default);
                if let Some(own) = self.stages.get_mut(index) {
                    let arena_bytes = bytes;
                    let before = std::mem::take(own);
                    *own = Stage { first, last, blocks, arena_bytes, cached_bytes, ..before };
                }
                self.charge();
            }
            Event::Step(_) | Event::Pass { .. } => {}
            Event::Done { index, outcome, .. } => {
                self.charge();
                self.over = index + 1;
                let Some(stage) = self.stages.get_mut(index) else { return Wish::Go };
                stage.epochs = outcome.epochs;
                let parts = f64::from(outcome.epochs.max(1)) * stage.blocks as f64;
                stage.cpu_seconds_per_epoch_and_layer = stage.cpu_seconds / parts;
                let Stage { first, last, cpu_seconds, .. } = *stage;
                let passes = outcome.epochs;
                self.say(&format!(
                    "  layers {first}..{last}: passes {passes}, {cpu_seconds:.2} CPU s"
                ));
            }
        }
        if stop::wished() || self.broken.is_some() {
            return Wish::Stop;
        }
        let due = self.saved.elapsed() >= self.every || matches!(event, Event::Done { .. });
        if due { Wish::Snapshot } else { Wish::Go }
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
        self.charge();
        let text = serde_json::to_string(&self.stages)?;
        file::save_checkpoint(&self.path, self.net, snapshot, self.identity, &text)?;
        self.saved = Instant::now();
        Ok(())
    }
}
