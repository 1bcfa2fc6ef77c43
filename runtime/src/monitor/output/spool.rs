//! A queue of messages on disk, in files of bounded size: what could not be sent yet survives
//! restarts, and is sent in order.
//!
//! Each file `00000001.spool` holds messages: length of the topic and of the payload (four bytes
//! each, little-endian), then both. A message that a crash has cut is the last of its file, for
//! every start begins a new one, and is passed over. `position` says what was sent.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::files::write_atomic;

/// A file that is longer gives way to the next.
const FILE_BYTES: u64 = 1 << 20;
/// Longest topic and longest payload that are taken, in bytes.
const MAX_PART: u32 = 1 << 20;

/// Why the spool could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// The disk does not do what it should.
    #[error("cannot use the spool {path}: {source}; check the folder's rights and free space")]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A message is longer than any should be.
    #[error("a message of {0} bytes is too long for the spool, 1 MiB is possible")]
    TooLong(usize),
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it goes.
    pub topic: String,
    /// What it says.
    pub payload: Vec<u8>,
}

/// A file of the spool and a byte in it.
pub type Place = (u64, u64);

/// The queue. One process owns a folder.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    limit: u64,
    /// Numbers of the files, rising, and their lengths.
    files: Vec<(u64, u64)>,
    /// The next message to send: file and byte.
    position: Place,
    dropped: u64,
}

