use std::path::Path;
use std::sync::Arc;

use super::baseline::{Baseline, Pairs};
use super::rules::RuleSet;
use super::*;
use crate::bundle::ConceptNames;
use crate::concepts::{ConceptMap, ConceptSegment};
use crate::frame::FrameView;

const COUNT: usize = 8;
const FPS: f64 = 10.0;

/// Concepts 0 to 2 share the pictures of the baseline; the others were seen once, alone.
fn baseline() -> Baseline {
    let mut pairs = Pairs::new(COUNT);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        pairs.insert(a, b);
    }
    Baseline {
        frames: 1000,
        codebook: String::new(),
        area: vec![0.5, 0.3, 0.19, 0.002, 0.002, 0.002, 0.002, 0.002],
        occurrence: vec![1.0, 1.0, 1.0, 0.01, 0.01, 0.01, 0.01, 0.01],
        segments: vec![100.0; COUNT],
        low_similarity: vec![0.5; COUNT],
        pairs,
    }
}

fn config() -> MonitorConfig {
    MonitorConfig { warm_up: 10.0, windows: vec![2.0, 20.0, 60.0], ..Default::default() }
}

fn monitor_with(names: &str, rules: &str, config: MonitorConfig) -> StreamMonitor {
    let names = ConceptNames::parse(names, Path::new("concepts.toml"), COUNT).unwrap();
    let reference = Arc::new(Reference::new(&baseline(), &names));
    let rules =
        RuleSet::parse(rules, Path::new("rules.toml"), &reference, &config.windows).unwrap();
    StreamMonitor::new("cam", reference, Arc::new(rules), config).unwrap()
}

/// A frame of 100x100 pixels with these concepts: id, share in percent, similarity.
fn frame(parts: &[(u16, u32, f32)]) -> FrameResult {
    let segment_list = parts
        .iter()
        .map(|&(concept, percent, similarity)| ConceptSegment {
            concept,
            similarity,
            area: percent * 100,
            bbox: [0; 4],
        })
        .collect();
    let concepts = ConceptMap { width: 100, height: 100, segment_list, ..ConceptMap::default() };
    FrameResult { width: 100, height: 100, concepts: Some(concepts), ..FrameResult::default() }
}

/// Shows `seconds` of what `parts` makes of the number of the frame; answers what was told.
fn show(
    monitor: &mut StreamMonitor,
    seconds: f64,
    parts: impl Fn(u64) -> Vec<(u16, u32, f32)>,
) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..(seconds * FPS).round() as u64 {
        let at = monitor.frames();
        events.extend_from_slice(monitor.observe(&frame(&parts(at)), None, at as f64 / FPS));
    }
    events
}

/// The usual picture, which lives a little.
fn usual(at: u64) -> Vec<(u16, u32, f32)> {
    let wobble = (at * 7 % 5) as u32;
    vec![(0, 50 + wobble, 0.9 - at as f32 % 13.0 / 100.0), (1, 30 - wobble, 0.8), (2, 20, 0.7)]
}

fn kinds(events: &[Event]) -> Vec<(EventKind, Option<EventKind>)> {
    events.iter().map(|e| (e.kind, e.from)).collect()
}

#[test]
fn an_undisturbed_stream_tells_nothing() {
    let mut monitor = monitor_with("", "", config());
    assert_eq!(show(&mut monitor, 300.0, usual), []);
    assert!(monitor.readings().drift < 0.05, "{}", monitor.readings().drift);
}

#[test]
fn a_rare_concept_appears_and_is_gone_again() {
    let mut monitor = monitor_with("[concept.5]\nname = \"fox\"", "", config());
    show(&mut monitor, 30.0, usual);
    let with_fox = |at| {
        let mut parts = usual(at);
        parts[2] = (2, 14, 0.7);
        parts.push((5, 6, 0.9));
        parts
    };
    let events = show(&mut monitor, 8.0, with_fox);
    let told: Vec<_> = events.iter().filter(|e| e.kind == EventKind::Appeared).collect();
    let [event] = told[..] else { panic!("{events:?}") };
    assert_eq!(event.concepts[0].name.as_deref(), Some("fox"));
    assert_eq!((event.stream.as_str(), event.number), ("cam", 1));
    assert!((32.0..33.5).contains(&event.time), "{}", event.time);
    assert!(events.iter().any(|e| e.kind == EventKind::Pair && e.concepts.len() == 2));
    let events = show(&mut monitor, 20.0, usual);
    assert_eq!(kinds(&events), [(EventKind::Recovered, Some(EventKind::Appeared))]);
    // Pairs are news once, and who was there for long is not rare any more.
    assert_eq!(show(&mut monitor, 8.0, with_fox), []);
}

#[test]
fn a_usual_concept_vanishes_and_is_back() {
    let mut monitor = monitor_with("", "", MonitorConfig { drift_floor: 0.5, ..config() });
    show(&mut monitor, 60.0, usual);
    let events = show(&mut monitor, 20.0, |at| vec![(0, 60, 0.9), (1, 40, 0.7 + at as f32 / 1e4)]);
    assert_eq!(kinds(&events), [(EventKind::Vanished, None)]);
    assert_eq!(events[0].concepts[0].id, 2);
    let events = show(&mut monitor, 20.0, usual);
    assert_eq!(kinds(&events), [(EventKind::Recovered, Some(EventKind::Vanished))]);
}

