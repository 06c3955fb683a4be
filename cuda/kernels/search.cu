// Nearest neighbours by squared distance.
//
// Distances are summed in the direct form, sum over d of (x_d - y_d)^2, feature by feature and without
// fused multiply-adds: the same bits as the reference's, so that winners, ties and duplicates are the
// same whatever the mean of the features. A block holds 64 x 64 distances, 4 x 4 a thread, and keeps
// none of them: it is bound by f32 operations, two for the difference and the sum and one product.
// Where there are tensor cores, large searches come from products instead, and only what may be
// nearest is summed like this: see the end of the file.
//
// A neighbour is a key of 64 bits, the distance above the index. Distances are not negative, so that
// keys are in the order of distances and, among equal ones, of indices; the least key wins by an
// atomic minimum, in whatever order blocks come. So in a search of a set in itself one distance serves
// both of its rows.

#include "common.cuh"

#define TILE 64
#define DEPTH 16
#define NONE 0x7f800000ffffffffull

__device__ __forceinline__ u64 key_of(float distance, u32 index) {
    return (u64)__float_as_uint(distance) << 32 | index;
}

__device__ __forceinline__ u64 least(u64 a, u64 b) { return a < b ? a : b; }

// One more feature of a distance. Every distance of this file is summed by it, so that it does not
// depend on the kernel that found it.
__device__ __forceinline__ float with_square(float sum, float x, float y) {
    const float apart = x - y;
    return __fadd_rn(sum, __fmul_rn(apart, apart));
}

// Row `at`, or the one that a list has there; none past the end.
__device__ __forceinline__ const float *row_of(const float *rows, const u32 *list, u32 at, u32 count, u32 dim) {
    if (at >= count) return nullptr;
    return rows + (u64)(list ? list[at] : at) * dim;
}

// The distances of a block's tile.
__device__ __forceinline__ void distances(const float *__restrict__ queries, const u32 *__restrict__ list,
                                          const float *__restrict__ bank, u32 m, u32 n, u32 dim, u32 m0, u32 n0,
                                          float (&sum)[4][4]) {
    __shared__ float left[DEPTH][TILE + 4], right[DEPTH][TILE + 4];
    const u32 t = threadIdx.x, row = t / 16 * 4, column = t % 16 * 4;
    const u32 d = t % DEPTH, place = t / DEPTH;
    const float *from[4], *to[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        from[i] = row_of(queries, list, m0 + place + 16 * i, m, dim);
        to[i] = row_of(bank, nullptr, n0 + place + 16 * i, n, dim);
    }
    for (u32 k0 = 0; k0 < dim; k0 += DEPTH) {
        const bool is_feature = k0 + d < dim;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            // Beyond the last feature both are 0, and add nothing.
            left[d][place + 16 * i] = is_feature && from[i] ? from[i][k0 + d] : 0.0f;
            right[d][place + 16 * i] = is_feature && to[i] ? to[i][k0 + d] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (u32 d = 0; d < DEPTH; d++) {
            const float4 x = *(const float4 *)&left[d][row], y = *(const float4 *)&right[d][column];
            const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = with_square(sum[i][j], xs[i], ys[j]);
        }
        __syncthreads();
    }
}

// Which tiles of the bank a row of blocks takes: all of them. Of a set in itself each pair of tiles is
// taken once, by one of its two rows: tile `row` and as many behind it as are half of all, around the end.
template <bool ITSELF> __device__ __forceinline__ u32 steps_of(u32 row, u32 tiles) {
    return ITSELF ? tiles / 2 + (tiles % 2 || row < tiles / 2) : tiles;
}

template <bool ITSELF> __device__ __forceinline__ u32 tile_of(u32 row, u32 step, u32 tiles) {
    return ITSELF ? (row + step) % tiles : step;
}

// Improves the keys of the columns of a tile by its rows, all but the diagonal's: warp by warp, then over
// the eight warps.
__device__ __forceinline__ void fold_columns(const float (&sum)[4][4], const u16 *__restrict__ labels, u64 *same,
                                             u64 *other, u32 m0, u32 n0, u32 n, u32 first) {
    __shared__ u64 room[2][8][TILE];
    const u32 t = threadIdx.x, row = m0 + t / 16 * 4, column = t % 16 * 4;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const u32 label = labels[min(n0 + column + j, n - 1)];
        u64 best[2] = {NONE, NONE};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (row + i >= n || !(sum[i][j] >= 0.0f)) continue;
            const bool is_same = labels[row + i] == label;
            const u64 key = key_of(sum[i][j], first + row + i);
            best[0] = is_same ? least(best[0], key) : best[0];
            best[1] = is_same ? best[1] : least(best[1], key);
        }
