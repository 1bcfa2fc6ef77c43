//! The builder, which makes plans of networks.

use std::ffi::c_void;
use std::sync::Arc;

use crate::abi::Abi;
use crate::config::BuilderConfig;
use crate::cuda::Context;
use crate::error::Error;
use crate::ffi::{Object, call};
use crate::library::Library;
use crate::network::Network;
use crate::plan::{Plan, Seal};
use crate::profile::OptimizationProfile;
use crate::recorder::{RecordedError, Recorder};

/// Makes plans of networks, tuned for one GPU. What it makes borrows it.
#[derive(Debug)]
pub struct Builder {
    /// Before the recorder, which it uses until it is destroyed.
    object: Object,
    recorder: Recorder,
    library: Library,
    cuda: Arc<Context>,
}

impl Builder {
    /// Makes a builder. The context shows that the CUDA driver is there, without which TensorRT must not be called.
    ///
    /// # Errors
    /// [`Error::NoBuilder`] for a lean runtime, [`Error::NoObject`] with TensorRT's reason.
    pub fn new(library: &Library, cuda: &Arc<Context>) -> Result<Self, Error> {
        cuda.make_current()?;
        library.logger().take_error();
        // SAFETY: a context exists, so CUDA is initialised.
        let raw = unsafe { library.create_builder() }?;
        let detail = || library.logger().take_error();
        // SAFETY: what is returned is owned here.
        let object = unsafe { Object::own(raw, "create a builder", detail) }?;
        // SAFETY: the entry is `setErrorRecorder` of this object, which is dropped before the recorder.
        let recorder = unsafe {
            Recorder::set(
                library.abi().generation,
                &object,
                library.abi().builder.set_error_recorder,
            )
        };
        Ok(Self { object, recorder, library: library.clone(), cuda: Arc::clone(cuda) })
    }

    pub(crate) fn abi(&self) -> &'static Abi {
        self.library.abi()
    }

    /// The library.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Number of deep-learning accelerators (DLA) of the device.
    pub fn dla_cores(&self) -> u32 {
        // SAFETY: `int32_t getNbDLACores() const`.
        let count = unsafe { call!(self.object, self.abi().builder.dla_cores, () -> i32) };
        u32::try_from(count).unwrap_or(0)
    }

    /// Makes an empty network: strongly typed (the types in the ONNX are obeyed), which TensorRT 8 does not have.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason.
    pub fn create_network(&self) -> Result<Network<'_>, Error> {
        self.forget_errors();
        let abi = self.abi();
        // SAFETY: `INetworkDefinition* createNetworkV2(uint32_t flags)`; what is returned is owned by the network.
        let object = unsafe {
            let raw = call!(self.object, abi.builder.create_network, (u32) -> *mut c_void, abi.network_flags);
            Object::own(raw, "create a network", || self.told())
        }?;
        Ok(Network::new(object, self))
    }

    /// Makes a configuration with TensorRT's defaults.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason.
    pub fn create_config(&self) -> Result<BuilderConfig<'_>, Error> {
        self.forget_errors();
        // SAFETY: `IBuilderConfig* createBuilderConfig()`; what is returned is owned by the configuration.
        let object = unsafe {
            let raw = call!(self.object, self.abi().builder.create_config, () -> *mut c_void);
            Object::own(raw, "create a configuration", || self.told())
        }?;
        Ok(BuilderConfig::new(object, self))
    }

    /// Makes an empty optimization profile.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason.
    pub fn create_profile(&self) -> Result<OptimizationProfile<'_>, Error> {
        self.forget_errors();
        // SAFETY: `IOptimizationProfile* createOptimizationProfile()`; it belongs to the builder, which is borrowed.
        let object = unsafe {
            let raw = call!(self.object, self.abi().builder.create_profile, () -> *mut c_void);
            Object::borrow(raw, "create an optimization profile", || self.told())
        }?;
        Ok(OptimizationProfile::new(object, self))
    }

    /// Builds a plan; takes seconds to many minutes, most of which the GPU spends trying kernels.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason; [`Error::Plan`] if what it made is no plan; [`Error::Failed`] if
    /// network or configuration belong to another builder.
    pub fn build(&self, network: &Network<'_>, config: &BuilderConfig<'_>) -> Result<Plan, Error> {
        self.check_owner(network.builder(), "build the plan")?;
        self.check_owner(config.builder(), "build the plan")?;
        self.cuda.make_current()?;
        self.forget_errors();
        let abi = self.abi();
        let (network, config) = (network.object().address(), config.object().address());
        // SAFETY: `IHostMemory* buildSerializedNetwork(INetworkDefinition&, IBuilderConfig&)`, whose arguments are public
        // objects; what is returned is owned here.
        let memory = unsafe {
            let entry = abi.builder.build;
            let raw = call!(self.object, entry, (*mut c_void, *mut c_void) -> *mut c_void, network, config);
            Object::own(raw, "build the plan", || self.told())
        }?;
        // SAFETY: it is an `IHostMemory`.
        let bytes = unsafe { host_memory(abi, &memory) };
        let seal = Seal::of(&bytes);
        Ok(Plan::new(bytes, &seal)?)
    }

    /// What is left of earlier calls says nothing about the next one.
    pub(crate) fn forget_errors(&self) {
        self.recorder.take();
        self.library.logger().take_error();
    }

    /// What TensorRT has said about the last call.
    pub(crate) fn told(&self) -> Option<String> {
        self.recorder.take_text().or_else(|| self.library.logger().take_error())
    }

    pub(crate) fn failed(&self, operation: &'static str) -> Error {
        Error::Failed {
            operation,
            detail: self.told().unwrap_or_else(|| "it gave no reason".to_owned()),
        }
    }

    /// Refuses what another builder made: it may even be of another library.
    pub(crate) fn check_owner(&self, other: &Self, operation: &'static str) -> Result<(), Error> {
        if std::ptr::eq(self, other) {
            return Ok(());
        }
        Err(Error::Failed { operation, detail: "it belongs to another builder".to_owned() })
    }

    /// Errors that TensorRT reported and no call has answered.
    pub fn take_errors(&self) -> Vec<RecordedError> {
        self.recorder.take()
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        // What is destroyed after this body frees device memory. An error says that there is none left to free.
        let _ = self.cuda.make_current();
    }
}

/// Copies what an `IHostMemory` holds.
///
/// # Safety
/// `memory` is one.
pub(crate) unsafe fn host_memory(abi: &Abi, memory: &Object) -> Vec<u8> {
    // SAFETY: `void* data() const` and `size_t size() const`.
    let (data, size) = unsafe {
        (
            call!(memory, abi.host_memory.data, () -> *const u8),
            call!(memory, abi.host_memory.size, () -> usize),
        )
    };
    if data.is_null() || isize::try_from(size).is_err() {
        return Vec::new();
    }
    // SAFETY: the object has `size` bytes at `data` until it is destroyed.
    unsafe { std::slice::from_raw_parts(data, size) }.to_vec()
}
