//! A backend that computes in integers: activations are i8 in the arena, weights i8 in the model
//! with a scale for each output channel, sums are i32.

use sepal_conformance::seam::{Call, Result};
use sepal_conformance::{Backend, Tolerance, Word, values};
use sepal_core::arena::Dtype;
use sepal_core::backend::Param;
use sepal_core::error::Error;
use sepal_core::infer::Inference;
use sepal_core::layer::{
    Activation, Conv2d, Dense, Flatten, Layer, MaxPool, Needs, Pass, RELU, Role, Window,
};
use sepal_core::net::{Input, Model, Net, Normalisation, Stored, TensorRecord, Weights};
use sepal_core::plan::{Chain, Reached};
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;

const NET: Net<'static> = Net {
    input: Input { shape: Shape::new(1, 1, 12, 12), normalisation: Normalisation::NONE },
    layers: &[
        Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(6, 3) }),
        RELU,
        Layer::MaxPool(MaxPool { window: Window::square(2) }),
        Layer::Conv2d(Conv2d { groups: 2, ..Conv2d::new(8, 3) }),
        RELU,
        Layer::Flatten(Flatten),
        Layer::Dense(Dense { units: 5, bias: true }),
    ],
    blocks: &[3, 6, 7],
    features: 2,
};

/// What one step of i8 is worth in the input of each layer: calibrated beforehand.
const STEPS: [f32; 7] = [1.0 / 127.0, 0.02, 0.02, 0.02, 0.05, 0.05, 0.05];

struct Quantised<'a> {
    inner: Reference<'a>,
}

fn to_i8(x: f32, step: f32) -> i8 {
    (x / step).round().clamp(-127.0, 127.0) as i8
}

/// A tensor of i8 with a scale for each of `rows`.
fn rows<'m>(stored: &Stored<'m>, rows: u32) -> impl Iterator<Item = (&'m [i8], f32)> {
    assert_eq!(stored.dtype, Dtype::I8);
    let weights: &[i8] = bytemuck::cast_slice(stored.bytes);
    let scales = stored.scales.as_chunks::<4>().0;
    assert_eq!(scales.len(), rows as usize);
    let scales = scales.iter().map(|scale| f32::from_le_bytes(*scale));
    weights.chunks_exact(weights.len() / rows as usize).zip(scales)
}

fn biases(stored: &Stored<'_>) -> Vec<f32> {
    let mut biases = vec![0.0; stored.len()];
    assert!(stored.widen(&mut biases));
    biases
}

/// All products of one output, in i32.
fn convolve(conv: Conv2d, shape: Shape, x: &[i8], weights: &[i8], [n, k, p, q]: [u32; 4]) -> i32 {
    let (channels, first) =
        (shape.c / conv.groups, k / (conv.filters / conv.groups) * (shape.c / conv.groups));
    let mut sum = 0;
    let mut weights = weights.iter();
    for c in first..first + channels {
        for r in 0..u32::from(conv.kernel.0) {
            for s in 0..u32::from(conv.kernel.1) {
                let w = i32::from(*weights.next().unwrap());
                let i = (p + r).wrapping_sub(u32::from(conv.pad.0));
                let j = (q + s).wrapping_sub(u32::from(conv.pad.1));
                if i < shape.h && j < shape.w {
                    let at = ((n * shape.c + c) * shape.h + i) * shape.w + j;
                    sum += w * i32::from(x[at as usize]);
                }
            }
        }
    }
    sum
}