#pragma unroll
        for (int kind = 0; kind < 2; kind++) {
            const u64 key = least(best[kind], __shfl_xor_sync(0xffffffffu, best[kind], 16));
            if (t % 32 < 16) room[kind][t / 32][column + j] = key;
        }
    }
    __syncthreads();
    if (t >= 2 * TILE) return;
    u64 key = NONE;
#pragma unroll
    for (int warp = 0; warp < 8; warp++) key = least(key, room[t / TILE][warp][t % TILE]);
    const u32 at = n0 + t % TILE;
    if (at < n && key != NONE) atomicMin(t / TILE ? &other[at] : &same[at], key);
}

// Both neighbours of every query in one pass. `first` is the index of the bank's first row; query i is
// never paired with index i + skip (no index where skip is past 2^32). With a `list` only the queries
// that it names are searched for, `count` of them. Of a set in itself each distance is computed once and
// improves the keys of both rows; it has features, or barriers would be missing.
template <bool ITSELF>
__device__ __forceinline__ void search(const float *__restrict__ queries, const u16 *__restrict__ query_labels,
                                       const float *__restrict__ bank, const u16 *__restrict__ bank_labels, u64 *same,
                                       u64 *other, u32 m, u32 n, u32 dim, u32 first, u64 skip,
                                       const u32 *__restrict__ list) {
    const u32 m0 = blockIdx.y * TILE, t = threadIdx.x;
    if (m0 >= m) return;
    u32 query[4];
    u16 label[4];
    u64 best[4][2];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 at = min(m0 + t / 16 * 4 + i, m - 1);
        query[i] = list ? list[at] : at;
        label[i] = query_labels[query[i]];
        best[i][0] = best[i][1] = NONE;
    }
    // A block keeps its queries and walks over the bank.
    const u32 tiles = (n + TILE - 1) / TILE, steps = steps_of<ITSELF>(blockIdx.y, tiles);
    for (u32 step = blockIdx.x; step < steps; step += gridDim.x) {
        const u32 n0 = tile_of<ITSELF>(blockIdx.y, step, tiles) * TILE;
        float sum[4][4] = {};
        distances(queries, list, bank, m, n, dim, m0, n0, sum);
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 at = n0 + t % 16 * 4 + j;
                // NaN is no distance.
                if (at >= n || (u64)first + at == skip + query[i] || !(sum[i][j] >= 0.0f)) continue;
                const bool is_same = bank_labels[at] == label[i];
                const u64 key = key_of(sum[i][j], first + at);
                best[i][0] = is_same ? least(best[i][0], key) : best[i][0];
                best[i][1] = is_same ? best[i][1] : least(best[i][1], key);
            }
        if (ITSELF && step) fold_columns(sum, bank_labels, same, other, m0, n0, n, first);
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const bool is_query = m0 + t / 16 * 4 + i < m;
#pragma unroll
        for (int kind = 0; kind < 2; kind++) {
            u64 key = best[i][kind];
            // The 16 threads of a row are half a warp.
#pragma unroll
            for (int lanes = 8; lanes; lanes >>= 1) key = least(key, __shfl_xor_sync(0xffffffffu, key, lanes));
            if (t % 16 == 0 && is_query && key != NONE) atomicMin(kind ? &other[query[i]] : &same[query[i]], key);
        }
    }
}

KERNEL __launch_bounds__(256) nearest(const float *queries, const u16 *query_labels, const float *bank,
                                      const u16 *bank_labels, u64 *same, u64 *other, u32 all, u32 n, u32 dim,
                                      u32 first, u64 skip, const u32 *__restrict__ list,
                                      const u32 *__restrict__ count) {
    const u32 m = list ? *count : all;
    search<false>(queries, query_labels, bank, bank_labels, same, other, m, n, dim, first, skip, list);
}

KERNEL __launch_bounds__(256) nearest_itself(const float *rows, const u16 *labels, u64 *same, u64 *other, u32 n,
                                             u32 dim, u32 first) {
    search<true>(rows, labels, rows, labels, same, other, n, n, dim, first, first, nullptr);
}

