//! Labelled samples in memory.

use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};

use super::DataError;

/// The elements of all samples, one sample after the other.
#[derive(Clone, Debug, PartialEq)]
pub enum Samples {
    /// Bytes, as images have them: 0 to 255, not scaled.
    U8(Vec<u8>),
    /// Numbers, all finite.
    F32(Vec<f32>),
}

impl Samples {
    /// How many elements there are.
    fn len(&self) -> usize {
        match self {
            Self::U8(data) => data.len(),
            Self::F32(data) => data.len(),
        }
    }
}

/// Mean and deviation of elements, in the units they are stored in (0 to 255 for bytes).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// The mean, `m = (1/n) sum_i x_i`.
    pub mean: f64,
    /// The standard deviation, `sqrt((1/n) sum_i (x_i - m)^2)`.
    pub std: f64,
}

/// Labelled samples of one shape in memory.
///
/// Every value of this type is valid: there is at least one sample, each label has a class name,
/// and every number is finite. It is a [`Source`] as it stands, and so is a reference to it, so
/// that several readers can share one.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::data::{Dataset, Samples};
///
/// let names = vec!["cold".to_string(), "warm".to_string()];
/// let rows = Samples::F32(vec![-3.0, 0.2, 21.0, 0.4, 25.0, 0.9]);
/// let set = Dataset::new(Shape::rows(1, 2), rows, vec![0, 1, 1], names)?;
/// assert_eq!(set.counts(), [1, 2]);
/// assert_eq!(set.subset(&[2, 0])?.labels(), [1, 0]);
/// # Ok::<(), sepal_models::data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    shape: Shape,
    samples: Samples,
    labels: Vec<u16>,
    names: Vec<String>,
    targets: Vec<f32>,
}

impl Dataset {
    /// Samples of `shape` (its `n` is ignored) and a label for each: its class's place in
    /// `names`.
    ///
    /// # Errors
    /// No samples, an empty shape, samples that are not one whole sample for each label, a label
    /// without a name, more than 65,536 names, a number that is NaN or infinite, and more than
    /// 2^32 - 1 samples.
    pub fn new(
        shape: Shape,
        samples: Samples,
        labels: Vec<u16>,
        names: Vec<String>,
    ) -> Result<Self, DataError> {
        let shape = shape.with_n(1);
        let size = match shape.sample() {
            Some(size) if size > 0 => size as usize,
            _ => {
                let expected = "1 to 4294967295 elements";
                return Err(DataError::samples("shape of a sample", shape.to_string(), expected));
            }
        };
        if labels.is_empty() || u32::try_from(labels.len()).is_err() {
            let found = format!("{} samples", labels.len());
            return Err(DataError::samples("labels", found, "1 to 4294967295 samples"));
        }
        if Some(samples.len()) != labels.len().checked_mul(size) {
            let found = format!("{} elements", samples.len());
            let expected = format!("{} samples of {size} elements", labels.len());
            return Err(DataError::samples("samples", found, expected));
        }
        if names.is_empty() || names.len() > 1 << 16 {
            let found = format!("{} names", names.len());
            return Err(DataError::samples("class names", found, "1 to 65536 names"));
        }
        let wrong = |&(_, &label): &(usize, &u16)| usize::from(label) >= names.len();
        if let Some((sample, label)) = labels.iter().enumerate().find(wrong) {
            let place = format!("label of sample {sample}");
            let expected = format!("0 to {}, a class with a name", names.len() - 1);
            return Err(DataError::samples(place, label.to_string(), expected));
        }
        if let Samples::F32(data) = &samples
            && let Some((at, value)) = data.iter().enumerate().find(|(_, x)| !x.is_finite())
        {
            let place = format!("element {} of sample {}", at % size, at / size);
            return Err(DataError::samples(place, value.to_string(), "a finite number"));
        }
        Ok(Self { shape, samples, labels, names, targets: Vec::new() })
    }

    /// Samples of `shape` with a real number to predict for each, in place of a class: all labels
    /// are 0, the one class is called "target".
    ///
    /// # Errors
    /// Those of [`Dataset::new`], and a target that is NaN or infinite.
    pub fn with_targets(
        shape: Shape,
        samples: Samples,
        targets: Vec<f32>,
    ) -> Result<Self, DataError> {
        if let Some((sample, value)) = targets.iter().enumerate().find(|(_, t)| !t.is_finite()) {
            let place = format!("target of sample {sample}");
            return Err(DataError::samples(place, value.to_string(), "a finite number"));
        }
        let labels = vec![0; targets.len()];
        let set = Self::new(shape, samples, labels, vec!["target".to_owned()])?;
        Ok(Self { targets, ..set })
    }

