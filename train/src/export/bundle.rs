//! A finished run as a model bundle.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use conceptseg::bundle::{Bundle, BundleWriter, Codebook, Provenance, SizeRule};
use indicatif::ProgressBar;

use super::check::compare_on_images;
use super::onnx::{ExportSize, export_onnx};
use crate::config::TrainConfig;
use crate::trainer::Trained;
use crate::vocabulary;

/// Most images over which the concepts' statistics are gathered.
const STATISTICS_IMAGES: usize = 2000;
/// Largest difference allowed between the exported and the trained network.
const EXPORT_TOLERANCE: f64 = 1e-4;

/// Writes the model bundle of a finished run to the folder `out`, which must exist: the network
/// as ONNX, checked against the trained one on some of `images`, and the dictionary with its
/// statistics on at most 2,000 of them. `progress` makes the bar for that many images.
///
/// # Errors
/// When the export differs from the network by more than 1e-4, when no image can be read, or
/// when the folder cannot be written.
pub fn write_bundle(
    out: &Path,
    config: &TrainConfig,
    trained: &Trained,
    images: &[PathBuf],
    progress: &dyn Fn(usize) -> ProgressBar,
) -> Result<()> {
    let work = tempfile::tempdir_in(out)?;
    let onnx = work.path().join("embedder.onnx");
    let size = match config.export_size {
        SizeRule::Dynamic => ExportSize::Dynamic,
        SizeRule::Fixed([height, width]) => ExportSize::Fixed { height, width },
    };
    export_onnx(&trained.network, &onnx, size)?;
    let difference = compare_on_images(&trained.network, &onnx, size, images, 4)?;
    ensure!(
        difference <= EXPORT_TOLERANCE,
        "the exported network differs from the trained one by {difference:.1e}"
    );
    tracing::info!("exported network agrees with the trained one to {difference:.1e}");

    let codebook = codebook(&trained.dictionary.codebook)?;
    let count = codebook.count;
    let (mean, std) = config.network.preset.normalization();
    let backbone = if trained.pretrained {
        config.provenance.backbone.clone()
    } else {
        "random weights".to_owned()
    };
    let mut provenance = Provenance {
        producer: format!("conceptseg-train {}", env!("CARGO_PKG_VERSION")),
        backbone,
        images: config.provenance.images.clone(),
        licence: config.provenance.licence.clone(),
        ..Provenance::default()
    };
    for (key, value) in [
        ("steps", config.optimizer.iterations.to_string()),
        ("seed", config.seed.to_string()),
        ("images", images.len().to_string()),
    ] {
        provenance.details.insert(key.to_owned(), value);
    }
    let writer = BundleWriter::new(&config.name, trained.network.stride(), mean, std)
        .size(config.export_size)
        .provenance(provenance);
    // The statistics are those of the runtime on this very network, so a bundle without
    // them is made first, in the work folder.
    let bare = work.path().join("bundle");
    writer.write(&bare, &onnx, &codebook)?;
    let step = images.len().div_ceil(STATISTICS_IMAGES).max(1);
    let sample: Vec<PathBuf> = images.iter().step_by(step).cloned().collect();
    let bar = progress(sample.len());
    let observed = vocabulary::observe(&bare, &sample, config.data.short_side, &bar)?;
    bar.finish_and_clear();
    tracing::info!(
        "{} of {} concepts occur, perplexity {:.0}",
        observed.used,
        count,
        observed.perplexity
    );
    writer.write(out, &onnx, &observed.codebook)?;
    Bundle::open(out)?;
    Ok(())
}

fn codebook(rows: &tch::Tensor) -> Result<Codebook> {
    let (count, dim) = rows.size2()?;
    let values = Vec::<f32>::try_from(rows.detach().to_device(tch::Device::Cpu).reshape([-1]))?;
    Codebook::new(count as usize, dim as usize, values).map_err(anyhow::Error::msg)
}
