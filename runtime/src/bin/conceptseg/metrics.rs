//! `conceptseg metrics davis`: scores masks that any program has written.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use conceptseg::datasets::davis::select;
use conceptseg::datasets::{files_with_extension, folders_with_extension};
use conceptseg::metrics::davis::{DavisReport, SequenceReport, score_folders};

use crate::davis::{LayoutArg, Selection, progress_bar, table};

const MASKS: [&str; 1] = ["png"];

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Score result masks against annotations with the measures of the DAVIS benchmark.
    ///
    /// Region similarity J and contour accuracy F with mean, recall (share of frames above
    /// 0.5) and decay (first quarter less last), equal to the official
    /// davis2017-evaluation tool for the semi-supervised task: the first and last frame of
    /// a sequence are left out, its objects are the ids of the first annotation, and a
    /// surplus id in a result is an error. Masks are palette or greyscale PNGs whose values
    /// are object ids.
    Davis(DavisArgs),
}

#[derive(Debug, clap::Args)]
pub struct DavisArgs {
    /// Folder of results: one folder of PNG masks per sequence, or the masks of a single
    /// sequence.
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
    /// Folder of annotations in the same form (of a data set: ROOT/Annotations/480p).
    #[arg(long, value_name = "DIR")]
    annotations: PathBuf,
    #[command(flatten)]
    selection: Selection,
    /// How the masks store their objects.
    #[arg(long, value_enum, default_value_t)]
    layout: LayoutArg,
}

/// A sequence's name and its two folders.
struct Pair {
    name: String,
    annotations: PathBuf,
    results: PathBuf,
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Davis(args) => davis(args, json),
    }
}

fn davis(args: &DavisArgs, json: bool) -> Result<()> {
    let (pairs, left_out) = pairs(args)?;
    let mut frames = 0;
    for pair in &pairs {
        let annotations = masks(&pair.annotations)?;
        frames += annotations.len().saturating_sub(2);
    }
    let bar = progress_bar(frames)?;
    let mut sequences = BTreeMap::new();
    for pair in pairs {
        bar.set_message(pair.name.clone());
        let layout = args.layout.layout();
        let score = score_folders(&pair.annotations, &pair.results, layout, &|| bar.inc(1))
            .with_context(|| format!("cannot score the sequence {}", pair.name))?;
        sequences.insert(pair.name, SequenceReport::from(&score));
    }
    bar.finish_and_clear();
    let report = DavisReport::new(sequences);
    let mut out = std::io::stdout().lock();
    if json {
        let mut object = serde_json::to_value(&report)?;
        object["without_results"] = left_out.into();
        writeln!(out, "{object}")?;
    } else {
        write!(out, "{}", table(&report))?;
        if !left_out.is_empty() {
            writeln!(out, "annotated but without results, left out: {}", left_out.join(", "))?;
        }
    }
    Ok(())
}

/// The sequences to score, and the annotated ones that have no results.
fn pairs(args: &DavisArgs) -> Result<(Vec<Pair>, Vec<String>)> {
    let (annotations, results) = (&args.annotations, &args.results);
    let wanted = args.selection.names()?;
    match (masks(annotations)?.is_empty(), masks(results)?.is_empty()) {
        (false, false) => {
            ensure!(
                wanted.is_none(),
                "sequences cannot be chosen: {} holds the masks of a single sequence",
                annotations.display()
            );
            let name = folder_name(annotations)?;
            let (annotations, results) = (annotations.clone(), results.clone());
            return Ok((vec![Pair { name, annotations, results }], Vec::new()));
        }
        (false, true) => bail!(
            "{} holds the masks of a single sequence but {} holds none; give two folders of \
             masks or two folders of sequences",
            annotations.display(),
            results.display()
        ),
        (true, false) => bail!(
            "{} holds the masks of a single sequence but {} holds none; give two folders of \
             masks or two folders of sequences",
            results.display(),
            annotations.display()
        ),
        (true, true) => {}
    }
    let annotated = sequence_names(annotations)?;
    let with_results = sequence_names(results)?;
    let names = match &wanted {
        Some(names) => select(&with_results, Some(names), results)?,
        None => with_results,
    };
    select(&annotated, Some(&names), annotations)?;
    let left_out = match wanted {
        Some(_) => Vec::new(),
        None => annotated.into_iter().filter(|name| !names.contains(name)).collect(),
    };
    let pair = |name: String| Pair {
        annotations: annotations.join(&name),
        results: results.join(&name),
        name,
    };
    Ok((names.into_iter().map(pair).collect(), left_out))
}

