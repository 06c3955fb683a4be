//! Strategies: which stages make a net. Data and pure functions, so that a resumed run takes the
//! same stages.
//!
//! Not here: local contrastive learning without labels (Xiong, Ren and Urtasun, "LoCo", NeurIPS 2020),
//! stage-wise learning (Li et al., CVPR 2021) and unsupervised pretraining by autoencoders or
//! Boltzmann machines (Bengio et al., NIPS 2006, their other forms).

mod end_to_end;
mod forward_backward;
mod forward_si;
mod greedy;
mod local_losses;
mod random_frozen;

pub use end_to_end::EndToEnd;
pub use forward_backward::ForwardBackward;
pub use forward_si::{Classifier, ForwardSi, Window};
pub use greedy::Greedy;
pub use local_losses::LocalLosses;
pub use random_frozen::RandomFrozen;

use crate::layer::Layer;
use crate::net::Net;
use crate::stage::{Outcome, Recipe, Stage};

/// Chooses the next stage from what came of those before: nothing else may enter.
pub trait Strategy {
    /// The next stage; `None` where the net is done.
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>>;
}

/// Stage number `done` of those that train blocks `0..count` one by one.
fn block(net: &Net<'_>, done: usize, count: usize) -> Option<(u16, u16)> {
    if done >= count {
        return None;
    }
    let (first, last) = net.block(done)?;
    Some((u16::try_from(first).ok()?, u16::try_from(last).ok()?))
}

/// The layers of blocks `from..to`, of which there is at least one.
fn span(net: &Net<'_>, from: usize, to: usize) -> Option<(u16, u16)> {
    let (first, _) = block(net, from, to)?;
    let (_, last) = block(net, to - 1, to)?;
    Some((first, last))
}

/// The layers behind the features, up to the end.
fn classifier(net: &Net<'_>) -> Option<(u16, u16)> {
    let first = u16::try_from(net.features_end()).ok()?;
    let last = u16::try_from(net.layers.len()).ok()?;
    (first < last).then_some((first, last))
}

/// A recipe with the head of block `at`: its own of `heads`, the last of them for all blocks behind
/// it, the recipe's where there are none.
fn with_head<'m>(recipe: Recipe<'m>, heads: &'m [&'m [Layer]], at: usize) -> Recipe<'m> {
    let head = heads.get(at).or(heads.last()).copied().unwrap_or(recipe.head);
    Recipe { head, ..recipe }
}
