//! How a net learns, as plain data that a file can hold: a strategy with its recipes, by name.

use sepal_core::layer::{L2Normalise, Layer};
use sepal_core::net::Net;
use sepal_core::optim::Rule;
use sepal_core::plan::PlanError;
use sepal_core::schedule::Schedule;
use sepal_core::stage::{Loss, Objective, Outcome, Recipe, Stage, Stop};
use sepal_core::strategy::{
    Classifier, EndToEnd, ForwardBackward, ForwardSi, Greedy, LocalLosses, RandomFrozen, Strategy,
    Window,
};

use crate::architecture::Architecture;
use crate::cache::{Budget, Keep, Precision};
use crate::recipe;
use crate::simcnn::{of_depth, simcnn_head, simcnn_readout};

/// What is laid over a block while it learns by SI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Readout {
    /// All that it gives, scaled to length 1; SimCNN's auxiliary nets, where it has some
    Unit,
    /// All that it gives, as it is
    Raw,
    /// Means of at most 4x4 bins, scaled to length 1
    Means,
    /// A 3x3 convolution of 64 channels between means of bins, which is discarded
    Conv,
}

/// What updates the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Optimiser {
    /// Adam
    Adam,
    /// Gradient descent with momentum 0.9
    Sgd,
}

/// A strategy's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Way {
    /// Each block by SI, then the whole classifier by cross-entropy
    Si,
    /// Each block and each hidden dense layer by SI, then the last layer by cross-entropy
    SiLayerwise,
    /// As si, without labels: the neighbour of an image is to be the same image, changed otherwise
    SelfSupervised,
    /// The first block by SI, or as many as a window has together, then all others by back-propagation
    ForwardBackward,
    /// Each block by cross-entropy behind an auxiliary classifier, then the classifier
    Greedy,
    /// All blocks at once, each by cross-entropy behind an auxiliary classifier of its own
    LocalLosses,
    /// The same by predsim: each by cross-entropy and by the similarities of its samples
    PredSim,
    /// The whole net by back-propagation
    EndToEnd,
    /// Random frozen blocks, then the classifier: the control
    Random,
    /// Each block by forward-forward: its output is to be large where the label written into a sample
    /// is right, and small where it is wrong; then the classifier
    ForwardForward,
}

impl Way {
    /// Places that each sample takes in a batch of a block.
    pub(crate) const fn places(self) -> u32 {
        if matches!(self, Self::SelfSupervised | Self::ForwardForward) { 2 } else { 1 }
    }
}

/// A setting that is out of range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// The field of [`Learning`].
    pub field: &'static str,
    /// What it is.
    pub found: String,
    /// What it should be.
    pub expected: &'static str,
}

impl std::fmt::Display for SettingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { field, found, expected } = self;
        write!(f, "{field}: found {found}, expected {expected}")
    }
}

impl std::error::Error for SettingError {}

