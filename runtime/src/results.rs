//! Results as files: one line of JSON per frame.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::{Builder, NamedTempFile};

use crate::bundle::{ConceptNames, Mark};
use crate::concepts::ConceptMap;
use crate::propagate::MaskMap;
use crate::rle::Rle;
use crate::stream::{FrameResult, StageTimes};

/// Everything that is written about one frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameRecord {
    /// Index of the analysed frame in its stream, from 0.
    pub frame: u64,
    /// Presentation time in nanoseconds, where the stream has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pts_ns: Option<u64>,
    /// How far the analysed frame lies behind the one that shows the result, in nanoseconds;
    /// absent where they are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ns: Option<u64>,
    /// Width of the frame in pixels.
    pub width: u32,
    /// Height of the frame in pixels.
    pub height: u32,
    /// Time that each stage took.
    pub latency_ms: Latency,
    /// Concepts in the frame, the largest first.
    pub concepts: Vec<ConceptRecord>,
    /// Instances in the frame by rising id.
    pub instances: Vec<InstanceRecord>,
}

/// Time that each stage took for one frame, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Scaling and normalisation.
    pub preprocess: f64,
    /// The network.
    pub network: f64,
    /// Clustering and concept look-up; 0 where concepts are switched off.
    pub concepts: f64,
    /// Carrying masks over from earlier frames; 0 where there are none.
    pub propagation: f64,
    /// Sum of the stages.
    pub total: f64,
}

impl From<&StageTimes> for Latency {
    fn from(times: &StageTimes) -> Self {
        let [preprocess, network, concepts, propagation] =
            [times.preprocess, times.network, times.concepts, times.propagation]
                .map(|t| t.as_secs_f64() * 1e3);
        let total = preprocess + network + concepts + propagation;
        Self { preprocess, network, concepts, propagation, total }
    }
}

/// One concept of a frame, all of its segments together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConceptRecord {
    /// Id in the codebook.
    pub id: u16,
    /// Name that somebody gave to the concept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What somebody wants to happen where the concept is seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// Share of the frame's pixels, 0..1.
    pub area: f64,
    /// Cosine similarity of its segments to the concept, averaged over pixels, -1..1.
    pub similarity: f64,
}

/// One instance of a frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Id, as in the first mask.
    pub id: u8,
    /// Pixels.
    pub area: u32,
    /// `[x, y, width, height]` in pixels.
    pub bbox: [u32; 4],
    /// Share of the affinity that voted for the instance within its mask, 0..1.
    pub confidence: f32,
    /// The mask.
    pub segmentation: Rle,
}

impl FrameRecord {
    /// The record of `result`. `pts_ns` is the presentation time in nanoseconds.
    pub fn new(result: &FrameResult, names: &ConceptNames, pts_ns: Option<u64>) -> Self {
        Self {
            frame: result.index,
            pts_ns,
            age_ns: None,
            width: result.width,
            height: result.height,
            latency_ms: Latency::from(&result.times),
            concepts: result
                .concepts
                .as_ref()
                .map_or_else(Vec::new, |map| summarize_concepts(map, names)),
            instances: result.masks.as_ref().map_or_else(Vec::new, instance_records),
        }
    }
}

/// The segments of a map, gathered by concept, the largest first (equal ones by id).
pub fn summarize_concepts(map: &ConceptMap, names: &ConceptNames) -> Vec<ConceptRecord> {
    let mut segments: Vec<_> = map.segment_list.iter().filter(|s| s.area > 0).collect();
    segments.sort_by_key(|s| s.concept);
    let pixels = (f64::from(map.width) * f64::from(map.height)).max(1.0);
    let mut records: Vec<_> = segments
        .chunk_by(|a, b| a.concept == b.concept)
        .map(|group| {
            let id = group[0].concept;
            let area: f64 = group.iter().map(|s| f64::from(s.area)).sum();
            let weighted: f64 =
                group.iter().map(|s| f64::from(s.area) * f64::from(s.similarity)).sum();
            ConceptRecord {
                id,
                name: names.name(usize::from(id)).map(str::to_owned),
                mark: names.mark(usize::from(id)),
                area: area / pixels,
                similarity: weighted / area,
            }
        })
        .collect();
    // The sort is stable: ids stay in order among equals.
    records.sort_by(|a, b| b.area.total_cmp(&a.area));
    records
}

