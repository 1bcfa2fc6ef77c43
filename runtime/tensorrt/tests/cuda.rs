//! Memory, kernels and graphs, against the fake driver and kernels that run on the CPU.
#![allow(unsafe_code, missing_docs)] // Launches are unsafe: the kernels here stay inside of their buffers.

use std::ffi::CString;
use std::sync::Arc;

use conceptseg_tensorrt::cuda::{
    Arg, Context, CudaError, DeviceBuffer, Event, Function, Graph, Module, PinnedBuffer, Stream,
};
use conceptseg_tensorrt::{Plan, Runtime, Seal};
use conceptseg_tensorrt_fakes::{FakeGpu, Fakes, VERSIONS, gpu, real_gpu};

/// Sums each row of 256 numbers, by warps first, and counts the rows whose sum is above a limit.
const KERNELS: &str = r#"
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
extern "C" __global__ void row_sums(const float* __restrict__ rows, float* __restrict__ sums, int n, float limit, unsigned* __restrict__ above) {
    __shared__ float parts[8];
    const int row = blockIdx.x;
    const float sum = warp_sum(rows[row * 256 + threadIdx.x]);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        const float all = warp_sum(threadIdx.x < 8 ? parts[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0 && row < n) {
            sums[row] = all;
            if (all > limit) atomicAdd(above, 1u);
        }
    }
}
extern "C" __global__ void add(unsigned short* __restrict__ values, int n, int more) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) values[i] += more;
}
"#;

fn function(gpu: &FakeGpu, name: &'static str) -> Function {
    Module::load(&gpu.context, &gpu.image).unwrap().function(name).unwrap()
}

fn read<T: bytemuck::Pod>(gpu: &FakeGpu, buffer: &DeviceBuffer<T>) -> Vec<T> {
    let mut values = vec![T::zeroed(); buffer.len()];
    buffer.read(&gpu.stream, &mut values).unwrap();
    values
}

#[test]
fn a_kernel_with_shared_memory_shuffles_and_atomics_runs_in_many_blocks() {
    let Some(gpu) = gpu(KERNELS) else { return };
    let row_sums = function(&gpu, "row_sums");
    assert_eq!(row_sums.name(), "row_sums");
    let rows = DeviceBuffer::<f32>::new(&gpu.context, 20 * 256).unwrap();
    let sums = DeviceBuffer::<f32>::new(&gpu.context, 20).unwrap();
    let above = DeviceBuffer::<u32>::new(&gpu.context, 1).unwrap();
    let values: Vec<f32> = (0..20 * 256).map(|i| (i / 256) as f32 + (i % 4) as f32).collect();
    rows.write(&gpu.stream, &values).unwrap();
    let args = [
        Arg::Buffer(rows.address()),
        Arg::Buffer(sums.address()),
        Arg::I32(20),
        Arg::F32(2500.0),
        Arg::Buffer(above.address()),
    ];
    // SAFETY: 20 rows of 256, 20 sums and a number, all of which live until they are read.
    unsafe { row_sums.launch(&gpu.stream, [20, 1, 1], [256, 1, 1], &args) }.unwrap();
    let expected: Vec<f32> = (0..20).map(|row| 256.0 * row as f32 + 384.0).collect();
    assert_eq!(read(&gpu, &sums), expected);
    assert_eq!(read(&gpu, &above), [expected.iter().filter(|&&sum| sum > 2500.0).count() as u32]);
}

#[test]
fn arguments_and_geometry_are_checked_before_the_driver_is_asked() {
    let Some(gpu) = gpu(KERNELS) else { return };
    let module = Module::load(&gpu.context, &gpu.image).unwrap();
    let add = module.function("add").unwrap();
    let values = DeviceBuffer::<u16>::new(&gpu.context, 4).unwrap();
    let launch = |grid, block, args: &[Arg]| {
        // SAFETY: the buffer has 4 numbers and lives.
        unsafe { add.launch(&gpu.stream, grid, block, args) }
    };
    let args = [Arg::Buffer(values.address()), Arg::U32(4), Arg::I32(3)];
    gpu.cuda.take_calls();
    let error = launch([1, 1, 1], [32, 1, 1], &args[..2]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel `add` takes (address, integer, integer), but (address, integer) was given"
    );
    let wrong = [args[0], args[1], Arg::F32(3.0)];
    assert!(matches!(launch([1, 1, 1], [32, 1, 1], &wrong), Err(CudaError::Arguments { .. })));
    for (grid, block) in [
        ([0, 1, 1], [32, 1, 1]),
        ([1, 65_536, 1], [32, 1, 1]),
        ([1, 1, 1], [32, 64, 1]),
        ([1, 1, 1], [0, 1, 1]),
        ([u32::MAX, 1, 1], [32, 1, 1]),
        ([1, 1, 1], [u32::MAX, 2, 1]),
    ] {
        assert!(matches!(launch(grid, block, &args), Err(CudaError::Geometry { .. })), "{grid:?}");
    }
    assert!(gpu.cuda.take_calls().is_empty());
    launch([1, 1, 1], [32, 1, 1], &args).unwrap();
    assert_eq!(read(&gpu, &values), [3; 4]);
    let elsewhere = Stream::new(&Context::new(&gpu.driver, 1).unwrap()).unwrap();
    // SAFETY: as above; it is refused.
    let error = unsafe { add.launch(&elsewhere, [1; 3], [32, 1, 1], &args) }.unwrap_err();
    assert!(matches!(error, CudaError::OtherDevice { stream: 1, object: 0 }));
    let error = module.function("subtract").unwrap_err();
    assert_eq!(error.to_string(), "there is no kernel `subtract` in the module");
}

