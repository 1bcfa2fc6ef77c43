//! Options of a build.

use std::ffi::c_void;

use crate::builder::Builder;
use crate::error::Error;
use crate::ffi::{Object, call};
use crate::profile::OptimizationProfile;
use crate::timing_cache::TimingCache;

/// Values of the library's enumerations, the same in all versions with a table.
const WORKSPACE: i32 = 0;
const DEVICE_DLA: i32 = 1;
const VERBOSITY_NAMES: i32 = 0;
const VERBOSITY_DETAILED: i32 = 2;

/// GPUs that a plan runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// GPUs like the one it is built on, the fastest.
    Same,
    /// All from compute capability 8.0 on (Ampere).
    AmperePlus,
    /// GPUs of the same compute capability. Since 10.13 at the latest.
    SameComputeCapability,
}

/// How a plan is built.
#[derive(Debug)]
pub struct BuilderConfig<'b> {
    /// The timing cache in use, destroyed before the configuration as in the library's own programs.
    cache: Option<TimingCache<'b>>,
    object: Object,
    builder: &'b Builder,
}

impl<'b> BuilderConfig<'b> {
    pub(crate) fn new(object: Object, builder: &'b Builder) -> Self {
        Self { cache: None, object, builder }
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    pub(crate) fn builder(&self) -> &'b Builder {
        self.builder
    }

    /// Bytes of device memory that a layer may use for intermediate results, at most; all there is unless set.
    pub fn set_workspace_limit(&mut self, bytes: usize) {
        let entry = self.builder.abi().config.set_pool_limit;
        // SAFETY: `void setMemoryPoolLimit(MemoryPoolType, size_t)`.
        unsafe { call!(self.object, entry, (i32, usize), WORKSPACE, bytes) };
    }

    /// Effort of the search for fast kernels, 0 to 5; 3 unless set.
    ///
    /// # Errors
    /// [`Error::Option`] for other levels.
    pub fn set_optimization_level(&mut self, level: i32) -> Result<(), Error> {
        let refuse = |reason: &str| Error::Option {
            option: "optimization level",
            value: level.to_string(),
            reason: reason.to_owned(),
        };
        if !(0..=5).contains(&level) {
            return Err(refuse("it must be 0 to 5"));
        }
        let config = &self.builder.abi().config;
        // SAFETY: `void setBuilderOptimizationLevel(int32_t)` and `int32_t getBuilderOptimizationLevel() const`.
        let taken = unsafe {
            call!(self.object, config.set_level, (i32), level);
            call!(self.object, config.level, () -> i32)
        };
        if taken == level { Ok(()) } else { Err(refuse("TensorRT did not take it")) }
    }

    /// Which GPUs the plan runs on; [`Hardware::Same`] unless set.
    ///
    /// # Errors
    /// [`Error::Option`] where the library does not know it.
    pub fn set_hardware(&mut self, hardware: Hardware) -> Result<(), Error> {
        let value = match hardware {
            Hardware::Same => 0,
            Hardware::AmperePlus => 1,
            Hardware::SameComputeCapability => 2,
        };
        let version = self.builder.library().version();
        let refuse = |reason: String| Error::Option {
            option: "hardware",
            value: format!("{hardware:?}"),
            reason,
        };
        // An older library would not refuse the number, but ignore it or take it for something else.
        if hardware == Hardware::SameComputeCapability && (version.major, version.minor) < (10, 13)
        {
            return Err(refuse(format!("TensorRT {version} does not have it")));
        }
        let config = &self.builder.abi().config;
        // SAFETY: `void setHardwareCompatibilityLevel(HardwareCompatibilityLevel)` and its getter.
        let taken = unsafe {
            call!(self.object, config.set_hardware, (i32), value);
            call!(self.object, config.hardware, () -> i32)
        };
        if taken == value { Ok(()) } else { Err(refuse("TensorRT did not take it".to_owned())) }
    }

    /// Whether later versions of the library can run the plan too. Such a plan contains a lean runtime (about 40 MB),
    /// and runs only where [`Runtime::set_host_code_allowed`](crate::Runtime::set_host_code_allowed) allows it.
    pub fn set_version_compatible(&mut self, compatible: bool) {
        self.set_flag(self.builder.abi().flags.version_compatible, compatible);
    }

    /// Whether a version-compatible plan is left without its lean runtime, which must then be there where it runs.
    pub fn set_exclude_lean_runtime(&mut self, exclude: bool) {
        self.set_flag(self.builder.abi().flags.exclude_lean_runtime, exclude);
    }

    /// Whether 32-bit products may be computed with 10-bit mantissas (TF32) from compute capability 8.0 on; yes unless
    /// set.
    pub fn set_tf32(&mut self, allowed: bool) {
        self.set_flag(self.builder.abi().flags.tf32, allowed);
    }

