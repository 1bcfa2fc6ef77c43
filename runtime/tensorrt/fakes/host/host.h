// Runs CUDA C++ kernels on the CPU, for tests: included before the joined source of all kernels, see `src/host.rs`.
//
// Blocks run one after the other. Each thread of a block is a fibre that runs until it ends or has to wait in
// `__syncthreads()` or a warp function. To bring races to light, every other block runs its threads from last to first,
// every other launch its blocks. Shared memory is filled with garbage first. What a GPU leaves undefined ends the
// process with a message: a barrier that not all threads reach, warp functions that lanes call at different places,
// static arrays used beyond their end, misaligned vectors, integers out of the range of their type.

#include <csetjmp>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// A section of their own, so that all of them can be filled.
#define __shared__ static __attribute__((section("host_shared"), used))

struct dim3 { unsigned x, y, z; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(2) uchar2 { unsigned char x, y; };
struct uchar3 { unsigned char x, y, z; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uchar2 make_uchar2(unsigned char x, unsigned char y) { return {x, y}; }
inline uchar3 make_uchar3(unsigned char x, unsigned char y, unsigned char z) { return {x, y, z}; }
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }
inline ushort2 make_ushort2(unsigned short x, unsigned short y) { return {x, y}; }
inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
    return {x, y, z, w};
}

static dim3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_host_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __stop_host_shared[];

namespace host {

constexpr size_t STACK = 128 << 10;
enum class State { Ready, Barrier, Warp, Ended };

struct Fibre {
    ucontext_t start;
    jmp_buf at;
    bool begun;
    State state;
    dim3 index;
    unsigned warp, lane;
    const char* where;  // the function in which it waits,
    int line;           // and the line of that call
};

struct Warp {
    unsigned members, ended, arrived, mask;
    const char* where;
    int line;
    unsigned long long round;
    unsigned long long given[32], taken[32];
};

static std::vector<Fibre*> fibres;  // made once, used by every block
static std::vector<Warp> warps;
static Fibre* running;
static jmp_buf scheduler;
static unsigned threads, ended, arrived;
static unsigned long long barriers;
static unsigned long long moves;  // how often a thread began, ended or got past a wait
static int barrier_line;
static const char* kernel_name = "";
static void (*kernel_body)(const void* const*);
static const void* const* kernel_arguments;

// The message is put together without a buffer on the stack, which may be the small one for signals.
static char message[4096];
static size_t message_length;
template <typename... A> void say(const char* format, A... values) {
    const size_t room = sizeof message - message_length;
    const int length = snprintf(message + message_length, room, format, values...);
    if (length > 0) message_length += size_t(length) < room ? size_t(length) : room - 1;
}

[[noreturn]] inline void fail(const char* what) {
    say("kernel %s, block (%u, %u, %u)", kernel_name, blockIdx.x, blockIdx.y, blockIdx.z);
    if (running) say(", thread (%u, %u, %u)", threadIdx.x, threadIdx.y, threadIdx.z);
    say(": %s\n", what);
    unsigned shown = 0;
    for (unsigned i = 0; i < threads && shown < 8; i++) {
        const Fibre& f = *fibres[i];
        if (f.state != State::Barrier && f.state != State::Warp) continue;
        say("  thread (%u, %u, %u) waits in %s, line %d\n", f.index.x, f.index.y, f.index.z, f.where, f.line);
        shown++;
    }
    say("  %u of %u threads have ended\n", ended, threads);
    if (write(2, message, message_length) < 0) _exit(2);
    abort();
}

// Back to the scheduler, until this thread may go on.
inline void leave(State state) {
    running->state = state;
    asm volatile("" ::: "memory");
    if (_setjmp(running->at) == 0) _longjmp(scheduler, 1);
    asm volatile("" ::: "memory");
}

inline void enter(Fibre* f) {
    running = f;
    threadIdx = f->index;
    if (_setjmp(scheduler) == 0) {
        if (f->begun) _longjmp(f->at, 1);
        f->begun = true;
        setcontext(&f->start);
    }
    running = nullptr;
}

inline void fibre_main() {
    for (;;) {
        moves++;
        kernel_body(kernel_arguments);
        moves++;
        leave(State::Ended);
    }
}

inline Fibre* new_fibre() {
    Fibre* f = new Fibre();
    getcontext(&f->start);
    void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) fail("there is no memory for the stacks of the threads");
    mprotect(stack, 4096, PROT_NONE);  // what grows beyond it faults
    f->start.uc_stack.ss_sp = stack;
    f->start.uc_stack.ss_size = STACK;
    f->start.uc_link = nullptr;
    makecontext(&f->start, fibre_main, 0);
    return f;
}

