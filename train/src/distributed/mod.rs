//! One run over several processes, each with its part of the joint batch.
//!
//! Any launcher will do that starts the same command `WORLD_SIZE` times and tells each process
//! its `RANK` and where the first one is (`MASTER_ADDR`, `MASTER_PORT`).
//!
//! The losses are those of the joint batch, see [`joint`]; what is summed is summed in the
//! order of the ranks, so that all processes hold the same bits and a run can be repeated.
//! (NCCL, on GPUs, takes an order of its own; all processes get the same sum there too.)

pub mod joint;
pub mod nccl;
pub mod tcp;

use std::io;
use std::time::Duration;

use tch::{Device, Kind, Tensor, no_grad};

use crate::losses::LossError;

/// Most processes of a run.
pub const MAX_PROCESSES: usize = 1024;
/// How long a process waits for another one before it gives up: the slowest step, or the
/// writing of a checkpoint, must fit.
const PATIENCE: Duration = Duration::from_mins(10);

/// Why several processes cannot work together.
#[derive(Debug, thiserror::Error)]
pub enum DistributedError {
    /// The launcher's environment is incomplete or out of range.
    #[error("the environment variable {name} is {value}; it must be {expected}")]
    Environment {
        /// Name of the variable.
        name: &'static str,
        /// What was found.
        value: String,
        /// What is possible.
        expected: String,
    },
    /// The first process cannot be reached, or cannot listen.
    #[error("rank {rank} cannot {what} {address}: {source}; check MASTER_ADDR and MASTER_PORT")]
    Address {
        /// This process.
        rank: usize,
        /// What failed.
        what: &'static str,
        /// Host and port.
        address: String,
        /// What the system answered.
        source: io::Error,
    },
    /// Another process has ended or does not answer.
    #[error("rank {rank} is gone or hangs ({source}); see its own output for the reason")]
    Peer {
        /// The other process.
        rank: usize,
        /// What the system answered.
        source: io::Error,
    },
    /// Another process does something else.
    #[error("rank {rank} {what}; start every process with the same program and options")]
    Disagreement {
        /// The other process.
        rank: usize,
        /// What differs.
        what: String,
    },
    /// NCCL or CUDA failed.
    #[error("NCCL cannot {what}: {reason}")]
    Nccl {
        /// What failed.
        what: &'static str,
        /// What NCCL says.
        reason: String,
    },
    /// The losses refused the joint batch.
    #[error(transparent)]
    Loss(#[from] LossError),
}

/// What processes do together. Every process has to make the same calls in the same order.
pub trait Communicator {
    /// Number of this process, `0..size`.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Replaces `flat` (single precision, contiguous, of the same length everywhere) by the sum
    /// over all processes, the same bits everywhere.
    ///
    /// # Errors
    /// [`DistributedError`] when a process is gone or gives another length.
    fn all_reduce_sum(&self, flat: &mut Tensor) -> Result<(), DistributedError>;

    /// The bytes of every process, of any length, in the order of the ranks.
    ///
    /// # Errors
    /// [`DistributedError`] when a process is gone.
    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, DistributedError>;

    /// Replaces `flat` (as in [`Self::all_reduce_sum`]) by that of rank 0.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`].
    fn broadcast(&self, flat: &mut Tensor) -> Result<(), DistributedError> {
        if self.rank() != 0 {
            let _ = flat.zero_();
        }
        self.all_reduce_sum(flat)
    }

    /// Returns once every process has called it.
    ///
    /// # Errors
    /// [`DistributedError`] when a process is gone.
    fn barrier(&self) -> Result<(), DistributedError> {
        self.all_gather(&[]).map(drop)
    }

    /// Whether `own` holds in any process.
    ///
    /// # Errors
    /// As [`Self::all_gather`].
    fn any(&self, own: bool) -> Result<bool, DistributedError> {
        Ok(self.all_gather(&[u8::from(own)])?.iter().any(|flag| flag.first() == Some(&1)))
    }

    /// Checks that every process works on the same thing, of which `fingerprint` is a hash.
    ///
    /// # Errors
    /// [`DistributedError::Disagreement`] names the first process that differs from rank 0.
    fn agree(&self, what: &str, fingerprint: &[u8]) -> Result<(), DistributedError> {
        let all = self.all_gather(fingerprint)?;
        match all.iter().position(|other| Some(other) != all.first()) {
            Some(rank) => Err(DistributedError::Disagreement {
                rank,
                what: format!("has another {what} than rank 0"),
            }),
            None => Ok(()),
        }
    }
}

/// A process among those of a run, as the launcher describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Number of this process.
    pub rank: usize,
    /// Number of processes, at least 2.
    pub size: usize,
    /// Number of this process among those of its machine: its CUDA device.
    pub local_rank: usize,
    /// Host and port of rank 0.
    pub address: String,
}

