//! Scalars in the event format that TensorBoard opens.
//!
//! The format is small: records of a length, its checksum, a protobuf `Event`, its
//! checksum. It is written here because the crates for it are no longer maintained.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

/// `tensorflow.Event` as far as scalars need it (field numbers of event.proto).
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `tensorflow.Summary.Value` with a `simple_value`.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// Appends scalars to one event file.
#[derive(Debug)]
pub struct ScalarLog {
    out: BufWriter<File>,
}

impl ScalarLog {
    /// Opens a new event file in `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn create(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let now = wall_time();
        let path = dir.join(format!("events.out.tfevents.{:.0}.conceptseg", now * 1e3));
        let mut log = Self { out: BufWriter::new(File::create(path)?) };
        log.write(&Event {
            wall_time: now,
            step: 0,
            file_version: Some("brain.Event:2".to_owned()),
            summary: None,
        })?;
        Ok(log)
    }

    /// Writes the named values of one step and flushes, so that a running training can
    /// be watched.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn add(&mut self, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let value = values
            .iter()
            .map(|&(tag, v)| Value { tag: tag.to_owned(), simple_value: v as f32 })
            .collect();
        self.write(&Event {
            wall_time: wall_time(),
            step: step as i64,
            file_version: None,
            summary: Some(Summary { value }),
        })?;
        self.out.flush()
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        self.out.write_all(&length)?;
        self.out.write_all(&masked_crc(&length).to_le_bytes())?;
        self.out.write_all(&data)?;
        self.out.write_all(&masked_crc(&data).to_le_bytes())
    }
}

/// CRC-32C, rotated and offset as TFRecord files store it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Seconds since 1970; a clock before that reads as 0.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads records back and checks both checksums of each.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(word(8), masked_crc(&rest[..8]));
            let data = &rest[12..12 + length];
            assert_eq!(word(12 + length), masked_crc(data));
            events.push(Event::decode(data).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn the_checksum_is_that_of_tfrecord() {
        // The length word of a 24-byte record, as it stands at the head of every event
        // file that TensorBoard's own writer begins with `brain.Event:2`.
        assert_eq!(masked_crc(&24u64.to_le_bytes()), 0x224b_7fa3);
    }

    #[test]
    fn values_read_back_with_their_steps() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = ScalarLog::create(dir.path()).unwrap();
        log.add(7, &[("loss/total", 1.5), ("rate", 0.25)]).unwrap();
        let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let events = read(&path);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(events[1].step, 7);
        let values = &events[1].summary.as_ref().unwrap().value;
        assert_eq!((values[0].tag.as_str(), values[0].simple_value), ("loss/total", 1.5));
    }
}
