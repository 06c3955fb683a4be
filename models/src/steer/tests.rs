//! Nets steered on tiny data.

use sepal_core::layer::{
    BatchNorm, Conv2d, Dense, Flatten, GlobalAvgPool, Layer, MaxPool, RELU, Residual, SpaceToDepth,
    Standardise,
};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::reference::OnReference;
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;

use super::*;
use crate::data::Samples;

/// Images of `side` pixels a side whose classes differ in the mean of their upper half, as far as
/// `contrast` says, and noise.
fn images(samples: u32, side: u32, classes: u16, contrast: f32, seed: u64) -> Dataset {
    let mut rng = Rng::new(seed, Purpose::Weights, 0, 0);
    let labels: Vec<u16> = (0..samples).map(|i| (i % u32::from(classes)) as u16).collect();
    let mut data = Vec::new();
    for &label in &labels {
        for pixel in 0..side * side {
            let upper = if pixel < side * side / 2 { contrast * f32::from(label) } else { 0.0 };
            data.push(upper + rng.normal());
        }
    }
    let names = (0..classes).map(|class| class.to_string()).collect();
    Dataset::new(Shape::new(1, 1, side, side), Samples::F32(data), labels, names).unwrap()
}

const fn conv(filters: u32) -> Layer {
    Layer::Conv2d(Conv2d { pad: (1, 1), bias: false, ..Conv2d::new(filters, 3) })
}

const NORM: Layer = Layer::BatchNorm(BatchNorm::new());

fn input(side: u32) -> Input {
    Input { shape: Shape::new(1, 1, side, side), normalisation: Normalisation::NONE }
}

/// Three blocks and a dense layer behind a standardisation.
const THREE: &[Layer] = &[
    conv(4),
    NORM,
    RELU,
    conv(5),
    NORM,
    RELU,
    Layer::MaxPool(MaxPool::new(2)),
    conv(6),
    NORM,
    RELU,
    Layer::Flatten(Flatten),
    Layer::Standardise(Standardise),
    Layer::Dense(Dense { units: 2, bias: true }),
];

fn three() -> Net<'static> {
    Net { input: input(4), layers: THREE, blocks: &[3, 7, 10, 13], features: 3 }
}

fn short() -> Learning {
    Learning { epochs: 2, head_epochs: 2, batch: 16, ..Learning::default() }
}

/// Samples of a test, and what is kept of frozen blocks.
struct Sets {
    train: Dataset,
    held_out: Dataset,
    budget: Budget,
    learning: Learning,
}

impl Sets {
    fn new(contrast: f32) -> Self {
        Self {
            train: images(64, 4, 2, contrast, 1),
            held_out: images(40, 4, 2, contrast, 2),
            budget: Budget::bytes(1 << 24),
            learning: short(),
        }
    }

    fn steer(&self) -> Steer<'_, OnReference> {
        Steer {
            device: &OnReference,
            learning: &self.learning,
            train: &self.train,
            bank: &self.train,
            held_out: &self.held_out,
            seed: 3,
            budget: &self.budget,
        }
    }
}

const ANY: Rise = Rise { tolerance: 0.0, patience: u16::MAX };

#[test]
fn a_search_keeps_the_best_and_bears_so_many() {
    let run = |tolerance, patience, values: &[f64]| {
        let mut search = Search::new(Rise { tolerance, patience });
        let mut best = 0;
        for (at, &si) in values.iter().enumerate() {
            if search.rises(si) {
                best = at;
            }
            if search.is_over() {
                return (best, at + 1);
            }
        }
        (best, values.len())
    };
    let values = [0.5, 0.6, 0.59, 0.61, 0.7, 0.7];
    assert_eq!(run(0.0, 0, &values), (1, 3));
    assert_eq!(run(0.0, 1, &values), (4, 6));
    assert_eq!(run(0.05, 0, &values), (1, 3));
    assert_eq!(run(0.05, 2, &values), (4, 6));
    // A rise by the tolerance itself is none.
    assert_eq!(run(0.125, 0, &[0.5, 0.625]), (0, 2));
    assert_eq!(run(1.0, 0, &[0.0, 1.0]), (0, 2));
}

