//! The monitor of one stream.

mod faults;

use std::sync::Arc;

use super::baseline::Pairs;
use super::camera::Watcher;
use super::config::MonitorConfig;
use super::drift::{Band, jensen_shannon};
use super::event::{Event, EventConcept, EventKind};
use super::hysteresis::{Flip, Switch};
use super::readings::{Readings, StreamStatus};
use super::reference::Reference;
use super::rules::RuleSet;
use super::thumbnail::Thumbnails;
use super::{MonitorError, Sighting};
use crate::frame::FrameView;
use crate::results::FrameRecord;
use crate::stream::FrameResult;

/// Most concepts that an event names.
const NAMED: usize = 5;
/// Pairs that wait to be told of; more at once are a new scene, which other events tell of.
const WAITING_PAIRS: usize = 64;
/// The least deviation of the logarithm of the sharpness; only its mean is used.
const SHARPNESS_FLOOR: f64 = 1e-3;

/// Watches one stream. All memory is taken at the start.
#[derive(Debug)]
pub struct StreamMonitor {
    stream: String,
    config: MonitorConfig,
    reference: Arc<Reference>,
    rules: Arc<RuleSet>,
    rule_switches: Vec<Switch>,
    readings: Readings,
    watcher: Watcher,
    thumbnails: Option<Thumbnails>,
    /// Logarithm of the usual sharpness.
    sharpness: Band,
    /// Area share of each concept in the frame at hand, `[K]`.
    shares: Vec<f64>,
    sightings: Vec<Sighting>,
    /// Concepts of the frame at hand that are present, rising.
    present: Vec<usize>,
    appeared: Vec<Switch>,
    /// Share of the time that each concept was present, over the last window, before its area
    /// began to change: what is told of must not count as its own history.
    history: Vec<f64>,
    /// Whether the concept is the subject of an event that is not over.
    told: Vec<bool>,
    pairs: Pairs,
    /// Pairs that were never seen before, and since when they are.
    waiting: Vec<(usize, usize, f64)>,
    switches: Switches,
    /// What the segments of the frame before were.
    fingerprint: Option<u64>,
    /// Time of the last frame, as given.
    last: Option<f64>,
    /// Seconds of watching; never falls, and pauses are cut short.
    clock: f64,
    /// Seconds since the last frame that was labelled: the next one stands for all of them.
    unmeasured: f64,
    frames: u64,
    number: u64,
    events: Vec<Event>,
}

#[derive(Debug, Default)]
struct Switches {
    novel: Switch,
    drifted: Switch,
    frozen: Switch,
    covered: Switch,
    blurred: Switch,
}

impl StreamMonitor {
    /// A monitor that has seen nothing yet.
    ///
    /// # Errors
    /// [`MonitorError::Settings`].
    pub fn new(
        stream: &str,
        reference: Arc<Reference>,
        rules: Arc<RuleSet>,
        config: MonitorConfig,
    ) -> Result<Self, MonitorError> {
        config.check()?;
        let k = reference.count();
        let longest = config.windows.last().copied().unwrap_or(1.0);
        Ok(Self {
            stream: stream.to_owned(),
            rule_switches: vec![Switch::default(); rules.len()],
            rules,
            readings: Readings::new(&config.windows, k, config.drift_floor),
            watcher: Watcher::default(),
            thumbnails: config.thumbnail.map(Thumbnails::new),
            sharpness: Band::new(longest, SHARPNESS_FLOOR),
            shares: vec![0.0; k],
            sightings: Vec::new(),
            present: Vec::new(),
            appeared: vec![Switch::default(); k],
            history: vec![0.0; k],
            told: vec![false; k],
            pairs: reference.pairs().clone(),
            waiting: Vec::with_capacity(WAITING_PAIRS),
            switches: Switches::default(),
            fingerprint: None,
            last: None,
            clock: 0.0,
            unmeasured: 0.0,
            frames: 0,
            number: 0,
            events: Vec::new(),
            reference,
            config,
        })
    }

    /// Shows it the result of a frame. `frame` are its pixels, where they are at hand: with them
    /// camera faults are told better, and events can carry thumbnails. `time` is in seconds; it
    /// may have any start, and where it falls or pauses, the monitor goes on from there.
    ///
    /// Answers the events of this frame. Frames that were not labelled with concepts are
    /// looked at for camera faults only.
    pub fn observe(
        &mut self,
        result: &FrameResult,
        frame: Option<&FrameView<'_>>,
        time: f64,
    ) -> &[Event] {
        let sightings = result.concepts.is_some().then(|| Sighting::of_result(result));
        self.observe_sightings(result.index, sightings, frame, time)
    }

