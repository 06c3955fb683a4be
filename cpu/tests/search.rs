//! Searches and objectives against the reference, on data that is hard for expanded distances.

mod common;

use common::*;
use proptest::prelude::*;
use sepal_core::arena::{Dtype, Slot, Word};
use sepal_core::backend::{Backend, Bank, Device, Host, HostMut, ObjectivePlace};
use sepal_core::loss::Score;
use sepal_core::neighbour::{self, Nearest, Pair, Rows};
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;
use sepal_core::stage::{Loss, Objective};
use sepal_cpu::{Cpu, Instructions, OnCpu, views};

/// Losses and gradients of distances from products, against direct ones.
const DISTANCES: Tolerance = Tolerance { relative: 1e-4 };

#[derive(Clone, Debug)]
struct Set {
    data: Vec<f32>,
    dim: usize,
    labels: Vec<u16>,
}

impl Set {
    fn new(data: Vec<f32>, dim: usize, classes: u16) -> Self {
        let rows = data.len() / dim.max(1);
        let labels = (0..rows).map(|i| (i * 7 % 11) as u16 % classes).collect();
        Self { data, dim, labels }
    }

    fn rows(&self) -> Rows<'_, f32> {
        Rows { data: &self.data, dim: self.dim, labels: &self.labels }
    }

    fn part(&self, from: usize, to: usize) -> Rows<'_, f32> {
        Rows {
            data: &self.data[from * self.dim..to * self.dim],
            dim: self.dim,
            labels: &self.labels[from..to],
        }
    }
}

/// Features with mean 10 and deviation 0.05: the expanded distance of these finds wrong
/// neighbours in f32.
fn far_from_zero(rows: usize, dim: usize) -> Set {
    let data = values(3, rows * dim).into_iter().map(|v| 10.0 + 0.0866 * v).collect();
    Set::new(data, dim, 4)
}

fn named() -> Vec<(&'static str, Set)> {
    let mut sets = vec![];
    for rows in [1, 2, 7, 8, 9, 23, 24, 25, 47, 48, 49, 95, 96, 97, 255, 256, 257, 300, 513] {
        sets.push(("rows", Set::new(values(rows as u64, rows * 5), 5, 3)));
    }
    for dim in [1, 7, 8, 9, 16, 17, 33, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1100] {
        sets.push(("dim", Set::new(values(dim as u64, 40 * dim), dim, 3)));
    }
    sets.push(("far from zero", far_from_zero(300, 512)));
    let twice = |mut set: Set| {
        set.data.extend(set.data.clone());
        Set::new(set.data, set.dim, 3)
    };
    sets.push(("duplicates", twice(Set::new(values(5, 100 * 33), 33, 3))));
    sets.push(("duplicates far from zero", twice(far_from_zero(60, 64))));
    sets.push(("one point", Set::new(vec![0.3; 70 * 6], 6, 2)));
    sets.push(("one class", Set::new(values(6, 50 * 6), 6, 1)));
    sets.push(("grid", Set::new((0..600).map(|i| (i * 7 % 5) as f32).collect(), 2, 3)));
    let mean = values(10, 90 * 40).iter().map(|v| 1e4 + v).collect();
    sets.push(("mean 1e4", Set::new(mean, 40, 3)));
    let mut outlier = Set::new(values(11, 90 * 12), 12, 3);
    outlier.data[100..103].copy_from_slice(&[1e30, 1e15, -1e18]);
    sets.push(("an outlier", outlier));
    sets.push(("1e-30", Set::new(values(7, 60 * 6).iter().map(|v| v * 1e-30).collect(), 6, 3)));
    sets.push(("1e30", Set::new(values(7, 60 * 6).iter().map(|v| v * 1e30).collect(), 6, 3)));
    sets.push(("tiny", Set::new(values(7, 40 * 6).iter().map(|v| v * 1e-21).collect(), 6, 3)));
    sets.push(("large", Set::new(values(7, 40 * 6).iter().map(|v| v * 1e19).collect(), 6, 3)));
    let mut hard = Set::new(values(8, 60 * 9), 9, 3);
    for (i, value) in
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, f32::MAX].iter().enumerate()
    {
        hard.data[i * 100] = *value;
        hard.data[i * 100 + 51] = *value;
    }
    sets.push(("not finite", hard));
    let mut alone = Set::new(values(9, 30 * 4), 4, 2);
    alone.labels[3] = 99;
    sets.push(("class of one", alone));
    sets.push(("no features", Set { data: vec![], dim: 0, labels: vec![1, 0, 1] }));
    sets
}

