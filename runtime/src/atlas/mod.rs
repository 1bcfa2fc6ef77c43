//! The atlas: what each concept of a dictionary shows on somebody's images, as one page that
//! loads nothing from elsewhere.
//!
//! ```text
//! all ImageConcepts -> Atlas::build -> page::html            a file to look at
//! page, bundle -> server::Site::answer -> concepts.toml      names given on the page
//! ```
//!
//! The page holds figures as JSON and pictures as one strip of tiles for each concept, which it
//! decodes when they come into view.

mod data;
pub mod page;
mod pictures;
mod projection;
pub mod server;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bundle::ConceptNames;
use crate::concepts::SegmentationConfig;
use crate::datasets::images::ImageSet;
use crate::embed::Model;
use crate::evaluate::EvaluateError;
use crate::evaluate::concepts::{
    ImageConcepts, Sample, SummarySettings, nearest, plot, sheet, summary,
};
pub use data::{AtlasData, ConceptData};
pub use pictures::Strips;

/// How an atlas is made.
#[derive(Debug, Clone)]
pub struct AtlasSettings {
    /// Short side of the network's input in pixels.
    pub short_side: u32,
    /// How images are labelled; as for the records.
    pub segmentation: SegmentationConfig,
    /// What is counted, and how many random segments are shown of each concept.
    pub summary: SummarySettings,
    /// Segments shown of each concept that are most similar to it.
    pub nearest: usize,
}

/// Figures and pictures of a dictionary, ready for a page.
#[derive(Debug, Clone)]
pub struct Atlas {
    /// The figures.
    pub data: AtlasData,
    /// The pictures.
    pub strips: Strips,
    /// Histogram of purities, SVG; none without ground truth.
    pub purity: Option<String>,
    /// What people said when the atlas was made.
    pub names: ConceptNames,
    /// SHA-256 of the codebook, by which an atlas is known to belong to a bundle.
    pub codebook: String,
}

impl Atlas {
    /// Sums up `records` of `images`, which are called `source` on the page, and cuts out what
    /// is shown: those images are labelled once more, and `tick` is called after each
    /// ([`Atlas::shown_images`] of them).
    ///
    /// # Errors
    /// [`EvaluateError`] where a record belongs to other images or an image cannot be labelled.
    pub fn build(
        model: &Arc<Model>,
        images: &ImageSet,
        source: &str,
        records: &[ImageConcepts],
        settings: &AtlasSettings,
        tick: &(dyn Fn() + Sync),
    ) -> Result<Self, EvaluateError> {
        let bundle = model.bundle();
        let summed = summary(records, bundle.codebook.count, &settings.summary)?;
        let shown = shown(records, &summed.samples, settings);
        let classes = images.classes().map_or(&[][..], |classes| &classes.names);
        let tiles = sheet::cut(
            model,
            images,
            settings.short_side,
            &settings.segmentation,
            &shown.samples,
            pictures::TILE,
            tick,
        )?;
        let strips = Strips::new(bundle.codebook.count, &shown.samples, &tiles)?;
        let purity = match &summed.purity {
            Some(report) => Some(plot::purity_svg(&[(source, report)])?),
            None => None,
        };
        let data =
            AtlasData::new(bundle, source, classes, records, &summed, &shown, &settings.summary);
        Ok(Self {
            data,
            strips,
            purity,
            names: bundle.names.clone(),
            codebook: bundle.manifest.concepts.sha256.clone(),
        })
    }

    /// Number of images that [`Atlas::build`] labels once more.
    ///
    /// # Errors
    /// As [`Atlas::build`].
    pub fn shown_images(
        concepts: usize,
        records: &[ImageConcepts],
        settings: &AtlasSettings,
    ) -> Result<usize, EvaluateError> {
        let summed = summary(records, concepts, &settings.summary)?;
        Ok(sheet::sampled_images(&shown(records, &summed.samples, settings).samples))
    }
}

/// What is shown of each concept: its nearest segments, and after them random ones.
#[derive(Debug)]
struct Shown {
    samples: BTreeMap<u16, Vec<Sample>>,
    /// How many of them are the nearest.
    nearest: BTreeMap<u16, usize>,
}

fn shown(
    records: &[ImageConcepts],
    random: &BTreeMap<u16, Vec<Sample>>,
    settings: &AtlasSettings,
) -> Shown {
    let mut samples = nearest(records, settings.nearest, settings.summary.min_area);
    let counts = samples.iter().map(|(&concept, samples)| (concept, samples.len())).collect();
    for (&concept, random) in random {
        samples.entry(concept).or_default().extend(random.iter().cloned());
    }
    Shown { samples, nearest: counts }
}

#[cfg(test)]
mod tests;
