//! Batches of view pairs, prepared by background threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::augment::{Renderer, ViewParams, ViewPlan};
use super::dataset::PreparedImage;
use super::footage::{self, Clips, FootageConfig};
use super::{DataError, Dataset, SegmentMap};

/// How batches are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderConfig {
    /// Images per batch; each gives two views.
    pub batch: usize,
    /// Side of a view, in pixels.
    pub crop: u32,
    /// What views are drawn from.
    pub views: ViewParams,
    /// Whether second views show neighbouring frames.
    pub footage: FootageConfig,
    /// Mean of each channel that the network expects, on values in 0..1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel that the network expects, on values in 0..1.
    pub std: [f32; 3],
    /// Seed of everything random.
    pub seed: u64,
    /// Background threads; the batches do not depend on their number.
    pub threads: usize,
    /// Index of the first batch: 0, or the step that a checkpoint continues from.
    pub first_batch: u64,
    /// Which part of each joint batch is made.
    #[serde(default)]
    pub part: BatchPart,
}

/// One of the equal parts, of [`LoaderConfig::batch`] images each, of a joint batch: the parts
/// in their order are the batch of `of` times as many images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchPart {
    /// Which part, below `of`.
    pub index: usize,
    /// Number of parts.
    pub of: usize,
}

impl Default for BatchPart {
    /// The whole.
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl LoaderConfig {
    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), DataError> {
        self.views.validate()?;
        self.footage.validate()?;
        let check = DataError::check;
        check((1..=4096).contains(&self.batch), "batch", &self.batch, "a number in 1..=4096")?;
        let part = self.part;
        check(part.index < part.of, "part", &part, "one of the parts there are")?;
        check((8..=4096).contains(&self.crop), "crop", &self.crop, "a number in 8..=4096")?;
        check((1..=256).contains(&self.threads), "threads", &self.threads, "a number in 1..=256")?;
        check(
            self.mean.iter().all(|mean| mean.is_finite()),
            "mean",
            &self.mean,
            "three finite numbers",
        )?;
        check(
            self.std.iter().all(|std| std.is_finite() && *std > 0.0),
            "std",
            &self.std,
            "three positive numbers",
        )
    }
}

/// Two views of each of B images.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Side of a view, in pixels.
    pub size: u32,
    /// `[2B, 3, size, size]`, normalised; the views of image b are entries b and B + b.
    pub images: Vec<f32>,
    /// `[2B, size, size]`: segments, unique within an image, [`super::VOID`] for none.
    pub ids: Vec<u16>,
    /// `[B]`: indices into the data set, all different.
    pub image_index: Vec<u32>,
    /// `[B]`: what the second view of each image shows: the image itself or a neighbouring
    /// frame, whose ids are those of the image wherever the segment is the same.
    pub second_index: Vec<u32>,
    /// Further views of the same images.
    pub extra: ExtraViews,
}

/// Further, smaller views of each of the B images of a batch, with ids as in the other views.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExtraViews {
    /// Side of a view, in pixels.
    pub size: u32,
    /// Views per image E; those with an odd number show what the second view shows.
    pub count: usize,
    /// `[E B, 3, size, size]`, normalised; view e of image b is entry e B + b.
    pub images: Vec<f32>,
    /// `[E B, size, size]`.
    pub ids: Vec<u16>,
}

/// Makes any batch by its index: a pure function of the data set, the configuration and the
/// index.
pub struct BatchMaker {
    dataset: Arc<Dataset>,
    config: LoaderConfig,
    renderer: Renderer,
    clips: Option<Clips>,
    /// The order of the images in the epoch that was asked for last.
    order: (u64, Vec<u32>),
}

/// What a random stream is for, so that no two share their numbers.
#[derive(Clone, Copy)]
enum Stream {
    Order,
    View,
    Neighbour,
}

