//! Filters.

use std::io::Write;
use std::path::PathBuf;

use sepal::backend::Device;
use sepal::models::cache::Budget;
use sepal::models::file;
use sepal::models::steer::{Score, Steered, stay};
use serde_json::json;

use crate::options::{Options, percent};
use crate::program::Failure;
use crate::work::{Clock, Lines, Work, macs, parameters, spread};

/// Trains a net, then cuts a share of the filters out of each of its blocks: those that score least.
/// Each net is measured as it is cut, with its classifier trained again, and with the statistics of its
/// norms measured again too. Beside it stand a net of which each block was cut before the next was
/// trained, and one that had so few filters from the start.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub options: Options,

    /// By what filters stay
    #[arg(
        long,
        value_enum,
        value_name = "SCORE,..",
        value_delimiter = ',',
        default_value = "own,left-out,eliminated,l1,random"
    )]
    pub scores: Vec<Score>,

    /// How much of the filters of each block goes, in percent; one filter is always left
    #[arg(long, value_name = "PERCENT,..", value_delimiter = ',', default_value = "25,50,75", value_parser = percent)]
    pub ratios: Vec<f64>,

    /// Leave out the nets that are narrow from the start
    #[arg(long)]
    pub no_narrow: bool,

    /// Write the net here of which each block was cut before the next was trained: of one score, one ratio
    /// and one seed
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
}

/// Accuracies of a cut net.
struct Measured {
    name: String,
    ratio: f64,
    accuracies: [Option<f64>; 4],
    held_out_si: f64,
    parameters: usize,
    macs: u64,
}

pub fn run<D: Device>(device: &D, args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let options = &args.options;
    if let Some(path) = &args.save {
        if (args.scores.len(), args.ratios.len(), options.seeds.len()) != (1, 1, 1) {
            return Err("--save: expected one of each of --scores, --ratios and --seeds".into());
        }
        file::check_writable(path)?;
    }
    let (learning, sets) = (options.learning()?, options.sets()?);
    let work = Work { device, sets: &sets, learning: &learning, budget: Budget::default() };
    let mut lines = Lines { out, json: options.json };
    let mut all = Vec::new();
    for &seed in &options.seeds {
        all.extend(one(&work, args, seed, &mut lines)?);
    }
    summary(&all, options.seeds.len(), &mut lines)?;
    Ok(())
}

