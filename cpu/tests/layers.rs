//! Every layer against the reference: shapes on either side of every block size, groups, strides,
//! padding, parameters in the arena and in a model, any number of threads.

mod common;

use common::*;
use proptest::prelude::*;
use sepal_core::arena::Dtype;
use sepal_core::backend::{Device, Phase};
use sepal_core::layer::*;
use sepal_core::net::Stored;
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;
use sepal_cpu::{Cpu, OnCpu};

const TRAIN: Phase = Phase::Train { seed: 5, update: 2 };

/// Runs a layer on both backends, in every phase.
#[track_caller]
fn agree(layer: Layer, shape: Shape, tolerance: Tolerance) {
    let input = Input::new(&layer, shape, 7);
    let name = format!("{} {shape}", layer.name());
    for phase in [Phase::Eval, TRAIN, Phase::Calibrate { seen: 0 }, Phase::Calibrate { seen: 40 }] {
        for wants_dx in [true, false] {
            let pass = if phase == Phase::Eval { Pass::Eval } else { Pass::Train };
            let (cpu, reference) = (Cpu::new(&mut []), Reference::new(&mut []));
            let mut memory = nan(bytes(&reference, &layer, shape, pass));
            let mut reference = Reference::new(&mut memory);
            let expected = run(&mut reference, &layer, shape, phase, &input, wants_dx);
            let mut memory = nan(bytes(&cpu, &layer, shape, pass));
            let got = run(&mut Cpu::new(&mut memory), &layer, shape, phase, &input, wants_dx);
            close(&format!("{name} y {phase:?}"), &got.y, &expected.y, tolerance);
            close(&format!("{name} dx"), &got.dx, &expected.dx, tolerance);
            close(&format!("{name} dw"), &got.dw, &expected.dw, tolerance);
            close(&format!("{name} db"), &got.db, &expected.db, tolerance);
            close(&format!("{name} mean"), &got.mean, &expected.mean, tolerance);
            close(&format!("{name} variance"), &got.variance, &expected.variance, tolerance);
        }
    }
}

const fn conv(filters: u32, kernel: (u8, u8)) -> Conv2d {
    Conv2d { kernel, ..Conv2d::new(filters, 1) }
}

#[test]
fn convolutions_of_every_kind() {
    let cases = [
        // A single place, LeNet's two, 1x1, strides, padding wider than the image.
        (Shape::new(1, 1, 1, 1), conv(1, (1, 1))),
        (Shape::new(3, 1, 28, 28), Conv2d { pad: (2, 2), ..Conv2d::new(6, 5) }),
        (Shape::new(17, 6, 14, 14), Conv2d { bias: false, ..Conv2d::new(16, 5) }),
        (Shape::new(2, 7, 5, 9), conv(9, (1, 1))),
        (Shape::new(2, 7, 5, 9), Conv2d { stride: (2, 2), ..conv(9, (1, 1)) }),
        (Shape::new(2, 7, 5, 9), Conv2d { pad: (1, 1), ..conv(9, (1, 1)) }),
        (Shape::new(2, 3, 8, 9), Conv2d { stride: (2, 3), pad: (1, 2), ..conv(4, (3, 4)) }),
        (Shape::new(1, 2, 3, 2), Conv2d { pad: (4, 4), ..conv(3, (5, 5)) }),
        (Shape::new(1, 2, 3, 2), Conv2d { pad: (4, 4), stride: (3, 3), ..conv(3, (3, 3)) }),
        // Groups, depthwise with and without a multiplier, one filter.
        (Shape::new(5, 6, 9, 7), Conv2d { groups: 3, ..conv(9, (3, 3)) }),
        (Shape::new(5, 6, 4, 4), Conv2d { groups: 2, ..conv(8, (1, 1)) }),
        (Shape::new(5, 6, 9, 7), Conv2d { groups: 6, pad: (1, 1), ..conv(6, (3, 3)) }),
        (Shape::new(5, 6, 9, 8), Conv2d { groups: 6, stride: (2, 2), ..conv(6, (3, 2)) }),
        (Shape::new(5, 6, 9, 7), Conv2d { groups: 6, bias: false, ..conv(12, (3, 3)) }),
        (Shape::new(33, 3, 6, 6), Conv2d { pad: (1, 1), ..conv(1, (3, 3)) }),
        // Text; tiles of some rows, and of a part of one row.
        (Shape::new(9, 16, 1, 33), Conv2d { pad: (0, 1), ..conv(8, (1, 3)) }),
        (Shape::new(1, 32, 40, 64), Conv2d { pad: (1, 1), ..conv(4, (3, 3)) }),
        (Shape::new(2, 64, 1, 500), Conv2d { pad: (0, 3), stride: (1, 2), ..conv(3, (1, 7)) }),
        (Shape::new(1, 64, 2, 300), Conv2d { pad: (3, 1), ..conv(3, (7, 3)) }),
    ];
    for (shape, conv) in cases {
        agree(Layer::Conv2d(conv), shape, PRODUCTS);
    }
}

