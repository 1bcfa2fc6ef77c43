// Mask propagation, second half: instance masks at frame size from the soft labels on the grid, with the area,
// box and confidence of each instance. `labels` is a slot of the ring of soft labels, [channels][cells] with
// background first; which one, says `context` (see affinity.cu, and `found` there).
//
// As on the CPU, labels are scaled channel by channel to 0..1 over all samples at network size, and a sample is
// `(1 - u) * ((1 - v) * a + v * c) + u * ((1 - v) * b + v * d)` of the scaled corners, rounded after each step (the
// kernels are compiled without contraction to fused multiply-adds, but where `fmaf` asks for one).

namespace propagate {

__device__ inline float mix(float weight, float low, float high) {
    return (1.0f - weight) * low + weight * high;
}

// Scale and offset of each channel, into shared memory: one that is below `trace` everywhere wins nothing, one that
// varies by less than `flat` stays as it is. All threads of the block must come here.
__device__ inline void scaling(const unsigned* found, int channels, float trace, float flat, float* scales, float* offsets) {
    for (int i = threadIdx.x; i < channels; i += blockDim.x) {
        const float low = from_ordered(found[i * FOUND_SIZE + FOUND_LOW]);
        const float high = from_ordered(found[i * FOUND_SIZE + FOUND_HIGH]);
        float scale = 1.0f;
        float offset = 0.0f;
        if (high < trace) {
            // Below every scaled score, rounding included.
            scale = 0.0f;
            offset = -1.0f;
        } else if (!(high - low < flat)) {
            scale = 1.0f / (high - low);
            offset = -low * scale;
        }
        scales[i] = scale;
        offsets[i] = offset;
    }
    __syncthreads();
}

} // namespace propagate

// Smallest and largest sample of each channel at network size. A bilinear function has its extremes at the
// outermost samples of the quad between four cell centres: `edges` [2 * (height + width)] holds the weights of the
// first and last row of each row of quads, and of the columns. A thread for each quad, 256 threads, grid
// [ceil(cells / 256), channels].
//
// Reads 4 bytes per cell and channel (each cell 4 times, out of the first-level cache): 60x104 cells and 4
// channels 0.1 MB, 16 multiply-adds per cell and channel.
extern "C" __global__ void propagate_extremes(const float* __restrict__ labels, const int* __restrict__ context, const float* __restrict__ edges, unsigned* __restrict__ found, int height, int width, int channels) {
    __shared__ unsigned lows[8];
    __shared__ unsigned highs[8];
    const int cells = height * width;
    const int channel = blockIdx.y;
    const int quad = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned low = 0xffffffff;
    unsigned high = 0;
    if (quad < cells && channel < channels) {
        const float* plane = labels + ((size_t)context[CONTEXT_CURRENT] * channels + channel) * cells;
        const int y = quad / width;
        const int x = quad % width;
        const int below = min(y + 1, height - 1) * width;
        const int right = min(x + 1, width - 1);
        const float a = plane[y * width + x];
        const float b = plane[y * width + right];
        const float c = plane[below + x];
        const float d = plane[below + right];
        for (int row = 0; row < 2; ++row) {
            const float v = edges[row * height + y];
            const float start = propagate::mix(v, a, c);
            const float end = propagate::mix(v, b, d);
            for (int column = 0; column < 2; ++column) {
                const unsigned value = propagate::ordered(propagate::mix(edges[2 * height + column * width + x], start, end));
                low = min(low, value);
                high = max(high, value);
            }
        }
    }
    for (int mask = 16; mask > 0; mask >>= 1) {
        low = min(low, __shfl_xor_sync(0xffffffff, low, mask));
        high = max(high, __shfl_xor_sync(0xffffffff, high, mask));
    }
    if ((threadIdx.x & 31) == 0) {
        lows[threadIdx.x >> 5] = low;
        highs[threadIdx.x >> 5] = high;
    }
    __syncthreads();
    if (threadIdx.x == 0 && channel < channels) {
        for (int i = 1; i < (int)(blockDim.x >> 5); ++i) {
            low = min(low, lows[i]);
            high = max(high, highs[i]);
        }
        atomicMin(found + channel * FOUND_SIZE + FOUND_LOW, low);
        atomicMax(found + channel * FOUND_SIZE + FOUND_HIGH, high);
    }
}

