//! Labels written into samples, as the forward-forward algorithm reads them.
//!
//! Hinton (arXiv 2212.13345) puts one number for each class in place of an image's first pixels. A
//! convolution passes its filters over all places and cannot tell those from any others, so
//! Scodellaro et al. ("Training convolutional neural networks with the forward-forward algorithm",
//! arXiv 2312.14924) lay a wave of each class over the whole image. Both are here: waves for images,
//! numbers for all else. The directions, frequencies and share of the waves are this crate's. Neither
//! source writes labels into samples that are no images, and a convolution over those cannot tell the
//! numbers from any others either.

use core::f32::consts::{FRAC_1_SQRT_2, SQRT_2, TAU};

use crate::net::Input;
use crate::rng::Rng;
use crate::source::Batch;

/// The share of the wave in an image: the rest is the image's.
const SHARE: f32 = 0.5;

/// Cycles per pixel between which waves lie: the longest is 16 pixels long, the shortest 3.
const FREQUENCIES: [f32; 2] = [1.0 / 16.0, 1.0 / 3.0];

/// Where waves run to, in columns and rows: two of them run along the axes.
const DIRECTIONS: [[f32; 2]; 4] =
    [[1.0, 0.0], [FRAC_1_SQRT_2, FRAC_1_SQRT_2], [0.0, 1.0], [-FRAC_1_SQRT_2, FRAC_1_SQRT_2]];

/// Whether labels can be written into samples of this input: two classes to 65,536, and for samples
/// that are no images at least as many numbers.
pub const fn fits(input: &Input, classes: u32) -> bool {
    let numbers = match input.shape.sample() {
        Some(numbers) => numbers,
        None => 0,
    };
    classes >= 2 && classes <= 1 << 16 && (is_image(input) || numbers >= classes)
}

const fn is_image(input: &Input) -> bool {
    input.shape.h > 1 && input.shape.w > 1
}

/// A label other than `label`, each of them as likely; one that is no class stays.
pub(crate) const fn wrong(label: u16, classes: u32, mut rng: Rng) -> u16 {
    if label as u32 >= classes {
        return label;
    }
    ((label as u32 + 1 + rng.below(classes - 1)) % classes) as u16
}

/// Writes labels into raw samples of a net's input, each into its own; one that is no class leaves its
/// sample as it is.
///
/// ```text
/// images      x = (1 - s) x + s sqrt(2) sin(2 pi f (u . p)),  s = 1/2
/// all else    x_k = [k = label] for the first classes numbers of the sample
/// ```
/// x are numbers as the first layer takes them, normalised; p is the pixel, (column, row), in every
/// channel. The direction u is 0, 45, 90 or 135 degrees, for label mod 4; the frequency is one of
/// `ceil(classes / 4)`, in the middle of as many equal parts of 1/16 to 1/3 cycles per pixel, for label / 4.
/// Bytes are rounded, and end at 0 and 255.
///
/// Numbers that a label takes the place of are lost. Where the first layer standardises them it scales
/// the label as what stood there: a 1 among thousands is next to nothing. So numbers of very different
/// sizes are best scaled before, or by the normalisation.
///
/// ```
/// use sepal_core::label::write;
/// use sepal_core::net::{Input, Normalisation};
/// use sepal_core::shape::Shape;
/// use sepal_core::source::Batch;
///
/// let input = Input { shape: Shape::rows(1, 4), normalisation: Normalisation::scalar(1.0, 2.0) };
/// let mut sample = [9.0; 4];
/// write(&input, 3, &[1], Batch::F32(&mut sample));
/// assert_eq!(sample, [1.0, 3.0, 1.0, 9.0]); // 0, 1 and 0 once they are normalised
/// ```
pub fn write(input: &Input, classes: u32, labels: &[u16], samples: Batch<'_>) {
    let len = input.shape.sample().unwrap_or(0).max(1) as usize;
    match samples {
        Batch::U8(samples) => {
            let byte = |x: f32| libm::roundf(x).clamp(0.0, 255.0) as u8;
            for (sample, &label) in samples.chunks_exact_mut(len).zip(labels) {
                one(input, classes, (label, true), sample, |&at| at.into(), |at, x| *at = byte(x));
            }
        }
        Batch::F32(samples) => {
            for (sample, &label) in samples.chunks_exact_mut(len).zip(labels) {
                one(input, classes, (label, false), sample, |&at| at, |at, x| *at = x);
            }
        }
    }
}

