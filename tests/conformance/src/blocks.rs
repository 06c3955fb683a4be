//! Layers in a row: whole blocks against their layers chained in memory of their own. What a plan
//! overwrites too early shows here.

use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{self, Backend, EvalBlock, EvalParams, Phase, TrainBlock};
use sepal_core::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, ChannelStd, Conv2d, Dense, Dropout, Embedding,
    Flatten, GlobalAvgPool, KMaxPool, L2Normalise, Layer, MaxPool, Pass, Project, Projection, RELU,
    Residual, Role, SpaceToDepth, Standardise, Window,
};
use sepal_core::plan::{self, Chain};
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;
use sepal_core::stage::Objective;

use crate::oracle::{self, Params};
use crate::{Cut, Tolerance, With, ask, len, read, run, values, wide, write};

const TRAIN: Phase = Phase::Train { seed: 5, update: 2 };
const TANH: Layer = Layer::Activation(Activation::Tanh);
const LEAKY: Layer = Layer::Activation(Activation::LeakyRelu { slope: 0.2 });
const FLATTEN: Layer = Layer::Flatten(Flatten);
const L2: Layer = Layer::L2Normalise(L2Normalise);
const DROPOUT: Layer = Layer::Dropout(Dropout { rate: 0.3 });
const STANDARDISE: Layer = Layer::Standardise(Standardise);
const NORM: Layer = Layer::BatchNorm(BatchNorm { affine: true, eps: 1e-3, momentum: 0.1 });

const fn conv(filters: u32) -> Layer {
    Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(filters, 3) })
}

const fn dense(units: u32) -> Layer {
    Layer::Dense(Dense { units, bias: true })
}

const fn max_pool(size: u8) -> Layer {
    Layer::MaxPool(MaxPool { window: Window::square(size) })
}

const fn add(back: u8) -> Layer {
    Layer::Residual(Residual::new(back))
}

/// An addition of what has `channels`, every `stride`-th place of it.
const fn project(back: u8, channels: u32, stride: u8) -> Layer {
    let project = Some(Projection { channels, stride: (stride, stride) });
    Layer::Residual(Residual { back, project })
}

const fn half(filters: u32) -> Layer {
    Layer::Conv2d(Conv2d { stride: (2, 2), pad: (1, 1), ..Conv2d::new(filters, 3) })
}

/// A chain's parameters, input, and where they lie for training.
struct Bench<'a> {
    chain: Chain<'a>,
    shape: Shape,
    numbers: Vec<Params>,
    params: plan::Params,
    x: Slot,
    plan: plan::Train,
    bytes: usize,
}

impl<'a> Bench<'a> {
    fn new(with: With, layers: &'a [Layer], shape: Shape) -> Self {
        // The last layer is given as a head: chains of two parts are chains.
        let (body, head) = layers.split_at(layers.len() - 1);
        let chain = Chain { head, ..Chain::new(body) };
        let mut reached = shape;
        let numbers = (1..)
            .zip(layers)
            .map(|(at, layer)| {
                let numbers = oracle::params(layer, reached, 50 * at);
                reached = layer.output(reached).expect("the layers fit each other");
                numbers
            })
            .collect();
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
        let plan = plan.expect("the chain can be planned");
        Self { chain, shape, numbers, params, x, plan, bytes: cut.bytes + plan.bytes() }
    }