impl Backend for Quantised<'_> {
    sepal_conformance::delegate! {
        inner: bytes write read fill zero copy widen backward backward_source objective update
            nearest top_k
    }

    fn needs(&self, chain: &Chain<'_>, at: usize, reached: Reached, pass: Pass) -> Option<Needs> {
        let (layer, x) = (chain.get(at)?, reached.x);
        let needs = layer.needs(x.shape, Pass::Eval)?;
        assert_ne!(pass, Pass::Train, "this backend only evaluates");
        let last = at + 1 == chain.len();
        // Only the first layer reads numbers, which it quantises on the side.
        let forward_scratch = if at == 0 { x.shape.len()? as usize } else { 0 };
        Some(Needs { dtype: if last { Dtype::F32 } else { Dtype::I8 }, forward_scratch, ..needs })
    }

    fn forward(&mut self, call: &Call<'_>) -> Result<()> {
        let Param::Model { layer: index, tensors } = call.param else {
            return Err(Error::Unsupported("trained layers"));
        };
        let (place, shape) = (call.place, call.place.x.shape);
        let arena = self.inner.arena();
        let x: Vec<i8> = match place.x.dtype {
            Dtype::F32 => {
                let [x, scratch] = arena.lease([place.x, place.scratch])?;
                let quantised: &mut [i8] = bytemuck::cast_slice_mut(scratch.bytes());
                let x = x.get::<f32>()?;
                quantised.iter_mut().zip(&*x).for_each(|(q, x)| *q = to_i8(*x, STEPS[index]));
                quantised[..x.len()].to_vec()
            }
            _ => arena.view::<i8>(place.x)?.to_vec(),
        };
        let [weight, bias, ..] = tensors;
        let bias = biases(&bias);
        let out = place.y.shape;
        // Integers out of the sums: scale by what a step of input and weight is worth.
        let number =
            |sum: i32, scale: f32, k: u32| sum as f32 * STEPS[index] * scale + bias[k as usize];
        let mut numbers = vec![];
        match *call.layer {
            Layer::Conv2d(conv) => {
                for n in 0..out.n {
                    for (k, (weights, scale)) in (0..).zip(rows(&weight, conv.filters)) {
                        for at in 0..out.plane() {
                            let at = [n, k, at / out.w, at % out.w];
                            numbers.push(number(convolve(conv, shape, &x, weights, at), scale, k));
                        }
                    }
                }
            }
            Layer::Dense(dense) => {
                for x in x.chunks_exact(shape.sample().unwrap() as usize) {
                    for (u, (weights, scale)) in (0..).zip(rows(&weight, dense.units)) {
                        let products = x.iter().zip(weights);
                        let sum = products.map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
                        numbers.push(number(sum, scale, u));
                    }
                }
            }
            // Steps stay, so these work on the integers.
            Layer::Activation(Activation::Relu) => {
                arena.view_mut::<i8>(place.y)?.iter_mut().for_each(|y| *y = (*y).max(0));
                return Ok(());
            }
            Layer::MaxPool(MaxPool { window }) => {
                assert_eq!(window, Window::square(2));
                let y = arena.view_mut::<i8>(place.y)?;
                for (plane, y) in x
                    .chunks_exact(shape.plane() as usize)
                    .zip(y.chunks_exact_mut(out.plane() as usize))
                {
                    for (at, y) in y.iter_mut().enumerate() {
                        let (w, ow) = (shape.w as usize, out.w as usize);
                        let corner = at / ow * 2 * w + at % ow * 2;
                        let four = [corner, corner + 1, corner + w, corner + w + 1];
                        *y = four.map(|at| plane[at]).into_iter().max().unwrap();
                    }
                }
                return Ok(());
            }
            Layer::Flatten(_) => return Ok(()),
            _ => return Err(Error::Unsupported("other layers")),
        }
        match place.y.dtype {
            Dtype::F32 => arena.view_mut::<f32>(place.y)?.copy_from_slice(&numbers),
            _ => {
                let step = STEPS[index + 1];
                let y = arena.view_mut::<i8>(place.y)?;
                y.iter_mut().zip(numbers).for_each(|(y, x)| *y = to_i8(x, step));
            }
        }
        Ok(())
    }
}

