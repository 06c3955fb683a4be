//! Norms, pools, activations and the like over more than a block, and numbers that are out of the
//! ordinary. The suite's shapes fill a part of one block.

mod common;

use std::sync::{Mutex, PoisonError};

use sepal_conformance::oracle::{self, Params};
use sepal_conformance::{Cut, Tolerance, len, read, values, wide, write};
use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{Backend, Call, Host, HostMut, Param, Phase};
use sepal_core::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, ChannelStd, Dense, Dropout, Embedding,
    GlobalAvgPool, KMaxPool, L2Normalise, Layer, MaxPool, Pass, Quantise, Role, SpaceToDepth,
    Standardise, Window,
};
use sepal_core::net::Normalisation;
use sepal_core::optim::Rule;
use sepal_core::plan::{self, Chain, ParamSlots, Place, Reached};
use sepal_core::reference::layer_seed;
use sepal_core::shape::Shape;

use common::{BOTH, on_each};
use sepal_cuda::OnCuda;

const TRAIN: Phase = Phase::Train { seed: 0xfeed_0000_1234_5678, update: 3 };
const FIRST: Phase = Phase::Calibrate { seen: 0 };
const LATER: Phase = Phase::Calibrate { seen: 11 };

/// The layer's place in its chain, which dropout draws from.
const INDEX: usize = 2;

/// A layer, its input and what it gives.
struct Case {
    layer: Layer,
    shape: Shape,
    phase: Phase,
    tolerance: Tolerance,
    params: Params,
    x: Vec<f32>,
    dy: Vec<f32>,
    forward: oracle::Forward,
    dx: Vec<f64>,
    /// Of weights and biases, before and after the call.
    gradients: [(Vec<f32>, Vec<f64>); 2],
}

/// What a layer leaves behind.
#[derive(Default)]
struct Left {
    numbers: Vec<Vec<f32>>,
    winners: Vec<u8>,
    places: Vec<u16>,
}

impl Left {
    fn bits(&self) -> Vec<u32> {
        self.numbers.iter().flatten().map(|x| x.to_bits()).collect()
    }
}

impl Case {
    fn new(layer: Layer, shape: Shape, phase: Phase, x: &[f32], tolerance: Tolerance) -> Self {
        let params = oracle::params(&layer, shape, 50);
        let own = oracle::phase_of(phase, INDEX);
        let forward = oracle::Forward::new(&layer, shape, own, &wide(x), &params);
        let dy = values(51, forward.y.len());
        let backward = forward.backward(&wide(&dy));
        let gradients = backward.dparams.map(|mut after| {
            // Gradients are added to.
            let before = values(52, after.len());
            after.iter_mut().zip(&before).for_each(|(after, &b)| *after += f64::from(b));
            (before, after)
        });
        let (x, dx) = (x.to_vec(), backward.dx);
        Self { layer, shape, phase, tolerance, params, x, dy, forward, dx, gradients }
    }

