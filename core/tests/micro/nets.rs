//! Random nets with their weights in memory, as a model file has them.

use proptest::prelude::*;
use sepal_core::arena::{Dtype, Word};
use sepal_core::backend::Backend;
use sepal_core::infer::{Inference, RawSample};
use sepal_core::layer::{Activation, BatchNorm, Conv2d, Dense, Layer, MaxPool, Role};
use sepal_core::net::{Input, Model, Net, TensorRecord, Weights};
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;

/// Numbers that depend on nothing but the seed.
pub struct Numbers(Rng);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(Rng::new(seed, Purpose::Sample, 0, 0))
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        self.0.below(bound)
    }

    /// From `low` to `high`.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.below(10_001) as f32 / 10_000.0)
    }
}

/// A net that grows by layers, all of them of one block.
pub struct Owned {
    pub input: Input,
    pub layers: Vec<Layer>,
    pub shape: Shape,
    end: [u16; 1],
    records: Vec<TensorRecord>,
    blob: Vec<Word>,
    /// How far from a word's first byte the weights begin.
    shift: usize,
}

impl Owned {
    pub fn new(input: Input, shift: usize) -> Self {
        let (layers, records, blob) = (Vec::new(), Vec::new(), Vec::new());
        Self { input, layers, shape: input.shape, end: [0], records, blob, shift }
    }

    pub fn model(&self) -> Model<'_> {
        let net = Net { input: self.input, layers: &self.layers, blocks: &self.end, features: 1 };
        let bytes: &[u8] = bytemuck::cast_slice(&self.blob);
        let blob = bytes.get(self.shift..).unwrap_or_default();
        Model { net, weights: Weights::File { records: &self.records, blob } }
    }

    /// Appends a layer; its tensors follow.
    pub fn push(&mut self, layer: Layer) {
        self.shape = layer.output(self.shape).unwrap();
        self.layers.push(layer);
        self.end = [self.layers.len() as u16];
    }

    /// Stores a tensor of the last layer.
    pub fn tensor(&mut self, role: Role, dtype: Dtype, bytes: &[u8], scales: &[f32]) {
        let scales: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let (layer, at) = (self.layers.len() as u16 - 1, self.append(bytes));
        let scales_at = self.append(&scales);
        let (len, scales_len) = (bytes.len() as u32, scales.len() as u32);
        self.records.push(TensorRecord { layer, role, dtype, at, len, scales_at, scales_len });
    }

    pub fn numbers(&mut self, role: Role, numbers: &[f32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.tensor(role, Dtype::F32, &bytes, &[]);
    }

    fn append(&mut self, bytes: &[u8]) -> u32 {
        let at = self.blob.len() * Word::BYTES;
        let len = self.blob.len() + Word::count(bytes.len() + self.shift);
        self.blob.resize(len, Word::ZERO);
        let room: &mut [u8] = bytemuck::cast_slice_mut(&mut self.blob);
        room[at + self.shift..][..bytes.len()].copy_from_slice(bytes);
        at as u32
    }
}

/// A convolution or a dense layer, and what stands behind it.
#[derive(Clone, Debug)]
pub struct Group {
    pub dense: bool,
    pub kernel: (u8, u8),
    pub stride: (u8, u8),
    pub pad: (u8, u8),
    /// 1 for one group of channels, 2 for as many as there are channels, else two.
    pub groups: u8,
    /// Filters of a group of channels, or units.
    pub filters: u32,
    pub bias: bool,
    /// Batch norm, with gamma and beta or without.
    pub norm: Option<bool>,
    pub activation: Option<Activation>,
    pub pool: u8,
    pub seed: u64,
}

const KERNELS: [(u8, u8); 9] =
    [(1, 1), (1, 3), (3, 1), (3, 3), (5, 5), (7, 7), (2, 2), (1, 5), (4, 3)];

