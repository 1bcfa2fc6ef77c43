//! Clusters of one image and their prototypes.

use super::classes::{ClusterSettings, Resolution};
use super::neighbours::Neighbours;
use super::resample::{bilinear, normalise};
use crate::concepts::kmeans::Clusters;
use crate::embed::EmbeddingMap;
use crate::labels::LabelMap;
use crate::upsample::Upsampler;

/// Clusters images one after the other; keeps its scratch.
#[derive(Debug, Default)]
pub(super) struct Clusterer {
    clusters: Clusters,
    /// Embeddings at the resolution of the clustering, `[height, width, dim]`.
    dense: Vec<f32>,
    scores: Vec<f32>,
    upsampler: Upsampler,
}

/// Labelled prototypes of an image.
#[derive(Debug, Default, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Prototypes {
    /// `[classes.len(), dim]`, unit rows.
    pub vectors: Vec<f32>,
    /// Class of each.
    pub classes: Vec<u8>,
}

impl Prototypes {
    /// Those of many images as one set to search in; embeddings have `dim` dimensions.
    pub fn join(images: Vec<Self>, dim: usize) -> Neighbours {
        let mut all = Self::default();
        for one in images {
            all.vectors.extend(one.vectors);
            all.classes.extend(one.classes);
        }
        Neighbours::new(all.vectors, all.classes, dim)
    }
}

impl Clusterer {
    /// Clusters the labelled pixels and gives each cluster the most frequent class of its
    /// pixels (of equal ones the lowest); its prototype is the mean of the pixels of that class.
    pub(super) fn labelled(
        &mut self,
        map: &EmbeddingMap,
        labels: &LabelMap,
        void: u8,
        settings: &ClusterSettings,
    ) -> Prototypes {
        let labels = match settings.resolution {
            Resolution::Pixels => labels.clone(),
            Resolution::Grid => labels.resized_nearest(map.width as u32, map.height as u32),
        };
        let size = (labels.height as usize, labels.width as usize, map.dim);
        self.fill(map, size);
        let class = &labels.data;
        self.clusters.run_where(&self.dense, size, settings.grid, settings.rounds, |cell| {
            class[cell] != void
        });
        let mut counts = vec![[0u32; 256]; self.clusters.count()];
        for (&cluster, &class) in self.clusters.labels().iter().zip(class) {
            if class != void {
                counts[usize::from(cluster)][usize::from(class)] += 1;
            }
        }
        // `max_by_key` gives the last of equal ones, hence the reversed order.
        let majority: Vec<Option<u8>> = counts
            .iter()
            .map(|counts| {
                (0..=255u8)
                    .rev()
                    .max_by_key(|&c| counts[usize::from(c)])
                    .filter(|&c| counts[usize::from(c)] > 0)
            })
            .collect();
        let mut sums = vec![0.0f32; majority.len() * map.dim];
        let cells = self.dense.chunks_exact(map.dim).zip(self.clusters.labels()).zip(class);
        for ((embedding, &cluster), &class) in cells {
            if majority[usize::from(cluster)] == Some(class) {
                let sum = &mut sums[usize::from(cluster) * map.dim..][..map.dim];
                sum.iter_mut().zip(embedding).for_each(|(sum, value)| *sum += value);
            }
        }
        normalise(&mut sums, map.dim);
        let mut prototypes = Prototypes::default();
        for (vector, class) in sums.chunks_exact(map.dim).zip(majority) {
            if let Some(class) = class {
                prototypes.vectors.extend_from_slice(vector);
                prototypes.classes.push(class);
            }
        }
        prototypes
    }

