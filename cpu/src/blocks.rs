//! Blocks of eight channels: their sizes, and copies between them and the reference's layout.

use rayon::prelude::*;
use sepal_core::arena::{Layout, Slot};
use sepal_core::shape::Shape;

/// Channels of a block.
pub(crate) const BLOCK: usize = 8;

/// Numbers that one task works on: a piece of this size outweighs the cost of handing it over.
pub(crate) const GRAIN: usize = 1 << 13;

/// Channels rounded up to whole blocks.
pub(crate) const fn padded(channels: usize) -> usize {
    channels.next_multiple_of(BLOCK)
}

/// Whether a slot lies in blocks.
pub(crate) fn is_blocked(slot: Slot) -> bool {
    slot.layout == Layout::Nchw8c
}

/// Whether blocks of `shape` are the same memory as the reference's layout.
pub(crate) const fn is_same(shape: Shape) -> bool {
    shape.plane() == 1 && shape.c.is_multiple_of(BLOCK as u32)
}

/// Blocks of one sample.
pub(crate) const fn count(shape: Shape) -> usize {
    (shape.c as usize).div_ceil(BLOCK)
}

/// Numbers of one block of one sample, at least 1.
pub(crate) const fn plane(shape: Shape) -> usize {
    let plane = shape.plane() as usize;
    if plane == 0 { 1 } else { plane * BLOCK }
}

/// Blocks that one task works on.
pub(crate) fn piece(shape: Shape) -> usize {
    (GRAIN / plane(shape)).max(1)
}

/// Numbers of a sample in the reference's layout and in blocks.
fn samples(shape: Shape) -> (usize, usize) {
    let (channels, plane) = (shape.c as usize, shape.plane() as usize);
    ((channels * plane).max(1), (padded(channels) * plane).max(1))
}

/// Writes `to` in blocks, padding included, from `from` in the reference's layout.
pub(crate) fn block(shape: Shape, from: &[f32], to: &mut [f32]) {
    let (plain, blocked) = samples(shape);
    let area = shape.plane().max(1) as usize;
    let samples = from.par_chunks_exact(plain).zip(to.par_chunks_exact_mut(blocked));
    samples.with_min_len((GRAIN / plain).max(1)).for_each(|(from, to)| {
        for (from, to) in from.chunks(BLOCK * area).zip(to.chunks_exact_mut(BLOCK * area)) {
            let to = to.as_chunks_mut::<BLOCK>().0;
            if from.len() < BLOCK * area {
                to.as_flattened_mut().fill(0.0);
            }
            for (c, from) in from.chunks_exact(area).enumerate() {
                to.iter_mut().zip(from).for_each(|(to, from)| to[c] = *from);
            }
        }
    });
}

/// Writes `to` in the reference's layout from `from` in blocks.
pub(crate) fn unblock(shape: Shape, from: &[f32], to: &mut [f32]) {
    let (plain, blocked) = samples(shape);
    let area = shape.plane().max(1) as usize;
    let samples = from.par_chunks_exact(blocked).zip(to.par_chunks_exact_mut(plain));
    samples.with_min_len((GRAIN / plain).max(1)).for_each(|(from, to)| {
        for (from, to) in from.chunks_exact(BLOCK * area).zip(to.chunks_mut(BLOCK * area)) {
            let from = from.as_chunks::<BLOCK>().0;
            for (c, to) in to.chunks_exact_mut(area).enumerate() {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from[c]);
            }
        }
    });
}

/// Sets the padding to zero.
pub(crate) fn clear_padding(shape: Shape, x: &mut [f32]) {
    let (blocks, used) = (count(shape).max(1), shape.c as usize % BLOCK);
    if used == 0 {
        return;
    }
    for x in x.chunks_exact_mut(plane(shape)).skip(blocks - 1).step_by(blocks) {
        for x in x.as_chunks_mut::<BLOCK>().0 {
            x.iter_mut().skip(used).for_each(|x| *x = 0.0);
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
            let mut cleared = blocked.clone();
            let padding = cleared.iter_mut().filter(|x| **x == 0.0);
            assert_eq!(padding.map(|x| *x = f32::NAN).count(), blocked.len() - x.len());
            clear_padding(shape, &mut cleared);
            assert_eq!(cleared, blocked);
        }
        assert!(is_same(Shape::rows(3, 16)));
        assert!(!is_same(Shape::rows(3, 12)) && !is_same(Shape::new(1, 8, 1, 2)));
    }
}
