//! The memory that a plan names is exact: enough, and needed to the last word.

use proptest::prelude::*;
use sepal_core::arena::{ArenaError, Word};
use sepal_core::error::Error;
use sepal_core::infer::Inference;
use sepal_core::init;
use sepal_core::layer::{
    Activation, AvgPool, BatchNorm, ChannelStd, Conv2d, Dense, Dropout, Embedding, Flatten,
    KMaxPool, L2Normalise, Layer, MaxPool, Project, Projection, Quantise, RELU, Residual,
    SpaceToDepth, Standardise, Window,
};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::optim::Rule;
use sepal_core::plan::Chain;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Session, StagePlan, Step};

const fn input(c: u32, h: u32, w: u32) -> Input {
    Input { shape: Shape::new(1, c, h, w), normalisation: Normalisation::scalar(0.3, 0.4) }
}

const POOL: Layer = Layer::MaxPool(MaxPool { window: Window::square(2) });
const NORM: Layer = Layer::BatchNorm(BatchNorm::new());
const TANH: Layer = Layer::Activation(Activation::Tanh);

const LENET: Net<'static> = Net {
    input: input(1, 12, 12),
    layers: &[
        Layer::Conv2d(Conv2d { bias: false, pad: (2, 2), ..Conv2d::new(6, 5) }),
        NORM,
        RELU,
        POOL,
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(9, 3) }),
        NORM,
        RELU,
        POOL,
        Layer::Standardise(Standardise),
        Layer::Dense(Dense { units: 11, bias: true }),
        RELU,
        Layer::Dropout(Dropout { rate: 0.2 }),
        Layer::Dense(Dense { units: 3, bias: true }),
    ],
    blocks: &[4, 8, 13],
    features: 2,
};

const ONE_LAYER: Net<'static> = Net {
    input: input(1, 5, 1),
    layers: &[Layer::Dense(Dense { units: 3, bias: false })],
    blocks: &[1],
    features: 0,
};

const IN_PLACE_FIRST: Net<'static> = Net {
    input: input(3, 5, 7),
    layers: &[
        TANH,
        RELU,
        Layer::Conv2d(Conv2d::new(4, 3)),
        TANH,
        Layer::AvgPool(AvgPool { window: Window::square(2) }),
        Layer::Flatten(Flatten),
        Layer::Dense(Dense { units: 3, bias: true }),
    ],
    blocks: &[5, 7],
    features: 1,
};

const MLP: Net<'static> = Net {
    input: input(1, 3, 3),
    layers: &[
        Layer::Flatten(Flatten),
        Layer::Dense(Dense { units: 33, bias: true }),
        RELU,
        Layer::Dense(Dense { units: 7, bias: true }),
        TANH,
        Layer::Dense(Dense { units: 3, bias: true }),
    ],
    blocks: &[3, 5, 6],
    features: 2,
};

/// Nothing but layers that work in place.
const STAYING: Net<'static> = Net {
    input: input(2, 4, 4),
    layers: &[TANH, RELU, Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)],
    blocks: &[4],
    features: 1,
};

/// Text: places that are kept are two bytes each.
const TEXT: Net<'static> = Net {
    input: Input { shape: Shape::new(1, 1, 2, 12), normalisation: Normalisation::BYTES },
    layers: &[
        Layer::Embedding(Embedding { tokens: 90, dim: 3 }),
        Layer::SpaceToDepth(SpaceToDepth { factor: 2 }),
        Layer::Conv2d(Conv2d { kernel: (1, 3), pad: (0, 1), bias: false, ..Conv2d::new(5, 1) }),
        NORM,
        RELU,
        Layer::Quantise(Quantise { scale: 0.125, zero: 3 }),
        Layer::KMaxPool(KMaxPool { k: 3 }),
        Layer::Dense(Dense { units: 3, bias: true }),
    ],
    blocks: &[7, 8],
    features: 1,
};

