use super::Strategy;
use crate::net::Net;
use crate::stage::{Cut, Outcome, Recipe, Stage};

/// All layers at once by back-propagation: what layer-wise learning is measured against.
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
