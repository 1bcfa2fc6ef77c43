//! The stage against the CPU's propagator, on every GPU there is; one of them is the CPU itself.

use conceptseg_tensorrt::cuda::Graph;
use proptest::prelude::*;

use super::super::testing::{TestGpu, gpus};
use super::*;
use crate::embed::EmbeddingMap;
use crate::labels::LabelMap;
use crate::propagate::{FirstLabels, Propagator, latest_labels};

/// Unit vectors that change smoothly over space and time: waves of random directions, and a little
/// noise, so that no two scores are equal.
fn scene(height: usize, width: usize, dim: usize, seed: u64, t: usize) -> EmbeddingMap {
    let random = |i: u64| {
        let mut x = (seed.wrapping_mul(31).wrapping_add(i)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x ^ (x >> 32)) % 65_536) as f32 / 32_768.0 - 1.0
    };
    let mut data = Vec::with_capacity(height * width * dim);
    for y in 0..height {
        for x in 0..width {
            let start = data.len();
            for d in 0..dim as u64 {
                let (a, b, c) = (random(4 * d), random(4 * d + 1), random(4 * d + 2));
                let wave =
                    a * x as f32 + b * y as f32 + 0.5 * c * t as f32 + 6.0 * random(4 * d + 3);
                let noise = random(((t * height + y) * width + x) as u64 * 512 + 4096 + d);
                data.push(wave.sin() + 0.02 * noise);
            }
            let length = data[start..].iter().map(|v| v * v).sum::<f32>().sqrt();
            data[start..].iter_mut().for_each(|v| *v /= length);
        }
    }
    EmbeddingMap { height, width, dim, stride: 8, data }
}

/// Whole eighths: scores are exact, and many of them equal.
fn tied(height: usize, width: usize, dim: usize, seed: u64) -> EmbeddingMap {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) % 5) as f32 / 8.0 - 0.25
    };
    let data = (0..height * width * dim).map(|_| next()).collect();
    EmbeddingMap { height, width, dim, stride: 4, data }
}

/// Discs of different sizes, some of which overlap.
fn discs(width: u32, height: u32, instances: u8) -> LabelMap {
    let mut map = LabelMap::background(width, height);
    for y in 0..height {
        for x in 0..width {
            for i in 0..instances {
                let place = (i as f32 + 0.7) / (f32::from(instances) + 0.4);
                let dx = (x as f32 - width as f32 * place) / width as f32;
                let dy = (y as f32 - height as f32 * (1.0 - 0.8 * place)) / height as f32;
                if dx * dx + dy * dy < 0.03 + 0.01 * f32::from(i % 2) {
                    map.data[(y * width + x) as usize] = 3 * i + 2;
                }
            }
        }
    }
    map
}

/// Both propagators, side by side.
struct Pair<'a> {
    gpu: &'a TestGpu,
    cpu: Propagator,
    stage: PropagationStage,
    embeddings: Arc<DeviceBuffer<f32>>,
    graph: Option<Graph>,
    out: (MaskMap, MaskMap),
    /// Pixels that differ, of all.
    different: (usize, usize),
}

fn grid(map: &EmbeddingMap) -> Grid {
    Grid { height: map.height, width: map.width, dim: map.dim, stride: map.stride }
}

impl<'a> Pair<'a> {
    fn start(
        gpu: &'a TestGpu,
        config: &PropagationConfig,
        map: &EmbeddingMap,
        mask: &LabelMap,
    ) -> Self {
        let mut cpu = Propagator::new(config.clone());
        cpu.start(map, mask).unwrap();
        let embeddings = Arc::new(DeviceBuffer::new(gpu.stream.context(), map.data.len()).unwrap());
        embeddings.write(&gpu.stream, &map.data).unwrap();
        let mut stage = PropagationStage::new(&gpu.kernels, config.clone()).unwrap();
        assert!(!stage.is_started());
        stage.start(&gpu.stream, grid(map), &embeddings, mask).unwrap();
        assert!(stage.is_started());
        let out = (MaskMap::default(), MaskMap::default());
        Self { gpu, cpu, stage, embeddings, graph: None, out, different: (0, 0) }
    }

