//! The backend against a fake driver and a fake TensorRT, which runs the smallest network for real.

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
    let shape = backend.run(&noise(WIDTH, HEIGHT), WIDTH, HEIGHT, &mut out)?;
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
        assert!(description.contains("Fake GPU 0") && description.ends_with("fp32"), "{description}");
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
        let shape = backend.run(&noise(width, height), width, height, &mut out).unwrap();
        assert_eq!(shape, OutputShape { dim: 32, height: height / 8, width: width / 8 });
    }
    assert_eq!(machine.builds_and_loads(), (3, 3));
    let error = backend.run(&noise(8, 20_000), 8, 20_000, &mut out).unwrap_err().to_string();
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
    let int8 = GpuOptions { precision: Precision::Int8, ..FP32 };
    let text = machine.reason(int8);
    assert!(text.contains("has no int8 plan for it: 8-bit integers need frames"), "{text}");
    let model = crate::onnx::Model::parse(&fs::read(TINY).unwrap()).unwrap();
    let cpu = BackendOptions::new(BackendKind::Rten, 1);
    let mut calibrator = crate::onnx::calibrate::Calibrator::new(&model, &cpu).unwrap();
    calibrator.observe(&noise(WIDTH, HEIGHT), WIDTH, HEIGHT).unwrap();
    let network = machine.network();
    let store = PlanStore::of_network(&network.path);
    store.create().unwrap();
    let path = store.calibration_path(&network.sha256);
    calibrator.finish().write(&path).unwrap();

    let expected = on_cpu();
    for (precision, tolerance) in [
        (Precision::Fp32, 1e-5),
        (Precision::Fp16, 2e-3),
        (Precision::Bf16, 2e-2),
        (Precision::Int8, 5e-2),
    ] {
        let backend = machine.try_open(GpuOptions { precision, ..FP32 }).unwrap();
        let out = run(&backend).unwrap();
        let apart = out.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < tolerance, "{precision}: {apart}");
        let calibrated = store.list().unwrap().iter().any(|plan| {
            let record = plan.record.as_ref().unwrap();
            record.key.precision == precision && record.calibration.is_some()
        });
        assert_eq!(calibrated, precision == Precision::Int8);
    }
    assert_eq!(store.list().unwrap().len(), 4);

    // Ranges of another network.
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&model.fingerprint(), &"0".repeat(64))).unwrap();
    let backend = machine.try_open(int8).unwrap();
    let error = backend.run(&noise(8, 8), 8, 8, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("was measured on another network"), "{error}");
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

// ---- nothing to run on ----

