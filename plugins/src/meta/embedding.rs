//! The embeddings of a frame as metadata.

use conceptseg::embed::EmbeddingMap;

use super::source::{from_structure, to_structure};
use super::{Age, MetaError, Shelf, Source, find, replace};

/// Name of the metadata, for `gst_buffer_get_custom_meta`.
pub const EMBEDDING_NAME: &str = "ConceptSegEmbeddingMeta";

/// The embeddings of one frame. Clones share them.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// The frame.
    pub source: Source,
    /// Which model of this process made them; see `models`.
    pub model: u64,
    rows: u32,
    columns: u32,
    channels: u32,
    stride: u32,
    /// Native floats, `[rows, columns, channels]`.
    data: gst::Buffer,
}

impl Embedding {
    /// Copies a map.
    pub fn new(map: &EmbeddingMap, source: Source, model: u64, shelf: &Shelf<f32>) -> Self {
        let mut values = shelf.take();
        values.extend_from_slice(&map.data);
        let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            source,
            model,
            rows: side(map.height),
            columns: side(map.width),
            channels: side(map.dim),
            stride: side(map.stride),
            data: shelf.buffer(values),
        }
    }

    /// Attaches the embeddings to `buffer` in place of those that it has.
    ///
    /// # Errors
    /// [`MetaError::Attach`] where the framework refuses.
    pub fn attach(&self, buffer: &mut gst::BufferRef, age: Age) -> Result<(), MetaError> {
        let mut meta = replace(buffer, EMBEDDING_NAME)?;
        let fields = meta.mut_structure();
        fields.set("rows", self.rows);
        fields.set("columns", self.columns);
        fields.set("channels", self.channels);
        fields.set("stride", self.stride);
        fields.set("model", self.model);
        fields.set("embedding", &self.data);
        fields.set("source", to_structure(&self.source, age));
        Ok(())
    }

    /// The embeddings that `buffer` carries, `None` where it has none.
    ///
    /// # Errors
    /// [`MetaError::Damaged`] where a field is missing or of another type.
    pub fn from_buffer(buffer: &gst::BufferRef) -> Result<Option<(Self, Age)>, MetaError> {
        let Some(meta) = find(buffer, EMBEDDING_NAME) else { return Ok(None) };
        let fields = meta.structure();
        let number =
            |name: &str| fields.get::<u32>(name).map_err(|e| MetaError::Damaged(e.to_string()));
        let damaged = |e: gst::structure::GetError<_>| MetaError::Damaged(e.to_string());
        let source: gst::Structure =
            fields.get("source").map_err(|e| MetaError::Damaged(e.to_string()))?;
        let (source, age) = from_structure(&source)?;
        let embedding = Self {
            source,
            model: fields.get("model").map_err(damaged)?,
            rows: number("rows")?,
            columns: number("columns")?,
            channels: number("channels")?,
            stride: number("stride")?,
            data: fields.get("embedding").map_err(|e| MetaError::Damaged(e.to_string()))?,
        };
        Ok(Some((embedding, age)))
    }

    /// Copies the embeddings into `out`, whose memory is reused.
    ///
    /// # Errors
    /// [`MetaError::Damaged`] where the buffer does not hold as many floats as its size says.
    pub fn read(&self, out: &mut EmbeddingMap) -> Result<(), MetaError> {
        let bytes = self.data.map_readable().map_err(|e| MetaError::Damaged(e.to_string()))?;
        let (values, rest) = bytes.as_chunks::<4>();
        let shape = [self.rows, self.columns, self.channels].map(|n| n as usize);
        let expected = shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        if expected != Some(values.len()) || !rest.is_empty() || values.is_empty() {
            return Err(MetaError::Damaged(format!("{} bytes for {shape:?} floats", bytes.len())));
        }
        let [height, width, dim] = shape;
        (out.height, out.width, out.dim, out.stride) = (height, width, dim, self.stride as usize);
        out.data.clear();
        match bytemuck::try_cast_slice(&bytes) {
            Ok(floats) => out.data.extend_from_slice(floats),
            // Another element's copy may lie anywhere.
            Err(_) => out.data.extend(values.iter().map(|&value| f32::from_ne_bytes(value))),
        }
        Ok(())
    }
}