/// The net's weights as i8 with scales, biases as f32, and the numbers that they say.
fn quantised_weights() -> (Vec<TensorRecord>, Vec<Word>, Vec<f32>) {
    let (mut records, mut blob, mut numbers) = (vec![], vec![], vec![]);
    for (layer, at) in NET.layers.iter().zip(0u16..) {
        let tensors = layer.tensors(NET.shape(usize::from(at)).unwrap()).unwrap();
        let rows = match layer {
            Layer::Conv2d(conv) => conv.filters,
            Layer::Dense(dense) => dense.units,
            _ => continue,
        };
        let weights = values(u64::from(at) + 1, tensors.weight as usize);
        let biases = values(u64::from(at) + 50, tensors.bias as usize);
        let mut put = |bytes: &[u8]| {
            let at = Word::round_up(blob.len());
            blob.resize(at, 0);
            blob.extend_from_slice(bytes);
            (at as u32, bytes.len() as u32)
        };
        let (mut steps, mut scales) = (vec![], vec![]);
        for row in weights.chunks(weights.len() / rows as usize) {
            // Sums stay near 1, whatever the fan-in.
            let shrink = 1.0 / (row.len() as f32).sqrt();
            let scale = row.iter().fold(0f32, |most, w| most.max(w.abs())) * shrink / 127.0;
            scales.extend(scale.to_le_bytes());
            for w in row {
                let q = to_i8(*w * shrink, scale);
                steps.push(q as u8);
                numbers.push(f32::from(q) * scale);
            }
        }
        let ((weight_at, len), (scales_at, scales_len)) = (put(&steps), put(&scales));
        let record = TensorRecord {
            layer: at,
            role: Role::Weight,
            dtype: Dtype::I8,
            at: weight_at,
            len,
            scales_at,
            scales_len,
        };
        let (bias_at, len) = put(bytemuck::cast_slice(&biases));
        let bias = TensorRecord {
            role: Role::Bias,
            dtype: Dtype::F32,
            at: bias_at,
            len,
            scales_at: 0,
            scales_len: 0,
            ..record
        };
        records.extend([record, bias]);
        numbers.extend(biases);
    }
    let mut words = vec![Word::ZERO; Word::count(blob.len())];
    bytemuck::cast_slice_mut::<_, u8>(&mut words)[..blob.len()].copy_from_slice(&blob);
    (records, words, numbers)
}

const N: u32 = 16;

fn logits(backend: &mut dyn Backend, model: &Model<'_>, plan: &Inference<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; 5 * N as usize];
    let images = values(77, 144 * N as usize);
    let fill = |raw: &mut [u8]| {
        raw.iter_mut().zip(&images).for_each(|(raw, x)| *raw = (x * 127.0 + 128.0) as u8);
    };
    plan.run(backend, model, N, fill, &mut out).unwrap();
    out
}

fn best(logits: &[f32]) -> Vec<usize> {
    let best = |row: &[f32]| (0..5).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    logits.chunks(5).map(best).collect()
}

#[test]
fn integers_give_nearly_the_numbers_of_the_reference() {
    let (records, words, numbers) = quantised_weights();
    let blob = bytemuck::cast_slice(&words);
    let narrow = Model { net: NET, weights: Weights::File { records: &records, blob } };
    let wide = Model { net: NET, weights: Weights::Flat(&numbers) };

    let layers = (0, NET.layers.len());
    let plan = Inference::new(&Reference::new(&mut []), &wide, layers, N, true).unwrap();
    let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let expected = logits(&mut Reference::new(&mut memory), &wide, &plan);

    let backend = Quantised { inner: Reference::new(&mut []) };
    let small = Inference::new(&backend, &narrow, layers, N, true).unwrap();
    let mut memory = vec![Word::NAN; small.bytes() / Word::BYTES];
    let got = logits(&mut Quantised { inner: Reference::new(&mut memory) }, &narrow, &small);

    let near = Tolerance { rel: 0.05, abs: 0.05 };
    let expected_wide: Vec<f64> = expected.iter().copied().map(f64::from).collect();
    near.check("logits", &got, &expected_wide);
    assert_ne!(got, expected, "integers round");
    let spread = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(spread > 0.5, "the logits say something");
    let agree = best(&got).iter().zip(best(&expected)).filter(|(a, b)| **a == *b).count();
    assert!(agree >= 15, "{agree} of 16 predictions agree");

    // The first layer reads f32 and its i8 form beside an output of i8; all else is i8.
    let [x, y] = [144, 6 * 144].map(|sample| sample * N as usize);
    assert_eq!(small.bytes(), 4 * x + x + y);
    // The reference holds x and y as f32, or y and the pooled y.
    assert_eq!(plan.bytes(), 4 * y + y);
    assert!(small.bytes() < plan.bytes() / 2);
}
