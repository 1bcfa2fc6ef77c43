// Spherical k-means over one embedding map and the concepts of its clusters. Twin of
// `concepts::kmeans` and `concepts::codebook`.
//
// A feature is an embedding with its place (row / height, column / width) appended, at unit length.
// Features are not stored: their lengths are, and the length does not change which cluster wins.
// Sums run over cells in a fixed order and never through atomics on floats, so that equal frames
// give equal clusters; they differ from the CPU's by the order of the additions.
//
// Equal labels give equal centroids: `changed[round]` says whether the round before changed a
// label, and the kernels of a round end at once where it did not, as the loop of the CPU does.

// Cells or vectors that a block holds in shared memory.
#define KMEANS_ROWS 32
// Largest number of channels of an embedding.
#define KMEANS_DIM 256
// Channels of a place.
#define KMEANS_PLACE 2
// Concepts that a block compares with the prototypes.
#define KMEANS_CONCEPTS 64
// Largest number of clusters, rounded up.
#define KMEANS_CLUSTERS 256
// Below every score: minus infinity, for which NVRTC has no name.
#define CONCEPT_LOWEST __uint_as_float(0xff800000u)

// Stores rows [first, first + 32) of vectors [count, dim] in `tile`, `dim | 1` floats apart, so that one
// channel of 32 rows lies in 32 banks.
static __device__ __forceinline__ void kmeans_load(const float* __restrict__ vectors, float* tile, int first, int count, int dim) {
    const int rows = min(KMEANS_ROWS, count - first);
    const int lane = threadIdx.x & 31;
    const float* from = vectors + (size_t)first * dim;
    for (int row = threadIdx.x >> 5; row < rows; row += blockDim.x >> 5) {
        for (int d = lane; d < dim; d += 32) {
            tile[row * (dim | 1) + d] = from[(size_t)row * dim + d];
        }
    }
}

// Dot products of a row in shared memory with four vectors, which the whole warp shares.
static __device__ __forceinline__ void kmeans_dots(const float* row, const float* a, const float* b, const float* c, const float* d, int dim, float* out) {
    float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
#pragma unroll 4
    for (int i = 0; i < dim; ++i) {
        const float value = row[i];
        s0 = fmaf(value, a[i], s0);
        s1 = fmaf(value, b[i], s1);
        s2 = fmaf(value, c[i], s2);
        s3 = fmaf(value, d[i], s3);
    }
    out[0] = s0;
    out[1] = s1;
    out[2] = s2;
    out[3] = s3;
}

// Block of each cell as its first label, and one over the length of its feature. One warp per cell.
//
// Reads the embeddings once: 4 * dim bytes per cell, 60x104x64 1.6 MB.
extern "C" __global__ void kmeans_start(const float* __restrict__ embeddings, float* __restrict__ scales, unsigned char* __restrict__ labels, unsigned* __restrict__ changed, int height, int width, int dim, int block_height, int block_width) {
    const int cell = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const int lane = threadIdx.x & 31;
    if (cell >= height * width) {
        return;
    }
    float sum = 0.0f;
    for (int d = lane; d < dim; d += 32) {
        const float value = embeddings[(size_t)cell * dim + d];
        sum += value * value;
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        const int row = cell / width;
        const int column = cell % width;
        const float y = (float)row / (float)height;
        const float x = (float)column / (float)width;
        scales[cell] = 1.0f / fmaxf(sqrtf(sum + (y * y + x * x)), 1e-12f);
        const int rows = (height + block_height - 1) / block_height;
        labels[cell] = (unsigned char)(row / block_height + rows * (column / block_width));
        if (cell == 0) {
            changed[0] = 1;
        }
    }
}

