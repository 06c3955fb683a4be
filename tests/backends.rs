//! One trained model on both backends, from memory and from its file.
#![cfg(all(feature = "cpu", feature = "models"))]

use sepal::arena::Layout;
use sepal::backend::{self, Device};
use sepal::cpu::OnCpu;
use sepal::error::Error;
use sepal::format::Meta;
use sepal::layer::{Conv2d, L2Normalise, Layer};
use sepal::models::cache::{Budget, Cache, Spill};
use sepal::models::data::{self, Augment, ClassBalanced, Dataset, Samples};
use sepal::models::features::{Features, allocate};
use sepal::models::file::{self, Loaded};
use sepal::models::fit::{Event, Fit, Watch, Wish};
use sepal::models::vgg::VGG16;
use sepal::models::{lenet::LENET, recipe};
use sepal::net::{Input, Model, Net, Normalisation};
use sepal::plan::PlanError;
use sepal::reference::OnReference;
use sepal::shape::Shape;
use sepal::source::{Batch, Draw, Source, SourceError};
use sepal::stage::{Cut, Outcome, Recipe, Stage};
use sepal::strategy::{ForwardSi, Strategy};
use sepal::train::{Feed, Session, StagePlan};

/// How far logits of one model may lie apart on two backends, for logits of a few units.
const LOGITS: f32 = 1e-3;

fn logits(device: &impl Device, model: &Model<'_>, test: &Dataset) -> Features {
    Features::new(device, model, &mut &*test, LENET.layers.len()).unwrap()
}

#[test]
fn backends_agree_and_a_file_changes_no_bit() {
    let train = data::bundled().train.head(512).unwrap();
    let test = data::bundled().test.head(200).unwrap();
    let mut fit = Fit::new(LENET, 3).unwrap();
    fit.run(&OnCpu::new(), &recipe::forward_si(1, 6), &mut &train, &Budget::default(), &mut ())
        .unwrap();

    let on_reference = logits(&OnReference, &fit.model(), &test);
    let on_cpu = logits(&OnCpu::new(), &fit.model(), &test);
    let apart = on_reference.data().iter().zip(on_cpu.data()).map(|(a, b)| (a - b).abs());
    let apart = apart.fold(0.0, f32::max);
    assert!(apart <= LOGITS, "logits lie {apart} apart");
    assert_eq!(on_reference.largest(), on_cpu.largest());
    // A model that learnt nothing agrees with itself too.
    assert!(on_reference.accuracy() > 0.5, "{}", on_reference.accuracy());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.sepal");
    file::save(&path, &fit.model(), &Meta::NONE).unwrap();
    let loaded = Loaded::open(&path).unwrap();
    assert_eq!(logits(&OnReference, &loaded.model(), &test).data(), on_reference.data());
    assert_eq!(logits(&OnCpu::new(), &loaded.model(), &test).data(), on_cpu.data());
}

/// Kept in memory, in a file or computed for every batch: f32 is the same.
#[test]
fn where_features_are_kept_changes_no_bit() {
    let train = data::bundled().train.head(200).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let none = Budget { memory: 0, narrow: false, ..Budget::default() };
    let spill = Some(Spill { folder: folder.path().to_owned(), limit: u64::MAX });
    let weights = |budget: &Budget| {
        let mut fit = Fit::new(LENET, 3).unwrap();
        let strategy = recipe::forward_si(1, 1);
        fit.run(&OnCpu::new(), &strategy, &mut &train, budget, &mut ()).unwrap();
        fit.snapshot().weights
    };
    let kept = weights(&Budget { memory: u64::MAX, ..none.clone() });
    assert_eq!(weights(&none), kept);
    assert_eq!(weights(&Budget { spill, ..none }), kept);
}

