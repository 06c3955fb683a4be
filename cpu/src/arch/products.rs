//! Products of all rows of two blocks, and sums of rows by weight: the two halves of a loss over
//! all pairs of a batch.
//!
//! Both read rows that were packed once, less a shift, and never write them: a batch of rows as
//! long as a block's features passes through the caches once for each.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "tiles are indexed by row and vector")]

use super::direct::Field;
use super::{Isa, Kernel, Simd};

/// Rows of a panel of [`Products`]: whole vectors of every set.
pub(crate) const PANEL: usize = 32;

/// Columns of a strip of [`Mix`]: whole vectors of every set, and whole cache lines that lie behind
/// each other in a row, for rows lie far apart.
pub(crate) const STRIP: usize = 64;

/// Adds the products of each row of a with each row of b to `out`, feature by feature.
///
/// Rows lie in panels of [`PANEL`], each with its features one after the other.
pub(crate) struct Products<'a> {
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    /// Features of each row.
    pub(crate) depth: usize,
    /// Whether a is b: of a pair's two products the one with row <= column is made, of the other
    /// anything may be left.
    pub(crate) symmetric: bool,
    /// Rows of a by rows of b.
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match I::Wide::REGISTERS {
            32 => self.tiles::<I::Wide, 8, 2>(isa.wide()),
            16 => self.tiles::<I::Wide, 4, 2>(isa.wide()),
            _ => self.tiles::<I::Wide, 4, 1>(isa.wide()),
        }
    }
}

impl Products<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const NV: usize>(self, s: S) {
        let Self { a, b, depth, symmetric, out } = self;
        let panel = PANEL * depth.max(1);
        let (rows, columns) = (a.len() / panel * PANEL, b.len() / panel * PANEL);
        assert!(PANEL.is_multiple_of(NV * S::LANES) && PANEL.is_multiple_of(MR));
        assert!(out.len() >= rows * columns);
        for column in (0..columns).step_by(NV * S::LANES) {
            for row in (0..rows).step_by(MR) {
                if symmetric && row >= column + NV * S::LANES {
                    break;
                }
                // SAFETY: a panel has `depth` times `PANEL` numbers, of which a tile reads MR or
                // NV vectors at a time from a row or column within it; the tile's products lie in
                // `out`, of which the length was checked.
                unsafe {
                    let mut x = a.as_ptr().add(row / PANEL * panel + row % PANEL);
                    let mut y = b.as_ptr().add(column / PANEL * panel + column % PANEL);
                    let mut sums = [[s.zero(); NV]; MR];
                    for _ in 0..depth {
                        let mut columns = [s.zero(); NV];
                        for v in 0..NV {
                            columns[v] = s.load_ptr(y.add(v * S::LANES));
                        }
                        for i in 0..MR {
                            let x = s.splat(*x.add(i));
                            for v in 0..NV {
                                sums[i][v] = s.fma(x, columns[v], sums[i][v]);
                            }
                        }
                        x = x.wrapping_add(PANEL);
                        y = y.wrapping_add(PANEL);
                    }
                    for i in 0..MR {
                        for v in 0..NV {
                            let to = out.as_mut_ptr();
                            let to = to.add((row + i) * columns + column + v * S::LANES);
                            s.store_ptr(s.add(s.load_ptr(to), sums[i][v]), to);
                        }
                    }
                }
            }
        }
    }
}

/// Packs [`STRIP`] columns of each row, less the shift; what lies past the rows' ends is 0.
pub(crate) struct Columns<'a> {
    /// The rows, one after the other.
    pub(crate) rows: &'a [f32],
    pub(crate) dim: usize,
    pub(crate) shift: &'a [f32],
    /// The first column.
    pub(crate) from: usize,
    /// [`STRIP`] numbers for each row.
    pub(crate) strip: &'a mut [f32],
}

impl Kernel for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (s, Self { rows, dim, shift, from, strip }) = (isa.wide(), self);
        let count = dim.saturating_sub(from).min(STRIP);
        let shift = &shift[from..from + count];
        let rows = rows.chunks_exact(dim.max(1));
        for (row, to) in rows.zip(strip.as_chunks_mut::<STRIP>().0) {
            let row = &row[from..from + count];
            if count == STRIP {
                for v in (0..STRIP).step_by(I::Wide::LANES) {
                    s.store(s.sub(s.load(&row[v..]), s.load(&shift[v..])), &mut to[v..]);
                }
            } else {
                to.fill(0.0);
                for ((to, x), shift) in to.iter_mut().zip(row).zip(shift) {
                    *to = x - shift;
                }
            }
        }
    }
}

/// Sums of rows by weight: some columns of each.
pub(crate) struct Mix<'a, 'y> {
    /// For each sum a weight of each row.
    pub(crate) weights: &'a [f32],
    /// [`STRIP`] columns of each row.
    pub(crate) strip: &'a [f32],
    /// The sums: samples of one block each.
    pub(crate) out: &'a mut Field<'y>,
    /// Their first column that is written; what lies past the last is left out.
    pub(crate) from: usize,
}

