//! IDX, the format of MNIST and its relatives.
//!
//! ```text
//! 0, 0, element type, number of dimensions D     one byte each
//! dimension 1 .. dimension D                     big-endian u32 each
//! elements, the last dimension fastest
//! ```
//! Elements are bytes (type 0x08). A file may be compressed by gzip, which its first two bytes
//! say, not its name.

use std::path::Path;

use sepal_core::shape::Shape;

use super::input::Input;
use super::{DataError, Dataset, Samples, numbered};

/// The content of an IDX file of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idx {
    /// The dimensions, 1 to 4 of them; the first counts samples.
    pub dims: Vec<u32>,
    /// The elements, as many as the dimensions multiply to.
    pub data: Vec<u8>,
}

/// Reads an IDX file of bytes.
///
/// # Errors
/// A file that cannot be read, another magic number, an element type other than bytes, no or
/// more than 4 dimensions, an empty dimension, and a length other than the header says.
pub fn read(path: &Path) -> Result<Idx, DataError> {
    read_from(&mut Input::open(path)?)
}

pub(super) fn read_from(input: &mut Input<'_>) -> Result<Idx, DataError> {
    let magic: [u8; 4] = input.array("magic number")?;
    let [0, 0, kind, rank] = magic else {
        let found = format!("{:#010x}", u32::from_be_bytes(magic));
        return Err(input.wrong("magic number", found, "two zero bytes (an IDX file)"));
    };
    if kind != 0x08 {
        let found = format!("{kind:#04x}");
        return Err(input.wrong("element type", found, "0x08 (unsigned bytes)"));
    }
    if !(1..=4).contains(&rank) {
        return Err(input.wrong("number of dimensions", rank.to_string(), "1 to 4"));
    }
    let mut dims = Vec::with_capacity(usize::from(rank));
    let mut count = Some(1u64);
    for axis in 1..=rank {
        let dim = u32::from_be_bytes(input.array(&format!("dimension {axis}"))?);
        if dim == 0 {
            return Err(input.wrong(format!("dimension {axis}"), "0", "1 or more"));
        }
        count = count.and_then(|count| count.checked_mul(u64::from(dim)));
        dims.push(dim);
    }
    let Some(count) = count else {
        let found = format!("{dims:?}");
        return Err(input.wrong("dimensions", found, "a product that fits 64 bits"));
    };
    let data = input.take(count, "elements")?;
    input.end()?;
    Ok(Idx { dims, data })
}

/// Reads images (N, H, W), (N, C, H, W) or feature vectors (N, D) and their labels (N).
/// `names` are the classes' names; where it is empty they are the numbers from 0 to the
/// largest label.
///
/// # Errors
/// Those of [`read`], labels that are not one for each image, and a label without a name.
pub fn load(images: &Path, labels: &Path, names: &[String]) -> Result<Dataset, DataError> {
    load_from(&mut Input::open(images)?, &mut Input::open(labels)?, names)
}