/// On the CPU in blocks of eight channels, which another backend does not take for its own.
#[test]
fn features_are_kept_as_they_lie() {
    let mut train = data::bundled().train.head(32).unwrap();
    let (fit, budget) = (Fit::new(LENET, 3).unwrap(), Budget::bytes(1 << 20));
    let (cpu, model) = (OnCpu::new(), fit.model());
    let cache = Cache::fill(&cpu, &model, &mut train, 4, &budget, 0).unwrap();
    let mut cache = cache.expect("there is room");
    assert_eq!((Source::layout(&cache), cache.shape()), (Layout::Nchw8c, Shape::new(1, 6, 14, 14)));
    assert_eq!(cache.choice().bytes, 32 * 4 * 8 * 14 * 14);
    let plain = Features::new(&cpu, &model, &mut train, 4).unwrap();
    assert_eq!(Features::new(&cpu, &model, &mut cache, 4).unwrap(), plain);
    let behind = Features::new(&cpu, &model, &mut cache, 8).unwrap();
    assert_eq!(behind, Features::new(&cpu, &model, &mut train, 8).unwrap());
    // Each sample's 6 channels and the two that fill the block, pixel by pixel.
    let (mut rows, mut labels) = (vec![f32::NAN; 2 * 8 * 196], [0; 2]);
    cache.read(&[3, 31], None, Batch::F32(&mut rows), &mut labels).unwrap();
    assert_eq!(labels, [train.labels()[3], train.labels()[31]]);
    for (at, number) in rows.iter().enumerate() {
        let (sample, pixel, channel) = ([3, 31][at / 1568], at % 1568 / 8, at % 8);
        let expected = match channel {
            0..6 => plain.data()[sample * 1176 + channel * 196 + pixel],
            _ => 0.0,
        };
        assert_eq!(*number, expected, "{at}");
    }
    let strategy = recipe::forward_si(1, 1);
    let stage = strategy.next(&LENET, &[Outcome::default()]).unwrap();
    let stage = Stage { recipe: Recipe { batch: 16, ..stage.recipe }, ..stage };
    let plan = StagePlan::reference(&LENET, &stage, Feed::of(&cache)).unwrap();
    let mut memory = allocate(plan.bytes()).unwrap();
    let mut reference = OnReference.open(&mut memory).unwrap();
    let mut session = Session::new(LENET, stage, plan, 0, 1);
    session.load(&mut reference, &model).unwrap();
    let step = session.step(&mut reference, &model, &mut cache);
    assert_eq!(step, Err(Error::Unsupported("copying to another layout")));
}

/// A source that hands on what is kept hands on how it lies, or refuses to change it.
#[test]
fn sources_around_a_cache_know_how_it_lies() {
    let mut train = data::bundled().train.head(32).unwrap();
    let (fit, budget) = (Fit::new(LENET, 3).unwrap(), Budget::bytes(1 << 20));
    let (cpu, model) = (OnCpu::new(), fit.model());
    // 6 channels, and 16: a block and its padding, and whole blocks.
    for depth in [4, 7] {
        let mut kept =
            || Cache::fill(&cpu, &model, &mut train, depth, &budget, 0).unwrap().unwrap();
        let expected = Features::new(&cpu, &model, &mut kept(), 8).unwrap();
        let mut balanced = ClassBalanced::new(kept()).unwrap();
        assert_eq!(Source::layout(&balanced), Layout::Nchw8c);
        assert_eq!(Features::new(&cpu, &model, &mut balanced, 8).unwrap(), expected);
        let mut augmented = Augment { flip: true, ..Augment::new(kept()) };
        let refused = SourceError::Layout { layout: Layout::Nchw8c };
        let mut row = vec![0.0; 8 * 196];
        let draw = Some(Draw::default());
        let read = augmented.read(&[0], draw, Batch::F32(&mut row), &mut [0]);
        assert_eq!(read, Err(refused));
    }
}

/// A net whose second layer sums in the order that its input lies in.
const ORDERED: Net<'static> = Net {
    input: Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE },
    layers: &[
        Layer::Conv2d(Conv2d::new(12, 3)),
        Layer::L2Normalise(L2Normalise),
        Layer::Conv2d(Conv2d::new(8, 3)),
    ],
    blocks: &[1, 2, 3],
    features: 3,
};

