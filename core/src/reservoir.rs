//! A bounded store of labelled samples that come one at a time: what a device learns from.
//!
//! A sensor gives more samples than memory holds, and seldom as many of each class. [`Reservoir`]
//! keeps as many of each class as it can, chooses within a class without preference, and sets a
//! fifth aside that no training ever sees, so that a fine-tune can be judged on the device
//! ([`Paired`](crate::si::Paired)).

use core::sync::atomic::{Ordering, compiler_fence};

use bytemuck::{Pod, Zeroable};

use crate::rng::{Purpose, Rng};
use crate::shape::Shape;
use crate::source::{Batch, Draw, Source, SourceError};

/// One of so many samples of a class is held out.
const FOLD: u32 = 5;

/// Why a reservoir could not be made, or did not take a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReservoirError {
    /// Samples without bytes, or with more than 32 bits can count.
    Shape {
        /// The shape given.
        shape: Shape,
    },
    /// Memory for samples that is shorter than the places.
    Samples {
        /// Bytes that the places need.
        needed: usize,
        /// Bytes given.
        given: usize,
    },
    /// Fewer places than classes: some class could never be there.
    Places {
        /// Classes, the least number of places.
        needed: usize,
        /// Places given.
        given: usize,
    },
    /// A sample of another shape.
    Sample {
        /// Bytes of a sample.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A label that is not below the number of classes.
    Label {
        /// The label.
        label: u16,
        /// Classes that there are.
        classes: usize,
    },
    /// Memory that does not hold what is to be resumed.
    Kept {
        /// What differs.
        what: &'static str,
        /// What a reservoir in this memory has.
        expected: u32,
        /// What was found.
        got: u32,
    },
}

impl core::fmt::Display for ReservoirError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Shape { shape } => write!(f, "samples of {shape}, expected at least one byte"),
            Self::Samples { needed, given } => {
                write!(f, "the places need {needed} bytes for samples, got {given}")
            }
            Self::Places { needed, given } => {
                write!(f, "{given} places, expected at least one for each of {needed} classes")
            }
            Self::Sample { expected, got } => {
                write!(f, "a sample of {got} bytes, expected {expected}")
            }
            Self::Label { label, classes } => write!(f, "label {label} of {classes} classes"),
            Self::Kept { what, expected, got } => {
                write!(f, "no reservoir to resume: {what} {got}, expected {expected}")
            }
        }
    }
}

impl core::error::Error for ReservoirError {}

/// What became of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It took a free place.
    Kept {
        /// The place.
        at: usize,
        /// Whether it is kept from training.
        held_out: bool,
    },
    /// It took the place of another.
    Replaced {
        /// The place.
        at: usize,
        /// Whether it is kept from training.
        held_out: bool,
        /// The label of the sample that left.
        label: u16,
    },
    /// Its class is full, and chance kept the others.
    Dropped,
}

/// What stands at a place: a label, and whether the sample is held out. 4 bytes; all zero where the
/// place is free.
///
/// One word, which no reset can tear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Entry(u32);

impl Entry {
    /// A free place.
    pub const FREE: Self = Self(0);
    const TRAINING: u16 = 1;
    const HELD_OUT: u16 = 2;

    const fn new(label: u16, role: u16) -> Self {
        Self((role as u32) << 16 | label as u32)
    }

    const fn label(self) -> u16 {
        self.0 as u16
    }

    const fn role(self) -> u16 {
        (self.0 >> 16) as u16
    }

    const fn is_free(self) -> bool {
        self.role() == 0
    }

    const fn held_out(self) -> bool {
        self.role() == Self::HELD_OUT
    }

    const fn is_of(self, label: u16) -> bool {
        !self.is_free() && self.label() == label
    }
}

/// The role of a sample.
const fn role(held_out: bool) -> u16 {
    if held_out { Entry::HELD_OUT } else { Entry::TRAINING }
}

/// The counts of a class: samples seen, samples there, samples held out. 12 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Class {
    seen: u32,
    len: u32,
    held_out: u32,
}

impl Class {
    /// No sample yet.
    pub const NONE: Self = Self { seen: 0, len: 0, held_out: 0 };

    /// Whether the next sample is a held-out one: one of each group of five, with the same chance
    /// at each place of the group, but never where no sample of the class can be trained on.
    const fn next_is_held_out(self, rng: &mut Rng) -> bool {
        let (groups, within) = (self.len / FOLD, self.len % FOLD);
        let due = (groups + 1).saturating_sub(self.held_out);
        self.training() > 0 && rng.below(FOLD - within) < due
    }

    /// Whether the sample that leaves is a held-out one: the same backwards.
    const fn leaver_is_held_out(self, rng: &mut Rng) -> bool {
        let groups = self.len.saturating_sub(1) / FOLD;
        let within = self.len.saturating_sub(groups * FOLD);
        let drawn = rng.below(within) < self.held_out.saturating_sub(groups);
        self.held_out > 0 && (drawn || self.training() < 2)
    }

    /// How many can be trained on.
    const fn training(self) -> u32 {
        self.len.saturating_sub(self.held_out)
    }

    /// With another sample.
    const fn grown(self, held_out: bool) -> Self {
        let len = self.len.saturating_add(1);
        Self { len, held_out: self.held_out.saturating_add(held_out as u32), ..self }
    }

