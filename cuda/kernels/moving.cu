// Layers that look up or move elements, bound by memory bandwidth.

// The row of a token: the nearest whole number, row 0 for what names none.
__device__ __forceinline__ u32 row_of(float token, u32 tokens) {
    const double nearest = (double)token + 0.5;
    // Below 1, and NaN.
    if (!(nearest >= 1.0)) return 0;
    return nearest < (double)tokens ? (u32)nearest : 0;
}

// (N, 1, H, W) tokens to (N, dim, H, W): a thread for each element of the output.
KERNEL embedding(const float *__restrict__ x, const float *__restrict__ w, float *__restrict__ y, u32 len, u32 plane,
                 u32 dim, u32 tokens) {
    const u64 i = element();
    if (i >= len) return;
    const u32 p = (u32)i % plane, e = (u32)i / plane % dim, n = (u32)i / plane / dim;
    y[i] = w[(u64)row_of(x[(u64)n * plane + p], tokens) * dim + e];
}

// A block for each weight: it reads all tokens and sums the gradients of its own, in an order that
// depends on nothing else.
KERNEL __launch_bounds__(128) embedding_backward(const float *__restrict__ x, const float *__restrict__ dy, float *dw,
                                                 u32 n, u32 plane, u32 dim, u32 tokens) {
    __shared__ float room[32];
    const u32 token = blockIdx.x / dim, e = blockIdx.x % dim;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < n * plane; i += blockDim.x) {
        if (row_of(x[i], tokens) == token) sum += dy[((u64)(i / plane) * dim + e) * plane + i % plane];
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) dw[blockIdx.x] += sum;
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
