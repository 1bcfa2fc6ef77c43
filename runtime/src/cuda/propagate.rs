//! Mask propagation on the GPU. Twin of [`Propagator`](crate::propagate::Propagator) for
//! [`Protocol::Dino`].
//!
//! The steps, their arithmetic and the rules for ties are those of the CPU. Dot products are equal
//! to the bit where the CPU has fused multiply-adds; without them, two cells of almost the same
//! score may change places. Weights differ by the last bits of `exp`, soft labels by some 1e-7 of
//! them, and masks in the pixels where that decides: less than one in a thousand. Confidences are
//! added in another order and may differ by 1e-4.
#![allow(unsafe_code)] // Launches of kernels and asynchronous copies.

mod masks;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Arg, DeviceBuffer, Function, PinnedBuffer, Stream};

use super::launch::{int, launch, of};
use super::{CudaPathError, Kernels, MAX_DIM, MAX_SIDE};
use crate::labels::LabelMap;
use crate::propagate::{
    MaskMap, PropagateError, PropagationConfig, Protocol, first_labels, instances_of,
};
use masks::{MaskFunctions, MaskWriter};

/// Columns and rows of cells that a block of the search looks for, its threads, and its warps, each
/// of which makes lists of its own: `SEARCH_…` of the kernel.
const TILE: (usize, usize) = (32, 4);
const SEARCH_THREADS: u32 = 128;
const WARPS: usize = 4;
/// Most cells of a map: those of a frame of the largest side at a stride of 4.
const MAX_CELLS: usize = 1 << 24;
/// Context table before the slots: frames in use, slot of the frame in work.
const TABLE_HEAD: usize = 2;

/// What the stage answers that has no buffers for the frame at hand.
const NOT_PREPARED: CudaPathError = CudaPathError::NotPrepared { stage: "mask propagation" };

/// Sizes of an embedding map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Dimensions of an embedding.
    pub dim: usize,
    /// Network input pixels per cell along each axis.
    pub stride: usize,
}

impl Grid {
    fn cells(&self) -> usize {
        self.height * self.width
    }

    /// Floats from one channel of a row of the ring to the next.
    fn pitch(&self) -> usize {
        self.width.next_multiple_of(4)
    }

    fn check(&self, embeddings: &DeviceBuffer<f32>) -> Result<(), CudaPathError> {
        let Self { height, width, dim, stride } = *self;
        let len = height.checked_mul(width).and_then(|cells| cells.checked_mul(dim));
        if stride == 0 || embeddings.is_empty() || len != Some(embeddings.len()) {
            let len = embeddings.len();
            return Err(PropagateError::Embedding { len, height, width, dim, stride }.into());
        }
        CudaPathError::check_limit("the number of dimensions of an embedding", dim, MAX_DIM)?;
        let cells = height * width;
        CudaPathError::check_limit("the number of cells of the embedding map", cells, MAX_CELLS)
    }
}

/// Carries instance masks from frame to frame on the GPU.
///
/// For each frame: [`PropagationStage::prepare`], [`PropagationStage::begin`], the work of
/// [`PropagationStage::enqueue`] or a graph captured from it, and when the stream is done
/// [`PropagationStage::finish`].
#[derive(Debug)]
pub struct PropagationStage {
    config: PropagationConfig,
    store: Function,
    search: Function,
    labels: Function,
    masks: MaskFunctions,
    state: Option<State>,
}

/// What exists once a first mask was given.
#[derive(Debug)]
struct State {
    grid: Grid,
    /// Instance of each label channel behind background, rising.
    ids: Vec<u8>,
    /// Frames carried since the start.
    steps: u64,
    /// Embeddings, `[slots, height, dim, pitch]`: the first frame, then a ring of the latest ones and
    /// the one in work.
    ring: DeviceBuffer<f32>,
    /// Soft labels, `[slots, channels, cells]`.
    soft: DeviceBuffer<f32>,
    /// Lists of the search, `[frames * WARPS, k, cells]`.
    scores: DeviceBuffer<f32>,
    sources: DeviceBuffer<i32>,
    /// Context frames in use, slot of the frame in work, slots of the context frames; and what the
    /// next frame uploads there.
    context: DeviceBuffer<i32>,
    positions: PinnedBuffer<i32>,
    writer: MaskWriter,
}