const fn conv(filters: u32, stride: u8) -> Layer {
    let stride = (stride, stride);
    Layer::Conv2d(Conv2d { bias: false, stride, pad: (1, 1), ..Conv2d::new(filters, 3) })
}

/// Residual units, one of them with a projection.
const RESIDUAL: Net<'static> = Net {
    input: input(1, 8, 8),
    layers: &[
        conv(4, 1),
        NORM,
        RELU,
        conv(4, 1),
        NORM,
        RELU,
        conv(4, 1),
        NORM,
        Layer::Residual(Residual::new(5)),
        RELU,
        conv(6, 2),
        NORM,
        RELU,
        conv(6, 1),
        NORM,
        Layer::Residual(Residual {
            back: 5,
            project: Some(Projection { channels: 4, stride: (2, 2) }),
        }),
        RELU,
        Layer::Dense(Dense { units: 3, bias: true }),
    ],
    blocks: &[3, 10, 17, 18],
    features: 3,
};

struct Running {
    name: &'static str,
    net: Net<'static>,
    n: u32,
    plan: Inference<'static>,
}

const fn running(name: &'static str, net: Net<'static>, n: u32) -> Running {
    match Inference::reference(net, n) {
        Ok(plan) => Running { name, net, n, plan },
        Err(_) => panic!("the layers do not fit each other"),
    }
}

/// The sizes of inference: constants of the program.
const RUNNINGS: [Running; 10] = [
    running("LeNet", LENET, 1),
    running("LeNet, 5 samples", LENET, 5),
    running("one layer", ONE_LAYER, 1),
    running("one layer, 3 samples", ONE_LAYER, 3),
    running("first layer in place", IN_PLACE_FIRST, 2),
    running("MLP", MLP, 1),
    running("MLP, 4 samples", MLP, 4),
    running("staying", STAYING, 1),
    running("text", TEXT, 2),
    running("residual", RESIDUAL, 1),
];

const HEAD: &[Layer] = &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];

const fn recipe(head: &'static [Layer], objective: Objective, rule: Rule) -> Recipe<'static> {
    Recipe {
        head,
        objective,
        epochs: 2,
        batch: 6,
        micro_batches: 1,
        rule,
        rate: 0.01,
        schedule: Schedule::Constant,
        stop: Stop::Never,
    }
}

const MARGIN: Objective = Objective::Separation(Loss::Margin { margin: 0.2 });
const SOFT: Objective = Objective::Separation(Loss::SoftNearest { temperature: 0.1 });
const TRIPLET: Objective = Objective::Separation(Loss::Triplet);
const ENTROPY: Objective = Objective::CrossEntropy { smoothing: 0.1 };
const GOODNESS: Objective = Objective::Goodness { threshold: 0.5, classes: 3 };
const MOMENTUM: Rule = Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };

struct Training {
    name: &'static str,
    net: Net<'static>,
    stage: Stage<'static>,
    feed: Feed,
    plan: StagePlan,
}

const fn training(
    name: &'static str,
    net: Net<'static>,
    (first, last): (u16, u16),
    recipe: Recipe<'static>,
    feed: Feed,
) -> Training {
    planned(name, net, Stage { first, last, calibrate: true, cut: Cut::Whole, recipe }, feed)
}

/// Blocks that each learn for themselves, behind the recipe's head.
const fn every_block(
    name: &'static str,
    net: Net<'static>,
    last: u16,
    recipe: Recipe<'static>,
    feed: Feed,
) -> Training {
    let cut = Cut::EveryBlock(&[]);
    planned(name, net, Stage { first: 0, last, calibrate: true, cut, recipe }, feed)
}

const fn planned(
    name: &'static str,
    net: Net<'static>,
    stage: Stage<'static>,
    feed: Feed,
) -> Training {
    match StagePlan::reference(&net, &stage, feed) {
        Ok(plan) => Training { name, net, stage, feed, plan },
        Err(_) => panic!("the layers do not fit each other"),
    }
}

const NUMBERS: Feed = Feed { bytes: false, ..Feed::BYTES };
const WIDE: Feed = Feed { chunk: 6, ..Feed::BYTES };
const QUEUED: Feed = Feed { chunk: 4, queue: 2, ..Feed::BYTES };

