//! What users get wrong: one clear sentence, a non-zero exit, nothing half-written.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use conceptseg::bundle::Codebook;
use conceptseg::labels::LabelMap;
use conceptseg_tests::{Answer, conceptseg, demo, listing, scene, tiny_bundle};

/// A small scene with a bundle, to spoil one thing at a time.
struct Table {
    dir: tempfile::TempDir,
    bundle: PathBuf,
    frames: PathBuf,
    mask: PathBuf,
}

impl Table {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = tiny_bundle(dir.path());
        let scene = scene(dir.path(), 96, 64, 3);
        Self { bundle, frames: scene.join("frames"), mask: scene.join("masks/00000.png"), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Runs the demo and checks that it left nothing in its folder of results.
fn spoiled_demo(input: &Path, mask: Option<&Path>, bundle: &Path, out: &Path) -> Answer {
    let mut arguments: Vec<OsString> = vec![input.into()];
    for (option, value) in [("--mask", mask), ("--bundle", Some(bundle)), ("--out", Some(out))] {
        if let Some(value) = value {
            arguments.extend([option.into(), value.into()]);
        }
    }
    let answer = demo(arguments);
    assert!(listing(out).is_empty(), "{:?} {answer:?}", listing(out));
    answer
}

#[test]
fn a_missing_bundle() {
    let t = Table::new();
    let answer = spoiled_demo(&t.frames, Some(&t.mask), &t.path("nowhere"), &t.path("out"));
    answer.assert_one_sentence(&["nowhere", "bundle"]);
    conceptseg(["bundle", "inspect", t.path("nowhere").to_str().unwrap()])
        .assert_one_sentence(&["nowhere", "bundle"]);
}

#[test]
fn a_truncated_network() {
    let t = Table::new();
    let onnx = t.bundle.join("embedder.onnx");
    let bytes = fs::read(&onnx).unwrap();
    fs::write(&onnx, &bytes[..bytes.len() / 2]).unwrap();
    spoiled_demo(&t.frames, None, &t.bundle, &t.path("out"))
        .assert_one_sentence(&["embedder.onnx"]);

    // Also where the manifest vouches for it.
    let manifest = t.bundle.join("bundle.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let hash = sha256(&onnx);
    fs::write(&manifest, replace_hash(&text, "[embedder]", &hash)).unwrap();
    spoiled_demo(&t.frames, None, &t.bundle, &t.path("out"))
        .assert_one_sentence(&["embedder.onnx"]);
}

#[test]
fn a_codebook_of_another_size() {
    let t = Table::new();
    let file = t.bundle.join("concepts.safetensors");
    let mut vectors = vec![0.0; 16 * 8];
    vectors.iter_mut().step_by(8).for_each(|v| *v = 1.0);
    let codebook = Codebook::new(16, 8, vectors).unwrap();
    fs::write(&file, codebook.to_safetensors().unwrap()).unwrap();
    let manifest = t.bundle.join("bundle.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, replace_hash(&text, "[concepts]", &sha256(&file))).unwrap();
    spoiled_demo(&t.frames, None, &t.bundle, &t.path("out"))
        .assert_one_sentence(&["concepts.safetensors", "32"]);
}

#[test]
fn masks_that_do_not_fit() {
    let t = Table::new();
    let other = t.path("other.png");
    LabelMap { width: 48, height: 64, data: vec![1; 48 * 64] }.write_png(&other).unwrap();
    spoiled_demo(&t.frames, Some(&other), &t.bundle, &t.path("out"))
        .assert_one_sentence(&["48", "96", "size"]);

    let empty = t.path("empty.png");
    LabelMap::background(96, 64).write_png(&empty).unwrap();
    spoiled_demo(&t.frames, Some(&empty), &t.bundle, &t.path("out")).assert_one_sentence(&["mask"]);

    spoiled_demo(&t.frames, Some(&t.path("none.png")), &t.bundle, &t.path("out"))
        .assert_one_sentence(&["none.png"]);

    let colour = t.frames.join("00000.png");
    spoiled_demo(&t.frames, Some(&colour), &t.bundle, &t.path("out"))
        .assert_one_sentence(&["00000.png", "colour"]);
}

#[test]
fn inputs_that_cannot_be_read() {
    let t = Table::new();
    let out = t.path("out");
    spoiled_demo(&t.path("none.mp4"), None, &t.bundle, &out).assert_one_sentence(&["none.mp4"]);

    let noise = t.path("noise.mp4");
    fs::write(&noise, [7u8; 5000]).unwrap();
    spoiled_demo(&noise, None, &t.bundle, &out).assert_one_sentence(&["noise.mp4"]);

    let nothing = t.path("nothing");
    fs::create_dir(&nothing).unwrap();
    spoiled_demo(&nothing, None, &t.bundle, &out)
        .assert_one_sentence(&["nothing", "no PNG or JPEG"]);

    let broken = t.path("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("00000.png"), b"not a picture").unwrap();
    spoiled_demo(&broken, None, &t.bundle, &out).assert_one_sentence(&["broken"]);

    fs::write(broken.join("00001.jpg"), b"not a picture").unwrap();
    spoiled_demo(&broken, None, &t.bundle, &out).assert_one_sentence(&["broken", "mixes"]);
}

#[test]
fn folders_of_results_that_cannot_be_used() {
    let t = Table::new();
    let file = t.path("file");
    fs::write(&file, b"precious").unwrap();
    spoiled_demo(&t.frames, None, &t.bundle, &file).assert_one_sentence(&["file"]);
    spoiled_demo(&t.frames, None, &t.bundle, &file.join("below")).assert_one_sentence(&["below"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    let full = t.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("notes.txt"), b"mine").unwrap();
    let arguments = [t.frames.as_os_str(), "--bundle".as_ref(), t.bundle.as_os_str()];
    let answer = demo(arguments.into_iter().chain(["--out".as_ref(), full.as_os_str()]));
    answer.assert_one_sentence(&["full", "other files"]);
    assert_eq!(listing(&full), ["notes.txt"]);

    let below = file.join("scene");
    conceptseg(["scene", "--out", below.to_str().unwrap()]).assert_one_sentence(&["scene"]);
}

#[test]
fn results_with_a_broken_line() {
    let t = Table::new();
    let results = t.path("results.jsonl");
    fs::write(&results, "{\"frame\": 0,\n").unwrap();
    let out = t.path("report");
    let arguments = ["report", "--results", results.to_str().unwrap(), "--out"];
    conceptseg(arguments.into_iter().chain([out.to_str().unwrap()]))
        .assert_one_sentence(&["results.jsonl, line 1"]);
    assert!(listing(&out).is_empty());
}

fn sha256(path: &Path) -> String {
    let answer = conceptseg_tests::run(std::process::Command::new("sha256sum").arg(path));
    answer.stdout.split_whitespace().next().unwrap().to_owned()
}

/// The manifest with another hash in one of its tables.
fn replace_hash(manifest: &str, table: &str, hash: &str) -> String {
    let at = manifest.find(table).unwrap();
    let at = at + manifest[at..].find("sha256 = \"").unwrap() + "sha256 = \"".len();
    format!("{}{hash}{}", &manifest[..at], &manifest[at + 64..])
}
