// Convolutions as products of matrices of which one is never made: its elements are gathered from
// the images as the product asks for them.
//
//   forward   y  = w * x    a row for each place of y,    sums over channels and taps
//   data      dx = w' * dy  a row for each place of x,    sums over filters and taps
//   weights   dw = dy * x'  a row for each tap of dw,     sums over samples and places
//
// The place of an element in its image is that of its row plus that of its step of the sum. A
// thread keeps its row, and the steps lie in a table in shared memory that is made anew every
// TABLE steps, so that the main loop divides by nothing.
//
// What comes behind a convolution whose layers are frozen runs within it: a norm, an activation, and a
// max-pool whose windows do not overlap and have 1, 2 or 4 places. Rows are then in the order of the
// windows, so that a thread holds whole ones, and only the largest of each is written.
//
// Where a sum is NaN, the tile is summed once more, each element by itself: a product with the border, or
// a number that two of TF32 do not give, has made NaN of infinities and of weights that are none.
//
// Strided data gradients: the places of x whose coordinates leave the same rest by the stride are
// reached by the same taps, and by every second, third, ... of them only. Each such class is a
// product of its own, without stride, so that no step is taken in vain.

#include "common.cuh"
#include "product.cuh"

// Steps of a table.
enum { TABLE = 256 };

// A coordinate outside of every image, also with a tap added to it. Rows past the end have it in h,
// steps in w: twice it would be 0.
#define OUTSIDE (1u << 31)
#define NOWHERE 0xffffffffu

// Sizes: images of `red` channels a group that are read, of `out` channels a group that are
// written, and the window of the layer.
struct Geometry {
    u32 samples, groups, red, out, src_h, src_w, dst_h, dst_w;
    u32 kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};
// A kernel takes them one by one.
#define GEOMETRY                                                                                   \
    u32 samples, u32 groups, u32 red, u32 out, u32 src_h, u32 src_w, u32 dst_h, u32 dst_w,         \
        u32 kernel_h, u32 kernel_w, u32 stride_h, u32 stride_w, u32 pad_h, u32 pad_w
#define GIVEN                                                                                      \
    {samples,  groups,   red,      out,      src_h, src_w, dst_h,                                  \
     dst_w,    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w}

// What comes behind the sums of a forward pass: a bias, a norm (where there is a mean), an activation, and
// the window of a pool.
struct Finish {
    const float *bias, *gamma, *beta, *mean, *variance;
    float eps;
    u32 kind;
    float slope;
    u32 pool_h, pool_w;

    // Factor and summand of a channel.
    __device__ __forceinline__ float2 affine(u32 c) const {
        const float shift = bias ? bias[c] : 0.0f;
        if (!mean) return make_float2(1.0f, shift);
        const float scale = (gamma ? gamma[c] : 1.0f) / sqrtf(variance[c] + eps);
        return make_float2(scale, fmaf(scale, shift - mean[c], beta ? beta[c] : 0.0f));
    }
    __device__ __forceinline__ float operator()(float v, float2 affine) const {
        return activated(fmaf(v, affine.x, affine.y), kind, slope);
    }
};
#define FINISH                                                                                     \
    const float *bias, const float *gamma, const float *beta, const float *mean,                   \
        const float *variance, float eps, u32 kind, float slope, u32 pool_h, u32 pool_w
#define FINISHED                                                                                   \
    { bias, gamma, beta, mean, variance, eps, kind, slope, pool_h, pool_w }

__device__ __forceinline__ float larger(float a, float b) { return beats(b, a) ? b : a; }

// A row of the gathered factor: the image coordinates and the element of its step 0.
struct Row {
    u32 h, w, at;
};

// A tile has 16 T rows and 8 T columns; each thread sums T x T elements of it.
template <int T, bool TENSOR> struct Tile {
    static const int ROWS = 16 * T, COLUMNS = 8 * T;
    // Two tiles of each factor: one is read while the next is written. What is between the lines
    // has what a warp reads or writes at once lie in different banks.
    __align__(16) float rows[2][DEPTH][ROWS + (TENSOR ? 8 : 0)];
    __align__(16) float columns[2][DEPTH][COLUMNS + (TENSOR ? 8 : 4)];
    // By step: coordinates and element to add in the gathered factor, element of the other.
    uint4 table[TABLE];
    // Where each row's results go.
    __align__(16) u32 to[ROWS];
};

