//! From an image file to the bytes that a model takes.

use std::path::Path;

use image::imageops::{FilterType, replace};
use image::{DynamicImage, ImageReader};
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
                    "{name}: {rows} x {columns} pixels, expected {expected} as the model takes (or --resize; --border where it learnt with one)"
                )
                .into());
            }
        };
        let mut image = match self.color {
            true => DynamicImage::from(image.into_rgb8()),
            false => DynamicImage::from(image.into_luma8()),
        };
        if invert {
            image.invert();
        }
        // Black, and not of the image: the border stays as it was learnt.
        let (wide, high) = (self.columns + 2 * self.border, self.rows + 2 * self.border);
        let mut framed = DynamicImage::new(wide, high, image.color());
        replace(&mut framed, &image, self.border.into(), self.border.into());
        let channels = usize::from(image.color().channel_count());
        let pixels = framed.into_bytes();
        let plane = |channel| pixels.iter().skip(channel).step_by(channels).copied();
        Ok((0..channels).flat_map(plane).collect())
    }
}
