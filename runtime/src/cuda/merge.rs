//! Segments of one concept on the GPU. Twin of [`concepts::merge`](crate::concepts::merge).
//!
//! Concepts, segments, areas and boxes are those of the CPU. Similarities are sums of integers of
//! `2^-23` and differ from the CPU's by at most `2^-23`.
#![allow(unsafe_code)] // Launches of kernels and asynchronous copies.

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Arg, DeviceBuffer, Function, PinnedBuffer, Stream};

use super::{CudaPathError, Kernels, MAX_SIDE};
use crate::concepts::{ConceptMap, ConceptSegment};

const NOT_PREPARED: CudaPathError = CudaPathError::NotPrepared { stage: "segments" };
/// Threads of a block: eight warps, each with a strip of pixels.
const BLOCK: u32 = 256;
/// Pixels of a strip, `MERGE_STRIP` of the kernels.
const STRIP: usize = 128;
/// Words of a segment's record, `MERGE_RECORD` of the kernels.
const RECORD: usize = 8;
/// Records that come with every frame; a frame with more segments costs another copy.
const FEW: usize = 2048;
/// Entries of each column of the cluster table, `KMEANS_CLUSTERS` of the kernels.
pub(super) const TABLE_COLUMN: usize = 256;
/// A similarity `s` is stored as `(s + 1) * SIMILARITY_ONE`, an integer.
const SIMILARITY_ONE: f64 = 8_388_608.0;

/// Buffers for one frame size.
#[derive(Debug)]
struct Prepared {
    width: usize,
    height: usize,
    /// Union-find forest over the first pixels of runs, then segment numbers.
    parent: DeviceBuffer<u32>,
    strip_counts: DeviceBuffer<u32>,
    row_counts: DeviceBuffer<u32>,
    /// Number of segments, then that of the first one of each row.
    offsets: DeviceBuffer<u32>,
    records: DeviceBuffer<u32>,
    concepts: Arc<DeviceBuffer<u16>>,
    segments: Arc<DeviceBuffer<u16>>,
    count: PinnedBuffer<u32>,
    few_records: PinnedBuffer<u32>,
    host_concepts: PinnedBuffer<u16>,
    host_segments: PinnedBuffer<u16>,
}

/// Merges touching areas of equal concept.
#[derive(Debug)]
pub struct MergeStage {
    start: Function,
    unite: Function,
    roots: Function,
    scan: Function,
    number: Function,
    write: Function,
    /// Most segments, at least 1.
    limit: usize,
    prepared: Option<Prepared>,
}

impl MergeStage {
    /// A stage that tells at most `limit` segments apart.
    pub(super) fn new(kernels: &Kernels, limit: usize) -> Result<Self, CudaPathError> {
        Ok(Self {
            start: kernels.function("merge_start")?,
            unite: kernels.function("merge_unite")?,
            roots: kernels.function("merge_roots")?,
            scan: kernels.function("merge_scan")?,
            number: kernels.function("merge_number")?,
            write: kernels.function("merge_write")?,
            limit,
            prepared: None,
        })
    }

    /// Makes buffers for frames of a size, unless they are there; answers whether it did. The stream
    /// must be idle.
    ///
    /// # Errors
    /// [`CudaPathError`] when a side is 0 or above [`MAX_SIDE`], or memory is short.
    pub(super) fn prepare(
        &mut self,
        stream: &Arc<Stream>,
        (width, height): (usize, usize),
    ) -> Result<bool, CudaPathError> {
        if self.prepared.as_ref().is_some_and(|p| (p.width, p.height) == (width, height)) {
            return Ok(false);
        }
        CudaPathError::check_size("width of the frame", width, MAX_SIDE)?;
        CudaPathError::check_size("height of the frame", height, MAX_SIDE)?;
        self.prepared = None;
        let (context, pixels) = (stream.context(), width * height);
        self.prepared = Some(Prepared {
            width,
            height,
            parent: DeviceBuffer::new(context, pixels)?,
            strip_counts: DeviceBuffer::new(context, width.div_ceil(STRIP) * height)?,
            row_counts: DeviceBuffer::new(context, height)?,
            offsets: DeviceBuffer::new(context, 1 + height)?,
            records: DeviceBuffer::new(context, self.limit.min(pixels) * RECORD)?,
            concepts: Arc::new(DeviceBuffer::new(context, pixels)?),
            segments: Arc::new(DeviceBuffer::new(context, pixels)?),
            count: PinnedBuffer::new(context, 1)?,
            few_records: PinnedBuffer::new(context, self.limit.min(pixels).min(FEW) * RECORD)?,
            host_concepts: PinnedBuffer::new(context, pixels)?,
            host_segments: PinnedBuffer::new(context, pixels)?,
        });
        Ok(true)
    }