// The channel that each cell's scaled labels are highest in; of equal ones the lowest. 256 threads, grid
// [ceil(cells / 256)].
//
// Reads 4 bytes per cell and channel: 60x104 cells and 4 channels 0.1 MB.
extern "C" __global__ void propagate_winners(const float* __restrict__ labels, const int* __restrict__ context, const unsigned* __restrict__ found, unsigned char* __restrict__ winners, int cells, int channels, float trace, float flat) {
    __shared__ float scales[256];
    __shared__ float offsets[256];
    propagate::scaling(found, channels, trace, flat, scales, offsets);
    const int cell = blockIdx.x * blockDim.x + threadIdx.x;
    if (cell >= cells) {
        return;
    }
    const float* of = labels + (size_t)context[CONTEXT_CURRENT] * channels * cells + cell;
    int winner = 0;
    float best = NO_SCORE;
    for (int channel = 0; channel < channels; ++channel) {
        const float score = scales[channel] * of[(size_t)channel * cells] + offsets[channel];
        if (score > best) {
            best = score;
            winner = channel;
        }
    }
    winners[cell] = (unsigned char)winner;
}

// Mean label of each instance over the cells that it wins, or its highest label where it wins none. A block for
// each channel, background included (which nobody reads): the sum has one order, whatever the timing. 256 threads,
// grid [channels].
//
// Reads 5 bytes per cell and channel: 60x104 cells and 4 channels 0.1 MB.
extern "C" __global__ void propagate_confidence(const float* __restrict__ labels, const int* __restrict__ context, const unsigned char* __restrict__ winners, unsigned* __restrict__ found, int cells, int channels) {
    __shared__ float sums[8];
    __shared__ float highests[8];
    __shared__ int counts[8];
    const int channel = blockIdx.x;
    float sum = 0.0f;
    float highest = 0.0f;
    int count = 0;
    if (channel < channels) {
        const float* of = labels + ((size_t)context[CONTEXT_CURRENT] * channels + channel) * cells;
        for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
            const float label = of[cell];
            highest = fmaxf(highest, label);
            if (winners[cell] == channel) {
                sum += label;
                count += 1;
            }
        }
    }
    for (int mask = 16; mask > 0; mask >>= 1) {
        sum += __shfl_xor_sync(0xffffffff, sum, mask);
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, mask));
        count += __shfl_xor_sync(0xffffffff, count, mask);
    }
    if ((threadIdx.x & 31) == 0) {
        sums[threadIdx.x >> 5] = sum;
        highests[threadIdx.x >> 5] = highest;
        counts[threadIdx.x >> 5] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0 && channel < channels) {
        for (int i = 1; i < (int)(blockDim.x >> 5); ++i) {
            sum += sums[i];
            highest = fmaxf(highest, highests[i]);
            count += counts[i];
        }
        const float confidence = count > 0 ? sum / (float)count : highest;
        found[channel * FOUND_SIZE + FOUND_CONFIDENCE] = __float_as_uint(fminf(fmaxf(confidence, 0.0f), 1.0f));
    }
}

namespace propagate {

// Counts the pixels `left..=right` of row `y` for a channel.
__device__ inline void count_run(unsigned* found, unsigned area, unsigned left, unsigned right, unsigned y, unsigned bottom) {
    atomicAdd(found + FOUND_AREA, area);
    atomicMin(found + FOUND_LEFT, left);
    atomicMax(found + FOUND_RIGHT, right);
    atomicMin(found + FOUND_TOP, y);
    atomicMax(found + FOUND_BOTTOM, bottom);
}

} // namespace propagate

