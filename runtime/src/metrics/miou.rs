//! Mean intersection over union of predicted classes, counted over a whole data set.

use crate::labels::LabelMap;

/// Why a prediction cannot be counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MiouError {
    /// Prediction and ground truth differ in size.
    #[error("the prediction is {found:?} pixels (width, height), the ground truth {expected:?}")]
    Size {
        /// Size of the prediction.
        found: (u32, u32),
        /// Size of the ground truth.
        expected: (u32, u32),
    },
    /// A value is neither a class nor, in the ground truth, void.
    #[error("the {of} holds the value {value}, but there are {classes} classes, from 0 on")]
    Class {
        /// "prediction" or "ground truth".
        of: &'static str,
        /// The value.
        value: u8,
        /// Number of classes.
        classes: usize,
    },
}

/// Pixels by true and predicted class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    void: Option<u8>,
    /// `[classes, classes]`: row true class, column predicted class.
    counts: Vec<u64>,
}

/// What the counts of a data set come to.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct MiouReport {
    /// Mean over all classes, 0..1; one that occurs nowhere counts as 0, as in the scripts of
    /// the field, which divide by the number of classes.
    pub mean_all: f64,
    /// Mean over the classes that the ground truth holds, 0..1.
    pub mean_present: f64,
    /// Number of classes that the ground truth holds.
    pub present: usize,
    /// Share of non-void pixels with the right class, 0..1.
    pub pixel_accuracy: f64,
    /// Intersection over union of each class, 0..1; `None` where the class is neither in the
    /// ground truth nor predicted.
    pub iou: Vec<Option<f64>>,
    /// Ground-truth pixels of each class.
    pub pixels: Vec<u64>,
}

impl Confusion {
    /// Counts for `classes` classes (1..=256); ground-truth pixels of the value `void` are left
    /// out, whatever was predicted there.
    pub fn new(classes: usize, void: Option<u8>) -> Self {
        Self { classes, void, counts: vec![0; classes * classes] }
    }

    /// Counts one image.
    pub fn add(&mut self, truth: &LabelMap, prediction: &LabelMap) -> Result<(), MiouError> {
        let (found, expected) =
            ((prediction.width, prediction.height), (truth.width, truth.height));
        if found != expected {
            return Err(MiouError::Size { found, expected });
        }
        let mut pairs = vec![0u64; 256 * 256];
        for (&t, &p) in truth.data.iter().zip(&prediction.data) {
            pairs[usize::from(t) << 8 | usize::from(p)] += 1;
        }
        let mut counts = self.counts.clone();
        for (pair, &count) in pairs.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (t, p) = (pair >> 8, pair & 255);
            if self.void.is_some_and(|void| usize::from(void) == t) {
                continue;
            }
            for (of, value) in [("ground truth", t), ("prediction", p)] {
                if value >= self.classes {
                    return Err(MiouError::Class { of, value: value as u8, classes: self.classes });
                }
            }
            counts[t * self.classes + p] += count;
        }
        self.counts = counts;
        Ok(())
    }

    /// Adds `weight` times the pixels that are `(true class, predicted class, pixels)`, as
    /// [`pairs`](Self::pairs) gives them. Classes that there are not are left out.
    pub fn add_pairs(&mut self, pairs: &[(u8, u8, u64)], weight: u64) {
        for &(t, p, pixels) in pairs {
            let (t, p) = (usize::from(t), usize::from(p));
            if t < self.classes && p < self.classes {
                self.counts[t * self.classes + p] += weight * pixels;
            }
        }
    }

    /// What was counted, `(true class, predicted class, pixels)`, without pairs that do not
    /// occur.
    pub fn pairs(&self) -> Vec<(u8, u8, u64)> {
        let pair = |(at, &pixels): (usize, &u64)| {
            ((at / self.classes) as u8, (at % self.classes) as u8, pixels)
        };
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(pair).collect()
    }

    /// Adds the counts of other images of the same classes.
    #[must_use]
    pub fn merged(mut self, other: &Self) -> Self {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self
    }

    /// The figures.
    pub fn report(&self) -> MiouReport {
        let n = self.classes;
        let hit = |c: usize| self.counts[c * n + c];
        let pixels: Vec<u64> = self.counts.chunks_exact(n).map(|row| row.iter().sum()).collect();
        let predicted = |c: usize| (0..n).map(|t| self.counts[t * n + c]).sum::<u64>();
        let iou: Vec<Option<f64>> = (0..n)
            .map(|c| {
                let union = pixels[c] + predicted(c) - hit(c);
                (union > 0).then(|| hit(c) as f64 / union as f64)
            })
            .collect();
        let sum = |wanted: &dyn Fn(usize) -> bool| {
            (0..n).filter(|&c| wanted(c)).map(|c| iou[c].unwrap_or(0.0)).sum::<f64>()
        };
        let present = pixels.iter().filter(|&&p| p > 0).count();
        let all: u64 = pixels.iter().sum();
        MiouReport {
            mean_all: sum(&|_| true) / n as f64,
            mean_present: sum(&|c| pixels[c] > 0) / present.max(1) as f64,
            present,
            pixel_accuracy: (0..n).map(hit).sum::<u64>() as f64 / all.max(1) as f64,
            iou,
            pixels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(data: &[u8]) -> LabelMap {
        LabelMap { width: data.len() as u32, height: 1, data: data.to_vec() }
    }

    #[test]
    fn counts_are_those_of_the_whole_set_and_void_is_in_neither_histogram() {
        let mut confusion = Confusion::new(4, Some(255));
        confusion.add(&map(&[0, 0, 1, 255]), &map(&[0, 1, 1, 2])).unwrap();
        let mut other = Confusion::new(4, Some(255));
        other.add(&map(&[1, 1, 255]), &map(&[1, 3, 0])).unwrap();
        let mut again = Confusion::new(4, Some(255));
        again.add_pairs(&confusion.pairs(), 1);
        again.add_pairs(&other.pairs(), 1);
        let confusion = confusion.merged(&other);
        assert_eq!(again, confusion);
        let report = confusion.report();
        // 0: 1 of 2; 1: 2 hits, 3 true, 3 predicted; 2 nowhere; 3 predicted once.
        assert_eq!(report.iou, [Some(0.5), Some(0.5), None, Some(0.0)]);
        assert_eq!((report.mean_all, report.mean_present, report.present), (0.25, 0.5, 2));
        assert_eq!((report.pixel_accuracy, report.pixels), (0.6, vec![2, 3, 0, 0]));
    }

    #[test]
    fn other_sizes_and_unknown_classes_are_refused_and_change_nothing() {
        let mut confusion = Confusion::new(2, None);
        let before = confusion.clone();
        assert!(matches!(confusion.add(&map(&[0]), &map(&[0, 1])), Err(MiouError::Size { .. })));
        let text = confusion.add(&map(&[0, 0]), &map(&[1, 2])).unwrap_err().to_string();
        assert!(text.contains("prediction holds the value 2"), "{text}");
        assert!(confusion.add(&map(&[255]), &map(&[1])).is_err());
        assert_eq!(confusion, before);
    }
}