    /// Whether the plan describes its layers in full for [`Engine::inspect`](crate::Engine::inspect); names only unless
    /// set. Costs no time when the network runs.
    pub fn set_detailed(&mut self, detailed: bool) {
        let entry = self.builder.abi().config.set_verbosity;
        let verbosity = if detailed { VERBOSITY_DETAILED } else { VERBOSITY_NAMES };
        // SAFETY: `void setProfilingVerbosity(ProfilingVerbosity)`.
        unsafe { call!(self.object, entry, (i32), verbosity) };
    }

    fn set_flag(&mut self, flag: i32, on: bool) {
        let config = &self.builder.abi().config;
        let entry = if on { config.set_flag } else { config.clear_flag };
        // SAFETY: `void setFlag(BuilderFlag)` and `void clearFlag(BuilderFlag)`.
        unsafe { call!(self.object, entry, (i32), flag) };
    }

    /// Builds for a deep-learning accelerator (DLA). With `gpu_fallback`, layers that it cannot do run on the GPU;
    /// without, such a network is refused.
    ///
    /// # Errors
    /// [`Error::Option`] where there is no such core.
    pub fn set_dla_core(&mut self, core: u32, gpu_fallback: bool) -> Result<(), Error> {
        let refuse = |reason| Error::Option { option: "DLA core", value: core.to_string(), reason };
        let count = self.builder.dla_cores();
        if core >= count {
            return Err(refuse(format!("the device has {count} DLA cores")));
        }
        let abi = self.builder.abi();
        // SAFETY: `void setDefaultDeviceType(DeviceType)`, `void setDLACore(int32_t)` and `int32_t getDLACore() const`.
        let taken = unsafe {
            call!(self.object, abi.config.set_default_device, (i32), DEVICE_DLA);
            call!(self.object, abi.config.set_dla_core, (i32), core as i32);
            call!(self.object, abi.config.dla_core, () -> i32)
        };
        self.set_flag(abi.flags.gpu_fallback, gpu_fallback);
        if taken == core as i32 {
            Ok(())
        } else {
            Err(refuse("TensorRT did not take it".to_owned()))
        }
    }

    /// Adds a profile, and answers its index.
    ///
    /// # Errors
    /// [`Error::Failed`] if it is not complete or of another builder, with TensorRT's reason.
    pub fn add_profile(&mut self, profile: &OptimizationProfile<'b>) -> Result<usize, Error> {
        let operation = "add an optimization profile";
        self.builder.check_owner(profile.builder(), operation)?;
        if !profile.is_valid() {
            let detail = "it lacks the shapes of an input, or they do not agree".to_owned();
            return Err(Error::Failed { operation, detail });
        }
        self.builder.forget_errors();
        let entry = self.builder.abi().config.add_profile;
        let profile = profile.object().address();
        // SAFETY: `int32_t addOptimizationProfile(IOptimizationProfile const*)`; it belongs to the borrowed builder.
        let index = unsafe { call!(self.object, entry, (*mut c_void) -> i32, profile) };
        usize::try_from(index).map_err(|_| self.builder.failed(operation))
    }

    /// Uses the timings of earlier builds, from [`TimingCache::serialize`]; no bytes start an empty cache. Timings of
    /// another GPU or version are refused.
    ///
    /// # Errors
    /// [`Error::NoObject`] and [`Error::Failed`] with TensorRT's reason.
    pub fn set_timing_cache(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let cache = self.create_timing_cache(bytes)?;
        self.builder.forget_errors();
        let entry = self.builder.abi().config.set_timing_cache;
        let address = cache.object().address();
        // SAFETY: `bool setTimingCache(ITimingCache const&, bool ignoreMismatch)`; the cache is kept by the configuration.
        let done =
            unsafe { call!(self.object, entry, (*mut c_void, bool) -> bool, address, false) };
        if !done {
            return Err(self.builder.failed("use the timing cache"));
        }
        self.cache = Some(cache);
        Ok(())
    }

    /// Makes a timing cache that is not used by this configuration, to combine it with others.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason.
    pub fn create_timing_cache(&self, bytes: &[u8]) -> Result<TimingCache<'b>, Error> {
        self.builder.forget_errors();
        let entry = self.builder.abi().config.create_timing_cache;
        let data =
            if bytes.is_empty() { std::ptr::null() } else { bytes.as_ptr().cast::<c_void>() };
        // SAFETY: `ITimingCache* createTimingCache(void const*, size_t) const`; the bytes live during the call, which
        // copies them. What is returned is owned by the cache.
        let object = unsafe {
            let raw =
                call!(self.object, entry, (*const c_void, usize) -> *mut c_void, data, bytes.len());
            Object::own(raw, "create a timing cache", || self.builder.told())
        }?;
        Ok(TimingCache::new(object, self.builder))
    }

    /// The timing cache in use, with the timings of the builds so far.
    pub fn timing_cache(&self) -> Option<&TimingCache<'b>> {
        self.cache.as_ref()
    }
}
