//! `conceptseg eval davis`: carries the first masks of sequences and scores what comes of them.

mod shown;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use conceptseg::datasets::davis::DavisDataset;
use conceptseg::embed::Model;
use conceptseg::evaluate::report::{Report, Scores, SequenceMasks};
use conceptseg::evaluate::run::{Inputs, Unit, hash_each, hash_names};
use conceptseg::metrics::davis::SequenceScore;
use serde_json::{Value, json};

use super::carry::{Prepared, Speed, evaluate, hold_still, prepare};
use super::page::Section;
use super::run::{self, RunArgs, finish};
use super::setting::{Setting, SettingArgs};
use super::sweep::{Axis, Sweep};
use crate::backend::BackendArgs;
use crate::davis::{LayoutArg, Selection, table};
use crate::progress::progress_bar;

/// Folder of the masks in the run folder, as masks/<sequence>/00000.png: palette PNGs of object
/// ids, which `metrics davis` and the official tool read.
const MASKS: &str = "masks";

#[derive(Debug, clap::Args)]
pub struct DavisArgs {
    #[command(flatten)]
    method: MethodArgs,
    /// Folder of the data set.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Which resolution of the data set: the folder between the kind and the sequence.
    #[arg(long, default_value = "480p")]
    resolution: String,
    #[command(flatten)]
    selection: Selection,
    /// How the annotations store their objects.
    #[arg(long, value_enum, default_value_t)]
    layout: LayoutArg,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    setting: SettingArgs,
    /// Try all combinations of settings: KEY=VALUES with the keys protocol, temperature, topk,
    /// radius, context-frames and short-side, and values such as 5,10,20 or 0.05..0.2:4 (four
    /// evenly spread; five without the number). At most 1000 combinations.
    ///
    /// What is best is best for the sequences it was tried on. Sweep on training sequences
    /// only, never on those whose figures are reported.
    #[arg(
        long,
        num_args = 1..,
        value_name = "KEY=VALUES",
        conflicts_with_all = ["baseline", "out"]
    )]
    sweep: Vec<Axis>,
    /// SVG file for a plot of J&F over each swept key.
    #[arg(long, value_name = "FILE", requires = "sweep")]
    plot: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct MethodArgs {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Score a method without a model instead, to compare with.
    #[arg(
        long,
        value_enum,
        conflicts_with_all = ["backend", "threads", "cpu_fallback", "GpuArgs"]
    )]
    baseline: Option<Baseline>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Baseline {
    /// The first mask, held still.
    Still,
}

/// What gives the masks of a sequence's frames.
#[derive(Debug)]
enum Method {
    Model { model: Arc<Model>, setting: Setting },
    Still,
}

