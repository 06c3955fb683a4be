use super::{Strategy, block};
use crate::net::Net;
use crate::stage::{Cut, Outcome, Recipe, Stage};

/// The first block by SI, then all the others at once by back-propagation (Karimi, Kalhor and
/// Ahmadian, "A forward-backward learning strategy for CNNs via separation index maximizing at the
/// first convolutional layer", BMVC 2023).
///
/// Karimi et al. (2024) compare with it and do not say whether the first block still moves in the
/// second stage: here it is frozen, so the errors never reach it. As in
/// [`EndToEnd`](super::EndToEnd), standardisation layers stay the identity.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ForwardBackward<'m> {
    /// How the first block is trained.
    pub block: Recipe<'m>,
    /// How the rest is.
    pub rest: Recipe<'m>,
}

impl Strategy for ForwardBackward<'_> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        if let Some((first, last)) = block(net, done.len(), 1) {
            return Some(Stage {
                first,
                last,
                calibrate: true,
                cut: Cut::Whole,
                recipe: self.block,
            });
        }
        let first = done.first().filter(|_| done.len() == 1)?.last;
        let last = u16::try_from(net.layers.len()).ok().filter(|&last| first < last)?;
        Some(Stage { first, last, calibrate: false, cut: Cut::Whole, recipe: self.rest })
    }
}
