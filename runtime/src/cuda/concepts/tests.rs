//! The stage against the CPU.

use bytemuck::Pod;
use conceptseg_tensorrt::cuda::Graph;
use proptest::prelude::*;

use super::*;
use crate::concepts::ConceptLabeler;
use crate::concepts::kmeans::{Clusters, dot};
use crate::cuda::testing::{TestGpu, gpus};
use crate::embed::EmbeddingMap;
use crate::frame::{FrameView, Normalization, Preprocessor};
use crate::testdata;
use crate::upsample::Upsampler;

/// Numbers in -0.5..0.5.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(step).collect()
}

fn unit_rows(mut rows: Vec<f32>, dim: usize) -> Vec<f32> {
    for row in rows.chunks_exact_mut(dim) {
        let length = dot(row, row).sqrt().max(1e-12);
        for v in row {
            *v /= length;
        }
    }
    rows
}

/// Areas of a few directions with soft borders, and a little noise, as a network gives them.
fn picture(size: MapSize, seed: u64) -> Vec<f32> {
    let MapSize { height, width, dim } = size;
    let directions = unit_rows(noise(6 * dim, seed), dim);
    let mut data = noise(size.cells() * dim, seed ^ 0x55);
    for (cell, values) in data.chunks_exact_mut(dim).enumerate() {
        let (y, x) = ((cell / width) as f32 / height as f32, (cell % width) as f32 / width as f32);
        for v in &mut *values {
            *v *= 0.1;
        }
        for (i, direction) in directions.chunks_exact(dim).enumerate() {
            let phase = i as f32 * 1.7 + (seed % 97) as f32;
            let weight = ((x * 5.0 + phase).sin() + (y * 4.0 - phase).cos()).max(0.0).powi(3);
            values.iter_mut().zip(direction).for_each(|(v, d)| *v += weight * d);
        }
    }
    unit_rows(data, dim)
}

fn stage(
    gpu: &TestGpu,
    codebook: &Codebook,
    config: &SegmentationConfig,
    map: MapSize,
    frame: (usize, usize),
) -> ConceptStage {
    let mut stage = ConceptStage::new(&gpu.kernels, &gpu.stream, codebook, config).unwrap();
    assert!(stage.prepare(&gpu.stream, map, frame).unwrap());
    assert!(!stage.prepare(&gpu.stream, map, frame).unwrap());
    stage
}

fn upload(gpu: &TestGpu, values: &[f32]) -> DeviceBuffer<f32> {
    let buffer = DeviceBuffer::new(gpu.stream.context(), values.len()).unwrap();
    buffer.write(&gpu.stream, values).unwrap();
    buffer
}

fn download<T: Pod>(gpu: &TestGpu, buffer: &DeviceBuffer<T>) -> Vec<T> {
    let mut values = vec![T::zeroed(); buffer.len()];
    buffer.read(&gpu.stream, &mut values).unwrap();
    values
}

fn random_codebook(count: usize, dim: usize) -> Codebook {
    Codebook::new(count, dim, unit_rows(noise(count * dim, 99), dim)).unwrap()
}