    /// Concept of each pixel, `[height, width]`, for kernels that draw it.
    pub(super) fn concepts(&self) -> Result<&Arc<DeviceBuffer<u16>>, CudaPathError> {
        Ok(&self.prepared.as_ref().ok_or(NOT_PREPARED)?.concepts)
    }

    /// Segment of each pixel, `[height, width]`, for kernels that draw it.
    pub(super) fn segments(&self) -> Result<&Arc<DeviceBuffer<u16>>, CudaPathError> {
        Ok(&self.prepared.as_ref().ok_or(NOT_PREPARED)?.segments)
    }

    /// Puts the merging of `clusters` (index into the table of each pixel) and the download of its
    /// results into the stream. `table` is that of the kernel `concept_table`.
    ///
    /// # Errors
    /// [`CudaPathError`], also when `clusters` has another size than was prepared for.
    ///
    /// # Safety
    /// Neither the stage nor the buffers may be dropped, nor the stage prepared for another size,
    /// before the stream is done, nor before the last launch of a graph captured from this. Clusters
    /// must be in the table, and its concepts below 65,536.
    pub(super) unsafe fn enqueue(
        &self,
        stream: &Arc<Stream>,
        clusters: &DeviceBuffer<u8>,
        table: &DeviceBuffer<i32>,
    ) -> Result<(), CudaPathError> {
        let prepared = self.prepared.as_ref().ok_or(NOT_PREPARED)?;
        let Prepared { width, height, .. } = *prepared;
        if clusters.len() != width * height || table.len() != 1 + 3 * TABLE_COLUMN {
            return Err(NOT_PREPARED);
        }
        let warps = width.div_ceil(STRIP) * height;
        let grid = [(warps as u32).div_ceil(BLOCK / 32), 1, 1];
        let input = [Arg::Buffer(clusters.address()), Arg::Buffer(table.address())];
        let parent = Arg::Buffer(prepared.parent.address());
        let strips = Arg::Buffer(prepared.strip_counts.address());
        let rows = Arg::Buffer(prepared.row_counts.address());
        let offsets = Arg::Buffer(prepared.offsets.address());
        let records = Arg::Buffer(prepared.records.address());
        let concepts = Arg::Buffer(prepared.concepts.address());
        let segments = Arg::Buffer(prepared.segments.address());
        let [w, h] = [width, height].map(|side| Arg::I32(side as i32));
        let limit = Arg::I32(self.limit.min(width * height) as i32);
        let launch = |function: &Function, arguments: &[Arg]| {
            let all: Vec<Arg> = input.iter().chain(arguments).copied().collect();
            // SAFETY: the arguments are those of the kernel, the buffers hold what `w` x `h` pixels need,
            // and the caller keeps them.
            unsafe { function.launch(stream, grid, [BLOCK, 1, 1], &all) }
        };
        launch(&self.start, &[parent, rows, w, h])?;
        launch(&self.unite, &[parent, w, h])?;
        launch(&self.roots, &[parent, strips, rows, w, h])?;
        // SAFETY: as above; one block goes through all rows.
        unsafe { self.scan.launch(stream, [1, 1, 1], [BLOCK, 1, 1], &[rows, offsets, h])? };
        launch(&self.number, &[strips, offsets, parent, records, w, h, limit])?;
        launch(&self.write, &[parent, records, concepts, segments, w, h])?;
        // SAFETY: the caller keeps the stage, and reads the pinned memory only when the stream is done.
        unsafe {
            let few = &prepared.few_records;
            prepared.offsets.download_async(stream, &prepared.count, 1)?;
            prepared.records.download_async(stream, few, few.len())?;
            let pixels = width * height;
            prepared.concepts.download_async(stream, &prepared.host_concepts, pixels)?;
            prepared.segments.download_async(stream, &prepared.host_segments, pixels)?;
        }
        Ok(())
    }

