//! One video stream: frames in, concepts and instance masks out.
//!
//! [`StreamState`] is the only part of the library that remembers anything from frame to frame.
//! Streams share a [`Model`] and nothing else. After the first frame of a size, processing
//! allocates no memory of frame size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::BackendError;
use crate::backend::tensorrt::TensorRtError;
use crate::concepts::{ConceptError, ConceptLabeler, ConceptMap, SegmentationConfig};
use crate::cuda::{CudaPathError, GpuStream};
use crate::embed::{EmbedError, FrameEmbedder, InputSize, Model};
use crate::frame::{FrameError, FrameView};
use crate::labels::LabelMap;
use crate::propagate::{MaskChange, MaskMap, MaskTrack, PropagateError, PropagationConfig};

/// Why a frame could not be processed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The frame could not be prepared.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The network failed, or does not fit its bundle.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The frame could not be labelled with concepts.
    #[error(transparent)]
    Concept(#[from] ConceptError),
    /// The masks could not be carried, or a given mask does not fit.
    #[error(transparent)]
    Propagate(#[from] PropagateError),
    /// Something but the network failed on the GPU.
    #[error("the frame could not be processed on the GPU: {0}")]
    Gpu(CudaPathError),
}

impl StreamError {
    /// Whether the CPU could do what was asked for, because the GPU failed.
    fn is_of_gpu(&self) -> bool {
        let failed = matches!(self, Self::Embed(EmbedError::Backend(BackendError::TensorRt(_))));
        failed || matches!(self, Self::Gpu(_))
    }
}

impl From<CudaPathError> for StreamError {
    fn from(error: CudaPathError) -> Self {
        match error {
            CudaPathError::Propagate(error) => error.into(),
            CudaPathError::Concepts(error) => error.into(),
            CudaPathError::TensorRt(error) => error.into(),
            other => Self::Gpu(other),
        }
    }
}

impl From<TensorRtError> for StreamError {
    fn from(error: TensorRtError) -> Self {
        Self::Embed(BackendError::from(error).into())
    }
}

/// Settings of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamConfig {
    /// Short side of the network's input in pixels; see
    /// [`InputSize::ShortSide`]. Larger finds smaller
    /// things and costs more. Bundles of a fixed size ignore it.
    pub short_side: u32,
    /// Whether frames are labelled with concepts.
    pub concepts: bool,
    /// Settings of the concept labelling.
    pub segmentation: SegmentationConfig,
    /// Settings of the mask propagation.
    pub propagation: PropagationConfig,
    /// Whether a GPU is given the work of a frame as one CUDA graph. Off only to measure what that gains.
    pub gpu_graphs: bool,
}

impl Default for StreamConfig {
    /// Concepts on, at the 480 pixels of the DAVIS protocol.
    fn default() -> Self {
        Self {
            short_side: 480,
            concepts: true,
            segmentation: SegmentationConfig::default(),
            propagation: PropagationConfig::default(),
            gpu_graphs: true,
        }
    }
}

/// Wall-clock time of each stage of one frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Resizing, colour conversion, normalisation.
    pub preprocess: Duration,
    /// The network, and bringing its output into pixel order.
    pub network: Duration,
    /// Clustering and labelling; zero when switched off.
    pub concepts: Duration,
    /// Carrying the masks; zero without masks.
    pub propagation: Duration,
}

/// What was found in one frame.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FrameResult {
    /// Number of the frame in its stream, from 0; frames that failed count too.
    pub index: u64,
    /// Width of the frame in pixels.
    pub width: u32,
    /// Height of the frame in pixels.
    pub height: u32,
    /// Concepts at frame size; `None` when switched off.
    pub concepts: Option<ConceptMap>,
    /// Instance masks at frame size; `None` as long as no mask was given.
    pub masks: Option<MaskMap>,
    /// Time of each stage.
    pub times: StageTimes,
}

/// Everything one stream keeps: settings, scratch memory, and the context of its masks.
#[derive(Debug)]
pub struct StreamState {
    config: StreamConfig,
    embedder: FrameEmbedder,
    labeler: ConceptLabeler,
    /// Everything on the GPU, where the model runs there.
    gpu: Option<GpuStream>,
    masks: MaskTrack,
    frames: u64,
    result: FrameResult,
}

