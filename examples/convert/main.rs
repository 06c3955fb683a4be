//! Turns nets of other libraries into model files, and back.
//!
//! ```text
//! convert IN OUT [--architecture NAME|MODEL] [--shape C,H,W] [--mean M,M --std S,S] [--fold]
//! ```

#[path = "../common/program.rs"]
mod program;
#[path = "../common/sample.rs"]
mod sample;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use sepal::format::Meta;
use sepal::models::export::{self, Export};
use sepal::models::file::{self, FileError, Loaded};
use sepal::models::imported::{Ending, Imported};
use sepal::models::onnx;
use sepal::models::safetensors::{self, Architecture};
use sepal::net::{Model, Normalisation};
use sepal::shape::Shape;
use serde_json::json;

use program::Failure;
use sample::sample;

/// Turns a net of another library into a model file that all other programs take, and back: ONNX
/// (.onnx), weights with PyTorch's names (.safetensors) and model files (.sepal), by the ends of the
/// names. What cannot be read is listed by the names of its nodes or tensors.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The file to read
    input: PathBuf,

    /// The file to write
    output: PathBuf,

    /// The layers of a .safetensors file: lenet, alexnet, vgg11, vgg13, vgg16, vgg19, mobilenet or
    /// mobilenet-cifar (with norms or without, of any width), or a model file with the same layers
    #[arg(long, value_name = "NAME|MODEL")]
    architecture: Option<String>,

    /// Channels, rows and columns of a sample, where the file does not say
    #[arg(long, value_name = "C,H,W", value_delimiter = ',')]
    shape: Vec<u32>,

    /// What training subtracted from samples of 0 to 1, one number or one for each channel
    #[arg(long, value_name = "MEAN", value_delimiter = ',', requires = "std")]
    mean: Vec<f32>,

    /// And divided them by
    #[arg(long, value_name = "STD", value_delimiter = ',', requires = "mean")]
    std: Vec<f32>,

    /// The classes' names, in the order of the outputs
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    classes: Vec<String>,

    /// Fold batch norm into the layer before it, for inference
    #[arg(long)]
    fold: bool,

    /// Print one JSON object instead of text; --help lists its fields
    ///
    /// input, output: the files; sample: channels, rows and columns; layers: list of name, from (what
    /// it is called in a file that is no model file) and parameters; blocks: one past the last layer
    /// of each; features: how many of them; ending: logits, softmax or log_softmax, what the file read
    /// does to the outputs; bytes: of the file written.
    #[arg(long)]
    json: bool,
}

/// What a file's name says that it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Onnx,
    Safetensors,
    Sepal,
}

impl Form {
    fn of(path: &Path) -> Result<Self, Failure> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("onnx") => Ok(Self::Onnx),
            Some("safetensors") => Ok(Self::Safetensors),
            Some("sepal") => Ok(Self::Sepal),
            _ => {
                let ends = "expected a name that ends in .onnx, .safetensors or .sepal";
                Err(format!("{}: {ends}", path.display()).into())
            }
        }
    }
}

/// The net that was read.
enum Net {
    Foreign(Imported),
    Own(Loaded),
    Folded(Export),
}

impl Net {
    fn model(&self) -> Model<'_> {
        match self {
            Self::Foreign(net) => net.model(),
            Self::Own(net) => net.model(),
            Self::Folded(net) => net.model(),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(&args, out))
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let forms = (Form::of(&args.input)?, Form::of(&args.output)?);
    file::check_writable(&args.output)?;
    let read = read(args, forms.0)?;
    let (names, ending) = match &read {
        Net::Foreign(net) if !args.fold => (net.names().to_vec(), net.ending()),
        Net::Foreign(net) => (Vec::new(), net.ending()),
        _ => (Vec::new(), Ending::Logits),
    };
    let net = match args.fold {
        true => Net::Folded(export::fold(&read.model()).map_err(named(&args.input))?),
        false => read,
    };
    write(args, forms.1, &net)?;
    let model = net.model();
    let bytes = fs::metadata(&args.output)?.len();
    let ending = match ending {
        Ending::Logits => "logits",
        Ending::Softmax => "softmax",
        Ending::LogSoftmax => "log_softmax",
    };
    let mut rows = Vec::new();
    for (at, layer) in model.net.layers.iter().enumerate() {
        let x = model.net.shape(at)?;
        let (y, own) = (model.net.shape(at + 1)?, layer.tensors(x).unwrap_or_default().total());
        rows.push((layer.name(), names.get(at).map_or("", String::as_str), y, own));
    }
    if args.json {
        let layers: Vec<_> = rows
            .iter()
            .map(|(name, from, _, own)| json!({"name": name, "from": from, "parameters": own}))
            .collect();
        let Shape { c, h, w, .. } = model.net.input.shape;
        let report = json!({"input": args.input, "output": args.output, "sample": [c, h, w],
            "layers": layers, "blocks": model.net.blocks, "features": model.net.features,
            "ending": ending, "bytes": bytes});
        return Ok(writeln!(out, "{report}")?);
    }
    writeln!(out, "samples of {}", sample(model.net.input.shape))?;
    let mut block = 1;
    for (at, (name, from, y, own)) in rows.iter().enumerate() {
        if model.net.blocks.get(block - 1).is_some_and(|&end| usize::from(end) == at) {
            block += 1;
        }
        let shape = sample(*y);
        writeln!(out, "block {block:2}  {name:16} {shape:>12} {own:>10}  {from}")?;
    }
    if ending != "logits" {
        writeln!(out, "the file ends in {ending}, which is left out: the net gives logits")?;
    }
    Ok(writeln!(out, "wrote {}, {bytes} bytes", args.output.display())?)
}

