//! Learning one block.

use core::ffi::c_void;
use core::ptr;

use sepal_core::arena::Word;
use sepal_core::layer::{Flatten, L2Normalise, Layer};
use sepal_core::micro::{Embeddings, Micro, Tuning, TuningPlan};
use sepal_core::optim::Rule;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};

use crate::constant;
use crate::lent::{self, Region};
use crate::model::State as Model;
use crate::status::{Detail, Failure, Status, answer};

/// What the first bytes of a fine-tuning under way are.
const OPEN: u64 = 0x7365_7061_6c74_756e;

/// Neighbours are looked up among embeddings of length 1.
const HEAD: &[Layer] = &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];

/// `sepal_settings`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    seed: u64,
    block: u32,
    batch: u32,
    samples: u32,
    adam: u32,
    rate: f32,
    momentum: f32,
    margin: f32,
}

/// `sepal_score`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Score {
    loss: f32,
    right: f32,
}

/// `sepal_sample`.
type Read = unsafe extern "C" fn(*mut c_void, u32, *mut u8, usize, *mut u16) -> i32;

/// What a `sepal_tuning` holds.
#[repr(C)]
pub struct State {
    open: u64,
    model: *const Model,
    settings: Settings,
    memory: *mut u8,
    memory_len: usize,
    tuning: Tuning<'static>,
}

const _: () = assert!(size_of::<State>() <= constant("SEPAL_TUNING_BYTES"));
const _: () = assert!(align_of::<State>() <= 8);

impl State {
    /// The fine-tuning at an address.
    ///
    /// # Safety
    /// Where it is not null, `at` is a `sepal_tuning` that began, or that begins with zeros, and that
    /// nobody else uses for `'a`.
    unsafe fn at<'a>(at: *mut Self) -> Result<&'a mut Self, Failure> {
        lent::usable(at, 1)?;
        // SAFETY: not null and aligned; the first bytes are there in either case.
        if unsafe { ptr::addr_of!((*at).open).read() } != OPEN {
            return Err(Failure::of(Status::NotOpen));
        }
        // SAFETY: `begin` wrote the mark after all fields.
        Ok(unsafe { &mut *at })
    }
}

impl Settings {
    /// What a block of this model learns by.
    fn stage(&self, model: &Model) -> Result<Stage<'static>, Failure> {
        let (net, (first, last)) = (model.net(), model.block(self.block)?);
        let good = self.rate > 0.0
            && self.rate.is_finite()
            && (0.0..1.0).contains(&self.momentum)
            && self.margin >= 0.0
            && self.margin.is_finite()
            && self.adam <= 1
            && self.batch > 0;
        if !good {
            return Err(Failure::of(Status::Setting));
        }
        if self.samples < self.batch {
            return Err(Failure::new(Status::TooFew, self.batch.into(), self.samples.into()));
        }
        let (head, objective) = match self.block < u32::from(net.features) {
            true => (HEAD, Objective::Separation(Loss::Margin { margin: self.margin })),
            false => (&[][..], Objective::CrossEntropy { smoothing: 0.0 }),
        };
        let rule = match self.adam {
            0 => Rule::Sgd { momentum: self.momentum, nesterov: false, weight_decay: 0.0 },
            _ => Rule::adam(),
        };
        let recipe = Recipe {
            head,
            objective,
            epochs: 1,
            batch: self.batch,
            micro_batches: 1,
            rule,
            rate: self.rate,
            schedule: Schedule::Constant,
            stop: Stop::Never,
        };
        let (first, last) = (first as u16, last as u16);
        Ok(Stage { first, last, calibrate: false, cut: Cut::Whole, recipe })
    }

    /// What is tuned, and where all of it lies.
    fn plan<'m>(&self, model: &'m Model) -> Result<TuningPlan<'m>, Failure> {
        let stage = self.stage(model)?;
        let narrow = model.with(|model| Ok(model.weights.is_narrow()))?;
        Ok(TuningPlan::new(model.net(), &stage, Embeddings::F32, narrow)?)
    }
}

/// Samples that a callback gives.
struct Callback {
    read: Read,
    context: *mut c_void,
    samples: u32,
    shape: Shape,
}

impl Source for Callback {
    fn len(&self) -> u32 {
        self.samples
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<sepal_core::source::Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let len = self.shape.sample().unwrap_or(0);
        let Batch::U8(bytes) = batch else {
            return Err(SourceError::Batch { expected: len, got: 0 });
        };
        let samples = bytes.chunks_exact_mut(len.max(1) as usize);
        for ((&index, sample), label) in indices.iter().zip(samples).zip(labels) {
            // SAFETY: the callback writes a sample and a label, and keeps neither address.
            let code = unsafe {
                (self.read)(self.context, index, sample.as_mut_ptr(), sample.len(), label)
            };
            if code != 0 {
                return Err(SourceError::Read { index, code });
            }
        }
        Ok(())
    }
}

/// Settings at an address.
///
/// # Safety
/// Where it is not null, settings are there.
unsafe fn settings(at: *const Settings) -> Result<Settings, Failure> {
    lent::usable(at, 1)?;
    // SAFETY: not null and aligned; the rest is the caller's word.
    Ok(unsafe { at.read() })
}

