//! Data sets.

use std::fs;

use sepal::models::data::csv::{Column, Header, Options, Target};
use sepal::models::data::{self, DataError, Dataset, Images};
use sepal::shape::Shape;

use super::file::{folder, put};

/// An error says where it is, and a data set is one.
fn sound(result: Result<Dataset, DataError>) {
    match result {
        Ok(set) => {
            let elements = set.shape().len().expect("a shape that fits") as usize;
            let stored = match set.samples() {
                data::Samples::U8(values) => values.len(),
                data::Samples::F32(values) => {
                    assert!(values.iter().all(|value| value.is_finite()));
                    values.len()
                }
            };
            assert_eq!(stored, elements * set.len() as usize);
            assert!(set.len() > 0 && set.labels().len() == set.len() as usize);
            assert!(set.labels().iter().all(|&label| usize::from(label) < set.names().len()));
        }
        Err(error) => assert!(error.to_string().contains(&folder().display().to_string())),
    }
}

/// IDX: as images with labels that fit, and as labels.
pub fn idx(bytes: &[u8]) {
    let path = put("images", bytes);
    let Ok(read) = data::idx::read(&path) else {
        return sound(data::idx::load(&path, &path, &[]));
    };
    let product: u64 = read.dims.iter().map(|&dim| u64::from(dim)).product();
    assert_eq!(product, read.data.len() as u64);
    let count = read.dims.first().copied().unwrap_or(0).min(1 << 16);
    let mut labels = vec![0, 0, 8, 1];
    labels.extend(count.to_be_bytes());
    labels.extend((0..count).map(|label| (label % 3) as u8));
    sound(data::idx::load(&path, &put("labels", &labels), &[]));
    sound(data::idx::load(&path, &path, &["one".into()]));
}

/// CIFAR-10 and CIFAR-100.
pub fn cifar(bytes: &[u8]) {
    let path = put("batch.bin", bytes);
    sound(data::cifar::load10(&[&path]));
    sound(data::cifar::load10(&[&path, &path]));
    for label in [data::cifar::Label::Fine, data::cifar::Label::Coarse] {
        sound(data::cifar::load100(&[&path], label));
    }
}

/// Tables, read in each of the ways.
pub fn csv(bytes: &[u8]) {
    let path = put("table.csv", bytes);
    let plain = Options::default();
    let named = Target::Class(vec!["0".into(), "a".into()]);
    for options in [
        plain.clone(),
        Options { header: Header::Yes, column: Column::Name("y".into()), ..plain.clone() },
        Options { header: Header::No, column: Column::Index(0), target: named, ..plain.clone() },
        Options { target: Target::Real, delimiter: b';', ..plain.clone() },
        Options { shape: Some(Shape::new(1, 1, 2, 2)), ..plain },
    ] {
        sound(data::csv::load(&path, &options));
    }
}

/// Labelled texts, and the file of their classes.
pub fn text(bytes: &[u8]) {
    let path = put("train.csv", bytes);
    for length in [1, 32] {
        sound(data::text::load(&path, &["a".into(), "b".into()], length));
    }
    match data::text::names(&path) {
        Ok(names) => assert!(!names.is_empty()),
        Err(error) => assert!(error.to_string().contains("train.csv")),
    }
}

/// Arrays: as features with labels that fit, and as labels.
pub fn npy(bytes: &[u8]) {
    let path = put("array.npy", bytes);
    let Ok(read) = data::npy::read(&path) else {
        return sound(data::npy::load(&path, &path, &[]));
    };
    let count = read.dims.first().copied().unwrap_or(0).min(1 << 16);
    let mut text = format!("{{'descr':'|u1','fortran_order':False,'shape':({count},)}}");
    text.push('\n');
    let mut labels = b"\x93NUMPY\x01\0".to_vec();
    labels.extend((text.len() as u16).to_le_bytes());
    labels.extend(text.bytes());
    labels.extend((0..count).map(|label| (label % 3) as u8));
    sound(data::npy::load(&path, &put("labels.npy", &labels), &[]));
    sound(data::npy::load(&path, &path, &[]));
}

/// Images in a folder of classes.
pub fn image(bytes: &[u8]) {
    // A few bytes can ask for a gigabyte, which is within the limits; a fuzzer has less time.
    if size(bytes).is_some_and(|(w, h)| u64::from(w) * u64::from(h) > 1 << 18) {
        return;
    }
    fs::create_dir_all(folder().join("folders/class")).expect("a temporary folder can be made");
    put("folders/class/1.png", bytes);
    let root = folder().join("folders");
    sound(data::folder::load(&root, &[], Images::default()));
    let resized = Images { size: Some((3, 5)), color: data::Color::Gray };
    sound(data::folder::load(&root, &[], resized));
}

/// The size that a PNG claims, or a JPEG in its frame.
fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    if let Some(rest) = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n") {
        let word = |at| Some(u32::from_be_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        return Some((word(8)?, word(12)?));
    }
    // Whatever looks like a frame, the largest of them.
    bytes
        .windows(9)
        .filter(|frame| frame[0] == 0xff && (0xc0..=0xcf).contains(&frame[1]))
        .map(|f| (u32::from_be_bytes([0, 0, f[7], f[8]]), u32::from_be_bytes([0, 0, f[5], f[6]])))
        .max_by_key(|&(w, h)| w * h)
}

/// Recordings of several persons, each left out by name and unnamed.
pub fn motion(bytes: &[u8]) {
    let path = put("magic_wand.csv", bytes);
    for left_out in [None, Some("ann"), Some("bob")] {
        match data::motion::load(&path, left_out) {
            Ok(split) => {
                sound(Ok(split.train));
                sound(Ok(split.test));
            }
            Err(error) => sound(Err(error)),
        }
    }
}