impl PropagationStage {
    /// A stage that waits for a first mask.
    ///
    /// # Errors
    /// [`CudaPathError::Protocol`], [`PropagateError::Setting`], or a kernel is missing.
    pub fn new(kernels: &Kernels, config: PropagationConfig) -> Result<Self, CudaPathError> {
        config.check()?;
        if config.protocol != Protocol::Dino {
            return Err(CudaPathError::Protocol { protocol: config.protocol });
        }
        let (search, labels) = match config.topk {
            ..=5 => ("propagate_search_5", "propagate_labels_5"),
            6..=10 => ("propagate_search_10", "propagate_labels_10"),
            11.. => ("propagate_search_64", "propagate_labels_64"),
        };
        Ok(Self {
            config,
            store: kernels.function("propagate_store")?,
            search: kernels.function(search)?,
            labels: kernels.function(labels)?,
            masks: MaskFunctions::new(kernels)?,
            state: None,
        })
    }

    /// Whether [`PropagationStage::start`] succeeded before.
    pub fn is_started(&self) -> bool {
        self.state.is_some()
    }

    /// Bytes of all device buffers; constant between two starts once prepared for a frame size.
    pub fn memory_bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |s| {
            s.ring.bytes()
                + s.soft.bytes()
                + s.scores.bytes()
                + s.sources.bytes()
                + s.context.bytes()
                + s.writer.memory_bytes()
        })
    }

    /// Instance of each pixel of the frame, `[height, width]` and up to three bytes more, 0 for
    /// background; filled by [`PropagationStage::enqueue`].
    pub fn mask(&self) -> Result<&Arc<DeviceBuffer<u8>>, CudaPathError> {
        self.state.as_ref().ok_or(PropagateError::NotStarted)?.writer.mask()
    }

    /// Starts, or starts anew, with a frame whose masks are known: the embeddings `[height, width,
    /// dim]` and a mask at any size, usually the frame's. Void (255) is taken as background. Waits
    /// for the stream; graphs that were captured before are void.
    ///
    /// # Errors
    /// [`CudaPathError`]; a propagation that was under way then goes on as before.
    pub fn start(
        &mut self,
        stream: &Arc<Stream>,
        grid: Grid,
        embeddings: &DeviceBuffer<f32>,
        mask: &LabelMap,
    ) -> Result<(), CudaPathError> {
        grid.check(embeddings)?;
        let ids = instances_of(mask)?;
        let frames = 1 + self.config.context_frames;
        // Cells of all context frames are numbered in 31 bits.
        let most = i32::MAX as usize / grid.cells();
        CudaPathError::check_limit("the number of context frames", frames, most)?;
        let (cells, channels) = (grid.cells(), ids.len() + 1);
        let (slots, lists) = (frames + 1, frames * WARPS * self.config.topk);
        let gpu = stream.context();
        let mut state = State {
            grid,
            steps: 0,
            ring: DeviceBuffer::new(gpu, slots * grid.height * grid.dim * grid.pitch())?,
            soft: DeviceBuffer::new(gpu, slots * channels * cells)?,
            scores: DeviceBuffer::new(gpu, lists * cells)?,
            sources: DeviceBuffer::new(gpu, lists * cells)?,
            context: DeviceBuffer::new(gpu, TABLE_HEAD + frames)?,
            positions: PinnedBuffer::new(gpu, TABLE_HEAD + frames)?,
            writer: MaskWriter::new(stream, grid, &ids)?,
            ids,
        };
        let mut first = vec![0.0; cells * channels];
        let size = (grid.height, grid.width, grid.stride);
        first_labels(mask, size, &state.ids, self.config.first_labels, &mut first);
        let mut planes = PinnedBuffer::<f32>::new(gpu, channels * cells)?;
        for (channel, plane) in planes.as_mut_slice().chunks_exact_mut(cells).enumerate() {
            let values = first.iter().skip(channel).step_by(channels);
            plane.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
        }
        // All zero: no context, and the first frame's slot for the frame in work.
        state.positions.as_mut_slice().fill(0);
        // SAFETY: the stream is waited for before anything is dropped, also after an error; the first
        // slot of the labels has as many values as the planes.
        let answer = unsafe {
            let labels = state.soft.upload_async(stream, &planes, channels * cells);
            labels.map_err(Into::into).and_then(|()| self.put_first(stream, &state, embeddings))
        };
        stream.synchronize()?;
        answer?;
        self.state = Some(state);
        Ok(())
    }

    /// # Safety
    /// As [`PropagationStage::enqueue`].
    unsafe fn put_first(
        &self,
        stream: &Arc<Stream>,
        state: &State,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
        // SAFETY: the caller's promise.
        unsafe {
            state.context.upload_async(stream, &state.positions, state.positions.len())?;
            self.store(stream, state, embeddings)
        }
    }

    /// Makes buffers and tables for masks of `frame` (width, height), unless they are there. Answers
    /// whether they were made: graphs that were captured before are void then. The stream must be
    /// idle.
    ///
    /// # Errors
    /// [`PropagateError::NotStarted`], [`PropagateError::Grid`] when the frame size changed in a way
    /// that changes the grid, [`CudaPathError::Frame`], or memory is short; the state is as
    /// before then.
    pub fn prepare(
        &mut self,
        stream: &Arc<Stream>,
        grid: Grid,
        frame: (u32, u32),
    ) -> Result<bool, CudaPathError> {
        let state = self.state.as_mut().ok_or(PropagateError::NotStarted)?;
        let tuple = |g: Grid| (g.height, g.width, g.dim, g.stride);
        if grid != state.grid {
            let (expected, got) = (tuple(state.grid), tuple(grid));
            return Err(PropagateError::Grid { expected, got }.into());
        }
        let (width, height) = frame;
        let side = 1..=MAX_SIDE as u32;
        if !side.contains(&width) || !side.contains(&height) {
            return Err(CudaPathError::Frame { width, height });
        }
        state.writer.prepare(stream, grid, frame)
    }

    /// Sets the places in the ring for the next frame, which are uploaded with it. The stream must
    /// be idle.
    ///
    /// # Errors
    /// [`PropagateError::NotStarted`].
    pub fn begin(&mut self) -> Result<(), CudaPathError> {
        let state = self.state.as_mut().ok_or(PropagateError::NotStarted)?;
        let ring = self.config.context_frames as u64 + 1;
        let filled = state.steps.min(self.config.context_frames as u64);
        let slot = |step: u64| 1 + (step % ring) as i32;
        if let [len, current, first, recent @ ..] = state.positions.as_mut_slice() {
            (*len, *current, *first) = (1 + filled as i32, slot(state.steps), 0);
            for (age, place) in (1..=filled).zip(recent) {
                *place = slot(state.steps - age);
            }
        }
        Ok(())
    }

    /// Puts all work that carries the masks to a frame with these embeddings into the stream:
    /// uploading what [`PropagationStage::begin`] set, kernels, downloading the mask.
    ///
    /// # Errors
    /// [`CudaPathError`], also when `embeddings` has another size than that of the grid.
    ///
    /// # Safety
    /// Neither the stage nor `embeddings` may be dropped, and nothing but
    /// [`PropagationStage::finish`] called after it, before the stream is done; and neither dropped,
    /// started nor prepared for another size before the last launch of a graph captured from this.
    pub unsafe fn enqueue(
        &self,
        stream: &Arc<Stream>,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
        let state = self.state.as_ref().ok_or(PropagateError::NotStarted)?;
        let grid = state.grid;
        grid.check(embeddings)?;
        let (frames, k) = (1 + self.config.context_frames, self.config.topk);
        let (cells, channels) = (grid.cells(), state.ids.len() + 1);
        let found = state.writer.found();
        let radius = self.config.radius;
        let search = [
            of(&state.ring),
            of(&state.context),
            of(&state.scores),
            of(&state.sources),
            int(grid.height),
            int(grid.width),
            int(grid.dim),
            int(grid.pitch()),
            int(radius.min(grid.height - 1)),
            int(radius.min(grid.width - 1)),
            int(k),
        ];
        let labels = [
            of(&state.scores),
            of(&state.sources),
            of(&state.context),
            of(&state.soft),
            of(found),
            int(cells),
            int(channels),
            int(k),
            Arg::F32(self.config.temperature),
        ];
        let tiles = grid.width.div_ceil(TILE.0) * grid.height.div_ceil(TILE.1);
        // SAFETY: the caller keeps all buffers. The arguments are those of the kernels, and the
        // buffers hold what they read and write for the sizes that they are told: `begin` names slots
        // of the ring only, and every source of a list is a cell of a context frame.
        unsafe {
            state.context.upload_async(stream, &state.positions, state.positions.len())?;
            self.store(stream, state, embeddings)?;
            launch(&self.search, stream, [tiles, frames], SEARCH_THREADS, &search)?;
            launch(&self.labels, stream, [cells.div_ceil(64), 1], 64, &labels)?;
            state.writer.enqueue(&self.masks, stream, grid, channels, &state.soft, &state.context)
        }
    }

    /// Takes the mask that was downloaded, after the stream is done, and the frame into the context.
    ///
    /// # Errors
    /// [`PropagateError::NotStarted`], [`CudaPathError::NotPrepared`].
    pub fn finish(&mut self, out: &mut MaskMap) -> Result<(), CudaPathError> {
        let state = self.state.as_mut().ok_or(PropagateError::NotStarted)?;
        state.writer.finish(&state.ids, out)?;
        state.steps += 1;
        Ok(())
    }

    /// Carries the masks to the next frame and writes them at the size of `frame` (width, height):
    /// all of the above, waiting for the stream.
    ///
    /// # Errors
    /// As [`PropagationStage::prepare`] and [`PropagationStage::enqueue`]; the frame does not enter
    /// the context then.
    pub fn step(
        &mut self,
        stream: &Arc<Stream>,
        grid: Grid,
        embeddings: &DeviceBuffer<f32>,
        frame: (u32, u32),
        out: &mut MaskMap,
    ) -> Result<(), CudaPathError> {
        stream.synchronize()?;
        self.prepare(stream, grid, frame)?;
        self.begin()?;
        // SAFETY: the stream is waited for before anything else happens, also after an error.
        let answer = unsafe { self.enqueue(stream, embeddings) };
        stream.synchronize()?;
        answer?;
        self.finish(out)
    }

    /// Puts the copy of embeddings into the slot of the frame in work into the stream.
    ///
    /// # Safety
    /// As [`PropagationStage::enqueue`]; the slot is one of the ring.
    unsafe fn store(
        &self,
        stream: &Arc<Stream>,
        state: &State,
        embeddings: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
        let grid = state.grid;
        let arguments = [
            of(embeddings),
            of(&state.ring),
            of(&state.context),
            int(grid.height),
            int(grid.width),
            int(grid.dim),
            int(grid.pitch()),
        ];
        let blocks = [grid.width.div_ceil(32) * grid.height, grid.dim.div_ceil(32)];
        // SAFETY: the buffers have the sizes that the kernel is told; the rest is the caller's.
        unsafe { launch(&self.store, stream, blocks, 256, &arguments) }
    }
}