#[test]
fn convolutions_either_side_of_every_block() {
    for size in [7, 8, 9, 15, 16, 17, 31, 32, 33] {
        let layer = Conv2d { pad: (1, 1), bias: size % 2 == 0, ..Conv2d::new(size, 3) };
        agree(Layer::Conv2d(layer), Shape::new(2, 3, 4, size), PRODUCTS);
        agree(Layer::Conv2d(Conv2d::new(5, 3)), Shape::new(size, 2, 5, 5), PRODUCTS);
        agree(Layer::Conv2d(Conv2d::new(2, 1)), Shape::new(3, size, 3, 3), PRODUCTS);
    }
}

/// Weights so large that lanes are few and products are split.
#[test]
fn convolutions_with_large_weights() {
    let layer = Conv2d { pad: (1, 1), ..Conv2d::new(256, 3) };
    agree(Layer::Conv2d(layer), Shape::new(4, 256, 4, 4), PRODUCTS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn convolutions_of_random_shape(
        (n, groups, c, k) in (1u32..20, 1u32..4, 1u32..5, 1u32..6),
        (h, w) in (1u32..12, 1u32..12),
        kernel in (1u8..6, 1u8..6),
        stride in (1u8..4, 1u8..4),
        pad in (0u8..4, 0u8..4),
        bias: bool,
    ) {
        let layer = Conv2d { filters: k * groups, kernel, stride, pad, groups, bias };
        let shape = Shape::new(n, c * groups, h, w);
        if layer.output(shape).is_some() {
            agree(Layer::Conv2d(layer), shape, PRODUCTS);
        }
    }
}

#[test]
fn dense_layers() {
    for n in [1, 2, 3, 4, 5, 16, 33, 130] {
        for d in [1, 8, 31, 400] {
            for units in [1, 9, 16, 84] {
                let layer = Dense { units, bias: (n + d) % 2 == 0 };
                agree(Layer::Dense(layer), Shape::rows(n, d), PRODUCTS);
            }
        }
    }
    agree(Layer::Dense(Dense::new(7)), Shape::new(6, 3, 2, 5), PRODUCTS);
    agree(Layer::Dense(Dense::new(300)), Shape::rows(70, 300), PRODUCTS);
}

fn shapes() -> impl Iterator<Item = Shape> {
    let sizes = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33];
    let across = sizes.into_iter().map(|w| Shape::new(3, 2, 5, w));
    let channels = sizes.into_iter().map(|c| Shape::new(2, c, 3, 4));
    let samples = sizes.into_iter().map(|n| Shape::new(n, 3, 4, 4));
    let large = [Shape::new(40, 6, 28, 28), Shape::new(5, 1, 100, 100), Shape::rows(130, 84)];
    across.chain(channels).chain(samples).chain(large)
}