/// Pooled planes, then a projection: heads that move.
const READOUT: &[Layer] = &[
    Layer::ChannelStd(ChannelStd),
    Layer::Project(Project { dim: 5, seed: 1 }),
    Layer::L2Normalise(L2Normalise),
];

static TRAININGS: [Training; 29] = [
    training("LeNet 1", LENET, (0, 4), recipe(HEAD, MARGIN, Rule::adam()), Feed::BYTES),
    training("LeNet 2", LENET, (4, 8), recipe(HEAD, SOFT, Rule::adam()), Feed::BYTES),
    training("LeNet 2, wide", LENET, (4, 8), recipe(HEAD, MARGIN, MOMENTUM), WIDE),
    training("LeNet 2, queued", LENET, (4, 8), recipe(READOUT, SOFT, MOMENTUM), QUEUED),
    training("LeNet head", LENET, (8, 13), recipe(&[], ENTROPY, Rule::adam()), Feed::BYTES),
    training("LeNet head, wide", LENET, (8, 13), recipe(&[], ENTROPY, Rule::sgd()), WIDE),
    training("LeNet whole", LENET, (0, 13), recipe(&[], ENTROPY, Rule::adam()), QUEUED),
    training("one layer", ONE_LAYER, (0, 1), recipe(&[], ENTROPY, Rule::sgd()), Feed::BYTES),
    training("one layer, numbers", ONE_LAYER, (0, 1), recipe(&[], ENTROPY, MOMENTUM), NUMBERS),
    training("in place", IN_PLACE_FIRST, (0, 5), recipe(HEAD, TRIPLET, MOMENTUM), NUMBERS),
    training("in place, bytes", IN_PLACE_FIRST, (0, 5), recipe(READOUT, SOFT, MOMENTUM), QUEUED),
    training("in place 2", IN_PLACE_FIRST, (5, 7), recipe(&[], ENTROPY, Rule::adam()), NUMBERS),
    training("MLP 1", MLP, (0, 3), recipe(HEAD, MARGIN, Rule::adam()), Feed::BYTES),
    training("MLP 2", MLP, (3, 5), recipe(HEAD, SOFT, Rule::adam()), QUEUED),
    training("MLP 3", MLP, (5, 6), recipe(&[], ENTROPY, Rule::adam()), WIDE),
    training("staying", STAYING, (0, 4), recipe(&[], SOFT, Rule::sgd()), Feed::BYTES),
    training("text", TEXT, (0, 6), recipe(HEAD, SOFT, Rule::adam()), Feed::BYTES),
    training("text, whole", TEXT, (0, 7), recipe(&[], ENTROPY, Rule::adam()), QUEUED),
    training("residual 2", RESIDUAL, (3, 10), recipe(HEAD, SOFT, Rule::adam()), Feed::BYTES),
    training("residual 3", RESIDUAL, (10, 17), recipe(HEAD, MARGIN, MOMENTUM), QUEUED),
    training("residual, whole", RESIDUAL, (0, 18), recipe(&[], ENTROPY, Rule::adam()), NUMBERS),
    training("LeNet 2, labels", LENET, (4, 8), recipe(&[], GOODNESS, Rule::adam()), QUEUED),
    training("one layer, labels", ONE_LAYER, (0, 1), recipe(&[], GOODNESS, MOMENTUM), NUMBERS),
    training("text, labels", TEXT, (0, 6), recipe(HEAD, GOODNESS, Rule::adam()), WIDE),
    every_block("LeNet, every block, labels", LENET, 8, recipe(&[], GOODNESS, MOMENTUM), WIDE),
    every_block("residual, every block", RESIDUAL, 17, recipe(HEAD, SOFT, MOMENTUM), WIDE),
    every_block("LeNet, every block", LENET, 8, recipe(HEAD, SOFT, Rule::adam()), Feed::BYTES),
    every_block("MLP, every block", MLP, 6, recipe(&[], ENTROPY, MOMENTUM), QUEUED),
    every_block(
        "in place, every block",
        IN_PLACE_FIRST,
        7,
        recipe(READOUT, MARGIN, MOMENTUM),
        WIDE,
    ),
];

