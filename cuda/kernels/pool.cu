// Pools: a thread for each element of what is written where nothing else is said, bound by memory
// bandwidth. Gradients are gathered, so that no two threads add to one place.

#include "common.cuh"

// `winner` is the tap of the window that won, where it is kept.
KERNEL max_pool(const float *__restrict__ x, float *__restrict__ y, u8 *__restrict__ winner, u32 len, u32 h, u32 w,
                u32 out_h, u32 out_w, u32 kh, u32 kw, u32 sh, u32 sw, u32 ph, u32 pw) {
    const u64 i = element();
    if (i >= len) return;
    const u32 q = (u32)i % out_w, p = (u32)i / out_w % out_h;
    const float *plane = x + (u64)((u32)i / out_w / out_h) * h * w;
    float best = -INFINITY_F;
    u32 won = 255;
    for (u32 r = 0; r < kh; r++) {
        for (u32 s = 0; s < kw; s++) {
            // What lies in the border wraps to beyond the plane.
            const u32 row = p * sh + r - ph, column = q * sw + s - pw;
            if (row >= h || column >= w) continue;
            const float v = plane[row * w + column];
            // A window of negative infinities has a winner too: its first.
            if (beats(v, best) || won == 255) {
                best = v;
                won = r * kw + s;
            }
        }
    }
    y[i] = best;
    if (winner) winner[i] = won;
}

// The first of the outputs whose window holds a place, along one axis.
__device__ __forceinline__ u32 first_of(u32 at, u32 kernel, u32 stride, u32 pad) {
    return at + pad < kernel ? 0 : (at + pad - kernel) / stride + 1;
}

KERNEL max_pool_backward(const u8 *__restrict__ winner, const float *__restrict__ dy, float *__restrict__ dx, u32 len,
                         u32 h, u32 w, u32 out_h, u32 out_w, u32 kh, u32 kw, u32 sh, u32 sw, u32 ph, u32 pw) {
    const u64 i = element();
    if (i >= len) return;
    const u32 column = (u32)i % w, row = (u32)i / w % h;
    const u64 plane = (u64)((u32)i / w / h) * out_h * out_w;
    float sum = 0.0f;
    for (u32 p = first_of(row, kh, sh, ph); p < out_h && p * sh <= row + ph; p++) {
        for (u32 q = first_of(column, kw, sw, pw); q < out_w && q * sw <= column + pw; q++) {
            const u32 tap = (row + ph - p * sh) * kw + column + pw - q * sw;
            const u64 at = plane + p * out_w + q;
            if (winner[at] == tap) sum += dy[at];
        }
    }
    dx[i] = sum;
}

KERNEL avg_pool(const float *__restrict__ x, float *__restrict__ y, u32 len, u32 h, u32 w, u32 out_h, u32 out_w,
                u32 kh, u32 kw, u32 sh, u32 sw, u32 ph, u32 pw) {
    const u64 i = element();
    if (i >= len) return;
    const u32 q = (u32)i % out_w, p = (u32)i / out_w % out_h;
    const float *plane = x + (u64)((u32)i / out_w / out_h) * h * w;
    float sum = 0.0f;
    for (u32 r = 0; r < kh; r++) {
        for (u32 s = 0; s < kw; s++) {
            const u32 row = p * sh + r - ph, column = q * sw + s - pw;
            if (row < h && column < w) sum += plane[row * w + column];
        }
    }
    y[i] = sum / (kh * kw);
}

KERNEL avg_pool_backward(const float *__restrict__ dy, float *__restrict__ dx, u32 len, u32 h, u32 w, u32 out_h,
                         u32 out_w, u32 kh, u32 kw, u32 sh, u32 sw, u32 ph, u32 pw) {
    const u64 i = element();
    if (i >= len) return;
    const u32 column = (u32)i % w, row = (u32)i / w % h;
    const u64 plane = (u64)((u32)i / w / h) * out_h * out_w;
    float sum = 0.0f;
    for (u32 p = first_of(row, kh, sh, ph); p < out_h && p * sh <= row + ph; p++) {
        for (u32 q = first_of(column, kw, sw, pw); q < out_w && q * sw <= column + pw; q++) {
            sum += dy[plane + p * out_w + q];
        }
    }
    dx[i] = sum / (kh * kw);
}

// Bin `at` of `bins` over `size` places: from its first to one past its last.
__device__ __forceinline__ uint2 bin(u32 size, u32 bins, u32 at) {
    return make_uint2((u32)((u64)at * size / bins), (u32)(((u64)(at + 1) * size + bins - 1) / bins));
}

