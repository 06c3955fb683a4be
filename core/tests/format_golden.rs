//! The golden file of format version 1: it still reads, and the same model still gives its bytes.
//!
//! `SEPAL_BLESS=1 cargo test -p sepal-core --features format --test format_golden` writes the
//! files beside it anew. The file itself is kept for ever; only a file of a new version is added.
#![cfg(feature = "format")]

#[path = "../../tests/no-std/src/case.rs"]
mod case;

use case::{CLASSES, STEPS, WORDS};
use sepal_core::arena::Word;
use sepal_core::format::{File, Meta, Provenance, Storage, write};
use sepal_core::include_model;
use sepal_core::layer::{
    BatchNorm, Conv2d, Dense, Flatten, Layer, MaxPool, RELU, Role, Standardise,
};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Source};
use std::path::PathBuf;

const MODEL: &[u8] = include_model!("../../tests/golden/format-v1.sepal");

const NET: Net<'static> = Net {
    input: Input {
        shape: Shape::new(1, 1, 28, 28),
        normalisation: Normalisation::scalar(0.1307, 0.3081),
    },
    layers: &[
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(4, 5) }),
        Layer::BatchNorm(BatchNorm { affine: true, eps: 1e-5, momentum: 0.1 }),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(8, 5) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::Dense(Dense { units: CLASSES as u32, bias: true }),
    ],
    blocks: &[4, 8, 11],
    features: 2,
};

const META: Meta<'static> = Meta {
    classes: &["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "neuf"],
    provenance: Some(Provenance {
        version: "0.1.0",
        recipe: "seeded, not trained",
        seed: 1,
        data: 0,
    }),
    separation: &[(0, 0.5), (1, 0.75)],
    notes: &["The golden file of version 1."],
    storage: Storage::Kept,
};

/// Seeded weights, with statistics that are no identity.
fn weights() -> Vec<f32> {
    let mut weights = vec![0.0; NET.params(NET.layers.len()).unwrap()];
    assert!(sepal_core::init::weights(&NET, 1, &mut weights));
    let mut rest = &mut weights[..];
    for (index, layer) in NET.layers.iter().enumerate() {
        let tensors = layer.tensors(NET.shape(index).unwrap()).unwrap();
        for role in Role::ALL {
            let (own, others) = rest.split_at_mut(tensors.len(role) as usize);
            let measured = matches!(role, Role::Mean | Role::Variance);
            if measured || matches!(layer, Layer::BatchNorm(_)) {
                let mut rng = Rng::new(1, Purpose::Weights, 9, index as u32 * 4 + role as u32);
                own.iter_mut().for_each(|w| *w += 0.25 * rng.uniform());
            }
            rest = others;
        }
    }
    weights
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// The stored bytes, or those just made where the files are written anew.
fn compare(name: &str, made: &[u8]) {
    if std::env::var_os("SEPAL_BLESS").is_some() {
        std::fs::write(golden(name), made).unwrap();
    }
    let stored = std::fs::read(golden(name)).unwrap();
    assert!(stored == made, "{name} is no longer what this version makes");
}

fn sample() -> Vec<u8> {
    let mut sample = vec![0; 28 * 28];
    case::Stripes.read(&[13], None, Batch::U8(&mut sample), &mut [0]).unwrap();
    sample
}

fn model_bytes() -> Vec<u8> {
    let weights = weights();
    let mut bytes = vec![];
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    let model = Model { net: NET, weights: Weights::Flat(&weights) };
    write(&model, &META, &mut sink).unwrap();
    bytes
}

#[test]
fn the_same_model_gives_the_golden_bytes() {
    let bytes = model_bytes();
    assert!(bytes.len() < 30_000);
    compare("format-v1.sepal", &bytes);
    compare("format-v1.sample", &sample());
}

#[test]
fn the_golden_file_reads() {
    let file = File::open(MODEL).unwrap();
    let mut layers = [RELU; 11];
    let (mut blocks, mut tensors) = ([0; 3], [File::NO_TENSOR; 12]);
    let model = file.decode(&mut layers, &mut blocks, &mut tensors).unwrap();
    assert_eq!(model.net, NET);
    assert!(!model.weights.is_narrow(), "weights are used in place");
    let names: Vec<&str> = file.class_names().collect();
    assert_eq!(names, META.classes);
    assert_eq!(file.class_name(9), Some("neuf"));
    assert_eq!(file.provenance(), META.provenance);
    assert_eq!(file.separation().collect::<Vec<_>>(), META.separation);
    assert_eq!(file.notes().collect::<Vec<_>>(), META.notes);
    let flat = weights();
    let mut rest = &flat[..];
    for index in 0..NET.layers.len() {
        for stored in model.weights.layer(&model.net, index) {
            let (own, others) = rest.split_at(stored.len());
            assert_eq!(stored.as_f32().unwrap(), own);
            rest = others;
        }
    }
    assert!(rest.is_empty());
}

/// What the bare program compares with.
#[test]
fn inference_and_training_give_the_golden_bits() {
    let file = File::open(MODEL).unwrap();
    let mut layers = [RELU; 11];
    let (mut blocks, mut tensors) = ([0; 3], [File::NO_TENSOR; 12]);
    let model = file.decode(&mut layers, &mut blocks, &mut tensors).unwrap();
    let mut memory = vec![Word::NAN; WORDS];
    let logits = case::infer(&mut memory, &model, &sample()).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite() && *logit != 0.0), "{logits:?}");
    let logits: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    compare("format-v1.logits", &logits);
    memory.fill(Word::NAN);
    let trained = case::train(&mut memory, &model, &case::STAGE).unwrap();
    assert_ne!(trained[0], trained[STEPS - 1], "the loss moves");
    let trained: Vec<u8> = trained.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    compare("format-v1.steps", &trained);
}
