//! From an image file to the bytes that a model takes.

use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};
use sepal::models::data::{Dataset, Samples};
use sepal::shape::Shape;

use crate::program::Failure;

/// What a model takes.
#[derive(Clone, Copy)]
pub struct Taken {
    color: bool,
    rows: u32,
    columns: u32,
    border: u32,
}

impl Taken {
    /// `None` where samples of this shape, less a border of so many pixels, are no images.
    pub fn of(shape: Shape, border: u32) -> Option<Self> {
        let color = match shape.c {
            1 => false,
            3 => true,
            _ => return None,
        };
        let side = |side: u32| side.checked_sub(2 * border).filter(|&inner| inner > 0);
        Some(Self { color, rows: side(shape.h)?, columns: side(shape.w)?, border })
    }

    /// The image's bytes as planes, (C, H, W). Transparency is dropped.
    pub fn read(self, path: &Path, resize: bool, invert: bool) -> Result<Vec<u8>, Failure> {
        let name = path.display();
        let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
        let reader = reader.map_err(|error| format!("{name}: could not be read: {error}"))?;
        let image = reader.decode().map_err(|error| {
            format!(
                "{name}: found bytes that do not decode ({error}), expected a PNG or JPEG image"
            )
        })?;
        let (rows, columns) = (image.height(), image.width());
        let image = match (rows, columns) == (self.rows, self.columns) {
            true => image,
            false if resize => image.resize_exact(self.columns, self.rows, FilterType::Triangle),
            false => {
                let expected = format!("{} x {}", self.rows, self.columns);
                return Err(format!(
                    "{name}: {rows} x {columns} pixels, expected {expected} as the model takes (or --resize)"
                )
                .into());
            }
        };
        let mut pixels = self.planes(image);
        if invert {
            pixels.iter_mut().for_each(|pixel| *pixel = u8::MAX - *pixel);
        }
        if self.border == 0 {
            return Ok(pixels);
        }
        let shape =
            Shape { n: 1, c: if self.color { 3 } else { 1 }, h: self.rows, w: self.columns };
        let one = Dataset::new(shape, Samples::U8(pixels), vec![0], vec![String::new()])?;
        match one.padded(self.border)?.samples() {
            Samples::U8(pixels) => Ok(pixels.clone()),
            Samples::F32(_) => Err(format!("{name}: expected bytes").into()),
        }
    }

    fn planes(self, image: DynamicImage) -> Vec<u8> {
        if !self.color {
            return image.into_luma8().into_raw();
        }
        let pixels = image.into_rgb8().into_raw();
        let plane = |channel| pixels.iter().skip(channel).step_by(3).copied();
        (0..3).flat_map(plane).collect()
    }
}
