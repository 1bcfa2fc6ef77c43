//! The backend against a fake driver and a fake TensorRT, which runs the smallest network for real.

mod missing;
mod plans;
mod recovery;

use std::fs;
use std::path::{Path, PathBuf};

use conceptseg_tensorrt_fakes::Fakes;

use super::*;
use crate::backend::fallback::{CpuSource, Fallback};
use crate::backend::{BackendKind, BackendOptions};
use crate::files::sha256_file;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny.onnx");
const FP32: GpuOptions = GpuOptions { precision: Precision::Fp32, ..GpuOptions::FIRST };
const WIDTH: usize = 64;
const HEIGHT: usize = 40;

/// A bundle's network and the libraries of a machine.
struct Machine {
    bundle: tempfile::TempDir,
    fakes: Fakes,
}

impl Machine {
    fn new(version: &str) -> Self {
        Self::with(Fakes::new(version))
    }

    fn with(fakes: Fakes) -> Self {
        let bundle = tempfile::tempdir().unwrap();
        fs::copy(TINY, bundle.path().join("embedder.onnx")).unwrap();
        Self { bundle, fakes }
    }

    /// The same bundle on another machine.
    fn moved_to(self, fakes: Fakes) -> Self {
        Self { fakes, ..self }
    }

    fn places(&self) -> Places {
        let driver = self.fakes.folder.path().join("libcuda.so.1");
        Places { driver: Some(driver), search: self.fakes.search() }
    }

    fn network(&self) -> NetworkFile {
        let path = self.bundle.path().join("embedder.onnx");
        let sha256 = sha256_file(&path).unwrap();
        NetworkFile { path, sha256, input: "image".to_owned(), output: "embedding".to_owned() }
    }

    fn try_open(&self, options: GpuOptions) -> Result<TensorRt, TensorRtError> {
        TensorRt::open(self.network(), self.places(), options)
    }

    fn open(&self) -> TensorRt {
        self.try_open(FP32).unwrap()
    }

    fn calls(&self) -> Vec<String> {
        self.fakes.nvinfer.take_calls()
    }

    /// How often TensorRT was asked to build and to read a plan since this was asked.
    fn builds_and_loads(&self) -> (usize, usize) {
        let calls = self.calls();
        let count = |name: &str| calls.iter().filter(|call| call.starts_with(name)).count();
        (count("buildSerializedNetwork"), count("deserializeCudaEngine"))
    }

    fn plan(&self) -> PathBuf {
        let plans = PlanStore::of_network(&self.network().path).list().unwrap();
        assert_eq!(plans.len(), 1, "{plans:?}");
        plans[0].path.clone()
    }

    fn reason(&self, options: GpuOptions) -> String {
        self.try_open(options).unwrap_err().to_string()
    }
}

fn noise(width: usize, height: usize) -> Vec<f32> {
    (0..3 * width * height).map(|i| ((i * 7919 % 1021) as f32 / 510.5 - 1.0) * 2.0).collect()
}

fn run(backend: &dyn Backend) -> Result<Vec<f32>, BackendError> {
    let mut out = Vec::new();
    let shape = backend.run(Images::one(&noise(WIDTH, HEIGHT), WIDTH, HEIGHT), &mut out)?;
    assert_eq!(shape, OutputShape { dim: 32, height: HEIGHT / 8, width: WIDTH / 8 });
    Ok(out)
}

fn on_cpu() -> Vec<f32> {
    let options = BackendOptions::new(BackendKind::Rten, 1);
    let cpu = crate::backend::open(Path::new(TINY), "image", "embedding", &options).unwrap();
    run(cpu.as_ref()).unwrap()
}

fn assert_close(a: &[f32], b: &[f32]) {
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(a.len() == b.len() && apart < 1e-5, "{apart}");
}

/// A backend that the CPU may stand in for.
fn with_cpu(machine: &Machine) -> Fallback {
    let NetworkFile { path, input, output, .. } = machine.network();
    Fallback::new(machine.open(), CpuSource { path, input, output, threads: 1 })
}

