//! NEON: vectors of 8 in a pair of registers of 4.
#![allow(unsafe_code)]

use core::arch::aarch64::*;
use core::arch::asm;

use crate::arch::{Kernel, Narrow, Simd};

/// The proof that the machine has NEON, which every 64-bit Arm with a system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Neon(());

impl Neon {
    /// The set, where the machine has it.
    pub(crate) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "neon")]
        fn compiled<K: Kernel>(set: Neon, kernel: K) -> K::Out {
            kernel.run(set)
        }
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { compiled(self, kernel) }
    }
}

/// One register of each pair.
macro_rules! halves {
    ($f:ident($($v:expr),*)) => { unsafe { [$f($($v[0]),*), $f($($v[1]),*)] } };
}

// SAFETY of every block below: `self` is the proof that the machine has the instructions; what
// reads or writes memory passes on the promise of its caller.
impl Simd for Neon {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type V = [float32x4_t; 2];
    type Mask = [uint32x4_t; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        unsafe { [vdupq_n_f32(x); 2] }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Self::V {
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::V, to: *mut f32) {
        unsafe {
            vst1q_f32(to, v[0]);
            vst1q_f32(to.add(4), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_half_ptr(self, from: *const u16) -> Self::V {
        unsafe {
            let narrow = vreinterpretq_f16_u16(vld1q_u16(from));
            [vcvt_f32_f16(vget_low_f16(narrow)), vcvt_high_f32_f16(narrow)]
        }
    }

    #[inline(always)]
    unsafe fn load_bytes_ptr(self, from: *const u8) -> Self::V {
        unsafe {
            let words = vmovl_u8(vld1_u8(from));
            let (low, high) = (vget_low_u16(words), vget_high_u16(words));
            [vcvtq_f32_u32(vmovl_u16(low)), vcvtq_f32_u32(vmovl_u16(high))]
        }
    }

    #[inline(always)]
    unsafe fn store_bytes_ptr(self, v: Self::V, to: *mut u8) {
        unsafe {
            let (low, high) = (vcvtq_u32_f32(v[0]), vcvtq_u32_f32(v[1]));
            vst1_u8(to, vmovn_u16(vcombine_u16(vmovn_u32(low), vmovn_u32(high))));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        halves!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        halves!(vfmsq_f32(c, a, b))
    }

    // The instructions for the greater and the lesser pass NaN on, whichever side it is on.
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        self.select(self.less(b, a), a, b)
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        self.select(self.less(a, b), a, b)
    }

    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        halves!(vsqrtq_f32(a))
    }

    #[inline(always)]
    fn less(self, a: Self::V, b: Self::V) -> Self::Mask {
        halves!(vcltq_f32(a, b))
    }

    #[inline(always)]
    fn equal(self, a: Self::V, b: Self::V) -> Self::Mask {
        halves!(vceqq_f32(a, b))
    }

    #[inline(always)]
    fn select(self, mask: Self::Mask, yes: Self::V, no: Self::V) -> Self::V {
        halves!(vbslq_f32(mask, yes, no))
    }

    #[inline(always)]
    fn bits(self, mask: Self::Mask) -> u32 {
        const LANE: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
        unsafe {
            let low = vandq_u32(mask[0], vld1q_u32(LANE.as_ptr()));
            let high = vandq_u32(mask[1], vld1q_u32(LANE.as_ptr().add(4)));
            vaddvq_u32(vorrq_u32(low, high))
        }
    }

    // The intrinsic is not stable yet.
    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        unsafe {
            asm!("prfm pldl1keep, [{at}]", at = in(reg) at,
                options(nomem, nostack, preserves_flags));
        }
    }
}

/// Four rows of 4 numbers as their columns.
#[inline(always)]
fn transpose4([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: a value of `Neon` is the proof that the machine has the instructions.
    unsafe {
        let wide = |v: float32x4_t| vreinterpretq_f64_f32(v);
        let (ab, cd) = (wide(vtrn1q_f32(a, b)), wide(vtrn1q_f32(c, d)));
        let (ab_odd, cd_odd) = (wide(vtrn2q_f32(a, b)), wide(vtrn2q_f32(c, d)));
        [
            vreinterpretq_f32_f64(vtrn1q_f64(ab, cd)),
            vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd)),
            vreinterpretq_f32_f64(vtrn2q_f64(ab, cd)),
            vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd)),
        ]
    }
}

impl Narrow for Neon {
    #[inline(always)]
    fn transpose(self, rows: [Self::V; 8]) -> [Self::V; 8] {
        let quarter = |from: usize, half: usize| {
            let row = |i: usize| rows[from + i][half];
            transpose4([row(0), row(1), row(2), row(3)])
        };
        let (upper, lower) = (quarter(0, 0), quarter(4, 0));
        let (upper_right, lower_right) = (quarter(0, 1), quarter(4, 1));
        [
            [upper[0], lower[0]],
            [upper[1], lower[1]],
            [upper[2], lower[2]],
            [upper[3], lower[3]],
            [upper_right[0], lower_right[0]],
            [upper_right[1], lower_right[1]],
            [upper_right[2], lower_right[2]],
            [upper_right[3], lower_right[3]],
        ]
    }
}
