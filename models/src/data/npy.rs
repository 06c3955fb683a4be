//! NPY, the array format of NumPy (versions 1.0 and 2.0), in C order and little-endian.
//!
//! ```text
//! "\x93NUMPY", major, minor            8 bytes
//! header length                        u16 (version 1), u32 (version 2), little-endian
//! {'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }     padded with spaces
//! elements
//! ```
//! The header is a literal of Python, of which exactly this form is read: three keys in any
//! order, a text, a truth value and a tuple of whole numbers. No expression is evaluated.

use std::path::Path;

use sepal_core::shape::Shape;

use super::input::Input;
use super::{DataError, Dataset, Samples, numbered};

/// Bytes of the longest header read. NumPy writes 118.
const HEADER: u64 = 1 << 16;

/// The content of an NPY file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The dimensions; none for a single number.
    pub dims: Vec<u64>,
    /// The elements, as many as the dimensions multiply to.
    pub values: Values,
}

/// The elements of an array.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Values {
    /// `|u1`
    U8(Vec<u8>),
    /// `<i4`
    I32(Vec<i32>),
    /// `<i8`
    I64(Vec<i64>),
    /// `<f4`
    F32(Vec<f32>),
    /// `<f8`
    F64(Vec<f64>),
}

/// Reads an array.
///
/// # Errors
/// A file that cannot be read, is no NPY file, has a version other than 1.0 and 2.0, another
/// element type, Fortran order, a header not of the form above, or another length than its
/// header says.
pub fn read(path: &Path) -> Result<Array, DataError> {
    read_from(&mut Input::open(path)?)
}

fn read_from(input: &mut Input<'_>) -> Result<Array, DataError> {
    let magic: [u8; 6] = input.array("magic text")?;
    if &magic != b"\x93NUMPY" {
        let found = format!("\"{}\"", magic.escape_ascii());
        return Err(input.wrong("magic text", found, "\"\\x93NUMPY\""));
    }
    let length = match input.array("version")? {
        [1, 0] => u64::from(u16::from_le_bytes(input.array("header length")?)),
        [2, 0] => u64::from(u32::from_le_bytes(input.array("header length")?)),
        [major, minor] => {
            return Err(input.wrong("version", format!("{major}.{minor}"), "1.0 or 2.0"));
        }
    };
    if length > HEADER {
        let expected = format!("at most {HEADER} bytes");
        return Err(input.wrong("header length", length.to_string(), expected));
    }
    let bytes = input.take(length, "header")?;
    let header = Header::parse(&bytes).map_err(|(found, expected)| {
        input.wrong("header", format!("{found} in \"{}\"", bytes.escape_ascii()), expected)
    })?;
    if header.fortran {
        let expected = "False (C order; numpy.ascontiguousarray gives it)";
        return Err(input.wrong("fortran_order", "True", expected));
    }
    let size: u64 = match header.descr.as_str() {
        "|u1" => 1,
        "<i4" | "<f4" => 4,
        "<i8" | "<f8" => 8,
        other => {
            let expected = "|u1, <i4, <i8, <f4 or <f8";
            return Err(input.wrong("element type", other, expected));
        }
    };
    let total = header.dims.iter().try_fold(size, |all, &dim| all.checked_mul(dim));
    let Some(total) = total else {
        let found = format!("{:?}", header.dims);
        return Err(input.wrong("shape", found, "a product that fits 64 bits"));
    };
    let bytes = input.take(total, "elements")?;
    input.end()?;
    let values = match header.descr.as_str() {
        "|u1" => Values::U8(bytes),
        "<i4" => Values::I32(words(&bytes, i32::from_le_bytes)),
        "<i8" => Values::I64(words(&bytes, i64::from_le_bytes)),
        "<f4" => Values::F32(words(&bytes, f32::from_le_bytes)),
        _ => Values::F64(words(&bytes, f64::from_le_bytes)),
    };
    Ok(Array { dims: header.dims, values })
}

fn words<T, const N: usize>(bytes: &[u8], word: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| word(chunk)).collect()
}

