//! OpenVINO, loaded at run time.
//!
//! A network is compiled for each size of its input, which a stream rarely changes: on the CPU this is
//! up to 8 % faster than a program for all sizes, and takes a tenth of a second.

mod api;

use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use super::library::{self, OPENVINO, SearchPaths};
use super::tensorrt::Precision;
use super::{Backend, BackendError, Images, OutputShape, Source};
use api::{Api, Core, Network, Program, Request, Side, c_text};

pub(super) const NAME: &str = "openvino";

/// Sizes whose programs are kept; each holds the maps between layers, tens of megabytes.
const MAX_SIZES: usize = 4;
/// Most runs at once; each has its own maps.
const MAX_STREAMS: usize = 4;

/// OpenVINO of this process, or why there is none. The first call decides.
fn core() -> Result<&'static Core, &'static str> {
    static CORE: OnceLock<Result<Core, String>> = OnceLock::new();
    let start = || {
        let found = library::find(&OPENVINO, &SearchPaths::of_process(&OPENVINO))?;
        let failed = |reason| format!("{} does not start: {reason}", found.path.display());
        // Kept until the process ends, as the library itself is.
        let api = Box::leak(Box::new(Api::open(&found.path)?));
        let core = Core::new(api).map_err(failed)?;
        // Loads the part for CPUs, which lies in a library of its own.
        core.capabilities().map_err(failed)?;
        Ok(core)
    };
    CORE.get_or_init(start).as_ref().map_err(String::as_str)
}

/// Whether a file is a library that can be used: its version, or why not.
pub(super) fn inspect(path: &Path) -> Result<String, String> {
    Api::open(path).map(|api| api.version())
}

/// Version and library, or why there is none.
pub(super) fn probe() -> Result<String, String> {
    core().map(|core| core.api().to_string()).map_err(ToOwned::to_owned)
}

/// A network loaded by OpenVINO.
pub(super) struct OpenVino {
    core: &'static Core,
    /// Held while a size is compiled, not while one runs.
    network: Mutex<Network>,
    /// The programs of sizes, the last used one first.
    sizes: Mutex<Vec<Arc<AtSize>>>,
    input: CString,
    output: CString,
    threads: usize,
    precision: Precision,
}

/// A program for one size of the input.
struct AtSize {
    dims: [i64; 4],
    program: Program,
    /// Requests that nobody runs at the moment.
    idle: Mutex<Vec<Request>>,
}

impl OpenVino {
    /// `precision`: 32-bit floats unless the user asked for something else.
    pub(super) fn load(
        source: &Source<'_>,
        precision: Option<Precision>,
    ) -> Result<Self, BackendError> {
        let precision = precision.unwrap_or(Precision::Fp32);
        let unavailable = |reason| BackendError::Unavailable { backend: NAME, reason };
        let core = core().map_err(|reason| unavailable(reason.to_owned()))?;
        core.capabilities()
            .and_then(|found| check_precision(precision, &found))
            .map_err(unavailable)?;
        let refused = |reason| source.refused(NAME, reason);
        let (input, output) =
            (c_text(source.input).map_err(refused)?, c_text(source.output).map_err(refused)?);
        let network = core.read(source.bytes).map_err(refused)?;
        source.check_names(
            &network.names(Side::Inputs, &input).map_err(refused)?,
            &network.names(Side::Outputs, &output).map_err(refused)?,
        )?;
        let (network, sizes) = (Mutex::new(network), Mutex::default());
        Ok(Self { core, network, sizes, input, output, threads: source.threads, precision })
    }

    /// The program for a size, compiled when it is first asked for.
    fn at_size(&self, dims: [i64; 4]) -> Result<Arc<AtSize>, String> {
        if let Some(known) = self.known(dims) {
            return Ok(known);
        }
        let mut network = lock(&self.network);
        // Another caller may have compiled it meanwhile.
        if let Some(known) = self.known(dims) {
            return Ok(known);
        }
        network.reshape(&self.input, dims)?;
        let program = self.compile(&network)?;
        let at_size = Arc::new(AtSize { dims, program, idle: Mutex::default() });
        let mut sizes = lock(&self.sizes);
        sizes.truncate(MAX_SIZES - 1);
        sizes.insert(0, Arc::clone(&at_size));
        Ok(at_size)
    }

