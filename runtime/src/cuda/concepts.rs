//! Concept labelling on the GPU. Twin of [`ConceptLabeler`](crate::concepts::ConceptLabeler).
//!
//! The steps and the rules for ties are those of the CPU. Sums of features are added in another
//! order, so that a cell between two clusters, or a pixel between two scores, may fall to the other
//! side: concepts are equal on 99.9 % of the pixels of a frame and more.
#![allow(unsafe_code)] // Launches of kernels and asynchronous copies.

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Arg, DeviceBuffer, Function, Stream};

use super::embed::MapSize;
use super::launch::{int, launch, of};
use super::merge::{MergeStage, TABLE_COLUMN};
use super::{CudaPathError, Kernels, MAX_CONCEPTS};
use crate::bundle::Codebook;
use crate::concepts::kmeans::start_clusters;
use crate::concepts::merge::MAX_SEGMENTS;
use crate::concepts::{ConceptError, ConceptMap, SegmentationConfig, check_config};
use crate::upsample;

const NOT_PREPARED: CudaPathError = CudaPathError::NotPrepared { stage: "concepts" };
/// Threads of a block.
const BLOCK: usize = 256;
/// Cells or clusters of a block, `KMEANS_ROWS` of the kernels.
const ROWS: usize = 32;
/// Channels of a place, `KMEANS_PLACE` of the kernels.
const PLACE: usize = 2;
/// Concepts of a block, `KMEANS_CONCEPTS` of the kernels.
const CONCEPTS: usize = 64;
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
    /// Slices that are done of each cluster.
    done: DeviceBuffer<u32>,
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
pub struct ConceptStage {
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
    /// [`CudaPathError`] when a setting or the codebook is beyond the limits, or memory is short.
    pub fn new(
        kernels: &Kernels,
        stream: &Arc<Stream>,
        codebook: &Codebook,
        config: &SegmentationConfig,
    ) -> Result<Self, CudaPathError> {
        check_config(config)?;
        CudaPathError::check_size("concepts of the codebook", codebook.count, MAX_CONCEPTS)?;
        let vectors = DeviceBuffer::new(stream.context(), codebook.count * codebook.dim)?;
        vectors.write(stream, &codebook.vectors)?;
        Ok(Self {
            functions: Functions {
                start: kernels.function("kmeans_start")?,
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
    /// [`CudaPathError`] when a size is 0 or above the limits, embeddings and codebook do not fit
    /// together, or memory is short.
    pub fn prepare(
        &mut self,
        stream: &Arc<Stream>,
        map: MapSize,
        frame: (usize, usize),
    ) -> Result<bool, CudaPathError> {
        if self.prepared.as_ref().is_some_and(|p| (p.map, p.frame) == (map, frame)) {
            return Ok(false);
        }
        map.check()?;
        if map.dim != self.dim {
            return Err(CudaPathError::Concepts(ConceptError::Codebook {
                embedding: map.dim,
                count: self.concepts,
                codebook: self.dim,
                len: self.codebook.len(),
            }));
        }
        self.prepared = None;
        self.merge.prepare(stream, frame)?;
        self.prepared = Some(Prepared::new(stream, map, frame, &self.config, self.concepts)?);
        Ok(true)
    }

    /// Concept of each pixel of the frame, `[height, width]`.
    ///
    /// # Errors
    /// [`CudaPathError::NotPrepared`].
    pub fn concept_map(&self) -> Result<&Arc<DeviceBuffer<u16>>, CudaPathError> {
        self.merge.concepts()
    }

    /// Segment of each pixel of the frame, `[height, width]`.
    ///
    /// # Errors
    /// [`CudaPathError::NotPrepared`].
    pub fn segment_map(&self) -> Result<&Arc<DeviceBuffer<u16>>, CudaPathError> {
        self.merge.segments()
    }

    /// Puts all kernels for a map of embeddings, `[height, width, dim]` of unit length, and the
    /// download of the result into the stream.
    ///
    /// # Errors
    /// [`CudaPathError`], also when `embeddings` is smaller than was prepared for.
    ///
    /// # Safety
    /// Neither the stage nor `embeddings` may be dropped, nor the stage prepared for another size,
    /// before the stream is done, nor before the last launch of a graph captured from this.
    pub unsafe fn enqueue(
        &self,
        stream: &Arc<Stream>,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
        let prepared = self.prepared.as_ref().ok_or(NOT_PREPARED)?;
        if embeddings.len() != prepared.map.cells() * prepared.map.dim {
            return Err(NOT_PREPARED);
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
    /// [`CudaPathError`] when the records of a frame with very many segments cannot be read.
    pub fn finish(&self, stream: &Arc<Stream>, out: &mut ConceptMap) -> Result<(), CudaPathError> {
        self.merge.finish(stream, out)
    }

    /// k-means: labels, centroids, prototypes.
    unsafe fn cluster(
        &self,
        stream: &Arc<Stream>,
        prepared: &Prepared,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
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
            launch(
                &self.functions.start,
                stream,
                [cells.div_ceil(BLOCK / 32), 1],
                BLOCK as u32,
                &start,
            )?;
        }
        let centroids = |round: usize, channels: usize, features: usize| {
            // Prototypes are the means of embeddings, in the end.
            let (out, members) = if features == 1 {
                (&p.centroids, &p.members)
            } else {
                (&p.prototypes, &p.present)
            };
            let arguments = [
                of(embeddings),
                of(&p.scales),
                of(&p.labels),
                of(&p.changed),
                of(&p.partial),
                of(&p.counts),
                of(&p.done),
                of(out),
                of(members),
                int(height),
                int(width),
                int(dim),
                int(slice),
                int(channels),
                int(round),
                int(features),
            ];
            // SAFETY: see above.
            unsafe {
                launch(
                    &self.functions.centroids,
                    stream,
                    [slices, clusters],
                    BLOCK as u32,
                    &arguments,
                )
            }
        };
        for round in 0..self.config.iterations {
            centroids(round, dim + PLACE, 1)?;
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
            unsafe {
                launch(
                    &self.functions.assign,
                    stream,
                    [cells.div_ceil(ROWS), 1],
                    BLOCK as u32,
                    &assign,
                )?;
            };
        }
        // Round 0 always runs.
        centroids(0, dim, 0)
    }

    /// Concepts of the clusters.
    unsafe fn find_concepts(
        &self,
        stream: &Arc<Stream>,
        prepared: &Prepared,
    ) -> Result<(), CudaPathError> {
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
            launch(&self.functions.nearest, stream, grid, BLOCK as u32, &nearest)?;
            launch(&self.functions.table, stream, [1, 1], BLOCK as u32, &table)
        }
    }

    /// Clusters of the pixels.
    unsafe fn draw(
        &self,
        stream: &Arc<Stream>,
        prepared: &Prepared,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
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
            launch(
                &self.functions.scores,
                stream,
                [cells.div_ceil(ROWS), 1],
                BLOCK as u32,
                &scores,
            )?;
            launch(
                &self.functions.quads,
                stream,
                [cells.div_ceil(BLOCK / 32), 1],
                BLOCK as u32,
                &quads,
            )?;
            launch(
                &self.functions.pixels,
                stream,
                [frame.0.div_ceil(BLOCK), frame.1],
                BLOCK as u32,
                &pixels,
            )
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
    ) -> Result<Self, CudaPathError> {
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
            done: DeviceBuffer::new(context, clusters)?,
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
) -> Result<(DeviceBuffer<i32>, DeviceBuffer<f32>), CudaPathError> {
    let (cells, weights): (Vec<i32>, Vec<f32>) =
        upsample::positions(source, target).map(|(cell, weight)| (cell as i32, weight)).unzip();
    let device_cells = DeviceBuffer::new(stream.context(), target)?;
    let device_weights = DeviceBuffer::new(stream.context(), target)?;
    device_cells.write(stream, &cells)?;
    device_weights.write(stream, &weights)?;
    Ok((device_cells, device_weights))
}

#[cfg(test)]
mod tests;
