//! Recognising the well-known sets by their folders.

use std::path::{Path, PathBuf};

use sepal_core::shape::Shape;

use super::input::Input;
use super::{DataError, Dataset, cifar, csv, idx, motion, owned, text};
use crate::vdcnn::LENGTH;

/// The classes of Fashion-MNIST, in the order of their labels.
pub const FASHION_MNIST: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// The first test labels of Fashion-MNIST, which tell it from MNIST: the files are called alike.
const FASHION_TEST: [u16; 24] =
    [9, 2, 1, 1, 6, 1, 4, 6, 5, 7, 4, 5, 7, 3, 4, 1, 2, 4, 8, 0, 2, 5, 7, 9];

/// A training set and a test set of the same shape and classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// To learn from.
    pub train: Dataset,
    /// To measure on.
    pub test: Dataset,
}

/// The channels of an image in a class folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Color {
    /// One channel, the luma of the Rec. 709 primaries.
    Gray,
    /// Red, green and blue planes.
    #[default]
    Rgb,
}

/// How to read the images of class folders (feature `images`). Transparency is dropped, 16-bit
/// images are cut to 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Images {
    /// Rows and columns to resize every image to, with a triangle filter (bilinear, averaging
    /// where it shrinks); the sides' ratio is not kept. All images must have one size unless set.
    pub size: Option<(u32, u32)>,
    /// The channels of a sample.
    pub color: Color,
}

/// What a folder does not say by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Options<'a> {
    /// Which labels of CIFAR-100 count.
    pub cifar100: cifar::Label,
    /// The size and channels of images in class folders.
    pub images: Images,
    /// The person that is the test set, of recordings of several; see [`motion::load`].
    pub left_out: Option<&'a str>,
}

/// Opens the data set in a folder, whichever of these it is.
///
/// | what lies there | set |
/// |---|---|
/// | `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`; with `.idx3-ubyte`, with `.gz` | MNIST, Fashion-MNIST and relatives |
/// | `data_batch_1.bin` .. `data_batch_5.bin`, `test_batch.bin` | CIFAR-10 |
/// | `train.bin`, `test.bin` | CIFAR-100, fine labels |
/// | `optdigits.tra`, `optdigits.tes` | optical digits of UCI, as 1x8x8 images |
/// | `train.csv`, `test.csv`, `classes.txt` | AG's News, DBPedia and relatives, the first 1,024 characters of a text |
/// | `magic_wand.csv` | gestures of several persons, [one left out](motion::load) |
/// | `train` or `Train`, and `test`, `Test` or `TestA`, each with class folders | images (feature `images`) |
///
/// The folders `cifar-10-batches-bin`, `cifar-100-binary`, `optdigits`, `ag_news_csv` and
/// `dbpedia_csv` are also found one level below. Fashion-MNIST gets its class names; it is known from MNIST by its labels.
///
/// # Errors
/// A folder with none of these, a file of a set that is missing, and the errors of the loaders.
pub fn open(path: impl AsRef<Path>) -> Result<Split, DataError> {
    open_with(path, Options::default())
}

/// [`open`], with a choice where there is one.
///
/// # Errors
/// Those of [`open`], and a person to be left out of a set that has no persons.
pub fn open_with(path: impl AsRef<Path>, options: Options<'_>) -> Result<Split, DataError> {
    let path = path.as_ref();
    let metadata =
        path.metadata().map_err(|error| DataError::io(path, "could not be opened", error))?;
    if !metadata.is_dir() {
        return Err(DataError::content(path, "file type", "a file", "a data set's folder"));
    }
    let motion = path.join("magic_wand.csv");
    if motion.is_file() {
        return motion::load(&motion, options.left_out);
    }
    if let Some(person) = options.left_out {
        let found = format!("no persons, of whom `{person}` could be left out");
        return Err(DataError::content(path, "folder", found, "magic_wand.csv"));
    }
    for below in
        ["", "cifar-10-batches-bin", "cifar-100-binary", "optdigits", "ag_news_csv", "dbpedia_csv"]
    {
        let folder = if below.is_empty() { path.to_owned() } else { path.join(below) };
        if let Some(split) = recognise(&folder, options)? {
            return Ok(split);
        }
    }
    Err(DataError::content(
        path,
        "folder",
        "no data set known by its files",
        "train-images-idx3-ubyte[.gz] (MNIST, Fashion-MNIST), data_batch_1.bin (CIFAR-10), \
         train.bin (CIFAR-100), optdigits.tra, classes.txt beside train.csv (AG's News, DBPedia), \
         magic_wand.csv, or class folders in train/ and test/ \
         (feature `images`)",
    ))
}

