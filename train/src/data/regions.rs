//! Merging of the smallest parts of a partition until few enough are left.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use image::RgbImage;

use super::felzenszwalb::Partition;

/// Joins the smallest part (of equally small ones that with the lowest label) to the
/// neighbour whose mean colour is nearest, until at most `max_parts` (at least 1) are left.
/// Parts are neighbours when two of their pixels touch by a side or a corner. Labels of the
/// result are numbered anew in the order of their first pixel.
///
/// `partition` must be one of `image`.
pub fn merge_smallest(image: &RgbImage, partition: &Partition, max_parts: u32) -> Partition {
    if partition.count <= max_parts.max(1) {
        return partition.clone();
    }
    let mut parts = Parts::new(image, partition);
    let mut alive = partition.count;
    let mut queue: BinaryHeap<Reverse<(u32, u32)>> =
        parts.size.iter().zip(0..).map(|(&size, label)| Reverse((size, label))).collect();
    while alive > max_parts.max(1) {
        let Some(Reverse((size, label))) = queue.pop() else { break };
        // A part that has grown or gone since it was queued.
        if parts.size[label as usize] != size || parts.into[label as usize] != label {
            continue;
        }
        let Some(target) = parts.most_similar_neighbour(label) else { continue };
        parts.join(label, target);
        queue.push(Reverse((parts.size[target as usize], target)));
        alive -= 1;
    }
    let mut number = vec![u32::MAX; partition.count as usize];
    let mut count = 0;
    let labels = partition
        .labels
        .iter()
        .map(|&label| {
            let slot = &mut number[parts.survivor(label) as usize];
            if *slot == u32::MAX {
                *slot = count;
                count += 1;
            }
            *slot
        })
        .collect();
    Partition { labels, count }
}

/// Size, colour and neighbours of every part.
struct Parts {
    size: Vec<u32>,
    /// Sums of the colours, exact.
    colour: Vec<[u64; 3]>,
    neighbours: Vec<BTreeSet<u32>>,
    /// The part that this one was joined to; itself while it lives.
    into: Vec<u32>,
}

impl Parts {
    fn new(image: &RgbImage, partition: &Partition) -> Self {
        let count = partition.count as usize;
        let mut size = vec![0; count];
        let mut colour = vec![[0; 3]; count];
        for (&label, pixel) in partition.labels.iter().zip(image.pixels()) {
            size[label as usize] += 1;
            for (sum, &value) in colour[label as usize].iter_mut().zip(&pixel.0) {
                *sum += u64::from(value);
            }
        }
        let mut pairs = touching_pairs(&partition.labels, image.width() as usize);
        pairs.sort_unstable();
        pairs.dedup();
        let mut neighbours = vec![BTreeSet::new(); count];
        for (a, b) in pairs {
            neighbours[a as usize].insert(b);
            neighbours[b as usize].insert(a);
        }
        Self { size, colour, neighbours, into: (0..partition.count).collect() }
    }

    fn mean(&self, label: u32) -> [f64; 3] {
        let size = f64::from(self.size[label as usize]);
        self.colour[label as usize].map(|sum| sum as f64 / size)
    }

    /// The neighbour with the nearest mean colour, the lowest label among equals.
    fn most_similar_neighbour(&self, label: u32) -> Option<u32> {
        let own = self.mean(label);
        let distance = |other: u32| -> f64 {
            self.mean(other).iter().zip(own).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        self.neighbours[label as usize]
            .iter()
            .map(|&other| (distance(other), other))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, other)| other)
    }

    fn join(&mut self, label: u32, target: u32) {
        let (from, to) = (label as usize, target as usize);
        self.into[from] = target;
        self.size[to] += self.size[from];
        for c in 0..3 {
            self.colour[to][c] += self.colour[from][c];
        }
        for neighbour in std::mem::take(&mut self.neighbours[from]) {
            self.neighbours[neighbour as usize].remove(&label);
            if neighbour != target {
                self.neighbours[neighbour as usize].insert(target);
                self.neighbours[to].insert(neighbour);
            }
        }
    }

    fn survivor(&self, mut label: u32) -> u32 {
        while self.into[label as usize] != label {
            label = self.into[label as usize];
        }
        label
    }
}

/// Pairs of different labels (lower first, with repetitions) of pixels that touch.
fn touching_pairs(labels: &[u32], width: usize) -> Vec<(u32, u32)> {
    let mut pairs = Vec::new();
    let mut add = |a: u32, b: u32| {
        if a != b {
            let pair = (a.min(b), a.max(b));
            // Along a straight border the same pair comes many times in a row.
            if pairs.last() != Some(&pair) {
                pairs.push(pair);
            }
        }
    };
    let rows: Vec<&[u32]> = labels.chunks_exact(width.max(1)).collect();
    for (y, row) in rows.iter().enumerate() {
        for pair in row.windows(2) {
            add(pair[0], pair[1]);
        }
        let Some(below) = rows.get(y + 1) else { break };
        for (&a, &b) in row.iter().zip(*below) {
            add(a, b);
        }
        for (upper, lower) in row.windows(2).zip(below.windows(2)) {
            add(upper[0], lower[1]);
            add(upper[1], lower[0]);
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image_of(width: u32, greys: &[u8]) -> RgbImage {
        let data = greys.iter().flat_map(|&g| [g, g, g]).collect();
        RgbImage::from_raw(width, greys.len() as u32 / width, data).unwrap()
    }

    #[test]
    fn the_smallest_part_joins_its_most_similar_neighbour() {
        // Parts 0 (two pixels, grey 10), 1 (one pixel, grey 90), 2 (three pixels, grey 100).
        let image = image_of(6, &[10, 10, 90, 100, 100, 100]);
        let parts = Partition { labels: vec![0, 0, 1, 2, 2, 2], count: 3 };
        let merged = merge_smallest(&image, &parts, 2);
        assert_eq!(merged, Partition { labels: vec![0, 0, 1, 1, 1, 1], count: 2 });
    }

    #[test]
    fn a_partition_that_is_small_enough_stays() {
        let image = image_of(2, &[1, 2]);
        let parts = Partition { labels: vec![0, 1], count: 2 };
        assert_eq!(merge_smallest(&image, &parts, 2), parts);
    }

    #[test]
    fn parts_that_touch_by_a_corner_are_neighbours() {
        let mut pairs = touching_pairs(&[0, 1, 1, 2], 2);
        pairs.sort_unstable();
        pairs.dedup();
        assert_eq!(pairs, [(0, 1), (0, 2), (1, 2)]);
    }

    proptest! {
        #[test]
        fn merging_only_coarsens_and_reaches_the_limit(
            greys in prop::collection::vec(any::<u8>(), 48),
            limit in 1_u32..20,
        ) {
            let image = image_of(8, &greys);
            // Every pixel its own part.
            let parts = Partition { labels: (0..48).collect(), count: 48 };
            let merged = merge_smallest(&image, &parts, limit);
            prop_assert_eq!(merged.count, limit);
            let used: BTreeSet<u32> = merged.labels.iter().copied().collect();
            prop_assert_eq!(used, (0..limit).collect::<BTreeSet<u32>>());
            // Labels appear in the order of their first pixel.
            let mut seen = 0;
            for &label in &merged.labels {
                prop_assert!(label <= seen);
                seen = seen.max(label + 1);
            }
        }
    }
}
