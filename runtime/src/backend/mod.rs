//! Backends: what runs the network of a bundle.
//!
//! `rten` is compiled in and always there. ONNX Runtime is two to three times as fast on a CPU, and
//! TensorRT runs on an NVIDIA GPU; their shared libraries are looked for at run time, and where they
//! are absent or broken [`probe`] says why.

mod fallback;
mod images;
mod library;
mod observe;
mod onnxruntime;
mod rten;
pub mod tensorrt;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use self::images::Images;
pub(crate) use self::observe::{Observe, open_observed};
use sha2::{Digest as _, Sha256};

use crate::files::hex;
use fallback::{CpuSource, Fallback};
use images::Batches;
use tensorrt::{GpuOptions, NetworkFile, Places, TensorRt, TensorRtError};

/// Largest network file that is read, in bytes: the limit of the protobuf format.
const MAX_NETWORK: u64 = 2 << 30;

/// Upper bound for [`BackendOptions::threads`]; above it a typing error is likelier than a machine.
const MAX_THREADS: usize = 256;

/// Why a network could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The network file could not be read.
    #[error("cannot read the network {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The network file is larger than any ONNX file can be.
    #[error(
        "the network {path} has {size} bytes, more than the {MAX_NETWORK} that an ONNX file can have"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The requested backend is not there.
    #[error("the {backend} backend is not available: {reason}")]
    Unavailable {
        /// Name of the backend.
        backend: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// The backend refused the network.
    #[error(
        "{backend} cannot load the network {path}: {reason}; export it again or copy the bundle again"
    )]
    Load {
        /// Name of the backend.
        backend: &'static str,
        /// The file.
        path: PathBuf,
        /// What the backend said.
        reason: String,
    },
    /// The network has no tensor of that name.
    #[error(
        "the network {path} has no {role} called \"{name}\" (it has {found}); the bundle's manifest must name it"
    )]
    Tensor {
        /// The file.
        path: PathBuf,
        /// "input" or "output".
        role: &'static str,
        /// The name asked for.
        name: String,
        /// The names that exist.
        found: String,
    },
    /// The input slice is not `count * 3 * height * width` long.
    #[error(
        "an input of {count} image(s) of {width}x{height} pixels needs {expected} numbers, but {found} were given"
    )]
    Input {
        /// Number of images.
        count: usize,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Numbers needed.
        expected: usize,
        /// Numbers given.
        found: usize,
    },
    /// The network failed on this input.
    #[error(
        "{backend} cannot run the network on {count} image(s) of {width}x{height} pixels: {reason}"
    )]
    Run {
        /// Name of the backend.
        backend: &'static str,
        /// Number of images.
        count: usize,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// What the backend said.
        reason: String,
    },
    /// The output is not `[count, dim, rows, columns]` of 32-bit floats.
    #[error(
        "the network's output has shape {shape:?}; an embedder gives [{count}, dim, rows, columns] in float32"
    )]
    Output {
        /// Number of images that went in.
        count: usize,
        /// The shape found.
        shape: Vec<usize>,
    },
    /// The network could not be run with TensorRT.
    #[error(transparent)]
    TensorRt(Box<TensorRtError>),
}

impl From<TensorRtError> for BackendError {
    fn from(error: TensorRtError) -> Self {
        match error {
            TensorRtError::Unavailable { reason } => {
                Self::Unavailable { backend: tensorrt::NAME, reason }
            }
            other => Self::TensorRt(Box::new(other)),
        }
    }
}

/// Size of a network's output map for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputShape {
    /// Channels.
    pub dim: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl OutputShape {
    /// Numbers of the map.
    pub const fn len(&self) -> usize {
        self.dim * self.height * self.width
    }

    /// Whether the map has no cell.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads `[count, dim, height, width]`, whose product must be `length`.
    fn from_dims(dims: &[usize], count: usize, length: usize) -> Result<Self, BackendError> {
        let product = dims.iter().try_fold(1_usize, |all, &side| all.checked_mul(side));
        match *dims {
            [images, dim, height, width] if images == count && product == Some(length) => {
                Ok(Self { dim, height, width })
            }
            _ => Err(BackendError::Output { count, shape: dims.to_vec() }),
        }
    }
}

