//! GPUs for tests: the host that runs kernels on the CPU, and a real one where there is one.

use std::path::Path;
use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Context, Driver, Stream};
use conceptseg_tensorrt_fakes::{FakeGpu, Fakes};

use super::kernels::{KernelSource, SOURCE};
use super::{CudaPathError, Kernels};
use crate::backend::tensorrt::{GpuOptions, Places, Precision};
use crate::backend::{self, BackendKind, BackendOptions};
use crate::bundle::{Bundle, BundleWriter, Codebook};
use crate::embed::Model;

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

/// One bundle, on the CPU and on the fake GPU.
pub(crate) struct Pair {
    // Before the libraries that it uses.
    pub(crate) gpu: Arc<Model>,
    pub(crate) cpu: Arc<Model>,
    pub(crate) fakes: Fakes,
    _bundle: tempfile::TempDir,
}

impl Pair {
    /// Nothing where kernels cannot be compiled for the CPU.
    pub(crate) fn new(cpu_fallback: bool) -> Option<Self> {
        let fakes = Fakes::new("10.15");
        fakes.add_kernels(SOURCE)?;
        let dir = tempfile::tempdir().unwrap();
        let onnx = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny.onnx");
        let vectors =
            (0..16 * 32).map(|i| ((i * 7919 % 1021) as f32 - 510.0) / 510.0).collect::<Vec<f32>>();
        let unit = vectors.chunks(32).flat_map(|row| {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter().map(move |x| x / length)
        });
        let codebook = Codebook::new(16, 32, unit.collect()).unwrap();
        BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            .write(dir.path(), Path::new(onnx), &codebook)
            .unwrap();
        let cpu = Model::open(dir.path(), &BackendOptions::new(BackendKind::Rten, 1)).unwrap();
        let bundle = Bundle::open(dir.path()).unwrap();
        let driver = Some(fakes.folder.path().join("libcuda.so.1"));
        let places = Places { driver, search: fakes.search() };
        let options = GpuOptions { precision: Precision::Fp32, cpu_fallback, ..GpuOptions::FIRST };
        let entry = &bundle.manifest.embedder;
        let names = (entry.input.as_str(), entry.output.as_str());
        let cpu_settings = backend::Cpu { threads: 1, precision: None };
        let backend =
            backend::open_on_gpu(&bundle.embedder_path(), names, cpu_settings, options, places)
                .unwrap();
        let gpu = Model::with_backend(bundle, backend);
        Some(Self { gpu, cpu, fakes, _bundle: dir })
    }
}
