//! Engines: networks that are ready to run.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use crate::abi::{Abi, Generation};
use crate::context::ExecutionContext;
use crate::cuda::Context;
use crate::error::Error;
use crate::ffi::{self, Object, call, call_shape};
use crate::library::c_string;
use crate::recorder::{RecordedError, Recorder};
use crate::runtime;
use crate::types::{DataType, ShapeRange, TensorInfo, TensorMode};

/// More inputs and outputs, or profiles, than any network has: a count above it comes from a broken interface.
const MOST: i32 = 4096;
/// Shapes that the strategy of a context allows for: all of the profile's, allocated once.
const STATIC: i32 = 0;
/// `LayerInformationFormat` of JSON.
const JSON: i32 = 1;

#[derive(Debug)]
pub(crate) struct Inner {
    /// Before the recorder, which it uses until it is destroyed, and before the runtime that made it.
    object: Mutex<Object>,
    recorder: Recorder,
    tensors: Vec<TensorInfo>,
    name: String,
    layers: u32,
    profiles: usize,
    runtime: Arc<runtime::Inner>,
}

impl Inner {
    pub(crate) fn abi(&self) -> &'static Abi {
        self.runtime.library().abi()
    }

    pub(crate) fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub(crate) fn profiles(&self) -> usize {
        self.profiles
    }

    pub(crate) fn cuda(&self) -> &Arc<Context> {
        self.runtime.cuda()
    }

    /// The errors that the library logged since this was asked for.
    pub(crate) fn logged_error(&self) -> Option<String> {
        self.runtime.library().logger().take_error()
    }

    /// Index of a tensor.
    pub(crate) fn find(&self, name: &str) -> Result<usize, Error> {
        self.tensors.iter().position(|tensor| tensor.name == name).ok_or_else(|| {
            Error::UnknownTensor {
                tensor: name.to_owned(),
                known: self
                    .tensors
                    .iter()
                    .map(|tensor| format!("`{}`", tensor.name))
                    .collect::<Vec<_>>()
                    .join(", "),
            }
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What is destroyed after this body frees device memory. An error says that there is none left to free.
        let _ = self.cuda().make_current();
    }
}

/// A network on a GPU, ready to run. Its contexts keep it alive. Cloning is cheap.
///
/// What it says about its tensors is read once, so asking costs nothing.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

impl Engine {
    pub(crate) fn new(object: Object, runtime: Arc<runtime::Inner>) -> Result<Self, Error> {
        let abi = runtime.library().abi();
        // SAFETY: the entry is `setErrorRecorder` of this object, which is dropped before the recorder.
        let recorder =
            unsafe { Recorder::set(abi.generation, &object, abi.engine.set_error_recorder) };
        // Moved behind the recorder, so that an error below drops it first.
        let object = object;
        // SAFETY: `int32_t getNbIOTensors() const`, `int32_t getNbOptimizationProfiles() const`,
        // `int32_t getNbLayers() const`, `char const* getName() const`, whose string belongs to the engine.
        let (tensors, profiles, layers, name) = unsafe {
            (
                call!(object, abi.engine.tensors, () -> i32),
                call!(object, abi.engine.profiles, () -> i32),
                call!(object, abi.engine.layers, () -> i32),
                ffi::text(call!(object, abi.engine.name, () -> *const c_char)),
            )
        };
        for (what, count) in [("tensors", tensors), ("optimization profiles", profiles)] {
            if !(0..=MOST).contains(&count) {
                let detail = format!("the engine claims to have {count} {what}");
                return Err(Error::Failed { operation: "read the engine", detail });
            }
        }
        let tensors = (0..tensors)
            .map(|index| read_tensor(&object, abi, index, profiles))
            .collect::<Result<Vec<_>, _>>()?;
        let layers = u32::try_from(layers).unwrap_or(0);
        let profiles = usize::try_from(profiles).unwrap_or(0);
        Ok(Self(Arc::new(Inner {
            object: Mutex::new(object),
            recorder,
            tensors,
            name,
            layers,
            profiles,
            runtime,
        })))
    }

    /// Name of the network; may be empty.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Layers of the network after fusion.
    pub fn layers(&self) -> u32 {
        self.0.layers
    }

    /// Number of optimization profiles.
    pub fn profiles(&self) -> usize {
        self.0.profiles
    }

    /// Inputs and outputs, in the library's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.0.tensors
    }

    /// One input or output.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, Error> {
        Ok(&self.0.tensors[self.0.find(name)?])
    }

    /// Makes a context to run the network in. Several contexts of one engine can run at the same time.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason, most often that the device has not enough memory.
    pub fn create_context(&self) -> Result<ExecutionContext, Error> {
        self.0.cuda().make_current()?;
        let abi = self.0.abi();
        let entry = abi.engine.create_context;
        let engine = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.recorder.take();
        self.0.logged_error();
        // SAFETY: `IExecutionContext* createExecutionContext()` in 8, since 10 with the strategy of its memory.
        let raw = unsafe {
            match abi.generation {
                Generation::V8 => call!(engine, entry, () -> *mut c_void),
                Generation::V10 | Generation::V11 => {
                    call!(engine, entry, (i32) -> *mut c_void, STATIC)
                }
            }
        };
        let detail = || self.0.recorder.take_text().or_else(|| self.0.logged_error());
        // SAFETY: what is returned is owned here.
        let object = unsafe { Object::own(raw, "create an execution context", detail) }?;
        drop(engine);
        Ok(ExecutionContext::new(object, Arc::clone(&self.0)))
    }

    /// Bytes of device memory that a context needs for intermediate results, in the worst case of all profiles.
    pub fn device_memory(&self) -> u64 {
        let engine = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `size_t getDeviceMemorySize() const`, in 11 `int64_t getDeviceMemorySizeV2() const`: the same register.
        let bytes = unsafe { call!(engine, self.0.abi().engine_device_memory, () -> i64) };
        u64::try_from(bytes).unwrap_or(0)
    }

    /// Describes all layers as JSON: their names, or, where the plan was built with
    /// [`BuilderConfig::set_detailed`](crate::BuilderConfig::set_detailed), also types, shapes and kernels.
    ///
    /// # Errors
    /// [`Error::NoObject`] and [`Error::Failed`] with TensorRT's reason.
    pub fn inspect(&self) -> Result<String, Error> {
        self.0.cuda().make_current()?;
        let abi = self.0.abi();
        let engine = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.recorder.take();
        self.0.logged_error();
        let told = || self.0.recorder.take_text().or_else(|| self.0.logged_error());
        // SAFETY: `IEngineInspector* createEngineInspector() const`; what is returned is owned here.
        let inspector = unsafe {
            let raw = call!(engine, abi.engine.create_inspector, () -> *mut c_void);
            Object::own(raw, "inspect the engine", told)
        }?;
        // SAFETY: `char const* getEngineInformation(LayerInformationFormat) const`; the string lives with the inspector.
        let text = unsafe {
            ffi::text(call!(inspector, abi.inspector.information, (i32) -> *const c_char, JSON))
        };
        if text.is_empty() {
            let detail = told().unwrap_or_else(|| "it gave no reason".to_owned());
            return Err(Error::Failed { operation: "inspect the engine", detail });
        }
        Ok(text)
    }

    /// Errors that TensorRT reported and no call has answered.
    pub fn take_errors(&self) -> Vec<RecordedError> {
        // No call is going on that might still read one.
        let _engine = self.0.object.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.recorder.take()
    }
}

