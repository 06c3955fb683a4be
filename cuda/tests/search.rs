//! Searches over several tiles, by each of the device's ways: the reference's numbers, bit for bit.

mod common;

use half::f16;
use sepal_conformance::{Cut, Tolerance, read, values, wide, write};
use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{Backend, Bank, Host, HostMut, ObjectivePlace};
use sepal_core::loss::{self, Score};
use sepal_core::neighbour::{Nearest, Pair, Rows, nearest_pair, top_k};
use sepal_core::shape::Shape;
use sepal_core::stage::{Loss, Objective};
use sepal_cuda::{Cuda, OnCuda};

use common::{BOTH, counts, on_each};
use sepal_stand_in::Class;

fn backend(device: &OnCuda, bytes: usize) -> Cuda {
    device.backend(bytes).expect("the device has the memory")
}

struct Set {
    data: Vec<f32>,
    dim: usize,
    labels: Vec<u16>,
}

impl Set {
    fn new(data: Vec<f32>, dim: usize) -> Self {
        let labels = (0..data.len() / dim).map(|i| (i * 5 / 3) as u16 % 3).collect();
        Self { data, dim, labels }
    }

    fn random(seed: u64, rows: usize, dim: usize) -> Self {
        Self::new(values(seed, rows * dim), dim)
    }

    fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.data.iter_mut().for_each(|x| *x = f(*x));
        self
    }

    fn rows(&self) -> Rows<'_> {
        self.part(0, self.labels.len())
    }

    fn part(&self, from: usize, to: usize) -> Rows<'_> {
        let data = &self.data[from * self.dim..to * self.dim];
        Rows { data, dim: self.dim, labels: &self.labels[from..to] }
    }
}

/// The nearest of each query, by the device and by the reference.
#[track_caller]
fn check(
    backend: &mut Cuda,
    queries: Rows<'_>,
    bank: Rows<'_>,
    (first, skip): (u32, Option<u32>),
) -> Vec<Pair> {
    let mut expected = vec![Pair::NONE; queries.len()];
    let mut got = expected.clone();
    nearest_pair(queries, bank, first, skip, &mut expected);
    backend
        .nearest(Bank::Host(queries), Bank::Host(bank), first, skip, &mut got)
        .expect("the search runs");
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(got, expected, "query {i} of {}", queries.len());
    }
    got
}

/// Two tiles and a remainder in every dimension, of queries, of the bank and of features: fewer
/// features than a step has, a multiple of it, and more steps than are in flight.
#[test]
fn shapes() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        for (m, n, dim) in [(131, 140, 5), (300, 290, 37), (290, 300, 64), (257, 257, 99)] {
            let (queries, bank) = (Set::random(1, m, dim), Set::random(2, n, dim));
            check(b, queries.rows(), bank.rows(), (0, None));
            check(b, queries.rows(), bank.rows(), (7, Some(100)));
        }
    });
}

/// A set in itself, its first index anywhere.
#[test]
fn itself() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        let set = Set::random(3, 290, 67);
        check(b, set.rows(), set.rows(), (0, Some(0)));
        check(b, set.rows(), set.rows(), (1000, Some(1000)));
        // Every label is alone or there is no other.
        let labels: Vec<u16> = (0..290).collect();
        check(b, Rows { labels: &labels, ..set.rows() }, set.rows(), (0, Some(0)));
        let alone = Rows { labels: &labels, ..set.rows() };
        let pairs = check(b, alone, alone, (0, Some(0)));
        assert!(pairs.iter().all(|pair| !pair.same.exists() && pair.other.exists()));
        // Fewer places than rows.
        let mut some = vec![Pair::NONE; 260];
        b.nearest(Bank::Host(set.rows()), Bank::Host(set.rows()), 0, Some(0), &mut some)
            .expect("the search runs");
        let mut expected = vec![Pair::NONE; 260];
        nearest_pair(set.rows(), set.rows(), 0, Some(0), &mut expected);
        assert_eq!(some, expected);
    });
}