    /// Runs the layer forward and, where it learns, backward; compares all that it writes.
    fn check(&self, device: &OnCuda) -> Left {
        let Self { layer, shape, phase, tolerance, .. } = *self;
        let what = format!("{layer:?} of {shape} in {phase:?}");
        let learns = matches!(phase, Phase::Train { .. });
        let pass = if phase == Phase::Eval { Pass::Eval } else { Pass::Train };
        let out = layer.output(shape).expect("the layer takes the shape");
        let layers = [layer];
        let planner = device.backend(0).expect("no memory is there");
        let x = Slot::new(0, shape, Dtype::F32);
        let needs = planner.needs(&Chain::new(&layers), 0, Reached::first(x), pass).expect("small");

        let mut cut = Cut::default();
        let vector = |cut: &mut Cut, len: usize, dtype| match len {
            0 => Slot::EMPTY,
            _ => cut.slot(Shape::rows(1, len as u32), dtype),
        };
        let [weight, bias, mean, variance] =
            self.params.each_ref().map(|p| vector(&mut cut, p.len(), Dtype::F32));
        let [dweight, dbias] =
            self.gradients.each_ref().map(|(g, _)| vector(&mut cut, g.len(), Dtype::F32));
        let slots = ParamSlots { weight, bias, mean, variance, dweight, dbias };
        let x = cut.slot(shape, Dtype::F32);
        let dy = cut.slot(out, Dtype::F32);
        let place = Place {
            x,
            y: if needs.in_place { x } else { cut.slot(out, Dtype::F32) },
            saved: vector(&mut cut, needs.saved.0 as usize, needs.saved.1),
            scratch: vector(&mut cut, needs.forward_scratch, Dtype::U8),
            backward_scratch: vector(&mut cut, needs.backward_scratch, Dtype::U8),
            dy,
            dx: if needs.gradient_in_place { Slot::EMPTY } else { cut.slot(shape, Dtype::F32) },
            ..Place::NONE
        };
        let call = Call { layer: &layer, index: INDEX, place, param: Param::Ram(slots), phase };

        let mut backend = device.backend(cut.bytes).expect("the device has the memory");
        let backend: &mut dyn Backend = &mut backend;
        let [(dw, expected_dw), (db, expected_db)] = &self.gradients;
        let params = Role::ALL.into_iter().zip(&self.params).map(|(role, p)| (slots.get(role), p));
        for (slot, numbers) in
            params.chain([(x, &self.x), (dweight, dw), (dbias, db), (dy, &self.dy)])
        {
            if !slot.is_empty() {
                write(backend, slot, numbers);
            }
        }
        let mut left = Left::default();
        let mut compare = |backend: &mut dyn Backend, name: &str, slot: Slot, expected: &[f64]| {
            if !slot.is_empty() {
                let got = read(backend, slot);
                tolerance.check(&format!("{what}: {name}"), &got, expected);
                left.numbers.push(got);
            }
        };
        backend.forward(&call).expect("the layer runs");
        let [means, variances] = self.forward.measured();
        compare(backend, "y", place.y, &self.forward.y);
        compare(backend, "mean", mean, means);
        compare(backend, "variance", variance, variances);
        if learns {
            backend.backward(&call).expect("the layer runs backward");
            let dx = if needs.gradient_in_place { dy } else { place.dx };
            compare(backend, "dx", dx, &self.dx);
            compare(backend, "dw", dweight, expected_dw);
            compare(backend, "db", dbias, expected_db);
        }
        match needs.saved {
            (n, Dtype::U8) if n > 0 => {
                left.winners = vec![0; n as usize];
                backend.read(place.saved, HostMut::U8(&mut left.winners)).expect("winners");
            }
            (n, Dtype::U16) if n > 0 => {
                left.places = vec![0; n as usize];
                backend.read(place.saved, HostMut::U16(&mut left.places)).expect("places");
            }
            _ => {}
        }
        left
    }
}

/// Checks a layer in some phases, and that the order of threads and blocks does not show in the
/// bits.
fn check(layer: Layer, shape: Shape, phases: &[Phase], x: &[f32], tolerance: Tolerance) {
    for &phase in phases {
        let case = Case::new(layer, shape, phase, x, tolerance);
        let first = Mutex::new(None);
        on_each(BOTH, |device| {
            let bits = case.check(device).bits();
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{layer:?}: other bits");
        });
    }
}

/// Multiples of 1/4 in (-8, 8): ties, zeros, both ends of `Relu6`.
fn steps(seed: u64, shape: Shape) -> Vec<f32> {
    values(seed, len(shape)).into_iter().map(|x| (x * 32.0).round() / 4.0).collect()
}

/// The same with infinities, NaN and both zeros strewn in, some side by side.
fn odd(seed: u64, shape: Shape) -> Vec<f32> {
    const ODD: [f32; 6] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, -0.0, 0.0];
    let mut x = steps(seed, shape);
    for (i, x) in x.iter_mut().enumerate() {
        if i % 11 < 4 {
            *x = ODD[i / 3 % ODD.len()];
        }
    }
    x
}