#[test]
fn what_is_missing_is_said_in_one_line() {
    let machine = Machine::new("10.15");
    let driver = machine.fakes.folder.path().join("libcuda.so.1");
    let reason = |change: &dyn Fn(&mut Places)| {
        let mut places = machine.places();
        change(&mut places);
        let error = TensorRt::open(machine.network(), places, FP32).unwrap_err();
        assert!(matches!(error, TensorRtError::Unavailable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let text = reason(&|places| places.driver = Some("/nonexistent/libcuda.so.1".into()));
    assert!(text.starts_with("there is no CUDA driver (libcuda.so.1); install"), "{text}");
    let text = reason(&|places| places.search = conceptseg_tensorrt::Search::folder("/nonexistent"));
    assert!(text.starts_with("there is no TensorRT 10 or 11") && text.contains(FOLDER_VARIABLE), "{text}");
    let text = reason(&|places| places.search.majors = vec![11]);
    assert!(text.contains("libnvinfer.so.10 is there, but version 11 is needed"), "{text}");

    // A driver without all functions: a library that is none at all.
    let parser = machine.fakes.folder.path().join("libnvonnxparser.so.10");
    let text = reason(&|places| places.driver = Some(parser.clone()));
    assert!(text.contains("the GPU's driver is too old: it has no function cu"), "{text}");

    machine.fakes.cuda.set("driver_version", 11_040);
    let text = reason(&|_| ());
    assert!(text.contains("too old: it serves CUDA 11.4, and 12.0 is needed"), "{text}");
    machine.fakes.cuda.set("driver_version", 12_060);

    machine.fakes.cuda.set("devices", 0);
    let text = reason(&|_| ());
    assert!(text.contains("the CUDA driver finds no GPU"), "{text}");
    machine.fakes.cuda.set("devices", 2);
    let text = machine.reason(GpuOptions { device: 2, ..FP32 });
    assert!(text.contains("there is no GPU 2; the CUDA driver finds 2"), "{text}");

    machine.fakes.nvinfer.set("version", 120_000);
    let text = reason(&|_| ());
    assert!(text.contains("is TensorRT 12.0.0, whose interface is not known here"), "{text}");
    machine.fakes.nvinfer.set("version", 101_501);

    machine.fakes.nvinfer.set("runtime_address", 0x238);
    let text = reason(&|_| ());
    assert!(text.contains("serves CUDA 12.6, which is too old for TensorRT 10.15.1"), "{text}");
    assert!(driver.exists());
}

#[test]
fn the_lean_runtime_runs_plans_and_builds_none() {
    let machine = Machine::with(Fakes::lean("10.15"));
    let text = machine.reason(FP32);
    assert!(text.contains("has no fp32 plan for it") && text.contains("is the lean runtime"), "{text}");

    let machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    let machine = machine.moved_to(Fakes::lean("10.15"));
    let backend = machine.open();
    assert_close(&run(&backend).unwrap(), &on_cpu());
    let error = backend.run(&noise(8, 8), 8, 8, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("there is no fp32 plan for 8x8") && error.contains("lean runtime"), "{error}");
    // A plan that TensorRT refuses cannot be replaced there.
    drop(backend);
    machine.fakes.nvinfer.set("no_plan", 1);
    let error = run(&machine.open()).unwrap_err().to_string();
    assert!(error.contains(".plan cannot be used: ") && error.contains("not for this device"), "{error}");
}

#[test]
fn what_the_gpu_cannot_do_is_refused_before_minutes_are_spent() {
    let machine = Machine::new("10.15");
    let build = |options: GpuOptions, build: BuildOptions| {
        let backend = machine.try_open(options)?;
        backend.build(InputShape::one(40, 64), build, &mut |_| ()).map(|_| ())
    };
    let dla = GpuOptions { dla: Some(0), ..FP32 };
    let text = build(dla, BuildOptions::default()).unwrap_err().to_string();
    assert!(text.contains("the option DLA core = 0 was refused: the device has 0"), "{text}");
    machine.fakes.nvinfer.set("dla_cores", 1);
    let text = build(dla, BuildOptions::default()).unwrap_err().to_string();
    assert!(text.contains("no plan can be built for a DLA core in fp32"), "{text}");
    assert_eq!(machine.builds_and_loads(), (0, 0));
}

// ---- plans that are not trusted ----

/// Changes something about the one plan of a bundle, and checks that TensorRT never sees it but builds anew.
fn rebuilt_after(change: impl FnOnce(&Machine) -> Option<Fakes>) {
    let mut machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    if let Some(fakes) = change(&machine) {
        machine = machine.moved_to(fakes);
    }
    machine.calls();
    let backend = machine.open();
    run(&backend).unwrap();
    assert_eq!(machine.builds_and_loads(), (1, 1), "built once, and only that was loaded");
    drop(backend);
    run(&machine.open()).unwrap();
    assert_eq!(machine.builds_and_loads(), (0, 1), "the new plan is good");
}

#[test]
fn a_truncated_plan_is_built_again() {
    rebuilt_after(|machine| {
        let path = machine.plan();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        None
    });
}

#[test]
fn an_altered_plan_is_built_again() {
    rebuilt_after(|machine| {
        let path = machine.plan();
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, bytes).unwrap();
        None
    });
}

#[test]
fn a_plan_without_a_record_is_built_again() {
    rebuilt_after(|machine| {
        fs::remove_file(machine.plan().with_extension("toml")).unwrap();
        None
    });
}

#[test]
fn a_plan_of_another_network_is_built_again() {
    rebuilt_after(|machine| {
        // A producer's name more changes nothing but the hash.
        let path = machine.network().path;
        let mut onnx = fs::read(&path).unwrap();
        onnx.extend(b"\x1a\x011");
        fs::write(path, onnx).unwrap();
        None
    });
}

#[test]
fn a_plan_of_another_version_is_built_again() {
    rebuilt_after(|_| Some(Fakes::new("10.3")));
    rebuilt_after(|_| Some(Fakes::new("11.4")));
}

#[test]
fn a_plan_of_another_gpu_is_built_again() {
    let machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    machine.calls();
    run(&machine.try_open(GpuOptions { device: 1, ..FP32 }).unwrap()).unwrap();
    assert_eq!(machine.builds_and_loads(), (1, 1));
    run(&machine.open()).unwrap();
    assert_eq!(machine.builds_and_loads(), (0, 1), "the first GPU has kept its own");
}

#[test]
fn a_plan_that_tensorrt_refuses_is_built_again() {
    let machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    machine.calls();
    machine.fakes.nvinfer.set("no_plan", 1);
    let error = run(&machine.open()).unwrap_err().to_string();
    assert!(error.contains("the plan is not for this device"), "{error}");
    assert_eq!(machine.builds_and_loads(), (1, 2), "the old one, then the new one");
}

#[test]
fn a_network_that_changes_while_it_is_open_is_not_built() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    fs::write(machine.network().path, "another").unwrap();
    let error = run(&backend).unwrap_err().to_string();
    assert!(error.contains("was replaced while it was in use"), "{error}");
}

#[test]
fn a_compatible_plan_runs_on_a_later_version() {
    let machine = Machine::new("8.6");
    let options = BuildOptions { version_compatible: true, ..BuildOptions::default() };
    let built =
        machine.open().build(InputShape::one(40, 64), options, &mut |_| ()).unwrap();
    assert!(built.saved.is_ok());
    assert!(machine.calls().contains(&"setFlag kVERSION_COMPATIBLE".to_owned()));
    let machine = machine.moved_to(Fakes::lean("10.15"));
    assert_close(&run(&machine.open()).unwrap(), &on_cpu());
    assert!(machine.calls().contains(&"setEngineHostCodeAllowed true".to_owned()));
}

#[test]
fn timings_of_one_build_are_used_by_the_next() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    run(&backend).unwrap();
    assert!(machine.calls().contains(&"createTimingCache 0".to_owned()));
    backend.run(&noise(8, 8), 8, 8, &mut Vec::new()).unwrap();
    assert!(machine.calls().contains(&"createTimingCache 6".to_owned()));
    // Of another builder: refused, and started anew.
    let cache = fs::read_dir(backend.store().folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "cache"))
        .unwrap();
    fs::write(&cache, "of another GPU").unwrap();
    backend.run(&noise(16, 8), 16, 8, &mut Vec::new()).unwrap();
    let calls = machine.calls();
    assert!(calls.contains(&"createTimingCache 14".to_owned()), "{calls:?}");
    assert!(calls.contains(&"createTimingCache 0".to_owned()), "{calls:?}");
    assert_eq!(fs::read(&cache).unwrap(), b"cache:");
}