    fn block(&self) -> TrainBlock<'_> {
        let Self { chain, params, plan, x, .. } = *self;
        TrainBlock { chain, params, plan, x, phase: TRAIN }
    }

    /// The slots of each layer's parameters.
    fn slots(&self) -> Vec<plan::ParamSlots> {
        let (mut walk, mut shape) = (self.params.walk(), self.shape);
        (0..self.chain.len())
            .map(|at| {
                let layer = self.chain.get(at).expect("within the chain");
                let slots = walk.step(layer.tensors(shape).expect("small")).expect("small");
                shape = layer.output(shape).expect("the layers fit each other");
                slots
            })
            .collect()
    }

    fn load(&self, backend: &mut dyn Backend, x: &[f32]) {
        for (slots, numbers) in self.slots().iter().zip(&self.numbers) {
            for (role, numbers) in Role::ALL.into_iter().zip(numbers) {
                if !numbers.is_empty() {
                    write(backend, slots.get(role), numbers);
                }
            }
        }
        write(backend, self.x, x);
    }

    /// The gradient of the chain's output.
    fn dy(&self, backend: &dyn Backend) -> Slot {
        let mut walk = self.plan.walk(self.x);
        for at in 0..self.chain.len() {
            let needs = backend::needs(backend, &self.chain, at, walk.reached(), Pass::Train);
            walk.step(needs.expect("the layer runs").1).expect("it was planned");
        }
        walk.dx()
    }

    /// Forward and backward once; gives the output.
    fn pass(&self, backend: &mut dyn Backend, x: &[f32], dy: &[f32]) -> Vec<f32> {
        self.load(backend, x);
        let y = backend.forward_block(&self.block(), self.chain.len()).expect("the block runs");
        let y = read(backend, y);
        let slot = self.dy(backend);
        write(backend, slot, dy);
        backend.backward_block(&self.block()).expect("the block runs backward");
        y
    }

    fn input(&self) -> Vec<f32> {
        values(9, len(self.shape)).into_iter().map(|x| 2.0 * x).collect()
    }
}

/// Output, parameter gradients and evaluation of a chain, against the layers' own functions in
/// `f64`. A backend whose kernels have tiles gives shapes past them.
///
/// # Panics
/// Where values do not agree.
pub fn check(with: With, layers: &[Layer], shape: Shape) {
    let names: Vec<_> = layers.iter().map(Layer::name).collect();
    let what = names.join(", ");
    let bench = Bench::new(with, layers, shape);
    let x = bench.input();
    let steps = oracle::forward(layers, shape, TRAIN, &wide(&x), &bench.numbers);
    let y = steps.last().expect("there is a layer").y.clone();
    let dy = values(8, y.len());
    let expected = oracle::backward(&steps, &wide(&dy));
    let gradient: f64 = expected.iter().flatten().flatten().map(|g| g.abs()).sum();
    assert!(gradient > 1e-3, "{what}: the gradients say something");
    run(with, bench.bytes, |b| {
        b.zero(bench.params.gradients()).expect("the slot is there");
        Tolerance::BLOCK.check(&what, &bench.pass(b, &x, &dy), &y);
        for (at, (slots, expected)) in bench.slots().iter().zip(&expected).enumerate() {
            for (slot, expected) in [slots.dweight, slots.dbias].into_iter().zip(expected) {
                if !slot.is_empty() {
                    let what = format!("{what}: gradient of layer {at}");
                    Tolerance::BLOCK.check(&what, &read(b, slot), expected);
                }
            }
        }
    });

    let steps = oracle::forward(layers, shape, Phase::Eval, &wide(&x), &bench.numbers);
    let y = &steps.last().expect("there is a layer").y;
    let at = bench.params.bytes();
    let plan = ask(with, |b| {
        backend::plan_eval(b, at, &bench.chain, Slot::new(at, shape, Dtype::F32), Pass::Eval)
    });
    let plan = plan.expect("the chain can be planned");
    // The training input's slot is written too.
    let bytes = bench.bytes.max(at + plan.bytes());
    run(with, bytes, |b| {
        bench.load(b, &x);
        write(b, plan.input(), &x);
        let params = EvalParams::Ram(bench.params);
        let block = EvalBlock { chain: bench.chain, params, plan, pass: Pass::Eval, n: shape.n };
        let slot = b.eval_block(&block).expect("the block runs");
        Tolerance::BLOCK.check(&format!("{what}, evaluated"), &read(b, slot), y);
    });
}

