//! The models that are installed.

use std::env;
use std::path::{Path, PathBuf};

use conceptseg::bundle::Bundle;
use conceptseg::errors::sentence;
use serde_json::{Value, json};

use super::Finding;

/// A model, or a folder that should be one.
#[derive(Debug)]
pub struct Found {
    folder: PathBuf,
    /// Name and count of concepts, or what is wrong.
    content: Result<(String, usize), String>,
}

impl Found {
    fn open(folder: &Path) -> Self {
        let content = Bundle::open(folder)
            .map(|bundle| (bundle.manifest.name.clone(), bundle.codebook.count))
            .map_err(|error| sentence(&error));
        Self { folder: folder.to_owned(), content }
    }

    pub fn as_json(&self) -> Value {
        let content = self.content.as_ref();
        json!({
            "folder": self.folder,
            "name": content.ok().map(|(name, _)| name),
            "concepts": content.ok().map(|(_, count)| count),
            "error": content.err(),
        })
    }

    pub fn describe(&self) -> String {
        let folder = self.folder.display();
        match &self.content {
            Ok((name, count)) => format!("{name}, {count} concepts, in {folder}"),
            Err(_) => format!("cannot be used: {folder}"),
        }
    }
}

/// The models in the places where `scripts/install` puts them, and in `models` here; or only `chosen`.
pub fn look(chosen: Option<&Path>) -> Vec<Found> {
    if let Some(folder) = chosen {
        return vec![Found::open(folder)];
    }
    let mut bundles: Vec<PathBuf> = Vec::new();
    for place in places() {
        let Ok(entries) = place.read_dir() else { continue };
        let mut folders: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.path().canonicalize().ok())
            .filter(|folder| folder.join("bundle.toml").is_file() && !bundles.contains(folder))
            .collect();
        folders.sort();
        folders.dedup();
        bundles.append(&mut folders);
    }
    bundles.iter().map(|folder| Found::open(folder)).collect()
}

/// Folders of models, the user's first.
fn places() -> Vec<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    // As the standard says, a path that is not absolute counts as not set.
    let own = set("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let own = own.or_else(|| Some(Path::new(&set("HOME")?).join(".local/share")));
    let beside =
        env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("share")));
    let shared = set("XDG_DATA_DIRS").unwrap_or_else(|| "/usr/local/share:/usr/share".into());
    let data = own.into_iter().chain(beside).chain(env::split_paths(&shared));
    let mut places: Vec<_> = data.map(|data| data.join("conceptseg/models")).collect();
    places.push("models".into());
    places
}

/// What is wrong with them. One that somebody asked for has to be right.
pub fn findings(models: &[Found], asked_for: bool) -> Vec<Finding> {
    if models.is_empty() {
        return vec![Finding::note(
            "No model is installed.",
            "run scripts/install, which brings the starter model, or learn one from your footage \
             (docs/training.md) and give its folder as bundle=DIR",
        )];
    }
    let broken = models.iter().filter_map(|model| {
        let reason = model.content.as_ref().err()?;
        let what = format!("A model cannot be used: {reason}.");
        let fix = "export or install it again (scripts/install for the starter model)";
        Some(if asked_for { Finding::problem(what, fix) } else { Finding::note(what, fix) })
    });
    broken.collect()
}
