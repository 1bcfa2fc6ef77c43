//! From soft labels to masks at frame size.

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Arg, DeviceBuffer, Function, PinnedBuffer, Stream};

use super::super::Kernels;
use super::{Grid, NOT_PREPARED};
use crate::cuda::CudaPathError;
use crate::cuda::launch::{int, launch, of};
use crate::propagate::{FLAT, InstanceStat, MaskMap, TRACE};
use crate::upsample;

/// Numbers found of a channel, `FOUND_SIZE` of the kernels.
const FOUND: usize = 8;
/// Threads of a block.
const BLOCK: usize = 256;
/// Pixels of a thread.
const PIXELS: usize = 4;

/// The kernels.
#[derive(Debug)]
pub(super) struct MaskFunctions {
    extremes: Function,
    winners: Function,
    confidence: Function,
    masks: Function,
}

impl MaskFunctions {
    pub(super) fn new(kernels: &Kernels) -> Result<Self, CudaPathError> {
        Ok(Self {
            extremes: kernels.function("propagate_extremes")?,
            winners: kernels.function("propagate_winners")?,
            confidence: kernels.function("propagate_confidence")?,
            masks: kernels.function("propagate_masks")?,
        })
    }
}

/// What the kernels write masks with, for one start.
#[derive(Debug)]
pub(super) struct MaskWriter {
    /// Weights of the first and last row of each row of quads at network size, and of the columns,
    /// `[2 * (height + width)]`.
    edges: DeviceBuffer<f32>,
    /// Instance of each channel, 0 for background.
    ids: DeviceBuffer<u8>,
    /// The channel that wins each cell.
    winners: DeviceBuffer<u8>,
    /// `[channels, FOUND]`
    found: DeviceBuffer<u32>,
    found_here: PinnedBuffer<u32>,
    prepared: Option<Prepared>,
}

/// For one frame size.
#[derive(Debug)]
struct Prepared {
    /// Width and height.
    frame: (u32, u32),
    /// Upper cell of each row and left cell of each column of the frame, and weights of the next.
    cells: DeviceBuffer<i32>,
    weights: DeviceBuffer<f32>,
    /// In whole fours.
    mask: Arc<DeviceBuffer<u8>>,
    mask_here: PinnedBuffer<u8>,
}

impl MaskWriter {
    pub(super) fn new(stream: &Arc<Stream>, grid: Grid, ids: &[u8]) -> Result<Self, CudaPathError> {
        let (gpu, channels) = (stream.context(), ids.len() + 1);
        let mut edges = Vec::with_capacity(2 * (grid.height + grid.width));
        for source in [grid.height, grid.width] {
            let target = source * grid.stride;
            let mut ends = vec![(f32::INFINITY, 0.0); source];
            for (low, weight) in upsample::positions(source, target) {
                // Weights rise within a quad.
                let (first, last) = &mut ends[low];
                (*first, *last) = (first.min(weight), weight);
            }
            edges.extend(ends.iter().map(|end| end.0));
            edges.extend(ends.iter().map(|end| end.1));
        }
        let writer = Self {
            edges: DeviceBuffer::new(gpu, edges.len())?,
            ids: DeviceBuffer::new(gpu, channels)?,
            winners: DeviceBuffer::new(gpu, grid.cells())?,
            found: DeviceBuffer::new(gpu, channels * FOUND)?,
            found_here: PinnedBuffer::new(gpu, channels * FOUND)?,
            prepared: None,
        };
        writer.edges.write(stream, &edges)?;
        let with_background: Vec<u8> = std::iter::once(0).chain(ids.iter().copied()).collect();
        writer.ids.write(stream, &with_background)?;
        Ok(writer)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.edges.bytes()
            + self.ids.bytes()
            + self.winners.bytes()
            + self.found.bytes()
            + self
                .prepared
                .as_ref()
                .map_or(0, |p| p.cells.bytes() + p.weights.bytes() + p.mask.bytes())
    }

    /// What is found of the channels; cleared by the kernel that makes the labels.
    pub(super) fn found(&self) -> &DeviceBuffer<u32> {
        &self.found
    }

    pub(super) fn mask(&self) -> Result<&Arc<DeviceBuffer<u8>>, CudaPathError> {
        Ok(&self.prepared.as_ref().ok_or(NOT_PREPARED)?.mask)
    }

