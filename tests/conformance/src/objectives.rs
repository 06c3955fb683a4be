//! Losses on the backend: value, counts, neighbours and gradient.

use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{Host, HostMut, ObjectivePlace};
use sepal_core::loss::{self, Score};
use sepal_core::neighbour::{Pair, Rows, nearest_pair};
use sepal_core::real::Real;
use sepal_core::shape::Shape;
use sepal_core::stage::{Loss, Objective};

use crate::{Cut, Tolerance, With, ask, len, read, run, values, wide, write};

/// All objectives that have a gradient.
const OBJECTIVES: [Objective; 15] = [
    Objective::Separation(Loss::Triplet),
    Objective::Separation(Loss::Margin { margin: 0.2 }),
    Objective::Separation(Loss::Margin { margin: 0.0 }),
    Objective::Separation(Loss::SoftNearest { temperature: 0.5 }),
    Objective::Views(Loss::Margin { margin: 0.2 }),
    Objective::Separation(Loss::SoftCentre { temperature: 0.5 }),
    Objective::Separation(Loss::SoftCentre { temperature: 0.05 }),
    Objective::Views(Loss::SoftNearest { temperature: 0.5 }),
    Objective::Views(Loss::SoftCentre { temperature: 0.5 }),
    Objective::CrossEntropy { smoothing: 0.0 },
    Objective::CrossEntropy { smoothing: 0.1 },
    Objective::PredSim { beta: 0.9, similar: 2 },
    Objective::PredSim { beta: 0.5, similar: 11 },
    Objective::Goodness { threshold: 0.37, classes: 3 },
    Objective::Goodness { threshold: 0.0, classes: 5 },
];

struct Outcome<T> {
    score: Score<T>,
    pairs: Vec<Pair<T>>,
    gradient: Vec<T>,
}

/// An objective by the functions of the losses.
fn expected<T: Real>(objective: Objective, x: &[T], dim: usize, labels: &[u16]) -> Outcome<T> {
    let mut gradient = vec![T::ZERO; x.len()];
    let mut pairs = vec![];
    let grad = Some(&mut gradient[..]);
    let score = match objective {
        Objective::CrossEntropy { smoothing } => {
            loss::cross_entropy(x, dim, labels, T::from_f32(smoothing), grad)
        }
        Objective::PredSim { beta, similar } => {
            let (beta, mut scratch) = (T::from_f32(beta), vec![T::ZERO; 2 * labels.len()]);
            loss::pred_sim(x, dim, labels, beta, similar as usize, &mut scratch, grad)
        }
        Objective::Goodness { threshold, classes } => {
            loss::goodness(x, dim, labels, classes, T::from_f32(threshold), grad)
        }
        Objective::Separation(Loss::SoftNearest { temperature })
        | Objective::Views(Loss::SoftNearest { temperature }) => {
            let mut row = vec![T::ZERO; labels.len()];
            loss::soft_nearest(x, dim, labels, T::from_f32(temperature), &mut row, grad)
        }
        Objective::Separation(Loss::SoftCentre { temperature })
        | Objective::Views(Loss::SoftCentre { temperature }) => {
            let mut scratch = vec![T::ZERO; loss::CENTRE_SCRATCH * labels.len()];
            loss::soft_centre(x, dim, labels, T::from_f32(temperature), &mut scratch, grad)
        }
        Objective::Separation(other) | Objective::Views(other) => {
            pairs = vec![Pair::NONE; labels.len()];
            let rows = Rows { data: x, dim, labels };
            nearest_pair(rows, rows, 0, Some(0), &mut pairs);
            match other {
                Loss::Triplet => loss::triplet(x, dim, &pairs, grad),
                Loss::Margin { margin } => loss::margin(x, dim, &pairs, T::from_f32(margin), grad),
                _ => panic!("a loss that the suite does not know"),
            }
        }
        _ => Score::default(),
    };
    Outcome { score, pairs, gradient }
}

/// The same on the backend.
fn got(with: With, objective: Objective, shape: Shape, x: &[f32], labels: &[u16]) -> Outcome<f32> {
    let mut cut = Cut::default();
    let features = cut.slot(shape, Dtype::F32);
    let label_slot = cut.slot(Shape::rows(1, shape.n), Dtype::U16);
    let count = if objective.pairs() { shape.n } else { 0 };
    let pair_slot = Slot::vector(cut.bytes, count, Dtype::Pair);
    cut.bytes += pair_slot.bytes();
    let gradient = cut.slot(shape, Dtype::F32);
    let bytes = ask(with, |b| b.objective_scratch(&objective, features)) as u32;
    let scratch = cut.slot(Shape::rows(1, bytes), Dtype::U8);
    run(with, cut.bytes, |b| {
        write(b, features, x);
        b.write(label_slot, Host::U16(labels)).expect("the slot holds labels");
        let at =
            ObjectivePlace { features, labels: label_slot, pairs: pair_slot, scratch, gradient };
        let score = b.objective(&objective, &at).expect("the objective runs");
        let mut pairs = vec![Pair::NONE; count as usize];
        if count > 0 {
            b.read(pair_slot, HostMut::Pair(&mut pairs)).expect("the slot holds pairs");
        }
        let gradient = if objective == Objective::Statistics { vec![] } else { read(b, gradient) };
        Outcome { score, pairs, gradient }
    })
}

fn counts<T>(score: &Score<T>) -> [u32; 3] {
    [score.anchors, score.skipped, score.correct]
}

