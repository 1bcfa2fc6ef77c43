//! Random segments of each concept, whatever the order in which they come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::ImageConcepts;

/// Segments smaller than this share of their image say little as pictures: they are drawn only
/// where a concept has too few others.
const SPECK: f64 = 0.002;

/// A segment that stands for its concept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Name of the image.
    pub image: String,
    /// Its place among the segments of the image.
    pub segment: usize,
    /// Pixels.
    pub area: u32,
    /// Smallest box around it: x, y, width, height.
    pub bbox: [u32; 4],
}

/// Up to `count` segments of at least `min_area` pixels of each concept that has any.
///
/// Every segment has a random number that only its image's name, its place and `seed` decide;
/// those with the lowest are taken. Hence any subset of the images keeps its choice, and no
/// order matters.
pub(super) fn draw(
    records: &[&ImageConcepts],
    count: usize,
    seed: u64,
    min_area: u32,
) -> BTreeMap<u16, Vec<Sample>> {
    // By concept: whether it is a speck, its number, the record, the segment.
    let mut drawn: BTreeMap<u16, Vec<(bool, u64, usize, usize)>> = BTreeMap::new();
    for (at, record) in records.iter().enumerate() {
        let whole = record.size.iter().map(|&side| f64::from(side)).product::<f64>();
        for (place, segment) in record.segments.iter().enumerate() {
            if count == 0 || segment.area < min_area {
                continue;
            }
            let speck = f64::from(segment.area) < SPECK * whole;
            let best = drawn.entry(segment.concept).or_default();
            best.push((speck, number(seed, &record.image, place), at, place));
            // Sorted now and then only: few are kept of many.
            if best.len() >= 2 * count + 64 {
                best.sort_unstable();
                best.truncate(count);
            }
        }
    }
    drawn
        .into_iter()
        .map(|(concept, mut best)| {
            best.sort_unstable();
            best.truncate(count);
            let samples = best.into_iter().map(|(_, _, at, place)| Sample::new(records[at], place));
            (concept, samples.collect())
        })
        .collect()
}

/// Up to `count` segments of at least `min_area` pixels of each concept that has any: those most
/// similar to it, each of another image. Specks come last, as in `draw`.
pub fn nearest(
    records: &[ImageConcepts],
    count: usize,
    min_area: u32,
) -> BTreeMap<u16, Vec<Sample>> {
    // The best of each concept and image.
    let mut found: BTreeMap<u16, Vec<(bool, f32, &ImageConcepts, usize)>> = BTreeMap::new();
    for record in records {
        let whole = record.size.iter().map(|&side| f64::from(side)).product::<f64>();
        let mut best: BTreeMap<u16, (bool, f32, usize)> = BTreeMap::new();
        for (place, segment) in record.segments.iter().enumerate() {
            if segment.area < min_area {
                continue;
            }
            let speck = f64::from(segment.area) < SPECK * whole;
            let this = (speck, segment.similarity, place);
            let other = best.entry(segment.concept).or_insert(this);
            if (speck, -segment.similarity) < (other.0, -other.1) {
                *other = this;
            }
        }
        for (concept, (speck, similarity, place)) in best {
            found.entry(concept).or_default().push((speck, similarity, record, place));
        }
    }
    let mut samples = BTreeMap::new();
    for (concept, mut best) in found {
        best.sort_by(|a, b| {
            (a.0.cmp(&b.0)).then(b.1.total_cmp(&a.1)).then_with(|| a.2.image.cmp(&b.2.image))
        });
        best.truncate(count);
        let best = best.into_iter().map(|(_, _, record, place)| Sample::new(record, place));
        samples.insert(concept, best.collect());
    }
    samples
}

impl Sample {
    /// Segment `place` of a record.
    fn new(record: &ImageConcepts, place: usize) -> Self {
        let segment = &record.segments[place];
        Self { image: record.image.clone(), segment: place, area: segment.area, bbox: segment.bbox }
    }
}

