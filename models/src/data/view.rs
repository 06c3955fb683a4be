//! Samples in an `ndarray` array, read where they lie.

use ndarray::{ArrayView, ArrayView1, Axis, Dimension, RemoveAxis};
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};

use super::dataset::{moments_of_bytes, moments_of_numbers};
use super::{DataError, Moments};

/// A type of elements: bytes or numbers.
pub trait Element: Copy + Default + Into<f64> + sealed::Element {
    /// Whether elements are bytes.
    const BYTES: bool;
}

impl Element for u8 {
    const BYTES: bool = true;
}

impl Element for f32 {
    const BYTES: bool = false;
}

/// A type of labels.
pub trait Label: Copy + std::fmt::Display + sealed::Label {}

impl Label for u16 {}
impl Label for usize {}

mod sealed {
    use super::{Batch, Moments, moments_of_bytes, moments_of_numbers};

    pub trait Element: Sized {
        /// The memory of a batch, where it is of this type, else how many elements it has.
        fn batch(batch: Batch<'_>) -> Result<&mut [Self], usize>;
        fn moments<'a>(all: impl Iterator<Item = &'a Self> + Clone, count: u64) -> Moments
        where
            Self: 'a;
    }

    impl Element for u8 {
        fn batch(batch: Batch<'_>) -> Result<&mut [Self], usize> {
            match batch {
                Batch::U8(x) => Ok(x),
                Batch::F32(x) => Err(x.len()),
            }
        }

        fn moments<'a>(all: impl Iterator<Item = &'a Self> + Clone, count: u64) -> Moments {
            moments_of_bytes(all, count)
        }
    }

    impl Element for f32 {
        fn batch(batch: Batch<'_>) -> Result<&mut [Self], usize> {
            match batch {
                Batch::F32(x) => Ok(x),
                Batch::U8(x) => Err(x.len()),
            }
        }

        fn moments<'a>(all: impl Iterator<Item = &'a Self> + Clone, count: u64) -> Moments {
            moments_of_numbers(all, count)
        }
    }

    pub trait Label {
        fn class(self) -> Option<u16>;
    }

    impl Label for u16 {
        fn class(self) -> Option<u16> {
            Some(self)
        }
    }

    impl Label for usize {
        fn class(self) -> Option<u16> {
            self.try_into().ok()
        }
    }
}

/// Labelled samples of an array: its first axis counts them, the others are those of rows of features
/// (D) or of images (C, H, W). It is a [`Source`] that copies no sample but into the batch that asks
/// for it, whatever the array's strides; labels are kept as they are checked, 2 bytes each.
///
/// Every value of this type is valid, as every [`Dataset`](super::Dataset) is.
///
/// ```
/// use ndarray::{Array4, array};
/// use sepal_core::source::Source;
/// use sepal_models::data::View;
/// let images = Array4::<u8>::zeros((3, 1, 28, 28));
/// let view = View::new(images.view(), array![0usize, 1, 1].view())?;
/// assert_eq!((view.len(), view.shape().to_string()), (3, "1x1x28x28".to_owned()));
/// # Ok::<(), sepal_models::data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct View<'a, T, D: Dimension> {
    samples: ArrayView<'a, T, D>,
    labels: Vec<u16>,
    shape: Shape,
}

impl<'a, T: Element, D: RemoveAxis> View<'a, T, D> {
    /// Samples with a label for each.
    ///
    /// # Errors
    /// No samples, more than 2^32 - 1, or empty ones; an array of other axes than (samples, features)
    /// or (samples, channels, height, width); a number that is NaN or infinite; another number of
    /// labels than of samples, a label above 65,535.
    pub fn new<L: Label>(
        samples: ArrayView<'a, T, D>,
        labels: ArrayView1<'_, L>,
    ) -> Result<Self, DataError> {
        let this = Self::unlabelled(samples)?;
        if labels.len() != this.labels.len() {
            let (found, expected) = (labels.len(), this.labels.len());
            let expected = format!("{expected}, one for each sample");
            return Err(DataError::samples("labels", found.to_string(), expected));
        }
        let mut classes = this.labels;
        for (sample, (class, label)) in classes.iter_mut().zip(labels).enumerate() {
            *class = label.class().ok_or_else(|| {
                let place = format!("label of sample {sample}");
                DataError::samples(place, label.to_string(), "0 to 65535")
            })?;
        }
        Ok(Self { labels: classes, ..this })
    }

