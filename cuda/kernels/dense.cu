// Products of matrices: dense layers, and projections by signs that are drawn where they are used.
//
//   out[i, j] (+)= sum over steps of down[i, step] across[j, step],   out (I, J) in rows of J

#include "common.cuh"
#include "product.cuh"

// Signs of a block of random words.
enum { SIGNS = 128 };

// A tile takes 16 T of J and 8 T of I; each thread sums T x T elements of it. What is between the
// lines has what a warp reads or writes at once lie in different banks.
template <int T, bool TENSOR> struct Tile {
    static const int ACROSS = 16 * T, DOWN = 8 * T, APART = TENSOR ? 8 : 4;
    __align__(16) float across[2][DEPTH][ACROSS + APART];
    __align__(16) float down[2][DEPTH][DOWN + APART];
};

// Calls `f` with i, j and the sum of each element of the thread, within the tile.
template <int T, bool TENSOR, class F>
__device__ __forceinline__ void each(const float (&sum)[T][T], F f) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < T; i++)
#pragma unroll
        for (int j = 0; j < T; j++)
            if (TENSOR)
                f(first_column<T>() + j / 4 * 16 + j / 2 % 2 * 8 + lane / 4,
                  first_row<T>() + i * 8 + lane % 4 * 2 + j % 2, sum[i][j]);
            else
                f(first_column<T>() + j / 4 * 16 + lane / 8 * 4 + j % 4,
                  first_row<T>() + i / 4 * 32 + lane % 8 * 4 + i % 4, sum[i][j]);
}

// The elements of a factor's tile that a thread fetches, `LINES` by DEPTH of them in all. Memory is
// read in runs: of steps where these are next to each other (ALONG), of lines elsewhere.
template <int LINES, int APART, bool ALONG> struct Fetch {
    static const int OWN = LINES * DEPTH / THREADS;
    float next[OWN];
    static __device__ __forceinline__ u32 line(int i) {
        return ALONG ? threadIdx.x / DEPTH + i * (THREADS / DEPTH) : threadIdx.x % LINES;
    }
    static __device__ __forceinline__ u32 step(int i) {
        return ALONG ? threadIdx.x % DEPTH : threadIdx.x / LINES + i * (THREADS / LINES);
    }
    // `element(line, step)` is asked for nothing past `last`.
    template <class F> __device__ __forceinline__ void load(u32 first, u32 last, F element) {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const u32 at = first + step(i);
            next[i] = at < last ? element(line(i), at) : 0.0f;
        }
    }
    __device__ __forceinline__ void store(float (*tile)[LINES + APART]) const {
#pragma unroll
        for (int i = 0; i < OWN; i++) tile[step(i)][line(i)] = next[i];
    }
};

// Adds the products of steps `first` to `last` to `sum`. All threads meet after the last element is
// asked for, so that a caller may change what they are made of; they are to meet again before the
// next call.
//
// Bound by multiply-adds, of which a thread does T^2 per step for T / 2 reads of 16 bytes; on
// tensor cores by the instructions that feed them.
template <bool ALONG_ACROSS, bool ALONG_DOWN, int T, bool TENSOR, class Across, class Down>
__device__ __forceinline__ void multiply(Tile<T, TENSOR> &tile, float (&sum)[T][T], u32 first,
                                         u32 last, Across element_across, Down element_down) {
    typedef Tile<T, TENSOR> Own;
    Fetch<Own::ACROSS, Own::APART, ALONG_ACROSS> across;
    Fetch<Own::DOWN, Own::APART, ALONG_DOWN> down;
    across.load(first, last, element_across);
    down.load(first, last, element_down);
    across.store(tile.across[0]);
    down.store(tile.down[0]);
    __syncthreads();
    u32 turn = 0;
    for (u32 step = first; step < last; step += DEPTH) {
        const bool more = step + DEPTH < last;
        if (more) {
            across.load(step + DEPTH, last, element_across);
            down.load(step + DEPTH, last, element_down);
        }
        accumulate<T, TENSOR>(tile.across[turn], tile.down[turn], sum);
        if (more) {
            turn ^= 1;
            across.store(tile.across[turn]);
            down.store(tile.down[turn]);
            __syncthreads();
        }
    }
}

