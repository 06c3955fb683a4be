// Nearest neighbours by squared distance.
//
// Distances are summed in the direct form, sum over d of (x_d - y_d)^2, feature by feature and without
// fused multiply-adds: the same bits as the reference's, so that winners, ties and duplicates are the
// same whatever the mean of the features. A block holds 64 x 64 distances, 4 x 4 a thread, and keeps
// none of them: it is bound by f32 operations, two for the difference and the sum and one product.
//
// A neighbour is a key of 64 bits, the distance above the index. Distances are not negative, so that
// keys are in the order of distances and, among equal ones, of indices; the least key wins by an
// atomic minimum, in whatever order blocks come.

#define TILE 64
#define DEPTH 16
#define NONE 0x7f800000ffffffffull

__device__ __forceinline__ u64 key_of(float distance, u32 index) {
    return (u64)__float_as_uint(distance) << 32 | index;
}

__device__ __forceinline__ u64 least(u64 a, u64 b) { return a < b ? a : b; }

// The distances of a block's tile.
__device__ __forceinline__ void distances(const float *__restrict__ queries, const float *__restrict__ bank, u32 m, u32 n,
                                          u32 dim, u32 m0, u32 n0, float (&sum)[4][4]) {
    __shared__ float left[DEPTH][TILE + 4], right[DEPTH][TILE + 4];
    const u32 t = threadIdx.x, row = t / 16 * 4, column = t % 16 * 4;
    for (u32 k0 = 0; k0 < dim; k0 += DEPTH) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 d = t % DEPTH, place = t / DEPTH + 16 * i;
            const bool is_feature = k0 + d < dim;
            // Beyond the last feature both are 0, and add nothing.
            left[d][place] = is_feature && m0 + place < m ? queries[(u64)(m0 + place) * dim + k0 + d] : 0.0f;
            right[d][place] = is_feature && n0 + place < n ? bank[(u64)(n0 + place) * dim + k0 + d] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (u32 d = 0; d < DEPTH; d++) {
            const float4 x = *(const float4 *)&left[d][row], y = *(const float4 *)&right[d][column];
            const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float apart = xs[i] - ys[j];
                    sum[i][j] = __fadd_rn(sum[i][j], __fmul_rn(apart, apart));
                }
        }
        __syncthreads();
    }
}

// Both neighbours of every query in one pass. `first` is the index of the bank's first row; query i is
// never paired with index i + skip (no index where skip is past 2^32).
KERNEL __launch_bounds__(256) nearest(const float *__restrict__ queries, const u16 *__restrict__ query_labels,
                                      const float *__restrict__ bank, const u16 *__restrict__ bank_labels, u64 *same,
                                      u64 *other, u32 m, u32 n, u32 dim, u32 first, u64 skip) {
    const u32 m0 = blockIdx.y * TILE, t = threadIdx.x;
    // Two arrays: one that is indexed by the label's kind would not stay in registers.
    u64 best_same[4], best_other[4];
#pragma unroll
    for (int i = 0; i < 4; i++) best_same[i] = best_other[i] = NONE;
    // A block keeps its queries and walks over the bank.
    for (u32 n0 = blockIdx.x * TILE; n0 < n; n0 += gridDim.x * TILE) {
        float sum[4][4] = {};
        distances(queries, bank, m, n, dim, m0, n0, sum);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 query = m0 + t / 16 * 4 + i;
            if (query >= m) continue;
            const u16 label = query_labels[query];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 at = n0 + t % 16 * 4 + j;
                // NaN is no distance.
                if (at >= n || (u64)first + at == skip + query || !(sum[i][j] >= 0.0f)) continue;
                const u64 key = key_of(sum[i][j], first + at);
                if (bank_labels[at] == label) best_same[i] = least(best_same[i], key);
                else best_other[i] = least(best_other[i], key);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 query = m0 + t / 16 * 4 + i;
#pragma unroll
        for (int kind = 0; kind < 2; kind++) {
            u64 key = kind ? best_other[i] : best_same[i];
            // The 16 threads of a row are half a warp.
#pragma unroll
            for (int lanes = 8; lanes; lanes >>= 1) key = least(key, __shfl_xor_sync(0xffffffffu, key, lanes));
            if (t % 16 == 0 && query < m && key != NONE) atomicMin(kind ? &other[query] : &same[query], key);
        }
    }
}

KERNEL no_keys(u64 *keys, u32 n) {
    const u64 i = element();
    if (i < n) keys[i] = NONE;
}

// Pairs as they are stored: index, distance, index, distance. A thread for each.
KERNEL pairs_of(const u64 *__restrict__ same, const u64 *__restrict__ other, u32 *__restrict__ pairs, u32 m) {
    const u64 i = element();
    if (i >= m) return;
    pairs[4 * i] = (u32)same[i];
    pairs[4 * i + 1] = (u32)(same[i] >> 32);
    pairs[4 * i + 2] = (u32)other[i];
    pairs[4 * i + 3] = (u32)(other[i] >> 32);
}

// The whole matrix, for what needs more than the nearest: infinite on the diagonal where `own` is 1
// and where a distance is no number.
KERNEL __launch_bounds__(256) distance_matrix(const float *__restrict__ queries, const float *__restrict__ bank,
                                              float *__restrict__ matrix, u32 m, u32 n, u32 dim, u32 own) {
    const u32 m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, t = threadIdx.x;
    float sum[4][4] = {};
    distances(queries, bank, m, n, dim, m0, n0, sum);
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 row = m0 + t / 16 * 4 + i, column = n0 + t % 16 * 4 + j;
            if (row >= m || column >= n) continue;
            const bool none = own && (row == column || !(sum[i][j] < INFINITY_F));
            matrix[(u64)row * n + column] = none ? INFINITY_F : sum[i][j];
        }
}

// A block for each query takes the k least keys, one after the other, from its row of distances and
// from the places that it has already: the one that is taken next is the least above the last.
KERNEL __launch_bounds__(256) top_k(const float *__restrict__ matrix, const u64 *__restrict__ before,
                                    u64 *__restrict__ places, u32 n, u32 k, u32 first, u64 skip, u32 query0) {
    __shared__ u64 room[8];
    const u64 query = blockIdx.x;
    u64 last = 0;
    for (u32 taken = 0; taken < k; taken++) {
        u64 best = NONE;
        for (u32 at = threadIdx.x; at < n; at += blockDim.x) {
            const float distance = matrix[query * n + at];
            if ((u64)first + at == skip + query0 + query || !(distance >= 0.0f)) continue;
            const u64 key = key_of(distance, first + at);
            if (taken == 0 || key > last) best = least(best, key);
        }
        for (u32 at = threadIdx.x; at < k; at += blockDim.x) {
            const u64 key = before[query * k + at];
            if (taken == 0 || key > last) best = least(best, key);
        }
#pragma unroll
        for (int lanes = 16; lanes; lanes >>= 1) best = least(best, __shfl_xor_sync(0xffffffffu, best, lanes));
        if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = best;
        __syncthreads();
#pragma unroll
        for (int warp = 0; warp < 8; warp++) best = least(best, room[warp]);
        __syncthreads();
        if (threadIdx.x == 0) places[query * k + taken] = best;
        last = best;
        if (best == NONE) {
            for (u32 at = taken + 1 + threadIdx.x; at < k; at += blockDim.x) places[query * k + at] = NONE;
            return;
        }
    }
}
