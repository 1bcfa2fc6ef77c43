//! `conceptseg metrics davis`: carried masks.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use conceptseg::datasets::davis::select;
use conceptseg::datasets::{files_with_extension, folders_with_extension};
use conceptseg::files::write_atomic;
use conceptseg::metrics::davis::{
    DavisReport, SequenceReport, check_files, check_ids, score_folders,
};

use crate::davis::{LayoutArg, Selection, table};
use crate::progress::progress_bar;

const MASKS: [&str; 1] = ["png"];

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
    /// Folder to write global_results-val.csv and per-sequence_results-val.csv to, as the
    /// official tool writes them.
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
}

/// A sequence's name and its two folders.
struct Pair {
    name: String,
    annotations: PathBuf,
    results: PathBuf,
}

pub fn run(args: &DavisArgs, json: bool) -> Result<()> {
    let layout = args.layout.layout();
    let (pairs, left_out) = pairs(args)?;
    let cannot = |pair: &Pair| format!("cannot score the sequence {}", pair.name);
    // Everything that scoring could stumble over is looked for in all sequences first: what costs
    // next to nothing before the ids, for which every prediction is decoded.
    let mut frames = 0;
    for pair in &pairs {
        frames += check_files(&pair.annotations, &pair.results).with_context(|| cannot(pair))?;
    }
    let bar = progress_bar("", "frames", 2 * frames)?;
    bar.set_message("checked");
    for pair in &pairs {
        check_ids(&pair.annotations, &pair.results, layout, &|| bar.inc(1))
            .with_context(|| cannot(pair))?;
    }
    let mut sequences = BTreeMap::new();
    for pair in pairs {
        bar.set_message(pair.name.clone());
        let score = score_folders(&pair.annotations, &pair.results, layout, &|| bar.inc(1))
            .with_context(|| cannot(&pair))?;
        sequences.insert(pair.name, SequenceReport::from(&score));
    }
    bar.finish_and_clear();
    let report = DavisReport::new(sequences);
    if let Some(folder) = &args.csv {
        write_csv(folder, &report)?;
    }
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

/// Writes the two files that the official tool writes.
fn write_csv(folder: &Path, report: &DavisReport) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (name, text) in [
        ("global_results-val.csv", report.global_csv()),
        ("per-sequence_results-val.csv", report.per_sequence_csv()),
    ] {
        let path = folder.join(name);
        write_atomic(&path, |w| w.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
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
        run(&all, true).unwrap();
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

    /// Masks of three sequences with one of them made unfit by `change`; the error.
    fn refused(change: &dyn Fn(&Path)) -> String {
        let (annotations, results) = (tree(&["a", "b", "c"]), tree(&["a", "b", "c"]));
        change(&results.path().join("b"));
        let error = run(&args(results.path(), annotations.path(), None), true).unwrap_err();
        conceptseg::errors::sentence(error.as_ref())
    }

    #[test]
    fn where_the_official_tool_stops_the_file_is_named() {
        let text = refused(&|b| std::fs::remove_file(b.join("00001.png")).unwrap());
        assert!(
            text.contains("sequence b: the prediction") && text.contains("b/00001.png is missing")
        );
        let text =
            refused(&|b| LabelMap::background(5, 2).write_png(&b.join("00001.png")).unwrap());
        assert!(text.contains("b/00001.png is 5x2 but the first annotation"), "{text}");
        let surplus = LabelMap { width: 4, height: 2, data: vec![0, 1, 2, 0, 0, 1, 1, 0] };
        let text = refused(&|b| surplus.write_png(&b.join("00001.png")).unwrap());
        assert!(text.contains("b/00001.png holds the id 2"), "{text}");
        let text = refused(&|b| std::fs::write(b.join("00001.png"), b"none").unwrap());
        assert!(text.contains("b/00001.png is not a readable PNG"), "{text}");
        // Outer frames are not evaluated, their results may be absent or wrong.
        let (annotations, results) = (tree(&["a"]), tree(&["a"]));
        std::fs::remove_file(results.path().join("a/00000.png")).unwrap();
        surplus.write_png(&results.path().join("a/00002.png")).unwrap();
        run(&args(results.path(), annotations.path(), None), true).unwrap();
    }

    /// The masks of the recorded case `name` as the sequence `name` of two data sets.
    #[cfg(unix)]
    fn link(root: &Path, cases: &Path, name: &str) {
        for (kind, folder) in [("gt", "annotations"), ("pred", "results")] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
            let target = root.join(folder).join(name);
            std::os::unix::fs::symlink(cases.join(name).join(kind), target).unwrap();
        }
    }

    fn official(root: &Path) -> DavisArgs {
        let mut args = args(&root.join("results"), &root.join("annotations"), None);
        (args.layout, args.csv) = (LayoutArg::Davis2017, Some(root.join("csv")));
        args
    }

    #[cfg(unix)]
    #[test]
    fn all_recorded_cases_give_the_files_of_the_official_tool() {
        let Some(expected) = conceptseg::testdata::shared("expected/davis") else { return };
        let text = std::fs::read(expected.join("cases.json")).unwrap();
        let recorded: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let root = tempfile::tempdir().unwrap();
        for name in recorded["all_scored_cases_as_one_set"]["cases"].as_array().unwrap() {
            link(root.path(), &expected.join("cases"), name.as_str().unwrap());
        }
        run(&official(root.path()), true).unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/davis_csv");
        for name in ["global_results-val.csv", "per-sequence_results-val.csv"] {
            let found = std::fs::read_to_string(root.path().join("csv").join(name)).unwrap();
            assert_eq!(found, std::fs::read_to_string(golden.join(name)).unwrap(), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn every_case_that_the_official_tool_rejects_is_an_error_before_anything_is_scored() {
        let Some(expected) = conceptseg::testdata::shared("expected/davis") else { return };
        let text = std::fs::read(expected.join("cases.json")).unwrap();
        let recorded: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let cases = recorded["cases"].as_array().unwrap();
        let rejected: Vec<_> = cases.iter().filter(|c| c["outcome"] == "rejected").collect();
        assert!(rejected.len() >= 6);
        for case in rejected {
            let name = case["name"].as_str().unwrap();
            let root = tempfile::tempdir().unwrap();
            link(root.path(), &expected.join("cases"), "identical_1obj");
            link(root.path(), &expected.join("cases"), name);
            let error = run(&official(root.path()), true).unwrap_err();
            let text = conceptseg::errors::sentence(error.as_ref());
            assert!(text.contains(&format!("cannot score the sequence {name}: ")), "{text}");
            assert!(text.matches(name).count() > 1, "{text} names no file");
            assert!(!root.path().join("csv").exists());
        }
    }

    #[test]
    fn a_folder_without_masks_says_what_is_expected() {
        let (empty, results) = (tree(&[]), tree(&["a"]));
        let message = pairs(&args(results.path(), empty.path(), None)).err().unwrap().to_string();
        assert!(message.contains("ROOT/Annotations/480p"), "{message}");
    }
}