fn one<T>(
    input: &Input,
    classes: u32,
    (label, bytes): (u16, bool),
    sample: &mut [T],
    get: impl Fn(&T) -> f32,
    set: impl Fn(&mut T, f32),
) {
    let shape = input.shape;
    if u32::from(label) >= classes {
        return;
    }
    let (plane, channels) = (shape.plane().max(1) as usize, shape.c.max(1) as usize);
    let label = u32::from(label);
    let (frequency, [column, row]) = wave(classes, label);
    // What a raw number is where the first layer takes `x`.
    let raw = |c: usize, x: f32| {
        let (factor, summand) = input.normalisation.affine(c, channels, bytes);
        (x - summand) / factor
    };
    let image = is_image(input);
    for (c, numbers) in sample.chunks_mut(plane).enumerate() {
        for (p, number) in numbers.iter_mut().enumerate() {
            if image {
                let width = shape.w.max(1) as usize;
                let (x, y) = ((p % width) as f32, (p / width) as f32);
                let wave = SQRT_2 * libm::sinf(TAU * frequency * (column * x + row * y));
                set(number, (1.0 - SHARE) * get(number) + SHARE * raw(c, wave));
            } else {
                let k = c * plane + p;
                if k >= classes as usize {
                    return;
                }
                set(number, raw(c, if k == label as usize { 1.0 } else { 0.0 }));
            }
        }
    }
}