#[test]
fn growth_stops_and_its_blocks_are_those_of_the_whole_net() {
    let sets = Sets::new(1.0);
    let steer = sets.steer();
    // No block adds more than all samples, so patience alone decides.
    for patience in 0..3u16 {
        let rise = Rise { tolerance: 1.0, patience };
        let grown = steer.grow(three(), rise, &mut ()).unwrap();
        assert_eq!((grown.kept, grown.separation.len()), (1, (patience as usize + 2).min(3)));
        assert_eq!(grown.net.outcomes().len(), grown.separation.len());
    }
    let grown = steer.grow(three(), ANY, &mut ()).unwrap();
    let best = grown.separation.iter().copied().fold(0.0, f64::max);
    assert_eq!(grown.separation.iter().position(|&si| si == best), Some(grown.kept - 1));
    assert!(best > 0.7, "{:?}", grown.separation);

    // The whole net, trained by the host's own strategy, bit for bit.
    let heads = sets.learning.heads(&three(), 2).unwrap();
    let heads: Vec<&[Layer]> = heads.iter().map(Vec::as_slice).collect();
    let mut fit = Fit::new(three(), 3).unwrap();
    let chosen = sets.learning.chosen(&heads, 2);
    fit.run(&OnReference, &chosen, &mut &sets.train, &sets.budget, &mut ()).unwrap();
    let mut whole = grown.net.up_to(3).unwrap();
    steer.classify(&mut whole, &mut ()).unwrap();
    assert_eq!((whole.net(), whole.outcomes()), (three(), fit.outcomes()));
    let Weights::Flat(expected) = fit.model().weights else { panic!("not flat") };
    assert_eq!(whole.weights, expected);

    // A part of it: its blocks are the same, the classifier is its own.
    let mut part = grown.net.up_to(2).unwrap();
    let drawn = part.clone();
    steer.classify(&mut part, &mut ()).unwrap();
    let (net, end) = (part.net(), 7);
    assert_eq!((net.blocks, net.features, net.layers.len()), (&[3, 7, 10][..], 2, 10));
    assert_eq!(net.layers[..end], THREE[..end]);
    let len = net.params(end).unwrap();
    assert_eq!(part.weights[..len], whole.weights[..len]);
    assert_eq!(drawn.weights[..len], whole.weights[..len]);
    assert_ne!(drawn.weights[len..], part.weights[len..]);
    for depth in [0, 4] {
        let error = grown.net.up_to(depth).unwrap_err().to_string();
        assert!(error.starts_with(&format!("depth: found {depth}, expected 1 block")), "{error}");
    }
}

#[test]
fn widths_are_tried_until_one_brings_nothing() {
    let sets = Sets::new(1.0);
    let steer = sets.steer();
    let wide = steer.widen(three(), &[1, 2, 4], Rise { tolerance: 1.0, patience: 0 }, &mut ());
    let wide = wide.unwrap();
    let tried: Vec<_> = wide.tried.iter().map(|t| (t.block, t.filters)).collect();
    assert_eq!(tried, [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]);
    assert_eq!(wide.filters, [1, 1, 1]);
    let wide = steer.widen(three(), &[1, 2, 4], ANY, &mut ()).unwrap();
    for (block, &filters) in wide.filters.iter().enumerate() {
        let of: Vec<_> = wide.tried.iter().filter(|t| t.block == block).collect();
        let best = of.iter().map(|t| t.separation).fold(0.0, f64::max);
        let first = of.iter().find(|t| t.separation == best).unwrap();
        assert_eq!((of.len(), first.filters), (3, filters));
    }
    let mut net = wide.net;
    assert_eq!(net.outcomes().len(), 3);
    // What was judged is what is kept.
    let last = wide.tried.iter().filter(|t| (t.block, t.filters) == (2, wide.filters[2]));
    let kept = steer.separation(&net.model(), 10).unwrap();
    assert_eq!(last.map(|t| t.separation).collect::<Vec<_>>(), [kept]);
    steer.classify(&mut net, &mut ()).unwrap();
    for widths in [&[][..], &[0, 1], &[2, 2], &[4, 2]] {
        let error = steer.widen(three(), widths, ANY, &mut ()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("widths: found {widths:?}, expected")), "{error}");
    }
}

