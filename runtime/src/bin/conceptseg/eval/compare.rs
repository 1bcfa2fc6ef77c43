//! `conceptseg eval compare`: whether one evaluation is better than another, or only luckier.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table};
use conceptseg::evaluate::report::{Comparison, Report, compare};

use crate::davis::STYLE;

/// Units named in the table.
const NAMED: usize = 5;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// report.json of the first evaluation.
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// report.json of the second.
    #[arg(value_name = "B.json")]
    b: PathBuf,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let (a, b) = (Report::read(&args.a)?, Report::read(&args.b)?);
    let comparison = compare(&a, &b).with_context(|| {
        format!("cannot compare {} with {}", args.a.display(), args.b.display())
    })?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&comparison)?)?;
    } else {
        write!(out, "{}", text(&comparison))?;
    }
    Ok(())
}

fn text(comparison: &Comparison) -> String {
    // Writing to a string cannot fail.
    use std::fmt::Write as _;
    let percent = |v: f64| format!("{:.2}", 100.0 * v);
    let signed = |v: f64| format!("{:+.2}", 100.0 * v);
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(["figure", "A %", "B %", "B - A", "95 % confidence", "p"]);
    for (name, figure) in &comparison.figures {
        let interval = figure
            .interval
            .map_or_else(String::new, |(low, high)| format!("{} to {}", signed(low), signed(high)));
        table.add_row([
            name.clone(),
            percent(figure.a),
            percent(figure.b),
            signed(figure.difference),
            interval,
            format!("{:.4}", figure.p),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{}\n{} units, drawn in pairs\n", table.trim_fmt(), comparison.units);
    let named = |units: &mut dyn Iterator<Item = &conceptseg::evaluate::report::UnitDifference>| {
        let told = units.take(NAMED).map(|u| {
            format!("{} {} ({} to {})", u.name, signed(u.b - u.a), percent(u.a), percent(u.b))
        });
        told.collect::<Vec<_>>().join(", ")
    };
    let lost = named(&mut comparison.per_unit.iter().filter(|u| u.b < u.a));
    let won = named(&mut comparison.per_unit.iter().rev().filter(|u| u.b > u.a));
    for (what, units) in [("lost most", lost), ("gained most", won)] {
        if !units.is_empty() {
            let _ = writeln!(text, "{what} ({}): {units}", comparison.unit_figure);
        }
    }
    match &comparison.differs_in {
        // "there" is A's report, "here" is B's.
        Some(clause) => {
            let _ = writeln!(text, "first difference of the inputs: {}", sides(clause));
        }
        None => text += "the inputs are equal\n",
    }
    text
}

/// The clause with the names of the two reports.
fn sides(clause: &str) -> String {
    clause.replace(" there and ", " in A and ").replace(" here", " in B")
}

#[cfg(test)]
mod tests {
    use conceptseg::evaluate::report::{ImageClasses, Scores};
    use conceptseg::evaluate::run::Inputs;
    use serde_json::json;

    use super::*;

    fn report(k: u32, right: [u64; 3]) -> Report {
        let image = |(name, right): (&str, u64)| ImageClasses {
            name: name.to_owned(),
            pixels: vec![(0, 0, right), (0, 1, 10 - right), (1, 1, 5)],
        };
        let images = ["x", "y", "z"].into_iter().zip(right).map(image).collect();
        let classes = vec!["ground".to_owned(), "dog".to_owned()];
        Report::new(Inputs::new("voc", json!({ "k": k })), Scores::Classes { classes, images })
    }

    #[test]
    fn the_table_tells_the_difference_its_confidence_and_where_it_lies() {
        let comparison = compare(&report(5, [5, 5, 5]), &report(15, [6, 9, 4])).unwrap();
        let text = text(&comparison);
        assert!(text.contains("pixel accuracy"), "{text}");
        assert!(text.contains("lost most (pixel accuracy): z -6.67"), "{text}");
        assert!(text.contains("gained most (pixel accuracy): y +26.67"), "{text}");
        assert!(text.contains("settings.k is 5 in A and 15 in B"), "{text}");
    }
}
