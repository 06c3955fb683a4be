//! What learns from drawings: which are kept, how a block is tuned to them, what the drawing at hand
//! is. All memory is in it, and all of its code runs on the host as it runs in a page.

use core::fmt;

use embedded_storage::nor_flash::NorFlashErrorKind;
use sepal_core::arena::Word;
use sepal_core::error::Error;
use sepal_core::flash::{self, Held, Part, Slots, Store, StoreError};
use sepal_core::format::Digest;
use sepal_core::init;
use sepal_core::layer::{Flatten, L2Normalise, Layer};
use sepal_core::micro::{Embeddings, Micro, Prefix, Program, Tuning, TuningPlan, operations};
use sepal_core::neighbour::{Pair, Rows, distance2, nearest_pair};
use sepal_core::net::{Model, Net, Patch, Weights};
use sepal_core::optim::Rule;
use sepal_core::prototypes::{Prototypes, PrototypesError, Spread};
use sepal_core::reservoir::{Class, Entry, Memory, Placed, Reservoir, ReservoirError, State};
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::si;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_models::lenet::LENET5;

use crate::map;
use crate::ram::Ram;

/// Classes that there is room for.
pub const CLASSES: usize = 5;
/// Drawings that are kept.
pub const PLACES: usize = 100;
/// Bytes of a drawing.
pub const PIXELS: usize = 28 * 28;
/// Numbers of an embedding.
pub const FEATURES: usize = 16 * 4 * 4;
/// Updates of a training.
pub const UPDATES: u32 = 100;

/// The two blocks of LeNet-5 that compute features. Their weights are drawn: behind blocks that were
/// trained on the bundled images of clothes, digits were told apart less well (README.md).
const NET: Net<'static> = {
    let (layers, _) = LENET5.layers.split_at(6);
    Net { layers, blocks: &[3, 6], features: 2, ..LENET5 }
};
/// Parameters of the first block, and of the second, which is tuned.
const FIRST: usize = 156;
const SECOND: usize = 2416;
/// Layers of the second.
const TUNED: (u16, u16) = (3, 6);

const SEED: u64 = 1;
const SHAPE: Shape = NET.input.shape;
const UNIT: &[Layer] = &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];

const fn stage(batch: u32) -> Stage<'static> {
    let objective = Objective::Separation(Loss::Margin { margin: 0.2 });
    let (rule, schedule, rate) = (Rule::adam(), Schedule::Cosine { warmup: 0 }, 0.01);
    let (head, epochs, stop) = (UNIT, 1, Stop::Never);
    let micro_batches = 1;
    let recipe =
        Recipe { head, objective, epochs, batch, micro_batches, rule, rate, schedule, stop };
    Stage { first: TUNED.0, last: TUNED.1, calibrate: false, cut: Cut::Whole, recipe }
}

static PROGRAM: Program<'static, { operations(&NET, NET.layers.len(), false) }> =
    match Program::new(NET, false) {
        Ok(program) => program,
        Err(_) => panic!("the layers do not fit each other"),
    };

/// The second block behind the first, which is made ready when this is built.
type Plan = TuningPlan<'static, Prefix<'static>>;

const fn plan(batch: u32) -> Plan {
    match TuningPlan::program(&PROGRAM, &stage(batch), Embeddings::F32) {
        Ok(plan) => plan,
        Err(_) => panic!("the block cannot be tuned"),
    }
}

/// For updates of 4, 8 and so on drawings: the most that there are is taken.
static PLANS: [Plan; 8] =
    [plan(4), plan(8), plan(12), plan(16), plan(20), plan(24), plan(28), plan(MOST)];
const MOST: u32 = 32;
/// That for any number of drawings.
static LARGEST: Plan = plan(MOST);

/// Bytes in which the block is tuned.
pub const ARENA: usize = plan(MOST).bytes();

/// What was learnt lies in these slots when it is saved.
const ERASE: usize = 1024;
const SLOTS: Slots = match flash::size(&[SECOND as u32], 4, ERASE) {
    Some(size) => Slots::adjacent(0, size),
    None => panic!("a block cannot be saved"),
};
const FLASH: usize = 2 * SLOTS.size as usize;

