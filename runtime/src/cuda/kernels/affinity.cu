// Mask propagation, first half: the nearest context cells of every cell, and the labels they give it.
//
// Embeddings of the context lie in slots of a ring, row by row and channel by channel within a row,
// `[slots][height][dim][pitch]`: neighbours in a row are neighbours in memory, so that rows are copied to
// shared memory in long runs and four cells are read at once. Soft labels lie channel by channel,
// `[slots][channels][cells]`.
//
// Which slot holds which frame changes with every frame and stands in the small table `context`, so that one
// recorded sequence of launches serves all frames:
// `context[0]` context frames in use, `context[1]` slot of the frame in work, `context[2 + i]` slot of context
// frame `i` (0 the first frame, then from the latest back).

#define CONTEXT_LEN 0
#define CONTEXT_CURRENT 1
#define CONTEXT_SLOTS 2

// Target cells of a block of the search: 8 groups of 4 neighbours in each of 4 rows, a group for each lane. The four
// warps of a block look for the same cells in different parts of the window, and keep lists of their own.
#define SEARCH_COLUMNS 32
#define SEARCH_ROWS 4
#define SEARCH_WARPS 4
#define SEARCH_THREADS 128
// Floats of context rows in shared memory.
#define SEARCH_STAGE 8192
// Below every score that counts; no cell has such a list entry.
#define NO_SCORE (-3.402823466e+38f)
// Behind every cell.
#define NO_SOURCE 0x7fffffff

// What the launches of one frame find of each channel, cleared by the first of them: `found[channel * FOUND_SIZE +
// ...]`. Scores are stored as numbers in the same order, so that integer atomics find their extremes; all results
// are independent of the order in which blocks come to it.
#define FOUND_LOW 0
#define FOUND_HIGH 1
#define FOUND_AREA 2
#define FOUND_LEFT 3
#define FOUND_RIGHT 4
#define FOUND_TOP 5
#define FOUND_BOTTOM 6
#define FOUND_CONFIDENCE 7
#define FOUND_SIZE 8

