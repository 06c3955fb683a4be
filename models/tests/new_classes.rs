//! Samples of eight classes stream into a reservoir, a net learns from it by SI, and two classes
//! that it has never seen are added from five samples each.
#![cfg(feature = "bundled")]

use sepal_core::neighbour::{Nearest, Pair, Rows};
use sepal_core::prototypes::{Exemplars, Found, Prototypes, Spread};
use sepal_core::reference::OnReference;
use sepal_core::reservoir::{Class, Entry, Memory, Reservoir, State};
use sepal_core::si::Paired;
use sepal_core::source::Source;
use sepal_models::cache::Budget;
use sepal_models::data::{self, Dataset, Samples};
use sepal_models::features::Features;
use sepal_models::fit::Fit;
use sepal_models::lenet::LENET;
use sepal_models::recipe;

/// Bag and ankle boot come late. 8 is unlike all others, 9 is like the sneakers and sandals.
const OLD: u16 = 8;
const CLASSES: usize = 10;
const PLACES: usize = 1000;
const PIXELS: usize = 784;
/// Behind the second block.
const LAST: usize = 8;
const SHOTS: usize = 5;
const DRAWS: usize = 10;
/// Stored embeddings of a class, and of all.
const EACH: usize = 40;
const EXEMPLARS: usize = 400;

fn of(set: &Dataset, wanted: impl Fn(u16) -> bool) -> Dataset {
    let labels = set.labels().iter();
    let indices: Vec<u32> =
        (0..).zip(labels).filter(|&(_, &l)| wanted(l)).map(|(i, _)| i).collect();
    set.subset(&indices).unwrap()
}

fn rows(set: &Features) -> Rows<'_> {
    Rows { data: set.data(), dim: set.dim(), labels: set.labels() }
}

/// The share of samples that a condition holds for.
fn share(set: &Features, holds: impl Fn(&[f32], u16) -> bool) -> f64 {
    rows(set).iter().filter(|&(x, label)| holds(x, label)).count() as f64 / rows(set).len() as f64
}

fn embed<S: Source>(fit: &Fit<'_>, mut source: S) -> Features {
    Features::new(&OnReference, &fit.model(), &mut source, LAST).unwrap().unit()
}

fn is(found: Option<Found>, label: u16) -> bool {
    found.is_some_and(|found| found.label == label)
}

/// The share whose nearest prototype, and whose nearest exemplar, has their label.
fn right(prototypes: &Prototypes<'_>, exemplars: &Exemplars<'_>, set: &Features) -> [f64; 2] {
    let mean = share(set, |x, label| is(prototypes.nearest(x), label));
    [mean, share(set, |x, label| is(exemplars.nearest(x, &mut [Nearest::NONE]), label))]
}

/// The share that is none of the classes.
fn none(prototypes: &Prototypes<'_>, exemplars: &Exemplars<'_>, set: &Features) -> [f64; 2] {
    let mean = share(set, |x, _| prototypes.classify(x, 2.0).is_none());
    [mean, share(set, |x, _| exemplars.classify(x, &mut [Nearest::NONE], 0.95).is_none())]
}