#[test]
fn how_much_of_a_prefix_is_kept_changes_no_bit() {
    let mut train = data::bundled().train.head(32).unwrap();
    let fit = Fit::new(ORDERED, 3).unwrap();
    let budget = Budget { narrow: false, ..Budget::bytes(1 << 26) };
    let (cpu, model) = (OnCpu::new(), fit.model());
    let recipe = Recipe { batch: 16, ..recipe::block(1) };
    let stage = Stage { first: 2, last: 3, calibrate: false, cut: Cut::Whole, recipe };
    fn trained_on<S: Source>(
        cpu: &OnCpu,
        model: &Model<'_>,
        stage: Stage<'_>,
        source: &mut S,
    ) -> Vec<f32> {
        let plan = StagePlan::new(&cpu.open(&mut []).unwrap(), &ORDERED, &stage, Feed::of(source))
            .unwrap();
        let mut memory = allocate(plan.bytes()).unwrap();
        let mut backend = cpu.open(&mut memory).unwrap();
        let mut session = Session::new(ORDERED, stage, plan, 0, 1);
        session.load(&mut backend, model).unwrap();
        session.step(&mut backend, model, source).unwrap();
        session.step(&mut backend, model, source).unwrap();
        let mut weights = vec![0.0; ORDERED.params(3).unwrap()];
        session.store(&mut backend, &mut weights).unwrap();
        weights
    }
    let none = trained_on(&cpu, &model, stage, &mut train);
    for depth in [1, 2] {
        let kept = Cache::fill(&cpu, &model, &mut train, depth, &budget, 0).unwrap();
        let weights = trained_on(&cpu, &model, stage, &mut kept.expect("there is room"));
        assert!(weights == none, "kept in front of layer {depth}");
    }
}

#[test]
fn weights_past_any_tensor_are_refused_when_planned() {
    let layers = [Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(0xffff_fff0, 3) })];
    let shape = Shape::new(1, 1 << 31, 1, 1);
    let net = Net { input: Input { shape, ..ORDERED.input }, layers: &layers, ..ORDERED };
    let layout = backend::layout(&OnCpu::new().open(&mut []).unwrap(), &net, 1);
    assert_eq!(layout, Err(PlanError::Shape { layer: 0, input: shape }));
}

/// Notes the first layer of each stage, and the depth of what is kept in front of it.
#[derive(Debug, Default)]
struct Depths(Vec<(usize, Option<usize>)>);

impl Watch for Depths {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        if let Event::Stage { stage, prefix, .. } = event {
            self.0.push((stage.first.into(), prefix.map(|prefix| prefix.depth)));
        }
        Wish::Go
    }
}

#[test]
fn vgg16_is_trained_block_by_block() {
    let pixels = (0..8 * 3 * 1024).map(|i: u32| (i / 1024 * 31 + i % 13 * 7) as u8);
    let labels = (0..8).map(|i| i % 2).collect();
    let names = vec!["even".to_owned(), "odd".to_owned()];
    let set = Dataset::new(Shape::new(1, 3, 32, 32), Samples::U8(pixels.collect()), labels, names);
    let batch = 8;
    let si = recipe::forward_si(1, 1);
    let (block, classifier) = (Recipe { batch, ..si.block }, Recipe { batch, ..si.classifier });
    let strategy = ForwardSi { block, classifier, ..si };
    let mut set = set.unwrap();
    let (mut fit, mut depths) = (Fit::new(VGG16, 0).unwrap(), Depths::default());
    let drawn = fit.snapshot().weights;
    fit.run(&OnCpu::new(), &strategy, &mut set, &Budget::default(), &mut depths).unwrap();
    let firsts = (0..14).filter_map(|block| VGG16.block(block)).map(|(first, _)| first);
    let expected: Vec<_> = firsts.map(|first| (first, (first > 0).then_some(first))).collect();
    assert_eq!(depths.0, expected);
    // Every layer that has weights has moved.
    let weights = fit.snapshot().weights;
    // Room for what the second block gives, not for what the third does: it runs for every batch,
    // on what is kept.
    let room = Budget { narrow: false, ..Budget::bytes(8 * 4 * 64 * 16 * 16) };
    let (mut fit, mut depths) = (Fit::new(VGG16, 0).unwrap(), Depths::default());
    fit.run(&OnCpu::new(), &strategy, &mut set, &room, &mut depths).unwrap();
    let [_, second, third, fourth, ..] = depths.0[..] else { panic!("{depths:?}") };
    assert_eq!([second.1, third.1, fourth.1], [Some(0), Some(third.0), Some(third.0)]);
    assert_eq!(fit.snapshot().weights, weights);
    for (layer, _) in VGG16.layers.iter().enumerate() {
        let place = VGG16.params(layer).unwrap()..VGG16.params(layer + 1).unwrap();
        assert!(place.is_empty() || weights[place.clone()] != drawn[place], "{layer}");
    }
}