/// Bytes of what is saved: the slots, the drawings that are kept, and a digest of both.
pub const SAVED: usize = FLASH
    + size_of::<State>()
    + CLASSES * size_of::<Class>()
    + PLACES * size_of::<Entry>()
    + PLACES * PIXELS
    + 8;

/// Squared distances, 0 to 4, are divided by this before they become probabilities.
const TEMPERATURE: f32 = 0.1;
/// What lies so many deviations beyond the drawings of a class is none of it.
const DEVIATIONS: f32 = 3.0;

/// Why something was not done.
#[derive(Clone, Copy, Debug)]
pub enum Refused {
    /// A class that there is no room for.
    Class {
        label: u32,
    },
    /// A drawing without a stroke.
    Blank,
    /// Classes with drawings enough to learn from.
    Few {
        classes: usize,
    },
    /// A training that is under way, or none that is.
    Training {
        underway: bool,
    },
    /// What was saved is of another length.
    Length {
        got: usize,
    },
    /// What was saved has changed.
    Digest {
        expected: u64,
        got: u64,
    },
    /// A block that was saved for another model.
    Delta,
    Net(Error),
    Reservoir(ReservoirError),
    Prototypes(PrototypesError),
    Store(StoreError<NorFlashErrorKind>),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class { label } => write!(f, "class {label}, counted from 0, of {CLASSES}"),
            Self::Blank => f.write_str("nothing is drawn"),
            Self::Few { classes } => write!(
                f,
                "{classes} with two drawings to learn from, expected two classes or more; of five \
                 drawings one is held out"
            ),
            Self::Training { underway: true } => f.write_str("a training is under way"),
            Self::Training { underway: false } => f.write_str("no training is under way"),
            Self::Length { got } => write!(f, "what was saved has {got} bytes, expected {SAVED}"),
            Self::Digest { expected, got } => write!(
                f,
                "what was saved is damaged: its digest is {got:#018x}, expected {expected:#018x}"
            ),
            Self::Delta => f.write_str("what was saved was learnt over another model"),
            Self::Net(error) => error.fmt(f),
            Self::Reservoir(error) => error.fmt(f),
            Self::Prototypes(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Refused {}

macro_rules! from {
    ($($error:ty => $name:ident;)*) => { $(
        impl From<$error> for Refused {
            fn from(error: $error) -> Self {
                Self::$name(error)
            }
        }
    )* };
}
from! {
    Error => Net;
    ReservoirError => Reservoir;
    PrototypesError => Prototypes;
    StoreError<NorFlashErrorKind> => Store;
}

/// How well what is kept is separated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Separation {
    /// SI of the drawings that are learnt from; NaN without any.
    pub si: f32,
    /// Held-out drawings, and those whose nearest of the others has their class.
    pub held_out: u32,
    pub right: u32,
    /// Held-out drawings that became right, and wrong, by the training.
    pub gained: u32,
    pub lost: u32,
}

/// What the drawing at hand is taken for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The class with the nearest mean.
    pub nearest: Option<u16>,
    /// Whether it lies beyond the drawings of that class.
    pub none: bool,
}

/// All memory of a learner but a hundred bytes, which may be zero at first.
#[derive(Debug)]
pub struct Room {
    /// The drawing at hand.
    pub drawing: [u8; PIXELS],
    /// What is saved: filled by [`Learner::save`], read by [`Learner::resume`].
    pub saved: [u8; SAVED],
    /// The probability of each class.
    pub probabilities: [f32; CLASSES],
    /// Where each drawing lies in the picture of the embeddings, the one at hand last: two numbers,
    /// then its class (of the one at hand -1), then 1 where it is held out.
    pub places: [[f32; 4]; PLACES + 1],
    /// What is kept of each class to learn from, and held out.
    pub counts: [[u32; 2]; CLASSES],
    /// How well that is separated.
    pub separation: Separation,

    arena: [Word; ARENA / Word::BYTES],
    /// Those of the net, as drawn or as learnt.
    weights: [f32; FIRST + SECOND],

    state: State,
    classes: [Class; CLASSES],
    entries: [Entry; PLACES],
    samples: [u8; PLACES * PIXELS],