/// All scores and ratios of one seed.
fn one<D: Device>(
    work: &Work<'_, D>,
    args: &Args,
    seed: u64,
    lines: &mut Lines<'_>,
) -> Result<Vec<Measured>, Failure> {
    let steer = work.steer(seed);
    let drawn = work.net(100, seed)?;
    let mut whole = drawn.clone();
    let mut clock = Clock::default();
    steer.classify(&mut whole, &mut clock)?;
    lines.text(&format!("seed {seed}: the whole net took {:.1} CPU seconds", clock.sum()))?;
    let accuracy = Some(work.accuracy(&whole)?);
    let mut all = vec![measured(work, "whole".into(), 0.0, [accuracy; 4], &whole, seed)?];
    let blocks = usize::from(whole.net().features);
    for &score in &args.scores {
        let name = clap::ValueEnum::to_possible_value(&score);
        let name = name.map_or_else(String::new, |name| name.get_name().to_owned());
        let orders: Result<Vec<_>, _> =
            (0..blocks).map(|block| steer.order(&whole, block, score)).collect();
        let orders = orders?;
        for &ratio in &args.ratios {
            let share = ratio / 100.0;
            let kept: Result<Vec<_>, _> = orders.iter().map(|order| stay(order, share)).collect();
            let cut = whole.cut(&kept?)?;
            let (mut classified, mut settled) = (cut.clone(), cut.clone());
            let watch = &mut Clock::default();
            steer.classify(&mut classified, watch)?;
            steer.settle(&mut settled, watch)?;
            let mut trained = steer.train_pruned(drawn.net(), score, share, watch)?;
            steer.classify(&mut trained, watch)?;
            let mut accuracies = [None; 4];
            let nets = [&cut, &classified, &settled, &trained];
            for (accuracy, net) in accuracies.iter_mut().zip(nets) {
                *accuracy = Some(work.accuracy(net)?);
            }
            all.push(measured(work, name.clone(), ratio, accuracies, &trained, seed)?);
            if let Some(path) = &args.save {
                work.save(path, &trained, seed, &format!("pruned by {name}, {ratio} %"))?;
            }
        }
    }
    for &ratio in args.ratios.iter().filter(|_| !args.no_narrow) {
        // As many filters in each block as the cut nets have.
        let mut narrow = drawn.clone();
        for block in 0..blocks {
            let end = narrow.net().block(block).map_or(0, |(_, end)| end);
            let all: Vec<u32> = (0..narrow.net().shape(end)?.c).collect();
            let filters = stay(&all, ratio / 100.0)?.len() as u32;
            narrow = narrow.with_filters(block, filters)?;
        }
        steer.classify(&mut narrow, &mut Clock::default())?;
        let accuracies = [None, None, None, Some(work.accuracy(&narrow)?)];
        all.push(measured(work, "narrow".into(), ratio, accuracies, &narrow, seed)?);
    }
    for row in &all {
        let Measured { name, ratio, accuracies, held_out_si, parameters, macs } = row;
        let [cut, classified, settled, trained] = accuracies;
        lines.value(&json!({"event": "pruned", "seed": seed, "score": name, "ratio": ratio,
            "cut": cut, "classified": classified, "settled": settled, "trained": trained,
            "held_out_si": held_out_si, "parameters": parameters, "macs": macs}))?;
    }
    Ok(all)
}

fn measured<D: Device>(
    work: &Work<'_, D>,
    name: String,
    ratio: f64,
    accuracies: [Option<f64>; 4],
    net: &Steered,
    seed: u64,
) -> Result<Measured, Failure> {
    let held_out_si = work.separation(net, seed)?;
    let (parameters, macs) = (parameters(&net.net())?, macs(&net.net())?);
    Ok(Measured { name, ratio, accuracies, held_out_si, parameters, macs })
}

/// A line for each score and ratio: means and ranges over the seeds.
fn summary(all: &[Measured], seeds: usize, lines: &mut Lines<'_>) -> Result<(), Failure> {
    lines.text(&format!(
        "\n{:<12} {:>6} {:>10} {:>10} {:>6}  accuracy % (least to most of {seeds} seeds)",
        "score", "gone %", "parameters", "MACs", "SI %"
    ))?;
    let what = ["as cut", "classifier again", "norms too", "cut in training"];
    let what = what.map(|what| format!("{what:<20}")).join(" ");
    lines.text(format!("{:<48}  {what}", "").trim_end())?;
    let each = all.len() / seeds.max(1);
    for at in 0..each {
        let rows: Vec<&Measured> = all.iter().skip(at).step_by(each).collect();
        let Some(Measured { name, ratio, parameters, macs, .. }) = rows.first() else { continue };
        let (si, ..) = spread(&rows.iter().map(|row| row.held_out_si).collect::<Vec<_>>());
        let mut text =
            format!("{name:<12} {ratio:>6} {parameters:>10} {macs:>10} {:>6.1} ", si * 100.0);
        for of in 0..4 {
            let found: Vec<f64> = rows.iter().filter_map(|row| row.accuracies[of]).collect();
            let cell = match found.is_empty() {
                true => "-".to_owned(),
                false => {
                    let (mean, least, most) = spread(&found);
                    let [mean, least, most] = [mean, least, most].map(|share| share * 100.0);
                    format!("{mean:.1} ({least:.1} to {most:.1})")
                }
            };
            text += &format!(" {cell:<20}");
        }
        lines.text(text.trim_end())?;
    }
    Ok(())
}
