//! Whole stages of training, and inference, against the reference.

mod common;

use common::*;
use ndarray::{Array, ArrayView4};
use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{Backend, Device, Host, HostMut};
use sepal_core::layer::*;
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::optim::Rule;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Session, StagePlan, Step};
use sepal_cpu::{Cpu, OnCpu, views, words};

/// Losses of the first steps of a run, where the order of sums differs from the start. Adam
/// divides by the gradient's size, which carries differences of the small ones.
const STEPS: Tolerance = Tolerance { relative: 2e-3 };

const NET: Net<'static> = Net {
    input: Input {
        shape: Shape::new(1, 1, 12, 12),
        normalisation: Normalisation::scalar(0.3, 0.4),
    },
    layers: &[
        Layer::Conv2d(Conv2d { pad: (2, 2), bias: false, ..Conv2d::new(6, 5) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(8, 3) }),
        Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() }),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::Dense(Dense::new(16)),
        RELU,
        Layer::Dense(Dense::new(3)),
    ],
    blocks: &[4, 8, 13],
    features: 2,
};

/// The same layers in blocks that end before their pools.
const BEFORE_POOLS: Net<'static> = Net { blocks: &[3, 7, 13], ..NET };

const HEAD: &[Layer] = &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];

const fn stage(
    first: u16,
    last: u16,
    head: &'static [Layer],
    objective: Objective,
) -> Stage<'static> {
    let recipe = Recipe {
        head,
        objective,
        epochs: 1,
        batch: 40,
        micro_batches: 1,
        rule: Rule::adam(),
        rate: 0.01,
        schedule: Schedule::Cosine { warmup: 0 },
        stop: Stop::Never,
    };
    Stage { first, last, calibrate: true, cut: Cut::Whole, recipe }
}

/// Blocks that each learn for themselves, behind the same head.
const fn every_block(last: u16, head: &'static [Layer], temperature: f32) -> Stage<'static> {
    let objective = Objective::Separation(Loss::SoftNearest { temperature });
    Stage { cut: Cut::EveryBlock(&[]), ..stage(0, last, head, objective) }
}

/// Two views of each sample.
const fn views_of(first: u16, last: u16) -> Stage<'static> {
    let objective = Objective::Views(Loss::SoftNearest { temperature: 0.5 });
    let stage = stage(first, last, HEAD, objective);
    Stage { recipe: Recipe { batch: 80, ..stage.recipe }, ..stage }
}

/// Each sample with its label written into it, and with another.
const fn goodness(first: u16, last: u16) -> Stage<'static> {
    let objective = Objective::Goodness { threshold: 0.5, classes: 3 };
    let stage = stage(first, last, &[], objective);
    Stage { recipe: Recipe { batch: 80, ..stage.recipe }, ..stage }
}

const STAGES: [(Net<'static>, Stage<'static>); 10] = [
    (NET, stage(0, 4, HEAD, Objective::Separation(Loss::Margin { margin: 0.2 }))),
    (NET, stage(4, 8, HEAD, Objective::Separation(Loss::SoftNearest { temperature: 0.1 }))),
    (NET, stage(4, 8, HEAD, Objective::Separation(Loss::SoftCentre { temperature: 0.1 }))),
    (NET, stage(8, 13, &[], Objective::CrossEntropy { smoothing: 0.0 })),
    (NET, stage(0, 13, &[], Objective::CrossEntropy { smoothing: 0.1 })),
    // The head works in place, in blocks of channels, on what the next block reads.
    (NET, every_block(8, &[Layer::L2Normalise(L2Normalise)], 0.1)),
    // The head begins with a pool that no activation of the body may run together with: the next
    // block reads what lies between.
    (
        BEFORE_POOLS,
        every_block(7, &[Layer::MaxPool(MaxPool::new(2)), Layer::L2Normalise(L2Normalise)], 0.1),
    ),
    (NET, views_of(4, 8)),
    (NET, goodness(0, 4)),
    (NET, goodness(4, 8)),
];

/// Noisy bars: across, down, both. The noise is another one in each pass.
struct Bars;

