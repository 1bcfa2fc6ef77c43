//! The propagation against a dense reference that follows the protocol word by word.

use proptest::prelude::*;

use super::*;

mod searches;
mod variants;

/// Embeddings of whole eighths: dot products are exact in any order of summation, so
/// that the same cells are chosen, ties included. (Unit length does not matter here.)
fn embedding(height: usize, width: usize, dim: usize, seed: u64) -> EmbeddingMap {
    let mut state = seed;
    let data = (0..height * width * dim)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % 9) as f32 / 8.0 - 0.5
        })
        .collect();
    EmbeddingMap { height, width, dim, stride: 4, data }
}

/// The whole context of a video, unbounded, and the direct computation.
struct Dense {
    config: PropagationConfig,
    frames: Vec<(EmbeddingMap, Vec<Vec<f64>>)>,
}

impl Dense {
    fn step(&mut self, target: &EmbeddingMap) -> Vec<Vec<f64>> {
        let n = self.frames.len();
        let first_recent = n.saturating_sub(self.config.context_frames).max(1);
        let order: Vec<usize> = std::iter::once(0).chain((first_recent..n).rev()).collect();
        let (h, w, dim) = (target.height, target.width, target.dim);
        let vector = |map: &EmbeddingMap, cell: usize| map.data[cell * dim..][..dim].to_vec();
        let mut labels = Vec::new();
        for cell in 0..h * w {
            let mut candidates = Vec::new();
            for &frame in &order {
                for source in 0..h * w {
                    let near = (cell / w).abs_diff(source / w) <= self.config.radius
                        && (cell % w).abs_diff(source % w) <= self.config.radius;
                    if near {
                        let a = vector(target, cell);
                        let b = vector(&self.frames[frame].0, source);
                        let dot: f64 =
                            a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        candidates.push((dot, frame, source));
                    }
                }
            }
            // A stable sort: ties stay in order of frame, row and column.
            candidates.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
            candidates.truncate(self.config.topk);
            let weights: Vec<f64> = candidates
                .iter()
                .map(|c| (c.0 / f64::from(self.config.temperature)).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            let channels = self.frames[0].1[0].len();
            let mut label = vec![0.0; channels];
            for (weight, (_, frame, source)) in weights.iter().zip(&candidates) {
                for (sum, value) in label.iter_mut().zip(&self.frames[*frame].1[*source]) {
                    *sum += weight / total * value;
                }
            }
            labels.push(label);
        }
        self.frames.push((target.clone(), labels.clone()));
        labels
    }
}

fn mask(width: u32, height: u32, instances: u8, seed: u64) -> LabelMap {
    let mut map = LabelMap::background(width, height);
    for (i, id) in map.data.iter_mut().enumerate() {
        *id = ((i as u64).wrapping_mul(seed | 1) >> 3) as u8 % (instances + 1);
    }
    map.data[0] = 1;
    map
}

/// Soft labels of the latest frame, `[cells, channels]`.
pub(crate) fn latest_labels(propagator: &Propagator) -> Vec<f32> {
    propagator.state.as_ref().unwrap().memory.frame(1).labels.clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn soft_labels_are_those_of_the_dense_computation(
        (height, width, dim) in (1..8usize, 1..40usize, 1..7usize),
        (radius, context_frames, topk) in (0..50usize, 1..4usize, 1..8usize),
        (steps, instances) in (1..6u64, 1..5u8),
        seed: u64,
    ) {
        let radius = if radius > 20 { radius * 100 } else { radius };
        let config = PropagationConfig { context_frames, radius, topk, ..Default::default() };
        let mut propagator = Propagator::new(config.clone());
        let first = embedding(height, width, dim, seed);
        propagator.start(&first, &mask(width as u32 * 3, height as u32 * 5, instances, seed)).unwrap();
        let state = propagator.state.as_ref().unwrap();
        let channels = state.ids.len() + 1;
        let labels = state.memory.frame(0).labels.chunks(channels)
            .map(|l| l.iter().map(|&v| f64::from(v)).collect()).collect();
        let mut dense = Dense { config, frames: vec![(first, labels)] };
        let mut out = MaskMap::default();
        for i in 1..=steps {
            // A frame that comes twice makes ties between frames.
            let target = embedding(height, width, dim, seed.wrapping_add(i / 2));
            propagator.step(&target, 7, 5, &mut out).unwrap();
            let expected = dense.step(&target);
            for (got, expected) in latest_labels(&propagator).chunks(channels).zip(&expected) {
                for (got, expected) in got.iter().zip(expected) {
                    prop_assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} {expected}");
                }
            }
            prop_assert_eq!(out.labels.len(), 35);
            prop_assert_eq!(out.instances.len(), channels - 1);
        }
    }
}

