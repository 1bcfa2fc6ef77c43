//! What results belong to: settings and files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{RunError, Unit};
use crate::files::{feed, hex};

/// Everything that decides the results of an evaluation. Two runs with equal inputs give equal
/// results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// What is evaluated, such as "voc".
    pub kind: String,
    /// Version of the program.
    pub version: String,
    /// Settings by name.
    pub settings: Value,
    /// SHA-256 of what came from files (bundle, lists, annotations, classifier), by what it is.
    pub files: BTreeMap<String, String>,
}

impl Inputs {
    /// Inputs without files.
    pub fn new(kind: &str, settings: Value) -> Self {
        Self {
            kind: kind.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings,
            files: BTreeMap::new(),
        }
    }

    /// Adds a hash.
    #[must_use]
    pub fn with(mut self, what: &str, sha256: String) -> Self {
        self.files.insert(what.to_owned(), sha256);
        self
    }

    /// The first thing in which `found` differs, as a clause; `None` where nothing does.
    pub fn difference(&self, found: &Self) -> Option<String> {
        let flat = |inputs: &Self| {
            let mut pairs = BTreeMap::new();
            // A struct of strings, maps and values always has a JSON form.
            flatten("", &serde_json::to_value(inputs).unwrap_or_default(), &mut pairs);
            pairs
        };
        let (here, there) = (flat(self), flat(found));
        let keys = here.keys().chain(there.keys());
        let key = keys.filter(|key| here.get(*key) != there.get(*key)).min()?;
        let shown = |pairs: &BTreeMap<String, String>| {
            pairs.get(key).cloned().unwrap_or_else(|| "nothing".to_owned())
        };
        Some(format!("{key} is {} there and {} here", shown(&there), shown(&here)))
    }
}

/// Every leaf of `value` by its dotted path.
fn flatten(path: &str, value: &Value, pairs: &mut BTreeMap<String, String>) {
    let Value::Object(map) = value else {
        pairs.insert(path.to_owned(), value.to_string());
        return;
    };
    for (key, value) in map {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        flatten(&path, value, pairs);
    }
}

/// SHA-256 over the contents of several files, in their order.
pub fn hash_files(paths: &[PathBuf]) -> Result<String, RunError> {
    let mut hasher = Sha256::new();
    for path in paths {
        let mut copy = || {
            let mut file = std::fs::File::open(path)?;
            // The length keeps a byte from moving from one file to the next unnoticed.
            hasher.update(file.metadata()?.len().to_le_bytes());
            feed(&mut hasher, &mut file)
        };
        copy().map_err(RunError::io("read", path))?;
    }
    Ok(hex(&hasher.finalize()))
}

/// SHA-256 over the names of units, in their order: the list that they came from.
pub fn hash_names(units: &[Unit]) -> String {
    let mut hasher = Sha256::new();
    for unit in units {
        hasher.update(unit.name.as_bytes());
        hasher.update(b"\n");
    }
    hex(&hasher.finalize())
}

/// SHA-256 over the hashes of many files, in their order; read on all cores.
pub fn hash_each(paths: &[PathBuf]) -> Result<String, RunError> {
    let each: Vec<String> = paths
        .par_iter()
        .map(|path| hash_files(std::slice::from_ref(path)))
        .collect::<Result<_, _>>()?;
    Ok(hex(&Sha256::digest(each.concat())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_difference_is_named_with_both_sides() {
        let a = Inputs::new("voc", json!({ "k": 15, "cluster": { "rounds": 50 } }));
        assert_eq!(a.difference(&a.clone()), None);
        let b = Inputs::new("voc", json!({ "k": 15, "cluster": { "rounds": 10 } }));
        let text = a.difference(&b).unwrap();
        assert_eq!(text, "settings.cluster.rounds is 10 there and 50 here");
        let with = a.clone().with("codebook", "ff".to_owned());
        let text = with.difference(&a).unwrap();
        assert_eq!(text, "files.codebook is nothing there and \"ff\" here");
    }

    #[test]
    fn hashes_are_those_of_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (a, b) = (path("a", "abc"), path("b", ""));
        let both = hash_files(&[a.clone(), b.clone()]).unwrap();
        assert_ne!(both, hash_files(&[b, a]).unwrap());
        assert!(hash_files(&[dir.path().join("none")]).is_err());
    }
}
