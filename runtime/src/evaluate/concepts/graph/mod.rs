//! Which concepts occur together.
//!
//! Two concepts are joined where they share at least `min_images` images and do so more often
//! than chance would have it: their pointwise mutual information, the logarithm of `n_ij n /
//! (n_i n_j)` for n images of which `n_i` hold the one, `n_j` the other and `n_ij` both, lies
//! above `min_pmi`.

mod drawing;
mod layout;

use std::collections::HashMap;

use serde::Serialize;

pub use drawing::{Look, svg};

/// Concepts that occur together.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ConceptGraph {
    /// Images.
    pub images: usize,
    /// Joined concepts, in the order of the dictionary.
    pub edges: Vec<Edge>,
}

/// Two concepts that occur together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Edge {
    /// The lower row of the dictionary.
    pub a: u16,
    /// The higher row.
    pub b: u16,
    /// Images that hold both.
    pub images: u32,
    /// Pointwise mutual information, nats.
    pub pmi: f64,
}

impl ConceptGraph {
    /// The graph of images with the given concepts, sorted and each once.
    pub fn new(present: &[Vec<u16>], min_images: u32, min_pmi: f64) -> Self {
        let mut single: HashMap<u16, u32> = HashMap::new();
        let mut both: HashMap<(u16, u16), u32> = HashMap::new();
        for concepts in present {
            for (i, &a) in concepts.iter().enumerate() {
                *single.entry(a).or_default() += 1;
                for &b in &concepts[i + 1..] {
                    *both.entry((a, b)).or_default() += 1;
                }
            }
        }
        let n = present.len() as f64;
        let mut edges: Vec<Edge> = both
            .into_iter()
            .filter(|&(_, images)| images >= min_images)
            .map(|((a, b), images)| {
                let apart = f64::from(single[&a]) * f64::from(single[&b]);
                Edge { a, b, images, pmi: libm::log(f64::from(images) * n / apart) }
            })
            .filter(|edge| edge.pmi > min_pmi)
            .collect();
        edges.sort_unstable_by_key(|edge| (edge.a, edge.b));
        Self { images: present.len(), edges }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concepts_that_share_more_images_than_chance_are_joined() {
        // 8 images: 1 and 2 share 3 of their 4 each, 1 and 3 one of 4 and 4.
        let present = [
            vec![1, 2],
            vec![1, 2],
            vec![1, 2, 5],
            vec![1, 3],
            vec![2, 3],
            vec![3],
            vec![3],
            vec![],
        ];
        let graph = ConceptGraph::new(&present, 1, 0.0);
        // 1-2: ln(3 * 8 / (4 * 4)); 1-5, 2-5: ln(1 * 8 / (4 * 1)); 1-3 and 2-3: ln(8 / 16) < 0.
        let edge = |a, b, images, pmi: f64| Edge { a, b, images, pmi };
        let ln2 = 2.0_f64.ln();
        let expected = [edge(1, 2, 3, 1.5_f64.ln()), edge(1, 5, 1, ln2), edge(2, 5, 1, ln2)];
        assert_eq!(graph.edges.len(), 3);
        for (found, expected) in graph.edges.iter().zip(expected) {
            assert_eq!((found.a, found.b, found.images), (expected.a, expected.b, expected.images));
            assert!((found.pmi - expected.pmi).abs() < 1e-15, "{found:?}");
        }
        assert_eq!(ConceptGraph::new(&present, 3, 0.0).edges.len(), 1);
        assert_eq!(ConceptGraph::new(&present, 1, 0.5).edges.len(), 2);
        // All five pairs once none is below chance.
        assert_eq!(ConceptGraph::new(&present, 1, -1.0).edges.len(), 5);
        // What is in every image tells nothing: PMI 0 joins nothing.
        assert!(ConceptGraph::new(&[vec![1, 2], vec![1, 2]], 1, 0.0).edges.is_empty());
    }
}