// Sums a tile, and calls `store` with i, j and the sum of each of its elements. Where a sum of two numbers of
// TF32 each is NaN the tile is summed once more, each element by itself: an infinity gives NaN there.
template <bool ALONG_ACROSS, bool ALONG_DOWN, int T, bool TENSOR, class Across, class Down, class Store>
__device__ __forceinline__ void product(Tile<T, TENSOR> &tile, u32 last, Across across, Down down, Store store) {
    float sum[T][T] = {};
    multiply<ALONG_ACROSS, ALONG_DOWN>(tile, sum, 0, last, across, down);
    if (TENSOR) {
        bool is_nan = false;
        each<T, TENSOR>(sum, [&](u32, u32, float value) { is_nan |= value != value; });
        if (__syncthreads_or(is_nan)) {
            typedef Tile<T, TENSOR> Own;
            for (u32 e = threadIdx.x; e < Own::ACROSS * Own::DOWN; e += THREADS) {
                const u32 i = e / Own::ACROSS, j = e % Own::ACROSS;
                float value = 0.0f;
                for (u32 step = 0; step < last; step++) value = fmaf(across(j, step), down(i, step), value);
                store(i, j, value);
            }
            return;
        }
    }
    each<T, TENSOR>(sum, store);
}

// A block's tile: neighbours share their rows.
template <int T> struct Corner {
    u32 i, j;
    __device__ __forceinline__ Corner(u32 width) {
        const u32 across = (width + 16 * T - 1) / (16 * T);
        i = blockIdx.x / across * (8 * T);
        j = blockIdx.x % across * (16 * T);
    }
};

// y[n,u] = bias[u] + sum_d w[u,d] x[n,d]: a block for each tile of y (N, U).
template <int T, bool TENSOR>
__device__ __forceinline__ void forward(const float *__restrict__ x, const float *__restrict__ w,
                                        const float *__restrict__ bias, float *__restrict__ y,
                                        u32 samples, u32 features, u32 units) {
    __shared__ Tile<T, TENSOR> tile;
    const Corner<T> at(units);
    product<true, true>(
        tile, features,
        [&](u32 line, u32 d) {
            return at.j + line < units ? w[(at.j + line) * features + d] : 0.0f;
        },
        [&](u32 line, u32 d) {
            return at.i + line < samples ? x[(at.i + line) * features + d] : 0.0f;
        },
        [&](u32 i, u32 j, float value) {
            const u32 n = at.i + i, u = at.j + j;
            if (n < samples && u < units) y[n * units + u] = bias ? value + bias[u] : value;
        });
}

// dx[n,d] = sum_u w[u,d] dy[n,u]: a block for each tile of dx (N, D).
template <int T, bool TENSOR>
__device__ __forceinline__ void data(const float *__restrict__ dy, const float *__restrict__ w,
                                     float *__restrict__ dx, u32 samples, u32 features, u32 units) {
    __shared__ Tile<T, TENSOR> tile;
    const Corner<T> at(features);
    product<false, true>(
        tile, units,
        [&](u32 line, u32 u) {
            return at.j + line < features ? w[u * features + at.j + line] : 0.0f;
        },
        [&](u32 line, u32 u) {
            return at.i + line < samples ? dy[(at.i + line) * units + u] : 0.0f;
        },
        [&](u32 i, u32 j, float value) {
            const u32 n = at.i + i, d = at.j + j;
            if (n < samples && d < features) dx[n * features + d] = value;
        });
}

// dw[u,d] += sum_n dy[n,u] x[n,d]: a block for each tile of dw (U, D).
template <int T, bool TENSOR>
__device__ __forceinline__ void weights(const float *__restrict__ x, const float *__restrict__ dy,
                                        float *__restrict__ dw, u32 samples, u32 features,
                                        u32 units) {
    __shared__ Tile<T, TENSOR> tile;
    const Corner<T> at(features);
    product<false, false>(
        tile, samples,
        [&](u32 line, u32 n) {
            return at.j + line < features ? x[n * features + at.j + line] : 0.0f;
        },
        [&](u32 line, u32 n) { return at.i + line < units ? dy[n * units + at.i + line] : 0.0f; },
        [&](u32 i, u32 j, float value) {
            const u32 u = at.i + i, d = at.j + j;
            if (u < units && d < features) dw[u * features + d] += value;
        });
}

// BLOCKS of them share a multiprocessor's registers, as many as spill none.
#define DENSE(BLOCKS, T, TENSOR, suffix)                                                           \
    KERNEL __launch_bounds__(THREADS, BLOCKS)                                                      \
        dense_forward_##suffix(const float *x, const float *w, const float *bias, float *y,        \
                               u32 samples, u32 features, u32 units) {                             \
        forward<T, TENSOR>(x, w, bias, y, samples, features, units);                               \
    }                                                                                              \
    KERNEL __launch_bounds__(THREADS, BLOCKS)                                                      \
        dense_data_##suffix(const float *dy, const float *w, float *dx, u32 samples, u32 features, \
                            u32 units) {                                                           \
        data<T, TENSOR>(dy, w, dx, samples, features, units);                                      \
    }                                                                                              \
    KERNEL __launch_bounds__(THREADS, BLOCKS)                                                      \
        dense_weights_##suffix(const float *x, const float *dy, float *dw, u32 samples,            \
                               u32 features, u32 units) {                                          \
        weights<T, TENSOR>(x, dy, dw, samples, features, units);                                   \
    }
