//! The metadata that `conceptseg` attaches to each buffer.
//!
//! It is a custom meta (`gst_meta_register_custom`) named [`NAME`], so that any element or
//! application can read it as a `GstStructure` without this library:
//!
//! | field | type | |
//! |---|---|---|
//! | `width`, `height` | `guint` | size of the analysed frame and of the maps in pixels |
//! | `frame` | `guint64` | index of the frame in its stream, from 0 |
//! | `masks` | `GstBuffer` | instance id of each pixel, `GRAY8`, 0 is background; absent without a first mask |
//! | `concepts` | `GstBuffer` | concept id of each pixel, `GRAY16_LE`; absent where concepts are switched off |
//! | `instances` | `GstValueArray` of `GstStructure` | with `masks`: `id`, `area`, `x`, `y`, `width`, `height` (`guint`, pixels), `confidence` (`gdouble`, 0..1) |
//! | `segments` | `GstValueArray` of `GstStructure` | with `concepts`, one per connected segment: `concept`, `area`, `x`, `y`, `width`, `height` (`guint`, pixels), `similarity` (`gdouble`, -1..1) |
//! | `summary` | `GstValueArray` of `GstStructure` | with `concepts`, one per concept, largest first: `id` (`guint`), `area` (`gdouble`, share 0..1), `similarity` (`gdouble`), and where people gave them `name` (`gchararray`), `mark` (`gchararray`, `alert` or `ignore`) and `color` (`guint`, 0xrrggbb; one for all concepts of a name) |
//!
//! Both map buffers carry a `GstVideoMeta` with format, size and stride.
//!
//! The meta has no tags, so that elements which convert, scale, crop or encode keep it. They
//! do not adapt it: maps always have the size of the frame that was analysed, and a reader
//! scales them to its own frame ([`Analysis::read_masks`], [`Analysis::read_concepts`]).

use conceptseg::bundle::{ConceptNames, Mark};
use conceptseg::concepts::ConceptMap;
use conceptseg::labels::MAX_SIDE;
use conceptseg::overlay::given_color;
use conceptseg::propagate::MaskMap;
use conceptseg::results::summarize_concepts;
use conceptseg::stream::FrameResult;
use gst_video::{VideoFormat, VideoFrameFlags, VideoMeta};

/// Name of the metadata, for `gst_buffer_get_custom_meta`.
pub const NAME: &str = "ConceptSegMeta";

/// Why metadata could not be attached or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The framework refused.
    #[error("cannot attach {NAME}: {0}")]
    Attach(#[from] gst::glib::BoolError),
    /// A field is missing, has another type or an impossible value.
    #[error("{NAME} on the buffer is damaged: {0}; it has to be as conceptseg attached it")]
    Damaged(String),
}

/// Makes the metadata known to the framework. Called when the plugin is loaded; programs that
/// read metadata without loading the plugin need not call it.
pub fn register() {
    // Another copy of the plugin in the same process may have been first.
    if !gst::meta::CustomMeta::is_registered(NAME) {
        gst::meta::CustomMeta::register(NAME, &[]);
    }
}

/// Attaches `result` to `buffer`. Metadata of an earlier `conceptseg` is replaced: readers
/// find one only.
///
/// # Errors
/// [`MetaError::Attach`] where the framework refuses.
pub fn attach(
    buffer: &mut gst::BufferRef,
    result: &FrameResult,
    names: &ConceptNames,
) -> Result<(), MetaError> {
    while let Ok(old) = gst::meta::CustomMeta::from_mut_buffer(buffer, NAME) {
        old.remove()?;
    }
    let mut meta = gst::meta::CustomMeta::add(buffer, NAME)?;
    let fields = meta.mut_structure();
    fields.set("width", result.width);
    fields.set("height", result.height);
    fields.set("frame", result.index);
    if let Some(map) = &result.masks {
        let mut pixels = gst::Buffer::with_size(map.labels.len())?;
        fill(&mut pixels, VideoFormat::Gray8, map.width, map.height, |bytes| {
            bytes.copy_from_slice(&map.labels);
        })?;
        fields.set("masks", pixels);
        fields.set("instances", instances(map));
    }
    if let Some(map) = &result.concepts {
        let mut pixels = gst::Buffer::with_size(map.concepts.len() * 2)?;
        fill(&mut pixels, VideoFormat::Gray16Le, map.width, map.height, |bytes| {
            for (pair, id) in bytes.chunks_exact_mut(2).zip(&map.concepts) {
                pair.copy_from_slice(&id.to_le_bytes());
            }
        })?;
        fields.set("concepts", pixels);
        fields.set("segments", segments(map));
        fields.set("summary", summary(map, names));
    }
    Ok(())
}

/// Writes the pixels of a new buffer and describes them; rows follow each other without gaps.
fn fill(
    buffer: &mut gst::Buffer,
    format: VideoFormat,
    width: u32,
    height: u32,
    write: impl FnOnce(&mut [u8]),
) -> Result<(), gst::glib::BoolError> {
    let buffer =
        buffer.get_mut().ok_or_else(|| gst::glib::bool_error!("the new buffer is shared"))?;
    write(&mut buffer.map_writable()?);
    let stride = i32::try_from(buffer.size() / (height.max(1) as usize))
        .map_err(|_| gst::glib::bool_error!("rows of {} pixels are too long", width))?;
    VideoMeta::add_full(buffer, VideoFrameFlags::empty(), format, width, height, &[0], &[stride])?;
    Ok(())
}

