//! What SI tells beforehand.

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use sepal::backend::Device;
use sepal::models::architecture::Architecture;
use sepal::models::cache::Budget;
use sepal::models::data::Dataset;
use sepal::models::learning::Learning;
use sepal::models::steer::rank::{Correlation, pearson, spearman};
use sepal::rng::Permutation;
use serde_json::json;

use crate::options::Options;
use crate::program::Failure;
use crate::set::Set;
use crate::work::{Clock, Lines, Work, drawn, parameters};

/// Says how far SI tells accuracy beforehand: of data sets, where some are named, by SI of their raw
/// samples; otherwise of nets on --data, by held-out SI of their features untrained (norms measured) and
/// after one pass a block. Correlations come with the share of all orders that would be as high.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub options: Options,

    /// Folders of data sets to rank; of each --images drawn by the seed are trained on, and as many tested
    #[arg(value_name = "DIR", conflicts_with_all = ["data", "order", "dev", "nets"])]
    pub folders: Vec<PathBuf>,

    /// Nets to rank instead
    #[arg(
        long,
        value_enum,
        value_name = "NET,..",
        value_delimiter = ',',
        default_value = "lenet,lenet5,vgg6,resnet8,dense"
    )]
    pub nets: Vec<Architecture>,
}

pub fn run<D: Device>(device: &D, args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let mut lines = Lines { out, json: args.options.json };
    let count = if args.folders.is_empty() { args.nets.len() } else { args.folders.len() };
    if count < 3 {
        return Err(format!("{count} to rank, expected 3 or more").into());
    }
    for &seed in &args.options.seeds {
        match args.folders.is_empty() {
            true => nets(device, args, seed, &mut lines)?,
            false => sets(device, args, seed, &mut lines)?,
        }
    }
    Ok(())
}

fn sets<D: Device>(
    device: &D,
    args: &Args,
    seed: u64,
    lines: &mut Lines<'_>,
) -> Result<(), Failure> {
    let learning = args.options.learning()?;
    let name = learning.architecture.to_possible_value();
    let name = name.as_ref().map_or("net", |name| name.get_name());
    lines.text(&format!(
        "seed {seed}\n{:<28} {:>8} {:>10} {name:>10}",
        "data set", "SI %", "cross-SI %"
    ))?;
    let (mut si, mut cross, mut reached) = (Vec::new(), Vec::new(), Vec::new());
    for folder in &args.folders {
        let set = Set { data: Some(folder.clone()), ..args.options.set.clone() };
        let options = Options { set, ..args.options.clone() };
        let split = options.set.open()?;
        let some = |all: &Dataset| {
            let order = Permutation::new(seed, 0, all.len());
            let images = options.choice.images.unwrap_or(all.len()).min(all.len());
            all.subset(&(0..images).map(|place| order.get(place)).collect::<Vec<_>>())
        };
        let test = some(&split.test)?;
        // The raw samples of the test set are judged, and the net by their classes.
        let held_out = test.head(options.bank)?;
        let sets = options.checked(some(&split.train)?, held_out, test)?;
        let work = Work { device, sets: &sets, learning: &learning, budget: Budget::default() };
        let (steer, mut net) = (work.steer(seed), work.net(100, seed)?);
        let own = steer.bank_separation(&net.model(), 0)?;
        let other = steer.separation(&net.model(), 0)?;
        steer.classify(&mut net, &mut Clock::default())?;
        let accuracy = work.accuracy(&net)?;
        let name = options.set.name();
        let [a, b, c] = [own, other, accuracy].map(|share| share * 100.0);
        lines.text(&format!("{name:<28} {a:>8.1} {b:>10.1} {c:>10.1}"))?;
        lines.value(&json!({"event": "set", "seed": seed, "name": name, "si": own,
            "cross_si": other, "accuracy": accuracy}))?;
        si.push(own);
        cross.push(other);
        reached.push(accuracy);
    }
    correlations(&[("SI", si), ("cross-SI", cross)], &reached, seed, lines)
}

fn nets<D: Device>(
    device: &D,
    args: &Args,
    seed: u64,
    lines: &mut Lines<'_>,
) -> Result<(), Failure> {
    let options = &args.options;
    let (learning, sets) = (options.learning()?, options.sets()?);
    lines.text(&format!(
        "seed {seed}\n{:<12} {:>10} {:>12} {:>12} {:>10}",
        "net", "parameters", "untrained %", "one pass %", "accuracy %"
    ))?;
    let [mut sizes, mut untrained, mut brief, mut reached] = [const { Vec::new() }; 4];
    for &architecture in &args.nets {
        let learning = Learning { architecture, ..learning };
        let work = |learning| Work { device, sets: &sets, learning, budget: Budget::default() };
        let net = drawn(architecture, &sets.train, 100, seed)?;
        let watch = &mut Clock::default();
        // A classifier is not looked at: one pass is the least.
        let short = Learning { epochs: 1, head_epochs: 1, ..learning };
        let (once, full) = (work(&short), work(&learning));
        let (mut random, mut passed, mut trained) = (net.clone(), net.clone(), net);
        once.steer(seed).settle(&mut random, watch)?;
        let blocks = usize::from(passed.net().features);
        once.steer(seed).train(&mut passed, blocks, watch)?;
        full.steer(seed).classify(&mut trained, watch)?;
        let [random, passed] = [full.separation(&random, seed)?, full.separation(&passed, seed)?];
        let (accuracy, size) = (full.accuracy(&trained)?, parameters(&trained.net())?);
        let name = architecture.to_possible_value();
        let name = name.as_ref().map_or("net", |name| name.get_name());
        let [a, b, c] = [random, passed, accuracy].map(|share| share * 100.0);
        lines.text(&format!("{name:<12} {size:>10} {a:>12.1} {b:>12.1} {c:>10.1}"))?;
        lines.value(&json!({"event": "candidate", "seed": seed, "name": name,
            "parameters": size, "random_si": random, "brief_si": passed,
            "accuracy": accuracy}))?;
        sizes.push((size as f64).ln());
        untrained.push(random);
        brief.push(passed);
        reached.push(accuracy);
    }
    let with = [("untrained SI", untrained), ("SI of one pass", brief), ("ln parameters", sizes)];
    correlations(&with, &reached, seed, lines)
}

/// How far each tells what was reached.
fn correlations(
    with: &[(&str, Vec<f64>)],
    reached: &[f64],
    seed: u64,
    lines: &mut Lines<'_>,
) -> Result<(), Failure> {
    lines.text(&format!(
        "\n{:<28} {:>9} {:>8} {:>9} {:>8}",
        "accuracy and", "Spearman", "p", "Pearson", "p"
    ))?;
    for (name, found) in with {
        let (s, r) = (spearman(found, reached, seed)?, pearson(found, reached, seed)?);
        lines.text(&format!(
            "{name:<28} {:>9.3} {:>8.4} {:>9.3} {:>8.4}",
            s.coefficient, s.p, r.coefficient, r.p
        ))?;
        let of = |c: Correlation| json!({"coefficient": c.coefficient, "p": c.p, "exact": c.exact});
        lines
            .value(&json!({"event": "correlation", "seed": seed, "of": "accuracy", "with": name,
            "pairs": reached.len(), "spearman": of(s), "pearson": of(r)}))?;
    }
    Ok(lines.text("")?)
}
