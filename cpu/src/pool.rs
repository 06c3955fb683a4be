//! Maxima of two by two places, the pool of most nets; other windows are the reference's.

use sepal_core::layer::{MaxPool, Window};
use sepal_core::shape::Shape;

const TWO: Window = Window::square(2);

/// [`MaxPool::forward`].
pub(crate) fn forward(
    layer: MaxPool,
    shape: Shape,
    x: &[f32],
    y: &mut [f32],
    winner: Option<&mut [u8]>,
) {
    let (Some(out), TWO) = (layer.output(shape), layer.window) else {
        return layer.forward(shape, x, y, winner);
    };
    let rows = lines(shape, out, x).zip(y.chunks_exact_mut(out.w.max(1) as usize));
    match winner {
        Some(winner) => {
            for ((windows, y), winner) in rows.zip(winner.chunks_exact_mut(out.w.max(1) as usize)) {
                for ((window, y), winner) in windows.zip(y).zip(winner) {
                    (*y, *winner) = largest(window);
                }
            }
        }
        None => rows.for_each(|(windows, y)| {
            windows.zip(y).for_each(|(window, y)| *y = largest(window).0);
        }),
    }
}

/// [`MaxPool::backward`].
pub(crate) fn backward(layer: MaxPool, shape: Shape, winner: &[u8], dy: &[f32], dx: &mut [f32]) {
    let (Some(out), TWO) = (layer.output(shape), layer.window) else {
        return layer.backward(shape, winner, dy, dx);
    };
    let (plane, width) = (shape.plane().max(1) as usize, shape.w.max(1) as usize);
    let (out_plane, out_width) = (out.plane().max(1) as usize, out.w.max(1) as usize);
    if !shape.h.is_multiple_of(2) || !shape.w.is_multiple_of(2) {
        dx.fill(0.0);
    }
    let planes = dx.chunks_exact_mut(plane).zip(dy.chunks_exact(out_plane));
    for ((dx, dy), winner) in planes.zip(winner.chunks_exact(out_plane)) {
        let rows = dx.chunks_exact_mut(2 * width).zip(dy.chunks_exact(out_width));
        for ((dx, dy), winner) in rows.zip(winner.chunks_exact(out_width)) {
            let (top, bottom) = dx.split_at_mut(width);
            let windows = top.as_chunks_mut::<2>().0.iter_mut().zip(bottom.as_chunks_mut::<2>().0);
            for (([a, b], [c, d]), (&dy, &winner)) in windows.zip(dy.iter().zip(winner)) {
                for (at, place) in (0..).zip([a, b, c, d]) {
                    *place = if winner == at { dy } else { 0.0 };
                }
            }
        }
    }
}

/// The windows of each output row, of all planes.
fn lines(
    shape: Shape,
    out: Shape,
    x: &[f32],
) -> impl Iterator<Item = impl Iterator<Item = [f32; 4]>> {
    let (plane, width) = (shape.plane().max(1) as usize, shape.w.max(1) as usize);
    let rows = out.h as usize;
    x.chunks_exact(plane).flat_map(move |x| {
        x.chunks_exact(2 * width).take(rows).map(move |x| {
            let (top, bottom) = x.split_at(width);
            let pairs = top.as_chunks::<2>().0.iter().zip(bottom.as_chunks::<2>().0);
            pairs.map(|(&[a, b], &[c, d])| [a, b, c, d])
        })
    })
}

/// The largest number and its place: of equal ones the first, the first NaN before all numbers.
fn largest([first, rest @ ..]: [f32; 4]) -> (f32, u8) {
    let (mut best, mut at) = (first, 0);
    for (place, x) in (1..).zip(rest) {
        let wins = x > best || (x.is_nan() && !best.is_nan());
        best = if wins { x } else { best };
        at = if wins { place } else { at };
    }
    (best, at)
}