    /// With one sample less.
    const fn shrunk(self, held_out: bool) -> Self {
        let len = self.len.saturating_sub(1);
        Self { len, held_out: self.held_out.saturating_sub(held_out as u32), ..self }
    }
}

/// What a reservoir must know beside classes and places to be resumed. 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct State {
    mark: u32,
    /// Channels, rows and columns of a sample, classes and places.
    sizes: [u32; 5],
    seed: u64,
    /// Samples offered.
    seen: u64,
}

impl State {
    /// Of no reservoir.
    pub const NONE: Self = Self { mark: 0, sizes: [0; 5], seed: 0, seen: 0 };
    /// Zeroed or random memory is no reservoir.
    const MARK: u32 = u32::from_le_bytes(*b"sres");
    const SIZES: [&str; 5] = ["channels", "rows", "columns", "classes", "places"];
}

/// The memory of a reservoir, lent by the caller: plain data, in any order and any sections.
///
/// A reservoir of P places for C classes of B bytes a sample takes `P (B + 4) + 12 C + 40` bytes.
#[derive(Debug)]
pub struct Memory<'a> {
    /// What it must know to be resumed.
    pub state: &'a mut State,
    /// One for each class: labels are below their number.
    pub classes: &'a mut [Class],
    /// One for each place, at least as many as classes.
    pub entries: &'a mut [Entry],
    /// At least the bytes of a sample for each place.
    pub samples: &'a mut [u8],
}

/// A class-balanced reservoir of samples of bytes.
///
/// # Which samples are kept
/// Class-balancing reservoir sampling (Chrysakis and Moens, "Online continual learning from
/// imbalanced streams", ICML 2020, Algorithm 1). While places are free every sample is kept. Then,
/// for a sample of class c with `n_c` samples seen, itself included, of which `m_c` are there:
///
/// ```text
/// c is full:  kept with probability m_c / n_c, in the place of a random sample of c
/// otherwise:  kept, in the place of a random sample of the largest class
/// ```
/// A class is full where it is the largest, or was and has lost samples since: it then has at most
/// one sample less than the largest. Of several largest ones the lowest label loses. So each class
/// either has all its samples here or at most one fewer than the largest class, and within a class
/// each sample of the stream is as likely to be there as any other.
///
/// # Which samples are held out
/// One of every five samples that a class gains, chance says which: a stream that repeats every
/// five samples does not hold out one kind alone. A sample that takes the place of one of its own class
/// takes its role too; where a class shrinks, the role that leaves keeps the share. So with m
/// samples of a class, `floor(m / 5)` or `ceil(m / 5)` are held out, a fifth on average, and one
/// sample at least can be trained on. No sample changes its role while it stays. A sample that is
/// offered twice is two samples, and may have both roles.
///
/// # Repeatable
/// All chance is a function of the seed and of how many samples were offered: the same stream gives
/// the same reservoir, resumed or not.
///
/// ```
/// use sepal_core::reservoir::{Class, Entry, Memory, Reservoir, State};
/// use sepal_core::shape::Shape;
///
/// const SHAPE: Shape = Shape::new(1, 1, 2, 2);
/// let (mut state, mut classes) = (State::NONE, [Class::NONE; 2]);
/// let (mut entries, mut samples) = ([Entry::FREE; 10], [0; 10 * 4]);
/// let memory = Memory {
///     state: &mut state,
///     classes: &mut classes,
///     entries: &mut entries,
///     samples: &mut samples,
/// };
/// let mut reservoir = Reservoir::new(SHAPE, memory, 7)?;
/// for time in 0..100 {
///     let label = u16::from(time % 10 == 9); // one of ten is of class 1
///     reservoir.offer(&[time; 4], label)?;
/// }
/// assert_eq!((reservoir.count(0), reservoir.count(1)), (5, 5));
/// assert_eq!((reservoir.training().iter().count(), reservoir.held_out().iter().count()), (8, 2));
/// # Ok::<(), sepal_core::reservoir::ReservoirError>(())
/// ```
#[derive(Debug)]
pub struct Reservoir<'a> {
    shape: Shape,
    /// Bytes of a sample, at least one.
    size: usize,
    memory: Memory<'a>,
}

impl<'a> Reservoir<'a> {
    /// An empty reservoir of samples of a shape, whose batch size does not matter.
    ///
    /// # Errors
    /// Samples without bytes, memory for samples that the places do not fit into, fewer places than
    /// classes.
    pub fn new(shape: Shape, memory: Memory<'a>, seed: u64) -> Result<Self, ReservoirError> {
        let mut reservoir = Self::lay(shape, memory)?;
        *reservoir.memory.state = State { seed, ..reservoir.described() };
        reservoir.clear();
        Ok(reservoir)
    }

