//! Nearest neighbours: self search and rectangular, whole and in pieces, from slots and from the
//! host's memory.

use half::f16;
use sepal_core::arena::{ArenaError, Dtype, Slot};
use sepal_core::backend::{Backend, Bank, Host};
use sepal_core::error::Error;
use sepal_core::neighbour::{Nearest, Pair, Rows, nearest_pair, top_k};
use sepal_core::shape::Shape;

use crate::{Cut, Tolerance, With, run, values, wide, write};

struct Set {
    data: Vec<f32>,
    dim: usize,
    labels: Vec<u16>,
}

impl Set {
    fn new(data: Vec<f32>, dim: usize, classes: u16) -> Self {
        let n = data.len() / dim;
        let labels = (0..n).map(|i| (i * 5 / 3) as u16 % classes).collect();
        Self { data, dim, labels }
    }

    fn random(seed: u64, n: usize, dim: usize) -> Self {
        Self::new(values(seed, n * dim), dim, 3)
    }

    fn rows(&self) -> Rows<'_> {
        Rows { data: &self.data, dim: self.dim, labels: &self.labels }
    }

    fn part(&self, from: usize, to: usize) -> Rows<'_> {
        let data = &self.data[from * self.dim..to * self.dim];
        Rows { data, dim: self.dim, labels: &self.labels[from..to] }
    }
}

/// Where a set lies for a search.
#[derive(Clone, Copy, Debug)]
enum Lies {
    Host,
    Slots,
}

/// The slots of a set, where it needs some.
fn place(cut: &mut Cut, set: &Set, lies: Lies) -> Option<(Slot, Slot)> {
    match lies {
        Lies::Host => None,
        Lies::Slots => {
            let n = set.labels.len() as u32;
            let rows = cut.slot(Shape::rows(n, set.dim as u32), Dtype::F32);
            Some((rows, cut.slot(Shape::rows(1, n), Dtype::U16)))
        }
    }
}

fn bank<'a>(backend: &mut dyn Backend, set: &'a Set, slots: Option<(Slot, Slot)>) -> Bank<'a> {
    match slots {
        None => Bank::Host(set.rows()),
        Some((rows, labels)) => {
            write(backend, rows, &set.data);
            backend.write(labels, Host::U16(&set.labels)).expect("the slot holds labels");
            Bank::Slots { rows, labels }
        }
    }
}

/// One neighbour: the same row, or another whose distance is the same within the tolerance.
#[track_caller]
fn same(what: &str, got: Nearest, expected: Nearest<f64>, distance: impl Fn(u32) -> f64) {
    assert!(
        Tolerance::DISTANCE.agree(f64::from(got.dist2), expected.dist2),
        "{what}: distance {}, expected {}",
        got.dist2,
        expected.dist2
    );
    if got.index != expected.index {
        assert!(got.exists() && expected.exists(), "{what}: {got:?}, expected {expected:?}");
        let near = Tolerance::DISTANCE.agree(distance(got.index), expected.dist2);
        // Distances that tie in f64 tie in f32: the index decides.
        let tie = distance(got.index) == expected.dist2;
        assert!(near && !tie, "{what}: row {}, expected {}", got.index, expected.index);
    }
}