/// A loaded network. Calls from several threads are allowed; a backend may take them in turn.
pub trait Backend: Send + Sync {
    /// Short name: "tensorrt", "rten" or "onnxruntime".
    fn name(&self) -> &'static str;

    /// Name, version or library, and threads, for logs.
    fn describe(&self) -> String;

    /// Runs the network on images of one size, at once where it can. The output
    /// `[count, dim, height / stride, width / stride]` replaces the content of `out`, whose memory is reused; what is
    /// returned is the size of one image's part.
    fn run(&self, images: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, BackendError>;

    /// The GPU that runs the network, for whoever does the rest of the work there too.
    fn gpu(&self) -> Option<&TensorRt> {
        None
    }

    /// Lets the CPU go on from now on, because work on the GPU failed for the given reason; false where that is not
    /// allowed or not possible.
    fn give_up_gpu(&self, _reason: &dyn fmt::Display) -> bool {
        false
    }
}

/// Which backend to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum BackendKind {
    /// TensorRT where a GPU, its driver and the library are found; otherwise ONNX Runtime where its
    /// library is found and takes the network; otherwise rten.
    #[default]
    Auto,
    /// TensorRT on an NVIDIA GPU, or an error that says why not.
    Tensorrt,
    /// The compiled-in backend.
    Rten,
    /// ONNX Runtime, or an error that says why not.
    Onnxruntime,
}

impl BackendKind {
    /// Name as options and settings spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tensorrt => tensorrt::NAME,
            Self::Rten => rten::NAME,
            Self::Onnxruntime => onnxruntime::NAME,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a backend; use auto, tensorrt, rten or onnxruntime")]
pub struct UnknownBackend(String);

impl FromStr for BackendKind {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::Tensorrt, Self::Rten, Self::Onnxruntime]
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

/// How to run a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BackendOptions {
    /// Which backend.
    pub kind: BackendKind,
    /// Threads of one run on the CPU, up to 256; 0: as many as the machine has physical cores.
    pub threads: usize,
    /// How TensorRT runs the network, where it does.
    pub gpu: GpuOptions,
}

impl BackendOptions {
    /// A backend with that many threads, and the first GPU where it uses one.
    pub const fn new(kind: BackendKind, threads: usize) -> Self {
        Self { kind, threads, gpu: GpuOptions::FIRST }
    }
}

/// Whether a backend can be used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The backend.
    pub kind: BackendKind,
    /// Its name.
    pub name: &'static str,
    /// Version and library, or why it cannot be used.
    pub available: Result<String, String>,
}

/// Looks which backends can be used, the preferred one first.
pub fn probe() -> Vec<Probe> {
    [BackendKind::Tensorrt, BackendKind::Onnxruntime, BackendKind::Rten].map(probe_one).into()
}

/// Looks whether a backend can be used; `auto` always can.
pub fn probe_one(kind: BackendKind) -> Probe {
    let available = match kind {
        BackendKind::Tensorrt => tensorrt::probe(),
        BackendKind::Onnxruntime => {
            onnxruntime::runtime().map(ToString::to_string).map_err(ToOwned::to_owned)
        }
        BackendKind::Rten | BackendKind::Auto => Ok("built in".to_owned()),
    };
    Probe { kind, name: kind.as_str(), available }
}

