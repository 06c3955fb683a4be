//! Sliding windows: the geometry that convolutions and pools share.

use crate::shape::Shape;

/// A window of `kernel` that moves by `stride` over an image padded by `pad`; (rows, columns).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Window {
    /// Rows and columns.
    pub kernel: (u8, u8),
    /// Steps down and across.
    pub stride: (u8, u8),
    /// Places added above and below, left and right.
    pub pad: (u8, u8),
}

impl Window {
    /// A square window that moves by its own size, without padding.
    pub const fn square(size: u8) -> Self {
        Self { kernel: (size, size), stride: (size, size), pad: (0, 0) }
    }

    /// The shape with a place for each position of the window; `None` where there is none.
    pub const fn output(self, x: Shape) -> Option<Shape> {
        let h = positions(x.h, self.kernel.0, self.stride.0, self.pad.0);
        let w = positions(x.w, self.kernel.1, self.stride.1, self.pad.1);
        match (h, w) {
            (Some(h), Some(w)) => Some(Shape { h, w, ..x }),
            _ => None,
        }
    }
}

const fn positions(size: u32, kernel: u8, stride: u8, pad: u8) -> Option<u32> {
    if kernel == 0 || stride == 0 || size == 0 {
        return None;
    }
    let Some(padded) = size.checked_add(2 * pad as u32) else { return None };
    match padded.checked_sub(kernel as u32) {
        Some(room) => Some(room / stride as u32 + 1),
        None => None,
    }
}

/// The places of one axis where a tap of the window falls inside the image.
#[derive(Clone, Copy)]
struct Span {
    /// First output place.
    out: usize,
    /// Input place that it reads.
    input: usize,
    /// How many.
    count: usize,
    stride: usize,
}

impl Span {
    fn new(size: u32, out: u32, tap: usize, stride: u8, pad: u8) -> Self {
        let (size, out) = (size as usize, out as usize);
        let (stride, pad) = (usize::from(stride).max(1), usize::from(pad));
        // Output place o reads input place o * stride + tap - pad.
        let first = pad.saturating_sub(tap).div_ceil(stride);
        let past = (size + pad).saturating_sub(tap).div_ceil(stride).min(out);
        Self {
            out: first,
            input: (first * stride + tap).saturating_sub(pad),
            count: past.saturating_sub(first),
            stride,
        }
    }
}

/// The runs of input and output that one tap of a window connects, row by row.
pub(crate) struct Rows {
    down: Span,
    across: Span,
    x_width: usize,
    y_width: usize,
}

/// The rows that tap number `tap` (counted along the kernel's rows) connects.
pub(crate) fn rows(window: Window, tap: usize, x: Shape, y: Shape) -> Rows {
    let columns = usize::from(window.kernel.1).max(1);
    Rows {
        down: Span::new(x.h, y.h, tap / columns, window.stride.0, window.pad.0),
        across: Span::new(x.w, y.w, tap % columns, window.stride.1, window.pad.1),
        x_width: (x.w as usize).max(1),
        y_width: (y.w as usize).max(1),
    }
}

impl Rows {
    fn x_columns(&self) -> (usize, usize) {
        let Span { input, count, stride, .. } = self.across;
        let past = if count == 0 { input } else { input + (count - 1) * stride + 1 };
        (input, past)
    }

    /// Rows of an input plane and the rows of an output plane that they touch. No stride is 0: said
    /// here too, where a compiler that inlines little must see it.
    pub(crate) fn pairs<'a, X, Y>(
        &self,
        x: &'a [X],
        y: &'a [Y],
    ) -> impl Iterator<Item = (impl Iterator<Item = &'a X>, impl Iterator<Item = &'a Y>)> {
        let (first, past) = self.x_columns();
        let (out, count, stride) = (self.across.out, self.across.count, self.across.stride);
        let x = x.chunks_exact(self.x_width).skip(self.down.input).step_by(self.down.stride.max(1));
        let y = y.chunks_exact(self.y_width).skip(self.down.out).take(self.down.count);
        x.zip(y).map(move |(x, y)| {
            let x = x.get(first..past).unwrap_or_default().iter().step_by(stride.max(1));
            (x, y.get(out..out + count).unwrap_or_default().iter())
        })
    }

    /// As `pairs`, the output to be written.
    pub(crate) fn pairs_mut<'a, X, Y>(
        &self,
        x: &'a [X],
        y: &'a mut [Y],
    ) -> impl Iterator<Item = (impl Iterator<Item = &'a X>, impl Iterator<Item = &'a mut Y>)> {
        let (first, past) = self.x_columns();
        let (out, count, stride) = (self.across.out, self.across.count, self.across.stride);
        let x = x.chunks_exact(self.x_width).skip(self.down.input).step_by(self.down.stride.max(1));
        let y = y.chunks_exact_mut(self.y_width).skip(self.down.out).take(self.down.count);
        x.zip(y).map(move |(x, y)| {
            let x = x.get(first..past).unwrap_or_default().iter().step_by(stride.max(1));
            (x, y.get_mut(out..out + count).unwrap_or_default().iter_mut())
        })
    }

    /// As `pairs`, the input to be written.
    pub(crate) fn pairs_into<'a, X, Y>(
        &self,
        x: &'a mut [X],
        y: &'a [Y],
    ) -> impl Iterator<Item = (impl Iterator<Item = &'a mut X>, impl Iterator<Item = &'a Y>)> {
        let (first, past) = self.x_columns();
        let (out, count, stride) = (self.across.out, self.across.count, self.across.stride);
        let x =
            x.chunks_exact_mut(self.x_width).skip(self.down.input).step_by(self.down.stride.max(1));
        let y = y.chunks_exact(self.y_width).skip(self.down.out).take(self.down.count);
        x.zip(y).map(move |(x, y)| {
            let x = x.get_mut(first..past).unwrap_or_default().iter_mut().step_by(stride.max(1));
            (x, y.get(out..out + count).unwrap_or_default().iter())
        })
    }
}
