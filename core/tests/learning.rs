//! Learning is tested: a block trained forward by SI separates held-out images better than the
//! same block frozen as it was drawn.

use sepal_core::arena::Word;
use sepal_core::backend::Backend;
use sepal_core::infer::Inference;
use sepal_core::init;
use sepal_core::layer::{BatchNorm, Conv2d, Flatten, L2Normalise, Layer, MaxPool, RELU, Window};
use sepal_core::neighbour::{Pair, Rows, nearest_pair};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::optim::Rule;
use sepal_core::reference::Reference;
use sepal_core::rng::{Purpose, Rng};
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Session, StagePlan, Step};

const SIDE: usize = 10;
const PIXELS: usize = SIDE * SIDE;
const CLASSES: u32 = 4;

/// Two blocks without bias, as the paper's nets have them.
const NET: Net<'static> = Net {
    input: Input {
        shape: Shape::new(1, 1, SIDE as u32, SIDE as u32),
        normalisation: Normalisation::scalar(0.5, 0.25),
    },
    layers: &[
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(6, 3) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool { window: Window::square(2) }),
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(8, 3) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool { window: Window::square(2) }),
    ],
    blocks: &[4, 8],
    features: 2,
};

/// Images of one of four textures, with a phase, a contrast and noise of their own, so that the
/// pixels themselves are a poor guide: rows, columns and both diagonals, every third one lit.
#[derive(Clone, Copy)]
struct Textures {
    len: u32,
    seed: u64,
    /// Without level, ramp and noise: what Eq. 3 of the paper adds to a pattern as d.
    clean: bool,
}

impl Textures {
    fn label(index: u32) -> u32 {
        index % CLASSES
    }

    fn image(self, index: u32) -> [u8; PIXELS] {
        let mut rng = Rng::new(self.seed, Purpose::Sample, 0, index);
        let (phase, contrast) = (rng.below(3) as usize, 20.0 + 30.0 * rng.uniform());
        let [level, down, across] = [(); 3].map(|()| rng.normal());
        let label = Self::label(index);
        let disturbance = if self.clean { 0.0 } else { 1.0 };
        core::array::from_fn(|at| {
            let (row, column) = (at / SIDE, at % SIDE);
            let along = match label {
                0 => row,
                1 => column,
                2 => row + column,
                _ => row + 2 * column,
            };
            let lit = if (along + phase).is_multiple_of(3) { contrast } else { -contrast / 2.0 };
            let ramp = down * (row as f32 - 4.5) + across * (column as f32 - 4.5);
            let noise = 15.0 * rng.normal();
            let added = 20.0 * level + 8.0 * ramp + noise;
            (128.0 + lit + disturbance * added).clamp(0.0, 255.0) as u8
        })
    }
}

impl Source for Textures {
    fn len(&self) -> u32 {
        self.len
    }

    fn shape(&self) -> Shape {
        NET.input.shape
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let Batch::U8(x) = batch else {
            return Err(SourceError::Batch { expected: PIXELS as u32, got: 0 });
        };
        for (x, index) in x.chunks_exact_mut(PIXELS).zip(indices) {
            x.copy_from_slice(&self.image(*index));
        }
        labels.iter_mut().zip(indices).for_each(|(l, i)| *l = Self::label(*i) as u16);
        Ok(())
    }
}

/// What Table 1 of the paper trains with.
const RATE: f32 = 0.01;

/// The paper's loss, and those that are in use.
const LOSSES: [Loss; 4] = [
    Loss::Triplet,
    Loss::Margin { margin: 0.2 },
    Loss::SoftNearest { temperature: 0.1 },
    Loss::SoftCentre { temperature: 0.1 },
];

const fn recipe(objective: Objective) -> Recipe<'static> {
    Recipe {
        head: &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)],
        objective,
        epochs: 6,
        batch: 32,
        micro_batches: 1,
        rule: Rule::adam(),
        rate: RATE,
        schedule: Schedule::Cosine { warmup: 0 },
        stop: Stop::Never,
    }
}

