//! A whole frame on the GPU: one upload, one launch, one wait.
//!
//! All that is done for a frame, from its upload to the download of what was found, is put into one
//! stream. From the second frame of a size on it is recorded as a CUDA graph, which one call starts.
//! Twin of what [`StreamState`](crate::stream::StreamState) does on the CPU.
#![allow(unsafe_code)] // The stages leave it to their caller that buffers outlive the work on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conceptseg_tensorrt::ExecutionContext;
use conceptseg_tensorrt::cuda::{DeviceBuffer, Event, Graph, Stream};

use super::concepts::ConceptStage;
use super::embed::{BadCell, EmbedStage, MapSize};
use super::preprocess::PreprocessStage;
use super::propagate::{Grid, PropagationStage};
use super::{CudaPathError, KernelSource, Kernels};
use crate::backend::tensorrt::{Gpu, InputShape, Kept, TensorRt, TensorRtError};
use crate::embed::{EmbedError, InputSize, Model};
use crate::frame::{FrameView, Normalization};
use crate::labels::LabelMap;
use crate::propagate::PropagateError;
use crate::stream::{FrameResult, StageTimes, StreamConfig, StreamError};

/// What a stage answers that has no buffers yet.
const NOT_PREPARED: CudaPathError = CudaPathError::NotPrepared { stage: "the whole frame" };
/// Marks in the stream: at the beginning, and behind preprocessing, network, concepts and masks.
const MARKS: usize = 5;

/// What one video keeps on the GPU. It is lost when the GPU is reset, and made anew.
#[derive(Debug)]
pub(crate) struct GpuStream {
    kept: Kept<OnGpu>,
    graphs: bool,
}

impl GpuStream {
    /// Nothing yet. Without `graphs`, each part of a frame's work is started by a call of its own.
    pub(crate) fn new(gpu: &TensorRt, graphs: bool) -> Self {
        Self { kept: gpu.keep(), graphs }
    }

    /// Processes a frame. `given` is its mask, already checked; otherwise the masks in `out`, if there
    /// are any, are those of the frame before, and are carried on.
    ///
    /// # Errors
    /// [`StreamError`]. What was carried before stays.
    pub(crate) fn process(
        &mut self,
        (model, gpu): (&Model, &TensorRt),
        config: &StreamConfig,
        frame: &FrameView<'_>,
        given: Option<&LabelMap>,
        out: &mut FrameResult,
    ) -> Result<(), StreamError> {
        gpu.with_gpu(|gpu| {
            let mut kept = self.kept.of(gpu);
            let on_gpu = match &mut *kept {
                Some(on_gpu) => on_gpu,
                none => none.insert(OnGpu::new(gpu, model, config, self.graphs)?),
            };
            let begun = Instant::now();
            let seed = on_gpu.prepare(gpu, model, config, frame, given, out)?;
            on_gpu.run(frame)?;
            on_gpu.finish(model, out)?;
            if let Some(seed) = seed {
                on_gpu.start(&seed, model, out)?;
            }
            out.times = on_gpu.times(begun.elapsed(), config.concepts)?;
            Ok(())
        })
    }
}

/// The network for one size of input.
#[derive(Debug)]
struct Network {
    shape: InputShape,
    context: ExecutionContext,
    output: Arc<DeviceBuffer<f32>>,
    map: MapSize,
}

/// The stages of one video, with their buffers.
#[derive(Debug)]
struct OnGpu {
    // Graphs go before what they use.
    /// The recorded work, without and with carrying masks.
    graphs: [Recording; 2],
    preprocess: PreprocessStage,
    network: Option<Network>,
    embed: EmbedStage,
    concepts: Option<ConceptStage>,
    masks: PropagationStage,
    /// Whether the frame in work carries masks.
    carries: bool,
    marks: [Event; MARKS],
    stream: Arc<Stream>,
}

/// How the work of a frame is started.
#[derive(Debug)]
enum Recording {
    /// Part by part, always.
    Never,
    /// Part by part: TensorRT prepares itself in the first run after a change, which cannot be recorded.
    Next,
    /// As soon as there is a frame.
    Now,
    /// By one call.
    Done(Graph),
}

impl Recording {
    fn restart(&mut self) {
        if !matches!(self, Self::Never) {
            *self = Self::Next;
        }
    }
}

