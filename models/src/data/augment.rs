//! Augmentation of images.

use sepal_core::arena::Layout;
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};

/// A source whose samples are changed at random when they are read for training.
///
/// In this order: a shift by up to `shift` pixels each way, which equals padding with zeros and
/// cropping back (He et al., 2016); a mirror image, left to right, half of the time; a square of
/// `cutout` by `cutout` zeros around a pixel drawn at random, cut at the border (DeVries and
/// Taylor, 2017, arXiv 1708.04552). Zero is the stored zero: black for bytes.
///
/// What is drawn depends on seed, epoch and sample only, not on the batch: a sample that comes
/// twice in an epoch is changed in the same way. Read without a draw, samples are as the inner
/// source gives them. Shape, batches and labels are the inner source's.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_core::source::{Batch, Draw, Source};
/// use sepal_models::data::{Augment, Dataset, Samples};
///
/// let pixels = Samples::U8((0..16).collect());
/// let set = Dataset::new(Shape::new(1, 1, 4, 4), pixels, vec![0], vec!["a".into()])?;
/// let mut source = Augment { flip: true, shift: 1, cutout: 2, ..Augment::new(set) };
/// let (mut batch, mut labels) = ([0; 16], [0; 1]);
/// source.read(&[0], Some(Draw::default()), Batch::U8(&mut batch), &mut labels)?;
/// source.read(&[0], None, Batch::U8(&mut batch), &mut labels)?;
/// assert!(batch.into_iter().eq(0..16));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Augment<S> {
    /// Where samples come from.
    pub source: S,
    /// Whether to mirror half of the images.
    pub flip: bool,
    /// Pixels of the largest shift, down, up and to the sides.
    pub shift: u32,
    /// Pixels of the side of the square set to zero; 0 for none.
    pub cutout: u32,
}

impl<S> Augment<S> {
    /// No change; set the fields for some.
    pub const fn new(source: S) -> Self {
        Self { source, flip: false, shift: 0, cutout: 0 }
    }

    /// What happens to a sample.
    fn change(&self, shape: Shape, draw: Draw, index: u32) -> Change {
        let mut rng = Rng::new(draw.seed, Purpose::Augment, draw.epoch, index);
        // Each is drawn whether it is used or not: switching one on leaves the others alone.
        let words: [u32; 2] = [rng.below(span(self.shift)), rng.below(span(self.shift))];
        let [down, right] = words.map(|word| i64::from(word) - i64::from(self.shift));
        let flip = rng.below(2) == 1 && self.flip;
        let (row, column) = (rng.below(shape.h), rng.below(shape.w));
        let half = self.cutout / 2;
        let side = |at: u32, len: u32| {
            let end = u64::from(at) + u64::from(self.cutout - half);
            (at.saturating_sub(half) as usize, end.min(u64::from(len)) as usize)
        };
        Change { down, right, flip, rows: side(row, shape.h), columns: side(column, shape.w) }
    }
}

/// How many shifts there are.
fn span(shift: u32) -> u32 {
    shift.saturating_mul(2).saturating_add(1)
}

/// What happens to one sample.
struct Change {
    down: i64,
    right: i64,
    flip: bool,
    /// The first row of the square of zeros, and the one after its last.
    rows: (usize, usize),
    /// Its columns alike.
    columns: (usize, usize),
}

impl Change {
    fn apply<T: Copy + Default>(&self, plane: &mut [T], width: usize) {
        move_by(plane, self.down.saturating_mul(width as i64));
        for row in plane.chunks_exact_mut(width) {
            move_by(row, self.right);
            if self.flip {
                row.reverse();
            }
        }
        let (first, end) = self.rows;
        for row in plane.chunks_exact_mut(width).take(end).skip(first) {
            row.get_mut(self.columns.0..self.columns.1).unwrap_or_default().fill(T::default());
        }
    }
}

/// Moves elements towards the end by `by` places, zeros following.
fn move_by<T: Copy + Default>(data: &mut [T], by: i64) {
    let len = data.len();
    let count = usize::try_from(by.unsigned_abs()).unwrap_or(len).min(len);
    if by >= 0 {
        data.copy_within(..len - count, count);
        data.get_mut(..count).unwrap_or_default().fill(T::default());
    } else {
        data.copy_within(count.., 0);
        data.get_mut(len - count..).unwrap_or_default().fill(T::default());
    }
}

