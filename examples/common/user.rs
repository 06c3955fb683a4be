//! What a device does for a new user, without a heap: it keeps the samples that it is shown, tunes a
//! block by separation, judges it on samples that it held out, tunes the last layer by cross-entropy,
//! and is tested. The program `finetune` and the firmware's image of that name are this code.

use core::fmt;

use sepal::arena::Word;
use sepal::error::Error;
use sepal::format::Digest;
use sepal::infer::Inference;
use sepal::layer::{Flatten, L2Normalise, Layer};
use sepal::micro::{Embeddings, Micro, Tuning, TuningPlan};
use sepal::net::{Model, Net, Patch, Weights};
use sepal::optim::Rule;
use sepal::plan::PlanError;
use sepal::reservoir::{Memory, Reservoir, ReservoirError};
use sepal::schedule::Schedule;
use sepal::si::Paired;
use sepal::source::Source;
use sepal::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};

/// What is tuned, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The block that is tuned by separation, counted from 0.
    pub block: u16,
    /// Samples in an update.
    pub batch: u32,
    /// Updates of the block, and of the last layer.
    pub updates: [u32; 2],
    /// Their rates.
    pub rates: [f32; 2],
    /// Decides which samples are kept and drawn.
    pub seed: u32,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Samples given their class at first.
    pub before: u32,
    /// With the last layer tuned alone.
    pub head: u32,
    /// With the block tuned before it.
    pub tuned: u32,
    /// Samples tested.
    pub tested: u32,
    /// Whether the held-out samples were separated better.
    pub paired: Paired,
    /// A digest of all that was learnt, bit by bit.
    pub learnt: u64,
}

/// Words of an outcome.
pub const FOUND: usize = 8;

impl Outcome {
    /// All of it as words, the number of samples tested aside.
    pub const fn words(&self) -> [u32; FOUND] {
        let Self { before, head, tuned, paired, learnt, .. } = *self;
        let [samples, gained, lost] = [paired.samples(), paired.gained(), paired.lost()];
        [before, head, tuned, samples, gained, lost, learnt as u32, (learnt >> 32) as u32]
    }
}

/// A user's samples, each with its class.
pub trait Samples<'s>: Iterator<Item = (&'s [u8], u16)> + Clone {}

impl<'s, T: Iterator<Item = (&'s [u8], u16)> + Clone> Samples<'s> for T {}

/// The memory of the device.
pub struct Room<'a> {
    /// As [`Plan::bytes`] says.
    pub arena: &'a mut [Word],
    /// The samples that are kept.
    pub kept: Memory<'a>,
    /// Embeddings of those of them that are trained on, and their labels.
    pub rows: &'a mut [f32],
    pub labels: &'a mut [u16],
    /// A place for each that is held out.
    pub before: &'a mut [bool],
    /// Parameters of the block, and of the last layer.
    pub block: &'a mut [f32],
    pub last: &'a mut [f32],
    /// Outputs of the net.
    pub logits: &'a mut [f32],
}

/// Why a user cannot be learnt.
#[derive(Clone, Copy, Debug)]
pub enum Refused {
    Block {
        block: u16,
        blocks: usize,
    },
    Plan(PlanError),
    Net(Error),
    Reservoir(ReservoirError),
    /// Numbers that the block or the last layer has.
    Room {
        needed: usize,
        given: usize,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { block, blocks } => {
                write!(f, "block {block} of a net of {blocks}, counted from 0")
            }
            Self::Plan(error) => write!(
                f,
                "{error}: what is tuned is one convolution or dense layer that computes in f32, \
                 with what runs together with it"
            ),
            Self::Net(error) => error.fmt(f),
            Self::Reservoir(error) => error.fmt(f),
            Self::Room { needed, given } => {
                write!(f, "room for {given} parameters, the block has {needed}")
            }
        }
    }
}

impl core::error::Error for Refused {}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Net(error)
    }
}

impl From<PlanError> for Refused {
    fn from(error: PlanError) -> Self {
        Self::Net(error.into())
    }
}

