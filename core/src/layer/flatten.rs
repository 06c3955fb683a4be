//! Samples as vectors.

use crate::shape::Shape;

/// Each sample as one vector: (N, C, H, W) becomes (N, C H W, 1, 1).
///
/// The memory is the same before and after, so there is nothing to compute in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Flatten;

impl Flatten {
    /// The output's shape; `None` where C H W does not fit 32 bits.
    ///
    /// ```
    /// use sepal_core::{layer::Flatten, shape::Shape};
    /// assert_eq!(Flatten.output(Shape::new(8, 16, 5, 5)), Some(Shape::rows(8, 400)));
    /// ```
    pub const fn output(self, x: Shape) -> Option<Shape> {
        match x.sample() {
            Some(features) => Some(Shape::rows(x.n, features)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_elements_stay() {
        for s in [Shape::new(2, 3, 4, 5), Shape::rows(7, 1), Shape::new(0, 1, 2, 3)] {
            let y = Flatten.output(s).unwrap();
            assert_eq!((y.n, y.len(), y.plane()), (s.n, s.len(), 1));
        }
        assert_eq!(Flatten.output(Shape::new(1, 1 << 16, 1 << 16, 1)), None);
    }
}