#[test]
fn unlikely_segments_are_novel_and_a_new_mixture_is_drift() {
    let mut monitor = monitor_with("", "", config());
    show(&mut monitor, 60.0, usual);
    let strange = |at: u64| {
        let mut parts = usual(at);
        parts[0].2 = 0.1;
        parts
    };
    let events = show(&mut monitor, 10.0, strange);
    assert_eq!(kinds(&events), [(EventKind::Novel, None)]);
    assert_eq!(events[0].concepts[0].id, 0);
    assert!(monitor.status().active.contains(&"novel".to_owned()));
    let events = show(&mut monitor, 20.0, usual);
    assert_eq!(kinds(&events), [(EventKind::Recovered, Some(EventKind::Novel))]);

    let swapped =
        |at: u64| vec![(2, 60, 0.9), (1, 30, 0.7), (0, 10, 0.6 + (at % 9) as f32 / 100.0)];
    let events = show(&mut monitor, 20.0, swapped);
    assert_eq!(kinds(&events), [(EventKind::Drifted, None)]);
    let events = show(&mut monitor, 30.0, usual);
    assert_eq!(kinds(&events), [(EventKind::Recovered, Some(EventKind::Drifted))]);
}

#[test]
fn results_that_never_change_are_a_frozen_picture() {
    let mut monitor = monitor_with("", "", config());
    show(&mut monitor, 20.0, usual);
    let events = show(&mut monitor, 10.0, |_| usual(3));
    assert_eq!(kinds(&events), [(EventKind::Frozen, None)]);
    let events = show(&mut monitor, 1.0, usual);
    assert_eq!(kinds(&events), [(EventKind::Recovered, Some(EventKind::Frozen))]);
}

/// A picture of 160x90 pixels whose brightness `pixel` tells.
fn picture(pixel: impl Fn(u32, u32) -> u8) -> Vec<u8> {
    let places = (0..90).flat_map(|y| (0..160).map(move |x| (x, y)));
    places.flat_map(|(x, y)| [pixel(x, y); 3]).collect()
}

#[test]
fn pixels_tell_a_covered_lens_and_a_blurred_one() {
    let mut monitor = monitor_with("", "", MonitorConfig { thumbnail: Some(64), ..config() });
    let noise = |x: u32, y: u32, at: u64| {
        (u64::from(x * 31 + y * 17) + at).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56
    };
    let sharp = |at: u64| picture(|x, y| noise(x, y, at) as u8);
    let soft = |at: u64| {
        picture(|x, y| {
            let wide = (0..5).flat_map(|i| (0..5).map(move |j| (i, j)));
            let mean = wide.map(|(i, j)| noise(x / 5 * 5 + i, y / 5 * 5 + j, at)).sum::<u64>() / 25;
            (f64::from(x) * 0.8 + mean as f64 * 0.2) as u8
        })
    };
    let dark = |at: u64| picture(|x, y| (20 + noise(x, y, at) / 64) as u8);
    let mut run = |seconds: f64, pixels: &dyn Fn(u64) -> Vec<u8>| {
        let mut events = Vec::new();
        for _ in 0..(seconds * FPS) as u64 {
            let at = monitor.frames();
            let rgb = pixels(at);
            let view = FrameView::rgb(160, 90, &rgb).unwrap();
            events.extend_from_slice(monitor.observe(
                &frame(&usual(at)),
                Some(&view),
                at as f64 / FPS,
            ));
        }
        events
    };
    assert_eq!(run(30.0, &sharp), []);
    let events = run(3.0, &dark);
    assert_eq!(kinds(&events), [(EventKind::Covered, None)]);
    let jpeg = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        events[0].thumbnail.as_ref().unwrap(),
    )
    .unwrap();
    let thumbnail = image::load_from_memory(&jpeg).unwrap();
    assert_eq!((thumbnail.width(), thumbnail.height()), (64, 36));
    assert_eq!(kinds(&run(3.0, &sharp)), [(EventKind::Recovered, Some(EventKind::Covered))]);
    assert_eq!(kinds(&run(3.0, &soft)), [(EventKind::Blurred, None)]);
    assert_eq!(kinds(&run(3.0, &sharp)), [(EventKind::Recovered, Some(EventKind::Blurred))]);
    assert_eq!(kinds(&run(8.0, &|_| sharp(1))), [(EventKind::Frozen, None)]);
}

