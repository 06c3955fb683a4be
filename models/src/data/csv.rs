//! Tables of features as comma-separated values (RFC 4180).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use sepal_core::shape::Shape;

use super::{DataError, Dataset, Samples};

/// Whether the first row names the columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Header {
    /// It does where none of its features is a number, or where the target is asked for by name.
    #[default]
    Detect,
    /// It does.
    Yes,
    /// It holds values.
    No,
}

/// Which column holds the label or the target; all others are features.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Column {
    /// The last one.
    #[default]
    Last,
    /// The one at this place, counted from 0.
    Index(usize),
    /// The one that the header calls so.
    Name(String),
}

/// What a row is to be told apart by.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Target {
    /// A class. Where the list of names is empty, the classes are the texts of the column: in
    /// the order of their numbers where all are integers, else in the order of their bytes.
    /// Otherwise each text must be one of the names (a test set takes its training set's).
    Class(Vec<String>),
    /// A number to predict.
    Real,
}

impl Default for Target {
    fn default() -> Self {
        Self::Class(Vec::new())
    }
}

/// How to read a table.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Options {
    /// Whether the first row names the columns.
    pub header: Header,
    /// Which column holds the label or the target.
    pub column: Column,
    /// What that column means.
    pub target: Target,
    /// The byte between two columns, a comma unless set.
    pub delimiter: u8,
    /// The shape of a sample, where the features are an image's pixels, say; its elements are as
    /// many as the features. A vector of features unless set.
    pub shape: Option<Shape>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            header: Header::default(),
            column: Column::default(),
            target: Target::default(),
            delimiter: b',',
            shape: None,
        }
    }
}

/// Reads a table: a sample a row, a feature a column, and the label or target in one of them.
///
/// Spaces around a value are ignored, and so are empty lines.
///
/// # Errors
/// A file that cannot be read, rows of different lengths, a column that is not there, a feature
/// or target that is no finite number (the message names row and column), an empty label, a
/// label without a name, and a table without rows. Rows are counted as lines of the file, from 1.
pub fn load(path: &Path, options: &Options) -> Result<Dataset, DataError> {
    let file =
        File::open(path).map_err(|error| DataError::io(path, "could not be opened", error))?;
    let mut reader = ::csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(false)
        .delimiter(options.delimiter)
        .trim(::csv::Trim::All)
        .from_reader(file);
    let mut table = Table::new(path, options);
    let mut record = ::csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|error| broken(path, error))? {
        table.row(&record)?;
    }
    table.finish()
}

/// The rows read so far.
struct Table<'a> {
    path: &'a Path,
    options: &'a Options,
    /// The columns' names, empty without a header.
    columns: Vec<String>,
    /// Where the label is, once the first row was seen.
    label: Option<usize>,
    features: Vec<f32>,
    width: usize,
    texts: Vec<String>,
    targets: Vec<f32>,
    rows: Vec<u64>,
}

impl<'a> Table<'a> {
    fn new(path: &'a Path, options: &'a Options) -> Self {
        Self {
            path,
            options,
            columns: Vec::new(),
            label: None,
            features: Vec::new(),
            width: 0,
            texts: Vec::new(),
            targets: Vec::new(),
            rows: Vec::new(),
        }
    }

    fn row(&mut self, record: &::csv::StringRecord) -> Result<(), DataError> {
        let label = match self.label {
            Some(label) => label,
            None => {
                let (label, header) = self.first(record)?;
                self.label = Some(label);
                if header {
                    return Ok(());
                }
                label
            }
        };
        let line = record.position().map_or(0, ::csv::Position::line);
        for (column, text) in record.iter().enumerate() {
            if column != label {
                let value = self.number(line, column, text)?;
                self.features.push(value);
            } else if self.options.target == Target::Real {
                let value = self.number(line, column, text)?;
                self.targets.push(value);
            } else if text.is_empty() {
                return Err(self.wrong(line, column, "nothing", "a class"));
            } else {
                self.texts.push(text.to_owned());
            }
        }
        self.width = record.len() - 1;
        self.rows.push(line);
        Ok(())
    }

