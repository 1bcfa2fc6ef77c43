//! The golden figures are those of the official tool for the same masks.

use std::path::Path;
use std::slice::from_ref;

use serde_json::Value;

use super::*;
use crate::testdata;

/// An object as a filled box: x, y, width, height in pixels.
type Box4 = [u32; 4];

/// The six counts in the order of the official cases.
fn six(c: &FrameCounts) -> [u64; 6] {
    [
        c.intersection,
        c.union,
        c.annotation_boundary,
        c.prediction_boundary,
        c.annotation_matched,
        c.prediction_matched,
    ]
}

/// Draws boxes, the first as id 1, the second as id 2 and so on.
fn boxes(size: (u32, u32), objects: &[Box4]) -> LabelMap {
    let mut map = LabelMap::background(size.0, size.1);
    for (id, &[x, y, w, h]) in (1u8..).zip(objects) {
        for row in y..y + h {
            map.data[(row * size.0 + x) as usize..][..w as usize].fill(id);
        }
    }
    map
}

fn write_folder(folder: &Path, maps: &[LabelMap]) {
    std::fs::create_dir_all(folder).unwrap();
    for (i, map) in maps.iter().enumerate() {
        map.write_png(&folder.join(format!("{i:05}.png"))).unwrap();
    }
}

/// Scores maps by way of files. The outer frames repeat the first and last inner ones.
fn score(annotations: &[LabelMap], predictions: &[LabelMap]) -> Result<SequenceScore, DavisError> {
    score_as(annotations, predictions, Some(Layout::Davis2017))
}

fn score_as(
    annotations: &[LabelMap],
    predictions: &[LabelMap],
    layout: Option<Layout>,
) -> Result<SequenceScore, DavisError> {
    let padded = |maps: &[LabelMap]| {
        let mut all = maps.to_vec();
        all.insert(0, maps[0].clone());
        all.push(maps[maps.len() - 1].clone());
        all
    };
    let dir = tempfile::tempdir().unwrap();
    let (a, p) = (dir.path().join("annotations"), dir.path().join("predictions"));
    write_folder(&a, &padded(annotations));
    write_folder(&p, &padded(predictions));
    score_folders(&a, &p, layout, &|| ())
}

fn score_boxes(size: (u32, u32), frames: &[(&[Box4], &[Box4])]) -> SequenceScore {
    let annotations: Vec<_> = frames.iter().map(|f| boxes(size, f.0)).collect();
    let predictions: Vec<_> = frames.iter().map(|f| boxes(size, f.1)).collect();
    score(&annotations, &predictions).unwrap()
}

fn counts_of(object: &ObjectScore) -> Vec<[u64; 6]> {
    object.counts.iter().map(six).collect()
}

fn close(name: &str, found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{name}: {found}, expected {expected}");
}

#[test]
fn boxes_at_the_frame_border_have_the_official_figures() {
    let score = score_boxes(
        (47, 33),
        &[
            (&[[30, 0, 17, 10]], &[[31, 1, 16, 9]]),
            (&[[0, 20, 9, 13]], &[[1, 21, 8, 12]]),
            (&[[35, 25, 12, 8]], &[[36, 26, 11, 7]]),
            (&[[20, 0, 4, 33]], &[[21, 1, 3, 32]]),
            (&[[0, 15, 47, 3]], &[[1, 16, 46, 2]]),
        ],
    );
    let object = &score.objects[0];
    assert_eq!(
        counts_of(object),
        [
            [144, 170, 27, 42, 27, 26],
            [96, 117, 22, 33, 22, 21],
            [77, 96, 21, 19, 20, 19],
            [96, 132, 66, 68, 66, 67],
            [92, 141, 94, 95, 94, 95],
        ]
    );
    let figures = object.figures();
    close("j_mean", figures.j_mean, 0.769_881_994_830_367_9, 1e-12);
    close("j_decay", figures.j_decay, 0.143_908_323_632_979_34, 1e-12);
    close("f_mean", figures.f_mean, 0.902_137_201_764_174_6, 1e-12);
    close("f_decay", figures.f_decay, -0.225_054_466_230_936_72, 1e-12);
    close("jf_mean", figures.jf_mean, 0.836_009_598_297_271_3, 1e-12);
}