    /// The reservoir that a reset left in memory, with its seed.
    ///
    /// The memory is one that neither the reset nor the program's start clears. Where the reset
    /// came within [`offer`](Self::offer), the place that was being written may be free afterwards;
    /// nothing else is lost. Samples have no check sum of their own.
    ///
    /// # Errors
    /// As [`new`](Self::new), and memory that holds no reservoir of this shape and these numbers of
    /// classes and places, or labels that are out of range.
    pub fn resume(shape: Shape, memory: Memory<'a>) -> Result<Self, ReservoirError> {
        let reservoir = Self::lay(shape, memory)?;
        let (expected, found) = (reservoir.described(), *reservoir.memory.state);
        let mark = [("its mark", expected.mark, found.mark)].into_iter();
        let sizes = State::SIZES.into_iter().zip(expected.sizes).zip(found.sizes);
        let sizes = sizes.map(|((what, expected), got)| (what, expected, got));
        if let Some((what, expected, got)) = mark.chain(sizes).find(|&(_, a, b)| a != b) {
            return Err(ReservoirError::Kept { what, expected, got });
        }
        // Counts may be of before or of after the write that the reset cut short.
        let Memory { classes, entries, .. } = reservoir.memory;
        classes.iter_mut().for_each(|class| *class = Class { seen: class.seen, ..Class::NONE });
        for entry in entries.iter().filter(|entry| !entry.is_free()) {
            let Some(class) = classes.get_mut(usize::from(entry.label())) else {
                let (label, classes) = (entry.label(), classes.len());
                return Err(ReservoirError::Label { label, classes });
            };
            if entry.role() > Entry::HELD_OUT {
                let (expected, got) = (u32::from(Entry::HELD_OUT), u32::from(entry.role()));
                return Err(ReservoirError::Kept { what: "a role", expected, got });
            }
            *class = class.grown(entry.held_out());
            class.seen = class.seen.max(class.len);
        }
        Ok(Self { memory: Memory { classes, entries, ..reservoir.memory }, ..reservoir })
    }

    /// Checks that memory and shape fit.
    fn lay(shape: Shape, memory: Memory<'a>) -> Result<Self, ReservoirError> {
        let size = match shape.sample().map(usize::try_from) {
            Some(Ok(size @ 1..)) => size,
            _ => return Err(ReservoirError::Shape { shape }),
        };
        let (places, given) = (memory.entries.len(), memory.samples.len());
        let needed = places.saturating_mul(size);
        if given < needed {
            return Err(ReservoirError::Samples { needed, given });
        }
        let classes = memory.classes.len();
        if places < classes {
            return Err(ReservoirError::Places { needed: classes, given: places });
        }
        Ok(Self { shape: shape.with_n(1), size, memory })
    }

    /// The state of a new reservoir in this memory, with seed 0.
    fn described(&self) -> State {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let Shape { c, h, w, .. } = self.shape;
        let Memory { classes, entries, .. } = &self.memory;
        let sizes = [c, h, w, count(classes.len()), count(entries.len())];
        State { mark: State::MARK, sizes, ..State::NONE }
    }

    /// Offers the next sample of the stream, of which it takes a copy or none.
    ///
    /// A full reservoir is a normal state. It looks at each class and each place once or twice, and
    /// copies at most one sample.
    ///
    /// # Errors
    /// A sample of another length, a label out of range: nothing changes then.
    pub fn offer(&mut self, sample: &[u8], label: u16) -> Result<Placed, ReservoirError> {
        if sample.len() != self.size {
            return Err(ReservoirError::Sample { expected: self.size, got: sample.len() });
        }
        let (classes, state) = (self.memory.classes.len(), &mut *self.memory.state);
        let Some(class) = self.memory.classes.get_mut(usize::from(label)) else {
            return Err(ReservoirError::Label { label, classes });
        };
        let [epoch, time] = [(state.seen >> 32) as u32, state.seen as u32];
        let mut rng = Rng::new(state.seed, Purpose::Reservoir, epoch, time);
        state.seen = state.seen.wrapping_add(1);
        class.seen = class.seen.saturating_add(1);
        let class = *class;

        if let Some(at) = self.memory.entries.iter().position(|entry| entry.is_free()) {
            let held_out = class.next_is_held_out(&mut rng);
            self.put(at, Entry::new(label, role(held_out)), sample);
            return Ok(Placed::Kept { at, held_out });
        }
        let most = self.most();
        let lost = class.seen > class.len.saturating_add(1);
        if class.len == most || (lost && class.len.saturating_add(1) == most) {
            // Vitter's Algorithm R within the class.
            let drawn = rng.below(class.seen);
            let Some((at, entry)) = self.nth(drawn, |entry| entry.is_of(label)) else {
                return Ok(Placed::Dropped);
            };
            self.put(at, entry, sample);
            return Ok(Placed::Replaced { at, held_out: entry.held_out(), label });
        }
        let mut labelled = (0..=u16::MAX).zip(&*self.memory.classes);
        let Some((leaver, shrinking)) = labelled.find(|(_, class)| class.len == most) else {
            return Ok(Placed::Dropped);
        };
        let leaving = shrinking.leaver_is_held_out(&mut rng);
        let among = if leaving { shrinking.held_out } else { shrinking.training() };
        let leaving = Entry::new(leaver, role(leaving));
        let Some((at, _)) = self.nth(rng.below(among), |entry| entry == leaving) else {
            return Ok(Placed::Dropped);
        };
        let held_out = class.next_is_held_out(&mut rng);
        self.put(at, Entry::new(label, role(held_out)), sample);
        Ok(Placed::Replaced { at, held_out, label: leaver })
    }

    /// How many samples the largest class has.
    fn most(&self) -> u32 {
        self.memory.classes.iter().fold(0, |most, class| most.max(class.len))
    }

    /// The place and the entry that come as number `n` of those that a condition holds for.
    fn nth(&self, n: u32, holds: impl Fn(Entry) -> bool) -> Option<(usize, Entry)> {
        let entries = self.memory.entries.iter().copied().enumerate();
        nth(entries.filter(|&(_, entry)| holds(entry)), n)
    }