    /// Takes what was downloaded, after the stream is done.
    ///
    /// # Errors
    /// [`CudaPathError`] when the records of a frame with many segments cannot be read.
    pub(super) fn finish(
        &self,
        stream: &Arc<Stream>,
        out: &mut ConceptMap,
    ) -> Result<(), CudaPathError> {
        let prepared = self.prepared.as_ref().ok_or(NOT_PREPARED)?;
        (out.width, out.height) = (prepared.width as u32, prepared.height as u32);
        out.concepts.clear();
        out.concepts.extend_from_slice(prepared.host_concepts.as_slice());
        out.segments.clear();
        out.segments.extend_from_slice(prepared.host_segments.as_slice());
        out.segment_list.clear();
        let found = prepared.count.as_slice().first().map_or(0, |&count| count as usize);
        let count = found.min(self.limit);
        let mut add = |words: &[u32]| {
            let (records, _) = words.as_chunks::<RECORD>();
            out.segment_list.extend(records.iter().take(count).map(segment));
        };
        if count * RECORD <= prepared.few_records.len() {
            add(prepared.few_records.as_slice());
        } else {
            let mut words = vec![0; prepared.records.len()];
            prepared.records.read(stream, &mut words)?;
            add(&words);
        }
        Ok(())
    }
}