// All lanes of a warp that have not ended give a value, and go on when the last has. Answers the values of all.
inline const unsigned long long* exchange(unsigned mask, unsigned long long value, const char* where, int line) {
    Warp& w = warps[running->warp];
    const unsigned bit = 1u << running->lane;
    running->where = where;
    running->line = line;
    if (!(mask & bit)) fail("the lane is not in its own mask");
    if (w.arrived == 0) {
        w.mask = mask;
        w.where = where;
        w.line = line;
    } else if (w.where != where || w.line != line || w.mask != mask) {
        fail("the lanes of a warp are in different warp functions, or have different masks");
    }
    w.arrived |= bit;
    w.given[running->lane] = value;
    const unsigned long long round = w.round;
    while (w.round == round) {
        if ((w.mask & w.members & ~(w.arrived | w.ended)) == 0) {
            memcpy(w.taken, w.given, sizeof w.given);
            // What a lane gives that has ended or is not in the mask is undefined.
            for (unsigned lane = 0; lane < 32; lane++)
                if (!(w.arrived & (1u << lane))) w.taken[lane] = 0xCDCDCDCDCDCDCDCDull;
            w.arrived = 0;
            w.round++;
        } else {
            leave(State::Warp);
        }
    }
    running->state = State::Ready;
    moves++;
    return w.taken;
}

inline void barrier(int line) {
    running->where = "__syncthreads()";
    running->line = line;
    if (arrived == 0) barrier_line = line;
    if (barrier_line != line) fail("threads are in different __syncthreads()");
    const unsigned long long round = barriers;
    if (++arrived == threads) {
        arrived = 0;
        barriers++;
    }
    while (barriers == round) leave(State::Barrier);
    running->state = State::Ready;
    moves++;
}

inline void run_block(bool backwards) {
    ended = arrived = 0;
    for (unsigned w = 0; w < warps.size(); w++) warps[w] = Warp();
    for (unsigned i = 0; i < threads; i++) {
        Fibre* f = fibres[i];
        f->state = State::Ready;
        f->warp = i / 32;
        f->lane = i % 32;
        f->index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        warps[f->warp].members |= 1u << f->lane;
    }
    while (ended < threads) {
        const unsigned long long before = moves;
        for (unsigned k = 0; k < threads; k++) {
            Fibre* f = fibres[backwards ? threads - 1 - k : k];
            if (f->state == State::Ended) continue;
            enter(f);
            if (f->state == State::Ended) {
                ended++;
                warps[f->warp].ended |= 1u << f->lane;
            }
        }
        if (arrived > 0 && ended > 0) fail("threads have ended before a __syncthreads() that others wait in");
        if (moves == before) fail("no thread can go on");
    }
}

inline void on_signal(int number) {
    if (running) {
        signal(SIGABRT, SIG_DFL);
        fail(number == SIGSEGV || number == SIGBUS
                 ? "an address outside of memory"
                 : "undefined: beyond the end of an array, a misaligned address, or a number out of its type's range");
    }
    signal(number, SIG_DFL);
    raise(number);
}

struct Kernel {
    const char* name;
    const unsigned char* sizes;  // bytes of each parameter, then a zero
    void (*run)(const Kernel*, const unsigned*, const unsigned*, const void* const*);
    void (*body)(const void* const*);
    const char* const* types;    // PTX types of the parameters
};

inline void launch(const Kernel* kernel, const unsigned* grid, const unsigned* block, const void* const* arguments) {
    static std::mutex one_at_a_time;
    static unsigned launches = 0;
    static const bool prepared = [] {
        struct sigaction action = {};
        action.sa_handler = on_signal;
        action.sa_flags = SA_ONSTACK | SA_NODEFER;
        for (int number : {SIGILL, SIGTRAP, SIGFPE, SIGSEGV, SIGBUS}) sigaction(number, &action, nullptr);
        return true;
    }();
    (void)prepared;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    kernel_name = kernel->name;
    kernel_body = kernel->body;
    kernel_arguments = arguments;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    threads = block[0] * block[1] * block[2];
    while (fibres.size() < threads) fibres.push_back(new_fibre());
    warps.resize((threads + 31) / 32);
    const bool backwards = launches++ % 2 == 1;
    const unsigned long long blocks = 1ull * grid[0] * grid[1] * grid[2];
    for (unsigned long long i = 0; i < blocks; i++) {
        const unsigned long long b = backwards ? blocks - 1 - i : i;
        blockIdx = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]), unsigned(b / grid[0] / grid[1])};
        // A few blocks show whether shared memory is read before it is written; filling it for all takes too long.
        if (i < 8 && __start_host_shared) memset(__start_host_shared, 0xCD, __stop_host_shared - __start_host_shared);
        run_block(i % 2 == 1);
    }
}

template <typename T> struct Type;
template <typename T> struct Type<T*> { static constexpr const char* name = ".u64"; };
template <> struct Type<int> { static constexpr const char* name = ".u32"; };
template <> struct Type<unsigned> { static constexpr const char* name = ".u32"; };
template <> struct Type<float> { static constexpr const char* name = ".f32"; };

