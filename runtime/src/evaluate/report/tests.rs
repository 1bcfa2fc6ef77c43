use serde_json::json;

use super::*;
use crate::metrics::davis::{Figures, Layout, SequenceReport};

fn inputs() -> Inputs {
    Inputs::new("test", json!({}))
}

fn sequence(name: &str, jf: &[f64]) -> SequenceMasks {
    let figures = |v: f64| Figures {
        j_mean: v,
        j_recall: 1.0,
        j_decay: 0.0,
        f_mean: v,
        f_recall: 1.0,
        f_decay: 0.0,
        jf_mean: v,
    };
    let objects: BTreeMap<u8, Figures> = (1..).zip(jf.iter().map(|&v| figures(v))).collect();
    let mean = Figures::mean_of(&objects.values().collect::<Vec<_>>());
    let report = SequenceReport { layout: Layout::Davis2017, frames: 3, figures: mean, objects };
    SequenceMasks { name: name.to_owned(), report }
}

fn masks(all: &[(&str, &[f64])]) -> Report {
    let sequences = all.iter().map(|(name, jf)| sequence(name, jf)).collect();
    Report::new(inputs(), Scores::Masks { sequences })
}

type Pixels = [(u8, u8, u64)];

fn classes(images: &[(&str, &Pixels)]) -> Report {
    let image = |&(name, pixels): &(&str, &Pixels)| ImageClasses {
        name: name.to_owned(),
        pixels: pixels.to_vec(),
    };
    let names = vec!["ground".to_owned(), "dog".to_owned()];
    let images = images.iter().map(image).collect();
    Report::new(inputs(), Scores::Classes { classes: names, images })
}

#[test]
fn the_global_mean_of_masks_is_over_objects_and_intervals_are_over_sequences() {
    let report = masks(&[("a", &[0.2, 0.4]), ("b", &[0.9])]);
    let figure = report.figures["J&F"];
    assert!((figure.value - 0.5).abs() < 1e-12);
    // Draws of two sequences: both a, both b, or one of each.
    let (low, high) = figure.interval.unwrap();
    assert!((low - 0.3).abs() < 1e-9 && (high - 0.9).abs() < 1e-9, "{low} {high}");
    assert_eq!(masks(&[("a", &[0.2])]).figures["J&F"].interval, None);
    assert_eq!(report.scores.masks().unwrap().global.jf_mean, figure.value);
}

#[test]
fn classes_are_counted_over_the_set() {
    let report =
        classes(&[("x", &[(0, 0, 6), (1, 0, 2)]), ("y", &[(1, 1, 2), (0, 1, 1), (0, 0, 1)])]);
    // ground: 7 hits, 8 true, 9 predicted; dog: 2 hits, 4 true, 3 predicted.
    let expected = f64::midpoint(7.0 / 10.0, 2.0 / 5.0);
    assert!((report.figures["mean IoU over present classes"].value - expected).abs() < 1e-12);
    assert!((report.figures["pixel accuracy"].value - 9.0 / 12.0).abs() < 1e-12);
    let (name, per_image) = report.scores.unit_figures();
    assert_eq!((name, per_image), ("pixel accuracy", vec![0.75, 0.75]));
}

#[test]
fn purity_is_counted_over_the_set() {
    let image = |name: &str, segments: &[(u16, u8, u64)]| ImageConcepts {
        name: name.to_owned(),
        segments: segments.to_vec(),
        unlabelled: 0,
    };
    let images = vec![image("x", &[(0, 0, 3), (1, 1, 1)]), image("y", &[(0, 1, 1)])];
    let classes = vec!["ground".to_owned(), "dog".to_owned()];
    let scores = Scores::Concepts { concepts: 4, classes, min_segments: 1, images };
    let report = Report::new(inputs(), scores);
    assert!((report.figures["purity over concepts"].value - 0.875).abs() < 1e-12);
    assert!((report.figures["purity over segments"].value - 0.8).abs() < 1e-12);
    assert_eq!(report.figures["concepts above 80 %"].value, 0.5);
    assert_eq!(report.scores.rows().iter().filter(|row| row.figure == "purity").count(), 2);
}

#[test]
fn a_report_survives_the_disk_to_the_bit_and_other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let report = masks(&[("a", &[1.0 / 3.0, 0.1 + 0.2]), ("b", &[0.7])]);
    report.write(&path).unwrap();
    assert_eq!(Report::read(&path).unwrap(), report);
    write_csv(&report, &dir.path().join("report.csv")).unwrap();
    let text = std::fs::read_to_string(dir.path().join("report.csv")).unwrap();
    assert!(text.starts_with("level,name,figure,value,low,high\nglobal,,F,"), "{text}");
    assert!(text.contains("object,a/2,J mean,0.30000000000000004,,"), "{text}");
    std::fs::write(&path, "{}").unwrap();
    let message = Report::read(&path).unwrap_err().to_string();
    assert!(message.contains("no report"), "{message}");
    let newer = Report { format: 2, ..report };
    newer.write(&path).unwrap();
    assert!(Report::read(&path).unwrap_err().to_string().contains("format is 2"));
}

#[test]
fn a_difference_in_every_unit_is_sure_and_one_that_goes_both_ways_is_not() {
    let names: Vec<String> = (0..12).map(|i| format!("s{i:02}")).collect();
    let of = |shift: &dyn Fn(usize) -> f64| {
        let sequences = names
            .iter()
            .enumerate()
            .map(|(i, name)| sequence(name, &[0.3 + 0.05 * i as f64 + shift(i)]))
            .collect();
        Report::new(inputs(), Scores::Masks { sequences })
    };
    let base = of(&|_| 0.0);
    let better = compare(&base, &of(&|i| 0.01 + 0.001 * i as f64)).unwrap();
    let jf = &better.figures["J&F"];
    // Far smaller than the spread of the sequences, yet sure: the draws are the same for both.
    assert!(jf.interval.unwrap().0 > 0.0 && jf.p < 0.01, "{jf:?}");
    assert_eq!(better.per_unit[0].name, "s00");
    let mixed = compare(&base, &of(&|i| if i % 2 == 0 { 0.02 } else { -0.02 })).unwrap();
    let jf = &mixed.figures["J&F"];
    assert!(jf.interval.unwrap().0 < 0.0 && jf.interval.unwrap().1 > 0.0 && jf.p > 0.3, "{jf:?}");
    assert_eq!(compare(&base, &base).unwrap().figures["J"].p, 1.0);
}

#[test]
fn only_like_is_compared_with_like() {
    let a = masks(&[("a", &[0.5]), ("b", &[0.6])]);
    let message = |b: &Report| compare(&a, b).unwrap_err().to_string();
    assert!(message(&classes(&[("x", &[(0, 0, 1)])])).contains("of masks, the second of classes"));
    assert!(message(&masks(&[("a", &[0.5]), ("c", &[0.6])])).contains("has b"));
    let mut other = a.clone();
    other.inputs.files.insert("annotations".to_owned(), "ff".to_owned());
    assert!(message(&other).contains("different annotations"));
    let one = masks(&[("a", &[0.5])]);
    assert!(compare(&one, &one).unwrap_err().to_string().contains("at least 2"));
}
