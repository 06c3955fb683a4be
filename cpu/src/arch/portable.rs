//! Plain arrays, which the compiler turns into the vectors that it may use.
#![allow(unsafe_code)]

use super::{Narrow, Simd};

/// No instructions but those that the program was compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 8] {
    core::array::from_fn(f)
}

impl Simd for Portable {
    const LANES: usize = 8;
    const REGISTERS: usize = 8;
    type V = [f32; 8];
    type Mask = [bool; 8];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Self::V {
        // SAFETY: the caller says that 8 numbers may be read; arrays of f32 need no more
        // alignment than f32.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::V, to: *mut f32) {
        // SAFETY: the caller says that 8 numbers may be written.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_half_ptr(self, from: *const u16) -> Self::V {
        // SAFETY: the caller says that 8 numbers may be read.
        let bits = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        each(|i| half::f16::from_bits(bits[i]).to_f32())
    }

    #[inline(always)]
    unsafe fn load_bytes_ptr(self, from: *const u8) -> Self::V {
        // SAFETY: the caller says that 8 bytes may be read.
        let bytes = unsafe { from.cast::<[u8; 8]>().read() };
        each(|i| f32::from(bytes[i]))
    }

    #[inline(always)]
    unsafe fn store_bytes_ptr(self, v: Self::V, to: *mut u8) {
        // SAFETY: the caller says that 8 bytes may be written.
        unsafe { to.cast::<[u8; 8]>().write(v.map(|x| x as u8)) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }

    // Without an instruction for it, `f32::mul_add` is a call of a function.
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| c[i] - a[i] * b[i])
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        each(|i| a[i].sqrt())
    }

    #[inline(always)]
    fn less(self, a: Self::V, b: Self::V) -> Self::Mask {
        core::array::from_fn(|i| a[i] < b[i])
    }

    #[inline(always)]
    fn equal(self, a: Self::V, b: Self::V) -> Self::Mask {
        core::array::from_fn(|i| a[i] == b[i])
    }

    #[inline(always)]
    fn select(self, mask: Self::Mask, yes: Self::V, no: Self::V) -> Self::V {
        each(|i| if mask[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn bits(self, mask: Self::Mask) -> u32 {
        (0..8).fold(0, |bits, i| bits | u32::from(mask[i]) << i)
    }

    #[inline(always)]
    fn prefetch(self, _at: *const f32) {}
}

impl Narrow for Portable {
    #[inline(always)]
    fn transpose(self, rows: [Self::V; 8]) -> [Self::V; 8] {
        core::array::from_fn(|j| each(|i| rows[i][j]))
    }
}
