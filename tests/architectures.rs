//! Every architecture, narrow and on small inputs: it learns block by block and as a whole, on both
//! backends, and is the same net when it comes back from a file.
#![cfg(all(feature = "cpu", feature = "models"))]

use sepal::backend::Device;
use sepal::cpu::OnCpu;
use sepal::format::Meta;
use sepal::layer::{Layer, Role};
use sepal::models::alexnet::{alexnet, alexnet_layers};
use sepal::models::autoencoder::{autoencoder, autoencoder_layers};
use sepal::models::cache::{Budget, Keep};
use sepal::models::data::{Dataset, Samples};
use sepal::models::dense::{dense, dense_layers};
use sepal::models::ds_cnn::{ds_cnn, ds_cnn_layers};
use sepal::models::features::Features;
use sepal::models::file::{self, Loaded};
use sepal::models::fit::Fit;
use sepal::models::gesture::{gesture, gesture_layers};
use sepal::models::learning::{Learning, Way};
use sepal::models::lenet::{lenet, lenet_layers, lenet5, lenet5_layers};
use sepal::models::mobilenet::{mobilenet, mobilenet_layers};
use sepal::models::recipe;
use sepal::models::resnet::{resnet8, resnet8_layers, resnet18, resnet18_layers};
use sepal::models::simcnn::*;
use sepal::models::vdcnn::*;
use sepal::models::vgg::{vgg6, vgg6_layers, vgg16, vgg16_layers, vgg19, vgg19_layers};
use sepal::models::width::scaled;
use sepal::net::{Input, Net, Normalisation};
use sepal::optim::Rule;
use sepal::reference::OnReference;
use sepal::shape::Shape;
use sepal::source::{Batch, Draw, Source, SourceError};
use sepal::stage::{Loss, Objective, Recipe};
use sepal::strategy::{
    Classifier, EndToEnd, ForwardBackward, ForwardSi, Greedy, LocalLosses, RandomFrozen, Strategy,
    Window,
};

const CLASSES: u32 = 2;
const BATCH: u32 = 8;
const SAMPLES: u32 = 24;

/// How far logits of one model may lie apart on two backends, beside the largest.
const LOGITS: f32 = 1e-3;

/// Samples of two classes: bytes of one are small, of the other large. As tokens they are known.
fn set(shape: Shape) -> Dataset {
    let len = shape.sample().unwrap();
    let byte = |sample: u32, at: u32| {
        let noise = sample.wrapping_mul(2_654_435_761).wrapping_add(at.wrapping_mul(40_503)) >> 9;
        (noise % 40 + sample % 2 * 30) as u8
    };
    let bytes = (0..SAMPLES).flat_map(|sample| (0..len).map(move |at| byte(sample, at)));
    let labels = (0..SAMPLES).map(|sample| (sample % 2) as u16).collect();
    let names = vec!["small".to_owned(), "large".to_owned()];
    Dataset::new(shape, Samples::U8(bytes.collect()), labels, names).unwrap()
}

const fn image(channels: u32, size: u32) -> Input {
    let normalisation = Normalisation::scalar(0.14, 0.07);
    Input { shape: Shape::new(1, channels, size, size), normalisation }
}

const fn text(length: u32) -> Input {
    Input { shape: Shape::new(1, 1, 1, length), normalisation: Normalisation::BYTES }
}

fn forward_si(block: Recipe<'static>) -> ForwardSi<'static> {
    let si = recipe::forward_si(1, 1);
    let classifier = Recipe { batch: BATCH, ..si.classifier };
    ForwardSi { block: Recipe { batch: BATCH, ..block }, classifier, ..si }
}

fn end_to_end() -> EndToEnd<'static> {
    let recipe = recipe::end_to_end(1, 1e-2).recipe;
    EndToEnd { recipe: Recipe { batch: BATCH, ..recipe } }
}

/// Trains, and checks that all that is trained moved, that both backends read the model alike, and
/// that a file changes no bit.
#[track_caller]
fn learns<D: Device>(device: &D, net: Net<'_>, strategy: &impl Strategy) {
    learns_from(device, net, strategy, |set| set, &Budget::default());
}

#[track_caller]
fn learns_from<D: Device, S: Source>(
    device: &D,
    net: Net<'_>,
    strategy: &impl Strategy,
    source: impl Fn(Dataset) -> S,
    budget: &Budget,
) {
    assert_eq!(net.check(), Ok(()));
    let samples = set(net.input.shape);
    let mut fit = Fit::new(net, 5).unwrap();
    let drawn = fit.snapshot().weights;
    let mut source = source(samples.clone());
    fit.run(device, strategy, &mut source, budget, &mut ()).unwrap();
    // Two views of each sample fill a batch twice as fast.
    let updates = [SAMPLES / BATCH, 2 * SAMPLES / BATCH];
    assert!(fit.outcomes().iter().all(|o| updates.contains(&o.updates) && o.loss.is_finite()));
    let weights = fit.snapshot().weights;
    for (at, layer) in net.layers.iter().enumerate() {
        let first = net.params(at).unwrap();
        let tensors = layer.tensors(net.shape(at).unwrap()).unwrap();
        let place = first..first + tensors.len(Role::Weight) as usize;
        assert!(place.is_empty() || weights[place.clone()] != drawn[place], "layer {at} stays");
    }
    comes_back(&fit, &samples);
}

