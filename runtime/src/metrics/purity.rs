//! Purity of concepts: how far the segments of one concept show one class.
//!
//! A segment's class is the most frequent one among its labelled pixels; segments without any
//! are dropped. The purity of a concept is the share of its segments in its most frequent class.

use crate::labels::{IdMap, LabelMap};

/// Bins of the histogram over purities.
pub const BINS: usize = 10;

/// Purity above which a concept counts as pure.
pub const PURE: f64 = 0.8;

/// Segments by concept and class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurityCounts {
    classes: usize,
    /// `[concepts, classes]`.
    counts: Vec<u64>,
    /// Segments without a labelled pixel.
    unlabelled: u64,
}

/// What the counts come to.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PurityReport {
    /// Concepts of the dictionary.
    pub concepts: usize,
    /// Concepts with at least one labelled segment.
    pub used: usize,
    /// Concepts with enough segments to be scored.
    pub scored: usize,
    /// Segments with a class.
    pub segments: u64,
    /// Segments without a labelled pixel, left out.
    pub unlabelled: u64,
    /// Mean over the scored concepts, 0..1; 0 where there is none.
    pub mean: f64,
    /// Mean over the scored concepts weighted by their segments, 0..1.
    pub mean_weighted: f64,
    /// Share of the scored concepts with a purity above 0.8.
    pub above_80: f64,
    /// Scored concepts by purity: 0 to below 0.1, …, 0.9 to 1.
    pub histogram: [usize; BINS],
    /// The scored concepts, in the order of the dictionary.
    pub per_concept: Vec<ConceptPurity>,
}

/// The class of a segment with that many pixels of each: the most frequent one, of equal ones
/// the lowest; none where no pixel is labelled.
pub fn majority(pixels: &[u64]) -> Option<usize> {
    // `max_by_key` gives the last of equal ones, hence the reversed order.
    (0..pixels.len()).rev().max_by_key(|&c| pixels[c]).filter(|&c| pixels[c] > 0)
}

/// One scored concept.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ConceptPurity {
    /// Row of the dictionary.
    pub concept: usize,
    /// Its most frequent class; of equal ones the lowest.
    pub class: usize,
    /// Its labelled segments.
    pub segments: u64,
    /// Share of them in that class, 0..1.
    pub purity: f64,
}

impl PurityCounts {
    /// No segments yet.
    pub fn new(concepts: usize, classes: usize) -> Self {
        Self { classes, counts: vec![0; concepts * classes], unlabelled: 0 }
    }

    /// Adds a segment of `concept` whose class is known, or that has no labelled pixel.
    pub fn add_segment(&mut self, concept: usize, class: Option<usize>) {
        match class {
            Some(class) => self.counts[concept * self.classes + class] += 1,
            None => self.unlabelled += 1,
        }
    }

    /// Adds `segments` segments of `concept` whose class is known; one that there is not is left
    /// out.
    pub fn add_classified(&mut self, concept: usize, class: usize, segments: u64) {
        if class < self.classes
            && let Some(count) = self.counts.get_mut(concept * self.classes + class)
        {
            *count += segments;
        }
    }

    /// The figures over concepts with at least `min_segments` (1 or more) labelled segments.
    pub fn report(&self, min_segments: u64) -> PurityReport {
        let rows = || self.counts.chunks_exact(self.classes);
        let mut per_concept = Vec::new();
        for (concept, row) in rows().enumerate() {
            let segments: u64 = row.iter().sum();
            if segments < min_segments.max(1) {
                continue;
            }
            let class = (0..self.classes).rev().max_by_key(|&c| row[c]).unwrap_or(0);
            let purity = row[class] as f64 / segments as f64;
            per_concept.push(ConceptPurity { concept, class, segments, purity });
        }
        let n = per_concept.len().max(1) as f64;
        let mut histogram = [0; BINS];
        for one in &per_concept {
            histogram[((one.purity * BINS as f64) as usize).min(BINS - 1)] += 1;
        }
        let scored_segments: u64 = per_concept.iter().map(|c| c.segments).sum();
        let weighted: f64 = per_concept.iter().map(|c| c.purity * c.segments as f64).sum();
        PurityReport {
            concepts: rows().len(),
            used: rows().filter(|row| row.iter().any(|&count| count > 0)).count(),
            scored: per_concept.len(),
            segments: self.counts.iter().sum(),
            unlabelled: self.unlabelled,
            mean: per_concept.iter().map(|c| c.purity).sum::<f64>() / n,
            mean_weighted: weighted / scored_segments.max(1) as f64,
            above_80: per_concept.iter().filter(|c| c.purity > PURE).count() as f64 / n,
            histogram,
            per_concept,
        }
    }
}

