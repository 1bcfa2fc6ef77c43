use proptest::prelude::*;

use super::*;

const CONCEPTS: usize = 12;
const CLASSES: usize = 3;

/// Segments of up to 9 images.
fn images() -> impl Strategy<Value = Vec<ImageConcepts>> {
    let segment =
        (0..CONCEPTS as u16, -1.0f32..1.0, 1u32..400, proptest::option::of(0..CLASSES as u8))
            .prop_map(|(concept, similarity, area, class)| Segment {
                concept,
                similarity,
                area,
                bbox: [0, 0, area, 1],
                class,
            });
    let segments = proptest::collection::vec(segment, 0..12);
    proptest::collection::vec(segments, 0..9).prop_map(|images| {
        let named =
            |(i, segments)| ImageConcepts { image: format!("{i}"), size: [400; 2], segments };
        images.into_iter().enumerate().map(named).collect()
    })
}

fn settings() -> SummarySettings {
    SummarySettings {
        classes: Some(CLASSES),
        min_area: 20,
        min_images: 2,
        samples: 3,
        ..Default::default()
    }
}

fn summed(records: &[ImageConcepts]) -> ConceptSummary {
    summary(records, CONCEPTS, &settings()).unwrap()
}

/// Counts of a concept, the obvious way: segments, images, pixels.
fn counted(records: &[ImageConcepts], concept: u16) -> (u64, u32, u64) {
    let of = |record: &ImageConcepts| -> Vec<u64> {
        let segments = record.segments.iter();
        segments.filter(|s| s.concept == concept && s.area >= 20).map(|s| s.area.into()).collect()
    };
    let all: Vec<Vec<u64>> = records.iter().map(of).collect();
    (
        all.iter().map(|areas| areas.len() as u64).sum(),
        all.iter().filter(|areas| !areas.is_empty()).count() as u32,
        all.iter().flatten().sum(),
    )
}

proptest! {
    #[test]
    fn any_order_and_any_split_give_the_same_summary(
        records in images(),
        keys in proptest::collection::vec(any::<u32>(), 9),
        cut in 0usize..9,
    ) {
        let whole = summed(&records);
        let mut shuffled: Vec<(u32, ImageConcepts)> =
            keys.into_iter().zip(records.iter().cloned()).collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let shuffled: Vec<ImageConcepts> = shuffled.into_iter().map(|(_, one)| one).collect();
        // Two shards, each written to a file and read back, the second first.
        let (a, b) = shuffled.split_at(cut.min(shuffled.len()));
        let files = [b, a].map(|shard| serde_json::to_string(shard).unwrap());
        let joined: Vec<ImageConcepts> = files
            .iter()
            .flat_map(|text| serde_json::from_str::<Vec<ImageConcepts>>(text).unwrap())
            .collect();
        prop_assert_eq!(summed(&joined), whole);
    }

    #[test]
    fn sums_are_those_of_a_slow_count(records in images()) {
        let summary = summed(&records);
        let dictionary = &summary.dictionary;
        let all: Vec<_> = (0..CONCEPTS as u16).map(|c| (c, counted(&records, c))).collect();
        let used: Vec<_> = all.iter().filter(|(_, (segments, ..))| *segments > 0).collect();
        let found: Vec<_> =
            dictionary.per_concept.iter().map(|c| (c.concept, (c.segments, c.images, c.area))).collect();
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), used);
        prop_assert_eq!(dictionary.used + dictionary.never_used.len(), CONCEPTS);
        prop_assert_eq!(dictionary.segments, found.iter().map(|(_, c)| c.0).sum::<u64>());
        if dictionary.used > 0 {
            let total: f64 = dictionary.per_concept.iter().map(|c| c.area_share).sum();
            prop_assert!((total - 1.0).abs() < 1e-12);
            for perplexity in [dictionary.perplexity_segments, dictionary.perplexity_area] {
                prop_assert!((1.0 - 1e-9..=dictionary.used as f64 + 1e-9).contains(&perplexity));
            }
        }
        let purity = summary.purity.unwrap();
        prop_assert_eq!(purity.segments + purity.unlabelled, dictionary.segments);
        for (concept, (segments, ..)) in all {
            let samples = summary.samples.get(&concept).map_or(0, Vec::len);
            prop_assert_eq!(samples as u64, segments.min(3));
        }
    }

    #[test]
    fn edges_are_those_of_a_slow_count(records in images()) {
        let n = records.len() as f64;
        let holds = |record: &ImageConcepts, c: u16| {
            record.segments.iter().any(|s| s.concept == c && s.area >= 20)
        };
        let mut expected = Vec::new();
        for a in 0..CONCEPTS as u16 {
            for b in a + 1..CONCEPTS as u16 {
                let share = |wanted: &[u16]| {
                    let hit = |record: &&ImageConcepts| wanted.iter().all(|&c| holds(record, c));
                    records.iter().filter(hit).count() as f64 / n
                };
                let pmi = (share(&[a, b]) / (share(&[a]) * share(&[b]))).ln();
                let both = (share(&[a, b]) * n).round() as u32;
                // 0 exactly is within rounding of both sides.
                if both >= 2 && pmi > 1e-12 {
                    expected.push((a, b, both, pmi));
                }
            }
        }
        let graph = summed(&records).graph;
        let found: Vec<_> = graph.edges.iter().filter(|edge| edge.pmi > 1e-12).collect();
        prop_assert_eq!(found.len(), expected.len());
        for (edge, (a, b, both, pmi)) in found.into_iter().zip(expected) {
            prop_assert_eq!((edge.a, edge.b, edge.images), (a, b, both));
            prop_assert!((edge.pmi - pmi).abs() < 1e-9);
        }
    }
}