#[test]
fn options_of_a_build_reach_tensorrt_and_the_record() {
    let machine = Machine::new("10.15");
    let options = BuildOptions {
        workspace_mb: Some(64),
        optimization_level: Some(5),
        gpus: Gpus::AmperePlus,
        version_compatible: true,
    };
    let mut phases = Vec::new();
    let built =
        machine.open().build(InputShape::one(40, 64), options, &mut |p| phases.push(p)).unwrap();
    assert_eq!(phases, [Phase::Preparing, Phase::Parsing, Phase::Building, Phase::Writing]);
    assert_eq!(built.record.options, options);
    let calls = machine.calls();
    for call in [
        "setMemoryPoolLimit 0 67108864",
        "setBuilderOptimizationLevel 5",
        "setHardwareCompatibilityLevel 1",
        "setFlag kVERSION_COMPATIBLE",
        "setProfilingVerbosity 2",
    ] {
        assert!(calls.iter().any(|made| made == call), "{call} not in {calls:?}");
    }
}

#[test]
fn a_plan_that_cannot_be_written_is_kept_in_memory() {
    let machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    let path = machine.plan();
    // A folder in the place of the plan, which no file replaces.
    fs::remove_file(&path).unwrap();
    fs::create_dir_all(path.join("in the way")).unwrap();
    machine.calls();
    let backend = machine.open();
    let expected = run(&backend).unwrap();
    machine.fakes.cuda.fail_once("cuStreamSynchronize", 700);
    assert_eq!(run(&backend).unwrap(), expected);
    assert_eq!(machine.builds_and_loads(), (1, 2), "not built again after the reset");
    assert!(backend.build(InputShape::one(40, 64), BuildOptions::default(), &mut |_| ()).unwrap().saved.is_err());
}