pub fn group() -> impl Strategy<Value = Group> {
    let geometry =
        (prop::sample::select(&KERNELS[..]), (1..=3u8, 1..=3u8), (0..=3u8, 0..=3u8), 1..=3u8);
    let activation = prop::sample::select(vec![
        None,
        Some(Activation::Relu),
        Some(Activation::Relu6),
        Some(Activation::LeakyRelu { slope: 0.125 }),
    ]);
    let behind = (prop::sample::select(vec![None, None, Some(false), Some(true)]), activation);
    let rest = (0..6u8, 1..=5u32, any::<bool>(), behind, 0..=4u8, any::<u64>());
    (geometry, rest).prop_map(|(geometry, rest)| {
        let (kernel, stride, pad, groups) = geometry;
        let (kind, filters, bias, (norm, activation), pool, seed) = rest;
        // Most convolutions move by one.
        let stride = if kind < 3 { (1, 1) } else { stride };
        let dense = kind == 5;
        Group { dense, kernel, stride, pad, groups, filters, bias, norm, activation, pool, seed }
    })
}

impl Group {
    /// Its first layer, on inputs of shape `x`.
    pub fn product(&self, x: Shape) -> Layer {
        if self.dense {
            return Layer::Dense(Dense { units: self.filters, bias: self.bias });
        }
        let groups = match self.groups {
            1 => 1,
            2 => x.c,
            _ if x.c.is_multiple_of(2) => 2,
            _ => 1,
        };
        let Self { kernel, stride, pad, bias, .. } = *self;
        let conv = Conv2d { kernel, stride, pad, groups, bias, ..Conv2d::new(1, 1) };
        let conv = Conv2d { filters: self.filters * groups, ..conv };
        let point = Conv2d { bias, ..Conv2d::new(self.filters, 1) };
        Layer::Conv2d(if conv.output(x).is_some() { conv } else { point })
    }

    /// What stands behind that: norm, activation and pool.
    pub fn behind(&self, net: &mut Owned) {
        if let Some(affine) = self.norm {
            net.push(Layer::BatchNorm(BatchNorm { affine, ..BatchNorm::new() }));
            let mut numbers = Numbers::new(self.seed ^ 7);
            let channels = net.shape.c;
            let mut some = |low, high| -> Vec<f32> {
                (0..channels).map(|_| numbers.between(low, high)).collect()
            };
            if affine {
                net.numbers(Role::Weight, &some(-1.0, 2.0));
                net.numbers(Role::Bias, &some(-1.0, 1.0));
            }
            net.numbers(Role::Mean, &some(-1.0, 1.0));
            net.numbers(Role::Variance, &some(0.0, 2.0));
        }
        if let Some(activation) = self.activation {
            net.push(Layer::Activation(activation));
        }
        let pool = MaxPool::new(self.pool.max(1));
        if self.pool > 0 && !self.dense && pool.output(net.shape).is_some() {
            net.push(Layer::MaxPool(pool));
        }
    }
}

/// Shapes of samples, single rows and single places among them.
pub fn shape() -> impl Strategy<Value = Shape> {
    let side = prop_oneof![Just(1u32), 2..=13u32, Just(28)];
    (1..=4u32, side.clone(), side).prop_map(|(c, h, w)| Shape::new(1, c, h, w))
}

/// Runs all layers of a net in memory of exactly the plan's size, which holds NaN before.
pub fn run<B: Backend, T: RawSample + Copy>(
    open: impl Fn(&'static mut [Word]) -> B,
    model: &Model<'_>,
    n: u32,
    raw: &[T],
    bytes: bool,
) -> Vec<f32> {
    let layers = (0, model.net.layers.len());
    let plan = Inference::new(&open(&mut []), model, layers, n, bytes).unwrap();
    // Backends of all lifetimes are one type this way; a test's memory may stay.
    let memory = vec![Word::NAN; plan.bytes() / Word::BYTES].leak();
    let mut out = vec![f32::NAN; plan.output() * n as usize];
    plan.run(&mut open(memory), model, n, |x: &mut [T]| x.copy_from_slice(raw), &mut out).unwrap();
    out
}
