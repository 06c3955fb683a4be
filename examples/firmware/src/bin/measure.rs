//! What each computation takes, a line each: instructions, multiply-accumulates, bytes of stack and
//! of the arena. All are the same in every run.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::format::File;
use sepal_core::infer::Inference;
use sepal_core::layer::RELU;
use sepal_core::micro::Micro;
use sepal_core::net::{Model, Net, Weights};
use sepal_core::plan::PlanError;
use sepal_core::reference::Reference;
use sepal_firmware::flash::{self, CLASSES, COUNTS};
use sepal_firmware::{board, println};
use sepal_models::lenet::LENET5;

/// What the largest row needs.
const WORDS: usize = Word::count(REFERENCE.bytes());
const REFERENCE: Inference<'static> = plan(Inference::reference(LENET5, 1));
const MICRO: Inference<'static> = plan(Inference::micro(LENET5, 1, false));

const fn plan(made: Result<Inference<'static>, PlanError>) -> Inference<'static> {
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

    row("lenet5-micro-f32", macs, MICRO.bytes(), memory, |words| {
        MICRO.run(&mut Micro::<false>::new(words), &model, 1, fill, &mut logits).ok()
    })?;
    same(&logits, sample.logits)
}

/// Multiply-accumulates of one sample.
fn macs(net: &Net<'_>) -> Option<u64> {
    net.layers.iter().enumerate().map(|(at, layer)| Some(layer.macs(net.shape(at).ok()?))).sum()
}

/// Runs something in the first `bytes` of the memory, and prints what it took.
fn row(
    name: &str,
    macs: u64,
    bytes: usize,
    memory: &mut [Word],
    run: impl FnOnce(&mut [Word]) -> Option<()>,
) -> Option<()> {
    memory.fill(Word::NAN);
    let words = memory.get_mut(..Word::count(bytes))?;
    let (mut instructions, mut done) = (0, None);
    let stack = board::stack_of(|| {
        board::start_timer();
        done = run(words);
        instructions = board::instructions();
    });
    done?;
    let hundredths = (instructions * 100).checked_div(macs).unwrap_or(0);
    let written = words.iter().rposition(|word| bytemuck::bytes_of(word) != [0xff; Word::BYTES]);
    let arena = written.map_or(0, |last| (last + 1) * Word::BYTES);
    println!(
        "row={name} instructions={instructions} macs={macs} per_mac={}.{:02} stack={stack} arena={arena}",
        hundredths / 100,
        hundredths % 100
    );
    Some(())
}

/// Whether the logits are the host's, bit by bit.
fn same(logits: &[f32], host: &[u8]) -> Option<()> {
    let same = logits.iter().flat_map(|logit| logit.to_le_bytes()).eq(host.iter().copied());
    same.then_some(())
}
