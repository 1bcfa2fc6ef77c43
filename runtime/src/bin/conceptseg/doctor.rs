//! `conceptseg doctor`: what is there to run networks and pipelines with, what is missing, and how to mend it.

mod gstreamer;
mod library;
mod models;
mod tool;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use conceptseg::backend::{self, Probe};
use serde_json::json;

use gstreamer::GStreamer;
use models::Found;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Show what is there to run networks and pipelines with, what is missing, and how to mend it.
///
/// Looks at the backends, at GStreamer and its plugin, at the variables of the environment that
/// change what GStreamer finds, and at the models. Exit codes: 0 the report was made, whatever it
/// says; 1 with --check, where it names a problem; 2 wrong use.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End with 1 where something is wrong that keeps a pipeline from running.
    #[arg(long)]
    check: bool,
    /// Look at this model instead of those that are installed.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Seconds that each of GStreamer's tools may take; the first run after a change is slow.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// Something that is wrong, or worth knowing.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// It keeps pipelines from running.
    problem: bool,
    /// One clear sentence.
    what: String,
    /// What to do.
    fix: String,
}

impl Finding {
    fn problem(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { problem: true, what: what.into(), fix: fix.into() }
    }

    fn note(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { problem: false, what: what.into(), fix: fix.into() }
    }
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let probes = backend::probe();
    let gstreamer = GStreamer::look(Duration::from_secs(args.timeout));
    let models = models::look(args.bundle.as_deref());
    let mut findings = gstreamer.findings(VERSION);
    findings.extend(models::findings(&models, args.bundle.is_some()));
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", as_json(&probes, &gstreamer, &models, &findings))?;
    } else {
        print(&mut out, &probes, &gstreamer, &models, &findings)?;
    }
    drop(out);
    match findings.iter().filter(|finding| finding.problem).count() {
        0 => Ok(()),
        _ if !args.check => Ok(()),
        1 => bail!("a problem was found; the report says what to do"),
        count => bail!("{count} problems were found; the report says what to do about each"),
    }
}

/// The backend that `auto` takes: the preferred one comes first, and the built-in one is always there.
fn preferred(probes: &[Probe]) -> Option<&'static str> {
    probes.iter().find(|p| p.available.is_ok()).map(|p| p.name)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn as_json(
    probes: &[Probe],
    gstreamer: &GStreamer,
    models: &[Found],
    findings: &[Finding],
) -> serde_json::Value {
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
    let of_kind = |problem: bool| -> Vec<_> {
        let found = findings.iter().filter(|finding| finding.problem == problem);
        found.map(|Finding { what, fix, .. }| json!({"what": what, "fix": fix})).collect()
    };
    json!({
        "version": VERSION,
        "processors": processors(),
        "auto": preferred(probes),
        "backends": backends,
        "gstreamer": gstreamer.as_json(),
        "models": models.iter().map(Found::as_json).collect::<Vec<_>>(),
        "problems": of_kind(true),
        "notes": of_kind(false),
    })
}

fn print(
    out: &mut impl Write,
    probes: &[Probe],
    gstreamer: &GStreamer,
    models: &[Found],
    findings: &[Finding],
) -> Result<()> {
    let preferred = preferred(probes);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["backend", "usable", "detail"]);
    for probe in probes {
        let (usable, detail) = match &probe.available {
            Ok(detail) if Some(probe.name) == preferred => ("yes, by default", detail),
            Ok(detail) => ("yes", detail),
            Err(reason) => ("no", reason),
        };
        table.add_row([probe.name, usable, detail]);
    }
    writeln!(out, "{}\n", table.trim_fmt())?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["GStreamer", ""]);
    for (name, value) in gstreamer.rows() {
        table.add_row([name, &value]);
    }
    for model in models {
        table.add_row(["model", &model.describe()]);
    }
    writeln!(out, "{}\n", table.trim_fmt())?;
    for (problem, title) in [(true, "Problems:"), (false, "Notes:")] {
        let mut found = findings.iter().filter(|f| f.problem == problem).peekable();
        if found.peek().is_some() {
            writeln!(out, "{title}")?;
        }
        for Finding { what, fix, .. } in found {
            writeln!(out, "- {what}\n  To mend it: {fix}")?;
        }
    }
    if !findings.iter().any(|finding| finding.problem) {
        writeln!(out, "No problems: pipelines with conceptseg can run.")?;
    }
    writeln!(out, "\nconceptseg {VERSION} on {} processor(s)", processors())?;
    Ok(())
}
