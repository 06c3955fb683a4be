//! Every configuration goes through JSON and comes back: what a program is told can be a file.
//!
//! What borrows layers (recipes, stages, strategies, nets) is written only, as a digest or a log needs it;
//! [`Learning`] is the file that makes them, and a model file holds a net.

use std::fmt::Debug;
use std::num::NonZero;

use sepal::arena::{Dtype, Layout};
use sepal::cpu::Precision;
use sepal::format::Storage;
use sepal::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, ChannelStd, Conv2d, Dense, Dropout, Embedding,
    Flatten, GlobalAvgPool, KMaxPool, L2Normalise, Layer, MaxPool, Project, Quantise, SpaceToDepth,
    Standardise, Window,
};
use sepal::micro::Embeddings;
use sepal::models::architecture::Architecture;
use sepal::models::cache::{self, Budget, Keep, Spill};
use sepal::models::data::{Color, Images, Options, cifar, csv};
use sepal::models::learning::{Learning, Optimiser, Readout, Way};
use sepal::models::{export, recipe};
use sepal::net::{Input, Normalisation};
use sepal::optim::Rule;
use sepal::schedule::Schedule;
use sepal::shape::Shape;
use sepal::stage::{Loss, Objective, Stop};
use sepal::strategy::{Classifier, Window as Together};
use sepal::train::Feed;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

/// Goes to JSON and back; other values have other texts.
#[track_caller]
fn come_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    values: impl IntoIterator<Item = T>,
) {
    let mut texts = Vec::new();
    for value in values {
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<T>(&text).unwrap(), value, "{text}");
        assert!(!texts.contains(&text), "{text} twice");
        texts.push(text);
    }
}

#[test]
fn layers_and_inputs() {
    let window = Window { kernel: (1, 2), stride: (3, 4), pad: (5, 6) };
    come_back([window]);
    come_back([
        Layer::Conv2d(Conv2d { groups: 7, pad: (1, 2), bias: false, ..Conv2d::new(300, 5) }),
        Layer::BatchNorm(BatchNorm { affine: true, eps: 0.1, momentum: 0.3 }),
        Layer::Activation(Activation::Relu),
        Layer::Activation(Activation::Relu6),
        Layer::Activation(Activation::LeakyRelu { slope: 0.1 }),
        Layer::Activation(Activation::Tanh),
        Layer::MaxPool(MaxPool { window }),
        Layer::AvgPool(AvgPool { window }),
        Layer::AvgPoolTo(AvgPoolTo { h: 1, w: 2 }),
        Layer::GlobalAvgPool(GlobalAvgPool),
        Layer::KMaxPool(KMaxPool { k: 8 }),
        Layer::Dense(Dense { units: 70_000, bias: false }),
        Layer::Dropout(Dropout { rate: 0.7 }),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::L2Normalise(L2Normalise),
        Layer::ChannelStd(ChannelStd),
        Layer::Project(Project { dim: 3, seed: u64::MAX }),
        Layer::Embedding(Embedding { tokens: 70_000, dim: 16 }),
        Layer::SpaceToDepth(SpaceToDepth { factor: 2 }),
        Layer::Quantise(Quantise { scale: 0.1, zero: 3 }),
    ]);
    let normalisation = Normalisation { mean: [0.1; 4], std: [0.1, 0.2, 0.3, 1e-9] };
    come_back([Input { shape: Shape::new(1, 2, 3, 4), normalisation }]);
    come_back([Dtype::F32, Dtype::F16, Dtype::I8, Dtype::U8, Dtype::Pair]);
    come_back([Layout::Nchw, Layout::Nchw8c]);
    come_back([Feed { depth: 3, narrow: true, ..Feed::BYTES }, Feed::BYTES]);
}

#[test]
fn how_stages_learn() {
    let losses = [
        Loss::Triplet,
        Loss::Margin { margin: 0.2 },
        Loss::SoftNearest { temperature: 0.1 },
        Loss::SoftCentre { temperature: 0.1 },
    ];
    come_back(losses);
    come_back(losses.map(Objective::Separation).into_iter().chain(losses.map(Objective::Views)));
    come_back([Objective::Statistics, Objective::CrossEntropy { smoothing: 0.1 }]);
    come_back([Objective::PredSim { beta: 0.5, similar: 64 }]);
    come_back([Objective::Goodness { threshold: 1.0, classes: 10 }]);
    come_back([Stop::Never, Stop::SiPlateau { patience: 3, min_delta: 0.01 }]);
    come_back([Rule::sgd(), Rule::adam(), Rule::adamw(0.01)]);
    come_back([
        Schedule::Constant,
        Schedule::Step { every: 100, factor: 0.1 },
        Schedule::Cosine { warmup: 5 },
    ]);
    come_back([Classifier::Whole, Classifier::LayerWise]);
    come_back([Together::ONE, Together::sliding(3), Together::groups(3)]);
    come_back([Embeddings::F32, Embeddings::F16]);
}

