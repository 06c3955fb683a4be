//! Runs single layers on any backend, in an arena filled with NaN.
#![allow(dead_code, reason = "each test file uses a part")]

use sepal_core::arena::{Dtype, Layout, Slot, Word};
use sepal_core::backend::{Backend, Call, Host, HostMut, Param, Phase};
use sepal_core::layer::{Layer, Pass, Role, Tensors};
use sepal_core::plan::{Chain, ParamSlots, Place, Reached};
use sepal_core::shape::Shape;

/// How far two results may be apart: at most `relative` times the larger of 1 and the largest
/// value expected.
#[derive(Clone, Copy)]
pub struct Tolerance {
    pub relative: f32,
}

/// The same operations in the same order.
pub const EXACT: Tolerance = Tolerance { relative: 0.0 };
/// Sums of up to some thousand products of numbers near 1, in another order.
pub const PRODUCTS: Tolerance = Tolerance { relative: 2e-5 };

#[track_caller]
pub fn close(what: &str, got: &[f32], expected: &[f32], tolerance: Tolerance) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths differ");
    let finite = expected.iter().filter(|e| e.is_finite());
    let scale = finite.fold(1.0f32, |scale, e| scale.max(e.abs()));
    for (at, (g, e)) in got.iter().zip(expected).enumerate() {
        let same = g == e || (g.is_nan() && e.is_nan());
        let near = same || (g - e).abs() <= tolerance.relative * scale;
        assert!(near, "{what} at {at}: got {g}, expected {e}");
    }
}

/// `len` values in (-1, 1), another sequence for each `seed`.
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub fn len(shape: Shape) -> usize {
    shape.len().unwrap() as usize
}

/// Gives out slots one after the other.
struct Bump(usize);

impl Bump {
    fn slot(&mut self, shape: Shape, dtype: Dtype) -> Slot {
        self.lying(shape, dtype, Layout::Nchw)
    }

    fn lying(&mut self, shape: Shape, dtype: Dtype, layout: Layout) -> Slot {
        let slot = Slot { layout, ..Slot::new(self.0, shape, dtype) };
        self.0 += Word::round_up(slot.bytes());
        slot
    }

    fn vector(&mut self, len: u32, dtype: Dtype) -> Slot {
        self.slot(Shape::rows(1, len), dtype)
    }

    fn bytes(&mut self, bytes: usize) -> Slot {
        let words = Word::count(bytes) as u32;
        self.slot(Shape::new(words, Word::BYTES as u32, 1, 1), Dtype::U8)
    }
}

/// What a layer left behind.
#[derive(Debug, PartialEq)]
pub struct Ran {
    pub y: Vec<f32>,
    pub dx: Vec<f32>,
    pub dw: Vec<f32>,
    pub db: Vec<f32>,
    pub mean: Vec<f32>,
    pub variance: Vec<f32>,
}

/// Numbers that go into a layer.
pub struct Input {
    pub x: Vec<f32>,
    pub dy: Vec<f32>,
    pub params: [Vec<f32>; 4],
    /// What gradients start from.
    pub start: f32,
}

impl Input {
    pub fn new(layer: &Layer, shape: Shape, seed: u64) -> Self {
        let tensors = layer.tensors(shape).unwrap();
        let mut params =
            Role::ALL.map(|role| values(seed + role as u64, tensors.len(role) as usize));
        params[3].iter_mut().for_each(|v| *v = v.abs() + 0.5);
        let out = layer.output(shape).unwrap();
        Self {
            x: values(seed + 10, len(shape)),
            dy: values(seed + 11, len(out)),
            params,
            start: 0.25,
        }
    }
}

/// Slots of one layer, placed one after the other, nothing shared.
struct Placed {
    place: Place,
    slots: ParamSlots,
    bytes: usize,
    gradient_in_place: bool,
}

fn place<B: Backend>(
    backend: &B,
    layer: &Layer,
    (shape, layout): (Shape, Layout),
    pass: Pass,
) -> Placed {
    let layers = [*layer];
    let x = Slot { layout, ..Slot::new(0, shape, Dtype::F32) };
    let needs = backend.needs(&Chain::new(&layers), 0, Reached::first(x), pass).unwrap();
    let tensors = if pass == Pass::Narrow { Tensors::NONE } else { layer.tensors(shape).unwrap() };
    let mut bump = Bump(0);
    let place = Place {
        x: bump.lying(shape, Dtype::F32, layout),
        y: bump.lying(needs.out, Dtype::F32, needs.layout),
        saved: bump.vector(needs.saved.0, needs.saved.1),
        scratch: bump.bytes(needs.forward_scratch),
        backward_scratch: bump.bytes(needs.backward_scratch),
        dy: bump.lying(needs.out, Dtype::F32, needs.layout),
        dx: bump.lying(shape, Dtype::F32, layout),
        ..Place::NONE
    };
    let slots = ParamSlots {
        weight: bump.vector(tensors.weight, Dtype::F32),
        bias: bump.vector(tensors.bias, Dtype::F32),
        mean: bump.vector(tensors.mean, Dtype::F32),
        variance: bump.vector(tensors.variance, Dtype::F32),
        dweight: bump.vector(tensors.weight, Dtype::F32),
        dbias: bump.vector(tensors.bias, Dtype::F32),
    };
    Placed { place, slots, bytes: bump.0, gradient_in_place: needs.gradient_in_place }
}

