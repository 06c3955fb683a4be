//! The shape of a sample, as people read it.

use sepal::shape::Shape;

/// Channels, rows and columns.
pub fn sample(shape: Shape) -> String {
    format!("{}x{}x{}", shape.c, shape.h, shape.w)
}
