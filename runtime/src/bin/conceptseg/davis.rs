//! What the DAVIS commands share: which sequences, how masks are read, and the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use conceptseg::datasets::davis::read_list;
use conceptseg::metrics::davis::{DavisReport, Figures, Layout};

/// A line below the header and none elsewhere.
pub const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Which sequences to work on.
#[derive(Debug, Default, clap::Args)]
pub struct Selection {
    /// Names of the sequences, separated by commas; all of them without this option.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    sequences: Option<Vec<String>>,
    /// File that lists the sequences (ImageSets/…/val.txt of DAVIS 2016 or 2017).
    #[arg(long, value_name = "FILE", conflicts_with = "sequences")]
    list: Option<PathBuf>,
}

impl Selection {
    /// The names asked for; `None` for all.
    pub fn names(&self) -> Result<Option<Vec<String>>> {
        if let Some(list) = &self.list {
            return Ok(Some(read_list(list)?));
        }
        let Some(names) = &self.sequences else { return Ok(None) };
        let names: Vec<String> = names.iter().map(|name| name.trim().to_owned()).collect();
        for (i, name) in names.iter().enumerate() {
            ensure!(!names[..i].contains(name), "--sequences names {name} twice");
        }
        Ok(Some(names))
    }
}

/// How masks store their objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    /// By the first annotation of each sequence: 2016 if it holds 255 and otherwise only 0.
    #[default]
    Auto,
    /// DAVIS 2016: one object, stored as 255 (results: 1 or 255).
    #[value(name = "2016")]
    Davis2016,
    /// DAVIS 2017: the value is the object's id, 255 is void; the rules of the official tool.
    #[value(name = "2017")]
    Davis2017,
}

impl LayoutArg {
    /// The layout, `None` to detect it.
    pub fn layout(self) -> Option<Layout> {
        match self {
            Self::Auto => None,
            Self::Davis2016 => Some(Layout::Davis2016),
            Self::Davis2017 => Some(Layout::Davis2017),
        }
    }
}

/// The figures as a table: a row per sequence, below it one per object where there are
/// several, and a last row for the means over all objects.
pub fn table(report: &DavisReport) -> String {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(["sequence", "frames", "J", "recall", "decay", "F", "recall", "decay", "J&F"]);
    for (name, sequence) in &report.sequences {
        table.add_row(row(name, &sequence.frames.to_string(), &sequence.figures));
        if sequence.objects.len() > 1 {
            for (id, figures) in &sequence.objects {
                table.add_row(row(&format!("  object {id}"), "", figures));
            }
        }
    }
    let objects: usize = report.sequences.values().map(|s| s.objects.len()).sum();
    let frames: usize = report.sequences.values().map(|s| s.frames).sum();
    let name = format!("mean over {objects} object{}", if objects == 1 { "" } else { "s" });
    table.add_row(row(&name, &frames.to_string(), &report.global));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n{}", table.trim_fmt(), legend(report))
}

fn row(name: &str, frames: &str, figures: &Figures) -> Vec<String> {
    let f = figures;
    let all = [f.j_mean, f.j_recall, f.j_decay, f.f_mean, f.f_recall, f.f_decay, f.jf_mean];
    // Adding zero after rounding turns -0.000 into 0.000.
    let rounded = |v: f64| (v * 1e3).round() / 1e3 + 0.0;
    let text = |v: f64| if v.is_nan() { "-".to_owned() } else { format!("{:.3}", rounded(v)) };
    [name.to_owned(), frames.to_owned()].into_iter().chain(all.map(text)).collect()
}

/// How the masks were read, which decides what the figures may be compared with.
fn legend(report: &DavisReport) -> String {
    let mut by_layout: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, sequence) in &report.sequences {
        let layout = match sequence.layout {
            Layout::Davis2016 => "2016 (0/255 masks, one object)",
            Layout::Davis2017 => "2017 (ids, 255 void)",
        };
        by_layout.entry(layout).or_default().push(name);
    }
    let mut text =
        "first and last frames are not evaluated; the mean row averages objects\n".to_owned();
    let several = by_layout.len() > 1;
    for (layout, names) in by_layout {
        let whose = if several { format!(": {}", names.join(", ")) } else { String::new() };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "layout {layout}{whose}");
    }
    text
}

#[cfg(test)]
mod tests {
    use conceptseg::metrics::davis::SequenceReport;

    use super::*;

    fn figures(j: f64) -> Figures {
        Figures {
            j_mean: j,
            j_recall: 1.0,
            j_decay: -0.25,
            f_mean: j,
            f_recall: 1.0,
            f_decay: 0.0,
            jf_mean: j,
        }
    }

    #[test]
    fn the_table_shows_objects_only_where_there_are_several() {
        let sequence = |layout, objects: &[f64]| SequenceReport {
            layout,
            frames: 3,
            figures: figures(objects.iter().sum::<f64>() / objects.len() as f64),
            objects: (1..).zip(objects.iter().map(|&j| figures(j))).collect(),
        };
        let report = DavisReport::new(
            [
                ("dog".to_owned(), sequence(Layout::Davis2016, &[0.5])),
                ("judo".to_owned(), sequence(Layout::Davis2017, &[0.25, 0.75])),
            ]
            .into(),
        );
        let text = table(&report);
        assert_eq!(text.matches("object ").count(), 2, "{text}");
        assert!(text.contains("mean over 3 objects") && text.contains("-0.250"), "{text}");
        assert!(text.contains("layout 2016 (0/255 masks, one object): dog"), "{text}");
    }

    #[test]
    fn undefined_figures_are_a_dash() {
        let text = table(&DavisReport::new(BTreeMap::new()));
        assert!(text.contains('-') && !text.contains("NaN"), "{text}");
    }
}