/// Parameters of a block; 0 where there is no such block.
///
/// # Safety
/// Pointers that are not null point to what `sepal.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_parameters(model: *const Model, block: u32) -> usize {
    // SAFETY: `sepal.h` asks the caller for a model.
    unsafe { Model::at(model) }.and_then(|model| model.parameters(block)).unwrap_or(0)
}

/// Bytes of memory for a fine-tuning.
///
/// # Safety
/// As [`sepal_parameters`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_tune_memory(
    model: *const Model,
    by: *const Settings,
    bytes: *mut usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for a model, for settings and for a place for the answer.
    unsafe {
        let result = Model::at(model).and_then(|model| {
            let plan = settings(by)?.plan(model)?;
            lent::give(bytes, Word::round_up(plan.bytes()))
        });
        answer(detail, result)
    }
}

/// Begins a fine-tuning.
///
/// # Safety
/// As [`sepal_parameters`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_tune_begin(
    tuning: *mut State,
    model: *mut Model,
    by: *const Settings,
    memory: *mut u8,
    memory_len: usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for all of this, and to leave model and memory in place.
    unsafe {
        let result = lent::usable(tuning, 1).and_then(|()| {
            ptr::addr_of_mut!((*tuning).open).write(0);
            let own: &'static Model = Model::at(model)?;
            let settings = settings(by)?;
            let plan = settings.plan(own)?;
            lent::aligned(memory, Word::BYTES)?;
            let arena = Region::of(memory, memory_len);
            lent::apart(arena, &own.regions())?;
            lent::apart(Region::of(tuning, 1), &[arena, Region::of(model, 1)])?;
            let mut started = Tuning::new(plan, settings.seed);
            let mut backend = Micro::<false>::new(lent::words(memory, memory_len)?);
            own.with(|model| Ok(started.load(&mut backend, model)?))?;
            tuning.write(State {
                open: OPEN,
                model,
                settings,
                memory,
                memory_len,
                tuning: started,
            });
            Ok(())
        });
        answer(detail, result)
    }
}

/// One step.
///
/// # Safety
/// As [`sepal_parameters`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_tune_step(
    tuning: *mut State,
    sample: Option<Read>,
    context: *mut c_void,
    score: *mut Score,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for a fine-tuning, whose model and memory are in place.
    unsafe {
        let result = State::at(tuning).and_then(|state| {
            let model = Model::at(state.model)?;
            let read = sample.ok_or(Failure::of(Status::Null))?;
            if !score.is_null() {
                lent::usable(score, 1)?;
            }
            let samples = state.settings.samples;
            let mut source = Callback { read, context, samples, shape: model.shape() };
            let words = lent::words(state.memory, state.memory_len)?;
            let (mut backend, tuning) = (Micro::<false>::new(words), &mut state.tuning);
            let got = model
                .with(|model| Ok(tuning.step(&mut backend, model, &mut source, u32::MAX)?))?;
            if score.is_null() {
                return Ok(());
            }
            let right = got.correct as f32 / state.settings.batch as f32;
            lent::give(score, Score { loss: got.value, right })
        });
        answer(detail, result)
    }
}

/// Ends a fine-tuning, whose parameters the model uses from then on.
///
/// # Safety
/// As [`sepal_parameters`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_tune_end(
    tuning: *mut State,
    parameters: *mut f32,
    len: usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for a fine-tuning, whose model and memory are in place, and
    // for parameters that stay.
    unsafe {
        let result = State::at(tuning).and_then(|state| {
            let model = Model::at(state.model)?;
            lent::usable(parameters, len)?;
            let needed = model.parameters(state.settings.block)?;
            if len != needed {
                return Err(Failure::sizes(Status::Length, needed, len));
            }
            let (written, regions) = (Region::of(parameters, len), model.regions());
            let arena = Region::of(state.memory, state.memory_len);
            lent::apart(written, &[arena, Region::of(ptr::from_ref(state), 1)])?;
            // What the block had before may be overwritten, the model and its file may not.
            lent::apart(written, regions.get(..2).unwrap_or_default())?;
            let words = lent::words(state.memory, state.memory_len)?;
            let mut backend = Micro::<false>::new(words);
            state.tuning.store(&mut backend, lent::array_mut(parameters, len)?)?;
            state.open = 0;
            model.learn(state.settings.block, parameters)
        });
        answer(detail, result)
    }
}

/// Uses parameters in place of a block's in the file.
///
/// # Safety
/// As [`sepal_parameters`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_use(
    model: *mut Model,
    block: u32,
    parameters: *const f32,
    len: usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for a model, and for parameters that stay.
    unsafe {
        let result = Model::at(model).and_then(|model| {
            if !parameters.is_null() {
                lent::usable(parameters, len)?;
                let needed = model.parameters(block)?;
                if len != needed {
                    return Err(Failure::sizes(Status::Length, needed, len));
                }
            }
            model.learn(block, parameters)
        });
        answer(detail, result)
    }
}
