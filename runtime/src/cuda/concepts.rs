//! Concept labelling on the GPU. Twin of [`ConceptLabeler`](crate::concepts::ConceptLabeler).
//!
//! The steps and the rules for ties are those of the CPU. Sums of features are added in another
//! order, so that a cell between two clusters, or a pixel between two scores, may fall to the other
//! side: concepts are equal on 99.9 % of the pixels of a frame and more.
#![allow(unsafe_code)] // Launches of kernels and asynchronous copies.

use std::sync::Arc;

use bytemuck::Pod;
use conceptseg_tensorrt::cuda::{Arg, DeviceBuffer, Function, Stream};

use super::embed::MapSize;
use super::merge::{MergeStage, TABLE_COLUMN};
use super::{GpuError, Kernels};
use crate::bundle::Codebook;
use crate::concepts::kmeans::start_clusters;
use crate::concepts::merge::MAX_SEGMENTS;
use crate::concepts::{ConceptMap, SegmentationConfig};
use crate::upsample;

/// Threads of a block.
const BLOCK: usize = 256;
/// Cells or clusters of a block, `KMEANS_ROWS` of the kernels.
const ROWS: usize = 32;
/// Channels of a place, `KMEANS_PLACE` of the kernels.
const PLACE: usize = 2;
/// Concepts of a block, `KMEANS_CONCEPTS` of the kernels.
const CONCEPTS: usize = 64;
/// Most concepts of a codebook.
const MAX_CONCEPTS: usize = 4096;
/// Most slices whose sums are added up, and fewest cells of one.
const SLICES: (usize, usize) = (64, 512);
/// Bytes of the list of a quad, `LABEL_LISTED` of the kernels and 1.
const QUAD: usize = 16;

/// Buffers for one size of maps and frames.
#[derive(Debug)]
struct Prepared {
    map: MapSize,
    frame: (usize, usize),
    clusters: usize,
    /// Cells of a slice, a multiple of [`BLOCK`].
    slice: usize,
    /// One over the length of each cell's feature.
    scales: DeviceBuffer<f32>,
    labels: DeviceBuffer<u8>,
    /// Whether the round before changed a label, `[rounds + 1]`.
    changed: DeviceBuffer<u32>,
    partial: DeviceBuffer<f32>,
    counts: DeviceBuffer<u32>,
    centroids: DeviceBuffer<f32>,
    /// Cells of each cluster when its centroid was computed.
    members: DeviceBuffer<u32>,
    prototypes: DeviceBuffer<f32>,
    /// Cells of each cluster in the end.
    present: DeviceBuffer<u32>,
    nearest_cosine: DeviceBuffer<f32>,
    nearest_concept: DeviceBuffer<i32>,
    table: DeviceBuffer<i32>,
    scores: DeviceBuffer<f32>,
    quads: DeviceBuffer<u8>,
    rows: DeviceBuffer<i32>,
    row_weights: DeviceBuffer<f32>,
    columns: DeviceBuffer<i32>,
    column_weights: DeviceBuffer<f32>,
    pixels: DeviceBuffer<u8>,
}

/// The kernels.
#[derive(Debug)]
struct Functions {
    start: Function,
    sums: Function,
    centroids: Function,
    assign: Function,
    nearest: Function,
    table: Function,
    scores: Function,
    quads: Function,
    pixels: Function,
}

/// Labels frames with concepts.
#[derive(Debug)]
pub(crate) struct ConceptStage {
    functions: Functions,
    config: SegmentationConfig,
    codebook: DeviceBuffer<f32>,
    concepts: usize,
    dim: usize,
    merge: MergeStage,
    prepared: Option<Prepared>,
}

impl ConceptStage {
    /// A stage with this codebook, which it uploads.
    ///
    /// # Errors
    /// [`GpuError`] when a setting or the codebook is beyond the limits, or memory is short.
    pub(crate) fn new(
        kernels: &Kernels,
        stream: &Arc<Stream>,
        codebook: &Codebook,
        config: &SegmentationConfig,
    ) -> Result<Self, GpuError> {
        GpuError::check("segmentation setting grid", config.grid, 15)?;
        GpuError::check("segmentation setting iterations", config.iterations, 1000)?;
        GpuError::check("concepts of the codebook", codebook.count, MAX_CONCEPTS)?;
        let vectors = DeviceBuffer::new(stream.context(), codebook.count * codebook.dim)?;
        vectors.write(stream, &codebook.vectors)?;
        Ok(Self {
            functions: Functions {
                start: kernels.function("kmeans_start")?,
                sums: kernels.function("kmeans_sums")?,
                centroids: kernels.function("kmeans_centroids")?,
                assign: kernels.function("kmeans_assign")?,
                nearest: kernels.function("concept_nearest")?,
                table: kernels.function("concept_table")?,
                scores: kernels.function("label_scores")?,
                quads: kernels.function("label_quads")?,
                pixels: kernels.function("label_pixels")?,
            },
            config: config.clone(),
            codebook: vectors,
            concepts: codebook.count,
            dim: codebook.dim,
            merge: MergeStage::new(kernels, MAX_SEGMENTS)?,
            prepared: None,
        })
    }

