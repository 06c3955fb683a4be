//! What a device does with samples of its own: keeps them, adds and removes classes, judges a
//! change. Nothing is known of lengths when this is compiled.

use core::hint::black_box;

use sepal_core::neighbour::{Nearest, Pair};
use sepal_core::prototypes::{Exemplars, Prototypes, Spread};
use sepal_core::reservoir::{Class, Entry, Memory, Placed, Reservoir, State};
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;
use sepal_core::si::Paired;
use sepal_core::source::{Batch, Source};

const D: usize = 5;
const PLACES: usize = 24;
const CLASSES: usize = 4;

/// All that came of it, folded into one number; the same on every target.
pub const DIGEST: u32 = 0x8585_c840;

/// FNV-1a.
struct Digest(u32);

impl Digest {
    fn word(&mut self, word: u32) {
        for byte in word.to_le_bytes() {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }

    fn number(&mut self, number: Option<f32>) {
        self.word(number.map_or(1, f32::to_bits));
    }
}

/// The digest; `None` where something failed.
pub fn run() -> Option<u32> {
    let mut digest = Digest(0x811c_9dc5);
    let (mut state, mut samples) = (State::NONE, [0; PLACES * D]);
    let (mut classes, mut entries) = ([Class::NONE; CLASSES], [Entry::FREE; PLACES]);
    let shape = black_box(Shape::rows(1, D as u32));
    let memory = Memory {
        state: &mut state,
        classes: black_box(&mut classes[..]),
        entries: black_box(&mut entries[..]),
        samples: black_box(&mut samples[..]),
    };
    let mut reservoir = Reservoir::new(shape, memory, black_box(3)).ok()?;
    for time in 0..black_box(300) {
        if time == 200 {
            digest.word(reservoir.remove_class(black_box(1)).ok()?);
            let memory = Memory {
                state: &mut state,
                classes: black_box(&mut classes[..]),
                entries: black_box(&mut entries[..]),
                samples: black_box(&mut samples[..]),
            };
            reservoir = Reservoir::resume(shape, memory).ok()?;
        }
        let mut rng = Rng::new(0, Purpose::Sample, 0, time);
        let label = rng.below(10).min(3) as u16;
        let sample = [0; D].map(|_: u8| (rng.below(100) + 30 * u32::from(label)) as u8);
        digest.word(match reservoir.offer(black_box(&sample), label).ok()? {
            Placed::Kept { at, held_out } => at as u32 * 2 + u32::from(held_out),
            Placed::Replaced { at, label, .. } => 1000 + at as u32 * 10 + u32::from(label),
            Placed::Dropped => 5000,
        });
    }
    digest.word(reservoir.seen() as u32 + reservoir.len() as u32 + reservoir.count(3));
    digest.word(u32::from(reservoir.sample(black_box(2))?.1));

    let (mut means, mut labels) = ([0.0; CLASSES * D], [0; CLASSES]);
    let (mut data, mut own) = ([0.0; PLACES * D], [0; PLACES]);
    let (mut spread, mut within) = ([Spread::NONE; CLASSES], [0.0; PLACES]);
    let dim = black_box(D);
    let (to, of) = (black_box(&mut means[..]), black_box(&mut labels[..]));
    let mut prototypes = Prototypes::new(dim, to, of, black_box(&mut spread[..])).ok()?;
    let (to, of) = (black_box(&mut data[..]), black_box(&mut own[..]));
    let mut exemplars = Exemplars::new(dim, to, of, black_box(&mut within[..])).ok()?;
    let mut training = reservoir.training();
    for index in 0..training.len() {
        let (mut sample, mut label) = ([0; D], [0]);
        training.read(&[index], None, Batch::U8(black_box(&mut sample)), &mut label).ok()?;
        let (embedding, [label]) = (sample.map(|x| f32::from(x) / 128.0), label);
        digest.word(prototypes.add(black_box(&embedding), label).ok()?);
        exemplars.add(black_box(&embedding), label).ok()?;
    }
    digest.word(prototypes.remove(black_box(2)));
    digest.word(exemplars.remove(black_box(2)) as u32);
    prototypes.classes().for_each(|(label, count)| digest.word(u32::from(label) + 10 * count));
    exemplars
        .classes()
        .for_each(|(label, count)| digest.word(u32::from(label) + 10 * count as u32));

    let (rows, mut paired) = (exemplars.rows(), Paired::default());
    let mut places = [Nearest::NONE; 3];
    let places = black_box(&mut places[..]);
    for (sample, label) in reservoir.held_out().iter() {
        let mut embedding = [0.0; D];
        embedding.iter_mut().zip(sample).for_each(|(x, &byte)| *x = f32::from(byte) / 128.0);
        let embedding = black_box(&embedding[..]);
        for found in [
            prototypes.classify(embedding, black_box(2.0)),
            exemplars.classify(embedding, places, black_box(0.9)),
        ] {
            digest.word(found.map_or(99, |found| u32::from(found.label)));
            digest.number(found.map(|found| found.dist2));
        }
        let correct = |bank| Pair::NONE.fold(embedding, label, bank, 0, None).correct();
        paired.observe(correct(prototypes.rows()) == Some(true), correct(rows) == Some(true));
    }
    for label in 0..CLASSES as u16 {
        digest.number(prototypes.limit(label, 1.0));
        digest.number(exemplars.limit(label, 0.5));
    }
    digest.number(paired.rise());
    digest.number(paired.error());
    digest.word(u32::from(paired.accepts(black_box(1.0))));

    // What was stored once is read again.
    let (count, spreads) = (rows.len(), prototypes.spreads().len());
    digest.word((count + spreads) as u32);
    let (means, labels) = (black_box(&mut means[..]), black_box(&mut labels[..]));
    let resumed = Prototypes::resume(dim, means, labels, black_box(&mut spread[..]), spreads);
    digest.number(resumed.ok()?.nearest(black_box(&[0.5; D])).map(|found| found.dist2));
    Some(digest.0)
}
