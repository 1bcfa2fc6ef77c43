//! GPUs for tests: the host, which runs the source of the kernels behind a fake driver, and a real GPU where
//! there is one.

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Context, Driver, Stream};

use super::kernels::SOURCE;
use super::{KernelSource, Kernels};

/// Something that runs kernels.
pub(crate) struct TestGpu {
    pub(crate) name: &'static str,
    pub(crate) kernels: Arc<Kernels>,
    pub(crate) stream: Arc<Stream>,
    _host: Option<conceptseg_tensorrt_fakes::FakeGpu>,
}

/// All that are here. Says what is skipped.
pub(crate) fn gpus() -> Vec<TestGpu> {
    let host = conceptseg_tensorrt_fakes::gpu(SOURCE).map(|host| TestGpu {
        name: "host",
        kernels: Kernels::from_ptx(&host.context, &host.image).unwrap(),
        stream: Arc::clone(&host.stream),
        _host: Some(host),
    });
    let real = Driver::open().and_then(|driver| Context::new(&driver, 0)).map(|context| TestGpu {
        name: "GPU",
        kernels: Kernels::load(&context, KernelSource::Ptx).unwrap(),
        stream: Stream::new(&context).unwrap(),
        _host: None,
    });
    let real = real.inspect_err(|error| println!("skipped on a real GPU: {error}"));
    host.into_iter().chain(real.ok()).collect()
}
