//! Running an engine.

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

use crate::cuda::{CudaError, DeviceBuffer, Stream};
use crate::engine;
use crate::error::Error;
use crate::ffi::{Dims, MAX_DIMS, Object, call, call_shape};
use crate::library::c_string;
use crate::recorder::{RecordedError, Recorder};
use crate::types::{DataType, Element, TensorMode};

/// TensorRT's kernels count on this alignment of tensors; the driver's allocations have it.
const ALIGNMENT: u64 = 256;

/// Device memory of one tensor.
struct Binding {
    bytes: u64,
    /// Keeps the memory; nothing for memory that the caller answers for.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// Runs one network in one stream at a time; for several at the same time make several contexts.
///
/// Keeps its engine and all bound buffers. Everything is checked before TensorRT sees it: names, types, shapes against
/// the profile, and buffer sizes.
pub struct ExecutionContext {
    /// Before the recorder, which it uses until it is destroyed, and before the engine that made it.
    object: Object,
    recorder: Recorder,
    /// By tensor, in the engine's order.
    bindings: Vec<Option<Binding>>,
    /// Whether the shape of an input has been set.
    shaped: Vec<bool>,
    profile: usize,
    /// Whether shapes and buffers have been checked since the last change.
    checked: bool,
    /// The stream of the last run, which may still use the buffers.
    running: Option<Arc<Stream>>,
    engine: Arc<engine::Inner>,
}

impl std::fmt::Debug for ExecutionContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecutionContext").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl ExecutionContext {
    pub(crate) fn new(object: Object, engine: Arc<engine::Inner>) -> Self {
        // SAFETY: the entry is `setErrorRecorder` of this object, which is dropped before the recorder.
        let recorder = unsafe {
            Recorder::set(engine.abi().generation, &object, engine.abi().context.set_error_recorder)
        };
        let tensors = engine.tensors().len();
        Self {
            object,
            recorder,
            bindings: std::iter::repeat_with(|| None).take(tensors).collect(),
            shaped: vec![false; tensors],
            profile: 0,
            checked: false,
            running: None,
            engine,
        }
    }

    /// Chooses an optimization profile; 0 is chosen at first. The shapes of all inputs must be set anew.
    ///
    /// # Errors
    /// [`Error::Option`] if there is no such profile, [`Error::Failed`] with TensorRT's reason.
    pub fn set_profile(&mut self, profile: usize, stream: &Arc<Stream>) -> Result<(), Error> {
        let count = self.engine.profiles();
        if profile >= count {
            let reason = format!("the engine has {count} profiles");
            return Err(Error::Option { option: "profile", value: profile.to_string(), reason });
        }
        self.prepare(stream)?;
        self.running = Some(Arc::clone(stream));
        self.forget_errors();
        // SAFETY: `bool setOptimizationProfileAsync(int32_t, cudaStream_t)`; the stream lives, and is kept.
        let done = unsafe {
            let entry = self.engine.abi().context.set_profile;
            call!(self.object, entry, (i32, *mut c_void) -> bool, profile as i32, stream.raw())
        };
        if !done {
            return Err(self.failed("choose the optimization profile"));
        }
        self.profile = profile;
        self.shaped.fill(false);
        self.checked = false;
        Ok(())
    }

    /// Sets the shape of an input. Inputs without an open size have theirs already.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], [`Error::NotAnInput`], [`Error::Shape`] if the engine or the profile does not allow it.
    pub fn set_input_shape(&mut self, name: &str, shape: &[i64]) -> Result<(), Error> {
        let index = self.engine.find(name)?;
        let info = &self.engine.tensors()[index];
        if info.mode != TensorMode::Input {
            return Err(Error::NotAnInput { tensor: name.to_owned() });
        }
        let refuse =
            |reason| Error::Shape { tensor: name.to_owned(), given: shape.to_vec(), reason };
        let fits =
            |(&size, &declared): (&i64, &i64)| size >= 0 && (declared < 0 || size == declared);
        if shape.len() > MAX_DIMS
            || shape.len() != info.shape.len()
            || !shape.iter().zip(&info.shape).all(fits)
        {
            return Err(refuse(format!("the engine takes {:?}, where -1 is open", info.shape)));
        }
        if let Some(reason) = info.profiles.get(self.profile).and_then(|range| range.refuse(shape))
        {
            return Err(refuse(reason));
        }
        let abi = self.engine.abi();
        let dims = Dims::new(abi.generation, shape)
            .ok_or_else(|| refuse("a size is too large".to_owned()))?;
        let c_name = c_string(name, "the name of a tensor")?;
        self.engine.cuda().make_current()?;
        self.checked = false;
        self.forget_errors();
        // SAFETY: `bool setInputShape(char const*, Dims const&)`; both live during the call, which copies them.
        let done = unsafe {
            let entry = abi.context.set_input_shape;
            call!(self.object, entry, (*const c_char, *const c_void) -> bool, c_name.as_ptr(), dims.address())
        };
        self.shaped[index] = done;
        if done { Ok(()) } else { Err(self.failed("set the shape of an input")) }
    }

