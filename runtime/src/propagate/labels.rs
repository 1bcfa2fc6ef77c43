//! Soft labels: made from the first mask, carried from cell to cell.

use rayon::prelude::*;

use super::FirstLabels;
use super::affinity::{NONE, Neighbours};
use super::memory::ContextMemory;
use crate::labels::LabelMap;

/// A channel whose values differ by less than this share of them is constant.
const FLAT: f32 = 1e-6;

/// Fills `out` (`[height * width, 1 + ids.len()]`, background first) with the share of
/// each instance in each cell. Ids that are not listed, such as void, are background.
pub(crate) fn first_labels(
    mask: &LabelMap,
    (height, width, stride): (usize, usize, usize),
    ids: &[u8],
    how: FirstLabels,
    out: &mut [f32],
) {
    let channels = ids.len() + 1;
    let mut channel_of = [0usize; 256];
    for (i, &id) in ids.iter().enumerate() {
        channel_of[usize::from(id)] = i + 1;
    }
    // Area: the mask at the size the network sees, averaged over the pixels of a cell.
    // Bilinear: over the (up to four) pixels around a cell's centre, which is what sampling the
    // planes there comes to. Nearest: cells of one pixel.
    let (side, counted) = match how {
        FirstLabels::Area => (stride, 0..stride),
        FirstLabels::Bilinear => (stride, (stride - 1) / 2..stride / 2 + 1),
        FirstLabels::Nearest => (1, 0..1),
    };
    let resized = mask.resized_nearest((width * side) as u32, (height * side) as u32);
    let share = 1.0 / (counted.len() * counted.len()) as f32;
    out.fill(0.0);
    for (y, row) in resized.data.chunks_exact(width * side).enumerate() {
        if !counted.contains(&(y % side)) {
            continue;
        }
        let cells = &mut out[y / side * width * channels..][..width * channels];
        for (pixels, cell) in row.chunks_exact(side).zip(cells.chunks_exact_mut(channels)) {
            for &id in &pixels[counted.clone()] {
                // Whole numbers until the end, so that the shares are exact.
                cell[channel_of[usize::from(id)]] += 1.0;
            }
        }
    }
    for v in out.iter_mut() {
        *v *= share;
    }
}

/// Sums the labels of the kept cells with the weights `exp(score / temperature)`,
/// normalised over them. A cell without any comparable score becomes background.
///
/// # Shapes
/// - `out`: `[cells, channels]`
pub(super) fn carry_labels(
    neighbours: &Neighbours,
    context: &ContextMemory,
    (cells, channels, row_cells): (usize, usize, usize),
    temperature: f32,
    out: &mut [f32],
) {
    out.par_chunks_mut(row_cells * channels).enumerate().for_each(|(y, row)| {
        for (x, label) in row.chunks_exact_mut(channels).enumerate() {
            let (scores, sources) = neighbours.of(y * row_cells + x, 0);
            let weight = |score: f32| ((score - scores[0]) / temperature).exp();
            let kept = sources.iter().take_while(|&&s| s != NONE).count();
            let total: f32 = scores[..kept].iter().map(|&s| weight(s)).sum();
            label.fill(0.0);
            if kept == 0 || !total.is_finite() {
                label[0] = 1.0;
                continue;
            }
            for (&score, &source) in scores[..kept].iter().zip(sources) {
                let share = weight(score) / total;
                let source = source as usize;
                let from = &context.frame(source / cells).labels;
                let from = &from[source % cells * channels..][..channels];
                for (sum, value) in label.iter_mut().zip(from) {
                    *sum += share * value;
                }
            }
        }
    });
}

