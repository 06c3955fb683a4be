//! One trained model on both backends, from memory and from its file.
#![cfg(all(feature = "cpu", feature = "models"))]

use sepal::backend::Device;
use sepal::cpu::OnCpu;
use sepal::format::Meta;
use sepal::models::cache::{Budget, Spill};
use sepal::models::data::{self, Dataset};
use sepal::models::features::Features;
use sepal::models::file::{self, Loaded};
use sepal::models::fit::Fit;
use sepal::models::{lenet::LENET, recipe};
use sepal::net::Model;
use sepal::reference::OnReference;

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
