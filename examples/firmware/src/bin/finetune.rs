//! What the program `finetune` does for a user, on the device: the model file and the user lie in the
//! second flash, as the host wrote them. Ends with status 0 where the device finds what the host found,
//! to the last bit of all that was learnt.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::format::File;
use sepal_core::layer::RELU;
use sepal_core::micro::Micro;
use sepal_core::reservoir::{Class, Entry, Memory, State};
use sepal_firmware::case::Case;
use sepal_firmware::user::{Plan, Room};
use sepal_firmware::{board, println, psram};

/// Where the model file lies, and the user behind it.
const AT: [u32; 2] = [0, 1 << 20];

/// Bytes of the arena, samples that are kept, their classes and bytes.
const ARENA: usize = 64 * 1024;
const PLACES: usize = 100;
const CLASSES: usize = 10;
const SAMPLES: usize = PLACES * 28 * 28;
/// Embeddings of those that are trained on.
const ROWS: usize = 80 * 256;
/// Parameters of a block.
const NUMBERS: usize = 2560;

/// All memory of the device.
struct Ram {
    arena: [Word; ARENA / Word::BYTES],
    state: State,
    classes: [Class; CLASSES],
    entries: [Entry; PLACES],
    samples: [u8; SAMPLES],
    rows: [f32; ROWS],
    labels: [u16; PLACES],
    before: [bool; PLACES],
    block: [f32; NUMBERS],
    last: [f32; NUMBERS],
}

#[entry]
fn main() -> ! {
    static mut RAM: Ram = Ram {
        arena: [Word::ZERO; ARENA / Word::BYTES],
        state: State::NONE,
        classes: [Class::NONE; CLASSES],
        entries: [Entry::FREE; PLACES],
        samples: [0; SAMPLES],
        rows: [0.0; ROWS],
        labels: [0; PLACES],
        before: [false; PLACES],
        block: [0.0; NUMBERS],
        last: [0.0; NUMBERS],
    };
    match run(RAM) {
        Ok(()) => board::exit(0),
        Err(what) => {
            println!("{what}");
            board::exit(1)
        }
    }
}

fn run(ram: &mut Ram) -> Result<(), &'static str> {
    // SAFETY: nothing writes to the second flash.
    let [model, user] = unsafe { psram::mapped(AT, 1 << 20) };
    let (mut layers, mut blocks, mut tensors) = ([RELU; 20], [0; 8], [File::NO_TENSOR; 32]);
    let length = File::length(model).map_err(|_| "the flash holds no model")?;
    let model = model.get(..length as usize).ok_or("the model is larger than its place")?;
    let file = File::open(model).map_err(|_| "the model is damaged")?;
    let model = file.decode(&mut layers, &mut blocks, &mut tensors);
    let model = model.map_err(|_| "the model has more layers than there is room for")?;
    let case = Case::open(user).ok_or("the flash holds no user")?;
    let plan = Plan::new(&model, &case.settings).map_err(|_| "the block cannot be tuned")?;

    let mut logits = [0.0; CLASSES];
    let logits = logits.get_mut(..file.classes() as usize).ok_or("more classes than 10")?;
    let sample = case.tested().next().ok_or("nothing to test on")?;
    board::start_timer();
    plan.infer(&mut Micro::<false>::new(&mut ram.arena), &model, sample.0, logits)
        .map_err(|_| "the model does not run")?;
    let instructions = board::instructions();

    let Ram { arena, state, classes, entries, samples, rows, labels, before, block, last } = ram;
    let classes = classes.get_mut(..logits.len()).unwrap_or_default();
    let kept = Memory { state, classes, entries, samples };
    let room = Room { arena, kept, rows, labels, before, block, last, logits };
    let mut outcome = None;
    let stack = board::stack_of(|| {
        outcome = Some(plan.learn::<false>(&model, case.shown(), case.tested(), room));
    });
    let outcome = match outcome {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => {
            println!("{error}");
            return Err("the user cannot be learnt");
        }
        None => return Err("nothing was done"),
    };
    let (paired, arena) = (outcome.paired, plan.bytes());
    println!(
        "of {}: before={} head={} tuned={} held_out={} gained={} lost={} learnt={:016x}",
        outcome.tested,
        outcome.before,
        outcome.head,
        outcome.tuned,
        paired.samples(),
        paired.gained(),
        paired.lost(),
        outcome.learnt
    );
    println!("inference={instructions} arena={arena} stack={stack}");
    let same = outcome.words() == case.found;
    same.then_some(()).ok_or("the host found something else")
}