/// Reads features (N, D) or images (N, H, W) or (N, C, H, W), and labels (N) or (N, 1).
///
/// Bytes stay bytes; all other elements become f32, rounded to the nearest. Labels are whole
/// numbers from 0, of any of the types. `names` are the classes' names; where it is empty they
/// are the numbers from 0 to the largest label.
///
/// # Errors
/// Those of [`read`], other numbers of dimensions, an empty dimension, labels that are not one
/// for each sample, a label that is no whole number from 0 to 65535 or has no name, and an
/// element that is not finite as f32.
pub fn load(features: &Path, labels: &Path, names: &[String]) -> Result<Dataset, DataError> {
    let array = read(features)?;
    let dims: Vec<u32> = array.dims.iter().filter_map(|&dim| u32::try_from(dim).ok()).collect();
    let shape = match *dims {
        _ if dims.len() < array.dims.len() => None,
        [n, d] => Some((n, Shape::rows(1, d))),
        [n, h, w] => Some((n, Shape::new(1, 1, h, w))),
        [n, c, h, w] => Some((n, Shape::new(1, c, h, w))),
        _ => None,
    };
    let Some((count, shape)) = shape else {
        let found = format!("{:?}", array.dims);
        let expected = "(N, D), (N, H, W) or (N, C, H, W), each below 2^32";
        return Err(DataError::content(features, "shape", found, expected));
    };
    let classes = read(labels)?;
    if !matches!(*classes.dims, [n] | [n, 1] if n == u64::from(count)) {
        let found = format!("{:?}", classes.dims);
        let expected = format!("({count}), a label a sample");
        return Err(DataError::content(labels, "shape", found, expected));
    }
    let codes = codes(labels, classes.values)?;
    let samples = match array.values {
        Values::U8(data) => Samples::U8(data),
        Values::F32(data) => Samples::F32(data),
        Values::I32(data) => Samples::F32(data.into_iter().map(|x| x as f32).collect()),
        Values::I64(data) => Samples::F32(data.into_iter().map(|x| x as f32).collect()),
        Values::F64(data) => Samples::F32(data.into_iter().map(|x| x as f32).collect()),
    };
    let names = if names.is_empty() { numbered(&codes) } else { names.to_vec() };
    // A label without a name is the labels' fault, every other refusal the features'.
    let path = match codes.iter().max() {
        Some(&label) if usize::from(label) >= names.len() => labels,
        _ => features,
    };
    Dataset::new(shape, samples, codes, names).map_err(|error| error.of(path))
}

/// Labels as class numbers.
fn codes(path: &Path, values: Values) -> Result<Vec<u16>, DataError> {
    fn each<T: Copy + std::fmt::Display>(
        path: &Path,
        values: &[T],
        code: impl Fn(T) -> Option<u16>,
    ) -> Result<Vec<u16>, DataError> {
        let one = |(sample, &value): (usize, &T)| {
            code(value).ok_or_else(|| {
                let place = format!("label of sample {sample}");
                DataError::content(path, place, value.to_string(), "a whole number, 0 to 65535")
            })
        };
        values.iter().enumerate().map(one).collect()
    }
    let whole = |x: f64| {
        let code = x as u16;
        (f64::from(code) == x).then_some(code)
    };
    match values {
        Values::U8(data) => each(path, &data, |x| Some(u16::from(x))),
        Values::I32(data) => each(path, &data, |x| u16::try_from(x).ok()),
        Values::I64(data) => each(path, &data, |x| u16::try_from(x).ok()),
        Values::F32(data) => each(path, &data, |x| whole(f64::from(x))),
        Values::F64(data) => each(path, &data, whole),
    }
}

/// The header's three entries.
#[derive(Debug)]
struct Header {
    descr: String,
    fortran: bool,
    dims: Vec<u64>,
}

