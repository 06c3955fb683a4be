//! Frozen blocks, of which a convolution runs what is behind it.

mod common;

use sepal_conformance::oracle::{self, Params};
use sepal_conformance::{Tolerance, len, read, values, wide, write};
use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{self, Backend, EvalBlock, EvalParams};
use sepal_core::layer::{
    Activation, AvgPool, BatchNorm, Conv2d, Layer, MaxPool, Pass, RELU, Window,
};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::plan::{self, Chain};
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;
use sepal_cuda::OnCuda;

use common::{BOTH, counts, on_each};
use sepal_stand_in::Class;

const NORM: Layer = Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() });
const PLAIN: Layer = Layer::BatchNorm(BatchNorm::new());
const TANH: Layer = Layer::Activation(Activation::Tanh);
const RELU6: Layer = Layer::Activation(Activation::Relu6);
const LEAKY: Layer = Layer::Activation(Activation::LeakyRelu { slope: 0.25 });

const fn conv(filters: u32) -> Layer {
    Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(filters, 3) })
}

const fn pool(height: u8, width: u8) -> Layer {
    let places = (height, width);
    Layer::MaxPool(MaxPool { window: Window { kernel: places, stride: places, pad: (0, 0) } })
}

/// A chain of frozen layers, its input and what it gives.
struct Case {
    layers: Vec<Layer>,
    shape: Shape,
    /// Of all layers, in turn.
    weights: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f64>,
}

impl Case {
    fn new(layers: &[Layer], shape: Shape, change: impl FnOnce(&mut [Params], &mut [f32])) -> Self {
        let (mut params, mut between) = (vec![], shape);
        for (layer, seed) in layers.iter().zip(60..) {
            params.push(oracle::params(layer, between, seed));
            between = layer.output(between).expect("the layer takes the shape");
        }
        let mut x = values(61, len(shape));
        change(&mut params, &mut x);
        let phase = sepal_core::backend::Phase::Eval;
        let steps = oracle::forward(layers, shape, phase, &wide(&x), &params);
        let y = steps.last().expect("there is a layer").y.clone();
        let weights = params.iter().flat_map(|params| params.concat()).collect();
        Self { layers: layers.to_vec(), shape, weights, x, y }
    }

    fn plan(&self, backend: &dyn Backend) -> plan::Eval {
        let input = Slot::new(0, self.shape, Dtype::F32);
        backend::plan_eval(backend, 0, &Chain::new(&self.layers), input, Pass::Eval)
            .expect("the chain can be planned")
    }

    /// Runs the chain and compares what it gives.
    fn check(&self, device: &OnCuda) -> Vec<f32> {
        let plan = self.plan(&device.backend(0).expect("no memory is there"));
        let mut backend = device.backend(plan.bytes()).expect("the device has the memory");
        let backend: &mut dyn Backend = &mut backend;
        let blocks = [self.layers.len() as u16];
        let net = Net {
            input: Input { shape: self.shape.with_n(1), normalisation: Normalisation::NONE },
            layers: &self.layers,
            blocks: &blocks,
            features: 1,
        };
        let model = Model { net, weights: Weights::Flat(&self.weights) };
        backend.prepare(&model, 0, self.layers.len()).expect("the weights are there");
        write(backend, plan.input(), &self.x);
        let (chain, params) = (Chain::new(&self.layers), EvalParams::Model { model, first: 0 });
        let block = EvalBlock { chain, params, plan, pass: Pass::Eval, n: self.shape.n };
        let y = backend.eval_block(&block).expect("the block runs");
        let y = read(backend, y);
        Tolerance::BLOCK.check(&format!("{:?} of {}", self.layers, self.shape), &y, &self.y);
        y
    }
}

fn fine(_: &mut [Params], _: &mut [f32]) {}

