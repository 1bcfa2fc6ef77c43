//! Pseudo segments as a contestant of `scripts/bench`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use conceptseg_tests::bench::npy::Array;
use conceptseg_tests::bench::{Stage, serve};
use conceptseg_train::data::felzenszwalb::{Partition, partition};
use image::RgbImage;

/// The graph method of Felzenszwalb and Huttenlocher on images in memory.
#[derive(Debug, Parser)]
struct Args {
    /// The images.
    #[arg(long, value_name = "FILE", value_delimiter = ',', required = true)]
    images: Vec<PathBuf>,
    /// The k of the paper, on colours in 0..255.
    #[arg(long)]
    scale: f64,
    /// Smoothing in pixels.
    #[arg(long)]
    sigma: f64,
    /// Smallest segment in pixels.
    #[arg(long)]
    min_size: u32,
}

struct Contestant {
    args: Args,
    images: Vec<RgbImage>,
    partitions: Vec<Partition>,
}

impl Stage for Contestant {
    fn describe(&self) -> String {
        format!("{} images", self.images.len())
    }

    fn run(&mut self) -> Result<()> {
        let Args { scale, sigma, min_size, .. } = self.args;
        self.partitions.clear();
        for image in &self.images {
            self.partitions.push(partition(image, scale, sigma, min_size)?);
        }
        Ok(())
    }

    fn check(&mut self) -> Result<Array> {
        self.run()?;
        // Labels count from 0 in raster order of their first pixel.
        let labels: Vec<u32> =
            self.partitions.iter().flat_map(|partition| &partition.labels).copied().collect();
        Array::new(&[labels.len()], &labels)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let images = args
        .images
        .iter()
        .map(|file| {
            let image = image::open(file);
            Ok(image.with_context(|| format!("cannot read {}", file.display()))?.into_rgb8())
        })
        .collect::<Result<_>>()?;
    serve(Contestant { args, images, partitions: Vec::new() })
}