    /// Shows it the concepts of a frame by themselves, as [`StreamMonitor::observe`] does a
    /// result. `index` is the number of the frame; `sightings` is `None` where nothing new is known
    /// of it.
    pub fn observe_sightings(
        &mut self,
        index: u64,
        sightings: Option<impl Iterator<Item = Sighting>>,
        frame: Option<&FrameView<'_>>,
        time: f64,
    ) -> &[Event] {
        let labelled = sightings.is_some();
        self.sightings.clear();
        self.sightings.extend(sightings.into_iter().flatten());
        self.step(index, labelled, frame, time)
    }

    /// Shows it a line of a results file, as [`StreamMonitor::observe`] does a result.
    pub fn observe_record(&mut self, record: &FrameRecord, time: f64) -> &[Event] {
        let sightings = (!record.concepts.is_empty()).then(|| Sighting::of_record(record));
        self.observe_sightings(record.frame, sightings, None, time)
    }

    /// The name of the stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// What was measured.
    pub fn readings(&self) -> &Readings {
        &self.readings
    }

    /// Frames so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// What the stream shows at present.
    pub fn status(&self) -> StreamStatus {
        let readings = &self.readings;
        let windows = self.config.windows.len();
        let rules = self.rules.names().zip(&self.rule_switches);
        let rules = rules.filter(|(_, switch)| switch.is_on());
        StreamStatus {
            stream: self.stream.clone(),
            time: self.last.unwrap_or(0.0),
            frames: self.frames,
            warming_up: self.clock < self.config.warm_up,
            novelty: (0..windows).map(|w| readings.novelty.mean(w, 0)).collect(),
            drift: readings.drift,
            drift_usual: readings.drift_band.mean().map(|m| [m, readings.drift_band.deviation()]),
            look: readings.look.map(|l| [l.brightness, l.contrast, l.sharpness]),
            active: readings
                .active()
                .map(str::to_owned)
                .chain(rules.map(|(name, _)| name.to_owned()))
                .collect(),
            windows: self.config.windows.clone(),
            concepts: readings.concepts(&self.reference, windows),
        }
    }

    /// Bytes that it keeps for its statistics.
    pub fn memory_bytes(&self) -> usize {
        let Readings { area, presence, novelty, .. } = &self.readings;
        area.memory_bytes()
            + presence.memory_bytes()
            + novelty.memory_bytes()
            + self.pairs.memory_bytes()
            + self.shares.capacity() * size_of::<f64>()
            + self.sightings.capacity() * size_of::<Sighting>()
            + self.present.capacity() * size_of::<usize>()
            + self.appeared.capacity() * size_of::<Switch>()
            + self.history.capacity() * size_of::<f64>()
            + self.told.capacity()
            + self.waiting.capacity() * size_of::<(usize, usize, f64)>()
            + self.events.capacity() * size_of::<Event>()
    }

    fn step(
        &mut self,
        index: u64,
        labelled: bool,
        frame: Option<&FrameView<'_>>,
        time: f64,
    ) -> &[Event] {
        self.events.clear();
        let time = if time.is_finite() { time } else { self.last.unwrap_or(0.0) };
        let passed = self.last.map_or(0.0, |last| (time - last).clamp(0.0, self.config.max_gap));
        self.last = Some(time);
        self.clock += passed;
        self.frames += 1;
        self.unmeasured = (self.unmeasured + passed).min(self.config.max_gap);
        let since = if labelled { std::mem::take(&mut self.unmeasured) } else { 0.0 };
        if labelled {
            self.measure(since);
        }
        self.readings.look = frame.map(|frame| self.watcher.look(frame));
        self.watch_camera(labelled, passed);
        if labelled {
            self.watch_concepts(since);
        }
        self.watch_rules();
        for event in &mut self.events {
            self.number += 1;
            (event.number, event.time, event.frame) = (self.number, time, index);
        }
        if let (false, Some(thumbnails), Some(frame)) =
            (self.events.is_empty(), &mut self.thumbnails, frame)
        {
            let picture = thumbnails.draw(frame);
            for event in &mut self.events {
                event.thumbnail.clone_from(&picture);
            }
        }
        &self.events
    }

