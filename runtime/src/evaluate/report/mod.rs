//! What an evaluation found, with everything that is needed to judge it: inputs, figures with
//! their confidence intervals, and the counts of every image or sequence.

pub mod bootstrap;
mod compare;
mod csv;
mod scores;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use compare::{CompareError, Comparison, Difference, UnitDifference, compare};
pub use csv::write_csv;
pub use scores::{ImageClasses, ImageConcepts, Row, Scores, SequenceMasks};

use super::run::Inputs;
use crate::files::write_atomic;
use bootstrap::{LEVEL, RESAMPLES, SEED, interval, resampled};

/// Version of the file format.
pub const FORMAT: u32 = 1;

/// Largest report that is read, in bytes: all of COCO takes a tenth of it.
const MAX_BYTES: u64 = 256 << 20;

/// Why a report cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The file could not be read or written.
    #[error("cannot {doing} the report {path}: {source}")]
    Io {
        /// "read" or "write".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file is too large to be one.
    #[error("{path} has {size} bytes; a report has at most {MAX_BYTES}")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file is something else.
    #[error("{path} is no report of `conceptseg eval` that this version reads: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A figure and the interval in which it lies with 95 % confidence, by resampling the images or
/// sequences; `None` where there are fewer than two of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The figure on the whole set.
    pub value: f64,
    /// Lower and upper end.
    pub interval: Option<(f64, f64)>,
}

/// How intervals were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Confidence level, 0..1.
    pub level: f64,
    /// Times that the units were drawn anew.
    pub resamples: usize,
    /// Seed of the drawing.
    pub seed: u64,
}

/// The whole of `report.json`. It holds nothing that differs between two runs with the same
/// inputs, such as times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// What the figures belong to.
    pub inputs: Inputs,
    /// Images or sequences.
    pub units: usize,
    /// Figures by name.
    pub figures: BTreeMap<String, Figure>,
    /// How their intervals were made.
    pub bootstrap: Bootstrap,
    /// Counts of every unit, from which all figures follow.
    pub scores: Scores,
}

impl Report {
    /// Computes figures and intervals.
    pub fn new(inputs: Inputs, scores: Scores) -> Self {
        let units = scores.units().len();
        let whole = scores.figures(&vec![1; units]);
        let samples = resampled(units, |weights| scores.figures(weights));
        let figures = whole.into_iter().enumerate().map(|(at, (name, value))| {
            let drawn: Vec<f64> = samples.iter().map(|figures| figures[at].1).collect();
            let interval = if units < 2 { None } else { interval(drawn) };
            (name.to_owned(), Figure { value, interval })
        });
        Self {
            format: FORMAT,
            inputs,
            units,
            figures: figures.collect(),
            bootstrap: Bootstrap { level: LEVEL, resamples: RESAMPLES, seed: SEED },
            scores,
        }
    }

    /// Writes `report.json`.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        write_atomic(path, |writer| {
            serde_json::to_writer_pretty(&mut *writer, self).map_err(io::Error::other)
        })
        .map_err(|source| ReportError::Io {
            doing: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// Reads what [`write`](Self::write) wrote.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let failed = |source| ReportError::Io { doing: "read", path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_BYTES {
            return Err(ReportError::Size { path: path.to_owned(), size });
        }
        let refuse = |reason| ReportError::Format { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(failed)?;
        let report: Self = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        if report.format != FORMAT {
            return Err(refuse(format!("its format is {}, known is {FORMAT}", report.format)));
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests;
