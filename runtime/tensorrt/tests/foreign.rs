//! Memory of somebody else, against the fake driver.
#![allow(unsafe_code, missing_docs)] // Copies are unsafe: the buffers here live until they are read.

use conceptseg_tensorrt::cuda::{CudaError, DeviceBuffer, EglFrame, ForeignRows};
use conceptseg_tensorrt_fakes::{FakeGpu, gpu};

/// A kernel, without which the fake has nothing to run.
const KERNEL: &str = "extern \"C\" __global__ void nothing(int n) {\n}\n";

/// Two rows of three bytes, four bytes apart.
const ROWS: [u8; 7] = [1, 2, 3, 9, 4, 5, 6];

fn read(gpu: &FakeGpu, buffer: &DeviceBuffer<u8>) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len()];
    buffer.read(&gpu.stream, &mut bytes).unwrap();
    bytes
}

fn copy(gpu: &FakeGpu, to: &DeviceBuffer<u8>, from: ForeignRows) -> Result<(), CudaError> {
    // SAFETY: both sides live until the buffer is read.
    unsafe { to.copy_rows_async(&gpu.stream, (2, 5), from, (3, 2)) }
}

#[test]
fn rows_are_copied_from_the_own_and_from_another_context() {
    let Some(gpu) = gpu(KERNEL) else { return };
    let to = DeviceBuffer::<u8>::new(&gpu.context, 12).unwrap();
    let own = DeviceBuffer::<u8>::new(&gpu.context, ROWS.len()).unwrap();
    own.write(&gpu.stream, &ROWS).unwrap();
    let other = gpu.cuda.foreign_memory(&ROWS);
    for (address, call) in [(own.address(), "cuMemcpy2DAsync"), (other, "cuMemcpy3DPeerAsync")] {
        to.write(&gpu.stream, &[0; 12]).unwrap();
        gpu.cuda.take_calls();
        copy(&gpu, &to, ForeignRows::Address { address, pitch: 4 }).unwrap();
        assert!(gpu.cuda.take_calls().iter().any(|made| made == call), "{call}");
        assert_eq!(read(&gpu, &to), [0, 0, 1, 2, 3, 0, 0, 4, 5, 6, 0, 0]);
    }
    gpu.cuda.free(other);
}

#[test]
fn rows_that_are_not_there_are_refused_before_the_driver_reads_them() {
    let Some(gpu) = gpu(KERNEL) else { return };
    let to = DeviceBuffer::<u8>::new(&gpu.context, 12).unwrap();
    let small = DeviceBuffer::<u8>::new(&gpu.context, 9).unwrap();
    let other = gpu.cuda.foreign_memory(&ROWS);
    for (address, pitch) in
        [(other + 1, 4), (other, 5), (other, 2), (other, usize::MAX), (16, 4), (0, 4)]
    {
        let error = copy(&gpu, &to, ForeignRows::Address { address, pitch }).unwrap_err();
        assert!(matches!(error, CudaError::NotAllocated { .. }), "{error}");
    }
    let error = copy(&gpu, &small, ForeignRows::Address { address: other, pitch: 4 }).unwrap_err();
    assert!(matches!(error, CudaError::Rows { row: 3, rows: 2, device: 9 }), "{error}");
    assert_eq!(read(&gpu, &to), [0; 12], "and the context still works");
    gpu.cuda.free(other);
}

#[test]
fn egl_images_are_readable_until_they_are_dropped() {
    let Some(gpu) = gpu(KERNEL) else { return };
    let to = DeviceBuffer::<u8>::new(&gpu.context, 12).unwrap();
    let memory = gpu.cuda.foreign_memory(&ROWS);
    let before = gpu.cuda.live_objects();
    for hidden in [false, true] {
        let image = gpu.cuda.egl_image((3, 2), &[(memory, 4)], hidden);
        // SAFETY: the image lives longer than this.
        let frame = unsafe { EglFrame::register(&gpu.context, image as *mut _).unwrap() };
        assert_eq!((frame.size(), gpu.cuda.live_objects()), ((3, 2), before + 1));
        copy(&gpu, &to, frame.plane(0, 4).unwrap()).unwrap();
        assert_eq!(read(&gpu, &to), [0, 0, 1, 2, 3, 0, 0, 4, 5, 6, 0, 0]);
        assert!(matches!(frame.plane(1, 4), Err(CudaError::EglImage { .. })));
        assert_eq!(frame.plane(0, 5).is_err(), !hidden, "arrays have no rows");
        drop(frame);
        assert_eq!(gpu.cuda.live_objects(), before);
    }
    // SAFETY: the driver knows no such image.
    assert!(unsafe { EglFrame::register(&gpu.context, std::ptr::null_mut()) }.is_err());
    gpu.cuda.free(memory);
}