/// Loads the network in the file `onnx`, whose tensors are called `input_name` and `output_name`.
///
/// The file must hold its weights itself: an ONNX file that refers to other files is refused.
///
/// # Errors
/// [`BackendError`] names the file and what is wrong with it. With [`BackendKind::Auto`], a GPU or
/// an ONNX Runtime that cannot be used is not an error; the reason is logged.
pub fn open(
    onnx: &Path,
    input_name: &str,
    output_name: &str,
    options: &BackendOptions,
) -> Result<Box<dyn Backend>, BackendError> {
    let (threads, names) = (options.threads.min(MAX_THREADS), (input_name, output_name));
    match options.kind {
        BackendKind::Auto => {
            let gpu = GpuOptions { cpu_fallback: true, ..options.gpu };
            match open_on_gpu(onnx, names, threads, gpu, Places::of_process()) {
                Ok(backend) => Ok(backend),
                // Without the file nothing can go on.
                Err(error @ (BackendError::Io { .. } | BackendError::TooLarge { .. })) => {
                    Err(error)
                }
                Err(reason) => {
                    tracing::info!("using the CPU: {}", one_line(reason));
                    open_on_cpu(onnx, input_name, output_name, threads)
                }
            }
        }
        BackendKind::Tensorrt => {
            open_on_gpu(onnx, names, threads, options.gpu, Places::of_process())
        }
        kind => {
            let bytes = read_network(onnx)?;
            let source = Source {
                path: onnx,
                bytes: &bytes,
                input: input_name,
                output: output_name,
                threads,
            };
            if kind == BackendKind::Rten {
                Ok(Box::new(rten::Rten::load(&source)?))
            } else {
                Ok(Box::new(onnxruntime::OnnxRuntime::load(&source)?))
            }
        }
    }
}

/// The network with TensorRT, and with the CPU behind it where that is allowed.
pub(crate) fn open_on_gpu(
    path: &Path,
    (input, output): (&str, &str),
    threads: usize,
    options: GpuOptions,
    places: Places,
) -> Result<Box<dyn Backend>, BackendError> {
    let sha256 = hex(&Sha256::digest(read_network(path)?));
    let (path, input, output) = (path.to_owned(), input.to_owned(), output.to_owned());
    let source =
        CpuSource { path: path.clone(), input: input.clone(), output: output.clone(), threads };
    let gpu = TensorRt::open(NetworkFile { path, sha256, input, output }, places, options)?;
    if !options.cpu_fallback {
        return Ok(Box::new(gpu));
    }
    Ok(Box::new(Fallback::new(gpu, source)))
}

/// The network with ONNX Runtime, else with rten.
fn open_on_cpu(
    onnx: &Path,
    input_name: &str,
    output_name: &str,
    threads: usize,
) -> Result<Box<dyn Backend>, BackendError> {
    let bytes = read_network(onnx)?;
    let source =
        Source { path: onnx, bytes: &bytes, input: input_name, output: output_name, threads };
    match onnxruntime::OnnxRuntime::load(&source) {
        Ok(backend) => Ok(Box::new(backend)),
        Err(reason) => {
            tracing::info!("using the built-in backend rten: {reason}");
            Ok(Box::new(rten::Rten::load(&source)?))
        }
    }
}

/// A network file in memory and how to run it.
struct Source<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    input: &'a str,
    output: &'a str,
    threads: usize,
}

impl Source<'_> {
    /// Checks that the network has the tensors the manifest names.
    fn check_names(&self, inputs: &[String], outputs: &[String]) -> Result<(), BackendError> {
        for (role, name, names) in [("input", self.input, inputs), ("output", self.output, outputs)]
        {
            if !names.iter().any(|n| n == name) {
                let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let (path, name) = (self.path.to_owned(), name.to_owned());
                return Err(BackendError::Tensor { path, role, name, found });
            }
        }
        Ok(())
    }

    fn refused(&self, backend: &'static str, reason: impl fmt::Display) -> BackendError {
        BackendError::Load { backend, path: self.path.to_owned(), reason: one_line(reason) }
    }
}

/// Libraries answer with whole paragraphs at times; an error message is one line.
fn one_line(text: impl fmt::Display) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn read_network(path: &Path) -> Result<Vec<u8>, BackendError> {
    let io_error = |source| BackendError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    let size = file.metadata().map_err(io_error)?.len();
    if size > MAX_NETWORK {
        return Err(BackendError::TooLarge { path: path.to_owned(), size });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(MAX_NETWORK).read_to_end(&mut bytes).map_err(io_error)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