    /// Finds the label's column, and whether this row is a header.
    fn first(&mut self, record: &::csv::StringRecord) -> Result<(usize, bool), DataError> {
        if record.len() < 2 {
            let found = format!("{} column", record.len());
            return Err(self.content("row 1", found, "2 or more, one of them the label's"));
        }
        let named = match &self.options.column {
            Column::Last => Ok(record.len() - 1),
            Column::Index(index) => Ok(*index),
            Column::Name(name) => Err(name),
        };
        let header = match self.options.header {
            Header::Yes => true,
            Header::No => false,
            Header::Detect => match named {
                Err(_) => true,
                Ok(label) => record
                    .iter()
                    .enumerate()
                    .all(|(column, text)| column == label || text.parse::<f32>().is_err()),
            },
        };
        if header {
            self.columns = record.iter().map(str::to_owned).collect();
        }
        let label = match named {
            Ok(label) if label < record.len() => label,
            Ok(label) => {
                let expected = format!("0 to {}", record.len() - 1);
                return Err(self.content("column of the label", label.to_string(), expected));
            }
            Err(name) => match self.columns.iter().position(|column| column == name) {
                Some(label) => label,
                None if self.columns.is_empty() => {
                    let expected = format!("a header with a column `{name}`");
                    return Err(self.content("row 1", "no header", expected));
                }
                None => {
                    let found = format!("the columns `{}`", self.columns.join("`, `"));
                    return Err(self.content("header", found, format!("a column `{name}`")));
                }
            },
        };
        Ok((label, header))
    }