#[test]
fn a_file_in_the_place_of_the_folder_is_an_error() {
    let machine = Machine::new("10.15");
    fs::write(machine.bundle.path().join(FOLDER), "").unwrap();
    let error = run(&machine.open()).unwrap_err().to_string();
    assert!(error.contains("cannot access") && error.contains(FOLDER), "{error}");
}

// ---- memory ----

#[test]
fn too_little_memory_says_how_much_is_needed_and_what_to_do() {
    let machine = Machine::new("10.15");
    for setting in ["no_memory:build", "no_memory:plan", "no_memory:context"] {
        machine.fakes.nvinfer.set(setting, 1);
        let error = run(&machine.open()).unwrap_err().to_string();
        assert!(error.contains("the GPU Fake GPU 0 has no memory left for the network at 40x64"), "{error}");
        assert!(error.contains("of 34 GB; take a smaller size"), "{error}");
        assert_eq!(error.contains("about "), setting != "no_memory:build", "{error}");
        machine.fakes.nvinfer.set(setting, 0);
    }
    let backend = machine.open();
    machine.fakes.cuda.set("cuMemAlloc", 2);
    let error = run(&backend).unwrap_err().to_string();
    assert!(error.contains("has no memory left"), "{error}");
    machine.fakes.cuda.set("cuMemAlloc", 0);
    assert_close(&run(&backend).unwrap(), &on_cpu());
    // Nothing was thrown away for it.
    machine.calls();
    run(&machine.open()).unwrap();
    assert_eq!(machine.builds_and_loads(), (0, 1));
}

// ---- a GPU that breaks ----

#[test]
fn a_gpu_that_breaks_is_reset_and_the_frame_runs_again() {
    for call in ["cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"] {
        let machine = Machine::new("10.15");
        let backend = machine.open();
        let expected = run(&backend).unwrap();
        machine.calls();
        machine.fakes.cuda.take_calls();
        machine.fakes.cuda.fail_once(call, 700);
        assert_eq!(run(&backend).unwrap(), expected, "{call}");
        let driver = machine.fakes.cuda.take_calls();
        assert_eq!(driver.iter().filter(|c| *c == "cuDevicePrimaryCtxReset").count(), 1, "{call}");
        assert_eq!(machine.builds_and_loads(), (0, 1), "the plan is loaded again");
        assert_eq!(run(&backend).unwrap(), expected);
        drop(backend);
        machine.fakes.check_all_destroyed();
    }
}

#[test]
fn a_failure_that_breaks_nothing_is_an_error_of_that_frame_only() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    run(&backend).unwrap();
    machine.fakes.nvinfer.set("no_enqueue", 1);
    let error = run(&backend).unwrap_err().to_string();
    assert!(error.contains("could not run the network: a kernel could not be launched"), "{error}");
    machine.fakes.nvinfer.set("no_enqueue", 0);
    run(&backend).unwrap();
    assert!(!machine.fakes.cuda.take_calls().contains(&"cuDevicePrimaryCtxReset".to_owned()));
}

