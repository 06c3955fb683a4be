//! Batches that are run in parts, their gradients accumulated.

use sepal_core::arena::Word;
use sepal_core::layer::{BatchNorm, Conv2d, Dense, Flatten, Layer, RELU};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::optim::Rule;
use sepal_core::plan::PlanError;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Session, StagePlan, Step};

/// Images of three classes, and which of them were read.
#[derive(Default)]
struct Images {
    read: Vec<u32>,
}

impl Source for Images {
    fn len(&self) -> u32 {
        27
    }

    fn shape(&self) -> Shape {
        Shape::new(1, 1, 4, 4)
    }

    fn is_u8(&self) -> bool {
        false
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let Batch::F32(x) = batch else { panic!("bytes") };
        for ((image, label), &index) in x.chunks_exact_mut(16).zip(labels).zip(indices) {
            *label = (index % 3) as u16;
            for (at, x) in (0..).zip(image) {
                *x = ((index * 7 + at * (index % 3 + 1)) % 11) as f32 / 5.0 - 1.0;
            }
        }
        self.read.extend(indices);
        Ok(())
    }
}

const LAYERS: [Layer; 4] =
    [Layer::Conv2d(Conv2d::new(3, 3)), RELU, Layer::Flatten(Flatten), Layer::Dense(Dense::new(3))];
const NET: Net<'static> = Net {
    input: Input { shape: Shape::new(1, 1, 4, 4), normalisation: Normalisation::NONE },
    layers: &LAYERS,
    blocks: &[4],
    features: 1,
};
const STAGE: Stage<'static> = Stage {
    first: 0,
    last: 4,
    calibrate: false,
    cut: Cut::Whole,
    recipe: Recipe {
        head: &[],
        objective: Objective::CrossEntropy { smoothing: 0.0 },
        epochs: 3,
        batch: 12,
        micro_batches: 1,
        rule: Rule::sgd(),
        rate: 0.1,
        schedule: Schedule::Cosine { warmup: 1 },
        stop: Stop::Never,
    },
};
const FEED: Feed = Feed { bytes: false, ..Feed::BYTES };

fn stage(rule: Rule, micro_batches: u32) -> Stage<'static> {
    Stage { recipe: Recipe { rule, micro_batches, ..STAGE.recipe }, ..STAGE }
}

/// What a training leaves.
struct Trained {
    weights: Vec<f32>,
    /// Each step's loss, anchors and hits.
    steps: Vec<(f32, u32, u32)>,
    /// What was read, in order.
    read: Vec<u32>,
}

fn trained(stage: Stage<'_>, queue: u32) -> Trained {
    let mut weights = vec![0.0; NET.params(4).unwrap()];
    sepal_core::init::weights(&NET, 3, &mut weights);
    let plan = StagePlan::reference(&NET, &stage, Feed { queue, ..FEED }).unwrap();
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut backend = Reference::new(&mut memory);
    let (mut steps, mut source) = (Vec::new(), Images::default());
    {
        let model = Model { net: NET, weights: Weights::Flat(&weights) };
        let mut session = Session::new(NET, stage, plan, 3, 0);
        session.load(&mut backend, &model).unwrap();
        let observe = |step: &Step| {
            if let Step::Trained { score, .. } = step {
                steps.push((score.value, score.anchors, score.correct));
            }
        };
        session.run(&mut backend, &model, &mut source, observe).unwrap();
        let mut after = weights.clone();
        session.store(&mut backend, &mut after).unwrap();
        weights = after;
    }
    Trained { weights, steps, read: source.read }
}

