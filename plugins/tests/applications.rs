//! The example applications, as programs.

mod common;

use std::process::Command;

use common::Fixture;
use common::programs::{Running, built_example, example, python, with_plugin};

const SOURCE: &str = "videotestsrc ! video/x-raw,width=96,height=72,framerate=30/1 ! identity";

/// `SOURCE` with properties of the test source.
fn source(properties: &str) -> String {
    SOURCE.replace("videotestsrc", &format!("videotestsrc {properties}"))
}

/// The application in Rust on this bundle and source.
fn rust(fixture: &Fixture, source: &str, mask: bool) -> Option<Command> {
    let Some(program) = built_example("appsink") else {
        println!("skipped: the example is not built; cargo build --examples does it");
        return None;
    };
    let mut command = Command::new(program);
    command.arg(fixture.bundle()).arg(source);
    if mask {
        command.arg(fixture.mask(96, 72));
    }
    Some(command)
}

/// An application in Python.
fn in_python(fixture: &Fixture, name: &str, arguments: &[&str]) -> Option<Command> {
    let Some(python) = python(&["Gst", "GstApp"]) else {
        println!("skipped: no Python with gi and GstApp (python3-gi, gir1.2-gst-plugins-base-1.0)");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(example(name)).arg(fixture.bundle()).args(arguments);
    with_plugin(fixture, command)
}

/// Each of three frames has the test bundle's concepts by name, and the two objects of the mask.
fn check_frames(lines: &[String], objects: [&str; 2]) {
    let frames: Vec<_> = lines.iter().filter(|line| line.contains("ms old: ")).collect();
    assert_eq!(frames.len(), 3, "{lines:#?}");
    for line in frames {
        assert!(line.contains("ms old: c") && line.contains('%'), "{line}");
        assert!(objects.iter().all(|object| line.contains(object)), "{line}");
    }
}

#[test]
fn the_application_in_rust_prints_each_frame_and_its_figures() {
    let fixture = Fixture::new();
    let Some(command) = rust(&fixture, &source("num-buffers=3"), true) else { return };
    let (status, lines) = Running::start(command).end();
    assert!(status.success(), "{lines:#?}");
    check_frames(&lines, ["| 3 ", ", 9 "]);
    assert!(lines.last().unwrap().contains("frames=(guint64)3"), "{lines:#?}");
}

#[test]
fn ctrl_c_ends_the_application_in_rust_in_order() {
    let fixture = Fixture::new();
    let Some(command) = rust(&fixture, &source("is-live=true"), false) else { return };
    let mut running = Running::start(command);
    running.wait_for("result", |line| line.contains("ms old: "));
    running.interrupt();
    let (status, lines) = running.end();
    assert!(status.success(), "{lines:#?}");
    // What comes after the end of the stream has gone through.
    assert!(lines.last().unwrap().contains("frames=(guint64)"), "{lines:#?}");
}

#[test]
fn the_application_in_rust_says_why_it_fails() {
    let fixture = Fixture::new();
    let Some(mut command) = rust(&fixture, &source("num-buffers=3"), false) else { return };
    std::fs::remove_file(fixture.bundle().join("bundle.toml")).unwrap();
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("holds no bundle.toml"), "{error}");
}

#[test]
fn the_application_in_python_prints_each_frame() {
    let fixture = Fixture::new();
    let mask = fixture.mask(96, 72);
    let source = source("num-buffers=3");
    let arguments = [source.as_str(), "--mask", mask.to_str().unwrap()];
    let Some(command) = in_python(&fixture, "application.py", &arguments) else { return };
    let (status, lines) = Running::start(command).end();
    assert!(status.success(), "{lines:#?}");
    assert_eq!(lines.len(), 3, "{lines:#?}");
    check_frames(&lines, ["| object 3 at ", ", object 9 at "]);
    assert!(lines[1].starts_with("0.033 s, 0 ms old: "), "{lines:#?}");
}

#[test]
fn ctrl_c_ends_the_application_in_python_in_order() {
    let fixture = Fixture::new();
    let arguments = [&*source("is-live=true")];
    let Some(command) = in_python(&fixture, "application.py", &arguments) else { return };
    let mut running = Running::start(command);
    running.wait_for("result", |line| line.contains("ms old: "));
    running.interrupt();
    let (status, lines) = running.end();
    assert!(status.success(), "{lines:#?}");
}

#[test]
fn the_application_in_python_says_why_it_fails() {
    let fixture = Fixture::new();
    let failing = format!("{} error-after=2", source(""));
    for (source, reason) in [(&*failing, "Failed after iterations"), ("nosuchsrc", "nosuchsrc")] {
        let Some(mut command) = in_python(&fixture, "application.py", &[source]) else { return };
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("application.py: ") && error.contains(reason), "{error}");
    }
}

/// Runs two cameras, the second of which goes away by itself again and again, until that has
/// happened twice, and checks that the first never rests.
fn two_cameras(second: &str, reason: &str) {
    let fixture = Fixture::new();
    let first = source("is-live=true");
    let arguments = [&*first, second, "--sink", "fakesink sync=true", "--retry", "0.3"];
    let Some(command) = in_python(&fixture, "two_cameras.py", &arguments) else { return };
    let mut running = Running::start(command);
    for _ in 0..2 {
        running.wait_for("loss", |line| {
            line.starts_with("camera 2 is gone: ") && line.contains(reason)
        });
        // The other goes on while this one is away.
        for _ in 0..3 {
            running.wait_for("frame of camera 1", |line| line.starts_with("camera 1, frame "));
        }
        running.wait_for("return", |line| line.starts_with("camera 2 is plugged in again"));
        running.wait_for("frame of camera 2", |line| line.starts_with("camera 2, frame "));
    }
    running.wait_for("result", |line| line.starts_with("camera 1, ") && line.contains("ms old"));
    running.interrupt();
    let (status, lines) = running.end();
    assert!(status.success(), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("camera 1 is gone")), "{lines:#?}");
    // Its numbers have no gap and no second beginning.
    let prefix = "camera 1, frame ";
    let numbers = lines.iter().filter_map(|line| line.strip_prefix(prefix)?.split(':').next());
    let numbers: Vec<usize> = numbers.map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
}

#[test]
fn a_camera_that_ends_comes_back_beside_the_other() {
    two_cameras(&source("is-live=true num-buffers=10"), "its stream has ended");
}

#[test]
fn a_camera_that_fails_comes_back_beside_the_other() {
    two_cameras(&format!("{} error-after=10", source("is-live=true")), "Failed after iterations");
}