/// What was found, and what was expected in its place.
type Mismatch = (String, &'static str);

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, Mismatch> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| ("bytes that are no text".to_owned(), "a Python dictionary"))?;
        let mut text = Text(text);
        let (mut descr, mut fortran, mut dims) = (None, None, None);
        text.expect("{", "`{`")?;
        while !text.eat("}") {
            let key = text.quoted()?;
            text.expect(":", "`:`")?;
            let new = match key {
                "descr" => descr.replace(text.quoted()?.to_owned()).is_none(),
                "fortran_order" => fortran.replace(text.truth()?).is_none(),
                "shape" => dims.replace(text.tuple()?).is_none(),
                _ => false,
            };
            if !new {
                let expected = "`descr`, `fortran_order` and `shape`, once each";
                return Err((format!("key `{key}`"), expected));
            }
            if !text.eat(",") {
                text.expect("}", "`,` or `}`")?;
                break;
            }
        }
        if !text.0.trim_start().is_empty() {
            return Err(text.here("nothing after `}`"));
        }
        match (descr, fortran, dims) {
            (Some(descr), Some(fortran), Some(dims)) => Ok(Self { descr, fortran, dims }),
            _ => Err(("a missing key".to_owned(), "`descr`, `fortran_order` and `shape`")),
        }
    }
}

