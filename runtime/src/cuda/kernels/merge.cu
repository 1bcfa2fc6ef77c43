// Touching areas of one concept become one segment. Twin of `concepts::merge`.
//
// A warp takes a strip of 128 pixels of a row and keeps it in registers; runs of equal concept and of
// equal cluster are bits of ballots. Runs end at the borders of strips. The first pixel of each
// concept run is a node of a union-find forest, `parent` [pixels], in which parents have lower
// indices than their children; only nodes and the last pixels of strips have a valid entry. The root of a
// segment thus is its first pixel in raster order, and roots are numbered in that order.
//
// Sums are of integers, so that they do not depend on the order of the atomics.

// Pixels of a strip: four groups of a warp.
#define MERGE_STRIP 128
// Marks the entry of a root that holds the number of its segment.
#define MERGE_NUMBERED 0x80000000u
// Words of a segment's record: concept, left, top, right, bottom, area, similarity sum low and high.
#define MERGE_RECORD 8

// Strip of this warp, or false behind the last one.
static __device__ __forceinline__ bool merge_strip(int width, int height, int* y, int* base, int* strip) {
    const int strips = (width + MERGE_STRIP - 1) / MERGE_STRIP;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= (long long)strips * height) {
        return false;
    }
    *y = (int)(warp / strips);
    *strip = (int)(warp % strips);
    *base = *strip * MERGE_STRIP;
    return true;
}

// Clusters and concepts of the four pixels of this lane; -1 behind the end of the row.
static __device__ __forceinline__ void merge_load(const unsigned char* __restrict__ clusters, const int* __restrict__ table, int width, int y, int base, int* cluster, int* label) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int x = base + 32 * j + lane;
        cluster[j] = x < width ? (int)clusters[(size_t)y * width + x] : -1;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        label[j] = cluster[j] < 0 ? -1 : table[1 + KMEANS_CLUSTERS + cluster[j]];
    }
}

// Bits of the pixels at which a run of equal values begins; the first of the strip always does.
static __device__ __forceinline__ void merge_runs_of(const int* value, unsigned* begins) {
    const int lane = threadIdx.x & 31;
    int last = -2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        int left = __shfl_up_sync(0xffffffff, value[j], 1);
        left = lane == 0 ? last : left;
        begins[j] = __ballot_sync(0xffffffff, left != value[j]);
        last = __shfl_sync(0xffffffff, value[j], 31);
    }
}

// Where the run of the pixel of this lane in group `j` begins, from the start of the strip.
static __device__ __forceinline__ int merge_begin(const unsigned* begins, int j) {
    const int lane = threadIdx.x & 31;
    unsigned mask = begins[j] & (0xffffffffu >> (31 - lane));
    // Unrolled, so that the array stays in registers.
#pragma unroll
    for (int g = 3; g > 0; --g) {
        if (g <= j) {
            if (mask != 0) {
                return 32 * g + 31 - __clz(mask);
            }
            mask = begins[g - 1];
        }
    }
    return 31 - __clz(mask);
}

static __device__ __forceinline__ bool merge_begins(const unsigned* begins, int j) {
    return (begins[j] >> (threadIdx.x & 31) & 1) != 0;
}

// Whether the run of the pixel of this lane in group `j` ends with it.
static __device__ __forceinline__ bool merge_ends(const unsigned* begins, int j) {
    const int lane = threadIdx.x & 31;
    if (lane < 31) {
        return (begins[j] >> (lane + 1) & 1) != 0;
    }
    return j == 3 || (begins[j + 1] & 1) != 0;
}

// Root of a node. Other threads may lower parents meanwhile, which leaves an older, longer way.
static __device__ __forceinline__ unsigned merge_find(const volatile unsigned* parent, unsigned node) {
    unsigned next = parent[node];
    while (next != node) {
        node = next;
        next = parent[node];
    }
    return node;
}

