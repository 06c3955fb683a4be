//! Groups of layers in f32 on small cores: the reference's bits, however weights are stored.

#[path = "micro/nets.rs"]
mod nets;

use nets::{Group, Numbers, Owned, group, run, shape};
use proptest::prelude::*;
use sepal_core::arena::Dtype;
use sepal_core::infer::Inference;
use sepal_core::layer::{
    Activation, AvgPool, Conv2d, Dense, Dropout, Flatten, GlobalAvgPool, L2Normalise, Layer,
    MaxPool, Role, Standardise, Window,
};
use sepal_core::micro::Micro;
use sepal_core::net::{Input, Normalisation};
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;

/// How weights are stored.
const TYPES: &[Dtype] = if cfg!(feature = "f16") {
    &[Dtype::F32, Dtype::I8, Dtype::F16]
} else {
    &[Dtype::F32, Dtype::I8]
};

/// Appends a convolution or a dense layer with its parameters.
fn push(net: &mut Owned, layer: Layer, dtype: Dtype, seed: u64) {
    let tensors = layer.tensors(net.shape).unwrap();
    net.push(layer);
    let mut numbers = Numbers::new(seed);
    let (count, rows) = (tensors.weight, net.shape.c);
    match dtype {
        Dtype::I8 => {
            let scales: Vec<f32> = (0..rows).map(|_| numbers.between(1e-3, 4e-2)).collect();
            let weights: Vec<u8> = (0..count).map(|_| numbers.below(256) as u8).collect();
            net.tensor(Role::Weight, Dtype::I8, &weights, &scales);
        }
        Dtype::F16 => {
            // Finite numbers of either sign, subnormal ones among them.
            let halves = (0..count).flat_map(|_| {
                let sign = (numbers.below(2) as u16) << 15;
                (numbers.below(0x3c00) as u16 | sign).to_le_bytes()
            });
            net.tensor(Role::Weight, Dtype::F16, &halves.collect::<Vec<u8>>(), &[]);
        }
        _ => {
            let weights: Vec<f32> = (0..count).map(|_| numbers.between(-1.0, 1.0)).collect();
            net.numbers(Role::Weight, &weights);
        }
    }
    if tensors.bias > 0 {
        let biases: Vec<f32> = (0..tensors.bias).map(|_| numbers.between(-1.0, 1.0)).collect();
        net.numbers(Role::Bias, &biases);
    }
}

/// Appends one of the layers that are groups of their own, where it fits.
fn push_single(net: &mut Owned, choice: u8) {
    let window = |kernel, stride, pad| Window { kernel, stride, pad };
    let layer = match choice {
        0 => Layer::MaxPool(MaxPool { window: window((3, 3), (2, 2), (1, 1)) }),
        1 => Layer::MaxPool(MaxPool { window: window((2, 3), (1, 2), (0, 2)) }),
        2 => Layer::MaxPool(MaxPool::new(9)),
        3 => Layer::AvgPool(AvgPool { window: Window::square(2) }),
        4 => Layer::GlobalAvgPool(GlobalAvgPool),
        5 => Layer::L2Normalise(L2Normalise),
        6 => Layer::Standardise(Standardise),
        7 => Layer::Flatten(Flatten),
        8 => Layer::Dropout(Dropout { rate: 0.5 }),
        9 => Layer::Activation(Activation::Tanh),
        _ => Layer::Activation(Activation::Relu6),
    };
    let Some(tensors) = layer.output(net.shape).and_then(|_| layer.tensors(net.shape)) else {
        return;
    };
    net.push(layer);
    if tensors.mean > 0 {
        let mut numbers = Numbers::new(tensors.mean.into());
        let mut some = |low: f32| -> Vec<f32> {
            (0..tensors.mean).map(|_| numbers.between(low, 1.0)).collect()
        };
        let (mean, variance) = (some(-1.0), some(0.0));
        net.numbers(Role::Mean, &mean);
        net.numbers(Role::Variance, &variance);
    }
}

/// The net gives the same bits on both backends, in memory of exactly the planned size.
fn compare(net: &Owned, n: u32, seed: u64) {
    let mut numbers = Numbers::new(seed);
    let len = net.input.shape.sample().unwrap() * n;
    let raw: Vec<u8> = (0..len).map(|_| numbers.below(256) as u8).collect();
    let model = net.model();
    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits);
    let expected = bits(run(Reference::new, &model, n, &raw, true));
    let found = bits(run(Micro::<true>::new, &model, n, &raw, true));
    assert!(expected.eq(found), "{:?}", net.layers);
    let planned = Inference::micro(model.net, n, model.weights.is_narrow()).unwrap().bytes();
    let all = (0, net.layers.len());
    let same = Inference::new(&Micro::<true>::new(&mut []), &model, all, n, true).unwrap();
    assert_eq!(planned, same.bytes());
}