/// Depthwise and strided layers, squares as channels, a dense block.
const MIXED: &[Layer] = &[
    conv(4),
    NORM,
    RELU,
    Layer::Conv2d(Conv2d { groups: 4, bias: true, pad: (1, 1), ..Conv2d::new(8, 3) }),
    Layer::Conv2d(Conv2d::new(6, 1)),
    Layer::BatchNorm(BatchNorm { affine: true, eps: 1e-3, momentum: 0.1 }),
    RELU,
    Layer::SpaceToDepth(SpaceToDepth { factor: 2 }),
    Layer::Conv2d(Conv2d { stride: (2, 1), ..Conv2d::new(5, 2) }),
    Layer::GlobalAvgPool(GlobalAvgPool),
    Layer::Dense(Dense { units: 7, bias: true }),
    NORM,
    RELU,
    Layer::Dense(Dense { units: 3, bias: false }),
];

fn mixed() -> Net<'static> {
    Net { input: input(8), layers: MIXED, blocks: &[3, 7, 10, 13, 14], features: 4 }
}

/// A net with numbers in all parameters, norms' statistics among them.
fn filled(net: Net<'_>) -> Steered {
    let mut this = Steered::new(net, 5).unwrap();
    let mut rng = Rng::new(9, Purpose::Weights, 0, 0);
    this.weights.iter_mut().for_each(|w| *w = 0.1 + rng.uniform());
    this
}

/// Sets what reads channels that are not kept to 0: parameters of the whole net.
fn masked(whole: &Steered, kept: &[Vec<u32>]) -> Steered {
    let net = whole.net();
    let mut weights = Vec::new();
    let mut gone: Vec<u32> = Vec::new();
    for (at, layer) in net.layers.iter().enumerate() {
        let x = net.shape(at).unwrap();
        let [mut weight, bias, mean, variance] = numbers(&whole.model(), at).unwrap();
        let zero = |weight: &mut Vec<f32>, row: u32, column: u32, each: u32| {
            for (i, w) in weight.iter_mut().enumerate() {
                let place = i as u32 % row;
                if place / each == column {
                    *w = 0.0;
                }
            }
        };
        let plane = x.plane();
        match *layer {
            Layer::Conv2d(l) if l.groups == 1 => {
                let taps = u32::from(l.kernel.0) * u32::from(l.kernel.1);
                gone.iter().for_each(|&c| zero(&mut weight, x.c * taps, c, taps));
                gone.clear();
            }
            Layer::Conv2d(l) => {
                let each = l.filters / l.groups;
                gone = gone.iter().flat_map(|&c| c * each..(c + 1) * each).collect();
            }
            Layer::Dense(_) => {
                gone.iter().for_each(|&c| zero(&mut weight, x.sample().unwrap(), c, plane));
                gone.clear();
            }
            Layer::Flatten(_) => {
                gone = gone.iter().flat_map(|&c| c * plane..(c + 1) * plane).collect();
            }
            Layer::SpaceToDepth(_) => {
                gone = (0..4).flat_map(|s| gone.iter().map(move |c| s * x.c + c)).collect();
            }
            _ => {}
        }
        for (block, kept) in kept.iter().enumerate() {
            if giver(&net, block).unwrap() == at {
                let filters = net.shape(at + 1).unwrap().c;
                gone = (0..filters).filter(|f| !kept.contains(f)).collect();
            }
        }
        [weight, bias, mean, variance].into_iter().for_each(|own| weights.extend(own));
    }
    Steered { weights, ..whole.clone() }
}

