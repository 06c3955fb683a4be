//! One trained model on both backends, from memory and from its file.
#![cfg(all(feature = "cpu", feature = "models"))]

use sepal::backend::Device;
use sepal::cpu::OnCpu;
use sepal::format::Meta;
use sepal::models::cache::{Budget, Spill};
use sepal::models::data::{self, Dataset, Samples};
use sepal::models::features::Features;
use sepal::models::file::{self, Loaded};
use sepal::models::fit::{Event, Fit, Watch, Wish};
use sepal::models::vgg::VGG16;
use sepal::models::{lenet::LENET, recipe};
use sepal::net::Model;
use sepal::reference::OnReference;
use sepal::shape::Shape;
use sepal::stage::Recipe;
use sepal::strategy::ForwardSi;

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

/// Notes the first layer of each stage, and the depth of what is kept in front of it.
#[derive(Default)]
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
    let ForwardSi { block, classifier, form } = recipe::forward_si(1, 1);
    let block = Recipe { batch, ..block };
    let strategy = ForwardSi { block, classifier: Recipe { batch, ..classifier }, form };
    let (mut fit, mut depths) = (Fit::new(VGG16, 0).unwrap(), Depths::default());
    let drawn = fit.snapshot().weights;
    fit.run(&OnCpu::new(), &strategy, &mut set.unwrap(), &Budget::default(), &mut depths).unwrap();
    let firsts = (0..14).filter_map(|block| VGG16.block(block)).map(|(first, _)| first);
    let expected: Vec<_> = firsts.map(|first| (first, (first > 0).then_some(first))).collect();
    assert_eq!(depths.0, expected);
    // Every layer that has weights has moved.
    let weights = fit.snapshot().weights;
    for (layer, _) in VGG16.layers.iter().enumerate() {
        let place = VGG16.params(layer).unwrap()..VGG16.params(layer + 1).unwrap();
        assert!(place.is_empty() || weights[place.clone()] != drawn[place], "{layer}");
    }
}
