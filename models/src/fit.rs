//! The host's trainer: runs a strategy stage by stage on any backend, keeps what frozen layers
//! give, and can be stopped and resumed between any two steps.

use std::time::{Duration, Instant};

use sepal_core::arena::{ArenaError, Slot};
use sepal_core::backend::{Backend, Device, Host, HostMut};
use sepal_core::error::Error;
use sepal_core::net::{Model, Net, Weights};
use sepal_core::plan::PlanError;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Outcome, Stage};
use sepal_core::strategy::Strategy;
use sepal_core::train::{Feed, Progress, Session, StagePlan, Step};

use crate::features::{Features, allocate};

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
    },
    /// One step of it.
    Step(&'a Step),
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

/// What a watcher wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Watches a run: is told every event, and takes the snapshots that it wished for.
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
    /// [`Stop`](sepal_core::stage::Stop). `model` is the net as it is now.
    ///
    /// # Errors
    /// What went wrong: the run ends.
    fn judge(&mut self, model: &Model<'_>, stage: &Stage<'_>) -> Result<Option<f32>, WatchError> {
        let _ = (model, stage);
        Ok(None)
    }
}

impl Watch for () {}

/// Why a run ended before its strategy did.
#[derive(Debug)]
pub enum FitError {
    /// A step failed.
    Run(Error),
    /// The watcher failed.
    Watch(WatchError),
    /// The watcher wished to stop.
    Stopped,
}

impl std::fmt::Display for FitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Run(e) => e.fmt(f),
            Self::Watch(e) => e.fmt(f),
            Self::Stopped => write!(f, "the run was stopped"),
        }
    }
}

impl std::error::Error for FitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Run(e) => Some(e),
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
/// use sepal_models::fit::Fit;
/// use sepal_models::{lenet::LENET, recipe};
/// # #[cfg(feature = "bundled")] {
/// let mut images = sepal_models::data::bundled().train.head(256)?;
/// let mut fit = Fit::new(LENET, 0, 1 << 30)?;
/// fit.run(&OnReference, &recipe::forward_si(1, 1), &mut images, true, &mut ())?;
/// assert_eq!(fit.outcomes().len(), 3); // two blocks and the classifier
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Fit<'n> {
    net: Net<'n>,
    seed: u64,
    cache: usize,
    weights: Vec<f32>,
    outcomes: Vec<Outcome>,
    underway: Option<Underway>,
}

impl<'n> Fit<'n> {
    /// A run from freshly drawn weights. `cache` is how many bytes the features of frozen layers
    /// may take; where they take more, frozen layers run again for every batch.
    ///
    /// # Errors
    /// Layers that do not fit each other.
    pub fn new(net: Net<'n>, seed: u64, cache: usize) -> Result<Self, PlanError> {
        net.check()?;
        let mut weights = vec![0.0; net.params(net.layers.len())?];
        sepal_core::init::weights(&net, seed, &mut weights);
        Ok(Self { net, seed, cache, weights, outcomes: Vec::new(), underway: None })
    }

