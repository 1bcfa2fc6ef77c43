//! Counts of every unit, and the figures that follow from them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::metrics::davis::{DavisReport, Figures, SequenceReport};
use crate::metrics::miou::{Confusion, MiouReport};
use crate::metrics::purity::{PurityCounts, PurityReport};

/// What was counted, unit by unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scores {
    /// Classes of pixels.
    Classes {
        /// Names of the classes.
        classes: Vec<String>,
        /// The images.
        images: Vec<ImageClasses>,
    },
    /// Masks carried along sequences.
    Masks {
        /// The sequences.
        sequences: Vec<SequenceMasks>,
    },
    /// Concepts and the classes of their segments.
    Concepts {
        /// Size of the dictionary.
        concepts: usize,
        /// Names of the classes.
        classes: Vec<String>,
        /// Concepts with fewer labelled segments are not scored.
        min_segments: u64,
        /// The images.
        images: Vec<ImageConcepts>,
    },
}

/// Classes of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageClasses {
    /// The image.
    pub name: String,
    /// `(true class, predicted class, pixels)`; void pixels are in none.
    pub pixels: Vec<(u8, u8, u64)>,
}

/// Masks of one sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceMasks {
    /// The sequence.
    pub name: String,
    /// Its figures and those of its objects.
    pub report: SequenceReport,
}

/// Concepts of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConcepts {
    /// The image.
    pub name: String,
    /// `(concept, class, segments)`.
    pub segments: Vec<(u16, u8, u64)>,
    /// Segments without a labelled pixel.
    pub unlabelled: u64,
}

/// One figure in tidy form: what it is of, and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// "class", "sequence", "object", "concept" or "image".
    pub level: &'static str,
    /// Which one.
    pub name: String,
    /// Name of the figure.
    pub figure: &'static str,
    /// Its value.
    pub value: f64,
}

impl Scores {
    /// Names of the units.
    pub fn units(&self) -> Vec<&str> {
        match self {
            Self::Classes { images, .. } => images.iter().map(|i| i.name.as_str()).collect(),
            Self::Masks { sequences } => sequences.iter().map(|s| s.name.as_str()).collect(),
            Self::Concepts { images, .. } => images.iter().map(|i| i.name.as_str()).collect(),
        }
    }

    /// The figures of the set in which unit `i` occurs `weights[i]` times. Which figures there
    /// are and their order does not depend on the weights.
    pub fn figures(&self, weights: &[u32]) -> Vec<(&'static str, f64)> {
        match self {
            Self::Classes { .. } => {
                let report = self.miou(weights).unwrap_or_else(|| Confusion::new(1, None).report());
                vec![
                    ("mean IoU over present classes", report.mean_present),
                    ("mean IoU over all classes", report.mean_all),
                    ("pixel accuracy", report.pixel_accuracy),
                ]
            }
            Self::Masks { sequences } => {
                let objects: Vec<(&Figures, f64)> = sequences
                    .iter()
                    .zip(weights)
                    .flat_map(|(s, &w)| s.report.objects.values().map(move |o| (o, f64::from(w))))
                    .collect();
                let total: f64 = objects.iter().map(|(_, w)| w).sum();
                let mean = |figure: fn(&Figures) -> f64| {
                    objects.iter().map(|(o, w)| w * figure(o)).sum::<f64>() / total
                };
                let (j, f) = (mean(|o| o.j_mean), mean(|o| o.f_mean));
                vec![("J&F", f64::midpoint(j, f)), ("J", j), ("F", f)]
            }
            Self::Concepts { classes, .. } if classes.is_empty() => Vec::new(),
            Self::Concepts { .. } => self.purity(weights).map_or_else(Vec::new, |report| {
                vec![
                    ("purity over concepts", report.mean),
                    ("purity over segments", report.mean_weighted),
                    ("concepts above 80 %", report.above_80),
                ]
            }),
        }
    }

    /// Counts over all images; `None` for scores of another kind.
    pub fn miou(&self, weights: &[u32]) -> Option<MiouReport> {
        let Self::Classes { classes, images } = self else { return None };
        let mut confusion = Confusion::new(classes.len(), None);
        for (image, &weight) in images.iter().zip(weights) {
            confusion.add_pairs(&image.pixels, u64::from(weight));
        }
        Some(confusion.report())
    }