#[test]
fn the_last_row_and_column_see_one_neighbour_only() {
    let score = score_boxes(
        (47, 33),
        &[
            (&[[30, 0, 17, 10]], &[[30, 0, 16, 10]]),
            (&[[0, 20, 9, 13]], &[[0, 20, 9, 12]]),
            (&[[35, 25, 12, 8]], &[[35, 25, 11, 7]]),
            (&[[20, 0, 4, 33]], &[[20, 0, 4, 32]]),
            (&[[0, 15, 47, 3]], &[[0, 15, 46, 3]]),
        ],
    );
    assert_eq!(
        counts_of(&score.objects[0]),
        [
            [160, 170, 27, 35, 27, 27],
            [108, 117, 22, 29, 22, 22],
            [77, 96, 21, 36, 21, 21],
            [128, 132, 66, 67, 66, 66],
            [138, 141, 94, 94, 94, 94],
        ]
    );
    let corner = score_boxes(
        (47, 33),
        &[
            (&[[46, 32, 1, 1]], &[[46, 31, 1, 1]]),
            (&[[46, 32, 1, 1]], &[[45, 32, 1, 1]]),
            (&[[46, 32, 1, 1]], &[[45, 31, 1, 1]]),
        ],
    );
    assert_eq!(
        counts_of(&corner.objects[0]),
        [[0, 2, 3, 4, 3, 4], [0, 2, 3, 4, 3, 4], [0, 2, 3, 4, 3, 3]]
    );
}

#[test]
fn single_pixels_of_four_objects_match_within_the_tolerance() {
    let annotation = [[10, 10, 1, 1], [30, 10, 1, 1], [10, 20, 1, 1], [30, 20, 1, 1]];
    let moved = [[11, 10, 1, 1], [30, 11, 1, 1], [11, 21, 1, 1], [33, 20, 1, 1]];
    let score = score_boxes((47, 33), &[(&annotation, &moved)]);
    let counts: Vec<_> = score.objects.iter().flat_map(counts_of).collect();
    let expected = [[0, 2, 4, 4, 4, 4], [0, 2, 4, 4, 4, 4], [0, 2, 4, 4, 3, 3], [0, 2, 4, 4, 0, 0]];
    assert_eq!(counts, expected);
    let report = DavisReport::new([("dots".to_owned(), SequenceReport::from(&score))].into());
    assert_eq!(report.global.f_mean, 0.6875);
    assert_eq!(report.global.f_recall, 0.75);
}

#[test]
fn an_object_that_fills_the_frame_has_no_boundary() {
    let all = [[0, 0, 47, 33]];
    let score = score_boxes((47, 33), &[(&all, &all), (&all, &[[1, 0, 46, 33]]), (&all, &[])]);
    let object = &score.objects[0];
    assert_eq!(
        counts_of(object),
        [[1551, 1551, 0, 0, 0, 0], [1518, 1551, 0, 33, 0, 0], [0, 1551, 0, 0, 0, 0]]
    );
    assert_eq!(object.boundary(), [1.0, 0.0, 1.0]);
    assert_eq!(object.region()[2], 0.0);
}

#[test]
fn thin_lines_and_half_objects_have_the_official_counts() {
    let lines = score_boxes(
        (47, 33),
        &[(&[[5, 16, 35, 1]], &[[5, 17, 35, 1]]), (&[[20, 4, 1, 26]], &[[22, 4, 1, 26]])],
    );
    assert_eq!(counts_of(&lines.objects[0]), [[0, 70, 72, 72, 72, 72], [0, 52, 54, 54, 27, 27]]);
    let half = score_boxes((64, 48), &[(&[[10, 10, 20, 10]], &[[10, 10, 10, 10]])]);
    let object = &half.objects[0];
    assert_eq!(counts_of(object), [[100, 200, 60, 40, 33, 33]]);
    assert_eq!((object.figures().j_mean, object.figures().j_recall), (0.5, 0.0));
}

#[test]
fn objects_are_the_ids_up_to_the_highest_of_the_first_annotation() {
    let mut first = boxes((20, 10), &[[1, 1, 4, 4]]);
    first.data[199] = 3;
    let mut later = first.clone();
    later.data[0] = 7;
    let empty = LabelMap::background(20, 10);
    let score = score(&[first, later], &[empty.clone(), empty]).unwrap();
    assert_eq!(score.objects.iter().map(|o| o.id).collect::<Vec<_>>(), [1, 2, 3]);
    // Id 2 is absent from both sides, which is right by convention.
    assert_eq!(score.objects[1].region(), [1.0, 1.0]);
    assert_eq!(score.objects[2].region(), [0.0, 0.0]);
}

