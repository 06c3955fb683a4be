//! Blocks of eight channels, and the reference's layout: sizes of the one, and copies between them.

use rayon::prelude::*;
use sepal_core::arena::{Layout, Slot};
use sepal_core::shape::Shape;

/// Channels of a block.
pub(crate) const BLOCK: usize = 8;

/// Numbers that one task works on: a piece of this size outweighs the cost of handing it over.
pub(crate) const GRAIN: usize = 1 << 13;

/// Whether a slot lies in blocks of eight channels.
pub(crate) fn is_blocked(slot: Slot) -> bool {
    slot.layout == Layout::Nchw8c
}

/// Whether blocks of `shape` are the same memory as the reference's layout.
pub(crate) const fn is_same(shape: Shape) -> bool {
    shape.plane() == 1 && shape.c.is_multiple_of(BLOCK as u32)
}

/// The channels of `shape`, padding included.
pub(crate) const fn padded(shape: Shape) -> usize {
    blocks(shape) * BLOCK
}

/// Blocks of channels of one sample.
pub(crate) const fn blocks(shape: Shape) -> usize {
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

/// Channels of block `block` that are no padding.
fn width(shape: Shape, block: usize) -> usize {
    (shape.c as usize - block * BLOCK).min(BLOCK)
}

/// Copies blocks of eight channels to the reference's layout.
pub(crate) fn from_blocks(shape: Shape, from: &[f32], to: &mut [f32]) {
    let (blocks, area) = (blocks(shape).max(1), shape.plane().max(1) as usize);
    let sample = (shape.c as usize * area).max(1);
    let samples = to.par_chunks_exact_mut(sample).zip(from.par_chunks_exact(blocks * plane(shape)));
    samples.with_min_len((GRAIN / sample).max(1)).for_each(|(to, from)| {
        for (to, from) in to.chunks_mut(BLOCK * area).zip(from.chunks_exact(plane(shape))) {
            for (lane, to) in to.chunks_exact_mut(area).enumerate() {
                let from = from.as_chunks::<BLOCK>().0;
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from[lane]);
            }
        }
    });
}

/// Copies the reference's layout to blocks of eight channels, zeros in the padding.
pub(crate) fn to_blocks(shape: Shape, from: &[f32], to: &mut [f32]) {
    let (blocks, area) = (blocks(shape).max(1), shape.plane().max(1) as usize);
    let sample = (shape.c as usize * area).max(1);
    let samples = to.par_chunks_exact_mut(blocks * plane(shape)).zip(from.par_chunks_exact(sample));
    samples.with_min_len((GRAIN / sample).max(1)).for_each(|(to, from)| {
        for (to, from) in to.chunks_exact_mut(plane(shape)).zip(from.chunks(BLOCK * area)) {
            let to = to.as_chunks_mut::<BLOCK>().0;
            if from.len() < BLOCK * area {
                to.as_flattened_mut().fill(0.0);
            }
            for (lane, from) in from.chunks_exact(area).enumerate() {
                to.iter_mut().zip(from).for_each(|(to, from)| to[lane] = *from);
            }
        }
    });
}

/// Sets the padding of blocks to zero.
pub(crate) fn clear_padding(shape: Shape, x: &mut [f32]) {
    let used = width(shape, blocks(shape).saturating_sub(1));
    if used == BLOCK {
        return;
    }
    let blocks = blocks(shape).max(1);
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
            let mut blocked = vec![f32::NAN; 3 * padded(shape) * 10];
            to_blocks(shape, &x, &mut blocked);
            for (at, &x) in x.iter().enumerate() {
                let (n, c, i) = (at / 10 / c as usize, at / 10 % c as usize, at % 10);
                let block = n * blocks(shape) + c / 8;
                assert_eq!(blocked[(block * 10 + i) * 8 + c % 8], x);
            }
            let zeros = blocked.iter().filter(|x| **x == 0.0).count();
            assert_eq!(zeros, blocked.len() - x.len());
            let mut cleared = blocked.clone();
            cleared.iter_mut().filter(|x| **x == 0.0).for_each(|x| *x = f32::NAN);
            clear_padding(shape, &mut cleared);
            assert_eq!(cleared, blocked);
            let mut back = vec![f32::NAN; x.len()];
            from_blocks(shape, &blocked, &mut back);
            assert_eq!(back, x);
        }
        assert!(is_same(Shape::rows(3, 16)));
        assert!(!is_same(Shape::rows(3, 12)) && !is_same(Shape::new(1, 8, 1, 2)));
    }
}
