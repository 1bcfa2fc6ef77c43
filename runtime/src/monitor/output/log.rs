//! Events as lines of JSON, in files that do not grow without end.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::monitor::Event;

/// When a file gives way to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// A line that would make the file longer than this many bytes begins a new one.
    pub max_bytes: u64,
    /// Older files that are kept, as `NAME.1` (the latest of them) and so on.
    pub keep: u32,
}

impl Default for Rotation {
    /// Six files of 16 MiB.
    fn default() -> Self {
        Self { max_bytes: 16 << 20, keep: 5 }
    }
}

/// Appends events to a file. Each line is written at once, so that readers that follow the file
/// see whole lines, and a crash loses none.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    length: u64,
}

impl EventLog {
    /// Opens the file, or begins it.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let (file, length) = Self::append(path)?;
        let mut log = Self { path: path.to_owned(), rotation, file, length };
        log.mend()?;
        Ok(log)
    }

    fn append(path: &Path) -> io::Result<(File, u64)> {
        let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    }

    /// Ends a line that a crash has cut, so that the next stands by itself.
    fn mend(&mut self) -> io::Result<()> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        if self.length == 0 {
            return Ok(());
        }
        let mut last = [0];
        self.file.seek(SeekFrom::End(-1))?;
        self.file.read_exact(&mut last)?;
        if last != *b"\n" {
            self.file.write_all(b"\n")?;
            self.length += 1;
        }
        Ok(())
    }

    /// Adds an event.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let more = line.len() as u64;
        if self.length > 0 && self.length + more > self.rotation.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(&line)?;
        self.length += more;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.rotation.keep).rev() {
            let from = numbered(number);
            if from.exists() {
                std::fs::rename(from, numbered(number + 1))?;
            }
        }
        if self.rotation.keep == 0 {
            std::fs::remove_file(&self.path)?;
        } else {
            std::fs::rename(&self.path, numbered(1))?;
        }
        (self.file, self.length) = Self::append(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::output::tests::event;

    fn numbers(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().number).collect()
    }

    #[test]
    fn files_give_way_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let line = serde_json::to_vec(&event(1)).unwrap().len() as u64 + 1;
        let rotation = Rotation { max_bytes: 2 * line, keep: 2 };
        for number in 1..=7 {
            // A restart goes on where the file ends.
            EventLog::open(&path, rotation).unwrap().write(&event(number)).unwrap();
        }
        let old = |n: u32| dir.path().join(format!("events.jsonl.{n}"));
        assert_eq!(numbers(&path), [7]);
        assert_eq!((numbers(&old(1)), numbers(&old(2))), (vec![5, 6], vec![3, 4]));
        assert!(!old(3).exists());
    }

    #[test]
    fn a_cut_line_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "{\"stream\":").unwrap();
        EventLog::open(&path, Rotation::default()).unwrap().write(&event(1)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(serde_json::from_str::<Event>(text.lines().nth(1).unwrap()).is_ok());
    }
}