/// Both searches, with both sets in both places.
fn check(with: With, queries: &Set, of: &Set, skip: Option<u32>) {
    const K: usize = 4;
    let dim = of.dim;
    let (wide_queries, wide_of) = (wide(&queries.data), wide(&of.data));
    let mut pairs = vec![Pair::NONE; queries.labels.len()];
    let mut nearest = vec![Nearest::NONE; K * queries.labels.len()];
    let q = Rows { data: &wide_queries[..], dim, labels: &queries.labels };
    let b = Rows { data: &wide_of[..], dim, labels: &of.labels };
    nearest_pair(q, b, 0, skip, &mut pairs);
    top_k(q, b, 0, skip, K, &mut nearest);
    let distance = |i: usize, j: u32| {
        sepal_core::neighbour::distance2(
            q.row(i).expect("a query"),
            b.row(j as usize).expect("a row of the bank"),
        )
    };
    for lies in [(Lies::Host, Lies::Host), (Lies::Slots, Lies::Slots), (Lies::Slots, Lies::Host)] {
        let mut cut = Cut::default();
        let (at_queries, at_bank) = (place(&mut cut, queries, lies.0), place(&mut cut, of, lies.1));
        run(with, cut.bytes, |backend| {
            let queries_bank = bank(backend, queries, at_queries);
            let bank = bank(backend, of, at_bank);
            let mut got = vec![Pair::NONE; pairs.len()];
            backend.nearest(queries_bank, bank, 0, skip, &mut got).expect("the search runs");
            for (i, (got, expected)) in got.iter().zip(&pairs).enumerate() {
                let what = format!("query {i} of {}, {lies:?}", pairs.len());
                same(&what, got.same, expected.same, |j| distance(i, j));
                same(&what, got.other, expected.other, |j| distance(i, j));
            }
            let mut got = vec![Nearest::NONE; nearest.len()];
            backend.top_k(queries_bank, bank, 0, skip, K, &mut got).expect("the search runs");
            for (at, (&got, &expected)) in got.iter().zip(&nearest).enumerate() {
                let (i, place) = (at / K, at % K);
                same(&format!("place {place} of query {i}"), got, expected, |j| distance(i, j));
            }
        });
    }
}

/// A set against itself.
fn check_self(with: With, set: &Set) {
    check(with, set, set, Some(0));
}

/// Random rows of many sizes.
pub fn random(with: With) {
    for (n, dim) in [(2, 1), (5, 3), (16, 8), (33, 17), (64, 64), (100, 5)] {
        check_self(with, &Set::random(n as u64, n, dim));
    }
}

/// One row has no neighbour, and no rows have none either.
pub fn single(with: With) {
    check_self(with, &Set::random(1, 1, 3));
    let (one, none) = (Set::random(1, 1, 3), Set { data: vec![], dim: 3, labels: vec![] });
    check(with, &one, &one, None);
    run(with, 0, |b| {
        let mut pairs = [Pair::NONE];
        b.nearest(Bank::Host(one.rows()), Bank::Host(none.rows()), 0, None, &mut pairs)
            .expect("an empty bank is a bank");
        assert_eq!(pairs, [Pair::NONE]);
        b.nearest(Bank::Host(none.rows()), Bank::Host(one.rows()), 0, None, &mut [])
            .expect("no queries are queries");
    });
}

/// Points of a lattice tie exactly: the lowest index wins.
pub fn lattice(with: With) {
    for dim in [1, 2, 3] {
        let data = values(5, 80 * dim).into_iter().map(|x| (x * 2.0).round()).collect();
        check_self(with, &Set::new(data, dim, 3));
    }
}

/// The same row many times: only the index keeps a row from itself.
pub fn duplicates(with: With) {
    check_self(with, &Set::new(vec![0.7; 20 * 3], 3, 2));
    let mut data = values(6, 20 * 5);
    data.extend_from_within(..);
    check_self(with, &Set::new(data, 5, 4));
}

/// Features with a mean far from 0, as after a ReLU: the expanded form of the distance picks the
/// wrong neighbours here.
pub fn large_mean(with: With) {
    let spread = 0.05 * 3f32.sqrt();
    let data: Vec<f32> = values(7, 64 * 512).into_iter().map(|x| 10.0 + spread * x).collect();
    let set = Set::new(data, 512, 4);
    check_self(with, &set);
    // The form that fails, to show that the data are hard.
    let mut wrong = 0;
    let norm: Vec<f32> = set.data.chunks(512).map(|x| x.iter().map(|x| x * x).sum()).collect();
    for i in 0..64 {
        let row = |i: usize| set.rows().row(i).expect("a row");
        let expanded = |j: usize| {
            norm[i] + norm[j] - 2.0 * row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum::<f32>()
        };
        let direct = |j: usize| sepal_core::neighbour::distance2(row(i), row(j));
        let others = || (0..64).filter(|&j| j != i);
        let by = |d: &dyn Fn(usize) -> f32| others().min_by(|&a, &b| d(a).total_cmp(&d(b)));
        wrong += usize::from(by(&expanded) != by(&direct));
    }
    assert!(wrong > 0, "the data would not show a bad distance");
}

