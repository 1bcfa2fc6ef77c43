//! `conceptseg doctor`: what this machine can run networks with.

use std::io::Write as _;

use anyhow::Result;
use comfy_table::{Table, presets};
use conceptseg::backend;
use serde_json::json;

/// Show which backends can be used here, and why the others cannot.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: &Args, json: bool) -> Result<()> {
    let probes = backend::probe();
    // The preferred backend comes first, and the built-in one is always there.
    let preferred = probes.iter().find(|p| p.available.is_ok()).map(|p| p.name);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut out = std::io::stdout().lock();
    if json {
        let backends: Vec<_> = probes
            .iter()
            .map(|p| {
                json!({
                    "name": p.name,
                    "available": p.available.is_ok(),
                    "detail": p.available.as_ref().ok(),
                    "reason": p.available.as_ref().err(),
                })
            })
            .collect();
        let object = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "processors": threads,
            "auto": preferred,
            "backends": backends,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["backend", "usable", "detail"]);
    for probe in &probes {
        let (usable, detail) = match &probe.available {
            Ok(detail) if Some(probe.name) == preferred => ("yes, by default", detail),
            Ok(detail) => ("yes", detail),
            Err(reason) => ("no", reason),
        };
        table.add_row([probe.name, usable, detail]);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    writeln!(out, "\nconceptseg {} on {threads} processor(s)", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}