    /// Embeddings of what is kept, those that are learnt from first.
    rows: [f32; PLACES * FEATURES],
    labels: [u16; PLACES],
    /// Of each held-out drawing, whether its nearest has its class.
    right: [bool; PLACES],
    /// The mean of each class.
    means: [f32; CLASSES * FEATURES],
    names: [u16; CLASSES],
    spreads: [Spread; CLASSES],
    /// The embedding of the drawing at hand.
    query: [f32; FEATURES],
}

impl Room {
    /// Zeros: memory that a program need not bring along.
    pub const NEW: Self = Self {
        drawing: [0; PIXELS],
        saved: [0; SAVED],
        probabilities: [0.0; CLASSES],
        places: [[0.0; 4]; PLACES + 1],
        counts: [[0; 2]; CLASSES],
        separation: Separation { si: 0.0, held_out: 0, right: 0, gained: 0, lost: 0 },
        arena: [Word::ZERO; ARENA / Word::BYTES],
        weights: [0.0; FIRST + SECOND],
        state: State::NONE,
        classes: [Class::NONE; CLASSES],
        entries: [Entry::FREE; PLACES],
        samples: [0; PLACES * PIXELS],
        rows: [0.0; PLACES * FEATURES],
        labels: [0; PLACES],
        right: [false; PLACES],
        means: [0.0; CLASSES * FEATURES],
        names: [0; CLASSES],
        spreads: [Spread::NONE; CLASSES],
        query: [0.0; FEATURES],
    };

    /// The drawings that are kept.
    fn reservoir(&mut self) -> Result<Reservoir<'_>, ReservoirError> {
        let Self { state, classes, entries, samples, .. } = self;
        Reservoir::resume(SHAPE, Memory { state, classes, entries, samples })
    }
}

const fn model(weights: &[f32]) -> Model<'_> {
    Model { net: NET, weights: Weights::Flat(weights) }
}

/// What learns.
#[derive(Debug)]
pub struct Learner<'a> {
    /// Its memory.
    pub room: &'a mut Room,
    tuning: Tuning<'static, Prefix<'static>>,
    training: bool,
    learnt: bool,
    /// What tells the drawn weights apart.
    base: u64,
    /// Drawings that are learnt from, those and the held-out ones, and classes of them.
    trained: usize,
    kept: usize,
    known: usize,
}

impl<'a> Learner<'a> {
    /// Nothing kept, nothing learnt.
    pub fn new(room: &'a mut Room) -> Result<Self, Refused> {
        let (tuning, training, learnt) = (Tuning::new(LARGEST, SEED), false, false);
        let base = 0;
        let mut learner =
            Self { room, tuning, training, learnt, base, trained: 0, kept: 0, known: 0 };
        learner.clear()?;
        learner.base = learner.digest();
        Ok(learner)
    }

    /// Forgets the drawings and what was learnt.
    pub fn clear(&mut self) -> Result<(), Refused> {
        let Room { state, classes, entries, samples, .. } = &mut *self.room;
        Reservoir::new(SHAPE, Memory { state, classes, entries, samples }, SEED)?;
        self.forget()
    }

    /// Forgets what was learnt, and keeps the drawings.
    pub fn forget(&mut self) -> Result<(), Refused> {
        self.learnt = false;
        init::weights(&NET, SEED, &mut self.room.weights);
        self.load(&LARGEST)?;
        self.look()
    }

    /// The block as it is in force goes into the arena, to be run and to be tuned.
    fn load(&mut self, plan: &Plan) -> Result<(), Refused> {
        self.training = false;
        self.tuning = Tuning::new(*plan, SEED);
        let Room { arena, weights, .. } = &mut *self.room;
        Ok(self.tuning.load(&mut Micro::<false>::new(arena), &model(weights))?)
    }

    /// Keeps the drawing at hand as one of a class, or leaves it where chance says so.
    pub fn keep(&mut self, label: u32) -> Result<Placed, Refused> {
        self.idle()?;
        let class = u16::try_from(label).ok().filter(|&class| usize::from(class) < CLASSES);
        let class = class.ok_or(Refused::Class { label })?;
        if self.room.drawing.iter().all(|&pixel| pixel == 0) {
            return Err(Refused::Blank);
        }
        let Room { state, classes, entries, samples, drawing, .. } = &mut *self.room;
        let memory = Memory { state, classes, entries, samples };
        let placed = Reservoir::resume(SHAPE, memory)?.offer(drawing, class)?;
        self.look()?;
        Ok(placed)
    }