fn pairs<B: Backend>(backend: &mut B, rows: Rows<'_, f32>, skip: Option<u32>) -> Vec<Pair> {
    let mut pairs = vec![Pair::NONE; rows.len()];
    let bank = Bank::Host(rows);
    backend.nearest(bank, bank, 0, skip, &mut pairs).unwrap();
    pairs
}

fn near<B: Backend>(
    backend: &mut B,
    rows: Rows<'_, f32>,
    k: usize,
    skip: Option<u32>,
) -> Vec<Nearest> {
    let mut out = vec![Nearest::NONE; rows.len() * k];
    let bank = Bank::Host(rows);
    backend.top_k(bank, bank, 0, skip, k, &mut out).unwrap();
    out
}

#[test]
fn neighbours_are_the_reference_s() {
    for (name, set) in named() {
        for skip in [Some(0), Some(3), None] {
            let mut reference = Reference::new(&mut []);
            let with = |set| Cpu::new(&mut []).with_instructions(set);
            let expected = pairs(&mut reference, set.rows(), skip);
            for instructions in Instructions::all() {
                let got = pairs(&mut with(instructions), set.rows(), skip);
                assert_eq!(got, expected, "{name} {skip:?} {instructions:?}");
            }
            for k in [1, 3, 10, 300] {
                let expected = near(&mut reference, set.rows(), k, skip);
                for instructions in Instructions::all() {
                    let got = near(&mut with(instructions), set.rows(), k, skip);
                    assert_eq!(got, expected, "{name} {k} {skip:?} {instructions:?}");
                }
            }
        }
    }
}

/// Queries that are not the bank, of sizes about those of panels and blocks.
#[test]
fn queries_against_a_bank() {
    let sizes = [(1, 50), (7, 300), (8, 1), (9, 49), (48, 193), (49, 96), (200, 25), (257, 200)];
    for (at, (m, n)) in sizes.into_iter().enumerate() {
        for dim in [1, 13, 64, 300] {
            let (seed, shift) = (at as u64, if dim == 13 { 100.0 } else { 0.0 });
            let data = |seed, len| values(seed, len).iter().map(|v| v + shift).collect();
            let queries = Set::new(data(seed, m * dim), dim, 3);
            let mut bank = Set::new(data(seed + 99, n * dim), dim, 4);
            // Some rows of the bank are queries.
            let shared = 5.min(m).min(n) * dim;
            bank.data[..shared].copy_from_slice(&queries.data[..shared]);
            if n > 20 && dim > 10 {
                bank.data[17 * dim] = f32::INFINITY;
                bank.data[11 * dim + 3] = f32::NAN;
            }
            for skip in [None, Some(5), Some(8)] {
                let mut expected = vec![Pair::NONE; m];
                let mut places = vec![Nearest::NONE; m * 4];
                neighbour::nearest_pair(queries.rows(), bank.rows(), 6, skip, &mut expected);
                neighbour::top_k(queries.rows(), bank.rows(), 6, skip, 4, &mut places);
                for instructions in Instructions::all() {
                    let mut cpu = Cpu::new(&mut []).with_instructions(instructions);
                    let (mut got, mut near) = (vec![Pair::NONE; m], vec![Nearest::NONE; m * 4]);
                    let (q, b) = (Bank::Host(queries.rows()), Bank::Host(bank.rows()));
                    cpu.nearest(q, b, 6, skip, &mut got).unwrap();
                    cpu.top_k(q, b, 6, skip, 4, &mut near).unwrap();
                    let what = format!("({m}, {n}, {dim}) {skip:?} {instructions:?}");
                    assert_eq!(got, expected, "{what}");
                    assert_eq!(near, places, "{what}");
                }
            }
        }
    }
}

