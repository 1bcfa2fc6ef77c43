//! Reports in tidy form: a line for each figure.

use std::io;
use std::path::Path;

use super::{Report, ReportError};
use crate::files::write_atomic;

/// Writes `level,name,figure,value,low,high`: first the global figures with their intervals,
/// then those of classes, sequences and objects, concepts, images.
pub fn write_csv(report: &Report, path: &Path) -> Result<(), ReportError> {
    write_atomic(path, |file| {
        let mut csv = csv::Writer::from_writer(file);
        csv.write_record(["level", "name", "figure", "value", "low", "high"])?;
        for (name, figure) in &report.figures {
            let end = |which: fn((f64, f64)) -> f64| {
                figure.interval.map_or_else(String::new, |ends| which(ends).to_string())
            };
            let value = figure.value.to_string();
            csv.write_record(["global", "", name, &value, &end(|e| e.0), &end(|e| e.1)])?;
        }
        for row in report.scores.rows() {
            csv.write_record([row.level, &row.name, row.figure, &row.value.to_string(), "", ""])?;
        }
        csv.flush()
    })
    .map_err(|source: io::Error| ReportError::Io {
        doing: "write",
        path: path.to_owned(),
        source,
    })
}