    /// A frame, by a captured graph or by itself, compared.
    fn step(&mut self, map: &EmbeddingMap, frame: (u32, u32), with_graph: bool) {
        let stream = &self.gpu.stream;
        self.cpu.step(map, frame.0, frame.1, &mut self.out.0).unwrap();
        self.embeddings.write(stream, &map.data).unwrap();
        if with_graph {
            if self.stage.prepare(stream, grid(map), frame).unwrap() || self.graph.is_none() {
                // SAFETY: the graph is dropped before what it uses, and made anew with it.
                let work = || unsafe { self.stage.enqueue(stream, &self.embeddings) };
                self.graph = Some(Graph::capture(stream, work).unwrap());
            }
            self.stage.begin().unwrap();
            // SAFETY: as above.
            unsafe { self.graph.as_ref().unwrap().launch(stream).unwrap() };
            stream.synchronize().unwrap();
            self.stage.finish(&mut self.out.1).unwrap();
        } else {
            let out = &mut self.out.1;
            self.stage.step(stream, grid(map), &self.embeddings, frame, out).unwrap();
        }
        self.compare();
    }

    fn compare(&mut self) {
        let (cpu, gpu) = &self.out;
        assert_eq!((cpu.width, cpu.height), (gpu.width, gpu.height), "{}", self.gpu.name);
        assert_eq!(cpu.labels.len(), gpu.labels.len());
        let different = cpu.labels.iter().zip(&gpu.labels).filter(|(a, b)| a != b).count();
        self.different.0 += different;
        self.different.1 += cpu.labels.len();
        // What is said about the instances is true of the mask beside it.
        let mut told = gpu.clone();
        let mask = LabelMap { width: gpu.width, height: gpu.height, data: gpu.labels.clone() };
        told.set_given(&mask);
        let mut seen = gpu.instances.iter().filter(|i| i.area > 0);
        for expected in &told.instances {
            let found = seen.next().unwrap();
            assert_eq!(
                (found.id, found.area, found.bbox),
                (expected.id, expected.area, expected.bbox)
            );
        }
        assert!(seen.next().is_none());
        for (a, b) in cpu.instances.iter().zip(&gpu.instances) {
            assert_eq!(a.id, b.id);
            assert!(a.area.abs_diff(b.area) as usize <= different, "{a:?} {b:?}");
            if different == 0 {
                assert_eq!((a.area, a.bbox), (b.area, b.bbox));
                assert!((a.confidence - b.confidence).abs() < 1e-4, "{a:?} {b:?}");
            }
        }
    }

    /// The largest difference of two soft labels of the latest frame.
    fn soft_difference(&self) -> f32 {
        let state = self.stage.state.as_ref().unwrap();
        let mut soft = vec![0.0; state.soft.len()];
        state.soft.read(&self.gpu.stream, &mut soft).unwrap();
        let (cells, channels) = (state.grid.cells(), state.ids.len() + 1);
        let ring = self.stage.config.context_frames as u64 + 1;
        let slot = 1 + ((state.steps - 1) % ring) as usize;
        let planes = &soft[slot * channels * cells..][..channels * cells];
        let expected = latest_labels(&self.cpu);
        let pairs = expected
            .iter()
            .enumerate()
            .map(|(i, expected)| (planes[i % channels * cells + i / channels] - expected).abs());
        pairs.fold(0.0, f32::max)
    }

    fn check(&self) {
        let (different, all) = self.different;
        assert!(different * 1000 <= all, "{}: {different} of {all} pixels differ", self.gpu.name);
    }
}

fn config(context_frames: usize, radius: usize, topk: usize) -> PropagationConfig {
    PropagationConfig { context_frames, radius, topk, ..PropagationConfig::default() }
}

#[test]
fn masks_are_those_of_the_cpu_over_a_clip() {
    // More than one tile in both directions, odd sizes, more frames than the context holds, and more
    // instances than one; both tables of tiles, both first labels.
    let cases = [
        (config(7, 12, 5), 23, 37, 32, 1, (293, 181), FirstLabels::Area),
        (config(3, 6, 5), 35, 70, 16, 5, (561, 277), FirstLabels::Nearest),
        (config(2, 5, 9), 9, 33, 40, 3, (107, 31), FirstLabels::Area),
    ];
    for gpu in gpus() {
        for (config, height, width, dim, instances, frame, first_labels) in cases.clone() {
            let config = PropagationConfig { first_labels, ..config };
            let first = scene(height, width, dim, 5, 0);
            let mut pair = Pair::start(&gpu, &config, &first, &discs(frame.0, frame.1, instances));
            for t in 1..7 {
                pair.step(&scene(height, width, dim, 5, t), frame, false);
                let difference = pair.soft_difference();
                assert!(difference < 1e-4, "{}: frame {t}: {difference}", gpu.name);
            }
            pair.check();
            assert!(pair.out.1.instances.iter().any(|i| i.area > 0));
        }
    }
}

