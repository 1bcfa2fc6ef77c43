//! The finest partition: basins of the contour map.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::data::felzenszwalb::Partition;

/// Marks pixels that no basin has reached.
const UNSEEN: u32 = u32::MAX;

/// The 4-neighbours of pixel `i` of a map of `length` pixels.
fn neighbours(i: usize, width: usize, length: usize) -> impl Iterator<Item = usize> {
    let x = i % width;
    [
        (i >= width).then(|| i - width),
        (x > 0).then(|| i - 1),
        (x + 1 < width).then_some(i + 1),
        (i + width < length).then_some(i + width),
    ]
    .into_iter()
    .flatten()
}

/// Floods `values` (at least 0, row-major) from their regional minima, by 4-neighbours. Every
/// pixel gets the basin that reaches it at the lowest level, of equal ones the first, so
/// plateaus are shared out by distance; basins are 4-connected and numbered in the order of
/// their minima.
pub(super) fn watershed(values: &[f32], width: usize) -> Partition {
    let length = values.len();
    // Bits of numbers that are not negative order like the numbers; adding 0 turns -0 to 0.
    let level = |i: usize| (values[i] + 0.0).to_bits();
    let mut labels = vec![UNSEEN; length];
    let mut count = 0;
    let mut order = 0_u32;
    let mut queue = BinaryHeap::new();
    let mut visited = vec![false; length];
    let mut plateau = Vec::new();
    for start in 0..length {
        if visited[start] {
            continue;
        }
        visited[start] = true;
        plateau.clear();
        plateau.push(start);
        let (mut next, mut minimum) = (0, true);
        while let Some(&i) = plateau.get(next) {
            next += 1;
            for n in neighbours(i, width, length) {
                if level(n) < level(start) {
                    minimum = false;
                } else if level(n) == level(start) && !visited[n] {
                    visited[n] = true;
                    plateau.push(n);
                }
            }
        }
        if minimum {
            for &i in &plateau {
                labels[i] = count;
                queue.push(Reverse((level(i), order, i as u32)));
                order += 1;
            }
            count += 1;
        }
    }
    while let Some(Reverse((reached, _, i))) = queue.pop() {
        let label = labels[i as usize];
        for n in neighbours(i as usize, width, length) {
            if labels[n] == UNSEEN {
                labels[n] = label;
                queue.push(Reverse((level(n).max(reached), order, n as u32)));
                order += 1;
            }
        }
    }
    Partition { labels, count }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ridge_parts_two_basins() {
        let values = [0.0, 0.1, 0.9, 0.2, 0.1, 0.0, 0.1, 0.9, 0.2, 0.1];
        let basins = watershed(&values, 5);
        assert_eq!(
            (basins.count, &basins.labels[..2], &basins.labels[3..5]),
            (2, &[0; 2][..], &[1; 2][..])
        );
    }

    #[test]
    fn a_flat_ridge_is_cut_in_its_middle() {
        let basins = watershed(&[0.0, 0.5, 0.5, 0.5, 0.5, 0.1], 6);
        assert_eq!(basins.labels, [0, 0, 0, 1, 1, 1]);
    }

    proptest! {
        /// Every pixel belongs to a basin, which is connected and has exactly one minimum.
        #[test]
        fn basins_are_connected_and_have_one_minimum_each(
            values in prop::collection::vec(0_u8..6, 8 * 7),
        ) {
            let values: Vec<f32> = values.into_iter().map(|v| f32::from(v) / 5.0).collect();
            let basins = watershed(&values, 8);
            let mut minima = vec![0; basins.count as usize];
            let mut pieces = vec![0; basins.count as usize];
            // Components of equal (label) and of equal (label, value).
            for by_value in [false, true] {
                let mut seen = vec![false; values.len()];
                for start in 0..values.len() {
                    if seen[start] {
                        continue;
                    }
                    seen[start] = true;
                    let (mut component, mut next, mut lowest) = (vec![start], 0, true);
                    while next < component.len() {
                        let i = component[next];
                        next += 1;
                        for n in neighbours(i, 8, values.len()) {
                            lowest &= values[n] >= values[start];
                            let same = (by_value || basins.labels[n] == basins.labels[start])
                                && (!by_value || values[n] == values[start]);
                            if same && !seen[n] {
                                seen[n] = true;
                                component.push(n);
                            }
                        }
                    }
                    let label = basins.labels[start] as usize;
                    if !by_value {
                        pieces[label] += 1;
                    } else if lowest {
                        minima[label] += 1;
                        prop_assert!(component.iter().all(|&i| basins.labels[i] as usize == label));
                    }
                }
            }
            prop_assert!(pieces.iter().chain(&minima).all(|&n| n == 1), "{pieces:?} {minima:?}");
        }
    }
}
