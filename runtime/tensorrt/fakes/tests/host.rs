//! What the host of kernels notices, each in a process of its own, which it ends.
#![allow(unsafe_code, missing_docs)] // Launches are unsafe; these kernels are wrong on purpose.

use std::process::Command;

use conceptseg_tensorrt::cuda::{Arg, Context, DeviceBuffer, Driver, Module, Stream};
use conceptseg_tensorrt::{Library, Search};
use conceptseg_tensorrt_fakes::{Fakes, gpu, host_kernels};

const WRONG: &str = r#"
extern "C" __global__ void barrier_in_a_branch(float* x, int n) {
    if (threadIdx.x < 40) __syncthreads();
    x[0] = n;
}
extern "C" __global__ void two_barriers(float* x, int n) {
    if (threadIdx.x < 40) __syncthreads();
    else
        __syncthreads();
    x[0] = n;
}
extern "C" __global__ void lanes_apart(float* x, int n) {
    float y = 0;
    if (threadIdx.x % 2) y = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    else
        y = __shfl_xor_sync(0xffffffffu, 2.0f, 1);
    x[0] = n + y;
}
extern "C" __global__ void lanes_missing(float* x, int n) {
    if (threadIdx.x != 3) x[0] = __shfl_sync(0xffffffffu, x[1], 0);
    __syncthreads();
}
extern "C" __global__ void behind_a_buffer(float* x, int n) {
    if (threadIdx.x == 5) x[n] = 1.0f;
}
extern "C" __global__ void before_a_buffer(float* x, int n) {
    if (threadIdx.x == 5) x[-1] = 1.0f;
}
extern "C" __global__ void behind_shared_memory(float* x, int n) {
    __shared__ float y[8];
    y[threadIdx.x % (n + 1)] = x[0];
    __syncthreads();
    x[0] = y[0];
}
extern "C" __global__ void misaligned(float* x, int n) {
    if (threadIdx.x == 33) x[0] = reinterpret_cast<float4*>(x + n / 8)->x;
}
extern "C" __global__ void out_of_range(float* x, int n) {
    if (threadIdx.x == 33) x[0] = int(4e9f * n);
}
extern "C" __global__ void nowhere(float* x, int n) {
    if (threadIdx.x == 33) *reinterpret_cast<float*>(8 * (unsigned long long)n) = 1.0f;
}
"#;

/// Runs the kernel that the environment names, with 8 numbers and 64 threads.
#[test]
#[ignore = "run by the other test, in a process of its own"]
fn wrong_kernel() {
    let gpu = gpu(WRONG).unwrap();
    let name = std::env::var("WRONG_KERNEL").unwrap().leak();
    let kernel = Module::load(&gpu.context, &gpu.image).unwrap().function(name).unwrap();
    let buffer = DeviceBuffer::<f32>::new(&gpu.context, 8).unwrap();
    let args = [Arg::Buffer(buffer.address()), Arg::I32(8)];
    // SAFETY: it is not safe, and must be noticed.
    unsafe { kernel.launch(&gpu.stream, [2, 1, 1], [64, 1, 1], &args) }.unwrap();
    gpu.stream.synchronize().unwrap();
}

#[test]
fn what_a_gpu_leaves_undefined_ends_the_process_with_a_message() {
    if host_kernels(WRONG).is_none() {
        return;
    }
    for (name, message) in [
        (
            "barrier_in_a_branch",
            "kernel barrier_in_a_branch, block (0, 0, 0): threads have ended before a __syncthreads() that others wait in\n  \
             thread (0, 0, 0) waits in __syncthreads(), line 3",
        ),
        ("two_barriers", "threads are in different __syncthreads()"),
        ("lanes_apart", "the lanes of a warp are in different warp functions"),
        (
            "lanes_missing",
            "block (0, 0, 0): no thread can go on\n  thread (0, 0, 0) waits in __shfl_sync, line",
        ),
        ("behind_a_buffer", "behind_a_buffer wrote behind a buffer of 32 bytes"),
        ("before_a_buffer", "before_a_buffer wrote before a buffer of 32 bytes"),
        ("behind_shared_memory", "thread (8, 0, 0): undefined: beyond the end of an array"),
        ("misaligned", "thread (33, 0, 0): undefined"),
        ("out_of_range", "thread (33, 0, 0): undefined"),
        ("nowhere", "thread (33, 0, 0): an address outside of memory"),
    ] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wrong_kernel", "--ignored", "--nocapture"])
            .env("WRONG_KERNEL", name)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(message), "{name}: {text}");
    }
}

