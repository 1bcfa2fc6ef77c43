//! ONNX Runtime, loaded at run time.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::session::Session;
use ort::value::TensorRef;

use super::library::{self, SearchPaths};
use super::{Backend, BackendError, Batches, Images, Observe, OutputShape, Source, one_line};

pub(super) const NAME: &str = "onnxruntime";

/// The library of this process. Its interface is process-wide, and so is the environment, which
/// may be created only once: both are kept until the process ends.
pub(super) struct Runtime {
    path: PathBuf,
    version: String,
    environment: Environment,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, self.path.display())
    }
}

/// The runtime of this process, or why there is none. The first call decides.
pub(super) fn runtime() -> Result<&'static Runtime, &'static str> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME.get_or_init(start).as_ref().map_err(String::as_str)
}

fn start() -> Result<Runtime, String> {
    let found = library::find(&SearchPaths::of_process())?;
    let failed = |e: String| format!("{} does not start: {e}", found.path.display());
    let environment = ort::init_from(&found.path)
        .map_err(|e| failed(one_line(e)))?
        .with_name("conceptseg")
        .with_telemetry(false)
        .build()
        .map_err(|e| failed(one_line(e)))?;
    Ok(Runtime { path: found.path, version: found.version, environment })
}

/// A network loaded by ONNX Runtime.
pub(super) struct OnnxRuntime {
    /// A session keeps per-run state in places that are not safe to share.
    session: Mutex<Session>,
    input: String,
    output: String,
    threads: usize,
    runtime: &'static Runtime,
    batches: Batches,
}

impl OnnxRuntime {
    pub(super) fn load(source: &Source<'_>) -> Result<Self, BackendError> {
        let runtime = runtime().map_err(|reason| BackendError::Unavailable {
            backend: NAME,
            reason: reason.to_owned(),
        })?;
        let (bytes, batches) = Batches::open(source.bytes);
        let session = Self::session(runtime, source.threads, &bytes)
            .map_err(|reason| source.refused(NAME, reason))?;
        let names = |outlets: &[ort::value::Outlet]| {
            outlets.iter().map(|o| o.name().to_owned()).collect::<Vec<_>>()
        };
        source.check_names(&names(session.inputs()), &names(session.outputs()))?;
        Ok(Self {
            session: Mutex::new(session),
            input: source.input.to_owned(),
            output: source.output.to_owned(),
            threads: source.threads,
            runtime,
            batches,
        })
    }

    fn session(runtime: &Runtime, threads: usize, bytes: &[u8]) -> Result<Session, String> {
        let mut builder = Session::builder(&runtime.environment).map_err(|e| e.to_string())?;
        if threads > 0 {
            builder = builder.with_intra_threads(threads).map_err(|e| e.to_string())?;
        }
        builder.commit_from_memory(bytes).map_err(|e| e.to_string())
    }

    fn run_at_once(
        &self,
        images: Images<'_>,
        out: &mut Vec<f32>,
    ) -> Result<OutputShape, BackendError> {
        let Images { data, count, width, height, .. } = images;
        let failed = |e: ort::Error| BackendError::Run {
            backend: NAME,
            count,
            width,
            height,
            reason: one_line(e),
        };
        let tensor = TensorRef::from_array_view((images.dims(), data)).map_err(failed)?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        // The output lives in the session's arena, which keeps its memory from run to run.
        let outputs = session.run(ort::inputs![self.input.as_str() => tensor]).map_err(failed)?;
        let no_output = BackendError::Output { count, shape: Vec::new() };
        let value = outputs.get(&self.output).ok_or(no_output)?;
        let (shape, data) = value.try_extract_tensor::<f32>().map_err(failed)?;
        // Dimensions are signed in the interface; no output has a negative one.
        let dims: Vec<usize> = shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
        let shape = OutputShape::from_dims(&dims, count, data.len())?;
        out.clear();
        out.extend_from_slice(data);
        Ok(shape)
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        match self.threads {
            0 => format!("{NAME} {}", self.runtime),
            n => format!("{NAME} {}, {n} thread(s)", self.runtime),
        }
    }

    fn run(&self, images: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, BackendError> {
        self.batches.run(images, out, |images, out| self.run_at_once(images, out))
    }
}

impl Observe for OnnxRuntime {
    fn observe(
        &self,
        input: &[f32],
        width: usize,
        height: usize,
        see: &mut dyn FnMut(&str, &[f32]),
    ) -> Result<(), BackendError> {
        let image = Images::one(input, width, height);
        image.check()?;
        let failed = |e: ort::Error| BackendError::Run {
            backend: NAME,
            count: 1,
            width,
            height,
            reason: one_line(e),
        };
        let tensor = TensorRef::from_array_view((image.dims(), input)).map_err(failed)?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(ort::inputs![self.input.as_str() => tensor]).map_err(failed)?;
        for (name, value) in &outputs {
            let (_, data) = value.try_extract_tensor::<f32>().map_err(failed)?;
            see(name, data);
        }
        Ok(())
    }
}