impl Source for Bars {
    fn len(&self) -> u32 {
        200
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
        draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let Batch::U8(x) = batch else { unreachable!("the source gives bytes") };
        let pass = draw.map_or(0, |draw| u64::from(draw.epoch) << 8);
        for ((image, label), &index) in x.chunks_exact_mut(144).zip(labels).zip(indices) {
            *label = (index % 3) as u16;
            let noise = values(pass + u64::from(index), 144);
            for (at, (pixel, noise)) in image.iter_mut().zip(noise).enumerate() {
                let (row, column) =
                    ((at / 12 + index as usize) % 4, (at % 12 + index as usize) % 4);
                let lit = (*label != 1 && row == 0) || (*label != 0 && column == 0);
                *pixel = (if lit { 160.0 } else { 40.0 } + 39.0 * noise) as u8;
            }
        }
        Ok(())
    }
}

/// One stage: its losses, and the weights after it.
fn train<B: Backend>(
    backend: &mut B,
    plan: StagePlan,
    (net, stage): (Net<'static>, Stage<'static>),
    weights: &mut [f32],
) -> Vec<f32> {
    let before = weights.to_vec();
    let model = Model { net, weights: Weights::Flat(&before) };
    let mut session = Session::new(net, stage, plan, 3, 0);
    session.load(backend, &model).unwrap();
    let mut losses = vec![];
    session
        .run(backend, &model, &mut Bars, |step| {
            if let Step::Trained { score, .. } = step {
                losses.push(score.value);
            }
        })
        .unwrap();
    session.store(backend, weights).unwrap();
    losses
}

const FEED: Feed = Feed { chunk: 17, ..Feed::BYTES };

fn on_cpu(stage: (Net<'static>, Stage<'static>), threads: usize, weights: &mut [f32]) -> Vec<f32> {
    let plan = StagePlan::new(&Cpu::new(&mut []), &stage.0, &stage.1, FEED).unwrap();
    let mut memory = nan(plan.bytes());
    train(
        &mut OnCpu::with_threads(threads).unwrap().open(&mut memory).unwrap(),
        plan,
        stage,
        weights,
    )
}

fn initial() -> Vec<f32> {
    let mut weights = vec![0.0; NET.params(NET.layers.len()).unwrap()];
    assert!(sepal_core::init::weights(&NET, 11, &mut weights));
    weights
}

#[test]
fn stages_follow_the_reference() {
    let mut expected = initial();
    for stage in STAGES {
        // Each stage starts from the reference's weights, so that differences do not add up.
        let mut got = expected.clone();
        let plan = StagePlan::new(&Reference::new(&mut []), &stage.0, &stage.1, FEED).unwrap();
        let mut memory = nan(plan.bytes());
        let losses = train(&mut Reference::new(&mut memory), plan, stage, &mut expected);
        assert_eq!(losses.len(), 5);
        close("losses", &on_cpu(stage, 2, &mut got), &losses, STEPS);
        close("weights", &got, &expected, Tolerance { relative: 0.02 });
    }
}

#[test]
fn threads_change_no_bit() {
    let run = |threads| {
        let mut weights = initial();
        let losses = STAGES.map(|stage| on_cpu(stage, threads, &mut weights));
        (losses, weights)
    };
    let one = run(1);
    for threads in 2..=4 {
        assert!(run(threads) == one, "{threads} threads");
    }
}

