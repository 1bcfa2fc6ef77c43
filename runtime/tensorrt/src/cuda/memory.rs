//! Device memory.

use std::marker::PhantomData;
use std::sync::Arc;

use super::{Context, CudaError, Stream};
use crate::types::Element;

/// Elements in device memory, zero when allocated, freed when dropped.
#[derive(Debug)]
pub struct DeviceBuffer<T: Element> {
    context: Arc<Context>,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    /// Allocates memory for `len` elements.
    ///
    /// # Errors
    /// [`CudaError::Call`], where [`CudaError::is_out_of_memory`] tells the usual reason, and [`CudaError::TooLarge`].
    pub fn new(context: &Arc<Context>, len: usize) -> Result<Self, CudaError> {
        let size = len.checked_mul(size_of::<T>()).filter(|&size| isize::try_from(size).is_ok());
        let bytes = size.ok_or(CudaError::TooLarge { elements: len })?;
        context.make_current()?;
        let mut address = 0;
        // The driver refuses an allocation of nothing.
        // SAFETY: `address` takes one device address; a context is current.
        let answer = unsafe { (context.functions().alloc)(&raw mut address, bytes.max(1)) };
        context.check("cuMemAlloc", answer)?;
        let buffer = Self { context: Arc::clone(context), address, len, elements: PhantomData };
        // SAFETY: the memory was just allocated with this size.
        let answer = unsafe { (context.functions().set_bytes)(address, 0, bytes) };
        context.check("cuMemsetD8", answer)?;
        // Streams of this crate do not wait for the default stream, in which the zeros are still being written.
        // SAFETY: null is the default stream, which always exists.
        let answer = unsafe { (context.functions().stream_synchronize)(std::ptr::null_mut()) };
        context.check("cuStreamSynchronize", answer)?;
        Ok(buffer)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The device address, for other libraries; never to be read on the host.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Copies `from` to the device after the work that the stream has already, and waits for it.
    ///
    /// # Errors
    /// [`CudaError::Length`] unless the lengths are equal, [`CudaError::OtherDevice`] and [`CudaError::Call`].
    pub fn write(&self, stream: &Stream, from: &[T]) -> Result<(), CudaError> {
        self.prepare(stream, from.len())?;
        let functions = self.context.functions();
        // SAFETY: both sides have `bytes()` bytes (checked), and `from` is borrowed until the stream is done.
        let answer = unsafe {
            (functions.to_device)(self.address, from.as_ptr().cast(), self.bytes(), stream.raw())
        };
        // Even a refused copy is waited for: nothing may read `from` after this returns.
        let done = stream.synchronize();
        self.context.check("cuMemcpyHtoDAsync", answer)?;
        done
    }

    /// Copies the elements into `to` after the work that the stream has already, and waits for it.
    ///
    /// # Errors
    /// As [`DeviceBuffer::write`].
    pub fn read(&self, stream: &Stream, to: &mut [T]) -> Result<(), CudaError> {
        self.prepare(stream, to.len())?;
        let functions = self.context.functions();
        // SAFETY: both sides have `bytes()` bytes (checked), `to` is borrowed alone until the stream is done, and all
        // bit patterns are values of `T`.
        let answer = unsafe {
            (functions.to_host)(to.as_mut_ptr().cast(), self.address, self.bytes(), stream.raw())
        };
        let done = stream.synchronize();
        self.context.check("cuMemcpyDtoHAsync", answer)?;
        done
    }

    fn prepare(&self, stream: &Stream, host: usize) -> Result<(), CudaError> {
        if host != self.len {
            return Err(CudaError::Length { host, device: self.len });
        }
        stream.check_device(&self.context)?;
        self.context.make_current()
    }
}

impl<T: Element> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        // An error says that the context is broken or gone, and the memory with it.
        if self.context.make_current().is_ok() {
            // SAFETY: allocated in `new`, freed only here; the driver waits for work that uses it.
            let _ = unsafe { (self.context.functions().free)(self.address) };
        }
    }
}