    /// The shape that a tensor has now, -1 where a size is open because the shape of an input is not set.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], and [`Error::Failed`] with TensorRT's reason.
    pub fn shape(&self, name: &str) -> Result<Vec<i64>, Error> {
        self.shape_of(self.engine.find(name)?)
    }

    fn shape_of(&self, index: usize) -> Result<Vec<i64>, Error> {
        let info = &self.engine.tensors()[index];
        if info.mode == TensorMode::Input && info.is_dynamic() && !self.shaped[index] {
            return Ok(info.shape.clone());
        }
        let abi = self.engine.abi();
        let c_name = c_string(&info.name, "the name of a tensor")?;
        // SAFETY: `Dims getTensorShape(char const*) const`; the name lives during the call.
        let shape = unsafe {
            let entry = abi.context.tensor_shape;
            call_shape!(abi.generation, self.object, entry, (*const c_char), c_name.as_ptr())
        };
        shape.ok_or_else(|| self.failed("tell the shape of a tensor"))
    }

    /// Binds a buffer to a tensor, in place of an earlier one. It may be longer than the tensor.
    ///
    /// A run that still uses the earlier buffer is waited for.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], [`Error::Type`], [`Error::OtherDevice`], [`Error::UnsupportedTensor`] where this crate
    /// does not serve the tensor's layout, [`Error::Failed`] with TensorRT's reason.
    pub fn bind<T: Element>(
        &mut self,
        name: &str,
        buffer: &Arc<DeviceBuffer<T>>,
    ) -> Result<(), Error> {
        let index = self.engine.find(name)?;
        let info = &self.engine.tensors()[index];
        let expected = info.data_type;
        if expected != T::TYPE && (expected, T::TYPE) != (DataType::Bool, DataType::UInt8) {
            return Err(Error::Type { tensor: name.to_owned(), expected, given: T::TYPE });
        }
        let (engine, device) = (self.engine.cuda().ordinal(), buffer.context().ordinal());
        if engine != device {
            return Err(Error::OtherDevice { tensor: name.to_owned(), engine, buffer: device });
        }
        let owner: Arc<dyn Any + Send + Sync> = buffer.clone();
        // SAFETY: the buffer has these bytes on this device, and is kept until it is replaced or this is dropped, after
        // the last run has ended.
        unsafe { self.bind_memory(index, buffer.address(), buffer.bytes() as u64, Some(owner)) }
    }

    /// Binds memory of another library to a tensor.
    ///
    /// # Errors
    /// As [`ExecutionContext::bind`], but for the type and the device, which only the caller knows;
    /// [`Error::UnsupportedTensor`] also where the address is not a multiple of 256.
    ///
    /// # Safety
    /// `address` names `bytes` bytes of memory of the engine's device, of the tensor's type, that live until the tensor
    /// is bound anew or the context is dropped, and until every run that was enqueued before has ended.
    pub unsafe fn bind_raw(&mut self, name: &str, address: u64, bytes: u64) -> Result<(), Error> {
        let index = self.engine.find(name)?;
        // SAFETY: the caller's.
        unsafe { self.bind_memory(index, address, bytes, None) }
    }

