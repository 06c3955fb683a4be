//! Each layer alone: evaluation, training, calibration, and backward with its input's gradient.

use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{self, Backend, Call, EvalBlock, EvalParams, Param, Phase, TrainBlock};
use sepal_core::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, ChannelStd, Conv2d, Dense, Dropout, Embedding,
    Flatten, GlobalAvgPool, KMaxPool, L2Normalise, Layer, MaxPool, Pass, Project, Quantise, Role,
    SpaceToDepth, Standardise, Window,
};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::plan::{self, Chain, ParamSlots};
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;
use sepal_core::stage::Objective;

use crate::oracle::{self, Params};
use crate::{Cut, Tolerance, With, ask, len, read, run, values, wide, write};

/// What a layer is tried with.
type Cases = Vec<(Shape, Layer)>;

const TRAIN: Phase = Phase::Train { seed: 11, update: 3 };

/// A layer that changes nothing and works out of place, so that the layer behind it is not the
/// first and gets a gradient of its input.
const BEFORE: Layer = Layer::AvgPool(AvgPool::new(1));

macro_rules! cases {
    ($($name:ident: $cases:expr, $tolerance:expr;)*) => {
        $(
            #[doc = concat!("Cases of `", stringify!($name), "`.")]
            pub mod $name {
                use super::*;

                /// Evaluation, from parameters in the arena and in a model.
                pub fn eval(with: With) {
                    for (shape, layer) in $cases {
                        super::eval(with, shape, layer, $tolerance);
                    }
                }

                /// Training forward: the output, and measured parameters.
                pub fn train(with: With) {
                    for (shape, layer) in $cases {
                        super::train(with, shape, layer, TRAIN, $tolerance);
                    }
                }

                /// Calibration, from the first batch on and after others.
                pub fn calibrate(with: With) {
                    for (shape, layer) in $cases {
                        for seen in [0, 5] {
                            let phase = Phase::Calibrate { seen };
                            super::train(with, shape, layer, phase, $tolerance);
                        }
                    }
                }

                /// Gradients of the input and of the parameters.
                pub fn backward(with: With) {
                    for (shape, layer) in $cases {
                        super::gradient(with, shape, layer, $tolerance);
                    }
                }

                /// Outputs and gradients of inputs that are hard on arithmetic are numbers.
                pub fn finite(with: With) {
                    for (shape, layer) in $cases.into_iter().take(12) {
                        super::finite(with, shape, layer);
                    }
                }
            }
        )*
    };
}

cases! {
    conv2d: convolutions(), Tolerance::SUM;
    batch_norm: norms(), Tolerance::NORMALISED;
    relu: planes(Layer::Activation(Activation::Relu)), Tolerance::EXACT;
    relu6: planes(Layer::Activation(Activation::Relu6)), Tolerance::EXACT;
    leaky_relu: planes(Layer::Activation(Activation::LeakyRelu { slope: 0.01 })), Tolerance::ELEMENT;
    tanh: planes(Layer::Activation(Activation::Tanh)), Tolerance::ELEMENT;
    max_pool: max_pools(), Tolerance::ELEMENT;
    avg_pool: avg_pools(), Tolerance::SUM;
    global_avg_pool: planes(Layer::GlobalAvgPool(GlobalAvgPool)), Tolerance::SUM;
    avg_pool_to: bins(), Tolerance::SUM;
    dense: denses(), Tolerance::SUM;
    dropout: dropouts(), Tolerance::ELEMENT;
    flatten: planes(Layer::Flatten(Flatten)), Tolerance::EXACT;
    standardise: planes(Layer::Standardise(Standardise)), Tolerance::NORMALISED;
    l2_normalise: planes(Layer::L2Normalise(L2Normalise)), Tolerance::NORMALISED;
    channel_std: planes(Layer::ChannelStd(ChannelStd)), Tolerance::NORMALISED;
    project: projections(), Tolerance::SUM;
    embedding: embeddings(), Tolerance::SUM;
    k_max_pool: k_max_pools(), Tolerance::EXACT;
    space_to_depth: downsamples(), Tolerance::EXACT;
    quantise: planes(Layer::Quantise(Quantise { scale: 0.0625, zero: 12 })), Tolerance::EXACT;
}

