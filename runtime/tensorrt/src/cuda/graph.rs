//! Work that is recorded once and started as a whole.

use std::ffi::c_void;
use std::sync::Arc;

use super::{Context, CudaError, Stream};

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: what other threads do is no business of the capture.
const THREAD_LOCAL: i32 = 1;

/// Copies and launches that one call starts, in the order in which a stream was given them.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    /// The `CUgraphExec`.
    raw: *mut c_void,
}

// SAFETY: an instantiated graph may be used by any thread, one at a time; launches take `&self` because the driver
// lets a graph's runs follow each other.
unsafe impl Send for Graph {}
// SAFETY: the driver locks the graph while it is launched.
unsafe impl Sync for Graph {}

/// Ends a capture, also where its work panics.
struct Capture<'a> {
    stream: &'a Stream,
    ended: bool,
}

impl Capture<'_> {
    /// Ends the capture, and answers the graph, which may be null after an error.
    fn end(&mut self) -> Result<Captured<'_>, CudaError> {
        self.ended = true;
        let context = self.stream.context();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the stream lives and is captured by this thread; `raw` takes one `CUgraph`.
        let answer = unsafe { (context.functions().end_capture)(self.stream.raw(), &raw mut raw) };
        let graph = Captured { context, raw };
        context.check("cuStreamEndCapture", answer)?;
        Ok(graph)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // What ended the work is reported; the stream only has to be usable again.
            let _ = self.end();
        }
    }
}

/// A `CUgraph`, or null.
struct Captured<'a> {
    context: &'a Context,
    raw: *mut c_void,
}

impl Drop for Captured<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made by the capture, destroyed only here; what was instantiated from it does not need it.
            let _ = unsafe { (self.context.functions().graph_destroy)(self.raw) };
        }
    }
}

impl Graph {
    /// Records what `work` puts into the stream, in place of doing it.
    ///
    /// Meanwhile this thread may neither allocate or free memory of the GPU nor wait for it: that ends the capture with
    /// an error. After any error the stream is as it was.
    ///
    /// # Errors
    /// That of `work`, and [`CudaError::Call`].
    pub fn capture<E: From<CudaError>>(
        stream: &Arc<Stream>,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        let context = stream.context();
        let functions = context.functions();
        context.make_current()?;
        // SAFETY: the stream lives.
        let answer = unsafe { (functions.begin_capture)(stream.raw(), THREAD_LOCAL) };
        context.check("cuStreamBeginCapture", answer)?;
        let mut capture = Capture { stream, ended: false };
        work()?;
        let graph = capture.end()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` takes one `CUgraphExec`; the graph was just made. There are no flags.
        let answer = unsafe { (functions.graph_instantiate)(&raw mut raw, graph.raw, 0) };
        context.check("cuGraphInstantiate", answer)?;
        drop(graph);
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Starts the recorded work in a stream, after what that has already.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`] and [`CudaError::Call`].
    ///
    /// # Safety
    /// All that the recorded work uses still lives, until the stream has done it: memory, kernels, engines. What its
    /// parts require of their callers holds again.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.check_device(&self.context)?;
        self.context.make_current()?;
        // SAFETY: graph and stream live; the rest is the caller's.
        let answer = unsafe { (self.context.functions().graph_launch)(self.raw, stream.raw()) };
        self.context.check("cuGraphLaunch", answer)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: made in `capture`, destroyed only here; a run that has begun is finished by the driver.
            let _ = unsafe { (self.context.functions().graph_exec_destroy)(self.raw) };
        }
    }
}
