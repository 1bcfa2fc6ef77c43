//! Faults of a camera that a look at some pixels tells: frozen, covered, blurred.
//!
//! Concepts alone tell these poorly: a covered lens may still be given one concept or five, and
//! a frozen picture is a quiet scene. 2,304 pixels and their neighbours are read, whatever the
//! size of the frame.

use crate::frame::FrameView;

/// Columns and rows of the pixels that are looked at.
const GRID: (usize, usize) = (64, 36);

/// What the pixels of a frame say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// Mean brightness, 0..=255.
    pub brightness: f64,
    /// Deviation of the brightness, 0..=127.5.
    pub contrast: f64,
    /// Mean squared Laplacian over the variance of the brightness: how fine the details are,
    /// whatever the contrast. 0 where nothing differs.
    pub sharpness: f64,
    /// Share of the pixels that changed since the frame before, 0..=1; 1 for the first frame.
    pub changed: f64,
}

/// Looks at frame after frame; remembers the pixels of the last one.
#[derive(Debug, Clone, Default)]
pub struct Watcher {
    size: (u32, u32),
    last: Vec<u8>,
    now: Vec<u8>,
}

impl Watcher {
    /// Looks at a frame.
    pub fn look(&mut self, frame: &FrameView<'_>) -> Look {
        let size = (frame.width(), frame.height());
        let (w, h) = (size.0 as usize, size.1 as usize);
        let luma = frame.luma();
        self.now.clear();
        let mut laplacian = 0.0;
        for row in 0..GRID.1 {
            let y = (2 * row + 1) * h / (2 * GRID.1);
            let (up, down) = (y.saturating_sub(1), (y + 1).min(h - 1));
            for column in 0..GRID.0 {
                let x = (2 * column + 1) * w / (2 * GRID.0);
                let (left, right) = (x.saturating_sub(1), (x + 1).min(w - 1));
                let here = luma.at(x, y);
                let around =
                    [luma.at(left, y), luma.at(right, y), luma.at(x, up), luma.at(x, down)]
                        .map(i32::from);
                let bend = around.iter().sum::<i32>() - 4 * i32::from(here);
                laplacian += f64::from(bend * bend);
                self.now.push(here);
            }
        }
        let count = self.now.len() as f64;
        let mean = self.now.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let variance = self.now.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
        let changed = if self.size == size && self.last.len() == self.now.len() {
            self.now.iter().zip(&self.last).filter(|(a, b)| a != b).count() as f64 / count
        } else {
            1.0
        };
        self.size = size;
        std::mem::swap(&mut self.last, &mut self.now);
        let sharpness = if variance > 0.0 { laplacian / count / variance } else { 0.0 };
        Look { brightness: mean, contrast: variance.sqrt(), sharpness, changed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(watcher: &mut Watcher, pixel: impl Fn(u32, u32) -> u8) -> Look {
        let mut rgb = Vec::new();
        for y in 0..90 {
            for x in 0..160 {
                rgb.extend([pixel(x, y); 3]);
            }
        }
        watcher.look(&FrameView::rgb(160, 90, &rgb).unwrap())
    }

    #[test]
    fn a_flat_picture_has_no_contrast_and_an_equal_one_no_change() {
        let mut watcher = Watcher::default();
        let first = look(&mut watcher, |_, _| 30);
        assert_eq!((first.brightness, first.contrast, first.changed), (30.0, 0.0, 1.0));
        assert_eq!(look(&mut watcher, |_, _| 30).changed, 0.0);
        assert_eq!(look(&mut watcher, |_, _| 31).changed, 1.0);
    }

    #[test]
    fn darkness_keeps_sharpness_and_blur_takes_it() {
        let noise = |x: u32, y: u32| {
            let mixed = x.wrapping_mul(374_761_393) ^ y.wrapping_mul(668_265_263);
            let mixed = (mixed ^ (mixed >> 13)).wrapping_mul(1_274_126_177);
            (mixed ^ (mixed >> 16)) as u8
        };
        let blurred = |x: u32, y: u32| {
            let sum: u32 = (0..7)
                .flat_map(|i| (0..7).map(move |j| (i, j)))
                .map(|(i, j)| u32::from(noise(x + i, y + j)))
                .sum();
            (sum / 49) as u8
        };
        let mut watcher = Watcher::default();
        let sharp = look(&mut watcher, noise).sharpness;
        let dark = look(&mut watcher, |x, y| noise(x, y) / 4).sharpness;
        let soft = look(&mut watcher, blurred).sharpness;
        assert!((dark / sharp - 1.0).abs() < 0.1, "{dark} {sharp}");
        assert!(soft < sharp / 5.0, "{soft} {sharp}");
    }
}
