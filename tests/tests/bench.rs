//! `scripts/bench`: our contestants do what the driver asks, and the driver's own tests.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use conceptseg_tests::{root, run, tiny_bundle};
use serde_json::Value;

const STAGE: &str = env!("CARGO_BIN_EXE_bench-stage");

/// Starts a contestant, sends it lines, and returns its answers.
fn ask(arguments: &[&str], lines: &[String]) -> Vec<Value> {
    let mut child = Command::new(STAGE)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for line in lines {
        writeln!(input, "{line}").unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Checks that a contestant gets ready, writes its result, and takes a time for a run.
fn takes_part(arguments: &[&str], result: &Path) {
    let lines = [format!("check {}", result.display()), "run".to_owned()];
    let answers = ask(arguments, &lines);
    assert!(answers[0]["ready"].is_string(), "{answers:?}");
    assert_eq!(answers[1]["written"], result.to_str().unwrap());
    assert!(std::fs::read(result).unwrap().starts_with(b"\x93NUMPY"));
    assert!(answers[2]["seconds"].as_f64().unwrap() > 0.0, "{answers:?}");
}

#[test]
fn every_stage_takes_part() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (bundle, inputs) = (bundle.to_str().unwrap(), folder.path().join("inputs"));
    let inputs = inputs.to_str().unwrap();
    let answer = run(Command::new(STAGE)
        .args(["prepare", "--bundle", bundle, "--out", inputs, "--sizes", "240x432"]));
    assert_eq!(answer.code, 0, "{answer:?}");

    let result = folder.path().join("result.npy");
    let input = format!("{inputs}/input-240x432.npy");
    let rten = ["--bundle", bundle, "--backend", "rten"];
    takes_part(&[&["network"], &rten[..], &["--input", &input]].concat(), &result);
    takes_part(&["propagation", "--inputs", inputs], &result);
    takes_part(&["concepts", "--inputs", inputs], &result);
    let (annotations, results) = (format!("{inputs}/annotations"), format!("{inputs}/results"));
    let folders = ["--annotations", &annotations, "--results", &results];
    takes_part(&[&["davis"], &folders[..], &["--sequences", "scene"]].concat(), &result);

    let of_frames = [&rten[..], &["--inputs", inputs]].concat();
    let answers = ask(&[&["frame"], &of_frames[..]].concat(), &["run".to_owned()]);
    let parts = answers[1]["parts"].as_object().unwrap();
    let sum: f64 = parts.values().map(|seconds| seconds.as_f64().unwrap()).sum();
    assert!(sum > 0.0 && sum <= answers[1]["seconds"].as_f64().unwrap(), "{answers:?}");
    let answers = ask(&[&["streams"], &of_frames[..]].concat(), &["grow 2".to_owned()]);
    assert_eq!(answers[1]["streams"], 2);

    let image = format!("{inputs}/frame.png");
    let answer = run(Command::new(STAGE).arg("once").args(rten).args(["--image", &image]));
    let areas: u64 =
        answer.json().as_object().unwrap().values().map(|area| area.as_u64().unwrap()).sum();
    assert_eq!(areas, 854 * 480);
}

#[test]
fn backends_are_those_of_the_probe() {
    let names: Vec<Value> =
        serde_json::from_str(&run(Command::new(STAGE).arg("backends")).stdout).unwrap();
    assert!(names.iter().any(|backend| backend["name"] == "rten"), "{names:?}");
}

#[test]
fn the_driver_passes_its_own_tests() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    let answer = run(Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-s", "scripts", "-t", "scripts"])
        .current_dir(root()));
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(answer.stderr.contains("OK"), "{}", answer.stderr);
}