    fn number(&self, line: u64, column: usize, text: &str) -> Result<f32, DataError> {
        match text.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(self.wrong(line, column, format!("`{text}`"), "a finite number")),
        }
    }

    fn finish(self) -> Result<Dataset, DataError> {
        if self.rows.is_empty() {
            return Err(self.content("table", "no rows of values", "1 or more"));
        }
        let shape = match (self.options.shape, u32::try_from(self.width)) {
            (Some(shape), _) if shape.sample().map(|size| size as usize) == Some(self.width) => {
                shape
            }
            (Some(shape), _) => {
                let found = format!("{} features", self.width);
                let expected = format!("the elements of a sample of shape {shape}");
                return Err(self.content("columns", found, expected));
            }
            (None, Ok(width)) => Shape::rows(1, width),
            (None, Err(_)) => {
                let found = format!("{} features", self.width);
                return Err(self.content("columns", found, "at most 4294967295"));
            }
        };
        let (labels, names) = match &self.options.target {
            Target::Real => {
                let features = Samples::F32(self.features);
                return Dataset::with_targets(shape, features, self.targets)
                    .map_err(|error| error.of(self.path));
            }
            Target::Class(names) if names.is_empty() => self.classes()?,
            Target::Class(names) => (self.known(names)?, names.clone()),
        };
        Dataset::new(shape, Samples::F32(self.features), labels, names)
            .map_err(|error| error.of(self.path))
    }

    /// The classes in the column, sorted, and each row's place among them.
    fn classes(&self) -> Result<(Vec<u16>, Vec<String>), DataError> {
        let numbers = self.texts.iter().all(|text| text.parse::<i64>().is_ok());
        let key = |text: &str| if numbers { text.parse::<i64>().unwrap_or(0) } else { 0 };
        let mut order: BTreeMap<(i64, &str), u16> = BTreeMap::new();
        for text in &self.texts {
            order.insert((key(text), text), 0);
        }
        if order.len() > 1 << 16 {
            let found = format!("{} different values", order.len());
            let expected = "at most 65536 classes (numbers to predict are Target::Real)";
            return Err(self.content("column of the label", found, expected));
        }
        let names = order.keys().map(|(_, text)| (*text).to_owned()).collect();
        order.values_mut().zip(0..=u16::MAX).for_each(|(place, label)| *place = label);
        let place = |text: &String| order.get(&(key(text), text.as_str())).copied().unwrap_or(0);
        Ok((self.texts.iter().map(place).collect(), names))
    }

    /// Each row's place among names that are given.
    fn known(&self, names: &[String]) -> Result<Vec<u16>, DataError> {
        let places: BTreeMap<&str, u16> =
            names.iter().map(String::as_str).zip(0..=u16::MAX).collect();
        let mut labels = Vec::with_capacity(self.texts.len());
        for (text, &line) in self.texts.iter().zip(&self.rows) {
            let Some(&place) = places.get(text.as_str()) else {
                let shown = names.iter().take(20).map(String::as_str).collect::<Vec<_>>();
                let expected = format!("one of the {} classes: {}", names.len(), shown.join(", "));
                let column = self.label.unwrap_or(0);
                return Err(self.wrong(line, column, format!("`{text}`"), expected));
            };
            labels.push(place);
        }
        Ok(labels)
    }

    fn content(
        &self,
        place: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> DataError {
        DataError::content(self.path, place, found, expected)
    }

    fn wrong(
        &self,
        line: u64,
        column: usize,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> DataError {
        let place = match self.columns.get(column) {
            Some(name) => format!("row {line}, column `{name}`"),
            None => format!("row {line}, column {column} (counted from 0)"),
        };
        DataError::content(self.path, place, found, expected)
    }
}

/// What the CSV reader refused.
pub(super) fn broken(path: &Path, error: ::csv::Error) -> DataError {
    let row = |pos: &Option<::csv::Position>| match pos {
        Some(pos) => format!("row {}", pos.line()),
        None => "a row".to_owned(),
    };
    match error.kind() {
        ::csv::ErrorKind::UnequalLengths { pos, expected_len, len } => DataError::content(
            path,
            row(pos),
            format!("{len} columns"),
            format!("{expected_len}, as in the first row"),
        ),
        ::csv::ErrorKind::Utf8 { pos, err } => DataError::content(
            path,
            row(pos),
            format!("bytes that are no UTF-8 in column {}", err.field()),
            "UTF-8 text",
        ),
        _ => match error.into_kind() {
            ::csv::ErrorKind::Io(error) => DataError::io(path, "could not be read", error),
            other => DataError::content(path, "table", format!("{other:?}"), "a CSV file"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, says};
    use super::*;

    fn parse(text: impl AsRef<[u8]>, options: &Options) -> Result<Dataset, DataError> {
        let folder = Folder::new();
        load(&folder.file("table.csv", text.as_ref()), options)
    }

    fn features(set: &Dataset) -> &[f32] {
        let Samples::F32(data) = set.samples() else { panic!("numbers") };
        data
    }

    #[test]
    fn the_header_is_found_and_the_last_column_is_the_label() {
        for text in [
            "w,h,kind\n1,2,cat\n3,4.5,ant\n 5 , 6e1 ,cat\n",
            "1,2,cat\r\n3,4.5,ant\r\n\r\n5,60,cat",
        ] {
            let set = parse(text, &Options::default()).unwrap();
            assert_eq!(set.shape(), Shape::rows(1, 2));
            assert_eq!(features(&set), [1.0, 2.0, 3.0, 4.5, 5.0, 60.0]);
            assert_eq!(
                (set.labels(), set.names()),
                (&[1, 0, 1][..], &["ant".into(), "cat".into()][..])
            );
        }
    }

    #[test]
    fn integer_labels_are_classes_in_the_order_of_numbers() {
        let set = parse("1,10\n2,9\n3,-1\n4,10\n", &Options::default()).unwrap();
        assert_eq!(set.names(), ["-1", "9", "10"]);
        assert_eq!(set.labels(), [2, 1, 0, 2]);
        let mixed = parse("1,10\n2,9\n3,x\n", &Options::default()).unwrap();
        assert_eq!(mixed.names(), ["10", "9", "x"]);
    }

    #[test]
    fn the_label_is_chosen_by_index_or_name() {
        let text = "kind,w,h\na,1,2\nb,3,4\n";
        for column in [Column::Index(0), Column::Name("kind".into())] {
            let set = parse(text, &Options { column, ..Options::default() }).unwrap();
            assert_eq!((features(&set), set.labels()), (&[1.0, 2.0, 3.0, 4.0][..], &[0, 1][..]));
        }
        let by = |column| parse(text, &Options { column, ..Options::default() }).unwrap_err();
        says(&by(Column::Index(3)), &["table.csv", "found 3", "0 to 2"]);
        says(&by(Column::Name("x".into())), &["`kind`, `w`, `h`", "a column `x`"]);
        let options =
            Options { header: Header::No, column: Column::Name("x".into()), ..Options::default() };
        says(&parse("1,2\n", &options).unwrap_err(), &["no header", "`x`"]);
    }

    #[test]
    fn real_targets_are_kept() {
        let options = Options { target: Target::Real, ..Options::default() };
        let set = parse("a,y\n1,0.5\n2,-3\n", &options).unwrap();
        assert_eq!((set.targets(), features(&set)), (&[0.5, -3.0][..], &[1.0, 2.0][..]));
        let error = parse("a,y\n1,0.5\n2,inf\n", &options).unwrap_err();
        says(&error, &["row 3, column `y`", "`inf`", "finite"]);
    }

    #[test]
    fn a_test_table_uses_the_names_of_its_training_table() {
        let target = Target::Class(vec!["b".into(), "a".into()]);
        let options = Options { target, delimiter: b';', ..Options::default() };
        assert_eq!(parse("1;a\n2;b\n", &options).unwrap().labels(), [1, 0]);
        let error = parse("1;a\n2;c\n", &options).unwrap_err();
        says(&error, &["row 2, column 1 (counted from 0)", "`c`", "2 classes: b, a"]);
    }

    #[test]
    fn what_is_no_number_is_refused_by_row_and_column() {
        for bad in ["NaN", "inf", "-inf", "1e39", "x", "", "0x1", "1,5"] {
            let text = format!("w,h,kind\n1,2,a\n3,\"{bad}\",b\n");
            let error = parse(&text, &Options::default()).unwrap_err();
            says(&error, &["table.csv", "row 3, column `h`", &format!("`{bad}`"), "finite"]);
        }
        // Without a header: the first row is partly numbers, so it is no header.
        let error = parse("1,x,a\n1,2,b\n", &Options::default()).unwrap_err();
        says(&error, &["row 1, column 1 (counted from 0)", "`x`"]);
    }

    #[test]
    fn tables_that_are_none_are_refused() {
        let error = |text: &[u8]| parse(text, &Options::default()).unwrap_err();
        says(&error(b""), &["no rows"]);
        says(&error(b"a,b\n"), &["no rows"]);
        says(&error(b"1\n2\n"), &["row 1", "1 column", "2 or more"]);
        says(&error(b"1,2,a\n1,a\n"), &["row 2", "2 columns", "expected 3"]);
        says(&error(b"1,2,a\n1,2,\n"), &["row 2, column 2", "nothing", "a class"]);
        says(&error(b"1,2,a\n1,2,\xff\n"), &["row 2", "UTF-8"]);
        let many: String = (0..65_537).map(|i| format!("1,{i}\n")).collect();
        says(&error(many.as_bytes()), &["65537 different values", "Target::Real"]);
        let error = load(Path::new("no-such.csv"), &Options::default()).unwrap_err();
        says(&error, &["no-such.csv", "could not be opened"]);
    }

    #[test]
    fn features_take_a_shape() {
        let options = Options { shape: Some(Shape::new(1, 1, 2, 2)), ..Options::default() };
        let set = parse("1,2,3,4,a\n", &options).unwrap();
        assert_eq!(set.shape(), Shape::new(1, 1, 2, 2));
        let error = parse("1,2,3,a\n", &options).unwrap_err();
        says(&error, &["3 features", "1x1x2x2"]);
    }

    proptest::proptest! {
        /// No text makes the reader fail otherwise than with an error, and what it reads is whole.
        #[test]
        fn no_table_panics(text in "[a-c0-9.,;\"\r\n \\-]{0,60}") {
            for target in [Target::default(), Target::Real] {
                let options = Options { target, ..Options::default() };
                if let Ok(set) = parse(&text, &options) {
                    let size = set.shape().sample().unwrap() as usize;
                    assert_eq!(features(&set).len(), size * set.labels().len());
                }
            }
        }
    }
}