fn outputs(net: &Steered, set: &Dataset, end: usize) -> Features {
    Features::new(&OnReference, &net.model(), &mut &*set, end).unwrap()
}

#[test]
fn pruned_channels_give_what_masked_ones_do() {
    let cases: [(Net<'_>, u32, &[&[u32]]); 5] = [
        (three(), 4, &[&[0, 2, 3], &[1, 4], &[0, 1, 5]]),
        (three(), 4, &[&[1]]),
        (three(), 4, &[&[0, 1, 2, 3], &[3]]),
        (mixed(), 8, &[&[1, 2], &[0, 5], &[2, 3, 4], &[0, 6]]),
        (mixed(), 8, &[&[3], &[0, 1, 2, 3, 4, 5], &[4]]),
    ];
    for (net, side, kept) in cases {
        let set = images(6, side, 2, 1.0, 7);
        let kept: Vec<Vec<u32>> = kept.iter().map(|kept| kept.to_vec()).collect();
        let whole = filled(net);
        let (cut, masked) = (whole.cut(&kept).unwrap(), masked(&whole, &kept));
        assert!(cut.weights.len() < whole.weights.len());
        let mut exact = 0;
        for end in 1..=net.layers.len() {
            let (small, large) = (outputs(&cut, &set, end), outputs(&masked, &set, end));
            // The channels that are left, of the layers that the lists are of.
            let block = net.blocks.iter().position(|&b| usize::from(b) == end);
            let large = match block.and_then(|block| kept.get(block)) {
                Some(kept) => large.channels(kept),
                None if small.dim() == large.dim() => large,
                None => continue,
            };
            assert_eq!(small.dim(), large.dim(), "{end}");
            exact += 1;
            let dense = MIXED[..end].iter().any(|l| matches!(l, Layer::Dense(_)));
            for (&a, &b) in small.data().iter().zip(large.data()) {
                // Convolutions add up in order, where zeros change nothing; dense layers in parts.
                let rounding = if dense || end > 9 { 1e-5 * b.abs().max(1.0) } else { 0.0 };
                assert!((a - b).abs() <= rounding, "behind layer {end}: {a}, masked {b}");
            }
        }
        assert!(exact > kept.len(), "{exact}");
    }
}

#[test]
fn nothing_cut_is_the_net_itself() {
    for net in [three(), mixed()] {
        let whole = filled(net);
        assert_eq!(whole.cut(&[]).unwrap(), whole);
        let all = |block| (0..net.shape(giver(&net, block).unwrap() + 1).unwrap().c).collect();
        let all: Vec<Vec<u32>> = (0..usize::from(net.features)).map(all).collect();
        assert_eq!(whole.cut(&all).unwrap(), whole);
    }
}

#[test]
fn a_cut_model_is_a_file_that_is_smaller_and_reads_the_same() {
    let whole = filled(three());
    let cut = whole.cut(&[vec![0, 1], vec![2], vec![3, 4]]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let size = |net: &Steered, name: &str| {
        let path = folder.path().join(name);
        crate::file::save(&path, &net.model(), &sepal_core::format::Meta::NONE).unwrap();
        (std::fs::metadata(&path).unwrap().len(), path)
    };
    let ((large, _), (small, path)) = (size(&whole, "whole"), size(&cut, "cut"));
    assert!(small < large, "{small} bytes, whole {large}");
    let read = crate::file::Loaded::open(&path).unwrap();
    let again = Steered::of(&read.model(), 5).unwrap();
    assert_eq!((again.net(), &again.weights), (cut.net(), &cut.weights));
    assert_eq!(again.outcomes().len(), 3);
    let set = images(6, 4, 2, 1.0, 7);
    let micro = Features::new(&sepal_core::micro::OnMicro, &read.model(), &mut &set, 13).unwrap();
    assert_eq!(micro.data().len(), outputs(&cut, &set, 13).data().len());
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let whole = filled(three());
    for (kept, found) in [
        (vec![vec![]], "[] of the 4 of block 0"),
        (vec![vec![0, 4]], "[0, 4] of the 4 of block 0"),
        (vec![vec![0], vec![1, 1]], "[1, 1] of the 5 of block 1"),
        (vec![vec![2, 1]], "[2, 1] of the 4 of block 0"),
    ] {
        let error = whole.cut(&kept).unwrap_err().to_string();
        assert!(error.starts_with(&format!("filters: found {found}, expected")), "{error}");
    }
    let error = whole.cut(&vec![vec![0]; 4]).unwrap_err().to_string();
    assert_eq!(error, "block 3: expected one of those that give features");

    let layers = [conv(2), RELU, conv(2), Layer::Residual(Residual::new(1)), RELU];
    let net = Net { input: input(4), layers: &layers, blocks: &[2, 4, 5], features: 3 };
    let whole = filled(net);
    for kept in [vec![vec![0]], vec![vec![0, 1], vec![1]]] {
        let error = whole.cut(&kept).unwrap_err().to_string();
        assert!(error.starts_with("layer 3, residual: found fewer channels"), "{error}");
    }
    let error = whole.cut(&[vec![0, 1], vec![0, 1], vec![0]]).unwrap_err().to_string();
    assert_eq!(error, "block 2: expected a convolution of one group or a dense layer");
    assert!(whole.with_filters(1, 3).is_err());
}

/// Filter 1 of the first block sees the classes, the others nothing that differs between them.
fn one_that_sees(steer: &Steer<'_, OnReference>) -> Steered {
    let mut net = Steered::new(three(), 3).unwrap();
    steer.train(&mut net, 0, &mut ()).unwrap();
    let taps = 9;
    for (filter, row) in net.weights[..4 * taps].chunks_mut(taps).enumerate() {
        let sees = filter == 1;
        // A mean of the image; or a constant sign, of noise alone.
        row.fill(if sees { 1.0 } else { 0.0 });
        row[4] = if sees { 1.0 } else { 0.01 * (filter as f32 + 1.0) };
    }
    net
}

#[test]
fn each_score_puts_the_filter_that_sees_last() {
    let sets = Sets::new(6.0);
    let steer = sets.steer();
    let net = one_that_sees(&steer);
    let order = |score| steer.order(&net, 0, score).unwrap();
    for score in [Score::Own, Score::LeftOut, Score::Eliminated, Score::L1, Score::Random] {
        let mut all = order(score);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3], "{score:?}: each filter once");
    }
    assert_eq!(order(Score::L1), [0, 2, 3, 1]);
    assert_eq!(order(Score::Random), order(Score::Random));
    let other = Steer { seed: 4, ..steer };
    let of =
        |steer: &Steer<'_, OnReference>, block| steer.order(&net, block, Score::Random).unwrap();
    assert!((0..3).any(|block| of(&steer, block) != of(&other, block)));
    // By hand: the SI of each map alone.
    let maps = steer.features(&net.model(), 3).unwrap();
    let own = |filter| {
        let [held_out, bank] = maps.each_ref().map(|maps| maps.channels(&[filter]));
        held_out.cross_si(&OnReference, &bank).unwrap().value().unwrap()
    };
    let found = order(Score::Own);
    assert!(found.is_sorted_by(|&a, &b| own(a) <= own(b)), "{found:?}");
    // The first that backward elimination drops is the one whose loss costs least.
    let left = |filter: u32| {
        let others: Vec<u32> = (0..4).filter(|&other| other != filter).collect();
        let [held_out, bank] = maps.each_ref().map(|maps| maps.channels(&others).unit());
        held_out.cross_si(&OnReference, &bank).unwrap()
    };
    let products = super::prune::Products::new(&maps);
    (0..4).for_each(|filter| assert_eq!(products.without(filter), left(filter), "{filter}"));
    let left = |filter| left(filter).value().unwrap();
    let least = (0..4).map(left).fold(0.0, f64::max);
    assert_eq!(left(order(Score::Eliminated)[0]), least);
    assert_eq!(left(order(Score::LeftOut)[0]), least);
}

