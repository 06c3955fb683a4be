//! Depth.

use sepal_core::backend::Device;
use sepal_core::net::Net;

use super::{Rise, Search, Steer, SteerError, Steered};
use crate::fit::Watch;

/// A net that was grown.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// Held-out SI behind each block that was trained.
    pub separation: Vec<f64>,
    /// How many blocks are kept: up to the one with the highest SI.
    pub kept: usize,
    /// The whole net, those blocks of it trained. [`Steered::up_to`] gives the net that is kept.
    pub net: Steered,
}

impl<D: Device> Steer<'_, D> {
    /// Trains the blocks of `net` one by one, each alone by SI, the ones before frozen, until held-out
    /// SI has not risen over its highest by more than the tolerance for more than `patience` blocks.
    /// The first block is always kept.
    ///
    /// The blocks are bit for bit those that training the whole net gives: what growing saves is the
    /// blocks that are not trained, and what they would cost wherever the net runs.
    ///
    /// # Errors
    /// As [`check`](Steer::check); a tolerance that is not within 0 to 1; a net without blocks of features;
    /// a training that failed.
    pub fn grow(
        &self,
        net: Net<'_>,
        rise: Rise,
        watch: &mut impl Watch,
    ) -> Result<Growth, SteerError> {
        rise.check()?;
        self.check()?;
        if net.features == 0 {
            return Err(SteerError::Block { block: 0, why: "expected one that gives features" });
        }
        let mut net = Steered::new(net, self.seed)?;
        let (mut separation, mut kept) = (Vec::new(), 0);
        let mut search = Search::new(rise);
        for block in 0..usize::from(net.features) {
            self.train(&mut net, block + 1, watch)?;
            let end = net.net().block(block).map_or(0, |(_, end)| end);
            let si = self.separation(&net.model(), end)?;
            separation.push(si);
            if search.rises(si) {
                kept = block + 1;
            }
            if search.is_over() {
                break;
            }
        }
        Ok(Growth { separation, kept, net })
    }
}