/// NaN is nobody's neighbour, and has none; infinities are far from all.
pub fn nan(with: With) {
    let mut set = Set::random(8, 24, 4);
    set.data[5] = f32::NAN;
    set.data[4 * 9] = f32::NAN;
    check_self(with, &set);
    set.data[4 * 13 + 2] = f32::INFINITY;
    check_self(with, &set);
    let all = Set::new(vec![f32::NAN; 12], 3, 2);
    check_self(with, &all);
}

/// Queries against a bank, with nothing excluded and with an offset.
pub fn rectangular(with: With) {
    for (m, n, dim) in [(1, 9, 3), (9, 1, 3), (7, 40, 16), (40, 7, 5)] {
        let (queries, bank) = (Set::random(1, m, dim), Set::random(2, n, dim));
        check(with, &queries, &bank, None);
        check(with, &queries, &bank, Some(2));
    }
    // The queries are rows 3.. of the bank.
    let bank = Set::random(3, 20, 4);
    let part = bank.part(3, 11);
    let queries = Set { data: part.data.into(), dim: 4, labels: part.labels.into() };
    check(with, &queries, &bank, Some(3));
}

/// Rows in half precision give what their widened numbers give, bit for bit, whichever of the sides
/// is stored so.
pub fn half_precision(with: With) {
    const K: usize = 4;
    for (m, n, dim) in [(1, 1, 1), (9, 9, 3), (33, 40, 17), (70, 66, 5)] {
        let narrow = |seed, rows: usize| -> Vec<f16> {
            values(seed, rows * dim).into_iter().map(|x| f16::from_f32(3.0 + x)).collect()
        };
        let narrow = [narrow(1, m), narrow(2, n)].map(|mut features| {
            let odd = [f16::NAN, f16::INFINITY, f16::MAX, f16::from_bits(1), -f16::ZERO];
            if features.len() > 2 * odd.len() * dim {
                features.iter_mut().step_by(2 * dim).zip(odd).for_each(|(x, odd)| *x = odd);
            }
            features
        });
        let wide = narrow
            .each_ref()
            .map(|features| Set::new(features.iter().map(|x| x.to_f32()).collect(), dim, 3));
        let [wide_queries, wide_bank] = wide.each_ref().map(|set| Bank::Host(set.rows()));
        let [queries, bank] = [0, 1]
            .map(|at| Bank::Half(Rows { data: &narrow[at][..], dim, labels: &wide[at].labels }));
        let search = |queries, bank, skip| {
            let mut pairs = vec![Pair::NONE; m];
            let mut places = vec![Nearest::NONE; m * K];
            run(with, 0, |b| {
                b.nearest(queries, bank, 0, skip, &mut pairs).expect("the search runs");
                b.top_k(queries, bank, 0, skip, K, &mut places).expect("the search runs");
            });
            (pairs, places)
        };
        let expected = search(wide_queries, wide_bank, Some(2));
        for (queries, bank) in [(queries, bank), (wide_queries, bank), (queries, wide_bank)] {
            assert_eq!(search(queries, bank, Some(2)), expected, "({m}, {n}, {dim})");
        }
        let expected = search(wide_queries, wide_queries, Some(0));
        assert_eq!(search(queries, queries, Some(0)), expected, "{m} in themselves");
        let short = Bank::Half(Rows { data: &narrow[1][1..], dim, labels: &wide[1].labels });
        let length = ArenaError::Length { slot: n * dim, host: n * dim - 1 };
        run(with, 0, |b| {
            let mut pairs = vec![Pair::NONE; m];
            let found = b.nearest(queries, short, 0, None, &mut pairs);
            assert_eq!(found, Err(Error::Arena(length)));
        });
    }
}

