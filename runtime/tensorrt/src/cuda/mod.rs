//! The little of the CUDA driver that running engines and kernels needs: devices, memory, streams, events, modules with
//! kernels, graphs; and NVRTC, which compiles kernels.
//!
//! `libcuda` comes with the GPU driver and is opened when the program runs. All work happens in a device's *primary*
//! context, which TensorRT and every library on the CUDA runtime share. Device memory and streams of other libraries
//! can be used through the `unsafe` methods of [`ExecutionContext`](crate::ExecutionContext).

mod driver;
mod foreign;
mod graph;
mod memory;
mod module;
mod nvrtc;
mod stream;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

pub use driver::Driver;
use driver::Functions;
pub use foreign::{EglFrame, ForeignRows};
pub use graph::Graph;
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use module::{Arg, Function, Module};
pub use nvrtc::{Compiled, Nvrtc, NvrtcError};
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
    /// A copy of more elements than one side has.
    #[error(
        "{count} elements cannot be copied between {host} on the host and {device} on the device"
    )]
    Count {
        /// Elements asked for.
        count: usize,
        /// Elements on the host.
        host: usize,
        /// Elements of the buffer.
        device: usize,
    },
    /// The driver does not take a module.
    #[error("the driver does not take the kernels: {name} ({code}), {log}")]
    Module {
        /// The driver's answer.
        code: i32,
        /// Name of the answer.
        name: String,
        /// What its compiler says.
        log: String,
    },
    /// A kernel that the module does not have.
    #[error("there is no kernel `{kernel}` in the module")]
    NoKernel {
        /// Its name.
        kernel: &'static str,
    },
    /// Arguments that do not fit the kernel's parameters.
    #[error("the kernel `{kernel}` takes ({expected}), but ({given}) was given")]
    Arguments {
        /// Its name.
        kernel: &'static str,
        /// Types of its parameters.
        expected: String,
        /// Types of the arguments.
        given: String,
    },
    /// A grid or block that no GPU takes.
    #[error("the kernel `{kernel}` cannot be launched with grid {grid:?} and block {block:?}")]
    Geometry {
        /// Its name.
        kernel: &'static str,
        /// Blocks.
        grid: [u32; 3],
        /// Threads of a block.
        block: [u32; 3],
    },
    /// A GPU that is to be reset has users.
    #[error("GPU {ordinal} cannot be reset: {contexts} contexts of it are still in use")]
    InUse {
        /// Number of the GPU.
        ordinal: u32,
        /// Contexts of this crate.
        contexts: usize,
    },
    /// More memory than an address can name.
    #[error("a buffer of {elements} elements is too large")]
    TooLarge {
        /// Elements asked for.
        elements: usize,
    },
    /// Memory of somebody else that is not where it is said to be.
    #[error(
        "the {bytes} bytes at GPU address {address:#x} lie in no allocation that the driver knows"
    )]
    NotAllocated {
        /// Where they begin.
        address: u64,
        /// How many there should be.
        bytes: usize,
    },
    /// Rows that do not fit into a buffer.
    #[error("{rows} rows of {row} bytes do not fit into a device buffer of {device}")]
    Rows {
        /// Bytes of a row.
        row: usize,
        /// Number of rows.
        rows: usize,
        /// Bytes of the buffer.
        device: usize,
    },
    /// An image of EGL that is not laid out as was expected.
    #[error("the EGL image cannot be read by CUDA: {reason}")]
    EglImage {
        /// What is wrong with it.
        reason: String,
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

/// Contexts that live, by driver (which may be opened twice, and in tests differ) and GPU.
static LIVING: Mutex<BTreeMap<(usize, u32), usize>> = Mutex::new(BTreeMap::new());

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
        let device = Self::device(driver, ordinal)?;
        let mut raw = std::ptr::null_mut();
        let mut living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `device` is a device; `raw` takes one `CUcontext`.
        let answer = unsafe { (functions.primary_retain)(&raw mut raw, device) };
        driver.check("cuDevicePrimaryCtxRetain", answer)?;
        *living.entry((driver.identity(), ordinal)).or_default() += 1;
        drop(living);
        let context = Arc::new(Self { driver: driver.clone(), device, ordinal, raw });
        context.make_current()?;
        Ok(context)
    }

    fn device(driver: &Driver, ordinal: u32) -> Result<i32, CudaError> {
        let mut device = 0;
        // SAFETY: the driver is initialised, the number exists, and `device` takes one `CUdevice`.
        driver.check("cuDeviceGet", unsafe {
            (driver.functions().device_get)(&raw mut device, ordinal as i32)
        })?;
        Ok(device)
    }

    /// Destroys everything in the primary context of a GPU, so that it can be used again after an error that
    /// [breaks](CudaError::is_sticky) it.
    ///
    /// NVIDIA's documentation says of several of these errors that only a new process helps: what works after a reset
    /// has to be tried.
    ///
    /// # Errors
    /// [`CudaError::InUse`] while a [`Context`] of the GPU lives, which buffers, streams, engines and all else keep;
    /// [`CudaError::NoDevice`] and [`CudaError::Call`].
    ///
    /// # Safety
    /// No other library in the process uses anything that it made on the GPU.
    pub unsafe fn reset(driver: &Driver, ordinal: u32) -> Result<(), CudaError> {
        let count = driver.device_count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let device = Self::device(driver, ordinal)?;
        // Held, so that no context is made meanwhile.
        let living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&contexts) = living.get(&(driver.identity(), ordinal)) {
            return Err(CudaError::InUse { ordinal, contexts });
        }
        // SAFETY: nothing of this crate lives on the device (checked), nor of others (caller).
        driver
            .check("cuDevicePrimaryCtxReset", unsafe { (driver.functions().primary_reset)(device) })
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

    /// The `CUcontext`.
    fn raw(&self) -> *mut std::ffi::c_void {
        self.raw
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
        let mut living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this = (self.driver.identity(), self.ordinal);
        match living.get_mut(&of_this) {
            Some(contexts) if *contexts > 1 => *contexts -= 1,
            _ => drop(living.remove(&of_this)),
        }
        // SAFETY: retained once in `new`. An error says that the context is gone already, as at the end of a process.
        let _ = unsafe { (self.functions().primary_release)(self.device) };
    }
}