    /// Writes a place. It is free while its sample is neither the old nor the new one, which counts
    /// where a reset comes between.
    fn put(&mut self, at: usize, entry: Entry, sample: &[u8]) {
        self.set(at, Entry::FREE);
        compiler_fence(Ordering::SeqCst);
        let bytes = self.memory.samples.get_mut(at.saturating_mul(self.size)..).unwrap_or_default();
        bytes.iter_mut().zip(sample).for_each(|(to, &from)| *to = from);
        compiler_fence(Ordering::SeqCst);
        self.set(at, entry);
    }

    /// Changes what stands at a place, and counts it.
    fn set(&mut self, at: usize, entry: Entry) {
        let Memory { classes, entries, .. } = &mut self.memory;
        let Some(place) = entries.get_mut(at) else { return };
        let old = core::mem::replace(place, entry);
        for (entry, change) in [(old, Class::shrunk as fn(_, _) -> _), (entry, Class::grown)] {
            if let (false, Some(class)) =
                (entry.is_free(), classes.get_mut(usize::from(entry.label())))
            {
                *class = change(*class, entry.held_out());
            }
        }
    }

    /// Frees the places of a class, and forgets how many samples of it were seen. Returns how many
    /// places that are.
    ///
    /// The samples that come next take them, whatever their class. A class that has lost samples
    /// before and gains some here then holds more late ones than its share: what is lost does not
    /// come back.
    ///
    /// # Errors
    /// A label out of range.
    pub fn remove_class(&mut self, label: u16) -> Result<u32, ReservoirError> {
        let Memory { classes, entries, .. } = &mut self.memory;
        let len = classes.len();
        let Some(class) = classes.get_mut(usize::from(label)) else {
            return Err(ReservoirError::Label { label, classes: len });
        };
        let removed = entries.iter_mut().filter(|entry| entry.is_of(label));
        removed.for_each(|entry| *entry = Entry::FREE);
        Ok(core::mem::take(class).len)
    }

    /// Forgets everything but the seed: it is as when it was new.
    pub fn clear(&mut self) {
        let Memory { state, classes, entries, .. } = &mut self.memory;
        entries.fill(Entry::FREE);
        classes.fill(Class::NONE);
        state.seen = 0;
    }

    /// The shape of a sample, `n == 1`.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// How many places there are.
    pub const fn capacity(&self) -> usize {
        self.memory.entries.len()
    }

    /// How many samples are there.
    pub fn len(&self) -> usize {
        self.memory.entries.iter().filter(|entry| !entry.is_free()).count()
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many samples were offered since it was new or cleared.
    pub const fn seen(&self) -> u64 {
        self.memory.state.seen
    }

    /// How many samples of a class are there; 0 for a label out of range.
    pub fn count(&self, label: u16) -> u32 {
        self.memory.classes.get(usize::from(label)).map_or(0, |class| class.len)
    }

    /// The sample at a place and its label; `None` where the place is free or there is none.
    pub fn sample(&self, at: usize) -> Option<(&[u8], u16)> {
        let entry = self.memory.entries.get(at).filter(|entry| !entry.is_free())?;
        Some((stored(self.memory.samples, self.size, at)?, entry.label()))
    }

    /// The samples to train on.
    pub fn training(&self) -> Part<'_> {
        self.part(Entry::TRAINING)
    }

    /// The samples that are never to be trained on.
    pub fn held_out(&self) -> Part<'_> {
        self.part(Entry::HELD_OUT)
    }

    fn part(&self, role: u16) -> Part<'_> {
        let Memory { entries, samples, .. } = &self.memory;
        Part { shape: self.shape, size: self.size, role, entries, samples }
    }
}

/// Element `n`, counted in 32 bits as chance draws it.
fn nth<T>(mut items: impl Iterator<Item = T>, n: u32) -> Option<T> {
    items.nth(usize::try_from(n).ok()?)
}

/// The sample at a place.
fn stored(samples: &[u8], size: usize, at: usize) -> Option<&[u8]> {
    samples.get(at.checked_mul(size)?..)?.get(..size)
}

/// The samples of a reservoir that have one role, in the order of their places: a [`Source`] for a
/// trainer.
///
/// ```
/// use sepal_core::reservoir::{Class, Entry, Memory, Reservoir, State};
/// use sepal_core::shape::Shape;
/// use sepal_core::source::{Batch, Source};
/// # let (mut state, mut classes) = (State::NONE, [Class::NONE; 2]);
/// # let (mut entries, mut samples) = ([Entry::FREE; 4], [0; 8]);
/// # let memory = Memory { state: &mut state, classes: &mut classes, entries: &mut entries, samples: &mut samples };
/// let mut reservoir = Reservoir::new(Shape::rows(1, 2), memory, 7)?;
/// reservoir.offer(&[10, 11], 0)?;
/// reservoir.offer(&[20, 21], 1)?;
///
/// let mut training = reservoir.training();
/// assert!(training.iter().eq([(&[10, 11][..], 0), (&[20, 21], 1)]));
/// let (mut batch, mut labels) = ([0; 2], [0]);
/// training.read(&[1], None, Batch::U8(&mut batch), &mut labels)?;
/// assert_eq!((batch, labels), ([20, 21], [1]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Part<'r> {
    shape: Shape,
    size: usize,
    role: u16,
    entries: &'r [Entry],
    samples: &'r [u8],
}