    /// Brings the windows up to the frame at hand.
    fn measure(&mut self, passed: f64) {
        self.shares.fill(0.0);
        let (mut novel, mut all) = (0.0, 0.0);
        for sighting in &self.sightings {
            let Some(lead) = self.reference.group(sighting.concept) else { continue };
            self.shares[lead] += sighting.share;
            if self.reference.is_watched(lead) {
                all += sighting.share;
                if self.reference.is_novel(sighting.concept, sighting.similarity) {
                    novel += sighting.share;
                }
            }
        }
        let min = self.config.min_share;
        self.present.clear();
        self.present.extend((0..self.shares.len()).filter(|&k| self.shares[k] >= min.max(1e-9)));
        let readings = &mut self.readings;
        readings.area.add(passed, &self.shares.iter().copied());
        let presence = self.shares.iter().map(|&s| f64::from(u8::from(s >= min.max(1e-9))));
        readings.presence.add(passed, &presence);
        let novelty = if all > 0.0 { novel / all } else { 0.0 };
        readings.novelty.add(passed, &std::iter::once(novelty));
        let watched = (0..self.shares.len())
            .map(|k| if self.reference.is_watched(k) { readings.area.mean(0, k) } else { 0.0 });
        readings.drift = jensen_shannon(watched, self.reference.area());
    }

    fn watch_concepts(&mut self, passed: f64) {
        let warm = self.clock >= self.config.warm_up;
        if self.readings.covered {
            // One cause, one event: what a covered lens does to concepts is not told.
            self.switches.novel.hold();
            self.switches.drifted.hold();
            self.waiting.clear();
            return;
        }
        self.watch_presence(warm);
        self.watch_pairs(warm);

        let novelty = self.readings.novelty.mean(0, 0);
        if warm || self.switches.novel.is_on() {
            let flip = self.switches.novel.update(novelty, self.clock, &self.config.novel);
            let concepts = if flip == Some(Flip::On) { self.novel_concepts() } else { Vec::new() };
            self.readings.novel = self.switches.novel.is_on();
            self.tell_flip(flip, EventKind::Novel, novelty, &concepts, |value| {
                format!("{:.0} % of the picture looks like nothing that was learnt", value * 100.0)
            });
        }

        let score = self.readings.drift_band.score(self.readings.drift);
        if warm || self.switches.drifted.is_on() {
            let flip = self.switches.drifted.update(score, self.clock, &self.config.drift);
            let concepts =
                if flip == Some(Flip::On) { self.drifted_concepts() } else { Vec::new() };
            self.readings.drifted = self.switches.drifted.is_on();
            self.tell_flip(flip, EventKind::Drifted, score, &concepts, |value| {
                format!("the mixture of concepts is {value:.1} deviations further from normal than usual")
            });
        }
        // The band is of undisturbed times: a drift must not become usual while it is watched.
        let Readings { drifted, frozen, blurred, .. } = self.readings;
        let beyond = warm && score >= self.config.drift.on;
        if !(drifted || frozen || blurred || beyond) {
            self.readings.drift_band.learn(self.readings.drift, passed);
        }
    }

    /// Concepts that appear and vanish.
    fn watch_presence(&mut self, warm: bool) {
        let last = self.config.windows.len() - 1;
        for id in 0..self.shares.len() {
            if !self.reference.is_watched(id) {
                continue;
            }
            let area = self.readings.area.mean(0, id);
            let flip = self.appeared[id].update(area, self.clock, &self.config.appear);
            let history = self.history[id];
            if !self.appeared[id].is_waiting() {
                self.history[id] = self.readings.presence.mean(last, id);
            }
            let (Some(flip), true) = (flip, warm) else { continue };
            let rare = history.max(self.reference.occurrence(id)) < self.config.rare;
            let (name, told) = (self.reference.call(id), self.told[id]);
            let (kind, from, message) = match flip {
                Flip::On if told => (
                    EventKind::Recovered,
                    Some(EventKind::Vanished),
                    format!("{name} is back in the picture"),
                ),
                Flip::On if rare || self.reference.is_alert(id) => {
                    (EventKind::Appeared, None, format!("{name} has appeared"))
                }
                Flip::Off if told => (
                    EventKind::Recovered,
                    Some(EventKind::Appeared),
                    format!("{name} is gone again"),
                ),
                Flip::Off if history > self.config.usual => {
                    (EventKind::Vanished, None, format!("{name}, usually there, has vanished"))
                }
                Flip::On | Flip::Off => continue,
            };
            self.told[id] = !told;
            self.tell(kind, from, None, area, vec![self.reference.concept(id)], message);
        }
    }

