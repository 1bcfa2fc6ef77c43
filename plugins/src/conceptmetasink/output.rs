//! Where lines go.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use conceptseg::results::{FrameRecord, RecordWriter};

/// A results file, or a descriptor.
pub enum Output {
    /// Appears under its name when it is complete.
    File {
        path: PathBuf,
        /// `None` between the end of a stream and the first frame after it.
        writer: Option<RecordWriter>,
    },
    /// Gets each line at once.
    Descriptor { number: i32, file: File },
}

impl Output {
    /// Begins a file.
    pub fn file(path: &Path) -> Result<Self, gst::ErrorMessage> {
        let writer = RecordWriter::create(path).map_err(|e| {
            gst::error_msg!(
                gst::ResourceError::OpenWrite,
                ("Cannot write results to {}: {e}", path.display())
            )
        })?;
        Ok(Self::File { path: path.to_owned(), writer: Some(writer) })
    }

    /// Writes to a descriptor of the process. The application's own one stays open: it is
    /// duplicated by way of the file system, which needs no unsafe code.
    pub fn descriptor(number: i32) -> Result<Self, gst::ErrorMessage> {
        let refused = |e: io::Error| {
            gst::error_msg!(
                gst::ResourceError::OpenWrite,
                ("Cannot write results to the file descriptor {number}: {e}; it has to be open for writing")
            )
        };
        let file = match number {
            1 => duplicate(&io::stdout()),
            2 => duplicate(&io::stderr()),
            _ => File::options().append(true).open(format!("/proc/self/fd/{number}")),
        };
        Ok(Self::Descriptor { number, file: file.map_err(refused)? })
    }

    /// Adds one line.
    pub fn write(&mut self, record: &FrameRecord) -> Result<(), gst::ErrorMessage> {
        match self {
            Self::File { path, writer } => {
                let written = match writer {
                    Some(writer) => writer.write(record),
                    none => RecordWriter::create(path)
                        .and_then(|writer| none.insert(writer).write(record)),
                };
                written.map_err(|e| lost(&path.display().to_string(), &e))
            }
            Self::Descriptor { number, file } => {
                // One call for the line, so that other writers do not come between.
                let line = serde_json::to_string(record).map_err(io::Error::from);
                line.and_then(|line| file.write_all(format!("{line}\n").as_bytes()))
                    .map_err(|e| lost(&format!("the file descriptor {number}"), &e))
            }
        }
    }

    /// Completes the file.
    pub fn finish(&mut self) -> Result<(), gst::ErrorMessage> {
        let Self::File { path, writer } = self else { return Ok(()) };
        let Some(writer) = writer.take() else { return Ok(()) };
        writer.finish().map_err(|e| lost(&path.display().to_string(), &e))
    }
}

fn duplicate(stream: &impl std::os::fd::AsFd) -> io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

fn lost(target: &str, error: &io::Error) -> gst::ErrorMessage {
    gst::error_msg!(
        gst::ResourceError::Write,
        ("Cannot write results to {target}: {error}; make room or give another location")
    )
}
