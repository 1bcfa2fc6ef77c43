//! The figures of concepts for people and programs: tables, sentences, parts of the page.

use std::fmt::Write as _;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use comfy_table::{CellAlignment, Table};
use conceptseg::bundle::ConceptNames;
use conceptseg::datasets::segmentation::Classes;
use conceptseg::evaluate::concepts::{ConceptSummary, ConceptUse, Pictures, concept_name};
use conceptseg::metrics::purity::PurityReport;
use maud::{PreEscaped, html};
use serde_json::Value;

use crate::davis::STYLE;
use crate::eval::page::Section;

/// Concepts in the table.
const TOP: usize = 10;

/// The parts of the page.
pub(super) fn sections(
    summed: &ConceptSummary,
    pictures: &Pictures,
    names: &ConceptNames,
    classes: Option<&Classes>,
) -> Vec<Section> {
    let mut sections = Vec::new();
    if let Some(svg) = &pictures.purity {
        let note = "How far the segments of a concept show one class: the share of them in its most \
                    frequent one.";
        sections.push(Section::new("Purity", html! { p.note { (note) } (PreEscaped(svg)) }));
    }
    let (header, rows) = most_used(summed, names, classes);
    let table = html! {
        p { (dictionary_text(summed)) }
        p.note { "The concepts of the most area; concepts.csv has all of them." }
        table {
            tr { @for (i, name) in header.iter().enumerate() { th.n[is_number(i)] { (name) } } }
            @for row in rows {
                tr { @for (i, cell) in row.iter().enumerate() { td.n[is_number(i)] { (cell) } } }
            }
        }
    };
    sections.push(Section::new("Use of the dictionary", table));
    let graph = html! { (PreEscaped(&pictures.graph)) p.note { "graph.csv has all pairs." } };
    sections.push(Section::new("Concepts that occur together", graph));
    let sheets = html! {
        p.note {
            "Random segments of every concept in use, those of the most area first: the segment in \
             colour, what is around it in grey."
        }
        @for sheet in &pictures.sheets {
            img src={ "data:image/jpeg;base64," (STANDARD.encode(sheet)) } loading="lazy"
                alt="segments of concepts" style="width: 100%";
        }
    };
    sections.push(Section::new("What concepts look like", sheets));
    sections
}

/// The figures of a set.
pub(super) fn figures(summed: &ConceptSummary, classes: Option<&Classes>) -> Result<Value> {
    let mut object = serde_json::to_value(summed)?;
    // Indexing would put an object in the place of a purity that there is not.
    let scored = object.pointer_mut("/purity/per_concept").and_then(Value::as_array_mut);
    for one in scored.into_iter().flatten() {
        let class = one["class"].as_u64().unwrap_or(0) as usize;
        one["class_name"] = class_name(classes, class).into();
    }
    Ok(object)
}

fn class_name(classes: Option<&Classes>, class: usize) -> &str {
    classes.and_then(|classes| classes.names.get(class)).map_or("", String::as_str)
}

/// The histogram and the means.
pub(super) fn purity_text(report: &PurityReport) -> String {
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

/// Whether a column of [`most_used`] holds numbers.
fn is_number(column: usize) -> bool {
    (1..6).contains(&column)
}

/// The concepts of the most area: names of the columns, and rows.
fn most_used(
    summed: &ConceptSummary,
    names: &ConceptNames,
    classes: Option<&Classes>,
) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let mut header = vec!["concept", "segments", "images", "area %", "similarity"];
    if classes.is_some() {
        header.extend(["purity %", "class"]);
    }
    let mut used: Vec<_> = summed.dictionary.per_concept.iter().collect();
    used.sort_by_key(|one| (std::cmp::Reverse(one.area), one.concept));
    let row = |one: &ConceptUse| {
        let mut row = vec![
            concept_name(names, one.concept),
            one.segments.to_string(),
            one.images.to_string(),
            format!("{:.1}", 100.0 * one.area_share),
            format!("{:.2}", one.similarity),
        ];
        let mut scored = summed.purity.iter().flat_map(|purity| &purity.per_concept);
        if let Some(scored) = scored.find(|c| c.concept == usize::from(one.concept)) {
            row.push(format!("{:.1}", 100.0 * scored.purity));
            row.push(class_name(classes, scored.class).to_owned());
        }
        row.resize(header.len(), String::new());
        row
    };
    let rows = used.into_iter().take(TOP).map(row).collect();
    (header, rows)
}

/// How the dictionary is used, in sentences.
fn dictionary_text(summed: &ConceptSummary) -> String {
    let dictionary = &summed.dictionary;
    format!(
        "{} segments of {} of {} concepts, {} never used; as uneven as {:.1} equally frequent \
         concepts by segments, {:.1} by area. {} pairs of concepts occur together more often than \
         by chance.",
        dictionary.segments,
        dictionary.used,
        dictionary.concepts,
        dictionary.never_used.len(),
        dictionary.perplexity_segments,
        dictionary.perplexity_area,
        summed.graph.edges.len()
    )
}

/// The concepts of the most area, and how the dictionary is used.
pub(super) fn use_text(
    summed: &ConceptSummary,
    names: &ConceptNames,
    classes: Option<&Classes>,
) -> String {
    let (header, rows) = most_used(summed, names, classes);
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in (0..7).filter(|&column| is_number(column)) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n{}\n", dictionary_text(summed))
}
