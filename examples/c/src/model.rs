//! A model: opened, asked, run.

use core::cell::Cell;
use core::ffi::c_char;
use core::ptr;

use sepal_core::arena::Word;
use sepal_core::format::File;
use sepal_core::infer::Inference;
use sepal_core::layer::{Layer, RELU};
use sepal_core::micro::Micro;
use sepal_core::net::{Input, Model, Net, Patch, TensorRecord, Weights};
use sepal_core::shape::Shape;

use crate::constant;
use crate::lent::{self, Region};
use crate::status::{Detail, Failure, Status, answer};

/// What the first bytes of an open model are.
const OPEN: u64 = 0x7365_7061_6c6d_6f64;

const LAYERS: usize = constant("SEPAL_LAYERS");
const BLOCKS: usize = constant("SEPAL_BLOCKS");
const TENSORS: usize = constant("SEPAL_TENSORS");

/// What a `sepal_model` holds.
#[repr(C)]
pub struct State {
    open: u64,
    file: File<'static>,
    input: Input,
    features: u16,
    blob: &'static [u8],
    /// Parameters that stand for a block's in the file; null where there are none.
    learnt: [Cell<*const f32>; BLOCKS],
    layers: [Layer; LAYERS],
    blocks: [u16; BLOCKS],
    tensors: [TensorRecord; TENSORS],
}

const _: () = assert!(size_of::<State>() <= constant("SEPAL_MODEL_BYTES"));
const _: () = assert!(align_of::<State>() <= 8);

impl State {
    /// The open model at an address.
    ///
    /// # Safety
    /// Where it is not null, `at` is a `sepal_model` that was opened or begins with zeros, and
    /// that nobody opens for `'a`.
    pub unsafe fn at<'a>(at: *const Self) -> Result<&'a Self, Failure> {
        lent::usable(at, 1)?;
        // SAFETY: not null and aligned; the first bytes are there in either case.
        if unsafe { ptr::addr_of!((*at).open).read() } != OPEN {
            return Err(Failure::of(Status::NotOpen));
        }
        // SAFETY: `open` wrote the mark after all fields.
        Ok(unsafe { &*at })
    }

    /// Opens a file into the memory at an address.
    ///
    /// # Safety
    /// `at` can be written, and is not in use; `bytes` stay.
    unsafe fn open(at: *mut Self, bytes: &'static [u8]) -> Result<(), Failure> {
        let file = File::open(bytes)?;
        // SAFETY: `at` can be written. The arrays are filled before there is a reference to them,
        // one by one, so that the stack never holds them.
        let (layers, blocks, tensors) = unsafe {
            ptr::addr_of_mut!((*at).layers).write([RELU; LAYERS]);
            ptr::addr_of_mut!((*at).blocks).write([0; BLOCKS]);
            ptr::addr_of_mut!((*at).tensors).write([File::NO_TENSOR; TENSORS]);
            (
                &mut *ptr::addr_of_mut!((*at).layers),
                &mut *ptr::addr_of_mut!((*at).blocks),
                &mut *ptr::addr_of_mut!((*at).tensors),
            )
        };
        let model = file.decode(layers, blocks, tensors)?;
        let (input, features) = (model.net.input, model.net.features);
        let Weights::File { blob, .. } = model.weights else {
            return Err(Failure::of(Status::Internal));
        };
        // SAFETY: the blob is part of the file's bytes, which stay.
        let blob: &'static [u8] = unsafe { core::slice::from_raw_parts(blob.as_ptr(), blob.len()) };
        // SAFETY: as above; the mark comes last.
        unsafe {
            ptr::addr_of_mut!((*at).file).write(file);
            ptr::addr_of_mut!((*at).input).write(input);
            ptr::addr_of_mut!((*at).features).write(features);
            ptr::addr_of_mut!((*at).blob).write(blob);
            ptr::addr_of_mut!((*at).learnt).write([const { Cell::new(ptr::null()) }; BLOCKS]);
            ptr::addr_of_mut!((*at).open).write(OPEN);
        }
        Ok(())
    }