static __device__ __forceinline__ void merge_join(unsigned* parent, unsigned a, unsigned b) {
    while (true) {
        a = merge_find(parent, a);
        b = merge_find(parent, b);
        if (a == b) {
            return;
        }
        if (a < b) {
            const unsigned lower = a;
            a = b;
            b = lower;
        }
        const unsigned before = atomicMin(parent + a, b);
        if (before == a) {
            return;
        }
        // Someone else gave `a` another parent, which must be joined as well.
        a = before;
    }
}

// Makes every run a tree of its own.
//
// Reads 1 byte per pixel (480x854 0.4 MB, 1080x1920 2.1 MB) and writes 4 per run.
extern "C" __global__ void merge_start(const unsigned char* __restrict__ clusters, const int* __restrict__ table, unsigned* __restrict__ parent, unsigned* __restrict__ row_counts, int width, int height) {
    int y, base, strip;
    if (!merge_strip(width, height, &y, &base, &strip)) {
        return;
    }
    const int lane = threadIdx.x & 31;
    int cluster[4], label[4];
    unsigned begins[4];
    merge_load(clusters, table, width, y, base, cluster, label);
    merge_runs_of(label, begins);
    const unsigned row = (unsigned)y * width + base;
    const int last = min(MERGE_STRIP, width - base) - 1;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int x = 32 * j + lane;
        if (x < last ? merge_begins(begins, j) : x == last) {
            parent[row + x] = row + merge_begin(begins, j);
        }
    }
    if (strip == 0 && lane == 0) {
        row_counts[y] = 0;
    }
}

// Joins the runs that touch: across rows where either begins, and across the borders of strips.
//
// Reads 1 byte per pixel, the row above from the cache.
extern "C" __global__ void merge_unite(const unsigned char* __restrict__ clusters, const int* __restrict__ table, unsigned* parent, int width, int height) {
    int y, base, strip;
    if (!merge_strip(width, height, &y, &base, &strip)) {
        return;
    }
    const int lane = threadIdx.x & 31;
    int cluster[4], label[4];
    unsigned begins[4];
    merge_load(clusters, table, width, y, base, cluster, label);
    merge_runs_of(label, begins);
    const unsigned row = (unsigned)y * width + base;
    if (base > 0 && lane == 0) {
        const int left = clusters[(size_t)y * width + base - 1];
        if (table[1 + KMEANS_CLUSTERS + left] == label[0]) {
            merge_join(parent, row, row - 1);
        }
    }
    if (y == 0) {
        return;
    }
    int upper_cluster[4], upper_label[4];
    unsigned upper_begins[4];
    merge_load(clusters, table, width, y - 1, base, upper_cluster, upper_label);
    merge_runs_of(upper_label, upper_begins);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const bool first = merge_begins(begins, j) || merge_begins(upper_begins, j);
        if (label[j] >= 0 && label[j] == upper_label[j] && first) {
            merge_join(parent, row + merge_begin(begins, j), row - width + merge_begin(upper_begins, j));
        }
    }
}

// Lets every node point to its root and counts the roots of each strip and row.
//
// Reads 1 byte per pixel and 4 per run.
extern "C" __global__ void merge_roots(const unsigned char* __restrict__ clusters, const int* __restrict__ table, unsigned* parent, unsigned* __restrict__ strip_counts, unsigned* row_counts, int width, int height) {
    int y, base, strip;
    if (!merge_strip(width, height, &y, &base, &strip)) {
        return;
    }
    const int lane = threadIdx.x & 31;
    int cluster[4], label[4];
    unsigned begins[4];
    merge_load(clusters, table, width, y, base, cluster, label);
    merge_runs_of(label, begins);
    const unsigned row = (unsigned)y * width + base;
    unsigned count = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        bool is_root = false;
        if (label[j] >= 0 && merge_begins(begins, j)) {
            const unsigned node = row + 32 * j + lane;
            const unsigned root = merge_find(parent, node);
            is_root = root == node;
            if (!is_root) {
                parent[node] = root;
            }
        }
        count += __popc(__ballot_sync(0xffffffff, is_root));
    }
    if (lane == 0) {
        const int strips = (width + MERGE_STRIP - 1) / MERGE_STRIP;
        strip_counts[(size_t)y * strips + strip] = count;
        if (count > 0) {
            atomicAdd(row_counts + y, count);
        }
    }
}

