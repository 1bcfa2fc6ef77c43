//! Opening the driver's library.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CudaError;
use crate::library::not_opened;

/// Declares the functions that are used, with the driver's names, and how they are found.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($type:ty),*);)*) => {
        /// The driver's functions, all of which answer a `CUresult`, 0 for success.
        #[derive(Debug)]
        pub(super) struct Functions {
            $(pub(super) $field: unsafe extern "C" fn($($type),*) -> c_int,)*
        }

        impl Functions {
            fn find(library: &libloading::Library) -> Result<Self, CudaError> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the signature is that of the driver interface for this name (and its `_v2`).
                        let function = unsafe { library.get($symbol.as_bytes()) };
                        *function.map_err(|_| CudaError::MissingSymbol { symbol: $symbol })?
                    },)*
                })
            }
        }
    };
}

functions! {
    init = "cuInit": fn(c_uint);
    driver_version = "cuDriverGetVersion": fn(*mut c_int);
    error_name = "cuGetErrorName": fn(c_int, *mut *const c_char);
    error_string = "cuGetErrorString": fn(c_int, *mut *const c_char);
    device_count = "cuDeviceGetCount": fn(*mut c_int);
    device_get = "cuDeviceGet": fn(*mut c_int, c_int);
    device_name = "cuDeviceGetName": fn(*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int);
    device_memory = "cuDeviceTotalMem_v2": fn(*mut usize, c_int);
    primary_retain = "cuDevicePrimaryCtxRetain": fn(*mut *mut c_void, c_int);
    primary_release = "cuDevicePrimaryCtxRelease_v2": fn(c_int);
    primary_reset = "cuDevicePrimaryCtxReset_v2": fn(c_int);
    set_current = "cuCtxSetCurrent": fn(*mut c_void);
    alloc = "cuMemAlloc_v2": fn(*mut u64, usize);
    free = "cuMemFree_v2": fn(u64);
    set_bytes = "cuMemsetD8_v2": fn(u64, u8, usize);
    set_bytes_async = "cuMemsetD8Async": fn(u64, u8, usize, *mut c_void);
    host_alloc = "cuMemHostAlloc": fn(*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost": fn(*mut c_void);
    to_device = "cuMemcpyHtoDAsync_v2": fn(u64, *const c_void, usize, *mut c_void);
    to_host = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, u64, usize, *mut c_void);
    pointer_attributes = "cuPointerGetAttributes": fn(c_uint, *const c_int, *const *mut c_void, u64);
    copy_2d = "cuMemcpy2DAsync_v2": fn(*const super::foreign::Copy2d, *mut c_void);
    copy_peer = "cuMemcpy3DPeerAsync": fn(*const super::foreign::CopyPeer, *mut c_void);
    stream_create = "cuStreamCreate": fn(*mut *mut c_void, c_uint);
    stream_destroy = "cuStreamDestroy_v2": fn(*mut c_void);
    stream_synchronize = "cuStreamSynchronize": fn(*mut c_void);
    stream_wait = "cuStreamWaitEvent": fn(*mut c_void, *mut c_void, c_uint);
    begin_capture = "cuStreamBeginCapture_v2": fn(*mut c_void, c_int);
    end_capture = "cuStreamEndCapture": fn(*mut c_void, *mut *mut c_void);
    graph_instantiate = "cuGraphInstantiateWithFlags": fn(*mut *mut c_void, *mut c_void, u64);
    graph_destroy = "cuGraphDestroy": fn(*mut c_void);
    graph_launch = "cuGraphLaunch": fn(*mut c_void, *mut c_void);
    graph_exec_destroy = "cuGraphExecDestroy": fn(*mut c_void);
    module_load = "cuModuleLoadDataEx": fn(*mut *mut c_void, *const c_void, c_uint, *const c_int, *mut *mut c_void);
    module_unload = "cuModuleUnload": fn(*mut c_void);
    module_function = "cuModuleGetFunction": fn(*mut *mut c_void, *mut c_void, *const c_char);
    launch = "cuLaunchKernel": fn(
        *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *const *const c_void,
        *const *mut c_void
    );
    event_create = "cuEventCreate": fn(*mut *mut c_void, c_uint);
    event_destroy = "cuEventDestroy_v2": fn(*mut c_void);
    event_record = "cuEventRecord": fn(*mut c_void, *mut c_void);
    event_record_flags = "cuEventRecordWithFlags": fn(*mut c_void, *mut c_void, c_uint);
    event_synchronize = "cuEventSynchronize": fn(*mut c_void);
    event_elapsed = "cuEventElapsedTime": fn(*mut f32, *mut c_void, *mut c_void);
}

