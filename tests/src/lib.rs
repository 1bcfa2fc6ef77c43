//! End-to-end tests of `ConceptSeg`: they drive the real binaries and `gst-launch-1.0`.
//!
//! This library holds what the tests share: it builds the binaries once, runs commands, and
//! makes small bundles and scenes. Its functions panic where a test could not go on.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

pub mod bench;
pub mod browser;
pub mod streams;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use conceptseg::bundle::{BundleWriter, Codebook};
use serde_json::Value;

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the root").to_owned()
}

/// Where the binaries under test are.
#[derive(Debug)]
pub struct Built {
    /// The `conceptseg` command.
    pub conceptseg: PathBuf,
    /// Folder for `GST_PLUGIN_PATH` that holds our plugin alone.
    pub plugins: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// Cargo's name of the profile that the tests were built with.
    pub profile: &'static str,
}

/// Builds the command and the plugin with the profile of the tests, once per test program.
pub fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        // Test programs lie in TARGET/PROFILE/deps.
        let this = std::env::current_exe().expect("a test program has a path");
        let folder = this.ancestors().nth(2).expect("TARGET/PROFILE/deps/test").to_owned();
        let target = folder.parent().expect("TARGET/PROFILE").to_owned();
        let profile = if folder.ends_with("release") { "release" } else { "dev" };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).args(["build", "--quiet", "--profile", profile]);
        cargo
            .args(["-p", "conceptseg", "-p", "gst-plugin-conceptseg", "--target-dir"])
            .arg(&target);
        let answer = run(&mut cargo);
        assert_eq!(answer.code, 0, "the build failed: {}", answer.stderr);

        let plugins = folder.join("gstreamer");
        fs::create_dir_all(&plugins).expect("the target folder can be written to");
        let link = plugins.join("libgstconceptseg.so");
        // Test programs run side by side: another one may have made it.
        if !link.exists() {
            let _ = std::os::unix::fs::symlink("../libgstconceptseg.so", &link);
        }
        assert!(link.exists(), "the plugin was not built to {}", folder.display());
        Built { conceptseg: folder.join("conceptseg"), plugins, target, profile }
    })
}

/// What a command said.
#[derive(Debug)]
pub struct Answer {
    /// Exit status, -1 where a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Answer {
    /// The standard output as JSON.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Checks that the command failed with exit status 1 and said why in one line that
    /// holds each of `words`.
    pub fn assert_one_sentence(&self, words: &[&str]) {
        assert_eq!(self.code, 1, "{self:?}");
        let all = format!("{}{}", self.stdout, self.stderr);
        for noise in ["panicked", "RUST_BACKTRACE", "unwrap", "assertion"] {
            assert!(!all.contains(noise), "{noise}: {self:?}");
        }
        let sentences: Vec<&str> = self
            .stderr
            .lines()
            .filter(|line| {
                ["demo: ", "conceptseg: ", "conceptseg-train: "].iter().any(|p| line.starts_with(p))
            })
            .collect();
        assert_eq!(sentences.len(), 1, "{self:?}");
        for word in words {
            assert!(sentences[0].contains(word), "no {word:?} in {:?}", sentences[0]);
        }
    }
}

/// Runs a command to its end without a terminal.
pub fn run(command: &mut Command) -> Answer {
    // What cargo tells a test of its package is news to the build scripts of some crates, which would be
    // built again, and all that needs them, in each cargo that a test starts, and after it.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the `conceptseg` command.
pub fn conceptseg<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Answer {
    run(Command::new(&built().conceptseg).args(arguments))
}

/// Runs the `conceptseg-train` command on one core.
pub fn trainer<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Answer {
    run(trainer_command().args(arguments))
}

/// The `conceptseg-train` command, which is built once per test program, for one core.
pub fn trainer_command() -> Command {
    static TRAINER: OnceLock<PathBuf> = OnceLock::new();
    let program = TRAINER.get_or_init(|| {
        let built = built();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).args(["build", "--quiet", "--profile", built.profile]);
        cargo.args(["-p", "conceptseg-train", "--target-dir"]).arg(&built.target);
        let answer = run(&mut cargo);
        assert_eq!(answer.code, 0, "the build failed: {}", answer.stderr);
        built.conceptseg.with_file_name("conceptseg-train")
    });
    let mut command = Command::new(program);
    command.env("OMP_NUM_THREADS", "1");
    command
}