#[test]
fn a_module_that_the_driver_does_not_take_says_why() {
    let fakes = Fakes::new("10.15");
    let context = fakes.context();
    let error = Module::load(&context, c"no PTX").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the driver does not take the kernels: CUDA_ERROR_INVALID_PTX (218), ptxas application ptx \
         input, line 1; fatal : Missing .version directive"
    );
    // What PTX names the driver may still not have.
    let module = Module::load(&context, c".version 8.0\n.entry ghost()\n{\n}\n").unwrap();
    let error = module.function("ghost").unwrap_err();
    assert!(error.to_string().contains("CUDA_ERROR_NOT_FOUND (500)"), "{error}");
    drop((module, context));
    fakes.check_all_destroyed();
}

#[test]
fn pinned_memory_is_copied_when_the_stream_gets_to_it() {
    let Some(gpu) = gpu(KERNELS) else { return };
    let mut up = PinnedBuffer::<u16>::new(&gpu.context, 5).unwrap();
    assert_eq!((up.len(), up.is_empty(), up.as_slice()), (5, false, &[0; 5][..]));
    let mut down = PinnedBuffer::<u16>::new(&gpu.context, 5).unwrap();
    let device = DeviceBuffer::<u16>::new(&gpu.context, 4).unwrap();
    up.as_mut_slice().copy_from_slice(&[1, 2, 3, 4, 5]);
    down.as_mut_slice().fill(9);
    // SAFETY: all three live until the stream is done, and nobody looks before.
    unsafe {
        device.upload_async(&gpu.stream, &up, 3).unwrap();
        device.download_async(&gpu.stream, &down, 4).unwrap();
        device.zero_async(&gpu.stream).unwrap();
    }
    assert_eq!(down.as_slice(), [9; 5], "the fake waits until it is waited for");
    gpu.stream.synchronize().unwrap();
    assert_eq!(down.as_slice(), [1, 2, 3, 0, 9]);
    assert_eq!(read(&gpu, &device), [0; 4]);
    // SAFETY: refused.
    let error = unsafe { device.upload_async(&gpu.stream, &up, 5) }.unwrap_err();
    assert_eq!(
        error.to_string(),
        "5 elements cannot be copied between 5 on the host and 4 on the device"
    );
    assert!(matches!(
        PinnedBuffer::<u64>::new(&gpu.context, usize::MAX / 4),
        Err(CudaError::TooLarge { .. })
    ));
    let empty = PinnedBuffer::<f32>::new(&gpu.context, 0).unwrap();
    assert!(empty.is_empty() && empty.as_slice().is_empty());
    let FakeGpu { stream, context, cuda, folder, .. } = gpu;
    drop((up, down, device, empty, stream, context));
    assert_eq!(cuda.live_objects(), 0);
    drop(folder);
}

#[test]
fn a_graph_repeats_what_was_captured() {
    let Some(gpu) = gpu(KERNELS) else { return };
    let add = function(&gpu, "add");
    let mut up = PinnedBuffer::<u16>::new(&gpu.context, 3).unwrap();
    let down = PinnedBuffer::<u16>::new(&gpu.context, 3).unwrap();
    let device = DeviceBuffer::<u16>::new(&gpu.context, 3).unwrap();
    let graph = Graph::capture(&gpu.stream, || {
        let args = [Arg::Buffer(device.address()), Arg::I32(3), Arg::I32(10)];
        // SAFETY: the buffers live until the last launch is done, and are only looked at then.
        unsafe {
            device.upload_async(&gpu.stream, &up, 3)?;
            add.launch(&gpu.stream, [1; 3], [32, 1, 1], &args)?;
            device.download_async(&gpu.stream, &down, 3)
        }
    })
    .unwrap();
    gpu.stream.synchronize().unwrap();
    assert_eq!(down.as_slice(), [0; 3], "captured, not done");
    for frame in 1..4 {
        up.as_mut_slice().fill(frame);
        // SAFETY: as above.
        unsafe { graph.launch(&gpu.stream) }.unwrap();
        gpu.stream.synchronize().unwrap();
        assert_eq!(down.as_slice(), [frame + 10; 3]);
    }
    let launches = gpu.cuda.take_calls();
    assert_eq!(launches.iter().filter(|call| *call == "cuLaunchKernel").count(), 1);
    drop(graph);
    // Only the memory, the module, the stream and the context are left.
    assert_eq!(gpu.cuda.live_objects(), 6);
}