impl StreamState {
    /// The state before the first frame.
    pub fn new(model: Arc<Model>, config: StreamConfig) -> Self {
        Self {
            gpu: model.gpu().map(|gpu| GpuStream::new(gpu, config.gpu_graphs)),
            embedder: FrameEmbedder::new(model),
            labeler: ConceptLabeler::new(),
            masks: MaskTrack::new(config.propagation.clone()),
            frames: 0,
            result: FrameResult::default(),
            config,
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.embedder.model()
    }

    /// Gives the instance masks of the next frame, from which they are carried on. The mask must
    /// be of that frame's size; 0 is background, 255 counts as background unless the mask is
    /// white on black ([`LabelMap::with_white_as_instance`]). Masks that were carried before
    /// are forgotten then.
    pub fn set_instances(&mut self, mask: LabelMap) {
        self.masks.change(MaskChange::Replace(mask));
    }

    /// Processes the next frame.
    ///
    /// When the frame size changes in a way that changes the embedding grid, masks are carried on
    /// from the last ones, scaled to the new size; objects out of sight are lost at that point.
    ///
    /// # Errors
    /// [`StreamError`]. The stream can go on with the next frame; a given mask that was refused
    /// is dropped, masks that were carried before it stay.
    pub fn process(&mut self, frame: &FrameView<'_>) -> Result<&FrameResult, StreamError> {
        let (width, height) = (frame.width(), frame.height());
        (self.result.index, self.result.width, self.result.height) = (self.frames, width, height);
        self.frames += 1;
        self.masks.check(width, height)?;

        if let Some(gpu) = self.gpu.take() {
            let given = self.masks.take_given();
            if self.process_on_gpu(gpu, frame, given.as_ref())? {
                return Ok(&self.result);
            }
            // The GPU's memory of the masks is lost; their last state is not.
            if let Some(mask) = given.or_else(|| self.last_masks(width, height)) {
                self.masks.change(MaskChange::Replace(mask));
            }
        }

        let mut clock = Clock::start();
        self.embedder.prepare(frame, InputSize::ShortSide(self.config.short_side))?;
        self.result.times.preprocess = clock.lap();

        self.embedder.embed()?;
        self.result.times.network = clock.lap();

        if self.config.concepts {
            let out = self.result.concepts.get_or_insert_default();
            let (embedding, codebook) = (self.embedder.map(), self.embedder.model().codebook());
            let config = &self.config.segmentation;
            self.labeler.label(embedding, codebook, config, width, height, out)?;
            self.result.times.concepts = clock.lap();
        }

        if self.masks.is_active() {
            match (self.masks.step(self.embedder.map(), width, height)?, &mut self.result.masks) {
                (Some(masks), Some(out)) => out.copy_from(masks),
                (masks, out) => *out = masks.cloned(),
            }
            self.result.times.propagation = clock.lap();
        } else {
            self.result.times.propagation = Duration::ZERO;
        }
        Ok(&self.result)
    }

    /// The masks of the frame before at a new size; nothing where no object is left.
    fn last_masks(&self, width: u32, height: u32) -> Option<LabelMap> {
        let last = self.result.masks.as_ref()?.scaled(width, height);
        (!last.instance_ids().is_empty()).then_some(last)
    }

    /// Processes a frame on the GPU. Answers false where the CPU is to do it, now and from now on.
    fn process_on_gpu(
        &mut self,
        mut on_gpu: GpuStream,
        frame: &FrameView<'_>,
        given: Option<&LabelMap>,
    ) -> Result<bool, StreamError> {
        let model = Arc::clone(self.model());
        // Another stream may have given it up.
        let Some(gpu) = model.gpu() else { return Ok(false) };
        let shared = (model.as_ref(), gpu);
        match on_gpu.process(shared, &self.config, frame, given, &mut self.result) {
            Ok(()) => {}
            Err(StreamError::Gpu(error)) if error.is_unsuited() => {
                tracing::info!("only the network runs on the GPU: {error}");
                return Ok(false);
            }
            Err(error) if error.is_of_gpu() && model.give_up_gpu(&error) => return Ok(false),
            Err(error) => {
                self.gpu = Some(on_gpu);
                return Err(error);
            }
        }
        self.gpu = Some(on_gpu);
        Ok(true)
    }
}

/// Measures stage after stage.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let passed = now - self.0;
        self.0 = now;
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackendKind, BackendOptions};
    use crate::bundle::{BundleWriter, Codebook, SizeRule};
    use std::path::Path;

    const WIDTH: u32 = 256;
    const HEIGHT: u32 = 128;

    fn model(size: SizeRule) -> Arc<Model> {
        let dir = tempfile::tempdir().unwrap();
        let vectors = (0..6 * 32).map(|i| if i % 33 == 0 { 1.0 } else { 0.0 }).collect();
        let codebook = Codebook::new(6, 32, vectors).unwrap();
        let onnx = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny.onnx");
        BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            .size(size)
            .write(dir.path(), Path::new(onnx), &codebook)
            .unwrap();
        Model::open(dir.path(), &BackendOptions::new(BackendKind::Rten, 1)).unwrap()
    }

    fn stream(config: StreamConfig) -> StreamState {
        StreamState::new(model(SizeRule::Dynamic), config)
    }

    fn small() -> StreamConfig {
        StreamConfig { short_side: HEIGHT, ..StreamConfig::default() }
    }

    /// A red square of a third of the height on a green and blue pattern; `t` moves it right.
    fn picture(width: u32, height: u32, t: u32) -> (Vec<u8>, LabelMap) {
        let side = height / 3;
        let (left, top) = (height / 8 + t * 4, height / 4 + t);
        let mut mask = LabelMap::background(width, height);
        let mut rgb = Vec::new();
        for y in 0..height {
            for x in 0..width {
                if (left..left + side).contains(&x) && (top..top + side).contains(&y) {
                    mask.data[(y * width + x) as usize] = 1;
                    rgb.extend([220, 30, 40]);
                } else {
                    rgb.extend([20, 90 + (x / 16 % 2 * 40) as u8, 120 + (y / 16 % 2 * 60) as u8]);
                }
            }
        }
        (rgb, mask)
    }

    fn overlap(labels: &[u8], mask: &LabelMap) -> f64 {
        let pairs = labels.iter().zip(&mask.data);
        let both = pairs.clone().filter(|(a, b)| **a == 1 && **b == 1).count();
        let either = pairs.filter(|(a, b)| **a == 1 || **b == 1).count();
        both as f64 / either as f64
    }

    #[test]
    fn the_mask_follows_a_moving_square() {
        let mut stream = stream(small());
        for t in 0..20 {
            let (rgb, truth) = picture(WIDTH, HEIGHT, t);
            if t == 0 {
                stream.set_instances(truth.clone());
            }
            let frame = FrameView::rgb(WIDTH, HEIGHT, &rgb).unwrap();
            let result = stream.process(&frame).unwrap();
            assert_eq!((result.index, result.width, result.height), (u64::from(t), WIDTH, HEIGHT));
            let masks = result.masks.as_ref().unwrap();
            let found = overlap(&masks.labels, &truth);
            if t == 0 {
                assert_eq!(found, 1.0);
            }
            assert!(found > 0.7, "frame {t}: {found}");
            assert_eq!(masks.instances[0].id, 1);
            assert!(masks.instances[0].confidence > 0.5);
        }
    }

    #[test]
    fn concepts_cover_the_frame() {
        let mut stream = stream(small());
        let (rgb, _) = picture(WIDTH, HEIGHT, 0);
        let result = stream.process(&FrameView::rgb(WIDTH, HEIGHT, &rgb).unwrap()).unwrap();
        let concepts = result.concepts.as_ref().unwrap();
        let area: u32 = concepts.segment_list.iter().map(|s| s.area).sum();
        assert_eq!(area, WIDTH * HEIGHT);
        assert!(result.masks.is_none());
        assert!(result.times.network > Duration::ZERO && result.times.concepts > Duration::ZERO);
        assert_eq!(result.times.propagation, Duration::ZERO);
    }

    #[test]
    fn concepts_can_be_switched_off() {
        let mut stream = stream(StreamConfig { concepts: false, ..small() });
        let (rgb, _) = picture(WIDTH, HEIGHT, 0);
        let result = stream.process(&FrameView::rgb(WIDTH, HEIGHT, &rgb).unwrap()).unwrap();
        assert_eq!((&result.concepts, result.times.concepts), (&None, Duration::ZERO));
    }

    #[test]
    fn a_wrong_mask_is_refused_and_the_stream_goes_on() {
        let mut stream = stream(small());
        let (rgb, truth) = picture(WIDTH, HEIGHT, 0);
        let frame = FrameView::rgb(WIDTH, HEIGHT, &rgb).unwrap();
        stream.set_instances(LabelMap::background(WIDTH, HEIGHT + 1));
        assert!(matches!(
            stream.process(&frame),
            Err(StreamError::Propagate(PropagateError::MaskSize { .. }))
        ));
        stream.set_instances(LabelMap::background(WIDTH, HEIGHT));
        assert!(matches!(
            stream.process(&frame),
            Err(StreamError::Propagate(PropagateError::EmptyMask))
        ));
        stream.set_instances(LabelMap { data: vec![255; truth.data.len()], ..truth.clone() });
        assert!(matches!(
            stream.process(&frame),
            Err(StreamError::Propagate(PropagateError::EmptyMask))
        ));
        stream.set_instances(LabelMap { data: vec![1; 7], ..truth.clone() });
        assert!(matches!(stream.process(&frame), Err(StreamError::Propagate(_))));
        assert!(stream.process(&frame).unwrap().masks.is_none());
        stream.set_instances(truth);
        let result = stream.process(&frame).unwrap();
        assert_eq!(result.index, 5);
        assert!(result.masks.is_some());
    }

    #[test]
    fn masks_survive_a_change_of_the_frame_size() {
        let mut stream = stream(small());
        let sizes =
            [(256, 128), (256, 128), (320, 128), (320, 128), (640, 256), (160, 240), (160, 240)];
        for (t, (width, height)) in sizes.into_iter().enumerate() {
            let (rgb, truth) = picture(width, height, 0);
            if t == 0 {
                stream.set_instances(truth.clone());
            }
            let result = stream.process(&FrameView::rgb(width, height, &rgb).unwrap()).unwrap();
            let masks = result.masks.as_ref().unwrap();
            assert_eq!((masks.width, masks.height), (width, height));
            assert_eq!(masks.labels.len(), truth.data.len());
            assert!(masks.instances[0].area > 0, "frame {t}");
            assert_eq!(result.concepts.as_ref().unwrap().concepts.len(), truth.data.len());
        }
    }

    #[test]
    fn a_new_mask_replaces_the_old_ones() {
        let mut stream = stream(small());
        let (rgb, truth) = picture(WIDTH, HEIGHT, 0);
        let frame = FrameView::rgb(WIDTH, HEIGHT, &rgb).unwrap();
        stream.set_instances(truth.clone());
        stream.process(&frame).unwrap();
        let renamed = truth.data.iter().map(|&id| id * 9).collect();
        stream.set_instances(LabelMap { data: renamed, ..truth });
        stream.process(&frame).unwrap();
        let masks = stream.process(&frame).unwrap().masks.as_ref().unwrap();
        assert_eq!(masks.instances.iter().map(|i| i.id).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn a_fixed_size_network_sees_every_frame_at_its_size() {
        let mut stream = StreamState::new(model(SizeRule::Fixed([64, 96])), small());
        let (rgb, _) = picture(WIDTH, HEIGHT, 0);
        stream.process(&FrameView::rgb(WIDTH, HEIGHT, &rgb).unwrap()).unwrap();
        let map = stream.embedder.map();
        assert_eq!((map.width, map.height), (12, 8));
    }

    #[test]
    fn steady_state_keeps_its_memory() {
        let mut stream = stream(small());
        let (rgb, truth) = picture(WIDTH, HEIGHT, 0);
        let frame = FrameView::rgb(WIDTH, HEIGHT, &rgb).unwrap();
        stream.set_instances(truth);
        let held = |stream: &StreamState| {
            let (concepts, masks) =
                (stream.result.concepts.as_ref().unwrap(), stream.result.masks.as_ref().unwrap());
            let floats = stream.embedder.buffers();
            let memory = stream.masks.memory_bytes();
            (
                floats,
                concepts.concepts.as_ptr(),
                concepts.segments.as_ptr(),
                masks.labels.as_ptr(),
                memory,
            )
        };
        // The first frame takes its mask as given, the second is the first that is carried.
        stream.process(&frame).unwrap();
        stream.process(&frame).unwrap();
        let first = held(&stream);
        for _ in 0..10 {
            stream.process(&frame).unwrap();
            assert_eq!(held(&stream), first);
        }
    }

    #[test]
    fn two_streams_of_one_model_do_not_meet() {
        let model = model(SizeRule::Dynamic);
        let (rgb, truth) = picture(WIDTH, HEIGHT, 0);
        let frame = FrameView::rgb(WIDTH, HEIGHT, &rgb).unwrap();
        let mut one = StreamState::new(Arc::clone(&model), small());
        let mut other = StreamState::new(model, small());
        one.set_instances(truth);
        one.process(&frame).unwrap();
        assert!(other.process(&frame).unwrap().masks.is_none());
        assert!(one.process(&frame).unwrap().masks.is_some());
    }
}
