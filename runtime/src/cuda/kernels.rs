//! The kernels, as source and as the PTX that is part of the program.
//!
//! The driver compiles PTX for the GPU at hand when it is loaded, and keeps the result. The PTX is that of the oldest
//! compute capability that is served, 7.5, and so is understood by every driver since CUDA 12.6.

use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use conceptseg_tensorrt::cuda::{Context, Function, Module, Nvrtc};

use super::CudaPathError;

/// Joins the files into one text, in which the compiler's messages name file and line.
macro_rules! joined {
    ($($file:literal)*) => {
        concat!($("#line 1 \"", $file, "\"\n", include_str!(concat!("kernels/", $file)), "\n"),*)
    };
}

/// The source of all kernels: one translation unit.
pub const SOURCE: &str = joined!(
    "common.cuh"
    "preprocess.cu"
    "embed.cu"
    "kmeans.cu"
    "label.cu"
    "merge.cu"
    "affinity.cu"
    "masks.cu"
    "overlay.cu"
);

/// What [`SOURCE`] becomes for compute capability 7.5. The first line names the SHA-256 of the source; a test refuses
/// any other. `docs/cuda.md` says how it is made.
pub const PTX: &str = include_str!("kernels.ptx");

/// How the source is compiled, besides the GPU it is for.
///
/// Without contraction products are rounded before they are added, as in the same source on the CPU.
pub const OPTIONS: [&str; 2] = ["--std=c++14", "--fmad=false"];

/// Where the code of the kernels comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KernelSource {
    /// The PTX in the program.
    #[default]
    Ptx,
    /// NVRTC, found when the program runs, for the GPU's own compute capability.
    Nvrtc,
}

/// The kernels, loaded on a GPU.
#[derive(Debug)]
pub struct Kernels {
    module: Arc<Module>,
    context: Arc<Context>,
}

/// What [`Kernels::shared`] gave out, and for which context. Kernels keep theirs, so that an address with living
/// kernels is no other context's.
static SHARED: Mutex<Vec<(usize, Weak<Kernels>)>> = Mutex::new(Vec::new());

impl Kernels {
    /// The kernels in the program, loaded once for all that work in this context at the same time.
    pub(super) fn shared(context: &Arc<Context>) -> Result<Arc<Self>, CudaPathError> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|(_, kernels)| kernels.strong_count() > 0);
        let this = Arc::as_ptr(context) as usize;
        // Those of other GPUs are not touched: they may be about to go.
        let known = shared.iter().find(|(context, _)| *context == this);
        if let Some(kernels) = known.and_then(|(_, kernels)| kernels.upgrade()) {
            return Ok(kernels);
        }
        let kernels = Self::load(context, KernelSource::Ptx)?;
        shared.push((this, Arc::downgrade(&kernels)));
        Ok(kernels)
    }

    /// Loads the kernels.
    ///
    /// # Errors
    /// Where the driver does not take them; with [`KernelSource::Nvrtc`] also where NVRTC is missing or fails.
    pub fn load(context: &Arc<Context>, source: KernelSource) -> Result<Arc<Self>, CudaPathError> {
        match source {
            // A zero inside would cut the text off, which the driver then refuses.
            KernelSource::Ptx => Self::from_ptx(context, &CString::new(PTX).unwrap_or_default()),
            KernelSource::Nvrtc => Self::compile(context, &Nvrtc::open()?),
        }
    }

    /// Compiles the kernels for the GPU's own compute capability, and loads them.
    ///
    /// # Errors
    /// Where NVRTC does not know the GPU, or the driver does not take what a newer NVRTC makes.
    pub fn compile(context: &Arc<Context>, nvrtc: &Nvrtc) -> Result<Arc<Self>, CudaPathError> {
        let (major, minor) = context.compute_capability()?;
        let gpu = format!("--gpu-architecture=compute_{major}{minor}");
        let [standard, contraction] = OPTIONS;
        let compiled = nvrtc.compile(SOURCE, "kernels.cu", &[&gpu, standard, contraction])?;
        Self::from_ptx(context, &compiled.ptx)
    }

    /// Loads kernels that somebody compiled from [`SOURCE`], for tests and measurements.
    ///
    /// # Errors
    /// Where the driver does not take them.
    pub fn from_ptx(context: &Arc<Context>, ptx: &CStr) -> Result<Arc<Self>, CudaPathError> {
        let module = Module::load(context, ptx)?;
        Ok(Arc::new(Self { module, context: Arc::clone(context) }))
    }

    /// A kernel by its name in the source.
    ///
    /// # Errors
    /// Where there is none.
    pub fn function(&self, name: &'static str) -> Result<Function, CudaPathError> {
        Ok(self.module.function(name)?)
    }

    /// The GPU.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn the_shipped_ptx_names_this_source() {
        let digest = crate::files::hex(&Sha256::digest(SOURCE));
        assert_eq!(
            PTX.lines().next(),
            Some(format!("// source sha256:{digest}").as_str()),
            "make it anew: CONCEPTSEG_WRITE_PTX=1 cargo test -p conceptseg --test kernels"
        );
    }

    #[test]
    fn kernels_are_loaded_from_the_program() {
        let Some(gpu) = conceptseg_tensorrt_fakes::gpu(SOURCE) else { return };
        let kernels = Kernels::load(&gpu.context, KernelSource::Ptx).unwrap();
        assert_eq!(kernels.context().ordinal(), 0);
        kernels.function("copy_floats").unwrap();
        let error = kernels.function("move_floats").unwrap_err();
        assert_eq!(error.to_string(), "there is no kernel `move_floats` in the module");
        assert!(!error.is_sticky() && !error.is_out_of_memory());
        gpu.cuda.fail_once("cuModuleLoadDataEx", 700);
        let error = Kernels::load(&gpu.context, KernelSource::Ptx).unwrap_err();
        assert!(error.is_sticky(), "{error}");
    }
}