    /// Counts over all images; `None` for scores of another kind.
    pub fn purity(&self, weights: &[u32]) -> Option<PurityReport> {
        let Self::Concepts { concepts, classes, min_segments, images } = self else { return None };
        let mut counts = PurityCounts::new(*concepts, classes.len().max(1));
        for (image, &weight) in images.iter().zip(weights) {
            for &(concept, class, segments) in &image.segments {
                counts.add_classified(
                    usize::from(concept),
                    usize::from(class),
                    segments * u64::from(weight),
                );
            }
        }
        Some(counts.report(*min_segments))
    }

    /// The figures of DAVIS; `None` for scores of another kind.
    pub fn masks(&self) -> Option<DavisReport> {
        let Self::Masks { sequences } = self else { return None };
        let named = sequences.iter().map(|s| (s.name.clone(), s.report.clone()));
        Some(DavisReport::new(named.collect::<BTreeMap<_, _>>()))
    }

    /// One figure of each unit by its name, to compare two evaluations unit by unit: J&F of a
    /// sequence, the share of an image's pixels with the right class; none for concepts, which
    /// only many images together give a purity.
    pub fn unit_figures(&self) -> (&'static str, Vec<f64>) {
        match self {
            Self::Classes { images, .. } => {
                let accuracy = |image: &ImageClasses| {
                    let sum = |wanted: &dyn Fn(u8, u8) -> bool| {
                        let pixels = image.pixels.iter().filter(|&&(t, p, _)| wanted(t, p));
                        pixels.map(|&(_, _, n)| n).sum::<u64>() as f64
                    };
                    sum(&|t, p| t == p) / sum(&|_, _| true).max(1.0)
                };
                ("pixel accuracy", images.iter().map(accuracy).collect())
            }
            Self::Masks { sequences } => {
                ("J&F", sequences.iter().map(|s| s.report.figures.jf_mean).collect())
            }
            Self::Concepts { .. } => ("", Vec::new()),
        }
    }

    /// Every figure below the global ones.
    pub fn rows(&self) -> Vec<Row> {
        let row =
            |level, name: &str, figure, value| Row { level, name: name.to_owned(), figure, value };
        let all = vec![1; self.units().len()];
        let mut rows = Vec::new();
        match self {
            Self::Classes { classes, .. } => {
                if let Some(report) = self.miou(&all) {
                    for (class, (iou, &pixels)) in
                        classes.iter().zip(report.iou.iter().zip(&report.pixels))
                    {
                        if let Some(iou) = *iou {
                            rows.push(row("class", class, "IoU", iou));
                        }
                        rows.push(row("class", class, "pixels", pixels as f64));
                    }
                }
            }
            Self::Masks { sequences } => {
                let mut push = |level, name: &str, figures: &Figures| {
                    for (figure, value) in [
                        ("J&F", figures.jf_mean),
                        ("J mean", figures.j_mean),
                        ("J recall", figures.j_recall),
                        ("J decay", figures.j_decay),
                        ("F mean", figures.f_mean),
                        ("F recall", figures.f_recall),
                        ("F decay", figures.f_decay),
                    ] {
                        rows.push(row(level, name, figure, value));
                    }
                };
                for SequenceMasks { name, report } in sequences {
                    push("sequence", name, &report.figures);
                    for (id, figures) in &report.objects {
                        push("object", &format!("{name}/{id}"), figures);
                    }
                }
            }
            Self::Concepts { classes, .. } => {
                if let Some(report) = self.purity(&all).filter(|_| !classes.is_empty()) {
                    for one in &report.per_concept {
                        let name = one.concept.to_string();
                        rows.push(row("concept", &name, "purity", one.purity));
                        rows.push(row("concept", &name, "segments", one.segments as f64));
                        rows.push(row("concept", &name, "class", one.class as f64));
                    }
                }
            }
        }
        let (figure, values) = self.unit_figures();
        if let Self::Classes { images, .. } = self {
            let named = images.iter().zip(values);
            rows.extend(named.map(|(image, value)| row("image", &image.name, figure, value)));
        }
        rows
    }
}