    /// See `PropagationStage::prepare`.
    pub(super) fn prepare(
        &mut self,
        stream: &Arc<Stream>,
        grid: Grid,
        frame: (u32, u32),
    ) -> Result<bool, CudaPathError> {
        if self.prepared.as_ref().is_some_and(|p| p.frame == frame) {
            return Ok(false);
        }
        let gpu = stream.context();
        let (width, height) = (frame.0 as usize, frame.1 as usize);
        let (mut cells, mut weights) = (Vec::new(), Vec::new());
        for (source, target) in [(grid.height, height), (grid.width, width)] {
            // As on the CPU: the frame takes the nearest sample at network size.
            let network = source * grid.stride;
            let samples: Vec<(usize, f32)> = upsample::positions(source, network).collect();
            for i in 0..target {
                let (low, weight) = samples[(2 * i + 1) * network / (2 * target)];
                cells.push(low as i32);
                weights.push(weight);
            }
        }
        let pixels = width * height;
        let prepared = Prepared {
            frame,
            cells: DeviceBuffer::new(gpu, cells.len())?,
            weights: DeviceBuffer::new(gpu, weights.len())?,
            mask: Arc::new(DeviceBuffer::new(gpu, pixels.next_multiple_of(PIXELS))?),
            mask_here: PinnedBuffer::new(gpu, pixels)?,
        };
        prepared.cells.write(stream, &cells)?;
        prepared.weights.write(stream, &weights)?;
        self.prepared = Some(prepared);
        Ok(true)
    }

    /// Puts the kernels and the download into the stream.
    ///
    /// # Safety
    /// As `PropagationStage::enqueue`; `soft` holds `[slots, channels, cells]`, and `context` names
    /// one of its slots for the frame in work.
    pub(super) unsafe fn enqueue(
        &self,
        functions: &MaskFunctions,
        stream: &Arc<Stream>,
        grid: Grid,
        channels: usize,
        soft: &DeviceBuffer<f32>,
        context: &DeviceBuffer<i32>,
    ) -> Result<(), CudaPathError> {
        let prepared = self.prepared.as_ref().ok_or(NOT_PREPARED)?;
        let (width, height) = (prepared.frame.0 as usize, prepared.frame.1 as usize);
        let cells = grid.cells();
        let (labels, context, found) = (of(soft), of(context), of(&self.found));
        let size = [int(grid.height), int(grid.width), int(channels)];
        let thresholds = [Arg::F32(TRACE), Arg::F32(FLAT)];
        let extremes = [labels, context, of(&self.edges), found, size[0], size[1], size[2]];
        let winners = [
            labels,
            context,
            found,
            of(&self.winners),
            int(cells),
            size[2],
            thresholds[0],
            thresholds[1],
        ];
        let confidence = [labels, context, of(&self.winners), found, int(cells), size[2]];
        let masks = [
            labels,
            context,
            of(&prepared.cells),
            of(&prepared.weights),
            of(&self.ids),
            found,
            of(&prepared.mask),
            size[0],
            size[1],
            size[2],
            int(height),
            int(width),
            thresholds[0],
            thresholds[1],
        ];
        let (threads, blocks) = (BLOCK as u32, cells.div_ceil(BLOCK));
        // SAFETY: the arguments are those of the kernels, and the buffers hold what they read and write
        // for the sizes that they are told: the tables name cells of the grid. The caller keeps them.
        unsafe {
            launch(&functions.extremes, stream, [blocks, channels], threads, &extremes)?;
            launch(&functions.winners, stream, [blocks, 1], threads, &winners)?;
            launch(&functions.confidence, stream, [channels, 1], threads, &confidence)?;
            let blocks = (width * height).div_ceil(BLOCK * PIXELS);
            launch(&functions.masks, stream, [blocks, 1], threads, &masks)?;
            self.found.download_async(stream, &self.found_here, channels * FOUND)?;
            prepared.mask.download_async(stream, &prepared.mask_here, width * height)?;
        }
        Ok(())
    }

    /// Takes what was downloaded.
    pub(super) fn finish(&self, ids: &[u8], out: &mut MaskMap) -> Result<(), CudaPathError> {
        let prepared = self.prepared.as_ref().ok_or(NOT_PREPARED)?;
        (out.width, out.height) = prepared.frame;
        out.labels.clear();
        out.labels.extend_from_slice(prepared.mask_here.as_slice());
        out.instances.clear();
        let (channels, _) = self.found_here.as_slice().as_chunks::<FOUND>();
        out.instances.extend(ids.iter().zip(channels.iter().skip(1)).map(|(&id, found)| {
            let [_, _, area, left, right, top, bottom, confidence] = *found;
            if area == 0 {
                return InstanceStat { id, area, bbox: [0; 4], confidence: 0.0 };
            }
            let bbox = [left, top, right - left + 1, bottom - top + 1];
            InstanceStat { id, area, bbox, confidence: f32::from_bits(confidence) }
        }));
        Ok(())
    }
}
