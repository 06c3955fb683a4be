//! Width.

use std::io::Write;
use std::path::PathBuf;

use sepal::backend::Device;
use sepal::models::steer::{Steered, Tried};
use serde_json::json;

use crate::options::{Options, Rising};
use crate::program::Failure;
use crate::work::{Clock, Lines, Work, each_seed, macs, parameters};

/// Chooses the filters of each block: wider and wider ones are trained by SI while held-out SI rises,
/// and the best is kept. Beside it nets of the architecture's own widths.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub options: Options,

    #[command(flatten)]
    pub rising: Rising,

    /// Filters to try in each block
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "8,16,32,64", value_parser = clap::value_parser!(u32).range(1..))]
    pub widths: Vec<u32>,

    /// Widths of the nets to compare with, in percent of the architecture's
    #[arg(long, value_name = "PERCENT,..", value_delimiter = ',', default_value = "50,100,200", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub fixed: Vec<u32>,

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
    let mut clock = Clock::default();
    let wide = steer.widen(drawn.net(), &args.widths, args.rising.rise(), &mut clock)?;
    lines.text(&format!(
        "seed {seed}\n{:<8} {:>8} {:>8} {:>8}",
        "block", "filters", "SI %", "CPU s"
    ))?;
    for (tried, seconds) in wide.tried.iter().zip(&clock.seconds) {
        let Tried { block, filters, separation } = *tried;
        let kept = if wide.filters.get(block) == Some(&filters) { "  kept" } else { "" };
        let si = separation * 100.0;
        lines.text(&format!("{:<8} {filters:>8} {si:>8.1} {seconds:>8.1}{kept}", block + 1))?;
        lines.value(&json!({"event": "block", "seed": seed, "block": block, "filters": filters,
            "held_out_si": separation, "seconds": seconds}))?;
    }
    lines.text(&format!(
        "\n{:<28} {:>8} {:>10} {:>10} {:>10} {:>8}",
        "net", "SI %", "parameters", "MACs", "accuracy %", "CPU s"
    ))?;
    let mut chosen = wide.net;
    steer.classify(&mut chosen, &mut clock)?;
    row(work, "by SI", &chosen, seed, clock.sum(), lines)?;
    for &percent in &args.fixed {
        let (mut net, mut clock) = (work.net(percent, seed)?, Clock::default());
        steer.classify(&mut net, &mut clock)?;
        row(work, &format!("{percent} %"), &net, seed, clock.sum(), lines)?;
    }
    lines.text("")?;
    if let Some(path) = &args.save {
        work.save(path, &chosen, seed, &format!("widened to {:?} filters", wide.filters))?;
    }
    Ok(())
}

fn row<D: Device>(
    work: &Work<'_, D>,
    name: &str,
    net: &Steered,
    seed: u64,
    seconds: f64,
    lines: &mut Lines<'_>,
) -> Result<(), Failure> {
    let (accuracy, si) = (work.accuracy(net)?, work.separation(net, seed)?);
    let (size, macs) = (parameters(&net.net())?, macs(&net.net())?);
    let filters: Result<Vec<u32>, _> = (0..usize::from(net.net().features))
        .map(|block| Ok::<_, Failure>(net.net().shape(usize::from(net.net().blocks[block]))?.c))
        .collect();
    let filters = filters?;
    let list: Vec<String> = filters.iter().map(u32::to_string).collect();
    lines.text(&format!(
        "{:<28} {:>8.1} {size:>10} {macs:>10} {:>10.1} {seconds:>8.1}",
        format!("{name}: {}", list.join(" ")),
        si * 100.0,
        accuracy * 100.0
    ))?;
    Ok(lines.value(&json!({"event": "net", "seed": seed, "name": name, "filters": filters,
        "held_out_si": si, "parameters": size, "macs": macs, "accuracy": accuracy,
        "seconds": seconds}))?)
}
