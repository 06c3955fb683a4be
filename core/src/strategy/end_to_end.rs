use super::Strategy;
use crate::net::Net;
use crate::stage::{Cut, Outcome, Recipe, Stage};

/// All layers at once by back-propagation (Rumelhart, Hinton and Williams, "Learning representations by
/// back-propagating errors", Nature 1986): what layer-wise learning is measured against.
///
/// Karimi et al. (2024) name SGD and Adam, a rate of 0.01 and 200 epochs, and neither momentum, decay nor a
/// schedule: those are the recipe's.
///
/// Standardisation layers stay the identity: there are no features yet to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct EndToEnd<'m> {
    /// How.
    pub recipe: Recipe<'m>,
}

impl Strategy for EndToEnd<'_> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        let last = u16::try_from(net.layers.len()).ok().filter(|_| done.is_empty())?;
        Some(Stage { first: 0, last, calibrate: false, cut: Cut::Whole, recipe: self.recipe })
    }
}