/// Rows in half precision give what their widened numbers give.
#[test]
fn half_precision_is_widened() {
    for (rows, dim) in [(1, 1), (30, 9), (100, 40), (260, 270)] {
        let half: Vec<_> =
            values(2, rows * dim).into_iter().map(|v| views::f16::from_f32(3.0 + v)).collect();
        let half = ndarray::Array2::from_shape_vec((rows, dim), half).unwrap();
        let set = Set::new(half.iter().map(|v| v.to_f32()).collect(), dim, 3);
        let expected = pairs(&mut Reference::new(&mut []), set.rows(), Some(0));
        let got = views::nearest(half.view(), &set.labels).unwrap();
        assert_eq!(got.as_slice().unwrap(), expected, "{rows} {dim}");
        let expected = near(&mut Reference::new(&mut []), set.rows(), 3, None);
        let got = views::top_k(half.view(), half.view(), 3).unwrap();
        assert_eq!(got.as_slice().unwrap(), expected, "{rows} {dim}");
    }
}

/// The set is one that the test is about: the expanded distance in f32 picks others.
#[test]
fn expanded_distances_would_be_wrong() {
    let set = far_from_zero(300, 512);
    let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
    let mut wrong = 0;
    for (i, pair) in pairs(&mut Cpu::new(&mut []), set.rows(), Some(0)).iter().enumerate() {
        let best = if pair.same.precedes(pair.other) { pair.same } else { pair.other };
        let a = set.rows().row(i).unwrap();
        let expanded = |j: usize| {
            let b = set.rows().row(j).unwrap();
            norm(a) + norm(b) - 2.0 * a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()
        };
        let others = (0..set.labels.len()).filter(|&j| j != i);
        let found = others.min_by(|&a, &b| expanded(a).total_cmp(&expanded(b))).unwrap();
        wrong += usize::from(found as u32 != best.index);
    }
    assert!(wrong > 15, "{wrong} of 300");
}

/// Pieces of a bank in any order give what the whole gives.
#[test]
fn pieces_fold_together() {
    for set in [far_from_zero(130, 40), Set::new(vec![0.5; 130 * 3], 3, 2)] {
        let whole = pairs(&mut Reference::new(&mut []), set.rows(), Some(0));
        let places = near(&mut Reference::new(&mut []), set.rows(), 5, Some(0));
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut cpu = Cpu::new(&mut []);
            let mut pairs = vec![Pair::NONE; 130];
            let mut out = vec![Nearest::NONE; 130 * 5];
            for piece in order {
                let (from, to) = [(0, 17), (17, 90), (90, 130)][piece];
                let (queries, bank) = (Bank::Host(set.rows()), Bank::Host(set.part(from, to)));
                cpu.nearest(queries, bank, from as u32, Some(0), &mut pairs).unwrap();
                cpu.top_k(queries, bank, from as u32, Some(0), 5, &mut out).unwrap();
            }
            assert_eq!(pairs, whole);
            assert_eq!(out, places);
        }
    }
}

#[test]
fn the_last_index_is_none() {
    let set = Set::new(values(1, 12), 3, 2);
    let first = u32::MAX - 2;
    let mut expected = [Pair::NONE; 4];
    neighbour::nearest_pair(set.rows(), set.rows(), first, None, &mut expected);
    let (mut got, bank) = ([Pair::NONE; 4], Bank::Host(set.rows()));
    Cpu::new(&mut []).nearest(bank, bank, first, None, &mut got).unwrap();
    assert_eq!(got, expected);
}

