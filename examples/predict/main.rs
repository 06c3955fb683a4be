//! Names what a model sees in images.
//!
//! ```text
//! predict MODEL IMAGE... [--top K] [--resize] [--border PIXELS] [--invert] [--cuda[=DEVICE]] [--json]
//! ```

#[path = "../common/device.rs"]
mod device;
#[path = "../common/gpu.rs"]
mod gpu;
#[path = "../common/names.rs"]
mod names;
mod picture;
#[path = "../common/program.rs"]
mod program;
#[path = "../common/sample.rs"]
mod sample;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sepal::backend::{Backend, Device};
use sepal::infer::Inference;
use sepal::loss::softmax;
use sepal::models::features::allocate;
use sepal::models::file::Loaded;
use serde_json::json;

use program::Failure;

/// Names what a model sees in PNG and JPEG images, with its confidence. Colours become what the
/// model takes: gray for one channel, red, green and blue for three.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The model file
    model: PathBuf,

    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// Name the K most likely classes
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,

    /// Resize images of another size than the model takes
    #[arg(long)]
    resize: bool,

    /// Zeros around each image, as many as the model was trained with
    #[arg(long, value_name = "PIXELS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16))]
    border: u32,

    /// Swap dark and light: for dark on light where the model learnt light on dark
    #[arg(long)]
    invert: bool,

    #[command(flatten)]
    gpu: gpu::Gpu,

    /// Print one JSON object for each image; --help lists its fields
    ///
    /// image: the file; classes: list of index, name, confidence, the most likely first.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|out| run(&args, out))
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    gpu::on!(args.gpu.open(None)?, device => run_on(&device, args, out))
}

fn run_on<D: Device>(device: &D, args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let file = args.model.display();
    let loaded = Loaded::open(&args.model)?;
    let names = names::names(&loaded)?;
    let model = loaded.model();
    let net = model.net;
    let Some(taken) = picture::Taken::of(net.input.shape, args.border) else {
        let found = sample::sample(net.input.shape);
        return Err(format!(
            "{file}: takes samples of {found}, expected images of 1 or 3 channels, and larger than two borders"
        )
        .into());
    };

    // One plan and one piece of memory for all images.
    let range = (0, net.layers.len());
    let plan = Inference::new(&device.open(&mut [])?, &model, range, 1, true)?;
    let mut memory = allocate(plan.bytes())?;
    let mut backend = device.open(&mut memory)?;
    backend.prepare(&model, range.0, range.1)?;

    let mut confidence = vec![0.0; plan.output()];
    for image in &args.images {
        let pixels = taken.read(image, args.resize, args.invert)?;
        plan.run(
            &mut backend,
            &model,
            1,
            |raw: &mut [u8]| raw.copy_from_slice(&pixels),
            &mut confidence,
        )?;
        softmax(&mut confidence);
        if confidence.iter().any(|share| share.is_nan()) {
            let image = image.display();
            return Err(
                format!("{file}: outputs for {image} are not finite, expected numbers").into()
            );
        }
        let mut order: Vec<usize> = (0..confidence.len()).collect();
        // Stable: of equal classes the first comes first.
        order.sort_by(|&a, &b| confidence[b].total_cmp(&confidence[a]));
        order.truncate(args.top.into());
        if args.json {
            let classes: Vec<_> = order
                .iter()
                .map(|&i| json!({"index": i, "name": names[i], "confidence": confidence[i]}))
                .collect();
            writeln!(out, "{}", json!({"image": image, "classes": classes}))?;
        } else {
            let line = |&i: &usize| format!("{} {:.1} %", names[i], confidence[i] * 100.0);
            let classes: Vec<String> = order.iter().map(line).collect();
            writeln!(out, "{}: {}", image.display(), classes.join(", "))?;
        }
    }
    Ok(())
}