/// Shapes of one element, odd ones, either side of a vector, and of one row.
const SHAPES: [Shape; 8] = [
    Shape::new(1, 1, 1, 1),
    Shape::new(2, 3, 5, 7),
    Shape::new(1, 8, 4, 4),
    Shape::new(3, 9, 3, 3),
    Shape::new(5, 2, 1, 9),
    Shape::new(4, 17, 1, 1),
    Shape::new(1, 1, 16, 1),
    Shape::new(7, 16, 2, 3),
];

fn planes(layer: Layer) -> Cases {
    SHAPES.map(|shape| (shape, layer)).into()
}

/// `cases` where the layer takes the shape; there are some.
fn possible(cases: impl IntoIterator<Item = (Shape, Layer)>, at_least: usize) -> Cases {
    let cases: Cases = cases.into_iter().filter(|(s, layer)| layer.output(*s).is_some()).collect();
    assert!(cases.len() >= at_least, "{} cases are possible", cases.len());
    cases
}

fn convolutions() -> Cases {
    let conv = |shape, conv| (shape, Layer::Conv2d(conv));
    let mut cases = vec![
        conv(Shape::new(1, 1, 1, 1), Conv2d::new(1, 1)),
        conv(Shape::new(2, 3, 5, 7), Conv2d::new(4, 3)),
        conv(Shape::new(2, 1, 12, 12), Conv2d { pad: (2, 2), bias: false, ..Conv2d::new(6, 5) }),
        // Strides that leave places out, and a rest at the end.
        conv(Shape::new(2, 2, 9, 8), Conv2d { stride: (3, 4), ..Conv2d::new(3, 2) }),
        conv(
            Shape::new(2, 4, 6, 5),
            Conv2d { pad: (2, 1), stride: (2, 3), groups: 2, ..Conv2d::new(6, 3) },
        ),
        // One dimension; depthwise, once and twice as many filters; a kernel of the image's size.
        conv(Shape::new(3, 2, 1, 9), Conv2d { kernel: (1, 3), pad: (0, 1), ..Conv2d::new(3, 3) }),
        conv(Shape::new(1, 9, 4, 4), Conv2d { groups: 9, pad: (1, 1), ..Conv2d::new(9, 3) }),
        conv(Shape::new(2, 3, 5, 5), Conv2d { groups: 3, bias: false, ..Conv2d::new(6, 3) }),
        conv(Shape::new(2, 3, 4, 6), Conv2d { kernel: (4, 6), ..Conv2d::new(5, 1) }),
        // Padding beyond the image; 1x1 over many channels.
        conv(Shape::new(1, 2, 2, 3), Conv2d { pad: (3, 3), ..Conv2d::new(2, 4) }),
        conv(Shape::new(2, 17, 3, 3), Conv2d::new(9, 1)),
        conv(Shape::new(1, 16, 7, 7), Conv2d { pad: (1, 1), ..Conv2d::new(8, 3) }),
    ];
    let random = (0..60).map(|sample| {
        let mut rng = Rng::new(1, Purpose::Sample, 0, sample);
        let groups = 1 + rng.below(3);
        let small = |rng: &mut Rng, n: u32| rng.below(n) as u8;
        let filters = groups * (1 + rng.below(4));
        let shape = Shape::new(
            1 + rng.below(3),
            groups * (1 + rng.below(4)),
            1 + rng.below(9),
            1 + rng.below(9),
        );
        let kernel = (1 + small(&mut rng, 5), 1 + small(&mut rng, 5));
        let stride = (1 + small(&mut rng, 3), 1 + small(&mut rng, 3));
        let pad = (small(&mut rng, 3), small(&mut rng, 3));
        let bias = rng.below(2) == 1;
        conv(shape, Conv2d { filters, kernel, stride, pad, groups, bias })
    });
    cases.extend(possible(random, 30));
    cases
}

fn norms() -> Cases {
    // Statistics of one place are no use; the variance of few is far from that of many.
    let shapes = SHAPES.into_iter().filter(|s| s.n * s.plane() > 4);
    shapes
        .flat_map(|shape| {
            [true, false].map(|affine| {
                (shape, Layer::BatchNorm(BatchNorm { affine, eps: 1e-3, ..BatchNorm::new() }))
            })
        })
        .collect()
}

