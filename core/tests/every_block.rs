//! Stages in which every block learns for itself.

use sepal_core::arena::Word;
use sepal_core::backend::Backend;
use sepal_core::layer::{
    AvgPoolTo, BatchNorm, Conv2d, Dense, Flatten, L2Normalise, Layer, MaxPool, RELU,
};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::optim::Rule;
use sepal_core::plan::PlanError;
use sepal_core::reference::Reference;
use sepal_core::rng::{Purpose, Rng};
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Session, StagePlan};

const NET: Net<'static> = Net {
    input: Input { shape: Shape::new(1, 2, 8, 8), normalisation: Normalisation::NONE },
    layers: &[
        Layer::Conv2d(Conv2d { bias: false, pad: (1, 1), ..Conv2d::new(3, 3) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Conv2d(Conv2d { bias: false, pad: (1, 1), ..Conv2d::new(4, 3) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(5, 3) }),
        Layer::Flatten(Flatten),
        Layer::Dense(Dense::new(2)),
    ],
    blocks: &[4, 8, 9, 11],
    features: 3,
};

const UNIT: &[Layer] = &[Layer::L2Normalise(L2Normalise)];
/// The same numbers, but in another place.
const MOVED: &[Layer] =
    &[Layer::AvgPoolTo(AvgPoolTo { h: 8, w: 8 }), Layer::L2Normalise(L2Normalise)];
const DENSE: &[Layer] = &[Layer::Flatten(Flatten), Layer::Dense(Dense::new(2))];

const fn stage(first: u16, last: u16, cut: Cut<'static>, head: &'static [Layer]) -> Stage<'static> {
    let recipe = Recipe {
        head,
        objective: Objective::Separation(Loss::SoftNearest { temperature: 0.5 }),
        epochs: 3,
        batch: 8,
        micro_batches: 1,
        rule: Rule::adam(),
        rate: 0.01,
        schedule: Schedule::Constant,
        stop: Stop::Never,
    };
    Stage { first, last, calibrate: false, cut, recipe }
}

struct Noise;

impl Source for Noise {
    fn len(&self) -> u32 {
        16
    }

    fn shape(&self) -> Shape {
        NET.input.shape
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
        for ((x, label), &index) in x.chunks_exact_mut(128).zip(labels).zip(indices) {
            let mut rng = Rng::new(3, Purpose::Sample, 0, index);
            *label = (index % 2) as u16;
            x.fill_with(|| rng.normal() + f32::from(*label));
        }
        Ok(())
    }
}

const FEED: Feed = Feed { bytes: false, ..Feed::BYTES };

/// The weights after a stage, and its mean loss.
fn trained(stage: Stage<'_>) -> (Vec<f32>, f32) {
    let mut weights = vec![0.0; NET.params(NET.layers.len()).unwrap()];
    assert!(sepal_core::init::weights(&NET, 1, &mut weights));
    let plan = StagePlan::reference(&NET, &stage, FEED).unwrap();
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut backend = Reference::new(&mut memory);
    assert_eq!(StagePlan::new(&backend, &NET, &stage, FEED), Ok(plan));
    let before = weights.clone();
    let model = Model { net: NET, weights: Weights::Flat(&before) };
    let mut session = Session::new(NET, stage, plan, 1, 0);
    session.load(&mut backend, &model).unwrap();
    let outcome = session.run(&mut backend, &model, &mut Noise, |_| ()).unwrap();
    session.store(&mut backend, &mut weights).unwrap();
    assert!(weights.iter().all(|w| w.is_finite()) && outcome.updates == 6);
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES - 1];
    let mut small = Reference::new(&mut memory);
    assert!(session.load(&mut small, &model).is_err(), "one word less is too little");
    (weights, outcome.loss)
}

fn of(weights: &[f32], first: usize, last: usize) -> &[f32] {
    &weights[NET.params(first).unwrap()..NET.params(last).unwrap()]
}