    /// The architecture.
    pub fn net(&self) -> Net<'_> {
        Net {
            input: self.input,
            layers: self.layers.get(..self.file.layers()).unwrap_or_default(),
            blocks: self.blocks.get(..self.file.blocks()).unwrap_or_default(),
            features: self.features,
        }
    }

    /// Puts parameters in the place of a block's, or the file's where they are null.
    pub fn learn(&self, block: u32, numbers: *const f32) -> Result<(), Failure> {
        self.block(block)?;
        self.learnt.iter().skip(block as usize).take(1).for_each(|own| own.set(numbers));
        Ok(())
    }

    /// The layers of a block.
    pub fn block(&self, block: u32) -> Result<(usize, usize), Failure> {
        let net = self.net();
        let outside = Failure::sizes(Status::Range, net.blocks.len(), block as usize);
        net.block(block as usize).ok_or(outside)
    }

    /// How many parameters a block has.
    pub fn parameters(&self, block: u32) -> Result<usize, Failure> {
        let (net, (first, last)) = (self.net(), self.block(block)?);
        Ok(net.params(last)?.saturating_sub(net.params(first)?))
    }

    /// Works with the model as it stands: the file's, with what was learnt over it.
    pub fn with<R>(
        &self,
        work: impl FnOnce(&Model<'_>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let (net, blob) = (self.net(), self.blob);
        let records = self.tensors.get(..self.file.tensors()).unwrap_or_default();
        let base = Weights::File { records, blob };
        let mut patches = [Patch { first: 0, last: 0, numbers: &[] }; BLOCKS];
        for ((patch, block), learnt) in patches.iter_mut().zip(0..).zip(&self.learnt) {
            if learnt.get().is_null() {
                continue;
            }
            let ((first, last), len) = (self.block(block)?, self.parameters(block)?);
            // SAFETY: whoever gave them gave as many as the block has, and leaves them in place and
            // unchanged for as long as they are used.
            let numbers = unsafe { lent::array(learnt.get(), len)? };
            *patch = Patch { first: first as u16, last: last as u16, numbers };
        }
        let weights = Weights::Patched { under: &base, patches: &patches };
        work(&Model { net, weights })
    }

    /// What a call that writes to other memory must not write to.
    pub fn regions(&self) -> [Region; BLOCKS + 2] {
        let blob = Region::of(self.blob.as_ptr(), self.blob.len());
        let mut regions = [blob; BLOCKS + 2];
        regions.iter_mut().take(1).for_each(|own| *own = Region::of(ptr::from_ref(self), 1));
        for ((region, block), learnt) in regions.iter_mut().skip(2).zip(0..).zip(&self.learnt) {
            if !learnt.get().is_null() {
                *region = Region::of(learnt.get(), self.parameters(block).unwrap_or(0));
            }
        }
        regions
    }

    /// Numbers that layers `..last` give.
    fn outputs(&self, last: usize) -> usize {
        self.net().shape(last).ok().and_then(|shape| shape.sample()).unwrap_or(0) as usize
    }

    /// Runs layers `..last` on a sample.
    ///
    /// # Safety
    /// As `sepal_infer`.
    unsafe fn run(
        &self,
        last: usize,
        (memory, memory_len): (*mut u8, usize),
        (sample, sample_len): (*const u8, usize),
        (out, out_len): (*mut f32, usize),
    ) -> Result<(), Failure> {
        lent::aligned(memory, Word::BYTES)?;
        lent::usable(sample, sample_len)?;
        lent::usable(out, out_len)?;
        for (needed, given) in [(self.samples(), sample_len), (self.outputs(last), out_len)] {
            if needed != given {
                return Err(Failure::sizes(Status::Length, needed, given));
            }
        }
        let (arena, result) = (Region::of(memory, memory_len), Region::of(out, out_len));
        let sample_region = Region::of(sample, sample_len);
        lent::apart(arena, &[result, sample_region])?;
        lent::apart(result, &[sample_region])?;
        for written in [arena, result] {
            lent::apart(written, &self.regions())?;
        }
        // SAFETY: the caller lends all three for the call, and they lie apart.
        let (words, sample, out) = unsafe {
            (
                lent::words(memory, memory_len)?,
                lent::array(sample, sample_len)?,
                lent::array_mut(out, out_len)?,
            )
        };
        self.with(|model| {
            let plan = Inference::micro_to(model.net, last, 1, model.weights.is_narrow())?;
            let mut backend = Micro::<false>::new(words);
            let fill = |raw: &mut [u8]| raw.iter_mut().zip(sample).for_each(|(x, s)| *x = *s);
            Ok(plan.run(&mut backend, model, 1, fill, out)?)
        })
    }

    /// Bytes of a sample.
    pub fn samples(&self) -> usize {
        self.input.shape.sample().unwrap_or(0) as usize
    }

    /// The shape of a sample.
    pub const fn shape(&self) -> Shape {
        self.input.shape
    }

    fn memory(&self) -> Result<usize, Failure> {
        self.with(|model| {
            let (net, narrow) = (model.net, model.weights.is_narrow());
            let whole = Inference::micro(net, 1, narrow)?.bytes();
            let features = Inference::micro_to(net, net.features_end(), 1, narrow)?.bytes();
            Ok(Word::round_up(whole.max(features)))
        })
    }
}

