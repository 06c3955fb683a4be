//! Nets steered by SI: how deep, how wide, and which filters stay.
//!
//! | what SI decides | here | kept is |
//! |---|---|---|
//! | depth | [`Steer::grow`] | the blocks up to the one behind which held-out SI was highest |
//! | width | [`Steer::widen`] | for each block, the filters behind which held-out SI was highest |
//! | filters | [`Steer::order`], then [`Steered::cut`]; or [`Steer::train_pruned`] | the filters of trained blocks that separate most |
//! | what to train at all | [`rank`] | how far SI tells accuracies of data sets and nets beforehand |
//!
//! The outlook of Karimi, Kalhor and Sadeghi Tabrizi (Scientific Reports, 2024) names compressing nets
//! and searching architectures by SI, and gives no method: what is here is the plainest that answers
//! it. A block by block search needs no test set and no classifier: each candidate costs the training
//! of one block.
//!
//! Held-out SI is cross-SI: the share of held-out samples whose nearest sample of a bank, which may be
//! trained on, has their label, all features of a sample scaled to length 1. SI of the samples that
//! are trained on rises with width and depth even where nothing is gained. When a block's own training
//! ends is another question, that [`Stop::SiPlateau`](sepal_core::stage::Stop) answers.
//!
//! ```
//! # #[cfg(feature = "bundled")] {
//! use sepal_core::reference::OnReference;
//! use sepal_models::{cache::Budget, data, learning::Learning, lenet::LENET};
//! use sepal_models::steer::{Rise, Steer};
//!
//! let images = data::bundled().train;
//! let (train, held_out) = (images.subset(&Vec::from_iter(0..192))?, images.subset(&Vec::from_iter(192..256))?);
//! let learning = Learning { epochs: 1, head_epochs: 1, ..Learning::default() };
//! let (bank, budget) = (&train, &Budget::default());
//! let steer = Steer {
//!     device: &OnReference, learning: &learning, train: &train, bank, held_out: &held_out, seed: 0, budget,
//! };
//! let growth = steer.grow(LENET, Rise { tolerance: 0.5, patience: 0 }, &mut ())?;
//! assert_eq!((growth.separation.len(), growth.kept), (2, 1)); // No block adds half of all samples.
//! let mut net = growth.net.up_to(growth.kept)?;
//! steer.classify(&mut net, &mut ())?;
//! assert_eq!(net.net().features, 1);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod depth;
mod prune;
pub mod rank;
#[cfg(test)]
mod tests;
mod width;

pub use depth::Growth;
pub use prune::{Score, stay};
pub use width::{Tried, Widened};

use sepal_core::backend::Device;
use sepal_core::error::Error;
use sepal_core::layer::{Conv2d, Dense, Layer, Role};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::plan::PlanError;
use sepal_core::si::Tally;
use sepal_core::stage::{Outcome, Stage};
use sepal_core::strategy::{Strategy, Window};

use crate::cache::Budget;
use crate::data::Dataset;
use crate::features::Features;
use crate::fit::{Fit, FitError, Snapshot, Watch};
use crate::learning::{Learning, SettingError, Way};

/// Why a net could not be steered.
#[derive(Debug)]
#[non_exhaustive]
pub enum SteerError {
    /// A training or a pass failed.
    Fit(FitError),
    /// A setting or an argument that is out of range.
    Setting(SettingError),
    /// Samples that no nearest neighbour can tell apart.
    Classes {
        /// Which samples.
        set: &'static str,
        /// The number of classes that have some.
        found: usize,
    },
    /// Nothing could be judged: no held-out sample has a nearest neighbour.
    Unjudged {
        /// One past the last layer that was judged.
        end: usize,
    },
    /// A block without a layer that gives it its channels, or none that can be changed.
    Block {
        /// The block.
        block: usize,
        /// Why not.
        why: &'static str,
    },
    /// A layer whose input cannot lose channels.
    Layer {
        /// The layer.
        layer: usize,
        /// Its name.
        name: &'static str,
    },
}