#[test]
fn a_moving_square_is_followed() {
    // Every cell of the scene has its own direction; the square moves a cell per frame.
    let (h, w, dim) = (12, 20, 32);
    let unit = |seed: u64| -> Vec<f32> {
        let v = embedding(1, 1, dim, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).data;
        let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
        v.iter().map(|x| x / norm).collect()
    };
    let frame = |t: usize| {
        let mut data = Vec::new();
        for y in 0..h {
            for x in 0..w {
                let on = (4..8).contains(&y) && (2 + t..6 + t).contains(&x);
                data.extend(unit(if on {
                    1000 + (y * w + x - t) as u64
                } else {
                    (y * w + x) as u64
                }));
            }
        }
        EmbeddingMap { height: h, width: w, dim, stride: 8, data }
    };
    let mut first = LabelMap::background(160, 96);
    for y in 32..64 {
        first.data[y * 160 + 16..y * 160 + 48].fill(9);
    }
    let mut propagator = Propagator::new(PropagationConfig::default());
    propagator.start(&frame(0), &first).unwrap();
    let mut out = MaskMap::default();
    for t in 1..12 {
        propagator.step(&frame(t), 160, 96, &mut out).unwrap();
        let instance = out.instances[0];
        assert_eq!(instance.id, 9);
        let [x, y, width, height] = instance.bbox;
        assert!(x.abs_diff(16 + 8 * t as u32) <= 2 && y.abs_diff(32) <= 2, "{t} {instance:?}");
        assert!(width.abs_diff(32) <= 4 && height.abs_diff(32) <= 4, "{t} {instance:?}");
        assert!(instance.confidence > 0.8, "{t} {instance:?}");
    }
}

#[test]
fn memory_does_not_grow() {
    let mut propagator = Propagator::new(PropagationConfig::default());
    assert_eq!(propagator.memory_bytes(), 0);
    let first = embedding(9, 13, 8, 1);
    propagator.start(&first, &mask(104, 72, 3, 5)).unwrap();
    let mut out = MaskMap::default();
    propagator.step(&embedding(9, 13, 8, 2), 104, 72, &mut out).unwrap();
    let (bytes, labels) = (propagator.memory_bytes(), out.labels.as_ptr());
    assert!(bytes > 9 * 9 * 13 * 8 * 4);
    for i in 0..100 {
        propagator.step(&embedding(9, 13, 8, i), 104, 72, &mut out).unwrap();
        assert_eq!(propagator.memory_bytes(), bytes);
        assert_eq!(out.labels.as_ptr(), labels);
    }
}

#[test]
fn all_254_instances_are_carried() {
    let (h, w) = (16, 16);
    let first = embedding(h, w, 16, 3);
    let mut map = LabelMap::background(16, 16);
    map.data.iter_mut().enumerate().for_each(|(i, id)| *id = (i % 255) as u8);
    let mut propagator = Propagator::new(PropagationConfig { topk: 1, ..Default::default() });
    propagator.start(&first, &map).unwrap();
    let mut out = MaskMap::default();
    propagator.step(&first, 16, 16, &mut out).unwrap();
    assert_eq!(out.instances.len(), 254);
    assert!(out.instances.iter().map(|i| i.id).eq(1..=254));
}

#[test]
fn cells_without_comparable_scores_become_background() {
    let mut map = embedding(2, 2, 4, 3);
    let mut propagator = Propagator::new(PropagationConfig::default());
    propagator.start(&map, &mask(8, 8, 1, 9)).unwrap();
    map.data.fill(f32::NAN);
    let mut out = MaskMap::default();
    propagator.step(&map, 8, 8, &mut out).unwrap();
    assert!(out.labels.iter().all(|&id| id == 0));
    assert_eq!(out.instances[0].area, 0);
}

#[test]
fn wrong_use_is_refused_with_a_reason() {
    let map = embedding(2, 3, 4, 1);
    let mut out = MaskMap::default();
    let mut propagator = Propagator::new(PropagationConfig::default());
    let error = propagator.step(&map, 8, 8, &mut out).unwrap_err();
    assert!(matches!(error, PropagateError::NotStarted));
    let error = propagator.start(&map, &LabelMap::background(4, 4)).unwrap_err();
    assert!(matches!(error, PropagateError::EmptyMask));
    let short = LabelMap { width: 4, height: 4, data: vec![1; 15] };
    assert!(matches!(propagator.start(&map, &short).unwrap_err(), PropagateError::Mask { .. }));
    let torn = EmbeddingMap { height: 3, ..map.clone() };
    let error = propagator.start(&torn, &mask(4, 4, 1, 1)).unwrap_err();
    assert!(error.to_string().contains("24 values") && error.to_string().contains("3x3x4"));
    propagator.start(&map, &mask(4, 4, 1, 1)).unwrap();
    let error = propagator.step(&embedding(3, 3, 4, 1), 8, 8, &mut out).unwrap_err();
    assert!(error.to_string().contains("(2, 3, 4, 4)"), "{error}");
    for config in [
        PropagationConfig { topk: 0, ..Default::default() },
        PropagationConfig { temperature: f32::NAN, ..Default::default() },
        PropagationConfig { context_frames: 1000, ..Default::default() },
    ] {
        let error = Propagator::new(config).start(&map, &mask(4, 4, 1, 1)).unwrap_err();
        assert!(matches!(error, PropagateError::Setting { .. }));
    }
}
