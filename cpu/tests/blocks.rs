//! Layers whose input lies in blocks of eight channels, against the reference: channels on either
//! side of a block, every set of instructions, any number of threads.

mod common;

use common::*;
use sepal_core::arena::{Dtype, Layout, Slot, Word};
use sepal_core::backend::{
    self, Backend, Device, EvalBlock, EvalParams, Host, HostMut, ObjectivePlace, Phase, TrainBlock,
    plan_eval, plan_train,
};
use sepal_core::layer::*;
use sepal_core::loss::Score;
use sepal_core::plan::{self, Chain, Reached};
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;
use sepal_core::stage::{Loss, Objective};
use sepal_cpu::{Cpu, Instructions, OnCpu};

const TRAIN: Phase = Phase::Train { seed: 5, update: 2 };
const PHASES: [Phase; 4] =
    [Phase::Eval, TRAIN, Phase::Calibrate { seen: 0 }, Phase::Calibrate { seen: 40 }];

/// Runs a layer on both backends, in every phase.
#[track_caller]
fn agree(layer: Layer, shape: Shape, tolerance: Tolerance) {
    let input = Input::new(&layer, shape, 7);
    for phase in PHASES {
        let pass = if phase == Phase::Eval { Pass::Eval } else { Pass::Train };
        let mut memory = nan(bytes(&Reference::new(&mut []), &layer, shape, pass));
        let expected = run(&mut Reference::new(&mut memory), &layer, shape, phase, &input, true);
        for with in Instructions::all() {
            let name = format!("{} {shape} {with:?} {phase:?}", layer.name());
            let x = (shape, Layout::Nchw8c);
            let mut memory = nan(bytes_in(&Cpu::new(&mut []), &layer, x, pass));
            let mut cpu = Cpu::new(&mut memory).with_instructions(with);
            let got = run_in(&mut cpu, &layer, x, phase, &input, true);
            close(&format!("{name} y"), &got.y, &expected.y, tolerance);
            close(&format!("{name} dx"), &got.dx, &expected.dx, tolerance);
            close(&format!("{name} dw"), &got.dw, &expected.dw, tolerance);
            close(&format!("{name} db"), &got.db, &expected.db, tolerance);
            close(&format!("{name} mean"), &got.mean, &expected.mean, tolerance);
            close(&format!("{name} variance"), &got.variance, &expected.variance, tolerance);
        }
    }
}

/// Channels on either side of a block, odd sizes, one place, more samples than groups of them.
fn shapes() -> impl Iterator<Item = Shape> {
    let channels = [1, 3, 6, 8, 9, 16, 17]
        .into_iter()
        .flat_map(|c| [Shape::new(2, c, 3, 5), Shape::new(3, c, 4, 4), Shape::new(5, c, 1, 1)]);
    channels.chain([
        Shape::new(1, 3, 1, 1),
        Shape::new(40, 6, 7, 9),
        Shape::new(2, 9, 40, 33),
        Shape::new(130, 17, 2, 2),
    ])
}

#[test]
fn norms() {
    for shape in shapes().filter(|shape| shape.n * shape.plane() > 4) {
        for affine in [false, true] {
            let layer = BatchNorm { affine, eps: 1e-3, ..BatchNorm::new() };
            agree(Layer::BatchNorm(layer), shape, Tolerance { relative: 5e-5 });
        }
    }
}

#[test]
fn layers_of_single_numbers() {
    for shape in shapes() {
        for layer in [
            Activation::Relu,
            Activation::Relu6,
            Activation::LeakyRelu { slope: 0.1 },
            Activation::Tanh,
        ] {
            agree(Layer::Activation(layer), shape, EXACT);
        }
        for rate in [0.0, 0.3] {
            agree(Layer::Dropout(Dropout { rate }), shape, EXACT);
        }
        agree(Layer::Standardise(Standardise), shape, EXACT);
        agree(Layer::L2Normalise(L2Normalise), shape, PRODUCTS);
    }
}