/// A block as most nets have it.
pub fn convolution_norm_pool(with: With) {
    for shape in [Shape::new(4, 2, 6, 6), Shape::new(3, 1, 7, 5)] {
        check(with, &[conv(5), NORM, RELU, max_pool(2), FLATTEN, L2], shape);
    }
    let plain = Layer::BatchNorm(BatchNorm::new());
    let conv = Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(4, 3) });
    check(with, &[conv, plain, RELU, max_pool(2)], Shape::new(4, 2, 8, 8));
}

/// A block as LeNet had it.
pub fn convolution_tanh_pool(with: With) {
    let pool = Layer::AvgPool(AvgPool { window: Window::square(2) });
    check(with, &[conv(3), TANH, pool], Shape::new(2, 3, 6, 4));
    check(with, &[conv(3), TANH, pool, conv(2), TANH, pool], Shape::new(2, 1, 8, 8));
}

/// A head.
pub fn dense_dropout(with: With) {
    check(with, &[dense(9), RELU, DROPOUT, dense(4)], Shape::new(5, 2, 3, 3));
}

/// Tanh reads its own output in backward: what follows may not overwrite it. (ReLU would do no
/// harm, because it drops the gradient where it drops the value; leaky ReLU and dropout would.)
pub fn relu_over_tanh(with: With) {
    check(with, &[conv(3), TANH, LEAKY, conv(2)], Shape::new(2, 2, 4, 4));
    check(with, &[dense(6), TANH, DROPOUT, dense(3)], Shape::rows(4, 5));
    check(with, &[dense(6), TANH, TANH, STANDARDISE, dense(3)], Shape::rows(4, 5));
    check(with, &[conv(3), TANH, RELU, conv(2)], Shape::new(2, 2, 4, 4));
    check(with, &[dense(6), RELU, TANH, LEAKY, dense(3)], Shape::rows(4, 5));
}

/// A view between them does not make it free.
pub fn unit_length_over_relu(with: With) {
    let shape = Shape::new(3, 2, 4, 4);
    check(with, &[conv(3), RELU, FLATTEN, L2], shape);
    check(with, &[conv(3), TANH, FLATTEN, L2], shape);
    check(with, &[conv(3), TANH, FLATTEN, FLATTEN, DROPOUT, dense(2)], shape);
    check(with, &[conv(3), L2, FLATTEN, TANH, dense(2)], shape);
    check(with, &[conv(3), LEAKY, FLATTEN, FLATTEN, TANH, dense(2)], shape);
}

/// Dropout may not overwrite what ReLU keeps; ReLU may overwrite what dropout gave.
pub fn relu_over_dropout(with: With) {
    check(with, &[dense(8), RELU, DROPOUT], Shape::rows(6, 4));
    check(with, &[dense(8), DROPOUT, RELU, dense(3)], Shape::rows(6, 4));
    check(with, &[conv(4), NORM, DROPOUT, RELU, DROPOUT, dense(3)], Shape::new(4, 1, 5, 5));
}

/// The block's input may be overwritten by its first layer, and is read after it.
pub fn first_layer_in_place(with: With) {
    let shape = Shape::new(3, 2, 4, 4);
    for first in [TANH, RELU, LEAKY, DROPOUT, STANDARDISE, L2, FLATTEN] {
        check(with, &[first, dense(4), RELU, dense(3)], shape);
        check(with, &[first, TANH, dense(3)], shape);
    }
    check(with, &[NORM, RELU, conv(3)], shape);
    check(with, &[max_pool(2), RELU, conv(3)], shape);
}

/// Views of views.
pub fn views_in_a_row(with: With) {
    let shape = Shape::new(3, 2, 3, 3);
    check(with, &[conv(2), FLATTEN, FLATTEN, FLATTEN, dense(4)], shape);
    check(with, &[conv(2), TANH, FLATTEN, FLATTEN, RELU, FLATTEN, dense(4)], shape);
    check(with, &[FLATTEN, FLATTEN, dense(4), FLATTEN], shape);
}

