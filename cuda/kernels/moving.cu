// Layers that look up or move elements, bound by memory bandwidth.

#include "common.cuh"

// The row of a token: the nearest whole number, halves up, and row 0 for what names none. What is
// left beside the whole is exact, which the sum with one half is not.
__device__ __forceinline__ u32 row_of(float token, u32 tokens) {
    // Also NaN, and what the cast could not hold.
    if (!(token >= 0.5f && token < 4294967296.0f)) return 0;
    const float whole = floorf(token);
    const u32 row = (u32)whole + (token - whole >= 0.5f);
    return row < tokens ? row : 0;
}

// (N, 1, H, W) tokens to (N, dim, H, W): a thread for each element of the output.
KERNEL embedding(const float *__restrict__ x, const float *__restrict__ w, float *__restrict__ y, u32 len, u32 plane,
                 u32 dim, u32 tokens) {
    const u64 i = element();
    if (i >= len) return;
    const u32 p = (u32)i % plane, e = (u32)i / plane % dim, n = (u32)i / plane / dim;
    y[i] = w[(u64)row_of(x[(u64)n * plane + p], tokens) * dim + e];
}

#define SOME 8

// A block for each SOME numbers of a token's vector: it reads all tokens and sums the gradients of
// its own, in an order that the launch fixes.
KERNEL __launch_bounds__(256) embedding_backward(const float *__restrict__ x, const float *__restrict__ dy, float *dw,
                                                 u32 n, u32 plane, u32 dim, u32 tokens) {
    __shared__ float room[32];
    const u32 groups = (dim + SOME - 1) / SOME;
    const u32 token = blockIdx.x / groups, first = blockIdx.x % groups * SOME;
    float sums[SOME] = {};
    for (u32 i = threadIdx.x; i < n * plane; i += blockDim.x) {
        if (row_of(x[i], tokens) != token) continue;
        const float *from = dy + ((u64)(i / plane) * dim + first) * plane + i % plane;
#pragma unroll
        for (u32 e = 0; e < SOME; e++) {
            if (first + e < dim) sums[e] += from[(u64)e * plane];
        }
    }
#pragma unroll
    for (u32 e = 0; e < SOME; e++) {
        if (first + e >= dim) break;
        const float sum = block_sum(sums[e], room);
        if (threadIdx.x == 0) dw[(u64)token * dim + first + e] += sum;
    }
}

// Where an element of the deep tensor comes from.
__device__ __forceinline__ u64 shallow(u64 i, u32 channels, u32 h, u32 w, u32 factor) {
    const u32 out_w = w / factor, out_h = h / factor;
    const u32 q = (u32)i % out_w, p = (u32)i / out_w % out_h;
    const u32 deep = (u32)i / out_w / out_h % (channels * factor * factor);
    const u32 n = (u32)i / out_w / out_h / (channels * factor * factor);
    const u32 tap = deep / channels, c = deep % channels;
    return (((u64)n * channels + c) * h + p * factor + tap / factor) * w + q * factor + tap % factor;
}

KERNEL space_to_depth(const float *__restrict__ x, float *__restrict__ y, u32 len, u32 channels, u32 h, u32 w, u32 factor) {
    const u64 i = element();
    if (i < len) y[i] = x[shallow(i, channels, h, w, factor)];
}

KERNEL space_to_depth_backward(const float *__restrict__ dy, float *__restrict__ dx, u32 len, u32 channels, u32 h,
                               u32 w, u32 factor) {
    const u64 i = element();
    if (i < len) dx[shallow(i, channels, h, w, factor)] = dy[i];
}