// The instance of each pixel of the frame, 0 for background: `ids` [channels] of the channel with the highest
// scaled label, of equal ones the lowest; and area and box of each channel into `found`. The sample of a pixel is
// the nearest one at network size: `cells` and `weights` [out_height + out_width] hold, for each row and then each
// column, the upper or left cell and the weight of the next one. `mask` is written in whole fours. A thread for
// four neighbouring pixels in order of memory, 256 threads, grid [ceil(out_height * out_width / 1024)].
//
// Writes one byte per pixel, 480x854 0.4 MB; labels come out of the caches, as the 8x8 pixels of a cell share
// theirs. 5 multiply-adds per pixel and channel. So at few channels it runs at the speed of a memset.
extern "C" __global__ void propagate_masks(const float* __restrict__ labels, const int* __restrict__ context, const int* __restrict__ cells, const float* __restrict__ weights, const unsigned char* __restrict__ ids, unsigned* __restrict__ found, unsigned* __restrict__ mask, int height, int width, int channels, int out_height, int out_width, float trace, float flat) {
    __shared__ float scales[256];
    __shared__ float offsets[256];
    __shared__ unsigned here[256 * FOUND_SIZE];
    for (int i = threadIdx.x; i < channels; i += blockDim.x) {
        unsigned* of = here + i * FOUND_SIZE;
        of[FOUND_AREA] = of[FOUND_RIGHT] = of[FOUND_BOTTOM] = 0;
        of[FOUND_LEFT] = of[FOUND_TOP] = 0xffffffff;
    }
    propagate::scaling(found, channels, trace, flat, scales, offsets);

    const size_t plane_size = (size_t)height * width;
    const float* planes = labels + context[CONTEXT_CURRENT] * channels * plane_size;
    const unsigned pixels = (unsigned)out_height * (unsigned)out_width;
    const unsigned first = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    const unsigned count = first < pixels ? min(pixels - first, 4u) : 0;
    unsigned xs[4];
    unsigned ys[4];
    float best[4];
    unsigned winner[4];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        // A pixel behind the last one is taken for the last one, and not written.
        const unsigned pixel = min(first + i, pixels - 1);
        ys[i] = pixel / (unsigned)out_width;
        xs[i] = pixel - ys[i] * (unsigned)out_width;
        best[i] = NO_SCORE;
        winner[i] = 0;
    }
    for (int channel = 0; channel < channels && count > 0; ++channel) {
        const float* plane = planes + channel * plane_size;
        const float scale = scales[channel];
        const float offset = offsets[channel];
        unsigned y = 0xffffffff;
        int left = -1;
        float start = 0.0f;
        float end = 0.0f;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            const int cell = cells[out_height + xs[i]];
            // Neighbours mostly share a quad, and with it the values at its left and right edge.
            if (cell != left || ys[i] != y) {
                left = cell;
                y = ys[i];
                const float v = weights[y];
                const float* upper = plane + (size_t)cells[y] * width;
                const float* lower = plane + (size_t)min(cells[y] + 1, height - 1) * width;
                const int right = min(left + 1, width - 1);
                start = propagate::mix(v, scale * upper[left] + offset, scale * lower[left] + offset);
                end = propagate::mix(v, scale * upper[right] + offset, scale * lower[right] + offset);
            }
            const float score = propagate::mix(weights[out_height + xs[i]], start, end);
            if (score > best[i]) {
                best[i] = score;
                winner[i] = channel;
            }
        }
    }
    if (count > 0) {
        unsigned four = 0;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            four |= (unsigned)ids[winner[i]] << (8 * i);
        }
        mask[first / 4] = four;
    }

    // Most warps lie within one instance and row, and count themselves once.
    const bool alike = count == 4 && winner[0] == winner[1] && winner[0] == winner[2] && winner[0] == winner[3] && ys[0] == ys[3];
    const unsigned leader = __shfl_sync(0xffffffff, winner[0], 0);
    const unsigned row = __shfl_sync(0xffffffff, ys[0], 0);
    const unsigned last = __shfl_sync(0xffffffff, xs[3], 31);
    const bool whole = __ballot_sync(0xffffffff, alike && winner[0] == leader && ys[0] == row) == 0xffffffff;
    if (whole) {
        if ((threadIdx.x & 31) == 0 && leader != 0) {
            propagate::count_run(here + leader * FOUND_SIZE, 128, xs[0], last, row, row);
        }
    } else if (alike) {
        if (winner[0] != 0) {
            propagate::count_run(here + winner[0] * FOUND_SIZE, 4, xs[0], xs[3], ys[0], ys[0]);
        }
    } else {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            if (i < count && winner[i] != 0) {
                propagate::count_run(here + winner[i] * FOUND_SIZE, 1, xs[i], xs[i], ys[i], ys[i]);
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < channels; i += blockDim.x) {
        const unsigned* of = here + i * FOUND_SIZE;
        if (of[FOUND_AREA] > 0) {
            propagate::count_run(found + i * FOUND_SIZE, of[FOUND_AREA], of[FOUND_LEFT], of[FOUND_RIGHT], of[FOUND_TOP], of[FOUND_BOTTOM]);
        }
    }
}