#[test]
fn a_network_is_part_of_a_graph_between_kernels() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let Some(image) = fakes.add_kernels(KERNELS) else { return };
        let cuda = fakes.context();
        let mut bytes = b"ftrt".to_vec();
        bytes.resize(24, 0);
        bytes.extend([8, 6, 1, 0]);
        bytes.extend(b"fake plan");
        let plan = Plan::new(bytes.clone(), &Seal::of(&bytes)).unwrap();
        let engine = Runtime::new(&fakes.library(), &cuda).unwrap().deserialize(&plan).unwrap();
        let mut context = engine.create_context().unwrap();
        context.set_input_shape("image", &[1, 3, 64, 64]).unwrap();
        let input = Arc::new(DeviceBuffer::<f32>::new(&cuda, 3 * 64 * 64).unwrap());
        let output = Arc::new(DeviceBuffer::<f32>::new(&cuda, 48 * 8 * 8).unwrap());
        context.bind("image", &input).unwrap();
        context.bind("embedding", &output).unwrap();
        let sums = DeviceBuffer::<f32>::new(&cuda, 12).unwrap();
        let above = DeviceBuffer::<u32>::new(&cuda, 1).unwrap();
        let mut up = PinnedBuffer::<f32>::new(&cuda, input.len()).unwrap();
        let down = PinnedBuffer::<f32>::new(&cuda, sums.len()).unwrap();
        let row_sums = Module::load(&cuda, &image).unwrap().function("row_sums").unwrap();
        let stream = Stream::new(&cuda).unwrap();
        let args = [
            Arg::Buffer(output.address()),
            Arg::Buffer(sums.address()),
            Arg::I32(12),
            Arg::F32(0.0),
            Arg::Buffer(above.address()),
        ];
        let graph = Graph::capture(&stream, || -> Result<(), Box<dyn std::error::Error>> {
            // SAFETY: everything lives until the last launch is done, and is only looked at then.
            unsafe {
                input.upload_async(&stream, &up, up.len())?;
                context.enqueue(&stream)?;
                row_sums.launch(&stream, [12, 1, 1], [256, 1, 1], &args)?;
                sums.download_async(&stream, &down, down.len())?;
            }
            Ok(())
        })
        .unwrap();
        for frame in [1.0, 2.5] {
            up.as_mut_slice().fill(frame);
            // SAFETY: as above.
            unsafe { graph.launch(&stream) }.unwrap();
            stream.synchronize().unwrap();
            // The fake network doubles.
            assert_eq!(down.as_slice(), [256.0 * 2.0 * frame; 12], "{version}");
        }
    }
}

#[test]
fn on_a_real_gpu_memory_goes_there_and_back_in_a_graph() {
    let Some(context) = real_gpu() else { return };
    let stream = Stream::new(&context).unwrap();
    let mut up = PinnedBuffer::<u16>::new(&context, 1000).unwrap();
    let down = PinnedBuffer::<u16>::new(&context, 1000).unwrap();
    let device = DeviceBuffer::<u16>::new(&context, 1000).unwrap();
    // SAFETY: all three live until the last launch is done, and are only looked at then.
    let graph = Graph::capture(&stream, || unsafe {
        device.upload_async(&stream, &up, 1000)?;
        device.download_async(&stream, &down, 1000)
    })
    .unwrap();
    for frame in 1..4 {
        up.as_mut_slice().fill(frame);
        // SAFETY: as above.
        unsafe { graph.launch(&stream) }.unwrap();
        stream.synchronize().unwrap();
        assert_eq!(down.as_slice(), [frame; 1000]);
    }
}

