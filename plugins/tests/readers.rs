//! The example readers in other languages, on the plugin as a file.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::Fixture;

/// The folder of the plugin that was built with these tests. The one beside them is of the same
/// build; the one above is there after `cargo build` only.
fn plugin_folder() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let beside = test.parent()?;
    let folders = [beside, beside.parent()?];
    let folder = folders.into_iter().find(|folder| folder.join("libgstconceptseg.so").exists())?;
    Some(folder.to_owned())
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// Runs a reader on three frames with a mask.
fn read(fixture: &Fixture, mut reader: Command) -> Option<Output> {
    let Some(plugins) = plugin_folder() else {
        println!("skipped: libgstconceptseg.so is not built");
        return None;
    };
    let pipeline = format!(
        "videotestsrc num-buffers=3 ! video/x-raw,format=YUY2,width=96,height=72 \
         ! conceptseg bundle={} backend=rten short-side=64 first-frame-mask={} ! fakesink name=out",
        fixture.bundle().display(),
        fixture.mask(96, 72).display(),
    );
    let registry = fixture.path("registry.bin");
    let reader = reader.arg(pipeline).env("GST_PLUGIN_PATH", plugins).env("GST_REGISTRY", registry);
    Some(reader.env("G_DEBUG", "fatal_warnings").output().unwrap())
}

fn check(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for (i, line) in lines.iter().enumerate() {
        assert!(line.starts_with(&format!("frame {i}, 0 ms old:")), "{text}");
        assert!(line.contains("instance in the middle"), "{text}");
    }
    assert!(lines[0].ends_with("instance in the middle 9"), "{text}");
}

#[test]
fn the_reader_in_c_finds_the_results() {
    let fixture = Fixture::new();
    let flags =
        Command::new("pkg-config").args(["--cflags", "--libs", "gstreamer-video-1.0"]).output();
    let Ok(flags) = flags else {
        println!("skipped: pkg-config is not installed");
        return;
    };
    let flags = String::from_utf8(flags.stdout).unwrap();
    let program = fixture.path("read_results");
    let compiler = Command::new("cc")
        .args(["-Wall", "-Werror"])
        .arg(example("read_results.c"))
        .args(flags.split_whitespace())
        .arg("-o")
        .arg(&program)
        .output();
    let Ok(compiler) = compiler else {
        println!("skipped: there is no C compiler");
        return;
    };
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    if let Some(output) = read(&fixture, Command::new(program)) {
        check(&output);
    }
}

#[test]
fn the_reader_in_python_finds_the_results() {
    let fixture = Fixture::new();
    let python = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        let gi =
            "import gi; gi.require_version('GstVideo', '1.0'); from gi.repository import GstVideo";
        Command::new(python).args(["-c", gi]).output().is_ok_and(|o| o.status.success())
    });
    let Some(python) = python else {
        println!(
            "skipped: no Python with gi and GstVideo (python3-gi, gir1.2-gst-plugins-base-1.0)"
        );
        return;
    };
    let mut reader = Command::new(python);
    reader.arg(example("read_results.py"));
    if let Some(output) = read(&fixture, reader) {
        check(&output);
    }
}
