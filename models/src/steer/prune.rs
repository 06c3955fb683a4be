//! Filters.

use sepal_core::backend::Device;
use sepal_core::layer::{Conv2d, Dense, Layer};
use sepal_core::net::Net;
use sepal_core::plan::PlanError;
use sepal_core::rng::Permutation;
use sepal_core::shape::Shape;
use sepal_core::si::Tally;
use sepal_core::source::Source;

use super::{Steer, SteerError, Steered, giver, judged, numbers, setting};
use crate::features::Features;
use crate::fit::Watch;

/// By what a filter stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Score {
    /// Held-out SI of the filter's own map, alone
    Own,
    /// Held-out SI that the block loses without the filter, all others there
    LeftOut,
    /// The same, anew after each filter that went: backward elimination
    Eliminated,
    /// The sum of its weights' sizes (Li et al., ICLR 2017): a control
    L1,
    /// Chance: a control
    Random,
}

impl<D: Device> Steer<'_, D> {
    /// The filters of a trained block, the first to go first. Those of equal score go from the lowest
    /// number on.
    ///
    /// The maps are what the block gives, its norm, activation and pool included. Maps of several
    /// filters are compared scaled to length 1, as blocks are trained; a map alone as it is.
    ///
    /// `Own` takes one search for each of the K filters. `LeftOut` and `Eliminated` hold products of all
    /// held-out samples with the bank, 4 bytes for each and for each filter.
    ///
    /// # Errors
    /// A block without a layer that gives it its channels; features that are no numbers.
    pub fn order(&self, net: &Steered, block: usize, score: Score) -> Result<Vec<u32>, SteerError> {
        let model = net.model();
        let giver = giver(&model.net, block)?;
        let filters = model.net.shape(giver + 1)?.c;
        let all: Vec<u32> = (0..filters).collect();
        let (_, end) = model.net.block(block).unwrap_or_default();
        let given = model.net.shape(end)?.c;
        if given != filters {
            return Err(SteerError::Block { block, why: "expected a channel for each filter" });
        }
        let scores: Vec<f64> = match score {
            Score::Random => {
                let order = Permutation::new(self.seed, block as u32, filters);
                return Ok(all.into_iter().map(|place| order.get(place)).collect());
            }
            Score::L1 => {
                let [weight, ..] = numbers(&model, giver)?;
                let row = (weight.len() / all.len().max(1)).max(1);
                let size = |row: &[f32]| row.iter().map(|&w| f64::from(w.abs())).sum();
                weight.chunks(row).map(size).collect()
            }
            Score::Own => {
                let maps = self.features(&model, end)?;
                let own = |&filter: &u32| {
                    let [held_out, bank] = maps.each_ref().map(|maps| maps.channels(&[filter]));
                    judged(held_out.cross_si(self.device, &bank)?, end)
                };
                all.iter().map(own).collect::<Result<_, _>>()?
            }
            // The SI that is left, negative: what is lost, but for a summand.
            Score::LeftOut => {
                let products = Products::new(&self.features(&model, end)?);
                let left = |&filter: &u32| Ok(-judged(products.without(filter), end)?);
                all.iter().map(left).collect::<Result<_, SteerError>>()?
            }
            Score::Eliminated => {
                let mut products = Products::new(&self.features(&model, end)?);
                let (mut left, mut order) = (all, Vec::new());
                while left.len() > 1 {
                    let mut best: Option<(f64, usize)> = None;
                    for (at, &filter) in left.iter().enumerate() {
                        let si = judged(products.without(filter), end)?;
                        if best.is_none_or(|(most, _)| si > most) {
                            best = Some((si, at));
                        }
                    }
                    let gone = left.remove(best.map_or(0, |(_, at)| at));
                    products.take_out(gone);
                    order.push(gone);
                }
                order.append(&mut left);
                return Ok(order);
            }
        };
        let mut order = all;
        let of = |filter: u32| scores.get(filter as usize).copied().unwrap_or(f64::NAN);
        order.sort_by(|&a, &b| of(a).total_cmp(&of(b)));
        Ok(order)
    }

    /// Trains the blocks of `net` one by one, each alone by SI, and cuts a share of its filters out before
    /// the next is trained: blocks behind a cut learn from what is left, which costs less than learning
    /// from all, and nothing has to be measured again. The classifier stays as it was drawn.
    ///
    /// # Errors
    /// As [`train`](Steer::train), [`order`](Self::order), [`stay`] and [`Steered::cut`].
    pub fn train_pruned(
        &self,
        net: Net<'_>,
        score: Score,
        share: f64,
        watch: &mut impl Watch,
    ) -> Result<Steered, SteerError> {
        let mut net = Steered::new(net, self.seed)?;
        let mut kept: Vec<Vec<u32>> = Vec::new();
        for block in 0..usize::from(net.features) {
            self.train(&mut net, block + 1, watch)?;
            kept.push(stay(&self.order(&net, block, score)?, share)?);
            net = net.cut(&kept)?;
            // All that is there now stays.
            if let Some(kept) = kept.last_mut() {
                *kept = (0..kept.len() as u32).collect();
            }
        }
        Ok(net)
    }
}

