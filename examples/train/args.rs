//! The command line.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use sepal::models::architecture::Architecture;
use sepal::models::cache::{Budget, Keep, Spill};
use sepal::models::learning::{Learning, Optimiser, Readout, SettingError, Way};
use sepal::stage::{Loss, Stop};
use sepal::strategy::Window;

use crate::gpu::Gpu;
use crate::order::Choice;
use crate::positive::positive;
use crate::program::Failure;
use crate::seconds::seconds;
use crate::set::Set;

/// The options that a recipe stands for.
const LEARNING: [&str; 18] = [
    "strategy",
    "loss",
    "temperature",
    "window",
    "stride",
    "readout",
    "auxiliary",
    "fine_tune",
    "epochs",
    "head_epochs",
    "rate",
    "head_rate",
    "warmup",
    "optimiser",
    "weight_decay",
    "batch",
    "micro_batches",
    "patience",
];

/// Trains a net forward, block by block, by the Separation Index, and shows what each block
/// learnt. Without options: LeNet on 2,000 bundled images of Fashion-MNIST.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Args {
    #[command(flatten)]
    pub set: Set,

    #[command(flatten)]
    pub choice: Choice,

    /// Learn as this file of JSON says, in place of all options from --strategy to --patience; --report
    /// writes one, examples/recipes has some. Fields that are left out have their defaults; --model and
    /// --width go before the file's. Data, augmentation and seed stay options
    #[arg(long, value_name = "FILE", conflicts_with_all = LEARNING)]
    pub recipe: Option<PathBuf>,

    /// The architecture [default: that of --recipe, else lenet]
    #[arg(long, value_enum)]
    pub model: Option<Architecture>,

    /// Filters, hidden units and embedding dimensions, in percent of the architecture's [default: those of
    /// --recipe, else 100]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub width: Option<u32>,

    /// How it learns
    #[arg(long, value_enum, default_value_t = Way::Si)]
    pub strategy: Way,

    /// What stands in for SI while a block learns
    #[arg(long, value_enum, default_value_t = Stand::Soft)]
    pub loss: Stand,

    /// The temperature of --loss soft and centre
    #[arg(long, value_name = "T", default_value_t = 0.1, value_parser = positive)]
    pub temperature: f32,

    /// Blocks that learn by SI together; with --strategy forward-backward the first ones. More than
    /// one is local back-propagation, with the memory that this takes
    #[arg(long, value_name = "BLOCKS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub window: u16,

    /// By how many blocks the window moves, at most --window: those that stay in it learn on
    #[arg(long, value_name = "BLOCKS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub stride: u16,

    /// What is laid over a block while it learns by SI
    #[arg(long, value_enum, default_value_t = Readout::Unit)]
    pub readout: Readout,

    /// Layers of the auxiliary classifiers of --strategy greedy, local-losses and pred-sim: 1 is a
    /// dense layer, 2 and 3 have 3x3 convolutions of the block's width in front of it
    #[arg(long, value_name = "LAYERS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    pub auxiliary: u8,

    /// Passes over the data for all layers at once after --strategy greedy
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fine_tune: u16,

    /// Passes over the data for each block; for the whole net with --strategy end-to-end
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub epochs: u16,

    /// Passes for the classifier on frozen features; for all but the first block with --strategy
    /// forward-backward
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
    pub head_epochs: u16,

    /// First learning rate of blocks, and of stages that train the classifier with them
    #[arg(long, value_name = "RATE", default_value_t = 1e-2, value_parser = positive)]
    pub rate: f32,

    /// First learning rate of the classifier
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, value_parser = positive)]
    pub head_rate: f32,

    /// Steps of each stage in which the rate rises to its first, which a stage of fewer does not reach
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub warmup: u32,

    /// What updates the weights
    #[arg(long, value_enum, default_value_t = Optimiser::Adam)]
    pub optimiser: Optimiser,

    /// Weight decay: an L2 penalty by SGD, apart from the gradient by Adam (AdamW) [default: none]
    #[arg(long, value_name = "DECAY", value_parser = positive)]
    pub weight_decay: Option<f32>,

    /// Samples in a step
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    pub batch: u32,

    /// Equal parts of a batch that are run one after the other, their gradients added up: less memory,
    /// with the statistics and neighbours of a part in place of a batch's
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub micro_batches: u32,

    /// End a block's training when held-out SI has not risen for more than this many passes: the share of
    /// held-out images, a tenth of those to train on, whose nearest of the first 1,000 others has their class
    #[arg(long, value_name = "PASSES")]
    pub patience: Option<u16>,

    /// Flip half of the training images from left to right, drawn anew in each pass
    #[arg(long)]
    pub flip: bool,

    /// Shift training images by up to this many pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 0)]
    pub shift: u8,

    /// Blank a square of this size in each training image
    #[arg(long, value_name = "PIXELS", default_value_t = 0)]
    pub cutout: u8,

    /// Decides weights, batches and augmentation
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,

    #[command(flatten)]
    pub gpu: Gpu,

    /// Memory for what frozen blocks give, as in 512M or 2GiB: as f32 where that fits, else as f16
    /// (1e-3 less exact), else in --spill, else computed for every batch [default: f32 in half of
    /// the memory that is free]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,

    /// Keep what does not fit the memory in a temporary file in this folder
    #[arg(long, value_name = "DIR")]
    pub spill: Option<PathBuf>,

    /// Bytes that this file may take: it is of f32 where that fits, else of f16 [default: any]
    #[arg(long, value_name = "SIZE", requires_all = ["memory", "spill"])]
    pub disk: Option<ByteSize>,

    /// Keep what frozen blocks give for K copies of each image, changed by --flip, --shift and
    /// --cutout once; without it they are changed anew, and computed, in each pass
    #[arg(long, value_name = "K")]
    pub copies: Option<NonZero<u32>>,

    /// Write the trained model here, and while it trains a checkpoint beside it
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,

    /// Seconds between checkpoints
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub every: Duration,

    /// Go on from the checkpoint beside --save, where there is one; a finished model is left alone
    #[arg(long, requires = "save")]
    pub resume: bool,

    /// Write DIR/report.html: SI, learning curves, maps of each block's features, the confusion matrix,
    /// nearest neighbours as pictures, memory and time, in one page that needs no other file; and
    /// DIR/recipe.json, for --recipe
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    /// Write an event file into this folder while it trains, for TensorBoard: of each block loss, SI or
    /// accuracy within batches, held-out SI with --patience, and rate for each pass, then SI block by block
    /// and accuracy
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,

    /// Leave out the control, a net whose blocks stay random
    #[arg(long)]
    pub no_control: bool,

    /// Samples of the training set that SI is measured on, and that the nearest neighbour is
    /// looked up among
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub si_samples: u32,

    /// Print one JSON object a line instead of text; --help lists the fields
    ///
    /// "event" says which: "stage" (index, first, last, objective, bytes of the arena, steps in a
    /// pass, epochs, done: updates made before, prefix: what is kept of frozen layers, with the depth
    /// in layers that it was taken at, store, copies of each image, bytes, and the seconds that it
    /// took; null where none are frozen); "epoch" (epoch, batch_loss, batch_score and
    /// skipped of its last batch, rate); "stage_done" (index, epochs, updates, mean loss and score
    /// of the last pass, seconds); "block" (name, shape, parameters, si_train, cross_si, seconds,
    /// bytes, epochs; null where there is none); "accuracy" (net, nearest, linear, head: shares of
    /// the test set); "goodness" (net, accuracy: the share that the label of most goodness names rightly;
    /// with --strategy forward-forward); "done" (cpu_seconds of the training, seed, train and test: numbers of images)
    #[arg(long)]
    pub json: bool,
}

