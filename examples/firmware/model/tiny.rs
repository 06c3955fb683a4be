//! The nets of MLPerf Tiny with drawn weights: how much a net computes does not depend on what it learnt.

use std::error::Error;
use std::fs;
use std::path::Path;

use sepal_core::arena::Word;
use sepal_core::format::Meta;
use sepal_core::infer::Inference;
use sepal_core::micro::Micro;
use sepal_core::net::{Net, Weights};
use sepal_core::reference::{OnReference, Reference};
use sepal_core::rng::{Purpose, Rng};
use sepal_models::autoencoder::AUTOENCODER;
use sepal_models::data::{Dataset, Samples};
use sepal_models::ds_cnn::DS_CNN;
use sepal_models::fit::Fit;
use sepal_models::mobilenet::MOBILENET;
use sepal_models::resnet::RESNET8;
use sepal_models::{export, file};

/// A row for each net, and another where it is made bytes, too: residual additions are of numbers.
const NETS: [(&str, Net<'static>, bool); 4] = [
    ("ds-cnn", DS_CNN, true),
    ("mobilenet", MOBILENET, true),
    ("resnet8", RESNET8, false),
    ("autoencoder", AUTOENCODER, true),
];

const SEED: u64 = 0;

/// Samples that steps are measured on; the first goes along.
const MEASURED: usize = 4;

/// Writes for each net `NAME.weights`, `NAME.sample` and its logits, and `NAME-int8.sepal` and its own.
pub fn write(out: &Path) -> Result<(), Box<dyn Error>> {
    for (name, net, bytes) in NETS {
        let fit = Fit::new(net, SEED)?;
        let (model, shape) = (fit.model(), net.input.shape);
        let Weights::Flat(weights) = model.weights else { return Err("weights in memory".into()) };
        super::write_numbers(&out.join(format!("{name}.weights")), weights)?;

        let size = shape.sample().ok_or("an empty sample")? as usize;
        let mut rng = Rng::new(SEED, Purpose::Sample, 0, 0);
        let noise: Vec<u8> = (0..MEASURED * size).map(|_| rng.next_u32() as u8).collect();
        let sample = noise[..size].to_vec();
        fs::write(out.join(format!("{name}.sample")), &sample)?;
        let fill = |raw: &mut [u8]| raw.copy_from_slice(&sample);
        let mut logits = vec![0.0; net.output()?.sample().ok_or("no output")? as usize];
        let plan = Inference::reference(net, 1)?;
        let mut memory = vec![Word::NAN; Word::count(plan.bytes())];
        plan.run(&mut Reference::new(&mut memory), &model, 1, fill, &mut logits)?;
        super::write_numbers(&out.join(format!("{name}.logits")), &logits)?;

        if !bytes {
            continue;
        }
        let names = vec![String::from("noise")];
        let noise = Dataset::new(shape, Samples::U8(noise), vec![0; MEASURED], names)?;
        let int8 = export::quantise(&OnReference, &model, &mut &noise, &Default::default())?;
        file::save(&out.join(format!("{name}-int8.sepal")), &int8.model(), &Meta::NONE)?;
        let plan = Inference::micro(int8.model().net, 1, true)?;
        let mut memory = vec![Word::NAN; Word::count(plan.bytes())];
        let mut backend = Micro::<true>::new(&mut memory);
        plan.run(&mut backend, &int8.model(), 1, fill, &mut logits)?;
        super::write_numbers(&out.join(format!("{name}-int8.logits")), &logits)?;
    }
    Ok(())
}
