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
            if index.insert(unit.name.clone(), at).is_some() {
                return Err(RunError::Twice { name: unit.name.clone() });
            }
        }
        let mut values: Vec<Option<Record<T>>> = (0..units.len()).map(|_| None).collect();
        let mut kept = None;
        if let Some(folder) = &self.folder {
            let shelf = Shelf { folder: folder.clone(), inputs: self.inputs.clone(), name, index };
            shelf.read(|at, record| values[at] = Some(record))?;
            self.compare(folder, units, &values)?;
            let file = format!("{name}-{}-of-{}.jsonl", self.shard.index() + 1, self.shard.count());
            let path = folder.join(JOURNALS).join(file);
            kept = Some((Mutex::new(Journal::open(&path, name, &self.inputs)?), shelf));
        }
        let pending =
            (0..units.len()).filter(|&i| self.shard.holds(i) && values[i].is_none()).collect();
        let values = values.into_iter().map(|record| record.map(|r| r.value)).collect();
        Ok(Stage { units: units.to_vec(), pending, values: Mutex::new(values), kept })
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

/// Where the journals of a stage lie.
#[derive(Debug)]
struct Shelf {
    folder: PathBuf,
    inputs: Inputs,
    name: &'static str,
    /// Places of the units by their names.
    index: HashMap<String, usize>,
}

impl Shelf {
    /// Calls `take` with every record that any process has written, and the place of its unit.
    fn read<T: DeserializeOwned>(
        &self,
        mut take: impl FnMut(usize, Record<T>),
    ) -> Result<(), RunError> {
        for path in journal_files(&self.folder)? {
            if journal::check(&path, &self.inputs)? != self.name {
                continue;
            }
            journal::read(&path, |line, record: Record<T>| {
                let Some(&at) = self.index.get(&record.unit) else {
                    let reason = format!("{} is no part of the data set", record.unit);
                    return Err(RunError::Damaged { path: path.clone(), line, reason });
                };
                take(at, record);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Why the values of a stage cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// That many units are still to come from other processes.
    #[error("{0} are still to come from other parts")]
    Missing(usize),
    /// The journals cannot be read.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// The units of one stage and what they have given so far.
#[derive(Debug)]
pub struct Stage<T> {
    units: Vec<Unit>,
    pending: Vec<usize>,
    values: Mutex<Vec<Option<T>>>,
    /// This process's journal and where the others lie.
    kept: Option<(Mutex<Journal>, Shelf)>,
}

impl<T> Stage<T> {
    /// The units that this process has to work on, by their place in the list.
    pub fn pending(&self) -> &[usize] {
        &self.pending
    }

    /// Units done by earlier runs or other processes.
    pub fn done_before(&self) -> usize {
        lock(&self.values).iter().filter(|v| v.is_some()).count()
    }
}

impl<T: Serialize + DeserializeOwned + Send> Stage<T> {
    /// Keeps what a unit gave. May be called from several threads.
    ///
    /// # Errors
    /// When the files of the unit cannot be read or the journal not be written.
    pub fn put(&self, unit: usize, value: T) -> Result<(), RunError> {
        if let Some((journal, _)) = &self.kept {
            let Unit { name, files } = &self.units[unit];
            let record = Record { unit: name.clone(), files: hash_files(files)?, value: &value };
            lock(journal).append(&record)?;
        }
        lock(&self.values)[unit] = Some(value);
        Ok(())
    }

    /// The values of all units in their order. Journals are read once more for what other
    /// processes have written in the meantime, so that the last one to end finds everything.
    ///
    /// # Errors
    /// When other processes have not ended, or a journal cannot be read.
    pub fn finish(self) -> Result<Vec<T>, Unfinished> {
        let values = self.values.into_inner();
        let mut values = values.unwrap_or_else(std::sync::PoisonError::into_inner);
        if values.iter().any(Option::is_none)
            && let Some((_, shelf)) = &self.kept
        {
            shelf.read(|at, record| {
                values[at].get_or_insert(record.value);
            })?;
        }
        match values.iter().filter(|v| v.is_none()).count() {
            0 => Ok(values.into_iter().flatten().collect()),
            missing => Err(Unfinished::Missing(missing)),
        }
    }
}

/// A thread that panicked leaves whole values behind: they are put in as one.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