/// The frequency and direction of a label's wave.
fn wave(classes: u32, label: u32) -> (f32, [f32; 2]) {
    let directions = DIRECTIONS.len() as u32;
    let (parts, part) = (classes.div_ceil(directions).max(1), label / directions);
    let [low, high] = FREQUENCIES;
    let frequency = low + (high - low) * (part as f32 + 0.5) / parts as f32;
    let direction = DIRECTIONS.get((label % directions) as usize).copied();
    (frequency, direction.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Normalisation;
    use crate::shape::Shape;
    use std::vec;
    use std::vec::Vec;

    const NORMALISATION: Normalisation =
        Normalisation { mean: [0.3, 0.5, 0.1, 0.0], std: [0.25, 0.5, 0.2, 1.0] };

    fn input(shape: Shape) -> Input {
        Input { shape, normalisation: NORMALISATION }
    }

    /// What the first layer would take.
    fn written(input: &Input, classes: u32, label: u16, from: f32) -> Vec<f32> {
        let (plane, channels) = (input.shape.plane() as usize, input.shape.c as usize);
        let mut sample = vec![from; input.shape.sample().unwrap() as usize];
        write(input, classes, &[label], Batch::F32(&mut sample));
        for (c, plane) in sample.chunks_mut(plane).enumerate() {
            let (factor, summand) = NORMALISATION.affine(c, channels, false);
            plane.iter_mut().for_each(|x| *x = *x * factor + summand);
        }
        sample
    }

    /// Waves of a hundred classes are apart: no two are alike by more than their directions allow.
    #[test]
    fn every_class_has_a_wave_of_its_own() {
        for (classes, most) in [(2u16, 0.1), (10, 0.25), (100, 0.99)] {
            let input = input(Shape::new(1, 1, 28, 28));
            let waves: Vec<Vec<f32>> = (0..classes)
                .map(|label| {
                    // Less what is left of the image.
                    let sample = written(&input, classes.into(), label, 0.3);
                    sample.iter().map(|x| x / SHARE).collect()
                })
                .collect();
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() / a.len() as f64
            };
            for (i, a) in waves.iter().enumerate() {
                assert!((dot(a, a) - 1.0).abs() < 0.2, "{classes} {i}: {}", dot(a, a));
                for (j, b) in waves.iter().enumerate().take(i) {
                    assert!(dot(a, b).abs() < most, "{classes} {i} {j}: {}", dot(a, b));
                }
            }
        }
    }

    #[test]
    fn waves_are_the_same_in_every_channel_and_half_of_the_image_stays() {
        let input = input(Shape::new(1, 3, 6, 5));
        let sample = written(&input, 10, 5, 0.7);
        let left = |c: usize| {
            let (factor, summand) = NORMALISATION.affine(c, 3, false);
            (1.0 - SHARE) * (0.7 * factor + summand)
        };
        for p in 0..30 {
            let waves = [0, 1, 2].map(|c| sample[c * 30 + p] - left(c));
            assert!(waves.iter().all(|w| (w - waves[0]).abs() < 1e-5), "{p}: {waves:?}");
        }
        // Label 5 runs to the lower right: it is the same along the other diagonal.
        let at = |x: usize, y: usize| sample[y * 5 + x];
        assert!((at(3, 1) - at(2, 2)).abs() < 1e-5 && (at(3, 1) - at(3, 2)).abs() > 1e-2);
    }

    #[test]
    fn bytes_are_the_numbers_rounded() {
        let input = input(Shape::new(1, 2, 7, 6));
        for label in 0..10 {
            let from: Vec<u8> = (0..84).map(|i| (i * 3) as u8).collect();
            let (mut bytes, mut numbers) =
                (from.clone(), from.iter().map(|&b| f32::from(b) / 255.0).collect::<Vec<f32>>());
            write(&input, 10, &[label], Batch::U8(&mut bytes));
            write(&input, 10, &[label], Batch::F32(&mut numbers));
            for (byte, number) in bytes.iter().zip(&numbers) {
                let expected = (number * 255.0).clamp(0.0, 255.0);
                assert!((f32::from(*byte) - expected).abs() <= 0.501, "{byte} {expected}");
            }
            assert!(bytes != from);
        }
    }

    #[test]
    fn samples_that_are_no_images_begin_with_the_label() {
        for shape in [Shape::rows(1, 6), Shape::new(1, 3, 1, 2), Shape::new(1, 1, 6, 1)] {
            let sample = written(&input(shape), 4, 2, 1e3);
            let expected = [0.0, 0.0, 1.0, 0.0];
            let near = sample.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(near && sample[4..].iter().all(|x| *x > 1e2), "{shape}: {sample:?}");
        }
        let text = Input { shape: Shape::rows(1, 3), normalisation: Normalisation::BYTES };
        let mut bytes = [7, 7, 7];
        write(&text, 2, &[1], Batch::U8(&mut bytes));
        assert_eq!(bytes, [0, 1, 7]);
    }

    /// Every sample its own label, and every wrong label as often as any other.
    #[test]
    fn wrong_labels_are_all_others_alike() {
        use crate::rng::Purpose;
        let mut counts = [[0; 4]; 4];
        for at in 0..4000u32 {
            let label = (at % 4) as u16;
            let drawn = wrong(label, 4, Rng::new(1, Purpose::Label, 0, at));
            counts[usize::from(label)][usize::from(drawn)] += 1;
        }
        for (label, counts) in counts.iter().enumerate() {
            for (drawn, &count) in counts.iter().enumerate() {
                let fits = if drawn == label { count == 0 } else { (270..400).contains(&count) };
                assert!(fits, "{label}: {counts:?}");
            }
        }
        assert_eq!(wrong(4, 4, Rng::new(1, Purpose::Label, 0, 0)), 4);
        let input = input(Shape::rows(1, 2));
        let mut samples = [5.0; 6];
        write(&input, 2, &[1, 2, 0], Batch::F32(&mut samples));
        let alone = |label| {
            let mut sample = [5.0; 2];
            write(&input, 2, &[label], Batch::F32(&mut sample));
            sample
        };
        assert_eq!(samples.as_chunks().0, [alone(1), [5.0; 2], alone(0)]);
    }

    #[test]
    fn what_is_no_class_is_not_written_and_what_has_no_room_does_not_fit() {
        let input = input(Shape::new(1, 1, 4, 4));
        let mut sample = [1.0; 16];
        write(&input, 3, &[3], Batch::F32(&mut sample));
        assert_eq!(sample, [1.0; 16]);
        let rows = |len| Input { shape: Shape::rows(1, len), normalisation: NORMALISATION };
        for (input, classes, expected) in [
            (input, 10, true),
            (input, 100, true),
            (input, 1, false),
            (input, 0, false),
            (input, 1 << 16, true),
            (input, (1 << 16) + 1, false),
            (rows(10), 10, true),
            (rows(9), 10, false),
        ] {
            assert_eq!(fits(&input, classes), expected, "{input:?} {classes}");
        }
    }
}