#[derive(Debug)]
struct Inner {
    functions: Functions,
    path: PathBuf,
    /// Never closed: the driver keeps threads of its own.
    library: ManuallyDrop<libloading::Library>,
}

/// The opened and initialised CUDA driver. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Driver(Arc<Inner>);

impl Driver {
    /// Opens the driver by the loader's path and initialises it.
    ///
    /// # Errors
    /// [`CudaError::NotFound`] without a driver, [`CudaError::Call`] where there is no GPU.
    pub fn open() -> Result<Self, CudaError> {
        Self::open_first(&["libcuda.so.1", "libcuda.so"].map(PathBuf::from))
    }

    /// Opens one file and initialises it.
    ///
    /// # Errors
    /// As [`Driver::open`].
    pub fn open_file(path: impl Into<PathBuf>) -> Result<Self, CudaError> {
        Self::open_first(&[path.into()])
    }

    fn open_first(paths: &[PathBuf]) -> Result<Self, CudaError> {
        let mut tried = Vec::new();
        for path in paths {
            // SAFETY: loading runs the initializers of the file, which was named for this purpose.
            match unsafe { libloading::Library::new(path) } {
                Ok(library) => return Self::initialise(library, path.clone()),
                Err(error) => tried.push(not_opened(path, &error)),
            }
        }
        Err(CudaError::NotFound { tried: tried.join("; ") })
    }

    fn initialise(library: libloading::Library, path: PathBuf) -> Result<Self, CudaError> {
        let library = ManuallyDrop::new(library);
        let functions = Functions::find(&library)?;
        let driver = Self(Arc::new(Inner { functions, path, library }));
        // SAFETY: `cuInit` may be called at any time, and again; 0 is the only value of its flags.
        driver.check("cuInit", unsafe { (driver.functions().init)(0) })?;
        Ok(driver)
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Newest CUDA version that the driver serves, (12, 6) for 12.6.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn cuda_version(&self) -> Result<(u32, u32), CudaError> {
        let mut number = 0;
        // SAFETY: `number` takes one int.
        self.check("cuDriverGetVersion", unsafe {
            (self.functions().driver_version)(&raw mut number)
        })?;
        let number = u32::try_from(number).unwrap_or(0);
        Ok((number / 1000, number % 1000 / 10))
    }

    /// Number of GPUs.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn device_count(&self) -> Result<u32, CudaError> {
        let mut count = 0;
        // SAFETY: `count` takes one int.
        self.check("cuDeviceGetCount", unsafe { (self.functions().device_count)(&raw mut count) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// A function that only some drivers have.
    ///
    /// # Safety
    /// `F` is the function's type.
    pub(super) unsafe fn optional<F: Copy>(&self, symbol: &'static str) -> Result<F, CudaError> {
        // SAFETY: the caller's; the library is never closed.
        let function = unsafe { self.0.library.get::<F>(symbol.as_bytes()) };
        function.map(|function| *function).map_err(|_| CudaError::MissingSymbol { symbol })
    }

    /// The same for all drivers that were opened from one library.
    pub(super) fn identity(&self) -> usize {
        self.functions().init as usize
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.0.functions
    }

    /// Turns an answer of the driver into an error with its name.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let say = |ask: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: `text` takes one pointer; it becomes null or a string that is never freed.
            let answer = unsafe { ask(code, &raw mut text) };
            if answer != 0 || text.is_null() {
                return "unknown".to_owned();
            }
            // SAFETY: a C string of the driver, see above.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let functions = self.functions();
        Err(CudaError::Call {
            call,
            code,
            name: say(functions.error_name),
            description: say(functions.error_string),
        })
    }
}
