//! The latency that an element answers to a query.

use std::collections::VecDeque;
use std::time::Duration;

/// Frames that are looked at.
const WINDOW: usize = 128;
/// Frames after which the first figure is given: the very first ones load code and memory.
const FIRST: usize = 8;
/// A change below this is not worth a new distribution of latency.
const STEP: Duration = Duration::from_millis(1);

/// Watches for how long frames are held.
#[derive(Debug, Default)]
pub struct LatencyMeter {
    recent: VecDeque<Duration>,
    seen: usize,
    reported: Duration,
}

impl LatencyMeter {
    /// Takes note of one frame. `true` when the latency to report has grown.
    pub fn note(&mut self, held: Duration) -> bool {
        self.seen += 1;
        if self.seen == 1 {
            return false;
        }
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(held);
        if self.seen < FIRST || !self.seen.is_multiple_of(FIRST) {
            return false;
        }
        let mut sorted: Vec<_> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        // A single hiccup in a while must not delay everything after it for good.
        let rank = (sorted.len() * 19).div_ceil(20).saturating_sub(1);
        let measured = sorted.get(rank).copied().unwrap_or_default();
        let grown = measured > self.reported + STEP + self.reported / 10;
        if grown {
            self.reported = measured;
        }
        grown
    }

    /// What to add to the latency of the elements before.
    pub fn reported(&self) -> gst::ClockTime {
        gst::ClockTime::try_from(self.reported).unwrap_or(gst::ClockTime::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_follows_the_load_upwards_but_no_single_hiccup() {
        let ms = Duration::from_millis;
        let mut meter = LatencyMeter::default();
        assert!(!meter.note(ms(900)));
        assert_eq!((0..40).filter(|_| meter.note(ms(20))).count(), 1);
        assert_eq!(meter.reported(), gst::ClockTime::from_mseconds(20));
        assert!(!meter.note(ms(500)));
        assert_eq!((0..40).filter(|_| meter.note(ms(20))).count(), 0);
        assert!((0..80).filter(|_| meter.note(ms(50))).count() > 0);
        assert_eq!(meter.reported(), gst::ClockTime::from_mseconds(50));
    }
}