/// A norm keeps its input, and does not overwrite what lies before it.
pub fn norms_in_a_row(with: With) {
    let shape = Shape::new(4, 2, 4, 4);
    check(with, &[conv(3), NORM, LEAKY, NORM, conv(2)], shape);
    check(with, &[conv(3), NORM, NORM, TANH], shape);
    check(with, &[dense(6), NORM, DROPOUT, NORM, L2], Shape::rows(6, 4));
}

/// Layers that read their input in backward, behind layers that read their output.
pub fn deviation_and_projection(with: With) {
    let project = Layer::Project(Project { dim: 6, seed: 3 });
    let deviation = Layer::ChannelStd(ChannelStd);
    let shape = Shape::new(3, 2, 4, 4);
    check(with, &[conv(5), RELU, deviation, L2], shape);
    check(with, &[conv(5), deviation, TANH, project, L2], shape);
    check(with, &[conv(5), TANH, FLATTEN, project, L2, dense(3)], shape);
}

/// Tokens, convolutions and pools along rows, the largest places of each, and what follows them.
pub fn text(with: With) {
    let embedding = Layer::Embedding(Embedding { tokens: 3, dim: 4 });
    let along =
        |filters| Layer::Conv2d(Conv2d { kernel: (1, 3), pad: (0, 1), ..Conv2d::new(filters, 1) });
    let pool =
        Layer::MaxPool(MaxPool { window: Window { kernel: (1, 3), stride: (1, 2), pad: (0, 1) } });
    let largest = Layer::KMaxPool(KMaxPool { k: 3 });
    let shape = Shape::new(4, 1, 1, 13);
    check(with, &[embedding, along(5), NORM, RELU, pool, along(9), RELU, largest, dense(2)], shape);
    check(with, &[embedding, along(17), NORM, TANH, largest, L2], shape);
    check(with, &[embedding, largest, FLATTEN, dense(3)], shape);
}

/// Planes that become channels, in front of convolutions and behind them.
pub fn planes_to_channels(with: With) {
    let down = Layer::SpaceToDepth(SpaceToDepth { factor: 2 });
    let shape = Shape::new(3, 2, 4, 8);
    check(with, &[down, conv(5), NORM, RELU, down, conv(9), RELU, FLATTEN, dense(2)], shape);
    check(with, &[conv(3), down, TANH, L2], shape);
}

/// Gradients that change ends at each layer.
pub fn pools_in_a_row(with: With) {
    let average =
        Layer::AvgPool(AvgPool { window: Window { kernel: (3, 2), stride: (2, 1), pad: (1, 0) } });
    let bins = Layer::AvgPoolTo(AvgPoolTo { h: 3, w: 2 });
    let global = Layer::GlobalAvgPool(GlobalAvgPool);
    let shape = Shape::new(3, 2, 9, 8);
    check(with, &[conv(3), max_pool(2), average, RELU, bins, global, dense(2)], shape);
    check(with, &[conv(3), average, bins, max_pool(1), L2], shape);
    check(with, &[conv(3), bins, global, FLATTEN, TANH], shape);
}

/// Nothing moves but the first layer.
pub fn everything_in_place(with: With) {
    let layers = [dense(8), STANDARDISE, DROPOUT, STANDARDISE, TANH, L2];
    check(with, &layers, Shape::rows(4, 5));
    check(with, &[dense(8), L2, L2, TANH, TANH], Shape::rows(4, 5));
}

