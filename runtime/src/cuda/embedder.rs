//! From a frame to its embeddings on the GPU: one copy of the frame there, or none, and one of the embeddings back.
//!
//! Twin of what [`FrameEmbedder`](crate::embed::FrameEmbedder) does on the CPU. The network runs in the lanes that all
//! streams of a model share, so that a stream adds the memory of its frames only.
#![allow(unsafe_code)] // The stages leave it to their caller that buffers outlive the work on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conceptseg_tensorrt::cuda::{Context, Event, PinnedBuffer, Stream};

use super::device_frame::{DeviceFrame, DevicePlanes};
use super::embed::{BadCell, EmbedStage, MapSize};
use super::preprocess::{FrameLayout, PreprocessStage};
use super::{CudaPathError, Kernels};
use crate::backend::tensorrt::{Gpu, InputShape, Kept, Lane, TensorRt, TensorRtError};
use crate::embed::{EmbedError, EmbedTimes, EmbeddingMap, InputSize, Model};
use crate::frame::{FrameView, Normalization};

/// A frame, wherever it is.
pub(crate) enum GpuInput<'a> {
    /// In the host's memory.
    Host(&'a FrameView<'a>),
    /// On a GPU.
    Device(&'a DeviceFrame<'a>),
}

impl GpuInput<'_> {
    fn layout(&self) -> FrameLayout {
        match self {
            Self::Host(frame) => (*frame).into(),
            Self::Device(frame) => frame.layout(),
        }
    }
}

/// What one stream keeps on the GPU. It is lost when the GPU is reset, and made anew.
#[derive(Debug)]
pub(crate) struct GpuEmbedder(Kept<OnGpu>);

impl GpuEmbedder {
    /// Nothing yet.
    pub(crate) fn new(gpu: &TensorRt) -> Self {
        Self(gpu.keep())
    }

    /// Embeds a frame.
    ///
    /// # Errors
    /// [`EmbedError`]. The content of `map` is as it was, or of no use.
    pub(crate) fn run(
        &mut self,
        (model, gpu): (&Model, &TensorRt),
        frame: &GpuInput<'_>,
        size: InputSize,
        map: &mut EmbeddingMap,
    ) -> Result<EmbedTimes, EmbedError> {
        gpu.with_gpu(|gpu| {
            let mut kept = self.0.of(gpu);
            let on_gpu = match &mut *kept {
                Some(on_gpu) => on_gpu,
                none => none.insert(OnGpu::new(gpu.cuda(), model)?),
            };
            on_gpu.run(gpu, model, frame, size, map)
        })
    }
}

/// The stages of one stream, with their buffers.
#[derive(Debug)]
struct OnGpu {
    preprocess: PreprocessStage,
    embed: EmbedStage,
    /// The embeddings on their way to the host.
    found: Option<PinnedBuffer<f32>>,
    /// Before and behind the network.
    marks: [Event; 2],
}

impl OnGpu {
    fn new(cuda: &Arc<Context>, model: &Model) -> Result<Self, CudaPathError> {
        let kernels = Kernels::shared(cuda)?;
        let input = &model.bundle().manifest.input;
        let normalization = Normalization { mean: input.mean, std: input.std };
        Ok(Self {
            preprocess: PreprocessStage::new(&kernels, normalization)?,
            embed: EmbedStage::new(&kernels)?,
            found: None,
            marks: [Event::new(cuda)?, Event::new(cuda)?],
        })
    }

    fn run(
        &mut self,
        gpu: &Gpu,
        model: &Model,
        frame: &GpuInput<'_>,
        size: InputSize,
        map: &mut EmbeddingMap,
    ) -> Result<EmbedTimes, EmbedError> {
        let began = Instant::now();
        let layout = frame.layout();
        let (w, h) = size.of(model, layout.size.0, layout.size.1);
        model.check_size(w as usize, h as usize)?;
        let engine = gpu.engine(InputShape::one(h, w))?;
        let given = engine.output_shape();
        model.check_output(w as usize, h as usize, given)?;
        let cells = MapSize { height: given.height, width: given.width, dim: given.dim };

        let of_cuda = CudaPathError::from;
        let network = engine.with_lane(|lane| {
            self.preprocess.prepare_for(&lane.stream, layout, (w, h), 1)?;
            self.embed.prepare(&lane.stream, cells, 1)?;
            let numbers = cells.cells() * cells.dim;
            if self.found.as_ref().is_none_or(|found| found.len() != numbers) {
                self.found = None;
                self.found = Some(PinnedBuffer::new(gpu.cuda(), numbers).map_err(of_cuda)?);
            }
            let on_device = match frame {
                GpuInput::Host(frame) => {
                    self.preprocess.stage(0, frame)?;
                    None
                }
                GpuInput::Device(frame) => {
                    Some((*frame, frame.planes(gpu.cuda()).map_err(of_cuda)?))
                }
            };
            let queued =
                self.enqueue(lane, on_device.as_ref().map(|(frame, planes)| (*frame, planes)));
            // After an error too: nothing may be dropped, unmapped or written while the GPU uses it.
            let done = lane.stream.synchronize();
            drop(on_device);
            queued?;
            done.map_err(of_cuda)?;
            self.take(&lane.stream, model, cells, map)?;
            let [before, behind] = &self.marks;
            let milliseconds = behind.milliseconds_since(before).map_err(of_cuda)?;
            Ok::<_, EmbedError>(Duration::try_from_secs_f32(milliseconds / 1e3).unwrap_or_default())
        })?;
        let preprocess = began.elapsed().saturating_sub(network);
        Ok(EmbedTimes { preprocess, network })
    }

    /// Puts the whole work of a frame into the lane's stream.
    fn enqueue(
        &mut self,
        lane: &mut Lane,
        on_device: Option<(&DeviceFrame<'_>, &DevicePlanes)>,
    ) -> Result<(), CudaPathError> {
        let Lane { context, input, output, stream, .. } = lane;
        // SAFETY, here and below: stages, buffers and frame live until `run` has waited for the stream, which nobody
        // else uses meanwhile.
        unsafe { self.preprocess.enqueue_into(stream, on_device, input)? };
        self.marks[0].record(stream)?;
        context.enqueue(stream).map_err(TensorRtError::from)?;
        self.marks[1].record(stream)?;
        // SAFETY: as above.
        unsafe { self.embed.enqueue(stream, output)? };
        if let Some(found) = &self.found {
            // SAFETY: as above.
            unsafe { self.embed.embeddings()?.download_async(stream, found, found.len())? };
        }
        Ok(())
    }

    /// Takes the embeddings.
    fn take(
        &mut self,
        stream: &Arc<Stream>,
        model: &Model,
        cells: MapSize,
        map: &mut EmbeddingMap,
    ) -> Result<(), EmbedError> {
        if let Some(BadCell { row, column, length, .. }) = self.embed.finish(stream)? {
            let bundle = model.bundle().dir.clone();
            return Err(EmbedError::NotUnit { bundle, row, column, length });
        }
        (map.height, map.width, map.dim) = (cells.height, cells.width, cells.dim);
        map.stride = model.stride();
        map.data.clear();
        if let Some(found) = &self.found {
            map.data.extend_from_slice(found.as_slice());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