impl OnGpu {
    fn new(
        gpu: &Gpu,
        model: &Model,
        config: &StreamConfig,
        graphs: bool,
    ) -> Result<Self, StreamError> {
        let cuda = gpu.cuda();
        let kernels = Kernels::load(cuda, KernelSource::Ptx)?;
        let stream = Stream::new(cuda).map_err(CudaPathError::from)?;
        let input = &model.bundle().manifest.input;
        let normalization = Normalization { mean: input.mean, std: input.std };
        let concepts = config
            .concepts
            .then(|| ConceptStage::new(&kernels, &stream, model.codebook(), &config.segmentation))
            .transpose()?;
        let mark = || Event::new(cuda).map_err(CudaPathError::from);
        let recording = || if graphs { Recording::Next } else { Recording::Never };
        Ok(Self {
            graphs: [recording(), recording()],
            preprocess: PreprocessStage::new(&kernels, normalization)?,
            network: None,
            embed: EmbedStage::new(&kernels)?,
            concepts,
            masks: PropagationStage::new(&kernels, config.propagation.clone())?,
            carries: false,
            marks: [mark()?, mark()?, mark()?, mark()?, mark()?],
            stream,
        })
    }

    /// Makes what a frame of this size needs, and takes its pixels. Answers the masks to start from,
    /// where they are not carried from the frame before by the GPU itself.
    fn prepare(
        &mut self,
        gpu: &Gpu,
        model: &Model,
        config: &StreamConfig,
        frame: &FrameView<'_>,
        given: Option<&LabelMap>,
        out: &FrameResult,
    ) -> Result<Option<LabelMap>, StreamError> {
        let size = (frame.width(), frame.height());
        let input = InputSize::ShortSide(config.short_side).of(model, size.0, size.1);
        model.check_size(input.0 as usize, input.1 as usize)?;
        let mut changed = self.preprocess.prepare(&self.stream, frame, input, 1)?;
        let shape = InputShape::one(input.1, input.0);
        if changed || self.network.as_ref().is_none_or(|network| network.shape != shape) {
            self.network = None;
            self.network = Some(self.network(gpu, model, shape)?);
            changed = true;
        }
        let map = self.network.as_ref().ok_or(NOT_PREPARED)?.map;
        changed |= self.embed.prepare(&self.stream, map, 1)?;
        if let Some(concepts) = &mut self.concepts {
            let size = (size.0 as usize, size.1 as usize);
            changed |= concepts.prepare(&self.stream, map, size)?;
        }
        if changed {
            self.graphs.iter_mut().for_each(Recording::restart);
        }
        self.preprocess.stage(0, frame)?;

        self.carries = false;
        if let Some(given) = given {
            return Ok(Some(given.clone()));
        }
        // The last masks, where the GPU has lost its own or had them for another grid.
        let last = || {
            let last = out.masks.as_ref().map(|masks| masks.scaled(size.0, size.1));
            last.filter(|last| !last.instance_ids().is_empty())
        };
        if !self.masks.is_started() {
            return Ok(last());
        }
        if out.masks.is_none() {
            return Ok(None);
        }
        match self.masks.prepare(&self.stream, grid(map, model), size) {
            Ok(changed) => {
                if changed {
                    self.graphs[1].restart();
                }
                self.masks.begin()?;
                self.carries = true;
                Ok(None)
            }
            Err(CudaPathError::Propagate(PropagateError::Grid { .. })) => Ok(last()),
            Err(error) => Err(error.into()),
        }
    }

    fn network(&self, gpu: &Gpu, model: &Model, shape: InputShape) -> Result<Network, StreamError> {
        let engine = gpu.engine(shape)?;
        let given = engine.output_shape();
        model.check_output(shape.width as usize, shape.height as usize, given)?;
        let output =
            DeviceBuffer::new(gpu.cuda(), engine.output_len()).map_err(CudaPathError::from)?;
        let output = Arc::new(output);
        let context = engine.context(self.preprocess.input()?, &output)?;
        let map = MapSize { height: given.height, width: given.width, dim: given.dim };
        Ok(Network { shape, context, output, map })
    }

    /// Does the work of the staged frame, and waits for it.
    fn run(&mut self, frame: &FrameView<'_>) -> Result<(), StreamError> {
        let which = usize::from(self.carries);
        let started = match &self.graphs[which] {
            Recording::Never | Recording::Next => self.enqueue(false),
            Recording::Done(graph) => {
                // SAFETY: whatever was recorded is still there, because all that replaces a buffer also
                // restarts the recording; and the stream is waited for below.
                unsafe { graph.launch(&self.stream) }.map_err(Into::into)
            }
            Recording::Now => self.record(which),
        };
        // After an error too: nothing may be dropped or written while the GPU uses it.
        let done = self.stream.synchronize().map_err(CudaPathError::from);
        started?;
        done?;
        if matches!(self.graphs[which], Recording::Next) {
            self.graphs[which] = Recording::Now;
        }
        tracing::trace!("a frame of {}x{} was done on the GPU", frame.width(), frame.height());
        Ok(())
    }