fn recognise(folder: &Path, options: Options<'_>) -> Result<Option<Split>, DataError> {
    if find(folder, "train-images", 3).is_some() {
        return mnist(folder).map(Some);
    }
    if folder.join("data_batch_1.bin").is_file() {
        let train = [1, 2, 3, 4, 5].map(|n| folder.join(format!("data_batch_{n}.bin")));
        let train = cifar::load10(&train)?;
        return Ok(Some(Split { train, test: cifar::load10(&[folder.join("test_batch.bin")])? }));
    }
    if folder.join("train.bin").is_file() {
        let train = cifar::load100(&[folder.join("train.bin")], options.cifar100)?;
        let test = cifar::load100(&[folder.join("test.bin")], options.cifar100)?;
        return Ok(Some(Split { train, test }));
    }
    if folder.join("optdigits.tra").is_file() {
        let digits = csv::Options {
            header: csv::Header::No,
            target: csv::Target::Class((0..10).map(|digit| digit.to_string()).collect()),
            shape: Some(Shape::new(1, 1, 8, 8)),
            ..csv::Options::default()
        };
        let train = csv::load(&folder.join("optdigits.tra"), &digits)?;
        return Ok(Some(Split { train, test: csv::load(&folder.join("optdigits.tes"), &digits)? }));
    }
    if folder.join("train.csv").is_file() && folder.join("classes.txt").is_file() {
        let names = text::names(&folder.join("classes.txt"))?;
        let train = text::load(&folder.join("train.csv"), &names, LENGTH)?;
        return Ok(Some(Split {
            train,
            test: text::load(&folder.join("test.csv"), &names, LENGTH)?,
        }));
    }
    #[cfg(feature = "images")]
    {
        use super::folder as images;
        let first =
            |names: &[&str]| names.iter().map(|name| folder.join(name)).find(|path| path.is_dir());
        let test = first(&["test", "Test", "TestA"]);
        if let (Some(train), Some(test)) = (first(&["train", "Train"]), test) {
            // A class may have images in one of the two only.
            let mut names = images::classes(&train)?;
            names.extend(images::classes(&test)?);
            names.sort();
            names.dedup();
            let train = images::load(&train, &names, options.images)?;
            let loaded = images::load(&test, &names, options.images)?;
            if loaded.shape() != train.shape() {
                let found = format!("images of shape {}", loaded.shape());
                let expected = format!("{} as in training, or a size to resize to", train.shape());
                return Err(DataError::content(&test, "size", found, expected));
            }
            return Ok(Some(Split { train, test: loaded }));
        }
    }
    Ok(None)
}

