//! The example readers in other languages, on the plugin as a file.

mod common;

use std::process::{Command, Output};

use common::Fixture;
use common::programs::{example, python, with_plugin};

/// Runs a reader on three frames with a mask.
fn read(fixture: &Fixture, mut reader: Command) -> Option<Output> {
    let pipeline = format!(
        "videotestsrc num-buffers=3 ! video/x-raw,format=YUY2,width=96,height=72 \
         ! conceptseg bundle={} backend=rten short-side=64 first-frame-mask={} ! fakesink name=out",
        fixture.bundle().display(),
        fixture.mask(96, 72).display(),
    );
    reader.arg(pipeline);
    Some(with_plugin(fixture, reader)?.output().unwrap())
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
    let Some(python) = python(&["Gst", "GstVideo"]) else {
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
