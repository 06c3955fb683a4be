// Tiles of products of matrices, which convolutions and dense layers share.
//
// A tile has 16 T rows and 8 T columns; each of its block's threads sums T x T elements of it. A step
// of DEPTH products for each lies in shared memory, a line of rows and one of columns for each product.

// Threads of a block, products of a step.
enum { THREADS = 128, DEPTH = 8 };

// Two warps share the tile's rows, two its columns: the first ones of this.
template <int T> __device__ __forceinline__ u32 first_row() {
    return threadIdx.x / 32 % 2 * (8 * T);
}

template <int T> __device__ __forceinline__ u32 first_column() {
    return threadIdx.x / 64 * (4 * T);
}

#if __CUDA_ARCH__ >= 800
// Adds the products of a step on tensor cores, each number in two: all products but those of two
// lower parts, which comes close to f32. The columns are the cores' rows; `sum` holds the thread's
// parts of T by T / 4 of the cores' tiles.
template <int T, int R, int C>
__device__ __forceinline__ void accumulate_tensor(const float (&rows)[DEPTH][R], const float (&columns)[DEPTH][C],
                                                  float (&sum)[T][T]) {
    const u32 group = threadIdx.x % 32 / 4, part = threadIdx.x % 4;
    u32 a[2][T / 4][4], b[2][2];
#pragma unroll
    for (int i = 0; i < T / 4; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const u32 column = first_column<T>() + i * 16 + group + e % 2 * 8;
            split(columns[part + e / 2 * 4][column], a[0][i][e], a[1][i][e]);
        }
#pragma unroll
    for (int j = 0; j < T; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++)
            split(rows[part + e * 4][first_row<T>() + j * 8 + group], b[0][e], b[1][e]);
#pragma unroll
        for (int i = 0; i < T / 4; i++) {
            multiply_tf32(&sum[j][i * 4], a[1][i], b[0]);
            multiply_tf32(&sum[j][i * 4], a[0][i], b[1]);
            multiply_tf32(&sum[j][i * 4], a[0][i], b[0]);
        }
    }
}
#endif

// Adds the products of a step. Without tensor cores a thread has four neighbours of every 32 rows of its
// warp, and of every 16 columns, so that a warp reads 128 bytes of rows at once, and 64 of columns.
template <int T, bool TENSOR, int R, int C>
__device__ __forceinline__ void accumulate(const float (&rows)[DEPTH][R], const float (&columns)[DEPTH][C],
                                           float (&sum)[T][T]) {
#if __CUDA_ARCH__ >= 800
    if (TENSOR) return accumulate_tensor(rows, columns, sum);
#endif
    const u32 row = first_row<T>() + threadIdx.x % 8 * 4;
    const u32 column = first_column<T>() + threadIdx.x % 32 / 8 * 4;
#pragma unroll
    for (int depth = 0; depth < DEPTH; depth++) {
        float x[T], y[T];
#pragma unroll
        for (int i = 0; i < T; i += 4) {
            *(float4 *)&x[i] = *(const float4 *)&rows[depth][row + i * 8];
            *(float4 *)&y[i] = *(const float4 *)&columns[depth][column + i * 4];
        }
#pragma unroll
        for (int i = 0; i < T; i++)
#pragma unroll
            for (int j = 0; j < T; j++) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
    }
}
