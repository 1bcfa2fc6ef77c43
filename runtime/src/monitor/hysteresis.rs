//! A switch that neither flickers nor reacts to a single frame.

use serde::{Deserialize, Serialize};

/// When a [`Switch`] goes on and off again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Levels {
    /// Goes on at this value and above ...
    pub on: f64,
    /// ... and off at this value and below; not above `on`.
    pub off: f64,
    /// Seconds that the value must stay there before the switch goes on.
    pub on_for: f64,
    /// Seconds that the value must stay there before the switch goes off.
    pub off_for: f64,
}

/// What an update changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flip {
    /// It went on.
    On,
    /// It went off.
    Off,
}

/// On or off, and since when the value asks for the other.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Switch {
    on: bool,
    since: Option<f64>,
}

impl Switch {
    /// Whether it is on.
    pub const fn is_on(self) -> bool {
        self.on
    }

    /// Shows it `value` at `time` seconds; times must not fall.
    pub fn update(&mut self, value: f64, time: f64, levels: &Levels) -> Option<Flip> {
        let (asks, needed) = if self.on {
            (value <= levels.off, levels.off_for)
        } else {
            (value >= levels.on, levels.on_for)
        };
        if !asks {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(time);
        // Times are sums of frame durations: a rounding error must not cost a frame.
        if time - since + 1e-9 < needed {
            return None;
        }
        self.on = !self.on;
        self.since = None;
        Some(if self.on { Flip::On } else { Flip::Off })
    }

    /// Whether the value asks for a change that has not come yet.
    pub const fn is_waiting(self) -> bool {
        self.since.is_some()
    }

    /// Forgets how long the value has asked for a change.
    pub fn hold(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEVELS: Levels = Levels { on: 0.6, off: 0.3, on_for: 1.0, off_for: 2.0 };

    /// At each frame, looks back over the whole history since the last flip.
    fn slow(frames: &[(f64, f64)]) -> Vec<bool> {
        let (mut on, mut start, mut states) = (false, 0, Vec::new());
        for (i, &(time, _)) in frames.iter().enumerate() {
            let asks = |v: f64| if on { v <= LEVELS.off } else { v >= LEVELS.on };
            let run = frames[start..=i].iter().rev().take_while(|f| asks(f.1)).count();
            let needed = if on { LEVELS.off_for } else { LEVELS.on_for };
            if run > 0 && time - frames[i + 1 - run].0 + 1e-9 >= needed {
                (on, start) = (!on, i + 1);
            }
            states.push(on);
        }
        states
    }

    proptest! {
        #[test]
        fn it_is_on_as_the_whole_history_says(
            steps in proptest::collection::vec((0.05..0.9_f64, 0.0..1.0_f64), 0..80),
            smooth in 1..12_usize,
        ) {
            let mut time = 0.0;
            // Runs of one value, so that it holds long enough to flip now and then.
            let frames: Vec<_> = (0..steps.len()).map(|i| {
                time += steps[i].0;
                (time, steps[i / smooth * smooth].1)
            }).collect();
            let mut switch = Switch::default();
            let states: Vec<_> = frames.iter().map(|&(time, value)| {
                let before = switch.is_on();
                let flip = switch.update(value, time, &LEVELS);
                assert_eq!(flip.is_some(), before != switch.is_on());
                switch.is_on()
            }).collect();
            prop_assert_eq!(states, slow(&frames));
        }
    }

    #[test]
    fn between_the_levels_it_stays_as_it_is() {
        let levels = Levels { on_for: 0.0, off_for: 0.0, ..LEVELS };
        let mut switch = Switch::default();
        let flips = [0.5, 0.6, 0.5, 0.31, 0.3, 0.5].map(|v| switch.update(v, 0.0, &levels));
        assert_eq!(flips, [None, Some(Flip::On), None, None, Some(Flip::Off), None]);
    }
}