    /// Samples whose labels nobody knows: all are 0.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), labels aside.
    pub fn unlabelled(samples: ArrayView<'a, T, D>) -> Result<Self, DataError> {
        let found = format!("{:?}", samples.shape());
        let refused = |expected: &str| DataError::samples("shape of the array", &*found, expected);
        let axis = |at: usize| samples.shape().get(at).and_then(|&n| u32::try_from(n).ok());
        let shape = match samples.ndim() {
            2 => axis(1).map(|features| Shape::rows(1, features)),
            4 => axis(1).zip(axis(2)).zip(axis(3)).map(|((c, h), w)| Shape::new(1, c, h, w)),
            _ => {
                let expected = "(samples, features) or (samples, channels, height, width)";
                return Err(refused(expected));
            }
        };
        let sized = |shape: &Shape| shape.sample().is_some_and(|size| size > 0);
        let Some(shape) = shape.filter(sized) else {
            return Err(refused("samples of 1 to 4294967295 elements"));
        };
        if axis(0).is_none_or(|count| count == 0) {
            return Err(refused("1 to 4294967295 samples"));
        }
        if !T::BYTES {
            for (at, sample) in samples.axis_iter(Axis(0)).enumerate() {
                let wrong = |&(_, &x): &(usize, &T)| !Into::<f64>::into(x).is_finite();
                if let Some((element, &value)) = sample.iter().enumerate().find(wrong) {
                    let place = format!("element {element} of sample {at}");
                    let value: f64 = value.into();
                    return Err(DataError::samples(place, value.to_string(), "a finite number"));
                }
            }
        }
        let labels = vec![0; samples.len_of(Axis(0))];
        Ok(Self { samples, labels, shape })
    }

    /// The label of each sample.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// Mean and deviation of all elements.
    pub fn moments(&self) -> Moments {
        T::moments(self.samples.iter(), self.samples.len() as u64)
    }
}