impl From<ReservoirError> for Refused {
    fn from(error: ReservoirError) -> Self {
        Self::Reservoir(error)
    }
}

const UNIT: &[Layer] = &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];

/// A block that is tuned, and where everything of that lies.
#[derive(Clone, Copy, Debug)]
struct Tuned<'m> {
    stage: Stage<'m>,
    plan: TuningPlan<'m>,
    updates: u32,
}

/// Everything that is known before a sample is seen.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'m> {
    net: Net<'m>,
    apart: Tuned<'m>,
    last: Tuned<'m>,
    infer: Inference<'m>,
    seed: u32,
}

impl<'m> Plan<'m> {
    /// The plan for a model whose weights may be stored in a narrower type than f32.
    // Apart: what it takes of a small core's stack is given back.
    #[inline(never)]
    pub fn new(model: &Model<'m>, settings: &Settings) -> Result<Self, Refused> {
        let (net, narrow) = (model.net, model.weights.is_narrow());
        let tuned = |block: u16, head, objective, updates, rate| {
            let blocks = net.blocks.len();
            let (first, last) = net.block(block.into()).ok_or(Refused::Block { block, blocks })?;
            let (rule, schedule) = (Rule::adam(), Schedule::Cosine { warmup: 0 });
            let (epochs, batch, stop) = (1, settings.batch, Stop::Never);
            let micro_batches = 1;
            let recipe = Recipe {
                head,
                objective,
                epochs,
                batch,
                micro_batches,
                rule,
                rate,
                schedule,
                stop,
            };
            let (first, last) = (first as u16, last as u16);
            let stage = Stage { first, last, calibrate: false, cut: Cut::Whole, recipe };
            // Half precision: LeNet-5's second block, its samples aside, then fits 64 kB with the stack.
            let plan = TuningPlan::new(net, &stage, Embeddings::F16, narrow);
            Ok::<_, Refused>(Tuned { stage, plan: plan.map_err(Refused::Plan)?, updates })
        };
        let (separation, labels) = (
            Objective::Separation(Loss::Margin { margin: 0.2 }),
            Objective::CrossEntropy { smoothing: 0.0 },
        );
        let ([updates, head_updates], [rate, head_rate]) = (settings.updates, settings.rates);
        let last = (net.blocks.len() as u16).saturating_sub(1);
        Ok(Self {
            net,
            apart: tuned(settings.block, UNIT, separation, updates, rate)?,
            last: tuned(last, &[], labels, head_updates, head_rate)?,
            infer: Inference::micro(net, 1, narrow)?,
            seed: settings.seed,
        })
    }

    /// Bytes of the arena: of the larger of both tunings, or of inference.
    pub fn bytes(&self) -> usize {
        self.apart.plan.bytes().max(self.last.plan.bytes()).max(self.infer.bytes())
    }

    /// Parameters of the block and of the last layer.
    pub fn parameters(&self) -> [usize; 2] {
        [self.apart.plan.parameters(), self.last.plan.parameters()]
    }

    /// Numbers of an embedding.
    pub fn features(&self) -> usize {
        self.apart.plan.features()
    }