    /// Makes buffers and tables for maps of one size and frames of `frame` (width, height), unless
    /// they are there. Answers whether they were made: graphs that were captured before are void
    /// then. The stream must be idle.
    ///
    /// # Errors
    /// [`GpuError`] when a size is 0 or above the limits, embeddings and codebook do not fit
    /// together, or memory is short.
    pub(crate) fn prepare(
        &mut self,
        stream: &Arc<Stream>,
        map: MapSize,
        frame: (usize, usize),
    ) -> Result<bool, GpuError> {
        if self.prepared.as_ref().is_some_and(|p| (p.map, p.frame) == (map, frame)) {
            return Ok(false);
        }
        map.check()?;
        if map.dim != self.dim {
            let (embedding, codebook) = (map.dim, self.dim);
            return Err(GpuError::Codebook { embedding, codebook });
        }
        self.prepared = None;
        self.merge.prepare(stream, frame)?;
        self.prepared = Some(Prepared::new(stream, map, frame, &self.config, self.concepts)?);
        Ok(true)
    }

    /// Concept of each pixel of the frame, `[height, width]`.
    pub(crate) fn concept_map(&self) -> Result<&Arc<DeviceBuffer<u16>>, GpuError> {
        self.merge.concepts()
    }

    /// Segment of each pixel of the frame, `[height, width]`.
    pub(crate) fn segment_map(&self) -> Result<&Arc<DeviceBuffer<u16>>, GpuError> {
        self.merge.segments()
    }

    /// Puts all kernels for a map of embeddings, `[height, width, dim]` of unit length, and the
    /// download of the result into the stream.
    ///
    /// # Errors
    /// [`GpuError`], also when `embeddings` is smaller than was prepared for.
    ///
    /// # Safety
    /// Neither the stage nor `embeddings` may be dropped, nor the stage prepared for another size,
    /// before the stream is done, nor before the last launch of a graph captured from this.
    pub(crate) unsafe fn enqueue(
        &self,
        stream: &Arc<Stream>,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), GpuError> {
        let prepared = self.prepared.as_ref().ok_or(GpuError::NotPrepared)?;
        if embeddings.len() != prepared.map.cells() * prepared.map.dim {
            return Err(GpuError::NotPrepared);
        }
        // SAFETY: the buffers were made for each other, and the caller keeps them.
        unsafe {
            self.cluster(stream, prepared, embeddings)?;
            self.find_concepts(stream, prepared)?;
            self.draw(stream, prepared, embeddings)?;
            self.merge.enqueue(stream, &prepared.pixels, &prepared.table)
        }
    }

    /// Takes what was downloaded, after the stream is done.
    ///
    /// # Errors
    /// [`GpuError`] when the records of a frame with very many segments cannot be read.
    pub(crate) fn finish(
        &self,
        stream: &Arc<Stream>,
        out: &mut ConceptMap,
    ) -> Result<(), GpuError> {
        self.merge.finish(stream, out)
    }

    /// k-means: labels, centroids, prototypes.
    unsafe fn cluster(
        &self,
        stream: &Arc<Stream>,
        prepared: &Prepared,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), GpuError> {
        let Prepared { map: MapSize { height, width, dim }, clusters, slice, .. } = *prepared;
        let cells = height * width;
        let slices = cells.div_ceil(slice);
        let p = prepared;
        let grid = self.config.grid;
        let start = [
            of(embeddings),
            of(&p.scales),
            of(&p.labels),
            of(&p.changed),
            int(height),
            int(width),
            int(dim),
            int(height.div_ceil(grid)),
            int(width.div_ceil(grid)),
        ];
        // SAFETY, here and below: the arguments are those of the kernel, and the buffers hold what it
        // reads and writes for the sizes that it is told.
        unsafe {
            p.changed.zero_async(stream)?;
            launch(&self.functions.start, stream, [cells.div_ceil(BLOCK / 32), 1], &start)?;
        }
        let sums = |round: usize, features: usize| {
            let arguments = [
                of(embeddings),
                of(&p.scales),
                of(&p.labels),
                of(&p.changed),
                of(&p.partial),
                of(&p.counts),
                int(height),
                int(width),
                int(dim),
                int(slice),
                int(round),
                int(features),
            ];
            // SAFETY: see above.
            unsafe { launch(&self.functions.sums, stream, [slices, clusters], &arguments) }
        };
        let normalise = |round: usize, channels: usize, out: &DeviceBuffer<f32>, members| {
            let arguments = [
                of(&p.partial),
                of(&p.counts),
                of(&p.changed),
                of(out),
                members,
                int(slices),
                int(dim),
                int(channels),
                int(round),
            ];
            // SAFETY: see above.
            unsafe { launch(&self.functions.centroids, stream, [clusters, 1], &arguments) }
        };
        for round in 0..self.config.iterations {
            sums(round, 1)?;
            normalise(round, dim + PLACE, &p.centroids, of(&p.members))?;
            let assign = [
                of(embeddings),
                of(&p.centroids),
                of(&p.members),
                of(&p.labels),
                of(&p.changed),
                int(height),
                int(width),
                int(dim),
                int(clusters),
                int(round),
            ];
            // SAFETY: see above.
            unsafe { launch(&self.functions.assign, stream, [cells.div_ceil(ROWS), 1], &assign)? };
        }
        // Round 0 always runs.
        sums(0, 0)?;
        normalise(0, dim, &p.prototypes, of(&p.present))
    }