fn instances(map: &MaskMap) -> gst::Array {
    gst::Array::new(map.instances.iter().map(|i| {
        boxed("instance", i.area, i.bbox)
            .field("id", u32::from(i.id))
            .field("confidence", f64::from(i.confidence))
            .build()
    }))
}

fn segments(map: &ConceptMap) -> gst::Array {
    gst::Array::new(map.segment_list.iter().map(|s| {
        boxed("segment", s.area, s.bbox)
            .field("concept", u32::from(s.concept))
            .field("similarity", f64::from(s.similarity))
            .build()
    }))
}

fn boxed(name: &str, area: u32, [x, y, width, height]: [u32; 4]) -> gst::structure::Builder {
    gst::Structure::builder(name)
        .field("area", area)
        .field("x", x)
        .field("y", y)
        .field("width", width)
        .field("height", height)
}

fn summary(map: &ConceptMap, names: &ConceptNames) -> gst::Array {
    gst::Array::new(summarize_concepts(map, names).into_iter().map(|record| {
        let color = given_color(names, record.id);
        gst::Structure::builder("concept")
            .field("id", u32::from(record.id))
            .field("area", record.area)
            .field("similarity", record.similarity)
            .field_if_some("name", record.name)
            .field_if_some("mark", record.mark.map(Mark::as_str))
            .field_if_some("color", color.map(|[r, g, b]| u32::from_be_bytes([0, r, g, b])))
            .build()
    }))
}

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
    concepts: Option<gst::Buffer>,
    /// Concept id and colour where people gave one.
    colors: Vec<(u16, [u8; 3])>,
    /// Concepts that people marked as ignored.
    ignored: Vec<u16>,
}

impl Analysis {
    /// The metadata of `buffer`, `None` where it has none.
    ///
    /// # Errors
    /// [`MetaError::Damaged`] where a field is not as described in the [module](self).
    pub fn from_buffer(buffer: &gst::BufferRef) -> Result<Option<Self>, MetaError> {
        let Ok(meta) = gst::meta::CustomMeta::from_buffer(buffer, NAME) else {
            return Ok(None);
        };
        let fields = meta.structure();
        let damaged = |e: gst::structure::GetError<_>| MetaError::Damaged(e.to_string());
        let width: u32 = fields.get("width").map_err(damaged)?;
        let height: u32 = fields.get("height").map_err(damaged)?;
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return Err(MetaError::Damaged(format!("a size of {width}x{height} is impossible")));
        }
        let summary = fields
            .get_optional::<gst::ArrayRef<'_>>("summary")
            .map_err(|e| MetaError::Damaged(e.to_string()))?;
        let summary = || summary.iter().flat_map(|list| list.iter());
        Ok(Some(Self {
            width,
            height,
            frame: fields.get("frame").map_err(|e| MetaError::Damaged(e.to_string()))?,
            masks: fields.get_optional("masks").map_err(|e| MetaError::Damaged(e.to_string()))?,
            concepts: fields
                .get_optional("concepts")
                .map_err(|e| MetaError::Damaged(e.to_string()))?,
            colors: summary().filter_map(concept_color).collect(),
            ignored: summary().filter_map(ignored_concept).collect(),
        }))
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
    pub fn ignored(&self) -> &[u16] {
        &self.ignored
    }

    /// Reads the instance map into `out`, scaled to `width` x `height` by nearest neighbour.
    /// `out.instances` is left empty. Returns `false` where there is none.
    ///
    /// # Errors
    /// [`MetaError::Damaged`] where the map is shorter than its size says.
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
    /// [`MetaError::Damaged`] where the map is shorter than its size says.
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

    /// Reads a map of `N` bytes per pixel.
    fn read<const N: usize, T>(
        &self,
        pixels: &gst::Buffer,
        width: u32,
        height: u32,
        out: &mut Vec<T>,
        value: impl Fn([u8; N]) -> T,
    ) -> Result<(), MetaError> {
        let row = self.width as usize * N;
        let (offset, stride) = pixels.meta::<VideoMeta>().map_or((0, row), |meta| {
            let first = |list: &[i32]| list.first().and_then(|&s| usize::try_from(s).ok());
            (meta.offset().first().copied().unwrap_or(0), first(meta.stride()).unwrap_or(0))
        });
        let map = pixels.map_readable().map_err(|e| MetaError::Damaged(e.to_string()))?;
        let needed = (self.height as usize - 1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(offset))
            .and_then(|n| n.checked_add(row));
        if stride < row || needed.is_none_or(|n| map.len() < n) {
            return Err(MetaError::Damaged(format!(
                "a map of {}x{} has {} bytes with {stride} per row",
                self.width,
                self.height,
                map.len()
            )));
        }
        out.clear();
        out.reserve(width as usize * height as usize);
        for y in 0..height {
            let start = offset + nearest(y, height, self.height) * stride;
            let (values, _) = map[start..start + row].as_chunks::<N>();
            if width == self.width {
                out.extend(values.iter().map(|&v| value(v)));
            } else {
                out.extend((0..width).map(|x| value(values[nearest(x, width, self.width)])));
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

fn ignored_concept(entry: &gst::glib::SendValue) -> Option<u16> {
    let entry = entry.get::<&gst::StructureRef>().ok()?;
    let ignored = entry.get::<&str>("mark").ok()? == Mark::Ignore.as_str();
    ignored.then(|| entry.get::<u32>("id").ok()?.try_into().ok())?
}
