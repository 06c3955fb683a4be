//! Matrix products of a warp, and loads of their operands.
//!
//! Lane l belongs to group g = l / 4 and is number p = l % 4 in it. Of a product D = A B + C, it
//! holds rows g and g + 8 of A, C and D, and column g of B; p tells which elements of them.

use super::block::Block;
use crate::arithmetic::half;
use crate::code::{Address, Mma, Multiply, Slot};
use crate::fault::Fault;

const ROWS: usize = 16;
const COLUMNS: usize = 8;

/// Tensor cores read the upper 19 bits of what is given as TF32.
fn tf32(bits: u64) -> f64 {
    f32::from_bits(bits as u32 & 0xffff_e000).into()
}

impl Block<'_> {
    /// D = A B + C. The products are exact, their sum is rounded once.
    pub(super) fn multiply(&mut self, first: usize, multiply: &Multiply) {
        let Multiply { shape, to, a, b, c } = *multiply;
        let (depth, halves) = match shape {
            Mma::Tf32K4 => (4, false),
            Mma::Tf32K8 => (8, false),
            Mma::F16K8 => (8, true),
            Mma::F16K16 => (16, true),
        };
        // Registers of A cover two groups of rows and 4 words of a row each, those of B 4 words
        // of a column; a word is one TF32 or two halves.
        let registers = if halves { depth / 8 } else { depth / 4 };
        let mut left = [[0.0; 16]; ROWS];
        let mut right = [[0.0; COLUMNS]; 16];
        for lane in 0..32 {
            let (g, p) = (lane / 4, lane % 4);
            for word in 0..registers {
                for (row, &slot) in [g, g + 8].into_iter().zip(&a[2 * word..]) {
                    let bits = self.get(first + lane, slot);
                    if halves {
                        left[row][8 * word + 2 * p] = half::read(bits);
                        left[row][8 * word + 2 * p + 1] = half::read(bits >> 16);
                    } else {
                        left[row][4 * word + p] = tf32(bits);
                    }
                }
                let bits = self.get(first + lane, b[word]);
                if halves {
                    right[8 * word + 2 * p][g] = half::read(bits);
                    right[8 * word + 2 * p + 1][g] = half::read(bits >> 16);
                } else {
                    right[4 * word + p][g] = tf32(bits);
                }
            }
        }
        let mut sums = [[0.0; COLUMNS]; ROWS];
        for lane in 0..32 {
            for (i, &slot) in c.iter().enumerate() {
                let (row, column) = place(lane, i);
                sums[row][column] = f32::from_bits(self.get(first + lane, slot) as u32).into();
            }
        }
        for (row, sums) in left.iter().zip(&mut sums) {
            for (&x, ys) in row.iter().zip(&right).take(depth) {
                sums.iter_mut().zip(ys).for_each(|(sum, y): (&mut f64, _)| *sum += x * y);
            }
        }
        for lane in 0..32 {
            for (i, &slot) in to.iter().enumerate() {
                let (row, column) = place(lane, i);
                self.set(first + lane, slot, (sums[row][column] as f32).to_bits().into());
            }
        }
    }

    /// Loads matrices of 8 rows of 8 halves. Lane 8 i + r gives the address of row r of matrix i.
    pub(super) fn load_matrices(
        &mut self,
        first: usize,
        transposed: bool,
        to: &[Slot],
        from: Address,
    ) -> Result<(), Fault> {
        let mut matrices = [[[0u16; 8]; 8]; 4];
        for (lane, row) in matrices.as_flattened_mut().iter_mut().enumerate().take(8 * to.len()) {
            let thread = first + lane;
            let at = self.get(thread, from.base).wrapping_add(from.offset as u64);
            if !at.is_multiple_of(16) {
                return Err(Fault::Misaligned { at, bytes: 16 });
            }
            let bits = self.spaces.load_shared(thread, at, 16, false)?;
            for (i, element) in row.iter_mut().enumerate() {
                *element = (bits >> (16 * i)) as u16;
            }
        }
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            for (&slot, matrix) in to.iter().zip(&matrices) {
                let pair = if transposed {
                    [matrix[column][row], matrix[column + 1][row]]
                } else {
                    [matrix[row][column], matrix[row][column + 1]]
                };
                self.set(first + lane, slot, u64::from(pair[0]) | u64::from(pair[1]) << 16);
            }
        }
        Ok(())
    }
}

/// Row and column of a lane's element of C or D.
const fn place(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2)
}