#[test]
fn equal_scores_are_taken_in_the_order_of_the_cpu() {
    for gpu in gpus() {
        let first = tied(19, 34, 4, 3);
        let mut pair = Pair::start(&gpu, &config(4, 7, 5), &first, &discs(136, 76, 4));
        for t in 1..8 {
            // A frame that comes twice makes ties between frames.
            pair.step(&tied(19, 34, 4, 3 + t / 2), (136, 76), false);
            let difference = pair.soft_difference();
            assert!(difference < 1e-5, "{}: frame {t}: {difference}", gpu.name);
        }
        pair.check();
    }
}

#[test]
fn one_graph_serves_all_frames_of_a_size() {
    for gpu in gpus() {
        let scene = |t| scene(12, 20, 32, 9, t);
        let mut pair = Pair::start(&gpu, &config(3, 12, 5), &scene(0), &discs(160, 96, 2));
        for t in 1..10 {
            pair.step(&scene(t), (160, 96), true);
        }
        let bytes = pair.stage.memory_bytes();
        // The frame changes its size, but not the grid.
        for t in 10..13 {
            pair.step(&scene(t), (157, 95), true);
        }
        pair.check();
        assert!(bytes > 5 * 12 * 20 * 32 * 4 && pair.stage.memory_bytes() < bytes);
    }
}

#[test]
fn an_instance_that_left_or_fills_the_view_is_treated_as_on_the_cpu() {
    for gpu in gpus() {
        // All cells alike: labels even out, until every channel is constant.
        let map = EmbeddingMap { height: 3, width: 5, dim: 1, stride: 4, data: vec![1.0; 15] };
        let mut pair = Pair::start(&gpu, &config(1, 40, 64), &map, &discs(20, 12, 2));
        for _ in 0..3 {
            pair.step(&map, (20, 12), false);
        }
        let mut mask = LabelMap::background(20, 12);
        mask.data.fill(200);
        let mut pair = Pair::start(&gpu, &config(0, 0, 1), &map, &mask);
        pair.step(&map, (9, 7), false);
        assert_eq!(pair.out.1.instances[0].bbox, [0, 0, 9, 7]);
        assert_eq!(pair.out.1.instances[0].confidence, 1.0);
        // What cannot be compared becomes background.
        let nothing = EmbeddingMap { data: vec![f32::NAN; 15], ..map };
        pair.step(&nothing, (9, 7), false);
        assert!(pair.out.1.labels.iter().all(|&id| id == 0));
        assert_eq!(pair.different.0, 0);
    }
}

#[test]
fn all_254_instances_are_carried() {
    for gpu in gpus() {
        let first = scene(16, 16, 16, 3, 0);
        let mut map = LabelMap::background(16, 16);
        map.data.iter_mut().enumerate().for_each(|(i, id)| *id = (i % 255) as u8);
        let mut pair = Pair::start(&gpu, &config(1, 12, 1), &first, &map);
        pair.step(&first, (16, 16), false);
        assert_eq!(pair.different.0, 0);
        assert!(pair.out.1.instances.iter().map(|i| i.id).eq(1..=254));
    }
}

#[test]
fn a_new_start_forgets_what_was_before() {
    for gpu in gpus() {
        let scene = |t| scene(6, 9, 8, 1, t);
        let mut pair = Pair::start(&gpu, &config(2, 3, 5), &scene(0), &discs(72, 48, 3));
        for t in 1..5 {
            pair.step(&scene(t), (72, 48), false);
        }
        let mask = discs(70, 50, 1);
        pair.cpu.start(&scene(4), &mask).unwrap();
        pair.stage.start(&gpu.stream, grid(&scene(4)), &pair.embeddings, &mask).unwrap();
        for t in 5..9 {
            pair.step(&scene(t), (72, 48), false);
        }
        pair.check();
        assert_eq!(pair.out.1.instances.len(), 1);
    }
}

