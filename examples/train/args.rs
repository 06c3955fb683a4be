//! The command line.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use sepal::layer::Layer;
use sepal::models::cache::{Budget, Keep, Spill};
use sepal::models::simcnn::{of_depth, simcnn_head, simcnn_readout};
use sepal::models::width::scaled;
use sepal::models::{alexnet, lenet, recipe, simcnn, vdcnn, vgg};
use sepal::net::{Input, Net};
use sepal::optim::Rule;
use sepal::plan::PlanError;
use sepal::stage::{Loss, Objective, Outcome, Recipe, Stage, Stop};
use sepal::strategy::{
    Classifier, EndToEnd, ForwardBackward, ForwardSi, Greedy, LocalLosses, RandomFrozen, Strategy,
    Window,
};

/// Trains a net forward, block by block, by the Separation Index, and shows what each block
/// learnt. Without options: LeNet on 2,000 bundled images of Fashion-MNIST.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Folder of a data set: IDX (gzip or not), CIFAR binary, AG's News or DBPedia, or class folders
    /// of images
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// File of little-endian u16 indices: the order in which training images are taken
    #[arg(long, value_name = "FILE")]
    pub order: Option<PathBuf>,

    /// Train on the first N images of the order only
    #[arg(long, value_name = "N")]
    pub images: Option<u32>,

    /// Measure on the last N training images of the order instead of on the test set
    #[arg(long, value_name = "N")]
    pub dev: Option<u32>,

    /// The architecture
    #[arg(long, value_enum, default_value_t = Model::Lenet)]
    pub model: Model,

    /// Filters, hidden units and embedding dimensions, in percent of the architecture's
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub width: u32,

    /// How it learns
    #[arg(long, value_enum, default_value_t = Way::Si)]
    pub strategy: Way,

    /// What stands in for SI while a block learns
    #[arg(long, value_enum, default_value_t = Stand::Soft)]
    pub loss: Stand,

    /// The temperature of --loss soft
    #[arg(long, value_name = "T", default_value_t = 0.1, value_parser = positive)]
    pub temperature: f32,

    /// Blocks that learn by SI together. More than one is local back-propagation, with the memory
    /// that this takes
    #[arg(long, value_name = "BLOCKS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub window: u16,

    /// By how many blocks the window moves: those that stay in it learn on
    #[arg(long, value_name = "BLOCKS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub stride: u16,

    /// What is laid over a block while it learns by SI
    #[arg(long, value_enum, default_value_t = Readout::Unit)]
    pub readout: Readout,

    /// Layers of the auxiliary classifiers of --strategy greedy and local-losses: 1 is dense, more have 3x3
    /// convolutions of the block's width in front of it
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

    /// What updates the weights
    #[arg(long, value_enum, default_value_t = Optimiser::Adam)]
    pub optimiser: Optimiser,

    /// Samples in a step
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    pub batch: u32,

    /// End a block's training when the SI of held-out images has not risen for this many passes;
    /// a tenth of the training images is held out
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
    /// the test set); "done" (cpu_seconds of the training, seed, train and test: numbers of images)
    #[arg(long)]
    pub json: bool,
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| "expected a number of seconds, 0 or more".to_owned())
}

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// Two 5x5 convolutions with batch norm, dense 120-84-classes
    Lenet,
    /// The same without padding and norm, with biases
    Lenet5,
    /// Six 3x3 convolutions of 16 to 64 filters with batch norm and one dense layer
    Vgg6,
    /// 13 3x3 convolutions with batch norm and one dense layer, for images of 32x32 and more
    Vgg16,
    /// The same with 16 convolutions
    Vgg19,
    /// Five convolutions, dense 4096-4096-classes
    Alexnet,
    /// Five 3x3 convolutions from 256 filters; space to depth halves the image
    Simcnn1,
    /// Four from 128 filters; each learns with an auxiliary net of one more of 128 behind it
    Simcnn2,
    /// Four from 128 filters; each learns with an auxiliary net of two more of 128 behind it
    Simcnn3,
    /// For text: embedded characters, 9 convolutions, dense 2048-2048-classes
    Vdcnn9,
    /// The same with 17 convolutions
    Vdcnn17,
    /// The same with 29 convolutions
    Vdcnn29,
}