#[test]
fn perplexity_is_the_number_of_equally_used_concepts() {
    assert!((perplexity([7, 7, 0, 7].into_iter()) - 3.0).abs() < 1e-12);
    assert_eq!(perplexity([5].into_iter()), 1.0);
    assert_eq!(perplexity([0, 0].into_iter()), 0.0);
    // Shares 3/4 and 1/4.
    let expected = (4.0 / 3.0_f64).powf(0.75) * 4.0_f64.powf(0.25);
    assert!((perplexity([3, 1].into_iter()) - expected).abs() < 1e-12);
}

#[test]
fn without_classes_there_is_no_purity_but_all_the_rest() {
    let segment =
        Segment { concept: 1, similarity: 0.5, area: 30, bbox: [0, 0, 6, 5], class: None };
    let record =
        ImageConcepts { image: "a".to_owned(), size: [10, 10], segments: vec![segment; 2] };
    let settings = SummarySettings { classes: None, ..settings() };
    let summary = summary(&[record], 3, &settings).unwrap();
    assert_eq!(summary.purity, None);
    assert_eq!(summary.dictionary.never_used, [0, 2]);
    assert_eq!(summary.dictionary.per_concept[0].similarity, 0.5);
    assert_eq!(summary.samples[&1].len(), 2);
}

#[test]
fn records_that_cannot_be_are_refused_by_name() {
    let segment =
        Segment { concept: 3, similarity: 0.5, area: 30, bbox: [0, 0, 6, 5], class: Some(2) };
    let record =
        ImageConcepts { image: "street".to_owned(), size: [10, 10], segments: vec![segment] };
    let refused = |records: &[ImageConcepts], concepts, classes| {
        let settings = SummarySettings { classes, ..settings() };
        summary(records, concepts, &settings).unwrap_err().to_string()
    };
    let one = std::slice::from_ref(&record);
    let text = refused(one, 3, Some(3));
    assert!(text.contains("street") && text.contains("the concept 3"), "{text}");
    let text = refused(one, 4, Some(2));
    assert!(text.contains("unknown class 2"), "{text}");
    let text = refused(&[record.clone(), record.clone()], 4, Some(3));
    assert!(text.contains("there are two of it"), "{text}");
}
