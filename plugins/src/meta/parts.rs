//! Results as they are attached: maps are made once and shared by every frame that shows them.

use std::collections::BTreeSet;

use conceptseg::bundle::ConceptNames;
use conceptseg::concepts::{ConceptMap, ConceptSegment};
use conceptseg::memory;
use conceptseg::overlay::given_color;
use conceptseg::propagate::{InstanceStat, MaskMap};
use conceptseg::results::{ConceptRecord, summarize_concepts};
use gst_video::{VideoFormat, VideoFrameFlags, VideoMeta};

use super::analytics::{self, Regions};
use super::lists;
use super::source::to_structure;
use super::{Age, MetaError, NAME, Shelf, Source};

/// The concepts of one frame. Clones share them.
#[derive(Debug, Clone)]
pub struct ConceptPart {
    /// The frame.
    pub source: Source,
    map: gst::Buffer,
    segments: Vec<ConceptSegment>,
    /// With the colours that people gave.
    summary: Vec<(ConceptRecord, Option<[u8; 3]>)>,
    /// The values that occur in the map.
    ids: Vec<u32>,
}

impl ConceptPart {
    /// Takes the pixels of a map, and leaves memory of the shelf in their place.
    ///
    /// # Errors
    /// [`MetaError::Attach`] where the framework refuses.
    pub fn new(
        map: &mut ConceptMap,
        names: &ConceptNames,
        source: Source,
        shelf: &Shelf<u16>,
    ) -> Result<Self, MetaError> {
        let records = summarize_concepts(map, names).into_iter();
        let summary = records.map(|record| (given_color(names, record.id), record));
        let summary = summary.map(|(color, record)| (record, color)).collect();
        let ids: BTreeSet<u32> = map.segment_list.iter().map(|s| u32::from(s.concept)).collect();
        let mut pixels = std::mem::replace(&mut map.concepts, shelf.take());
        for id in &mut pixels {
            *id = id.to_le();
        }
        let pixels = described(shelf.buffer(pixels), VideoFormat::Gray16Le, map.width, map.height)?;
        let segments = map.segment_list.clone();
        Ok(Self { source, map: pixels, segments, summary, ids: ids.into_iter().collect() })
    }

    /// Attaches the concepts to `buffer`, beside other results.
    ///
    /// # Errors
    /// [`MetaError::Attach`] where the framework refuses.
    pub fn attach(&self, buffer: &mut gst::BufferRef, age: Age) -> Result<(), MetaError> {
        with_results(buffer, &self.source, |fields| {
            fields.set("concepts", &self.map);
            fields.set("segments", lists::segments(&self.segments));
            fields.set("summary", lists::summary(&self.summary));
            fields.set("concepts-source", to_structure(&self.source, age));
        })?;
        let size = (self.source.width, self.source.height);
        analytics::attach(buffer, &self.map, Regions::Semantic, &mut self.ids.clone(), size);
        Ok(())
    }
}

/// The instance masks of one frame. Clones share them.
#[derive(Debug, Clone)]
pub struct MaskPart {
    /// The frame.
    pub source: Source,
    map: gst::Buffer,
    instances: Vec<InstanceStat>,
    /// The values that occur in the map, with background.
    ids: Vec<u32>,
}

impl MaskPart {
    /// Copies a map.
    ///
    /// # Errors
    /// [`MetaError::Memory`] where there is no memory for it, [`MetaError::Attach`] where the
    /// framework refuses.
    pub fn new(map: &MaskMap, source: Source, shelf: &Shelf<u8>) -> Result<Self, MetaError> {
        let mut pixels = shelf.take();
        memory::reserve(&mut pixels, map.labels.len(), "a copy of the masks")?;
        pixels.extend_from_slice(&map.labels);
        let pixels = described(shelf.buffer(pixels), VideoFormat::Gray8, map.width, map.height)?;
        let seen = map.instances.iter().filter(|instance| instance.area > 0);
        let ids = std::iter::once(0).chain(seen.map(|instance| u32::from(instance.id))).collect();
        Ok(Self { source, map: pixels, instances: map.instances.clone(), ids })
    }

    /// Attaches the masks to `buffer`, beside other results.
    ///
    /// # Errors
    /// [`MetaError::Attach`] where the framework refuses.
    pub fn attach(&self, buffer: &mut gst::BufferRef, age: Age) -> Result<(), MetaError> {
        with_results(buffer, &self.source, |fields| {
            fields.set("masks", &self.map);
            fields.set("instances", lists::instances(&self.instances));
            fields.set("masks-source", to_structure(&self.source, age));
        })?;
        let size = (self.source.width, self.source.height);
        analytics::attach(buffer, &self.map, Regions::Instance, &mut self.ids.clone(), size);
        Ok(())
    }
}

/// Sets fields of the one meta that holds all results.
fn with_results(
    buffer: &mut gst::BufferRef,
    source: &Source,
    set: impl FnOnce(&mut gst::StructureRef),
) -> Result<(), MetaError> {
    if gst::meta::CustomMeta::from_buffer(buffer, NAME).is_err() {
        gst::meta::CustomMeta::add(buffer, NAME)?;
    }
    let mut meta = gst::meta::CustomMeta::from_mut_buffer(buffer, NAME)
        .map_err(|e| gst::glib::bool_error!("{e}"))?;
    let fields = meta.mut_structure();
    fields.set("width", source.width);
    fields.set("height", source.height);
    fields.set("frame", source.frame);
    set(fields);
    Ok(())
}

/// Says what the pixels of a new buffer are, whose rows follow each other without gaps.
fn described(
    mut buffer: gst::Buffer,
    format: VideoFormat,
    width: u32,
    height: u32,
) -> Result<gst::Buffer, gst::glib::BoolError> {
    let new = buffer.get_mut().ok_or_else(|| gst::glib::bool_error!("the new buffer is shared"))?;
    let stride = i32::try_from(new.size() / (height.max(1) as usize))
        .map_err(|_| gst::glib::bool_error!("rows of {} pixels are too long", width))?;
    VideoMeta::add_full(new, VideoFrameFlags::empty(), format, width, height, &[0], &[stride])?;
    Ok(buffer)
}
