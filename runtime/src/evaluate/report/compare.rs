//! Whether one evaluation is better than another, or only luckier.

use std::collections::BTreeMap;

use serde::Serialize;

use super::bootstrap::{RESAMPLES, interval, resampled};
use super::{Report, Scores};

/// Why two reports cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// They measure different things.
    #[error(
        "the first report is of {a}, the second of {b}; only reports of one kind can be compared"
    )]
    Kind {
        /// Kind of the first.
        a: String,
        /// Kind of the second.
        b: String,
    },
    /// They are of different images or sequences.
    #[error(
        "only one of the reports has {name}; compare evaluations of the same images or sequences"
    )]
    Units {
        /// A unit that one of them lacks.
        name: String,
    },
    /// The ground truth differs.
    #[error(
        "the reports have different annotations (other files or contents); compare evaluations of \
         one data set"
    )]
    Annotations,
    /// Too few units to say anything.
    #[error("the reports have {0} image(s) or sequence(s); at least 2 are needed for a comparison")]
    Few(usize),
}

/// The difference of one figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The figure of the first report.
    pub a: f64,
    /// That of the second.
    pub b: f64,
    /// `b - a`.
    pub difference: f64,
    /// Interval of the difference with 95 % confidence, from draws of units that are the same
    /// for both reports.
    pub interval: Option<(f64, f64)>,
    /// Two-sided probability of a difference at least as far from zero if there were none, from
    /// the same draws; at least 1 / (draws + 1).
    pub p: f64,
}

/// The two figures of one unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnitDifference {
    /// The image or sequence.
    pub name: String,
    /// Its figure in the first report.
    pub a: f64,
    /// Its figure in the second.
    pub b: f64,
}

/// Two evaluations of the same units.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Images or sequences.
    pub units: usize,
    /// Global figures by name.
    pub figures: BTreeMap<String, Difference>,
    /// Name of the figure in `per_unit`; empty for concepts.
    pub unit_figure: String,
    /// The units, those that the second report does worst at first.
    pub per_unit: Vec<UnitDifference>,
    /// Settings and files in which the two differ, as a clause; `None` where they are equal.
    pub differs_in: Option<String>,
}

/// Compares two reports on the same units with a paired bootstrap.
pub fn compare(a: &Report, b: &Report) -> Result<Comparison, CompareError> {
    let kind = |report: &Report| match report.scores {
        Scores::Classes { .. } => "classes",
        Scores::Masks { .. } => "masks",
        Scores::Concepts { .. } => "concepts",
    };
    if kind(a) != kind(b) {
        let (a, b) = (kind(a).to_owned(), kind(b).to_owned());
        return Err(CompareError::Kind { a, b });
    }
    let (units, others) = (a.scores.units(), b.scores.units());
    if units != others {
        let lone = |some: &[&str], all: &[&str]| {
            some.iter().find(|name| !all.contains(name)).map(ToString::to_string)
        };
        let name = lone(&units, &others).or_else(|| lone(&others, &units));
        // Equal names in another order are another list too.
        let name = name.unwrap_or_else(|| "its units in this order".to_owned());
        return Err(CompareError::Units { name });
    }
    if a.inputs.files.get("annotations") != b.inputs.files.get("annotations") {
        return Err(CompareError::Annotations);
    }
    if units.len() < 2 {
        return Err(CompareError::Few(units.len()));
    }
    let whole = vec![1; units.len()];
    let draws = resampled(units.len(), |weights| {
        let (a, b) = (a.scores.figures(weights), b.scores.figures(weights));
        a.iter().zip(&b).map(|(a, b)| b.1 - a.1).collect::<Vec<f64>>()
    });
    let both = a.scores.figures(&whole).into_iter().zip(b.scores.figures(&whole));
    let figures = both.enumerate().map(|(at, ((name, a), (_, b)))| {
        let drawn: Vec<f64> = draws.iter().map(|draw| draw[at]).collect();
        let share = |wanted: fn(f64) -> bool| {
            (drawn.iter().filter(|d| wanted(**d)).count() + 1) as f64 / (RESAMPLES + 1) as f64
        };
        let p = (2.0 * share(|d| d <= 0.0).min(share(|d| d >= 0.0))).min(1.0);
        let difference = Difference { a, b, difference: b - a, interval: interval(drawn), p };
        (name.to_owned(), difference)
    });
    let (unit_figure, of_a) = a.scores.unit_figures();
    let (_, of_b) = b.scores.unit_figures();
    let mut per_unit: Vec<UnitDifference> = units
        .iter()
        .zip(of_a.into_iter().zip(of_b))
        .map(|(name, (a, b))| UnitDifference { name: (*name).to_owned(), a, b })
        .collect();
    per_unit.sort_by(|x, y| (x.b - x.a).total_cmp(&(y.b - y.a)));
    Ok(Comparison {
        units: units.len(),
        figures: figures.collect(),
        unit_figure: unit_figure.to_owned(),
        per_unit,
        differs_in: b.inputs.difference(&a.inputs),
    })
}