#[test]
fn layers_without_products() {
    for shape in shapes() {
        for affine in [false, true] {
            let layer = BatchNorm { affine, ..BatchNorm::new() };
            agree(Layer::BatchNorm(layer), shape, PRODUCTS);
        }
        for layer in [
            Activation::Relu,
            Activation::Relu6,
            Activation::LeakyRelu { slope: 0.1 },
            Activation::Tanh,
        ] {
            agree(Layer::Activation(layer), shape, EXACT);
        }
        agree(Layer::L2Normalise(L2Normalise), shape, PRODUCTS);
        for layer in [
            Layer::Standardise(Standardise),
            Layer::Dropout(Dropout { rate: 0.3 }),
            Layer::GlobalAvgPool(GlobalAvgPool),
            Layer::ChannelStd(ChannelStd),
        ] {
            agree(layer, shape, EXACT);
        }
    }
}

#[test]
fn pools() {
    let windows = [
        Window::square(1),
        Window::square(2),
        Window::square(3),
        Window { kernel: (3, 3), stride: (2, 2), pad: (1, 1) },
        Window { kernel: (2, 2), stride: (1, 2), pad: (0, 0) },
        Window { kernel: (2, 2), stride: (2, 2), pad: (1, 1) },
        Window { kernel: (1, 2), stride: (1, 2), pad: (0, 0) },
    ];
    for shape in shapes() {
        for window in windows.into_iter().filter(|window| window.output(shape).is_some()) {
            agree(Layer::MaxPool(MaxPool { window }), shape, EXACT);
            agree(Layer::AvgPool(AvgPool { window }), shape, EXACT);
        }
    }
}

/// Ties, infinities and NaN in every place of a window of two by two.
#[test]
fn maxima_of_hard_windows() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let hard = [0.0, -0.0, 1.0, nan, inf, -inf];
    let mut x = vec![];
    for code in 0..hard.len().pow(4) {
        let digit = |place: u32| hard[code / hard.len().pow(place) % hard.len()];
        x.extend([digit(0), digit(1), digit(2), digit(3)]);
    }
    let layer = Layer::MaxPool(MaxPool::new(2));
    let shape = Shape::new((x.len() / 4) as u32, 1, 2, 2);
    let input = Input { x, ..Input::new(&layer, shape, 3) };
    let mut memory = nan_memory(&layer, shape);
    let expected = run(&mut Reference::new(&mut memory), &layer, shape, TRAIN, &input, true);
    let mut memory = nan_memory(&layer, shape);
    let got = run(&mut Cpu::new(&mut memory), &layer, shape, TRAIN, &input, true);
    close("y", &got.y, &expected.y, EXACT);
    close("dx", &got.dx, &expected.dx, EXACT);
}

fn nan_memory(layer: &Layer, shape: Shape) -> Vec<sepal_core::arena::Word> {
    nan(bytes(&Cpu::new(&mut []), layer, shape, Pass::Train))
}

#[test]
fn readouts() {
    for shape in [Shape::new(5, 4, 8, 8), Shape::new(33, 3, 7, 5)] {
        agree(Layer::AvgPoolTo(AvgPoolTo { h: 2, w: 3 }), shape, EXACT);
        agree(Layer::Project(Project { dim: 9, seed: 4 }), shape, EXACT);
        agree(Layer::Flatten(Flatten), shape, EXACT);
    }
}

#[test]
fn layers_of_text() {
    for shape in shapes().filter(|s| s.w > 2) {
        for k in [1, 3, 8] {
            let layer = Layer::KMaxPool(KMaxPool { k });
            if layer.output(shape).is_some() {
                agree(layer, shape, EXACT);
            }
        }
        let shape = Shape { c: 1, ..shape };
        // Numbers in (-1, 1) read row 0 or 1: long sums.
        agree(Layer::Embedding(Embedding { tokens: 5, dim: 3 }), shape, EXACT);
        agree(Layer::Embedding(Embedding { tokens: 1, dim: 16 }), shape, EXACT);
    }
}

#[test]
fn permutations() {
    for shape in shapes() {
        for factor in [1, 2, 4, 5] {
            let layer = Layer::SpaceToDepth(SpaceToDepth { factor });
            if layer.output(shape).is_some() {
                agree(layer, shape, EXACT);
            }
        }
    }
}

