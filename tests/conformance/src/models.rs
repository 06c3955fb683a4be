//! Trained nets from raw samples to outputs, their weights wherever they are kept.

use half::f16;
use sepal_core::arena::{ArenaError, Dtype, Word};
use sepal_core::backend::Phase;
use sepal_core::error::Error;
use sepal_core::infer::Inference;
use sepal_core::layer::{
    BatchNorm, Conv2d, Dense, Dropout, Flatten, Layer, MaxPool, RELU, Role, Standardise, Window,
};
use sepal_core::net::{Input, Model, Net, Normalisation, TensorRecord, Weights};
use sepal_core::plan::PlanError;
use sepal_core::shape::Shape;

use crate::oracle::{self, Params};
use crate::{Tolerance, With, ask, run, values, wide};

const LAYERS: [Layer; 10] = [
    Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(5, 3) }),
    Layer::BatchNorm(BatchNorm { affine: true, eps: 1e-3, momentum: 0.1 }),
    RELU,
    Layer::MaxPool(MaxPool { window: Window::square(2) }),
    Layer::Flatten(Flatten),
    Layer::Standardise(Standardise),
    Layer::Dropout(Dropout { rate: 0.5 }),
    Layer::Dense(Dense { units: 9, bias: false }),
    RELU,
    Layer::Dense(Dense { units: 4, bias: true }),
];

const NET: Net<'static> = Net {
    input: Input {
        shape: Shape::new(1, 2, 6, 5),
        normalisation: Normalisation { mean: [0.4, 0.5, 0.0, 0.0], std: [0.3, 0.2, 1.0, 1.0] },
    },
    layers: &LAYERS,
    blocks: &[4, 10],
    features: 1,
};

const OUTPUTS: usize = 4;

fn params() -> Vec<Params> {
    (0..LAYERS.len())
        .map(|at| oracle::params(&LAYERS[at], NET.shape(at).expect("it fits"), 70 * at as u64))
        .collect()
}

fn flat_weights(params: &[Params]) -> Vec<f32> {
    params.iter().flatten().flatten().copied().collect()
}

fn images(n: usize) -> Vec<u8> {
    values(3, 60 * n).into_iter().map(|x| (x * 127.0 + 128.0) as u8).collect()
}

/// The net in `f64`, from bytes.
fn expected(params: &[Params], images: &[u8]) -> Vec<f64> {
    let n = (images.len() / 60) as u32;
    let Normalisation { mean, std } = NET.input.normalisation;
    let normalised = images.iter().enumerate().map(|(i, &raw)| {
        let c = i / 30 % 2;
        (f64::from(raw) / 255.0 - f64::from(mean[c])) / f64::from(std[c])
    });
    let x: Vec<f64> = normalised.collect();
    let shape = NET.input.shape.with_n(n);
    let steps = oracle::forward(&LAYERS, shape, Phase::Eval, &x, params);
    steps.last().expect("there are layers").y.clone()
}

/// A model of a file: tensors one after the other, 16-aligned and moved by `shift` bytes.
struct File {
    records: Vec<TensorRecord>,
    words: Vec<Word>,
}

impl File {
    /// Writes all tensors, weights of convolutions and dense layers as `dtype`, others as f32.
    /// `params` become what is stored.
    fn new(params: &mut [Params], dtype: Dtype, shift: usize) -> Self {
        let mut records = vec![];
        let mut blob = vec![0; shift];
        for (layer, params) in params.iter_mut().enumerate() {
            for (role, numbers) in Role::ALL.into_iter().zip(params) {
                if numbers.is_empty() {
                    continue;
                }
                let narrow = matches!(LAYERS[layer], Layer::Conv2d(_) | Layer::Dense(_))
                    && role == Role::Weight;
                let dtype = if narrow { dtype } else { Dtype::F32 };
                let rows = match LAYERS[layer] {
                    Layer::Conv2d(conv) => conv.filters,
                    Layer::Dense(dense) => dense.units,
                    _ => 1,
                };
                let (bytes, scales) = stored(numbers, dtype, rows as usize);
                let [at, scales_at] = [&bytes, &scales].map(|part| {
                    let at = Word::round_up(blob.len() - shift) + shift;
                    blob.resize(at, 0);
                    blob.extend_from_slice(part);
                    at as u32
                });
                records.push(TensorRecord {
                    layer: layer as u16,
                    role,
                    dtype,
                    at,
                    len: bytes.len() as u32,
                    scales_at,
                    scales_len: scales.len() as u32,
                });
            }
        }
        let mut words = vec![Word::ZERO; Word::count(blob.len())];
        bytemuck::cast_slice_mut::<_, u8>(&mut words)[..blob.len()].copy_from_slice(&blob);
        Self { records, words }
    }

    fn weights(&self) -> Weights<'_> {
        Weights::File { records: &self.records, blob: bytemuck::cast_slice(&self.words) }
    }
}

