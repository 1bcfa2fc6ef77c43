//! Own footage to a bundle with `conceptseg-train learn`, and the bundle at work.

use std::fs;

use conceptseg_tests::{conceptseg, gst_launch, listing, root, scene, scene_source, trainer};

#[test]
fn footage_becomes_a_bundle_with_a_report_that_the_element_runs() {
    let dir = tempfile::tempdir().unwrap();
    let scene = scene(dir.path(), 96, 64, 6);
    let (frames, out) = (scene.join("frames"), dir.path().join("my.bundle"));
    let (frames, out_text) = (frames.to_str().unwrap(), out.to_str().unwrap());
    let starter = root().join("models/starter");
    let from = ["--from", starter.to_str().unwrap(), "--device", "cpu"];
    let learn = |extra: &[&str]| {
        trainer(["learn", frames, "--out", out_text].iter().chain(&from).chain(extra))
    };
    let answer = learn(&["--steps", "3"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stdout.starts_with(out_text), "{answer:?}");
    assert!(answer.stdout.contains("gst-launch-1.0 "), "{answer:?}");
    assert!(answer.stderr.contains("3 steps of "), "{answer:?}");

    let log = dir.path().join("my.bundle-log");
    let page = fs::read_to_string(log.join("report.html")).unwrap();
    for part in ["<svg", "data:image/jpeg;base64,", "Concept ", "starter"] {
        assert!(page.contains(part), "no {part} in the report");
    }
    assert!(!page.contains("src=\"http"), "the page loads something");
    assert!(log.join("recipe.toml").is_file());

    assert_eq!(conceptseg(["bundle", "verify", out_text]).code, 0);
    let source = scene_source(&scene, 6);
    let answer = gst_launch(&format!("{source} ! conceptseg bundle={out_text} ! fakesink"));
    assert_eq!(answer.code, 0, "{answer:?}");

    // Complete already: only bundle and report are made again.
    let again = learn(&["--resume"]);
    assert_eq!(again.code, 0, "{again:?}");
}

#[test]
fn wrong_footage_is_told_in_one_sentence_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("damaged.mp4"), b"no video").unwrap();
    fs::write(path("file"), b"").unwrap();
    let starter = root().join("models/starter");
    let learn = |footage: &str, out: &str| {
        let (footage, out, frames) = (path(footage), path(out), path("cache"));
        let from = starter.to_str().unwrap();
        trainer(["learn", &footage, "--out", &out, "--frames", &frames, "--from", from])
    };
    learn("empty", "a").assert_one_sentence(&["empty", "image"]);
    learn("nowhere", "a").assert_one_sentence(&["nowhere"]);
    learn("damaged.mp4", "a").assert_one_sentence(&["damaged.mp4"]);
    learn("empty", "file/out").assert_one_sentence(&["file/out", "--out"]);
    assert!(!listing(dir.path()).contains(&"a".to_owned()), "a folder was left");
}
