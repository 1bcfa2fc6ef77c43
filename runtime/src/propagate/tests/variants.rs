//! Variants A and C against direct computations in f64, one step at a time, written from the
//! description of the protocols.

use super::*;

/// What a step sees: the context frames with their soft labels, `[cells][channels]`.
struct Context<'a> {
    /// All frames so far, from the first.
    frames: &'a [(EmbeddingMap, Vec<Vec<f64>>)],
    /// Latest frames beside the first one.
    recent: usize,
}

impl Context<'_> {
    /// The first frame, then the latest from the newest on; before the start stands the first.
    fn list(&self) -> Vec<&(EmbeddingMap, Vec<Vec<f64>>)> {
        let n = self.frames.len();
        let latest = (1..=self.recent).map(|age| n.saturating_sub(age));
        std::iter::once(0).chain(latest).map(|i| &self.frames[i]).collect()
    }
}

fn dot(a: &EmbeddingMap, cell: usize, b: &EmbeddingMap, source: usize) -> f64 {
    let dim = a.dim;
    let (a, b) = (&a.data[cell * dim..][..dim], &b.data[source * dim..][..dim]);
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Highest first; ties in the order given.
fn best<T: Copy>(mut candidates: Vec<(f64, T)>, k: usize) -> Vec<(f64, T)> {
    candidates.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
    candidates.truncate(k);
    candidates
}

/// Variant A. Also the largest factor by which scaling enlarged what rounding did.
fn variant_a(
    target: &EmbeddingMap,
    context: &Context<'_>,
    config: &PropagationConfig,
) -> (Vec<Vec<f64>>, f64) {
    let (h, w, channels) = (target.height, target.width, context.frames[0].1[0].len());
    let temperature = f64::from(config.temperature);
    let list = context.list();
    let mut labels = vec![vec![0.0; channels]; h * w];
    for (cell, label) in labels.iter_mut().enumerate() {
        for (map, source_labels) in &list {
            let in_window = |source: &usize| {
                (cell / w).abs_diff(source / w) <= config.radius
                    && (cell % w).abs_diff(source % w) <= config.radius
            };
            let scores: Vec<(f64, usize)> = (0..h * w)
                .filter(in_window)
                .map(|source| (dot(target, cell, map, source) / temperature, source))
                .collect();
            let softmax: f64 = scores.iter().map(|s| s.0.exp()).sum();
            for (score, source) in best(scores, config.topk) {
                for (sum, value) in label.iter_mut().zip(&source_labels[source]) {
                    *sum += score.exp() / softmax * value / list.len() as f64;
                }
            }
        }
    }
    let mut enlarged = 1f64;
    for channel in 0..channels {
        let values = || labels.iter().map(|label| label[channel]);
        let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
        if high - low > 1e-6 * high {
            enlarged = enlarged.max(high / (high - low));
            for label in &mut labels {
                label[channel] = (label[channel] - low) / (high - low);
            }
        }
    }
    (labels, enlarged)
}

/// Variant C.
fn variant_c(
    target: &EmbeddingMap,
    context: &Context<'_>,
    config: &PropagationConfig,
) -> Vec<Vec<f64>> {
    let (h, w, channels) = (target.height, target.width, context.frames[0].1[0].len());
    let list = context.list();
    let label = |cell: usize| {
        let mut scores = Vec::new();
        for (i, (map, _)) in list.iter().enumerate() {
            for source in 0..h * w {
                let (dy, dx) = ((cell / w).abs_diff(source / w), (cell % w).abs_diff(source % w));
                if i == 0 || ((dy * dy + dx * dx) as f64).sqrt() < config.radius as f64 {
                    scores.push((dot(target, cell, map, source), (i, source)));
                }
            }
        }
        let kept = best(scores, config.topk);
        let weight = |score: f64| (score / f64::from(config.temperature)).exp();
        let total: f64 = kept.iter().map(|k| weight(k.0)).sum();
        let mut label = vec![0.0; channels];
        for (score, (i, source)) in kept {
            for (sum, value) in label.iter_mut().zip(&list[i].1[source]) {
                *sum += weight(score) / total * value;
            }
        }
        label
    };
    (0..h * w).map(label).collect()
}

/// Bilinear resizing with pixel centres at halves and edges clamped.
fn bilinear(plane: &[f64], (h, w): (usize, usize), (to_h, to_w): (usize, usize)) -> Vec<f64> {
    let place = |i: usize, from: usize, to: usize| {
        let p = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, from as f64 - 1.0);
        (p as usize, (p as usize + 1).min(from - 1), p.fract())
    };
    let mut out = Vec::new();
    for y in 0..to_h {
        let (y0, y1, v) = place(y, h, to_h);
        for x in 0..to_w {
            let (x0, x1, u) = place(x, w, to_w);
            let row = |y: usize| plane[y * w + x0] * (1.0 - u) + plane[y * w + x1] * u;
            out.push(row(y0) * (1.0 - v) + row(y1) * v);
        }
    }
    out
}

/// Whether every pixel shows a channel with the highest upsampled label, up to rounding.
fn masks_fit(
    out: &MaskMap,
    labels: &[Vec<f64>],
    grid: (usize, usize),
    network: (usize, usize),
    ids: &[u8],
) -> bool {
    let planes: Vec<Vec<f64>> = (0..labels[0].len())
        .map(|c| bilinear(&labels.iter().map(|l| l[c]).collect::<Vec<_>>(), grid, network))
        .collect();
    let (w, h) = (out.width as usize, out.height as usize);
    out.labels.iter().enumerate().all(|(i, &id)| {
        let nearest = |i: usize, to: usize, from: usize| (2 * i + 1) * from / (2 * to);
        let at = nearest(i / w, h, network.0) * network.1 + nearest(i % w, w, network.1);
        let channel = if id == 0 { 0 } else { 1 + ids.iter().position(|&i| i == id).unwrap() };
        planes.iter().all(|plane| plane[at] <= planes[channel][at] + 1e-4)
    })
}

