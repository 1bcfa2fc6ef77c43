//! The plugin under the tracers of `GStreamer`, in processes that shut the framework down.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use conceptseg_tests::{
    Answer, gst_launch_command, gstreamer, run, scene, scene_source, tiny_bundle,
};

/// Runs a pipeline under a tracer; what it says is in the standard error.
fn traced(tracer: &str, pipeline: &str) -> Answer {
    run(with_tracer(&mut gst_launch_command(pipeline), tracer))
}

fn with_tracer<'a>(command: &'a mut Command, tracer: &str) -> &'a mut Command {
    command
        .env("GST_TRACERS", tracer)
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
}

/// The records of one kind. Tracers announce each kind once by its format.
fn records<'a>(answer: &'a Answer, kind: &str) -> Vec<&'a str> {
    assert!(answer.stderr.contains("GST_TRACER"), "the tracer was not at work: {answer:?}");
    let begin = format!(" {kind}, ");
    let lines = answer.stderr.lines().filter(|line| !line.contains("new format string"));
    lines.filter(|line| line.contains(&begin)).collect()
}

fn field<'a>(record: &'a str, name: &str) -> &'a str {
    let begin = record.find(name).unwrap_or_else(|| panic!("no {name} in {record}")) + name.len();
    record[begin..].split([',', ';']).next().unwrap()
}

/// All elements on a scene, with masks and results: as a bin, and one by one.
fn lines(folder: &Path, bundle: &Path, scene: &Path) -> [String; 2] {
    let open = format!("bundle={} short-side=64", bundle.display());
    let mask = format!("first-frame-mask={}/masks/00000.png", scene.display());
    let results = folder.join("results.jsonl");
    let results = results.display();
    [
        format!("conceptseg {open} {mask} results-location={results} ! fakesink"),
        format!(
            "conceptembed {open} ! conceptlabel ! maskpropagate {mask} ! conceptoverlay \
             ! conceptmetasink location={results} ! fakesink"
        ),
    ]
}

#[test]
fn no_object_is_alive_after_the_end_an_error_or_an_interruption() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    let scene = scene(dir.path(), 96, 64, 6);
    let live = "videotestsrc is-live=true ! video/x-raw,format=NV12,width=96,height=64";
    for line in lines(dir.path(), &bundle, &scene) {
        let ended = traced("leaks", &format!("{} ! {line}", scene_source(&scene, 6)));
        assert_eq!((ended.code, records(&ended, "object-alive")), (0, vec![]), "{line}");

        // The mask is not of that size.
        let failed = traced("leaks", &format!("{live} ! {line}").replace("width=96", "width=80"));
        assert_eq!((failed.code, records(&failed, "object-alive")), (1, vec![]), "{line}");

        let interrupted = format!("--preserve-status -s INT 2 gst-launch-1.0 -q {live} ! {line}");
        let mut command = gstreamer("timeout");
        let command = command.args(interrupted.split_whitespace());
        let interrupted = run(with_tracer(command, "leaks"));
        assert_eq!(records(&interrupted, "object-alive"), Vec::<&str>::new(), "{line}");
    }
}

#[test]
fn every_element_reports_its_latency_and_together_they_are_not_more_than_the_pipeline() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    let scene = scene(dir.path(), 96, 64, 12);
    let [_, line] = lines(dir.path(), &bundle, &scene);
    let answer = traced(
        "latency(flags=pipeline+element)",
        &format!("{} ! {line}", scene_source(&scene, 12)),
    );
    assert_eq!(answer.code, 0, "{answer:?}");
    let mut sums = BTreeMap::<&str, (u32, u64)>::new();
    for record in records(&answer, "element-latency") {
        let sum = sums.entry(field(record, "element=(string)").trim_end_matches('0')).or_default();
        sum.0 += 1;
        sum.1 += field(record, "time=(guint64)").parse::<u64>().unwrap();
    }
    let whole: Vec<u64> = records(&answer, "latency")
        .iter()
        .map(|record| field(record, "time=(guint64)").parse().unwrap())
        .collect();
    let mut ours = 0;
    for name in
        ["conceptembed", "conceptlabel", "maskpropagate", "conceptoverlay", "conceptmetasink"]
    {
        let (count, sum) = sums.get(name).unwrap_or_else(|| panic!("no {name} in {sums:?}"));
        assert_eq!(*count, 12, "{name}");
        println!("{name}: {:.3} ms a frame", *sum as f64 / 12e6);
        ours += sum;
    }
    assert_eq!(whole.len(), 12);
    assert!(ours > 0 && ours <= whole.iter().sum(), "{ours} ns of {whole:?}");
}

#[test]
fn every_element_is_inspected_without_a_warning() {
    for name in [
        "conceptembed",
        "conceptlabel",
        "maskpropagate",
        "conceptoverlay",
        "conceptmetasink",
        "conceptseg",
    ] {
        let answer = run(gstreamer("gst-inspect-1.0").arg(name));
        assert_eq!((answer.code, answer.stderr.as_str()), (0, ""), "{name}");
        assert!(answer.stdout.contains("Element Properties:"), "{answer:?}");
    }
}
