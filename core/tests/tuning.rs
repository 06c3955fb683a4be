//! Fine-tuning one sample at a time is the step over the whole batch.

use sepal_core::arena::{ArenaError, Word};
use sepal_core::backend::Backend;
use sepal_core::error::Error;
use sepal_core::layer::{
    Activation, BatchNorm, Conv2d, Dense, Flatten, L2Normalise, Layer, MaxPool, Quantise, RELU,
};
use sepal_core::loss;
use sepal_core::micro::{Embeddings, Frozen, Micro, Program, Tuning, TuningPlan, operations};
use sepal_core::neighbour::{Pair, Rows, nearest_pair};
use sepal_core::net::{Input, Model, Net, Normalisation, Patch, Weights};
use sepal_core::optim::Rule;
use sepal_core::plan::PlanError;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Session, StagePlan};

const INPUT: Shape = Shape::new(1, 2, 9, 8);
const SAMPLES: u32 = 20;

/// Noise over stripes that tell the class.
struct Images {
    classes: u32,
}

impl Source for Images {
    fn len(&self) -> u32 {
        SAMPLES
    }

    fn shape(&self) -> Shape {
        INPUT
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        x: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let Batch::U8(x) = x else { return Err(SourceError::Batch { expected: 0, got: 0 }) };
        let samples = x.chunks_exact_mut(INPUT.len().unwrap() as usize);
        for ((x, label), &index) in samples.zip(labels).zip(indices) {
            *label = (index % self.classes) as u16;
            for (at, x) in (0u32..).zip(x) {
                let noise = (index * 7919 + at * 104_729).wrapping_mul(2_654_435_761) >> 25;
                *x = (noise + u32::from(*label) * 30 * (at % 3)) as u8;
            }
        }
        Ok(())
    }
}

const CONV: Conv2d = Conv2d { pad: (1, 1), ..Conv2d::new(4, 3) };
const POOL: Layer = Layer::MaxPool(MaxPool::new(2));
const UNIT: &[Layer] = &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];
const MARGIN: Objective = Objective::Separation(Loss::Margin { margin: 0.5 });
const TRIPLET: Objective = Objective::Separation(Loss::Triplet);
const LABELS: Objective = Objective::CrossEntropy { smoothing: 0.1 };
const MOMENTUM: Rule = Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.001 };

const fn net<'m>(layers: &'m [Layer], blocks: &'m [u16]) -> Net<'m> {
    let input = Input { shape: INPUT, normalisation: Normalisation::scalar(0.3, 0.5) };
    Net { input, layers, blocks, features: 1 }
}

const fn stage<'m>(
    (first, last): (u16, u16),
    head: &'m [Layer],
    objective: Objective,
    rule: Rule,
) -> Stage<'m> {
    let (rate, schedule) = (0.01, Schedule::Constant);
    let recipe = Recipe {
        head,
        objective,
        epochs: 4,
        batch: 8,
        micro_batches: 1,
        rule,
        rate,
        schedule,
        stop: Stop::Never,
    };
    Stage { first, last, calibrate: false, cut: Cut::Whole, recipe }
}

/// Weights of the whole net, norms with statistics that are not 0 and 1.
fn weights(net: &Net<'_>) -> Vec<f32> {
    let mut weights = vec![0.0; net.params(net.layers.len()).unwrap()];
    sepal_core::init::weights(net, 5, &mut weights);
    let mut shape = net.input.shape;
    for (at, layer) in net.layers.iter().enumerate() {
        if matches!(layer, Layer::BatchNorm(_)) {
            let own = net.params(at).unwrap()..net.params(at + 1).unwrap();
            for (i, w) in weights[own].iter_mut().enumerate() {
                *w += 0.1 + 0.05 * i as f32;
            }
        }
        shape = layer.output(shape).unwrap();
    }
    weights
}

struct Tuned {
    /// Of the block.
    before: Vec<f32>,
    after: Vec<f32>,
    values: Vec<f32>,
}