fn wide(labels: &[f32], channels: usize) -> Vec<Vec<f64>> {
    labels.chunks(channels).map(|l| l.iter().map(|&v| f64::from(v)).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn labels_and_masks_are_those_of_the_description(
        is_a: bool,
        (height, width, dim) in (1..8usize, 1..40usize, 1..7usize),
        (radius, context_frames, topk) in (0..50usize, 0..5usize, 1..8usize),
        (steps, instances) in (1..7u64, 1..5u8),
        sharp: bool,
        seed: u64,
    ) {
        let preset = if is_a { PropagationConfig::variant_a() } else { PropagationConfig::variant_c() };
        let radius = if radius > 20 { preset.radius } else { radius };
        let temperature = if sharp { 0.01 } else { preset.temperature };
        let config = PropagationConfig { context_frames, radius, topk, temperature, ..preset };
        let mut propagator = Propagator::new(config.clone());
        let first = embedding(height, width, dim, seed);
        let (grid, network) = ((height, width), (height * first.stride, width * first.stride));
        let mask = mask(width as u32 * 3, height as u32 * 5, instances, seed);
        propagator.start(&first, &mask).unwrap();
        let state = propagator.state.as_ref().unwrap();
        let (ids, channels) = (state.ids.clone(), state.ids.len() + 1);
        let labels = wide(&state.memory.frame(0).labels, channels);

        // The first labels: planes of 0 and 1 at the network's size, resized bilinearly.
        let resized = mask.resized_nearest(network.1 as u32, network.0 as u32);
        for (channel, &id) in std::iter::once(&0).chain(&ids).enumerate() {
            let plane: Vec<f64> =
                resized.data.iter().map(|&v| f64::from(u8::from(v == id))).collect();
            let plane = bilinear(&plane, network, grid);
            prop_assert!(plane.iter().zip(&labels).all(|(p, l)| (p - l[channel]).abs() < 1e-6));
        }

        let mut frames = vec![(first, labels)];
        let mut out = MaskMap::default();
        for i in 1..=steps {
            // A frame that comes twice makes ties between frames.
            let target = embedding(height, width, dim, seed.wrapping_add(i / 2));
            propagator.step(&target, 17, 11, &mut out).unwrap();
            let context = Context { frames: &frames, recent: context_frames };
            let (expected, enlarged) = if is_a {
                variant_a(&target, &context, &config)
            } else {
                (variant_c(&target, &context, &config), 1.0)
            };
            let state = propagator.state.as_ref().unwrap();
            let got = if context_frames > 0 {
                &state.memory.frame(1).labels
            } else {
                &state.memory.current.labels
            };
            let got = wide(got, channels);
            for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
                prop_assert!((got - expected).abs() < 2e-5 * enlarged, "{got} {expected} {enlarged}");
            }
            let network = if is_a { network } else { (11, 17) };
            prop_assert!(masks_fit(&out, &got, grid, network, &ids));
            frames.push((target, got));
        }
    }
}

#[test]
fn every_variant_follows_a_moving_square_within_constant_memory() {
    // Every cell of the scene has its own direction; the square moves a cell per frame.
    let (h, w, dim) = (12, 20, 32);
    let unit = |seed: u64| -> Vec<f32> {
        let v = embedding(1, 1, dim, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).data;
        let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
        v.iter().map(|x| x / norm).collect()
    };
    let frame = |t: usize| {
        let mut data = Vec::new();
        for cell in 0..h * w {
            let (y, x) = (cell / w, cell % w);
            let on = (4..8).contains(&y) && (2 + t..6 + t).contains(&x);
            data.extend(unit(if on { 1000 + (cell - t) as u64 } else { cell as u64 }));
        }
        EmbeddingMap { height: h, width: w, dim, stride: 8, data }
    };
    let mut first = LabelMap::background(160, 96);
    for y in 32..64 {
        first.data[y * 160 + 16..y * 160 + 48].fill(9);
    }
    for protocol in [Protocol::TimeCycle, Protocol::Dino, Protocol::Crw] {
        let mut propagator = Propagator::new(PropagationConfig::of(protocol));
        propagator.start(&frame(0), &first).unwrap();
        let mut out = MaskMap::default();
        let mut bytes = 0;
        for t in 1..12 {
            propagator.step(&frame(t), 160, 96, &mut out).unwrap();
            let (mut both, mut either) = (0, 0);
            for (i, &id) in out.labels.iter().enumerate() {
                let (y, x) = (i / 160, i % 160);
                let on = (32..64).contains(&y) && (16 + 8 * t..48 + 8 * t).contains(&x);
                both += u32::from(on && id == 9);
                either += u32::from(on || id == 9);
            }
            assert!(both * 10 > either * 8, "{protocol:?} {t}: {both} of {either}");
            assert!(t == 1 || propagator.memory_bytes() == bytes);
            bytes = propagator.memory_bytes();
        }
    }
}

#[test]
fn cells_without_comparable_scores_become_background_in_every_variant() {
    for protocol in [Protocol::TimeCycle, Protocol::Dino, Protocol::Crw] {
        let mut map = embedding(2, 2, 4, 3);
        let mut propagator = Propagator::new(PropagationConfig::of(protocol));
        propagator.start(&map, &mask(8, 8, 1, 9)).unwrap();
        map.data.fill(f32::NAN);
        let mut out = MaskMap::default();
        propagator.step(&map, 8, 8, &mut out).unwrap();
        assert!(out.labels.iter().all(|&id| id == 0), "{protocol:?}");
    }
}