#[test]
fn binary_masks_are_one_object_in_the_2016_layout_and_void_in_the_official_one() {
    let mut binary = boxes((20, 10), &[[2, 2, 6, 5]]);
    let as_id = binary.clone();
    for v in &mut binary.data {
        *v *= 255;
    }
    for prediction in [&binary, &as_id] {
        let score = score_as(from_ref(&binary), from_ref(prediction), None).unwrap();
        assert_eq!(score.layout, Layout::Davis2016);
        assert_eq!(score.objects[0].region(), [1.0]);
    }
    assert_eq!(Layout::Davis2016.object_ids(&binary), as_id);
    let official = score(from_ref(&binary), from_ref(&binary)).unwrap_err();
    assert!(matches!(official, DavisError::SurplusId { id: 255, objects: 0, .. }));
    let nothing = score(from_ref(&binary), &[LabelMap::background(20, 10)]).unwrap();
    let report = SequenceReport::from(&nothing);
    assert!(report.objects.is_empty() && report.figures.jf_mean.is_nan());
    assert_eq!(serde_json::to_value(&report).unwrap()["j_mean"], Value::Null);
    let mut with_void = as_id.clone();
    with_void.data[0] = 255;
    assert_eq!(Layout::detect(&with_void), Layout::Davis2017);
    assert_eq!(Layout::Davis2017.object_ids(&with_void), as_id);
}

#[test]
fn what_cannot_be_scored_is_refused_by_file_and_reason() {
    let one = boxes((20, 10), &[[2, 2, 6, 5]]);
    let two = boxes((20, 10), &[[2, 2, 6, 5], [10, 2, 5, 5]]);
    let message = score(&[one.clone(), one.clone()], &[one.clone(), two]).unwrap_err().to_string();
    assert!(message.contains("00002.png") && message.contains("id 2"), "{message}");
    let wide = LabelMap::background(21, 10);
    let message = score(from_ref(&one), &[wide]).unwrap_err().to_string();
    assert!(message.contains("00001.png") && message.contains("21x10"), "{message}");

    let dir = tempfile::tempdir().unwrap();
    let (a, p) = (dir.path().join("a"), dir.path().join("p"));
    write_folder(&a, &[one.clone(), one.clone()]);
    write_folder(&p, &[]);
    let short = score_folders(&a, &p, None, &|| ()).unwrap_err();
    assert!(matches!(short, DavisError::TooShort { frames: 2, .. }), "{short}");
    write_folder(&a, &[one.clone(), one.clone(), one]);
    let missing = score_folders(&a, &p, None, &|| ()).unwrap_err().to_string();
    assert!(missing.contains("p/00001.png") && missing.contains("missing"), "{missing}");
}

#[test]
fn the_report_has_the_published_json_shape() {
    let score = score_boxes((64, 48), &[(&[[10, 10, 20, 10]], &[[10, 10, 10, 10]])]);
    let report = DavisReport::new([("half".to_owned(), SequenceReport::from(&score))].into());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["global"]["j_mean"], 0.5);
    assert_eq!(json["sequences"]["half"]["layout"], "2017");
    assert_eq!(json["sequences"]["half"]["frames"], 1);
    assert_eq!(json["sequences"]["half"]["objects"]["1"]["j_mean"], 0.5);
}

/// `J_mean` and so on of the official cases against ours.
fn check_figures(name: &str, found: &Figures, official: &Value, tolerance: f64) {
    let pairs = [
        ("J_mean", found.j_mean),
        ("J_recall", found.j_recall),
        ("J_decay", found.j_decay),
        ("F_mean", found.f_mean),
        ("F_recall", found.f_recall),
        ("F_decay", found.f_decay),
        ("J&F_mean", found.jf_mean),
    ];
    for (key, value) in pairs {
        match &official[key] {
            Value::Null if key == "J&F_mean" && official.get(key).is_none() => {}
            Value::Null => assert!(value.is_nan(), "{name} {key}: {value}, expected undefined"),
            number => close(&format!("{name} {key}"), value, number.as_f64().unwrap(), tolerance),
        }
    }
}

/// The file at fault and the kind of error expected for every rejected case.
fn check_rejection(name: &str, error: &DavisError) {
    let (fits, file) = match name {
        "object_appears_later_predicted" | "pred_surplus_id" | "pred_255" | "binary_0_255" => {
            (matches!(error, DavisError::SurplusId { .. }), "pred/0000")
        }
        "pred_lacks_a_file" => {
            (matches!(error, DavisError::MissingPrediction { .. }), "pred/00002.png")
        }
        "pred_wrong_size" => (matches!(error, DavisError::Size { .. }), "pred/0000"),
        "two_frames" => (matches!(error, DavisError::TooShort { .. }), "gt"),
        _ => (false, ""),
    };
    let message = error.to_string();
    assert!(fits && message.contains(file), "{name}: {message}");
}