/// Opens what the loader finds, as a program does.
#[test]
#[ignore = "run by the other test, in a process of its own"]
fn program() {
    let driver = Driver::open().unwrap();
    let context = Context::new(&driver, 0).unwrap();
    let library = Library::open(&Search::default()).unwrap();
    assert_eq!(library.version().to_string(), "10.15.1");
    assert!(library.onnx_parser().is_ok());
    let image = c".version 7.5\n.entry nothing()\n{\n}\n";
    let kernel = Module::load(&context, image).unwrap().function("nothing").unwrap();
    let stream = Stream::new(&context).unwrap();
    // SAFETY: the kernel does nothing.
    unsafe { kernel.launch(&stream, [1; 3], [32, 1, 1], &[]) }.unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn a_child_process_finds_the_fakes_by_the_loaders_path() {
    let fakes = Fakes::new("10.15");
    if fakes.add_kernels("extern \"C\" __global__ void nothing() {}").is_none() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program", "--ignored"])
        .env("LD_LIBRARY_PATH", fakes.folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn warp_functions_answer_what_a_gpu_answers() {
    let source = r#"
extern "C" __global__ void warps(unsigned* __restrict__ out, int n) {
    const unsigned all = 0xffffffffu, lane = threadIdx.x % 32, i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i * 9 + 0] = __shfl_sync(all, lane * 10, 5);
    out[i * 9 + 1] = __shfl_sync(all, lane, 3, 8);
    out[i * 9 + 2] = __shfl_up_sync(all, lane, 2);
    out[i * 9 + 3] = __shfl_down_sync(all, lane, 1, 16);
    out[i * 9 + 4] = __shfl_xor_sync(all, lane, 7);
    out[i * 9 + 5] = __ballot_sync(all, lane % 3 == 0);
    out[i * 9 + 6] = __any_sync(all, lane == 31) * 2 + __all_sync(all, lane < 31);
    __syncwarp();
    // Lanes that have ended are not waited for.
    if (lane >= 16) return;
    out[i * 9 + 7] = __ballot_sync(all, 1);
    out[i * 9 + 8] = __shfl_xor_sync(0x0000ffffu, lane, 15);
}
"#;
    let Some(gpu) = gpu(source) else { return };
    let kernel = Module::load(&gpu.context, &gpu.image).unwrap().function("warps").unwrap();
    let out = DeviceBuffer::<u32>::new(&gpu.context, 2 * 96 * 9).unwrap();
    let args = [Arg::Buffer(out.address()), Arg::I32(0)];
    // SAFETY: 9 numbers for each of 192 threads, in a buffer that lives.
    unsafe { kernel.launch(&gpu.stream, [2, 1, 1], [32, 3, 1], &args) }.unwrap();
    // The kernel takes only the first dimension, so that the three warps of a block write the same.
    let mut found = vec![0; out.len()];
    out.read(&gpu.stream, &mut found).unwrap();
    for block in 0..2_u32 {
        for lane in 0..32_u32 {
            let begin = ((block * 32 + lane) * 9) as usize;
            let half = lane < 16;
            let expected = [
                50,
                lane / 8 * 8 + 3,
                if lane < 2 { lane } else { lane - 2 },
                if lane % 16 == 15 { lane } else { lane + 1 },
                lane ^ 7,
                (0..32).filter(|lane| lane % 3 == 0).map(|lane| 1 << lane).sum(),
                2,
                if half { 0xffff } else { 0 },
                if half { lane ^ 15 } else { 0 },
            ];
            assert_eq!(found[begin..begin + 9], expected, "block {block}, lane {lane}");
        }
    }
}
