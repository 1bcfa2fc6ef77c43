//! The run folder of an evaluation: what is finished survives the program.
//!
//! An evaluation consists of stages (prototypes, scores), a stage of units (an image, a
//! sequence). What a unit gives is appended to a journal as soon as it is there, together with
//! a hash of the files that it came from. A later run with the same inputs goes on where the
//! journals end; one with other inputs is refused. Units may be spread over several processes
//! (a [`Shard`] each), whose journals lie in one folder or are brought together by
//! [`Run::import`]. The values are the same however the work was split, so that reports made
//! from them are, too.

mod inputs;
mod journal;
mod shard;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use inputs::{Inputs, hash_each, hash_files, hash_names};
use journal::{Journal, Record};
pub use shard::{Shard, ShardError};

use crate::files::{sha256_file, write_atomic};

/// Folder of the journals in the run folder.
const JOURNALS: &str = "journal";

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A file or folder could not be read or written.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// "read", "write to", …
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The folder holds results that other inputs gave.
    #[error(
        "{path} holds results of other inputs: {difference}; give another folder, or --fresh to \
         drop what is there"
    )]
    OtherInputs {
        /// The journal.
        path: PathBuf,
        /// The first setting or file that differs, as a clause.
        difference: String,
    },
    /// A file has changed since its result was written down.
    #[error(
        "{path} has changed since its result was written to {folder}; give another folder, or \
         --fresh to drop what is there"
    )]
    Changed {
        /// The file (the first of the unit).
        path: PathBuf,
        /// The run folder.
        folder: PathBuf,
    },
    /// A journal is damaged.
    #[error("line {line} of the journal {path} cannot be read ({reason}); remove the file")]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process writes to the same journal.
    #[error("{path} is being written by another process; wait for it, or give another --shard")]
    Busy {
        /// The journal.
        path: PathBuf,
    },
    /// Two units have one name.
    #[error("the name {name} stands for two entries of the data set; names must differ")]
    Twice {
        /// The name.
        name: String,
    },
}

impl RunError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// A piece of work with a result of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name, unique within the stage.
    pub name: String,
    /// The files that it is made from.
    pub files: Vec<PathBuf>,
}

/// An evaluation with its inputs, and the folder in which its results are kept, if any.
#[derive(Debug)]
pub struct Run {
    folder: Option<PathBuf>,
    inputs: Inputs,
    shard: Shard,
}

impl Run {
    /// A run that keeps nothing.
    pub fn in_memory(inputs: Inputs) -> Self {
        Self { folder: None, inputs, shard: Shard::default() }
    }

    /// A run that keeps its results in `folder`, which is made where it is missing. This
    /// process works on the units of `shard`. With `fresh` earlier journals are removed.
    ///
    /// # Errors
    /// When the folder cannot be written, or holds results of other inputs.
    pub fn open(
        folder: &Path,
        inputs: Inputs,
        shard: Shard,
        fresh: bool,
    ) -> Result<Self, RunError> {
        let run = Self { folder: Some(folder.to_owned()), inputs, shard };
        let journals = folder.join(JOURNALS);
        std::fs::create_dir_all(&journals).map_err(RunError::io("make", &journals))?;
        tempfile::tempfile_in(&journals).map_err(RunError::io("write to", &journals))?;
        for path in journal_files(folder)? {
            if fresh {
                std::fs::remove_file(&path).map_err(RunError::io("remove", &path))?;
            } else {
                journal::check(&path, &run.inputs)?;
            }
        }
        Ok(run)
    }