    /// The shape of a sample, `n == 1`.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How many samples there are, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u32 {
        // The constructor checked that this fits.
        self.labels.len() as u32
    }

    /// All elements.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// The label of each sample: its class's place in the names.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// The classes' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number to predict for each sample; empty where samples have classes.
    pub fn targets(&self) -> &[f32] {
        &self.targets
    }

    /// Gives the classes other names.
    ///
    /// # Errors
    /// Fewer names than the largest label needs, and more than 65,536.
    pub fn rename(&mut self, names: Vec<String>) -> Result<(), DataError> {
        let needed = self.labels.iter().max().map_or(0, |&label| usize::from(label) + 1);
        if names.len() < needed || names.len() > 1 << 16 {
            let found = format!("{} names", names.len());
            return Err(DataError::samples("class names", found, format!("{needed} to 65536")));
        }
        self.names = names;
        Ok(())
    }

    /// How many samples each class has.
    pub fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.names.len()];
        for &label in &self.labels {
            if let Some(count) = counts.get_mut(usize::from(label)) {
                *count += 1;
            }
        }
        counts
    }

    /// The samples at the indices, in their order; an index may come more than once.
    ///
    /// # Errors
    /// No index, or one that is out of range.
    pub fn subset(&self, indices: &[u32]) -> Result<Self, DataError> {
        let wrong = |&(_, &index): &(usize, &u32)| index >= self.len();
        if let Some((place, index)) = indices.iter().enumerate().find(wrong) {
            let expected = format!("0 to {}", self.len() - 1);
            return Err(DataError::samples(format!("index {place}"), index.to_string(), expected));
        }
        fn pick<T: Copy>(data: &[T], size: usize, indices: &[u32]) -> Vec<T> {
            let mut out = Vec::with_capacity(indices.len().saturating_mul(size));
            indices.iter().for_each(|&index| out.extend_from_slice(sample(data, size, index)));
            out
        }
        let size = self.size();
        let samples = match &self.samples {
            Samples::U8(data) => Samples::U8(pick(data, size, indices)),
            Samples::F32(data) => Samples::F32(pick(data, size, indices)),
        };
        let labels = pick(&self.labels, 1, indices);
        let set = Self::new(self.shape, samples, labels, self.names.clone())?;
        Ok(Self { targets: pick(&self.targets, 1, indices), ..set })
    }

    /// The first `n` samples, or all where there are fewer.
    ///
    /// # Errors
    /// `n == 0`.
    pub fn head(&self, n: u32) -> Result<Self, DataError> {
        self.subset(&(0..n.min(self.len())).collect::<Vec<_>>())
    }

    /// Every plane with a border of so many pixels of 0 on each side, for nets that need larger
    /// images: 2 makes 32x32 of 28x28.
    ///
    /// # Errors
    /// A sample of more than 2^32 - 1 elements.
    pub fn padded(&self, pixels: u32) -> Result<Self, DataError> {
        fn frame<T: Copy + Default>(data: &[T], (h, w): (usize, usize), border: usize) -> Vec<T> {
            let wide = w + 2 * border;
            let mut out = Vec::new();
            for plane in data.chunks_exact(h * w) {
                out.resize(out.len() + border * wide, T::default());
                for row in plane.chunks_exact(w) {
                    out.resize(out.len() + border, T::default());
                    out.extend_from_slice(row);
                    out.resize(out.len() + border, T::default());
                }
                out.resize(out.len() + border * wide, T::default());
            }
            out
        }
        let Shape { h, w, .. } = self.shape;
        let side = |side: u32| pixels.checked_mul(2).and_then(|both| both.checked_add(side));
        let shape = side(h).zip(side(w)).map(|(h, w)| Shape { h, w, ..self.shape });
        let Some(shape) = shape.filter(|shape| shape.sample().is_some()) else {
            let expected = format!("a border that keeps {} below 2^32 elements", self.shape);
            return Err(DataError::samples("border", format!("{pixels} pixels"), expected));
        };
        let (size, border) = ((h as usize, w as usize), pixels as usize);
        let samples = match &self.samples {
            Samples::U8(data) => Samples::U8(frame(data, size, border)),
            Samples::F32(data) => Samples::F32(frame(data, size, border)),
        };
        let set = Self::new(shape, samples, self.labels.clone(), self.names.clone())?;
        Ok(Self { targets: self.targets.clone(), ..set })
    }

    /// Mean and deviation of all elements.
    ///
    /// Bytes are summed in integers, exactly; numbers in f64, in two passes.
    pub fn moments(&self) -> Moments {
        let all = self.samples.len() as u64;
        match &self.samples {
            Samples::U8(data) => moments_of_bytes(data.iter(), all),
            Samples::F32(data) => moments_of_numbers(data.iter(), all),
        }
    }

    /// Mean and deviation of each channel.
    pub fn channel_moments(&self) -> Vec<Moments> {
        let (plane, size) = (self.shape.plane() as usize, self.size());
        let count = u64::from(self.len()) * plane as u64;
        (0..self.shape.c as usize)
            .map(|channel| match &self.samples {
                Samples::U8(data) => moments_of_bytes(planes(data, size, plane, channel), count),
                Samples::F32(data) => moments_of_numbers(planes(data, size, plane, channel), count),
            })
            .collect()
    }

    /// Elements of a sample.
    fn size(&self) -> usize {
        self.shape.sample().unwrap_or(0) as usize
    }

    fn copy(
        &self,
        indices: &[u32],
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let len = self.len();
        if let Some(&index) = indices.iter().find(|&&index| index >= len) {
            return Err(SourceError::Index { index, len });
        }
        let size = self.size();
        let (samples, got) = match (&self.samples, batch) {
            (Samples::U8(data), Batch::U8(batch)) => {
                (gather(data, size, indices, batch), batch.len())
            }
            (Samples::F32(data), Batch::F32(batch)) => {
                (gather(data, size, indices, batch), batch.len())
            }
            (_, Batch::U8(batch)) => (false, batch.len()),
            (_, Batch::F32(batch)) => (false, batch.len()),
        };
        if !samples {
            let expected = elements(indices.len().saturating_mul(size));
            return Err(SourceError::Batch { expected, got: elements(got) });
        }
        if !gather(&self.labels, 1, indices, labels) {
            let expected = elements(indices.len());
            return Err(SourceError::Batch { expected, got: elements(labels.len()) });
        }
        Ok(())
    }
}