/// Trains both blocks, one after the other; gives the weights and, for each block that learns, SI
/// within the batches of the first pass and of the last.
fn train(objectives: [Objective; 2], seed: u64) -> (Vec<f32>, Vec<[f32; 2]>) {
    let mut source = Textures { len: 192, seed, clean: false };
    let mut weights = vec![0.0; NET.params(NET.layers.len()).unwrap()];
    assert!(init::weights(&NET, seed, &mut weights));
    let mut within = vec![];
    for (index, objective) in (0u16..).zip(objectives) {
        let (first, last) = (4 * index, 4 * index + 4);
        let stage =
            Stage { first, last, calibrate: true, cut: Cut::Whole, recipe: recipe(objective) };
        let plan = StagePlan::reference(&NET, &stage, Feed::BYTES).unwrap();
        let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
        let mut backend = Reference::new(&mut memory);
        let before = weights.clone();
        let model = Model { net: NET, weights: Weights::Flat(&before) };
        let mut session = Session::new(NET, stage, plan, seed, index);
        session.load(&mut backend, &model).unwrap();
        let mut passes = vec![];
        loop {
            match session.step(&mut backend, &model, &mut source).unwrap() {
                Step::Trained { epoch_ends: true, .. } => passes.push(session.outcome().score),
                Step::Done => break,
                _ => {}
            }
        }
        session.store(&mut backend, &mut weights).unwrap();
        if let (Some(first), Some(last)) = (passes.first(), passes.last()) {
            within.push([*first, *last]);
        }
    }
    (weights, within)
}

/// Outputs of the first `layers` layers, each of unit length, with their labels.
fn features(weights: &[f32], layers: usize, source: Textures) -> (Vec<f32>, usize, Vec<u16>) {
    const N: u32 = 32;
    let model = Model { net: NET, weights: Weights::Flat(weights) };
    let plan = Inference::new(&Reference::new(&mut []), &model, (0, layers), N, true).unwrap();
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut backend = Reference::new(&mut memory);
    backend.prepare(&model, 0, layers).unwrap();
    let dim = plan.output();
    let mut all = vec![];
    for first in (0..source.len).step_by(N as usize) {
        let mut out = vec![0.0; dim * N as usize];
        let fill = |raw: &mut [u8]| {
            let images = (first..).map(|index| source.image(index));
            raw.chunks_exact_mut(PIXELS).zip(images).for_each(|(x, image)| {
                x.copy_from_slice(&image);
            });
        };
        plan.run(&mut backend, &model, N, fill, &mut out).unwrap();
        all.extend(out);
    }
    let shape = Shape::rows(source.len, dim as u32);
    L2Normalise.forward(shape, &mut all, &mut vec![0.0; source.len as usize]);
    (all, dim, (0..source.len).map(|i| Textures::label(i) as u16).collect())
}

/// The share of held-out images whose nearest training image has their label.
fn cross_si(weights: &[f32], layers: usize, seed: u64) -> f64 {
    let bank = features(weights, layers, Textures { len: 192, seed, clean: false });
    let held_out =
        features(weights, layers, Textures { len: 256, seed: seed + 1000, clean: false });
    let [held_out, bank] =
        [&held_out, &bank].map(|(data, dim, labels)| Rows { data: &data[..], dim: *dim, labels });
    let mut pairs = vec![Pair::NONE; held_out.len()];
    nearest_pair(held_out, bank, 0, None, &mut pairs);
    let correct = pairs.iter().filter(|pair| pair.correct() == Some(true)).count();
    correct as f64 / pairs.len() as f64
}

const SEEDS: u64 = 5;
const STILL: Objective = Objective::Statistics;

/// The deviation of a share of 256 held-out images is at most 0.031, that of a difference of two
/// at most 0.044: what is asked of each seed is 2 to 6 of these, by Eq. 7 within batches one, and of
/// five seeds together it cannot come by chance. The measured rises, over all losses and seeds, are
/// at least 0.17 and 0.32 above the control.
#[test]
fn blocks_separate_held_out_images() {
    let control: Vec<_> = (0..SEEDS).map(|seed| train([STILL, STILL], seed).0).collect();
    for loss in LOSSES {
        let learn = Objective::Separation(loss);
        let (mut raw, mut top) = (0.0, 0.0);
        // What block 2 gains within batches: by Eq. 7 as little as 0.08.
        let least = if loss == Loss::Triplet { 0.05 } else { 0.10 };
        for seed in 0..SEEDS {
            let (trained, within) = train([learn, learn], seed);
            let (start, _) = train([learn, STILL], seed);
            let frozen = &control[seed as usize];
            let si = |weights: &[f32], layers| cross_si(weights, layers, seed);
            let [one, two] = [4, 8].map(|layers| si(&trained, layers));
            let what = format!("{loss:?}, seed {seed}: {one} and {two}");

            // Block 1 begins as the control; block 2 begins as drawn, behind block 1 trained.
            let control = [4, 8].map(|layers| si(frozen, layers));
            assert!(one > control[0] + 0.10, "{what}, frozen {control:?}");
            assert!(two > control[1] + 0.25, "{what}, frozen {control:?}");
            let start = si(&start, 8);
            assert!(two > start + 0.08, "{what}, block 2 began with {start}");

            // The batches say so too.
            let [first, second] = within[..] else { panic!("two blocks learn") };
            assert!(first[1] > first[0] + 0.15, "{what}: within batches {first:?}");
            assert!(second[1] > second[0] + least, "{what}: within batches {second:?}");
            raw += si(&trained, 0);
            top += one;
        }
        let (raw, top) = (raw / SEEDS as f64, top / SEEDS as f64);
        assert!(top > raw + 0.06, "{loss:?}: {top} after block 1, {raw} of the pixels");
    }
}