fn windows(shape: Shape) -> [(Shape, Window); 7] {
    [
        Window::square(1),
        Window::square(2),
        Window { kernel: (3, 3), stride: (2, 2), pad: (1, 1) },
        Window { kernel: (2, 3), stride: (1, 1), pad: (0, 1) },
        Window { kernel: (2, 2), stride: (3, 3), pad: (0, 0) },
        Window { kernel: (1, 3), stride: (1, 2), pad: (0, 0) },
        Window { kernel: (3, 1), stride: (1, 1), pad: (1, 0) },
    ]
    .map(|window| (shape, window))
}

fn max_pools() -> Cases {
    let all = SHAPES.into_iter().flat_map(windows);
    possible(all.map(|(s, window)| (s, Layer::MaxPool(MaxPool { window }))), 20)
}

fn avg_pools() -> Cases {
    let all = SHAPES.into_iter().flat_map(windows);
    possible(all.map(|(s, window)| (s, Layer::AvgPool(AvgPool { window }))), 20)
}

fn bins() -> Cases {
    let sizes = [(1, 1), (2, 3), (7, 7)];
    let all = SHAPES.into_iter().flat_map(|s| sizes.map(|(h, w)| (s, AvgPoolTo { h, w })));
    all.map(|(s, pool)| (s, Layer::AvgPoolTo(pool))).collect()
}

fn denses() -> Cases {
    let sizes = [(1, true), (9, false), (16, true)];
    let all =
        SHAPES.into_iter().flat_map(|s| sizes.map(|(units, bias)| (s, Dense { units, bias })));
    all.map(|(s, dense)| (s, Layer::Dense(dense))).collect()
}

fn dropouts() -> Cases {
    let rates = [0.0, 0.3, 0.9];
    SHAPES
        .into_iter()
        .flat_map(|s| rates.map(|rate| (s, Layer::Dropout(Dropout { rate }))))
        .collect()
}

fn projections() -> Cases {
    let sizes = [1, 5, 64];
    let all = SHAPES.into_iter().flat_map(|s| sizes.map(|dim| (s, Project { dim, seed: 7 })));
    possible(all.map(|(s, project)| (s, Layer::Project(project))), 20)
}

fn embeddings() -> Cases {
    let sizes = [(1, 1), (5, 3), (9, 16)];
    let shapes = SHAPES.into_iter().map(|s| Shape { c: 1, ..s });
    let all = shapes.flat_map(|s| sizes.map(|(tokens, dim)| (s, Embedding { tokens, dim })));
    all.map(|(s, embedding)| (s, Layer::Embedding(embedding))).collect()
}

fn k_max_pools() -> Cases {
    let all = SHAPES.into_iter().flat_map(|s| [1, 2, 3, 7].map(|k| (s, KMaxPool { k })));
    possible(all.map(|(s, pool)| (s, Layer::KMaxPool(pool))), 15)
}

fn downsamples() -> Cases {
    let shapes = SHAPES.into_iter().chain([Shape::new(3, 9, 4, 6), Shape::new(1, 2, 6, 3)]);
    let all = shapes.flat_map(|s| [1, 2, 3].map(|factor| (s, SpaceToDepth { factor })));
    possible(all.map(|(s, down)| (s, Layer::SpaceToDepth(down))), 14)
}

/// Inputs in (-8, 8) in steps of 1/4: ties within windows and rows, zeros, both ends of `Relu6`,
/// tokens with and without a row, and numbers between tokens.
fn input(shape: Shape, seed: u64) -> Vec<f32> {
    values(seed, len(shape)).into_iter().map(|x| (x * 32.0).round() / 4.0).collect()
}

/// Writes parameters into their slots.
fn write_params(backend: &mut dyn Backend, slots: &ParamSlots, params: &Params) {
    for (role, numbers) in Role::ALL.into_iter().zip(params) {
        if !numbers.is_empty() {
            write(backend, slots.get(role), numbers);
        }
    }
}