/// What is left of the header's text.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn eat(&mut self, token: &str) -> bool {
        self.0 = self.0.trim_start();
        match self.0.strip_prefix(token) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str, expected: &'static str) -> Result<(), Mismatch> {
        if self.eat(token) { Ok(()) } else { Err(self.here(expected)) }
    }

    fn quoted(&mut self) -> Result<&'a str, Mismatch> {
        let quote = if self.eat("'") {
            '\''
        } else if self.eat("\"") {
            '"'
        } else {
            return Err(self.here("a text in quotes"));
        };
        let (text, rest) =
            self.0.split_once(quote).ok_or_else(|| self.here("the end of the text in quotes"))?;
        self.0 = rest;
        Ok(text)
    }

    fn truth(&mut self) -> Result<bool, Mismatch> {
        if self.eat("True") {
            Ok(true)
        } else {
            self.expect("False", "True or False").map(|()| false)
        }
    }

    fn tuple(&mut self) -> Result<Vec<u64>, Mismatch> {
        let mut dims = Vec::new();
        self.expect("(", "`(`")?;
        while !self.eat(")") {
            self.0 = self.0.trim_start();
            let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
            let (digits, rest) = self.0.split_at(end);
            dims.push(digits.parse().map_err(|_| self.here("a whole number below 2^64"))?);
            self.0 = rest;
            if !self.eat(",") {
                self.expect(")", "`,` or `)`")?;
                break;
            }
        }
        Ok(dims)
    }

    fn here(&self, expected: &'static str) -> Mismatch {
        let next: String = self.0.chars().take(20).collect();
        (if next.is_empty() { "the end".to_owned() } else { format!("`{next}`") }, expected)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, gzip, says};
    use super::*;

    fn npy(major: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([major, 0]);
        match major {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn array(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}   \n");
        npy(1, &header, data)
    }

    fn parse(bytes: &[u8]) -> Result<Array, DataError> {
        read_from(&mut Input::memory("some.npy", bytes)?)
    }

    fn le<T, const N: usize>(values: &[T], word: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(word).collect()
    }

    /// What NumPy 2.4 writes for `numpy.save(f, numpy.array([[1.5, -2.0]], dtype="<f4"))`.
    #[test]
    fn a_file_of_numpy() {
        let header = format!(
            "{{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }}{}\n",
            " ".repeat(118 - 60)
        );
        assert_eq!(header.len(), 118);
        let read = parse(&npy(1, &header, &le(&[1.5f32, -2.0], |x| x.to_le_bytes()))).unwrap();
        assert_eq!(read, Array { dims: vec![1, 2], values: Values::F32(vec![1.5, -2.0]) });
    }

    #[test]
    fn every_type_version_and_spelling() {
        let read = parse(&array("|u1", "(3,)", &[1, 2, 255])).unwrap();
        assert_eq!(read, Array { dims: vec![3], values: Values::U8(vec![1, 2, 255]) });
        let read = parse(&array("<i4", "(2,1)", &le(&[-1i32, 7], |x| x.to_le_bytes()))).unwrap();
        assert_eq!(read, Array { dims: vec![2, 1], values: Values::I32(vec![-1, 7]) });
        let data = le(&[i64::MIN, 7], |x| x.to_le_bytes());
        let read = parse(&gzip(&array("<i8", "(2)", &data))).unwrap();
        assert_eq!(read.values, Values::I64(vec![i64::MIN, 7]));
        let read = parse(&array("<f8", "()", &0.1f64.to_le_bytes())).unwrap();
        assert_eq!(read, Array { dims: vec![], values: Values::F64(vec![0.1]) });
        let header = r#"{"shape":(2,),"fortran_order":False,"descr":"|u1"}"#;
        let read = parse(&npy(2, header, &[4, 5])).unwrap();
        assert_eq!(read, Array { dims: vec![2], values: Values::U8(vec![4, 5]) });
    }

    #[test]
    fn every_cut_and_every_extra_byte_is_refused() {
        let whole = array("<i4", "(2, 1)", &le(&[1i32, 2], |x| x.to_le_bytes()));
        parse(&whole).unwrap();
        for end in 0..whole.len() {
            says(&parse(&whole[..end]).unwrap_err(), &["some.npy", "found", "expected"]);
        }
        let mut more = whole;
        more.push(0);
        says(&parse(&more).unwrap_err(), &["more bytes", "the end of the file"]);
    }

    #[test]
    fn headers_that_are_wrong_are_refused_by_name() {
        let refuse = |header: &str| parse(&npy(1, header, &[0; 8])).unwrap_err();
        says(&parse(b"\x93NUMPZ\x01\0").unwrap_err(), &["magic text", "NUMPZ"]);
        says(&parse(&npy(3, "", &[])).unwrap_err(), &["version", "found 3.0", "1.0 or 2.0"]);
        let mut long = npy(2, "", &[]);
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        says(&parse(&long).unwrap_err(), &["header length", "4294967295", "65536"]);
        let all = |descr, order, shape| {
            refuse(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"))
        };
        says(&all("'>f4'", "False", "(2,)"), &["element type", ">f4", "<f4"]);
        says(&all("'|O'", "False", "(2,)"), &["element type", "|O"]);
        says(&all("'<f4'", "True", "(2,)"), &["fortran_order", "True"]);
        says(&all("'<f4'", "1", "(2,)"), &["header", "True or False"]);
        says(&all("['<f4']", "False", "(2,)"), &["header", "a text in quotes"]);
        says(&all("'<f4", "False", "(2,)"), &["header"]);
        says(&all("'<f4'", "False", "(-2,)"), &["header", "`-2,)}`", "a whole number"]);
        says(&all("'<f4'", "False", "(,)"), &["header", "a whole number"]);
        says(&all("'<f4'", "False", "(2 3)"), &["header", "`,` or `)`"]);
        says(&all("'<f4'", "False", "2"), &["header", "`(`"]);
        says(&all("'<f4'", "False", "(99999999999999999999,)"), &["header", "below 2^64"]);
        says(&all("'<f4'", "False", "(2,), 'x': 1"), &["key `x`"]);
        says(&all("'<f4'", "False", "(2,), 'shape': (2,)"), &["key `shape`", "once each"]);
        says(&all("'<f4'", "False", "(2,)} x"), &["nothing after"]);
        says(&refuse("{'descr': '<f4', 'shape': (2,)}"), &["a missing key"]);
        says(&refuse(""), &["header", "the end", "`{`"]);
        says(&parse(&npy(1, "", b"")).unwrap_err(), &["header"]);
        says(&parse(b"\x93NUMPY\x01\0\x02\0{\xff").unwrap_err(), &["no text"]);
        // Sizes that overflow, and sizes that are not there.
        let huge = format!("({}, {})", u64::MAX, 2);
        says(&all("'|u1'", "False", &huge), &["shape", "64 bits"]);
        says(&all("'<f8'", "False", "(1152921504606846976,)"), &["elements", "after 8 bytes"]);
    }

    #[test]
    fn features_and_labels_become_a_data_set() {
        let folder = Folder::new();
        let x = |descr: &str, shape: &str, data: &[u8]| {
            folder.file("x.npy", &array(descr, shape, data))
        };
        let y = |descr: &str, shape: &str, data: &[u8]| {
            folder.file("y.npy", &array(descr, shape, data))
        };
        let doubles = le(&[0.5f64, 1.0, 2.0, -1.0], |x| x.to_le_bytes());
        let longs = le(&[1i64, 0], |x| x.to_le_bytes());
        let set = load(&x("<f8", "(2, 2)", &doubles), &y("<i8", "(2,)", &longs), &[]).unwrap();
        assert_eq!(set.samples(), &Samples::F32(vec![0.5, 1.0, 2.0, -1.0]));
        assert_eq!((set.labels(), set.shape()), (&[1, 0][..], Shape::rows(1, 2)));
        assert_eq!(set.names(), ["0", "1"]);
        // Images of bytes stay bytes; labels of shape (N, 1) and of floats.
        let floats = le(&[1.0f32, 0.0], |x| x.to_le_bytes());
        let set = load(&x("|u1", "(2, 1, 2)", &[1, 2, 3, 4]), &y("<f4", "(2, 1)", &floats), &[]);
        let set = set.unwrap();
        assert_eq!(set.samples(), &Samples::U8(vec![1, 2, 3, 4]));
        assert_eq!(set.shape(), Shape::new(1, 1, 1, 2));
        let ints = le(&[-3i32, 3], |x| x.to_le_bytes());
        let set = load(&x("<i4", "(2, 1, 1, 1)", &ints), &y("|u1", "(2,)", &[0, 0]), &[]).unwrap();
        assert_eq!(set.samples(), &Samples::F32(vec![-3.0, 3.0]));

        let bytes = x("|u1", "(2, 1)", &[1, 2]);
        let error = load(&bytes, &y("|u1", "(3,)", &[0; 3]), &[]).unwrap_err();
        says(&error, &["y.npy", "shape", "[3]", "(2)"]);
        let error = load(&bytes, &y("<i4", "(2,)", &ints), &[]).unwrap_err();
        says(&error, &["y.npy", "label of sample 0", "found -3", "0 to 65535"]);
        let halves = le(&[1.0f64, 0.5], |x| x.to_le_bytes());
        let error = load(&bytes, &y("<f8", "(2,)", &halves), &[]).unwrap_err();
        says(&error, &["label of sample 1", "found 0.5"]);
        let labels = y("|u1", "(2,)", &[0, 2]);
        let error = load(&bytes, &labels, &["a".into(), "b".into()]).unwrap_err();
        says(&error, &["y.npy", "label of sample 1", "found 2"]);
        let big = le(&[1e300f64, 0.0], |x| x.to_le_bytes());
        let error = load(&x("<f8", "(2, 1)", &big), &labels, &[]).unwrap_err();
        says(&error, &["x.npy", "sample 0", "inf", "finite"]);
        let error = load(&x("|u1", "(2,)", &[1, 2]), &labels, &[]).unwrap_err();
        says(&error, &["x.npy", "shape", "[2]", "(N, D)"]);
        let error = load(&x("|u1", "(4294967296, 0)", &[]), &labels, &[]).unwrap_err();
        says(&error, &["x.npy", "shape", "below 2^32"]);
        let error = load(&x("|u1", "(2, 0)", &[]), &labels, &[]).unwrap_err();
        says(&error, &["x.npy", "shape of a sample"]);
    }

    proptest::proptest! {
        /// No header makes the reader fail otherwise than with an error, and what it reads has
        /// the length that its shape says.
        #[test]
        fn no_header_panics(
            header in "[{}(),: 'a-z0-9<|_A-Z]{0,80}",
            shape in "[0-9, ]{0,12}",
            data in proptest::collection::vec(0u8.., 0..40),
        ) {
            let near = format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({shape})}}");
            for header in [header, near] {
                if let Ok(Array { dims, values: Values::I32(values) }) =
                    parse(&npy(1, &header, &data))
                {
                    assert_eq!(dims.iter().product::<u64>(), values.len() as u64);
                }
            }
        }
    }
}
