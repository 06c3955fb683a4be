//! Products over several tiles and a rest in every dimension, by each of the device's ways. The
//! suite's shapes fill one tile at most.

mod common;

use sepal_conformance::oracle::{self, Params};
use sepal_conformance::{Cut, Tolerance, len, read, values, wide, write};
use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{Backend, Call, Param, Phase};
use sepal_core::layer::{Conv2d, Dense, Layer, Pass, Project};
use sepal_core::plan::{Chain, ParamSlots, Place, Reached};
use sepal_core::shape::Shape;
use sepal_cuda::{Cuda, OnCuda};

use common::{BOTH, counts, on_each};
use sepal_stand_in::{Class, Gpu};

const PHASE: Phase = Phase::Train { seed: 11, update: 3 };

/// Which passes a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    All,
    Forward,
    /// Without the gradient of the input.
    Weights,
    Backward,
}

/// A layer, its input and what it gives.
struct Case {
    layer: Layer,
    passes: Passes,
    shape: Shape,
    params: Params,
    x: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f64>,
    dx: Vec<f64>,
    /// Before and after the call.
    gradients: [(Vec<f32>, Vec<f64>); 2],
}

impl Case {
    fn new(shape: Shape, layer: Layer, passes: Passes) -> Self {
        Self::with(shape, layer, passes, |_, _, _| ())
    }

    /// With parameters, inputs and gradients of the output that are changed first.
    fn with(
        shape: Shape,
        layer: Layer,
        passes: Passes,
        change: impl FnOnce(&mut Params, &mut [f32], &mut [f32]),
    ) -> Self {
        let mut params = oracle::params(&layer, shape, 40);
        let mut x = values(3, len(shape));
        let out = layer.output(shape).expect("the layer takes the shape");
        let mut dy = values(4, len(out));
        change(&mut params, &mut x, &mut dy);
        let forward = oracle::Forward::new(&layer, shape, PHASE, &wide(&x), &params);
        let backward = forward.backward(&wide(&dy));
        let gradients = backward.dparams.map(|mut after| {
            // Gradients are added to.
            let before = values(5, after.len());
            after.iter_mut().zip(&before).for_each(|(after, &b)| *after += f64::from(b));
            (before, after)
        });
        Self { layer, passes, shape, params, x, dy, y: forward.y, dx: backward.dx, gradients }
    }

    /// Runs the layer, compares what it writes, and returns it.
    fn check(&self, device: &OnCuda) -> Vec<Vec<f32>> {
        let Self { layer, passes, shape, .. } = *self;
        let out = layer.output(shape).expect("the layer takes the shape");
        let layers = [layer];
        let x = Slot::new(0, shape, Dtype::F32);
        let planner = device.backend(0).expect("no memory is there");
        let needs =
            planner.needs(&Chain::new(&layers), 0, Reached::first(x), Pass::Train).expect("small");

        let mut cut = Cut::default();
        let vector = |cut: &mut Cut, len: usize| match len {
            0 => Slot::EMPTY,
            _ => cut.slot(Shape::rows(1, len as u32), Dtype::F32),
        };
        let [weight, bias, ..] = self.params.each_ref().map(|p| vector(&mut cut, p.len()));
        let [dweight, dbias] = self.gradients.each_ref().map(|(g, _)| vector(&mut cut, g.len()));
        let slots =
            ParamSlots { weight, bias, dweight, dbias, mean: Slot::EMPTY, variance: Slot::EMPTY };
        let place = Place {
            x: cut.slot(shape, Dtype::F32),
            y: cut.slot(out, Dtype::F32),
            saved: Slot::EMPTY,
            scratch: Slot::EMPTY,
            backward_scratch: cut.slot(Shape::rows(1, needs.backward_scratch as u32), Dtype::U8),
            dy: cut.slot(out, Dtype::F32),
            dx: match passes {
                Passes::Weights => Slot::EMPTY,
                _ => cut.slot(shape, Dtype::F32),
            },
            ..Place::NONE
        };
        let call = Call { layer: &layer, index: 0, place, param: Param::Ram(slots), phase: PHASE };

        let mut backend: Cuda = device.backend(cut.bytes).expect("the device has the memory");
        let backend: &mut dyn Backend = &mut backend;
        let [(dw, expected_dw), (db, expected_db)] = &self.gradients;
        let [w, b, ..] = &self.params;
        let given = [(weight, w), (bias, b), (dweight, dw), (dbias, db)];
        for (slot, numbers) in given.into_iter().chain([(place.x, &self.x), (place.dy, &self.dy)]) {
            if !numbers.is_empty() {
                write(backend, slot, numbers);
            }
        }
        let mut expected = vec![];
        if matches!(passes, Passes::All | Passes::Forward) {
            backend.forward(&call).expect("the layer runs");
            expected.push(("y", place.y, &self.y));
        }
        if passes != Passes::Forward {
            backend.backward(&call).expect("the layer runs backward");
            expected.extend([("dw", dweight, expected_dw), ("db", dbias, expected_db)]);
            expected.push(("dx", place.dx, &self.dx));
        }
        let written = expected.into_iter().filter(|(_, slot, _)| !slot.is_empty());
        written
            .map(|(name, slot, expected)| {
                let got = read(backend, slot);
                Tolerance::SUM.check(&format!("{layer:?} of {shape}: {name}"), &got, expected);
                got
            })
            .collect()
    }
}