// Where a row is kept. Tensor cores give a thread two neighbours of each eight rows: what it gets
// of two eights are to be four neighbours.
template <bool TENSOR> __device__ __forceinline__ u32 kept(u32 row) {
    return TENSOR ? row / 16 * 16 + row / 2 % 2 * 8 + row / 4 % 4 * 2 + row % 2 : row;
}

// Calls `f` with the first row, the column and the sums of each four rows of the thread.
template <int T, bool TENSOR, class F>
__device__ __forceinline__ void each(const float (&sum)[T][T], F f) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < T; i += TENSOR ? 2 : 4)
#pragma unroll
        for (int j = 0; j < T; j += TENSOR ? 2 : 1)
            if (TENSOR)
                f(first_row<T>() + i * 8 + lane % 4 * 4,
                  first_column<T>() + j / 4 * 16 + j % 4 * 4 + lane / 4,
                  make_float4(sum[i][j], sum[i][j + 1], sum[i + 1][j], sum[i + 1][j + 1]));
            else
                f(first_row<T>() + i * 8 + lane % 8 * 4,
                  first_column<T>() + j / 4 * 16 + lane / 8 * 4 + j % 4,
                  make_float4(sum[i][j], sum[i + 1][j], sum[i + 2][j], sum[i + 3][j]));
}

// Adds the products of steps `first` to `last` to `sum`. `a` is gathered from images of
// (height, width) at the thread's `row`; `b` has `columns` columns, `apart` from each other.
// `entry(step)` is the step's line of the table.
//
// Bound by multiply-adds, of which a thread does T^2 per step for T / 2 reads of 16 bytes; on
// tensor cores by the instructions that feed them.
template <int T, bool TENSOR, class Entry>
__device__ __forceinline__ void multiply(Tile<T, TENSOR> &tile, float (&sum)[T][T],
                                         const float *__restrict__ a, Row row, u32 height,
                                         u32 width, const float *__restrict__ b, u32 apart,
                                         u32 columns, u32 first, u32 last, Entry entry) {
    const int ROWS = Tile<T, TENSOR>::ROWS;
    const u32 at_row = threadIdx.x % ROWS, row_step = threadIdx.x / ROWS;
    const u32 at_column = threadIdx.x / DEPTH, column_step = threadIdx.x % DEPTH;
    float next_row[T], next_column[T / 2];
    for (u32 base = first; base < last; base += TABLE) {
        const u32 steps = min((u32)TABLE, last - base);
        // All have met since they last read the table, and meet again before they write tiles.
        for (u32 i = threadIdx.x; i < (steps + DEPTH - 1) / DEPTH * DEPTH; i += THREADS)
            tile.table[i] = i < steps ? entry(base + i) : make_uint4(0, OUTSIDE, 0, 0);
        __syncthreads();
        auto load = [&](u32 step) {
#pragma unroll
            for (int i = 0; i < T; i++) {
                const uint4 e = tile.table[step + row_step + i * (THREADS / ROWS)];
                const bool inside = row.h + e.x < height && row.w + e.y < width;
                next_row[i] = inside ? a[row.at + e.z] : 0.0f;
            }
            const u32 from = tile.table[step + column_step].w;
            const u32 left = step + column_step < steps ? columns : 0;
#pragma unroll
            for (int i = 0; i < T / 2; i++) {
                const u32 column = at_column + i * (THREADS / DEPTH);
                next_column[i] = column < left ? b[from + column * apart] : 0.0f;
            }
        };
        auto store = [&](u32 turn) {
#pragma unroll
            for (int i = 0; i < T; i++) {
                const u32 step = row_step + i * (THREADS / ROWS);
                tile.rows[turn][step][kept<TENSOR>(at_row)] = next_row[i];
            }
#pragma unroll
            for (int i = 0; i < T / 2; i++)
                tile.columns[turn][column_step][at_column + i * (THREADS / DEPTH)] = next_column[i];
        };
        load(0);
        store(0);
        __syncthreads();
        u32 turn = 0;
        for (u32 step = 0; step < steps; step += DEPTH) {
            const bool more = step + DEPTH < steps;
            if (more) load(step + DEPTH);
            accumulate<T, TENSOR>(tile.rows[turn], tile.columns[turn], sum);
            if (more) {
                turn ^= 1;
                store(turn);
                __syncthreads();
            }
        }
    }
}

