//! Networks whose inner maps can be read, to calibrate quantisation.

use std::path::Path;

use super::{BackendError, BackendKind, BackendOptions, MAX_THREADS, Source, onnxruntime, rten};

/// A loaded network that shows all of its outputs.
pub(crate) trait Observe: Send {
    /// Runs the network on `[3, height, width]` and shows the name and the numbers of each output,
    /// all of which must be float32.
    fn observe(
        &self,
        input: &[f32],
        width: usize,
        height: usize,
        see: &mut dyn FnMut(&str, &[f32]),
    ) -> Result<(), BackendError>;
}

/// Loads the ONNX file in `bytes`, whose outputs are to be read; `output` is one of them. Only the
/// processor runs it: other kinds than those mean "whichever is there".
pub(crate) fn open_observed(
    bytes: &[u8],
    input: &str,
    output: &str,
    options: &BackendOptions,
) -> Result<Box<dyn Observe>, BackendError> {
    let threads = options.threads.min(MAX_THREADS);
    let source = Source { path: Path::new("for calibration"), bytes, input, output, threads };
    if options.kind != BackendKind::Rten {
        match onnxruntime::OnnxRuntime::load(&source) {
            Ok(backend) => return Ok(Box::new(backend)),
            Err(reason) if options.kind == BackendKind::Onnxruntime => return Err(reason),
            Err(reason) => tracing::info!("using the built-in backend rten: {reason}"),
        }
    }
    Ok(Box::new(rten::Rten::load(&source)?))
}
