// What the bench compares the search with: the least of each row of a matrix of products that cuBLAS made.
// No backend launches these kernels.

#include "common.cuh"

// The squared length of each row, by a warp.
KERNEL squares(const float *__restrict__ rows, float *__restrict__ lengths, u32 n, u32 dim) {
    const u32 row = (u32)(element() / 32), lane = threadIdx.x & 31;
    if (row >= n) return;
    float sum = 0.0f;
    for (u32 d = lane; d < dim; d += 32) sum = fmaf(rows[(u64)row * dim + d], rows[(u64)row * dim + d], sum);
    sum = warp_sum(sum);
    if (lane == 0) lengths[row] = sum;
}

// Both neighbours of each row of a set in itself, |x|^2 + |y|^2 - 2 xy apart: a block of 256 for each,
// bound by memory bandwidth. Keys are distances above indices, the same label's before the other's.
KERNEL __launch_bounds__(256) least_of_row(const float *__restrict__ products, const float *__restrict__ lengths,
                                           const u16 *__restrict__ labels, u64 *__restrict__ keys, u32 n) {
    __shared__ u64 room[2][8];
    const u32 row = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    u64 best[2] = {0x7f800000ffffffffull, 0x7f800000ffffffffull};
    for (u32 at = threadIdx.x; at < n; at += blockDim.x) {
        if (at == row) continue;
        const float apart = fmaxf(fmaf(-2.0f, products[(u64)row * n + at], lengths[row] + lengths[at]), 0.0f);
        const u64 key = (u64)__float_as_uint(apart) << 32 | at;
        const bool is_same = labels[at] == labels[row];
        best[0] = is_same && key < best[0] ? key : best[0];
        best[1] = !is_same && key < best[1] ? key : best[1];
    }
#pragma unroll
    for (int kind = 0; kind < 2; kind++) {
#pragma unroll
        for (int lanes = 16; lanes; lanes >>= 1) {
            const u64 other = __shfl_xor_sync(0xffffffffu, best[kind], lanes);
            best[kind] = other < best[kind] ? other : best[kind];
        }
        if (lane == 0) room[kind][warp] = best[kind];
    }
    __syncthreads();
    if (threadIdx.x >= 2) return;
    u64 key = room[threadIdx.x][0];
    for (u32 i = 1; i < 8; i++) key = room[threadIdx.x][i] < key ? room[threadIdx.x][i] : key;
    keys[2 * (u64)row + threadIdx.x] = key;
}
