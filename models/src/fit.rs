//! The host's trainer: runs a strategy stage by stage on any backend, keeps what frozen layers
//! give, and can be stopped and resumed between any two steps.

use std::time::{Duration, Instant};

use sepal_core::arena::{ArenaError, Layout, Slot, Word};
use sepal_core::backend::{self, Backend, Device, Host, HostMut};
use sepal_core::error::Error;
use sepal_core::net::{Model, Net, Weights};
use sepal_core::plan::PlanError;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Outcome, Stage};
use sepal_core::strategy::Strategy;
use sepal_core::train::{Feed, Progress, Session, StagePlan, Step};

use crate::cache::{Budget, Cache, Choice, Prefix, Store};
use crate::features::lend;
use crate::file::FileError;

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A stage begins, or goes on after a resume.
    Stage {
        /// Its number.
        index: usize,
        /// What it trains.
        stage: &'a Stage<'a>,
        /// Bytes of its arena.
        bytes: usize,
        /// Updates in each pass.
        steps: u32,
        /// Updates done before.
        done: u32,
        /// How samples come through the frozen layers; `None` where there are none.
        prefix: Option<&'a Prefix>,
    },
    /// One step of it.
    Step(&'a Step),
    /// A pass over the data is over; its last step was told before.
    Pass {
        /// Passes done in this stage, so from 1.
        epoch: u16,
        /// The mean loss of its steps.
        loss: f32,
        /// SI within its batches, or the share classified rightly.
        score: f32,
        /// The rate of its last step.
        rate: f32,
        /// The held-out SI that the watcher judged.
        held_out: Option<f32>,
        /// How long its steps took in this run.
        time: Duration,
    },
    /// It is over.
    Done {
        /// Its number.
        index: usize,
        /// What came of it.
        outcome: &'a Outcome,
        /// How long its steps took in this run.
        time: Duration,
    },
}

/// What a watcher wants next; the later of these is the stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Go on.
    Go,
    /// Take a snapshot, then go on.
    Snapshot,
    /// Take a snapshot, then stop.
    Stop,
}

/// A stage under way.
#[derive(Clone, Debug, PartialEq)]
pub struct Underway {
    /// How far it has come.
    pub progress: Progress,
    /// The slots of [`Session::state`].
    pub state: [Vec<f32>; 4],
}

/// Everything that a resumed run needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The net's weights, flat.
    pub weights: Vec<f32>,
    /// What came of the stages that are over.
    pub outcomes: Vec<Outcome>,
    /// The stage under way; `None` between two stages.
    pub underway: Option<Underway>,
}

/// Why a watcher ends a run.
pub type WatchError = Box<dyn std::error::Error + Send + Sync>;

/// Watches a run: is told every event, and takes the snapshots that it wished for. Watchers that only
/// look on hold another that decides, and hand everything on to it.
pub trait Watch {
    /// Something happened.
    fn event(&mut self, event: &Event<'_>) -> Wish {
        let _ = event;
        Wish::Go
    }

    /// A snapshot that was wished for.
    ///
    /// # Errors
    /// What went wrong while it was saved: the run ends.
    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
        let _ = snapshot;
        Ok(())
    }

    /// The held-out SI after a pass, where the watcher judges one; see
    /// [`Stop`](sepal_core::stage::Stop). `now` gives the net as it is now.
    ///
    /// # Errors
    /// What went wrong: the run ends.
    fn judge(&mut self, now: Now<'_>, stage: &Stage<'_>) -> Result<Option<f32>, WatchError> {
        let _ = (now, stage);
        Ok(None)
    }
}

impl Watch for () {}

impl<W: Watch> Watch for &mut W {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        (**self).event(event)
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
        (**self).snapshot(snapshot)
    }

    fn judge(&mut self, now: Now<'_>, stage: &Stage<'_>) -> Result<Option<f32>, WatchError> {
        (**self).judge(now, stage)
    }
}

/// The net as a stage has made it so far. Its weights are copied for whoever asks for them.
pub struct Now<'a> {
    net: Net<'a>,
    weights: &'a [f32],
    store: &'a mut dyn FnMut(&mut [f32]) -> Result<(), Error>,
}

impl Now<'_> {
    /// The net's weights, flat: for a [`Model`] of the same net.
    ///
    /// # Errors
    /// A backend that failed.
    pub fn weights(self) -> Result<Vec<f32>, Error> {
        let mut weights = self.weights.to_vec();
        (self.store)(&mut weights)?;
        Ok(weights)
    }

    /// The net.
    pub const fn net(&self) -> Net<'_> {
        self.net
    }
}

impl std::fmt::Debug for Now<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Now").finish_non_exhaustive()
    }
}

/// Why a run ended before its strategy did.
#[derive(Debug)]
pub enum FitError {
    /// A step failed.
    Run(Error),
    /// The file of what frozen layers gave could not be written or read.
    Spill(FileError),
    /// The watcher failed.
    Watch(WatchError),
    /// The watcher wished to stop.
    Stopped,
}