/// Channels of more than three thousand places, and of some hundred.
#[test]
fn batch_norm() {
    for shape in [Shape::new(3, 5, 37, 29), Shape::new(7, 3, 9, 5)] {
        for affine in [true, false] {
            let layer = Layer::BatchNorm(BatchNorm { affine, ..BatchNorm::new() });
            let x = steps(1, shape);
            check(layer, shape, &[Phase::Eval, TRAIN, LATER], &x, Tolerance::NORMALISED);
        }
    }
}

/// The difference of two large sums would have no digit left.
#[test]
fn batch_norm_of_a_large_mean() {
    let shape = Shape::new(4, 2, 23, 17);
    let layer = Layer::BatchNorm(BatchNorm::new());
    let x: Vec<f32> = values(2, len(shape)).into_iter().map(|x| 300.0 + x).collect();
    check(layer, shape, &[TRAIN, FIRST], &x, Tolerance::NORMALISED);
    // A channel that never changes.
    check(layer, shape, &[TRAIN], &vec![7.5; len(shape)], Tolerance::NORMALISED);
}

#[test]
fn standardise() {
    let shape = Shape::new(7, 3, 11, 13);
    let layer = Layer::Standardise(Standardise);
    let mut x = steps(3, shape);
    // Features that never change: their variance is 0, and so is what comes out.
    for row in x.chunks_exact_mut(3 * 11 * 13) {
        (1..).zip(&mut row[..40]).for_each(|(i, x)| *x = 0.1 * i as f32);
    }
    check(layer, shape, &[Phase::Eval, TRAIN, FIRST, LATER], &x, Tolerance::NORMALISED);
}

/// Samples too short to have a direction, too long for squares, and without a length.
#[test]
fn l2_normalise() {
    let shape = Shape::new(7, 3, 10, 13);
    let mut x = values(4, len(shape));
    let rows = [1.0, 0.0, 1e-30, 1e25, 1e-17, 1.0, 1.0];
    for (row, scale) in x.chunks_exact_mut(390).zip(rows) {
        row.iter_mut().for_each(|x| *x *= scale);
    }
    x[5 * 390 + 200] = f32::INFINITY;
    x[6 * 390 + 389] = f32::NAN;
    let layer = Layer::L2Normalise(L2Normalise);
    check(layer, shape, &[Phase::Eval], &x, Tolerance::NORMALISED);
    // Gradients of samples as short as that are as large as its inverse.
    x[4 * 390..5 * 390].fill(2.0);
    check(layer, shape, &[TRAIN], &x, Tolerance::NORMALISED);
}

/// Planes of more than a warp, in number no multiple of the warps of a block.
#[test]
fn statistics_of_planes() {
    for shape in [Shape::new(3, 7, 11, 13), Shape::new(2, 13, 3, 5)] {
        let mut x = steps(5, shape);
        x[..shape.plane() as usize].fill(3.0);
        for layer in [Layer::ChannelStd(ChannelStd), Layer::GlobalAvgPool(GlobalAvgPool)] {
            check(layer, shape, &[Phase::Eval, TRAIN], &x, Tolerance::NORMALISED);
        }
    }
}

#[test]
fn activations() {
    let shape = Shape::new(3, 5, 9, 7);
    for (l, tolerance) in [
        (Activation::Relu, Tolerance::EXACT),
        (Activation::Relu6, Tolerance::EXACT),
        (Activation::LeakyRelu { slope: 0.125 }, Tolerance::EXACT),
        (Activation::LeakyRelu { slope: 0.0 }, Tolerance::EXACT),
        (Activation::Tanh, Tolerance::ELEMENT),
    ] {
        let layer = Layer::Activation(l);
        check(layer, shape, &[Phase::Eval, TRAIN], &odd(6, shape), tolerance);
    }
}