/// Chains, and how many kernels they take.
fn chains() -> Vec<(Vec<Layer>, Shape, u64)> {
    let large = Conv2d { groups: 86, bias: false, ..Conv2d::new(86 * 34, 1) };
    let depthwise = Conv2d { groups: 3, pad: (1, 1), ..Conv2d::new(6, 3) };
    let overlapping = Window { kernel: (3, 3), stride: (2, 2), pad: (0, 0) };
    let average = Layer::AvgPool(AvgPool { window: Window::square(2) });
    vec![
        (vec![conv(37), NORM, RELU, pool(2, 2)], Shape::new(5, 3, 13, 15), 1),
        (vec![conv(6), RELU, pool(2, 2)], Shape::new(3, 1, 28, 28), 1),
        (vec![conv(33), pool(2, 1)], Shape::new(3, 2, 9, 11), 1),
        (vec![conv(5), PLAIN, RELU6, pool(1, 2)], Shape::new(3, 2, 1, 67), 1),
        (vec![conv(9), LEAKY, pool(4, 1)], Shape::new(2, 2, 14, 7), 1),
        (vec![conv(9), NORM, pool(1, 4)], Shape::new(2, 2, 7, 14), 1),
        (vec![conv(9), NORM, pool(1, 1)], Shape::new(2, 2, 7, 14), 1),
        (vec![conv(40), NORM], Shape::new(3, 4, 7, 8), 1),
        (vec![Layer::Conv2d(large), NORM, RELU, pool(2, 2)], Shape::new(5, 86 * 33, 4, 14), 1),
        (vec![Layer::Conv2d(depthwise), NORM, RELU, pool(2, 2)], Shape::new(3, 3, 11, 9), 1),
        // One within a thread's reach, the other not.
        (vec![conv(9), NORM, RELU, pool(3, 3)], Shape::new(3, 2, 10, 9), 2),
        (
            vec![conv(9), NORM, RELU, Layer::MaxPool(MaxPool { window: overlapping })],
            Shape::new(3, 2, 10, 9),
            2,
        ),
        (vec![conv(9), NORM, RELU, average], Shape::new(3, 2, 10, 9), 2),
        (vec![conv(9), NORM, TANH, pool(2, 2)], Shape::new(3, 2, 10, 9), 3),
        (vec![conv(9), TANH], Shape::new(3, 2, 10, 9), 2),
        (vec![RELU, conv(9), NORM, NORM, pool(2, 2), RELU], Shape::new(3, 2, 10, 9), 5),
        (
            vec![conv(9), NORM, RELU, pool(2, 2), conv(33), RELU, conv(4), NORM, RELU, pool(2, 2)],
            Shape::new(3, 2, 14, 13),
            3,
        ),
    ]
}

/// The fused path is taken, on tensor cores and without, and gives what the layers give apart.
#[test]
fn what_is_behind_a_convolution_runs_within_it() {
    for (layers, shape, launches) in chains() {
        let case = Case::new(&layers, shape, fine);
        for &capability in BOTH {
            let ran = counts(capability, |device| {
                case.check(device);
            });
            let Some(ran) = ran else { break };
            assert_eq!(ran.launches(), launches, "{layers:?}");
        }
    }
}

/// Only what the pool gives is planned for and written.
#[test]
fn a_pool_within_takes_less_memory() {
    let shape = Shape::new(4, 3, 16, 16);
    let case = Case::new(&[conv(32), NORM, RELU, pool(2, 2)], shape, fine);
    let bytes = |backend: &dyn Backend| case.plan(backend).bytes();
    let mut fused = 0;
    let ran = counts(75, |device| {
        fused = bytes(&device.backend(0).expect("no memory is there"));
        case.check(device);
    });
    let (input, output) = (len(shape) * 4, 4 * 32 * 8 * 8 * 4);
    assert_eq!(fused, input + output);
    // Apart, the pool's input has its own place; its output may lie where the chain's input did.
    assert_eq!(bytes(&Reference::new(&mut [])), 4 * output + output);
    // A store for each number of the pool's output.
    if let Some(ran) = ran {
        assert_eq!(ran.of(Class::GlobalStore), (output / 4) as u64);
    }
}

/// The order of threads and blocks does not show in the bits.
#[test]
fn same_bits_in_any_order() {
    let case = Case::new(&[conv(37), NORM, RELU, pool(2, 2)], Shape::new(5, 3, 13, 15), fine);
    for &capability in BOTH {
        let mut results = vec![];
        on_each(&[capability, capability], |device| {
            let bits = case.check(device).into_iter().map(f32::to_bits);
            results.push(bits.collect::<Vec<_>>());
        });
        assert!(results[0] == results[1], "other bits in another order");
    }
}

/// NaN wins a pool, infinities pass a norm, and neither comes from the border.
#[test]
fn not_finite() {
    for filters in [37, 2] {
        let layers = [conv(filters), NORM, LEAKY, pool(2, 2)];
        let shape = Shape::new(3, 3, 12, 14);
        let inputs = Case::new(&layers, shape, |_, x| {
            x[100] = f32::INFINITY;
            x[700] = f32::NAN;
            x[1100] = f32::NEG_INFINITY;
        });
        // The corner of one filter, the middle of another.
        let weights = Case::new(&layers, shape, |params, _| {
            params[0][0][0] = f32::NAN;
            params[0][0][27 + 4] = f32::INFINITY;
        });
        on_each(BOTH, |device| {
            inputs.check(device);
            weights.check(device);
        });
    }
}
