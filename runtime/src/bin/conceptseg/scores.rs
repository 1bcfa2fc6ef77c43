//! What `eval` and `metrics` share on still images: how figures are shown.

use std::fmt::Write as _;

use anyhow::Result;
use comfy_table::{CellAlignment, Table};
use conceptseg::datasets::segmentation::Classes;
use conceptseg::metrics::miou::MiouReport;
use conceptseg::metrics::purity::PurityReport;
use serde_json::{Value, json};

use crate::davis::STYLE;

/// The figures with the names of classes.
pub fn miou_json(report: &MiouReport, classes: &Classes) -> Value {
    let per_class: Vec<Value> = classes
        .names
        .iter()
        .zip(report.iou.iter().zip(&report.pixels))
        .map(|(name, (iou, pixels))| json!({ "class": name, "iou": iou, "pixels": pixels }))
        .collect();
    json!({
        "mean_all": report.mean_all,
        "mean_present": report.mean_present,
        "classes": classes.count(),
        "present": report.present,
        "pixel_accuracy": report.pixel_accuracy,
        "per_class": per_class,
    })
}

/// The report with the names of classes.
pub fn purity_json(report: &PurityReport, classes: &Classes) -> Result<Value> {
    let mut object = serde_json::to_value(report)?;
    for one in object["per_concept"].as_array_mut().into_iter().flatten() {
        let class = one["class"].as_u64().unwrap_or(0) as usize;
        one["class_name"] = classes.names[class].clone().into();
    }
    Ok(object)
}

/// A row for each class that occurs, and the means.
pub fn miou_table(report: &MiouReport, classes: &Classes) -> String {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(["class", "IoU", "pixels"]);
    for (name, (iou, pixels)) in classes.names.iter().zip(report.iou.iter().zip(&report.pixels)) {
        if let Some(iou) = iou {
            table.add_row([name.clone(), format!("{:.2}", 100.0 * iou), pixels.to_string()]);
        }
    }
    for column in 1..3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "{table}\nmean IoU {:.2} over the {} classes of the ground truth, {:.2} over all {}; \
         pixel accuracy {:.2}\n",
        100.0 * report.mean_present,
        report.present,
        100.0 * report.mean_all,
        classes.count(),
        100.0 * report.pixel_accuracy
    )
}

/// The histogram and the means.
pub fn purity_text(report: &PurityReport) -> String {
    let mut text = String::new();
    let largest = report.histogram.iter().copied().max().unwrap_or(0).max(1);
    for (bin, &count) in report.histogram.iter().enumerate() {
        let bar = "█".repeat((count * 40).div_ceil(largest));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>3}-{:<3}% {count:>5} {bar}", bin * 10, bin * 10 + 10);
    }
    let _ = writeln!(
        text,
        "{} of {} concepts in use, {} scored, {} segments ({} more without labels)\n\
         mean purity {:.3} over concepts, {:.3} over segments; {:.1} % of concepts above 80 %",
        report.used,
        report.concepts,
        report.scored,
        report.segments,
        report.unlabelled,
        report.mean,
        report.mean_weighted,
        100.0 * report.above_80
    );
    text
}