fn eval(with: With, shape: Shape, layer: Layer, tolerance: Tolerance) {
    let what = format!("{layer:?} of {shape}");
    let params = oracle::params(&layer, shape, 20);
    let x = input(shape, 1);
    let expected = oracle::Forward::new(&layer, shape, Phase::Eval, &wide(&x), &params).y;
    let layers = [layer];
    let chain = Chain::new(&layers);

    let ram = plan::Params::new(0, chain, shape, 0).expect("small");
    let plan_at = |at| {
        let plan = ask(with, |b| {
            backend::plan_eval(b, at, &chain, Slot::new(at, shape, Dtype::F32), Pass::Eval)
        });
        plan.expect("the layer can be planned")
    };
    let plan = plan_at(ram.bytes());
    run(with, ram.bytes() + plan.bytes(), |b| {
        let slots = ram.walk().step(layer.tensors(shape).expect("small")).expect("small");
        write_params(b, &slots, &params);
        write(b, plan.input(), &x);
        let params = EvalParams::Ram(ram);
        let block = EvalBlock { chain, params, plan, pass: Pass::Eval, n: shape.n };
        let y = b.eval_block(&block).expect("the layer runs");
        tolerance.check(&what, &read(b, y), &expected);
    });

    let plan = plan_at(0);
    let flat: Vec<f32> = params.concat();
    let net = Net {
        input: Input { shape: shape.with_n(1), normalisation: Normalisation::NONE },
        layers: &layers,
        blocks: &[1],
        features: 1,
    };
    let model = Model { net, weights: Weights::Flat(&flat) };
    run(with, plan.bytes(), |b| {
        b.prepare(&model, 0, 1).expect("the weights are there");
        write(b, plan.input(), &x);
        let params = EvalParams::Model { model, first: 0 };
        let block = EvalBlock { chain, params, plan, pass: Pass::Eval, n: shape.n };
        let y = b.eval_block(&block).expect("the layer runs");
        tolerance.check(&format!("{what}, from a model"), &read(b, y), &expected);
    });
}

/// The layer behind one that changes nothing, planned for training.
struct Bench {
    layers: [Layer; 2],
    shape: Shape,
    params: plan::Params,
    x: Slot,
    plan: plan::Train,
    bytes: usize,
}

impl Bench {
    fn new(with: With, shape: Shape, layer: Layer) -> Self {
        let layers = [BEFORE, layer];
        let chain = Chain::new(&layers);
        let params = plan::Params::new(0, chain, shape, 0).expect("small");
        let mut cut = Cut { bytes: params.bytes() };
        let x = cut.slot(shape, Dtype::F32);
        let plan = ask(with, |b| {
            backend::plan_train(
                b,
                cut.bytes,
                &chain,
                Slot::new(0, shape, Dtype::F32),
                &Objective::Statistics,
            )
        });
        let plan = plan.expect("the layer can be planned");
        Self { layers, shape, params, x, plan, bytes: cut.bytes + plan.bytes() }
    }

    fn block(&self, phase: Phase) -> TrainBlock<'_> {
        let chain = Chain::new(&self.layers);
        TrainBlock { chain, params: self.params, plan: self.plan, x: self.x, phase }
    }

    fn slots(&self) -> ParamSlots {
        let tensors = self.layers[1].tensors(self.shape).expect("small");
        self.params.walk().step(tensors).expect("small")
    }

    /// The layer's own call.
    fn call(&self, backend: &dyn Backend, phase: Phase) -> Call<'_> {
        let block = self.block(phase);
        let mut walk = block.plan.walk(block.x);
        let mut step = |at| {
            let needs = backend::needs(backend, &block.chain, at, walk.reached(), Pass::Train);
            walk.step(needs.expect("the layer runs").1).expect("it was planned")
        };
        let (_, place) = (step(0), step(1));
        Call { layer: &self.layers[1], index: 1, place, param: Param::Ram(self.slots()), phase }
    }

    fn forward(&self, backend: &mut dyn Backend, phase: Phase, x: &[f32], params: &Params) -> Slot {
        write(backend, self.x, x);
        write_params(backend, &self.slots(), params);
        backend.forward_block(&self.block(phase), 2).expect("the layer runs")
    }
}

