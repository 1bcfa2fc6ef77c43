//! TensorRT: the network on an NVIDIA GPU.
//!
//! The driver and TensorRT are looked for when the program runs. A network becomes a *plan* first, a program for one
//! GPU, version of TensorRT, precision and size; see [`PlanStore`]. Plans are loaded or built when a size is first
//! asked for.
//!
//! A GPU can fail for good in the middle of a stream, with an error that every later call repeats. Everything on it
//! is dropped then, it is reset, the plan is loaded again, and the frame runs once more; see [`TensorRt::with_gpu`].

mod build;
mod device;
mod error;
mod find;
mod gpu;
mod kept;
mod key;
mod loaded;
mod precision;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use build::{BuildOptions, Built, NetworkFile, Phase};
pub use error::TensorRtError;
pub use find::{FOLDER_VARIABLE, Installation, Places};
pub use gpu::Gpu;
pub use kept::Kept;
pub use key::{
    Compatible, ComputeCapability, Gpus, InputShape, MAX_BATCH, MAX_SIDE, PlanKey, Precision,
};
pub(crate) use loaded::Lane;
pub use loaded::Loaded;
pub use store::{CalibrationEntry, FOLDER, Found, PlanRecord, PlanStore, SealEntry, StoredPlan};

use super::{Backend, BackendError, Images, OutputShape};
use device::Device;
use gpu::Setup;

pub(super) const NAME: &str = "tensorrt";

/// How a GPU runs a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct GpuOptions {
    /// Number of the GPU, from 0, as CUDA counts them.
    pub device: u32,
    /// How the network computes.
    pub precision: Precision,
    /// Core of the deep-learning accelerator (DLA) that runs the network, where the device has one.
    pub dla: Option<u32>,
    /// Whether the CPU goes on where the GPU fails; [`BackendKind::Auto`](super::BackendKind::Auto) implies it.
    pub cpu_fallback: bool,
}

impl GpuOptions {
    /// The first GPU, in 16-bit floats.
    pub const FIRST: Self =
        Self { device: 0, precision: Precision::Fp16, dla: None, cpu_fallback: false };
}

/// A network on one GPU, shared by all streams.
#[derive(Debug)]
pub struct TensorRt {
    setup: Arc<Setup>,
    device: Arc<Device>,
    /// Nothing after a reset, until it is needed again.
    gpu: Kept<Arc<Gpu>>,
    /// The GPU is not to be used any more.
    closed: AtomicBool,
    description: String,
}

/// What is to be known of a TensorRT installation, or why there is none.
pub(super) fn probe() -> Result<String, String> {
    match Installation::find(&Places::of_process(), 0) {
        Ok((found, _context)) => Ok(found.describe()),
        Err(error) => Err(super::one_line(error)),
    }
}

impl TensorRt {
    /// Opens the GPU. The plan is looked for or built when a size is first asked for; where none could be, this fails
    /// already.
    ///
    /// # Errors
    /// [`TensorRtError`].
    pub fn open(
        network: NetworkFile,
        places: Places,
        options: GpuOptions,
    ) -> Result<Self, TensorRtError> {
        let GpuOptions { device: ordinal, precision, dla, .. } = options;
        let device = Device::of(&places, ordinal);
        let entered = device.enter();
        let setup = Arc::new(Setup::new(network, places, ordinal, precision, dla));
        let gpu = Gpu::open(&setup)?;
        let any = InputShape::one(1, 1);
        let key = setup.key(gpu.installation(), any);
        if let Some(reason) = setup.cannot_build(gpu.installation())
            && !setup.store.has_any_size(&key)?
        {
            return Err(TensorRtError::Unavailable {
                reason: format!(
                    "{} has no {precision} plan for it: {reason}",
                    setup.store.folder().display()
                ),
            });
        }
        let dla = dla.map_or(String::new(), |core| format!(", DLA core {core}"));
        let description = format!("{NAME} {}, {precision}{dla}", gpu.installation().describe());
        let kept = device.keep();
        *kept.lock() = Some(Arc::new(gpu));
        drop(entered);
        Ok(Self { setup, device, gpu: kept, closed: AtomicBool::new(false), description })
    }

