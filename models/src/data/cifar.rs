//! CIFAR-10 and CIFAR-100 in their binary versions.
//!
//! ```text
//! CIFAR-10  record: label, 1,024 red, 1,024 green, 1,024 blue               3,073 bytes
//! CIFAR-100 record: coarse label, fine label, then the pixels as above      3,074 bytes
//! ```
//! The official files have 10,000 records each (CIFAR-100's `train.bin` 50,000); any number of
//! whole records is read.

use std::path::Path;

use sepal_core::shape::Shape;

use super::input::Input;
use super::{DataError, Dataset, Samples, owned};

/// The shape of an image.
const SHAPE: Shape = Shape::new(1, 3, 32, 32);
/// Bytes of an image.
const PIXELS: usize = 3 * 32 * 32;

/// The classes of CIFAR-10, in the order of their labels.
pub const CIFAR10: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The 20 superclasses of CIFAR-100, in the order of their labels.
pub const CIFAR100_COARSE: [&str; 20] = [
    "aquatic_mammals",
    "fish",
    "flowers",
    "food_containers",
    "fruit_and_vegetables",
    "household_electrical_devices",
    "household_furniture",
    "insects",
    "large_carnivores",
    "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes",
    "large_omnivores_and_herbivores",
    "medium_mammals",
    "non-insect_invertebrates",
    "people",
    "reptiles",
    "small_mammals",
    "trees",
    "vehicles_1",
    "vehicles_2",
];

/// The 100 classes of CIFAR-100, in the order of their labels.
#[rustfmt::skip]
pub const CIFAR100_FINE: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
];

/// Which of the two labels of CIFAR-100 counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Label {
    /// One of the 100 classes.
    #[default]
    Fine,
    /// One of the 20 superclasses.
    Coarse,
}

/// Reads files of CIFAR-10 records, one after the other, into one data set.
///
/// # Errors
/// A file that cannot be read, is empty or does not hold whole records, and a label above 9.
pub fn load10<P: AsRef<Path>>(paths: &[P]) -> Result<Dataset, DataError> {
    load(paths, &[10], 0, &CIFAR10)
}

/// Reads files of CIFAR-100 records, one after the other, into one data set.
///
/// # Errors
/// A file that cannot be read, is empty or does not hold whole records, a fine label above 99,
/// and a coarse label above 19, whichever of the two counts.
pub fn load100<P: AsRef<Path>>(paths: &[P], label: Label) -> Result<Dataset, DataError> {
    match label {
        Label::Coarse => load(paths, &[20, 100], 0, &CIFAR100_COARSE),
        Label::Fine => load(paths, &[20, 100], 1, &CIFAR100_FINE),
    }
}

/// Reads records that begin with labels below `classes`, of which the one at `wanted` counts.
fn load<P: AsRef<Path>>(
    paths: &[P],
    classes: &[u8],
    wanted: usize,
    names: &[&str],
) -> Result<Dataset, DataError> {
    let record = classes.len() + PIXELS;
    let mut inputs = Vec::with_capacity(paths.len());
    let mut stored = 0;
    for path in paths {
        let input = Input::open(path.as_ref())?;
        stored += input.stored() / record;
        inputs.push(input);
    }
    // Exact for files that are not compressed, the official form; cut to size for others.
    let mut pixels = Vec::with_capacity(stored * PIXELS);
    let mut labels = Vec::with_capacity(stored);
    let mut buffer = vec![0; record];
    for input in &mut inputs {
        let mut number = 0u64;
        loop {
            let got = input.fill(&mut buffer)?;
            if got == 0 && number > 0 {
                break;
            }
            if got < record {
                let found = format!("{got} bytes");
                return Err(input.wrong(format!("record {number}"), found, record.to_string()));
            }
            let (head, image) = buffer.split_at(classes.len());
            for (&label, &classes) in head.iter().zip(classes) {
                if label >= classes {
                    let expected = format!("0 to {}", classes - 1);
                    let place = format!("label of record {number}");
                    return Err(input.wrong(place, label.to_string(), expected));
                }
            }
            labels.push(head.get(wanted).copied().map_or(0, u16::from));
            pixels.extend_from_slice(image);
            number += 1;
        }
    }
    pixels.shrink_to_fit();
    Dataset::new(SHAPE, Samples::U8(pixels), labels, owned(names))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, gzip, says};
    use super::*;

    fn records(heads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (n, head) in heads.iter().enumerate() {
            bytes.extend(*head);
            bytes.extend((0..PIXELS).map(|i| (i + n) as u8));
        }
        bytes
    }

    #[test]
    fn files_are_joined_in_order() {
        let folder = Folder::new();
        let one = folder.file("one", &records(&[&[3], &[9]]));
        let two = folder.file("two", &records(&[&[0]]));
        let set = load10(&[&one, &two]).unwrap();
        assert_eq!((set.labels(), set.shape()), (&[3, 9, 0][..], SHAPE));
        assert_eq!(set.names()[9], "truck");
        let Samples::U8(pixels) = set.samples() else { panic!("bytes") };
        assert_eq!((pixels.len(), pixels.capacity()), (3 * PIXELS, 3 * PIXELS));
        assert_eq!(pixels[PIXELS], 1);
        assert_eq!(pixels[2 * PIXELS], 0);
        let packed = folder.file("packed", &gzip(&records(&[&[3], &[9]])));
        assert_eq!(load10(&[&packed, &two]).unwrap().samples(), set.samples());
    }

    #[test]
    fn fine_and_coarse_labels() {
        let folder = Folder::new();
        let path = folder.file("train.bin", &records(&[&[19, 99], &[0, 1]]));
        let fine = load100(&[&path], Label::Fine).unwrap();
        assert_eq!((fine.labels(), fine.names().len()), (&[99, 1][..], 100));
        assert_eq!(fine.names()[99], "worm");
        let coarse = load100(&[&path], Label::Coarse).unwrap();
        assert_eq!((coarse.labels(), coarse.names().len()), (&[19, 0][..], 20));
        // The other label is checked too: a CIFAR-10 file read as CIFAR-100 does not pass.
        let path = folder.file("bad.bin", &records(&[&[20, 1]]));
        let error = load100(&[&path], Label::Fine).unwrap_err();
        says(&error, &["bad.bin", "label of record 0", "found 20", "0 to 19"]);
    }

    #[test]
    fn class_names_are_sorted_and_distinct() {
        assert!(CIFAR10.is_sorted());
        assert!(CIFAR100_COARSE.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(CIFAR100_FINE.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn part_records_and_labels_out_of_range_are_refused() {
        let folder = Folder::new();
        let whole = records(&[&[1], &[2]]);
        for end in 0..whole.len() {
            let result = load10(&[folder.file("cut", &whole[..end])]);
            if end == 3073 {
                assert_eq!(result.unwrap().labels(), [1]);
            } else {
                says(&result.unwrap_err(), &["cut", "record", "bytes", "3073"]);
            }
        }
        let error = load10(&[folder.file("high", &records(&[&[1], &[10]]))]).unwrap_err();
        says(&error, &["high", "label of record 1", "found 10", "0 to 9"]);
        let none: [&Path; 0] = [];
        says(&load10(&none).unwrap_err(), &["samples", "expected"]);
    }
}