/// The reference's bits, of numbers between steps, halfway between two, past both ends and of none.
#[test]
fn quantise() {
    let shape = Shape::new(3, 5, 9, 7);
    // In f64, halves of scales that are no power of 2 are none: no number is one there.
    for (scale, zero, halves) in [(0.5, 12, 500), (0.03125, 255, 500), (0.02, 128, 0), (1e-3, 0, 0)]
    {
        let l = Quantise { scale, zero };
        let mut x = odd(17, shape);
        let between = values(18, x.len()).into_iter().map(|v| 200.0 * scale * v);
        for (x, v) in x.iter_mut().zip(between).skip(halves).filter(|(x, _)| x.is_finite()) {
            *x = v;
        }
        let case = Case::new(Layer::Quantise(l), shape, TRAIN, &x, Tolerance::ELEMENT);
        let [mut y, mut dx] = [x.clone(), case.dy.clone()];
        l.forward(&mut y);
        l.backward(&y, &mut dx);
        assert!(dx.contains(&0.0) && dx.iter().zip(&case.dy).any(|(dx, dy)| dx == dy));
        let bits = |x: &[f32]| -> Vec<u32> {
            x.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect()
        };
        on_each(BOTH, |device| {
            let left = case.check(device);
            assert!(bits(&left.numbers[0]) == bits(&y), "{l:?}: other steps");
            assert!(bits(&left.numbers[1]) == bits(&dx), "{l:?}: another gradient");
        });
        check(Layer::Quantise(l), shape, &[Phase::Eval], &x, Tolerance::ELEMENT);
    }
}

/// The reference's bits, forward and backward, of samples that end within a block of the
/// generator.
#[test]
fn dropout() {
    let Phase::Train { seed, update } = TRAIN else { return };
    for shape in [Shape::new(5, 3, 7, 9), Shape::rows(9, 84)] {
        let l = Dropout { rate: 0.3 };
        let x = odd(7, shape);
        let case = Case::new(Layer::Dropout(l), shape, TRAIN, &x, Tolerance::ELEMENT);
        let [mut y, mut dx] = [x.clone(), case.dy.clone()];
        let seed = layer_seed(seed, INDEX);
        l.forward(shape, &mut y, seed, update);
        l.backward(shape, &mut dx, seed, update);
        // A NaN that stays is one of any bits.
        let bits = |x: &[f32]| -> Vec<u32> {
            x.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect()
        };
        on_each(BOTH, |device| {
            let left = case.check(device);
            assert!(bits(&left.numbers[0]) == bits(&y), "another mask forward");
            assert!(bits(&left.numbers[1]) == bits(&dx), "another mask backward");
        });
        check(Layer::Dropout(l), shape, &[Phase::Eval, FIRST], &x, Tolerance::EXACT);
    }
}

/// Windows that overlap, that leave places out, that hold as many places as a winner can name.
fn windows() -> Vec<(Shape, Window)> {
    vec![
        (Shape::new(2, 3, 37, 29), Window { kernel: (3, 3), stride: (2, 2), pad: (1, 1) }),
        (Shape::new(2, 2, 13, 18), Window { kernel: (3, 2), stride: (1, 1), pad: (1, 0) }),
        (Shape::new(3, 2, 17, 22), Window { kernel: (2, 2), stride: (3, 4), pad: (0, 1) }),
        (Shape::new(1, 2, 17, 20), Window { kernel: (15, 17), stride: (1, 2), pad: (2, 3) }),
        (Shape::new(5, 3, 1, 40), Window { kernel: (1, 3), stride: (1, 2), pad: (0, 1) }),
    ]
}

#[test]
fn max_pool() {
    for (shape, window) in windows() {
        let l = MaxPool { window };
        for x in [steps(8, shape), odd(9, shape), vec![f32::NEG_INFINITY; len(shape)]] {
            let case = Case::new(Layer::MaxPool(l), shape, TRAIN, &x, Tolerance::ELEMENT);
            let mut y = vec![0.0; case.forward.y.len()];
            let mut winners = vec![0; y.len()];
            l.forward(shape, &x, &mut y, Some(&mut winners));
            on_each(BOTH, |device| {
                assert!(case.check(device).winners == winners, "{l:?} of {shape}: other winners");
            });
        }
        check(Layer::MaxPool(l), shape, &[Phase::Eval], &odd(9, shape), Tolerance::EXACT);
    }
}