// The sizes are constants, so a board's limit is checked when the program is built.
const _: () = assert!(RUNNINGS[0].plan.bytes() <= 9 * 1024, "LeNet does not fit the board");
const _: () = assert!(TRAININGS[0].plan.bytes() <= 96 * 1024, "block 1 does not fit the board");

/// Images of three classes; which class, a row's brightness says.
struct Rows {
    shape: Shape,
    bytes: bool,
}

impl Rows {
    fn byte(&self, sample: u32, at: usize) -> u8 {
        let row = (at / self.shape.w as usize) as u32;
        let noise = sample.wrapping_mul(2_654_435_761).wrapping_add(at as u32 * 40_503) >> 13;
        (noise % 120 + if row % 3 == sample % 3 { 110 } else { 10 }) as u8
    }
}

impl Source for Rows {
    fn len(&self) -> u32 {
        13
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        self.bytes
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let sample = self.shape.len().unwrap_or(0) as usize;
        let pixels = indices.iter().flat_map(|&i| (0..sample).map(move |at| (i, at)));
        match batch {
            Batch::U8(x) => {
                x.iter_mut().zip(pixels).for_each(|(x, (i, at))| *x = self.byte(i, at));
            }
            Batch::F32(x) => {
                let scaled = |i, at| f32::from(self.byte(i, at)) / 255.0;
                x.iter_mut().zip(pixels).for_each(|(x, (i, at))| *x = scaled(i, at));
            }
        }
        labels.iter_mut().zip(indices).for_each(|(label, i)| *label = (i % 3) as u16);
        Ok(())
    }
}

fn weights(net: &Net<'_>) -> Vec<f32> {
    let mut weights = vec![0.0; net.params(net.layers.len()).unwrap()];
    assert!(init::weights(net, 3, &mut weights));
    weights
}

fn infer(
    plan: &Inference<'_>,
    net: Net<'_>,
    n: u32,
    words: &mut [Word],
) -> Result<Vec<u32>, Error> {
    let weights = weights(&net);
    let model = Model { net, weights: Weights::Flat(&weights) };
    let mut out = vec![f32::NAN; plan.output() * n as usize];
    let source = Rows { shape: net.input.shape, bytes: true };
    let fill = |raw: &mut [u8]| {
        raw.iter_mut().enumerate().for_each(|(at, raw)| *raw = source.byte(1, at));
    };
    plan.run(&mut Reference::new(words), &model, n, fill, &mut out)?;
    Ok(out.iter().map(|x| x.to_bits()).collect())
}

/// Trains the stage and gives the bits of all losses and weights.
fn train(training: &Training, words: &mut [Word]) -> Result<Vec<u32>, Error> {
    let Training { net, stage, feed, plan, .. } = *training;
    let mut weights = weights(&net);
    let frozen = weights.clone();
    let model = Model { net, weights: Weights::Flat(&frozen) };
    let mut source = Rows { shape: net.input.shape, bytes: feed.bytes };
    let mut backend = Reference::new(words);
    let mut session = Session::new(net, stage, plan, 9, 0);
    session.load(&mut backend, &model)?;
    let mut numbers = vec![];
    session.run(&mut backend, &model, &mut source, |step| {
        if let Step::Trained { score, .. } = step {
            assert!(score.anchors > 0, "{}: the batch trains", training.name);
            numbers.push(score.value);
        }
    })?;
    let steps = 2 * session.steps(source.len()) as usize;
    assert_eq!(numbers.len(), steps, "{}: two passes", training.name);
    session.store(&mut backend, &mut weights)?;
    assert!(weights.is_empty() || weights != frozen, "{}: it learns", training.name);
    numbers.extend(weights);
    assert!(numbers.iter().all(|x| x.is_finite()), "{}: {numbers:?}", training.name);
    Ok(numbers.into_iter().map(f32::to_bits).collect())
}

