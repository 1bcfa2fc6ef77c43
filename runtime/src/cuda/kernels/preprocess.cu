// Frame planes to network input: resize, convert, normalise. Twin of `frame::Preprocessor`.
//
// The resize has two passes with the fixed-point weights of the CPU's library and, as there, 8-bit
// values in between: the resized planes are the CPU's to the byte. Only the conversion to f32
// differs, by the rounding of a fused multiply-add.
//
// A bound is the first source sample of an output sample in its low 16 bits and the number of
// samples in its high 16 bits.

static __device__ __forceinline__ unsigned preprocess_round(int sum, int precision) {
    const int value = sum >> precision;
    return value < 0 ? 0u : (value > 255 ? 255u : (unsigned)value);
}

// Vertical pass over one plane, four bytes of a row per thread, whatever pixels they belong to.
// source [rows, words], out [height, words], weights [height, window]. Batch in blockIdx.y / height.
//
// Moves the plane once in (neighbouring output rows share their rows in the caches) and `height`
// rows out: 1080x1920 RGB to 480 rows 6.2 + 2.8 MB.
extern "C" __global__ void preprocess_rows(const unsigned* __restrict__ source, const int* __restrict__ bounds, const int* __restrict__ weights, unsigned* __restrict__ out, int words, int height, int window, int precision, int source_step, int out_step) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int frame = blockIdx.y / height;
    const int y = blockIdx.y % height;
    if (x >= words) {
        return;
    }
    const int bound = bounds[y];
    const int first = bound & 0xffff;
    const int count = bound >> 16;
    const unsigned* from = source + (size_t)frame * source_step + (size_t)first * words + x;
    const int* weight = weights + (size_t)y * window;
    const int half = 1 << (precision - 1);
    int a = half, b = half, c = half, d = half;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
        const unsigned bytes = from[(size_t)i * words];
        const int w = weight[i];
        a += w * (int)(bytes & 0xff);
        b += w * (int)(bytes >> 8 & 0xff);
        c += w * (int)(bytes >> 16 & 0xff);
        d += w * (int)(bytes >> 24);
    }
    out[(size_t)frame * out_step + (size_t)y * words + x] =
        preprocess_round(a, precision) | preprocess_round(b, precision) << 8 |
        preprocess_round(c, precision) << 16 | preprocess_round(d, precision) << 24;
}

// Horizontal pass over packed or grey pixels, and their conversion; one output pixel per thread.
// `step` bytes per pixel with red, green and blue at the given offsets; value = clamp(gain * byte +
// bias) * scale + offset. source [height, pitch], weights [window, width], out [3, height, width].
//
// Moves the rows of the first pass once in and the input out: 480x832 from 1920 RGB 2.8 + 4.8 MB.
extern "C" __global__ void preprocess_packed(const unsigned char* __restrict__ source, const int* __restrict__ bounds, const int* __restrict__ weights, float* __restrict__ out, int width, int height, int pitch, int precision, int step, int red, int green, int blue, float gain, float bias, float scale0, float scale1, float scale2, float offset0, float offset1, float offset2, int source_step) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int frame = blockIdx.y / height;
    const int y = blockIdx.y % height;
    if (x >= width) {
        return;
    }
    const int bound = bounds[x];
    const int count = bound >> 16;
    const unsigned char* from =
        source + (size_t)frame * source_step + (size_t)y * pitch + (size_t)(bound & 0xffff) * step;
    const int half = 1 << (precision - 1);
    int r = half, g = half, b = half;
    for (int i = 0; i < count; ++i) {
        const int w = weights[(size_t)i * width + x];
        r += w * (int)from[red];
        g += w * (int)from[green];
        b += w * (int)from[blue];
        from += step;
    }
    const float rf = fminf(fmaxf((float)preprocess_round(r, precision) * gain + bias, 0.0f), 255.0f);
    const float gf = fminf(fmaxf((float)preprocess_round(g, precision) * gain + bias, 0.0f), 255.0f);
    const float bf = fminf(fmaxf((float)preprocess_round(b, precision) * gain + bias, 0.0f), 255.0f);
    const size_t plane = (size_t)width * height;
    float* to = out + (size_t)frame * 3 * plane + (size_t)y * width + x;
    to[0] = rf * scale0 + offset0;
    to[plane] = gf * scale1 + offset1;
    to[2 * plane] = bf * scale2 + offset2;
}

static __device__ __forceinline__ int preprocess_columns(const unsigned char* __restrict__ from, const int* __restrict__ weights, int count, int width, int step, int precision) {
    int sum = 1 << (precision - 1);
    for (int i = 0; i < count; ++i) {
        sum += weights[(size_t)i * width] * (int)from[(size_t)i * step];
    }
    return (int)preprocess_round(sum, precision);
}

// The same for 4:2:0 video. The chroma plane has one row of U and V per row of the output, V
// `second` bytes behind U and `step` bytes between two samples (NV12: 1 and 2; I420: half a row and 1).
//
// 480x832 from 1080x1920: 0.9 + 0.5 MB in, 4.8 MB out.
extern "C" __global__ void preprocess_video(const unsigned char* __restrict__ luma, const unsigned char* __restrict__ chroma, const int* __restrict__ luma_bounds, const int* __restrict__ luma_weights, const int* __restrict__ chroma_bounds, const int* __restrict__ chroma_weights, float* __restrict__ out, int width, int height, int luma_pitch, int chroma_pitch, int luma_precision, int chroma_precision, int step, int second, float luma_scale, float luma_offset, float red_v, float green_u, float green_v, float blue_u, float scale0, float scale1, float scale2, float offset0, float offset1, float offset2, int source_step) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int frame = blockIdx.y / height;
    const int row = blockIdx.y % height;
    if (x >= width) {
        return;
    }
    const int bound = luma_bounds[x];
    const unsigned char* from = luma + (size_t)frame * source_step + (size_t)row * luma_pitch + (bound & 0xffff);
    const int y8 = preprocess_columns(from, luma_weights + x, bound >> 16, width, 1, luma_precision);
    const int chroma_bound = chroma_bounds[x];
    from = chroma + (size_t)frame * source_step + (size_t)row * chroma_pitch + (size_t)(chroma_bound & 0xffff) * step;
    const int count = chroma_bound >> 16;
    const int u8 = preprocess_columns(from, chroma_weights + x, count, width, step, chroma_precision);
    const int v8 = preprocess_columns(from + second, chroma_weights + x, count, width, step, chroma_precision);
    const float y = (float)y8 * luma_scale + luma_offset;
    const float u = (float)u8 - 128.0f;
    const float v = (float)v8 - 128.0f;
    const float r = fminf(fmaxf(y + red_v * v, 0.0f), 255.0f);
    const float g = fminf(fmaxf(y + green_u * u + green_v * v, 0.0f), 255.0f);
    const float b = fminf(fmaxf(y + blue_u * u, 0.0f), 255.0f);
    const size_t plane = (size_t)width * height;
    float* to = out + (size_t)frame * 3 * plane + (size_t)row * width + x;
    to[0] = r * scale0 + offset0;
    to[plane] = g * scale1 + offset1;
    to[2 * plane] = b * scale2 + offset2;
}
