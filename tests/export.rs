//! Nets for devices after a real training: what folding and bytes cost.

use sepal::arena::Word;
use sepal::backend::Device;
use sepal::cpu::OnCpu;
use sepal::infer::Inference;
use sepal::layer::{Flatten, L2Normalise, Layer};
use sepal::micro::{Embeddings, Micro, OnMicro, Tuning, TuningPlan};
use sepal::models::cache::Budget;
use sepal::models::data::{self, Dataset};
use sepal::models::export::{self, Settings};
use sepal::models::features::Features;
use sepal::models::fit::Fit;
use sepal::models::lenet::LENET;
use sepal::models::recipe;
use sepal::models::vgg::{vgg6, vgg6_layers};
use sepal::net::{Input, Model, Net, Normalisation, Patch, Weights};
use sepal::reference::OnReference;
use sepal::stage::{Cut, Loss, Objective, Recipe, Stage};

/// How much accuracy bytes may cost, or gain, as a share: one point.
const POINT: f64 = 0.01;

/// By how much a folded net's logits differ, over the largest of them: rounding.
const FOLDED: f32 = 1e-5;

/// The share of samples that integers and the same sums in f32 must agree about: a few numbers fall
/// to the other side of a boundary between two steps.
const AGREED: f64 = 0.995;

/// Of the bundled images.
const NORMALISATION: Normalisation = Normalisation::scalar(0.286, 0.353);

fn logits<D: Device>(device: &D, model: &Model<'_>, set: &Dataset) -> Features {
    Features::new(device, model, &mut &*set, model.net.layers.len()).unwrap()
}

fn trained<'n>(net: Net<'n>, train: &Dataset, passes: (u16, u16)) -> Fit<'n> {
    let mut fit = Fit::new(net, 0).unwrap();
    let strategy = recipe::forward_si(passes.0, passes.1);
    let budget = Budget::default();
    fit.run(&OnCpu::default(), &strategy, &mut &*train, &budget, &mut ()).unwrap();
    fit
}

/// Exports a trained net; gives the accuracy as trained and that in bytes.
fn check(model: &Model<'_>, train: &Dataset, test: &Dataset) -> (f64, f64) {
    let wide = logits(&OnCpu::default(), model, test);
    let folded = export::fold(model).unwrap();
    assert!(folded.layers().len() < model.net.layers.len());
    // On one backend: the others round otherwise.
    let (expected, found) =
        (logits(&OnReference, model, test), logits(&OnReference, &folded.model(), test));
    let most = expected.data().iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let off = expected.data().iter().zip(found.data()).map(|(a, b)| (a - b).abs());
    let off = off.fold(0.0, f32::max);
    assert!(off <= FOLDED * most, "{off} of {most}");

    let settings = Settings::default();
    let int8 = export::quantise(&OnCpu::default(), model, &mut &*train, &settings).unwrap();
    let (rounded, narrow) =
        (logits(&OnReference, &int8.model(), test), logits(&OnMicro, &int8.model(), test));
    let agreed = rounded.largest().iter().zip(narrow.largest()).filter(|(a, b)| **a == *b).count();
    assert!(agreed as f64 >= AGREED * f64::from(test.len()), "{agreed}");

    let ram = |model: &Model<'_>| {
        let layers = (0, model.net.layers.len());
        Inference::new(&Micro::<true>::new(&mut []), model, layers, 1, true).unwrap().bytes()
    };
    assert!(ram(&int8.model()) * 3 <= ram(model), "bytes are read in place");
    (wide.accuracy(), narrow.accuracy())
}

#[test]
fn lenet_in_bytes_is_within_a_point_of_lenet() {
    let (train, test) = (data::bundled().train, data::bundled().test);
    let net = Net { input: Input { normalisation: NORMALISATION, ..LENET.input }, ..LENET };
    let fit = trained(net, &train, (2, 15));
    let (wide, narrow) = check(&fit.model(), &train.head(500).unwrap(), &test);
    assert!(wide > 0.8, "{wide}");
    assert!((wide - narrow).abs() <= POINT, "{wide}, in bytes {narrow}");
}

#[test]
fn a_small_vgg_in_bytes_is_near_it() {
    let train = data::bundled().train.head(512).unwrap();
    let test = data::bundled().test.head(200).unwrap();
    let layers = vgg6_layers(10);
    let input = Input { normalisation: NORMALISATION, ..LENET.input };
    let fit = trained(vgg6(&layers, input), &train, (1, 8));
    let (wide, narrow) = check(&fit.model(), &train.head(64).unwrap(), &test);
    assert!(wide > 0.6, "{wide}");
    // Of 200 samples: four.
    assert!((wide - narrow).abs() <= 2.0 * POINT, "{wide}, in bytes {narrow}");
}

/// A block that was left in f32 is tuned behind blocks in bytes, and runs between them.
#[test]
fn a_block_in_f32_is_tuned_behind_bytes() {
    let net = Net { input: Input { normalisation: NORMALISATION, ..LENET.input }, ..LENET };
    let split = data::bundled();
    let train = split.train.head(800).unwrap();
    let fit = trained(net, &train, (1, 3));
    let settings = Settings { floats: &[1], ..Settings::default() };
    let export = export::quantise(&OnCpu::default(), &fit.model(), &mut &train, &settings).unwrap();
    let model = export.model();
    let (first, last) = model.net.block(1).unwrap();
    let unit = [Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];
    let recipe = Recipe { head: &unit, batch: 16, rate: 0.003, ..recipe::block(1) };
    let objective = Objective::Separation(Loss::Margin { margin: 0.2 });
    let recipe = Recipe { objective, ..recipe };
    // What makes the block's output bytes for the next is no part of what learns.
    let steps = matches!(model.net.layers[last - 1], Layer::Quantise(_));
    let last = last - usize::from(steps);
    let range = (first as u16, last as u16);
    let stage = Stage { first: range.0, last: range.1, calibrate: false, cut: Cut::Whole, recipe };

    let mut train = train.head(64).unwrap();
    let plan = TuningPlan::new(model.net, &stage, Embeddings::F32, true).unwrap();
    let mut words = vec![Word::NAN; Word::count(plan.bytes())];
    let mut backend = Micro::<false>::new(&mut words);
    let mut tuning = Tuning::new(plan, 0);
    tuning.load(&mut backend, &model).unwrap();
    let mut losses = vec![];
    for _ in 0..24 {
        losses.push(tuning.step(&mut backend, &model, &mut train, 24).unwrap().value);
    }
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    assert!(mean(&losses[16..]) < 0.9 * mean(&losses[..8]), "{losses:?}");

    let count = model.net.params(last).unwrap() - model.net.params(first).unwrap();
    let mut numbers = vec![f32::NAN; count];
    tuning.store(&mut backend, &mut numbers).unwrap();
    let patches = [Patch { first: range.0, last: range.1, numbers: &numbers }];
    let weights = Weights::Patched { under: &model.weights, patches: &patches };
    let tuned = Model { weights, ..model };
    // The reference computes the same net from the same weights.
    let test = split.test.head(200).unwrap();
    let agree = |a: &Model<'_>, b: &Model<'_>| {
        let (a, b) = (logits(&OnMicro, a, &test), logits(&OnReference, b, &test));
        let same = a.largest().iter().zip(b.largest()).filter(|(a, b)| **a == *b).count();
        same as f64 / 200.0
    };
    assert!(agree(&tuned, &tuned) >= AGREED);
    assert!(agree(&tuned, &model) < 1.0, "tuning changes nothing");
}
