//! Changing what people said about concepts, when several do so at once.
//!
//! Whoever changes a value says what it was before. Under a lock that other processes respect,
//! the file is read again: a value that is still as it was is changed, one that somebody else
//! has changed meanwhile is a [`Conflict`] and stays. Comments and the order of the file are
//! kept.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use toml_edit::{DocumentMut, Item, Table, value};

use super::{BundleError, ConceptEntry, ConceptNames, MANIFEST_FILE, Mark, NAMES_FILE, read_text};
use crate::files::{hex, write_atomic};

/// What can be said about a concept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Field {
    /// Its name.
    Name,
    /// Its colour, `#rrggbb`.
    Color,
    /// Its mark, `ignore` or `alert`.
    Mark,
}

impl Field {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Name, Self::Color, Self::Mark];

    const fn key(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Color => "color",
            Self::Mark => "mark",
        }
    }

    /// The value in an entry.
    pub fn get(self, entry: &ConceptEntry) -> Option<&str> {
        match self {
            Self::Name => entry.name.as_deref(),
            Self::Color => entry.color.as_deref(),
            Self::Mark => entry.mark.map(Mark::as_str),
        }
    }
}

/// One value that somebody changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Id of the concept.
    pub concept: usize,
    /// What is changed.
    pub field: Field,
    /// The value that the person saw; none where nothing was said.
    pub from: Option<String>,
    /// The new value; none takes it away.
    pub to: Option<String>,
}

/// A change that was not made: somebody else was faster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// What was to be changed.
    #[serde(flatten)]
    pub change: Change,
    /// What the other one said; none where it was taken away.
    pub theirs: Option<String>,
}

/// How a save ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Everything that is said now.
    pub names: ConceptNames,
    /// Its version.
    pub version: String,
    /// Changes that were made.
    pub made: usize,
    /// Changes that were not made.
    pub conflicts: Vec<Conflict>,
}

/// The names file of a bundle, for a codebook of `count` concepts.
#[derive(Debug, Clone)]
pub struct NamesFile {
    dir: PathBuf,
    path: PathBuf,
    count: usize,
}

impl NamesFile {
    /// That of the bundle in the folder `dir`.
    pub fn new(dir: &Path, count: usize) -> Self {
        Self { dir: dir.to_owned(), path: dir.join(NAMES_FILE), count }
    }

    /// What is said, and the version of it.
    ///
    /// # Errors
    /// [`BundleError`] where the file does not parse.
    pub fn read(&self) -> Result<(ConceptNames, String), BundleError> {
        let names = ConceptNames::parse(&self.text()?, &self.path, self.count)?;
        let version = version(&names);
        Ok((names, version))
    }

    /// Makes all `changes` that nobody else was faster with. Nothing is written where none is.
    ///
    /// # Errors
    /// [`BundleError::Invalid`] for a value that is not possible: none of the changes is made
    /// then. [`BundleError::Io`] where the bundle cannot be written.
    pub fn save(&self, changes: &[Change]) -> Result<Saved, BundleError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| BundleError::Io { path, source }
        };
        // The manifest is there in every bundle; locking it leaves no other file behind.
        let manifest = self.dir.join(MANIFEST_FILE);
        let lock = File::open(&manifest).map_err(io_error(&manifest))?;
        lock.lock().map_err(io_error(&manifest))?;

        let text = self.text()?;
        let names = ConceptNames::parse(&text, &self.path, self.count)?;
        let mut file: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| {
            BundleError::Parse { path: self.path.clone(), reason: e.to_string() }
        })?;
        let (mut made, mut conflicts) = (0, Vec::new());
        for change in changes {
            let now = names.get(change.concept).and_then(|entry| change.field.get(entry));
            if now == change.to.as_deref() {
                continue;
            }
            if now == change.from.as_deref() {
                set(&mut file, change);
                made += 1;
            } else {
                let theirs = now.map(str::to_owned);
                conflicts.push(Conflict { change: change.clone(), theirs });
            }
        }
        let text = file.to_string();
        // What is written must be what will be accepted.
        let names = ConceptNames::parse(&text, &self.path, self.count)?;
        if made > 0 {
            write_atomic(&self.path, |w| w.write_all(text.as_bytes()))
                .map_err(io_error(&self.path))?;
        }
        let version = version(&names);
        Ok(Saved { names, version, made, conflicts })
    }

    fn text(&self) -> Result<String, BundleError> {
        if self.path.exists() { read_text(&self.path) } else { Ok(String::new()) }
    }
}

/// A hash of what is said, whatever the file looks like.
fn version(names: &ConceptNames) -> String {
    let mut hash = Sha256::new();
    for (id, entry) in names.iter() {
        for field in Field::ALL {
            let value = field.get(entry).unwrap_or_default();
            // No value holds a line break.
            hash.update(format!("{id} {} {value}\n", field.key()));
        }
    }
    hex(&hash.finalize()[..8])
}

