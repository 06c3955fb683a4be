// Sums, and raw samples as the net takes them: a thread for each element, bound by memory bandwidth.
// Of raw samples up to four channels have a factor and a summand of their own; of more, all have the
// same.

#include "common.cuh"

KERNEL add(const float *__restrict__ x, float *y, u32 len) {
    const u64 i = element();
    if (i < len) y[i] = __fadd_rn(y[i], x[i]);
}

#define AFFINE(channel) \
    const u32 c = channel; \
    const float factor = c == 0 ? f0 : c == 1 ? f1 : c == 2 ? f2 : f3; \
    const float summand = c == 0 ? s0 : c == 1 ? s1 : c == 2 ? s2 : s3

KERNEL widen_bytes(const u8 *__restrict__ raw, float *__restrict__ x, u32 len, u32 plane, u32 channels,
                   float f0, float f1, float f2, float f3, float s0, float s1, float s2, float s3) {
    const u64 i = element();
    if (i >= len) return;
    AFFINE((u32)i / plane % channels);
    x[i] = __fadd_rn(__fmul_rn((float)raw[i], factor), summand);
}

// In place where both are one.
KERNEL widen_numbers(const float *raw, float *x, u32 len, u32 plane, u32 channels,
                     float f0, float f1, float f2, float f3, float s0, float s1, float s2, float s3) {
    const u64 i = element();
    if (i >= len) return;
    AFFINE((u32)i / plane % channels);
    x[i] = __fadd_rn(__fmul_rn(raw[i], factor), summand);
}