    /// How the network computes.
    pub fn precision(&self) -> Precision {
        self.setup.precision
    }

    /// The plans of the network.
    pub fn store(&self) -> &PlanStore {
        &self.setup.store
    }

    /// The key of a plan for images of this shape on this GPU.
    ///
    /// # Errors
    /// [`TensorRtError`] where the GPU was lost.
    pub fn key(&self, input: InputShape) -> Result<PlanKey, TensorRtError> {
        self.with_gpu(|gpu| Ok(self.setup.key(gpu.installation(), input)))
    }

    /// Builds a plan on this GPU, whether there is one or not, and writes it to the store.
    ///
    /// # Errors
    /// [`TensorRtError`]; that the plan could not be written stands in [`Built::saved`].
    pub fn build(
        &self,
        input: InputShape,
        options: BuildOptions,
        report: &mut dyn FnMut(Phase),
    ) -> Result<Built, TensorRtError> {
        let _lock = self.setup.store.lock(|| report(Phase::Waiting))?;
        self.with_gpu(|gpu| {
            let key = self.setup.key(gpu.installation(), input);
            gpu.build(&key, options, report).map_err(|error| gpu.explained(error, input, None))
        })
    }

    /// A place for something that a stream keeps on this GPU. It is emptied when the GPU is reset.
    pub fn keep<T: Send + 'static>(&self) -> Kept<T> {
        self.device.keep()
    }

    /// Does work on the GPU. Nothing of the GPU may be kept after it but in a [`Kept`].
    ///
    /// When the work fails and the GPU is broken, everything on it is dropped, it is reset, and the work is done once
    /// more. Other callers wait meanwhile.
    ///
    /// # Errors
    /// That of the work, or [`TensorRtError::Lost`] where the GPU broke twice.
    pub fn with_gpu<T, E: From<TensorRtError>>(
        &self,
        mut work: impl FnMut(&Gpu) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut reset = false;
        loop {
            let entered = self.device.enter();
            let gpu = self.opened()?;
            let error = match work(&gpu) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(broken) = gpu.broken() else { return Err(error) };
            let installation = gpu.installation().clone();
            let seen = *entered;
            drop(gpu);
            drop(entered);
            if reset {
                return Err(TensorRtError::Lost { gpu: installation.gpu, reason: broken }.into());
            }
            self.device.reset(seen, &installation, &broken)?;
            reset = true;
        }
    }

    /// The GPU, opened again after a reset. The caller has entered the device.
    fn opened(&self) -> Result<Arc<Gpu>, TensorRtError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(TensorRtError::Closed);
        }
        let mut kept = self.gpu.lock();
        if let Some(gpu) = &*kept {
            return Ok(Arc::clone(gpu));
        }
        let gpu = Arc::new(Gpu::open(&self.setup)?);
        *kept = Some(Arc::clone(&gpu));
        Ok(gpu)
    }

    /// Gives the GPU's memory back; nothing runs on it from now on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _entered = self.device.enter();
        let gpu = self.gpu.lock().take();
        drop(gpu);
    }
}

impl Backend for TensorRt {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn run(&self, images: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, BackendError> {
        images.check()?;
        let Images { data, count, most, width, height } = images;
        let [count, most, width, height] =
            [count, most, width, height].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let most = InputShape { batch: most.max(count), height, width };
        let run = |gpu: &Gpu| {
            let engine = gpu.engine_for(count, most)?;
            let shape = engine.input_shape();
            let explained = |error| gpu.explained(error, shape, Some(engine.lane_bytes()));
            engine.run(data, out).map_err(explained)?;
            Ok::<_, TensorRtError>(engine.output_shape())
        };
        Ok(self.with_gpu(run)?)
    }

    fn gpu(&self) -> Option<&TensorRt> {
        Some(self)
    }
}

#[cfg(test)]
mod tests;
