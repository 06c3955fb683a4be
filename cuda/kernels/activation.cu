// Activations, rounding to 256 steps, and dropout, in place: a thread for each element, bound by memory
// bandwidth.

#include "common.cuh"

KERNEL activation(float *y, u32 len, u32 kind, float slope) {
    const u64 i = element();
    if (i < len) y[i] = kind == TANH ? tanhf(y[i]) : activated(y[i], kind, slope);
}

KERNEL activation_backward(const float *__restrict__ y, float *g, u32 len, u32 kind, float slope) {
    const u64 i = element();
    if (i >= len) return;
    const float v = y[i], d = g[i];
    if (kind == RELU) g[i] = v <= 0.0f ? 0.0f : d;
    if (kind == RELU6) g[i] = v <= 0.0f || v >= 6.0f ? 0.0f : d;
    if (kind == LEAKY) g[i] = v <= 0.0f ? slope * d : d;
    if (kind == TANH) g[i] = d * (1.0f - v * v);
}

// The nearest of the 256 numbers (0 to 255, less `zero`) times `scale`.
KERNEL quantise(float *y, u32 len, float scale, float zero) {
    const u64 i = element();
    if (i >= len) return;
    const float q = y[i] / scale + zero + 0.5f;
    // Comparisons are such that NaN passes.
    const float step = q <= 0.0f ? 0.0f : floorf(q);
    y[i] = ((step >= 255.0f ? 255.0f : step) - zero) * scale;
}

// Passes what lies between the first step and the last.
KERNEL quantise_backward(const float *__restrict__ y, float *g, u32 len, float low, float high) {
    const u64 i = element();
    if (i < len && (y[i] <= low || y[i] >= high)) g[i] = 0.0f;
}

// The same places for a value and for its gradient: a word of the generator for each feature, four
// a block of it.
KERNEL dropout(float *values, u32 len, u32 features, u32 key0, u32 key1, u32 step, u32 dropped, float scale) {
    const u64 i = element();
    if (i >= len) return;
    const u32 sample = (u32)i / features, feature = (u32)i % features;
    const uint4 words = philox(make_uint4(feature / 4, sample, step, 3), key0, key1);
    const u32 place = feature % 4;
    const u32 word = place == 0 ? words.x : place == 1 ? words.y : place == 2 ? words.z : words.w;
    values[i] = word < dropped ? 0.0f : values[i] * scale;
}
