//! One sequence of `eval davis`: checked, carried, scored.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use conceptseg::datasets::davis::{DavisFrame, DavisSequence};
use conceptseg::embed::{EmbeddingMap, FrameEmbedder, InputSize, Model};
use conceptseg::frame::FrameView;
use conceptseg::labels::LabelMap;
use conceptseg::metrics::counts::FrameCounts;
use conceptseg::metrics::davis::{FrameScorer, Layout, MIN_FRAMES, SequenceScore};
use conceptseg::propagate::{MaskMap, PropagationConfig, Propagator};
use conceptseg::stream::StageTimes;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::setting::Setting;

/// Bytes of propagation memory from which on further settings wait for another pass.
const MAX_BYTES: usize = 2 << 30;

/// A sequence that is ready to run.
#[derive(Debug)]
pub struct Prepared {
    pub sequence: DavisSequence,
    scorer: FrameScorer,
    /// Object ids of the first annotation.
    first: LabelMap,
}

/// Finds out whether a sequence whose files fit together can be scored: reads all annotations.
pub fn prepare(sequence: DavisSequence, layout: Option<Layout>) -> Result<Prepared> {
    ensure!(
        sequence.frames.len() >= MIN_FRAMES,
        "the sequence {} has {} frames; at least {MIN_FRAMES} are needed because the first and \
         the last are not evaluated",
        sequence.name,
        sequence.frames.len()
    );
    let path = &sequence.frames[0].annotation;
    let annotation = LabelMap::read_png(path)?;
    let scorer = FrameScorer::new(&annotation, layout);
    ensure!(
        scorer.objects() > 0,
        "{} holds no object to carry; leave the sequence {} out by naming the others",
        path.display(),
        sequence.name
    );
    let first = scorer.layout().object_ids(&annotation);
    ensure!(
        first.data.iter().any(|&id| id != 0),
        "{} holds no object in the 2016 layout; choose another --layout",
        path.display()
    );
    // Ids that the first annotation does not have are no objects and stop nothing, here as in
    // the official tool. In order, so that the error does not depend on timing.
    let rest: Vec<Result<(), _>> = sequence.frames[1..]
        .par_iter()
        .map(|frame| LabelMap::read_png(&frame.annotation).map(drop))
        .collect();
    rest.into_iter().collect::<Result<(), _>>()?;
    Ok(Prepared { sequence, scorer, first })
}

impl Prepared {
    /// How its masks are stored.
    pub fn layout(&self) -> Layout {
        self.scorer.layout()
    }

    /// Whether the frame's masks count.
    fn is_scored(&self, index: usize) -> bool {
        index != 0 && index + 1 != self.sequence.frames.len()
    }

    fn score(&self, frame: &DavisFrame, annotation: &LabelMap, mask: &LabelMap) -> Result<Counts> {
        // The mask is no file; the frame stands for it.
        let counts = self.scorer.score(annotation, &frame.annotation, mask, &frame.image)?;
        Ok((frame.name.clone(), counts))
    }
}

/// A frame's name, and its counts object by object.
type Counts = (String, Vec<FrameCounts>);

/// Scores the first mask, held still, and writes it to `out` as the mask of every frame.
pub fn hold_still(
    prepared: &Prepared,
    out: Option<&Path>,
    tick: &(dyn Fn(u64) + Sync),
) -> Result<SequenceScore> {
    let mut counts = Vec::new();
    for (index, frame) in prepared.sequence.frames.iter().enumerate() {
        if let Some(out) = out {
            prepared.first.write_png(&out.join(format!("{}.png", frame.name)))?;
        }
        if prepared.is_scored(index) {
            let annotation = LabelMap::read_png(&frame.annotation)?;
            counts.push(prepared.score(frame, &annotation, &prepared.first)?);
        }
        tick(1);
    }
    Ok(SequenceScore::from_frames(&prepared.scorer, counts))
}

/// Carries the first mask through the sequence, scores the masks and writes them to `out`.
pub fn evaluate(
    prepared: &Prepared,
    model: &Arc<Model>,
    setting: &Setting,
    out: Option<&Path>,
    speed: &mut Speed,
    tick: &(dyn Fn(u64) + Sync),
) -> Result<SequenceScore> {
    let pass = Pass { prepared, model, input: setting.input, out, max_bytes: MAX_BYTES, tick };
    let mut scores = pass.run(&[&setting.propagation], speed)?;
    scores.pop().context("a pass without settings")
}

/// Scores the sequence with each of `settings`, in their order. Frames go through the network
/// once for each size of its input, as long as the memory of the propagation stays in bounds.
pub fn evaluate_all(
    prepared: &Prepared,
    model: &Arc<Model>,
    settings: &[Setting],
    tick: &(dyn Fn(u64) + Sync),
) -> Result<Vec<SequenceScore>> {
    evaluate_within(prepared, model, settings, MAX_BYTES, tick)
}

