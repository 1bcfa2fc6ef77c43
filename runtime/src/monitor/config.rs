//! Settings of the monitor.

use serde::{Deserialize, Serialize};

use super::MonitorError;
use super::hysteresis::Levels;

/// Settings of a [`StreamMonitor`](super::StreamMonitor), as a TOML file has them. What a file
/// leaves out keeps its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorConfig {
    /// Lengths of the windows in seconds, rising, 2 to 6. Events are told from the first; the
    /// last is the history that they are compared with.
    pub windows: Vec<f64>,
    /// A concept is present in a frame from this share of its area on, 0..=1.
    pub min_share: f64,
    /// Area share of a concept, in the first window, at which it has appeared or vanished.
    pub appear: Levels,
    /// Concepts present in less than this share of the frames, in the baseline and in the last
    /// window, are rare: it is an event when they appear.
    pub rare: f64,
    /// Concepts present in more than this share of the frames, in the last window, are usual: it
    /// is an event when they vanish.
    pub usual: f64,
    /// Share of the area that is novel, in the first window.
    pub novel: Levels,
    /// Drift, in deviations above the mean of its own history.
    pub drift: Levels,
    /// The deviation of the drift is never taken to be smaller, in bits.
    pub drift_floor: f64,
    /// Seconds that two concepts must be in the picture together, before it is an event that they
    /// never were before.
    pub pair_for: f64,
    /// Seconds without a change in the pixels after which a picture is frozen.
    pub frozen_for: f64,
    /// Deviation of the brightness, of 255, at which a lens is covered.
    pub covered_contrast: f64,
    /// Share of its usual sharpness at which a picture is blurred.
    pub blurred_ratio: f64,
    /// Seconds for which a picture must be covered or blurred, and clear again.
    pub fault_for: f64,
    /// Seconds at the start of a stream in which it learns and only tells of frozen and covered
    /// pictures.
    pub warm_up: f64,
    /// Longer pauses between frames count as this many seconds.
    pub max_gap: f64,
    /// Width of the thumbnails that events carry, 16 to 640; none where absent.
    pub thumbnail: Option<u32>,
}

impl Default for MonitorConfig {
    /// What `docs/monitor.md` gives the reasons and measurements for.
    fn default() -> Self {
        Self {
            windows: vec![2.0, 60.0, 900.0],
            min_share: 0.005,
            appear: Levels { on: 0.02, off: 0.005, on_for: 2.0, off_for: 5.0 },
            rare: 0.05,
            usual: 0.5,
            novel: Levels { on: 0.35, off: 0.2, on_for: 2.0, off_for: 3.0 },
            drift: Levels { on: 5.0, off: 2.5, on_for: 3.0, off_for: 5.0 },
            drift_floor: 0.02,
            pair_for: 3.0,
            frozen_for: 5.0,
            covered_contrast: 8.0,
            blurred_ratio: 0.25,
            fault_for: 1.0,
            warm_up: 60.0,
            max_gap: 5.0,
            thumbnail: None,
        }
    }
}

impl MonitorConfig {
    /// Reads the settings of a TOML text.
    ///
    /// # Errors
    /// [`MonitorError::Settings`] with the place of the mistake.
    pub fn parse(text: &str) -> Result<Self, MonitorError> {
        let config: Self = toml::from_str(text)
            .map_err(|e| MonitorError::Settings(e.to_string().trim_end().to_owned()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`MonitorError::Settings`] with the first that is not possible.
    pub fn check(&self) -> Result<(), MonitorError> {
        let wrong = |what: String| Err(MonitorError::Settings(what));
        let rising = self.windows.windows(2).all(|w| w[0] < w[1]);
        let possible = self.windows.iter().all(|w| (0.05..=604_800.0).contains(w));
        if !(2..=6).contains(&self.windows.len()) || !rising || !possible {
            return wrong("windows must be 2 to 6 rising lengths of 0.05 to 604800 seconds".into());
        }
        for (name, value, low, high) in [
            ("min_share", self.min_share, 0.0, 1.0),
            ("rare", self.rare, 0.0, 1.0),
            ("usual", self.usual, 0.0, 1.0),
            ("drift_floor", self.drift_floor, 1e-6, 1.0),
            ("pair_for", self.pair_for, 0.0, 86_400.0),
            ("frozen_for", self.frozen_for, 0.0, 86_400.0),
            ("covered_contrast", self.covered_contrast, 0.0, 127.5),
            ("blurred_ratio", self.blurred_ratio, 0.0, 1.0),
            ("fault_for", self.fault_for, 0.0, 86_400.0),
            ("warm_up", self.warm_up, 0.0, 86_400.0),
            ("max_gap", self.max_gap, 0.05, 86_400.0),
        ] {
            if !(low..=high).contains(&value) {
                return wrong(format!("{name} is {value}; it must be {low} to {high}"));
            }
        }
        for (name, levels, high) in [
            ("appear", &self.appear, 1.0),
            ("novel", &self.novel, 1.0),
            ("drift", &self.drift, 1e6),
        ] {
            let Levels { on, off, on_for, off_for } = *levels;
            if !((0.0..=high).contains(&off) && (off..=high).contains(&on)) {
                return wrong(format!(
                    "{name}.off ({off}) must be 0 or more and not above {name}.on ({on}), at most {high}"
                ));
            }
            if !(0.0..=86_400.0).contains(&on_for) || !(0.0..=86_400.0).contains(&off_for) {
                return wrong(format!(
                    "{name}.on_for and {name}.off_for must be 0 to 86400 seconds"
                ));
            }
        }
        if self.thumbnail.is_some_and(|width| !(16..=640).contains(&width)) {
            return wrong("thumbnail must be a width of 16 to 640 pixels".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_what_differs_and_mistakes_are_named() {
        let config = MonitorConfig::parse("warm_up = 5.0\nthumbnail = 160").unwrap();
        assert_eq!(config.thumbnail, Some(160));
        assert_eq!(
            config,
            MonitorConfig { warm_up: 5.0, thumbnail: Some(160), ..Default::default() }
        );
        for (text, part) in [
            ("windows = [5.0, 2.0]", "2 to 6 rising lengths"),
            ("rare = nan", "rare is NaN"),
            ("novel = { on = 0.1, off = 0.2, on_for = 1.0, off_for = 1.0 }", "novel.off (0.2)"),
            ("novelty = 3", "unknown field"),
            ("thumbnail = 5000", "16 to 640"),
        ] {
            let message = MonitorConfig::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
