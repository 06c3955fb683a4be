//! Every type that describes a model or a run goes through plain postcard and comes back.
//!
//! The model file does not depend on this: it writes its own tags. It is for programs that keep
//! or send parts of a model by themselves.
#![cfg(feature = "format")]

use core::fmt::Debug;
use sepal_core::arena::{Dtype, Layout, Slot};
use sepal_core::format::{Counts, File, Provenance};
use sepal_core::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, ChannelStd, Conv2d, Dense, Dropout, Embedding,
    Flatten, GlobalAvgPool, KMaxPool, L2Normalise, Layer, MaxPool, Project, Quantise, RELU, Role,
    SpaceToDepth, Standardise, Tensors, Window,
};
use sepal_core::loss::Score;
use sepal_core::neighbour::{Nearest, Pair};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::optim::Rule;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::Draw;
use sepal_core::stage::{Cut, Loss, Objective, Outcome, Recipe, Stage, Stop};
use sepal_core::strategy::{
    Classifier, EndToEnd, ForwardBackward, ForwardSi, Greedy, RandomFrozen, Window as Together,
};
use sepal_core::train::{Feed, Progress};
use serde::{Serialize, de::DeserializeOwned};

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
    let mut bytes = [0; 256];
    let written = postcard::to_slice(&value, &mut bytes).unwrap();
    let (read, rest) = postcard::take_from_bytes::<T>(written).unwrap();
    assert_eq!(read, value);
    assert!(rest.is_empty());
}

const WINDOW: Window = Window { kernel: (1, 2), stride: (3, 4), pad: (5, 6) };

#[test]
fn layers() {
    for layer in [
        Layer::Conv2d(Conv2d { groups: 7, ..Conv2d::new(300, 5) }),
        Layer::BatchNorm(BatchNorm { affine: true, eps: 0.5, momentum: 0.25 }),
        Layer::Activation(Activation::Relu),
        Layer::Activation(Activation::Relu6),
        Layer::Activation(Activation::LeakyRelu { slope: 0.125 }),
        Layer::Activation(Activation::Tanh),
        Layer::MaxPool(MaxPool { window: WINDOW }),
        Layer::AvgPool(AvgPool { window: WINDOW }),
        Layer::GlobalAvgPool(GlobalAvgPool),
        Layer::Dense(Dense { units: 70_000, bias: false }),
        Layer::Dropout(Dropout { rate: 0.75 }),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::L2Normalise(L2Normalise),
        Layer::AvgPoolTo(AvgPoolTo { h: 1, w: 2 }),
        Layer::ChannelStd(ChannelStd),
        Layer::Project(Project { dim: 3, seed: u64::MAX }),
        Layer::Embedding(Embedding { tokens: 70_000, dim: 16 }),
        Layer::KMaxPool(KMaxPool { k: 8 }),
        Layer::SpaceToDepth(SpaceToDepth { factor: 2 }),
        Layer::Quantise(Quantise { scale: 0.5, zero: 3 }),
    ] {
        comes_back(layer);
    }
    comes_back(WINDOW);
    comes_back(Tensors { weight: 1, bias: 2, mean: 3, variance: 4 });
    Role::ALL.into_iter().for_each(comes_back);
}

#[test]
fn shapes_and_places() {
    let shape = Shape::new(1, 2, 3, 4);
    comes_back(shape);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::I8, Dtype::U8, Dtype::Pair] {
        comes_back(Slot { layout: Layout::Nchw8c, ..Slot::new(48, shape, dtype) });
    }
    let normalisation = Normalisation { mean: [0.5; 4], std: [0.1, 0.2, 0.3, 0.4] };
    comes_back(Input { shape, normalisation });
    comes_back(File::NO_TENSOR);
    comes_back(Counts { layers: 1, tensors: 2, classes: 3, blocks: 4 });
}