/// A length as errors report it.
fn elements(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The sample at an index; empty where there is none.
fn sample<T>(data: &[T], size: usize, index: u32) -> &[T] {
    let start = (index as usize).saturating_mul(size);
    data.get(start..start.saturating_add(size)).unwrap_or_default()
}

/// Copies the samples at the indices; whether `out` has their length.
fn gather<T: Copy>(data: &[T], size: usize, indices: &[u32], out: &mut [T]) -> bool {
    let fits = Some(out.len()) == indices.len().checked_mul(size);
    if fits {
        for (out, &index) in out.chunks_exact_mut(size).zip(indices) {
            out.copy_from_slice(sample(data, size, index));
        }
    }
    fits
}

/// The elements of one channel in all samples.
fn planes<T>(
    data: &[T],
    size: usize,
    plane: usize,
    channel: usize,
) -> impl Iterator<Item = &T> + Clone {
    data.chunks_exact(size)
        .filter_map(move |sample| sample.chunks_exact(plane).nth(channel))
        .flatten()
}

pub(super) fn moments_of_bytes<'a>(data: impl Iterator<Item = &'a u8>, count: u64) -> Moments {
    // A sum of squares of 2^48 bytes fits u64.
    let (sum, squares) = data.fold((0u64, 0u64), |(sum, squares), &x| {
        let x = u64::from(x);
        (sum + x, squares + x * x)
    });
    // n^2 times the variance, an integer: no cancellation.
    let spread = u128::from(squares) * u128::from(count) - u128::from(sum) * u128::from(sum);
    Moments { mean: sum as f64 / count as f64, std: (spread as f64).sqrt() / count as f64 }
}

pub(super) fn moments_of_numbers<'a>(
    data: impl Iterator<Item = &'a f32> + Clone,
    count: u64,
) -> Moments {
    let n = count as f64;
    let mean = data.clone().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = data.map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    Moments { mean, std: variance.sqrt() }
}

/// `draw` is not used: samples are given as they are stored.
impl Source for Dataset {
    fn len(&self) -> u32 {
        self.len()
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        matches!(self.samples, Samples::U8(_))
    }

