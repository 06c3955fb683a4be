//! A device in use. It opens the model in flash and classifies what it was trained for, with the
//! logits of the host. Then it meets a new user, whose images have an inverted contrast: it keeps what
//! it is shown, tunes its second block by separation, and keeps that only if held-out samples lie
//! nearer to their own class by more than one standard error; then the last layer learns by
//! cross-entropy. What it learnt goes to a second flash. The board is reset, finds it there, and
//! still knows. Ends with status 0 where all of that is so.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::flash::{Slots, Store, find};
use sepal_core::format::File;
use sepal_core::infer::Inference;
use sepal_core::layer::RELU;
use sepal_core::micro::{Embeddings, Micro, Tuning, TuningPlan};
use sepal_core::net::{Model, Patch, Weights};
use sepal_core::optim::Rule;
use sepal_core::reservoir::{Class, Entry, Memory, Reservoir, State};
use sepal_core::schedule::Schedule;
use sepal_core::si::Paired;
use sepal_core::stage::Stage;
use sepal_firmware::flash::{self, CLASSES, COUNTS, PIXELS, Sample};
use sepal_firmware::psram::{self, Psram};
use sepal_firmware::{board, println, tuned};
use sepal_models::lenet::LENET5;

/// Samples that are kept, and those of them that a fifth leaves to train on.
const PLACES: usize = 100;
const TRAINED: usize = 80;
/// Updates of each.
const UPDATES: u32 = 60;
/// Two slots of the second flash.
const SLOTS: Slots = Slots::adjacent(0, 64 * 1024);

const DOWN: Schedule = Schedule::Cosine { warmup: 0 };
const APART: Stage<'static> = tuned::apart(tuned::BLOCK2, Rule::adam(), 0.01, DOWN);
const LABELS: Stage<'static> = tuned::labels(Rule::adam(), 0.03, DOWN);

const fn plan(stage: &Stage<'static>) -> TuningPlan<'static> {
    match TuningPlan::new(LENET5, stage, Embeddings::F16, false) {
        Ok(plan) => plan,
        Err(_) => panic!("the block cannot be tuned"),
    }
}

const APART_PLAN: TuningPlan<'static> = plan(&APART);
const LABELS_PLAN: TuningPlan<'static> = plan(&LABELS);
// The larger of both; inference takes less.
const ARENA: usize = APART_PLAN.bytes();
const _: () = assert!(LABELS_PLAN.bytes() <= ARENA && ARENA <= 56 * 1024, "the board is smaller");

/// All memory of the device.
struct Ram {
    arena: [Word; ARENA / Word::BYTES],
    state: State,
    classes: [Class; CLASSES],
    entries: [Entry; PLACES],
    samples: [u8; PLACES * PIXELS],
    rows: [f32; TRAINED * APART_PLAN.features()],
    labels: [u16; TRAINED],
    block: [f32; APART_PLAN.parameters()],
    last: [f32; LABELS_PLAN.parameters()],
}

#[entry]
fn main() -> ! {
    static mut RAM: Ram = Ram {
        arena: [Word::ZERO; ARENA / Word::BYTES],
        state: State::NONE,
        classes: [Class::NONE; CLASSES],
        entries: [Entry::FREE; PLACES],
        samples: [0; PLACES * PIXELS],
        rows: [0.0; TRAINED * APART_PLAN.features()],
        labels: [0; TRAINED],
        block: [0.0; APART_PLAN.parameters()],
        last: [0.0; LABELS_PLAN.parameters()],
    };
    match run(RAM) {
        Ok(true) => board::reset(),
        Ok(false) => board::exit(0),
        Err(what) => {
            println!("{what}");
            board::exit(1)
        }
    }
}

/// Whether the board is to be reset.
fn run(ram: &mut Ram) -> Result<bool, &'static str> {
    let mut layers = [RELU; COUNTS.layers];
    let mut blocks = [0; COUNTS.blocks];
    let mut tensors = [File::NO_TENSOR; COUNTS.tensors];
    let file = File::open(flash::lenet5()).map_err(|_| "flash holds no model")?;
    let model = file.decode(&mut layers, &mut blocks, &mut tensors);
    let model = model.map_err(|_| "the model has more layers than it had when this was built")?;
    println!("model of {} layers, {} classes", file.layers(), file.classes());

    // SAFETY: nothing writes to the second flash before the last use of what is found there.
    let slots = unsafe { psram::mapped(SLOTS.at, SLOTS.size) };
    if let Some(found) = find(slots, file.checksum()) {
        let missing = "a part of what was learnt is missing";
        let patches = [found.patch(0).ok_or(missing)?, found.patch(1).ok_or(missing)?];
        let learnt = Weights::Patched { under: &model.weights, patches: &patches };
        let right = judged(&Model { weights: learnt, ..model }, ram)?;
        println!("after the reset, with what was learnt: {right} of 100");
        let before = judged(&model, ram)?;
        return if right > before { Ok(false) } else { Err("nothing was learnt") };
    }
    classify(&file, &model, ram)?;
    if cfg!(feature = "brief") {
        return Ok(false);
    }
    println!("images of a new user: {} of 100", judged(&model, ram)?);
    learn(&file, &model, ram)?;
    Ok(true)
}