pub(super) fn load_from(
    images: &mut Input<'_>,
    labels: &mut Input<'_>,
    names: &[String],
) -> Result<Dataset, DataError> {
    let pixels = read_from(images)?;
    let classes = read_from(labels)?;
    let (count, shape) = match *pixels.dims {
        [n, d] => (n, Shape::rows(1, d)),
        [n, h, w] => (n, Shape::new(1, 1, h, w)),
        [n, c, h, w] => (n, Shape::new(1, c, h, w)),
        _ => {
            let found = format!("{:?}", pixels.dims);
            return Err(images.wrong("dimensions", found, "2 to 4 of them"));
        }
    };
    if classes.dims != [count] {
        let found = format!("{:?}", classes.dims);
        return Err(labels.wrong("dimensions", found, format!("[{count}], a label an image")));
    }
    let codes: Vec<u16> = classes.data.iter().map(|&label| u16::from(label)).collect();
    let names = if names.is_empty() { numbered(&codes) } else { names.to_vec() };
    Dataset::new(shape, Samples::U8(pixels.data), codes, names)
        .map_err(|error| error.of(labels.path()))
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

    fn parse(bytes: &[u8]) -> Result<Idx, DataError> {
        read_from(&mut Input::memory("some.idx", bytes)?)
    }

    #[test]
    fn a_file_is_read_plain_and_compressed_into_exact_memory() {
        let data: Vec<u8> = (0..24).collect();
        let plain = idx(&[2, 3, 4], &data);
        for bytes in [plain.clone(), gzip(&plain)] {
            let read = parse(&bytes).unwrap();
            assert_eq!(read.dims, [2, 3, 4]);
            assert_eq!(read.data, data);
            assert_eq!(read.data.capacity(), 24);
        }
        // Compressed to far less than its size: the buffer grows, and ends exact.
        let data = vec![7; 1_000_003];
        let read = parse(&gzip(&idx(&[1_000_003], &data))).unwrap();
        assert_eq!((read.data.len(), read.data.capacity()), (1_000_003, 1_000_003));
    }

    #[test]
    fn every_cut_and_every_extra_byte_is_refused() {
        let plain = idx(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        for bytes in [plain.clone(), gzip(&plain)] {
            for end in 0..bytes.len() {
                let error = parse(&bytes[..end]).unwrap_err();
                says(&error, &["some.idx", "found", "expected"]);
            }
            let mut more = bytes.clone();
            more.push(0);
            parse(&more).unwrap_err();
        }
        let mut more = plain;
        more.push(0);
        says(&parse(&more).unwrap_err(), &["byte 18", "more bytes", "the end of the file"]);
    }

    #[test]
    fn every_changed_byte_of_a_compressed_file_is_refused_or_harmless() {
        let plain = idx(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        let good = parse(&plain).unwrap();
        let packed = gzip(&plain);
        for at in 0..packed.len() {
            for bit in 0..8 {
                let mut bytes = packed.clone();
                bytes[at] ^= 1 << bit;
                // Only bytes outside the checksum, as the time stamp, may change unseen.
                if let Ok(read) = parse(&bytes) {
                    assert_eq!(read, good);
                }
            }
        }
    }

    #[test]
    fn headers_that_lie_are_refused_by_name() {
        says(&parse(&[1, 2, 3, 4]).unwrap_err(), &["magic number", "0x01020304"]);
        says(&parse(&[0, 0, 0x0d, 1, 0, 0, 0, 1]).unwrap_err(), &["element type", "0x0d", "0x08"]);
        says(&parse(&[0, 0, 8, 0]).unwrap_err(), &["number of dimensions", "found 0"]);
        says(&parse(&[0, 0, 8, 5]).unwrap_err(), &["number of dimensions", "found 5"]);
        says(&parse(&idx(&[3, 0], &[])).unwrap_err(), &["dimension 2", "found 0"]);
        let huge = idx(&[u32::MAX; 3], &[1, 2, 3]);
        says(&parse(&huge).unwrap_err(), &["dimensions", "64 bits"]);
        // 2^62 bytes claimed, 3 there: refused without asking for them, plain and compressed.
        let huge = idx(&[1 << 31, 1 << 31], &[1, 2, 3]);
        says(&parse(&huge).unwrap_err(), &["elements", "after 3 bytes"]);
        says(&parse(&gzip(&huge)).unwrap_err(), &["elements", "after 3 bytes"]);
    }

    #[test]
    fn images_and_labels_become_a_data_set() {
        let folder = Folder::new();
        let images = folder.file("images", &idx(&[3, 2, 1], &[1, 2, 3, 4, 5, 6]));
        let labels = folder.file("labels", &gzip(&idx(&[3], &[0, 2, 0])));
        let set = load(&images, &labels, &[]).unwrap();
        assert_eq!(set.shape(), Shape::new(1, 1, 2, 1));
        assert_eq!(set.labels(), [0, 2, 0]);
        assert_eq!(set.names(), ["0", "1", "2"]);
        assert_eq!(set.samples(), &Samples::U8(vec![1, 2, 3, 4, 5, 6]));
        let four = folder.file("four", &idx(&[1, 3, 2, 1], &[0; 6]));
        let one = folder.file("one", &idx(&[1], &[0]));
        assert_eq!(load(&four, &one, &[]).unwrap().shape(), Shape::new(1, 3, 2, 1));
        let rows = folder.file("rows", &idx(&[1, 6], &[0; 6]));
        assert_eq!(load(&rows, &one, &[]).unwrap().shape(), Shape::rows(1, 6));

        let error = load(&images, &one, &[]).unwrap_err();
        says(&error, &["one", "found [1]", "expected [3]"]);
        let error = load(&one, &one, &[]).unwrap_err();
        says(&error, &["dimensions", "found [1]", "2 to 4"]);
        let error = load(&images, &labels, &["a".into(), "b".into()]).unwrap_err();
        says(&error, &["labels", "label of sample 1", "found 2", "0 to 1"]);
        let error = load(&folder.path().join("none"), &labels, &[]).unwrap_err();
        says(&error, &["none", "could not be opened"]);
        let error = load(folder.path(), &labels, &[]).unwrap_err();
        says(&error, &["a folder", "a file"]);
    }
}