/// The random stream of `parts` (such as batch, image and view) under `seed`.
fn stream(seed: u64, purpose: Stream, parts: &[u64]) -> Pcg64 {
    // The finaliser of SplitMix64 spreads neighbouring numbers over all 64 bits.
    let mix = |mut z: u64| {
        z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let start = mix(mix(seed) ^ purpose as u64);
    Pcg64::seed_from_u64(parts.iter().fold(start, |state, &part| mix(state ^ part)))
}

impl BatchMaker {
    /// # Errors
    /// [`DataError::Parameter`], [`DataError::TooFewImages`] when the data set has fewer images
    /// than a batch.
    pub fn new(dataset: Arc<Dataset>, config: LoaderConfig) -> Result<Self, DataError> {
        config.validate()?;
        let batch = config.batch.saturating_mul(config.part.of);
        if dataset.len() < batch {
            return Err(DataError::TooFewImages { batch, images: dataset.len() });
        }
        let order = (u64::MAX, Vec::new());
        let clips = (config.footage.max_distance > 0).then(|| Clips::new(&dataset));
        Ok(Self { dataset, config, renderer: Renderer::default(), clips, order })
    }

    /// Batches per pass over the images. What is left of a pass and fills no batch is dropped,
    /// so that the images of a batch are all different.
    pub fn batches_per_epoch(&self) -> u64 {
        (self.dataset.len() / (self.config.batch * self.config.part.of)) as u64
    }

    /// The images of batch `index`, or of this part of it.
    pub fn image_index(&mut self, index: u64) -> Vec<u32> {
        let (epoch, slot) = (index / self.batches_per_epoch(), index % self.batches_per_epoch());
        if self.order.0 != epoch {
            let mut images: Vec<u32> = (0..self.dataset.len() as u32).collect();
            images.shuffle(&mut stream(self.config.seed, Stream::Order, &[epoch]));
            self.order = (epoch, images);
        }
        let part = self.config.part;
        let start = (slot as usize * part.of + part.index) * self.config.batch;
        self.order.1[start..start + self.config.batch].to_vec()
    }

    /// Makes batch `index`.
    ///
    /// # Errors
    /// As [`Dataset::get`].
    pub fn make(&mut self, index: u64) -> Result<Batch, DataError> {
        let image_index = self.image_index(index);
        let params = [self.config.views.clone(), self.config.views.of_extra()];
        let count = params[0].extra;
        let (size, small) = (self.config.crop, if count > 0 { params[0].extra_size } else { 0 });
        let [area, small_area] = [size, small].map(|side| side as usize * side as usize);
        let all = image_index.len();
        let mut images = vec![0.0; 2 * all * 3 * area];
        let mut ids = vec![0; 2 * all * area];
        let mut extra = ExtraViews {
            size: small,
            count,
            images: vec![0.0; count * all * 3 * small_area],
            ids: vec![0; count * all * small_area],
        };
        let mut second_index = image_index.clone();
        let before = (self.config.part.index * self.config.batch) as u64;
        for (b, &image) in image_index.iter().enumerate() {
            let first = self.dataset.get(image as usize)?;
            let mut shown = [(&first.rgb, &first.segments); 2];
            let neighbour = self.neighbour(index, before + b as u64, image, &first)?;
            if let Some((frame, prepared, segments)) = &neighbour {
                second_index[b] = *frame;
                shown[1] = (&prepared.rgb, segments);
            }
            for v in 0..2 + count {
                let (rgb, segments) = shown[v % 2];
                let drawn = [index, before + b as u64, v as u64];
                let mut rng = stream(self.config.seed, Stream::View, &drawn);
                let (params, size) = if v < 2 { (&params[0], size) } else { (&params[1], small) };
                let plan = ViewPlan::draw(params, rgb.dimensions(), size, &mut rng);
                let view = self.renderer.render(rgb, segments, &plan)?;
                let (images, ids, area, entry) = if v < 2 {
                    (&mut images, &mut ids, area, v * all + b)
                } else {
                    (&mut extra.images, &mut extra.ids, small_area, (v - 2) * all + b)
                };
                ids[entry * area..(entry + 1) * area].copy_from_slice(&view.ids);
                let target = &mut images[entry * 3 * area..(entry + 1) * 3 * area];
                let planes = target.chunks_exact_mut(area).zip(view.pixels.chunks_exact(area));
                for (c, (target, pixels)) in planes.enumerate() {
                    let (mean, std) = (self.config.mean[c], self.config.std[c]);
                    for (value, pixel) in target.iter_mut().zip(pixels) {
                        *value = (pixel - mean) / std;
                    }
                }
            }
        }
        Ok(Batch { size, images, ids, image_index, second_index, extra })
    }

    /// The neighbouring frame that the second view of an image shows, with its segments as
    /// those of the image.
    fn neighbour(
        &self,
        index: u64,
        b: u64,
        image: u32,
        first: &PreparedImage,
    ) -> Result<Option<(u32, Arc<PreparedImage>, SegmentMap)>, DataError> {
        let Some(clips) = &self.clips else { return Ok(None) };
        let settings = &self.config.footage;
        let mut rng = stream(self.config.seed, Stream::Neighbour, &[index, b]);
        let Some(frame) = clips.neighbour(image, settings.max_distance, &mut rng) else {
            return Ok(None);
        };
        let second = self.dataset.get(frame as usize)?;
        let carried = footage::carry(first, &second, settings);
        Ok(carried.map(|segments| (frame, second, segments)))
    }
}

/// Batches that each thread may hold ready.
const READY_PER_THREAD: usize = 1;

/// An endless stream of batches. Dropping it ends its threads.
pub struct Loader {
    /// One queue per thread. Thread t makes batches t, t + T, t + 2T …, so that reading the
    /// queues in turn gives all batches in order whatever the threads do.
    queues: Vec<Receiver<Result<Batch, DataError>>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    next: usize,
    batches_per_epoch: u64,
}

impl Loader {
    /// Starts the threads.
    ///
    /// # Errors
    /// As [`BatchMaker::new`], and [`DataError::Thread`].
    pub fn new(dataset: &Arc<Dataset>, config: &LoaderConfig) -> Result<Self, DataError> {
        let mut loader = Self {
            queues: Vec::new(),
            threads: Vec::new(),
            stop: Arc::new(AtomicBool::new(false)),
            next: 0,
            batches_per_epoch: 0,
        };
        config.validate()?;
        for t in 0..config.threads {
            let maker = BatchMaker::new(Arc::clone(dataset), config.clone())?;
            loader.batches_per_epoch = maker.batches_per_epoch();
            let (sender, receiver) = sync_channel(READY_PER_THREAD);
            let stop = Arc::clone(&loader.stop);
            let first = config.first_batch.saturating_add(t as u64);
            let stride = config.threads;
            let thread = std::thread::Builder::new()
                .name(format!("loader-{t}"))
                .spawn(move || work(maker, &sender, &stop, first, stride))
                .map_err(DataError::Thread)?;
            loader.queues.push(receiver);
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// Batches per pass over the images.
    pub fn batches_per_epoch(&self) -> u64 {
        self.batches_per_epoch
    }

    /// The next batch; waits for it.
    ///
    /// # Errors
    /// What kept the batch from being made; [`DataError::WorkerStopped`] ever after.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        let batch = self.queues[self.next].recv().map_err(|_| DataError::WorkerStopped)??;
        self.next = (self.next + 1) % self.queues.len();
        Ok(batch)
    }
}

fn work(
    mut maker: BatchMaker,
    sender: &SyncSender<Result<Batch, DataError>>,
    stop: &AtomicBool,
    first: u64,
    stride: usize,
) {
    for index in (first..).step_by(stride) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let batch = maker.make(index);
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that waits for room in its queue wakes up when the queue goes.
        self.queues.clear();
        for thread in self.threads.drain(..) {
            // A panic of the thread has been reported as `WorkerStopped`.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DatasetConfig;
    use crate::data::dataset::tests::write_images;

    fn config(threads: usize) -> LoaderConfig {
        LoaderConfig {
            batch: 3,
            crop: 24,
            views: ViewParams::default(),
            footage: FootageConfig::default(),
            mean: [0.5; 3],
            std: [0.25; 3],
            seed: 11,
            threads,
            first_batch: 0,
            part: BatchPart::default(),
        }
    }

    fn dataset(count: usize) -> Arc<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_images(dir.path(), count);
        // The images stay in memory, so the folder may go.
        Arc::new(Dataset::load(paths, DatasetConfig::default(), &|_, _| ()).unwrap())
    }

    fn take(loader: &mut Loader, count: usize) -> Vec<Batch> {
        (0..count).map(|_| loader.next_batch().unwrap()).collect()
    }

    #[test]
    fn batches_depend_on_seed_and_index_alone() {
        let dataset = dataset(8);
        let one = take(&mut Loader::new(&dataset, &config(1)).unwrap(), 5);
        let three = take(&mut Loader::new(&dataset, &config(3)).unwrap(), 5);
        assert_eq!(one, three);
        let mut maker = BatchMaker::new(Arc::clone(&dataset), config(1)).unwrap();
        for index in [4, 0, 2] {
            assert_eq!(maker.make(index).unwrap(), one[index as usize]);
        }
        // A run that continues sees what the unbroken run would have seen.
        let later = LoaderConfig { first_batch: 3, ..config(2) };
        assert_eq!(take(&mut Loader::new(&dataset, &later).unwrap(), 2), one[3..]);
        let other = LoaderConfig { seed: 12, ..config(1) };
        assert_ne!(take(&mut Loader::new(&dataset, &other).unwrap(), 1), one[..1]);
    }

    #[test]
    fn parts_make_up_the_joint_batch() {
        let dataset = dataset(8);
        let joint = LoaderConfig { batch: 4, ..config(1) };
        let mut joint = BatchMaker::new(Arc::clone(&dataset), joint).unwrap();
        let mut parts = [0, 1].map(|index| {
            let part = BatchPart { index, of: 2 };
            let config = LoaderConfig { batch: 2, part, ..config(1) };
            BatchMaker::new(Arc::clone(&dataset), config).unwrap()
        });
        for index in [0, 1, 5] {
            let whole = joint.make(index).unwrap();
            let [first, second] = parts.each_mut().map(|part| part.make(index).unwrap());
            assert_eq!([first.image_index, second.image_index].concat(), whole.image_index);
            // The first views of all images come before the second ones.
            let views = |ids: &[u16]| ids.chunks(2 * 576).map(<[u16]>::to_vec).collect::<Vec<_>>();
            let (a, b, all) = (views(&first.ids), views(&second.ids), views(&whole.ids));
            assert_eq!([&a[0], &b[0], &a[1], &b[1]], [&all[0], &all[1], &all[2], &all[3]]);
        }
    }

    #[test]
    fn an_epoch_shows_no_image_twice() {
        let dataset = dataset(8);
        let mut maker = BatchMaker::new(dataset, config(1)).unwrap();
        assert_eq!(maker.batches_per_epoch(), 2);
        for epoch in 0..4 {
            let mut seen = maker.image_index(2 * epoch);
            seen.extend(maker.image_index(2 * epoch + 1));
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 6);
        }
        assert_ne!(maker.image_index(0), maker.image_index(2));
    }

    /// Frames of a disk that moves to the right by two pixels.
    fn clip(count: u32) -> Arc<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let paths = (0..count).map(|i| {
            let path = dir.path().join(format!("{i:03}.png"));
            let frame = image::RgbImage::from_fn(96, 64, |x, y| {
                let inside = (x as i32 - 30 - 2 * i as i32).pow(2) + (y as i32 - 32).pow(2) < 400;
                let grain = ((x * 37 + y * 91) % 23) as u8;
                image::Rgb(if inside { [220, 60, grain] } else { [40, grain, 150] })
            });
            frame.save(&path).unwrap();
            path
        });
        Arc::new(Dataset::load(paths.collect(), DatasetConfig::default(), &|_, _| ()).unwrap())
    }

    #[test]
    fn every_id_of_every_view_is_that_of_its_source_pixel() {
        let dataset = clip(6);
        let views = ViewParams { extra: 3, extra_size: 48, ..ViewParams::default() };
        let footage = FootageConfig { max_distance: 2, ..FootageConfig::default() };
        let settings = LoaderConfig { views, footage, ..config(1) };
        let mut maker = BatchMaker::new(Arc::clone(&dataset), settings.clone()).unwrap();
        let mut neighbours = 0;
        for index in 0..4 {
            let batch = maker.make(index).unwrap();
            for (b, (&image, &second)) in
                batch.image_index.iter().zip(&batch.second_index).enumerate()
            {
                let frames = [image, second].map(|i| dataset.get(i as usize).unwrap());
                let mut maps = frames.clone().map(|frame| frame.segments.clone());
                if second != image {
                    assert!(second.abs_diff(image) <= 2);
                    maps[1] = footage::carry(&frames[0], &frames[1], &settings.footage).unwrap();
                    neighbours += 1;
                }
                for v in 0..5 {
                    let (params, size) = match v {
                        0 | 1 => (settings.views.clone(), 24),
                        _ => (settings.views.of_extra(), 48),
                    };
                    let parts = [index, b as u64, v as u64];
                    let mut rng = stream(settings.seed, Stream::View, &parts);
                    let plan = ViewPlan::draw(&params, (96, 64), size, &mut rng);
                    let area = (size * size) as usize;
                    let ids = match v {
                        0 | 1 => &batch.ids[(v * 3 + b) * area..][..area],
                        _ => &batch.extra.ids[((v - 2) * 3 + b) * area..][..area],
                    };
                    for (i, &id) in (0..).zip(ids) {
                        let (x, y) = plan.geometry.source_pixel(i % size, i / size);
                        assert_eq!(id, maps[v % 2].ids[(y * 96 + x) as usize]);
                    }
                }
            }
        }
        assert!(neighbours >= 6, "only {neighbours} of 12 second views show a neighbour");
    }

    #[test]
    fn further_views_leave_the_others_as_they_are() {
        let dataset = dataset(4);
        let views = ViewParams { extra: 2, ..ViewParams::default() };
        let make = |config| BatchMaker::new(Arc::clone(&dataset), config).unwrap().make(1).unwrap();
        let (plain, more) = (make(config(1)), make(LoaderConfig { views, ..config(1) }));
        assert_eq!((more.extra.size, more.extra.count), (96, 2));
        assert_eq!(more.extra.images.len(), 2 * 3 * 3 * 96 * 96);
        assert_eq!(plain.second_index, plain.image_index);
        assert_eq!(Batch { extra: ExtraViews::default(), ..more }, plain);
    }

    #[test]
    fn shapes_and_values() {
        let dataset = dataset(3);
        let mut loader = Loader::new(&dataset, &config(1)).unwrap();
        let batch = loader.next_batch().unwrap();
        assert_eq!(batch.size, 24);
        assert_eq!(batch.images.len(), 6 * 3 * 24 * 24);
        assert_eq!(batch.ids.len(), 6 * 24 * 24);
        assert_eq!(batch.image_index.len(), 3);
        assert!(batch.images.iter().all(|value| (-2.0..=2.0).contains(value)));
        // Both views of image b come from image b, and differ.
        for (b, &image) in batch.image_index.iter().enumerate() {
            let known = &dataset.get(image as usize).unwrap().segments.ids;
            let ids = |entry: usize| &batch.ids[entry * 576..(entry + 1) * 576];
            assert!(ids(b).iter().chain(ids(3 + b)).all(|id| known.contains(id)));
            let view = |entry: usize| &batch.images[entry * 1728..(entry + 1) * 1728];
            assert_ne!(view(b), view(3 + b));
        }
    }

    #[test]
    fn dropping_a_loader_ends_its_threads() {
        let dataset = dataset(3);
        let loader = Loader::new(&dataset, &config(2)).unwrap();
        drop(loader);
        // Each thread held a reference of its own.
        assert_eq!(Arc::strong_count(&dataset), 1);
    }

    #[test]
    fn a_file_that_vanishes_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_images(dir.path(), 3);
        let lazy = DatasetConfig { memory_limit_mb: 0, ..DatasetConfig::default() };
        let dataset = Arc::new(Dataset::load(paths, lazy, &|_, _| ()).unwrap());
        drop(dir);
        let mut loader = Loader::new(&dataset, &config(1)).unwrap();
        assert!(matches!(loader.next_batch(), Err(DataError::Read { .. })));
        assert!(matches!(loader.next_batch(), Err(DataError::WorkerStopped)));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let dataset = dataset(2);
        let error = Loader::new(&dataset, &config(1)).err().unwrap();
        assert!(matches!(error, DataError::TooFewImages { batch: 3, images: 2 }));
        let wrong = LoaderConfig { threads: 0, ..config(1) };
        let error = Loader::new(&dataset, &wrong).err().unwrap();
        assert!(matches!(error, DataError::Parameter { name: "threads", .. }));
    }
}