fn tune(net: Net<'_>, stage: Stage<'_>, embeddings: Embeddings, steps: usize) -> Tuned {
    let all = weights(&net);
    let plan = TuningPlan::new(net, &stage, embeddings, false).unwrap();
    // What was not written is not a number.
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut backend = Micro::<false>::new(&mut memory);
    let model = Model { net, weights: Weights::Flat(&all) };
    let mut tuning = Tuning::new(plan, 3);
    tuning.load(&mut backend, &model).unwrap();
    let mut source = Images { classes: 3 };
    let step = |_| tuning.step(&mut backend, &model, &mut source, 100).unwrap().value;
    let values = (0..steps).map(step).collect();
    let own = net.params(stage.first.into()).unwrap()..net.params(stage.last.into()).unwrap();
    let mut after = vec![f32::NAN; own.len()];
    tuning.store(&mut backend, &mut after).unwrap();
    Tuned { before: all[own].to_vec(), after, values }
}

/// The same by the trainer that holds the whole batch.
fn train(net: Net<'_>, stage: Stage<'_>, steps: usize) -> Tuned {
    let mut all = weights(&net);
    let plan = StagePlan::reference(&net, &stage, Feed::BYTES).unwrap();
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut backend = Reference::new(&mut memory);
    let frozen = all.clone();
    let model = Model { net, weights: Weights::Flat(&frozen) };
    let mut session = Session::new(net, stage, plan, 3, 0);
    session.load(&mut backend, &model).unwrap();
    let mut source = Images { classes: 3 };
    let mut values = vec![];
    for _ in 0..steps {
        let step = session.step(&mut backend, &model, &mut source).unwrap();
        let sepal_core::train::Step::Trained { score, .. } = step else { panic!("{step:?}") };
        values.push(score.value);
    }
    session.store(&mut backend, &mut all).unwrap();
    let own = net.params(stage.first.into()).unwrap()..net.params(stage.last.into()).unwrap();
    Tuned { before: frozen[own.clone()].to_vec(), after: all[own].to_vec(), values }
}

/// A fine-tuning before its first step, in memory of which nothing was written.
fn begun<'a>(
    stage: Stage<'a>,
    model: &Model<'a>,
    words: &'a mut Vec<Word>,
) -> (Micro<'a, false>, Tuning<'a>) {
    let plan = TuningPlan::new(model.net, &stage, Embeddings::F32, false).unwrap();
    *words = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut backend = Micro::<false>::new(words);
    let mut tuning = Tuning::new(plan, 3);
    tuning.load(&mut backend, model).unwrap();
    (backend, tuning)
}

#[track_caller]
fn close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (at, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "at {at}: {g}, expected {e}");
    }
}

#[test]
fn a_step_is_that_of_the_whole_batch() {
    let layers = [
        Layer::Conv2d(CONV),
        RELU,
        POOL,
        Layer::Conv2d(Conv2d { stride: (1, 2), groups: 2, ..Conv2d::new(6, 2) }),
        Layer::Activation(Activation::LeakyRelu { slope: 0.1 }),
        Layer::Flatten(Flatten),
        Layer::Dense(Dense::new(7)),
        Layer::Activation(Activation::Relu6),
        Layer::Dense(Dense { units: 3, bias: false }),
    ];
    let net = net(&layers, &[3, 6, 8, 9]);
    for (part, head, objective, rule) in [
        ((0, 3), UNIT, MARGIN, Rule::adam()),
        ((0, 3), UNIT, MARGIN, MOMENTUM),
        ((0, 3), &UNIT[..1], TRIPLET, Rule::sgd()),
        ((3, 6), UNIT, MARGIN, MOMENTUM),
        ((3, 6), &[], MARGIN, Rule::sgd()),
        ((6, 8), UNIT, MARGIN, Rule::adam()),
        ((8, 9), &[], LABELS, Rule::adam()),
        ((8, 9), &[], LABELS, MOMENTUM),
    ] {
        let stage = stage(part, head, objective, rule);
        let (tuned, trained) = (tune(net, stage, Embeddings::F32, 5), train(net, stage, 5));
        assert_ne!(tuned.before, tuned.after, "{part:?}");
        close(&tuned.values, &trained.values, 1e-5);
        close(&tuned.after, &trained.after, 2e-5);
    }
}

const LAYERS: &[Layer] = &[
    Layer::Conv2d(CONV),
    Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() }),
    RELU,
    POOL,
    Layer::Conv2d(Conv2d::new(6, 2)),
    Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() }),
    RELU,
    Layer::Flatten(Flatten),
    Layer::Dense(Dense::new(3)),
];
const NET: Net<'static> = net(LAYERS, &[4, 7, 9]);
const OPERATIONS: usize = operations(&NET, LAYERS.len(), false);
static PROGRAM: Program<'static, OPERATIONS> = match Program::new(NET, false) {
    Ok(program) => program,
    Err(_) => panic!("the layers do not fit each other"),
};

