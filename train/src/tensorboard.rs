//! Scalars in the event format that TensorBoard opens.
//!
//! The format is small: records of a length, its checksum, a protobuf `Event`, its
//! checksum. It is written here because the crates for it are no longer maintained.

use std::collections::BTreeMap;
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

/// Values of one figure by step.
pub type Curve = BTreeMap<u64, f64>;

/// The figures of the last run that was logged in `dir`, by tag. A run that was continued has
/// several files, of which a later one wins; a file that begins within the first
/// `first_steps` steps begins a run. A file that ends in the middle of a record is read up to
/// there.
///
/// # Errors
/// Whatever the file system answers.
pub fn read_curves(dir: &Path, first_steps: u64) -> io::Result<BTreeMap<String, Curve>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("events.out.tfevents.") && name.ends_with(".conceptseg") {
            files.push(path);
        }
    }
    // Their names hold the time at which they were made, in as many digits.
    files.sort();
    let mut curves: BTreeMap<String, Curve> = BTreeMap::new();
    for path in files {
        let mut begun = false;
        for event in events(&fs::read(&path)?) {
            let Some(summary) = event.summary else { continue };
            let step = u64::try_from(event.step).unwrap_or_default();
            if !begun && step <= first_steps {
                curves.clear();
            }
            begun = true;
            for value in summary.value {
                curves.entry(value.tag).or_default().insert(step, value.simple_value.into());
            }
        }
    }
    Ok(curves)
}

/// The events of a file up to the first record that is not whole.
fn events(mut rest: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        // Each part has its checksum of four bytes behind it.
        let end = length.saturating_add(4);
        let Some(data) = after.get(4..end) else { break };
        let Some((sum, next)) = after.get(end..).and_then(|r| r.split_first_chunk::<4>()) else {
            break;
        };
        if u32::from_le_bytes(*sum) != masked_crc(data) {
            break;
        }
        let Ok(event) = Event::decode(data) else { break };
        events.push(event);
        rest = next;
    }
    events
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

    #[test]
    fn curves_are_those_of_the_last_run_with_its_continuations() {
        let dir = tempfile::tempdir().unwrap();
        let log = |steps: &[u64], value| {
            // Names have milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(3));
            let mut log = ScalarLog::create(dir.path()).unwrap();
            for &step in steps {
                log.add(step, &[("loss/total", value)]).unwrap();
            }
        };
        log(&[10, 20, 90], 1.0);
        log(&[10, 20, 30], 2.0);
        log(&[26, 36], 3.0);
        let newest = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        bytes.extend([9, 0, 0]);
        fs::write(&newest, bytes).unwrap();
        let curves = read_curves(dir.path(), 10).unwrap();
        let found: Vec<(u64, f64)> = curves["loss/total"].clone().into_iter().collect();
        assert_eq!(found, [(10, 2.0), (20, 2.0), (26, 3.0), (30, 2.0), (36, 3.0)]);
    }
}
