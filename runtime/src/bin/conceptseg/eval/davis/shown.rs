//! What the page of `eval davis` shows beside its tables.

use std::path::Path;

use anyhow::{Context as _, Result};
use conceptseg::evaluate::run::Unit;
use conceptseg::labels::LabelMap;
use conceptseg::metrics::davis::SequenceScore;
use maud::{Markup, html};

use crate::eval::carry::Prepared;
use crate::eval::page::{self, Section, Shown};
use crate::eval::pictures;

/// Sequences of which pictures are shown in the report.
const SHOWN: usize = 12;

/// J&F of every object in every evaluated frame.
pub fn over_time(units: &[Unit], scores: &[SequenceScore]) -> Markup {
    html! {
        p.note { "J&F of every object from the second frame to the last but one; the lines are 0 and 1." }
        table {
            @for (unit, score) in units.iter().zip(scores) {
                @for object in &score.objects {
                    @let both = object.region().into_iter().zip(object.boundary());
                    @let values: Vec<f64> = both.map(|(j, f)| f64::midpoint(j, f)).collect();
                    tr {
                        td { (unit.name) @if score.objects.len() > 1 { " – object " (object.id) } }
                        td { (page::sparkline(&values)) }
                    }
                }
            }
        }
    }
}

/// The first, middle and last frame of each sequence with its masks; of sequences whose masks
/// are in this folder.
pub fn masks(prepared: &[Prepared], masks: &Path) -> Result<Option<Section>> {
    let mut all = Vec::new();
    for at in pictures::spread(prepared.len(), SHOWN) {
        let sequence = &prepared[at].sequence;
        let frames = &sequence.frames;
        let mut pictures = [const { String::new() }; 3];
        let mut found = true;
        for (picture, at) in pictures.iter_mut().zip([0, frames.len() / 2, frames.len() - 1]) {
            let mask = masks.join(&sequence.name).join(format!("{}.png", frames[at].name));
            if !mask.is_file() {
                found = false;
                break;
            }
            let image = image::open(&frames[at].image)
                .with_context(|| format!("cannot decode {}", frames[at].image.display()))?
                .into_rgb8();
            let drawn = pictures::overlay(&image, &LabelMap::read_png(&mask)?, Some(0), 255);
            *picture = pictures::jpeg(&drawn)?;
        }
        if found {
            all.push(Shown { name: sequence.name.clone(), pictures });
        }
    }
    let captions = ["the first frame with the mask given", "the middle frame", "the last frame"];
    let section = || Section::new("Masks", page::pictures(&all, captions));
    Ok((!all.is_empty()).then(section))
}