    fn known(&self, dims: [i64; 4]) -> Option<Arc<AtSize>> {
        let mut sizes = lock(&self.sizes);
        let place = sizes.iter().position(|known| known.dims == dims)?;
        sizes[..=place].rotate_right(1);
        sizes.first().map(Arc::clone)
    }

    fn compile(&self, network: &Network) -> Result<Program, String> {
        let (streams, threads) = streams(self.threads, thread::available_parallelism());
        let [streams, threads] = [streams, threads].map(|n| c_text(&n.to_string()));
        self.core.compile(
            network,
            &[
                (c"INFERENCE_PRECISION_HINT", hint(self.precision)),
                (c"NUM_STREAMS", &streams?),
                (c"INFERENCE_NUM_THREADS", &threads?),
                // Programs that pin their threads pin them to the same cores.
                (c"ENABLE_CPU_PINNING", c"NO"),
            ],
        )
    }

    /// Runs the network on one image; its map goes to the end of `out`.
    fn append(&self, image: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, BackendError> {
        let Images { data, count, width, height, .. } = image;
        let failed = |reason| BackendError::Run { backend: NAME, count, width, height, reason };
        // No slice is long enough for sides that do not fit.
        let dims = image.dims().map(|side| side as i64);
        let at_size = self.at_size(dims).map_err(failed)?;
        let idle = lock(&at_size.idle).pop();
        let mut request = match idle {
            Some(request) => request,
            None => at_size.program.request().map_err(failed)?,
        };
        let answer = request
            .run((&self.input, data, dims), &self.output, |dims, numbers| {
                let shape = OutputShape::from_dims(dims, count, numbers.len())?;
                out.extend_from_slice(numbers);
                Ok(shape)
            })
            .map_err(failed)?;
        // After an error the request is dropped instead: nobody knows its state.
        lock(&at_size.idle).push(request);
        answer
    }
}

/// Runs at once, and threads of all of them together; 0 for one per core.
fn streams(threads: usize, cores: std::io::Result<std::num::NonZero<usize>>) -> (usize, usize) {
    if threads == 0 {
        return (1, 0);
    }
    let cores = cores.map_or(1, std::num::NonZero::get);
    let streams = (cores / threads).clamp(1, MAX_STREAMS);
    (streams, streams * threads)
}

/// Name of a precision in OpenVINO's options.
const fn hint(precision: Precision) -> &'static CStr {
    match precision {
        Precision::Fp16 => c"f16",
        Precision::Bf16 => c"bf16",
        // Integers come from the network's file.
        Precision::Fp32 | Precision::Int8 => c"f32",
    }
}

/// Whether a CPU with these capabilities computes so. OpenVINO itself takes another precision in silence.
fn check_precision(precision: Precision, capabilities: &[String]) -> Result<(), String> {
    let needed = match precision {
        Precision::Fp32 => return Ok(()),
        Precision::Fp16 => "FP16",
        Precision::Bf16 => "BF16",
        Precision::Int8 => {
            return Err("it takes 8-bit integers from the network's file; make one with \
                        conceptseg bundle quantize and leave the precision out"
                .to_owned());
        }
    };
    if capabilities.iter().any(|found| found == needed) {
        return Ok(());
    }
    Err(format!(
        "this CPU does not compute in {precision} (OpenVINO lists {}); leave the precision out",
        capabilities.join(", ")
    ))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for OpenVino {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        let precision = match self.precision {
            Precision::Fp32 => String::new(),
            other => format!(", {other}"),
        };
        let threads = match self.threads {
            0 => String::new(),
            n => format!(", {n} thread(s)"),
        };
        format!("{NAME} {}{precision}{threads}", self.core.api())
    }

    fn run(&self, images: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, BackendError> {
        images.check()?;
        out.clear();
        let mut shape = OutputShape { dim: 0, height: 0, width: 0 };
        // A program for each number of images would cost memory and time, and computes no faster.
        for image in images.each() {
            shape = self.append(image, out)?;
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests;
