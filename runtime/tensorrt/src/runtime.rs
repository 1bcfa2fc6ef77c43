//! The runtime, which makes engines of plans.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use crate::abi::Generation;
use crate::cuda::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::ffi::{Object, call};
use crate::library::Library;
use crate::plan::Plan;
use crate::recorder::{RecordedError, Recorder};

#[derive(Debug)]
pub(crate) struct Inner {
    /// Before the recorder, which it uses until it is destroyed.
    object: Mutex<Object>,
    recorder: Recorder,
    library: Library,
    cuda: Arc<Context>,
}

impl Inner {
    pub(crate) fn library(&self) -> &Library {
        &self.library
    }

    pub(crate) fn cuda(&self) -> &Arc<Context> {
        &self.cuda
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What is destroyed after this body frees device memory. An error says that there is none left to free.
        let _ = self.cuda.make_current();
    }
}

/// Makes engines of plans on one GPU. Its engines keep it alive. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Runtime(Arc<Inner>);

impl Runtime {
    /// Makes a runtime. The context shows that the CUDA driver is there, without which TensorRT must not be called.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason.
    pub fn new(library: &Library, cuda: &Arc<Context>) -> Result<Self, Error> {
        cuda.make_current()?;
        library.logger().take_error();
        let detail = || library.logger().take_error();
        // SAFETY: a context exists, so CUDA is initialised; what is returned is owned here.
        let object = unsafe { Object::own(library.create_runtime(), "create a runtime", detail) }?;
        // SAFETY: the entry is `setErrorRecorder` of this object, which is dropped before the recorder.
        let recorder = unsafe {
            Recorder::set(
                library.abi().generation,
                &object,
                library.abi().runtime.set_error_recorder,
            )
        };
        let (library, cuda) = (library.clone(), Arc::clone(cuda));
        Ok(Self(Arc::new(Inner { object: Mutex::new(object), recorder, library, cuda })))
    }

    /// The library.
    pub fn library(&self) -> &Library {
        &self.0.library
    }

    /// Number of deep-learning accelerators (DLA) of the device.
    pub fn dla_cores(&self) -> u32 {
        let object = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `int32_t getNbDLACores() const`.
        let count = unsafe { call!(object, self.library().abi().runtime.dla_cores, () -> i32) };
        u32::try_from(count).unwrap_or(0)
    }

    /// Chooses the accelerator (DLA) for the engines that are deserialized from now on.
    ///
    /// # Errors
    /// [`Error::Option`] where there is no such core.
    pub fn set_dla_core(&self, core: u32) -> Result<(), Error> {
        let count = self.dla_cores();
        if core >= count {
            let reason = format!("the device has {count} DLA cores");
            return Err(Error::Option { option: "DLA core", value: core.to_string(), reason });
        }
        let object = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `void setDLACore(int32_t)`.
        unsafe { call!(object, self.library().abi().runtime.set_dla_core, (i32), core as i32) };
        Ok(())
    }

    /// Allows or forbids (the default) plans that bring host code: version-compatible plans that contain their own
    /// lean runtime. Allow it only for plans from a trusted place.
    pub fn set_host_code_allowed(&self, allowed: bool) {
        let object = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `void setEngineHostCodeAllowed(bool)`.
        unsafe {
            call!(object, self.library().abi().runtime.set_host_code_allowed, (bool), allowed);
        }
    }

    /// Makes an engine of a plan.
    ///
    /// # Errors
    /// [`Error::Plan`] if a later major version built it, [`Error::NoObject`] with TensorRT's reason: most often that
    /// another version or another GPU built it, or that the device has not enough memory.
    pub fn deserialize(&self, plan: &Plan) -> Result<Engine, Error> {
        plan.check_for(self.library().version())?;
        self.0.cuda.make_current()?;
        let abi = self.library().abi();
        let entry = abi.runtime.deserialize;
        let runtime = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        // What is left of earlier calls says nothing about this one.
        self.0.recorder.take();
        self.library().logger().take_error();
        let bytes = plan.bytes();
        let (data, size) = (bytes.as_ptr().cast::<c_void>(), bytes.len());
        // SAFETY: `ICudaEngine* deserializeCudaEngine(void const*, size_t)`, with a plugin factory behind in 8 that may
        // be null. The bytes live during the call; the library copies what it keeps.
        let raw = unsafe {
            match abi.generation {
                Generation::V8 => call!(
                    runtime,
                    entry,
                    (*const c_void, usize, *mut c_void) -> *mut c_void,
                    data,
                    size,
                    std::ptr::null_mut()
                ),
                Generation::V10 | Generation::V11 => {
                    call!(runtime, entry, (*const c_void, usize) -> *mut c_void, data, size)
                }
            }
        };
        let detail =
            || self.0.recorder.take_text().or_else(|| self.library().logger().take_error());
        // SAFETY: what is returned is owned here.
        let object = unsafe { Object::own(raw, "read the plan", detail) }?;
        drop(runtime);
        Engine::new(object, Arc::clone(&self.0))
    }

    /// Errors that TensorRT reported and no call has answered.
    pub fn take_errors(&self) -> Vec<RecordedError> {
        // No call is going on that might still read one.
        let _runtime = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.recorder.take()
    }
}