#[test]
fn layers_that_leave_the_blocks() {
    for shape in shapes() {
        for (h, w) in [(1, 1), (2, 3), (7, 7)] {
            agree(Layer::AvgPoolTo(AvgPoolTo { h, w }), shape, PRODUCTS);
        }
        for layer in [
            Layer::Flatten(Flatten),
            Layer::GlobalAvgPool(GlobalAvgPool),
            Layer::ChannelStd(ChannelStd),
            Layer::Project(Project { dim: 5, seed: 3 }),
            Layer::Dense(Dense::new(9)),
        ] {
            agree(layer, shape, PRODUCTS);
        }
        let one = Shape { c: 1, ..shape };
        agree(Layer::Embedding(Embedding { tokens: 2, dim: 3 }), one, PRODUCTS);
        for layer in [1, 2, 8].map(|k| Layer::KMaxPool(KMaxPool { k })) {
            if layer.output(shape).is_some() {
                agree(layer, shape, EXACT);
            }
        }
        for layer in [1, 2, 3].map(|factor| Layer::SpaceToDepth(SpaceToDepth { factor })) {
            if layer.output(shape).is_some() {
                agree(layer, shape, EXACT);
            }
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
        Window { kernel: (2, 2), stride: (3, 3), pad: (0, 0) },
        Window { kernel: (2, 3), stride: (2, 2), pad: (1, 2) },
        Window { kernel: (15, 15), stride: (4, 3), pad: (7, 7) },
    ];
    for shape in shapes() {
        for window in windows.into_iter().filter(|window| window.output(shape).is_some()) {
            agree(Layer::AvgPool(AvgPool { window }), shape, PRODUCTS);
            let pool = MaxPool { window };
            if pool.output(shape).is_some() {
                // Sums of the gradients of windows that overlap.
                agree(Layer::MaxPool(pool), shape, PRODUCTS);
            }
        }
    }
    // Windows in the padding alone.
    let window = Window { kernel: (1, 1), stride: (1, 1), pad: (1, 2) };
    agree(Layer::AvgPool(AvgPool { window }), Shape::new(1, 3, 2, 2), PRODUCTS);
}

/// Ties, infinities and NaN in every place of a window.
#[test]
fn maxima_of_hard_windows() {
    let (nan_, inf) = (f32::NAN, f32::INFINITY);
    let hard = [0.0, -0.0, 1.0, nan_, inf, -inf];
    let codes = hard.len().pow(4) as u32;
    for (window, shape) in [
        (Window::square(2), Shape::new(codes, 1, 2, 2)),
        (Window { stride: (1, 1), ..Window::square(2) }, Shape::new(codes, 1, 2, 2)),
    ] {
        let layer = Layer::MaxPool(MaxPool { window });
        let mut input = Input::new(&layer, shape, 1);
        for (code, x) in input.x.chunks_exact_mut(4).enumerate() {
            let digit = |place: u32| hard[code / hard.len().pow(place) % hard.len()];
            x.copy_from_slice(&[digit(0), digit(1), digit(2), digit(3)]);
        }
        let mut memory = nan(bytes(&Reference::new(&mut []), &layer, shape, Pass::Train));
        let expected = run(&mut Reference::new(&mut memory), &layer, shape, TRAIN, &input, true);
        for with in Instructions::all() {
            let x = (shape, Layout::Nchw8c);
            let mut memory = nan(bytes_in(&Cpu::new(&mut []), &layer, x, Pass::Train));
            let mut cpu = Cpu::new(&mut memory).with_instructions(with);
            let got = run_in(&mut cpu, &layer, x, TRAIN, &input, true);
            close("y", &got.y, &expected.y, EXACT);
            close("dx", &got.dx, &expected.dx, EXACT);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let shape = Shape::new(37, 17, 9, 11);
    let layers = [
        Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() }),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::AvgPool(AvgPool::new(3)),
        Layer::GlobalAvgPool(GlobalAvgPool),
        Layer::ChannelStd(ChannelStd),
        Layer::AvgPoolTo(AvgPoolTo { h: 2, w: 3 }),
        Layer::Dropout(Dropout { rate: 0.4 }),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::L2Normalise(L2Normalise),
        Layer::Dense(Dense::new(7)),
        Layer::Project(Project { dim: 5, seed: 3 }),
        Layer::KMaxPool(KMaxPool { k: 4 }),
        Layer::SpaceToDepth(SpaceToDepth { factor: 1 }),
    ];
    let x = (shape, Layout::Nchw8c);
    for layer in layers {
        let input = Input::new(&layer, shape, 7);
        let run = |threads| {
            let mut memory = nan(bytes_in(&Cpu::new(&mut []), &layer, x, Pass::Train));
            let device = OnCpu::with_threads(threads).unwrap();
            run_in(&mut device.open(&mut memory).unwrap(), &layer, x, TRAIN, &input, true)
        };
        let one = run(1);
        for threads in [2, 5] {
            assert!(run(threads) == one, "{} on {threads} threads", layer.name());
        }
    }
}

/// What a block's pass leaves behind: its output, gradients and measured parameters.
type Left = [Vec<f32>; 3];

/// Where a block works whose input lies in a layout.
struct Block<'a> {
    block: TrainBlock<'a>,
    bytes: usize,
}

