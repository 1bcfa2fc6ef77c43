//! The nearest concept of a prototype.

use super::kmeans::dot;

/// The row of `codebook` (`[K, dim]`, unit rows) with the highest cosine to the unit
/// vector `prototype`, and that cosine in -1..1; of equal ones the lowest row.
pub(super) fn nearest_concept(prototype: &[f32], codebook: &[f32]) -> (u16, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (concept, row) in codebook.chunks_exact(prototype.len()).enumerate() {
        let cosine = dot(prototype, row);
        if cosine > best.1 {
            best = (concept as u16, cosine);
        }
    }
    (best.0, best.1.clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_cosine_wins_and_the_lowest_row_of_equals() {
        let codebook = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.6, 0.8];
        assert_eq!(nearest_concept(&[1.0, 0.0], &codebook), (1, 1.0));
        assert_eq!(nearest_concept(&[0.6, 0.8], &codebook).0, 3);
        assert_eq!(nearest_concept(&[0.0, -1.0], &codebook), (1, 0.0));
    }
}