/// The memory that a layer takes.
pub fn bytes<B: Backend>(backend: &B, layer: &Layer, shape: Shape, pass: Pass) -> usize {
    bytes_in(backend, layer, (shape, Layout::Nchw), pass)
}

/// The memory that a layer takes whose input has a layout.
pub fn bytes_in<B: Backend>(backend: &B, layer: &Layer, x: (Shape, Layout), pass: Pass) -> usize {
    place(backend, layer, x, pass).bytes
}

/// For each element in the reference's order, where it lies in a slot of blocks.
fn places(s: Shape) -> impl Iterator<Item = usize> {
    let [c, area] = [s.c as usize, s.plane() as usize];
    (0..s.n as usize).flat_map(move |n| {
        (0..c).flat_map(move |c_at| {
            let block = n * c.div_ceil(8) + c_at / 8;
            (0..area).map(move |i| (block * area + i) * 8 + c_at % 8)
        })
    })
}

/// The numbers of a slot in the reference's order; the padding must be zeros.
fn read<B: Backend>(backend: &mut B, slot: Slot) -> Vec<f32> {
    let mut out = vec![0.0; slot.elements()];
    let all = Slot::vector(slot.at, slot.elements() as u32, slot.dtype);
    backend.read(all, HostMut::F32(&mut out)).unwrap();
    if slot.layout == Layout::Nchw8c {
        let numbers = places(slot.shape).map(|at| std::mem::take(&mut out[at])).collect();
        assert!(out.iter().all(|x| *x == 0.0), "the padding of {slot:?}");
        return numbers;
    }
    out
}

fn write<B: Backend>(backend: &mut B, slot: Slot, values: &[f32]) {
    let mut lying = vec![0.0; slot.elements()];
    if slot.layout == Layout::Nchw8c {
        places(slot.shape).zip(values).for_each(|(at, x)| lying[at] = *x);
    } else {
        lying.copy_from_slice(values);
    }
    let all = Slot::vector(slot.at, slot.elements() as u32, slot.dtype);
    backend.write(all, Host::F32(&lying)).unwrap();
}

/// Runs a layer with parameters in the arena: forward, and backward unless the phase is `Eval`.
/// Without `wants_dx` no input gradient is asked for.
pub fn run<B: Backend>(
    backend: &mut B,
    layer: &Layer,
    shape: Shape,
    phase: Phase,
    input: &Input,
    wants_dx: bool,
) -> Ran {
    run_in(backend, layer, (shape, Layout::Nchw), phase, input, wants_dx)
}

/// As [`run`], the input in a layout.
pub fn run_in<B: Backend>(
    backend: &mut B,
    layer: &Layer,
    x: (Shape, Layout),
    phase: Phase,
    input: &Input,
    wants_dx: bool,
) -> Ran {
    let eval = phase == Phase::Eval;
    let pass = if eval { Pass::Eval } else { Pass::Train };
    let Placed { mut place, slots, gradient_in_place, .. } = place(backend, layer, x, pass);
    if !wants_dx {
        place.dx = Slot::EMPTY;
    }
    write(backend, place.x, &input.x);
    for (slot, values) in
        [slots.weight, slots.bias, slots.mean, slots.variance].into_iter().zip(&input.params)
    {
        write(backend, slot, values);
    }
    for slot in [slots.dweight, slots.dbias] {
        write(backend, slot, &vec![input.start; slot.elements()]);
    }
    let param = Param::Ram(slots);
    let call = Call { layer, index: 3, place, param, phase };
    backend.forward(&call).unwrap();
    let y = read(backend, place.y);
    let mut dx = vec![];
    if !eval {
        write(backend, place.dy, &input.dy);
        backend.backward(&call).unwrap();
        if wants_dx || gradient_in_place {
            dx = read(backend, if gradient_in_place { place.dy } else { place.dx });
        }
    }
    Ran {
        y,
        dx,
        dw: read(backend, slots.dweight),
        db: read(backend, slots.dbias),
        mean: read(backend, slots.mean),
        variance: read(backend, slots.variance),
    }
}

/// Runs a layer forward with parameters stored in a model.
pub fn run_stored<B: Backend>(
    backend: &mut B,
    layer: &Layer,
    shape: Shape,
    pass: Pass,
    x: &[f32],
    tensors: [sepal_core::net::Stored<'_>; 4],
) -> Vec<f32> {
    let x_in = (shape, Layout::Nchw);
    let Placed { place, .. } = place(backend, layer, x_in, pass);
    write(backend, place.x, x);
    let param = Param::Model { layer: 0, tensors };
    backend.forward(&Call { layer, index: 0, place, param, phase: Phase::Eval }).unwrap();
    read(backend, place.y)
}

/// Memory that fails who reads what was not written.
pub fn nan(bytes: usize) -> Vec<Word> {
    vec![Word::NAN; Word::count(bytes)]
}