    /// A run that goes on where `snapshot` was taken.
    ///
    /// # Errors
    /// A snapshot of another net.
    pub fn resume(
        net: Net<'n>,
        seed: u64,
        cache: usize,
        snapshot: Snapshot,
    ) -> Result<Self, Error> {
        net.check()?;
        let expected = net.params(net.layers.len())?;
        let Snapshot { weights, outcomes, underway } = snapshot;
        if weights.len() != expected {
            return Err(Error::Weights { layer: 0, expected, got: weights.len() });
        }
        Ok(Self { net, seed, cache, weights, outcomes, underway })
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
    /// Where `keeps` is true, the features of frozen layers are computed once, without
    /// augmentation, and kept while they fit the cache. Where it is false, every batch runs
    /// through the frozen layers again, and an augmenting source draws other images in each pass.
    ///
    /// # Errors
    /// A step or the watcher failed, or it wished to stop. Stages that are over
    /// are kept, and after a wish to stop the one under way too; a stage that failed begins anew.
    pub fn run<D: Device, S: Source, W: Watch>(
        &mut self,
        device: &D,
        strategy: &impl Strategy,
        source: &mut S,
        keeps: bool,
        watch: &mut W,
    ) -> Result<(), FitError> {
        let mut cached: Option<Features> = None;
        while let Some(stage) = strategy.next(&self.net, &self.outcomes) {
            if keeps {
                self.refill(device, source, &mut cached, usize::from(stage.first))?;
            }
            match &mut cached {
                Some(features) => {
                    self.stage(device, stage, &mut Kept { features, source }, watch)?;
                }
                None => self.stage(device, stage, source, watch)?,
            }
        }
        Ok(())
    }

    /// Computes the features in front of layer `first` where they fit the cache.
    fn refill<D: Device, S: Source>(
        &self,
        device: &D,
        source: &mut S,
        cached: &mut Option<Features>,
        first: usize,
    ) -> Result<(), Error> {
        let dim = self.net.shape(first)?.sample().unwrap_or(0) as usize;
        let bytes = dim.saturating_mul(size_of::<f32>()).saturating_mul(source.len() as usize);
        // A stage that trains layers in front of the features makes others of them.
        if cached.as_ref().is_some_and(|cached| cached.depth() > first) {
            *cached = None;
        }
        let there = cached.as_ref().map_or(0, Source::depth);
        if first > there && bytes <= self.cache {
            *cached = Some(match cached.take() {
                Some(mut features) => Features::new(device, &self.model(), &mut features, first)?,
                None => Features::new(device, &self.model(), source, first)?,
            });
        }
        Ok(())
    }

    fn stage<D: Device, S: Source, W: Watch>(
        &mut self,
        device: &D,
        stage: Stage<'_>,
        source: &mut S,
        watch: &mut W,
    ) -> Result<(), FitError> {
        let plan = {
            let backend = device.open(&mut []);
            let feed = Feed { chunk: device.chunk(), queue: backend.queue(), ..Feed::of(source) };
            StagePlan::new(&backend, &self.net, &stage, feed)?
        };
        let mut memory = allocate(plan.bytes())?;
        let mut backend = device.open(&mut memory);
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
        let event = Event::Stage { index, stage: &stage, bytes: plan.bytes(), steps, done };
        let mut wish = watch.event(&event);
        let mut time = Duration::ZERO;
        loop {
            if wish != Wish::Go {
                self.underway = Some(underway(&session, &mut backend)?);
                watch.snapshot(&self.snapshot()).map_err(FitError::Watch)?;
                if wish == Wish::Stop {
                    return Err(FitError::Stopped);
                }
                self.underway = None;
            }
            let began = Instant::now();
            let step = session.step(&mut backend, &self.model(), source)?;
            time += began.elapsed();
            if let Step::Trained { epoch_ends: true, .. } = step {
                // The net as it is now: what the stage has made of its layers so far.
                let mut weights = self.weights.clone();
                session.store(&mut backend, &mut weights)?;
                let model = Model { net: self.net, weights: Weights::Flat(&weights) };
                if let Some(si) = watch.judge(&model, &stage).map_err(FitError::Watch)? {
                    session.judge(si);
                }
            }
            if step == Step::Done {
                break;
            }
            wish = watch.event(&Event::Step(&step));
        }
        session.store(&mut backend, &mut self.weights)?;
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

/// Features in batches that the source they are of chooses.
struct Kept<'a, S> {
    features: &'a mut Features,
    source: &'a S,
}

impl<S: Source> Source for Kept<'_, S> {
    fn len(&self) -> u32 {
        Source::len(self.features)
    }

    fn shape(&self) -> Shape {
        Source::shape(self.features)
    }

    fn is_u8(&self) -> bool {
        self.features.is_u8()
    }

    fn depth(&self) -> usize {
        self.features.depth()
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
        self.features.read(indices, draw, batch, labels)
    }
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
    use super::*;
    use crate::recipe;
    use sepal_core::layer::{BatchNorm, Dense, Flatten, Layer, RELU};
    use sepal_core::net::{Input, Normalisation};
    use sepal_core::reference::OnReference;
    use sepal_core::stage::Recipe;

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
            Some(Stage { first: first as u16, last: last as u16, calibrate: true, recipe })
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
        let weights = |keeps| {
            let mut fit = Fit::new(net, 3, 1 << 20).unwrap();
            fit.run(&OnReference, &Order(&[0, 1, 0, 1]), &mut Two, keeps, &mut ()).unwrap();
            assert_eq!(fit.outcomes().len(), 4);
            fit.weights
        };
        assert_eq!(weights(true), weights(false));
    }
}
