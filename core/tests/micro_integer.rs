//! Groups of layers in integers on small cores, beside the reference in f32.

#[path = "micro/nets.rs"]
mod nets;

use nets::{Group, Numbers, Owned, group, run, shape};
use proptest::prelude::*;
use sepal_core::arena::{Dtype, Word};
use sepal_core::infer::Inference;
use sepal_core::layer::{Activation, Conv2d, Layer, Quantise, Role};
use sepal_core::micro::Micro;
use sepal_core::net::{Input, Normalisation};
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;

/// How near to a boundary between two steps a number may lie that is rounded to the other side, in
/// steps.
const NEAR: f64 = 1e-3;

/// By how much numbers that integers stand for differ from sums in f32, over the largest of them.
const ROUNDING: f32 = 1e-4;

/// Without the reference's code: all of these layers have kernels.
fn micro(words: &'static mut [Word]) -> Micro<'static, false> {
    Micro::new(words)
}

fn reference(words: &'static mut [Word]) -> Reference<'static> {
    Reference::new(words)
}

/// Appends a group, but for its steps, that reads the steps of `reads`: weights are i8 with a scale
/// for each filter, biases whole steps of the sums.
fn push(net: &mut Owned, group: &Group, reads: Quantise) {
    let x = net.shape;
    let layer = group.product(x);
    net.push(layer);
    let (tensors, rows) = (layer.tensors(x).unwrap(), net.shape.c);
    let mut numbers = Numbers::new(group.seed);
    let scales: Vec<f32> = (0..rows).map(|_| numbers.between(1e-3, 4e-2)).collect();
    let weights: Vec<u8> = (0..tensors.weight).map(|_| (numbers.below(255) + 129) as u8).collect();
    net.tensor(Role::Weight, Dtype::I8, &weights, &scales);
    if tensors.bias > 0 {
        let most = (f64::from(tensors.weight / rows).sqrt() * 8000.0) as i32;
        let mut steps = || numbers.below(2 * most as u32) as i32 - most;
        let biases: Vec<f32> =
            scales.iter().map(|scale| steps() as f32 * (reads.scale * scale)).collect();
        net.numbers(Role::Bias, &biases);
    }
    group.behind(net);
}

/// A net of bytes: `first` and groups, each with its steps.
fn net(input: Input, first: Quantise, groups: &[(&Group, Quantise)]) -> Owned {
    let mut net = Owned::new(input, 0);
    net.push(Layer::Quantise(first));
    let mut reads = first;
    for &(group, writes) in groups {
        push(&mut net, group, reads);
        net.push(Layer::Quantise(writes));
        reads = writes;
    }
    net
}

/// Appends a layer that gives the bytes that reach it as the numbers that they stand for.
fn show(net: &mut Owned) {
    let channels = net.shape.c;
    let conv = Conv2d { groups: channels, bias: false, ..Conv2d::new(channels, 1) };
    net.push(Layer::Conv2d(conv));
    let one = |len: u32| vec![1.0; len as usize];
    net.tensor(Role::Weight, Dtype::I8, &vec![1; channels as usize], &one(channels));
}

/// Steps that most of `numbers` lie in.
fn steps(numbers: &[f32], seed: u64) -> Quantise {
    let mut random = Numbers::new(seed ^ 1);
    let share = random.between(0.4, 1.5);
    let (low, high) = numbers.iter().fold((0.0f32, 0.0f32), |(l, h), &x| (l.min(x), h.max(x)));
    let steps = Quantise::range(low * share, high * share);
    // Also a zero that these numbers do not call for.
    let zero = if random.below(4) == 0 { random.below(256) as u8 } else { steps.zero };
    Quantise { zero, ..steps }
}

/// Compares each group of a net: its bytes with those of the reference's numbers, which are made in
/// f32 from the bytes before.
fn compare(input: Input, first: Quantise, (n, raw): (u32, &[u8]), groups: &[Group]) {
    let mut x = run(reference, &net(input, first, &[]).model(), n, raw, true);
    let (mut shape, mut reads, mut done) = (input.shape, first, Vec::new());
    for group in groups {
        let plain = Input { shape, normalisation: Normalisation::NONE };
        let mut alone = Owned::new(plain, 0);
        push(&mut alone, group, reads);
        shape = alone.shape;
        let wide = run(reference, &alone.model(), n, &x, false);

        let mut numbers = net(input, first, &done);
        push(&mut numbers, group, reads);
        let found = run(micro, &numbers.model(), n, raw, true);
        let most = wide.iter().fold(0.1f32, |most, x| most.max(x.abs()));
        for (found, wide) in found.iter().zip(&wide) {
            let layers = &numbers.layers;
            assert!((found - wide).abs() <= ROUNDING * most, "{found}, {wide}: {layers:?}");
        }

        let writes = steps(&wide, group.seed);
        done.push((group, writes));
        let mut codes = net(input, first, &done);
        show(&mut codes);
        let model = codes.model();
        let found = run(micro, &model, n, raw, true);
        assert_eq!(found.len(), wide.len());
        for (&given, &wide) in found.iter().zip(&wide) {
            let (scale, zero) = (f64::from(writes.scale), f64::from(writes.zero));
            let code = (f64::from(given) / scale).round() + zero;
            let expected = f64::from(writes.code(wide));
            let place = f64::from(wide) / scale + zero + 0.5;
            let near = (place - place.round()).abs() <= NEAR && (code - expected).abs() <= 1.0;
            let layers = &codes.layers;
            assert!(code == expected || near, "{code}, expected {expected} of {place}: {layers:?}");
        }
        let planned = Inference::micro(model.net, n, true).unwrap().bytes();
        let layers = (0, codes.layers.len());
        let same = Inference::new(&micro(&mut []), &model, layers, n, true).unwrap();
        assert_eq!(planned, same.bytes());
        (x, reads) = (found, writes);
    }
}

/// Raw bytes that are read as they are, with a zero.
fn in_place(shape: Shape, zero: u8) -> (Input, Quantise) {
    let first = Quantise { zero, ..Quantise::BYTES };
    let normalisation = Normalisation::scalar(f32::from(zero) * first.scale, 1.0);
    (Input { shape, normalisation }, first)
}

fn bytes(shape: Shape, n: u32, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    (0..shape.sample().unwrap() * n).map(|_| numbers.below(256) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_groups_give_the_reference_s_bytes(
        (shape, n, seed) in (shape(), 1..=2u32, any::<u64>()),
        zero in prop_oneof![Just(0u8), any::<u8>()],
        direct in any::<bool>(),
        groups in prop::collection::vec(group(), 1..=3),
    ) {
        let (input, first) = if direct {
            in_place(shape, zero)
        } else {
            let normalisation = Normalisation::scalar(0.3, 0.35);
            (Input { shape, normalisation }, Quantise { zero, scale: 0.011 })
        };
        compare(input, first, (n, &bytes(shape, n, seed)), &groups);
    }
}

const CONV: Group = Group {
    dense: false,
    kernel: (3, 3),
    stride: (1, 1),
    pad: (1, 1),
    groups: 1,
    filters: 3,
    bias: true,
    norm: None,
    activation: Some(Activation::Relu),
    pool: 0,
    seed: 1,
};
const DENSE: Group = Group { dense: true, filters: 7, ..CONV };

const STRIDES: [(u8, u8); 4] = [(1, 1), (2, 2), (2, 1), (1, 3)];

/// The geometries that have code of their own, at the sizes where tiles end.
#[test]
fn each_geometry_gives_the_reference_s_bytes() {
    let kernels = [(1, 1), (1, 3), (3, 1), (3, 3), (5, 5), (7, 7), (1, 5), (2, 2)];
    for (k, kernel) in kernels.into_iter().enumerate() {
        for (w, pool) in [(1, 0), (7, 1), (8, 2), (9, 3), (12, 2), (13, 3), (17, 4)] {
            for (groups, stride) in [1, 2, 3].into_iter().flat_map(|g| STRIDES.map(|s| (g, s))) {
                let seed = (k * 100 + w as usize) as u64 * 10 + u64::from(groups);
                let pad = (kernel.0 / 2, kernel.1 / 2);
                let shape = Shape::new(1, 2, w, w);
                let pool = if stride == (1, 1) { pool } else { 0 };
                let group = Group { kernel, stride, pad, groups, pool, seed, ..CONV };
                let (input, first) = in_place(shape, (seed % 256) as u8);
                compare(input, first, (1, &bytes(shape, 1, seed)), &[group, DENSE]);
            }
        }
    }
}

/// Dense layers are summed four units at a time.
#[test]
fn each_number_of_units_gives_the_reference_s_bytes() {
    for filters in 1..=9 {
        for features in [1, 3, 64, 400] {
            let shape = Shape::rows(1, features);
            let seed = u64::from(filters * 1000 + features);
            let group = Group { filters, seed, ..DENSE };
            let (input, first) = in_place(shape, filters as u8 * 20);
            compare(input, first, (2, &bytes(shape, 2, seed)), &[group, DENSE]);
        }
    }
}
