// Network output to embeddings: transpose, L2 normalisation and the check of `Model::embed`.

// Cells of a block.
#define EMBED_CELLS 32
// Largest number of channels.
#define EMBED_DIM 256

// network [batch, dim, cells] -> embeddings [batch, cells, dim] of unit length; a zero cell stays zero.
// `lengths` [batch, cells] takes the length of each cell before; `bad` [batch], zero before
// the launch, says which cell is the first whose length is neither 1 within `tolerance` nor 0, or is not
// finite: `cells` less its index.
// 256 threads, grid [ceil(cells / 32), batch].
//
// Moves the map once in and once out: 2 * 4 * dim bytes per cell, 60x104x64 3.2 MB.
extern "C" __global__ void embed_normalise(const float* __restrict__ network, float* __restrict__ embeddings, float* __restrict__ lengths, unsigned* __restrict__ bad, int cells, int dim, float tolerance) {
    // Rows of an odd number of floats, so that the 32 cells of a channel lie in 32 banks.
    __shared__ float tile[EMBED_CELLS * (EMBED_DIM + 1)];
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int warps = blockDim.x >> 5;
    const int first = blockIdx.x * EMBED_CELLS;
    const int pitch = dim | 1;
    const size_t batch = blockIdx.y;
    const float* from = network + batch * dim * cells + first + lane;
    if (first + lane < cells) {
        for (int d = warp; d < dim; d += warps) {
            tile[lane * pitch + d] = from[(size_t)d * cells];
        }
    }
    __syncthreads();
    for (int i = warp; i < EMBED_CELLS && first + i < cells; i += warps) {
        float sum = 0.0f;
        for (int d = lane; d < dim; d += 32) {
            const float value = tile[i * pitch + d];
            sum += value * value;
        }
        sum = warp_sum(sum);
        const float length = sqrtf(sum);
        const int cell = first + i;
        // Written so that a length that is no number is bad.
        const bool good = fabsf(length - 1.0f) <= tolerance || length == 0.0f;
        if (lane == 0) {
            lengths[batch * cells + cell] = length;
            if (!good) {
                atomicMax(bad + batch, (unsigned)(cells - cell));
            }
        }
        const float scale = length > 0.0f ? 1.0f / length : 0.0f;
        float* to = embeddings + (batch * cells + cell) * dim;
        for (int d = lane; d < dim; d += 32) {
            to[d] = tile[i * pitch + d] * scale;
        }
    }
}