#[test]
fn slots_are_searched_too() {
    let set = far_from_zero(40, 16);
    let mut memory = nan(1 << 14);
    let mut cpu = Cpu::new(&mut memory);
    let rows = Slot::new(0, Shape::rows(40, 16), Dtype::F32);
    let labels = Slot::vector(rows.bytes(), 40, Dtype::U16);
    cpu.write(rows, Host::F32(&set.data)).unwrap();
    cpu.write(labels, Host::U16(&set.labels)).unwrap();
    let bank = Bank::Slots { rows, labels };
    let mut got = vec![Pair::NONE; 40];
    cpu.nearest(bank, Bank::Host(set.rows()), 0, Some(0), &mut got).unwrap();
    assert_eq!(got, pairs(&mut Reference::new(&mut []), set.rows(), Some(0)));
    let other = Set::new(values(1, 12), 3, 2);
    assert!(cpu.nearest(bank, Bank::Host(other.rows()), 0, None, &mut got).is_err());
}

/// Where an objective works, and the arena that it takes.
fn place<B: Backend>(backend: &B, objective: Objective, set: &Set) -> (ObjectivePlace, usize) {
    let m = set.labels.len() as u32;
    let mut at = 0;
    let mut slot = |shape: Shape, dtype: Dtype| {
        let slot = Slot::new(at, shape, dtype);
        at += Word::round_up(slot.bytes());
        slot
    };
    let features = slot(Shape::rows(m, set.dim as u32), Dtype::F32);
    let scratch = Word::count(backend.objective_scratch(&objective, features)) as u32;
    let place = ObjectivePlace {
        features,
        labels: slot(Shape::rows(1, m), Dtype::U16),
        pairs: slot(Shape::rows(1, m), Dtype::Pair),
        scratch: slot(Shape::new(scratch, Word::BYTES as u32, 1, 1), Dtype::U8),
        gradient: slot(features.shape, Dtype::F32),
    };
    (place, at)
}

/// What an objective gives for a batch: its score, gradient and pairs.
fn objective<B: Backend>(
    backend: &mut B,
    objective: Objective,
    set: &Set,
) -> (Score, Vec<f32>, Vec<Pair>) {
    let (at, _) = place(backend, objective, set);
    backend.write(at.features, Host::F32(&set.data)).unwrap();
    backend.write(at.labels, Host::U16(&set.labels)).unwrap();
    let score = backend.objective(&objective, &at).unwrap();
    let mut gradient = vec![0.0; set.data.len()];
    backend.read(at.gradient, HostMut::F32(&mut gradient)).unwrap();
    let mut pairs = vec![Pair::NONE; set.labels.len()];
    if objective.pairs() {
        backend.read(at.pairs, HostMut::Pair(&mut pairs)).unwrap();
    }
    (score, gradient, pairs)
}

fn on_cpu(what: Objective, set: &Set, threads: usize) -> (Score, Vec<f32>, Vec<Pair>) {
    let mut memory = nan(place(&Cpu::new(&mut []), what, set).1);
    objective(&mut OnCpu::with_threads(threads).unwrap().open(&mut memory).unwrap(), what, set)
}

fn with(instructions: Instructions, what: Objective, set: &Set) -> (Score, Vec<f32>, Vec<Pair>) {
    let mut memory = nan(place(&Cpu::new(&mut []), what, set).1);
    objective(&mut Cpu::new(&mut memory).with_instructions(instructions), what, set)
}

fn on_reference(what: Objective, set: &Set) -> (Score, Vec<f32>, Vec<Pair>) {
    let mut memory = nan(place(&Reference::new(&mut []), what, set).1);
    objective(&mut Reference::new(&mut memory), what, set)
}

/// Neighbours, values, counts and gradients of the losses over pairs are the reference's, to the
/// bit.
#[test]
fn losses_of_pairs() {
    for loss in [Loss::Triplet, Loss::Margin { margin: 0.2 }, Loss::Margin { margin: -0.5 }] {
        for (name, set) in named() {
            let what = Objective::Separation(loss);
            let (got, expected) = (on_cpu(what, &set, 2), on_reference(what, &set));
            assert_eq!(got.0, expected.0, "{name} {loss:?}");
            assert_eq!(got.2, expected.2, "{name} {loss:?}");
            close(name, &got.1, &expected.1, EXACT);
        }
    }
}

