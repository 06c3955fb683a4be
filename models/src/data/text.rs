//! Labelled texts as comma-separated values, read character by character: AG's News, DBPedia and
//! their relatives (Zhang, Zhao and LeCun 2015).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sepal_core::shape::Shape;

use super::csv::broken;
use super::{DataError, Dataset, Samples};
use crate::vdcnn;

/// Reads texts: a text a row, its class in the first column, counted from 1, then its parts, such
/// as title and description, which are joined by spaces. A sample is the tokens of the first
/// `length` characters, bytes of shape (1, 1, 1, `length`); see [`vdcnn::encode`].
///
/// A backslash and an n are a new line, as the files' makers write one.
///
/// # Errors
/// A file that cannot be read or is no UTF-8, a row without text, a class that is no number of a
/// name, a file that ends within quotes (as one that is cut off may), and a file without rows. Rows
/// are counted as lines of the file, from 1.
pub fn load(path: &Path, names: &[String], length: u32) -> Result<Dataset, DataError> {
    let file =
        File::open(path).map_err(|error| DataError::io(path, "could not be opened", error))?;
    let metadata = file.metadata();
    let len = metadata.map_err(|error| DataError::io(path, "could not be read", error))?.len();
    // One more row behind the last: quotes that are open there would take it in.
    let mut reader = ::csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(file.chain(&b"\nend"[..]));
    let (mut tokens, mut labels) = (Vec::new(), Vec::new());
    let mut record = ::csv::StringRecord::new();
    let (mut row, mut ends) = (String::new(), false);
    while reader.read_record(&mut record).map_err(|error| broken(path, error))? {
        if record.position().is_some_and(|position| position.byte() >= len) {
            ends = true;
            break;
        }
        row = format!("row {}", record.position().map_or(0, ::csv::Position::line));
        let mut parts = record.iter();
        let class = parts.next().unwrap_or_default();
        match class.trim().parse::<usize>() {
            Ok(number) if (1..=names.len()).contains(&number) => labels.push((number - 1) as u16),
            _ => {
                let expected = format!("a class from 1 to {}", names.len());
                return Err(DataError::content(path, row, format!("`{class}`"), expected));
            }
        }
        let text = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        if text.trim().is_empty() {
            return Err(DataError::content(path, row, "no text", "a class and its text"));
        }
        let from = tokens.len();
        tokens.resize(from + length as usize, 0);
        vdcnn::encode(&text.replace("\\n", "\n"), &mut tokens[from..]);
    }
    if !ends {
        return Err(DataError::content(path, row, "open quotes", "quotes that are closed"));
    }
    let shape = Shape::new(1, 1, 1, length);
    Dataset::new(shape, Samples::U8(tokens), labels, names.to_vec()).map_err(|e| e.of(path))
}

/// Reads the names of classes, one a line.
///
/// # Errors
/// A file that cannot be read, or without names.
pub fn names(path: &Path) -> Result<Vec<String>, DataError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| DataError::io(path, "could not be read", error))?;
    // A line that is empty between others would give those behind it another number.
    let names: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_owned()).collect();
    if let Some(empty) = names.iter().position(String::is_empty) {
        let line = format!("line {}", empty + 1);
        return Err(DataError::content(path, line, "no name", "a class's name in each line"));
    }
    if names.is_empty() {
        return Err(DataError::content(path, "file", "no names", "a class's name in each line"));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::{Folder, says};

    fn two() -> Vec<String> {
        vec!["World".to_owned(), "Sports".to_owned()]
    }

    fn tokens(text: &str, length: usize) -> Vec<u8> {
        let mut tokens = vec![9; length];
        vdcnn::encode(text, &mut tokens);
        tokens
    }

    #[test]
    fn titles_and_descriptions_are_one_text() {
        let folder = Folder::new();
        let table = "\"2\",\"Cup\",\"A \"\"win\"\"\\nat last\"\n\"1\",\"\",\"Rain, again\"\n2,x\n";
        let path = folder.file("train.csv", table.as_bytes());
        let set = load(&path, &two(), 20).unwrap();
        assert_eq!((set.shape(), set.labels()), (Shape::new(1, 1, 1, 20), &[1, 0, 1][..]));
        let expected = ["Cup A \"win\"\nat last", "Rain, again", "x"].map(|t| tokens(t, 20));
        assert_eq!(set.samples(), &Samples::U8(expected.concat()));
        assert_eq!(set.names(), two());
    }

    #[test]
    fn a_malformed_row_is_named() {
        let folder = Folder::new();
        let refused = |table: &[u8]| load(&folder.file("x.csv", table), &two(), 8).unwrap_err();
        says(&refused(b"1,a\n3,b\n"), &["x.csv", "row 2", "`3`", "1 to 2"]);
        says(&refused(b"1,a\n0,b\n"), &["row 2", "`0`"]);
        says(&refused(b"1,a\n\"1,b\nc\n"), &["row 2", "class"]);
        says(&refused(b"Sports,a\n"), &["row 1", "`Sports`", "a class from 1 to 2"]);
        says(&refused(b"1,a\n1\n"), &["row 2", "no text", "a class and its text"]);
        says(&refused(b"1,a\n2,, \n"), &["row 2", "no text"]);
        says(&refused(b"1,a\n2,\"b\n1,c\n2,d\n"), &["row 2", "open quotes", "closed"]);
        says(&refused(b"1,a\n2,b\n1,\"c"), &["row 3", "open quotes"]);
        says(&refused(b"1,a\n2,\xff\n"), &["row 2", "UTF-8", "column 1"]);
        says(&refused(b""), &["x.csv", "0 samples"]);
        let missing = load(&folder.path().join("none.csv"), &two(), 8).unwrap_err();
        says(&missing, &["none.csv", "could not be opened"]);
    }

    #[test]
    fn names_are_lines() {
        let folder = Folder::new();
        let path = folder.file("classes.txt", b"World\r\nSports\n\n");
        assert_eq!(names(&path).unwrap(), two());
        let path = folder.file("classes.txt", b" \n");
        says(&names(&path).unwrap_err(), &["classes.txt", "no names"]);
        says(&names(&folder.path().join("none")).unwrap_err(), &["none", "could not be read"]);
    }
}
