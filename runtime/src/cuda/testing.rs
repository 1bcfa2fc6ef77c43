//! GPUs for tests: the host that runs kernels on the CPU, and a real one where there is one.

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Context, Driver, Stream};
use conceptseg_tensorrt_fakes::FakeGpu;

use super::kernels::{KernelSource, SOURCE};
use super::{CudaPathError, Kernels};

/// A GPU with its kernels loaded.
pub(crate) struct TestGpu {
    /// Which it is, for messages.
    pub(crate) name: String,
    pub(crate) kernels: Arc<Kernels>,
    pub(crate) stream: Arc<Stream>,
    /// Kept for its folder.
    _fake: Option<FakeGpu>,
}

/// All of them; those that are missing print why.
pub(crate) fn gpus() -> Vec<TestGpu> {
    let mut gpus = Vec::new();
    if let Some(fake) = conceptseg_tensorrt_fakes::gpu(SOURCE) {
        let kernels = Kernels::from_ptx(&fake.context, &fake.image).unwrap();
        let stream = Arc::clone(&fake.stream);
        gpus.push(TestGpu { name: "the CPU".to_owned(), kernels, stream, _fake: Some(fake) });
    }
    match Driver::open() {
        Ok(driver) => gpus.push(real(&driver).unwrap()),
        Err(reason) => println!("skipped on a GPU: {reason}"),
    }
    gpus
}

fn real(driver: &Driver) -> Result<TestGpu, CudaPathError> {
    let context = Context::new(driver, 0)?;
    let kernels = Kernels::load(&context, KernelSource::Ptx)?;
    let (name, stream) = (context.name()?, Stream::new(&context)?);
    Ok(TestGpu { name, kernels, stream, _fake: None })
}