/// The losses of softly chosen neighbours and centres.
fn soft(temperature: f32) -> [Objective; 2] {
    [Loss::SoftNearest { temperature }, Loss::SoftCentre { temperature }].map(Objective::Separation)
}

#[test]
fn the_soft_losses() {
    for temperature in [0.05, 1.0, 100.0, 0.0, -1.0, f32::NAN, 1e-38, f32::INFINITY] {
        for (name, mut set) in named() {
            // Of length 1, as they come, and far apart in units of the temperature.
            for scale in [None, Some(1.0), Some(30.0)] {
                let mut normal = set.data.clone();
                for row in normal.chunks_mut(set.dim.max(1)) {
                    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                    row.iter_mut().for_each(|x| *x *= scale.unwrap_or(1.0 / norm));
                }
                let original = std::mem::replace(&mut set.data, normal);
                for what in soft(temperature) {
                    let (got, expected) = (on_cpu(what, &set, 2), on_reference(what, &set));
                    let name = format!("{name}, {what:?}, {scale:?}");
                    let counts = |score: Score| (score.anchors, score.skipped, score.correct);
                    assert_eq!(counts(got.0), counts(expected.0), "{name}");
                    close(&name, &[got.0.value], &[expected.0.value], DISTANCES);
                    close(&name, &got.1, &expected.1, DISTANCES);
                }
                set.data = original;
            }
        }
    }
}

