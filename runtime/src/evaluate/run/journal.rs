//! A file to which results are appended, one JSON line each, below a line that says what they
//! belong to.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Inputs, RunError};

/// Longest line that is read, in bytes; a result of the largest image takes far less.
const MAX_LINE: u64 = 64 << 20;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    stage: String,
    inputs: Inputs,
}

/// What one unit gave.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record<T> {
    /// Name of the unit.
    pub(super) unit: String,
    /// SHA-256 over the contents of its files.
    pub(super) files: String,
    /// The result.
    pub(super) value: T,
}

/// A journal open for writing; no other process can open it at the same time.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal at `path`, or begins it. A last line that is not complete, as a
    /// killed process leaves it, is cut off.
    pub(super) fn open(path: &Path, stage: &str, inputs: &Inputs) -> Result<Self, RunError> {
        let failed = || RunError::io("write to", path);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(path).map_err(failed())?;
        // On a file system without locks nobody can be kept out.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(RunError::Busy { path: path.to_owned() });
        }
        let whole = complete_bytes(&mut file).map_err(failed())?;
        file.set_len(whole).map_err(failed())?;
        let mut journal = Self { path: path.to_owned(), file };
        if whole == 0 {
            journal.append(&Header { stage: stage.to_owned(), inputs: inputs.clone() })?;
        }
        Ok(journal)
    }

    /// Appends a line.
    pub(super) fn append<T: Serialize>(&mut self, value: &T) -> Result<(), RunError> {
        let mut line = serde_json::to_vec(value)
            .map_err(|e| RunError::io("write to", &self.path)(io::Error::other(e)))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(RunError::io("write to", &self.path))
    }
}

/// Length of the file up to the end of its last complete line.
fn complete_bytes(file: &mut File) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut block = [0u8; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let read = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(read)?;
        if let Some(at) = read.iter().rposition(|&b| b == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Refuses a journal of other inputs, and gives the name of its stage. A journal without a
/// complete first line is of any stage: it holds nothing.
pub(super) fn check(path: &Path, inputs: &Inputs) -> Result<String, RunError> {
    let mut reader = BufReader::new(File::open(path).map_err(RunError::io("read", path))?);
    let mut line = Vec::new();
    if !next_line(&mut reader, &mut line, path, 1)? {
        return Ok(String::new());
    }
    let header: Header = parse(&line, path, 1)?;
    match inputs.difference(&header.inputs) {
        Some(difference) => Err(RunError::OtherInputs { path: path.to_owned(), difference }),
        None => Ok(header.stage),
    }
}

/// Calls `take` with every complete record and its line.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    mut take: impl FnMut(usize, Record<T>) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let mut reader = BufReader::new(File::open(path).map_err(RunError::io("read", path))?);
    let mut line = Vec::new();
    let mut number = 1;
    while next_line(&mut reader, &mut line, path, number)? {
        if number > 1 {
            take(number, parse(&line, path, number)?)?;
        }
        number += 1;
    }
    Ok(())
}

/// Reads a complete line; false at the end, or where the last line is not complete.
fn next_line(
    reader: &mut BufReader<File>,
    line: &mut Vec<u8>,
    path: &Path,
    number: usize,
) -> Result<bool, RunError> {
    line.clear();
    let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', line);
    let bytes = read.map_err(RunError::io("read", path))?;
    if bytes as u64 == MAX_LINE {
        let reason = format!("it has more than {MAX_LINE} bytes");
        return Err(RunError::Damaged { path: path.to_owned(), line: number, reason });
    }
    Ok(line.last() == Some(&b'\n'))
}

fn parse<T: DeserializeOwned>(line: &[u8], path: &Path, number: usize) -> Result<T, RunError> {
    serde_json::from_slice(line).map_err(|e| RunError::Damaged {
        path: path.to_owned(),
        line: number,
        reason: e.to_string(),
    })
}
