//! From the ONNX file to a plan.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use conceptseg_tensorrt::cuda::Context;
use conceptseg_tensorrt::{
    Builder, BuilderConfig, Error as LibraryError, OnnxParser, Plan, TimingCache,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::TensorRtError;
use super::find::Installation;
use super::key::{ComputeCapability, Gpus, PlanKey, Precision};
use super::precision::Prepared;
use super::store::{PlanRecord, PlanStore};
use crate::files::hex;

/// The oldest GPUs with arithmetic on 16-bit floats of 8 exponent bits.
const OLDEST_BF16: ComputeCapability = ComputeCapability(8, 0);

/// How a plan is built; none of it changes what the network computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildOptions {
    /// Megabytes (2^20 bytes) of GPU memory that a layer may use for intermediate results; all there is unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_mb: Option<u32>,
    /// Effort of the search for fast kernels, 0 to 5; that of TensorRT (3) unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimization_level: Option<u8>,
    /// GPUs that the plan runs on.
    #[serde(default)]
    pub gpus: Gpus,
    /// Whether later versions of TensorRT can run the plan too. Such a plan brings host code of its own.
    #[serde(default)]
    pub version_compatible: bool,
}

/// What a build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Another program builds a plan of this bundle; it is waited for.
    Waiting,
    /// The network is read and brought to the precision.
    Preparing,
    /// TensorRT reads the network.
    Parsing,
    /// TensorRT tries kernels on the GPU: nearly all of the time. It does not say how far it is.
    Building,
    /// Plan and timings are written.
    Writing,
}

impl Phase {
    /// The phase in a few words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for another program that builds",
            Self::Preparing => "preparing the network",
            Self::Parsing => "reading the network into TensorRT",
            Self::Building => "trying kernels on the GPU",
            Self::Writing => "writing the plan",
        }
    }
}

/// The network's file, and which tensors go in and out.
#[derive(Debug, Clone)]
pub struct NetworkFile {
    /// The ONNX file.
    pub path: PathBuf,
    /// SHA-256 of it, hexadecimal.
    pub sha256: String,
    /// Name of the input, `[N, 3, H, W]`.
    pub input: String,
    /// Name of the output, `[N, dim, H / stride, W / stride]`.
    pub output: String,
}

impl NetworkFile {
    /// The file's bytes, which must be those that were opened.
    ///
    /// # Errors
    /// [`TensorRtError::Network`] and [`TensorRtError::Replaced`].
    pub fn read(&self) -> Result<Vec<u8>, TensorRtError> {
        let bytes = crate::backend::read_network(&self.path).map_err(|error| {
            TensorRtError::Network { path: self.path.clone(), reason: error.to_string() }
        })?;
        if hex(&Sha256::digest(&bytes)) != self.sha256 {
            return Err(TensorRtError::Replaced { path: self.path.clone() });
        }
        Ok(bytes)
    }
}

/// A plan that was just built.
#[derive(Debug)]
pub struct Built {
    /// The plan.
    pub plan: Plan,
    /// What it was built for.
    pub record: PlanRecord,
    /// Where it was written, or why it could not be.
    pub saved: Result<PathBuf, TensorRtError>,
}

/// Builds the plan for `key` and writes it to the store. Takes minutes.
///
/// # Errors
/// [`TensorRtError`]; a plan that was built and cannot be written is no error.
pub(super) fn build(
    installation: &Installation,
    cuda: &Arc<Context>,
    network: &NetworkFile,
    store: &PlanStore,
    key: &PlanKey,
    options: BuildOptions,
    report: &mut dyn FnMut(Phase),
) -> Result<Built, TensorRtError> {
    check(installation, key, options)?;
    let start = Instant::now();
    report(Phase::Preparing);
    let Prepared { model, calibration } = network.prepare(key, store)?;
    let failed = |source| TensorRtError::Build {
        precision: key.precision,
        input: key.input,
        source: Box::new(source),
    };
    report(Phase::Parsing);
    let builder = Builder::new(&installation.library, cuda).map_err(failed)?;
    let parser = installation.library.onnx_parser().map_err(failed)?;
    let parser =
        OnnxParser::new(&parser, builder.create_network().map_err(failed)?).map_err(failed)?;
    let parsed = parser.parse(&model).map_err(|error| network.refuse(error))?;
    drop(model);
    let mut config = builder.create_config().map_err(failed)?;
    configure(&mut config, key, options).map_err(failed)?;
    use_timings(&mut config, &store.timings(key)).map_err(failed)?;
    report(Phase::Building);
    let plan = builder.build(&parsed, &config).map_err(failed)?;
    report(Phase::Writing);
    let timings = config.timing_cache().map(TimingCache::serialize).transpose().map_err(failed)?;
    let record =
        PlanRecord::new(&plan, key.clone(), options, calibration, start.elapsed().as_secs_f64());
    let saved = store.save(&plan, &record);
    if let (Ok(_), Some(timings)) = (&saved, timings)
        && let Err(error) = store.save_timings(key, &timings)
    {
        tracing::warn!("later builds will not be faster: {error}");
    }
    Ok(Built { plan, record, saved })
}

/// Refuses what would fail after minutes, or give a plan that computes something else.
fn check(
    installation: &Installation,
    key: &PlanKey,
    options: BuildOptions,
) -> Result<(), TensorRtError> {
    let refuse = |what: String| Err(TensorRtError::Options { what });
    if let Some(reason) = key.input.refuse() {
        return refuse(reason);
    }
    let (precision, capability) = (key.precision, installation.compute_capability);
    if precision == Precision::Bf16 && capability < OLDEST_BF16 {
        return refuse(format!(
            "bf16: the GPU {} has compute capability {capability}, and {OLDEST_BF16} is needed; take fp16",
            installation.gpu
        ));
    }
    if options.gpus == Gpus::AmperePlus && capability < OLDEST_BF16 {
        return refuse(format!(
            "all GPUs from Ampere on: the GPU {} has compute capability {capability}; build on a newer one",
            installation.gpu
        ));
    }
    if key.dla.is_some() && !matches!(precision, Precision::Fp16 | Precision::Int8) {
        return refuse(format!("a DLA core in {precision}; it computes in fp16 and int8 only"));
    }
    if installation.library.version().major < 10 && precision != Precision::Fp32 {
        return refuse(format!(
            "{precision} with TensorRT {}, which does not obey the network's types; take fp32, or TensorRT 10",
            installation.library.version()
        ));
    }
    Ok(())
}

fn configure(
    config: &mut BuilderConfig<'_>,
    key: &PlanKey,
    options: BuildOptions,
) -> Result<(), LibraryError> {
    if let Some(megabytes) = options.workspace_mb {
        config.set_workspace_limit((megabytes as usize) << 20);
    }
    if let Some(level) = options.optimization_level {
        config.set_optimization_level(i32::from(level))?;
    }
    if options.gpus != Gpus::Same {
        config.set_hardware(options.gpus.hardware())?;
    }
    if options.version_compatible {
        config.set_version_compatible(true);
    }
    if let Some(core) = key.dla {
        config.set_dla_core(core, true)?;
    }
    // So that `engine inspect` shows types and kernels.
    config.set_detailed(true);
    Ok(())
}

/// Takes the timings of earlier builds, or starts anew where TensorRT refuses them.
fn use_timings(config: &mut BuilderConfig<'_>, bytes: &[u8]) -> Result<(), LibraryError> {
    match config.set_timing_cache(bytes) {
        Err(error) if !bytes.is_empty() => {
            tracing::warn!("the timing cache is started anew: {error}");
            config.set_timing_cache(&[])
        }
        answer => answer,
    }
}
