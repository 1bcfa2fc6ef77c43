//! `conceptseg metrics miou`: label PNGs.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::{Truth, surplus_json, surplus_line};
use crate::progress::progress_bar;
use crate::scores::{miou_json, miou_table};

#[derive(Debug, clap::Args)]
pub struct MiouArgs {
    /// Folder of results: PNGs of class ids.
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
    #[command(flatten)]
    pub(super) labels: Truth,
}

pub fn run(args: &MiouArgs, json: bool) -> Result<()> {
    let classes = args.labels.classes()?;
    let files = args.labels.open(&args.results)?;
    let bar = progress_bar("scored", "images", files.pairs.len())?;
    let report = files.confusion(classes.count(), classes.void, &|| bar.inc(1))?.report();
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({
            "files": files.pairs.len(),
            "void": classes.void,
            "surplus": surplus_json(&files),
            "miou": miou_json(&report, &classes),
        });
        writeln!(out, "{object}")?;
    } else {
        write!(out, "{}", miou_table(&report, &classes))?;
        writeln!(out, "{} files", files.pairs.len())?;
        write!(out, "{}", surplus_line(&files))?;
    }
    Ok(())
}
