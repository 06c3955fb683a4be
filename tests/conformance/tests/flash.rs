//! Weights that stay where they are: f32 of a model in flash is used in place and takes no room in
//! the arena; narrower types take room for one layer at a time.

use std::cell::RefCell;

use sepal_conformance::seam::{Call, Result};
use sepal_conformance::{Backend, Word};
use sepal_core::arena::Dtype;
use sepal_core::backend::Param;
use sepal_core::infer::Inference;
use sepal_core::layer::{BatchNorm, Dense, L2Normalise, Layer, RELU, Role};
use sepal_core::net::{Input, Model, Net, Normalisation, TensorRecord, Weights};
use sepal_core::optim::Rule;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Session, StagePlan};

/// 6 inputs, 4 and 3 units: 24 + 4, a norm's 4 + 4, and 12 + 3 numbers.
const NET: Net<'static> = Net {
    input: Input { shape: Shape::rows(1, 6), normalisation: Normalisation::NONE },
    layers: &[
        Layer::Dense(Dense { units: 4, bias: true }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::Dense(Dense { units: 3, bias: true }),
    ],
    blocks: &[3, 4],
    features: 1,
};

const NUMBERS: usize = 51;

/// Multiples of 1/8, which f16 holds too; those of an i8 with the scale 1/8.
const fn number(at: usize) -> f32 {
    let eighths = (at * 7 % 23) as f32 - 11.0;
    // Variances are positive.
    if at >= 32 && at < 36 { 0.5 + (at % 3) as f32 } else { eighths / 8.0 }
}

/// What the linker places in flash: f32, f16 and i8 of the same numbers, in one section.
#[repr(align(16))]
struct Flash([u8; 512]);

const F16_AT: usize = 208;
const I8_AT: usize = 320;
const SCALES_AT: usize = 384;

static FLASH: Flash = Flash(flash());

const fn flash() -> [u8; 512] {
    let mut bytes = [0; 512];
    let mut at = 0;
    while at < NUMBERS {
        put(&mut bytes, 4 * at, &number(at).to_le_bytes());
        put(&mut bytes, F16_AT + 2 * at, &half::f16::from_f32_const(number(at)).to_le_bytes());
        bytes[I8_AT + at] = (number(at) * 8.0) as i8 as u8;
        put(&mut bytes, SCALES_AT + 4 * (at % 4), &0.125f32.to_le_bytes());
        at += 1;
    }
    bytes
}

const fn put(bytes: &mut [u8; 512], at: usize, of: &[u8]) {
    let mut i = 0;
    while i < of.len() {
        bytes[at + i] = of[i];
        i += 1;
    }
}

const fn record(layer: u16, role: Role, first: u32, len: u32, dtype: Dtype) -> TensorRecord {
    let (at, scales_len) = match dtype {
        Dtype::F16 => (F16_AT as u32 + 2 * first, 0),
        Dtype::I8 => (I8_AT as u32 + first, 4),
        _ => (4 * first, 0),
    };
    let len = len * dtype.size() as u32;
    TensorRecord { layer, role, dtype, at, len, scales_at: SCALES_AT as u32, scales_len }
}

/// The weights of both dense layers as `dtype`, all else as f32.
const fn records(dtype: Dtype) -> [TensorRecord; 6] {
    [
        record(0, Role::Weight, 0, 24, dtype),
        record(0, Role::Bias, 24, 4, Dtype::F32),
        record(1, Role::Mean, 28, 4, Dtype::F32),
        record(1, Role::Variance, 32, 4, Dtype::F32),
        record(3, Role::Weight, 36, 12, dtype),
        record(3, Role::Bias, 48, 3, Dtype::F32),
    ]
}

static F32: [TensorRecord; 6] = records(Dtype::F32);
static F16: [TensorRecord; 6] = records(Dtype::F16);
static I8: [TensorRecord; 6] = records(Dtype::I8);

const fn model(records: &'static [TensorRecord]) -> Model<'static> {
    Model { net: NET, weights: Weights::File { records, blob: &FLASH.0 } }
}

/// The reference, telling what is prepared and where parameters lie.
struct Watched<'a> {
    inner: Reference<'a>,
    prepared: Vec<(usize, usize)>,
    /// Bytes of each frozen tensor that a call was given, and whether they lie in `FLASH`.
    given: &'a RefCell<Vec<(usize, bool)>>,
}

impl Backend for Watched<'_> {
    sepal_conformance::delegate! {
        inner: bytes write read fill zero copy widen backward backward_source objective update
            nearest top_k
    }

    fn prepare(&mut self, _: &Model<'_>, first: usize, last: usize) -> Result<()> {
        self.prepared.push((first, last));
        Ok(())
    }

    fn forward(&mut self, call: &Call<'_>) -> Result<()> {
        if let Param::Model { tensors, .. } = call.param {
            let flash = FLASH.0.as_ptr_range();
            let stored = tensors.iter().filter(|stored| !stored.is_empty());
            let given =
                stored.map(|stored| (stored.bytes.len(), flash.contains(&stored.bytes.as_ptr())));
            self.given.borrow_mut().extend(given);
        }
        self.inner.forward(call)
    }
}