/// Each pair of tiles is taken by one of its two rows, of which there are odd numbers and even ones; a
/// set whose rows may be their own neighbours, or whose queries have other labels, is not symmetric.
#[test]
fn itself_in_tiles() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        for n in [1, 2, 63, 64, 65, 128, 129, 256, 257, 385, 530] {
            let set = Set::random(n as u64, n, 35);
            check(b, set.rows(), set.rows(), (0, Some(0)));
            check(b, set.rows(), set.rows(), (5, Some(5)));
        }
        let set = Set::random(20, 300, 35);
        check(b, set.rows(), set.rows(), (0, None));
        check(b, set.rows(), set.rows(), (0, Some(3)));
        check(b, set.rows(), set.rows(), (u32::MAX - 200, Some(u32::MAX - 200)));
        let labels: Vec<u16> = (0..300).map(|i| i % 2).collect();
        let mut cut = Cut::default();
        let rows = cut.slot(Shape::rows(300, 35), Dtype::F32);
        let places = [0, 1].map(|_| cut.slot(Shape::rows(1, 300), Dtype::U16));
        let b = &mut backend(device, cut.bytes);
        write(b, rows, &set.data);
        let other = Rows { labels: &labels, ..set.rows() };
        for (slot, labels) in places.into_iter().zip([&set.labels, &labels]) {
            b.write(slot, Host::U16(labels)).expect("the slot holds labels");
        }
        let [mut got, mut expected] = [(); 2].map(|()| vec![Pair::NONE; 300]);
        let [queries, bank] = places.map(|labels| Bank::Slots { rows, labels });
        b.nearest(queries, bank, 0, Some(0), &mut got).expect("the search runs");
        nearest_pair(set.rows(), other, 0, Some(0), &mut expected);
        assert_eq!(got, expected);
    });
}

/// Of a set in itself each distance is computed once: about half of what another set takes.
#[test]
fn itself_takes_half() {
    let set = Set::random(21, 128 * 7 - 5, 33);
    let copy = Set { data: set.data.clone(), labels: set.labels.clone(), ..set };
    for (capability, class) in [(75, Class::Float), (80, Class::Mma)] {
        let search = |bank: &Set| {
            counts(capability, |device| {
                check(&mut backend(device, 0), set.rows(), bank.rows(), (0, Some(0)));
            })
        };
        let (Some(once), Some(twice)) = (search(&set), search(&copy)) else { return };
        // Seven tiles of products a side, fourteen of direct distances.
        let (tiles, all) = if capability == 75 { (14 * 15 / 2, 14 * 14) } else { (7 * 4, 7 * 7) };
        let [once, twice] = [once, twice].map(|counts| counts.of(class) as f64);
        let share = once / twice;
        let expected = f64::from(tiles) / f64::from(all);
        assert!((share - expected).abs() < 0.02, "{class:?}: {share}, not {expected}");
    }
}

/// Distances that tie, exactly and within rounding: many are candidates, more than are noted.
#[test]
fn ties() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        let lattice = Set::random(4, 300, 33).map(|x| x.round() * 0.5);
        check(b, lattice.rows(), lattice.rows(), (0, Some(0)));
        let same = Set::random(4, 270, 33).map(|_| 0.7);
        check(b, same.rows(), same.rows(), (0, Some(0)));
        let mut twice = Set::random(5, 150, 48);
        twice.data.extend_from_within(..);
        let twice = Set::new(twice.data, 48);
        check(b, twice.rows(), twice.rows(), (0, Some(0)));
    });
}

/// Means far from 0, where products without a shift would cancel; rows far from each other.
#[test]
fn scales() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        let mean = Set::random(6, 260, 70).map(|x| 100.0 + 0.05 * x);
        check(b, mean.rows(), mean.rows(), (0, Some(0)));
        let small = Set::random(6, 260, 40).map(|x| 1e-20 * x);
        check(b, small.rows(), small.rows(), (0, Some(0)));
        let wide = Set::random(7, 260, 40).map(|x| (20.0 * x).exp());
        check(b, wide.rows(), wide.rows(), (0, Some(0)));
    });
}

/// NaN is nobody's neighbour; rows whose squares are infinite, or nearly, are far and found.
#[test]
fn not_finite() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        let mut set = Set::random(8, 270, 36);
        for (i, x) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 3e18, 1e19]
            .into_iter()
            .enumerate()
        {
            set.data[36 * (7 + 40 * i) + i] = x;
        }
        set.labels[7 + 40] = 9;
        check(b, set.rows(), set.rows(), (0, Some(0)));
        let far = Set::random(9, 260, 36).map(|x| 1e30 * x);
        check(b, far.rows(), far.rows(), (0, Some(0)));
        let none = Set::random(9, 260, 36).map(|_| f32::NAN);
        check(b, none.rows(), set.rows(), (0, None));
        check(b, set.rows(), none.rows(), (0, None));
    });
}