/// Raw samples as bytes, as numbers in place, and as numbers from elsewhere.
#[test]
fn samples_are_widened() {
    let norm = Normalisation { mean: [0.1, 0.2, 0.3, 0.4], std: [0.5, 0.6, 0.7, 0.8] };
    for shape in [Shape::new(1, 1, 1, 1), Shape::new(33, 3, 4, 5), Shape::new(9, 5, 2, 3)] {
        let (x, count) = (Slot::new(1 << 13, shape, Dtype::F32), len(shape));
        let numbers = values(2, count);
        let bytes: Vec<u8> = (0..count).map(|i| (i * 31) as u8).collect();
        fn run<B: Backend>(
            mut backend: B,
            raw: Slot,
            from: Host<'_>,
            norm: &Normalisation,
            x: Slot,
        ) -> Vec<f32> {
            backend.write(raw, from).unwrap();
            backend.widen(raw, norm, x).unwrap();
            let mut out = vec![0.0; len(x.shape)];
            backend.read(x, HostMut::F32(&mut out)).unwrap();
            out
        }
        let elsewhere = Slot { at: 0, ..x };
        for (raw, from) in [
            (Slot::new(0, shape, Dtype::U8), Host::U8(&bytes)),
            (x, Host::F32(&numbers)),
            (elsewhere, Host::F32(&numbers)),
        ] {
            let (mut one, mut other) = (nan(1 << 14), nan(1 << 14));
            let expected = run(Reference::new(&mut one), raw, from, &norm, x);
            assert_eq!(run(Cpu::new(&mut other), raw, from, &norm, x), expected);
        }
    }
}

/// Embeddings of any batch size, bytes or numbers, are the reference's.
#[test]
fn embeddings() {
    let weights = initial();
    let model = Model { net: NET, weights: Weights::Flat(&weights) };
    let mut labels = [0; 23];
    let mut bytes = Array::<u8, _>::zeros((23, 1, 12, 12));
    let indices: Vec<u32> = (0..23).collect();
    let raw = Batch::U8(bytes.as_slice_mut().unwrap());
    Bars.read(&indices, None, raw, &mut labels).unwrap();
    let numbers = bytes.mapv(|b| f32::from(b) / 255.0);
    fn run<B: Backend, T: views::Sample>(
        mut backend: B,
        model: &Model<'_>,
        batch: u32,
        samples: ArrayView4<'_, T>,
    ) -> Vec<f32> {
        let out = views::embed(&mut backend, model, (0, 8), batch, samples).unwrap();
        assert_eq!(out.dim(), (23, 32));
        out.into_raw_vec_and_offset().0
    }
    let mut memory = nan(1 << 20);
    let expected = run(Reference::new(&mut memory), &model, 1, bytes.view());
    for batch in [1, 7, 23, 40] {
        let cpu = Cpu::new(&mut []);
        let mut memory = words(views::embed_bytes::<u8>(&cpu, &model, (0, 8), batch).unwrap());
        let got = run(Cpu::new(&mut memory), &model, batch, bytes.view());
        close("bytes", &got, &expected, PRODUCTS);
        let mut memory = words(views::embed_bytes::<f32>(&cpu, &model, (0, 8), batch).unwrap());
        let got = run(Cpu::new(&mut memory), &model, batch, numbers.view());
        close("numbers", &got, &expected, PRODUCTS);
    }
    let short = numbers.slice(ndarray::s![.., .., ..11, ..]);
    let mut memory = words(1 << 20);
    assert!(views::embed(&mut Cpu::new(&mut memory), &model, (0, 8), 4, short).is_err());
    assert!(views::embed(&mut Cpu::new(&mut []), &model, (0, 8), 4, numbers.view()).is_err());
}

/// Rows that do not lie one after the other are copied, not misread.
#[test]
fn views_of_any_layout() {
    let features = Array::from_shape_vec((30, 6), values(1, 180)).unwrap();
    let labels: Vec<u16> = (0..30).map(|i| i % 3).collect();
    let turned = features.t().as_standard_layout().into_owned();
    let expected = views::nearest(features.view(), &labels).unwrap();
    assert_eq!(views::nearest(turned.t(), &labels).unwrap(), expected);
    let si = views::separation_index(turned.t(), &labels).unwrap();
    let correct = expected.iter().filter(|pair| pair.correct() == Some(true)).count();
    assert_eq!(si, Some(correct as f64 / 30.0));
    let near = views::top_k(turned.t(), features.view(), 2).unwrap();
    assert!(near.column(0).iter().enumerate().all(|(i, n)| n.index as usize == i));
    assert!(views::nearest(features.view(), &labels[1..]).is_err());
    assert!(views::top_k(features.view(), turned.view(), 2).is_err());
    let one = views::separation_index(features.slice(ndarray::s![..1, ..]), &labels[..1]);
    assert_eq!(one.unwrap(), None);
}