fn conv(shape: Shape, conv: Conv2d, passes: Passes) {
    let case = Case::new(shape, Layer::Conv2d(conv), passes);
    on_each(BOTH, |device| {
        case.check(device);
    });
}

fn dense(shape: Shape, dense: Dense, passes: Passes) {
    let case = Case::new(shape, Layer::Dense(dense), passes);
    on_each(BOTH, |device| {
        case.check(device);
    });
}

/// Five tiles of places by five of filters, more than one table of steps each way, and gradients
/// of the weights in two spans, by three tiles and three.
#[test]
fn convolution_over_tiles() {
    let layer = Conv2d { pad: (1, 1), ..Conv2d::new(131, 3) };
    conv(Shape::new(2, 29, 13, 12), layer, Passes::All);
}

/// Groups, a stride of two, and places that are reached by fewer taps than others.
#[test]
fn strided_convolution_in_groups() {
    let layer = Conv2d {
        filters: 2 * 35,
        kernel: (3, 4),
        stride: (2, 2),
        pad: (2, 1),
        groups: 2,
        bias: true,
    };
    conv(Shape::new(3, 2 * 33, 15, 13), layer, Passes::All);
}

/// Three places of four are read by nobody.
#[test]
fn convolution_that_skips_places() {
    let layer = Conv2d { stride: (2, 2), bias: false, ..Conv2d::new(70, 1) };
    conv(Shape::new(3, 67, 9, 15), layer, Passes::All);
}

/// Enough tiles for large ones: groups of one tile of channels, three of places, both ways.
#[test]
fn convolution_over_large_tiles() {
    let layer = Conv2d { groups: 86, bias: false, ..Conv2d::new(86 * 34, 1) };
    conv(Shape::new(5, 86 * 33, 4, 14), layer, Passes::All);
}

/// A filter or two for each channel, over more places than a block has threads.
#[test]
fn depthwise_convolution() {
    let layer = Conv2d { groups: 33, stride: (2, 1), pad: (1, 1), ..Conv2d::new(66, 3) };
    conv(Shape::new(5, 33, 11, 9), layer, Passes::All);
    conv(Shape::new(2, 5, 23, 18), Conv2d { groups: 5, ..Conv2d::new(5, 5) }, Passes::All);
}

