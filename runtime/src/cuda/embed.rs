//! Network output to embeddings on the GPU. Twin of what [`Model::embed`](crate::embed::Model::embed)
//! does behind the network.
//!
//! Besides, every embedding is brought to unit length, so that what a network in half precision
//! leaves of rounding does not enter cosines. Against the CPU a value differs by at most that
//! rounding (`1e-6` where the network computes in f32).
#![allow(unsafe_code)] // Launches of kernels and asynchronous copies.

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Arg, DeviceBuffer, Function, PinnedBuffer, Stream};

use super::{CudaPathError, Kernels, MAX_DIM};
use crate::embed::UNIT_TOLERANCE;

const NOT_PREPARED: CudaPathError = CudaPathError::NotPrepared { stage: "embeddings" };
/// Cells of a block, `EMBED_CELLS` of the kernel.
const CELLS: usize = 32;
/// Most cells of a map: those of a frame of the largest side at a stride of 4.
pub(super) const MAX_CELLS: usize = 1 << 24;

/// Sizes of a network's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels of a cell.
    pub dim: usize,
}

impl MapSize {
    /// Cells of a map.
    pub fn cells(&self) -> usize {
        self.height * self.width
    }

    /// # Errors
    /// [`CudaPathError`] when the kernels do not take a map of this size.
    pub(super) fn check(&self) -> Result<(), CudaPathError> {
        CudaPathError::check_size("dimensions of an embedding", self.dim, MAX_DIM)?;
        let cells = self.height.saturating_mul(self.width);
        CudaPathError::check_size("cells of the embedding map", cells, MAX_CELLS)
    }
}

/// A cell whose embedding was neither of unit length nor zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BadCell {
    /// Frame of the batch.
    pub index: usize,
    /// Row in its map.
    pub row: usize,
    /// Column in its map.
    pub column: usize,
    /// Length found; not a number where the network diverged.
    pub length: f32,
}

/// Buffers for one size.
#[derive(Debug)]
struct Prepared {
    size: MapSize,
    batch: usize,
    embeddings: Arc<DeviceBuffer<f32>>,
    /// Length of each cell before it was normalised.
    lengths: DeviceBuffer<f32>,
    /// Per frame: 0, or the number of cells less the index of the first bad one.
    bad: DeviceBuffer<u32>,
    found: PinnedBuffer<u32>,
}

/// Turns network output into embeddings.
#[derive(Debug)]
pub struct EmbedStage {
    normalise: Function,
    prepared: Option<Prepared>,
}

impl EmbedStage {
    /// A stage without buffers.
    ///
    /// # Errors
    /// [`CudaPathError`] when the kernel is missing.
    pub fn new(kernels: &Kernels) -> Result<Self, CudaPathError> {
        Ok(Self { normalise: kernels.function("embed_normalise")?, prepared: None })
    }

    /// Makes buffers for a batch of maps, unless they are there. Answers whether they were made:
    /// graphs that were captured before are void then. The stream must be idle.
    ///
    /// # Errors
    /// [`CudaPathError`] when a size is 0 or above the limits, or memory is short.
    pub fn prepare(
        &mut self,
        stream: &Arc<Stream>,
        size: MapSize,
        batch: usize,
    ) -> Result<bool, CudaPathError> {
        if self.prepared.as_ref().is_some_and(|p| (p.size, p.batch) == (size, batch)) {
            return Ok(false);
        }
        size.check()?;
        CudaPathError::check_size("frames of a batch", batch, 64)?;
        self.prepared = None;
        let (context, cells) = (stream.context(), batch * size.cells());
        self.prepared = Some(Prepared {
            size,
            batch,
            embeddings: Arc::new(DeviceBuffer::new(context, cells * size.dim)?),
            lengths: DeviceBuffer::new(context, cells)?,
            bad: DeviceBuffer::new(context, batch)?,
            found: PinnedBuffer::new(context, batch)?,
        });
        Ok(true)
    }

    /// The embeddings, `[batch, height, width, dim]`, which [`EmbedStage::enqueue`] fills.
    ///
    /// # Errors
    /// [`CudaPathError::NotPrepared`].
    pub fn embeddings(&self) -> Result<&Arc<DeviceBuffer<f32>>, CudaPathError> {
        Ok(&self.prepared.as_ref().ok_or(NOT_PREPARED)?.embeddings)
    }

    /// Puts the kernel that turns `network`, `[batch, dim, height, width]`, into embeddings into the
    /// stream, and the download of its answer about lengths.
    ///
    /// # Errors
    /// [`CudaPathError`], also when `network` has another size than was prepared for.
    ///
    /// # Safety
    /// Neither the stage nor `network` may be dropped, nor the stage prepared for another size, before
    /// the stream is done, nor before the last launch of a graph captured from this.
    pub unsafe fn enqueue(
        &self,
        stream: &Arc<Stream>,
        network: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
        let prepared = self.prepared.as_ref().ok_or(NOT_PREPARED)?;
        let Prepared { size, batch, .. } = *prepared;
        if network.len() != prepared.embeddings.len() {
            return Err(NOT_PREPARED);
        }
        let cells = size.cells();
        let arguments = [
            Arg::Buffer(network.address()),
            Arg::Buffer(prepared.embeddings.address()),
            Arg::Buffer(prepared.lengths.address()),
            Arg::Buffer(prepared.bad.address()),
            Arg::I32(cells as i32),
            Arg::I32(size.dim as i32),
            Arg::F32(UNIT_TOLERANCE),
        ];
        let grid = [cells.div_ceil(CELLS) as u32, batch as u32, 1];
        // SAFETY: the caller keeps all buffers. The arguments are those of the kernel, and the buffers
        // have the sizes that it is told.
        unsafe {
            prepared.bad.zero_async(stream)?;
            self.normalise.launch(stream, grid, [256, 1, 1], &arguments)?;
            prepared.bad.download_async(stream, &prepared.found, batch)?;
        }
        Ok(())
    }