    /// Records the work of a frame and starts it. A network that cannot be recorded is run part by part.
    fn record(&mut self, which: usize) -> Result<(), CudaPathError> {
        let stream = Arc::clone(&self.stream);
        match Graph::capture(&stream, || self.enqueue(true)) {
            Ok(graph) => {
                // SAFETY: as in `run`, which waits for the stream.
                unsafe { graph.launch(&stream) }?;
                self.graphs[which] = Recording::Done(graph);
                Ok(())
            }
            Err(error) => {
                tracing::info!("frames are not recorded as CUDA graphs: {error}");
                self.graphs[which] = Recording::Never;
                self.enqueue(false)
            }
        }
    }

    /// Puts the whole work of a frame into the stream.
    fn enqueue(&mut self, recorded: bool) -> Result<(), CudaPathError> {
        let Self { stream, network, marks, .. } = self;
        let network = network.as_mut().ok_or(NOT_PREPARED)?;
        let mark = |index: usize| {
            let mark: &Event = &marks[index];
            if recorded { mark.record_in_graph(stream) } else { mark.record(stream) }
        };
        mark(0)?;
        // SAFETY, here and below: the stages and buffers belong to `self`, which waits for the stream before it
        // does anything else with them, and forgets what was recorded before it replaces one.
        unsafe { self.preprocess.enqueue(stream) }?;
        mark(1)?;
        if recorded {
            // SAFETY: as above.
            unsafe { network.context.enqueue_raw(stream.raw()) }
        } else {
            network.context.enqueue(stream)
        }
        .map_err(TensorRtError::from)?;
        // SAFETY: as above.
        unsafe { self.embed.enqueue(stream, &network.output) }?;
        let embeddings = self.embed.embeddings()?;
        mark(2)?;
        if let Some(concepts) = &self.concepts {
            // SAFETY: as above.
            unsafe { concepts.enqueue(stream, embeddings) }?;
        }
        mark(3)?;
        if self.carries {
            // SAFETY: as above.
            unsafe { self.masks.enqueue(stream, embeddings) }?;
        }
        Ok(mark(4)?)
    }

    /// Takes what was found.
    fn finish(&mut self, model: &Model, out: &mut FrameResult) -> Result<(), StreamError> {
        if let Some(BadCell { row, column, length, .. }) = self.embed.finish(&self.stream)? {
            let bundle = model.bundle().dir.clone();
            return Err(EmbedError::NotUnit { bundle, row, column, length }.into());
        }
        if let Some(concepts) = &self.concepts {
            concepts.finish(&self.stream, out.concepts.get_or_insert_default())?;
        }
        if self.carries {
            self.masks.finish(out.masks.get_or_insert_default())?;
        }
        Ok(())
    }

    /// Starts carrying masks from the frame that was done last.
    fn start(
        &mut self,
        mask: &LabelMap,
        model: &Model,
        out: &mut FrameResult,
    ) -> Result<(), StreamError> {
        let map = self.network.as_ref().ok_or(NOT_PREPARED)?.map;
        self.graphs[1].restart();
        self.masks.start(&self.stream, grid(map, model), self.embed.embeddings()?, mask)?;
        out.masks.get_or_insert_default().set_given(mask);
        Ok(())
    }

    /// Time of each stage on the GPU; what the host did is counted as preprocessing.
    fn times(&self, total: Duration, concepts: bool) -> Result<StageTimes, CudaPathError> {
        let mut stages = [Duration::ZERO; MARKS - 1];
        for (stage, pair) in stages.iter_mut().zip(self.marks.windows(2)) {
            if let [from, to] = pair {
                let milliseconds = to.milliseconds_since(from)?;
                *stage = Duration::try_from_secs_f32(milliseconds / 1e3).unwrap_or_default();
            }
        }
        let [_, network, labelling, carrying] = stages;
        let rest = network + labelling + carrying;
        Ok(StageTimes {
            preprocess: total.saturating_sub(rest),
            network,
            concepts: if concepts { labelling } else { Duration::ZERO },
            propagation: if self.carries { carrying } else { Duration::ZERO },
        })
    }
}

fn grid(map: MapSize, model: &Model) -> Grid {
    let stride = model.bundle().manifest.embedder.stride;
    Grid { height: map.height, width: map.width, dim: map.dim, stride }
}

#[cfg(test)]
mod tests;
