//! Pairs of neighbouring frames: the second view shows another moment of the same video.
//!
//! Both frames have segments of their own. A segment of the second frame takes the id of the
//! segment of the first frame that most of its pixels come from, so that both belong to the
//! same segment of the pair, and borders stay those of the frame itself. This rests on motion
//! in the pictures alone, not on the network that is trained.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rand::{Rng, RngExt as _};
use serde::{Deserialize, Serialize};

use super::dataset::PreparedImage;
use super::flow::{Flow, Pyramid};
use super::{DataError, Dataset, SegmentMap, VOID};

/// Pixels by which the way to the other frame and back may miss its start, by columns and by
/// rows. Motion is known in whole pixels and by cells.
const ROUND_TRIP: u32 = 2;
/// Frames whose segments take less than this share of the pixels with them are not neighbours:
/// a cut lies between them, or they are unrelated pictures in one folder.
const LEAST_CARRIED: f64 = 0.25;

/// Second views from neighbouring frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FootageConfig {
    /// The second view shows a frame at most this many files further or back in the same
    /// folder; 0: both views show the same image, as in the paper.
    pub max_distance: usize,
    /// Share of a segment's pixels that must come from one segment of the first frame for it
    /// to be the same segment.
    pub min_overlap: f32,
}

impl Default for FootageConfig {
    fn default() -> Self {
        Self { max_distance: 0, min_overlap: 0.6 }
    }
}

impl FootageConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`DataError::Parameter`].
    pub fn validate(&self) -> Result<(), DataError> {
        DataError::check(
            self.max_distance <= 1000,
            "footage.max_distance",
            &self.max_distance,
            "a number in 0..=1000",
        )?;
        DataError::check(
            self.min_overlap > 0.0 && self.min_overlap <= 1.0,
            "footage.min_overlap",
            &self.min_overlap,
            "a number in 0 < a <= 1",
        )
    }
}

/// The images of a data set as clips: those of one folder, in the order of their names.
#[derive(Debug)]
pub struct Clips {
    clips: Vec<Vec<u32>>,
    /// Clip of each image and its place there.
    places: Vec<(usize, usize)>,
}

impl Clips {
    /// Sorts the images of `dataset` into clips.
    pub fn new(dataset: &Dataset) -> Self {
        let mut folders: BTreeMap<&Path, Vec<(&Path, u32)>> = BTreeMap::new();
        for (i, path) in (0..dataset.len()).filter_map(|i| Some((i, dataset.path(i)?))) {
            let folder = path.parent().unwrap_or(Path::new(""));
            folders.entry(folder).or_default().push((path, i as u32));
        }
        let mut places = vec![(0, 0); dataset.len()];
        let mut clips = Vec::with_capacity(folders.len());
        for mut frames in folders.into_values() {
            frames.sort_unstable();
            for (place, &(_, image)) in frames.iter().enumerate() {
                places[image as usize] = (clips.len(), place);
            }
            clips.push(frames.into_iter().map(|(_, image)| image).collect());
        }
        Self { clips, places }
    }

    /// One of the frames at most `max_distance` before or after `image`, all equally likely;
    /// `None` where there is none.
    pub fn neighbour(&self, image: u32, max_distance: usize, rng: &mut impl Rng) -> Option<u32> {
        let &(clip, place) = self.places.get(image as usize)?;
        let frames = &self.clips[clip];
        let first = place.saturating_sub(max_distance);
        let last = place.saturating_add(max_distance).min(frames.len() - 1);
        if first == last {
            return None;
        }
        // One fewer than there are frames: the image itself is left out.
        let drawn = rng.random_range(first..last);
        Some(frames[if drawn < place { drawn } else { drawn + 1 }])
    }
}

