//! Reading results back from a buffer.

use conceptseg::bundle::Mark;
use conceptseg::concepts::ConceptMap;
use conceptseg::labels::MAX_SIDE;
use conceptseg::memory;
use conceptseg::propagate::{InstanceStat, MaskMap};
use conceptseg::results::ConceptRecord;
use gst_video::VideoMeta;

use super::source::from_structure;
use super::{Age, MetaError, NAME, Source, find};

/// The metadata of one buffer, for reading. Holds references to the maps and copies nothing.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// Width of the analysed frame and of the maps in pixels.
    pub width: u32,
    /// Height of the analysed frame and of the maps in pixels.
    pub height: u32,
    /// Index of the frame in its stream, from 0.
    pub frame: u64,
    masks: Option<gst::Buffer>,
    instances: Vec<InstanceStat>,
    masks_source: Option<(Source, Age)>,
    concepts: Option<gst::Buffer>,
    summary: Vec<ConceptRecord>,
    concepts_source: Option<(Source, Age)>,
    /// Concept id and colour where people gave one.
    colors: Vec<(u16, [u8; 3])>,
}

impl Analysis {
    /// The metadata of `buffer`, `None` where it has none.
    ///
    /// # Errors
    /// [`MetaError::Damaged`] where a field is not as described in the [module](super).
    pub fn from_buffer(buffer: &gst::BufferRef) -> Result<Option<Self>, MetaError> {
        let Some(meta) = find(buffer, NAME) else { return Ok(None) };
        let fields = meta.structure();
        let damaged = |e: gst::structure::GetError<_>| MetaError::Damaged(e.to_string());
        let width: u32 = fields.get("width").map_err(damaged)?;
        let height: u32 = fields.get("height").map_err(damaged)?;
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return Err(MetaError::Damaged(format!("a size of {width}x{height} is impossible")));
        }
        let list = |name: &str| {
            fields
                .get_optional::<gst::Array>(name)
                .map(Option::unwrap_or_default)
                .map_err(|e| MetaError::Damaged(e.to_string()))
        };
        let summary = list("summary")?;
        let source = |name: &str| {
            fields
                .get_optional::<gst::Structure>(name)
                .map_err(|e| MetaError::Damaged(e.to_string()))?
                .map(|fields| from_structure(&fields))
                .transpose()
        };
        Ok(Some(Self {
            width,
            height,
            frame: fields.get("frame").map_err(|e| MetaError::Damaged(e.to_string()))?,
            masks: fields.get_optional("masks").map_err(|e| MetaError::Damaged(e.to_string()))?,
            concepts: fields
                .get_optional("concepts")
                .map_err(|e| MetaError::Damaged(e.to_string()))?,
            instances: list("instances")?.iter().filter_map(instance).collect(),
            masks_source: source("masks-source")?,
            colors: summary.iter().filter_map(concept_color).collect(),
            summary: summary.iter().filter_map(concept).collect(),
            concepts_source: source("concepts-source")?,
        }))
    }

    /// The instances; those out of sight have an area of 0.
    pub fn instances(&self) -> &[InstanceStat] {
        &self.instances
    }

    /// The concepts, the largest first.
    pub fn summary(&self) -> &[ConceptRecord] {
        &self.summary
    }

    /// The frame that the masks belong to, and how far it lies behind this one.
    pub fn masks_source(&self) -> Option<&(Source, Age)> {
        self.masks_source.as_ref()
    }

    /// The frame that the concepts belong to, and how far it lies behind this one.
    pub fn concepts_source(&self) -> Option<&(Source, Age)> {
        self.concepts_source.as_ref()
    }

    /// Size of the instance map; that of the frame it was made for.
    ///
    /// # Errors
    /// [`MetaError::Damaged`] where it is impossible.
    pub fn masks_size(&self) -> Result<Option<(u32, u32)>, MetaError> {
        self.masks.as_ref().map(|pixels| self.map_size(pixels)).transpose()
    }

    /// Whether there is an instance map.
    pub fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// Whether there is a concept map.
    pub fn has_concepts(&self) -> bool {
        self.concepts.is_some()
    }

    /// Colours that people gave to concepts of this frame, as concept id and red, green, blue.
    pub fn colors(&self) -> &[(u16, [u8; 3])] {
        &self.colors
    }

    /// Concepts of this frame that people marked as ignored.
    pub fn ignored(&self) -> impl Iterator<Item = u16> {
        let ignored = |record: &&ConceptRecord| record.mark == Some(Mark::Ignore);
        self.summary.iter().filter(ignored).map(|record| record.id)
    }

    /// Reads the instance map into `out`, scaled to `width` x `height` by nearest neighbour.
    /// `out.instances` is left empty. Returns `false` where there is none.
    ///
    /// # Errors
    /// [`MetaError::Damaged`] where the map is shorter than its size says, [`MetaError::Memory`] where
    /// there is no memory for the copy.
    pub fn read_masks(
        &self,
        width: u32,
        height: u32,
        out: &mut MaskMap,
    ) -> Result<bool, MetaError> {
        let Some(pixels) = &self.masks else { return Ok(false) };
        (out.width, out.height) = (width, height);
        out.instances.clear();
        self.read(pixels, width, height, &mut out.labels, |[id]: [u8; 1]| id)?;
        Ok(true)
    }

    /// Reads the concept map into `out`, scaled to `width` x `height` by nearest neighbour.
    /// `out.segments` and `out.segment_list` are left empty. Returns `false` where there is none.
    ///
    /// # Errors
    /// [`MetaError::Damaged`] where the map is shorter than its size says, [`MetaError::Memory`] where
    /// there is no memory for the copy.
    pub fn read_concepts(
        &self,
        width: u32,
        height: u32,
        out: &mut ConceptMap,
    ) -> Result<bool, MetaError> {
        let Some(pixels) = &self.concepts else { return Ok(false) };
        (out.width, out.height) = (width, height);
        out.segments.clear();
        out.segment_list.clear();
        self.read(pixels, width, height, &mut out.concepts, u16::from_le_bytes)?;
        Ok(true)
    }

    /// Width and height of a map. They are those of the analysed frame, but for a map that is
    /// older than a change of the size.
    fn map_size(&self, pixels: &gst::Buffer) -> Result<(u32, u32), MetaError> {
        let (width, height) = pixels
            .meta::<VideoMeta>()
            .map_or((self.width, self.height), |meta| (meta.width(), meta.height()));
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return Err(MetaError::Damaged(format!("a map of {width}x{height} is impossible")));
        }
        Ok((width, height))
    }

    /// Reads a map of `N` bytes per pixel.
    fn read<const N: usize, T>(
        &self,
        pixels: &gst::Buffer,
        width: u32,
        height: u32,
        out: &mut Vec<T>,
        value: impl Fn([u8; N]) -> T,
    ) -> Result<(), MetaError> {
        let (map_width, map_height) = self.map_size(pixels)?;
        let row = map_width as usize * N;
        let (offset, stride) = pixels.meta::<VideoMeta>().map_or((0, row), |meta| {
            let first = |list: &[i32]| list.first().and_then(|&s| usize::try_from(s).ok());
            (meta.offset().first().copied().unwrap_or(0), first(meta.stride()).unwrap_or(0))
        });
        let map = pixels.map_readable().map_err(|e| MetaError::Damaged(e.to_string()))?;
        let needed = (map_height as usize - 1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(offset))
            .and_then(|n| n.checked_add(row));
        if stride < row || needed.is_none_or(|n| map.len() < n) {
            return Err(MetaError::Damaged(format!(
                "a map of {map_width}x{map_height} has {} bytes with {stride} per row",
                map.len()
            )));
        }
        out.clear();
        memory::reserve(out, width as usize * height as usize, "a copy of a map")?;
        for y in 0..height {
            let start = offset + nearest(y, height, map_height) * stride;
            let (values, _) = map[start..start + row].as_chunks::<N>();
            if width == map_width {
                out.extend(values.iter().map(|&v| value(v)));
            } else {
                out.extend((0..width).map(|x| value(values[nearest(x, width, map_width)])));
            }
        }
        Ok(())
    }
}

