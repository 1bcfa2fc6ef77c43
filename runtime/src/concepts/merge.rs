//! From clusters to concept segments: touching areas of one concept become one segment.

use super::{ConceptMap, ConceptSegment};

/// Segments are indexed with 16 bits.
pub(crate) const MAX_SEGMENTS: usize = 1 << 16;

/// Concept of a cluster and the cosine of its prototype to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClusterConcept {
    pub(crate) concept: u16,
    pub(crate) similarity: f32,
}

/// Neighbouring pixels of one cluster in a row.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u32,
    end: u32,
    cluster: u8,
    /// An earlier run of the same segment, or the run itself; after the pass over the
    /// map, the first run of the segment.
    parent: u32,
}

/// Finds 4-connected segments run by run; keeps its scratch.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    runs: Vec<Run>,
    /// Where the runs of each row begin, `[height + 1]`.
    rows: Vec<u32>,
    /// Segment of each run that is the first of one.
    segment_of: Vec<u16>,
    /// Per segment: sum of area times similarity.
    weighted: Vec<f64>,
}

impl Merger {
    /// Fills `out` from the cluster of each pixel, `clusters` `[height, width]`, and the
    /// concept of each cluster.
    ///
    /// Segments are numbered in raster order of their first pixel. Behind the first
    /// `limit - 1` all others share the last number, with the concept of the first of
    /// them; `concepts` has the right concept for every pixel nevertheless. (`limit` is
    /// [`MAX_SEGMENTS`]; embedding grids of video frames give a few hundred.)
    pub(crate) fn merge(
        &mut self,
        clusters: &[u8],
        (width, height): (u32, u32),
        of_cluster: &[ClusterConcept],
        limit: usize,
        out: &mut ConceptMap,
    ) {
        self.find_runs(clusters, width as usize);
        self.join(of_cluster);
        let pixels = width as usize * height as usize;
        (out.width, out.height) = (width, height);
        out.concepts.resize(pixels, 0);
        out.segments.resize(pixels, 0);
        out.segment_list.clear();
        self.weighted.clear();
        self.segment_of.clear();
        self.segment_of.resize(self.runs.len(), 0);
        for (y, range) in self.rows.windows(2).enumerate() {
            let concepts = &mut out.concepts[y * width as usize..][..width as usize];
            let segments = &mut out.segments[y * width as usize..][..width as usize];
            for index in range[0]..range[1] {
                let root = root(&mut self.runs, index);
                let Run { start, end, cluster, .. } = self.runs[index as usize];
                let ClusterConcept { concept, similarity } = of_cluster[usize::from(cluster)];
                if root == index {
                    let next = out.segment_list.len();
                    self.segment_of[index as usize] = next.min(limit - 1) as u16;
                    if next < limit {
                        let bbox = [start, y as u32, 0, 0];
                        out.segment_list.push(ConceptSegment {
                            concept,
                            similarity,
                            area: 0,
                            bbox,
                        });
                        self.weighted.push(0.0);
                    }
                }
                let number = self.segment_of[root as usize];
                let segment = &mut out.segment_list[usize::from(number)];
                let area = end - start;
                segment.area += area;
                self.weighted[usize::from(number)] += f64::from(similarity) * f64::from(area);
                let [x, top, w, _] = segment.bbox;
                let left = x.min(start);
                segment.bbox = [left, top, (x + w).max(end) - left, y as u32 - top + 1];
                concepts[start as usize..end as usize].fill(concept);
                segments[start as usize..end as usize].fill(number);
            }
        }
        for (segment, weighted) in out.segment_list.iter_mut().zip(&self.weighted) {
            segment.similarity = (weighted / f64::from(segment.area)) as f32;
        }
    }

    fn find_runs(&mut self, clusters: &[u8], width: usize) {
        self.runs.clear();
        self.rows.clear();
        self.rows.push(0);
        for row in clusters.chunks_exact(width) {
            let mut start = 0;
            for run in row.chunk_by(|a, b| a == b) {
                let end = start + run.len() as u32;
                let parent = self.runs.len() as u32;
                self.runs.push(Run { start, end, cluster: run[0], parent });
                start = end;
            }
            self.rows.push(self.runs.len() as u32);
        }
    }

    /// Unites touching runs of equal concept.
    fn join(&mut self, of_cluster: &[ClusterConcept]) {
        let concept = |run: &Run| of_cluster[usize::from(run.cluster)].concept;
        let mut above = 0..0;
        for range in self.rows.windows(2) {
            let row = range[0]..range[1];
            let mut upper = above.start;
            for index in row.clone() {
                let run = self.runs[index as usize];
                if index > row.start && concept(&self.runs[index as usize - 1]) == concept(&run) {
                    unite(&mut self.runs, index - 1, index);
                }
                // All runs of the row above that share a column with this one.
                while upper < above.end && self.runs[upper as usize].end <= run.start {
                    upper += 1;
                }
                for other in upper..above.end {
                    let touching = self.runs[other as usize];
                    if touching.start >= run.end {
                        break;
                    }
                    if concept(&touching) == concept(&run) {
                        unite(&mut self.runs, other, index);
                    }
                }
            }
            above = row;
        }
    }
}