#[test]
fn avg_pool() {
    for (shape, window) in windows() {
        let layer = Layer::AvgPool(AvgPool { window });
        check(layer, shape, &[Phase::Eval, TRAIN], &steps(10, shape), Tolerance::SUM);
    }
}

/// Bins that share rows, that share none, and as many bins as places.
#[test]
fn avg_pool_to() {
    for (shape, h, w) in [
        (Shape::new(2, 3, 23, 17), 7, 5),
        (Shape::new(3, 2, 12, 9), 4, 8),
        (Shape::new(2, 5, 6, 31), 9, 30),
    ] {
        let layer = Layer::AvgPoolTo(AvgPoolTo { h, w });
        check(layer, shape, &[Phase::Eval, TRAIN], &steps(11, shape), Tolerance::SUM);
    }
}

#[test]
fn k_max_pool() {
    for (shape, k) in [
        (Shape::new(3, 10, 9, 13), 4),
        (Shape::new(2, 3, 2, 77), 30),
        (Shape::new(3, 1, 1, 33), 33),
    ] {
        let l = KMaxPool { k };
        for x in [steps(12, shape), odd(13, shape)] {
            let case = Case::new(Layer::KMaxPool(l), shape, TRAIN, &x, Tolerance::EXACT);
            let mut y = vec![0.0; case.forward.y.len()];
            let mut places = vec![0; y.len()];
            l.forward(shape, &x, &mut y, Some(&mut places));
            on_each(BOTH, |device| {
                assert!(case.check(device).places == places, "{l:?} of {shape}: other places");
            });
            check(Layer::KMaxPool(l), shape, &[Phase::Eval], &x, Tolerance::EXACT);
        }
    }
}

/// Tokens between rows, past the last and without a number; more numbers than a block sums.
#[test]
fn embedding() {
    let shape = Shape::new(3, 1, 2, 83);
    let mut x: Vec<f32> = steps(14, shape).into_iter().map(|x| x + 4.0).collect();
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 4.3e9, -1.5, 0.499_999_97, 6.5, 1e-40];
    x[170..170 + odd.len()].copy_from_slice(&odd);
    for (tokens, dim) in [(7, 11), (9, 16), (1, 1)] {
        let layer = Layer::Embedding(Embedding { tokens, dim });
        check(layer, shape, &[Phase::Eval, TRAIN], &x, Tolerance::SUM);
    }
}

#[test]
fn space_to_depth() {
    let shape = Shape::new(2, 5, 12, 18);
    for factor in [2, 3, 6] {
        let layer = Layer::SpaceToDepth(SpaceToDepth { factor });
        check(layer, shape, &[Phase::Eval, TRAIN], &steps(15, shape), Tolerance::EXACT);
    }
}

/// A batch without samples leaves what was measured as it is.
#[test]
fn empty_batches() {
    let shape = Shape::new(0, 2, 3, 4);
    for layer in [
        Layer::Standardise(Standardise),
        Layer::L2Normalise(L2Normalise),
        Layer::Dropout(Dropout { rate: 0.5 }),
        Layer::Activation(Activation::Tanh),
        Layer::Quantise(Quantise::BYTES),
        Layer::ChannelStd(ChannelStd),
        Layer::MaxPool(MaxPool::new(2)),
        Layer::AvgPoolTo(AvgPoolTo { h: 2, w: 2 }),
        Layer::KMaxPool(KMaxPool { k: 2 }),
    ] {
        check(layer, shape, &[Phase::Eval, TRAIN, FIRST, LATER], &[], Tolerance::EXACT);
    }
    let layer = Layer::Embedding(Embedding { tokens: 3, dim: 2 });
    check(layer, Shape { c: 1, ..shape }, &[Phase::Eval, TRAIN], &[], Tolerance::EXACT);
}