/// Without layers that look across a batch, parts change nothing but the order of sums.
#[test]
fn parts_learn_what_the_batch_learns() {
    let momentum = Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 };
    let decayed = Rule::Adam { beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.1 };
    for rule in [Rule::sgd(), momentum, Rule::adam(), decayed, Rule::adamw(0.1)] {
        let whole = trained(stage(rule, 1), 1);
        let scale = whole.weights.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        assert_eq!(whole.steps.len(), 6, "27 samples are two batches of 12, three times");
        for parts in [2, 3, 12] {
            for queue in [1, 2] {
                let own = trained(stage(rule, parts), queue);
                for (a, b) in own.weights.iter().zip(&whole.weights) {
                    assert!((a - b).abs() < 2e-5 * scale, "{rule:?} in {parts}: {a} and {b}");
                }
                for (a, b) in own.steps.iter().zip(&whole.steps) {
                    assert!((a.0 - b.0).abs() < 1e-5 && (a.1, a.2) == (b.1, b.2), "{a:?} {b:?}");
                }
                assert_eq!(own.steps.len(), whole.steps.len());
                assert!(queue > 1 || own.read == whole.read);
            }
        }
    }
}

/// Both copies of a sample are in one part, the second with the label that it has in the whole batch.
#[test]
fn labels_that_are_written_are_those_of_the_whole_batch() {
    let trained = |micro_batches, queue| {
        let objective = Objective::Goodness { threshold: 0.5, classes: 3 };
        let recipe = Recipe { objective, micro_batches, ..STAGE.recipe };
        trained(Stage { recipe, ..STAGE }, queue)
    };
    let whole = trained(1, 1);
    assert_eq!(whole.steps.len(), 12, "27 samples are four batches of 6 twice, three times");
    for (parts, queue) in [(2, 1), (3, 2), (6, 1)] {
        let own = trained(parts, queue);
        for (a, b) in own.weights.iter().zip(&whole.weights) {
            assert!((a - b).abs() < 2e-5, "{parts}: {a} and {b}");
        }
        for (a, b) in own.steps.iter().zip(&whole.steps) {
            assert!((a.0 - b.0).abs() < 1e-5 && (a.1, a.2) == (b.1, b.2), "{a:?} {b:?}");
        }
    }
}

/// Where layers look across a batch, each part is a batch of its own to them.
#[test]
fn statistics_are_those_of_a_part() {
    const NORMED: [Layer; 3] =
        [Layer::Flatten(Flatten), Layer::BatchNorm(BatchNorm::new()), Layer::Dense(Dense::new(3))];
    let net = Net { layers: &NORMED, blocks: &[3], ..NET };
    let weights = |parts| {
        let stage = Stage { last: 3, ..stage(Rule::sgd(), parts) };
        let plan = StagePlan::reference(&net, &stage, FEED).unwrap();
        let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
        let mut backend = Reference::new(&mut memory);
        let mut weights = vec![0.5; net.params(3).unwrap()];
        let model = Model { net, weights: Weights::Flat(&weights) };
        let mut session = Session::new(net, stage, plan, 3, 0);
        session.load(&mut backend, &model).unwrap();
        session.step(&mut backend, &model, &mut Images::default()).unwrap();
        let mut after = weights.clone();
        session.store(&mut backend, &mut after).unwrap();
        weights = after;
        weights
    };
    let apart = weights(1).iter().zip(weights(2)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart > 1e-3, "{apart}");
}

/// The arena is that of a batch as small as a part.
#[test]
fn memory_is_that_of_a_part() {
    let bytes = |batch, micro_batches| {
        let recipe = Recipe { batch, micro_batches, ..STAGE.recipe };
        StagePlan::reference(&NET, &Stage { recipe, ..STAGE }, FEED).map(|plan| plan.bytes())
    };
    assert_eq!(bytes(12, 4), bytes(3, 1));
    assert!(bytes(12, 4).unwrap() < bytes(12, 1).unwrap());
    for (batch, parts) in [(12, 0), (12, 5), (12, 24), (2, u32::MAX)] {
        assert_eq!(bytes(batch, parts), Err(PlanError::MicroBatches { batch, parts }));
    }
    // Both views of a sample are in one part.
    let views = |parts| {
        let objective = Objective::Views(Loss::SoftNearest { temperature: 0.1 });
        let recipe = Recipe { objective, micro_batches: parts, ..STAGE.recipe };
        StagePlan::reference(&NET, &Stage { recipe, ..STAGE }, FEED)
    };
    assert!(views(3).is_ok());
    assert_eq!(views(4), Err(PlanError::Batch { size: 3 }));
}