fn input(shape: Shape) -> Input {
    Input { shape, normalisation: Normalisation::scalar(0.3, 0.35) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn random_nets_give_the_reference_s_bits(
        (shape, n, seed) in (shape(), 1..=2u32, any::<u64>()),
        dtype in prop::sample::select(TYPES),
        shift in prop_oneof![3 => Just(0usize), 1 => 1..=3usize],
        groups in prop::collection::vec((group(), prop::option::of(0..=10u8)), 1..=3),
    ) {
        let mut net = Owned::new(input(shape), shift);
        for (group, single) in &groups {
            let layer = group.product(net.shape);
            push(&mut net, layer, dtype, group.seed);
            group.behind(&mut net);
            single.iter().for_each(|&single| push_single(&mut net, single));
        }
        compare(&net, n, seed);
    }
}

const GROUP: Group = Group {
    dense: false,
    kernel: (3, 3),
    stride: (1, 1),
    pad: (1, 1),
    groups: 1,
    filters: 3,
    bias: true,
    norm: Some(true),
    activation: Some(Activation::Relu),
    pool: 0,
    seed: 1,
};

/// The geometries that have code of their own, at the sizes where tiles end, weights in each type
/// and at addresses where f32 does not lie.
#[test]
fn each_geometry_gives_the_reference_s_bits() {
    let kernels = [(1, 1), (1, 3), (3, 1), (3, 3), (5, 5), (7, 7), (1, 5), (2, 2)];
    for (k, kernel) in kernels.into_iter().enumerate() {
        for (w, pool) in [(1, 0), (7, 1), (8, 2), (9, 3), (12, 2), (13, 3), (17, 4)] {
            for groups in [1, 2, 3] {
                for (&dtype, shift) in TYPES.iter().zip([0, 1, 2]).chain([(&Dtype::F32, 3)]) {
                    let seed = (k * 100 + w as usize) as u64 * 10 + u64::from(groups);
                    let pad = (kernel.0 / 2, kernel.1 / 2);
                    let group = Group { kernel, pad, groups, pool, seed, ..GROUP };
                    let mut net = Owned::new(input(Shape::new(1, 2, w, w)), shift);
                    let layer = group.product(net.shape);
                    push(&mut net, layer, dtype, seed);
                    group.behind(&mut net);
                    compare(&net, 1, seed);
                }
            }
        }
    }
}

/// One channel in each group, with one filter or several, however the kernel moves, with and without a pool
/// behind; and kernels of one place on planes that tiles do not fill.
#[test]
fn each_step_over_single_channels_gives_the_reference_s_bits() {
    let kernels = [(1, 1), (3, 3), (5, 5), (10, 4), (2, 7)];
    let strides = [(1, 1), (2, 2), (1, 2), (2, 1), (3, 2)];
    let mut fit = 0;
    for (kernel, stride) in kernels.into_iter().flat_map(|k| strides.map(|s| (k, s))) {
        for (w, pad) in [(1, (1, 1)), (3, (0, 0)), (5, (1, 1)), (8, (0, 2)), (13, (5, 1))] {
            for (groups, filters, pool) in [(1, 1, 0), (1, 5, 0), (3, 1, 0), (3, 2, 0), (3, 1, 2)] {
                let conv =
                    Conv2d { filters: groups * filters, kernel, stride, pad, groups, bias: true };
                let mut net = Owned::new(input(Shape::new(1, groups, w, w)), 0);
                if conv.output(net.shape).is_some() {
                    push(&mut net, Layer::Conv2d(conv), Dtype::F32, w.into());
                    Group { pool, ..GROUP }.behind(&mut net);
                    compare(&net, 2, w.into());
                    fit += 1;
                }
            }
        }
    }
    assert!(fit > 300, "{fit}");
}

/// Sums of dense layers are cut into runs of 1,024 terms and lanes of 8.
#[test]
fn each_length_of_dense_sums_gives_the_reference_s_bits() {
    for features in [1, 7, 8, 9, 1023, 1024, 1025, 2500] {
        for units in 1..=4 {
            for &dtype in TYPES {
                let mut net = Owned::new(input(Shape::rows(1, features)), 0);
                push(&mut net, Layer::Dense(Dense::new(units)), dtype, features.into());
                compare(&net, 2, units.into());
            }
        }
    }
}

/// More padding than kernel: rows of the output that read nothing of the image.
#[test]
fn padding_wider_than_the_kernel_gives_the_reference_s_bits() {
    for (pad, stride) in [((4, 5), (1, 1)), ((7, 0), (2, 1)), ((0, 9), (1, 3))] {
        for kernel in [(3, 3), (5, 5), (1, 2)] {
            let conv = Conv2d { pad, stride, kernel, ..Conv2d::new(3, 1) };
            let mut net = Owned::new(input(Shape::new(1, 2, 6, 5)), 0);
            push(&mut net, Layer::Conv2d(conv), Dtype::F32, 3);
            compare(&net, 1, 5);
        }
    }
}
