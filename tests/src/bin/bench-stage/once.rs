//! A cold start: opens the bundle, labels one image, prints its concepts, and ends.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use conceptseg::embed::Model;
use conceptseg::frame::FrameView;
use conceptseg::stream::{StreamConfig, StreamState};
use conceptseg_tests::bench::npy::Array;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: crate::Network,
    /// The image.
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// File for the concept of each pixel.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let model = Model::open(&args.network.bundle, &args.network.options())?;
    let image = image::open(&args.image)
        .with_context(|| format!("cannot read {}", args.image.display()))?
        .into_rgb8();
    let mut stream = StreamState::new(model, StreamConfig::default());
    let frame = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
    let concepts = stream.process(&frame)?.concepts.as_ref().context("no concepts were found")?;
    let mut areas = BTreeMap::<u16, u32>::new();
    for segment in &concepts.segment_list {
        *areas.entry(segment.concept).or_default() += segment.area;
    }
    println!("{}", serde_json::to_string(&areas)?);
    if let Some(file) = &args.out {
        let shape = [concepts.height as usize, concepts.width as usize];
        Array::new(&shape, &concepts.concepts)?.write(file)?;
    }
    Ok(())
}