fn evaluate_within(
    prepared: &Prepared,
    model: &Arc<Model>,
    settings: &[Setting],
    max_bytes: usize,
    tick: &(dyn Fn(u64) + Sync),
) -> Result<Vec<SequenceScore>> {
    let mut scores: Vec<Option<SequenceScore>> = settings.iter().map(|_| None).collect();
    // Each pass takes the first setting that is left and all that see the same pixels.
    while let Some(next) = scores.iter().position(Option::is_none) {
        let input = settings[next].input;
        let same: Vec<usize> = (next..settings.len())
            .filter(|&i| scores[i].is_none() && settings[i].input == input)
            .collect();
        let configs: Vec<&PropagationConfig> =
            same.iter().map(|&i| &settings[i].propagation).collect();
        let pass = Pass { prepared, model, input, out: None, max_bytes, tick };
        let done = pass.run(&configs, &mut Speed::default())?;
        for (i, score) in same.into_iter().zip(done) {
            scores[i] = Some(score);
        }
    }
    Ok(scores.into_iter().flatten().collect())
}

/// One pass through a sequence.
struct Pass<'a> {
    prepared: &'a Prepared,
    model: &'a Arc<Model>,
    input: InputSize,
    /// Where the masks of the first setting go.
    out: Option<&'a Path>,
    max_bytes: usize,
    /// Called after each frame with the number of masks that were made.
    tick: &'a (dyn Fn(u64) + Sync),
}

/// The masks of one setting.
struct Tracker {
    propagator: Propagator,
    masks: MaskMap,
    /// The present masks as the scorer takes them.
    mask: LabelMap,
    counts: Vec<Counts>,
}

impl Tracker {
    fn step(&mut self, map: &EmbeddingMap) -> Result<()> {
        let (width, height) = (self.mask.width, self.mask.height);
        self.propagator.step(map, width, height, &mut self.masks)?;
        self.mask.data.clone_from(&self.masks.labels);
        Ok(())
    }
}

impl Pass<'_> {
    /// The scores with the first of `configs`, at least one of them, as many as fit into memory.
    fn run(&self, configs: &[&PropagationConfig], speed: &mut Speed) -> Result<Vec<SequenceScore>> {
        let mut embedder = FrameEmbedder::new(Arc::clone(self.model));
        let mut trackers = Vec::new();
        for (index, frame) in self.prepared.sequence.frames.iter().enumerate() {
            self.embed(&mut embedder, frame, speed)?;
            let start = Instant::now();
            if index == 0 {
                trackers = self.start(configs, embedder.map())?;
            } else {
                let map = embedder.map();
                trackers.par_iter_mut().try_for_each(|tracker| tracker.step(map)).with_context(
                    || format!("cannot carry the masks to the frame {}", frame.image.display()),
                )?;
            }
            speed.stages.propagation += start.elapsed();
            speed.frames += 1;
            if let (Some(out), Some(tracker)) = (self.out, trackers.first()) {
                tracker.mask.write_png(&out.join(format!("{}.png", frame.name)))?;
            }
            if self.prepared.is_scored(index) {
                let annotation = LabelMap::read_png(&frame.annotation)?;
                trackers.par_iter_mut().try_for_each(|tracker| {
                    tracker.counts.push(self.prepared.score(frame, &annotation, &tracker.mask)?);
                    anyhow::Ok(())
                })?;
            }
            (self.tick)(trackers.len() as u64);
        }
        let scorer = &self.prepared.scorer;
        Ok(trackers.into_iter().map(|t| SequenceScore::from_frames(scorer, t.counts)).collect())
    }

    fn embed(
        &self,
        embedder: &mut FrameEmbedder,
        frame: &DavisFrame,
        speed: &mut Speed,
    ) -> Result<()> {
        let path = frame.image.display();
        let image = image::open(&frame.image)
            .with_context(|| format!("cannot decode the frame {path}"))?
            .into_rgb8();
        let view = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
        let start = Instant::now();
        let failed = || format!("cannot process the frame {path}");
        embedder.prepare(&view, self.input).with_context(failed)?;
        let prepared = start.elapsed();
        embedder.embed().with_context(failed)?;
        speed.stages.preprocess += prepared;
        speed.stages.network += start.elapsed().saturating_sub(prepared);
        Ok(())
    }

    fn start(&self, configs: &[&PropagationConfig], map: &EmbeddingMap) -> Result<Vec<Tracker>> {
        let mut trackers = Vec::new();
        let mut bytes = 0;
        for &config in configs {
            let mut propagator = Propagator::new(config.clone());
            propagator.start(map, &self.prepared.first)?;
            bytes += propagator.memory_bytes();
            let mask = self.prepared.first.clone();
            trackers.push(Tracker {
                propagator,
                masks: MaskMap::default(),
                mask,
                counts: Vec::new(),
            });
            if bytes > self.max_bytes {
                break;
            }
        }
        Ok(trackers)
    }
}