// One dimension of what a product reads and writes. Place `i` is `first + apart * i` of the image
// that is written; by tap `t` of `taps` it reads place `i * step + base + sign * t`, with the
// weight `tap + tap_apart * t`.
struct Axis {
    u32 places, first, apart, step, base, taps, tap, tap_apart;
};

// The whole dimension forward, a class of its places backward.
template <bool BACK>
__device__ __forceinline__ Axis axis(u32 at, u32 length, u32 kernel, u32 stride, u32 pad) {
    if (!BACK) return Axis{length, 0, 1, stride, 0 - pad, kernel, 0, 1};
    const u32 places = at < length ? (length - at + stride - 1) / stride : 0;
    const u32 tap = (at + pad) % stride, base = (at + pad) / stride;
    const u32 taps = tap < kernel ? (kernel - tap + stride - 1) / stride : 0;
    return Axis{places, at, stride, 1, base, taps, tap, stride};
}

// The sum of one element of what is written, by itself; no tap in the border is looked at.
template <bool BACK>
__device__ __forceinline__ float sum_at(const float *__restrict__ src, const float *__restrict__ w,
                                        const Geometry &g, u32 sample, u32 channel, u32 i, u32 j) {
    const u32 group = channel / g.out, kernel = g.kernel_h * g.kernel_w;
    const Axis h = axis<BACK>(BACK ? i % g.stride_h : 0, g.dst_h, g.kernel_h, g.stride_h, g.pad_h);
    const Axis v = axis<BACK>(BACK ? j % g.stride_w : 0, g.dst_w, g.kernel_w, g.stride_w, g.pad_w);
    const u32 top = i / h.apart * h.step + h.base, left = j / v.apart * v.step + v.base;

    src += (sample * g.groups + group) * g.red * g.src_h * g.src_w;
    w += group * g.red * g.out * kernel + channel % g.out * (BACK ? kernel : g.red * kernel);
    float sum = 0.0f;
    for (u32 c = 0; c < g.red; c++) {
        for (u32 r = 0; r < h.taps; r++) {
            const u32 y = BACK ? top - r : top + r;
            if (y >= g.src_h) continue;
            const u32 tap = (h.tap + h.tap_apart * r) * g.kernel_w + v.tap;
            for (u32 s = 0; s < v.taps; s++) {
                const u32 x = BACK ? left - s : left + s;
                if (x < g.src_w) sum = fmaf(w[tap + v.tap_apart * s], src[y * g.src_w + x], sum);
            }
        }
        src += g.src_h * g.src_w;
        w += BACK ? g.out * kernel : kernel;
    }
    return sum;
}

// The block's number, from the hardware each time: what is made of it is made anew, and takes no registers
// in the meantime.
__device__ __forceinline__ u32 block() {
    u32 index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
}

