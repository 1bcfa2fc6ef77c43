//! Whole frames: from a JPEG file in memory to a line of metadata, in one stream or several.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use conceptseg::embed::Model;
use conceptseg::frame::FrameView;
use conceptseg::labels::LabelMap;
use conceptseg::results::FrameRecord;
use conceptseg::stream::{StageTimes, StreamConfig, StreamState};
use conceptseg_tests::bench::Stage;
use conceptseg_tests::bench::npy::Array;

use crate::prepare::frame_file;

/// Frames that a new stream sees before its memory counts: all that it keeps exists by then.
const WARM: usize = 10;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: crate::Network,
    #[arg(long, value_name = "DIR")]
    inputs: PathBuf,
}

/// The compressed frames of the scene.
struct Footage {
    frames: Vec<Vec<u8>>,
    mask: LabelMap,
}

impl Footage {
    fn read(inputs: &Path) -> Result<Self> {
        let mut frames = Vec::new();
        loop {
            let file = frame_file(inputs, frames.len());
            if !file.exists() {
                break;
            }
            frames
                .push(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
        }
        ensure!(!frames.is_empty(), "{} holds no frames", inputs.display());
        Ok(Self { frames, mask: LabelMap::read_png(&inputs.join("mask.png"))? })
    }
}

/// One stream that shows the footage again and again.
struct Player {
    stream: StreamState,
    shown: usize,
    record: Vec<u8>,
    times: Vec<(&'static str, Duration)>,
}

impl Player {
    fn new(model: Arc<Model>, footage: &Footage) -> Self {
        let mut stream = StreamState::new(model, StreamConfig::default());
        stream.set_instances(footage.mask.clone());
        Self { stream, shown: 0, record: Vec::new(), times: Vec::new() }
    }

    /// Decodes and analyses the next frame and writes its metadata.
    fn show(&mut self, footage: &Footage) -> Result<()> {
        let begun = Instant::now();
        let jpeg = &footage.frames[self.shown % footage.frames.len()];
        self.shown += 1;
        let image = image::load_from_memory(jpeg).context("a frame cannot be decoded")?.into_rgb8();
        let decoded = begun.elapsed();
        let model = Arc::clone(self.stream.model());
        let frame = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
        let result = self.stream.process(&frame)?;
        let analysed = Instant::now();
        self.record.clear();
        let record = FrameRecord::new(result, &model.bundle().names, None);
        serde_json::to_writer(&mut self.record, &record)?;
        let StageTimes { preprocess, network, concepts, propagation } = result.times;
        self.times.clear();
        self.times.extend([
            ("decode", decoded),
            ("preprocess", preprocess),
            ("network", network),
            ("concepts", concepts),
            ("propagation", propagation),
            ("metadata", analysed.elapsed()),
        ]);
        Ok(())
    }
}

/// One stream, timed.
pub struct Contestant {
    model: Arc<Model>,
    footage: Footage,
    player: Player,
}

impl Contestant {
    pub fn new(args: &Args) -> Result<Self> {
        let model = Model::open(&args.network.bundle, &args.network.options())?;
        let footage = Footage::read(&args.inputs)?;
        let mut player = Player::new(Arc::clone(&model), &footage);
        (0..WARM).try_for_each(|_| player.show(&footage))?;
        Ok(Self { model, footage, player })
    }
}

impl Stage for Contestant {
    fn describe(&self) -> String {
        self.model.backend_description()
    }

    fn run(&mut self) -> Result<()> {
        self.player.show(&self.footage)
    }

    fn check(&mut self) -> Result<Array> {
        bail!("a whole frame has no counterpart to be compared with")
    }

    fn parts(&self) -> Vec<(&'static str, Duration)> {
        self.player.times.clone()
    }
}

/// Several streams, whose memory the driver reads.
pub struct Streams {
    model: Arc<Model>,
    footage: Footage,
    players: Vec<Player>,
}

impl Streams {
    pub fn new(args: &Args) -> Result<Self> {
        let model = Model::open(&args.network.bundle, &args.network.options())?;
        Ok(Self { model, footage: Footage::read(&args.inputs)?, players: Vec::new() })
    }
}

impl Stage for Streams {
    fn describe(&self) -> String {
        self.model.backend_description()
    }

    fn run(&mut self) -> Result<()> {
        self.players.iter_mut().try_for_each(|player| player.show(&self.footage))
    }

    fn check(&mut self) -> Result<Array> {
        bail!("memory has no counterpart to be compared with")
    }

    fn grow(&mut self, streams: usize) -> Result<()> {
        while self.players.len() < streams {
            self.players.push(Player::new(Arc::clone(&self.model), &self.footage));
        }
        (0..WARM).try_for_each(|_| self.run())
    }
}