#[test]
fn every_official_case_agrees() {
    let Some(root) = testdata::shared("expected/davis") else { return };
    let text = std::fs::read(root.join("cases.json")).unwrap();
    let recorded: Value = serde_json::from_slice(&text).unwrap();
    let mut reports = BTreeMap::new();
    let cases = recorded["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 49);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let folder = root.join("cases").join(name);
        let result = score_folders(
            &folder.join("gt"),
            &folder.join("pred"),
            Some(Layout::Davis2017),
            &|| (),
        );
        if case["outcome"] == "rejected" {
            check_rejection(name, &result.unwrap_err());
            continue;
        }
        let score = result.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(serde_json::json!(score.frames), case["evaluated_frames"], "{name}");
        let objects = case["per_object"].as_array().unwrap();
        assert_eq!(score.objects.len(), objects.len(), "{name}");
        for (found, official) in score.objects.iter().zip(objects) {
            assert_eq!(official["id"], found.id, "{name}");
            assert_eq!(serde_json::json!(counts_of(found)), official["counts"], "{name}");
            for (key, values) in [("J", found.region()), ("F", found.boundary())] {
                for (i, value) in values.iter().enumerate() {
                    let expected = official[key][i].as_f64().unwrap();
                    close(&format!("{name} {key} {i}"), *value, expected, 1e-12);
                }
            }
            check_figures(name, &found.figures(), official, 1e-12);
        }
        let report = SequenceReport::from(&score);
        check_figures(name, &report.figures, &case["global"], 1e-9);
        reports.insert(name.to_owned(), report);
    }
    let set = &recorded["all_scored_cases_as_one_set"];
    let listed = set["cases"].as_array().unwrap();
    reports.retain(|name, _| listed.contains(&Value::from(name.as_str())));
    assert_eq!(reports.len(), listed.len());
    let together = DavisReport::new(reports);
    let objects: usize = together.sequences.values().map(|s| s.objects.len()).sum();
    assert_eq!(set["objects"], objects);
    check_figures("all cases", &together.global, &set["global"], 1e-9);
}

#[test]
fn published_osvos_masks_have_the_official_figures() {
    let Some(masks) = testdata::shared("data/davis") else { return };
    let Some(expected) = testdata::shared("expected/davis") else { return };
    let rows = |file: &str| -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(expected.join(file)).unwrap();
        let split = |line: &str| line.split(',').map(str::to_owned).collect();
        text.lines().skip(1).map(split).collect()
    };
    let per_frame = rows("osvos_per_frame_JF.csv");
    let mut reports = BTreeMap::new();
    let per_sequence = rows("osvos_per_sequence_JF.csv");
    for row in &per_sequence {
        let figures = if row[0] == "MEAN_13" {
            DavisReport::new(std::mem::take(&mut reports)).global
        } else {
            let annotations = masks.join("Annotations/480p").join(&row[0]);
            let results = masks.join("Results/osvos").join(&row[0]);
            let score = score_folders(&annotations, &results, None, &|| ()).unwrap();
            assert_eq!(score.layout, Layout::Davis2016);
            let lines: Vec<_> = per_frame.iter().filter(|r| r[0] == row[0]).collect();
            assert_eq!(lines.len(), score.frames.len());
            let object = &score.objects[0];
            let values = object.region().into_iter().zip(object.boundary());
            for ((line, frame), (j, f)) in lines.iter().zip(&score.frames).zip(values) {
                assert_eq!(&line[1], frame);
                close(&format!("{} {frame} J", row[0]), j, line[2].parse().unwrap(), 1e-6);
                close(&format!("{} {frame} F", row[0]), f, line[3].parse().unwrap(), 1e-6);
            }
            let report = SequenceReport::from(&score);
            let figures = report.figures;
            reports.insert(row[0].clone(), report);
            figures
        };
        let found = [
            figures.j_mean,
            figures.j_recall,
            figures.j_decay,
            figures.f_mean,
            figures.f_recall,
            figures.f_decay,
        ];
        for (found, text) in found.into_iter().zip(&row[1..]) {
            close(&row[0], found, text.parse().unwrap(), 1e-6);
        }
    }
    assert_eq!(per_sequence.len(), 14);
}