    fn read(
        &mut self,
        indices: &[u32],
        _draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        self.copy(indices, batch, labels)
    }
}

/// A shared data set: each reader holds a reference.
impl Source for &Dataset {
    fn len(&self) -> u32 {
        Dataset::len(self)
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        matches!(self.samples, Samples::U8(_))
    }

    fn read(
        &mut self,
        indices: &[u32],
        _draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        self.copy(indices, batch, labels)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::says;
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("class {i}")).collect()
    }

    fn bytes() -> Dataset {
        // Three samples of 2 channels of 1x2.
        let data = vec![0, 2, 10, 10, 4, 6, 20, 20, 8, 10, 30, 30];
        Dataset::new(Shape::new(9, 2, 1, 2), Samples::U8(data), vec![1, 0, 1], names(3)).unwrap()
    }

    #[test]
    fn a_border_of_zeros_goes_around_every_plane() {
        let set = bytes().padded(1).unwrap();
        assert_eq!(set.shape(), Shape::new(1, 2, 3, 4));
        let Samples::U8(data) = set.samples() else { panic!("no bytes") };
        assert_eq!(data.len(), 3 * 24);
        let first = [[0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]].concat();
        let second = [[0, 0, 0, 0], [0, 10, 10, 0], [0, 0, 0, 0]].concat();
        assert_eq!(data[..24], [first, second].concat());
        assert_eq!(set.labels(), bytes().labels());
        assert_eq!(bytes().padded(0).unwrap(), bytes());

        let rows = Samples::F32(vec![1.5, -2.0]);
        let numbers = Dataset::with_targets(Shape::new(1, 1, 2, 1), rows, vec![7.0]).unwrap();
        let wide = numbers.padded(1).unwrap();
        let expected = vec![0., 0., 0., 0., 1.5, 0., 0., -2.0, 0., 0., 0., 0.];
        assert_eq!((wide.samples(), wide.targets()), (&Samples::F32(expected), &[7.0][..]));
        for pixels in [1 << 16, u32::MAX] {
            says(&bytes().padded(pixels).unwrap_err(), &["border", &pixels.to_string()]);
        }
    }

    #[test]
    fn counts_subsets_and_heads() {
        let set = bytes();
        assert_eq!(set.shape(), Shape::new(1, 2, 1, 2));
        assert_eq!(set.counts(), [1, 2, 0]);
        let part = set.subset(&[2, 0, 2]).unwrap();
        assert_eq!(part.labels(), [1, 1, 1]);
        let data = vec![8, 10, 30, 30, 0, 2, 10, 10, 8, 10, 30, 30];
        assert_eq!(part.samples(), &Samples::U8(data));
        assert_eq!(set.head(2).unwrap(), set.subset(&[0, 1]).unwrap());
        assert_eq!(set.head(100).unwrap(), set);
        let mut named = set.clone();
        named.rename(names(2)).unwrap();
        assert_eq!(named.counts(), [1, 2]);
        says(&named.rename(names(1)).unwrap_err(), &["found 1 names", "2 to 65536"]);
        says(&set.head(0).unwrap_err(), &["found 0 samples", "expected 1"]);
        says(&set.subset(&[0, 3]).unwrap_err(), &["index 1", "found 3", "0 to 2"]);
    }

    #[test]
    fn moments_equal_their_definition() {
        let set = bytes();
        let by_hand = |data: &[f64]| {
            let mean = data.iter().sum::<f64>() / data.len() as f64;
            let var = data.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / data.len() as f64;
            (mean, var.sqrt())
        };
        let near = |moments: Moments, (mean, std): (f64, f64)| {
            assert!((moments.mean - mean).abs() < 1e-12 && (moments.std - std).abs() < 1e-12);
        };
        let all = [0.0, 2.0, 10.0, 10.0, 4.0, 6.0, 20.0, 20.0, 8.0, 10.0, 30.0, 30.0];
        near(set.moments(), by_hand(&all));
        let channels = set.channel_moments();
        assert_eq!(channels.len(), 2);
        near(channels[0], by_hand(&[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]));
        near(channels[1], by_hand(&[10.0, 10.0, 20.0, 20.0, 30.0, 30.0]));
        let data = Samples::F32(all.iter().map(|&x| x as f32).collect());
        let numbers = Dataset::new(set.shape(), data, vec![1, 0, 1], names(2)).unwrap();
        near(numbers.moments(), by_hand(&all));
        near(numbers.channel_moments()[1], by_hand(&[10.0, 10.0, 20.0, 20.0, 30.0, 30.0]));
        // A constant has deviation 0, not the square root of a rounding error.
        let flat = Samples::U8(vec![251; 77]);
        let flat = Dataset::new(Shape::rows(1, 7), flat, vec![0; 11], names(1)).unwrap();
        assert_eq!(flat.moments(), Moments { mean: 251.0, std: 0.0 });
    }

    #[test]
    fn a_source_gives_the_samples_asked_for() {
        let mut set = bytes();
        let (mut batch, mut labels) = ([0; 8], [9; 2]);
        set.read(&[2, 1], Some(Draw::default()), Batch::U8(&mut batch), &mut labels).unwrap();
        assert_eq!((batch, labels), ([8, 10, 30, 30, 4, 6, 20, 20], [1, 0]));
        let mut shared = &set;
        assert_eq!((Source::len(&shared), Source::shape(&shared)), (3, set.shape()));
        assert!(shared.is_u8());
        shared.read(&[0, 0], None, Batch::U8(&mut batch), &mut labels).unwrap();
        assert_eq!((batch, labels), ([0, 2, 10, 10, 0, 2, 10, 10], [1, 1]));

        let error = shared.read(&[3], None, Batch::U8(&mut batch), &mut labels);
        assert_eq!(error, Err(SourceError::Index { index: 3, len: 3 }));
        let error = shared.read(&[0], None, Batch::U8(&mut batch), &mut labels[..1]);
        assert_eq!(error, Err(SourceError::Batch { expected: 4, got: 8 }));
        let error = shared.read(&[0], None, Batch::U8(&mut batch[..4]), &mut labels);
        assert_eq!(error, Err(SourceError::Batch { expected: 1, got: 2 }));
        let error = shared.read(&[0], None, Batch::F32(&mut [0.0; 4]), &mut labels[..1]);
        assert_eq!(error, Err(SourceError::Batch { expected: 4, got: 4 }));
    }

    #[test]
    fn what_is_no_data_set_is_refused() {
        let make = |shape, data: Vec<f32>, labels: &[u16], n| {
            Dataset::new(shape, Samples::F32(data), labels.to_vec(), names(n)).unwrap_err()
        };
        let two = Shape::rows(1, 2);
        says(&make(Shape::new(1, 0, 1, 1), vec![], &[0], 1), &["shape", "1x0x1x1"]);
        let huge = Shape::new(1, u32::MAX, 2, 1);
        says(&make(huge, vec![], &[0], 1), &["shape", "4294967295x2"]);
        says(&make(two, vec![], &[], 1), &["labels", "found 0 samples"]);
        says(&make(two, vec![1.0; 3], &[0, 0], 1), &["3 elements", "2 samples of 2 elements"]);
        says(&make(two, vec![1.0; 2], &[0], 0), &["class names", "found 0"]);
        says(&make(two, vec![1.0; 2], &[0], 65_537), &["class names", "found 65537"]);
        says(&make(two, vec![1.0; 4], &[0, 2], 2), &["label of sample 1", "found 2", "0 to 1"]);
        let nan = vec![1.0, 1.0, 1.0, f32::NAN];
        says(&make(two, nan, &[0, 0], 1), &["element 1 of sample 1", "NaN", "finite"]);
        let inf = vec![f32::NEG_INFINITY, 1.0];
        says(&make(two, inf, &[0], 1), &["element 0 of sample 0", "-inf"]);
    }

    #[test]
    fn targets_follow_their_samples() {
        let samples = Samples::F32(vec![1.0, 2.0, 3.0]);
        let shape = Shape::rows(1, 1);
        let set = Dataset::with_targets(shape, samples.clone(), vec![0.5, -1.0, 2.0]).unwrap();
        assert_eq!((set.targets(), set.labels()), (&[0.5, -1.0, 2.0][..], &[0, 0, 0][..]));
        assert_eq!(set.subset(&[2, 0]).unwrap().targets(), [2.0, 0.5]);
        let nan = Dataset::with_targets(shape, samples.clone(), vec![0.5, f32::NAN, 2.0]);
        says(&nan.unwrap_err(), &["target of sample 1", "NaN"]);
        let short = Dataset::with_targets(shape, samples, vec![0.5]);
        says(&short.unwrap_err(), &["3 elements", "1 samples of 1"]);
    }
}