/// Products of held-out samples with those of the bank, filter by filter: what distances of samples of
/// length 1 are made of. With them a filter is left out by a subtraction, and not by another search
/// over all features.
///
/// ```text
/// p[f,i,j] = sum_d x[i,f,d] y[j,f,d],   |x_i/|x_i| - y_j/|y_j||^2 = 2 - 2 sum_f p[f,i,j] / (|x_i| |y_j|)
/// ```
/// They take 4 bytes for each filter, held-out sample and sample of the bank.
pub(super) struct Products {
    /// p, filter by filter.
    each: Vec<Vec<f32>>,
    /// Their sum over the filters that are there.
    sum: Vec<f64>,
    /// Squared lengths, filter by filter and their sum: of held-out samples, and of the bank.
    lengths: [(Vec<Vec<f32>>, Vec<f64>); 2],
    labels: [Vec<u16>; 2],
}

impl Products {
    pub(super) fn new(maps: &[Features; 2]) -> Self {
        let mut each = Vec::new();
        let mut squares = [Vec::new(), Vec::new()];
        for filter in 0..maps[0].shape().c {
            let own = maps.each_ref().map(|maps| maps.channels(&[filter]));
            let rows = own.each_ref().map(|own| own.data().chunks_exact(own.dim().max(1)));
            let [x, y] = &rows;
            let of = |x| y.clone().map(move |y| dot(x, y));
            each.push(x.clone().flat_map(of).collect());
            for (squares, rows) in squares.iter_mut().zip(rows) {
                squares.push(rows.map(|row| dot(row, row)).collect());
            }
        }
        let sum = total(&each);
        let lengths = squares.map(|each| {
            let sum = total(&each);
            (each, sum)
        });
        Self { each, sum, lengths, labels: maps.each_ref().map(|maps| maps.labels().to_vec()) }
    }

    /// Cross-SI of all filters but one of those that are there.
    pub(super) fn without(&self, filter: u32) -> Tally {
        let filter = filter as usize;
        let (none, [held_out, bank]) = (Vec::new(), &self.labels);
        let gone = self.each.get(filter).unwrap_or(&none);
        // 1 over the length; 0 of what has none, which is as far from all others.
        let [own, others] = self.lengths.each_ref().map(|(each, sum)| -> Vec<f64> {
            let gone = each.get(filter).unwrap_or(&none);
            let left = sum.iter().zip(gone).map(|(sum, &gone)| sum - f64::from(gone));
            // What rounding leaves of nothing.
            let some = |(left, sum): (f64, &f64)| {
                if left > sum * 1e-7 { left.sqrt().recip() } else { left * 0.0 }
            };
            left.zip(sum).map(some).collect()
        });
        let width = bank.len().max(1);
        let rows = self.sum.chunks(width).zip(gone.chunks(width));
        let nearest = |((sum, gone), own): ((&[f64], &[f32]), &f64)| {
            let mut best = (f64::NEG_INFINITY, None);
            for (((sum, &gone), other), &label) in sum.iter().zip(gone).zip(&others).zip(bank) {
                let near = match (*own == 0.0, *other == 0.0) {
                    (false, false) => (sum - f64::from(gone)) * own * other,
                    (true, true) => 1.0,
                    _ => 0.5,
                };
                if near > best.0 {
                    best = (near, Some(label));
                }
            }
            best.1
        };
        let found = rows.zip(&own).map(nearest).zip(held_out);
        found
            .map(|(found, &label)| found.map(|found| f64::from(u8::from(found == label))))
            .collect()
    }

