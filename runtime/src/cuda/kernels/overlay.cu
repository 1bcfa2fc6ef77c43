// Draws concepts, instances and outlines onto a frame in place, as `overlay::draw` does on the CPU.
//
// `colors` holds colours in the byte order of a pixel of the frame: of the concepts, of the instances, of the
// outline around an instance and of the outline in it.

#define OVERLAY_CONCEPTS 4096
#define OVERLAY_INSTANCES 4096
#define OVERLAY_AROUND (4096 + 256)
#define OVERLAY_INSIDE (4096 + 257)

// Bits of `layers`.
#define OVERLAY_DRAW_CONCEPTS 1
#define OVERLAY_DRAW_MASKS 2
#define OVERLAY_DRAW_OUTLINES 4

namespace overlay {

// Up to four bytes as a number; at once where they lie so.
__device__ inline unsigned load(const unsigned char* at, int count) {
    if (count >= 4 && ((size_t)at & 3) == 0) {
        return *reinterpret_cast<const unsigned*>(at);
    }
    unsigned value = 0;
    for (int i = 0; i < min(count, 4); ++i) {
        value |= (unsigned)at[i] << (8 * i);
    }
    return value;
}

__device__ inline void store(unsigned char* at, int count, unsigned value) {
    if (count >= 4 && ((size_t)at & 3) == 0) {
        *reinterpret_cast<unsigned*>(at) = value;
        return;
    }
    for (int i = 0; i < min(count, 4); ++i) {
        at[i] = (unsigned char)(value >> (8 * i));
    }
}

// Each byte of `under` moved towards that of `over`; `alpha` in 256ths.
__device__ inline unsigned blend(unsigned under, unsigned over, int alpha) {
    unsigned mixed = 0;
#pragma unroll
    for (int shift = 0; shift < 32; shift += 8) {
        const int from = (int)(under >> shift & 255);
        const int to = (int)(over >> shift & 255);
        mixed |= (unsigned)((from + (((to - from) * alpha + 128) >> 8)) & 255) << shift;
    }
    return mixed;
}

struct Layers {
    const unsigned short* concepts;
    const unsigned char* labels;
    const unsigned* colors;
    int width, height;
    int alpha;
    unsigned drawn;

    // The colour of a pixel of the frame, whose bytes are `under`.
    __device__ unsigned pixel(int x, int y, unsigned under) const {
        const size_t row = (size_t)y * width;
        unsigned color = under;
        if (drawn & OVERLAY_DRAW_CONCEPTS) {
            const int concept_id = min((int)concepts[row + x], OVERLAY_CONCEPTS - 1);
            color = blend(color, colors[concept_id], alpha);
        }
        if (!(drawn & (OVERLAY_DRAW_MASKS | OVERLAY_DRAW_OUTLINES))) {
            return color;
        }
        const unsigned char here = labels[row + x];
        if (drawn & OVERLAY_DRAW_MASKS && here != 0) {
            color = blend(color, colors[OVERLAY_INSTANCES + here], alpha);
        }
        if (drawn & OVERLAY_DRAW_OUTLINES) {
            const bool edge = here != labels[(size_t)max(y - 1, 0) * width + x]
                || here != labels[(size_t)min(y + 1, height - 1) * width + x]
                || here != labels[row + max(x - 1, 0)]
                || here != labels[row + min(x + 1, width - 1)];
            if (edge) {
                color = colors[here == 0 ? OVERLAY_AROUND : OVERLAY_INSIDE];
            }
        }
        return color;
    }
};

} // namespace overlay

// Frames of 3 bytes per pixel, rows `stride` bytes apart. A thread for four neighbouring pixels of a row, 256
// threads, grid [ceil(ceil(width / 4) * height / 256)]. Bits of `layers` that are not set leave `concepts` and
// `labels` (both [height][width]) unread.
//
// Moves 3 bytes per pixel in and out and reads 3 of the layers, 1080x1920 19 MB.
extern "C" __global__ void overlay_packed_3(unsigned char* pixels, const unsigned short* __restrict__ concepts, const unsigned char* __restrict__ labels, const unsigned* __restrict__ colors, int stride, int width, int height, int alpha, unsigned layers) {
    const overlay::Layers draw = {concepts, labels, colors, width, height, alpha, layers};
    const int groups = (width + 3) / 4;
    const int y = (int)(blockIdx.x * blockDim.x + threadIdx.x) / groups;
    const int x = (int)(blockIdx.x * blockDim.x + threadIdx.x) % groups * 4;
    if (y >= height) {
        return;
    }
    const int count = min(width - x, 4);
    unsigned char* at = pixels + (size_t)y * stride + 3 * x;
    const unsigned a = overlay::load(at, 3 * count);
    const unsigned b = overlay::load(at + 4, 3 * count - 4);
    const unsigned c = overlay::load(at + 8, 3 * count - 8);
    // A pixel behind the row is taken for its last one, and not written.
    const int last = width - 1;
    const unsigned p = draw.pixel(x, y, a & 0xffffff) & 0xffffff;
    const unsigned q = draw.pixel(min(x + 1, last), y, (a >> 24 | b << 8) & 0xffffff) & 0xffffff;
    const unsigned r = draw.pixel(min(x + 2, last), y, (b >> 16 | c << 16) & 0xffffff) & 0xffffff;
    const unsigned s = draw.pixel(min(x + 3, last), y, c >> 8) & 0xffffff;
    overlay::store(at, 3 * count, p | q << 24);
    overlay::store(at + 4, 3 * count - 4, q >> 8 | r << 16);
    overlay::store(at + 8, 3 * count - 8, r >> 16 | s << 8);
}

