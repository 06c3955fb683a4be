//! Trains LeNet-5 on the bundled images, makes bytes of it, and classifies some of the test set, all
//! without instructions of the host's own: every host gets the same bytes. A new user's images, on
//! which the model is wrong, are the bundled ones with their contrast inverted.

mod tiny;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use sepal_core::arena::Word;
use sepal_core::format::{Digest, Meta, Provenance, VERSION};
use sepal_core::infer::Inference;
use sepal_core::micro::Micro;
use sepal_core::net::Weights;
use sepal_core::reference::{OnReference, Reference};
use sepal_models::cache::Budget;
use sepal_models::data::{self, Samples};
use sepal_models::fit::Fit;
use sepal_models::lenet::LENET5;
use sepal_models::{export, file, recipe};

/// Images of the test set that go along.
const SAMPLES: usize = 20;
/// Images of each class that the new user shows, and of all classes that are kept to judge by.
const SHOWN: u32 = 10;
const JUDGED: usize = 100;
const PIXELS: usize = 28 * 28;
const CLASSES: usize = 10;
const SEED: u64 = 0;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=tiny.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let (mut train, test) = (data::bundled().train, data::bundled().test);
    let Samples::U8(pixels) = train.samples() else { return Err("images of bytes".into()) };
    let mut digest = Digest::new();
    digest.bytes(pixels);

    let strategy = recipe::forward_si(5, 20);
    let mut fit = Fit::new(LENET5, SEED)?;
    fit.run(&OnReference, &strategy, &mut train, &Budget::bytes(1 << 30), &mut ())?;
    let model = fit.model();
    let provenance = Provenance {
        version: VERSION,
        recipe: &format!("{strategy:?}"),
        seed: SEED,
        data: digest.finish(),
    };
    let names: Vec<&str> = train.names().iter().map(String::as_str).collect();
    let meta = Meta { classes: &names, provenance: Some(provenance), ..Meta::NONE };
    file::save(&out.join("lenet5.sepal"), &model, &meta)?;
    let bytes = export::quantise(&OnReference, &model, &mut train.head(500)?, &Default::default())?;
    file::save(&out.join("lenet5-int8.sepal"), &bytes.model(), &meta)?;
    let Weights::Flat(weights) = model.weights else { return Err("weights in memory".into()) };
    write_numbers(&out.join("lenet5.weights"), weights)?;

    let Samples::U8(pixels) = test.samples() else { return Err("images of bytes".into()) };
    // Whom the device meets: images that it was not trained on, and others to judge by.
    let judged = SAMPLES..SAMPLES + JUDGED;
    let mut shown = Vec::new();
    for (at, &label) in test.labels().iter().enumerate().skip(judged.end) {
        let same = shown.iter().filter(|&&other: &&usize| test.labels()[other] == label).count();
        if same < SHOWN as usize {
            shown.push(at);
        }
    }
    for (name, images) in [("shown", shown), ("judged", judged.collect())] {
        let image = |&at: &usize| pixels[at * PIXELS..][..PIXELS].iter().map(|pixel| 255 - pixel);
        fs::write(out.join(name), images.iter().flat_map(image).collect::<Vec<u8>>())?;
        let labels: Vec<u8> = images.iter().map(|&at| test.labels()[at] as u8).collect();
        fs::write(out.join(format!("{name}-labels")), labels)?;
    }
    let pixels = &pixels[..SAMPLES * PIXELS];
    let labels: Vec<u8> = test.labels()[..SAMPLES].iter().map(|&label| label as u8).collect();
    fs::write(out.join("samples"), pixels)?;
    fs::write(out.join("labels"), labels)?;
    let mut logits = [0.0; SAMPLES * CLASSES];
    let plan = Inference::reference(LENET5, 1)?;
    let mut memory = vec![Word::NAN; Word::count(plan.bytes())];
    let mut backend = Reference::new(&mut memory);
    for (image, logits) in pixels.chunks(PIXELS).zip(logits.chunks_mut(CLASSES)) {
        plan.run(&mut backend, &model, 1, |raw: &mut [u8]| raw.copy_from_slice(image), logits)?;
    }
    write_numbers(&out.join("logits"), &logits)?;
    let (model, image) = (bytes.model(), &pixels[..PIXELS]);
    let plan = Inference::micro(model.net, 1, true)?;
    let mut memory = vec![Word::NAN; Word::count(plan.bytes())];
    let (mut backend, mut logits) = (Micro::<true>::new(&mut memory), [0.0; CLASSES]);
    plan.run(&mut backend, &model, 1, |raw: &mut [u8]| raw.copy_from_slice(image), &mut logits)?;
    write_numbers(&out.join("logits-int8"), &logits)?;
    tiny::write(&out)
}

/// Little-endian numbers, one after the other.
fn write_numbers(path: &Path, numbers: &[f32]) -> Result<(), Box<dyn Error>> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Ok(fs::write(path, bytes)?)
}