    /// Forgets the drawings of a class.
    pub fn remove(&mut self, label: u32) -> Result<(), Refused> {
        self.idle()?;
        let class = u16::try_from(label).map_err(|_| Refused::Class { label })?;
        self.room.reservoir()?.remove_class(class)?;
        self.look()
    }

    const fn idle(&self) -> Result<(), Refused> {
        if self.training { Err(Refused::Training { underway: true }) } else { Ok(()) }
    }

    /// Embeds everything that is kept with the block as it is now, and says how it is separated.
    pub fn look(&mut self) -> Result<(), Refused> {
        let Room { state, classes, entries, samples, arena, rows, labels, counts, weights, .. } =
            &mut *self.room;
        let memory = Memory { state, classes, entries, samples };
        let reservoir = Reservoir::resume(SHAPE, memory)?;
        let (mut backend, model) = (Micro::<false>::new(arena), model(weights));
        let mut room = rows.chunks_exact_mut(FEATURES).zip(&mut *labels);
        let mut lengths = [0; 2];
        *counts = [[0; 2]; CLASSES];
        let parts = [reservoir.training(), reservoir.held_out()];
        for (role, (mut part, length)) in parts.into_iter().zip(&mut lengths).enumerate() {
            for ((row, label), index) in room.by_ref().take(part.len() as usize).zip(0..) {
                *label = self.tuning.embedding(&mut backend, &model, &mut part, index, row)?;
                *length += 1;
                let counts = counts.get_mut(usize::from(*label));
                if let Some(count) = counts.and_then(|counts| counts.get_mut(role)) {
                    *count += 1;
                }
            }
        }
        let [trained, held_out] = lengths;
        (self.trained, self.kept) = (trained, trained + held_out);
        self.separate();
        self.prototypes()
    }

    /// The embeddings of what is learnt from, and of what is held out.
    fn parts(&self) -> [Rows<'_>; 2] {
        let part = |first: usize, last: usize| Rows {
            data: self.room.rows.get(first * FEATURES..last * FEATURES).unwrap_or_default(),
            dim: FEATURES,
            labels: self.room.labels.get(first..last).unwrap_or_default(),
        };
        [part(0, self.trained), part(self.trained, self.kept)]
    }

    fn separate(&mut self) {
        let [bank, held_out] = self.parts();
        let (mut pairs, mut apart) = ([Pair::NONE; PLACES], [Pair::NONE; PLACES]);
        let own = pairs.get_mut(..bank.len()).unwrap_or_default();
        nearest_pair(bank, bank, 0, Some(0), own);
        let across = apart.get_mut(..held_out.len()).unwrap_or_default();
        nearest_pair(held_out, bank, 0, None, across);
        let right = |pair: &Pair| pair.correct() == Some(true);
        let mut separation = Separation {
            si: si::si(own).value().map_or(f32::NAN, |si| si as f32),
            held_out: held_out.len() as u32,
            right: across.iter().filter(|pair| right(pair)).count() as u32,
            ..Separation::default()
        };
        for (pair, before) in across.iter().zip(&mut self.room.right) {
            let now = right(pair);
            separation.gained += u32::from(now && !*before);
            separation.lost += u32::from(!now && *before);
            if !self.training {
                *before = now;
            }
        }
        self.room.separation = separation;
    }

    /// The mean of each class, of all that is kept of it.
    fn prototypes(&mut self) -> Result<(), Refused> {
        let Room { means, names, spreads, rows, labels, .. } = &mut *self.room;
        let mut prototypes = Prototypes::new(FEATURES, means, names, spreads)?;
        let rows = rows.chunks_exact(FEATURES).zip(labels).take(self.kept);
        for (row, label) in rows {
            prototypes.add(row, *label)?;
        }
        self.known = prototypes.classes().count();
        Ok(())
    }