/// Planned at compile time behind a program or when it runs: the same steps, to the bit, also over
/// weights that are patched.
#[test]
fn behind_a_program_the_same_is_learnt() {
    let all = weights(&NET);
    let numbers = vec![0.25; NET.params(4).unwrap()];
    let patches = [Patch { first: 0, last: 4, numbers: &numbers }];
    let flat = Weights::Flat(&all);
    for weights in [flat, Weights::Patched { under: &flat, patches: &patches }] {
        for (part, head, objective, rule, schedule) in [
            ((0, 4), UNIT, MARGIN, Rule::adam(), Schedule::Cosine { warmup: 1 }),
            ((4, 7), UNIT, MARGIN, MOMENTUM, Schedule::Step { every: 2, factor: 0.5 }),
            ((8, 9), &[][..], LABELS, Rule::sgd(), Schedule::Constant),
        ] {
            let mut stage = stage(part, head, objective, rule);
            stage.recipe.schedule = schedule;
            let model = Model { net: NET, weights };
            let one = TuningPlan::new(NET, &stage, Embeddings::F32, false).unwrap();
            let other = TuningPlan::program(&PROGRAM, &stage, Embeddings::F32).unwrap();
            assert_eq!(learnt(one, one.bytes(), &model), learnt(other, other.bytes(), &model));
        }
    }
}

/// What a block is after some steps in so many bytes, and the steps' losses.
fn learnt<P: Frozen + Copy>(
    plan: TuningPlan<'_, P>,
    bytes: usize,
    model: &Model<'_>,
) -> (Vec<f32>, Vec<f32>) {
    let mut memory = vec![Word::NAN; bytes / Word::BYTES];
    let mut backend = Micro::<false>::new(&mut memory);
    let mut tuning = Tuning::new(plan, 3);
    tuning.load(&mut backend, model).unwrap();
    let mut source = Images { classes: 3 };
    let step = |_| tuning.step(&mut backend, model, &mut source, 5).unwrap().value;
    let losses = (0..5).map(step).collect();
    let mut after = vec![f32::NAN; plan.parameters()];
    tuning.store(&mut backend, &mut after).unwrap();
    (after, losses)
}

#[test]
fn a_program_ends_where_its_operations_do() {
    let planned = |first, last| {
        let stage = stage((first, last), UNIT, MARGIN, MOMENTUM);
        TuningPlan::program(&PROGRAM, &stage, Embeddings::F32).map(|plan| plan.bytes())
    };
    assert!(planned(4, 7).is_ok());
    let range = |first, last, layers| Err(PlanError::Range { first, last, layers });
    // Within the first operation; behind the last layer.
    assert_eq!(planned(2, 4), range(0, 2, 9));
    assert_eq!(planned(9, 10), range(9, 10, 9));
    assert_eq!(planned(10, 11), range(0, 10, 9));
}

/// A backend that is smaller than the one that the block was loaded into is refused at each call.
#[test]
fn less_memory_than_before_is_refused() {
    let stage = stage((4, 7), UNIT, MARGIN, MOMENTUM);
    let plan = TuningPlan::program(&PROGRAM, &stage, Embeddings::F32).unwrap();
    let all = weights(&NET);
    let model = Model { net: NET, weights: Weights::Flat(&all) };
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut tuning = Tuning::new(plan, 3);
    tuning.load(&mut Micro::<false>::new(&mut memory), &model).unwrap();
    let mut less = Micro::<false>::new(&mut memory[1..]);
    let (needed, given) = (plan.bytes(), less.bytes());
    let refused = Error::from(ArenaError::OutOfMemory { needed, given });
    let mut source = Images { classes: 3 };
    assert_eq!(tuning.step(&mut less, &model, &mut source, 1), Err(refused));
    let mut numbers = vec![0.0; plan.parameters()];
    assert_eq!(tuning.store(&mut less, &mut numbers), Err(refused));
    let embedded = tuning.embedding(&mut less, &model, &mut source, 0, &mut numbers);
    assert_eq!(embedded, Err(refused));
}

