//! What all streams are compared with, and what concepts are called.

use super::baseline::{Baseline, Pairs};
use super::event::EventConcept;
use crate::bundle::{ConceptNames, Mark};

/// A baseline joined with the names of the concepts: those of one name count as one, under the
/// lowest of them; those marked "ignore" are left out.
#[derive(Debug, Clone)]
pub struct Reference {
    names: ConceptNames,
    /// The concept that each counts as, `[K]`.
    groups: Vec<u16>,
    watched: Vec<bool>,
    alert: Vec<bool>,
    area: Vec<f64>,
    occurrence: Vec<f32>,
    novel_below: Vec<f32>,
    pairs: Pairs,
}

impl Reference {
    /// Joins `baseline` with `names`.
    pub fn new(baseline: &Baseline, names: &ConceptNames) -> Self {
        let grouped = baseline.grouped(names);
        let ids = 0..baseline.count();
        let groups: Vec<u16> = ids.clone().map(|id| names.group(id) as u16).collect();
        // A mark on one of several concepts of a name is meant for the name.
        let marked = |mark| {
            let mut marked = vec![false; groups.len()];
            for id in ids.clone().filter(|&id| names.mark(id) == Some(mark)) {
                marked[usize::from(groups[id])] = true;
            }
            groups.iter().map(|&lead| marked[usize::from(lead)]).collect::<Vec<_>>()
        };
        let watched: Vec<_> = marked(Mark::Ignore).into_iter().map(|ignored| !ignored).collect();
        let area = grouped.area.iter().zip(&watched);
        Self {
            area: area.map(|(&a, &w)| if w { f64::from(a) } else { 0.0 }).collect(),
            alert: marked(Mark::Alert),
            occurrence: grouped.occurrence.clone(),
            novel_below: baseline.novel_below(),
            pairs: grouped.pairs.clone(),
            names: names.clone(),
            groups,
            watched,
        }
    }

    /// Number of concepts K.
    pub fn count(&self) -> usize {
        self.groups.len()
    }

    /// The names.
    pub fn names(&self) -> &ConceptNames {
        &self.names
    }

    /// The concept that `id` counts as; `None` where it is none of the codebook.
    pub fn group(&self, id: u16) -> Option<usize> {
        self.groups.get(usize::from(id)).map(|&lead| usize::from(lead))
    }

    /// Whether a concept matters.
    pub fn is_watched(&self, id: usize) -> bool {
        self.watched.get(id).copied().unwrap_or(false)
    }

    /// Whether somebody wants to be told when a concept appears, rare or not.
    pub fn is_alert(&self, id: usize) -> bool {
        self.alert.get(id).copied().unwrap_or(false)
    }

    /// Whether a segment of a concept is less like it than nearly all that were learnt.
    pub fn is_novel(&self, id: u16, similarity: f32) -> bool {
        self.novel_below.get(usize::from(id)).is_none_or(|&low| similarity < low)
    }

    /// Mean area of the concepts, those that do not matter left out, `[K]`.
    pub fn area(&self) -> &[f64] {
        &self.area
    }

    /// Share of the frames that show a concept.
    pub fn occurrence(&self, id: usize) -> f64 {
        self.occurrence.get(id).copied().map_or(0.0, f64::from)
    }

    /// The pairs that were seen.
    pub fn pairs(&self) -> &Pairs {
        &self.pairs
    }

    /// A concept as events have it.
    pub fn concept(&self, id: usize) -> EventConcept {
        EventConcept { id: id as u16, name: self.names.name(id).map(str::to_owned) }
    }

    /// A concept as sentences have it.
    pub fn call(&self, id: usize) -> String {
        self.names.name(id).map_or_else(|| format!("concept {id}"), |name| format!("\"{name}\""))
    }
}
