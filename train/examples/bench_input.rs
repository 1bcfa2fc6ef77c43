//! The trainer's input as a contestant of `scripts/bench`: from JPEG files to batches of views.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use conceptseg_tests::bench::npy::Array;
use conceptseg_tests::bench::{Stage, serve};
use conceptseg_train::data::augment::ViewParams;
use conceptseg_train::data::footage::FootageConfig;
use conceptseg_train::data::loader::{BatchMaker, BatchPart, LoaderConfig};
use conceptseg_train::data::{Batch, DataError, Dataset, DatasetConfig};

/// Batches as the trainer makes them when images do not fit into memory: read, reduced, cut into
/// pseudo segments, and shown as two views each.
#[derive(Debug, Parser)]
struct Args {
    /// The images.
    #[arg(long, value_name = "FILE", value_delimiter = ',', required = true)]
    images: Vec<PathBuf>,
    /// Images of a batch.
    #[arg(long)]
    batch: usize,
    /// Side of a view in pixels.
    #[arg(long)]
    crop: u32,
    /// Shorter side of reduced images in pixels.
    #[arg(long)]
    short_side: u32,
    /// Threads that make batches.
    #[arg(long)]
    threads: usize,
    /// Batches of a run.
    #[arg(long)]
    batches: usize,
}

struct Contestant {
    args: Args,
    makers: Vec<BatchMaker>,
    /// Batches that were made before.
    made: u64,
    /// Those of the latest run.
    batches: Vec<Batch>,
}

impl Contestant {
    fn new(args: Args) -> Result<Self> {
        let config = DatasetConfig {
            short_side: args.short_side,
            memory_limit_mb: 0,
            ..DatasetConfig::default()
        };
        let dataset = Arc::new(Dataset::load(args.images.clone(), config, &|_, _| ())?);
        let loader = LoaderConfig {
            batch: args.batch,
            crop: args.crop,
            views: ViewParams::default(),
            footage: FootageConfig::default(),
            mean: [0.5; 3],
            std: [0.25; 3],
            seed: 1,
            threads: args.threads,
            first_batch: 0,
            part: BatchPart::default(),
        };
        let makers = (0..args.threads)
            .map(|_| BatchMaker::new(Arc::clone(&dataset), loader.clone()))
            .collect::<Result<_, DataError>>()?;
        ensure!(args.threads > 0 && args.batches > 0, "threads and batches are at least 1");
        Ok(Self { args, makers, made: 0, batches: Vec::new() })
    }
}

impl Stage for Contestant {
    fn describe(&self) -> String {
        let Args { images, batch, batches, .. } = &self.args;
        format!("{} files, {batches} batches of {batch} images", images.len())
    }

    /// Thread t makes batches t, t + T, t + 2T …, as those of the trainer do; without any that
    /// were made ahead.
    fn run(&mut self) -> Result<()> {
        let (threads, count, before) = (self.makers.len(), self.args.batches, self.made);
        self.made += count as u64;
        self.batches.clear();
        thread::scope(|scope| {
            let workers: Vec<_> = self
                .makers
                .iter_mut()
                .enumerate()
                .map(|(t, maker)| {
                    scope.spawn(move || {
                        (t..count)
                            .step_by(threads)
                            .map(|index| maker.make(before + index as u64))
                            .collect::<Result<Vec<_>, _>>()
                    })
                })
                .collect();
            for worker in workers {
                self.batches.extend(worker.join().ok().context("a thread panicked")??);
            }
            Ok(())
        })
    }

    /// Views are random: their number of values, mean and standard deviation.
    fn check(&mut self) -> Result<Array> {
        self.run()?;
        let values = || self.batches.iter().flat_map(|batch| &batch.images).map(|v| f64::from(*v));
        let count = values().count() as f64;
        let mean = values().sum::<f64>() / count;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Array::new(&[3], &[count, mean, variance.sqrt()])
    }
}

fn main() -> Result<()> {
    serve(Contestant::new(Args::parse())?)
}