/// Infinities and NaN among inputs, gradients and weights reach what they reach by the definition, and
/// nothing by way of the border or of the tensor cores' halves.
#[test]
fn not_finite() {
    let odd = |every: usize, numbers: &mut [f32]| {
        const ODD: [f32; 3] = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY];
        for (number, odd) in numbers.iter_mut().skip(3).step_by(every).zip(ODD.iter().cycle()) {
            *number = *odd;
        }
    };
    let padded = Conv2d { pad: (1, 2), stride: (2, 1), ..Conv2d::new(35, 3) };
    let large = Conv2d { groups: 86, pad: (1, 0), ..Conv2d::new(86 * 33, 1) };
    let direct = Conv2d { groups: 3, pad: (1, 1), ..Conv2d::new(6, 3) };
    for (shape, layer, passes) in [
        (Shape::new(1, 17, 13, 12), Layer::Conv2d(padded), Passes::All),
        (Shape::new(1, 86 * 2, 10, 22), Layer::Conv2d(large), Passes::Forward),
        (Shape::new(2, 3, 9, 11), Layer::Conv2d(direct), Passes::All),
        (Shape::rows(65, 67), Layer::Dense(Dense::new(131)), Passes::All),
    ] {
        let few = len(shape) / 3;
        let inputs = Case::with(shape, layer, passes, |_, x, _| odd(few, x));
        let weights = Case::with(shape, layer, passes, |params, _, _| {
            odd(params[0].len() / 3, &mut params[0]);
        });
        let gradients = Case::with(shape, layer, passes, |_, _, dy| odd(dy.len() / 3, dy));
        on_each(BOTH, |device| {
            for case in [&inputs, &weights, &gradients] {
                case.check(device);
            }
        });
    }
    let layer = Layer::Conv2d(padded);
    let all = Case::with(Shape::new(1, 2, 7, 9), layer, Passes::All, |_, x, _| {
        x.fill(f32::INFINITY);
    });
    on_each(BOTH, |device| {
        all.check(device);
    });
}

/// The order of threads and blocks does not show in the bits.
#[test]
fn same_bits_twice() {
    let layer = Conv2d { pad: (1, 1), ..Conv2d::new(19, 3) };
    let case = Case::new(Shape::new(4, 9, 15, 17), Layer::Conv2d(layer), Passes::All);
    let bits = |results: Vec<Vec<f32>>| -> Vec<u32> {
        results.into_iter().flatten().map(f32::to_bits).collect()
    };
    on_each(BOTH, |device| {
        let first = bits(case.check(device));
        if let Gpu::StandIn(device) = sepal_stand_in::load() {
            device.seed(77);
        }
        assert!(first == bits(case.check(device)), "other bits the second time");
    });
}

#[test]
fn dense_over_tiles() {
    dense(Shape::new(75, 7, 5, 3), Dense::new(139), Passes::All);
    dense(Shape::rows(70, 141), Dense { units: 131, bias: false }, Passes::All);
}

/// Enough tiles for large ones.
#[test]
fn dense_over_large_tiles() {
    dense(Shape::rows(135, 33), Dense::new(86 * 128), Passes::Forward);
    dense(Shape::rows(33, 86 * 128), Dense::new(135), Passes::Weights);
    dense(Shape::rows(135, 86 * 128 - 3), Dense::new(33), Passes::Backward);
}

/// Three blocks of signs, and a rest.
#[test]
fn projection_over_tiles() {
    let case = Case::new(
        Shape::rows(70, 397),
        Layer::Project(Project { dim: 150, seed: 0x0123_4567_89ab_cdef }),
        Passes::All,
    );
    on_each(BOTH, |device| {
        case.check(device);
    });
}

/// Products run on tensor cores where these are faster, which they are not on 8.6, and are right
/// there too.
#[test]
fn tensor_cores_multiply_where_they_are_faster() {
    let conv = Case::new(
        Shape::new(2, 20, 9, 9),
        Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(33, 3) }),
        Passes::All,
    );
    let dense = Case::new(Shape::rows(70, 141), Layer::Dense(Dense::new(131)), Passes::All);
    for case in [conv, dense] {
        let products = |capability| {
            let counts = counts(capability, |device| {
                case.check(device);
            });
            counts.map(|counts| (counts.of(Class::Mma) > 0, counts.of(Class::Fma) > 0))
        };
        let Some(on_80) = products(80) else { return };
        assert!(on_80.0, "{:?}", case.layer);
        assert_eq!(products(90), Some(on_80), "{:?}", case.layer);
        for capability in [75, 86, 89] {
            assert_eq!(products(capability), Some((false, true)), "{:?}", case.layer);
        }
    }
}