/// `draw` is not used: samples are given as they are stored.
impl<T: Element, D: RemoveAxis> Source for View<'_, T, D> {
    fn len(&self) -> u32 {
        // The constructor checked that this fits.
        self.labels.len() as u32
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        T::BYTES
    }

    fn read(
        &mut self,
        indices: &[u32],
        _draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let size = self.shape.sample().unwrap_or(0) as usize;
        let expected = indices.len().saturating_mul(size);
        let wrong = |expected: usize, got: usize| SourceError::Batch {
            expected: u32::try_from(expected).unwrap_or(u32::MAX),
            got: u32::try_from(got).unwrap_or(u32::MAX),
        };
        let batch = T::batch(batch).map_err(|got| wrong(expected, got))?;
        if batch.len() != expected {
            return Err(wrong(expected, batch.len()));
        }
        if labels.len() != indices.len() {
            return Err(wrong(indices.len(), labels.len()));
        }
        for ((&index, out), label) in indices.iter().zip(batch.chunks_exact_mut(size)).zip(labels) {
            let missing = SourceError::Index { index, len: self.labels.len() as u32 };
            *label = *self.labels.get(index as usize).ok_or(missing)?;
            let sample = self.samples.index_axis(Axis(0), index as usize);
            match sample.as_slice() {
                Some(sample) => out.copy_from_slice(sample),
                None => out.iter_mut().zip(&sample).for_each(|(out, &value)| *out = value),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3, Array4, Slice, array};

    use super::*;
    use crate::data::tests::says;

    #[test]
    fn samples_are_read_where_they_lie() {
        let all =
            Array4::from_shape_fn((4, 2, 2, 3), |(n, c, h, w)| (n * 50 + c * 20 + h * 5 + w) as u8);
        // Every second sample, mirrored.
        let mut some = all.view();
        some.slice_axis_inplace(Axis(0), Slice::new(0, None, 2));
        some.invert_axis(Axis(3));
        assert!(some.as_slice().is_none());
        let mut view = View::new(some, array![7u16, 9].view()).unwrap();
        assert_eq!((view.len(), view.shape(), view.is_u8()), (2, Shape::new(1, 2, 2, 3), true));
        let (mut batch, mut labels) = ([0; 24], [0; 2]);
        view.read(&[1, 0], None, Batch::U8(&mut batch), &mut labels).unwrap();
        let sample = |n: u8| [2, 1, 0, 7, 6, 5, 22, 21, 20, 27, 26, 25].map(|x| n + x);
        assert_eq!(
            (&batch[..12], &batch[12..], labels),
            (&sample(100)[..], &sample(0)[..], [9, 7])
        );
        let dense = some.to_owned();
        let mut plain = View::unlabelled(dense.view()).unwrap();
        let mut again = [0; 24];
        plain.read(&[1, 0], None, Batch::U8(&mut again), &mut labels).unwrap();
        assert_eq!((again, labels), (batch, [0, 0]));
        assert_eq!(view.moments(), plain.moments());

        let read = |view: &mut View<'_, u8, _>, at, len: usize, labels| {
            view.read(at, None, Batch::U8(&mut vec![0; len]), &mut vec![0; labels])
        };
        let error = read(&mut view, &[2], 12, 1);
        assert_eq!(error, Err(SourceError::Index { index: 2, len: 2 }));
        let error = read(&mut view, &[0], 11, 1);
        assert_eq!(error, Err(SourceError::Batch { expected: 12, got: 11 }));
        let error = read(&mut view, &[0], 12, 2);
        assert_eq!(error, Err(SourceError::Batch { expected: 1, got: 2 }));
        let error = view.read(&[0], None, Batch::F32(&mut [0.0; 12]), &mut [0]);
        assert_eq!(error, Err(SourceError::Batch { expected: 12, got: 12 }));
    }

    #[test]
    fn moments_are_those_of_a_data_set() {
        let rows = Array2::from_shape_fn((5, 3), |(i, j)| (i * j) as f32 - 2.0);
        let samples = crate::data::Samples::F32(rows.iter().copied().collect());
        let set =
            crate::data::Dataset::new(Shape::rows(1, 3), samples, vec![0; 5], vec!["a".into()]);
        assert_eq!(View::unlabelled(rows.view()).unwrap().moments(), set.unwrap().moments());
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let rows = Array2::<f32>::zeros((3, 2));
        let labelled =
            |labels: &[usize]| View::new(rows.view(), ArrayView1::from(labels)).unwrap_err();
        says(&labelled(&[0, 1]), &["labels", "found 2", "expected 3"]);
        says(&labelled(&[0, 1, 65_536]), &["label of sample 2", "found 65536", "0 to 65535"]);
        let bare = |rows: &Array2<f32>| View::unlabelled(rows.view()).unwrap_err();
        says(&bare(&Array2::zeros((0, 2))), &["[0, 2]", "1 to 4294967295 samples"]);
        says(&bare(&Array2::zeros((2, 0))), &["[2, 0]", "1 to 4294967295 elements"]);
        says(
            &bare(&array![[1.0, 2.0], [3.0, f32::NAN]]),
            &["element 1 of sample 1", "NaN", "finite"],
        );
        says(&bare(&array![[f32::NEG_INFINITY]]), &["element 0 of sample 0", "-inf"]);
        let cube = Array3::<u8>::zeros((2, 28, 28));
        let error = View::unlabelled(cube.view()).unwrap_err();
        says(&error, &["[2, 28, 28]", "(samples, channels, height, width)"]);
    }
}