/// Writes one value into the file.
fn set(file: &mut DocumentMut, change: &Change) {
    let implicit = || {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    };
    let concepts = file.entry("concept").or_insert_with(implicit);
    // It parsed as names before: what is there is a table of tables.
    let Some(concepts) = concepts.as_table_like_mut() else { return };
    let id = change.concept.to_string();
    let entry = concepts.entry(&id).or_insert_with(|| Item::Table(Table::new()));
    let Some(entry) = entry.as_table_like_mut() else { return };
    match &change.to {
        Some(text) => match entry.get_mut(change.field.key()).and_then(Item::as_value_mut) {
            // The comment behind it stays.
            Some(old) => {
                let decor = old.decor().clone();
                *old = text.as_str().into();
                *old.decor_mut() = decor;
            }
            None => {
                entry.insert(change.field.key(), value(text));
            }
        },
        None => {
            entry.remove(change.field.key());
        }
    }
    if entry.is_empty() {
        concepts.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(text: &str) -> (tempfile::TempDir, NamesFile) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST_FILE), "").unwrap();
        if !text.is_empty() {
            std::fs::write(dir.path().join(NAMES_FILE), text).unwrap();
        }
        let file = NamesFile::new(dir.path(), 20);
        (dir, file)
    }

    fn change(concept: usize, field: Field, from: Option<&str>, to: Option<&str>) -> Change {
        Change { concept, field, from: from.map(str::to_owned), to: to.map(str::to_owned) }
    }

    #[test]
    fn changes_keep_comments_and_order_and_take_empty_entries_away() {
        let text =
            "# ours\n[concept.7]\nname = \"road\" # since May\n\n[concept.3]\nmark = \"alert\"\n";
        let (dir, file) = bundle(text);
        let (_, before) = file.read().unwrap();
        let saved = file
            .save(&[
                change(7, Field::Name, Some("road"), Some("street")),
                change(7, Field::Color, None, Some("#010203")),
                change(3, Field::Mark, Some("alert"), None),
                change(11, Field::Name, None, Some("a \"tree\"")),
            ])
            .unwrap();
        assert_eq!((saved.made, saved.conflicts.len()), (4, 0));
        let text = std::fs::read_to_string(dir.path().join(NAMES_FILE)).unwrap();
        assert_eq!(
            text,
            "# ours\n[concept.7]\nname = \"street\" # since May\ncolor = \"#010203\"\n\n\
             [concept.11]\nname = 'a \"tree\"'\n"
        );
        assert_eq!(saved.names.name(11), Some("a \"tree\""));
        assert_ne!(saved.version, before);
        assert_eq!(file.read().unwrap(), (saved.names, saved.version));
    }

    #[test]
    fn two_people_keep_what_does_not_collide_and_are_told_what_does() {
        let (_dir, file) = bundle("");
        // Both saw an empty file.
        file.save(&[change(1, Field::Name, None, Some("road"))]).unwrap();
        let saved = file
            .save(&[
                change(1, Field::Name, None, Some("street")),
                change(1, Field::Color, None, Some("#ffffff")),
                change(2, Field::Name, None, Some("sky")),
            ])
            .unwrap();
        assert_eq!((saved.made, saved.conflicts.len()), (2, 1));
        assert_eq!(saved.conflicts[0].theirs.as_deref(), Some("road"));
        let entry = saved.names.get(1).unwrap();
        assert_eq!((entry.name.as_deref(), entry.rgb()), (Some("road"), Some([255; 3])));
        assert_eq!(saved.names.name(2), Some("sky"));
        // The same value twice is no conflict.
        let again = file.save(&[change(2, Field::Name, None, Some("sky"))]).unwrap();
        assert_eq!((again.made, again.conflicts.len()), (0, 0));
        // Whoever has seen the other's value may replace it.
        let over = file.save(&[change(1, Field::Name, Some("road"), Some("street"))]).unwrap();
        assert_eq!(over.names.name(1), Some("street"));
    }

    #[test]
    fn a_value_that_is_not_possible_changes_nothing() {
        let (dir, file) = bundle("");
        for (bad, part) in [
            (change(20, Field::Name, None, Some("x")), "ids are 0 to 19"),
            (change(1, Field::Color, None, Some("red")), "color must look like"),
            (change(1, Field::Mark, None, Some("loud")), "unknown variant"),
            (change(1, Field::Name, None, Some("two\nlines")), "single line"),
        ] {
            let good = change(2, Field::Name, None, Some("sky"));
            let message = file.save(&[good, bad]).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(!dir.path().join(NAMES_FILE).exists());
    }

    #[test]
    fn a_bundle_that_cannot_be_written_says_so() {
        let (dir, file) = bundle("");
        let link = dir.path().join(NAMES_FILE);
        // A link into nothing: reading finds no file, writing replaces the link.
        std::os::unix::fs::symlink("/nonexistent/names", &link).unwrap();
        assert!(file.save(&[change(1, Field::Name, None, Some("x"))]).is_ok());
        let gone = NamesFile::new(&dir.path().join("absent"), 20);
        let message = gone.save(&[]).unwrap_err().to_string();
        assert!(message.contains("absent/bundle.toml"), "{message}");
    }

    #[test]
    fn many_at_once_lose_nothing() {
        let (_dir, file) = bundle("");
        std::thread::scope(|scope| {
            for id in 0..16 {
                let file = &file;
                scope.spawn(move || {
                    let name = format!("n{id}");
                    file.save(&[change(id, Field::Name, None, Some(&name))]).unwrap();
                });
            }
        });
        assert_eq!(file.read().unwrap().0.iter().count(), 16);
    }
}