#[test]
fn the_network_runs_as_on_the_cpu_with_every_version() {
    for version in ["8.6", "10.3", "10.15", "11.1", "11.4"] {
        let machine = Machine::new(version);
        let backend = machine.open();
        assert_close(&run(&backend).unwrap(), &on_cpu());
        assert_eq!(backend.name(), "tensorrt");
        let description = backend.describe();
        assert!(
            description.contains("Fake GPU 0") && description.ends_with("fp32"),
            "{description}"
        );
        drop(backend);
        machine.fakes.check_all_destroyed();
    }
}

#[test]
fn a_plan_is_built_once_and_loaded_from_then_on() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    assert_eq!(machine.builds_and_loads(), (0, 0), "the size is not known yet");
    run(&backend).unwrap();
    run(&backend).unwrap();
    assert_eq!(machine.builds_and_loads(), (1, 1));
    let name = machine.plan().file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("fp32-40x64-b1-fake-gpu-0-sm87-trt10.15."), "{name}");
    drop(backend);
    run(&machine.open()).unwrap();
    assert_eq!(machine.builds_and_loads(), (0, 1));
}

#[test]
fn every_size_has_a_plan_of_its_own() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    let mut out = Vec::new();
    for (width, height) in [(64, 40), (104, 64), (64, 40), (8, 8)] {
        let shape =
            backend.run(Images::one(&noise(width, height), width, height), &mut out).unwrap();
        assert_eq!(shape, OutputShape { dim: 32, height: height / 8, width: width / 8 });
    }
    assert_eq!(machine.builds_and_loads(), (3, 3));
    let error =
        backend.run(Images::one(&noise(8, 20_000), 8, 20_000), &mut out).unwrap_err().to_string();
    assert!(error.contains("20000x8 must have sides of 1 to 16384"), "{error}");
}

#[test]
fn streams_run_at_the_same_time_and_build_once() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    let expected = on_cpu();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_close(&run(&backend).unwrap(), &expected);
                }
            });
        }
    });
    assert_eq!(machine.builds_and_loads(), (1, 1));
}

#[test]
fn streams_take_turns_where_the_memory_is_for_one() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    let expected = run(&backend).unwrap();
    machine.fakes.nvinfer.set("no_memory:context", 1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(run(&backend).unwrap(), expected));
        }
    });
}

#[test]
fn whoever_works_on_the_gpu_binds_buffers_of_its_own() {
    use conceptseg_tensorrt::cuda::{DeviceBuffer, Stream};
    let machine = Machine::new("10.15");
    let backend = machine.open();
    let out = backend
        .with_gpu(|gpu| {
            let engine = gpu.engine(InputShape::one(HEIGHT as u32, WIDTH as u32))?;
            let input = Arc::new(DeviceBuffer::new(gpu.cuda(), engine.input_len())?);
            let output = Arc::new(DeviceBuffer::new(gpu.cuda(), engine.output_len())?);
            let stream = Stream::new(gpu.cuda())?;
            let mut context = engine.context(&input, &output)?;
            input.write(&stream, &noise(WIDTH, HEIGHT))?;
            context.enqueue(&stream)?;
            let mut out = vec![0.0; engine.output_len()];
            output.read(&stream, &mut out)?;
            Ok::<_, TensorRtError>(out)
        })
        .unwrap();
    assert_close(&out, &on_cpu());
}

#[test]
fn every_precision_gives_nearly_the_same() {
    let machine = Machine::new("10.15");
    let expected = on_cpu();
    for (precision, tolerance) in
        [(Precision::Fp32, 1e-5), (Precision::Fp16, 2e-3), (Precision::Bf16, 2e-2)]
    {
        let backend = machine.try_open(GpuOptions { precision, ..FP32 }).unwrap();
        let out = run(&backend).unwrap();
        let apart = out.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < tolerance, "{precision}: {apart}");
    }
    let int8 = GpuOptions { precision: Precision::Int8, ..FP32 };
    let text = machine.reason(int8);
    assert!(text.contains("has no int8 plan for it: 8-bit integers need frames"), "{text}");
}