// Sum of the features of each cluster, scaled to unit length: the first `channels` of dim + 2 become out
// [clusters, channels]; members [clusters] takes its cells. With `features` 0 the embeddings are summed
// instead of the features. 256 threads, grid [slices, clusters]: each block sums one slice of the cells,
// partial [slices, clusters, dim + 2] and counts [slices, clusters], and the last one of a cluster adds the
// slices up, always from the first to the last. `done` [clusters] is zero before and after.
//
// Every cell belongs to one cluster, so all blocks together read the embeddings once, and the labels
// (1 byte per cell) once per cluster: 60x104x64 with 25 clusters 1.8 MB, and 0.1 MB of partial sums.
extern "C" __global__ void kmeans_centroids(const float* __restrict__ embeddings, const float* __restrict__ scales, const unsigned char* __restrict__ labels, const unsigned* __restrict__ changed, float* partial, unsigned* counts, unsigned* done, float* __restrict__ out, unsigned* __restrict__ members_out, int height, int width, int dim, int slice, int channels, int round, int features) {
    __shared__ int list[256];
    __shared__ int found[8];
    __shared__ float sums[8][KMEANS_DIM + KMEANS_PLACE];
    __shared__ float squares[8];
    __shared__ bool last;
    if (changed[round] == 0) {
        return;
    }
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int cluster = blockIdx.y;
    const int cells = height * width;
    const int end = min(cells, (int)(blockIdx.x + 1) * slice);
    float sum[KMEANS_DIM / 32];
#pragma unroll
    for (int j = 0; j < KMEANS_DIM / 32; ++j) {
        sum[j] = 0.0f;
    }
    float sum_y = 0.0f, sum_x = 0.0f;
    int members = 0;
    for (int first = blockIdx.x * slice; first < end; first += 256) {
        // The cells of the cluster, in their order.
        const int candidate = first + threadIdx.x;
        const bool own = candidate < end && labels[candidate] == cluster;
        const unsigned mask = __ballot_sync(0xffffffff, own);
        if (lane == 0) {
            found[warp] = __popc(mask);
        }
        __syncthreads();
        int before = 0, total = 0;
        for (int w = 0; w < 8; ++w) {
            before += w < warp ? found[w] : 0;
            total += found[w];
        }
        if (own) {
            list[before + __popc(mask & ((1u << lane) - 1))] = candidate;
        }
        __syncthreads();
        // Each warp takes every eighth of them.
#pragma unroll 2
        for (int i = warp; i < total; i += 8) {
            const int cell = list[i];
            const float scale = features ? scales[cell] : 1.0f;
            const float* from = embeddings + (size_t)cell * dim;
#pragma unroll
            for (int j = 0; j < KMEANS_DIM / 32; ++j) {
                if (lane + 32 * j < dim) {
                    sum[j] += from[lane + 32 * j] * scale;
                }
            }
            sum_y += (float)(cell / width) / (float)height * scale;
            sum_x += (float)(cell % width) / (float)width * scale;
        }
        members += total;
        // The list is written again.
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < KMEANS_DIM / 32; ++j) {
        if (lane + 32 * j < dim) {
            sums[warp][lane + 32 * j] = sum[j];
        }
    }
    if (lane == 0) {
        sums[warp][dim] = sum_y;
        sums[warp][dim + 1] = sum_x;
    }
    __syncthreads();
    const int slices = gridDim.x;
    const int clusters = gridDim.y;
    const size_t slot = (size_t)blockIdx.x * clusters + cluster;
    const int pitch = dim + KMEANS_PLACE;
    for (int c = threadIdx.x; c < pitch; c += blockDim.x) {
        float all = 0.0f;
        for (int w = 0; w < 8; ++w) {
            all += sums[w][c];
        }
        partial[slot * pitch + c] = all;
    }
    if (threadIdx.x == 0) {
        counts[slot] = (unsigned)members;
    }
    // What this block has written is seen before its mark.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(done + cluster, 1u) == (unsigned)slices - 1;
    }
    __syncthreads();
    if (!last) {
        return;
    }
    __threadfence();
    // dim + 2 channels for 256 threads: at most two each.
    const volatile float* parts = partial;
    float total[2] = {0.0f, 0.0f};
    float square = 0.0f;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int c = threadIdx.x + 256 * j;
        if (c < channels) {
#pragma unroll 4
            for (int s = 0; s < slices; ++s) {
                total[j] += parts[((size_t)s * clusters + cluster) * pitch + c];
            }
            square += total[j] * total[j];
        }
    }
    square = warp_sum(square);
    if (lane == 0) {
        squares[warp] = square;
    }
    __syncthreads();
    square = 0.0f;
    for (int w = 0; w < 8; ++w) {
        square += squares[w];
    }
    const float scale = 1.0f / fmaxf(sqrtf(square), 1e-12f);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int c = threadIdx.x + 256 * j;
        if (c < channels) {
            out[(size_t)cluster * channels + c] = total[j] * scale;
        }
    }
    if (threadIdx.x == 0) {
        const volatile unsigned* numbers = counts;
        unsigned count = 0;
        for (int s = 0; s < slices; ++s) {
            count += numbers[(size_t)s * clusters + cluster];
        }
        members_out[cluster] = count;
        done[cluster] = 0;
    }
}