/// Index of the source pixel that holds the centre of pixel `i` of `target`; below `source`.
fn nearest(i: u32, target: u32, source: u32) -> usize {
    ((u64::from(i) * 2 + 1) * u64::from(source) / (u64::from(target) * 2)) as usize
}

fn concept_color(entry: &gst::glib::SendValue) -> Option<(u16, [u8; 3])> {
    let entry = entry.get::<&gst::StructureRef>().ok()?;
    let id = u16::try_from(entry.get::<u32>("id").ok()?).ok()?;
    let [_, r, g, b] = entry.get::<u32>("color").ok()?.to_be_bytes();
    Some((id, [r, g, b]))
}

fn concept(entry: &gst::glib::SendValue) -> Option<ConceptRecord> {
    let entry = entry.get::<&gst::StructureRef>().ok()?;
    Some(ConceptRecord {
        id: u16::try_from(entry.get::<u32>("id").ok()?).ok()?,
        name: entry.get_optional("name").ok()?,
        area: entry.get("area").ok()?,
        similarity: entry.get("similarity").ok()?,
        mark: entry.get_optional::<String>("mark").ok()?.and_then(|mark| Mark::parse(&mark)),
    })
}

fn instance(entry: &gst::glib::SendValue) -> Option<InstanceStat> {
    let entry = entry.get::<&gst::StructureRef>().ok()?;
    let number = |name: &str| entry.get::<u32>(name).ok();
    Some(InstanceStat {
        id: u8::try_from(number("id")?).ok()?,
        area: number("area")?,
        bbox: [number("x")?, number("y")?, number("width")?, number("height")?],
        confidence: entry.get::<f64>("confidence").ok()? as f32,
    })
}
