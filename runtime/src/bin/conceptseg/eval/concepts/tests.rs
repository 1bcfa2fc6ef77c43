use super::*;
use crate::eval::segmentation::tests::{fixture, parse};

/// Arguments for the tiny bundle below `root`.
fn arguments(root: &Path, more: &[&str]) -> ConceptArgs {
    let bundle = root.join("bundle").display().to_string();
    let fixed = ["--bundle", &bundle, "--backend", "rten", "--short-side", "64"];
    parse(&[&fixed[..], more].concat())
}

fn labelled(root: &Path, more: &[&str]) -> ConceptArgs {
    let path = |name: &str| root.join(name).display().to_string();
    let (data, classes) = (path("val"), path("classes.txt"));
    let fixed = ["--data", "folder", "--root", &data, "--classes", &classes];
    arguments(root, &[&fixed[..], more].concat())
}

fn written(out: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for folder in [out.to_owned(), out.join("sheets")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            names.push(entry.unwrap().file_name().into_string().unwrap());
        }
    }
    names.sort();
    names
}

fn summed(args: &ConceptArgs) -> ConceptSummary {
    let (model, set) = (args.model.open().unwrap(), args.data.set.open(None).unwrap());
    let run = Run::in_memory(args.inputs(&model, &set, None).unwrap());
    let records = args.record(&model, &set, &run, "concepts").unwrap().finish().unwrap();
    args.sum_up(&model, &set, &records).unwrap()
}

#[test]
fn concepts_of_labelled_images_are_counted_and_drawn() {
    let root = fixture();
    let out = root.path().join("out");
    let shown = out.display().to_string();
    let args = labelled(root.path(), &["--out", &shown, "--samples", "3", "--seed", "7"]);
    run(&args, true).unwrap();
    let files = [
        "001.jpg",
        "concepts.csv",
        "graph.csv",
        "graph.svg",
        "journal",
        "purity.svg",
        "report.csv",
        "report.html",
        "report.json",
        "sheets",
    ];
    assert_eq!(written(&out), files);
    let sheet = image::open(out.join("sheets/001.jpg")).unwrap();
    assert!(sheet.width() > 3 * sheet::TILE && sheet.height() > sheet::TILE);
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains("data:image/jpeg;base64,") && page.contains("purity over concepts"));
    // The same again goes on from the journal; other settings are refused.
    std::fs::write(out.join("sheets/002.jpg"), "of an earlier run").unwrap();
    run(&args, true).unwrap();
    assert_eq!(written(&out), files);
    let other = labelled(root.path(), &["--out", &shown, "--rounds", "3"]);
    let text = run(&other, true).unwrap_err().to_string();
    assert!(text.contains("settings.rounds is 50 there and 3 here"), "{text}");

    run(&labelled(root.path(), &[]), false).unwrap();
    let summed = summed(&args);
    let purity = summed.purity.unwrap();
    assert!(purity.segments >= 6 && purity.used >= 1);
    assert_eq!((summed.images, purity.unlabelled), (6, 0));
    assert_eq!(summed.dictionary.area, 6 * 48 * 32);
    assert_eq!(summed.dictionary.segments, purity.segments);
    let report = Report::read(&out.join("report.json")).unwrap();
    assert_eq!(report.figures["purity over concepts"].value, purity.mean);
}

#[test]
fn two_shards_write_what_one_process_writes() {
    let root = fixture();
    let path = |name: &str| root.path().join(name).display().to_string();
    let (one, two) = (path("one"), path("two"));
    run(&labelled(root.path(), &["--out", &one]), true).unwrap();
    for shard in ["2/2", "1/2"] {
        run(&labelled(root.path(), &["--out", &two, "--shard", shard]), true).unwrap();
    }
    for name in ["report.json", "report.html", "graph.svg", "concepts.csv", "sheets/001.jpg"] {
        let read = |folder: &str| std::fs::read(Path::new(folder).join(name)).unwrap();
        assert!(read(&one) == read(&two), "{name} differs");
    }
}

#[test]
fn images_without_labels_give_all_but_the_purity() {
    let root = fixture();
    let path = |name: &str| root.path().join(name).display().to_string();
    let (images, out) = (path("val/images"), root.path().join("plain"));
    let shown = out.display().to_string();
    let args = arguments(root.path(), &["--images", &images, "--out", &shown]);
    run(&args, true).unwrap();
    run(&arguments(root.path(), &["--images", &images, "--min-images", "1"]), false).unwrap();
    assert!(!out.join("purity.svg").exists() && out.join("report.html").is_file());
    let csv = std::fs::read_to_string(out.join("concepts.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 6);
    let (plain, with_labels) = (summed(&args), summed(&labelled(root.path(), &[])));
    assert_eq!(plain.dictionary, with_labels.dictionary);
    assert_eq!(plain.graph, with_labels.graph);
    assert_eq!(plain.purity, None);
    assert!(figures(&plain, None).unwrap()["purity"].is_null());
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let root = fixture();
    let text = run(&labelled(root.path(), &["--beside", "train"]), true).unwrap_err();
    assert!(text.to_string().contains("a single split"), "{text}");
    let voc = ["--data", "voc", "--root", "x", "--split", "test"];
    let text = run(&arguments(root.path(), &voc), true).unwrap_err().to_string();
    assert!(text.contains("the data set has no split test"), "{text}");
}
