use super::{Strategy, block, classifier};
use crate::net::Net;
use crate::stage::{Cut, Objective, Outcome, Recipe, Stage};

/// The control: feature layers stay as they were drawn, with batch norm measured on the data;
/// only the classifier learns. What SI learning adds is the distance from this.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RandomFrozen<'m> {
    /// How the classifier is trained.
    pub classifier: Recipe<'m>,
}

impl Strategy for RandomFrozen<'_> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        let count = usize::from(net.features);
        if let Some((first, last)) = block(net, done.len(), count) {
            let recipe = Recipe {
                objective: Objective::Statistics,
                head: &[],
                epochs: 1,
                ..self.classifier
            };
            return Some(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe });
        }
        let (first, last) = classifier(net).filter(|_| done.len() == count)?;
        Some(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe: self.classifier })
    }
}