/// Both backends read the model alike, and a file changes no bit.
#[track_caller]
fn comes_back(fit: &Fit<'_>, samples: &Dataset) {
    let net = fit.model().net;
    let logits = |loaded: &sepal::net::Model<'_>, on_cpu: bool| {
        let last = net.layers.len();
        let features = match on_cpu {
            true => Features::new(&OnCpu::new(), loaded, &mut &*samples, last),
            false => Features::new(&OnReference, loaded, &mut &*samples, last),
        };
        features.unwrap().data().to_vec()
    };
    let [on_reference, on_cpu] = [false, true].map(|on_cpu| logits(&fit.model(), on_cpu));
    let largest = on_reference.iter().fold(1.0f32, |most, logit| most.max(logit.abs()));
    for (a, b) in on_reference.iter().zip(&on_cpu) {
        assert!((a - b).abs() <= LOGITS * largest, "{a} and {b}, the largest is {largest}");
    }
    assert!(on_reference.iter().any(|logit| *logit != on_reference[0]), "all logits are one");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.sepal");
    file::save(&path, &fit.model(), &Meta::NONE).unwrap();
    let loaded = Loaded::open(&path).unwrap();
    assert_eq!(loaded.model().net, net);
    assert_eq!(logits(&loaded.model(), false), on_reference);
    assert_eq!(logits(&loaded.model(), true), on_cpu);
}

fn check(net: Net<'_>) {
    let by_block = forward_si(recipe::block(1));
    learns(&OnReference, net, &by_block);
    learns(&OnReference, net, &end_to_end());
    learns(&OnCpu::new(), net, &by_block);
    learns(&OnCpu::new(), net, &end_to_end());
    let rule = Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
    learns(&OnCpu::new(), net, &EndToEnd { recipe: Recipe { rule, ..end_to_end().recipe } });
    others(&OnCpu::new(), net);
}

/// All other strategies.
fn others(device: &impl Device, net: Net<'_>) {
    let (si, whole) = (forward_si(recipe::block(1)), end_to_end().recipe);
    control(device, net, si.classifier);
    learns(device, net, &ForwardSi { form: Classifier::LayerWise, ..si });
    for blocks in [1, 2] {
        learns(
            device,
            net,
            &ForwardBackward { blocks, block: si.block, heads: si.heads, rest: whole },
        );
    }
    let (linear, deep) = (recipe::linear_head(CLASSES), simcnn_head(4, CLASSES));
    let heads: [&[Layer]; 2] = [&linear, of_depth(2, &deep)];
    for fine_tune in [None, Some(whole)] {
        learns(device, net, &Greedy { block: whole, heads: &heads, classifier: whole, fine_tune });
    }
    learns(device, net, &LocalLosses { block: whole, heads: &heads, classifier: whole });
    let objective = Objective::PredSim { beta: 0.99, similar: recipe::SIMILAR };
    let linear = recipe::linear_head(recipe::SIMILAR + CLASSES);
    let deep = simcnn_head(4, recipe::SIMILAR + CLASSES);
    let heads: [&[Layer]; 3] = [&linear, of_depth(2, &deep), of_depth(3, &deep)];
    let block = Recipe { objective, ..whole };
    learns(device, net, &LocalLosses { block, heads: &heads, classifier: whole });
    // The other losses, and all else that can be laid over a block.
    for (loss, head) in [
        (Loss::Triplet, &[][..]),
        // Wider than unit vectors can be apart: no sample is done.
        (Loss::Margin { margin: 5.0 }, recipe::MEANS_READOUT),
        (Loss::SoftCentre { temperature: 0.1 }, recipe::CONV_READOUT),
    ] {
        let block = Recipe { objective: Objective::Separation(loss), head, ..si.block };
        learns(device, net, &ForwardSi { block, ..si });
    }
    let unit: [&[Layer]; 1] = [recipe::UNIT_FEATURES];
    learns(device, net, &LocalLosses { block: si.block, heads: &unit, classifier: whole });
    for window in [Window::sliding(2), Window::groups(3)] {
        learns(device, net, &ForwardSi { window, ..si });
    }
    let objective = Objective::Views(Loss::SoftNearest { temperature: 0.1 });
    let views = ForwardSi { block: Recipe { objective, ..si.block }, ..si };
    let anew = Budget { keep: Keep::Nothing, ..Budget::default() };
    learns_from(device, net, &views, Moved, &anew);
    let learning = Learning { way: Way::ForwardForward, ..Learning::default() };
    let (layers, blocks) = learning.layers(&net);
    let net = Net { layers: &layers, blocks: &blocks, ..net };
    let objective = Objective::Goodness { threshold: recipe::THRESHOLD, classes: CLASSES };
    let goodness = ForwardSi { block: Recipe { objective, head: &[], ..si.block }, ..si };
    learns(device, net, &goodness);
}