    /// What the drawing at hand is, with the block as it is now; fills `probabilities`.
    ///
    /// ```text
    /// p_c = exp(-|x - mu_c|^2 / T) / sum_k exp(-|x - mu_k|^2 / T)
    /// ```
    /// Snell, Swersky and Zemel, "Prototypical networks for few-shot learning", 2017, Eq. 2, with a
    /// temperature.
    pub fn predict(&mut self) -> Result<Prediction, Refused> {
        self.room.probabilities = [0.0; CLASSES];
        if self.room.drawing.iter().all(|&pixel| pixel == 0) {
            return Err(Refused::Blank);
        }
        let Room { means, names, spreads, arena, weights, drawing, query, probabilities, .. } =
            &mut *self.room;
        let (mut backend, model) = (Micro::<false>::new(arena), model(weights));
        self.tuning.embedding(&mut backend, &model, &mut One(drawing), 0, query)?;
        let prototypes = Prototypes::resume(FEATURES, means, names, spreads, self.known)?;
        let nearest = prototypes.nearest(query);
        let least = nearest.map_or(0.0, |found| found.dist2);
        let mut sum = 0.0;
        for (mean, label) in prototypes.rows().iter() {
            let p = libm::expf((least - distance2(query, mean)) / TEMPERATURE);
            sum += p;
            probabilities.iter_mut().skip(label.into()).take(1).for_each(|to| *to = p);
        }
        probabilities.iter_mut().for_each(|p| *p /= if sum > 0.0 { sum } else { 1.0 });
        let none = prototypes.classify(query, DEVIATIONS).is_none();
        Ok(Prediction { nearest: nearest.map(|found| found.label), none })
    }

    /// Fills `places`. Returns how many of them are of drawings that are kept; the one at hand comes
    /// behind, as it was when it was last predicted.
    pub fn picture(&mut self) -> usize {
        let Room { rows, labels, places, query, .. } = &mut *self.room;
        let rows = rows.get(..self.kept * FEATURES).unwrap_or_default();
        let axes = map::axes::<FEATURES>(rows);
        let roles = (0..).map(|at| if at < self.trained { 0.0 } else { 1.0 });
        let labels = labels.iter().map(|&label| f32::from(label)).zip(roles);
        let labels = labels.take(self.kept).chain([(-1.0, 0.0)]);
        let rows = rows.chunks_exact(FEATURES).chain([&query[..]]);
        for ((place, row), (label, role)) in places.iter_mut().zip(rows).zip(labels) {
            let [x, y] = axes.place(row);
            *place = [x, y, label, role];
        }
        self.kept
    }

    /// Begins a training from what is in force.
    pub fn begin(&mut self) -> Result<(), Refused> {
        self.idle()?;
        let classes = self.room.counts.iter().filter(|[training, _]| *training >= 2).count();
        if classes < 2 {
            return Err(Refused::Few { classes });
        }
        let fits = PLANS.iter().take(self.trained / 4).next_back();
        self.load(fits.unwrap_or(&LARGEST))?;
        self.look()?;
        self.training = true;
        Ok(())
    }

    /// One update of it; the last one keeps what was learnt. Returns how many are left.
    pub fn step(&mut self) -> Result<u32, Refused> {
        if !self.training {
            return Err(Refused::Training { underway: false });
        }
        let Room { state, classes, entries, samples, arena, weights, .. } = &mut *self.room;
        let memory = Memory { state, classes, entries, samples };
        let reservoir = Reservoir::resume(SHAPE, memory)?;
        let (mut backend, model) = (Micro::<false>::new(arena), model(weights));
        let mut training = reservoir.training();
        let stepped = self.tuning.step(&mut backend, &model, &mut training, UPDATES);
        if let Err(error) = stepped {
            // What was in force before stays.
            self.load(&LARGEST)?;
            self.look()?;
            return Err(error.into());
        }
        let left = UPDATES.saturating_sub(self.tuning.updates());
        if left == 0 {
            self.tuning.store(&mut backend, weights.get_mut(FIRST..).unwrap_or_default())?;
            self.learnt = true;
            self.look()?;
            self.training = false;
        }
        Ok(left)
    }