fn train(with: With, shape: Shape, layer: Layer, phase: Phase, tolerance: Tolerance) {
    let what = format!("{layer:?} of {shape} in {phase:?}");
    let params = oracle::params(&layer, shape, 30);
    let x = input(shape, 2);
    let expected =
        oracle::Forward::new(&layer, shape, oracle::phase_of(phase, 1), &wide(&x), &params);
    let bench = Bench::new(with, shape, layer);
    run(with, bench.bytes, |b| {
        let y = bench.forward(b, phase, &x, &params);
        tolerance.check(&what, &read(b, y), &expected.y);
        let slots = bench.slots();
        let measured = [slots.mean, slots.variance];
        for (slot, expected) in measured.into_iter().zip(expected.measured()) {
            if !slot.is_empty() {
                tolerance.check(&format!("{what}, measured"), &read(b, slot), expected);
            }
        }
    });
}

fn gradient(with: With, shape: Shape, layer: Layer, tolerance: Tolerance) {
    let what = format!("{layer:?} of {shape}");
    let params = oracle::params(&layer, shape, 40);
    let x = input(shape, 3);
    let forward =
        oracle::Forward::new(&layer, shape, oracle::phase_of(TRAIN, 1), &wide(&x), &params);
    let dy = values(4, forward.y.len());
    let expected = forward.backward(&wide(&dy));
    let bench = Bench::new(with, shape, layer);
    run(with, bench.bytes, |b| {
        bench.forward(b, TRAIN, &x, &params);
        let call = bench.call(b, TRAIN);
        b.zero(bench.params.gradients()).expect("the slot is there");
        write(b, call.place.dy, &dy);
        b.backward(&call).expect("the layer runs backward");
        let dx = read(b, call.place.dx);
        // A gradient that is copied or dropped has no rounding to bear.
        let moved = match layer {
            Layer::MaxPool(MaxPool { window: w }) => {
                w.stride.0 >= w.kernel.0 && w.stride.1 >= w.kernel.1
            }
            _ => false,
        };
        let bound = if moved { Tolerance::EXACT } else { tolerance };
        bound.check(&format!("{what}: dx"), &dx, &expected.dx);
        let slots = bench.slots();
        let gradients = [slots.dweight, slots.dbias];
        for (slot, expected) in gradients.into_iter().zip(&expected.dparams) {
            if !slot.is_empty() {
                tolerance.check(&format!("{what}: parameters"), &read(b, slot), expected);
            }
        }
    });
}

/// Inputs that are hard on arithmetic: constants, duplicates, and numbers whose squares leave the
/// range of f32 at its lower end, or near its upper one when they are summed.
fn hard(shape: Shape) -> Vec<(&'static str, Vec<f32>)> {
    let plain = values(5, len(shape));
    let scaled = |scale: f32| plain.iter().map(|x| x * scale).collect::<Vec<_>>();
    let mut one_large = scaled(1.0);
    one_large[0] = 1e15;
    vec![
        ("zero", scaled(0.0)),
        ("constant", vec![7.3; plain.len()]),
        ("a large constant", vec![1e15; plain.len()]),
        ("duplicates", plain.iter().map(|x| x.signum()).collect()),
        ("large", scaled(1e15)),
        ("one large", one_large),
        ("tiny", scaled(1e-30)),
        ("subnormal", scaled(1e-40)),
        ("the smallest", vec![f32::from_bits(1); plain.len()]),
    ]
}

fn finite(with: With, shape: Shape, layer: Layer) {
    let params = oracle::params(&layer, shape, 50);
    let bench = Bench::new(with, shape, layer);
    for (name, x) in hard(shape) {
        run(with, bench.bytes, |b| {
            let check = |b: &mut dyn Backend, part: &str, slot: Slot| {
                let numbers = if slot.is_empty() { vec![] } else { read(b, slot) };
                let odd = numbers.iter().find(|x| !x.is_finite());
                assert_eq!(odd, None, "{layer:?} of {shape}, {name}: {part}");
            };
            let y = bench.forward(b, TRAIN, &x, &params);
            check(b, "output", y);
            let call = bench.call(b, TRAIN);
            b.zero(bench.params.gradients()).expect("the slot is there");
            write(b, call.place.dy, &values(6, len(y.shape)));
            b.backward(&call).expect("the layer runs backward");
            let slots = bench.slots();
            check(b, "dx", call.place.dx);
            check(b, "gradient of the weight", slots.dweight);
            check(b, "gradient of the bias", slots.dbias);
            check(b, "mean", slots.mean);
            check(b, "variance", slots.variance);
        });
    }
}
