//! `conceptseg doctor` as a user runs it: with tools of GStreamer that play each part, and with the real ones.
#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use conceptseg::bundle::{BundleWriter, Codebook};
use serde_json::Value;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A machine whose `PATH` holds what a test puts there, and a home without anything.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["bin", "home"] {
            fs::create_dir(machine.path(folder)).unwrap();
        }
        machine
    }

    /// A machine whose gst-inspect-1.0 answers `--version`, and does this when asked for the plugin.
    fn with_inspect(body: &str) -> Self {
        let machine = Self::new();
        machine.program(
            "gst-inspect-1.0",
            &format!(
                "case $1 in --version) echo 'gst-inspect-1.0 version 1.22.0'; echo 'GStreamer 1.22.0'; exit ;; esac\n{body}"
            ),
        );
        machine.program("gst-launch-1.0", "");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A model where `scripts/install` puts one.
    fn install_model(&self, name: &str) -> PathBuf {
        let bundle = self.path("home/.local/share/conceptseg/models").join(name);
        let vectors = (0..4).flat_map(|row| (0..32).map(move |i| f32::from(u8::from(i == row))));
        let codebook = Codebook::new(4, 32, vectors.collect()).unwrap();
        let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny.onnx");
        BundleWriter::new(name, 8, [0.5; 3], [0.25; 3]).write(&bundle, &onnx, &codebook).unwrap();
        bundle
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conceptseg"));
        command
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .env("XDG_DATA_DIRS", self.path("home"))
            .current_dir(self.path("home"))
            .arg("doctor")
            .args(arguments);
        command
    }

    fn json(&self, arguments: &[&str]) -> Value {
        json(&self.command(&[&["--json"], arguments].concat()).output().unwrap())
    }
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The sentences of a kind of finding, each with what to do.
fn sentences(report: &Value, kind: &str) -> Vec<String> {
    let found = report[kind].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    found.iter().map(|f| format!("{} {}", text(&f["what"]), text(&f["fix"]))).collect()
}

fn loaded(version: &str, file: &Path) -> String {
    format!(
        "echo 'Plugin Details:'\necho '  Name                     conceptseg'\n\
         echo '  Filename                 {}'\necho '  Version                  {version}'",
        file.display()
    )
}

#[test]
fn a_whole_installation_has_no_problems() {
    let machine = Machine::with_inspect(&loaded(
        &format!("{VERSION}-abc"),
        "/p/libgstconceptseg.so".as_ref(),
    ));
    let model = machine.install_model("street");
    let report = machine.json(&["--check"]);
    let gstreamer = &report["gstreamer"];
    assert_eq!(gstreamer["version"], "1.22.0");
    assert_eq!(gstreamer["plugin"]["state"], "loaded");
    assert_eq!(gstreamer["plugin"]["file"], "/p/libgstconceptseg.so");
    assert_eq!(gstreamer["analytics"], false);
    assert_eq!(report["models"][0]["name"], "street");
    assert_eq!(report["models"][0]["folder"], model.canonicalize().unwrap().to_str().unwrap());
    assert_eq!(
        (&report["problems"], &report["notes"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    let text = machine.command(&["--check"]).output().unwrap();
    assert!(text.status.success());
    assert!(String::from_utf8_lossy(&text.stdout).contains("No problems"), "{text:?}");
}

#[test]
fn a_plugin_that_is_not_found_is_a_problem_with_a_way_out() {
    let machine = Machine::with_inspect(
        "case $1 in --plugin) echo 'No such element or plugin'; exit 1 ;; esac",
    );
    let report = machine.json(&[]);
    assert_eq!(report["gstreamer"]["plugin"]["state"], "missing");
    let problems = sentences(&report, "problems");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("does not find the plugin") && problems[0].contains("scripts/install")
    );
    // No model is a note: a pipeline may name any folder.
    assert!(sentences(&report, "notes")[0].starts_with("No model is installed."));

    let mut command = machine.command(&["--json"]);
    let report = json(&command.env("GST_PLUGIN_SYSTEM_PATH", "/nowhere").output().unwrap());
    assert_eq!(report["gstreamer"]["environment"]["GST_PLUGIN_SYSTEM_PATH"], "/nowhere");
    assert!(sentences(&report, "notes")[0].contains("unset GST_PLUGIN_SYSTEM_PATH"), "{report}");
}

#[test]
fn with_check_problems_end_with_1_and_without_it_with_0() {
    let machine = Machine::with_inspect("exit 1");
    let output = machine.command(&[]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("Problems:\n- GStreamer does not find"),
        "{output:?}"
    );
    let output = machine.command(&["--check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr).trim(),
        "conceptseg: a problem was found; the report says what to do"
    );
}

#[test]
fn a_blacklisted_plugin_is_told_with_the_registry_to_delete() {
    let machine = Machine::with_inspect(
        "case $1 in --plugin) exit 1 ;; --print-blacklist) echo 'Blacklisted files:'; \
         echo '  libgstconceptseg.so'; echo; echo 'Total count: 1 blacklisted file' ;; esac",
    );
    // The list has names alone; the file is looked for where GStreamer looks for it.
    let folder = machine.path("home/.local/share/gstreamer-1.0/plugins");
    fs::create_dir_all(&folder).unwrap();
    let plugin = folder.join("libgstconceptseg.so");
    fs::write(&plugin, "").unwrap();
    let mut command = machine.command(&["--json"]);
    let report = json(&command.env("GST_REGISTRY", "/r/registry.bin").output().unwrap());
    assert_eq!(report["gstreamer"]["plugin"]["state"], "blacklisted");
    assert_eq!(report["gstreamer"]["plugin"]["file"], plugin.to_str().unwrap());
    let problem = &sentences(&report, "problems")[0];
    assert!(problem.contains(&format!("ldd {};", plugin.display())), "{problem}");
    assert!(problem.ends_with("rm /r/registry.bin"), "{problem}");
}

#[test]
fn a_plugin_of_another_version_is_a_problem() {
    let machine = Machine::with_inspect(&loaded("9.9.9-abc", "/p/libgstconceptseg.so".as_ref()));
    let problem = &sentences(&machine.json(&[]), "problems")[0];
    assert!(
        problem.contains(&format!("has version 9.9.9-abc, this command {VERSION}")),
        "{problem}"
    );
}

#[test]
fn a_tool_that_hangs_or_makes_no_sense_holds_nobody_up() {
    let machine = Machine::with_inspect("exec /bin/sleep 100");
    let problem = &sentences(&machine.json(&["--timeout", "1"]), "problems")[0];
    assert!(problem.contains("gst-inspect-1.0 did not answer within 1 s"), "{problem}");
    let machine = Machine::with_inspect("echo hello");
    let problem = &sentences(&machine.json(&[]), "problems")[0];
    assert!(problem.contains("told neither version nor file"), "{problem}");
}

#[test]
fn missing_tools_are_told() {
    let machine = Machine::new();
    let report = machine.json(&[]);
    assert_eq!(report["gstreamer"]["gst-inspect-1.0"], Value::Null);
    // The library answers where it is there.
    if report["gstreamer"]["version"].is_null() {
        assert!(sentences(&report, "problems")[0].contains("GStreamer was not found"));
    } else {
        let note = &sentences(&report, "notes")[0];
        assert!(note.starts_with("Not found in PATH: gst-inspect-1.0, gst-launch-1.0."), "{note}");
    }
}

#[test]
fn a_model_that_is_asked_for_has_to_be_right() {
    let machine = Machine::with_inspect(&loaded(VERSION, "/p/libgstconceptseg.so".as_ref()));
    let model = machine.install_model("street");
    fs::write(model.join("concepts.safetensors"), "damaged").unwrap();
    let report = machine.json(&["--check"]);
    assert!(sentences(&report, "notes")[0].starts_with("A model cannot be used: "), "{report}");
    let output =
        machine.command(&["--check", "--bundle", model.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("concepts.safetensors"), "{output:?}");
}

#[test]
fn the_real_tools_are_understood() {
    let tool = ["/usr/bin/gst-inspect-1.0", "/usr/local/bin/gst-inspect-1.0"];
    let Some(tool) = tool.into_iter().find(|path| Path::new(path).exists()) else {
        println!("skipped: gst-inspect-1.0 is not installed");
        return;
    };
    let machine = Machine::new();
    for name in ["gst-inspect-1.0", "gst-launch-1.0"] {
        let real = Path::new(tool).with_file_name(name);
        std::os::unix::fs::symlink(real, machine.path("bin").join(name)).unwrap();
    }
    // A folder of plugins that holds one that cannot be loaded, and none of the system's.
    let plugins = machine.path("plugins");
    fs::create_dir(&plugins).unwrap();
    let look = |machine: &Machine| {
        let mut command = machine.command(&["--json"]);
        command
            .env("GST_PLUGIN_SYSTEM_PATH", &plugins)
            .env("GST_REGISTRY", machine.path("registry"));
        json(&command.output().unwrap())
    };
    let report = look(&machine);
    assert!(report["gstreamer"]["version"].as_str().unwrap().starts_with("1."), "{report}");
    assert_eq!(report["gstreamer"]["plugin"]["state"], "missing", "{report}");
    let plugin = plugins.join("libgstconceptseg.so");
    fs::write(&plugin, "no library").unwrap();
    let report = look(&machine);
    assert_eq!(report["gstreamer"]["plugin"]["state"], "blacklisted", "{report}");
    assert_eq!(report["gstreamer"]["plugin"]["file"], plugin.to_str().unwrap());
}