/// The file of a part of an IDX set, however it is spelled.
fn find(folder: &Path, part: &str, rank: u8) -> Option<PathBuf> {
    spellings(part, rank).iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn spellings(part: &str, rank: u8) -> [String; 4] {
    [
        format!("{part}-idx{rank}-ubyte"),
        format!("{part}-idx{rank}-ubyte.gz"),
        format!("{part}.idx{rank}-ubyte"),
        format!("{part}.idx{rank}-ubyte.gz"),
    ]
}

fn mnist(folder: &Path) -> Result<Split, DataError> {
    let part = |part: &str, rank| {
        find(folder, part, rank).ok_or_else(|| {
            let place = format!("{part}-idx{rank}-ubyte");
            let expected = format!("one of {}", spellings(part, rank).join(", "));
            DataError::content(folder, place, "no such file", expected)
        })
    };
    let [train, test] = ["train", "t10k"]
        .map(|kind| Ok([part(&format!("{kind}-images"), 3)?, part(&format!("{kind}-labels"), 1)?]));
    let ([train_x, train_y], [test_x, test_y]) = (train?, test?);
    join(
        &mut Input::open(&train_x)?,
        &mut Input::open(&train_y)?,
        &mut Input::open(&test_x)?,
        &mut Input::open(&test_y)?,
    )
}

/// 3,000 images of Fashion-MNIST that are part of the program: 2,000 to train on, drawn from the
/// training set by a fixed shuffle, and the first 1,000 of the test set. Zalando SE, MIT licence.
///
/// # Panics
/// Never: the files are fixed when the program is built, and the tests read them.
#[cfg(feature = "bundled")]
pub fn bundled() -> Split {
    macro_rules! part {
        ($name:literal) => {
            Input::memory(
                $name,
                include_bytes!(concat!("../../data/fashion-mnist-2k/", $name, ".gz")),
            )?
        };
    }
    let read = || {
        join(
            &mut part!("train-images-idx3-ubyte"),
            &mut part!("train-labels-idx1-ubyte"),
            &mut part!("t10k-images-idx3-ubyte"),
            &mut part!("t10k-labels-idx1-ubyte"),
        )
    };
    read().expect("the bundled files are whole")
}

/// Makes the two sets of a split agree in shape and names.
fn join(
    train_x: &mut Input<'_>,
    train_y: &mut Input<'_>,
    test_x: &mut Input<'_>,
    test_y: &mut Input<'_>,
) -> Result<Split, DataError> {
    let mut train = idx::load_from(train_x, train_y, &[])?;
    let mut test = idx::load_from(test_x, test_y, &[])?;
    if test.shape() != train.shape() {
        let found = format!("images of shape {}", test.shape());
        let expected = format!("{} as in training", train.shape());
        return Err(test_x.wrong("dimensions", found, expected));
    }
    let names = if train.names().len() <= 10 && test.labels().starts_with(&FASHION_TEST) {
        owned(&FASHION_MNIST)
    } else if test.names().len() > train.names().len() {
        test.names().to_vec()
    } else {
        train.names().to_vec()
    };
    train.rename(names.clone()).map_err(|error| error.of(train_y.path()))?;
    test.rename(names).map_err(|error| error.of(test_y.path()))?;
    Ok(Split { train, test })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, gzip, says};
    use super::*;

    fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    #[cfg(feature = "bundled")]
    #[test]
    fn the_bundled_set_is_what_its_readme_says() {
        let Split { train, test } = bundled();
        assert_eq!((train.len(), test.len()), (2000, 1000));
        assert_eq!((train.shape(), test.shape()), (Shape::new(1, 1, 28, 28), train.shape()));
        assert_eq!((train.names(), test.names()), (&owned(&FASHION_MNIST)[..], train.names()));
        // Read off the official files by the script beside them.
        assert_eq!(train.labels()[..8], [4, 2, 7, 7, 6, 9, 1, 5]);
        assert_eq!(test.labels()[..24], FASHION_TEST);
        assert_eq!(train.counts(), [214, 181, 217, 191, 198, 214, 204, 203, 184, 194]);
        let super::super::Samples::U8(pixels) = train.samples() else { panic!("bytes") };
        assert_eq!(pixels.iter().map(|&p| u64::from(p)).sum::<u64>(), 113_285_706);
    }

    #[test]
    fn idx_sets_in_every_spelling() {
        let train_x = idx(&[3, 2, 2], &[1; 12]);
        let train_y = idx(&[3], &[0, 1, 0]);
        let test_x = idx(&[1, 2, 2], &[2; 4]);
        let test_y = idx(&[1], &[2]);
        for (dot, packed) in [("-", false), (".", false), ("-", true), (".", true)] {
            let folder = Folder::new();
            let put = |part: &str, bytes: &[u8]| match packed {
                false => folder.file(&part.replace('+', dot), bytes),
                true => folder.file(&(part.replace('+', dot) + ".gz"), &gzip(bytes)),
            };
            put("train-images+idx3-ubyte", &train_x);
            let error = open(folder.path()).unwrap_err();
            says(&error, &["train-labels-idx1-ubyte", "no such file", ".idx1-ubyte.gz"]);
            put("train-labels+idx1-ubyte", &train_y);
            put("t10k-images+idx3-ubyte", &test_x);
            put("t10k-labels+idx1-ubyte", &test_y);
            let split = open(folder.path()).unwrap();
            assert_eq!((split.train.len(), split.test.len()), (3, 1));
            // A class that only one of the two has is a class of both.
            assert_eq!(split.train.names(), ["0", "1", "2"]);
            assert_eq!(split.test.names(), split.train.names());
            put("t10k-images+idx3-ubyte", &idx(&[1, 4, 1], &[2; 4]));
            let error = open(folder.path()).unwrap_err();
            says(&error, &["t10k-images", "1x1x4x1", "1x1x2x2"]);
        }
    }

    #[test]
    fn cifar_sets_also_one_level_below() {
        let folder = Folder::new();
        let record = |head: &[u8]| [head, &[5; 3072]].concat();
        for n in 1..=5 {
            let name = format!("cifar-10-batches-bin/data_batch_{n}.bin");
            folder.file(&name, &record(&[n]));
        }
        let error = open(folder.path()).unwrap_err();
        says(&error, &["test_batch.bin", "could not be opened"]);
        folder.file("cifar-10-batches-bin/test_batch.bin", &record(&[9]));
        for path in [folder.path().to_owned(), folder.path().join("cifar-10-batches-bin")] {
            let split = open(path).unwrap();
            assert_eq!(
                (split.train.labels(), split.test.labels()),
                (&[1, 2, 3, 4, 5][..], &[9][..])
            );
        }
        let folder = Folder::new();
        folder.file("train.bin", &record(&[1, 42]));
        folder.file("test.bin", &record(&[2, 43]));
        assert_eq!(open(folder.path()).unwrap().test.labels(), [43]);
        let coarse = Options { cifar100: cifar::Label::Coarse, ..Options::default() };
        assert_eq!(open_with(folder.path(), coarse).unwrap().train.labels(), [1]);
    }

    #[test]
    fn optdigits() {
        let folder = Folder::new();
        let row = |label: u8| "3,".repeat(64) + &label.to_string() + "\n";
        folder.file("optdigits.tra", (row(0) + &row(7)).as_bytes());
        folder.file("optdigits.tes", row(9).as_bytes());
        let split = open(folder.path()).unwrap();
        assert_eq!((split.train.labels(), split.test.labels()), (&[0, 7][..], &[9][..]));
        assert_eq!(split.train.shape(), Shape::new(1, 1, 8, 8));
        folder.file("optdigits.tes", (row(10)).as_bytes());
        says(&open(folder.path()).unwrap_err(), &["optdigits.tes", "row 1", "`10`"]);
    }

    #[test]
    fn motion_of_persons() {
        let folder = Folder::new();
        let recording =
            |name: &str| (0..40).map(|t| format!("{name},{t},0,0,1\n")).collect::<String>();
        let table = "label,person,recording,t,x,y,z\n".to_owned()
            + &recording("up,ann,0")
            + &recording("up,bob,0")
            + &recording("up,bob,1");
        let asked = Options { left_out: Some("bob"), ..Options::default() };
        let error = open_with(folder.path(), asked).unwrap_err();
        says(&error, &["no persons", "`bob`", "magic_wand.csv"]);
        folder.file("magic_wand.csv", table.as_bytes());
        assert_eq!(open(folder.path()).unwrap().test.len(), 1);
        assert_eq!(open_with(folder.path(), asked).unwrap().test.len(), 2);
    }

    #[test]
    fn texts_also_one_level_below() {
        let folder = Folder::new();
        folder.file("ag_news_csv/train.csv", b"\"2\",\"Cup\",\"won\"\n\"1\",\"Rain\",\"\"\n");
        folder.file("ag_news_csv/test.csv", b"\"1\",\"Sun\",\"\"\n");
        says(&open(folder.path()).unwrap_err(), &["no data set", "classes.txt"]);
        folder.file("ag_news_csv/classes.txt", b"World\nSports\n");
        let split = open(folder.path()).unwrap();
        assert_eq!((split.train.labels(), split.test.labels()), (&[1, 0][..], &[0][..]));
        assert_eq!(split.train.shape(), Shape::new(1, 1, 1, 1024));
        assert_eq!(split.test.names(), ["World", "Sports"]);
    }

    #[cfg(feature = "images")]
    #[test]
    fn class_folders() {
        let png = |w, h| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            image::GrayImage::new(w, h).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            bytes.into_inner()
        };
        for (train, test) in [("train", "test"), ("Train", "TestA"), ("Train", "Test")] {
            let folder = Folder::new();
            folder.file(&format!("{train}/b/1.png"), &png(2, 3));
            let error = open(folder.path()).unwrap_err();
            says(&error, &["no data set known", "train/ and test/"]);
            folder.file(&format!("{test}/a/1.png"), &png(2, 3));
            let split = open(folder.path()).unwrap();
            assert_eq!(split.train.shape(), Shape::new(1, 3, 3, 2));
            assert_eq!((split.train.labels(), split.test.labels()), (&[1][..], &[0][..]));
            folder.file(&format!("{test}/a/1.png"), &png(3, 2));
            let error = open(folder.path()).unwrap_err();
            says(&error, &["1x3x2x3", "1x3x3x2", "a size to resize to"]);
            let images = Images { size: Some((4, 4)), ..Images::default() };
            let options = Options { images, ..Options::default() };
            assert_eq!(open_with(folder.path(), options).unwrap().test.shape().h, 4);
        }
    }

    #[test]
    fn other_folders_are_refused() {
        let folder = Folder::new();
        let file = folder.file("x", b"");
        let error = open(folder.path()).unwrap_err();
        says(&error, &["no data set known by its files", "data_batch_1.bin"]);
        says(&open(file).unwrap_err(), &["found a file", "folder"]);
        says(&open(folder.path().join("none")).unwrap_err(), &["none", "could not be opened"]);
    }
}
