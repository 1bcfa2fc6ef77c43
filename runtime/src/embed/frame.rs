//! From a frame to its embeddings: preparation and network, with the memory that they reuse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::Member;
use super::{Batching, EmbedError, EmbeddingMap, Model};
use crate::bundle::{EmbedderEntry, SizeRule};
use crate::cuda::{DeviceFrame, GpuEmbedder, GpuInput};
use crate::frame::{FrameError, FrameView, Normalization, Preprocessor, network_size};

/// Largest side that [`InputSize`] answers, but for the long side of frames that are not
/// square, which [`network_size`] bounds.
const MAX_SIDE: u32 = 4096;

/// The size at which the network sees frames. Bundles of a fixed size ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputSize {
    /// The short side becomes that many pixels, the long side keeps the aspect ratio; see
    /// [`network_size`].
    ShortSide(u32),
    /// Frames are squashed to squares of that many pixels on a side.
    Square(u32),
    /// The frame's own size, each side brought to the next multiple of the stride.
    Native,
}

impl InputSize {
    /// Width and height of the network's input for a frame of `width` x `height` pixels.
    pub fn of(self, model: &Model, width: u32, height: u32) -> (u32, u32) {
        self.of_entry(&model.bundle().manifest.embedder, width, height)
    }

    /// The same, for a network that is not loaded.
    pub fn of_entry(self, entry: &EmbedderEntry, width: u32, height: u32) -> (u32, u32) {
        if let SizeRule::Fixed([h, w]) = entry.size {
            return (w, h);
        }
        let stride = u32::try_from(entry.stride).unwrap_or(u32::MAX).max(1);
        self.dynamic(stride, width, height)
    }

    fn dynamic(self, stride: u32, width: u32, height: u32) -> (u32, u32) {
        let nearest = |side: u32| {
            let steps = side.saturating_add(stride / 2) / stride;
            steps.max(1).saturating_mul(stride)
        };
        match self {
            // The short side is a multiple of the stride too, not only of 8. The long side is
            // one of 64, which every usual stride divides.
            Self::ShortSide(side) => network_size(width, height, nearest(side)),
            Self::Square(side) => (nearest(side.min(MAX_SIDE)), nearest(side.min(MAX_SIDE))),
            Self::Native => {
                let next =
                    |side: u32| side.clamp(1, MAX_SIDE).div_ceil(stride).saturating_mul(stride);
                (next(width), next(height))
            }
        }
    }
}

/// Time that a frame took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EmbedTimes {
    /// Resizing, colour conversion, normalisation; on a GPU all that is not the network.
    pub preprocess: Duration,
    /// The network; on a CPU with bringing its output into pixel order.
    pub network: Duration,
}

/// Embeds frame after frame; keeps its memory, so that frames of one size allocate nothing.
#[derive(Debug)]
pub struct FrameEmbedder {
    model: Arc<Model>,
    preprocessor: Preprocessor,
    /// Width and height of `input`.
    size: (usize, usize),
    input: Vec<f32>,
    output: Vec<f32>,
    map: EmbeddingMap,
    /// What the GPU needs for the rest of a frame, where the model runs there.
    gpu: Option<GpuEmbedder>,
    /// Its place among the streams that batch.
    member: Option<Member>,
    batch: usize,
}

impl FrameEmbedder {
    /// An embedder without memory yet.
    pub fn new(model: Arc<Model>) -> Self {
        let entry = &model.bundle().manifest.input;
        Self {
            preprocessor: Preprocessor::new(Normalization { mean: entry.mean, std: entry.std }),
            size: (0, 0),
            input: Vec::new(),
            output: Vec::new(),
            map: EmbeddingMap::default(),
            gpu: model.gpu().map(GpuEmbedder::new),
            member: None,
            batch: 0,
            model,
        }
    }