/// Weights in a model, as f32 in place and as bytes with scales, which are widened into scratch.
#[test]
fn stored_weights() {
    let shape = Shape::new(6, 4, 9, 7);
    let layers = [
        Layer::Conv2d(Conv2d { groups: 2, pad: (1, 1), ..Conv2d::new(6, 3) }),
        Layer::Conv2d(Conv2d { groups: 4, ..Conv2d::new(4, 3) }),
        Layer::Dense(Dense::new(10)),
        Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() }),
        Layer::Standardise(Standardise),
        Layer::Embedding(Embedding { tokens: 6, dim: 5 }),
    ];
    for layer in layers {
        let shape = match layer {
            Layer::Embedding(_) => Shape { c: 1, ..shape },
            _ => shape,
        };
        let input = Input::new(&layer, shape, 9);
        let bytes_of: [Vec<u8>; 4] =
            input.params.each_ref().map(|p| p.iter().flat_map(|v| v.to_le_bytes()).collect());
        let mut stored = bytes_of.each_ref().map(|bytes| Stored { bytes, ..Stored::EMPTY });
        let quantised: Vec<u8> = (0..input.params[0].len()).map(|i| (i * 37 % 251) as u8).collect();
        let scales: Vec<u8> = [0.01f32, 0.02].iter().flat_map(|s| s.to_le_bytes()).collect();
        for pass in [Pass::Eval, Pass::Narrow] {
            if pass == Pass::Narrow && !quantised.is_empty() {
                stored[0] = Stored { dtype: Dtype::I8, bytes: &quantised, scales: &scales };
            }
            let needed = bytes(&Reference::new(&mut []), &layer, shape, pass);
            let mut memory = nan(needed);
            let mut reference = Reference::new(&mut memory);
            let expected = run_stored(&mut reference, &layer, shape, pass, &input.x, stored);
            let mut memory = nan(bytes(&Cpu::new(&mut []), &layer, shape, pass));
            let got = run_stored(&mut Cpu::new(&mut memory), &layer, shape, pass, &input.x, stored);
            close(layer.name(), &got, &expected, PRODUCTS);
        }
    }
}

/// A batch smaller than the planned one never needs more memory.
#[test]
fn fewer_samples_need_no_more() {
    let layer = Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(8, 3) });
    let cpu = Cpu::new(&mut []);
    for pass in [Pass::Eval, Pass::Narrow, Pass::Train] {
        let sizes: Vec<usize> =
            (1..70).map(|n| bytes(&cpu, &layer, Shape::new(n, 3, 9, 9), pass)).collect();
        assert!(sizes.is_sorted());
    }
}

#[test]
fn threads_change_no_bit() {
    let layers = [
        (Layer::Conv2d(Conv2d { pad: (2, 2), ..Conv2d::new(6, 5) }), Shape::new(37, 1, 28, 28)),
        (Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(256, 3) }), Shape::new(3, 128, 8, 8)),
        (Layer::Conv2d(Conv2d { groups: 8, ..Conv2d::new(8, 3) }), Shape::new(37, 8, 9, 9)),
        (Layer::Dense(Dense::new(120)), Shape::rows(128, 400)),
        (Layer::BatchNorm(BatchNorm::new()), Shape::new(37, 6, 28, 28)),
        (Layer::L2Normalise(L2Normalise), Shape::rows(128, 1176)),
        (Layer::Embedding(Embedding { tokens: 71, dim: 16 }), Shape::new(37, 1, 1, 1024)),
        (Layer::KMaxPool(KMaxPool { k: 8 }), Shape::new(37, 64, 1, 128)),
        (Layer::SpaceToDepth(SpaceToDepth { factor: 2 }), Shape::new(37, 3, 32, 32)),
    ];
    for (layer, shape) in layers {
        let input = Input::new(&layer, shape, 1);
        let of = |threads| {
            let mut memory = nan_memory(&layer, shape);
            let mut cpu = OnCpu::with_threads(threads).unwrap().open(&mut memory).unwrap();
            run(&mut cpu, &layer, shape, TRAIN, &input, true)
        };
        let one = of(1);
        for threads in 2..=4 {
            assert!(of(threads) == one, "{} with {threads} threads", layer.name());
        }
    }
}