impl Place {
    /// Reads `RANK` and `WORLD_SIZE` (else Slurm's `SLURM_PROCID` and `SLURM_NTASKS`),
    /// `LOCAL_RANK` (else `SLURM_LOCALID`), `MASTER_ADDR` and `MASTER_PORT` through `variable`.
    /// `None` for a process on its own.
    ///
    /// # Errors
    /// [`DistributedError::Environment`].
    pub fn read(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, DistributedError> {
        let number = |names: [&'static str; 2], most: usize| {
            let found = names.into_iter().find_map(|name| Some((name, variable(name)?)));
            let Some((name, value)) = found else { return Ok(None) };
            match value.trim().parse::<usize>() {
                Ok(number) if number <= most => Ok(Some(number)),
                _ => Err(DistributedError::Environment {
                    name,
                    value,
                    expected: format!("a number from 0 to {most}"),
                }),
            }
        };
        let missing = |name, expected: &str| DistributedError::Environment {
            name,
            value: "not set".into(),
            expected: expected.into(),
        };
        let size = number(["WORLD_SIZE", "SLURM_NTASKS"], MAX_PROCESSES)?.unwrap_or(1);
        if size <= 1 {
            return Ok(None);
        }
        let rank = number(["RANK", "SLURM_PROCID"], size - 1)?
            .ok_or_else(|| missing("RANK", "the number of this process"))?;
        let local_rank = number(["LOCAL_RANK", "SLURM_LOCALID"], MAX_PROCESSES)?.unwrap_or(0);
        let host =
            variable("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR", "the host of rank 0"))?;
        let port = number(["MASTER_PORT", "MASTER_PORT"], 65_534)?
            .ok_or_else(|| missing("MASTER_PORT", "a free port of rank 0's host"))?;
        // There torchrun itself listens at MASTER_PORT.
        let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
        let address = format!("{host}:{}", port + usize::from(taken));
        Ok(Some(Self { rank, size, local_rank, address }))
    }

    /// Meets the other processes: over TCP, and with NCCL for the gradients on a CUDA `device`.
    ///
    /// # Errors
    /// [`DistributedError`].
    pub fn connect(&self, device: Device) -> Result<Box<dyn Communicator>, DistributedError> {
        let tcp = tcp::TcpCommunicator::connect(self, PATIENCE)?;
        match device {
            Device::Cuda(index) => Ok(Box::new(nccl::NcclCommunicator::new(tcp, index)?)),
            _ => Ok(Box::new(tcp)),
        }
    }
}

/// Applies `reduce` to all `tensors` at once and writes the result back.
fn in_one_buffer(
    tensors: &mut [Tensor],
    reduce: impl FnOnce(&mut Tensor) -> Result<(), DistributedError>,
) -> Result<(), DistributedError> {
    if tensors.is_empty() {
        return Ok(());
    }
    no_grad(|| {
        let parts: Vec<Tensor> =
            tensors.iter().map(|t| t.detach().reshape([-1]).to_kind(Kind::Float)).collect();
        let mut flat = Tensor::cat(&parts, 0);
        reduce(&mut flat)?;
        let mut start = 0;
        for tensor in tensors {
            let length = tensor.numel() as i64;
            let part = flat.narrow(0, start, length).reshape(tensor.size());
            tensor.detach().copy_(&part);
            start += length;
        }
        Ok(())
    })
}

/// Sums the `tensors` over all processes.
///
/// # Errors
/// As [`Communicator::all_reduce_sum`].
pub fn sum(all: &dyn Communicator, tensors: &mut [Tensor]) -> Result<(), DistributedError> {
    in_one_buffer(tensors, |flat| all.all_reduce_sum(flat))
}

/// Averages the `tensors` over all processes.
///
/// # Errors
/// As [`Communicator::all_reduce_sum`].
pub fn average(all: &dyn Communicator, tensors: &mut [Tensor]) -> Result<(), DistributedError> {
    in_one_buffer(tensors, |flat| {
        all.all_reduce_sum(flat)?;
        *flat /= all.size() as f64;
        Ok(())
    })
}

/// Replaces the `tensors` by those of rank 0.
///
/// # Errors
/// As [`Communicator::broadcast`].
pub fn copy_first(all: &dyn Communicator, tensors: &mut [Tensor]) -> Result<(), DistributedError> {
    in_one_buffer(tensors, |flat| all.broadcast(flat))
}

#[cfg(test)]
pub(crate) mod tests;