// A block for each tile of places by channels, of each class of each group; channels first, for
// neighbours to read the same places.
template <int ROWS, int COLUMNS, bool BACK> struct Part {
    const Geometry &g;
    u32 pool_w, area, dst_w, dst_plane, channel, place, group, places, rows;
    Axis h, v;
    __device__ __forceinline__ Part(const Geometry &g, const Finish &finish) : g(g) {
        pool_w = BACK ? 1 : finish.pool_w;
        area = BACK ? 1 : finish.pool_h * pool_w;
        const u32 dst_h = BACK ? g.dst_h : g.dst_h / finish.pool_h;
        dst_w = g.dst_w / pool_w;
        dst_plane = dst_h * dst_w;
        const u32 classes_w = BACK ? g.stride_w : 1, classes_h = BACK ? g.stride_h : 1;
        const u32 most_h = (dst_h + classes_h - 1) / classes_h;
        const u32 most_w = (dst_w + classes_w - 1) / classes_w;
        const u32 across = (g.out + COLUMNS - 1) / COLUMNS;
        const u32 down = (g.samples * most_h * most_w * area + ROWS - 1) / ROWS;
        const u32 index = block(), product = index / across / down;
        channel = index % across * COLUMNS;
        place = index / across % down * ROWS;
        group = product / (classes_h * classes_w);
        const u32 part = product % (classes_h * classes_w);
        h = axis<BACK>(part / classes_w, dst_h, g.kernel_h, g.stride_h, g.pad_h);
        v = axis<BACK>(part % classes_w, dst_w, g.kernel_w, g.stride_w, g.pad_w);
        places = h.places * v.places * area;
        rows = g.samples * places;
    }
    // Where a row's sum is taken, and the element of the block's first channel that it goes to.
    struct At {
        u32 sample, i, j, to;
    };
    __device__ __forceinline__ At locate(u32 row) const {
        const u32 sample = row / places, window = row % places / area, within = row % area;
        const u32 i = window / v.places, j = window % v.places;
        const u32 to = ((sample * g.groups + group) * g.out + channel) * dst_plane +
                       (h.first + h.apart * i) * dst_w + v.first + v.apart * j;
        if (BACK) return At{sample, i, j, to};
        return At{sample, i * (area / pool_w) + within / pool_w, j * pool_w + within % pool_w, to};
    }
};

// The left factor's rows are places, its steps (channel, tap), the weights are the right one.
template <int T, bool TENSOR, bool BACK>
__device__ __forceinline__ void gather(const float *__restrict__ src, const float *__restrict__ w,
                                       float *__restrict__ dst, const Geometry &g,
                                       const Finish &finish) {
    typedef Tile<T, TENSOR> Own;
    typedef Part<Own::ROWS, Own::COLUMNS, BACK> Own_part;
    __shared__ Own tile;
    float sum[T][T] = {};
    {
        const Own_part part(g, finish);
        if (part.place >= part.rows) return;
        const u32 src_plane = g.src_h * g.src_w, own = threadIdx.x % Own::ROWS;
        Row row = {OUTSIDE, 0, 0};
        u32 to = NOWHERE;
        if (part.place + own < part.rows) {
            const typename Own_part::At at = part.locate(part.place + own);
            row.h = at.i * part.h.step + part.h.base;
            row.w = at.j * part.v.step + part.v.base;
            row.at = (at.sample * g.groups + part.group) * g.red * src_plane + row.h * g.src_w + row.w;
            to = at.to;
        }
        if (threadIdx.x < Own::ROWS) tile.to[own] = to;
        __syncthreads();

        const Axis &h = part.h, &v = part.v;
        const u32 taps = h.taps * v.taps, kernel = g.kernel_h * g.kernel_w;
        const u32 weights = BACK ? g.out * kernel : kernel, apart = BACK ? kernel : g.red * kernel;
        auto entry = [&](u32 step) {
            const u32 c = step / taps, r = step % taps / v.taps, s = step % taps % v.taps;
            const u32 dh = BACK ? 0 - r : r, dw = BACK ? 0 - s : s;
            const u32 tap = (h.tap + h.tap_apart * r) * g.kernel_w + v.tap + v.tap_apart * s;
            return make_uint4(dh, dw, c * src_plane + dh * g.src_w + dw, c * weights + tap);
        };
        multiply(tile, sum, src, row, g.src_h, g.src_w,
                 w + part.group * g.red * g.out * kernel + part.channel * apart, apart,
                 g.out - part.channel, 0, g.red * taps, entry);
    }
    const Own_part part(g, finish);
    const u32 area = part.area, dst_plane = part.dst_plane;
    // The channels' factors and summands lie where columns did.
    float2 *affines = (float2 *)tile.columns;
    if (!BACK) {
        __syncthreads();
        const u32 own = part.channel + threadIdx.x;
        if (threadIdx.x < Own::COLUMNS && own < g.out)
            affines[threadIdx.x] = finish.affine(part.group * g.out + own);
        __syncthreads();
    }
    // Four places in a row of an image are stored at once.
    const bool whole = dst_plane % 4 == 0 && (u64)dst % 16 == 0;
    bool is_nan = false;
    each<T, TENSOR>(sum, [&](u32 i, u32 j, float4 v) {
        if (part.channel + j >= g.out) return;
        is_nan |= v.x != v.x || v.y != v.y || v.z != v.z || v.w != v.w;
        if (!BACK) {
            const float2 a = affines[j];
            v = make_float4(finish(v.x, a), finish(v.y, a), finish(v.z, a), finish(v.w, a));
        }
        const uint4 to = *(const uint4 *)&tile.to[i];
        float *column = dst + (u64)j * dst_plane;
        if (area > 1) {
            const float first = larger(v.x, v.y), second = larger(v.z, v.w);
            if (to.x != NOWHERE) column[to.x] = area == 4 ? larger(first, second) : first;
            if (to.z != NOWHERE && area == 2) column[to.z] = second;
            return;
        }
        if (whole && to.x % 4 == 0 && to.x + 3 == to.w) {
            *(float4 *)&column[to.x] = v;
            return;
        }
        if (to.x != NOWHERE) column[to.x] = v.x;
        if (to.y != NOWHERE) column[to.y] = v.y;
        if (to.z != NOWHERE) column[to.z] = v.z;
        if (to.w != NOWHERE) column[to.w] = v.w;
    });
    if (!__syncthreads_or(is_nan)) return;
    const u32 windows = Own::ROWS / area;
    for (u32 e = threadIdx.x; e < windows * Own::COLUMNS; e += THREADS) {
        const u32 j = e / windows, first = part.place + e % windows * area;
        if (part.channel + j >= g.out || first >= part.rows) continue;
        const u32 c = part.group * g.out + part.channel + j;
        float best = 0.0f;
        for (u32 k = 0; k < area; k++) {
            const typename Own_part::At at = part.locate(first + k);
            const u32 row = part.h.first + part.h.apart * at.i;
            const u32 column = part.v.first + part.v.apart * at.j;
            float sum = sum_at<BACK>(src, w, g, at.sample, c, row, column);
            if (!BACK) sum = finish(sum, finish.affine(c));
            best = k ? larger(best, sum) : sum;
        }
        dst[part.locate(first).to + (u64)j * dst_plane] = best;
    }
}