#[test]
fn a_filter_is_left_out_as_by_a_search() {
    // Three maps of 1x3, many of them 0, so that rows of no length come about.
    let set = |samples: u16, seed| {
        let mut rng = Rng::new(seed, Purpose::Weights, 0, 0);
        let (shape, mut data) = (Shape::new(1, 3, 1, 3), Vec::new());
        for _ in 0..samples * 3 {
            let some = rng.below(2) as f32;
            data.extend([rng.uniform(), rng.uniform(), rng.uniform()].map(|x| x * some));
        }
        let labels = (0..samples).map(|i| i % 3).collect();
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let set = Dataset::new(shape, Samples::F32(data), labels, names).unwrap();
        let net =
            Net { input: Input { shape, ..input(1) }, layers: &[RELU], blocks: &[1], features: 1 };
        let model = Model { net, weights: Weights::Flat(&[]) };
        Features::new(&OnReference, &model, &mut &set, 1).unwrap()
    };
    let maps = [set(30, 1), set(50, 2)];
    let mut products = super::prune::Products::new(&maps);
    let mut left = vec![0, 1, 2];
    for gone in [1, 0] {
        for &filter in &left {
            let others: Vec<u32> = left.iter().copied().filter(|&other| other != filter).collect();
            let [held_out, bank] = maps.each_ref().map(|maps| maps.channels(&others).unit());
            let expected = held_out.cross_si(&OnReference, &bank).unwrap();
            assert_eq!(products.without(filter), expected, "{filter} of {left:?}");
        }
        products.take_out(gone);
        left.retain(|&other| other != gone);
    }
}

