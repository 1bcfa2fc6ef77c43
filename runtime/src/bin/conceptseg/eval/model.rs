//! The bundle that is evaluated, and how it sees images.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use conceptseg::bundle::SizeRule;
use conceptseg::embed::Model;
use conceptseg::evaluate::run::Inputs;
use serde_json::{Value, json};

use crate::backend::BackendArgs;

/// The model and how it sees images.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    pub bundle: PathBuf,
    #[command(flatten)]
    backend: BackendArgs,
    /// Short side of the network's input in pixels; bundles of a fixed size ignore it.
    #[arg(long, default_value_t = 336, value_parser = clap::value_parser!(u32).range(32..=4096))]
    pub short_side: u32,
}

impl ModelArgs {
    pub fn open(&self) -> Result<Arc<Model>> {
        Ok(Model::open(&self.bundle, &self.backend.options())?)
    }

    /// What a figure was reached with.
    pub fn settings(&self, model: &Model) -> Value {
        let manifest = &model.bundle().manifest;
        json!({
            "bundle": manifest.name,
            "backend": model.backend_label(),
            "input": match manifest.embedder.size {
                SizeRule::Fixed([h, w]) => format!("{w}x{h}"),
                SizeRule::Dynamic => format!("short side {}", self.short_side),
            },
        })
    }
}

/// `settings` with the hashes of the bundle's files.
pub fn bundle_inputs(kind: &str, model: &Model, settings: Value) -> Inputs {
    let manifest = &model.bundle().manifest;
    Inputs::new(kind, settings)
        .with("embedder", manifest.embedder.sha256.clone())
        .with("concepts", manifest.concepts.sha256.clone())
}