namespace propagate {

// Numbers in the order of the floats.
__device__ inline unsigned ordered(float value) {
    const unsigned bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float from_ordered(unsigned number) {
    return __uint_as_float(number & 0x80000000u ? number & 0x7fffffffu : ~number);
}

// The order of candidates: from the highest score; of equal ones the one that comes first by context frame, row
// and column. It does not depend on the order in which they are met.
__device__ inline bool comes_before(float score, int source, float other_score, int other_source) {
    return score > other_score || (score == other_score && source < other_source);
}

// The best `K` candidates, in order. Small lists stay in registers: every index is known to the compiler.
template <int K> struct Best {
    float scores[K];
    int sources[K];

    __device__ void clear() {
#pragma unroll (K <= 10 ? K : 1)
        for (int i = 0; i < K; ++i) {
            scores[i] = NO_SCORE;
            sources[i] = NO_SOURCE;
        }
    }

    __device__ bool takes(float score, int source) const {
        return comes_before(score, source, scores[K - 1], sources[K - 1]);
    }

    // Puts in a candidate that the list takes; the last one falls out.
    __device__ void insert(float score, int source) {
        if (K <= 10) {
            // Without a jump, or the compiler gives up on registers.
#pragma unroll
            for (int i = K - 1; i > 0; --i) {
                const bool behind = comes_before(score, source, scores[i - 1], sources[i - 1]);
                const bool here = comes_before(score, source, scores[i], sources[i]);
                scores[i] = behind ? scores[i - 1] : here ? score : scores[i];
                sources[i] = behind ? sources[i - 1] : here ? source : sources[i];
            }
            if (comes_before(score, source, scores[0], sources[0])) {
                scores[0] = score;
                sources[0] = source;
            }
            return;
        }
        int i = K - 1;
#pragma unroll 1
        for (; i > 0 && comes_before(score, source, scores[i - 1], sources[i - 1]); --i) {
            scores[i] = scores[i - 1];
            sources[i] = sources[i - 1];
        }
        scores[i] = score;
        sources[i] = source;
    }
};

// What a thread of the search needs to know about its place.
struct SearchPlace {
    int x, y;              // first of the four target cells
    int width, dim;
    int radius_x;
    int target_step; // floats from one channel of the targets to the next
    int source_step; // the same of the context row in shared memory
};

// Scores of four target cells against `4 * Q` neighbouring context cells from column `column` on, and the lists
// that take them. `targets` and `sources` point to the first channel; `source` is the number of the context row's
// first cell. Columns from `end` on are not there. Scores below `bar` are not wanted.
template <int K, int Q>
__device__ inline void search_step(
    Best<K> (&best)[4],
    float (&bar)[4],
    const SearchPlace& place,
    const float* targets,
    const float* sources,
    int column,
    int end,
    int source
) {
    float scores[4][4 * Q];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4 * Q; ++j) {
            scores[i][j] = 0.0f;
        }
    }
    // One multiply-add per channel, in rising order, as in the CPU's search: the scores are equal to the bit where
    // that one has fused multiply-adds.
#pragma unroll 4
    for (int d = 0; d < place.dim; ++d) {
        const float4 t = *reinterpret_cast<const float4*>(targets + d * place.target_step);
        const float target[4] = {t.x, t.y, t.z, t.w};
#pragma unroll
        for (int q = 0; q < Q; ++q) {
            const float4 s = *reinterpret_cast<const float4*>(sources + d * place.source_step + 4 * q);
            const float four[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    scores[i][4 * q + j] = fmaf(target[i], four[j], scores[i][4 * q + j]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // Few scores pass, mostly none: each thread works through its own, instead of all threads through all that
        // pass in any of them.
        unsigned passed = 0;
#pragma unroll
        for (int j = 0; j < 4 * Q; ++j) {
            passed |= (unsigned)(scores[i][j] >= bar[i]) << j;
        }
        const int first = max(place.x + i - place.radius_x, 0);
        const int last = min(min(place.x + i + place.radius_x, place.width - 1), end - 1);
        while (passed != 0) {
            const int j = __ffs((int)passed) - 1;
            passed &= passed - 1;
            float score = scores[i][0];
#pragma unroll
            for (int other = 1; other < 4 * Q; ++other) {
                score = other == j ? scores[i][other] : score;
            }
            const int at = column + j;
            if (at >= first && at <= last && best[i].takes(score, source + at)) {
                best[i].insert(score, source + at);
                bar[i] = fmaxf(bar[i], best[i].scores[K - 1]);
            }
        }
    }
}

// See `propagate_search_5`.
template <int K>
__device__ inline void search(
    const float* ring,
    const int* context,
    float* scores,
    int* sources,
    int height,
    int width,
    int dim,
    int pitch,
    int radius_y,
    int radius_x,
    int k,
    float4* stage,
    unsigned* bars
) {
    const int frame = blockIdx.y;
    if (frame >= context[CONTEXT_LEN]) {
        return;
    }
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int tiles = (width + SEARCH_COLUMNS - 1) / SEARCH_COLUMNS;
    const int left = blockIdx.x % tiles * SEARCH_COLUMNS;
    const int top = blockIdx.x / tiles * SEARCH_ROWS;
    const size_t slot_size = (size_t)height * dim * pitch;
    const float* features = ring + context[CONTEXT_SLOTS + frame] * slot_size;

    SearchPlace place;
    place.x = left + (lane & 7) * 4;
    place.y = top + (lane >> 3);
    place.width = width;
    place.dim = dim;
    place.radius_x = radius_x;
    place.target_step = pitch;
    const bool active = place.x < width && place.y < height;
    const float* targets = ring + context[CONTEXT_CURRENT] * slot_size + (active ? (size_t)place.y * dim * pitch + place.x : 0);

    // A cell's list of one warp bounds what the others need to keep: its last score is not above the last one of the
    // merged list.
    bars[threadIdx.x] = ordered(NO_SCORE);
    Best<K> best[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        best[i].clear();
    }

    // Columns and rows that some cell of the block sees. Columns in whole fours.
    const int reach = (radius_x + 3) & ~3;
    const int first_column = max(left - reach, 0);
    const int end_column = min(left + SEARCH_COLUMNS + reach, pitch);
    const int first_row = max(top - radius_y, 0);
    const int end_row = min(top + SEARCH_ROWS + radius_y, height);
    // Rows in shared memory at a time, and columns, a power of two. Where there are fewer rows than warps, several
    // warps share a row.
    const int rows = dim <= 32 ? 4 : dim <= 64 ? 2 : 1;
    const int shift = dim <= 128 ? 6 : 5;
    const int columns = 1 << shift;
    const int sharing = SEARCH_WARPS / rows;
    const int stages = (end_row - first_row + rows - 1) / rows;
    place.source_step = columns;

    for (int segment = first_column; segment < end_column; segment += columns) {
        const int segment_end = min(segment + columns, end_column);
        const int from = max(place.x - reach, segment) + warp % sharing * 8;
        const int to = min(place.x + 4 + reach, segment_end);
        for (int i = 0; i < stages; ++i) {
            // From the middle outwards: the most similar cells are mostly near, and lists that are good early
            // seldom change.
            const int middle = (stages - 1) / 2;
            const int at = first_row + (middle + (i % 2 == 1 ? (i + 1) / 2 : -(i / 2))) * rows;
            const int count = min(rows, end_row - at);
            __syncthreads();
            const int fours = count * dim << (shift - 2);
            for (int f = threadIdx.x; f < fours; f += SEARCH_THREADS) {
                const int channel = f >> (shift - 2);
                const int column = segment + (f & (columns / 4 - 1)) * 4;
                float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
                if (column < pitch) {
                    value = *reinterpret_cast<const float4*>(features + ((size_t)at * dim + channel) * pitch + column);
                }
                stage[f] = value;
            }
            __syncthreads();
            const int r = warp / sharing;
            const int y = at + r;
            if (!active || r >= count || y < place.y - radius_y || y > place.y + radius_y) {
                continue;
            }
            float bar[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                bar[j] = fmaxf(best[j].scores[K - 1], from_ordered(bars[j * 32 + lane]));
            }
            const float* row = reinterpret_cast<const float*>(stage) + r * dim * columns;
            const int source = (frame * height + y) * width;
            for (int column = from; column < to; column += 8 * sharing) {
                const float* at_column = row + (column - segment);
                if (column + 4 < to) {
                    search_step<K, 2>(best, bar, place, targets, at_column, column, segment_end, source);
                } else {
                    search_step<K, 1>(best, bar, place, targets, at_column, column, segment_end, source);
                }
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                atomicMax(bars + j * 32 + lane, ordered(bar[j]));
            }
        }
    }

    if (active) {
        const size_t cells = (size_t)height * width;
        const size_t list = (size_t)frame * SEARCH_WARPS + warp;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const size_t cell = (size_t)place.y * width + place.x + i;
#pragma unroll (K <= 10 ? K : 1)
            for (int p = 0; p < K; ++p) {
                // What lies behind the end of a list is not read.
                const bool ended = p > 0 && best[i].sources[max(p - 1, 0)] == NO_SOURCE;
                if (p < k && place.x + i < width && !ended) {
                    scores[(list * k + p) * cells + cell] = best[i].scores[p];
                    sources[(list * k + p) * cells + cell] = best[i].sources[p];
                }
            }
        }
    }
}

} // namespace propagate

// embeddings [cells][dim] -> slot `context[1]` of the ring [slots][height][dim][pitch]; columns behind the width
// are left as they are (zero). 256 threads, grid [ceil(width / 32) * height, ceil(dim / 32)].
//
// Moves the map once in and once out: 8 * dim bytes per cell, 60x104x32 1.6 MB.
extern "C" __global__ void propagate_store(const float* __restrict__ embeddings, float* __restrict__ ring, const int* __restrict__ context, int height, int width, int dim, int pitch) {
    // A column more, so that reading down a column meets all banks.
    __shared__ float tile[32][33];
    const int tiles = (width + 31) / 32;
    const int y = blockIdx.x / tiles;
    const int left = blockIdx.x % tiles * 32;
    const int channel = blockIdx.y * 32;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    for (int x = warp; x < 32; x += 8) {
        if (y < height && left + x < width && channel + lane < dim) {
            tile[x][lane] = embeddings[((size_t)y * width + left + x) * dim + channel + lane];
        }
    }
    __syncthreads();
    float* to = ring + ((size_t)context[CONTEXT_CURRENT] * height + y) * dim * pitch;
    for (int d = warp; d < 32; d += 8) {
        if (y < height && left + lane < width && channel + d < dim) {
            to[(size_t)(channel + d) * pitch + left + lane] = tile[lane][d];
        }
    }
}

// Candidates for the `k` best cells, k <= 5, of each cell in the window of each context frame: `scores` and `sources`
// [frames * 4][k][cells], source = context frame * cells + cell; lists end with NO_SOURCE. dim <= 256, pitch a
// multiple of 4. 128 threads, grid [ceil(width / 32) * ceil(height / 4), frames].
//
// For 60x104 cells, 32 channels, radius 12 and 8 frames: 1.0 G multiply-adds that count, 1.25 G with those of columns
// and rows at the borders of windows; 32 of them for 3 reads of 16 bytes, two from shared memory and one, of the
// targets, from the first-level cache, where those of a block take 16 KB. A block reads (4 + 24) x (32 + 24) cells of a
// frame, 12 for each of its own, once each: 80 MB in all out of the second-level cache, which holds the ring of
// 7 MB; it writes 8 MB of lists at most. 480 blocks. For 135x240 cells five times as much of everything. So it is
// bound by arithmetic, not by memory.
extern "C" __global__ void __launch_bounds__(128, 4) propagate_search_5(const float* __restrict__ ring, const int* __restrict__ context, float* __restrict__ scores, int* __restrict__ sources, int height, int width, int dim, int pitch, int radius_y, int radius_x, int k) {
    __shared__ float4 stage[SEARCH_STAGE / 4];
    __shared__ unsigned bars[SEARCH_THREADS];
    propagate::search<5>(ring, context, scores, sources, height, width, dim, pitch, radius_y, radius_x, k, stage, bars);
}

// As `propagate_search_5` for k <= 10.
extern "C" __global__ void __launch_bounds__(128, 3) propagate_search_10(const float* __restrict__ ring, const int* __restrict__ context, float* __restrict__ scores, int* __restrict__ sources, int height, int width, int dim, int pitch, int radius_y, int radius_x, int k) {
    __shared__ float4 stage[SEARCH_STAGE / 4];
    __shared__ unsigned bars[SEARCH_THREADS];
    propagate::search<10>(ring, context, scores, sources, height, width, dim, pitch, radius_y, radius_x, k, stage, bars);
}

// As `propagate_search_5` for k <= 64, with lists in local memory.
extern "C" __global__ void __launch_bounds__(128) propagate_search_64(const float* __restrict__ ring, const int* __restrict__ context, float* __restrict__ scores, int* __restrict__ sources, int height, int width, int dim, int pitch, int radius_y, int radius_x, int k) {
    __shared__ float4 stage[SEARCH_STAGE / 4];
    __shared__ unsigned bars[SEARCH_THREADS];
    propagate::search<64>(ring, context, scores, sources, height, width, dim, pitch, radius_y, radius_x, k, stage, bars);
}

namespace propagate {

// See `propagate_labels_5`.
template <int K>
__device__ inline void labels(
    const float* scores,
    const int* sources,
    const int* context,
    float* ring,
    unsigned* found,
    int cells,
    int channels,
    int k,
    float temperature
) {
    // The last launches are done with what they found, the next ones have not begun.
    if (blockIdx.x == 0) {
        for (int i = threadIdx.x; i < channels; i += blockDim.x) {
            unsigned* of = found + i * FOUND_SIZE;
            of[FOUND_LOW] = of[FOUND_LEFT] = of[FOUND_TOP] = 0xffffffff;
            of[FOUND_HIGH] = of[FOUND_AREA] = of[FOUND_RIGHT] = of[FOUND_BOTTOM] = of[FOUND_CONFIDENCE] = 0;
        }
    }
    const int cell = blockIdx.x * blockDim.x + threadIdx.x;
    if (cell >= cells) {
        return;
    }
    Best<K> best;
    best.clear();
    const int lists = context[CONTEXT_LEN] * SEARCH_WARPS;
    for (int list = 0; list < lists; ++list) {
        // Lists are in order: behind the first that is not taken nothing is.
        for (int p = 0; p < k; ++p) {
            const size_t from = ((size_t)list * k + p) * cells + cell;
            const float score = scores[from];
            const int source = sources[from];
            if (!best.takes(score, source)) {
                break;
            }
            best.insert(score, source);
        }
    }
    float share[K];
    const float* from[K];
    float total = 0.0f;
    int kept = 0;
#pragma unroll (K <= 10 ? K : 1)
    for (int p = 0; p < K; ++p) {
        share[p] = 0.0f;
        from[p] = ring;
        if (p < k && best.sources[p] != NO_SOURCE) {
            share[p] = expf((best.scores[p] - best.scores[0]) / temperature);
            total += share[p];
            const int slot = context[CONTEXT_SLOTS + best.sources[p] / cells];
            from[p] = ring + (size_t)slot * channels * cells + best.sources[p] % cells;
            kept = p + 1;
        }
    }
    // False also for what is not a number.
    const bool comparable = kept > 0 && total <= 3.402823466e+38f;
    float* to = ring + (size_t)context[CONTEXT_CURRENT] * channels * cells + cell;
#pragma unroll (K <= 10 ? K : 1)
    for (int p = 0; p < K; ++p) {
        share[p] = comparable ? share[p] / total : 0.0f;
    }
    for (int channel = 0; channel < channels; ++channel) {
        float sum = channel == 0 && !comparable ? 1.0f : 0.0f;
        if (comparable) {
#pragma unroll (K <= 10 ? K : 1)
            for (int p = 0; p < K; ++p) {
                if (p < kept) {
                    sum += share[p] * from[p][(size_t)channel * cells];
                }
            }
        }
        to[(size_t)channel * cells] = sum;
    }
}

} // namespace propagate

// Merges the lists of the search and sums the labels [slots][channels][cells] of the best `k` cells, k <= 5, with
// the weights exp(score / temperature), normalised over them, into the slot of the frame in work. A cell without
// any comparable score becomes background. Clears `found` for the launches that follow. 64 threads, grid
// [ceil(cells / 64)], which gives a grid of 60x104 cells 98 blocks.
//
// For 60x104 cells, 8 frames, k = 5 and 4 channels: 8 MB of lists, of which the tails are mostly not read,
// 0.5 MB of labels gathered from near places and 0.1 MB written.
extern "C" __global__ void propagate_labels_5(const float* __restrict__ scores, const int* __restrict__ sources, const int* __restrict__ context, float* ring, unsigned* __restrict__ found, int cells, int channels, int k, float temperature) {
    propagate::labels<5>(scores, sources, context, ring, found, cells, channels, k, temperature);
}

// As `propagate_labels_5` for k <= 10.
extern "C" __global__ void propagate_labels_10(const float* __restrict__ scores, const int* __restrict__ sources, const int* __restrict__ context, float* ring, unsigned* __restrict__ found, int cells, int channels, int k, float temperature) {
    propagate::labels<10>(scores, sources, context, ring, found, cells, channels, k, temperature);
}

// As `propagate_labels_5` for k <= 64, with lists in local memory.
extern "C" __global__ void propagate_labels_64(const float* __restrict__ scores, const int* __restrict__ sources, const int* __restrict__ context, float* ring, unsigned* __restrict__ found, int cells, int channels, int k, float temperature) {
    propagate::labels<64>(scores, sources, context, ring, found, cells, channels, k, temperature);
}
