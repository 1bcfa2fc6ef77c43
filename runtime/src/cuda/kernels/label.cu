// Cluster of each pixel of the frame: the highest of the bilinearly upsampled cluster scores. Twin of
// `Clusters::scores` and `upsample::Upsampler`.
//
// A quad is the area between four neighbouring cell centres. A cluster whose scores at its corners all
// lie below those of another one loses in the whole quad; the few others are listed per quad, and only
// they are evaluated for its pixels.

// Clusters that the list of a quad can take.
#define LABEL_LISTED 15
// Its first byte where there are more: all are evaluated.
#define LABEL_ALL 255

// Score of each cell for the clusters of the table, [listed, cells]: the dot product of the centroid
// with embedding and place, which is linear in both, so that upsampled scores are the scores of the
// upsampled embedding. 256 threads, grid [ceil(cells / 32)].
//
// Reads the embeddings once, writes 4 bytes per cell and cluster: 60x104x64, 25 clusters 1.6 + 0.6 MB.
extern "C" __global__ void label_scores(const float* __restrict__ embeddings, const float* __restrict__ centroids, const int* __restrict__ table, float* __restrict__ scores, int height, int width, int dim) {
    __shared__ float tile[KMEANS_ROWS * (KMEANS_DIM + 1)];
    const int lane = threadIdx.x & 31;
    const int cells = height * width;
    const int first = blockIdx.x * KMEANS_ROWS;
    kmeans_load(embeddings, tile, first, cells, dim);
    __syncthreads();
    const int cell = first + lane;
    if (cell >= cells) {
        return;
    }
    const float* row = tile + lane * (dim | 1);
    const float y = (float)(cell / width) / (float)height;
    const float x = (float)(cell % width) / (float)width;
    const int channels = dim + KMEANS_PLACE;
    const int listed = table[0];
    for (int i = (threadIdx.x >> 5) * 4; i < listed; i += 32) {
        const float* vectors[4];
        for (int j = 0; j < 4; ++j) {
            vectors[j] = centroids + (size_t)table[1 + min(i + j, listed - 1)] * channels;
        }
        float values[4];
        kmeans_dots(row, vectors[0], vectors[1], vectors[2], vectors[3], dim, values);
        for (int j = 0; j < 4 && i + j < listed; ++j) {
            scores[(size_t)(i + j) * cells + cell] = values[j] + (y * vectors[j][dim] + x * vectors[j][dim + 1]);
        }
    }
}

static __device__ __forceinline__ void label_corners(const float* __restrict__ plane, int width, int top, int bottom, int left, int right, float* out) {
    out[0] = plane[top * width + left];
    out[1] = plane[top * width + right];
    out[2] = plane[bottom * width + left];
    out[3] = plane[bottom * width + right];
}

// The clusters that may win in each quad: quads [cells, 16] bytes, the number of clusters and their
// indices in the table. The quad of a cell lies below and to the right of its centre. One warp per quad.
//
// Reads the scores once (the other corners come from the cache): 60x104, 25 clusters 0.6 + 0.1 MB.
extern "C" __global__ void label_quads(const float* __restrict__ scores, const int* __restrict__ table, unsigned char* __restrict__ quads, int height, int width) {
    const int quad = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const int lane = threadIdx.x & 31;
    const int cells = height * width;
    if (quad >= cells) {
        return;
    }
    const int top = quad / width;
    const int left = quad % width;
    const int bottom = min(top + 1, height - 1);
    const int right = min(left + 1, width - 1);
    const int listed = table[0];
    float bound = CONCEPT_LOWEST;
    float corners[4];
    for (int i = lane; i < listed; i += 32) {
        label_corners(scores + (size_t)i * cells, width, top, bottom, left, right, corners);
        bound = fmaxf(bound, fminf(fminf(corners[0], corners[1]), fminf(corners[2], corners[3])));
    }
    for (int mask = 16; mask > 0; mask >>= 1) {
        bound = fmaxf(bound, __shfl_xor_sync(0xffffffff, bound, mask));
    }
    unsigned char* out = quads + (size_t)quad * (LABEL_LISTED + 1);
    int count = 0;
    for (int start = 0; start < listed; start += 32) {
        const int i = start + lane;
        bool may_win = false;
        if (i < listed) {
            label_corners(scores + (size_t)i * cells, width, top, bottom, left, right, corners);
            may_win = fmaxf(fmaxf(corners[0], corners[1]), fmaxf(corners[2], corners[3])) >= bound;
        }
        const unsigned mask = __ballot_sync(0xffffffff, may_win);
        const int at = count + __popc(mask & ((1u << lane) - 1));
        if (may_win && at < LABEL_LISTED) {
            out[1 + at] = (unsigned char)i;
        }
        count += __popc(mask);
    }
    if (lane == 0) {
        out[0] = (unsigned char)(count > LABEL_LISTED ? LABEL_ALL : count);
    }
}

// The winning cluster of each pixel as its index in the table, out [out_height, out_width]; of equal
// scores the lowest. Cells and weights of rows and columns as `upsample` has them. 256 threads, grid
// [ceil(out_width / 256), out_height].
//
// Writes 1 byte per pixel; the lists and scores come from the cache: 480x854 0.4 + 0.7 MB,
// 1080x1920 2.1 + 0.7 MB.
extern "C" __global__ void label_pixels(const float* __restrict__ scores, const int* __restrict__ table, const unsigned char* __restrict__ quads, const int* __restrict__ rows, const float* __restrict__ row_weights, const int* __restrict__ columns, const float* __restrict__ column_weights, unsigned char* __restrict__ out, int height, int width, int out_width) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y;
    if (x >= out_width) {
        return;
    }
    const int top = rows[y];
    const int left = columns[x];
    const unsigned char* list = quads + (size_t)(top * width + left) * (LABEL_LISTED + 1);
    const int count = list[0];
    int winner = 0;
    if (count == 1) {
        winner = list[1];
    } else {
        const float v = row_weights[y];
        const float u = column_weights[x];
        const int bottom = min(top + 1, height - 1);
        const int right = min(left + 1, width - 1);
        const int cells = height * width;
        const int candidates = count == LABEL_ALL ? table[0] : count;
        float best = CONCEPT_LOWEST;
        for (int i = 0; i < candidates; ++i) {
            const int index = count == LABEL_ALL ? i : list[1 + i];
            float corners[4];
            label_corners(scores + (size_t)index * cells, width, top, bottom, left, right, corners);
            const float from = (1.0f - v) * corners[0] + v * corners[2];
            const float to = (1.0f - v) * corners[1] + v * corners[3];
            const float value = (1.0f - u) * from + u * to;
            if (value > best) {
                best = value;
                winner = index;
            }
        }
    }
    out[(size_t)y * out_width + x] = (unsigned char)winner;
}
