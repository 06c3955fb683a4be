//! Nets that PyTorch made, and residual nets with its names: the same outputs, read from ONNX and from
//! weights, and written again.
//!
//! `torch_nets.py` and `residual_nets.py` make the vectors.

use std::path::Path;

use safetensors::SafeTensors;
use sepal::cpu::OnCpu;
use sepal::models::export;
use sepal::models::imported::{Ending, Imported};
use sepal::models::onnx::{self, OnnxError};
use sepal::models::safetensors::{self as weights, Architecture};
use sepal::reference::OnReference;
use sepal::shape::Shape;

use super::vectors;

/// Of sums of some hundred products in another order.
const ROUNDING: f32 = 2e-5;

struct Case {
    name: String,
    model: Vec<u8>,
    input: Vec<f32>,
    output: Vec<f32>,
    shape: Shape,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interchange");
    let files = ["torch.safetensors.gz", "residual.safetensors.gz"];
    files.into_iter().flat_map(|file| cases_of(&vectors::open(&folder.join(file)))).collect()
}

fn cases_of(bytes: &[u8]) -> Vec<Case> {
    let all = SafeTensors::deserialize(bytes).unwrap();
    let case = |case: vectors::Case| {
        let shape = all.tensor(&format!("{}/shape", case.name)).unwrap().data().to_vec();
        let shape = Shape::new(1, shape[0].into(), shape[1].into(), shape[2].into());
        // Two samples of the numbers that the script makes.
        let places = 0..2 * shape.sample().unwrap();
        let input = places.map(|at| (f64::from((at * 37 + 11) % 101) / 101.0 - 0.5) as f32);
        let vectors::Case { name, model, output, .. } = case;
        Case { name, model, input: input.collect(), output, shape }
    };
    vectors::cases(bytes).into_iter().map(case).collect()
}

fn read(case: &Case) -> Imported {
    let Some(name) = case.name.strip_suffix(".weights") else {
        return onnx::read(&case.model).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    };
    let name = name.trim_end_matches("_bn").replace("mobilenet", "mobilenet-cifar");
    let architecture = Architecture::named(&name).unwrap();
    weights::read_as(&case.model, architecture, case.shape)
        .unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

fn check(what: &str, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let off = found.iter().zip(expected).fold(0.0f32, |a, (f, e)| a.max((f - e).abs()));
    println!("{what}: off by {off:e} of {largest}");
    assert_eq!(found.len(), expected.len(), "{what}");
    assert!(off <= ROUNDING * largest.max(1.0), "{what}: {found:?}, expected {expected:?}");
}

#[test]
fn nets_of_pytorch_compute_here_what_they_compute_there() {
    let cases = cases();
    assert!(cases.len() > 19);
    for case in cases.iter().filter(|case| !case.name.starts_with("residual")) {
        let Case { name, input, output, .. } = case;
        let net = read(case);
        // What the net gives depends on what it takes.
        let (one, other) = output.split_at(output.len() / 2);
        assert!(one.iter().zip(other).any(|(a, b)| (a - b).abs() > 0.01), "{name}: {output:?}");
        // Weights do not say how the net ends.
        let ending = match name.as_str() {
            "lenet.weights" => Ending::LogSoftmax,
            _ => net.ending(),
        };
        check(name, &vectors::run(&OnReference, &net, ending, input), output);
        check(name, &vectors::run(&OnCpu::default(), &net, ending, input), output);

        // Written as ONNX and read again; so again with the norms folded.
        let shape = net.model().net.input.shape;
        let again = onnx::read(&onnx::write(&net.model()).unwrap()).unwrap();
        let plain = |net: &Imported| {
            let raw = vectors::features(&OnReference, &net.model(), input);
            (raw, net.model().net.layers.len())
        };
        let (logits, layers) = plain(&net);
        check(&format!("{name}, written"), &plain(&again).0, &logits);
        assert_eq!(again.model().net.input.shape, shape);
        assert!(plain(&again).1 <= layers + 1, "{name}");
        let folded = export::fold(&net.model()).unwrap();
        let folded = onnx::read(&onnx::write(&folded.model()).unwrap()).unwrap();
        check(&format!("{name}, folded"), &plain(&folded).0, &logits);

        // Weights find their layers again, whatever they are called.
        let bytes = weights::write(&net.model()).unwrap();
        let back = weights::read(&bytes, net.model().net).unwrap();
        assert_eq!(plain(&back).0, logits, "{name}");
    }
}

#[test]
fn all_that_is_not_supported_is_named() {
    for case in cases().iter().filter(|case| case.name.starts_with("residual.")) {
        let Err(OnnxError::Unsupported(nodes)) = onnx::read(&case.model) else {
            panic!("{} is read", case.name);
        };
        let operators: Vec<&str> = nodes.iter().map(|node| &node.operator[..]).collect();
        // The sum and its shortcut are a residual addition.
        assert_eq!(operators, ["Sigmoid"], "{nodes:?}");
        assert!(nodes.iter().all(|node| !node.node.is_empty()), "{nodes:?}");
    }
}
