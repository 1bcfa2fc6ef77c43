//! Timings of kernels, kept from one build to the next.

use std::ffi::c_void;

use crate::builder::{Builder, host_memory};
use crate::error::Error;
use crate::ffi::{Object, call};

/// Timings of kernels on one GPU with one version of the library. They make later builds faster, and equal.
#[derive(Debug)]
pub struct TimingCache<'b> {
    object: Object,
    builder: &'b Builder,
}

impl<'b> TimingCache<'b> {
    pub(crate) fn new(object: Object, builder: &'b Builder) -> Self {
        Self { object, builder }
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    /// The timings as bytes, to be written to a file.
    ///
    /// # Errors
    /// [`Error::NoObject`] with TensorRT's reason.
    pub fn serialize(&self) -> Result<Vec<u8>, Error> {
        self.builder.forget_errors();
        let abi = self.builder.abi();
        // SAFETY: `IHostMemory* serialize() const`; what is returned is owned here, and is an `IHostMemory`.
        unsafe {
            let raw = call!(self.object, abi.timing_cache.serialize, () -> *mut c_void);
            let memory = Object::own(raw, "serialize the timing cache", || self.builder.told())?;
            Ok(host_memory(abi, &memory))
        }
    }

    /// Adds the timings of another cache.
    ///
    /// # Errors
    /// [`Error::Failed`] if they are of another GPU, version or builder.
    pub fn combine(&mut self, other: &Self) -> Result<(), Error> {
        self.builder.check_owner(other.builder, "combine timing caches")?;
        self.builder.forget_errors();
        let entry = self.builder.abi().timing_cache.combine;
        let other = other.object.address();
        // SAFETY: `bool combine(ITimingCache const&, bool ignoreMismatch)`.
        let done = unsafe { call!(self.object, entry, (*mut c_void, bool) -> bool, other, false) };
        if done { Ok(()) } else { Err(self.builder.failed("combine timing caches")) }
    }
}
