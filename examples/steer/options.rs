//! What all subcommands take.

use sepal::models::architecture::Architecture;
use sepal::models::data::Dataset;
use sepal::models::learning::{Learning, SettingError};
use sepal::models::steer::Rise;
use sepal::stage::Loss;

use crate::gpu::{Gpu, Opened};
use crate::order::Choice;
use crate::positive::positive;
use crate::program::Failure;
use crate::set::Set;
use crate::{classes, order};

/// Data, net and recipe.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub set: Set,

    #[command(flatten)]
    pub choice: Choice,

    /// Judge SI on the last N of the training images, which nothing is trained on [default: a tenth]
    #[arg(long, value_name = "N")]
    pub held_out: Option<u32>,

    /// Look for their nearest among the first N of the others
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub bank: u32,

    /// The architecture
    #[arg(long, value_enum, default_value_t = Architecture::Vgg6)]
    pub model: Architecture,

    /// Passes over the data for each block
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub epochs: u16,

    /// Passes for the classifier
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub head_epochs: u16,

    /// The temperature of the soft nearest neighbours that stand in for SI
    #[arg(long, value_name = "T", default_value_t = 0.05, value_parser = positive)]
    pub temperature: f32,

    /// Samples in a step
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    pub batch: u32,

    /// Seeds of weights and batches, each a run of its own
    #[arg(long, value_name = "S,..", value_delimiter = ',', default_value = "0")]
    pub seeds: Vec<u64>,

    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,

    #[command(flatten)]
    pub gpu: Gpu,

    /// Print one JSON object a line instead of text; --help lists the fields
    ///
    /// "event" says which, and "seed" of which run. "raw": held_out_si of the samples as they are.
    /// "block": block, held_out_si, and of "width" its filters, of "depth" the CPU seconds that it took to
    /// train. "net": name, depth or filters, parameters, macs (multiply-accumulates of a
    /// sample), accuracy, seconds (of CPU, all that the net took to be found), held_out_si, and of
    /// "depth" whether it is the one kept. "pruned": score, ratio, parameters, macs, and the
    /// accuracies cut (nothing trained again), classified (the classifier trained again), settled (the norms
    /// measured again too) and trained (each block cut before the next was trained), with held_out_si of the
    /// last; of score "whole" the net before, of "narrow" a net that had so few filters from the start, in
    /// place of trained, the others null. "set": name, si, cross_si,
    /// accuracy. "candidate": name, parameters, random_si, brief_si, accuracy. "correlation": of, with,
    /// pairs, and for both pearson and spearman their coefficient, p, and exact
    #[arg(long)]
    pub json: bool,
}

/// When SI counts as risen.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Rising {
    /// What held-out SI must rise by more than, in percent of the samples
    #[arg(long, value_name = "PERCENT", default_value_t = 0.5, value_parser = percent)]
    pub tolerance: f64,

    /// Go on past so many that do not rise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub patience: u16,
}

impl Rising {
    pub fn rise(self) -> Rise {
        Rise { tolerance: self.tolerance / 100.0, patience: self.patience }
    }
}

/// A part of the whole.
pub fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=100.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 100".to_owned()),
    }
}

/// The samples of a run.
pub struct Sets {
    pub train: Dataset,
    pub bank: Dataset,
    pub held_out: Dataset,
    pub test: Dataset,
}

impl Options {
    pub fn device(&self) -> Result<Opened, Failure> {
        self.gpu.open(self.threads)
    }

    /// How blocks and classifier learn.
    pub fn learning(&self) -> Result<Learning, Failure> {
        let learning = Learning {
            architecture: self.model,
            loss: Loss::SoftNearest { temperature: self.temperature },
            epochs: self.epochs,
            head_epochs: self.head_epochs,
            batch: self.batch,
            ..Learning::default()
        };
        learning.check().map_err(|SettingError { field, found, expected }| {
            format!("--{} {found}: expected {expected}", field.replace('_', "-"))
        })?;
        Ok(learning)
    }

    /// What to train on, to judge SI on, and to measure accuracy on.
    pub fn sets(&self) -> Result<Sets, Failure> {
        let (train, chosen, test) = order::chosen(self.set.open()?, &self.choice)?;
        let held = self.held_out.map_or(chosen.len() / 10, |n| n as usize);
        let Some(fit) = chosen.len().checked_sub(held).filter(|&fit| fit > 0 && held > 0) else {
            let most = chosen.len().saturating_sub(1);
            return Err(format!("--held-out {held}: expected 1 to {most}").into());
        };
        let (fit, held) = chosen.split_at(fit);
        self.checked(train.subset(fit)?, train.subset(held)?, test)
    }

    /// Samples that a net can be steered by.
    pub fn checked(
        &self,
        train: Dataset,
        held_out: Dataset,
        test: Dataset,
    ) -> Result<Sets, Failure> {
        let name = self.set.name();
        classes::check(&name, &train)?;
        if train.len() < self.batch {
            let len = train.len();
            let least = format!("expected at least the {} of --batch", self.batch);
            return Err(format!("{name}: {len} training images, {least}").into());
        }
        Ok(Sets { bank: train.head(self.bank)?, train, held_out, test })
    }
}