impl std::fmt::Display for FitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Run(e) => e.fmt(f),
            Self::Spill(e) => e.fmt(f),
            Self::Watch(e) => e.fmt(f),
            Self::Stopped => write!(f, "the run was stopped"),
        }
    }
}

impl std::error::Error for FitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Run(e) => Some(e),
            Self::Spill(e) => Some(e),
            Self::Watch(e) => Some(&**e),
            Self::Stopped => None,
        }
    }
}

impl<E: Into<Error>> From<E> for FitError {
    fn from(e: E) -> Self {
        Self::Run(e.into())
    }
}

/// A run of a strategy.
///
/// ```
/// use sepal_core::reference::OnReference;
/// use sepal_models::{cache::Budget, fit::Fit, lenet::LENET, recipe};
/// # #[cfg(feature = "bundled")] {
/// let mut images = sepal_models::data::bundled().train.head(256)?;
/// let (mut fit, budget) = (Fit::new(LENET, 0)?, Budget::default());
/// fit.run(&OnReference, &recipe::forward_si(1, 1), &mut images, &budget, &mut ())?;
/// assert_eq!(fit.outcomes().len(), 3); // two blocks and the classifier
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Fit<'n> {
    net: Net<'n>,
    seed: u64,
    weights: Vec<f32>,
    outcomes: Vec<Outcome>,
    underway: Option<Underway>,
}

impl<'n> Fit<'n> {
    /// A run from freshly drawn weights.
    ///
    /// # Errors
    /// Layers that do not fit each other.
    pub fn new(net: Net<'n>, seed: u64) -> Result<Self, PlanError> {
        net.check()?;
        let mut weights = vec![0.0; net.params(net.layers.len())?];
        sepal_core::init::weights(&net, seed, &mut weights);
        Ok(Self { net, seed, weights, outcomes: Vec::new(), underway: None })
    }

    /// A run that goes on where `snapshot` was taken.
    ///
    /// # Errors
    /// A snapshot of another net.
    pub fn resume(net: Net<'n>, seed: u64, snapshot: Snapshot) -> Result<Self, Error> {
        net.check()?;
        let expected = net.params(net.layers.len())?;
        let Snapshot { weights, outcomes, underway } = snapshot;
        if weights.len() != expected {
            return Err(Error::Weights { layer: 0, expected, got: weights.len() });
        }
        Ok(Self { net, seed, weights, outcomes, underway })
    }

