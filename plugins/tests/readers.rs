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

/// Builds an example in C with these packages, or says what is missing.
fn compiled(fixture: &Fixture, name: &str, packages: &[&str]) -> Option<Command> {
    let flags = Command::new("pkg-config").args(["--cflags", "--libs"]).args(packages).output();
    let Ok(flags) = flags else {
        println!("skipped: pkg-config is not installed");
        return None;
    };
    if !flags.status.success() {
        println!("skipped: {}", String::from_utf8_lossy(&flags.stderr));
        return None;
    }
    let flags = String::from_utf8(flags.stdout).unwrap();
    let program = fixture.path(name);
    let compiler = Command::new("cc")
        .args(["-Wall", "-Werror"])
        .arg(example(&format!("{name}.c")))
        .args(flags.split_whitespace())
        .arg("-o")
        .arg(&program)
        .output();
    let Ok(compiler) = compiler else {
        println!("skipped: there is no C compiler");
        return None;
    };
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    Some(Command::new(program))
}

#[test]
fn the_reader_in_c_finds_the_results() {
    let fixture = Fixture::new();
    let Some(reader) = compiled(&fixture, "read_results", &["gstreamer-video-1.0"]) else { return };
    if let Some(output) = read(&fixture, reader) {
        check(&output);
    }
}

#[test]
fn the_reader_of_the_frameworks_own_metadata_finds_the_masks() {
    let fixture = Fixture::new();
    let packages = ["gstreamer-video-1.0", "gstreamer-analytics-1.0 >= 1.26"];
    let Some(reader) = compiled(&fixture, "read_segmentation", &packages) else { return };
    let Some(output) = read(&fixture, reader) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), 3, "{text}");
    for line in text.lines() {
        assert!(line.contains("[GRAY16_LE 96x72 at 0,0 of 96x72, regions"), "{text}");
        assert!(line.contains("[GRAY8 96x72 at 0,0 of 96x72, regions 0 3 9,"), "{text}");
        assert_eq!(line.matches(", 0 pixels of others]").count(), 2, "{text}");
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