    /// A digest of the weights that are in force.
    pub fn digest(&self) -> u64 {
        digest(bytemuck::cast_slice(&self.room.weights))
    }

    /// Whether something was learnt.
    pub const fn has_learnt(&self) -> bool {
        self.learnt
    }

    /// Fills `saved`.
    pub fn save(&mut self) -> Result<(), Refused> {
        self.idle()?;
        let Room { saved, state, classes, entries, samples, weights, .. } = &mut *self.room;
        let slots = saved.get_mut(..FLASH).unwrap_or_default();
        let mut store = Store::open(Ram::<ERASE>(slots), SLOTS, self.base)?;
        match self.learnt {
            true => {
                let numbers = weights.get(FIRST..).unwrap_or_default();
                store.save(&[Patch { first: TUNED.0, last: TUNED.1, numbers }])?;
            }
            false => store.forget()?,
        }
        let (_, rest) = saved.split_at_mut_checked(FLASH).unwrap_or_default();
        let kept = bytemuck::bytes_of(state).iter().chain(bytemuck::cast_slice(classes));
        let kept = kept.chain(bytemuck::cast_slice(entries)).chain(&*samples);
        rest.iter_mut().zip(kept).for_each(|(to, from)| *to = *from);
        let (all, last) = saved.split_at_mut_checked(SAVED - 8).unwrap_or_default();
        last.copy_from_slice(&digest(all).to_le_bytes());
        Ok(())
    }

    /// Goes on with the first `len` bytes of `saved`. Where they are refused, everything is as it
    /// was.
    pub fn resume(&mut self, len: usize) -> Result<(), Refused> {
        self.idle()?;
        if len != SAVED {
            return Err(Refused::Length { got: len });
        }
        let room = &mut *self.room;
        let (all, last) = room.saved.split_at_mut_checked(SAVED - 8).unwrap_or_default();
        let expected = last.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
        let got = digest(all);
        if expected != got {
            return Err(Refused::Digest { expected, got });
        }
        let (slots, mut rest) = all.split_at_mut_checked(FLASH).unwrap_or_default();
        let mut store = Store::open(Ram::<ERASE>(slots), SLOTS, self.base)?;
        let block = Part { first: TUNED.0, last: TUNED.1, len: SECOND as u32 };
        let learnt = match store.newest() {
            Some(delta) if delta.parts() == [block] => true,
            None if store.held().iter().all(|held| *held == Held::Nothing) => false,
            _ => return Err(Refused::Delta),
        };
        let (mut state, mut classes) = (State::NONE, [Class::NONE; CLASSES]);
        let mut entries = [Entry::FREE; PLACES];
        let parts: [&mut [u8]; 3] = [
            bytemuck::bytes_of_mut(&mut state),
            bytemuck::cast_slice_mut(&mut classes),
            bytemuck::cast_slice_mut(&mut entries),
        ];
        for part in parts {
            let (from, behind) = rest.split_at_mut_checked(part.len()).unwrap_or_default();
            part.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            rest = behind;
        }
        let (state_at, classes_at) = (&mut state, &mut classes);
        let found =
            Memory { state: state_at, classes: classes_at, entries: &mut entries, samples: rest };
        Reservoir::resume(SHAPE, found)?;

        room.samples.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        (room.state, room.classes, room.entries) = (state, classes, entries);
        init::weights(&NET, SEED, &mut room.weights);
        if learnt {
            store.read(0, 0, room.weights.get_mut(FIRST..).unwrap_or_default())?;
        }
        self.learnt = learnt;
        self.load(&LARGEST)?;
        self.look()
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut digest = Digest::new();
    digest.bytes(bytes);
    digest.finish()
}

/// A source of one drawing.
struct One<'a>(&'a [u8; PIXELS]);

impl Source for One<'_> {
    fn len(&self) -> u32 {
        1
    }

    fn shape(&self) -> Shape {
        SHAPE
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        _: &[u32],
        _: Option<Draw>,
        batch: Batch<'_>,
        _: &mut [u16],
    ) -> Result<(), SourceError> {
        let Batch::U8(to) = batch else {
            return Err(SourceError::Batch { expected: PIXELS as u32, got: 0 });
        };
        to.iter_mut().zip(self.0).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}
