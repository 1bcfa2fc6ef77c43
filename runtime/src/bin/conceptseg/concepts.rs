//! `conceptseg concepts export|import`: what people said about concepts, for spreadsheets and
//! other programs.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Subcommand, ValueEnum};
use conceptseg::bundle::{Bundle, NamesFile, changes_to, names_csv, names_json};
use conceptseg::files::write_atomic;
use serde_json::json;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write names, colours and marks of a bundle's concepts as CSV or JSON.
    Export {
        /// Folder of the bundle.
        #[arg(long, value_name = "DIR")]
        bundle: PathBuf,
        /// The file; its ending tells the format. Without it the text goes to standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// The format, where no ending tells it.
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
    },
    /// Take names, colours and marks from a CSV or JSON file. Concepts that the file does not
    /// name stay as they are.
    Import {
        /// Folder of the bundle.
        #[arg(long, value_name = "DIR")]
        bundle: PathBuf,
        /// The file, as export writes it.
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A row for each concept: concept,name,color,mark.
    Csv,
    /// An object with the concepts of which something is said.
    Json,
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Export { bundle, out, format } => export(bundle, out.as_deref(), *format, json),
        Command::Import { bundle, file } => import(bundle, file, json),
    }
}

/// The format that the ending of a file tells.
fn format_of(path: &Path) -> Result<Format> {
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => Ok(Format::Csv),
        Some("json") => Ok(Format::Json),
        _ => bail!("the name of {} must end with .csv or .json", path.display()),
    }
}

fn export(dir: &Path, out: Option<&Path>, format: Format, json: bool) -> Result<()> {
    let bundle = Bundle::open(dir)?;
    let (names, count) = (&bundle.names, bundle.codebook.count);
    let text = |format| match format {
        Format::Csv => names_csv(names, count),
        Format::Json => format!("{:#}\n", names_json(names)),
    };
    let mut stdout = std::io::stdout().lock();
    let Some(path) = out else {
        let format = if json { Format::Json } else { format };
        write!(stdout, "{}", text(format))?;
        return Ok(());
    };
    let text = text(format_of(path)?);
    write_atomic(path, |w| w.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let said = names.iter().count();
    if json {
        writeln!(stdout, "{}", json!({ "file": path, "concepts": said }))?;
    } else {
        writeln!(
            stdout,
            "{}: {said} of {count} concepts have a name, colour or mark",
            path.display()
        )?;
    }
    Ok(())
}

fn import(dir: &Path, path: &Path, json: bool) -> Result<()> {
    format_of(path)?;
    let bundle = Bundle::open(dir)?;
    let cannot = || format!("cannot read {}", path.display());
    let size = std::fs::metadata(path).with_context(cannot)?.len();
    ensure!(size <= MAX_FILE, "{} has {size} bytes; {MAX_FILE} are possible", path.display());
    let text = std::fs::read_to_string(path).with_context(cannot)?;
    let file = NamesFile::new(dir, bundle.codebook.count);
    let changes = changes_to(&text, path, &file.read()?.0)?;
    let saved =
        file.save(&changes).with_context(|| format!("cannot take over {}", path.display()))?;
    ensure!(
        saved.conflicts.is_empty(),
        "{} of {} values were changed by somebody else at the same time and stay; run it again",
        saved.conflicts.len(),
        changes.len()
    );
    let mut out = std::io::stdout().lock();
    let said = saved.names.iter().count();
    if json {
        writeln!(out, "{}", json!({ "changed": saved.made, "concepts": said }))?;
    } else {
        writeln!(
            out,
            "{} values changed; {said} concepts have a name, colour or mark",
            saved.made
        )?;
    }
    Ok(())
}