// BLOCKS of them share a multiprocessor's registers, as many as spill none.
#define FORWARD(name, BLOCKS, T, TENSOR)                                                           \
    KERNEL __launch_bounds__(THREADS, BLOCKS)                                                      \
        name(const float *src, const float *w, float *dst, FINISH, GEOMETRY) {                     \
        gather<T, TENSOR, false>(src, w, dst, Geometry GIVEN, Finish FINISHED);                    \
    }
#define DATA(name, BLOCKS, T, TENSOR)                                                              \
    KERNEL __launch_bounds__(THREADS, BLOCKS)                                                      \
        name(const float *src, const float *w, float *dst, GEOMETRY) {                             \
        gather<T, TENSOR, true>(src, w, dst, Geometry GIVEN, Finish{});                            \
    }
FORWARD(conv_forward_large, 4, 8, false)
FORWARD(conv_forward_small, 7, 4, false)
DATA(conv_data_large, 4, 8, false)
DATA(conv_data_small, 7, 4, false)
#if __CUDA_ARCH__ >= 800
FORWARD(conv_forward_large_tensor, 3, 8, true)
FORWARD(conv_forward_small_tensor, 8, 4, true)
DATA(conv_data_large_tensor, 3, 8, true)
DATA(conv_data_small_tensor, 8, 4, true)
#endif