/// From now on every run breaks the GPU.
fn break_for_good(machine: &Machine) {
    machine.fakes.cuda.set("cuMemcpyDtoHAsync", 700);
}

#[test]
fn a_gpu_that_breaks_again_is_an_error() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    run(&backend).unwrap();
    break_for_good(&machine);
    let error = run(&backend).unwrap_err();
    let BackendError::TensorRt(error) = error else { panic!("{error}") };
    assert!(matches!(*error, TensorRtError::Lost { .. }));
    let text = error.to_string();
    assert!(text.contains("the GPU Fake GPU 0 failed again after it was reset"), "{text}");
    // The next frame tries anew.
    machine.fakes.cuda.set("cuMemcpyDtoHAsync", 0);
    assert_close(&run(&backend).unwrap(), &on_cpu());
}

#[test]
fn the_cpu_goes_on_where_that_was_asked_for() {
    let machine = Machine::new("10.15");
    let backend = with_cpu(&machine);
    assert_close(&run(&backend).unwrap(), &on_cpu());
    assert!(backend.name() == "tensorrt" && backend.gpu().is_some());
    break_for_good(&machine);
    assert_close(&run(&backend).unwrap(), &on_cpu());
    assert!(backend.name() != "tensorrt" && backend.gpu().is_none());
    assert!(!backend.describe().contains("tensorrt"));
    machine.fakes.cuda.set("cuMemcpyDtoHAsync", 0);
    machine.calls();
    run(&backend).unwrap();
    assert_eq!(machine.calls(), [""; 0], "the GPU is not asked again");
    assert_eq!(machine.fakes.nvinfer.live_objects(), 0, "its memory was given back");
}

#[test]
fn the_cpu_goes_on_when_whoever_works_on_the_gpu_gives_it_up() {
    let machine = Machine::new("10.15");
    let backend = with_cpu(&machine);
    assert!(!machine.open().give_up_gpu(&"no reason"));
    assert!(backend.give_up_gpu(&"a kernel failed"));
    assert!(backend.gpu().is_none());
    assert_close(&run(&backend).unwrap(), &on_cpu());
    assert_eq!(machine.builds_and_loads(), (0, 0));
}

#[test]
fn a_wrong_input_is_no_reason_to_leave_the_gpu() {
    let machine = Machine::new("10.15");
    let backend = with_cpu(&machine);
    let error = backend.run(&[0.0; 3], 8, 8, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, BackendError::Input { .. }));
    assert!(backend.gpu().is_some());
}

#[test]
fn all_streams_and_networks_of_a_gpu_survive_its_reset() {
    let machine = Machine::new("10.15");
    let (one, other) = (machine.open(), machine.open());
    let expected = run(&one).unwrap();
    run(&other).unwrap();
    let kept = one.keep::<Arc<Loaded>>();
    let shape = InputShape::one(HEIGHT as u32, WIDTH as u32);
    one.with_gpu(|gpu| {
        *kept.of(gpu) = Some(gpu.engine(shape)?);
        Ok::<_, TensorRtError>(())
    })
    .unwrap();
    machine.fakes.cuda.fail_once("cuMemcpyHtoDAsync", 719);
    std::thread::scope(|scope| {
        for backend in [&one, &other, &one, &other] {
            scope.spawn(|| {
                for _ in 0..4 {
                    assert_eq!(run(backend).unwrap(), expected);
                }
            });
        }
    });
    let resets = machine.fakes.cuda.take_calls();
    assert_eq!(resets.iter().filter(|call| *call == "cuDevicePrimaryCtxReset").count(), 1);
    one.with_gpu(|gpu| {
        assert!(kept.of(gpu).is_none(), "what a stream kept on the GPU was taken from it");
        Ok::<_, TensorRtError>(())
    })
    .unwrap();
    drop((one, other, kept));
    assert_eq!(machine.fakes.nvinfer.live_objects() + machine.fakes.cuda.live_objects(), 0);
}