/// Any of the strategies.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub enum Chosen<'m> {
    /// Blocks forward, by SI, by views or by goodness.
    Si(ForwardSi<'m>),
    /// The first blocks forward, the others backward.
    ForwardBackward(ForwardBackward<'m>),
    /// Blocks by auxiliary classifiers.
    Greedy(Greedy<'m>),
    /// All of these at once.
    LocalLosses(LocalLosses<'m>),
    /// All layers at once.
    EndToEnd(EndToEnd<'m>),
    /// The classifier alone.
    Random(RandomFrozen<'m>),
}

impl Strategy for Chosen<'_> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        match self {
            Self::Si(s) => s.next(net, done),
            Self::ForwardBackward(s) => s.next(net, done),
            Self::Greedy(s) => s.next(net, done),
            Self::LocalLosses(s) => s.next(net, done),
            Self::EndToEnd(s) => s.next(net, done),
            Self::Random(s) => s.next(net, done),
        }
    }
}

/// What is learnt and how, whichever the strategy. Fields that a strategy has no use for are not looked
/// at.
///
/// As JSON it is the file that the program `train` reads (`--recipe`) and writes beside its report. A file
/// may leave fields out: they have their defaults. A name that is no field is refused.
///
/// ```
/// use sepal_models::learning::{Learning, Way};
/// let learning = Learning { way: Way::Greedy, epochs: 2, ..Learning::default() };
/// let text = serde_json::to_string(&learning)?;
/// assert_eq!(serde_json::from_str::<Learning>(&text)?, learning);
/// let few: Learning = serde_json::from_str(r#"{"way": "greedy", "epochs": 2}"#)?;
/// assert_eq!(few, learning);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Learning {
    /// The architecture.
    pub architecture: Architecture,
    /// Its filters, hidden units and embedding dimensions, in percent.
    pub width: u32,
    /// The strategy.
    pub way: Way,
    /// What is laid over a block while it learns by SI.
    pub readout: Readout,
    /// What stands in for SI while a block learns.
    pub loss: Loss,
    /// Blocks that learn by SI together.
    pub window: Window,
    /// Layers of the auxiliary classifier, for nets that bring none.
    pub auxiliary: u8,
    /// Passes for all layers at once after greedy blocks.
    pub fine_tune: u16,
    /// Passes for each block; for the whole net where it learns end to end.
    pub epochs: u16,
    /// Passes for the classifier; for all but the first block where those learn backward.
    pub head_epochs: u16,
    /// First rate of blocks, and of stages that train the classifier with them.
    pub rate: f32,
    /// First rate of the classifier alone.
    pub head_rate: f32,
    /// Steps of each stage in which the rate rises to its first, which a stage of fewer does not reach.
    pub warmup: u32,
    /// What updates the weights.
    pub optimiser: Optimiser,
    /// By SGD what is added to a gradient for each unit of a parameter (an L2 penalty), by Adam the share
    /// of the rate by which parameters shrink (AdamW).
    pub weight_decay: f32,
    /// Samples in a step.
    pub batch: u32,
    /// Equal parts of a batch that are run one after the other; see
    /// [`Recipe::micro_batches`].
    pub micro_batches: u32,
    /// When a block ends before its passes are over.
    pub stop: Stop,
}

impl Default for Learning {
    /// LeNet forward by SI with soft nearest neighbours: 5 passes a block, 30 for the classifier, as
    /// measured in the README.
    fn default() -> Self {
        let (block, classifier) = (recipe::block(5), recipe::classifier(30));
        Self {
            architecture: Architecture::Lenet,
            width: 100,
            way: Way::Si,
            readout: Readout::Unit,
            loss: Loss::SoftNearest { temperature: 0.1 },
            window: Window::ONE,
            auxiliary: 1,
            fine_tune: 0,
            epochs: block.epochs,
            head_epochs: classifier.epochs,
            rate: block.rate,
            head_rate: classifier.rate,
            warmup: 0,
            optimiser: Optimiser::Adam,
            weight_decay: 0.0,
            batch: block.batch,
            micro_batches: block.micro_batches,
            stop: Stop::Never,
        }
    }
}

impl Learning {
    /// Checks every field by itself.
    ///
    /// # Errors
    /// The first that is out of range.
    ///
    /// ```
    /// use sepal_models::learning::Learning;
    /// let error = Learning { batch: 1, ..Learning::default() }.check().unwrap_err();
    /// assert_eq!(error.to_string(), "batch: found 1, expected 2 or more");
    /// ```
    pub fn check(&self) -> Result<(), SettingError> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let of_loss = match self.loss {
            Loss::Margin { margin: x }
            | Loss::SoftNearest { temperature: x }
            | Loss::SoftCentre { temperature: x } => x,
            _ => 1.0,
        };
        let (some, number) = ("1 or more", "a number above 0");
        let (window, places) = (self.window, self.way.places());
        let checks = [
            (
                "width",
                (1..=1000).contains(&self.width),
                self.width.to_string(),
                "1 to 1000 percent",
            ),
            ("loss", positive(of_loss), of_loss.to_string(), number),
            ("window", window.blocks > 0, window.blocks.to_string(), "1 block or more"),
            ("window", window.stride > 0, window.stride.to_string(), "a stride of 1 or more"),
            ("auxiliary", (1..=3).contains(&self.auxiliary), self.auxiliary.to_string(), "1 to 3"),
            ("epochs", self.epochs > 0, self.epochs.to_string(), some),
            ("head_epochs", self.head_epochs > 0, self.head_epochs.to_string(), some),
            ("rate", positive(self.rate), self.rate.to_string(), number),
            ("head_rate", positive(self.head_rate), self.head_rate.to_string(), number),
            (
                "weight_decay",
                self.weight_decay.is_finite() && self.weight_decay >= 0.0,
                self.weight_decay.to_string(),
                "a number, 0 or above",
            ),
            ("batch", self.batch >= 2, self.batch.to_string(), "2 or more"),
            (
                "batch",
                self.batch.is_multiple_of(places),
                self.batch.to_string(),
                "an even number, two of each sample",
            ),
            (
                "micro_batches",
                self.micro_batches > 0 && (self.batch / places).is_multiple_of(self.micro_batches),
                self.micro_batches.to_string(),
                if places > 1 { "a divisor of half the batch" } else { "a divisor of the batch" },
            ),
        ];
        for (field, fits, found, expected) in checks {
            if !fits {
                return Err(SettingError { field, found, expected });
            }
        }
        Ok(())
    }

    /// The layers and the ends of the blocks of the net that learns: those of `net`, and where its blocks
    /// learn by forward-forward, [`L2Normalise`] in front of each block of features but the first. What
    /// a block tells by the length of its output is then not there for the next one to repeat.
    ///
    /// ```
    /// use sepal_models::{learning::{Learning, Way}, lenet::LENET};
    /// let (layers, blocks) = Learning { way: Way::ForwardForward, ..Learning::default() }.layers(&LENET);
    /// assert_eq!((layers.len(), blocks), (16, vec![4, 9, 13, 15, 16]));
    /// assert_eq!(Learning::default().layers(&LENET).0, LENET.layers);
    /// ```
    pub fn layers(&self, net: &Net<'_>) -> (Vec<Layer>, Vec<u16>) {
        let (mut layers, mut blocks) = (Vec::new(), Vec::new());
        for block in 0..net.blocks.len() {
            let (first, last) = net.block(block).unwrap_or_default();
            let features = 1..usize::from(net.features);
            if self.way == Way::ForwardForward && features.contains(&block) {
                layers.push(Layer::L2Normalise(L2Normalise));
            }
            layers.extend(net.layers.get(first..last).unwrap_or_default());
            blocks.push(layers.len() as u16);
        }
        (layers, blocks)
    }

    /// What is laid over each block of features while it learns.
    ///
    /// # Errors
    /// Layers that do not fit each other.
    pub fn heads(&self, net: &Net<'_>, classes: u32) -> Result<Vec<Vec<Layer>>, PlanError> {
        let head = |block: usize| {
            let (_, end) = net.block(block).unwrap_or_default();
            let filters = net.shape(end)?.c;
            Ok(match (self.way, self.architecture.depth()) {
                (Way::ForwardForward, _) => Vec::new(),
                (Way::Greedy | Way::LocalLosses | Way::PredSim, depth) => {
                    let similar = if self.way == Way::PredSim { recipe::SIMILAR } else { 0 };
                    let outputs = similar.saturating_add(classes);
                    match (depth, self.auxiliary) {
                        (None, 1) => recipe::linear_head(outputs).to_vec(),
                        (depth, auxiliary) => {
                            let depth = depth.unwrap_or(auxiliary.into());
                            of_depth(depth, &simcnn_head(filters, outputs)).to_vec()
                        }
                    }
                }
                (_, Some(depth)) if self.readout == Readout::Unit => {
                    of_depth(depth, &simcnn_readout(filters)).to_vec()
                }
                _ => match self.readout {
                    Readout::Unit => recipe::UNIT_FEATURES.to_vec(),
                    Readout::Raw => Vec::new(),
                    Readout::Means => recipe::MEANS_READOUT.to_vec(),
                    Readout::Conv => recipe::CONV_READOUT.to_vec(),
                },
            })
        };
        (0..usize::from(net.features)).map(head).collect()
    }

    /// The strategy that this describes for a number of classes, with the heads of
    /// [`heads`](Self::heads).
    pub fn chosen<'m>(&self, heads: &'m [&'m [Layer]], classes: u32) -> Chosen<'m> {
        let (stop, weight_decay) = (self.stop, self.weight_decay);
        let rule = match self.optimiser {
            Optimiser::Adam if weight_decay > 0.0 => Rule::adamw(weight_decay),
            Optimiser::Adam => Rule::adam(),
            Optimiser::Sgd => Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay },
        };
        let schedule = Schedule::Cosine { warmup: self.warmup };
        let (rate, batch, micro_batches) = (self.rate, self.batch, self.micro_batches);
        let loss = self.loss;
        let objective = match self.way {
            Way::SelfSupervised => Objective::Views(loss),
            Way::ForwardForward => Objective::Goodness { threshold: recipe::THRESHOLD, classes },
            _ => Objective::Separation(loss),
        };
        let block = recipe::block(self.epochs);
        let head = match self.way {
            // Behind a scaling to length 1 all have the same goodness.
            Way::ForwardForward => &[],
            _ => block.head,
        };
        let block = Recipe { head, objective, rate, stop, ..block };
        let block = Recipe { batch, micro_batches, rule, schedule, ..block };
        let classifier = Recipe { rate: self.head_rate, ..recipe::classifier(self.head_epochs) };
        let classifier = Recipe { batch, micro_batches, rule, schedule, ..classifier };
        let window = self.window;
        // Blocks and classifier together, at the rate of blocks.
        let whole = |epochs| Recipe { rate, epochs, ..classifier };
        let si = |form| Chosen::Si(ForwardSi { block, heads, window, classifier, form });
        match self.way {
            Way::Si | Way::SelfSupervised | Way::ForwardForward => si(Classifier::Whole),
            Way::SiLayerwise => si(Classifier::LayerWise),
            Way::ForwardBackward => {
                let (blocks, rest) = (window.blocks, whole(self.head_epochs));
                Chosen::ForwardBackward(ForwardBackward { blocks, block, heads, rest })
            }
            Way::Greedy => {
                let fine_tune = (self.fine_tune > 0).then(|| whole(self.fine_tune));
                let block = whole(self.epochs);
                Chosen::Greedy(Greedy { block, heads, classifier, fine_tune })
            }
            Way::LocalLosses | Way::PredSim => {
                let block = whole(self.epochs);
                let objective = match self.way {
                    // The share of the source.
                    Way::PredSim => Objective::PredSim { beta: 0.99, similar: recipe::SIMILAR },
                    _ => block.objective,
                };
                let block = Recipe { objective, ..block };
                Chosen::LocalLosses(LocalLosses { block, heads, classifier })
            }
            Way::EndToEnd => Chosen::EndToEnd(EndToEnd { recipe: whole(self.epochs) }),
            Way::Random => Chosen::Random(RandomFrozen { classifier }),
        }
    }
}