/// Runs `gst-launch-1.0` on a pipeline written as on a command line; paths in it may not
/// hold blanks. One that hangs ends with 124.
pub fn gst_launch(pipeline: &str) -> Answer {
    run(&mut gst_launch_command(pipeline))
}

/// The command of [`gst_launch`].
pub fn gst_launch_command(pipeline: &str) -> Command {
    let mut command = gstreamer("timeout");
    command.args(["--kill-after=5", "300", "gst-launch-1.0", "-q"]);
    command.args(pipeline.split_whitespace());
    command
}

/// A `GStreamer` tool that sees our plugin. It keeps a registry of its own, so that neither
/// the user's registry is touched nor an older build of the plugin found. What `GLib` and
/// `GStreamer` warn of as misuse ends it.
pub fn gstreamer(tool: &str) -> Command {
    let built = built();
    let mut command = Command::new(tool);
    command
        .env("GST_PLUGIN_PATH", &built.plugins)
        .env("GST_REGISTRY", built.plugins.join("registry.bin"))
        .env("G_DEBUG", "fatal-warnings")
        .env("LC_ALL", "C.UTF-8");
    command
}

/// Runs `scripts/demo` with the build of the tests.
pub fn demo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Answer {
    let built = built();
    run(gstreamer(&root().join("scripts/demo").to_string_lossy())
        .env_remove("GST_PLUGIN_PATH")
        .env("CONCEPTSEG_PROFILE", built.profile)
        .env("CARGO_TARGET_DIR", &built.target)
        .args(arguments))
}

/// Writes a bundle around the smallest network there is, which tells colours apart, so that
/// the path of a frame can be tested without a trained model.
pub fn tiny_bundle(folder: &Path) -> PathBuf {
    const CONCEPTS: usize = 16;
    const DIM: usize = 32;
    let mut vectors = vec![0.0; CONCEPTS * DIM];
    for (concept, row) in vectors.chunks_exact_mut(DIM).enumerate() {
        row[concept] = 0.6;
        row[concept + 1] = 0.8;
    }
    let codebook = Codebook::new(CONCEPTS, DIM, vectors).expect("the rows are unit vectors");
    let bundle = folder.join("tiny");
    BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        .write(&bundle, &root().join("runtime/testdata/tiny.onnx"), &codebook)
        .expect("the bundle can be written");
    bundle
}

/// Writes a scene and returns its folder, which holds `frames` and `masks`.
pub fn scene(folder: &Path, width: u32, height: u32, frames: u32) -> PathBuf {
    let out = folder.join("scene");
    let (width, height, frames) = (width.to_string(), height.to_string(), frames.to_string());
    let answer = conceptseg([
        "scene".as_ref(),
        "--out".as_ref(),
        out.as_os_str(),
        "--width".as_ref(),
        width.as_ref(),
        "--height".as_ref(),
        height.as_ref(),
        "--frames".as_ref(),
        frames.as_ref(),
    ]);
    assert_eq!(answer.code, 0, "{answer:?}");
    out
}

/// The source part of a pipeline that reads the frames of a [`scene`].
pub fn scene_source(scene: &Path, frames: u32) -> String {
    format!(
        "multifilesrc location={}/frames/%05d.png index=0 stop-index={} \
         caps=image/png,framerate=30/1 ! pngdec ! videoconvert",
        scene.display(),
        frames - 1,
    )
}

/// The JSON objects of a file of lines.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// Names of everything in a folder, hidden files too, sorted; empty where there is none.
pub fn listing(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort();
    names
}
