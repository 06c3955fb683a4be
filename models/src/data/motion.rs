//! Recordings of motion by several persons, as of the gestures of the "magic wand" of TensorFlow
//! Lite for Microcontrollers, where one person is left out to be met later.
//!
//! The file is a table with a line for each reading of an accelerometer:
//!
//! ```text
//! label,person,recording,t,x,y,z
//! ring,ann,0,0,0.1,-0.4,0.9
//! ring,ann,0,1,0.2,-0.4,0.8
//! ring,ann,1,0,120,-310,950
//! ```
//! Lines of a recording follow each other, `t` counts them from 0. [`load`] makes a sample of each
//! recording: 3 channels of [`LENGTH`] bytes.
//!
//! The archive at `http://download.tensorflow.org/models/tflite/magic_wand/data.tar.gz` has a text
//! file for each gesture and person. In its folder this makes the table of them:
//!
//! ```sh
//! echo label,person,recording,t,x,y,z >magic_wand.csv
//! for file in */output_*_*.txt; do
//!     name=${file##*/output_} name=${name%.txt}
//!     awk -F, -v "label=${name%%_*}" -v "person=${name#*_}" 'BEGIN { n = -1 } NF != 3 { next }
//!         $3 == "-" { fresh = 1; next } n < 0 || fresh { n++; t = fresh = 0 }
//!         { print label "," person "," n "," t++ "," $0 }' "$file"
//! done >>magic_wand.csv
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use sepal_core::shape::Shape;

use super::csv::broken;
use super::{DataError, Dataset, Samples, Split};

/// Readings of a sample: 5 seconds at 25 Hz, as the source has them.
pub const LENGTH: u32 = 128;

/// The fewest readings of a recording.
const LEAST: usize = LENGTH as usize / 4;

const COLUMNS: [&str; 7] = ["label", "person", "recording", "t", "x", "y", "z"];

/// The byte of no acceleration, and how many bytes more gravity is: from -4 g to 4 g.
const ZERO: f64 = 128.0;
const GRAVITY: f64 = 32.0;

/// Reads a table of recordings: those of the person `left_out` are the test set, all others the
/// training set. Unless one is named it is the first by name of those with the most classes.
///
/// The length of a reading is gravity's most of the time. So each recording is divided by the median
/// length of its readings, whatever unit they are in, and then cut to -4 to 4 g and rounded to 1/32 g:
///
/// ```text
/// byte = round(128 + 32 x / median_t |x_t|)
/// ```
/// A short recording stands in the middle of its sample, and its first and last reading go on to the
/// sample's ends. One of several times [`LENGTH`] is cut into that many samples, without what is left.
///
/// # Errors
/// A file that cannot be read, other columns, rows with more or fewer of them, a label or person
/// without a name, a reading that is no finite number, readings that are not in order, a recording
/// twice, one of fewer than 32 readings or without any acceleration; fewer than two persons, and a
/// person who is not there. Messages name the row.
pub fn load(path: &Path, left_out: Option<&str>) -> Result<Split, DataError> {
    let file =
        File::open(path).map_err(|error| DataError::io(path, "could not be opened", error))?;
    let mut reader = ::csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(false)
        .trim(::csv::Trim::All)
        .from_reader(file);
    let mut row = ::csv::StringRecord::new();
    let header = reader.read_record(&mut row).map_err(|error| broken(path, error))?;
    if !header || row != COLUMNS[..] {
        let found = match header {
            true => format!("the columns `{}`", row.iter().collect::<Vec<_>>().join("`, `")),
            false => "an empty file".to_owned(),
        };
        let expected = format!("the columns `{}`", COLUMNS.join("`, `"));
        return Err(DataError::content(path, "header", found, expected));
    }
    let mut table = Table::new(path);
    while reader.read_record(&mut row).map_err(|error| broken(path, error))? {
        table.row(&row)?;
    }
    table.end()?;
    table.split(left_out)
}

/// Whose recording of what, and which.
type Key = [String; 3];

/// A person's samples: of each the bytes, and the class.
type Own = Vec<(Vec<u8>, String)>;

/// The rows read so far.
struct Table<'a> {
    path: &'a Path,
    /// The recording that is being read, and the line where it began.
    key: Key,
    line: u64,
    readings: Vec<[f32; 3]>,
    done: BTreeSet<Key>,
    persons: BTreeMap<String, Own>,
}