#[test]
fn one_block_is_a_whole_stage() {
    let cut = Cut::EveryBlock(&[UNIT]);
    assert_eq!(trained(stage(0, 4, cut, &[])), trained(stage(0, 4, Cut::Whole, UNIT)));
}

/// Nothing reaches a block from those behind it, whatever they are trained for.
#[test]
fn errors_stop_at_each_block() {
    let (all, loss) = trained(stage(0, 9, Cut::EveryBlock(&[UNIT]), &[]));
    let (two, of_two) = trained(stage(0, 8, Cut::EveryBlock(&[UNIT]), &[]));
    let (one, of_one) = trained(stage(0, 4, Cut::Whole, UNIT));
    assert_eq!((of(&all, 0, 8), of(&all, 0, 4)), (of(&two, 0, 8), of(&one, 0, 4)));
    assert!(loss > of_two && of_two > of_one, "the losses of all blocks are added up");
    let (whole, _) = trained(stage(0, 9, Cut::Whole, UNIT));
    assert_ne!(of(&whole, 0, 4), of(&all, 0, 4));
    // Those behind the stage stay.
    let mut drawn = vec![0.0; all.len()];
    sepal_core::init::weights(&NET, 1, &mut drawn);
    assert_eq!(of(&all, 9, 11), of(&drawn, 9, 11));
    for block in [0..4, 4..8, 8..9] {
        assert_ne!(of(&all, block.start, block.end), of(&drawn, block.start, block.end));
    }
}

/// What a block gives is the next one's input, though its own head works in place.
#[test]
fn heads_leave_alone_what_the_next_block_reads() {
    let with = |heads| trained(stage(0, 9, Cut::EveryBlock(heads), &[]));
    assert_eq!(with(&[UNIT]), with(&[MOVED]));
    // A head for each, and the recipe's own.
    let own = trained(stage(0, 9, Cut::EveryBlock(&[]), UNIT));
    assert_eq!(with(&[MOVED, MOVED, UNIT]), own);
}

#[test]
fn heads_of_blocks_learn_too() {
    let mut stage = stage(0, 8, Cut::EveryBlock(&[DENSE]), &[]);
    stage.recipe.objective = Objective::CrossEntropy { smoothing: 0.0 };
    let (both, _) = trained(stage);
    let (first, _) = trained(Stage { last: 4, ..stage });
    assert_eq!(of(&both, 0, 4), of(&first, 0, 4));
    // A head that is wide enough to fall into the place of another is none the less its own.
    stage.cut = Cut::EveryBlock(&[DENSE, UNIT]);
    assert_ne!(of(&trained(stage).0, 4, 8), of(&both, 4, 8));
}

#[test]
fn stages_that_cut_blocks_in_two_are_refused() {
    for (first, last) in [(0, 5), (1, 8), (2, 4), (0, 3)] {
        let stage = stage(first, last, Cut::EveryBlock(&[UNIT]), &[]);
        let plan = StagePlan::reference(&NET, &stage, FEED);
        let (first, last) = (first.into(), last.into());
        assert_eq!(plan, Err(PlanError::Range { first, last, layers: 11 }), "{first}..{last}");
    }
}

#[test]
fn statistics_of_blocks_that_move_are_refused() {
    let mut stage = stage(0, 8, Cut::EveryBlock(&[UNIT]), &[]);
    stage.recipe.objective = Objective::Statistics;
    let plan = StagePlan::reference(&NET, &stage, FEED).unwrap();
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut backend = Reference::new(&mut memory);
    assert_eq!(backend.bytes(), plan.bytes());
    let weights = vec![0.5; NET.params(11).unwrap()];
    let model = Model { net: NET, weights: Weights::Flat(&weights) };
    let mut session = Session::new(NET, stage, plan, 0, 0);
    session.load(&mut backend, &model).unwrap();
    assert!(session.step(&mut backend, &model, &mut Noise).is_err());
}