/// The reference's bits, of more samples than a block has threads and of more channels than have
/// numbers of their own.
#[test]
fn widen() {
    let norm = Normalisation { mean: [0.1, 0.4, 0.7, 0.9], std: [0.5, 0.25, 2.0, 1.0] };
    for shape in [Shape::new(3, 3, 17, 19), Shape::new(2, 6, 9, 7)] {
        let bytes: Vec<u8> = (0..len(shape)).map(|i| (i * 37 % 256) as u8).collect();
        let numbers = odd(16, shape);
        let expected = |x: &dyn Fn(usize) -> f32, bytes: bool| -> Vec<u32> {
            let (plane, channels) = (shape.plane() as usize, shape.c as usize);
            let affine = |i: usize| norm.affine(i / plane % channels, channels, bytes);
            let widened = (0..len(shape)).map(|i| x(i) * affine(i).0 + affine(i).1);
            widened.map(|x| if x.is_nan() { f32::NAN } else { x }.to_bits()).collect()
        };
        on_each(BOTH, |device| {
            let mut cut = Cut::default();
            let [raw, x] = [Dtype::U8, Dtype::F32].map(|dtype| cut.slot(shape, dtype));
            let mut backend = device.backend(cut.bytes).expect("the device has the memory");
            let backend: &mut dyn Backend = &mut backend;
            let bits = |backend: &mut dyn Backend| -> Vec<u32> {
                let x = read(backend, x);
                x.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect()
            };
            backend.write(raw, Host::U8(&bytes)).expect("the slot holds bytes");
            backend.widen(raw, &norm, x).expect("a batch");
            assert!(bits(backend) == expected(&|i| f32::from(bytes[i]), true), "bytes");
            write(backend, x, &numbers);
            backend.widen(x, &norm, x).expect("a batch");
            assert!(bits(backend) == expected(&|i| numbers[i], false), "numbers");
        });
    }
}

/// More parameters than a block has threads; a state that the first update is not to read; an
/// update long after the first.
#[test]
fn update() {
    let layers = [Layer::Dense(Dense::new(41))];
    let (chain, shape) = (Chain::new(&layers), Shape::rows(1, 17));
    for rule in [
        Rule::Sgd { momentum: 0.0, nesterov: true, weight_decay: 0.1 },
        Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.1 },
        Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
        Rule::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 },
        Rule::adamw(0.1),
    ] {
        let params = plan::Params::new(0, chain, shape, rule.slots()).expect("small");
        let slots = [params.trained(), params.gradients(), params.state(0), params.state(1)];
        let n = len(slots[0].shape);
        let start = if matches!(rule, Rule::Sgd { .. }) { f32::NAN } else { 0.0 };
        let state = |used: bool| if used { vec![start; n] } else { vec![] };
        let [p, first, second] = [values(17, n), state(rule.slots() > 0), state(rule.slots() > 1)];
        on_each(BOTH, |device| {
            let mut backend = device.backend(params.bytes()).expect("the device has the memory");
            let backend: &mut dyn Backend = &mut backend;
            let [mut p64, mut first64, mut second64] = [&p, &first, &second].map(|x| wide(x));
            for (slot, x) in [(slots[0], &p), (slots[2], &first), (slots[3], &second)] {
                if !slot.is_empty() {
                    write(backend, slot, x);
                }
            }
            for update in [0, 1, 2, 70_000] {
                let g = values(18 + u64::from(update), n);
                write(backend, slots[1], &g);
                backend.update(&rule, 0.05, update, params).expect("the update runs");
                let rate = f64::from(0.05f32);
                rule.update(rate, update, &mut p64, &wide(&g), &mut first64, &mut second64);
            }
            let what = format!("{rule:?}");
            for (slot, expected) in [(slots[0], &p64), (slots[2], &first64), (slots[3], &second64)]
            {
                if !slot.is_empty() {
                    Tolerance::SUM.check(&what, &read(backend, slot), expected);
                }
            }
        });
    }
}