/// Memory where every word is another one and none is a number that a net computes.
fn pattern(words: usize) -> Vec<Word> {
    (0..words)
        .map(|word| {
            bytemuck::cast(core::array::from_fn::<u8, 16, _>(|byte| {
                (word as u32 * 16 + byte as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] | 1
            }))
        })
        .collect()
}

/// Runs `work` in memory of every kind.
fn check(name: &str, bytes: usize, work: impl Fn(&mut [Word]) -> Result<Vec<u32>, Error>) {
    assert_eq!(bytes % Word::BYTES, 0, "{name}");
    let words = bytes / Word::BYTES;
    // Exactly as much gives the numbers of a roomy arena.
    let mut exact = vec![Word::NAN; words];
    let mut roomy = pattern(2 * words + 64);
    let before = roomy.clone();
    let numbers = work(&mut exact).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(work(&mut roomy).unwrap(), numbers, "{name}: more memory changes nothing");

    // One word less is refused, with both sizes.
    let given = bytes - Word::BYTES;
    let refused = Err(Error::Arena(ArenaError::OutOfMemory { needed: bytes, given }));
    assert_eq!(work(&mut vec![Word::NAN; words - 1]), refused, "{name}");

    // Every word is written, the last one too, and none past it.
    let of = |word: &Word| -> [u8; 16] { bytemuck::cast(*word) };
    let touched: Vec<bool> =
        roomy.iter().zip(&before).map(|(after, before)| of(after) != of(before)).collect();
    let past = touched.iter().rposition(|touched| *touched).map_or(0, |last| last + 1);
    assert_eq!(past * Word::BYTES, bytes, "{name}: bytes up to the last one that is written");
    let idle = touched[..words].iter().filter(|touched| !**touched).count();
    assert_eq!(idle, 0, "{name}: words that the plan has and nobody writes");
}

#[test]
fn inference_needs_exactly_its_plan() {
    for Running { name, net, n, plan } in &RUNNINGS {
        check(name, plan.bytes(), |words| infer(plan, *net, *n, words));
    }
}

#[test]
fn training_needs_exactly_its_plan() {
    for training in &TRAININGS {
        check(training.name, training.plan.bytes(), |words| train(training, words));
    }
}

/// The plan that a backend makes at run time is the constant one.
#[test]
fn constants_are_what_the_reference_asks_for() {
    let reference = Reference::new(&mut []);
    for Training { name, net, stage, feed, plan } in &TRAININGS {
        assert_eq!(StagePlan::new(&reference, net, stage, *feed).as_ref(), Ok(plan), "{name}");
    }
    let weights = weights(&LENET);
    let model = Model { net: LENET, weights: Weights::Flat(&weights) };
    let plan = Inference::new(&reference, &model, (0, LENET.layers.len()), 1, true).unwrap();
    assert_eq!(plan.bytes(), RUNNINGS[0].plan.bytes());
}

/// The sum by hand of one stage, so that a plan cannot grow unseen.
#[test]
fn the_sum_is_right_by_hand() {
    // One dense layer of 5 by 3, SGD, batch 6, numbers: weights and their gradients of 15 numbers
    // each take a padded 64 bytes, 6 labels 16, the batch of 5 numbers 120 -> 128; the output
    // and its gradient of 18 numbers 72 -> 80 each.
    let by_hand = 2 * 64 + 16 + 128 + 2 * 80;
    let recipe = recipe(&[], ENTROPY, Rule::sgd());
    let plan = training("one layer", ONE_LAYER, (0, 1), recipe, NUMBERS).plan;
    assert_eq!(plan.bytes(), by_hand);
    // Inference: the input of 5 numbers 20 -> 32 beside the output of 3, 12 -> 16. The 5 bytes
    // that it is widened from, 16, die before the output exists.
    assert_eq!(running("one layer", ONE_LAYER, 1).plan.bytes(), 32 + 16);
}