/// A loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stand {
    /// The nearest other class must be farther than the nearest own by 0.2
    Margin,
    /// Soft nearest neighbour
    Soft,
    /// Soft nearest centre: the mean of each label in the place of neighbours
    Centre,
    /// Eq. 7 of the paper
    Triplet,
}

impl Args {
    /// How the net learns.
    pub fn learning(&self) -> Result<Learning, Failure> {
        if let Some(path) = &self.recipe {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|e| format!("{}: {e}", path.display()))?;
            let learning: Learning =
                serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
            learning.check().map_err(|e| format!("{}: {e}", path.display()))?;
            return Ok(self.of_net(learning));
        }
        let learning = self.of_net(Learning {
            way: self.strategy,
            readout: self.readout,
            loss: match self.loss {
                Stand::Margin => Loss::Margin { margin: 0.2 },
                Stand::Soft => Loss::SoftNearest { temperature: self.temperature },
                Stand::Centre => Loss::SoftCentre { temperature: self.temperature },
                Stand::Triplet => Loss::Triplet,
            },
            window: Window { blocks: self.window, stride: self.stride },
            auxiliary: self.auxiliary,
            fine_tune: self.fine_tune,
            epochs: self.epochs,
            head_epochs: self.head_epochs,
            rate: self.rate,
            head_rate: self.head_rate,
            warmup: self.warmup,
            optimiser: self.optimiser,
            weight_decay: self.weight_decay.unwrap_or(0.0),
            batch: self.batch,
            micro_batches: self.micro_batches,
            stop: match self.patience {
                Some(patience) => Stop::SiPlateau { patience, min_delta: 0.0 },
                None => Stop::Never,
            },
            ..Learning::default()
        });
        learning.check().map_err(|SettingError { field, found, expected }| {
            format!("--{} {found}: expected {expected}", field.replace('_', "-"))
        })?;
        Ok(learning)
    }

    /// The same for the net that the options name.
    fn of_net(&self, learning: Learning) -> Learning {
        Learning {
            architecture: self.model.unwrap_or(learning.architecture),
            width: self.width.unwrap_or(learning.width),
            ..learning
        }
    }

    /// Where the run is kept while it is under way.
    pub fn checkpoint(&self) -> Option<PathBuf> {
        self.save.as_ref().map(|save| {
            let mut name = save.file_name().unwrap_or_default().to_owned();
            name.push(".checkpoint");
            save.with_file_name(name)
        })
    }

    /// Whether training images are changed at random.
    pub fn augments(&self) -> bool {
        self.flip || self.shift > 0 || self.cutout > 0
    }

    /// What of the output of frozen blocks is kept.
    pub fn budget(&self) -> Budget {
        let keep = match (self.augments(), self.copies) {
            (false, _) => Keep::Plain,
            (true, None) => Keep::Nothing,
            (true, Some(copies)) => Keep::Copies(copies),
        };
        let limit = self.disk.map_or(u64::MAX, |disk| disk.as_u64());
        let spill = self.spill.clone().map(|folder| Spill { folder, limit });
        let memory =
            self.memory.map_or_else(Budget::default, |memory| Budget::bytes(memory.as_u64()));
        Budget { keep, spill, ..memory }
    }
}