// Rows in half precision, widened: the searches read f32.
KERNEL widen(const u16 *__restrict__ narrow, float *__restrict__ wide, u64 n) {
    for (u64 i = element(); i < n; i += (u64)gridDim.x * blockDim.x) {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(narrow[i]));
        wide[i] = x;
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
    distances(queries, nullptr, bank, m, n, dim, m0, n0, sum);
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
// from the places that it has already. Each thread holds the least key of its share above the last
// that was taken; only the one whose key is taken looks through its share again. Bound by the latency
// of that.
KERNEL __launch_bounds__(256) top_k(const float *__restrict__ matrix, const u64 *__restrict__ before,
                                    u64 *__restrict__ places, u32 n, u32 k, u32 first, u64 skip, u32 query0) {
    __shared__ u64 room[8];
    const u64 query = blockIdx.x;
    u64 last = 0, mine = 0;
    for (u32 taken = 0; taken < k; taken++) {
        if (mine == last) {
            mine = NONE;
            for (u32 at = threadIdx.x; at < n; at += blockDim.x) {
                const float distance = matrix[query * n + at];
                if ((u64)first + at == skip + query0 + query || !(distance >= 0.0f)) continue;
                const u64 key = key_of(distance, first + at);
                if (taken == 0 || key > last) mine = least(mine, key);
            }
            for (u32 at = threadIdx.x; at < k; at += blockDim.x) {
                const u64 key = before[query * k + at];
                if (taken == 0 || key > last) mine = least(mine, key);
            }
        }
        u64 best = mine;
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

// From here on: distances by products, |x|^2 + |y|^2 - 2 xy, which tensor cores give in tiles. The
// form cancels, so that it decides nothing. Rows are first shifted to lie around 0. Each distance then
// has a least and a most, from a bound on all rounding; a query's limit is the least of its mosts; and
// rows whose least is below the limit are noted, few of them, and summed directly.
#if __CUDA_ARCH__ >= 800

// A tile is 128 x 128 distances over 16 features a step, three steps in flight. Rows in shared memory
// are 4 apart from a multiple of 32 banks, so that no fragment has a conflict.
#define PANEL 128
#define STEP 16
#define APART (STEP + 4)
#define STAGES 3
// What a query notes of each kind at most.
#define NOTES 64
// Rows that the shift is taken from.
#define SAMPLES 15
// Rows with a longer square have no bound: sums of theirs could leave the range.
#define LONG 1e37f

// A point amid the rows, whatever some of them are: of each feature the median of a few rows. A thread
// for each feature.
KERNEL middle(const float *__restrict__ rows, float *__restrict__ point, u32 n, u32 dim) {
    const u64 d = element();
    if (d >= dim) return;
    const u32 count = min(n, SAMPLES), step = n / count;
    float values[SAMPLES];
#pragma unroll
    for (u32 i = 0; i < SAMPLES; i++) {
        const float x = i < count ? rows[(u64)i * step * dim + d] : 0.0f;
        values[i] = fabsf(x) < LONG ? x : 0.0f;
    }
    // The value that half of the others come before.
    float median = 0.0f;
#pragma unroll
    for (u32 i = 0; i < SAMPLES; i++) {
        u32 before = 0;
#pragma unroll
        for (u32 j = 0; j < SAMPLES; j++)
            before += j < count && (values[j] < values[i] || (values[j] == values[i] && j < i));
        if (i < count && before == count / 2) median = values[i];
    }
    point[d] = median;
}

// Rows less the point, `width` numbers a row and zeros past `dim`, and for each row its part of a
// distance's least and most: its squared length less and plus its share of the error. Rows past the
// end, and with NaN, are infinitely far; rows without a bound may be at any distance, and count as 0 in
// products. A warp for each row.
KERNEL centre(const float *__restrict__ rows, const float *__restrict__ point, float *__restrict__ centred,
              float2 *__restrict__ bounds, u32 n, u32 all, u32 dim, u32 width, float error) {
    const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
    if (row >= all) return;
    const float *from = rows + (u64)row * dim;
    float *to = centred + (u64)row * width;
    float square = 0.0f;
    if (row < n) {
        for (u32 d = lane; d < dim; d += 32) square = fmaf(from[d] - point[d], from[d] - point[d], square);
    }
    square = warp_sum(square);
    const bool bounded = row < n && square < LONG;
    for (u32 d = lane; d < width; d += 32) to[d] = bounded && d < dim ? from[d] - point[d] : 0.0f;
    if (lane) return;
    // Squares below the least normal number round away.
    const float share = fmaf(square, error, 1.1754944e-38f);
    float2 bound = make_float2(INFINITY_F, INFINITY_F);
    if (bounded) bound = make_float2(square - share, square + share);
    else if (row < n && square >= LONG) bound.x = -INFINITY_F;
    bounds[row] = bound;
}

// The limits that what was found before sets, and no notes yet. A thread for each query.
KERNEL start_notes(const u64 *__restrict__ same, const u64 *__restrict__ other, u32 *__restrict__ limits,
                   u32 *__restrict__ counts, u32 *__restrict__ listed, u32 m) {
    const u64 i = element();
    if (i >= m) return;
    limits[2 * i] = (u32)(same[i] >> 32);
    limits[2 * i + 1] = (u32)(other[i] >> 32);
    counts[2 * i] = counts[2 * i + 1] = 0;
    if (i == 0) *listed = 0;
}

__device__ __forceinline__ void copy_async(u32 to, const float *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Calls `f` with the column, which of the thread's eight it is, and the thread's product in it, for the
// part of a tile's row that the thread has.
template <class F>
__device__ __forceinline__ void each(const float (&product)[4][4][4], u32 i, u32 h, u32 column0, F f) {
#pragma unroll
    for (u32 j = 0; j < 8; j++)
        f(column0 + 8 * (j / 2) + 2 * (threadIdx.x % 4) + j % 2, j, product[i][j / 2][2 * h + j % 2]);
}

// Notes of each query the rows that may be its nearest of either kind. A block of eight warps keeps
// 128 queries and walks over tiles of the bank; a warp has 64 x 32 distances, a thread 64. In a tile
// the limits are lowered first and then compared with, so that few rows are noted: some for each
// block, and fewer with each tile. Bound by the tensor cores, three products for one of f32.
//
// Of a set in itself each product is made once: it lowers the limits of both rows, and both may note
// it. What a block has come to is told the others with each tile, for which its queries are columns.
template <bool ITSELF>
__device__ __forceinline__ void note(const float *__restrict__ queries, const float2 *__restrict__ query_bounds,
                                     const u16 *__restrict__ query_labels, const float *__restrict__ bank,
                                     const float2 *__restrict__ bank_bounds, const u16 *__restrict__ bank_labels,
                                     u32 *limits, u32 *counts, u64 *notes, u32 m, u32 n, u32 width, u32 first,
                                     u64 skip) {
    extern __shared__ float4 memory[];
    __shared__ float2 row_bounds[PANEL], column_bounds[PANEL];
    __shared__ u16 row_labels[PANEL], column_labels[PANEL];
    __shared__ u32 limit[2][PANEL], column_limit[2][ITSELF ? PANEL : 1];
    float *stages = (float *)memory;
    const u32 place = (u32)__cvta_generic_to_shared(memory);
    const u32 t = threadIdx.x, warp = t / 32, group = t % 32 / 4, lane = t % 4;
    const u32 row0 = warp / 4 * 64, column0 = warp % 4 * 32, m0 = blockIdx.y * PANEL;
    // A minimum with the largest number reads what other blocks have come to.
    auto lowered = [&](u32 query, u32 kind, u32 to) { return min(to, atomicMin(&limits[2 * query + kind], to)); };
    if (t < PANEL) {
        const bool is_query = m0 + t < m;
        row_bounds[t] = is_query ? query_bounds[m0 + t] : make_float2(INFINITY_F, INFINITY_F);
        row_labels[t] = is_query ? query_labels[m0 + t] : 0;
#pragma unroll
        for (u32 kind = 0; kind < 2; kind++) limit[kind][t] = is_query ? lowered(m0 + t, kind, 0xffffffffu) : 0;
    }
    const u32 copied = t / 4, four = t % 4 * 4, steps = width / STEP;
    const float *from = queries + (u64)(m0 + copied) * width + four;
    const u32 tiles = (n + PANEL - 1) / PANEL, turns = steps_of<ITSELF>(blockIdx.y, tiles);
    for (u32 turn = blockIdx.x; turn < turns; turn += gridDim.x) {
        const u32 n0 = tile_of<ITSELF>(blockIdx.y, turn, tiles) * PANEL;
        // The tile on the diagonal has every distance twice.
        const bool both = ITSELF && turn;
        const float *to = bank + (u64)(n0 + copied) * width + four;
        if (t < PANEL) {
            column_bounds[t] = bank_bounds[n0 + t];
            column_labels[t] = n0 + t < n ? bank_labels[n0 + t] : 0;
            if (ITSELF) {
#pragma unroll
                for (u32 kind = 0; kind < 2; kind++) {
                    if (m0 + t < m) limit[kind][t] = lowered(m0 + t, kind, limit[kind][t]);
                    column_limit[kind][t] = n0 + t < n ? lowered(n0 + t, kind, 0xffffffffu) : 0;
                }
            }
        }
        auto load = [&](u32 step) {
            if (step < steps) {
                const u32 stage = place + 4 * (step % STAGES * 2 * PANEL * APART + copied * APART + four);
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    const u64 further = (u64)64 * half * width + step * STEP;
                    copy_async(stage + 4 * 64 * half * APART, from + further);
                    copy_async(stage + 4 * (64 * half + PANEL) * APART, to + further);
                }
            }
            commit();
        };
        float product[4][4][4] = {};
#pragma unroll
        for (u32 step = 0; step < STAGES - 1; step++) load(step);
        for (u32 step = 0; step < steps; step++) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            __syncthreads();
            load(step + STAGES - 1);
            const float *left = stages + step % STAGES * 2 * PANEL * APART, *right = left + PANEL * APART;
#pragma unroll
            for (u32 k = 0; k < STEP; k += 8) {
                u32 upper[4][2], lower[4][2];
#pragma unroll
                for (u32 j = 0; j < 4; j++)
#pragma unroll
                    for (u32 e = 0; e < 2; e++)
                        split(right[(column0 + 8 * j + group) * APART + k + lane + 4 * e], upper[j][e], lower[j][e]);
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 a[4], rest[4];
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        const u32 row = row0 + 16 * i + group + 8 * (e & 1);
                        split(left[row * APART + k + lane + 4 * (e >> 1)], a[e], rest[e]);
                    }
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        multiply_tf32(product[i][j], rest, upper[j]);
                        multiply_tf32(product[i][j], a, lower[j]);
                        multiply_tf32(product[i][j], a, upper[j]);
                    }
                }
            }
        }
        // The least of the mosts: no distance is below 0, and such numbers are in the order of their bits.
        auto lower = [](u32 *limit, float most) { atomicMin(limit, __float_as_uint(fmaxf(most, 0.0f))); };
        // First the limits, then what is below them.
        float column_most[8][2];
#pragma unroll
        for (u32 j = 0; j < 8; j++) column_most[j][0] = column_most[j][1] = INFINITY_F;
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                const u32 row = row0 + 16 * i + group + 8 * h;
                float most[2] = {INFINITY_F, INFINITY_F};
                each(product, i, h, column0, [&](u32 column, u32 j, float product) {
                    if ((u64)first + n0 + column == skip + m0 + row) return;
                    const u32 kind = column_labels[column] == row_labels[row] ? 0 : 1;
                    const float bound = row_bounds[row].y + column_bounds[column].y + -2.0f * product;
#pragma unroll
                    for (u32 k = 0; k < 2; k++) {
                        most[k] = kind == k ? fminf(most[k], bound) : most[k];
                        if (ITSELF) column_most[j][k] = kind == k ? fminf(column_most[j][k], bound) : column_most[j][k];
                    }
                });
#pragma unroll
                for (u32 kind = 0; kind < 2; kind++) {
                    // Four threads have a row of the fragment.
#pragma unroll
                    for (int lanes = 1; lanes < 4; lanes <<= 1)
                        most[kind] = fminf(most[kind], __shfl_xor_sync(0xffffffffu, most[kind], lanes));
                    if (lane == 0) lower(&limit[kind][row], most[kind]);
                }
            }
        if (both) {
#pragma unroll
            for (u32 j = 0; j < 8; j++)
#pragma unroll
                for (u32 kind = 0; kind < 2; kind++) {
                    // Eight threads have a column of it.
                    float most = column_most[j][kind];
#pragma unroll
                    for (int lanes = 4; lanes < 32; lanes <<= 1)
                        most = fminf(most, __shfl_xor_sync(0xffffffffu, most, lanes));
                    if (group == 0) lower(&column_limit[kind][column0 + 8 * (j / 2) + 2 * lane + j % 2], most);
                }
        }
        __syncthreads();
        if (both && t < PANEL && n0 + t < n) {
#pragma unroll
            for (u32 kind = 0; kind < 2; kind++) lowered(n0 + t, kind, column_limit[kind][t]);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                const u32 row = row0 + 16 * i + group + 8 * h;
                each(product, i, h, column0, [&](u32 column, u32, float product) {
                    if ((u64)first + n0 + column == skip + m0 + row) return;
                    const u32 kind = column_labels[column] == row_labels[row] ? 0 : 1;
                    const float bound = row_bounds[row].x + column_bounds[column].x + -2.0f * product;
                    auto take = [&](u32 limit, u32 query, u32 found) {
                        // NaN, which is an infinity less another, is no candidate.
                        if (!(bound < __uint_as_float(limit))) return;
                        const u32 of = 2 * query + kind, at = atomicAdd(&counts[of], 1);
                        if (at < NOTES) notes[(u64)of * NOTES + at] = (u64)__float_as_uint(bound) << 32 | found;
                    };
                    take(limit[kind][row], m0 + row, n0 + column);
                    if (both) take(column_limit[kind][ITSELF ? column : 0], n0 + column, m0 + row);
                });
            }
        __syncthreads();
    }
    // Behind the last tile's barrier.
    if (t < PANEL && m0 + t < m) {
#pragma unroll
        for (u32 kind = 0; kind < 2; kind++) lowered(m0 + t, kind, limit[kind][t]);
    }
}

