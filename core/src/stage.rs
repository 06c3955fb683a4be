//! Stages: which layers are trained together, towards what, and how.

use crate::layer::Layer;
use crate::loss::CENTRE_SCRATCH;
use crate::optim::Rule;
use crate::schedule::Schedule;
use crate::shape::Shape;

/// The stand-in for SI that is minimised; see [`loss`](crate::loss).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Loss {
    /// [`triplet`](crate::loss::triplet): Eq. 7 of the paper, literally.
    Triplet,
    /// [`margin`](crate::loss::margin).
    Margin {
        /// By how much the other label's neighbour must be farther.
        margin: f32,
    },
    /// [`soft_nearest`](crate::loss::soft_nearest).
    SoftNearest {
        /// T: the smaller, the fewer neighbours count.
        temperature: f32,
    },
    /// [`soft_centre`](crate::loss::soft_centre): centres of labels in the place of neighbours. On a GPU the
    /// host computes it, from copies.
    SoftCentre {
        /// T: the smaller, the fewer centres count.
        temperature: f32,
    },
}

/// What a stage works towards.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Objective {
    /// Nothing is trained: running and calibrated statistics are measured in one pass.
    Statistics,
    /// A higher Separation Index of the chain's output.
    Separation(Loss),
    /// The same without labels: a batch holds two views of each of its samples, two draws of the
    /// source, and a sample's own label is the sample itself. Its nearest neighbour is to be its
    /// other view.
    ///
    /// The outlook of Karimi et al. (2024) names self-supervised learning and leaves the form open.
    /// With [`Loss::SoftNearest`] this is the loss of SimCLR (Chen et al., ICML 2020) over squared
    /// distances. A source that draws a sample alike each time teaches nothing.
    Views(Loss),
    /// A classifier, by cross-entropy of the chain's output as logits.
    CrossEntropy {
        /// The share of each target that is spread over all classes; 0 for none.
        smoothing: f32,
    },
    /// [`pred_sim`](crate::loss::pred_sim): the chain's output is what is compared, then logits.
    PredSim {
        /// The share of the similarities in the loss, 0 to 1.
        beta: f32,
        /// The first columns of the output, whose similarities are to be those of the labels.
        similar: u32,
    },
    /// [`goodness`](crate::loss::goodness): the forward-forward algorithm. A batch holds each of its
    /// samples twice: with its label written into it, then with a wrong one, drawn anew each time (see
    /// [`label`](crate::label)). The chain's output is to be large for the first and small for the second.
    /// Its stages read raw samples, and run them through all layers before their first.
    Goodness {
        /// The mean of squares above which a sample counts as rightly labelled.
        threshold: f32,
        /// How many labels there are.
        classes: u32,
    },
}

impl Objective {
    /// What stands in for SI, where SI is what the stage works towards.
    pub const fn loss(&self) -> Option<Loss> {
        match *self {
            Self::Separation(loss) | Self::Views(loss) => Some(loss),
            Self::Statistics
            | Self::CrossEntropy { .. }
            | Self::PredSim { .. }
            | Self::Goodness { .. } => None,
        }
    }

    /// What it is called.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Statistics => "statistics",
            Self::Separation(_) => "separation",
            Self::Views(_) => "separation of views",
            Self::CrossEntropy { .. } => "cross-entropy",
            Self::PredSim { .. } => "prediction and similarity",
            Self::Goodness { .. } => "goodness",
        }
    }

    /// How many places of a batch each sample takes.
    pub const fn views(&self) -> u32 {
        if matches!(self, Self::Views(_) | Self::Goodness { .. }) { 2 } else { 1 }
    }

    /// The number of classes whose labels are written into samples; `None` where samples stay as they
    /// are drawn. Where there is one, nothing that layers made of a sample can be kept for the next draw.
    pub const fn written(&self) -> Option<u32> {
        match *self {
            Self::Goodness { classes, .. } => Some(classes),
            _ => None,
        }
    }

    /// Scratch bytes that the reference takes for features of shape `(N, D, 1, 1)`.
    pub const fn scratch(&self, features: Shape) -> usize {
        let numbers = match self {
            Self::PredSim { .. } => 2,
            _ => match self.loss() {
                Some(Loss::SoftNearest { .. }) => 1,
                Some(Loss::SoftCentre { .. }) => CENTRE_SCRATCH,
                _ => 0,
            },
        };
        (features.n as usize).saturating_mul(numbers * size_of::<f32>())
    }

    /// Whether nearest neighbours are looked up.
    pub const fn pairs(&self) -> bool {
        matches!(self.loss(), Some(Loss::Triplet | Loss::Margin { .. }))
    }
}

/// When a stage ends before its epochs are over.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Stop {
    /// Never.
    Never,
    /// When the held-out SI, judged after each epoch, has not risen. Whoever drives the stage judges it
    /// ([`Session::judge`](crate::train::Session::judge)): where nobody does, the stage makes all its epochs.
    SiPlateau {
        /// Epochs without a rise that are borne.
        patience: u16,
        /// What counts as a rise.
        min_delta: f32,
    },
}

/// How a stage is trained, whatever its layers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Recipe<'m> {
    /// Layers after the trained ones, discarded with the stage: a readout, or an auxiliary net.
    pub head: &'m [Layer],
    /// What is minimised at their output.
    pub objective: Objective,
    /// Passes over the data.
    pub epochs: u16,
    /// Samples in a step.
    pub batch: u32,
    /// Equal parts of a batch that are run one after the other, their gradients added up before the
    /// update: gradient accumulation. Memory for activations is that of one part. Each part has its own
    /// batch statistics, and its own neighbours where the objective looks for some, so more than one
    /// part is another training wherever layers or losses look across a batch. 1 for the batch as one.
    pub micro_batches: u32,
    /// The optimiser.
    pub rule: Rule,
    /// Its first rate.
    pub rate: f32,
    /// How the rate changes.
    pub schedule: Schedule,
    /// When to end early.
    pub stop: Stop,
}

impl Recipe<'_> {
    /// Samples that run together: a batch's share of one of its parts, 0 where there are no parts.
    pub const fn micro_batch(&self) -> u32 {
        match self.batch.checked_div(self.micro_batches) {
            Some(size) => size,
            None => 0,
        }
    }
}

/// Where errors stop on their way back through a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Cut<'m> {
    /// At its first layer.
    Whole,
    /// At the first layer of each block. All blocks learn in every step, each towards the recipe's
    /// objective behind a head of its own, from what the one before made of the batch. These are
    /// their heads, the last for all blocks that follow; none for the recipe's.
    EveryBlock(&'m [&'m [Layer]]),
}

/// Layers `first..last` of a net, trained by a recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Stage<'m> {
    /// The first layer that is trained; those before it are frozen.
    pub first: u16,
    /// One past the last; those after it do not run.
    pub last: u16,
    /// Whether standardisation layers are measured on all samples before the first step.
    pub calibrate: bool,
    /// Where errors stop.
    pub cut: Cut<'m>,
    /// How.
    pub recipe: Recipe<'m>,
}

/// What came of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Outcome {
    /// The first layer that was trained.
    pub first: u16,
    /// One past the last.
    pub last: u16,
    /// Passes made.
    pub epochs: u16,
    /// Updates made.
    pub updates: u32,
    /// The mean loss of the last pass.
    pub loss: f32,
    /// SI within the batches of the last pass, or the share classified rightly.
    pub score: f32,
    /// The best held-out SI that was judged; NaN-free, -1 where none was.
    pub held_out: f32,
}