#[test]
fn a_failed_capture_leaves_the_stream_usable() {
    enum Failure {
        Cuda,
        Own,
    }
    impl From<CudaError> for Failure {
        fn from(_: CudaError) -> Self {
            Self::Cuda
        }
    }
    let Some(gpu) = gpu(KERNELS) else { return };
    let device = DeviceBuffer::<u16>::new(&gpu.context, 3).unwrap();
    let before = gpu.cuda.live_objects();
    // SAFETY: the buffer outlives the stream's work.
    let zero = || unsafe { device.zero_async(&gpu.stream) };
    // The work's own error.
    let result =
        Graph::capture(&gpu.stream, || zero().map_err(Failure::from).and(Err(Failure::Own)));
    assert!(matches!(result, Err(Failure::Own)));
    // Waiting for, and allocating, what a graph could not repeat.
    let result = Graph::capture(&gpu.stream, || zero().and(gpu.stream.synchronize()));
    assert!(matches!(result, Err(CudaError::Call { code: 900, .. })), "{result:?}");
    let result = Graph::capture(&gpu.stream, || {
        let _ = DeviceBuffer::<u16>::new(&gpu.context, 3);
        zero()
    });
    assert!(matches!(result, Err(CudaError::Call { code: 901, .. })), "{result:?}");
    let result = Graph::capture(&gpu.stream, || device.write(&gpu.stream, &[1, 2, 3]));
    assert!(result.is_err(), "ordinary memory may be gone when the graph is launched");
    // The driver's.
    gpu.cuda.fail_once("cuGraphInstantiate", 2);
    let result = Graph::capture(&gpu.stream, zero);
    assert!(matches!(result, Err(error) if error.is_out_of_memory()));
    // A panic.
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Graph::capture(&gpu.stream, || -> Result<(), CudaError> { panic!("in the work") })
    }));
    assert!(panic.is_err());
    device.write(&gpu.stream, &[1, 2, 3]).unwrap();
    assert_eq!(read(&gpu, &device), [1, 2, 3]);
    assert_eq!(gpu.cuda.live_objects(), before);
}

#[test]
fn a_broken_context_is_reset_when_everything_of_it_is_gone() {
    let Some(gpu) = gpu(KERNELS) else { return };
    let FakeGpu { stream, context, driver, image, cuda, folder } = gpu;
    let device = DeviceBuffer::<u16>::new(&context, 3).unwrap();
    let pinned = PinnedBuffer::<u16>::new(&context, 3).unwrap();
    let module = Module::load(&context, &image).unwrap();
    let event = Event::new(&context).unwrap();
    cuda.fail_once("cuMemsetD8Async", 700);
    // SAFETY: the buffer lives; nothing is done.
    let error = unsafe { device.zero_async(&stream) }.unwrap_err();
    assert!(error.is_sticky());
    for error in [
        stream.synchronize().unwrap_err(),
        event.record(&stream).unwrap_err(),
        DeviceBuffer::<u16>::new(&context, 3).unwrap_err(),
        Module::load(&context, &image).unwrap_err(),
        module.function("add").unwrap_err(),
        Context::new(&driver, 0).unwrap_err(),
    ] {
        assert!(error.is_sticky(), "{error}");
    }
    drop((stream, context, device, pinned, event));
    // SAFETY: nothing else uses the fake.
    let error = unsafe { Context::reset(&driver, 0) }.unwrap_err();
    assert_eq!(error.to_string(), "GPU 0 cannot be reset: 1 contexts of it are still in use");
    drop(module);
    // SAFETY: as above.
    unsafe { Context::reset(&driver, 0) }.unwrap();
    assert_eq!(cuda.live_objects(), 0);
    // SAFETY: as above.
    let error = unsafe { Context::reset(&driver, 7) }.unwrap_err();
    assert!(matches!(error, CudaError::NoDevice { ordinal: 7, count: 2 }));
    let context = Context::new(&driver, 0).unwrap();
    let stream = Stream::new(&context).unwrap();
    let device = DeviceBuffer::<u16>::new(&context, 2).unwrap();
    device.write(&stream, &[4, 5]).unwrap();
    let mut values = [0; 2];
    device.read(&stream, &mut values).unwrap();
    assert_eq!(values, [4, 5]);
    drop(folder);
}

#[test]
fn an_error_that_breaks_nothing_is_not_kept() {
    let fakes = Fakes::new("10.15");
    let context = fakes.context();
    fakes.cuda.fail_once("cuMemHostAlloc", 2);
    assert!(PinnedBuffer::<u8>::new(&context, 8).unwrap_err().is_out_of_memory());
    PinnedBuffer::<u8>::new(&context, 8).unwrap();
    fakes.cuda.fail_once("cuModuleLoadDataEx", 2);
    let image = CString::new(".version 8.0").unwrap();
    assert!(Module::load(&context, &image).unwrap_err().is_out_of_memory());
    Module::load(&context, &image).unwrap();
}