fn run(model: &Model<'_>, bytes: usize, given: &RefCell<Vec<(usize, bool)>>) -> Vec<u32> {
    let plan = Inference::new(&Reference::new(&mut []), model, (0, 4), 2, true).unwrap();
    assert_eq!(plan.bytes(), bytes);
    let mut memory = vec![Word::NAN; bytes / Word::BYTES];
    let mut backend = Watched { inner: Reference::new(&mut memory), prepared: vec![], given };
    let mut out = [f32::NAN; 6];
    let fill = |raw: &mut [u8]| {
        raw.iter_mut().zip(0u8..).for_each(|(raw, at)| *raw = at.wrapping_mul(83));
    };
    plan.run(&mut backend, model, 2, fill, &mut out).unwrap();
    assert!(out.iter().any(|x| *x != out[0]), "the outputs say something");
    out.map(f32::to_bits).into()
}

/// Two samples of 6 numbers, 48 bytes, beside 4 numbers each, 32; raw bytes take less.
const ACTIVATIONS: usize = 48 + 32;

#[test]
fn numbers_in_flash_are_used_in_place() {
    let numbers: Vec<f32> = (0..NUMBERS).map(number).collect();
    let flat = Model { net: NET, weights: Weights::Flat(&numbers) };
    let given = RefCell::new(vec![]);
    let expected = run(&flat, ACTIVATIONS, &given);
    assert!(given.borrow().iter().all(|(_, flash)| !flash), "flat numbers lie elsewhere");

    given.borrow_mut().clear();
    let model = model(&F32);
    assert!(!model.weights.is_narrow());
    // No byte more than for numbers in memory, and each tensor is read where it lies.
    assert_eq!(run(&model, ACTIVATIONS, &given), expected);
    let sizes = [96, 16, 16, 16, 48, 12];
    assert_eq!(given.borrow()[..], sizes.map(|bytes| (bytes, true)));
    let stored = model.weights.layer(&NET, 0)[0];
    let numbers = stored.as_f32().unwrap();
    assert!(core::ptr::addr_eq(numbers.as_ptr(), FLASH.0.as_ptr()), "not copied");
}

#[test]
fn narrow_numbers_are_widened_one_layer_at_a_time() {
    let numbers: Vec<f32> = (0..NUMBERS).map(number).collect();
    let flat = Model { net: NET, weights: Weights::Flat(&numbers) };
    let given = RefCell::new(vec![]);
    let expected = run(&flat, ACTIVATIONS, &given);
    // The widest layer as f32: 24 weights and 4 biases.
    let widened = ACTIVATIONS + 96 + 16;
    for (records, share) in [(&F16, 2), (&I8, 4)] {
        given.borrow_mut().clear();
        let model = model(records);
        assert!(model.weights.is_narrow());
        assert_eq!(run(&model, widened, &given), expected, "the numbers are exact in both");
        let sizes = [96 / share, 16, 16, 16, 48 / share, 12];
        assert_eq!(given.borrow()[..], sizes.map(|bytes| (bytes, true)));
    }
}

struct Ramps;

impl Source for Ramps {
    fn len(&self) -> u32 {
        12
    }

    fn shape(&self) -> Shape {
        NET.input.shape
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> core::result::Result<(), SourceError> {
        if let Batch::U8(x) = batch {
            for (x, i) in x.chunks_exact_mut(6).zip(indices) {
                x.iter_mut().zip(0u32..).for_each(|(x, at)| *x = (i * 31 + at * (1 + i % 3)) as u8);
            }
        }
        labels.iter_mut().zip(indices).for_each(|(label, i)| *label = (i % 3) as u16);
        Ok(())
    }
}

/// A block is trained in RAM behind a prefix in flash, which the backend is told of first.
#[test]
fn a_block_learns_behind_a_prefix_in_flash() {
    let stage = Stage {
        first: 3,
        last: 4,
        calibrate: true,
        cut: Cut::Whole,
        recipe: Recipe {
            head: &[Layer::L2Normalise(L2Normalise)],
            objective: Objective::Separation(Loss::SoftNearest { temperature: 0.5 }),
            epochs: 1,
            batch: 6,
            micro_batches: 1,
            rule: Rule::adam(),
            rate: 0.01,
            schedule: Schedule::Constant,
            stop: Stop::Never,
        },
    };
    let numbers: Vec<f32> = (0..NUMBERS).map(number).collect();
    let flat = Model { net: NET, weights: Weights::Flat(&numbers) };
    let trained = [flat, model(&F32), model(&F16), model(&I8)].map(|model| {
        let given = RefCell::new(vec![]);
        let narrow = model.weights.is_narrow();
        let feed = Feed { narrow, ..Feed::BYTES };
        let plan = StagePlan::reference(&NET, &stage, feed).unwrap();
        let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
        let mut backend =
            Watched { inner: Reference::new(&mut memory), prepared: vec![], given: &given };
        let mut session = Session::new(NET, stage, plan, 1, 0);
        session.load(&mut backend, &model).unwrap();
        assert_eq!(backend.prepared, [(0, 3)]);
        session.run(&mut backend, &model, &mut Ramps, |_| ()).unwrap();
        let mut weights = numbers.clone();
        session.store(&mut backend, &mut weights).unwrap();
        assert_eq!(weights[..36], numbers[..36], "the prefix stays");
        assert_ne!(weights[36..], numbers[36..], "the block learns");
        weights.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    });
    assert!(trained.iter().all(|bits| *bits == trained[0]), "wherever the weights are kept");
}
