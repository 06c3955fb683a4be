use super::{Strategy, block, classifier, with_head};
use crate::layer::Layer;
use crate::net::Net;
use crate::stage::{Cut, Outcome, Recipe, Stage};

/// Each block alone by cross-entropy behind an auxiliary classifier that is discarded with its
/// stage; then the classifier on the frozen blocks; then, where asked for, all layers at once.
///
/// With one dense layer as each head and with [`fine_tune`](Self::fine_tune) this is the supervised
/// greedy form of Bengio, Lamblin, Popovici and Larochelle, "Greedy layer-wise training of deep
/// networks", NIPS 2006. Karimi et al. (2024) compare with a "modified" form and do not say what is
/// modified; its accuracies, far below end to end's, are those of blocks that stay frozen: `None`.
/// Hidden dense layers are of the classifier here and learn with it, where Bengio et al. train each alone.
///
/// With heads of k layers it is that of Belilovsky, Eickenberg and Oyallon, "Greedy layerwise
/// learning can scale to ImageNet", ICML 2019.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Greedy<'m> {
    /// How blocks are trained.
    pub block: Recipe<'m>,
    /// The auxiliary classifier of each block, the last for all that follow; none for the recipe's.
    pub heads: &'m [&'m [Layer]],
    /// How the classifier is trained.
    pub classifier: Recipe<'m>,
    /// How all layers are, last of all.
    pub fine_tune: Option<Recipe<'m>>,
}

impl Strategy for Greedy<'_> {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        let count = usize::from(net.features);
        if let Some((first, last)) = block(net, done.len(), count) {
            let recipe = with_head(self.block, self.heads, done.len());
            return Some(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe });
        }
        let classifies = classifier(net).filter(|_| done.len() == count);
        if let Some((first, last)) = classifies {
            let recipe = self.classifier;
            return Some(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe });
        }
        let last = u16::try_from(net.layers.len()).ok()?;
        // Not once more after itself.
        let tuned = done.last().is_some_and(|stage| done.len() > count && stage.first == 0);
        let recipe = self.fine_tune.filter(|_| !tuned)?;
        Some(Stage { first: 0, last, calibrate: false, cut: Cut::Whole, recipe })
    }
}