// Number of all segments, then that of the first segment of each row: offsets [1 + height]. One block of 256 threads.
//
// 8 bytes per row.
extern "C" __global__ void merge_scan(const unsigned* __restrict__ row_counts, unsigned* __restrict__ offsets, int height) {
    __shared__ unsigned sums[8];
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    unsigned before = 0;
    for (int first = 0; first < height; first += 256) {
        const int y = first + threadIdx.x;
        const unsigned own = y < height ? row_counts[y] : 0;
        unsigned sum = own;
        for (int step = 1; step < 32; step <<= 1) {
            const unsigned left = __shfl_up_sync(0xffffffff, sum, step);
            sum += lane >= step ? left : 0;
        }
        if (lane == 31) {
            sums[warp] = sum;
        }
        __syncthreads();
        unsigned all = 0;
        for (int w = 0; w < 8; ++w) {
            sum += w < warp ? sums[w] : 0;
            all += sums[w];
        }
        if (y < height) {
            offsets[1 + y] = before + sum - own;
        }
        before += all;
        // The sums are written again.
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        offsets[0] = before;
    }
}

// Numbers the roots and begins the records of their segments. Behind the first `limit` - 1 all share
// the last number, as on the CPU.
//
// Reads 1 byte per pixel and 4 per run, writes 32 per segment.
extern "C" __global__ void merge_number(const unsigned char* __restrict__ clusters, const int* __restrict__ table, const unsigned* __restrict__ strip_counts, const unsigned* __restrict__ offsets, unsigned* __restrict__ parent, unsigned* __restrict__ records, int width, int height, int limit) {
    int y, base, strip;
    if (!merge_strip(width, height, &y, &base, &strip)) {
        return;
    }
    const int lane = threadIdx.x & 31;
    const int strips = (width + MERGE_STRIP - 1) / MERGE_STRIP;
    const unsigned* counts = strip_counts + (size_t)y * strips;
    if (counts[strip] == 0) {
        return;
    }
    int cluster[4], label[4];
    unsigned begins[4];
    merge_load(clusters, table, width, y, base, cluster, label);
    merge_runs_of(label, begins);
    unsigned next = 0;
    for (int s = lane; s < strip; s += 32) {
        next += counts[s];
    }
    next = warp_sum(next);
    next += offsets[1 + y];
    const unsigned row = (unsigned)y * width + base;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const unsigned node = row + 32 * j + lane;
        const bool is_root = label[j] >= 0 && merge_begins(begins, j) && parent[node] == node;
        const unsigned mask = __ballot_sync(0xffffffff, is_root);
        if (is_root) {
            const unsigned number = next + __popc(mask & ((1u << lane) - 1));
            parent[node] = MERGE_NUMBERED | min(number, (unsigned)limit - 1);
            if (number < (unsigned)limit) {
                unsigned* record = records + (size_t)number * MERGE_RECORD;
                const unsigned x = base + 32 * j + lane;
                record[0] = label[j];
                record[1] = x;
                record[2] = y;
                record[3] = x;
                record[4] = y;
                record[5] = 0;
                record[6] = 0;
                record[7] = 0;
            }
        }
        next += __popc(mask);
    }
}