/// The random number of a segment.
fn number(seed: u64, image: &str, place: usize) -> u64 {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((place as u64).to_le_bytes());
    hash.update(image.as_bytes());
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::super::record::Segment;
    use super::*;

    fn image(name: &str, areas: &[u32]) -> ImageConcepts {
        let segments = areas.iter().map(|&area| Segment {
            concept: 7,
            similarity: 0.5,
            area,
            bbox: [0, 0, area, 1],
            class: None,
        });
        ImageConcepts { image: name.to_owned(), size: [100, 100], segments: segments.collect() }
    }

    fn drawn(records: &[ImageConcepts], count: usize, seed: u64) -> Vec<Sample> {
        let records: Vec<&ImageConcepts> = records.iter().collect();
        draw(&records, count, seed, 0).remove(&7).unwrap_or_default()
    }

    #[test]
    fn the_choice_depends_on_the_seed_and_not_on_the_order() {
        let mut records: Vec<ImageConcepts> =
            (0..40).map(|i| image(&format!("{i}"), &[100, 200, 300, 400, 500])).collect();
        let (first, other) = (drawn(&records, 8, 0), drawn(&records, 8, 1));
        assert_eq!(first.len(), 8);
        assert_ne!(first, other);
        records.reverse();
        assert_eq!(drawn(&records, 8, 0), first);
        // More of them begin with the same ones.
        assert_eq!(drawn(&records, 12, 0)[..8], first);
        // What is drawn from half of the images is drawn from it among all.
        let half = drawn(&records[..20], 8, 0);
        let kept = first.iter().filter(|s| s.image.parse::<u32>().unwrap() >= 20);
        assert!(kept.clone().count() > 0 && kept.zip(&half).all(|(a, b)| a == b));
    }

    #[test]
    fn every_segment_is_as_likely() {
        let records = [image("a", &[100; 10])];
        let mut hits = [0u32; 10];
        for seed in 0..1000 {
            for sample in drawn(&records, 3, seed) {
                hits[sample.segment] += 1;
            }
        }
        // 300 each; five standard deviations are 72.
        assert!(hits.iter().all(|&n| n.abs_diff(300) < 72), "{hits:?}");
    }

    #[test]
    fn the_nearest_are_of_different_images_and_specks_come_last() {
        let mut records = [image("a", &[900, 900]), image("b", &[900]), image("c", &[3])];
        for (record, similarities) in records.iter_mut().zip([[0.7, 0.9], [0.8, 0.0], [1.0, 0.0]]) {
            for (segment, similarity) in record.segments.iter_mut().zip(similarities) {
                segment.similarity = similarity;
            }
        }
        let found = |count, min_area| -> Vec<(String, usize)> {
            let found = nearest(&records, count, min_area).remove(&7).unwrap();
            found.into_iter().map(|s| (s.image, s.segment)).collect()
        };
        let [a, b, c] = [("a".to_owned(), 1), ("b".to_owned(), 0), ("c".to_owned(), 0)];
        assert_eq!(found(3, 0), [a.clone(), b.clone(), c]);
        assert_eq!(found(9, 4), [a.clone(), b]);
        assert_eq!(found(1, 0), [a]);
    }

    #[test]
    fn specks_come_last_and_too_small_ones_never() {
        let records = [image("a", &[3, 5, 19, 20, 900])];
        let sizes = |samples: Vec<Sample>| samples.iter().map(|s| s.area).collect::<Vec<_>>();
        for seed in 0..20 {
            let mut two = sizes(drawn(&records, 2, seed));
            two.sort_unstable();
            assert_eq!(two, [20, 900]);
        }
        assert_eq!(drawn(&records, 9, 0).len(), 5);
        assert_eq!(draw(&[&records[0]], 9, 0, 4)[&7].len(), 4);
        assert!(draw(&[&records[0]], 0, 0, 0).is_empty());
    }
}