/// An error with the file that it is about.
fn named<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> Failure {
    move |error| format!("{}: {error}", path.display()).into()
}

fn read(args: &Args, form: Form) -> Result<Net, Failure> {
    let shape = shape(args)?;
    if form == Form::Sepal {
        if shape.is_some() || args.architecture.is_some() || !args.mean.is_empty() {
            let all = "--shape, --architecture, --mean and --std";
            return Err(format!("{all}: a model file says that itself").into());
        }
        return Ok(Net::Own(Loaded::open(&args.input)?));
    }
    let bytes = fs::read(&args.input).map_err(named(&args.input))?;
    let net = match (form, &args.architecture) {
        (Form::Onnx, Some(_)) => return Err("--architecture: an ONNX file has its layers".into()),
        (Form::Onnx, None) => match shape {
            Some(shape) => onnx::read_shaped(&bytes, shape),
            None => onnx::read(&bytes),
        }
        .map_err(named(&args.input))?,
        (_, None) => {
            let names = Architecture::NAMES.join(", ");
            let file = args.input.display();
            return Err(format!(
                "{file}: weights without layers, expected --architecture {names} or a model file"
            )
            .into());
        }
        (_, Some(name)) => match (Architecture::named(name), shape) {
            (Some(known), Some(shape)) => safetensors::read_as(&bytes, known, shape),
            (Some(_), None) => {
                return Err(format!("--architecture {name}: expected --shape").into());
            }
            (None, _) => {
                let layers = Loaded::open(Path::new(name))?;
                safetensors::read(&bytes, layers.model().net)
            }
        }
        .map_err(named(&args.input))?,
    };
    Ok(Net::Foreign(match normalisation(args, net.model().net.input.shape)? {
        Some(normalisation) => net.normalised(normalisation),
        None => net,
    }))
}

fn shape(args: &Args) -> Result<Option<Shape>, Failure> {
    match *args.shape.as_slice() {
        [] => Ok(None),
        [c, h, w] => Ok(Some(Shape::new(1, c, h, w))),
        ref other => Err(format!("--shape: {} numbers, expected 3", other.len()).into()),
    }
}

fn normalisation(args: &Args, shape: Shape) -> Result<Option<Normalisation>, Failure> {
    if args.mean.is_empty() {
        return Ok(None);
    }
    let mut all = Normalisation::NONE;
    for (name, given, entries) in
        [("mean", &args.mean, &mut all.mean), ("std", &args.std, &mut all.std)]
    {
        let channels = shape.c as usize;
        if given.len() != 1 && (given.len() != channels || channels > entries.len()) {
            let found = given.len();
            let expected = if channels > entries.len() { 1 } else { channels };
            return Err(format!("--{name}: {found} numbers, expected 1 or {expected}").into());
        }
        entries.iter_mut().zip(given.iter().cycle()).for_each(|(entry, given)| *entry = *given);
    }
    match all.std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
        Some(std) => Err(format!("--std: {std}, expected more than 0").into()),
        None => Ok(Some(all)),
    }
}

fn write(args: &Args, form: Form, net: &Net) -> Result<(), Failure> {
    let (path, model) = (&args.output, net.model());
    let bytes = match form {
        Form::Onnx => onnx::write(&model).map_err(named(path))?,
        Form::Safetensors => safetensors::write(&model).map_err(named(path))?,
        Form::Sepal => {
            let classes: Vec<&str> = args.classes.iter().map(String::as_str).collect();
            let note = format!("from {}", args.input.file_name().unwrap_or_default().display());
            let meta = Meta { classes: &classes, notes: &[&note], ..Meta::NONE };
            return Ok(file::save(path, &model, &meta)?);
        }
    };
    Ok(file::replace(path, |file| {
        let io = |error| FileError::Io { path: path.clone(), doing: "writing", error };
        file.write_all(&bytes).map_err(io)
    })?)
}