// The same for groups of few channels, as in depthwise convolutions, of which tiles would be mostly
// empty: a thread for each element that is written, bound by reads from the nearest cache.
KERNEL conv_forward_direct(const float *__restrict__ x, const float *__restrict__ w,
                           float *__restrict__ y, FINISH, GEOMETRY) {
    const Geometry g = GIVEN;
    const Finish finish = FINISHED;
    const u32 p = dst_h / pool_h, q = dst_w / pool_w, channels = groups * out;
    const u64 at = element();
    if (at >= (u64)samples * channels * p * q) return;
    const u32 sample = (u32)at / (channels * p * q), channel = (u32)at / (p * q) % channels;
    const u32 i = (u32)at / q % p * pool_h, j = (u32)at % q * pool_w;
    const float2 affine = finish.affine(channel);
    float best = -INFINITY_F;
    for (u32 k = 0; k < pool_h * pool_w; k++) {
        const float sum = sum_at<false>(x, w, g, sample, channel, i + k / pool_w, j + k % pool_w);
        best = larger(best, finish(sum, affine));
    }
    y[at] = best;
}

KERNEL conv_data_direct(const float *__restrict__ dy, const float *__restrict__ w,
                        float *__restrict__ dx, GEOMETRY) {
    const Geometry g = GIVEN;
    const u32 plane = dst_h * dst_w, channels = groups * out;
    const u64 at = element();
    if (at >= (u64)samples * channels * plane) return;
    const u32 sample = (u32)at / (channels * plane), channel = (u32)at / plane % channels;
    const u32 i = (u32)at % plane / dst_w, j = (u32)at % dst_w;
    dx[at] = sum_at<true>(dy, w, g, sample, channel, i, j);
}

// A block for each tile of taps by filters, of each group, and of each of `splits` spans of `span`
// steps. The left factor's rows are (channel, tap), its steps places of dy; dy is the right one.
// `work` takes the spans' results, one after the other.
template <int T, bool TENSOR>
__device__ __forceinline__ void weights(const float *__restrict__ x, const float *__restrict__ dy,
                                        float *__restrict__ work, u32 splits, u32 span,
                                        const Geometry &g) {
    typedef Tile<T, TENSOR> Own;
    __shared__ Own tile;
    const u32 kernel = g.kernel_h * g.kernel_w, taps = g.red * kernel;
    const u32 src_plane = g.src_h * g.src_w, dst_plane = g.dst_h * g.dst_w;
    const u32 across = (g.out + Own::COLUMNS - 1) / Own::COLUMNS;
    const u32 down = (taps + Own::ROWS - 1) / Own::ROWS;
    const u32 filter = blockIdx.x % across * Own::COLUMNS;
    const u32 tap = blockIdx.x / across % down * Own::ROWS;
    const u32 split = blockIdx.x / across / down % splits;
    const u32 group = blockIdx.x / across / down / splits;

    auto locate = [&](u32 tap) {
        const u32 h = tap % kernel / g.kernel_w, w = tap % kernel % g.kernel_w;
        return Row{h, w, (group * g.red + tap / kernel) * src_plane + h * g.src_w + w};
    };
    const u32 own = tap + threadIdx.x % Own::ROWS;
    const Row row = own < taps ? locate(own) : Row{OUTSIDE, 0, 0};
    auto entry = [&](u32 step) {
        const u32 sample = step / dst_plane, rest = step % dst_plane;
        const u32 top = rest / g.dst_w * g.stride_h - g.pad_h;
        const u32 left = rest % g.dst_w * g.stride_w - g.pad_w;
        return make_uint4(top, left,
                          sample * g.groups * g.red * src_plane + top * g.src_w + left,
                          sample * g.groups * g.out * dst_plane + rest);
    };
    const u32 first = split * span, last = first + min(span, g.samples * dst_plane - first);
    const float *from = dy + (group * g.out + filter) * dst_plane;
    float sum[T][T] = {};
    multiply(tile, sum, x, row, g.src_h, g.src_w, from, dst_plane, g.out - filter, first, last,
             entry);
    work += ((u64)split * g.groups * g.out + group * g.out + filter) * taps + tap;
    bool is_nan = false;
    each<T, TENSOR>(sum, [&](u32 i, u32 j, float4 v) {
        if (filter + j >= g.out) return;
        is_nan |= v.x != v.x || v.y != v.y || v.z != v.z || v.w != v.w;
        float *to = work + (u64)j * taps + i;
        if (tap + i < taps) to[0] = v.x;
        if (tap + i + 1 < taps) to[1] = v.y;
        if (tap + i + 2 < taps) to[2] = v.z;
        if (tap + i + 3 < taps) to[3] = v.w;
    });
    if (!__syncthreads_or(is_nan)) return;
    for (u32 e = threadIdx.x; e < Own::ROWS * Own::COLUMNS; e += THREADS) {
        const u32 i = e % Own::ROWS, j = e / Own::ROWS;
        if (tap + i >= taps || filter + j >= g.out) continue;
        const Row row = locate(tap + i);
        float sum = 0.0f;
        for (u32 step = first; step < last; step++) {
            const uint4 e = entry(step);
            if (row.h + e.x < g.src_h && row.w + e.y < g.src_w)
                sum = fmaf(from[e.w + j * dst_plane], x[row.at + e.z], sum);
        }
        work[(u64)j * taps + i] = sum;
    }
}