/// Reads all that is to know about one tensor.
fn read_tensor(object: &Object, abi: &Abi, index: i32, profiles: i32) -> Result<TensorInfo, Error> {
    let refuse = |tensor: &str, reason: String| Error::UnsupportedTensor {
        tensor: tensor.to_owned(),
        reason,
    };
    // SAFETY: `char const* getIOTensorName(int32_t) const`, whose string belongs to the engine.
    let name =
        unsafe { ffi::text(call!(object, abi.engine.tensor_name, (i32) -> *const c_char, index)) };
    if name.is_empty() {
        return Err(refuse(&format!("number {index}"), "it has no name".to_owned()));
    }
    let c_name = c_string(&name, "the name of a tensor")?;
    let c_name = c_name.as_ptr();
    // SAFETY: `TensorIOMode getTensorIOMode(char const*) const`, `DataType getTensorDataType(char const*) const`,
    // `TensorLocation getTensorLocation(char const*) const`, `TensorFormat getTensorFormat(char const*) const`; all
    // enumerations are 32-bit. The name lives during the calls.
    let (mode, data_type, location, format) = unsafe {
        (
            call!(object, abi.engine.tensor_mode, (*const c_char) -> i32, c_name),
            call!(object, abi.engine.tensor_type, (*const c_char) -> i32, c_name),
            call!(object, abi.engine.tensor_location, (*const c_char) -> i32, c_name),
            call!(object, abi.engine.tensor_format, (*const c_char) -> i32, c_name),
        )
    };
    let mode = match mode {
        1 => TensorMode::Input,
        2 => TensorMode::Output,
        other => return Err(refuse(&name, format!("it is neither input nor output ({other})"))),
    };
    let Some(data_type) = DataType::from_raw(data_type) else {
        return Err(refuse(&name, format!("its element type {data_type} is not known")));
    };
    // SAFETY: `Dims getTensorShape(char const*) const`.
    let shape = unsafe {
        call_shape!(abi.generation, object, abi.engine.tensor_shape, (*const c_char), c_name)
    };
    let shape = shape.ok_or_else(|| refuse(&name, "its shape cannot be read".to_owned()))?;
    let on_host = location == 1;
    // The ranges of a tensor that holds shapes are values, asked for in another way.
    let ranges = if mode == TensorMode::Input && !on_host { profiles } else { 0 };
    let range = |profile: i32, which: i32| {
        // SAFETY: `Dims getProfileShape(char const*, int32_t, OptProfileSelector) const`.
        let shape = unsafe {
            let entry = abi.engine.profile_shape;
            call_shape!(
                abi.generation,
                object,
                entry,
                (*const c_char, i32, i32),
                c_name,
                profile,
                which
            )
        };
        shape.ok_or_else(|| refuse(&name, format!("its range in profile {profile} cannot be read")))
    };
    let profiles = (0..ranges)
        .map(|profile| {
            Ok(ShapeRange {
                min: range(profile, 0)?,
                opt: range(profile, 1)?,
                max: range(profile, 2)?,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(TensorInfo { name, mode, data_type, shape, linear: format == 0, on_host, profiles })
}
