//! From embeddings to instance masks.

use std::time::Instant;

use conceptseg::embed::EmbeddingMap;
use conceptseg::errors::sentence;
use conceptseg::propagate::{MaskChange, MaskTrack, PropagateError, PropagationConfig};

use crate::errors::message;
use crate::live::{Found, Stage};
use crate::meta::{Embedding, MaskPart, Shelf};

/// What happens before a frame is worked on.
#[derive(Debug, Clone)]
pub enum Command {
    /// A new stream begins.
    Restart,
    /// The masks change.
    Change(MaskChange),
}

/// Embeddings, and what was asked for since the last ones.
pub struct Input {
    pub embedding: Embedding,
    pub commands: Vec<Command>,
}

/// The masks of one stream.
pub struct PropagateStage {
    track: MaskTrack,
    embedding: EmbeddingMap,
    shelf: Shelf<u8>,
}

impl PropagateStage {
    pub fn new() -> Self {
        let track = MaskTrack::new(PropagationConfig::default());
        Self { track, embedding: EmbeddingMap::default(), shelf: Shelf::default() }
    }
}

impl Stage for PropagateStage {
    type Input = Input;
    /// `None` while there are no masks.
    type Output = Option<MaskPart>;

    fn run(&mut self, input: Input) -> Result<Found<Self::Output>, gst::ErrorMessage> {
        let began = Instant::now();
        let Input { embedding, commands } = input;
        for command in commands {
            match command {
                Command::Restart => self.track = MaskTrack::new(PropagationConfig::default()),
                Command::Change(change) => self.track.change(change),
            }
        }
        if self.track.is_active() {
            embedding.read(&mut self.embedding)?;
        }
        let mut source = embedding.source;
        let computing = Instant::now();
        let masks = if self.track.is_active() {
            self.track
                .step(&self.embedding, source.width, source.height)
                .map_err(|e| failure(&e))?
        } else {
            None
        };
        if masks.is_some() {
            source.times.propagation = computing.elapsed();
        }
        let part = |masks| MaskPart::new(masks, source.clone(), &self.shelf);
        let value = masks.map(part).transpose()?;
        Ok(Found { source, began, value })
    }
}

fn failure(error: &PropagateError) -> gst::ErrorMessage {
    let text = sentence(error);
    match error {
        PropagateError::MaskSize { .. }
        | PropagateError::Mask { .. }
        | PropagateError::EmptyMask => {
            message(gst::LibraryError::Settings, &format!("Cannot use the mask: {text}"))
        }
        _ => message(gst::StreamError::Failed, &text),
    }
}