/// What the processing has taken so far.
#[derive(Debug, Default)]
pub struct Speed {
    frames: u32,
    stages: StageTimes,
}

impl Speed {
    fn total(&self) -> Duration {
        self.stages.preprocess + self.stages.network + self.stages.propagation
    }

    /// Mean milliseconds a frame.
    fn mean_ms(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e3 / f64::from(self.frames.max(1))
    }

    fn frames_per_second(&self) -> f64 {
        f64::from(self.frames) / self.total().as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Frames that were processed.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    pub fn json(&self) -> Value {
        json!({
            "frames": self.frames,
            "frames_per_second": self.frames_per_second(),
            "mean_ms": {
                "preprocess": self.mean_ms(self.stages.preprocess),
                "network": self.mean_ms(self.stages.network),
                "propagation": self.mean_ms(self.stages.propagation),
                "total": self.mean_ms(self.total()),
            },
        })
    }

    pub fn text(&self) -> String {
        format!(
            "{} frames at {:.2} frames per second; mean per frame: preprocess {:.1} ms, network \
             {:.1} ms, propagation {:.1} ms, all {:.1} ms",
            self.frames,
            self.frames_per_second(),
            self.mean_ms(self.stages.preprocess),
            self.mean_ms(self.stages.network),
            self.mean_ms(self.stages.propagation),
            self.mean_ms(self.total()),
        )
    }
}

#[cfg(test)]
mod tests {
    use conceptseg::datasets::davis::DavisDataset;

    use super::*;
    use crate::eval::davis::tests::{dataset, tiny};
    use crate::eval::setting::{ProtocolArg, SettingArgs};

    fn one(frames: u32) -> (tempfile::TempDir, Prepared) {
        let root = dataset(frames, 1);
        let dataset = DavisDataset::open(root.path(), "480p", None).unwrap();
        let prepared = prepare(dataset.sequences[0].clone(), None).unwrap();
        (root, prepared)
    }

    #[test]
    fn a_still_mask_loses_what_moves() {
        let (_root, prepared) = one(4);
        let score = hold_still(&prepared, None, &|_| ()).unwrap();
        // Moved by one and by two of its two columns.
        assert_eq!(score.objects[0].region(), [1.0 / 3.0, 0.0]);
    }

    #[test]
    fn many_settings_together_score_as_each_alone_within_any_memory() {
        let (_root, prepared) = one(5);
        let (_bundle, model) = tiny();
        let setting = |protocol, side, topk| {
            let base = SettingArgs { protocol: Some(protocol), ..SettingArgs::default() };
            SettingArgs { short_side: Some(side), topk: Some(topk), ..base }.setting()
        };
        let settings = [
            setting(ProtocolArg::B, 64, 1),
            setting(ProtocolArg::A, 64, 2),
            setting(ProtocolArg::B, 32, 1),
            setting(ProtocolArg::C, 64, 3),
            setting(ProtocolArg::B, 64, 4),
        ];
        let alone: Vec<SequenceScore> = settings
            .iter()
            .map(|s| evaluate(&prepared, &model, s, None, &mut Speed::default(), &|_| ()).unwrap())
            .collect();
        for max_bytes in [0, MAX_BYTES] {
            let masks = std::sync::atomic::AtomicU64::new(0);
            let tick = |n| {
                masks.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
            };
            let together = evaluate_within(&prepared, &model, &settings, max_bytes, &tick).unwrap();
            assert_eq!(together, alone);
            assert_eq!(masks.into_inner(), 25);
        }
    }

    #[test]
    fn the_same_masks_come_from_a_live_stream() {
        use conceptseg::stream::{StreamConfig, StreamState};
        let (_root, prepared) = one(4);
        let (_bundle, model) = tiny();
        let setting = SettingArgs { short_side: Some(64), ..SettingArgs::default() }.setting();
        let out = tempfile::tempdir().unwrap();
        let mut speed = Speed::default();
        let score =
            evaluate(&prepared, &model, &setting, Some(out.path()), &mut speed, &|_| ()).unwrap();
        assert_eq!((score.frames.len(), score.objects.len(), speed.frames), (2, 1, 4));
        assert!(speed.frames_per_second() > 0.0 && speed.text().starts_with("4 frames at"));
        let config = StreamConfig { short_side: 64, concepts: false, ..StreamConfig::default() };
        let mut stream = StreamState::new(model, config);
        stream.set_instances(prepared.first.clone());
        for frame in &prepared.sequence.frames {
            let image = image::open(&frame.image).unwrap().into_rgb8();
            let view = FrameView::rgb(16, 8, image.as_raw()).unwrap();
            let masks = stream.process(&view).unwrap().masks.clone().unwrap();
            let written = LabelMap::read_png(&out.path().join(format!("{}.png", frame.name)));
            assert_eq!(written.unwrap().data, masks.labels);
        }
    }
}