    /// Learns from the samples `shown`, and is tested on `tested`.
    pub fn learn<'s, const ALL: bool>(
        &self,
        model: &Model<'m>,
        shown: impl Samples<'s>,
        tested: impl Samples<'s>,
        room: Room<'_>,
    ) -> Result<Outcome, Refused> {
        let Room { arena, kept, rows, labels, before, block, last, logits } = room;
        let [block, last] = self.lent(block, last)?;
        let mut reservoir = Reservoir::new(self.net.input.shape, kept, self.seed.into())?;
        for (sample, label) in shown {
            reservoir.offer(sample, label)?;
        }
        let (mut training, mut bank) = (reservoir.training(), reservoir.training());
        let mut held_out = reservoir.held_out();
        let backend = &mut Micro::<ALL>::new(arena);
        let mut learnt = Digest::new();
        let mut digest = |numbers: &[f32]| {
            numbers.iter().for_each(|number| learnt.bytes(&number.to_le_bytes()));
        };

        let at_first = self.right(backend, model, tested.clone(), logits)?;
        self.tune(backend, model, &self.last, &mut training, last, |_, _, _| Ok(()))?;
        digest(last);
        let alone = [self.last.patch(last)];
        let head = self.right(backend, &patched(model, &alone), tested.clone(), logits)?;

        let mut paired = Paired::default();
        self.tune(backend, model, &self.apart, &mut training, block, |tuning, backend, done| {
            let tell = |at: u32, right| match (before.get_mut(at as usize), done) {
                (Some(before), false) => *before = right,
                (Some(before), true) => paired.observe(*before, right),
                (None, _) => {}
            };
            tuning.judge(backend, model, &mut bank, &mut held_out, rows, labels, tell)
        })?;
        digest(block);
        let under = [self.apart.patch(block)];
        let over = patched(model, &under);
        self.tune(backend, &over, &self.last, &mut training, last, |_, _, _| Ok(()))?;
        digest(last);
        let both = [self.apart.patch(block), self.last.patch(last)];
        let count = tested.clone().count() as u32;
        let tuned = self.right(backend, &patched(model, &both), tested, logits)?;
        let learnt = learnt.finish();
        Ok(Outcome { before: at_first, head, tuned, tested: count, paired, learnt })
    }

    /// Memory for the parameters, of the right lengths.
    fn lent<'r>(
        &self,
        block: &'r mut [f32],
        last: &'r mut [f32],
    ) -> Result<[&'r mut [f32]; 2], Refused> {
        let [needed, other] = self.parameters();
        let given = block.len();
        let block = block.get_mut(..needed).ok_or(Refused::Room { needed, given })?;
        let (needed, given) = (other, last.len());
        let last = last.get_mut(..needed).ok_or(Refused::Room { needed, given })?;
        Ok([block, last])
    }

    /// Tunes a block into `numbers`; `judge` is called before the first update and after the last.
    #[inline(never)]
    fn tune<'b, const ALL: bool>(
        &self,
        backend: &mut Micro<'b, ALL>,
        model: &Model<'_>,
        tuned: &Tuned<'m>,
        training: &mut impl Source,
        numbers: &mut [f32],
        mut judge: impl FnMut(&Tuning<'_>, &mut Micro<'b, ALL>, bool) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut tuning = Tuning::new(tuned.plan, self.seed.into());
        tuning.load(backend, model)?;
        judge(&tuning, backend, false)?;
        for _ in 0..tuned.updates {
            tuning.step(backend, model, training, tuned.updates)?;
        }
        judge(&tuning, backend, true)?;
        tuning.store(backend, numbers)
    }

    /// How many of the samples the model gives their class.
    fn right<'s, const ALL: bool>(
        &self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
        samples: impl Samples<'s>,
        logits: &mut [f32],
    ) -> Result<u32, Error> {
        let mut right = 0;
        for (sample, label) in samples {
            self.infer(backend, model, sample, logits)?;
            let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
            right += u32::from(best.is_some_and(|(class, _)| class == usize::from(label)));
        }
        Ok(right)
    }

    /// Runs the model on a sample.
    pub fn infer<const ALL: bool>(
        &self,
        backend: &mut Micro<'_, ALL>,
        model: &Model<'_>,
        sample: &[u8],
        logits: &mut [f32],
    ) -> Result<(), Error> {
        let fill = |raw: &mut [u8]| raw.iter_mut().zip(sample).for_each(|(raw, own)| *raw = *own);
        self.infer.run(backend, model, 1, fill, logits)
    }
}

impl Tuned<'_> {
    fn patch<'a>(&self, numbers: &'a [f32]) -> Patch<'a> {
        Patch { first: self.stage.first, last: self.stage.last, numbers }
    }
}

fn patched<'a>(model: &'a Model<'a>, patches: &'a [Patch<'a>]) -> Model<'a> {
    Model { net: model.net, weights: Weights::Patched { under: &model.weights, patches } }
}
