use super::{Strategy, classifier};
use crate::layer::Layer;
use crate::net::Net;
use crate::stage::{Cut, Outcome, Recipe, Stage};

/// All blocks at once, each by a loss of its own behind a head of its own, no error passing from one
/// block to another; then the classifier.
///
/// With a dense layer on the features as each head and cross-entropy this follows the local
/// prediction loss of Nøkland and Eidnes, "Training neural networks with local error signals", ICML
/// 2019; with [`Objective::PredSim`](crate::stage::Objective::PredSim) that and their similarity matching,
/// predsim. The losses are theirs; where the rest departs:
/// - Similarities there are between the deviations of the channels of a 3x3 convolution of its own,
///   here between what the head gives beside the logits.
/// - The logits there are of means of the features, by weights that begin at zero; here of all features.
/// - Hidden dense layers there have losses of their own and the classifier learns with the blocks; here
///   both learn behind them, by cross-entropy.
/// - They train for hundreds of epochs from small rates, with dropout.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LocalLosses<'m> {
    /// How blocks are trained.
    pub block: Recipe<'m>,
    /// The head of each block, the last for all that follow; none for the recipe's.
    pub heads: &'m [&'m [Layer]],
    /// How the classifier is trained.
    pub classifier: Recipe<'m>,
}

impl Strategy for LocalLosses<'_> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        match done.len() {
            0 => {
                let last = u16::try_from(net.features_end()).ok()?;
                let cut = Cut::EveryBlock(self.heads);
                Some(Stage { first: 0, last, calibrate: false, cut, recipe: self.block })
            }
            1 => {
                let (first, last) = classifier(net)?;
                let recipe = self.classifier;
                Some(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe })
            }
            _ => None,
        }
    }
}
