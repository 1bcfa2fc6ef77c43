//! Evaluations that are stopped, shared by processes and put together again give one report.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use conceptseg_tests::{Answer, built, conceptseg, listing, root, run, scene, tiny_bundle};

/// Frames of a scene as images, the ids of its objects as classes.
struct Set {
    dir: tempfile::TempDir,
    bundle: PathBuf,
    scene: PathBuf,
    classes: PathBuf,
}

const REPORTS: [&str; 3] = ["report.csv", "report.html", "report.json"];

impl Set {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = tiny_bundle(dir.path());
        let scene = scene(dir.path(), 96, 64, 7);
        let classes = dir.path().join("classes.txt");
        let names: Vec<String> = (0..20).map(|id| format!("object {id}")).collect();
        fs::write(&classes, names.join("\n")).unwrap();
        Self { dir, bundle, scene, classes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command without the options of the run folder.
    fn command(&self) -> Vec<OsString> {
        let (images, labels) = (self.scene.join("frames"), self.scene.join("masks"));
        let mut line: Vec<OsString> =
            ["eval", "folder", "--backend", "rten", "--short-side", "64"].map(Into::into).into();
        for (option, value) in [
            ("--bundle", &self.bundle),
            ("--train-images", &images),
            ("--train-labels", &labels),
            ("--images", &images),
            ("--labels", &labels),
            ("--classes", &self.classes),
        ] {
            line.extend([option.into(), value.into()]);
        }
        line
    }

    fn evaluate(&self, out: &str, more: &[&str]) -> Answer {
        let mut line = self.command();
        line.extend(["--out".into(), self.path(out).into()]);
        line.extend(more.iter().map(Into::into));
        conceptseg(line)
    }

    fn reports(&self, out: &str) -> Vec<Vec<u8>> {
        REPORTS.iter().map(|name| fs::read(self.path(out).join(name)).unwrap()).collect()
    }
}

#[test]
fn parts_that_share_a_folder_give_the_report_of_one_process() {
    let set = Set::new();
    assert_eq!(set.evaluate("one", &[]).code, 0);

    // The first part ends before the second has found its prototypes.
    let first = set.evaluate("parts", &["--shard", "1/2"]);
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.stderr.contains("3 images are still to come"), "{first:?}");
    let second = set.evaluate("parts", &["--shard", "2/2"]);
    assert!(second.stderr.contains("scores: this part is done"), "{second:?}");
    assert_eq!(listing(&set.path("parts")), ["journal"]);
    let last = set.evaluate("parts", &["--shard", "1/2"]);
    assert!(last.stdout.contains("mean IoU"), "{last:?}");
    assert_eq!(set.reports("parts"), set.reports("one"));
}

#[test]
fn folders_of_parts_are_merged_into_the_report_of_one_process() {
    let set = Set::new();
    assert_eq!(set.evaluate("one", &[]).code, 0);
    for part in ["1/3", "2/3", "3/3"] {
        let answer = set.evaluate(&part[..1], &["--shard", part]);
        assert!(answer.stderr.contains("still to come"), "{answer:?}");
    }
    let parts = ["1", "2", "3"].map(|part| set.path(part).display().to_string());
    let merged = set.evaluate("all", &["--merge", &parts[0], &parts[1], &parts[2]]);
    assert_eq!(merged.code, 0, "{merged:?}");
    assert_eq!(set.reports("all"), set.reports("one"));
}

#[test]
fn a_run_goes_on_where_it_was_stopped_and_only_with_the_same_inputs() {
    let set = Set::new();
    assert_eq!(set.evaluate("out", &[]).code, 0);
    let whole = set.reports("out");
    // As a process leaves it that was killed while it wrote.
    let journal = set.path("out/journal/scores-1-of-1.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, &text[..text.len() * 2 / 3]).unwrap();
    fs::remove_file(set.path("out/report.json")).unwrap();
    let again = set.evaluate("out", &[]);
    assert!(again.stderr.contains("were done before"), "{again:?}");
    assert_eq!(set.reports("out"), whole);

    set.evaluate("out", &["--neighbours", "3"])
        .assert_one_sentence(&["settings.neighbours is 15 there and 3 here", "--fresh"]);
    assert_eq!(set.evaluate("out", &["--neighbours", "3", "--fresh"]).code, 0);
    let report = |name: &str| set.path(name).join("report.json");
    let compare = |a: &Path, b: &Path| {
        conceptseg(["eval".as_ref(), "compare".as_ref(), a.as_os_str(), b.as_os_str()])
    };
    assert_eq!(set.evaluate("base", &[]).code, 0);
    let answer = compare(&report("base"), &report("out"));
    assert!(answer.stdout.contains("settings.neighbours is 15 in A and 3 in B"), "{answer:?}");
    compare(&set.classes, &report("out")).assert_one_sentence(&["classes.txt", "no report"]);
}

#[test]
fn labels_that_change_between_two_runs_end_the_second() {
    let set = Set::new();
    set.evaluate("out", &["--shard", "1/2"]);
    let frame = set.scene.join("frames/00000.png");
    fs::copy(set.scene.join("frames/00001.png"), frame).unwrap();
    set.evaluate("out", &["--shard", "1/2"]).assert_one_sentence(&["00000.png", "has changed"]);
}

#[test]
fn ray_runs_the_parts() {
    let python = std::env::var_os("CONCEPTSEG_PYTHON").unwrap_or_else(|| "python3".into());
    let ray = Command::new(&python)
        .args(["-c", "import ray"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !ray {
        println!("skipped: {} has no module ray (pip install ray)", python.display());
        return;
    }
    let set = Set::new();
    assert_eq!(set.evaluate("one", &[]).code, 0);
    let mut command = Command::new(python);
    command.arg(root().join("scripts/ray-eval")).args(["--parts", "2", "--local", "2", "--out"]);
    command.arg(set.path("ray")).arg("--").arg(&built().conceptseg).args(set.command());
    let answer = run(&mut command);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(set.reports("ray"), set.reports("one"));

    let mut command =
        Command::new(std::env::var_os("CONCEPTSEG_PYTHON").unwrap_or("python3".into()));
    command.arg(root().join("scripts/ray-eval")).args(["--parts", "2", "--local", "2", "--out"]);
    command.arg(set.path("bad")).arg("--").arg(&built().conceptseg);
    command.args(["eval", "folder", "--bundle", "nowhere"]);
    let answer = run(&mut command);
    assert!(answer.code != 0 && answer.stderr.contains("part 1/2"), "{answer:?}");
}