/// The control is a control: the frozen blocks are as they were drawn, but for their statistics.
#[test]
fn frozen_blocks_are_as_drawn() {
    let mut drawn = vec![0.0; NET.params(NET.layers.len()).unwrap()];
    assert!(init::weights(&NET, 2, &mut drawn));
    let (frozen, within) = train([STILL, STILL], 2);
    assert!(within.is_empty(), "nothing is trained");
    // 6 filters of 9, then 6 means and 6 variances; 8 filters of 54, then 8 and 8.
    assert_eq!(frozen[..54], drawn[..54]);
    assert_ne!(frozen[54..66], drawn[54..66], "statistics are measured");
    assert_eq!(frozen[66..498], drawn[66..498]);
    assert_ne!(frozen[498..514], drawn[498..514]);
    assert_eq!(drawn.len(), 514);
    let (trained, _) = train([Objective::Separation(LOSSES[0]), STILL], 2);
    assert_ne!(trained[..54], drawn[..54], "what is trained moves");
}

/// Mean squared distances of held-out images behind `layers` layers, as shares of the mean between
/// two labels: from a pattern to the same with its disturbance (Eq. 5), and from an image to the
/// nearest other with its label (Eq. 6). Features are of unit length.
fn distances(weights: &[f32], layers: usize, seed: u64) -> [f64; 2] {
    let set = |clean| features(weights, layers, Textures { len: 256, seed: seed + 1000, clean });
    let ((clean, dim, labels), (disturbed, ..)) = (set(true), set(false));
    let dist = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let row = |i: usize| &disturbed[i * dim..(i + 1) * dim];
    let others = |i: usize, same| {
        let rows = (0..labels.len()).filter(move |&j| j != i);
        let labels = &labels;
        rows.filter(move |&j| (labels[j] == labels[i]) == same).map(move |j| dist(row(i), row(j)))
    };
    let mean = |of: &dyn Fn(usize) -> f64| (0..labels.len()).map(of).sum::<f64>() / 256.0;
    // Each image has as many of other labels as any other: a mean of means.
    let apart = mean(&|i| others(i, false).sum::<f64>() / 192.0);
    let moved = mean(&|i| dist(row(i), &clean[i * dim..(i + 1) * dim]));
    let nearest = mean(&|i| others(i, true).fold(f64::INFINITY, f64::min));
    [moved / apart, nearest / apart]
}

/// Eq. 3 to 6 of the paper, on images that are a pattern g(x~, p) (texture, phase, contrast) and an
/// added disturbance d (level, ramp, noise): the norm of the disturbance falls from block to block,
/// where it rises behind blocks that stay as they were drawn. The distance to the nearest image of
/// the same label falls too, though not yet in the first block: 0.19, 0.22 to 0.27, 0.02 to 0.07.
#[test]
fn disturbances_fade_from_block_to_block() {
    for loss in LOSSES {
        let learn = Objective::Separation(loss);
        for seed in 0..SEEDS {
            let [trained, frozen] = [learn, STILL].map(|o| train([o, o], seed).0);
            let [raw, one, two] = [0, 4, 8].map(|layers| distances(&trained, layers, seed));
            let control = [4, 8].map(|layers| distances(&frozen, layers, seed));
            let what = format!("{loss:?}, seed {seed}: {raw:?} {one:?} {two:?}, {control:?}");
            let moved = [raw[0], one[0], two[0]];
            assert!(moved[1] < 0.97 * moved[0] && moved[2] < 0.95 * moved[1], "{what}");
            assert!(control[0][0] > raw[0] && control[1][0] > 1.3 * raw[0], "{what}");
            let nearest = [raw[1], two[1], control[1][1]];
            assert!(nearest[1] < 0.5 * nearest[0] && nearest[1] < 0.75 * nearest[2], "{what}");
        }
    }
}