impl<'a> Table<'a> {
    fn new(path: &'a Path) -> Self {
        let (done, persons) = (BTreeSet::new(), BTreeMap::new());
        Self { path, key: Key::default(), line: 0, readings: Vec::new(), done, persons }
    }

    fn wrong(
        &self,
        line: u64,
        column: &str,
        found: &str,
        expected: impl Into<String>,
    ) -> DataError {
        let place = format!("row {line}, column `{column}`");
        DataError::content(self.path, place, format!("`{found}`"), expected)
    }

    fn row(&mut self, row: &::csv::StringRecord) -> Result<(), DataError> {
        let line = row.position().map_or(0, ::csv::Position::line);
        let text = |column: usize| row.get(column).unwrap_or_default();
        let key = [0, 1, 2].map(|column| text(column).to_owned());
        if let Some(empty) = key.iter().position(String::is_empty) {
            return Err(self.wrong(line, COLUMNS[empty], "", "a name"));
        }
        if key != self.key {
            self.end()?;
            if self.done.contains(&key) {
                let expected = "a recording's lines all together";
                return Err(self.wrong(line, "recording", &key[2], expected));
            }
            (self.key, self.line) = (key, line);
        }
        let next = self.readings.len();
        if text(3).parse() != Ok(next) {
            return Err(self.wrong(line, "t", text(3), format!("{next}, the next reading")));
        }
        let mut reading = [0.0; 3];
        for (value, column) in reading.iter_mut().zip(4..) {
            *value = match text(column).parse::<f32>() {
                Ok(value) if value.is_finite() => value,
                _ => {
                    let (name, found) = (COLUMNS[column], text(column));
                    return Err(self.wrong(line, name, found, "a finite number"));
                }
            };
        }
        self.readings.push(reading);
        Ok(())
    }

    /// Makes samples of the recording that was read.
    fn end(&mut self) -> Result<(), DataError> {
        let readings = std::mem::take(&mut self.readings);
        let key = std::mem::take(&mut self.key);
        if readings.is_empty() {
            return Ok(());
        }
        let place = format!("recording from row {} on", self.line);
        let refused =
            |found: &str, expected| Err(DataError::content(self.path, &*place, found, expected));
        if readings.len() < LEAST {
            let found = format!("{} readings", readings.len());
            return refused(&found, format!("{LEAST} or more"));
        }
        let square = |x: &f32| f64::from(*x) * f64::from(*x);
        let mut lengths: Vec<f64> =
            readings.iter().map(|r| r.iter().map(square).sum::<f64>().sqrt()).collect();
        let middle = lengths.len() / 2;
        let (_, &mut gravity, _) = lengths.select_nth_unstable_by(middle, f64::total_cmp);
        if gravity == 0.0 {
            return refused("no acceleration", "readings with gravity in them".to_owned());
        }
        let [label, person, _] = &key;
        let own = self.persons.entry(person.clone()).or_default();
        let whole = LENGTH as usize;
        for readings in readings.chunks(whole).take((readings.len() / whole).max(1)) {
            let before = (whole - readings.len()) / 2;
            let at = |t: usize| readings[t.saturating_sub(before).min(readings.len() - 1)];
            // Casting cuts to 0 to 255.
            let byte = |x: f32| (ZERO + GRAVITY * f64::from(x) / gravity).round() as u8;
            let channel = |c: usize| (0..whole).map(move |t| byte(at(t)[c]));
            own.push(((0..3).flat_map(channel).collect(), label.clone()));
        }
        self.done.insert(key);
        Ok(())
    }

