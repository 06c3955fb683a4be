// Convolutions as products of matrices that are never written down: a tile of 64 x 64 sums by 256
// threads, 4 x 4 each, in steps of 16 along the reduction. Where an element of a step lies is worked
// out once for the step, by its first threads, and not in the loop over products. Bound by f32
// multiply-adds.
//
// Shapes: x (N, C, H, W), w (K, C / groups, R, S), y (N, K, P, Q).

#define TILE 64
#define DEPTH 16

struct Conv {
    u32 n, c, h, w, k, p, q, r, s, sh, sw, ph, pw;
    // Channels and filters of a group.
    u32 cg, kg;
};

#define CONV_ARGS \
    u32 n, u32 c, u32 h, u32 w, u32 k, u32 p, u32 q, u32 r, u32 s, u32 sh, u32 sw, u32 ph, u32 pw, u32 cg, u32 kg
#define CONV(g) const Conv g = {n, c, h, w, k, p, q, r, s, sh, sw, ph, pw, cg, kg}

__shared__ float left[DEPTH][TILE + 4], right[DEPTH][TILE + 4];

__device__ __forceinline__ void multiply(float (&sum)[4][4]) {
    const u32 row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
#pragma unroll
    for (u32 d = 0; d < DEPTH; d++) {
        const float4 x = *(const float4 *)&left[d][row], y = *(const float4 *)&right[d][column];
        const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][j] = fmaf(xs[i], ys[j], sum[i][j]);
    }
}

// Forward: rows are output places (n, p, q), columns filters of group z, the reduction is (c, r, s).
KERNEL __launch_bounds__(256) conv(const float *__restrict__ x, const float *__restrict__ weight,
                                   const float *__restrict__ bias, float *__restrict__ y, CONV_ARGS) {
    CONV(g);
    // For each element of a step: its offset from a place's first input, its row and its column.
    __shared__ int offset[DEPTH];
    __shared__ u32 down[DEPTH], across[DEPTH];
    const u32 t = threadIdx.x, group = blockIdx.z, places = g.n * g.p * g.q, depth = g.cg * g.r * g.s;
    const u32 m = blockIdx.x * TILE + t % TILE, f0 = blockIdx.y * TILE;
    const bool is_place = m < places;
    const u32 at = is_place ? m : 0, out_q = at % g.q, out_p = at / g.q % g.p, sample = at / g.q / g.p;
    const u32 row0 = out_p * g.sh - g.ph, column0 = out_q * g.sw - g.pw;
    const float *first = x + (u64)(sample * g.c + group * g.cg) * g.h * g.w;
    float sum[4][4] = {};
    for (u32 k0 = 0; k0 < depth; k0 += DEPTH) {
        if (t < DEPTH) {
            const u32 d = k0 + t, channel = d / (g.r * g.s), tap = d % (g.r * g.s);
            down[t] = tap / g.s;
            across[t] = tap % g.s;
            offset[t] = channel * g.h * g.w;
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 d = t / TILE + 4 * i, row = row0 + down[d], column = column0 + across[d];
            // What lies in the border wraps to beyond the plane.
            const bool in = is_place && k0 + d < depth && row < g.h && column < g.w;
            left[d][t % TILE] = in ? first[offset[d] + row * g.w + column] : 0.0f;
            const u32 along = t % DEPTH, filter = f0 + t / DEPTH + 16 * i;
            const bool is_weight = filter < g.kg && k0 + along < depth;
            right[along][t / DEPTH + 16 * i] =
                is_weight ? weight[(u64)(group * g.kg + filter) * depth + k0 + along] : 0.0f;
        }
        __syncthreads();
        multiply(sum);
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 place = blockIdx.x * TILE + t / 16 * 4 + i;
        if (place >= places) continue;
        const u32 image = place / (g.p * g.q), pq = place % (g.p * g.q);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 f = f0 + t % 16 * 4 + j, filter = group * g.kg + f;
            if (f < g.kg) y[(u64)(image * g.k + filter) * g.p * g.q + pq] = sum[i][j] + (bias ? bias[filter] : 0.0f);
        }
    }
}