/// Opens a model file where it lies. `sepal.h` says what each call takes and gives.
///
/// # Safety
/// Pointers that are not null point to what `sepal.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_open(
    model: *mut State,
    bytes: *const u8,
    len: usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for memory that can be written, and for bytes that stay.
    unsafe {
        let result = lent::usable(model, 1).and_then(|()| {
            // Whatever comes of it, the old model is closed.
            ptr::addr_of_mut!((*model).open).write(0);
            lent::aligned(bytes, Word::BYTES)?;
            lent::apart(Region::of(model, 1), &[Region::of(bytes, len)])?;
            State::open(model, lent::array(bytes, len)?)
        });
        answer(detail, result)
    }
}

/// Bytes of a sample; 0 where no model is open.
///
/// # Safety
/// As [`sepal_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_input_len(model: *const State) -> usize {
    // SAFETY: `sepal.h` asks the caller for a model.
    unsafe { State::at(model) }.map_or(0, State::samples)
}

/// Logits of a sample; 0 where no model is open.
///
/// # Safety
/// As [`sepal_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_classes(model: *const State) -> usize {
    // SAFETY: `sepal.h` asks the caller for a model.
    unsafe { State::at(model) }.map_or(0, |state| state.outputs(state.file.layers()))
}

/// Numbers of an embedding; 0 where no model is open.
///
/// # Safety
/// As [`sepal_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_embedding_len(model: *const State) -> usize {
    // SAFETY: `sepal.h` asks the caller for a model.
    unsafe { State::at(model) }.map_or(0, |state| state.outputs(state.net().features_end()))
}

/// Blocks; 0 where no model is open.
///
/// # Safety
/// As [`sepal_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_blocks(model: *const State) -> usize {
    // SAFETY: `sepal.h` asks the caller for a model.
    unsafe { State::at(model) }.map_or(0, |state| state.file.blocks())
}

/// Bytes of memory for a sample; 0 where no model is open.
///
/// # Safety
/// As [`sepal_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_memory_needed(model: *const State) -> usize {
    // SAFETY: `sepal.h` asks the caller for a model.
    unsafe { State::at(model) }.and_then(State::memory).unwrap_or(0)
}

/// The name of a class, in the file.
///
/// # Safety
/// As [`sepal_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_class_name(
    model: *const State,
    class: usize,
    len: *mut usize,
) -> *const c_char {
    // SAFETY: `sepal.h` asks the caller for a model, and for a length that can be written.
    unsafe {
        let name = State::at(model).ok().and_then(|state| state.file.class_name(class));
        if lent::give(len, name.map_or(0, str::len)).is_err() {
            return ptr::null();
        }
        name.map_or(ptr::null(), |name| name.as_ptr().cast())
    }
}

/// The logits of a sample.
///
/// # Safety
/// As [`sepal_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_infer(
    model: *const State,
    memory: *mut u8,
    memory_len: usize,
    sample: *const u8,
    sample_len: usize,
    logits: *mut f32,
    logits_len: usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for a model, and for memory that is lent for the call.
    unsafe {
        let result = State::at(model).and_then(|state| {
            let last = state.file.layers();
            state.run(last, (memory, memory_len), (sample, sample_len), (logits, logits_len))
        });
        answer(detail, result)
    }
}

/// The embedding of a sample.
///
/// # Safety
/// As [`sepal_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sepal_embed(
    model: *const State,
    memory: *mut u8,
    memory_len: usize,
    sample: *const u8,
    sample_len: usize,
    embedding: *mut f32,
    embedding_len: usize,
    detail: *mut Detail,
) -> i32 {
    // SAFETY: `sepal.h` asks the caller for a model, and for memory that is lent for the call.
    unsafe {
        let result = State::at(model).and_then(|state| {
            let last = state.net().features_end();
            state.run(last, (memory, memory_len), (sample, sample_len), (embedding, embedding_len))
        });
        answer(detail, result)
    }
}