#[test]
fn a_cut_net_settles() {
    let sets = Sets::new(2.0);
    let steer = sets.steer();
    let mut net = Steered::new(three(), 3).unwrap();
    steer.classify(&mut net, &mut ()).unwrap();
    let cut = net.cut(&[vec![0, 3], vec![1, 2, 4], vec![0, 2]]).unwrap();
    let (mut settled, mut classified) = (cut.clone(), cut.clone());
    steer.classify(&mut classified, &mut ()).unwrap();
    steer.settle(&mut settled, &mut ()).unwrap();
    // The blocks' weights stay; the statistics of norms behind a cut are new.
    let of = |net: &Steered, layer| numbers(&net.model(), layer).unwrap();
    for layer in [0, 3, 7] {
        assert_eq!(
            (of(&settled, layer), of(&classified, layer)),
            (of(&cut, layer), of(&cut, layer))
        );
    }
    for layer in [4, 8] {
        assert_eq!(of(&classified, layer), of(&cut, layer));
        assert_ne!(of(&settled, layer)[2], of(&cut, layer)[2]);
    }
    assert_ne!(of(&classified, 12), of(&cut, 12));
    // Again from the same: nothing is left over of the first time.
    let mut again = cut;
    steer.settle(&mut again, &mut ()).unwrap();
    assert_eq!(again, settled);
}

