//! Agreement with independent Python code: scikit-learn and scikit-image on the same data.
//! `testdata/independent/make.py` made the figures and says what exactly was compared.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::neighbours::Neighbours;
use crate::concepts::kmeans::Clusters;
use crate::labels::{IdMap, LabelMap};
use crate::metrics::miou::Confusion;
use crate::metrics::purity::{PurityCounts, segments};

/// The generator of the script: 24 bits at a time.
struct Numbers(u64);

impl Numbers {
    fn draw(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as u32
    }

    /// Whole numbers from -128 to 127.
    fn signed(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.draw() >> 16) as f32 - 128.0).collect()
    }

    fn below(&mut self, count: usize, limit: u32) -> Vec<u32> {
        (0..count).map(|_| self.draw() % limit).collect()
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/independent").join(name)
}

/// Seed and content of a file that begins with its seed.
fn seeded(name: &str) -> (Numbers, Vec<u8>) {
    let mut bytes = std::fs::read(golden(name)).unwrap();
    (Numbers(bytes.remove(0).into()), bytes)
}

fn figures(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn unit(mut rows: Vec<f32>, dim: usize) -> Vec<f32> {
    for row in rows.chunks_exact_mut(dim) {
        // Whole numbers: the sum of squares is exact in double precision.
        let length = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        for value in row {
            *value = (f64::from(*value) / length) as f32;
        }
    }
    rows
}

/// `kinds` kinds in blocks of 7x7 cells: `signal` times the kind's direction, and noise.
fn regions(
    numbers: &mut Numbers,
    (height, width, dim): (usize, usize, usize),
    kinds: u32,
    signal: f32,
) -> Vec<f32> {
    let directions = numbers.signed(kinds as usize * dim);
    let columns = width.div_ceil(7);
    let kind = numbers.below(height.div_ceil(7) * columns, kinds);
    let mut rows = numbers.signed(height * width * dim);
    for (cell, row) in rows.chunks_exact_mut(dim).enumerate() {
        let kind = kind[cell / width / 7 * columns + cell % width / 7] as usize;
        let direction = &directions[kind * dim..][..dim];
        row.iter_mut().zip(direction).for_each(|(noise, value)| *noise += signal * value);
    }
    unit(rows, dim)
}

#[test]
fn every_round_of_kmeans_is_that_of_scikit_learn_between_unit_centroids() {
    let (mut numbers, labels) = seeded("kmeans.bin");
    let size = (42, 56, 32);
    let embeddings = regions(&mut numbers, size, 8, 1.0);
    let mut clusters = Clusters::default();
    for (rounds, expected) in [1, 2, 10, 50].into_iter().zip(labels.chunks_exact(42 * 56)) {
        clusters.run(&embeddings, size, 5, rounds);
        assert!(clusters.labels() == expected, "{rounds} rounds");
    }
    assert_eq!(labels.len(), 4 * 42 * 56);
}

#[test]
fn kmeans_ends_where_scikit_learn_ends_on_separated_data() {
    let (mut numbers, expected) = seeded("separated.bin");
    let size = (38, 38, 32);
    let embeddings = regions(&mut numbers, size, 40, 8.0);
    let mut clusters = Clusters::default();
    clusters.run(&embeddings, size, 5, 50);
    assert!(clusters.labels() == expected);
}

#[test]
fn neighbours_and_votes_are_those_of_scikit_learn() {
    let (mut numbers, bytes) = seeded("knn.bin");
    let (count, queries, dim, k) = (4000, 200, 32, 15);
    let prototypes = unit(numbers.signed(count * dim), dim);
    let asked = unit(numbers.signed(queries * dim), dim);
    let classes = numbers.below(count, 21).into_iter().map(|class| class as u8).collect();
    let found = Neighbours::new(prototypes, classes, dim);
    let (nearest, votes) = bytes.split_at(queries * k * 2);
    let nearest: Vec<u32> =
        nearest.as_chunks::<2>().0.iter().map(|&pair| u16::from_le_bytes(pair).into()).collect();
    assert_eq!(found.nearest(&asked, k).concat(), nearest);
    assert_eq!(found.classify(&asked, k), votes);
}

#[test]
fn miou_is_that_of_scikit_learn() {
    let expected = figures("miou.json");
    let (mut numbers, width, height) = (Numbers(7), 80, 60);
    let mut confusion = Confusion::new(21, Some(255));
    for _ in 0..3 {
        let class = |value: u32| match value {
            21.. => 255,
            19 | 20 => 0,
            other => other as u8,
        };
        let pixels = width * height;
        let truth: Vec<u8> = numbers.below(pixels, 24).into_iter().map(class).collect();
        let wrong = numbers.below(pixels, 4);
        let other = numbers.below(pixels, 20);
        let predicted = (0..pixels)
            .map(|i| if wrong[i] == 0 || truth[i] == 255 { other[i] as u8 } else { truth[i] });
        let map = |data| LabelMap { width: width as u32, height: height as u32, data };
        confusion.add(&map(truth.clone()), &map(predicted.collect())).unwrap();
    }
    let report = confusion.report();
    let close = |name: &str, found: f64, expected: &Value| {
        let expected = expected.as_f64().unwrap();
        assert!((found - expected).abs() < 1e-12, "{name}: {found}, expected {expected}");
    };
    for (class, (iou, row)) in
        report.iou.iter().zip(expected["confusion"].as_array().unwrap()).enumerate()
    {
        close(&format!("class {class}"), iou.unwrap_or(0.0), &expected["iou"][class]);
        let pixels: u64 = row.as_array().unwrap().iter().filter_map(Value::as_u64).sum();
        assert_eq!(report.pixels[class], pixels);
    }
    assert_eq!((report.iou[19], report.iou[20]), (Some(0.0), None));
    close("mean over all", report.mean_all, &expected["mean_all"]);
    close("mean over present", report.mean_present, &expected["mean_present"]);
    close("accuracy", report.pixel_accuracy, &expected["pixel_accuracy"]);
}

#[test]
fn segments_and_purity_are_those_of_scikit_image() {
    let expected = figures("purity.json");
    let (mut numbers, width, height) = (Numbers(9), 64, 48);
    let mut counts = PurityCounts::new(501, 5);
    for _ in 0..3 {
        let blocks = numbers.below(width * height / 16, 6);
        let concept =
            |pixel: usize| 100 * blocks[pixel / width / 4 * (width / 4) + pixel % width / 4] as u16;
        let concepts: Vec<u16> = (0..width * height).map(concept).collect();
        let classes = numbers.below(width * height, 7).into_iter().zip(&concepts);
        let data = classes.map(|(c, &id)| if c > 4 || id == 300 { 255 } else { c as u8 });
        let (w, h) = (width as u32, height as u32);
        let labels = LabelMap { width: w, height: h, data: data.collect() };
        let ids = IdMap { width: w, height: h, data: concepts };
        for segment in segments(&ids, &labels, 255) {
            counts.add_segment(segment.id.into(), segment.class.map(usize::from));
        }
    }
    let report = counts.report(1);
    assert_eq!(report.unlabelled, expected["unlabelled"]);
    assert_eq!(report.segments, expected["segments"]);
    let per_concept = expected["per_concept"].as_array().unwrap();
    assert_eq!(report.per_concept.len(), per_concept.len());
    for (found, expected) in report.per_concept.iter().zip(per_concept) {
        assert_eq!(expected["concept"], found.concept);
        assert_eq!(expected["segments"], found.segments);
        assert_eq!(expected["purity"], found.purity);
    }
    for (found, key) in [(report.mean, "mean"), (report.mean_weighted, "mean_weighted")] {
        assert!((found - expected[key].as_f64().unwrap()).abs() < 1e-12, "{key}");
    }
}