fn segment(
    &[concept, left, top, right, bottom, area, low, high]: &[u32; RECORD],
) -> ConceptSegment {
    let sum = (u64::from(high) << 32 | u64::from(low)) as f64;
    let mean = sum / SIMILARITY_ONE / f64::from(area.max(1));
    ConceptSegment {
        concept: concept as u16,
        similarity: (mean - 1.0) as f32,
        area,
        bbox: [left, top, right.wrapping_sub(left) + 1, bottom.wrapping_sub(top) + 1],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::concepts::merge::{ClusterConcept, Merger};
    use crate::cuda::testing::{TestGpu, gpus};

    /// Clusters of a map, and concept and similarity of each.
    struct Case {
        clusters: Vec<u8>,
        size: (usize, usize),
        of_cluster: Vec<ClusterConcept>,
        limit: usize,
    }

    fn run(gpu: &TestGpu, case: &Case) -> ConceptMap {
        let mut stage = MergeStage::new(&gpu.kernels, case.limit).unwrap();
        stage.prepare(&gpu.stream, case.size).unwrap();
        let mut words = vec![0; 1 + 3 * TABLE_COLUMN];
        words[0] = case.of_cluster.len() as i32;
        for (i, of_cluster) in case.of_cluster.iter().enumerate() {
            words[1 + TABLE_COLUMN + i] = i32::from(of_cluster.concept);
            let similarity = (f64::from(of_cluster.similarity) + 1.0) * SIMILARITY_ONE;
            words[1 + 2 * TABLE_COLUMN + i] = similarity.round() as i32;
        }
        let table = DeviceBuffer::new(gpu.stream.context(), words.len()).unwrap();
        table.write(&gpu.stream, &words).unwrap();
        let clusters = DeviceBuffer::new(gpu.stream.context(), case.clusters.len()).unwrap();
        clusters.write(&gpu.stream, &case.clusters).unwrap();
        // SAFETY: the stage and both buffers live until the stream is done.
        unsafe { stage.enqueue(&gpu.stream, &clusters, &table).unwrap() };
        gpu.stream.synchronize().unwrap();
        let mut out = ConceptMap::default();
        stage.finish(&gpu.stream, &mut out).unwrap();
        out
    }

    fn compare(gpu: &TestGpu, case: &Case) -> ConceptMap {
        let got = run(gpu, case);
        let mut want = ConceptMap::default();
        let size = (case.size.0 as u32, case.size.1 as u32);
        Merger::default().merge(&case.clusters, size, &case.of_cluster, case.limit, &mut want);
        assert_eq!((got.width, got.height), (want.width, want.height));
        assert_eq!(got.concepts, want.concepts);
        assert_eq!(got.segments, want.segments);
        assert_eq!(got.segment_list.len(), want.segment_list.len());
        for (got, want) in got.segment_list.iter().zip(&want.segment_list) {
            assert_eq!((got.concept, got.area, got.bbox), (want.concept, want.area, want.bbox));
            assert!((got.similarity - want.similarity).abs() < 1e-6, "{got:?} {want:?}");
        }
        got
    }

    /// Patches of random clusters, `patch` pixels wide and high.
    fn patches(
        (width, height): (usize, usize),
        patch: usize,
        clusters: usize,
        seed: u64,
    ) -> Vec<u8> {
        let at = |i: usize| {
            let (x, y) = (i % width / patch, i / width / patch);
            let hash =
                (x as u64 * 7919 + y as u64 * 104_729 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (hash >> 33) as usize % clusters
        };
        (0..width * height).map(|i| at(i) as u8).collect()
    }

    fn concepts(list: &[u16]) -> Vec<ClusterConcept> {
        let similarity = |i: usize| (i as f32 * 0.377).cos();
        let concept =
            |(i, &concept): (usize, &u16)| ClusterConcept { concept, similarity: similarity(i) };
        list.iter().enumerate().map(concept).collect()
    }

    #[test]
    fn segments_are_those_of_the_cpu() {
        for gpu in gpus() {
            proptest!(ProptestConfig::with_cases(48), |(
                size in (prop_oneof![1_usize..40, 100_usize..700], 1_usize..20),
                patch in prop_oneof![1_usize..6, Just(150)],
                list in prop::collection::vec(prop_oneof![0_u16..3, Just(4095)], 1..7),
                limit in prop_oneof![1_usize..9, Just(1 << 16)],
                seed: u64,
            )| {
                let clusters = patches(size, patch, list.len(), seed);
                compare(&gpu, &Case { clusters, size, of_cluster: concepts(&list), limit });
            });
        }
    }

    #[test]
    fn winding_and_enclosed_areas_are_joined() {
        // A spiral of one concept in another, across strips and many rows.
        let (width, height) = (301, 41);
        let mut clusters = vec![0_u8; width * height];
        for ring in (0..20).step_by(2) {
            for y in ring..height - ring {
                for x in ring..width - ring {
                    let border =
                        y == ring || y == height - 1 - ring || x == ring || x == width - 1 - ring;
                    clusters[y * width + x] = u8::from(border);
                }
            }
            // A gap in the ring, and a way to the next one.
            clusters[(ring + 1) * width + ring] = 0;
            clusters[(ring + 1) * width + ring + 1] = 1;
        }
        for gpu in gpus() {
            let of_cluster = concepts(&[7, 9]);
            let clusters = clusters.clone();
            compare(&gpu, &Case { clusters, size: (width, height), of_cluster, limit: 1 << 16 });
        }
    }

    #[test]
    fn a_frame_with_very_many_segments_is_whole() {
        let size = (257, 63);
        let clusters = patches(size, 1, 5, 3);
        for gpu in gpus() {
            let of_cluster = concepts(&[0, 1, 2, 3, 4]);
            let case = Case { clusters: clusters.clone(), size, of_cluster, limit: 1 << 16 };
            let got = compare(&gpu, &case);
            assert!(got.segment_list.len() > FEW, "{}", got.segment_list.len());
        }
    }
}
