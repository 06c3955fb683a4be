//! The least that learns: a net that is a constant of the program, its second block tuned by
//! separation on samples that lie in flash, then its last layer by cross-entropy, and a class at the
//! end. No model file, no reservoir, nothing saved: what they take is the difference to `demo`.
#![no_std]
#![no_main]

use core::hint::black_box;

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::micro::{Embeddings, Micro, Prefix, Program, Tuning, TuningPlan, operations};
use sepal_core::net::{Model, Patch, Weights};
use sepal_core::schedule::Schedule;
use sepal_core::stage::Stage;
use sepal_firmware::board;
use sepal_firmware::flash::{self, CLASSES, Shown};
use sepal_firmware::tuned::{self, MOMENTUM};
use sepal_models::lenet::LENET5;

/// Updates of the block, and of the last layer.
const UPDATES: u32 = 20;

const APART: Stage<'static> = tuned::apart(tuned::BLOCK2, MOMENTUM, 0.003, Schedule::Constant);
const LABELS: Stage<'static> = tuned::labels(MOMENTUM, 0.001, Schedule::Constant);

const OPERATIONS: usize = operations(&LENET5, LENET5.layers.len(), false);
static PROGRAM: Program<'static, OPERATIONS> = match Program::new(LENET5, false) {
    Ok(program) => program,
    Err(_) => panic!("the layers do not fit each other"),
};

type Plan = TuningPlan<'static, Prefix<'static>>;

const fn plan(stage: &Stage<'static>) -> Plan {
    match TuningPlan::program(&PROGRAM, stage, Embeddings::F16) {
        Ok(plan) => plan,
        Err(_) => panic!("the block cannot be tuned"),
    }
}

static APART_PLAN: Plan = plan(&APART);
static LABELS_PLAN: Plan = plan(&LABELS);
// The larger of both; inference takes less.
const WORDS: usize = Word::count(APART_PLAN.bytes());
const _: () = assert!(LABELS_PLAN.bytes() <= APART_PLAN.bytes());

/// All memory of the device but the stack.
struct Ram {
    arena: [Word; WORDS],
    block: [f32; APART_PLAN.parameters()],
    last: [f32; LABELS_PLAN.parameters()],
}

#[entry]
fn main() -> ! {
    static mut RAM: Ram = Ram {
        arena: [Word::ZERO; WORDS],
        block: [0.0; APART_PLAN.parameters()],
        last: [0.0; LABELS_PLAN.parameters()],
    };
    board::exit(learn(RAM).is_none().into())
}

fn learn(ram: &mut Ram) -> Option<[f32; CLASSES]> {
    let Ram { arena, block, last } = ram;
    let model = Model { net: LENET5, weights: Weights::Flat(flash::weights()) };
    tune(&APART_PLAN, arena, &model, block)?;
    let patches = [Patch { first: APART.first, last: APART.last, numbers: block }];
    let weights = Weights::Patched { under: &model.weights, patches: &patches };
    tune(&LABELS_PLAN, arena, &Model { weights, ..model }, last)?;
    let patches = [patches[0], Patch { first: LABELS.first, last: LABELS.last, numbers: last }];
    let weights = Weights::Patched { under: &model.weights, patches: &patches };
    let mut logits = [0.0; CLASSES];
    let fill = |image: &mut [u8]| image.fill(black_box(0));
    PROGRAM.run(arena, &weights, fill, &mut logits).ok()?;
    Some(black_box(logits))
}

fn tune(plan: &Plan, arena: &mut [Word], model: &Model<'_>, numbers: &mut [f32]) -> Option<()> {
    let mut backend = Micro::<false>::new(arena);
    let mut tuning = Tuning::new(*plan, 0);
    tuning.load(&mut backend, model).ok()?;
    let mut halves = [0.0; 2];
    for half in &mut halves {
        for _ in 0..UPDATES / 2 {
            *half += tuning.step(&mut backend, model, &mut Shown, UPDATES).ok()?.value;
        }
    }
    let [before, after] = halves;
    // Otherwise nothing was learnt.
    (after < before).then_some(())?;
    tuning.store(&mut backend, numbers).ok()
}