#define WEIGHTS(name, BLOCKS, T, TENSOR)                                                           \
    KERNEL __launch_bounds__(THREADS, BLOCKS)                                                      \
        name(const float *x, const float *dy, float *work, u32 splits, u32 span, GEOMETRY) {       \
        weights<T, TENSOR>(x, dy, work, splits, span, Geometry GIVEN);                             \
    }
WEIGHTS(conv_weights_large, 3, 8, false)
WEIGHTS(conv_weights_small, 7, 4, false)
#if __CUDA_ARCH__ >= 800
WEIGHTS(conv_weights_large_tensor, 3, 8, true)
WEIGHTS(conv_weights_small_tensor, 8, 4, true)
#endif

// Adds the spans to dw, the first first: a thread for each weight, bound by memory bandwidth.
KERNEL conv_weights_sum(const float *__restrict__ work, float *dw, u32 splits, u32 len) {
    const u64 at = element();
    if (at >= len) return;
    float sum = 0.0f;
    for (u32 split = 0; split < splits; split++) sum += work[(u64)split * len + at];
    dw[at] += sum;
}

// Places of a batch's planes, a thread's every `blockDim.x`th, without dividing by the plane.
struct Walk {
    u32 sample, rest;
    __device__ __forceinline__ Walk(u32 plane)
        : sample(threadIdx.x / plane), rest(threadIdx.x % plane) {}
    __device__ __forceinline__ void next(u32 plane) {
        sample += blockDim.x / plane;
        rest += blockDim.x % plane;
        if (rest >= plane) {
            rest -= plane;
            sample++;
        }
    }
};

// The same for groups of few weights: a block for each weight, its threads each take every 256th
// place; bound by reads from the caches.
KERNEL conv_weights_direct(const float *__restrict__ x, const float *__restrict__ dy, float *dw,
                           GEOMETRY) {
    __shared__ float room[32];
    const u32 kernel = kernel_h * kernel_w, plane = dst_h * dst_w;
    const u32 filter = blockIdx.x / (red * kernel), channel = blockIdx.x / kernel % red;
    const u32 r = blockIdx.x % kernel / kernel_w, s = blockIdx.x % kernel_w;
    x += (filter / out * red + channel) * src_h * src_w;
    dy += filter * plane;
    float sum = 0.0f;
    for (Walk at(plane); at.sample < samples; at.next(plane)) {
        const u32 i = at.rest / dst_w * stride_h + r - pad_h;
        const u32 j = at.rest % dst_w * stride_w + s - pad_w;
        if (i < src_h && j < src_w)
            sum = fmaf(dy[at.sample * groups * out * plane + at.rest],
                       x[at.sample * groups * red * src_h * src_w + i * src_w + j], sum);
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) dw[blockIdx.x] += sum;
}

// db += the sums of dy's planes: a block for each filter, bound by memory bandwidth.
KERNEL conv_bias(const float *__restrict__ dy, float *db, u32 samples, u32 plane) {
    __shared__ float room[32];
    float sum = 0.0f;
    for (Walk at(plane); at.sample < samples; at.next(plane))
        sum += dy[(at.sample * gridDim.x + blockIdx.x) * plane + at.rest];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) db[blockIdx.x] += sum;
}