#[test]
fn other_objectives_are_the_reference_s() {
    let set = Set::new(values(4, 40 * 7), 7, 4);
    for what in [Objective::Statistics, Objective::CrossEntropy { smoothing: 0.1 }] {
        let (got, expected) = (on_cpu(what, &set, 2), on_reference(what, &set));
        assert_eq!(got.0, expected.0);
        if what != Objective::Statistics {
            assert_eq!(got.1, expected.1);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (set, wide) = (far_from_zero(300, 520), far_from_zero(40, 4100));
    for loss in [
        Loss::Triplet,
        Loss::Margin { margin: 0.2 },
        Loss::SoftNearest { temperature: 0.1 },
        Loss::SoftCentre { temperature: 0.1 },
    ] {
        let what = Objective::Separation(loss);
        for set in [&set, &wide] {
            let one = on_cpu(what, set, 1);
            for threads in 2..=4 {
                let many = on_cpu(what, set, threads);
                assert!(many == one, "{loss:?} with {threads} threads");
            }
        }
    }
    let of = |threads| {
        let mut memory = [];
        let mut cpu = OnCpu::with_threads(threads).unwrap().open(&mut memory).unwrap();
        (pairs(&mut cpu, set.rows(), Some(0)), near(&mut cpu, set.rows(), 7, Some(0)))
    };
    let one = of(1);
    for threads in [2, 5] {
        assert!(of(threads) == one, "{threads} threads");
    }
}

/// Products are summed in another order than the reference's distances: the same bits would mean
/// that the reference ran.
#[test]
fn the_soft_losses_are_made_of_products() {
    let set = far_from_zero(100, 300);
    for what in soft(0.5) {
        let (got, expected) = (on_cpu(what, &set, 2), on_reference(what, &set));
        assert_ne!(got.1, expected.1, "{what:?}");
    }
}

/// Either side of blocks of rows, strips of columns, and parts of the features.
#[test]
fn the_soft_losses_of_any_size() {
    for rows in [1, 2, 3, 8, 9, 31, 32, 33, 127, 128, 129, 257] {
        for dim in [1, 15, 63, 64, 65, 130] {
            soft_losses(rows, dim);
        }
    }
    for dim in [255, 257, 1023, 1025, 4097, 9000] {
        soft_losses(12, dim);
        soft_losses(130, dim.min(1025));
    }
}

/// Far clusters in units of the smallest temperatures: sums by weight would not be finite.
#[test]
fn soft_neighbours_of_far_clusters() {
    let near = [0.0, 1024.0, 2048.0];
    let data = near.iter().copied().chain(near.iter().map(|x| x + 1e10)).collect();
    let set = Set { data, dim: 1, labels: vec![0, 1, 0, 0, 1, 0] };
    let [what, _] = soft(1e-30);
    let (got, expected) = (on_cpu(what, &set, 2), on_reference(what, &set));
    assert!(expected.1.iter().all(|g| g.is_finite()) && expected.1.iter().any(|g| *g != 0.0));
    assert_eq!((got.0, got.1), (expected.0, expected.1));
}

fn soft_losses(rows: usize, dim: usize) {
    // About as far apart whatever their number.
    let scale = (dim as f32).sqrt().recip();
    let data = values(dim as u64, rows * dim).iter().map(|x| 3.0 + scale * x).collect();
    let set = Set::new(data, dim, 3);
    // With the last, distances to centres are measured anew where they could be wrong.
    for what in [0.5, 0.025, 5e-4].into_iter().flat_map(soft) {
        let expected = on_reference(what, &set);
        for instructions in Instructions::all() {
            let got = with(instructions, what, &set);
            let name = format!("{what:?}, {rows} x {dim}, {instructions:?}");
            assert_eq!(
                (got.0.anchors, got.0.correct),
                (expected.0.anchors, expected.0.correct),
                "{name}"
            );
            close(&name, &[got.0.value], &[expected.0.value], DISTANCES);
            // As parts of the largest, which may be far below 1.
            let largest = expected.1.iter().fold(0.0f32, |most, g| most.max(g.abs()));
            assert!(largest > 0.0 || expected.0.anchors == 0 || rows <= 3, "{name}");
            let parts = |g: &[f32]| g.iter().map(|g| g / largest.max(1e-30)).collect::<Vec<_>>();
            close(&name, &parts(&got.1), &parts(&expected.1), DISTANCES);
        }
    }
}

/// Values on a small grid, so that ties and duplicates are common, with some NaN and infinity.
fn any_set() -> impl Strategy<Value = Set> {
    let value = prop_oneof![
        30 => (-2i8..=2).prop_map(f32::from),
        1 => Just(f32::NAN),
        1 => Just(f32::INFINITY),
        1 => Just(1e25f32),
    ];
    (1usize..6).prop_flat_map(move |dim| {
        let row = (prop::collection::vec(value.clone(), dim), 0u16..4);
        prop::collection::vec(row, 1..80).prop_map(move |rows| Set {
            data: rows.iter().flat_map(|(x, _)| x.clone()).collect(),
            dim,
            labels: rows.iter().map(|&(_, label)| label).collect(),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ties_and_duplicates(set in any_set(), k in 1usize..9) {
        let mut reference = Reference::new(&mut []);
        let expected = pairs(&mut reference, set.rows(), Some(0));
        let places = near(&mut reference, set.rows(), k, Some(0));
        for instructions in Instructions::all() {
            let mut cpu = Cpu::new(&mut []).with_instructions(instructions);
            prop_assert_eq!(&pairs(&mut cpu, set.rows(), Some(0)), &expected);
            prop_assert_eq!(&near(&mut cpu, set.rows(), k, Some(0)), &places);
        }
        let what = Objective::Separation(Loss::Margin { margin: 0.5 });
        let (got, expected) = (on_cpu(what, &set, 2), on_reference(what, &set));
        prop_assert_eq!(got.0, expected.0);
        close("gradient", &got.1, &expected.1, EXACT);
    }
}

#[test]
fn more_places_than_memory_are_an_error() {
    let rows = ndarray::Array2::<f32>::zeros((2, 3));
    for k in [usize::MAX, usize::MAX / 16] {
        assert!(views::top_k(rows.view(), rows.view(), k).is_err());
    }
}