#[test]
fn clusters_are_those_of_the_cpu() {
    for gpu in gpus() {
        proptest!(ProptestConfig::with_cases(24), |(
            (height, width) in (1_usize..16, 1_usize..30),
            dim in prop_oneof![1_usize..12, Just(64), Just(256)],
            grid in 1_usize..16,
            seed: u64,
        )| {
            let map = MapSize { height, width, dim };
            let data = picture(map, seed);
            // One round: further ones would carry a label that rounding changed to others.
            let config = SegmentationConfig { grid, iterations: 1 };
            let stage = stage(&gpu, &random_codebook(3, dim), &config, map, (8, 8));
            let p = stage.prepared.as_ref().unwrap();
            let input = upload(&gpu, &data);
            // SAFETY: stage and input live until the stream is done.
            unsafe { stage.cluster(&gpu.stream, p, &input).unwrap() };
            let labels = download(&gpu, &p.labels);
            let mut clusters = Clusters::default();
            clusters.run(&data, (height, width, dim), grid, 1);
            prop_assert_eq!(p.clusters, clusters.count());
            let all: Vec<u8> = (0..clusters.count() as u8).collect();
            let mut scores = Vec::new();
            clusters.scores(&all, &mut scores);
            let cells = map.cells();
            for (cell, (got, want)) in labels.iter().zip(clusters.labels()).enumerate() {
                let score = |k: u8| scores[usize::from(k) * cells + cell];
                prop_assert!((score(*got) - score(*want)).abs() < 1e-5, "cell {cell}: {got} {want}");
            }
            if labels == clusters.labels() {
                for (got, want) in download(&gpu, &p.prototypes).iter().zip(&clusters.prototypes) {
                    prop_assert!((got - want).abs() < 1e-5, "{got} {want}");
                }
                let present = download(&gpu, &p.present);
                for (k, present) in present.iter().enumerate() {
                    let cells = labels.iter().filter(|label| usize::from(**label) == k).count();
                    prop_assert_eq!(*present as usize, cells);
                }
            }
        });
    }
}

#[test]
fn rounds_end_as_on_the_cpu() {
    let map = MapSize { height: 17, width: 33, dim: 16 };
    for (gpu, seed) in gpus().iter().flat_map(|gpu| (0..4).map(move |seed| (gpu, seed))) {
        let data = picture(map, seed);
        let config = SegmentationConfig { grid: 3, iterations: 60 };
        let stage = stage(gpu, &random_codebook(3, 16), &config, map, (8, 8));
        let p = stage.prepared.as_ref().unwrap();
        let input = upload(gpu, &data);
        let mut clusters = Clusters::default();
        clusters.run(&data, (17, 33, 16), 3, 60);
        // A second frame begins anew.
        for _ in 0..2 {
            // SAFETY: stage and input live until the stream is done.
            unsafe { stage.cluster(&gpu.stream, p, &input).unwrap() };
            assert_eq!(download(gpu, &p.labels), clusters.labels());
            assert_eq!(download(gpu, &p.changed).last(), Some(&0), "60 rounds are enough");
        }
    }
}

#[test]
fn nearest_concepts_and_ties_are_those_of_the_cpu() {
    let map = MapSize { height: 9, width: 12, dim: 24 };
    for (gpu, count) in gpus().iter().flat_map(|gpu| [1, 66, 512, 1000].map(|count| (gpu, count))) {
        // The second half of the concepts repeats the first.
        let mut vectors = unit_rows(noise(count * 24, 5), 24);
        vectors.copy_within(..count / 2 * 24, count / 2 * 24);
        let codebook = Codebook::new(count, 24, vectors).unwrap();
        let config = SegmentationConfig { grid: 6, iterations: 2 };
        let stage = stage(gpu, &codebook, &config, map, (8, 8));
        let p = stage.prepared.as_ref().unwrap();
        let input = upload(gpu, &picture(map, 11));
        // SAFETY: stage and input live until the stream is done.
        unsafe {
            stage.cluster(&gpu.stream, p, &input).unwrap();
            stage.find_concepts(&gpu.stream, p).unwrap();
        }
        let table = download(gpu, &p.table);
        let prototypes = download(gpu, &p.prototypes);
        let present: Vec<usize> = download(gpu, &p.present)
            .iter()
            .enumerate()
            .filter_map(|(k, &members)| (members > 0).then_some(k))
            .collect();
        assert_eq!(table[0] as usize, present.len());
        for (i, &k) in present.iter().enumerate() {
            let prototype = &prototypes[k * 24..][..24];
            let cosines = codebook.vectors.chunks_exact(24).map(|row| dot(prototype, row));
            let best = cosines.clone().fold(f32::NEG_INFINITY, f32::max);
            let concept = table[1 + TABLE_COLUMN + i] as usize;
            assert_eq!(table[1 + i] as usize, k);
            assert!(cosines.clone().nth(concept).unwrap() > best - 1e-6);
            assert!(count < 2 || concept < count.div_ceil(2), "of equal ones the lowest");
            let similarity = f64::from(table[1 + 2 * TABLE_COLUMN + i]) / 8_388_608.0 - 1.0;
            assert!((similarity - f64::from(best)).abs() < 1e-6);
        }
    }
}

