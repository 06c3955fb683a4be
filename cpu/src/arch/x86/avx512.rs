//! AVX-512: vectors of 16, and those of AVX2 with twice the registers.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::Avx2;
use crate::arch::{Isa, Kernel, Simd};

/// The proof that the machine has AVX-512 F, BW, DQ and VL, and all that [`Avx2`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The set, where the machine has it.
    pub(crate) fn new() -> Option<Self> {
        let has = Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        has.then_some(Self(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
        fn compiled<K: Kernel>(set: Avx512, kernel: K) -> K::Out {
            kernel.run(set)
        }
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { compiled(self, kernel) }
    }
}

impl Isa for Avx512 {
    type Narrow = Avx2;
    type Wide = Self;

    #[inline(always)]
    fn narrow(self) -> Avx2 {
        Avx2::within(self)
    }

    #[inline(always)]
    fn wide(self) -> Self {
        self
    }
}

// SAFETY of every block below: `self` is the proof that the machine has the instructions; what
// reads or writes memory passes on the promise of its caller.
impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    type V = __m512;
    type Mask = __mmask16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, v: __m512, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn load_blocks_ptr(self, from: *const f32, step: usize) -> __m512 {
        unsafe {
            let low = _mm512_castps256_ps512(_mm256_loadu_ps(from));
            _mm512_insertf32x8::<1>(low, _mm256_loadu_ps(from.add(step)))
        }
    }

    #[inline(always)]
    unsafe fn store_blocks_ptr(self, v: __m512, to: *mut f32, step: usize) {
        unsafe {
            _mm256_storeu_ps(to, _mm512_castps512_ps256(v));
            _mm256_storeu_ps(to.add(step), _mm512_extractf32x8_ps::<1>(v));
        }
    }

    // Whole cache lines, where `to` begins one.
    #[inline(always)]
    unsafe fn store_pairs_ptr(self, a: __m512, b: __m512, to: *mut f32, step: usize) {
        unsafe {
            _mm512_storeu_ps(to, _mm512_shuffle_f32x4::<0x44>(a, b));
            _mm512_storeu_ps(to.add(step), _mm512_shuffle_f32x4::<0xee>(a, b));
        }
    }

    #[inline(always)]
    unsafe fn load_half_ptr(self, from: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bytes_ptr(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_bytes_ptr(self, v: __m512, to: *mut u8) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    fn less(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }

    #[inline(always)]
    fn equal(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }

    #[inline(always)]
    fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(mask, no, yes) }
    }

    #[inline(always)]
    fn bits(self, mask: __mmask16) -> u32 {
        u32::from(mask)
    }

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
