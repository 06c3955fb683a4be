//! Data in flash, in sections of its own, read where it lies. An image holds what it uses.

use core::hint::black_box;

use sepal_core::format::{Aligned, Counts, counts};
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_firmware_model as made;

/// Bytes of one sample.
pub const PIXELS: usize = 28 * 28;
/// Classes of the model.
pub const CLASSES: usize = 10;
/// What the arrays that the model file is decoded into must hold.
pub const COUNTS: Counts = match counts(&made::LENET5) {
    Some(counts) => counts,
    None => panic!("no model"),
};

#[unsafe(link_section = ".model")]
static LENET5: Aligned<[u8; made::LENET5.len()]> = Aligned(made::LENET5);
#[unsafe(link_section = ".model")]
static LENET5_INT8: Aligned<[u8; made::LENET5_INT8.len()]> = Aligned(made::LENET5_INT8);
#[unsafe(link_section = ".model")]
static WEIGHTS: Aligned<[u8; made::WEIGHTS.len()]> = Aligned(made::WEIGHTS);
#[unsafe(link_section = ".samples")]
static SAMPLES: [u8; made::SAMPLES.len()] = made::SAMPLES;
#[unsafe(link_section = ".samples")]
static LABELS: [u8; made::LABELS.len()] = made::LABELS;
#[unsafe(link_section = ".samples")]
static LOGITS: [u8; made::LOGITS.len()] = made::LOGITS;
#[unsafe(link_section = ".samples")]
static LOGITS_INT8: [u8; made::LOGITS_INT8.len()] = made::LOGITS_INT8;
#[unsafe(link_section = ".samples")]
static SHOWN: [u8; made::SHOWN.len()] = made::SHOWN;
#[unsafe(link_section = ".samples")]
static SHOWN_LABELS: [u8; made::SHOWN_LABELS.len()] = made::SHOWN_LABELS;
#[unsafe(link_section = ".samples")]
static JUDGED: [u8; made::JUDGED.len()] = made::JUDGED;
#[unsafe(link_section = ".samples")]
static JUDGED_LABELS: [u8; made::JUDGED_LABELS.len()] = made::JUDGED_LABELS;

/// LeNet-5 as a model file. The compiler knows nothing of the bytes, as of any flash.
pub fn lenet5() -> &'static [u8] {
    black_box(&LENET5.0)
}

/// The same in bytes.
pub fn lenet5_int8() -> &'static [u8] {
    black_box(&LENET5_INT8.0)
}

/// What the host computes with it from the first sample, little-endian.
pub fn logits_int8() -> &'static [u8] {
    &LOGITS_INT8
}

/// Images that a new user shows, each with its class.
pub fn shown() -> impl Iterator<Item = (&'static [u8], u16)> + Clone {
    labelled(black_box(&SHOWN), &SHOWN_LABELS)
}

/// The same, as a source of samples.
#[derive(Clone, Copy, Debug)]
pub struct Shown;

impl Source for Shown {
    fn len(&self) -> u32 {
        shown().count() as u32
    }

    fn shape(&self) -> Shape {
        Shape::new(1, 1, 28, 28)
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        x: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let Batch::U8(x) = x else { return Err(SourceError::Batch { expected: 0, got: 0 }) };
        for ((x, label), &index) in x.chunks_exact_mut(PIXELS).zip(labels).zip(indices) {
            let missing = SourceError::Index { index, len: self.len() };
            let (image, own) = shown().nth(index as usize).ok_or(missing)?;
            x.copy_from_slice(image);
            *label = own;
        }
        Ok(())
    }
}

/// More of the user's images, which are only to judge by.
pub fn judged() -> impl Iterator<Item = (&'static [u8], u16)> + Clone {
    labelled(black_box(&JUDGED), &JUDGED_LABELS)
}

fn labelled(
    images: &'static [u8],
    labels: &'static [u8],
) -> impl Iterator<Item = (&'static [u8], u16)> + Clone {
    images.chunks_exact(PIXELS).zip(labels.iter().map(|&label| label.into()))
}

/// The parameters of LeNet-5 alone.
pub fn weights() -> &'static [f32] {
    bytemuck::try_cast_slice(black_box(&WEIGHTS.0[..])).unwrap_or_default()
}

/// A sample of the test set.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Its pixels.
    pub image: &'static [u8],
    /// Its class.
    pub label: u8,
    /// What the host computes from it with the same model, little-endian.
    pub logits: &'static [u8],
}

/// Samples of the test set.
pub fn samples() -> impl Iterator<Item = Sample> {
    let logits = LOGITS.chunks_exact(CLASSES * size_of::<f32>());
    let samples = black_box(&SAMPLES[..]).chunks_exact(PIXELS).zip(&LABELS).zip(logits);
    samples.map(|((image, &label), logits)| Sample { image, label, logits })
}
