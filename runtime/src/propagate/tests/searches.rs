//! The search by a shortlist finds what the search in floats finds.

use proptest::prelude::*;

use super::super::affinity::Affinity;
use super::super::coarse;
use super::super::memory::{ContextFrame, ContextMemory};
use super::embedding;
use crate::embed::EmbeddingMap;
use crate::propagate::{PropagationConfig, Protocol};

/// What is found for the last of some frames, the others being its context.
fn found(
    config: &PropagationConfig,
    frames: &[EmbeddingMap],
    shortlist: bool,
) -> (Vec<f32>, Vec<u32>) {
    let EmbeddingMap { height, width, dim, .. } = frames[0];
    let mut affinity = Affinity::with_shortlist(height, width, dim, config, shortlist);
    let mut memory = ContextMemory::default();
    let repeat = config.protocol != Protocol::Dino;
    memory.reset(config.context_frames, repeat, || ContextFrame {
        features: affinity.features(),
        labels: Vec::new(),
    });
    let (last, context) = frames.split_last().unwrap();
    for (i, frame) in context.iter().enumerate() {
        memory.current.features.fill(&frame.data, width, dim);
        if i == 0 { memory.keep_as_first() } else { memory.advance() }
    }
    let neighbours = affinity.search(&last.data, &memory);
    (0..height * width).fold((Vec::new(), Vec::new()), |(mut scores, mut sources), cell| {
        let (s, from) = neighbours.of(cell, 0);
        scores.extend_from_slice(s);
        sources.extend_from_slice(from);
        (scores, sources)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn both_searches_keep_the_same_cells(
        (height, width, dim) in (1..9usize, 1..50usize, 1..40usize),
        (radius, topk, frames) in (0..60usize, 1..12usize, 2..6usize),
        circle: bool,
        seed: u64,
        size in prop::sample::select(vec![1.0f32, 1e-30, 3e9]),
        odd in prop::option::of(prop::sample::select(vec![f32::NAN, f32::INFINITY, 0.0])),
    ) {
        let protocol = if circle { Protocol::Crw } else { Protocol::Dino };
        let config =
            PropagationConfig { protocol, radius, topk, context_frames: 3, ..Default::default() };
        // Sums of whole eighths times a power of two are exact in any order.
        let size = size.log2().round().exp2();
        let mut maps: Vec<EmbeddingMap> =
            (0..frames).map(|i| embedding(height, width, dim, seed.wrapping_add(i as u64 / 2))).collect();
        for map in &mut maps {
            map.data.iter_mut().for_each(|v| *v *= size);
        }
        if let Some(odd) = odd {
            let len = maps[0].data.len();
            maps[seed as usize % frames].data[seed as usize % len] = odd;
        }
        let (floats, shortlist) = (found(&config, &maps, false), found(&config, &maps, true));
        prop_assert_eq!(floats.1, shortlist.1);
        prop_assert_eq!(floats.0, shortlist.0);
    }
}

#[test]
fn the_smallest_windows_hold_what_they_should() {
    let maps: Vec<EmbeddingMap> = (0..4).map(|i| embedding(8, 25, 3, i)).collect();
    for protocol in [Protocol::Dino, Protocol::Crw] {
        for (radius, topk) in (0..4).flat_map(|radius| [1, 2, 9].map(|topk| (radius, topk))) {
            let config = PropagationConfig {
                protocol,
                radius,
                topk,
                context_frames: 2,
                ..Default::default()
            };
            assert_eq!(
                found(&config, &maps, false),
                found(&config, &maps, true),
                "{protocol:?} {radius} {topk}"
            );
        }
    }
}

#[test]
fn sums_are_rounded_alike() {
    if !coarse::is_fast() {
        println!("skipped: the search in floats may not fuse its multiply-adds here");
        return;
    }
    let unit = |seed: u64| {
        let mut map = embedding(8, 25, 3, seed);
        for cell in map.data.chunks_exact_mut(3) {
            let length = cell.iter().map(|v| v * v).sum::<f32>().sqrt().max(0.1);
            for value in cell.iter_mut() {
                *value /= length;
            }
        }
        map
    };
    // Few directions of few channels: many scores are equal but for their rounding.
    let maps: Vec<EmbeddingMap> = (0..4).map(unit).collect();
    for (radius, topk) in [(0, 1), (1, 2), (3, 2), (12, 5)] {
        let config = PropagationConfig { radius, topk, context_frames: 2, ..Default::default() };
        assert_eq!(found(&config, &maps, false), found(&config, &maps, true), "{radius} {topk}");
    }
}