/// A bank that is cut anywhere gives the same neighbours, bit for bit.
pub fn in_pieces(with: With) {
    const K: usize = 3;
    let data = values(9, 50 * 2).into_iter().map(|x| (x * 4.0).round() / 4.0).collect();
    let lattice = Set::new(data, 2, 3);
    for set in [Set::random(4, 50, 7), lattice] {
        run(with, 0, |b| {
            let queries = Bank::Host(set.rows());
            let mut pairs = vec![Pair::NONE; 50];
            let mut nearest = vec![Nearest::NONE; 50 * K];
            b.nearest(queries, queries, 0, Some(0), &mut pairs).expect("the search runs");
            b.top_k(queries, queries, 0, Some(0), K, &mut nearest).expect("the search runs");
            for cuts in [&[0, 50][..], &[0, 1, 2, 50], &[0, 17, 33, 49, 50], &[0, 25, 25, 50]] {
                let mut pieces: Vec<_> = cuts.windows(2).collect();
                for _ in 0..2 {
                    let mut got = vec![Pair::NONE; 50];
                    let mut places = vec![Nearest::NONE; 50 * K];
                    for piece in &pieces {
                        let bank = Bank::Host(set.part(piece[0], piece[1]));
                        let first = piece[0] as u32;
                        b.nearest(queries, bank, first, Some(0), &mut got).expect("runs");
                        b.top_k(queries, bank, first, Some(0), K, &mut places).expect("runs");
                    }
                    assert_eq!(got, pairs, "cut at {cuts:?}");
                    assert_eq!(places, nearest, "cut at {cuts:?}");
                    // The order of the pieces does not matter either.
                    pieces.reverse();
                }
            }
        });
    }
}

/// Rows without dimensions are all the same point.
pub fn without_dimensions(with: With) {
    let labels = [0, 1, 0];
    let rows = Rows { data: &[][..], dim: 0, labels: &labels };
    run(with, 0, |b| {
        let mut pairs = [Pair::NONE; 3];
        b.nearest(Bank::Host(rows), Bank::Host(rows), 0, Some(0), &mut pairs).expect("runs");
        let indices = pairs.map(|p| (p.same.index, p.other.index));
        assert_eq!(indices, [(2, 1), (u32::MAX, 0), (0, 1)]);
        assert_eq!(pairs[0].same.dist2, 0.0);
    });
}

/// Places without a neighbour come last and are empty; no places are no work.
pub fn more_places_than_rows(with: With) {
    let set = Set::random(5, 3, 2);
    run(with, 0, |b| {
        let rows = Bank::Host(set.rows());
        let mut out = [Nearest::NONE; 15];
        b.top_k(rows, rows, 0, Some(0), 5, &mut out).expect("the search runs");
        for places in out.chunks(5) {
            assert!(places[..2].iter().all(|n| n.exists()), "{places:?}");
            assert!(places[2..].iter().all(|n| *n == Nearest::NONE), "{places:?}");
        }
        b.top_k(rows, rows, 0, Some(0), 0, &mut []).expect("no places are no work");
    });
}

/// Rows of other lengths are an error that names both.
pub fn other_dimensions(with: With) {
    let (queries, bank) = (Set::random(1, 4, 3), Set::random(2, 4, 2));
    run(with, 0, |b| {
        let (queries, bank) = (Bank::Host(queries.rows()), Bank::Host(bank.rows()));
        let length = Err(Error::Arena(ArenaError::Length { slot: 2, host: 3 }));
        assert_eq!(b.nearest(queries, bank, 0, None, &mut [Pair::NONE; 4]), length);
        assert_eq!(b.top_k(queries, bank, 0, None, 1, &mut [Nearest::NONE; 4]), length);
    });
}