impl Model {
    /// Whether it reads characters.
    pub const fn reads_text(self) -> bool {
        matches!(self, Self::Vdcnn9 | Self::Vdcnn17 | Self::Vdcnn29)
    }

    /// The depth of the auxiliary nets of SimCNN.
    const fn depth(self) -> Option<usize> {
        match self {
            Self::Simcnn1 => Some(1),
            Self::Simcnn2 => Some(2),
            Self::Simcnn3 => Some(3),
            _ => None,
        }
    }
}

/// A readout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Readout {
    /// All that it gives, scaled to length 1; SimCNN's auxiliary nets, where it has some
    Unit,
    /// A 3x3 convolution of 64 channels between means of bins, which is discarded
    Conv,
}

/// An optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Optimiser {
    /// Adam
    Adam,
    /// Gradient descent with momentum 0.9
    Sgd,
}

/// A strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Each block by SI, then the whole classifier by cross-entropy
    Si,
    /// Each block and each hidden dense layer by SI, then the last layer by cross-entropy
    SiLayerwise,
    /// As si, without labels: the neighbour of an image is to be the same image, changed otherwise
    SelfSupervised,
    /// The first block by SI, then all others by back-propagation
    ForwardBackward,
    /// Each block by cross-entropy behind an auxiliary classifier, then the classifier
    Greedy,
    /// All blocks at once, each by cross-entropy behind an auxiliary classifier of its own
    LocalLosses,
    /// The whole net by back-propagation
    EndToEnd,
    /// Random frozen blocks, then the classifier: the control
    Random,
}

/// A loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stand {
    /// The nearest other class must be farther than the nearest own by 0.2
    Margin,
    /// Soft nearest neighbour
    Soft,
    /// Eq. 7 of the paper
    Triplet,
}