/// Pieces large and small, in any order, come to what the whole does.
#[test]
fn pieces() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        for set in [Set::random(10, 330, 40), Set::random(11, 330, 40).map(|x| x.round())] {
            let rows = Bank::Host(set.rows());
            let whole = check(b, set.rows(), set.rows(), (0, Some(0)));
            for cuts in [[(0, 300), (300, 330)], [(200, 330), (0, 200)]] {
                let mut got = vec![Pair::NONE; whole.len()];
                for (from, to) in cuts {
                    let bank = Bank::Host(set.part(from, to));
                    b.nearest(rows, bank, from as u32, Some(0), &mut got).expect("the search runs");
                }
                assert_eq!(got, whole);
            }
        }
    });
}

/// Rows that lie in slots, padded by what lies beside them.
#[test]
fn slots() {
    on_each(BOTH, |device| {
        let set = Set::random(12, 275, 35);
        let mut cut = Cut::default();
        let rows = cut.slot(Shape::rows(275, 35), Dtype::F32);
        let labels = cut.slot(Shape::rows(1, 275), Dtype::U16);
        let b = &mut backend(device, cut.bytes);
        write(b, rows, &set.data);
        b.write(labels, Host::U16(&set.labels)).expect("the slot holds labels");
        let mut expected = vec![Pair::NONE; 275];
        nearest_pair(set.rows(), set.rows(), 0, Some(0), &mut expected);
        for bank in [Bank::Slots { rows, labels }, Bank::Host(set.rows())] {
            let mut got = vec![Pair::NONE; 275];
            b.nearest(Bank::Slots { rows, labels }, bank, 0, Some(0), &mut got).expect("it runs");
            assert_eq!(got, expected);
        }
    });
}

/// Rows in half precision, more of them than threads that widen them, by each of the ways.
#[test]
fn half_precision() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        let set = Set::random(13, 2101, 33).map(|x| f16::from_f32(5.0 + x).to_f32());
        let half: Vec<f16> = set.data.iter().map(|&x| f16::from_f32(x)).collect();
        let rows = Rows { data: &half[..], dim: 33, labels: &set.labels };
        let few = Rows { data: &half[..33 * 140], dim: 33, labels: &set.labels[..140] };
        for (queries, wide) in [(few, set.part(0, 140)), (rows, set.rows())] {
            let mut expected = vec![Pair::NONE; queries.len()];
            b.nearest(Bank::Host(wide), Bank::Host(set.rows()), 0, Some(0), &mut expected)
                .expect("the search runs");
            let sides = [
                (Bank::Half(queries), Bank::Half(rows)),
                (Bank::Host(wide), Bank::Half(rows)),
                (Bank::Half(queries), Bank::Host(set.rows())),
            ];
            for (queries, bank) in sides {
                let mut got = vec![Pair::NONE; expected.len()];
                b.nearest(queries, bank, 0, Some(0), &mut got).expect("the search runs");
                assert_eq!(got, expected);
            }
        }
    });
}

/// The k nearest: few, more than a warp, more than there are rows, and in pieces.
#[test]
fn nearest_k() {
    on_each(BOTH, |device| {
        let b = &mut backend(device, 0);
        let (queries, bank) = (Set::random(13, 70, 19), Set::random(14, 131, 19));
        let lattice = Set::random(15, 90, 3).map(|x| (2.0 * x).round());
        for (queries, bank, skip) in [
            (&queries, bank.rows(), None),
            (&queries, bank.rows(), Some(30)),
            (&lattice, lattice.rows(), Some(0)),
        ] {
            for (k, m) in [(1, 70), (5, 70), (40, 9), (150, 3)] {
                let queries = queries.part(0, m);
                let mut expected = vec![Nearest::NONE; queries.len() * k];
                let mut got = expected.clone();
                top_k(queries, bank, 0, skip, k, &mut expected);
                b.top_k(Bank::Host(queries), Bank::Host(bank), 0, skip, k, &mut got)
                    .expect("the search runs");
                assert_eq!(got, expected, "{k} nearest");
            }
        }
        let mut expected = vec![Nearest::NONE; 70 * 6];
        let mut got = expected.clone();
        top_k(queries.rows(), bank.rows(), 0, None, 6, &mut expected);
        for (from, to) in [(64, 131), (0, 64)] {
            let part = Bank::Host(bank.part(from, to));
            b.top_k(Bank::Host(queries.rows()), part, from as u32, None, 6, &mut got)
                .expect("the search runs");
        }
        assert_eq!(got, expected);
    });
}