#[test]
fn where_and_how_exactly_it_runs() {
    come_back([Precision::Exact, Precision::Fast]);
    come_back([cache::Precision::F32, cache::Precision::F16]);
    let spill = Some(Spill { folder: "a/b".into(), limit: u64::MAX });
    let copies = Keep::Copies(NonZero::new(3).unwrap());
    come_back([
        Budget { spill, ..Budget::bytes(1 << 40) },
        Budget { keep: Keep::Nothing, narrow: false, ..Budget::bytes(0) },
        Budget { keep: copies, ..Budget::bytes(0) },
    ]);
    come_back([Storage::Kept]);
    #[cfg(feature = "f16")]
    come_back([Storage::F16, Storage::Kept]);
}

#[test]
fn how_data_are_read() {
    let images = Images { size: Some((32, 16)), color: Color::Gray };
    come_back([images, Images::default()]);
    come_back([cifar::Label::Fine, cifar::Label::Coarse]);
    // It borrows the person's name from the text.
    let options = Options { cifar100: cifar::Label::Coarse, images, left_out: Some("ann") };
    let text = serde_json::to_string(&options).unwrap();
    assert_eq!(serde_json::from_str::<Options<'_>>(&text).unwrap(), options);
    assert_eq!(serde_json::from_str::<Options<'_>>("{}").unwrap(), Options::default());
    let named = csv::Column::Name("age".to_owned());
    come_back([csv::Column::Last, csv::Column::Index(3), named.clone()]);
    come_back([csv::Header::Detect, csv::Header::Yes, csv::Header::No]);
    come_back([
        csv::Options::default(),
        csv::Options {
            header: csv::Header::Yes,
            column: named,
            target: csv::Target::Class(vec!["a".to_owned()]),
            delimiter: b';',
            shape: Some(Shape::new(1, 1, 8, 8)),
        },
        csv::Options { target: csv::Target::Real, ..csv::Options::default() },
    ]);
    #[cfg(feature = "safetensors")]
    {
        use sepal::models::safetensors::Architecture as Foreign;
        come_back(Foreign::NAMES.map(|name| Foreign::named(name).unwrap()));
        use sepal::models::imported::Ending;
        come_back([Ending::Logits, Ending::Softmax, Ending::LogSoftmax]);
    }
}

#[test]
fn a_recipe_is_a_file() {
    let learning = Learning {
        architecture: Architecture::Simcnn2,
        width: 25,
        way: Way::SelfSupervised,
        readout: Readout::Conv,
        loss: Loss::Margin { margin: 0.3 },
        window: Together::sliding(2),
        auxiliary: 3,
        fine_tune: 4,
        epochs: 6,
        head_epochs: 7,
        rate: 0.1,
        head_rate: 0.2,
        warmup: 8,
        optimiser: Optimiser::Sgd,
        weight_decay: 0.3,
        batch: 64,
        micro_batches: 2,
        stop: Stop::SiPlateau { patience: 1, min_delta: 0.01 },
    };
    come_back([learning, Learning::default()]);
    // Names are those of the command line.
    let value = serde_json::to_value(learning).unwrap();
    let names = ["architecture", "way", "readout", "optimiser"].map(|name| &value[name]);
    assert_eq!(
        names,
        [&json!("simcnn2"), &json!("self-supervised"), &json!("conv"), &json!("sgd")]
    );
    let read = |text: &str| serde_json::from_str::<Learning>(text);
    assert_eq!(read("{}").unwrap(), Learning::default());
    for (text, word) in [
        (r#"{"rates": 1}"#, "`rates`"),
        (r#"{"way": "sideways"}"#, "`sideways`"),
        (r#"{"epochs": 70000}"#, "70000"),
        (r#"{"epochs": -1}"#, "-1"),
    ] {
        assert!(read(text).unwrap_err().to_string().contains(word), "{text}");
    }
}

/// These borrow layers: their text says every number.
#[test]
fn what_borrows_is_written() {
    let block = serde_json::to_value(recipe::block(5)).unwrap();
    assert_eq!((&block["epochs"], &block["head"]), (&json!(5), &json!([{"L2Normalise": null}])));
    let forward = serde_json::to_value(recipe::forward_si(5, 6)).unwrap();
    assert_eq!((&forward["block"], &forward["classifier"]["epochs"]), (&block, &json!(6)));
    let net = serde_json::to_value(sepal::models::lenet::LENET).unwrap();
    assert_eq!(net["layers"].as_array().map(Vec::len), Some(15));
    let settings = export::Settings { floats: &[1], quantile: 0.5 };
    assert_eq!(serde_json::to_value(settings).unwrap(), json!({"floats": [1], "quantile": 0.5}));
}