    /// Pairs that were never seen together: neither in the baseline nor in this stream.
    fn watch_pairs(&mut self, warm: bool) {
        let standing = |id: &usize| self.appeared[*id].is_on() && self.reference.is_watched(*id);
        let ids: Vec<usize> = self.present.iter().copied().filter(standing).collect();
        let together = |a: usize, b: usize| ids.contains(&a) && ids.contains(&b);
        self.waiting.retain(|&(a, b, _)| together(a, b));
        for (i, &a) in ids.iter().enumerate() {
            for &b in &ids[i + 1..] {
                if self.pairs.contains(a, b) {
                    continue;
                }
                if !warm {
                    self.pairs.insert(a, b);
                } else if self.waiting.len() < WAITING_PAIRS
                    && !self.waiting.iter().any(|&(x, y, _)| (x, y) == (a, b))
                {
                    self.waiting.push((a, b, self.clock));
                }
            }
        }
        while let Some(at) = self
            .waiting
            .iter()
            .position(|&(.., since)| self.clock - since + 1e-9 >= self.config.pair_for)
        {
            let (a, b, _) = self.waiting.swap_remove(at);
            self.pairs.insert(a, b);
            let (first, second) = (self.reference.call(a), self.reference.call(b));
            let concepts = vec![self.reference.concept(a), self.reference.concept(b)];
            let area = self.shares[a].min(self.shares[b]);
            let message = format!("{first} and {second} were never seen together before");
            self.tell(EventKind::Pair, None, None, area, concepts, message);
        }
    }

    fn watch_rules(&mut self) {
        let rules = Arc::clone(&self.rules);
        for (at, rule) in rules.iter().enumerate() {
            let value = f64::from(u8::from(rule.holds(&self.readings)));
            let levels = rule.levels();
            let Some(flip) = self.rule_switches[at].update(value, self.clock, &levels) else {
                continue;
            };
            let (kind, from, message) = match flip {
                Flip::On => (EventKind::Rule, None, rule.message().to_owned()),
                Flip::Off => (
                    EventKind::Recovered,
                    Some(EventKind::Rule),
                    format!("over: {}", rule.message()),
                ),
            };
            let named = rule.concepts().iter().take(NAMED);
            let concepts = named.map(|&id| self.reference.concept(id)).collect();
            self.tell(kind, from, Some(rule.name().to_owned()), value, concepts, message);
        }
    }

    /// The concepts that most of the novel area of the frame goes to.
    fn novel_concepts(&self) -> Vec<EventConcept> {
        let mut areas = vec![0.0; self.shares.len()];
        for sighting in &self.sightings {
            if self.reference.is_novel(sighting.concept, sighting.similarity)
                && let Some(lead) = self.reference.group(sighting.concept)
            {
                areas[lead] += sighting.share;
            }
        }
        self.largest(&areas)
    }

    /// The concepts that changed most against the last window.
    fn drifted_concepts(&self) -> Vec<EventConcept> {
        let last = self.config.windows.len() - 1;
        let area = &self.readings.area;
        let change = |id| (area.mean(0, id) - area.mean(last, id)).abs();
        let changes: Vec<f64> = (0..self.shares.len()).map(change).collect();
        self.largest(&changes)
    }

    fn largest(&self, values: &[f64]) -> Vec<EventConcept> {
        let watched = |&id: &usize| self.reference.is_watched(id) && values[id] > 0.01;
        let mut ids: Vec<usize> = (0..values.len()).filter(watched).collect();
        ids.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        ids.truncate(NAMED);
        ids.into_iter().map(|id| self.reference.concept(id)).collect()
    }

    fn tell_flip(
        &mut self,
        flip: Option<Flip>,
        kind: EventKind,
        value: f64,
        concepts: &[EventConcept],
        message: impl Fn(f64) -> String,
    ) {
        match flip {
            Some(Flip::On) => self.tell(kind, None, None, value, concepts.to_vec(), message(value)),
            Some(Flip::Off) => {
                let text = format!("no longer {}", kind.as_str());
                self.tell(EventKind::Recovered, Some(kind), None, value, Vec::new(), text);
            }
            None => {}
        }
    }

    fn tell(
        &mut self,
        kind: EventKind,
        from: Option<EventKind>,
        rule: Option<String>,
        value: f64,
        concepts: Vec<EventConcept>,
        message: String,
    ) {
        // Number, time, frame and picture are the same for all events of a frame; they come last.
        self.events.push(Event {
            stream: self.stream.clone(),
            number: 0,
            kind,
            time: 0.0,
            unix_ms: 0,
            frame: 0,
            from,
            rule,
            concepts,
            value,
            message,
            thumbnail: None,
        });
    }
}