// Adds an area to the record of its segment.
static __device__ __forceinline__ void merge_add(unsigned* record, unsigned left, unsigned right, unsigned y, unsigned area, unsigned long long similarity) {
    // Most areas change no border: a look saves the atomic.
    const volatile unsigned* seen = record;
    if (left < seen[1]) {
        atomicMin(record + 1, left);
    }
    if (right > seen[3]) {
        atomicMax(record + 3, right);
    }
    if (y > seen[4]) {
        atomicMax(record + 4, y);
    }
    atomicAdd(record + 5, area);
    const unsigned low = (unsigned)similarity;
    const unsigned before = atomicAdd(record + 6, low);
    const unsigned high = (unsigned)(similarity >> 32) + (before + low < before ? 1u : 0u);
    if (high > 0) {
        atomicAdd(record + 7, high);
    }
}

// Writes concept and segment of every pixel and fills the records. Strips of one cluster, which are most,
// are added up per block first: a large segment would otherwise see one atomic for each of its strips.
// 256 threads.
//
// Reads 1 byte and writes 4 per pixel: 480x854 2.0 MB, 1080x1920 10.4 MB.
extern "C" __global__ void merge_write(const unsigned char* __restrict__ clusters, const int* __restrict__ table, const unsigned* __restrict__ parent, unsigned* records, unsigned short* __restrict__ concepts, unsigned short* __restrict__ segments, int width, int height) {
    // Per warp: segment, or all ones where its strip is no whole one of one cluster; similarity, place.
    __shared__ unsigned whole[8];
    __shared__ unsigned similarities[8];
    __shared__ unsigned lefts[8];
    __shared__ unsigned rows[8];
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    if (lane == 0) {
        whole[warp] = 0xffffffffu;
    }
    __syncwarp();
    int y, base, strip;
    if (merge_strip(width, height, &y, &base, &strip)) {
        int cluster[4], label[4];
        unsigned begins[4], cluster_begins[4];
        merge_load(clusters, table, width, y, base, cluster, label);
        merge_runs_of(label, begins);
        merge_runs_of(cluster, cluster_begins);
        const bool single = base + MERGE_STRIP <= width && cluster_begins[0] == 1 &&
                            (cluster_begins[1] | cluster_begins[2] | cluster_begins[3]) == 0;
        const unsigned row = (unsigned)y * width + base;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (label[j] < 0) {
                continue;
            }
            unsigned entry = parent[row + merge_begin(begins, j)];
            if ((entry & MERGE_NUMBERED) == 0) {
                entry = parent[entry];
            }
            const unsigned number = entry & ~MERGE_NUMBERED;
            const int x = 32 * j + lane;
            concepts[(size_t)row + x] = (unsigned short)label[j];
            segments[(size_t)row + x] = (unsigned short)number;
            if (!merge_ends(cluster_begins, j)) {
                continue;
            }
            const unsigned similarity = (unsigned)table[1 + 2 * KMEANS_CLUSTERS + cluster[j]];
            if (single) {
                whole[warp] = number;
                similarities[warp] = similarity;
                lefts[warp] = base;
                rows[warp] = y;
            } else {
                const int begin = merge_begin(cluster_begins, j);
                const unsigned area = x - begin + 1;
                merge_add(records + (size_t)number * MERGE_RECORD, base + begin, base + x, y, area, (unsigned long long)area * similarity);
            }
        }
    }
    __syncthreads();
    if (lane > 0 || whole[warp] == 0xffffffffu) {
        return;
    }
    // The first warp of a segment adds for all.
    const unsigned number = whole[warp];
    unsigned left = lefts[warp], right = left, bottom = rows[warp], area = 0;
    unsigned long long similarity = 0;
    for (int w = 0; w < 8; ++w) {
        if (whole[w] != number) {
            continue;
        }
        if (w < warp) {
            return;
        }
        left = min(left, lefts[w]);
        right = max(right, lefts[w]);
        bottom = max(bottom, rows[w]);
        area += MERGE_STRIP;
        similarity += (unsigned long long)MERGE_STRIP * similarities[w];
    }
    merge_add(records + (size_t)number * MERGE_RECORD, left, right + MERGE_STRIP - 1, bottom, area, similarity);
}
