//! Everything that can be looked at, ready to be written or put into a page.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use image::RgbImage;

use super::graph::{self, Look};
use super::sheet::{self, Row};
use super::summary::{ConceptSummary, ConceptUse};
use super::{concept_name, plot, table};
use crate::bundle::ConceptNames;
use crate::concepts::SegmentationConfig;
use crate::datasets::images::ImageSet;
use crate::embed::Model;
use crate::evaluate::EvaluateError;
use crate::metrics::purity::{ConceptPurity, PurityReport};
use crate::overlay::{ConceptColors, instance_color};

/// Colour of concepts without a class where the others have one.
const UNSCORED: [u8; 3] = [190, 190, 190];

/// Pictures and tables of a summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pictures {
    /// Histogram of purities, SVG; none without ground truth.
    pub purity: Option<String>,
    /// The graph of concepts that occur together, SVG with pictures inside.
    pub graph: String,
    /// Its edges, CSV.
    pub graph_csv: String,
    /// The dictionary, CSV.
    pub concepts_csv: String,
    /// Sheets of the concepts in use, those of the most area first, JPEG.
    pub sheets: Vec<Vec<u8>>,
}

impl Pictures {
    /// Draws what `summary` says of `images`: the sampled ones are labelled once more with the
    /// settings that the records were made with, and `tick` is called after each
    /// ([`sheet::sampled_images`] of them). `beside` are purities of other sets and their names
    /// for the histogram, where `name` is that of this set.
    pub fn draw(
        model: &Arc<Model>,
        images: &ImageSet,
        short_side: u32,
        settings: &SegmentationConfig,
        summary: &ConceptSummary,
        name: &str,
        beside: &[(&str, &PurityReport)],
        tick: &(dyn Fn() + Sync),
    ) -> Result<Self, EvaluateError> {
        let names = &model.bundle().names;
        let classes = images.classes().map_or(&[][..], |classes| &classes.names);
        let tiles = sheet::tiles(model, images, short_side, settings, &summary.samples, tick)?;
        let purity = match &summary.purity {
            Some(report) => {
                let sets: Vec<_> =
                    [(name, report)].into_iter().chain(beside.iter().copied()).collect();
                Some(plot::purity_svg(&sets)?)
            }
            None => None,
        };
        Ok(Self {
            purity,
            graph: draw_graph(summary, names, classes, &tiles)?,
            graph_csv: table::graph_csv(&summary.graph),
            concepts_csv: table::concepts_csv(summary, names, classes),
            sheets: draw_sheets(summary, names, classes, &tiles)?,
        })
    }

    /// The files of a folder: names with `/` between folder and file, and contents.
    pub fn files(&self) -> Vec<(String, &[u8])> {
        let mut files = vec![
            ("graph.svg".to_owned(), self.graph.as_bytes()),
            ("graph.csv".to_owned(), self.graph_csv.as_bytes()),
            ("concepts.csv".to_owned(), self.concepts_csv.as_bytes()),
        ];
        if let Some(svg) = &self.purity {
            files.push(("purity.svg".to_owned(), svg.as_bytes()));
        }
        for (page, sheet) in self.sheets.iter().enumerate() {
            files.push((Self::sheet_name(page + 1), sheet));
        }
        files
    }

    /// The file of a page, counted from 1.
    pub fn sheet_name(page: usize) -> String {
        format!("sheets/{page:03}.jpg")
    }
}

fn purities(summary: &ConceptSummary) -> BTreeMap<u16, &ConceptPurity> {
    let scored = summary.purity.iter().flat_map(|purity| &purity.per_concept);
    scored.map(|one| (one.concept as u16, one)).collect()
}

fn draw_graph(
    summary: &ConceptSummary,
    names: &ConceptNames,
    classes: &[String],
    tiles: &BTreeMap<u16, Vec<RgbImage>>,
) -> Result<String, EvaluateError> {
    let purities = purities(summary);
    let colours = ConceptColors::of(names, summary.dictionary.concepts);
    let joined: BTreeSet<u16> = summary.graph.edges.iter().flat_map(|e| [e.a, e.b]).collect();
    let mut thumbnails = BTreeMap::new();
    let mut shown = BTreeSet::new();
    for &concept in &joined {
        if let Some(tile) = tiles.get(&concept).and_then(|tiles| tiles.first()) {
            thumbnails.insert(concept, sheet::jpeg(tile)?);
        }
        shown.extend(purities.get(&concept).map(|one| one.class));
    }
    let look = |concept: u16| Look {
        name: concept_name(names, concept),
        colour: match purities.get(&concept) {
            Some(one) => instance_color(one.class as u8),
            None if classes.is_empty() => colours.get(concept),
            None => UNSCORED,
        },
        thumbnail: thumbnails.get(&concept).cloned(),
    };
    let name = |class: usize| classes.get(class).cloned().unwrap_or_default();
    let legend: Vec<_> = shown.iter().map(|&c| (name(c), instance_color(c as u8))).collect();
    Ok(graph::svg(summary, &look, &legend))
}

fn draw_sheets(
    summary: &ConceptSummary,
    names: &ConceptNames,
    classes: &[String],
    tiles: &BTreeMap<u16, Vec<RgbImage>>,
) -> Result<Vec<Vec<u8>>, EvaluateError> {
    let purities = purities(summary);
    let mut used: Vec<&ConceptUse> = summary.dictionary.per_concept.iter().collect();
    used.sort_by_key(|one| (std::cmp::Reverse(one.area), one.concept));
    let rows: Vec<(String, &[RgbImage])> = used
        .into_iter()
        .filter_map(|one| {
            let tiles = tiles.get(&one.concept)?;
            let heading = match purities.get(&one.concept) {
                Some(purity) => {
                    let class = classes.get(purity.class).map_or("", String::as_str);
                    format!("{}, {:.0} % {class}", heading(one, names), 100.0 * purity.purity)
                }
                None => heading(one, names),
            };
            Some((heading, tiles.as_slice()))
        })
        .collect();
    let rows: Vec<Row<'_>> = rows.iter().map(|(heading, tiles)| Row { heading, tiles }).collect();
    sheet::pages(&rows).iter().map(sheet::jpeg).collect()
}

fn heading(one: &ConceptUse, names: &ConceptNames) -> String {
    let plural = |n: u64| if n == 1 { "" } else { "s" };
    let name =
        names.name(usize::from(one.concept)).map_or_else(String::new, |name| format!(" {name}"));
    format!(
        "{}{name}: {} segment{} in {} image{}, {:.1} % of area",
        one.concept,
        one.segments,
        plural(one.segments),
        one.images,
        plural(one.images.into()),
        100.0 * one.area_share,
    )
}
