use super::{Strategy, span, with_head};
use crate::layer::Layer;
use crate::net::Net;
use crate::stage::{Cut, Outcome, Recipe, Stage};

/// The first block by SI, then all the others at once by back-propagation (Karimi, Kalhor and
/// Ahmadian, "A forward-backward learning strategy for CNNs via separation index maximizing at the
/// first convolutional layer", BMVC 2023).
///
/// There a ranking loss is minimised by a quasi least squares method (abstract of the preprint,
/// arXiv:2201.05217); here the block learns by its recipe. Karimi et al. (2024) compare with it and do
/// not say whether the first block still moves in the second stage: here it is frozen, so the errors
/// never reach it. As in [`EndToEnd`](super::EndToEnd), standardisation layers stay the identity. More
/// than one block in front is not in the sources.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ForwardBackward<'m> {
    /// How many blocks learn by SI, together; at least 1, at most those of the features. Another
    /// number counts as the nearest of these.
    pub blocks: u16,
    /// How they are trained.
    pub block: Recipe<'m>,
    /// What is laid over each block while it is the last of these, as in
    /// [`ForwardSi`](super::ForwardSi); none for the recipe's.
    pub heads: &'m [&'m [Layer]],
    /// How the rest is.
    pub rest: Recipe<'m>,
}

impl Strategy for ForwardBackward<'_> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        if done.is_empty() {
            let count = usize::from(self.blocks.clamp(1, net.features.max(1)));
            let (first, last) = span(net, 0, count)?;
            return Some(Stage {
                first,
                last,
                calibrate: true,
                cut: Cut::Whole,
                recipe: with_head(self.block, self.heads, count - 1),
            });
        }
        let first = done.first().filter(|_| done.len() == 1)?.last;
        let last = u16::try_from(net.layers.len()).ok().filter(|&last| first < last)?;
        Some(Stage { first, last, calibrate: false, cut: Cut::Whole, recipe: self.rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::RELU;
    use crate::net::{Input, Normalisation};
    use crate::optim::Rule;
    use crate::schedule::Schedule;
    use crate::shape::Shape;
    use crate::stage::{Objective, Stop};
    use std::vec::Vec;

    #[test]
    fn the_first_blocks_learn_together_and_then_all_others() {
        let input = Input { shape: Shape::rows(1, 2), normalisation: Normalisation::NONE };
        let net = Net { input, layers: &[RELU; 8], blocks: &[2, 3, 5, 8], features: 3 };
        let block = Recipe {
            head: &[],
            objective: Objective::CrossEntropy { smoothing: 0.0 },
            epochs: 1,
            batch: 2,
            micro_batches: 1,
            rule: Rule::adam(),
            rate: 0.01,
            schedule: Schedule::Constant,
            stop: Stop::Never,
        };
        let heads: [&[Layer]; 2] = [&[], &[RELU]];
        // Of each stage the first layer, one past the last, and the layers of its head.
        let stages = |blocks| -> Vec<(u16, u16, usize)> {
            let strategy = ForwardBackward { blocks, block, heads: &heads, rest: block };
            let (mut done, mut found) = (Vec::new(), Vec::new());
            while let Some(Stage { first, last, recipe, .. }) = strategy.next(&net, &done) {
                done.push(Outcome { first, last, ..Outcome::default() });
                found.push((first, last, recipe.head.len()));
            }
            found
        };
        assert_eq!(stages(1), [(0, 2, 0), (2, 8, 0)]);
        assert_eq!(stages(2), [(0, 3, 1), (3, 8, 0)]);
        assert_eq!(stages(3), [(0, 5, 1), (5, 8, 0)]);
        // Out of range: the nearest.
        assert_eq!((stages(0), stages(9)), (stages(1), stages(3)));
    }
}