    /// What the results belong to.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Where results are kept.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Takes over the journals of other run folders with the same inputs, as shards without a
    /// common file system leave them. Doing it twice changes nothing.
    ///
    /// # Errors
    /// When one of them holds no journal, or results of other inputs.
    pub fn import(&self, parts: &[PathBuf]) -> Result<(), RunError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        for part in parts {
            let files = journal_files(part)?;
            if files.is_empty() {
                let none = io::Error::new(io::ErrorKind::NotFound, "it holds no journal");
                return Err(RunError::io("merge", part)(none));
            }
            for file in files {
                let stage = journal::check(&file, &self.inputs)?;
                // Named by its content, so that a second import finds it there.
                let digest = sha256_file(&file).map_err(RunError::io("read", &file))?;
                let name = format!("{stage}-merged-{}.jsonl", &digest[..16]);
                let target = folder.join(JOURNALS).join(name);
                let copy = |writer: &mut io::BufWriter<std::fs::File>| {
                    io::copy(&mut std::fs::File::open(&file)?, writer).map(|_| ())
                };
                write_atomic(&target, copy).map_err(RunError::io("write", &target))?;
            }
        }
        Ok(())
    }

    /// Begins or goes on with a stage. Results of earlier runs are read, and the files of
    /// those that belong to this process's shard are compared with what they were then.
    ///
    /// # Errors
    /// When a journal cannot be read or written, or a file has changed.
    pub fn stage<T>(&self, name: &'static str, units: &[Unit]) -> Result<Stage<T>, RunError>
    where
        T: Serialize + DeserializeOwned + Send,
    {
        let mut index = HashMap::with_capacity(units.len());
        for (at, unit) in units.iter().enumerate() {
            if index.insert(unit.name.as_str(), at).is_some() {
                return Err(RunError::Twice { name: unit.name.clone() });
            }
        }
        let mut values: Vec<Option<Record<T>>> = (0..units.len()).map(|_| None).collect();
        let mut journal = None;
        if let Some(folder) = &self.folder {
            for path in journal_files(folder)? {
                if journal::check(&path, &self.inputs)? != name {
                    continue;
                }
                journal::read(&path, |line, record: Record<T>| {
                    let Some(&at) = index.get(record.unit.as_str()) else {
                        let reason = format!("{} is no part of the data set", record.unit);
                        return Err(RunError::Damaged { path: path.clone(), line, reason });
                    };
                    values[at] = Some(record);
                    Ok(())
                })?;
            }
            self.compare(folder, units, &values)?;
            let file = format!("{name}-{}-of-{}.jsonl", self.shard.index() + 1, self.shard.count());
            let path = folder.join(JOURNALS).join(file);
            journal = Some(Mutex::new(Journal::open(&path, name, &self.inputs)?));
        }
        let pending =
            (0..units.len()).filter(|&i| self.shard.holds(i) && values[i].is_none()).collect();
        let values = values.into_iter().map(|record| record.map(|r| r.value)).collect();
        Ok(Stage { units: units.to_vec(), pending, values: Mutex::new(values), journal })
    }

    /// Whether the files of finished units are what they were.
    fn compare<T>(
        &self,
        folder: &Path,
        units: &[Unit],
        values: &[Option<Record<T>>],
    ) -> Result<(), RunError> {
        let known = |at: usize| values[at].as_ref().filter(|_| self.shard.holds(at));
        let finished: Vec<(&Unit, &str)> = units
            .iter()
            .enumerate()
            .filter_map(|(at, unit)| Some((unit, known(at)?.files.as_str())))
            .collect();
        let changed =
            finished.par_iter().find_map_first(|(unit, known)| match hash_files(&unit.files) {
                Ok(digest) if digest == *known => None,
                Ok(_) => Some(RunError::Changed {
                    path: unit.files.first().cloned().unwrap_or_default(),
                    folder: folder.to_owned(),
                }),
                Err(error) => Some(error),
            });
        changed.map_or(Ok(()), Err)
    }
}

/// The journals of a run folder, in the order of their names.
fn journal_files(folder: &Path) -> Result<BTreeSet<PathBuf>, RunError> {
    let journals = folder.join(JOURNALS);
    let entries = match std::fs::read_dir(&journals) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(RunError::io("read", &journals)(error)),
    };
    let mut files = BTreeSet::new();
    for entry in entries {
        let path = entry.map_err(RunError::io("read", &journals))?.path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            files.insert(path);
        }
    }
    Ok(files)
}

/// The units of one stage and what they have given so far.
#[derive(Debug)]
pub struct Stage<T> {
    units: Vec<Unit>,
    pending: Vec<usize>,
    values: Mutex<Vec<Option<T>>>,
    journal: Option<Mutex<Journal>>,
}

impl<T> Stage<T> {
    /// A stage of which nothing is kept: all `units` are still to do.
    pub fn in_memory(units: &[Unit]) -> Self {
        let values = Mutex::new((0..units.len()).map(|_| None).collect());
        Self { units: units.to_vec(), pending: (0..units.len()).collect(), values, journal: None }
    }

    /// The units that this process has to work on, by their place in the list.
    pub fn pending(&self) -> &[usize] {
        &self.pending
    }

    /// Units done by earlier runs or other processes.
    pub fn done_before(&self) -> usize {
        lock(&self.values).iter().filter(|v| v.is_some()).count()
    }
}

impl<T: Serialize + Send> Stage<T> {
    /// Keeps what a unit gave. May be called from several threads.
    ///
    /// # Errors
    /// When the files of the unit cannot be read or the journal not be written.
    pub fn put(&self, unit: usize, value: T) -> Result<(), RunError> {
        if let Some(journal) = &self.journal {
            let Unit { name, files } = &self.units[unit];
            let record = Record { unit: name.clone(), files: hash_files(files)?, value: &value };
            lock(journal).append(&record)?;
        }
        lock(&self.values)[unit] = Some(value);
        Ok(())
    }

    /// The values of all units in their order, or how many are still to come from other
    /// shards.
    pub fn finish(self) -> Result<Vec<T>, usize> {
        let values = self.values.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let missing = values.iter().filter(|v| v.is_none()).count();
        if missing > 0 { Err(missing) } else { Ok(values.into_iter().flatten().collect()) }
    }
}

/// A thread that panicked leaves whole values behind: they are put in as one.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