/// A 4-connected area of one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The id.
    pub id: u16,
    /// Its pixels, those without a label included.
    pub area: u32,
    /// Most frequent class of its labelled pixels, of equal ones the lowest.
    pub class: Option<u8>,
}

/// The segments of `ids` in raster order of their first pixels, with their classes in `labels`
/// of the same size, where `void` marks pixels without one.
pub fn segments(ids: &IdMap, labels: &LabelMap, void: u8) -> Vec<Segment> {
    let width = ids.width as usize;
    let mut seen = vec![false; ids.data.len()];
    let mut waiting = Vec::new();
    let mut found = Vec::new();
    for first in 0..ids.data.len() {
        if seen[first] {
            continue;
        }
        let id = ids.data[first];
        let mut area = 0;
        let mut pixels = [0u64; 256];
        seen[first] = true;
        waiting.push(first);
        while let Some(at) = waiting.pop() {
            area += 1;
            if labels.data[at] != void {
                pixels[usize::from(labels.data[at])] += 1;
            }
            let column = at % width;
            let neighbours = [
                at.checked_sub(width),
                Some(at + width).filter(|&below| below < ids.data.len()),
                (column > 0).then(|| at - 1),
                (column + 1 < width).then(|| at + 1),
            ];
            for next in neighbours.into_iter().flatten() {
                if !seen[next] && ids.data[next] == id {
                    seen[next] = true;
                    waiting.push(next);
                }
            }
        }
        found.push(Segment { id, area, class: majority(&pixels).map(|class| class as u8) });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_touch_by_their_sides_and_take_the_class_of_most_labelled_pixels() {
        #[rustfmt::skip]
        let ids = IdMap { width: 4, height: 3, data: vec![
            7, 7, 0, 300,
            0, 7, 0, 0,
            7, 0, 0, 7,
        ]};
        #[rustfmt::skip]
        let labels = LabelMap { width: 4, height: 3, data: vec![
            1, 2, 3, 255,
            255, 255, 3, 4,
            0, 4, 4, 5,
        ]};
        let found: Vec<(u16, u32, Option<u8>)> =
            segments(&ids, &labels, 255).iter().map(|s| (s.id, s.area, s.class)).collect();
        let expected = [
            (7, 3, Some(1)),
            (0, 5, Some(4)),
            (300, 1, None),
            (0, 1, None),
            (7, 1, Some(0)),
            (7, 1, Some(5)),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn purity_is_the_share_of_segments_in_the_majority_class() {
        let mut counts = PurityCounts::new(4, 3);
        for pixels in [[5, 1, 0], [9, 0, 0], [0, 2, 2], [3, 0, 0]] {
            counts.add_segment(1, majority(&pixels));
        }
        counts.add_segment(3, majority(&[0, 0, 7]));
        counts.add_segment(3, majority(&[0, 0, 0]));
        let report = counts.report(1);
        assert_eq!((report.concepts, report.used, report.scored), (4, 2, 2));
        assert_eq!((report.segments, report.unlabelled), (5, 1));
        // A tie between two classes goes to the lower one.
        let first = &report.per_concept[0];
        assert_eq!((first.concept, first.class, first.segments, first.purity), (1, 0, 4, 0.75));
        assert_eq!((report.mean, report.mean_weighted, report.above_80), (0.875, 0.8, 0.5));
        assert_eq!(report.histogram, [0, 0, 0, 0, 0, 0, 0, 1, 0, 1]);
        let strict = counts.report(2);
        assert_eq!((strict.used, strict.scored, strict.mean), (2, 1, 0.75));
        assert_eq!(PurityCounts::new(2, 2).report(1).mean, 0.0);
    }
}
