//! `conceptseg metrics purity`: concept maps.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use conceptseg::metrics::files::PurityRules;
use serde_json::json;

use super::{Truth, surplus_json, surplus_line};
use crate::progress::progress_bar;
use crate::scores::{purity_json, purity_text};

#[derive(Debug, clap::Args)]
pub struct PurityArgs {
    /// Folder of concept maps: PNGs of concept ids.
    #[arg(long, value_name = "DIR")]
    concepts: PathBuf,
    #[command(flatten)]
    labels: Truth,
    /// Number of concepts; one more than the highest id found without this option.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    num_concepts: Option<u32>,
    /// The id of pixels without a concept.
    #[arg(long, value_name = "ID")]
    no_concept: Option<u16>,
    /// Segments of fewer pixels are left out.
    #[arg(long, default_value_t = 0, value_name = "PIXELS")]
    min_area: u32,
    /// Concepts with fewer labelled segments are not scored.
    #[arg(long, default_value_t = 1, value_name = "N")]
    min_segments: u64,
}

pub fn run(args: &PurityArgs, json: bool) -> Result<()> {
    let classes = args.labels.classes()?;
    let files = args.labels.open(&args.concepts)?;
    let rules = PurityRules {
        classes: classes.count(),
        void: classes.void,
        concepts: args.num_concepts.map(|n| n as usize),
        ignored: args.no_concept,
        min_area: args.min_area,
    };
    let bar = progress_bar("scored", "images", files.pairs.len())?;
    let report = files.purity(&rules, &|| bar.inc(1))?.report(args.min_segments);
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({
            "files": files.pairs.len(),
            "void": classes.void,
            "min_area": args.min_area,
            "min_segments": args.min_segments,
            "surplus": surplus_json(&files),
            "purity": purity_json(&report, &classes)?,
        });
        writeln!(out, "{object}")?;
    } else {
        write!(out, "{}", purity_text(&report))?;
        writeln!(out, "{} files", files.pairs.len())?;
        write!(out, "{}", surplus_line(&files))?;
    }
    Ok(())
}