impl<'r> Part<'r> {
    /// The samples with their labels.
    pub fn iter(&self) -> impl Iterator<Item = (&'r [u8], u16)> + use<'r> {
        let Self { size, role, samples, .. } = *self;
        let entries =
            self.entries.iter().enumerate().filter(move |(_, entry)| entry.role() == role);
        entries.filter_map(move |(at, entry)| Some((stored(samples, size, at)?, entry.label())))
    }
}

impl Source for Part<'_> {
    fn len(&self) -> u32 {
        self.iter().fold(0, |count, _| count + 1)
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        _draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let elements = indices.len().saturating_mul(self.size);
        let expected = u32::try_from(elements).unwrap_or(u32::MAX);
        let batch = match batch {
            Batch::U8(batch) if batch.len() == elements => batch,
            Batch::U8(batch) => {
                let got = u32::try_from(batch.len()).unwrap_or(u32::MAX);
                return Err(SourceError::Batch { expected, got });
            }
            Batch::F32(_) => return Err(SourceError::Batch { expected, got: 0 }),
        };
        // A reservoir has no sample without bytes.
        let places = batch.chunks_exact_mut(self.size.max(1)).zip(labels);
        for (&index, (out, label)) in indices.iter().zip(places) {
            let missing = SourceError::Index { index, len: self.len() };
            let (sample, own) = nth(self.iter(), index).ok_or(missing)?;
            out.iter_mut().zip(sample).for_each(|(to, &from)| *to = from);
            *label = own;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    const SHAPE: Shape = Shape::new(1, 1, 1, 6);

    /// Memory that owns itself.
    struct Owned {
        state: State,
        classes: Vec<Class>,
        entries: Vec<Entry>,
        samples: Vec<u8>,
    }

    impl Owned {
        fn new(classes: usize, places: usize) -> Self {
            Self {
                state: State::NONE,
                classes: vec![Class::NONE; classes],
                entries: vec![Entry::FREE; places],
                samples: vec![0xee; places * 6],
            }
        }

        fn lend(&mut self) -> Memory<'_> {
            Memory {
                state: &mut self.state,
                classes: &mut self.classes,
                entries: &mut self.entries,
                samples: &mut self.samples,
            }
        }

        fn new_reservoir(&mut self, seed: u64) -> Reservoir<'_> {
            Reservoir::new(SHAPE, self.lend(), seed).unwrap()
        }
    }

    /// A sample that says when it was offered and of which class it is.
    fn sample(time: u32, label: u16) -> [u8; 6] {
        let ([a, b, c, d], [e, f]) = (time.to_le_bytes(), label.to_le_bytes());
        [a, b, c, d, e, f]
    }

    fn time_of(sample: &[u8]) -> u32 {
        u32::from_le_bytes(sample[..4].try_into().unwrap())
    }