KERNEL avg_pool_to(const float *__restrict__ x, float *__restrict__ y, u32 len, u32 h, u32 w, u32 out_h, u32 out_w) {
    const u64 i = element();
    if (i >= len) return;
    const uint2 across = bin(w, out_w, (u32)i % out_w), down = bin(h, out_h, (u32)i / out_w % out_h);
    const float *plane = x + (u64)((u32)i / out_w / out_h) * h * w;
    float sum = 0.0f;
    for (u32 r = down.x; r < down.y; r++) {
        float row = 0.0f;
        for (u32 c = across.x; c < across.y; c++) row += plane[r * w + c];
        sum += row;
    }
    y[i] = sum / ((down.y - down.x) * (across.y - across.x));
}

KERNEL avg_pool_to_backward(const float *__restrict__ dy, float *__restrict__ dx, u32 len, u32 h, u32 w, u32 out_h,
                            u32 out_w) {
    const u64 i = element();
    if (i >= len) return;
    const u32 column = (u32)i % w, row = (u32)i / w % h;
    const u64 plane = (u64)((u32)i / w / h) * out_h * out_w;
    // Bins are no smaller than a place and meet the next in one at most: a place is in the bin that
    // holds its first edge, and maybe in the one after.
    const u32 p0 = (u32)((u64)row * out_h / h), q0 = (u32)((u64)column * out_w / w);
    float sum = 0.0f;
    for (u32 p = p0; p < out_h && p <= p0 + 1; p++) {
        const uint2 down = bin(h, out_h, p);
        if (row < down.x) continue;
        for (u32 q = q0; q < out_w && q <= q0 + 1; q++) {
            const uint2 across = bin(w, out_w, q);
            if (column < across.x) continue;
            sum += dy[plane + p * out_w + q] / ((down.y - down.x) * (across.y - across.x));
        }
    }
    dx[i] = sum;
}

// A warp for each plane.
KERNEL global_avg_pool(const float *__restrict__ x, float *__restrict__ y, u32 planes, u32 plane) {
    const u32 at = (u32)(element() / 32), lane = threadIdx.x & 31;
    if (at >= planes) return;
    float sum = 0.0f;
    for (u32 i = lane; i < plane; i += 32) sum += x[(u64)at * plane + i];
    sum = warp_sum(sum);
    if (lane == 0) y[at] = sum / plane;
}

KERNEL global_avg_pool_backward(const float *__restrict__ dy, float *__restrict__ dx, u32 len, u32 plane) {
    const u64 i = element();
    if (i < len) dx[i] = dy[(u32)i / plane] / plane;
}

// Larger for a larger number, for NaN more than for all others, and of equal numbers for the first;
// above 0 and below all ones.
__device__ __forceinline__ u64 rank(float v, u32 at) {
    const u32 bits = v == 0.0f ? 0 : __float_as_uint(v);
    const u32 order = v != v ? 0xfffffffeu : bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)order << 32 | ~at;
}

// A warp for each row: k times the largest of what ranks below the last, then all from there on, in
// their order. `places` is where they stood, if kept.
KERNEL k_max_pool(const float *__restrict__ x, float *__restrict__ y, u16 *__restrict__ places, u32 rows, u32 width,
                  u32 k) {
    const u32 row = (u32)(element() / 32), lane = threadIdx.x & 31;
    if (row >= rows) return;
    x += (u64)row * width;
    u64 last = ~0ull;
    for (u32 i = 0; i < k; i++) {
        u64 best = 0;
        for (u32 at = lane; at < width; at += 32) {
            const u64 own = rank(x[at], at);
            if (own < last && own > best) best = own;
        }
#pragma unroll
        for (int lanes = 16; lanes; lanes >>= 1) {
            const u64 other = __shfl_xor_sync(0xffffffffu, best, lanes);
            best = other > best ? other : best;
        }
        last = best;
    }
    u64 to = (u64)row * k;
    for (u32 from = 0; from < width; from += 32) {
        const u32 at = from + lane;
        const float v = at < width ? x[at] : 0.0f;
        const bool kept = at < width && rank(v, at) >= last;
        const u32 all = __ballot_sync(0xffffffffu, kept);
        if (kept) {
            const u64 own = to + __popc(all & ((1u << lane) - 1));
            y[own] = v;
            if (places) places[own] = at;
        }
        to += __popc(all);
    }
}

// A thread for each element.
KERNEL k_max_pool_backward(const u16 *__restrict__ places, const float *__restrict__ dy, float *__restrict__ dx,
                           u32 len, u32 width, u32 k) {
    const u64 i = element();
    if (i >= len) return;
    const u64 row = (u64)((u32)i / width) * k;
    const u32 at = (u32)i % width;
    float v = 0.0f;
    for (u32 j = 0; j < k; j++) {
        if (places[row + j] == at) v = dy[row + j];
    }
    dx[i] = v;
}