DENSE(4, 8, false, large)
DENSE(7, 4, false, small)
#if __CUDA_ARCH__ >= 800
DENSE(3, 8, true, large_tensor)
DENSE(8, 4, true, small_tensor)
#endif

// The same as forward for outputs so few that tiles of them would leave most of the device idle: a
// warp for each, bound by reads from the caches.
KERNEL dense_forward_direct(const float *__restrict__ x, const float *__restrict__ w,
                            const float *__restrict__ bias, float *__restrict__ y, u32 samples,
                            u32 features, u32 units) {
    const u64 at = element() / 32;
    if (at >= (u64)samples * units) return;
    const u32 u = (u32)at % units;
    x += (u64)((u32)at / units) * features;
    w += (u64)u * features;
    float sum = 0.0f;
    for (u32 d = threadIdx.x % 32; d < features; d += 32) sum = fmaf(w[d], x[d], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) y[at] = bias ? sum + bias[u] : sum;
}

// db[u] += sum_n dy[n,u]: a thread for each unit, bound by memory latency.
KERNEL dense_bias(const float *__restrict__ dy, float *db, u32 samples, u32 units) {
    const u64 u = element();
    if (u >= units) return;
    float sum = 0.0f;
    for (u32 n = 0; n < samples; n++) sum += dy[(u64)n * units + u];
    db[u] += sum;
}

// SIGNS entries of a row of the matrix of signs.
__device__ __forceinline__ uint4 signs(u32 row, u32 block, u32 key0, u32 key1) {
    return philox(make_uint4(block, row, 0, 4), key0, key1);
}

// Entry `at` of them.
__device__ __forceinline__ float sign(const uint4 &words, u32 at) {
    return ((const u32 *)&words)[at / 32] >> at % 32 & 1 ? 1.0f : -1.0f;
}

// y[n,k] = scale sum_d R[k,d] x[n,d]: as forward; the tile's rows of R are drawn every SIGNS steps,
// a row for each thread.
KERNEL __launch_bounds__(THREADS)
    project(const float *__restrict__ x, float *__restrict__ y, u32 samples, u32 features, u32 dim,
            u32 key0, u32 key1, float scale) {
    __shared__ Tile<4, false> tile;
    __shared__ uint4 drawn[Tile<4, false>::ACROSS];
    const Corner<4> at(dim);
    float sum[4][4] = {};
    for (u32 base = 0; base < features; base += SIGNS) {
        if (threadIdx.x < Tile<4, false>::ACROSS)
            drawn[threadIdx.x] = signs(at.j + threadIdx.x, base / SIGNS, key0, key1);
        __syncthreads();
        multiply<true, true>(
            tile, sum, base, min(base + SIGNS, features),
            [&](u32 line, u32 d) { return sign(drawn[line], d - base); },
            [&](u32 line, u32 d) {
                return at.i + line < samples ? x[(at.i + line) * features + d] : 0.0f;
            });
    }
    each<4, false>(sum, [&](u32 i, u32 j, float value) {
        const u32 n = at.i + i, k = at.j + j;
        if (n < samples && k < dim) y[n * dim + k] = value * scale;
    });
}

// dx[n,d] = scale sum_k R[k,d] dy[n,k]: as data; a tile's columns lie in one block of signs of each
// row of R, and each thread draws that of one row every THREADS steps.
KERNEL __launch_bounds__(THREADS)
    project_data(const float *__restrict__ dy, float *__restrict__ dx, u32 samples, u32 features,
                 u32 dim, u32 key0, u32 key1, float scale) {
    __shared__ Tile<4, false> tile;
    __shared__ uint4 drawn[THREADS];
    const Corner<4> at(features);
    float sum[4][4] = {};
    for (u32 base = 0; base < dim; base += THREADS) {
        drawn[threadIdx.x] = signs(base + threadIdx.x, at.j / SIGNS, key0, key1);
        __syncthreads();
        multiply<false, true>(
            tile, sum, base, min(base + THREADS, dim),
            [&](u32 line, u32 k) { return sign(drawn[k - base], at.j % SIGNS + line); },
            [&](u32 line, u32 k) {
                return at.i + line < samples ? dy[(at.i + line) * dim + k] : 0.0f;
            });
    }
    each<4, false>(sum, [&](u32 i, u32 j, float value) {
        const u32 n = at.i + i, d = at.j + j;
        if (n < samples && d < features) dx[n * features + d] = value * scale;
    });
}