    /// Takes a filter out for good.
    pub(super) fn take_out(&mut self, filter: u32) {
        let filter = filter as usize;
        let gone = self.each.get_mut(filter).into_iter().flatten();
        for (sum, gone) in self.sum.iter_mut().zip(gone) {
            *sum -= f64::from(std::mem::take(gone));
        }
        // Summed up anew: what has no length left is to have none.
        for (each, sum) in &mut self.lengths {
            each.get_mut(filter).into_iter().for_each(|gone| gone.fill(0.0));
            *sum = total(each);
        }
    }
}

/// The sums over the filters.
fn total(each: &[Vec<f32>]) -> Vec<f64> {
    let mut sums = vec![0.0; each.first().map_or(0, Vec::len)];
    for own in each {
        sums.iter_mut().zip(own).for_each(|(sum, &p)| *sum += f64::from(p));
    }
    sums
}

/// The product of two rows, in eight sums.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (x, y) in x.iter().zip(y) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

/// The filters that stay where this share of them goes, rounded, those first that stand first in
/// `order`; at least one stays. Ascending, as [`Steered::cut`] takes them.
///
/// # Errors
/// A share that is not within 0 to 1.
///
/// ```
/// use sepal_models::steer::stay;
/// assert_eq!(stay(&[3, 0, 2, 1], 0.5)?, [1, 2]);
/// # Ok::<(), sepal_models::steer::SteerError>(())
/// ```
pub fn stay(order: &[u32], share: f64) -> Result<Vec<u32>, SteerError> {
    if !(0.0..=1.0).contains(&share) {
        return Err(setting("share", share, "a number from 0 to 1"));
    }
    let gone = (order.len() as f64 * share).round() as usize;
    let gone = gone.min(order.len().saturating_sub(1));
    let mut left = order.get(gone..).unwrap_or_default().to_vec();
    left.sort_unstable();
    Ok(left)
}

/// What reaches a layer: its whole shape, and which of its channels are left.
struct Reached {
    shape: Shape,
    channels: Vec<u32>,
}

impl Reached {
    fn whole(shape: Shape) -> Self {
        Self { shape, channels: (0..shape.c).collect() }
    }

    fn is_whole(&self) -> bool {
        self.channels.len() == self.shape.c as usize
    }

    /// The places in a flattened sample of the channels that are left.
    fn places(&self) -> impl Iterator<Item = u32> {
        let plane = self.shape.plane();
        self.channels.iter().flat_map(move |&c| c * plane..(c + 1) * plane)
    }
}

/// The elements of `numbers` at `places`; nothing of nothing.
fn pick(numbers: &[f32], places: impl Iterator<Item = u32>) -> Vec<f32> {
    places.filter_map(|place| numbers.get(place as usize).copied()).collect()
}

/// Rows of `len` elements, of which those at `places` are left.
fn pick_rows(numbers: &[f32], rows: &[u32], len: u32, places: &[u32]) -> Vec<f32> {
    let row = |&row: &u32| numbers.get((row * len) as usize..((row + 1) * len) as usize);
    rows.iter().filter_map(row).flat_map(|row| pick(row, places.iter().copied())).collect()
}

