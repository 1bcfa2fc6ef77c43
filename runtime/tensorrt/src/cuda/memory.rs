//! Device memory, and page-locked memory of the host.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Pod;

use super::{Context, CudaError, Stream};

/// Bytes of so many elements, if an address can name them.
fn bytes_of<T>(elements: usize) -> Result<usize, CudaError> {
    let size = elements.checked_mul(size_of::<T>());
    size.filter(|&size| isize::try_from(size).is_ok()).ok_or(CudaError::TooLarge { elements })
}

/// Elements in device memory, zero when allocated, freed when dropped.
///
/// Any plain type will do: all bit patterns are values, and there are no unwritten bytes between them.
#[derive(Debug)]
pub struct DeviceBuffer<T: Pod> {
    context: Arc<Context>,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> DeviceBuffer<T> {
    /// Allocates memory for `len` elements.
    ///
    /// # Errors
    /// [`CudaError::Call`], where [`CudaError::is_out_of_memory`] tells the usual reason, and [`CudaError::TooLarge`].
    pub fn new(context: &Arc<Context>, len: usize) -> Result<Self, CudaError> {
        let bytes = bytes_of::<T>(len)?;
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

    /// Puts a copy of the first `count` elements of `from` into the stream. With page-locked memory nothing waits, and
    /// the copy can be captured into a [`Graph`](super::Graph).
    ///
    /// # Errors
    /// [`CudaError::Count`] where one side is shorter, [`CudaError::OtherDevice`] and [`CudaError::Call`].
    ///
    /// # Safety
    /// Until the stream has done the copy, and for as long as a graph with it can be launched, both buffers live, and
    /// `from` is not written while the copy may run.
    pub unsafe fn upload_async(
        &self,
        stream: &Stream,
        from: &PinnedBuffer<T>,
        count: usize,
    ) -> Result<(), CudaError> {
        let bytes = self.prepare_part(stream, from.len(), count)?;
        // SAFETY: both sides have these bytes (checked); how long they live is the caller's.
        let answer = unsafe {
            let from = from.memory.as_ptr().cast_const().cast();
            (self.context.functions().to_device)(self.address, from, bytes, stream.raw())
        };
        self.context.check("cuMemcpyHtoDAsync", answer)
    }

    /// Puts a copy of the first `count` elements into `to` into the stream, as [`DeviceBuffer::upload_async`] does the
    /// other way.
    ///
    /// # Errors
    /// As [`DeviceBuffer::upload_async`].
    ///
    /// # Safety
    /// Until the stream has done the copy, and for as long as a graph with it can be launched, both buffers live, and
    /// `to` is neither read nor written while the copy may run.
    pub unsafe fn download_async(
        &self,
        stream: &Stream,
        to: &PinnedBuffer<T>,
        count: usize,
    ) -> Result<(), CudaError> {
        let bytes = self.prepare_part(stream, to.len(), count)?;
        // SAFETY: both sides have these bytes (checked); how long they live, and that nobody looks, is the caller's.
        let answer = unsafe {
            let to = to.memory.as_ptr().cast();
            (self.context.functions().to_host)(to, self.address, bytes, stream.raw())
        };
        self.context.check("cuMemcpyDtoHAsync", answer)
    }

    /// Lets the stream set all elements to zero bytes.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`] and [`CudaError::Call`].
    ///
    /// # Safety
    /// The buffer lives until the stream has done it, and for as long as a graph with it can be launched.
    pub unsafe fn zero_async(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.check_device(&self.context)?;
        self.context.make_current()?;
        let functions = self.context.functions();
        // SAFETY: the buffer has these bytes; how long it lives is the caller's.
        let answer =
            unsafe { (functions.set_bytes_async)(self.address, 0, self.bytes(), stream.raw()) };
        self.context.check("cuMemsetD8Async", answer)
    }

    fn prepare_part(&self, stream: &Stream, host: usize, count: usize) -> Result<usize, CudaError> {
        if count > host || count > self.len {
            return Err(CudaError::Count { count, host, device: self.len });
        }
        stream.check_device(&self.context)?;
        self.context.make_current()?;
        Ok(count * size_of::<T>())
    }

    fn prepare(&self, stream: &Stream, host: usize) -> Result<(), CudaError> {
        if host != self.len {
            return Err(CudaError::Length { host, device: self.len });
        }
        stream.check_device(&self.context)?;
        self.context.make_current()
    }
}

impl<T: Pod> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        // An error says that the context is broken or gone, and the memory with it.
        if self.context.make_current().is_ok() {
            // SAFETY: allocated in `new`, freed only here; the driver waits for work that uses it.
            let _ = unsafe { (self.context.functions().free)(self.address) };
        }
    }
}

/// Elements in page-locked host memory, zero when allocated, freed when dropped.
///
/// The GPU copies from and to it without the driver's help, so a copy can go on while the host does something else.
#[derive(Debug)]
pub struct PinnedBuffer<T: Pod> {
    context: Arc<Context>,
    memory: NonNull<T>,
    len: usize,
}

// SAFETY: the memory belongs to the buffer alone, as a `Box<[T]>` would.
unsafe impl<T: Pod + Send> Send for PinnedBuffer<T> {}
// SAFETY: as above; it is written through `&mut` only, and by copies whose callers see to it that nobody looks.
unsafe impl<T: Pod + Sync> Sync for PinnedBuffer<T> {}

impl<T: Pod> PinnedBuffer<T> {
    /// Allocates memory for `len` elements.
    ///
    /// # Errors
    /// As [`DeviceBuffer::new`]; out of memory means that of the host.
    pub fn new(context: &Arc<Context>, len: usize) -> Result<Self, CudaError> {
        // The driver refuses an allocation of nothing.
        let bytes = bytes_of::<T>(len)?.max(1);
        context.make_current()?;
        let mut memory = std::ptr::null_mut();
        // SAFETY: `memory` takes one address; a context is current. 0 are the default flags.
        let answer = unsafe { (context.functions().host_alloc)(&raw mut memory, bytes, 0) };
        context.check("cuMemHostAlloc", answer)?;
        let memory = NonNull::new(memory.cast::<T>())
            .filter(|memory| memory.is_aligned())
            .ok_or(CudaError::TooLarge { elements: len })?;
        // SAFETY: just allocated with this size; zeros are a value of every plain type.
        unsafe { memory.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { context: Arc::clone(context), memory, len })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` elements that were set to zero or written since; aligned (checked in `new`).
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }

    /// The elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl<T: Pod> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        // After an error the memory stays locked until the context is reset or the process ends.
        if self.context.make_current().is_ok() {
            // SAFETY: allocated in `new`, freed only here; the driver waits for copies that use it.
            let _ = unsafe { (self.context.functions().host_free)(self.memory.as_ptr().cast()) };
        }
    }
}
