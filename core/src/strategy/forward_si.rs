use super::{Strategy, block, classifier};
use crate::net::Net;
use crate::stage::{Outcome, Recipe, Stage};

/// How the layers behind the features learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Classifier {
    /// Together, by cross-entropy.
    Whole,
    /// As the features do, block by block by SI; only the last block by cross-entropy.
    LayerWise,
}

/// Algorithm 1 of Karimi, Kalhor and Tabrizi (Sci. Rep. 2024): each block alone, the ones before
/// it frozen, so that SI rises; then the classifier by cross-entropy.
///
/// The paper adds "a classification layer" last and trains hidden dense layers by SI
/// ([`Classifier::LayerWise`]); training the whole head by cross-entropy is the form that is
/// measured to be better on LeNet.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ForwardSi<'m> {
    /// How blocks are trained.
    pub block: Recipe<'m>,
    /// How the classifier is.
    pub classifier: Recipe<'m>,
    /// Which layers that is.
    pub form: Classifier,
}

impl Strategy for ForwardSi<'_> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        let (count, rest) = match self.form {
            Classifier::Whole => (usize::from(net.features), classifier(net)),
            Classifier::LayerWise => {
                let last = net.blocks.len().checked_sub(1)?;
                (last, block(net, last, net.blocks.len()))
            }
        };
        if let Some((first, last)) = block(net, done.len(), count) {
            return Some(Stage { first, last, calibrate: true, recipe: self.block });
        }
        let (first, last) = rest.filter(|_| done.len() == count)?;
        Some(Stage { first, last, calibrate: true, recipe: self.classifier })
    }
}