impl<S: Source> Augment<S> {
    fn batch<T: Copy + Default>(&self, indices: &[u32], draw: Draw, batch: &mut [T]) {
        let shape = self.source.shape();
        let sizes = (shape.sample().unwrap_or(0) as usize, shape.plane() as usize);
        let (size @ 1.., plane @ 1..) = sizes else { return };
        for (sample, &index) in batch.chunks_exact_mut(size).zip(indices) {
            let change = self.change(shape, draw, index);
            for plane in sample.chunks_exact_mut(plane) {
                change.apply(plane, shape.w as usize);
            }
        }
    }
}

impl<S: Source> Source for Augment<S> {
    fn len(&self) -> u32 {
        self.source.len()
    }

    fn shape(&self) -> Shape {
        self.source.shape()
    }

    fn is_u8(&self) -> bool {
        self.source.is_u8()
    }

    fn depth(&self) -> usize {
        self.source.depth()
    }

    fn layout(&self) -> Layout {
        self.source.layout()
    }

    fn pick(&self, draw: Draw, batch: u32, first: u32, indices: &mut [u32]) {
        self.source.pick(draw, batch, first, indices);
    }

    fn read(
        &mut self,
        indices: &[u32],
        draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let layout = self.source.layout();
        if draw.is_some() && layout != Layout::Nchw {
            return Err(SourceError::Layout { layout });
        }
        match batch {
            Batch::U8(batch) => {
                self.source.read(indices, draw, Batch::U8(batch), labels)?;
                if let Some(draw) = draw {
                    self.batch(indices, draw, batch);
                }
            }
            Batch::F32(batch) => {
                self.source.read(indices, draw, Batch::F32(batch), labels)?;
                if let Some(draw) = draw {
                    self.batch(indices, draw, batch);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Dataset, Samples};
    use super::*;

    const H: usize = 5;
    const W: usize = 7;

    fn set(count: usize) -> Dataset {
        // Two channels, no zeros, every pixel of a sample different.
        let pixels = (0..count).flat_map(|n| (0..2 * H * W).map(move |i| (1 + i + 3 * n) as u8));
        let shape = Shape::new(1, 2, H as u32, W as u32);
        let samples = Samples::U8(pixels.collect());
        Dataset::new(shape, samples, vec![0; count], vec!["a".into()]).unwrap()
    }

    fn read<S: Source>(source: &mut S, indices: &[u32], draw: Option<Draw>) -> Vec<u8> {
        let mut batch = vec![0; indices.len() * 2 * H * W];
        let mut labels = vec![0; indices.len()];
        source.read(indices, draw, Batch::U8(&mut batch), &mut labels).unwrap();
        batch
    }

    fn draw(seed: u64, epoch: u32, step: u32) -> Option<Draw> {
        Some(Draw { seed, epoch, step })
    }

    /// Pads with zeros, crops at (top, left) and mirrors, pixel by pixel.
    fn by_hand(image: &[u8], down: i64, right: i64, flip: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for plane in image.chunks(H * W) {
            for row in 0..H as i64 {
                for column in 0..W as i64 {
                    let column = if flip { W as i64 - 1 - column } else { column };
                    let (r, c) = (row - down, column - right);
                    let inside = (0..H as i64).contains(&r) && (0..W as i64).contains(&c);
                    out.push(if inside { plane[r as usize * W + c as usize] } else { 0 });
                }
            }
        }
        out
    }

    #[test]
    fn a_shift_and_a_flip_equal_padding_and_cropping() {
        let set = set(1);
        let whole = read(&mut &set, &[0], None);
        // Shifts beyond the image leave nothing of it.
        for shift in [0, 1, 3, 9] {
            for flip in [false, true] {
                let mut source = Augment { flip, shift, ..Augment::new(&set) };
                let range = -i64::from(shift)..=i64::from(shift);
                for epoch in 0..40 {
                    let got = read(&mut source, &[0], draw(1, epoch, 0));
                    let found = range.clone().any(|down| {
                        range.clone().any(|right| {
                            [false, flip]
                                .iter()
                                .any(|&flip| got == by_hand(&whole, down, right, flip))
                        })
                    });
                    assert!(found, "shift {shift}, flip {flip}: {got:?}");
                }
            }
        }
    }

    #[test]
    fn every_shift_and_both_mirrors_come_about_equally_often() {
        let mut set = set(1);
        let whole = read(&mut set, &[0], None);
        let mut source = Augment { flip: true, shift: 1, ..Augment::new(set) };
        let mut kinds = std::collections::HashMap::new();
        for epoch in 0..1800 {
            *kinds.entry(read(&mut source, &[0], draw(3, epoch, 0))).or_insert(0) += 1;
        }
        assert_eq!(kinds.len(), 18);
        // 100 each; six deviations of the binomial distribution are 58.
        assert!(kinds.values().all(|&count| (42..=158).contains(&count)), "{kinds:?}");
        assert!(kinds.contains_key(&whole));
        assert!(kinds.contains_key(&by_hand(&whole, 0, 0, true)));
    }

    #[test]
    fn cutout_zeroes_a_square_in_every_channel() {
        let set = set(1);
        let whole = read(&mut &set, &[0], None);
        for (side, largest) in [(1, 1), (2, 4), (3, 9), (4, 16), (100, H * W)] {
            let mut source = Augment { cutout: side, ..Augment::new(&set) };
            let mut counts = Vec::new();
            for epoch in 0..200 {
                let got = read(&mut source, &[0], draw(5, epoch, 0));
                let zero: Vec<usize> = (0..H * W).filter(|&i| got[i] == 0).collect();
                // One box, the same in both channels; all else as it was.
                let (rows, columns): (Vec<_>, Vec<_>) = zero.iter().map(|i| (i / W, i % W)).unzip();
                let span = |at: &[usize]| at.iter().max().unwrap() - at.iter().min().unwrap() + 1;
                assert_eq!(span(&rows) * span(&columns), zero.len());
                for (i, (&new, &old)) in got.iter().zip(&whole).enumerate() {
                    assert_eq!(new, if zero.contains(&(i % (H * W))) { 0 } else { old });
                }
                counts.push(zero.len());
            }
            assert_eq!(counts.iter().max(), Some(&largest));
            assert!(counts.iter().min() > Some(&0));
        }
    }

    #[test]
    fn the_draw_and_the_sample_decide() {
        let mut source = Augment { flip: true, shift: 2, cutout: 3, ..Augment::new(set(4)) };
        let size = 2 * H * W;
        let all = read(&mut source, &[0, 1, 2, 3], draw(1, 2, 0));
        // In any batch, at any place and step.
        let some = read(&mut source, &[3, 1], draw(1, 2, 9));
        assert_eq!(some[..size], all[3 * size..]);
        assert_eq!(some[size..], all[size..2 * size]);
        assert_ne!(read(&mut source, &[0, 1, 2, 3], draw(1, 3, 0)), all);
        assert_ne!(read(&mut source, &[0, 1, 2, 3], draw(2, 2, 0)), all);
        // Without a draw, as stored.
        assert_eq!(read(&mut source, &[2], None), read(&mut set(4), &[2], None));
    }

    #[test]
    fn numbers_are_changed_like_bytes() {
        let bytes = set(3);
        let Samples::U8(data) = bytes.samples() else { panic!("bytes") };
        let data = Samples::F32(data.iter().map(|&x| f32::from(x)).collect());
        let numbers = Dataset::new(bytes.shape(), data, vec![0; 3], vec!["a".into()]).unwrap();
        let one = &mut Augment { flip: true, shift: 2, cutout: 3, ..Augment::new(bytes) };
        let mut two = Augment { flip: true, shift: 2, cutout: 3, ..Augment::new(numbers) };
        let (mut batch, mut labels) = (vec![0.0; 3 * 2 * H * W], [0; 3]);
        two.read(&[0, 1, 2], draw(1, 1, 1), Batch::F32(&mut batch), &mut labels).unwrap();
        let bytes = read(one, &[0, 1, 2], draw(1, 1, 1));
        assert!(batch.iter().zip(&bytes).all(|(&x, &y)| x == f32::from(y)));
        let error = two.read(&[3], draw(1, 1, 1), Batch::F32(&mut batch), &mut labels);
        assert_eq!(error, Err(SourceError::Index { index: 3, len: 3 }));
    }
}
