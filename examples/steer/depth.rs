//! Depth.

use std::io::Write;
use std::path::PathBuf;

use sepal::backend::Device;
use serde_json::json;

use crate::options::{Options, Rising};
use crate::program::Failure;
use crate::work::{Clock, Lines, Work, each_seed, macs, parameters};

/// Grows a net block by block, each by SI, the ones before frozen, while held-out SI rises; the net that
/// is kept ends at the best block and gets its classifier.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub options: Options,

    #[command(flatten)]
    pub rising: Rising,

    /// Train the blocks that growth left out too, and a classifier behind each depth, to compare with
    #[arg(long)]
    pub all: bool,

    /// Write the net that is kept here: of one seed
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
}

pub fn run<D: Device>(device: &D, args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    each_seed(device, &args.options, args.save.as_deref(), out, |work, seed, lines| {
        one(work, args, seed, lines)
    })
}

fn one<D: Device>(
    work: &Work<'_, D>,
    args: &Args,
    seed: u64,
    lines: &mut Lines<'_>,
) -> Result<(), Failure> {
    let steer = work.steer(seed);
    let drawn = work.net(100, seed)?;
    let raw = steer.separation(&drawn.model(), 0)?;
    lines.text(&format!("seed {seed}: held-out SI {:.1} % on the raw samples", raw * 100.0))?;
    lines.value(&json!({"event": "raw", "seed": seed, "held_out_si": raw}))?;
    let mut clock = Clock::default();
    let mut growth = steer.grow(drawn.net(), args.rising.rise(), &mut clock)?;
    let (trained, features) = (growth.separation.len(), usize::from(drawn.net().features));
    if args.all {
        for block in trained..features {
            steer.train(&mut growth.net, block + 1, &mut clock)?;
            let end = growth.net.net().block(block).map_or(0, |(_, end)| end);
            growth.separation.push(steer.separation(&growth.net.model(), end)?);
        }
    }
    for (block, (si, seconds)) in growth.separation.iter().zip(&clock.seconds).enumerate() {
        lines.value(&json!({"event": "block", "seed": seed, "block": block, "held_out_si": si,
            "seconds": seconds}))?;
    }
    lines.text(&format!(
        "{:<12} {:>10} {:>10} {:>10} {:>10} {:>8}",
        "depth", "SI %", "parameters", "MACs", "accuracy %", "CPU s"
    ))?;
    // What was grown takes the time of all blocks that it tried, a net of fixed depth that of its own.
    let depths = if args.all { 1..=features } else { growth.kept..=growth.kept };
    let mut found = None;
    for depth in depths {
        let mut net = growth.net.up_to(depth)?;
        let mut own = Clock::default();
        steer.classify(&mut net, &mut own)?;
        let blocks = |count: usize| clock.seconds.iter().take(count).sum::<f64>();
        let kept = depth == growth.kept;
        let (fixed, grown) = (blocks(depth) + own.sum(), blocks(trained) + own.sum());
        let shown = [("fixed", fixed, args.all), ("grown", grown, kept)];
        let accuracy = work.accuracy(&net)?;
        let si = growth.separation.get(depth - 1).copied().unwrap_or_default();
        let (size, macs) = (parameters(&net.net())?, macs(&net.net())?);
        for (name, seconds, _) in shown.into_iter().filter(|&(.., shown)| shown) {
            let text = format!(
                "{:<12} {:>10.1} {size:>10} {macs:>10} {:>10.1} {seconds:>8.1}",
                format!("{depth} {name}"),
                si * 100.0,
                accuracy * 100.0
            );
            lines.text(&text)?;
            lines.value(&json!({"event": "net", "seed": seed, "name": name, "depth": depth,
                "kept": kept, "held_out_si": si, "parameters": size, "macs": macs,
                "accuracy": accuracy, "seconds": seconds}))?;
        }
        if kept {
            found = Some(net);
        }
    }
    lines.text(&format!("grown to {trained} of {features} blocks, kept {}\n", growth.kept))?;
    if let (Some(path), Some(net)) = (&args.save, &found) {
        work.save(path, net, seed, &format!("grown to {} blocks", growth.kept))?;
    }
    Ok(())
}