/// Half precision moves the block nearly as full precision does.
#[cfg(feature = "f16")]
#[test]
fn embeddings_in_half_precision() {
    let layers = [Layer::Conv2d(CONV), RELU, POOL];
    let (net, stage) = (net(&layers, &[3]), stage((0, 3), UNIT, MARGIN, MOMENTUM));
    let [half, full] =
        [Embeddings::F16, Embeddings::F32].map(|embeddings| tune(net, stage, embeddings, 3));
    close(&half.values, &full.values, 2e-3);
    close(&half.after, &full.after, 2e-3);
    assert_ne!(half.after, full.after);
    let bytes = |embeddings| TuningPlan::new(net, &stage, embeddings, false).unwrap().bytes();
    assert!(bytes(Embeddings::F32) - bytes(Embeddings::F16) == 8 * 2 * 4 * 4 * 4);
}

/// A step of gradient descent of rate 1 takes the gradient from the weights: it is that of the loss,
/// by central differences. Norms are frozen.
#[test]
fn gradients_are_derivatives() {
    let norm = Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() });
    let conv = |conv| Layer::Conv2d(conv);
    for layers in [
        vec![conv(Conv2d { pad: (1, 0), ..Conv2d::new(3, 3) }), norm, RELU, POOL],
        vec![conv(Conv2d { stride: (2, 3), pad: (1, 2), groups: 2, ..Conv2d::new(4, 4) }), norm],
        vec![
            conv(Conv2d::new(2, 5)),
            Layer::Activation(Activation::LeakyRelu { slope: 0.3 }),
            Layer::MaxPool(MaxPool::new(3)),
        ],
        vec![Layer::Dense(Dense::new(5)), norm, Layer::Activation(Activation::Relu6)],
    ] {
        let last = layers.len() as u16;
        let blocks = [last];
        let net = net(&layers, &blocks);
        for (head, objective) in [(UNIT, MARGIN), (&UNIT[..1], TRIPLET)] {
            let mut stage = stage((0, last), head, objective, Rule::sgd());
            stage.recipe.rate = 1.0;
            let tuned = tune(net, stage, Embeddings::F32, 1);
            let own = layers[0].tensors(INPUT).unwrap();
            let count = (own.weight + own.bias) as usize;
            // The norm's parameters stay.
            assert_eq!(tuned.before[count..], tuned.after[count..]);
            let value = |weights: &[f32]| loss_of(net, stage, weights);
            let mut scale = 0f32;
            let mut errors = vec![];
            for at in (0..count).step_by(1 + count / 23) {
                let step = 1e-3 * tuned.before[at].abs().max(0.3);
                let mut moved = tuned.before.clone();
                moved[at] += step;
                let above = value(&moved);
                moved[at] -= 2.0 * step;
                let expected = ((above - value(&moved)) / f64::from(2.0 * step)) as f32;
                let got = tuned.before[at] - tuned.after[at];
                scale = scale.max(expected.abs());
                errors.push((got - expected).abs());
            }
            let worst = errors.iter().copied().fold(0.0, f32::max);
            assert!(scale > 0.0 && worst <= 0.03 * scale, "{layers:?}: {worst} of {scale}");
        }
    }
}

/// The loss of the first batch, with the neighbours of the weights that it began with, in f64.
fn loss_of(net: Net<'_>, stage: Stage<'_>, weights_: &[f32]) -> f64 {
    let embed = |weights: &[f32]| -> (Vec<f64>, Vec<u16>) {
        let model = Model { net, weights: Weights::Flat(weights) };
        let mut words = vec![];
        let (mut backend, tuning) = begun(stage, &model, &mut words);
        let mut source = Images { classes: 3 };
        let mut indices = [0; 8];
        source.pick(Draw { seed: 3, epoch: 0, step: 0 }, 8, 0, &mut indices);
        let out = net.output().unwrap().sample().unwrap() as usize;
        let (mut all, mut labels) = (vec![], vec![]);
        for index in indices {
            let mut row = vec![0.0; out];
            let label = tuning.embedding(&mut backend, &model, &mut source, index, &mut row);
            labels.push(label.unwrap());
            all.extend(row.iter().map(|&x| f64::from(x)));
        }
        (all, labels)
    };
    let dim = net.output().unwrap().sample().unwrap() as usize;
    let (start, labels) = embed(&weights(&net));
    let rows = Rows { data: &start, dim, labels: &labels };
    let mut pairs = vec![Pair::NONE; 8];
    nearest_pair(rows, rows, 0, Some(0), &mut pairs);
    let (moved, _) = embed(weights_);
    match stage.recipe.objective {
        Objective::Separation(Loss::Margin { margin }) => {
            loss::margin(&moved, dim, &pairs, f64::from(margin), None).value
        }
        _ => loss::triplet(&moved, dim, &pairs, None).value,
    }
}