impl std::fmt::Display for SteerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fit(error) => error.fmt(f),
            Self::Setting(error) => error.fmt(f),
            Self::Classes { set, found } => {
                write!(f, "{set}: found samples of {found} classes, expected 2 or more")
            }
            Self::Unjudged { end } => write!(
                f,
                "no held-out sample has a nearest neighbour behind layer {end}: its features are \
                 no numbers"
            ),
            Self::Block { block, why } => write!(f, "block {block}: {why}"),
            Self::Layer { layer, name } => write!(
                f,
                "layer {layer}, {name}: found fewer channels, expected all of them as before"
            ),
        }
    }
}

impl std::error::Error for SteerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Fit(error) => Some(error),
            Self::Setting(error) => Some(error),
            _ => None,
        }
    }
}

impl<E: Into<FitError>> From<E> for SteerError {
    fn from(error: E) -> Self {
        Self::Fit(error.into())
    }
}

/// A setting that is out of range.
fn setting(field: &'static str, found: impl ToString, expected: &'static str) -> SteerError {
    SteerError::Setting(SettingError { field, found: found.to_string(), expected })
}

/// When SI counts as risen, and how long a search goes on where it has not.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Rise {
    /// What held-out SI must rise by more than: 0 or more, as a share of the samples.
    pub tolerance: f64,
    /// Candidates without a rise that are borne, as passes are in
    /// [`Stop::SiPlateau`](sepal_core::stage::Stop).
    pub patience: u16,
}

impl Rise {
    fn check(self) -> Result<(), SteerError> {
        if (0.0..=1.0).contains(&self.tolerance) {
            return Ok(());
        }
        Err(setting("tolerance", self.tolerance, "a share from 0 to 1"))
    }
}

/// A search for the candidate with the highest SI.
struct Search {
    rise: Rise,
    best: Option<f64>,
    stale: u16,
}

impl Search {
    fn new(rise: Rise) -> Self {
        Self { rise, best: None, stale: 0 }
    }

    /// Whether the next candidate is the best so far. The first always is.
    fn rises(&mut self, si: f64) -> bool {
        let rises = self.best.is_none_or(|best| si > best + self.rise.tolerance);
        if rises {
            (self.best, self.stale) = (Some(si), 0);
        } else {
            self.stale = self.stale.saturating_add(1);
        }
        rises
    }

    /// Whether too many have not risen.
    fn is_over(&self) -> bool {
        self.stale > self.rise.patience
    }
}

/// A net that owns its layers and weights, with what came of the stages that trained it.
#[derive(Clone, Debug, PartialEq)]
pub struct Steered {
    input: Input,
    layers: Vec<Layer>,
    blocks: Vec<u16>,
    features: u16,
    seed: u64,
    weights: Vec<f32>,
    outcomes: Vec<Outcome>,
}

impl Steered {
    /// A net with freshly drawn weights.
    ///
    /// # Errors
    /// Layers that do not fit each other.
    pub fn new(net: Net<'_>, seed: u64) -> Result<Self, PlanError> {
        let Net { input, layers, blocks, features } = net;
        let (layers, blocks) = (layers.to_vec(), blocks.to_vec());
        Self::drawn(Self {
            input,
            layers,
            blocks,
            features,
            seed,
            weights: vec![],
            outcomes: vec![],
        })
    }

    /// A net whose blocks are trained already. Numbers of narrower types become f32.
    ///
    /// # Errors
    /// Layers that do not fit each other; parameters that are missing or of another length.
    pub fn of(model: &Model<'_>, seed: u64) -> Result<Self, Error> {
        let net = model.net;
        let mut this = Self::new(net, seed)?;
        this.weights.clear();
        for layer in 0..net.layers.len() {
            let numbers = numbers(model, layer)?;
            numbers.into_iter().for_each(|own| this.weights.extend(own));
        }
        let block = |block| {
            let (first, last) = net.block(block)?;
            let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
            Some(Outcome { first, last, held_out: -1.0, ..Outcome::default() })
        };
        this.outcomes = (0..net.features.into()).filter_map(block).collect();
        Ok(this)
    }