/// A loss that fills a gradient.
type Reference<'a> = dyn Fn(&mut [f64]) -> Score<f64> + 'a;

/// Batches of more rows and features than a block has threads.
#[test]
fn large_batches() {
    const N: u32 = 259;
    const D: u32 = 270;
    let set = Set::random(16, N as usize, D as usize).map(|x| x / (D as f32).sqrt());
    let (x, dim, labels) = (wide(&set.data), D as usize, &set.labels[..]);
    let mut pairs = vec![Pair::<f64>::NONE; N as usize];
    let rows = Rows { data: &x[..], dim, labels };
    nearest_pair(rows, rows, 0, Some(0), &mut pairs);
    let cases: [(Objective, &Reference<'_>); 3] = [
        (Objective::Separation(Loss::Margin { margin: 0.1 }), &|g| {
            loss::margin(&x, dim, &pairs, f64::from(0.1f32), Some(g))
        }),
        (Objective::Separation(Loss::SoftNearest { temperature: 0.25 }), &|g| {
            loss::soft_nearest(&x, dim, labels, 0.25, &mut [0.0; N as usize], Some(g))
        }),
        (Objective::CrossEntropy { smoothing: 0.1 }, &|g| {
            loss::cross_entropy(&x, dim, labels, f64::from(0.1f32), Some(g))
        }),
    ];
    on_each(&[80], |device| {
        for (objective, reference) in cases {
            let what = format!("{objective:?}");
            let mut cut = Cut::default();
            let features = cut.slot(Shape::rows(N, D), Dtype::F32);
            let places = cut.slot(Shape::rows(1, N), Dtype::U16);
            let pair_slot = Slot::vector(cut.bytes, N, Dtype::Pair);
            cut.bytes += pair_slot.bytes();
            let gradient = cut.slot(Shape::rows(N, D), Dtype::F32);
            let bytes = backend(device, 0).objective_scratch(&objective, features);
            let scratch = cut.slot(Shape::rows(1, bytes as u32), Dtype::U8);
            let b = &mut backend(device, cut.bytes);
            write(b, features, &set.data);
            b.write(places, Host::U16(labels)).expect("the slot holds labels");
            let at =
                ObjectivePlace { features, labels: places, pairs: pair_slot, scratch, gradient };
            let score = b.objective(&objective, &at).expect("the objective runs");
            let mut expected = vec![f64::NAN; x.len()];
            let Score { value, anchors, skipped, correct } = reference(&mut expected);
            let counts = (score.anchors, score.skipped, score.correct);
            assert_eq!(counts, (anchors, skipped, correct), "{what}");
            Tolerance::SUM.check(&what, &[score.value], &[value]);
            Tolerance::NORMALISED.check(&what, &read(b, gradient), &expected);
            if objective.pairs() {
                let mut got = vec![Pair::NONE; N as usize];
                b.read(pair_slot, HostMut::Pair(&mut got)).expect("the slot holds pairs");
                for (got, expected) in got.iter().zip(&pairs) {
                    assert_eq!(got.same.index, expected.same.index, "{what}");
                    assert_eq!(got.other.index, expected.other.index, "{what}");
                }
            }
        }
    });
}

/// Large searches run as products where there are tensor cores, and little of them directly; small
/// ones and older devices run without.
#[test]
fn tensor_cores_search_what_is_large() {
    let search = |capability, rows| {
        let set = Set::random(9, rows, 67);
        counts(capability, |device| {
            check(&mut backend(device, 0), set.rows(), set.rows(), (0, Some(0)));
        })
    };
    let Some(products) = search(80, 290) else { return };
    assert!(products.of(Class::Mma) > 0 && products.of(Class::Copy) > 0, "{products:?}");
    let direct = search(75, 290).expect("it is the stand-in");
    assert_eq!(direct.of(Class::Mma), 0);
    let floats = [products, direct].map(|counts| counts.of(Class::Float));
    assert!(floats[0] * 4 < floats[1], "{floats:?}");
    assert_eq!(search(80, 90).map(|counts| counts.of(Class::Mma)), Some(0));
}