/// Layers of random nets; whether one fits is found out by trying.
fn any_layer() -> impl Strategy<Value = Layer> {
    let window = (1u8..4, 1u8..3, 0u8..2);
    prop_oneof![
        (1u32..6, 1u8..4, 1u8..3, 0u8..3, 1u32..4, any::<bool>()).prop_map(
            |(filters, kernel, stride, pad, groups, bias)| {
                let filters = filters * groups;
                let (stride, pad) = ((stride, 1), (pad, pad));
                Layer::Conv2d(Conv2d { stride, pad, groups, bias, ..Conv2d::new(filters, kernel) })
            }
        ),
        window.prop_map(|(kernel, stride, pad)| {
            let both = |x| (x, x);
            let window = Window { kernel: both(kernel), stride: both(stride), pad: both(pad) };
            Layer::MaxPool(MaxPool { window })
        }),
        Just(Layer::AvgPool(AvgPool::new(2))),
        Just(NORM),
        Just(RELU),
        Just(TANH),
        Just(Layer::Flatten(Flatten)),
        Just(Layer::L2Normalise(L2Normalise)),
        Just(Layer::Standardise(Standardise)),
        Just(Layer::SpaceToDepth(SpaceToDepth { factor: 2 })),
        (1u8..5).prop_map(|k| Layer::KMaxPool(KMaxPool { k })),
        (1u32..9).prop_map(|dim| Layer::Project(Project { dim, seed: 5 })),
        (1u32..9, any::<bool>()).prop_map(|(units, bias)| Layer::Dense(Dense { units, bias })),
        (1u8..5).prop_map(|back| Layer::Residual(Residual::new(back))),
        (1u8..5, 1u32..4, 1u8..3).prop_map(|(back, channels, stride)| {
            let project = Some(Projection { channels, stride: (stride, stride) });
            Layer::Residual(Residual { back, project })
        }),
    ]
}

proptest! {
    /// In an arena of just its plan a random net gives the numbers of a roomy one, sample by sample
    /// those of the batch, and one word less is refused.
    #[test]
    fn random_nets_need_their_plan(
        layers in prop::collection::vec(any_layer(), 1..9),
        shape in (1u32..4, 1u32..11, 1u32..11),
        n in 1u32..5,
    ) {
        let mut net = Net { input: input(shape.0, shape.1, shape.2), layers: &[], blocks: &[], features: 0 };
        let mut fitting = vec![];
        let mut at = net.input.shape;
        for layer in layers {
            fitting.push(layer);
            let next = layer.output(at).filter(|next| next.len().is_some_and(|len| len > 0));
            match next.filter(|_| Chain::new(&fitting).check(net.input.shape).is_ok()) {
                Some(next) => at = next,
                None => _ = fitting.pop(),
            }
        }
        prop_assume!(!fitting.is_empty());
        let blocks = [fitting.len() as u16];
        (net.layers, net.blocks) = (&fitting, &blocks);
        let plan = Inference::reference(net, n).unwrap();
        let words = plan.bytes() / Word::BYTES;
        prop_assert_eq!(plan.bytes() % Word::BYTES, 0);
        let exact = infer(&plan, net, n, &mut vec![Word::NAN; words]).unwrap();
        prop_assert_eq!(&infer(&plan, net, n, &mut pattern(words + 16)).unwrap(), &exact);
        let given = plan.bytes() - Word::BYTES;
        let refused = Error::Arena(ArenaError::OutOfMemory { needed: plan.bytes(), given });
        prop_assert_eq!(infer(&plan, net, n, &mut vec![Word::NAN; words - 1]), Err(refused));
        // The first sample alone needs no more, and is the batch's first row.
        let one = Inference::reference(net, 1).unwrap();
        prop_assert!(one.bytes() <= plan.bytes());
        let alone = infer(&one, net, 1, &mut vec![Word::NAN; one.bytes() / Word::BYTES]).unwrap();
        prop_assert_eq!(&exact[..alone.len()], alone);
    }
}