    /// Concepts of the clusters.
    unsafe fn find_concepts(
        &self,
        stream: &Arc<Stream>,
        prepared: &Prepared,
    ) -> Result<(), GpuError> {
        let chunks = self.concepts.div_ceil(CONCEPTS);
        let clusters = prepared.clusters;
        let nearest = [
            of(&prepared.prototypes),
            of(&self.codebook),
            of(&prepared.nearest_cosine),
            of(&prepared.nearest_concept),
            int(clusters),
            int(self.concepts),
            int(self.dim),
        ];
        let table = [
            of(&prepared.nearest_cosine),
            of(&prepared.nearest_concept),
            of(&prepared.present),
            of(&prepared.table),
            int(clusters),
            int(chunks),
        ];
        // SAFETY: the arguments are those of the kernels, and the buffers hold what they read and write.
        unsafe {
            let grid = [chunks, clusters.div_ceil(ROWS)];
            launch(&self.functions.nearest, stream, grid, &nearest)?;
            launch(&self.functions.table, stream, [1, 1], &table)
        }
    }

    /// Clusters of the pixels.
    unsafe fn draw(
        &self,
        stream: &Arc<Stream>,
        prepared: &Prepared,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), GpuError> {
        let Prepared { map: MapSize { height, width, dim }, frame, .. } = *prepared;
        let p = prepared;
        let cells = height * width;
        let size = [int(height), int(width)];
        let scores = [of(embeddings), of(&p.centroids), of(&p.table), of(&p.scores)];
        let scores: Vec<Arg> = scores.into_iter().chain(size).chain([int(dim)]).collect();
        let quads = [of(&p.scores), of(&p.table), of(&p.quads), size[0], size[1]];
        let pixels = [
            of(&p.scores),
            of(&p.table),
            of(&p.quads),
            of(&p.rows),
            of(&p.row_weights),
            of(&p.columns),
            of(&p.column_weights),
            of(&p.pixels),
            size[0],
            size[1],
            int(frame.0),
        ];
        // SAFETY: the arguments are those of the kernels, and the buffers hold what they read and write:
        // rows and columns name cells of the map, the lists of the quads clusters of the table.
        unsafe {
            launch(&self.functions.scores, stream, [cells.div_ceil(ROWS), 1], &scores)?;
            launch(&self.functions.quads, stream, [cells.div_ceil(BLOCK / 32), 1], &quads)?;
            launch(&self.functions.pixels, stream, [frame.0.div_ceil(BLOCK), frame.1], &pixels)
        }
    }
}

