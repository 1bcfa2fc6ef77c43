//! How stages start their kernels.
#![allow(unsafe_code)] // Launches.

use bytemuck::Pod;
use conceptseg_tensorrt::cuda::{Arg, DeviceBuffer, Function, Stream};

use super::CudaPathError;

pub(super) fn of<T: Pod>(buffer: &DeviceBuffer<T>) -> Arg {
    Arg::Buffer(buffer.address())
}

/// A size within the limits, all of which fit.
pub(super) fn int(value: usize) -> Arg {
    Arg::I32(value as i32)
}

/// Puts a launch of `x` times `y` blocks of `threads` threads into a stream.
///
/// # Safety
/// The arguments are those of the kernel, and its buffers hold what it reads and writes.
pub(super) unsafe fn launch(
    function: &Function,
    stream: &Stream,
    [x, y]: [usize; 2],
    threads: u32,
    arguments: &[Arg],
) -> Result<(), CudaPathError> {
    // SAFETY: the caller's promise.
    unsafe { function.launch(stream, [x as u32, y as u32, 1], [threads, 1, 1], arguments)? };
    Ok(())
}