/// The nearest of the bank, found from the embeddings.
#[test]
fn judging_is_the_nearest_of_another_set() {
    let layers = [Layer::Conv2d(CONV), RELU, POOL];
    let (net, stage) = (net(&layers, &[3]), stage((0, 3), UNIT, MARGIN, MOMENTUM));
    let all = weights(&net);
    let model = Model { net, weights: Weights::Flat(&all) };
    let mut words = vec![];
    let (mut backend, tuning) = begun(stage, &model, &mut words);
    let (mut bank, mut queries) = (Images { classes: 3 }, Images { classes: 4 });
    let dim = 64;
    let (mut rows, mut labels) = (vec![0.0; 20 * dim], [0; 20]);
    let mut told = vec![];
    let mut tell = |index, right| told.push((index, right));
    tuning
        .judge(&mut backend, &model, &mut bank, &mut queries, &mut rows, &mut labels, &mut tell)
        .unwrap();
    assert_eq!(told.len(), 20);
    let mut embed = |classes, index| {
        let mut row = vec![0.0; dim];
        let mut source = Images { classes };
        let label = tuning.embedding(&mut backend, &model, &mut source, index, &mut row).unwrap();
        (row, label)
    };
    let bank_rows: Vec<_> = (0..20).map(|index| embed(3, index)).collect();
    let mut count = 0;
    for (index, right) in told {
        let (query, label) = embed(4, index);
        let distance =
            |row: &[f32]| row.iter().zip(&query).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let nearest = bank_rows.iter().min_by(|(a, _), (b, _)| distance(a).total_cmp(&distance(b)));
        assert_eq!(right, nearest.unwrap().1 == label, "{index}");
        count += u32::from(right);
    }
    assert!((1..20).contains(&count));
    let short = &mut rows[1..];
    let refused =
        tuning.judge(&mut backend, &model, &mut bank, &mut queries, short, &mut labels, |_, _| ());
    let (needed, given) = (20 * dim * 4, 20 * dim * 4 - 4);
    assert_eq!(refused, Err(ArenaError::OutOfMemory { needed, given }.into()));
}

/// What is planned is what is used, to the byte: one word less is refused, by both numbers.
#[test]
fn memory_is_exact() {
    let layers = [Layer::Conv2d(CONV), RELU, POOL];
    let (net, stage) = (net(&layers, &[3]), stage((0, 3), UNIT, MARGIN, MOMENTUM));
    let plan = TuningPlan::new(net, &stage, Embeddings::F32, false).unwrap();
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES - 1];
    let all = weights(&net);
    let model = Model { net, weights: Weights::Flat(&all) };
    let mut backend = Micro::<false>::new(&mut memory);
    let (needed, given) = (plan.bytes(), backend.bytes());
    let refused = Tuning::new(plan, 3).load(&mut backend, &model);
    assert_eq!(refused, Err(ArenaError::OutOfMemory { needed, given }.into()));
}

#[test]
fn what_cannot_be_tuned_is_refused() {
    let layers = [Layer::Conv2d(CONV), RELU, POOL, Layer::Dense(Dense::new(3)), RELU];
    let net = net(&layers, &[3, 5]);
    let planned = |stage| TuningPlan::new(net, &stage, Embeddings::F32, false);
    assert!(planned(stage((0, 3), UNIT, MARGIN, MOMENTUM)).is_ok());
    let range = |first, last| Some(PlanError::Range { first, last, layers: 5 });
    // Two layers with weights; a block that begins with none; a head that would be drawn anew.
    assert_eq!(planned(stage((0, 5), UNIT, MARGIN, MOMENTUM)).err(), range(0, 5));
    assert_eq!(planned(stage((1, 3), UNIT, MARGIN, MOMENTUM)).err(), range(1, 3));
    assert_eq!(planned(stage((0, 3), &layers[3..4], MARGIN, MOMENTUM)).err(), range(0, 3));
    // Where weights are bytes, a layer behind rounded activations sums bytes.
    let rounded = [Layer::Quantise(Quantise::BYTES), Layer::Conv2d(CONV), RELU];
    let rounded = Net { layers: &rounded, blocks: &[1, 3], ..net };
    let stage_ = stage((1, 3), UNIT, MARGIN, MOMENTUM);
    let plan = |narrow| TuningPlan::new(rounded, &stage_, Embeddings::F32, narrow);
    assert!(plan(false).is_ok());
    assert_eq!(plan(true).err(), Some(PlanError::Range { first: 1, last: 3, layers: 3 }));
    let soft = Objective::Separation(Loss::SoftNearest { temperature: 1.0 });
    assert_eq!(planned(stage((0, 3), UNIT, soft, MOMENTUM)).err(), range(0, 3));
}