impl<'a> Block<'a> {
    fn new<B: Backend>(backend: &B, layers: &'a [Layer], x: (Shape, Layout)) -> Self {
        let chain = Chain::new(layers);
        let params = plan::Params::new(0, chain, x.0, 0).unwrap();
        let at = params.bytes();
        let x = Slot { layout: x.1, ..Slot::new(at, x.0, Dtype::F32) };
        let at = at + Word::round_up(x.bytes());
        let plan = plan_train(backend, at, &chain, x, &Objective::Statistics).unwrap();
        let block = TrainBlock { chain, params, plan, x, phase: TRAIN };
        Self { block, bytes: at + plan.bytes() }
    }

    fn run<B: Backend>(&self, backend: &mut B, x: &[f32]) -> Left {
        let Self { block, .. } = self;
        let trained = block.params.trained().elements();
        let numbers: Vec<f32> = values(3, trained).iter().map(|x| x + 0.5).collect();
        backend.write(block.params.trained(), Host::F32(&numbers)).unwrap();
        backend.zero(block.params.gradients()).unwrap();
        backend.zero(block.params.measured()).unwrap();
        backend.write(block.x, Host::F32(x)).unwrap();
        let y = backend.forward_block(block, block.chain.len()).unwrap();
        let mut out = vec![f32::NAN; len(y.shape)];
        backend.read(y, HostMut::F32(&mut out)).unwrap();
        let mut walk = block.plan.walk(block.x);
        for at in 0..block.chain.len() {
            let (_, needs) =
                backend::needs(backend, &block.chain, at, walk.reached(), Pass::Train).unwrap();
            walk.step(needs).unwrap();
        }
        backend.write(walk.dx(), Host::F32(&values(5, out.len()))).unwrap();
        backend.backward_block(block).unwrap();
        let mut read = |slot: Slot| {
            let mut numbers = vec![f32::NAN; slot.elements()];
            backend.read(slot, HostMut::F32(&mut numbers)).unwrap();
            numbers
        };
        [out, read(block.params.gradients()), read(block.params.measured())]
    }
}

