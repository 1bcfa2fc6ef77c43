//! Streams of work, and events in them.

use std::ffi::c_void;
use std::sync::Arc;

use super::{Context, CudaError};

/// `CU_STREAM_NON_BLOCKING`: does not wait for work on the legacy default stream.
const NON_BLOCKING: u32 = 1;

/// `CU_EVENT_RECORD_EXTERNAL`: a mark that every launch of the graph passes, not only an order within it.
const RECORD_EXTERNAL: u32 = 1;

/// A queue of work on a GPU.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    raw: *mut c_void,
}

// SAFETY: streams may be used by any thread, and by several at a time.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Makes a stream.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, CudaError> {
        context.make_current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` takes one `CUstream`; a context is current.
        let answer = unsafe { (context.functions().stream_create)(&raw mut raw, NON_BLOCKING) };
        context.check("cuStreamCreate", answer)?;
        Ok(Arc::new(Self { context: Arc::clone(context), raw }))
    }

    /// The `CUstream` (a `cudaStream_t` too), for other libraries.
    pub fn raw(&self) -> *mut c_void {
        self.raw
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all work is done, and answers the first error in it.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: the stream lives.
        self.context.check("cuStreamSynchronize", unsafe {
            (self.context.functions().stream_synchronize)(self.raw)
        })
    }

    /// Lets later work wait for what was before `event`, also in another stream.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: both live now; the driver keeps what it needs of the event. 0 is the only value of the flags.
        let answer = unsafe { (self.context.functions().stream_wait)(self.raw, event.raw, 0) };
        self.context.check("cuStreamWaitEvent", answer)
    }

    pub(crate) fn check_device(&self, object: &Context) -> Result<(), CudaError> {
        if self.context.ordinal() == object.ordinal() {
            return Ok(());
        }
        Err(CudaError::OtherDevice { stream: self.context.ordinal(), object: object.ordinal() })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: made in `new`, destroyed only here; work that is still queued is finished by the driver.
            let _ = unsafe { (self.context.functions().stream_destroy)(self.raw) };
        }
    }
}

/// A mark in a stream, with the time at which the GPU passes it.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    raw: *mut c_void,
}

// SAFETY: events may be used by any thread, and by several at a time.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Makes an event that takes the time.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.make_current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` takes one `CUevent`; a context is current. 0 are the default flags.
        let answer = unsafe { (context.functions().event_create)(&raw mut raw, 0) };
        context.check("cuEventCreate", answer)?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Marks the end of the work that the stream has now.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`] and [`CudaError::Call`].
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.check_device(&self.context)?;
        self.context.make_current()?;
        // SAFETY: both live, in the same context.
        let answer = unsafe { (self.context.functions().event_record)(self.raw, stream.raw()) };
        self.context.check("cuEventRecord", answer)
    }

    /// Marks a place in the work of a [`Graph`](super::Graph) that is being captured; each launch of the graph passes it.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`] and [`CudaError::Call`], also where the stream is not being captured.
    pub fn record_in_graph(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.check_device(&self.context)?;
        self.context.make_current()?;
        let record = self.context.functions().event_record_flags;
        // SAFETY: both live, in the same context; the graph keeps what it needs of the event.
        let answer = unsafe { record(self.raw, stream.raw(), RECORD_EXTERNAL) };
        self.context.check("cuEventRecordWithFlags", answer)
    }

    /// Waits until the GPU has passed the mark.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: the event lives.
        self.context.check("cuEventSynchronize", unsafe {
            (self.context.functions().event_synchronize)(self.raw)
        })
    }

    /// Milliseconds between two passed events.
    ///
    /// # Errors
    /// [`CudaError::Call`], also where one of them has not been passed yet.
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f32, CudaError> {
        self.context.make_current()?;
        let mut time = 0.0;
        // SAFETY: `time` takes one float, both events live.
        let answer = unsafe {
            (self.context.functions().event_elapsed)(&raw mut time, earlier.raw, self.raw)
        };
        self.context.check("cuEventElapsedTime", answer)?;
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: made in `new`, destroyed only here.
            let _ = unsafe { (self.context.functions().event_destroy)(self.raw) };
        }
    }
}
