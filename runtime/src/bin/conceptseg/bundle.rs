//! `conceptseg bundle inspect|verify|quantize`.

mod quantize;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use conceptseg::backend::{self, BackendKind, BackendOptions};
use conceptseg::bundle::{Bundle, SizeRule};
use conceptseg::embed::{EmbeddingMap, Model};
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a bundle holds.
    Inspect {
        /// Folder of the bundle.
        bundle: PathBuf,
    },
    /// Check a bundle: hashes, sizes, codebook, and that the network runs on every CPU
    /// backend of this machine and gives the same unit embeddings on all of them. For the GPU
    /// there is `engine verify`.
    Verify {
        /// Folder of the bundle.
        bundle: PathBuf,
    },
    /// Write a bundle whose network computes with 8-bit integers or in half precision, and
    /// say how far it agrees with the float network.
    Quantize(quantize::Args),
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Inspect { bundle } => inspect(bundle, json),
        Command::Verify { bundle } => verify(bundle, json),
        Command::Quantize(args) => quantize::run(args, json),
    }
}

fn inspect(dir: &Path, json: bool) -> Result<()> {
    let bundle = Bundle::open(dir)?;
    let m = &bundle.manifest;
    let size =
        std::fs::metadata(bundle.embedder_path()).context("reading the network's size")?.len();
    let used = bundle.codebook.counts.iter().filter(|&&c| c > 0.0).count();
    let named = (0..bundle.codebook.count).filter(|&id| bundle.names.get(id).is_some()).count();
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({
            "manifest": m, "embedder_bytes": size,
            "concepts_used_in_training": used, "concepts_named": named,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let input = match m.embedder.size {
        SizeRule::Dynamic => format!("any multiple of {}", m.embedder.stride),
        SizeRule::Fixed([h, w]) => format!("{w}x{h}"),
    };
    for (key, value) in [
        ("name", m.name.clone()),
        ("network", format!("{} ({:.2} MB)", m.embedder.file, size as f64 / 1e6)),
        ("input size", input),
        ("embedding", format!("{} dimensions at stride {}", m.embedder.dim, m.embedder.stride)),
        ("concepts", format!("{} ({used} seen in training, {named} named)", m.concepts.count)),
        ("producer", m.provenance.producer.clone()),
        ("backbone", m.provenance.backbone.clone()),
        ("images", m.provenance.images.clone()),
        ("licence", m.provenance.licence.clone()),
    ] {
        writeln!(out, "{key:<12}{value}")?;
    }
    for (key, value) in &m.provenance.details {
        writeln!(out, "{key:<12}{value}")?;
    }
    Ok(())
}

/// Side of the image that `verify` runs, in pixels: a multiple of every stride.
const PROBE_SIDE: u32 = 128;
/// Largest difference between two backends' embeddings (float32 rounding in another order).
const AGREEMENT: f32 = 1e-3;

fn verify(dir: &Path, json: bool) -> Result<()> {
    let bundle = Bundle::open(dir)?;
    let (height, width) = match bundle.manifest.embedder.size {
        SizeRule::Dynamic => (PROBE_SIDE, PROBE_SIDE),
        SizeRule::Fixed([h, w]) => (h, w),
    };
    let input = probe_image(width as usize, height as usize);
    let mut maps: Vec<(BackendKind, EmbeddingMap)> = Vec::new();
    for probe in backend::probe() {
        if probe.available.is_err() || probe.kind == BackendKind::Tensorrt {
            continue;
        }
        let model = Model::open(dir, &BackendOptions::new(probe.kind, 0))?;
        let mut map = EmbeddingMap::default();
        model
            .embed(&input, width as usize, height as usize, &mut Vec::new(), &mut map)
            .with_context(|| format!("running the network on {}", probe.name))?;
        let off = map
            .data
            .chunks_exact(map.dim)
            .map(|e| (e.iter().map(|v| v * v).sum::<f32>().sqrt() - 1.0).abs())
            .fold(0.0, f32::max);
        ensure!(
            off < AGREEMENT,
            "{}: the network's output is not of unit length on {} (off by {off:.2e}); \
             export it with its L2 normalisation",
            bundle.embedder_path().display(),
            probe.name,
        );
        maps.push((probe.kind, map));
    }
    let largest =
        maps.windows(2).map(|pair| difference(&pair[0].1, &pair[1].1)).fold(0.0, f32::max);
    ensure!(
        largest < AGREEMENT,
        "the backends disagree by {largest:.2e} on {}",
        bundle.embedder_path().display()
    );
    let names: Vec<String> = maps.iter().map(|(kind, _)| kind.to_string()).collect();
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", json!({"ok": true, "backends": names, "largest_difference": largest}))?;
    } else {
        writeln!(
            out,
            "{}: good; the network ran on {} (largest difference {largest:.1e})",
            dir.display(),
            names.join(" and ")
        )?;
    }
    Ok(())
}

/// A smooth pattern with colours and edges, in the range that normalised images have.
fn probe_image(width: usize, height: usize) -> Vec<f32> {
    let mut data = Vec::with_capacity(3 * width * height);
    for c in 0..3 {
        for y in 0..height {
            for x in 0..width {
                let wave = ((x * (c + 2) + y * 3) as f32 * 0.07).sin();
                let edge = if (x / 32 + y / 32) % 2 == 0 { 0.4 } else { -0.4 };
                data.push(wave * 0.6 + edge);
            }
        }
    }
    data
}

fn difference(a: &EmbeddingMap, b: &EmbeddingMap) -> f32 {
    a.data.iter().zip(&b.data).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}