#[test]
fn pixels_are_those_of_the_upsampler() {
    for gpu in gpus() {
        proptest!(ProptestConfig::with_cases(24), |(
            (height, width) in (1_usize..10, 1_usize..12),
            frame in (1_usize..90, 1_usize..70),
            // Without structure all of many clusters may win in a quad.
            (structured, grid) in (any::<bool>(), prop_oneof![1_usize..6, Just(15)]),
            seed: u64,
        )| {
            let map = MapSize { height, width, dim: 5 };
            let data = if structured {
                picture(map, seed)
            } else {
                unit_rows(noise(map.cells() * 5, seed), 5)
            };
            let config = SegmentationConfig { grid, iterations: 2 };
            let stage = stage(&gpu, &random_codebook(7, 5), &config, map, frame);
            let p = stage.prepared.as_ref().unwrap();
            let input = upload(&gpu, &data);
            // SAFETY: stage and input live until the stream is done.
            unsafe { stage.enqueue(&gpu.stream, &input).unwrap() };
            let listed = download(&gpu, &p.table)[0] as usize;
            let scores = download(&gpu, &p.scores);
            let mut want = Vec::new();
            let scores = &scores[..listed * map.cells()];
            let size = (frame.1, frame.0);
            Upsampler::new().argmax(scores, (height, width), None, size, &mut want);
            let got = download(&gpu, &p.pixels);
            let equal = got.iter().zip(&want).filter(|(g, w)| g == w).count();
            // A real GPU rounds products and sums at once.
            prop_assert!(equal * 1000 >= want.len() * 999, "{equal} of {}", want.len());
        });
    }
}

/// Share of equal pixels, and whether the segments correspond.
fn compare(gpu: &TestGpu, map: MapSize, frame: (usize, usize), data: Vec<f32>) {
    let codebook = random_codebook(128, map.dim);
    let config = SegmentationConfig::default();
    let stage = stage(gpu, &codebook, &config, map, frame);
    let input = upload(gpu, &data);
    // SAFETY: stage and input live until the stream is done.
    unsafe { stage.enqueue(&gpu.stream, &input).unwrap() };
    gpu.stream.synchronize().unwrap();
    let mut got = ConceptMap::default();
    stage.finish(&gpu.stream, &mut got).unwrap();

    let MapSize { height, width, dim } = map;
    let embedding = EmbeddingMap { height, width, dim, stride: 8, data };
    let mut want = ConceptMap::default();
    let (w, h) = (frame.0 as u32, frame.1 as u32);
    ConceptLabeler::new().label(&embedding, &codebook, &config, w, h, &mut want).unwrap();
    let equal = got.concepts.iter().zip(&want.concepts).filter(|(g, w)| g == w).count();
    println!("{}: {equal} of {} pixels have the concept of the CPU", gpu.name, w * h);
    assert_eq!((got.width, got.height), (w, h));
    assert!(equal * 1000 >= want.concepts.len() * 999, "{}: {equal} of {}", gpu.name, w * h);
    if got.concepts == want.concepts {
        assert_eq!(got.segments, want.segments);
        assert_eq!(got.segment_list.len(), want.segment_list.len());
        for (got, want) in got.segment_list.iter().zip(&want.segment_list) {
            assert_eq!((got.concept, got.area, got.bbox), (want.concept, want.area, want.bbox));
            assert!((got.similarity - want.similarity).abs() < 1e-5, "{got:?} {want:?}");
        }
    }
    // The same again as a graph, which must begin anew each time.
    // SAFETY: stage and input live until the stream is done.
    let graph = Graph::capture(&gpu.stream, || unsafe { stage.enqueue(&gpu.stream, &input) });
    let graph = graph.unwrap();
    for _ in 0..2 {
        // SAFETY: as above.
        unsafe { graph.launch(&gpu.stream).unwrap() };
        gpu.stream.synchronize().unwrap();
        let mut again = ConceptMap::default();
        stage.finish(&gpu.stream, &mut again).unwrap();
        assert_eq!(again, got);
    }
}