#[test]
fn recipes_and_runs() {
    let losses = [
        Loss::Triplet,
        Loss::Margin { margin: 0.2 },
        Loss::SoftNearest { temperature: 2.0 },
        Loss::SoftCentre { temperature: 2.0 },
    ];
    for loss in losses {
        comes_back(loss);
        comes_back(Objective::Separation(loss));
    }
    comes_back(Objective::Statistics);
    comes_back(Objective::CrossEntropy { smoothing: 0.1 });
    comes_back(Objective::PredSim { beta: 0.99, similar: 64 });
    comes_back(Objective::Goodness { threshold: 1.0, classes: 10 });
    comes_back(Stop::Never);
    comes_back(Stop::SiPlateau { patience: 3, min_delta: 0.01 });
    for rule in [Rule::sgd(), Rule::adam(), Rule::adamw(0.01)] {
        comes_back(rule);
    }
    for schedule in [
        Schedule::Constant,
        Schedule::Step { every: 100, factor: 0.1 },
        Schedule::Cosine { warmup: 5 },
    ] {
        comes_back(schedule);
    }
    comes_back(Classifier::Whole);
    comes_back(Classifier::LayerWise);
    comes_back(Feed { depth: 3, narrow: true, ..Feed::BYTES });
    comes_back(Draw { seed: u64::MAX, epoch: 1, step: 2 });
    comes_back(Outcome { first: 1, last: 2, held_out: -1.0, ..Outcome::default() });
    comes_back(Progress { loss: 0.1, last: (0.5, 0.25), best: Some(0.75), ..Progress::default() });
    comes_back(Score { value: 0.5f32, anchors: 8, skipped: 1, correct: 7 });
    let same = Nearest { index: 3, dist2: 0.5f32 };
    comes_back(Pair { same, other: Nearest { index: u32::MAX, dist2: f32::INFINITY } });
}

/// Types that borrow slices of layers can only be written; what was written is read by parts.
#[test]
fn nets_and_stages_are_written_field_by_field() {
    let input = Input { shape: Shape::rows(1, 2), normalisation: Normalisation::NONE };
    let net = Net { input, layers: &[RELU, RELU], blocks: &[1, 2], features: 1 };
    let recipe = Recipe {
        head: &[RELU],
        objective: Objective::CrossEntropy { smoothing: 0.0 },
        epochs: 3,
        batch: 4,
        micro_batches: 2,
        rule: Rule::sgd(),
        rate: 0.5,
        schedule: Schedule::Constant,
        stop: Stop::Never,
    };
    let stage = Stage { first: 0, last: 2, calibrate: true, cut: Cut::Whole, recipe };
    let mut bytes = [0; 256];
    let written = postcard::to_slice(&net, &mut bytes).unwrap();
    type Parts = (Input, (u8, Layer, Layer), (u8, u16, u16), u16);
    let parts: Parts = postcard::from_bytes(written).unwrap();
    assert_eq!(parts, (input, (2, RELU, RELU), (2, 1, 2), 1));

    let written = postcard::to_slice(&stage, &mut bytes).unwrap();
    type Whole = (u16, u16, bool, u8, Told);
    type Told = ((u8, Layer), Objective, u16, u32, u32, Rule, f32, Schedule, Stop);
    let parts: Whole = postcard::from_bytes(written).unwrap();
    let Recipe { objective, rule, schedule, stop, .. } = recipe;
    let told = ((1, RELU), objective, 3, 4, 2, rule, 0.5, schedule, stop);
    // The tag of a stage that is whole.
    assert_eq!(parts, (0, 2, true, 0, told));

    // Strategies are recipes, in order.
    let size = |value: &dyn Fn(&mut [u8]) -> usize| value(&mut [0; 512]);
    let one = size(&|to| postcard::to_slice(&recipe, to).unwrap().len());
    let whole = EndToEnd { recipe };
    assert_eq!(size(&|to| postcard::to_slice(&whole, to).unwrap().len()), one);
    let frozen = RandomFrozen { classifier: recipe };
    assert_eq!(size(&|to| postcard::to_slice(&frozen, to).unwrap().len()), one);
    let forward = ForwardSi {
        block: recipe,
        classifier: recipe,
        form: Classifier::Whole,
        heads: &[],
        window: Together::ONE,
    };
    assert_eq!(size(&|to| postcard::to_slice(&forward, to).unwrap().len()), 2 * one + 1 + 3);
    let backward = ForwardBackward { blocks: 3, block: recipe, heads: &[], rest: recipe };
    assert_eq!(size(&|to| postcard::to_slice(&backward, to).unwrap().len()), 2 * one + 1 + 1);
    let (classifier, fine_tune) = (recipe, Some(recipe));
    let heads: &[&[Layer]] = &[&[RELU], &[RELU, RELU]];
    let greedy = Greedy { block: recipe, heads, classifier, fine_tune };
    let heads = size(&|to| postcard::to_slice(heads, to).unwrap().len());
    assert_eq!(size(&|to| postcard::to_slice(&greedy, to).unwrap().len()), 3 * one + heads + 1);
}

#[test]
fn provenance_borrows_its_text() {
    let provenance = Provenance { version: "0.1.0", recipe: "recipe", seed: 1, data: 2 };
    let mut bytes = [0; 64];
    let written = postcard::to_slice(&provenance, &mut bytes).unwrap();
    assert_eq!(postcard::from_bytes(written), Ok(provenance));
}
