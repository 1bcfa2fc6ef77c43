//! The figures as CSV.

use std::fmt::Write as _;

use super::summary::ConceptSummary;
use super::{ConceptGraph, concept_name};
use crate::bundle::ConceptNames;

/// A row for each concept of the dictionary: use, and with ground truth `class`, `labelled`
/// segments and `purity`, empty for those that are not scored. `classes` are the names of the
/// classes.
pub fn concepts_csv(summary: &ConceptSummary, names: &ConceptNames, classes: &[String]) -> String {
    let mut out = String::from("concept,name,segments,images,area,area_share,similarity");
    if summary.purity.is_some() {
        out.push_str(",class,labelled,purity");
    }
    out.push('\n');
    let mut used = summary.dictionary.per_concept.iter().peekable();
    let scored = summary.purity.as_ref().map_or(&[][..], |purity| &purity.per_concept);
    let mut scored = scored.iter().peekable();
    // Writing to a string cannot fail.
    for concept in 0..summary.dictionary.concepts {
        let id = concept as u16;
        let _ = write!(out, "{concept},{}", quoted(&concept_name(names, id)));
        match used.next_if(|one| one.concept == id) {
            Some(one) => {
                let (segments, images, area) = (one.segments, one.images, one.area);
                let (share, similarity) = (one.area_share, one.similarity);
                let _ = write!(out, ",{segments},{images},{area},{share:.6},{similarity:.4}");
            }
            None => out.push_str(",0,0,0,0,"),
        }
        if summary.purity.is_some() {
            match scored.next_if(|one| one.concept == concept) {
                Some(one) => {
                    let class = classes.get(one.class).map_or_else(String::new, |c| quoted(c));
                    let _ = write!(out, ",{class},{},{:.4}", one.segments, one.purity);
                }
                None => out.push_str(",,,"),
            }
        }
        out.push('\n');
    }
    out
}

/// A row for each pair of joined concepts.
pub fn graph_csv(graph: &ConceptGraph) -> String {
    let mut out = String::from("a,b,images,pmi\n");
    for edge in &graph.edges {
        let _ = writeln!(out, "{},{},{},{:.6}", edge.a, edge.b, edge.images, edge.pmi);
    }
    out
}

/// A field as RFC 4180 has it.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{ImageConcepts, Segment, SummarySettings, summary};
    use super::*;

    #[test]
    fn every_concept_has_a_row_and_every_pair_one() {
        let segment = |concept, class| Segment {
            concept,
            similarity: 0.5,
            area: 25,
            bbox: [0, 0, 5, 5],
            class,
        };
        let record = |name: &str| ImageConcepts {
            image: name.to_owned(),
            size: [10, 10],
            segments: vec![segment(0, Some(1)), segment(2, None), segment(2, None)],
        };
        let mut alone = record("c");
        alone.segments.clear();
        let records = [record("a"), record("b"), alone];
        let settings =
            SummarySettings { classes: Some(2), min_images: 2, ..SummarySettings::default() };
        let text = "[concept.2]\nname = \"sky, blue\"";
        let names = ConceptNames::parse(text, Path::new("n"), 3).unwrap();
        let classes = ["cat".to_owned(), "dog".to_owned()];
        let summed = summary(&records, 3, &settings).unwrap();
        assert_eq!(
            concepts_csv(&summed, &names, &classes),
            "concept,name,segments,images,area,area_share,similarity,class,labelled,purity\n\
             0,0,2,2,50,0.333333,0.5000,dog,2,1.0000\n\
             1,1,0,0,0,0,,,,\n\
             2,\"sky, blue\",4,2,100,0.666667,0.5000,,,\n"
        );
        // ln(2 * 3 / (2 * 2))
        assert_eq!(graph_csv(&summed.graph), "a,b,images,pmi\n0,2,2,0.405465\n");
        let settings = SummarySettings { classes: None, ..settings };
        let plain = concepts_csv(&summary(&records, 3, &settings).unwrap(), &names, &[]);
        assert!(plain.lines().all(|line| line.matches(',').count() == 6 || line.contains('"')));
    }
}