fn instance_records(map: &MaskMap) -> Vec<InstanceRecord> {
    map.instances
        .iter()
        .map(|stat| InstanceRecord {
            id: stat.id,
            area: stat.area,
            bbox: stat.bbox,
            confidence: stat.confidence,
            segmentation: Rle::encode(&map.labels, map.width, map.height, stat.id, stat.bbox),
        })
        .collect()
}

/// Writes records to a file that appears under its name when [`RecordWriter::finish`] is
/// called. Until then the lines collect in a hidden file of the same folder, which is removed
/// where the writer is dropped unfinished.
#[derive(Debug)]
pub struct RecordWriter {
    path: PathBuf,
    writer: BufWriter<File>,
    temporary: NamedTempFile,
}

impl RecordWriter {
    /// Begins a file that is going to be `path`.
    ///
    /// # Errors
    /// Whatever the file system answers, for instance where the folder is missing.
    pub fn create(path: &Path) -> io::Result<Self> {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let mut builder = Builder::new();
        #[cfg(unix)]
        let permissions = {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::Permissions::from_mode(0o644)
        };
        #[cfg(unix)]
        builder.permissions(permissions);
        let temporary = builder.prefix(".results-").tempfile_in(folder)?;
        let writer = BufWriter::new(temporary.reopen()?);
        Ok(Self { path: path.to_owned(), writer, temporary })
    }

    /// Adds one line.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn write(&mut self, record: &FrameRecord) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, record)?;
        self.writer.write_all(b"\n")
    }

    /// Gives the file its name. A file that was there before is replaced.
    ///
    /// # Errors
    /// Whatever the file system answers; an older file is untouched then.
    pub fn finish(mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.temporary.persist(&self.path).map_err(|e| e.error)?;
        Ok(())
    }
}

/// Why a results file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// The file could not be opened or read.
    #[error("cannot read the results {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A line is not a record.
    #[error("{path}, line {line}: {reason}; results are written with one JSON object per line")]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
}

/// Reads a results file record by record. After an error, the iterator ends.
///
/// # Errors
/// [`ResultsError::Io`] where the file cannot be opened.
pub fn read_records(
    path: &Path,
) -> Result<impl Iterator<Item = Result<FrameRecord, ResultsError>> + use<>, ResultsError> {
    use std::io::{BufRead as _, BufReader, Read as _};

    let path = path.to_owned();
    let file =
        File::open(&path).map_err(|source| ResultsError::Io { path: path.clone(), source })?;
    let mut reader = BufReader::new(file);
    let (mut text, mut line, mut ended) = (String::new(), 0, false);
    Ok(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        text.clear();
        line += 1;
        // A file without line breaks must not fill the memory.
        let read = reader.by_ref().take(MAX_LINE).read_line(&mut text);
        let answer = match read {
            Ok(0) => return None,
            Ok(n) if n as u64 == MAX_LINE => Err(ResultsError::Line {
                path: path.clone(),
                line,
                reason: format!("it is longer than {MAX_LINE} bytes"),
            }),
            Ok(_) => serde_json::from_str(&text).map_err(|e| ResultsError::Line {
                path: path.clone(),
                line,
                reason: e.to_string(),
            }),
            Err(source) => Err(ResultsError::Io { path: path.clone(), source }),
        };
        ended = answer.is_err();
        Some(answer)
    }))
}