/// First run of the segment of a run; shortens the way to it.
fn root(runs: &mut [Run], mut index: u32) -> u32 {
    while runs[index as usize].parent != index {
        let next = runs[index as usize].parent;
        runs[index as usize].parent = runs[next as usize].parent;
        index = next;
    }
    index
}

/// Makes two segments one; the earlier first run stays, so that it is in raster order.
fn unite(runs: &mut [Run], a: u32, b: u32) {
    let (a, b) = (root(runs, a), root(runs, b));
    runs[a.max(b) as usize].parent = a.min(b);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn concepts(list: &[u16]) -> Vec<ClusterConcept> {
        list.iter()
            .enumerate()
            .map(|(i, &concept)| ClusterConcept { concept, similarity: i as f32 / 8.0 })
            .collect()
    }

    fn merge(clusters: &[u8], size: (u32, u32), list: &[u16], limit: usize) -> ConceptMap {
        let mut out = ConceptMap::default();
        Merger::default().merge(clusters, size, &concepts(list), limit, &mut out);
        out
    }

    /// Flood fill in raster order.
    fn flood(map: &[u16], w: usize, h: usize) -> Vec<u16> {
        let mut numbers = vec![None; w * h];
        let mut next = 0;
        for first in 0..w * h {
            if numbers[first].is_some() {
                continue;
            }
            let mut stack = vec![first];
            while let Some(p) = stack.pop() {
                if numbers[p].is_some() || map[p] != map[first] {
                    continue;
                }
                numbers[p] = Some(next);
                let (x, y) = (p % w, p / w);
                stack.extend((x > 0).then(|| p - 1));
                stack.extend((x + 1 < w).then_some(p + 1));
                stack.extend((y > 0).then(|| p.wrapping_sub(w)));
                stack.extend((y + 1 < h).then_some(p + w));
            }
            next += 1;
        }
        numbers.into_iter().flatten().collect()
    }

    proptest! {
        #[test]
        fn segments_are_those_of_a_flood_fill(
            (width, height) in (1..14usize, 1..14usize),
            list in prop::collection::vec(0..3u16, 4),
            seed: u64,
        ) {
            let clusters: Vec<u8> = (0..width * height)
                .map(|i| ((i as u64 + 1).wrapping_mul(seed | 1) >> 17) as u8 % 4).collect();
            let size = (width as u32, height as u32);
            let out = merge(&clusters, size, &list, MAX_SEGMENTS);
            let expected: Vec<u16> = clusters.iter().map(|&c| list[usize::from(c)]).collect();
            prop_assert_eq!(&out.concepts, &expected);
            prop_assert_eq!(&out.segments, &flood(&expected, width, height));
            for (i, segment) in out.segment_list.iter().enumerate() {
                let pixels: Vec<usize> =
                    (0..width * height).filter(|&p| usize::from(out.segments[p]) == i).collect();
                prop_assert_eq!(segment.area as usize, pixels.len());
                prop_assert_eq!(segment.concept, out.concepts[pixels[0]]);
                let xs = pixels.iter().map(|p| (p % width) as u32);
                let ys = pixels.iter().map(|p| (p / width) as u32);
                let (left, top) = (xs.clone().min().unwrap(), ys.clone().min().unwrap());
                let (right, bottom) = (xs.max().unwrap(), ys.max().unwrap());
                prop_assert_eq!(segment.bbox, [left, top, right - left + 1, bottom - top + 1]);
                let sum: f32 = pixels.iter().map(|&p| f32::from(clusters[p]) / 8.0).sum();
                prop_assert!((segment.similarity - sum / pixels.len() as f32).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn clusters_of_one_concept_become_one_segment_but_not_across_a_corner() {
        let out = merge(&[0, 1, 2, 2, 2, 0], (3, 2), &[7, 7, 9], MAX_SEGMENTS);
        assert_eq!(out.concepts, [7, 7, 9, 9, 9, 7]);
        assert_eq!(out.segments, [0, 0, 1, 2, 2, 3]);
        assert_eq!(out.segment_list[0].similarity, 1.0 / 16.0);
    }

    #[test]
    fn segments_beyond_the_limit_share_the_last_number() {
        let out = merge(&[0, 1, 2, 0, 1], (5, 1), &[5, 6, 7], 3);
        assert_eq!(out.segments, [0, 1, 2, 2, 2]);
        assert_eq!(out.concepts, [5, 6, 7, 5, 6]);
        assert_eq!(out.segment_list.len(), 3);
        assert_eq!((out.segment_list[2].concept, out.segment_list[2].area), (7, 3));
        assert_eq!(out.segment_list[2].bbox, [2, 0, 3, 1]);
    }
}
