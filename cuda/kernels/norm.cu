// Normalisations. All are bound by memory bandwidth: a block or a warp reads what it averages over
// once for each pass and keeps nothing. Sums are trees over a block, in an order that the launch
// fixes.

#include "common.cuh"

// The element of a channel: sample by sample, along the plane.
__device__ __forceinline__ u64 at(u32 i, u32 c, u32 channels, u32 plane) {
    return ((u64)(i / plane) * channels + c) * plane + i % plane;
}

// A block for each channel: nets have few, so a block is as large as there are places for it.
// `share` is how much of the running statistics the batch replaces.
KERNEL __launch_bounds__(1024) batch_norm_train(
    const float *__restrict__ x, float *__restrict__ y, const float *__restrict__ gamma, const float *__restrict__ beta,
    float *__restrict__ saved, float *running_mean, float *running_variance, u32 n, u32 channels, u32 plane,
    float eps, float share) {
    __shared__ float room[32];
    const u32 c = blockIdx.x, count = n * plane;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += x[at(i, c, channels, plane)];
    const float mean = block_sum(sum, room) / count;
    sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const float d = x[at(i, c, channels, plane)] - mean;
        sum += d * d;
    }
    const float variance = block_sum(sum, room) / count;
    const float scale = (gamma ? gamma[c] : 1.0f) / sqrtf(variance + eps), shift = beta ? beta[c] : 0.0f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const u64 j = at(i, c, channels, plane);
        y[j] = (x[j] - mean) * scale + shift;
    }
    if (threadIdx.x == 0) {
        const float unbiased = count > 1 ? (float)count / (float)(count - 1) : 1.0f, keep = 1.0f - share;
        saved[c] = mean;
        saved[channels + c] = variance;
        running_mean[c] = keep * running_mean[c] + share * mean;
        running_variance[c] = keep * running_variance[c] + share * (variance * unbiased);
    }
}

// A thread for each element.
KERNEL batch_norm_eval(float *y, const float *__restrict__ gamma, const float *__restrict__ beta,
                       const float *__restrict__ mean, const float *__restrict__ variance, u32 len, u32 channels,
                       u32 plane, float eps) {
    const u64 i = element();
    if (i >= len) return;
    const u32 c = (u32)i / plane % channels;
    const float scale = (gamma ? gamma[c] : 1.0f) / sqrtf(variance[c] + eps);
    y[i] = (y[i] - mean[c]) * scale + (beta ? beta[c] : 0.0f);
}

// A block for each channel, as in training; g is dy and becomes dx.
KERNEL __launch_bounds__(1024) batch_norm_backward(
    const float *__restrict__ x, float *g, const float *__restrict__ gamma, const float *__restrict__ saved,
    float *dgamma, float *dbeta, u32 n, u32 channels, u32 plane, float eps) {
    __shared__ float room[32];
    const u32 c = blockIdx.x, count = n * plane;
    const float mean = saved[c], inverse = 1.0f / sqrtf(saved[channels + c] + eps);
    float sum_g = 0.0f, sum_gz = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const u64 j = at(i, c, channels, plane);
        sum_g += g[j];
        sum_gz += g[j] * ((x[j] - mean) * inverse);
    }
    sum_g = block_sum(sum_g, room);
    sum_gz = block_sum(sum_gz, room);
    if (threadIdx.x == 0 && dgamma) {
        dgamma[c] += sum_gz;
        dbeta[c] += sum_g;
    }
    const float mean_g = sum_g / count, mean_gz = sum_gz / count;
    const float scale = (gamma ? gamma[c] : 1.0f) * inverse;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const u64 j = at(i, c, channels, plane);
        g[j] = scale * (g[j] - mean_g - (x[j] - mean) * inverse * mean_gz);
    }
}

__device__ __forceinline__ float over_deviation(float v, float variance) {
    return variance == 0.0f ? 0.0f : v / sqrtf(variance);
}

// A thread for each element, its gradient alike.
KERNEL standardise(float *y, const float *__restrict__ mean, const float *__restrict__ variance, u32 len, u32 features) {
    const u64 i = element();
    if (i >= len) return;
    const u32 d = (u32)i % features;
    y[i] = over_deviation(y[i] - mean[d], variance[d]);
}

KERNEL standardise_backward(float *g, const float *__restrict__ variance, u32 len, u32 features) {
    const u64 i = element();
    if (i < len) g[i] = over_deviation(g[i], variance[(u32)i % features]);
}