#[test]
fn two_classes_from_five_samples_each() {
    let data::Split { train, test, .. } = data::bundled();
    let (old, new) = (of(&train, |label| label < OLD), of(&train, |label| label >= OLD));
    let [old_test, new_test] = [of(&test, |l| l < OLD), of(&test, |l| l >= OLD)];

    let (mut state, mut classes) = (State::NONE, [Class::NONE; CLASSES]);
    let (mut entries, mut samples) = (vec![Entry::FREE; PLACES], vec![0; PLACES * PIXELS]);
    let memory = Memory {
        state: &mut state,
        classes: &mut classes,
        entries: &mut entries,
        samples: &mut samples,
    };
    let mut reservoir = Reservoir::new(old.shape(), memory, 1).unwrap();
    let Samples::U8(pixels) = old.samples() else { panic!("images of bytes") };
    for (image, &label) in pixels.chunks_exact(PIXELS).zip(old.labels()) {
        reservoir.offer(image, label).unwrap();
    }
    assert!((0..OLD).all(|label| (124..=126).contains(&reservoir.count(label))));

    // The host's trainer reads the reservoir; what is held out judges it.
    let mut fit = Fit::new(LENET, 0).unwrap();
    let parts = || [reservoir.training(), reservoir.held_out()];
    let before = parts().map(|part| embed(&fit, part));
    let strategy = recipe::forward_si(2, 1);
    fit.run(&OnReference, &strategy, &mut reservoir.training(), &Budget::default(), &mut ())
        .unwrap();
    let after = parts().map(|part| embed(&fit, part));
    let mut paired = Paired::default();
    let [right_before, right_after] = [&before, &after].map(|[training, held_out]| {
        let correct = |(x, label)| Pair::NONE.fold(x, label, rows(training), 0, None).correct();
        rows(held_out).iter().map(|row| correct(row) == Some(true)).collect::<Vec<_>>()
    });
    right_before.into_iter().zip(right_after).for_each(|(a, b)| paired.observe(a, b));
    let (rise, error) = (paired.rise().unwrap(), paired.error().unwrap());
    println!("held-out SI rises by {rise:.3}, standard error {error:.3}");

    assert!(paired.samples() == 200 && paired.accepts(1.0), "{paired:?}");

    let [shots, old_test, new_test] = [new, old_test, new_test].map(|set| embed(&fit, set));
    let dim = shots.dim();
    let (mut means, mut labels) = (vec![0.0; CLASSES * dim], [0; CLASSES]);
    let mut spreads = [Spread::NONE; CLASSES];
    let mut prototypes = Prototypes::new(dim, &mut means, &mut labels, &mut spreads).unwrap();
    let (mut data, mut own) = (vec![0.0; EXEMPLARS * dim], [0; EXEMPLARS]);
    let mut within = [0.0; EXEMPLARS];
    let mut exemplars = Exemplars::new(dim, &mut data, &mut own, &mut within).unwrap();
    for (x, label) in rows(&after[0]).iter() {
        prototypes.add(x, label).unwrap();
        if exemplars.classes().all(|(other, count)| other != label || count < EACH) {
            exemplars.add(x, label).unwrap();
        }
    }
    let [mean_old, nearest_old] = right(&prototypes, &exemplars, &old_test);
    let [mean_false, nearest_false] = none(&prototypes, &exemplars, &old_test);
    let [mean_none, nearest_none] = none(&prototypes, &exemplars, &new_test);
    println!("eight classes          right   none of these: old classes, new classes");
    println!("prototypes             {mean_old:.3}   {mean_false:.3}  {mean_none:.3}");
    println!("{EACH} exemplars a class   {nearest_old:.3}   {nearest_false:.3}  {nearest_none:.3}");
    assert!(mean_old > 0.65 && nearest_old > 0.65);
    assert!(mean_false < 0.08 && nearest_false < 0.12);
    assert!(mean_none > 0.4 && nearest_none > 0.45);

    let (mut old, mut new) = ([0.0; 2], [0.0; 2]);
    for draw in 0..DRAWS {
        for label in OLD..CLASSES as u16 {
            let samples = rows(&shots).iter().filter(|&(_, own)| own == label);
            for (x, label) in samples.skip(draw * SHOTS).take(SHOTS) {
                prototypes.add(x, label).unwrap();
                exemplars.add(x, label).unwrap();
            }
        }
        for (sum, set) in [(&mut old, &old_test), (&mut new, &new_test)] {
            let right = right(&prototypes, &exemplars, set);
            sum.iter_mut().zip(right).for_each(|(sum, right)| *sum += right / DRAWS as f64);
        }
        for label in OLD..CLASSES as u16 {
            assert_eq!((prototypes.remove(label), exemplars.remove(label)), (5, SHOTS));
        }
    }
    println!("two more from {SHOTS} each   old classes, new classes; mean of {DRAWS} draws");
    println!("prototypes             {:.3}  {:.3}", old[0], new[0]);
    println!("exemplars              {:.3}  {:.3}", old[1], new[1]);
    // Chance is a tenth.
    assert!(new[0] > 0.55 && new[1] > 0.4);
    assert!(mean_old - old[0] < 0.05 && nearest_old - old[1] < 0.05);
    // All is as before.
    assert_eq!(right(&prototypes, &exemplars, &old_test), [mean_old, nearest_old]);
}
