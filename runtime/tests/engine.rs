//! `conceptseg engine` and the backend `tensorrt`, as a user runs them, on a fake driver and a fake TensorRT.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use conceptseg::bundle::{BundleWriter, Codebook};
use conceptseg::scene::{Scene, SceneConfig};
use conceptseg_tensorrt_fakes::Fakes;
use serde_json::Value;

const FRAMES: u32 = 6;

/// A bundle, a short video and the libraries of a machine.
struct Machine {
    folder: tempfile::TempDir,
    fakes: Option<Fakes>,
}

struct Answer {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// The one sentence that a command fails with.
    fn failure(&self) -> &str {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        let lines: Vec<&str> =
            self.stderr.lines().filter(|line| line.starts_with("conceptseg: ")).collect();
        assert!(lines.len() == 1 && !self.stderr.contains("panicked"), "{}", self.stderr);
        lines[0]
    }
}

impl Machine {
    fn new(fakes: Option<Fakes>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut vectors = vec![0.0; 16 * 32];
        for (concept, row) in vectors.chunks_exact_mut(32).enumerate() {
            row[concept] = 0.6;
            row[concept + 1] = 0.8;
        }
        let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny.onnx");
        BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            .write(&folder.path().join("bundle"), &onnx, &Codebook::new(16, 32, vectors).unwrap())
            .unwrap();
        // The layout of DAVIS.
        let [images, masks] = ["JPEGImages", "Annotations"]
            .map(|kind| folder.path().join("davis").join(kind).join("480p/scene"));
        fs::create_dir_all(&images).unwrap();
        fs::create_dir_all(&masks).unwrap();
        let config = SceneConfig { width: 96, height: 64, frames: FRAMES, seed: 3 };
        let scene = Scene::new(config).unwrap();
        for index in 0..FRAMES {
            let frame = scene.frame(index);
            frame.image.save(images.join(format!("{index:05}.jpg"))).unwrap();
            frame.labels.write_png(&masks.join(format!("{index:05}.png"))).unwrap();
        }
        Self { folder, fakes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn frames(&self) -> String {
        self.path("davis/JPEGImages/480p/scene").display().to_string()
    }

    /// Runs the command line; `@` is the bundle. `settings` are those of the fakes.
    fn run_with(&self, line: &str, settings: &[(&str, &str)]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conceptseg"));
        for variable in ["CONCEPTSEG_TENSORRT", "VIRTUAL_ENV", "RUST_LOG", "LD_LIBRARY_PATH"] {
            command.env_remove(variable);
        }
        if let Some(fakes) = &self.fakes {
            command.env("LD_LIBRARY_PATH", fakes.folder.path());
            command.env("FAKE_TENSORRT_CALLS", self.path("calls"));
        }
        let bundle = self.path("bundle").display().to_string();
        let words = line.split_whitespace().map(|word| if word == "@" { &bundle } else { word });
        let output = command.args(words).envs(settings.iter().copied()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Answer {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    fn run(&self, line: &str) -> Answer {
        self.run_with(line, &[])
    }

    /// Builds a plan for the frames of the video.
    fn build(&self, more: &str) -> Answer {
        self.run(&format!("engine build --json --bundle @ --size 64x96 --short-side 64 {more}"))
    }

    /// Carries the masks of the video.
    fn carry(&self, more: &str, settings: &[(&str, &str)]) -> Answer {
        let root = self.path("davis");
        let line = format!(
            "eval davis --json --bundle @ --root {} --short-side 64 --threads 1 {more}",
            root.display()
        );
        self.run_with(&line, settings)
    }

    /// Calls of TensorRT since this was asked.
    fn calls(&self, name: &str) -> usize {
        let path = self.path("calls");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().filter(|call| call.starts_with(name)).count()
    }
}

fn with_tensorrt(version: &str) -> Machine {
    Machine::new(Some(Fakes::new(version)))
}

/// Mean J&F of `eval davis`.
fn figures(answer: &Answer) -> Value {
    let mut object = answer.json();
    // How long it took, and with what, is not what is compared.
    let figures = object["global"].take();
    assert!(figures.is_object() || figures.is_number(), "{}", answer.stdout);
    figures
}

#[test]
fn plans_of_all_precisions_are_built_shown_and_agree_with_the_cpu() {
    let machine = with_tensorrt("10.15");
    let answer = machine.build("--precision int8");
    assert!(answer.failure().contains("8-bit integers need frames"), "{}", answer.stderr);
    let frames = machine.frames();
    // The smallest network has no layer between its first and its last one.
    let answer = machine.build(&format!("--precision int8 --frames {frames}"));
    assert!(answer.failure().contains("no layer that could compute with integers"));
    for precision in ["fp32", "fp16", "bf16"] {
        let built = machine.build(&format!("--precision {precision}")).json();
        assert_eq!(built["built"], true);
        assert_eq!(built["key"]["precision"], precision);
        assert_eq!((&built["key"]["height"], &built["key"]["width"]), (&64.into(), &64.into()));
        let again = machine.build(&format!("--precision {precision}")).json();
        assert_eq!((&again["built"], &again["sha256"]), (&false.into(), &built["sha256"]));
        let forced = machine.build(&format!("--precision {precision} --force")).json();
        assert_eq!(forced["built"], true);

        let answer = machine.run(&format!(
            "engine verify --json --bundle @ --frames {frames} --short-side 64 --precision {precision} \
             --min-concepts 90 --min-masks 80"
        ));
        let verified = answer.json();
        assert_eq!(verified["passed"], true, "{verified}");
        assert_eq!(verified["agreement"]["frames"], FRAMES);
        let cosine = verified["agreement"]["cosine"]["mean"].as_f64().unwrap();
        assert!(cosine > 0.995, "{precision}: {cosine}");
        assert!(verified["plan"].as_str().unwrap().starts_with("tensorrt 10.15."), "{verified}");
    }
    let listed = machine.run("engine inspect --json --bundle @").json();
    let plans = listed["plans"].as_array().unwrap();
    assert_eq!(plans.len(), 3);
    assert!(plans.iter().all(|plan| plan["good"] == true && plan["layers"].is_null()), "{listed}");

    let name = plans[0]["file"].as_str().unwrap();
    let one = machine.run(&format!("engine inspect --json --bundle @ {name}")).json();
    assert_eq!(one["plans"][0]["layers"][0], "conv1", "{one}");
    let text = machine.run(&format!("engine inspect --bundle @ {name}")).stdout;
    assert!(text.contains("state     good") && text.contains("embedding Output float32"), "{text}");
}

#[test]
fn the_size_of_the_network_follows_from_that_of_the_frame() {
    let machine = with_tensorrt("10.3");
    let text = machine.run("engine build --bundle @ --size 1080x1920 --precision fp32").stdout;
    assert!(text.contains("frames of 1080x1920 become inputs of 480x832"), "{text}");
    assert!(text.contains("fp32-480x832-b1-fake-gpu-0-sm87-trt10.3.0-"), "{text}");
    let usage = machine.run("engine build --bundle @ --size 480");
    assert_eq!(usage.code, Some(2));
    assert!(usage.stderr.contains("HEIGHTxWIDTH"), "{}", usage.stderr);
    let frames = machine.frames();
    let answer = machine.build(&format!("--precision fp16 --frames {frames}"));
    assert!(answer.failure().contains("--frames is for --precision int8 only"));
}

#[test]
fn a_plan_that_does_not_agree_fails_with_the_figure() {
    let machine = with_tensorrt("10.15");
    let answer = machine.run(&format!(
        "engine verify --bundle @ --frames {} --short-side 64 --precision bf16 --min-cosine 1",
        machine.frames()
    ));
    assert!(answer.failure().contains("does not agree with the CPU: the mean cosine is 0.99"));
    assert!(answer.stdout.contains("cosine, mean"), "{}", answer.stdout);
}

#[test]
fn what_is_wrong_with_a_plan_is_shown() {
    let mut machine = with_tensorrt("10.15");
    machine.build("--precision fp32").json();
    let reason = |machine: &Machine| {
        let listed = machine.run("engine inspect --json --bundle @").json();
        listed["plans"][0]["reason"].as_str().unwrap_or("good").to_owned()
    };
    assert_eq!(reason(&machine), "good");
    machine.fakes = Some(Fakes::new("11.4"));
    assert!(
        reason(&machine).contains("built for TensorRT 10.15.1, not 11.4.0"),
        "{}",
        reason(&machine)
    );
    // Without TensorRT the bundle is what plans are held against.
    machine.fakes = None;
    assert_eq!(reason(&machine), "good");
    let text = machine.run("engine inspect --bundle @").stdout;
    assert!(
        text.contains("without TensorRT") && text.contains("there is no CUDA driver"),
        "{text}"
    );

    let engines = machine.path("bundle/engines");
    let plan = fs::read_dir(engines)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "plan"))
        .unwrap();
    let bytes = fs::read(&plan).unwrap();
    fs::write(&plan, &bytes[..40]).unwrap();
    assert!(reason(&machine).contains("has 40 bytes instead of"), "{}", reason(&machine));
    let answer = machine.run("engine inspect --bundle @ fp32-nothing");
    assert!(answer.failure().contains("holds no plan fp32-nothing"));
}

#[test]
fn doctor_tells_what_there_is_or_what_is_missing() {
    let machine = with_tensorrt("10.15");
    let found = machine.run("doctor --json").json();
    assert_eq!(
        (&found["auto"], &found["backends"][0]["name"]),
        (&"tensorrt".into(), &"tensorrt".into())
    );
    let detail = found["backends"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("10.15.1") && detail.contains("Fake GPU 0"), "{detail}");
    let old = machine.run_with("doctor", &[("FAKE_CUDA", "driver_version=11040")]).stdout;
    assert!(old.contains("serves CUDA 11.4, and 12.0 is needed; install a newer driver"), "{old}");
    let bare = Machine::new(None);
    let found = bare.run("doctor --json").json();
    assert_ne!(found["auto"], "tensorrt");
    let reason = found["backends"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("there is no CUDA driver"), "{reason}");
    let answer = bare.carry("--backend tensorrt", &[]);
    assert!(
        answer.failure().contains("the tensorrt backend is not available: there is no CUDA driver")
    );
    let answer = bare.carry("", &[]);
    assert!(
        answer.stderr.contains("using the CPU: the tensorrt backend is not available"),
        "{}",
        answer.stderr
    );
}

#[test]
fn a_stream_goes_on_when_its_gpu_breaks() {
    let machine = with_tensorrt("10.15");
    let on_cpu = figures(&machine.carry("--backend rten", &[]));
    let answer = machine.carry("--backend tensorrt --precision fp32", &[]);
    assert!(answer.stderr.contains("building the fp32 plan for 64x64"), "{}", answer.stderr);
    let on_gpu = figures(&answer);
    assert_eq!(on_gpu, on_cpu);
    assert_eq!(machine.calls("buildSerializedNetwork"), 1);

    let third = [("FAKE_CUDA", "cuMemcpyDtoHAsync:breaks=3")];
    let answer = machine.carry("--backend tensorrt --precision fp32", &third);
    assert_eq!(figures(&answer), on_gpu);
    assert!(
        answer.stderr.contains("the GPU Fake GPU 0 failed (")
            && answer.stderr.contains("it is reset")
    );
    assert_eq!(machine.calls("deserializeCudaEngine"), 2);

    let always = [("FAKE_CUDA", "cuMemcpyDtoHAsync=700")];
    let answer = machine.carry("--backend tensorrt --precision fp32", &always);
    assert!(answer.failure().contains("failed again after it was reset"), "{}", answer.stderr);
    for backend in ["--backend tensorrt --cpu-fallback", "--backend auto"] {
        let answer = machine.carry(&format!("{backend} --precision fp32"), &always);
        assert_eq!(figures(&answer), on_cpu, "{backend}");
        assert!(answer.stderr.contains("going on with "), "{}", answer.stderr);
    }
}

#[test]
fn memory_that_does_not_suffice_is_a_sentence() {
    let machine = with_tensorrt("10.15");
    let little = [("FAKE_TENSORRT", "no_memory:context=1")];
    let answer = machine.carry("--backend tensorrt", &little);
    let text = answer.failure();
    assert!(
        text.contains("has no memory left for the network at 64x64: about 5369 MB needed of 34 GB"),
        "{text}"
    );
}