/// Norms, activations and pools that run together, behind a norm that says what gradient they
/// gave.
#[test]
fn layers_that_run_together() {
    let norm = Layer::BatchNorm(BatchNorm { affine: true, eps: 1e-2, ..BatchNorm::new() });
    let leaky = Layer::Activation(Activation::LeakyRelu { slope: 0.2 });
    let relu6 = Layer::Activation(Activation::Relu6);
    let tanh = Layer::Activation(Activation::Tanh);
    let two = Layer::MaxPool(MaxPool::new(2));
    let window =
        |kernel, stride, pad| Layer::MaxPool(MaxPool { window: Window { kernel, stride, pad } });
    let over = window((3, 3), (2, 2), (1, 1));
    let tall = window((12, 11), (3, 2), (5, 5));
    let chains: [&[Layer]; 14] = [
        &[norm, norm, RELU],
        &[norm, norm, leaky],
        &[norm, norm, two],
        &[norm, norm, RELU, two],
        &[norm, norm, leaky, two],
        &[norm, norm, relu6, over],
        &[norm, norm, RELU, over],
        &[norm, tanh, RELU, two],
        &[norm, leaky, two, RELU, over],
        &[norm, norm, tanh, two],
        &[norm, norm, RELU, tall],
        &[norm, leaky, tall],
        &[norm, RELU, two, norm, RELU, two, leaky],
        &[RELU, two, norm, two],
    ];
    for c in [1, 6, 8, 9, 17] {
        for (n, h, w) in [(3, 6, 8), (2, 7, 9), (19, 4, 5)] {
            let shape = Shape::new(n, c, h, w);
            for layers in chains.into_iter().filter(|l| Chain::new(l).shape(shape, l.len()).is_ok())
            {
                let x: Vec<f32> = values(1, len(shape)).iter().map(|x| 4.0 * x).collect();
                let plain = Block::new(&Reference::new(&mut []), layers, (shape, Layout::Nchw));
                let expected = plain.run(&mut Reference::new(&mut nan(plain.bytes)), &x);
                for with in Instructions::all() {
                    let x_in = (shape, Layout::Nchw8c);
                    let block = Block::new(&Cpu::new(&mut []), layers, x_in);
                    let mut memory = nan(block.bytes);
                    let mut cpu = Cpu::new(&mut memory).with_instructions(with);
                    let got = block.run(&mut cpu, &x);
                    for (what, (got, expected)) in
                        ["y", "gradients", "measured"].iter().zip(got.iter().zip(&expected))
                    {
                        let names: Vec<_> = layers.iter().map(Layer::name).collect();
                        let what = format!("{what} of {names:?} {shape} {with:?}");
                        close(&what, got, expected, Tolerance { relative: 2e-4 });
                    }
                }
                for threads in [2, 5] {
                    let run = |threads| {
                        let x_in = (shape, Layout::Nchw8c);
                        let block = Block::new(&Cpu::new(&mut []), layers, x_in);
                        let device = OnCpu::with_threads(threads).unwrap();
                        block.run(&mut device.open(&mut nan(block.bytes)).unwrap(), &x)
                    };
                    if n == 19 {
                        assert!(run(threads) == run(1), "{threads} threads");
                    }
                }
            }
        }
    }
}

/// Norms, activations and pools within the convolution before them, each there or not.
#[test]
fn layers_within_a_convolution() {
    let conv = Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(9, 3) });
    let bare = Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(5, 2) });
    let norm = |affine| Layer::BatchNorm(BatchNorm { affine, eps: 1e-2, ..BatchNorm::new() });
    let window = Window { kernel: (3, 2), stride: (2, 1), pad: (1, 0) };
    let norms = [None, Some(norm(true)), Some(norm(false))];
    let activations = [
        None,
        Some(RELU),
        Some(Layer::Activation(Activation::Relu6)),
        Some(Layer::Activation(Activation::LeakyRelu { slope: 0.2 })),
        Some(Layer::Activation(Activation::LeakyRelu { slope: 1.5 })),
        Some(Layer::Activation(Activation::Tanh)),
    ];
    let pools = [
        None,
        Some(Layer::MaxPool(MaxPool::new(2))),
        Some(Layer::AvgPool(AvgPool { window })),
        Some(Layer::GlobalAvgPool(GlobalAvgPool)),
    ];
    let shape = Shape::new(3, 2, 9, 8);
    for conv in [conv, bare] {
        for norm in norms {
            for activation in activations {
                for pool in pools {
                    let dropout = Some(Layer::Dropout(Dropout { rate: 0.5 }));
                    let layers: Vec<Layer> = [Some(conv), norm, activation, pool, dropout]
                        .into_iter()
                        .flatten()
                        .collect();
                    let chain = Chain::new(&layers);
                    let plan = |backend: &dyn Backend| Evaluation::new(backend, &chain, shape);
                    let plain = plan(&Reference::new(&mut []));
                    let expected = plain.run(&mut Reference::new(&mut nan(plain.bytes)));
                    for with in Instructions::all() {
                        let own = plan(&Cpu::new(&mut []));
                        let mut memory = nan(own.bytes);
                        let mut cpu = Cpu::new(&mut memory).with_instructions(with);
                        let names: Vec<_> = layers.iter().map(Layer::name).collect();
                        let what = format!("{names:?} {with:?}");
                        close(&what, &own.run(&mut cpu), &expected, PRODUCTS);
                    }
                }
            }
        }
    }
}

