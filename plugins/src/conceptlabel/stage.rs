//! From embeddings to a concept map.

use std::sync::Arc;
use std::time::Instant;

use conceptseg::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use conceptseg::embed::{EmbeddingMap, Model};
use conceptseg::errors::sentence;

use crate::errors::message;
use crate::live::{Found, Stage};
use crate::meta::{ConceptPart, Embedding, Shelf};

/// Embeddings, and the model that made them.
pub struct Input {
    pub embedding: Embedding,
    pub model: Arc<Model>,
    pub config: SegmentationConfig,
}

/// Keeps the memory of the labelling.
pub struct LabelStage {
    labeler: ConceptLabeler,
    embedding: EmbeddingMap,
    concepts: ConceptMap,
    shelf: Shelf<u16>,
}

impl LabelStage {
    pub fn new() -> Self {
        Self {
            labeler: ConceptLabeler::new(),
            embedding: EmbeddingMap::default(),
            concepts: ConceptMap::default(),
            shelf: Shelf::default(),
        }
    }
}

impl Stage for LabelStage {
    type Input = Input;
    type Output = ConceptPart;

    fn run(&mut self, input: Input) -> Result<Found<ConceptPart>, gst::ErrorMessage> {
        let began = Instant::now();
        let Input { embedding, model, config } = input;
        embedding.read(&mut self.embedding)?;
        let mut source = embedding.source;
        let (codebook, out) = (model.codebook(), &mut self.concepts);
        let computing = Instant::now();
        self.labeler
            .label(&self.embedding, codebook, &config, source.width, source.height, out)
            .map_err(|e| message(gst::StreamError::Failed, &sentence(&e)))?;
        source.times.concepts = computing.elapsed();
        let value = ConceptPart::new(out, &model.bundle().names, source.clone(), &self.shelf)?;
        Ok(Found { source, began, value })
    }
}
