//! From a frame to its embeddings.

use std::sync::Arc;
use std::time::Instant;

use conceptseg::embed::{Batching, EmbedTimes, FrameEmbedder, InputSize};
use conceptseg::errors::sentence;
use conceptseg::stream::StageTimes;
use gst_video::{VideoFrameRef, VideoInfo};

use crate::errors::message;
use crate::gpu::{self, Memory};
use crate::live::{Found, Moment, Stage};
use crate::meta::{Embedding, Shelf, Source};
use crate::models::Loaded;
use crate::video;

/// A frame and the model that sees it.
pub struct Input {
    pub loaded: Loaded,
    pub short_side: u32,
    pub frame: gst::Buffer,
    pub info: VideoInfo,
    pub memory: Memory,
    pub moment: Moment,
}

/// The embeddings of a frame, and how many frames the network saw together with it, itself included.
pub struct Embedded {
    pub embedding: Embedding,
    pub batch: usize,
}

/// Keeps the memory of the network's input and output.
pub struct EmbedStage {
    batching: Batching,
    embedder: Option<FrameEmbedder>,
    shelf: Shelf<f32>,
}

impl EmbedStage {
    /// One that has seen nothing yet. It counts as a stream from its first frame on.
    pub fn new(batching: Batching) -> Self {
        Self { batching, embedder: None, shelf: Shelf::default() }
    }
}

impl Stage for EmbedStage {
    type Input = Input;
    type Output = Embedded;

    fn run(&mut self, input: Input) -> Result<Found<Embedded>, gst::ErrorMessage> {
        let Input { loaded, short_side, frame, info, memory, moment } = input;
        let began = Instant::now();
        let embedder = match &mut self.embedder {
            Some(embedder) if Arc::ptr_eq(embedder.model(), &loaded.model) => embedder,
            other => {
                let model = Arc::clone(&loaded.model);
                other.insert(FrameEmbedder::batched(model, self.batching))
            }
        };
        // Streams that batch have to wait for each other.
        let waited = Instant::now();
        let turn = (self.batching.size == 1).then(|| loaded.turn.lock());
        let waited = waited.elapsed();
        let size = InputSize::ShortSide(short_side);
        let times = match memory {
            Memory::System => None,
            on_gpu => embed_on_gpu(embedder, size, on_gpu, &frame, &info)?,
        };
        let EmbedTimes { preprocess, network } = match times {
            Some(times) => times,
            None => embed_on_host(embedder, size, &frame, &info)?,
        };
        drop(turn);
        // With the wait for the turn: a result is as old as all of that when it is there.
        let times = StageTimes { preprocess, network: waited + network, ..StageTimes::default() };
        let source = Source {
            frame: moment.frame,
            pts: moment.pts,
            width: info.width(),
            height: info.height(),
            times,
        };
        let embedding = Embedding::new(embedder.map(), source.clone(), loaded.id, &self.shelf);
        let value = Embedded { embedding, batch: embedder.batch() };
        Ok(Found { source, began, value })
    }
}

/// Embeds a frame in GPU memory. Nothing where the GPU is lost and the frame can be downloaded.
fn embed_on_gpu(
    embedder: &mut FrameEmbedder,
    size: InputSize,
    memory: Memory,
    frame: &gst::BufferRef,
    info: &VideoInfo,
) -> Result<Option<EmbedTimes>, gst::ErrorMessage> {
    let unusable =
        |e| message(gst::StreamError::Format, &format!("Cannot use a frame in GPU memory: {e}"));
    let times = gpu::with_frame(memory, frame, info, |frame| embedder.run_device(frame, size))
        .map_err(unusable)?
        .map_err(|e| message(gst::StreamError::Failed, &sentence(&e)))?;
    if times.is_none() && memory == Memory::Nvmm {
        return Err(message(
            gst::StreamError::Failed,
            "The network does not run on the GPU any more, and the CPU cannot read frames in NVMM memory: put \
             nvvideoconvert (nvvidconv) before, with caps of system memory, or start again",
        ));
    }
    Ok(times)
}

/// Embeds a frame that the host can read; one in CUDA memory is downloaded for it.
fn embed_on_host(
    embedder: &mut FrameEmbedder,
    size: InputSize,
    frame: &gst::BufferRef,
    info: &VideoInfo,
) -> Result<EmbedTimes, gst::ErrorMessage> {
    let unusable =
        |reason| message(gst::StreamError::Format, &format!("Cannot use a frame: {reason}"));
    video::check_meta(frame, info).map_err(unusable)?;
    let frame = VideoFrameRef::from_buffer_ref_readable(frame, info).map_err(|e| {
        message(
            gst::ResourceError::Read,
            &format!("Cannot read a frame: {e}; the element before must send whole frames"),
        )
    })?;
    let view = video::frame_view(&frame, info).map_err(unusable)?;
    embedder.run(&view, size).map_err(|e| message(gst::StreamError::Failed, &sentence(&e)))
}