template <auto F> struct Bound;
template <typename... A, void (*F)(A...)> struct Bound<F> {
    static constexpr unsigned char sizes[] = {sizeof(A)..., 0};
    static constexpr const char* types[] = {Type<A>::name..., nullptr};
    template <size_t... I> static void call(const void* const* arguments, std::index_sequence<I...>) {
        F(*static_cast<const A*>(arguments[I])...);
    }
    static void body(const void* const* arguments) { call(arguments, std::index_sequence_for<A...>()); }
    static constexpr Kernel kernel(const char* name) { return {name, sizes, launch, body, types}; }
};

template <typename T> inline unsigned long long bits(T value) {
    static_assert(sizeof(T) <= 8, "warp functions move up to 8 bytes");
    unsigned long long all = 0;
    memcpy(&all, &value, sizeof value);
    return all;
}
template <typename T> inline T of_bits(unsigned long long all) {
    T value;
    memcpy(&value, &all, sizeof value);
    return value;
}
// The lane whose value is taken, where it lies in the same part of `width` lanes; else the own one.
inline unsigned pick(int lane, int low, int high) {
    return lane >= low && lane < high ? unsigned(lane) : running->lane;
}

}  // namespace host

#define HOST_LINE int line = __builtin_LINE()

inline void __syncthreads(HOST_LINE) { host::barrier(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, HOST_LINE) { host::exchange(mask, 0, "__syncwarp", line); }

template <typename T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, HOST_LINE) {
    const int part = int(host::running->lane) / width * width;
    const auto* all = host::exchange(mask, host::bits(value), "__shfl_sync", line);
    return host::of_bits<T>(all[part + (from & (width - 1))]);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HOST_LINE) {
    const int lane = host::running->lane, part = lane / width * width;
    const auto* all = host::exchange(mask, host::bits(value), "__shfl_up_sync", line);
    return host::of_bits<T>(all[host::pick(lane - int(delta), part, part + width)]);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, HOST_LINE) {
    const int lane = host::running->lane, part = lane / width * width;
    const auto* all = host::exchange(mask, host::bits(value), "__shfl_down_sync", line);
    return host::of_bits<T>(all[host::pick(lane + int(delta), part, part + width)]);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, HOST_LINE) {
    const int lane = host::running->lane, part = lane / width * width;
    const auto* all = host::exchange(mask, host::bits(value), "__shfl_xor_sync", line);
    // Lanes of earlier parts may be read, those of later ones not.
    return host::of_bits<T>(all[host::pick(lane ^ lanes, 0, part + width)]);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HOST_LINE) {
    const auto* all = host::exchange(mask, predicate != 0, "__ballot_sync", line);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) votes |= unsigned(all[lane] == 1) << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, HOST_LINE) { return __ballot_sync(mask, predicate, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, HOST_LINE) { return __ballot_sync(mask, !predicate, line) == 0; }

#define HOST_ATOMIC(NAME, RESULT)                                 \
    template <typename T> T NAME(T* at, decltype(T() + 0) value_) { \
        const T old = *at, value = T(value_);                     \
        *at = RESULT;                                             \
        return old;                                               \
    }
HOST_ATOMIC(atomicAdd, T(unsigned(old) + unsigned(value)))
HOST_ATOMIC(atomicSub, T(unsigned(old) - unsigned(value)))
HOST_ATOMIC(atomicMin, old < value ? old : value)
HOST_ATOMIC(atomicMax, old > value ? old : value)
HOST_ATOMIC(atomicOr, T(old | value))
HOST_ATOMIC(atomicAnd, T(old & value))
HOST_ATOMIC(atomicXor, T(old ^ value))
HOST_ATOMIC(atomicExch, value)
template <typename T> T atomicCAS(T* at, decltype(T() + 0) expected, decltype(T() + 0) value) {
    const T old = *at;
    if (old == T(expected)) *at = T(value);
    return old;
}
// Results may not depend on the order in which floats are added.
float atomicAdd(float*, float) = delete;

inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T> T __ldg(const T* at) { return *at; }
inline unsigned __float_as_uint(float x) { return unsigned(host::bits(x)); }
inline int __float_as_int(float x) { return int(unsigned(host::bits(x))); }
inline float __uint_as_float(unsigned x) { return host::of_bits<float>(x); }
inline float __int_as_float(int x) { return host::of_bits<float>(unsigned(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __saturatef(float x) { return x >= 0.0f ? (x <= 1.0f ? x : 1.0f) : 0.0f; }
// Out of range is the nearest number of the type, and what is no number is 0.
inline int __float2int_rn(float x) {
    return x != x ? 0 : x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : int(rintf(x));
}
inline int __float2int_rd(float x) { return __float2int_rn(floorf(x)); }
inline int __float2int_ru(float x) { return __float2int_rn(ceilf(x)); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