/// Means over the context frames of the sums of the labels of each frame's kept cells, with the
/// weights that the softmax over all cells of the frame's window gives them, then scaled to 0..1
/// channel by channel. A cell without any comparable score becomes background.
///
/// # Shapes
/// - `out`: `[cells, channels]`
pub(super) fn carry_scaled_labels(
    neighbours: &Neighbours,
    context: &ContextMemory,
    (cells, channels, row_cells): (usize, usize, usize),
    temperature: f32,
    out: &mut [f32],
) {
    let part = 1.0 / context.len() as f32;
    out.par_chunks_mut(row_cells * channels).enumerate().for_each(|(y, row)| {
        for (x, label) in row.chunks_exact_mut(channels).enumerate() {
            let cell = y * row_cells + x;
            label.fill(0.0);
            let mut seen = false;
            for frame in 0..context.len() {
                let (scores, sources) = neighbours.of(cell, frame);
                let total = neighbours.sum(cell, frame);
                if sources[0] == NONE || !total.is_finite() {
                    continue;
                }
                seen = true;
                let labels = &context.frame(frame).labels;
                for (&score, &source) in
                    scores.iter().zip(sources).take_while(|(_, source)| **source != NONE)
                {
                    let share = ((score - scores[0]) / temperature).exp() / total * part;
                    let from = &labels[source as usize % cells * channels..][..channels];
                    for (sum, value) in label.iter_mut().zip(from) {
                        *sum += share * value;
                    }
                }
            }
            if !seen {
                label[0] = 1.0;
            }
        }
    });
    for channel in 0..channels {
        let values = || out.iter().skip(channel).step_by(channels);
        let low = values().copied().fold(f32::INFINITY, f32::min);
        let high = values().copied().fold(f32::NEG_INFINITY, f32::max);
        // One that is the same everywhere, up to rounding, cannot be scaled.
        if high - low > FLAT * high {
            for value in out.iter_mut().skip(channel).step_by(channels) {
                *value = (*value - low) / (high - low);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn area_labels_are_the_shares_of_each_cell() {
        // Two cells of 2x2 pixels; void counts as background.
        let mask = LabelMap { width: 4, height: 2, data: vec![0, 3, 9, 9, 3, 3, 255, 9] };
        let mut out = vec![0.0; 6];
        first_labels(&mask, (1, 2, 2), &[3, 9], FirstLabels::Area, &mut out);
        assert_eq!(out, [0.25, 0.75, 0.0, 0.25, 0.0, 0.75]);
    }

    #[test]
    fn area_labels_see_the_mask_at_network_size() {
        // 3 columns become 4: the middle one is met twice, by both cells.
        let mask = LabelMap { width: 3, height: 1, data: vec![0, 1, 0] };
        let mut out = vec![0.0; 4];
        first_labels(&mask, (1, 2, 2), &[1], FirstLabels::Area, &mut out);
        assert_eq!(out, [0.5, 0.5, 0.5, 0.5]);
    }

    #[test]
    fn bilinear_labels_sample_between_the_pixels_around_the_cell_centre() {
        let mut mask = LabelMap::background(4, 4);
        mask.data[5..7].copy_from_slice(&[2, 2]);
        mask.data[9] = 2;
        let mut out = vec![0.0; 2];
        first_labels(&mask, (1, 1, 4), &[2], FirstLabels::Bilinear, &mut out);
        assert_eq!(out, [0.25, 0.75]);
        // With an odd stride the centre is a pixel.
        let mask = LabelMap { width: 3, height: 3, data: vec![0, 0, 0, 0, 2, 0, 0, 0, 0] };
        first_labels(&mask, (1, 1, 3), &[2], FirstLabels::Bilinear, &mut out);
        assert_eq!(out, [0.0, 1.0]);
    }

    #[test]
    fn nearest_labels_sample_the_cell_centre() {
        let mask = LabelMap { width: 3, height: 3, data: vec![0, 0, 0, 0, 7, 0, 0, 0, 0] };
        let mut out = vec![0.0; 2];
        first_labels(&mask, (1, 1, 8), &[7], FirstLabels::Nearest, &mut out);
        assert_eq!(out, [0.0, 1.0]);
    }
}