/// Units of a ResNet: the sum of what they read and of a branch, or of its projection, and ReLU.
pub fn residual_units(with: With) {
    for (c, shape) in
        [(3, Shape::new(3, 2, 6, 6)), (8, Shape::new(2, 3, 4, 5)), (9, Shape::new(2, 1, 7, 5))]
    {
        let unit = [conv(c), NORM, RELU, conv(c), NORM, add(5), RELU];
        let (first, second) = ([conv(c), NORM, RELU], [dense(2)]);
        check(with, &[&first[..], &unit, &second].concat(), shape);
        check(with, &[&first[..], &unit, &unit, &second].concat(), shape);
        let smaller = [half(2 * c), NORM, RELU, conv(2 * c), NORM, project(5, c, 2), RELU];
        check(with, &[&first[..], &smaller, &second].concat(), shape);
        check(with, &[&first[..], &unit, &smaller, &second].concat(), shape);
        // The block's input is added: its gradient is nobody's, that of the projection is.
        let c = shape.c;
        check(with, &[conv(c), NORM, add(2), RELU, conv(2)], shape);
        check(with, &[half(5), NORM, project(2, c, 2), RELU, conv(2)], shape);
        check(with, &[conv(4), RELU, conv(c), project(3, c, 1)], shape);
    }
}

/// Three convolutions in a branch, ReLU6 within it and none behind the sum; depthwise ones.
pub fn residual_bottlenecks(with: With) {
    let depthwise = |c| Layer::Conv2d(Conv2d { groups: c, pad: (1, 1), ..Conv2d::new(c, 3) });
    let point = |filters| Layer::Conv2d(Conv2d::new(filters, 1));
    let relu6 = Layer::Activation(Activation::Relu6);
    let unit = [point(12), NORM, relu6, depthwise(12), NORM, relu6, point(3), NORM, add(8)];
    check(
        with,
        &[&[conv(3), NORM][..], &unit, &unit, &[dense(2)]].concat(),
        Shape::new(3, 2, 5, 4),
    );
    let smaller = [point(4), RELU, half(4), RELU, point(9), project(5, 3, 2)];
    check(with, &[&[conv(3), LEAKY][..], &smaller, &[TANH]].concat(), Shape::new(2, 2, 6, 6));
}

/// Norm and activation in front: the layers that read what is added would overwrite it.
pub fn residual_before_norms(with: With) {
    let unit = [NORM, RELU, conv(3), NORM, LEAKY, conv(3), add(6)];
    let shape = Shape::new(3, 2, 4, 4);
    check(with, &[&[conv(3)][..], &unit, &unit, &[dense(2)]].concat(), shape);
    for first in [RELU, TANH, LEAKY, DROPOUT, STANDARDISE, L2, NORM] {
        check(with, &[conv(3), first, conv(3), add(2), dense(2)], shape);
        check(with, &[conv(3), first, TANH, add(2), RELU, dense(2)], shape);
        check(with, &[first, LEAKY, conv(2), add(3), dense(2)], shape);
        // What is added lies between layers that would run as one.
        check(with, &[conv(3), NORM, first, max_pool(1), add(2), LEAKY], shape);
        check(with, &[conv(3), NORM, LEAKY, max_pool(2), first, add(1), dense(2)], shape);
    }
}

/// Sums within sums, in a row, of one source, and one that reaches from within another.
pub fn residual_nests(with: With) {
    let shape = Shape::new(3, 2, 4, 4);
    let (c, t) = (conv(3), TANH);
    check(with, &[c, c, c, t, add(2), c, add(5), t, dense(2)], shape);
    check(with, &[c, c, add(1), add(2), add(3), dense(2)], shape);
    check(with, &[c, c, add(1), c, add(3), c, add(1), dense(2)], shape);
    check(with, &[c, c, t, c, add(2), t, c, add(4), c, dense(2)], shape);
    check(with, &[c, RELU, c, project(2, 3, 1), project(3, 3, 1), c], shape);
    check(
        with,
        &[c, half(3), project(1, 3, 2), t, half(5), project(2, 3, 2), project(5, 3, 4)],
        Shape::new(2, 2, 9, 9),
    );
    // Two gradients that wait at once, of sums that could lie in one place.
    check(with, &[c, c, add(1), project(1, 3, 1), DROPOUT, project(3, 3, 1), dense(2)], shape);
    check(with, &[c, c, LEAKY, c, add(3), LEAKY, add(1), LEAKY, dense(2)], shape);
}

