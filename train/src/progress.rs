//! What a run shows while it goes on: a progress bar or lines of text, and TensorBoard events.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::tensorboard::ScalarLog;

/// Steps whose figures are averaged for one line of the log.
pub const LOG_EVERY: u64 = 10;

/// Name of a figure and its value in one step.
pub type Figure = (&'static str, f64);

/// Progress bar, event file, and the sums between two lines of it.
pub struct Progress {
    bar: ProgressBar,
    /// `None` in all processes of a run but the first.
    events: Option<ScalarLog>,
    steps: u64,
    /// Images that one step takes.
    images: u64,
    sums: Vec<Figure>,
    gathered: u64,
    begun: Instant,
    step_begun: Instant,
    done_here: u64,
}

impl Progress {
    /// Opens the log of a run of `steps` steps in `dir`, `done` of which an earlier run has
    /// taken. One step takes `images` images.
    ///
    /// # Errors
    /// When the event file cannot be made.
    pub fn open(dir: &Path, steps: u64, done: u64, images: u64) -> io::Result<Self> {
        let events = Some(ScalarLog::create(dir)?);
        Ok(Self::new(events, ProgressDrawTarget::stderr(), steps, done, images))
    }

    /// Only takes the time: for a process that leaves the log to another one.
    pub fn silent(steps: u64, done: u64) -> Self {
        Self::new(None, ProgressDrawTarget::hidden(), steps, done, 0)
    }

    fn new(
        events: Option<ScalarLog>,
        target: ProgressDrawTarget,
        steps: u64,
        done: u64,
        images: u64,
    ) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left, {msg}")
        {
            bar.set_style(style);
        }
        bar.set_position(done);
        bar.reset_eta();
        let now = Instant::now();
        Self {
            bar,
            events,
            steps,
            images,
            sums: Vec::new(),
            gathered: 0,
            begun: now,
            step_begun: now,
            done_here: 0,
        }
    }

    /// Takes in the figures of a step, always the same ones in the same order; `step` steps are
    /// done with it. Returns the seconds since the one before.
    ///
    /// # Errors
    /// When the event file cannot be written.
    pub fn step(&mut self, step: u64, figures: &[Figure]) -> io::Result<f64> {
        let seconds = self.step_begun.elapsed().as_secs_f64();
        self.step_begun = Instant::now();
        self.done_here += 1;
        self.bar.inc(1);
        let time = [("seconds/step", seconds)];
        for (i, &(tag, value)) in figures.iter().chain(&time).enumerate() {
            match self.sums.get_mut(i) {
                Some(sum) => sum.1 += value,
                None => self.sums.push((tag, value)),
            }
        }
        self.gathered += 1;
        if self.gathered == LOG_EVERY || step == self.steps {
            self.write(step)?;
        }
        Ok(seconds)
    }

    fn write(&mut self, step: u64) -> io::Result<()> {
        let n = self.gathered as f64;
        let mut means: Vec<(&str, f64)> = self.sums.iter().map(|&(t, v)| (t, v / n)).collect();
        self.sums.clear();
        self.gathered = 0;
        if let Some(seconds) = means.last().map(|&(_, seconds)| seconds.max(1e-9)) {
            means.push(("images/second", self.images as f64 / seconds));
        }
        let Some(events) = &mut self.events else { return Ok(()) };
        events.add(step, &means)?;
        let text = summary(&means);
        if self.bar.is_hidden() {
            let left = self.time_left(self.steps.saturating_sub(step));
            tracing::info!("step {step} of {}: {text}, {} left", self.steps, HumanDuration(left));
        }
        self.bar.set_message(text);
        Ok(())
    }

    /// Time for `steps` more steps at the mean pace of this run.
    fn time_left(&self, steps: u64) -> Duration {
        let pace = self.begun.elapsed().as_secs_f64() / self.done_here.max(1) as f64;
        Duration::try_from_secs_f64(pace * steps as f64).unwrap_or(Duration::MAX)
    }

    /// Warns without tearing the bar.
    pub fn warn(&self, text: &str) {
        self.bar.suspend(|| tracing::warn!("{text}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar for what comes before step 0.
pub fn start_bar(length: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Losses, concepts in use, rate and speed in one line.
fn summary(means: &[(&str, f64)]) -> String {
    let parts: Vec<String> = means
        .iter()
        .filter_map(|&(tag, value)| match tag {
            "concepts/used" => Some(format!("{value:.0} concepts")),
            "rate" => Some(format!("rate {value:.2e}")),
            "images/second" => Some(format!("{value:.1} images/s")),
            _ => tag.strip_prefix("loss/").map(|part| format!("{part} {value:.3}")),
        })
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_losses_rate_and_speed() {
        let means = [
            ("loss/total", 5.25),
            ("loss/local", 4.0),
            ("concepts/used", 311.6),
            ("concepts/perplexity", 200.0),
            ("rate", 1.5e-4),
            ("images/second", 12.34),
        ];
        assert_eq!(
            summary(&means),
            "total 5.250, local 4.000, 312 concepts, rate 1.50e-4, 12.3 images/s"
        );
    }

    #[test]
    fn the_last_steps_are_logged_even_if_they_fill_no_interval() {
        let dir = tempfile::tempdir().unwrap();
        let mut progress = Progress::open(dir.path(), LOG_EVERY + 2, 0, 4).unwrap();
        let size = || {
            let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
            file.metadata().unwrap().len()
        };
        let mut grown = Vec::new();
        let mut last = size();
        for step in 1..=LOG_EVERY + 2 {
            progress.step(step, &[("loss/total", 1.0)]).unwrap();
            if size() > last {
                grown.push(step);
            }
            last = size();
        }
        assert_eq!(grown, [LOG_EVERY, LOG_EVERY + 2]);
    }
}