#[test]
fn rules_marks_and_merged_names_are_heeded() {
    let names = "[concept.3]\nname = \"dog\"\n[concept.6]\nname = \"dog\"\n\
        [concept.4]\nmark = \"ignore\"\n[concept.0]\nname = \"lawn\"\nmark = \"alert\"";
    let rules =
        "[[rule]]\nname = \"dogs\"\nwhen = \"area('dog') >= 0.04 for 2s\"\nclear_after = \"1s\"";
    let mut monitor = monitor_with(names, rules, config());
    show(&mut monitor, 30.0, usual);
    let dogs = |at: u64| {
        let mut parts = usual(at);
        parts[2] = (2, 10, 0.7);
        parts.extend([(3, 2, 0.9), (6, 2, 0.9), (4, 6, 0.1)]);
        parts
    };
    let events = show(&mut monitor, 3.0, dogs);
    let rule: Vec<_> = events.iter().filter(|e| e.kind == EventKind::Rule).collect();
    let [event] = rule[..] else { panic!("{events:?}") };
    assert_eq!((event.rule.as_deref(), event.concepts[0].id), (Some("dogs"), 3));
    assert!(events.iter().all(|e| e.concepts.iter().all(|c| c.id != 4 && c.id != 6)), "{events:?}");
    assert!(monitor.status().active.contains(&"dogs".to_owned()));
    let events = show(&mut monitor, 3.0, usual);
    assert!(kinds(&events).contains(&(EventKind::Recovered, Some(EventKind::Rule))));
    show(&mut monitor, 30.0, |at| vec![(1, 70, 0.8), (2, 30, 0.6 + (at % 7) as f32 / 100.0)]);
    let events = show(&mut monitor, 5.0, usual);
    assert!(events.iter().any(|e| e.concepts.first().is_some_and(|c| c.id == 0)), "{events:?}");
}

#[test]
fn frames_without_concepts_and_odd_times_do_no_harm() {
    let mut monitor = monitor_with("", "", config());
    let bare = FrameResult { width: 9, height: 9, ..FrameResult::default() };
    for time in [0.0, f64::NAN, -5.0, f64::INFINITY, 1e300, 0.0, 0.1] {
        assert_eq!(monitor.observe(&bare, None, time), []);
        assert_eq!(monitor.observe(&frame(&[(7, 100, 0.9), (900, 50, f32::NAN)]), None, time), []);
    }
    let before = monitor.readings().area.mean(0, 7);
    assert!((0.0..=1.0).contains(&before));
}

/// A day at 30 frames a second, in memory that does not grow and with exact counts.
#[test]
fn a_day_of_frames_is_counted_exactly_in_flat_memory() {
    const FRAMES: u64 = 24 * 3600 * 30;
    // A visitor for ten seconds at the start of each hour but the first.
    let rules =
        "[[rule]]\nname = \"visitor\"\nwhen = \"area(5) > 0.03 for 2s\"\nclear_after = \"2s\"";
    let mut monitor = monitor_with("", rules, MonitorConfig::default());
    let (mut quiet, mut visit) = (frame(&usual(0)), frame(&usual(0)));
    if let Some(map) = &mut visit.concepts {
        map.segment_list[2].area = 1000;
        map.segment_list.push(ConceptSegment {
            concept: 5,
            similarity: 0.9,
            area: 1000,
            bbox: [0; 4],
        });
    }
    let mut counts = std::collections::BTreeMap::new();
    let mut memory = 0;
    for at in 0..FRAMES {
        let second = at / 30;
        let result = if second >= 3600 && second % 3600 < 10 { &mut visit } else { &mut quiet };
        result.index = at;
        if let Some(map) = &mut result.concepts {
            map.segment_list[0].similarity = 0.9 - (at % 97) as f32 / 1000.0;
        }
        for event in monitor.observe(result, None, at as f64 / 30.0) {
            *counts.entry((event.kind, event.from)).or_insert(0) += 1;
        }
        if second == 2 * 3600 {
            memory = monitor.memory_bytes();
        }
    }
    assert_eq!(monitor.frames(), FRAMES);
    assert_eq!(monitor.memory_bytes(), memory);
    assert_eq!(counts[&(EventKind::Rule, None)], 23);
    assert_eq!(counts[&(EventKind::Recovered, Some(EventKind::Rule))], 23);
    assert_eq!(counts[&(EventKind::Appeared, None)], 23);
    assert_eq!(counts[&(EventKind::Recovered, Some(EventKind::Appeared))], 23);
    assert_eq!(counts[&(EventKind::Pair, None)], 3);
}

#[test]
fn a_result_stands_for_the_frames_without_one_before_it() {
    let share = |every: usize| {
        let mut monitor = monitor_with("", "", config());
        for at in 0..=60 {
            let result = frame(&[(if at <= 40 { 0 } else { 3 }, 100, 0.9)]);
            let sightings = (at % every == 0).then(|| Sighting::of_result(&result));
            monitor.observe_sightings(at as u64, sightings, None, at as f64 / FPS);
        }
        monitor.readings().area.mean(0, 3)
    };
    let (each, fifth) = (share(1), share(5));
    // Two seconds of six; the window has no weight before the start.
    let expected = (1.0 - (-1.0f64).exp()) / (1.0 - (-3.0f64).exp());
    assert!((each - expected).abs() < 0.02, "{each}");
    assert!((each - fifth).abs() < 0.05, "{each} {fifth}");
}