    /// The net as it is now.
    pub fn model(&self) -> Model<'_> {
        Model { net: self.net, weights: Weights::Flat(&self.weights) }
    }

    /// What came of the stages that are over.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Runs to the end of the strategy.
    ///
    /// `budget` says what of the output of frozen layers is kept, and where: see
    /// [`cache`](crate::cache). A resumed run is given the budget of the one that it goes on with.
    ///
    /// # Errors
    /// A step or the watcher failed, or it wished to stop; a file that the budget asks for cannot
    /// be written or read. Stages that are over are kept, and after a wish to stop the one under
    /// way too; a stage that failed begins anew.
    pub fn run<D: Device, S: Source, W: Watch>(
        &mut self,
        device: &D,
        strategy: &impl Strategy,
        source: &mut S,
        budget: &Budget,
        watch: &mut W,
    ) -> Result<(), FitError> {
        budget.check().map_err(FitError::Spill)?;
        let (mut cache, mut memory): (Option<Cache>, _) = (None, Vec::new());
        while let Some(stage) = strategy.next(&self.net, &self.outcomes) {
            let (began, first) = (Instant::now(), usize::from(stage.first));
            let depths = self.depths(device, strategy, source, budget)?;
            self.refill(device, &mut memory, source, budget, &mut cache, &depths)?;
            let depth = cache.as_ref().map_or(source.depth(), Source::depth);
            let choice = cache.as_ref().map_or(Choice::RECOMPUTED, Cache::choice);
            let prefix = Prefix { choice, depth, time: began.elapsed() };
            let prefix = (first > source.depth()).then_some(&prefix);
            match &mut cache {
                Some(cache) => {
                    let mut kept = Kept { cache, source };
                    let done = self.stage(device, &mut memory, stage, &mut kept, prefix, watch);
                    done.map_err(|e| explain(e, cache))?;
                }
                None => self.stage(device, &mut memory, stage, source, prefix, watch)?,
            }
        }
        Ok(())
    }

    /// The depths of the caches that lead to the one of the next stage, each filled from the one
    /// before. All stages so far say which, so that a resumed run takes the same way.
    fn depths<D: Device, S: Source>(
        &self,
        device: &D,
        strategy: &impl Strategy,
        source: &S,
        budget: &Budget,
    ) -> Result<Vec<usize>, Error> {
        let mut caches: Vec<(usize, Choice)> = Vec::new();
        for done in 0..=self.outcomes.len() {
            let done = self.outcomes.get(..done).unwrap_or_default();
            let Some(stage) = strategy.next(&self.net, done) else { continue };
            let first = usize::from(stage.first);
            // A stage that trains layers in front of a cache makes others of them; one that writes
            // labels into samples reads them raw.
            let raw = stage.recipe.objective.written().is_some();
            if raw || caches.last().is_some_and(|&(depth, _)| depth > first) {
                caches.clear();
            }
            if raw {
                continue;
            }
            let layout = backend::layout(&device.open(&mut [])?, &self.net, first)?;
            let dim = layout.elements(self.net.shape(first)?).unwrap_or(0) as usize;
            let choice = budget.choose(dim, source.len());
            let there = caches.last().map_or(source.depth(), |&(depth, _)| depth);
            if first > there && choice.store != Store::Recomputed {
                if caches.last().is_some_and(|&(_, last)| !budget.holds(last, choice)) {
                    caches.clear();
                }
                caches.push((first, choice));
            }
        }
        Ok(caches.into_iter().map(|(depth, _)| depth).collect())
    }

    /// Fills the caches at `depths`, each from the one before, unless they are there; none where there
    /// are none.
    fn refill<D: Device, S: Source>(
        &self,
        device: &D,
        memory: &mut Vec<Word>,
        source: &mut S,
        budget: &Budget,
        cache: &mut Option<Cache>,
        depths: &[usize],
    ) -> Result<(), FitError> {
        let there = cache.as_ref().map(Source::depth);
        let there = depths.iter().position(|&depth| Some(depth) == there);
        if there.is_none() {
            *cache = None;
        }
        for &depth in depths.iter().skip(there.map_or(0, |at| at + 1)) {
            let (model, seed) = (self.model(), self.seed);
            *cache = match cache {
                Some(from) => Cache::fill_in(device, memory, &model, from, depth, budget, seed)
                    .map_err(|e| explain(e, from))?,
                None => Cache::fill_in(device, memory, &model, source, depth, budget, seed)?,
            };
        }
        Ok(())
    }

    fn stage<D: Device, S: Source, W: Watch>(
        &mut self,
        device: &D,
        memory: &mut Vec<Word>,
        stage: Stage<'_>,
        source: &mut S,
        prefix: Option<&Prefix>,
        watch: &mut W,
    ) -> Result<(), FitError> {
        let plan = {
            let backend = device.open(&mut [])?;
            let feed = Feed { chunk: device.chunk(), queue: backend.queue(), ..Feed::of(source) };
            StagePlan::new(&backend, &self.net, &stage, feed)?
        };
        let mut backend = device.open(lend(memory, plan.bytes())?)?;
        let index = self.outcomes.len();
        let mut session = Session::new(self.net, stage, plan, self.seed, index as u16);
        session.load(&mut backend, &self.model())?;
        if let Some(Underway { progress, state }) = self.underway.take() {
            session.resume(progress);
            for (slot, numbers) in session.state().into_iter().zip(&state) {
                restore(&mut backend, slot, numbers)?;
            }
        }
        let (steps, done) = (session.steps(source.len()), session.progress().updates);
        let event = Event::Stage { index, stage: &stage, bytes: plan.bytes(), steps, done, prefix };
        let mut wish = watch.event(&event);
        let (mut time, mut pass) = (Duration::ZERO, Duration::ZERO);
        loop {
            if wish != Wish::Go {
                let underway = underway(&session, &mut backend)?;
                let [trained, measured, ..] = &underway.state;
                finite(&session, &stage, trained.iter().chain(measured))?;
                self.underway = Some(underway);
                watch.snapshot(&self.snapshot()).map_err(FitError::Watch)?;
                if wish == Wish::Stop {
                    return Err(FitError::Stopped);
                }
                self.underway = None;
            }
            let began = Instant::now();
            let step = session.step(&mut backend, &self.model(), source)?;
            let took = began.elapsed();
            (time, pass) = (time + took, pass + took);
            let mut ended = None;
            if let Step::Trained { epoch_ends: true, rate, .. } = step {
                let store = &mut |weights: &mut [f32]| session.store(&mut backend, weights);
                let now = Now { net: self.net, weights: &self.weights, store };
                let held_out = watch.judge(now, &stage).map_err(FitError::Watch)?;
                if let Some(si) = held_out {
                    session.judge(si);
                }
                let Progress { epoch, last: (loss, score), .. } = *session.progress();
                let time = std::mem::take(&mut pass);
                ended = Some(Event::Pass { epoch, loss, score, rate, held_out, time });
            }
            if step == Step::Done {
                break;
            }
            wish = watch.event(&Event::Step(&step));
            if let Some(pass) = ended {
                wish = wish.max(watch.event(&pass));
            }
        }
        let mut weights = self.weights.clone();
        session.store(&mut backend, &mut weights)?;
        finite(&session, &stage, &weights)?;
        self.weights = weights;
        let outcome = session.outcome();
        self.outcomes.push(outcome);
        match watch.event(&Event::Done { index, outcome: &outcome, time }) {
            Wish::Go => Ok(()),
            wish => {
                watch.snapshot(&self.snapshot()).map_err(FitError::Watch)?;
                if wish == Wish::Stop { Err(FitError::Stopped) } else { Ok(()) }
            }
        }
    }

    /// Everything that a resumed run needs.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            weights: self.weights.clone(),
            outcomes: self.outcomes.clone(),
            underway: self.underway.clone(),
        }
    }
}