    /// The same layers with weights drawn anew.
    fn drawn(self) -> Result<Self, PlanError> {
        let net = self.net();
        net.check()?;
        let mut weights = vec![0.0; net.params(net.layers.len())?];
        sepal_core::init::weights(&net, self.seed, &mut weights);
        Ok(Self { weights, ..self })
    }

    /// The net.
    pub fn net(&self) -> Net<'_> {
        let Self { input, features, .. } = *self;
        Net { input, layers: &self.layers, blocks: &self.blocks, features }
    }

    /// The net with its weights.
    pub fn model(&self) -> Model<'_> {
        Model { net: self.net(), weights: Weights::Flat(&self.weights) }
    }

    /// What came of the stages that are over.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The first `blocks` blocks with the classifier directly behind them, which is drawn anew for
    /// what they give.
    ///
    /// # Errors
    /// Blocks that are not there; a classifier that cannot take what they give.
    pub fn up_to(&self, blocks: usize) -> Result<Self, SteerError> {
        let net = self.net();
        if blocks == 0 || blocks > usize::from(self.features) {
            return Err(setting("depth", blocks, "1 block or more, at most those of features"));
        }
        let (end, from) = (net.block(blocks - 1).map_or(0, |(_, end)| end), net.features_end());
        let mut layers = self.layers.get(..end).unwrap_or_default().to_vec();
        layers.extend(self.layers.get(from..).unwrap_or_default());
        let gone = (from - end) as u16;
        let mut ends = self.blocks.get(..blocks).unwrap_or_default().to_vec();
        ends.extend(self.blocks.iter().skip(self.features.into()).map(|end| end - gone));
        let outcomes = self.outcomes.iter().take(blocks).copied().collect();
        let (features, weights) = (blocks as u16, Vec::new());
        let mut cut =
            Self { layers, blocks: ends, features, weights, outcomes, ..*self }.drawn()?;
        cut.copy(self, end)?;
        Ok(cut)
    }

    /// The same net with `filters` filters or units in the layer that gives block `block` its
    /// channels: the last convolution of one group, or the last dense layer, of the block. That block
    /// and those behind it are drawn anew; depthwise convolutions follow their channels.
    ///
    /// # Errors
    /// A block that is not there or has no such layer, and layers that do not fit each other any more,
    /// such as a residual addition.
    pub fn with_filters(&self, block: usize, filters: u32) -> Result<Self, SteerError> {
        let giver = giver(&self.net(), block)?;
        let (first, _) = self.net().block(block).unwrap_or_default();
        let mut layers = self.layers.clone();
        let mut shape = self.input.shape;
        for (at, layer) in layers.iter_mut().enumerate() {
            *layer = match *layer {
                Layer::Conv2d(l) if at == giver => Layer::Conv2d(Conv2d { filters, ..l }),
                Layer::Dense(l) if at == giver => Layer::Dense(Dense { units: filters, ..l }),
                Layer::Conv2d(l) if l.groups > 1 && l.groups == l.filters => {
                    Layer::Conv2d(Conv2d { filters: shape.c, groups: shape.c, ..l })
                }
                other => other,
            };
            let impossible = PlanError::Shape { layer: at, input: shape };
            shape = layer.output(shape).ok_or(impossible)?;
        }
        let outcomes = self.outcomes.iter().take(block).copied().collect();
        let (blocks, weights) = (self.blocks.clone(), Vec::new());
        let mut other = Self { layers, blocks, weights, outcomes, ..*self }.drawn()?;
        other.copy(self, first)?;
        Ok(other)
    }

    /// Takes the parameters of layers `..end` from a net with the same.
    fn copy(&mut self, from: &Self, end: usize) -> Result<(), PlanError> {
        let len = self.net().params(end)?;
        self.weights.iter_mut().take(len).zip(&from.weights).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    /// Runs a strategy on, up to so many stages.
    fn learn<D: Device, W: Watch>(
        &mut self,
        steer: &Steer<'_, D>,
        strategy: &impl Strategy,
        stages: usize,
        watch: &mut W,
    ) -> Result<(), FitError> {
        let (weights, outcomes) = (self.weights.clone(), self.outcomes.clone());
        let snapshot = Snapshot { weights, outcomes, underway: None };
        let mut fit = Fit::resume(self.net(), self.seed, snapshot)?;
        let until = Until { strategy, stages };
        fit.run(steer.device, &until, &mut &*steer.train, steer.budget, watch)?;
        let Snapshot { weights, outcomes, .. } = fit.snapshot();
        (self.weights, self.outcomes) = (weights, outcomes);
        Ok(())
    }
}