/// The segments of `second` with the ids of `first` where they are the same; the others have
/// ids that `first` does not use. `None` when the frames differ in size or show too little of
/// the same.
///
/// A pixel counts for the segment of the first frame on which it falls when the motion from
/// there leads back to it.
pub fn carry(
    first: &PreparedImage,
    second: &PreparedImage,
    config: &FootageConfig,
) -> Option<SegmentMap> {
    let (width, height) = second.rgb.dimensions();
    if first.rgb.dimensions() != (width, height) {
        return None;
    }
    let pyramids = (Pyramid::new(&first.rgb), Pyramid::new(&second.rgb));
    let forth = Flow::between(&pyramids.0, &pyramids.1);
    let back = Flow::between(&pyramids.1, &pyramids.0);
    let (columns, rows) = (width as i32, height as i32);
    let mut areas: BTreeMap<u16, u32> = BTreeMap::new();
    let mut votes: HashMap<(u16, u16), u32> = HashMap::new();
    for (y, row) in (0..).zip(second.segments.ids.chunks_exact(width as usize)) {
        for (x, &id) in (0..).zip(row) {
            if id == VOID {
                continue;
            }
            *areas.entry(id).or_default() += 1;
            let (dx, dy) = back.at(x, y);
            let (u, v) = (x + dx, y + dy);
            if !(0..columns).contains(&u) || !(0..rows).contains(&v) {
                continue;
            }
            let (rx, ry) = forth.at(u, v);
            let source = first.segments.ids[(v * columns + u) as usize];
            let returns = (dx + rx).unsigned_abs().max((dy + ry).unsigned_abs()) <= ROUND_TRIP;
            if returns && source != VOID {
                *votes.entry((id, source)).or_default() += 1;
            }
        }
    }
    // Most votes; the lowest id among equals.
    let mut sources: HashMap<u16, (u32, u16)> = HashMap::new();
    for (&(id, source), &count) in &votes {
        let best = sources.entry(id).or_insert((count, source));
        if count > best.0 || (count == best.0 && source < best.1) {
            *best = (count, source);
        }
    }
    let mut fresh = first.segments.count();
    let mut carried = 0;
    let mut new_ids: HashMap<u16, u16> = HashMap::from([(VOID, VOID)]);
    for (&id, &area) in &areas {
        let source = sources.get(&id).filter(|(count, _)| {
            f64::from(*count) >= f64::from(config.min_overlap) * f64::from(area)
        });
        let new = if let Some(&(_, source)) = source {
            carried += area;
            source
        } else {
            fresh += 1;
            // Where the numbers run out the segment is left out.
            u16::try_from(fresh - 1).unwrap_or(VOID)
        };
        new_ids.insert(id, new);
    }
    if f64::from(carried) < LEAST_CARRIED * f64::from(width) * f64::from(height) {
        return None;
    }
    let ids = second.segments.ids.iter().map(|id| new_ids.get(id).copied().unwrap_or(VOID));
    Some(SegmentMap { width, height, ids: ids.collect() })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_pcg::Pcg64;

    use super::*;
    use crate::data::DatasetConfig;
    use crate::data::dataset::tests::write_images;
    use crate::data::flow::tests::window;

    /// A window of a picture whose segments are 24 pixels a side, numbered from its corner.
    fn frame(left: u32, top: u32) -> PreparedImage {
        let rgb = window(left, top, 120, 96);
        let labels = (0..96_u32).flat_map(|y| {
            (0..120_u32).map(move |x| Some((x + left) / 24 + 100 * ((y + top) / 24)))
        });
        let segments = SegmentMap::numbered(120, 96, labels).unwrap();
        PreparedImage { rgb, segments }
    }

    #[test]
    fn segments_of_a_translated_frame_are_those_of_the_first() {
        let (first, second) = (frame(48, 48), frame(55, 43));
        let map = carry(&first, &second, &FootageConfig::default()).unwrap();
        let known = first.segments.count() as u16;
        let (mut same, mut new) = (0, 0);
        for y in 0..96_u32 {
            for x in 0..120_u32 {
                let id = map.ids[(y * 120 + x) as usize];
                let (u, v) = (x + 7, y.wrapping_sub(5));
                if u < 120 && v < 96 && id < known {
                    // A carried id is that of the very pixel it comes from.
                    assert_eq!(id, first.segments.ids[(v * 120 + u) as usize], "{x} {y}");
                    same += 1;
                } else {
                    new += usize::from(id >= known);
                }
            }
        }
        // All but the two sides that have come into the picture.
        assert!(same > 85 * 96 && new > 0, "{same} {new}");
        // Borders are those of the second frame, to the pixel.
        for (a, b) in second.segments.ids.windows(2).zip(map.ids.windows(2)) {
            assert!((a[0] == a[1]) == (b[0] == b[1]));
        }
    }

    #[test]
    fn a_frame_carries_all_its_segments_to_itself() {
        let first = frame(20, 30);
        let map = carry(&first, &first, &FootageConfig::default()).unwrap();
        assert_eq!(map, first.segments);
    }

    #[test]
    fn frames_across_a_cut_or_of_another_size_are_no_pair() {
        let first = frame(0, 0);
        let noise = |x: u32, y: u32| ((x * 7919 + y * 104_729) ^ (x * y * 31)) as u8;
        let rgb = image::RgbImage::from_fn(120, 96, |x, y| image::Rgb([noise(x, y); 3]));
        let cut = PreparedImage { rgb, segments: first.segments.clone() };
        assert_eq!(carry(&first, &cut, &FootageConfig::default()), None);
        let small = PreparedImage {
            rgb: window(0, 0, 60, 48),
            segments: SegmentMap { width: 60, height: 48, ids: vec![0; 60 * 48] },
        };
        assert_eq!(carry(&first, &small, &FootageConfig::default()), None);
    }

    #[test]
    fn neighbours_are_of_the_same_folder_and_near() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for (clip, count) in [("a", 6), ("b", 1), ("c", 2)] {
            let folder = dir.path().join(clip);
            std::fs::create_dir(&folder).unwrap();
            paths.extend(write_images(&folder, count));
        }
        let dataset = Dataset::load(paths, DatasetConfig::default(), &|_, _| ()).unwrap();
        let clips = Clips::new(&dataset);
        let mut rng = Pcg64::seed_from_u64(1);
        let mut found = |image| {
            let mut all: Vec<_> = (0..200).map(|_| clips.neighbour(image, 2, &mut rng)).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        assert_eq!(found(0), [Some(1), Some(2)]);
        assert_eq!(found(3), [Some(1), Some(2), Some(4), Some(5)]);
        assert_eq!(found(5), [Some(3), Some(4)]);
        assert_eq!(found(6), [None]);
        assert_eq!(found(7), [Some(8)]);
    }

    #[test]
    fn neighbouring_frames_of_a_video_share_most_of_their_area() {
        let Some(folder) = conceptseg::testdata::shared("data/davis/JPEGImages/480p/camel") else {
            return;
        };
        let paths = ["00010.jpg", "00011.jpg"].map(|name| folder.join(name)).to_vec();
        let settings = DatasetConfig { short_side: 240, ..DatasetConfig::default() };
        let dataset = Dataset::load(paths, settings, &|_, _| ()).unwrap();
        let (first, second) = (dataset.get(0).unwrap(), dataset.get(1).unwrap());
        let start = std::time::Instant::now();
        let map = carry(&first, &second, &FootageConfig::default()).unwrap();
        let known = first.segments.count() as u16;
        let carried = map.ids.iter().filter(|&&id| id < known).count();
        let share = carried as f64 / map.ids.len() as f64;
        println!("{:.1} % carried in {:?}", 100.0 * share, start.elapsed());
        assert!(share > 0.5, "{share}");
    }
}