#[test]
fn a_plan_takes_as_many_images_as_it_was_built_for() {
    let machine = Machine::new("11.4");
    let backend = machine.open();
    let input = InputShape { batch: 8, height: 16, width: 24 };
    backend.build(input, BuildOptions::default(), &mut |_| ()).unwrap().saved.unwrap();
    let (one, all) = backend
        .with_gpu(|gpu| {
            let engine = gpu.engine(input)?;
            assert_eq!(engine.output_shape(), OutputShape { dim: 32, height: 2, width: 3 });
            let images = noise(24, 16 * 8);
            let (mut one, mut all) = (Vec::new(), Vec::new());
            engine.run(&images, &mut all)?;
            gpu.engine(InputShape::one(16, 24))?.run(&images[..3 * 16 * 24], &mut one)?;
            Ok::<_, TensorRtError>((one, all))
        })
        .unwrap();
    assert_eq!(all.len(), 8 * one.len());
    assert_close(&all[..one.len()], &one);
}

/// Images at once, at most `most` in a call.
fn run_batch(backend: &dyn Backend, count: usize, most: usize) -> Vec<f32> {
    let data = noise(24, 16 * count);
    let mut out = Vec::new();
    let images = Images { data: &data, count, most, width: 24, height: 16 };
    let shape = backend.run(images, &mut out).unwrap();
    assert_eq!((shape, out.len()), (OutputShape { dim: 32, height: 2, width: 3 }, count * 192));
    out
}

/// The same images one by one, on the CPU.
fn one_by_one(count: usize) -> Vec<f32> {
    let options = BackendOptions::new(BackendKind::Rten, 1);
    let cpu = crate::backend::open(Path::new(TINY), "image", "embedding", &options).unwrap();
    let mut all = Vec::new();
    for image in noise(24, 16 * count).chunks(3 * 16 * 24) {
        let mut one = Vec::new();
        cpu.run(Images::one(image, 24, 16), &mut one).unwrap();
        all.extend(one);
    }
    all
}

#[test]
fn one_plan_serves_every_number_of_images_up_to_the_most() {
    for version in ["8.6", "10.15", "11.4"] {
        let machine = Machine::new(version);
        let backend = machine.open();
        for count in [3, 1, 4, 2, 3] {
            assert_close(&run_batch(&backend, count, 4), &one_by_one(count));
        }
        assert_eq!(machine.builds_and_loads(), (1, 1), "{version}");
        let name = machine.plan().file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("fp32-16x24-b4-"), "{name}");
    }
}

#[test]
fn a_smaller_plan_that_is_there_is_taken() {
    let machine = Machine::new("10.15");
    for batch in [1, 2] {
        let input = InputShape { batch, height: 16, width: 24 };
        machine.open().build(input, BuildOptions::default(), &mut |_| ()).unwrap().saved.unwrap();
    }
    machine.calls();
    let backend = machine.open();
    for count in [1, 2, 1, 3] {
        assert_close(&run_batch(&backend, count, 4), &one_by_one(count));
    }
    assert_eq!(machine.builds_and_loads(), (1, 3), "only that for four is new");
}

#[test]
fn more_images_than_a_plan_can_take_are_refused() {
    let machine = Machine::new("10.15");
    let data = noise(24, 16 * 9);
    let images = Images { data: &data, count: 9, most: 9, width: 24, height: 16 };
    let error = machine.open().run(images, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("must have a batch of 1 to 8"), "{error}");
}

#[test]
fn a_batch_goes_on_with_the_cpu() {
    let machine = Machine::new("10.15");
    let backend = with_cpu(&machine);
    assert_close(&run_batch(&backend, 3, 4), &one_by_one(3));
    assert_eq!(backend.name(), "tensorrt");
    machine.fakes.cuda.set("cuMemcpyDtoHAsync", 700);
    assert_close(&run_batch(&backend, 4, 4), &one_by_one(4));
    assert_ne!(backend.name(), "tensorrt");
}