/// The bytes of a tensor and its scales; `numbers` become what they say.
fn stored(numbers: &mut [f32], dtype: Dtype, rows: usize) -> (Vec<u8>, Vec<u8>) {
    match dtype {
        Dtype::F16 => {
            let halves: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
            numbers.iter_mut().zip(&halves).for_each(|(x, half)| *x = half.to_f32());
            (halves.iter().flat_map(|half| half.to_le_bytes()).collect(), vec![])
        }
        Dtype::I8 => {
            let (mut bytes, mut scales) = (vec![], vec![]);
            for row in numbers.chunks_mut(numbers.len() / rows) {
                let scale = row.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
                scales.extend(scale.to_le_bytes());
                for x in row {
                    let q = (*x / scale).round() as i8;
                    *x = f32::from(q) * scale;
                    bytes.push(q as u8);
                }
            }
            (bytes, scales)
        }
        _ => (numbers.iter().flat_map(|x| x.to_le_bytes()).collect(), vec![]),
    }
}

/// Runs `model` on bytes in an arena of exactly the plan's size; gives the outputs and the size.
fn outputs(with: With, model: &Model<'_>, images: &[u8]) -> (Vec<f32>, usize) {
    let n = (images.len() / 60) as u32;
    let plan = ask(with, |b| Inference::new(b, model, (0, LAYERS.len()), n, true));
    let plan = plan.expect("the net can be planned");
    let y = run(with, plan.bytes(), |b| {
        b.prepare(model, 0, LAYERS.len()).expect("the weights are there");
        let mut y = vec![f32::NAN; OUTPUTS * n as usize];
        let fill = |raw: &mut [u8]| raw.copy_from_slice(images);
        plan.run(b, model, n, fill, &mut y).expect("the net runs");
        y
    });
    (y, plan.bytes())
}

/// A model of a file against the net with the numbers that the file holds.
fn check_file(with: With, dtype: Dtype, shift: usize) -> usize {
    let mut params = params();
    let file = File::new(&mut params, dtype, shift);
    let model = Model { net: NET, weights: file.weights() };
    let images = images(3);
    let (y, bytes) = outputs(with, &model, &images);
    let what = format!("weights of {dtype:?} moved by {shift}");
    Tolerance::BLOCK.check(&what, &y, &expected(&params, &images));
    bytes
}

/// Numbers in memory, from raw bytes and from raw numbers.
pub fn flat(with: With) {
    let params = params();
    let weights = flat_weights(&params);
    let model = Model { net: NET, weights: Weights::Flat(&weights) };
    let images = images(3);
    let expected = expected(&params, &images);
    let (y, _) = outputs(with, &model, &images);
    Tolerance::BLOCK.check("from bytes", &y, &expected);
    assert!(y.iter().any(|y| (y - y.round()).abs() > 0.01), "the outputs say something");

    let plan = ask(with, |b| Inference::new(b, &model, (0, LAYERS.len()), 3, false));
    let plan = plan.expect("the net can be planned");
    run(with, plan.bytes(), |b| {
        b.prepare(&model, 0, LAYERS.len()).expect("the weights are there");
        let mut y = [f32::NAN; 3 * OUTPUTS];
        let fill = |raw: &mut [f32]| {
            raw.iter_mut().zip(&images).for_each(|(raw, &byte)| *raw = f32::from(byte) / 255.0);
        };
        plan.run(b, &model, 3, fill, &mut y).expect("the net runs");
        Tolerance::BLOCK.check("from numbers", &y, &expected);
    });
}

/// Aligned f32 of a file is read where it lies.
pub fn file_in_place(with: With) {
    check_file(with, Dtype::F32, 0);
}

/// Misaligned f32 is read too.
pub fn file_misaligned(with: With) {
    for shift in [1, 2, 3] {
        check_file(with, Dtype::F32, shift);
    }
}

/// Half the bytes.
pub fn file_f16(with: With) {
    check_file(with, Dtype::F16, 0);
    check_file(with, Dtype::F16, 1);
}

/// A quarter, with a scale for each output channel.
pub fn file_i8(with: With) {
    check_file(with, Dtype::I8, 0);
    check_file(with, Dtype::I8, 3);
}

/// Layers from within the net take numbers, and their own weights.
pub fn part_of_a_net(with: With) {
    let params = params();
    let weights = flat_weights(&params);
    let model = Model { net: NET, weights: Weights::Flat(&weights) };
    for (first, last) in [(4, 10), (1, 4), (7, 8), (0, 3), (5, 5)] {
        let shape = NET.shape(first).expect("it fits").with_n(2);
        let x = values(9, shape.len().expect("small") as usize);
        let plan = ask(with, |b| Inference::new(b, &model, (first, last), 2, false));
        let plan = plan.expect("the part can be planned");
        let raw = match first {
            0 => normalised(&x),
            _ => wide(&x),
        };
        let steps =
            oracle::forward(&LAYERS[first..last], shape, Phase::Eval, &raw, &params[first..last]);
        let expected = steps.last().map_or(raw, |step| step.y.clone());
        run(with, plan.bytes(), |b| {
            b.prepare(&model, first, last).expect("the weights are there");
            let mut y = vec![f32::NAN; 2 * plan.output()];
            plan.run(b, &model, 2, |raw: &mut [f32]| raw.copy_from_slice(&x), &mut y)
                .expect("the part runs");
            Tolerance::BLOCK.check(&format!("layers {first}..{last}"), &y, &expected);
        });
    }
    let outside = ask(with, |b| Inference::new(b, &model, (4, 11), 2, false).err());
    assert_eq!(outside, Some(PlanError::Range { first: 4, last: 11, layers: 10 }));
}

