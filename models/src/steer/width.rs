//! Width.

use sepal_core::backend::Device;
use sepal_core::net::Net;

use super::{Rise, Search, Steer, SteerError, Steered, setting};
use crate::fit::Watch;

/// A block of some width.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Tried {
    /// The block.
    pub block: usize,
    /// Filters or units of the layer that gives its channels.
    pub filters: u32,
    /// Held-out SI behind it.
    pub separation: f64,
}

/// A net whose blocks chose their widths.
#[derive(Clone, Debug, PartialEq)]
pub struct Widened {
    /// What was tried, in order.
    pub tried: Vec<Tried>,
    /// The filters that each block has.
    pub filters: Vec<u32>,
    /// The net, all its blocks trained; the classifier as it was drawn.
    pub net: Steered,
}

impl<D: Device> Steer<'_, D> {
    /// Chooses the filters of each block, from the first to the last: trains it with each of `widths`,
    /// from the narrowest on, behind the blocks that are chosen already, until held-out SI has not
    /// risen over its highest by more than the tolerance for more than `patience` widths, and keeps the
    /// width with the highest.
    ///
    /// Each width costs the training of one block. A tolerance of 0 buys any gain, chance included.
    ///
    /// # Errors
    /// As [`grow`](Steer::grow); widths that do not ascend from 1 on; a block whose channels cannot
    /// change, see [`Steered::with_filters`].
    pub fn widen(
        &self,
        net: Net<'_>,
        widths: &[u32],
        rise: Rise,
        watch: &mut impl Watch,
    ) -> Result<Widened, SteerError> {
        rise.check()?;
        self.check()?;
        let ascend = widths.is_sorted_by(|a, b| a < b) && widths.first().is_some_and(|&w| w > 0);
        if !ascend {
            let found = format!("{widths:?}");
            return Err(setting("widths", found, "numbers of filters that ascend, from 1 on"));
        }
        let mut net = Steered::new(net, self.seed)?;
        let (mut tried, mut chosen) = (Vec::new(), Vec::new());
        for block in 0..usize::from(net.features) {
            let mut search = Search::new(rise);
            let mut best = None;
            for &filters in widths {
                let mut candidate = net.with_filters(block, filters)?;
                self.train(&mut candidate, block + 1, watch)?;
                let end = candidate.net().block(block).map_or(0, |(_, end)| end);
                let separation = self.separation(&candidate.model(), end)?;
                tried.push(Tried { block, filters, separation });
                if search.rises(separation) {
                    best = Some((filters, candidate));
                }
                if search.is_over() {
                    break;
                }
            }
            if let Some((filters, candidate)) = best {
                chosen.push(filters);
                net = candidate;
            }
        }
        Ok(Widened { tried, filters: chosen, net })
    }
}
