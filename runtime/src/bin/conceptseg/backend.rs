//! The options of every command that runs a network.

use conceptseg::backend::tensorrt::{GpuOptions, Precision};
use conceptseg::backend::{self, BackendKind, BackendOptions};

/// What runs the network, and how.
#[derive(Debug, Default, clap::Args)]
pub struct BackendArgs {
    /// What runs the network.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendKind,
    /// Threads of the network on the CPU; 0: one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    gpu: GpuArgs,
    /// Go on with the CPU where the GPU fails; --backend auto does so anyway.
    #[arg(long)]
    cpu_fallback: bool,
}

/// The GPU, and how the network computes on it.
#[derive(Debug, Default, Clone, Copy, clap::Args)]
pub struct GpuArgs {
    /// Number of the GPU, from 0 (TensorRT only).
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device: u32,
    /// How the network computes: with TensorRT, fp16 unless set; on the CPU, fp32 unless set, bf16 and fp16 with
    /// OpenVINO where the CPU has them.
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// Core of the deep-learning accelerator that runs the network (TensorRT only).
    #[arg(long, value_name = "CORE")]
    pub dla: Option<u32>,
}

impl GpuArgs {
    pub fn options(self, cpu_fallback: bool) -> GpuOptions {
        let Self { device, precision, dla } = self;
        GpuOptions { device, precision: precision.unwrap_or_default(), dla, cpu_fallback }
    }
}

impl BackendArgs {
    pub fn options(&self) -> BackendOptions {
        BackendOptions {
            cpu_precision: self.gpu.precision,
            gpu: self.gpu.options(self.cpu_fallback),
            ..BackendOptions::new(self.backend, self.threads)
        }
    }
}

/// `kind`, and for `auto` the preferred backend on the CPU: for work that is not worth the minutes of a plan.
pub fn cpu_for_auto(kind: BackendKind) -> BackendKind {
    if kind == BackendKind::Auto { on_cpu() } else { kind }
}

/// The preferred backend on the CPU.
pub fn on_cpu() -> BackendKind {
    let usable = |kind| backend::probe_one(kind).available.is_ok();
    [BackendKind::Onnxruntime, BackendKind::Openvino]
        .into_iter()
        .find(|kind| usable(*kind))
        .unwrap_or(BackendKind::Rten)
}