impl Spool {
    /// Opens a folder, or makes it. It takes at most about `limit` bytes, but at least two files
    /// of 1 MiB; when it is full, the oldest messages give way.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn open(folder: &Path, limit: u64) -> Result<Self, SpoolError> {
        let mut spool = Self {
            folder: folder.to_owned(),
            limit: limit.max(2 * FILE_BYTES),
            files: Vec::new(),
            position: (0, 0),
            dropped: 0,
        };
        spool.load().map_err(|source| spool.failed(source))?;
        Ok(spool)
    }

    fn failed(&self, source: io::Error) -> SpoolError {
        SpoolError::Io { path: self.folder.clone(), source }
    }

    fn load(&mut self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|n| n.strip_suffix(".spool")?.parse().ok());
            if let Some(number) = number {
                self.files.push((number, entry.metadata()?.len()));
            }
        }
        self.files.sort_unstable();
        if let Ok(text) = std::fs::read_to_string(self.position_file()) {
            let mut parts = text.split_whitespace().map(str::parse::<u64>);
            if let (Some(Ok(file)), Some(Ok(byte))) = (parts.next(), parts.next()) {
                self.position = (file, byte);
            }
        }
        // Begin with a new file: the last may end in half a message.
        let next =
            self.files.last().map_or(self.position.0 + 1, |f| f.0 + 1).max(self.position.0 + 1);
        self.begin(next)?;
        self.skip_sent();
        Ok(())
    }

    fn position_file(&self) -> PathBuf {
        self.folder.join("position")
    }

    fn file(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:08}.spool"))
    }

    fn begin(&mut self, number: u64) -> io::Result<()> {
        File::create(self.file(number))?;
        self.files.push((number, 0));
        Ok(())
    }

    /// Removes files that lie before the position.
    fn skip_sent(&mut self) {
        while let [(number, _), _, ..] = self.files[..]
            && number < self.position.0
        {
            // A file that stays is empty of news; it is tried again at the next start.
            let _ = std::fs::remove_file(self.file(number));
            self.files.remove(0);
        }
        if let Some(&(first, _)) = self.files.first()
            && self.position.0 < first
        {
            self.position = (first, 0);
        }
    }

    /// Adds a message at the end, safe on the disk when this returns.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn push(&mut self, message: &Message) -> Result<(), SpoolError> {
        let (topic, payload) = (message.topic.as_bytes(), &message.payload);
        let length = |part: &[u8]| {
            u32::try_from(part.len())
                .ok()
                .filter(|n| *n <= MAX_PART)
                .ok_or(SpoolError::TooLong(part.len()))
        };
        let mut bytes = length(topic)?.to_le_bytes().to_vec();
        bytes.extend(length(payload)?.to_le_bytes());
        bytes.extend_from_slice(topic);
        bytes.extend_from_slice(payload);
        self.append(&bytes).map_err(|source| self.failed(source))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(&(number, length)) = self.files.last() else {
            return Err(io::Error::other("the spool has no file"));
        };
        let (number, length) = if length > 0 && length + bytes.len() as u64 > FILE_BYTES {
            self.begin(number + 1)?;
            (number + 1, 0)
        } else {
            (number, length)
        };
        let mut file = OpenOptions::new().append(true).open(self.file(number))?;
        if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_data()) {
            // Half a message in the middle of a file would spoil those behind it.
            let _ = file.set_len(length);
            return Err(error);
        }
        if let Some(last) = self.files.last_mut() {
            last.1 = length + bytes.len() as u64;
        }
        while self.files.len() > 1 && self.files.iter().map(|f| f.1).sum::<u64>() > self.limit {
            self.drop_oldest()?;
        }
        Ok(())
    }

    fn drop_oldest(&mut self) -> io::Result<()> {
        let (number, _) = self.files[0];
        let from = if self.position.0 == number { self.position.1 } else { 0 };
        let mut at = (number, from);
        while let Some((_, next)) = self.read(at)? {
            self.dropped += 1;
            at = next;
        }
        std::fs::remove_file(self.file(number))?;
        self.files.remove(0);
        self.skip_sent();
        Ok(())
    }

    /// The message at a place and the place behind it, within one file.
    fn read(&self, (number, byte): Place) -> io::Result<Option<(Message, Place)>> {
        let mut file = File::open(self.file(number))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(byte))?;
        let mut head = [0; 8];
        if byte + 8 > length {
            return Ok(None);
        }
        file.read_exact(&mut head)?;
        let [a, b, c, d, e, f, g, h] = head;
        let topic = u32::from_le_bytes([a, b, c, d]);
        let payload = u32::from_le_bytes([e, f, g, h]);
        let end = byte + 8 + u64::from(topic) + u64::from(payload);
        if topic > MAX_PART || payload > MAX_PART || end > length {
            return Ok(None);
        }
        let (mut text, mut data) = (vec![0; topic as usize], vec![0; payload as usize]);
        file.read_exact(&mut text)?;
        file.read_exact(&mut data)?;
        let topic = String::from_utf8_lossy(&text).into_owned();
        Ok(Some((Message { topic, payload: data }, (number, end))))
    }

    /// Where the first message that was not sent stands.
    pub fn start(&self) -> Place {
        self.position
    }

    /// The first message at `place` or behind it, and the place behind that message. `None` at
    /// the end.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn peek(&self, place: Place) -> Result<Option<(Message, Place)>, SpoolError> {
        let mut place = place.max(self.position);
        loop {
            if let Some(found) = self.read(place).map_err(|source| self.failed(source))? {
                return Ok(Some(found));
            }
            match self.files.iter().find(|f| f.0 > place.0) {
                Some(&(next, _)) => place = (next, 0),
                None => return Ok(None),
            }
        }
    }

    /// All messages before `place` were sent.
    ///
    /// # Errors
    /// [`SpoolError::Io`]: after a restart, some are sent again.
    pub fn sent(&mut self, place: Place) -> Result<(), SpoolError> {
        if place <= self.position {
            return Ok(());
        }
        self.position = place;
        self.skip_sent();
        let text = format!("{} {}\n", place.0, place.1);
        write_atomic(&self.position_file(), |w| w.write_all(text.as_bytes()))
            .map_err(|source| self.failed(source))
    }

    /// Messages that gave way unsent since the spool was opened.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(number: u32, length: usize) -> Message {
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(length.max(4), 7);
        Message { topic: format!("t/{number}"), payload }
    }

    fn number(message: &Message) -> u32 {
        u32::from_le_bytes(message.payload[..4].try_into().unwrap())
    }

    #[test]
    fn a_restart_goes_on_behind_what_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 22).unwrap();
        for n in 0..5 {
            spool.push(&message(n, 10)).unwrap();
        }
        let mut place = spool.start();
        for n in 0..3 {
            let (found, next) = spool.peek(place).unwrap().unwrap();
            assert_eq!(found, message(n, 10));
            place = next;
            if n == 1 {
                spool.sent(place).unwrap();
            }
        }
        drop(spool);
        // A crash has cut the last message.
        let file = dir.path().join("00000001.spool");
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 22).unwrap();
        spool.push(&message(9, 10)).unwrap();
        let mut place = spool.start();
        let mut numbers = Vec::new();
        while let Some((found, next)) = spool.peek(place).unwrap() {
            numbers.push(number(&found));
            place = next;
        }
        assert_eq!(numbers, [2, 3, 9]);
    }

    #[test]
    fn the_oldest_give_way_and_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 0).unwrap();
        for n in 0..50 {
            spool.push(&message(n, 100_000)).unwrap();
        }
        let bytes: u64 = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes <= 2 << 20, "{bytes}");
        let (first, _) = spool.peek(spool.start()).unwrap().unwrap();
        assert_eq!(u64::from(number(&first)), spool.dropped());
        assert!(spool.push(&message(0, 2 << 20)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec((0..4_u8, 1..300_000_usize), 1..40)) {
            let dir = tempfile::tempdir().unwrap();
            let mut spool = Spool::open(dir.path(), 1 << 30).unwrap();
            let (mut expected, mut pushed) = (std::collections::VecDeque::new(), 0);
            for (step, length) in steps {
                match step {
                    0 | 1 => {
                        spool.push(&message(pushed, length)).unwrap();
                        expected.push_back(pushed);
                        pushed += 1;
                    }
                    2 => {
                        let found = spool.peek(spool.start()).unwrap();
                        prop_assert_eq!(found.as_ref().map(|f| number(&f.0)), expected.pop_front());
                        if let Some((_, next)) = found {
                            spool.sent(next).unwrap();
                        }
                    }
                    _ => spool = Spool::open(dir.path(), 1 << 30).unwrap(),
                }
            }
        }
    }
}
