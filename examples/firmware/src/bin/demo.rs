//! A device in use: opens the model in flash and classifies what comes. Ends with status 0 where
//! every logit is, bit by bit, what the host computes with the same model.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::format::File;
use sepal_core::infer::Inference;
use sepal_core::layer::RELU;
use sepal_core::net::Model;
use sepal_core::reference::Reference;
use sepal_firmware::flash::{self, CLASSES, COUNTS, Sample};
use sepal_firmware::{board, println};
use sepal_models::lenet::LENET5;

const WORDS: usize = match Inference::reference(LENET5, 1) {
    Ok(plan) => Word::count(plan.bytes()),
    Err(_) => panic!("the layers do not fit each other"),
};

#[entry]
fn main() -> ! {
    static mut MEMORY: [Word; WORDS] = [Word::ZERO; WORDS];
    match run(MEMORY) {
        Ok(()) => board::exit(0),
        Err(what) => {
            println!("{what}");
            board::exit(1)
        }
    }
}

fn run(memory: &mut [Word]) -> Result<(), &'static str> {
    let mut layers = [RELU; COUNTS.layers];
    let mut blocks = [0; COUNTS.blocks];
    let mut tensors = [File::NO_TENSOR; COUNTS.tensors];
    let file = File::open(flash::lenet5()).map_err(|_| "flash holds no model")?;
    let model = file.decode(&mut layers, &mut blocks, &mut tensors);
    let model = model.map_err(|_| "the model has more layers than it had when this was built")?;
    println!("model of {} layers, {} classes", file.layers(), file.classes());
    classify(&file, &model, memory)
}

/// Classifies all samples.
fn classify(file: &File<'_>, model: &Model<'_>, memory: &mut [Word]) -> Result<(), &'static str> {
    let plan =
        Inference::reference(model.net, 1).map_err(|_| "the layers do not fit each other")?;
    let mut backend = Reference::new(memory);
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
        let largest = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        let class = largest.map_or(0, |(class, _)| class);
        let name = |class| file.class_name(class).unwrap_or("?");
        let (predicted, labelled) = (name(class), name(usize::from(label)));
        println!("{predicted}, labelled {labelled}, {instructions} instructions");
        seen += 1;
        right += u32::from(class == usize::from(label));
    }
    println!("{right} of {seen} as labelled");
    Ok(())
}
