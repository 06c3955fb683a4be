//! Files of test vectors: safetensors with a model's bytes, an input and the output of each case.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use safetensors::SafeTensors;
use sepal::backend::Device;
use sepal::models::data::{Dataset, Samples};
use sepal::models::features::Features;
use sepal::models::imported::{Ending, Imported};
use sepal::net::Model;

/// A file in memory, whether it is packed or not.
pub fn open(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if path.extension().is_none_or(|extension| extension != "gz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

/// One case.
pub struct Case {
    pub name: String,
    pub model: Vec<u8>,
    pub input: Vec<f32>,
    pub output: Vec<f32>,
}

/// All cases of a file, by name; one that makes its input itself has none.
pub fn cases(bytes: &[u8]) -> Vec<Case> {
    let all = SafeTensors::deserialize(bytes).unwrap();
    let mut names: Vec<&str> =
        all.names().into_iter().filter_map(|name| name.strip_suffix("/model")).collect();
    names.sort_unstable();
    let bytes_of = |name: &str, part| {
        all.tensor(&format!("{name}/{part}")).map_or(&[][..], |tensor| tensor.data())
    };
    let numbers = |name: &str, part| {
        let (chunks, _) = bytes_of(name, part).as_chunks::<4>();
        chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let case = |name: &str| Case {
        name: name.to_owned(),
        model: bytes_of(name, "model").to_vec(),
        input: numbers(name, "input"),
        output: numbers(name, "output"),
    };
    names.into_iter().map(case).collect()
}

/// What the layers of a net give for `input`.
pub fn features<D: Device>(device: &D, model: &Model<'_>, input: &[f32]) -> Vec<f32> {
    let shape = model.net.input.shape;
    let samples = input.len() / shape.sample().unwrap() as usize;
    let names = vec!["any".to_owned()];
    let mut set =
        Dataset::new(shape, Samples::F32(input.to_vec()), vec![0; samples], names).unwrap();
    Features::new(device, model, &mut set, model.net.layers.len()).unwrap().data().to_vec()
}

/// What a net gives for `input`, as the graph that it comes from would.
pub fn run<D: Device>(device: &D, net: &Imported, ending: Ending, input: &[f32]) -> Vec<f32> {
    let model = net.model();
    let mut all = features(device, &model, input);
    let outputs = model.net.output().unwrap().sample().unwrap() as usize;
    for sample in all.chunks_mut(outputs) {
        let largest = sample.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let sum: f32 = sample.iter().map(|x| (x - largest).exp()).sum();
        for x in sample {
            match ending {
                Ending::Logits => {}
                Ending::Softmax => *x = (*x - largest).exp() / sum,
                Ending::LogSoftmax => *x = *x - largest - sum.ln(),
            }
        }
    }
    all
}