#[test]
fn maps_are_those_of_the_cpu() {
    for gpu in gpus() {
        for (map, frame) in [
            (MapSize { height: 30, width: 52, dim: 32 }, (427, 240)),
            (MapSize { height: 13, width: 8, dim: 64 }, (61, 105)),
            (MapSize { height: 40, width: 61, dim: 7 }, (33, 20)),
        ] {
            compare(&gpu, map, frame, picture(map, 3));
        }
    }
}

/// Colours of the 2x2 pixels of a cell as its embedding: no network, but the shapes of a real frame.
fn colours(frame: &FrameView<'_>, map: MapSize) -> Vec<f32> {
    let normalization = Normalization { mean: [0.4; 3], std: [0.2; 3] };
    let (w, h) = (2 * map.width, 2 * map.height);
    let mut input = Vec::new();
    Preprocessor::new(normalization).run(frame, w as u32, h as u32, &mut input).unwrap();
    let mut data = Vec::new();
    for (y, x) in (0..map.height).flat_map(|y| (0..map.width).map(move |x| (y, x))) {
        for plane in input.chunks_exact(w * h) {
            let upper = (2 * y * w) + 2 * x;
            data.extend([plane[upper], plane[upper + 1], plane[upper + w], plane[upper + w + 1]]);
        }
    }
    unit_rows(data, map.dim)
}

#[test]
fn a_real_frame_gives_the_map_of_the_cpu() {
    let Some(path) = testdata::shared("data/davis/JPEGImages/480p/blackswan/00000.jpg") else {
        println!("skipped: no real frame");
        return;
    };
    let image = image::open(path).unwrap().into_rgb8();
    let (width, height) = image.dimensions();
    let frame = FrameView::rgb(width, height, image.as_raw()).unwrap();
    let map = MapSize { height: 60, width: 104, dim: 12 };
    let data = colours(&frame, map);
    for gpu in gpus() {
        compare(&gpu, map, (width as usize, height as usize), data.clone());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for gpu in gpus() {
        let new = |count, config: SegmentationConfig| {
            ConceptStage::new(&gpu.kernels, &gpu.stream, &random_codebook(count, 4), &config)
        };
        let config = SegmentationConfig::default();
        let grid = SegmentationConfig { grid: 16, ..config.clone() };
        assert!(new(3, grid).unwrap_err().to_string().contains("grid is 16"));
        assert!(matches!(new(4097, config.clone()), Err(CudaPathError::Limit { .. })));
        let mut stage = new(3, config).unwrap();
        let map = MapSize { height: 2, width: 2, dim: 5 };
        let error = stage.prepare(&gpu.stream, map, (8, 8)).unwrap_err();
        assert!(error.to_string().contains("5 dimensions"), "{error}");
        let map = MapSize { dim: 4, ..map };
        let error = stage.prepare(&gpu.stream, map, (16_385, 8)).unwrap_err();
        assert!(matches!(error, CudaPathError::Limit { value: 16_385, .. }));
        let input = upload(&gpu, &[0.0; 16]);
        // SAFETY: nothing is put into the stream.
        let refused = unsafe { stage.enqueue(&gpu.stream, &input) };
        assert!(matches!(refused, Err(CudaPathError::NotPrepared { .. })));
    }
}
