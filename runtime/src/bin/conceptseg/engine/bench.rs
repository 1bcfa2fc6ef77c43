//! `conceptseg engine bench`.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::Table;
use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::embed::Model;
use conceptseg::frame::FrameView;
use conceptseg::scene::{Scene, SceneConfig, SceneFrame};
use conceptseg::stream::{StageTimes, StreamConfig, StreamState};
use serde::Serialize;
use serde_json::json;

use super::build::frame_size;
use crate::backend::{GpuArgs, on_cpu};
use crate::davis::STYLE;
use crate::progress::progress_bar;

/// Frames of the scene that are gone through again and again.
const SCENE: u32 = 24;
/// Frames before the clock counts: the plan is loaded, the graph recorded, memory made.
const WARM_UP: u32 = 12;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Size of the frames, height before width.
    #[arg(long, value_name = "HEIGHTxWIDTH", default_value = "480x854", value_parser = frame_size)]
    size: (u32, u32),
    /// Short side of the network's input in pixels; bundles of a fixed size ignore it.
    #[arg(long, value_name = "PIXELS", default_value_t = StreamConfig::default().short_side,
          value_parser = clap::value_parser!(u32).range(32..=4096))]
    short_side: u32,
    /// Frames that are measured on the GPU; the CPU does a tenth of them.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    frames: u32,
    /// Leave the CPU out.
    #[arg(long)]
    no_cpu: bool,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// One way to process frames.
struct Way {
    name: &'static str,
    stream: StreamState,
    frames: u32,
    times: Vec<(Duration, StageTimes)>,
}

/// Milliseconds of a way.
#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    frames: usize,
    median: f64,
    p99: f64,
    /// Medians of the stages.
    preprocess: f64,
    network: f64,
    concepts: f64,
    propagation: f64,
    /// What the network takes of the whole frame, 0..1.
    network_share: f64,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let (height, width) = args.size;
    let scene = Scene::new(SceneConfig { width, height, frames: SCENE, seed: 1 })?;
    let scene: Vec<SceneFrame> = (0..SCENE).map(|index| scene.frame(index)).collect();
    let options = BackendOptions {
        gpu: args.gpu.options(false),
        ..BackendOptions::new(BackendKind::Tensorrt, 0)
    };
    let gpu = Model::open(&args.bundle, &options)?;
    let stream = |model: &Arc<Model>, gpu_graphs| {
        let config =
            StreamConfig { short_side: args.short_side, gpu_graphs, ..StreamConfig::default() };
        StreamState::new(Arc::clone(model), config)
    };
    let way = |name, stream, frames| Way { name, stream, frames, times: Vec::new() };
    let mut ways = vec![
        way("GPU, one graph", stream(&gpu, true), args.frames),
        way("GPU, part by part", stream(&gpu, false), args.frames),
    ];
    let mut names = vec![gpu.backend_description()];
    if !args.no_cpu {
        let cpu = Model::open(&args.bundle, &BackendOptions::new(on_cpu(), 0))?;
        names.push(cpu.backend_description());
        ways.push(way("CPU", stream(&cpu, false), args.frames.div_ceil(10)));
    }
    measure(&mut ways, &scene)?;
    let figures: Vec<(&str, Figures)> =
        ways.iter().map(|way| (way.name, Figures::of(&way.times))).collect();
    show(&figures, &names, args, json)
}

/// All ways in turns, in rounds of a tenth each, so that a machine that gets slower hits all of them.
fn measure(ways: &mut [Way], scene: &[SceneFrame]) -> Result<()> {
    let total: u32 = ways.iter().map(|way| way.frames + WARM_UP).sum();
    let bar = progress_bar("", "frames", total as usize)?;
    for way in &mut *ways {
        if let Some(first) = scene.first() {
            way.stream.set_instances(first.labels.clone());
        }
        for frame in scene.iter().cycle().take(WARM_UP as usize) {
            way.process(frame)?;
            bar.inc(1);
        }
        way.times.clear();
    }
    for round in 0..10 {
        for way in &mut *ways {
            let until = way.frames * (round + 1) / 10;
            while way.times.len() < until as usize {
                // The scene does not begin anew with a jump: masks have to be carried, not lost.
                let place = (WARM_UP as usize + way.times.len()) % (2 * scene.len()).max(1);
                let index = place.min((2 * scene.len()).saturating_sub(place + 1));
                let Some(frame) = scene.get(index) else { break };
                way.process(frame)?;
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

impl Way {
    fn process(&mut self, frame: &SceneFrame) -> Result<()> {
        let (width, height) = frame.image.dimensions();
        let view = FrameView::rgb(width, height, frame.image.as_raw())?;
        let begun = Instant::now();
        let times = self.stream.process(&view)?.times;
        self.times.push((begun.elapsed(), times));
        Ok(())
    }
}

impl Figures {
    fn of(times: &[(Duration, StageTimes)]) -> Self {
        let of = |share: f64, part: &dyn Fn(&(Duration, StageTimes)) -> Duration| {
            let mut values: Vec<f64> =
                times.iter().map(|one| part(one).as_secs_f64() * 1e3).collect();
            values.sort_by(f64::total_cmp);
            let place = ((values.len() as f64 - 1.0) * share).round().max(0.0) as usize;
            values.get(place).copied().unwrap_or(f64::NAN)
        };
        let median = of(0.5, &|one| one.0);
        let network = of(0.5, &|one| one.1.network);
        Self {
            frames: times.len(),
            median,
            p99: of(0.99, &|one| one.0),
            preprocess: of(0.5, &|one| one.1.preprocess),
            network,
            concepts: of(0.5, &|one| one.1.concepts),
            propagation: of(0.5, &|one| one.1.propagation),
            network_share: network / median,
        }
    }
}

fn show(figures: &[(&str, Figures)], names: &[String], args: &Args, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let (height, width) = args.size;
    if json {
        let ways: serde_json::Map<String, serde_json::Value> = figures
            .iter()
            .map(|(name, figures)| Ok(((*name).to_owned(), serde_json::to_value(figures)?)))
            .collect::<serde_json::Result<_>>()?;
        let object =
            json!({ "width": width, "height": height, "backends": names, "milliseconds": ways });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header([
        "ms a frame",
        "median",
        "99 %",
        "prepare",
        "network",
        "concepts",
        "masks",
        "network's share",
    ]);
    for (name, f) in figures {
        let stages = [f.median, f.p99, f.preprocess, f.network, f.concepts, f.propagation];
        let mut row = vec![(*name).to_owned()];
        row.extend(stages.map(|value| format!("{value:.3}")));
        row.push(format!("{:.0} %", f.network_share * 100.0));
        table.add_row(row);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    writeln!(out, "\n{width}x{height} frames, 4 instances; {}", names.join("; "))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_medians_of_what_was_measured() {
        let ms = Duration::from_millis;
        let times = |total, network| {
            (ms(total), StageTimes { network: ms(network), ..StageTimes::default() })
        };
        let figures = Figures::of(&[times(30, 9), times(10, 8), times(20, 7)]);
        assert_eq!(
            (figures.frames, figures.median, figures.p99, figures.network),
            (3, 20.0, 30.0, 8.0)
        );
        assert_eq!(figures.network_share, 0.4);
        assert!(Figures::of(&[]).median.is_nan());
    }
}
