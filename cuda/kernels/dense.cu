// Dense layers as products of matrices, and random projections.

#define TILE 64
#define DEPTH 16

// C[m, n] = sum over k of A(m, k) B(k, n), for one tile of 64 x 64 by 256 threads, 4 x 4 sums a
// thread: 16 products for 8 loads of shared memory, bound by f32 multiply-adds. An operand lies
// along k (`true`), as rows of a weight do, or across it; it is read along its own memory.
template <bool A_ALONG, bool B_ALONG>
__device__ __forceinline__ void product(const float *__restrict__ a, const float *__restrict__ b, u32 m, u32 n, u32 k,
                                        u32 a_step, u32 b_step, float (&sum)[4][4]) {
    __shared__ float left[DEPTH][TILE + 4], right[DEPTH][TILE + 4];
    const u32 t = threadIdx.x, m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    const u32 row = t / 16 * 4, column = t % 16 * 4;
    for (u32 k0 = 0; k0 < k; k0 += DEPTH) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 along = t % DEPTH, place = t / DEPTH + 16 * i, across = t % TILE, depth = t / TILE + 4 * i;
            if (A_ALONG) {
                const bool in = m0 + place < m && k0 + along < k;
                left[along][place] = in ? a[(u64)(m0 + place) * a_step + k0 + along] : 0.0f;
            } else {
                const bool in = m0 + across < m && k0 + depth < k;
                left[depth][across] = in ? a[(u64)(k0 + depth) * a_step + m0 + across] : 0.0f;
            }
            if (B_ALONG) {
                const bool in = n0 + place < n && k0 + along < k;
                right[along][place] = in ? b[(u64)(n0 + place) * b_step + k0 + along] : 0.0f;
            } else {
                const bool in = n0 + across < n && k0 + depth < k;
                right[depth][across] = in ? b[(u64)(k0 + depth) * b_step + n0 + across] : 0.0f;
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 d = 0; d < DEPTH; d++) {
            const float4 x = *(const float4 *)&left[d][row], y = *(const float4 *)&right[d][column];
            const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(xs[i], ys[j], sum[i][j]);
        }
        __syncthreads();
    }
}

// Runs `store` for each element of a thread's sums that is in the matrix.
#define EACH(m, n, store) \
    const u32 row = blockIdx.y * TILE + threadIdx.x / 16 * 4, column = blockIdx.x * TILE + threadIdx.x % 16 * 4; \
    _Pragma("unroll") for (u32 i = 0; i < 4; i++) _Pragma("unroll") for (u32 j = 0; j < 4; j++) { \
        if (row + i < (m) && column + j < (n)) { store; } \
    }

// y (N, U) = x (N, F) w' (F, U) + bias.
KERNEL __launch_bounds__(256) dense(const float *__restrict__ x, const float *__restrict__ w,
                                    const float *__restrict__ bias, float *__restrict__ y, u32 n, u32 units,
                                    u32 features) {
    float sum[4][4] = {};
    product<true, true>(x, w, n, units, features, features, features, sum);
    EACH(n, units, y[(u64)(row + i) * units + column + j] = sum[i][j] + (bias ? bias[column + j] : 0.0f))
}

// dx (N, F) = dy (N, U) w (U, F).
KERNEL __launch_bounds__(256) dense_data(const float *__restrict__ dy, const float *__restrict__ w,
                                         float *__restrict__ dx, u32 n, u32 units, u32 features) {
    float sum[4][4] = {};
    product<true, false>(dy, w, n, features, units, units, features, sum);
    EACH(n, features, dx[(u64)(row + i) * features + column + j] = sum[i][j])
}

// dw (U, F) += dy' (U, N) x (N, F).
KERNEL __launch_bounds__(256) dense_weights(const float *__restrict__ dy, const float *__restrict__ x, float *dw,
                                            u32 n, u32 units, u32 features) {
    float sum[4][4] = {};
    product<false, false>(dy, x, units, features, n, units, features, sum);
    EACH(units, features, dw[(u64)(row + i) * features + column + j] += sum[i][j])
}

// A thread for each unit, so that a row is read together.
KERNEL dense_bias(const float *__restrict__ dy, float *db, u32 n, u32 units) {
    const u64 u = element();
    if (u >= units) return;
    float sum = 0.0f;
    for (u32 i = 0; i < n; i++) sum += dy[(u64)i * units + u];
    db[u] += sum;
}

// The signs of 128 features in a row of the projection.
__device__ __forceinline__ uint4 signs(u32 block, u32 row, u32 key0, u32 key1) {
    return philox(make_uint4(block, row, 0, 4), key0, key1);
}

__device__ __forceinline__ bool positive(uint4 words, u32 feature) {
    const u32 place = feature / 32 % 4;
    const u32 word = place == 0 ? words.x : place == 1 ? words.y : place == 2 ? words.z : words.w;
    return word >> feature % 32 & 1;
}

// A warp for each element of the output. Its lanes draw the signs of 128 features each, so that
// there is one block of the generator for 128 sums; bound by integer operations.
KERNEL project(const float *__restrict__ x, float *__restrict__ y, u32 len, u32 features, u32 dim, u32 key0, u32 key1,
               float scale) {
    const u32 at = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
    if (at >= len) return;
    const float *row = x + (u64)(at / dim) * features;
    float sum = 0.0f;
    for (u32 block = lane; block * 128 < features; block += 32) {
        const uint4 words = signs(block, at % dim, key0, key1);
        const u32 past = min(features, block * 128 + 128);
        for (u32 f = block * 128; f < past; f++) sum += positive(words, f) ? row[f] : -row[f];
    }
    sum = warp_sum(sum);
    if (lane == 0) y[at] = sum * scale;
}

// A thread for each feature of each sample.
KERNEL project_backward(const float *__restrict__ dy, float *__restrict__ dx, u32 len, u32 features, u32 dim, u32 key0,
                        u32 key1, float scale) {
    const u64 i = element();
    if (i >= len) return;
    const u32 n = (u32)i / features, f = (u32)i % features;
    float sum = 0.0f;
    for (u32 k = 0; k < dim; k++) {
        const float d = dy[(u64)n * dim + k] * scale;
        sum += positive(signs(f / 128, k, key0, key1), f) ? d : -d;
    }
    dx[i] = sum;
}