    /// An embedder whose frames go through the network together with those of other embedders of the model. Each is to
    /// be used by a thread of its own.
    pub fn batched(model: Arc<Model>, batching: Batching) -> Self {
        let member = (batching.size > 1).then(|| Member::join(&model, batching));
        Self { member, ..Self::new(model) }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Embeds a frame: as a whole on the GPU where the model runs there and the embedder does not batch, else as
    /// [`FrameEmbedder::prepare`] and [`FrameEmbedder::embed`] do. Where the GPU is lost in between, the
    /// CPU does this frame and all others if the model may use it.
    ///
    /// # Errors
    /// [`EmbedError`]; the next frame can go on.
    pub fn run(
        &mut self,
        frame: &FrameView<'_>,
        size: InputSize,
    ) -> Result<EmbedTimes, EmbedError> {
        // Batches are made of inputs that the CPU has prepared.
        if self.member.is_none()
            && let Some(times) = self.run_on_gpu(&GpuInput::Host(frame), size)?
        {
            return Ok(times);
        }
        let began = Instant::now();
        self.prepare(frame, size)?;
        let preprocess = began.elapsed();
        self.embed()?;
        Ok(EmbedTimes { preprocess, network: began.elapsed().saturating_sub(preprocess) })
    }

    /// Embeds a frame that is on the GPU already. Nothing where the model does not run on a GPU, or not
    /// any longer, or the kernels do not take such frames: then the frame is needed in the host's memory.
    ///
    /// # Errors
    /// [`EmbedError`]; the next frame can go on.
    pub fn run_device(
        &mut self,
        frame: &DeviceFrame<'_>,
        size: InputSize,
    ) -> Result<Option<EmbedTimes>, EmbedError> {
        self.run_on_gpu(&GpuInput::Device(frame), size)
    }

    fn run_on_gpu(
        &mut self,
        frame: &GpuInput<'_>,
        size: InputSize,
    ) -> Result<Option<EmbedTimes>, EmbedError> {
        let Some(on_gpu) = &mut self.gpu else { return Ok(None) };
        // Another stream may have given it up.
        let Some(gpu) = self.model.gpu() else {
            self.gpu = None;
            return Ok(None);
        };
        match on_gpu.run((&self.model, gpu), frame, size, &mut self.map) {
            Ok(times) => {
                self.batch = 1;
                Ok(Some(times))
            }
            Err(EmbedError::Gpu(error)) if error.is_unsuited() => {
                tracing::debug!("only the network runs on the GPU: {error}");
                Ok(None)
            }
            Err(error) if error.is_of_gpu() && self.model.give_up_gpu(&error) => {
                self.gpu = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the network's input of a frame.
    pub fn prepare(&mut self, frame: &FrameView<'_>, size: InputSize) -> Result<(), FrameError> {
        let (w, h) = size.of(&self.model, frame.width(), frame.height());
        self.preprocessor.run(frame, w, h, &mut self.input)?;
        self.size = (w as usize, h as usize);
        Ok(())
    }

    /// Runs the network on the input that was made last. Where the embedder batches, waits for frames of others before.
    pub fn embed(&mut self) -> Result<&EmbeddingMap, EmbedError> {
        let ((w, h), map) = (self.size, &mut self.map);
        self.batch = match &mut self.member {
            Some(member) => member.embed(&self.input, (w, h), &mut self.output, map)?,
            None => self.model.embed(&self.input, w, h, &mut self.output, map).map(|()| 1)?,
        };
        Ok(&self.map)
    }

    /// How many frames went through the network together with the latest one, that one included.
    pub const fn batch(&self) -> usize {
        self.batch
    }

    /// The input that was made last, `[3, height, width]`, with its width and height.
    pub(crate) fn input(&self) -> (&[f32], (usize, usize)) {
        (&self.input, self.size)
    }

    /// Runs the network on an input of the caller's, `[3, height, width]`, such as a part of the
    /// one that was made last. The map is the caller's to change until the next frame.
    pub(crate) fn embed_input(
        &mut self,
        input: &[f32],
        (w, h): (usize, usize),
    ) -> Result<&mut EmbeddingMap, EmbedError> {
        self.model.embed(input, w, h, &mut self.output, &mut self.map)?;
        Ok(&mut self.map)
    }

    /// The latest embeddings; empty before the first.
    pub fn map(&self) -> &EmbeddingMap {
        &self.map
    }

    /// Where the buffers lie, to see whether they stay.
    #[cfg(test)]
    pub(crate) fn buffers(&self) -> [*const f32; 3] {
        [self.input.as_ptr(), self.output.as_ptr(), self.map.data.as_ptr()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_the_stride() {
        assert_eq!(InputSize::ShortSide(480).dynamic(8, 854, 480), (832, 480));
        assert_eq!(InputSize::ShortSide(478).dynamic(16, 854, 480), (832, 480));
        assert_eq!(InputSize::Square(320).dynamic(8, 854, 480), (320, 320));
        assert_eq!(InputSize::Square(1).dynamic(8, 854, 480), (8, 8));
        assert_eq!(InputSize::Native.dynamic(8, 854, 480), (856, 480));
        assert_eq!(InputSize::Native.dynamic(8, 1, 20_000), (8, 4096));
    }
}