// Backward data: rows are input places (n, h, w), columns channels of group z, the reduction is
// (k, r, s). Places that a stride leaves out are zeros of the sum.
KERNEL __launch_bounds__(256) conv_data(const float *__restrict__ dy, const float *__restrict__ weight,
                                        float *__restrict__ dx, CONV_ARGS) {
    CONV(g);
    __shared__ u32 offset[DEPTH], down[DEPTH], across[DEPTH];
    const u32 t = threadIdx.x, group = blockIdx.z, places = g.n * g.h * g.w, depth = g.kg * g.r * g.s;
    const u32 m = blockIdx.x * TILE + t % TILE, c0 = blockIdx.y * TILE;
    const bool is_place = m < places;
    const u32 at = is_place ? m : 0, column0 = at % g.w + g.pw, row0 = at / g.w % g.h + g.ph, sample = at / g.w / g.h;
    const float *first = dy + (u64)(sample * g.k + group * g.kg) * g.p * g.q;
    float sum[4][4] = {};
    for (u32 k0 = 0; k0 < depth; k0 += DEPTH) {
        if (t < DEPTH) {
            const u32 d = k0 + t, filter = d / (g.r * g.s), tap = d % (g.r * g.s);
            down[t] = tap / g.s;
            across[t] = tap % g.s;
            offset[t] = filter * g.p * g.q;
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 d = t / TILE + 4 * i;
            // Above the tap the difference wraps, and its quotient is beyond the plane.
            const u32 row = row0 - down[d], column = column0 - across[d];
            const u32 out_p = row / g.sh, out_q = column / g.sw;
            const bool in = is_place && k0 + d < depth && row0 >= down[d] && column0 >= across[d] &&
                            row % g.sh == 0 && column % g.sw == 0 && out_p < g.p && out_q < g.q;
            left[d][t % TILE] = in ? first[offset[d] + out_p * g.q + out_q] : 0.0f;
            const u32 channel = c0 + t % TILE;
            const u32 e = k0 + d, filter = e / (g.r * g.s), tap = e % (g.r * g.s);
            const bool is_weight = channel < g.cg && e < depth;
            right[d][t % TILE] =
                is_weight ? weight[((u64)(group * g.kg + filter) * g.cg + channel) * g.r * g.s + tap] : 0.0f;
        }
        __syncthreads();
        multiply(sum);
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 place = blockIdx.x * TILE + t / 16 * 4 + i;
        if (place >= places) continue;
        const u32 image = place / (g.h * g.w), hw = place % (g.h * g.w);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 channel = c0 + t % 16 * 4 + j;
            if (channel < g.cg) dx[(u64)(image * g.c + group * g.cg + channel) * g.h * g.w + hw] = sum[i][j];
        }
    }
}

// Backward weights: rows are filters of a group, columns (c, r, s), the reduction is the output
// places, of which split z takes a part and writes its own sums: they are added in order by
// `conv_weights_sum`, so that a tensor of few weights and many places fills the device too.
KERNEL __launch_bounds__(256, 3) conv_weights(const float *__restrict__ x, const float *__restrict__ dy,
                                           float *__restrict__ parts, u32 splits, u32 length, CONV_ARGS) {
    CONV(g);
    // For each place of a step: where its gradient and its first input lie.
    __shared__ u32 gradient[DEPTH], input[DEPTH], row0[DEPTH], column0[DEPTH];
    const u32 t = threadIdx.x, group = blockIdx.z / splits, split = blockIdx.z % splits;
    const u32 places = g.n * g.p * g.q, depth = g.cg * g.r * g.s;
    const u32 begin = split * length, end = min(places, begin + length);
    const u32 f = blockIdx.y * TILE + t % TILE, d = blockIdx.x * TILE + t % TILE;
    const bool is_filter = f < g.kg, is_column = d < depth;
    const u32 channel = is_column ? d / (g.r * g.s) : 0, tap = is_column ? d % (g.r * g.s) : 0;
    const u32 down = tap / g.s, across = tap % g.s;
    const float *gradients = dy + (u64)(group * g.kg + (is_filter ? f : 0)) * g.p * g.q;
    const float *inputs = x + (u64)(group * g.cg + channel) * g.h * g.w;
    float sum[4][4] = {};
    for (u32 k0 = begin; k0 < end; k0 += DEPTH) {
        if (t < DEPTH) {
            const u32 place = k0 + t, pq = place % (g.p * g.q), sample = place / (g.p * g.q);
            gradient[t] = sample * g.k * g.p * g.q + pq;
            input[t] = sample * g.c * g.h * g.w;
            row0[t] = pq / g.q * g.sh - g.ph;
            column0[t] = pq % g.q * g.sw - g.pw;
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 e = t / TILE + 4 * i;
            const bool is_place = k0 + e < end;
            left[e][t % TILE] = is_filter && is_place ? gradients[gradient[e]] : 0.0f;
            const u32 row = row0[e] + down, column = column0[e] + across;
            const bool in = is_column && is_place && row < g.h && column < g.w;
            right[e][t % TILE] = in ? inputs[input[e] + row * g.w + column] : 0.0f;
        }
        __syncthreads();
        multiply(sum);
        __syncthreads();
    }
    parts += (u64)split * g.k * depth;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 filter = blockIdx.y * TILE + t / 16 * 4 + i;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 column = blockIdx.x * TILE + t % 16 * 4 + j;
            if (filter < g.kg && column < depth) parts[(u64)(group * g.kg + filter) * depth + column] = sum[i][j];
        }
    }
}

// A thread for each weight, bound by memory bandwidth.
KERNEL conv_weights_sum(const float *__restrict__ parts, float *dw, u32 len, u32 splits) {
    const u64 i = element();
    if (i >= len) return;
    float sum = 0.0f;
    for (u32 split = 0; split < splits; split++) sum += parts[(u64)split * len + i];
    dw[i] += sum;
}

// A block for each filter, bound by memory bandwidth.
KERNEL __launch_bounds__(256) conv_bias(const float *__restrict__ dy, float *db, u32 n, u32 filters, u32 plane) {
    __shared__ float room[32];
    const u32 k = blockIdx.x;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < n * plane; i += blockDim.x) {
        sum += dy[((u64)(i / plane) * filters + k) * plane + i % plane];
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) db[k] += sum;
}
