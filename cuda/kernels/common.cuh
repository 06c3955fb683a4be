// What every file of kernels begins with.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void
#define INFINITY_F __int_as_float(0x7f800000)
#define NAN_F __int_as_float(0x7fffffff)

// The element of a thread that takes one each.
__device__ __forceinline__ u64 element() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// Whether x takes the place of the largest so far; NaN beats all but NaN.
__device__ __forceinline__ bool beats(float x, float best) { return x > best || (x != x && best == best); }

// Activations that comparisons make: such that NaN passes. TANH is none of them, and AS_IT_IS does nothing.
enum { RELU, RELU6, LEAKY, TANH, AS_IT_IS };

__device__ __forceinline__ float activated(float v, u32 kind, float slope) {
    const float low = v <= 0.0f ? kind == LEAKY ? slope * v : 0.0f : v;
    return kind >= TANH ? v : kind == RELU6 && low >= 6.0f ? 6.0f : low;
}

// The sum over a warp, in an order that depends on nothing; every lane has it.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int lanes = 16; lanes; lanes >>= 1) v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}

// The sum over a block of up to 1024 threads, whole warps; every thread has it. `room` is 32 floats
// of shared memory, free again after the call.
__device__ __forceinline__ float block_sum(float v, float *room) {
    v = warp_sum(v);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (lane == 0) room[warp] = v;
    __syncthreads();
    v = lane < (blockDim.x + 31) / 32 ? room[lane] : 0.0f;
    v = warp_sum(v);
    __syncthreads();
    return v;
}

// Philox4x32-10 (Salmon et al., SC 2011), as everywhere in this library.
__device__ __forceinline__ uint4 philox(uint4 c, u32 key0, u32 key1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 p = (u64)c.x * 0xd2511f53u, q = (u64)c.z * 0xcd9e8d57u;
        c = make_uint4((u32)(q >> 32) ^ c.y ^ key0, (u32)q, (u32)(p >> 32) ^ c.w ^ key1, (u32)p);
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return c;
}

#if __CUDA_ARCH__ >= 800
// c += a b of 16 x 8 by 8 x 8 in TF32, over a warp.
__device__ __forceinline__ void multiply_tf32(float *c, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A number in two of TF32: its upper bits and what these leave. Products of both but the two lesser
// come to nearly f32. (Rounding to the nearest takes three instructions where this takes one, and
// kernels would be bound by them.) What is not finite gives NaN: who reads the sums looks for it.
__device__ __forceinline__ void split(float v, u32 &upper, u32 &lower) {
    upper = __float_as_uint(v) & 0xffffe000u;
    lower = __float_as_uint(v - __uint_as_float(upper));
}
#endif