/// A block that has become infinite says so: neighbours would hide it.
#[test]
fn a_block_that_diverged_is_named() {
    let layers = [Layer::Conv2d(CONV), RELU, POOL];
    let (net, stage) = (net(&layers, &[3]), stage((0, 3), UNIT, MARGIN, MOMENTUM));
    let mut all = weights(&net);
    all[5] = f32::INFINITY;
    let model = Model { net, weights: Weights::Flat(&all) };
    let mut words = vec![];
    let (mut backend, mut tuning) = begun(stage, &model, &mut words);
    let step = tuning.step(&mut backend, &model, &mut Images { classes: 3 }, 1);
    assert_eq!(step, Err(Error::Diverged { stage: 0, layer: 0, update: 0 }));
    let mut after = vec![0.0; all.len()];
    tuning.store(&mut backend, &mut after).unwrap();
    assert_eq!(after, all);
}

/// One class has no neighbours of another: after a pass an error, and nothing moves.
#[test]
fn one_class_moves_nothing() {
    let layers = [Layer::Conv2d(CONV), RELU, POOL];
    let (net, stage) = (net(&layers, &[3]), stage((0, 3), UNIT, MARGIN, MOMENTUM));
    let all = weights(&net);
    let model = Model { net, weights: Weights::Flat(&all) };
    let mut words = vec![];
    let (mut backend, mut tuning) = begun(stage, &model, &mut words);
    let mut source = Images { classes: 1 };
    let mut step = || tuning.step(&mut backend, &model, &mut source, 2);
    let first = step().unwrap();
    assert_eq!((first.anchors, first.skipped), (0, 8));
    // Two batches of 8 are a pass over 20 samples.
    assert_eq!(step(), Err(Error::NoAnchor { stage: 0, update: 1 }));
    let mut after = vec![0.0; all.len()];
    tuning.store(&mut backend, &mut after).unwrap();
    assert_eq!(after, all);
    assert_eq!(tuning.updates(), 1);
}

/// A batch that teaches nothing is passed: the next one does.
#[test]
fn a_batch_of_one_class_is_passed() {
    /// The first half is of one class, and order is kept.
    struct Sorted(Images);
    impl Source for Sorted {
        fn len(&self) -> u32 {
            16
        }
        fn shape(&self) -> Shape {
            INPUT
        }
        fn is_u8(&self) -> bool {
            true
        }
        fn pick(&self, draw: Draw, batch: u32, first: u32, indices: &mut [u32]) {
            let start = draw.step * batch + first;
            (start..).zip(indices).for_each(|(at, index)| *index = at);
        }
        fn read(
            &mut self,
            indices: &[u32],
            draw: Option<Draw>,
            x: Batch<'_>,
            labels: &mut [u16],
        ) -> Result<(), SourceError> {
            self.0.read(indices, draw, x, labels)?;
            let early = labels.iter_mut().zip(indices).filter(|(_, index)| **index < 8);
            early.for_each(|(label, _)| *label = 0);
            Ok(())
        }
    }
    let layers = [Layer::Conv2d(CONV), RELU, POOL];
    let (net, stage) = (net(&layers, &[3]), stage((0, 3), UNIT, MARGIN, MOMENTUM));
    let all = weights(&net);
    let model = Model { net, weights: Weights::Flat(&all) };
    let mut words = vec![];
    let (mut backend, mut tuning) = begun(stage, &model, &mut words);
    let mut source = Sorted(Images { classes: 3 });
    let anchors: Vec<u32> = (0..6)
        .map(|_| tuning.step(&mut backend, &model, &mut source, 6).unwrap().anchors)
        .collect();
    assert!(anchors.iter().step_by(2).all(|&anchors| anchors == 0), "{anchors:?}");
    assert!(anchors.iter().skip(1).step_by(2).all(|&anchors| anchors > 4), "{anchors:?}");
}