pub fn run(args: &DavisArgs, json: bool) -> Result<()> {
    let sweep = match args.sweep.as_slice() {
        [] => None,
        axes => Some(Sweep::new(axes, &args.setting)?),
    };
    let names = args.selection.names()?;
    let dataset = DavisDataset::open(&args.root, &args.resolution, names.as_deref())?;
    let frames = dataset.frame_count();
    let layout = args.layout.layout();
    let prepared: Vec<Prepared> =
        dataset.sequences.into_iter().map(|s| prepare(s, layout)).collect::<Result<_>>()?;
    if let Some(folder) = args.plot.as_ref().and_then(|plot| plot.parent()) {
        check_writable(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
    }
    let method = Method::open(args)?;

    if let (Some(sweep), Method::Model { model, .. }) = (sweep, &method) {
        let bar = progress_bar("", "masks", frames * sweep.len())?;
        let results = sweep.run(&prepared, model, &bar)?;
        bar.finish_and_clear();
        if let Some(plot) = &args.plot {
            results.write_plot(plot)?;
        }
        let mut stdout = std::io::stdout().lock();
        if json {
            writeln!(stdout, "{}", results.json(model)?)?;
        } else {
            write!(stdout, "{}", results.text(model))?;
        }
        return Ok(());
    }

    let units: Vec<Unit> = prepared.iter().map(unit).collect();
    let inputs = method.inputs(&prepared)?.with("list", hash_names(&units));
    let run = args.run.open(inputs)?;
    let stage = run.stage::<SequenceScore>("sequences", &units)?;
    let masks = run.folder().map(|folder| folder.join(MASKS));
    if let Some(masks) = &masks {
        for &at in stage.pending() {
            check_writable(&masks.join(&units[at].name))?;
        }
    }
    let todo = stage.pending().iter().map(|&at| prepared[at].sequence.frames.len());
    let bar = progress_bar("", "frames", todo.sum())?;
    let tick = |n| bar.inc(n);
    let mut speed = Speed::default();
    for &at in stage.pending() {
        let one = &prepared[at];
        let name = &one.sequence.name;
        bar.set_message(name.clone());
        let out = masks.as_ref().map(|masks| masks.join(name));
        let score = match &method {
            Method::Still => hold_still(one, out.as_deref(), &tick),
            Method::Model { model, setting } => {
                evaluate(one, model, setting, out.as_deref(), &mut speed, &tick)
            }
        };
        stage.put(at, score.with_context(|| format!("cannot evaluate the sequence {name}"))?)?;
    }
    bar.finish_and_clear();
    let Some(scores) = finish("masks", "sequences", stage)? else { return Ok(()) };

    let sequences = units
        .iter()
        .zip(&scores)
        .map(|(unit, score)| SequenceMasks { name: unit.name.clone(), report: score.into() });
    let report =
        Report::new(run.inputs().clone(), Scores::Masks { sequences: sequences.collect() });
    let table_of = report.scores.masks().context("no sequence was scored")?;
    if let Some(masks) = &masks {
        let mut sections = vec![Section::new("Frame by frame", shown::over_time(&units, &scores))];
        sections.extend(shown::masks(&prepared, masks)?);
        run::write(&run, &report, sections)?;
    }
    let mut stdout = std::io::stdout().lock();
    if json {
        let mut object = serde_json::to_value(&table_of)?;
        object["inputs"] = serde_json::to_value(&report.inputs)?;
        object["figures"] = serde_json::to_value(&report.figures)?;
        object["method"] = method.describe();
        if speed.frames() > 0 {
            object["speed"] = speed.json();
        }
        writeln!(stdout, "{object}")?;
    } else {
        write!(stdout, "{}{}", table(&table_of), run::figures_text(&report))?;
        match &method {
            Method::Still => writeln!(stdout, "baseline: the first mask held still")?,
            Method::Model { model, setting } => {
                writeln!(stdout, "{}", setting.text(model))?;
                writeln!(stdout, "network on {}", model.backend_description())?;
                if speed.frames() > 0 {
                    writeln!(stdout, "{}", speed.text())?;
                }
            }
        }
    }
    Ok(())
}

fn unit(prepared: &Prepared) -> Unit {
    let frames = &prepared.sequence.frames;
    let images = frames.iter().map(|f| f.image.clone());
    let annotations = frames.iter().map(|f| f.annotation.clone());
    Unit { name: prepared.sequence.name.clone(), files: images.chain(annotations).collect() }
}

/// Makes the folder and finds out whether files can be made in it, so that hours of work
/// do not end in a refused write.
fn check_writable(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .and_then(|()| tempfile::tempfile_in(folder))
        .with_context(|| format!("cannot write to the folder {}", folder.display()))?;
    Ok(())
}

impl Method {
    fn open(args: &DavisArgs) -> Result<Self> {
        // Exactly one of the two is given; the argument group sees to that.
        let Some(bundle) = &args.method.bundle else { return Ok(Self::Still) };
        let model = Model::open(bundle, &args.backend.options())?;
        Ok(Self::Model { model, setting: args.setting.setting() })
    }

    /// Everything that decides the figures.
    fn inputs(&self, prepared: &[Prepared]) -> Result<Inputs> {
        let mut settings = self.describe();
        let layouts = prepared.iter().map(|one| (one.sequence.name.clone(), json!(one.layout())));
        settings["layouts"] = Value::Object(layouts.collect());
        let annotations: Vec<PathBuf> = prepared
            .iter()
            .flat_map(|one| one.sequence.frames.iter().map(|f| f.annotation.clone()))
            .collect();
        let mut inputs = Inputs::new("davis", settings);
        if let Self::Model { model, .. } = self {
            inputs.settings["backend"] = model.backend_label().into();
            inputs = inputs.with("embedder", model.bundle().manifest.embedder.sha256.clone());
        }
        Ok(inputs.with("annotations", hash_each(&annotations)?))
    }

    /// What a figure was reached with.
    fn describe(&self) -> Value {
        match self {
            Self::Still => json!({ "baseline": "still" }),
            Self::Model { model, setting } => {
                let mut object = setting.json(model);
                object["bundle"] = json!(model.bundle().manifest.name);
                object["backend"] = json!(model.backend_description());
                object
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use clap::Parser;
    use conceptseg::backend::{BackendKind, BackendOptions};
    use conceptseg::labels::{LabelMap, PALETTE};

    use super::*;
    use crate::eval::fixtures::write_tiny_bundle;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: DavisArgs,
    }

    pub fn parse(line: &[&str]) -> Result<DavisArgs, clap::Error> {
        Cli::try_parse_from([&["eval"], line].concat()).map(|cli| cli.args)
    }

    /// A data set with one sequence `box` of `frames` frames in which a 2x2 object, stored as
    /// `value`, moves right by a pixel a frame.
    pub fn dataset(frames: u32, value: u8) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        sequence(root.path(), "box", frames, value);
        root
    }

    fn sequence(root: &Path, name: &str, frames: u32, value: u8) {
        let folder = |kind: &str| root.join(kind).join("480p").join(name);
        for kind in ["JPEGImages", "Annotations"] {
            std::fs::create_dir_all(folder(kind)).unwrap();
        }
        for i in 0..frames {
            let mut mask = LabelMap::background(16, 8);
            let mut picture = image::RgbImage::new(16, 8);
            for y in 3..5 {
                for x in 2 + i..4 + i {
                    mask.data[(y * 16 + x) as usize] = value;
                    picture.put_pixel(x, y, image::Rgb([250, 30, 60]));
                }
            }
            picture.save(folder("JPEGImages").join(format!("{i:05}.jpg"))).unwrap();
            mask.write_png(&folder("Annotations").join(format!("{i:05}.png"))).unwrap();
        }
    }

    fn tiny_bundle() -> tempfile::TempDir {
        let bundle = tempfile::tempdir().unwrap();
        write_tiny_bundle(bundle.path());
        bundle
    }

    /// A model of stride 8.
    pub fn tiny() -> (tempfile::TempDir, Arc<Model>) {
        let bundle = tiny_bundle();
        let options = BackendOptions::new(BackendKind::Rten, 1);
        let model = Model::open(bundle.path(), &options).unwrap();
        (bundle, model)
    }

    fn with(bundle: &Path, root: &Path, rest: &[&str]) -> DavisArgs {
        let (bundle, root) = (bundle.display().to_string(), root.display().to_string());
        let line = ["--bundle", &bundle, "--root", &root, "--backend", "rten", "--threads", "1"];
        parse(&[&line, rest].concat()).unwrap()
    }

    fn still(root: &Path, out: &Path) -> DavisArgs {
        let (root, out) = (root.display().to_string(), out.display().to_string());
        parse(&["--baseline", "still", "--root", &root, "--out", &out]).unwrap()
    }

    #[test]
    fn a_bundle_or_a_baseline_must_be_chosen_and_only_one() {
        let kind = |line: &[&str]| parse(line).unwrap_err().kind();
        let missing = kind(&["--root", "r"]);
        assert_eq!(missing, clap::error::ErrorKind::MissingRequiredArgument);
        let both = kind(&["--root", "r", "--bundle", "b", "--baseline", "still"]);
        assert_eq!(both, clap::error::ErrorKind::ArgumentConflict);
        for useless in [
            ["--backend", "rten"],
            ["--threads", "2"],
            ["--precision", "fp32"],
            ["--protocol", "a"],
            ["--topk", "3"],
        ] {
            let line = [&["--root", "r", "--baseline", "still"], &useless[..]].concat();
            assert_eq!(kind(&line), clap::error::ErrorKind::ArgumentConflict, "{useless:?}");
        }
        assert!(parse(&["--root", "r", "--bundle", "b", "--threads", "2"]).is_ok());
    }

    #[test]
    fn settings_out_of_range_are_refused_by_the_command_line() {
        for wrong in [
            ["--topk", "0"],
            ["--topk", "65"],
            ["--context-frames", "65"],
            ["--temperature", "0"],
            ["--short-side", "8"],
            ["--protocol", "d"],
            ["--sweep", "topk=0"],
        ] {
            let line = [&["--root", "r", "--bundle", "b"], &wrong[..]].concat();
            assert!(parse(&line).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn both_layouts_run_from_files_to_masks_that_score_the_same() {
        let bundle = tiny_bundle();
        for value in [1, 255] {
            let root = dataset(4, value);
            for protocol in ["a", "b", "c"] {
                let out = tempfile::tempdir().unwrap();
                let path = out.path().display().to_string();
                let rest = ["--protocol", protocol, "--short-side", "64", "--out", &path];
                let args = with(bundle.path(), root.path(), &rest);
                run(&args, true).unwrap();
                run(&args, false).unwrap();
                for i in 0..4 {
                    let path = out.path().join(format!("masks/box/{i:05}.png"));
                    let mask = LabelMap::read_png(&path).unwrap();
                    assert!(mask.data.iter().all(|&id| id < 2), "ids are stored as indices");
                    let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
                    let reader = png::Decoder::new(file).read_info().unwrap();
                    assert_eq!(reader.info().palette.as_deref(), Some(PALETTE.as_flattened()));
                }
                let given = LabelMap::read_png(&out.path().join("masks/box/00000.png")).unwrap();
                assert_eq!(given.data.iter().map(|&id| u32::from(id)).sum::<u32>(), 4);
                let scored = conceptseg::metrics::davis::score_folders(
                    &root.path().join("Annotations/480p/box"),
                    &out.path().join("masks/box"),
                    None,
                    &|| (),
                )
                .unwrap();
                let dataset = DavisDataset::open(root.path(), "480p", None).unwrap();
                let one = prepare(dataset.sequences[0].clone(), None).unwrap();
                let Method::Model { model, setting } = Method::open(&args).unwrap() else {
                    panic!("a bundle was given")
                };
                let speed = &mut Speed::default();
                let score = evaluate(&one, &model, &setting, None, speed, &|_| ()).unwrap();
                assert_eq!(score, scored, "{protocol} {value}");
            }
        }
    }

    #[test]
    fn the_still_baseline_writes_the_first_mask() {
        let root = dataset(4, 1);
        let out = tempfile::tempdir().unwrap();
        let args = still(root.path(), out.path());
        run(&args, true).unwrap();
        run(&args, false).unwrap();
        let first =
            LabelMap::read_png(&root.path().join("Annotations/480p/box/00000.png")).unwrap();
        for i in 0..4 {
            let written = out.path().join(format!("masks/box/{i:05}.png"));
            assert_eq!(LabelMap::read_png(&written).unwrap(), first);
        }
    }

    #[test]
    fn a_sweep_writes_its_plot_and_takes_no_setting_twice() {
        let (bundle, root) = (tiny_bundle(), dataset(4, 1));
        let out = tempfile::tempdir().unwrap();
        let plot = out.path().join("new/plot.svg").display().to_string();
        let sweep = ["--short-side", "64", "--sweep", "topk=1,2", "radius=1..3:3", "--plot", &plot];
        let args = with(bundle.path(), root.path(), &sweep);
        run(&args, true).unwrap();
        run(&args, false).unwrap();
        assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
        let twice = with(bundle.path(), root.path(), &["--topk", "2", "--sweep", "topk=1,2"]);
        let message = run(&twice, true).unwrap_err().to_string();
        assert!(message.contains("topk"), "{message}");
    }

    #[test]
    fn what_would_fail_late_fails_early() {
        let out = tempfile::tempdir().unwrap();
        let refused = |args: &DavisArgs| format!("{:#}", run(args, true).unwrap_err());
        let short = dataset(2, 1);
        let message = refused(&still(short.path(), out.path()));
        assert!(message.contains("box has 2 frames"), "{message}");

        let file = out.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let root = dataset(3, 1);
        let message = refused(&still(root.path(), &file));
        assert!(message.contains("cannot make") && message.contains("file/journal"), "{message}");

        let mut args = still(root.path(), out.path());
        args.method = MethodArgs { bundle: Some(out.path().join("nothing")), baseline: None };
        assert!(run(&args, true).is_err());

        // The header is whole, so that only reading the annotation tells.
        sequence(root.path(), "broken", 4, 1);
        let late = root.path().join("Annotations/480p/broken/00002.png");
        let bytes = std::fs::read(&late).unwrap();
        std::fs::write(&late, &bytes[..bytes.len() - 20]).unwrap();
        let message = refused(&still(root.path(), out.path()));
        assert!(message.contains("broken/00002.png"), "{message}");
        LabelMap::background(16, 9).write_png(&late).unwrap();
        let message = refused(&still(root.path(), out.path()));
        assert!(message.contains("broken/00002.png is 16x9"), "{message}");
        std::fs::remove_file(&late).unwrap();
        let message = refused(&still(root.path(), out.path()));
        assert!(message.contains("broken/00002.png is missing"), "{message}");

        let twice = ["--baseline", "still", "--root", "r", "--sequences", "box,cup,box"];
        let message = refused(&parse(&twice).unwrap());
        assert!(message.contains("box") && message.contains("twice"), "{message}");
    }
}