// As `overlay_packed_3` for 4 bytes per pixel, of which those that are not set in `painted` stay as they are. A thread
// for each pixel, 256 threads, grid [ceil(width * height / 256)].
//
// Moves 4 bytes per pixel in and out and reads 3 of the layers, 1080x1920 23 MB.
extern "C" __global__ void overlay_packed_4(unsigned char* pixels, const unsigned short* __restrict__ concepts, const unsigned char* __restrict__ labels, const unsigned* __restrict__ colors, int stride, int width, int height, int alpha, unsigned layers, unsigned painted) {
    const overlay::Layers draw = {concepts, labels, colors, width, height, alpha, layers};
    const unsigned pixel = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = (int)(pixel / (unsigned)width);
    const int x = (int)(pixel % (unsigned)width);
    if (y >= height) {
        return;
    }
    unsigned char* at = pixels + (size_t)y * stride + 4 * x;
    const unsigned under = overlay::load(at, 4);
    overlay::store(at, 4, (under & ~painted) | (draw.pixel(x, y, under) & painted));
}

// NV12 frames: luma, and interleaved chroma at half size (rounded up), each with its own stride; colours are Y, U and
// V from the lowest byte. The chroma of a 2x2 block is the mean of what its pixels would have. A thread for 4x2 pixels,
// 256 threads, grid [ceil(ceil(width / 4) * ceil(height / 2) / 256)].
//
// Moves 1.5 bytes per pixel in and out and reads 3 of the layers, 1080x1920 12 MB.
extern "C" __global__ void overlay_nv12(unsigned char* luma, unsigned char* chroma, const unsigned short* __restrict__ concepts, const unsigned char* __restrict__ labels, const unsigned* __restrict__ colors, int luma_stride, int chroma_stride, int width, int height, int alpha, unsigned layers) {
    const overlay::Layers draw = {concepts, labels, colors, width, height, alpha, layers};
    const int groups = (width + 3) / 4;
    const int top = (int)(blockIdx.x * blockDim.x + threadIdx.x) / groups * 2;
    const int left = (int)(blockIdx.x * blockDim.x + threadIdx.x) % groups * 4;
    if (top >= height) {
        return;
    }
    const int count = min(width - left, 4);
    const int pairs = (count + 1) / 2 * 2;
    unsigned char* uv = chroma + (size_t)(top / 2) * chroma_stride + left;
    const unsigned under_uv = overlay::load(uv, pairs);
    // Sums of U and V, and pixels, of the left and the right block.
    int sums[2][2] = {{0, 0}, {0, 0}};
    int pixels[2] = {0, 0};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int y = top + row;
        if (y >= height) {
            break;
        }
        unsigned char* at = luma + (size_t)y * luma_stride + left;
        const unsigned under = overlay::load(at, count);
        unsigned drawn = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i < count) {
                const unsigned pixel = (under >> (8 * i) & 255) | (under_uv >> (i / 2 * 16) & 0xffff) << 8;
                const unsigned color = draw.pixel(left + i, y, pixel);
                drawn |= (color & 255) << (8 * i);
                sums[i / 2][0] += (int)(color >> 8 & 255);
                sums[i / 2][1] += (int)(color >> 16 & 255);
                pixels[i / 2] += 1;
            }
        }
        overlay::store(at, count, drawn);
    }
    unsigned drawn = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (pixels[i] > 0) {
            drawn |= (unsigned)((sums[i][0] + pixels[i] / 2) / pixels[i]) << (16 * i);
            drawn |= (unsigned)((sums[i][1] + pixels[i] / 2) / pixels[i]) << (16 * i + 8);
        }
    }
    overlay::store(uv, pairs, drawn);
}