/// A cache in batches that the source it is of chooses.
struct Kept<'a, S> {
    cache: &'a mut Cache,
    source: &'a S,
}

impl<S: Source> Source for Kept<'_, S> {
    fn len(&self) -> u32 {
        Source::len(self.cache)
    }

    fn shape(&self) -> Shape {
        Source::shape(self.cache)
    }

    fn is_u8(&self) -> bool {
        self.cache.is_u8()
    }

    fn depth(&self) -> usize {
        self.cache.depth()
    }

    fn layout(&self) -> Layout {
        Source::layout(self.cache)
    }

    fn pick(&self, draw: Draw, batch: u32, first: u32, indices: &mut [u32]) {
        self.source.pick(draw, batch, first, indices);
    }

    fn read(
        &mut self,
        indices: &[u32],
        draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        self.cache.read(indices, draw, batch, labels)
    }
}

/// What a failed read of the cache was, in place of its code.
fn explain(error: FitError, cache: &mut Cache) -> FitError {
    match (error, cache.failure()) {
        (FitError::Run(Error::Source(SourceError::Read { .. })), Some(e)) => FitError::Spill(e),
        (error, _) => error,
    }
}

/// Refuses parameters that an update made infinite or no number, before they take the place of a
/// snapshot that was good.
fn finite<'a>(
    session: &Session<'_>,
    stage: &Stage<'_>,
    numbers: impl IntoIterator<Item = &'a f32>,
) -> Result<(), Error> {
    if numbers.into_iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    let Progress { stage: index, updates, .. } = *session.progress();
    Err(Error::Diverged { stage: index, layer: stage.first, update: updates.saturating_sub(1) })
}

fn underway<B: Backend>(session: &Session<'_>, backend: &mut B) -> Result<Underway, Error> {
    let mut state = [const { Vec::new() }; 4];
    for (slot, numbers) in session.state().into_iter().zip(&mut state) {
        numbers.resize(slot.elements(), 0.0);
        if !slot.is_empty() {
            backend.read(slot, HostMut::F32(numbers))?;
        }
    }
    Ok(Underway { progress: *session.progress(), state })
}

