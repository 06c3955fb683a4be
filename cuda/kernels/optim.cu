// Optimisers: a thread for each parameter, bound by memory bandwidth.

#include "common.cuh"

KERNEL sgd(float *p, const float *__restrict__ g, u32 len, float rate, float decay) {
    const u64 i = element();
    if (i < len) p[i] -= rate * (g[i] + decay * p[i]);
}

KERNEL sgd_momentum(float *p, const float *__restrict__ g, float *buffer, u32 len, float rate, float decay,
                    float momentum, u32 nesterov, u32 step) {
    const u64 i = element();
    if (i >= len) return;
    const float d = g[i] + decay * p[i];
    // The first direction is the gradient, whatever the buffer holds.
    const float b = step <= 1 ? d : momentum * buffer[i] + d;
    buffer[i] = b;
    p[i] -= rate * (nesterov ? d + momentum * b : b);
}

// Adam, with `decay` added to the gradient, or AdamW, which shrinks the parameter by `keep`. The
// powers of beta are the host's.
KERNEL adam(float *p, const float *__restrict__ g, float *mean, float *square, u32 len, float rate, float decay,
            float keep, float mean_share, float beta2, float square_share, float root, float eps) {
    const u64 i = element();
    if (i >= len) return;
    const float d = g[i] + decay * p[i];
    const float m = mean[i] + mean_share * (d - mean[i]);
    const float v = beta2 * square[i] + square_share * d * d;
    mean[i] = m;
    square[i] = v;
    p[i] = p[i] * keep - rate * m / (sqrtf(v) / root + eps);
}
