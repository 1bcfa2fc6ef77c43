//! Faults of the camera: covered, frozen, blurred.

use super::StreamMonitor;
use crate::monitor::event::EventKind;
use crate::monitor::hysteresis::Levels;

/// A picture of which no more pixels change stands still: a frozen picture that is encoded again
/// changes a little.
const STILL: f64 = 0.005;
/// Without pixels, a lens counts as covered where one concept, unusual at that, takes this share.
const FILLS: Levels = Levels { on: 0.97, off: 0.9, on_for: 1.0, off_for: 1.0 };

impl StreamMonitor {
    pub(super) fn watch_camera(&mut self, labelled: bool, passed: f64) {
        let config = &self.config;
        let fault = |on: f64, off: f64| Levels {
            on,
            off,
            on_for: config.fault_for,
            off_for: config.fault_for,
        };
        let look = self.readings.look;

        // Low is bad: the values are compared with their signs turned.
        let (value, levels, shown) = if let Some(look) = look {
            let level = config.covered_contrast;
            (-look.contrast, fault(-level, -1.5 * level), look.contrast)
        } else {
            let top =
                (0..self.shares.len()).max_by(|&a, &b| self.shares[a].total_cmp(&self.shares[b]));
            let last = config.windows.len() - 1;
            let unusual = top.filter(|&k| self.readings.area.mean(last, k) < 0.5);
            let share = match (unusual, self.switches.covered.is_on()) {
                (Some(k), _) => self.shares[k],
                (None, true) => top.map_or(0.0, |k| self.shares[k]),
                (None, false) => 0.0,
            };
            (share, FILLS, share)
        };
        let covered = self.switches.covered.update(value, self.clock, &levels);
        self.readings.covered = self.switches.covered.is_on();
        self.tell_flip(covered, EventKind::Covered, shown, &[], |_| {
            "the picture shows next to nothing; is the lens covered?".to_owned()
        });

        let fingerprint = self.fingerprint();
        let still = match look {
            Some(look) => look.changed <= STILL,
            None => labelled && self.fingerprint == Some(fingerprint),
        };
        self.fingerprint = labelled.then_some(fingerprint);
        let levels = Levels { on: 0.5, off: 0.5, on_for: self.config.frozen_for, off_for: 0.0 };
        let value = f64::from(u8::from(still));
        let frozen = if self.readings.covered && !self.switches.frozen.is_on() {
            self.switches.frozen.hold();
            None
        } else {
            self.switches.frozen.update(value, self.clock, &levels)
        };
        self.readings.frozen = self.switches.frozen.is_on();
        let seconds = self.config.frozen_for;
        self.tell_flip(frozen, EventKind::Frozen, seconds, &[], |_| {
            format!("nothing has changed in the picture for {seconds} s; is the camera stuck?")
        });

        let Some(look) = look else { return };
        if look.sharpness <= 0.0 || self.readings.covered {
            self.switches.blurred.hold();
            return;
        }
        let ratio = self.sharpness.mean().map_or(1.0, |usual| look.sharpness / usual.exp());
        if self.clock >= self.config.warm_up {
            let level = self.config.blurred_ratio;
            let off = -(2.0 * level).min(1.0);
            let levels = Levels {
                on: -level,
                off,
                on_for: self.config.fault_for,
                off_for: self.config.fault_for,
            };
            let blurred = self.switches.blurred.update(-ratio, self.clock, &levels);
            self.readings.blurred = self.switches.blurred.is_on();
            self.tell_flip(blurred, EventKind::Blurred, ratio, &[], |value| {
                format!("the picture has {:.0} % of its usual sharpness", value * 100.0)
            });
        }
        // What is about to be told must not become usual meanwhile.
        if ratio > self.config.blurred_ratio {
            self.sharpness.learn(look.sharpness.ln(), passed);
        }
    }

    /// What the segments of the frame are, in one number.
    fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hasher as _};
        let mut hasher = DefaultHasher::new();
        for sighting in &self.sightings {
            hasher.write_u16(sighting.concept);
            hasher.write_u64(sighting.share.to_bits());
            hasher.write_u32(sighting.similarity.to_bits());
        }
        hasher.finish()
    }
}