fn restore<B: Backend>(backend: &mut B, slot: Slot, numbers: &[f32]) -> Result<(), Error> {
    if slot.elements() != numbers.len() {
        return Err(ArenaError::Length { slot: slot.elements(), host: numbers.len() }.into());
    }
    if slot.is_empty() { Ok(()) } else { backend.write(slot, Host::F32(numbers)) }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;
    use std::path::Path;

    use super::*;
    use crate::cache::{Keep, Precision, Spill};
    use crate::features::Features;
    use crate::recipe;
    use sepal_core::layer::{BatchNorm, Dense, Flatten, Layer, RELU, Standardise};
    use sepal_core::net::{Input, Normalisation};
    use sepal_core::optim::Rule;
    use sepal_core::reference::OnReference;
    use sepal_core::stage::Cut;
    use sepal_core::stage::{Objective, Recipe, Stop};
    use sepal_core::strategy::{Classifier, ForwardSi, Window};

    /// Two classes that differ in their first number, in batches of its own.
    struct Two;

    impl Source for Two {
        fn len(&self) -> u32 {
            32
        }

        fn shape(&self) -> Shape {
            Shape::rows(1, 3)
        }

        fn is_u8(&self) -> bool {
            false
        }

        fn pick(&self, draw: Draw, batch: u32, first: u32, indices: &mut [u32]) {
            for (place, index) in (first..).zip(indices) {
                *index = (draw.step * batch + place + draw.epoch) * 5 % self.len();
            }
        }

        fn read(
            &mut self,
            indices: &[u32],
            _: Option<Draw>,
            batch: Batch<'_>,
            labels: &mut [u16],
        ) -> Result<(), SourceError> {
            let Batch::F32(x) = batch else {
                return Err(SourceError::Batch { expected: 0, got: 0 });
            };
            for ((x, label), &i) in x.chunks_exact_mut(3).zip(labels).zip(indices) {
                *label = (i % 2) as u16;
                x.copy_from_slice(&[(i % 2) as f32, (i % 5) as f32, (i % 7) as f32]);
            }
            Ok(())
        }
    }

    /// Blocks in the order given.
    struct Order(&'static [usize]);

    impl Strategy for Order {
        fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
            let (first, last) = net.block(*self.0.get(done.len())?)?;
            let recipe = Recipe { batch: 8, head: &[], ..recipe::block(1) };
            Some(Stage {
                first: first as u16,
                last: last as u16,
                calibrate: true,
                cut: Cut::Whole,
                recipe,
            })
        }
    }

    /// Keeps the last snapshot of a run that is snapped before every step.
    struct Last(Option<Snapshot>);

    impl Watch for Last {
        fn event(&mut self, _: &Event<'_>) -> Wish {
            Wish::Snapshot
        }

        fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
            self.0 = Some(snapshot.clone());
            Ok(())
        }
    }

    /// Notes what each pass was, beside the sums of its steps.
    #[derive(Default)]
    struct Passes {
        steps: (u32, f32),
        told: Vec<(u16, f32, f32, Option<f32>)>,
        judged: u16,
    }

    impl Watch for Passes {
        fn event(&mut self, event: &Event<'_>) -> Wish {
            match *event {
                Event::Step(&Step::Trained { score, .. }) => {
                    self.steps = (self.steps.0 + 1, self.steps.1 + score.value);
                }
                Event::Pass { epoch, loss, score, held_out, .. } => {
                    let (steps, sum) = std::mem::take(&mut self.steps);
                    assert!((loss - sum / steps as f32).abs() < 1e-6, "{loss}");
                    self.told.push((epoch, loss, score, held_out));
                }
                Event::Done { outcome, .. } => {
                    let (epoch, loss, score, _) = *self.told.last().unwrap();
                    assert_eq!((epoch, loss, score), (outcome.epochs, outcome.loss, outcome.score));
                }
                _ => {}
            }
            Wish::Go
        }

        fn judge(&mut self, _: Now<'_>, _: &Stage<'_>) -> Result<Option<f32>, WatchError> {
            self.judged += 1;
            Ok(self.judged.is_multiple_of(2).then_some(f32::from(self.judged)))
        }
    }

    #[test]
    fn each_pass_is_told_with_its_means() {
        let (mut fit, budget) = (Fit::new(NET, 3).unwrap(), Budget::default());
        let mut passes = Passes::default();
        fit.run(&OnReference, &strategy(), &mut Two, &budget, &mut passes).unwrap();
        let told = passes.told.iter().map(|&(epoch, _, _, held_out)| (epoch, held_out));
        let expected = (1..=4).flat_map(|stage: u16| [(1, None), (2, Some(f32::from(2 * stage)))]);
        assert!(told.eq(expected), "{:?}", passes.told);
    }

    /// Judges each pass of a block by the next of some numbers, and notes how many passes stages took.
    struct Judges(std::vec::IntoIter<f32>, Vec<(u16, f32)>);

    impl Watch for Judges {
        fn event(&mut self, event: &Event<'_>) -> Wish {
            if let Event::Done { outcome, .. } = event {
                self.1.push((outcome.epochs, outcome.held_out));
            }
            Wish::Go
        }

        fn judge(&mut self, _: Now<'_>, stage: &Stage<'_>) -> Result<Option<f32>, WatchError> {
            Ok(if stage.recipe.objective.loss().is_some() { self.0.next() } else { None })
        }
    }

    /// A block ends when held-out SI has not risen by more than the least rise for more passes than are borne,
    /// and only then; the others go on, and so does a block that nobody judges.
    #[test]
    fn a_block_ends_where_separation_stops_rising() {
        let run = |patience, judged: Vec<f32>| {
            let stop = Stop::SiPlateau { patience, min_delta: 0.1 };
            let block = Recipe { batch: 8, stop, ..recipe::block(5) };
            let classifier = Recipe { batch: 8, ..recipe::classifier(2) };
            let strategy = ForwardSi { block, classifier, ..recipe::forward_si(0, 0) };
            let mut judges = Judges(judged.into_iter(), Vec::new());
            let mut fit = Fit::new(NET, 3).unwrap();
            fit.run(&OnReference, &strategy, &mut Two, &Budget::default(), &mut judges).unwrap();
            judges.1
        };
        // 0.55 is a rise too small. The second block rises at each pass, the third after one that did not.
        let first = [0.5, 0.55];
        let (second, third) = ([0.1, 0.3, 0.5, 0.7, 0.9], [0.4, 0.4]);
        let judged = [&first[..], &second, &third].concat();
        let none = -1.0;
        assert_eq!(run(0, judged), [(2, 0.5), (5, 0.9), (2, 0.4), (2, none)]);
        let third = [0.4, 0.4, 0.6, 0.6, 0.6];
        let judged = [&[0.5, f32::NAN, 0.5][..], &second, &third].concat();
        assert_eq!(run(1, judged), [(3, 0.5), (5, 0.9), (5, 0.6), (2, none)]);
        assert_eq!(run(0, vec![]), [(5, none), (5, none), (5, none), (2, none)]);
    }

    /// The first update makes weights that overflow in the next pass, or that are infinite already.
    #[test]
    fn a_run_that_diverges_is_named_and_its_last_snapshot_is_good() {
        let decay = Rule::Sgd { momentum: 0.0, nesterov: false, weight_decay: 1.0 };
        for rule in [Rule::adam(), decay] {
            let (bad, budget) = (strategy_of(rule, f32::MAX), Budget::default());
            let (mut fit, mut last) = (Fit::new(NET, 0).unwrap(), Last(None));
            let error = fit.run(&OnReference, &bad, &mut Two, &budget, &mut last).unwrap_err();
            let named = |error: &FitError| {
                matches!(error, FitError::Run(Error::Diverged { stage: 3, layer: 6, .. }))
            };
            assert!(named(&error), "{error}");
            let snapshot = last.0.unwrap();
            assert_eq!(snapshot.outcomes.len(), 3, "the blocks before are kept");
            let state = snapshot.underway.iter().flat_map(|u| &u.state[..2]).flatten();
            assert!(snapshot.weights.iter().chain(state).all(|x| x.is_finite()));
            let mut fit = Fit::resume(NET, 0, snapshot).unwrap();
            let again = fit.run(&OnReference, &bad, &mut Two, &budget, &mut ()).unwrap_err();
            assert!(named(&again), "{again}");
        }
    }

    /// So are batches: those of the source, whether features are kept or not.
    #[test]
    fn a_block_that_is_trained_again_leaves_no_old_features() {
        let layers = [
            Layer::Dense(Dense::new(4)),
            Layer::BatchNorm(BatchNorm::new()),
            RELU,
            Layer::Dense(Dense::new(3)),
            RELU,
            Layer::Flatten(Flatten),
        ];
        let input = Input { shape: Shape::rows(1, 3), normalisation: Normalisation::NONE };
        let net = Net { input, layers: &layers, blocks: &[3, 6], features: 2 };
        let weights = |keep| {
            let mut fit = Fit::new(net, 3).unwrap();
            let budget = Budget { keep, ..Budget::default() };
            fit.run(&OnReference, &Order(&[0, 1, 0, 1]), &mut Two, &budget, &mut ()).unwrap();
            assert_eq!(fit.outcomes().len(), 4);
            fit.weights
        };
        assert_eq!(weights(Keep::Plain), weights(Keep::Nothing));
    }

    const LAYERS: [Layer; 8] = [
        Layer::Dense(Dense::new(4)),
        RELU,
        Layer::Dense(Dense::new(6)),
        RELU,
        Layer::Dense(Dense::new(5)),
        RELU,
        Layer::Standardise(Standardise),
        Layer::Dense(Dense::new(2)),
    ];
    const NET: Net<'static> = Net {
        input: Input { shape: Shape::rows(1, 3), normalisation: Normalisation::NONE },
        layers: &LAYERS,
        blocks: &[2, 4, 6, 8],
        features: 3,
    };

    fn budget(memory: u64, narrow: bool, folder: Option<&Path>) -> Budget {
        let spill = folder.map(|folder| Spill { folder: folder.to_owned(), limit: 1 << 20 });
        Budget { keep: Keep::Plain, memory, narrow, spill }
    }

    /// Notes the prefix of each stage, and stops before step `until` of the run.
    struct Noting {
        prefixes: Vec<Option<(usize, Choice)>>,
        until: usize,
    }

    impl Watch for Noting {
        fn event(&mut self, event: &Event<'_>) -> Wish {
            if let Event::Stage { prefix, .. } = event {
                self.prefixes.push(prefix.map(|prefix| (prefix.depth, prefix.choice)));
            }
            self.until = self.until.saturating_sub(1);
            if self.until == 0 { Wish::Stop } else { Wish::Go }
        }
    }

    fn strategy() -> impl Strategy {
        strategy_of(Rule::adam(), 1e-3)
    }

    /// With another rule and rate of the classifier.
    fn strategy_of(rule: Rule, rate: f32) -> impl Strategy {
        let block = Recipe { batch: 8, ..recipe::block(2) };
        let classifier = Recipe { batch: 8, rule, rate, ..recipe::classifier(2) };
        ForwardSi { block, classifier, form: Classifier::Whole, heads: &[], window: Window::ONE }
    }

    /// The weights of a run, and the caches that its stages had.
    fn trained<S: Source>(source: &mut S, budget: &Budget) -> (Vec<f32>, Vec<Option<Choice>>) {
        let mut fit = Fit::new(NET, 3).unwrap();
        let mut noting = Noting { prefixes: Vec::new(), until: usize::MAX };
        fit.run(&OnReference, &strategy(), source, budget, &mut noting).unwrap();
        let choices = noting.prefixes.into_iter().map(|prefix| prefix.map(|(_, choice)| choice));
        (fit.weights, choices.collect())
    }

    #[test]
    fn every_store_of_f32_gives_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let stores = |choices: &[Option<Choice>]| -> Vec<Option<Store>> {
            choices.iter().map(|choice| choice.map(|choice| choice.store)).collect()
        };
        let (weights, choices) = trained(&mut Two, &budget(1 << 20, false, None));
        let all = |store| vec![None, Some(store), Some(store), Some(store)];
        assert_eq!(stores(&choices), all(Store::Memory(Precision::F32)));
        // Rows of 4, 6 and 5 numbers.
        let bytes = choices.iter().map(|choice| choice.map_or(0, |choice| choice.bytes));
        assert!(bytes.eq([0, 512, 768, 640]));
        for (limits, stores_then) in [
            (budget(0, false, None), all(Store::Recomputed)),
            (budget(0, false, Some(folder.path())), all(Store::File(Precision::F32))),
        ] {
            let (other, choices) = trained(&mut Two, &limits);
            assert_eq!(stores(&choices), stores_then);
            assert_eq!(other, weights);
        }
        // Each cache alone fits, no two do; the second stage's does not fit at all.
        for memory in [640, 768] {
            assert_eq!(trained(&mut Two, &budget(memory, false, None)).0, weights, "{memory}");
        }
    }

    #[test]
    fn f16_is_near_f32() {
        let exact = trained(&mut Two, &budget(1 << 20, false, None)).0;
        let folder = tempfile::tempdir().unwrap();
        // Rows of 12, 16 and 14 bytes for 32 samples.
        let (narrow, choices) = trained(&mut Two, &budget(511, true, None));
        let stores = choices.iter().map(|choice| choice.map(|choice| (choice.store, choice.bytes)));
        let rows = |dim: u64| Some((Store::Memory(Precision::F16), 32 * (dim * 2 + 4)));
        // Six numbers take 512: not there, so the layers between are run for each batch.
        assert!(stores.eq([None, rows(4), rows(4), rows(5)]));
        let apart = exact.iter().zip(&narrow).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart > 0.0 && apart < 1e-2, "{apart}");
        let limits = Budget {
            spill: Some(Spill { folder: folder.path().to_owned(), limit: 511 }),
            ..budget(0, true, None)
        };
        assert_eq!(trained(&mut Two, &limits).0, narrow);
    }

    #[test]
    fn a_run_that_is_cut_anywhere_has_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let budgets = [
            budget(1 << 20, true, None),
            budget(640, true, None),
            budget(600, true, None),
            budget(480, true, Some(folder.path())),
            budget(0, true, Some(folder.path())),
            budget(0, true, None),
        ];
        for limits in budgets {
            let expected = trained(&mut Two, &limits).0;
            let mut ended = false;
            for until in (1..).step_by(3).take_while(|until| *until < 100) {
                let mut fit = Fit::new(NET, 3).unwrap();
                let mut noting = Noting { prefixes: Vec::new(), until };
                match fit.run(&OnReference, &strategy(), &mut Two, &limits, &mut noting) {
                    Err(FitError::Stopped) => {}
                    other => {
                        other.unwrap();
                        ended = true;
                        break;
                    }
                }
                let mut fit = Fit::resume(NET, 3, fit.snapshot()).unwrap();
                fit.run(&OnReference, &strategy(), &mut Two, &limits, &mut ()).unwrap();
                assert_eq!(fit.weights, expected, "{limits:?} cut at {until}");
            }
            assert!(ended);
        }
    }

    /// Blocks that read labels in raw samples take nothing from a cache, whatever was kept before them;
    /// the classifier behind them has one, and a run that is cut has the same bits.
    #[test]
    fn labels_that_are_written_keep_no_features() {
        /// The first two blocks by SI, the third by goodness, the classifier.
        struct Mixed;

        impl Strategy for Mixed {
            fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
                let written = Objective::Goodness { threshold: 1.0, classes: 2 };
                let block = Recipe { batch: 8, head: &[], ..recipe::block(2) };
                let recipe = match done.len() {
                    0 | 1 => block,
                    2 => Recipe { objective: written, ..block },
                    _ => Recipe { batch: 8, ..recipe::classifier(2) },
                };
                let (first, last) = net.block(done.len())?;
                let (first, last) = (first as u16, last as u16);
                Some(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe })
            }
        }

        let run = |limits: &Budget, until, from: Option<Snapshot>| {
            let mut fit = match from {
                Some(snapshot) => Fit::resume(NET, 3, snapshot).unwrap(),
                None => Fit::new(NET, 3).unwrap(),
            };
            let mut noting = Noting { prefixes: Vec::new(), until };
            match fit.run(&OnReference, &Mixed, &mut Two, limits, &mut noting) {
                Err(FitError::Stopped) => {}
                other => other.unwrap(),
            }
            (fit.snapshot(), noting)
        };
        for limits in [budget(1 << 20, false, None), budget(480, true, None)] {
            let (whole, noting) = run(&limits, usize::MAX, None);
            let depths = noting.prefixes.iter().map(|p| p.map(|(depth, _)| depth));
            assert!(depths.eq([None, Some(2), Some(0), Some(6)]), "{:?}", noting.prefixes);
            assert_eq!(noting.prefixes[2].map(|(_, choice)| choice), Some(Choice::RECOMPUTED));
            let events = usize::MAX - noting.until;
            for until in 1..events {
                let (cut, _) = run(&limits, until, None);
                let (resumed, _) = run(&limits, usize::MAX, Some(cut));
                assert!(resumed == whole, "{limits:?} cut at {until} of {events}");
            }
        }
        let mut fit = Fit::new(NET, 3).unwrap();
        let mut depth = Features::new(&OnReference, &fit.model(), &mut Two, 2).unwrap();
        fit.outcomes = vec![Outcome::default(); 2];
        let refused = fit.run(&OnReference, &Mixed, &mut depth, &budget(0, false, None), &mut ());
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, FitError::Run(Error::Plan(PlanError::Raw { depth: 2 }))),
            "{refused}"
        );
    }

    /// Adds to every number what its sample and the pass say.
    struct Moved(Two);

    impl Source for Moved {
        fn len(&self) -> u32 {
            self.0.len()
        }

        fn shape(&self) -> Shape {
            self.0.shape()
        }

        fn is_u8(&self) -> bool {
            false
        }

        fn read(
            &mut self,
            indices: &[u32],
            draw: Option<Draw>,
            batch: Batch<'_>,
            labels: &mut [u16],
        ) -> Result<(), SourceError> {
            let Batch::F32(x) = batch else {
                return Err(SourceError::Batch { expected: 0, got: 0 });
            };
            self.0.read(indices, draw, Batch::F32(x), labels)?;
            let by = |index: u32, draw: Draw| ((index + 3 * draw.epoch) % 16) as f32 / 8.0;
            for (x, &index) in x.chunks_exact_mut(3).zip(indices) {
                x.iter_mut().for_each(|x| *x += draw.map_or(0.0, |draw| by(index, draw)));
            }
            Ok(())
        }
    }

    #[test]
    fn copies_are_the_same_in_each_pass_and_not_of_each_other() {
        let keep = Keep::Copies(NonZero::new(3).unwrap());
        let limits = |memory| Budget { keep, ..budget(memory, true, None) };
        let fit = Fit::new(NET, 3).unwrap();
        let read = |cache: &mut Cache, epoch| {
            let (mut rows, mut labels) = (vec![0.0; 32 * 4], vec![0; 32]);
            let indices: Vec<u32> = (0..32).collect();
            let draw = Some(Draw { seed: 7, epoch, step: 2 });
            cache.read(&indices, draw, Batch::F32(&mut rows), &mut labels).unwrap();
            assert!(labels.iter().zip(&indices).all(|(&label, i)| u32::from(label) == i % 2));
            rows
        };
        let model = fit.model();
        let fill = |limits: &Budget, source: &mut Moved| {
            Cache::fill(&OnReference, &model, source, 2, limits, 3).unwrap()
        };
        let mut cache = fill(&limits(3 * 512), &mut Moved(Two)).unwrap();
        assert_eq!(cache.choice().bytes, 3 * 512);
        let copies: Vec<Vec<f32>> = (0..3).map(|epoch| read(&mut cache, epoch)).collect();
        assert!(copies[0] != copies[1] && copies[1] != copies[2] && copies[2] != copies[0]);
        for epoch in 3..9 {
            assert_eq!(read(&mut cache, epoch), copies[epoch as usize % 3]);
        }
        // What frozen layers make of the sample as it is drawn in that pass.
        let mut one = Once(1);
        let drawn = Cache::fill(&OnReference, &model, &mut one, 2, &budget(512, false, None), 3);
        assert_eq!(read(&mut drawn.unwrap().unwrap(), 0), copies[1]);
        // One byte less is for f16, less than that for none.
        let narrow = 3 * 32 * (4 * 2 + 4);
        let store = |memory| fill(&limits(memory), &mut Moved(Two)).map(|cache| cache.choice());
        assert_eq!(store(3 * 512 - 1).unwrap().store, Store::Memory(Precision::F16));
        assert_eq!(store(narrow).unwrap().bytes, narrow);
        assert_eq!(store(narrow - 1), None);
        // One copy is a run of its own; so is drawing anew.
        let weights =
            |keep| trained(&mut Moved(Two), &Budget { keep, ..budget(1 << 20, false, None) }).0;
        let (three, none) = (weights(keep), weights(Keep::Nothing));
        assert!(three != none && three != weights(Keep::Copies(NonZero::<u32>::MIN)));
        assert_eq!(three, weights(keep));
    }

    /// Samples as they are drawn in one pass, without a draw.
    struct Once(u32);

    impl Source for Once {
        fn len(&self) -> u32 {
            Two.len()
        }

        fn shape(&self) -> Shape {
            Two.shape()
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
            let draw = Draw { epoch: self.0, ..Draw::default() };
            Moved(Two).read(indices, Some(draw), batch, labels)
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_named_before_anything_is_trained() {
        let folder = tempfile::tempdir().unwrap();
        let limits = budget(0, true, Some(&folder.path().join("missing")));
        let mut fit = Fit::new(NET, 3).unwrap();
        let mut noting = Noting { prefixes: Vec::new(), until: usize::MAX };
        let error = fit.run(&OnReference, &strategy(), &mut Two, &limits, &mut noting).unwrap_err();
        assert!(error.to_string().contains("missing: creating a file in it"), "{error}");
        assert!(noting.prefixes.is_empty() && fit.outcomes().is_empty());
    }
}