/// Random frozen blocks: what is drawn stays, the classifier learns.
fn control(device: &impl Device, net: Net<'_>, classifier: Recipe<'_>) {
    let mut fit = Fit::new(net, 5).unwrap();
    let drawn = fit.snapshot().weights;
    let mut samples = set(net.input.shape);
    let control = RandomFrozen { classifier };
    fit.run(device, &control, &mut samples, &Budget::default(), &mut ()).unwrap();
    let weights = fit.snapshot().weights;
    for (at, layer) in net.layers.iter().enumerate() {
        let first = net.params(at).unwrap();
        let tensors = layer.tensors(net.shape(at).unwrap()).unwrap();
        let place = first..first + tensors.len(Role::Weight) as usize;
        let moved = weights[place.clone()] != drawn[place.clone()];
        assert_eq!(moved, at >= net.features_end() && !place.is_empty(), "layer {at}");
    }
    comes_back(&fit, &set(net.input.shape));
}

/// Samples that are drawn anew each time: as good as augmented ones.
struct Moved(Dataset);

impl Source for Moved {
    fn len(&self) -> u32 {
        Source::len(&self.0)
    }

    fn shape(&self) -> Shape {
        Source::shape(&self.0)
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        draw: Option<Draw>,
        mut batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        self.0.read(indices, draw, batch.again(), labels)?;
        if let (Some(draw), Batch::U8(bytes)) = (draw, batch) {
            (0..).zip(bytes).for_each(|(at, byte)| *byte ^= u8::from(at % 7 == draw.epoch % 7));
        }
        Ok(())
    }
}

#[test]
fn lenets() {
    check(lenet(&scaled(lenet_layers(CLASSES), 50), image(1, 14)));
    check(lenet5(&scaled(lenet5_layers(CLASSES), 50), image(3, 16)));
}

#[test]
fn gestures() {
    let shape = Shape::new(1, 3, 1, 16);
    check(gesture(&scaled(gesture_layers(CLASSES), 50), Input { shape, ..image(3, 16) }));
}

#[test]
fn dense_nets() {
    let shape = Shape::rows(1, 12);
    check(dense(&scaled(dense_layers(CLASSES), 10), Input { shape, ..image(1, 12) }));
}

#[test]
fn nets_of_mlperf_tiny() {
    let shape = Shape::new(1, 1, 13, 6);
    check(ds_cnn(&scaled(ds_cnn_layers(CLASSES), 13), Input { shape, ..image(1, 13) }));
    check(mobilenet(&scaled(mobilenet_layers(CLASSES), 50), image(3, 24)));
    let shape = Shape::rows(1, 20);
    check(autoencoder(&scaled(autoencoder_layers(CLASSES), 50), Input { shape, ..image(1, 20) }));
}

#[test]
fn alexnets() {
    check(alexnet(&scaled(alexnet_layers(CLASSES), 5), image(1, 9)));
}

#[test]
fn vggs() {
    check(vgg6(&scaled(vgg6_layers(CLASSES), 25), image(1, 9)));
    check(vgg16(&scaled(vgg16_layers(CLASSES), 5), image(3, 32)));
    check(vgg19(&scaled(vgg19_layers(CLASSES), 5), image(1, 32)));
}

#[test]
fn resnets() {
    check(resnet8(&scaled(resnet8_layers(CLASSES), 25), image(1, 9)));
    check(resnet18(&scaled(resnet18_layers(CLASSES), 5), image(3, 8)));
}

#[test]
fn simcnns() {
    check(simcnn1(&scaled(simcnn1_layers(CLASSES), 3), image(3, 8)));
    check(simcnn2(&scaled(simcnn2_layers(CLASSES), 5), image(3, 8)));
    check(simcnn3(&scaled(simcnn3_layers(CLASSES), 5), image(1, 8)));
}

/// Each block with its auxiliary net, by SI and, as in the source, by cross-entropy.
#[test]
fn simcnns_with_their_auxiliary_nets() {
    const READOUT: [Layer; 9] = simcnn_readout(6);
    const HEAD: [Layer; 10] = simcnn_head(6, CLASSES);
    let layers = scaled(simcnn3_layers(CLASSES), 5);
    let net = simcnn3(&layers, image(3, 8));
    for k in 1..=3 {
        let by_si = Recipe { head: of_depth(k, &READOUT), ..recipe::block(1) };
        let objective = Objective::CrossEntropy { smoothing: 0.0 };
        let greedy = Recipe { head: of_depth(k, &HEAD), objective, ..recipe::block(1) };
        learns(&OnReference, net, &forward_si(greedy));
        learns(&OnCpu::new(), net, &forward_si(by_si));
    }
}

#[test]
fn vdcnns() {
    check(vdcnn9(&scaled(vdcnn9_layers(CLASSES), 5), text(64)));
    check(vdcnn17(&scaled(vdcnn17_layers(CLASSES), 5), text(57)));
    check(vdcnn29(&scaled(vdcnn29_layers(CLASSES), 5), text(60)));
}