/// The first stages of a strategy.
struct Until<'a, S> {
    strategy: &'a S,
    stages: usize,
}

impl<S: Strategy> Strategy for Until<'_, S> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        (done.len() < self.stages).then(|| self.strategy.next(net, done)).flatten()
    }
}

/// SI behind the layers before `end`.
fn judged(si: Tally, end: usize) -> Result<f64, SteerError> {
    si.value().ok_or(SteerError::Unjudged { end })
}

/// The layer that gives a block its channels.
fn giver(net: &Net<'_>, block: usize) -> Result<usize, SteerError> {
    let of_features = net.block(block).filter(|_| block < usize::from(net.features));
    let Some((first, last)) = of_features else {
        return Err(SteerError::Block { block, why: "expected one of those that give features" });
    };
    let multiplies = |layer: &Layer| match layer {
        Layer::Conv2d(l) => l.groups == 1,
        Layer::Dense(_) => true,
        _ => false,
    };
    let layers = net.layers.get(first..last).unwrap_or_default();
    let why = "expected a convolution of one group or a dense layer";
    let at = layers.iter().rposition(multiplies).ok_or(SteerError::Block { block, why })?;
    Ok(first + at)
}

/// The parameters of a layer, in the order of [`Role::ALL`].
fn numbers(model: &Model<'_>, layer: usize) -> Result<[Vec<f32>; 4], Error> {
    let shape = model.net.shape(layer)?;
    let lengths = model.net.layers.get(layer).and_then(|l| l.tensors(shape)).unwrap_or_default();
    let mut numbers = [const { Vec::new() }; 4];
    let stored = model.weights.layer(&model.net, layer);
    for ((role, stored), own) in Role::ALL.into_iter().zip(stored).zip(&mut numbers) {
        let expected = lengths.len(role) as usize;
        own.resize(expected, 0.0);
        if expected > 0 && !stored.widen(own) {
            return Err(Error::Weights { layer, expected, got: stored.len() });
        }
    }
    Ok(numbers)
}

/// What a net is steered by.
#[derive(Clone, Copy, Debug)]
pub struct Steer<'a, D> {
    /// What everything runs on.
    pub device: &'a D,
    /// How blocks and classifier learn: each block alone by SI. Its architecture and width are not looked
    /// at, but for what is laid over a block while it learns.
    pub learning: &'a Learning,
    /// Samples to train on.
    pub train: &'a Dataset,
    /// Samples among which the nearest is looked for: some of those trained on.
    pub bank: &'a Dataset,
    /// Samples that SI is judged on, which no block is trained on.
    pub held_out: &'a Dataset,
    /// Decides weights and batches, and which filters are the random ones.
    pub seed: u64,
    /// What is kept of the output of frozen blocks.
    pub budget: &'a Budget,
}

