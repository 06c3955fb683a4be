//! The shape of a tensor.

/// `(N, C, H, W)`: batch, channels, height, width.
///
/// Text and other one-dimensional signals have `h == 1`; feature vectors have `h == w == 1`.
/// In memory the last index runs fastest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Shape {
    /// Samples in the batch.
    pub n: u32,
    /// Channels.
    pub c: u32,
    /// Rows.
    pub h: u32,
    /// Columns.
    pub w: u32,
}

impl Shape {
    /// `(n, c, h, w)`.
    pub const fn new(n: u32, c: u32, h: u32, w: u32) -> Self {
        Self { n, c, h, w }
    }

    /// A batch of feature vectors: `(n, features, 1, 1)`.
    pub const fn rows(n: u32, features: u32) -> Self {
        Self { n, c: features, h: 1, w: 1 }
    }

    /// The same sample shape with another batch size.
    pub const fn with_n(self, n: u32) -> Self {
        Self { n, ..self }
    }

    /// Elements of one sample, `c * h * w`; `None` where that does not fit 32 bits.
    pub const fn sample(self) -> Option<u32> {
        match self.c.checked_mul(self.h) {
            Some(ch) => ch.checked_mul(self.w),
            None => None,
        }
    }

    /// Elements of the whole tensor, `n * c * h * w`; `None` where that does not fit 32 bits.
    #[expect(clippy::len_without_is_empty, reason = "shapes are not collections")]
    pub const fn len(self) -> Option<u32> {
        match self.sample() {
            Some(sample) => sample.checked_mul(self.n),
            None => None,
        }
    }

    /// Rows times columns of one channel, or 0 where that does not fit 32 bits.
    pub const fn plane(self) -> u32 {
        match self.h.checked_mul(self.w) {
            Some(plane) => plane,
            None => 0,
        }
    }
}

impl core::fmt::Display for Shape {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}x{}x{}x{}", self.n, self.c, self.h, self.w)
    }
}