/// A chain evaluated with parameters in the arena.
struct Evaluation<'a> {
    chain: Chain<'a>,
    params: plan::Params,
    plan: plan::Eval,
    bytes: usize,
}

impl<'a> Evaluation<'a> {
    fn new(backend: &dyn Backend, chain: &Chain<'a>, shape: Shape) -> Self {
        let params = plan::Params::new(0, *chain, shape, 0).unwrap();
        let plan =
            plan_eval(backend, params.bytes(), chain, Slot::new(0, shape, Dtype::F32), Pass::Eval)
                .unwrap();
        Self { chain: *chain, params, plan, bytes: params.bytes() + plan.bytes() }
    }

    fn run(&self, backend: &mut dyn Backend) -> Vec<f32> {
        let Self { chain, params, plan, .. } = *self;
        let trained = values(1, params.trained().elements());
        backend.write(params.trained(), Host::F32(&trained)).unwrap();
        let measured = values(2, params.measured().elements());
        let measured: Vec<f32> = measured.iter().map(|x| x * x + 0.1).collect();
        backend.write(params.measured(), Host::F32(&measured)).unwrap();
        let (x, n) = (plan.input(), plan.input().shape.n);
        let numbers: Vec<f32> = values(3, len(x.shape)).iter().map(|x| 3.0 * x).collect();
        backend.write(x, Host::F32(&numbers)).unwrap();
        let params = EvalParams::Ram(params);
        let y = backend.eval_block(&EvalBlock { chain, params, plan, pass: Pass::Eval, n });
        let y = y.unwrap();
        let mut out = vec![f32::NAN; len(y.shape)];
        backend.read(y, HostMut::F32(&mut out)).unwrap();
        out
    }
}

/// What lies between layers that run together is never written.
#[test]
fn what_lies_between_is_left_out() {
    let norm = Layer::BatchNorm(BatchNorm::new());
    let pool = Layer::MaxPool(MaxPool::new(2));
    let shape = Shape::new(3, 16, 6, 6);
    // Under training: the norm's output, which the pool reads, is still what the memory held.
    let layers = [norm, RELU, pool];
    let block = Block::new(&Cpu::new(&mut []), &layers, (shape, Layout::Nchw8c));
    let mut memory = nan(block.bytes);
    let mut cpu = Cpu::new(&mut memory);
    block.run(&mut cpu, &values(1, len(shape)));
    let chain = block.block.chain;
    let mut walk = block.block.plan.walk(block.block.x);
    let needs = cpu.needs(&chain, 0, walk.reached(), Pass::Train).unwrap();
    let between = walk.step(needs).unwrap().y;
    let mut numbers = vec![0.0; len(between.shape)];
    cpu.read(between, HostMut::F32(&mut numbers)).unwrap();
    assert!(numbers.iter().all(|x| x.is_nan()));
    // Frozen: the convolution gives what the pool would, and the others only pass it on.
    let conv = Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(8, 3) });
    let layers = [conv, norm, RELU, pool];
    let chain = Chain::new(&layers);
    let mut x = Slot::new(0, shape, Dtype::F32);
    for at in 0..layers.len() {
        let needs = cpu.needs(&chain, at, Reached::first(x), Pass::Eval).unwrap();
        assert_eq!((needs.out, needs.view), (Shape::new(3, 8, 3, 3), at > 0), "{at}");
        x = Slot { shape: needs.out, layout: needs.layout, ..x };
    }
}