impl Steered {
    /// The net with no more than these filters of each of its leading blocks, lowest number first;
    /// blocks behind them keep all. Channels are cut out of the weights of the layers that give them, of
    /// norms, and of the layers that read them: what is left is a smaller net of the same form, whose
    /// model file every backend runs.
    ///
    /// Block i of it gives, but for rounding, what block i of the whole net gives where the other
    /// filters' maps are 0 at the end of their block, and behind a standardisation, where a cut feature
    /// stands at its mean. Norms keep the statistics of the whole net: [`Steer::settle`] measures them
    /// anew. The stages of its blocks count as over; its classifier's does not.
    ///
    /// # Errors
    /// Lists that are empty, do not ascend, or name filters or blocks that are not there; a layer that
    /// cannot lose channels: a residual addition, a projection, groups other than depthwise, and what
    /// rounds activations.
    pub fn cut(&self, kept: &[Vec<u32>]) -> Result<Self, SteerError> {
        let model = self.model();
        let net = model.net;
        let mut givers = Vec::new();
        for (block, kept) in kept.iter().enumerate() {
            let giver = giver(&net, block)?;
            let filters = net.shape(giver + 1)?.c;
            let there = kept.last().is_some_and(|&last| last < filters);
            if !there || !kept.is_sorted_by(|a, b| a < b) {
                let found = format!("{kept:?} of the {filters} of block {block}");
                return Err(setting(
                    "filters",
                    found,
                    "some of them, each once, in ascending order",
                ));
            }
            givers.push((giver, kept));
        }
        let mut cut = Self {
            layers: Vec::new(),
            weights: Vec::new(),
            blocks: self.blocks.clone(),
            outcomes: self.outcomes.iter().take(self.features.into()).copied().collect(),
            ..*self
        };
        let mut reached = Reached::whole(net.input.shape);
        // What reaches the block, which a residual addition may read again.
        let mut block_is_whole = true;
        for (at, &layer) in net.layers.iter().enumerate() {
            if at == 0 || self.blocks.contains(&(at as u16)) {
                block_is_whole = reached.is_whole();
            }
            let whole = Reached::whole(
                layer
                    .output(reached.shape)
                    .ok_or(PlanError::Shape { layer: at, input: reached.shape })?,
            );
            let given = givers.iter().find(|(giver, _)| *giver == at);
            let own = given.map_or(whole.channels, |(_, kept)| (*kept).clone());
            let [weight, bias, mean, variance] = numbers(&model, at)?;
            let refused = SteerError::Layer { layer: at, name: layer.name() };
            let (layer, channels, tensors) = match layer {
                Layer::Conv2d(l) if l.groups == 1 => {
                    let taps = u32::from(l.kernel.0) * u32::from(l.kernel.1);
                    let read: Vec<u32> =
                        reached.channels.iter().flat_map(|&c| c * taps..(c + 1) * taps).collect();
                    let weight = pick_rows(&weight, &own, reached.shape.c * taps, &read);
                    let bias = pick(&bias, own.iter().copied());
                    let layer = Layer::Conv2d(Conv2d { filters: own.len() as u32, ..l });
                    (layer, own, [weight, bias, mean, variance])
                }
                Layer::Conv2d(l) if l.groups == reached.shape.c => {
                    let taps = u32::from(l.kernel.0) * u32::from(l.kernel.1);
                    let each = l.filters / l.groups;
                    let left: Vec<u32> =
                        reached.channels.iter().flat_map(|&c| c * each..(c + 1) * each).collect();
                    let row: Vec<u32> = (0..taps).collect();
                    let weight = pick_rows(&weight, &left, taps, &row);
                    let bias = pick(&bias, left.iter().copied());
                    let groups = reached.channels.len() as u32;
                    let layer = Layer::Conv2d(Conv2d { filters: groups * each, groups, ..l });
                    (layer, left, [weight, bias, mean, variance])
                }
                Layer::Dense(l) => {
                    let read: Vec<u32> = reached.places().collect();
                    let features = reached.shape.sample().unwrap_or(0);
                    let weight = pick_rows(&weight, &own, features, &read);
                    let bias = pick(&bias, own.iter().copied());
                    let layer = Layer::Dense(Dense { units: own.len() as u32, ..l });
                    (layer, own, [weight, bias, mean, variance])
                }
                Layer::BatchNorm(_) => {
                    let of = |numbers: Vec<f32>| pick(&numbers, reached.channels.iter().copied());
                    let tensors = [weight, bias, mean, variance].map(of);
                    (layer, reached.channels, tensors)
                }
                Layer::Standardise(_) => {
                    let tensors =
                        [weight, bias, mean, variance].map(|own| pick(&own, reached.places()));
                    (layer, reached.channels, tensors)
                }
                Layer::Flatten(_) => (layer, reached.places().collect(), Default::default()),
                Layer::SpaceToDepth(l) => {
                    let squares = 0..u32::from(l.factor) * u32::from(l.factor);
                    let of = |square| {
                        let channels = reached.channels.iter();
                        channels.map(move |&c| square * reached.shape.c + c)
                    };
                    (layer, squares.flat_map(of).collect(), Default::default())
                }
                Layer::Activation(_)
                | Layer::MaxPool(_)
                | Layer::AvgPool(_)
                | Layer::AvgPoolTo(_)
                | Layer::GlobalAvgPool(_)
                | Layer::KMaxPool(_)
                | Layer::ChannelStd(_)
                | Layer::Dropout(_)
                | Layer::L2Normalise(_) => (layer, reached.channels, Default::default()),
                _ if reached.is_whole() && block_is_whole => {
                    (layer, own, [weight, bias, mean, variance])
                }
                _ => return Err(refused),
            };
            reached = Reached { shape: whole.shape, channels };
            cut.layers.push(layer);
            tensors.into_iter().for_each(|numbers| cut.weights.extend(numbers));
        }
        cut.net().check()?;
        Ok(cut)
    }
}
