//! Contestants of `scripts/bench`: how one talks with `scripts/bench`: a line of JSON when it is ready, then one for
//! each line on standard input.
//!
//! ```text
//! run          runs the stage once                {"seconds": 0.0123}
//! check FILE   writes its result as a .npy file   {"written": "FILE"}
//! grow N       holds N streams from now on        {"streams": N}
//! ```

pub mod npy;

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use npy::Array;

/// A stage with its inputs.
pub trait Stage {
    /// What it is and how it was set up, for the report.
    fn describe(&self) -> String;

    /// Runs the stage once; only this is timed.
    fn run(&mut self) -> Result<()>;

    /// The result that other contestants must have too.
    fn check(&mut self) -> Result<Array>;

    /// Parts of the latest run by name.
    fn parts(&self) -> Vec<(&'static str, Duration)> {
        Vec::new()
    }

    /// Goes on with that many streams.
    fn grow(&mut self, _streams: usize) -> Result<()> {
        bail!("this stage has no streams")
    }
}

/// Answers standard input until its end.
pub fn serve(mut stage: impl Stage) -> Result<()> {
    answer(&json!({ "ready": stage.describe() }))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        let reply = match line.split_once(' ').unwrap_or((&line, "")) {
            ("run", "") => {
                let begun = Instant::now();
                stage.run()?;
                let seconds = begun.elapsed().as_secs_f64();
                let parts: Map<String, Value> = stage
                    .parts()
                    .into_iter()
                    .map(|(name, time)| (name.to_owned(), time.as_secs_f64().into()))
                    .collect();
                json!({ "seconds": seconds, "parts": parts })
            }
            ("check", file) => {
                stage.check()?.write(Path::new(file))?;
                json!({ "written": file })
            }
            ("grow", count) => {
                let streams = count.parse().with_context(|| format!("{count} is no number"))?;
                stage.grow(streams)?;
                json!({ "streams": streams })
            }
            _ => bail!("{line:?} is not understood; use run, check FILE or grow N"),
        };
        answer(&reply)?;
    }
    Ok(())
}

fn answer(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).context("cannot answer")
}