/// Objectives over features that lie in blocks of eight channels.
#[test]
fn objectives() {
    for shape in [Shape::new(9, 3, 4, 5), Shape::new(16, 10, 1, 1), Shape::new(37, 16, 2, 1)] {
        let x: Vec<f32> = values(1, len(shape)).iter().map(|x| 0.3 * x).collect();
        let labels: Vec<u16> = (0..shape.n).map(|i| (i * 7 / 3) as u16 % 3).collect();
        for objective in [
            Objective::Separation(Loss::Triplet),
            Objective::Separation(Loss::Margin { margin: 0.2 }),
            Objective::Separation(Loss::SoftNearest { temperature: 0.5 }),
            Objective::Separation(Loss::SoftCentre { temperature: 0.5 }),
            Objective::CrossEntropy { smoothing: 0.1 },
        ] {
            let plain = (shape, Layout::Nchw);
            let (score, expected) =
                judge(Reference::new, &Reference::new(&mut []), objective, plain, &x, &labels);
            let x_in = (shape, Layout::Nchw8c);
            let (own, got) = judge(Cpu::new, &Cpu::new(&mut []), objective, x_in, &x, &labels);
            let what = format!("{objective:?} {shape}");
            close(&what, &got, &expected, PRODUCTS);
            close(&what, &[own.value], &[score.value], PRODUCTS);
            let counts = |score: &Score| (score.anchors, score.skipped, score.correct);
            assert_eq!(counts(&own), counts(&score), "{what}");
        }
    }
}

/// An objective's score and gradient, of which the padding must be zeros.
fn judge<B: Backend>(
    open: fn(&'static mut [Word]) -> B,
    planner: &dyn Backend,
    objective: Objective,
    (shape, layout): (Shape, Layout),
    x: &[f32],
    labels: &[u16],
) -> (Score, Vec<f32>) {
    let features = Slot { layout, ..Slot::new(0, shape, Dtype::F32) };
    let gradient = Slot { at: Word::round_up(features.bytes()), ..features };
    let past = gradient.at + Word::round_up(gradient.bytes());
    let pairs = Slot::vector(past, if objective.pairs() { shape.n } else { 0 }, Dtype::Pair);
    let label_slot = Slot::vector(past + 16 * shape.n as usize, shape.n, Dtype::U16);
    let at = label_slot.at + Word::round_up(label_slot.bytes());
    let bytes = Word::round_up(planner.objective_scratch(&objective, features));
    let scratch = Slot::vector(at, bytes as u32, Dtype::U8);
    let mut backend = open(nan(at + bytes).leak());
    backend.write(features, Host::F32(x)).unwrap();
    backend.write(label_slot, Host::U16(labels)).unwrap();
    let at = ObjectivePlace { features, labels: label_slot, pairs, scratch, gradient };
    let score = backend.objective(&objective, &at).unwrap();
    let mut all = vec![f32::NAN; gradient.elements()];
    let flat = Slot::vector(gradient.at, gradient.elements() as u32, Dtype::F32);
    backend.read(flat, HostMut::F32(&mut all)).unwrap();
    let mut numbers = vec![f32::NAN; len(shape)];
    backend.read(gradient, HostMut::F32(&mut numbers)).unwrap();
    let zeros = |x: &[f32]| x.iter().filter(|x| **x == 0.0).count();
    assert_eq!(zeros(&all) - zeros(&numbers), all.len() - numbers.len(), "the padding");
    (score, numbers)
}
