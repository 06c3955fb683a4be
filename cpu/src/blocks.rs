//! Between the reference's layout and blocks of eight channels.

use sepal_core::shape::Shape;

/// Channels of a block.
pub(crate) const BLOCK: usize = 8;

/// Channels rounded up to whole blocks.
pub(crate) const fn padded(channels: usize) -> usize {
    channels.next_multiple_of(BLOCK)
}

/// Numbers of a sample in the reference's layout and in blocks.
fn samples(shape: Shape) -> (usize, usize) {
    let (channels, plane) = (shape.c as usize, shape.plane() as usize);
    ((channels * plane).max(1), (padded(channels) * plane).max(1))
}

/// Writes `to` in blocks, padding included, from `from` in the reference's layout.
pub(crate) fn block(shape: Shape, from: &[f32], to: &mut [f32]) {
    let (plain, blocked) = samples(shape);
    let plane = shape.plane().max(1) as usize;
    for (from, to) in from.chunks_exact(plain).zip(to.chunks_exact_mut(blocked)) {
        let channels = from.chunks(BLOCK * plane).zip(to.chunks_exact_mut(BLOCK * plane));
        for (from, to) in channels {
            if from.len() < to.len() {
                to.fill(0.0);
            }
            for (c, from) in from.chunks_exact(plane).enumerate() {
                for (from, to) in from.iter().zip(to.chunks_exact_mut(BLOCK)) {
                    to[c] = *from;
                }
            }
        }
    }
}

/// Writes `to` in the reference's layout from `from` in blocks.
pub(crate) fn unblock(shape: Shape, from: &[f32], to: &mut [f32]) {
    let (plain, blocked) = samples(shape);
    let plane = shape.plane().max(1) as usize;
    for (from, to) in from.chunks_exact(blocked).zip(to.chunks_exact_mut(plain)) {
        let channels = from.chunks_exact(BLOCK * plane).zip(to.chunks_mut(BLOCK * plane));
        for (from, to) in channels {
            for (c, to) in to.chunks_exact_mut(plane).enumerate() {
                for (from, to) in from.chunks_exact(BLOCK).zip(to) {
                    *to = from[c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::values;

    #[test]
    fn there_and_back() {
        for c in [1, 3, 7, 8, 9, 16, 17] {
            let shape = Shape::new(3, c, 2, 5);
            let x = values(1, shape.len().unwrap() as usize);
            let mut blocked = vec![f32::NAN; 3 * padded(c as usize) * 10];
            block(shape, &x, &mut blocked);
            for (at, number) in blocked.iter().enumerate() {
                let (n, rest) = (at / (padded(c as usize) * 10), at % (padded(c as usize) * 10));
                let (channel, place) = (rest / 80 * 8 + rest % 8, rest % 80 / 8);
                let plain = (n * c as usize + channel) * 10 + place;
                assert_eq!(*number, if channel < c as usize { x[plain] } else { 0.0 });
            }
            let mut back = vec![f32::NAN; x.len()];
            unblock(shape, &blocked, &mut back);
            assert_eq!(back, x);
        }
    }
}