#[test]
fn blocks_behind_a_cut_learn_from_what_is_left() {
    let sets = Sets::new(2.0);
    let steer = sets.steer();
    let pruned = steer.train_pruned(three(), Score::Own, 0.5, &mut ()).unwrap();
    let channels = |net: &Steered, end| net.net().shape(end).unwrap().c;
    assert_eq!([3, 7, 10].map(|end| channels(&pruned, end)), [2, 2, 3]);
    assert_eq!(pruned.outcomes().len(), 3);
    // The first block is the whole net's, cut; the second has learnt behind it.
    let mut whole = Steered::new(three(), 3).unwrap();
    steer.train(&mut whole, 1, &mut ()).unwrap();
    let kept = stay(&steer.order(&whole, 0, Score::Own).unwrap(), 0.5).unwrap();
    let mut cut = whole.cut(&[kept]).unwrap();
    let first = cut.net().params(3).unwrap();
    assert_eq!(pruned.weights[..first], cut.weights[..first]);
    steer.train(&mut cut, 2, &mut ()).unwrap();
    let kept = stay(&steer.order(&cut, 1, Score::Own).unwrap(), 0.5).unwrap();
    let cut = cut.cut(&[vec![0, 1], kept]).unwrap();
    let second = cut.net().params(7).unwrap();
    assert_eq!(pruned.weights[..second], cut.weights[..second]);
    // Nothing gone: the net as it is trained anyway.
    steer.train(&mut whole, 3, &mut ()).unwrap();
    assert_eq!(steer.train_pruned(three(), Score::L1, 0.0, &mut ()).unwrap(), whole);
}

#[test]
fn so_many_filters_stay() {
    let order = [4, 1, 3, 0, 2];
    let left = |share| stay(&order, share).unwrap();
    assert_eq!(left(0.0), [0, 1, 2, 3, 4]);
    assert_eq!((left(0.2), left(0.29)), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
    assert_eq!((left(0.9), left(1.0)), (vec![2], vec![2]));
    for share in [-0.1, 1.1, f64::NAN] {
        let error = stay(&order, share).unwrap_err().to_string();
        assert_eq!(error, format!("share: found {share}, expected a number from 0 to 1"));
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let sets = Sets::new(1.0);
    let steer = sets.steer();
    let refused = |steer: Steer<'_, OnReference>, rise| {
        let grown = steer.grow(three(), rise, &mut ()).unwrap_err().to_string();
        let widened = steer.widen(three(), &[1], rise, &mut ()).unwrap_err().to_string();
        assert_eq!(grown, widened);
        grown
    };
    for tolerance in [-0.1, f64::NAN, 1.5] {
        let error = refused(steer, Rise { tolerance, patience: 0 });
        assert_eq!(error, format!("tolerance: found {tolerance}, expected a share from 0 to 1"));
    }
    let of = |learning: &Learning| refused(Steer { learning, ..steer }, ANY);
    let error = of(&Learning { way: Way::Greedy, ..short() });
    assert_eq!(error, "way: found Greedy, expected Si, each block alone by SI");
    let error = of(&Learning { window: Window::sliding(2), ..short() });
    assert_eq!(error, "window: found 2, expected blocks that learn alone");
    let error = of(&Learning { batch: 1, ..short() });
    assert_eq!(error, "batch: found 1, expected 2 or more");
    let one = images(40, 4, 1, 1.0, 2);
    for (steer, name) in [
        (Steer { train: &one, ..steer }, "training"),
        (Steer { bank: &one, ..steer }, "bank"),
        (Steer { held_out: &one, ..steer }, "held out"),
    ] {
        let error = refused(steer, ANY);
        assert_eq!(error, format!("{name}: found samples of 1 classes, expected 2 or more"));
    }
    let none = Net { features: 0, ..three() };
    let error = steer.grow(none, ANY, &mut ()).unwrap_err().to_string();
    assert_eq!(error, "block 0: expected one that gives features");
    // Samples of another size than the net's.
    let large = images(40, 5, 2, 1.0, 2);
    let error = refused(Steer { held_out: &large, ..steer }, ANY);
    assert!(error.contains("the net takes samples of"), "{error}");
}

#[test]
fn features_that_are_no_numbers_are_not_judged() {
    let sets = Sets::new(1.0);
    let steer = sets.steer();
    let mut net = Steered::new(three(), 3).unwrap();
    net.weights[..36].fill(f32::NAN);
    let error = steer.separation(&net.model(), 3).unwrap_err().to_string();
    assert!(error.contains("behind layer 3"), "{error}");
    assert!(steer.order(&net, 0, Score::Own).is_err());
    // The raw samples are judged without a net's weights.
    assert!(steer.separation(&net.model(), 0).unwrap() > 0.5);
}