/// Any of the strategies.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub enum Chosen<'m> {
    Si(ForwardSi<'m>),
    ForwardBackward(ForwardBackward<'m>),
    Greedy(Greedy<'m>),
    LocalLosses(LocalLosses<'m>),
    EndToEnd(EndToEnd<'m>),
    Random(RandomFrozen<'m>),
}

impl Strategy for Chosen<'_> {
    fn next(&self, net: &sepal::net::Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        match self {
            Self::Si(s) => s.next(net, done),
            Self::ForwardBackward(s) => s.next(net, done),
            Self::Greedy(s) => s.next(net, done),
            Self::LocalLosses(s) => s.next(net, done),
            Self::EndToEnd(s) => s.next(net, done),
            Self::Random(s) => s.next(net, done),
        }
    }
}

impl Args {
    /// What is laid over each block of features while it learns.
    pub fn heads(&self, net: &Net<'_>, classes: u32) -> Result<Vec<Vec<Layer>>, PlanError> {
        let head = |block: usize| {
            let (_, end) = net.block(block).unwrap_or_default();
            let filters = net.shape(end)?.c;
            Ok(match (self.strategy, self.model.depth()) {
                (Way::Greedy | Way::LocalLosses, None) if self.auxiliary == 1 => {
                    recipe::linear_head(classes).to_vec()
                }
                (Way::Greedy | Way::LocalLosses, depth) => {
                    let depth = depth.unwrap_or(self.auxiliary.into());
                    of_depth(depth, &simcnn_head(filters, classes)).to_vec()
                }
                (_, Some(depth)) if self.readout == Readout::Unit => {
                    of_depth(depth, &simcnn_readout(filters)).to_vec()
                }
                _ if self.readout == Readout::Conv => recipe::CONV_READOUT.to_vec(),
                _ => recipe::UNIT_FEATURES.to_vec(),
            })
        };
        (0..usize::from(net.features)).map(head).collect()
    }

    /// The strategy that the options describe.
    pub fn chosen<'m>(&self, heads: &'m [&'m [Layer]]) -> Chosen<'m> {
        let stop = match self.patience {
            Some(patience) => Stop::SiPlateau { patience, min_delta: 0.0 },
            None => Stop::Never,
        };
        let rule = match self.optimiser {
            Optimiser::Adam => Rule::adam(),
            Optimiser::Sgd => Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        };
        let (rate, batch) = (self.rate, self.batch);
        let loss = match self.loss {
            Stand::Margin => Loss::Margin { margin: 0.2 },
            Stand::Soft => Loss::SoftNearest { temperature: self.temperature },
            Stand::Triplet => Loss::Triplet,
        };
        let objective = match self.strategy {
            Way::SelfSupervised => Objective::Views(loss),
            _ => Objective::Separation(loss),
        };
        let block = Recipe { objective, rate, batch, rule, stop, ..recipe::block(self.epochs) };
        let classifier =
            Recipe { rate: self.head_rate, batch, rule, ..recipe::classifier(self.head_epochs) };
        let window = Window { blocks: self.window, stride: self.stride };
        // Blocks and classifier together, at the rate of blocks.
        let whole = |epochs| Recipe { rate, epochs, ..classifier };
        let si = |form| Chosen::Si(ForwardSi { block, heads, window, classifier, form });
        match self.strategy {
            Way::Si | Way::SelfSupervised => si(Classifier::Whole),
            Way::SiLayerwise => si(Classifier::LayerWise),
            Way::ForwardBackward => {
                let block = Recipe { head: heads.first().copied().unwrap_or_default(), ..block };
                Chosen::ForwardBackward(ForwardBackward { block, rest: whole(self.head_epochs) })
            }
            Way::Greedy => {
                let fine_tune = (self.fine_tune > 0).then(|| whole(self.fine_tune));
                let block = whole(self.epochs);
                Chosen::Greedy(Greedy { block, heads, classifier, fine_tune })
            }
            Way::LocalLosses => {
                let block = whole(self.epochs);
                Chosen::LocalLosses(LocalLosses { block, heads, classifier })
            }
            Way::EndToEnd => Chosen::EndToEnd(EndToEnd { recipe: whole(self.epochs) }),
            Way::Random => Chosen::Random(RandomFrozen { classifier }),
        }
    }

    /// The control that the strategy is measured against.
    pub fn control(&self) -> Chosen<'static> {
        Self { strategy: Way::Random, ..self.clone() }.chosen(&[])
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

    /// The layers of the net, for a number of classes.
    pub fn layers(&self, classes: u32) -> Vec<Layer> {
        let width = self.width;
        match self.model {
            Model::Lenet => scaled(lenet::lenet_layers(classes), width).to_vec(),
            Model::Lenet5 => scaled(lenet::lenet5_layers(classes), width).to_vec(),
            Model::Vgg6 => scaled(vgg::vgg6_layers(classes), width).to_vec(),
            Model::Vgg16 => scaled(vgg::vgg16_layers(classes), width).to_vec(),
            Model::Vgg19 => scaled(vgg::vgg19_layers(classes), width).to_vec(),
            Model::Alexnet => scaled(alexnet::alexnet_layers(classes), width).to_vec(),
            Model::Simcnn1 => scaled(simcnn::simcnn1_layers(classes), width).to_vec(),
            Model::Simcnn2 => scaled(simcnn::simcnn2_layers(classes), width).to_vec(),
            Model::Simcnn3 => scaled(simcnn::simcnn3_layers(classes), width).to_vec(),
            Model::Vdcnn9 => scaled(vdcnn::vdcnn9_layers(classes), width).to_vec(),
            Model::Vdcnn17 => scaled(vdcnn::vdcnn17_layers(classes), width).to_vec(),
            Model::Vdcnn29 => scaled(vdcnn::vdcnn29_layers(classes), width).to_vec(),
        }
    }

    /// The net of these layers.
    pub fn net<'m>(&self, layers: &'m [Layer], input: Input) -> Net<'m> {
        match self.model {
            Model::Lenet => lenet::lenet(layers, input),
            Model::Lenet5 => lenet::lenet5(layers, input),
            Model::Vgg6 => vgg::vgg6(layers, input),
            Model::Vgg16 => vgg::vgg16(layers, input),
            Model::Vgg19 => vgg::vgg19(layers, input),
            Model::Alexnet => alexnet::alexnet(layers, input),
            Model::Simcnn1 => simcnn::simcnn1(layers, input),
            Model::Simcnn2 => simcnn::simcnn2(layers, input),
            Model::Simcnn3 => simcnn::simcnn3(layers, input),
            Model::Vdcnn9 => vdcnn::vdcnn9(layers, input),
            Model::Vdcnn17 => vdcnn::vdcnn17(layers, input),
            Model::Vdcnn29 => vdcnn::vdcnn29(layers, input),
        }
    }
}