// A thread for each feature, so that a row is read together. `share` of the whole is this batch's,
// `keep` what was seen before.
KERNEL standardise_calibrate(const float *__restrict__ x, float *mean, float *variance, u32 n, u32 features,
                             u32 seen, float share, float keep) {
    const u64 d = element();
    if (d >= features) return;
    const float first = x[d];
    float sum = 0.0f;
    for (u32 i = 0; i < n; i++) sum += x[(u64)i * features + d] - first;
    const float batch = first + sum / n;
    float squares = 0.0f;
    for (u32 i = 0; i < n; i++) {
        const float v = x[(u64)i * features + d] - batch;
        squares += v * v;
    }
    if (seen == 0) {
        mean[d] = batch;
        variance[d] = squares / n;
    } else {
        const float apart = batch - mean[d];
        mean[d] += share * apart;
        variance[d] = keep * variance[d] + share * (squares / n) + share * keep * (apart * apart);
    }
}

#define SHORTEST 1e-18f

// A block for each sample, to length 1. Squares that leave the range are taken once more in units
// of the largest element.
KERNEL __launch_bounds__(128) l2_normalise(float *y, float *saved, u32 features) {
    __shared__ float room[32];
    float *row = y + (u64)blockIdx.x * features;
    float sum = 0.0f;
    for (u32 d = threadIdx.x; d < features; d += blockDim.x) sum += row[d] * row[d];
    float square = block_sum(sum, room), scale = 1.0f;
    if (!(square <= 3.4028235e38f && square >= SHORTEST * SHORTEST)) {
        float largest = 0.0f;
        for (u32 d = threadIdx.x; d < features; d += blockDim.x) {
            if (fabsf(row[d]) > largest) largest = fabsf(row[d]);
        }
#pragma unroll
        for (int lanes = 16; lanes; lanes >>= 1) {
            const float other = __shfl_xor_sync(0xffffffffu, largest, lanes);
            largest = other > largest ? other : largest;
        }
        if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = largest;
        __syncthreads();
        for (u32 w = 0; w < blockDim.x / 32; w++) largest = room[w] > largest ? room[w] : largest;
        __syncthreads();
        scale = largest;
        if (scale > 0.0f) {
            sum = 0.0f;
            for (u32 d = threadIdx.x; d < features; d += blockDim.x) {
                row[d] = row[d] / scale;
                sum += row[d] * row[d];
            }
            square = block_sum(sum, room);
        }
    }
    const float norm = sqrtf(square), length = scale * norm;
    const bool none = length < SHORTEST;
    if (threadIdx.x == 0) saved[blockIdx.x] = none ? 0.0f : length;
    for (u32 d = threadIdx.x; d < features; d += blockDim.x) row[d] = none ? 0.0f : row[d] / norm;
}

// A block for each sample; g is dy and becomes dx.
KERNEL __launch_bounds__(128) l2_normalise_backward(const float *__restrict__ y, const float *__restrict__ saved,
                                                    float *g, u32 features) {
    __shared__ float room[32];
    const u64 first = (u64)blockIdx.x * features;
    const float norm = saved[blockIdx.x];
    float sum = 0.0f;
    for (u32 d = threadIdx.x; d < features; d += blockDim.x) sum += y[first + d] * g[first + d];
    const float along = block_sum(sum, room);
    for (u32 d = threadIdx.x; d < features; d += blockDim.x) {
        g[first + d] = norm == 0.0f ? 0.0f : (g[first + d] - y[first + d] * along) / norm;
    }
}

// Mean and deviation of a plane, by a warp.
__device__ __forceinline__ float2 mean_and_deviation(const float *x, u32 plane, u32 lane) {
    float sum = 0.0f;
    for (u32 i = lane; i < plane; i += 32) sum += x[i];
    const float mean = warp_sum(sum) / plane;
    sum = 0.0f;
    for (u32 i = lane; i < plane; i += 32) sum += (x[i] - mean) * (x[i] - mean);
    return make_float2(mean, sqrtf(warp_sum(sum) / plane + 1e-5f));
}

// A warp for each plane, its gradient alike.
KERNEL channel_std(const float *__restrict__ x, float *__restrict__ y, u32 planes, u32 plane) {
    const u32 at = (u32)(element() / 32), lane = threadIdx.x & 31;
    if (at >= planes) return;
    const float2 found = mean_and_deviation(x + (u64)at * plane, plane, lane);
    if (lane == 0) y[at] = found.y;
}

KERNEL channel_std_backward(const float *__restrict__ x, const float *__restrict__ dy, float *__restrict__ dx,
                            u32 planes, u32 plane) {
    const u32 at = (u32)(element() / 32), lane = threadIdx.x & 31;
    if (at >= planes) return;
    const u64 first = (u64)at * plane;
    const float2 found = mean_and_deviation(x + first, plane, lane);
    const float scale = dy[at] / (plane * found.y);
    for (u32 i = lane; i < plane; i += 32) dx[first + i] = scale * (x[first + i] - found.x);
}