impl Kernel for Mix<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        match I::Wide::REGISTERS {
            32 => self.tiles::<I::Wide, 8, 2>(isa.wide()),
            16 => self.tiles::<I::Wide, 4, 2>(isa.wide()),
            _ => self.tiles::<I::Wide, 4, 1>(isa.wide()),
        }
    }
}

impl Mix<'_, '_> {
    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const NV: usize>(&mut self, s: S) {
        let [sums, ..] = self.out.dim();
        let whole = sums / MR * MR;
        for at in (0..whole).step_by(MR) {
            self.tile::<S, MR, NV>(s, at);
        }
        for at in whole..sums {
            self.tile::<S, 1, NV>(s, at);
        }
    }

    /// The sums `at..at + MR`.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NV: usize>(&mut self, s: S, at: usize) {
        let rows = self.strip.len() / STRIP;
        let weights = &self.weights[at * rows..(at + MR) * rows];
        for column in (0..STRIP).step_by(NV * S::LANES) {
            let mut sums = [[s.zero(); NV]; MR];
            for k in 0..rows {
                // SAFETY: each row has a weight in each of MR sums, and `STRIP` columns, which are
                // whole tiles.
                unsafe {
                    let mut columns = [s.zero(); NV];
                    for v in 0..NV {
                        let at = k * STRIP + column + v * S::LANES;
                        columns[v] = s.load_ptr(self.strip.as_ptr().add(at));
                    }
                    for i in 0..MR {
                        let weight = s.splat(*weights.as_ptr().add(i * rows + k));
                        for v in 0..NV {
                            sums[i][v] = s.fma(weight, columns[v], sums[i][v]);
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                let out = self.out.block(at + i, 0);
                for (v, sum) in sums.iter().enumerate() {
                    let rest = out.get_mut(self.from + column + v * S::LANES..).unwrap_or_default();
                    if rest.len() >= S::LANES {
                        s.store(*sum, rest);
                    } else {
                        let mut lanes = [0.0; STRIP];
                        s.store(*sum, &mut lanes);
                        rest.iter_mut().zip(lanes).for_each(|(to, x)| *to = x);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Instructions;
    use crate::check::{close, values};

    /// Rows in panels, those that a last panel lacks being zeros.
    fn panels(rows: &[f32], dim: usize) -> Vec<f32> {
        let count = rows.len() / dim;
        let mut all = vec![0.0; count.next_multiple_of(PANEL) * dim];
        for (at, x) in rows.iter().enumerate() {
            let (row, k) = (at / dim, at % dim);
            all[row / PANEL * PANEL * dim + k * PANEL + row % PANEL] = *x;
        }
        all
    }

    /// The product of two rows.
    fn product(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
    }

    #[test]
    fn products_of_any_size() {
        for (m, n, depth) in [(1, 1, 1), (31, 33, 7), (32, 64, 256), (40, 5, 3), (96, 70, 20)] {
            let (a, b) = (values(1, m * depth), values(2, n * depth));
            for set in Instructions::all() {
                for (a, b, symmetric) in [(&a, &b, false), (&b, &b, true)] {
                    let (rows, columns) = (panels(a, depth), panels(b, depth));
                    let stride = columns.len() / depth;
                    let before = values(3, rows.len() / depth * stride);
                    let mut out = before.clone();
                    let (a_in, b_in) = (&rows, &columns);
                    set.run(Products { a: a_in, b: b_in, depth, symmetric, out: &mut out });
                    for (i, a) in a.chunks(depth).enumerate() {
                        let first = if symmetric { i } else { 0 };
                        for (j, b) in b.chunks(depth).enumerate().skip(first) {
                            let sum = out[i * stride + j] - before[i * stride + j];
                            close(&[sum], &[product(a, b)], 1e-5);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sums_by_weight_of_any_size() {
        for (m, rows, dim) in
            [(1, 1, 1), (3, 5, 31), (8, 8, 32), (13, 16, 33), (16, 9, 100), (7, 4, 64)]
        {
            let (weights, data) = (values(1, m * rows), values(2, rows * dim));
            let shift = values(3, dim);
            for set in Instructions::all() {
                let mut out = vec![f32::NAN; m * dim];
                let mut field = Field::new(&mut out, m, 1, dim);
                for from in (0..dim).step_by(STRIP) {
                    let mut strip = vec![f32::NAN; rows * STRIP];
                    set.run(Columns { rows: &data, dim, shift: &shift, from, strip: &mut strip });
                    for (at, x) in strip.iter().enumerate() {
                        let (row, column) = (at / STRIP, from + at % STRIP);
                        let there = |&column: &usize| column < dim;
                        let there = Some(column).filter(there);
                        let x_in = there.map_or(0.0, |at| data[row * dim + at] - shift[at]);
                        assert_eq!(*x, x_in);
                    }
                    set.run(Mix { weights: &weights, strip: &strip, out: &mut field, from });
                }
                for (at, sum) in out.iter().enumerate() {
                    let column = |row: &[f32]| row[at % dim] - shift[at % dim];
                    let columns: Vec<f32> = data.chunks(dim).map(column).collect();
                    let weights = &weights[at / dim * rows..][..rows];
                    close(&[*sum], &[product(weights, &columns)], 1e-5);
                }
            }
        }
    }
}
