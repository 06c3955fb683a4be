//! What each computation takes, a line each: instructions, multiply-accumulates, bytes of stack and
//! of the arena. All are the same in every run.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::format::{Counts, File, counts};
use sepal_core::infer::Inference;
use sepal_core::layer::RELU;
use sepal_core::micro::{Embeddings, Micro, Program, Tuning, TuningPlan, operations};
use sepal_core::net::{Model, Weights};
use sepal_core::optim::Rule;
use sepal_core::plan::PlanError;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::stage::Stage;
use sepal_firmware::board;
use sepal_firmware::flash::{self, CLASSES, COUNTS, Shown};
use sepal_firmware::row::{macs, macs_of, row, same};
use sepal_firmware::tuned::{self, BLOCK1, BLOCK2, MOMENTUM};
use sepal_models::lenet::LENET5;

/// What the largest row needs.
const WORDS: usize = Word::count(64 * 1024);
const REFERENCE: Inference<'static> = plan(Inference::reference(LENET5, 1));
const OPERATIONS: usize = operations(&LENET5, LENET5.layers.len(), false);
static PROGRAM: Program<'static, OPERATIONS> = plan(Program::new(LENET5, false));

const fn plan<T: Copy>(made: Result<T, PlanError>) -> T {
    match made {
        Ok(plan) => plan,
        Err(_) => panic!("the layers do not fit each other"),
    }
}

#[entry]
fn main() -> ! {
    static mut MEMORY: [Word; WORDS] = [Word::NAN; WORDS];
    board::exit(rows(MEMORY).is_none().into())
}

/// A row is its plan, what is run, and what must have come of it.
fn rows(memory: &mut [Word]) -> Option<()> {
    let sample = flash::samples().next()?;
    let fill = |image: &mut [u8]| image.copy_from_slice(sample.image);
    let macs = macs(&LENET5)?;
    let model = Model { net: LENET5, weights: Weights::Flat(flash::weights()) };
    let mut logits = [0.0; CLASSES];

    row("open", 0, 0, memory, |_| {
        let mut layers = [RELU; COUNTS.layers];
        let mut blocks = [0; COUNTS.blocks];
        let mut tensors = [File::NO_TENSOR; COUNTS.tensors];
        let file = File::open(flash::lenet5()).ok()?;
        file.decode(&mut layers, &mut blocks, &mut tensors).ok().map(|_| ())
    })?;

    row("lenet5-reference-f32", macs, REFERENCE.bytes(), memory, |words| {
        REFERENCE.run(&mut Reference::new(words), &model, 1, fill, &mut logits).ok()
    })?;
    same(&logits, sample.logits)?;

    row("lenet5-program-f32", macs, PROGRAM.bytes(), memory, |words| {
        PROGRAM.run(words, &model.weights, fill, &mut logits).ok()
    })?;
    same(&logits, sample.logits)?;

    let micro = Inference::micro(LENET5, 1, false).ok()?;
    row("lenet5-micro-f32", macs, micro.bytes(), memory, |words| {
        micro.run(&mut Micro::<false>::new(words), &model, 1, fill, &mut logits).ok()
    })?;
    same(&logits, sample.logits)?;

    const INT8: Counts = match counts(&sepal_firmware_model::LENET5_INT8) {
        Some(counts) => counts,
        None => panic!("no model"),
    };
    let mut layers = [RELU; INT8.layers];
    let mut blocks = [0; INT8.blocks];
    let mut tensors = [File::NO_TENSOR; INT8.tensors];
    let file = File::open(flash::lenet5_int8()).ok()?;
    let bytes = file.decode(&mut layers, &mut blocks, &mut tensors).ok()?;
    let plan = Inference::micro(bytes.net, 1, true).ok()?;
    row("lenet5-micro-int8", macs, plan.bytes(), memory, |words| {
        plan.run(&mut Micro::<false>::new(words), &bytes, 1, fill, &mut logits).ok()
    })?;
    same(&logits, flash::logits_int8())?;

    for (name, stage) in TUNED {
        let plan = TuningPlan::new(LENET5, &stage, Embeddings::F16, false).ok()?;
        // Forward, and backward to the weights: a sample's own, without the frozen blocks before.
        let own = macs_of(&LENET5, stage.first.into(), stage.last.into())?;
        let macs = 2 * own * u64::from(stage.recipe.batch);
        row(name, macs, plan.bytes(), memory, |words| {
            let mut backend = Micro::<false>::new(words);
            let mut tuning = Tuning::new(plan, 0);
            tuning.load(&mut backend, &model).ok()?;
            tuning.step(&mut backend, &model, &mut Shown, 1).ok().map(|_| ())
        })?;
    }
    Some(())
}

/// Steps of a batch, the frozen blocks before included.
const TUNED: [(&str, Stage<'static>); 5] = [
    ("block1-sgd", apart(BLOCK1, MOMENTUM)),
    ("block1-adam", apart(BLOCK1, Rule::adam())),
    ("block2-sgd", apart(BLOCK2, MOMENTUM)),
    ("block2-adam", apart(BLOCK2, Rule::adam())),
    ("classifier-adam", tuned::labels(Rule::adam(), 0.01, Schedule::Constant)),
];

const fn apart(block: (u16, u16), rule: Rule) -> Stage<'static> {
    tuned::apart(block, rule, 0.01, Schedule::Constant)
}
