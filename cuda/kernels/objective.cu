// Objectives: what each anchor adds, their sum, and the gradient in gather form, one thread for each
// of its elements, which adds what anchors do to it in the order of their indices.

#include "common.cuh"

// What comes back to the host.
struct Score {
    float value;
    u32 anchors, skipped, correct;
};

// What an anchor adds, `taken` where it has something to add.
struct Term {
    float value;
    u32 taken, correct;
};

// One block. The anchors' terms are added one after the other, as the reference does: a sum that
// leaves the range leaves the term out. `mean` divides by their number.
KERNEL __launch_bounds__(256) tally(Term *terms, Score *score, u32 n, u32 mean) {
    __shared__ Term some[256];
    Score sum = {0.0f, 0, 0, 0};
    for (u32 first = 0; first < n; first += 256) {
        if (first + threadIdx.x < n) some[threadIdx.x] = terms[first + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < min(256u, n - first); i++) {
                const float next = __fadd_rn(sum.value, some[i].value);
                const bool finite = fabsf(next) <= 3.4028235e38f;
                if (some[i].taken && finite) {
                    sum.value = next;
                    sum.anchors++;
                } else {
                    sum.skipped++;
                    terms[first + i].taken = 0;
                }
                // Bit 1: only anchors that are taken count.
                sum.correct += some[i].correct & 2 ? (some[i].taken && finite) : some[i].correct;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        if (mean) sum.value = sum.value / (float)max(sum.anchors, 1u);
        *score = sum;
    }
}

// A thread for each anchor. `margin` is added to same less other, and what is not above 0 adds
// nothing and moves nothing; without one the difference is the term.
KERNEL graph_terms(const u32 *__restrict__ pairs, Term *__restrict__ terms, u32 *__restrict__ moves, u32 n,
                   u32 has_margin, float margin) {
    const u64 i = element();
    if (i >= n) return;
    const u32 same = pairs[4 * i], other = pairs[4 * i + 2];
    const float near = __uint_as_float(pairs[4 * i + 1]), far = __uint_as_float(pairs[4 * i + 3]);
    const bool has_same = same != 0xffffffffu, has_other = other != 0xffffffffu;
    Term term = {0.0f, has_same && has_other, 0};
    term.correct = has_same && (!has_other || near < far || (near == far && same < other));
    bool separated = false;
    if (term.taken) {
        term.value = near - far;
        if (has_margin) {
            term.value += margin;
            separated = fabsf(term.value) <= 3.4028235e38f && term.value <= 0.0f;
            if (separated) term.value = 0.0f;
        }
    }
    terms[i] = term;
    moves[i] = term.taken && !separated;
}

__device__ __forceinline__ float pulled(float sum, float weight, float a, float b) {
    return __fadd_rn(sum, __fmul_rn(weight, __fadd_rn(a, -b)));
}

// A block for 256 features of a row. The anchors that move the row are those that it is, and those
// whose neighbour it is: the block lists them in their order, 256 at a time, and each thread adds what
// they do to its feature. Bound by the pairs, which every block reads.
KERNEL __launch_bounds__(256) graph_gradient(const float *__restrict__ x, const u32 *__restrict__ pairs,
                                             const Term *__restrict__ terms, const u32 *__restrict__ moves,
                                             const Score *__restrict__ score, float *__restrict__ gradient, u32 n,
                                             u32 dim, u32 mean) {
    __shared__ u32 list[256], counts[8];
    const u32 row = blockIdx.x, d = blockIdx.y * blockDim.x + threadIdx.x;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const float own = d < dim ? x[(u64)row * dim + d] : 0.0f;
    float sum = 0.0f;
    for (u32 first = 0; first < n; first += 256) {
        const u32 anchor = first + threadIdx.x;
        bool moves_row = false;
        if (anchor < n && moves[anchor] && terms[anchor].taken)
            moves_row = anchor == row || pairs[4 * anchor] == row || pairs[4 * anchor + 2] == row;
        const u32 lanes = __ballot_sync(0xffffffffu, moves_row);
        if (lane == 0) counts[warp] = __popc(lanes);
        __syncthreads();
        u32 before = __popc(lanes & ((1u << lane) - 1)), listed = 0;
#pragma unroll
        for (u32 other = 0; other < 8; other++) {
            before += other < warp ? counts[other] : 0;
            listed += counts[other];
        }
        if (moves_row) list[before] = anchor;
        __syncthreads();
        for (u32 i = 0; i < (d < dim ? listed : 0); i++) {
            const u32 a = list[i], same = pairs[4 * a], other = pairs[4 * a + 2];
            if (a == row) {
                sum = pulled(sum, 2.0f, own, x[(u64)same * dim + d]);
                sum = pulled(sum, -2.0f, own, x[(u64)other * dim + d]);
            } else {
                sum = pulled(sum, same == row ? -2.0f : 2.0f, x[(u64)a * dim + d], own);
            }
        }
    }
    if (d < dim) gradient[(u64)row * dim + d] = mean ? sum / (float)max(score->anchors, 1u) : sum;
}

// What an anchor's row of distances comes to: its least distances and its sums of exponentials.
struct Near {
    float all, same, sum_all, sum_same;
};

// A warp for each anchor.
KERNEL soft_terms(const float *__restrict__ matrix, const u16 *__restrict__ labels, Near *__restrict__ near,
                  Term *__restrict__ terms, u32 n, float temperature) {
    const u32 i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
    if (i >= n) return;
    const float *row = matrix + (u64)i * n;
    const u16 label = labels[i];
    float all = INFINITY_F, same = INFINITY_F, other = INFINITY_F;
    u32 nearest = 0xffffffffu;
    for (u32 j = lane; j < n; j += 32) {
        const float d = row[j];
        if (d < all) {
            all = d;
            nearest = j;
        }
        if (labels[j] == label) same = d < same ? d : same;
        else other = d < other ? d : other;
    }
#pragma unroll
    for (int lanes = 16; lanes; lanes >>= 1) {
        const float d = __shfl_xor_sync(0xffffffffu, all, lanes);
        const u32 j = __shfl_xor_sync(0xffffffffu, nearest, lanes);
        if (d < all || (d == all && j < nearest)) {
            all = d;
            nearest = j;
        }
        const float s = __shfl_xor_sync(0xffffffffu, same, lanes), o = __shfl_xor_sync(0xffffffffu, other, lanes);
        same = s < same ? s : same;
        other = o < other ? o : other;
    }
    float sum_all = 0.0f, sum_same = 0.0f;
    const bool complete = same < INFINITY_F && other < INFINITY_F;
    if (complete) {
        for (u32 j = lane; j < n; j += 32) {
            const float d = row[j];
            if (!(d < INFINITY_F)) continue;
            sum_all += expf((all - d) / temperature);
            if (labels[j] == label) sum_same += expf((same - d) / temperature);
        }
    }
    sum_all = warp_sum(sum_all);
    sum_same = warp_sum(sum_same);
    if (lane) return;
    near[i] = {all, same, sum_all, sum_same};
    Term term = {0.0f, complete, nearest != 0xffffffffu && labels[nearest] == label};
    if (complete) term.value = logf(sum_all) - logf(sum_same) + (same - all) / temperature;
    terms[i] = term;
}

// How much anchor i pulls on its pair with j.
__device__ __forceinline__ float pull(const Near &near, float d, bool same, float temperature) {
    const float p = expf((near.all - d) / temperature) / near.sum_all;
    const float q = same ? expf((near.same - d) / temperature) / near.sum_same : 0.0f;
    return q - p;
}

// A block for 256 features of a row. Both anchors of a pair pull on it, so that the row's gradient is
// the sum over its pairs of both pulls times the difference.
KERNEL __launch_bounds__(256) soft_gradient(const float *__restrict__ x, const float *__restrict__ matrix,
                                            const u16 *__restrict__ labels, const Near *__restrict__ near,
                                            const Term *__restrict__ terms, const Score *__restrict__ score,
                                            float *__restrict__ gradient, u32 n, u32 dim, float temperature) {
    __shared__ float weights[256];
    const u32 row = blockIdx.x, d = blockIdx.y * blockDim.x + threadIdx.x;
    const float own = d < dim ? x[(u64)row * dim + d] : 0.0f;
    float sum = 0.0f;
    for (u32 first = 0; first < n; first += 256) {
        const u32 j = first + threadIdx.x;
        float weight = 0.0f;
        if (j < n) {
            const float apart = matrix[(u64)row * n + j];
            const bool same = labels[j] == labels[row];
            if (apart < INFINITY_F) {
                if (terms[row].taken) weight += pull(near[row], apart, same, temperature);
                if (terms[j].taken) weight += pull(near[j], apart, same, temperature);
            }
        }
        weights[threadIdx.x] = weight;
        __syncthreads();
        if (d < dim) {
            for (u32 i = 0; i < min(256u, n - first); i++) {
                // A pair that nobody pulls on may hold what is not finite.
                if (weights[i] != 0.0f) sum = fmaf(weights[i], own - x[(u64)(first + i) * dim + d], sum);
            }
        }
        __syncthreads();
    }
    if (d < dim) gradient[(u64)row * dim + d] = (sum + sum) / temperature / (float)max(score->anchors, 1u);
}

// A warp for each sample: its term, and its gradient before the mean. Bound by memory bandwidth.
KERNEL cross_entropy(const float *__restrict__ logits, const u16 *__restrict__ labels, Term *__restrict__ terms,
                     float *__restrict__ gradient, u32 n, u32 classes, float smoothing) {
    const u32 i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
    if (i >= n) return;
    const float *z = logits + (u64)i * classes;
    float *g = gradient + (u64)i * classes;
    const u32 label = labels[i];
    if (label >= classes) {
        if (lane == 0) terms[i] = {0.0f, 0, 0};
        return;
    }
    // NaN is not the largest.
    float largest = -INFINITY_F;
    for (u32 k = lane; k < classes; k += 32) largest = z[k] > largest ? z[k] : largest;
#pragma unroll
    for (int lanes = 16; lanes; lanes >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
    float sum = 0.0f;
    u32 first = classes;
    for (u32 k = lane; k < classes; k += 32) {
        if (z[k] == largest) first = min(first, k);
        sum += z[k] == largest ? 1.0f : expf(z[k] - largest);
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int lanes = 16; lanes; lanes >>= 1) first = min(first, __shfl_xor_sync(0xffffffffu, first, lanes));
    const float log_sum = logf(sum), share = smoothing / classes;
    float value = (largest - z[label]) + log_sum;
    // Without smoothing a logit of -infinity takes no part.
    if (smoothing != 0.0f) {
        float spread = 0.0f;
        for (u32 k = lane; k < classes; k += 32) spread += share * ((largest - z[k]) + log_sum);
        value = (1.0f - smoothing) * value + warp_sum(spread);
    }
    for (u32 k = lane; k < classes; k += 32)
        g[k] = expf(z[k] - largest) / sum - (k == label ? 1.0f - smoothing + share : share);
    if (lane == 0) terms[i] = {value, 1, first == label ? 2u : 0u};
}

// A thread for each element: 0 for samples that are left out, whose gradient may be unwritten.
KERNEL cross_entropy_mean(const Term *__restrict__ terms, const Score *__restrict__ score, float *gradient, u32 len,
                          u32 classes) {
    const u64 i = element();
    if (i >= len) return;
    gradient[i] = terms[i / classes].taken ? gradient[i] / (float)max(score->anchors, 1u) : 0.0f;
}