#[test]
fn wrong_use_is_refused_with_a_reason() {
    for gpu in gpus() {
        let map = tied(2, 3, 4, 1);
        let buffer = DeviceBuffer::new(gpu.stream.context(), map.data.len()).unwrap();
        buffer.write(&gpu.stream, &map.data).unwrap();
        let new = |config| PropagationStage::new(&gpu.kernels, config);
        let error = new(PropagationConfig::variant_c()).unwrap_err().to_string();
        assert!(error.contains("not with Crw") && error.contains("on the CPU"), "{error}");
        let error = new(config(65, 12, 5)).unwrap_err();
        assert!(error.to_string().contains("context_frames is 65"), "{error}");
        let mut stage = new(config(2, 3, 5)).unwrap();
        let mut out = MaskMap::default();
        let (stream, size) = (&gpu.stream, grid(&map));
        let error = stage.step(stream, size, &buffer, (9, 9), &mut out).unwrap_err();
        let not_started = PropagateError::NotStarted.to_string();
        assert_eq!(error.to_string(), not_started);
        assert!(stage.mask().is_err() && stage.begin().is_err() && stage.memory_bytes() == 0);
        let error = stage.start(stream, size, &buffer, &LabelMap::background(4, 4)).unwrap_err();
        assert!(matches!(error, CudaPathError::Propagate(PropagateError::EmptyMask)));
        let torn = Grid { height: 3, ..size };
        let error = stage.start(stream, torn, &buffer, &discs(4, 4, 1)).unwrap_err();
        assert!(error.to_string().contains("24 values"), "{error}");
        let wide = Grid { height: 1, width: 1, dim: 257, ..size };
        let long = DeviceBuffer::new(stream.context(), 257).unwrap();
        let error = stage.start(stream, wide, &long, &discs(4, 4, 1)).unwrap_err();
        assert!(error.to_string().contains("is 257") && error.to_string().contains("at most 256"));
        stage.start(stream, size, &buffer, &discs(4, 4, 1)).unwrap();
        // SAFETY: nothing is put into the stream.
        let error = unsafe { stage.enqueue(stream, &buffer) }.unwrap_err();
        stream.synchronize().unwrap();
        assert!(matches!(error, CudaPathError::NotPrepared { .. }), "{error}");
        let other = Grid { height: 3, width: 2, ..size };
        let error = stage.step(stream, other, &buffer, (9, 9), &mut out).unwrap_err();
        assert!(error.to_string().contains("(2, 3, 4, 4) to (3, 2, 4, 4)"), "{error}");
        let error = stage.step(stream, size, &buffer, (0, 9), &mut out).unwrap_err();
        assert!(error.to_string().contains("masks of 0x9 pixels"), "{error}");
        stage.step(stream, size, &buffer, (9, 9), &mut out).unwrap();
        assert_eq!(out.labels.len(), 81);
    }
}

#[test]
fn a_real_clip_gets_the_masks_of_the_cpu() {
    use crate::backend::{BackendKind, BackendOptions};
    use crate::embed::{FrameEmbedder, InputSize, Model};
    use crate::frame::FrameView;

    let Some(root) = crate::testdata::shared("data/davis") else { return };
    let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/starter");
    let options = BackendOptions::new(BackendKind::Rten, 0);
    let Ok(model) = Model::open(bundle.as_ref(), &options) else {
        println!("skipped: no bundle in {bundle}");
        return;
    };
    let mut embedder = FrameEmbedder::new(model);
    let mut maps = Vec::new();
    for t in 0..6 {
        let path = root.join(format!("JPEGImages/480p/dog/{t:05}.jpg"));
        let frame = image::open(&path).unwrap().into_rgb8();
        let view = FrameView::rgb(frame.width(), frame.height(), frame.as_raw()).unwrap();
        embedder.prepare(&view, InputSize::ShortSide(192)).unwrap();
        maps.push(embedder.embed().unwrap().clone());
    }
    let mask = LabelMap::read_png(&root.join("Annotations/480p/dog/00000.png")).unwrap();
    let mask = mask.with_white_as_instance();
    for gpu in gpus() {
        let mut pair = Pair::start(&gpu, &PropagationConfig::default(), &maps[0], &mask);
        for map in &maps[1..] {
            pair.step(map, (mask.width, mask.height), false);
        }
        pair.check();
        assert!(pair.out.1.instances[0].area > 1000);
        println!("{}: {:?} pixels differ", gpu.name, pair.different);
    }
}

#[test]
fn any_small_clip_gets_the_masks_of_the_cpu() {
    // Before the cases: every GPU here is a library of its own.
    let gpus = gpus();
    proptest!(ProptestConfig::with_cases(24), |(
        (height, width, dim) in (1..20usize, 1..40usize, 1..9usize),
        (radius, context_frames, topk) in (0..50usize, 0..4usize, 1..14usize),
        (out_w, out_h, instances) in (1..90u32, 1..60u32, 1..6u8),
        exact: bool,
        seed in 0..1000u64,
    )| {
        let radius = if radius > 30 { radius * 1000 } else { radius };
        let map = |t: usize| {
            if exact {
                tied(height, width, dim, seed + t as u64 / 2)
            } else {
                scene(height, width, dim.max(3), seed, t)
            }
        };
        for gpu in &gpus {
            let mask = discs(out_w + 9, out_h + 9, instances);
            let mut pair = Pair::start(gpu, &config(context_frames, radius, topk), &map(0), &mask);
            for t in 1..5 {
                pair.step(&map(t), (out_w, out_h), t % 2 == 0);
            }
            // A single pixel may be all that is allowed to differ, and more than a thousandth.
            prop_assert!(pair.different.0 <= 1 + pair.different.1 / 1000, "{:?}", pair.different);
        }
    });
}