/// Classifies all samples.
fn classify(file: &File<'_>, model: &Model<'_>, ram: &mut Ram) -> Result<(), &'static str> {
    let plan = Inference::micro(model.net, 1, false).map_err(|_| "the layers do not fit")?;
    let mut backend = Micro::<false>::new(&mut ram.arena);
    let (mut right, mut seen) = (0, 0);
    for Sample { image, label, logits: host } in flash::samples() {
        let mut logits = [0.0; CLASSES];
        let fill = |raw: &mut [u8]| raw.copy_from_slice(image);
        board::start_timer();
        plan.run(&mut backend, model, 1, fill, &mut logits)
            .map_err(|_| "the model does not run")?;
        let instructions = board::instructions();
        if !logits.iter().flat_map(|logit| logit.to_le_bytes()).eq(host.iter().copied()) {
            return Err("the host computes other logits");
        }
        let class = largest(&logits);
        let name = |class| file.class_name(class).unwrap_or("?");
        let (predicted, labelled) = (name(class), name(usize::from(label)));
        println!("{predicted}, labelled {labelled}, {instructions} instructions");
        seen += 1;
        right += u32::from(class == usize::from(label));
    }
    println!("{right} of {seen} as labelled");
    Ok(())
}

fn largest(logits: &[f32]) -> usize {
    let largest = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    largest.map_or(0, |(class, _)| class)
}

/// How many of the user's images the model gives their class.
fn judged(model: &Model<'_>, ram: &mut Ram) -> Result<u32, &'static str> {
    let plan = Inference::micro(model.net, 1, false).map_err(|_| "the layers do not fit")?;
    let mut backend = Micro::<false>::new(&mut ram.arena);
    let mut right = 0;
    for (image, label) in flash::judged() {
        let mut logits = [0.0; CLASSES];
        let fill = |raw: &mut [u8]| raw.copy_from_slice(image);
        plan.run(&mut backend, model, 1, fill, &mut logits)
            .map_err(|_| "the model does not run")?;
        right += u32::from(largest(&logits) == usize::from(label));
    }
    Ok(right)
}

/// Keeps what the user shows, tunes, judges, saves.
fn learn(file: &File<'_>, model: &Model<'_>, ram: &mut Ram) -> Result<(), &'static str> {
    let fails = |_| "the block does not learn";
    let Ram { arena, state, classes, entries, samples, rows, labels, block, last } = ram;
    let memory = Memory { state, classes, entries, samples };
    let mut reservoir =
        Reservoir::new(LENET5.input.shape, memory, 0).map_err(|_| "the reservoir does not fit")?;
    for (image, label) in flash::shown() {
        reservoir.offer(image, label).map_err(|_| "a sample that the model does not take")?;
    }
    let (mut training, mut held_out) = (reservoir.training(), reservoir.held_out());

    let mut backend = Micro::<false>::new(arena);
    let mut tuning = Tuning::new(APART_PLAN, 0);
    tuning.load(&mut backend, model).map_err(fails)?;
    let mut before = [false; PLACES];
    let mark =
        |at: u32, right| before.iter_mut().skip(at as usize).take(1).for_each(|b| *b = right);
    tuning
        .judge(&mut backend, model, &mut training, &mut held_out, rows, labels, mark)
        .map_err(fails)?;
    for _ in 0..UPDATES {
        tuning.step(&mut backend, model, &mut training, UPDATES).map_err(fails)?;
    }
    let mut paired = Paired::default();
    let mut si = [before.iter().filter(|&&right| right).count(), 0];
    let compare = |at: u32, right| {
        paired.observe(before.get(at as usize) == Some(&true), right);
        si[1] += usize::from(right);
    };
    tuning
        .judge(&mut backend, model, &mut training, &mut held_out, rows, labels, compare)
        .map_err(fails)?;
    let (kept, count) = (paired.accepts(1.0), paired.samples());
    let [old, new] = si;
    let verdict = if kept { "kept" } else { "rolled back" };
    println!("held-out SI {old} of {count} before, {new} of {count} after: {verdict}");
    if !kept {
        tuning.load(&mut backend, model).map_err(fails)?;
    }
    tuning.store(&mut backend, block).map_err(fails)?;

    let patches = [Patch { first: APART.first, last: APART.last, numbers: block }];
    let tuned = Weights::Patched { under: &model.weights, patches: &patches };
    let tuned = Model { weights: tuned, ..*model };
    let mut tuning = Tuning::new(LABELS_PLAN, 0);
    tuning.load(&mut backend, &tuned).map_err(fails)?;
    for _ in 0..UPDATES {
        tuning.step(&mut backend, &tuned, &mut training, UPDATES).map_err(fails)?;
    }
    tuning.store(&mut backend, last).map_err(fails)?;

    let patches = [patches[0], Patch { first: LABELS.first, last: LABELS.last, numbers: last }];
    // SAFETY: the only one, and what was mapped is not used any more.
    let psram = unsafe { Psram::take() };
    let mut store = Store::open(psram, SLOTS, file.checksum()).map_err(|_| "not a flash")?;
    store.save(&patches).map_err(|_| "what was learnt cannot be saved")?;
    println!("saved");
    Ok(())
}