/// What decides the bits of a run: where the output of each block is kept as f16, and of how many
/// copies of a sample it is kept.
///
/// # Errors
/// Layers that do not fit each other.
pub fn kept(net: Net<'_>, budget: &Budget, samples: u32) -> Result<Vec<(bool, u32)>, PlanError> {
    let mut kept = Vec::new();
    for &end in net.blocks {
        let dim = net.shape(end.into())?.sample().unwrap_or(0) as usize;
        let choice = budget.choose(dim, samples);
        let copies = if budget.keep == Keep::Plain { 0 } else { choice.copies };
        kept.push((choice.store.precision() == Some(Precision::F16), copies));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lenet::LENET;

    #[test]
    fn decay_and_warm_up_reach_every_stage() {
        let decay = 0.5;
        for (optimiser, rule) in [
            (Optimiser::Adam, Rule::adamw(decay)),
            (Optimiser::Sgd, Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: decay }),
        ] {
            for way in [Way::Si, Way::ForwardBackward, Way::Greedy, Way::PredSim, Way::EndToEnd] {
                let few = Learning { way, optimiser, fine_tune: 1, ..Learning::default() };
                let learning = Learning { weight_decay: decay, warmup: 3, ..few };
                let chosen = learning.chosen(&[&[]], 10);
                let mut done = Vec::new();
                while let Some(stage) = chosen.next(&LENET, &done) {
                    assert_eq!(stage.recipe.rule, rule, "{way:?}, stage {}", done.len());
                    assert_eq!(stage.recipe.schedule, Schedule::Cosine { warmup: 3 }, "{way:?}");
                    let Stage { first, last, .. } = stage;
                    done.push(Outcome { first, last, ..Outcome::default() });
                }
                assert!(!done.is_empty(), "{way:?}");
            }
        }
        assert_eq!(
            Learning::default().chosen(&[&[]], 10).next(&LENET, &[]).unwrap().recipe.rule,
            Rule::adam()
        );
        for weight_decay in [-0.1, f32::NAN, f32::INFINITY] {
            let error = Learning { weight_decay, ..Learning::default() }.check().unwrap_err();
            assert_eq!((error.field, error.found), ("weight_decay", weight_decay.to_string()));
        }
    }

    #[test]
    fn readouts_are_laid_over_each_block() {
        for (readout, head) in [
            (Readout::Unit, recipe::UNIT_FEATURES),
            (Readout::Raw, &[]),
            (Readout::Means, recipe::MEANS_READOUT),
            (Readout::Conv, recipe::CONV_READOUT),
        ] {
            let heads = Learning { readout, ..Learning::default() }.heads(&LENET, 10).unwrap();
            assert_eq!(heads, [head, head], "{readout:?}");
        }
    }

    #[test]
    fn a_window_reaches_the_strategies_that_have_one() {
        for (way, blocks, end) in [
            (Way::Si, 1, 4),
            (Way::Si, 2, 8),
            (Way::ForwardBackward, 1, 4),
            (Way::ForwardBackward, 2, 8),
            (Way::Greedy, 2, 4),
        ] {
            let learning = Learning { way, window: Window::sliding(blocks), ..Learning::default() };
            // A head for each block, to be told from the other's.
            let heads: [&[Layer]; 2] = [&[Layer::L2Normalise(L2Normalise)], &[]];
            let chosen = learning.chosen(&heads, 10);
            let stage = chosen.next(&LENET, &[]).unwrap();
            assert_eq!((stage.first, stage.last), (0, end), "{way:?}, {blocks}");
            assert_eq!(stage.recipe.head, heads[usize::from(end / 4 - 1)], "{way:?}, {blocks}");
        }
    }
}