/// All objectives of one batch.
fn check(with: With, shape: Shape, x: &[f32], labels: &[u16]) {
    let dim = len(shape.with_n(1));
    for objective in OBJECTIVES {
        let what = format!("{objective:?} of {shape}");
        let expected = expected(objective, &wide(x), dim, labels);
        let got = got(with, objective, shape, x, labels);
        assert_eq!(counts(&got.score), counts(&expected.score), "{what}: counts");
        let value = [expected.score.value];
        Tolerance::SUM.check(&what, &[got.score.value], &value);
        Tolerance::NORMALISED.check(
            &format!("{what}: gradient"),
            &got.gradient,
            &expected.gradient,
        );
        let indices = |same: u32, other: u32| (same, other);
        let got: Vec<_> = got.pairs.iter().map(|p| indices(p.same.index, p.other.index)).collect();
        let expected: Vec<_> =
            expected.pairs.iter().map(|p| indices(p.same.index, p.other.index)).collect();
        assert_eq!(got, expected, "{what}: neighbours");
    }
}

/// Features with distances near 1, whatever their dimension.
fn features(seed: u64, shape: Shape) -> Vec<f32> {
    let scale = 1.0 / (len(shape.with_n(1)) as f32).sqrt();
    values(seed, len(shape)).into_iter().map(|x| x * scale).collect()
}

fn labels(n: u32, classes: u16) -> Vec<u16> {
    (0..n).map(|i| (i * 7 / 3) as u16 % classes).collect()
}

/// Random features of many sizes.
pub fn random(with: With) {
    for (n, dim) in [(2, 1), (3, 5), (8, 16), (17, 7), (31, 33), (64, 10)] {
        let shape = Shape::rows(n, dim);
        for classes in [2, 5] {
            check(with, shape, &features(u64::from(n), shape), &labels(n, classes));
        }
    }
}

/// Features that are images: D is all of a sample.
pub fn images(with: With) {
    for shape in [Shape::new(9, 3, 4, 5), Shape::new(16, 8, 2, 2)] {
        check(with, shape, &features(1, shape), &labels(shape.n, 3));
    }
}

/// One sample has no neighbours.
pub fn single_sample(with: With) {
    check(with, Shape::rows(1, 3), &[0.1, 0.5, -0.2], &[1]);
    check(with, Shape::rows(1, 1), &[0.1], &[0]);
}

/// Without another label nobody is an anchor.
pub fn one_class(with: With) {
    let shape = Shape::rows(9, 4);
    check(with, shape, &features(2, shape), &[1; 9]);
}

/// Samples that are alone in their class are skipped, and are neighbours of others.
pub fn class_of_one(with: With) {
    let shape = Shape::rows(9, 4);
    check(with, shape, &features(3, shape), &[0, 0, 1, 0, 1, 2, 0, 1, 3]);
    check(with, Shape::rows(3, 2), &[0.0, 0.1, 0.5, 0.2, 0.1, 0.9], &[0, 1, 2]);
}

/// Duplicates are neighbours at distance 0, with and without their label.
pub fn duplicates(with: With) {
    let rows = [[0.5, 0.25], [0.5, 0.25], [1.0, 0.5], [0.5, 0.25], [1.0, 0.5], [0.0, 0.0]];
    check(with, Shape::rows(6, 2), rows.as_flattened(), &[0, 0, 1, 1, 0, 1]);
    check(with, Shape::rows(6, 2), &[0.5; 12], &[0, 1, 0, 1, 0, 1]);
}

/// Points of a lattice: distances tie exactly, and the lowest index wins.
pub fn ties(with: With) {
    for dim in [1, 2, 5] {
        let shape = Shape::rows(40, dim);
        let x: Vec<f32> =
            values(4, len(shape)).into_iter().map(|x| (x * 2.0).round() / 2.0).collect();
        check(with, shape, &x, &labels(40, 3));
    }
}

/// A label that is no class is skipped by the cross-entropy, and is a label to the others.
pub fn labels_out_of_range(with: With) {
    let shape = Shape::rows(7, 3);
    check(with, shape, &features(5, shape), &[0, 1, 2, 3, 3, u16::MAX, 0]);
    check(with, Shape::rows(2, 2), &[0.1, 0.2, 0.3, 0.4], &[2, u16::MAX]);
}

/// NaN, infinities and numbers whose squares are none: counts as the losses define them, and a
/// gradient that stays finite.
pub fn not_finite(with: With) {
    let shape = Shape::rows(8, 3);
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-40];
    for bad in bad {
        let mut x = features(6, shape);
        x[7] = bad;
        for objective in OBJECTIVES {
            let what = format!("{objective:?} with {bad}");
            let labels = labels(8, 3);
            let expected = expected(objective, &x, 3, &labels);
            let got = got(with, objective, shape, &x, &labels);
            assert_eq!(counts(&got.score), counts(&expected.score), "{what}: counts");
            assert!(got.score.value.is_finite(), "{what}: value");
            assert!(got.gradient.iter().all(|g| g.is_finite()), "{what}: gradient");
        }
    }
}

/// Statistics are measured without a loss.
pub fn statistics(with: With) {
    let shape = Shape::rows(3, 2);
    let got = got(with, Objective::Statistics, shape, &features(7, shape), &[0, 1, 0]);
    assert_eq!(got.score, Score::default());
}
