use super::{Strategy, block, classifier, span, with_head};
use crate::layer::Layer;
use crate::net::Net;
use crate::stage::{Cut, Outcome, Recipe, Stage};

/// How the layers behind the features learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Classifier {
    /// Together, by cross-entropy.
    Whole,
    /// As the features do, block by block by SI; only the last block by cross-entropy.
    LayerWise,
}

/// Which blocks learn together.
///
/// A window of more than one block is local back-propagation: errors pass through its blocks, never
/// through the net. It costs the memory of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Window {
    /// How many blocks, at least 1.
    pub blocks: u16,
    /// By how many the window moves, 1 to `blocks`: those that it leaves behind stay as they are,
    /// the others learn on. Another number counts as the nearest of these.
    pub stride: u16,
}

impl Window {
    /// Each block alone: strictly layer by layer.
    pub const ONE: Self = Self { blocks: 1, stride: 1 };

    /// Of `blocks` blocks, moved by one.
    pub const fn sliding(blocks: u16) -> Self {
        Self { blocks, stride: 1 }
    }

    /// Of `blocks` blocks that learn once.
    pub const fn groups(blocks: u16) -> Self {
        Self { blocks, stride: blocks }
    }

    /// The blocks of stage number `done` of those that train `count` blocks, as first and one past
    /// the last; `None` where they are all trained.
    fn blocks(self, done: usize, count: usize) -> Option<(usize, usize)> {
        let blocks = usize::from(self.blocks.max(1));
        let stride = usize::from(self.stride.max(1)).min(blocks);
        let first = done.checked_mul(stride)?;
        // The stage before has reached the last block already.
        if first >= count || done > 0 && first - stride + blocks >= count {
            return None;
        }
        Some((first, (first + blocks).min(count)))
    }

    /// How many stages train `count` blocks.
    fn stages(self, count: usize) -> usize {
        (0..count).take_while(|&done| self.blocks(done, count).is_some()).count()
    }
}

/// Algorithm 1 of Karimi, Kalhor and Sadeghi Tabrizi (Sci. Rep. 2024): each block alone, the ones before
/// it frozen, so that SI rises; then the classifier by cross-entropy.
///
/// Windows of several blocks are not in the paper; [`Window::ONE`] is its form. Nor are heads: its
/// distances are between the block's outputs.
///
/// The paper adds "a classification layer" last and trains hidden dense layers by SI
/// ([`Classifier::LayerWise`]); training the whole head by cross-entropy is as good on
/// LeNet by the soft nearest neighbour, and better by Eq. 7 (`docs/experiments.md`).
///
/// With [`Objective::Goodness`](crate::stage::Objective::Goodness) and without heads blocks learn by the
/// forward-forward algorithm (Hinton, arXiv 2212.13345). Where this departs:
/// - Goodness is the mean of squares, not their sum, and behind a block's norm, which sees positive
///   and negative samples of a batch together. Both are made of the same samples.
/// - Wrong labels are all others alike. The source picks those that its net finds likely with a neutral
///   label, which took it a third of the passes.
/// - The source scales what a layer gives the next to one length. So does an
///   [`L2Normalise`](crate::layer::L2Normalise) as a block's first layer, which is for the net to have: without
///   it a block can repeat what the one before found. Its length is 1, not the square root of D.
/// - Blocks learn one after the other, or with [`LocalLosses`](super::LocalLosses) all at once. Of the
///   source's two readings, the classifier is one, of the last block alone and of samples as they are in
///   place of a neutral label; the label of most goodness is the other.
/// - Standardisation layers are measured on samples as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ForwardSi<'m> {
    /// How blocks are trained.
    pub block: Recipe<'m>,
    /// What is laid over each block while it is the last of its stage, the last for all blocks that
    /// follow; none for the recipe's.
    pub heads: &'m [&'m [Layer]],
    /// Which blocks learn together.
    pub window: Window,
    /// How the classifier is trained.
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
        if let Some((from, to)) = self.window.blocks(done.len(), count) {
            let (first, last) = span(net, from, to)?;
            let recipe = with_head(self.block, self.heads, to - 1);
            return Some(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe });
        }
        let (first, last) = rest.filter(|_| done.len() == self.window.stages(count))?;
        Some(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe: self.classifier })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn windows_cover_all_blocks_and_stop_at_the_last() {
        let stages = |window: Window, count| -> Vec<(usize, usize)> {
            (0..).map_while(|done| window.blocks(done, count)).collect()
        };
        assert_eq!(stages(Window::ONE, 3), [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(stages(Window::sliding(3), 6), [(0, 3), (1, 4), (2, 5), (3, 6)]);
        assert_eq!(stages(Window::groups(3), 7), [(0, 3), (3, 6), (6, 7)]);
        assert_eq!(stages(Window { blocks: 3, stride: 2 }, 6), [(0, 3), (2, 5), (4, 6)]);
        assert_eq!(stages(Window::sliding(9), 2), [(0, 2)]);
        assert_eq!(stages(Window::ONE, 0), []);
        // Out of range: the nearest.
        assert_eq!(stages(Window { blocks: 0, stride: 0 }, 2), stages(Window::ONE, 2));
        let far = Window { blocks: 2, stride: 9 };
        assert_eq!(stages(far, 5), stages(Window::groups(2), 5));
        for (blocks, stride, count) in
            [1, 2, 3, 5].into_iter().flat_map(|b| [(b, 1, 7), (b, 2, 7), (b, b, 7)])
        {
            let window = Window { blocks, stride };
            let stages = stages(window, count);
            assert_eq!(stages.len(), window.stages(count));
            assert_eq!(stages.last().map(|stage| stage.1), Some(count));
            assert!(stages.windows(2).all(|two| two[1].0 <= two[0].1 && two[0].1 < two[1].1));
        }
    }
}