// Cluster of the highest dot product for each cell, of equal ones the lowest; clusters without
// members take no part. 256 threads, grid [ceil(cells / 32)].
//
// Reads the embeddings once and the centroids once per block (from the cache): 60x104x64 1.6 MB.
extern "C" __global__ void kmeans_assign(const float* __restrict__ embeddings, const float* __restrict__ centroids, const unsigned* __restrict__ members, unsigned char* __restrict__ labels, unsigned* __restrict__ changed, int height, int width, int dim, int clusters, int round) {
    __shared__ float tile[KMEANS_ROWS * (KMEANS_DIM + 1)];
    __shared__ float best[8][KMEANS_ROWS];
    __shared__ int winner[8][KMEANS_ROWS];
    if (changed[round] == 0) {
        return;
    }
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int cells = height * width;
    const int first = blockIdx.x * KMEANS_ROWS;
    kmeans_load(embeddings, tile, first, cells, dim);
    __syncthreads();
    // Lanes behind the last cell compute something that nobody reads.
    const int cell = min(first + lane, cells - 1);
    const float* row = tile + (cell - first) * (dim | 1);
    const float y = (float)(cell / width) / (float)height;
    const float x = (float)(cell % width) / (float)width;
    const int channels = dim + KMEANS_PLACE;
    float high = CONCEPT_LOWEST;
    int label = 0;
    for (int k = warp * 4; k < clusters; k += 32) {
        const float* vectors[4];
        for (int j = 0; j < 4; ++j) {
            vectors[j] = centroids + (size_t)min(k + j, clusters - 1) * channels;
        }
        float scores[4];
        kmeans_dots(row, vectors[0], vectors[1], vectors[2], vectors[3], dim, scores);
        for (int j = 0; j < 4 && k + j < clusters; ++j) {
            const float score = scores[j] + (y * vectors[j][dim] + x * vectors[j][dim + 1]);
            if (score > high && members[k + j] > 0) {
                high = score;
                label = k + j;
            }
        }
    }
    best[warp][lane] = high;
    winner[warp][lane] = label;
    __syncthreads();
    if (warp == 0) {
        for (int w = 1; w < 8; ++w) {
            const float score = best[w][lane];
            if (score > high || (score == high && score > CONCEPT_LOWEST && winner[w][lane] < label)) {
                high = score;
                label = winner[w][lane];
            }
        }
        const bool other = first + lane < cells && labels[cell] != label;
        if (other) {
            labels[cell] = (unsigned char)label;
        }
        if (__ballot_sync(0xffffffff, other) != 0 && lane == 0) {
            atomicOr(changed + round + 1, 1u);
        }
    }
}

