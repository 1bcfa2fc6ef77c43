//! `scripts/demo` on each kind of input that a test can have.

use std::fs;
use std::path::Path;

use conceptseg_tests::{demo, json_lines, listing, scene, tiny_bundle};

const RESULTS: [&str; 5] =
    ["annotated.webm", "contact-sheet.png", "masks", "results.jsonl", "summary.txt"];

fn has_results(out: &Path, frames: usize) {
    let names = listing(out);
    for name in RESULTS {
        assert!(names.iter().any(|n| n == name), "no {name} in {names:?}");
    }
    assert!(names.iter().all(|n| !n.starts_with(".work")), "{names:?}");
    assert_eq!(json_lines(&out.join("results.jsonl")).len(), frames);
    let video = fs::read(out.join("annotated.webm")).unwrap();
    assert_eq!(video[..4], [0x1a, 0x45, 0xdf, 0xa3], "not a Matroska file");
}

#[test]
fn without_an_input_a_scene_is_labelled_tracked_and_scored_twice() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    let out = dir.path().join("out with blanks");
    for _ in 0..2 {
        let answer = demo([
            "--bundle".as_ref(),
            bundle.as_os_str(),
            "--out".as_ref(),
            out.as_os_str(),
            "--frames".as_ref(),
            "8".as_ref(),
        ]);
        assert_eq!(answer.code, 0, "{answer:?}");
        // The pipeline as it ran can be run again.
        let line = answer.stdout.lines().find(|l| l.contains("gst-launch-1.0")).unwrap();
        for part in ["conceptseg bundle=", "first-frame-mask=", "webmmux"] {
            assert!(line.contains(part), "no {part} in {line}");
        }
        assert!(!line.contains(".work"), "{line}");
        for row in ["frames per second", "latency p99", "peak memory", "J mean", "F mean"] {
            assert!(answer.stdout.contains(row), "no {row} in {}", answer.stdout);
        }
        has_results(&out, 8);
        assert_eq!(listing(&out.join("masks")).len(), 8);
    }
}

#[test]
fn frames_of_any_name_and_a_video_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    let scene = scene(dir.path(), 214, 120, 12);
    let frames = dir.path().join("pictures");
    fs::create_dir(&frames).unwrap();
    // Natural order: 9 before 10.
    for i in 0..12 {
        let source = scene.join(format!("frames/{i:05}.png"));
        fs::copy(source, frames.join(format!("my picture {}.png", i + 1))).unwrap();
    }
    let out = dir.path().join("out");
    let mask = scene.join("masks/00000.png");
    let answer = demo([
        frames.as_os_str(),
        "--mask".as_ref(),
        mask.as_os_str(),
        "--bundle".as_ref(),
        bundle.as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
    ]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(!answer.stdout.contains("J mean"), "{answer:?}");
    has_results(&out, 12);
    // The objects of the ninth frame are where the scene has them, not those of the tenth.
    let input = fs::read_link(out.join("input/00009.png")).unwrap();
    assert!(input.ends_with("my picture 10.png"), "{}", input.display());

    let again = dir.path().join("again");
    let video = out.join("annotated.webm");
    let answer = demo([
        video.as_os_str(),
        "--bundle".as_ref(),
        bundle.as_os_str(),
        "--out".as_ref(),
        again.as_os_str(),
        "--frames".as_ref(),
        "5".as_ref(),
        "--backend".as_ref(),
        "rten".as_ref(),
    ]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(json_lines(&again.join("results.jsonl")).len(), 5);
    assert!(listing(&again.join("masks")).is_empty(), "no mask was given");
}

#[test]
fn wrong_use_ends_with_2() {
    for arguments in [
        &["--frames", "many"][..],
        &["--frames", "0"],
        &["--bogus"],
        &["--backend", "abacus"],
        &["--mask"],
        &["one", "two"],
        &["--mask", "m.png"],
    ] {
        let answer = demo(arguments);
        assert_eq!(answer.code, 2, "{arguments:?}: {answer:?}");
        assert!(answer.stderr.starts_with("demo: "), "{answer:?}");
    }
    assert_eq!(demo(["--help"]).code, 0);
}