KERNEL __launch_bounds__(256) note_nearest(const float *queries, const float2 *query_bounds, const u16 *query_labels,
                                           const float *bank, const float2 *bank_bounds, const u16 *bank_labels,
                                           u32 *limits, u32 *counts, u64 *notes, u32 m, u32 n, u32 width, u32 first,
                                           u64 skip) {
    note<false>(queries, query_bounds, query_labels, bank, bank_bounds, bank_labels, limits, counts, notes, m, n,
                width, first, skip);
}

KERNEL __launch_bounds__(256) note_nearest_itself(const float *rows, const float2 *bounds, const u16 *labels,
                                                  u32 *limits, u32 *counts, u64 *notes, u32 n, u32 width) {
    note<true>(rows, bounds, labels, rows, bounds, labels, limits, counts, notes, n, n, width, 0, 0);
}

// Sums the distances of the notes that are still below the limit, and lists the queries that had more
// to note than there was room for: those are searched for directly. A warp for each query, a lane for
// each note; most queries have one or two of a kind, so that this is bound by latency, and short.
KERNEL measure_notes(const float *__restrict__ queries, const float *__restrict__ bank,
                     const u32 *__restrict__ limits, const u32 *__restrict__ counts, const u64 *__restrict__ notes,
                     u64 *same, u64 *other, u32 *list, u32 *listed, u32 m, u32 dim, u32 first) {
    const u32 query = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
    if (query >= m) return;
    const float *x = queries + (u64)query * dim;
    bool full = false;
    for (u32 kind = 0; kind < 2; kind++) {
        const u32 place = 2 * query + kind, count = counts[place];
        const float limit = __uint_as_float(limits[place]);
        full |= count > NOTES;
        u64 best = NONE;
        for (u32 at = lane; at < min(count, NOTES); at += 32) {
            const u64 note = notes[(u64)place * NOTES + at];
            if (!(__uint_as_float((u32)(note >> 32)) < limit)) continue;
            const u32 row = (u32)note;
            const float *y = bank + (u64)row * dim;
            float sum = 0.0f;
            for (u32 d = 0; d < dim; d++) sum = with_square(sum, x[d], y[d]);
            if (sum >= 0.0f) best = least(best, key_of(sum, first + row));
        }
#pragma unroll
        for (int lanes = 16; lanes; lanes >>= 1) best = least(best, __shfl_xor_sync(0xffffffffu, best, lanes));
        u64 *key = kind ? &other[query] : &same[query];
        if (lane == 0) *key = least(*key, best);
    }
    if (full && lane == 0) list[atomicAdd(listed, 1)] = query;
}

#endif