    /// What is there: when it was offered, its label, whether it is held out.
    fn contents(reservoir: &Reservoir<'_>) -> BTreeMap<u32, (u16, bool)> {
        let with = |part: Part<'_>, held_out| {
            part.iter().map(move |(x, label)| (time_of(x), (label, held_out))).collect::<Vec<_>>()
        };
        let all = with(reservoir.training(), false).into_iter();
        let all: Vec<_> = all.chain(with(reservoir.held_out(), true)).collect();
        let map: BTreeMap<_, _> = all.iter().copied().collect();
        assert_eq!((map.len(), reservoir.len()), (all.len(), all.len()));
        map
    }

    #[track_caller]
    fn check_counts(reservoir: &Reservoir<'_>, classes: u16) {
        let mut total = 0;
        for label in 0..classes {
            let of = |part: Part<'_>| part.iter().filter(|&(_, l)| l == label).count() as u32;
            let (training, held_out) = (of(reservoir.training()), of(reservoir.held_out()));
            let m = training + held_out;
            assert_eq!(reservoir.count(label), m);
            assert!(held_out.abs_diff(m / 5) <= u32::from(m % 5 > 0) && held_out >= m / 5, "{m}");
            assert!(m == 0 || training > 0);
            total += m;
        }
        assert_eq!(total as usize, reservoir.len());
        for at in 0..reservoir.capacity() {
            if let Some((x, label)) = reservoir.sample(at) {
                assert_eq!(x, sample(time_of(x), label));
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Offer(u16),
        Remove(u16),
        Clear,
        Reset,
    }

    /// Classes, places and a stream in runs, as a sensor gives them.
    fn streams(removals: u32) -> impl Strategy<Value = (u16, usize, u64, Vec<Step>)> {
        (1u16..6, 0usize..40, any::<u64>()).prop_flat_map(move |(classes, more, seed)| {
            let run = (0..classes, 1usize..30).prop_map(|(label, n)| vec![Step::Offer(label); n]);
            let step = prop_oneof![
                20 => run,
                removals => (0..classes).prop_map(|label| vec![Step::Remove(label)]),
                removals => Just(vec![Step::Reset]),
                removals.min(1) => Just(vec![Step::Clear]),
            ];
            let steps = prop::collection::vec(step, 0..40).prop_map(|steps| steps.concat());
            (Just(classes), Just(usize::from(classes) + more), Just(seed), steps)
        })
    }

    proptest! {
        #[test]
        fn nothing_is_mixed_up(
            (classes, places, seed, steps) in streams(3),
        ) {
            let mut owned = Owned::new(usize::from(classes), places);
            let mut reservoir = owned.new_reservoir(seed);
            let (mut offered, mut removed) = (0u64, false);
            for (time, step) in (0u32..).zip(steps) {
                let before = contents(&reservoir);
                match step {
                    Step::Offer(label) => {
                        let placed = reservoir.offer(&sample(time, label), label).unwrap();
                        offered += 1;
                        let mut expected = before.clone();
                        match placed {
                            Placed::Kept { at, held_out } => {
                                prop_assert!(before.len() < places);
                                prop_assert_eq!(reservoir.sample(at).unwrap().1, label);
                                expected.insert(time, (label, held_out));
                                prop_assert_eq!(contents(&reservoir), expected);
                            }
                            Placed::Replaced { at, held_out, label: left } => {
                                prop_assert_eq!(before.len(), places);
                                let now = contents(&reservoir);
                                prop_assert_eq!(now.get(&time), Some(&(label, held_out)));
                                prop_assert_eq!(time_of(reservoir.sample(at).unwrap().0), time);
                                let gone: Vec<_> =
                                    before.iter().filter(|(t, _)| !now.contains_key(t)).collect();
                                prop_assert_eq!(gone.len(), 1);
                                prop_assert_eq!(gone[0].1.0, left);
                                // Nobody else is touched.
                                expected.remove(gone[0].0);
                                expected.insert(time, (label, held_out));
                                prop_assert_eq!(now, expected);
                            }
                            Placed::Dropped => {
                                prop_assert_eq!(before.len(), places);
                                prop_assert_eq!(contents(&reservoir), before);
                            }
                        }
                    }
                    Step::Remove(label) => {
                        let count = reservoir.count(label);
                        prop_assert_eq!(reservoir.remove_class(label), Ok(count));
                        let mut expected = before;
                        expected.retain(|_, &mut (own, _)| own != label);
                        prop_assert_eq!(contents(&reservoir), expected);
                        removed = true;
                    }
                    Step::Clear => {
                        reservoir.clear();
                        prop_assert!(reservoir.is_empty());
                        (offered, removed) = (0, false);
                    }
                    Step::Reset => {
                        reservoir = Reservoir::resume(SHAPE, owned.lend()).unwrap();
                        prop_assert_eq!(contents(&reservoir), before);
                    }
                }
                check_counts(&reservoir, classes);
                prop_assert_eq!(reservoir.seen(), offered);
                if !removed {
                    prop_assert_eq!(reservoir.len() as u64, offered.min(places as u64));
                }
            }
        }

        #[test]
        fn classes_are_balanced(
            (classes, places, seed, steps) in streams(0),
        ) {
            let mut owned = Owned::new(usize::from(classes), places);
            let mut reservoir = owned.new_reservoir(seed);
            let mut seen = vec![0u32; usize::from(classes)];
            for (time, step) in (0u32..).zip(steps) {
                let Step::Offer(label) = step else { continue };
                reservoir.offer(&sample(time, label), label).unwrap();
                seen[usize::from(label)] += 1;
                let counts: Vec<_> = (0..classes).map(|label| reservoir.count(label)).collect();
                let most = counts.iter().copied().max().unwrap();
                for (&count, &seen) in counts.iter().zip(&seen) {
                    prop_assert!(count == seen || count + 1 >= most, "{:?} {:?}", counts, seen);
                    prop_assert!(seen == 0 || count > 0, "{:?} {:?}", counts, seen);
                }
            }
        }

        #[test]
        fn a_resumed_reservoir_goes_on_as_if_nothing_was(
            (classes, places, seed, steps) in streams(0),
            every in 1usize..20,
        ) {
            let [mut whole, mut cut] = [(); 2].map(|()| Owned::new(usize::from(classes), places));
            whole.new_reservoir(seed);
            cut.new_reservoir(seed);
            let mut reservoir = Reservoir::resume(SHAPE, whole.lend()).unwrap();
            for (steps, first) in steps.chunks(every).zip((0u32..).step_by(every)) {
                let mut resumed = Reservoir::resume(SHAPE, cut.lend()).unwrap();
                for (time, step) in (first..).zip(steps) {
                    let Step::Offer(label) = *step else { continue };
                    let x = sample(time, label);
                    prop_assert_eq!(reservoir.offer(&x, label), resumed.offer(&x, label));
                }
            }
        }
    }

    /// How often each sample of a stream is there, and held out, over seeds.
    fn frequencies(stream: &[u16], classes: usize, places: usize, seeds: u64) -> [Vec<u32>; 2] {
        let mut owned = Owned::new(classes, places);
        let [mut there, mut held] = [(); 2].map(|()| vec![0; stream.len()]);
        for seed in 0..seeds {
            let mut reservoir = owned.new_reservoir(seed);
            for (time, &label) in (0..).zip(stream) {
                reservoir.offer(&sample(time, label), label).unwrap();
            }
            for (time, (_, held_out)) in contents(&reservoir) {
                there[time as usize] += 1;
                held[time as usize] += u32::from(held_out);
            }
        }
        [there, held]
    }

    /// Pearson's statistic of frequencies out of `seeds` of one chance, and its degrees of freedom.
    fn chi_square(counts: &[u32], seeds: u64) -> (f64, f64) {
        let mean = counts.iter().map(|&c| f64::from(c)).sum::<f64>() / counts.len() as f64;
        let variance = mean * (1.0 - mean / seeds as f64);
        let sum: f64 = counts.iter().map(|&c| (f64::from(c) - mean).powi(2)).sum();
        (sum / variance, counts.len() as f64 - 1.0)
    }

    /// The streams have a class that shrinks as others come, one that is the largest late, and one
    /// that stays small. A bound of five standard deviations fails once in a million.
    #[test]
    fn within_a_class_each_sample_is_as_likely_to_be_there() {
        const SEEDS: u64 = 1500;
        let mut stream = vec![0; 80];
        stream.extend([1; 60]);
        stream.extend((0..120u16).map(|i| [0, 1, 2, 1][usize::from(i % 4)]));
        let [there, held] = frequencies(&stream, 3, 60, SEEDS);
        for label in 0..3 {
            let of = |counts: &[u32]| -> Vec<u32> {
                counts.iter().zip(&stream).filter(|s| *s.1 == label).map(|(&c, _)| c).collect()
            };
            let (there, held) = (of(&there), of(&held));
            let (statistic, freedom) = chi_square(&there, SEEDS);
            let bound = freedom + 5.0 * (2.0 * freedom).sqrt();
            assert!(statistic < bound, "class {label}: {statistic} of {freedom}: {there:?}");
            let share = |counts: &[u32]| f64::from(counts.iter().sum::<u32>());
            let share = share(&held) / share(&there);
            assert!((share - 0.2).abs() < 0.005, "class {label}: {share}");
            // The first five of a class know that the very first is trained on.
            let (statistic, freedom) = chi_square(&held[5..], SEEDS);
            let bound = freedom + 5.0 * (2.0 * freedom).sqrt();
            assert!(statistic < bound, "class {label} held: {statistic} of {freedom}: {held:?}");
        }
    }

    /// A class that shrinks while another grows, at each size.
    #[test]
    fn the_share_is_a_fifth_on_average() {
        const SEEDS: u64 = 1000;
        let mut held = [[0; 2]; 21];
        let mut owned = Owned::new(2, 40);
        for seed in 0..SEEDS {
            let mut reservoir = owned.new_reservoir(seed);
            for time in 0..60 {
                let label = u16::from(time >= 40);
                reservoir.offer(&sample(time, label), label).unwrap();
                for (at, counts) in held.iter_mut().enumerate() {
                    for (_, own) in reservoir.held_out().iter().filter(|_| time as usize == 39 + at)
                    {
                        counts[usize::from(own)] += 1;
                    }
                }
            }
        }
        for (ones, counts) in held.into_iter().enumerate() {
            // Where a class has fewer than five, its first one is trained on.
            for (m, count) in [40 - ones, ones].into_iter().zip(counts).filter(|&(m, _)| m >= 5) {
                let mean = f64::from(count) / SEEDS as f64;
                // A deviation of the mean is at most 0.016.
                assert!((mean - m as f64 / 5.0).abs() < 0.08, "{mean} of {m}");
            }
        }
    }

    /// A sensor that shows five things in turn: each is held out in its turn.
    #[test]
    fn a_stream_that_repeats_has_all_its_kinds_held_out() {
        let [there, held] = frequencies(&[0; 100], 1, 100, 200);
        assert!(there.iter().all(|&count| count == 200));
        let mut kinds = [0; 5];
        held.iter().enumerate().skip(5).for_each(|(time, &count)| kinds[time % 5] += count);
        assert!(kinds.iter().all(|&count| (660..860).contains(&count)), "{kinds:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_reservoir() {
        let mut owned = Owned::new(2, 7);
        let mut filled = |seed| {
            let mut reservoir = owned.new_reservoir(seed);
            let [first, again] = [(); 2].map(|()| {
                reservoir.clear();
                for time in 0..200 {
                    reservoir.offer(&sample(time, 0), 0).unwrap();
                }
                contents(&reservoir)
            });
            assert_eq!(first, again);
            first
        };
        assert_eq!(filled(1), filled(1));
        assert_ne!(filled(1), filled(2));
    }

    /// After a class has gone the smaller of two that had lost samples grows again.
    #[test]
    fn balance_comes_back_after_a_class_was_removed() {
        let mut owned = Owned::new(3, 30);
        let mut reservoir = owned.new_reservoir(5);
        let offer = |reservoir: &mut Reservoir<'_>, label, times: core::ops::Range<u32>| {
            for time in times {
                reservoir.offer(&sample(time, label), label).unwrap();
            }
        };
        for label in 0..3 {
            offer(&mut reservoir, label, 0..100);
        }
        assert_eq!([0, 1, 2].map(|label| reservoir.count(label)), [10; 3]);
        assert_eq!(reservoir.remove_class(0), Ok(10));
        assert_eq!((reservoir.len(), reservoir.count(0)), (20, 0));
        offer(&mut reservoir, 1, 100..200);
        assert_eq!((reservoir.count(1), reservoir.count(2)), (20, 10));
        offer(&mut reservoir, 2, 100..200);
        assert_eq!((reservoir.count(1), reservoir.count(2)), (15, 15));
        check_counts(&reservoir, 3);
    }

    /// A reset within a write leaves a free place and counts of before or after.
    #[test]
    fn a_write_cut_short_costs_its_place_alone() {
        let mut owned = Owned::new(2, 10);
        let mut reservoir = owned.new_reservoir(3);
        for time in 0..50 {
            reservoir.offer(&sample(time, (time % 2) as u16), (time % 2) as u16).unwrap();
        }
        let before = contents(&reservoir);
        owned.entries[4] = Entry::FREE;
        owned.samples[4 * 6..5 * 6].fill(0xaa);
        owned.classes[0].held_out = 3;
        owned.classes[1].seen = 0;
        let mut reservoir = Reservoir::resume(SHAPE, owned.lend()).unwrap();
        let after = contents(&reservoir);
        assert_eq!((reservoir.len(), reservoir.sample(4)), (9, None));
        assert!(after.iter().all(|(time, what)| before.get(time) == Some(what)));
        // It goes on, and the shares come back.
        for time in 50..90 {
            reservoir.offer(&sample(time, (time % 2) as u16), (time % 2) as u16).unwrap();
        }
        check_counts(&reservoir, 2);
    }

    #[test]
    fn only_a_reservoir_of_the_same_kind_is_resumed() {
        let mut owned = Owned::new(2, 4);
        let kept = |what, expected, got| ReservoirError::Kept { what, expected, got };
        let resume = |owned: &mut Owned, shape| Reservoir::resume(shape, owned.lend()).err();
        assert_eq!(resume(&mut owned, SHAPE), Some(kept("its mark", State::MARK, 0)));
        owned.new_reservoir(3).offer(&sample(1, 1), 1).unwrap();
        assert_eq!(resume(&mut owned, SHAPE), None);
        let tall = Shape::new(1, 1, 6, 1);
        assert_eq!(resume(&mut owned, tall), Some(kept("rows", 6, 1)));
        owned.classes.pop();
        assert_eq!(resume(&mut owned, SHAPE), Some(kept("classes", 1, 2)));
        owned.classes.push(Class::NONE);
        owned.entries.push(Entry::FREE);
        owned.samples.resize(30, 0);
        assert_eq!(resume(&mut owned, SHAPE), Some(kept("places", 5, 4)));
        owned.entries.pop();
        owned.entries[2] = Entry::new(2, Entry::HELD_OUT);
        let label = ReservoirError::Label { label: 2, classes: 2 };
        assert_eq!(resume(&mut owned, SHAPE), Some(label));
        owned.entries[2] = Entry::new(1, 7);
        assert_eq!(resume(&mut owned, SHAPE), Some(kept("a role", 2, 7)));
    }

    #[test]
    fn errors_name_the_numbers() {
        let mut owned = Owned::new(3, 4);
        let new = |owned: &mut Owned, shape| Reservoir::new(shape, owned.lend(), 0).err();
        for shape in [Shape::new(1, 0, 5, 5), Shape::new(1, 1 << 16, 1 << 16, 1)] {
            assert_eq!(new(&mut owned, shape), Some(ReservoirError::Shape { shape }));
        }
        owned.samples.pop();
        let error = new(&mut owned, SHAPE).unwrap();
        assert_eq!(error, ReservoirError::Samples { needed: 24, given: 23 });
        assert_eq!(error.to_string(), "the places need 24 bytes for samples, got 23");
        owned.entries.truncate(2);
        let error = new(&mut owned, SHAPE).unwrap();
        assert_eq!(error, ReservoirError::Places { needed: 3, given: 2 });

        let mut owned = Owned::new(3, 4);
        let mut reservoir = owned.new_reservoir(1);
        let error = reservoir.offer(&[0; 5], 0).unwrap_err();
        assert_eq!(error, ReservoirError::Sample { expected: 6, got: 5 });
        assert_eq!(error.to_string(), "a sample of 5 bytes, expected 6");
        let label = Err(ReservoirError::Label { label: 3, classes: 3 });
        assert_eq!(reservoir.offer(&[0; 6], 3).map(drop), label);
        assert_eq!(reservoir.remove_class(3).map(drop), label);
        assert_eq!((reservoir.seen(), reservoir.count(3), reservoir.len()), (0, 0, 0));
        assert_eq!((reservoir.sample(0), reservoir.sample(4)), (None, None));
    }

    #[test]
    fn the_parts_are_sources() {
        let mut owned = Owned::new(2, 20);
        let mut reservoir = owned.new_reservoir(1);
        for time in 0..20 {
            reservoir.offer(&sample(time, (time % 2) as u16), (time % 2) as u16).unwrap();
        }
        for (mut part, len) in [(reservoir.training(), 16), (reservoir.held_out(), 4)] {
            assert_eq!((part.len(), part.shape(), part.is_u8()), (len, SHAPE, true));
            let rows: Vec<_> = part.iter().collect();
            let (mut batch, mut labels) = ([0; 18], [9; 3]);
            part.read(&[3, 0, 3], None, Batch::U8(&mut batch), &mut labels).unwrap();
            for ((x, label), row) in batch.chunks(6).zip(labels).zip([3, 0, 3]) {
                assert_eq!((x, label), rows[row]);
            }
            let mut read = |index, batch: Batch<'_>| part.read(&[index], None, batch, &mut [0]);
            let index = Err(SourceError::Index { index: len, len });
            assert_eq!(read(len, Batch::U8(&mut [0; 6])), index);
            let batch = |got| Err(SourceError::Batch { expected: 6, got });
            assert_eq!(read(0, Batch::U8(&mut [0; 7])), batch(7));
            assert_eq!(read(0, Batch::F32(&mut [0.0; 6])), batch(0));
        }
    }
}