fn normalised(raw: &[f32]) -> Vec<f64> {
    let Normalisation { mean, std } = NET.input.normalisation;
    let scaled = raw.iter().enumerate().map(|(i, &raw)| {
        let c = i / 30 % 2;
        (f64::from(raw) - f64::from(mean[c])) / f64::from(std[c])
    });
    scaled.collect()
}

/// A plan for five samples runs any number up to five, each sample as if it were alone.
pub fn fewer_samples(with: With) {
    let params = params();
    let weights = flat_weights(&params);
    let model = Model { net: NET, weights: Weights::Flat(&weights) };
    let images = images(5);
    let expected = expected(&params, &images);
    let plan = ask(with, |b| Inference::new(b, &model, (0, LAYERS.len()), 5, true));
    let plan = plan.expect("the net can be planned");
    run(with, plan.bytes(), |b| {
        b.prepare(&model, 0, LAYERS.len()).expect("the weights are there");
        for n in [5, 1, 4, 2, 3] {
            let mut y = vec![f32::NAN; OUTPUTS * n];
            let fill = |raw: &mut [u8]| raw.copy_from_slice(&images[..60 * n]);
            plan.run(b, &model, n as u32, fill, &mut y).expect("the net runs");
            Tolerance::BLOCK.check(&format!("{n} of 5"), &y, &expected[..OUTPUTS * n]);
        }
        for n in [0, 6] {
            let answer = plan.run(b, &model, n, |_: &mut [u8]| (), &mut [0.0; OUTPUTS]);
            assert_eq!(answer, Err(Error::Plan(PlanError::Batch { size: n })));
        }
        let answer = plan.run(b, &model, 1, |_: &mut [f32]| (), &mut [0.0; OUTPUTS]);
        assert!(matches!(answer, Err(Error::Unsupported(_))), "{answer:?}");
        let answer = plan.run(b, &model, 1, |_: &mut [u8]| (), &mut [0.0; 3]);
        assert_eq!(answer, Err(Error::Arena(ArenaError::Length { slot: OUTPUTS, host: 3 })));
    });
}

/// Weights that are missing, of another length or of a type that is no weight's are an error that
/// names the layer.
pub fn weights_missing(with: With) {
    let mut params = params();
    let file = File::new(&mut params, Dtype::F32, 0);
    let is_dense = |r: &TensorRecord| r.layer == 7;
    let mut missing = file.records.clone();
    missing.retain(|r| !is_dense(r));
    let mut short = file.records.clone();
    short.iter_mut().filter(|r| is_dense(r)).for_each(|r| r.len -= 4);
    let mut past = file.records.clone();
    past.iter_mut().filter(|r| is_dense(r)).for_each(|r| r.at = u32::MAX - 8);
    let mut other = file.records.clone();
    other.iter_mut().filter(|r| is_dense(r)).for_each(|r| r.dtype = Dtype::I32);
    let mut unscaled = file.records.clone();
    unscaled.iter_mut().filter(|r| is_dense(r)).for_each(|r| {
        (r.dtype, r.len) = (Dtype::I8, r.len / 4);
    });
    let blob = bytemuck::cast_slice(&file.words);
    for (what, records) in [
        ("missing", &missing),
        ("short", &short),
        ("past the end", &past),
        ("i32", &other),
        ("without scales", &unscaled),
    ] {
        let model = Model { net: NET, weights: Weights::File { records, blob } };
        let plan = ask(with, |b| Inference::new(b, &model, (0, LAYERS.len()), 1, true));
        let plan = plan.expect("plans read no weights");
        let answer = run(with, plan.bytes(), |b| {
            b.prepare(&model, 0, LAYERS.len())?;
            plan.run(b, &model, 1, |raw: &mut [u8]| raw.fill(0), &mut [0.0; OUTPUTS])
        });
        assert!(matches!(answer, Err(Error::Weights { layer: 7, .. })), "{what}: {answer:?}");
    }
}

/// One word less is an error that names both sizes.
pub fn too_small(with: With) {
    let weights = flat_weights(&params());
    let model = Model { net: NET, weights: Weights::Flat(&weights) };
    let plan = ask(with, |b| Inference::new(b, &model, (0, LAYERS.len()), 2, true));
    let plan = plan.expect("the net can be planned");
    let (needed, given) = (plan.bytes(), plan.bytes() - Word::BYTES);
    let answer = run(with, given, |b| {
        plan.run(b, &model, 2, |raw: &mut [u8]| raw.fill(0), &mut [0.0; 2 * OUTPUTS])
    });
    assert_eq!(answer, Err(Error::Arena(ArenaError::OutOfMemory { needed, given })));
}