impl Prepared {
    fn new(
        stream: &Arc<Stream>,
        map: MapSize,
        frame: (usize, usize),
        config: &SegmentationConfig,
        concepts: usize,
    ) -> Result<Self, GpuError> {
        let context = stream.context();
        let (cells, channels) = (map.cells(), map.dim + PLACE);
        let clusters = start_clusters(map.height, map.width, config.grid);
        let slice = cells.div_ceil(SLICES.0).max(SLICES.1).next_multiple_of(BLOCK);
        let parts = cells.div_ceil(slice) * clusters;
        let chunks = concepts.div_ceil(CONCEPTS);
        let (rows, row_weights) = positions(stream, map.height, frame.1)?;
        let (columns, column_weights) = positions(stream, map.width, frame.0)?;
        Ok(Self {
            map,
            frame,
            clusters,
            slice,
            scales: DeviceBuffer::new(context, cells)?,
            labels: DeviceBuffer::new(context, cells)?,
            changed: DeviceBuffer::new(context, config.iterations + 1)?,
            partial: DeviceBuffer::new(context, parts * channels)?,
            counts: DeviceBuffer::new(context, parts)?,
            centroids: DeviceBuffer::new(context, clusters * channels)?,
            members: DeviceBuffer::new(context, clusters)?,
            prototypes: DeviceBuffer::new(context, clusters * map.dim)?,
            present: DeviceBuffer::new(context, clusters)?,
            nearest_cosine: DeviceBuffer::new(context, chunks * clusters)?,
            nearest_concept: DeviceBuffer::new(context, chunks * clusters)?,
            table: DeviceBuffer::new(context, 1 + 3 * TABLE_COLUMN)?,
            scores: DeviceBuffer::new(context, clusters * cells)?,
            quads: DeviceBuffer::new(context, cells * QUAD)?,
            rows,
            row_weights,
            columns,
            column_weights,
            pixels: DeviceBuffer::new(context, frame.0 * frame.1)?,
        })
    }
}

/// Where the pixels of one axis lie between the cells: lower cells, weights of the upper ones.
fn positions(
    stream: &Arc<Stream>,
    source: usize,
    target: usize,
) -> Result<(DeviceBuffer<i32>, DeviceBuffer<f32>), GpuError> {
    let (cells, weights): (Vec<i32>, Vec<f32>) =
        upsample::positions(source, target).map(|(cell, weight)| (cell as i32, weight)).unzip();
    let device_cells = DeviceBuffer::new(stream.context(), target)?;
    let device_weights = DeviceBuffer::new(stream.context(), target)?;
    device_cells.write(stream, &cells)?;
    device_weights.write(stream, &weights)?;
    Ok((device_cells, device_weights))
}

fn of<T: Pod>(buffer: &DeviceBuffer<T>) -> Arg {
    Arg::Buffer(buffer.address())
}

/// A size within the limits, all of which fit.
fn int(value: usize) -> Arg {
    Arg::I32(value as i32)
}

/// # Safety
/// The arguments are those of the kernel, and its buffers hold what it reads and writes.
unsafe fn launch(
    function: &Function,
    stream: &Arc<Stream>,
    [x, y]: [usize; 2],
    arguments: &[Arg],
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise.
    unsafe { function.launch(stream, [x as u32, y as u32, 1], [BLOCK as u32, 1, 1], arguments)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use conceptseg_tensorrt::cuda::Graph;
    use proptest::prelude::*;

    use super::*;
    use crate::concepts::ConceptLabeler;
    use crate::concepts::kmeans::{Clusters, dot};
    use crate::cuda::testing::{TestGpu, gpus};
    use crate::embed::EmbeddingMap;
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
            row.iter_mut().for_each(|v| *v /= length);
        }
        rows
    }

    /// Areas of a few directions with soft borders, and a little noise, as a network gives them.
    fn picture(size: MapSize, seed: u64) -> Vec<f32> {
        let MapSize { height, width, dim } = size;
        let directions = unit_rows(noise(6 * dim, seed), dim);
        let mut data = noise(size.cells() * dim, seed ^ 0x55);
        for (cell, values) in data.chunks_exact_mut(dim).enumerate() {
            let (y, x) =
                ((cell / width) as f32 / height as f32, (cell % width) as f32 / width as f32);
            values.iter_mut().for_each(|v| *v *= 0.1);
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
        for (gpu, count) in
            gpus().iter().flat_map(|gpu| [1, 65, 512, 1000].map(|count| (gpu, count)))
        {
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
    fn compare(gpu: &TestGpu, map: MapSize, frame: (usize, usize), seed: u64) {
        let data = picture(map, seed);
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
                compare(&gpu, map, frame, 3);
            }
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
            assert!(matches!(new(3, grid), Err(GpuError::Limit { value: 16, .. })));
            assert!(matches!(new(4097, config.clone()), Err(GpuError::Limit { .. })));
            let mut stage = new(3, config).unwrap();
            let map = MapSize { height: 2, width: 2, dim: 5 };
            let error = stage.prepare(&gpu.stream, map, (8, 8)).unwrap_err();
            assert!(matches!(error, GpuError::Codebook { embedding: 5, codebook: 4 }));
            let map = MapSize { dim: 4, ..map };
            let error = stage.prepare(&gpu.stream, map, (16_385, 8)).unwrap_err();
            assert!(matches!(error, GpuError::Limit { value: 16_385, .. }));
            let input = upload(&gpu, &[0.0; 16]);
            // SAFETY: nothing is put into the stream.
            let refused = unsafe { stage.enqueue(&gpu.stream, &input) };
            assert!(matches!(refused, Err(GpuError::NotPrepared)));
        }
    }
}