    /// Clusters all pixels. Gives the prototype of each cluster (`[count, dim]`; zero for one
    /// without pixels) and the cluster of each of the `width` x `height` pixels.
    pub(super) fn all(
        &mut self,
        map: &EmbeddingMap,
        (width, height): (u32, u32),
        settings: &ClusterSettings,
    ) -> (&[f32], Vec<u8>) {
        let (w, h) = (width as usize, height as usize);
        let size = match settings.resolution {
            Resolution::Pixels => (h, w, map.dim),
            Resolution::Grid => (map.height, map.width, map.dim),
        };
        self.fill(map, size);
        self.clusters.run(&self.dense, size, settings.grid, settings.rounds);
        let labels = match settings.resolution {
            Resolution::Pixels => self.clusters.labels().to_vec(),
            Resolution::Grid => self.upsampled(map, (h, w)),
        };
        (&self.clusters.prototypes, labels)
    }

    /// Borders between the clusters of the grid where their upsampled scores cross, as the live
    /// path draws them.
    fn upsampled(&mut self, map: &EmbeddingMap, size: (usize, usize)) -> Vec<u8> {
        let mut present: Vec<u8> = self.clusters.labels().to_vec();
        present.sort_unstable();
        present.dedup();
        self.clusters.scores(&present, &mut self.scores);
        let mut winners = Vec::new();
        let grid = (map.height, map.width);
        self.upsampler.argmax(&self.scores, grid, None, size, &mut winners);
        for winner in &mut winners {
            *winner = present[usize::from(*winner)];
        }
        winners
    }

    /// Brings the embeddings to the resolution of the clustering.
    fn fill(&mut self, map: &EmbeddingMap, (h, w, dim): (usize, usize, usize)) {
        if (h, w) == (map.height, map.width) {
            self.dense.clone_from(&map.data);
        } else {
            bilinear(&map.data, (map.height, map.width, dim), (h, w), &mut self.dense);
            normalise(&mut self.dense, dim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: ClusterSettings =
        ClusterSettings { grid: 2, rounds: 10, resolution: Resolution::Pixels };

    /// Left half one direction, right half the other.
    fn halves() -> EmbeddingMap {
        let data =
            (0..32).flat_map(|cell| if cell % 8 < 4 { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
        EmbeddingMap { height: 4, width: 8, dim: 2, stride: 1, data }
    }

    #[test]
    fn void_pixels_move_no_prototype_and_minorities_are_left_out() {
        let mut map = halves();
        // A pixel of another direction, void; one of another class.
        map.data[0..2].copy_from_slice(&[0.0, -1.0]);
        map.data[2..4].copy_from_slice(&[0.6, 0.8]);
        let mut labels = LabelMap::background(8, 4);
        for (i, label) in labels.data.iter_mut().enumerate() {
            *label = if i % 8 < 4 { 3 } else { 5 };
        }
        labels.data[0] = 255;
        labels.data[1] = 7;
        let found = Clusterer::default().labelled(&map, &labels, 255, &SETTINGS);
        assert!(!found.classes.is_empty());
        for (vector, class) in found.vectors.chunks(2).zip(&found.classes) {
            let expected = match class {
                3 => [1.0, 0.0],
                5 => [0.0, 1.0],
                7 => [0.6, 0.8],
                other => panic!("{other}"),
            };
            assert!(vector.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
        }
        let nothing = LabelMap { data: vec![255; 32], ..labels };
        let found = Clusterer::default().labelled(&map, &nothing, 255, &SETTINGS);
        assert!(found.classes.is_empty() && found.vectors.is_empty());
    }

    #[test]
    fn both_resolutions_cut_at_the_border_between_two_directions() {
        for resolution in [Resolution::Pixels, Resolution::Grid] {
            let settings = ClusterSettings { resolution, ..SETTINGS };
            let mut clusterer = Clusterer::default();
            let (prototypes, labels) = clusterer.all(&halves(), (32, 16), &settings);
            for (i, &cluster) in labels.iter().enumerate() {
                let expected = usize::from(i % 32 >= 16);
                let prototype = &prototypes[usize::from(cluster) * 2..][..2];
                assert!(prototype[expected] > 0.9, "{resolution:?} {i} {prototype:?}");
            }
        }
    }
}