impl<D: Device> Steer<'_, D> {
    /// Checks what does not hang on a net.
    ///
    /// # Errors
    /// Learning other than each block alone by SI, or with a setting out of range; samples of one
    /// class.
    pub fn check(&self) -> Result<(), SteerError> {
        let Learning { way, window, .. } = *self.learning;
        self.learning.check().map_err(SteerError::Setting)?;
        if way != Way::Si {
            return Err(setting("way", format!("{way:?}"), "Si, each block alone by SI"));
        }
        if window != Window::ONE {
            return Err(setting("window", window.blocks, "blocks that learn alone"));
        }
        for (set, name) in
            [(self.train, "training"), (self.bank, "bank"), (self.held_out, "held out")]
        {
            let found = set.counts().iter().filter(|&&count| count > 0).count();
            if found < 2 {
                return Err(SteerError::Classes { set: name, found });
            }
        }
        Ok(())
    }

    /// Held-out SI behind the layers before `end`; of the raw samples where that is 0.
    ///
    /// # Errors
    /// Samples that the net cannot take, features that are no numbers.
    pub fn separation(&self, model: &Model<'_>, end: usize) -> Result<f64, SteerError> {
        let [held_out, bank] = self.features(model, end)?;
        judged(held_out.unit().cross_si(self.device, &bank.unit())?, end)
    }

    /// SI of the bank itself, each sample left out once, behind the layers before `end`.
    ///
    /// # Errors
    /// As [`separation`](Self::separation).
    pub fn bank_separation(&self, model: &Model<'_>, end: usize) -> Result<f64, SteerError> {
        let [_, bank] = self.features(model, end)?;
        judged(bank.unit().si(self.device)?, end)
    }

    /// What the layers before `end` make of the held-out samples and of the bank.
    fn features(&self, model: &Model<'_>, end: usize) -> Result<[Features; 2], SteerError> {
        // The raw samples as they are: no layer has run, only the input's own scale is left out.
        let raw = Input { normalisation: Normalisation::NONE, ..model.net.input };
        let raw = Model { net: Net { input: raw, ..model.net }, weights: Weights::Flat(&[]) };
        let model = if end == 0 { &raw } else { model };
        let of = |mut set: &Dataset| Features::new(self.device, model, &mut set, end);
        Ok([of(self.held_out)?, of(self.bank)?])
    }

    /// Trains on until `stages` stages are over: one for each block, and the classifier's.
    ///
    /// # Errors
    /// As [`check`](Self::check); a training that failed. The net is then as it was.
    pub fn train(
        &self,
        net: &mut Steered,
        stages: usize,
        watch: &mut impl Watch,
    ) -> Result<(), SteerError> {
        self.check()?;
        let classes = self.train.names().len() as u32;
        let heads = self.learning.heads(&net.net(), classes)?;
        let heads: Vec<&[Layer]> = heads.iter().map(Vec::as_slice).collect();
        Ok(net.learn(self, &self.learning.chosen(&heads, classes), stages, watch)?)
    }

    /// Trains the classifier, from where it is, on the blocks as they are; blocks that are not trained yet
    /// before it.
    ///
    /// # Errors
    /// As [`train`](Self::train).
    pub fn classify(&self, net: &mut Steered, watch: &mut impl Watch) -> Result<(), SteerError> {
        let blocks = usize::from(net.features);
        net.outcomes.truncate(blocks);
        self.train(net, blocks + 1, watch)
    }

    /// Measures the statistics of all norms anew, the weights of blocks as they are, then trains the
    /// classifier from where it is: what a net needs that has lost channels.
    ///
    /// # Errors
    /// As [`train`](Self::train).
    pub fn settle(&self, net: &mut Steered, watch: &mut impl Watch) -> Result<(), SteerError> {
        self.check()?;
        let mut settled = Steered { outcomes: Vec::new(), ..net.clone() };
        let measured = Learning { way: Way::Random, ..*self.learning };
        let classes = self.train.names().len() as u32;
        settled.learn(self, &measured.chosen(&[], classes), usize::MAX, watch)?;
        *net = settled;
        Ok(())
    }
}