/// Longest line that is read, in bytes: 255 instances with ragged outlines on a large frame
/// stay far below.
const MAX_LINE: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::concepts::ConceptSegment;
    use crate::propagate::InstanceStat;
    use std::time::Duration;

    fn result() -> FrameResult {
        let segment =
            |concept, similarity, area| ConceptSegment { concept, similarity, area, bbox: [0; 4] };
        FrameResult {
            index: 7,
            width: 4,
            height: 3,
            concepts: Some(ConceptMap {
                width: 4,
                height: 3,
                concepts: vec![2; 12],
                segments: vec![0; 12],
                segment_list: vec![segment(9, 0.5, 3), segment(2, 0.75, 6), segment(9, 0.8, 3)],
            }),
            masks: Some(MaskMap {
                width: 4,
                height: 3,
                labels: vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1],
                instances: vec![InstanceStat {
                    id: 1,
                    area: 3,
                    bbox: [1, 0, 3, 3],
                    confidence: 0.9,
                }],
            }),
            times: StageTimes {
                preprocess: Duration::from_millis(1),
                network: Duration::from_millis(20),
                concepts: Duration::from_micros(500),
                propagation: Duration::ZERO,
            },
        }
    }

    fn names() -> ConceptNames {
        ConceptNames::parse(
            "[concept.2]\nname = \"road\"\nmark = \"alert\"",
            Path::new("concepts.toml"),
            10,
        )
        .unwrap()
    }

    #[test]
    fn a_record_sums_up_its_frame() {
        let record = FrameRecord::new(&result(), &names(), Some(40));
        assert_eq!((record.frame, record.pts_ns), (7, Some(40)));
        assert!((record.latency_ms.total - 21.5).abs() < 1e-9);
        let [road, other] = &record.concepts[..] else { panic!("{:?}", record.concepts) };
        assert_eq!((road.id, road.name.as_deref(), road.area), (2, Some("road"), 0.5));
        assert_eq!((road.mark, other.mark), (Some(Mark::Alert), None));
        assert_eq!((other.id, other.name.as_deref(), other.area), (9, None, 0.5));
        assert!((other.similarity - 0.65).abs() < 1e-6);
        let [instance] = &record.instances[..] else { panic!("{:?}", record.instances) };
        assert_eq!(instance.segmentation, Rle { size: [3, 4], counts: "326O".into() });
    }

    #[test]
    fn a_frame_without_results_is_a_record_too() {
        let bare = FrameResult { concepts: None, masks: None, ..result() };
        let record = FrameRecord::new(&bare, &names(), None);
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains(r#""concepts":[],"instances":[]"#), "{json}");
        assert!(!json.contains("pts_ns"), "{json}");
        assert_eq!(serde_json::from_str::<FrameRecord>(&json).unwrap(), record);
    }

    #[test]
    fn the_file_appears_at_the_end_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let record = FrameRecord::new(&result(), &names(), None);
        let mut writer = RecordWriter::create(&path).unwrap();
        writer.write(&record).unwrap();
        writer.write(&record).unwrap();
        assert!(!path.exists());
        writer.finish().unwrap();
        let read: Result<Vec<_>, _> = read_records(&path).unwrap().collect();
        assert_eq!(read.unwrap(), [record.clone(), record.clone()]);

        let mut abandoned = RecordWriter::create(&path).unwrap();
        abandoned.write(&record).unwrap();
        drop(abandoned);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no litter");
        assert_eq!(read_records(&path).unwrap().count(), 2, "the old file stays");
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.jsonl");
        let good = serde_json::to_string(&FrameRecord::new(&result(), &names(), None)).unwrap();
        std::fs::write(&path, format!("{good}\n{{\"frame\": -1}}\n{good}\n")).unwrap();
        let records: Vec<_> = read_records(&path).unwrap().collect();
        assert_eq!(records.len(), 2);
        let text = records[1].as_ref().unwrap_err().to_string();
        assert!(text.contains("bad.jsonl, line 2"), "{text}");
        assert!(read_records(Path::new("/nonexistent")).is_err());
        assert!(RecordWriter::create(Path::new("/nonexistent/x")).is_err());
    }
}
