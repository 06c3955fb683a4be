//! How a net learns: strategies with their recipes.

use clap::ValueEnum;
use sepal::layer::Layer;
use sepal::models::cache::{Budget, Keep, Precision};
use sepal::models::recipe;
use sepal::models::simcnn::{of_depth, simcnn_head, simcnn_readout};
use sepal::net::Net;
use sepal::optim::Rule;
use sepal::plan::PlanError;
use sepal::stage::{Loss, Objective, Outcome, Recipe, Stage, Stop};
use sepal::strategy::{
    Classifier, EndToEnd, ForwardBackward, ForwardSi, Greedy, LocalLosses, RandomFrozen, Strategy,
    Window,
};

use crate::model::Model;

/// A readout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Readout {
    /// All that it gives, scaled to length 1; SimCNN's auxiliary nets, where it has some
    Unit,
    /// A 3x3 convolution of 64 channels between means of bins, which is discarded
    Conv,
}

/// An optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Optimiser {
    /// Adam
    Adam,
    /// Gradient descent with momentum 0.9
    Sgd,
}

/// A strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Each block by SI, then the whole classifier by cross-entropy
    Si,
    /// Each block and each hidden dense layer by SI, then the last layer by cross-entropy
    SiLayerwise,
    /// As si, without labels: the neighbour of an image is to be the same image, changed otherwise
    SelfSupervised,
    /// The first block by SI, then all others by back-propagation
    ForwardBackward,
    /// Each block by cross-entropy behind an auxiliary classifier, then the classifier
    Greedy,
    /// All blocks at once, each by cross-entropy behind an auxiliary classifier of its own
    LocalLosses,
    /// The whole net by back-propagation
    EndToEnd,
    /// Random frozen blocks, then the classifier: the control
    Random,
}

/// Any of the strategies.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub enum Chosen<'m> {
    Si(ForwardSi<'m>),
    ForwardBackward(ForwardBackward<'m>),
    Greedy(Greedy<'m>),
    LocalLosses(LocalLosses<'m>),
    EndToEnd(EndToEnd<'m>),
    Random(RandomFrozen<'m>),
}

impl Strategy for Chosen<'_> {
    fn next(&self, net: &sepal::net::Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
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

/// What a strategy is made of, whichever it is.
#[derive(Clone, Copy, Debug)]
pub struct Learning {
    pub model: Model,
    pub way: Way,
    pub readout: Readout,
    /// What stands in for SI while a block learns.
    pub loss: Loss,
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
    pub optimiser: Optimiser,
    pub batch: u32,
    pub stop: Stop,
}

impl Learning {
    /// What is laid over each block of features while it learns.
    pub fn heads(&self, net: &Net<'_>, classes: u32) -> Result<Vec<Vec<Layer>>, PlanError> {
        let head = |block: usize| {
            let (_, end) = net.block(block).unwrap_or_default();
            let filters = net.shape(end)?.c;
            Ok(match (self.way, self.model.depth()) {
                (Way::Greedy | Way::LocalLosses, None) if self.auxiliary == 1 => {
                    recipe::linear_head(classes).to_vec()
                }
                (Way::Greedy | Way::LocalLosses, depth) => {
                    let depth = depth.unwrap_or(self.auxiliary.into());
                    of_depth(depth, &simcnn_head(filters, classes)).to_vec()
                }
                (_, Some(depth)) if self.readout == Readout::Unit => {
                    of_depth(depth, &simcnn_readout(filters)).to_vec()
                }
                _ if self.readout == Readout::Conv => recipe::CONV_READOUT.to_vec(),
                _ => recipe::UNIT_FEATURES.to_vec(),
            })
        };
        (0..usize::from(net.features)).map(head).collect()
    }

    /// The strategy that this describes.
    pub fn chosen<'m>(&self, heads: &'m [&'m [Layer]]) -> Chosen<'m> {
        let stop = self.stop;
        let rule = match self.optimiser {
            Optimiser::Adam => Rule::adam(),
            Optimiser::Sgd => Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        };
        let (rate, batch) = (self.rate, self.batch);
        let loss = self.loss;
        let objective = match self.way {
            Way::SelfSupervised => Objective::Views(loss),
            _ => Objective::Separation(loss),
        };
        let block = Recipe { objective, rate, batch, rule, stop, ..recipe::block(self.epochs) };
        let classifier =
            Recipe { rate: self.head_rate, batch, rule, ..recipe::classifier(self.head_epochs) };
        let window = self.window;
        // Blocks and classifier together, at the rate of blocks.
        let whole = |epochs| Recipe { rate, epochs, ..classifier };
        let si = |form| Chosen::Si(ForwardSi { block, heads, window, classifier, form });
        match self.way {
            Way::Si | Way::SelfSupervised => si(Classifier::Whole),
            Way::SiLayerwise => si(Classifier::LayerWise),
            Way::ForwardBackward => {
                let block = Recipe { head: heads.first().copied().unwrap_or_default(), ..block };
                Chosen::ForwardBackward(ForwardBackward { block, rest: whole(self.head_epochs) })
            }
            Way::Greedy => {
                let fine_tune = (self.fine_tune > 0).then(|| whole(self.fine_tune));
                let block = whole(self.epochs);
                Chosen::Greedy(Greedy { block, heads, classifier, fine_tune })
            }
            Way::LocalLosses => {
                let block = whole(self.epochs);
                Chosen::LocalLosses(LocalLosses { block, heads, classifier })
            }
            Way::EndToEnd => Chosen::EndToEnd(EndToEnd { recipe: whole(self.epochs) }),
            Way::Random => Chosen::Random(RandomFrozen { classifier }),
        }
    }
}

/// What decides the bits of a run: where the output of each block is kept as f16, and of how many
/// copies of a sample it is kept.
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
