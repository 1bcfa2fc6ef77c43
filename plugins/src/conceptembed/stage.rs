//! From a frame to its embeddings.

use std::sync::Arc;
use std::time::Instant;

use conceptseg::embed::{Batching, FrameEmbedder, InputSize};
use conceptseg::errors::sentence;
use conceptseg::stream::StageTimes;
use gst_video::{VideoFrameRef, VideoInfo};

use crate::errors::message;
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
        let Input { loaded, short_side, frame, info, moment } = input;
        let began = Instant::now();
        let embedder = match &mut self.embedder {
            Some(embedder) if Arc::ptr_eq(embedder.model(), &loaded.model) => embedder,
            other => {
                let model = Arc::clone(&loaded.model);
                other.insert(FrameEmbedder::batched(model, self.batching))
            }
        };
        {
            let unusable = |reason| {
                message(gst::StreamError::Format, &format!("Cannot use a frame: {reason}"))
            };
            video::check_meta(&frame, &info).map_err(unusable)?;
            let frame = VideoFrameRef::from_buffer_ref_readable(&frame, &info).map_err(|e| {
                message(
                    gst::ResourceError::Read,
                    &format!("Cannot read a frame: {e}; the element before must send whole frames"),
                )
            })?;
            let view = video::frame_view(&frame, &info).map_err(unusable)?;
            embedder
                .prepare(&view, InputSize::ShortSide(short_side))
                .map_err(|e| message(gst::StreamError::Failed, &sentence(&e)))?;
        }
        let preprocess = began.elapsed();
        let prepared = Instant::now();
        // Streams that batch have to wait for each other.
        let turn = (self.batching.size == 1).then(|| loaded.turn.lock());
        embedder.embed().map_err(|e| message(gst::StreamError::Failed, &sentence(&e)))?;
        drop(turn);
        // With the wait for the turn: a result is as old as all of that when it is there.
        let times = StageTimes { preprocess, network: prepared.elapsed(), ..StageTimes::default() };
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