/// Rows, views of what is added, and sums whose memory other layers keep.
pub fn residual_rows(with: With) {
    let rows = Shape::rows(5, 6);
    let d = dense(6);
    check(with, &[d, TANH, d, add(2), L2], rows);
    check(with, &[d, TANH, FLATTEN, d, add(2), TANH, add(1), L2], rows);
    check(with, &[d, DROPOUT, FLATTEN, TANH, DROPOUT, add(3), d], rows);
    check(with, &[d, FLATTEN, add(1), RELU, d], rows);
    check(with, &[d, FLATTEN, TANH, add(2), d, add(2), FLATTEN, add(2)], rows);
    check(with, &[d, STANDARDISE, RELU, dense(9), project(3, 6, 1), NORM, d], rows);
    check(
        with,
        &[conv(8), FLATTEN, dense(9), TANH, dense(128), add(3), dense(2)],
        Shape::new(2, 2, 4, 4),
    );
}

/// Chains at random: what a plan overwrites too early shows.
pub fn residual_chains(with: With) {
    for chain in 0..40 {
        let mut rng = Rng::new(2, Purpose::Sample, 0, chain);
        let input = Shape::new(3, 2, 6, 5);
        let (mut layers, mut shapes) = (vec![conv(3)], vec![input, Shape { c: 3, ..input }]);
        while layers.len() < 10 {
            let back = 1 + rng.below(5);
            let first = (layers.len() as u32).saturating_sub(back) as usize;
            let layer = match rng.below(12) {
                0 => half(1 + rng.below(9)),
                1 => conv(1 + rng.below(9)),
                2 => conv(3),
                3 => NORM,
                4 => LEAKY,
                5 => TANH,
                6 => DROPOUT,
                7 => max_pool(1),
                8 => FLATTEN,
                9 => project(back as u8, shapes[first].c, 1 + rng.below(2) as u8),
                _ => add(back as u8),
            };
            // A norm of few numbers is far from the function that it is near.
            let reached = shapes[layers.len()];
            let few = reached.n * reached.plane() < 12 && matches!(layer, Layer::BatchNorm(_));
            layers.push(layer);
            match layer.output(reached) {
                Some(out) if !few && Chain::new(&layers).check(input).is_ok() => shapes.push(out),
                _ => _ = layers.pop(),
            }
        }
        layers.push(dense(2));
        check(with, &layers, input);
    }
}

/// Two dropout layers of one width drop different places.
pub fn two_dropouts_differ(with: With) {
    let half = Layer::Dropout(Dropout { rate: 0.5 });
    let layers = [half, half];
    let bench = Bench::new(with, &layers, Shape::rows(1, 512));
    run(with, bench.bytes, |b| {
        write(b, bench.x, &[1.0; 512]);
        let y = b.forward_block(&bench.block(), 2).expect("the block runs");
        let kept = read(b, y).iter().filter(|y| **y != 0.0).count();
        // A quarter is left: 128 with a deviation of 10. One mask would leave a half.
        assert!((80..176).contains(&kept), "{kept} of 512 are left");
    });
    check(with, &[dense(8), half, half, dense(3)], Shape::rows(6, 4));
}

/// Parameter gradients are added to, by as much each time.
pub fn gradients_accumulate(with: With) {
    let layers = [conv(3), NORM, RELU, dense(4)];
    let bench = Bench::new(with, &layers, Shape::new(4, 2, 4, 4));
    let x = bench.input();
    let dy = values(8, 16);
    run(with, bench.bytes, |b| {
        let gradients = bench.params.gradients();
        b.zero(gradients).expect("the slot is there");
        bench.pass(b, &x, &dy);
        let once = read(b, gradients);
        bench.pass(b, &x, &dy);
        let twice: Vec<f64> = wide(&once).iter().map(|g| 2.0 * g).collect();
        Tolerance::SUM.check("added twice", &read(b, gradients), &twice);
    });
}