    /// # Safety
    /// As for [`ExecutionContext::bind_raw`], unless `owner` keeps the memory.
    unsafe fn bind_memory(
        &mut self,
        index: usize,
        address: u64,
        bytes: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<(), Error> {
        let info = &self.engine.tensors()[index];
        let refuse = |reason: &str| Error::UnsupportedTensor {
            tensor: info.name.clone(),
            reason: reason.to_owned(),
        };
        if info.on_host {
            return Err(refuse("its values are shapes, which live in host memory"));
        }
        if !info.linear {
            return Err(refuse(
                "its elements are not in plain row-major order; build the plan with linear tensors",
            ));
        }
        if !address.is_multiple_of(ALIGNMENT) || address == 0 {
            return Err(refuse("the address of its buffer is not a multiple of 256"));
        }
        let c_name = c_string(&info.name, "the name of a tensor")?;
        self.wait()?;
        self.checked = false;
        self.forget_errors();
        let entry = self.engine.abi().context.set_tensor_address;
        let data = std::ptr::with_exposed_provenance_mut::<c_void>(address as usize);
        // SAFETY: `bool setTensorAddress(char const*, void*)`; the address is only stored, and is used by runs, which
        // check the size first. The name lives during the call.
        let done = unsafe {
            call!(self.object, entry, (*const c_char, *mut c_void) -> bool, c_name.as_ptr(), data)
        };
        if !done {
            return Err(self.failed("bind a buffer"));
        }
        self.bindings[index] = Some(Binding { bytes, _owner: owner });
        Ok(())
    }

    /// Runs the network in a stream. This only puts the work there; [`Stream::synchronize`] waits for it.
    ///
    /// # Errors
    /// [`Error::Unbound`], [`Error::OpenShape`] and [`Error::BufferTooSmall`] before TensorRT is asked, and
    /// [`Error::Failed`] with its reason.
    pub fn enqueue(&mut self, stream: &Arc<Stream>) -> Result<(), Error> {
        self.prepare(stream)?;
        self.check()?;
        self.running = Some(Arc::clone(stream));
        // SAFETY: the stream lives and is kept; shapes and buffers were checked, and are kept until the run has ended.
        unsafe { self.start(stream.raw()) }
    }

    /// Runs the network in a stream of another library, also one that is being captured into a graph.
    ///
    /// # Errors
    /// As [`ExecutionContext::enqueue`].
    ///
    /// # Safety
    /// `stream` is a live stream of the engine's device. The caller waits for it before a tensor is bound anew and
    /// before the context is dropped, and neither happens while a graph captured here can still be launched.
    pub unsafe fn enqueue_raw(&mut self, stream: *mut c_void) -> Result<(), Error> {
        self.engine.cuda().make_current()?;
        self.check()?;
        // SAFETY: shapes and buffers were checked; the rest is the caller's.
        unsafe { self.start(stream) }
    }

    /// # Safety
    /// Shapes and buffers have been checked; stream and buffers live until the run has ended.
    unsafe fn start(&mut self, stream: *mut c_void) -> Result<(), Error> {
        self.forget_errors();
        let entry = self.engine.abi().context.enqueue;
        // SAFETY: `bool enqueueV3(cudaStream_t)`; the rest is the caller's.
        let done = unsafe { call!(self.object, entry, (*mut c_void) -> bool, stream) };
        if done { Ok(()) } else { Err(self.failed("run the network")) }
    }

    /// Checks that every tensor has a shape and a buffer that is large enough.
    fn check(&mut self) -> Result<(), Error> {
        if self.checked {
            return Ok(());
        }
        for (index, info) in self.engine.tensors().iter().enumerate() {
            let tensor = info.name.clone();
            let Some(binding) = &self.bindings[index] else {
                return Err(Error::Unbound { tensor });
            };
            let shape = self.shape_of(index)?;
            let Some(needed) = info.data_type.bytes(&shape) else {
                return Err(Error::OpenShape { tensor, shape });
            };
            if needed > binding.bytes {
                return Err(Error::BufferTooSmall { tensor, shape, needed, given: binding.bytes });
            }
        }
        self.checked = true;
        Ok(())
    }

    /// Makes the device current, and waits for a run in another stream: a context must not run twice at a time.
    fn prepare(&mut self, stream: &Stream) -> Result<(), Error> {
        stream.check_device(self.engine.cuda())?;
        self.engine.cuda().make_current()?;
        if self.running.as_ref().is_some_and(|running| running.raw() != stream.raw()) {
            self.wait()?;
        }
        Ok(())
    }

    /// Waits for the last run.
    fn wait(&mut self) -> Result<(), CudaError> {
        self.engine.cuda().make_current()?;
        self.running.take().map_or(Ok(()), |stream| stream.synchronize())
    }

    /// What is left of earlier calls says nothing about the next one.
    fn forget_errors(&self) {
        self.recorder.take();
        self.engine.logged_error();
    }

    fn failed(&self, operation: &'static str) -> Error {
        let told = self.recorder.take_text().or_else(|| self.engine.logged_error());
        Error::Failed { operation, detail: told.unwrap_or_else(|| "it gave no reason".to_owned()) }
    }

    /// Errors that TensorRT reported and no call has answered, such as those of a kernel found later.
    pub fn take_errors(&self) -> Vec<RecordedError> {
        self.recorder.take()
    }
}

impl Drop for ExecutionContext {
    fn drop(&mut self) {
        // The buffers are given back after this body. An error says that the device's context is broken: nothing runs.
        let _ = self.wait();
    }
}