/// The masks directly inside a folder.
fn masks(folder: &Path) -> Result<Vec<PathBuf>> {
    files_with_extension(folder, &MASKS)
        .with_context(|| format!("cannot list the folder {}", folder.display()))
}

fn sequence_names(folder: &Path) -> Result<Vec<String>> {
    let names = folders_with_extension(folder, &MASKS)
        .with_context(|| format!("cannot list the folder {}", folder.display()))?;
    ensure!(
        !names.is_empty(),
        "{} holds neither PNG masks nor folders of them; give a folder such as \
         ROOT/Annotations/480p",
        folder.display()
    );
    Ok(names)
}

/// The name of a single sequence is that of its annotation folder.
fn folder_name(folder: &Path) -> Result<String> {
    let full = folder
        .canonicalize()
        .with_context(|| format!("cannot resolve the folder {}", folder.display()))?;
    Ok(full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use conceptseg::labels::LabelMap;

    use super::*;

    /// A folder of `sequences`, each of three masks with one object.
    fn tree(sequences: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in sequences {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            for i in 0..3 {
                let map = LabelMap { width: 4, height: 2, data: vec![0, 1, 1, 0, 0, 1, 1, 0] };
                map.write_png(&dir.path().join(name).join(format!("{i:05}.png"))).unwrap();
            }
        }
        dir
    }

    fn args(results: &Path, annotations: &Path, sequences: Option<&[&str]>) -> DavisArgs {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: DavisArgs,
        }
        let mut line = vec!["metrics".to_owned()];
        for (option, folder) in [("--results", results), ("--annotations", annotations)] {
            line.extend([option.to_owned(), folder.display().to_string()]);
        }
        if let Some(names) = sequences {
            line.extend(["--sequences".to_owned(), names.join(",")]);
        }
        <Cli as clap::Parser>::try_parse_from(line).unwrap().args
    }

    fn names(args: &DavisArgs) -> (Vec<String>, Vec<String>) {
        let (pairs, left_out) = pairs(args).unwrap();
        (pairs.into_iter().map(|p| p.name).collect(), left_out)
    }

    #[test]
    fn every_result_is_scored_and_what_is_left_out_is_named() {
        let (annotations, results) = (tree(&["a", "b", "c"]), tree(&["a", "c"]));
        let all = args(results.path(), annotations.path(), None);
        assert_eq!(names(&all), (vec!["a".into(), "c".into()], vec!["b".into()]));
        davis(&all, true).unwrap();
        let one = args(results.path(), annotations.path(), Some(&["c"]));
        assert_eq!(names(&one), (vec!["c".into()], vec![]));
    }

    #[test]
    fn unknown_sequences_and_results_without_annotation_are_errors() {
        let (annotations, results) = (tree(&["a"]), tree(&["a", "z"]));
        let message = |sequences| {
            let all = args(results.path(), annotations.path(), sequences);
            pairs(&all).err().unwrap().to_string()
        };
        assert!(message(None).contains("\"z\""));
        assert!(message(Some(&["q"][..])).contains("available: a, z"));
    }

    #[test]
    fn two_folders_of_masks_are_one_sequence_named_after_the_annotations() {
        let (annotations, results) = (tree(&["a"]), tree(&["mine"]));
        let (annotation, result) = (annotations.path().join("a"), results.path().join("mine"));
        assert_eq!(names(&args(&result, &annotation, None)), (vec!["a".into()], vec![]));
        let mixed = pairs(&args(results.path(), &annotation, None)).err().unwrap().to_string();
        assert!(mixed.contains("single sequence"), "{mixed}");
    }

    #[test]
    fn a_folder_without_masks_says_what_is_expected() {
        let (empty, results) = (tree(&[]), tree(&["a"]));
        let message = pairs(&args(results.path(), empty.path(), None)).err().unwrap().to_string();
        assert!(message.contains("ROOT/Annotations/480p"), "{message}");
    }
}
