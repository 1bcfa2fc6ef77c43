//! The little of the CUDA driver that running an engine needs: devices, memory, streams and events.
//!
//! `libcuda` comes with the GPU driver and is opened when the program runs. All work happens in a device's *primary*
//! context, which TensorRT and every library on the CUDA runtime share. Device memory and streams of other libraries
//! can be used through the `unsafe` methods of [`ExecutionContext`](crate::ExecutionContext).

mod driver;
mod memory;
mod stream;

use std::sync::Arc;

use thiserror::Error;

pub use driver::Driver;
use driver::Functions;
pub use memory::DeviceBuffer;
pub use stream::{Event, Stream};

/// A failed call of the CUDA driver.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library could not be opened.
    #[error("the CUDA driver was not found ({tried}); install the driver of the GPU")]
    NotFound {
        /// Every name that was tried, with the answer of the loader.
        tried: String,
    },
    /// The driver is too old.
    #[error("the CUDA driver has no function `{symbol}`; install a newer driver")]
    MissingSymbol {
        /// The missing function.
        symbol: &'static str,
    },
    /// There is no GPU of this number.
    #[error("there is no GPU {ordinal}; the CUDA driver finds {count}")]
    NoDevice {
        /// Number asked for, from 0.
        ordinal: u32,
        /// GPUs that exist.
        count: u32,
    },
    /// A call failed.
    #[error("{call} failed: {name} ({code}), {description}")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// Its answer.
        code: i32,
        /// Name of the answer.
        name: String,
        /// What the driver says about it.
        description: String,
    },
    /// A copy between host and device memory of different lengths.
    #[error("{host} elements cannot be copied from or to a device buffer of {device}")]
    Length {
        /// Elements on the host.
        host: usize,
        /// Elements of the buffer.
        device: usize,
    },
    /// More memory than an address can name.
    #[error("a buffer of {elements} elements is too large")]
    TooLarge {
        /// Elements asked for.
        elements: usize,
    },
    /// A stream, event and buffer that belong to different GPUs.
    #[error("a stream of GPU {stream} was given to an object of GPU {object}")]
    OtherDevice {
        /// Device of the stream.
        stream: u32,
        /// Device of the object.
        object: u32,
    },
}

impl CudaError {
    /// Whether the context is broken for good, so that all later calls will fail too: it must be torn down.
    ///
    /// These are the answers after which the driver's documentation says that the process must end or the context be
    /// recreated: hardware faults, illegal addresses and instructions, failed launches and asserts.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        matches!(self, Self::Call { code: 214 | 700 | 702 | 709 | 710 | 714..=719, .. })
    }

    /// Whether the GPU had no memory left.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Call { code: 2, .. })
    }
}

/// A GPU with its primary context retained.
///
/// Buffers, streams, engines and whatever else is made on the device keep it.
#[derive(Debug)]
pub struct Context {
    driver: Driver,
    device: i32,
    ordinal: u32,
    /// The `CUcontext`.
    raw: *mut std::ffi::c_void,
}

// SAFETY: a primary context may be used by any thread, and by several at a time; the driver locks what it must.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of GPU `ordinal` (from 0) and makes it current on this thread.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`] and [`CudaError::Call`].
    pub fn new(driver: &Driver, ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let count = driver.device_count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let functions = driver.functions();
        let mut device = 0;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the driver is initialised, the number exists, and `device` takes one `CUdevice`.
        driver.check("cuDeviceGet", unsafe {
            (functions.device_get)(&raw mut device, ordinal as i32)
        })?;
        // SAFETY: `device` is a device; `raw` takes one `CUcontext`.
        let answer = unsafe { (functions.primary_retain)(&raw mut raw, device) };
        driver.check("cuDevicePrimaryCtxRetain", answer)?;
        let context = Arc::new(Self { driver: driver.clone(), device, ordinal, raw });
        context.make_current()?;
        Ok(context)
    }

    /// Number of the GPU, from 0.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The driver.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Makes the context current on this thread. Objects of this crate do so themselves before they are used.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until `self` is dropped.
        self.check("cuCtxSetCurrent", unsafe { (self.functions().set_current)(self.raw) })
    }

    /// Name of the GPU.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn name(&self) -> Result<String, CudaError> {
        let mut name = [0_u8; 256];
        // SAFETY: `name` has room for 256 bytes, of which the driver writes at most 255 (the last stays zero).
        let answer =
            unsafe { (self.functions().device_name)(name.as_mut_ptr().cast(), 255, self.device) };
        self.check("cuDeviceGetName", answer)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Ok(String::from_utf8_lossy(&name[..end]).into_owned())
    }

    /// Compute capability of the GPU, (8, 7) for 8.7.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn compute_capability(&self) -> Result<(u32, u32), CudaError> {
        // `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
        Ok((self.attribute(75)?, self.attribute(76)?))
    }

    fn attribute(&self, attribute: i32) -> Result<u32, CudaError> {
        let mut value = 0;
        // SAFETY: `value` takes one int, the device is valid.
        let answer =
            unsafe { (self.functions().device_attribute)(&raw mut value, attribute, self.device) };
        self.check("cuDeviceGetAttribute", answer)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// Memory of the GPU in bytes.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn total_memory(&self) -> Result<usize, CudaError> {
        let mut bytes = 0;
        // SAFETY: `bytes` takes one size, the device is valid.
        let answer = unsafe { (self.functions().device_memory)(&raw mut bytes, self.device) };
        self.check("cuDeviceTotalMem", answer)?;
        Ok(bytes)
    }

    fn functions(&self) -> &Functions {
        self.driver.functions()
    }

    fn check(&self, call: &'static str, answer: i32) -> Result<(), CudaError> {
        self.driver.check(call, answer)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `new`. An error says that the context is gone already, as at the end of a process.
        let _ = unsafe { (self.functions().primary_release)(self.device) };
    }
}
