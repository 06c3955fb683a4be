//! The SI family on real features, against scikit-learn: `tests/golden/si_sklearn.py`.

use sepal_core::neighbour::{Nearest, Pair, Rows, nearest_pair, top_k};
use sepal_core::real::Real;
use sepal_core::si::{self, Neighbours, Tally};

const FEATURES: &str = include_str!("../../tests/golden/si_digits.csv");
const NEAREST: &str = include_str!("../../tests/golden/si_digits_nearest.csv");
const EXPECTED: &str = include_str!("../../tests/golden/si_digits_expected.csv");

const ORDER: usize = 3;
/// Rows from here on are queries of the cross form, the rows before are its bank.
const BANK: usize = 200;
const CLASSES: usize = 11;

fn numbers(line: &str) -> Vec<u32> {
    line.split(',').map(|number| number.parse().unwrap()).collect()
}

/// The count and of how many.
fn expected(name: &str) -> (f64, u32) {
    let line = EXPECTED.lines().find(|line| line.split(',').next() == Some(name)).unwrap();
    let (count, total) = line[name.len() + 1..].split_once(',').unwrap();
    (count.parse().unwrap(), total.parse().unwrap())
}

#[track_caller]
fn check(name: &str, tally: Tally) {
    assert_eq!((tally.sum, tally.anchors), expected(name), "{name}");
    assert_eq!(tally.skipped, 0, "{name}");
}

/// Integers up to 64 * 256 are exact in both types, so that equal distances are equal.
fn family<T: Real>() {
    let rows: Vec<_> = FEATURES.lines().map(numbers).collect();
    let dim = rows[0].len() - 1;
    let labels: Vec<_> = rows.iter().map(|row| row[dim] as u16).collect();
    let data: Vec<_> =
        rows.iter().flat_map(|row| &row[..dim]).map(|&x| T::from_f64(f64::from(x))).collect();
    let rows = Rows { data: &data, dim, labels: &labels };
    assert_eq!((rows.len(), dim), (300, 64));

    let mut pairs = vec![Pair::NONE; rows.len()];
    nearest_pair(rows, rows, 0, Some(0), &mut pairs);
    check("si", si::si(&pairs));
    let mut classes = [Tally::default(); CLASSES];
    si::per_class(&pairs, &labels, &mut classes);
    for (class, &tally) in classes.iter().enumerate() {
        check(&format!("class {class}"), tally);
    }

    let mut places = vec![Nearest::NONE; rows.len() * ORDER];
    top_k(rows, rows, 0, Some(0), ORDER, &mut places);
    let indices: Vec<_> = places.iter().map(|place| place.index).collect();
    assert_eq!(indices, NEAREST.lines().flat_map(numbers).collect::<Vec<_>>());

    let neighbours = Neighbours { places: &places, k: ORDER, labels: &labels, bank: &labels };
    check("high order 3", si::high_order(neighbours, ORDER));
    check("anti 3", si::anti(neighbours, ORDER));
    let soft = si::soft(neighbours, ORDER);
    let (count, total) = expected("soft 3");
    assert_eq!((soft.sum, soft.anchors), (count / ORDER as f64, total / ORDER as u32));

    let (mut means, mut counts) = (vec![T::ZERO; CLASSES * dim], [0; CLASSES]);
    si::centres(rows, &mut means, &mut counts);
    check("centre", si::centre_based(rows, &means, &counts));

    let bank = Rows { data: &data[..BANK * dim], dim, labels: &labels[..BANK] };
    let queries = Rows { data: &data[BANK * dim..], dim, labels: &labels[BANK..] };
    check("cross", si::cross(queries, bank));
}

#[test]
fn scikit_learn_gives_the_same_in_f32() {
    family::<f32>();
}

#[test]
fn scikit_learn_gives_the_same_in_f64() {
    family::<f64>();
}