    /// The first cell that was not of unit length, after the stream is done.
    ///
    /// # Errors
    /// [`CudaPathError`] when its length cannot be read.
    pub fn finish(&self, stream: &Arc<Stream>) -> Result<Option<BadCell>, CudaPathError> {
        let prepared = self.prepared.as_ref().ok_or(NOT_PREPARED)?;
        let cells = prepared.size.cells();
        let bad = prepared.found.as_slice().iter().enumerate().find(|(_, left)| **left > 0);
        let Some((index, &left)) = bad else { return Ok(None) };
        let cell = cells.saturating_sub(left as usize);
        let mut lengths = vec![0.0; prepared.lengths.len()];
        prepared.lengths.read(stream, &mut lengths)?;
        let (row, column) = (cell / prepared.size.width, cell % prepared.size.width);
        let length = lengths.get(index * cells + cell).copied().unwrap_or(f32::NAN);
        Ok(Some(BadCell { index, row, column, length }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cuda::testing::{TestGpu, gpus};
    use crate::embed::{first_not_unit, transpose};

    /// Embeddings and answer about lengths for a batch of network output.
    fn run(
        gpu: &TestGpu,
        network: &[f32],
        size: MapSize,
        batch: usize,
    ) -> (Vec<f32>, Option<BadCell>) {
        let mut stage = EmbedStage::new(&gpu.kernels).unwrap();
        assert!(stage.prepare(&gpu.stream, size, batch).unwrap());
        assert!(!stage.prepare(&gpu.stream, size, batch).unwrap());
        let input = DeviceBuffer::new(gpu.stream.context(), network.len()).unwrap();
        input.write(&gpu.stream, network).unwrap();
        // SAFETY: stage and input live until the stream is done.
        unsafe { stage.enqueue(&gpu.stream, &input).unwrap() };
        let mut out = vec![f32::NAN; network.len()];
        stage.embeddings().unwrap().read(&gpu.stream, &mut out).unwrap();
        (out, stage.finish(&gpu.stream).unwrap())
    }

    #[test]
    fn embeddings_are_those_of_the_cpu_at_unit_length() {
        for gpu in gpus() {
            proptest!(ProptestConfig::with_cases(32), |(
                (height, width) in (1_usize..9, 1_usize..20),
                dim in prop_oneof![1_usize..40, Just(64), Just(255), Just(256)],
                batch in 1_usize..3,
                broken in prop::option::of((0_usize..180, prop::sample::select(vec![0.0, 0.5, f32::NAN, 1.2]))),
                seed: u32,
            )| {
                let size = MapSize { height, width, dim };
                let cells = size.cells();
                // Unit cells, `[batch, cells, dim]`, of which one is scaled.
                let mut cells_first: Vec<f32> = (0..(batch * cells * dim) as u32)
                    .map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 0.9)
                    .collect();
                for cell in cells_first.chunks_exact_mut(dim) {
                    let length = cell.iter().map(|v| v * v).sum::<f32>().sqrt();
                    for v in cell {
                        *v /= length;
                    }
                }
                let unit = cells_first.clone();
                if let Some((cell, factor)) = broken {
                    let cell = cell % (batch * cells);
                    cells_first[cell * dim..][..dim].iter_mut().for_each(|v| *v *= factor);
                }
                let mut network = vec![0.0; cells_first.len()];
                for (cells_first, network) in
                    cells_first.chunks_exact(cells * dim).zip(network.chunks_exact_mut(cells * dim))
                {
                    // The transpose of the transpose.
                    transpose(cells_first, cells, network);
                }
                let (out, bad) = run(&gpu, &network, size, batch);
                let found = first_not_unit(&cells_first, dim);
                match (bad, found) {
                    (None, None) => {}
                    (Some(bad), Some((cell, length))) => {
                        let at = bad.index * cells + bad.row * width + bad.column;
                        prop_assert_eq!(at, cell);
                        let same = (bad.length - length).abs() < 1e-5 || bad.length.is_nan() && length.is_nan();
                        prop_assert!(same, "{bad:?} {length}");
                    }
                    (bad, found) => prop_assert!(false, "{bad:?} {found:?}"),
                }
                for (i, (got, want)) in out.iter().zip(&unit).enumerate() {
                    match cells_first[i] {
                        v if v.is_nan() => prop_assert!(got.is_nan()),
                        0.0 => prop_assert_eq!(*got, 0.0),
                        _ => prop_assert!((got - want).abs() < 1e-6, "{got} {want}"),
                    }
                }
            });
        }
    }

    #[test]
    fn maps_beyond_the_limits_are_refused() {
        for gpu in gpus() {
            let mut stage = EmbedStage::new(&gpu.kernels).unwrap();
            for size in [
                MapSize { height: 1, width: 1, dim: 257 },
                MapSize { height: 0, width: 1, dim: 1 },
                MapSize { height: usize::MAX, width: 2, dim: 1 },
            ] {
                let error = stage.prepare(&gpu.stream, size, 1).unwrap_err();
                let refused =
                    matches!(error, CudaPathError::Limit { .. } | CudaPathError::Zero { .. });
                assert!(refused, "{error}");
            }
            assert!(matches!(stage.embeddings(), Err(CudaPathError::NotPrepared { .. })));
        }
    }
}