// The nearest of 64 concepts to each prototype: best, row [chunks, clusters].
// 256 threads, grid [ceil(concepts / 64), ceil(clusters / 32)].
//
// Reads the codebook once: 4 * dim bytes per concept, 512x64 131 kB, 4096x256 4.2 MB.
extern "C" __global__ void concept_nearest(const float* __restrict__ prototypes, const float* __restrict__ codebook, float* __restrict__ best_out, int* __restrict__ row_out, int clusters, int concepts, int dim) {
    __shared__ float tile[KMEANS_ROWS * (KMEANS_DIM + 1)];
    __shared__ float best[8][KMEANS_ROWS];
    __shared__ int winner[8][KMEANS_ROWS];
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int first = blockIdx.y * KMEANS_ROWS;
    kmeans_load(prototypes, tile, first, clusters, dim);
    __syncthreads();
    const int cluster = min(first + lane, clusters - 1);
    const float* row = tile + (cluster - first) * (dim | 1);
    const int begin = blockIdx.x * KMEANS_CONCEPTS + warp * 8;
    float high = CONCEPT_LOWEST;
    int nearest = 0;
    for (int k = begin; k < begin + 8 && k < concepts; k += 4) {
        const float* vectors[4];
        for (int j = 0; j < 4; ++j) {
            vectors[j] = codebook + (size_t)min(k + j, concepts - 1) * dim;
        }
        float scores[4];
        kmeans_dots(row, vectors[0], vectors[1], vectors[2], vectors[3], dim, scores);
        for (int j = 0; j < 4 && k + j < concepts; ++j) {
            if (scores[j] > high) {
                high = scores[j];
                nearest = k + j;
            }
        }
    }
    best[warp][lane] = high;
    winner[warp][lane] = nearest;
    __syncthreads();
    if (warp == 0 && first + lane < clusters) {
        // The warps have their concepts in ascending order: equal scores leave the lowest.
        for (int w = 1; w < 8; ++w) {
            if (best[w][lane] > high) {
                high = best[w][lane];
                nearest = winner[w][lane];
            }
        }
        best_out[(size_t)blockIdx.x * clusters + cluster] = high;
        row_out[(size_t)blockIdx.x * clusters + cluster] = nearest;
    }
}

// The clusters that have cells, in ascending order, with their concepts. table: number of them, then
// 256 each of: cluster, concept, similarity. The similarity is stored as (cosine + 1) * 2^23, an integer,
// so that sums of it do not depend on their order. One block of 256 threads.
//
// A few kB.
extern "C" __global__ void concept_table(const float* __restrict__ best, const int* __restrict__ row, const unsigned* __restrict__ members, int* __restrict__ table, int clusters, int chunks) {
    __shared__ int found[8];
    const int cluster = threadIdx.x;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const bool present = cluster < clusters && members[cluster] > 0;
    const unsigned mask = __ballot_sync(0xffffffff, present);
    if (lane == 0) {
        found[warp] = __popc(mask);
    }
    __syncthreads();
    int before = 0, total = 0;
    for (int w = 0; w < 8; ++w) {
        before += w < warp ? found[w] : 0;
        total += found[w];
    }
    if (threadIdx.x == 0) {
        table[0] = total;
    }
    if (present) {
        float high = CONCEPT_LOWEST;
        int nearest = 0;
        for (int c = 0; c < chunks; ++c) {
            const float score = best[(size_t)c * clusters + cluster];
            if (score > high) {
                high = score;
                nearest = row[(size_t)c * clusters + cluster];
            }
        }
        const int index = before + __popc(mask & ((1u << lane) - 1));
        table[1 + index] = cluster;
        table[1 + KMEANS_CLUSTERS + index] = nearest;
        table[1 + 2 * KMEANS_CLUSTERS + index] = (int)rintf((fminf(fmaxf(high, -1.0f), 1.0f) + 1.0f) * 8388608.0f);
    }
}