    fn split(mut self, left_out: Option<&str>) -> Result<Split, DataError> {
        let known = self.persons.keys().cloned().collect::<Vec<_>>().join(", ");
        let labels =
            |own: &Own| own.iter().map(|(_, label)| label.clone()).collect::<BTreeSet<_>>();
        let names: Vec<String> =
            self.persons.values().flat_map(labels).collect::<BTreeSet<_>>().into_iter().collect();
        // Of the largest the last is taken.
        let most = self.persons.iter().rev().max_by_key(|(_, own)| labels(own).len());
        let most = most.map(|(person, _)| person.as_str());
        let person = left_out.or(most).unwrap_or_default().to_owned();
        let Some(test) = self.persons.remove(&person) else {
            let found = format!("no person `{person}`");
            return Err(DataError::content(self.path, "persons", found, format!("one of {known}")));
        };
        if self.persons.is_empty() {
            let found = format!("`{person}` alone");
            return Err(DataError::content(self.path, "persons", found, "2 or more"));
        }
        let set = |own: Own| {
            let place = |label: &String| names.binary_search(label).unwrap_or_default();
            let labels = own.iter().map(|(_, label)| place(label) as u16).collect();
            let bytes = own.into_iter().flat_map(|(bytes, _)| bytes).collect();
            Dataset::new(Shape::new(1, 3, 1, LENGTH), Samples::U8(bytes), labels, names.clone())
                .map_err(|error| error.of(self.path))
        };
        let train = self.persons.into_values().flatten().collect();
        Ok(Split { train: set(train)?, test: set(test)? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, says};
    use super::*;

    const HEADER: &str = "label,person,recording,t,x,y,z\n";

    /// Lines of a recording whose readings are those of `reading`.
    fn lines(name: &str, count: usize, reading: impl Fn(usize) -> [f32; 3]) -> String {
        let line = |t| {
            let [x, y, z] = reading(t);
            format!("{name},{t},{x},{y},{z}\n")
        };
        (0..count).map(line).collect()
    }

    fn parse(text: impl AsRef<[u8]>, left_out: Option<&str>) -> Result<Split, DataError> {
        let folder = Folder::new();
        load(&folder.file("magic_wand.csv", text.as_ref()), left_out)
    }

    /// Three persons, of whom the second and the third show both gestures.
    fn three() -> String {
        let still = |name| lines(name, 40, |_| [0.0, 0.0, 1.0]);
        ["up,ann,0", "up,cid,0", "down,cid,0", "down,bob,7", "up,bob,7", "up,bob,8"]
            .map(still)
            .concat()
    }

    fn bytes(set: &Dataset) -> &[u8] {
        let Samples::U8(bytes) = set.samples() else { panic!("bytes") };
        bytes
    }

    #[test]
    fn one_person_is_left_out() {
        let table = HEADER.to_owned() + &three();
        for (asked, train, test) in [
            (Some("ann"), &[0, 1, 1, 1, 0][..], &[1][..]),
            (Some("bob"), &[1, 1, 0], &[0, 1, 1]),
            (None, &[1, 1, 0], &[0, 1, 1]),
            (Some("cid"), &[1, 0, 1, 1], &[1, 0]),
        ] {
            let split = parse(&table, asked).unwrap();
            assert_eq!((split.train.labels(), split.test.labels()), (train, test), "{asked:?}");
            assert_eq!(
                (split.train.names(), split.test.names()),
                (&["down".into(), "up".into()][..], split.train.names())
            );
            assert_eq!(split.train.shape(), Shape::new(1, 3, 1, LENGTH));
        }
        says(
            &parse(&table, Some("dan")).unwrap_err(),
            &["magic_wand.csv", "`dan`", "ann, bob, cid"],
        );
        let alone = HEADER.to_owned() + &lines("up,ann,0", 40, |_| [1.0; 3]);
        says(&parse(&alone, None).unwrap_err(), &["`ann` alone", "2 or more"]);
    }

    #[test]
    fn readings_are_in_units_of_gravity_and_stand_in_the_middle() {
        let count = 101;
        // The first lies at rest, the last is past what a byte holds.
        let reading = |t: usize, unit: f32| match t {
            0 => [0.0, -unit, 0.0],
            100 => [9.0 * unit, -9.0 * unit, 0.5 * unit],
            _ => [0.0, 0.0, unit],
        };
        let table = |unit| {
            let own = lines("up,ann,0", count, |t| reading(t, unit));
            HEADER.to_owned() + &own + &lines("up,bob,0", count, |t| reading(t, unit))
        };
        let split = parse(table(1.0), None).unwrap();
        let (length, before) = (LENGTH as usize, (LENGTH as usize - count) / 2);
        let at = |channel: usize, t: usize| bytes(&split.test)[channel * length + t];
        for t in 0..length {
            let expected = match t.saturating_sub(before) {
                0 => [128, 96, 128],
                100.. => [255, 0, 144],
                _ => [128, 128, 160],
            };
            assert_eq!([0, 1, 2].map(|channel| at(channel, t)), expected, "{t}");
        }
        for unit in [1e-30, 9.81, 1000.0, 1e30] {
            assert_eq!(parse(table(unit), None).unwrap(), split, "{unit}");
        }
    }

    #[test]
    fn long_recordings_are_cut() {
        let samples = |count: usize| {
            let reading =
                |t: usize| if t < 2 * LENGTH as usize { [0.0, 0.0, 1.0] } else { [1.0, 0.0, 0.0] };
            let table = lines("up,ann,0", count, reading) + &lines("up,bob,0", 32, |_| [1.0; 3]);
            parse(HEADER.to_owned() + &table, Some("ann")).unwrap().test
        };
        let (once, twice) = (LENGTH as usize, 2 * LENGTH as usize);
        for (count, expected) in [(32, 1), (once, 1), (twice - 1, 1), (twice, 2), (twice + 90, 2)] {
            assert_eq!(samples(count).len(), expected, "{count}");
        }
        // What is left over is not in the samples.
        assert_eq!(samples(twice + 90).samples(), samples(twice).samples());
    }

    #[test]
    fn hostile_tables_are_refused_by_row_and_column() {
        let refused = |text: &[u8], words: &[&str]| {
            says(&parse(text, None).unwrap_err(), &[&["magic_wand.csv"], words].concat());
        };
        refused(b"", &["an empty file", "`label`, `person`"]);
        refused(b"\n\n", &["an empty file"]);
        refused(HEADER.as_bytes(), &["no person", "one of"]);
        refused(b"label,person,recording,t,x,y\n", &["`x`, `y`", "`z`"]);
        refused(b"label,person,recording,t,x,z,y\n", &["`z`, `y`", "`y`, `z`"]);
        refused(b"up,ann,0,0,1,2,3\n", &["header", "`up`"]);
        let bad = |line: &str, words: &[&str]| {
            let good = lines("up,ann,0", 2, |_| [1.0; 3]);
            refused(format!("{HEADER}{good}{line}\n").as_bytes(), words);
        };
        bad("up,ann,0,2,1,2", &["row 4", "6 columns", "expected 7"]);
        bad("up,ann,0,2,1,2,3,4", &["row 4", "8 columns"]);
        for number in ["x", "NaN", "-inf", "1e39", "", "1.5g"] {
            bad(&format!("up,ann,0,2,1,{number},3"), &["row 4, column `y`", number, "finite"]);
        }
        bad(",ann,0,2,1,2,3", &["row 4, column `label`", "a name"]);
        bad("up,,0,2,1,2,3", &["row 4, column `person`", "a name"]);
        bad("up,ann,,2,1,2,3", &["row 4, column `recording`", "a name"]);
        for t in ["1", "3", "-1", "2.0", ""] {
            bad(&format!("up,ann,0,{t},1,2,3"), &["row 4, column `t`", t, "expected 2"]);
        }
        bad("up,ann,1,0,1,2,3", &["recording from row 2 on", "2 readings", "32 or more"]);
        bad("up,ann,0,2,1,2,\u{0}3", &["row 4, column `z`"]);
        let not_text = [HEADER.as_bytes(), b"up,ann,0,0,1,2,\xff\n"].concat();
        refused(&not_text, &["row 2", "UTF-8"]);
        let again = HEADER.to_owned() + &three() + "up,ann,0,0,1,2,3\n";
        refused(again.as_bytes(), &["row 242, column `recording`", "all together"]);
        let weightless = HEADER.to_owned() + &three() + &lines("up,dan,0", 40, |_| [0.0; 3]);
        refused(weightless.as_bytes(), &["recording from row 242 on", "no acceleration"]);
        // Cut off within a line, and within a recording.
        let whole = HEADER.to_owned() + &three();
        refused(&whole.as_bytes()[..whole.len() - 7], &["columns"]);
        let few = whole.lines().take(1 + 5 * 40 + 20).collect::<Vec<_>>().join("\n");
        refused(few.as_bytes(), &["row 202", "20 readings"]);
        let folder = Folder::new();
        says(&load(&folder.path().join("none"), None).unwrap_err(), &["could not be opened"]);
    }

    proptest::proptest! {
        /// No bytes in a table make the reader fail otherwise than with an error.
        #[test]
        fn no_table_panics(
            at in 0usize..6000,
            with in proptest::collection::vec(proptest::num::u8::ANY, 0..12),
            cut in 0usize..20,
        ) {
            let mut table = (HEADER.to_owned() + &three()).into_bytes();
            let at = at.min(table.len());
            let end = (at + cut).min(table.len());
            table.splice(at..end, with);
            if let Ok(split) = parse(&table, None) {
                let size = split.test.shape().sample().unwrap() as usize;
                proptest::prop_assert_eq!(bytes(&split.test).len(), size * split.test.labels().len());
            }
        }
    }
}
