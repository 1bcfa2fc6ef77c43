//! Sums over CUDA devices with NCCL, loaded when first used; everything else goes over TCP.
#![allow(unsafe_code)] // NCCL works on the addresses of the tensors.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::nccl::{result, sys};
use tch::Tensor;

use super::tcp::TcpCommunicator;
use super::{Communicator, DistributedError};

/// Bytes of a NCCL id.
const ID: usize = 128;

/// A process with a CUDA device of its own.
pub struct NcclCommunicator {
    tcp: TcpCommunicator,
    handle: sys::ncclComm_t,
    /// The device's primary context, which libtorch uses too.
    context: Arc<CudaContext>,
}

impl NcclCommunicator {
    /// Joins the processes that `tcp` connects, each with the CUDA device `device`.
    ///
    /// # Errors
    /// [`DistributedError::Nccl`] where NCCL or the device is missing.
    pub fn new(tcp: TcpCommunicator, device: usize) -> Result<Self, DistributedError> {
        // SAFETY: both only try to open the shared library.
        let (cuda, nccl) =
            unsafe { (cudarc::driver::sys::is_culib_present(), sys::is_culib_present()) };
        // Every process has to get to know that another one cannot join.
        if tcp.any(!cuda || !nccl)? {
            let reason = match (cuda, nccl) {
                (false, _) => "libcuda.so is not found; install the NVIDIA driver",
                (_, false) => {
                    "libnccl.so is not found; add the folder of nvidia-nccl or of the system's \
                     NCCL to LD_LIBRARY_PATH"
                }
                _ => "another process has no NCCL; see its own output",
            };
            return Err(failed("be loaded", reason));
        }
        let context = CudaContext::new(device).map_err(|e| failed("use the device", e))?;
        context.bind_to_thread().map_err(|e| failed("use the device", e))?;
        let own: Vec<u8> = if tcp.rank() == 0 {
            let id = result::get_uniqueid().map_err(|e| failed("make an id", debug(&e)))?;
            id.internal.iter().map(|&c| c.cast_unsigned()).collect()
        } else {
            Vec::new()
        };
        let all = tcp.all_gather(&own)?;
        let bytes = all.first().filter(|bytes| bytes.len() == ID).ok_or_else(|| {
            DistributedError::Disagreement { rank: 0, what: "sends no NCCL id".into() }
        })?;
        let mut id = sys::ncclUniqueId { internal: [0; ID] };
        for (to, from) in id.internal.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
        let mut handle = std::ptr::null_mut();
        let (size, rank) = (tcp.size() as i32, tcp.rank() as i32);
        // SAFETY: `handle` is valid for writing, and `id` comes from rank 0 of this run.
        unsafe { result::comm_init_rank(&raw mut handle, size, id, rank) }
            .map_err(|e| failed("join the processes", debug(&e)))?;
        Ok(Self { tcp, handle, context })
    }
}

impl Communicator for NcclCommunicator {
    fn rank(&self) -> usize {
        self.tcp.rank()
    }

    fn size(&self) -> usize {
        self.tcp.size()
    }

    fn all_reduce_sum(&self, flat: &mut Tensor) -> Result<(), DistributedError> {
        if !flat.device().is_cuda() {
            return self.tcp.all_reduce_sum(flat);
        }
        // Backward passes run in threads of libtorch, but this one may have been moved too.
        self.context.bind_to_thread().map_err(|e| failed("use the device", e))?;
        let data = flat.data_ptr();
        // SAFETY: `flat` is contiguous single precision on this device and outlives the work,
        // which is queued on the default stream before anything that libtorch does with it.
        unsafe {
            result::all_reduce(
                data,
                data,
                flat.numel(),
                sys::ncclDataType_t::ncclFloat32,
                sys::ncclRedOp_t::ncclSum,
                self.handle,
                std::ptr::null_mut(),
            )
        }
        .map_err(|e| failed("sum", debug(&e)))?;
        Ok(())
    }

    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, DistributedError> {
        self.tcp.all_gather(own)
    }
}

impl Drop for NcclCommunicator {
    fn drop(&mut self) {
        // SAFETY: the handle is from `comm_init_rank` and is not used again. Abort, because
        // destroy waits for processes that may be gone.
        let _ = unsafe { result::comm_abort(self.handle) };
    }
}

fn failed(what: &'static str, reason: impl fmt::Display) -> DistributedError {
    DistributedError::Nccl { what, reason: reason.to_string() }
}

/// NCCL's errors have no text.
fn debug(error: &result::NcclError) -> String {
    format!("{error:?}")
}
