//! The GPU as long as it works, the CPU from then on.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::tensorrt::TensorRt;
use super::{Backend, BackendError, Images, OutputShape, open_on_cpu};

/// What is needed to load the network on the CPU.
#[derive(Debug)]
pub(super) struct CpuSource {
    pub(super) path: PathBuf,
    pub(super) input: String,
    pub(super) output: String,
    pub(super) threads: usize,
}

/// A GPU that the CPU stands in for when it fails.
pub(super) struct Fallback {
    gpu: TensorRt,
    source: CpuSource,
    cpu: OnceLock<Box<dyn Backend>>,
    /// Held by whoever loads the network on the CPU.
    loading: Mutex<()>,
}

impl Fallback {
    pub(super) fn new(gpu: TensorRt, source: CpuSource) -> Self {
        Self { gpu, source, cpu: OnceLock::new(), loading: Mutex::new(()) }
    }

    /// The backend on the CPU, loaded when it is first needed.
    fn cpu(&self, reason: &dyn fmt::Display) -> Result<&dyn Backend, BackendError> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cpu) = self.cpu.get() {
            return Ok(cpu.as_ref());
        }
        let CpuSource { path, input, output, threads } = &self.source;
        let cpu = open_on_cpu(path, input, output, *threads)?;
        tracing::warn!("going on with {}: {reason}", cpu.name());
        self.gpu.close();
        Ok(self.cpu.get_or_init(|| cpu).as_ref())
    }
}

impl Backend for Fallback {
    fn name(&self) -> &'static str {
        self.cpu.get().map_or(self.gpu.name(), |cpu| cpu.name())
    }

    fn describe(&self) -> String {
        match self.cpu.get() {
            Some(cpu) => cpu.describe(),
            None => self.gpu.describe(),
        }
    }

    fn run(&self, images: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, BackendError> {
        let error = match self.cpu.get() {
            Some(cpu) => return cpu.run(images, out),
            None => match self.gpu.run(images, out) {
                Err(BackendError::TensorRt(error)) => error,
                answer => return answer,
            },
        };
        self.cpu(&error)?.run(images, out)
    }

    fn gpu(&self) -> Option<&TensorRt> {
        self.cpu.get().is_none().then_some(&self.gpu)
    }

    fn give_up_gpu(&self, reason: &dyn fmt::Display) -> bool {
        match self.cpu(reason) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!("the CPU cannot stand in: {error}");
                false
            }
        }
    }
}
